//! Workloads that keep a number of pods running: Deployment, StatefulSet, DaemonSet and ReplicaSet.
//!
//! Numbers are believed as they stand even when the controller has not seen the newest spec: a rollout whose old pods
//! are all ready is healthy. Only a workload that its controller has never acted on says nothing yet.

use {
    super::{MAX_TEXT_BYTES, Object, Trouble, field, healthy, pod},
    crate::platform::pod::Severity,
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        one_line,
    },
    jiff::Timestamp,
    serde_json::Value,
};

/// Which kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A DaemonSet.
    DaemonSet,
    /// A ReplicaSet.
    ReplicaSet,
}

impl WorkloadKind {
    pub(super) fn from_kind(kind: &str) -> Option<Self> {
        [
            Self::Deployment,
            Self::StatefulSet,
            Self::DaemonSet,
            Self::ReplicaSet,
        ]
        .into_iter()
        .find(|own| own.as_str() == kind)
    }

    /// The kind as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
        }
    }
}

/// The facts about a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which kind.
    pub kind: WorkloadKind,
    /// `spec.replicas`; none for a DaemonSet, and where the object does not say.
    pub replicas: Option<u32>,
    /// Pods that a DaemonSet should have.
    pub desired: u32,
    /// Pods that there are, ready or not.
    pub current: u32,
    /// Pods that are ready.
    pub ready: u32,
    /// Pods that have been ready for long enough.
    pub available: u32,
    /// Pods that are not available, as the status says.
    pub unavailable: u32,
    /// Whether its controller has seen its newest spec.
    pub observed: bool,
    /// What its own conditions complain about.
    pub trouble: Option<Box<Trouble>>,
    /// Why a ReplicaSet may not make a pod.
    pub refused: Option<Box<Refused>>,
    /// A digest of its pod template, to see whether that changed.
    pub template: u64,
}

/// The API server refused a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Since when.
    pub since: Timestamp,
    /// What it said.
    pub message: Box<str>,
}

/// Longest refusal kept: that of Pod Security names each container and field.
const MAX_REFUSAL_BYTES: usize = 1024;

impl Workload {
    pub(super) fn decode(kind: WorkloadKind, object: &Value) -> Self {
        let status = |field: &str| field::count(object, &["status", field]);
        let (desired, current, ready, available, unavailable) = match kind {
            WorkloadKind::DaemonSet => (
                status("desiredNumberScheduled"),
                status("currentNumberScheduled"),
                status("numberReady"),
                status("numberAvailable"),
                status("numberUnavailable"),
            ),
            WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet => (
                0,
                status("replicas"),
                status("readyReplicas"),
                status("availableReplicas"),
                status("unavailableReplicas"),
            ),
        };
        Self {
            kind,
            replicas: field::optional_count(object, &["spec", "replicas"]),
            desired,
            current,
            ready,
            available,
            unavailable,
            observed: field::is_observed(object).unwrap_or(false),
            trouble: trouble(object).map(Box::new),
            refused: match kind {
                WorkloadKind::ReplicaSet => refused(object).map(Box::new),
                // A Deployment repeats its ReplicaSet's; the others say so in Events alone.
                WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => None,
            },
            template: field::digest(field::at(object, &["spec", "template"])),
        }
    }

    /// How many ready pods it should have.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        match self.kind {
            WorkloadKind::DaemonSet => self.desired,
            WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet => {
                self.replicas.unwrap_or(1)
            }
        }
    }

    pub(super) fn verdict(&self, pods: &[&Object]) -> Verdict {
        let kind = self.kind.as_str();
        let (wanted, ready) = (self.wanted(), self.ready);
        if !self.observed && self.current == 0 && (wanted > 0 || self.kind == WorkloadKind::DaemonSet) {
            return Verdict::new(
                Health::Unknown,
                Reason::STARTING,
                format!("{kind} is new: its controller has not acted on it yet"),
            );
        }
        let own = self.trouble.as_deref();
        let is_stuck = own.is_some_and(|own| own.reason == Reason::PROGRESS_DEADLINE_EXCEEDED);
        if ready >= wanted && !is_stuck {
            return healthy();
        }
        let health = if ready == 0 && wanted > 0 || is_stuck {
            Health::Unhealthy
        } else {
            Health::Degraded
        };
        let culprit = pod::culprit(pods);
        let leaf = match (culprit, own) {
            (Some((pod, trouble)), _) => format!("{} {}", pod.key.name, trouble.text),
            (None, Some(own)) => own.text.to_string(),
            (None, None) => String::new(),
        };
        let reason = match (is_stuck, culprit, own) {
            (true, _, _) => Reason::PROGRESS_DEADLINE_EXCEEDED,
            (false, Some((_, trouble)), _) => trouble.reason.clone(),
            (false, None, Some(own)) => own.reason.clone(),
            (false, None, None) => Reason::MINIMUM_REPLICAS_UNAVAILABLE,
        };
        let stuck = if is_stuck { ", rollout is stuck" } else { "" };
        let joint = if leaf.is_empty() { "" } else { ", " };
        Verdict::new(
            health,
            reason,
            format!("{kind} {ready}/{wanted} ready{stuck}{joint}{leaf}"),
        )
    }
}

fn refused(object: &Value) -> Option<Refused> {
    let refused = field::condition_that_is(object, "ReplicaFailure", "True")
        .filter(|refused| field::text(refused, &["reason"]) == Some(Reason::FAILED_CREATE.as_str()))?;
    Some(Refused {
        since: field::time(refused, &["lastTransitionTime"])?,
        message: one_line(field::text(refused, &["message"])?, MAX_REFUSAL_BYTES).into(),
    })
}

/// What the conditions complain about, the most telling first.
fn trouble(object: &Value) -> Option<Trouble> {
    let said = |condition: &Value, reason: Reason| {
        let message = field::text(condition, &["message"]).unwrap_or_default();
        Trouble {
            severity: Severity::Failing,
            text: one_line(message, MAX_TEXT_BYTES).into(),
            reason,
        }
    };
    let stuck = field::condition_that_is(object, "Progressing", "False").filter(|progressing| {
        field::text(progressing, &["reason"]) == Some(Reason::PROGRESS_DEADLINE_EXCEEDED.as_str())
    });
    let refused = field::condition_that_is(object, "ReplicaFailure", "True");
    match (stuck, refused) {
        // The refusal says why nothing progresses.
        (Some(_), Some(refused)) => Some(said(refused, Reason::PROGRESS_DEADLINE_EXCEEDED)),
        (Some(stuck), None) => Some(said(stuck, Reason::PROGRESS_DEADLINE_EXCEEDED)),
        (None, Some(refused)) => Some(said(
            refused,
            field::text(refused, &["reason"]).map_or(Reason::FAILED_CREATE, Reason::from_untrusted),
        )),
        (None, None) => None,
    }
}
