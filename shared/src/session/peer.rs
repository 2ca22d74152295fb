//! The aggregator's half of a session: judges every frame of an agent, hands good ones on as events for the store,
//! and says what the store decides.
//!
//! [`PeerSession`] trusts nothing: order, sizes, counts, rates, ids and texts are checked here, and what leaves as an
//! [`Event`] is bounded and printable. A breach ends this session with a code and a reason and touches nothing
//! else. It holds some three hundred bytes while idle; what is larger is boxed and short-lived. The shell:
//!
//! ```text
//! on a frame          if let Some(event) = session.received(frame, now) { hand it to the store, waiting if it is busy }
//! from the store      session.accept(...), applied(...), evict(...), run_probe(...), drain(...), ...
//! while writable      session.poll(now) -> write it, and only then poll again
//!                     (if the store was busy for long: session.listening(now) before the next poll)
//! otherwise           wait for a frame (not before session.readable_at()), the store, or session.deadline()
//! on close or error   tell the store that the session ended, with session.last_heard()
//! ```
//!
//! Replays and gaps are the store's to judge, since only it knows what is applied. What it must do: apply a session's
//! events in order and ignore those of a session that was replaced; leave out transitions that it has; count
//! numbers that are skipped; answer [`Event::Hello`] with `acked` only when it knows the epoch *and* has had a
//! complete state of it since the latest gap; answer [`Event::Reported`] with [`PeerSession::applied`].

use {
    self::{allowance::Allowance, announcement::Assembly, ids::IdSet},
    super::{
        ACK_DELAY, ANNOUNCE_DEADLINE, Frame, HELLO_DEADLINE, LEAVE_DEADLINE, MAX_RUNS, MAX_SAFE_INTEGER,
        MAX_TEXT_BYTES, PING_AFTER, RING, SILENCE, Transmit, bound_probed, close,
    },
    crate::{
        one_line, printable,
        probe::outcome::MAX_OUTPUT_BYTES,
        session::agent::MAX_GOODBYE_BYTES,
        wire::{
            Ack, AgentMessage, Announce, AnnouncedInstance, Ca, DecodeError, Drain, Hello,
            MAX_PROBES_PER_AGENT, PROTOCOL, ProbeId, Probed, Record, Redirect, Report, Resync, RunProbe, Seq,
            ServerMessage, Unsupported, Welcome, close as code,
        },
    },
    std::{
        collections::VecDeque,
        sync::Arc,
        time::{Duration, Instant},
    },
};

mod allowance;
mod announcement;
mod ids;

/// Records a second that every agent may send in the long run: four per second for each of 250 probes.
pub const RECORDS_PER_SECOND: u32 = 1_000;
/// The least that can be allowed: one full message (some 4,000 records) must not make an agent wait so long that
/// it seems silent.
pub const MIN_RECORDS_PER_SECOND: u32 = 500;
/// On top of what a full ring and a full state take: frames without records, announcements.
const BURST_SLACK: u32 = 1_024;
/// Ages above ten years are cut: no machine is up for longer, and instants that far back do not exist everywhere.
const MAX_AGE_MS: u64 = 10 * 366 * 24 * 60 * 60 * 1_000;
/// Longest release that is kept.
const MAX_VERSION_BYTES: usize = 64;

/// What one agent may announce and send. Where a platform says how much an agent speaks for, less than the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Probes.
    pub probes: usize,
    /// Instances.
    pub instances: usize,
    /// Records a second in the long run, beside one for each announced probe; at least
    /// [`MIN_RECORDS_PER_SECOND`].
    pub records_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            probes: MAX_PROBES_PER_AGENT,
            instances: MAX_PROBES_PER_AGENT,
            records_per_second: RECORDS_PER_SECOND,
        }
    }
}

/// Something that the store must know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An agent introduces itself; answer with [`PeerSession::accept`] or [`PeerSession::end`].
    Hello(Hello),
    /// Everything that the agent watches; replaces what was announced before.
    Announced(Vec<AnnouncedInstance>),
    /// What it found, to be applied as one: transitions in ascending order, then states, then `complete`. Records of
    /// removed probes are left out, so numbers may be missing. Answer with [`PeerSession::applied`].
    Reported(Report),
    /// The result of a run that was asked for.
    Probed(Probed),
    /// The agent stops on purpose.
    Goodbye {
        /// Why, for a person.
        reason: String,
    },
    /// It was heard of otherwise.
    Alive,
}

/// The answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The store holds this epoch's transitions up to here and the states of all its probes; `None` when it does
    /// not.
    pub acked: Option<Seq>,
    /// How often to send summaries.
    pub heartbeat: Duration,
    /// Within which to come back after an unexpected end.
    pub spread: Duration,
    /// The aggregator's release.
    pub version: String,
}

/// Why a run cannot be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunRefused {
    /// No announcement yet, or the session is ending.
    #[error("the agent is not ready")]
    NotReady,
    /// Not announced, or no longer.
    #[error("the agent does not watch this probe")]
    NoSuchProbe,
    /// [`MAX_RUNS`] are not answered yet.
    #[error("{MAX_RUNS} runs are already being made for others")]
    Busy,
}

/// What was odd but harmless, since the session began; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Records of probes that a newer announcement removed.
    pub removed: u32,
    /// Messages of unknown type, answers to nothing.
    pub unknown: u32,
}

/// The aggregator's half.
#[derive(Debug)]
pub struct PeerSession {
    limits: Limits,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    heard: Instant,
    pinged: Option<Instant>,
    allowance: Allowance,
    probes: IdSet,
    /// The highest id ever announced in this session.
    highest: Option<ProbeId>,
    /// The latest complete announcement.
    revision: Option<u32>,
    /// Whether a later announcement has replaced the first.
    is_replaced: bool,
    assembly: Option<Box<Assembly>>,
    /// The agent's latest transition, as it says.
    latest: Seq,
    applied: Seq,
    acked: Seq,
    /// Something applied waits for its acknowledgement since.
    unacked_since: Option<Instant>,
    outgoing: Option<Box<Outgoing>>,
    oddities: Oddities,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The hello is awaited.
    Greeting,
    /// The store decides.
    Deciding,
    /// Welcomed; the first announcement is awaited.
    Announcing,
    /// Reports may come.
    Open,
    /// Told to leave: the agent will close. What is on its way still counts.
    Leaving,
    /// The agent has said goodbye and will close; nothing it says counts any more.
    Left,
    /// A close frame is to be sent, or has been; nothing is read any more.
    Closing,
}

/// What waits to be written; every part is bounded, and the newest replaces the older where only that counts.
#[derive(Debug, Default)]
struct Outgoing {
    welcome: Option<Welcome>,
    ca: Option<Arc<str>>,
    resync: Option<String>,
    unsupported: Option<String>,
    /// Not written yet; at most [`MAX_RUNS`] with `asked`.
    runs: VecDeque<RunProbe>,
    /// Requests written and not answered.
    asked: Vec<u64>,
    /// A redirect or drain, after which the agent closes.
    leave: Option<ServerMessage>,
    close: Option<Transmit>,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        let Self {
            welcome,
            ca,
            resync,
            unsupported,
            runs,
            asked,
            leave,
            close,
        } = self;
        welcome.is_none()
            && ca.is_none()
            && resync.is_none()
            && unsupported.is_none()
            && runs.is_empty()
            && asked.is_empty()
            && leave.is_none()
            && close.is_none()
    }
}

impl PeerSession {
    /// The WebSocket handshake is done, the agent authenticated.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let limits = Limits {
            records_per_second: limits.records_per_second.max(MIN_RECORDS_PER_SECOND),
            ..limits
        };
        // An announcement of everything allowed passes without a pause.
        let burst = u32::try_from(limits.probes).unwrap_or(u32::MAX);
        Self {
            limits,
            phase: Phase::Greeting,
            since: now,
            heard: now,
            pinged: None,
            allowance: Allowance::new(limits.records_per_second, burst.saturating_add(BURST_SLACK), now),
            probes: IdSet::default(),
            highest: None,
            revision: None,
            is_replaced: false,
            assembly: None,
            latest: Seq(0),
            applied: Seq(0),
            acked: Seq(0),
            unacked_since: None,
            outgoing: None,
            oddities: Oddities::default(),
        }
    }

    /// Takes in a frame.
    pub fn received(&mut self, frame: Frame<'_>, now: Instant) -> Option<Event> {
        if self.phase == Phase::Closing {
            return None;
        }
        self.heard = now;
        self.pinged = None;
        let text = match frame {
            Frame::Text(text) => text,
            Frame::Binary => {
                self.end(code::UNSUPPORTED_DATA, "only text is spoken", now);
                return None;
            }
            Frame::TooBig => {
                self.end(code::TOO_BIG, "message over the limit", now);
                return None;
            }
            Frame::Ping | Frame::Pong => {
                self.allowance.pay(1, now);
                return Some(Event::Alive);
            }
        };
        let message = match AgentMessage::decode(text) {
            Ok(message) => message,
            Err(DecodeError::UnknownType(what)) => {
                self.allowance.pay(1, now);
                self.oddities.unknown = self.oddities.unknown.saturating_add(1);
                self.outgoing().unsupported = Some(one_line(&what, MAX_VERSION_BYTES));
                return Some(Event::Alive);
            }
            Err(DecodeError::TooBig(_)) => {
                self.end(code::TOO_BIG, "message over the limit", now);
                return None;
            }
            Err(error @ DecodeError::Malformed(_)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let reason = format!("{error}: {}", cause.unwrap_or_default());
                self.end(code::PROTOCOL, &reason, now);
                return None;
            }
        };
        self.allowance.pay(cost(&message), now);
        match self.understand(message, now) {
            Ok(event) => event,
            Err(Breach { code, reason }) => {
                self.end(code, &reason, now);
                None
            }
        }
    }

    fn understand(&mut self, message: AgentMessage, now: Instant) -> Result<Option<Event>, Breach> {
        if self.phase == Phase::Left {
            return Ok(None);
        }
        match message {
            // It crossed the drain.
            AgentMessage::Hello(_) if self.phase == Phase::Leaving => Ok(None),
            AgentMessage::Hello(hello) => self.greeted(hello, now).map(Some),
            AgentMessage::Unsupported(_) => Ok(None),
            AgentMessage::Announce(_)
            | AgentMessage::Report(_)
            | AgentMessage::Goodbye(_)
            | AgentMessage::Probed(_)
                if matches!(self.phase, Phase::Greeting | Phase::Deciding) =>
            {
                Err(breach("nothing may be said before the welcome but hello"))
            }
            AgentMessage::Announce(announce) => self.announced(announce, now),
            AgentMessage::Report(report) => self.reported(report).map(Some),
            AgentMessage::Goodbye(goodbye) => {
                self.enter(Phase::Left, now);
                Ok(Some(Event::Goodbye {
                    reason: one_line(&goodbye.reason, MAX_GOODBYE_BYTES),
                }))
            }
            AgentMessage::Probed(probed) => Ok(self.probed(probed)),
        }
    }

    fn greeted(&mut self, mut hello: Hello, now: Instant) -> Result<Event, Breach> {
        if self.phase != Phase::Greeting {
            return Err(breach("hello twice"));
        }
        if hello.protocol == 0 {
            return Err(Breach {
                code: code::VERSION,
                reason: format!("protocol 0 is not spoken here, {PROTOCOL} is"),
            });
        }
        if hello.seq.0 > MAX_SAFE_INTEGER || hello.acked > hello.seq {
            return Err(breach("sequence number out of range"));
        }
        hello.version = one_line(&hello.version, MAX_VERSION_BYTES);
        self.latest = hello.seq;
        self.enter(Phase::Deciding, now);
        Ok(Event::Hello(hello))
    }

    fn announced(&mut self, announce: Announce, now: Instant) -> Result<Option<Event>, Breach> {
        let (revision, is_last) = (announce.revision, announce.last);
        let mut assembly = match self.assembly.take() {
            Some(assembly) if announce.part > 0 || assembly.revision == revision => assembly,
            former => {
                let latest = former.map(|former| former.revision).max(self.revision);
                if latest.is_some_and(|latest| revision <= latest) {
                    return Err(breach(&format!(
                        "announcement {revision} is not newer than the former"
                    )));
                }
                Box::new(Assembly::new(revision, now))
            }
        };
        assembly
            .add(announce, &self.limits)
            .map_err(|reason| breach(&reason))?;
        if !is_last {
            self.assembly = Some(assembly);
            return Ok(None);
        }
        let (probes, instances) = assembly.finish().map_err(|reason| breach(&reason))?;
        self.is_replaced = self.revision.is_some();
        self.revision = Some(revision);
        self.highest = self.highest.max(probes.highest());
        self.probes = probes;
        let count: usize = instances.iter().map(|instance| instance.probes.len()).sum();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let ring = u32::try_from(RING).expect("256 fits");
        self.allowance.resize(
            self.limits.records_per_second.saturating_add(count),
            ring.saturating_add(count)
                .saturating_mul(2)
                .saturating_add(BURST_SLACK),
        );
        if self.phase == Phase::Announcing {
            self.enter(Phase::Open, now);
        }
        Ok(Some(Event::Announced(instances)))
    }

    fn reported(&mut self, report: Report) -> Result<Event, Breach> {
        let Report {
            seq,
            mut transitions,
            mut states,
            complete,
            mut summaries,
        } = report;
        if self.revision.is_none() {
            return Err(breach("report before announcement"));
        }
        if seq < self.latest || seq.0 > MAX_SAFE_INTEGER {
            return Err(breach(&format!(
                "sequence number {} after {}",
                seq.0, self.latest.0
            )));
        }
        let numbers = || transitions.iter().map(|record| record.seq);
        let is_ordered = numbers()
            .zip(numbers().skip(1))
            .all(|(former, next)| former < next);
        if !is_ordered || numbers().next() == Some(Seq(0)) {
            return Err(breach("transitions are not in order"));
        }
        if transitions.iter().chain(&states).any(|record| record.seq > seq) {
            return Err(breach("a record is newer than the report"));
        }
        self.latest = seq;

        self.admit(&mut transitions, |record| record.probe)?;
        self.admit(&mut states, |record| record.probe)?;
        self.admit(&mut summaries, |summary| summary.probe)?;
        for record in transitions.iter_mut().chain(&mut states) {
            bound(record);
        }
        Ok(Event::Reported(Report {
            seq,
            transitions,
            states,
            complete,
            summaries,
        }))
    }

    /// Leaves out what concerns removed probes.
    fn admit<T>(&mut self, records: &mut Vec<T>, probe: impl Fn(&T) -> ProbeId) -> Result<(), Breach> {
        let before = records.len();
        let mut unknown = None;
        records.retain(|record| {
            let id = probe(record);
            let is_announced = self.probes.contains(id);
            let was_announced = self.is_replaced && Some(id) <= self.highest;
            if !is_announced && !was_announced {
                unknown = Some(id);
            }
            is_announced
        });
        if let Some(ProbeId(id)) = unknown {
            return Err(breach(&format!("probe {id} is not announced")));
        }
        self.oddities.removed = saturating_count(self.oddities.removed, before - records.len());
        Ok(())
    }

    fn probed(&mut self, mut probed: Probed) -> Option<Event> {
        let asked = self.outgoing.as_mut().map(|outgoing| &mut outgoing.asked);
        let index = asked
            .as_ref()
            .and_then(|asked| asked.iter().position(|&request| request == probed.request));
        let (Some(asked), Some(index)) = (asked, index) else {
            self.oddities.unknown = self.oddities.unknown.saturating_add(1);
            return None;
        };
        asked.swap_remove(index);
        self.tidy();
        bound_probed(&mut probed);
        probed.result = probed
            .result
            .filter(|result| matches!(result.as_str(), "success" | "warning" | "failure" | "error"));
        Some(Event::Probed(probed))
    }

    /// The store takes the agent; ignored when the session is over.
    pub fn accept(&mut self, accept: Accept, now: Instant) {
        if self.phase != Phase::Deciding {
            return;
        }
        let Accept {
            acked,
            heartbeat,
            spread,
            version,
        } = accept;
        // An agent that has fewer transitions than the store was restored from a snapshot: all is asked for.
        let acked = acked.filter(|&acked| acked <= self.latest);
        self.applied = acked.unwrap_or_default();
        self.acked = self.applied;
        self.outgoing().welcome = Some(Welcome {
            protocol: PROTOCOL,
            version,
            heartbeat_ms: millis(heartbeat),
            spread_ms: millis(spread),
            acked,
        });
        self.enter(Phase::Announcing, now);
    }

    /// The store has applied everything up to `seq`.
    pub fn applied(&mut self, seq: Seq, now: Instant) {
        if seq > self.applied {
            self.applied = seq;
            self.unacked_since.get_or_insert(now);
        }
    }

    /// The store wants the states of all probes.
    pub fn resync(&mut self, reason: &str) {
        if matches!(self.phase, Phase::Announcing | Phase::Open) {
            self.outgoing().resync = Some(one_line(reason, MAX_GOODBYE_BYTES));
        }
    }

    /// The agent shall trust these certificates (PEM) from now on.
    pub fn ca(&mut self, pem: Arc<str>) {
        if matches!(self.phase, Phase::Announcing | Phase::Open) {
            self.outgoing().ca = Some(pem);
        }
    }

    /// Asks for a run; the answer comes as [`Event::Probed`], or never when the session ends.
    ///
    /// # Errors
    /// When the agent cannot be asked.
    pub fn run_probe(&mut self, run: RunProbe) -> Result<(), RunRefused> {
        if self.phase != Phase::Open {
            return Err(RunRefused::NotReady);
        }
        if !self.probes.contains(run.probe) {
            return Err(RunRefused::NoSuchProbe);
        }
        let outgoing = self.outgoing();
        if outgoing.runs.len() + outgoing.asked.len() >= MAX_RUNS {
            return Err(RunRefused::Busy);
        }
        outgoing.runs.push_back(run);
        Ok(())
    }

    /// Nobody waits for the answer any more; a late one is dropped.
    pub fn forget_run(&mut self, request: u64) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.runs.retain(|run| run.request != request);
            outgoing.asked.retain(|&asked| asked != request);
        }
        self.tidy();
    }

    /// The shell reads again after a pause of its own making: the agent was not silent, nobody listened.
    pub fn listening(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// The aggregator is about to stop; the agent closes and comes back within the spread.
    pub fn drain(&mut self, spread: Duration, now: Instant) {
        let spread_ms = millis(spread);
        self.leave(ServerMessage::Drain(Drain { spread_ms }), now);
    }

    /// Another aggregator serves this agent; it closes and goes there.
    pub fn redirect(&mut self, redirect: Redirect, now: Instant) {
        self.leave(ServerMessage::Redirect(redirect), now);
    }

    /// A newer session speaks for this agent.
    pub fn evict(&mut self, now: Instant) {
        self.end(code::REPLACED, "a newer session of this agent took over", now);
    }

    /// Ends the session with one of [`crate::wire::close`]; the first end wins.
    pub fn end(&mut self, code: u16, reason: &str, now: Instant) {
        if self.phase == Phase::Closing {
            return;
        }
        self.assembly = None;
        self.outgoing = None;
        self.outgoing().close = Some(close(code, reason));
        self.enter(Phase::Closing, now);
    }

    /// The next thing to write. To be called until it returns `None`, each time when the former has been written.
    pub fn poll(&mut self, now: Instant) -> Option<Transmit> {
        self.expire(now);
        let transmit = self.next(now);
        self.tidy();
        transmit
    }

    /// Ends the session when a deadline has passed.
    fn expire(&mut self, now: Instant) {
        let (code, reason) = match self.phase {
            Phase::Closing => return,
            Phase::Greeting if now >= self.since + HELLO_DEADLINE => (code::SILENT, "no hello"),
            Phase::Announcing if now >= self.since + ANNOUNCE_DEADLINE => {
                (code::POLICY, "no complete announcement")
            }
            Phase::Leaving if now >= self.since + LEAVE_DEADLINE => (code::GOING_AWAY, "told to leave"),
            Phase::Left if now >= self.since + LEAVE_DEADLINE => (code::NORMAL, "goodbye"),
            Phase::Open
                if self
                    .assembly
                    .as_ref()
                    .is_some_and(|assembly| now >= assembly.since + ANNOUNCE_DEADLINE) =>
            {
                (code::POLICY, "no complete announcement")
            }
            Phase::Greeting
            | Phase::Deciding
            | Phase::Announcing
            | Phase::Open
            | Phase::Leaving
            | Phase::Left => {
                if now < self.heard + SILENCE {
                    return;
                }
                (code::SILENT, "nothing heard for too long")
            }
        };
        self.end(code, reason, now);
    }

    fn next(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(outgoing) = &mut self.outgoing {
            if let Some(close) = outgoing.close.take() {
                return Some(close);
            }
            if let Some(message) = outgoing.leave.take() {
                return Some(say(&message));
            }
            if let Some(welcome) = outgoing.welcome.take() {
                return Some(say(&ServerMessage::Welcome(welcome)));
            }
            if let Some(pem) = outgoing.ca.take() {
                return Some(say(&ServerMessage::Ca(Ca {
                    pem: pem.as_ref().into(),
                })));
            }
            if let Some(reason) = outgoing.resync.take() {
                return Some(say(&ServerMessage::Resync(Resync { reason })));
            }
            if let Some(run) = outgoing.runs.pop_front() {
                outgoing.asked.push(run.request);
                return Some(say(&ServerMessage::Probe(run)));
            }
            if let Some(what) = outgoing.unsupported.take() {
                return Some(say(&ServerMessage::Unsupported(Unsupported { what })));
            }
        }
        if self.phase == Phase::Closing {
            return None;
        }
        if self.ack_at().is_some_and(|at| now >= at) {
            self.acked = self.applied;
            self.unacked_since = None;
            return Some(say(&ServerMessage::Ack(Ack { seq: self.acked })));
        }
        if now >= self.ping_at() {
            self.pinged = Some(now);
            return Some(Transmit::Ping);
        }
        None
    }

    /// When to poll again if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let phase_end = match self.phase {
            Phase::Closing => return None,
            Phase::Greeting => Some(self.since + HELLO_DEADLINE),
            Phase::Announcing => Some(self.since + ANNOUNCE_DEADLINE),
            Phase::Leaving | Phase::Left => Some(self.since + LEAVE_DEADLINE),
            Phase::Deciding => None,
            Phase::Open => self
                .assembly
                .as_ref()
                .map(|assembly| assembly.since + ANNOUNCE_DEADLINE),
        };
        [
            phase_end,
            self.ack_at(),
            Some(self.ping_at()),
            Some(self.heard + SILENCE),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When the next frame may be read, if not now: the agent has said too much. Never longer than a few seconds.
    #[must_use]
    pub fn readable_at(&self) -> Option<Instant> {
        self.allowance.ready_at()
    }

    /// When the latest frame arrived.
    #[must_use]
    pub const fn last_heard(&self) -> Instant {
        self.heard
    }

    /// What was odd but harmless.
    #[must_use]
    pub const fn oddities(&self) -> Oddities {
        self.oddities
    }

    /// Whether nothing will be read or written any more but a close frame.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    fn ack_at(&self) -> Option<Instant> {
        let since = self.unacked_since?;
        let waiting = self.applied.0.saturating_sub(self.acked.0);
        let is_much = waiting >= u64::try_from(RING / 4).expect("64 fits");
        Some(if is_much { since } else { since + ACK_DELAY })
    }

    fn ping_at(&self) -> Instant {
        self.pinged.unwrap_or(self.heard) + PING_AFTER
    }

    fn leave(&mut self, message: ServerMessage, now: Instant) {
        match self.phase {
            Phase::Greeting | Phase::Deciding | Phase::Announcing | Phase::Open => {
                self.outgoing().leave = Some(message);
                self.enter(Phase::Leaving, now);
            }
            Phase::Leaving | Phase::Left | Phase::Closing => {}
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        self.outgoing.get_or_insert_default()
    }

    fn tidy(&mut self) {
        if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.is_empty()) {
            self.outgoing = None;
        }
    }
}

/// What ends a session.
struct Breach {
    code: u16,
    reason: String,
}

fn breach(reason: &str) -> Breach {
    Breach {
        code: code::PROTOCOL,
        reason: reason.into(),
    }
}

/// In tokens of [`Allowance`].
fn cost(message: &AgentMessage) -> usize {
    1 + match message {
        AgentMessage::Announce(announce) => announce
            .instances
            .iter()
            .map(|instance| 1 + instance.probes.len())
            .sum(),
        AgentMessage::Report(report) => {
            report.transitions.len() + report.states.len() + report.summaries.len()
        }
        AgentMessage::Hello(_)
        | AgentMessage::Goodbye(_)
        | AgentMessage::Probed(_)
        | AgentMessage::Unsupported(_) => 0,
    }
}

fn bound(record: &mut Record) {
    record.age_ms = record.age_ms.min(MAX_AGE_MS);
    record.latency_us = record.latency_us.min(MAX_SAFE_INTEGER);
    if !record.message.is_empty() {
        record.message = one_line(&record.message, MAX_TEXT_BYTES);
    }
    if !record.output.is_empty() {
        record.output = printable(&record.output, MAX_OUTPUT_BYTES);
    }
}

fn saturating_count(count: u32, more: usize) -> u32 {
    count.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn say(message: &ServerMessage) -> Transmit {
    Transmit::Text(message.encode())
}
