//! The one owner of all state. [`Store::apply`] takes an event in and answers its connection; [`Store::publish`]
//! rebuilds what changed for readers.
//!
//! The two are apart so that a storm costs what it brings and no more: a transition is applied in constant time,
//! whatever the size of the fleet, and the scopes it touches are rolled up once per publication, not once per
//! transition. The shell publishes at once when quiet and at most a hundred times a second when busy. Transitions of
//! probes and components are recorded as they are applied; those of scopes when they are published.
//!
//! ```text
//! event --apply--> fleet (sessions, probes) --> components (counters) --> dirty
//! dirty --publish--> component summaries --> scopes, nested ones first --> snapshot
//! ```

use {
    crate::{
        cluster::Cluster,
        component::{ComponentId, Components, InstanceId, Sick, Sort},
        event::{
            AnnouncedInstance, Answer, Configuration, DeclaredComponent, Event, Limits, Now, Opened, PodRef,
            Refusal, SessionId,
        },
        fleet::{Applied, Fleet, Instance, Lapse, NewInstance, Patience},
        log::{Log, Subject},
        membership::{self, Index},
        scope::{Scope, Stage},
        snapshot::{ScopeEntry, Snapshot},
        view::{Change, ComponentSummary, TransitionView},
    },
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::ScopeKey,
        wire::{Record, Report},
    },
    std::{
        collections::{BTreeMap, BTreeSet, HashMap, HashSet},
        sync::Arc,
        time::Instant,
    },
};

mod explain;
mod harm;
mod part;
mod platform;
mod publish;
mod query;
#[cfg(test)]
mod tests;

pub use {
    harm::HarmQuestion,
    query::{NoTarget, ProbeTarget},
};

/// What a store is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreConfig {
    /// How much is taken in.
    pub limits: Limits,
    /// Deadlines of presence.
    pub patience: Patience,
    /// Whether objects come from a Kubernetes cluster.
    pub kubernetes: bool,
}

/// What a publication brought.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Scopes that are new or differ from what was published before, what is nested before what nests it.
    pub scopes: Vec<Arc<ScopeEntry>>,
    /// Scopes that are gone.
    pub removed: Vec<ScopeKey>,
    /// Components that may differ from what was published before. Those that are gone have a transition.
    pub components: Vec<Arc<ComponentSummary>>,
    /// What happened since the last publication, in the order of its ids.
    pub transitions: Vec<Arc<TransitionView>>,
    /// The picture of everything; the former one when nothing changed.
    pub snapshot: Arc<Snapshot>,
}

impl Changes {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            scopes,
            removed,
            components,
            transitions,
            snapshot: _,
        } = self;
        scopes.is_empty() && removed.is_empty() && components.is_empty() && transitions.is_empty()
    }
}

/// All state of an aggregator.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    started: Instant,
    /// Whether agents may still come for the first time.
    starting: bool,
    fleet: Fleet,
    components: Components,
    /// Sorted by key.
    scopes: Vec<Scope>,
    index: Index,
    /// The Kubernetes objects, where there is a cluster.
    cluster: Option<Cluster>,
    /// The pods that agents speak for, by agent.
    pods: HashMap<u32, PodRef>,
    /// The agents that speak for pods, by the pod's uid.
    agents_of_pods: HashMap<Arc<str>, u32>,
    /// Sessions whose agent is not wanted any more.
    evicted: Vec<SessionId>,
    /// Whether scopes begin anew with what is on the server, with the next configuration.
    taken_over: bool,
    /// Whether another replica serves.
    stands_by: bool,
    /// By rank, so that what is nested comes first.
    dirty_scopes: BTreeSet<(usize, u32)>,
    scope_deadlines: BTreeSet<(Instant, u32)>,
    /// Scopes that were published and are gone.
    removed: Vec<ScopeKey>,
    log: Log,
    snapshot: Arc<Snapshot>,
}

impl Store {
    /// A store that knows nothing yet.
    #[must_use]
    pub fn new(config: StoreConfig, now: Now) -> Self {
        Self {
            config,
            started: now.instant,
            starting: true,
            fleet: Fleet::new(config.limits, config.patience, now.instant),
            components: Components::default(),
            scopes: Vec::new(),
            index: Index::default(),
            cluster: config.kubernetes.then(Cluster::default),
            pods: HashMap::new(),
            agents_of_pods: HashMap::new(),
            evicted: Vec::new(),
            taken_over: false,
            stands_by: false,
            dirty_scopes: BTreeSet::new(),
            scope_deadlines: BTreeSet::new(),
            removed: Vec::new(),
            log: Log::new(now.wall),
            snapshot: Arc::default(),
        }
    }

    /// Takes in what happened. Never rebuilds a scope: [`Self::publish`] does.
    pub fn apply(&mut self, now: Now, event: Event) -> Answer {
        if self.start_ends().is_some_and(|end| now.instant >= end) {
            self.starting = false;
            self.settle_absent(now);
            self.started_up();
        }
        match event {
            Event::Configured(configuration) => {
                self.configure(configuration, now);
                Answer::Done
            }
            Event::Cluster(event) => {
                self.cluster_said(event, now);
                Answer::Done
            }
            Event::TakenOver => {
                self.take_over(now);
                Answer::Done
            }
            Event::StandsBy => {
                self.stand_by(now);
                Answer::Done
            }
            Event::Opened(opened) => self.opened(opened, now),
            Event::Announced { session, instances } => {
                self.for_session(session, |store, agent| store.announced(agent, instances, now))
            }
            Event::Reported { session, report } => {
                self.for_session(session, |store, agent| store.reported(agent, report, now))
            }
            Event::Alive { session } => self.for_session(session, |store, agent| {
                store.heard(agent, now);
                Answer::Done
            }),
            Event::Goodbye { session } => self.closed(session, true, now),
            Event::Closed { session } => self.closed(session, false, now),
            Event::Forget { agent } => {
                if let Some(agent) = self.fleet.find(&agent) {
                    self.forget(agent, &Reason::REMOVED, now);
                }
                Answer::Done
            }
            Event::Tick => {
                self.tick(now);
                Answer::Done
            }
        }
    }

    /// When [`Event::Tick`] is due, though nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let start = self.start_ends();
        let scopes = self.scope_deadlines.first().map(|&(deadline, _)| deadline);
        let cluster = self.cluster.as_ref().and_then(Cluster::next_deadline);
        [start, scopes, cluster, self.fleet.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn stage(&self) -> Stage {
        match (self.stands_by, self.starting) {
            (true, _) => Stage::StandsBy,
            (false, true) => Stage::Starting,
            (false, false) => Stage::Started,
        }
    }

    /// When agents that have not come are late; `None` when that has passed, and where none is to come.
    fn start_ends(&self) -> Option<Instant> {
        let waits = self.starting && !self.stands_by;
        waits.then(|| self.started + self.config.patience.start)
    }

    fn for_session(&mut self, session: SessionId, event: impl FnOnce(&mut Self, u32) -> Answer) -> Answer {
        match self.fleet.of_session(session) {
            Some(agent) => event(self, agent),
            None => Answer::UnknownSession,
        }
    }

    fn opened(&mut self, opened: Opened, now: Now) -> Answer {
        let pod = opened.pod.clone();
        if let Some(pod) = &pod
            && self.component_of(pod).is_none()
        {
            return Answer::Refused(Refusal::unknown_pod(pod));
        }
        match self.fleet.open(opened, now) {
            Ok(opening) => {
                self.speaks_for(opening.agent, pod, now);
                self.refresh(opening.agent, now);
                Answer::Opened {
                    resume: opening.resume,
                    evicted: opening.evicted,
                }
            }
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    fn closed(&mut self, session: SessionId, goodbye: bool, now: Now) -> Answer {
        match self.fleet.close(session, goodbye, now) {
            Some(agent) => {
                if self.stands_by {
                    self.forget(agent, &Reason::FORGOTTEN, now);
                }
                Answer::Done
            }
            None => Answer::UnknownSession,
        }
    }

    fn heard(&mut self, agent: u32, now: Now) {
        if self.fleet.hear(agent, now) {
            self.refresh(agent, now);
        }
    }

    fn announced(&mut self, agent: u32, instances: Vec<AnnouncedInstance>, now: Now) -> Answer {
        let instances = match self.proven(agent, instances) {
            Ok(instances) => instances,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let ids = instances
            .iter()
            .flat_map(|instance| &instance.probes)
            .map(|probe| probe.id);
        if let Err(refusal) = self.fleet.check_announcement(agent, instances.len(), ids) {
            return Answer::Refused(refusal);
        }
        let mut seen = HashSet::with_capacity(instances.len());
        if let Some(twice) = instances
            .iter()
            .find(|instance| !seen.insert((&instance.component, &instance.instance)))
        {
            return Answer::Refused(Refusal::DuplicateInstance {
                component: twice.component.clone(),
                instance: twice.instance.clone(),
            });
        }
        self.heard(agent, now);

        let mut touched = BTreeSet::new();
        let mut new = Vec::with_capacity(instances.len());
        for announced in instances {
            let AnnouncedInstance {
                component,
                labels,
                depends_on,
                instance,
                probes,
            } = announced;
            let component = self.components.find_or_add(&component, now.wall.as_millisecond());
            touched.insert(component);
            let of_file = self.components.get(component).sort == Sort::File;
            if of_file && !self.components.get(component).declared {
                self.describe(component, &labels, depends_on);
            }
            new.push(NewInstance {
                component,
                name: instance,
                probes,
            });
        }
        let old = self.fleet.announce(agent, new, now);
        touched.extend(old.iter().map(|instance| instance.component));
        self.count_out(agent, &old);
        for (position, instance) in (0..).zip(&self.fleet.get(agent).instances) {
            let component = self.components.get_mut(instance.component);
            component.join(
                InstanceId {
                    agent,
                    instance: position,
                },
                &instance.name,
                instance.shown,
            );
            component.flapping += instance.flapping_told;
        }
        self.settle_or_remove(touched, &Reason::REMOVED, now);
        self.pod_is_heard(agent);
        Answer::Done
    }

    fn reported(&mut self, agent: u32, report: Report, now: Now) -> Answer {
        self.heard(agent, now);
        let Report {
            seq,
            transitions,
            states,
            complete,
            summaries,
        } = report;
        let mut gap = false;
        for record in transitions {
            if self.fleet.has(agent, record.seq) {
                continue;
            }
            gap |= self.fleet.advance(agent, record.seq, true);
            self.record(agent, record, true, now);
        }
        for record in states {
            self.record(agent, record, false, now);
        }
        if complete {
            self.fleet.advance(agent, seq, false);
        }
        for summary in summaries {
            self.fleet.summarize(agent, summary);
        }
        if self.fleet.reported(agent, complete, now) {
            self.refresh(agent, now);
        }
        Answer::Applied {
            ack: self.fleet.get(agent).applied,
            resync: gap && !complete,
        }
    }

    fn record(&mut self, agent: u32, record: Record, is_transition: bool, now: Now) {
        let seq = record.seq;
        let Some(applied) = self.fleet.apply(agent, record, now) else {
            return;
        };
        let Applied {
            instance,
            component,
            probe,
            from,
            to,
            before,
            after,
            flapping,
        } = applied;
        if is_transition {
            let (from, seq) = ((from != to).then_some(from), seq.0);
            explain::log_probe(
                &mut self.log,
                &self.fleet,
                &self.components,
                instance,
                probe,
                from,
                to,
                seq,
            );
        }
        if flapping != 0 {
            let component = self.components.get_mut(component);
            component.flapping = component.flapping.saturating_add_signed(flapping);
        }
        if before != after {
            let name = &self.fleet.instance(instance).name;
            self.components
                .get_mut(component)
                .change(instance, name, before, after);
            if after.health() == Health::Healthy {
                self.pod_is_well(instance);
            }
            self.settle(component, now);
        } else if flapping != 0 || after.health() != Health::Healthy {
            // Nobody sees more of a healthy instance than that it is healthy.
            self.components.mark(component);
        }
    }

    /// Lets the instances of an agent show what they should.
    fn refresh(&mut self, agent: u32, now: Now) {
        let mut touched = BTreeSet::new();
        for position in 0..self.fleet.get(agent).instances.len() {
            let instance = u32::try_from(position).expect("limited when announced");
            let id = InstanceId { agent, instance };
            let (before, after, flapping) = self.fleet.refresh(id, now);
            let instance = self.fleet.instance(id);
            let component = self.components.get_mut(instance.component);
            component.flapping = component.flapping.saturating_add_signed(flapping);
            if before != after {
                component.change(id, &instance.name, before, after);
            }
            let component = instance.component;
            // What is said of a sick instance may have changed though its verdict has not.
            if before != after || flapping != 0 || after.health() != Health::Healthy {
                touched.insert(component);
            }
            if before != after && after.health() == Health::Healthy {
                self.pod_is_well(id);
            }
        }
        for component in touched {
            self.settle(component, now);
        }
    }

    fn tick(&mut self, now: Now) {
        while let Some(lapse) = self.fleet.lapse(now) {
            match lapse {
                Lapse::Refresh(agent) => self.refresh(agent, now),
                Lapse::Forgettable(agent) => {
                    let mut instances = self.fleet.get(agent).instances.iter();
                    if !instances.any(|instance| self.components.get(instance.component).is_expected()) {
                        self.forget(agent, &Reason::FORGOTTEN, now);
                    }
                }
            }
        }
        while let Some(&(deadline, scope)) = self.scope_deadlines.first() {
            if deadline > now.instant {
                break;
            }
            self.scope_deadlines.pop_first();
            self.mark_scope(scope);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.tick(now.instant);
        }
    }

    fn forget(&mut self, agent: u32, reason: &Reason, now: Now) {
        let Some(forgotten) = self.fleet.forget(agent) else {
            return;
        };
        self.pod_is_silent(agent);
        let touched = forgotten
            .instances
            .iter()
            .map(|instance| instance.component)
            .collect();
        self.count_out(agent, &forgotten.instances);
        self.settle_or_remove(touched, reason, now);
    }

    fn count_out(&mut self, agent: u32, instances: &[Instance]) {
        for (position, instance) in (0..).zip(instances) {
            let component = self.components.get_mut(instance.component);
            component.leave(
                InstanceId {
                    agent,
                    instance: position,
                },
                &instance.name,
                instance.shown,
            );
            component.flapping -= instance.flapping_told;
        }
    }

    /// Draws the conclusions from changed counters: the component's health, and its transition.
    fn settle(&mut self, id: ComponentId, now: Now) {
        let component = self.components.get(id);
        let (from, to) = (component.health, component.measured(self.starting));
        if from != to {
            if !component.is_scope() {
                let Verdict {
                    health: _,
                    reason,
                    message,
                } = self.verdict(id);
                let change = Change::Component { from, to: Some(to) };
                self.log_component(id, change, reason, message, now);
            }
            self.components.set_health(id, to, now.wall.as_millisecond());
        }
        self.components.mark(id);
    }

    fn settle_or_remove(&mut self, touched: BTreeSet<ComponentId>, reason: &Reason, now: Now) {
        for id in touched {
            self.place(id);
            if self.components.get(id).is_known() {
                self.settle(id, now);
            } else {
                self.remove(id, reason, now);
            }
        }
    }

    /// What nobody reports about is not just late any more.
    fn settle_absent(&mut self, now: Now) {
        for id in self.components.ids() {
            if self.components.get(id).counts.total == 0 {
                self.settle(id, now);
            }
        }
    }

    fn remove(&mut self, id: ComponentId, reason: &Reason, now: Now) {
        let component = self.components.get(id);
        if !component.is_scope() {
            let message = if *reason == Reason::FORGOTTEN {
                "its agents have been lost for too long and no scope or file expects it"
            } else {
                "nobody watches it any more"
            };
            let change = Change::Component {
                from: component.health,
                to: None,
            };
            self.log_component(id, change, reason.clone(), message.into(), now);
        }
        for scope in self.components.get(id).scopes.clone() {
            self.scopes[scope as usize].by_label.remove(&id);
            self.mark_members(scope);
        }
        self.components.remove(id);
    }

    fn log_component(&mut self, id: ComponentId, change: Change, reason: Reason, message: String, now: Now) {
        let key = &self.components.get(id).key;
        let subject = Subject {
            namespace: &key.namespace,
            kind: &key.kind,
            name: &key.name,
        };
        self.log.push(now.wall, subject, change, reason, message);
    }

    fn verdict(&self, id: ComponentId) -> Verdict {
        let leaf = |sick: &Sick| explain::leaf(&self.fleet, sick);
        self.components.get(id).verdict(self.starting, leaf)
    }

    fn mark_scope(&mut self, scope: u32) {
        self.dirty_scopes
            .insert((self.scopes[scope as usize].rank, scope));
    }

    fn mark_members(&mut self, scope: u32) {
        self.scopes[scope as usize].members_dirty = true;
        self.mark_scope(scope);
    }

    /// Sets what a component says of itself; the caller places it.
    fn describe(&mut self, id: ComponentId, labels: &BTreeMap<String, String>, depends_on: Vec<String>) {
        let component = self.components.get(id);
        if component.depends_on != depends_on {
            let scopes = component.scopes.clone();
            self.components.get_mut(id).depends_on = depends_on;
            for scope in scopes {
                self.mark_members(scope);
            }
        }
        if *self.components.get(id).labels != *labels {
            let labels = self.components.share_labels(labels);
            self.components.get_mut(id).labels = labels;
        }
    }

    /// Finds the scopes that a component belongs to.
    fn place(&mut self, id: ComponentId) {
        let component = self.components.get(id);
        let by_label = match &self.cluster {
            Some(cluster) if component.sort == Sort::Other => {
                cluster.scopes_by_label(&component.key, &self.index)
            }
            Some(_) | None if component.is_selectable() => {
                self.index.scopes(&component.key.namespace, &component.labels)
            }
            Some(_) | None => Vec::new(),
        };
        let by_label: Vec<u32> = by_label
            .into_iter()
            .map(|scope| u32::try_from(scope).expect("fewer scopes than 2^32"))
            .collect();
        let mut scopes = [by_label.clone(), component.named_by.clone()].concat();
        scopes.sort_unstable();
        scopes.dedup();
        let before = component.scopes.clone();
        for &scope in before.iter().filter(|scope| !scopes.contains(scope)) {
            self.scopes[scope as usize].by_label.remove(&id);
            self.mark_members(scope);
        }
        for &scope in &by_label {
            if self.scopes[scope as usize].by_label.insert(id) {
                self.mark_members(scope);
            }
        }
        self.components.get_mut(id).scopes = scopes;
        self.components.mark(id);
    }

    fn configure(&mut self, configuration: Configuration, now: Now) {
        let Configuration {
            scopes,
            unreadable,
            components,
        } = configuration;
        let readable = scopes.into_iter().filter_map(|object| Scope::new(object, now));
        let unreadable = unreadable
            .iter()
            .filter_map(|unreadable| Scope::unreadable(unreadable, now));
        self.replace_scopes(readable.chain(unreadable).collect());
        let known: BTreeSet<ComponentId> = self.components.ids().into_iter().collect();
        for &id in &known {
            let component = self.components.get_mut(id);
            component.declared = false;
            component.named_by.clear();
            component.scopes.clear();
            component.nested = None;
        }
        let now_ms = now.wall.as_millisecond();
        for DeclaredComponent {
            key,
            labels,
            depends_on,
        } in components
        {
            let id = self.components.find_or_add(&key, now_ms);
            let labels = self.components.share_labels(&labels);
            let component = self.components.get_mut(id);
            component.declared = true;
            component.labels = labels;
            component.depends_on = depends_on;
        }
        for position in 0..self.scopes.len() {
            let Some(spec) = self.scopes[position].spec.clone() else {
                continue;
            };
            for member in &spec.members {
                let id = self.components.find_or_add(&member.key, now_ms);
                let api_version = self.components.share_api_version(&member.api_version);
                let component = self.components.get_mut(id);
                component
                    .named_by
                    .push(u32::try_from(position).expect("fewer scopes than 2^32"));
                component.api_version = api_version;
            }
        }
        self.connect_nested();
        for id in self.components.ids() {
            self.place(id);
            if !self.components.get(id).is_known() {
                self.remove(id, &Reason::REMOVED, now);
                continue;
            }
            if known.contains(&id) {
                self.settle(id, now);
            } else {
                let health = self.components.get(id).measured(self.starting);
                self.components.set_health(id, health, now_ms);
            }
        }
        self.look_at_everything();
    }

    fn replace_scopes(&mut self, new: Vec<Scope>) {
        let mut former: BTreeMap<ScopeKey, Scope> = std::mem::take(&mut self.scopes)
            .into_iter()
            .map(|scope| (scope.key.clone(), scope))
            .collect();
        let begins_anew = std::mem::take(&mut self.taken_over);
        let mut scopes: BTreeMap<ScopeKey, Scope> = BTreeMap::new();
        for mut scope in new {
            if let Some(former) = former.remove(&scope.key)
                && former.object.metadata.uid == scope.object.metadata.uid
            {
                if self.stands_by {
                    scope.follow(former);
                } else if !begins_anew {
                    scope.succeed(former);
                }
            }
            scopes.insert(scope.key.clone(), scope);
        }
        let gone = former.into_values().filter(|scope| scope.entry.is_some());
        self.removed.extend(gone.map(|scope| scope.key));
        self.removed.retain(|key| !scopes.contains_key(key));
        self.scopes = scopes.into_values().collect();

        let specs = self.scopes.iter().map(|scope| scope.spec.as_deref());
        let (ranks, cycles) = membership::nesting(specs.clone());
        self.index = Index::new(
            specs
                .enumerate()
                .filter_map(|(position, spec)| Some((position, spec?))),
        );
        self.dirty_scopes.clear();
        self.scope_deadlines.clear();
        for ((scope, rank), cycle) in self.scopes.iter_mut().zip(ranks).zip(cycles) {
            scope.rank = rank;
            scope.cycle = cycle;
        }
        for position in 0..self.scopes.len() {
            self.mark_members(u32::try_from(position).expect("fewer scopes than 2^32"));
        }
    }

    /// Connects scopes with their entries in the table of components.
    fn connect_nested(&mut self) {
        for scope in &mut self.scopes {
            let key = healthscope_crd::effective::scope_component(&scope.key);
            scope.component = self
                .components
                .find(&key)
                .filter(|&id| !self.components.get(id).named_by.is_empty());
            if let Some(id) = scope.component {
                let nested = scope
                    .nested_verdict()
                    .unwrap_or_else(|| Verdict::new(Health::Unknown, Reason::STARTING, "not rolled up yet"));
                self.components.get_mut(id).nested = Some(Box::new(nested));
            }
        }
    }
}
