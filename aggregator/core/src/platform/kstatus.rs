//! Kinds that HealthScope does not know, by the conventions that kstatus reads: `observedGeneration`, the abnormal
//! conditions `Stalled` and `Reconciling`, and `Ready`.
//!
//! Conditions of other types say nothing here: every kind means something else by them.

use {
    super::{field, healthy},
    healthscope_shared::health::{Health, Reason, Verdict},
    serde_json::Value,
};

/// What an object of any kind says about itself; one that says nothing is Healthy because it exists.
pub(super) fn verdict(kind: &str, object: &Value) -> Verdict {
    if let Some(stalled) = field::condition_that_is(object, "Stalled", "True") {
        return told(Health::Unhealthy, kind, "is stalled", stalled, Reason::STALLED);
    }
    if field::is_observed(object) == Some(false) {
        return stale(kind);
    }
    if let Some(reconciling) = field::condition_that_is(object, "Reconciling", "True") {
        return told(
            Health::Unknown,
            kind,
            "is reconciling",
            reconciling,
            Reason::RECONCILING,
        );
    }
    let Some(ready) = field::condition(object, "Ready") else {
        return healthy();
    };
    if is_older(ready, object) {
        return stale(kind);
    }
    match field::text(ready, &["status"]) {
        Some("True") => healthy(),
        Some("False") => told(Health::Unhealthy, kind, "is not ready", ready, Reason::NOT_READY),
        _ => told(
            Health::Unknown,
            kind,
            "does not know whether it is ready",
            ready,
            Reason::NOT_READY,
        ),
    }
}

/// Whether the condition is about an older spec than the object has.
fn is_older(condition: &Value, object: &Value) -> bool {
    let generation = field::number(object, &["metadata", "generation"]);
    field::number(condition, &["observedGeneration"])
        .zip(generation)
        .is_some_and(|(observed, generation)| observed < generation)
}

fn stale(kind: &str) -> Verdict {
    Verdict::new(
        Health::Unknown,
        Reason::RECONCILING,
        format!("{kind} has a newer spec than its controller has seen"),
    )
}

/// A verdict with the condition's own reason and message.
fn told(health: Health, kind: &str, what: &str, condition: &Value, reason: Reason) -> Verdict {
    let said = field::text(condition, &["reason"]).filter(|said| !said.is_empty());
    let message = match (field::text(condition, &["message"]).unwrap_or_default(), said) {
        ("", None) => format!("{kind} {what}"),
        ("", Some(said)) => format!("{kind} {what}: {said}"),
        (message, _) => format!("{kind} {what}: {message}"),
    };
    Verdict::new(health, said.map_or(reason, Reason::from_untrusted), message)
}
