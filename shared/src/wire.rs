//! The messages that agent and aggregator exchange: JSON text frames, tagged by `type`.
//!
//! `docs/protocol.md` describes them for people who write an agent in another language. Compatibility: unknown
//! fields and unknown trailing array elements are ignored; a message of an unknown type is answered with
//! `unsupported` and skipped. This module only encodes and decodes; who may say what and when is [`crate::session`].
//!
//! No clock of either machine crosses the wire: a time is an *age*, the milliseconds between the event and the
//! moment of sending by the agent's monotonic clock. Clocks that are wrong or jump change nothing.

use {
    crate::{
        health::Reason,
        name::{AgentName, InstanceName, Name, Namespace, ProbeName},
        probe::{ProbeKind, outcome::ProbeState},
    },
    serde::{Deserialize, Serialize},
    std::{collections::BTreeMap, fmt},
};

pub mod record;

pub use record::{Record, Summary};

/// The version of the protocol described here.
pub const PROTOCOL: u32 = 1;
/// What both sides name in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "healthscope.v1";
/// Where an aggregator listens for agents.
pub const PATH: &str = "/v1/agent";
/// Largest message either side sends or accepts, in bytes. Large enough for hundreds of records, small enough that
/// ten thousand hostile peers cannot exhaust a machine.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most probes one agent may announce: 10,000 components with a few probes each (`healthscope up`), with room.
pub const MAX_PROBES_PER_AGENT: usize = 65_536;
/// Most labels, and most dependencies, of one component.
pub const MAX_LABELS: usize = 64;
/// Longest text of a target, in bytes.
pub const MAX_TARGET_BYTES: usize = 256;

/// Close codes beyond RFC 6455's own, from its private range.
pub mod close {
    /// A normal end: the agent said goodbye, or the aggregator drained.
    pub const NORMAL: u16 = 1000;
    /// The aggregator is going away; come back after the announced spread.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol: not JSON, a field of the wrong type, a message out of order.
    pub const PROTOCOL: u16 = 1002;
    /// A binary frame: only text is spoken.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// A limit or rule forbids this agent.
    pub const POLICY: u16 = 1008;
    /// A message over [`super::MAX_MESSAGE_BYTES`].
    pub const TOO_BIG: u16 = 1009;
    /// The aggregator cannot take the agent now; try later.
    pub const TRY_LATER: u16 = 1013;
    /// A newer session of the same agent took over.
    pub const REPLACED: u16 = 4000;
    /// Nothing was heard for too long.
    pub const SILENT: u16 = 4001;
    /// Both sides speak, but no common version of the protocol.
    pub const VERSION: u16 = 4002;
}

/// One run of an agent process; sequence numbers count within it. Random, drawn at start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

impl TryFrom<String> for Epoch {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() != 16 {
            return Err("an epoch is 16 hexadecimal digits".into());
        }
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| "an epoch is 16 hexadecimal digits".into())
    }
}

/// A probe, as announced once and called from then on. Never used for another probe within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProbeId(pub u32);

/// Position in the one sequence of an agent's transitions within an epoch; the first is 1, 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum AgentMessage {
    /// First message of a session.
    Hello(Hello),
    /// What it watches.
    Announce(Announce),
    /// What it found.
    Report(Report),
    /// Last message of a session that ends on purpose.
    Goodbye(Goodbye),
    /// Answers [`ServerMessage::Probe`].
    Probed(Probed),
    /// Answers a message whose type is unknown here.
    Unsupported(Unsupported),
}

/// What the aggregator says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ServerMessage {
    /// Answers the hello; the session is open.
    Welcome(Welcome),
    /// Everything up to a sequence number has been taken in.
    Ack(Ack),
    /// Asks for the state of all probes.
    Resync(Resync),
    /// Another aggregator serves this agent.
    Redirect(Redirect),
    /// A new bundle of certificates to trust.
    Ca(Ca),
    /// Run a probe now.
    Probe(RunProbe),
    /// The aggregator cannot keep the agent: close, and come back within the spread.
    Drain(Drain),
    /// Answers a message whose type is unknown here.
    Unsupported(Unsupported),
}

/// First message of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Highest version of the protocol that the agent speaks.
    pub protocol: u32,
    /// What the agent calls itself; where a platform vouches for identities, that wins and this is ignored.
    pub agent: AgentName,
    /// The agent's release.
    pub version: String,
    /// This run of the agent.
    pub epoch: Epoch,
    /// Sequence number of the latest transition, 0 before the first.
    pub seq: Seq,
    /// Up to where any aggregator has acknowledged this epoch: to one that does not know the epoch, what came before
    /// is not a gap.
    #[serde(default)]
    pub acked: Seq,
}

/// Everything the agent watches, complete; may be split over several messages with rising `part`.
///
/// A later revision replaces an earlier one as a whole when its last part has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announce {
    /// Rises with every change of what is watched; parts of one announcement share it.
    pub revision: u32,
    /// Position among the parts of this revision, from 0.
    pub part: u32,
    /// Whether this is the last part.
    pub last: bool,
    /// Instances with their probes. An instance may be continued in the next part; its probes add up.
    pub instances: Vec<AnnouncedInstance>,
}

/// One running copy of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncedInstance {
    /// Namespace of the component.
    #[serde(default)]
    pub namespace: Namespace,
    /// The component.
    pub component: Name,
    /// This copy of it.
    pub instance: InstanceName,
    /// Labels of the component.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the component depends on: `name` or `Kind/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Its probes.
    pub probes: Vec<AnnouncedProbe>,
}

/// One probe of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncedProbe {
    /// What it is called from now on.
    pub id: ProbeId,
    /// Its name, unique within the instance.
    pub name: ProbeName,
    /// What its verdict is used for.
    #[serde(rename = "type")]
    pub kind: ProbeKind,
    /// The target in a few words: `http 127.0.0.1:8080/healthz`. At most [`MAX_TARGET_BYTES`].
    pub target: String,
    /// From the start of one run to the start of the next, milliseconds.
    pub period_ms: u64,
    /// A run that takes longer is a failure, milliseconds.
    pub timeout_ms: u64,
    /// So many successes in a row make it pass.
    pub success_threshold: u32,
    /// So many failures in a row make it fail.
    pub failure_threshold: u32,
}

/// What an agent found: any of transitions, states and summaries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Sequence number of the latest transition that exists, sent or not.
    pub seq: Seq,
    /// Changes of state, oldest first, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Record>,
    /// Present states: an answer to `resync`, or a run of failures below the threshold that a person should see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<Record>,
    /// Set on the message that completes an answer to `resync`: every probe's state has been sent as of `seq`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub complete: bool,
    /// What equal results added up to since the last summary.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub summaries: Vec<Summary>,
}

/// Last message of a session that ends on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Goodbye {
    /// Why, for a person.
    pub reason: String,
}

/// The result of a run that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// The request answered.
    pub request: u64,
    /// `success`, `warning`, `failure` or `error`; absent when the run was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why, for machines; absent on plain success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How long the run took, microseconds.
    #[serde(default)]
    pub latency_us: u64,
    /// State of the probe after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ProbeState>,
}

/// Answers a message whose type is unknown to the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unsupported {
    /// The type that is unknown.
    pub what: String,
}

/// Opens the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The version of the protocol spoken from now on: the lower of both.
    pub protocol: u32,
    /// The aggregator's release.
    pub version: String,
    /// How often to send summaries, milliseconds; also how often to be heard of at least.
    pub heartbeat_ms: u64,
    /// After an unexpected end, come back at a random moment within this time, milliseconds.
    pub spread_ms: u64,
    /// The aggregator holds this epoch's transitions up to here; absent when it does not know the epoch and
    /// wants the state of all probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<Seq>,
}

/// Everything up to `seq` has been taken in and need not be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// Cumulative.
    pub seq: Seq,
}

/// Asks for the state of all probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resync {
    /// Why, for the log.
    pub reason: String,
}

/// Another aggregator serves this agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `host:port` to connect to.
    pub address: String,
    /// The name that its certificate must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Connect at a random moment within this time, milliseconds; at once when 0. For many agents that are sent away
    /// together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spread_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A new bundle of certificates to trust, replacing the former.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ca {
    /// Certificates in PEM form.
    pub pem: String,
}

/// Run a probe now, out of turn; its result counts like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunProbe {
    /// Comes back in the answer.
    pub request: u64,
    /// Which.
    pub probe: ProbeId,
}

/// The aggregator is about to stop, or is not the one that serves this agent and does not know who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Come back at a random moment within this time, milliseconds.
    pub spread_ms: u64,
}

/// Why a frame is not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too long.
    #[error("message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooBig(usize),
    /// A type that this side does not know: answer `unsupported` and go on.
    #[error("message type {0:?} is not known here")]
    UnknownType(String),
    /// Not a message at all.
    #[error("not a message")]
    Malformed(#[source] serde_json::Error),
}

/// Tells an unknown type from a malformed message.
trait Message: for<'de> Deserialize<'de> {
    fn knows(name: &str) -> bool;
}

impl Message for AgentMessage {
    fn knows(name: &str) -> bool {
        Self::TYPES.contains(&name)
    }
}

impl Message for ServerMessage {
    fn knows(name: &str) -> bool {
        Self::TYPES.contains(&name)
    }
}

fn decode<M: Message>(text: &str) -> Result<M, DecodeError> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: String,
    }

    if text.len() > MAX_MESSAGE_BYTES {
        return Err(DecodeError::TooBig(text.len()));
    }
    serde_json::from_str(text).map_err(|error| match serde_json::from_str::<Tag>(text) {
        Ok(tag) if !M::knows(&tag.r#type) => {
            DecodeError::UnknownType(crate::truncate(&tag.r#type, 64).into_owned())
        }
        Ok(_) | Err(_) => DecodeError::Malformed(error),
    })
}

impl AgentMessage {
    /// Every `type` that an agent may send.
    pub const TYPES: &[&str] = &["hello", "announce", "report", "goodbye", "probed", "unsupported"];

    /// Reads what an agent sent.
    ///
    /// # Errors
    /// When it is too long, of an unknown type or malformed.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        // The common message first: its fields are read straight into place, without the buffering that an
        // internally tagged enum needs.
        if let Some(report) = record::decode_report(text) {
            return Ok(Self::Report(report));
        }
        decode(text)
    }

    /// The text frame.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("messages have only string keys and finite numbers")
    }
}

impl ServerMessage {
    /// Every `type` that an aggregator may send.
    pub const TYPES: &[&str] = &[
        "welcome",
        "ack",
        "resync",
        "redirect",
        "ca",
        "probe",
        "drain",
        "unsupported",
    ];

    /// Reads what an aggregator sent.
    ///
    /// # Errors
    /// When it is too long, of an unknown type or malformed.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode(text)
    }

    /// The text frame.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("messages have only string keys and finite numbers")
    }
}
