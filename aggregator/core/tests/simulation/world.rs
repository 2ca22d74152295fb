//! The simulated world: time, agents, one aggregator, connections between them, and what goes wrong.

use {
    crate::{
        agent::{Agent, File, FileInstance, Happened, probes},
        network::{Client, Connection, Pipe, Received},
        random::Random,
    },
    healthscope_core::{
        event::{Answer, Event as StoreEvent, Now, Opened, SessionId},
        store::{Store, StoreConfig},
        view::{Change, Presence, TransitionView},
    },
    healthscope_shared::{
        health::Health,
        name::{AgentName, ComponentKey, Namespace},
        probe::outcome::ProbeState,
        session::{
            Frame, RING, Transmit, WRITE_DEADLINE,
            agent::{Directive, Ended},
            outbox::OUTPUT_BUDGET,
            peer::{self, Accept, Event, PeerSession},
        },
        wire::{MAX_MESSAGE_BYTES, ProbeId, Probed, Record, RunProbe, Seq, close},
    },
    jiff::Timestamp,
    std::{
        cmp::Reverse,
        collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
        time::{Duration, Instant},
    },
};

const SECOND: u64 = 1_000;
/// How long everything is left in peace before it must be true: longer than silence, the longest wait before a
/// connection and every deadline of a handshake together.
const PEACE: u64 = 120 * SECOND;
/// How long before peace agents fall silent while the network gets worse: what is lost now, nothing later makes good.
const DUSK: u64 = 15 * SECOND;
/// The promise: a half-open connection is noticed within this.
const HALF_OPEN: u64 = 30 * SECOND;
/// Reports of one connection that wait for the store; a shell does not read on beyond that.
const WAITING: usize = 4;

/// What happened in a run, to see that the run was worth it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics {
    transitions: u64,
    seen: u64,
    missed: u64,
    replayed: u64,
    sessions: u64,
    resumed: u64,
    full_states: u64,
    half_open: u64,
    cuts: u64,
    agent_crashes: u64,
    goodbyes: u64,
    aggregator_crashes: u64,
    drains: u64,
    edits: u64,
    jumps: u64,
    evictions: u64,
    vandals: u64,
    stalls: u64,
    runs_asked: u64,
    runs_answered: u64,
    longest_ring: u64,
}

impl Statistics {
    pub(crate) fn add(&mut self, other: &Self) {
        self.each(other, |mine, its| *mine += its);
    }

    fn each(&mut self, other: &Self, apply: impl Fn(&mut u64, u64)) {
        let Self {
            transitions,
            seen,
            missed,
            replayed,
            sessions,
            resumed,
            full_states,
            half_open,
            cuts,
            agent_crashes,
            goodbyes,
            aggregator_crashes,
            drains,
            edits,
            jumps,
            evictions,
            vandals,
            stalls,
            runs_asked,
            runs_answered,
            longest_ring,
        } = other;
        for (mine, its) in [
            (&mut self.transitions, transitions),
            (&mut self.seen, seen),
            (&mut self.missed, missed),
            (&mut self.replayed, replayed),
            (&mut self.sessions, sessions),
            (&mut self.resumed, resumed),
            (&mut self.full_states, full_states),
            (&mut self.half_open, half_open),
            (&mut self.cuts, cuts),
            (&mut self.agent_crashes, agent_crashes),
            (&mut self.goodbyes, goodbyes),
            (&mut self.aggregator_crashes, aggregator_crashes),
            (&mut self.drains, drains),
            (&mut self.edits, edits),
            (&mut self.jumps, jumps),
            (&mut self.evictions, evictions),
            (&mut self.vandals, vandals),
            (&mut self.stalls, stalls),
            (&mut self.runs_asked, runs_asked),
            (&mut self.runs_answered, runs_answered),
        ] {
            apply(mine, *its);
        }
        self.longest_ring = self.longest_ring.max(*longest_ring);
    }

    /// A simulation in which something never happens proves nothing about it.
    pub(crate) fn assert_everything_was_tried(&self) {
        let mut copy = self.clone();
        copy.each(self, |mine, its| {
            assert!(*mine > 0 && its > 0, "something never happened: {self:#?}");
        });
        assert_eq!(self.longest_ring, RING as u64, "the ring was never full");
    }
}

/// What happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    WakeAgent(usize),
    WakePeer(u64),
    WakeStore,
    Deliver(u64, bool),
    Run(usize, u32),
    Answer(usize, u32, u64),
    StartAgent(usize),
    StopAgent(usize, u32),
    StartAggregator,
    CrashAggregator(u32),
    Trouble,
    Dusk,
    LastWords(usize),
    Peace,
}

/// The aggregator's process.
struct Aggregator {
    store: Store,
    peers: BTreeMap<u64, Peer>,
    /// What waits for the store, in the order in which it came.
    queue: VecDeque<(u64, StoreEvent)>,
    wake_at: Option<u64>,
    stalled_until: u64,
    draining: bool,
    tenures: BTreeMap<AgentName, Tenure>,
    /// Components of which a probe has failed, as far as the store could know.
    failed: BTreeSet<ComponentKey>,
}

struct Peer {
    session: PeerSession,
    wake_at: Option<u64>,
    said_hello: bool,
    waiting: usize,
}

/// What the store has said about one run of an agent, since it got to know it.
struct Tenure {
    /// The latest.
    session: SessionId,
    epoch: String,
    baseline: u64,
    missed_before: u64,
    seen: BTreeSet<u64>,
}

/// How rough a run is.
struct Profile {
    latency: u64,
    window: usize,
    /// From one run of a probe of an agent to the next.
    run_every: u64,
    flips: u64,
    trouble_every: u64,
    dusk_trouble_every: u64,
    peace_at: u64,
}

struct World {
    random: Random,
    base: Instant,
    wall: Timestamp,
    now: u64,
    happenings: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    order: u64,
    profile: Profile,
    agents: Vec<Agent>,
    /// By epoch, of processes that are gone.
    graves: BTreeMap<String, Vec<Happened>>,
    /// By epoch, up to where any aggregator has applied transitions.
    applied: BTreeMap<String, u64>,
    aggregator: Option<Aggregator>,
    incarnation: u32,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    is_dusk: bool,
    at_peace: bool,
    statistics: Statistics,
    trace: Trace,
}

/// Tells what happens, when one seed is looked at.
struct Trace(bool);

impl Trace {
    #[allow(clippy::print_stdout, reason = "this is what it is for")]
    fn say(&self, now: u64, what: impl FnOnce() -> String) {
        if self.0 {
            println!("{:>9.3} {}", now as f64 / 1_000.0, what());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to an instant; the simulation only adds to it"
)]
fn any_instant() -> Instant {
    Instant::now()
}

/// Runs one seed to its end; panics when something is not as it must be.
pub(crate) fn run(seed: u64, verbose: bool) -> Statistics {
    let mut random = Random::new(seed);
    // Short and busy, or long and quiet.
    let (run_every, peace_at) = *random.pick(&[(20, 20), (100, 60), (500, 150), (4_000, 700)]);
    let profile = Profile {
        latency: *random.pick(&[2, 20, 200, 1_500]),
        window: *random.pick(&[2_000, 20_000, 200_000]),
        run_every,
        flips: *random.pick(&[2, 20, 80]),
        trouble_every: peace_at * SECOND / random.between(5..=40),
        dusk_trouble_every: *random.pick(&[500, 3_000, 20_000]),
        peace_at: peace_at * SECOND,
    };
    let mut world = World {
        random,
        base: any_instant(),
        wall: "2026-01-01T00:00:00Z".parse().expect("a time"),
        now: 0,
        happenings: BinaryHeap::new(),
        order: 0,
        profile,
        agents: Vec::new(),
        graves: BTreeMap::new(),
        applied: BTreeMap::new(),
        aggregator: None,
        incarnation: 0,
        connections: BTreeMap::new(),
        next_connection: 1,
        is_dusk: false,
        at_peace: false,
        statistics: Statistics::default(),
        trace: Trace(verbose),
    };
    world.populate();
    world.play();
    world.verify();
    world.statistics
}

impl World {
    fn populate(&mut self) {
        let count = 1 + self.random.below(4);
        for number in 0..count {
            // Now and then an agent with more probes than the ring has room for, whose state takes several messages.
            let is_large = number == 0 && self.random.percent(20);
            if is_large {
                // Over the slowest line its state would not arrive before the end.
                self.profile.window = self.profile.window.max(20_000);
            }
            let most = *self.random.pick(&[4, 40]);
            let instances = if is_large { 10 } else { 1 + self.random.below(3) };
            let file = (0..instances)
                .map(|instance| FileInstance {
                    component: format!("c{}", (number + instance) % 4).parse().expect("a name"),
                    instance: format!("a{number}-{instance}").parse().expect("a name"),
                    probes: probes(0..if is_large { 40 } else { 1 + self.random.below(most) }),
                })
                .collect();
            self.agents.push(Agent {
                name: format!("a{number}").parse().expect("a name"),
                is_impostor: false,
                file: File(file),
                process: None,
                generation: 0,
            });
            let at = self.random.between(0..=5 * SECOND);
            self.at(at, Happening::StartAgent(number));
        }
        let at = self.random.between(0..=5 * SECOND);
        self.at(at, Happening::StartAggregator);
        self.at(self.profile.trouble_every, Happening::Trouble);
        self.at(self.profile.peace_at - DUSK, Happening::Dusk);
        self.at(self.profile.peace_at, Happening::Peace);
    }

    fn play(&mut self) {
        let end = self.profile.peace_at + PEACE;
        while let Some(Reverse((at, _, happening))) = self.happenings.pop() {
            if at > end {
                break;
            }
            assert!(at >= self.now);
            self.now = at;
            self.happen(happening);
            self.check_bounds();
        }
        self.now = end;
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.happenings.push(Reverse((at, self.order, happening)));
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn say(&self, what: impl FnOnce() -> String) {
        self.trace.say(self.now, what);
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn clocks(&self) -> Now {
        Now {
            instant: self.instant(),
            wall: self.wall + Duration::from_millis(self.now),
        }
    }

    /// The moment of an instant, not before now.
    fn moment(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.base);
        u64::try_from(since.as_micros().div_ceil(1_000))
            .expect("short runs")
            .max(self.now)
    }

    fn delay(&mut self) -> u64 {
        let latency = self.profile.latency;
        self.random.between(1..=latency)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::WakeAgent(at) => {
                if let Some(process) = &mut self.agents[at].process
                    && process.wake_at == Some(self.now)
                {
                    process.wake_at = None;
                    self.step_agent(at);
                }
            }
            Happening::WakePeer(connection) => {
                if let Some(peer) = self
                    .aggregator
                    .as_mut()
                    .and_then(|a| a.peers.get_mut(&connection))
                    && peer.wake_at == Some(self.now)
                {
                    peer.wake_at = None;
                    self.step_peer(connection);
                }
            }
            Happening::WakeStore => {
                if let Some(aggregator) = &mut self.aggregator
                    && aggregator.wake_at == Some(self.now)
                {
                    aggregator.wake_at = None;
                    self.step_store();
                }
            }
            Happening::Deliver(connection, is_up) => self.deliver(connection, is_up),
            Happening::Run(at, generation) => self.run_probe(at, generation),
            Happening::Answer(at, generation, request) => {
                if self.agents[at].generation == generation
                    && let Some(process) = &mut self.agents[at].process
                {
                    process.session.probed(Probed {
                        request,
                        result: Some("success".into()),
                        reason: None,
                        message: String::new(),
                        output: String::new(),
                        latency_us: 1,
                        state: None,
                    });
                    self.step_agent(at);
                }
            }
            Happening::StartAgent(at) => self.start_agent(at),
            Happening::StopAgent(at, generation) => {
                if self.agents[at].generation == generation {
                    self.kill_agent(at);
                }
            }
            Happening::StartAggregator => self.start_aggregator(),
            Happening::CrashAggregator(incarnation) => {
                if self.incarnation == incarnation {
                    self.crash_aggregator();
                }
            }
            Happening::Trouble => {
                if !self.at_peace {
                    self.trouble();
                    let pause = if self.is_dusk {
                        self.profile.dusk_trouble_every
                    } else {
                        self.profile.trouble_every
                    };
                    let pause = self.random.between(1..=2 * pause);
                    self.after(pause, Happening::Trouble);
                }
            }
            Happening::Dusk => {
                self.say(|| "dusk".into());
                self.is_dusk = true;
                for at in 0..self.agents.len() {
                    let pause = self.random.between(1..=DUSK);
                    self.after(pause, Happening::LastWords(at));
                }
                self.after(1, Happening::Trouble);
            }
            Happening::LastWords(at) => {
                let count = *self.random.pick(&[3, 300, 600]);
                self.burst(at, count);
            }
            Happening::Peace => self.make_peace(),
        }
    }

    // ---- agents

    fn start_agent(&mut self, at: usize) {
        let (now, now_ms) = (self.instant(), self.now);
        let agent = &mut self.agents[at];
        if agent.process.is_some() {
            return;
        }
        agent.start(&mut self.random, now, now_ms);
        let generation = agent.generation;
        self.say(|| format!("{} starts{}", self.agents[at].name, self.epoch_text(at)));
        let pause = self.random.between(1..=self.profile.run_every);
        self.after(pause, Happening::Run(at, generation));
        self.step_agent(at);
    }

    fn epoch_text(&self, at: usize) -> String {
        let agent = &self.agents[at];
        let epoch = agent.process.as_ref().map(|process| process.epoch.to_string());
        format!(
            " ({}{})",
            epoch.unwrap_or_default(),
            if agent.is_impostor { ", impostor" } else { "" }
        )
    }

    /// The process is gone; its kernel may or may not tell the other side.
    fn kill_agent(&mut self, at: usize) {
        let Some(process) = self.agents[at].process.take() else {
            return;
        };
        self.say(|| format!("{} dies", self.agents[at].name));
        self.statistics.transitions += process.history.len() as u64;
        self.graves.insert(process.epoch.to_string(), process.history);
        if let Some(connection) = process.connection {
            self.let_go(connection, true, true);
        }
        if !self.agents[at].is_impostor {
            let pause = self.random.between(1..=20 * SECOND);
            self.after(pause, Happening::StartAgent(at));
        }
    }

    fn run_probe(&mut self, at: usize, generation: u32) {
        let now = self.instant();
        let agent = &mut self.agents[at];
        if agent.generation != generation || agent.process.is_none() || self.is_dusk {
            return;
        }
        agent.run(&mut self.random, self.profile.flips, now);
        let process = agent.process.as_ref().expect("checked above");
        assert_eq!(process.outbox.seq().0, process.history.len() as u64);
        let pause = self.random.between(1..=2 * self.profile.run_every);
        self.after(pause, Happening::Run(at, generation));
        self.step_agent(at);
    }

    /// Does what an agent's uplink does: connects, writes while it can, waits.
    fn step_agent(&mut self, at: usize) {
        let now = self.instant();
        let Some(process) = &mut self.agents[at].process else {
            return;
        };
        let Some(id) = process.connection else {
            if self.now >= process.retry_at && !process.stopping {
                self.connect(at);
            } else {
                let retry_at = process.retry_at;
                self.wake_agent(at, retry_at);
            }
            return;
        };
        let connection = self.connections.get_mut(&id).expect("held by the agent");
        let mut closed = false;
        while connection.up.is_writable() {
            if process.session.wants_summaries(now) {
                process.outbox.summarize(process.summaries());
            }
            let Some(transmit) = process.session.poll(&mut process.outbox, now) else {
                break;
            };
            connection.client_writes_since = self.now;
            if let Transmit::Text(text) = &transmit {
                assert!(text.len() <= MAX_MESSAGE_BYTES);
                if text.contains(r#""complete":true"#) {
                    self.statistics.full_states += 1;
                }
            }
            connection.up.write(&transmit);
            if let Transmit::Close { code, reason } = transmit {
                assert!(
                    matches!(code, close::NORMAL | close::SILENT),
                    "an agent closes with {code} {reason}"
                );
                closed = true;
                break;
            }
        }
        let stuck = !connection.up.is_writable()
            && process
                .session
                .silence_deadline()
                .is_some_and(|deadline| now >= deadline);
        let deadline = if connection.up.is_writable() {
            process.session.deadline()
        } else {
            process.session.silence_deadline()
        };
        self.schedule(id);
        if closed || stuck {
            self.say(|| format!("{} closes {id}", self.agents[at].name));
            self.let_go(id, true, false);
            self.agent_lost_connection(at);
        } else if let Some(deadline) = deadline {
            assert!(deadline > now, "a deadline that has passed");
            let moment = self.moment(deadline);
            self.wake_agent(at, moment);
        }
    }

    fn wake_agent(&mut self, at: usize, moment: u64) {
        let Some(process) = &mut self.agents[at].process else {
            return;
        };
        let moment = moment.max(self.now + 1);
        if process.wake_at.is_none_or(|wake_at| wake_at > moment) {
            process.wake_at = Some(moment);
            self.at(moment, Happening::WakeAgent(at));
        }
    }

    fn agent_lost_connection(&mut self, at: usize) {
        let now = self.instant();
        let random = self.random.next();
        let Some(process) = &mut self.agents[at].process else {
            return;
        };
        process.connection = None;
        let Ended { open_for, spread } = process.session.closed(&mut process.outbox, now);
        if let Some(open_for) = open_for {
            process.backoff.worked(open_for, spread);
        }
        let wait = process.backoff.next(random);
        process.retry_at = self.now + u64::try_from(wait.as_millis()).expect("short");
        if process.stopping {
            self.kill_agent(at);
            return;
        }
        let retry_at = process.retry_at;
        self.wake_agent(at, retry_at);
    }

    fn connect(&mut self, at: usize) {
        let now = self.instant();
        let accepts = self
            .aggregator
            .as_ref()
            .is_some_and(|aggregator| !aggregator.draining);
        let reaches = self.at_peace || self.random.percent(90);
        if !accepts || !reaches {
            self.agent_lost_connection(at);
            return;
        }
        let id = self.open(Client::Agent(at));
        self.say(|| format!("{} connects as {id}", self.agents[at].name));
        let process = self.agents[at].process.as_mut().expect("it connects");
        process.connection = Some(id);
        process.session.connected(now);
        self.step_agent(at);
        self.step_peer(id);
    }

    fn open(&mut self, client: Client) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        let window = self.profile.window;
        self.connections.insert(
            id,
            Connection {
                client,
                up: Pipe::new(window),
                down: Pipe::new(window),
                client_holds: true,
                server_holds: true,
                black_since: None,
                client_writes_since: self.now,
                server_writes_since: self.now,
            },
        );
        let now = self.instant();
        let aggregator = self.aggregator.as_mut().expect("it accepts");
        aggregator.peers.insert(
            id,
            Peer {
                session: PeerSession::new(peer::Limits::default(), now),
                wake_at: None,
                said_hello: false,
                waiting: 0,
            },
        );
        self.statistics.sessions += 1;
        id
    }

    fn agent_hears(&mut self, at: usize, id: u64, received: &Received) {
        self.say(|| format!("{id} < {}", received.shown()));
        let now = self.instant();
        let Some(process) = &mut self.agents[at].process else {
            return;
        };
        let frame = match received {
            Received::Text(text) => Frame::Text(text),
            Received::Ping => {
                let connection = self.connections.get_mut(&id).expect("it hears");
                connection.up.pong();
                Frame::Ping
            }
            Received::Pong => Frame::Pong,
            Received::Binary => Frame::Binary,
            Received::Close(code) => {
                if *code == close::REPLACED {
                    process.backoff.exhaust();
                }
                assert!(
                    matches!(
                        *code,
                        close::NORMAL | close::GOING_AWAY | close::SILENT | close::REPLACED
                    ),
                    "{} is sent away with {code}",
                    self.agents[at].name
                );
                self.let_go(id, true, false);
                self.agent_lost_connection(at);
                return;
            }
        };
        let directive = process.session.received(frame, &mut process.outbox, now);
        let applied = self.applied.get(&process.epoch.to_string()).copied();
        assert!(
            process.outbox.acked().0 <= applied.unwrap_or_default(),
            "{} hears an acknowledgement of what nobody has applied",
            self.agents[at].name
        );
        match directive {
            Some(Directive::RunProbe(RunProbe { request, probe: _ })) => {
                let generation = self.agents[at].generation;
                let pause = self.random.between(1..=2 * SECOND);
                self.after(pause, Happening::Answer(at, generation, request));
            }
            Some(Directive::Opened { .. }) => {
                self.say(|| format!("{} is welcome on {id}", self.agents[at].name));
            }
            Some(Directive::Ca(_) | Directive::Redirect(_) | Directive::Drained) | None => {}
        }
    }

    // ---- connections

    /// One end is closed. An abort loses what was still under way, at any byte; otherwise it still arrives.
    fn let_go(&mut self, id: u64, is_client: bool, abort: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let held = if is_client {
            &mut connection.client_holds
        } else {
            &mut connection.server_holds
        };
        *held = false;
        let pipe = if is_client {
            &mut connection.up
        } else {
            &mut connection.down
        };
        if abort && self.random.percent(50) {
            pipe.cut(&mut self.random);
        } else {
            pipe.end();
        }
        if abort && self.random.percent(20) {
            // Power is cut: nobody is told.
            self.blacken(id);
        }
        self.schedule(id);
        self.bury(id);
    }

    fn bury(&mut self, id: u64) {
        let is_over = self
            .connections
            .get(&id)
            .is_some_and(|connection| !connection.client_holds && !connection.server_holds);
        if is_over {
            self.connections.remove(&id);
        }
    }

    fn blacken(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.black_since.is_none() {
            connection.black_since = Some(self.now);
            connection.up.blacken(&mut self.random);
            connection.down.blacken(&mut self.random);
        }
    }

    /// Makes sure that what is under way arrives some time.
    fn schedule(&mut self, id: u64) {
        for is_up in [true, false] {
            let delay = self.delay();
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            let pipe = if is_up {
                &mut connection.up
            } else {
                &mut connection.down
            };
            if !pipe.scheduled && pipe.is_moving() {
                pipe.scheduled = true;
                self.after(delay, Happening::Deliver(id, is_up));
            }
        }
    }

    fn deliver(&mut self, id: u64, is_up: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let pipe = if is_up {
            &mut connection.up
        } else {
            &mut connection.down
        };
        pipe.scheduled = false;
        if !pipe.is_moving() {
            return;
        }
        pipe.deliver(&mut self.random);
        self.schedule(id);
        if is_up {
            self.step_peer(id);
            // Room was made for a writer that waits.
            if let Some(Connection {
                client: Client::Agent(at),
                client_holds: true,
                ..
            }) = self.connections.get(&id)
            {
                self.step_agent(*at);
            }
        } else {
            self.client_reads(id);
            self.step_peer(id);
        }
    }

    fn client_reads(&mut self, id: u64) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            if !connection.client_holds {
                return;
            }
            let client = connection.client;
            let received = connection.down.read();
            let is_over = received.is_none() && connection.down.is_over();
            match (client, received) {
                (Client::Agent(at), Some(received)) => self.agent_hears(at, id, &received),
                (Client::Agent(at), None) if is_over => {
                    self.let_go(id, true, false);
                    self.agent_lost_connection(at);
                }
                (Client::Agent(at), None) => {
                    self.step_agent(at);
                    return;
                }
                (Client::Vandal, Some(Received::Close(_))) => self.let_go(id, true, false),
                (Client::Vandal, Some(_)) => {}
                (Client::Vandal, None) if is_over => self.let_go(id, true, false),
                (Client::Vandal, None) => return,
            }
        }
    }

    // ---- the aggregator

    fn start_aggregator(&mut self) {
        if self.aggregator.is_some() {
            return;
        }
        self.incarnation += 1;
        self.say(|| format!("the aggregator starts, {}", self.incarnation));
        self.aggregator = Some(Aggregator {
            store: Store::new(StoreConfig::default(), self.clocks()),
            peers: BTreeMap::new(),
            queue: VecDeque::new(),
            wake_at: None,
            stalled_until: 0,
            draining: false,
            tenures: BTreeMap::new(),
            failed: BTreeSet::new(),
        });
        self.wake_store();
    }

    /// All memory is gone.
    fn crash_aggregator(&mut self) {
        let Some(aggregator) = self.aggregator.take() else {
            return;
        };
        self.say(|| "the aggregator dies".into());
        for &id in aggregator.peers.keys() {
            self.let_go(id, false, true);
        }
        let pause = *self
            .random
            .pick(&[SECOND, 10 * SECOND, 60 * SECOND, 600 * SECOND]);
        let pause = if self.at_peace {
            SECOND
        } else {
            self.random.between(1..=pause)
        };
        self.after(pause, Happening::StartAggregator);
    }

    /// Does what a connection's task does: reads while it may, writes while it can, waits.
    fn step_peer(&mut self, id: u64) {
        let now = self.instant();
        loop {
            let Some(aggregator) = &mut self.aggregator else {
                return;
            };
            let Some(peer) = aggregator.peers.get_mut(&id) else {
                return;
            };
            let connection = self.connections.get_mut(&id).expect("held by the aggregator");
            if peer.waiting >= WAITING || peer.session.readable_at().is_some_and(|at| at > now) {
                break;
            }
            let Some(received) = connection.up.read() else {
                if connection.up.is_over() {
                    self.drop_peer(id);
                    return;
                }
                break;
            };
            self.trace
                .say(self.now, || format!("{id} > {}", received.shown()));
            let frame = match &received {
                Received::Text(text) => Frame::Text(text),
                Received::Binary => Frame::Binary,
                Received::Ping => {
                    // The library answers, and keeps one answer at most.
                    if connection.down.queued() < 1_000 {
                        connection.down.pong();
                    }
                    Frame::Ping
                }
                Received::Pong => Frame::Pong,
                Received::Close(_) => {
                    self.drop_peer(id);
                    return;
                }
            };
            let event = peer.session.received(frame, now);
            let Some(event) = event else { continue };
            let session = SessionId(id);
            let event = match event {
                Event::Hello(hello) => {
                    peer.said_hello = true;
                    StoreEvent::Opened(Opened {
                        session,
                        agent: hello.agent,
                        epoch: hello.epoch,
                        seq: hello.seq,
                        acked: hello.acked,
                        version: hello.version,
                        peer: "simulated".into(),
                        pod: None,
                    })
                }
                Event::Announced(instances) => StoreEvent::Announced {
                    session,
                    instances: instances.into_iter().map(Into::into).collect(),
                },
                Event::Reported(report) => StoreEvent::Reported { session, report },
                Event::Probed(_) => {
                    self.statistics.runs_answered += 1;
                    continue;
                }
                Event::Goodbye { .. } => StoreEvent::Goodbye { session },
                Event::Alive => StoreEvent::Alive { session },
            };
            peer.waiting += 1;
            aggregator.queue.push_back((id, event));
            self.wake_store();
        }
        self.write_peer(id);
    }

    fn write_peer(&mut self, id: u64) {
        let now = self.instant();
        let Some(aggregator) = &mut self.aggregator else {
            return;
        };
        let Some(peer) = aggregator.peers.get_mut(&id) else {
            return;
        };
        let connection = self.connections.get_mut(&id).expect("held by the aggregator");
        if peer.waiting >= WAITING {
            // Nobody listens, and that is not the agent's fault.
            peer.session.listening(now);
        }
        let mut closed = false;
        while connection.down.is_writable() {
            let Some(transmit) = peer.session.poll(now) else {
                break;
            };
            connection.server_writes_since = self.now;
            connection.down.write(&transmit);
            if let Transmit::Close { code, reason } = transmit {
                if let Client::Agent(at) = connection.client {
                    let name = &self.agents[at].name;
                    assert!(
                        matches!(
                            code,
                            close::NORMAL | close::GOING_AWAY | close::SILENT | close::REPLACED
                        ),
                        "{name} is sent away with {code} {reason}"
                    );
                }
                self.trace
                    .say(self.now, || format!("{id} is closed with {code} {reason}"));
                closed = true;
                break;
            }
        }
        let stuck_since = (!connection.down.is_writable()).then_some(connection.server_writes_since);
        let write_deadline =
            stuck_since.map(|since| since + u64::try_from(WRITE_DEADLINE.as_millis()).expect("short"));
        let deadline = match write_deadline {
            Some(_) => None,
            None => peer.session.deadline(),
        };
        let readable_at = peer.session.readable_at().filter(|_| connection.up.has_frame());
        self.schedule(id);
        if closed || write_deadline.is_some_and(|deadline| self.now >= deadline) {
            self.drop_peer(id);
            return;
        }
        assert!(
            deadline.is_none_or(|deadline| deadline > now),
            "a deadline that has passed"
        );
        let moments = [deadline, readable_at]
            .into_iter()
            .flatten()
            .map(|instant| self.moment(instant));
        if let Some(moment) = moments.chain(write_deadline).min() {
            let moment = moment.max(self.now + 1);
            let peer = self
                .aggregator
                .as_mut()
                .and_then(|aggregator| aggregator.peers.get_mut(&id))
                .expect("still there");
            if peer.wake_at.is_none_or(|wake_at| wake_at > moment) {
                peer.wake_at = Some(moment);
                self.at(moment, Happening::WakePeer(id));
            }
        }
    }

    fn drop_peer(&mut self, id: u64) {
        let Some(aggregator) = &mut self.aggregator else {
            return;
        };
        let Some(peer) = aggregator.peers.remove(&id) else {
            return;
        };
        if peer.said_hello {
            let closed = StoreEvent::Closed {
                session: SessionId(id),
            };
            aggregator.queue.push_back((id, closed));
        }
        self.let_go(id, false, false);
        self.wake_store();
    }

    fn wake_store(&mut self) {
        let soon = self.now + self.random.between(1..=20);
        let Some(aggregator) = &self.aggregator else {
            return;
        };
        let deadline = aggregator
            .store
            .next_deadline()
            .map(|deadline| self.moment(deadline) + 1);
        let moment = if aggregator.queue.is_empty() {
            let Some(deadline) = deadline else { return };
            deadline
        } else {
            soon.max(aggregator.stalled_until)
        };
        let moment = moment.max(self.now + 1);
        let aggregator = self.aggregator.as_mut().expect("checked above");
        if aggregator.wake_at.is_none_or(|wake_at| wake_at > moment) {
            aggregator.wake_at = Some(moment);
            self.at(moment, Happening::WakeStore);
        }
    }

    fn step_store(&mut self) {
        let now = self.clocks();
        let Some(aggregator) = &mut self.aggregator else {
            return;
        };
        if aggregator.stalled_until > self.now {
            self.wake_store();
            return;
        }
        let count = 1 + self.random.below(4);
        for _ in 0..count {
            let Some((id, event)) = aggregator.queue.pop_front() else {
                break;
            };
            let opened = match &event {
                StoreEvent::Opened(opened) => {
                    Some((opened.agent.clone(), opened.epoch.to_string(), opened.acked))
                }
                _ => None,
            };
            self.statistics.replayed += aggregator.replayed(&event);
            let answer = aggregator.store.apply(now, event);
            if let Some(peer) = aggregator.peers.get_mut(&id) {
                peer.waiting = peer.waiting.saturating_sub(1);
            }
            match answer {
                Answer::Done | Answer::UnknownSession => {}
                Answer::Opened { resume, evicted } => {
                    if let Some((agent, epoch, acked)) = opened {
                        aggregator.opened(SessionId(id), &agent, epoch, acked);
                    }
                    if let Some(evicted) = evicted
                        && let Some(peer) = aggregator.peers.get_mut(&evicted.0)
                    {
                        self.statistics.evictions += 1;
                        peer.session.evict(now.instant);
                    }
                    if let Some(peer) = aggregator.peers.get_mut(&id) {
                        self.statistics.resumed += u64::from(resume.is_some());
                        let accept = Accept {
                            acked: resume,
                            heartbeat: Duration::from_secs(10),
                            spread: Duration::from_secs(3),
                            version: "1".into(),
                        };
                        peer.session.accept(accept, now.instant);
                    }
                }
                Answer::Applied { ack, resync } => {
                    if let Some(peer) = aggregator.peers.get_mut(&id) {
                        peer.session.applied(ack, now.instant);
                        if resync {
                            peer.session.resync("transitions are missing");
                        }
                    }
                }
                Answer::Refused(refusal) => panic!("{id} is refused: {refusal}"),
            }
            for (name, tenure) in &aggregator.tenures {
                if let Some(view) = aggregator.store.agent(name).filter(|_| tenure.session.0 == id) {
                    let applied = self.applied.entry(view.epoch).or_default();
                    *applied = view.seq.max(*applied);
                }
            }
            let changes = aggregator.store.publish(now);
            for transition in &changes.transitions {
                aggregator.check_transition(transition, &self.agents, &self.graves);
                self.statistics.seen += u64::from(matches!(transition.change, Change::Probe { .. }));
            }
        }
        if aggregator
            .store
            .next_deadline()
            .is_some_and(|deadline| deadline <= now.instant)
        {
            aggregator.store.apply(now, StoreEvent::Tick);
            aggregator.store.publish(now);
        }
        let peers: Vec<u64> = aggregator.peers.keys().copied().collect();
        for id in peers {
            self.step_peer(id);
        }
        self.wake_store();
    }

    // ---- trouble

    fn trouble(&mut self) {
        let at = self.random.below(self.agents.len());
        let generation = self.agents[at].generation;
        let now = self.instant();
        let connections: Vec<u64> = self.connections.keys().copied().collect();
        let some_connection = (!connections.is_empty()).then(|| *self.random.pick(&connections));
        let what = if self.is_dusk {
            *self.random.pick(&[0, 0, 0, 0, 0, 0, 4, 8, 14, 18])
        } else {
            self.random.below(21)
        };
        match what {
            0..=3 => {
                if let Some(connection) = some_connection.and_then(|id| self.connections.get_mut(&id)) {
                    connection.up.cut(&mut self.random);
                    connection.down.cut(&mut self.random);
                    self.statistics.cuts += 1;
                    self.say(|| format!("{some_connection:?} breaks"));
                    self.schedule(some_connection.expect("found"));
                }
            }
            4..=5 => {
                if let Some(id) = some_connection {
                    self.say(|| format!("{id} turns half-open"));
                    self.blacken(id);
                    self.statistics.half_open += 1;
                }
            }
            6 => {
                self.statistics.agent_crashes += 1;
                self.kill_agent(at);
            }
            7 => {
                if let Some(process) = &mut self.agents[at].process {
                    self.statistics.goodbyes += 1;
                    process.session.goodbye("stopping");
                    process.stopping = true;
                    self.step_agent(at);
                    // What cannot be flushed is given up.
                    self.after(5 * SECOND, Happening::StopAgent(at, generation));
                }
            }
            8 => {
                self.statistics.aggregator_crashes += 1;
                self.crash_aggregator();
            }
            9 => {
                let incarnation = self.incarnation;
                if let Some(aggregator) = &mut self.aggregator {
                    self.statistics.drains += 1;
                    aggregator.draining = true;
                    let ids: Vec<u64> = aggregator.peers.keys().copied().collect();
                    for peer in aggregator.peers.values_mut() {
                        peer.session.drain(Duration::from_secs(3), now);
                    }
                    for id in ids {
                        self.step_peer(id);
                    }
                    self.after(3 * SECOND, Happening::CrashAggregator(incarnation));
                }
            }
            10..=12 => {
                self.statistics.edits += 1;
                self.agents[at].edit(&mut self.random, now);
                self.step_agent(at);
            }
            13 => {
                let jump = *self.random.pick(&[-86_400, -60, 5, 3_600]);
                self.wall += jiff::SignedDuration::from_secs(jump);
                self.statistics.jumps += 1;
            }
            14 => {
                if let Some(aggregator) = &mut self.aggregator {
                    aggregator.stalled_until = self.now + self.random.between(1..=20 * SECOND);
                    self.statistics.stalls += 1;
                }
            }
            15 => {
                // More than the ring holds, while the socket takes none of it.
                let count = self.random.between(1..=600);
                self.burst(at, count);
            }
            16 => self.disguise(at),
            17 => self.vandalize(),
            _ => self.ask(),
        }
    }

    /// Many transitions at once.
    fn burst(&mut self, at: usize, count: u64) {
        let now = self.instant();
        for _ in 0..count {
            self.agents[at].run(&mut self.random, 90, now);
        }
        self.step_agent(at);
    }

    /// Another process claims an agent's name for a while.
    fn disguise(&mut self, at: usize) {
        if self.agents.len() > 8 || self.agents[at].is_impostor {
            return;
        }
        let impostor = Agent {
            name: self.agents[at].name.clone(),
            is_impostor: true,
            file: self.agents[at].file.clone(),
            process: None,
            generation: 0,
        };
        self.agents.push(impostor);
        let at = self.agents.len() - 1;
        self.start_agent(at);
        let stay = self.random.between(1..=60 * SECOND);
        self.after(stay, Happening::StopAgent(at, 1));
    }

    /// Somebody connects and sends rubbish.
    fn vandalize(&mut self) {
        if self
            .aggregator
            .as_ref()
            .is_none_or(|aggregator| aggregator.draining)
        {
            return;
        }
        self.statistics.vandals += 1;
        let id = self.open(Client::Vandal);
        let good = [
            r#"{"type":"hello","protocol":1,"agent":"vandal","version":"1","epoch":"0000000000000007","seq":3}"#,
            r#"{"type":"announce","revision":1,"part":0,"last":true,"instances":[]}"#,
            r#"{"type":"report","seq":9007199254740991,"transitions":[[9007199254740991,1,0,1,0,1,5]]}"#,
            r#"{"type":"report","seq":9,"complete":true}"#,
            r#"{"type":"goodbye","reason":"x"}"#,
            "rubbish",
        ];
        for _ in 0..self.random.below(8) {
            let connection = self.connections.get_mut(&id).expect("just opened");
            if self.random.percent(5) {
                connection.up.binary(b"\x00\x01");
                continue;
            }
            let mut text = (*self.random.pick(&good)).to_owned();
            if self.random.percent(30) {
                text.truncate(self.random.below(text.len()));
            }
            connection.up.write(&Transmit::Text(text));
        }
        self.schedule(id);
    }

    /// Somebody wants a probe run, or a state.
    fn ask(&mut self) {
        let Some(aggregator) = &mut self.aggregator else {
            return;
        };
        if aggregator.peers.is_empty() {
            return;
        }
        let index = self.random.below(aggregator.peers.len());
        let (&id, peer) = aggregator.peers.iter_mut().nth(index).expect("within the number");
        if self.random.percent(50) {
            peer.session.resync("somebody asks");
        } else {
            let run = RunProbe {
                request: self.random.between(0..=99),
                probe: ProbeId(u32::try_from(self.random.between(1..=3)).expect("small")),
            };
            self.statistics.runs_asked += u64::from(peer.session.run_probe(run).is_ok());
        }
        self.step_peer(id);
    }

    /// Impostors leave, everybody comes back, nothing changes any more.
    fn make_peace(&mut self) {
        self.say(|| "peace".into());
        self.at_peace = true;
        for at in 0..self.agents.len() {
            if self.agents[at].is_impostor {
                self.kill_agent(at);
            } else {
                self.start_agent(at);
            }
        }
        self.start_aggregator();
    }

    // ---- what must be true

    /// At every step: nothing grows.
    fn check_bounds(&mut self) {
        for agent in &self.agents {
            let Some(process) = &agent.process else { continue };
            let ring = process.outbox.unacknowledged();
            assert!(ring <= RING && process.outbox.output_bytes() <= OUTPUT_BUDGET);
            self.statistics.longest_ring = self.statistics.longest_ring.max(ring as u64);
        }
        for (id, connection) in &self.connections {
            // One message and the answer to a ping.
            assert!(connection.up.queued() <= MAX_MESSAGE_BYTES + 100);
            assert!(connection.down.queued() <= MAX_MESSAGE_BYTES + 1_100);
            if let Some(since) = connection.black_since
                && let Client::Agent(at) = connection.client
            {
                assert!(
                    self.now <= since + HALF_OPEN + self.stall(),
                    "{id} of {} has been half-open since {since}: held by {:?}",
                    self.agents[at].name,
                    (connection.client_holds, connection.server_holds)
                );
            }
        }
        if let Some(aggregator) = &self.aggregator {
            assert!(aggregator.peers.values().all(|peer| peer.waiting <= WAITING));
        }
    }

    /// For so long nobody may have listened.
    fn stall(&self) -> u64 {
        self.aggregator.as_ref().map_or(0, |aggregator| {
            20 * SECOND * u64::from(aggregator.stalled_until > 0)
        })
    }

    /// In the end: what is shown is true.
    fn verify(&mut self) {
        let aggregator = self.aggregator.as_mut().expect("started at peace");
        let mut expected: BTreeMap<(String, String, String, String), (&AgentName, &crate::agent::True)> =
            BTreeMap::new();
        let mut instances: BTreeSet<(String, String, String)> = BTreeSet::new();
        for agent in &self.agents {
            let Some(process) = &agent.process else { continue };
            assert!(!agent.is_impostor);
            let view = aggregator.store.agent(&agent.name).expect("it has come back");
            assert_eq!(view.presence, Presence::Connected, "{}", agent.name);
            assert_eq!(view.epoch, process.epoch.to_string());
            assert_eq!(view.seq, process.history.len() as u64, "{}", agent.name);
            assert_eq!(
                process.outbox.unacknowledged(),
                0,
                "{} keeps what was acknowledged",
                agent.name
            );
            self.statistics.transitions += process.history.len() as u64;

            let tenure = &aggregator.tenures[&agent.name];
            let missed = view.missed - tenure.missed_before;
            let unseen = view.seq - tenure.baseline - tenure.seen.len() as u64;
            assert_eq!(
                missed, unseen,
                "{}: every transition is seen once or counted",
                agent.name
            );
            if process.outbox.lost() == 0 {
                assert_eq!(missed, 0, "{} has lost nothing", agent.name);
            }
            self.statistics.missed += missed;

            for FileInstance {
                component, instance, ..
            } in &agent.file.0
            {
                instances.insert((
                    component.to_string(),
                    instance.to_string(),
                    agent.name.to_string(),
                ));
            }
            for probe in process.probes.values() {
                let key = (
                    probe.component.to_string(),
                    probe.instance.to_string(),
                    agent.name.to_string(),
                    probe.name.to_string(),
                );
                assert!(expected.insert(key, (&agent.name, probe)).is_none());
            }
        }
        for component in aggregator.store.components(None) {
            let key = ComponentKey::component(Namespace::default(), component.name.clone());
            let view = aggregator.store.component(&key).expect("it is listed");
            for instance in view.running {
                let place = (
                    component.name.to_string(),
                    instance.name.to_string(),
                    instance.agent.to_string(),
                );
                assert!(instances.remove(&place), "{place:?} is not there");
                let (component, name, agent) = place;
                for shown in instance.probes {
                    let key = (
                        component.clone(),
                        name.clone(),
                        agent.clone(),
                        shown.probe.to_string(),
                    );
                    let (_, truth) = expected
                        .remove(&key)
                        .unwrap_or_else(|| panic!("{key:?} is not there"));
                    assert_eq!(shown.state, truth.state, "{key:?}");
                    assert_eq!(shown.flapping, truth.flapping, "{key:?}");
                    assert_eq!(shown.error, truth.error, "{key:?}");
                    if truth.ran {
                        assert_eq!(shown.streak < 0, truth.streak < 0, "{key:?}");
                        // A probe that is well on its way to passing is shown as starting.
                        let is_starting = truth.state == ProbeState::Pending && truth.streak > 0;
                        assert!(
                            is_starting || shown.reason == truth.reason,
                            "{key:?}: {}",
                            shown.reason
                        );
                        assert_eq!(shown.message, truth.message, "{key:?}");
                    }
                }
            }
        }
        assert!(instances.is_empty(), "not shown: {instances:?}");
        assert!(expected.is_empty(), "not shown: {:?}", expected.keys());
    }
}

impl Aggregator {
    /// Transitions of a report that the store has already.
    fn replayed(&self, event: &StoreEvent) -> u64 {
        let StoreEvent::Reported { session, report } = event else {
            return 0;
        };
        let speaks =
            |(name, tenure): (&AgentName, &Tenure)| (tenure.session == *session).then(|| name.clone());
        let Some(view) = self
            .tenures
            .iter()
            .find_map(speaks)
            .and_then(|name| self.store.agent(&name))
        else {
            return 0;
        };
        let known = |record: &&Record| record.seq.0 <= view.seq;
        report.transitions.iter().filter(known).count() as u64
    }

    /// Starts to count when the store gets to know a run of an agent.
    fn opened(&mut self, session: SessionId, agent: &AgentName, epoch: String, acked: Seq) {
        let view = self.store.agent(agent).expect("just opened");
        match self.tenures.get_mut(agent) {
            // An agent that watches nothing is forgotten when it is lost.
            Some(tenure) if tenure.epoch == epoch && view.sessions > 1 => tenure.session = session,
            Some(_) | None => {
                let tenure = Tenure {
                    session,
                    epoch,
                    baseline: acked.0,
                    missed_before: view.missed,
                    seen: BTreeSet::new(),
                };
                self.tenures.insert(agent.clone(), tenure);
            }
        }
    }

    /// It happened, as it is shown, and is shown once and in order.
    fn check_transition(
        &mut self,
        transition: &TransitionView,
        agents: &[Agent],
        graves: &BTreeMap<String, Vec<Happened>>,
    ) {
        let key = ComponentKey::component(transition.namespace.clone(), transition.name.clone());
        match &transition.change {
            Change::Probe {
                from,
                to,
                probe,
                instance,
                agent,
                seq,
            } => {
                if agent.as_str() == "vandal" {
                    return;
                }
                let view = self.store.agent(agent).expect("it speaks");
                let tenure = self.tenures.get_mut(agent).expect("it said hello");
                assert_eq!(view.epoch, tenure.epoch);
                let history = agents
                    .iter()
                    .filter_map(|agent| agent.process.as_ref())
                    .find(|process| process.epoch.to_string() == tenure.epoch)
                    .map(|process| &process.history)
                    .or_else(|| graves.get(&tenure.epoch))
                    .expect("every process is known");
                let index = usize::try_from(*seq).expect("small") - 1;
                let happened = history
                    .get(index)
                    .unwrap_or_else(|| panic!("{agent}: {seq} has not happened"));
                assert_eq!(
                    (happened.instance.as_str(), happened.probe.as_str(), happened.to),
                    (instance.as_str(), &**probe, *to),
                    "{agent}: {seq} was another"
                );
                if let Some(from) = from {
                    // After a restart the first result of a probe replaces what the former run had found.
                    let is_certain = view.missed == tenure.missed_before
                        && tenure.baseline == 0
                        && happened.from != ProbeState::Pending;
                    assert!(
                        *from == happened.from || !is_certain,
                        "{agent}: {seq} came from elsewhere"
                    );
                }
                let last = tenure.seen.last().copied().unwrap_or(tenure.baseline);
                assert!(*seq > last, "{agent}: {seq} after {last}");
                tenure.seen.insert(*seq);
                if *to == ProbeState::Failing {
                    self.failed.insert(key);
                }
            }
            Change::Component { to, .. } => {
                // A state that covers a gap can fail a component too; without one only a transition can.
                let is_whole = self.tenures.values().all(|tenure| tenure.baseline == 0);
                let no_gap = self.store.agents().iter().all(|agent| agent.missed == 0);
                if *to == Some(Health::Unhealthy) && is_whole && no_gap {
                    assert!(
                        self.failed.contains(&key),
                        "{key} fails though none of its probes does"
                    );
                }
            }
            Change::Scope { .. } => unreachable!("no scopes are configured"),
        }
    }
}
