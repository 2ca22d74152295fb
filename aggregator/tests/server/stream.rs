//! The stream of events.

use {
    crate::support::{Agent, PATIENCE, SHOP, Served, healthy_shop, serve, serve_with},
    healthscope_shared::health::Health,
    serde_json::Value,
    std::time::Duration,
    tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
        net::TcpStream,
        time::timeout,
    },
};

/// A reader of the stream.
struct Reader {
    lines: Lines<BufReader<TcpStream>>,
}

/// An event.
#[derive(Debug)]
struct Event {
    name: String,
    id: Option<u64>,
    data: Value,
}

impl Reader {
    async fn open(served: &Served, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!("GET /api/v1/stream{query} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        assert!(first.contains("200"), "{first}");
        let mut head = String::new();
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.is_empty() {
                break;
            }
            head.push_str(&line);
            head.push('\n');
        }
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        Self { lines }
    }

    /// The next event; sizes of chunks and comments are left out.
    async fn next(&mut self) -> Option<Event> {
        let (mut name, mut id) = (String::new(), None);
        loop {
            let line = timeout(PATIENCE, self.lines.next_line())
                .await
                .expect("an event in time");
            let line = line.ok().flatten()?;
            if let Some(value) = line.strip_prefix("event: ") {
                value.clone_into(&mut name);
            } else if let Some(value) = line.strip_prefix("id: ") {
                id = Some(value.parse().unwrap());
            } else if let Some(value) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(value).unwrap();
                return Some(Event { name, id, data });
            }
        }
    }

    /// The next event of this name.
    async fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.name == name {
                return event;
            }
        }
    }
}

#[tokio::test]
async fn a_reader_gets_the_picture_and_then_what_changes() {
    let (served, mut agent) = healthy_shop().await;
    let mut reader = Reader::open(&served, "", "").await;
    let snapshot = reader.next().await.unwrap();
    assert_eq!(snapshot.name, "snapshot");
    assert_eq!(snapshot.data["scopes"][0]["health"], "Healthy");
    assert_eq!(snapshot.data["missed"], false);
    agent.report(&[(2, false, "refused")]).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let event = reader.next().await.unwrap();
        assert_eq!(event.id.is_some(), event.name == "transition", "{event:?}");
        seen.push((
            event.name.clone(),
            event.data["level"].as_str().unwrap_or_default().to_owned(),
        ));
        if event.name == "totals" {
            break;
        }
    }
    let expected = [
        ("transition", "probe"),
        ("transition", "component"),
        ("transition", "scope"),
        ("scope", ""),
        ("totals", ""),
    ];
    let seen: Vec<_> = seen
        .iter()
        .map(|(name, level)| (name.as_str(), level.as_str()))
        .collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_reader_who_comes_back_gets_what_it_missed_once() {
    let (served, mut agent) = healthy_shop().await;
    let mut reader = Reader::open(&served, "?events=snapshot,transition&level=scope", "").await;
    assert!(
        reader.next().await.unwrap().id.is_some(),
        "a reader can come back to the snapshot"
    );
    agent.report(&[(2, false, "refused")]).await;
    let seen = reader.until("transition").await.id.unwrap();
    drop(reader);
    agent.report(&[(2, true, "")]).await;
    served.until_health("shop", Health::Healthy).await;
    agent.report(&[(2, false, "again")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let header = format!("last-event-id: {seen}\r\n");
    let mut reader = Reader::open(&served, "?events=snapshot,transition&level=scope", &header).await;
    assert_eq!(reader.next().await.unwrap().data["missed"], false);
    let missed = [reader.next().await.unwrap(), reader.next().await.unwrap()];
    assert_eq!(
        missed.each_ref().map(|event| event.data["to"].clone()),
        ["Healthy", "Unhealthy"]
    );
    agent.report(&[(2, true, "")]).await;
    assert_eq!(reader.next().await.unwrap().data["to"], "Healthy");
}

#[tokio::test]
async fn a_reader_of_another_aggregator_is_told_that_something_is_missing() {
    let (served, _agent) = healthy_shop().await;
    let mut reader = Reader::open(&served, "?lastEventId=9007199254740990", "").await;
    assert_eq!(reader.next().await.unwrap().data["missed"], true);
}

#[tokio::test]
async fn readers_can_choose() {
    let two = format!(
        "{SHOP}---{}",
        SHOP.replace("name: shop", "name: other").replace("web", "mail")
    );
    let served = serve(&two).await;
    let mut agent = Agent::join(&served, "one").await;
    agent.announce(&["web", "db", "mail"]).await;
    agent.report(&[(1, true, ""), (2, true, ""), (3, true, "")]).await;
    served.until_health("other", Health::Healthy).await;
    served.until_health("shop", Health::Healthy).await;
    let mut reader = Reader::open(
        &served,
        "?scope=other&events=scope,transition&level=component,scope",
        "",
    )
    .await;
    agent.report(&[(1, false, "of the shop alone")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    agent.report(&[(3, false, "of the other alone")]).await;
    let first = reader.next().await.unwrap();
    assert_eq!(
        (first.name.as_str(), &first.data["name"]),
        ("transition", &"mail".into())
    );
    let scope = reader.until("scope").await;
    assert_eq!(scope.data["name"], "other");
}

#[tokio::test]
async fn a_scope_that_is_gone_is_said_to_be() {
    let served = serve(SHOP).await;
    let mut reader = Reader::open(&served, "", "").await;
    reader.until("snapshot").await;
    let other = SHOP.replace("name: shop", "name: store");
    served.declared.send_replace(crate::support::loaded(&other, 2));
    let removed = reader.until("removed").await;
    assert_eq!(removed.data["name"], "shop");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_has_a_heartbeat() {
    let served = serve(SHOP).await;
    let mut reader = Reader::open(&served, "?events=transition", "").await;
    let start = tokio::time::Instant::now();
    for _ in 0..2 {
        reader.until("heartbeat").await;
    }
    assert!(
        start.elapsed() <= Duration::from_secs(21),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn readers_over_the_limit_are_told_to_come_back() {
    let served = serve_with(SHOP, |config| config.limits.streams = 1).await;
    let reader = Reader::open(&served, "", "").await;
    let refused = served.get("/api/v1/stream").await;
    assert!(refused.problem(503).contains("later"));
    assert!(refused.header("retry-after").is_some());
    drop(reader);
    served.until_metric("healthscope_streams", 0.0).await;
    Reader::open(&served, "", "").await;
}

#[tokio::test]
async fn a_reader_who_is_too_slow_gets_a_fresh_picture() {
    let everything =
        "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: big}\nspec: {selector: {}}\n";
    let served = serve_with(everything, |config| {
        config.limits.stream_lag = 4;
        config.limits.session.records_per_second = 1_000_000;
    })
    .await;
    let mut agent = Agent::join(&served, "one").await;
    let names: Vec<String> = (0..50).map(|number| format!("component-{number}")).collect();
    agent
        .announce(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let mut reader = Reader::open(&served, "", "").await;
    reader.until("snapshot").await;
    // More than the system's buffers and the feed hold together; nobody reads meanwhile.
    let text = "x".repeat(500);
    for round in 0..150 {
        let last = served.snapshots.borrow().last_transition;
        let changes: Vec<_> = (1..=50)
            .map(|probe| (probe, round % 2 == 1, text.as_str()))
            .collect();
        agent.report(&changes).await;
        served.until(|snapshot| snapshot.last_transition > last).await;
    }
    let fresh = reader.until("snapshot").await;
    assert_eq!(fresh.data["scopes"].as_array().unwrap().len(), 1);
    let newest = served.snapshots.borrow().last_transition;
    assert_eq!(
        fresh.data["lastTransition"], newest,
        "nothing stale is sent first"
    );
    assert!(served.metric("healthscope_streams_caught_up_total").await >= 1.0);
}

#[tokio::test]
async fn streams_end_at_shutdown() {
    let served = serve(SHOP).await;
    let mut reader = Reader::open(&served, "", "").await;
    reader.until("snapshot").await;
    let start = std::time::Instant::now();
    served.stop().await.unwrap();
    while reader.next().await.is_some() {}
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
