//! The status of a HealthScope: the very object that Kubernetes gets, and whether it *means* something different from
//! another one.
//!
//! A status carries no heartbeat, counter or "last checked": it changes when something it says changes. It stays under
//! [`MAX_BYTES`] whatever the components are called.

use {
    crate::view::{MaintenanceView, MemberView, ScopeView},
    healthscope_crd::{
        condition::{self, Truth},
        v1alpha2::{ScopeHealthCondition, WorkloadHealthCondition},
        v1beta1::{ComponentStatus, HealthScopeStatus, MaintenanceStatus},
    },
    healthscope_shared::{
        health::{Health, Reason},
        name::{Kind, Name},
        one_line,
    },
    jiff::Timestamp,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
    std::collections::{BTreeMap, HashMap},
};

/// Most components listed.
pub const MAX_COMPONENTS: usize = 50;
/// Scopes of up to so many components list the healthy ones too.
pub const MAX_WITH_HEALTHY: usize = 10;
/// Largest status, as JSON.
pub const MAX_BYTES: usize = 64 * 1024;
/// So much of [`MAX_BYTES`] is for the list of components, OAM's list among it; the rest is bounded by the lengths of its
/// texts.
const MAX_COMPONENTS_BYTES: usize = 48 * 1024;
/// So much of that is OAM's where there is one.
const MAX_CONDITIONS_BYTES: usize = 24 * 1024;

/// The spec is accepted and observed.
const ACCEPTED: Reason = Reason::from_static("Accepted");

/// What the status says besides in the words of older versions, for objects whose writers speak these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OldWords {
    /// OAM's verdict on the scope and on its workloads; without it our own verdict is told in OAM's words.
    pub oam: Option<(ScopeHealthCondition, Vec<WorkloadHealthCondition>)>,
    /// Rudr's word for each component, by kind and name.
    pub rudr: Option<BTreeMap<(Kind, Name), &'static str>>,
}

/// The status that the scope should have.
///
/// `previous` is what it has: times are kept from it where what they are about has not changed, so that a restart of
/// the aggregator rewrites nothing.
#[must_use]
pub fn desired(
    view: &ScopeView,
    old_words: &OldWords,
    generation: Option<i64>,
    previous: Option<&HealthScopeStatus>,
    now: Timestamp,
) -> HealthScopeStatus {
    let (components, truncated) = components(view, old_words, previous);
    let (scope_health_condition, health_conditions) = match &old_words.oam {
        Some((scope, workloads)) => (*scope, fitting(workloads)),
        None => (ScopeHealthCondition::of(view.health, &view.summary), Vec::new()),
    };
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
        scope_health_condition: Some(scope_health_condition),
        health_conditions,
        app_health_conditions: previous
            .map(|previous| previous.app_health_conditions.clone())
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
        // An API server keeps whole seconds.
        if let Some(Time(until)) = status
            .maintenance
            .as_mut()
            .and_then(|maintenance| maintenance.until.as_mut())
        {
            *until = Timestamp::from_second(until.as_second()).unwrap_or(*until);
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
fn components(
    view: &ScopeView,
    old_words: &OldWords,
    previous: Option<&HealthScopeStatus>,
) -> (Vec<ComponentStatus>, bool) {
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
    // Rudr's readers look for each component by name.
    let with_healthy = view.components.len() <= MAX_WITH_HEALTHY || old_words.rudr.is_some();
    let max_bytes = match &old_words.oam {
        Some(_) => MAX_COMPONENTS_BYTES - MAX_CONDITIONS_BYTES,
        None => MAX_COMPONENTS_BYTES,
    };
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
        if let Some(words) = &old_words.rudr {
            let key = (member.component.kind.clone(), member.component.name.clone());
            component.status = words.get(&key).map(|&word| word.to_owned());
        }
        let key = (&*component.api_version, &*component.kind, &*component.name);
        if let Some(former) = former.get(&key)
            && former.health == component.health
            && former.since.is_some()
            && former.since < component.since
        {
            component.since.clone_from(&former.since);
        }
        bytes += serde_json::to_string(&component).map_or(0, |json| json.len() + 1);
        if bytes > max_bytes {
            return (listed, member.component.health != Health::Healthy);
        }
        listed.push(component);
    }
    (listed, false)
}

/// OAM's list as far as it fits: those at the end first go without their texts, then not at all.
fn fitting(conditions: &[WorkloadHealthCondition]) -> Vec<WorkloadHealthCondition> {
    let size = |condition: &WorkloadHealthCondition| {
        serde_json::to_string(condition).map_or(usize::MAX, |json| json.len() + 1)
    };
    let mut room = MAX_CONDITIONS_BYTES;
    let mut fitting = Vec::new();
    for condition in conditions.iter().take(MAX_COMPONENTS) {
        let mut condition = condition.clone();
        // The names of those that follow must fit too.
        if size(&condition) > room / 2 {
            condition.diagnosis = None;
            condition.workload_status = None;
        }
        let Some(left) = room.checked_sub(size(&condition)) else {
            break;
        };
        room = left;
        fitting.push(condition);
    }
    fitting
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
        instance_name: None,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::view::{ComponentSummary, InstanceCounts, PolicyView},
        healthscope_crd::v1beta1::{Summary, UnknownPolicy},
        healthscope_shared::name::{Kind, Name, Namespace},
        std::sync::Arc,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn member(kind: &str, name: &str, health: Health, message: &str) -> MemberView {
        MemberView {
            component: Arc::new(ComponentSummary {
                namespace: Namespace::default(),
                api_version: "apps/v1".into(),
                kind: Kind::new(kind).unwrap(),
                name: Name::new(name).unwrap(),
                health,
                reason: Reason::from_untrusted(&"R".repeat(Reason::MAX_BYTES)),
                message: message.into(),
                since: at(5),
                flapping: true,
                instances: InstanceCounts::default(),
                failing: Vec::new(),
            }),
            required: true,
            depends_on: Vec::new(),
            caused_by: None,
            ignored: false,
        }
    }

    fn view(health: Health, components: Vec<MemberView>) -> ScopeView {
        let mut summary = Summary::default();
        components
            .iter()
            .for_each(|member| summary.add(member.component.health));
        ScopeView {
            namespace: Namespace::default(),
            name: Name::new("shop").unwrap(),
            health,
            reason: Reason::POLICY_NOT_MET,
            message: "why".into(),
            since: at(5),
            available: format!("{}/{}", summary.available(), summary.total),
            summary,
            root_cause: None,
            root_causes: Vec::new(),
            flapping: false,
            alarming: true,
            maintenance: None,
            recovering: None,
            stalled: Vec::new(),
            notes: Vec::new(),
            policy: PolicyView {
                min_available: 100,
                needed: 0,
                unknown_policy: UnknownPolicy::Unknown,
                min_healthy_seconds: 0,
            },
            components,
            conditions: Vec::new(),
        }
    }

    fn name(number: usize) -> String {
        format!("{}{number:05}", "n".repeat(248))
    }

    #[test]
    fn ten_thousand_components_with_the_longest_names_fit() {
        let kind = format!("K{}", "k".repeat(62));
        // Every character of the message needs an escape.
        let message = "\"".repeat(condition::MAX_MESSAGE_BYTES);
        let members: Vec<MemberView> = (0..10_000)
            .map(|number| {
                let mut member = member(&kind, &name(number), Health::Unhealthy, &message);
                member.caused_by = Some(format!("{kind}.{}/{}", name(0), name(1)).into());
                let component = Arc::make_mut(&mut member.component);
                component.api_version = format!("{}/{}", name(number), "v".repeat(63)).into();
                member
            })
            .collect();
        let mut view = view(Health::Unhealthy, members);
        view.root_cause = Some(format!("{}: {message}", name(1)));
        view.message = message.clone();
        view.stalled = vec![message.clone(); 100];
        view.notes = vec![message.clone(); 100];
        view.maintenance = Some(MaintenanceView {
            active: true,
            until: Some(at(1)),
            reason: message,
        });
        let status = desired(&view, &OldWords::default(), Some(i64::MAX), None, at(1));
        let bytes = serde_json::to_string(&status).unwrap().len();
        assert!(bytes <= MAX_BYTES, "{bytes}");
        assert!(
            status.truncated && status.components.len() > 20,
            "{}",
            status.components.len()
        );
    }

    #[test]
    fn usual_scopes_stay_small() {
        let members = (0..10)
            .map(|number| member("Deployment", &format!("web-{number}"), Health::Healthy, ""))
            .collect();
        let status = desired(
            &view(Health::Healthy, members),
            &OldWords::default(),
            Some(1),
            None,
            at(1),
        );
        let bytes = serde_json::to_string(&status).unwrap().len();
        assert!(bytes < 4_096, "{bytes}");
    }

    #[test]
    fn healthy_components_are_listed_in_small_scopes_alone() {
        #[track_caller]
        fn check(healthy: usize, unhealthy: usize, listed: usize, truncated: bool) {
            let sick = (0..unhealthy)
                .map(|number| member("Component", &format!("s{number}"), Health::Unhealthy, "x"));
            let well =
                (0..healthy).map(|number| member("Component", &format!("w{number}"), Health::Healthy, ""));
            let status = desired(
                &view(Health::Unhealthy, sick.chain(well).collect()),
                &OldWords::default(),
                None,
                None,
                at(1),
            );
            assert_eq!(
                (status.components.len(), status.truncated),
                (listed, truncated),
                "{healthy} {unhealthy}"
            );
        }
        check(0, 0, 0, false);
        check(9, 1, 10, false);
        check(10, 1, 1, false);
        check(11, 0, 0, false);
        check(0, 50, 50, false);
        check(1_000, 51, 50, true);
    }

    #[test]
    fn times_alone_mean_nothing() {
        let one = desired(
            &view(
                Health::Unhealthy,
                vec![member("Component", "a", Health::Unhealthy, "x")],
            ),
            &OldWords::default(),
            Some(1),
            None,
            at(1),
        );
        let mut other = one.clone();
        other.last_aggregate_timestamp = Some(Time(at(9)));
        other.conditions[0].last_transition_time = Time(at(9));
        other.components[0].since = Some(Time(at(9)));
        assert!(!means_different(&one, &other));
        let until = |millis| HealthScopeStatus {
            maintenance: Some(MaintenanceStatus {
                until: Some(Time(Timestamp::from_millisecond(millis).unwrap())),
                ..Default::default()
            }),
            ..one.clone()
        };
        assert!(!means_different(&until(1_500), &until(1_000)));
        for change in [
            |status: &mut HealthScopeStatus| status.health = Some(Health::Degraded),
            |status: &mut HealthScopeStatus| status.observed_generation = Some(2),
            |status: &mut HealthScopeStatus| status.components[0].message = "y".into(),
            |status: &mut HealthScopeStatus| status.conditions[1].status = "True".into(),
            |status: &mut HealthScopeStatus| status.truncated = true,
            |status: &mut HealthScopeStatus| {
                status.maintenance = Some(MaintenanceStatus {
                    until: Some(Time(at(1))),
                    ..Default::default()
                });
            },
        ] {
            let mut other = one.clone();
            change(&mut other);
            assert!(means_different(&one, &other));
        }
    }

    #[test]
    fn times_are_kept_while_nothing_changes() {
        let members = |health| vec![member("Component", "a", health, "x")];
        let first = desired(
            &view(Health::Unhealthy, members(Health::Unhealthy)),
            &OldWords::default(),
            Some(1),
            None,
            at(100),
        );
        // A new aggregator knows of the trouble since later only.
        let mut later = view(Health::Unhealthy, members(Health::Unhealthy));
        Arc::make_mut(&mut later.components[0].component).since = at(200);
        let second = desired(&later, &OldWords::default(), Some(1), Some(&first), at(200));
        assert_eq!(second, first);
        let third = desired(
            &view(Health::Healthy, members(Health::Healthy)),
            &OldWords::default(),
            Some(1),
            Some(&second),
            at(300),
        );
        assert_eq!(third.last_aggregate_timestamp, Some(Time(at(300))));
        let times: Vec<(&str, i64)> = third
            .conditions
            .iter()
            .map(|condition| {
                (
                    condition.type_.as_str(),
                    condition.last_transition_time.0.as_second(),
                )
            })
            .collect();
        assert_eq!(
            times,
            [
                ("Ready", 100),
                ("Healthy", 300),
                ("Available", 300),
                ("Stalled", 100)
            ]
        );
    }

    #[test]
    fn conditions_follow_the_health() {
        #[track_caller]
        fn check(health: Health, stalled: &[&str], expected: [&str; 4]) {
            let view = ScopeView {
                stalled: stalled.iter().map(|&reason| reason.into()).collect(),
                ..view(health, Vec::new())
            };
            let status = desired(&view, &OldWords::default(), None, None, at(1));
            let found: Vec<&str> = status
                .conditions
                .iter()
                .map(|condition| condition.status.as_str())
                .collect();
            assert_eq!(found, expected, "{health} {stalled:?}");
        }
        // Ready, Healthy, Available, Stalled.
        check(Health::Healthy, &[], ["True", "True", "True", "False"]);
        check(Health::Degraded, &[], ["True", "False", "True", "False"]);
        check(Health::Unknown, &[], ["True", "Unknown", "Unknown", "False"]);
        check(Health::Unhealthy, &[], ["True", "False", "False", "False"]);
        check(Health::Healthy, &["bad"], ["False", "True", "True", "True"]);
    }
}
