//! What one run of a probe found, and the state that runs add up to.

use {
    crate::health::Reason,
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{fmt, time::Duration},
};

/// Most output kept of a run: the kubelet's limit for exec (`10 << 10`) is read, this much is reported.
pub const MAX_OUTPUT_BYTES: usize = 4 * 1024;

/// How one run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunResult {
    /// The target is well.
    Success,
    /// The target is well, with something a person should know (a redirect to another host).
    Warning(Reason),
    /// The target is not well.
    Failure(Reason),
    /// The run could not be made; counts as a failure and is told apart in reports.
    Error(Reason),
    /// Nobody could be asked to make the run, so nothing is known about the target any more: neither a success nor a
    /// failure, and what was known before does not hold.
    Unavailable(Reason),
}

impl RunResult {
    /// Whether it counts as a success for the thresholds.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        match self {
            Self::Success | Self::Warning(_) => true,
            Self::Failure(_) | Self::Error(_) | Self::Unavailable(_) => false,
        }
    }

    /// The reason, when there is one.
    #[must_use]
    pub const fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Success => None,
            Self::Warning(reason)
            | Self::Failure(reason)
            | Self::Error(reason)
            | Self::Unavailable(reason) => Some(reason),
        }
    }

    /// `success`, `warning`, `failure`, `error` or `unavailable`; a closed set, fit for a metric label.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning(_) => "warning",
            Self::Failure(_) => "failure",
            Self::Error(_) => "error",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// One run of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub result: RunResult,
    /// From the start of the run to its end.
    pub latency: Duration,
    /// One line for a person, without the probe's name: `503 Service Unavailable`, `exit code 1: no such table`.
    /// Empty on plain success.
    pub message: String,
    /// What the command printed, at most [`MAX_OUTPUT_BYTES`]; untrusted, may span lines. Bodies are kept only
    /// when asked for.
    pub output: String,
}

/// What consecutive runs add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// No threshold has been reached yet.
    Pending,
    /// The success threshold was reached last.
    Passing,
    /// The failure threshold was reached last.
    Failing,
}

impl ProbeState {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Passing => "passing",
            Self::Failing => "failing",
        }
    }
}

impl fmt::Display for ProbeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
