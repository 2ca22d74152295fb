//! Health of Kubernetes objects as Kubernetes itself tells it: from an object as the API server sends it to the few
//! facts that count ([`decode`]), and from the facts to a verdict that names the failing leaf ([`verdict`]).
//!
//! Never an object whole, never a Secret's data, never a clock: what an object says about itself is all that is used,
//! beside what the caller looks up for it ([`Related`]). All text in an object is written by strangers; it is made
//! one bounded line before it is kept.

mod agent;
mod claim;
mod composite;
mod field;
mod healthy_when;
mod job;
mod kstatus;
pub mod oam;
mod pod;
pub mod rudr;
mod service;
mod workload;

pub use {
    agent::{Beside, Hindrance},
    composite::{ChildRef, Composite},
    healthy_when::HealthyWhen,
    job::{CronJob, Job, Progress},
    pod::{AGENT_CONTAINER, Phase, Pod, Severity, Trouble},
    workload::{Refused, Workload, WorkloadKind},
};

use {
    healthscope_crd::{effective::MAX_DEPENDENCIES, key},
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, Kind, Name, NameError, Namespace},
        one_line,
    },
    serde_json::Value,
    std::{collections::BTreeMap, sync::Arc},
};

/// Longest `.status` kept as text; a longer one is replaced by a note, which is JSON too.
pub const MAX_STATUS_BYTES: usize = 4 * 1024;

/// Longest text kept of one thing that an object says; the message of a verdict holds 256.
const MAX_TEXT_BYTES: usize = 200;

/// What is kept of one Kubernetes object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which object.
    pub key: ComponentKey,
    /// Group and version as the API server sent them.
    pub api_version: Arc<str>,
    /// The uid, which tells an object from a later one of the same name.
    pub uid: Arc<str>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// What it depends on, from its annotation.
    pub depends_on: Vec<String>,
    /// The object that controls it.
    pub controller: Option<Controller>,
    /// Set while it is being deleted: what holds it, in words; empty when nothing is known to.
    pub deleting: Option<Box<str>>,
    /// The facts.
    pub state: State,
    /// What the rule says, where one was given.
    pub rule: Option<Box<Verdict>>,
    /// Its `.status` as JSON, where [`DecodeOptions::keep_status`] asks for it: at most [`MAX_STATUS_BYTES`].
    pub status: Option<Box<str>>,
}

/// How an object is decoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodeOptions<'a> {
    /// The rule `healthyWhen` of the scope that names this very object. Its verdict then counts instead of the
    /// object's own, whatever the kind. Never evaluated on Secrets.
    pub rule: Option<&'a HealthyWhen>,
    /// Whether `.status` is kept as text: for scopes that speak OAM's version, whose answer has it for kinds that OAM
    /// does not know. Never kept of Secrets.
    pub keep_status: bool,
}

/// The owner of an object that controls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Its group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Its uid.
    pub uid: Arc<str>,
}

impl Controller {
    /// Which object it is: a controller lives in the namespace of what it controls.
    #[must_use]
    pub fn key(&self, namespace: &Namespace) -> ComponentKey {
        ComponentKey {
            namespace: namespace.clone(),
            group: group(&self.api_version).to_owned(),
            kind: self.kind.clone(),
            name: self.name.clone(),
        }
    }
}

/// The facts about an object, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// A Pod.
    Pod(Pod),
    /// A Deployment, StatefulSet, DaemonSet or ReplicaSet.
    Workload(Workload),
    /// A Job.
    Job(Job),
    /// A CronJob.
    CronJob(CronJob),
    /// A workload of OAM's own.
    Composite(Composite),
    /// Anything else: what it says about itself, judged when it was read.
    Judged(Verdict),
}

/// What is related to an object, looked up by the caller.
#[derive(Clone, Copy)]
pub struct Related<'a> {
    /// The pods that belong to the object, directly or through what it controls.
    pub pods: &'a [&'a Object],
    /// The object of a key.
    pub child: &'a dyn Fn(&ComponentKey) -> Child<'a>,
}

/// What is known of an object that another one names.
#[derive(Clone, Copy, Debug)]
pub enum Child<'a> {
    /// It is there.
    Found(&'a Object),
    /// It is known not to be there.
    NotFound,
    /// It cannot be seen, and why.
    Unknown(&'a str),
}

/// Why something is no object that can be a component.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A field that every object has is missing or no text.
    #[error("the object has no {0}")]
    Missing(&'static str),
    /// A name that Kubernetes would not accept for a component.
    #[error("cannot use the object's {field}")]
    Name {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: NameError,
    },
}

/// Decodes any object as the API server sends it.
///
/// # Errors
/// Only when the object does not say which it is; whatever else is missing or malformed counts as absent.
pub fn decode(object: &Value, options: &DecodeOptions<'_>) -> Result<Object, DecodeError> {
    let required =
        |path: &[&str], field: &'static str| field::text(object, path).ok_or(DecodeError::Missing(field));
    let named = |field: &'static str| move |source| DecodeError::Name { field, source };
    let api_version = required(&["apiVersion"], "apiVersion")?;
    let kind = required(&["kind"], "kind")?;
    let name = required(&["metadata", "name"], "metadata.name")?;
    let namespace = required(&["metadata", "namespace"], "metadata.namespace")?;
    let key = ComponentKey {
        namespace: Namespace::new(namespace).map_err(named("metadata.namespace"))?,
        group: group(api_version).to_owned(),
        kind: Kind::new(kind).map_err(named("kind"))?,
        name: Name::new(name).map_err(named("metadata.name"))?,
    };
    let state = match (key.group.as_str(), key.kind.as_str()) {
        ("", "Pod") => State::Pod(Pod::decode(object)),
        ("apps", kind) if let Some(kind) = WorkloadKind::from_kind(kind) => {
            State::Workload(Workload::decode(kind, object))
        }
        ("batch", "Job") => State::Job(Job::decode(object)),
        ("batch", "CronJob") => State::CronJob(CronJob::decode(object)),
        ("", "Service") => State::Judged(service::verdict(object)),
        ("", "PersistentVolumeClaim") => State::Judged(claim::verdict(object)),
        (group, kind) if Composite::is_one(group, kind) => {
            State::Composite(Composite::decode(&key.namespace, object))
        }
        _ => State::Judged(kstatus::verdict(kind, object)),
    };
    let rule = options.rule.map(|rule| {
        Box::new(if is_secret(&key) {
            HealthyWhen::refuse_secret()
        } else {
            rule.verdict(kind, object)
        })
    });
    let keeps_status = options.keep_status && !is_secret(&key);
    Ok(Object {
        key,
        api_version: api_version.into(),
        uid: field::text(object, &["metadata", "uid"])
            .unwrap_or_default()
            .into(),
        labels: labels(object),
        depends_on: depends_on(object),
        controller: controller(object),
        deleting: deleting(object),
        state,
        rule,
        status: keeps_status.then(|| status_text(object)),
    })
}

impl Object {
    /// The facts of a pod, if it is one.
    #[must_use]
    pub fn pod(&self) -> Option<&Pod> {
        match &self.state {
            State::Pod(pod) => Some(pod),
            State::Workload(_)
            | State::Job(_)
            | State::CronJob(_)
            | State::Composite(_)
            | State::Judged(_) => None,
        }
    }
}

/// The platform's verdict on an object.
#[must_use]
pub fn verdict(object: &Object, related: &Related<'_>) -> Verdict {
    let found = match (&object.rule, &object.state) {
        (Some(rule), _) => Verdict::clone(rule),
        (None, State::Pod(pod)) => pod.verdict(),
        (None, State::Workload(workload)) => workload.verdict(related.pods),
        (None, State::Job(job)) => job.verdict(related.pods),
        (None, State::CronJob(cron)) => cron.verdict(&object.key, related),
        (None, State::Composite(composite)) => composite.verdict(&object.key, related),
        (None, State::Judged(verdict)) => verdict.clone(),
    };
    match &object.deleting {
        Some(held_by) if found.health < Health::Unhealthy => terminating(object, held_by),
        _ => found,
    }
}

/// What the pods of a workload say together, when the workload itself is not watched.
#[must_use]
pub fn of_pods(kind: &Kind, pods: &[&Object]) -> Verdict {
    let wanted = pods
        .iter()
        .filter(|object| object.deleting.is_none() && object.pod().is_some_and(|pod| !pod.phase.is_over()));
    let (ready, all) = wanted.fold((0, 0), |(ready, all), object| {
        (
            ready + usize::from(object.pod().is_some_and(|pod| pod.ready)),
            all + 1,
        )
    });
    if ready == all {
        return healthy();
    }
    let health = if ready == 0 {
        Health::Unhealthy
    } else {
        Health::Degraded
    };
    let (reason, leaf) = match pod::culprit(pods) {
        Some((object, trouble)) => (
            trouble.reason.clone(),
            format!(", {} {}", object.key.name, trouble.text),
        ),
        None => (Reason::CONTAINERS_NOT_READY, String::new()),
    };
    Verdict::new(health, reason, format!("{kind} {ready}/{all} pods ready{leaf}"))
}

fn terminating(object: &Object, held_by: &str) -> Verdict {
    let kind = &object.key.kind;
    let message = if held_by.is_empty() {
        format!("{kind} is being deleted")
    } else {
        format!("{kind} is being deleted, held by {held_by}")
    };
    Verdict::new(Health::Unknown, Reason::TERMINATING, message)
}

fn healthy() -> Verdict {
    Verdict::new(Health::Healthy, Reason::PASSING, "")
}

/// The group of an `apiVersion`; empty for the core group.
fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn is_secret(key: &ComponentKey) -> bool {
    key.group.is_empty() && key.kind.as_str() == "Secret"
}

/// `.status` as JSON, `null` when there is none.
fn status_text(object: &Value) -> Box<str> {
    let status = object.get("status").filter(|status| status.is_object());
    let status = status.unwrap_or(&Value::Null).to_string();
    if status.len() <= MAX_STATUS_BYTES {
        status.into()
    } else {
        format!("{{\"truncated\":\"the status has {} bytes\"}}", status.len()).into()
    }
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let Some(Value::Object(labels)) = field::at(object, &["metadata", "labels"]) else {
        return BTreeMap::new();
    };
    labels
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn depends_on(object: &Value) -> Vec<String> {
    field::text(object, &["metadata", "annotations", key::DEPENDS_ON])
        .map(|annotation| {
            key::depends_on(annotation)
                .take(MAX_DEPENDENCIES)
                .map(|name| one_line(name, MAX_TEXT_BYTES))
                .collect()
        })
        .unwrap_or_default()
}

fn controller(object: &Value) -> Option<Controller> {
    let owner = field::list(object, &["metadata", "ownerReferences"])
        .iter()
        .find(|owner| field::flag(owner, &["controller"]))?;
    Some(Controller {
        api_version: field::text(owner, &["apiVersion"])?.to_owned(),
        kind: Kind::new(field::text(owner, &["kind"])?).ok()?,
        name: Name::new(field::text(owner, &["name"])?).ok()?,
        uid: field::text(owner, &["uid"])?.into(),
    })
}

fn deleting(object: &Value) -> Option<Box<str>> {
    field::text(object, &["metadata", "deletionTimestamp"])?;
    let held_by: Vec<&str> = field::list(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
        .take(3)
        .collect();
    Some(one_line(&held_by.join(", "), MAX_TEXT_BYTES).into())
}

#[cfg(test)]
mod tests;
