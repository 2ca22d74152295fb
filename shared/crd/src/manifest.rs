//! The CustomResourceDefinition: all versions of the API as an API server takes them.
//!
//! v1beta1 is what is stored. Its schema has every field of the older versions at the same place, and these keep
//! whatever they do not list, so that an object is the same object in every version: nothing is converted, nothing is
//! lost, and no program of ours stands between a user and their objects. What a schema made from Rust types does not
//! say is added here: limits, rules in CEL ([`rule`]), and how lists and objects are merged.

pub mod rule;

use {
    crate::{v1alpha1, v1alpha2, v1beta1},
    k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceConversion, CustomResourceDefinition,
    },
    kube::{CustomResourceExt, core::crd::merge_crds},
    serde_json::{Value, json},
};

/// Name of the CustomResourceDefinition.
pub const NAME: &str = "healthscopes.core.oam.dev";

/// The version that is stored.
const STORED: &str = "v1beta1";

/// Fields that Rudr wrote as null when they were absent. Everywhere else null is the same as absent: the API server
/// drops it.
const NULLABLE: [&str; 12] = [
    "spec.probeTimeout",
    "spec.probeInterval",
    "spec.failureRateThreshold",
    "spec.healthyRateThreshold",
    "spec.healthThresholdPercentage",
    "spec.health-threshold-percentage",
    "spec.requiredHealthyComponents",
    "spec.required-healthy-components",
    "status.components",
    "status.components[].instanceName",
    "status.components[].status",
    "status.lastAggregateTimestamp",
];

/// Objects of the status that one writer writes as a whole: one entry in `managedFields` instead of one for each field,
/// which is what a write costs.
const ATOMIC: [&str; 3] = [
    "status.summary",
    "status.maintenance",
    "status.scopeHealthCondition",
];

/// The CustomResourceDefinition of HealthScope in all its versions.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    // The others follow the stored one in the reverse order.
    let versions = vec![
        v1beta1::HealthScope::crd(),
        v1alpha1::HealthScope::crd(),
        v1alpha2::HealthScope::crd(),
    ];
    let mut crd = merge_crds(versions, STORED).expect("the versions have one group, kind and scope");
    crd.spec.conversion = Some(CustomResourceConversion {
        strategy: "None".into(),
        webhook: None,
    });
    for version in &mut crd.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .expect("every version has a schema");
        let mut value = serde_json::to_value(&*schema).expect("a schema is JSON");
        complete(&version.name, &mut value);
        *schema = serde_json::from_value(value).expect("what is added is a schema");
    }
    crd
}

fn complete(version: &str, schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut() {
        // A scope without a spec has an empty one.
        schema.remove("required");
    }
    normalise(schema);
    for path in NULLABLE {
        if let Some(field) = find(schema, path) {
            field["nullable"] = true.into();
        }
    }
    if let Some(conditions) = find(schema, "status.conditions") {
        conditions["x-kubernetes-list-type"] = "map".into();
        conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
        // As in OAM, whose conditions need no message.
        conditions["items"]["required"] = json!(["lastTransitionTime", "reason", "status", "type"]);
    }
    // Until somebody has said something about a scope, its columns say that nothing is known. In every version, because
    // an object that was stored as one of them gets its defaults.
    let unknown = json!({"health": "Unknown", "scopeHealthCondition": {"healthStatus": "UNKNOWN"}});
    for name in ["health", "scopeHealthCondition"] {
        field(schema, &format!("status.{name}"))["default"] = unknown[name].clone();
    }
    field(schema, "status")["default"] = unknown;
    if version != STORED {
        for part in ["spec", "status"] {
            keep_unknown(field(schema, part));
        }
        return;
    }
    for path in ATOMIC {
        field(schema, path)["x-kubernetes-map-type"] = "atomic".into();
    }
    rule::add(schema);
}

/// The schema at `path`: names with dots between them, `[]` after a list and `{}` after a map for what is in it.
fn find<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut at = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let name = step.trim_end_matches(['[', ']', '{', '}']);
        at = at.get_mut("properties")?.get_mut(name)?;
        match &step[name.len()..] {
            "" => {}
            "[]" => at = at.get_mut("items")?,
            "{}" => at = at.get_mut("additionalProperties")?,
            _ => return None,
        }
    }
    Some(at)
}

/// As [`find`], where the field is known to be there.
fn field<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    find(schema, path).unwrap_or_else(|| panic!("the schema has no {path}"))
}

/// Takes away what Rust's types say and API servers do not know or do not need.
fn normalise(schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("nullable");
        // Of reading in Rust; a default of the API server is written by hand.
        schema.remove("default");
        if schema.get("format").is_some_and(|format| format == "uint32") {
            schema.insert("format".into(), "int64".into());
        }
    }
    each_below(schema, normalise);
}

/// Every object keeps the fields that it does not list: the API server forgets a parent's word at each listed child.
fn keep_unknown(schema: &mut Value) {
    if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
        schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    each_below(schema, keep_unknown);
}

fn each_below(schema: &mut Value, act: fn(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for below in properties.values_mut() {
            act(below);
        }
    }
    for word in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(word).filter(|below| below.is_object()) {
            act(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions() -> Vec<Value> {
        let crd = serde_json::to_value(crd()).unwrap();
        assert_eq!(crd["metadata"]["name"], NAME);
        crd["spec"]["versions"].as_array().unwrap().clone()
    }

    fn schema(version: &Value) -> Value {
        version["schema"]["openAPIV3Schema"].clone()
    }

    /// All schemas with their paths, the root's empty.
    fn walk(schema: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
        see(path, schema);
        for (name, below) in schema["properties"].as_object().into_iter().flatten() {
            let dot = if path.is_empty() { "" } else { "." };
            walk(below, &format!("{path}{dot}{name}"), see);
        }
        for (word, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
            if let Some(below) = schema.get(word) {
                walk(below, &format!("{path}{mark}"), see);
            }
        }
    }

    #[test]
    fn versions_are_served_and_one_is_stored() {
        let found: Vec<(String, bool, bool, bool)> = versions()
            .iter()
            .map(|version| {
                (
                    version["name"].as_str().unwrap().to_owned(),
                    version["served"] == true,
                    version["storage"] == true,
                    version["deprecated"] == true,
                )
            })
            .collect();
        let expected = [
            ("v1beta1".to_owned(), true, true, false),
            ("v1alpha2".to_owned(), true, false, true),
            ("v1alpha1".to_owned(), true, false, true),
        ];
        assert_eq!(found, expected);
        for version in versions() {
            assert_eq!(version["subresources"]["status"], json!({}));
            let selectable = version["selectableFields"].is_array();
            assert_eq!(selectable, version["name"] == STORED);
        }
    }

    #[test]
    fn every_field_of_the_older_versions_is_in_the_stored_one_with_its_type() {
        let versions = versions();
        let mut stored = schema(&versions[0]);
        for version in &versions[1..] {
            walk(&schema(version), "", &mut |path, older| {
                let found = find(&mut stored, path).unwrap_or_else(|| panic!("{path} is missing"));
                for word in ["type", "format", "nullable"] {
                    assert_eq!(found.get(word), older.get(word), "{word} of {path}");
                }
                // What the stored version requires, the older ones do too.
                for required in found["required"].as_array().into_iter().flatten() {
                    let is_required = older["required"]
                        .as_array()
                        .is_some_and(|older| older.contains(required));
                    assert!(is_required, "{path}.{required}");
                }
            });
        }
    }

    #[test]
    fn every_field_is_described() {
        for version in versions() {
            walk(&schema(&version), "", &mut |path, schema| {
                let is_field = !path.ends_with("[]") && !path.ends_with("{}");
                let description = schema["description"].as_str().unwrap_or_default();
                assert!(
                    !is_field || !description.is_empty(),
                    "{} of {}",
                    path,
                    version["name"]
                );
                assert!(!description.contains("[`"), "{path}: {description}");
            });
        }
    }

    #[test]
    fn older_versions_keep_what_they_do_not_list() {
        for version in &versions()[1..] {
            walk(&schema(version), "", &mut |path, schema| {
                let is_ours = path.starts_with("spec") || path.starts_with("status");
                if is_ours && schema["type"] == "object" && schema.get("additionalProperties").is_none() {
                    assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path}");
                }
            });
        }
    }

    #[test]
    fn older_versions_require_what_they_always_did() {
        let versions = versions();
        let required = |version: usize, path: &str| {
            let mut schema = schema(&versions[version]);
            field(&mut schema, path)["required"].clone()
        };
        assert_eq!(required(0, "spec"), Value::Null);
        assert_eq!(required(1, "spec"), json!(["workloadRefs"]));
        assert_eq!(
            required(1, "spec.workloadRefs[]"),
            json!(["apiVersion", "kind", "name"])
        );
        assert_eq!(required(1, "status"), json!(["scopeHealthCondition"]));
        assert_eq!(
            required(1, "status.scopeHealthCondition"),
            json!(["healthStatus"])
        );
        assert_eq!(required(1, "status.healthConditions[]"), json!(["healthStatus"]));
        assert_eq!(required(2, "spec"), json!(["probeEndpoint", "probeMethod"]));
    }

    #[test]
    fn only_what_nobody_has_said_yet_has_a_default() {
        let mut found = Vec::new();
        for version in versions() {
            walk(&schema(&version), "", &mut |path, schema| {
                if schema.get("default").is_some() {
                    found.push(path.to_owned());
                }
            });
            let expected = ["status", "status.health", "status.scopeHealthCondition"];
            assert_eq!(std::mem::take(&mut found), expected);
        }
    }

    #[test]
    fn deprecated_versions_say_what_to_do() {
        for version in &versions()[1..] {
            let warning = version["deprecationWarning"].as_str().unwrap();
            assert!(warning.len() <= 256 && warning.contains("write apiVersion: core.oam.dev/v1beta1"));
        }
    }
}
