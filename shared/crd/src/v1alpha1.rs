//! `core.oam.dev/v1alpha1` `HealthScope`: Rudr's fields.
//!
//! The same objects as [`crate::v1beta1`]'s under another version: nothing is converted, so all of these fields are in
//! v1beta1 too, at the same places. What is here says which of them this version lists, requires and prints.

use {
    crate::v1alpha2::ScopeHealthCondition,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
    kube::CustomResource,
    schemars::{JsonSchema, Schema, SchemaGenerator, json_schema},
    serde::{
        Deserialize, Deserializer, Serialize,
        de::{SeqAccess, Visitor},
    },
    std::{borrow::Cow, fmt},
};

/// Group and version, as in `apiVersion`.
pub const API_VERSION: &str = "core.oam.dev/v1alpha1";

/// When the scope counts as healthy, as in Rudr. Its members say themselves that they belong to it: by the label
/// `healthscope.core.oam.dev/name`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "core.oam.dev",
    version = "v1alpha1",
    kind = "HealthScope",
    plural = "healthscopes",
    singular = "healthscope",
    shortname = "health",
    category = "oam",
    namespaced,
    status = "HealthScopeStatus",
    derive = "PartialEq",
    storage = false,
    deprecated = "core.oam.dev/v1alpha1 HealthScope is deprecated: write apiVersion: core.oam.dev/v1beta1 instead; every field may stay as it is",
    doc = "A named set of components and the health that they add up to, as in Rudr. Deprecated: v1beta1 has all fields of this version and more.",
    printcolumn = r#"{"name":"HEALTH","type":"string","jsonPath":".status.health","description":"Healthy, Degraded, Unhealthy or Unknown."}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct HealthScopeSpec {
    /// How health is found out, `kube-get`. Accepted and kept; it has no effect, because workloads are watched.
    pub probe_method: String,
    /// Where health is found, `.status`. Accepted and kept; it has no effect, because workloads are watched.
    pub probe_endpoint: String,
    /// Seconds that a check may take. Accepted and kept; it has no effect, because nothing is polled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_timeout: Option<i64>,
    /// Seconds between two checks. Accepted and kept; it has no effect, because changes are seen when they happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<i64>,
    /// Percentage of the components that may be unavailable: the scope is Unhealthy when more are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate_threshold: Option<f64>,
    /// Percentage of the components that must be available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_rate_threshold: Option<f64>,
    /// Percentage of the components that must be available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_threshold_percentage: Option<f64>,
    /// The same as `healthThresholdPercentage`, as Rudr's controller spelt it.
    #[serde(
        rename = "health-threshold-percentage",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub kebab_health_threshold_percentage: Option<f64>,
    /// Names of components without which the scope is Unhealthy, as a list or separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_healthy_components: Option<Names>,
    /// The same as `requiredHealthyComponents`, as Rudr's controller spelt it.
    #[serde(
        rename = "required-healthy-components",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub kebab_required_healthy_components: Option<Names>,
}

/// What the scope's health is, in Rudr's words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthScopeStatus {
    /// The components.
    pub components: Option<Vec<ComponentStatus>>,
    /// When anything else in this status last changed.
    pub last_aggregate_timestamp: Option<Time>,
    /// Healthy, Degraded, Unhealthy or Unknown; from v1beta1.
    pub health: Option<String>,
    /// The health in OAM's words; from v1alpha2.
    pub scope_health_condition: Option<ScopeHealthCondition>,
}

/// One component of the scope, in Rudr's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// Name of the component.
    pub name: String,
    /// Name of the component's instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_name: Option<String>,
    /// `healthy` or `unhealthy`; absent as long as nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// Names as Rudr's users wrote them: a list, or one text with commas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Names {
    /// One by one.
    List(Vec<String>),
    /// Separated by commas.
    Text(String),
}

impl Names {
    /// The names, without blanks around them and without empty ones.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let (list, text) = match self {
            Self::List(list) => (list.as_slice(), None),
            Self::Text(text) => (&[][..], Some(text.split(','))),
        };
        list.iter()
            .map(String::as_str)
            .chain(text.into_iter().flatten())
            .map(str::trim)
            .filter(|name| !name.is_empty())
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names as a list, or separated by commas")
            }

            fn visit_str<E>(self, text: &str) -> Result<Names, E> {
                Ok(Names::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = items.next_element()? {
                    names.push(name);
                }
                Ok(Names::List(names))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A schema of Kubernetes cannot say "list or text", so it says nothing; what else there may be is found by
/// [`crate::read()`].
impl JsonSchema for Names {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-preserve-unknown-fields": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_list_or_a_text() {
        #[track_caller]
        fn check(json: &str, expected: &[&str]) {
            let names: Names = serde_json::from_str(json).unwrap();
            assert_eq!(names.iter().collect::<Vec<_>>(), expected, "{json}");
            assert_eq!(serde_json::to_string(&names).unwrap(), json);
        }
        check(r#"["web","db"]"#, &["web", "db"]);
        check(r#""web, db,,""#, &["web", "db"]);
        check(r#""""#, &[]);
        check("[]", &[]);
        let error = serde_json::from_str::<Names>("5").unwrap_err().to_string();
        assert!(
            error.contains("names as a list, or separated by commas"),
            "{error}"
        );
    }
}
