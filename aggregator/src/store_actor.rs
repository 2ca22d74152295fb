//! The task that owns the store: takes events in batches, answers sessions, publishes pictures, keeps its deadlines.
//!
//! Decides nothing about health. Publishes at once when quiet, and at most a hundred times a second when busy.

use {
    crate::{
        bus::{Delta, ToStore},
        clock,
        declared::{Declared, DeclaredScope},
        mailbox::Sessions,
        metrics::StoreMetrics,
    },
    healthscope_core::{
        event::{Answer, Configuration, DeclaredComponent, Event, Now, Refusal, SessionId},
        snapshot::Snapshot,
        store::{Changes, Store, StoreConfig},
    },
    healthscope_service::{admin::Condition, config_files::Loaded},
    healthscope_shared::{
        config::Component,
        session::peer::RunRefused,
        wire::{ProbeId, Probed, RunProbe, close as code},
    },
    std::{
        collections::HashMap,
        sync::Arc,
        time::{Duration, Instant},
    },
    tokio::{
        sync::{broadcast, mpsc, oneshot, watch},
        time,
    },
    tokio_util::sync::CancellationToken,
};

/// Events applied before looking at the clock again.
const BATCH: usize = 512;

/// The least time between two publications.
const INTERVAL: Duration = Duration::from_millis(10);

/// A question that only the store can answer; it sends the answer itself.
pub(crate) type Question = Box<dyn FnOnce(&Store) + Send>;

/// A run of a probe that somebody waits for.
#[derive(Debug)]
pub(crate) struct Run {
    /// Unique in this process.
    pub(crate) request: u64,
    /// Whom to ask.
    pub(crate) session: SessionId,
    /// Which probe, as that session calls it.
    pub(crate) probe: ProbeId,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Result<Probed, NoRun>>,
}

/// Why a run was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRun {
    /// The session ended meanwhile.
    #[error("the agent's connection ended")]
    Gone,
    /// Too many are waited for, of this agent or in all.
    #[error("too many runs are being made already")]
    Busy,
    /// The agent cannot make it.
    #[error(transparent)]
    Refused(RunRefused),
}

/// The task.
pub(crate) struct StoreActor {
    store: Store,
    inbox: mpsc::Receiver<ToStore>,
    sessions: Arc<Sessions>,
    declared: watch::Receiver<Loaded<Declared>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    deltas: broadcast::Sender<Arc<Delta>>,
    configured: Option<Condition>,
    metrics: StoreMetrics,
    max_pending: usize,
    /// Runs that are waited for, by request.
    pending: HashMap<u64, (SessionId, oneshot::Sender<Result<Probed, NoRun>>)>,
    /// Who waits for the next publication.
    waiting: Vec<oneshot::Sender<()>>,
    /// The revision of the configuration that was applied last.
    revision: u64,
    published: Instant,
}

/// The ends of channels that the task needs.
pub(crate) struct Ends {
    pub(crate) inbox: mpsc::Receiver<ToStore>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) declared: watch::Receiver<Loaded<Declared>>,
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) deltas: broadcast::Sender<Arc<Delta>>,
    /// Holds once the first configuration of files is applied; `None` where nothing comes from files.
    pub(crate) configured: Option<Condition>,
    pub(crate) metrics: StoreMetrics,
    /// Runs that may be waited for at once.
    pub(crate) max_pending: usize,
}

impl StoreActor {
    /// Applies the present configuration and publishes it, so that the first reader finds the scopes.
    pub(crate) fn new(config: StoreConfig, ends: Ends) -> Self {
        let now = clock::now();
        let Ends {
            inbox,
            sessions,
            declared,
            snapshot,
            deltas,
            configured,
            metrics,
            max_pending,
        } = ends;
        let mut actor = Self {
            store: Store::new(config, now),
            inbox,
            sessions,
            declared,
            snapshot,
            deltas,
            configured,
            metrics,
            max_pending,
            pending: HashMap::new(),
            waiting: Vec::new(),
            revision: 0,
            published: now.instant,
        };
        actor.configure(now);
        actor.publish(now);
        actor
    }

    /// Runs until shutdown.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut may_change = true;
        loop {
            let due = self.due();
            // All are cancel-safe.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = self.declared.changed(), if may_change => {
                    // Whoever fed us is gone: what was declared last stays.
                    may_change = changed.is_ok();
                    if may_change {
                        self.configure(clock::now());
                    }
                }
                taken = self.inbox.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    let now = clock::now();
                    self.metrics.queue.set(i64::try_from(self.inbox.len()).unwrap_or(i64::MAX));
                    for message in batch.drain(..) {
                        self.take(message, now);
                    }
                }
                () = sleep_until(due) => {}
            }
            let now = clock::now();
            if self
                .store
                .next_deadline()
                .is_some_and(|deadline| deadline <= now.instant)
            {
                let answer = self.store.apply(now, Event::Tick);
                debug_assert_eq!(answer, Answer::Done, "time has nobody to answer to");
            }
            if self.store.is_dirty() && now.instant >= self.published + INTERVAL {
                self.publish(now);
            }
            if !self.waiting.is_empty() && !self.store.is_dirty() {
                for waiting in self.waiting.drain(..) {
                    let _nobody_waits = waiting.send(());
                }
            }
        }
    }

    /// When something is to be done though nothing arrives.
    fn due(&self) -> Option<Instant> {
        let publication = self.store.is_dirty().then(|| self.published + INTERVAL);
        [publication, self.store.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn take(&mut self, message: ToStore, now: Now) {
        match message {
            ToStore::Event(event) => self.apply(event, now),
            ToStore::Ask(question) => question(&self.store),
            ToStore::Run(run) => self.start(run),
            ToStore::ForgetRun { request } => {
                if let Some((session, _)) = self.pending.remove(&request)
                    && let Some(mailbox) = self.sessions.mailbox(session)
                {
                    mailbox.forget(request);
                }
            }
            ToStore::Published(waiting) => self.waiting.push(waiting),
            ToStore::Probed(probed) => self.answer_run(probed.request, Ok(probed)),
            ToStore::RunRefused { request, refused } => {
                self.answer_run(request, Err(NoRun::Refused(refused)));
            }
        }
    }

    fn apply(&mut self, event: Event, now: Now) {
        self.metrics.events.inc();
        let session = match &event {
            Event::Opened(opened) => Some(opened.session),
            Event::Announced { session, .. }
            | Event::Reported { session, .. }
            | Event::Alive { session }
            | Event::Goodbye { session }
            | Event::Closed { session } => Some(*session),
            Event::Configured(_)
            | Event::Cluster(_)
            | Event::TakenOver
            | Event::StandsBy
            | Event::Forget { .. }
            | Event::Tick => None,
        };
        if let Event::Closed { session } = event {
            self.fail_runs_of(session);
        }
        let answer = self.store.apply(now, event);
        for gone in self.store.take_evicted() {
            self.sessions.tell(gone, |mail| {
                mail.end = Some((code::NORMAL, "the pod is gone".to_owned()));
            });
            self.fail_runs_of(gone);
        }
        let Some(session) = session else { return };
        match answer {
            Answer::Done | Answer::UnknownSession => {}
            Answer::Opened { resume, evicted } => {
                self.sessions.tell(session, |mail| mail.accept = Some(resume));
                if let Some(evicted) = evicted {
                    self.sessions.tell(evicted, |mail| mail.evict = true);
                    self.fail_runs_of(evicted);
                }
            }
            Answer::Applied { ack, resync } => self.sessions.tell(session, |mail| {
                mail.applied = mail.applied.max(Some(ack));
                mail.resync |= resync;
            }),
            Answer::Refused(refusal) => {
                tracing::warn!(%refusal, "an agent was refused");
                self.sessions.tell(session, |mail| {
                    mail.end = Some((close_code(&refusal), refusal.to_string()));
                });
            }
        }
    }

    fn start(&mut self, run: Run) {
        let Run {
            request,
            session,
            probe,
            reply,
        } = run;
        let outcome = if self.pending.len() >= self.max_pending {
            Err(NoRun::Busy)
        } else {
            match self.sessions.mailbox(session) {
                None => Err(NoRun::Gone),
                Some(mailbox) if mailbox.run(RunProbe { request, probe }) => Ok(()),
                Some(_) => Err(NoRun::Busy),
            }
        };
        match outcome {
            Ok(()) => {
                self.pending.insert(request, (session, reply));
            }
            Err(why) => {
                let _nobody_waits = reply.send(Err(why));
            }
        }
    }

    fn answer_run(&mut self, request: u64, answer: Result<Probed, NoRun>) {
        if let Some((_, reply)) = self.pending.remove(&request) {
            let _nobody_waits = reply.send(answer);
        }
    }

    fn fail_runs_of(&mut self, ended: SessionId) {
        if self.pending.is_empty() {
            return;
        }
        for (_, (_, reply)) in self.pending.extract_if(|_, (session, _)| *session == ended) {
            let _nobody_waits = reply.send(Err(NoRun::Gone));
        }
    }

    fn configure(&mut self, now: Now) {
        let loaded = self.declared.borrow_and_update().clone();
        let Loaded {
            value,
            revision,
            problems,
        } = loaded;
        if let Some(problems) = &problems {
            for problem in problems.list().iter().take(MAX_LOGGED) {
                tracing::error!(%problem, "the configuration cannot be used; the former stays in force");
            }
        }
        let count = problems.map_or(0, |problems| problems.list().len());
        self.metrics
            .configuration_problems
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        if revision == self.revision {
            return;
        }
        self.revision = revision;
        tracing::info!(
            scopes = value.scopes.len(),
            components = value.components.len(),
            revision,
            "configuration applied"
        );
        let configuration = configuration(&value);
        let answer = self.store.apply(now, Event::Configured(configuration));
        debug_assert_eq!(answer, Answer::Done, "a configuration has nobody to answer to");
        self.metrics.configurations.inc();
        if let Some(configured) = &self.configured {
            configured.ready();
        }
    }

    fn publish(&mut self, now: Now) {
        let started = Instant::now();
        let changes = self.store.publish(now);
        self.published = now.instant;
        let Changes {
            scopes,
            removed,
            components: _,
            transitions,
            snapshot,
        } = changes;
        self.metrics.publications.inc();
        self.metrics.transitions_seen(&transitions);
        self.snapshot.send_replace(Arc::clone(&snapshot));
        // Fails only when nobody reads.
        let _nobody = self
            .deltas
            .send(Arc::new(Delta::new(transitions, scopes, removed, snapshot)));
        self.metrics
            .publication_seconds
            .observe(started.elapsed().as_secs_f64());
    }
}

/// Problems of one configuration that are logged; the status lists more.
const MAX_LOGGED: usize = 10;

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

const fn close_code(refusal: &Refusal) -> u16 {
    match refusal {
        Refusal::TooManyAgents { .. } | Refusal::TooManyProbesInAll { .. } | Refusal::UnknownPod { .. } => {
            code::TRY_LATER
        }
        Refusal::TooManyInstances { .. }
        | Refusal::TooManyProbes { .. }
        | Refusal::DuplicateInstance { .. }
        | Refusal::DuplicateProbe(_) => code::POLICY,
    }
}

/// What the store needs of what was declared.
fn configuration(declared: &Declared) -> Configuration {
    let Declared { scopes, components } = declared;
    Configuration {
        scopes: scopes
            .iter()
            .map(|DeclaredScope { object, effective: _ }| Arc::new(object.clone()))
            .collect(),
        unreadable: Vec::new(),
        components: components
            .iter()
            .map(|component| {
                let Component {
                    namespace: _,
                    name: _,
                    labels,
                    depends_on,
                    probes: _,
                } = component;
                DeclaredComponent {
                    key: component.key(),
                    labels: labels.clone(),
                    depends_on: depends_on.clone(),
                }
            })
            .collect(),
    }
}
