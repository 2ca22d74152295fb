//! Watches of the Kubernetes API: HealthScopes, what they name, pods and who owns them. Everything goes to the store.
//!
//! Judges nothing. Each kind has a task of its own, so that one that is not installed or may not be read holds up no
//! other. Lists and watches, their restarts after 410, their back-off and their bookmarks are kube's.
//!
//! ```text
//! HealthScopes --> scopes --Configured--> store
//!                    '--wanted kinds--> one task a kind --Listing, Applied, Deleted, Listed--> store
//! ```

use {
    super::{
        Kubernetes,
        raw::Raw,
        role::Role,
        writer::{Observed, Sparing, random},
    },
    crate::{
        bus::{StoreSender, ToStore},
        clock,
        metrics::WatchMetrics,
    },
    futures_util::{Stream, StreamExt},
    healthscope_core::{
        event::{ClusterEvent, Configuration, Event as StoreEvent, Unavailable, Watched},
        platform::{self, DecodeOptions, HealthyWhen},
        wanted::{STANDARD, Wanted, usable, wanted},
    },
    healthscope_crd::{
        HealthScope, Unreadable,
        effective::EffectiveScope,
        v1beta1::{self, HealthScopeStatus},
        writer::{Versions, writers},
    },
    healthscope_service::{admin::Condition, tasks::Tasks},
    healthscope_shared::{
        backoff::Backoff,
        name::{Name, Namespace, ScopeKey},
        one_line,
    },
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kube::{
        Api, Client, Error as ClientError,
        api::{ApiResource, GroupVersionKind},
        discovery::{self, Scope as Reach},
        error::DiscoveryError,
        runtime::{
            WatchStreamExt, utils,
            watcher::{self, Error as WatchError, Event, watcher},
        },
    },
    serde_json::Value,
    std::{
        collections::{BTreeMap, BTreeSet, HashMap},
        pin::Pin,
        sync::Arc,
        time::{Duration, Instant as Moment},
    },
    tokio::{
        sync::{mpsc, oneshot, watch},
        time::{self, Instant},
    },
    tokio_util::sync::CancellationToken,
};

/// The API server ends each watch after so many seconds; the next one goes on where it ended.
const WATCH_SECONDS: u32 = 30;
/// A connection without a byte for so long is dead: no watch is silent for longer than [`WATCH_SECONDS`].
pub(super) const SILENCE: Duration = Duration::from_secs(40);
/// Changes of scopes are gathered for so long before everything is placed anew.
const GATHER: Duration = Duration::from_millis(20);
/// A replica that stands by gathers what the owner writes for so long.
const GATHER_STATUS: Duration = Duration::from_secs(1);
/// How often a kind that is not there, or may not be read, is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Between tries of a list or watch that fails. Short, because nobody sees what happens meanwhile; kube's own grow to a
/// minute, for which an API server that is back would seem to say nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Longest error text kept of the API server's.
const MAX_ERROR_BYTES: usize = 160;

/// What the watches need.
pub(crate) struct WatchEnds {
    pub(crate) kubernetes: Kubernetes,
    pub(crate) store: StoreSender,
    /// What the election says.
    pub(crate) role: watch::Receiver<Role>,
    /// What the writer is told: that it may write only when the store has begun anew with what is on the server.
    pub(crate) acting: watch::Sender<Role>,
    /// The writer learns what is on the server.
    pub(crate) observed: mpsc::Sender<Observed>,
    /// Holds once everything that the scopes ask for was listed or is known not to be readable.
    pub(crate) synced: Condition,
    pub(crate) metrics: WatchMetrics,
    pub(crate) tasks: Tasks,
}

/// A kind was listed, or is known not to be readable.
type Settled = Watched;

/// A HealthScope as it was found.
#[derive(Clone)]
enum Found {
    Readable(Arc<HealthScope>),
    /// An old version let something through that is no spec.
    Unreadable(Arc<Unreadable>),
}

impl Found {
    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Readable(object) => &object.metadata,
            Self::Unreadable(unreadable) => &unreadable.metadata,
        }
    }

    /// What may differ, that of the other being the newer.
    fn news(&self, other: &Self) -> News {
        if self.differs(other) {
            News::Spec
        } else if self.status() == other.status() {
            News::Nothing
        } else {
            News::Status
        }
    }

    fn status(&self) -> Option<&HealthScopeStatus> {
        match self {
            Self::Readable(object) => object.status.as_ref(),
            Self::Unreadable(unreadable) => unreadable.status.as_ref(),
        }
    }

    /// Whether anything but the status may differ.
    fn differs(&self, other: &Self) -> bool {
        let (a, b) = (self.metadata(), other.metadata());
        let same_spec = match (self, other) {
            (Self::Readable(a), Self::Readable(b)) => a.spec == b.spec,
            (Self::Unreadable(_), Self::Unreadable(_)) => true,
            (Self::Readable(_), Self::Unreadable(_)) | (Self::Unreadable(_), Self::Readable(_)) => false,
        };
        a.uid != b.uid || a.generation != b.generation || !same_spec
    }
}

/// What an event of the scopes' watch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    /// A status was written.
    Status,
    /// Scopes came, went or changed.
    Spec,
}

/// A task that follows one kind.
struct Follower {
    wanted: watch::Sender<Wanted>,
    /// Ends with the task.
    ended: oneshot::Receiver<()>,
}

/// What [`run`] knows.
struct Watches {
    ends: WatchEnds,
    /// Every HealthScope there is.
    scopes: BTreeMap<ScopeKey, Found>,
    /// What each meant when it could last be used, with the uid and the versions that its writers speak: what is
    /// watched for it, as the store keeps its last usable spec.
    usable: BTreeMap<ScopeKey, (Option<String>, EffectiveScope, Versions)>,
    /// While they are listed: those that have come.
    listing: Option<BTreeSet<ScopeKey>>,
    listed: bool,
    /// Whether the store knows what was listed.
    configured: bool,
    synced: bool,
    followers: BTreeMap<Watched, Follower>,
    /// Tasks that were told to end and may not have ended yet.
    ending: HashMap<Watched, oneshot::Receiver<()>>,
    unsettled: BTreeSet<Watched>,
    settled: mpsc::Sender<Settled>,
    /// What is wrong with the scopes themselves is said so often.
    complaints: Sparing,
    shutdown: CancellationToken,
}

/// Watches until shutdown.
pub(crate) async fn run(ends: WatchEnds, shutdown: CancellationToken) {
    // As many as there are kinds at most wait here; a follower that waits loses nothing.
    let (settled, mut settlements) = mpsc::channel(64);
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(v1beta1::GROUP, "v1beta1", v1beta1::KIND),
        "healthscopes",
    );
    let mut stream = events(&ends.kubernetes.client, &resource, None);
    let mut watches = Watches {
        ends,
        scopes: BTreeMap::new(),
        usable: BTreeMap::new(),
        listing: None,
        listed: false,
        configured: false,
        synced: false,
        followers: BTreeMap::new(),
        ending: HashMap::new(),
        unsettled: BTreeSet::new(),
        settled,
        complaints: Sparing::default(),
        shutdown: shutdown.clone(),
    };
    watches.follow_wanted();
    let mut role = watches.ends.role.clone();
    let mut is_owner = *role.borrow_and_update() == Role::Owner;
    if !is_owner {
        watches.stand_by().await;
    }
    let mut due: Option<Instant> = None;
    loop {
        // All are cancel-safe.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // Without an election any more nothing changes.
            Ok(()) = role.changed() => {
                let was_owner = is_owner;
                is_owner = *role.borrow_and_update() == Role::Owner;
                if is_owner {
                    due = None;
                    watches.take_over().await;
                } else if was_owner {
                    watches.stand_by().await;
                    due = Some(Instant::now());
                }
            }
            Some(watched) = settlements.recv() => {
                watches.unsettled.remove(&watched);
                watches.tell_when_synced().await;
            }
            event = stream.next() => {
                let Some(event) = event else { return };
                let gather = match watches.scope_event(event, &resource).await {
                    News::Spec => Some(GATHER),
                    // Whoever serves has written it.
                    News::Status if !is_owner => Some(GATHER_STATUS),
                    News::Status | News::Nothing => None,
                };
                let told_at = gather.map(|gather| Instant::now() + gather);
                due = due.into_iter().chain(told_at).min();
            }
            () = sleep_until(due) => {
                due = None;
                watches.configure().await;
            }
        }
    }
}

fn spec_if(changed: bool) -> News {
    if changed { News::Spec } else { News::Nothing }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Watches {
    /// Takes in what the watch of the scopes says.
    async fn scope_event(&mut self, event: Result<Event<Raw>, WatchError>, resource: &ApiResource) -> News {
        match event {
            Ok(Event::Init) => {
                self.listing = Some(BTreeSet::new());
                News::Nothing
            }
            Ok(Event::InitApply(raw)) => {
                let key = self.apply_scope(raw, resource).await;
                if let Some((listing, (key, _))) = self.listing.as_mut().zip(key) {
                    listing.insert(key);
                }
                News::Nothing
            }
            Ok(Event::InitDone) => {
                if let Some(listing) = self.listing.take() {
                    let gone: Vec<ScopeKey> = self
                        .scopes
                        .keys()
                        .filter(|key| !listing.contains(key))
                        .cloned()
                        .collect();
                    for key in gone {
                        self.remove_scope(&key).await;
                    }
                }
                self.listed = true;
                News::Spec
            }
            Ok(Event::Apply(raw)) => {
                let applied = self.apply_scope(raw, resource).await;
                applied.map_or(News::Nothing, |(_, news)| news)
            }
            Ok(Event::Delete(raw)) => {
                let Some(key) = scope_key(&raw.value) else {
                    return News::Nothing;
                };
                spec_if(self.remove_scope(&key).await)
            }
            Err(error) => {
                self.ends.metrics.restarts.inc();
                spec_if(self.scopes_failed(&error).await)
            }
        }
    }

    async fn scopes_failed(&mut self, error: &WatchError) -> bool {
        match api_error(error) {
            Some(404) => {
                if self.complaints.may() {
                    tracing::error!(
                        "the CustomResourceDefinition healthscopes.core.oam.dev is not installed; install it with \
                         the manifests of this release"
                    );
                }
                // Without the definition there are no objects.
                self.listed = true;
                let gone: Vec<ScopeKey> = self.scopes.keys().cloned().collect();
                for key in &gone {
                    self.remove_scope(key).await;
                }
                !gone.is_empty()
            }
            Some(403) => {
                if self.complaints.may() {
                    tracing::error!(
                        rule = rbac_rule(v1beta1::GROUP, "healthscopes", "get, list, watch"),
                        "HealthScopes may not be read; the RBAC rule is missing"
                    );
                }
                false
            }
            Some(_) | None => {
                if self.complaints.may() {
                    let error: &dyn std::error::Error = error;
                    tracing::warn!(error, "the watch of HealthScopes was interrupted");
                }
                false
            }
        }
    }

    /// The key of the scope, and what differs from before.
    async fn apply_scope(&mut self, raw: Raw, resource: &ApiResource) -> Option<(ScopeKey, News)> {
        let key = scope_key(&raw.value)?;
        let value = raw.into_value(resource);
        if let Some(observed) = Observed::applied(&value) {
            self.observe(observed).await;
        }
        let object = match healthscope_crd::read(value) {
            Ok(object) => Found::Readable(Arc::new(object)),
            Err(unreadable) => {
                tracing::warn!(scope = %key, error = %unreadable.error, "the spec of a HealthScope cannot be read");
                Found::Unreadable(Arc::new(*unreadable))
            }
        };
        let former = self.scopes.get(&key);
        let news = former.map_or(News::Spec, |former| former.news(&object));
        // Also when the status alone is new: it is what a replica that takes over begins with.
        self.scopes.insert(key.clone(), object);
        Some((key, news))
    }

    async fn remove_scope(&mut self, key: &ScopeKey) -> bool {
        let Some(found) = self.scopes.remove(key) else {
            return false;
        };
        let uid = found.metadata().uid.clone().unwrap_or_default();
        self.usable.remove(key);
        let key = key.clone();
        self.observe(Observed::Deleted { key, uid }).await;
        true
    }

    async fn observe(&self, observed: Observed) {
        // Nobody listens once shutdown is given.
        let _shutdown = self.ends.observed.send(observed).await;
    }

    /// Another replica serves, or none yet.
    async fn stand_by(&mut self) {
        self.ends.store.send(ToStore::Event(StoreEvent::StandsBy)).await;
    }

    /// This replica serves from now on: the store begins anew with what is on the server, and then it may be written.
    async fn take_over(&mut self) {
        self.ends.store.send(ToStore::Event(StoreEvent::TakenOver)).await;
        if self.listed {
            self.configure().await;
        }
        self.ends.store.published().await;
        let WatchEnds { role, acting, .. } = &self.ends;
        acting.send_if_modified(|acting| {
            // Whoever takes the role away tells the writer after this.
            let is_owner = *role.borrow() == Role::Owner;
            if is_owner {
                *acting = Role::Owner;
            }
            is_owner
        });
    }

    /// Tells the store of the scopes, and follows the kinds that they name.
    async fn configure(&mut self) {
        self.follow_wanted();
        let mut configuration = Configuration::default();
        for found in self.scopes.values() {
            match found {
                Found::Readable(object) => configuration.scopes.push(Arc::clone(object)),
                Found::Unreadable(unreadable) => configuration.unreadable.push(Arc::clone(unreadable)),
            }
        }
        tracing::debug!(scopes = configuration.scopes.len(), "scopes changed");
        self.ends
            .store
            .send(ToStore::Event(StoreEvent::Configured(configuration)))
            .await;
        self.configured = self.listed;
        self.tell_when_synced().await;
    }

    async fn tell_when_synced(&mut self) {
        if !self.synced && self.configured && self.unsettled.is_empty() {
            self.synced = true;
            // What is published before says nothing of what has just been listed.
            self.ends.store.published().await;
            self.ends.synced.ready();
            self.observe(Observed::Synced).await;
        }
    }

    /// Starts what is wanted and not followed, ends what is followed and not wanted, tells the others of their rules.
    fn follow_wanted(&mut self) {
        for (key, found) in &self.scopes {
            let uid = found.metadata().uid.clone();
            let last = self.usable.get(key);
            let same_object = last.is_some_and(|(former, ..)| *former == uid);
            match found {
                Found::Readable(object) => {
                    if let Ok(scope) = usable(object) {
                        let managed = object.metadata.managed_fields.as_deref();
                        let speaks = writers(managed.unwrap_or_default());
                        self.usable.insert(key.clone(), (uid, scope, speaks));
                    } else if !same_object {
                        self.usable.remove(key);
                    }
                }
                Found::Unreadable(_) if same_object => {}
                Found::Unreadable(_) => {
                    self.usable.remove(key);
                }
            }
        }
        let mut wanted = wanted(self.usable.values().map(|(_, scope, speaks)| (scope, *speaks)));
        let unwanted: Vec<Watched> = self
            .followers
            .keys()
            .filter(|watched| !wanted.contains_key(watched))
            .cloned()
            .collect();
        for watched in unwanted {
            if let Some(follower) = self.followers.remove(&watched) {
                tracing::debug!(kind = %watched.kind, "no scope names this kind any more");
                self.unsettled.remove(&watched);
                // The task ends because nobody tells it of its rules any more.
                self.ending.insert(watched, follower.ended);
            }
        }
        for (watched, follower) in &self.followers {
            if let Some(new) = wanted.remove(watched) {
                follower.wanted.send_if_modified(|former| {
                    let differs = *former != new;
                    *former = new;
                    differs
                });
            }
        }
        for (watched, new) in wanted {
            self.follow(watched, new);
        }
    }

    fn follow(&mut self, watched: Watched, wanted: Wanted) {
        tracing::debug!(kind = %watched.kind, api_versions = ?wanted.api_versions, "following a kind");
        let (sender, receiver) = watch::channel(wanted);
        let (alive, ended) = oneshot::channel();
        let follow = Follow {
            client: self.ends.kubernetes.client.clone(),
            store: self.ends.store.clone(),
            metrics: self.ends.metrics.clone(),
            settled: self.settled.clone(),
            watched: watched.clone(),
        };
        let previous = self.ending.remove(&watched);
        let shutdown = self.shutdown.clone();
        self.ends.tasks.spawn("watch", async move {
            if let Some(previous) = previous {
                let _it_ended = previous.await;
            }
            follow.run(receiver, shutdown).await;
            drop(alive);
        });
        self.unsettled.insert(watched.clone());
        self.followers.insert(
            watched,
            Follower {
                wanted: sender,
                ended,
            },
        );
    }
}

/// One kind's task.
struct Follow {
    client: Client,
    store: StoreSender,
    metrics: WatchMetrics,
    settled: mpsc::Sender<Settled>,
    watched: Watched,
}

/// How the objects of a kind are read.
struct Rules {
    /// Rules that cannot be compiled make their scope Stalled; here they count as none.
    compiled: HashMap<(Namespace, Name), HealthyWhen>,
    keep_status: bool,
}

impl Rules {
    fn new(wanted: &Wanted) -> Self {
        let compiled = wanted
            .rules
            .iter()
            .filter_map(|(key, rule)| Some((key.clone(), HealthyWhen::compile(rule).ok()?)));
        Self {
            compiled: compiled.collect(),
            keep_status: wanted.keep_status,
        }
    }

    fn options(&self, object: &Value) -> DecodeOptions<'_> {
        let rule = if self.compiled.is_empty() {
            None
        } else {
            let key = scope_key(object).map(|ScopeKey { namespace, name }| (namespace, name));
            key.and_then(|key| self.compiled.get(&key))
        };
        DecodeOptions {
            rule,
            keep_status: self.keep_status,
        }
    }
}

/// Why a kind is looked for anew.
enum Lost {
    /// It is not served, or not any more.
    Gone,
    /// It may not be read. A watch that is allowed again would go on without a list, so that nobody would be told.
    Forbidden(Unavailable),
}

impl Follow {
    async fn run(self, mut wanted: watch::Receiver<Wanted>, shutdown: CancellationToken) {
        loop {
            let now = wanted.borrow_and_update().clone();
            let rules = Rules::new(&now);
            // What is cancelled is begun anew with a list, so nothing is lost.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() {
                    break;
                },
                () = self.follow(&now, &rules) => {}
            }
        }
        self.tell(ClusterEvent::Unwatched(self.watched.clone())).await;
    }

    /// Finds the kind and follows its objects, for ever.
    async fn follow(&self, wanted: &Wanted, rules: &Rules) {
        loop {
            let why = match self.find(wanted).await {
                Ok(resource) => match self.follow_objects(&resource, rules).await {
                    Lost::Gone => {
                        // Told with the next look.
                        time::sleep(RETRY.0).await;
                        continue;
                    }
                    Lost::Forbidden(why) => why,
                },
                Err(why) => why,
            };
            self.tell(ClusterEvent::Unavailable(self.watched.clone(), why))
                .await;
            self.settle().await;
            time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The first of the versions that the API server knows.
    async fn find(&self, wanted: &Wanted) -> Result<ApiResource, Unavailable> {
        let mut why = Unavailable::NotInstalled;
        for api_version in &wanted.api_versions {
            match self.find_version(api_version).await {
                Ok(resource) => return Ok(resource),
                Err(Unavailable::NotInstalled) => {}
                Err(other) => why = other,
            }
        }
        Err(why)
    }

    async fn find_version(&self, api_version: &str) -> Result<ApiResource, Unavailable> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let kind = self.watched.kind.as_str();
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let standard = STANDARD
            .iter()
            .find(|(standard, name, _)| *standard == api_version && *name == kind);
        if let Some((_, _, plural)) = standard {
            return Ok(ApiResource::from_gvk_with_plural(&gvk, plural));
        }
        match discovery::pinned_kind(&self.client, &gvk).await {
            Ok((resource, capabilities)) if capabilities.scope == Reach::Namespaced => Ok(resource),
            Ok(_) => Err(Unavailable::Failing {
                error: format!(
                    "{kind} belongs to the whole cluster; members must be in the scope's namespace"
                ),
            }),
            Err(ClientError::Discovery(
                DiscoveryError::MissingKind(_)
                | DiscoveryError::MissingApiGroup(_)
                | DiscoveryError::MissingResource(_),
            )) => Err(Unavailable::NotInstalled),
            Err(ClientError::Api(status)) if status.code == 404 => Err(Unavailable::NotInstalled),
            Err(error) => Err(Unavailable::Failing {
                error: one_line(&error.to_string(), MAX_ERROR_BYTES),
            }),
        }
    }

    async fn follow_objects(&self, resource: &ApiResource, rules: &Rules) -> Lost {
        let namespace = self.watched.namespace.as_ref();
        let mut stream = events(&self.client, resource, namespace);
        let mut is_listed = false;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => self.tell(ClusterEvent::Listing(self.watched.clone())).await,
                Ok(Event::InitApply(raw) | Event::Apply(raw)) => self.applied(raw, resource, rules).await,
                Ok(Event::Delete(raw)) => self.deleted(raw, resource).await,
                Ok(Event::InitDone) => {
                    is_listed = true;
                    self.tell(ClusterEvent::Listed(self.watched.clone())).await;
                    self.settle().await;
                }
                Err(error) => {
                    self.metrics.restarts.inc();
                    match api_error(&error) {
                        Some(404) => return Lost::Gone,
                        Some(403) => {
                            let rule = rbac_rule(&resource.group, &resource.plural, "list, watch");
                            return Lost::Forbidden(Unavailable::Forbidden { rule });
                        }
                        Some(_) | None if is_listed => {
                            // What is known is believed until it can be listed again.
                            let error: &dyn std::error::Error = &error;
                            tracing::debug!(kind = resource.kind, error, "a watch was interrupted");
                        }
                        Some(_) | None => {
                            let text = one_line(&error.to_string(), MAX_ERROR_BYTES);
                            tracing::warn!(kind = resource.kind, error = text, "objects cannot be listed");
                            self.tell(ClusterEvent::Unavailable(
                                self.watched.clone(),
                                Unavailable::Failing { error: text },
                            ))
                            .await;
                            // Whatever else there is goes on without it.
                            self.settle().await;
                        }
                    }
                }
            }
        }
        Lost::Gone
    }

    async fn applied(&self, raw: Raw, resource: &ApiResource, rules: &Rules) {
        let value = raw.into_value(resource);
        match platform::decode(&value, &rules.options(&value)) {
            Ok(object) => self.tell(ClusterEvent::Applied(Box::new(object))).await,
            Err(error) => {
                self.metrics.unreadable.inc();
                let error: &dyn std::error::Error = &error;
                tracing::debug!(kind = resource.kind, error, "an object cannot be read");
            }
        }
    }

    async fn deleted(&self, raw: Raw, resource: &ApiResource) {
        if let Ok(object) = platform::decode(&raw.into_value(resource), &DecodeOptions::default()) {
            let (key, uid) = (object.key, object.uid);
            self.tell(ClusterEvent::Deleted { key, uid }).await;
        }
    }

    async fn tell(&self, event: ClusterEvent) {
        self.metrics.events.inc();
        self.store.send(ToStore::Event(StoreEvent::Cluster(event))).await;
    }

    async fn settle(&self) {
        // Nobody listens once shutdown is given.
        let _shutdown = self.settled.send(self.watched.clone()).await;
    }
}

/// Tells the writer at once when this replica does not serve any more; that it does is for [`run`] to tell.
pub(crate) async fn step_down(
    mut role: watch::Receiver<Role>,
    acting: watch::Sender<Role>,
    shutdown: CancellationToken,
) {
    // What the writer has to write last is written while the role still stands.
    while let Some(Ok(())) = shutdown.run_until_cancelled(role.changed()).await {
        let role = role.borrow_and_update().clone();
        if role != Role::Owner {
            acting.send_replace(role);
        }
    }
    shutdown.cancelled().await;
}

type Events = Pin<Box<dyn Stream<Item = Result<Event<Raw>, WatchError>> + Send>>;

fn events(client: &Client, resource: &ApiResource, namespace: Option<&Namespace>) -> Events {
    let api: Api<Raw> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace.as_str(), resource),
        None => Api::all_with(client.clone(), resource),
    };
    watcher(api, watcher::Config::default().timeout(WATCH_SECONDS))
        .backoff(Retry {
            backoff: Backoff::new(RETRY.0, RETRY.1),
            last: None,
        })
        .boxed()
}

/// How long to wait before a list or watch that failed is tried again.
///
/// What kube calls a success is no reason to begin from the shortest wait again: each list begins with one.
struct Retry {
    backoff: Backoff,
    /// When it failed last.
    last: Option<Moment>,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = clock::instant();
        let worked = self.last.is_none_or(|last| now >= last + Backoff::STEADY);
        if worked {
            self.backoff.reset();
        }
        self.last = Some(now);
        Some(self.backoff.next(random()))
    }
}

impl utils::Backoff for Retry {
    fn reset(&mut self) {}
}

/// The HTTP status that the API server answered with, if it answered.
fn api_error(error: &WatchError) -> Option<u16> {
    match error {
        WatchError::InitialListFailed(ClientError::Api(status))
        | WatchError::WatchStartFailed(ClientError::Api(status))
        | WatchError::WatchFailed(ClientError::Api(status)) => Some(status.code),
        WatchError::WatchError(status) => Some(status.code),
        WatchError::InitialListFailed(_)
        | WatchError::WatchStartFailed(_)
        | WatchError::WatchFailed(_)
        | WatchError::NoResourceVersion => None,
    }
}

fn rbac_rule(group: &str, plural: &str, verbs: &str) -> String {
    format!("{{apiGroups: [\"{group}\"], resources: [{plural}], verbs: [{verbs}]}}")
}

fn scope_key(object: &Value) -> Option<ScopeKey> {
    let metadata = object.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str);
    Some(ScopeKey {
        namespace: Namespace::new(text("namespace")?).ok()?,
        name: Name::new(text("name")?).ok()?,
    })
}
