//! Certificates of our own, in one Secret that all replicas share: reads and watches it, carries out what is decided.
//!
//! Whoever sees the need fills and renews it; of two at once the API server takes one (`resourceVersion`), and the other
//! takes up what that wrote. Everybody shows what is in the Secret. While it cannot be read, or somebody broke it, the last
//! good contents are shown, and written back.
//!
//! RBAC, in our own namespace, on the one Secret by name: `get`, `watch`, `update`. Never `create`: the Secret's absence is
//! somebody's doing.

use {
    super::{
        Home, Shown, State, ending, make,
        read::{Contents, Material, pem, read},
    },
    crate::clock,
    futures_util::StreamExt,
    healthscope_core::{
        certificate::{LEAF_MARGIN, Making, Step, decide},
        repair::Repairs,
    },
    healthscope_service::telemetry::chain,
    healthscope_shared::{backoff::Backoff, one_line},
    jiff::{SignedDuration, Timestamp},
    k8s_openapi::api::core::v1::Secret,
    kube::{
        Api,
        api::{PostParams, WatchEvent, WatchParams},
    },
    std::{
        hash::{BuildHasher, Hasher, RandomState},
        pin::pin,
        sync::Arc,
        time::Duration,
    },
    tokio::time,
    tokio_util::sync::CancellationToken,
};

/// The API server ends each watch after so many seconds; then the Secret is read again.
const WATCH_SECONDS: u32 = 30;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// Between tries that fail.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Longest wait without looking at the clock again: a machine that slept finds its timers late.
const MAX_WAIT: Duration = Duration::from_secs(3_600);
/// Between two looks at least: a watch that ends at once must not make a hot loop.
const MIN_WAIT: Duration = Duration::from_millis(200);
/// What the API server writes into `managedFields` as ours.
const FIELD_MANAGER: &str = "healthscope-certificates";
/// A certificate that cannot be written is shown by the replica that made it once this is left of the former: until then
/// somebody may still put right what keeps it from being written.
const ALONE_MARGIN: SignedDuration = SignedDuration::from_hours(24 * 10);
/// Longest problem that is logged.
const MAX_PROBLEM_BYTES: usize = 400;

/// Keeps the Secret `name` until `shutdown`.
pub(super) async fn keep(name: String, home: Home, shown: Shown, shutdown: CancellationToken) {
    let Home { client, namespace } = home;
    let mut keeper = Keeper {
        api: Api::namespaced(client, &namespace),
        names: names(&namespace),
        name,
        namespace,
        shown,
        remembered: None,
        repairs: Repairs::default(),
        backoff: Backoff::new(RETRY.0, RETRY.1),
        trouble: None,
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        // A request that is cut off is done or not; the next process finds out.
        () = keeper.run() => {}
    }
}

/// What clients call us.
fn names(namespace: &str) -> Vec<String> {
    vec![
        format!("healthscope-aggregator.{namespace}.svc"),
        format!("healthscope-aggregator.{namespace}.svc.cluster.local"),
        format!("healthscope-webhook.{namespace}.svc"),
    ]
}

struct Keeper {
    api: Api<Secret>,
    namespace: String,
    name: String,
    names: Vec<String>,
    shown: Shown,
    /// What was good last.
    remembered: Option<Material>,
    repairs: Repairs,
    backoff: Backoff,
    /// What was complained of last.
    trouble: Option<String>,
}

impl Keeper {
    async fn run(&mut self) {
        loop {
            match self.get().await {
                Ok(secret) => {
                    let version = secret.metadata.resource_version.clone().unwrap_or_default();
                    let wait = self.consider(secret).await;
                    tokio::select! {
                        () = time::sleep(wait.clamp(MIN_WAIT, MAX_WAIT)) => {}
                        () = self.changed(&version) => time::sleep(MIN_WAIT).await,
                    }
                }
                Err(problem) => {
                    self.shown.metrics.problem_read.inc();
                    self.complain(problem);
                    let wait = self.backoff.next(random());
                    time::sleep(wait).await;
                }
            }
        }
    }

    async fn get(&self) -> Result<Secret, String> {
        let Self { namespace, name, .. } = self;
        match time::timeout(REQUEST, self.api.get_opt(name)).await {
            Ok(Ok(Some(secret))) => Ok(secret),
            Ok(Ok(None)) => Err(format!(
                "the Secret {namespace}/{name} is not there; apply the chart again, which makes it empty"
            )),
            Ok(Err(error)) => Err(describe("get", namespace, name, &error)),
            Err(_) => Err(format!("no answer about the Secret {namespace}/{name} in time")),
        }
    }

    /// Waits until the Secret is another than that of `version`, or nothing can be said of it any more.
    async fn changed(&self, version: &str) {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(WATCH_SECONDS);
        // From any version on: what there is now comes first, so that nothing can be too old.
        let watched = self.api.watch(&params, "0").await;
        let events = match watched {
            Ok(events) => events,
            Err(error) => {
                let error = describe("watch", &self.namespace, &self.name, &error);
                tracing::debug!(error, "no watch; the Secret is read every now and then");
                time::sleep(RETRY.1).await;
                return;
            }
        };
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(secret) | WatchEvent::Modified(secret)) => {
                    if secret.metadata.resource_version.as_deref() != Some(version) {
                        return;
                    }
                }
                Ok(WatchEvent::Bookmark(_)) => {}
                Ok(WatchEvent::Deleted(_) | WatchEvent::Error(_)) | Err(_) => return,
            }
        }
    }

    /// Does what is to be done about it; how long nothing is to be done then.
    async fn consider(&mut self, secret: Secret) -> Duration {
        let now = Timestamp::now();
        let found = read(Contents::of(&secret), &self.names, now);
        let remembered = self.remembered.as_ref().map(|material| &material.holding);
        match decide(&found.holding, remembered, now) {
            Step::Keep { until } => {
                self.take(found);
                self.is_well();
                let left = until.duration_since(now);
                Duration::try_from(left).unwrap_or_default()
            }
            Step::Restore => {
                let problems = told(&found.problems);
                let due = self.repairs.due(clock::instant());
                let wait = due.saturating_duration_since(clock::instant());
                self.complain(format!(
                    "the Secret {}/{} cannot be served any more ({problems}); the former certificate stays",
                    self.namespace, self.name
                ));
                if !wait.is_zero() {
                    return wait;
                }
                self.shown.metrics.problem_unusable.inc();
                let Some(remembered) = &self.remembered else {
                    return Duration::ZERO;
                };
                self.repairs.made(clock::instant());
                let restored = remembered.contents.put(secret);
                match self.replace(&restored).await {
                    Ok(()) => {
                        tracing::warn!(
                            secret = self.name,
                            problems,
                            "somebody broke the Secret of the certificates; what was in it is written back"
                        );
                        Duration::ZERO
                    }
                    Err(wait) => wait,
                }
            }
            Step::Make(making) => self.make(secret, found, &making, now).await,
        }
    }

    async fn make(&mut self, secret: Secret, found: Material, making: &Making, now: Timestamp) -> Duration {
        if !found.problems.is_empty() && !found.holding.is_usable(now) {
            self.shown.metrics.problem_unusable.inc();
        }
        let problems = told(&found.problems);
        // Key generation takes less than a millisecond.
        let contents = match make::make(&found, making, &self.names, now) {
            Ok(contents) => contents,
            Err(error) => {
                self.complain(chain(&error));
                return self.backoff.next(random());
            }
        };
        let is_published = !making.authority;
        if found.holding.is_usable(now) {
            self.take(found);
        }
        let wait = match self.replace(&contents.put(secret)).await {
            Ok(()) => {
                if making.authority {
                    self.shown.metrics.made_authorities.inc();
                }
                if making.leaf.is_some() {
                    self.shown.metrics.made_leaves.inc();
                }
                tracing::info!(
                    secret = self.name,
                    why = %making.why,
                    problems,
                    new_authority = making.authority,
                    new_certificate = making.leaf.is_some(),
                    "made and stored certificates"
                );
                return Duration::ZERO;
            }
            Err(wait) => wait,
        };
        let ends = self
            .remembered
            .as_ref()
            .and_then(|material| material.holding.leaf);
        let is_urgent = ends.is_some_and(|leaf| now.duration_since(leaf.validity.until) > -ALONE_MARGIN);
        if is_published && is_urgent {
            tracing::warn!("the new certificate cannot be stored; it is shown by this replica alone");
            self.take(read(contents, &self.names, now));
        }
        wait
    }

    /// Writes the Secret; else how long to wait before looking again.
    async fn replace(&mut self, secret: &Secret) -> Result<(), Duration> {
        let params = PostParams {
            dry_run: false,
            field_manager: Some(FIELD_MANAGER.to_owned()),
        };
        let problem = match time::timeout(REQUEST, self.api.replace(&self.name, &params, secret)).await {
            Ok(Ok(_)) => return Ok(()),
            // Another replica was faster.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Err(Duration::ZERO),
            Ok(Err(error)) => describe("update", &self.namespace, &self.name, &error),
            Err(_) => format!(
                "no answer to an update of the Secret {}/{} in time",
                self.namespace, self.name
            ),
        };
        self.shown.metrics.problem_write.inc();
        self.complain(problem);
        Err(self.backoff.next(random()))
    }

    /// Shows it, and remembers it.
    fn take(&mut self, material: Material) {
        let Some(key) = material.shown.clone() else {
            return;
        };
        let authority = material.holding.bundle.first().map(|newest| newest.until);
        self.shown
            .metrics
            .authority_until
            .set(authority.map_or(0, Timestamp::as_second));
        let state = State {
            until: ending(&key.cert),
            bundle: Some(Arc::from(pem(&material.authorities))),
        };
        self.shown.show(key, state);
        self.remembered = Some(material);
    }

    fn is_well(&mut self) {
        self.backoff = Backoff::new(RETRY.0, RETRY.1);
        if self.trouble.take().is_some() {
            tracing::info!(
                secret = self.name,
                "the Secret of the certificates is as it should be again"
            );
        }
    }

    fn complain(&mut self, problem: String) {
        if self.trouble.as_ref() != Some(&problem) {
            tracing::error!(problem, "the certificates cannot be kept as they should be");
            self.trouble = Some(problem);
        }
    }
}

fn told(problems: &[String]) -> String {
    one_line(&problems.join("; "), MAX_PROBLEM_BYTES)
}

fn describe(verb: &str, namespace: &str, name: &str, error: &kube::Error) -> String {
    let error_text = one_line(&chain(error), MAX_PROBLEM_BYTES);
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; our ServiceAccount needs get, watch and update on this Secret"
        }
        _ => "",
    };
    format!("cannot {verb} the Secret {namespace}/{name}: {error_text}{hint}")
}

/// Spreads what is tried again; every hasher of the standard library has keys of its own.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

const _: () = assert!(
    ALONE_MARGIN.as_hours() < LEAF_MARGIN.as_hours(),
    "first it is to be stored"
);
