//! A pod as JSON: looking at it without losing what is not known here.
//!
//! Newer fields of Kubernetes must survive, so a pod is never turned into a typed object and back. [`check`] is asked
//! once; what it let through can be looked at leniently afterwards: what is absent or of another type is simply not there.

use {
    super::skip::SkipReason,
    healthscope_shared::name::ContainerName,
    serde_json::{Map, Value},
    std::collections::BTreeSet,
};

/// Most containers looked at; the API server's limit of 1.5 MiB for an object is reached long before.
const MAX_CONTAINERS: usize = 5_000;

/// Whether `pod` has the parts that everything else here relies on.
pub(super) fn check(pod: &Value) -> Result<(), SkipReason> {
    let refuse = |problem: &str| {
        Err(SkipReason::NotAPod {
            problem: problem.to_owned(),
        })
    };
    let absent_or_object = |value: &Value| value.is_null() || value.is_object();
    if !pod.is_object() {
        return refuse("it is no object");
    }
    if !pod["spec"].is_object() {
        return refuse("spec is no object");
    }
    if !absent_or_object(&pod["metadata"]) {
        return refuse("metadata is no object");
    }
    if !absent_or_object(&pod["metadata"]["annotations"]) || !absent_or_object(&pod["metadata"]["labels"]) {
        return refuse("labels or annotations are no object");
    }
    for field in ["initContainers", "volumes"] {
        let list = &pod["spec"][field];
        let is_list_of_objects = list
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_object));
        if !list.is_null() && !is_list_of_objects {
            return refuse(&format!("spec.{field} is no list of objects"));
        }
    }
    let Some(containers) = pod["spec"]["containers"]
        .as_array()
        .filter(|list| !list.is_empty())
    else {
        return refuse("spec.containers is no list, or an empty one");
    };
    if containers.len() > MAX_CONTAINERS {
        return refuse(&format!("it has more than {MAX_CONTAINERS} containers"));
    }
    let mut names = BTreeSet::new();
    for container in containers {
        let name = name(container);
        if ContainerName::new(name).is_err() || !names.insert(name) {
            return refuse("a container has no name, a wrong one, or that of another");
        }
        let mounts = &container["volumeMounts"];
        if !(mounts.is_null() || mounts.is_array()) || !absent_or_object(&container["lifecycle"]) {
            return refuse("a container's volumeMounts or lifecycle have another type");
        }
    }
    Ok(())
}

/// The name of a container, a volume, a mount; empty where there is none.
pub(super) fn name(object: &Value) -> &str {
    object["name"].as_str().unwrap_or_default()
}

/// A list of the pod's spec; empty where there is none.
pub(super) fn list<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    items(&pod["spec"][field])
}

/// A list; empty where there is none.
pub(super) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The names of the application's containers, in order.
pub(super) fn container_names(pod: &Value) -> Vec<&str> {
    list(pod, "containers").iter().map(name).collect()
}

/// A label or an annotation of the pod.
pub(super) fn metadata<'a>(pod: &'a Value, field: &str, key: &str) -> Option<&'a str> {
    pod["metadata"][field][key].as_str()
}

/// A command: all of the list's texts, or nothing when it is no list of texts.
pub(super) fn words(list: &Value) -> Option<Vec<String>> {
    list.as_array()?
        .iter()
        .map(|word| word.as_str().map(ToOwned::to_owned))
        .collect()
}

/// The object at `field`, made where there is none.
pub(super) fn object_mut<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one just now")
}

/// The list at `field`, made where there is none.
pub(super) fn list_mut<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = object.entry(field).or_insert_with(|| Value::Array(Vec::new()));
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one just now")
}

/// Leaves the elements that `keep` wants, and takes the list away when none is left.
pub(super) fn retain(object: &mut Map<String, Value>, field: &str, keep: impl Fn(&Value) -> bool) {
    let Some(list) = object.get_mut(field).and_then(Value::as_array_mut) else {
        return;
    };
    let before = list.len();
    list.retain(keep);
    if list.is_empty() && before > 0 {
        object.remove(field);
    }
}
