//! What is waited for, in the words of the command line. Pure.

use {
    healthscope_core::view::ScopeView,
    healthscope_shared::{health::Health, one_line},
    std::{fmt, str::FromStr},
};

/// How a scope is wanted to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Of this health.
    Health(Health),
    /// Healthy or degraded.
    Available,
    /// With a condition of this type and status, in whatever case.
    Condition {
        /// `Healthy`, `Ready`...
        kind: String,
        /// `True`, `False` or `Unknown`.
        status: String,
    },
    /// Not there.
    Deleted,
}

impl Goal {
    /// Whether a scope is so; `None` is one that does not exist.
    pub(crate) fn is_met(&self, scope: Option<&ScopeView>) -> bool {
        match (self, scope) {
            (Self::Deleted, scope) => scope.is_none(),
            (_, None) => false,
            (Self::Health(health), Some(scope)) => scope.health == *health,
            (Self::Available, Some(scope)) => scope.health.is_available(),
            (Self::Condition { kind, status }, Some(scope)) => scope.conditions.iter().any(|condition| {
                condition.type_.eq_ignore_ascii_case(kind) && condition.status.eq_ignore_ascii_case(status)
            }),
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(condition) = text.strip_prefix("condition=") {
            let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
            let is_status = ["true", "false", "unknown"].contains(&status.to_lowercase().as_str());
            if kind.is_empty() || !is_status {
                let shown = one_line(text, 60);
                return Err(format!(
                    "--for={shown:?}: write condition=TYPE, or condition=TYPE=true, false or unknown"
                ));
            }
            return Ok(Self::Condition {
                kind: kind.into(),
                status: status.into(),
            });
        }
        match text.to_lowercase().as_str() {
            "healthy" => Ok(Self::Health(Health::Healthy)),
            "degraded" => Ok(Self::Health(Health::Degraded)),
            "unhealthy" => Ok(Self::Health(Health::Unhealthy)),
            "unknown" => Ok(Self::Health(Health::Unknown)),
            "available" => Ok(Self::Available),
            "delete" | "deleted" => Ok(Self::Deleted),
            _ => Err(format!(
                "--for={:?} is not known; write healthy, degraded, available, unhealthy, unknown, delete or \
                 condition=TYPE",
                one_line(text, 60)
            )),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health(health) => write!(f, "{health}"),
            Self::Available => f.write_str("available"),
            Self::Condition { kind, status } => write!(f, "{kind}={status}"),
            Self::Deleted => f.write_str("gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<Goal>(), expected) {
            (Ok(goal), Ok(expected)) => assert_eq!(goal.to_string(), expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn goals_are_read_in_any_case() {
        check("healthy", Ok("Healthy"));
        check("UNHEALTHY", Ok("Unhealthy"));
        check("available", Ok("available"));
        check("delete", Ok("gone"));
        check("condition=Healthy", Ok("Healthy=True"));
        check("condition=available=false", Ok("available=false"));
        check("condition=", Err("write condition=TYPE"));
        check("condition=Ready=maybe", Err("write condition=TYPE"));
        check("green", Err("\"green\" is not known; write healthy"));
    }
}
