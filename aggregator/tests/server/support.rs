//! An aggregator to test, an agent of raw frames, and HTTP by hand.

use {
    futures_util::{SinkExt, StreamExt},
    healthscope_aggregator::{
        App, Config,
        app::AppError,
        config::{self, AgentAuth, ReaderAuth},
        declared,
        kubernetes::role::Role,
    },
    healthscope_core::snapshot::Snapshot,
    healthscope_service::{config_files::Loaded, shutdown::Shutdown, token::Secret},
    healthscope_shared::{
        document::Source,
        health::{Health, Reason},
        name::{Name, Namespace, ScopeKey},
        probe::{ProbeKind, outcome::ProbeState},
        wire::{
            AgentMessage, Announce, AnnouncedInstance, AnnouncedProbe, Epoch, Hello, PATH, PROTOCOL, ProbeId,
            Record, Report, SUBPROTOCOL, Seq, ServerMessage, Welcome,
        },
    },
    serde_json::Value,
    std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration},
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::watch,
        task::JoinHandle,
        time::timeout,
    },
    tokio_tungstenite::{
        WebSocketStream, client_async,
        tungstenite::{Error as WsError, Message, client::IntoClientRequest, http::HeaderValue},
    },
};

/// Longer than anything here takes; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A scope `shop` of `web` and `db`, on which `web` depends.
pub(crate) const SHOP: &str = "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: shop}
spec:
  workloadRefs:
    - {kind: Component, name: web, dependsOn: [db]}
    - {kind: Component, name: db}
";

/// An aggregator that runs.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) declared: watch::Sender<Loaded<declared::Declared>>,
    pub(crate) role: watch::Sender<Role>,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), AppError>>,
}

/// Starts one with these documents.
pub(crate) async fn serve(text: &str) -> Served {
    serve_with(text, |_| {}).await
}

/// Starts one with these documents and other settings.
pub(crate) async fn serve_with(text: &str, change: impl FnOnce(&mut Config)) -> Served {
    let (sender, receiver) = watch::channel(loaded(text, 1));
    let mut config = Config::new("127.0.0.1:0".parse().unwrap(), config::Source::Files(receiver));
    change(&mut config);
    let app = App::bind(config).unwrap();
    let shutdown = Shutdown::new();
    let (address, snapshots) = (app.address(), app.snapshots());
    let (role, roles) = watch::channel(Role::Owner);
    let running = tokio::spawn(app.serve(roles, shutdown.clone()));
    let served = Served {
        address,
        snapshots,
        declared: sender,
        role,
        shutdown,
        running,
    };
    served.until(|snapshot| snapshot.at.is_some()).await;
    served
}

/// Makes agents and readers show this token.
pub(crate) fn share_token(config: &mut Config, token: &str) {
    let token = Secret::new(token);
    config.agents = AgentAuth::Token(token.clone());
    config.readers = ReaderAuth::Token(token);
}

/// What a set of files would give.
pub(crate) fn loaded(text: &str, revision: u64) -> Loaded<declared::Declared> {
    let declared = declared::read(&[Source::new("test.yaml", text)]).unwrap();
    Loaded {
        value: Arc::new(declared),
        revision,
        problems: None,
    }
}

impl Served {
    /// Waits until a published picture is as wanted.
    pub(crate) async fn until(&self, is_wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        let found = timeout(PATIENCE, snapshots.wait_for(|snapshot| is_wanted(snapshot))).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!(
                "this picture never became the wanted one: {:#?}",
                *self.snapshots.borrow()
            ),
        }
    }

    /// Waits until a scope of the default namespace has a health.
    pub(crate) async fn until_health(&self, scope: &str, health: Health) -> Arc<Snapshot> {
        let key = key(scope);
        let is_so = |snapshot: &Snapshot| {
            let entry = snapshot.scopes.get(&key);
            entry.is_some_and(|entry| entry.view.health == health)
        };
        self.until(is_so).await
    }

    /// Sends a request with these header lines and reads the answer whole.
    pub(crate) async fn ask(&self, method: &str, target: &str, headers: &[&str], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let host = if headers
            .iter()
            .any(|line| line.to_ascii_lowercase().starts_with("host:"))
        {
            String::new()
        } else {
            format!("host: {}\r\n", self.address)
        };
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let request =
            format!("{method} {target} HTTP/1.1\r\n{host}{lines}{length}connection: close\r\n\r\n{body}");
        // A server that refuses a body may close before it has read all of it.
        let _closed_early = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let reading = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _closed_early = reading.expect("an answer in time");
        Answer::read(&answer)
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[], "").await
    }

    pub(crate) async fn get_json(&self, target: &str) -> Value {
        let answer = self.get(target).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
        answer.json()
    }

    /// One value of the metrics, by its whole series: `name{label="value"}`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text
            .lines()
            .find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series));
        let line = line.unwrap_or_else(|| panic!("{series} is not in\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until a value of the metrics is as wanted.
    pub(crate) async fn until_metric(&self, series: &str, wanted: f64) {
        let waiting = async {
            while self.metric(series).await.to_bits() != wanted.to_bits() {
                tokio::task::yield_now().await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!(
                "{series} is {} and never became {wanted}",
                self.metric(series).await
            );
        }
    }

    /// Says that it is to end, without waiting.
    pub(crate) fn shut_down(&self) {
        self.shutdown.trigger();
    }

    /// Ends it and says what it said.
    pub(crate) async fn stop(self) -> Result<(), AppError> {
        self.shutdown.trigger();
        timeout(PATIENCE, self.running).await.unwrap().unwrap()
    }
}

/// The key of a scope in the default namespace.
pub(crate) fn key(scope: &str) -> ScopeKey {
    ScopeKey {
        namespace: Namespace::default_namespace(),
        name: Name::new(scope).unwrap(),
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunk(body);
        }
        answer
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Checks that it is a problem document with this status, and returns its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let document = self.json();
        assert_eq!(document["status"], status);
        assert_eq!(document["type"], "about:blank");
        assert!(document["title"].is_string());
        document["detail"].as_str().unwrap().to_owned()
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

/// An agent of raw frames.
pub(crate) struct Agent {
    pub(crate) socket: WebSocketStream<TcpStream>,
    seq: u64,
    epoch: u64,
}

/// Opens a WebSocket with these additional header lines.
pub(crate) async fn open(
    address: SocketAddr,
    headers: &[(&'static str, &str)],
) -> Result<WebSocketStream<TcpStream>, WsError> {
    let mut request = format!("ws://{address}{PATH}").into_client_request().unwrap();
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, HeaderValue::from_str(value).unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    client_async(request, stream).await.map(|(socket, _)| socket)
}

impl Agent {
    /// Connects and says nothing yet.
    pub(crate) async fn connect(served: &Served) -> Self {
        let socket = open(served.address, &[("sec-websocket-protocol", SUBPROTOCOL)])
            .await
            .unwrap();
        Self {
            socket,
            seq: 0,
            epoch: 7,
        }
    }

    /// Connects, says hello and is welcomed.
    pub(crate) async fn join(served: &Served, name: &str) -> Self {
        let mut agent = Self::connect(served).await;
        agent.greet(name).await;
        agent
    }

    /// The same for a later run of the agent than [`Agent::join`] makes.
    pub(crate) async fn join_again(served: &Served, name: &str) -> Self {
        let mut agent = Self::connect(served).await.restarted();
        agent.greet(name).await;
        agent
    }

    /// As a later run of the agent.
    pub(crate) fn restarted(mut self) -> Self {
        self.epoch += 1;
        self
    }

    pub(crate) async fn greet(&mut self, name: &str) -> Welcome {
        self.say_hello(name).await;
        match self.hear().await {
            ServerMessage::Welcome(welcome) => welcome,
            other => panic!("{other:?} instead of a welcome"),
        }
    }

    pub(crate) async fn say_hello(&mut self, name: &str) {
        let hello = Hello {
            protocol: PROTOCOL,
            agent: name.parse().unwrap(),
            version: "0.0.0-test".into(),
            epoch: Epoch(self.epoch),
            seq: Seq(self.seq),
            acked: Seq(0),
        };
        self.say(AgentMessage::Hello(hello)).await;
    }

    pub(crate) async fn say(&mut self, message: AgentMessage) {
        self.say_text(message.encode()).await;
    }

    pub(crate) async fn say_text(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.unwrap();
    }

    /// Announces these components, each with one readiness probe of the same position, from 1.
    pub(crate) async fn announce(&mut self, components: &[&str]) {
        self.announce_in(Namespace::default_namespace().as_str(), components)
            .await;
    }

    /// The same, in another namespace than the default one.
    pub(crate) async fn announce_in(&mut self, namespace: &str, components: &[&str]) {
        let instances = (1..)
            .zip(components)
            .map(|(id, component)| AnnouncedInstance {
                namespace: Namespace::new(namespace).unwrap(),
                ..instance(component, id)
            })
            .collect();
        self.say(AgentMessage::Announce(Announce {
            revision: 1,
            part: 0,
            last: true,
            instances,
        }))
        .await;
    }

    /// Reports changes of probes: id, passing or not, and why.
    pub(crate) async fn report(&mut self, changes: &[(u32, bool, &str)]) {
        assert!(self.try_report(changes).await, "the session has ended");
    }

    /// The same where the session may have ended; whether it was sent.
    pub(crate) async fn try_report(&mut self, changes: &[(u32, bool, &str)]) -> bool {
        let transitions = changes
            .iter()
            .map(|(probe, passes, message)| {
                self.seq += 1;
                record(self.seq, *probe, *passes, message)
            })
            .collect();
        let report = Report {
            seq: Seq(self.seq),
            transitions,
            complete: true,
            ..Report::default()
        };
        let text = AgentMessage::Report(report).encode();
        self.socket.send(Message::text(text)).await.is_ok()
    }

    /// The next message, beside pings.
    pub(crate) async fn hear(&mut self) -> ServerMessage {
        loop {
            let heard = timeout(PATIENCE, self.socket.next())
                .await
                .expect("a message in time");
            match heard.expect("a message and not the end").unwrap() {
                Message::Text(text) => return ServerMessage::decode(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} instead of a message"),
            }
        }
    }

    /// Waits until everything said so far is taken in.
    pub(crate) async fn until_acknowledged(&mut self) {
        loop {
            if let ServerMessage::Ack(ack) = self.hear().await
                && ack.seq >= Seq(self.seq)
            {
                return;
            }
        }
    }

    /// Waits for the end and returns the close code and the reason.
    pub(crate) async fn until_closed(&mut self) -> (u16, String) {
        let waiting = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return (frame.code.into(), frame.reason.to_string());
                    }
                    Some(Ok(Message::Close(None))) | None => return (0, "no reason".into()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return (0, error.to_string()),
                }
            }
        };
        timeout(PATIENCE, waiting).await.expect("the end in time")
    }
}

/// An instance `one` of a component, with one readiness probe.
pub(crate) fn instance(component: &str, id: u32) -> AnnouncedInstance {
    AnnouncedInstance {
        namespace: Namespace::default_namespace(),
        component: Name::new(component).unwrap(),
        instance: "one".parse().unwrap(),
        labels: BTreeMap::from([("part-of".into(), "test".into())]),
        depends_on: Vec::new(),
        probes: vec![AnnouncedProbe {
            id: ProbeId(id),
            name: "readiness".parse().unwrap(),
            kind: ProbeKind::Readiness,
            target: "tcp 127.0.0.1:1".into(),
            period_ms: 1_000,
            timeout_ms: 1_000,
            success_threshold: 1,
            failure_threshold: 1,
        }],
    }
}

/// A transition.
pub(crate) fn record(seq: u64, probe: u32, passes: bool, message: &str) -> Record {
    Record {
        seq: Seq(seq),
        probe: ProbeId(probe),
        age_ms: 0,
        state: if passes {
            ProbeState::Passing
        } else {
            ProbeState::Failing
        },
        flapping: false,
        error: false,
        streak: if passes { 1 } else { -1 },
        latency_us: 500,
        reason: if passes {
            Reason::PASSING
        } else {
            Reason::CONNECTION_REFUSED
        },
        message: message.into(),
        output: String::new(),
    }
}

/// A shop where everything is well.
pub(crate) async fn healthy_shop() -> (Served, Agent) {
    let served = serve(SHOP).await;
    let mut agent = Agent::join(&served, "one").await;
    agent.announce(&["web", "db"]).await;
    agent.report(&[(1, true, ""), (2, true, "")]).await;
    served.until_health("shop", Health::Healthy).await;
    (served, agent)
}
