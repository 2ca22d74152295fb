//! What the breaker leaves in its ConfigMap: for the other replicas, for the next owner of the Lease, and for people.

use {
    jiff::Timestamp,
    serde::{Deserialize, Serialize},
};

/// The ConfigMap in the installation's namespace.
pub const CONFIG_MAP: &str = "healthscope-breaker";
/// The key in it: a [`Record`] as JSON.
pub const KEY: &str = "record.json";

/// All that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Sorted by level, namespace and owner; at most one of each.
    #[serde(default)]
    pub trips: Vec<Trip>,
}

/// One place where less is injected than asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trip {
    /// How far it reaches.
    pub level: Level,
    /// In which namespace; none for the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The owner of the pods; only with [`Level::Owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerRef>,
    /// What is left out.
    pub reduction: Reduction,
    /// What was seen.
    pub cause: Cause,
    /// What was seen, in the kubelet's or the API server's words where they say something.
    pub message: String,
    /// The agent's image at that time.
    pub image: String,
    /// Since when.
    pub since: Timestamp,
    /// Some of the pods that suffered, by name, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
}

/// How far a trip reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// All pods.
    Cluster,
    /// The pods of a namespace.
    Namespace,
    /// The pods of one owner.
    Owner,
}

/// Whose pods: the outermost owner that is known, a Deployment rather than its ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRef {
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reduction {
    /// Nothing is changed in the application's containers.
    WithoutCommands,
    /// No agent at all.
    Off,
}

/// What harm was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The agent's image cannot be pulled.
    ImagePull,
    /// The agent's container does not start, or does not stay.
    AgentNotStarting,
    /// The runner that command checks need never came up.
    CarrierMissing,
    /// The pod was refused because of what was added to it.
    FailedCreate,
}
