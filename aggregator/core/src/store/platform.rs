//! The store's dealings with the Kubernetes cluster: objects become components, pods vouch for their agents.

use {
    super::Store,
    crate::{
        cluster::{Look, Missing},
        component::{InstanceId, Sort},
        event::{AnnouncedInstance, ClusterEvent, Now, PodRef, Refusal, SessionId},
        platform::oam::{self, OamCondition, OamHealth, OamRef, OamScope},
        status::OldWords,
    },
    healthscope_crd::{
        effective::component_scope,
        v1alpha2::{HealthStatus, ObjectReference, ScopeHealthCondition, WorkloadHealthCondition},
    },
    healthscope_shared::{
        health::Reason,
        name::{ComponentKey, InstanceName},
    },
    std::{collections::BTreeMap, sync::Arc},
};

impl Store {
    /// Sessions that must be closed because their pod is gone, each told once.
    pub fn take_evicted(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.evicted)
    }

    /// Begins anew, but for agents that are connected already: what is known of the others is of another time.
    pub(super) fn take_over(&mut self, now: Now) {
        self.stands_by = false;
        self.started = now.instant;
        self.starting = true;
        self.taken_over = true;
        self.fleet.begin_anew(now.instant);
        for agent in self.fleet.absent() {
            self.forget(agent, &Reason::FORGOTTEN, now);
        }
        self.look_at_everything();
    }

    /// From now on agents are another replica's, and what was known of them with them.
    pub(super) fn stand_by(&mut self, now: Now) {
        self.stands_by = true;
        self.starting = true;
        for agent in self.fleet.absent() {
            self.forget(agent, &Reason::FORGOTTEN, now);
        }
        self.look_at_everything();
    }

    pub(super) fn cluster_said(&mut self, event: ClusterEvent, now: Now) {
        let Some(cluster) = &mut self.cluster else {
            debug_assert!(false, "a store without a cluster hears nothing of one");
            return;
        };
        for gone in cluster.apply(event, now.instant) {
            let Some(agent) = self.agents_of_pods.get(&gone.uid).copied() else {
                continue;
            };
            if let Some(session) = self.fleet.get(agent).session {
                self.fleet.close(session, true, now);
                self.evicted.push(session);
            }
            self.forget(agent, &Reason::REMOVED, now);
        }
    }

    /// Looks again at every component that something in the cluster may have changed.
    pub(super) fn look_at_cluster(&mut self, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        let dirty = cluster.take_dirty();
        let has_speakers = self.scopes.iter().any(|scope| scope.speaks.v1alpha2);
        for (key, look) in dirty {
            self.look_at(&key, look, now);
            if has_speakers {
                self.mark_speakers(&key);
            }
        }
    }

    fn look_at(&mut self, key: &ComponentKey, look: Look, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        let known = self.components.find(key);
        let id = match known {
            Some(id) => id,
            None if look == Look::Membership && !cluster.scopes_by_label(key, &self.index).is_empty() => {
                self.components.find_or_add(key, now.wall.as_millisecond())
            }
            None => return,
        };
        if self.components.get(id).sort != Sort::Other {
            return;
        }
        let platform = cluster.verdict(key);
        // The agents of all pods speak to the replica that serves; here none is missing.
        let missing = if self.stands_by {
            Missing::default()
        } else {
            cluster.missing_agents(key, self.starting, now.instant)
        };
        let newcomers = cluster.newcomers(key, now.instant);
        let described = cluster.find(key).map(|object| {
            (
                object.labels.clone(),
                object.depends_on.clone(),
                Arc::clone(&object.api_version),
            )
        });
        let component = self.components.get_mut(id);
        component.platform = Some(Box::new(platform));
        component.missing = missing;
        component.newcomers = newcomers;
        if look == Look::Membership {
            let (labels, depends_on) = match described {
                Some((labels, depends_on, api_version)) => {
                    if self.components.get(id).named_by.is_empty() {
                        let api_version = self.components.share_api_version(&api_version);
                        self.components.get_mut(id).api_version = api_version;
                    }
                    (labels, depends_on)
                }
                None => (BTreeMap::new(), Vec::new()),
            };
            self.describe(id, &labels, depends_on);
            self.place(id);
            if !self.components.get(id).is_known() {
                self.remove(id, &Reason::REMOVED, now);
                return;
            }
        }
        if known.is_some() {
            self.settle(id, now);
        } else {
            let health = self.components.get(id).measured(self.starting);
            self.components.set_health(id, health, now.wall.as_millisecond());
            self.components.mark(id);
        }
    }

    /// What a scope's status says in the words of older versions.
    pub(super) fn old_words(&self, position: u32) -> OldWords {
        let scope = &self.scopes[position as usize];
        let Some(cluster) = &self.cluster else {
            return OldWords::default();
        };
        let oam = scope.speaks.v1alpha2.then(|| {
            let members = scope.spec.iter().flat_map(|spec| &spec.members);
            let conditions: Vec<OamCondition> = members
                .filter(|member| component_scope(&member.key).is_none())
                .map(|member| cluster.oam(member))
                .collect();
            let OamScope {
                health_status,
                total,
                healthy,
                unhealthy,
                unknown,
            } = oam::roll_up(&conditions);
            let scope = ScopeHealthCondition {
                health_status: oam_word(health_status),
                total,
                healthy_workloads: healthy,
                unhealthy_workloads: unhealthy,
                unknown_workloads: unknown,
            };
            (scope, conditions.into_iter().map(oam_condition).collect())
        });
        let rudr = scope.speaks.v1alpha1.then(|| {
            let members = scope.members.list.iter();
            let words = members.map(|member| {
                let key = &self.components.get(member.id).key;
                ((key.kind.clone(), key.name.clone()), cluster.rudr(key))
            });
            words.collect()
        });
        OldWords { oam, rudr }
    }

    /// Scopes that speak OAM's version say more of their workloads than our own verdict, so more changes concern them.
    fn mark_speakers(&mut self, key: &ComponentKey) {
        for position in 0..self.scopes.len() {
            let scope = &self.scopes[position];
            let is_concerned = scope.speaks.v1alpha2
                && scope.key.namespace == key.namespace
                && scope
                    .spec
                    .iter()
                    .flat_map(|spec| &spec.members)
                    .any(|member| (&member.key.group, &member.key.kind) == (&key.group, &key.kind));
            if is_concerned {
                self.mark_scope(u32::try_from(position).expect("fewer scopes than 2^32"));
            }
        }
    }

    /// The scopes have changed: whatever may belong to one is looked at again.
    pub(super) fn look_at_everything(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.mark_all();
        for (_, component) in self.components.iter() {
            if component.sort == Sort::Other {
                cluster.mark(&component.key, Look::Membership);
            }
        }
    }

    /// What may still come after a start has come: everything is judged as it is.
    pub(super) fn started_up(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        for (_, component) in self.components.iter() {
            cluster.mark(&component.key, Look::Health);
        }
        for position in 0..self.scopes.len() {
            self.mark_scope(u32::try_from(position).expect("fewer scopes than 2^32"));
        }
    }

    /// The component that a pod's agent speaks for; `None` while the pod or its owner is not known.
    pub(super) fn component_of(&self, pod: &PodRef) -> Option<ComponentKey> {
        let PodRef { namespace, name, uid } = pod;
        self.cluster.as_ref()?.component_of_pod(namespace, name, uid)
    }

    /// Remembers for which pod an agent speaks, as its token proves.
    pub(super) fn speaks_for(&mut self, agent: u32, pod: Option<Box<PodRef>>, now: Now) {
        let Some(pod) = pod else { return };
        if self.pods.get(&agent).is_some_and(|former| former.uid != pod.uid) {
            // What another pod of that name announced says nothing about this one.
            self.pod_is_silent(agent);
            let old = self.fleet.announce(agent, Vec::new(), now);
            let touched = old.iter().map(|instance| instance.component).collect();
            self.count_out(agent, &old);
            self.settle_or_remove(touched, &Reason::REMOVED, now);
        }
        self.agents_of_pods.insert(Arc::clone(&pod.uid), agent);
        self.pods.insert(agent, *pod);
    }

    /// What an agent announces, as far as it may: one that speaks for a pod says nothing about whose work that is.
    pub(super) fn proven(
        &self,
        agent: u32,
        instances: Vec<AnnouncedInstance>,
    ) -> Result<Vec<AnnouncedInstance>, Refusal> {
        let Some(pod) = self.pods.get(&agent) else {
            return Ok(instances);
        };
        let component = self.component_of(pod).ok_or_else(|| Refusal::unknown_pod(pod))?;
        let name = InstanceName::new(pod.name.as_str()).map_err(|_| Refusal::unknown_pod(pod))?;
        let proven = instances.into_iter().map(|announced| AnnouncedInstance {
            component: component.clone(),
            labels: BTreeMap::new(),
            depends_on: Vec::new(),
            instance: name.clone(),
            probes: announced.probes,
        });
        Ok(proven.collect())
    }

    /// An agent that speaks for a pod has said what it watches.
    pub(super) fn pod_is_heard(&mut self, agent: u32) {
        let Some((pod, cluster)) = self.pods.get(&agent).zip(self.cluster.as_mut()) else {
            return;
        };
        cluster.agent_speaks(&pod.namespace, &pod.name, true);
        if let Some(key) = cluster.component_of_pod(&pod.namespace, &pod.name, &pod.uid) {
            cluster.mark(&key, Look::Membership);
        }
    }

    /// An agent that speaks for a pod has found it healthy: from now on whatever it finds counts.
    pub(super) fn pod_is_well(&mut self, instance: InstanceId) {
        let Some((pod, cluster)) = self.pods.get(&instance.agent).zip(self.cluster.as_mut()) else {
            return;
        };
        cluster.agent_is_content(&pod.namespace, &pod.name);
        let instance = self.fleet.instance(instance);
        let component = self.components.get_mut(instance.component);
        component.newcomers.remove(&instance.name);
    }

    /// An agent does not speak for its pod any more.
    pub(super) fn pod_is_silent(&mut self, agent: u32) {
        let Some(pod) = self.pods.remove(&agent) else {
            return;
        };
        self.agents_of_pods.remove(&pod.uid);
        if let Some(cluster) = &mut self.cluster {
            cluster.agent_speaks(&pod.namespace, &pod.name, false);
        }
    }
}

const fn oam_word(health: OamHealth) -> HealthStatus {
    match health {
        OamHealth::Healthy => HealthStatus::Healthy,
        OamHealth::Unhealthy => HealthStatus::Unhealthy,
        OamHealth::Unknown => HealthStatus::Unknown,
    }
}

fn oam_condition(condition: OamCondition) -> WorkloadHealthCondition {
    let OamCondition {
        component_name,
        target,
        health_status,
        diagnosis,
        workload_status,
    } = condition;
    let OamRef {
        api_version,
        kind,
        name,
        uid,
    } = target;
    WorkloadHealthCondition {
        component_name: (!component_name.is_empty()).then_some(component_name),
        target_workload: Some(ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind),
            name: Some(name),
            uid,
            ..ObjectReference::default()
        }),
        health_status: oam_word(health_status),
        diagnosis: (!diagnosis.is_empty()).then_some(diagnosis),
        workload_status,
        ..WorkloadHealthCondition::default()
    }
}
