//! What holds in each namespace: its labels and annotations, its LimitRanges and ResourceQuotas, from watches.
//!
//! Kept by namespace and cut down to what is looked at. Until all three were listed once nothing is known, and after that
//! what was known stays known through every interruption. No pod's admission asks the API server for anything.
//!
//! RBAC: `list` and `watch` on namespaces, limitranges and resourcequotas.

use {
    crate::metrics::admission::AdmissionMetrics,
    futures_util::StreamExt,
    healthscope_core::admission::Why,
    healthscope_crd::key,
    k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota},
    kube::{
        Api, Client, Resource, ResourceExt,
        core::PartialObjectMeta,
        runtime::{
            WatchStreamExt,
            watcher::{self, Event, watcher},
        },
    },
    std::{
        collections::{BTreeMap, HashMap},
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::Duration,
    },
    tokio::{
        sync::{broadcast, watch},
        time::{self, Instant},
    },
    tokio_util::sync::CancellationToken,
};

/// The API server ends each watch after so many seconds; below the client's own patience with silence.
const WATCH_SECONDS: u32 = 30;
/// LimitRanges, and ResourceQuotas, of one namespace that are kept; further ones are counted and left out, and the API
/// server may then refuse a pod because of its agent, which the breaker sees.
const MAX_OBJECTS: usize = 32;
/// Namespaces kept; more than any cluster is built for. Pods of others get no agent.
const MAX_NAMESPACES: usize = 50_000;
/// Between tries to learn the cluster's version.
const VERSION_RETRY: Duration = Duration::from_secs(30);
/// How often a lasting trouble is logged.
const REPORT_PERIOD: Duration = Duration::from_secs(60);

/// What holds around a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Around {
    pub(super) labels: Arc<BTreeMap<String, String>>,
    pub(super) annotations: Arc<BTreeMap<String, String>>,
    pub(super) limit_ranges: Arc<[LimitRange]>,
    pub(super) quotas: Arc<[ResourceQuota]>,
}

/// What holds in all namespaces; clones share it.
#[derive(Clone)]
pub(crate) struct Namespaces {
    known: Arc<Mutex<Known>>,
    changes: broadcast::Sender<()>,
    version: watch::Receiver<Option<(u32, u32)>>,
}

#[derive(Default)]
struct Known {
    namespaces: HashMap<String, Around>,
    synced: [bool; 3],
}

impl Namespaces {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code that could panic runs under the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a namespace says for another try of what the breaker reduced.
    pub(crate) fn retry_injection(&self, namespace: &str) -> Option<String> {
        let known = self.lock();
        let around = known.namespaces.get(namespace)?;
        around.annotations.get(key::RETRY_INJECTION).cloned()
    }

    /// Whether everything was listed once.
    pub(crate) fn are_synced(&self) -> bool {
        self.lock().synced.iter().all(|synced| *synced)
    }

    /// What holds in one; `None` when there is no such namespace, as far as is known.
    pub(super) fn get(&self, namespace: &str) -> Result<Option<Around>, Why> {
        let known = self.lock();
        if known.synced.iter().all(|synced| *synced) {
            Ok(known.namespaces.get(namespace).cloned())
        } else {
            Err(Why::NotSynced)
        }
    }

    /// Something about namespaces themselves changed, after this call.
    pub(super) fn changes(&self) -> broadcast::Receiver<()> {
        self.changes.subscribe()
    }

    /// The cluster's version, when it is known.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        *self.version.borrow()
    }
}

/// What the task needs.
pub(crate) struct SurroundingsEnds {
    client: Client,
    namespaces: Namespaces,
    version: watch::Sender<Option<(u32, u32)>>,
    metrics: AdmissionMetrics,
}

impl SurroundingsEnds {
    /// Both ends: what follows the API server, and what is read.
    pub(crate) fn new(client: Client, metrics: AdmissionMetrics) -> (Self, Namespaces) {
        let (version, versions) = watch::channel(None);
        let namespaces = Namespaces {
            known: Arc::default(),
            // One is enough: whoever lags has news.
            changes: broadcast::channel(1).0,
            version: versions,
        };
        let ends = Self {
            client,
            namespaces: namespaces.clone(),
            version,
            metrics,
        };
        (ends, namespaces)
    }
}

/// Follows the three kinds until `shutdown`.
pub(super) async fn run(ends: SurroundingsEnds, shutdown: CancellationToken) {
    let SurroundingsEnds {
        client,
        namespaces,
        version,
        metrics,
    } = ends;
    let following = async {
        tokio::join!(
            follow_namespaces(&client, &namespaces, &metrics),
            follow::<LimitRange>(&client, &namespaces, &metrics),
            follow::<ResourceQuota>(&client, &namespaces, &metrics),
            learn_version(&client, &version),
        )
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        // Watches begin again for ever.
        _ = following => shutdown.cancelled().await,
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

async fn follow_namespaces(client: &Client, namespaces: &Namespaces, metrics: &AdmissionMetrics) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut events = Box::pin(watcher(api, config()).default_backoff());
    let mut trouble = Trouble::new("namespaces");
    let mut listed: Option<Vec<String>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = Some(Vec::new()),
            Ok(Event::InitApply(namespace)) => {
                if let Some(listed) = &mut listed {
                    listed.push(namespace.name_any());
                }
                namespaces.apply(namespace);
            }
            Ok(Event::InitDone) => {
                if let Some(listed) = listed.take() {
                    namespaces.retain(&listed);
                }
                namespaces.lock().synced[0] = true;
                trouble.is_over();
            }
            Ok(Event::Apply(namespace)) => namespaces.apply(namespace),
            Ok(Event::Delete(namespace)) => {
                namespaces.lock().namespaces.remove(&namespace.name_any());
            }
            Err(error) => trouble.tell(&error),
        }
        let count = namespaces.lock().namespaces.len();
        metrics.namespaces.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl Namespaces {
    fn apply(&self, namespace: PartialObjectMeta<Namespace>) {
        let name = namespace.name_any();
        let metadata = namespace.metadata;
        let ours = |map: Option<BTreeMap<String, String>>| {
            let mut map = map.unwrap_or_default();
            map.retain(|key, _| key.starts_with(key::PREFIX));
            Arc::new(map)
        };
        let (labels, annotations) = (ours(metadata.labels), ours(metadata.annotations));
        let mut known = self.lock();
        if known.namespaces.len() >= MAX_NAMESPACES && !known.namespaces.contains_key(&name) {
            return;
        }
        let around = known.namespaces.entry(name).or_default();
        around.labels = labels;
        around.annotations = annotations;
        drop(known);
        // Nobody may wait for it.
        let _nobody_waits = self.changes.send(());
    }

    fn retain(&self, listed: &[String]) {
        let listed: std::collections::HashSet<&str> = listed.iter().map(String::as_str).collect();
        self.lock()
            .namespaces
            .retain(|name, _| listed.contains(name.as_str()));
    }
}

/// A kind of which a namespace has some.
trait Kept: Clone + Sized {
    /// Its place among what must be synced.
    const PLACE: usize;
    const WHAT: &'static str;

    fn slot(around: &mut Around) -> &mut Arc<[Self]>;
}

impl Kept for LimitRange {
    const PLACE: usize = 1;
    const WHAT: &'static str = "limitranges";

    fn slot(around: &mut Around) -> &mut Arc<[Self]> {
        &mut around.limit_ranges
    }
}

impl Kept for ResourceQuota {
    const PLACE: usize = 2;
    const WHAT: &'static str = "resourcequotas";

    fn slot(around: &mut Around) -> &mut Arc<[Self]> {
        &mut around.quotas
    }
}

/// Objects by namespace and name.
type Objects<K> = HashMap<String, BTreeMap<String, K>>;

async fn follow<K>(client: &Client, namespaces: &Namespaces, metrics: &AdmissionMetrics)
where
    K: Kept + Resource<DynamicType = ()> + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    let mut events = Box::pin(watcher(api, config()).default_backoff());
    let mut trouble = Trouble::new(K::WHAT);
    // Kept apart from the namespaces, which may come after their objects.
    let mut objects: Objects<K> = HashMap::new();
    let mut listing: Option<Objects<K>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listing = Some(HashMap::new()),
            Ok(Event::InitApply(object)) => {
                if let Some(listing) = &mut listing {
                    insert(listing, object, metrics);
                }
            }
            Ok(Event::InitDone) => {
                if let Some(listed) = listing.take() {
                    let former = std::mem::replace(&mut objects, listed);
                    for namespace in former.keys().chain(objects.keys()) {
                        namespaces.put(namespace, objects.get(namespace));
                    }
                }
                namespaces.lock().synced[K::PLACE] = true;
                trouble.is_over();
            }
            Ok(Event::Apply(object)) => {
                if let Some(namespace) = insert(&mut objects, object, metrics) {
                    namespaces.put(&namespace, objects.get(&namespace));
                }
            }
            Ok(Event::Delete(object)) => {
                let namespace = object.namespace().unwrap_or_default();
                if let Some(of_namespace) = objects.get_mut(&namespace) {
                    of_namespace.remove(&object.name_any());
                    namespaces.put(&namespace, Some(&*of_namespace));
                    if of_namespace.is_empty() {
                        objects.remove(&namespace);
                    }
                }
            }
            Err(error) => trouble.tell(&error),
        }
    }
}

/// Takes an object in; its namespace, unless there are too many.
fn insert<K: Kept + Resource<DynamicType = ()>>(
    objects: &mut Objects<K>,
    mut object: K,
    metrics: &AdmissionMetrics,
) -> Option<String> {
    object.meta_mut().managed_fields = None;
    object.meta_mut().annotations = None;
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    if !objects.contains_key(&namespace) && objects.len() >= MAX_NAMESPACES {
        return None;
    }
    let of_namespace = objects.entry(namespace.clone()).or_default();
    if of_namespace.len() >= MAX_OBJECTS && !of_namespace.contains_key(&name) {
        metrics.unreadable_objects.inc();
        return None;
    }
    of_namespace.insert(name, object);
    Some(namespace)
}

impl Namespaces {
    fn put<K: Kept>(&self, namespace: &str, objects: Option<&BTreeMap<String, K>>) {
        let objects: Arc<[K]> = objects.into_iter().flat_map(BTreeMap::values).cloned().collect();
        let mut known = self.lock();
        if let Some(around) = known.namespaces.get_mut(namespace) {
            *K::slot(around) = objects;
        } else if !objects.is_empty() && known.namespaces.len() < MAX_NAMESPACES {
            // Its labels come in a moment; without them nothing is injected.
            *K::slot(known.namespaces.entry(namespace.to_owned()).or_default()) = objects;
        }
    }
}

async fn learn_version(client: &Client, version: &watch::Sender<Option<(u32, u32)>>) {
    loop {
        if let Ok(found) = client.apiserver_version().await {
            // Some add a plus: 1.29+.
            let number = |text: &str| text.trim_end_matches('+').parse().ok();
            version.send_replace(number(&found.major).zip(number(&found.minor)));
            return;
        }
        time::sleep(VERSION_RETRY).await;
    }
}

/// A lasting failure of a watch: told when it begins, once a period, and when it is over.
struct Trouble {
    what: &'static str,
    told: Option<Instant>,
}

impl Trouble {
    const fn new(what: &'static str) -> Self {
        Self { what, told: None }
    }

    fn tell(&mut self, error: &watcher::Error) {
        let is_due = self.told.is_none_or(|told| told.elapsed() >= REPORT_PERIOD);
        if is_due {
            self.told = Some(Instant::now());
            let error: &dyn std::error::Error = error;
            tracing::warn!(
                error,
                what = self.what,
                "a watch for the webhook was interrupted; may this ServiceAccount list and watch them?"
            );
        }
    }

    fn is_over(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(what = self.what, "watching again");
        }
    }
}
