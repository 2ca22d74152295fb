//! The status of a HealthScope: the very object that Kubernetes gets, and whether it *means* something different from
//! another one.
//!
//! A status carries no heartbeat, counter or "last checked": it changes when something it says changes. It stays under
//! [`MAX_BYTES`] whatever the components are called.

use {
    crate::view::{MaintenanceView, MemberView, ScopeView},
    healthscope_crd::{
        condition::{self, Truth},
        v1beta1::{ComponentStatus, HealthScopeStatus, MaintenanceStatus},
    },
    healthscope_shared::{
        health::{Health, Reason},
        one_line,
    },
    jiff::Timestamp,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
    std::collections::HashMap,
};

/// Most components listed.
pub const MAX_COMPONENTS: usize = 50;
/// Scopes of up to so many components list the healthy ones too.
pub const MAX_WITH_HEALTHY: usize = 10;
/// Largest status, as JSON.
pub const MAX_BYTES: usize = 64 * 1024;
/// So much of [`MAX_BYTES`] is for the list of components; the rest is bounded by the lengths of its texts.
const MAX_COMPONENTS_BYTES: usize = 48 * 1024;

/// The spec is accepted and observed.
const ACCEPTED: Reason = Reason::from_static("Accepted");

/// The status that the scope should have.
///
/// `previous` is what it has: times are kept from it where what they are about has not changed, so that a restart of
/// the aggregator rewrites nothing.
#[must_use]
pub fn desired(
    view: &ScopeView,
    generation: Option<i64>,
    previous: Option<&HealthScopeStatus>,
    now: Timestamp,
) -> HealthScopeStatus {
    let (components, truncated) = components(view, previous);
    let mut status = HealthScopeStatus {
        observed_generation: generation,
        health: Some(view.health),
        available: Some(view.available.clone()),
        root_cause: view.root_cause.clone(),
        flapping: view.flapping,
        summary: Some(view.summary),
        components,
        truncated,
        maintenance: view.maintenance.as_ref().map(|maintenance| {
            let MaintenanceView {
                active,
                until,
                reason,
            } = maintenance.clone();
            MaintenanceStatus {
                active,
                until: until.map(Time),
                reason,
            }
        }),
        last_aggregate_timestamp: Some(Time(now)),
        conditions: previous
            .map(|previous| previous.conditions.clone())
            .unwrap_or_default(),
    };
    set_conditions(&mut status, view, generation, now);
    if let Some(previous) = previous
        && !means_different(previous, &status)
    {
        status.last_aggregate_timestamp = previous.last_aggregate_timestamp.clone();
    }
    status
}

/// Whether two statuses say different things; times alone say nothing.
#[must_use]
pub fn means_different(a: &HealthScopeStatus, b: &HealthScopeStatus) -> bool {
    let timeless = |status: &HealthScopeStatus| {
        let mut status = status.clone();
        status.last_aggregate_timestamp = None;
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        for component in &mut status.components {
            component.since = None;
        }
        status
    };
    timeless(a) != timeless(b)
}

fn set_conditions(status: &mut HealthScopeStatus, view: &ScopeView, generation: Option<i64>, now: Timestamp) {
    let stalled = !view.stalled.is_empty();
    let invalid = if view.reason == Reason::CYCLE {
        Reason::CYCLE
    } else {
        Reason::INVALID_SPEC
    };
    let why_stalled = view.stalled.join("; ");
    let notes = view.notes.join("; ");
    let healthy = match view.health {
        Health::Healthy => Truth::True,
        Health::Degraded | Health::Unhealthy => Truth::False,
        Health::Unknown => Truth::Unknown,
    };
    let available = match view.health {
        Health::Healthy | Health::Degraded => Truth::True,
        Health::Unhealthy => Truth::False,
        Health::Unknown => Truth::Unknown,
    };
    let (accepted, ready_message) = if stalled {
        (&invalid, &why_stalled)
    } else {
        (&ACCEPTED, &notes)
    };
    for (kind, truth, reason, message) in [
        (
            condition::READY,
            Truth::from(!stalled),
            accepted,
            ready_message.as_str(),
        ),
        (condition::HEALTHY, healthy, &view.reason, &view.message),
        (condition::AVAILABLE, available, &view.reason, &view.message),
        (condition::STALLED, Truth::from(stalled), accepted, &why_stalled),
    ] {
        condition::set(
            &mut status.conditions,
            kind,
            truth,
            reason,
            message,
            generation,
            now,
        );
    }
}

/// The components to list, worst first as the view has them, and whether some that are not healthy had to be left out.
fn components(view: &ScopeView, previous: Option<&HealthScopeStatus>) -> (Vec<ComponentStatus>, bool) {
    let former: HashMap<(&str, &str, &str), &ComponentStatus> = previous
        .into_iter()
        .flat_map(|previous| &previous.components)
        .map(|component| {
            (
                (&*component.api_version, &*component.kind, &*component.name),
                component,
            )
        })
        .collect();
    let with_healthy = view.components.len() <= MAX_WITH_HEALTHY;
    let mut listed = Vec::new();
    let mut bytes = 0;
    let wanted = view
        .components
        .iter()
        .filter(|member| with_healthy || member.component.health != Health::Healthy);
    for member in wanted {
        if listed.len() == MAX_COMPONENTS {
            return (listed, true);
        }
        let mut component = component_status(member);
        let key = (&*component.api_version, &*component.kind, &*component.name);
        if let Some(former) = former.get(&key)
            && former.health == component.health
            && former.since.is_some()
            && former.since < component.since
        {
            component.since.clone_from(&former.since);
        }
        bytes += serde_json::to_string(&component).map_or(0, |json| json.len() + 1);
        if bytes > MAX_COMPONENTS_BYTES {
            return (listed, member.component.health != Health::Healthy);
        }
        listed.push(component);
    }
    (listed, false)
}

fn component_status(member: &MemberView) -> ComponentStatus {
    let component = &member.component;
    ComponentStatus {
        api_version: component.api_version.to_string(),
        kind: component.kind.to_string(),
        name: component.name.to_string(),
        health: component.health,
        reason: component.reason.clone(),
        message: one_line(&component.message, condition::MAX_MESSAGE_BYTES),
        since: Some(Time(component.since)),
        caused_by: member.caused_by.as_deref().map(str::to_owned),
        required: member.required,
        flapping: component.flapping,
    }
}
