//! Conditions: setting one keeps its time unless its status changes, as everywhere in Kubernetes.
//!
//! The time is an argument; nothing here reads a clock.

use {
    crate::v1beta1::HealthScopeStatus,
    healthscope_shared::{health::Reason, one_line},
    jiff::Timestamp,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

/// The spec is accepted and this status is about it.
pub const READY: &str = "Ready";
/// The health is `Healthy`.
pub const HEALTHY: &str = "Healthy";
/// The policy is met: the health is `Healthy` or `Degraded`.
pub const AVAILABLE: &str = "Available";
/// The spec cannot be used as it is; somebody must change it.
pub const STALLED: &str = "Stalled";
/// Longest message in a condition, as in the rest of the status (Kubernetes allows 32 KiB).
pub const MAX_MESSAGE_BYTES: usize = 256;

/// What is known of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can say.
    Unknown,
}

impl Truth {
    /// The word in the condition's `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Sets the condition of type `kind`, adding it at its place by type when it is new.
///
/// `lastTransitionTime` becomes `now` only when `status` changes.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: Truth,
    reason: &Reason,
    message: &str,
    observed_generation: Option<i64>,
    now: Timestamp,
) {
    let condition = Condition {
        last_transition_time: Time(now),
        message: one_line(message, MAX_MESSAGE_BYTES),
        observed_generation,
        reason: reason.as_str().into(),
        status: status.as_str().into(),
        type_: kind.into(),
    };
    match conditions.iter_mut().find(|old| old.type_ == kind) {
        Some(old) => {
            let since = if old.status == condition.status {
                old.last_transition_time.clone()
            } else {
                condition.last_transition_time.clone()
            };
            *old = Condition {
                last_transition_time: since,
                ..condition
            };
        }
        None => conditions.push(condition),
    }
}

/// The condition of type `kind`.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Since when a condition has been what it is.
#[must_use]
pub fn since(status: &HealthScopeStatus, kind: &str) -> Option<Timestamp> {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)?;
    Some(condition.last_transition_time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_changes_with_the_status_alone() {
        let mut conditions = Vec::new();
        let mut set_at = |status, reason, second| {
            set(
                &mut conditions,
                HEALTHY,
                status,
                &reason,
                "",
                Some(second),
                at(second),
            );
            let condition = find(&conditions, HEALTHY).unwrap();
            assert_eq!(conditions.len(), 1);
            assert_eq!(condition.observed_generation, Some(second));
            (
                condition.last_transition_time.0.as_second(),
                condition.reason.clone(),
            )
        };
        assert_eq!(set_at(Truth::False, Reason::STARTING, 1), (1, "Starting".into()));
        assert_eq!(
            set_at(Truth::False, Reason::POLICY_NOT_MET, 2),
            (1, "PolicyNotMet".into())
        );
        assert_eq!(
            set_at(Truth::Unknown, Reason::UNDECIDED, 3),
            (3, "Undecided".into())
        );
        assert_eq!(
            set_at(Truth::True, Reason::ALL_HEALTHY, 4),
            (4, "AllHealthy".into())
        );
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        let mut conditions = Vec::new();
        let message = "a\nb ".repeat(1000);
        set(
            &mut conditions,
            READY,
            Truth::True,
            &Reason::PASSING,
            &message,
            None,
            at(1),
        );
        assert!(conditions[0].message.len() <= MAX_MESSAGE_BYTES);
        assert!(!conditions[0].message.contains('\n'));
    }
}
