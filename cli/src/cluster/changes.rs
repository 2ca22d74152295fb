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

#[cfg(test)]
mod tests {
    use {super::*, crate::golden::recorded, std::sync::Arc};

    /// A scope with these components, `web=Healthy`; those marked with `!` are counted and not listed.
    fn scope(health: Health, components: &str) -> ScopeView {
        let mut scope: ScopeView = recorded("scope-payments.json");
        scope.health = health;
        let template = scope.components.remove(0);
        scope.summary = healthscope_crd::v1beta1::Summary::default();
        for word in components.split_whitespace() {
            let (name, word) = word.split_once('=').unwrap();
            let health = Health::ALL
                .into_iter()
                .find(|health| health.as_str() == word)
                .unwrap();
            scope.summary.add(health);
            if name.starts_with('!') {
                continue;
            }
            let mut member = template.clone();
            let component = Arc::make_mut(&mut member.component);
            component.name = Name::new(name).unwrap();
            component.health = health;
            scope.components.push(member);
        }
        scope
    }

    #[track_caller]
    fn check(before: Option<(Health, &str)>, after: (Health, &str), expected: &str) {
        let before = before.map(|(health, components)| scope(health, components));
        let told = between(
            before.as_ref(),
            &scope(after.0, after.1),
            7,
            Timestamp::UNIX_EPOCH,
        );
        let told: Vec<String> = told
            .iter()
            .map(|told| match &told.change {
                Change::Scope { from, to, .. } => format!("scope {from}>{to}"),
                Change::Component { from, to: Some(to) } => format!("{} {from}>{to}", told.name),
                Change::Component { from, to: None } => format!("{} {from}>gone", told.name),
                Change::Probe { .. } => unreachable!("a status knows no probes"),
            })
            .collect();
        assert_eq!(told.join(", "), expected);
    }

    #[test]
    fn changes_of_a_scope_and_its_components_are_told() {
        use Health::{Degraded, Healthy, Unhealthy, Unknown};
        let all_well = Some((Healthy, "db=Healthy web=Healthy"));
        check(all_well, (Healthy, "db=Healthy web=Healthy"), "");
        check(
            all_well,
            (Unhealthy, "db=Unhealthy web=Healthy"),
            "db Healthy>Unhealthy, scope Healthy>Unhealthy",
        );
        check(all_well, (Healthy, "web=Healthy"), "db Healthy>gone");
        check(
            all_well,
            (Unknown, "db=Healthy web=Healthy job=Degraded"),
            "job Unknown>Degraded, scope Healthy>Unknown",
        );
        check(None, (Degraded, "db=Degraded"), "scope Unknown>Degraded");
        check(None, (Unknown, "db=Unknown"), "");
    }

    #[test]
    fn what_is_not_listed_is_healthy_where_only_healthy_ones_are_left_out() {
        use Health::{Healthy, Unhealthy};
        check(
            Some((Healthy, "!a=Healthy !b=Healthy")),
            (Unhealthy, "a=Unhealthy !b=Healthy"),
            "a Healthy>Unhealthy, scope Healthy>Unhealthy",
        );
        check(
            Some((Unhealthy, "a=Unhealthy !b=Healthy")),
            (Healthy, "!a=Healthy !b=Healthy"),
            "a Unhealthy>Healthy, scope Unhealthy>Healthy",
        );
        // Another ill one is left out: `a` may be that one.
        check(
            Some((Unhealthy, "a=Unhealthy b=Unhealthy")),
            (Unhealthy, "!a=Unhealthy b=Unhealthy"),
            "",
        );
    }
}
