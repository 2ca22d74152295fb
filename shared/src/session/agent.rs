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
        Frame, MAX_HEARTBEAT, MAX_RUNS, MIN_HEARTBEAT, SILENCE, Transmit, WELCOME_DEADLINE, bound_probed,
        close,
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
    /// The aggregator is about to stop. The session closes itself.
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
            Phase::Closed | Phase::Closing { .. } => None,
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
