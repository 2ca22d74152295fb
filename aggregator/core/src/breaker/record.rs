//! What the breaker leaves in its ConfigMap: for the other replicas, for the next owner of the Lease, and for people.

use {
    crate::{admission, inject::Stance},
    healthscope_crd::key,
    jiff::Timestamp,
    serde::{Deserialize, Serialize},
    serde_json::Value,
};

/// The ConfigMap in the installation's namespace.
pub const CONFIG_MAP: &str = "healthscope-breaker";
/// The key in it: a [`Record`] as JSON.
pub const KEY: &str = "record.json";
/// The pod in the installation's namespace that shows whether an agent and its runner come up.
pub const CANARY_POD: &str = "healthscope-canary-0";

/// Longest text of a record that is read: many times what the breaker writes.
const MAX_BYTES: usize = 512 * 1024;

/// All that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Sorted by level, namespace and owner; at most one of each.
    #[serde(default)]
    pub trips: Vec<Trip>,
    /// Where injection was resumed lately, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<Resumed>,
}

/// One place where less is injected than asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trip {
    /// How far it reaches.
    pub level: Level,
    /// In which namespace; none for the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The owner of the pods; only with [`Level::Owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerRef>,
    /// What is left out.
    pub reduction: Reduction,
    /// What was seen.
    pub cause: Cause,
    /// What was seen, in the kubelet's or the API server's words where they say something.
    pub message: String,
    /// The agent's image at that time.
    pub image: String,
    /// Since when.
    pub since: Timestamp,
    /// Some of the pods that suffered, by name, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
    /// What would have to change for it to close.
    #[serde(default, skip_serializing_if = "Baseline::is_empty")]
    pub baseline: Baseline,
}

/// What held when a trip opened, and what the canary has shown since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// The uid of the canary's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// The value of the namespace's annotation [`key::RETRY_INJECTION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
    /// A digest of the owner's pod template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether the canary was seen to suffer too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub canary_suffered: bool,
    /// Whether a canary was made meanwhile and was well though these pods were not: the canary proves nothing for them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_local: bool,
    /// For the whole cluster: the namespaces that suffered, some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
}

/// Where injection was resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resumed {
    /// How far the trip reached.
    pub level: Level,
    /// In which namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whose pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerRef>,
    /// When.
    pub at: Timestamp,
    /// Pods that were made before this moment were made before the trip: what they suffer is known.
    pub before: Timestamp,
    /// How often in a row.
    pub times: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Baseline {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a trip reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    pub(super) level: Level,
    pub(super) namespace: Option<&'a str>,
    pub(super) owner: Option<&'a OwnerRef>,
}

impl Place<'_> {
    /// Whether pods of this namespace and owner are in it.
    pub(super) fn holds(&self, namespace: &str, owner: &OwnerRef) -> bool {
        self.namespace.is_none_or(|own| own == namespace) && self.owner.is_none_or(|own| own == owner)
    }

    /// Whether everything of another place is in it.
    pub(super) fn covers(&self, other: &Place<'_>) -> bool {
        let same_namespace = self.namespace.is_none() || self.namespace == other.namespace;
        same_namespace && (self.owner.is_none() || self.owner == other.owner)
    }
}

impl Resumed {
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            level: self.level,
            namespace: self.namespace.as_deref(),
            owner: self.owner.as_ref(),
        }
    }
}

impl Trip {
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            level: self.level,
            namespace: self.namespace.as_deref(),
            owner: self.owner.as_ref(),
        }
    }

    /// What was seen and what to do, for people.
    #[must_use]
    pub fn why(&self) -> String {
        let seen = match self.cause {
            Cause::ImagePull => "the agent's image cannot be pulled",
            Cause::AgentNotStarting => "the agent's container does not start",
            Cause::CarrierMissing => "the runner of command checks never came up",
            Cause::FailedCreate => "pods were refused because of the agent",
        };
        let Self { message, .. } = self;
        format!("{seen}: {message}; {}", self.remedy())
    }

    /// What makes injection resume.
    #[must_use]
    pub fn remedy(&self) -> String {
        let by_canary = match self.cause {
            Cause::ImagePull | Cause::AgentNotStarting => !self.baseline.is_local,
            Cause::CarrierMissing | Cause::FailedCreate => false,
        };
        if by_canary {
            return format!(
                "injection resumes by itself once the pod {CANARY_POD} runs with the agent's image"
            );
        }
        let or_template = match self.level {
            Level::Owner => ", or the pod template",
            Level::Namespace | Level::Cluster => "",
        };
        let whose = match &self.namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "the namespace that HealthScope is installed in".to_owned(),
        };
        format!(
            "once that is put right, change the annotation {key} of {whose}{or_template}",
            key = key::RETRY_INJECTION
        )
    }
}

impl Record {
    /// What a ConfigMap's text says; no text says that nothing is open.
    ///
    /// # Errors
    /// When the text is no record.
    pub fn read(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return Ok(Self::default());
        };
        if text.len() > MAX_BYTES {
            return Err(format!(
                "it has {} bytes, and {MAX_BYTES} is the most",
                text.len()
            ));
        }
        // A list would be read as well, field by field.
        if !text.trim_start().starts_with('{') {
            return Err("it is no JSON object".to_owned());
        }
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match record.trips.iter().find(|trip| !trip.is_sound()) {
            Some(trip) => Err(format!("a trip of level {:?} reaches elsewhere", trip.level)),
            None => Ok(record),
        }
    }

    /// The text that [`Self::read`] reads.
    #[must_use]
    pub fn write(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record has text keys and times in range")
    }

    /// How much is injected into pods of this namespace whose owner may be any of these.
    #[must_use]
    pub fn stance(&self, namespace: &str, owners: &[OwnerRef]) -> Stance {
        let reaches = |trip: &&Trip| match trip.level {
            Level::Cluster => true,
            Level::Namespace => trip.namespace.as_deref() == Some(namespace),
            Level::Owner => owners.iter().any(|owner| trip.place().holds(namespace, owner)),
        };
        // The widest of the strictest, which is the first.
        let strictest = self
            .trips
            .iter()
            .rev()
            .filter(reaches)
            .max_by_key(|trip| trip.reduction);
        match strictest {
            None => Stance::Full,
            Some(trip) => match trip.reduction {
                Reduction::WithoutCommands => Stance::WithoutCommands { why: trip.why() },
                Reduction::Off => Stance::Off { why: trip.why() },
            },
        }
    }

    pub(super) fn sort(&mut self) {
        self.trips.sort_by(|a, b| a.place().cmp(&b.place()));
        self.resumed.sort_by(|a, b| a.place().cmp(&b.place()));
    }
}

impl Trip {
    /// Whether it has what its level needs: one that somebody wrote by hand must not reach further than it says.
    const fn is_sound(&self) -> bool {
        match self.level {
            Level::Cluster => self.namespace.is_none() && self.owner.is_none(),
            Level::Namespace => self.namespace.is_some() && self.owner.is_none(),
            Level::Owner => self.namespace.is_some() && self.owner.is_some(),
        }
    }
}

/// Whose a pod may be that is about to be made: its controller, and what that controller's name says of its own. A name
/// is enough: the controller may be younger than any watch.
#[must_use]
pub fn owners(pod: &Value) -> Vec<OwnerRef> {
    let owner = |kind: &str, name: &str| OwnerRef {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let Some(controller) = admission::owner(pod) else {
        let name = pod["metadata"]["name"].as_str();
        return name.map(|name| owner("Pod", name)).into_iter().collect();
    };
    let mut found = vec![owner(&controller.kind, &controller.name)];
    let above = match controller.kind.as_str() {
        "ReplicaSet" => [
            ("Deployment", "pod-template-hash"),
            ("Rollout", "rollouts-pod-template-hash"),
        ]
        .into_iter()
        .find_map(|(kind, label)| {
            let hash = pod["metadata"]["labels"][label].as_str()?;
            let name = controller.name.strip_suffix(hash)?.strip_suffix('-')?;
            Some(owner(kind, name))
        }),
        "Job" => controller.name.rsplit_once('-').and_then(|(name, time)| {
            let is_time = !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then(|| owner("CronJob", name))
        }),
        _ => None,
    };
    found.extend(above);
    found
}

/// How far a trip reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// All pods.
    Cluster,
    /// The pods of a namespace.
    Namespace,
    /// The pods of one owner.
    Owner,
}

/// Whose pods: the outermost owner that is known, a Deployment rather than its ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRef {
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reduction {
    /// Nothing is changed in the application's containers.
    WithoutCommands,
    /// No agent at all.
    Off,
}

/// What harm was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The agent's image cannot be pulled.
    ImagePull,
    /// The agent's container does not start, or does not stay.
    AgentNotStarting,
    /// The runner that command checks need never came up.
    CarrierMissing,
    /// The pod was refused because of what was added to it.
    FailedCreate,
}
