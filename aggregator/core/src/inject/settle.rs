//! Leaving things where an earlier call put them, and as the API server completed them since.
//!
//! Between two calls of the webhook defaults are filled in and others insert before and after us. A second answer that
//! only moved our parts back, or took defaults away again, would be noise at best, and at worst a quarrel.

use {
    super::{
        resources::Resources,
        shape,
        sidecar::{AGENT, RUNNER_VOLUME, TOKEN_VOLUME},
    },
    serde_json::{Map, Value},
    std::collections::BTreeMap,
};

/// Takes over from `before` what of ours is there already and still right, and the order in which it stands.
pub(super) fn settle(before: &Value, after: &mut Value) {
    let Some(spec) = after["spec"].as_object_mut() else {
        return;
    };
    let before = &before["spec"];
    list(&before["initContainers"], spec, "initContainers", |name| {
        name == AGENT
    });
    list(&before["volumes"], spec, "volumes", |name| {
        matches!(name, RUNNER_VOLUME | TOKEN_VOLUME)
    });
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    for (before, container) in shape::items(&before["containers"])
        .iter()
        .zip(containers.into_iter().flatten())
    {
        let Some(container) = container.as_object_mut() else {
            continue;
        };
        if shape::name(before) != container.get("name").and_then(Value::as_str).unwrap_or_default() {
            continue;
        }
        list(&before["volumeMounts"], container, "volumeMounts", |name| {
            name == RUNNER_VOLUME
        });
        // The one probe that may be wholly ours, and so have defaults now.
        let slot = "livenessProbe";
        if let Some(made) = container.get_mut(slot)
            && covers(&before[slot], made)
        {
            *made = before[slot].clone();
        }
    }
}

/// The same for a list of things with names: those of ours that are covered stay, and where the same things are in it,
/// they stay in their order.
fn list(before: &Value, after: &mut Map<String, Value>, field: &str, is_ours: impl Fn(&str) -> bool) {
    let Some(after) = after.get_mut(field).and_then(Value::as_array_mut) else {
        return;
    };
    let before = shape::items(before);
    // Mounts of one volume share its name; their paths tell them apart.
    let identity = |item: &Value| {
        (
            shape::name(item).to_owned(),
            item["mountPath"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let places: BTreeMap<_, usize> = before
        .iter()
        .enumerate()
        .map(|(place, item)| (identity(item), place))
        .collect();
    for item in after.iter_mut().filter(|item| is_ours(shape::name(item))) {
        if let Some(&place) = places.get(&identity(item))
            && let Some(old) = before.get(place)
            && covers(old, item)
            && resources_are(old, item)
        {
            *item = old.clone();
        }
    }
    let is_same_set = after.len() == before.len()
        && places.len() == before.len()
        && after.iter().all(|item| places.contains_key(&identity(item)));
    if is_same_set {
        after.sort_by_key(|item| places.get(&identity(item)).copied());
    }
}

/// What we ask for is exact: what is there beyond it is not a default but what somebody asked for before.
fn resources_are(old: &Value, new: &Value) -> bool {
    Resources::said(&new["resources"]).is_some_and(|new| Resources::said(&old["resources"]) == Some(new))
}

/// Whether `old` says all that `new` says, and perhaps more.
fn covers(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => new.iter().all(|(key, new)| {
            // Quantities are written in more than one way; whoever asks compares them on their own.
            key == "resources" || old.get(key).is_some_and(|old| covers(old, new))
        }),
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| covers(old, new))
        }
        (old, new) => old == new,
    }
}

#[cfg(test)]
mod tests {
    use {super::*, serde_json::json};

    #[test]
    fn what_says_more_covers_what_says_less() {
        for (old, new, expected) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"a": [{"x": 1, "y": 2}]}), json!({"a": [{"x": 1}]}), true),
            (json!([1, 2]), json!([1]), false),
            (json!("a"), json!("b"), false),
            (json!(null), json!({}), false),
        ] {
            assert_eq!(covers(&old, &new), expected, "{old} {new}");
        }
    }

    #[test]
    fn things_stay_in_their_order_where_they_are_the_same() {
        #[track_caller]
        fn check(before: &[&str], after: &[&str], expected: &[&str]) {
            let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
            let mut object = Map::from_iter([("l".to_owned(), named(after))]);
            list(&named(before), &mut object, "l", |_| false);
            assert_eq!(object["l"], named(expected));
        }
        check(&["b", "a"], &["a", "b"], &["b", "a"]);
        check(&["b"], &["a", "b"], &["a", "b"]);
        check(&["a", "a"], &["a", "b"], &["a", "b"]);
        check(&[], &["a"], &["a"]);
    }
}
