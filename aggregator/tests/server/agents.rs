//! Sessions of agents, good ones and bad ones. A bad one harms itself alone.

use {
    crate::support::{Agent, SHOP, healthy_shop, instance, record, serve, serve_with},
    futures_util::{SinkExt, StreamExt},
    healthscope_core::view::Presence,
    healthscope_shared::{
        health::Health,
        wire::{AgentMessage, Announce, Goodbye, Report, Seq, ServerMessage, close},
    },
    std::time::Duration,
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    },
    tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode},
};

#[tokio::test]
async fn what_an_agent_finds_is_seen() {
    let (served, mut agent) = healthy_shop().await;
    agent
        .report(&[(2, false, "connection refused"), (1, false, "503")])
        .await;
    let snapshot = served.until_health("shop", Health::Unhealthy).await;
    let shop = &snapshot.scopes.values().next().unwrap().view;
    let root = shop.root_cause.as_deref().unwrap();
    assert!(root.starts_with("db: readiness tcp 127.0.0.1:1 on one"), "{root}");
    agent.until_acknowledged().await;
    agent.report(&[(2, true, ""), (1, true, "")]).await;
    served.until_health("shop", Health::Healthy).await;
}

/// Checks that something that an agent sends ends its session with a code, and leaves another agent alone.
async fn check_breach(message: Message, code: u16) {
    let (served, mut good) = healthy_shop().await;
    let mut bad = Agent::join(&served, "bad").await;
    bad.socket.send(message.clone()).await.unwrap();
    let (found, reason) = bad.until_closed().await;
    assert_eq!(found, code, "{message:?}: {reason}");
    assert!(!reason.is_empty());
    good.report(&[(1, false, "still heard")]).await;
    served.until_health("shop", Health::Unhealthy).await;
}

#[tokio::test]
async fn a_binary_frame_ends_its_session() {
    check_breach(Message::binary(vec![1, 2, 3]), close::UNSUPPORTED_DATA).await;
}

#[tokio::test]
async fn garbage_ends_its_session() {
    for garbage in [
        "",
        "{",
        "[]",
        "null",
        "{\"type\":7}",
        "{\"type\":\"report\",\"seq\":\"x\"}",
        "\u{0}",
    ] {
        check_breach(Message::text(garbage), close::PROTOCOL).await;
    }
}

#[tokio::test]
async fn a_message_over_the_limit_ends_its_session() {
    let text = format!("{{\"type\":\"report\",\"x\":\"{}\"}}", "x".repeat(64 * 1024));
    check_breach(Message::text(text), close::TOO_BIG).await;
}

#[tokio::test]
async fn hello_twice_ends_the_session() {
    let served = serve(SHOP).await;
    let mut agent = Agent::join(&served, "one").await;
    agent.say_hello("one").await;
    assert_eq!(
        agent.until_closed().await,
        (close::PROTOCOL, "hello twice".into())
    );
}

#[tokio::test]
async fn sequences_that_go_back_end_the_session() {
    let (served, mut agent) = healthy_shop().await;
    let backwards = Report {
        seq: Seq(1),
        transitions: vec![record(1, 1, false, "replayed")],
        ..Report::default()
    };
    agent.say(AgentMessage::Report(backwards)).await;
    assert_eq!(agent.until_closed().await.0, close::PROTOCOL);
    let snapshot = served.snapshots.borrow().clone();
    assert_eq!(
        snapshot.scopes.values().next().unwrap().view.health,
        Health::Healthy
    );
}

#[tokio::test]
async fn frames_that_are_none_end_the_session() {
    let (served, good) = healthy_shop().await;
    // Not masked, as every frame of a client must be (RFC 6455, 5.1).
    let mut bad = Agent::join(&served, "bad").await;
    bad.socket
        .get_mut()
        .write_all(&[0x81, 0x02, b'{', b'}'])
        .await
        .unwrap();
    assert_eq!(bad.until_closed().await.0, close::PROTOCOL);
    // Text that is not UTF-8.
    let mut bad = Agent::join(&served, "bad").await;
    bad.socket
        .get_mut()
        .write_all(&[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe])
        .await
        .unwrap();
    assert_eq!(bad.until_closed().await.0, close::PROTOCOL);
    drop(good);
}

#[tokio::test]
async fn a_connection_cut_in_a_frame_is_a_lost_one() {
    let (served, mut agent) = healthy_shop().await;
    // A frame of 64 bytes of which eight arrive.
    let stream = agent.socket.get_mut();
    stream.write_all(&[0x81, 0xc0, 1, 2, 3, 4, 5, 6]).await.unwrap();
    stream.shutdown().await.unwrap();
    served
        .until_metric("healthscope_agent_sessions_ended_total{reason=\"lost\"}", 1.0)
        .await;
    served
        .until_metric("healthscope_agents{state=\"absent\"}", 1.0)
        .await;
    let agents = served.get_json("/api/v1/agents").await;
    assert_eq!(agents["items"][0]["presence"], "held");
    let snapshot = served.snapshots.borrow().clone();
    let view = &snapshot.scopes.values().next().unwrap().view;
    assert_eq!(view.health, Health::Healthy, "held for a while");
}

#[tokio::test]
async fn a_message_in_pieces_is_one_message() {
    let served = serve(SHOP).await;
    let mut agent = Agent::join(&served, "one").await;
    agent.announce(&["web", "db"]).await;
    let report = AgentMessage::Report(Report {
        seq: Seq(2),
        transitions: vec![record(1, 1, true, ""), record(2, 2, true, "")],
        complete: true,
        ..Report::default()
    })
    .encode();
    let (first, second) = report.as_bytes().split_at(report.len() / 2);
    let mut bytes = Vec::new();
    for (opcode, part) in [(0x01, first), (0x80, second)] {
        // A mask of zeros leaves the payload as it is.
        bytes.extend([opcode, 0x80 | 126]);
        bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(part);
    }
    agent.socket.get_mut().write_all(&bytes).await.unwrap();
    served.until_health("shop", Health::Healthy).await;
}

#[tokio::test]
async fn a_large_announcement_is_followed_by_small_reports() {
    let served = serve(SHOP).await;
    let mut agent = Agent::join(&served, "one").await;
    let names: Vec<String> = (0..150).map(|number| format!("component-{number}")).collect();
    let mut components: Vec<&str> = names.iter().map(String::as_str).collect();
    components.splice(0..0, ["web", "db"]);
    agent.announce(&components).await;
    // Several at once: what lies in the buffer behind a large message must not get lost with it.
    for round in 0..20 {
        let passes = round % 2 == 1;
        agent.report(&[(1, passes, "x"), (2, passes, "x")]).await;
    }
    served.until_health("shop", Health::Healthy).await;
    agent.until_acknowledged().await;
    let snapshot = served.snapshots.borrow().clone();
    assert_eq!(snapshot.totals.probes, 152);
    assert_eq!(snapshot.totals.missed_transitions, 0);
}

#[tokio::test]
async fn the_newer_of_two_sessions_wins() {
    let (served, mut older) = healthy_shop().await;
    let mut newer = Agent::join(&served, "one").await.restarted();
    let (code, reason) = older.until_closed().await;
    assert_eq!(code, close::REPLACED, "{reason}");
    newer.announce(&["web", "db"]).await;
    newer.report(&[(1, false, "from the newer"), (2, true, "")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let agents = served.get_json("/api/v1/agents").await;
    assert_eq!(
        (agents["total"].clone(), agents["items"][0]["sessions"].clone()),
        (1.into(), 2.into())
    );
}

#[tokio::test]
async fn a_goodbye_is_told_from_a_loss() {
    let (served, mut agent) = healthy_shop().await;
    agent
        .say(AgentMessage::Goodbye(Goodbye {
            reason: "going home".into(),
        }))
        .await;
    agent.socket.close(None).await.unwrap();
    served
        .until_metric("healthscope_agent_sessions_ended_total{reason=\"goodbye\"}", 1.0)
        .await;
}

#[tokio::test]
async fn unknown_messages_are_answered_and_skipped() {
    let (served, mut agent) = healthy_shop().await;
    agent.say_text("{\"type\":\"poem\",\"lines\":[]}").await;
    loop {
        match agent.hear().await {
            ServerMessage::Unsupported(unsupported) => break assert_eq!(unsupported.what, "poem"),
            ServerMessage::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
    agent.report(&[(1, false, "still heard")]).await;
    served.until_health("shop", Health::Unhealthy).await;
}

#[tokio::test(start_paused = true)]
async fn a_half_open_connection_is_noticed_within_thirty_seconds() {
    let (served, mut agent) = healthy_shop().await;
    let start = tokio::time::Instant::now();
    // Bytes arrive, but nobody answers the pings among them.
    let mut unanswered = Vec::new();
    agent.socket.get_mut().read_to_end(&mut unanswered).await.unwrap();
    let noticed = start.elapsed();
    assert!(noticed <= Duration::from_secs(30), "{noticed:?}");
    assert!(noticed >= Duration::from_secs(20), "{noticed:?} is too hasty");
    assert!(unanswered.ends_with(b"nothing heard for too long"));
    // What was known is held for a while, and then nothing is known any more.
    let snapshot = served.until_health("shop", Health::Unknown).await;
    let web = &snapshot.scopes.values().next().unwrap().view.components[0].component;
    assert_eq!(web.reason.as_str(), "AgentLost");
    assert_eq!(
        served
            .metric("healthscope_agent_sessions_ended_total{reason=\"silent\"}")
            .await,
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_says_hello_is_let_go() {
    let served = serve(SHOP).await;
    let mut agent = Agent::connect(&served).await;
    let (code, reason) = agent.until_closed().await;
    assert_eq!((code, reason.as_str()), (close::SILENT, "no hello"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_is_let_go() {
    let (served, _good) = healthy_shop().await;
    let mut bad = Agent::join(&served, "bad").await;
    // Each of these is answered. When nothing of it is read, first the system's buffers fill, then the aggregator stops
    // reading, and at last it lets go.
    let line = format!("{{\"type\":\"{}\"}}", "x".repeat(48));
    let flooding = async {
        loop {
            if bad.socket.send(Message::text(line.clone())).await.is_err() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(600), flooding)
        .await
        .expect("the aggregator lets go");
    let text = served.get("/metrics").await.body;
    let is_counted = |reason: &str| {
        text.contains(&format!(
            "healthscope_agent_sessions_ended_total{{reason=\"{reason}\"}} 1"
        ))
    };
    assert!(is_counted("slow") || is_counted("lost"), "{text}");
    assert_eq!(
        served.metric("healthscope_agent_sessions").await,
        1.0,
        "the good one is still there"
    );
}

#[tokio::test]
async fn a_thousand_reconnects_harm_nobody() {
    let (served, mut good) = healthy_shop().await;
    for round in 0..1_000 {
        let mut agent = Agent::connect(&served).await;
        match round % 4 {
            // Gone before hello, before the welcome, after it, and on purpose.
            0 => {}
            1 => agent.say_hello("stormy").await,
            2 => drop(agent.greet("stormy").await),
            _ => {
                agent.greet("stormy").await;
                let _gone = agent.socket.close(None).await;
            }
        }
    }
    served.until_metric("healthscope_agent_sessions", 1.0).await;
    good.report(&[(1, false, "at last")]).await;
    let snapshot = served.until_health("shop", Health::Unhealthy).await;
    let of_shop = snapshot
        .transitions
        .iter()
        .filter(|transition| transition.name.as_str() == "shop");
    assert_eq!(of_shop.count(), 2, "no false transition");
}

#[tokio::test]
async fn many_agents_at_once_are_all_served() {
    let served = serve(SHOP).await;
    let joining = (0..300).map(|number| {
        let served = &served;
        async move {
            let mut agent = Agent::join(served, &format!("agent-{number}")).await;
            agent.announce(&[&format!("component-{number}")]).await;
            agent.report(&[(1, true, "")]).await;
            agent.until_acknowledged().await;
            agent
        }
    });
    let agents = futures_util::future::join_all(joining).await;
    let snapshot = served
        .until(|snapshot| snapshot.totals.components.healthy >= 300)
        .await;
    assert_eq!(snapshot.totals.agents_connected, 300);
    drop(agents);
}

#[tokio::test]
async fn an_agent_that_announces_too_much_is_refused_with_the_reason() {
    let served = serve_with(SHOP, |config| config.limits.store.probes_per_agent = 1).await;
    let mut agent = Agent::join(&served, "one").await;
    agent.announce(&["web", "db"]).await;
    let (code, reason) = agent.until_closed().await;
    assert_eq!(code, close::POLICY);
    assert!(reason.contains("2 probes are more than the 1"), "{reason}");
}

#[tokio::test]
async fn announcements_may_come_in_parts() {
    let served = serve(SHOP).await;
    let mut agent = Agent::join(&served, "one").await;
    for (part, component) in (0..).zip(["web", "db"]) {
        agent
            .say(AgentMessage::Announce(Announce {
                revision: 1,
                part,
                last: part == 1,
                instances: vec![instance(component, part + 1)],
            }))
            .await;
    }
    agent.report(&[(1, true, ""), (2, true, "")]).await;
    served.until_health("shop", Health::Healthy).await;
}

#[tokio::test]
async fn shutdown_asks_agents_to_come_back_and_waits_for_nobody_long() {
    let (served, mut polite) = healthy_shop().await;
    let mut rude = Agent::join(&served, "rude").await;
    let start = std::time::Instant::now();
    served.shut_down();
    loop {
        if let ServerMessage::Drain(drain) = polite.hear().await {
            assert!(drain.spread_ms > 0);
            break;
        }
    }
    polite.socket.close(None).await.unwrap();
    assert!(matches!(rude.hear().await, ServerMessage::Drain(_)));
    served.stop().await.unwrap();
    assert!(
        start.elapsed() < Duration::from_millis(2_500),
        "{:?}",
        start.elapsed()
    );
    while let Some(Ok(message)) = rude.socket.next().await {
        if let Message::Close(Some(frame)) = message {
            assert_ne!(frame.code, CloseCode::Protocol);
        }
    }
}

#[tokio::test]
async fn what_is_known_survives_a_restart_of_the_agent() {
    let (served, agent) = healthy_shop().await;
    drop(agent);
    served
        .until_metric("healthscope_agents{state=\"absent\"}", 1.0)
        .await;
    let mut agent = Agent::connect(&served).await.restarted();
    assert_eq!(agent.greet("one").await.acked, None, "another run is not known");
    agent.announce(&["web", "db"]).await;
    agent.report(&[(1, true, ""), (2, true, "")]).await;
    agent.until_acknowledged().await;
    let snapshot = served
        .until(|snapshot| snapshot.totals.agents_connected == 1)
        .await;
    let of_shop = snapshot
        .transitions
        .iter()
        .filter(|transition| transition.name.as_str() == "shop");
    assert_eq!(of_shop.count(), 1, "it was never anything but healthy");
}

#[tokio::test]
async fn a_configuration_that_changes_is_applied() {
    let (served, _agent) = healthy_shop().await;
    let other = SHOP.replace("name: shop", "name: store");
    served.declared.send_replace(crate::support::loaded(&other, 2));
    let snapshot = served.until_health("store", Health::Healthy).await;
    assert_eq!(snapshot.scopes.len(), 1);
}

#[tokio::test]
async fn presence_is_shown() {
    let (served, _agent) = healthy_shop().await;
    let agents = served.get_json("/api/v1/agents").await;
    let presence: Presence = serde_json::from_value(agents["items"][0]["presence"].clone()).unwrap();
    assert_eq!(presence, Presence::Connected);
    assert_eq!(agents["items"][0]["version"], "0.0.0-test");
}
