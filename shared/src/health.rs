//! The one health vocabulary: four words, a machine reason and a sentence for a person.

use {
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{borrow::Cow, fmt},
};

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Health {
    /// Everything is as it should be.
    Healthy,
    /// It works, but not all of it is well.
    Degraded,
    /// Nothing is known, or what was known is too old to be believed.
    Unknown,
    /// It does not work.
    Unhealthy,
}

impl Health {
    /// All four, best first.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Unknown, Self::Unhealthy];

    /// The word as it is written everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Degraded => "Degraded",
            Self::Unknown => "Unknown",
            Self::Unhealthy => "Unhealthy",
        }
    }

    /// Whether it does its work: `Healthy` or `Degraded`.
    #[must_use]
    pub const fn is_available(self) -> bool {
        match self {
            Self::Healthy | Self::Degraded => true,
            Self::Unknown | Self::Unhealthy => false,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why, for machines: one CamelCase word, stable across releases.
///
/// Ours are constants here. Kubernetes' own (`CrashLoopBackOff`) pass through, so the set is open.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String")]
#[schemars(with = "String")]
pub struct Reason(Cow<'static, str>);

impl Reason {
    /// Longest reason kept; Kubernetes allows 1,024 in a condition, nobody reads more than a column.
    pub const MAX_BYTES: usize = 64;

    /// A reason of our own.
    #[must_use]
    pub const fn from_static(reason: &'static str) -> Self {
        Self(Cow::Borrowed(reason))
    }

    /// A reason from elsewhere: cut to [`Self::MAX_BYTES`], anything but letters and digits dropped, `Unknown`
    /// when nothing is left.
    #[must_use]
    pub fn from_untrusted(reason: &str) -> Self {
        let kept: String = reason
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(Self::MAX_BYTES)
            .collect();
        if kept.is_empty() {
            Self::UNKNOWN
        } else {
            Self(Cow::Owned(kept))
        }
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal;)*) => {
        impl Reason {
            $($(#[doc = $doc])* pub const $name: Self = Self::from_static($word);)*

            /// Every reason that HealthScope itself gives.
            pub const OURS: &[Self] = &[$(Self::$name),*];

            /// What each of them means, in the same order; a sentence may be cut by line ends.
            pub const MEANINGS: &[&str] = &[$(concat!($($doc, "\n"),*)),*];
        }
    };
}

reasons! {
    /// All is well.
    PASSING = "Passing";
    /// Nothing is known yet, or the startup probe has not passed.
    STARTING = "Starting";
    /// Nothing more precise can be said.
    UNKNOWN = "Unknown";
    /// The agent is silent, or its connection ended without a goodbye.
    AGENT_LOST = "AgentLost";
    /// The agent said goodbye and has not come back.
    AGENT_STOPPED = "AgentStopped";
    /// Nobody reports about this component.
    NO_AGENT = "NoAgent";
    /// A named object does not exist.
    NOT_FOUND = "NotFound";
    /// Objects of this kind cannot be seen here.
    KIND_NOT_AVAILABLE = "KindNotAvailable";
    /// The API server does not know objects of this kind.
    KIND_NOT_INSTALLED = "KindNotInstalled";
    /// HealthScope may not read objects of this kind.
    FORBIDDEN = "Forbidden";
    /// Objects of this kind cannot be read for another reason.
    WATCH_FAILED = "WatchFailed";
    /// Objects of this kind have not been listed yet.
    SYNCING = "Syncing";
    /// It was taken out on purpose.
    REMOVED = "Removed";
    /// Its agents have been lost for too long and nobody expects it.
    FORGOTTEN = "Forgotten";
    /// A liveness probe failed.
    LIVENESS_FAILED = "LivenessFailed";
    /// A readiness probe failed.
    READINESS_FAILED = "ReadinessFailed";
    /// Some instances are not healthy.
    INSTANCES_UNHEALTHY = "InstancesUnhealthy";
    /// Some instances are unknown or lost beside good ones.
    INSTANCES_UNKNOWN = "InstancesUnknown";
    /// The scope has no members; an empty scope is healthy.
    NO_COMPONENTS = "NoComponents";
    /// Every member was left out of the verdict by `unknownPolicy: Ignore`.
    ALL_IGNORED = "AllIgnored";
    /// The policy is met and every component is healthy.
    ALL_HEALTHY = "AllHealthy";
    /// The policy is met, but not every component is healthy.
    SOME_NOT_HEALTHY = "SomeNotHealthy";
    /// Fewer components are available than the policy demands.
    POLICY_NOT_MET = "PolicyNotMet";
    /// A required component is not available.
    REQUIRED_UNAVAILABLE = "RequiredUnavailable";
    /// Whether the policy is met depends on components that are unknown.
    UNDECIDED = "Undecided";
    /// A scope that is nested in this one names it in turn.
    CYCLE = "Cycle";
    /// The spec cannot be used; the last health is kept.
    INVALID_SPEC = "InvalidSpec";

    /// The target answered with an HTTP status that counts as failure.
    HTTP_STATUS = "HttpStatus";
    /// The target's answer was not what was expected.
    UNEXPECTED_BODY = "UnexpectedBody";
    /// The answer could not be understood.
    BAD_RESPONSE = "BadResponse";
    /// The connection was refused.
    CONNECTION_REFUSED = "ConnectionRefused";
    /// The connection was reset or closed before the answer was complete.
    CONNECTION_CLOSED = "ConnectionClosed";
    /// The target could not be connected to, for another reason.
    CONNECT_FAILED = "ConnectFailed";
    /// The TLS handshake failed.
    TLS_FAILED = "TlsFailed";
    /// The host name does not resolve.
    NAME_NOT_RESOLVED = "NameNotResolved";
    /// Nothing was decided within the probe's timeout.
    TIMED_OUT = "TimedOut";
    /// More redirects than are followed.
    TOO_MANY_REDIRECTS = "TooManyRedirects";
    /// A redirect to another host ended the probe; it counts as success.
    REDIRECT_ELSEWHERE = "RedirectElsewhere";
    /// A 3xx answer that names nothing to follow (304, or no `Location`); it counts as success.
    REDIRECT_NOT_FOLLOWED = "RedirectNotFollowed";
    /// The command ended with a non-zero exit code.
    EXIT_CODE = "ExitCode";
    /// The command was ended by a signal.
    SIGNALED = "Signaled";
    /// The command does not exist or is not executable.
    CANNOT_EXECUTE = "CannotExecute";
    /// The container has no runner yet, or has lost it, so the command cannot be run where it belongs.
    RUNNER_MISSING = "RunnerMissing";
    /// The check cannot be made as things are; the message says what would allow it.
    UNSUPPORTED = "Unsupported";
    /// The gRPC server says it is not serving.
    NOT_SERVING = "NotServing";
    /// The gRPC call failed.
    RPC_FAILED = "RpcFailed";
    /// The probe could not be made for a reason inside the agent.
    INTERNAL_ERROR = "InternalError";
    /// The machine is out of something the probe needs: descriptors, processes, memory.
    OUT_OF_RESOURCES = "OutOfResources";

    /// The object is being deleted.
    TERMINATING = "Terminating";
    /// It waits for something outside it.
    PENDING = "Pending";
    /// Fewer pods are ready than wanted, and none of them says why.
    MINIMUM_REPLICAS_UNAVAILABLE = "MinimumReplicasUnavailable";
    /// A rollout has not progressed within its deadline.
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded";
    /// Pods cannot be made: a quota or a policy refuses them.
    FAILED_CREATE = "FailedCreate";
    /// A container ends again and again; the kubelet waits before it starts it anew.
    CRASH_LOOP_BACK_OFF = "CrashLoopBackOff";
    /// A container was killed because it used more memory than it may.
    OOM_KILLED = "OOMKilled";
    /// A container ended with an error.
    ERROR = "Error";
    /// The kubelet waits before it tries to pull the image again.
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff";
    /// The image cannot be pulled.
    ERR_IMAGE_PULL = "ErrImagePull";
    /// A container cannot be made from its configuration: a Secret or ConfigMap is missing.
    CREATE_CONTAINER_CONFIG_ERROR = "CreateContainerConfigError";
    /// A container is being made.
    CONTAINER_CREATING = "ContainerCreating";
    /// Init containers have not finished.
    POD_INITIALIZING = "PodInitializing";
    /// Containers run, but are not ready.
    CONTAINERS_NOT_READY = "ContainersNotReady";
    /// No node can take the pod.
    UNSCHEDULABLE = "Unschedulable";
    /// The node was short of something and ended the pod.
    EVICTED = "Evicted";
    /// The pod or the job has failed.
    FAILED = "Failed";
    /// What the claim was bound to is gone.
    CLAIM_LOST = "ClaimLost";
    /// The object's controller works on it and says so, or has not seen its newest spec.
    RECONCILING = "Reconciling";
    /// The object's controller says that it cannot get on.
    STALLED = "Stalled";
    /// The object says that it is not ready.
    NOT_READY = "NotReady";
    /// The rule `healthyWhen` is false.
    RULE_NOT_MET = "RuleNotMet";
    /// The rule `healthyWhen` cannot be evaluated.
    RULE_FAILED = "RuleFailed";
}

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self::from_untrusted(&reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A health with its reasons: for machines one word, for a person one line that names the failing leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The health.
    pub health: Health,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for a person: at most [`Self::MAX_MESSAGE_BYTES`], one line; empty when healthy.
    pub message: String,
}

impl Verdict {
    /// Longest message in a status (design 4).
    pub const MAX_MESSAGE_BYTES: usize = 256;

    /// A verdict with its message made one bounded line.
    #[must_use]
    pub fn new(health: Health, reason: Reason, message: impl AsRef<str>) -> Self {
        Self {
            health,
            reason,
            message: crate::one_line(message.as_ref(), Self::MAX_MESSAGE_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worse_health_is_greater() {
        assert!(Health::Healthy < Health::Degraded);
        assert!(Health::Degraded < Health::Unknown);
        assert!(Health::Unknown < Health::Unhealthy);
    }

    #[test]
    fn untrusted_reasons_become_one_word() {
        assert_eq!(Reason::from_untrusted("Crash Loop\n<b>").as_str(), "CrashLoopb");
        assert_eq!(Reason::from_untrusted("\u{1b}[").as_str(), "Unknown");
    }

    #[test]
    fn our_reasons_are_unique_camel_case_words() {
        let mut words: Vec<_> = Reason::OURS.iter().map(Reason::as_str).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::OURS.len());
        for word in words {
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric()) && word.len() <= Reason::MAX_BYTES);
        }
    }
}
