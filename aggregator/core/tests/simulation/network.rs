//! Connections that lose, delay and cut: bytes in order within a direction, and nothing else promised.

use {crate::random::Random, healthscope_shared::session::Transmit};

/// A frame as the receiver's WebSocket layer hands it on.
#[derive(Debug)]
pub(crate) enum Received {
    Text(String),
    Ping,
    Pong,
    Close(u16),
    Binary,
}

impl Received {
    /// For the trace.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Text(text) => healthscope_shared::truncate(text, 300).into_owned(),
            Self::Ping => "ping".into(),
            Self::Pong => "pong".into(),
            Self::Close(code) => format!("close {code}"),
            Self::Binary => "binary".into(),
        }
    }
}

const TEXT: u8 = b't';
const PING: u8 = b'p';
const PONG: u8 = b'o';
const CLOSE: u8 = b'c';
const BINARY: u8 = b'b';
const HEADER: usize = 5;

/// One direction of a connection.
pub(crate) struct Pipe {
    /// What was written and has not left the sender; a writer waits until it is empty.
    outgoing: Vec<u8>,
    /// What is on its way; at most `window` bytes.
    wire: Vec<u8>,
    window: usize,
    /// What arrived and is not a whole frame yet.
    incoming: Vec<u8>,
    /// No more bytes follow.
    ended: bool,
    /// Bytes are swallowed and nothing arrives.
    black: bool,
    /// A delivery is under way.
    pub(crate) scheduled: bool,
}

impl Pipe {
    pub(crate) fn new(window: usize) -> Self {
        Self {
            outgoing: Vec::new(),
            wire: Vec::new(),
            window,
            incoming: Vec::new(),
            ended: false,
            black: false,
            scheduled: false,
        }
    }

    /// Whether the former write is done.
    pub(crate) fn is_writable(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Bytes held by the sender.
    pub(crate) fn queued(&self) -> usize {
        self.outgoing.len()
    }

    pub(crate) fn write(&mut self, transmit: &Transmit) {
        match transmit {
            Transmit::Text(text) => self.frame(TEXT, text.as_bytes()),
            Transmit::Ping => self.frame(PING, &[]),
            Transmit::Close { code, reason } => {
                self.frame(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat());
            }
        }
    }

    pub(crate) fn pong(&mut self) {
        self.frame(PONG, &[]);
    }

    pub(crate) fn binary(&mut self, bytes: &[u8]) {
        self.frame(BINARY, bytes);
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        if self.ended {
            return;
        }
        let length = u32::try_from(payload.len()).expect("frames are small");
        self.outgoing.push(kind);
        self.outgoing.extend_from_slice(&length.to_be_bytes());
        self.outgoing.extend_from_slice(payload);
        self.flow();
    }

    fn flow(&mut self) {
        let room = self.window - self.wire.len();
        let count = room.min(self.outgoing.len());
        shift(&mut self.outgoing, count, &mut self.wire);
    }

    /// Whether something will arrive.
    pub(crate) fn is_moving(&self) -> bool {
        !self.black && (!self.wire.is_empty() || self.ended)
    }

    /// Some bytes arrive.
    pub(crate) fn deliver(&mut self, random: &mut Random) {
        let count = if random.percent(30) {
            random.below(self.wire.len() + 1)
        } else {
            self.wire.len()
        };
        shift(&mut self.wire, count, &mut self.incoming);
        self.flow();
    }

    /// The next whole frame that has arrived.
    pub(crate) fn read(&mut self) -> Option<Received> {
        let header = self.incoming.get(..HEADER)?;
        let length = u32::from_be_bytes(header[1..].try_into().expect("four bytes"));
        let end = HEADER + usize::try_from(length).expect("small");
        let payload = self.incoming.get(HEADER..end)?;
        let received = match header[0] {
            TEXT => Received::Text(String::from_utf8(payload.to_vec()).expect("only text was written")),
            PING => Received::Ping,
            PONG => Received::Pong,
            CLOSE => Received::Close(u16::from_be_bytes([payload[0], payload[1]])),
            BINARY => Received::Binary,
            other => unreachable!("frame kind {other}"),
        };
        self.incoming.drain(..end);
        Some(received)
    }

    /// Whether a whole frame waits to be read.
    pub(crate) fn has_frame(&self) -> bool {
        self.incoming.get(1..HEADER).is_some_and(|length| {
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            self.incoming.len() - HEADER >= usize::try_from(length).expect("small")
        })
    }

    /// Whether the receiver learns that no more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && !self.black && self.wire.is_empty() && self.outgoing.is_empty() && !self.has_frame()
    }

    /// The sender closes; what it has written still arrives.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// The connection breaks at some byte of what is under way.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        let kept = random.below(self.wire.len() + 1);
        self.wire.truncate(kept);
        self.outgoing.clear();
        self.ended = true;
    }

    /// From now on nothing arrives, and nobody is told.
    pub(crate) fn blacken(&mut self, random: &mut Random) {
        let kept = random.below(self.wire.len() + 1);
        shift(&mut self.wire, kept, &mut self.incoming);
        self.black = true;
    }
}

/// Moves the first bytes.
fn shift(from: &mut Vec<u8>, count: usize, to: &mut Vec<u8>) {
    to.extend_from_slice(&from[..count]);
    from.drain(..count);
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// An agent, by its position.
    Agent(usize),
    /// Somebody who sends rubbish.
    Vandal,
}

/// A connection; it is kept until both ends have let go.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// From the agent.
    pub(crate) up: Pipe,
    /// To the agent.
    pub(crate) down: Pipe,
    pub(crate) client_holds: bool,
    pub(crate) server_holds: bool,
    /// Since when nothing passes.
    pub(crate) black_since: Option<u64>,
    /// When the present write of the client, and of the server, began.
    pub(crate) client_writes_since: u64,
    pub(crate) server_writes_since: u64,
}
