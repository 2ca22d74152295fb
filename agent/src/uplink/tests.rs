//! The uplink against a scripted aggregator, over pipes in memory and virtual time: no test waits for a clock.

use {
    super::*,
    futures_util::{SinkExt, StreamExt},
    healthscope_shared::{
        probe::outcome::ProbeState,
        wire::{
            Ack, AgentMessage, Announce, Ca, Drain, Hello, Record, Report, Resync, Seq, ServerMessage,
            Welcome,
        },
    },
    http::{HeaderValue, StatusCode},
    std::collections::BTreeSet,
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
        time::Instant,
    },
    tokio_tungstenite::{
        WebSocketStream, accept_hdr_async,
        tungstenite::{
            Message,
            handshake::server::{ErrorResponse, Request as UpgradeRequest, Response as UpgradeResponse},
            protocol::{CloseFrame, frame::coding::CloseCode},
        },
    },
};

/// What fits into a pipe before the writer has to wait.
const PIPE_BYTES: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);

/// In place of the network: every attempt arrives at the test.
#[derive(Debug)]
struct Pipes(mpsc::UnboundedSender<Dialled>);

#[derive(Debug)]
struct Dialled {
    target: Target,
    at: Instant,
    stream: DuplexStream,
}

impl Dial for Pipes {
    async fn dial(&self, target: &Target) -> Result<Box<dyn connect::Stream>, ConnectError> {
        let (near, far) = duplex(PIPE_BYTES);
        let dialled = Dialled {
            target: target.clone(),
            at: Instant::now(),
            stream: far,
        };
        self.0.send(dialled).unwrap();
        Ok(Box::new(near))
    }
}

/// An agent's uplink and everything around it.
struct Agent {
    dialled: mpsc::UnboundedReceiver<Dialled>,
    inputs: mpsc::Sender<Input>,
    requests: mpsc::Receiver<Request>,
    stats: Arc<Stats>,
    status: watch::Receiver<Status>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

fn config(url: &str) -> Config {
    Config {
        endpoint: url.parse().unwrap(),
        tls: None,
        server_name: None,
        token: Token::None,
        ca_store: None,
        allow_plaintext: false,
    }
}

fn instances(probes: u32) -> Vec<AnnouncedInstance> {
    let probes: Vec<_> = (0..probes)
        .map(|id| {
            serde_json::json!({"id": id, "name": format!("p{id}"), "type": "readiness", "target": "tcp a:1",
                "periodMs": 1000, "timeoutMs": 1000, "successThreshold": 1, "failureThreshold": 1})
        })
        .collect();
    let instance = serde_json::json!([{"component": "web", "instance": "host", "probes": probes}]);
    serde_json::from_value(instance).unwrap()
}

fn observation(passing: bool) -> Observation {
    Observation {
        state: if passing {
            ProbeState::Passing
        } else {
            ProbeState::Failing
        },
        flapping: false,
        error: false,
        streak: if passing { 1 } else { -1 },
        latency: Duration::from_millis(1),
        reason: if passing {
            Reason::PASSING
        } else {
            Reason::EXIT_CODE
        },
        message: String::new(),
        output: String::new(),
    }
}

impl Agent {
    async fn start(config: Config) -> Self {
        let (tell, dialled) = mpsc::unbounded_channel();
        let (inputs, uplink_inputs) = mpsc::channel(32);
        let (uplink_requests, requests) = mpsc::channel(16);
        let ports = Ports {
            inputs: uplink_inputs,
            requests: uplink_requests,
        };
        let uplink = Uplink::with_dialer(Pipes(tell), "host".parse().unwrap(), config, ports);
        let shutdown = CancellationToken::new();
        let agent = Self {
            dialled,
            inputs,
            requests,
            stats: uplink.stats(),
            status: uplink.status(),
            running: tokio::spawn(uplink.run(shutdown.clone())),
            shutdown,
        };
        agent.inputs.send(Input::Announce(instances(3))).await.unwrap();
        agent
    }

    async fn plain() -> Self {
        Self::start(config("ws://localhost:7575")).await
    }

    /// The probe changes its state.
    async fn turn(&self, probe: u32, passing: bool) {
        let input = Input::Observed {
            probe: ProbeId(probe),
            observation: observation(passing),
            at: now(),
        };
        self.inputs.send(input).await.unwrap();
    }

    async fn dialled(&mut self) -> Dialled {
        self.dialled.recv().await.unwrap()
    }

    /// The next attempt, upgraded.
    async fn accepted(&mut self) -> Server {
        let Dialled { stream, .. } = self.dialled().await;
        Server::accept(stream).await
    }

    /// The next attempt, welcomed.
    async fn welcomed(&mut self, acked: Option<u64>) -> Server {
        let mut server = self.accepted().await;
        server.hello().await;
        server.welcome(acked).await;
        server
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }
}

/// One connection, seen from the aggregator.
struct Server(WebSocketStream<DuplexStream>);

impl Server {
    // The callback's type is the library's.
    #[expect(clippy::result_large_err)]
    async fn accept(stream: DuplexStream) -> Self {
        let speak = |request: &UpgradeRequest, mut response: UpgradeResponse| {
            assert_eq!(request.uri().path(), "/v1/agent");
            let offered = request.headers()["sec-websocket-protocol"].clone();
            response.headers_mut().insert("sec-websocket-protocol", offered);
            Ok::<_, ErrorResponse>(response)
        };
        Self(accept_hdr_async(stream, speak).await.unwrap())
    }

    async fn say(&mut self, message: &ServerMessage) {
        self.raw(Message::text(message.encode())).await;
    }

    async fn raw(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    async fn welcome(&mut self, acked: Option<u64>) {
        let welcome = Welcome {
            protocol: 1,
            version: "9.9.9".to_owned(),
            heartbeat_ms: 10_000,
            spread_ms: 2_000,
            acked: acked.map(Seq),
        };
        self.say(&ServerMessage::Welcome(welcome)).await;
    }

    /// The next message; pings and pongs are no messages.
    async fn heard(&mut self) -> AgentMessage {
        loop {
            match self.0.next().await.unwrap().unwrap() {
                Message::Text(text) => return AgentMessage::decode(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} is not a message"),
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        match self.heard().await {
            AgentMessage::Hello(hello) => hello,
            other => panic!("{other:?} is not a hello"),
        }
    }

    async fn announce(&mut self) -> Announce {
        loop {
            if let AgentMessage::Announce(announce) = self.heard().await {
                return announce;
            }
        }
    }

    async fn report(&mut self) -> Report {
        loop {
            if let AgentMessage::Report(report) = self.heard().await {
                return report;
            }
        }
    }

    /// Transitions up to and with the one numbered `last`.
    async fn transitions(&mut self, last: u64) -> Vec<Record> {
        let mut found: Vec<Record> = Vec::new();
        while found.last().is_none_or(|record| record.seq.0 < last) {
            found.extend(self.report().await.transitions);
        }
        found
    }

    /// Reads to the end; the close frame.
    async fn close_frame(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.0.next().await.unwrap().unwrap() {
                return frame.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn greets_announces_and_reports() {
    let mut agent = Agent::plain().await;
    let mut server = agent.accepted().await;
    let hello = server.hello().await;
    assert_eq!(
        (hello.agent.as_str(), hello.protocol, hello.seq),
        ("host", 1, Seq(0))
    );
    assert!(!agent.stats.is_connected());
    server.welcome(None).await;
    let announce = server.announce().await;
    assert_eq!((announce.instances[0].probes.len(), announce.last), (3, true));
    assert!(agent.stats.is_connected());
    assert_eq!(
        agent.status.borrow().state,
        State::Connected {
            version: "9.9.9".to_owned()
        }
    );
    agent.turn(1, true).await;
    let transitions = server.transitions(1).await;
    assert_eq!(
        (transitions[0].probe, transitions[0].state),
        (ProbeId(1), ProbeState::Passing)
    );
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn edges_go_at_once() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    server.report().await;
    let before = Instant::now();
    agent.turn(0, false).await;
    server.transitions(1).await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn half_open_connection_is_noticed_within_thirty_seconds() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let silent_since = Instant::now();
    // The pipe stays open and nobody is at its other end.
    let next = agent.dialled().await;
    let took = next.at - silent_since;
    assert!(took > 20 * SECOND && took <= 30 * SECOND, "{took:?}");
    assert_eq!(agent.stats.sessions_ended(EndCause::Silent), 1);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_quiet_but_answers_stays() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    let reading = tokio::spawn(async move {
        // Reading answers pings.
        while let Some(Ok(_)) = server.0.next().await {}
    });
    tokio::select! {
        _ = agent.dialled.recv() => panic!("a session that is alive was given up"),
        () = time::sleep(600 * SECOND) => {}
    }
    assert!(agent.stats.is_connected());
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn aggregator_that_never_reads_blocks_nothing_and_is_left() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let started = Instant::now();
    // Far more than the pipe takes. Each is taken in at once, although none can be sent.
    for turn in 0..20_000_u32 {
        agent.turn(turn % 3, turn % 2 == 0).await;
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(agent.stats.unacknowledged() <= 256);
    assert!(agent.stats.lost() > 10_000);
    // It goes on speaking, so it is not silent, and hardly ever stops.
    let talking = tokio::spawn(async move {
        while server.0.send(Message::Ping(Vec::new().into())).await.is_ok() {
            time::sleep(SECOND / 10).await;
        }
    });
    let next = agent.dialled().await;
    assert!(next.at - started <= 30 * SECOND, "{:?}", next.at - started);
    assert_eq!(agent.stats.sessions_ended(EndCause::Silent), 1);
    talking.abort();
}

#[tokio::test(start_paused = true)]
async fn server_that_never_answers_the_upgrade_is_left() {
    let mut agent = Agent::plain().await;
    let first = agent.dialled().await;
    let second = agent.dialled().await;
    assert!(second.at - first.at >= connect::ATTEMPT_DEADLINE);
    assert!(second.at - first.at <= connect::ATTEMPT_DEADLINE + 2 * SECOND);
    assert_eq!(
        agent.status.borrow().problem.as_deref(),
        Some("localhost:7575 did not answer within 15s")
    );
}

#[tokio::test(start_paused = true)]
async fn server_without_a_welcome_is_left() {
    let mut agent = Agent::plain().await;
    let mut server = agent.accepted().await;
    server.hello().await;
    let before = Instant::now();
    assert_eq!(server.close_frame().await.code, CloseCode::Library(close::SILENT));
    assert_eq!(before.elapsed(), healthscope_shared::session::WELCOME_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_while_the_aggregator_is_away() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    agent.turn(0, true).await;
    server.transitions(1).await;
    drop(server);
    // Ten minutes without an aggregator, and as many transitions as are kept with the one not acknowledged.
    let mut ticks = time::interval(600 * SECOND / 254);
    let mut turns = 0;
    while turns < 255 {
        tokio::select! {
            dialled = agent.dialled.recv() => drop(dialled),
            _ = ticks.tick() => {
                agent.turn(0, turns % 2 == 1).await;
                turns += 1;
            }
        }
    }
    let mut server = agent.accepted().await;
    assert_eq!(server.hello().await.seq, Seq(256));
    server.welcome(Some(1)).await;
    let transitions = server.transitions(256).await;
    let numbers: Vec<u64> = transitions.iter().map(|record| record.seq.0).collect();
    assert_eq!(numbers, (2..=256).collect::<Vec<_>>());
    assert_eq!(agent.stats.lost(), 0);
    let oldest = Duration::from_millis(transitions[0].age_ms);
    assert!(oldest > 590 * SECOND && oldest < 650 * SECOND, "{oldest:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_to_reconnect_are_spread() {
    let mut agent = Agent::plain().await;
    let mut delays = BTreeSet::new();
    let mut before = agent.dialled().await.at;
    for _ in 0..20 {
        let at = agent.dialled().await.at;
        delays.insert(at - before);
        before = at;
    }
    assert!(delays.len() > 15, "{delays:?}");
    assert!(delays.last().unwrap() <= &Backoff::RECONNECT_CAP, "{delays:?}");
    assert!(
        delays.first().unwrap() >= &Duration::from_millis(99),
        "{delays:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn redirect_is_followed_at_once_and_once() {
    let mut agent = Agent::start(config("wss://one.example.org:7575/health")).await;
    let first = agent.dialled().await;
    assert_eq!(
        first.target.endpoint.to_string(),
        "wss://one.example.org:7575/health/v1/agent"
    );
    let mut stream = first.stream;
    let redirect = Redirect {
        address: "two.example.org:99".to_owned(),
        server_name: Some("scope".to_owned()),
        spread_ms: 0,
    };
    {
        let mut server = accept_anything(&mut stream).await;
        server.next().await.unwrap().unwrap();
        let text = ServerMessage::Redirect(redirect).encode();
        server.send(Message::text(text)).await.unwrap();
        while let Some(Ok(_)) = server.next().await {}
    }
    drop(stream);
    let second = agent.dialled().await;
    assert_eq!(
        second.target.endpoint.to_string(),
        "wss://two.example.org:99/health/v1/agent"
    );
    assert_eq!(second.target.server_name.as_deref(), Some("scope"));
    assert_eq!(second.at, first.at);
    drop(second);
    let third = agent.dialled().await;
    assert_eq!(third.target.endpoint.host(), "one.example.org");
    assert_eq!(third.target.server_name, None);
    assert!(third.at > first.at);
}

/// Upgrades whatever the path.
#[expect(clippy::result_large_err)]
async fn accept_anything(stream: &mut DuplexStream) -> WebSocketStream<&mut DuplexStream> {
    let speak = |request: &UpgradeRequest, mut response: UpgradeResponse| {
        let offered = request.headers()["sec-websocket-protocol"].clone();
        response.headers_mut().insert("sec-websocket-protocol", offered);
        Ok::<_, ErrorResponse>(response)
    };
    accept_hdr_async(stream, speak).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn aggregators_that_point_at_each_other_are_asked_slowly() {
    let mut agent = Agent::plain().await;
    let start = Instant::now();
    let mut attempts = Vec::new();
    while start.elapsed() < 60 * SECOND {
        let mut server = agent.accepted().await;
        attempts.push(Instant::now());
        server.hello().await;
        let redirect = Redirect {
            address: "localhost:7576".to_owned(),
            server_name: None,
            spread_ms: 0,
        };
        server.say(&ServerMessage::Redirect(redirect)).await;
        server.close_frame().await;
    }
    let burst = 1 + MAX_REDIRECTS as usize;
    assert_eq!(attempts[burst - 1], attempts[0]);
    assert!(attempts[burst] > attempts[0]);
    // Twenty bursts are usual. Pauses are drawn at random, and unlucky draws make them grow late.
    assert!(
        attempts.len() < burst * 100,
        "{} attempts in a minute",
        attempts.len()
    );
}

#[tokio::test(start_paused = true)]
async fn many_that_are_redirected_together_come_one_by_one() {
    let mut delays = Vec::new();
    for _ in 0..8 {
        let mut agent = Agent::plain().await;
        let mut server = agent.welcomed(None).await;
        server.announce().await;
        let redirect = Redirect {
            address: "localhost:7576".to_owned(),
            server_name: None,
            spread_ms: 10_000,
        };
        server.say(&ServerMessage::Redirect(redirect)).await;
        server.close_frame().await;
        let left = Instant::now();
        let next = agent.dialled().await;
        assert_eq!(next.target.endpoint.authority(), "localhost:7576");
        delays.push(next.at - left);
    }
    // The wait begins when the connection is closed, for which the other side has a little time.
    let longest = 10 * SECOND + link::CLOSE_GRACE;
    assert!(delays.iter().all(|delay| *delay <= longest), "{delays:?}");
    assert!(delays.iter().any(|delay| *delay > SECOND), "{delays:?}");
}

#[tokio::test(start_paused = true)]
async fn redirected_agent_tells_the_other_what_the_first_did_not_acknowledge() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    agent.turn(0, true).await;
    agent.turn(0, false).await;
    server.transitions(2).await;
    server.say(&ServerMessage::Ack(Ack { seq: Seq(1) })).await;
    let redirect = Redirect {
        address: "localhost:7576".to_owned(),
        server_name: None,
        spread_ms: 0,
    };
    server.say(&ServerMessage::Redirect(redirect)).await;
    server.close_frame().await;
    // Found while there is no session.
    agent.turn(0, true).await;
    let mut server = agent.accepted().await;
    let hello = server.hello().await;
    assert_eq!((hello.seq, hello.acked), (Seq(3), Seq(1)));
    server.welcome(None).await;
    let found = server.transitions(3).await;
    let numbers: Vec<u64> = found.iter().map(|record| record.seq.0).collect();
    assert_eq!(numbers, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn redirect_to_nowhere_is_refused() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let redirect = Redirect {
        address: "http://evil.example.org/".to_owned(),
        server_name: None,
        spread_ms: 0,
    };
    server.say(&ServerMessage::Redirect(redirect)).await;
    server.close_frame().await;
    let next = agent.dialled().await;
    assert_eq!(next.target.endpoint.authority(), "localhost:7575");
    let problem = agent.status.borrow().problem.clone().unwrap();
    assert!(
        problem.starts_with("redirected to nowhere: \"http://evil"),
        "{problem}"
    );
}

#[tokio::test(start_paused = true)]
async fn drain_is_obeyed_with_its_spread() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    time::sleep(Backoff::STEADY).await;
    server
        .say(&ServerMessage::Drain(Drain { spread_ms: 60_000 }))
        .await;
    assert_eq!(server.close_frame().await.code, CloseCode::Normal);
    drop(server);
    let before = Instant::now();
    let next = agent.dialled().await;
    assert!(next.at - before <= 61 * SECOND, "{:?}", next.at - before);
    assert_eq!(agent.stats.sessions_ended(EndCause::Drained), 1);
    assert_eq!(agent.status.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn one_who_was_replaced_does_not_dispute() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let before = Instant::now();
    let frame = CloseFrame {
        code: CloseCode::from(close::REPLACED),
        reason: "a newer session of host took over".into(),
    };
    server.raw(Message::Close(Some(frame))).await;
    let next = agent.dialled().await;
    assert!(
        next.at - before >= Backoff::RECONNECT_CAP / 2,
        "{:?}",
        next.at - before
    );
    assert_eq!(
        agent.status.borrow().problem.as_deref(),
        Some("closed by the aggregator with code 4000: a newer session of host took over")
    );
}

async fn refuse(mut stream: DuplexStream, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test(start_paused = true)]
async fn token_is_read_for_each_connection_and_a_refusal_is_retried() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "first").unwrap();
    let config = Config {
        token: Token::File(path.clone()),
        ..config("ws://localhost:7575")
    };
    let mut agent = Agent::start(config).await;
    let unauthorized = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let request = refuse(agent.dialled().await.stream, unauthorized).await;
    assert!(request.contains("authorization: Bearer first\r\n"), "{request}");
    std::fs::write(&path, "second\n").unwrap();
    let request = refuse(agent.dialled().await.stream, unauthorized).await;
    assert!(request.contains("authorization: Bearer second\r\n"), "{request}");
    let problem = agent.status.borrow().problem.clone().unwrap();
    assert!(problem.contains("401 Unauthorized; check the token"), "{problem}");
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    assert_eq!(agent.stats.attempts(AttemptResult::Refused), 2);
    assert_eq!(agent.status.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn busy_aggregator_is_left_alone_for_as_long_as_it_says() {
    let mut agent = Agent::plain().await;
    let first = agent.dialled().await;
    let status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    let answer = format!("HTTP/1.1 {status} Busy\r\nretry-after: 40\r\ncontent-length: 0\r\n\r\n");
    refuse(first.stream, &answer).await;
    let second = agent.dialled().await;
    assert!(second.at - first.at >= 40 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn server_without_our_subprotocol_is_named() {
    let mut agent = Agent::plain().await;
    let mut stream = agent.dialled().await.stream;
    let socket = tokio_tungstenite::accept_async(&mut stream).await;
    assert!(socket.is_ok());
    agent.dialled().await;
    let problem = agent.status.borrow().problem.clone().unwrap();
    assert!(problem.contains("does not speak healthscope.v1"), "{problem}");
}

async fn check_close(message: Message, code: u16) {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let shown = format!("{message:?}").chars().take(40).collect::<String>();
    server.raw(message).await;
    assert_eq!(u16::from(server.close_frame().await.code), code, "{shown}");
    drop(server);
    agent.dialled().await;
    assert_eq!(agent.stats.sessions_ended(EndCause::Protocol), 1, "{shown}");
}

#[tokio::test(start_paused = true)]
async fn aggregator_that_breaks_the_protocol_is_told_and_left() {
    check_close(Message::binary(vec![1, 2, 3]), close::UNSUPPORTED_DATA).await;
    check_close(Message::text("garbage"), close::PROTOCOL).await;
    check_close(Message::text("x".repeat(70_000)), close::TOO_BIG).await;
    check_close(Message::text(r#"{"type":"ack","seq":99}"#), close::PROTOCOL).await;
    let not_utf8 = tungstenite_frame(0x81, &[0xff, 0xfe]);
    check_close(not_utf8, 1007).await;
    let reserved_opcode = tungstenite_frame(0x83, b"x");
    check_close(reserved_opcode, close::PROTOCOL).await;
}

/// A frame with a first byte and a payload of our choice.
fn tungstenite_frame(first: u8, payload: &[u8]) -> Message {
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let opcode = match first & 0x0f {
        1 => OpCode::Data(Data::Text),
        other => OpCode::Data(Data::Reserved(other)),
    };
    Message::Frame(Frame::message(payload.to_vec(), opcode, true))
}

#[tokio::test(start_paused = true)]
async fn goodbye_is_said_after_what_was_ready() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    agent.turn(2, true).await;
    agent.shutdown.cancel();
    assert_eq!(server.transitions(1).await.len(), 1);
    let AgentMessage::Goodbye(goodbye) = server.heard().await else {
        panic!("no goodbye")
    };
    assert_eq!(goodbye.reason, "the agent is stopping");
    assert_eq!(server.close_frame().await.code, CloseCode::Normal);
    drop(server);
    agent.running.await.unwrap();
    assert_eq!(agent.stats.sessions_ended(EndCause::Stopped), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_holds_up_the_end() {
    // Not connected, connecting, upgrading, and in session with someone who does not read.
    let agent = Agent::plain().await;
    let before = Instant::now();
    agent.stop().await;
    let mut agent = Agent::plain().await;
    let upgrading = agent.dialled().await;
    agent.stop().await;
    drop(upgrading);
    assert_eq!(before.elapsed(), Duration::ZERO);

    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    for turn in 0..1_000 {
        agent.turn(0, turn % 2 == 0).await;
    }
    agent.shutdown.cancel();
    let before = Instant::now();
    agent.running.await.unwrap();
    assert!(before.elapsed() <= GOODBYE_DEADLINE, "{:?}", before.elapsed());
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn summaries_are_asked_for_with_each_heartbeat() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    server.report().await;
    let before = Instant::now();
    let reading = tokio::spawn(async move {
        loop {
            let report = server.report().await;
            if !report.summaries.is_empty() {
                return (report.summaries, server);
            }
        }
    });
    let Some(Request::Summaries) = agent.requests.recv().await else {
        panic!("no request for summaries")
    };
    assert_eq!(before.elapsed(), 10 * SECOND);
    let summary = Summary {
        probe: ProbeId(1),
        streak: 10,
        runs: 10,
        failures: 0,
        errors: 0,
        min_us: 1,
        avg_us: 2,
        max_us: 3,
        p99_us: 3,
    };
    agent.inputs.send(Input::Summaries(vec![summary])).await.unwrap();
    let (summaries, _server) = reading.await.unwrap();
    assert_eq!(summaries, [summary]);
    let Some(Request::Summaries) = agent.requests.recv().await else {
        panic!("no second request for summaries")
    };
    assert_eq!(before.elapsed(), 20 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn runs_that_are_asked_for_are_handed_on_and_answered() {
    let mut agent = Agent::plain().await;
    let mut server = agent.welcomed(None).await;
    server.announce().await;
    let run = RunProbe {
        request: 7,
        probe: ProbeId(2),
    };
    server.say(&ServerMessage::Probe(run)).await;
    let Some(Request::Run(asked)) = agent.requests.recv().await else {
        panic!("no request for a run")
    };
    assert_eq!((asked.request, asked.probe), (7, ProbeId(2)));
    let answer = Probed {
        request: 7,
        result: Some("success".to_owned()),
        reason: None,
        message: String::new(),
        output: String::new(),
        latency_us: 5,
        state: Some(ProbeState::Passing),
    };
    agent.inputs.send(Input::Probed(answer.clone())).await.unwrap();
    loop {
        if let AgentMessage::Probed(probed) = server.heard().await {
            assert_eq!(probed, answer);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn new_certificates_are_trusted_from_the_next_connection_on_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store.pem");
    let old = tls::insecure_client_config();
    let config = Config {
        tls: Some(Arc::clone(&old)),
        ca_store: Some(store.clone()),
        ..config("wss://localhost:7575")
    };
    let mut agent = Agent::start(config).await;
    let first = agent.dialled().await;
    assert!(Arc::ptr_eq(first.target.tls.as_ref().unwrap(), &old));
    let mut server = Server::accept(first.stream).await;
    server.hello().await;
    server.welcome(None).await;
    server.announce().await;
    let pem = rcgen::generate_simple_self_signed(vec!["scope".to_owned()])
        .unwrap()
        .cert
        .pem();
    for pem in [pem.as_str(), "not a certificate"] {
        server.say(&ServerMessage::Ca(Ca { pem: pem.to_owned() })).await;
    }
    // Whatever follows proves that both have been taken in, and that the session goes on.
    let resync = Resync {
        reason: "to hear something".to_owned(),
    };
    server.report().await;
    server.say(&ServerMessage::Resync(resync)).await;
    while !server.report().await.complete {}
    assert_eq!(std::fs::read_to_string(&store).unwrap(), pem);
    drop(server);
    let second = agent.dialled().await;
    assert!(!Arc::ptr_eq(second.target.tls.as_ref().unwrap(), &old));
}

#[test]
fn certificates_that_cannot_be_kept_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store.pem");
    std::fs::create_dir(&store).unwrap();
    assert!(keep(&store, "pem").is_err());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(keep(&directory.path().join("no/store.pem"), "pem").is_err());
}

#[test]
fn random_numbers_differ() {
    let drawn: BTreeSet<u64> = (0..1_000).map(|_| random()).collect();
    assert_eq!(drawn.len(), 1_000);
    let ones: u32 = drawn.iter().map(|number| number.count_ones()).sum();
    assert!((30_000..34_000).contains(&ones), "{ones} of 64,000 bits are set");
}

#[test]
fn a_header_value_cannot_be_forged_by_a_token() {
    // What `upgrade_request` relies on.
    assert!(HeaderValue::try_from("Bearer a\r\nx: y").is_err());
}
