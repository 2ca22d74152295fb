//! OAM's own verdicts, for the part of the status that its `v1alpha2` clients read: `HEALTHY`, `UNHEALTHY`, `UNKNOWN`
//! with the diagnosis strings of oam-kubernetes-runtime, trailing blanks included.
//!
//! Stricter and simpler than [`super::verdict`], and never used for our own health. What is done differently on
//! purpose: conditions come in the order of the references, equal revisions in the order of their names, a child
//! Deployment of another version than `apps/v1` is unhealthy with a diagnosis (it crashed the controller), and long
//! texts are cut.

use {
    super::{Child, Composite, MAX_STATUS_BYTES, MAX_TEXT_BYTES, Object, State, WorkloadKind, group},
    healthscope_shared::{name::ComponentKey, one_line, truncate},
    std::{cmp::Reverse, fmt},
};

/// Label: the component that a workload was made from.
pub const COMPONENT_LABEL: &str = "app.oam.dev/component";
/// Label: the application that a workload belongs to.
pub const APPLICATION_LABEL: &str = "app.oam.dev/name";

/// Longest diagnosis: peers are written into it one by one.
const MAX_DIAGNOSIS_BYTES: usize = 1024;
/// Most peers looked at; revisions are pruned at fifty.
const MAX_PEERS: usize = 50;

/// OAM's three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OamHealth {
    /// `HEALTHY`
    Healthy,
    /// `UNHEALTHY`
    Unhealthy,
    /// `UNKNOWN`
    Unknown,
}

impl OamHealth {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Unhealthy => "UNHEALTHY",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for OamHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A workload as a scope names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OamRef {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Uid, where it is known.
    pub uid: Option<String>,
}

/// What OAM says of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OamCondition {
    /// From the workload's label; empty when it has none.
    pub component_name: String,
    /// The workload, with the uid of the living object.
    pub target: OamRef,
    /// The verdict.
    pub health_status: OamHealth,
    /// The verdict in OAM's words.
    pub diagnosis: String,
    /// The workload's own status as JSON, for kinds that OAM does not know.
    pub workload_status: Option<String>,
}

/// What OAM says of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OamScope {
    /// Never `UNKNOWN`: what is unknown makes a scope unhealthy.
    pub health_status: OamHealth,
    /// References.
    pub total: u32,
    /// Healthy ones.
    pub healthy: u32,
    /// Unhealthy ones.
    pub unhealthy: u32,
    /// Unknown ones.
    pub unknown: u32,
}

/// The rule that applies to a reference: OAM compares group, version and kind exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Composite,
    Replicas(WorkloadKind),
    DaemonSet,
    Unknown,
}

impl Rule {
    fn of(api_version: &str, kind: &str) -> Self {
        match (api_version, kind) {
            ("core.oam.dev/v1alpha2", "ContainerizedWorkload")
            | ("standard.oam.dev/v1alpha1", "PodSpecWorkload") => Self::Composite,
            ("apps/v1", "Deployment") => Self::Replicas(WorkloadKind::Deployment),
            ("apps/v1", "StatefulSet") => Self::Replicas(WorkloadKind::StatefulSet),
            ("apps/v1", "DaemonSet") => Self::DaemonSet,
            _ => Self::Unknown,
        }
    }
}

/// What OAM says of the workload that `reference` names.
///
/// `found` is the workload, `child` finds what it names in its status, and `siblings` are the objects of its kind in
/// its namespace (all of them or at least those with OAM's labels), or why they cannot be listed.
#[must_use]
pub fn condition<'a>(
    reference: &OamRef,
    found: Child<'_>,
    siblings: Result<&[&Object], &str>,
    child: &dyn Fn(&ComponentKey) -> Child<'a>,
) -> OamCondition {
    let mut own = check(reference, found, child);
    let object = match looked_up(reference, found) {
        Ok(object) => object,
        // The controller looks it up a second time and reports that failure too, whatever the kind.
        Err(error) => return without_peers(own, &error),
    };
    let (Some(component), Some(application)) =
        (label(object, COMPONENT_LABEL), label(object, APPLICATION_LABEL))
    else {
        return own;
    };
    let siblings = match siblings {
        Ok(siblings) => siblings,
        Err(error) => return without_peers(own, &one_line(error, MAX_TEXT_BYTES)),
    };
    let peers: Vec<OamCondition> = siblings
        .iter()
        .filter(|sibling| {
            let (own, other) = (&object.key, &sibling.key);
            own.name != other.name
                && (&own.namespace, &own.group, &own.kind) == (&other.namespace, &other.group, &other.kind)
                && label(sibling, COMPONENT_LABEL) == Some(component)
                && label(sibling, APPLICATION_LABEL) == Some(application)
        })
        .take(MAX_PEERS)
        .map(|&sibling| {
            let reference = OamRef {
                name: sibling.key.name.to_string(),
                uid: None,
                ..reference.clone()
            };
            check(&reference, Child::Found(sibling), child)
        })
        .collect();
    if !peers.is_empty() {
        merge(&mut own, peers);
    }
    own
}

/// What OAM says of a scope with these workloads.
#[must_use]
pub fn roll_up(conditions: &[OamCondition]) -> OamScope {
    let count = |health| {
        let those = conditions
            .iter()
            .filter(|condition| condition.health_status == health);
        u32::try_from(those.count()).unwrap_or(u32::MAX)
    };
    let (healthy, unhealthy, unknown) = (
        count(OamHealth::Healthy),
        count(OamHealth::Unhealthy),
        count(OamHealth::Unknown),
    );
    OamScope {
        health_status: if unhealthy > 0 || unknown > 0 {
            OamHealth::Unhealthy
        } else {
            OamHealth::Healthy
        },
        total: u32::try_from(conditions.len()).unwrap_or(u32::MAX),
        healthy,
        unhealthy,
        unknown,
    }
}

/// One workload without its peers.
fn check<'a>(
    reference: &OamRef,
    found: Child<'_>,
    child: &dyn Fn(&ComponentKey) -> Child<'a>,
) -> OamCondition {
    let rule = Rule::of(&reference.api_version, &reference.kind);
    let mut condition = OamCondition {
        component_name: String::new(),
        target: reference.clone(),
        health_status: match rule {
            Rule::Unknown => OamHealth::Unknown,
            Rule::Composite | Rule::Replicas(_) | Rule::DaemonSet => OamHealth::Unhealthy,
        },
        diagnosis: String::new(),
        workload_status: None,
    };
    let object = match looked_up(reference, found) {
        Ok(object) => object,
        Err(error) => {
            condition.diagnosis = failed(&error);
            return condition;
        }
    };
    condition.component_name = label(object, COMPONENT_LABEL).unwrap_or_default().to_owned();
    let (health, diagnosis) = match rule {
        Rule::Unknown => {
            condition.workload_status = Some(object.status.as_deref().unwrap_or("null").to_owned());
            condition.diagnosis = unknown_kind(&reference.api_version, &reference.kind);
            return condition;
        }
        Rule::Composite => match &object.state {
            State::Composite(composite) => children(reference, composite, child),
            _ => (OamHealth::Unhealthy, no_children(reference)),
        },
        Rule::Replicas(_) | Rule::DaemonSet => replicas(object),
    };
    condition.target.uid = Some(object.uid.to_string());
    condition.health_status = health;
    condition.diagnosis = diagnosis;
    condition
}

/// Deployment and StatefulSet: exactly the wanted number is ready. DaemonSet: none is unavailable.
fn replicas(object: &Object) -> (OamHealth, String) {
    let State::Workload(workload) = &object.state else {
        return (OamHealth::Unhealthy, String::new());
    };
    let (is_well, wanted) = match workload.kind {
        WorkloadKind::DaemonSet => (workload.unavailable == 0, workload.desired),
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet => {
            let wanted = workload.replicas.unwrap_or(0);
            (workload.ready == wanted, wanted)
        }
    };
    let health = if is_well {
        OamHealth::Healthy
    } else {
        OamHealth::Unhealthy
    };
    (health, format!("Ready:{}/{wanted} ", workload.ready))
}

/// One Deployment and one Service are expected; a child of another kind only counts.
fn children<'a>(
    reference: &OamRef,
    composite: &Composite,
    child: &dyn Fn(&ComponentKey) -> Child<'a>,
) -> (OamHealth, String) {
    if composite.listed != 2 {
        return (OamHealth::Unhealthy, no_children(reference));
    }
    let mut worst = OamHealth::Healthy;
    let mut text = String::new();
    for named in &composite.children {
        let reference = OamRef {
            api_version: named.api_version.to_string(),
            kind: named.key.kind.to_string(),
            name: named.key.name.to_string(),
            uid: None,
        };
        let (health, diagnosis) = match named.key.kind.as_str() {
            "Deployment" => {
                let found = check(&reference, child(&named.key), child);
                (found.health_status, found.diagnosis)
            }
            "Service" => match looked_up(&reference, child(&named.key)) {
                Ok(_) => continue,
                Err(error) => (OamHealth::Unhealthy, failed(&error)),
            },
            _ => continue,
        };
        if health != OamHealth::Healthy {
            worst = OamHealth::Unhealthy;
        }
        text.push_str(&diagnosis);
    }
    (worst, text)
}

/// Any unhealthy peer makes the workload unhealthy; what is said of each is written out, newest revision first.
fn merge(own: &mut OamCondition, peers: Vec<OamCondition>) {
    let mut all = peers;
    all.push(own.clone());
    all.sort_by(|a, b| {
        let key = |condition: &OamCondition| Reverse(revision(&condition.target.name));
        key(a)
            .cmp(&key(b))
            .then_with(|| a.target.name.cmp(&b.target.name))
    });
    if all
        .iter()
        .any(|condition| condition.health_status == OamHealth::Unhealthy)
    {
        own.health_status = OamHealth::Unhealthy;
    }
    let named = |condition: &OamCondition, text: &str| format!("{}:{text}", condition.target.name);
    if own.health_status == OamHealth::Unknown {
        let statuses: Vec<String> = all
            .iter()
            .map(|condition| {
                named(
                    condition,
                    condition.workload_status.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        own.workload_status = Some(truncate(&statuses.join(" "), MAX_STATUS_BYTES).into_owned());
    } else {
        let diagnoses: Vec<String> = all
            .iter()
            .enumerate()
            // Revisions that were scaled down long ago.
            .filter(|(place, condition)| *place < 2 || condition.diagnosis != "Ready:0/0 ")
            .map(|(_, condition)| named(condition, &condition.diagnosis))
            .collect();
        own.diagnosis = truncate(&diagnoses.join(" "), MAX_DIAGNOSIS_BYTES).into_owned();
    }
}

/// The number after the last `v` of a name, `comp-v12`; 0 when there is none.
fn revision(name: &str) -> i64 {
    let digits = name.rsplit('v').next().unwrap_or(name);
    digits.parse().unwrap_or(0)
}

fn without_peers(mut condition: OamCondition, error: &str) -> OamCondition {
    condition.health_status = OamHealth::Unhealthy;
    condition.diagnosis.push_str(&format!(
        " error occurs when get versioning peer workloads refs:{error}"
    ));
    condition
}

/// The object, or the error that the controller would have got.
fn looked_up<'a>(reference: &OamRef, found: Child<'a>) -> Result<&'a Object, String> {
    match found {
        Child::Found(object) => Ok(object),
        Child::NotFound => {
            let OamRef { kind, name, .. } = reference;
            let (dot, group) = match group(&reference.api_version) {
                "" => ("", ""),
                group => (".", group),
            };
            Err(one_line(
                &format!("{kind}{dot}{group} {name:?} not found"),
                MAX_TEXT_BYTES,
            ))
        }
        Child::Unknown(why) => Err(one_line(why, MAX_TEXT_BYTES)),
    }
}

fn label<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object
        .labels
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

fn failed(error: &str) -> String {
    format!("error occurs in health check : {error}")
}

fn unknown_kind(api_version: &str, kind: &str) -> String {
    format!("APIVersion {api_version} Kind {kind} workload is unknown for HealthScope ")
}

fn no_children(reference: &OamRef) -> String {
    format!(
        "cannot get child resource references of workload {}",
        reference.name
    )
}

#[cfg(test)]
mod tests;
