//! The breaker's shell: asks the store who suffers, keeps the record in its ConfigMap, tells the owners.
//!
//! What is decided is [`Breaker`]'s. All replicas obey the record that is in the ConfigMap; only the one that serves
//! changes it, with the `resourceVersion` that it was computed from. A record that cannot be read or written is no reason
//! to do harm: the replica then obeys what it decides itself, and says so.
//!
//! RBAC, in our own namespace and by name: `get`, `watch`, `update` on the ConfigMap, `delete` on the canary's pod; and
//! `create`, `list` and `watch` on Events everywhere.

mod events;
mod map;
mod refusals;

use {
    crate::{
        admission::Namespaces,
        breaker::{
            map::{Found, Map},
            refusals::Refusals,
        },
        bus::{StoreSender, ToStore},
        clock,
        kubernetes::role::Role,
        metrics::breaker::BreakerMetrics,
    },
    healthscope_core::{
        breaker::{Blamed, Breaker, CANARY_POD, CONFIG_MAP, Decision, Observed, Record, Told},
        store::HarmQuestion,
    },
    healthscope_service::telemetry::chain,
    healthscope_shared::{name::Namespace, one_line},
    k8s_openapi::api::core::v1::{ConfigMap, Pod},
    kube::{
        Api, Client,
        api::{DeleteParams, Preconditions},
    },
    std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
        time::Duration,
    },
    tokio::{
        sync::{oneshot, watch},
        time::{self, Instant},
    },
    tokio_util::sync::CancellationToken,
};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long Events may take, which are a courtesy: then the next look comes first.
const TELLING: Duration = Duration::from_secs(5);
/// While there is nothing to look with: namespaces not listed, or another replica serves.
const WAIT: Duration = Duration::from_secs(1);
/// Longest error that is logged.
const MAX_PROBLEM_BYTES: usize = 400;

/// What is obeyed; `None` until the ConfigMap was looked at once.
pub(crate) type Obeyed = watch::Receiver<Option<Arc<Record>>>;

/// What the task needs.
pub(crate) struct BreakerEnds {
    pub(crate) client: Client,
    /// The namespace of the installation.
    pub(crate) home: Namespace,
    /// Who this process is, in Events.
    pub(crate) instance: String,
    pub(crate) store: StoreSender,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) namespaces: Namespaces,
    /// What pods get.
    pub(crate) blamed: Blamed,
    pub(crate) obeyed: watch::Sender<Option<Arc<Record>>>,
    pub(crate) metrics: BreakerMetrics,
}

/// Runs until `shutdown`.
pub(crate) async fn run(ends: BreakerEnds, shutdown: CancellationToken) {
    let (found, finds) = watch::channel(None);
    let api = Api::namespaced(ends.client.clone(), ends.home.as_str());
    let pods = Api::namespaced(ends.client.clone(), ends.home.as_str());
    let refusals = Refusals::default();
    let refused = refusals::follow(ends.client.clone(), refusals.clone());
    let shell = Shell {
        ends,
        maps: api.clone(),
        pods,
        found: finds,
        refusals,
        breaker: None,
        base: None,
        is_dirty: false,
        trouble: None,
        damaged: None,
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        // A request that is cut off is done or not; the next process finds out.
        ((), (), ()) = async { tokio::join!(map::follow(api, found), refused, shell.run()) } => {
            shutdown.cancelled().await;
        }
    }
}

struct Shell {
    ends: BreakerEnds,
    maps: Api<ConfigMap>,
    pods: Api<Pod>,
    found: watch::Receiver<Option<Found>>,
    refusals: Refusals,
    /// While this replica serves.
    breaker: Option<Breaker>,
    /// The ConfigMap as it was seen or written last.
    base: Option<Map>,
    /// Whether the ConfigMap has another record than the breaker.
    is_dirty: bool,
    /// What was complained of last.
    trouble: Option<String>,
    /// The version of a damaged record that was complained of.
    damaged: Option<String>,
}

impl Shell {
    async fn run(mut self) {
        let mut role = self.ends.role.clone();
        let mut due = Instant::now();
        loop {
            // Cancel-safe, all.
            tokio::select! {
                biased;
                Ok(()) = role.changed() => {}
                Ok(()) = self.found.changed() => self.take_in(),
                () = time::sleep_until(due) => {}
            }
            let is_owner = *role.borrow_and_update() == Role::Owner;
            due = self.step(is_owner).await;
        }
    }

    /// Takes in what is in the ConfigMap.
    fn take_in(&mut self) {
        let Some(found) = self.found.borrow_and_update().clone() else {
            return;
        };
        let map = match found {
            Found::There(map) => map,
            Found::Not(problem) => {
                self.base = None;
                self.complain(problem);
                self.obey_own();
                return;
            }
        };
        if self.base.as_ref().is_some_and(|base| !map.is_newer_than(base)) {
            return;
        }
        match map.record() {
            Ok(record) => {
                let changed = self
                    .breaker
                    .as_mut()
                    .filter(|breaker| *breaker.record() != record);
                if let Some(breaker) = changed {
                    tracing::info!("the breaker's record was changed by somebody else");
                    breaker.adopt(record.clone());
                }
                self.is_dirty = false;
                self.obey(&record);
            }
            Err(problem) => {
                if self.damaged.replace(map.version.clone()) != Some(map.version.clone()) {
                    tracing::warn!(
                        problem = one_line(&problem, MAX_PROBLEM_BYTES),
                        "the breaker's record is damaged and is written anew"
                    );
                    self.ends.metrics.problem_damaged.inc();
                }
                self.is_dirty = true;
                self.obey_own();
            }
        }
        self.base = Some(map);
    }

    /// Obeys what this replica knows itself.
    fn obey_own(&self) {
        let known = self.ends.obeyed.borrow().clone();
        let own = self.breaker.as_ref().map(|breaker| breaker.record().clone());
        let record = own.or_else(|| known.map(|known| (*known).clone()));
        self.obey(&record.unwrap_or_default());
    }

    fn obey(&self, record: &Record) {
        self.ends.metrics.shows(record);
        self.ends.obeyed.send_if_modified(|obeyed| {
            let is_news = obeyed.as_deref() != Some(record);
            if is_news {
                *obeyed = Some(Arc::new(record.clone()));
            }
            is_news
        });
    }

    /// Looks, if it is time to; when to come again.
    async fn step(&mut self, is_owner: bool) -> Instant {
        let obeyed = self.ends.obeyed.borrow().clone();
        let (Some(obeyed), true) = (obeyed, is_owner) else {
            self.breaker = None;
            return Instant::now() + WAIT;
        };
        if !self.ends.namespaces.are_synced() {
            // Somebody's wish for another try must not look like news.
            return Instant::now() + WAIT;
        }
        let breaker = self
            .breaker
            .get_or_insert_with(|| Breaker::new((*obeyed).clone()));
        let question = HarmQuestion {
            record: breaker.record().clone(),
            home: self.ends.home.clone(),
            blamed: self.ends.blamed.clone(),
            refusals: self.refusals.now(),
            now: clock::now().wall,
        };
        let Some(mut observed) = ask(&self.ends.store, question).await else {
            return Instant::now() + WAIT;
        };
        observed.retries = retries(&observed, breaker.record(), &self.ends.namespaces);
        let decision = breaker.look(&observed, clock::now());
        let record = breaker.record().clone();
        let Decision {
            is_changed,
            told,
            remake,
            next,
        } = decision;
        self.is_dirty |= is_changed;
        // Here at once; elsewhere as soon as it is written.
        self.obey(&record);
        if self.is_dirty {
            self.write(&record).await;
        }
        for told in &told {
            say(told);
        }
        if let Some(uid) = remake {
            self.remake(&uid).await;
        }
        if time::timeout(TELLING, events::make(&self.ends, &told))
            .await
            .is_err()
        {
            tracing::debug!("not all Events about injection could be made in time");
        }
        Instant::from_std(next)
    }

    /// Puts the record into the ConfigMap; what fails is tried again with the next look.
    async fn write(&mut self, record: &Record) {
        let Some(base) = &self.base else { return };
        let (params, map) = (map::params(), base.with(record));
        let replacing = self.maps.replace(CONFIG_MAP, &params, &map);
        let problem = match time::timeout(REQUEST, replacing).await {
            Ok(Ok(written)) => {
                self.base = Some(Map::new(written));
                self.is_dirty = false;
                if self.trouble.take().is_some() {
                    tracing::info!("the breaker's record is kept again");
                }
                return;
            }
            // The watch brings what the other wrote.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return,
            Ok(Err(error)) => map::describe("update", &error),
            Err(_) => "no answer in time to an update of the breaker's record".to_owned(),
        };
        self.ends.metrics.problem_write.inc();
        self.complain(problem);
    }

    fn complain(&mut self, problem: String) {
        if self.trouble.as_ref() != Some(&problem) {
            tracing::error!(
                problem,
                "the breaker's record cannot be kept; this replica goes by its own"
            );
            self.trouble = Some(problem);
        }
    }

    /// Deletes the canary's pod, so that its StatefulSet makes another.
    async fn remake(&self, uid: &str) {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match time::timeout(REQUEST, self.pods.delete(CANARY_POD, &params)).await {
            Ok(Ok(_)) => {
                self.ends.metrics.canaries.inc();
                tracing::info!(pod = CANARY_POD, "another canary is to show whether agents start");
            }
            // It is gone, or another already.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => {}
            Ok(Err(error)) => {
                let error = one_line(&chain(&error), MAX_PROBLEM_BYTES);
                tracing::warn!(error, pod = CANARY_POD, "the canary cannot be made anew");
            }
            Err(_) => tracing::warn!(
                pod = CANARY_POD,
                "no answer in time to the deletion of the canary"
            ),
        }
    }
}

async fn ask(store: &StoreSender, question: HarmQuestion) -> Option<Observed> {
    let (reply, answer) = oneshot::channel();
    let asking = ToStore::Ask(Box::new(move |store| {
        let _nobody_waits = reply.send(store.harm(&question));
    }));
    store.send(asking).await;
    answer.await.ok()
}

/// The wishes for another try that matter now.
fn retries(observed: &Observed, record: &Record, namespaces: &Namespaces) -> BTreeMap<String, String> {
    let tripped = record.trips.iter().filter_map(|trip| trip.namespace.as_ref());
    let suffering = observed.harms.iter().map(|harm| &harm.namespace);
    let all: BTreeSet<&String> = tripped.chain(suffering).chain([&observed.home]).collect();
    all.into_iter()
        .filter_map(|namespace| Some((namespace.clone(), namespaces.retry_injection(namespace)?)))
        .collect()
}

fn say(told: &Told) {
    let Told {
        trip,
        is_resumed,
        owner: _,
        note,
    } = told;
    let namespace = trip.namespace.as_deref().unwrap_or_default();
    let owner = trip
        .owner
        .as_ref()
        .map(|owner| format!("{}/{}", owner.kind, owner.name));
    let owner = owner.unwrap_or_default();
    let (level, cause) = (trip.level.as_str(), trip.cause.as_str());
    if *is_resumed {
        tracing::info!(level, namespace, owner, cause, note, "injection is resumed");
    } else {
        tracing::warn!(level, namespace, owner, cause, note, "injection is reduced");
    }
}
