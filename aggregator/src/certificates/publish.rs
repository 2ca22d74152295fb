//! Says whom to trust: in a ConfigMap for people and agents, and in each entry of the webhook configuration for the API
//! server. Only the replica that serves writes, so that one whose Secret is old takes nothing back.
//!
//! By server-side apply with a field manager of its own: nothing else in these objects is ours. What somebody changes is
//! put right at once, and after that once a minute ([`Repairs`]). Nothing is made that was deleted: an uninstallation is
//! not undone.
//!
//! RBAC: `get` and `patch` on the ConfigMap and on the MutatingWebhookConfiguration, by name.

use {
    super::State,
    crate::{clock, kubernetes::role::Role, metrics::certificates::CertificateMetrics},
    base64::{Engine, engine::general_purpose::STANDARD},
    healthscope_core::repair::Repairs,
    healthscope_service::telemetry::chain,
    healthscope_shared::one_line,
    k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::ConfigMap},
    kube::{
        Api, Client,
        api::{Patch, PatchParams},
    },
    serde_json::{Value, json},
    std::{future::Future, sync::Arc, time::Duration},
    tokio::{sync::watch, time},
    tokio_util::sync::CancellationToken,
};

/// The ConfigMap for people and agents.
pub(crate) const CONFIG_MAP: &str = "healthscope-ca";
/// Its key.
const KEY: &str = "ca.crt";
/// How often the objects are looked at; nothing else would tell of a change by others.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// What the API server writes into `managedFields` as ours.
const FIELD_MANAGER: &str = "healthscope-certificates";
/// Longest error that is logged.
const MAX_PROBLEM_BYTES: usize = 400;

/// What the task needs.
pub(crate) struct PublishEnds {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The webhook configuration to keep, if any.
    pub(crate) configuration: Option<String>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) metrics: CertificateMetrics,
}

/// Publishes until `shutdown`.
pub(crate) async fn run(ends: PublishEnds, shutdown: CancellationToken) {
    let PublishEnds {
        client,
        namespace,
        configuration,
        state,
        role,
        metrics,
    } = ends;
    let map = Map {
        api: Api::namespaced(client.clone(), &namespace),
    };
    let webhooks = configuration.map(|name| Webhooks {
        api: Api::all(client),
        name,
    });
    let publishing = async {
        tokio::join!(keep(map, state.clone(), role.clone(), metrics.clone()), async {
            if let Some(webhooks) = webhooks {
                keep(webhooks, state, role, metrics).await;
            }
        })
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        // A request that is cut off is done or not; the next replica looks.
        _ = publishing => shutdown.cancelled().await,
    }
}

/// Something that shows the bundle.
trait Target {
    /// What it is, for people.
    fn name(&self) -> String;

    /// What to apply so that it shows this bundle; `None` when it does, or has nothing to show it in.
    fn missing(&self, bundle: &str) -> impl Future<Output = Result<Option<Value>, kube::Error>> + Send;

    fn apply(&self, value: Value) -> impl Future<Output = Result<(), kube::Error>> + Send;
}

/// Keeps one target until nothing more can be known.
async fn keep(
    target: impl Target,
    mut state: watch::Receiver<State>,
    mut role: watch::Receiver<Role>,
    metrics: CertificateMetrics,
) {
    let mut repairs = Repairs::default();
    let mut published: Option<Arc<str>> = None;
    let mut trouble: Option<String> = None;
    loop {
        let bundle = state.borrow_and_update().bundle.clone();
        let is_owner = *role.borrow_and_update() == Role::Owner;
        if is_owner && let Some(bundle) = bundle {
            let is_news = published.as_ref() != Some(&bundle);
            match look(&target, &bundle, is_news, &mut repairs).await {
                Ok(Published::Already) => {
                    published = Some(bundle);
                    if trouble.take().is_some() {
                        tracing::info!(object = target.name(), "the authorities are published again");
                    }
                }
                Ok(Published::Now) => {
                    if is_news {
                        metrics.published.inc();
                        tracing::info!(object = target.name(), "published the authorities to trust");
                    } else {
                        metrics.repaired.inc();
                        tracing::warn!(
                            object = target.name(),
                            "somebody changed the authorities to trust; put right (does another installation keep it?)"
                        );
                    }
                    published = Some(bundle);
                }
                Ok(Published::Later) => {}
                Err(problem) => {
                    metrics.problem_publish.inc();
                    if trouble.as_ref() != Some(&problem) {
                        tracing::error!(problem, "the authorities to trust cannot be published");
                        trouble = Some(problem);
                    }
                }
            }
        }
        // Cancel-safe, all.
        let may_change = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            changed = role.changed() => changed.is_ok(),
            () = time::sleep(INTERVAL) => true,
        };
        if !may_change {
            return;
        }
    }
}

enum Published {
    Already,
    Now,
    /// Somebody else changes it again and again.
    Later,
}

async fn look(
    target: &impl Target,
    bundle: &str,
    is_news: bool,
    repairs: &mut Repairs,
) -> Result<Published, String> {
    let problem = |verb: &str, error: &kube::Error| {
        let hint = match error {
            kube::Error::Api(status) if status.code == 403 => {
                "; our ServiceAccount needs get and patch on it"
            }
            kube::Error::Api(status) if status.code == 404 => "; apply the chart again",
            _ => "",
        };
        let error = one_line(&chain(error), MAX_PROBLEM_BYTES);
        format!("cannot {verb} {}: {error}{hint}", target.name())
    };
    let late = |_| format!("no answer about {} in time", target.name());
    let missing = time::timeout(REQUEST, target.missing(bundle))
        .await
        .map_err(late)?;
    let Some(value) = missing.map_err(|error| problem("get", &error))? else {
        return Ok(Published::Already);
    };
    if !is_news {
        let now = clock::instant();
        if repairs.due(now) > now {
            return Ok(Published::Later);
        }
        repairs.made(now);
    }
    let applied = time::timeout(REQUEST, target.apply(value)).await.map_err(late)?;
    applied.map_err(|error| problem("patch", &error))?;
    Ok(Published::Now)
}

fn params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

struct Map {
    api: Api<ConfigMap>,
}

impl Target for Map {
    fn name(&self) -> String {
        format!("the ConfigMap {CONFIG_MAP}")
    }

    async fn missing(&self, bundle: &str) -> Result<Option<Value>, kube::Error> {
        let found = self.api.get(CONFIG_MAP).await?;
        let shown = found.data.as_ref().and_then(|data| data.get(KEY));
        let is_shown = shown.is_some_and(|shown| shown == bundle);
        Ok((!is_shown).then(|| {
            json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                // Of this very object: one that was deleted is not made again.
                "metadata": {"name": CONFIG_MAP, "uid": found.metadata.uid},
                "data": {KEY: bundle},
            })
        }))
    }

    async fn apply(&self, value: Value) -> Result<(), kube::Error> {
        let patch = Patch::Apply(value);
        self.api.patch(CONFIG_MAP, &params(), &patch).await.map(drop)
    }
}

struct Webhooks {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
}

impl Target for Webhooks {
    fn name(&self) -> String {
        format!("the MutatingWebhookConfiguration {}", self.name)
    }

    async fn missing(&self, bundle: &str) -> Result<Option<Value>, kube::Error> {
        let found = self.api.get(&self.name).await?;
        let webhooks = found.webhooks.unwrap_or_default();
        let is_shown = webhooks.iter().all(|webhook| {
            let shown = webhook.client_config.ca_bundle.as_ref();
            shown.is_some_and(|shown| shown.0 == bundle.as_bytes())
        });
        Ok((!is_shown).then(|| {
            let encoded = STANDARD.encode(bundle);
            let entries: Vec<Value> = webhooks
                .iter()
                .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": encoded}}))
                .collect();
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": self.name, "uid": found.metadata.uid},
                "webhooks": entries,
            })
        }))
    }

    async fn apply(&self, value: Value) -> Result<(), kube::Error> {
        let patch = Patch::Apply(value);
        self.api.patch(&self.name, &params(), &patch).await.map(drop)
    }
}
