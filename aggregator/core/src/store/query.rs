//! Answers from the live state, for what is too large or changes too often to be in every snapshot.

use {
    super::{Store, explain},
    crate::{
        component::{ComponentId, InstanceId},
        event::SessionId,
        fleet::{Agent, Instance, Probe},
        view::{
            AgentView, ComponentSummary, ComponentView, InstanceView, MAX_INSTANCES, ProbeView, RunsView,
            TransitionView,
        },
    },
    healthscope_shared::{
        name::{AgentName, ComponentKey, InstanceName, Namespace, ProbeName},
        wire::ProbeId,
    },
    std::sync::Arc,
};

/// A probe that can be run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// Whom to ask.
    pub session: SessionId,
    /// Which probe, as that session calls it.
    pub id: ProbeId,
    /// Its name.
    pub probe: Arc<str>,
    /// The instance.
    pub instance: InstanceName,
    /// The agent.
    pub agent: AgentName,
}

/// Why nothing can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// Nobody has heard of it.
    #[error("there is no such component")]
    NoComponent,
    /// It has probes, but none of this name.
    #[error("the component has no probe of this name")]
    NoProbe,
    /// None of its agents is connected.
    #[error("no agent of the component is connected")]
    NoAgent,
}

impl Store {
    /// A component with its instances and probes.
    #[must_use]
    pub fn component(&self, key: &ComponentKey) -> Option<ComponentView> {
        self.components.find(key).map(|id| self.component_view(id))
    }

    /// All components but nested scopes, in short, by namespace, group, kind and name; of one namespace if asked.
    #[must_use]
    pub fn components(&self, namespace: Option<&Namespace>) -> Vec<Arc<ComponentSummary>> {
        let mut found: Vec<(&ComponentKey, ComponentId)> = self
            .components
            .iter()
            .filter(|(_, component)| {
                !component.is_scope()
                    && namespace.is_none_or(|namespace| component.key.namespace == *namespace)
            })
            .map(|(id, component)| (&*component.key, id))
            .collect();
        found.sort_unstable();
        found
            .into_iter()
            .map(|(_, id)| match &self.components.get(id).summary {
                Some(summary) if !self.components.get(id).dirty => Arc::clone(summary),
                Some(_) | None => Arc::new(self.summary(id)),
            })
            .collect()
    }

    /// All agents, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentView> {
        let mut agents: Vec<AgentView> = self.fleet.iter().map(agent_view).collect();
        agents.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        agents
    }

    /// One agent.
    #[must_use]
    pub fn agent(&self, name: &AgentName) -> Option<AgentView> {
        self.fleet
            .find(name)
            .map(|agent| agent_view(self.fleet.get(agent)))
    }

    /// The transitions of all levels after the one with this id, as far as they are kept, oldest first.
    #[must_use]
    pub fn transitions_after(&self, id: u64) -> Vec<Arc<TransitionView>> {
        self.log.after(id)
    }

    /// Highest id of a transition of any level that is not kept any more; 0 when all are.
    #[must_use]
    pub fn forgotten_transition(&self) -> u64 {
        self.log.forgotten_of_all()
    }

    /// Who can run a component's probes now, by instance, agent and probe: one of them, or all.
    ///
    /// # Errors
    /// When nobody can.
    pub fn probe_targets(
        &self,
        component: &ComponentKey,
        probe: Option<&ProbeName>,
    ) -> Result<Vec<ProbeTarget>, NoTarget> {
        let id = self.components.find(component).ok_or(NoTarget::NoComponent)?;
        let mut is_known = probe.is_none();
        let mut targets = Vec::new();
        for (agent, instance) in self.instances_of(id) {
            for candidate in agent.probes_of(instance) {
                if probe.is_some_and(|probe| probe.as_str() != &*candidate.shape.name) {
                    continue;
                }
                is_known = true;
                let Some(session) = agent.session else { continue };
                targets.push(ProbeTarget {
                    session,
                    id: candidate.id,
                    probe: Arc::clone(&candidate.shape.name),
                    instance: instance.name.clone(),
                    agent: agent.name.clone(),
                });
            }
        }
        match (
            targets.is_empty(),
            is_known || self.components.get(id).instances.is_empty(),
        ) {
            (false, _) => Ok(targets),
            (true, true) => Err(NoTarget::NoAgent),
            (true, false) => Err(NoTarget::NoProbe),
        }
    }

    /// The instances of a component by name, then agent.
    fn instances_of(&self, id: ComponentId) -> Vec<(&Agent, &Instance)> {
        let mut found: Vec<(&Agent, &Instance)> = self
            .components
            .get(id)
            .instances
            .iter()
            .map(|&id: &InstanceId| (self.fleet.get(id.agent), self.fleet.instance(id)))
            .collect();
        found.sort_unstable_by(|(a_agent, a), (b_agent, b)| {
            (&a.name, &a_agent.name).cmp(&(&b.name, &b_agent.name))
        });
        found
    }

    fn component_view(&self, id: ComponentId) -> ComponentView {
        let component = self.components.get(id);
        let instances = self.instances_of(id);
        ComponentView {
            component: Arc::new(self.summary(id)),
            declared: component.declared,
            labels: component.labels.as_ref().clone(),
            depends_on: component.depends_on.clone(),
            scopes: component
                .scopes
                .iter()
                .map(|&scope| self.scopes[scope as usize].key.name.clone())
                .collect(),
            running: instances
                .into_iter()
                .take(MAX_INSTANCES)
                .map(|(agent, instance)| instance_view(agent, instance))
                .collect(),
        }
    }
}

fn instance_view(agent: &Agent, instance: &Instance) -> InstanceView {
    let probes = agent.probes_of(instance);
    let (reason, message) = explain::instance_reason(agent, &instance.name, instance.shown, |position| {
        &probes[position as usize]
    });
    InstanceView {
        name: instance.name.clone(),
        agent: agent.name.clone(),
        health: instance.shown.health(),
        reason,
        message,
        since: explain::time(instance.since),
        probes: probes.iter().map(full_probe_view).collect(),
    }
}

fn full_probe_view(probe: &Probe) -> ProbeView {
    let runs = RunsView {
        period_ms: probe.shape.period_ms,
        total: probe.runs,
        failures: probe.failures,
        errors: probe.errors,
        latency_us: probe.latency_us,
        min_us: probe.min_us,
        avg_us: probe.avg_us,
        max_us: probe.max_us,
        p99_us: probe.p99_us,
    };
    ProbeView {
        runs: Some(runs),
        ..explain::probe_view(probe)
    }
}

fn agent_view(agent: &Agent) -> AgentView {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    AgentView {
        name: agent.name.clone(),
        presence: agent.presence(),
        since: explain::time(agent.since),
        version: Arc::clone(&agent.version),
        peer: agent.peer.to_string(),
        epoch: agent.epoch.to_string(),
        sessions: agent.sessions,
        instances: count(agent.instances.len()),
        probes: count(agent.probes.len()),
        seq: agent.applied.0,
        missed: agent.missed,
    }
}
