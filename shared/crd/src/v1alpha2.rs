//! `core.oam.dev/v1alpha2` `HealthScope`: OAM's fields, as oam-kubernetes-runtime and KubeVela had them.
//!
//! The same objects as [`crate::v1beta1`]'s under another version: nothing is converted, so all of these fields are in
//! v1beta1 too, at the same places. What is here says which of them this version lists, requires and prints.

use {
    crate::v1beta1::Summary,
    healthscope_shared::health::Health,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
    kube::CustomResource,
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
};

/// Group and version, as in `apiVersion`.
pub const API_VERSION: &str = "core.oam.dev/v1alpha2";

/// What belongs to the scope, as in OAM.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "core.oam.dev",
    version = "v1alpha2",
    kind = "HealthScope",
    plural = "healthscopes",
    singular = "healthscope",
    shortname = "health",
    category = "oam",
    namespaced,
    status = "HealthScopeStatus",
    derive = "PartialEq",
    storage = false,
    deprecated = "core.oam.dev/v1alpha2 HealthScope is deprecated: write apiVersion: core.oam.dev/v1beta1 instead; every field may stay as it is",
    doc = "A named set of workloads and the health that they add up to, as in OAM. Deprecated: v1beta1 has all fields of this version and more.",
    printcolumn = r#"{"name":"HEALTH","type":"string","jsonPath":".status.scopeHealthCondition.healthStatus","description":"HEALTHY, UNHEALTHY or UNKNOWN."}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct HealthScopeSpec {
    /// Seconds that a check may take. Accepted and kept; it has no effect, because nothing is polled.
    #[serde(rename = "probe-timeout", default, skip_serializing_if = "Option::is_none")]
    pub probe_timeout: Option<i32>,
    /// Seconds between two checks. Accepted and kept; it has no effect, because changes are seen when they happen.
    #[serde(rename = "probe-interval", default, skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<i32>,
    /// Members by name, in the scope's own namespace. May be empty.
    pub workload_refs: Vec<WorkloadReference>,
    /// Members by the application that they belong to, as KubeVela writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub app_references: Vec<AppReference>,
}

/// A workload by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadReference {
    /// Group and version, such as `apps/v1`.
    pub api_version: String,
    /// Kind, such as Deployment.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Unique id of the workload. Kept; it has no effect: a workload is known by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Namespace of the workload, which must be that of the scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Version of the workload that was referred to. Kept; it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Part of the workload that was referred to. Kept; it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
}

/// An application of KubeVela and those of its components that are members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AppReference {
    /// Name of the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// Its components.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub comp_references: Vec<ComponentReference>,
}

/// A component of an application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ComponentReference {
    /// Name of the component.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comp_name: Option<String>,
    /// Its workload, which is a member of the scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<ObjectReference>,
    /// Its traits. Kept; they are not members of the scope.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traits: Vec<ObjectReference>,
}

/// Any object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObjectReference {
    /// Group and version, such as `apps/v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Unique id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Version that was referred to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Part that was referred to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
}

/// What the scope's health is, in OAM's words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthScopeStatus {
    /// Health of the whole scope.
    pub scope_health_condition: ScopeHealthCondition,
    /// Health of the workloads, at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_conditions: Vec<WorkloadHealthCondition>,
    /// Health by application, as KubeVela wrote it. Kept; not written any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub app_health_conditions: Vec<AppHealthCondition>,
    /// Ready, Healthy, Available and Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Healthy, Degraded, Unhealthy or Unknown; from v1beta1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
}

/// OAM's words for health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(with = "String")]
pub enum HealthStatus {
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
    /// Nothing is known. Words that nobody knows are read as this one.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What OAM's word is for our health of a scope that nobody uses as OAM's; OAM's own, stricter rule is not this one.
impl From<Health> for HealthStatus {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy | Health::Degraded => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
            Health::Unknown => Self::Unknown,
        }
    }
}

/// Health of a whole scope in OAM's words. Numbers of zero are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeHealthCondition {
    /// HEALTHY, UNHEALTHY or UNKNOWN.
    pub health_status: HealthStatus,
    /// Workloads in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(with = "i64")]
    pub total: u32,
    /// Workloads that are HEALTHY.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(with = "i64")]
    pub healthy_workloads: u32,
    /// Workloads that are UNHEALTHY.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(with = "i64")]
    pub unhealthy_workloads: u32,
    /// Workloads that are UNKNOWN.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(with = "i64")]
    pub unknown_workloads: u32,
}

impl ScopeHealthCondition {
    /// Our own verdict in OAM's words.
    #[must_use]
    pub fn of(health: Health, summary: &Summary) -> Self {
        Self {
            health_status: health.into(),
            total: summary.total,
            healthy_workloads: summary.available(),
            unhealthy_workloads: summary.unhealthy,
            unknown_workloads: summary.unknown,
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Health of one workload in OAM's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadHealthCondition {
    /// Name of the component that the workload belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component_name: Option<String>,
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_workload: Option<ObjectReference>,
    /// HEALTHY, UNHEALTHY or UNKNOWN.
    pub health_status: HealthStatus,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<String>,
    /// The status of a workload of a kind that has no rule, as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_status: Option<String>,
    /// What KubeVela's rule for the component said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_status_msg: Option<String>,
    /// Health of the component's traits, as KubeVela wrote it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traits: Vec<TraitHealthCondition>,
}

/// Health of one trait, as KubeVela wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraitHealthCondition {
    /// Type of the trait.
    #[serde(rename = "type")]
    pub type_: String,
    /// Name of the trait's object.
    pub resource: String,
    /// HEALTHY, UNHEALTHY or UNKNOWN.
    pub health_status: HealthStatus,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<String>,
    /// What KubeVela's rule for the trait said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_status_msg: Option<String>,
}

/// Health of one application, as KubeVela wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppHealthCondition {
    /// Name of the application.
    pub app_name: String,
    /// Name of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_name: Option<String>,
    /// Health of its components.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<WorkloadHealthCondition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_verdict_is_told_in_the_words_of_oam() {
        #[track_caller]
        fn check(health: Health, expected: &str) {
            let summary = Summary {
                total: 3,
                healthy: 1,
                degraded: 1,
                unhealthy: 0,
                unknown: 1,
            };
            let found = serde_json::to_value(ScopeHealthCondition::of(health, &summary)).unwrap();
            let expected = serde_json::json!({
                "healthStatus": expected, "total": 3, "healthyWorkloads": 2, "unknownWorkloads": 1,
            });
            assert_eq!(found, expected);
        }
        check(Health::Healthy, "HEALTHY");
        check(Health::Degraded, "HEALTHY");
        check(Health::Unhealthy, "UNHEALTHY");
        check(Health::Unknown, "UNKNOWN");
    }

    #[test]
    fn words_of_other_versions_are_unknown() {
        for (word, expected) in [
            ("HEALTHY", HealthStatus::Healthy),
            ("UNHEALTHY", HealthStatus::Unhealthy),
            ("UNKNOWN", HealthStatus::Unknown),
            ("healthy", HealthStatus::Unknown),
            ("", HealthStatus::Unknown),
        ] {
            let found: HealthStatus = serde_json::from_value(word.into()).unwrap();
            assert_eq!(found, expected, "{word:?}");
        }
    }
}
