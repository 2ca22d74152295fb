//! Changes as they happen, as server-sent events.
//!
//! A reader gets the present picture first, then what changes. One who is too slow gets a fresh picture instead of what
//! was missed; nothing is queued for anybody beyond the shared feed.

use {
    super::{
        Api, Params,
        scopes::ListedScope,
        sight::Sight,
        transitions::{Level, has_gap},
    },
    crate::{
        bus::Delta,
        site::{
            problem::Problem,
            viewer::{Viewer, Visible},
        },
    },
    axum::{Extension, body::Body, extract::State, response::Response},
    bytes::Bytes,
    futures_util::stream,
    healthscope_core::{
        snapshot::{ScopeEntry, Snapshot},
        view::{Totals, TransitionView},
    },
    healthscope_shared::name::{Kind, Name, Namespace, ScopeKey},
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    },
    jiff::Timestamp,
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{
        collections::BTreeSet,
        convert::Infallible,
        fmt::Write,
        sync::{Arc, OnceLock, atomic::Ordering},
        time::Duration,
    },
    tokio::{
        sync::broadcast,
        time::{self, Instant},
    },
};

/// How often everything is counted, at most, for somebody who may not see everything: unlike for all others, it is counted
/// for them alone.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// How long a reader shall wait before coming back, milliseconds.
const RETRY_MS: u32 = 1_000;

/// The event `snapshot`: where a reader stands.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotEvent {
    /// When the picture was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// Everything in numbers.
    totals: Totals,
    /// Id of the latest transition.
    last_transition: u64,
    /// Whether transitions were missed: since `Last-Event-ID`, or because the reader was too slow.
    missed: bool,
    /// The scopes, unless events of scopes are not wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<ListedScope>>,
}

/// The event `removed`: a scope is no more.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RemovedEvent {
    /// Its namespace.
    namespace: Namespace,
    /// Its name.
    name: Name,
}

/// The events `totals` and `heartbeat`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TotalsEvent {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// Everything in numbers.
    totals: Totals,
}

/// Events that can be chosen; `heartbeat` always comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kinds {
    Snapshot,
    Scope,
    Transition,
    Totals,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    namespace: Option<Namespace>,
    scope: Option<Name>,
    events: Option<String>,
    level: Option<String>,
    #[serde(rename = "lastEventId")]
    last_event_id: Option<u64>,
}

/// What a reader wants to see.
#[derive(Debug)]
struct Filter {
    namespace: Option<Namespace>,
    scope: Option<Name>,
    events: BTreeSet<Kinds>,
    levels: Vec<Level>,
}

impl Filter {
    fn new(wanted: &Wanted) -> Result<Self, Problem> {
        let all = [Kinds::Snapshot, Kinds::Scope, Kinds::Transition, Kinds::Totals];
        let events = match &wanted.events {
            None => all.into_iter().collect(),
            Some(words) => words.split(',').map(kind).collect::<Result<_, _>>()?,
        };
        let levels = match &wanted.level {
            None => vec![Level::Scope, Level::Component, Level::Probe],
            Some(words) => words.split(',').map(level).collect::<Result<_, _>>()?,
        };
        let namespace = match (&wanted.namespace, &wanted.scope) {
            (None, Some(_)) => Some(Namespace::default_namespace()),
            (namespace, _) => namespace.clone(),
        };
        Ok(Self {
            namespace,
            scope: wanted.scope.clone(),
            events,
            levels,
        })
    }

    fn wants(&self, kind: Kinds) -> bool {
        self.events.contains(&kind)
    }

    /// Whether every transition and every scope is wanted.
    fn is_everything(&self) -> bool {
        self.namespace.is_none() && self.scope.is_none() && self.levels.len() == 3
    }

    fn has_scope(&self, key: &ScopeKey) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|namespace| key.namespace == *namespace)
            && self.scope.as_ref().is_none_or(|scope| key.name == *scope)
    }

    fn has_transition(&self, transition: &TransitionView, snapshot: &Snapshot) -> bool {
        self.levels.contains(&Level::of(transition))
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| transition.namespace == *namespace)
            && self
                .scope
                .as_ref()
                .is_none_or(|scope| concerns(transition, scope, snapshot))
    }
}

/// Whether a transition is one of a scope or of one of its members.
fn concerns(transition: &TransitionView, scope: &Name, snapshot: &Snapshot) -> bool {
    let TransitionView {
        namespace,
        kind,
        name,
        ..
    } = transition;
    let key = ScopeKey {
        namespace: namespace.clone(),
        name: scope.clone(),
    };
    let is_scope = |kind: &Kind| kind.as_str() == healthscope_crd::v1beta1::KIND;
    is_scope(kind) && name == scope
        || snapshot.scopes.get(&key).is_some_and(|entry| {
            let mut members = entry.view.components.iter();
            members.any(|member| member.component.kind == *kind && member.component.name == *name)
        })
}

fn kind(word: &str) -> Result<Kinds, Problem> {
    match word {
        "snapshot" => Ok(Kinds::Snapshot),
        "scope" => Ok(Kinds::Scope),
        "transition" => Ok(Kinds::Transition),
        "totals" => Ok(Kinds::Totals),
        _ => Err(Problem::bad_request(
            "events is a list of snapshot, scope, transition and totals, separated by commas",
        )),
    }
}

fn level(word: &str) -> Result<Level, Problem> {
    match word {
        "scope" => Ok(Level::Scope),
        "component" => Ok(Level::Component),
        "probe" => Ok(Level::Probe),
        _ => Err(Problem::bad_request(
            "level is a list of scope, component and probe, separated by commas",
        )),
    }
}

pub(super) async fn open(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Params(wanted): Params<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let filter = Filter::new(&wanted)?;
    let resume = match headers.get("last-event-id") {
        Some(id) => Some(last_event_id(id)?),
        None => wanted.last_event_id,
    };
    viewer.check_namespace(filter.namespace.as_ref()).await?;
    let place = Place::take(&api)?;
    // Subscribed before the picture is taken, so that nothing falls between them.
    let deltas = api.feed.deltas.subscribe();
    let reader = Reader {
        next: Next::Picture {
            after: resume,
            missed: false,
        },
        last: 0,
        filter,
        viewer,
        counted: None,
        deltas,
        place,
        is_first: true,
    };
    let events = stream::unfold(reader, |mut reader| async move {
        let chunk = reader.read().await?;
        Some((Ok::<_, Infallible>(chunk), reader))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // Proxies that collect answers before passing them on would make a live stream useless.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(header: &HeaderValue) -> Result<u64, Problem> {
    let id = header.to_str().ok().and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| Problem::bad_request("Last-Event-ID must be the id of a transition"))
}

/// A place among the open streams; given back when dropped.
struct Place(Api);

impl Place {
    fn take(api: &Api) -> Result<Self, Problem> {
        let taken = api.streams.fetch_add(1, Ordering::Relaxed);
        let place = Self(api.clone());
        api.metrics.http.streams.inc();
        if taken >= api.limits.streams {
            return Err(Problem::unavailable(
                "too many streams are open; try again later",
                "5",
            ));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.http.streams.dec();
    }
}

/// One reader.
struct Reader {
    next: Next,
    /// Id of the last transition sent.
    last: u64,
    filter: Filter,
    viewer: Viewer,
    /// When everything was counted last for somebody who may not see everything.
    counted: Option<Instant>,
    deltas: broadcast::Receiver<Arc<Delta>>,
    place: Place,
    is_first: bool,
}

/// What is sent next.
enum Next {
    /// The picture, and what happened after a transition that the reader has seen.
    Picture { after: Option<u64>, missed: bool },
    /// What changes.
    Changes,
}

impl Reader {
    /// The next piece of the stream; `None` when it is over: at shutdown, when who the reader is must be proven again, and
    /// when nobody can say what they may see.
    async fn read(&mut self) -> Option<Bytes> {
        let api = self.place.0.clone();
        loop {
            match self.next {
                Next::Picture { after, missed } => {
                    self.next = Next::Changes;
                    let picture = self.picture(&api, after, missed).await?;
                    if !picture.is_empty() {
                        return Some(picture);
                    }
                }
                Next::Changes => {
                    let waited = tokio::select! {
                        biased;
                        () = api.shutdown.cancelled() => return None,
                        () = expiry(&self.viewer) => return None,
                        // Cancel-safe.
                        delta = self.deltas.recv() => Some(delta),
                        () = time::sleep(api.timing.stream_heartbeat) => None,
                    };
                    match waited {
                        None => {
                            let sight = api.sight(&self.viewer).await.ok()?;
                            return Some(heartbeat(&sight.snapshot));
                        }
                        Some(Ok(delta)) => {
                            let written = self.changes(&api, &delta).await?;
                            if !written.is_empty() {
                                return Some(written);
                            }
                        }
                        Some(Err(broadcast::error::RecvError::Lagged(_))) => {
                            api.metrics.http.streams_cut.inc();
                            let after = (self.last > 0).then_some(self.last);
                            self.next = Next::Picture { after, missed: true };
                        }
                        Some(Err(broadcast::error::RecvError::Closed)) => return None,
                    }
                }
            }
        }
    }

    async fn picture(&mut self, api: &Api, after: Option<u64>, missed: bool) -> Option<Bytes> {
        let (everything, transitions) = match after {
            None => (api.feed.newest(), Vec::new()),
            Some(after) => api
                .ask(move |store| (store.snapshot(), store.transitions_after(after)))
                .await
                .ok()?,
        };
        // What is missing is told by what is kept of all.
        let has_lost = match after {
            None => missed,
            Some(after) => has_gap(everything.forgotten_transition, after, everything.last_transition),
        };
        let sight = api.sight(&self.viewer).await.ok()?;
        let transitions = sight.transitions(transitions);
        // Later than `everything` only by what comes as a change as well, which a reader can bear to hear twice.
        let snapshot = if sight.is_all() {
            everything
        } else {
            Arc::clone(&sight.snapshot)
        };
        let mut out = String::new();
        if std::mem::take(&mut self.is_first) {
            let _never_fails = write!(out, "retry: {RETRY_MS}\n\n");
        }
        if self.filter.wants(Kinds::Snapshot) {
            let scopes = self.filter.wants(Kinds::Scope).then(|| {
                let scopes = snapshot
                    .scopes
                    .iter()
                    .filter(|(key, _)| self.filter.has_scope(key));
                scopes.map(|(_, entry)| ListedScope::new(&entry.view)).collect()
            });
            let event = SnapshotEvent {
                at: snapshot.at,
                totals: snapshot.totals,
                last_transition: snapshot.last_transition,
                missed: has_lost,
                scopes,
            };
            // A reader who has seen nothing yet can come back to this point.
            let id = after.is_none().then_some(snapshot.last_transition);
            write_event(&mut out, "snapshot", id, &event);
        }
        self.last = self.last.max(after.unwrap_or(snapshot.last_transition));
        if self.filter.wants(Kinds::Transition) {
            self.write_transitions(&mut out, &transitions, &snapshot);
        }
        Some(out.into())
    }

    async fn changes(&mut self, api: &Api, delta: &Delta) -> Option<Bytes> {
        let visible = self.viewer.visible(namespaces(delta)).await.ok()?;
        let is_all = visible == Visible::All;
        let is_new = delta.transitions.first().is_none_or(|first| first.id > self.last);
        if is_all && is_new && self.filter.is_everything() && self.filter.events.len() == 4 {
            self.last = delta.transitions.last().map_or(self.last, |last| last.id);
            return Some(delta.written.everything(delta));
        }
        let mut out = String::new();
        if self.filter.wants(Kinds::Transition) {
            let transitions = delta.transitions.iter();
            let transitions: Vec<_> = transitions
                .filter(|transition| visible.has(&transition.namespace))
                .cloned()
                .collect();
            self.write_transitions(&mut out, &transitions, &delta.snapshot);
        }
        if self.filter.wants(Kinds::Scope) {
            write_scopes(&mut out, delta, |key| {
                visible.has(&key.namespace) && self.filter.has_scope(key)
            });
        }
        if self.filter.wants(Kinds::Totals) {
            if is_all {
                write_totals(&mut out, "totals", &delta.snapshot);
            } else if !out.is_empty() && self.may_count() {
                let sight: Sight = api.sight(&self.viewer).await.ok()?;
                write_totals(&mut out, "totals", &sight.snapshot);
            }
        }
        Some(out.into())
    }

    /// Whether it is time to count everything for this reader; the next heartbeat does it otherwise.
    fn may_count(&mut self) -> bool {
        let now = Instant::now();
        let may = self
            .counted
            .is_none_or(|at| now.duration_since(at) >= COUNT_PERIOD);
        if may {
            self.counted = Some(now);
        }
        may
    }

    fn write_transitions(
        &mut self,
        out: &mut String,
        transitions: &[Arc<TransitionView>],
        snapshot: &Snapshot,
    ) {
        for transition in transitions {
            if transition.id > self.last && self.filter.has_transition(transition, snapshot) {
                write_event(out, "transition", Some(transition.id), transition);
            }
        }
        self.last = transitions
            .last()
            .map_or(self.last, |last| self.last.max(last.id));
    }
}

/// When who a reader is must be proven again.
async fn expiry(viewer: &Viewer) {
    match viewer.until() {
        Some(until) => time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// The namespaces that something happened in.
fn namespaces(delta: &Delta) -> BTreeSet<Namespace> {
    let Delta {
        transitions,
        changed,
        removed,
        snapshot: _,
        written: _,
    } = delta;
    let of_transitions = transitions.iter().map(|transition| &transition.namespace);
    let of_changed = changed.iter().map(|entry| &entry.view.namespace);
    let of_removed = removed.iter().map(|key| &key.namespace);
    of_transitions
        .chain(of_changed)
        .chain(of_removed)
        .cloned()
        .collect()
}

/// A publication as readers who want everything get it, written when the first of them asks.
#[derive(Debug, Default)]
pub(crate) struct Written(OnceLock<Bytes>);

impl Written {
    fn everything(&self, delta: &Delta) -> Bytes {
        let write = || {
            let mut out = String::new();
            for transition in &delta.transitions {
                write_event(&mut out, "transition", Some(transition.id), transition);
            }
            write_scopes(&mut out, delta, |_| true);
            write_totals(&mut out, "totals", &delta.snapshot);
            Bytes::from(out)
        };
        self.0.get_or_init(write).clone()
    }
}

fn write_scopes(out: &mut String, delta: &Delta, is_wanted: impl Fn(&ScopeKey) -> bool) {
    for entry in &delta.changed {
        let entry: &ScopeEntry = entry;
        let key = ScopeKey {
            namespace: entry.view.namespace.clone(),
            name: entry.view.name.clone(),
        };
        if is_wanted(&key) {
            write_event(out, "scope", None, &ListedScope::new(&entry.view));
        }
    }
    for key in delta.removed.iter().filter(|key| is_wanted(key)) {
        let event = RemovedEvent {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        write_event(out, "removed", None, &event);
    }
}

/// An event and not a comment: pages cannot see comments, and could not tell a quiet aggregator from a dead connection.
fn heartbeat(snapshot: &Snapshot) -> Bytes {
    let mut out = String::new();
    write_totals(&mut out, "heartbeat", snapshot);
    out.into()
}

fn write_totals(out: &mut String, name: &str, snapshot: &Snapshot) {
    let event = TotalsEvent {
        at: snapshot.at,
        totals: snapshot.totals,
    };
    write_event(out, name, None, &event);
}

/// JSON has no line ends of its own, so that one line of data is enough.
fn write_event(out: &mut String, name: &str, id: Option<u64>, data: &impl Serialize) {
    let data = serde_json::to_string(data).expect("views have only text keys and finite numbers");
    if let Some(id) = id {
        let _never_fails = writeln!(out, "id: {id}");
    }
    let _never_fails = write!(out, "event: {name}\ndata: {data}\n\n");
}
