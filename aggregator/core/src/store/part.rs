//! Answers for readers who may not see every namespace: what there is to ask about, and only their part of it.

use {
    super::Store,
    crate::{
        component::ComponentId,
        fleet::Agent,
        view::{AgentView, Totals},
    },
    healthscope_crd::v1beta1::Summary,
    healthscope_shared::name::{AgentName, Namespace},
    std::collections::BTreeSet,
};

impl Store {
    /// Every namespace of which something is known.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<Namespace> {
        let of_scopes = self.scopes.iter().map(|scope| &scope.key.namespace);
        let of_components = self
            .components
            .iter()
            .map(|(_, component)| &component.key.namespace);
        of_scopes.chain(of_components).cloned().collect()
    }

    /// The namespaces that an agent reports about; `None` when there is no such agent.
    #[must_use]
    pub fn namespaces_of_agent(&self, name: &AgentName) -> Option<BTreeSet<Namespace>> {
        let agent = self.fleet.get(self.fleet.find(name)?);
        Some(self.reported_by(agent).cloned().collect())
    }

    /// The agents, by name, that report about these namespaces and about no other.
    #[must_use]
    pub fn agents_within(&self, namespaces: &BTreeSet<Namespace>) -> Vec<AgentView> {
        let mut agents = self.agents();
        agents.retain(|agent| {
            let reported = self.namespaces_of_agent(&agent.name).unwrap_or_default();
            !reported.is_empty() && reported.is_subset(namespaces)
        });
        agents
    }

    /// Everything in these namespaces in numbers. Transitions that were missed or dropped are not counted by namespace.
    #[must_use]
    pub fn totals_within(&self, namespaces: &BTreeSet<Namespace>) -> Totals {
        let mut totals = Totals::default();
        for scope in &self.scopes {
            if let Some(entry) = &scope.entry
                && namespaces.contains(&scope.key.namespace)
            {
                totals.scopes.add(entry.view.health);
            }
        }
        let mut components = Summary::default();
        for (_, component) in self.components.iter() {
            if !component.is_scope() && namespaces.contains(&component.key.namespace) {
                components.add(component.health);
            }
        }
        totals.components = components;
        for agent in self.fleet.iter() {
            let mut sees_all = !agent.instances.is_empty();
            for instance in &agent.instances {
                if namespaces.contains(self.namespace_of(instance.component)) {
                    totals.instances += 1;
                    totals.probes += u32::try_from(agent.probes_of(instance).len()).unwrap_or(u32::MAX);
                } else {
                    sees_all = false;
                }
            }
            if sees_all {
                match agent.session {
                    Some(_) => totals.agents_connected += 1,
                    None => totals.agents_absent += 1,
                }
            }
        }
        totals
    }

    fn reported_by<'a>(&'a self, agent: &'a Agent) -> impl Iterator<Item = &'a Namespace> {
        let instances = agent.instances.iter();
        instances.map(|instance| self.namespace_of(instance.component))
    }

    fn namespace_of(&self, component: ComponentId) -> &Namespace {
        &self.components.get(component).key.namespace
    }
}
