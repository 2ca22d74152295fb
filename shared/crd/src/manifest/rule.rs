//! What the API server refuses, and in which words: limits, and rules in CEL, of the stored version.
//!
//! What [`effective`](crate::effective::effective) refuses and an API server can see is refused here already. The older versions have none of
//! this, so that their objects are accepted as they stand. An API server adds up what every rule could cost at most and
//! refuses a schema that is too dear: that is why lists and texts have limits wherever a rule looks at them, and why
//! nothing here looks into `dependsOn`.

use {
    super::field,
    crate::effective::{MAX_DEPENDENCIES, MAX_REFS},
    serde_json::{Value, json},
};

/// A rule in CEL about one part of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What `self` is: names with dots between them, `[]` after a list and `{}` after a map for what is in it.
    pub at: &'static str,
    /// Holds for what is accepted.
    pub rule: &'static str,
    /// Says what to do.
    pub message: &'static str,
    /// The field below `at` that is to blame, where it is not `at` itself.
    pub field_path: Option<&'static str>,
}

const MAX_NAME: usize = 253;
const MAX_KIND: usize = 63;
/// A group, a slash and a version.
const MAX_API_VERSION: usize = MAX_NAME + 1 + MAX_KIND;
/// Of a label: a domain, a slash and a name.
const MAX_LABEL_KEY: usize = MAX_NAME + 1 + MAX_KIND;
const MAX_LABEL_VALUE: usize = 63;
/// Kubernetes knows no limit; nobody selects by more.
const MAX_LABELS: usize = 100;
/// Longest time stamp, with nanoseconds and offset, and some room.
const MAX_TIME: usize = 64;

/// Limits by keyword of the schema.
const LIMITS: [(&str, &str, usize); 14] = [
    ("spec.workloadRefs", "maxItems", MAX_REFS),
    ("spec.workloadRefs[].apiVersion", "maxLength", MAX_API_VERSION),
    ("spec.workloadRefs[].kind", "maxLength", MAX_KIND),
    ("spec.workloadRefs[].name", "maxLength", MAX_NAME),
    ("spec.workloadRefs[].dependsOn", "maxItems", MAX_DEPENDENCIES),
    (
        "spec.workloadRefs[].dependsOn[]",
        "maxLength",
        MAX_KIND + 1 + MAX_NAME,
    ),
    ("spec.workloadRefs[].healthyWhen", "minLength", 1),
    ("spec.selector.matchLabels", "maxProperties", MAX_LABELS),
    ("spec.selector.matchLabels{}", "maxLength", MAX_LABEL_VALUE),
    ("spec.selector.matchExpressions", "maxItems", MAX_LABELS),
    ("spec.selector.matchExpressions[].key", "maxLength", MAX_LABEL_KEY),
    ("spec.selector.matchExpressions[].values", "maxItems", MAX_LABELS),
    (
        "spec.selector.matchExpressions[].values[]",
        "maxLength",
        MAX_LABEL_VALUE,
    ),
    ("spec.maintenance.until", "maxLength", MAX_TIME),
];

const NAMES_ITSELF: &str = "a scope cannot be a member of itself: remove it from workloadRefs";

/// Every rule.
pub const RULES: &[Rule] = &[
    Rule {
        at: "",
        rule: "oldSelf.hasValue() || !has(self.spec) || !has(self.spec.workloadRefs) || \
               !self.spec.workloadRefs.exists(r, r.kind == 'HealthScope' && r.name == self.metadata.name && \
               (!has(r.apiVersion) || r.apiVersion.startsWith('core.oam.dev/')))",
        message: NAMES_ITSELF,
        field_path: Some(".spec.workloadRefs"),
    },
    // What an old version let through stays writable, or nobody could say in its status what is wrong with it. Two rules,
    // because what is behind an optional has no size that an API server knows, and counts as too dear.
    Rule {
        at: "",
        rule: "!has(self.spec) || !has(self.spec.workloadRefs) || !self.spec.workloadRefs.exists(r, r.kind == 'HealthScope' && \
               r.name == self.metadata.name && (!has(r.apiVersion) || r.apiVersion.startsWith('core.oam.dev/'))) || \
               has(oldSelf.spec) && has(oldSelf.spec.workloadRefs) && oldSelf.spec.workloadRefs.exists(r, \
               r.kind == 'HealthScope' && r.name == self.metadata.name && \
               (!has(r.apiVersion) || r.apiVersion.startsWith('core.oam.dev/')))",
        message: NAMES_ITSELF,
        field_path: Some(".spec.workloadRefs"),
    },
    Rule {
        at: "spec",
        rule: "!has(self.policy) || !has(self.policy.minAvailable) || \
               !(has(self.healthThresholdPercentage) || has(self.health__dash__threshold__dash__percentage) || \
               has(self.healthyRateThreshold) || has(self.failureRateThreshold)) || \
               [[has(self.healthThresholdPercentage) ? self.healthThresholdPercentage : 0.0, \
               has(self.health__dash__threshold__dash__percentage) ? self.health__dash__threshold__dash__percentage : 0.0, \
               has(self.healthyRateThreshold) ? self.healthyRateThreshold : 0.0, \
               has(self.failureRateThreshold) ? 100.0 - self.failureRateThreshold : 0.0].max()]\
               .all(wanted, wanted <= double(self.policy.minAvailable) && wanted > double(self.policy.minAvailable) - 1.0)",
        message: "policy.minAvailable contradicts healthThresholdPercentage, healthyRateThreshold or \
                  failureRateThreshold: remove these",
        field_path: Some(".policy"),
    },
    Rule {
        at: "spec.workloadRefs[].kind",
        rule: "self.matches('^[A-Z][A-Za-z0-9]*$')",
        message: "write the kind as manifests do, such as Deployment",
        field_path: None,
    },
    Rule {
        at: "spec.workloadRefs[].name",
        rule: "self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
        message: "write the name of an object: lower-case letters, digits, '-' and '.', starting and ending with a \
                  letter or digit",
        field_path: None,
    },
    Rule {
        at: "spec.workloadRefs[].apiVersion",
        rule: "self.matches('^([^/]+/)?[a-z][-a-z0-9]*$')",
        message: "write group/version such as apps/v1, or v1",
        field_path: None,
    },
    Rule {
        at: "spec.workloadRefs[]",
        rule: "self.kind in ['Component', 'HealthScope'] || has(self.apiVersion) && self.apiVersion != ''",
        message: "the apiVersion of this kind is needed, such as apps/v1 for a Deployment: kubectl api-resources \
                  lists them",
        field_path: None,
    },
    Rule {
        at: "spec.workloadRefs[]",
        rule: "!has(self.healthyWhen) || !(self.kind in ['Component', 'HealthScope']) || has(self.apiVersion) && \
               self.apiVersion != '' && !self.apiVersion.startsWith('healthscope.core.oam.dev/') && \
               !self.apiVersion.startsWith('core.oam.dev/')",
        message: "healthyWhen is for Kubernetes objects: remove it, for the health of a Component is what its probes \
                  say and that of a HealthScope what its members say",
        field_path: Some(".healthyWhen"),
    },
    Rule {
        at: "spec.selector.matchLabels",
        rule: "self.all(key, key.matches('^([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$'))",
        message: "write the key of each label as name or domain/name",
        field_path: None,
    },
    Rule {
        at: "spec.selector.matchLabels{}",
        rule: "self.matches('^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$')",
        message: "write the value of a label: at most 63 letters, digits, '-', '_' and '.', starting and ending with \
                  a letter or digit",
        field_path: None,
    },
    Rule {
        at: "spec.selector.matchExpressions[].key",
        rule: "self.matches('^([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$')",
        message: "write the key of a label as name or domain/name",
        field_path: None,
    },
    Rule {
        at: "spec.selector.matchExpressions[].values[]",
        rule: "self.matches('^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$')",
        message: "write the value of a label: at most 63 letters, digits, '-', '_' and '.', starting and ending with \
                  a letter or digit",
        field_path: None,
    },
    Rule {
        at: "spec.selector.matchExpressions[]",
        rule: "!(self.operator in ['In', 'NotIn']) || has(self.values) && size(self.values) > 0",
        message: "In and NotIn need at least one value: add values",
        field_path: Some(".operator"),
    },
    Rule {
        at: "spec.selector.matchExpressions[]",
        rule: "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",
        message: "Exists and DoesNotExist take no values: remove them, or write In or NotIn",
        field_path: Some(".operator"),
    },
    Rule {
        at: "spec.maintenance.until",
        rule: "self.matches('^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:\
               [0-5][0-9]([.][0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$')",
        message: "write a time with its offset, such as 2026-12-01T06:00:00Z",
        field_path: None,
    },
];

/// Adds limits and rules to the schema of the stored version.
pub(super) fn add(schema: &mut Value) {
    for (path, word, limit) in LIMITS {
        field(schema, path)[word] = limit.into();
    }
    // A format would make it a time to CEL, which takes more forms than RFC 3339 and no message of ours.
    if let Some(until) = field(schema, "spec.maintenance.until").as_object_mut() {
        until.remove("format");
    }
    for Rule {
        at,
        rule,
        message,
        field_path,
    } in RULES
    {
        let mut written = json!({"rule": rule, "message": message});
        if rule.contains("oldSelf.hasValue()") {
            // Judged of a new object too, which has no former self.
            written["optionalOldSelf"] = true.into();
        }
        if let Some(field_path) = field_path {
            written["fieldPath"] = (*field_path).into();
        }
        let schema = field(schema, at);
        match schema["x-kubernetes-validations"].as_array_mut() {
            Some(rules) => rules.push(written),
            None => schema["x-kubernetes-validations"] = json!([written]),
        }
    }
}
