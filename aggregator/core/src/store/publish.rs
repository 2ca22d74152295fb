//! Publication: what changed since the last one is rebuilt, once, what is nested first.

use {
    super::{Changes, Store, explain},
    crate::{
        cluster::Cluster,
        component::ComponentId,
        event::Now,
        log::Subject,
        membership::{self, Candidate},
        scope::{Scope, ScopeChange},
        snapshot::Snapshot,
        view::{Change, ComponentSummary, Totals},
    },
    healthscope_crd::{effective::MemberRef, v1beta1},
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, Kind, Name},
    },
    std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    },
};

impl Store {
    /// Whether [`Self::publish`] has something to do.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.components.is_dirty()
            || !self.dirty_scopes.is_empty()
            || !self.removed.is_empty()
            || self.log.is_waiting()
            || self.cluster.as_ref().is_some_and(Cluster::is_dirty)
            || self.is_miscounted()
    }

    /// Whether agents came or went without changing anything else; readers see their number.
    fn is_miscounted(&self) -> bool {
        let totals = &self.snapshot.totals;
        let (known, connected) = (self.fleet.len(), self.fleet.connected());
        (totals.agents_connected, totals.agents_absent) != (count(connected), count(known - connected))
    }

    /// The picture of the last publication.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    /// Rebuilds what changed and hands it out.
    pub fn publish(&mut self, now: Now) -> Changes {
        if !self.is_dirty() {
            return Changes {
                snapshot: self.snapshot(),
                ..Changes::default()
            };
        }
        self.look_at_cluster(now);
        let mut changes = Changes {
            removed: std::mem::take(&mut self.removed),
            ..Changes::default()
        };
        for id in self.components.take_dirty() {
            self.publish_component(id, &mut changes);
        }
        while let Some((_, position)) = self.dirty_scopes.pop_first() {
            self.publish_scope(position, now, &mut changes);
        }
        changes.transitions = self.log.take();

        let mut scopes = Arc::clone(&self.snapshot.scopes);
        if !(changes.removed.is_empty() && changes.scopes.is_empty()) {
            let map = Arc::make_mut(&mut scopes);
            for key in &changes.removed {
                map.remove(key);
            }
            for entry in &changes.scopes {
                map.insert(entry.view.key(), Arc::clone(entry));
            }
        }
        let transitions = self
            .log
            .changed()
            .unwrap_or_else(|| Arc::clone(&self.snapshot.transitions));
        self.snapshot = Arc::new(Snapshot {
            at: Some(now.wall),
            scopes,
            transitions,
            last_transition: self.log.last(),
            forgotten_transition: self.log.forgotten(),
            totals: self.totals(),
        });
        changes.snapshot = self.snapshot();
        changes
    }

    /// Everything in numbers, as it is now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut scopes = v1beta1::Summary::default();
        for scope in &self.scopes {
            if let Some(entry) = &scope.entry {
                scopes.add(entry.view.health);
            }
        }
        Totals {
            scopes,
            components: self.components.summary(),
            agents_connected: count(self.fleet.connected()),
            agents_absent: count(self.fleet.len() - self.fleet.connected()),
            instances: count(self.fleet.instances),
            probes: count(self.fleet.probes),
            missed_transitions: self.fleet.missed,
            dropped_transitions: self.log.dropped(),
        }
    }

    fn publish_component(&mut self, id: ComponentId, changes: &mut Changes) {
        let summary = self.summary(id);
        let component = self.components.get_mut(id);
        if component.summary.as_deref() == Some(&summary) {
            return;
        }
        let summary = Arc::new(summary);
        let scopes = component.scopes.clone();
        // Outside of scopes nobody reads it before the next change, so it is not kept.
        component.summary = (!scopes.is_empty()).then(|| Arc::clone(&summary));
        changes.components.push(summary);
        for scope in scopes {
            self.mark_scope(scope);
        }
    }

    /// A component in short, as it is now.
    pub(super) fn summary(&self, id: ComponentId) -> ComponentSummary {
        let component = self.components.get(id);
        let Verdict {
            health,
            reason,
            message,
        } = self.verdict(id);
        debug_assert_eq!(
            health, component.health,
            "a component is settled after every change"
        );
        ComponentSummary {
            namespace: component.key.namespace.clone(),
            api_version: Arc::clone(&component.api_version),
            kind: component.key.kind.clone(),
            name: component.key.name.clone(),
            health,
            reason,
            message,
            since: explain::time(component.since),
            flapping: component.flapping > 0,
            instances: component.counted(),
            failing: explain::failing(&self.fleet, component.sick.iter()),
        }
    }

    fn publish_scope(&mut self, position: u32, now: Now, changes: &mut Changes) {
        if self.scopes[position as usize].members_dirty {
            self.resolve_members(position);
        }
        let ids: Vec<ComponentId> = self.scopes[position as usize]
            .members
            .list
            .iter()
            .map(|member| member.id)
            .collect();
        let mut summaries = Vec::with_capacity(ids.len());
        for id in ids {
            summaries.push(match &self.components.get(id).summary {
                Some(summary) => Arc::clone(summary),
                None => {
                    let summary = Arc::new(self.summary(id));
                    self.components.get_mut(id).summary = Some(Arc::clone(&summary));
                    summary
                }
            });
        }
        let stage = self.stage();
        let old_words = self.old_words(position);
        let scope = &mut self.scopes[position as usize];
        let former_deadline = scope.deadline.take();
        let (entry, change) = scope.rebuild(&summaries, &old_words, stage, now);
        if let Some(former) = former_deadline {
            self.scope_deadlines.remove(&(former, position));
        }
        if let Some(deadline) = scope.deadline {
            self.scope_deadlines.insert((deadline, position));
        }
        if let Some(ScopeChange {
            from,
            to,
            maintenance,
            verdict,
        }) = change
        {
            let subject = Subject {
                namespace: &scope.key.namespace,
                kind: &Kind::new(v1beta1::KIND).expect("the kind of a scope is a valid kind"),
                name: &scope.key.name,
            };
            let Verdict {
                health: _,
                reason,
                message,
            } = verdict;
            self.log.push(
                now.wall,
                subject,
                Change::Scope {
                    from,
                    to,
                    maintenance,
                },
                reason,
                message,
            );
        }
        let nested = scope.component.zip(scope.nested_verdict());
        changes.scopes.extend(entry);
        if let Some((id, verdict)) = nested
            && self.components.get(id).nested.as_deref() != Some(&verdict)
        {
            self.components.get_mut(id).nested = Some(Box::new(verdict));
            self.settle(id, now);
            for id in self.components.take_dirty() {
                self.publish_component(id, changes);
            }
        }
    }

    fn resolve_members(&mut self, position: u32) {
        let scope = &self.scopes[position as usize];
        let named: BTreeMap<&ComponentKey, &MemberRef> = scope
            .spec
            .iter()
            .flat_map(|spec| &spec.members)
            .map(|member| (&member.key, member))
            .collect();
        let by_name = named.keys().filter_map(|key| self.components.find(key));
        let ids: BTreeSet<ComponentId> = by_name.chain(scope.by_label.iter().copied()).collect();
        let candidates = ids
            .into_iter()
            .map(|id| {
                let component = self.components.get(id);
                Candidate {
                    id,
                    key: &component.key,
                    named: named.get(&*component.key).copied(),
                    depends_on: &component.depends_on,
                }
            })
            .collect();
        let mut members = membership::resolve(candidates);
        let required = scope.spec.as_ref().map_or(&[][..], |spec| &spec.required);
        let mut missing: BTreeSet<&Name> = required.iter().collect();
        for member in &mut members.list {
            let name = &self.components.get(member.id).key.name;
            if required.contains(name) {
                member.required = true;
                missing.remove(name);
            }
        }
        let missing = missing.into_iter().cloned().collect();
        let scope = &mut self.scopes[position as usize];
        scope.missing = missing;
        scope.members = members;
        scope.members_dirty = false;
    }
}

impl Scope {
    /// What this scope is for a scope that names it; `None` before it was rolled up.
    pub(super) fn nested_verdict(&self) -> Option<Verdict> {
        let view = &self.entry.as_ref()?.view;
        let message = view.root_cause.as_deref().unwrap_or(&view.message);
        let reason = if view.health == Health::Healthy {
            Reason::PASSING
        } else {
            view.reason.clone()
        };
        Some(Verdict::new(view.health, reason, message))
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
