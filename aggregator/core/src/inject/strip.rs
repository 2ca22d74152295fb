//! A pod without what an earlier injection added to it: injecting begins from the user's own pod each time.
//!
//! What is ours is known by its form, not by a mark: pods are made again from manifests that somebody copied, trimmed
//! and edited. The agent's container is the key: where that is not ours, nothing is touched.

use {
    super::{
        command::{self, Verb},
        shape,
        sidecar::{AGENT, DIRECTORY, RUNNER_VOLUME, SUPERVISE, TOKEN_VOLUME},
        skip::SkipReason,
    },
    healthscope_crd::key,
    serde_json::{Map, Value, json},
};

/// The user's own pod.
pub(super) fn strip(pod: &Value) -> Result<Value, SkipReason> {
    if shape::list(pod, "containers").iter().any(is_called_agent) {
        return Err(SkipReason::AgentPresent { container: AGENT });
    }
    let mut base = pod.clone();
    if let Some(metadata) = base.get_mut("metadata").and_then(Value::as_object_mut) {
        remove_from(metadata, "annotations", key::INJECTED);
    }
    let agent = shape::list(pod, "initContainers")
        .iter()
        .find(|container| is_called_agent(container));
    let Some(agent) = agent else {
        for volume in [RUNNER_VOLUME, TOKEN_VOLUME] {
            if shape::list(pod, "volumes")
                .iter()
                .any(|other| shape::name(other) == volume)
            {
                return Err(SkipReason::NameClash { volume });
            }
        }
        return Ok(base);
    };
    if !shape::items(&agent["command"])
        .iter()
        .take(SUPERVISE.len())
        .eq(SUPERVISE.iter())
    {
        return Err(SkipReason::AgentPresent { container: AGENT });
    }
    let Some(spec) = base["spec"].as_object_mut() else {
        return Ok(base);
    };
    shape::retain(spec, "initContainers", |container| !is_called_agent(container));
    shape::retain(spec, "volumes", |volume| {
        !matches!(shape::name(volume), RUNNER_VOLUME | TOKEN_VOLUME)
    });
    for field in ["containers", "initContainers"] {
        let Some(containers) = spec.get_mut(field).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            strip_container(container);
        }
    }
    Ok(base)
}

fn is_called_agent(container: &Value) -> bool {
    shape::name(container) == AGENT
}

fn strip_container(container: &mut Map<String, Value>) {
    shape::retain(container, "volumeMounts", |mount| {
        !(shape::name(mount) == RUNNER_VOLUME && mount["mountPath"] == DIRECTORY)
    });
    for slot in ["livenessProbe", "readinessProbe"] {
        let Some(line) = container
            .get(slot)
            .and_then(|probe| shape::words(&probe["exec"]["command"]))
        else {
            continue;
        };
        match command::read(Verb::Carry, &line) {
            Some(Some(own)) => container[slot]["exec"]["command"] = json!(own),
            Some(None) => {
                container.remove(slot);
            }
            None => {}
        }
    }
    let Some(line) = container
        .get("lifecycle")
        .and_then(|lifecycle| shape::words(&lifecycle["postStart"]["exec"]["command"]))
    else {
        return;
    };
    match command::read(Verb::Start, &line) {
        Some(Some(own)) => container["lifecycle"]["postStart"]["exec"]["command"] = json!(own),
        Some(None) => remove_from(container, "lifecycle", "postStart"),
        None => {}
    }
}

/// Takes `key` out of the object at `field`, and that too when nothing else is in it.
fn remove_from(object: &mut Map<String, Value>, field: &str, key: &str) {
    let Some(inner) = object.get_mut(field).and_then(Value::as_object_mut) else {
        return;
    };
    if inner.remove(key).is_some() && inner.is_empty() {
        object.remove(field);
    }
}
