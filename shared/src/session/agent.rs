//! The agent's half of a session: greets, announces, reports, keeps the connection honest, obeys.
//!
//! [`AgentSession`] lives as long as the agent's process; each connection starts with
//! [`AgentSession::connected`] and ends with [`AgentSession::closed`]. The shell:
//!
//! ```text
//! on connect             session.connected(now)
//! on a frame             if let Some(directive) = session.received(frame, &mut outbox, now) { carry it out }
//! while writable         if session.wants_summaries(now) { outbox.summarize(...) }
//!                        session.poll(&mut outbox, now) -> write it, and only then poll again
//! otherwise              wait for a frame, for Outbox::record or announce, or for session.deadline()
//! while a write is stuck keep reading, and give the connection up at session.silence_deadline()
//! on close or error      let ended = session.closed(&mut outbox, now); backoff.worked(...)
//! ```
//!
//! So nothing is ever queued beyond the one message being written: while the socket is not writable, states
//! stay in the [`Outbox`], where the newest replaces the older.

use {
    super::{
        Frame, LEAVE_DEADLINE, MAX_HEARTBEAT, MAX_RUNS, MIN_HEARTBEAT, SILENCE, Transmit, WELCOME_DEADLINE,
        bound_probed, close,
        outbox::{AnnounceCursor, Outbox},
    },
    crate::{
        name::AgentName,
        one_line,
        wire::{
            AgentMessage, DecodeError, Epoch, Goodbye, Hello, MAX_MESSAGE_BYTES, PROTOCOL, Probed, Redirect,
            RunProbe, ServerMessage, Unsupported, Welcome, close as code,
        },
    },
    std::{
        collections::VecDeque,
        time::{Duration, Instant},
    },
};

/// Longest reason of a goodbye, in bytes.
pub const MAX_GOODBYE_BYTES: usize = 256;

/// Something that the aggregator asks of the agent, beyond the session itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// The session is open; for the log and the readiness of the agent.
    Opened {
        /// The aggregator's release.
        version: String,
    },
    /// Run a probe now and answer with [`AgentSession::probed`]. The probe is announced.
    RunProbe(RunProbe),
    /// Trust these certificates (PEM) from the next connection on.
    Ca(String),
    /// Connect there next. The session closes itself.
    Redirect(Redirect),
    /// The aggregator cannot keep this agent. The session closes itself.
    Drained,
}

/// What to know about a session that is over, for [`crate::backoff::Backoff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// From the welcome to the end; `None` when it was never open.
    pub open_for: Option<Duration>,
    /// Within which the aggregator wants its agents to come back.
    pub spread: Duration,
}

/// The agent's half.
#[derive(Debug)]
pub struct AgentSession {
    agent: AgentName,
    version: String,
    epoch: Epoch,
    /// The process is about to stop: say so, then close.
    goodbye: Option<String>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// No connection.
    Closed,
    /// Connected; the hello is to be sent, or has been and the welcome is awaited.
    Greeting { since: Instant, is_sent: bool },
    /// Welcomed.
    Open(Box<Open>),
    /// A close frame is to be sent, or has been. Nothing is read any more.
    Closing {
        since: Instant,
        frame: Option<Transmit>,
        open_for: Option<Duration>,
        spread: Duration,
    },
}

#[derive(Debug)]
struct Open {
    since: Instant,
    heartbeat: Duration,
    spread: Duration,
    /// When the latest frame arrived.
    heard: Instant,
    /// A ping is out since.
    pinged: Option<Instant>,
    /// When the next summaries are due.
    beat_at: Instant,
    /// When something was written last.
    spoke: Instant,
    /// The announcement that is being sent, and the revision that has been.
    announcing: Option<AnnounceCursor>,
    announced: Option<u32>,
    /// Answers to runs that were asked for; at most three times [`MAX_RUNS`], refusals included.
    answers: VecDeque<Probed>,
    /// Runs that are being made; at most [`MAX_RUNS`].
    running: Vec<u64>,
    /// Types of messages that are not known here, to be answered. One is kept: a newer aggregator that says many
    /// unknown things needs to be told once.
    unsupported: Option<String>,
}

impl AgentSession {
    /// Not connected. `epoch` must be random and new with every process.
    #[must_use]
    pub fn new(agent: AgentName, version: impl Into<String>, epoch: Epoch) -> Self {
        Self {
            agent,
            version: version.into(),
            epoch,
            goodbye: None,
            phase: Phase::Closed,
        }
    }

    /// A connection is up, the WebSocket handshake done.
    pub fn connected(&mut self, now: Instant) {
        debug_assert!(matches!(self.phase, Phase::Closed), "closed() ends a session");
        self.phase = Phase::Greeting {
            since: now,
            is_sent: false,
        };
    }

    /// The connection is gone, whoever ended it.
    pub fn closed(&mut self, outbox: &mut Outbox, now: Instant) -> Ended {
        outbox.suspend();
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Closed | Phase::Greeting { .. } => Ended {
                open_for: None,
                spread: Duration::ZERO,
            },
            Phase::Open(open) => Ended {
                open_for: Some(now.saturating_duration_since(open.since)),
                spread: open.spread,
            },
            Phase::Closing { open_for, spread, .. } => Ended { open_for, spread },
        }
    }

    /// Whether the aggregator has welcomed this connection and it has not ended.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// The process is about to stop: what is ready is sent, then a goodbye with the reason, then a close. The
    /// shell polls until the close has been written, and gives up after a deadline of its own.
    pub fn goodbye(&mut self, reason: &str) {
        self.goodbye = Some(one_line(reason, MAX_GOODBYE_BYTES));
    }

    /// The run that was asked for has ended, or could not be made. Ignored when the session that asked is over.
    pub fn probed(&mut self, mut probed: Probed) {
        if let Phase::Open(open) = &mut self.phase
            && let Some(index) = open.running.iter().position(|&id| id == probed.request)
        {
            open.running.swap_remove(index);
            bound_probed(&mut probed);
            open.answers.push_back(probed);
        }
    }

    /// Takes in a frame.
    pub fn received(&mut self, frame: Frame<'_>, outbox: &mut Outbox, now: Instant) -> Option<Directive> {
        match &mut self.phase {
            Phase::Closed | Phase::Closing { .. } => return None,
            Phase::Greeting { .. } => {}
            Phase::Open(open) => {
                open.heard = now;
                open.pinged = None;
            }
        }
        let text = match frame {
            Frame::Text(text) => text,
            Frame::Binary => {
                self.fail(outbox, now, code::UNSUPPORTED_DATA, "only text is spoken");
                return None;
            }
            Frame::TooBig => {
                self.fail(outbox, now, code::TOO_BIG, "message over the limit");
                return None;
            }
            Frame::Ping | Frame::Pong => return None,
        };
        let message = match ServerMessage::decode(text) {
            Ok(message) => message,
            Err(DecodeError::UnknownType(what)) => {
                if let Phase::Open(open) = &mut self.phase {
                    open.unsupported = Some(what);
                }
                return None;
            }
            Err(DecodeError::TooBig(_)) => {
                self.fail(outbox, now, code::TOO_BIG, "message over the limit");
                return None;
            }
            Err(error @ DecodeError::Malformed(_)) => {
                self.fail(outbox, now, code::PROTOCOL, &error.to_string());
                return None;
            }
        };
        self.understand(message, outbox, now)
    }

    fn understand(&mut self, message: ServerMessage, outbox: &mut Outbox, now: Instant) -> Option<Directive> {
        match message {
            ServerMessage::Welcome(welcome) => self.welcomed(welcome, outbox, now),
            ServerMessage::Redirect(redirect) => {
                self.end(outbox, now, None, code::NORMAL, "redirected");
                Some(Directive::Redirect(redirect))
            }
            ServerMessage::Drain(drain) => {
                let spread = Duration::from_millis(drain.spread_ms);
                self.end(outbox, now, Some(spread), code::NORMAL, "drained");
                Some(Directive::Drained)
            }
            ServerMessage::Ca(ca) => Some(Directive::Ca(ca.pem)),
            ServerMessage::Unsupported(_) => None,
            ServerMessage::Ack(ack) => {
                if !self.is_open() {
                    self.fail(outbox, now, code::PROTOCOL, "ack before welcome");
                } else if ack.seq > outbox.seq() {
                    self.fail(
                        outbox,
                        now,
                        code::PROTOCOL,
                        "ack of a transition that does not exist",
                    );
                } else {
                    outbox.acknowledge(ack.seq);
                }
                None
            }
            ServerMessage::Resync(_) => {
                if self.is_open() {
                    outbox.send_full_state();
                } else {
                    self.fail(outbox, now, code::PROTOCOL, "resync before welcome");
                }
                None
            }
            ServerMessage::Probe(run) => {
                let Phase::Open(open) = &mut self.phase else {
                    self.fail(outbox, now, code::PROTOCOL, "probe before welcome");
                    return None;
                };
                if open.answers.len() >= 2 * MAX_RUNS {
                    self.fail(
                        outbox,
                        now,
                        code::POLICY,
                        "more runs asked for than answers can be kept",
                    );
                    return None;
                }
                open.asked(run, outbox)
            }
        }
    }

    fn welcomed(&mut self, welcome: Welcome, outbox: &mut Outbox, now: Instant) -> Option<Directive> {
        let Welcome {
            protocol,
            version,
            heartbeat_ms,
            spread_ms,
            acked,
        } = welcome;
        if !matches!(self.phase, Phase::Greeting { is_sent: true, .. }) {
            self.fail(outbox, now, code::PROTOCOL, "welcome out of order");
            return None;
        }
        if protocol == 0 || protocol > PROTOCOL {
            let reason = format!("protocol {protocol} is not spoken here, {PROTOCOL} is");
            self.fail(outbox, now, code::VERSION, &reason);
            return None;
        }
        if acked.is_some_and(|acked| acked > outbox.seq()) {
            self.fail(
                outbox,
                now,
                code::PROTOCOL,
                "welcome acks a transition that does not exist",
            );
            return None;
        }
        outbox.resume(acked);
        let heartbeat = Duration::from_millis(heartbeat_ms).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT);
        self.phase = Phase::Open(Box::new(Open {
            since: now,
            heartbeat,
            spread: Duration::from_millis(spread_ms),
            heard: now,
            pinged: None,
            beat_at: now + heartbeat,
            spoke: now,
            announcing: None,
            announced: None,
            answers: VecDeque::new(),
            running: Vec::new(),
            unsupported: None,
        }));
        Some(Directive::Opened {
            version: one_line(&version, 64),
        })
    }

    /// Whether a heartbeat is due: hand the summaries of all probes to [`Outbox::summarize`] before the next poll,
    /// which starts the next heartbeat.
    #[must_use]
    pub fn wants_summaries(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Open(open) => now >= open.beat_at,
            Phase::Closed | Phase::Greeting { .. } | Phase::Closing { .. } => false,
        }
    }

    /// The next thing to write. To be called until it returns `None`, each time when the former has been written.
    pub fn poll(&mut self, outbox: &mut Outbox, now: Instant) -> Option<Transmit> {
        match &mut self.phase {
            Phase::Closed => None,
            Phase::Closing { frame, .. } => frame.take(),
            Phase::Greeting { since, is_sent } => {
                if self.goodbye.is_some() {
                    return self.close_now(outbox, now, code::NORMAL, "stopping");
                }
                if !*is_sent {
                    *is_sent = true;
                    return Some(say(&AgentMessage::Hello(Hello {
                        protocol: PROTOCOL,
                        agent: self.agent.clone(),
                        version: self.version.clone(),
                        epoch: self.epoch,
                        seq: outbox.seq(),
                        acked: outbox.acked(),
                    })));
                }
                if now >= *since + WELCOME_DEADLINE {
                    return self.close_now(outbox, now, code::SILENT, "no welcome");
                }
                None
            }
            Phase::Open(open) => {
                if now >= open.heard + SILENCE {
                    return self.close_now(outbox, now, code::SILENT, "nothing heard for too long");
                }
                if let Some(transmit) = open.next(outbox, now) {
                    open.spoke = now;
                    return Some(transmit);
                }
                if let Some(reason) = self.goodbye.take() {
                    self.end(outbox, now, None, code::NORMAL, &reason);
                    return Some(say(&AgentMessage::Goodbye(Goodbye { reason })));
                }
                None
            }
        }
    }

    /// When to poll again if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Closed | Phase::Closing { .. } => None,
            Phase::Greeting { since, .. } => Some(*since + WELCOME_DEADLINE),
            Phase::Open(open) => Some(open.beat_at.min(open.ping_at()).min(open.heard + SILENCE)),
        }
    }

    /// When to give the connection up although a write is still stuck.
    #[must_use]
    pub fn silence_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Closed => None,
            Phase::Closing { since, .. } => Some(*since + LEAVE_DEADLINE),
            Phase::Greeting { since, .. } => Some(*since + WELCOME_DEADLINE),
            Phase::Open(open) => Some(open.heard + SILENCE),
        }
    }

    fn fail(&mut self, outbox: &mut Outbox, now: Instant, code: u16, reason: &str) {
        self.end(outbox, now, None, code, reason);
    }

    fn close_now(&mut self, outbox: &mut Outbox, now: Instant, code: u16, reason: &str) -> Option<Transmit> {
        self.end(outbox, now, None, code, reason);
        match &mut self.phase {
            Phase::Closing { frame, .. } => frame.take(),
            Phase::Closed | Phase::Greeting { .. } | Phase::Open(_) => None,
        }
    }

    fn end(&mut self, outbox: &mut Outbox, now: Instant, spread: Option<Duration>, code: u16, reason: &str) {
        let Ended {
            open_for,
            spread: former,
        } = self.closed(outbox, now);
        self.phase = Phase::Closing {
            since: now,
            frame: Some(close(code, reason)),
            open_for,
            spread: spread.unwrap_or(former),
        };
    }
}

impl Open {
    /// A ping goes out when nothing was heard, or nothing was said, for a heartbeat; and again until something is.
    fn ping_at(&self) -> Instant {
        let quiet = self.heard.min(self.spoke);
        self.pinged.map_or(quiet, |pinged| pinged.max(quiet)) + self.heartbeat
    }

    fn asked(&mut self, run: RunProbe, outbox: &Outbox) -> Option<Directive> {
        let refusal = if !outbox.knows(run.probe) {
            format!("probe {} is not announced here", run.probe.0)
        } else if self.running.len() >= MAX_RUNS {
            format!("{MAX_RUNS} runs are already being made")
        } else {
            self.running.push(run.request);
            return Some(Directive::RunProbe(run));
        };
        self.answers.push_back(Probed {
            request: run.request,
            result: None,
            reason: None,
            message: refusal,
            output: String::new(),
            latency_us: 0,
            state: None,
        });
        None
    }

    fn next(&mut self, outbox: &mut Outbox, now: Instant) -> Option<Transmit> {
        if now >= self.beat_at {
            self.beat_at = now + self.heartbeat;
            outbox.beat();
        }
        if now >= self.ping_at() {
            self.pinged = Some(now);
            return Some(Transmit::Ping);
        }
        if self.announced != Some(outbox.revision()) {
            return self.announce(outbox);
        }
        if let Some(what) = self.unsupported.take() {
            return Some(say(&AgentMessage::Unsupported(Unsupported { what })));
        }
        if let Some(probed) = self.answers.pop_front() {
            return Some(say(&AgentMessage::Probed(probed)));
        }
        outbox.next_report(now).map(Transmit::Text)
    }

    /// Nothing is reported before the latest announcement has been sent: reports name its probes.
    fn announce(&mut self, outbox: &Outbox) -> Option<Transmit> {
        let revision = outbox.revision();
        if revision == 0 {
            return None;
        }
        let cursor = match &mut self.announcing {
            Some(cursor) if cursor.revision() == revision => cursor,
            Some(_) | None => self.announcing.insert(AnnounceCursor::new(revision)),
        };
        let announce = cursor.next_part(outbox.instances());
        if announce.last {
            self.announcing = None;
            self.announced = Some(revision);
        }
        Some(say(&AgentMessage::Announce(announce)))
    }
}

fn say(message: &AgentMessage) -> Transmit {
    let text = message.encode();
    debug_assert!(text.len() <= MAX_MESSAGE_BYTES, "every message is cut to fit");
    Transmit::Text(text)
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{
            health::Reason,
            probe::outcome::ProbeState,
            session::{any_instant, outbox::Observation},
            wire::{AnnouncedInstance, MAX_MESSAGE_BYTES, ProbeId, Report, Seq, Summary},
        },
        proptest::prelude::*,
    };

    const SECOND: Duration = Duration::from_secs(1);
    const WELCOME: &str =
        r#"{"type":"welcome","protocol":1,"version":"1","heartbeatMs":10000,"spreadMs":5000}"#;

    struct Agent {
        session: AgentSession,
        outbox: Outbox,
        now: Instant,
    }

    fn instances(ids: &[u32]) -> Vec<AnnouncedInstance> {
        let probe = |id| {
            format!(
                r#"{{"id":{id},"name":"p{id}","type":"readiness","target":"tcp a:1","periodMs":1000,
                "timeoutMs":1000,"successThreshold":1,"failureThreshold":3}}"#
            )
        };
        let probes: Vec<String> = ids.iter().map(probe).collect();
        let text = format!(
            r#"[{{"component":"web","instance":"web-1","probes":[{}]}}]"#,
            probes.join(",")
        );
        serde_json::from_str(&text).unwrap()
    }

    impl Agent {
        fn new() -> Self {
            let now = any_instant();
            let mut outbox = Outbox::new();
            outbox.announce(instances(&[1, 2]), now).unwrap();
            Self {
                session: AgentSession::new("host".parse().unwrap(), "1.2.3", Epoch(7)),
                outbox,
                now,
            }
        }

        /// Connected, welcomed, everything told.
        fn open() -> Self {
            let mut agent = Self::new();
            agent.session.connected(agent.now);
            agent.drain();
            assert!(matches!(agent.hear(WELCOME), Some(Directive::Opened { .. })));
            agent.drain();
            agent
        }

        fn hear(&mut self, text: &str) -> Option<Directive> {
            self.session
                .received(Frame::Text(text), &mut self.outbox, self.now)
        }

        fn record(&mut self, id: u32, state: ProbeState) {
            let observation = Observation {
                state,
                flapping: false,
                error: false,
                streak: 1,
                latency: Duration::ZERO,
                reason: Reason::PASSING,
                message: String::new(),
                output: String::new(),
            };
            self.outbox.record(ProbeId(id), observation, self.now);
        }

        fn drain(&mut self) -> Vec<Transmit> {
            let mut all = Vec::new();
            while let Some(transmit) = self.session.poll(&mut self.outbox, self.now) {
                assert!(all.len() < 1_000, "polling ends");
                all.push(transmit);
            }
            all
        }

        /// What is said, decoded; pings and closes are not expected.
        fn said(&mut self) -> Vec<AgentMessage> {
            self.drain()
                .into_iter()
                .map(|transmit| match transmit {
                    Transmit::Text(text) => AgentMessage::decode(&text).unwrap(),
                    Transmit::Ping | Transmit::Close { .. } => panic!("{transmit:?}"),
                })
                .collect()
        }

        /// Moves to each deadline up to `until` after now, and collects what is written, with the time.
        fn wait(&mut self, until: Duration) -> Vec<(u64, Transmit)> {
            let start = self.now;
            let mut all = Vec::new();
            while let Some(deadline) = self.session.deadline() {
                assert!(deadline >= self.now, "a deadline in the past stays there");
                if deadline > start + until {
                    break;
                }
                self.now = deadline;
                if self.session.wants_summaries(self.now) {
                    self.outbox.summarize([]);
                }
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
    }

    fn closes_with(transmits: &[Transmit], expected: u16) -> bool {
        matches!(transmits, [.., Transmit::Close { code, .. }] if *code == expected)
    }

    #[test]
    fn hello_then_the_announcement_then_reports() {
        let mut agent = Agent::new();
        agent.record(1, ProbeState::Passing);
        agent.session.connected(agent.now);
        let [AgentMessage::Hello(hello)] = &agent.said()[..] else {
            panic!();
        };
        assert_eq!(
            (hello.epoch, hello.seq, hello.protocol),
            (Epoch(7), Seq(1), PROTOCOL)
        );
        assert!(!agent.session.is_open());
        agent.hear(WELCOME);
        assert!(agent.session.is_open());
        let said = agent.said();
        let [AgentMessage::Announce(announce), AgentMessage::Report(report)] = &said[..] else {
            panic!("{said:?}");
        };
        assert!(announce.last);
        assert_eq!(
            (report.transitions.len(), report.states.len(), report.complete),
            (1, 2, true)
        );
    }

    #[test]
    fn a_newer_announcement_is_sent_before_what_its_probes_found() {
        let mut agent = Agent::open();
        agent.record(1, ProbeState::Passing);
        agent.outbox.announce(instances(&[2, 3]), agent.now).unwrap();
        agent.record(3, ProbeState::Failing);
        let said = agent.said();
        let [AgentMessage::Announce(announce), AgentMessage::Report(report)] = &said[..] else {
            panic!("{said:?}");
        };
        assert_eq!(announce.revision, 2);
        assert_eq!(report.transitions.len(), 1);
        assert_eq!(report.transitions[0].probe, ProbeId(3));
    }

    #[test]
    fn an_announcement_changed_while_it_is_being_sent_starts_anew() {
        let mut agent = Agent::new();
        let many: Vec<u32> = (1..=2_000).collect();
        agent.outbox.announce(instances(&many), agent.now).unwrap();
        agent.session.connected(agent.now);
        agent.drain();
        agent.hear(WELCOME);
        let Some(Transmit::Text(first)) = agent.session.poll(&mut agent.outbox, agent.now) else {
            panic!();
        };
        assert!(first.len() <= MAX_MESSAGE_BYTES && first.contains(r#""last":false"#));
        agent.outbox.announce(instances(&[1]), agent.now).unwrap();
        let said = agent.said();
        let AgentMessage::Announce(announce) = &said[0] else {
            panic!("{said:?}");
        };
        assert_eq!((announce.revision, announce.part, announce.last), (3, 0, true));
    }

    #[test]
    fn a_welcome_that_does_not_come_ends_the_attempt() {
        let mut agent = Agent::new();
        agent.session.connected(agent.now);
        agent.drain();
        let written = agent.wait(60 * SECOND);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].0, WELCOME_DEADLINE.as_secs());
        assert!(closes_with(&[written[0].1.clone()], code::SILENT));
        let ended = agent.session.closed(&mut agent.outbox, agent.now);
        assert_eq!(ended.open_for, None);
    }

    #[test]
    fn a_half_open_connection_is_noticed_within_thirty_seconds() {
        let mut agent = Agent::open();
        let written = agent.wait(60 * SECOND);
        let kinds: Vec<(u64, bool)> = written
            .iter()
            .map(|(at, transmit)| (*at, *transmit == Transmit::Ping))
            .collect();
        assert_eq!(kinds, [(10, true), (20, true), (25, false)]);
        assert!(closes_with(&[written[2].1.clone()], code::SILENT));
        let ended = agent.session.closed(&mut agent.outbox, agent.now);
        assert_eq!(ended.spread, 5 * SECOND);
        assert!(ended.open_for.is_some());
    }

    #[test]
    fn a_connection_that_answers_stays() {
        let mut agent = Agent::open();
        for _ in 0..10 {
            let written = agent.wait(10 * SECOND);
            assert_eq!(written.len(), 1, "{written:?}");
            assert_eq!(written[0].1, Transmit::Ping);
            agent.session.received(Frame::Pong, &mut agent.outbox, agent.now);
        }
        assert!(agent.session.is_open());
    }

    #[test]
    fn summaries_go_with_the_heartbeat_that_the_server_sets() {
        let mut agent = Agent::new();
        agent.session.connected(agent.now);
        agent.drain();
        agent.hear(&WELCOME.replace("10000", "2000"));
        agent.drain();
        agent.now += 2 * SECOND;
        assert!(agent.session.wants_summaries(agent.now));
        agent.outbox.summarize([Summary {
            probe: ProbeId(1),
            streak: 2,
            runs: 2,
            failures: 0,
            errors: 0,
            min_us: 1,
            avg_us: 1,
            max_us: 1,
            p99_us: 1,
        }]);
        let written = agent.drain();
        assert!(
            matches!(&written[..], [Transmit::Ping, Transmit::Text(text)] if text.contains("summaries")),
            "{written:?}"
        );
        assert!(!agent.session.wants_summaries(agent.now));
    }

    #[test]
    fn an_absurd_heartbeat_is_bounded() {
        for (millis, expected) in [(0, MIN_HEARTBEAT), (u64::MAX, MAX_HEARTBEAT)] {
            let mut agent = Agent::new();
            agent.session.connected(agent.now);
            agent.drain();
            agent.hear(&WELCOME.replace("10000", &millis.to_string()));
            assert_eq!(agent.session.deadline(), Some(agent.now + expected));
        }
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_session_with_its_code() {
        let ack = r#"{"type":"ack","seq":99}"#;
        for (opened, frame, expected) in [
            (true, Frame::Text("{"), code::PROTOCOL),
            (true, Frame::Text("[]"), code::PROTOCOL),
            (true, Frame::Text(r#"{"type":"ack"}"#), code::PROTOCOL),
            (true, Frame::Text(ack), code::PROTOCOL),
            (true, Frame::Text(WELCOME), code::PROTOCOL),
            (true, Frame::Binary, code::UNSUPPORTED_DATA),
            (true, Frame::TooBig, code::TOO_BIG),
            (false, Frame::Text(r#"{"type":"ack","seq":0}"#), code::PROTOCOL),
            (
                false,
                Frame::Text(r#"{"type":"probe","request":1,"probe":1}"#),
                code::PROTOCOL,
            ),
            (
                false,
                Frame::Text(r#"{"type":"resync","reason":""}"#),
                code::PROTOCOL,
            ),
        ] {
            let mut agent = Agent::new();
            agent.session.connected(agent.now);
            agent.drain();
            if opened {
                agent.hear(WELCOME);
                agent.drain();
            }
            agent.session.received(frame, &mut agent.outbox, agent.now);
            let written = agent.drain();
            assert!(closes_with(&written, expected), "{frame:?}: {written:?}");
            // Nothing is read or said afterwards, and the next connection is as good as new.
            assert_eq!(agent.hear(WELCOME), None);
            assert_eq!(agent.drain(), []);
            agent.session.closed(&mut agent.outbox, agent.now);
            agent.session.connected(agent.now);
            assert_eq!(agent.said().len(), 1);
        }
    }

    #[test]
    fn versions_that_are_not_spoken_end_the_session() {
        for protocol in ["0", "2", "4294967295"] {
            let mut agent = Agent::new();
            agent.session.connected(agent.now);
            agent.drain();
            agent.hear(&WELCOME.replace(r#""protocol":1"#, &format!(r#""protocol":{protocol}"#)));
            assert!(closes_with(&agent.drain(), code::VERSION));
        }
    }

    #[test]
    fn a_message_of_unknown_type_is_answered_and_skipped() {
        let mut agent = Agent::open();
        assert_eq!(agent.hear(r#"{"type":"throttle","to":{"x":[1]}}"#), None);
        let said = agent.said();
        assert_eq!(
            said,
            [AgentMessage::Unsupported(Unsupported {
                what: "throttle".into()
            })]
        );
        assert!(agent.session.is_open());
    }

    #[test]
    fn a_goodbye_flushes_first_and_closes_then() {
        let mut agent = Agent::open();
        agent.record(1, ProbeState::Passing);
        agent.session.goodbye("stopping\u{1b}[31m");
        let written = agent.drain();
        let [
            Transmit::Text(report),
            Transmit::Text(goodbye),
            Transmit::Close { code, .. },
        ] = &written[..]
        else {
            panic!("{written:?}");
        };
        assert!(report.contains("transitions"));
        assert!(goodbye.contains("goodbye") && !goodbye.contains('\u{1b}'));
        assert_eq!(*code, code::NORMAL);
    }

    #[test]
    fn a_goodbye_before_the_welcome_closes_at_once() {
        let mut agent = Agent::new();
        agent.session.connected(agent.now);
        agent.drain();
        agent.session.goodbye("stopping");
        assert!(closes_with(&agent.drain(), code::NORMAL));
    }

    #[test]
    fn redirect_and_drain_are_obeyed_at_any_time() {
        for opened in [false, true] {
            for (text, spread) in [
                (
                    r#"{"type":"redirect","address":"b:7575","serverName":"b"}"#,
                    opened.then_some(5),
                ),
                (r#"{"type":"drain","spreadMs":9000}"#, Some(9)),
            ] {
                let mut agent = Agent::new();
                agent.session.connected(agent.now);
                agent.drain();
                if opened {
                    agent.hear(WELCOME);
                    agent.drain();
                }
                assert!(matches!(
                    agent.hear(text),
                    Some(Directive::Redirect(_) | Directive::Drained)
                ));
                assert!(closes_with(&agent.drain(), code::NORMAL));
                let ended = agent.session.closed(&mut agent.outbox, agent.now);
                assert_eq!(ended.spread, spread.unwrap_or(0) * SECOND);
            }
        }
    }

    #[test]
    fn a_run_is_made_and_answered_once() {
        let mut agent = Agent::open();
        let run = agent.hear(r#"{"type":"probe","request":5,"probe":1}"#);
        assert!(matches!(
            run,
            Some(Directive::RunProbe(RunProbe { request: 5, .. }))
        ));
        let probed = Probed {
            request: 5,
            result: Some("success".into()),
            reason: None,
            message: "m".repeat(10_000),
            output: "o".repeat(1 << 20),
            latency_us: 1,
            state: None,
        };
        agent.session.probed(probed.clone());
        agent.session.probed(probed);
        let said = agent.said();
        assert!(
            matches!(&said[..], [AgentMessage::Probed(Probed { request: 5, .. })]),
            "{said:?}"
        );
    }

    #[test]
    fn a_run_that_cannot_be_made_is_refused_with_a_reason() {
        let mut agent = Agent::open();
        assert_eq!(agent.hear(r#"{"type":"probe","request":5,"probe":9}"#), None);
        let said = agent.said();
        let [AgentMessage::Probed(probed)] = &said[..] else {
            panic!("{said:?}");
        };
        assert_eq!(probed.result, None);
        assert!(probed.message.contains("not announced"));
    }

    #[test]
    fn runs_asked_for_without_end_are_bounded() {
        let mut agent = Agent::open();
        let mut made = 0;
        for request in 0..100 {
            let text = format!(r#"{{"type":"probe","request":{request},"probe":1}}"#);
            made += usize::from(agent.hear(&text).is_some());
        }
        assert_eq!(made, MAX_RUNS);
        assert!(closes_with(&agent.drain(), code::POLICY));
    }

    #[test]
    fn a_resync_sends_every_state_and_an_ack_empties_the_ring() {
        let mut agent = Agent::open();
        agent.record(1, ProbeState::Passing);
        agent.drain();
        agent.hear(r#"{"type":"ack","seq":1}"#);
        assert_eq!(agent.outbox.unacknowledged(), 0);
        agent.hear(r#"{"type":"resync","reason":"gap"}"#);
        let said = agent.said();
        let [AgentMessage::Report(Report { states, complete, .. })] = &said[..] else {
            panic!("{said:?}");
        };
        assert_eq!((states.len(), *complete), (2, true));
    }

    #[test]
    fn new_certificates_are_handed_on() {
        let mut agent = Agent::open();
        assert_eq!(
            agent.hear(r#"{"type":"ca","pem":"PEM"}"#),
            Some(Directive::Ca("PEM".into()))
        );
    }

    /// Good messages, broken at random: cut, bytes changed, out of order.
    fn frames() -> impl Strategy<Value = Vec<String>> {
        let good = proptest::sample::select(vec![
            WELCOME.to_owned(),
            WELCOME.replace('}', r#","acked":1}"#),
            r#"{"type":"ack","seq":1}"#.to_owned(),
            r#"{"type":"resync","reason":"r"}"#.to_owned(),
            r#"{"type":"probe","request":1,"probe":1}"#.to_owned(),
            r#"{"type":"ca","pem":"PEM"}"#.to_owned(),
            r#"{"type":"unsupported","what":"x"}"#.to_owned(),
        ]);
        let frame = (good, any::<(u8, usize, u8)>()).prop_map(|(text, (how, place, byte))| {
            let mut bytes = text.into_bytes();
            let place = place % bytes.len();
            match how % 8 {
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
        fn no_sequence_of_frames_does_harm(frames in frames()) {
            let mut agent = Agent::new();
            agent.session.connected(agent.now);
            agent.record(1, ProbeState::Passing);
            for (index, frame) in frames.iter().enumerate() {
                agent.drain();
                agent.hear(frame);
                let state = if index % 2 == 0 { ProbeState::Failing } else { ProbeState::Passing };
                agent.record(2, state);
                agent.now += SECOND / 10;
            }
            // Whatever was said, the next session works.
            agent.session.closed(&mut agent.outbox, agent.now);
            agent.session.connected(agent.now);
            prop_assert_eq!(agent.said().len(), 1);
            agent.hear(WELCOME);
            let said = agent.said();
            let last = said.last().expect("announcement and report");
            prop_assert!(matches!(last, AgentMessage::Report(report) if report.complete && report.states.len() == 2));
        }
    }
}
