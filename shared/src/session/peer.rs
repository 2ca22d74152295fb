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
    /// Transitions that had been sent before, in this session or in one that the store remembers.
    pub replayed: u32,
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
    /// The latest transition that was sent, or that the store holds.
    seen: Seq,
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
            seen: Seq(0),
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
            .add(announce, &self.limits, now)
            .map_err(|reason| breach(&reason))?;
        if !is_last {
            self.assembly = Some(assembly);
            if self.phase == Phase::Announcing {
                self.enter(Phase::Announcing, now);
            }
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
        let replayed = transitions.partition_point(|record| record.seq <= self.seen);
        self.oddities.replayed = saturating_count(self.oddities.replayed, replayed);
        self.seen = numbers()
            .next_back()
            .map_or(self.seen, |last| last.max(self.seen));

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
        self.seen = self.applied;
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

    /// The aggregator is about to stop, or stands by for one that it does not know; the agent closes and comes back
    /// within the spread. Nothing is acknowledged any more.
    pub fn drain(&mut self, spread: Duration, now: Instant) {
        let spread_ms = millis(spread);
        self.leave(ServerMessage::Drain(Drain { spread_ms }), now);
    }

    /// Another aggregator serves this agent; it closes and goes there. Nothing is acknowledged any more, so that the
    /// other hears of it.
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
        // Whoever serves the agent next must get what this aggregator may not have acted upon.
        if self.phase == Phase::Leaving {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{session::any_instant, wire::MAX_MESSAGE_BYTES},
        proptest::prelude::*,
    };

    const HELLO: &str =
        r#"{"type":"hello","protocol":1,"agent":"host","version":"1","epoch":"0000000000000007","seq":0}"#;
    const GOODBYE: &str = r#"{"type":"goodbye","reason":"stopping"}"#;
    const SECOND: Duration = Duration::from_secs(1);

    struct Peer {
        session: PeerSession,
        now: Instant,
    }

    fn probe(id: u32) -> String {
        format!(
            r#"{{"id":{id},"name":"p{id}","type":"readiness","target":"tcp a:1","periodMs":1000,"timeoutMs":1000,"successThreshold":1,"failureThreshold":3}}"#
        )
    }

    fn instance(name: &str, ids: impl IntoIterator<Item = u32>) -> String {
        let probes: Vec<String> = ids.into_iter().map(probe).collect();
        format!(
            r#"{{"component":"{name}","instance":"{name}-1","probes":[{}]}}"#,
            probes.join(",")
        )
    }

    fn announce(revision: u32, part: u32, last: bool, instances: &[String]) -> String {
        format!(
            r#"{{"type":"announce","revision":{revision},"part":{part},"last":{last},"instances":[{}]}}"#,
            instances.join(",")
        )
    }

    fn report(seq: u64, transitions: &str) -> String {
        format!(r#"{{"type":"report","seq":{seq},"transitions":[{transitions}]}}"#)
    }

    impl Peer {
        fn new() -> Self {
            let now = any_instant();
            Self {
                session: PeerSession::new(Limits::default(), now),
                now,
            }
        }

        fn greeted() -> Self {
            let mut peer = Self::new();
            assert!(matches!(peer.hear(HELLO), Some(Event::Hello(_))));
            peer
        }

        fn welcomed() -> Self {
            let mut peer = Self::greeted();
            peer.session.accept(
                Accept {
                    acked: None,
                    heartbeat: 10 * SECOND,
                    spread: 5 * SECOND,
                    version: "1".into(),
                },
                peer.now,
            );
            assert_eq!(peer.texts().len(), 1);
            peer
        }

        /// Probes 1 and 2 are announced.
        fn open() -> Self {
            let mut peer = Self::welcomed();
            let text = announce(1, 0, true, &[instance("web", [1, 2])]);
            assert!(matches!(peer.hear(&text), Some(Event::Announced(_))));
            assert_eq!(peer.drain(), []);
            peer
        }

        fn hear(&mut self, text: &str) -> Option<Event> {
            self.session.received(Frame::Text(text), self.now)
        }

        fn drain(&mut self) -> Vec<Transmit> {
            let mut all = Vec::new();
            while let Some(transmit) = self.session.poll(self.now) {
                assert!(all.len() < 1_000, "polling ends");
                all.push(transmit);
            }
            all
        }

        fn texts(&mut self) -> Vec<String> {
            self.drain()
                .into_iter()
                .map(|transmit| match transmit {
                    Transmit::Text(text) => text,
                    Transmit::Ping | Transmit::Close { .. } => panic!("{transmit:?}"),
                })
                .collect()
        }

        /// Moves to each deadline and collects what is written, with the time.
        fn wait(&mut self, until: Duration) -> Vec<(u64, Transmit)> {
            let start = self.now;
            let mut all = Vec::new();
            while let Some(deadline) = self.session.deadline() {
                assert!(deadline >= self.now, "a deadline in the past stays there");
                if deadline > start + until {
                    break;
                }
                self.now = deadline;
                let written = self.drain();
                all.extend(
                    written
                        .into_iter()
                        .map(|transmit| ((self.now - start).as_secs(), transmit)),
                );
            }
            self.now = start + until;
            all
        }

        fn closed_with(&mut self) -> Option<(u16, String)> {
            match self.drain().pop() {
                Some(Transmit::Close { code, reason }) => Some((code, reason)),
                Some(Transmit::Text(_) | Transmit::Ping) | None => None,
            }
        }
    }

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of::<PeerSession>();
        assert!(size <= 300, "{size}");
        let peer = Peer::open();
        assert!(peer.session.outgoing.is_none() && peer.session.assembly.is_none());
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_session_with_its_code_and_reason() {
        let web = [instance("web", [1])];
        let first = announce(1, 0, true, &web);
        let transition = "[1,1,0,1,0,1,5]";
        let cases: Vec<(Peer, String, u16, &str)> = vec![
            (Peer::new(), "garbage".into(), code::PROTOCOL, "not a message"),
            (Peer::new(), "{}".into(), code::PROTOCOL, "not a message"),
            (
                Peer::new(),
                HELLO[..60].into(),
                code::PROTOCOL,
                "not a message: EOF",
            ),
            (
                Peer::new(),
                HELLO.replace("host", "a host"),
                code::PROTOCOL,
                "agent name",
            ),
            (
                Peer::new(),
                HELLO.replace("\"seq\":0", "\"seq\":-1"),
                code::PROTOCOL,
                "not a message",
            ),
            (
                Peer::new(),
                HELLO.replace("\"seq\":0", "\"seq\":18446744073709551615"),
                code::PROTOCOL,
                "range",
            ),
            (
                Peer::new(),
                HELLO.replace("\"seq\":0", "\"seq\":1,\"acked\":2"),
                code::PROTOCOL,
                "range",
            ),
            (
                Peer::new(),
                HELLO.replace("\"protocol\":1", "\"protocol\":0"),
                code::VERSION,
                "protocol 0",
            ),
            (Peer::new(), first.clone(), code::PROTOCOL, "before the welcome"),
            (Peer::new(), GOODBYE.into(), code::PROTOCOL, "before the welcome"),
            (Peer::greeted(), HELLO.into(), code::PROTOCOL, "hello twice"),
            (
                Peer::greeted(),
                first.clone(),
                code::PROTOCOL,
                "before the welcome",
            ),
            (Peer::welcomed(), HELLO.into(), code::PROTOCOL, "hello twice"),
            (
                Peer::welcomed(),
                report(1, transition),
                code::PROTOCOL,
                "before announcement",
            ),
            (
                Peer::welcomed(),
                announce(1, 1, true, &web),
                code::PROTOCOL,
                "part 1 instead of",
            ),
            (Peer::open(), first, code::PROTOCOL, "not newer"),
            (
                Peer::open(),
                announce(0, 0, true, &web),
                code::PROTOCOL,
                "not newer",
            ),
            (
                Peer::open(),
                announce(2, 0, true, &[instance("web", [1, 1])]),
                code::PROTOCOL,
                "p1 of web twice",
            ),
            (
                Peer::open(),
                announce(2, 0, true, &[instance("web", [1]), instance("db", [1])]),
                code::PROTOCOL,
                "probe id 1 twice",
            ),
            (
                Peer::open(),
                announce(2, 0, true, &[instance("web", [1]), instance("web", [2])]),
                code::PROTOCOL,
                "web/web-1 twice",
            ),
            (
                Peer::open(),
                announce(
                    2,
                    0,
                    true,
                    &[instance("web", []).replace("[]", r#"[],"labels":{"a b":""}"#)],
                ),
                code::PROTOCOL,
                "a label of web",
            ),
            (
                Peer::open(),
                announce(
                    2,
                    0,
                    true,
                    &[instance("web", []).replace("[]", r#"[],"dependsOn":["\u0000"]"#)],
                ),
                code::PROTOCOL,
                "a dependency of web",
            ),
            (
                Peer::open(),
                announce(2, 0, false, &[]),
                code::PROTOCOL,
                "part 0 of an announcement is empty",
            ),
            (
                Peer::open(),
                report(1, "[1,9,0,1,0,1,5]"),
                code::PROTOCOL,
                "probe 9 is not announced",
            ),
            (
                Peer::open(),
                report(1, "[0,1,0,1,0,1,5]"),
                code::PROTOCOL,
                "order",
            ),
            (
                Peer::open(),
                report(2, &format!("{transition},{transition}")),
                code::PROTOCOL,
                "order",
            ),
            (
                Peer::open(),
                report(2, "[2,1,0,1,0,1,5],[1,1,0,1,0,1,5]"),
                code::PROTOCOL,
                "order",
            ),
            (
                Peer::open(),
                report(0, transition),
                code::PROTOCOL,
                "newer than the report",
            ),
            (
                Peer::open(),
                report(1 << 53, transition),
                code::PROTOCOL,
                "sequence number",
            ),
            (
                Peer::open(),
                report(1, "[1,1,0,1]"),
                code::PROTOCOL,
                "not a message",
            ),
            (
                Peer::open(),
                report(1, "[1,1,0,7,0,1,5]"),
                code::PROTOCOL,
                "not a message",
            ),
            (
                Peer::open(),
                " ".repeat(MAX_MESSAGE_BYTES + 1),
                code::TOO_BIG,
                "limit",
            ),
        ];
        for (mut peer, text, expected_code, expected_reason) in cases {
            let shown = crate::truncate(&text, 200).into_owned();
            assert_eq!(peer.hear(&text), None, "{shown}");
            let (code, reason) = peer
                .closed_with()
                .unwrap_or_else(|| panic!("still open: {shown}"));
            assert_eq!(code, expected_code, "{shown}: {reason}");
            assert!(reason.contains(expected_reason), "{shown}: {reason}");
            assert!(reason.len() <= crate::session::MAX_CLOSE_REASON_BYTES);
            // Nothing is heard or said any more.
            assert_eq!(peer.hear(HELLO), None);
            assert_eq!(peer.drain(), []);
            assert_eq!(peer.session.deadline(), None);
        }
    }

    #[test]
    fn frames_that_are_not_text_end_the_session() {
        for (frame, expected) in [
            (Frame::Binary, code::UNSUPPORTED_DATA),
            (Frame::TooBig, code::TOO_BIG),
        ] {
            let mut peer = Peer::open();
            assert_eq!(peer.session.received(frame, peer.now), None);
            assert_eq!(peer.closed_with().map(|(code, _)| code), Some(expected));
        }
    }

    #[test]
    fn a_sequence_that_goes_back_ends_the_session_but_a_replay_is_the_stores_affair() {
        let mut peer = Peer::open();
        assert!(peer.hear(&report(5, "[5,1,0,1,0,1,5]")).is_some());
        assert!(peer.hear(&report(5, "[4,1,0,1,0,1,5],[5,1,0,1,0,1,5]")).is_some());
        assert_eq!(peer.hear(&report(4, "")), None);
        assert!(
            peer.closed_with()
                .unwrap()
                .1
                .contains("sequence number 4 after 5")
        );
    }

    #[test]
    fn a_message_of_unknown_type_is_answered_and_skipped() {
        let mut peer = Peer::open();
        assert_eq!(
            peer.hear(r#"{"type":"digest\u001b","x":{"y":[1]}}"#),
            Some(Event::Alive)
        );
        assert_eq!(
            peer.texts(),
            ["{\"type\":\"unsupported\",\"what\":\"digest\u{fffd}\"}"]
        );
        assert_eq!(peer.session.oddities().unknown, 1);
        assert!(peer.hear(&report(1, "[1,1,0,1,0,1,5]")).is_some());
    }

    #[test]
    fn an_announcement_in_parts_is_handed_on_whole() {
        let mut peer = Peer::welcomed();
        assert_eq!(
            peer.hear(&announce(
                4,
                0,
                false,
                &[instance("web", [1]), instance("db", [2])]
            )),
            None
        );
        assert_eq!(
            peer.hear(&announce(
                4,
                1,
                false,
                &[instance("db", [3]), instance("cart", [])]
            )),
            None
        );
        let Some(Event::Announced(instances)) = peer.hear(&announce(4, 2, true, &[])) else {
            panic!();
        };
        let shape: Vec<(&str, usize)> = instances
            .iter()
            .map(|instance| (instance.component.as_str(), instance.probes.len()))
            .collect();
        assert_eq!(shape, [("web", 1), ("db", 2), ("cart", 0)]);
    }

    #[test]
    fn a_newer_announcement_replaces_one_that_is_not_complete() {
        let mut peer = Peer::welcomed();
        assert_eq!(peer.hear(&announce(1, 0, false, &[instance("web", [1])])), None);
        assert!(peer.hear(&announce(2, 0, true, &[instance("db", [2])])).is_some());
        assert_eq!(peer.hear(&announce(1, 1, true, &[])), None);
        assert!(
            peer.closed_with().is_some(),
            "the former cannot be finished any more"
        );
    }

    #[test]
    fn more_than_the_limits_allow_is_refused() {
        for (limits, expected) in [
            (
                Limits {
                    probes: 3,
                    ..Limits::default()
                },
                "more than 3 probes",
            ),
            (
                Limits {
                    instances: 1,
                    ..Limits::default()
                },
                "more than 1 instances",
            ),
        ] {
            let mut peer = Peer::welcomed();
            peer.session.limits = limits;
            let text = announce(1, 0, true, &[instance("web", [1, 2]), instance("db", [3, 4])]);
            assert_eq!(peer.hear(&text), None);
            assert!(peer.closed_with().unwrap().1.contains(expected));
        }
        let labels: Vec<String> = (0..65).map(|n| format!(r#""l{n}":"""#)).collect();
        let text = instance("web", []).replace("[]", &format!(r#"[],"labels":{{{}}}"#, labels.join(",")));
        let mut peer = Peer::welcomed();
        assert_eq!(peer.hear(&announce(1, 0, true, &[text])), None);
        assert!(peer.closed_with().unwrap().1.contains("more than 64 labels"));
    }

    #[test]
    fn records_of_removed_probes_are_left_out_and_counted() {
        let mut peer = Peer::open();
        peer.hear(&announce(2, 0, true, &[instance("web", [2])]));
        let Some(Event::Reported(report)) = peer.hear(&report(2, "[1,1,0,1,0,1,5],[2,2,0,1,0,1,5]")) else {
            panic!();
        };
        assert_eq!(report.transitions.len(), 1);
        assert_eq!(peer.session.oddities().removed, 1);
        assert_eq!(peer.hear(&super::tests::report(3, "[3,3,0,1,0,1,5]")), None);
        assert!(peer.closed_with().unwrap().1.contains("probe 3 is not announced"));
    }

    #[test]
    fn texts_leave_bounded_and_printable() {
        let mut peer = Peer::open();
        let record = format!(
            r#"[1,1,18446744073709551615,2,0,-1,5,"No t\u001b!","{}\u001b[2J\nx","a\r\nb\u0000{}"]"#,
            "m".repeat(1_000),
            "o".repeat(10_000)
        );
        let Some(Event::Reported(report)) = peer.hear(&report(1, &record)) else {
            panic!();
        };
        let record = &report.transitions[0];
        assert_eq!(record.reason.as_str(), "Not");
        assert!(record.message.len() <= MAX_TEXT_BYTES);
        assert!(record.output.len() <= MAX_OUTPUT_BYTES);
        assert!(
            record.output.starts_with("a\nb\u{fffd}oo"),
            "{:?}",
            &record.output[..10]
        );
        assert!(record.age_ms <= MAX_AGE_MS);
    }

    #[test]
    fn acknowledgements_are_gathered() {
        let mut peer = Peer::open();
        peer.session.applied(Seq(1), peer.now);
        peer.session.applied(Seq(3), peer.now);
        peer.session.applied(Seq(2), peer.now);
        assert_eq!(peer.drain(), []);
        assert_eq!(peer.session.deadline(), Some(peer.now + ACK_DELAY));
        peer.now += ACK_DELAY;
        assert_eq!(peer.texts(), [r#"{"type":"ack","seq":3}"#]);
        assert_eq!(peer.drain(), []);
        peer.session.applied(Seq(67), peer.now);
        assert_eq!(
            peer.texts(),
            [r#"{"type":"ack","seq":67}"#],
            "a quarter of the ring does not wait"
        );
    }

    #[test]
    fn the_welcome_says_what_the_store_holds_unless_the_agent_has_less() {
        for (acked, expected) in [(None, false), (Some(Seq(3)), true), (Some(Seq(9)), false)] {
            let mut peer = Peer::new();
            peer.hear(&HELLO.replace("\"seq\":0", "\"seq\":5"));
            let accept = Accept {
                acked,
                heartbeat: SECOND,
                spread: SECOND,
                version: "1".into(),
            };
            peer.session.accept(accept, peer.now);
            assert_eq!(peer.texts()[0].contains("acked"), expected, "{acked:?}");
        }
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_let_go_within_thirty_seconds() {
        let mut peer = Peer::open();
        let written = peer.wait(60 * SECOND);
        assert!(
            matches!(
                &written[..],
                [
                    (12, Transmit::Ping),
                    (24, Transmit::Ping),
                    (
                        25,
                        Transmit::Close {
                            code: code::SILENT,
                            ..
                        }
                    )
                ]
            ),
            "{written:?}"
        );
    }

    #[test]
    fn a_peer_that_answers_stays() {
        let mut peer = Peer::open();
        for _ in 0..10 {
            assert!(matches!(&peer.wait(12 * SECOND)[..], [(12, Transmit::Ping)]));
            assert_eq!(peer.session.received(Frame::Pong, peer.now), Some(Event::Alive));
        }
    }

    #[test]
    fn a_pause_of_the_aggregators_own_making_is_not_silence() {
        let mut peer = Peer::open();
        peer.now += 40 * SECOND;
        peer.session.listening(peer.now);
        assert_eq!(peer.drain(), []);
    }

    #[test]
    fn each_step_of_the_handshake_has_a_deadline() {
        for (mut peer, after, expected) in [
            (Peer::new(), HELLO_DEADLINE, code::SILENT),
            (Peer::greeted(), SILENCE, code::SILENT),
        ] {
            let written = peer.wait(100 * SECOND);
            let Some((at, Transmit::Close { code, .. })) = written.last() else {
                panic!("{written:?}");
            };
            assert_eq!((*at, *code), (after.as_secs(), expected));
        }
        // An agent that is there, but does not announce, or does not finish.
        for (mut peer, parts) in [(Peer::welcomed(), 0), (Peer::welcomed(), 3), (Peer::open(), 3)] {
            for part in 0..parts {
                peer.now += 20 * SECOND;
                peer.hear(&announce(5, part, false, &[instance("web", [])]));
            }
            let start = peer.now;
            let code = loop {
                peer.now += SECOND;
                peer.session.received(Frame::Pong, peer.now);
                if let Some((code, _)) = peer.closed_with() {
                    break code;
                }
            };
            assert_eq!((peer.now - start, code), (ANNOUNCE_DEADLINE, code::POLICY));
        }
    }

    #[test]
    fn who_says_too_much_is_read_more_slowly() {
        let mut peer = Peer::open();
        assert_eq!(peer.session.readable_at(), None);
        let mut said = 0;
        while peer.session.readable_at().is_none() {
            peer.session.received(Frame::Ping, peer.now);
            said += 1;
            assert!(said <= 2 * (RING + 2) + BURST_SLACK as usize + 1);
        }
        assert!(said > 2 * RING, "a full ring and a full state pass");
        let full = report(1, "").replace("[]", &format!("[{}]", vec!["[1,1,0,1,0,0,0]"; 4_000].join(",")));
        let full = full.replace("transitions", "states");
        assert!(
            full.len() < MAX_MESSAGE_BYTES && peer.hear(&full).is_some(),
            "{:?}",
            peer.closed_with()
        );
        let pause = peer.session.readable_at().unwrap() - peer.now;
        assert!(pause > 3 * SECOND && pause < SILENCE, "{pause:?}");
    }

    #[test]
    fn a_run_is_asked_for_and_its_answer_handed_on_once() {
        let mut peer = Peer::open();
        let run = |request, probe| RunProbe {
            request,
            probe: ProbeId(probe),
        };
        assert_eq!(peer.session.run_probe(run(1, 9)), Err(RunRefused::NoSuchProbe));
        assert_eq!(peer.session.run_probe(run(1, 1)), Ok(()));
        assert_eq!(peer.texts(), [r#"{"type":"probe","request":1,"probe":1}"#]);
        let answer = r#"{"type":"probed","request":1,"result":"odd","message":"a\u001bb"}"#;
        let Some(Event::Probed(probed)) = peer.hear(answer) else {
            panic!();
        };
        assert_eq!((probed.result, probed.message.as_str()), (None, "a\u{fffd}b"));
        assert_eq!(peer.hear(answer), None);
        assert!(peer.session.outgoing.is_none());

        for request in 0..MAX_RUNS as u64 {
            assert_eq!(peer.session.run_probe(run(request, 1)), Ok(()));
        }
        assert_eq!(peer.session.run_probe(run(99, 1)), Err(RunRefused::Busy));
        peer.texts();
        peer.session.forget_run(3);
        assert_eq!(peer.session.run_probe(run(99, 1)), Ok(()));
        assert_eq!(
            Peer::welcomed().session.run_probe(run(1, 1)),
            Err(RunRefused::NotReady)
        );
    }

    #[test]
    fn drain_and_redirect_wait_for_the_agent_to_leave_but_not_for_ever() {
        for redirect in [false, true] {
            let mut peer = Peer::open();
            if redirect {
                let to = Redirect {
                    address: "b:7575".into(),
                    server_name: None,
                    spread_ms: 0,
                };
                peer.session.redirect(to, peer.now);
            } else {
                peer.session.drain(9 * SECOND, peer.now);
            }
            let said = peer.texts();
            assert!(said[0].contains(if redirect {
                r#""b:7575""#
            } else {
                r#""spreadMs":9000"#
            }));
            assert!(
                peer.hear(&report(1, "[1,1,0,1,0,1,5]")).is_some(),
                "what is on its way counts"
            );
            let written = peer.wait(60 * SECOND);
            assert!(
                matches!(
                    &written[..],
                    [(
                        5,
                        Transmit::Close {
                            code: code::GOING_AWAY,
                            ..
                        }
                    )]
                ),
                "{written:?}"
            );
        }
    }

    #[test]
    fn nothing_is_acknowledged_once_the_agent_is_sent_away() {
        for redirect in [false, true] {
            let mut peer = Peer::open();
            peer.session.applied(Seq(1), peer.now);
            if redirect {
                let to = Redirect {
                    address: "b:7575".into(),
                    server_name: Some("b".into()),
                    spread_ms: 0,
                };
                peer.session.redirect(to, peer.now);
                let said = r#"{"type":"redirect","address":"b:7575","serverName":"b"}"#;
                assert_eq!(peer.texts(), [said]);
            } else {
                peer.session.drain(SECOND, peer.now);
                peer.texts();
            }
            peer.session.applied(Seq(200), peer.now);
            let written = peer.wait(60 * SECOND);
            assert!(
                matches!(&written[..], [(5, Transmit::Close { .. })]),
                "{written:?}"
            );
        }
    }

    #[test]
    fn who_is_sent_away_before_the_welcome_is_not_welcomed() {
        for mut peer in [Peer::new(), Peer::greeted()] {
            let to = Redirect {
                address: "b:7575".into(),
                server_name: None,
                spread_ms: 0,
            };
            peer.session.redirect(to, peer.now);
            assert_eq!(peer.hear(HELLO), None, "a hello that crossed it needs no answer");
            let accept = Accept {
                acked: None,
                heartbeat: SECOND,
                spread: SECOND,
                version: "1".into(),
            };
            peer.session.accept(accept, peer.now);
            assert_eq!(peer.texts(), [r#"{"type":"redirect","address":"b:7575"}"#]);
        }
    }

    #[test]
    fn nothing_counts_after_a_goodbye() {
        let mut peer = Peer::open();
        assert!(matches!(peer.hear(GOODBYE), Some(Event::Goodbye { reason }) if reason == "stopping"));
        assert_eq!(peer.hear(&report(1, "[1,1,0,1,0,1,5]")), None);
        assert_eq!(peer.hear(GOODBYE), None);
        assert!(matches!(
            &peer.wait(60 * SECOND)[..],
            [(
                5,
                Transmit::Close {
                    code: code::NORMAL,
                    ..
                }
            )]
        ));
    }

    #[test]
    fn an_evicted_session_says_why() {
        let mut peer = Peer::open();
        peer.session.evict(peer.now);
        assert_eq!(peer.closed_with().map(|(code, _)| code), Some(code::REPLACED));
        peer.session.accept(
            Accept {
                acked: None,
                heartbeat: SECOND,
                spread: SECOND,
                version: String::new(),
            },
            peer.now,
        );
        assert_eq!(peer.drain(), []);
    }

    #[test]
    fn certificates_and_resync_reach_the_agent() {
        let mut peer = Peer::open();
        peer.session.ca("old".into());
        peer.session.ca("new".into());
        peer.session.resync("gap");
        assert_eq!(
            peer.texts(),
            [
                r#"{"type":"ca","pem":"new"}"#,
                r#"{"type":"resync","reason":"gap"}"#
            ]
        );
    }

    /// Good messages, broken at random: cut, bytes changed, out of order.
    fn frames() -> impl Strategy<Value = Vec<String>> {
        let good = proptest::sample::select(vec![
            HELLO.to_owned(),
            announce(1, 0, true, &[instance("web", [1, 2])]),
            announce(2, 0, false, &[instance("web", [1, 2])]),
            announce(2, 1, true, &[instance("db", [3])]),
            report(1, "[1,1,0,1,0,1,5]"),
            report(9, "[8,2,0,2,3,-1,5,\"TimedOut\",\"m\",\"o\"],[9,1,0,1,0,1,5]"),
            r#"{"type":"report","seq":9,"complete":true,"summaries":[[1,1,1,0,0,1,1,1,1]]}"#.to_owned(),
            GOODBYE.to_owned(),
            r#"{"type":"probed","request":1}"#.to_owned(),
            r#"{"type":"unsupported","what":"x"}"#.to_owned(),
        ]);
        let frame = (good, any::<(u8, usize, u8)>()).prop_map(|(text, (how, place, byte))| {
            let mut bytes = text.into_bytes();
            let place = place % bytes.len();
            match how % 6 {
                0 => bytes.truncate(place),
                1 => bytes[place] = byte,
                2 => bytes[place] = byte % 10 + b'0',
                _ => {}
            }
            String::from_utf8_lossy(&bytes).into_owned()
        });
        proptest::collection::vec(frame, 0..30)
    }

    proptest! {
        #[test]
        fn no_sequence_of_frames_does_harm(frames in frames(), accepted in 0..10_usize) {
            let mut peer = Peer::new();
            for (index, frame) in frames.iter().enumerate() {
                let before = peer.session.is_closing();
                if let Some(event) = peer.hear(frame) {
                    prop_assert!(!before);
                    if let Event::Reported(report) = event {
                        prop_assert!(report.transitions.is_sorted_by_key(|record| record.seq));
                        prop_assert!(report.transitions.iter().all(|record| record.seq <= report.seq));
                    }
                }
                if index == accepted % 3 {
                    let accept = Accept { acked: None, heartbeat: SECOND, spread: SECOND, version: String::new() };
                    peer.session.accept(accept, peer.now);
                }
                peer.now += SECOND / 10;
                peer.drain();
                prop_assert!(peer.session.deadline().is_none_or(|deadline| deadline > peer.now));
            }
        }
    }
}
