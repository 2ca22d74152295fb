//! What was asked of the API server and what it answered, for others to judge. Pure: objects and how to read them.

use {
    healthscope_core::breaker::{self, Record},
    jiff::Timestamp,
    serde_json::Value,
    std::{collections::BTreeMap, fmt},
};

/// A right of the API server's RBAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) verb: &'static str,
    /// Empty for the core group.
    pub(super) group: &'static str,
    /// With the subresource.
    pub(super) resource: &'static str,
    /// The only object, where it is about one.
    pub(super) name: Option<&'static str>,
    /// `None` for the whole cluster.
    pub(super) namespace: Option<String>,
}

impl Right {
    /// A right in the whole cluster, or in a namespace.
    pub(super) fn new(
        verb: &'static str,
        group: &'static str,
        resource: &'static str,
        namespace: Option<&str>,
    ) -> Self {
        Self {
            verb,
            group,
            resource,
            name: None,
            namespace: namespace.map(str::to_owned),
        }
    }

    /// About one object alone.
    pub(super) fn named(self, name: &'static str) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    /// The rule that gives it, and in which kind of role.
    pub(super) fn rule(&self) -> String {
        let Self {
            verb,
            group,
            resource,
            name,
            namespace,
        } = self;
        let role = match namespace {
            Some(namespace) => format!("a Role in the namespace {namespace}"),
            None => "a ClusterRole".to_owned(),
        };
        let names = name
            .map(|name| format!(", resourceNames: [{name:?}]"))
            .unwrap_or_default();
        format!("{role} with {{apiGroups: [{group:?}], resources: [{resource:?}]{names}, verbs: [{verb:?}]}}")
    }
}

/// `list pods in the namespace shop`
impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            group: _,
            resource,
            name,
            namespace,
        } = self;
        write!(f, "{verb} {resource}")?;
        if let Some(name) = name {
            write!(f, " called {name}")?;
        }
        match namespace {
            Some(namespace) => write!(f, " in the namespace {namespace}"),
            None => f.write_str(" in the whole cluster"),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// The object, or the list.
    Found(Value),
    /// There is none.
    Absent,
    /// The user may not ask.
    Forbidden(Right),
    /// There is no answer that means anything.
    Failed(String),
    /// What was answered before made it pointless to ask.
    Unasked,
}

impl Asked {
    /// The object.
    pub(super) fn found(&self) -> Option<&Value> {
        match self {
            Self::Found(value) => Some(value),
            Self::Absent | Self::Forbidden(_) | Self::Failed(_) | Self::Unasked => None,
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> &[Value] {
        self.found().map_or(&[], |list| array(&list["items"]))
    }
}

/// A namespace and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) name: String,
    /// The namespace itself.
    pub(super) namespace: Asked,
    pub(super) pods: Asked,
    /// Events about pods that were left as they are.
    pub(super) skips: Asked,
    pub(super) scopes: Asked,
}

/// A pod that was made for the sake of looking at it, and thrown away by the API server.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rehearsal {
    pub(super) namespace: String,
    pub(super) pod: Asked,
}

/// Everything that was asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    /// By the API server's clock, where it says.
    pub(super) now: Timestamp,
    /// `https://10.0.0.1:6443`.
    pub(super) cluster: String,
    /// Of this program.
    pub(super) version: &'static str,
    /// How this program is called, for hints.
    pub(super) program: &'static str,
    /// Where an installation is expected, when there is none to be found.
    pub(super) expected: String,
    /// What `/version` says.
    pub(super) server: Asked,
    pub(super) definition: Asked,
    /// All Deployments of ours.
    pub(super) deployments: Asked,
    /// The aggregator's pods.
    pub(super) pods: Asked,
    pub(super) lease: Asked,
    /// The ConfigMap with the authorities.
    pub(super) authorities: Asked,
    pub(super) webhook: Asked,
    pub(super) service: Asked,
    pub(super) endpoints: Asked,
    pub(super) breaker: Asked,
    pub(super) canary_set: Asked,
    pub(super) canary: Asked,
    /// Whether the aggregator's account has each right: SubjectAccessReviews.
    pub(super) rights: Vec<(Right, Asked)>,
    pub(super) rehearsal: Option<Rehearsal>,
    /// The namespaces with the label.
    pub(super) labelled: Asked,
    /// Those that were looked into.
    pub(super) places: Vec<Place>,
}

impl Facts {
    /// The aggregator's Deployment, when there is exactly one.
    pub(super) fn deployment(&self) -> Option<&Value> {
        match self.aggregators().as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// All Deployments of aggregators.
    pub(super) fn aggregators(&self) -> Vec<&Value> {
        let is_aggregator = |deployment: &&Value| {
            deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "aggregator"
        };
        self.deployments.items().iter().filter(is_aggregator).collect()
    }

    /// Where HealthScope is, or is to be.
    pub(super) fn home(&self) -> &str {
        self.deployment()
            .and_then(|deployment| deployment["metadata"]["namespace"].as_str())
            .unwrap_or(&self.expected)
    }

    /// The agent's image that pods get now.
    pub(super) fn agent_image(&self) -> Option<&str> {
        flag(self.deployment()?, "--agent-image")
    }

    /// What is left out of injection now; an unreadable record is an empty one here.
    pub(super) fn record(&self) -> Record {
        self.breaker
            .found()
            .and_then(|map| map["data"][breaker::KEY].as_str())
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// Whether the canary runs, with which image of the agent.
    pub(super) fn proven_image(&self) -> Option<&str> {
        let canary = self.canary.found()?;
        let agent = agent(canary)?;
        is_ready(canary).then(|| agent["image"].as_str()).flatten()
    }

    /// Major and minor of the API server.
    pub(super) fn kubernetes(&self) -> Option<(u32, u32)> {
        let server = self.server.found()?;
        let number = |field: &str| -> Option<u32> {
            let text = server[field].as_str()?;
            text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
        };
        Some((number("major")?, number("minor")?))
    }
}

/// The items of a list, or none.
pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text, or an empty one.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An object's name.
pub(super) fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

/// `shop/web-1`.
pub(super) fn full_name(object: &Value) -> String {
    match text(&object["metadata"]["namespace"]) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

/// Labels or annotations.
pub(super) fn map(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// A time as Kubernetes writes it.
pub(super) fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// The aggregator's container in its Deployment.
pub(super) fn container(deployment: &Value) -> &Value {
    let containers = array(&deployment["spec"]["template"]["spec"]["containers"]);
    containers
        .iter()
        .find(|container| container["name"] == "aggregator")
        .or(containers.first())
        .unwrap_or(&Value::Null)
}

/// What an argument of the aggregator says; empty when it is there and says nothing.
pub(super) fn flag<'a>(deployment: &'a Value, flag: &str) -> Option<&'a str> {
    let mut arguments = array(&container(deployment)["args"])
        .iter()
        .filter_map(Value::as_str);
    while let Some(argument) = arguments.next() {
        if argument == flag {
            return Some(
                arguments
                    .next()
                    .filter(|next| !next.starts_with("--"))
                    .unwrap_or_default(),
            );
        }
        if let Some(value) = argument
            .strip_prefix(flag)
            .and_then(|rest| rest.strip_prefix('='))
        {
            return Some(value);
        }
    }
    None
}

/// The agent's container of a pod, injected.
pub(super) fn agent(pod: &Value) -> Option<&Value> {
    let containers = array(&pod["spec"]["initContainers"]);
    containers
        .iter()
        .find(|container| container["name"] == healthscope_core::platform::AGENT_CONTAINER)
}

/// The agent's status in a pod.
pub(super) fn agent_status(pod: &Value) -> &Value {
    let statuses = array(&pod["status"]["initContainerStatuses"]);
    statuses
        .iter()
        .find(|status| status["name"] == healthscope_core::platform::AGENT_CONTAINER)
        .unwrap_or(&Value::Null)
}

/// Whether the kubelet says that a pod is ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    array(&pod["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether a pod is done, or about to be.
pub(super) fn is_over(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
        || matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
}

/// Why a container waits: a word that is no part of a usual start, and what the kubelet says to it.
pub(super) fn trouble(status: &Value) -> Option<(&str, &str)> {
    let waiting = &status["state"]["waiting"];
    match text(&waiting["reason"]) {
        "" | "PodInitializing" | "ContainerCreating" => None,
        "CrashLoopBackOff" => {
            // What it ended with says more than that it did.
            let ended = &status["lastState"]["terminated"];
            let message = [&ended["message"], &waiting["message"]].map(text);
            let message = message.into_iter().find(|message| !message.is_empty());
            Some(("CrashLoopBackOff", message.unwrap_or_default()))
        }
        reason => Some((reason, text(&waiting["message"]))),
    }
}

/// Whose pod it is, as kind and name: the Deployment rather than its ReplicaSet. `None` for a bare pod.
pub(super) fn owner(pod: &Value) -> Option<(String, String)> {
    let controller = array(&pod["metadata"]["ownerReferences"])
        .iter()
        .find(|owner| owner["controller"] == true)?;
    let (kind, name) = (text(&controller["kind"]), text(&controller["name"]));
    let hash = text(&pod["metadata"]["labels"]["pod-template-hash"]);
    let deployment = name.strip_suffix(hash).and_then(|name| name.strip_suffix('-'));
    match (kind, deployment) {
        ("ReplicaSet", Some(deployment)) if !hash.is_empty() => {
            Some(("Deployment".to_owned(), deployment.to_owned()))
        }
        _ => Some((kind.to_owned(), name.to_owned())),
    }
}
