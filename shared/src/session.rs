//! Both halves of the wire protocol as state machines, and what each remembers between connections.
//!
//! [`agent::AgentSession`] sends what [`outbox::Outbox`] holds; [`peer::PeerSession`] is the aggregator's half and
//! turns frames into events for the store. Neither reads a clock, draws randomness, performs IO or queues more than
//! one message: a shell hands in what happened with the time, and asks for the next thing to write when the
//! socket can take it. `docs/protocol.md` describes the protocol itself.

use {
    crate::{one_line, printable, probe::outcome::MAX_OUTPUT_BYTES, wire::Probed},
    std::time::Duration,
};

pub mod agent;
pub mod outbox;
pub mod peer;

/// One frame that arrived, as far as the protocol cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A binary message; never spoken, its content does not matter.
    Binary,
    /// A message longer than the WebSocket layer is told to accept ([`crate::wire::MAX_MESSAGE_BYTES`]).
    TooBig,
    /// The peer asks whether anybody is there. The WebSocket layer has answered.
    Ping,
    /// The peer is there.
    Pong,
}

/// What a shell must write to the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A text frame.
    Text(String),
    /// A ping with an empty payload.
    Ping,
    /// A close frame; nothing follows it. The shell closes the connection and reports it as closed.
    Close {
        /// One of [`crate::wire::close`].
        code: u16,
        /// For a person; at most [`MAX_CLOSE_REASON_BYTES`].
        reason: String,
    },
}

/// An agent ends a report or a part of an announcement here when it has more to say: over a slow line every message
/// must arrive well within [`SILENCE`], since nothing is heard of a peer while one is under way.
pub const COMFORTABLE_MESSAGE_BYTES: usize = 16 * 1024;
/// RFC 6455 gives a control frame 125 bytes, of which the code takes two.
pub const MAX_CLOSE_REASON_BYTES: usize = 123;
/// Nothing heard for this long: the connection is taken for dead. A half-open connection must be noticed within
/// 30 seconds; the rest is for timers and queues.
pub const SILENCE: Duration = Duration::from_secs(25);
/// An aggregator pings an agent of which it has heard nothing for this long. Longer than the longest heartbeat, so
/// that a healthy agent is never asked.
pub const PING_AFTER: Duration = Duration::from_secs(12);
/// Shortest heartbeat that an agent obeys.
pub const MIN_HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest heartbeat that an agent obeys, and the default: two may be lost before [`SILENCE`].
pub const MAX_HEARTBEAT: Duration = Duration::from_secs(10);
/// How long an agent waits for the welcome. An aggregator that takes ten thousand agents back at once needs seconds.
pub const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// How long an aggregator waits for the hello; it is the first thing that an agent sends.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long an aggregator waits for the next part of an announcement, from the welcome or the former part; over a slow
/// line a part takes half of it.
pub const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// An acknowledgement waits this long for more to acknowledge, unless a quarter of the ring waits for it.
pub const ACK_DELAY: Duration = Duration::from_millis(200);
/// How long an aggregator that drained or redirected an agent waits for it to close the connection.
pub const LEAVE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a shell waits for one write: a peer that never reads is let go like one that never speaks.
pub const WRITE_DEADLINE: Duration = SILENCE;
/// Unacknowledged transitions that an agent keeps: ten minutes without an aggregator at one transition every two
/// seconds.
pub const RING: usize = 256;
/// Runs asked for and not answered yet, per session; a person waits for each.
pub const MAX_RUNS: usize = 8;
/// Longest message for a person in a record, in bytes; the status shows 256 characters.
pub const MAX_TEXT_BYTES: usize = 512;
/// Largest sequence number, number of a request or count: whole numbers stay exact in every JSON reader up to here.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

fn close(code: u16, reason: &str) -> Transmit {
    Transmit::Close {
        code,
        reason: one_line(reason, MAX_CLOSE_REASON_BYTES),
    }
}

/// Bounds what a run that was asked for reports, and makes it printable.
fn bound_probed(probed: &mut Probed) {
    probed.message = one_line(&probed.message, MAX_TEXT_BYTES);
    probed.output = printable(&probed.output, MAX_OUTPUT_BYTES);
}

/// Where the time of a test starts.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to an instant; tests only add to it"
)]
fn any_instant() -> std::time::Instant {
    std::time::Instant::now()
}
