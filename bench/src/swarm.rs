//! Simulated agents by the thousand: real connections and real messages, no probes behind them.
//!
//! Written without the agent's own code on purpose: what is measured is the aggregator, and the load must cost as
//! little as possible beside it.

use {
    anyhow::{Context, Result, bail, ensure},
    healthscope_shared::{
        health::Reason,
        probe::{ProbeKind, outcome::ProbeState},
        wire::{
            self, AgentMessage, Announce, AnnouncedInstance, AnnouncedProbe, Epoch, Hello, ProbeId, Record,
            Report, Seq, ServerMessage,
        },
    },
    std::{
        net::{Ipv4Addr, SocketAddr},
        path::{Path, PathBuf},
        pin::Pin,
        sync::Arc,
        task::{self, Poll},
    },
    tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
        net::{TcpSocket, TcpStream},
    },
    tokio_rustls::{TlsConnector, client::TlsStream, rustls::ClientConfig},
};

/// Connections from one source address; the system has 28,000 ephemeral ports for each.
const PER_SOURCE: usize = 20_000;
/// Most bytes of an answer before something is wrong.
const MAX_ANSWER: usize = 128 * 1024;

/// Where the swarm connects.
#[derive(Clone)]
pub(crate) struct Target {
    /// The aggregator.
    pub(crate) address: SocketAddr,
    /// Set for TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A throw-away certificate for localhost.
pub(crate) struct Certificate {
    /// PEM file of the certificate, which is its own authority.
    pub(crate) cert: PathBuf,
    /// PEM file of the key.
    pub(crate) key: PathBuf,
}

/// Makes a certificate in `folder`.
pub(crate) fn certificate(folder: &Path) -> Result<Certificate> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = Certificate {
        cert: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    };
    std::fs::write(&certificate.cert, made.cert.pem())?;
    std::fs::write(&certificate.key, made.signing_key.serialize_pem())?;
    Ok(certificate)
}

/// One connection after its WebSocket handshake.
pub(crate) struct Connection {
    stream: Stream,
    /// Bytes that are read and not used yet.
    read: Vec<u8>,
}

impl Connection {
    /// Connects as agent number `index`.
    pub(crate) async fn open(target: &Target, index: usize) -> Result<Self> {
        Self::open_with(target, index, None).await
    }

    /// Connects as agent number `index`, showing a token.
    pub(crate) async fn open_with(target: &Target, index: usize, token: Option<&str>) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // The system chooses a port faster when it knows where the connection leads, so only what is beyond one
        // address is bound before.
        if index >= PER_SOURCE {
            let last =
                u8::try_from(1 + index / PER_SOURCE).context("too many connections for one machine")?;
            socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
        }
        let stream = socket
            .connect(target.address)
            .await
            .context("cannot connect to the aggregator")?;
        stream.set_nodelay(true)?;
        let mut stream = match &target.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = "localhost".try_into().context("a literal name")?;
                let tls = TlsConnector::from(config.clone()).connect(name, stream).await;
                Stream::Tls(Box::new(tls.context("TLS handshake failed")?))
            }
        };
        let authorization =
            token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{authorization}Upgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: {}\r\n\r\n",
            wire::PATH,
            target.address,
            wire::SUBPROTOCOL
        );
        stream.write_all(request.as_bytes()).await?;
        let mut connection = Self {
            stream,
            read: Vec::new(),
        };
        let end = loop {
            if let Some(end) = find(&connection.read, b"\r\n\r\n") {
                break end + 4;
            }
            connection
                .fill()
                .await
                .context("the handshake was not answered")?;
        };
        let head = String::from_utf8_lossy(&connection.read[..end]).into_owned();
        ensure!(
            head.starts_with("HTTP/1.1 101"),
            "the upgrade was refused: {}",
            head.lines().next().unwrap_or("")
        );
        connection.read.drain(..end);
        connection.read.shrink_to_fit();
        Ok(connection)
    }

    /// Writes frames that are encoded already.
    pub(crate) async fn write(&mut self, frames: &[u8]) -> Result<()> {
        self.stream
            .write_all(frames)
            .await
            .context("the aggregator closed the connection")
    }

    /// Waits for the next message, answering pings on the way.
    pub(crate) async fn message(&mut self) -> Result<ServerMessage> {
        loop {
            let Some((opcode, payload)) = self.take_frame()? else {
                self.fill().await?;
                continue;
            };
            match opcode {
                1 => return Ok(ServerMessage::decode(std::str::from_utf8(&payload)?)?),
                8 => bail!(
                    "closed: {}",
                    String::from_utf8_lossy(payload.get(2..).unwrap_or_default())
                ),
                9 => self.write(&frame(10, &payload)).await?,
                _ => {}
            }
        }
    }

    /// Waits until everything up to `seq` is acknowledged.
    pub(crate) async fn acknowledged(&mut self, seq: Seq) -> Result<()> {
        loop {
            if let ServerMessage::Ack(ack) = self.message().await?
                && ack.seq >= seq
            {
                return Ok(());
            }
        }
    }

    /// Drops what has arrived without waiting for more, so that the peer is never stuck writing.
    pub(crate) fn drop_answers(&mut self) -> Result<()> {
        let mut bytes = [0; 2048];
        if let Stream::Plain(stream) = &self.stream {
            while let Ok(count) = stream.try_read(&mut bytes) {
                ensure!(count > 0, "the aggregator closed the connection");
                self.read.extend_from_slice(&bytes[..count]);
            }
        }
        while let Some((opcode, payload)) = self.take_frame()? {
            ensure!(
                opcode != 8,
                "closed: {}",
                String::from_utf8_lossy(payload.get(2..).unwrap_or_default())
            );
        }
        Ok(())
    }

    /// Reads and drops whatever comes, answering pings, until the connection ends.
    pub(crate) async fn idle(mut self) -> Result<()> {
        loop {
            self.message().await?;
        }
    }

    async fn fill(&mut self) -> Result<()> {
        ensure!(
            self.read.len() < MAX_ANSWER,
            "the aggregator says too much at once"
        );
        let mut bytes = [0; 2048];
        let count = self.stream.read(&mut bytes).await?;
        ensure!(count > 0, "the aggregator closed the connection");
        self.read.extend_from_slice(&bytes[..count]);
        Ok(())
    }

    fn take_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let [first, second, rest @ ..] = self.read.as_slice() else {
            return Ok(None);
        };
        let (length, header) = match second {
            126 if rest.len() >= 2 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), 4),
            126 => return Ok(None),
            127.. => bail!("a frame larger than any that an aggregator sends"),
            &length => (usize::from(length), 2),
        };
        if self.read.len() < header + length {
            return Ok(None);
        }
        let payload = self.read[header..header + length].to_vec();
        let opcode = first & 0x0f;
        self.read.drain(..header + length);
        if self.read.is_empty() {
            self.read.shrink_to_fit();
        }
        Ok(Some((opcode, payload)))
    }
}

/// A frame as a client must send it: masked, here with zeros, which leave the payload as it is (RFC 6455, 5.3).
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap_or(0)),
        length => {
            frame.push(0x80 | 126);
            let length = u16::try_from(length).expect("messages are at most 64 KiB");
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A message as a frame.
pub(crate) fn text(message: &AgentMessage) -> Vec<u8> {
    frame(1, message.encode().as_bytes())
}

/// Agent number `index` introduces itself and announces one component with `probes` probes.
pub(crate) fn introduction(index: usize, probes: u32) -> (Vec<u8>, Vec<u8>) {
    introduction_at(index, probes, Seq(0), Seq(0))
}

/// The same of an agent whose latest transition is `seq`, of which all up to `acked` are acknowledged.
pub(crate) fn introduction_at(index: usize, probes: u32, seq: Seq, acked: Seq) -> (Vec<u8>, Vec<u8>) {
    let hello = AgentMessage::Hello(Hello {
        protocol: wire::PROTOCOL,
        agent: format!("agent-{index}").parse().expect("a valid name"),
        version: "bench".into(),
        epoch: Epoch(index as u64 + 1),
        seq,
        acked,
    });
    let announce = AgentMessage::Announce(Announce {
        revision: 1,
        part: 0,
        last: true,
        instances: vec![AnnouncedInstance {
            namespace: healthscope_shared::name::Namespace::default_namespace(),
            component: format!("component-{index}").parse().expect("a valid name"),
            instance: format!("instance-{index}").parse().expect("a valid name"),
            labels: [("app".to_owned(), format!("app-{}", index % 100))].into(),
            depends_on: Vec::new(),
            probes: (0..probes)
                .map(|id| AnnouncedProbe {
                    id: ProbeId(id),
                    name: format!("probe-{id}").parse().expect("a valid name"),
                    kind: ProbeKind::Readiness,
                    target: format!("http 127.0.0.1:{}/healthz", 8000 + id),
                    period_ms: 10_000,
                    timeout_ms: 1_000,
                    success_threshold: 1,
                    failure_threshold: 3,
                })
                .collect(),
        }],
    });
    (text(&hello), text(&announce))
}

/// All `probes` probes pass; the first of them since its transition 1, so that there is something to acknowledge.
pub(crate) fn full_state(probes: u32) -> Vec<u8> {
    text(&AgentMessage::Report(Report {
        seq: Seq(1),
        transitions: vec![record(1, 0, ProbeState::Passing)],
        states: (0..probes)
            .map(|id| record(u64::from(id == 0), id, ProbeState::Passing))
            .collect(),
        complete: true,
        ..Report::default()
    }))
}

/// A state or transition of a probe.
pub(crate) fn record(seq: u64, probe: u32, state: ProbeState) -> Record {
    let failing = state == ProbeState::Failing;
    Record {
        seq: Seq(seq),
        probe: ProbeId(probe),
        age_ms: 1,
        state,
        flapping: false,
        error: false,
        streak: if failing { -3 } else { 1 },
        latency_us: 850,
        reason: if failing {
            Reason::HTTP_STATUS
        } else {
            Reason::PASSING
        },
        message: if failing {
            "503 Service Unavailable".into()
        } else {
            String::new()
        },
        output: String::new(),
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
