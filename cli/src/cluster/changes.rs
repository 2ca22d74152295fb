//! What changed between two statuses of a scope, as an aggregator's stream tells it. Pure.
//!
//! A status lists healthy components in small scopes only, so one that is not listed is healthy or not a member: where
//! that cannot be told apart nothing is said.

use {
    healthscope_core::view::{Change, MemberView, ScopeView, TransitionView},
    healthscope_crd::v1beta1,
    healthscope_shared::{
        health::{Health, Reason},
        name::{Kind, Name},
    },
    jiff::Timestamp,
    std::collections::BTreeMap,
};

/// The changes of a scope and of its components, components first as they happen; `id` is for all of them.
pub(crate) fn between(
    before: Option<&ScopeView>,
    after: &ScopeView,
    id: u64,
    now: Timestamp,
) -> Vec<TransitionView> {
    let former = before.map(members).unwrap_or_default();
    let present = members(after);
    let mut changes = Vec::new();
    // A scope that is seen for the first time brings its components with it; they are no news.
    if let Some(before) = before {
        for (key, member) in &present {
            let from = match former.get(key) {
                Some(former) => former.component.health,
                None if lists_all(before) => Health::Unknown,
                None => Health::Healthy,
            };
            let to = member.component.health;
            if from != to {
                changes.push(component(member, from, Some(to), id, member.component.since));
            }
        }
        for (key, member) in &former {
            if present.contains_key(key) {
                continue;
            }
            let to = if lists_all(after) {
                None
            } else {
                Some(Health::Healthy)
            };
            // More than fit into the list: this one may be among those left out.
            let is_certain = lists_all(after) || lists_all_ill(after);
            if is_certain && to != Some(member.component.health) {
                changes.push(component(member, member.component.health, to, id, now));
            }
        }
    }
    let from = before.map_or(Health::Unknown, |before| before.health);
    if from != after.health {
        changes.push(TransitionView {
            id,
            time: after.since,
            change: Change::Scope {
                from,
                to: after.health,
                maintenance: after
                    .maintenance
                    .as_ref()
                    .is_some_and(|maintenance| maintenance.active),
            },
            namespace: after.namespace.clone(),
            kind: Kind::new(v1beta1::KIND).expect("the kind of a scope is a valid kind"),
            name: after.name.clone(),
            reason: after.reason.clone(),
            message: after.message.clone(),
        });
    }
    changes
}

fn component(
    member: &MemberView,
    from: Health,
    to: Option<Health>,
    id: u64,
    time: Timestamp,
) -> TransitionView {
    let component = &member.component;
    // What the member said before explains nothing about now.
    let (reason, message) = match to {
        Some(to) if to == component.health => (component.reason.clone(), component.message.clone()),
        Some(_) => (Reason::PASSING, String::new()),
        None => (Reason::REMOVED, String::new()),
    };
    TransitionView {
        id,
        time,
        change: Change::Component { from, to },
        namespace: component.namespace.clone(),
        kind: component.kind.clone(),
        name: component.name.clone(),
        reason,
        message,
    }
}

fn members(scope: &ScopeView) -> BTreeMap<(&str, &Kind, &Name), &MemberView> {
    let listed = scope.components.iter();
    listed
        .map(|member| {
            let component = &member.component;
            (
                (&*component.api_version, &component.kind, &component.name),
                member,
            )
        })
        .collect()
}

fn lists_all(scope: &ScopeView) -> bool {
    scope.components.len() as u64 >= u64::from(scope.summary.total)
}

fn lists_all_ill(scope: &ScopeView) -> bool {
    let ill = scope
        .components
        .iter()
        .filter(|member| member.component.health != Health::Healthy);
    ill.count() as u64 >= u64::from(scope.summary.total - scope.summary.healthy.min(scope.summary.total))
}
