//! The public JSON: what the API, the event stream, the page and the command line show.
//!
//! These types may gain fields and change no other way. Lists say how they are ordered. Texts that come from checks
//! (`message`, `output`) are untrusted: show them as text.

use {
    healthscope_crd::v1beta1::{Summary, UnknownPolicy},
    healthscope_shared::{
        health::{Health, Reason},
        name::{AgentName, InstanceName, Kind, Name, Namespace, ScopeKey},
        probe::{ProbeKind, outcome::ProbeState},
    },
    jiff::Timestamp,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::sync::Arc,
};

/// A scope: its health, why, and its components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeView {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Name,
    /// Its health.
    pub health: Health,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people: names the root cause. Empty when all is well.
    pub message: String,
    /// Since when the health has been what it is.
    pub since: Timestamp,
    /// Components that are available (Healthy or Degraded), of all: `2/3`.
    pub available: String,
    /// How many components there are of each health.
    pub summary: Summary,
    /// The component that explains the scope's health, and why it is not well: `db: readiness tcp 127.0.0.1:5432 on
    /// laptop: connection refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_cause: Option<String>,
    /// Components that are not healthy and whose trouble no other component explains, the most important first, at
    /// most five; each as `causedBy` writes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_causes: Vec<String>,
    /// Whether the health changes too often to be believed.
    pub flapping: bool,
    /// Whether somebody should be alarmed: not available, and not in maintenance.
    pub alarming: bool,
    /// The maintenance that the spec asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceView>,
    /// A better health that was measured but has not lasted long enough to be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovering: Option<RecoveringView>,
    /// Why the spec cannot be used as it is; the last usable one is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stalled: Vec<String>,
    /// What in the spec has no effect, such as a dependency that no component is called by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The policy in force.
    pub policy: PolicyView,
    /// All components, worst first, then by kind and name.
    pub components: Vec<MemberView>,
    /// The conditions of the scope's status.
    pub conditions: Vec<Condition>,
}

impl ScopeView {
    /// Which scope it is.
    #[must_use]
    pub fn key(&self) -> ScopeKey {
        ScopeKey {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// The policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// Percentage of the components that must be available.
    pub min_available: u8,
    /// That percentage in components, of those that count.
    pub needed: u32,
    /// What a component counts as of which nothing is known.
    pub unknown_policy: UnknownPolicy,
    /// How long a better health must last before it is shown, seconds.
    pub min_healthy_seconds: u64,
}

/// Work that nobody should be alarmed about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceView {
    /// Whether it still lasts.
    pub active: bool,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// What is being done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A better health that has not lasted long enough to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveringView {
    /// The health measured now.
    pub health: Health,
    /// When it will be shown if it lasts.
    pub at: Timestamp,
}

/// A component as a member of one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// The component itself.
    #[serde(flatten)]
    pub component: Arc<ComponentSummary>,
    /// Whether the scope is Unhealthy as soon as this component is not available.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Members that this one depends on, as `causedBy` writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Arc<str>>,
    /// The member whose trouble explains this one's: its name, or `Kind/name` where members share the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<Arc<str>>,
    /// Whether `unknownPolicy: Ignore` leaves it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
}

/// A component in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentSummary {
    /// Its namespace.
    pub namespace: Namespace,
    /// Group and version; the group alone where no version is known.
    pub api_version: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Its health.
    pub health: Health,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people; names the failing check. Empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when the health has been what it is.
    pub since: Timestamp,
    /// Whether a probe of it changes too often to be believed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flapping: bool,
    /// Its running copies.
    pub instances: InstanceCounts,
    /// The probes that explain the health, of the worst instances, at most five.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingView>,
}

/// How many running copies there are of each health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceCounts {
    /// All of them.
    pub total: u32,
    /// Healthy ones.
    pub healthy: u32,
    /// Ones that do not work.
    pub unhealthy: u32,
    /// Ones of which nothing is known.
    pub unknown: u32,
}

/// A probe that explains why an instance is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailingView {
    /// The instance.
    pub instance: InstanceName,
    /// The agent that speaks for it.
    pub agent: AgentName,
    /// The probe, as it was at its latest transition.
    #[serde(flatten)]
    pub probe: ProbeView,
}

/// A component with its instances and probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentView {
    /// The component in short.
    #[serde(flatten)]
    pub component: Arc<ComponentSummary>,
    /// Whether the aggregator's own file declares it.
    pub declared: bool,
    /// Its labels.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What it says that it depends on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Names of the scopes that it belongs to, in order; all are in its namespace.
    pub scopes: Vec<Name>,
    /// Its instances, by name, at most [`MAX_INSTANCES`].
    pub running: Vec<InstanceView>,
}

/// Most instances listed in one answer.
pub const MAX_INSTANCES: usize = 1_000;

/// One running copy of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Its name.
    pub name: InstanceName,
    /// The agent that speaks for it.
    pub agent: AgentName,
    /// Its health.
    pub health: Health,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when the health has been what it is.
    pub since: Timestamp,
    /// Its probes, in the order of the agent's file.
    pub probes: Vec<ProbeView>,
}

/// One probe of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeView {
    /// Its name, unique within the component.
    pub probe: Arc<str>,
    /// What its verdict is used for.
    #[serde(rename = "type")]
    pub kind: ProbeKind,
    /// Kubernetes' name of its handler: exec, httpGet, tcpSocket or grpc.
    pub handler: String,
    /// What it checks: `http 127.0.0.1:8080/healthz`.
    pub target: Arc<str>,
    /// Its state.
    pub state: ProbeState,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the last failing run printed; untrusted, may span lines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Since when the state has been what it is; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Successes (positive) or failures (negative) in a row.
    pub streak: i32,
    /// How far the streak is on its way to changing the state: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// Whether it changes too often to be believed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flapping: bool,
    /// Whether the last run could not be made at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub error: bool,
    /// What its runs added up to; absent where the view is of one moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsView>,
}

/// What the runs of a probe added up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunsView {
    /// From the start of one run to the start of the next, milliseconds.
    pub period_ms: u32,
    /// Runs since the agent announced the probe to this aggregator.
    pub total: u32,
    /// Of these, failures.
    pub failures: u32,
    /// Of these, runs that could not be made.
    pub errors: u32,
    /// How long the latest run that is known one by one took, microseconds.
    pub latency_us: u32,
    /// Shortest run of the latest summary, microseconds; the four are 0 before the first summary.
    pub min_us: u32,
    /// Mean of the latest summary, microseconds.
    pub avg_us: u32,
    /// Longest run of the latest summary, microseconds.
    pub max_us: u32,
    /// 99th percentile of the latest summary, microseconds.
    pub p99_us: u32,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// What it calls itself.
    pub name: AgentName,
    /// How it is connected.
    pub presence: Presence,
    /// Since when.
    pub since: Timestamp,
    /// Its release.
    pub version: Arc<str>,
    /// Where it connects from.
    pub peer: String,
    /// This run of it.
    pub epoch: String,
    /// Sessions so far.
    pub sessions: u32,
    /// Instances it speaks for.
    pub instances: u32,
    /// Probes it runs.
    pub probes: u32,
    /// Up to where its transitions are taken in.
    pub seq: u64,
    /// Transitions that happened and were never seen one by one: a later state covers them.
    pub missed: u64,
}

/// How an agent is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Presence {
    /// Connected, and everything it had to say is taken in.
    Connected,
    /// Connected, but its state is not complete yet; what is shown is what was known before.
    Syncing,
    /// Not connected since a moment ago; what is shown is what was known before.
    Held,
    /// Silent or gone without a goodbye.
    Lost,
    /// Gone with a goodbye.
    Stopped,
}

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransitionView {
    /// Rises with every transition, also across restarts of the aggregator unless its clock is set back.
    pub id: u64,
    /// When it happened: for a probe by its agent's measure, otherwise when the aggregator saw it.
    pub time: Timestamp,
    /// What changed, and from which word to which.
    #[serde(flatten)]
    pub change: Change,
    /// Namespace of the scope or component.
    pub namespace: Namespace,
    /// Kind of the scope or component.
    pub kind: Kind,
    /// Name of the scope or component.
    pub name: Name,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What changed, from which word to which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "level", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Change {
    /// The health of a scope.
    Scope {
        /// Before.
        from: Health,
        /// From now on.
        to: Health,
        /// Whether the scope is in maintenance: shown, but nobody is alarmed.
        maintenance: bool,
    },
    /// The health of a component.
    Component {
        /// Before.
        from: Health,
        /// From now on; absent when the component is not known any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Health>,
    },
    /// The state of a probe.
    Probe {
        /// Before; absent when that is not known, because transitions were missed or the agent was restarted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<ProbeState>,
        /// From now on.
        to: ProbeState,
        /// Name of the probe.
        probe: Arc<str>,
        /// The instance.
        instance: InstanceName,
        /// The agent that saw it.
        agent: AgentName,
        /// Its number among the agent's transitions.
        seq: u64,
    },
}

/// What the aggregator holds, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Scopes of each health.
    pub scopes: Summary,
    /// Components of each health, nested scopes not among them.
    pub components: Summary,
    /// Agents with a session.
    pub agents_connected: u32,
    /// Agents without one.
    pub agents_absent: u32,
    /// Instances.
    pub instances: u32,
    /// Probes.
    pub probes: u32,
    /// Transitions that were never seen one by one: a later state covers them.
    pub missed_transitions: u64,
    /// Transitions of probes that were counted but not handed to readers, in a flood.
    pub dropped_transitions: u64,
}
