//! Writes the statuses: carries out what [`Pace`] decides, and tells [`events`](super::events) what was written.
//!
//! Decides nothing. A request that is under way when the scopes are lost is dropped, so that it does not reach the server
//! if it has not yet. At shutdown transitions are still written and told of, for at most [`FLUSH`].

#[cfg(test)]
mod tests;

use {
    super::{
        events,
        request::{self, FIELD_MANAGER, METADATA, OBJECT, REQUEST, Reply},
        role::Role,
    },
    crate::{
        clock,
        metrics::writer::{EventResult, WriteResult, WriterMetrics},
    },
    futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered},
    healthscope_core::{
        pace::{Answer, Attempt, Counts, Input, Object, Output, Pace, WriterLimits, Written},
        snapshot::{ScopeEntry, Snapshot},
    },
    healthscope_crd::v1beta1::{API_VERSION, HealthScopeStatus, KIND},
    healthscope_shared::name::ScopeKey,
    http::Method,
    kube::Client,
    schemars::SchemaGenerator,
    serde::{Deserialize, Serialize},
    serde_json::{Map, Value},
    std::{
        collections::{BTreeMap, BTreeSet, HashMap},
        hash::{BuildHasher, Hasher, RandomState},
        sync::{Arc, LazyLock},
        time::{Duration, Instant},
    },
    tokio::{
        sync::{mpsc, watch},
        time,
    },
    tokio_util::sync::CancellationToken,
};

/// How long transitions are still written, and told of, after shutdown was given: then [`run`] returns.
pub(crate) const FLUSH: Duration = Duration::from_secs(2);
/// So much of [`FLUSH`] is for statuses; the rest is for the Events about the last of them.
const FLUSH_STATUSES: Duration = Duration::from_millis(1_500);
/// News of the watch taken in at once, before anything is sent.
const BATCH: usize = 256;
/// Fields of a status that we do not know are kept up to so many bytes; more is not ours to carry.
const MAX_FOREIGN_BYTES: usize = 16 * 1024;
/// At most one line of each kind is logged in this time: ten thousand scopes fail together when they fail.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the watch of the HealthScopes tells.
#[derive(Debug)]
pub(crate) enum Observed {
    /// This is how an object is now.
    Applied {
        /// What the API server has of it.
        object: Box<Object>,
        /// What its status has that this release does not know, of an older or newer one.
        foreign: Map<String, Value>,
    },
    /// An object is gone; also for those that a list does not have any more.
    Deleted {
        /// Which scope.
        key: ScopeKey,
        /// Which object of that name.
        uid: String,
    },
    /// Everything that scopes are made of has been listed once. Nothing is written before.
    Synced,
}

impl Observed {
    /// How an object is now; `None` when it is none that an API server sends.
    ///
    /// A status that cannot be read counts as none, and is replaced.
    pub(crate) fn applied(object: &Value) -> Option<Self> {
        let metadata = Metadata::deserialize(object.get("metadata")?).ok()?;
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
        } = metadata;
        let key = ScopeKey {
            namespace: namespace.parse().ok()?,
            name: name.parse().ok()?,
        };
        let status = object.get("status");
        let foreign = status.and_then(Value::as_object).map(foreign).unwrap_or_default();
        let status = status.and_then(|status| match HealthScopeStatus::deserialize(status) {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::debug!(scope = %key, %error, "the scope has a status that cannot be read; it will be replaced");
                None
            }
        });
        Some(Self::Applied {
            object: Box::new(Object {
                key,
                uid,
                resource_version,
                status,
            }),
            foreign,
        })
    }
}

/// The fields of a status that this release does not know.
fn foreign(status: &Map<String, Value>) -> Map<String, Value> {
    static KNOWN: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let schema = SchemaGenerator::default().into_root_schema_for::<HealthScopeStatus>();
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.into_iter().flat_map(Map::keys).cloned().collect()
    });
    let mut room = MAX_FOREIGN_BYTES;
    status
        .iter()
        .filter(|(field, _)| !KNOWN.contains(*field))
        .filter(|(field, value)| {
            let bytes = field.len() + value.to_string().len();
            let fits = bytes <= room;
            room -= if fits { bytes } else { 0 };
            fits
        })
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    uid: String,
    resource_version: String,
}

/// What the writer needs.
pub(crate) struct WriterEnds {
    /// A client that tries nothing again by itself: [`kube::Config::default_retry`] is off.
    pub(crate) client: Client,
    /// What the watch of the HealthScopes tells, in its order. When the queue is full the watch waits.
    pub(crate) observed: mpsc::Receiver<Observed>,
    /// What the scopes should have.
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Whether they are ours. Without a sender they are nobody's.
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) limits: WriterLimits,
    /// Who we are, in Events: the pod or host.
    pub(crate) instance: String,
    pub(crate) metrics: WriterMetrics,
}

/// Writes until shutdown, and a little longer what must not be lost. Give up the scopes only after this has returned.
pub(crate) async fn run(ends: WriterEnds, shutdown: CancellationToken) {
    let WriterEnds {
        client,
        observed,
        snapshot,
        role,
        limits,
        instance,
        metrics,
    } = ends;
    let (tell, told) = mpsc::channel(events::QUEUE);
    let events = events::Ends {
        client: client.clone(),
        written: told,
        role: role.clone(),
        instance,
        metrics: metrics.clone(),
    };
    let writer = Writer {
        client,
        pace: Pace::new(limits),
        observed: Some(observed),
        snapshot: Some(snapshot),
        role: Some(role),
        shown: Arc::default(),
        foreign: HashMap::new(),
        requests: FuturesUnordered::new(),
        events: tell,
        metrics,
        refused: Sparing::default(),
        failed: Sparing::default(),
        contested: Sparing::default(),
        warned: Sparing::default(),
    };
    // Ends when the writer lets go of its queue, or a little later.
    let events = events::run(events, shutdown.clone());
    tokio::join!(writer.run(shutdown), events);
}

/// A request that ended.
struct Ended {
    attempt: Attempt,
    key: ScopeKey,
    verb: Verb,
    reply: Reply,
    took: Duration,
}

/// What a request was for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Write,
    Read,
}

struct Writer {
    client: Client,
    pace: Pace,
    /// `None` once nobody sends any more; so with the next two.
    observed: Option<mpsc::Receiver<Observed>>,
    snapshot: Option<watch::Receiver<Arc<Snapshot>>>,
    role: Option<watch::Receiver<Role>>,
    /// The entries that `pace` knows.
    shown: Arc<BTreeMap<ScopeKey, Arc<ScopeEntry>>>,
    /// What statuses have that we do not know; of most scopes nothing.
    foreign: HashMap<ScopeKey, Map<String, Value>>,
    /// At most [`WriterLimits::in_flight`].
    requests: FuturesUnordered<BoxFuture<'static, Ended>>,
    events: mpsc::Sender<Written>,
    metrics: WriterMetrics,
    refused: Sparing,
    failed: Sparing,
    contested: Sparing,
    warned: Sparing,
}

impl Writer {
    async fn run(mut self, shutdown: CancellationToken) {
        self.take_role();
        self.take_snapshot();
        loop {
            self.carry_out();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.next() => {}
            }
        }
        // What the store said last counts, even if nobody has looked yet.
        self.take_snapshot();
        self.pace.handle(clock::instant(), Input::Draining);
        let flush = async {
            loop {
                self.carry_out();
                if self.pace.is_drained() {
                    return;
                }
                self.next().await;
            }
        };
        if time::timeout(FLUSH_STATUSES, flush).await.is_err() {
            let pending = self.pace.pending();
            tracing::warn!(
                pending,
                "statuses could not be written before the end; the next owner writes them"
            );
        }
    }

    /// Waits for one thing and takes it in. Cancel-safe: nothing is awaited after something was taken.
    async fn next(&mut self) {
        let due = self.pace.deadline(clock::instant());
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            is_open = changed(&mut self.role) => {
                if !is_open {
                    self.role = None;
                }
                self.take_role();
            }
            Some(ended) = self.requests.next() => self.ended(ended),
            count = receive(&mut self.observed, &mut batch) => {
                if count == 0 {
                    self.observed = None;
                }
                for observed in batch {
                    self.observe(observed);
                }
            }
            is_open = changed(&mut self.snapshot) => {
                if is_open {
                    self.take_snapshot();
                } else {
                    self.snapshot = None;
                }
            }
            () = sleep_until(due) => {}
        }
    }

    fn take_role(&mut self) {
        let is_owner = self
            .role
            .as_mut()
            .is_some_and(|role| *role.borrow_and_update() == Role::Owner);
        if is_owner {
            // The store began anew before the role was given; what it said while it stood by is not to be written.
            self.take_snapshot();
        }
        self.pace.handle(clock::instant(), Input::Owner(is_owner));
        if !is_owner {
            self.requests.clear();
        }
    }

    fn take_snapshot(&mut self) {
        let Some(snapshot) = &mut self.snapshot else {
            return;
        };
        let scopes = Arc::clone(&snapshot.borrow_and_update().scopes);
        let now = clock::instant();
        let shown = std::mem::replace(&mut self.shown, Arc::clone(&scopes));
        for (key, entry) in scopes.iter() {
            let is_same = shown.get(key).is_some_and(|former| Arc::ptr_eq(former, entry));
            if !is_same {
                self.pace.handle(now, Input::Desired(Arc::clone(entry)));
            }
        }
        for key in shown.keys().filter(|key| !scopes.contains_key(*key)) {
            self.pace.handle(now, Input::Withdrawn(key.clone()));
        }
    }

    fn observe(&mut self, observed: Observed) {
        let input = match observed {
            Observed::Applied { object, foreign } => {
                self.keep_foreign(&object.key, foreign);
                Input::Observed(object)
            }
            Observed::Deleted { key, uid } => {
                self.foreign.remove(&key);
                Input::Deleted { key, uid }
            }
            Observed::Synced => Input::Synced,
        };
        self.pace.handle(clock::instant(), input);
    }

    fn keep_foreign(&mut self, key: &ScopeKey, foreign: Map<String, Value>) {
        if foreign.is_empty() {
            self.foreign.remove(key);
        } else {
            self.foreign.insert(key.clone(), foreign);
        }
    }

    /// Does what `pace` says, until it says nothing more.
    fn carry_out(&mut self) {
        let now = clock::instant();
        while let Some(output) = self.pace.poll(now) {
            match output {
                Output::Write {
                    attempt,
                    key,
                    uid,
                    resource_version,
                    entry,
                } => {
                    let body = body(
                        &key,
                        &uid,
                        &resource_version,
                        &entry.status,
                        self.foreign.get(&key),
                    );
                    self.send(attempt, key, Verb::Write, body);
                }
                Output::Read { attempt, key } => self.send(attempt, key, Verb::Read, Vec::new()),
                Output::Written(written) => {
                    self.metrics.lag_seconds.observe(written.waited.as_secs_f64());
                    // Full when the API server takes no Events; statuses do not wait for them.
                    if self.events.try_send(written).is_err() {
                        self.metrics.event(EventResult::Dropped, 1);
                    }
                }
            }
        }
        let Counts {
            suppressed,
            coalesced,
            contested,
        } = self.pace.take_counts();
        self.metrics.suppressed.inc_by(suppressed);
        self.metrics.coalesced.inc_by(coalesced);
        self.metrics.contested.inc_by(contested);
        if contested > 0 && self.contested.may() {
            tracing::warn!(
                contested,
                "somebody else replaces statuses that this aggregator wrote; are two installations at work in one cluster?"
            );
        }
        let pending = i64::try_from(self.pace.pending()).unwrap_or(i64::MAX);
        self.metrics.pending.set(pending);
    }

    fn send(&mut self, attempt: Attempt, key: ScopeKey, verb: Verb, body: Vec<u8>) {
        let client = self.client.clone();
        self.requests.push(Box::pin(async move {
            let started = clock::instant();
            let ScopeKey { namespace, name } = &key;
            // Names of scopes are lower-case letters, digits, '-' and '.': nothing to escape.
            let object = format!("/apis/{API_VERSION}/namespaces/{namespace}/healthscopes/{name}");
            let reply = match verb {
                Verb::Write => {
                    let timeout = REQUEST.as_secs();
                    let uri = format!("{object}/status?fieldManager={FIELD_MANAGER}&timeout={timeout}s");
                    request::send(&client, Method::PUT, &uri, METADATA, body).await
                }
                Verb::Read => request::send(&client, Method::GET, &object, OBJECT, body).await,
            };
            Ended {
                attempt,
                key,
                verb,
                reply,
                took: clock::instant().saturating_duration_since(started),
            }
        }));
    }

    fn ended(&mut self, ended: Ended) {
        let Ended {
            attempt,
            key,
            verb,
            reply,
            took,
        } = ended;
        let answer = match reply {
            Reply::Done { body, warning } => {
                if let Some(warning) = warning.filter(|_| self.warned.may()) {
                    tracing::warn!(
                        scope = %key,
                        warning,
                        "the API server dropped part of a status; install the CustomResourceDefinitions of this release"
                    );
                }
                self.done(verb, &body)
            }
            Reply::Conflict | Reply::Exists => match verb {
                Verb::Write => Answer::Conflict,
                Verb::Read => Answer::Failed,
            },
            Reply::NotFound => Answer::NotFound,
            Reply::Busy { retry_after } => {
                if self.failed.may() {
                    tracing::warn!(
                        ?retry_after,
                        "the API server is too busy; no status is written for a while"
                    );
                }
                Answer::Busy { retry_after }
            }
            Reply::Unreachable(error) => {
                if self.failed.may() {
                    tracing::warn!(scope = %key, error, "the API server does not answer; statuses wait");
                }
                Answer::Unreachable
            }
            Reply::Failed(error) => {
                if self.failed.may() {
                    tracing::warn!(scope = %key, error, "the API server failed at a status; it is tried again");
                }
                Answer::Failed
            }
            Reply::Refused(error) => {
                if self.refused.may() {
                    tracing::error!(
                        scope = %key,
                        error,
                        "the API server refuses a status; may this ServiceAccount get healthscopes.core.oam.dev and \
                         update healthscopes/status, and are the CustomResourceDefinitions those of this release?"
                    );
                }
                Answer::Refused
            }
        };
        if verb == Verb::Write {
            self.metrics.request_seconds.observe(took.as_secs_f64());
            self.metrics.write_ended(match &answer {
                Answer::Written { .. } | Answer::Found(_) => WriteResult::Written,
                Answer::Conflict => WriteResult::Conflict,
                Answer::NotFound => WriteResult::NotFound,
                Answer::Busy { .. } => WriteResult::Busy,
                Answer::Unreachable => WriteResult::Unreachable,
                Answer::Failed => WriteResult::Failed,
                Answer::Refused => WriteResult::Refused,
            });
        } else {
            self.metrics.reads.inc();
        }
        let input = Input::Answered {
            attempt,
            answer,
            random: random(),
        };
        self.pace.handle(clock::instant(), input);
    }

    /// What a success means; an answer that is no JSON of an API server's is a failure of whatever stands between.
    fn done(&mut self, verb: Verb, body: &[u8]) -> Answer {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Answer::Failed;
        };
        match (verb, Observed::applied(&value)) {
            (Verb::Write, Some(Observed::Applied { object, .. })) => Answer::Written {
                resource_version: object.resource_version,
            },
            (Verb::Read, Some(Observed::Applied { object, foreign })) => {
                self.keep_foreign(&object.key, foreign);
                Answer::Found(object)
            }
            (_, Some(Observed::Deleted { .. } | Observed::Synced) | None) => Answer::Failed,
        }
    }
}

/// What replaces the status: metadata to find and fence the object, and the status. The server takes the rest, the spec
/// among it, from what it has.
fn body(
    key: &ScopeKey,
    uid: &str,
    resource_version: &str,
    status: &HealthScopeStatus,
    foreign: Option<&Map<String, Value>>,
) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        api_version: &'static str,
        kind: &'static str,
        metadata: Metadata<'a>,
        status: Status<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'a> {
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
        resource_version: &'a str,
    }

    #[derive(Serialize)]
    struct Status<'a> {
        #[serde(flatten)]
        ours: &'a HealthScopeStatus,
        #[serde(flatten)]
        foreign: Option<&'a Map<String, Value>>,
    }

    let ScopeKey { namespace, name } = key;
    let body = Body {
        api_version: API_VERSION,
        kind: KIND,
        metadata: Metadata {
            namespace: namespace.as_str(),
            name: name.as_str(),
            uid,
            resource_version,
        },
        status: Status {
            ours: status,
            foreign,
        },
    };
    serde_json::to_vec(&body).expect("names are text and times are in a calendar's range")
}

/// Says at most once in [`LOG_INTERVAL`] that something may be logged.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    last: Option<Instant>,
}

impl Sparing {
    pub(super) fn may(&mut self) -> bool {
        let now = clock::instant();
        let may = self.last.is_none_or(|last| now >= last + LOG_INTERVAL);
        if may {
            self.last = Some(now);
        }
        may
    }
}

/// Waits for a new value; whether there can be another. Without a receiver it waits for ever.
pub(super) async fn changed<T>(receiver: &mut Option<watch::Receiver<T>>) -> bool {
    match receiver {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn receive(receiver: &mut Option<mpsc::Receiver<Observed>>, batch: &mut Vec<Observed>) -> usize {
    match receiver {
        Some(receiver) => receiver.recv_many(batch, BATCH).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Spreads what is tried again; every hasher of the standard library has keys of its own.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
