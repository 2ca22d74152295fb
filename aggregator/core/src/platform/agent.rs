//! HealthScope's own agent in a pod: whether it stands in the pod's way.
//!
//! Only what the kubelet says of the agent's container counts; what the application's containers do is their affair.

use {
    super::{AGENT_CONTAINER, field},
    healthscope_shared::one_line,
    jiff::Timestamp,
    serde_json::Value,
};

/// Longest text kept of what the kubelet says: a registry's answer stands at its end.
const MAX_MESSAGE_BYTES: usize = 400;
/// Longest image kept: a reference with its digest.
const MAX_IMAGE_BYTES: usize = 300;
/// Most containers that are looked at.
const MAX_CONTAINERS: usize = 64;
/// How the commands begin that start a runner.
const RUNNER: &str = "/healthscope/runner";
/// The usual carrier's period, in seconds.
const CARRIER_PERIOD: u32 = 10;
/// So many periods may pass before a carrier counts as missing.
const CARRIER_PERIODS: u32 = 3;

/// What a pod's spec and status say of the agent in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// When the pod was made.
    pub created: Timestamp,
    /// Since when the pod is ready.
    pub ready_since: Option<Timestamp>,
    /// The agent's image.
    pub image: Box<str>,
    /// By so many seconds after the pod became ready every runner should be up.
    pub carrier_due: u32,
    /// What keeps its container from running.
    pub hindrance: Option<Box<Hindrance>>,
}

/// Why the agent's container does not run, and with it the application that it stands before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// Whether it is its image that cannot be had.
    pub is_image: bool,
    /// The kubelet's word and message.
    pub message: Box<str>,
}

impl Beside {
    /// `None` where the pod has no agent.
    pub(super) fn decode(object: &Value) -> Option<Self> {
        let spec = ["initContainers", "containers"]
            .iter()
            .flat_map(|list| field::list(object, &["spec", list]))
            .find(|container| field::text(container, &["name"]) == Some(AGENT_CONTAINER))?;
        let status = ["initContainerStatuses", "containerStatuses"]
            .iter()
            .flat_map(|list| field::list(object, &["status", list]))
            .find(|status| field::text(status, &["name"]) == Some(AGENT_CONTAINER));
        Some(Self {
            created: field::time(object, &["metadata", "creationTimestamp"]).unwrap_or_default(),
            ready_since: field::condition_that_is(object, "Ready", "True")
                .and_then(|ready| field::time(ready, &["lastTransitionTime"])),
            image: one_line(field::text(spec, &["image"]).unwrap_or_default(), MAX_IMAGE_BYTES).into(),
            carrier_due: carrier_due(object),
            hindrance: status.and_then(Hindrance::decode).map(Box::new),
        })
    }
}

impl Hindrance {
    fn decode(status: &Value) -> Option<Self> {
        let waiting = field::at(status, &["state", "waiting"])?;
        let word = field::text(waiting, &["reason"])?;
        let is_image = match word {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => true,
            "CreateContainerError"
            | "CreateContainerConfigError"
            | "RunContainerError"
            | "CrashLoopBackOff" => false,
            // On its way: a volume that is being mounted, an image that is being pulled.
            _ => return None,
        };
        let said = field::text(waiting, &["message"]).unwrap_or_default();
        // Why a container that crashed did, where the runtime knows.
        let last = field::text(status, &["lastState", "terminated", "message"]).unwrap_or_default();
        let words: Vec<&str> = [word, said, last]
            .into_iter()
            .filter(|text| !text.trim().is_empty())
            .collect();
        Some(Self {
            is_image,
            message: one_line(&words.join(": "), MAX_MESSAGE_BYTES).into(),
        })
    }
}

/// The slowest of the probes that start runners, with time to spare.
fn carrier_due(object: &Value) -> u32 {
    let carriers = field::list(object, &["spec", "containers"])
        .iter()
        .take(MAX_CONTAINERS)
        .flat_map(|container| {
            ["livenessProbe", "readinessProbe"]
                .into_iter()
                .filter_map(|probe| field::at(container, &[probe]))
        })
        .filter(|probe| {
            let command = field::list(probe, &["exec", "command"]);
            command.first().and_then(Value::as_str) == Some(RUNNER)
        });
    let due = carriers.map(|probe| {
        let period = field::optional_count(probe, &["periodSeconds"]).unwrap_or(CARRIER_PERIOD);
        let delay = field::count(probe, &["initialDelaySeconds"]);
        delay.saturating_add(period.saturating_mul(CARRIER_PERIODS))
    });
    due.max()
        .unwrap_or_default()
        .max(CARRIER_PERIOD * CARRIER_PERIODS)
}

#[cfg(test)]
mod tests {
    use {super::*, serde_json::json};

    #[track_caller]
    fn check(state: &Value, expected: Option<(bool, &str)>) {
        let pod = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"initContainers": [{"name": AGENT_CONTAINER, "image": "agent:1", "restartPolicy": "Always"}]},
            "status": {"initContainerStatuses": [{"name": AGENT_CONTAINER, "state": state}]},
        });
        let beside = Beside::decode(&pod).unwrap();
        assert_eq!((&*beside.image, beside.carrier_due), ("agent:1", 30));
        let found = beside.hindrance.as_ref();
        let found = found.map(|hindrance| (hindrance.is_image, &*hindrance.message));
        assert_eq!(found, expected, "{state}");
    }

    #[test]
    fn what_the_kubelet_cannot_start_is_told_from_what_is_on_its_way() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "because"}});
        check(&json!({"running": {}}), None);
        check(&json!({}), None);
        check(&waiting("PodInitializing"), None);
        check(&waiting("ContainerCreating"), None);
        check(&json!({"waiting": {}}), None);
        check(&json!({"waiting": 7}), None);
        check(&waiting("ErrImagePull"), Some((true, "ErrImagePull: because")));
        check(
            &waiting("ImagePullBackOff"),
            Some((true, "ImagePullBackOff: because")),
        );
        check(
            &waiting("InvalidImageName"),
            Some((true, "InvalidImageName: because")),
        );
        check(
            &waiting("ErrImageNeverPull"),
            Some((true, "ErrImageNeverPull: because")),
        );
        check(
            &waiting("CreateContainerConfigError"),
            Some((false, "CreateContainerConfigError: because")),
        );
        check(
            &waiting("CreateContainerError"),
            Some((false, "CreateContainerError: because")),
        );
        check(
            &waiting("RunContainerError"),
            Some((false, "RunContainerError: because")),
        );
        check(
            &waiting("CrashLoopBackOff"),
            Some((false, "CrashLoopBackOff: because")),
        );
    }

    #[test]
    fn the_applications_containers_do_not_count() {
        let pod = json!({
            "spec": {"initContainers": [{"name": AGENT_CONTAINER}], "containers": [{"name": "web"}]},
            "status": {"containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
        });
        assert_eq!(Beside::decode(&pod).unwrap().hindrance, None);
        assert_eq!(
            Beside::decode(&json!({"spec": {"containers": [{"name": "web"}]}})),
            None
        );
    }

    #[test]
    fn a_runner_has_the_time_that_its_carriers_probe_takes() {
        let probe = |period: u32, delay: u32, command: &str| json!({"exec": {"command": [command, "carry"]}, "periodSeconds": period, "initialDelaySeconds": delay});
        let of = |probe: Value| carrier_due(&json!({"spec": {"containers": [{"livenessProbe": probe}]}}));
        assert_eq!(of(probe(10, 0, RUNNER)), 30);
        assert_eq!(of(probe(1, 0, RUNNER)), 30);
        assert_eq!(of(probe(60, 300, RUNNER)), 480);
        assert_eq!(of(probe(60, 300, "cat")), 30);
        assert_eq!(of(probe(u32::MAX, u32::MAX, RUNNER)), u32::MAX);
    }
}
