//! Why a pod gets no agent: a closed list with codes for machines and sentences for people.

use {healthscope_crd::key, std::fmt};

/// Why a pod is left as it is.
///
/// Each is an answer, not an error: the pod is admitted either way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// What was given does not have the form of a pod.
    #[error("this does not have the form of a pod: {problem}")]
    NotAPod {
        /// Which part of it.
        problem: String,
    },
    /// Nobody asked for an agent.
    #[error("neither the pod nor its namespace has the label {key}=enabled", key = key::INJECT)]
    NotEnabled,
    /// Somebody asked for none.
    #[error("the {holder}'s label {key} says disabled", key = key::INJECT)]
    Disabled {
        /// Whose label.
        holder: Holder,
    },
    /// The label says something else.
    #[error("the {holder}'s label {key} is {value:?}; write enabled or disabled", key = key::INJECT)]
    InvalidLabel {
        /// Whose label.
        holder: Holder,
        /// What it says.
        value: String,
    },
    /// An annotation that cannot be meant.
    #[error("the {holder}'s annotation {key}: {problem}")]
    InvalidAnnotation {
        /// Whose annotation.
        holder: Holder,
        /// Which.
        key: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// Its address is the node's, and not its own.
    #[error(
        "the pod uses its node's network (hostNetwork), where an agent could not tell it from its neighbours"
    )]
    HostNetwork,
    /// It sees all processes of its node.
    #[error(
        "the pod uses its node's process ids (hostPID), and what sees all processes of a node gets no company"
    )]
    HostPid,
    /// There is no agent for Windows.
    #[error("the pod runs on Windows, and the agent runs on Linux only")]
    Windows,
    /// The API server's picture of a pod that a kubelet has from a file.
    #[error(
        "this is the mirror of a static pod, which its kubelet reads from a file and nobody can change here"
    )]
    MirrorPod,
    /// HealthScope itself.
    #[error("the pod is a part of HealthScope itself")]
    OwnPod,
    /// An agent would have no name to speak under, and a pod with a token of nobody does not start.
    #[error(
        "the pod has no ServiceAccount, by which an agent says whose it is; \
             is the API server's admission plugin ServiceAccount turned off?"
    )]
    NoServiceAccount,
    /// It is on its way out.
    #[error("the pod is being deleted")]
    Deleting,
    /// It brings an agent that the injector did not make.
    #[error("the pod brings a container {container:?} of its own; remove that, or do not ask for another")]
    AgentPresent {
        /// Its name.
        container: &'static str,
    },
    /// One of its volumes has a name that the agent's has.
    #[error("the pod has a volume {volume:?} of its own, and the agent's must be called that; rename it")]
    NameClash {
        /// The name.
        volume: &'static str,
    },
    /// Something is mounted where the runner must be.
    #[error("container {container} mounts something at {path}, where the runner for its command checks must be; \
             move that, or leave the container out with the annotation {key}", key = key::EXEC)]
    MountPathClash {
        /// In which container.
        container: String,
        /// Where.
        path: String,
    },
    /// A LimitRange of the namespace refuses what an agent needs.
    #[error("LimitRange {name} leaves no room for an agent: {problem}")]
    LimitRange {
        /// Its name.
        name: String,
        /// Which limit, and what would be needed.
        problem: String,
    },
    /// A ResourceQuota of the namespace has no room.
    #[error("ResourceQuota {name} leaves no room for an agent: {problem}")]
    QuotaExceeded {
        /// Its name.
        name: String,
        /// What is left, and what would be needed.
        problem: String,
    },
    /// More than a pod can carry.
    #[error("{what} would have {bytes} bytes, and {limit} is the most; \
             leave containers out with the annotation {key}", key = key::MIRROR)]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it would be.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// No check would be left for the agent to make.
    #[error("there is nothing to check: {hint}")]
    NothingToCheck {
        /// What would give it something.
        hint: String,
    },
    /// Native sidecars are not known there.
    #[error(
        "Kubernetes {major}.{minor} starts no native sidecars (initContainers with restartPolicy: Always); \
             it takes 1.29 or newer"
    )]
    OldKubernetes {
        /// Its version's first number.
        major: u32,
        /// Its version's second number.
        minor: u32,
    },
    /// Injection was stopped because it did harm.
    #[error("injection is stopped here: {why}")]
    BreakerOpen {
        /// What was seen, and what to do.
        why: String,
    },
}

impl SkipReason {
    /// Every code there is, in the order of the variants: what a metric has series for.
    pub const CODES: [&'static str; 21] = [
        "NotAPod",
        "NotEnabled",
        "Disabled",
        "InvalidLabel",
        "InvalidAnnotation",
        "HostNetwork",
        "HostPid",
        "Windows",
        "MirrorPod",
        "OwnPod",
        "NoServiceAccount",
        "Deleting",
        "AgentPresent",
        "NameClash",
        "MountPathClash",
        "LimitRange",
        "QuotaExceeded",
        "TooLarge",
        "NothingToCheck",
        "OldKubernetes",
        "BreakerOpen",
    ];

    /// One word for machines: an Event's reason, a metric's label.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAPod { .. } => "NotAPod",
            Self::NotEnabled => "NotEnabled",
            Self::Disabled { .. } => "Disabled",
            Self::InvalidLabel { .. } => "InvalidLabel",
            Self::InvalidAnnotation { .. } => "InvalidAnnotation",
            Self::HostNetwork => "HostNetwork",
            Self::HostPid => "HostPid",
            Self::Windows => "Windows",
            Self::MirrorPod => "MirrorPod",
            Self::OwnPod => "OwnPod",
            Self::NoServiceAccount => "NoServiceAccount",
            Self::Deleting => "Deleting",
            Self::AgentPresent { .. } => "AgentPresent",
            Self::NameClash { .. } => "NameClash",
            Self::MountPathClash { .. } => "MountPathClash",
            Self::LimitRange { .. } => "LimitRange",
            Self::QuotaExceeded { .. } => "QuotaExceeded",
            Self::TooLarge { .. } => "TooLarge",
            Self::NothingToCheck { .. } => "NothingToCheck",
            Self::OldKubernetes { .. } => "OldKubernetes",
            Self::BreakerOpen { .. } => "BreakerOpen",
        }
    }
}

/// Whose label or annotation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The pod's, or its template's.
    Pod,
    /// Its namespace's.
    Namespace,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        })
    }
}
