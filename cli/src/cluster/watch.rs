//! The HealthScopes of a cluster under watch: a picture of them that follows what happens.
//!
//! The one place where the command line retries against an API server. A watch that expired (410) is listed again and
//! compared with the picture, so that nothing that happened meanwhile is lost, only its intermediate states.

use {
    super::{Cluster, error::ClusterError, object},
    crate::{client::Interest, source::Scope},
    futures_util::{FutureExt, StreamExt, stream::BoxStream},
    healthscope_shared::name::{Namespace, ScopeKey},
    kube::{
        api::DynamicObject,
        runtime::{
            WatchStreamExt,
            utils::Backoff,
            watcher::{self, Event},
        },
    },
    std::{
        collections::{BTreeMap, VecDeque},
        time::Duration,
    },
};

/// How long one watch lasts before the next, seconds. A connection that died without a word is noticed a few seconds
/// later; the next watch resumes where this one ended.
const WATCH_SECONDS: u32 = 30;
/// The pause before the next attempt: quick while somebody restarts an API server.
const PAUSE: Duration = Duration::from_millis(500);

/// Scopes under watch.
pub(crate) struct Watch {
    stream: BoxStream<'static, watcher::Result<Event<DynamicObject>>>,
    address: String,
    namespace: Option<Namespace>,
    known: BTreeMap<ScopeKey, Scope>,
    /// A list that is not complete yet.
    listing: BTreeMap<ScopeKey, Scope>,
    is_synced: bool,
    is_lost: bool,
    ready: VecDeque<Step>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Step {
    /// A scope came, changed or went.
    Changed {
        /// How it was.
        before: Option<Box<Scope>>,
        /// How it is.
        after: Option<Box<Scope>>,
    },
    /// All scopes have been listed; what differs from before was told.
    Listed,
    /// The connection ended; it is tried again.
    Lost(ClusterError),
    /// It is back.
    Back,
}

impl Cluster {
    /// Watches the scopes that are of interest; connects with the first step.
    pub(crate) fn watch(&self, interest: &Interest, labels: Option<&str>) -> Watch {
        let Interest {
            namespace,
            scope,
            only_transitions: _,
            probes: _,
        } = interest;
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
        if let Some(scope) = scope {
            config = config.fields(&format!("metadata.name={scope}"));
        }
        if let Some(labels) = labels {
            config = config.labels(labels);
        }
        let stream = watcher::watcher(self.api(namespace.as_ref()), config).backoff(Pause);
        Watch {
            stream: stream.boxed(),
            address: self.address(),
            namespace: namespace.clone(),
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            is_synced: false,
            is_lost: false,
            ready: VecDeque::new(),
        }
    }
}

impl Watch {
    /// Waits for the first list; a cluster that cannot be reached is an error here.
    pub(crate) async fn synced(&mut self) -> Result<(), ClusterError> {
        while !self.is_synced {
            if let Step::Lost(error) = self.step().await? {
                return Err(error);
            }
        }
        self.ready.clear();
        Ok(())
    }

    /// Waits until something may have changed; any number of events that are there already count as one.
    pub(crate) async fn changed(&mut self) -> Result<(), ClusterError> {
        loop {
            match self.step().await? {
                Step::Changed { .. } | Step::Listed => break,
                Step::Lost(_) | Step::Back => {}
            }
        }
        while let Some(step) = self.step().now_or_never() {
            step?;
        }
        Ok(())
    }

    /// All scopes as they are now.
    pub(crate) fn scopes(&self) -> Vec<Scope> {
        self.known.values().cloned().collect()
    }

    /// Waits for the next thing to happen. Cancel-safe: what was taken is kept.
    ///
    /// # Errors
    /// What waiting does not help against, as long as it never worked: a user who may not watch, no HealthScope
    /// installed. Later these pass: an API server that has just started may say so.
    pub(crate) async fn step(&mut self) -> Result<Step, ClusterError> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Ok(step);
            }
            match self.stream.next().await {
                Some(Ok(event)) => self.take(event)?,
                Some(Err(error)) => self.fail(&error)?,
                None => {
                    return Err(ClusterError::Unreachable {
                        address: self.address.clone(),
                        cause: "the watch has ended".to_owned(),
                    });
                }
            }
        }
    }

    fn take(&mut self, event: Event<DynamicObject>) -> Result<(), ClusterError> {
        // An attempt begins with `Init`; whether anybody answers is not known yet.
        if !matches!(event, Event::Init) && std::mem::take(&mut self.is_lost) {
            self.ready.push_back(Step::Back);
        }
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                let scope = object::scope(&object)?;
                self.listing.insert(scope.view.key(), scope);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let mut former = std::mem::replace(&mut self.known, listed);
                for (key, scope) in &self.known {
                    let before = former.remove(key);
                    // The first list is how things are, not what happened.
                    if self.is_synced && before.as_ref().map(|before| &before.view) != Some(&scope.view) {
                        self.ready.push_back(Step::Changed {
                            before: before.map(Box::new),
                            after: Some(Box::new(scope.clone())),
                        });
                    }
                }
                self.ready.extend(former.into_values().map(|gone| Step::Changed {
                    before: Some(Box::new(gone)),
                    after: None,
                }));
                self.is_synced = true;
                self.ready.push_back(Step::Listed);
            }
            Event::Apply(object) => {
                let scope = object::scope(&object)?;
                let before = self.known.insert(scope.view.key(), scope.clone());
                self.ready.push_back(Step::Changed {
                    before: before.map(Box::new),
                    after: Some(Box::new(scope)),
                });
            }
            Event::Delete(object) => {
                let gone = object::scope(&object)?;
                let before = self.known.remove(&gone.view.key()).unwrap_or(gone);
                self.ready.push_back(Step::Changed {
                    before: Some(Box::new(before)),
                    after: None,
                });
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: &watcher::Error) -> Result<(), ClusterError> {
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => ClusterError::of(error, &self.address),
            // Older than what the API server remembers: the list that follows brings it up to date.
            watcher::Error::WatchError(status) if status.code == 410 => return Ok(()),
            watcher::Error::WatchError(status) => ClusterError::of_status(status, self.address.clone()),
            watcher::Error::NoResourceVersion => {
                ClusterError::Strange("a list without a resourceVersion".to_owned())
            }
        };
        if !self.is_synced && !error.is_passing() {
            return Err(error.asking_for("watch", self.namespace.as_ref()));
        }
        if !std::mem::replace(&mut self.is_lost, true) {
            self.ready.push_back(Step::Lost(error));
        }
        Ok(())
    }
}

/// The same pause each time.
struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(PAUSE)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}
