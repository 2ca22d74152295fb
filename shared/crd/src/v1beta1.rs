//! `core.oam.dev/v1beta1` `HealthScope`, field by field: what a user writes and what is answered.
//!
//! The doc comments are what `kubectl explain` and `healthscope explain` print, so they speak to users. Nothing is
//! validated here beyond shapes: a value that cannot be used is found by [`crate::effective`], so that an object that
//! an API server has accepted can always be read.

use {
    crate::{
        v1alpha1::Names,
        v1alpha2::{AppHealthCondition, AppReference, ScopeHealthCondition, WorkloadHealthCondition},
    },
    healthscope_shared::health::{Health, Reason},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time},
    kube::CustomResource,
    schemars::{JsonSchema, Schema, SchemaGenerator},
    serde::{Deserialize, Serialize},
    std::collections::BTreeMap,
};

/// The API group of HealthScope.
pub const GROUP: &str = "core.oam.dev";
/// Group and version, as in `apiVersion`.
pub const API_VERSION: &str = "core.oam.dev/v1beta1";
/// The kind.
pub const KIND: &str = "HealthScope";
/// `apiVersion` of the components that files declare.
pub const FILE_API_VERSION: &str = "healthscope.core.oam.dev/v1beta1";

/// What belongs to the scope and when it counts as healthy.
// The fields after `maintenance` are those of the older versions, so that an object of these is one of this version as
// it stands; `crate::effective` says what each of them comes to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "core.oam.dev",
    version = "v1beta1",
    kind = "HealthScope",
    plural = "healthscopes",
    singular = "healthscope",
    shortname = "health",
    category = "oam",
    namespaced,
    status = "HealthScopeStatus",
    derive = "PartialEq",
    selectable = ".status.health",
    doc = "A named set of components with a policy, and the health that they add up to.",
    printcolumn = r#"{"name":"HEALTH","type":"string","jsonPath":".status.health","description":"Healthy, Degraded, Unhealthy or Unknown."}"#,
    printcolumn = r#"{"name":"AVAILABLE","type":"string","jsonPath":".status.available","description":"Components that do their work, of all."}"#,
    printcolumn = r#"{"name":"ROOT CAUSE","type":"string","jsonPath":".status.rootCause","description":"The component that explains the others, and why it is not well."}"#,
    printcolumn = r#"{"name":"TOTAL","type":"integer","jsonPath":".status.summary.total","priority":1,"description":"Components in all."}"#,
    printcolumn = r#"{"name":"UNKNOWN","type":"integer","jsonPath":".status.summary.unknown","priority":1,"description":"Components of which nothing is known."}"#,
    printcolumn = r#"{"name":"LAST CHANGE","type":"date","jsonPath":".status.lastAggregateTimestamp","priority":1,"description":"When this status last changed."}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HealthScopeSpec {
    /// Members by name, of any kind, in the scope's own namespace. They belong to the scope whether they exist or
    /// not: one that does not exist is Unhealthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workload_refs: Vec<WorkloadRef>,
    /// Members by label, in the scope's own namespace. An empty selector selects everything there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// How the health of the components adds up to that of the scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Set while somebody works on the application: everything is measured and shown as ever, but nobody is
    /// alarmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,

    /// From v1alpha1 (Rudr). Accepted and kept; it has no effect, because workloads are watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub probe_method: Option<String>,
    /// From v1alpha1 (Rudr). Accepted and kept; it has no effect, because workloads are watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub probe_endpoint: Option<String>,
    /// From v1alpha1 (Rudr). Accepted and kept; it has no effect, because nothing is polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub probe_timeout: Option<i64>,
    /// From v1alpha1 (Rudr). Accepted and kept; it has no effect, because changes are seen when they happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub probe_interval: Option<i64>,
    /// From v1alpha1 (Rudr). Percentage of the components that may be unavailable. Use `policy.minAvailable`: 100
    /// less this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub failure_rate_threshold: Option<f64>,
    /// From v1alpha1 (Rudr). Percentage of the components that must be available. Use `policy.minAvailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub healthy_rate_threshold: Option<f64>,
    /// From v1alpha1 (Rudr). Percentage of the components that must be available. Use `policy.minAvailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub health_threshold_percentage: Option<f64>,
    /// From v1alpha1 (Rudr), another spelling of `healthThresholdPercentage`. Use `policy.minAvailable`.
    #[serde(
        rename = "health-threshold-percentage",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(extend("deprecated" = true))]
    pub kebab_health_threshold_percentage: Option<f64>,
    /// From v1alpha1 (Rudr). Names of components without which the scope is Unhealthy, as a list or separated by
    /// commas. Use `required` in `workloadRefs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub required_healthy_components: Option<Names>,
    /// From v1alpha1 (Rudr), another spelling of `requiredHealthyComponents`. Use `required` in `workloadRefs`.
    #[serde(
        rename = "required-healthy-components",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(extend("deprecated" = true))]
    pub kebab_required_healthy_components: Option<Names>,
    /// From v1alpha2 (OAM). Accepted and kept; it has no effect, because nothing is polled.
    #[serde(rename = "probe-timeout", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub kebab_probe_timeout: Option<i32>,
    /// From v1alpha2 (OAM). Accepted and kept; it has no effect, because changes are seen when they happen.
    #[serde(rename = "probe-interval", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub kebab_probe_interval: Option<i32>,
    /// From v1alpha2 (KubeVela). Members by the application that they belong to. Use `workloadRefs` or `selector`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("deprecated" = true))]
    pub app_references: Vec<AppReference>,
}

/// A member by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadRef {
    /// Group and version of the member, such as `apps/v1`. May be left out for the kinds Component and HealthScope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind of the member, such as Deployment, Component or HealthScope (scopes nest).
    pub kind: String,
    /// Name of the member.
    pub name: String,
    /// Whether the scope is Unhealthy as soon as this member is not available, however many others are. Default
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Members that this one needs, each written `name` or `Kind/name`. While one of them is Unhealthy this member's
    /// trouble is reported as caused by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// For kinds that HealthScope does not know: a CEL expression over `object` that is true when the member is
    /// healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub healthy_when: Option<String>,

    /// From v1alpha2 (OAM). Accepted and kept; it has no effect: a member is known by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub uid: Option<String>,
    /// From v1alpha2 (KubeVela). Must be the scope's own namespace: a scope has no members elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub namespace: Option<String>,
    /// From v1alpha2 (KubeVela). Accepted and kept; it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub resource_version: Option<String>,
    /// From v1alpha2 (KubeVela). Accepted and kept; it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub field_path: Option<String>,
}

/// Labels that a member must have; all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// Labels with their values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<SelectorRequirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelectorRequirement {
    /// The label.
    pub key: String,
    /// How the label is compared: In, NotIn, Exists or DoesNotExist.
    pub operator: SelectorOperator,
    /// Values for In and NotIn; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there, whatever its value.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// How the health of the components adds up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// Percentage of the components that must be available (Healthy or Degraded). Rounded up to whole components.
    /// Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub min_available: Option<i32>,
    /// What a component counts as of which nothing is known: as undecided (Unknown), as not available (Unhealthy), or
    /// not at all unless it is required (Ignore). Default Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "UnknownPolicy")]
    pub unknown_policy: Option<UnknownPolicy>,
    /// The scope's health gets better only after having been better for so many seconds; it gets worse at once.
    /// Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub min_healthy_seconds: Option<i32>,
}

/// What a component counts as of which nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnknownPolicy {
    /// As undecided: the scope is Unknown when it depends on such components.
    #[default]
    Unknown,
    /// As not available.
    Unhealthy,
    /// Not at all, unless it is required. When all components are left out the scope is Unknown.
    Ignore,
}

/// Work on the application that nobody should be alarmed about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Maintenance {
    /// When the maintenance ends by itself, RFC 3339: `2026-12-01T06:00:00Z`. Without it, when this field is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub until: Option<String>,
    /// What is being done, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub reason: String,
}

/// What the scope's health is, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthScopeStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Healthy, Degraded, Unhealthy or Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Health")]
    pub health: Option<Health>,
    /// Components that are available (Healthy or Degraded), of all: `3/4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<String>,
    /// The component that explains the scope's health, and why it is not well: `db: readiness tcp 127.0.0.1:5432 on
    /// laptop: connection refused`. Absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_cause: Option<String>,
    /// Whether the scope's health changes too often to be believed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub flapping: bool,
    /// How many components there are of each health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Components, worst first, at most 50. Healthy ones are listed only in scopes of up to 10 components.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentStatus>,
    /// Whether components that are not healthy were left out of the list because there are too many.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The maintenance that the spec asks for, while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// When anything else in this status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_aggregate_timestamp: Option<Time>,
    /// Ready: the spec is accepted and observed. Healthy: the health is Healthy. Available: the policy is met.
    /// Stalled: the spec cannot be used as it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,

    /// The health in OAM's words, for clients of v1alpha2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_health_condition: Option<ScopeHealthCondition>,
    /// The members' health in OAM's words, at most 50; only in scopes that somebody writes as v1alpha2.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("deprecated" = true))]
    pub health_conditions: Vec<WorkloadHealthCondition>,
    /// From v1alpha2 (KubeVela). Health by application; kept, not written any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("deprecated" = true))]
    pub app_health_conditions: Vec<AppHealthCondition>,
}

/// How many components there are of each health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// All of them.
    pub total: u32,
    /// Healthy.
    pub healthy: u32,
    /// Degraded: they work, but not all of them is well.
    pub degraded: u32,
    /// Unhealthy: they do not work.
    pub unhealthy: u32,
    /// Unknown: nothing is known about them.
    pub unknown: u32,
}

impl Summary {
    /// Components that do their work.
    #[must_use]
    pub const fn available(&self) -> u32 {
        self.healthy + self.degraded
    }

    /// Counts one more component.
    pub const fn add(&mut self, health: Health) {
        self.total += 1;
        match health {
            Health::Healthy => self.healthy += 1,
            Health::Degraded => self.degraded += 1,
            Health::Unknown => self.unknown += 1,
            Health::Unhealthy => self.unhealthy += 1,
        }
    }
}

/// One component of the scope.
// An entry that Rudr has written has a name, an instance's name and a status alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// Group and version; the group alone where no version is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Name.
    pub name: String,
    /// Healthy, Degraded, Unhealthy or Unknown.
    #[serde(default = "unknown")]
    pub health: Health,
    /// Why, for machines: one CamelCase word.
    #[serde(default = "unknown_reason")]
    pub reason: Reason,
    /// Why, for people; names the failing check. Absent when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when the health has been what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The component whose trouble explains this one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// Whether the scope is Unhealthy as soon as this component is not available.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Whether a check of this component changes too often to be believed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flapping: bool,
    /// The component's instance, for clients of v1alpha1; only in scopes that somebody writes as v1alpha1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub instance_name: Option<String>,
    /// `healthy` or `unhealthy`, for clients of v1alpha1; only in scopes that somebody writes as v1alpha1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub status: Option<String>,
}

const fn unknown() -> Health {
    Health::Unknown
}

const fn unknown_reason() -> Reason {
    Reason::UNKNOWN
}

/// A maintenance that lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MaintenanceStatus {
    /// Whether it lasts; once `until` has passed it does not.
    pub active: bool,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// What is being done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The JSON schema of a HealthScope (2020-12), from the types above.
#[must_use]
pub fn schema() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<HealthScope>()
}

#[cfg(test)]
mod tests {
    use {super::*, kube::CustomResourceExt, serde_json::Value};

    #[test]
    fn the_crd_is_named_and_printed_as_promised() {
        let crd = serde_json::to_value(HealthScope::crd()).unwrap();
        assert_eq!(crd["metadata"]["name"], "healthscopes.core.oam.dev");
        assert_eq!(crd["spec"]["scope"], "Namespaced");
        assert_eq!(crd["spec"]["names"]["shortNames"], serde_json::json!(["health"]));
        assert_eq!(crd["spec"]["names"]["categories"], serde_json::json!(["oam"]));
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1beta1");
        assert!(version["subresources"]["status"].is_object());
        let columns: Vec<(&str, bool)> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| (column["name"].as_str().unwrap(), column["priority"] == 1))
            .collect();
        let expected = [
            ("HEALTH", false),
            ("AVAILABLE", false),
            ("ROOT CAUSE", false),
            ("TOTAL", true),
            ("UNKNOWN", true),
            ("LAST CHANGE", true),
            ("AGE", false),
        ];
        assert_eq!(columns, expected);
    }

    /// Finds properties without a description.
    fn undescribed(path: &str, schema: &Value, found: &mut Vec<String>) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        for (name, property) in properties {
            let path = format!("{path}.{name}");
            if property.get("description").is_none() {
                found.push(path.clone());
            }
            undescribed(&path, property, found);
            if let Some(items) = property.get("items") {
                undescribed(&path, items, found);
            }
        }
    }

    #[test]
    fn every_field_is_described() {
        let crd = serde_json::to_value(HealthScope::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        undescribed("", &schema["properties"]["spec"], &mut found);
        undescribed("", &schema["properties"]["status"], &mut found);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn the_schema_knows_words_and_ranges() {
        let crd = serde_json::to_value(HealthScope::crd()).unwrap();
        let spec =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let policy = &spec["policy"]["properties"];
        assert_eq!(
            (
                &policy["minAvailable"]["minimum"],
                &policy["minAvailable"]["maximum"]
            ),
            (&0.0.into(), &100.0.into())
        );
        assert_eq!(
            policy["unknownPolicy"]["enum"],
            serde_json::json!(["Unknown", "Unhealthy", "Ignore"])
        );
        assert_eq!(spec["maintenance"]["properties"]["until"]["format"], "date-time");
        assert_eq!(
            spec["workloadRefs"]["items"]["required"],
            serde_json::json!(["kind", "name"])
        );
    }

    #[test]
    fn an_object_survives_a_round_trip() {
        let text = r#"{"apiVersion":"core.oam.dev/v1beta1","kind":"HealthScope","metadata":{"name":"shop"},"spec":{"workloadRefs":[{"kind":"Component","name":"web","required":true,"dependsOn":["db"]}],"policy":{"minAvailable":75,"unknownPolicy":"Ignore"}}}"#;
        let object: HealthScope = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
    }

    #[test]
    fn the_schema_for_explanations_has_the_whole_object() {
        let schema = serde_json::to_value(schema()).unwrap();
        assert!(schema["properties"]["spec"].is_object() && schema["properties"]["status"].is_object());
        assert_eq!(schema["title"], "HealthScope");
    }
}
