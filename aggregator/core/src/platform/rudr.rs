//! Rudr's word for a component, for the part of the status that its `v1alpha1` clients read: `healthy` or
//! `unhealthy`, by the rules that its operator had for the objects it made.
//!
//! Rudr called every kind that it did not know healthy, even one that was not there; here such a component is as
//! available as the platform says.

use {
    super::{Child, Progress, Related, State, WorkloadKind},
    healthscope_shared::health::Health,
};

/// The word for a component that works.
pub const HEALTHY: &str = "healthy";
/// The word for one that does not, or of which nothing is known.
pub const UNHEALTHY: &str = "unhealthy";

/// Rudr's word for the object that is a component.
#[must_use]
pub fn word(found: Child<'_>, related: &Related<'_>) -> &'static str {
    let Child::Found(object) = found else {
        return UNHEALTHY;
    };
    let is_well = match &object.state {
        State::Workload(workload) => match workload.kind {
            // "running"; neither "unavailable" nor "updating" is healthy.
            WorkloadKind::Deployment => workload.available == workload.current,
            WorkloadKind::StatefulSet => workload.ready == workload.current,
            WorkloadKind::DaemonSet | WorkloadKind::ReplicaSet => is_available(object, related),
        },
        State::Job(job) => !matches!(job.progress, Progress::Failed(_)),
        // "created" is all that is asked of a Service.
        State::Judged(_) if object.key.group.is_empty() && object.key.kind.as_str() == "Service" => true,
        State::Pod(_) | State::CronJob(_) | State::Composite(_) | State::Judged(_) => {
            is_available(object, related)
        }
    };
    if is_well { HEALTHY } else { UNHEALTHY }
}

fn is_available(object: &super::Object, related: &Related<'_>) -> bool {
    match super::verdict(object, related).health {
        Health::Healthy | Health::Degraded => true,
        Health::Unknown | Health::Unhealthy => false,
    }
}
