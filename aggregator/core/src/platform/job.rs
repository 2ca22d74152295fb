//! Work that ends: Job and CronJob.
//!
//! A Job is well while it runs, unless its pod cannot even start. A CronJob is as well as its last run: that Job has
//! a name that follows from the time for which it was scheduled, so it is looked up and no list is kept.

use {
    super::{Child, Object, Related, State, field, healthy, pod},
    crate::platform::pod::Severity,
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, Kind, Name, Namespace},
    },
    jiff::Timestamp,
    serde_json::Value,
};

/// The facts about a Job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// How it stands.
    pub progress: Progress,
    /// Pods that have succeeded.
    pub succeeded: u32,
    /// Pods that have failed.
    pub failed: u32,
}

/// How a Job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It runs, or waits for its controller.
    Running,
    /// It is suspended.
    Suspended,
    /// It is done and was well.
    Complete,
    /// It is done and failed, or is failing for good.
    Failed(Box<Verdict>),
}

impl Job {
    pub(super) fn decode(object: &Value) -> Self {
        let is = |kind: &str| field::condition_that_is(object, kind, "True");
        // Kubernetes decides (FailureTarget, SuccessCriteriaMet) before the last pods are gone.
        let progress = if let Some(failed) = is("Failed").or_else(|| is("FailureTarget")) {
            Progress::Failed(Box::new(why_failed(failed)))
        } else if is("Complete").or_else(|| is("SuccessCriteriaMet")).is_some() {
            Progress::Complete
        } else if field::flag(object, &["spec", "suspend"]) {
            Progress::Suspended
        } else {
            Progress::Running
        };
        Self {
            progress,
            succeeded: field::count(object, &["status", "succeeded"]),
            failed: field::count(object, &["status", "failed"]),
        }
    }

    pub(super) fn verdict(&self, pods: &[&Object]) -> Verdict {
        match &self.progress {
            Progress::Complete | Progress::Suspended => healthy(),
            Progress::Failed(verdict) => Verdict::clone(verdict),
            Progress::Running => match pod::culprit(pods) {
                Some((pod, trouble)) if trouble.severity == Severity::Failing => Verdict::new(
                    Health::Degraded,
                    trouble.reason.clone(),
                    format!("Job is running, {} {}", pod.key.name, trouble.text),
                ),
                _ => healthy(),
            },
        }
    }
}

fn why_failed(condition: &Value) -> Verdict {
    let reason = field::text(condition, &["reason"]).unwrap_or_default();
    let message = field::text(condition, &["message"]).unwrap_or_default();
    let text = match (reason, message) {
        ("", "") => "Job failed".to_owned(),
        (reason, "") => format!("Job failed: {reason}"),
        ("", message) => format!("Job failed: {message}"),
        (reason, message) => format!("Job failed: {reason}: {message}"),
    };
    let reason = if reason.is_empty() {
        Reason::FAILED
    } else {
        Reason::from_untrusted(reason)
    };
    Verdict::new(Health::Unhealthy, reason, text)
}

/// The facts about a CronJob.
#[derive(Clone, Debug, PartialEq)]
pub struct CronJob {
    /// Whether it starts no further runs.
    pub suspended: bool,
    /// Runs that have not ended.
    pub active: u32,
    /// The time for which its last run was scheduled.
    pub last_schedule: Option<Timestamp>,
    /// When a run last ended well.
    pub last_success: Option<Timestamp>,
    /// A digest of its Jobs' template, to see whether that changed.
    pub template: u64,
}

impl CronJob {
    pub(super) fn decode(object: &Value) -> Self {
        let time = |name: &str| field::text(object, &["status", name])?.parse().ok();
        let active = field::list(object, &["status", "active"]).len();
        Self {
            suspended: field::flag(object, &["spec", "suspend"]),
            active: u32::try_from(active).unwrap_or(u32::MAX),
            last_schedule: time("lastScheduleTime"),
            last_success: time("lastSuccessfulTime"),
            template: field::digest(field::at(object, &["spec", "jobTemplate"])),
        }
    }

    /// The Job of its last run; `None` when it has never run. Its name is the CronJob's and the scheduled minute
    /// since 1970, as the CronJob controller makes it.
    #[must_use]
    pub fn last_job(&self, namespace: &Namespace, name: &Name) -> Option<ComponentKey> {
        let minute = self.last_schedule?.as_second() / 60;
        Some(ComponentKey {
            namespace: namespace.clone(),
            group: "batch".to_owned(),
            kind: Kind::new("Job").ok()?,
            name: Name::new(format!("{name}-{minute}")).ok()?,
        })
    }

    pub(super) fn verdict(&self, own: &ComponentKey, related: &Related<'_>) -> Verdict {
        let Some(scheduled) = self.last_schedule else {
            return healthy();
        };
        let last = self.last_job(&own.namespace, &own.name);
        if let Some(Child::Found(job)) = last.as_ref().map(related.child)
            && let State::Job(facts) = &job.state
        {
            let found = facts.verdict(related.pods);
            return match found.health {
                Health::Healthy => found,
                health => Verdict::new(
                    health,
                    found.reason,
                    format!("last run {}: {}", job.key.name, found.message),
                ),
            };
        }
        // The Job has been cleared away or cannot be seen; the status changes with it, in one step.
        let is_well = self.active > 0 || self.last_success.is_some_and(|success| success >= scheduled);
        if is_well {
            return healthy();
        }
        Verdict::new(
            Health::Unhealthy,
            Reason::FAILED,
            format!("CronJob's run of {scheduled} did not succeed"),
        )
    }
}
