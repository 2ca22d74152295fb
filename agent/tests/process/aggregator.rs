//! A scripted aggregator: accepts, records, says what the test says.

use {
    crate::soon,
    futures_util::{SinkExt, StreamExt},
    healthscope_shared::wire::{
        AgentMessage, Announce, AnnouncedProbe, Hello, Record, Report, Seq, ServerMessage, Welcome,
    },
    http::{HeaderMap, StatusCode},
    rustls::ServerConfig,
    std::{net::SocketAddr, sync::Arc},
    tokio::{
        io::{AsyncRead, AsyncWrite},
        net::{TcpListener, TcpStream},
    },
    tokio_rustls::TlsAcceptor,
    tokio_tungstenite::{
        WebSocketStream, accept_hdr_async,
        tungstenite::{
            Message,
            handshake::server::{ErrorResponse, Request, Response},
            protocol::CloseFrame,
        },
    },
};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(crate) struct Aggregator {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Aggregator {
    pub(crate) async fn plain() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self {
            listener: TcpListener::bind(address).await.unwrap(),
            tls: None,
        }
    }

    pub(crate) async fn tls(config: Arc<ServerConfig>) -> Self {
        Self {
            tls: Some(config.into()),
            ..Self::plain().await
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", self.address())
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        soon("a connection of the agent", self.listener.accept())
            .await
            .unwrap()
            .0
    }

    async fn stream(&self) -> Box<dyn Stream> {
        loop {
            let stream = self.tcp().await;
            match &self.tls {
                None => return Box::new(stream),
                // An agent that does not trust us hangs up.
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => return Box::new(stream),
                    Err(_) => continue,
                },
            }
        }
    }

    /// The next connection, upgraded.
    pub(crate) async fn accept(&self) -> Session {
        let stream = self.stream().await;
        soon("an upgrade", Session::accept(stream)).await
    }

    /// Refuses the next connection; its request's headers.
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    pub(crate) async fn refuse(&self, status: StatusCode) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let refuse = |request: &Request, _: Response| {
            headers = request.headers().clone();
            let mut refusal = ErrorResponse::new(Some("not you".to_owned()));
            *refusal.status_mut() = status;
            Err(refusal)
        };
        let refused = soon("a request", accept_hdr_async(self.stream().await, refuse)).await;
        assert!(refused.is_err());
        headers
    }

    /// The next connection, welcomed, with everything announced.
    pub(crate) async fn open(&self) -> Session {
        let mut session = self.accept().await;
        session.hello().await;
        session.welcome(None).await;
        session.announce().await;
        session
    }
}

/// One connection.
pub(crate) struct Session {
    socket: WebSocketStream<Box<dyn Stream>>,
    pub(crate) headers: HeaderMap,
    /// Records that came before the test asked for them.
    waiting: Vec<Record>,
}

impl Session {
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    async fn accept(stream: Box<dyn Stream>) -> Self {
        let mut headers = HeaderMap::new();
        let speak = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/v1/agent");
            headers = request.headers().clone();
            let offered = headers["sec-websocket-protocol"].clone();
            assert_eq!(offered, "healthscope.v1");
            response.headers_mut().insert("sec-websocket-protocol", offered);
            Ok::<_, ErrorResponse>(response)
        };
        let socket = accept_hdr_async(stream, speak).await.unwrap();
        Self {
            socket,
            headers,
            waiting: Vec::new(),
        }
    }

    pub(crate) async fn say(&mut self, message: &ServerMessage) {
        self.socket.send(Message::text(message.encode())).await.unwrap();
    }

    pub(crate) async fn welcome(&mut self, acked: Option<Seq>) {
        let welcome = Welcome {
            protocol: 1,
            version: "9.9.9".to_owned(),
            heartbeat_ms: 1_000,
            spread_ms: 100,
            acked,
        };
        self.say(&ServerMessage::Welcome(welcome)).await;
    }

    async fn frame(&mut self) -> Message {
        soon("a frame of the agent", self.socket.next())
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn heard(&mut self) -> AgentMessage {
        loop {
            match self.frame().await {
                Message::Text(text) => return AgentMessage::decode(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} is not a message"),
            }
        }
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.heard().await {
            AgentMessage::Hello(hello) => hello,
            other => panic!("{other:?} is not a hello"),
        }
    }

    /// The next announcement, its parts put together.
    pub(crate) async fn announce(&mut self) -> Announce {
        let mut whole: Option<Announce> = None;
        loop {
            match self.heard().await {
                AgentMessage::Announce(part) => {
                    let whole = match &mut whole {
                        Some(whole) => {
                            assert_eq!((whole.revision, whole.part + 1), (part.revision, part.part));
                            whole.part = part.part;
                            whole.instances.extend(part.instances);
                            whole
                        }
                        None => whole.insert(part.clone()),
                    };
                    if part.last {
                        return whole.clone();
                    }
                }
                AgentMessage::Report(report) => self.waiting.extend(report.transitions),
                other => panic!("{other:?} instead of an announcement"),
            }
        }
    }

    pub(crate) async fn report(&mut self) -> Report {
        loop {
            if let AgentMessage::Report(report) = self.heard().await {
                return report;
            }
        }
    }

    /// Transitions up to one that is as it should be.
    pub(crate) async fn transitions(&mut self, is_last: impl Fn(&Record) -> bool) -> Vec<Record> {
        loop {
            if let Some(last) = self.waiting.iter().position(&is_last) {
                return self.waiting.drain(..=last).collect();
            }
            let report = self.report().await;
            self.waiting.extend(report.transitions);
        }
    }

    /// Reads to the close frame.
    pub(crate) async fn closed(&mut self) -> (Vec<AgentMessage>, CloseFrame) {
        let mut messages = Vec::new();
        loop {
            match self.frame().await {
                Message::Text(text) => messages.push(AgentMessage::decode(&text).unwrap()),
                Message::Close(frame) => return (messages, frame.unwrap()),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// All probes of an announcement, with their component's name.
pub(crate) fn probes(announce: &Announce) -> Vec<(&str, &AnnouncedProbe)> {
    announce
        .instances
        .iter()
        .flat_map(|instance| {
            instance
                .probes
                .iter()
                .map(|probe| (instance.component.as_str(), probe))
        })
        .collect()
}
