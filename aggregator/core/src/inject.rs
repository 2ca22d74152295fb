//! From a pod and what holds around it to the pod with an agent beside its containers, or the reason why it gets none.
//!
//! [`inject`] is a pure function of its arguments: no IO, no clock, no randomness. A pod is looked at as JSON and stays
//! JSON, so that fields which are newer than this program survive. Never refuses a pod: what cannot be done is a
//! [`SkipReason`], what can be done in part leaves a [`Note`].
//!
//! Idempotent: what an earlier call added is taken away before anything is decided, so that calls before and after other
//! injectors, with defaults filled in between, and on pods that were made again from injected manifests, end alike.

mod annotation;
mod command;
mod plan;
mod quantity;
mod resources;
mod settle;
mod shape;
mod sidecar;
mod skip;
mod strip;

pub use {
    quantity::Quantity,
    resources::{Amounts, MIN_MEMORY_LIMIT, Resources},
    skip::{Holder, SkipReason},
};

use {
    annotation::Settings,
    healthscope_crd::key,
    k8s_openapi::api::core::v1::{LimitRange, ResourceQuota},
    serde::{Deserialize, Serialize},
    serde_json::{Value, json},
    std::{collections::BTreeMap, fmt},
};

/// The audience of the token by which an agent proves whose it is: one that the API server itself does not take, so that a
/// stolen token is of no use there.
pub const AUDIENCE: &str = "healthscope.core.oam.dev";
/// The oldest Kubernetes that starts native sidecars without being asked to.
const OLDEST: (u32, u32) = (1, 29);
/// Longest text of a variable: Linux takes 128 KiB for one, with its name, and the kubelet fills in an address.
const MAX_VARIABLE_BYTES: usize = 120 * 1024;
/// Most notes that are kept on the pod, worst case of a pod with many containers.
const MAX_KEPT_NOTES: usize = 10;
/// Longest message of a note on the pod.
const MAX_KEPT_MESSAGE_BYTES: usize = 300;
/// A component's name where the first container's cannot be one.
const NAMELESS: &str = "pod";

/// What is the same for all pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The agent's image: agent and runner in its root.
    pub image: String,
    /// Where agents report to: `wss://HOST:PORT`.
    pub aggregator: String,
    /// The name in the aggregator's certificate, when it is not the host.
    pub server_name: Option<String>,
    /// The certificates to trust for the aggregator, PEM; without them those that the agent's image trusts.
    pub ca_pem: Option<String>,
    /// The audience of the agent's token.
    pub audience: String,
    /// What an agent's container asks for.
    pub resources: Resources,
    /// Whether a postStart hook may start the runner in containers whose annotations say nothing about it.
    pub post_start: bool,
    /// The version of the cluster, where it is known.
    pub kubernetes: Option<(u32, u32)>,
    /// Whether pods come from the API server, which gave each its ServiceAccount: one that has none then is in a cluster
    /// without them.
    pub admitted: bool,
    /// How much is injected now.
    pub stance: Stance,
}

/// How much is injected: less after injection was seen to do harm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// The agent, and runners for command checks.
    #[default]
    Full,
    /// The agent alone: nothing is changed in the application's containers.
    WithoutCommands {
        /// What was seen, for people.
        why: String,
    },
    /// Nothing.
    Off {
        /// What was seen, for people.
        why: String,
    },
}

/// What holds where the pod is made.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Labels of the namespace.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the namespace.
    pub annotations: &'a BTreeMap<String, String>,
    /// Its LimitRanges.
    pub limit_ranges: &'a [LimitRange],
    /// Its ResourceQuotas.
    pub quotas: &'a [ResourceQuota],
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Injection {
    /// It has an agent now.
    Injected(Box<Injected>),
    /// It is left as it is.
    Skipped(SkipReason),
}

/// A pod with an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// How many checks the agent makes.
    pub checks: usize,
    /// What was left out, and why.
    pub notes: Vec<Note>,
}

impl Injected {
    /// The RFC 6902 patch that makes this pod out of the one that was given; empty when nothing changes.
    #[must_use]
    pub fn patch(&self, before: &Value) -> json_patch::Patch {
        patch(before, &self.pod)
    }
}

/// One check that the agent does not make, though somebody may expect it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The container.
    pub container: String,
    /// The check: the kind of the container's own probe, or the name of an additional one.
    pub probe: String,
    /// Why, in one word.
    pub reason: NoteReason,
    /// Why, in a sentence that says what would change it.
    pub message: String,
}

/// Why a check is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoteReason {
    /// Nothing can start the runner in that container without a risk for it.
    Unsupported,
    /// It asks another host than the pod.
    OtherHost,
    /// It names a port that the container does not have.
    PortNotFound,
    /// It is of a form that the agent does not know.
    NotUsable,
    /// An annotation leaves it out, and another asks for it.
    TurnedOff,
}

impl NoteReason {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "Unsupported",
            Self::OtherHost => "OtherHost",
            Self::PortNotFound => "PortNotFound",
            Self::NotUsable => "NotUsable",
            Self::TurnedOff => "TurnedOff",
        }
    }
}

impl Note {
    fn new(container: &str, probe: &str, reason: NoteReason, message: String) -> Self {
        Self {
            container: container.to_owned(),
            probe: probe.to_owned(),
            reason,
            message,
        }
    }
}

/// `web readiness: asks "db", and the agent asks its own pod only`
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            container,
            probe,
            reason: _,
            message,
        } = self;
        write!(f, "{container} {probe}: {message}")
    }
}

/// Puts an agent beside the containers of a pod, or of a pod's template (`metadata` and `spec`).
#[must_use]
pub fn inject(pod: &Value, around: &Surroundings<'_>, options: &Options) -> Injection {
    match attempt(pod, around, options) {
        Ok(injected) => Injection::Injected(Box::new(injected)),
        Err(reason) => Injection::Skipped(reason),
    }
}

/// The user's own pod: without what an earlier injection added.
///
/// # Errors
/// When it is no pod, or has parts that are called like ours and are not.
pub fn uninject(pod: &Value) -> Result<Value, SkipReason> {
    shape::check(pod)?;
    strip::strip(pod)
}

fn attempt(pod: &Value, around: &Surroundings<'_>, options: &Options) -> Result<Injected, SkipReason> {
    shape::check(pod)?;
    is_wanted(pod, around)?;
    is_possible(pod, options)?;
    let base = strip::strip(pod)?;
    let settings = Settings::read(&base, around, options.post_start)?;
    let plan = plan::plan(&base, &settings, options)?;
    let resources = resources::fit(&base, settings.resources, options.resources, around)?;

    let containers = shape::container_names(&base);
    let name = containers.first().copied().unwrap_or(NAMELESS);
    let component = sidecar::component(name, &plan.probes);
    let ca_pem = options.ca_pem.as_deref().unwrap_or_default();
    for (what, text) in [
        ("the agent's list of checks", component.as_str()),
        ("the bundle of certificates", ca_pem),
    ] {
        if text.len() > MAX_VARIABLE_BYTES {
            return Err(SkipReason::TooLarge {
                what,
                bytes: text.len(),
                limit: MAX_VARIABLE_BYTES,
            });
        }
    }
    let targets: Vec<&str> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    let agent = sidecar::container(options, &component, &targets, resources);
    let is_only_one = containers.len() == 1;
    let name = name.to_owned();

    let mut after = base;
    let pod_object = after.as_object_mut().expect("the form of the pod was checked");
    let spec = shape::object_mut(pod_object, "spec");
    shape::list_mut(spec, "initContainers").insert(0, agent);
    shape::list_mut(spec, "volumes").extend(sidecar::volumes(options));
    let containers = shape::list_mut(spec, "containers");
    for target in &plan.targets {
        target.apply(containers, sidecar::mount(&target.name));
    }
    let annotations = shape::object_mut(shape::object_mut(pod_object, "metadata"), "annotations");
    annotations.insert(key::INJECTED.to_owned(), kept(&plan).into());
    // Where there was nothing to choose, kubectl said nothing about a choice; with the agent beside it, it would.
    if is_only_one {
        annotations
            .entry("kubectl.kubernetes.io/default-container")
            .or_insert_with(|| name.into());
    }
    settle::settle(pod, &mut after);
    let plan::Plan {
        probes,
        targets: _,
        notes,
    } = plan;
    Ok(Injected {
        pod: after,
        checks: probes.len(),
        notes,
    })
}

/// What stays written on the pod: how many checks there are, and what was left out.
fn kept(plan: &plan::Plan) -> String {
    let notes: Vec<Note> = plan
        .notes
        .iter()
        .take(MAX_KEPT_NOTES)
        .map(|note| Note {
            message: healthscope_shared::one_line(&note.message, MAX_KEPT_MESSAGE_BYTES),
            ..note.clone()
        })
        .collect();
    let mut kept = json!({"version": env!("CARGO_PKG_VERSION"), "checks": plan.probes.len()});
    if !notes.is_empty() {
        kept["leftOut"] = json!(notes);
    }
    if plan.notes.len() > notes.len() {
        kept["leftOutInAll"] = plan.notes.len().into();
    }
    kept.to_string()
}

/// Whether somebody asked for an agent: the pod's own label wins over its namespace's.
fn is_wanted(pod: &Value, around: &Surroundings<'_>) -> Result<(), SkipReason> {
    let own = pod["metadata"]["labels"].get(key::INJECT);
    let (holder, value) = match (own, around.labels.get(key::INJECT)) {
        (Some(own), _) => (Holder::Pod, own.as_str().unwrap_or("not a text")),
        (None, Some(value)) => (Holder::Namespace, value.as_str()),
        (None, None) => return Err(SkipReason::NotEnabled),
    };
    match value {
        "enabled" => Ok(()),
        "disabled" => Err(SkipReason::Disabled { holder }),
        other => Err(SkipReason::InvalidLabel {
            holder,
            value: healthscope_shared::truncate(other, 80).into_owned(),
        }),
    }
}

/// Whether an agent can live beside this pod's containers at all.
fn is_possible(pod: &Value, options: &Options) -> Result<(), SkipReason> {
    let spec = &pod["spec"];
    if let Stance::Off { why } = &options.stance {
        return Err(SkipReason::BreakerOpen { why: why.clone() });
    }
    if let Some((major, minor)) = options.kubernetes
        && (major, minor) < OLDEST
    {
        return Err(SkipReason::OldKubernetes { major, minor });
    }
    if shape::metadata(pod, "annotations", "kubernetes.io/config.mirror").is_some() {
        return Err(SkipReason::MirrorPod);
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return Err(SkipReason::Deleting);
    }
    let is_ours = shape::metadata(pod, "labels", "app.kubernetes.io/name") == Some("healthscope")
        && shape::metadata(pod, "labels", "app.kubernetes.io/component") == Some("aggregator");
    if is_ours {
        return Err(SkipReason::OwnPod);
    }
    let is_windows = spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows";
    if is_windows {
        return Err(SkipReason::Windows);
    }
    if options.admitted && spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return Err(SkipReason::NoServiceAccount);
    }
    if spec["hostNetwork"] == true {
        return Err(SkipReason::HostNetwork);
    }
    if spec["hostPID"] == true {
        return Err(SkipReason::HostPid);
    }
    Ok(())
}

/// The difference of two pods. Insertion of the agent before others is one operation, not a rewriting of all of them.
fn patch(before: &Value, after: &Value) -> json_patch::Patch {
    let mut operations = Vec::new();
    let list = |pod: &Value| -> Vec<Value> { shape::list(pod, "initContainers").to_vec() };
    let (old, new) = (list(before), list(after));
    let is_new = |container: &Value| {
        let name = shape::name(container);
        name == sidecar::AGENT && old.iter().all(|other| shape::name(other) != name)
    };
    let mut from = before.clone();
    if let Some(agent) = new.first().filter(|first| is_new(first) && !old.is_empty())
        && let Some(list) = from["spec"]["initContainers"].as_array_mut()
    {
        list.insert(0, agent.clone());
        operations.push(json_patch::PatchOperation::Add(json_patch::AddOperation {
            path: json_patch::jsonptr::PointerBuf::from_tokens(["spec", "initContainers", "0"]),
            value: agent.clone(),
        }));
    }
    operations.extend(json_patch::diff(&from, after).0);
    json_patch::Patch(operations)
}
