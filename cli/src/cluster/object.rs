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

const UNREPORTED: &str = "no aggregator has reported on it yet; is HealthScope's aggregator running?";

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
            // The schema's defaults alone are nobody's word.
            Ok(HealthScopeStatus {
                observed_generation: None,
                summary: None,
                conditions,
                ..
            }) if conditions.is_empty() => (HealthScopeStatus::default(), None),
            Ok(status) => (status, None),
            Err(error) => (HealthScopeStatus::default(), Some(error.to_string())),
        },
    };
    let policy = policy(object.data.get("spec"));
    let is_reported = status.observed_generation.is_some();
    let behind = behind(metadata.generation, status.observed_generation);
    let mut view = view(namespace, name, created, status, unreadable.as_deref(), policy);
    if is_reported {
        view.notes.extend(behind.clone());
    }
    Ok(Scope {
        view,
        behind,
        object: Some(printed(object)),
    })
}

/// What stands against believing the status: it is about an older spec, or there is none.
fn behind(generation: Option<i64>, observed: Option<i64>) -> Option<String> {
    let generation = generation?;
    match observed {
        None => Some(UNREPORTED.to_owned()),
        Some(observed) if observed < generation => Some(format!(
            "the status is about generation {observed} and the spec is at {generation}: the aggregator has not looked \
             at it yet"
        )),
        Some(_) => None,
    }
}

fn view(
    namespace: Namespace,
    name: Name,
    created: Timestamp,
    status: HealthScopeStatus,
    unreadable: Option<&str>,
    policy: EffectivePolicy,
) -> ScopeView {
    let HealthScopeStatus {
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
        (None, None, _) => (Reason::STARTING, UNREPORTED.to_owned()),
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
    ScopeView {
        namespace,
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
    }
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

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{golden, terminal::Terminal, why::tree},
        serde_json::json,
    };

    fn read(value: Value) -> Scope {
        scope(&serde_json::from_value(value).unwrap()).unwrap()
    }

    fn object(generation: i64, status: &Value) -> Value {
        json!({
            "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
            "metadata": {
                "name": "shop", "namespace": "prod", "generation": generation,
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"policy": {"minAvailable": 75}, "new": {"field": 1}},
            "status": status,
        })
    }

    fn condition(kind: &str, status: &str, time: &str) -> Value {
        json!({"type": kind, "status": status, "reason": "PolicyNotMet", "message": "db is gone",
               "lastTransitionTime": time})
    }

    #[test]
    fn what_a_status_counts_and_does_not_list_is_counted_in_the_tree() {
        let ill: Vec<Value> = (0..25)
            .map(|number| {
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("web-{number:02}"),
                       "health": "Unhealthy", "reason": "NotReady", "message": "0/1 ready",
                       "since": "2026-01-02T04:59:00Z"})
            })
            .collect();
        let scope = read(object(
            3,
            &json!({
                "observedGeneration": 2, "health": "Unhealthy", "available": "40/100", "rootCause": "web-00: 0/1 ready",
                "summary": {"total": 100, "healthy": 40, "degraded": 0, "unhealthy": 60, "unknown": 0},
                "components": ill, "truncated": true,
                "maintenance": {"active": true, "reason": "new database"},
                "conditions": [
                    condition("Healthy", "False", "2026-01-02T04:00:00Z"),
                    condition("Available", "False", "2026-01-02T04:30:00Z"),
                ],
            }),
        ));
        assert!(!scope.view.alarming);
        golden::check(
            "why-status.txt",
            &tree::render(
                &scope.view,
                &tree::Scopes::new(),
                golden::now(),
                Terminal::plain(),
            ),
        );
    }

    #[test]
    fn a_scope_changed_when_the_later_of_its_conditions_did() {
        let since = |status: Value| read(object(1, &status)).view.since.to_string();
        assert_eq!(since(json!(null)), "2026-01-01T00:00:00Z");
        // Degraded became Unhealthy: Healthy was False before.
        let status = json!({"health": "Unhealthy", "conditions": [
            condition("Available", "False", "2026-01-02T00:00:00Z"),
            condition("Healthy", "False", "2026-01-01T12:00:00Z"),
            condition("Ready", "True", "2026-01-05T00:00:00Z"),
        ]});
        assert_eq!(since(status), "2026-01-02T00:00:00Z");
    }

    #[test]
    fn a_status_of_an_older_spec_is_not_believed() {
        let behind = |generation, status: Value| read(object(generation, &status)).behind;
        assert_eq!(
            behind(2, json!({"observedGeneration": 2, "health": "Healthy"})),
            None
        );
        assert!(
            behind(3, json!({"observedGeneration": 2, "health": "Healthy"}))
                .unwrap()
                .starts_with("the status is about generation 2 and the spec is at 3")
        );
        assert!(
            behind(1, json!(null))
                .unwrap()
                .contains("no aggregator has reported")
        );
    }

    #[test]
    fn a_status_of_a_newer_version_is_unknown_and_says_so() {
        let scope = read(object(1, &json!({"observedGeneration": 1, "health": "Radiant"})));
        assert_eq!(scope.view.health, Health::Unknown);
        assert!(
            scope
                .view
                .message
                .contains("perhaps it is of a newer HealthScope"),
            "{}",
            scope.view.message
        );
    }

    #[test]
    fn printed_objects_do_not_say_who_wrote_which_field() {
        let scope = read(object(1, &json!({})));
        let printed = scope.object.clone().unwrap();
        assert_eq!(printed["metadata"]["managedFields"], Value::Null);
        assert_eq!(printed["spec"]["new"]["field"], 1);
        assert_eq!(scope.version(), 0);
    }

    #[test]
    fn components_that_are_left_out_do_not_count_for_the_policy() {
        let scope = |policy: &str| {
            let mut value = object(
                1,
                &json!({"health": "Healthy", "summary": {"total": 5, "healthy": 3, "unknown": 2},
                       "components": [{"apiVersion": "apps/v1", "kind": "Job", "name": "a", "health": "Unknown",
                                       "reason": "Starting", "required": true}]}),
            );
            value["spec"]["policy"] = json!({"minAvailable": 50, "unknownPolicy": policy});
            read(value).view.policy.needed
        };
        assert_eq!((scope("Unknown"), scope("Ignore")), (3, 2));
    }
}
