//! The agent's connection to its aggregator: keeps one session alive, and keeps what there is to tell while there is none.
//!
//! Wait for one thing, mutate once, drain the outputs. All policy of the session is [`AgentSession`]'s and [`Outbox`]'s;
//! what is decided here is when to connect again, and where to. Never waits for the aggregator while it could take in
//! results, and never queues more than one message: what cannot be written stays in the outbox, where the newest state
//! replaces the older.

use {
    connect::{AttemptResult, ConnectError, Dial, Network, Target, WebSocket},
    endpoint::Endpoint,
    healthscope_service::{build, telemetry::chain, tls, token::Secret},
    healthscope_shared::{
        backoff::{self, Backoff},
        health::Reason,
        name::AgentName,
        session::{
            Frame, SILENCE, Transmit,
            agent::{AgentSession, Directive, Ended},
            outbox::{Observation, Outbox},
        },
        wire::{AnnouncedInstance, Epoch, ProbeId, Probed, Redirect, RunProbe, Summary, close},
    },
    link::{Closed, Happening, Incoming, Link},
    stats::{EndCause, State, Stats, Status},
    std::{
        fs,
        future::{pending, poll_fn},
        hash::{BuildHasher, Hasher, RandomState},
        io::Write,
        os::unix::fs::OpenOptionsExt,
        path::{Path, PathBuf},
        sync::Arc,
        time::{Duration, Instant},
    },
    tokio::{
        sync::{mpsc, watch},
        time,
    },
    tokio_util::sync::CancellationToken,
};

pub mod connect;
pub mod endpoint;
mod link;
pub mod stats;

/// How long writing the goodbye may take; with the wait for the peer's answer ([`link`]) it is over within a second.
const GOODBYE_DEADLINE: Duration = Duration::from_millis(600);
/// A message that cannot be written for this long: the aggregator does not read, whatever it sends.
const WRITE_DEADLINE: Duration = SILENCE;
/// Redirects followed without a session in between that lasted [`Backoff::STEADY`]; aggregators that point at each other are no aggregators.
const MAX_REDIRECTS: u32 = 4;

/// Where the aggregator is, and how both prove who they are.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its address.
    pub endpoint: Endpoint,
    /// How to speak TLS; needed when the endpoint says so, unused otherwise.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name that its certificate must have, when that is not the endpoint's host.
    pub server_name: Option<String>,
    /// How this agent proves who it is.
    pub token: Token,
    /// Where a trust bundle that the aggregator sends is kept, so that it outlives this process.
    pub ca_store: Option<PathBuf>,
    /// Whether tokens and results may cross a network in the clear.
    pub allow_plaintext: bool,
}

/// How an agent proves who it is.
#[derive(Clone, Debug)]
pub enum Token {
    /// Not at all; loopback needs none.
    None,
    /// By this token.
    Fixed(Secret),
    /// By the token in a file, read again for each connection: Kubernetes renews it every hour.
    File(PathBuf),
}

/// What the uplink is told.
#[derive(Debug)]
pub enum Input {
    /// Everything that is watched from now on.
    Announce(Vec<AnnouncedInstance>),
    /// What a run left a probe in.
    Observed {
        /// Which.
        probe: ProbeId,
        /// What it is in.
        observation: Observation,
        /// When; for a change of state, the moment of the change.
        at: Instant,
    },
    /// The answer to [`Request::Summaries`].
    Summaries(Vec<Summary>),
    /// The answer to [`Request::Run`].
    Probed(Probed),
}

/// What the uplink asks for.
#[derive(Debug)]
pub enum Request {
    /// Figures of all probes since they were asked for last. Asked for again at the next heartbeat when the queue is
    /// full.
    Summaries,
    /// A run out of turn. Answered as busy when the queue is full.
    Run(RunProbe),
}

/// The other ends of an uplink's channels.
#[derive(Debug)]
pub struct Ports {
    /// Tells it things. Bounded by its maker; it is always read, so that a full queue means that the process does not
    /// get to run.
    pub inputs: mpsc::Receiver<Input>,
    /// What it asks for. Full case: see [`Request`].
    pub requests: mpsc::Sender<Request>,
}

/// The connection to the aggregator, with everything that outlives one session.
#[derive(Debug)]
pub struct Uplink<D = Network> {
    dialer: D,
    config: Config,
    memory: Memory,
    status: watch::Sender<Status>,
    requests: mpsc::Sender<Request>,
    inputs: mpsc::Receiver<Input>,
    backoff: Backoff,
    /// Where the next connection goes instead, once.
    redirect: Option<Redirected>,
    /// Redirects since the last session that lasted.
    redirects: u32,
    /// What was logged last, to be logged again only when it changes.
    problem: Option<String>,
}

/// What outlives a connection.
#[derive(Debug)]
struct Memory {
    session: AgentSession,
    outbox: Outbox,
    /// Summaries have been asked for and have not come.
    summaries_asked: bool,
    stats: Arc<Stats>,
}

#[derive(Clone, Debug)]
struct Redirected {
    endpoint: Endpoint,
    server_name: Option<String>,
    /// Within which to go there.
    spread: Duration,
}

/// How an attempt to hold a session ended.
#[derive(Debug)]
enum End {
    /// There was none.
    NoConnection(ConnectError),
    /// It is over, with the reason for a person.
    Over {
        ended: Ended,
        cause: EndCause,
        code: Option<u16>,
        why: String,
    },
    /// The process is about to stop.
    Stopping,
}

/// A random number, uniform over all of `u64`.
///
/// From the keys that the standard library draws for its hash tables: what is drawn here spreads reconnects and tells
/// runs of a process apart, and is no secret, so that a dependency or a failing system call is not worth it.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The runtime's clock, so that tests can pause it.
fn now() -> Instant {
    time::Instant::now().into_std()
}

impl Uplink<Network> {
    /// An uplink over the network; connects to nothing before [`Uplink::run`].
    #[must_use]
    pub fn new(agent: AgentName, config: Config, ports: Ports) -> Self {
        Self::with_dialer(Network, agent, config, ports)
    }
}

impl<D: Dial> Uplink<D> {
    /// An uplink over something else than the network.
    #[must_use]
    pub fn with_dialer(dialer: D, agent: AgentName, config: Config, ports: Ports) -> Self {
        let Ports { inputs, requests } = ports;
        let (status, _) = watch::channel(Status {
            aggregator: config.endpoint.to_string(),
            state: State::Connecting,
            since: now(),
            problem: None,
        });
        Self {
            dialer,
            config,
            memory: Memory {
                session: AgentSession::new(agent, build::VERSION, Epoch(random())),
                outbox: Outbox::new(),
                summaries_asked: false,
                stats: Arc::default(),
            },
            status,
            requests,
            inputs,
            backoff: Backoff::reconnect(),
            redirect: None,
            redirects: 0,
            problem: None,
        }
    }

    /// What it counts.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.memory.stats)
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Connects, stays in session and connects again, until `shutdown`; then says goodbye, within a second.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let end = self.hold_session(&shutdown).await;
            let Some(delay) = self.after(end, shutdown.is_cancelled()) else {
                return;
            };
            if self.wait(delay, &shutdown).await.is_break() {
                return;
            }
        }
    }

    /// Connects once and stays until it is over.
    async fn hold_session(&mut self, shutdown: &CancellationToken) -> End {
        let target = self.target();
        self.enter(State::Connecting);
        let aggregator = target.endpoint.to_string();
        tracing::debug!(aggregator, "connecting");
        let link = match self.connect(target, shutdown).await {
            Some(Ok(socket)) => Link::new(socket),
            Some(Err(error)) => {
                self.memory.stats.attempted(error.kind());
                return End::NoConnection(error);
            }
            None => return End::Stopping,
        };
        self.memory.stats.attempted(AttemptResult::Connected);
        self.memory.session.connected(now());
        self.converse(link, shutdown).await
    }

    fn target(&mut self) -> Target {
        let Config {
            endpoint,
            tls,
            server_name,
            token: _,
            ca_store: _,
            allow_plaintext,
        } = &self.config;
        let (endpoint, server_name) = match self.redirect.take() {
            Some(Redirected {
                endpoint,
                server_name,
                spread: _,
            }) => (endpoint, server_name),
            None => (endpoint.clone(), server_name.clone()),
        };
        Target {
            endpoint,
            server_name,
            tls: tls.clone(),
            allow_plaintext: *allow_plaintext,
        }
    }

    /// Connects while results are taken in; `None` when it is time to stop.
    async fn connect(
        &mut self,
        target: Target,
        shutdown: &CancellationToken,
    ) -> Option<Result<WebSocket, ConnectError>> {
        let token = self.config.token.clone();
        let mut connecting = std::pin::pin!(connect::connect(&self.dialer, target, token));
        loop {
            // Cancel-safe: a queue, and a future that is kept.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                input = next(&mut self.inputs) => self.memory.take(input),
                result = &mut connecting => return Some(result),
            }
        }
    }

    /// Waits before the next attempt while results are taken in.
    async fn wait(&mut self, delay: Duration, shutdown: &CancellationToken) -> std::ops::ControlFlow<()> {
        if delay > Duration::ZERO {
            self.enter(State::Waiting);
        }
        let mut waiting = std::pin::pin!(time::sleep(delay));
        loop {
            // Cancel-safe: a queue and a timer.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return std::ops::ControlFlow::Break(()),
                () = &mut waiting => return std::ops::ControlFlow::Continue(()),
                input = next(&mut self.inputs) => self.memory.take(input),
            }
        }
    }

    /// Speaks with an aggregator until it is over.
    async fn converse(&mut self, mut link: Link, shutdown: &CancellationToken) -> End {
        // When the goodbye must be over; set when it begins.
        let mut stop_at: Option<Instant> = None;
        // Why the session is about to close itself, when the aggregator asked for it.
        let mut asked: Option<EndCause> = None;
        loop {
            // Here and not only below: an aggregator that never stops talking must not keep anything else waiting.
            while let Ok(input) = self.inputs.try_recv() {
                self.memory.take(input);
            }
            if let Some(end) = self.give_up(&link, stop_at) {
                return end;
            }
            if link.writing_since().is_none() {
                if self.memory.session.wants_summaries(now()) {
                    self.ask_for_summaries();
                }
                match self.memory.session.poll(&mut self.memory.outbox, now()) {
                    Some(Transmit::Close { code, reason }) => {
                        let cause = match (asked, stop_at) {
                            (Some(cause), _) => cause,
                            (None, Some(_)) => EndCause::Stopped,
                            (None, None) if code == close::SILENT => EndCause::Silent,
                            (None, None) => EndCause::Protocol,
                        };
                        let end = self.over(cause, None, format!("ended by this agent: {reason}"));
                        link.close(code, reason).await;
                        return end;
                    }
                    Some(transmit) => {
                        if let Err(closed) = link.write(transmit) {
                            return self.closed(link, closed).await;
                        }
                    }
                    None => {}
                }
            }
            let deadline = self.deadline(&link, stop_at);
            // Cancel-safe: a token, a poll without state of its own, a queue and a timer.
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if stop_at.is_none() => {
                    self.memory.session.goodbye("the agent is stopping");
                    stop_at = Some(now() + GOODBYE_DEADLINE);
                }
                happening = poll_fn(|context| link.poll(context)) => match happening {
                    Happening::Written => {}
                    Happening::Received(incoming) => {
                        if let Some(cause) = self.received(&incoming) {
                            asked = Some(cause);
                        }
                    }
                    Happening::Closed(closed) => return self.closed(link, closed).await,
                },
                input = next(&mut self.inputs) => self.memory.take(input),
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// When something is to be done if nothing happens.
    fn deadline(&self, link: &Link, stop_at: Option<Instant>) -> Option<Instant> {
        let next = match link.writing_since() {
            Some(since) => earlier(
                self.memory.session.silence_deadline(),
                Some(since.into_std() + WRITE_DEADLINE),
            ),
            None => self.memory.session.deadline(),
        };
        earlier(next, stop_at)
    }

    /// The end when a deadline has passed that the session cannot keep because a write is stuck.
    fn give_up(&mut self, link: &Link, stop_at: Option<Instant>) -> Option<End> {
        let now = now();
        if stop_at.is_some_and(|at| now >= at) {
            return Some(self.over(
                EndCause::Stopped,
                None,
                "the goodbye could not be written in time".to_owned(),
            ));
        }
        let since = link.writing_since()?;
        if now >= since.into_std() + WRITE_DEADLINE {
            let why = format!("the aggregator has not read for {}s", WRITE_DEADLINE.as_secs());
            return Some(self.over(EndCause::Silent, None, why));
        }
        let is_silent = self.memory.session.silence_deadline().is_some_and(|at| now >= at);
        is_silent.then(|| {
            self.over(
                EndCause::Silent,
                None,
                "nothing was heard and nothing could be written for too long".to_owned(),
            )
        })
    }

    /// Takes in a frame; why the session is to end, when that is what it says.
    fn received(&mut self, incoming: &Incoming) -> Option<EndCause> {
        let frame = match incoming {
            Incoming::Text(text) => Frame::Text(text.as_str()),
            Incoming::Binary => Frame::Binary,
            Incoming::TooBig => Frame::TooBig,
            Incoming::Ping => Frame::Ping,
            Incoming::Pong => Frame::Pong,
        };
        let directive = self
            .memory
            .session
            .received(frame, &mut self.memory.outbox, now());
        self.memory.count();
        match directive? {
            Directive::Opened { version } => {
                self.opened(version);
                None
            }
            Directive::RunProbe(run) => {
                self.ask_for_run(run);
                None
            }
            Directive::Ca(pem) => {
                self.adopt(&pem);
                None
            }
            Directive::Redirect(redirect) => {
                self.redirect = self.redirected(redirect);
                Some(EndCause::Redirected)
            }
            Directive::Drained => Some(EndCause::Drained),
        }
    }

    fn opened(&mut self, version: String) {
        self.problem = None;
        self.memory.stats.set_connected(true);
        tracing::info!(aggregator = %self.config.endpoint, version, "connected");
        self.status.send_modify(|status| status.problem = None);
        self.enter(State::Connected { version });
    }

    fn redirected(&mut self, redirect: Redirect) -> Option<Redirected> {
        let Redirect {
            address,
            server_name,
            spread_ms,
        } = redirect;
        self.redirects += 1;
        if self.redirects > MAX_REDIRECTS {
            self.complain(format!(
                "redirected {MAX_REDIRECTS} times without a session that lasted; the aggregators disagree about who serves this agent"
            ));
            return None;
        }
        match self.config.endpoint.at(&address) {
            Ok(endpoint) => {
                tracing::debug!(%endpoint, "redirected");
                Some(Redirected {
                    endpoint,
                    server_name: server_name.or_else(|| self.config.server_name.clone()),
                    spread: Duration::from_millis(spread_ms),
                })
            }
            Err(error) => {
                self.complain(format!("redirected to nowhere: {error}"));
                None
            }
        }
    }

    /// Trusts other certificates from the next connection on.
    fn adopt(&mut self, pem: &str) {
        if self.config.tls.is_none() {
            return;
        }
        match tls::client_config_from_pem(Path::new("sent by the aggregator"), pem.as_bytes()) {
            Ok(config) => self.config.tls = Some(config),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the aggregator sent certificates that cannot be trusted; the former ones stay"
                );
                return;
            }
        }
        tracing::info!("trusting the certificates that the aggregator sent");
        if let Some(path) = &self.config.ca_store
            && let Err(error) = keep(path, pem)
        {
            tracing::warn!(path = %path.display(), %error, "cannot keep the certificates: they are lost when the agent restarts");
        }
    }

    fn ask_for_summaries(&mut self) {
        if !self.memory.summaries_asked {
            self.memory.summaries_asked = self.requests.try_send(Request::Summaries).is_ok();
        }
    }

    fn ask_for_run(&mut self, run: RunProbe) {
        if self.requests.try_send(Request::Run(run)).is_err() {
            self.memory.session.probed(Probed {
                request: run.request,
                result: None,
                reason: Some(Reason::OUT_OF_RESOURCES),
                message: "the agent has too much to do".to_owned(),
                output: String::new(),
                latency_us: 0,
                state: None,
            });
        }
    }

    /// The connection has ended without us.
    async fn closed(&mut self, link: Link, closed: Closed) -> End {
        match closed {
            Closed::ByPeer { code, reason } => {
                let why = if reason.is_empty() {
                    format!("closed by the aggregator with code {code}")
                } else {
                    format!("closed by the aggregator with code {code}: {reason}")
                };
                let end = self.over(EndCause::Closed, Some(code), why);
                link.finish().await;
                end
            }
            Closed::Lost(error) => self.over(
                EndCause::Lost,
                None,
                format!("the connection broke: {}", chain(&error)),
            ),
            Closed::Broken { code, error } => {
                let why = chain(&error);
                let end = self.over(
                    EndCause::Protocol,
                    None,
                    format!("the aggregator broke the WebSocket protocol: {why}"),
                );
                link.close(code, why).await;
                end
            }
        }
    }

    fn over(&mut self, cause: EndCause, code: Option<u16>, why: String) -> End {
        let ended = self.memory.session.closed(&mut self.memory.outbox, now());
        self.memory.stats.set_connected(false);
        self.memory.count();
        End::Over {
            ended,
            cause,
            code,
            why,
        }
    }

    /// How long to wait before the next attempt; `None` when it is time to stop.
    fn after(&mut self, end: End, is_stopping: bool) -> Option<Duration> {
        let (ended, cause, code, why) = match end {
            End::Stopping => return None,
            End::NoConnection(_) if is_stopping => return None,
            End::NoConnection(error) => {
                self.complain(chain(&error));
                self.redirects = 0;
                let delay = self.backoff.next(random());
                return Some(delay.max(error.retry_after().unwrap_or_default()));
            }
            End::Over {
                ended,
                cause,
                code,
                why,
            } => (ended, cause, code, why),
        };
        self.memory.stats.ended(cause);
        if is_stopping {
            tracing::info!(why, "the session with the aggregator is over");
            return None;
        }
        let Ended { open_for, spread } = ended;
        if open_for.is_some() || spread > Duration::ZERO {
            self.backoff.worked(open_for.unwrap_or_default(), spread);
        }
        if open_for.is_some_and(|lasted| lasted >= Backoff::STEADY) {
            self.redirects = 0;
        }
        match cause {
            EndCause::Redirected => {
                if let Some(redirected) = &self.redirect {
                    return Some(backoff::within(redirected.spread, random()));
                }
                // What is wrong with the redirect has been said.
            }
            EndCause::Drained => {
                tracing::info!("the aggregator is about to stop or stands by for another; coming back later");
            }
            EndCause::Protocol | EndCause::Silent | EndCause::Lost | EndCause::Closed | EndCause::Stopped => {
                self.complain(why);
            }
        }
        self.redirects = 0;
        if code.is_some_and(|code| matches!(code, close::REPLACED | close::POLICY | close::VERSION)) {
            self.backoff.exhaust();
        }
        Some(self.backoff.next(random()))
    }

    /// Says what is wrong, once until something else is.
    fn complain(&mut self, problem: String) {
        let aggregator = &self.config.endpoint;
        if self.problem.as_ref() == Some(&problem) {
            tracing::debug!(%aggregator, problem, "still no session");
            return;
        }
        tracing::warn!(%aggregator, problem, "no session with the aggregator; checks go on and it is tried again");
        self.status
            .send_modify(|status| status.problem = Some(problem.clone()));
        self.problem = Some(problem);
    }

    fn enter(&self, state: State) {
        self.status.send_modify(|status| {
            if status.state != state {
                status.state = state;
                status.since = now();
            }
        });
    }
}

impl Memory {
    fn take(&mut self, input: Input) {
        match input {
            Input::Announce(instances) => {
                if let Err(error) = self.outbox.announce(instances, now()) {
                    tracing::error!(
                        error = chain(&error),
                        "what is watched cannot be announced; the aggregator keeps the former"
                    );
                }
            }
            Input::Observed {
                probe,
                observation,
                at,
            } => {
                self.outbox.record(probe, observation, at);
            }
            Input::Summaries(summaries) => {
                self.summaries_asked = false;
                self.outbox.summarize(summaries);
            }
            Input::Probed(probed) => self.session.probed(probed),
        }
        self.count();
    }

    fn count(&self) {
        let Self { outbox, stats, .. } = self;
        stats.set_outbox(outbox.unacknowledged(), outbox.lost(), outbox.seq().0);
    }
}

/// The next input; never when nobody is left to send one.
async fn next(inputs: &mut mpsc::Receiver<Input>) -> Input {
    match inputs.recv().await {
        Some(input) => input,
        None => pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Replaces a file's content at once or not at all.
fn keep(path: &Path, content: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _may_not_exist = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests;
