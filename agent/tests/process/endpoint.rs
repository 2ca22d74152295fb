//! The agent's own endpoint, and how it is out of something.

use {
    crate::{
        agent::{Agent, Home, exec_component, tcp_component, tested},
        aggregator::Aggregator,
        soon,
    },
    healthscope_shared::{health::Reason, probe::outcome::ProbeState},
    std::{
        collections::{BTreeMap, BTreeSet},
        process::Command,
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    },
};

#[tokio::test]
async fn unix_socket_answers_health_metrics_and_status() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(&exec_component("web", "echo broken; exit 1"));
    let agent = home.start(&aggregator.url());
    agent.logged("watching").await;
    let mut session = aggregator.open().await;
    session
        .transitions(|record| record.state == ProbeState::Failing)
        .await;
    assert_eq!(
        agent.get("/livez").await,
        ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned())
    );
    assert_eq!(
        agent.get("/readyz").await,
        ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned())
    );
    assert_eq!(agent.get("/nothing").await.0, "HTTP/1.1 404 Not Found");
    let status = agent.status().await;
    assert_eq!(status["agent"], "host-1");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["aggregator"]["state"], "connected");
    assert_eq!(status["aggregator"]["version"], "9.9.9");
    assert_eq!(
        status["aggregator"]["url"],
        format!("{}/v1/agent", aggregator.url())
    );
    let probe = &status["components"][0]["probes"][0];
    assert_eq!(
        (&probe["name"], &probe["type"]),
        (&"readiness".into(), &"readiness".into())
    );
    assert_eq!(
        (&probe["state"], &probe["last"]["reason"]),
        (&"failing".into(), &"ExitCode".into())
    );
    let runs = r#"healthscope_agent_probe_total{probe_type="readiness",result="failure",container="web"}"#;
    assert!(agent.metric(runs).await >= 1.0);
    assert_eq!(agent.metric("healthscope_agent_connected").await, 1.0);
}

#[tokio::test]
async fn tcp_answers_only_when_asked_for() {
    let home = Home::new(&exec_component("web", "true"));
    let mut command = home.command("ws://localhost:1");
    command.args(["--listen", "127.0.0.1:0"]);
    let agent = Agent::start(&home, command);
    let line = agent.logged("answering").await;
    let address = line.split("address=").nth(1).unwrap().trim();
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(soon("an answer", asking).await.ends_with("ok\n"));
    agent.killed().await;

    let agent = home.start("ws://localhost:1");
    agent.logged("no session with the aggregator").await;
    assert_eq!(agent.count_logged("answering"), 0);
}

#[tokio::test]
async fn socket_that_answers_is_left_alone() {
    let home = Home::new(&exec_component("web", "true"));
    let agent = home.start("ws://localhost:1");
    agent.logged("no session with the aggregator").await;
    let second = home.command("ws://localhost:1").output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another process listens on the socket"), "{said}");
    assert_eq!(agent.get("/livez").await.1, "ok\n");
}

/// The rules of Prometheus' own linter that concern names, and those of the text format.
#[tokio::test]
async fn metrics_are_well_formed_and_all_there_from_the_start() {
    let home = Home::new(&exec_component("web", "true"));
    let agent = home.start("ws://localhost:1");
    agent.logged("no session with the aggregator").await;
    let (_, text) = agent.get("/metrics").await;
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{line}");
            assert!(helped.insert(name), "{name} is explained twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} has two types");
            continue;
        }
        let (id, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(series.insert(id), "{id} is there twice");
        let name = id.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|base| kinds.get(base) == Some(&"histogram"))
            .unwrap_or(name);
        assert!(helped.contains(family), "{name} is not explained");
        let kind = kinds[family];
        assert_eq!(
            kind == "counter",
            family.ends_with("_total"),
            "{family} is a {kind}"
        );
        assert!(
            family.starts_with("healthscope_agent_") || family.starts_with("process_"),
            "{family}"
        );
        if kind == "histogram" {
            assert!(family.ends_with("_seconds"), "{family}");
        }
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{name}"
        );
    }
    for expected in [
        r#"healthscope_agent_probe_total{probe_type="readiness",result="error",container="web"}"#,
        r#"healthscope_agent_sessions_ended_total{cause="silent"}"#,
        r#"healthscope_agent_connection_attempts_total{result="no_token"}"#,
        "healthscope_agent_transitions_dropped_total",
        r#"healthscope_agent_ticks_dropped_total{cause="late"}"#,
    ] {
        assert!(series.contains(expected), "{expected} is not in\n{text}");
    }
    // No series for a kind of probe that the component does not have.
    assert!(!text.contains(r#"probe_type="startup",result="success",container="web""#));
}

#[tokio::test]
async fn agent_without_descriptors_says_so_once_and_recovers() {
    let aggregator = Aggregator::plain().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = Home::new(&tcp_component("web", target.local_addr().unwrap().port()));
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    // None more than it has.
    let former = agent.limit_descriptors(1);
    let out = session
        .transitions(|record| record.state == ProbeState::Failing)
        .await;
    let out = out.last().unwrap();
    assert!(out.error && out.reason == Reason::OUT_OF_RESOURCES, "{out:?}");
    drop(session);
    agent.logged("no file descriptor is free for a connection").await;
    agent.limit_descriptors(former);
    let mut session = aggregator.open().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    assert_eq!(agent.count_logged("no file descriptor is free"), 1);
    assert_eq!(agent.get("/livez").await.1, "ok\n");
    let (status, _) = agent.terminated().await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn checks_leave_the_agent_the_descriptors_that_it_needs() {
    let aggregator = Aggregator::plain().await;
    // Takes connections into its backlog and never answers.
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    let hanging: String = (0..60)
        .map(|index| {
            format!(
                "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: c{index}}}\nspec:\n  \
                 readinessProbe: {{httpGet: {{port: {port}}}, period: 200ms, timeout: 5s, failureThreshold: 1}}\n"
            )
        })
        .collect();
    let home = Home::new(&hanging);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 40 && exec \"$@\"", "sh"])
        .arg(tested());
    home.arguments(&mut command, &aggregator.url());
    let agent = Agent::start(&home, command);
    let mut session = aggregator.open().await;
    agent
        .metric_reaches("healthscope_agent_runs_waiting", |waiting| waiting > 40.0)
        .await;
    home.write("config.yaml", &tcp_component("web", port));
    session.announce().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    assert_eq!(agent.count_logged("Too many open files"), 0);
}

#[tokio::test]
async fn soft_limit_of_descriptors_is_raised() {
    let home = Home::new(&exec_component("web", "true"));
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 40 && exec \"$@\"", "sh"])
        .arg(tested());
    home.arguments(&mut command, "ws://localhost:1");
    let agent = Agent::start(&home, command);
    agent.logged("starting").await;
    let soft = agent.soft_descriptor_limit();
    assert!(soft > 40, "{soft}");
}
