//! The Kubernetes objects that scopes may be about: what is watched, who owns whom, which pods do whose work.
//!
//! Holds what [`crate::platform`] decoded and finds what belongs together; knows neither scopes' policies nor agents'
//! probes. Every change marks the components it may concern; the store looks at them once per publication, so that a
//! list of ten thousand pods costs ten thousand insertions and one look at each workload.

use {
    crate::{
        event::{ClusterEvent, Unavailable, Watched},
        membership::Index,
        platform::{
            self, Child, Object, Phase, Related, State,
            oam::{self, OamCondition, OamRef},
            rudr,
        },
        wanted::STANDARD,
    },
    healthscope_crd::effective::MemberRef,
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, InstanceName, Name, Namespace},
    },
    std::{
        cell::RefCell,
        collections::{BTreeMap, BTreeSet, HashMap},
        sync::Arc,
        time::{Duration, Instant},
    },
};

/// Most steps from a pod to the workload it does the work of; Kubernetes itself needs two.
const MAX_OWNERS: usize = 8;
/// A pod's agent has this long to connect once the pod runs, before its absence is told.
pub(crate) const AGENT_GRACE: Duration = Duration::from_secs(30);
/// Label of a ClusterRole whose rules become the aggregator's, by the `aggregationRule` of the installation.
const AGGREGATED: &str = "healthscope.core.oam.dev/aggregate-to-aggregator";

/// What is known of a Kubernetes cluster.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    objects: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashMap<ComponentKey, u32>,
    /// Positions of the objects that say they are controlled by this one, whether it is known or not.
    controlled: HashMap<ComponentKey, BTreeSet<u32>>,
    /// Components whose verdict looked at this object.
    lookers: HashMap<ComponentKey, BTreeSet<ComponentKey>>,
    watches: BTreeMap<Watched, Watch>,
    /// Components to look at again, and whether their membership may have changed too.
    dirty: BTreeMap<ComponentKey, Look>,
    /// Pods whose agent has not connected yet, and when that is told.
    awaited: BTreeSet<(Instant, u32)>,
    /// Pods whose agent stands in their way, and controllers whose pods are refused.
    suffering: BTreeSet<u32>,
}

#[derive(Debug)]
struct Entry {
    object: Object,
    /// The listing that it was last seen by.
    listing: u64,
    /// When its agent should have connected.
    agent_due: Option<Instant>,
    /// Whether its agent speaks for it.
    has_spoken: bool,
    /// Whether its agent has ever found it healthy.
    has_been_well: bool,
    /// Whether the kubelet has ever found it ready, as far as we saw.
    has_been_ready: bool,
    /// Whether it was seen to begin to run, and not found running.
    came_lately: bool,
}

/// One watch.
#[derive(Debug)]
struct Watch {
    state: WatchState,
    listing: u64,
}

#[derive(Debug)]
enum WatchState {
    /// It has not listed everything yet.
    Listing,
    /// It follows.
    Following,
    /// It cannot be read.
    Unavailable(Unavailable),
}

/// How much of a component is to be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// Its health.
    #[default]
    Health,
    /// Its health and the scopes that it belongs to.
    Membership,
}

/// A pod that is gone, about to be, or over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodGone {
    pub(crate) uid: Arc<str>,
}

/// An object that suffers, perhaps because of us.
#[derive(Clone, Debug)]
pub(crate) struct Suffering<'a> {
    pub(crate) object: &'a Object,
    /// The outermost owner that is known.
    pub(crate) owner: ComponentKey,
}

/// Agents that should speak for a component and do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) count: u32,
    /// The first of their pods, by name.
    pub(crate) pod: Option<Name>,
}

impl Cluster {
    /// Takes in what a watch says. A pod that is gone, terminating or over is told, so that its agent is let go.
    pub(crate) fn apply(&mut self, event: ClusterEvent, now: Instant) -> Vec<PodGone> {
        match event {
            ClusterEvent::Listing(watched) => {
                let watch = self.watches.entry(watched).or_insert(Watch {
                    state: WatchState::Listing,
                    listing: 0,
                });
                // What was known stays believed, and why it is not stays told, until it is listed anew.
                watch.listing += 1;
                Vec::new()
            }
            ClusterEvent::Applied(object) => self.insert(*object, now),
            ClusterEvent::Deleted { key, uid } => match self.by_key.get(&key) {
                Some(&at) if self.entry(at).object.uid == uid => self.remove(at).into_iter().collect(),
                Some(_) | None => Vec::new(),
            },
            ClusterEvent::Listed(watched) => {
                let Some(watch) = self.watches.get_mut(&watched) else {
                    return Vec::new();
                };
                let was_following = matches!(watch.state, WatchState::Following);
                watch.state = WatchState::Following;
                let listing = watch.listing;
                let gone = self.seen_by(&watched, |entry| entry.listing < listing);
                let gone = gone.into_iter().filter_map(|at| self.remove(at)).collect();
                if !was_following {
                    self.mark_watched(&watched);
                }
                gone
            }
            ClusterEvent::Unavailable(watched, why) => {
                let watch = self.watches.entry(watched.clone()).or_insert(Watch {
                    state: WatchState::Listing,
                    listing: 0,
                });
                let state = WatchState::Unavailable(why);
                if std::mem::discriminant(&watch.state) != std::mem::discriminant(&state)
                    || !watch.state.says_the_same(&state)
                {
                    watch.state = state;
                    self.mark_watched(&watched);
                }
                Vec::new()
            }
            ClusterEvent::Unwatched(watched) => {
                let all = self.seen_by(&watched, |_| true);
                let gone = all.into_iter().filter_map(|at| self.remove(at)).collect();
                self.watches.remove(&watched);
                self.mark_watched(&watched);
                gone
            }
        }
    }

    /// The components to look at again, in their order; they are not any more.
    pub(crate) fn take_dirty(&mut self) -> BTreeMap<ComponentKey, Look> {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Asks for a look at a component.
    pub(crate) fn mark(&mut self, key: &ComponentKey, look: Look) {
        match self.dirty.get_mut(key) {
            Some(former) => *former = look.max(*former),
            None => {
                self.dirty.insert(key.clone(), look);
            }
        }
    }

    /// Asks for a look at everything that could belong to a scope: the scopes have changed.
    pub(crate) fn mark_all(&mut self) {
        self.lookers.clear();
        let keys: Vec<ComponentKey> = self
            .objects
            .iter()
            .flatten()
            .filter_map(|entry| self.top(&entry.object))
            .chain(self.by_key.keys().cloned())
            .collect();
        for key in keys {
            self.mark(&key, Look::Membership);
        }
    }

    /// When pods' agents should have connected, next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.awaited.first().map(|&(due, _)| due)
    }

    /// Looks for agents that should have connected by now.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some(&(due, at)) = self.awaited.first() {
            if due > now {
                break;
            }
            self.awaited.pop_first();
            self.mark_owners(at, Look::Health);
        }
    }

    /// The workload that a live pod does the work of; `None` while the pod, or who owns it, is not known.
    pub(crate) fn component_of_pod(
        &self,
        namespace: &Namespace,
        name: &Name,
        uid: &str,
    ) -> Option<ComponentKey> {
        let at = *self.by_key.get(&pod_key(namespace, name))?;
        let object = &self.entry(at).object;
        let is_this = &*object.uid == uid && object.pod().is_some() && !is_leaving(object);
        is_this.then(|| self.top(object)).flatten()
    }

    /// What suffers, with whose it is.
    pub(crate) fn suffering(&self) -> impl Iterator<Item = Suffering<'_>> {
        self.suffering.iter().map(|&at| {
            let object = &self.entry(at).object;
            Suffering {
                object,
                owner: self.outermost(object),
            }
        })
    }

    /// A pod that is there and not being deleted, with its outermost owner.
    pub(crate) fn live_pod(
        &self,
        namespace: &Namespace,
        name: &Name,
        uid: &str,
    ) -> Option<(&Object, ComponentKey)> {
        let object = self.pod(namespace, name)?;
        let is_this = &*object.uid == uid && object.deleting.is_none();
        is_this.then(|| (object, self.outermost(object)))
    }

    /// The pod of this name.
    pub(crate) fn pod(&self, namespace: &Namespace, name: &Name) -> Option<&Object> {
        self.find(&pod_key(namespace, name))
    }

    /// The owner of pods of this kind and name.
    pub(crate) fn owner(&self, namespace: &str, kind: &str, name: &str) -> Child<'_> {
        let Some((api_version, ..)) = STANDARD.iter().find(|(_, standard, _)| *standard == kind) else {
            return Child::Unknown("its kind is not watched");
        };
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let (Ok(namespace), Ok(kind), Ok(name)) = (namespace.parse(), kind.parse(), name.parse()) else {
            return Child::NotFound;
        };
        let key = ComponentKey {
            namespace,
            group: group.to_owned(),
            kind,
            name,
        };
        match (self.find(&key), self.watch(&key).map(|watch| &watch.state)) {
            (Some(object), _) => Child::Found(object),
            (None, Some(WatchState::Following)) => Child::NotFound,
            (None, Some(WatchState::Listing | WatchState::Unavailable(_)) | None) => {
                Child::Unknown("its kind is not listed")
            }
        }
    }

    /// The top of an object's owners, or as far as they are known.
    pub(crate) fn outermost(&self, object: &Object) -> ComponentKey {
        self.top(object)
            .or_else(|| owner_key(object))
            .unwrap_or_else(|| object.key.clone())
    }

    /// A pod's agent speaks for it, or does not any more.
    pub(crate) fn agent_speaks(&mut self, namespace: &Namespace, name: &Name, speaks: bool) {
        let Some(&at) = self.by_key.get(&pod_key(namespace, name)) else {
            return;
        };
        self.entry_mut(at).has_spoken = speaks;
        self.mark_owners(at, Look::Health);
    }

    /// A pod's agent has found it healthy.
    pub(crate) fn agent_is_content(&mut self, namespace: &Namespace, name: &Name) {
        if let Some(&at) = self.by_key.get(&pod_key(namespace, name)) {
            self.entry_mut(at).has_been_well = true;
        }
    }

    /// The object itself.
    pub(crate) fn find(&self, key: &ComponentKey) -> Option<&Object> {
        let &at = self.by_key.get(key)?;
        Some(&self.entry(at).object)
    }

    /// Objects of one kind in a namespace, in the order of their names.
    pub(crate) fn of_kind(&self, namespace: &Namespace, group: &str, kind: &str) -> Vec<&Object> {
        let mut found: Vec<&Object> = self
            .objects
            .iter()
            .flatten()
            .map(|entry| &entry.object)
            .filter(|object| {
                object.key.namespace == *namespace
                    && object.key.group == group
                    && object.key.kind.as_str() == kind
            })
            .collect();
        found.sort_unstable_by(|a, b| a.key.name.cmp(&b.key.name));
        found
    }

    /// Why the objects of this component's kind cannot be seen; `None` when they can, or will be in a moment.
    pub(crate) fn unavailable(&self, key: &ComponentKey) -> Option<&Unavailable> {
        match &self.watch(key)?.state {
            WatchState::Unavailable(why) => Some(why),
            WatchState::Listing | WatchState::Following => None,
        }
    }

    /// The scopes that labels put a component into: its own labels, and those of its pods.
    pub(crate) fn scopes_by_label(&self, key: &ComponentKey, index: &Index) -> Vec<usize> {
        let mut found = Vec::new();
        if let Some(object) = self.find(key)
            && is_selectable(object)
        {
            found = index.scopes(&key.namespace, &object.labels);
        }
        let is_top = self.find(key).is_none_or(|object| owner_key(object).is_none());
        if is_top && is_owner(key) {
            let mut seen = BTreeSet::new();
            for pod in self.pods(key) {
                if seen.insert(&pod.labels) {
                    found.extend(index.scopes(&key.namespace, &pod.labels));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What Kubernetes says of a component. Remembers what it looked at, so that a change there is a change here.
    pub(crate) fn verdict(&mut self, key: &ComponentKey) -> Verdict {
        let looked = RefCell::new(Vec::new());
        let verdict = self.judge(key, &looked);
        for other in looked.into_inner() {
            let lookers = self.lookers.entry(other).or_default();
            if !lookers.contains(key) {
                lookers.insert(key.clone());
            }
        }
        verdict
    }

    fn judge(&self, key: &ComponentKey, looked: &RefCell<Vec<ComponentKey>>) -> Verdict {
        if let Some(why) = self.unavailable(key) {
            looked.borrow_mut().push(key.clone());
            return why.verdict(key);
        }
        let pods = self.pods(key);
        let Some(object) = self.find(key) else {
            // Its coming is marked by itself, but not that its kind was listed without it.
            looked.borrow_mut().push(key.clone());
            return match self.watch(key).map(|watch| &watch.state) {
                Some(WatchState::Following) => Verdict::new(
                    Health::Unhealthy,
                    Reason::NOT_FOUND,
                    format!(
                        "there is no {} called {} in namespace {}",
                        key.kind, key.name, key.namespace
                    ),
                ),
                // Nobody names its kind, so it is not watched: its pods speak for it.
                None if !pods.is_empty() => platform::of_pods(&key.kind, &pods),
                Some(WatchState::Listing | WatchState::Unavailable(_)) | None => Verdict::new(
                    Health::Unknown,
                    Reason::SYNCING,
                    format!("objects of kind {} have not been listed yet", key.kind),
                ),
            };
        };
        let child = |child: &ComponentKey| {
            looked.borrow_mut().push(child.clone());
            self.child(child)
        };
        platform::verdict(
            object,
            &Related {
                pods: &pods,
                child: &child,
            },
        )
    }

    fn child(&self, key: &ComponentKey) -> Child<'_> {
        match (self.find(key), self.watch(key).map(|watch| &watch.state)) {
            (_, Some(WatchState::Unavailable(why))) => Child::Unknown(why.in_short()),
            (Some(object), _) => Child::Found(object),
            (None, Some(WatchState::Following)) => Child::NotFound,
            (None, Some(WatchState::Listing) | None) => Child::Unknown("its kind has not been listed yet"),
        }
    }

    /// What OAM's controller would say of a member.
    pub(crate) fn oam(&self, member: &MemberRef) -> OamCondition {
        let reference = OamRef {
            api_version: member.api_version.clone(),
            kind: member.key.kind.to_string(),
            name: member.key.name.to_string(),
            uid: None,
        };
        let found = self.child(&member.key);
        let is_labelled =
            matches!(found, Child::Found(object) if object.labels.contains_key(oam::COMPONENT_LABEL));
        let siblings = if is_labelled {
            self.of_kind(&member.key.namespace, &member.key.group, member.key.kind.as_str())
        } else {
            Vec::new()
        };
        oam::condition(&reference, found, Ok(&siblings), &|key| self.child(key))
    }

    /// Rudr's word for a component.
    pub(crate) fn rudr(&self, key: &ComponentKey) -> &'static str {
        let pods = self.pods(key);
        let related = Related {
            pods: &pods,
            child: &|key| self.child(key),
        };
        rudr::word(self.child(key), &related)
    }

    /// Agents that should speak for a component's pods by `now` and do not; while `starting`, those of pods that were found
    /// running may still come.
    pub(crate) fn missing_agents(&self, key: &ComponentKey, starting: bool, now: Instant) -> Missing {
        let mut missing = Missing::default();
        for at in self.pod_positions(key) {
            let entry = self.entry(at);
            let is_due = entry
                .agent_due
                .is_some_and(|due| due <= now || starting && !entry.came_lately);
            if is_due && !entry.has_spoken {
                missing.count += 1;
                let name = &entry.object.key.name;
                if missing.pod.as_ref().is_none_or(|first| name < first) {
                    missing.pod = Some(name.clone());
                }
            }
        }
        missing
    }

    /// The pods of a component whose agents need not count yet: the kubelet has not found them ready, or they were seen to
    /// begin less than [`AGENT_GRACE`] ago, and were not healthy yet. One that was ready and is not any more counts: the
    /// workload above it hears of that a moment later, and until then its agent alone knows better.
    pub(crate) fn newcomers(&self, key: &ComponentKey, now: Instant) -> BTreeSet<InstanceName> {
        let pods = self.pod_positions(key).into_iter().map(|at| self.entry(at));
        let new = pods.filter(|entry| {
            let is_young = entry.came_lately && entry.agent_due.is_some_and(|due| due > now);
            !entry.has_been_ready || is_young && !entry.has_been_well
        });
        new.filter_map(|entry| InstanceName::new(entry.object.key.name.as_str()).ok())
            .collect()
    }

    /// The pods that do a component's work, in the order of their names, itself included when it is one.
    pub(crate) fn pods(&self, key: &ComponentKey) -> Vec<&Object> {
        let mut pods: Vec<&Object> = self
            .pod_positions(key)
            .into_iter()
            .map(|at| &self.entry(at).object)
            .collect();
        pods.sort_unstable_by(|a, b| a.key.name.cmp(&b.key.name));
        pods
    }

    fn pod_positions(&self, key: &ComponentKey) -> Vec<u32> {
        let mut pods = Vec::new();
        if let Some(&at) = self.by_key.get(key)
            && self.entry(at).object.pod().is_some()
        {
            pods.push(at);
        }
        let mut above = vec![(key.clone(), 0)];
        while let Some((key, depth)) = above.pop() {
            let uid = self.find(&key).map(|object| &object.uid);
            for &at in self.controlled.get(&key).into_iter().flatten() {
                let object = &self.entry(at).object;
                let controller = object.controller.as_ref();
                // One that was deleted and made anew is not the one that they belong to.
                if uid.is_some_and(|uid| controller.is_none_or(|controller| controller.uid != *uid)) {
                    continue;
                }
                if object.pod().is_some() {
                    pods.push(at);
                } else if depth < MAX_OWNERS {
                    above.push((object.key.clone(), depth + 1));
                }
            }
        }
        pods
    }

    /// The object that a scope would count for this one: the workload above a pod, a ReplicaSet or a Job.
    fn top(&self, object: &Object) -> Option<ComponentKey> {
        let mut object = object;
        for _ in 0..MAX_OWNERS {
            let Some(owner) = owner_key(object) else {
                return Some(object.key.clone());
            };
            if !is_between(&owner) {
                return Some(owner);
            }
            // The next owner is known by what is between alone.
            object = self.find(&owner)?;
        }
        None
    }

    fn insert(&mut self, object: Object, now: Instant) -> Vec<PodGone> {
        let mut gone = Vec::new();
        let listing = self.watch(&object.key).map_or(0, |watch| watch.listing);
        let former = self.by_key.get(&object.key).copied();
        if let Some(at) = former
            && self.entry(at).object.uid != object.uid
        {
            // Deleted and made anew between two looks.
            gone.extend(self.remove(at));
        }
        let is_leaving = is_leaving(&object);
        let follows = self
            .watch(&object.key)
            .is_some_and(|watch| matches!(watch.state, WatchState::Following));
        let expects_agent = object
            .pod()
            .is_some_and(|pod| pod.has_agent() && pod.phase == Phase::Running)
            && !is_leaving;
        let at = match self.by_key.get(&object.key).copied() {
            Some(at) => {
                let entry = self.entry_mut(at);
                let same_place = entry.object.labels == object.labels
                    && entry.object.controller == object.controller
                    && entry.object.depends_on == object.depends_on;
                let was_leaving = self::is_leaving(&entry.object);
                let look = if same_place {
                    Look::Health
                } else {
                    Look::Membership
                };
                if is_leaving && !was_leaving {
                    gone.push(PodGone {
                        uid: object.uid.clone(),
                    });
                }
                if !same_place {
                    self.mark_owners(at, look);
                    self.unlink(at);
                }
                let entry = self.entry_mut(at);
                entry.object = object;
                entry.listing = listing;
                if !same_place {
                    self.link(at);
                }
                self.mark_owners(at, look);
                at
            }
            None => {
                let key = object.key.clone();
                let entry = Entry {
                    object,
                    listing,
                    agent_due: None,
                    has_spoken: false,
                    has_been_well: false,
                    has_been_ready: false,
                    came_lately: false,
                };
                let at = match self.free.pop() {
                    Some(at) => {
                        self.objects[at as usize] = Some(entry);
                        at
                    }
                    None => {
                        self.objects.push(Some(entry));
                        u32::try_from(self.objects.len() - 1).expect("Kubernetes holds fewer objects")
                    }
                };
                self.by_key.insert(key, at);
                self.link(at);
                self.mark_owners(at, Look::Membership);
                at
            }
        };
        if suffers(&self.entry(at).object) {
            self.suffering.insert(at);
        } else {
            self.suffering.remove(&at);
        }
        let entry = self.entry_mut(at);
        entry.has_been_ready |= entry.object.pod().is_some_and(|pod| pod.ready);
        match (expects_agent, entry.agent_due) {
            (true, None) => {
                let due = now + AGENT_GRACE;
                entry.agent_due = Some(due);
                entry.came_lately = follows;
                self.awaited.insert((due, at));
            }
            (false, Some(due)) => {
                entry.agent_due = None;
                self.awaited.remove(&(due, at));
            }
            (true, Some(_)) | (false, None) => {}
        }
        gone
    }

    fn remove(&mut self, at: u32) -> Option<PodGone> {
        self.mark_owners(at, Look::Membership);
        self.unlink(at);
        let entry = self.objects[at as usize].take()?;
        self.free.push(at);
        self.suffering.remove(&at);
        self.by_key.remove(&entry.object.key);
        if let Some(due) = entry.agent_due {
            self.awaited.remove(&(due, at));
        }
        entry.object.pod().map(|_| PodGone {
            uid: entry.object.uid.clone(),
        })
    }

    fn link(&mut self, at: u32) {
        if let Some(owner) = controller_key(&self.entry(at).object) {
            self.controlled.entry(owner).or_default().insert(at);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some(owner) = controller_key(&self.entry(at).object) else {
            return;
        };
        if let Some(controlled) = self.controlled.get_mut(&owner) {
            controlled.remove(&at);
            if controlled.is_empty() {
                self.controlled.remove(&owner);
            }
        }
    }

    /// Marks an object, everything above it, and whoever looked at it.
    fn mark_owners(&mut self, at: u32, look: Look) {
        let mut key = self.entry(at).object.key.clone();
        for _ in 0..MAX_OWNERS {
            self.mark(&key, look);
            for looker in self.lookers.get(&key).cloned().into_iter().flatten() {
                self.mark(&looker, Look::Health);
            }
            let above = self.find(&key).and_then(controller_key);
            match above {
                Some(above) => key = above,
                None => break,
            }
        }
    }

    /// Marks everything whose verdict may change with the state of a watch.
    fn mark_watched(&mut self, watched: &Watched) {
        let keys: Vec<ComponentKey> = self
            .by_key
            .keys()
            .chain(self.lookers.keys())
            .filter(|key| watched.covers(key))
            .cloned()
            .collect();
        for key in keys {
            self.mark(&key, Look::Health);
            for looker in self.lookers.get(&key).cloned().into_iter().flatten() {
                self.mark(&looker, Look::Health);
            }
        }
    }

    fn seen_by(&self, watched: &Watched, condition: impl Fn(&Entry) -> bool) -> Vec<u32> {
        (0..)
            .zip(&self.objects)
            .filter_map(|(at, entry)| Some((at, entry.as_ref()?)))
            .filter(|(_, entry)| watched.covers(&entry.object.key) && condition(entry))
            .map(|(at, _)| at)
            .collect()
    }

    fn watch(&self, key: &ComponentKey) -> Option<&Watch> {
        let everywhere = Watched {
            group: key.group.as_str().into(),
            kind: key.kind.clone(),
            namespace: None,
        };
        self.watches.get(&everywhere).or_else(|| {
            self.watches.get(&Watched {
                namespace: Some(key.namespace.clone()),
                ..everywhere
            })
        })
    }

    fn entry(&self, at: u32) -> &Entry {
        self.objects[at as usize]
            .as_ref()
            .expect("the position of an object that is kept")
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        self.objects[at as usize]
            .as_mut()
            .expect("the position of an object that is kept")
    }
}

impl WatchState {
    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unavailable(a), Self::Unavailable(b)) => a == b,
            (Self::Listing | Self::Following, _) | (_, Self::Listing | Self::Following) => {
                std::mem::discriminant(self) == std::mem::discriminant(other)
            }
        }
    }
}

impl Unavailable {
    const fn in_short(&self) -> &'static str {
        match self {
            Self::NotInstalled => "its kind is not installed",
            Self::Forbidden { .. } => "its kind may not be read",
            Self::Failing { .. } => "its kind cannot be read",
        }
    }

    /// What is said of a component whose kind cannot be read.
    fn verdict(&self, key: &ComponentKey) -> Verdict {
        let (reason, message) = match self {
            Self::NotInstalled => (
                Reason::KIND_NOT_INSTALLED,
                format!(
                    "kind {} of group {:?} is not installed in this cluster",
                    key.kind, key.group
                ),
            ),
            Self::Forbidden { rule } => (
                Reason::FORBIDDEN,
                format!(
                    "kind {} may not be read: add the rule {rule} in a ClusterRole labelled {AGGREGATED}: \"true\"",
                    key.kind
                ),
            ),
            Self::Failing { error } => (
                Reason::WATCH_FAILED,
                format!("kind {} cannot be read: {error}", key.kind),
            ),
        };
        Verdict::new(Health::Unknown, reason, message)
    }
}

/// Whether labels on such an object can make it a member: workloads, and what nobody owns of what they are made of.
fn is_selectable(object: &Object) -> bool {
    match (&*object.key.group, object.key.kind.as_str()) {
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet") | ("batch", "CronJob") => true,
        ("apps", "ReplicaSet") | ("batch", "Job") | ("", "Pod") => owner_key(object).is_none(),
        _ => false,
    }
}

/// Whether an object is a pod whose agent has nothing more to say: it is being deleted, or it has ended.
fn is_leaving(object: &Object) -> bool {
    object
        .pod()
        .is_some_and(|pod| object.deleting.is_some() || pod.phase.is_over())
}

/// Whether something of ours may stand in its way.
fn suffers(object: &Object) -> bool {
    match &object.state {
        State::Pod(pod) => {
            let is_hindered = pod.agent.as_ref().is_some_and(|agent| agent.hindrance.is_some());
            is_hindered && object.deleting.is_none() && !pod.phase.is_over()
        }
        State::Workload(workload) => workload.refused.is_some(),
        State::Job(_) | State::CronJob(_) | State::Composite(_) | State::Judged(_) => false,
    }
}

/// Whether pods can belong to such an object as the top of their owners.
fn is_owner(key: &ComponentKey) -> bool {
    !(key.group.is_empty() && key.kind.as_str() == "Pod")
}

/// Whether such an object merely stands between pods and the workload that a user wrote.
fn is_between(key: &ComponentKey) -> bool {
    matches!(
        (&*key.group, key.kind.as_str()),
        ("apps", "ReplicaSet") | ("batch", "Job")
    )
}

/// The owner of an object that only exists for that owner; other objects stand for themselves.
fn owner_key(object: &Object) -> Option<ComponentKey> {
    let owned = is_between(&object.key) || object.pod().is_some();
    let owner = owned.then(|| controller_key(object)).flatten()?;
    // The kubelet's own pods are owned by their node.
    let is_node = owner.group.is_empty() && owner.kind.as_str() == "Node";
    (!is_node).then_some(owner)
}

fn controller_key(object: &Object) -> Option<ComponentKey> {
    let controller = object.controller.as_ref()?;
    Some(controller.key(&object.key.namespace))
}

fn pod_key(namespace: &Namespace, name: &Name) -> ComponentKey {
    ComponentKey {
        namespace: namespace.clone(),
        group: String::new(),
        kind: "Pod".parse().expect("a valid kind"),
        name: name.clone(),
    }
}
