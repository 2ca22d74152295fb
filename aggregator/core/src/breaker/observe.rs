//! What the breaker looks at: who suffers, and how the canary is.

use {
    super::record::{Cause, Level, OwnerRef, Place, Reduction},
    jiff::Timestamp,
    std::collections::{BTreeMap, BTreeSet},
};

/// What one look found. The order of its lists says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Pods that suffer, and controllers whose pods are refused.
    pub harms: Vec<Harm>,
    /// The canary, when there is one.
    pub canary: Option<Canary>,
    /// The owners of open trips and of what suffers.
    pub owners: BTreeMap<(String, OwnerRef), OwnerNow>,
    /// Owners of open trips that are not there any more.
    pub gone: BTreeSet<(String, OwnerRef)>,
    /// The annotation by which somebody asks for another try, by namespace.
    pub retries: BTreeMap<String, String>,
    /// The namespace that HealthScope is installed in.
    pub home: String,
    /// The agent's image as it is configured.
    pub image: String,
}

/// One pod, or controller, that suffers from injection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Harm {
    /// Where.
    pub namespace: String,
    /// Whose pod.
    pub owner: OwnerRef,
    /// What is seen.
    pub cause: Cause,
    /// The pod's name, or the controller's.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was made, or was first refused.
    pub made: Timestamp,
    /// In the kubelet's or the API server's words.
    pub message: String,
}

/// The pod of our own that is injected like others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Its uid.
    pub uid: String,
    /// Whether it has the image that is configured, is ready, and its command check is run and passes.
    pub is_well: bool,
    /// What it suffers.
    pub suffers: Option<String>,
}

/// What is known of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerNow {
    /// Its group and version.
    pub api_version: String,
    /// Its uid.
    pub uid: String,
    /// A digest of its pod template, where it has one.
    pub template: Option<String>,
}

impl Cause {
    /// What is left out because of it.
    #[must_use]
    pub const fn reduction(self) -> Reduction {
        match self {
            Self::ImagePull | Self::AgentNotStarting | Self::FailedCreate => Reduction::Off,
            Self::CarrierMissing => Reduction::WithoutCommands,
        }
    }

    /// Whether it is of the agent's image, which all pods have, and not of something in one namespace.
    pub(super) const fn is_everywhere(self) -> bool {
        match self {
            Self::ImagePull | Self::AgentNotStarting | Self::CarrierMissing => true,
            Self::FailedCreate => false,
        }
    }

    /// Each there is.
    pub const ALL: [Self; 4] = [
        Self::ImagePull,
        Self::AgentNotStarting,
        Self::CarrierMissing,
        Self::FailedCreate,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImagePull => "ImagePull",
            Self::AgentNotStarting => "AgentNotStarting",
            Self::CarrierMissing => "CarrierMissing",
            Self::FailedCreate => "FailedCreate",
        }
    }
}

impl Level {
    /// Each there is.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Namespace, Self::Owner];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Namespace => "Namespace",
            Self::Owner => "Owner",
        }
    }
}

impl Harm {
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            level: Level::Owner,
            namespace: Some(&self.namespace),
            owner: Some(&self.owner),
        }
    }
}
