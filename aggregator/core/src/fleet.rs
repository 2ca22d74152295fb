//! The agents: their sessions, what they announced, and the state of every probe.
//!
//! Judges presence (held, lost, stopped) and applies records; what that means for components is left to the store. An
//! idle agent with ten probes costs some 1.5 KiB: texts are shared, a probe keeps a box of its own only while there is
//! something to say about it.

use {
    crate::{
        component::{ComponentId, InstanceId},
        event::{Limits, Now, Opened, Refusal, SessionId},
        intern::Table,
        rollup::{self, Cause},
        view::Presence,
    },
    healthscope_shared::{
        health::{Health, Reason},
        name::{AgentName, InstanceName},
        probe::{ProbeKind, outcome::ProbeState},
        wire::{AnnouncedProbe, Epoch, ProbeId, Record, Seq, Summary},
    },
    std::{
        collections::{BTreeMap, BTreeSet, HashMap},
        sync::Arc,
        time::{Duration, Instant},
    },
};

/// An agent that restarts has this long to find out again what its former run knew, before that is forgotten.
pub const RESTART_HOLD: Duration = Duration::from_secs(10);
/// What nobody expects is forgotten after having been lost for so long.
pub const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

/// Deadlines of presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// An agent of which nothing is heard for so long is lost; so is one whose state is not complete so long after it
    /// connected.
    pub silent: Duration,
    /// An agent whose connection ended is lost, or stopped when it said goodbye, after so long.
    pub hold: Duration,
    /// For so long after the start nothing becomes lost, and what is absent may still come.
    pub start: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silent: Duration::from_secs(30),
            hold: Duration::from_secs(10),
            start: Duration::from_secs(30),
        }
    }
}

/// What an instance shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// What its probes say.
    Probes(Cause),
    /// Its agent is lost.
    Lost,
    /// Its agent was stopped.
    Stopped,
}

impl Shown {
    /// Ranks; see [`Self::rank`].
    pub(crate) const FAILING: u8 = 0;
    pub(crate) const NOT_STARTED: u8 = 3;
    pub(crate) const PENDING: u8 = 4;

    pub(crate) const fn health(self) -> Health {
        match self {
            Self::Probes(cause) => cause.health(),
            Self::Lost | Self::Stopped => Health::Unknown,
        }
    }

    /// Whether nothing has been found yet.
    pub(crate) const fn is_starting(self) -> bool {
        matches!(self, Self::Probes(Cause::NotStarted(_) | Cause::Pending(_)))
    }

    /// The order in which instances are named; lower is worse.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Probes(Cause::Failing(_)) => Self::FAILING,
            Self::Lost => 1,
            Self::Stopped => 2,
            Self::Probes(Cause::NotStarted(_)) => Self::NOT_STARTED,
            Self::Probes(Cause::Pending(_)) => Self::PENDING,
            Self::Probes(Cause::NoProbes) => 5,
            Self::Probes(Cause::Passing) => 6,
        }
    }
}

/// One probe of one instance.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) shape: Arc<Shape>,
    /// Present while there is more to say than that it passes.
    pub(crate) detail: Option<Box<Detail>>,
    /// Milliseconds of the wall clock since which the state has lasted; 0 before the first record.
    pub(crate) since: i64,
    pub(crate) id: ProbeId,
    /// Position of its instance within the agent.
    instance: u32,
    pub(crate) streak: i32,
    pub(crate) runs: u32,
    pub(crate) failures: u32,
    pub(crate) errors: u32,
    pub(crate) latency_us: u32,
    pub(crate) min_us: u32,
    pub(crate) avg_us: u32,
    pub(crate) max_us: u32,
    pub(crate) p99_us: u32,
    pub(crate) state: ProbeState,
    pub(crate) flapping: bool,
    pub(crate) error: bool,
    /// The state was found by a former run of the agent, or under a former id.
    stale: bool,
}

/// What was announced of a probe; the same for all copies of a component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) name: Arc<str>,
    pub(crate) target: Arc<str>,
    pub(crate) kind: ProbeKind,
    pub(crate) success_threshold: u32,
    pub(crate) failure_threshold: u32,
    pub(crate) period_ms: u32,
}

/// What there is to say about a probe beyond its state.
#[derive(Debug)]
pub(crate) struct Detail {
    pub(crate) reason: Reason,
    pub(crate) message: Box<str>,
    pub(crate) output: Box<str>,
}

/// One running copy of a component.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) component: ComponentId,
    pub(crate) name: InstanceName,
    /// Its probes among those of the agent.
    first: u32,
    count: u32,
    /// Probes with the flapping flag.
    flapping: u32,
    /// Of these, how many its component has been told of.
    pub(crate) flapping_told: u32,
    pub(crate) shown: Shown,
    /// Milliseconds of the wall clock since which the health shown has lasted.
    pub(crate) since: i64,
}

/// A record that says that nothing is known yet, while what a former run knew is believed.
#[derive(Debug)]
struct Held {
    record: Record,
    /// Milliseconds of the wall clock since which it has lasted.
    since: i64,
}

/// Why an agent is not believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    Lost,
    Stopped,
}

/// An agent, connected or not.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) name: AgentName,
    pub(crate) epoch: Epoch,
    pub(crate) version: Arc<str>,
    pub(crate) peer: Arc<str>,
    pub(crate) session: Option<SessionId>,
    pub(crate) sessions: u32,
    /// Milliseconds of the wall clock since which the presence has lasted.
    pub(crate) since: i64,
    /// Everything up to here is applied.
    pub(crate) applied: Seq,
    pub(crate) missed: u64,
    pub(crate) instances: Box<[Instance]>,
    pub(crate) probes: Box<[Probe]>,
    /// Positions of the probes by rising id, when they are not in that order.
    by_id: Option<Box<[u32]>>,
    /// When the session began, or ended.
    changed: Instant,
    /// When it was last heard of, within a session.
    heard: Instant,
    gone: Option<Gone>,
    /// Whether the last session ended with a goodbye.
    said_goodbye: bool,
    /// The session's state is complete.
    synced: bool,
    /// All states of this epoch were received since its latest gap, so that a session can resume.
    complete: bool,
    /// Whether this epoch has announced anything.
    announced: bool,
    /// The agent's latest transition when it said hello.
    hello: Seq,
    /// Until then stale states are believed.
    hold_until: Option<Instant>,
    /// What the present run says of probes whose stale state is believed.
    held: BTreeMap<ProbeId, Held>,
    /// Its entry among the deadlines.
    armed: Option<Instant>,
}

impl Agent {
    pub(crate) fn presence(&self) -> Presence {
        match (self.session, self.gone) {
            (_, Some(Gone::Lost)) => Presence::Lost,
            (_, Some(Gone::Stopped)) => Presence::Stopped,
            (None, None) => Presence::Held,
            (Some(_), None) if self.synced => Presence::Connected,
            (Some(_), None) => Presence::Syncing,
        }
    }

    /// The probes of the instance at this position.
    pub(crate) fn probes_of(&self, instance: &Instance) -> &[Probe] {
        &self.probes[instance.first as usize..(instance.first + instance.count) as usize]
    }

    fn position(&self, id: ProbeId) -> Option<usize> {
        match &self.by_id {
            None => {
                // Ids without holes, which is how our agent counts them, are found at once.
                let first = self.probes.first()?.id.0;
                let guess = id.0.checked_sub(first)? as usize;
                match self.probes.get(guess) {
                    Some(probe) if probe.id == id => Some(guess),
                    Some(_) | None => self.probes.binary_search_by_key(&id, |probe| probe.id).ok(),
                }
            }
            Some(by_id) => {
                let place = by_id
                    .binary_search_by_key(&id, |&position| self.probes[position as usize].id)
                    .ok()?;
                Some(by_id[place] as usize)
            }
        }
    }

    /// What an instance should show.
    fn judge(&self, instance: &Instance) -> Shown {
        match self.gone {
            Some(Gone::Lost) => Shown::Lost,
            Some(Gone::Stopped) => Shown::Stopped,
            None => Shown::Probes(rollup::instance(
                self.probes_of(instance)
                    .iter()
                    .map(|probe| (probe.shape.kind, probe.state)),
            )),
        }
    }

    fn deadline(&self, patience: Patience, started: Instant) -> Option<Instant> {
        let presence = match (self.gone, self.session) {
            (Some(_), None) => Some(self.changed + FORGET_AFTER),
            (Some(_), Some(_)) => None,
            (None, None) => Some((self.changed + patience.hold).max(started + patience.start)),
            (None, Some(_)) if self.synced => {
                Some((self.heard + patience.silent).max(started + patience.start))
            }
            (None, Some(_)) => {
                Some((self.heard.min(self.changed) + patience.silent).max(started + patience.start))
            }
        };
        match (presence, self.hold_until) {
            (Some(presence), Some(hold)) => Some(presence.min(hold)),
            (presence, hold) => presence.or(hold),
        }
    }
}

/// What a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) instance: InstanceId,
    pub(crate) component: ComponentId,
    /// Position of the probe within the agent.
    pub(crate) probe: usize,
    pub(crate) from: ProbeState,
    pub(crate) to: ProbeState,
    /// What the instance showed, and shows now.
    pub(crate) before: Shown,
    pub(crate) after: Shown,
    /// Change of the number of flapping probes.
    pub(crate) flapping: i32,
}

/// What opening a session led to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) agent: u32,
    pub(crate) resume: Option<Seq>,
    pub(crate) evicted: Option<SessionId>,
}

/// What became of an agent when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lapse {
    /// Its instances may show something else.
    Refresh(u32),
    /// Nobody has heard of it for long; it may be forgotten if nobody expects its components.
    Forgettable(u32),
}

/// An instance that was announced, its component known by position.
#[derive(Debug)]
pub(crate) struct NewInstance {
    pub(crate) component: ComponentId,
    pub(crate) name: InstanceName,
    pub(crate) probes: Vec<AnnouncedProbe>,
}

/// All agents.
#[derive(Debug)]
pub(crate) struct Fleet {
    limits: Limits,
    patience: Patience,
    started: Instant,
    agents: Vec<Option<Box<Agent>>>,
    free: Vec<u32>,
    by_name: HashMap<AgentName, u32>,
    sessions: HashMap<SessionId, u32>,
    deadlines: BTreeSet<(Instant, u32)>,
    texts: Table<str>,
    shapes: Table<Shape>,
    pub(crate) instances: usize,
    pub(crate) probes: usize,
    pub(crate) missed: u64,
}

impl Fleet {
    pub(crate) fn new(limits: Limits, patience: Patience, started: Instant) -> Self {
        Self {
            limits,
            patience,
            started,
            agents: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            sessions: HashMap::new(),
            deadlines: BTreeSet::new(),
            texts: Table::default(),
            shapes: Table::default(),
            instances: 0,
            probes: 0,
            missed: 0,
        }
    }

    /// # Panics
    /// When there is no such agent: positions are only kept where the agent is.
    pub(crate) fn get(&self, agent: u32) -> &Agent {
        self.agents[agent as usize]
            .as_deref()
            .expect("the position of an agent that is kept")
    }

    fn get_mut(&mut self, agent: u32) -> &mut Agent {
        self.agents[agent as usize]
            .as_deref_mut()
            .expect("the position of an agent that is kept")
    }

    pub(crate) fn find(&self, name: &AgentName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The agent whose live session this is.
    pub(crate) fn of_session(&self, session: SessionId) -> Option<u32> {
        self.sessions.get(&session).copied()
    }

    /// All agents, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().flatten().map(|agent| &**agent)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn connected(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn instance(&self, id: InstanceId) -> &Instance {
        &self.get(id.agent).instances[id.instance as usize]
    }

    /// Gives all agents the time of a start again.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.started = now;
    }

    /// The agents without a session, ascending.
    pub(crate) fn absent(&self) -> Vec<u32> {
        (0..)
            .zip(&self.agents)
            .filter(|(_, agent)| agent.as_ref().is_some_and(|agent| agent.session.is_none()))
            .map(|(at, _)| at)
            .collect()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Opens a session. The caller refreshes the agent.
    pub(crate) fn open(&mut self, opened: Opened, now: Now) -> Result<Opening, Refusal> {
        let Opened {
            session,
            agent: name,
            epoch,
            seq,
            acked,
            version,
            peer,
            pod: _,
        } = opened;
        let (version, peer) = (self.texts.share(&version), self.texts.share(&peer));
        let at = match self.find(&name) {
            Some(at) => at,
            None => {
                if self.len() >= self.limits.agents {
                    return Err(Refusal::TooManyAgents {
                        limit: self.limits.agents,
                    });
                }
                self.add(Box::new(Agent {
                    name,
                    epoch,
                    version: Arc::clone(&version),
                    peer: Arc::clone(&peer),
                    session: None,
                    sessions: 0,
                    since: now.wall.as_millisecond(),
                    applied: acked,
                    missed: 0,
                    instances: Box::default(),
                    probes: Box::default(),
                    by_id: None,
                    changed: now.instant,
                    heard: now.instant,
                    gone: None,
                    said_goodbye: false,
                    synced: false,
                    complete: false,
                    announced: false,
                    hello: seq,
                    hold_until: None,
                    held: BTreeMap::new(),
                    armed: None,
                }))
            }
        };
        let agent = self.get_mut(at);
        let evicted = agent.session.replace(session).filter(|&old| old != session);
        agent.version = version;
        agent.peer = peer;
        agent.sessions = agent.sessions.saturating_add(1);
        agent.since = now.wall.as_millisecond();
        agent.changed = now.instant;
        agent.heard = now.instant;
        agent.said_goodbye = false;
        agent.hello = seq;
        agent.synced = false;
        let resume = if agent.epoch == epoch && agent.complete && agent.applied <= seq {
            agent.synced = agent.applied == seq;
            Some(agent.applied)
        } else {
            if agent.epoch != epoch || seq < agent.applied {
                agent.announced = false;
                agent.applied = acked;
            }
            agent.epoch = epoch;
            agent.complete = false;
            None
        };
        if agent.synced {
            agent.gone = None;
        }
        if let Some(evicted) = evicted {
            self.sessions.remove(&evicted);
        }
        self.sessions.insert(session, at);
        self.arm(at);
        Ok(Opening {
            agent: at,
            resume,
            evicted,
        })
    }

    fn add(&mut self, agent: Box<Agent>) -> u32 {
        let name = agent.name.clone();
        let at = match self.free.pop() {
            Some(at) => {
                self.agents[at as usize] = Some(agent);
                at
            }
            None => {
                self.agents.push(Some(agent));
                u32::try_from(self.agents.len() - 1).expect("the limits keep the table under 2^32")
            }
        };
        self.by_name.insert(name, at);
        at
    }

    /// Whether so much may be announced; to be asked before anything is changed.
    pub(crate) fn check_announcement(
        &self,
        agent: u32,
        instances: usize,
        ids: impl Iterator<Item = ProbeId>,
    ) -> Result<(), Refusal> {
        let Limits {
            agents: _,
            instances_per_agent,
            probes_per_agent,
            probes: in_all,
        } = self.limits;
        if instances > instances_per_agent {
            return Err(Refusal::TooManyInstances {
                found: instances,
                limit: instances_per_agent,
            });
        }
        let mut ids: Vec<ProbeId> = ids.collect();
        if ids.len() > probes_per_agent {
            return Err(Refusal::TooManyProbes {
                found: ids.len(),
                limit: probes_per_agent,
            });
        }
        if self.probes - self.get(agent).probes.len() + ids.len() > in_all {
            return Err(Refusal::TooManyProbesInAll { limit: in_all });
        }
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Refusal::DuplicateProbe(pair[0].0)),
            None => Ok(()),
        }
    }

    /// Replaces what the agent watches; the former instances, which the caller must count out, come back.
    ///
    /// A probe that was there before (by id within an epoch, otherwise by name, kind and target) keeps its state until
    /// the agent says more, for at most [`RESTART_HOLD`].
    pub(crate) fn announce(&mut self, agent: u32, new: Vec<NewInstance>, now: Now) -> Box<[Instance]> {
        let now_ms = now.wall.as_millisecond();
        let at = agent;
        let agent = self.agents[at as usize]
            .as_deref_mut()
            .expect("the position of an agent that is kept");
        let same_run = agent.announced;
        if !same_run {
            agent.held.clear();
        }
        let old_instances = std::mem::take(&mut agent.instances);
        let mut old_probes: Vec<Option<Probe>> = std::mem::take(&mut agent.probes)
            .into_vec()
            .into_iter()
            .map(Some)
            .collect();
        self.instances -= old_instances.len();
        self.probes -= old_probes.len();
        let former: HashMap<(ComponentId, &InstanceName), &Instance> = old_instances
            .iter()
            .map(|instance| ((instance.component, &instance.name), instance))
            .collect();

        let mut instances = Vec::with_capacity(new.len());
        let mut probes = Vec::with_capacity(new.iter().map(|instance| instance.probes.len()).sum());
        let mut any_stale = false;
        for NewInstance {
            component,
            name,
            probes: announced,
        } in new
        {
            let before = former.get(&(component, &name)).copied();
            let first = u32::try_from(probes.len()).expect("the limits keep probes under 2^32");
            let position = u32::try_from(instances.len()).expect("the limits keep instances under 2^32");
            for probe in announced {
                let mut probe = new_probe(probe, position, &mut self.texts, &mut self.shapes);
                if let Some(before) = before {
                    let range = before.first as usize..(before.first + before.count) as usize;
                    any_stale |= inherit(&mut probe, &mut old_probes[range], same_run, agent.gone.is_none());
                }
                probes.push(probe);
            }
            let count = u32::try_from(probes.len()).expect("the limits keep probes under 2^32") - first;
            let flapping = probes[first as usize..]
                .iter()
                .filter(|probe: &&Probe| probe.flapping)
                .count();
            let flapping = u32::try_from(flapping).expect("at most the number of probes");
            instances.push(Instance {
                component,
                name,
                first,
                count,
                flapping,
                flapping_told: flapping,
                shown: before.map_or(Shown::Probes(Cause::NoProbes), |before| before.shown),
                since: before.map_or(now_ms, |before| before.since),
            });
        }
        drop(former);
        let ascends = probes.windows(2).all(|pair| pair[0].id < pair[1].id);
        agent.by_id = (!ascends).then(|| {
            let mut positions: Vec<u32> = (0..u32::try_from(probes.len()).expect("checked above")).collect();
            positions.sort_unstable_by_key(|&position| probes[position as usize].id);
            positions.into_boxed_slice()
        });
        agent.probes = probes.into_boxed_slice();
        agent.instances = instances.into_boxed_slice();
        agent.announced = true;
        agent.heard = now.instant;
        if any_stale {
            agent.hold_until = Some(now.instant + RESTART_HOLD);
        }
        for position in 0..agent.instances.len() {
            let shown = agent.judge(&agent.instances[position]);
            let instance = &mut agent.instances[position];
            if shown.health() != instance.shown.health() {
                instance.since = now_ms;
            }
            instance.shown = shown;
        }
        self.instances += agent.instances.len();
        self.probes += agent.probes.len();
        self.arm(at);
        old_instances
    }

    /// The agent was heard of; whether its instances may show something else.
    pub(crate) fn hear(&mut self, agent: u32, now: Now) -> bool {
        let agent_state = self.get_mut(agent);
        agent_state.heard = now.instant;
        let is_back = agent_state.synced && agent_state.gone.is_some();
        if is_back {
            agent_state.gone = None;
            agent_state.since = now.wall.as_millisecond();
            self.arm(agent);
        }
        is_back
    }

    /// Applies one record; `None` when there is no such probe, or nothing changed for a reader.
    pub(crate) fn apply(&mut self, agent: u32, record: Record, now: Now) -> Option<Applied> {
        let at = agent;
        let agent = self.get_mut(at);
        let position = agent.position(record.probe)?;
        let is_held = agent.hold_until.is_some_and(|until| now.instant < until);
        let since = now.wall.as_millisecond().saturating_sub_unsigned(record.age_ms);
        let probe = &mut agent.probes[position];
        if probe.stale && is_held && record.state == ProbeState::Pending {
            agent.held.insert(record.probe, Held { record, since });
            return None;
        }
        if probe.stale {
            agent.held.remove(&record.probe);
        }
        let from = probe.state;
        let state = record.state;
        let flapped = i32::from(record.flapping) - i32::from(probe.flapping);
        probe.set(record, since);
        let instance_position = probe.instance;
        let before = agent.instances[instance_position as usize].shown;
        let after = if from == state {
            before
        } else {
            agent.judge(&agent.instances[instance_position as usize])
        };
        let instance = &mut agent.instances[instance_position as usize];
        if after.health() != before.health() {
            instance.since = now.wall.as_millisecond();
        }
        instance.shown = after;
        instance.flapping = instance.flapping.saturating_add_signed(flapped);
        instance.flapping_told = instance.flapping_told.saturating_add_signed(flapped);
        Some(Applied {
            instance: InstanceId {
                agent: at,
                instance: instance_position,
            },
            component: instance.component,
            probe: position,
            from,
            to: state,
            before,
            after,
            flapping: flapped,
        })
    }

    /// Takes in a summary.
    pub(crate) fn summarize(&mut self, agent: u32, summary: Summary) {
        let Summary {
            probe,
            streak,
            runs,
            failures,
            errors,
            min_us,
            avg_us,
            max_us,
            p99_us,
        } = summary;
        let agent = self.get_mut(agent);
        let Some(position) = agent.position(probe) else {
            return;
        };
        let probe = &mut agent.probes[position];
        probe.streak = streak;
        probe.runs = probe.runs.saturating_add(runs);
        probe.failures = probe.failures.saturating_add(failures);
        probe.errors = probe.errors.saturating_add(errors);
        if runs > 0 {
            probe.min_us = micros(min_us);
            probe.avg_us = micros(avg_us);
            probe.max_us = micros(max_us);
            probe.p99_us = micros(p99_us);
        }
    }

    /// Counts transitions in up to `seq`; whether some of them were never seen.
    pub(crate) fn advance(&mut self, agent: u32, seq: Seq, seen: bool) -> bool {
        let agent = self.get_mut(agent);
        let expected = if seen {
            agent.applied.0 + 1
        } else {
            agent.applied.0
        };
        let gap = seq.0.saturating_sub(expected);
        if gap > 0 {
            agent.missed = agent.missed.saturating_add(gap);
            agent.complete = false;
        }
        agent.applied = agent.applied.max(seq);
        self.missed = self.missed.saturating_add(gap);
        gap > 0
    }

    /// Whether this transition is applied already.
    pub(crate) fn has(&self, agent: u32, seq: Seq) -> bool {
        seq <= self.get(agent).applied
    }

    /// All of a report is applied; whether instances may show something else.
    pub(crate) fn reported(&mut self, agent: u32, complete: bool, now: Now) -> bool {
        let at = agent;
        let agent = self.get_mut(at);
        let mut refresh = false;
        if complete {
            agent.complete = true;
            if agent.hold_until.is_none() {
                refresh |= agent.drop_stale();
            }
        }
        if !agent.synced && agent.complete && agent.applied >= agent.hello {
            agent.synced = true;
            agent.since = now.wall.as_millisecond();
            refresh |= agent.gone.take().is_some();
            self.arm(at);
        }
        refresh
    }

    /// The session ended.
    pub(crate) fn close(&mut self, session: SessionId, goodbye: bool, now: Now) -> Option<u32> {
        let at = self.sessions.remove(&session)?;
        let agent = self.get_mut(at);
        agent.session = None;
        agent.synced = false;
        agent.said_goodbye = goodbye;
        agent.changed = now.instant;
        agent.since = now.wall.as_millisecond();
        self.arm(at);
        Some(at)
    }

    /// Updates what the instance shows: before, after, and the change of the number of flapping probes.
    pub(crate) fn refresh(&mut self, id: InstanceId, now: Now) -> (Shown, Shown, i32) {
        let agent = self.get_mut(id.agent);
        let after = agent.judge(&agent.instances[id.instance as usize]);
        let instance = &mut agent.instances[id.instance as usize];
        let before = instance.shown;
        if before.health() != after.health() {
            instance.since = now.wall.as_millisecond();
        }
        instance.shown = after;
        let flapped = i64::from(instance.flapping) - i64::from(instance.flapping_told);
        instance.flapping_told = instance.flapping;
        (
            before,
            after,
            i32::try_from(flapped).expect("fewer probes than 2^31"),
        )
    }

    /// The next agent whose deadline has passed, already carried out.
    pub(crate) fn lapse(&mut self, now: Now) -> Option<Lapse> {
        let (patience, started) = (self.patience, self.started);
        while let Some(&(deadline, at)) = self.deadlines.first() {
            if deadline > now.instant {
                return None;
            }
            self.deadlines.pop_first();
            let agent = self.get_mut(at);
            agent.armed = None;
            let is_due = agent
                .deadline(patience, started)
                .is_some_and(|deadline| deadline <= now.instant);
            if !is_due {
                self.arm(at);
                continue;
            }
            let agent = self.get_mut(at);
            if agent.hold_until.is_some_and(|until| until <= now.instant) {
                agent.hold_until = None;
                let refresh = agent.drop_stale();
                self.arm(at);
                if refresh {
                    return Some(Lapse::Refresh(at));
                }
                continue;
            }
            if agent.gone.is_some() {
                // Asked again after the same time when it is not forgotten.
                agent.changed = now.instant;
                self.arm(at);
                return Some(Lapse::Forgettable(at));
            }
            agent.gone = Some(if agent.said_goodbye {
                Gone::Stopped
            } else {
                Gone::Lost
            });
            agent.since = now.wall.as_millisecond();
            self.arm(at);
            return Some(if agent_is_empty(self.get(at)) {
                Lapse::Forgettable(at)
            } else {
                Lapse::Refresh(at)
            });
        }
        None
    }

    /// Forgets an agent without a session; its instances, which the caller must count out, come back.
    pub(crate) fn forget(&mut self, agent: u32) -> Option<Box<Agent>> {
        if self.get(agent).session.is_some() {
            return None;
        }
        let forgotten = self.agents[agent as usize].take()?;
        if let Some(armed) = forgotten.armed {
            self.deadlines.remove(&(armed, agent));
        }
        self.by_name.remove(&forgotten.name);
        self.free.push(agent);
        self.instances -= forgotten.instances.len();
        self.probes -= forgotten.probes.len();
        Some(forgotten)
    }

    /// Makes sure that the agent is looked at when its next deadline passes. An entry that is too early costs one look,
    /// so a deadline that only moves on, as with every sign of life, touches nothing.
    fn arm(&mut self, at: u32) {
        let (patience, started) = (self.patience, self.started);
        let agent = self.get_mut(at);
        let Some(deadline) = agent.deadline(patience, started) else {
            return;
        };
        let former = agent.armed;
        if former.is_some_and(|armed| armed <= deadline) {
            return;
        }
        agent.armed = Some(deadline);
        if let Some(former) = former {
            self.deadlines.remove(&(former, at));
        }
        self.deadlines.insert((deadline, at));
    }
}

impl Agent {
    /// What a former run found and the present one has not confirmed is not known any more.
    fn drop_stale(&mut self) -> bool {
        let mut any = false;
        for probe in self.probes.iter_mut().filter(|probe| probe.stale) {
            any = true;
            let was_flapping = probe.flapping;
            match self.held.remove(&probe.id) {
                Some(Held { record, since }) => probe.set(record, since),
                None => {
                    probe.stale = false;
                    probe.state = ProbeState::Pending;
                    probe.since = 0;
                    probe.flapping = false;
                    probe.error = false;
                    probe.streak = 0;
                    probe.detail = None;
                }
            }
            let flapping = &mut self.instances[probe.instance as usize].flapping;
            *flapping = flapping.saturating_add_signed(i32::from(probe.flapping) - i32::from(was_flapping));
        }
        self.held.clear();
        any
    }
}

impl Probe {
    /// Becomes what a record says.
    fn set(&mut self, record: Record, since: i64) {
        let Record {
            seq: _,
            probe: _,
            age_ms: _,
            state,
            flapping,
            error,
            streak,
            latency_us,
            reason,
            message,
            output,
        } = record;
        self.stale = false;
        self.state = state;
        self.since = since;
        self.flapping = flapping;
        self.error = error;
        self.streak = streak;
        self.latency_us = micros(latency_us);
        // Output is kept only while it explains something.
        let output = if state == ProbeState::Passing && streak >= 0 {
            String::new()
        } else {
            output
        };
        let is_plain = reason == Reason::PASSING && message.is_empty() && output.is_empty();
        self.detail = (!is_plain).then(|| {
            Box::new(Detail {
                reason,
                message: message.into_boxed_str(),
                output: output.into_boxed_str(),
            })
        });
    }
}

fn agent_is_empty(agent: &Agent) -> bool {
    agent.instances.is_empty() && agent.session.is_none()
}

fn new_probe(
    announced: AnnouncedProbe,
    instance: u32,
    texts: &mut Table<str>,
    shapes: &mut Table<Shape>,
) -> Probe {
    let AnnouncedProbe {
        id,
        name,
        kind,
        target,
        period_ms,
        timeout_ms: _,
        success_threshold,
        failure_threshold,
    } = announced;
    let shape = Shape {
        name: texts.share(name.as_str()),
        target: texts.share(&target),
        kind,
        success_threshold,
        failure_threshold,
        period_ms: u32::try_from(period_ms).unwrap_or(u32::MAX),
    };
    Probe {
        shape: shapes.share_as(&shape, || Arc::new(shape.clone())),
        detail: None,
        since: 0,
        id,
        instance,
        streak: 0,
        runs: 0,
        failures: 0,
        errors: 0,
        latency_us: 0,
        min_us: 0,
        avg_us: 0,
        max_us: 0,
        p99_us: 0,
        state: ProbeState::Pending,
        flapping: false,
        error: false,
        stale: false,
    }
}

/// Takes over the state of the probe that `new` was before; whether that state waits to be confirmed.
fn inherit(new: &mut Probe, old: &mut [Option<Probe>], same_run: bool, is_believed: bool) -> bool {
    let is_same = |old: &Probe| old.id == new.id && same_run;
    let is_alike = |old: &Probe| {
        (&old.shape.name, &old.shape.target, old.shape.kind)
            == (&new.shape.name, &new.shape.target, new.shape.kind)
    };
    let position =
        |matches: &dyn Fn(&Probe) -> bool| old.iter().position(|old| old.as_ref().is_some_and(matches));
    let (found, confirmed) = match (position(&is_same), position(&is_alike)) {
        (Some(found), _) => (found, true),
        (None, Some(found)) if is_believed => (found, false),
        (None, Some(_) | None) => return false,
    };
    let Some(old) = old[found].take() else {
        return false;
    };
    let stale = old.state != ProbeState::Pending && (old.stale || !confirmed);
    *new = Probe {
        shape: Arc::clone(&new.shape),
        id: new.id,
        instance: new.instance,
        stale,
        ..old
    };
    stale
}

fn micros(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
impl Fleet {
    /// Compares every counter and index with what it is derived from.
    pub(crate) fn check(&self) {
        let mut probes = 0;
        for (position, agent) in (0..).zip(&self.agents) {
            let Some(agent) = agent else { continue };
            assert_eq!(self.find(&agent.name), Some(position));
            assert_eq!(
                agent.session.and_then(|session| self.of_session(session)),
                agent.session.map(|_| position)
            );
            if let Some(armed) = agent.armed {
                assert!(self.deadlines.contains(&(armed, position)));
            }
            if let Some(deadline) = agent.deadline(self.patience, self.started) {
                assert!(
                    agent.armed.is_some_and(|armed| armed <= deadline),
                    "{} is looked at in time",
                    agent.name
                );
            }
            for instance in &agent.instances {
                assert_eq!(instance.shown, agent.judge(instance));
                let flapping = agent
                    .probes_of(instance)
                    .iter()
                    .filter(|probe| probe.flapping)
                    .count();
                assert_eq!(
                    (instance.flapping as usize, instance.flapping_told as usize),
                    (flapping, flapping)
                );
            }
            for (at, probe) in agent.probes.iter().enumerate() {
                assert_eq!(agent.position(probe.id), Some(at));
            }
            probes += agent.probes.len();
        }
        assert_eq!(
            self.instances,
            self.iter().map(|agent| agent.instances.len()).sum::<usize>()
        );
        assert_eq!(self.probes, probes);
        assert_eq!(
            self.deadlines.len(),
            self.iter().filter(|agent| agent.armed.is_some()).count()
        );
        assert_eq!(
            self.sessions.len(),
            self.iter().filter(|agent| agent.session.is_some()).count()
        );
        assert_eq!(self.by_name.len(), self.iter().count());
    }
}
