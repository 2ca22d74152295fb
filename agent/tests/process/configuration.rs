//! The command line, the files, and edits to them.

use {
    crate::{
        agent::{Home, exec_component, tcp_component, tested},
        aggregator::{Aggregator, probes},
    },
    healthscope_shared::probe::outcome::ProbeState,
    std::{
        collections::BTreeMap,
        process::{Command, Output},
    },
    tokio::net::TcpListener,
};

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn check_usage(arguments: &[&str], part: &str) {
    let (code, said) = run(Command::new(tested()).env_clear().args(arguments));
    assert_eq!(code, Some(2), "{arguments:?}: {said}");
    assert!(said.contains(part), "{arguments:?}: {said}");
}

#[test]
fn wrong_command_line_is_usage() {
    check_usage(&[], "--config");
    check_usage(&["--config", "x"], "--aggregator");
    check_usage(&["--config", "x", "--aggregator", "here"], "not a URL");
    check_usage(
        &["--config", "x", "--aggregator", "ws://example.org:1"],
        "another machine and ws:// is not encrypted",
    );
    check_usage(
        &[
            "--config",
            "x",
            "--aggregator",
            "ws://localhost:1",
            "--listen",
            "nowhere",
        ],
        "--listen",
    );
    check_usage(
        &["--config", "x", "--aggregator", "ws://localhost:1", "--what"],
        "--what",
    );
}

#[test]
fn a_component_is_given_itself_or_in_a_file() {
    let component = r#"{"apiVersion": "healthscope.core.oam.dev/v1beta1", "kind": "Component", "metadata": {"name": "web"},
        "spec": {"readinessProbe": {"exec": {"command": ["true"], "container": "web"}}}}"#;
    check_usage(
        &[
            "--config",
            "x",
            "--component",
            component,
            "--aggregator",
            "ws://localhost:1",
        ],
        "cannot be used with",
    );
    check_usage(
        &[
            "--config",
            "x",
            "--aggregator",
            "ws://localhost:1",
            "--pod-ip",
            "10.0.0.1",
        ],
        "--runner-dir",
    );
    let (code, said) = run(Command::new(tested())
        .env_clear()
        .env("HEALTHSCOPE_COMPONENT", component)
        .env("HEALTHSCOPE_AGGREGATOR", "ws://localhost:1"));
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("--component:") && said.contains("exec.container: needs check beside it"),
        "{said}"
    );
}

#[test]
fn environment_says_the_same_as_flags() {
    let (code, said) = run(Command::new(tested())
        .env_clear()
        .env("HEALTHSCOPE_CONFIG", "/nowhere/config.yaml")
        .env("HEALTHSCOPE_AGGREGATOR", "ws://localhost:1"));
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("/nowhere/config.yaml: there is no such file"),
        "{said}"
    );
}

#[test]
fn everything_that_is_wrong_is_said_with_its_place() {
    let home = Home::new(
        "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\nspec:\n  readinessProb: \
         {tcpSocket: {port: 80}}\n---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: db}\n\
         spec:\n  readinessProbe: {tcpSocket: {port: 80}, period: 1ms}\n",
    );
    let (code, said) = run(&mut home.command("ws://localhost:1"));
    assert_eq!(code, Some(1), "{said}");
    let path = home.path("config.yaml").display().to_string();
    for (place, part) in [(":5:3: ", "readinessProbe"), (":11:", "period")] {
        let expected = format!("{path}{place}");
        assert!(
            said.lines()
                .any(|line| line.starts_with(&expected) && line.contains(part)),
            "{expected}...{part} is not in\n{said}"
        );
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let home = Home::new(&exec_component("web", "true"));
    let (code, said) = run(home
        .command("wss://localhost:1")
        .args(["--ca", "/nowhere/ca.pem"]));
    assert_eq!(
        (code, said.contains("/nowhere/ca.pem")),
        (Some(1), true),
        "{said}"
    );
    let (code, said) = run(home
        .command("ws://localhost:1")
        .args(["--token-file", "/nowhere/token"]));
    assert_eq!((code, said.contains("/nowhere/token")), (Some(1), true), "{said}");
    let (code, said) = run(Command::new(tested()).env_clear().args([
        "--config",
        home.path("config.yaml").to_str().unwrap(),
        "--aggregator",
        "ws://localhost:1",
        "--socket",
        "/nowhere/agent.sock",
    ]));
    assert_eq!(
        (code, said.contains("/nowhere/agent.sock")),
        (Some(1), true),
        "{said}"
    );
}

#[tokio::test]
async fn edit_is_announced_and_what_stays_keeps_its_state() {
    let aggregator = Aggregator::plain().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    let (web, db) = (tcp_component("web", port), tcp_component("db", port));
    let home = Home::new(&format!("{web}{db}"));
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.accept().await;
    session.hello().await;
    session.welcome(None).await;
    let before = session.announce().await;
    let ids = |announce| -> BTreeMap<String, u32> {
        probes(announce)
            .into_iter()
            .map(|(name, probe)| (name.to_owned(), probe.id.0))
            .collect()
    };
    let before = ids(&before);
    session.transitions(|record| record.seq.0 == 2).await;

    let changed = db.replace("50ms", "60ms");
    let cache = tcp_component("cache", port);
    home.write("config.yaml", &format!("{web}{changed}{cache}"));
    let after = session.announce().await;
    assert_eq!(after.revision, 2);
    let after = ids(&after);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["cache", "db", "web"]);
    assert_eq!(after["web"], before["web"]);
    assert!(
        after["db"] > before["db"] && after["cache"] > before["db"],
        "{after:?}"
    );
    // The two new ones become known; the old one is not told again.
    let news = session.transitions(|record| record.seq.0 == 4).await;
    assert!(
        news.iter().all(|record| record.probe.0 != after["web"]),
        "{news:?}"
    );
    assert!(
        news.iter().all(|record| record.state == ProbeState::Passing),
        "{news:?}"
    );

    home.write("config.yaml", &web);
    assert_eq!(
        ids(&session.announce().await),
        BTreeMap::from([("web".to_owned(), before["web"])])
    );
    agent.logged("watching components=1 probes=1").await;
}

#[tokio::test]
async fn invalid_edit_keeps_what_was() {
    let aggregator = Aggregator::plain().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = tcp_component("web", target.local_addr().unwrap().port());
    let home = Home::new(&good);
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    home.write("config.yaml", &good.replace("timeout: 1s", "timeout: soon"));
    let line = agent.logged("config.yaml:6:").await;
    assert!(line.contains("timeout"), "{line}");
    agent.logged("what is watched stays as it was").await;
    // It is still watched.
    drop(target);
    session
        .transitions(|record| record.state == ProbeState::Failing)
        .await;
    home.write("config.yaml", &exec_component("web", "true"));
    assert_eq!(probes(&session.announce().await)[0].1.target, "exec sh -c true");
    assert_eq!(agent.count_logged("what is watched stays as it was"), 1);
}

#[tokio::test]
async fn directory_of_many_components_is_announced_in_parts() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new("");
    let directory = home.path("components");
    std::fs::create_dir(&directory).unwrap();
    for file in 0..4 {
        let text: String = (0..250)
            .map(|index| {
                let component = tcp_component(&format!("c{file}-{index}"), 1);
                component.replace("50ms", "3600s")
            })
            .collect();
        std::fs::write(directory.join(format!("{file}.yaml")), text).unwrap();
    }
    let mut command = Command::new(tested());
    home.arguments(&mut command, &aggregator.url());
    // The later flag would be a second one; the environment does not say it.
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut command = Command::new(tested());
    command.env_clear().args(arguments.iter().map(|argument| {
        if *argument == home.path("config.yaml") {
            directory.as_os_str()
        } else {
            argument.as_os_str()
        }
    }));
    let _agent = crate::agent::Agent::start(&home, command);
    let mut session = aggregator.accept().await;
    session.hello().await;
    session.welcome(None).await;
    let announce = session.announce().await;
    assert_eq!(announce.instances.len(), 1_000);
    assert!(announce.part > 0, "{}", announce.part);
}
