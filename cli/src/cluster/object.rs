//! A HealthScope object as a scope: what its status says, in the words of the views. Pure.
//!
//! A status holds less than an aggregator's view: no probes, and the healthy components of small scopes only. What is
//! not there is left empty, never made up.

use {
    super::error::ClusterError,
    crate::source::Scope,
    healthscope_core::{
        rollup,
        view::{ComponentSummary, InstanceCounts, MaintenanceView, MemberView, PolicyView, ScopeView},
    },
    healthscope_crd::{
        condition,
        effective::EffectivePolicy,
        v1beta1::{ComponentStatus, HealthScopeStatus, MaintenanceStatus, Policy, UnknownPolicy},
    },
    healthscope_shared::{
        health::{Health, Reason},
        name::{Kind, Name, Namespace},
        one_line,
    },
    jiff::Timestamp,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
    kube::api::DynamicObject,
    serde_json::Value,
    std::sync::Arc,
};

/// Reads an object; one whose status cannot be read is a scope of which nothing is known, and says why.
pub(super) fn scope(object: &DynamicObject) -> Result<Scope, ClusterError> {
    let strange = |error: healthscope_shared::name::NameError| ClusterError::Strange(error.to_string());
    let metadata = &object.metadata;
    let name = Name::new(metadata.name.as_deref().unwrap_or_default()).map_err(strange)?;
    let namespace = Namespace::new(metadata.namespace.as_deref().unwrap_or("default")).map_err(strange)?;
    let created = metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let (status, unreadable) = match object.data.get("status") {
        None | Some(Value::Null) => (HealthScopeStatus::default(), None),
        Some(status) => match serde_json::from_value(status.clone()) {
            Ok(status) => (status, None),
            Err(error) => (HealthScopeStatus::default(), Some(error.to_string())),
        },
    };
    let policy = policy(object.data.get("spec"));
    let view = view(namespace, name, created, status, unreadable.as_deref(), policy);
    let behind = behind(object, &view.1);
    let mut view = view.0;
    view.notes.extend(behind.clone());
    Ok(Scope {
        view,
        behind,
        object: Some(printed(object)),
    })
}

/// What stands against believing the status: it is about an older spec, or there is none.
fn behind(object: &DynamicObject, observed: &Observed) -> Option<String> {
    let generation = object.metadata.generation?;
    match observed.0 {
        None => Some("no aggregator has reported on it yet; is HealthScope's aggregator running?".to_owned()),
        Some(observed) if observed < generation => Some(format!(
            "the status is about generation {observed} and the spec is at {generation}: the aggregator has not looked \
             at it yet"
        )),
        Some(_) => None,
    }
}

/// The generation that a status is about.
struct Observed(Option<i64>);

fn view(
    namespace: Namespace,
    name: Name,
    created: Timestamp,
    status: HealthScopeStatus,
    unreadable: Option<&str>,
    policy: EffectivePolicy,
) -> (ScopeView, Observed) {
    let HealthScopeStatus {
        observed_generation,
        health,
        available,
        root_cause,
        flapping,
        summary,
        components,
        maintenance,
        conditions,
        ..
    } = status;
    let find = |kind| condition::find(&conditions, kind);
    let summary = summary.unwrap_or_default();
    let since = since(&conditions).unwrap_or(created);
    let why = find(condition::HEALTHY);
    let (reason, message) = match (health, unreadable, why) {
        (Some(_), _, Some(condition)) => (
            Reason::from_untrusted(&condition.reason),
            condition.message.clone(),
        ),
        (Some(_), _, None) => (Reason::UNKNOWN, String::new()),
        (None, Some(error), _) => (
            Reason::UNKNOWN,
            format!(
                "its status cannot be read, perhaps it is of a newer HealthScope: {}",
                one_line(error, condition::MAX_MESSAGE_BYTES)
            ),
        ),
        (None, None, _) => (
            Reason::STARTING,
            "no aggregator has reported on it yet".to_owned(),
        ),
    };
    let health = health.unwrap_or(Health::Unknown);
    let stalled = find(condition::STALLED)
        .filter(|condition| condition.status == "True")
        .map(|condition| condition.message.clone());
    let notes = find(condition::READY)
        .filter(|condition| condition.status == "True" && !condition.message.is_empty())
        .map(|condition| condition.message.clone());
    let maintenance = maintenance.map(|maintenance| {
        let MaintenanceStatus {
            active,
            until,
            reason,
        } = maintenance;
        MaintenanceView {
            active,
            until: until.map(|until| until.0),
            reason,
        }
    });
    let is_in_maintenance = maintenance.as_ref().is_some_and(|maintenance| maintenance.active);
    let is_ignored = |component: &ComponentStatus| {
        policy.unknown == UnknownPolicy::Ignore && component.health == Health::Unknown && !component.required
    };
    let left_out = match policy.unknown {
        UnknownPolicy::Ignore => {
            let required = components
                .iter()
                .filter(|component| component.health == Health::Unknown && component.required);
            let required = u32::try_from(required.count()).unwrap_or(u32::MAX);
            summary.unknown.saturating_sub(required)
        }
        UnknownPolicy::Unknown | UnknownPolicy::Unhealthy => 0,
    };
    let needed = rollup::needed(summary.total.saturating_sub(left_out), policy.min_available);
    let members = components
        .iter()
        // A name that Kubernetes has accepted can be read; one made by hand in a status need not be.
        .filter_map(|component| member(&namespace, component, is_ignored(component), since))
        .collect();
    let view = ScopeView {
        namespace: namespace.clone(),
        name,
        health,
        reason,
        message,
        since,
        available: available.unwrap_or_default(),
        summary,
        root_cause,
        root_causes: Vec::new(),
        flapping,
        alarming: !health.is_available() && !is_in_maintenance,
        maintenance,
        recovering: None,
        stalled: stalled.into_iter().collect(),
        notes: notes.into_iter().collect(),
        policy: PolicyView {
            min_available: policy.min_available,
            needed,
            unknown_policy: policy.unknown,
            min_healthy_seconds: policy.min_healthy.as_secs(),
        },
        components: members,
        conditions,
    };
    (view, Observed(observed_generation))
}

/// Since when the health has been what it is. Each of the four words is another pair of Healthy and Available, so the
/// health changed when the later of the two did.
fn since(conditions: &[Condition]) -> Option<Timestamp> {
    [condition::HEALTHY, condition::AVAILABLE]
        .into_iter()
        .filter_map(|kind| condition::find(conditions, kind))
        .map(|condition| condition.last_transition_time.0)
        .max()
}

fn member(
    namespace: &Namespace,
    component: &ComponentStatus,
    ignored: bool,
    since: Timestamp,
) -> Option<MemberView> {
    let ComponentStatus {
        api_version,
        kind,
        name,
        health,
        reason,
        message,
        since: changed,
        caused_by,
        required,
        flapping,
        instance_name: _,
        status: _,
    } = component;
    Some(MemberView {
        component: Arc::new(ComponentSummary {
            namespace: namespace.clone(),
            api_version: api_version.as_str().into(),
            kind: Kind::new(kind).ok()?,
            name: Name::new(name).ok()?,
            health: *health,
            reason: reason.clone(),
            message: message.clone(),
            since: changed.as_ref().map_or(since, |changed| changed.0),
            flapping: *flapping,
            instances: InstanceCounts::default(),
            failing: Vec::new(),
        }),
        required: *required,
        depends_on: Vec::new(),
        caused_by: caused_by.as_deref().map(Arc::from),
        ignored,
    })
}

/// The policy as far as it can be read: it decides about a number in a sentence, not about the verdict.
fn policy(spec: Option<&Value>) -> EffectivePolicy {
    let default = EffectivePolicy::default();
    let Some(Ok(policy)) = spec
        .and_then(|spec| spec.get("policy"))
        .map(|policy| serde_json::from_value::<Policy>(policy.clone()))
    else {
        return default;
    };
    EffectivePolicy {
        min_available: policy
            .min_available
            .and_then(|percent| u8::try_from(percent).ok())
            .map_or(default.min_available, |percent| percent.min(100)),
        unknown: policy.unknown_policy.unwrap_or(default.unknown),
        min_healthy: policy
            .min_healthy_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(default.min_healthy, std::time::Duration::from_secs),
    }
}

/// The object as kubectl prints it: without who wrote which field.
fn printed(object: &DynamicObject) -> Value {
    let mut object = object.clone();
    object.metadata.managed_fields = None;
    serde_json::to_value(&object).expect("an object that came as JSON can be written as JSON")
}
