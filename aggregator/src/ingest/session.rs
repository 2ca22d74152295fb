//! One agent's session: waits for one thing, lets [`PeerSession`] judge it, writes what comes out.
//!
//! Holds no policy: every decision is the session's or the store's. An idle session keeps a small read buffer and no
//! write buffer; a buffer that grew for an announcement is given back.

use {
    super::{
        Ingest, elsewhere,
        quota::Counted,
        socket::{Incoming, Socket},
    },
    crate::{
        bus::ToStore,
        clock,
        identity::{self, PodIdentity},
        listen::From,
        mailbox::{Leave, Mail, OpenSession},
        metrics::EndReason,
        stream::Stream,
    },
    healthscope_core::event::{Event, Opened},
    healthscope_service::build,
    healthscope_shared::{
        session::{
            Frame, Transmit, WRITE_DEADLINE,
            peer::{self, Accept, PeerSession},
        },
        wire::{Hello, close as code},
    },
    hyper::upgrade::OnUpgrade,
    hyper_util::rt::TokioIo,
    std::{
        hash::{BuildHasher, Hasher, RandomState},
        pin::Pin,
        sync::Arc,
        time::{Duration, Instant},
    },
    tokio::time::{self, Sleep},
    tokio_tungstenite::tungstenite::Message,
};

/// An event that the store took longer than this to make room for: meanwhile nobody listened to the agent.
const BUSY: Duration = Duration::from_secs(1);

/// An agent whose pod is known.
pub(super) struct Guest {
    identity: PodIdentity,
    /// When the session is over: the token that opened it must not be good for ever, should somebody have stolen it.
    until: Option<Instant>,
    _counted: Counted,
}

impl Guest {
    /// `renewal` is the time over which sessions end after their tokens.
    pub(super) fn new(identity: PodIdentity, counted: Counted, renewal: Duration) -> Self {
        let share = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        let until = identity::deadline(identity.expires) + renewal.mul_f64(share);
        Self {
            identity,
            until: Some(until),
            _counted: counted,
        }
    }
}

impl Ingest {
    /// Waits for the connection to be ours, then holds the session until it ends.
    pub(super) async fn converse(
        self: Arc<Self>,
        from: From,
        upgrade: OnUpgrade,
        open: OpenSession,
        guest: Option<Guest>,
    ) {
        let Ok(Ok(upgraded)) = time::timeout(self.timing.handshake, upgrade).await else {
            // The peer was gone before it had our answer.
            return;
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<Stream>>() else {
            unreachable!("every connection is served as a Stream");
        };
        let socket = Box::new(Socket::new(parts.io.into_inner(), &parts.read_buf));
        // Even an empty one keeps the 8 KiB that the head was read into.
        drop(parts.read_buf);
        // Boxed apart, so that what the handshake needed is not reserved for as long as the session lasts. Socket and
        // conversation have boxes of their own: a future holds what it is given twice.
        Box::pin(Conversation::new(self, from, open, guest).hold(socket)).await;
    }
}

struct Conversation {
    ingest: Arc<Ingest>,
    from: From,
    open: OpenSession,
    session: PeerSession,
    /// Fires at `armed`; earlier than needed is harmless and cheaper than setting it anew with every frame.
    timer: Pin<Box<Sleep>>,
    armed: Instant,
    said_hello: bool,
    /// Boxed, since where nobody vouches for agents there is none.
    guest: Option<Box<Guest>>,
    /// Why the session ended when the connection does.
    if_lost: EndReason,
}

impl Conversation {
    fn new(ingest: Arc<Ingest>, from: From, open: OpenSession, guest: Option<Guest>) -> Box<Self> {
        let now = clock::instant();
        Box::new(Self {
            timer: Box::pin(time::sleep_until(now.into())),
            armed: now,
            session: PeerSession::new(ingest.limits, now),
            ingest,
            from,
            open,
            said_hello: false,
            guest: guest.map(Box::new),
            if_lost: EndReason::Lost,
        })
    }

    async fn hold(mut self: Box<Self>, socket: Box<Socket>) {
        self.ingest.metrics.sessions.inc();
        let reason = self.go_on(socket).await;
        Box::pin(self.end(reason)).await;
    }

    async fn go_on(&mut self, mut socket: Box<Socket>) -> EndReason {
        loop {
            while let Some(transmit) = self.session.poll(clock::instant()) {
                let message = match transmit {
                    Transmit::Text(text) => Message::text(text),
                    Transmit::Ping => Message::Ping(bytes::Bytes::new()),
                    Transmit::Close { code, reason } => {
                        Box::pin(socket.close(code, reason)).await;
                        return EndReason::of_code(code);
                    }
                };
                match time::timeout(WRITE_DEADLINE, socket.send(message)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return self.if_lost,
                    Err(_) => return EndReason::Slow,
                }
            }
            if socket.has_grown() {
                *socket = socket.shrunk();
            }
            let now = clock::instant();
            let paused_until = self.session.readable_at().filter(|at| *at > now);
            let until = self.guest.as_ref().and_then(|guest| guest.until);
            if until.is_some_and(|until| now >= until) {
                self.send_away(now);
                continue;
            }
            self.arm(
                [self.session.deadline(), paused_until, until]
                    .into_iter()
                    .flatten()
                    .min(),
            );
            // All three are cancel-safe.
            tokio::select! {
                biased;
                mail = self.open.mailbox.take() => self.obey(mail),
                incoming = socket.next(), if paused_until.is_none() => {
                    if let Some(reason) = self.take_in(incoming).await {
                        return reason;
                    }
                }
                () = &mut self.timer => {
                    let now = clock::instant();
                    // Due again at once unless something is left to wait for; `arm` sees to it.
                    self.armed = now + time_far_away();
                    if paused_until.is_some_and(|until| now >= until) {
                        self.session.listening(now);
                    }
                }
            }
        }
    }

    /// Sees to it that the timer fires at `deadline` at the latest.
    fn arm(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && deadline < self.armed
        {
            self.armed = deadline;
            self.timer.as_mut().reset(deadline.into());
        }
    }

    /// Asks an agent whose token has ended to come back with its new one; the session does not wait for it for long.
    fn send_away(&mut self, now: Instant) {
        if let Some(guest) = &mut self.guest {
            guest.until = None;
        }
        self.if_lost = EndReason::Drained;
        self.session.drain(self.ingest.timing.spread, now);
    }

    fn obey(&mut self, mail: Mail) {
        let now = clock::instant();
        let Mail {
            accept,
            applied,
            resync,
            evict,
            end,
            trust,
            leave,
            runs,
            forgotten,
        } = mail;
        if let Some(acked) = accept {
            let timing = &self.ingest.timing;
            let accept = Accept {
                acked,
                heartbeat: timing.heartbeat,
                spread: timing.spread,
                version: build::VERSION.to_owned(),
            };
            self.session.accept(accept, now);
            // What it was given may be older than it knows: it may have been away while that changed.
            let known = self.ingest.certificates.as_ref();
            if let Some(bundle) = known.and_then(|known| known.borrow().bundle.clone()) {
                self.session.ca(bundle);
            }
        }
        if let Some(bundle) = trust {
            self.session.ca(bundle);
        }
        if let Some(seq) = applied {
            self.session.applied(seq, now);
        }
        if resync {
            self.session.resync("transitions are missing");
        }
        for run in runs {
            if let Err(refused) = self.session.run_probe(run) {
                // A full queue drops it: whoever asked then waits for the deadline.
                let _dropped = self.ingest.store.try_send(ToStore::RunRefused {
                    request: run.request,
                    refused,
                });
            }
        }
        for request in forgotten {
            self.session.forget_run(request);
        }
        if let Some(leave) = leave {
            self.leave(leave, now);
        }
        if let Some((code, reason)) = end {
            self.session.end(code, &reason, now);
        }
        if evict {
            self.session.evict(now);
        }
    }

    fn leave(&mut self, leave: Leave, now: Instant) {
        match leave {
            Leave::Back(spread) => {
                self.if_lost = EndReason::Drained;
                self.session.drain(spread, now);
            }
            Leave::To(redirect) => {
                self.if_lost = EndReason::Redirected;
                self.session.redirect(Arc::unwrap_or_clone(redirect), now);
            }
        }
    }

    async fn take_in(&mut self, incoming: Incoming) -> Option<EndReason> {
        let metrics = &self.ingest.metrics;
        let now = clock::instant();
        let event = match incoming {
            Incoming::Message(Message::Text(text)) => {
                metrics.messages.inc();
                self.session.received(Frame::Text(&text), now)
            }
            Incoming::Message(Message::Binary(_)) => self.session.received(Frame::Binary, now),
            Incoming::Message(Message::Ping(_)) => self.session.received(Frame::Ping, now),
            Incoming::Message(Message::Pong(_)) => self.session.received(Frame::Pong, now),
            // The library answers it and then says that the connection is over.
            Incoming::Message(Message::Close(_)) => None,
            Incoming::Message(Message::Frame(_)) => unreachable!("the library reads whole messages"),
            Incoming::TooBig => self.session.received(Frame::TooBig, now),
            Incoming::Malformed(reason) => {
                self.session.end(code::PROTOCOL, &reason, now);
                None
            }
            Incoming::Over => return Some(self.if_lost),
        };
        if let Some(event) = event {
            self.hand_on(event, now).await;
        }
        None
    }

    async fn hand_on(&mut self, event: peer::Event, now: Instant) {
        let session = self.open.id;
        let metrics = &self.ingest.metrics;
        let event = match event {
            peer::Event::Hello(hello) => {
                let leave = elsewhere(
                    &self.ingest.role.borrow(),
                    Duration::ZERO,
                    self.ingest.timing.spread,
                );
                if let Some(leave) = leave {
                    return self.leave(leave, now);
                }
                metrics.opened.inc();
                self.said_hello = true;
                let Hello {
                    protocol: _,
                    agent,
                    version,
                    epoch,
                    seq,
                    acked,
                } = hello;
                // Who it says that it is counts only where nobody knows better.
                let (agent, pod) = match &self.guest {
                    Some(guest) => (
                        guest.identity.agent_name(),
                        Some(Box::new(guest.identity.pod_ref())),
                    ),
                    None => (agent, None),
                };
                Event::Opened(Opened {
                    session,
                    agent,
                    epoch,
                    seq,
                    acked,
                    version,
                    peer: self.from.peer.to_string(),
                    pod,
                })
            }
            peer::Event::Announced(instances) => Event::Announced {
                session,
                instances: instances.into_iter().map(Into::into).collect(),
            },
            peer::Event::Reported(report) => {
                metrics.transitions.inc_by(report.transitions.len() as u64);
                metrics.states.inc_by(report.states.len() as u64);
                metrics.summaries.inc_by(report.summaries.len() as u64);
                Event::Reported { session, report }
            }
            peer::Event::Probed(probed) => return self.send(ToStore::Probed(probed), now).await,
            peer::Event::Goodbye { reason } => {
                tracing::debug!(peer = %self.from.peer, reason, "an agent says goodbye");
                self.if_lost = EndReason::Goodbye;
                Event::Goodbye { session }
            }
            peer::Event::Alive => Event::Alive { session },
        };
        self.send(ToStore::Event(event), now).await;
    }

    /// Waits while the store's queue is full: the agent is not read from meanwhile, and TCP holds it back.
    async fn send(&mut self, message: ToStore, since: Instant) {
        if let Err(message) = self.ingest.store.try_send(message) {
            self.ingest.store.send(message).await;
            let now = clock::instant();
            if now.saturating_duration_since(since) > BUSY {
                self.session.listening(now);
            }
        }
    }

    async fn end(self, reason: EndReason) {
        let metrics = &self.ingest.metrics;
        metrics.sessions.dec();
        metrics.ended(reason);
        let peer::Oddities {
            replayed,
            removed,
            unknown,
        } = self.session.oddities();
        metrics.replayed.inc_by(replayed.into());
        metrics.removed.inc_by(removed.into());
        metrics.unknown.inc_by(unknown.into());
        tracing::debug!(peer = %self.from.peer, ?reason, "a session ended");
        if self.said_hello {
            let session = self.open.id;
            self.ingest
                .store
                .send(ToStore::Event(Event::Closed { session }))
                .await;
        }
    }
}

/// Beyond every deadline of a session.
const fn time_far_away() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}
