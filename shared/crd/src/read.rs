//! Reading a HealthScope that an API server has sent.
//!
//! A file must be exact, because whoever wrote it is there to hear of a misspelt field. An object from an API server
//! may be newer than this program, or hold what an older version of the API let through: unknown fields are ignored
//! here, null is the same as absent, and what cannot be read at all still says whose it is, so that one bad object
//! is shown as such and hides none of the others.

use {
    crate::{
        HealthScope, manifest,
        v1beta1::{HealthScopeSpec, HealthScopeStatus},
    },
    healthscope_shared::{
        one_line,
        probe::fields::{Errors, FieldError},
    },
    k8s_openapi::{
        apiextensions_apiserver::pkg::apis::apiextensions::v1::{
            JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    serde_json::{Map, Value},
    std::{collections::BTreeMap, sync::LazyLock},
};

/// Longest explanation, as in a condition.
const MAX_MESSAGE_BYTES: usize = crate::condition::MAX_MESSAGE_BYTES;

/// Where the fields are that people write.
const ROOT: &str = "spec";

/// An object whose spec cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct Unreadable {
    /// Whose spec it is.
    pub metadata: ObjectMeta,
    /// Its last status, where that can be read.
    pub status: Option<HealthScopeStatus>,
    /// The field that cannot be read, and why.
    pub error: FieldError,
}

/// Reads a HealthScope in any of its versions.
///
/// A status that cannot be read is left out: it is ours to write, and is written anew.
///
/// # Errors
/// When the spec cannot be read; with everything that can.
pub fn read(object: Value) -> Result<HealthScope, Box<Unreadable>> {
    let mut fields = match object {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    };
    let mut take = |name: &str| fields.remove(name).unwrap_or(Value::Null);
    let metadata = metadata(take("metadata"));
    let status = status(take("status"));
    let mut spec = match take("spec") {
        Value::Null => Value::Object(Map::new()),
        spec => spec,
    };
    let mut found = Vec::new();
    SPEC.prune(&mut spec, &mut Errors::new(ROOT, &mut found));
    let decoded = match found.into_iter().next() {
        Some(error) => Err(error),
        None => decode(spec),
    };
    match decoded {
        Ok(spec) => Ok(HealthScope {
            metadata,
            spec,
            status,
        }),
        Err(error) => Err(Box::new(Unreadable {
            metadata,
            status,
            error,
        })),
    }
}

/// An API server's metadata can always be read; of anything else, what it is called.
fn metadata(value: Value) -> ObjectMeta {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let least = ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    };
    serde_json::from_value(value).unwrap_or(least)
}

fn status(mut value: Value) -> Option<HealthScopeStatus> {
    drop_nulls(&mut value);
    serde_json::from_value(value).ok()
}

fn decode(spec: Value) -> Result<HealthScopeSpec, FieldError> {
    serde_path_to_error::deserialize(spec).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." {
            ROOT.to_owned()
        } else {
            format!("{ROOT}.{path}")
        };
        FieldError {
            path,
            message: in_words(&error.into_inner().to_string()),
        }
    })
}

/// serde's words for types, as a user of YAML would say them.
fn in_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once("expected ") else {
        return one_line(message, MAX_MESSAGE_BYTES);
    };
    let expected = match expected {
        "i32" | "i64" | "u32" | "u64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other if other.starts_with("struct ") => "a mapping",
        other => other,
    };
    one_line(&format!("{found}expected {expected}"), MAX_MESSAGE_BYTES)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Which fields there are, so that others can be dropped before types see them that refuse them.
#[derive(Debug, Default)]
struct Shape {
    /// Fields of an object; none where any may be.
    fields: BTreeMap<String, Shape>,
    /// What is in a list or a map.
    items: Option<Box<Shape>>,
}

/// The spec's, from the schema that API servers have: the two cannot differ.
static SPEC: LazyLock<Shape> = LazyLock::new(|| {
    manifest::crd()
        .spec
        .versions
        .first()
        .and_then(|stored| {
            stored
                .schema
                .as_ref()?
                .open_api_v3_schema
                .as_ref()?
                .properties
                .as_ref()?
                .get("spec")
        })
        .map(Shape::of)
        .unwrap_or_default()
});

impl Shape {
    fn of(schema: &JSONSchemaProps) -> Self {
        let fields = schema.properties.iter().flatten();
        let list = schema.items.as_ref().and_then(|items| match items {
            JSONSchemaPropsOrArray::Schema(items) => Some(items),
            JSONSchemaPropsOrArray::Schemas(_) => None,
        });
        let map = schema
            .additional_properties
            .as_ref()
            .and_then(|items| match items {
                JSONSchemaPropsOrBool::Schema(items) => Some(items),
                JSONSchemaPropsOrBool::Bool(_) => None,
            });
        Self {
            fields: fields
                .map(|(name, schema)| (name.clone(), Self::of(schema)))
                .collect(),
            items: list.or(map).map(|items| Box::new(Self::of(items))),
        }
    }

    /// Drops what has no place here. A list where fields are expected is an error: serde would take it for their
    /// values in order.
    fn prune(&self, value: &mut Value, errors: &mut Errors<'_>) {
        match value {
            Value::Object(fields) => {
                let is_known = |name: &String| self.fields.is_empty() || self.fields.contains_key(name);
                fields.retain(|name, value| !value.is_null() && is_known(name));
                for (name, value) in fields {
                    let shape = self.fields.get(name).or(self.items.as_deref());
                    match (shape, value) {
                        (None, _) => {}
                        (
                            Some(Self {
                                items: Some(items), ..
                            }),
                            Value::Array(values),
                        ) => {
                            for (index, value) in values.iter_mut().enumerate() {
                                items.prune(value, &mut errors.index(name, index));
                            }
                        }
                        (Some(shape), value) => shape.prune(value, &mut errors.at(name)),
                    }
                }
            }
            Value::Array(_) if !self.fields.is_empty() => {
                errors.push("invalid type: sequence, expected a mapping");
            }
            Value::Array(_) => {}
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_shared::health::Health, serde_json::json};

    #[expect(clippy::needless_pass_by_value, reason = "json!() is written in place")]
    fn object(spec: Value) -> Value {
        json!({"apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
               "metadata": {"name": "shop", "namespace": "prod", "uid": "u", "generation": 3}, "spec": spec})
    }

    #[test]
    fn what_a_newer_version_adds_is_ignored() {
        let spec = json!({
            "future": {"a": [1]},
            "workloadRefs": [{"kind": "Component", "name": "web", "weight": 3, "required": true}],
            "selector": {"matchLabels": {"any": "key"}, "matchFields": []},
            "policy": {"minAvailable": 75, "maxFlaps": 3},
            "requiredHealthyComponents": ["web"],
        });
        let scope = read(object(spec)).unwrap();
        assert_eq!(scope.spec.workload_refs[0].name, "web");
        assert!(scope.spec.workload_refs[0].required);
        assert_eq!(scope.spec.selector.unwrap().match_labels["any"], "key");
        assert_eq!(scope.spec.policy.unwrap().min_available, Some(75));
        assert_eq!(scope.spec.required_healthy_components.unwrap().iter().count(), 1);
        assert_eq!(scope.metadata.generation, Some(3));
    }

    #[test]
    fn null_is_absent() {
        let spec = json!({"workloadRefs": null, "selector": null, "probeTimeout": null, "policy": {"minAvailable": null}});
        let scope = read(object(spec)).unwrap();
        assert!(scope.spec.workload_refs.is_empty() && scope.spec.selector.is_none());
        let mut without = object(json!(null));
        without["status"] = json!({"components": null, "lastAggregateTimestamp": null});
        assert_eq!(read(without).unwrap().status, Some(HealthScopeStatus::default()));
    }

    #[test]
    fn what_cannot_be_read_says_whose_it_is_and_why() {
        #[track_caller]
        fn check(spec: Value, expected: &str) {
            let mut object = object(spec);
            object["status"] = json!({"health": "Degraded"});
            let unreadable = read(object).unwrap_err();
            assert_eq!(unreadable.to_string(), expected);
            assert_eq!(unreadable.metadata.name.as_deref(), Some("shop"));
            assert_eq!(unreadable.metadata.namespace.as_deref(), Some("prod"));
            assert_eq!(unreadable.status.unwrap().health, Some(Health::Degraded));
        }
        check(
            json!({"selector": 5}),
            "spec.selector: invalid type: integer `5`, expected a mapping",
        );
        check(
            json!({"workloadRefs": [["Component"]]}),
            "spec.workloadRefs[0]: invalid type: sequence, expected a mapping",
        );
        check(
            json!({"policy": [75]}),
            "spec.policy: invalid type: sequence, expected a mapping",
        );
        check(json!([]), "spec: invalid type: sequence, expected a mapping");
        check(
            json!({"workloadRefs": [{"kind": "Component", "name": "a"}, {"kind": "Component"}]}),
            "spec.workloadRefs[1]: missing field `name`",
        );
        check(
            json!({"policy": {"minAvailable": "75"}}),
            "spec.policy.minAvailable: invalid type: string \"75\", expected a whole number",
        );
        check(
            json!({"policy": {"unknownPolicy": "Panic"}}),
            "spec.policy.unknownPolicy: unknown variant `Panic`, expected one of `Unknown`, `Unhealthy`, `Ignore`",
        );
        check(
            json!({"requiredHealthyComponents": 5}),
            "spec.requiredHealthyComponents: invalid type: integer `5`, expected names as a list, or separated by commas",
        );
    }

    #[test]
    fn a_status_of_rudr_or_oam_can_be_read() {
        let mut rudr = object(json!({}));
        rudr["status"] = json!({
            "components": [{"name": "web", "instanceName": "web-1", "status": "healthy"},
                           {"name": "db", "instanceName": "db-1", "status": null}],
            "lastAggregateTimestamp": "2020-05-01T10:00:00.123456789+00:00",
        });
        let status = read(rudr).unwrap().status.unwrap();
        assert_eq!(status.components[0].status.as_deref(), Some("healthy"));
        assert_eq!(status.components[1].instance_name.as_deref(), Some("db-1"));
        assert!(status.last_aggregate_timestamp.is_some());
        let mut oam = object(json!({}));
        oam["status"] = json!({
            "scopeHealthCondition": {"healthStatus": "UNHEALTHY", "total": 1, "unknownWorkloads": 1},
            "healthConditions": [{"healthStatus": "UNKNOWN", "diagnosis": "d", "workloadStatus": "null",
                                  "targetWorkload": {"apiVersion": "v1", "kind": "X", "name": "x"}}],
            "appHealthConditions": [{"appName": "shop", "components": [{"healthStatus": "HEALTHY",
                "traits": [{"type": "t", "resource": "r", "healthStatus": "HEALTHY"}]}]}],
        });
        let expected = oam["status"].clone();
        let status = read(oam).unwrap().status.unwrap();
        assert_eq!(serde_json::to_value(status).unwrap(), expected);
        let mut first = object(json!({}));
        first["status"] = json!({"health": "healthy"});
        assert_eq!(read(first).unwrap().status, None);
    }

    #[test]
    fn anything_can_be_tried() {
        for value in [
            json!(null),
            json!(5),
            json!([]),
            json!("x"),
            json!({"metadata": 5, "spec": {}}),
        ] {
            let scope = read(value).unwrap();
            assert_eq!(scope.metadata.name, None);
        }
    }
}
