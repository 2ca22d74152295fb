//! What can be done for a pod that our container holds up. Pure: facts in, one remedy out.
//!
//! Never a remedy that could be worse than waiting: a pod is not sent away when the next one would be stuck in the same
//! way, and a pod without a controller is not sent away at all.

use {
    super::{
        facts::{Asked, Facts, Place, agent, array, name, owner},
        installation::trip_for,
        pods::injects,
    },
    healthscope_core::{breaker::Reduction, platform::AGENT_CONTAINER},
    serde_json::Value,
};

/// What can be done for a pod that is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Its controller makes a new one, which starts.
    Evict {
        /// `Deployment web`.
        owner: String,
        /// Why the next one starts.
        because: String,
    },
    /// Its agent gets an image that is known to run.
    Patch {
        /// The place of the agent among its init containers.
        index: usize,
        /// What it has.
        from: String,
        /// What it gets.
        to: String,
    },
    /// Nothing from here.
    Leave {
        /// Why.
        why: String,
        /// What helps.
        commands: Vec<String>,
    },
}

/// What is to be done for a stuck pod.
pub(super) fn remedy(facts: &Facts, place: &Place, pod: &Value) -> Remedy {
    let (namespace, pod_name) = (&place.name, name(pod));
    let current = agent(pod)
        .and_then(|agent| agent["image"].as_str())
        .unwrap_or_default();
    let other = facts
        .agent_image()
        .filter(|image| *image != current && !image.is_empty());
    let proven = other.filter(|image| facts.proven_image() == Some(*image));
    let Some((kind, owner_name)) = owner(pod) else {
        return match (proven, other) {
            (Some(image), _) => Remedy::Patch {
                index: array(&pod["spec"]["initContainers"])
                    .iter()
                    .position(|container| container["name"] == AGENT_CONTAINER)
                    .unwrap_or(0),
                from: current.to_owned(),
                to: image.to_owned(),
            },
            (None, Some(image)) => leave(
                format!(
                    "no controller would make it again, so it is not deleted; the installation's image {image} is not proven \
                     by a canary that is ready, so it is not given that"
                ),
                [
                    format!("kubectl -n {} get pod healthscope-canary-0", facts.home()),
                    format!("kubectl -n {namespace} delete pod {pod_name}    # and create it again from its manifest"),
                ],
            ),
            (None, None) => leave(
                "no controller would make it again, so it is not deleted; it has the installation's image already, and \
                 starts by itself once that can be run"
                    .to_owned(),
                [format!("kubectl -n {namespace} delete pod {pod_name}    # or create it again from its manifest")],
            ),
        };
    };
    let owner = (kind, owner_name);
    let record = facts.record();
    let is_off =
        trip_for(&record, namespace, Some(&owner)).is_some_and(|trip| trip.reduction == Reduction::Off);
    let because = if is_off {
        "the breaker is open there, so the next one comes up without an agent".to_owned()
    } else if facts.webhook == Asked::Absent {
        "nothing injects in this cluster now, so the next one comes up without an agent".to_owned()
    } else if injects(facts, place, pod) == Some(false) {
        "pods there get no agents any more, so the next one comes up without".to_owned()
    } else if let Some(image) = proven {
        format!("the next one gets the image {image}, with which the canary runs")
    } else {
        return leave(
            "injection goes on there, so the next one would be stuck in the same way: wait until the breaker opens, make the \
             agent's image run, or stop injecting there first"
                .to_owned(),
            [format!(
                "kubectl label namespace {namespace} {}=disabled --overwrite",
                healthscope_crd::key::INJECT
            )],
        );
    };
    Remedy::Evict {
        owner: format!("{} {}", owner.0, owner.1),
        because,
    }
}

fn leave<const COUNT: usize>(why: String, commands: [String; COUNT]) -> Remedy {
    Remedy::Leave {
        why,
        commands: commands.into(),
    }
}
