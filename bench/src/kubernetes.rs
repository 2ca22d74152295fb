//! A real API server (etcd with fsync) with scopes, workloads and pods on it, and the real aggregator beside it.
//!
//! There are no controllers and no nodes: this program writes what they would, the same objects through the same API,
//! so that nothing but the API server and the aggregator uses the machine.

pub(crate) mod agents;
pub(crate) mod watch;

use {
    crate::process::{Process, release_binary},
    anyhow::{Context, Result},
    futures_util::{StreamExt, TryStreamExt, stream},
    healthscope_e2e_cluster::{Audit, Cluster, Options},
    kube::{
        Client, Config,
        config::{KubeConfigOptions, Kubeconfig},
    },
    serde_json::{Value, json},
    std::{
        net::{Ipv4Addr, SocketAddr, TcpListener},
        path::{Path, PathBuf},
        sync::Arc,
        time::{Duration, Instant, SystemTime, UNIX_EPOCH},
    },
};

/// Where HealthScopes are, and where copies of them are that the aggregator knows nothing of.
pub(crate) const GROUP: &str = "core.oam.dev";
/// The same kind, by another group: what is written there is a bare write.
pub(crate) const BARE_GROUP: &str = "bare.example.com";
/// Who the aggregator is. No member of `system:masters`: those are exempt from flow control.
pub(crate) const USER: &str = "healthscope-aggregator";
/// The namespace of the aggregator's Lease.
const OWN_NAMESPACE: &str = "healthscope";
const CRD: &str = include_str!("../../charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml");
/// Objects made at once: the API server takes 200 requests that write, and has half a machine.
const AT_ONCE: usize = 24;
/// Nothing here takes longer, or something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// How many of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// HealthScopes.
    pub(crate) scopes: usize,
    /// Components of each: a Deployment with a ReplicaSet and a pod.
    pub(crate) per_scope: usize,
    /// Namespaces that share them.
    pub(crate) namespaces: usize,
}

/// One component.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// Its number, over all scopes.
    pub(crate) index: usize,
    pub(crate) namespace: String,
    pub(crate) deployment: String,
    /// What its pod's agent shows.
    pub(crate) token: Arc<str>,
}

impl Shape {
    pub(crate) const fn components(self) -> usize {
        self.scopes * self.per_scope
    }

    pub(crate) fn namespace(self, scope: usize) -> String {
        format!("team-{}", scope % self.namespaces)
    }

    /// The scope's name.
    pub(crate) fn scope(scope: usize) -> String {
        format!("app-{scope}")
    }

    pub(crate) fn deployment(component: usize) -> String {
        format!("web-{component}")
    }
}

/// An API server, and this program's own client of it.
pub(crate) struct Place {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    pub(crate) folder: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Place {
    /// Starts one that knows HealthScopes, twice: as they are, and as bare objects.
    pub(crate) async fn start(audit: Option<Audit>) -> Result<Self> {
        let cluster = Cluster::start(&Options {
            fsync: true,
            audit,
            ..Options::control_plane()
        })?;
        cluster.apply(CRD)?;
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/healthscopes.{GROUP}");
        let mut copy = cluster.get(&path)?;
        copy["spec"]["group"] = json!(BARE_GROUP);
        let copy = json!({
            "apiVersion": copy["apiVersion"], "kind": copy["kind"], "spec": copy["spec"],
            "metadata": {"name": format!("healthscopes.{BARE_GROUP}")},
        });
        cluster.apply(&copy.to_string())?;
        for group in [GROUP, BARE_GROUP] {
            cluster.wait_for("HealthScopes to be served", DEADLINE, || {
                Ok(cluster.get(&format!("/apis/{group}/v1beta1/healthscopes")).ok())
            })?;
        }
        let user = format!("--user={USER}");
        let binding = [
            "create",
            "clusterrolebinding",
            USER,
            "--clusterrole=cluster-admin",
            &user,
        ];
        cluster.kubectl(binding)?;
        cluster.kubectl(["create", "namespace", OWN_NAMESPACE])?;
        let kubeconfig = cluster.kubeconfig_for(USER, None)?;
        let client = client(&cluster.kubeconfig()).await?;
        Ok(Self {
            cluster,
            client,
            folder: tempfile::tempdir()?,
            kubeconfig,
        })
    }

    /// Starts an aggregator; `name` is its pod's.
    pub(crate) fn aggregator(&self, name: &str, address: SocketAddr) -> Result<Process> {
        let address = address.to_string();
        Process::spawn_in(
            &release_binary("healthscope-aggregator")?,
            &[
                "--kubernetes",
                "--namespace",
                OWN_NAMESPACE,
                "--pod-name",
                name,
                "--listen",
                &address,
                "--advertise",
                &address,
                "--auth",
                "none",
            ],
            &[("KUBECONFIG", &self.kubeconfig)],
            Some(&self.log(name)),
        )
    }

    /// What an aggregator wrote.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// Makes everything, all of it well; the components in their order.
    pub(crate) async fn populate(&self, shape: Shape) -> Result<Vec<Component>> {
        for namespace in 0..shape.namespaces {
            let namespace = json!({"metadata": {"name": shape.namespace(namespace)}});
            self.post("/api/v1/namespaces", &namespace).await?;
        }
        let mut components: Vec<Component> = stream::iter(0..shape.components())
            .map(|index| self.component(shape, index))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        components.sort_unstable_by_key(|component| component.index);
        stream::iter(0..shape.scopes)
            .map(|scope| async move {
                let name = Shape::scope(scope);
                let object = json!({
                    "apiVersion": format!("{GROUP}/v1beta1"), "kind": "HealthScope", "metadata": {"name": name},
                    "spec": {"selector": {"matchLabels": {"app.kubernetes.io/part-of": name}}},
                });
                let path = scopes_path(GROUP, &shape.namespace(scope));
                self.post(&path, &object).await.map(|_made| ())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(components)
    }

    async fn component(&self, shape: Shape, index: usize) -> Result<Component> {
        let namespace = shape.namespace(index / shape.per_scope);
        let deployment = Shape::deployment(index);
        let labels =
            json!({"app": deployment, "app.kubernetes.io/part-of": Shape::scope(index / shape.per_scope)});
        let containers = ["main", "healthscope-agent"];
        let told = containers.map(|name| json!({"name": name, "image": format!("local/{name}:1")}));
        let template = json!({
            "metadata": {"labels": labels},
            "spec": {"serviceAccountName": "web", "containers": told},
        });
        let spec = json!({
            "replicas": 1, "selector": {"matchLabels": {"app": deployment}}, "template": template,
        });
        let path = format!("/apis/apps/v1/namespaces/{namespace}");
        let made = self
            .post(
                &format!("{path}/deployments"),
                &json!({"metadata": {"name": deployment, "labels": labels}, "spec": spec}),
            )
            .await?;
        self.set_deployment(&namespace, &deployment, true).await?;
        let replica_set = format!("{deployment}-5d4f8c7b9");
        let made = self
            .post(
                &format!("{path}/replicasets"),
                &json!({
                    "metadata": {
                        "name": replica_set, "labels": labels,
                        "ownerReferences": [owner("Deployment", &deployment, &made)],
                    },
                    "spec": spec,
                }),
            )
            .await?;
        let pod = format!("{replica_set}-x2x9k");
        let mut pod_spec = template["spec"].clone();
        pod_spec["nodeName"] = json!("node-0");
        let made = self
            .post(
                &format!("/api/v1/namespaces/{namespace}/pods"),
                &json!({
                    "metadata": {
                        "name": pod, "labels": labels,
                        "ownerReferences": [owner("ReplicaSet", &replica_set, &made)],
                    },
                    "spec": pod_spec,
                }),
            )
            .await?;
        let now = "2026-01-01T00:00:00Z";
        let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}));
        let container_statuses = containers.map(|name| {
            json!({
                "name": name, "ready": true, "started": true, "restartCount": 0,
                "image": format!("local/{name}:1"), "imageID": "", "state": {"running": {"startedAt": now}},
            })
        });
        let status = json!({"status": {
            "phase": "Running", "conditions": conditions, "containerStatuses": container_statuses,
        }});
        self.merge(
            &format!("/api/v1/namespaces/{namespace}/pods/{pod}/status"),
            &status,
        )
        .await?;
        let token = self.token(&namespace, &pod, &made)?;
        Ok(Component {
            index,
            namespace,
            deployment,
            token: token.into(),
        })
    }

    /// A token as the kubelet gets it for a pod, signed here with the cluster's key.
    fn token(&self, namespace: &str, pod: &str, made: &Value) -> Result<String> {
        let keys = self.cluster.service_account_keys();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        keys.sign(&json!({
            "iss": keys.issuer, "aud": ["healthscope.core.oam.dev"],
            "sub": format!("system:serviceaccount:{namespace}:web"),
            "jti": "0b5c6a1e-0000-4000-8000-000000000001",
            "iat": now - 10, "nbf": now - 10, "exp": now + 12 * 3600,
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": pod, "uid": made["metadata"]["uid"]},
                "serviceaccount": {"name": "web", "uid": "0b5c6a1e-0000-4000-8000-000000000002"},
            },
        }))
    }

    /// Writes what the Deployment controller would: its one pod is ready, or not.
    pub(crate) async fn set_deployment(&self, namespace: &str, name: &str, is_ready: bool) -> Result<()> {
        let (ready, word) = if is_ready {
            (json!(1), "True")
        } else {
            (Value::Null, "False")
        };
        let missing = if is_ready { Value::Null } else { json!(1) };
        let reason = if is_ready {
            "MinimumReplicasAvailable"
        } else {
            "MinimumReplicasUnavailable"
        };
        let status = json!({"status": {
            "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1,
            "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": missing,
            "conditions": [
                {"type": "Available", "status": word, "reason": reason},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
            ],
        }});
        let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status");
        self.merge(&path, &status).await.map(|_written| ())
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("POST", path, "application/json", object).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("PUT", path, "application/json", object).await
    }

    async fn merge(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("PATCH", path, "application/merge-patch+json", object)
            .await
    }

    async fn request(&self, method: &str, path: &str, kind: &str, object: &Value) -> Result<Value> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(serde_json::to_vec(object)?)?;
        let asked = self.client.request(request).await;
        asked.with_context(|| format!("{method} {path}"))
    }

    /// Requests that the API server would not take because there were too many.
    pub(crate) async fn refused(&self) -> Result<u64> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = self.client.request_text(request).await?;
        let counts = text.lines().filter(|line| {
            line.starts_with("apiserver_flowcontrol_rejected_requests_total")
                || (line.starts_with("apiserver_request_total") && line.contains("code=\"429\""))
        });
        let counts = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        Ok(counts.sum())
    }
}

/// The path of a namespace's HealthScopes.
pub(crate) fn scopes_path(group: &str, namespace: &str) -> String {
    format!("/apis/{group}/v1beta1/namespaces/{namespace}/healthscopes")
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Looks until something is so; fails with `what` when it never is.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    while !is_so() {
        anyhow::ensure!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(begun.elapsed())
}

pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn owner(kind: &str, name: &str, made: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": made["metadata"]["uid"], "controller": true,
    })
}
