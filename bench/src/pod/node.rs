//! A node with the release on it, as a user installs it: images by the last stages of the Dockerfiles, the chart by Helm with
//! its own values. Pods without an agent are in one namespace, pods with one in another.

use {
    super::account::{Account, processes},
    crate::{
        exec::TINY,
        kubernetes::{DEADLINE, client},
        process::release_binary,
        report::say,
        rss,
    },
    anyhow::{Context, Result, ensure},
    healthscope_e2e_cluster::{Binaries, Cluster, Image, Options, Program, Stage, Version, wait_for},
    kube::Client,
    serde_json::{Value, json},
    std::{
        fs,
        io::Write,
        path::{Path, PathBuf},
        process::{Command, Stdio},
    },
};

/// Namespaces of pods without an agent, and with one.
pub(crate) const PLAIN: &str = "plain";
pub(crate) const INJECTED: &str = "injected";
/// What an injected pod's checks are written into.
pub(crate) const PROBES: &str = "healthscope.core.oam.dev/probes";
const INJECT: &str = "healthscope.core.oam.dev/inject";
const RELEASE: &str = "healthscope-system";
/// The container that is added.
const AGENT: &str = "healthscope-agent";
const AGENT_DOCKERFILE: &str = include_str!("../../../Dockerfile.agent");
const AGGREGATOR_DOCKERFILE: &str = include_str!("../../../Dockerfile.aggregator");
const AGENT_IMAGE: &str = concat!(
    "ghcr.io/healthscope/healthscope-agent:",
    env!("CARGO_PKG_VERSION")
);
const AGGREGATOR_IMAGE: &str = concat!(
    "ghcr.io/healthscope/healthscope-aggregator:",
    env!("CARGO_PKG_VERSION")
);
/// What containers run, with the no-op besides.
const TARGET_IMAGE: &str = "local/busybox:1";
/// The no-op in it.
pub(crate) const NO_OP: &str = "/bin/no-op";

pub(crate) struct Node {
    pub(crate) account: Account,
    pub(crate) client: Client,
    // After the account, whose members are its processes.
    pub(crate) cluster: Cluster,
}

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Node {
    pub(crate) async fn start() -> Result<Self> {
        let agent = rss::build()?;
        let runner = runner()?;
        let cluster = Cluster::start(&Options::node())?;
        let agent_image = image(AGENT_DOCKERFILE, AGENT_IMAGE, |name| match name {
            "healthscope-agent" => Ok(agent.clone()),
            "healthscope-runner" => Ok(runner.clone()),
            other => release_binary(other),
        })?
        .libraries_of(&agent)?;
        let aggregator = release_binary("healthscope-aggregator")?;
        let aggregator_image =
            image(AGGREGATOR_DOCKERFILE, AGGREGATOR_IMAGE, release_binary)?.libraries_of(&aggregator)?;
        let target = Image::busybox().content(NO_OP, TINY, 0o755);
        ensure!(target.name() == TARGET_IMAGE, "busybox has another name");
        for image in [agent_image, aggregator_image, target] {
            cluster.import(&image)?;
        }
        let helm = Binaries::ensure(&[Program::Helm], Version::NEWEST)?;
        let home = tempfile::tempdir()?;
        let installed = Command::new(helm.path(Program::Helm))
            .current_dir(root())
            .args([
                "install",
                "healthscope",
                "charts/healthscope",
                "--create-namespace",
            ])
            // One replica: the other would only share the two cores.
            .args([
                "--namespace",
                RELEASE,
                "--set=replicas=1",
                // There is no registry that the canary could ask.
                "--set=canary.imagePullPolicy=IfNotPresent",
                "--wait",
                "--timeout=3m",
            ])
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("HOME", home.path())
            .output()
            .context("cannot run helm")?;
        ensure!(
            installed.status.success(),
            "helm install: {}",
            String::from_utf8_lossy(&installed.stderr)
        );
        let pods = cluster.folder().file_name().and_then(|name| name.to_str());
        let account = Account::open(pods.context("the cluster's folder has a name")?)?;
        let client = client(&cluster.kubeconfig()).await?;
        let node = Self {
            account,
            client,
            cluster,
        };
        node.namespace(PLAIN, false)?;
        node.namespace(INJECTED, true)?;
        node.until_injecting()?;
        say("the release is installed, and pods get agents");
        Ok(node)
    }

    fn namespace(&self, name: &str, is_injected: bool) -> Result<()> {
        let mut labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        if is_injected {
            labels[INJECT] = json!("enabled");
        }
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.cluster.apply(&object.to_string())?;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.cluster
            .wait_for("the ServiceAccount", DEADLINE, || {
                self.cluster.get(&account).map(Some)
            })
            .map(|_| ())
    }

    fn until_injecting(&self) -> Result<()> {
        let asks = pod(
            "asks",
            INJECTED,
            &[container(
                "main",
                &json!({"livenessProbe": {"tcpSocket": {"port": 80}}}),
            )],
            None,
        );
        self.cluster.wait_for("pods to get agents", DEADLINE, || {
            let mut child = self
                .cluster
                .kubectl_command()
                .args(["create", "--dry-run=server", "-f", "-", "-o", "json"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            child
                .stdin
                .take()
                .context("its input is piped")?
                .write_all(asks.to_string().as_bytes())?;
            let made: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
            ensure!(made["spec"]["initContainers"][0]["name"] == AGENT, "it has none");
            Ok(Some(()))
        })
    }

    /// Makes a pod of these containers and waits until it is ready.
    pub(crate) fn run(
        &self,
        name: &str,
        namespace: &'static str,
        containers: &[Value],
        probes: Option<&Value>,
    ) -> Result<Pod> {
        self.run_pod(name, namespace, &pod(name, namespace, containers, probes))
    }

    /// Makes a pod and waits until it is ready.
    pub(crate) fn run_pod(&self, name: &str, namespace: &'static str, pod: &Value) -> Result<Pod> {
        self.cluster.apply(&pod.to_string())?;
        self.cluster
            .wait_for(&format!("pod {name} to be ready"), DEADLINE, || {
                let found = self.get(namespace, name)?;
                let conditions = found["status"]["conditions"].as_array();
                let is_ready = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
                ensure!(is_ready, "its status is {}", found["status"]);
                let has_agent = found["spec"]["initContainers"][0]["name"] == AGENT;
                ensure!(
                    has_agent == (namespace == INJECTED),
                    "{name} has the wrong containers"
                );
                let uid = found["metadata"]["uid"].as_str().context("no uid")?;
                Ok(Some(Pod {
                    namespace,
                    name: name.to_owned(),
                    uid: uid.to_owned(),
                }))
            })
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Result<Value> {
        self.cluster
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
    }

    /// Makes a scope of these pods.
    pub(crate) fn scope(&self, name: &str, pods: &[&Pod]) -> Result<()> {
        let refs: Vec<Value> = pods
            .iter()
            .map(|pod| json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name}))
            .collect();
        let object = json!({
            "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
            "metadata": {"name": name, "namespace": INJECTED}, "spec": {"workloadRefs": refs},
        });
        self.cluster.apply(&object.to_string()).map(|_| ())
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) fn delete(&self, pod: &Pod) -> Result<()> {
        let Pod {
            namespace,
            name,
            uid: _,
        } = pod;
        let words = [
            "delete",
            "pod",
            name,
            "-n",
            namespace,
            "--wait=true",
            "--timeout=60s",
        ];
        self.cluster.kubectl(words).map(|_| ())
    }

    /// The one process of a pod whose command line begins so, as this machine sees it.
    pub(crate) fn process(&self, pod: &Pod, line: &str) -> Result<u32> {
        wait_for(&format!("{line} in {}", pod.name), DEADLINE, || {
            for id in processes()? {
                let read = |name: &str| fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
                let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                if words.starts_with(line) && String::from_utf8_lossy(&read("cgroup")).contains(&pod.uid) {
                    return Ok(Some(id));
                }
            }
            Ok(None)
        })
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn image(dockerfile: &str, name: &str, built: impl Fn(&str) -> Result<PathBuf>) -> Result<Image> {
    Stage::last_of(dockerfile)?.image(name, |source| built(source.trim_start_matches("/out/")))
}

/// Builds the runner as it is shipped; where it is.
fn runner() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "--profile",
        "runner",
        "--package",
        "healthscope-runner",
        "--target",
        &triple,
    ]);
    let built = build.status().context("cannot run cargo")?;
    ensure!(built.success(), "the static runner cannot be built");
    // This program is in target/release.
    let here = std::env::current_exe()?;
    let targets = here.ancestors().nth(2).context("not run by cargo")?;
    Ok(targets.join(triple).join("runner/healthscope-runner"))
}

/// A container that does nothing, with these fields besides.
pub(crate) fn container(name: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": TARGET_IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "touch /tmp/ok; exec sleep 1000000"],
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
    });
    if let (Some(container), Some(more)) = (container.as_object_mut(), more.as_object()) {
        container.extend(more.clone());
    }
    container
}

pub(crate) fn pod(name: &str, namespace: &str, containers: &[Value], probes: Option<&Value>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": containers,
        },
    });
    if let Some(probes) = probes {
        pod["metadata"]["annotations"] = json!({PROBES: probes.to_string()});
    }
    pod
}
