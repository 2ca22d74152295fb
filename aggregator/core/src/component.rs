//! The components: everything that is a member of a scope, declared by a file or announced by an agent.
//!
//! A component's health follows from counters of its instances, so that a change costs the same whether it has one
//! instance or ten thousand. This module holds no agent and no scope, only their positions.

use {
    crate::{
        cluster::Missing,
        fleet::Shown,
        intern::Table,
        rollup,
        view::{ComponentSummary, InstanceCounts},
    },
    healthscope_crd::{
        effective::{component_scope, is_file_component},
        v1beta1::{self, Summary},
    },
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, InstanceName, Kind, Namespace},
    },
    std::{
        collections::{BTreeMap, BTreeSet, HashMap},
        sync::Arc,
    },
};

/// Position of a component in the table.
pub(crate) type ComponentId = u32;

/// One running copy: the agent, and its position among the agent's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InstanceId {
    pub(crate) agent: u32,
    pub(crate) instance: u32,
}

/// An instance that is not healthy, in the order in which they are named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sick {
    /// Lower is worse.
    pub(crate) rank: u8,
    pub(crate) name: InstanceName,
    pub(crate) id: InstanceId,
}

impl Sick {
    const fn is_failing(&self) -> bool {
        self.rank == Shown::FAILING
    }

    const fn is_starting(&self) -> bool {
        matches!(self.rank, Shown::NOT_STARTED | Shown::PENDING)
    }
}

/// What a component is, apart from its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Files declare it and agents announce it.
    File,
    /// Another scope.
    Scope,
    /// An object of another kind, which only Kubernetes knows.
    Other,
}

impl Sort {
    fn of(key: &ComponentKey) -> Self {
        if is_file_component(key) {
            Self::File
        } else if component_scope(key).is_some() {
            Self::Scope
        } else {
            Self::Other
        }
    }
}

/// A component.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) key: Arc<ComponentKey>,
    pub(crate) sort: Sort,
    /// `apiVersion` as a scope writes it; the group alone when none names it.
    pub(crate) api_version: Arc<str>,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    pub(crate) depends_on: Vec<String>,
    /// Whether the aggregator's own files declare it.
    pub(crate) declared: bool,
    /// Positions of the scopes that name it, ascending.
    pub(crate) named_by: Vec<u32>,
    /// Positions of the scopes that it belongs to by name or label, ascending, each once.
    pub(crate) scopes: Vec<u32>,
    /// Sorted.
    pub(crate) instances: Vec<InstanceId>,
    pub(crate) counts: InstanceCounts,
    /// Instances of which nothing is known yet; among the unknown ones.
    starting: u32,
    pub(crate) sick: BTreeSet<Sick>,
    /// Probes with the flapping flag.
    pub(crate) flapping: u32,
    pub(crate) health: Health,
    /// Milliseconds of the wall clock.
    pub(crate) since: i64,
    /// What Kubernetes says of the object.
    pub(crate) platform: Option<Box<Verdict>>,
    /// Agents that should speak for it and do not.
    pub(crate) missing: Missing,
    /// Instances in pods that have just come.
    pub(crate) newcomers: BTreeSet<InstanceName>,
    /// What a nested scope says.
    pub(crate) nested: Option<Box<Verdict>>,
    /// What was last handed out; kept only for members of scopes.
    pub(crate) summary: Option<Arc<ComponentSummary>>,
    pub(crate) dirty: bool,
}

impl Component {
    fn new(
        key: Arc<ComponentKey>,
        sort: Sort,
        api_version: Arc<str>,
        labels: Arc<BTreeMap<String, String>>,
        now_ms: i64,
    ) -> Self {
        Self {
            key,
            sort,
            api_version,
            labels,
            depends_on: Vec::new(),
            declared: false,
            named_by: Vec::new(),
            scopes: Vec::new(),
            instances: Vec::new(),
            counts: InstanceCounts::default(),
            starting: 0,
            sick: BTreeSet::new(),
            flapping: 0,
            health: Health::Unknown,
            since: now_ms,
            platform: None,
            missing: Missing::default(),
            newcomers: BTreeSet::new(),
            nested: None,
            summary: None,
            dirty: false,
        }
    }

    /// Whether it is a nested scope.
    pub(crate) const fn is_scope(&self) -> bool {
        matches!(self.sort, Sort::Scope)
    }

    /// Whether anybody still knows it. Its scopes must be up to date.
    pub(crate) fn is_known(&self) -> bool {
        self.declared || !self.scopes.is_empty() || !self.instances.is_empty()
    }

    /// Its instances that count, with those of which only the platform knows that they should be there.
    ///
    /// While the platform is content, a pod that has just come does not count before it is healthy from inside too, and one
    /// whose agent has found nothing yet does not while others do the work: a rollout makes nothing worse.
    pub(crate) fn counted(&self) -> InstanceCounts {
        let mut counts = InstanceCounts {
            total: self.counts.total + self.missing.count,
            unknown: self.counts.unknown + self.missing.count,
            ..self.counts
        };
        if !self.is_well_outside() {
            return counts;
        }
        let mut starting = if self.counts.total > self.starting {
            self.starting
        } else {
            0
        };
        if !self.newcomers.is_empty() {
            for sick in self
                .sick
                .iter()
                .filter(|sick| self.newcomers.contains(&sick.name))
            {
                counts.total -= 1;
                if sick.is_failing() {
                    counts.unhealthy -= 1;
                } else {
                    counts.unknown -= 1;
                }
                if sick.is_starting() {
                    starting = starting.saturating_sub(1);
                }
            }
        }
        counts.total -= starting;
        counts.unknown -= starting;
        counts
    }

    fn is_well_outside(&self) -> bool {
        self.platform
            .as_ref()
            .is_some_and(|platform| platform.health == Health::Healthy)
    }

    /// The worst instance of those that count.
    fn worst(&self) -> Option<&Sick> {
        let is_well = self.is_well_outside();
        self.sick
            .iter()
            .find(|sick| !(is_well && self.newcomers.contains(&sick.name)))
    }

    /// Whether labels can make it a member: it is more than a name in some scope, and no scope itself.
    pub(crate) fn is_selectable(&self) -> bool {
        self.sort != Sort::Scope && (self.declared || !self.instances.is_empty())
    }

    /// Whether it must not be forgotten while its agents are lost: a scope or a file counts on it.
    pub(crate) fn is_expected(&self) -> bool {
        self.declared || !self.scopes.is_empty()
    }

    /// The verdict. `leaf` tells of the worst instance; `starting` is whether agents may still come for the first time.
    pub(crate) fn verdict(&self, starting: bool, leaf: impl FnOnce(&Sick) -> (Reason, String)) -> Verdict {
        let inside = rollup::inside_verdict(self.counted(), || match (self.worst(), &self.missing.pod) {
            (Some(sick), _) => leaf(sick),
            (None, Some(pod)) if starting => (
                Reason::STARTING,
                format!("the agent of pod {pod} has not connected yet"),
            ),
            (None, Some(pod)) => (
                Reason::AGENT_LOST,
                format!("the agent of pod {pod} has not connected; its log says why"),
            ),
            (None, None) => (Reason::UNKNOWN, String::new()),
        });
        rollup::join(self.platform.as_deref().cloned(), inside).unwrap_or_else(|| self.absent(starting))
    }

    /// The health alone of [`Self::verdict`], without any text.
    pub(crate) fn measured(&self, starting: bool) -> Health {
        let platform = self.platform.as_ref().map(|platform| platform.health);
        let known = platform.max(rollup::inside(self.counted()));
        known.unwrap_or(match (&self.sort, &self.nested) {
            (Sort::Scope, Some(nested)) => nested.health,
            (Sort::Scope, None) => Health::Unhealthy,
            (Sort::File, _) if self.declared || starting => Health::Unknown,
            (Sort::File, _) => Health::Unhealthy,
            (Sort::Other, _) => Health::Unknown,
        })
    }

    /// The verdict when no agent speaks for it.
    fn absent(&self, starting: bool) -> Verdict {
        let health = self.measured(starting);
        match (&self.sort, &self.nested) {
            (Sort::Scope, Some(nested)) => Verdict::clone(nested),
            (Sort::Scope, None) => Verdict::new(
                health,
                Reason::NOT_FOUND,
                format!("there is no HealthScope called {}", self.key.name),
            ),
            (Sort::File, _) if starting => {
                Verdict::new(health, Reason::STARTING, "no agent has reported about it yet")
            }
            (Sort::File, _) if self.declared => {
                Verdict::new(health, Reason::NO_AGENT, "no agent reports about it")
            }
            (Sort::File, _) => Verdict::new(
                health,
                Reason::NOT_FOUND,
                format!(
                    "no file declares a Component called {} and no agent reports about it",
                    self.key.name
                ),
            ),
            (Sort::Other, _) => Verdict::new(
                health,
                Reason::KIND_NOT_AVAILABLE,
                format!("kind {} is not available here", self.key.kind),
            ),
        }
    }

    /// Counts an instance in.
    pub(crate) fn join(&mut self, id: InstanceId, name: &InstanceName, shown: Shown) {
        let place = self.instances.binary_search(&id).unwrap_or_else(|place| place);
        self.instances.insert(place, id);
        self.counts.total += 1;
        self.count(id, name, shown, 1);
    }

    /// Counts an instance out.
    pub(crate) fn leave(&mut self, id: InstanceId, name: &InstanceName, shown: Shown) {
        if let Ok(place) = self.instances.binary_search(&id) {
            self.instances.remove(place);
            self.counts.total -= 1;
            self.count(id, name, shown, -1);
        }
    }

    /// An instance shows something else.
    pub(crate) fn change(&mut self, id: InstanceId, name: &InstanceName, from: Shown, to: Shown) {
        self.count(id, name, from, -1);
        self.count(id, name, to, 1);
    }

    fn count(&mut self, id: InstanceId, name: &InstanceName, shown: Shown, by: i32) {
        let counts = &mut self.counts;
        let counter = match shown.health() {
            Health::Healthy => &mut counts.healthy,
            // An instance is never Degraded: it has no parts.
            Health::Unhealthy | Health::Degraded => &mut counts.unhealthy,
            Health::Unknown => &mut counts.unknown,
        };
        *counter = counter.saturating_add_signed(by);
        if shown.is_starting() {
            self.starting = self.starting.saturating_add_signed(by);
        }
        if shown.health() != Health::Healthy {
            let sick = Sick {
                rank: shown.rank(),
                name: name.clone(),
                id,
            };
            if by > 0 {
                self.sick.insert(sick);
            } else {
                self.sick.remove(&sick);
                if self.sick.is_empty() {
                    // An empty set that once held something keeps its memory.
                    self.sick = BTreeSet::new();
                }
            }
        }
    }
}

/// All components.
#[derive(Debug, Default)]
pub(crate) struct Components {
    table: Vec<Option<Box<Component>>>,
    free: Vec<ComponentId>,
    by_key: HashMap<Arc<ComponentKey>, ComponentId>,
    /// What components have in common, each once.
    labels: Table<BTreeMap<String, String>>,
    api_versions: Table<str>,
    namespaces: Table<Namespace>,
    kinds: Table<Kind>,
    /// Positions of the dirty ones, each once.
    dirty: Vec<ComponentId>,
    /// How many there are of each health, in the order of [`Health::ALL`], nested scopes apart.
    by_health: [u32; 4],
}

impl Components {
    pub(crate) fn find(&self, key: &ComponentKey) -> Option<ComponentId> {
        self.by_key.get(key).copied()
    }

    /// The component called `key`, made when it is new.
    pub(crate) fn find_or_add(&mut self, key: &ComponentKey, now_ms: i64) -> ComponentId {
        if let Some(id) = self.find(key) {
            return id;
        }
        self.by_health[Health::Unknown as usize] += u32::from(component_scope(key).is_none());
        let key = Arc::new(ComponentKey {
            namespace: Namespace::clone(
                &self
                    .namespaces
                    .share_as(&key.namespace, || Arc::new(key.namespace.clone())),
            ),
            group: key.group.clone(),
            kind: Kind::clone(&self.kinds.share_as(&key.kind, || Arc::new(key.kind.clone()))),
            name: key.name.clone(),
        });
        let labels = self.share_labels(&BTreeMap::new());
        let sort = Sort::of(&key);
        let api_version = self.share_api_version(match sort {
            Sort::File => v1beta1::FILE_API_VERSION,
            Sort::Scope => v1beta1::API_VERSION,
            Sort::Other => &key.group,
        });
        let component = Box::new(Component::new(
            Arc::clone(&key),
            sort,
            api_version,
            labels,
            now_ms,
        ));
        let id = match self.free.pop() {
            Some(id) => {
                self.table[id as usize] = Some(component);
                id
            }
            None => {
                self.table.push(Some(component));
                u32::try_from(self.table.len() - 1).expect("the limits keep the table under 2^32")
            }
        };
        self.by_key.insert(key, id);
        id
    }

    /// # Panics
    /// When there is no such component: positions are only kept where the component is.
    pub(crate) fn get(&self, id: ComponentId) -> &Component {
        self.table[id as usize]
            .as_deref()
            .expect("the position of a component that is kept")
    }

    /// As [`Self::get`].
    pub(crate) fn get_mut(&mut self, id: ComponentId) -> &mut Component {
        self.table[id as usize]
            .as_deref_mut()
            .expect("the position of a component that is kept")
    }

    pub(crate) fn remove(&mut self, id: ComponentId) -> Option<Box<Component>> {
        let component = self.table[id as usize].take()?;
        self.by_health[component.health as usize] -= u32::from(!component.is_scope());
        self.by_key.remove(&component.key);
        self.free.push(id);
        if component.dirty {
            self.dirty.retain(|&other| other != id);
        }
        Some(component)
    }

    /// All of them, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ComponentId, &Component)> {
        (0..)
            .zip(&self.table)
            .filter_map(|(id, component)| Some((id, component.as_deref()?)))
    }

    /// All positions, ascending.
    pub(crate) fn ids(&self) -> Vec<ComponentId> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub(crate) fn mark(&mut self, id: ComponentId) {
        let component = self.get_mut(id);
        if !component.dirty {
            component.dirty = true;
            self.dirty.push(id);
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The dirty ones, ascending; they are not any more.
    pub(crate) fn take_dirty(&mut self) -> Vec<ComponentId> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for &id in &dirty {
            self.get_mut(id).dirty = false;
        }
        dirty
    }

    /// The component has another health from now on.
    pub(crate) fn set_health(&mut self, id: ComponentId, health: Health, now_ms: i64) {
        let component = self.get_mut(id);
        let (before, is_scope) = (
            std::mem::replace(&mut component.health, health),
            component.is_scope(),
        );
        component.since = now_ms;
        if !is_scope {
            self.by_health[before as usize] -= 1;
            self.by_health[health as usize] += 1;
        }
    }

    /// How many there are of each health, nested scopes apart.
    pub(crate) fn summary(&self) -> Summary {
        let [healthy, degraded, unknown, unhealthy] = self.by_health;
        Summary {
            total: healthy + degraded + unknown + unhealthy,
            healthy,
            degraded,
            unhealthy,
            unknown,
        }
    }

    /// The one copy of these labels.
    pub(crate) fn share_labels(
        &mut self,
        labels: &BTreeMap<String, String>,
    ) -> Arc<BTreeMap<String, String>> {
        self.labels.share_as(labels, || Arc::new(labels.clone()))
    }

    /// The one copy of this `apiVersion`.
    pub(crate) fn share_api_version(&mut self, api_version: &str) -> Arc<str> {
        self.api_versions.share(api_version)
    }
}
