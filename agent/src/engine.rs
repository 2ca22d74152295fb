//! Ties [`Schedule`], [`Probers`], [`Monitor`] and [`Gate`] together: one task that starts runs when they are due,
//! takes in what they found and says what changed.
//!
//! Holds no policy of its own, knows nothing of files, sessions and aggregators, and never waits for whoever reads its
//! events: when [`Event`]s are not read, up to `MAX_BACKLOG` of them are kept, then the oldest notes are dropped and
//! counted, and when only transitions are left, the oldest of those. The receiver's own queue and this backlog together
//! outlast any reader that is merely slow; a reader that lost something sees it in [`Counters`] and asks for a
//! [`Command::Snapshot`].

use {
    crate::{
        monitor::{Gate, Monitor, Observation, window::Figures},
        prober::Probers,
        schedule::{Key, Lane, Limits, OutOfTurn, Schedule, Start, Timing},
    },
    healthscope_shared::{
        health::Reason,
        name::{ComponentKey, ContainerName, Name, ProbeName},
        probe::{
            Handler, ProbeKind, ProbeSpec,
            outcome::{Outcome, ProbeState, RunResult},
        },
        threshold::Attempt,
        wire::ProbeId,
    },
    std::{
        collections::{BTreeMap, HashMap, HashSet, VecDeque},
        sync::Arc,
        time::Instant,
    },
    tokio::{
        sync::{mpsc, oneshot},
        task::{AbortHandle, JoinError, JoinSet},
    },
    tokio_util::sync::CancellationToken,
};

mod alarm;
pub mod counters;

use {
    alarm::Alarm,
    counters::{ComponentRuns, Counters},
};

/// Events kept while nobody reads them: four times the transitions that an agent keeps for its aggregator.
const MAX_BACKLOG: usize = 1024;
/// Most requests that wait for one run of a probe; more people than that do not ask at once.
const MAX_WAITING_PER_PROBE: usize = 16;

/// One component and its probes; probe names are unique within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentProbes {
    /// Which component.
    pub component: ComponentKey,
    /// Its probes, validated.
    pub probes: Vec<ProbeSpec>,
}

/// What the engine can be asked.
///
/// The channel is bounded by whoever makes it; the engine reads it before anything else, so a full channel means that
/// the process does not get to run.
#[derive(Debug)]
pub enum Command {
    /// Watches exactly these components from now on. Probes that are the same (component, name and all settings) keep
    /// their id, state and place in the schedule; changed ones start anew under a new id. Answered by
    /// [`Event::Announced`]. Each component is named once.
    Replace(Vec<ComponentProbes>),
    /// Runs a probe out of turn, even while its component is starting. The result counts like any other, except that
    /// of a startup probe that has passed already. If the probe runs at this moment, that run answers.
    RunNow {
        /// Which.
        probe: ProbeId,
        /// Dropped without an answer when the probe is removed meanwhile.
        reply: oneshot::Sender<RunNowReply>,
    },
    /// Runs the command checks in this container out of turn, those that have run before: its runner has come, or is gone.
    Recheck(ContainerName),
    /// Figures of all probes since they were last asked for, in order of id.
    Summaries {
        /// Where to.
        reply: oneshot::Sender<Vec<ProbeSummary>>,
    },
    /// The present state of all probes, in order of id. Everything that was sent as an event before is contained.
    Snapshot {
        /// Where to.
        reply: oneshot::Sender<Vec<ProbeReport>>,
    },
}

/// The answer to [`Command::RunNow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunNowReply {
    /// It ran.
    Ran {
        /// What it found.
        outcome: Outcome,
        /// The state after it.
        state: ProbeState,
    },
    /// No probe has this id (any more).
    NotFound,
    /// Too many others wait for a run of this probe already.
    Busy,
}

/// What the engine has to say, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything that is watched from now on, in the order given. Comes before any event about a new id; no event
    /// about a missing id comes after it.
    Announced(Vec<AnnouncedComponent>),
    /// A probe's state changed.
    Transition {
        /// The state before.
        from: ProbeState,
        /// The state now.
        report: ProbeReport,
    },
    /// Something about a probe is new while its state is not; see [`Observation::Note`]. May be dropped when nobody
    /// reads events.
    Note(ProbeReport),
}

/// A component that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedComponent {
    /// Which.
    pub component: ComponentKey,
    /// Its probes, in the order given.
    pub probes: Vec<AnnouncedProbe>,
}

/// A probe that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedProbe {
    /// Its id: never given to another probe while this process lives.
    pub id: ProbeId,
    /// What it does and when.
    pub spec: Arc<ProbeSpec>,
}

/// What is known about a probe at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Which.
    pub probe: ProbeId,
    /// When its state began; for a pending one, when it was taken up.
    pub since: Instant,
    /// Its state.
    pub state: ProbeState,
    /// Equal results in a row: positive for successes, negative for failures, 0 before the first.
    pub streak: i32,
    /// How far the streak is on its way to another state.
    pub attempt: Option<Attempt>,
    /// Whether the results change too often to be believed.
    pub flapping: bool,
    /// The last run; `None` before the first.
    pub last: Option<Outcome>,
}

/// The runs of a probe since they were asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSummary {
    /// Which.
    pub probe: ProbeId,
    /// Equal results in a row, now.
    pub streak: i32,
    /// The figures.
    pub figures: Figures,
}

/// How an [`Engine`] is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineConfig {
    /// Most runs at once.
    pub limits: Limits,
    /// Mixed into the phases, so that copies of one component do not run in step: a hash of the agent's name.
    pub salt: u64,
}

/// Runs probes. Make one, then give it a task of its own with [`Engine::run`].
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    probers: Arc<Probers>,
    counters: Arc<Counters>,
    schedule: Schedule,
    /// By [`Key::index`].
    probes: Vec<Option<Probe>>,
    by_id: BTreeMap<ProbeId, usize>,
    components: HashMap<ComponentKey, Component>,
    next_id: u32,
    runs: JoinSet<Finished>,
    /// Full case: see the module.
    backlog: VecDeque<Event>,
}

#[derive(Debug)]
struct Component {
    gate: Gate,
    probes: HashMap<ProbeName, usize>,
}

#[derive(Debug)]
struct Probe {
    id: ProbeId,
    key: Key,
    component: ComponentKey,
    spec: Arc<ProbeSpec>,
    monitor: Monitor,
    /// Counts of its component.
    runs: Arc<ComponentRuns>,
    running: Option<AbortHandle>,
    /// Full case: [`RunNowReply::Busy`].
    waiting: Vec<oneshot::Sender<RunNowReply>>,
}

/// The end of a run.
#[derive(Debug)]
struct Finished {
    key: Key,
    outcome: Outcome,
}

impl Engine {
    /// An engine that watches nothing until the first [`Command::Replace`].
    #[must_use]
    pub fn new(config: EngineConfig, probers: Arc<Probers>, counters: Arc<Counters>) -> Self {
        Self {
            config,
            probers,
            counters,
            schedule: Schedule::new(now(), config.limits),
            probes: Vec::new(),
            by_id: BTreeMap::new(),
            components: HashMap::new(),
            next_id: 0,
            runs: JoinSet::new(),
            backlog: VecDeque::new(),
        }
    }

    /// Runs until `shutdown` is cancelled or the last sender of `commands` or the receiver of `events` is gone. Ends all
    /// runs; when it returns, no command that it started is alive.
    ///
    /// Needs a tokio runtime with IO and time, and works best on a current-thread one.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        shutdown: CancellationToken,
    ) {
        let mut starts = Vec::new();
        let mut alarm = Alarm::new();
        loop {
            self.schedule.poll(now(), &mut starts);
            // Before the runs set their own timers.
            alarm.started(starts.len());
            for start in starts.drain(..) {
                self.start(start);
            }
            self.count();
            alarm.set(self.schedule.next_due());
            // Every branch is cancel-safe: each waits without taking anything before it is chosen.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                permit = events.reserve(), if !self.backlog.is_empty() => {
                    let Ok(permit) = permit else { break };
                    permit.send(self.backlog.pop_front().expect("checked by the branch"));
                }
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    self.take(command, &events);
                }
                Some(finished) = self.runs.join_next() => {
                    self.finish(finished, &events);
                    while let Some(finished) = self.runs.try_join_next() {
                        self.finish(finished, &events);
                    }
                }
                () = alarm.rings() => {}
            }
        }
        self.runs.shutdown().await;
        self.probers.settle().await;
    }

    fn count(&self) {
        let dropped = self.schedule.dropped();
        self.counters
            .set_schedule(dropped, self.schedule.running(), self.schedule.waiting());
    }

    fn start(&mut self, start: Start) {
        let Start { key, scheduled } = start;
        let probe = self.probes[key.index()]
            .as_mut()
            .expect("the schedule holds the probes that we hold");
        self.counters.lateness(now().saturating_duration_since(scheduled));
        let (probers, spec) = (Arc::clone(&self.probers), Arc::clone(&probe.spec));
        probe.running = Some(self.runs.spawn(async move {
            let outcome = probers.run(&spec).await;
            Finished { key, outcome }
        }));
    }

    fn take(&mut self, command: Command, events: &mpsc::Sender<Event>) {
        match command {
            Command::Replace(components) => self.replace(components, events),
            Command::RunNow { probe, reply } => self.run_now(probe, reply),
            Command::Recheck(container) => self.recheck(&container),
            Command::Summaries { reply } => {
                let summaries = self.take_summaries();
                // An answer that nobody waits for any more is no loss.
                let _ = reply.send(summaries);
            }
            Command::Snapshot { reply } => {
                let reports = self.ordered().map(Probe::report).collect();
                let _ = reply.send(reports);
            }
        }
    }

    fn replace(&mut self, wanted: Vec<ComponentProbes>, events: &mpsc::Sender<Event>) {
        let now = now();
        let mut former = std::mem::take(&mut self.components);
        let mut announced = Vec::with_capacity(wanted.len());
        for ComponentProbes { component, probes } in wanted {
            debug_assert!(
                !self.components.contains_key(&component),
                "{component:?} is named twice"
            );
            let kept = former.remove(&component).map(|former| former.probes);
            announced.push(self.take_up(component, probes, kept.unwrap_or_default(), now));
        }
        for component in former.into_values() {
            for index in component.probes.into_values() {
                self.remove(index);
            }
        }
        let names: HashSet<&Name> = self.components.keys().map(|key| &key.name).collect();
        self.counters.retain_components(|name| names.contains(name));
        // What waits about probes that are gone would come after the announcement.
        let by_id = &self.by_id;
        self.backlog.retain(|event| match event {
            Event::Announced(_) => false,
            Event::Transition { report, .. } | Event::Note(report) => by_id.contains_key(&report.probe),
        });
        self.emit(Event::Announced(announced), events);
    }

    /// Takes up one component; `former` are the probes it had.
    fn take_up(
        &mut self,
        component: ComponentKey,
        specs: Vec<ProbeSpec>,
        mut former: HashMap<ProbeName, usize>,
        now: Instant,
    ) -> AnnouncedComponent {
        let same = |engine: &Self, former: &HashMap<ProbeName, usize>, spec: &ProbeSpec| {
            let index = *former.get(&spec.name)?;
            engine.probe(index).filter(|probe| *probe.spec == *spec)?;
            Some(index)
        };
        let has_passed = |spec: &ProbeSpec| {
            same(self, &former, spec)
                .and_then(|index| self.probe(index))
                .is_some_and(Probe::has_passed)
        };
        let startup_left = specs
            .iter()
            .filter(|spec| spec.kind == ProbeKind::Startup && !has_passed(spec))
            .count();
        let gate = Gate::new(startup_left);
        let mut probes = HashMap::with_capacity(specs.len());
        let mut announced = Vec::with_capacity(specs.len());
        for spec in specs {
            let index = match same(self, &former, &spec) {
                Some(index) => {
                    former.remove(&spec.name);
                    index
                }
                None => self.add(&component, spec, gate, now),
            };
            let probe = self.probe(index).expect("just found or added");
            announced.push(AnnouncedProbe {
                id: probe.id,
                spec: Arc::clone(&probe.spec),
            });
            probes.insert(probe.spec.name.clone(), index);
        }
        for index in former.into_values() {
            self.remove(index);
        }
        self.apply_gate(gate, probes.values().copied(), now);
        self.components
            .insert(component.clone(), Component { gate, probes });
        AnnouncedComponent {
            component,
            probes: announced,
        }
    }

    /// Adds a probe; it waits when the gate does not let it run yet.
    fn add(&mut self, component: &ComponentKey, spec: ProbeSpec, gate: Gate, now: Instant) -> usize {
        let id = ProbeId(self.next_id);
        self.next_id = self
            .next_id
            .checked_add(1)
            .expect("an agent does not live for four thousand million edits");
        let lane = match spec.handler {
            Handler::Exec(_) => Lane::Command,
            Handler::HttpGet(_) | Handler::TcpSocket(_) | Handler::Grpc(_) => Lane::Network,
        };
        let timing = Timing {
            lane,
            period: spec.period,
            initial_delay: spec.initial_delay,
            hash: identity_hash(self.config.salt, component, &spec.name),
        };
        let paused = !gate.lets_run(spec.kind, false);
        let key = self.schedule.add(timing, paused, now);
        let index = key.index();
        if self.probes.len() <= index {
            self.probes.resize_with(index + 1, || None);
        }
        self.probes[index] = Some(Probe {
            id,
            key,
            component: component.clone(),
            monitor: Monitor::new(&spec, now),
            runs: self.counters.component(&component.name, spec.kind),
            spec: Arc::new(spec),
            running: None,
            waiting: Vec::new(),
        });
        self.by_id.insert(id, index);
        index
    }

    fn remove(&mut self, index: usize) {
        let Some(probe) = self.probes[index].take() else {
            return;
        };
        if let Some(running) = probe.running {
            running.abort();
        }
        self.schedule.remove(probe.key);
        self.by_id.remove(&probe.id);
    }

    fn apply_gate(&mut self, gate: Gate, indices: impl Iterator<Item = usize>, now: Instant) {
        for index in indices {
            let Some(probe) = self.probes[index].as_ref() else {
                continue;
            };
            if gate.lets_run(probe.spec.kind, probe.has_passed()) {
                self.schedule.resume(probe.key, now);
            } else {
                self.schedule.pause(probe.key);
            }
        }
    }

    fn run_now(&mut self, id: ProbeId, reply: oneshot::Sender<RunNowReply>) {
        let probe = self.by_id.get(&id).and_then(|&index| self.probes[index].as_mut());
        let Some(probe) = probe else {
            let _ = reply.send(RunNowReply::NotFound);
            return;
        };
        probe.waiting.retain(|waiting| !waiting.is_closed());
        if probe.waiting.len() >= MAX_WAITING_PER_PROBE {
            let _ = reply.send(RunNowReply::Busy);
            return;
        }
        probe.waiting.push(reply);
        match self.schedule.run_now(probe.key, now()) {
            OutOfTurn::Queued | OutOfTurn::AlreadyRunning => {}
            OutOfTurn::NotFound => unreachable!("the schedule holds the probes that we hold"),
        }
    }

    fn recheck(&mut self, container: &ContainerName) {
        let now = now();
        let Self {
            components,
            probes,
            schedule,
            ..
        } = self;
        for Component {
            gate,
            probes: indices,
        } in components.values()
        {
            for probe in indices.values().filter_map(|&index| probes[index].as_ref()) {
                // One that has not run yet waits for its initial delay.
                let has_run = probe.monitor.last().is_some();
                let is_its_turn = gate.lets_run(probe.spec.kind, probe.has_passed());
                if probe.runs_in(container) && has_run && is_its_turn {
                    // If it runs at this moment, it is asking the very runner that came or went.
                    schedule.run_now(probe.key, now);
                }
            }
        }
    }

    fn take_summaries(&mut self) -> Vec<ProbeSummary> {
        let Self { by_id, probes, .. } = self;
        by_id
            .values()
            .filter_map(|&index| {
                let probe = probes[index].as_mut()?;
                Some(ProbeSummary {
                    probe: probe.id,
                    streak: probe.monitor.streak(),
                    figures: probe.monitor.take_figures(),
                })
            })
            .collect()
    }

    fn finish(&mut self, finished: Result<Finished, JoinError>, events: &mpsc::Sender<Event>) {
        let finished = match finished {
            Ok(finished) => Some(finished),
            Err(error) => self.after_panic(&error),
        };
        let Some(Finished { key, outcome }) = finished else {
            return;
        };
        let now = now();
        let Some(probe) = self.probes.get_mut(key.index()).and_then(Option::as_mut) else {
            return;
        };
        if probe.key != key {
            return;
        }
        probe.running = None;
        self.schedule.finished(key);
        self.counters.ran(probe.spec.kind, &probe.runs, &outcome);
        let waiting = std::mem::take(&mut probe.waiting);
        let answer = (!waiting.is_empty()).then(|| outcome.clone());
        let counts = probe.spec.kind != ProbeKind::Startup || !probe.has_passed();
        if counts {
            match probe.monitor.observe(outcome, now) {
                Observation::Quiet => {}
                Observation::Note => {
                    let report = probe.report();
                    self.emit(Event::Note(report), events);
                }
                Observation::Transition { from } => {
                    let report = probe.report();
                    self.transition(key.index(), from, report, now, events);
                }
            }
        }
        if let Some(outcome) = answer {
            let state = self
                .probe(key.index())
                .map_or(ProbeState::Pending, |probe| probe.monitor.state());
            for reply in waiting {
                let outcome = outcome.clone();
                let _ = reply.send(RunNowReply::Ran { outcome, state });
            }
        }
    }

    fn transition(
        &mut self,
        index: usize,
        from: ProbeState,
        report: ProbeReport,
        now: Instant,
        events: &mpsc::Sender<Event>,
    ) {
        self.emit(Event::Transition { from, report }, events);
        let Some(probe) = self.probe(index) else { return };
        if probe.spec.kind != ProbeKind::Startup || !probe.has_passed() {
            return;
        }
        let key = probe.key;
        let Some(component) = self.components.get_mut(&probe.component.clone()) else {
            return;
        };
        self.schedule.pause(key);
        if component.gate.startup_passed() {
            let gate = component.gate;
            let indices: Vec<_> = component.probes.values().copied().collect();
            self.apply_gate(gate, indices.into_iter(), now);
        }
    }

    /// A run that panicked is a defect of ours: reported as the probe's error, so that it is seen where it matters.
    fn after_panic(&mut self, error: &JoinError) -> Option<Finished> {
        if !error.is_panic() {
            return None;
        }
        let failed = |probe: &&Probe| {
            probe
                .running
                .as_ref()
                .is_some_and(|running| running.id() == error.id())
        };
        let probe = self.probes.iter().flatten().find(failed)?;
        tracing::error!(
            probe = probe.id.0,
            "a run panicked; this is a defect of the agent"
        );
        Some(Finished {
            key: probe.key,
            outcome: Outcome {
                result: RunResult::Error(Reason::INTERNAL_ERROR),
                latency: std::time::Duration::ZERO,
                message: "the run ended by a defect of the agent; see its log".to_owned(),
                output: String::new(),
            },
        })
    }

    /// Sends an event, or keeps it when the channel is full.
    fn emit(&mut self, event: Event, events: &mpsc::Sender<Event>) {
        if self.backlog.is_empty() {
            match events.try_send(event) {
                // A receiver that is gone ends the loop at its next event or command.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
                Err(mpsc::error::TrySendError::Full(event)) => self.backlog.push_back(event),
            }
        } else {
            self.backlog.push_back(event);
        }
        if self.backlog.len() > MAX_BACKLOG {
            let is_note = |event: &Event| matches!(event, Event::Note(_));
            let is_transition = |event: &Event| matches!(event, Event::Transition { .. });
            let oldest = self
                .backlog
                .iter()
                .position(is_note)
                .or_else(|| self.backlog.iter().position(is_transition));
            if let Some(oldest) = oldest {
                self.backlog.remove(oldest);
                self.counters.dropped_event();
            }
        }
    }

    fn probe(&self, index: usize) -> Option<&Probe> {
        self.probes.get(index)?.as_ref()
    }

    fn ordered(&self) -> impl Iterator<Item = &Probe> {
        self.by_id.values().filter_map(|&index| self.probe(index))
    }
}

impl Probe {
    fn has_passed(&self) -> bool {
        self.monitor.state() == ProbeState::Passing
    }

    fn runs_in(&self, container: &ContainerName) -> bool {
        match &self.spec.handler {
            Handler::Exec(exec) => exec
                .runner
                .as_ref()
                .is_some_and(|check| check.container == *container),
            Handler::HttpGet(_) | Handler::TcpSocket(_) | Handler::Grpc(_) => false,
        }
    }

    fn report(&self) -> ProbeReport {
        ProbeReport {
            probe: self.id,
            since: self.monitor.since(),
            state: self.monitor.state(),
            streak: self.monitor.streak(),
            attempt: self.monitor.attempt(),
            flapping: self.monitor.is_flapping(),
            last: self.monitor.last().cloned(),
        }
    }
}

/// FNV-1a, finished by a mixing step: the same on every machine and in every release, and no secret is kept by it.
fn identity_hash(salt: u64, component: &ComponentKey, probe: &ProbeName) -> u64 {
    let ComponentKey {
        namespace,
        group,
        kind,
        name,
    } = component;
    let parts = [
        namespace.as_str(),
        group,
        kind.as_str(),
        name.as_str(),
        probe.as_str(),
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ salt;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// The runtime's clock, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
