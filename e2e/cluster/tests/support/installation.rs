//! The whole product on a node, installed as a user installs it: images assembled from the Dockerfiles, the chart by Helm with
//! its own values, the webhook answering. A test file takes it in with `#[path = "support/installation.rs"] mod installation;`,
//! beside `support`.
//!
//! The images have the names that the chart gives them, so that nothing is set that a user would not set, but for one thing:
//! there is no registry, which the canary would ask.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "each test file uses its part of it")]

use {
    crate::support::{self, LIMIT, program},
    anyhow::{Context, ensure},
    healthscope_e2e_cluster::{Binaries, Cluster, Image, Options, Program, Stage, Version, timed, wait_for},
    rustix::process::Pid,
    serde_json::{Value, json},
    std::{
        any::Any,
        fs,
        io::Write,
        panic::{AssertUnwindSafe, catch_unwind},
        path::{Path, PathBuf},
        process::{Child, Command, Output, Stdio},
        sync::LazyLock,
        time::{Duration, Instant},
    },
};

/// Where the release is.
pub(crate) const RELEASE: &str = "healthscope-system";
pub(crate) const WEBHOOK: &str = "healthscope-agent-injector";
/// The label that asks for agents.
pub(crate) const INJECT: &str = "healthscope.core.oam.dev/inject";
/// The container that is added.
pub(crate) const AGENT: &str = "healthscope-agent";
/// As the chart names them.
pub(crate) const AGENT_IMAGE: &str = concat!(
    "ghcr.io/healthscope/healthscope-agent:",
    env!("CARGO_PKG_VERSION")
);
const AGGREGATOR_IMAGE: &str = concat!(
    "ghcr.io/healthscope/healthscope-aggregator:",
    env!("CARGO_PKG_VERSION")
);

/// `helm install` as the documentation has it, where there is no registry.
pub(crate) const INSTALL: [&str; 5] = [
    "install",
    "healthscope",
    "charts/healthscope",
    "--create-namespace",
    "--set=canary.imagePullPolicy=IfNotPresent",
];

const AGENT_DOCKERFILE: &str = include_str!("../../../../Dockerfile.agent");
const AGGREGATOR_DOCKERFILE: &str = include_str!("../../../../Dockerfile.aggregator");

/// A node with the release on it, and what Helm keeps on this machine.
pub(crate) struct Installation {
    pub(crate) cluster: Cluster,
    home: tempfile::TempDir,
}

/// The root of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The runner as it is shipped: static, so that it runs in a container that has nothing else.
pub(crate) fn static_runner() -> PathBuf {
    let beside = program("healthscope-agent");
    let target = beside.parent().unwrap().parent().unwrap();
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let runner = target.join(triple).join("runner/healthscope-runner");
    assert!(
        runner.is_file(),
        "{} is not there: build it with cargo xtask runner",
        runner.display()
    );
    runner
}

/// The image of a Dockerfile's last stage, with the libraries that this machine's linker gives its first program.
fn image(dockerfile: &str, name: &str, main: &str) -> Image {
    let built = |source: &str| {
        Ok(match source.trim_start_matches("/out/") {
            "healthscope-runner" => static_runner(),
            name => program(name),
        })
    };
    let stage = Stage::last_of(dockerfile).unwrap();
    let image = stage.image(name, built).unwrap();
    image.libraries_of(&program(main)).unwrap()
}

/// The agent's image under a name such as `local/agent:crashing`.
pub(crate) fn agent_image(name: &str) -> Image {
    image(AGENT_DOCKERFILE, name, "healthscope-agent")
}

impl Installation {
    /// A node with the release as the chart's own values make it, whose webhook answers.
    pub(crate) fn start() -> Self {
        let installation = Self::prepare(&Options::node());
        installation.install(&[]);
        installation
    }

    /// A node that has the images, and no release yet.
    pub(crate) fn prepare(options: &Options) -> Self {
        let installation = Self {
            cluster: Cluster::start(options).unwrap(),
            home: tempfile::tempdir().unwrap(),
        };
        let aggregator = image(AGGREGATOR_DOCKERFILE, AGGREGATOR_IMAGE, "healthscope-aggregator");
        timed("import of the images", || {
            for image in [Image::busybox(), aggregator, agent_image(AGENT_IMAGE)] {
                installation.cluster.import(&image).unwrap();
            }
        });
        installation
    }

    /// `helm install` with more arguments, such as `--set=replicas=1`; waits until pods get agents.
    #[track_caller]
    pub(crate) fn install(&self, more: &[&str]) -> String {
        let words = [INSTALL.as_slice(), &["--wait", "--timeout=3m"], more].concat();
        let notes = timed("helm install --wait", || self.helm(&words));
        timed("the webhook to answer", || self.until_injecting());
        notes
    }

    /// Helm in the release's namespace, in the root of the checkout.
    pub(crate) fn helm_command(&self, words: &[&str]) -> Command {
        static BINARIES: LazyLock<Binaries> =
            LazyLock::new(|| Binaries::ensure(&[Program::Helm], Version::NEWEST).unwrap());
        let mut command = Command::new(BINARIES.path(Program::Helm));
        command
            .current_dir(root())
            .args(words)
            .arg(format!("--namespace={RELEASE}"))
            .env("KUBECONFIG", self.cluster.kubeconfig())
            // Nothing of it goes into the developer's home.
            .env("HOME", self.home.path());
        command
    }

    /// Runs it; what it prints.
    #[track_caller]
    pub(crate) fn helm(&self, words: &[&str]) -> String {
        printed(&mut self.helm_command(words))
    }

    /// Runs kubectl as a user types it, plugin included, in a namespace; what it prints.
    #[track_caller]
    pub(crate) fn kubectl(&self, namespace: &str, line: &str) -> String {
        support::kubectl(&self.cluster, namespace, line)
    }

    /// Applies objects in a namespace.
    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, objects: &str) {
        support::apply(&self.cluster, namespace, objects);
    }

    /// A namespace under Pod Security `restricted`, whose pods get agents when `is_injected`.
    #[track_caller]
    pub(crate) fn namespace(&self, name: &str, is_injected: bool) {
        let mut labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        if is_injected {
            labels[INJECT] = json!("enabled");
        }
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.cluster.apply(&object.to_string()).unwrap();
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.cluster
            .wait_for("the ServiceAccount", LIMIT, || {
                self.cluster.get(&account).map(Some)
            })
            .unwrap();
    }

    /// Waits until a pod that asks for an agent gets one; the pod is never made.
    #[track_caller]
    pub(crate) fn until_injecting(&self) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "asks-", "namespace": "default", "labels": {INJECT: "enabled"}},
            "spec": {"containers": [{
                "name": "main", "image": "local/busybox:1",
                "livenessProbe": {"tcpSocket": {"port": 8080}},
            }]},
        });
        self.until("pods to get agents", || {
            let made = self.dry_run(&pod)?;
            ensure!(is_injected(&made), "it was made of a pod: {made}");
            Ok(Some(()))
        });
    }

    /// What the API server would make of an object.
    pub(crate) fn dry_run(&self, object: &Value) -> anyhow::Result<Value> {
        let mut command = self.cluster.kubectl_command();
        command.args(["create", "--dry-run=server", "-f", "-", "-o", "json"]);
        let output = fed(&mut command, &object.to_string())?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Looks until there is something, at most [`LIMIT`] long; an error means "not yet". When it never is, the panic shows the
    /// last error and what the release's pods logged.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, look: impl FnMut() -> anyhow::Result<Option<T>>) -> T {
        let error = match wait_for(what, LIMIT, look) {
            Ok(found) => return found,
            Err(error) => error,
        };
        panic!("{error:#}\n{}", self.logs())
    }

    /// How the logs of the aggregator's replicas end.
    pub(crate) fn logs(&self) -> String {
        let words = [
            "logs",
            "-n",
            RELEASE,
            "--selector=app.kubernetes.io/component=aggregator",
            "--prefix",
            "--tail=15",
        ];
        self.cluster
            .kubectl(words)
            .unwrap_or_else(|error| format!("there are no logs of the aggregator: {error:#}"))
    }

    /// Waits until a scope's status is as wanted; the status.
    #[track_caller]
    pub(crate) fn until_status(
        &self,
        what: &str,
        namespace: &str,
        scope: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.until(&format!("{namespace}/{scope} {what}"), || {
            let status = support::status(&self.cluster, namespace, scope)?;
            ensure!(is_wanted(&status), "its status is {status:#}");
            Ok(Some(status))
        })
    }

    /// Waits until a scope has this health; its status.
    #[track_caller]
    pub(crate) fn until_health(&self, namespace: &str, scope: &str, health: &str) -> Value {
        self.until_status(&format!("to be {health}"), namespace, scope, |status| {
            status["health"] == health
        })
    }

    /// Waits until all checks of a component pass, as its agents say, and its scope of that name is healthy.
    #[track_caller]
    pub(crate) fn until_passing(&self, namespace: &str, name: &str) {
        self.until(&format!("the checks of {name} to pass"), || {
            let mut command = support::kubectl_command(&self.cluster, namespace, "healthscope get probes");
            let output = command.output()?;
            let shown = String::from_utf8(output.stdout)?;
            let mut checks = shown
                .lines()
                .filter(|line| line.split(' ').next() == Some(name))
                .peekable();
            ensure!(
                checks.peek().is_some() && checks.all(|line| line.contains(" passing ")),
                "{shown}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(Some(()))
        });
        self.until_health(namespace, name, "Healthy");
    }

    /// Waits until a component of a scope has this health, and a message with these words; its entry.
    #[track_caller]
    pub(crate) fn until_component(
        &self,
        namespace: &str,
        scope: &str,
        name: &str,
        health: &str,
        words: &[&str],
    ) -> Value {
        let what = format!("to have {name} {health} with {words:?}");
        let status = self.until_status(&what, namespace, scope, |status| {
            support::component(status, name).is_some_and(|component| {
                let message = component["message"].as_str().unwrap_or_default();
                component["health"] == health && words.iter().all(|word| message.contains(word))
            })
        });
        support::component(&status, name).unwrap().clone()
    }

    /// The certificates that agents are to trust, as people read them.
    #[track_caller]
    pub(crate) fn authority(&self) -> String {
        self.kubectl(
            RELEASE,
            r"get configmap healthscope-ca -o jsonpath={.data.ca\.crt}",
        )
    }

    /// What `healthscope inject` makes of an object, with an agent of this image that trusts this authority.
    #[track_caller]
    pub(crate) fn injected_offline(&self, object: &Value, image: &str, authority: &str) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.crt");
        fs::write(&ca, authority).unwrap();
        let mut command = Command::new(program("healthscope"));
        command
            .args(["inject", "-f", "-", "--image", image, "--ca"])
            .arg(ca);
        let output = fed(&mut command, &object.to_string()).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let injected: Value = serde_saphyr::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
        assert!(is_injected(&injected), "{said}\n{injected:#}");
        injected
    }

    /// A pod as the API server has it.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Value> {
        self.cluster
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
    }

    /// The pods with a label such as `app=web`.
    pub(crate) fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
        let mut pods = self.cluster.get(&path)?;
        serde_json::from_value(pods["items"].take()).context("no list of pods")
    }

    /// Runs a script in a container of a pod; what it prints.
    #[track_caller]
    pub(crate) fn exec(&self, namespace: &str, pod: &str, container: &str, script: &str) -> String {
        let words = [
            "exec", "-n", namespace, pod, "-c", container, "--", "sh", "-c", script,
        ];
        self.cluster.kubectl(words).unwrap()
    }

    /// The one process of a pod with such a command line, as soon as it is there.
    #[track_caller]
    pub(crate) fn process(&self, pod: &Value, line: &str) -> Pid {
        self.until(&format!("one process {line}"), || {
            let found = support::processes(pod, line);
            ensure!(found.len() == 1, "there are {found:?}");
            Ok(Some(found[0]))
        })
    }
}

/// A HealthScope of that name over one workload of that name.
pub(crate) fn scope_of(api_version: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope", "metadata": {"name": name},
        "spec": {"workloadRefs": [{"apiVersion": api_version, "kind": kind, "name": name}]},
    })
}

/// Whether a pod has an agent.
pub(crate) fn is_injected(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array();
    containers
        .into_iter()
        .flatten()
        .any(|container| container["name"] == AGENT)
}

/// Whether a pod's condition of this type is true.
pub(crate) fn is_true(pod: &Value, condition: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == condition && one["status"] == "True")
}

/// What Pod Security `restricted` wants of a container, and a user.
pub(crate) fn restricted(user: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": user,
        "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Runs a command with this input.
pub(crate) fn fed(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A command that ended without reading says why itself.
    let _ = child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}

/// What a command prints; it must succeed.
#[track_caller]
pub(crate) fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

/// Everything that happened to the pods, or to other objects, of a namespace, from before the first of them is made.
pub(crate) struct History {
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl History {
    /// Begins to watch pods. A watch begins with what is there, so nothing is missed of those that are made after this.
    pub(crate) fn begin(cluster: &Cluster, namespace: &str) -> Self {
        Self::of_kind(cluster, namespace, "pods")
    }

    /// The same of other objects, such as `deployments`.
    pub(crate) fn of_kind(cluster: &Cluster, namespace: &str, resource: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("seen");
        let mut command = cluster.kubectl_command();
        command
            .args(["get", resource, "-n", namespace, "--watch", "-o", "json"])
            .arg("--output-watch-events")
            .stdout(fs::File::create(&log).unwrap())
            .stderr(Stdio::null());
        Self {
            child: command.spawn().unwrap(),
            log,
            _folder: folder,
        }
    }

    /// The states of the object of this name that were seen so far, in order.
    pub(crate) fn of(&self, name: &str) -> Vec<Value> {
        let all = self.all();
        all.into_iter()
            .filter(|object| object["metadata"]["name"] == name)
            .collect()
    }

    /// The states of all objects that were seen so far, in order.
    pub(crate) fn all(&self) -> Vec<Value> {
        let seen = fs::read(&self.log).unwrap();
        let events = serde_json::Deserializer::from_slice(&seen).into_iter::<Value>();
        // The last one may be half written.
        events
            .map_while(Result::ok)
            .map(|mut event| event["object"].take())
            .collect()
    }

    /// Says what happened to the pod that must not: it lost readiness, or a container of the application ended or was started
    /// again. The pod must have been ready.
    pub(crate) fn harm(&self, name: &str) -> Option<String> {
        let seen = self.of(name);
        if !seen.iter().any(|pod| is_true(pod, "Ready")) {
            let last = seen.last().map(|pod| pod["status"].clone());
            return Some(format!("{name} never was ready: {last:#?}"));
        }
        let mut was_ready = false;
        for pod in seen {
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                break;
            }
            let is_ready = is_true(&pod, "Ready");
            if was_ready && !is_ready {
                return Some(format!("{name} lost readiness: {:#}", pod["status"]));
            }
            was_ready |= is_ready;
            let statuses =
                ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].clone());
            for status in statuses.iter().filter_map(Value::as_array).flatten() {
                if status["restartCount"] != 0 {
                    return Some(format!("{name}: a container was started again: {status:#}"));
                }
            }
        }
        None
    }
}

impl Drop for History {
    fn drop(&mut self) {
        // It may have ended with its API server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs every case whatever becomes of the others, says how long each took, and fails with the names of those that failed.
pub(crate) fn run_cases(cases: &[(&str, &dyn Fn())]) {
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|(name, case)| {
            let begun = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(case));
            let verdict = if ended.is_ok() { "ok" } else { "FAILED" };
            healthscope_e2e_cluster::tell(&format!("{name}: {verdict} in {:.1?}", begun.elapsed()));
            let error = ended.err()?;
            Some(format!("{name}: {}", first_line(&*error)))
        })
        .collect();
    assert!(failed.is_empty(), "failed were\n{}", failed.join("\n"));
}

/// The first line of what a panic said; the whole is on standard error.
fn first_line(error: &(dyn Any + Send)) -> &str {
    let said = error
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| error.downcast_ref::<&str>().copied());
    said.and_then(|said| said.lines().next()).unwrap_or("no message")
}

/// A duration as it is told.
pub(crate) fn shown(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
