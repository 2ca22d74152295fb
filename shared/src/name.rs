//! Names and ids that are validated once, at the edge, and then carried as types.
//!
//! Rules are those of Kubernetes (`k8s.io/apimachinery` `util/validation`): a name that is accepted here is
//! accepted by the API server.

use {
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{fmt, str::FromStr, sync::Arc},
};

/// Why a string is not the name it was meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
    value: String,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Validates `value`.
            ///
            /// # Errors
            /// Says which rule the value breaks.
            pub fn new(value: impl AsRef<str>) -> Result<Self, NameError> {
                let value = value.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(value) {
                    Ok(Self(value.into()))
                } else {
                    let value = crate::truncate(value, 80).into_owned();
                    Err(NameError { what: $what, rule: $rule, value })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().into()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name_type!(
    /// A namespace; `default` outside Kubernetes unless said otherwise.
    Namespace, "namespace",
    "lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit",
    is_label
);
name_type!(
    /// The name of an object: a scope or a component.
    Name, "object name",
    "lower-case letters, digits, '-' and '.', at most 253, starting and ending with a letter or digit",
    is_subdomain
);
name_type!(
    /// The kind of a component: `Component`, `HealthScope`, `Deployment`...
    Kind, "kind",
    "letters and digits starting with a capital letter, at most 63",
    |s| s.len() <= 63
        && s.starts_with(|c: char| c.is_ascii_uppercase())
        && s.chars().all(|c| c.is_ascii_alphanumeric())
);
name_type!(
    /// The name of a probe, unique within its component.
    ProbeName, "probe name",
    "lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit",
    is_label
);
name_type!(
    /// The name of a container, unique within its pod.
    ContainerName, "container name",
    "lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit",
    is_label
);
name_type!(
    /// One running copy of a component, as its agent calls it: a pod's name, or a host's.
    InstanceName, "instance name",
    "lower-case letters, digits, '-' and '.', at most 253, starting and ending with a letter or digit",
    is_subdomain
);
name_type!(
    /// What an agent calls itself where no platform vouches for its identity; one live session each.
    AgentName, "agent name",
    "lower-case letters, digits, '-' and '.', at most 253, starting and ending with a letter or digit",
    is_subdomain
);
name_type!(
    /// The name of a port, usable in probes instead of its number (IANA service name).
    PortName, "port name",
    "lower-case letters, digits and '-', at most 15, with at least one letter, no '--', no '-' at an end",
    |s| (1..=15).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && s.bytes().any(|b| b.is_ascii_lowercase())
        && !s.contains("--")
        && !s.starts_with('-')
        && !s.ends_with('-')
);

impl Namespace {
    /// The namespace of objects that name none.
    #[must_use]
    pub fn default_namespace() -> Self {
        Self("default".into())
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::default_namespace()
    }
}

impl AgentName {
    /// The nearest valid name to what a machine calls itself, or `agent` when nothing of it can be kept.
    #[must_use]
    pub fn from_host(host: &str) -> Self {
        let kept: String = host
            .to_ascii_lowercase()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .take(253)
            .collect();
        Self::new(kept.trim_matches(['-', '.'])).unwrap_or_else(|_| Self("agent".into()))
    }
}

/// RFC 1123 label: what namespaces and containers are called.
fn is_label(s: &str) -> bool {
    (1..=63).contains(&s.len())
        && s.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
}

/// RFC 1123 subdomain: what most objects are called.
fn is_subdomain(s: &str) -> bool {
    s.len() <= 253
        && s.split('.').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        })
}

/// Which HealthScope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ScopeKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for ScopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which component: any object that can be a member of a scope.
///
/// The API group is part of the identity and the version is not: `apps/v1` and `apps/v2` Deployments are the
/// same objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ComponentKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl ComponentKey {
    /// The API group of objects that only HealthScope's own files know (`kind: Component`).
    pub const FILE_GROUP: &'static str = "healthscope.core.oam.dev";

    /// The component of `kind: Component` called `name`.
    #[must_use]
    pub fn component(namespace: Namespace, name: Name) -> Self {
        Self {
            namespace,
            group: Self::FILE_GROUP.into(),
            kind: Kind("Component".into()),
            name,
        }
    }
}

/// `Kind/name`, as kubectl writes it, without the namespace.
impl fmt::Display for ComponentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kubernetes_rules() {
        fn check<T, E>(
            parse: impl Fn(&'static str) -> Result<T, E>,
            good: &[&'static str],
            bad: &[&'static str],
        ) {
            for name in good {
                assert!(parse(name).is_ok(), "{name:?} should be accepted");
            }
            for name in bad {
                assert!(parse(name).is_err(), "{name:?} should be refused");
            }
        }
        check(
            str::parse::<Namespace>,
            &["default", "a-1"],
            &["", "A", "-a", "a-", "a.b", "é"],
        );
        check(
            str::parse::<Name>,
            &["web", "web.v1", "a-b.c"],
            &["", "web_1", ".a", "a..b", "a.-b"],
        );
        check(
            str::parse::<Kind>,
            &["Component", "StatefulSet"],
            &["", "component", "A-b"],
        );
        check(
            str::parse::<PortName>,
            &["http", "p2"],
            &["8080", "", "a--b", "waytoolongportname"],
        );
    }

    #[test]
    fn any_host_name_gives_an_agent_name() {
        for (host, expected) in [
            ("Web-01.Example.ORG", "web-01.example.org"),
            ("under_score", "under-score"),
            ("...", "agent"),
            ("", "agent"),
            ("a..b", "agent"),
        ] {
            assert_eq!(AgentName::from_host(host).as_str(), expected, "{host:?}");
        }
    }

    #[test]
    fn errors_name_the_value_and_the_rule() {
        let error = Name::new("Web").unwrap_err().to_string();
        assert!(
            error.starts_with("\"Web\" is not a valid object name: lower-case"),
            "{error}"
        );
    }
}
