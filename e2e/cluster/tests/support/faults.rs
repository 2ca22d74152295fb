//! What the tests of faults share: workloads whose status the test writes, and every status that an aggregator wrote, out of
//! the API server's audit log. A test file takes it in with `#[path = "support/faults.rs"] mod faults;`, beside `support`.
//!
//! The audit log is the history: nothing that was written and overwritten is missed, and it tells who wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "each test file uses its part of it")]

use {
    crate::support::{Aggregator, LIMIT, Setup},
    anyhow::Context,
    healthscope_e2e_cluster::{Cluster, tell, wait_for},
    kube::{
        Client, Config,
        config::{KubeConfigOptions, Kubeconfig},
    },
    serde_json::{Value, json},
    std::{
        collections::BTreeMap,
        fs,
        path::PathBuf,
        sync::{Mutex, MutexGuard, PoisonError},
        time::{Duration, Instant},
    },
    tokio::runtime::{Builder, Runtime},
    tokio_tungstenite::tungstenite::http::{Method, Request},
};

/// A cluster whose API server keeps an audit log, and fast ways to change what is in it.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    runtime: Runtime,
    client: Client,
    turn: Mutex<()>,
}

impl World {
    /// A cluster that knows HealthScopes.
    pub(crate) fn new(cluster: Cluster) -> Self {
        crate::support::install(&cluster);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(client(&cluster));
        Self {
            cluster,
            runtime,
            client,
            turn: Mutex::new(()),
        }
    }

    /// Waits until no other test has the cluster: an aggregator writes every scope there is.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request as the administrator; the answer's JSON.
    pub(crate) fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.runtime.block_on(request(&self.client, method, path, body))
    }

    /// Many requests, as many at once as an API server takes from one client.
    pub(crate) fn request_all(&self, requests: Vec<(Method, String, Value)>) -> anyhow::Result<()> {
        use futures_util::{StreamExt, TryStreamExt, stream};

        let client = &self.client;
        let requests = requests.into_iter().map(|(method, path, body)| async move {
            request(client, method, &path, Some(&body)).await.map(|_| ())
        });
        self.runtime
            .block_on(stream::iter(requests).buffer_unordered(32).try_collect())
    }

    pub(crate) fn create(&self, path: &str, object: &Value) {
        self.request(Method::POST, path, Some(object)).unwrap();
    }

    pub(crate) fn delete(&self, path: &str) {
        self.request(Method::DELETE, path, None).unwrap();
    }

    pub(crate) fn patch(&self, path: &str, patch: &Value) {
        self.request(Method::PATCH, path, Some(patch)).unwrap();
    }

    pub(crate) fn namespace(&self, name: &str) {
        self.create("/api/v1/namespaces", &json!({"metadata": {"name": name}}));
    }

    /// A Deployment of one pod that nobody runs: it is as [`World::set_ready`] says.
    pub(crate) fn deployment(&self, namespace: &str, name: &str, is_ready: bool) {
        self.create(
            &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
            &json!({
                "metadata": {"name": name},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app": name}},
                    "template": {
                        "metadata": {"labels": {"app": name}},
                        "spec": {"containers": [{"name": "main", "image": "local/none"}]},
                    },
                },
            }),
        );
        self.set_ready(namespace, name, is_ready);
    }

    pub(crate) fn set_ready(&self, namespace: &str, name: &str, is_ready: bool) {
        self.try_set_ready(namespace, name, is_ready).unwrap();
    }

    /// The same, where the API server may not answer.
    pub(crate) fn try_set_ready(&self, namespace: &str, name: &str, is_ready: bool) -> anyhow::Result<()> {
        let ready = u32::from(is_ready);
        self.request(
            Method::PATCH,
            &format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status"),
            Some(&json!({"status": {
                "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1,
                "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": 1 - ready,
            }})),
        )?;
        Ok(())
    }

    /// A HealthScope.
    pub(crate) fn scope(&self, namespace: &str, name: &str, spec: &Value) {
        self.create(
            &scopes(namespace),
            &json!({"apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
                "metadata": {"name": name}, "spec": spec}),
        );
    }

    /// A namespace with the Deployments `web` and `db`, both ready, and the scope `shop` of them.
    pub(crate) fn shop(&self, namespace: &str) {
        self.namespace(namespace);
        self.deployment(namespace, "web", true);
        self.deployment(namespace, "db", true);
        let refs: Vec<Value> = ["web", "db"].map(deployment_ref).into();
        self.scope(namespace, "shop", &json!({"workloadRefs": refs}));
    }

    /// An aggregator that is `aggregator-{namespace}` in the audit log and may do everything; it is ready. Its Lease is in
    /// this namespace.
    pub(crate) fn aggregator(&self, namespace: &str) -> Aggregator<'_> {
        let aggregator = self.launch(&format!("aggregator-{namespace}"), namespace, Setup::default());
        aggregator.wait_ready();
        aggregator
    }

    /// One by this name, without waiting, as `setup` says.
    pub(crate) fn launch(&self, user: &str, namespace: &str, mut setup: Setup) -> Aggregator<'_> {
        if setup.kubeconfig.is_none() {
            let kubeconfig = self.cluster.kubeconfig_for(user, Some("system:masters"));
            setup.kubeconfig = Some(kubeconfig.unwrap());
        }
        setup.name = Some(user.to_owned());
        for argument in ["--namespace", namespace, "--pod-name", user] {
            setup.arguments.push(argument.to_owned());
        }
        // What it says about watches and errors is what a failing test needs.
        let filter = ("HEALTHSCOPE_LOG", "info,healthscope_aggregator=debug");
        setup.environment.push((filter.0.to_owned(), filter.1.to_owned()));
        Aggregator::launch(&self.cluster, setup)
    }

    /// A kubeconfig of the user by which an API server somewhere else is reached.
    pub(crate) fn kubeconfig_by(&self, user: &str, server: &str) -> PathBuf {
        let file = self.cluster.kubeconfig_for(user, Some("system:masters")).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&self.cluster.server(), server)).unwrap();
        file
    }

    /// Every request of users whose name begins so, in the order in which they ended.
    pub(crate) fn requests(&self, user: &str) -> Vec<Asked> {
        let log = fs::read_to_string(self.cluster.audit_log().unwrap()).unwrap();
        log.split_inclusive('\n')
            // The last line may not be whole yet.
            .filter(|line| line.ends_with('\n') && line.contains(user))
            .map(|line| Asked(serde_json::from_str(line).unwrap()))
            .filter(|asked| asked.user().starts_with(user))
            .collect()
    }

    /// The writes of statuses by users whose name begins so.
    pub(crate) fn writes(&self, user: &str) -> Vec<Asked> {
        let mut asked = self.requests(user);
        asked.retain(|asked| asked.is_status_write());
        asked
    }

    /// The healths that a scope was given, one after the other, whoever wrote them. Fails when a write said the same as
    /// the one before.
    #[track_caller]
    pub(crate) fn healths(&self, namespace: &str, scope: &str) -> Vec<String> {
        let mut writes = self.writes("aggregator-");
        writes.retain(|write| write.is(namespace, scope) && write.may_be_done());
        for (former, next) in writes.iter().zip(writes.iter().skip(1)) {
            assert!(
                !former.is_done() || !next.is_done() || former.meaning() != next.meaning(),
                "{namespace}/{scope} was written for nothing: {former:?} and {next:?}"
            );
        }
        writes.retain(Asked::is_done);
        writes.iter().map(Asked::health).collect()
    }

    /// Waits until a scope has this health, as the API server has it; how long that took.
    #[track_caller]
    pub(crate) fn until_health(
        &self,
        aggregator: &Aggregator<'_>,
        namespace: &str,
        scope: &str,
        health: &str,
    ) -> Duration {
        let start = Instant::now();
        aggregator.until_health(namespace, scope, health);
        start.elapsed()
    }
}

async fn client(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

async fn request(client: &Client, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let kind = if method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let name = format!("{method} {path}");
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body.into_bytes())?;
    client.request(request).await.with_context(|| name)
}

pub(crate) fn scopes(namespace: &str) -> String {
    format!("/apis/core.oam.dev/v1beta1/namespaces/{namespace}/healthscopes")
}

pub(crate) fn deployment_ref(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name})
}

/// A request, as the audit log has it.
#[derive(Debug)]
pub(crate) struct Asked(pub(crate) Value);

impl Asked {
    fn text(&self, path: &str) -> &str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn user(&self) -> &str {
        self.text("/user/username")
    }

    pub(crate) fn verb(&self) -> &str {
        self.text("/verb")
    }

    pub(crate) fn resource(&self) -> &str {
        self.text("/objectRef/resource")
    }

    /// The answer's HTTP status.
    pub(crate) fn code(&self) -> u64 {
        self.0
            .pointer("/responseStatus/code")
            .and_then(Value::as_u64)
            .unwrap_or_default()
    }

    /// When it came in: `2026-01-02T03:04:05.123456Z`.
    pub(crate) fn received(&self) -> &str {
        self.text("/requestReceivedTimestamp")
    }

    /// When the answer was sent.
    pub(crate) fn ended(&self) -> &str {
        self.text("/stageTimestamp")
    }

    pub(crate) fn is_status_write(&self) -> bool {
        self.resource() == "healthscopes"
            && self.text("/objectRef/subresource") == "status"
            && matches!(self.verb(), "update" | "patch")
            && self.text("/stage") == "ResponseComplete"
    }

    pub(crate) fn is(&self, namespace: &str, name: &str) -> bool {
        self.text("/objectRef/namespace") == namespace && self.text("/objectRef/name") == name
    }

    pub(crate) fn is_done(&self) -> bool {
        self.code() == 200
    }

    /// Whether it was done, or nobody waited any more for what became of it.
    pub(crate) fn may_be_done(&self) -> bool {
        self.is_done() || self.code() == 504
    }

    pub(crate) fn status(&self) -> &Value {
        &self.0["requestObject"]["status"]
    }

    pub(crate) fn health(&self) -> String {
        self.status()["health"].as_str().unwrap_or("none").to_owned()
    }

    /// The status without its times.
    pub(crate) fn meaning(&self) -> Value {
        let mut status = self.status().clone();
        without_times(&mut status);
        status
    }
}

fn without_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !matches!(
                    name.as_str(),
                    "lastTransitionTime" | "lastAggregateTimestamp" | "since"
                )
            });
            fields.values_mut().for_each(without_times);
        }
        Value::Array(items) => items.iter_mut().for_each(without_times),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// How often each was asked for, for a failing test's message: `update healthscopes/status 409`.
pub(crate) fn counts(asked: &[Asked]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for asked in asked {
        let what = format!(
            "{} {}/{} {}",
            asked.verb(),
            asked.resource(),
            asked.text("/objectRef/subresource"),
            asked.code()
        );
        *counts.entry(what).or_default() += 1;
    }
    counts
}

/// Waits until `look` is true.
#[track_caller]
pub(crate) fn until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, LIMIT, || Ok(look().then_some(()))).unwrap();
}

/// Says how long something took and fails when that was longer than it may be.
#[track_caller]
pub(crate) fn within(limit: Duration, what: &str, took: Duration) {
    tell(&format!("{what}: {took:.1?}"));
    assert!(took <= limit, "{what} took {took:.1?}, longer than {limit:?}");
}
