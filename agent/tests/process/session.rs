//! What is said, and what is not lost.

use {
    crate::{
        agent::{Home, exec_component, tcp_component},
        aggregator::{Aggregator, probes},
        soon,
    },
    healthscope_shared::{
        health::Reason,
        probe::outcome::ProbeState,
        wire::{AgentMessage, Drain, ProbeId, Redirect, RunProbe, Seq, ServerMessage},
    },
    std::time::{Duration, Instant},
    tokio::net::TcpListener,
};

const TWO_COMPONENTS: &str = "
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata:
  name: web
  labels: {app.kubernetes.io/part-of: shop}
  annotations: {healthscope.core.oam.dev/depends-on: db}
spec:
  readinessProbe: {exec: {command: ['true']}, periodSeconds: 3, failureThreshold: 2}
  probes:
    - {name: disk, type: liveness, exec: {command: [sh, -c, 'echo full; exit 3']}, period: 100ms, timeout: 5s}
---
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata: {name: db, namespace: data}
spec:
  readinessProbe: {tcpSocket: {port: 1}}
";

#[tokio::test]
async fn greets_announces_and_reports() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(TWO_COMPONENTS);
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.accept().await;
    assert!(session.headers.get("authorization").is_none());
    let hello = session.hello().await;
    assert_eq!(
        (hello.agent.as_str(), hello.protocol, hello.version.as_str()),
        ("host-1", 1, env!("CARGO_PKG_VERSION"))
    );
    session.welcome(None).await;
    let announce = session.announce().await;
    let [web, db] = &announce.instances[..] else {
        panic!("{announce:?}")
    };
    assert_eq!((web.component.as_str(), web.instance.as_str()), ("web", "host-1"));
    assert_eq!((db.component.as_str(), db.namespace.as_str()), ("db", "data"));
    assert_eq!(web.labels["app.kubernetes.io/part-of"], "shop");
    assert_eq!(web.depends_on, ["db"]);
    let shown: Vec<_> = probes(&announce)
        .into_iter()
        .map(|(component, probe)| {
            format!(
                "{component}/{} {} {} {} {}",
                probe.name, probe.kind, probe.target, probe.period_ms, probe.failure_threshold
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "web/readiness readiness exec true 3000 2",
            "web/disk liveness exec sh -c echo full; exit 3 100 3",
            "db/readiness readiness tcp 127.0.0.1:1 10000 3",
        ]
    );
    let disk = web.probes[1].id;
    let failing = session.transitions(|record| record.probe == disk).await;
    let failing = failing.last().unwrap();
    assert_eq!(
        (failing.state, failing.streak, &failing.reason),
        (ProbeState::Failing, -3, &Reason::EXIT_CODE)
    );
    assert!(failing.message.contains("exit code 3"), "{failing:?}");
    assert_eq!(failing.output, "full\n");
    // With the next heartbeat, what equal results added up to.
    let summary = loop {
        let report = session.report().await;
        if let Some(summary) = report.summaries.iter().find(|summary| summary.probe == disk) {
            break *summary;
        }
    };
    assert!(
        summary.runs >= 2 && summary.failures == summary.runs,
        "{summary:?}"
    );
    assert!(summary.min_us > 0 && summary.min_us <= summary.p99_us && summary.p99_us <= summary.max_us);
    agent.terminated().await;
}

#[tokio::test]
async fn run_that_is_asked_for_is_made_at_once() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(
        "{apiVersion: healthscope.core.oam.dev/v1beta1, kind: Component, metadata: {name: web}, spec: {readinessProbe: \
         {exec: {command: [echo, hello]}, periodSeconds: 3600, initialDelaySeconds: 3600}}}",
    );
    let _agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    for (request, probe) in [(1, ProbeId(0)), (2, ProbeId(99))] {
        session
            .say(&ServerMessage::Probe(RunProbe { request, probe }))
            .await;
        let probed = loop {
            if let AgentMessage::Probed(probed) = session.heard().await {
                break probed;
            }
        };
        assert_eq!(probed.request, request);
        if request == 1 {
            assert_eq!(
                (probed.result.as_deref(), probed.output.as_str()),
                (Some("success"), "hello\n")
            );
            assert_eq!(probed.state, Some(ProbeState::Passing));
        } else {
            assert_eq!(probed.result, None);
            assert!(probed.message.contains("99"), "{probed:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_lost_when_the_aggregator_is_killed_and_comes_back() {
    let aggregator = Aggregator::plain().await;
    let address = aggregator.address();
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target_address = target.local_addr().unwrap();
    let home = Home::new(&tcp_component("web", target_address.port()));
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.accept().await;
    let first = session.hello().await;
    session.welcome(None).await;
    session.announce().await;
    let passing = session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    assert_eq!(passing.last().unwrap().seq, Seq(1));

    drop((session, aggregator));
    // Down, up and down again while nobody listens.
    let transitions = "healthscope_agent_transitions_total";
    drop(target);
    agent.metric_reaches(transitions, |count| count >= 2.0).await;
    let target = TcpListener::bind(target_address).await.unwrap();
    agent.metric_reaches(transitions, |count| count >= 3.0).await;
    drop(target);
    agent.metric_reaches(transitions, |count| count >= 4.0).await;

    let aggregator = Aggregator::at(address).await;
    let mut session = aggregator.accept().await;
    let again = session.hello().await;
    assert_eq!((again.epoch, again.seq), (first.epoch, Seq(4)));
    session.welcome(Some(Seq(1))).await;
    session.announce().await;
    let missed = session.transitions(|record| record.seq == Seq(4)).await;
    let missed: Vec<_> = missed.iter().map(|record| (record.seq.0, record.state)).collect();
    assert_eq!(
        missed,
        [
            (2, ProbeState::Failing),
            (3, ProbeState::Passing),
            (4, ProbeState::Failing)
        ]
    );
    assert_eq!(
        agent.metric("healthscope_agent_transitions_dropped_total").await,
        0.0
    );
    assert!(
        agent
            .metric(r#"healthscope_agent_sessions_ended_total{cause="lost"}"#)
            .await
            >= 1.0
    );
    // The outage is one warning, however many attempts there were.
    assert!(
        agent
            .metric(r#"healthscope_agent_connection_attempts_total{result="unreachable"}"#)
            .await
            >= 1.0
    );
    assert_eq!(agent.count_logged("cannot connect to"), 1);
}

#[tokio::test]
async fn redirect_is_followed() {
    let (first, second) = (Aggregator::plain().await, Aggregator::plain().await);
    let home = Home::new(&exec_component("web", "true"));
    let agent = home.start(&first.url());
    let mut session = first.accept().await;
    session.hello().await;
    let redirect = Redirect {
        address: second.address().to_string(),
        server_name: None,
        spread_ms: 0,
    };
    session.say(&ServerMessage::Redirect(redirect)).await;
    let mut session = second.open().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    assert_eq!(
        agent
            .metric(r#"healthscope_agent_sessions_ended_total{cause="redirected"}"#)
            .await,
        1.0
    );
    // When that one is gone, the one from the command line is asked again.
    drop((session, second));
    first.open().await;
}

#[tokio::test]
async fn drain_ends_the_session_and_the_agent_comes_back() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(&exec_component("web", "true"));
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    session.say(&ServerMessage::Drain(Drain { spread_ms: 200 })).await;
    session.closed().await;
    aggregator.open().await;
    agent.logged("the aggregator is about to stop").await;
    assert_eq!(
        agent
            .metric(r#"healthscope_agent_sessions_ended_total{cause="drained"}"#)
            .await,
        1.0
    );
}

#[tokio::test]
async fn aggregator_that_never_reads_does_not_stop_checks() {
    let aggregator = Aggregator::plain().await;
    // Kilobytes with each change of state, twenty times a second: the kernel's buffers are full soon.
    let component = "
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata: {name: web}
spec:
  readinessProbe:
    exec: {command: [sh, -c, 'head -c 4000 /dev/zero | tr \"\\0\" x; n=$(cat n 2>/dev/null || echo 0); echo $((1 - n)) > n; exit $n']}
    period: 50ms
    timeout: 5s
    failureThreshold: 1
";
    let home = Home::new(component);
    let mut command = home.command(&aggregator.url());
    command.current_dir(home.path(""));
    let agent = crate::agent::Agent::start(&home, command);
    let session = aggregator.open().await;
    agent
        .metric_reaches("healthscope_agent_transitions_total", |count| count >= 100.0)
        .await;
    let (_, metrics) = agent.get("/metrics").await;
    assert!(metrics.contains("healthscope_agent_connected 1\n"));
    let (status, took) = agent.terminated().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(session);
}

#[tokio::test]
async fn edge_reaches_the_aggregator_in_milliseconds() {
    let aggregator = Aggregator::plain().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = Home::new(&tcp_component("web", target.local_addr().unwrap().port()));
    let _agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    session
        .transitions(|record| record.state == ProbeState::Passing)
        .await;
    drop(target);
    let broken = Instant::now();
    let failing = session.transitions(|record| record.state == ProbeState::Failing);
    soon("the edge", failing).await;
    // One period, and room for a busy machine. The bench says how fast it really is.
    assert!(
        broken.elapsed() < Duration::from_secs(1),
        "{:?}",
        broken.elapsed()
    );
}
