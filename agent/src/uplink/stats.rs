//! What the uplink counts, and what it is doing: written by one task, read by anybody.

use {
    super::connect::AttemptResult,
    std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        time::Instant,
    },
};

/// Why a session ended, from a closed set, for a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The aggregator closed it.
    Closed,
    /// The connection broke.
    Lost,
    /// Nothing was heard, or nothing could be written, for too long.
    Silent,
    /// The aggregator said something that it may not say.
    Protocol,
    /// The aggregator named another one.
    Redirected,
    /// The aggregator is about to stop.
    Drained,
    /// This agent is about to stop.
    Stopped,
}

impl EndCause {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Closed,
        Self::Lost,
        Self::Silent,
        Self::Protocol,
        Self::Redirected,
        Self::Drained,
        Self::Stopped,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Protocol => "protocol",
            Self::Redirected => "redirected",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
        }
    }
}

/// Counts since the process started, and how much is waiting now.
#[derive(Debug, Default)]
pub struct Stats {
    attempts: [AtomicU64; AttemptResult::ALL.len()],
    ended: [AtomicU64; EndCause::ALL.len()],
    connected: AtomicBool,
    unacknowledged: AtomicU64,
    lost: AtomicU64,
    seq: AtomicU64,
}

impl Stats {
    pub(super) fn attempted(&self, result: AttemptResult) {
        self.attempts[result as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self, cause: EndCause) {
        self.ended[cause as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Relaxed);
    }

    pub(super) fn set_outbox(&self, unacknowledged: usize, lost: u64, seq: u64) {
        self.unacknowledged.store(unacknowledged as u64, Relaxed);
        self.lost.store(lost, Relaxed);
        self.seq.store(seq, Relaxed);
    }

    /// Attempts to connect that ended so.
    #[must_use]
    pub fn attempts(&self, result: AttemptResult) -> u64 {
        self.attempts[result as usize].load(Relaxed)
    }

    /// Sessions that ended so.
    #[must_use]
    pub fn sessions_ended(&self, cause: EndCause) -> u64 {
        self.ended[cause as usize].load(Relaxed)
    }

    /// Whether the aggregator has welcomed this agent and the session has not ended.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Transitions that the aggregator has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.unacknowledged.load(Relaxed)
    }

    /// Transitions that were dropped before an aggregator acknowledged them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Transitions since the process started.
    #[must_use]
    pub fn transitions(&self) -> u64 {
        self.seq.load(Relaxed)
    }
}

/// What the uplink is doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where to.
    pub aggregator: String,
    /// What.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// Why there is no session, when there is none.
    pub problem: Option<String>,
}

/// What the uplink is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Connecting, or waiting for the welcome.
    Connecting,
    /// In session with an aggregator of this release.
    Connected {
        /// What it calls its release.
        version: String,
    },
    /// Waiting before the next attempt.
    Waiting,
}

impl State {
    /// The word.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected { .. } => "connected",
            Self::Waiting => "waiting",
        }
    }
}
