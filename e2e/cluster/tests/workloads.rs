//! Every kind of workload with agents in its pods, on a real node: Jobs end, rollouts flip nothing, and a node in trouble is
//! never taken for a sick application.
//!
//! One node and one installation for all cases, which follow each other: each finds the workloads healthy and leaves them so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/installation.rs"]
mod installation;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        installation::{
            History, Installation, RELEASE, fed, is_injected, is_true, printed, restricted, run_cases,
            scope_of,
        },
        support::Watched,
    },
    anyhow::ensure,
    healthscope_e2e_cluster::{Component, tell, timed},
    rustix::process::{Pid, Signal, kill_process},
    serde_json::{Value, json},
    std::{
        fs,
        time::{Duration, Instant},
    },
};

const WORK: &str = "work";
/// The workloads that last, with a scope each.
const APPS: [&str; 4] = ["web", "db", "log", "one"];
/// As many as the goal names.
const REPLICAS: u32 = 20;
/// As many as are enough to tell one from all.
const FEW: u32 = 3;
/// How long the network is cut: twice as long as an agent may be silent before it counts as lost.
const CUT: Duration = Duration::from_secs(60);
/// Where agents find the aggregator.
const AGENTS_PORT: &str = "7575";

/// A pod template with a command check that the kubelet knows nothing of: twenty of its own would keep the node busy. It
/// is patient, because the node is busy anyway.
fn template(app: &str, script: &str, restart_policy: &str) -> Value {
    let check = json!({
        "name": "file", "exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 2, "timeoutSeconds": 10,
    });
    json!({
        "metadata": {
            "labels": {"app": app},
            "annotations": {"healthscope.core.oam.dev/probes": json!([check]).to_string()},
        },
        "spec": {
            "restartPolicy": restart_policy,
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [{
                "name": "main", "image": "local/busybox:1", "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "securityContext": restricted(1000),
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }],
        },
    })
}

const WAIT: &str = "echo fine >/tmp/ok; exec sleep 1000000";

fn workload(kind: &str, name: &str, more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template(name, WAIT, "Always")},
    });
    for (field, value) in more.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    object
}

struct World {
    installation: Installation,
    history: History,
}

impl World {
    fn new() -> Self {
        let installation = Installation::start();
        installation.namespace(WORK, true);
        let world = Self {
            history: History::begin(&installation.cluster, WORK),
            installation,
        };
        let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 5}});
        world.start(&workload(
            "Deployment",
            "web",
            &json!({"replicas": FEW, "strategy": surge}),
        ));
        world.start(&workload(
            "StatefulSet",
            "db",
            &json!({"replicas": 2, "serviceName": "db"}),
        ));
        world.start(&workload("DaemonSet", "log", &json!({})));
        world.start(&workload("Deployment", "one", &json!({})));
        world
    }

    fn start(&self, object: &Value) {
        let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap();
        let scope = scope_of(word("/apiVersion"), word("/kind"), word("/metadata/name"));
        self.installation.apply(WORK, &format!("{object}\n---\n{scope}"));
    }

    fn kubectl(&self, line: &str) -> String {
        self.installation.kubectl(WORK, line)
    }

    fn pods(&self, app: &str) -> Vec<Value> {
        let mut pods = self.installation.pods(WORK, &format!("app={app}")).unwrap();
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// Waits until the scope of that name is healthy with so many agents.
    fn until_healthy(&self, name: &str, agents: u32) {
        let what = format!("to be healthy with {agents} agents");
        self.installation
            .until_status(&what, WORK, name, |status| status["health"] == "Healthy");
        self.installation.until(&what, || {
            let shown = self.kubectl("healthscope get agents");
            let prefix = format!("{WORK}.{name}-");
            let connected = shown
                .lines()
                .filter(|line| line.starts_with(&prefix) && line.contains("connected"));
            let connected = connected.count();
            ensure!(connected == agents as usize, "{connected} are connected\n{shown}");
            Ok(Some(()))
        });
    }

    fn until_all_healthy(&self) {
        for (name, agents) in [("web", FEW), ("db", 2), ("log", 1), ("one", 1)] {
            self.until_healthy(name, agents);
        }
    }

    fn watch(&self, name: &str) -> Watched {
        Watched::begin(&self.installation.cluster, WORK, name)
    }

    fn every_kind_is_healthy_with_agents(&self) {
        timed("every kind to be healthy from inside", || {
            self.until_all_healthy();
        });
        for app in APPS {
            self.installation.until_passing(WORK, app);
            for pod in self.pods(app) {
                assert!(is_injected(&pod), "{pod:#}");
                assert_eq!(self.history.harm(pod["metadata"]["name"].as_str().unwrap()), None);
            }
        }
    }

    fn jobs_end(&self) {
        let job =
            json!({"backoffLimit": 0, "template": template("job", "echo fine >/tmp/ok; sleep 3", "Never")});
        self.start(&json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": job,
        }));
        self.start(&json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}},
        }));
        self.kubectl("create job --from=cronjob/nightly now");
        timed("two Jobs with agents to complete", || {
            self.kubectl("wait --for=condition=Complete --timeout=120s job/once job/now");
        });
        let mut pods = self.installation.pods(WORK, "app=job").unwrap();
        assert_eq!(pods.len(), 2);
        for pod in &mut pods {
            assert!(is_injected(pod), "{pod:#}");
            assert_eq!(pod["status"]["phase"], "Succeeded", "{:#}", pod["status"]);
            let agent = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"];
            assert_eq!(agent["exitCode"], 0, "{agent:#}");
        }
        for name in ["once", "nightly"] {
            self.installation.until_health(WORK, name, "Healthy");
        }
    }

    /// Nobody has fewer pods than wanted at any time, so the platform has nothing to say, and neither have we.
    fn a_rollout_flips_nothing(&self) {
        self.kubectl(&format!("scale deployment web --replicas={REPLICAS}"));
        timed("20 pods to be rolled out", || {
            self.kubectl("rollout status deployment/web --timeout=300s")
        });
        timed("20 agents", || self.until_healthy("web", REPLICAS));
        let watched = self.watch("web");
        let platform = History::of_kind(&self.installation.cluster, WORK, "deployments");
        timed("20 pods to be replaced", || {
            self.kubectl("rollout restart deployment/web");
            self.kubectl("rollout status deployment/web --timeout=300s")
        });
        timed("20 agents after a rollout", || {
            self.until_healthy("web", REPLICAS);
        });
        let ready = platform.of("web").into_iter();
        let least = ready
            .map(|object| object["status"]["readyReplicas"].as_u64().unwrap_or(0))
            .min();
        let seen = watched.seen();
        tell(&format!(
            "seen during a rollout of {REPLICAS} pods, of which {least:?} were ready at least: {seen:#?}"
        ));
        watched.never(&["Unhealthy", "Unknown"]);
        assert_eq!(least, Some(REPLICAS.into()));
        watched.never(&["Degraded"]);
        self.kubectl(&format!("scale deployment web --replicas={FEW}"));
        self.until_healthy("web", FEW);
        watched.never(&["Unhealthy", "Unknown"]);
    }

    fn a_rollout_of_one_pod_flips_nothing(&self) {
        let watched = self.watch("one");
        timed("one pod to be replaced", || {
            self.kubectl("rollout restart deployment/one");
            self.kubectl("rollout status deployment/one --timeout=120s")
        });
        timed("one agent after a rollout", || self.until_healthy("one", 1));
        tell(&format!(
            "seen during a rollout of one pod: {:#?}",
            watched.seen()
        ));
        watched.never(&["Unhealthy", "Unknown", "Degraded"]);
    }

    fn a_pod_that_goes_is_no_failure(&self) {
        // As many as the case before leaves, whatever became of it.
        self.kubectl(&format!("scale deployment web --replicas={FEW}"));
        self.until_healthy("web", FEW);
        let watched = self.watch("web");
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
        let deleted = name(&self.pods("web")[0]);
        timed("a deleted pod to be gone", || {
            self.kubectl(&format!("delete pod {deleted} --wait=true"))
        });
        self.until_healthy("web", FEW);
        let evicted = name(&self.pods("web")[0]);
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted, "namespace": WORK},
        });
        let path = format!("/api/v1/namespaces/{WORK}/pods/{evicted}/eviction");
        let mut command = self.installation.cluster.kubectl_command();
        let output = fed(
            command.args(["create", "--raw", &path, "-f", "-"]),
            &eviction.to_string(),
        )
        .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.kubectl(&format!("wait --for=delete pod/{evicted} --timeout=60s"));
        self.until_healthy("web", FEW);
        // Two of three for a moment is Degraded, as the platform says.
        watched.never(&["Unhealthy", "Unknown"]);
    }

    /// The pods that are there now, and that none of them is harmed by something.
    fn unharmed(&self, what: &dyn Fn()) {
        let names: Vec<String> = APPS
            .iter()
            .flat_map(|app| self.pods(app))
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        what();
        let harm: Vec<String> = names.iter().filter_map(|name| self.history.harm(name)).collect();
        assert!(harm.is_empty(), "{}", harm.join("\n"));
    }

    fn the_kubelet_is_restarted(&self) {
        let watched = self.watch("web");
        self.unharmed(&|| {
            self.installation.cluster.kill(Component::Kubelet).unwrap();
            timed("the kubelet again", || {
                self.installation.cluster.start_again(Component::Kubelet)
            })
            .unwrap();
            self.node_works("kubelet");
            self.until_all_healthy();
        });
        watched.never(&["Unhealthy", "Unknown"]);
    }

    fn containerd_is_restarted(&self) {
        let watched = self.watch("web");
        self.unharmed(&|| {
            self.installation.cluster.kill(Component::Containerd).unwrap();
            self.installation
                .cluster
                .start_again(Component::Containerd)
                .unwrap();
            self.node_works("containerd");
            self.until_all_healthy();
        });
        watched.never(&["Unhealthy", "Unknown"]);
    }

    /// A new pod starts, so whatever was restarted is at work again.
    fn node_works(&self, after: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("after-{after}")},
            "spec": template("after", WAIT, "Always")["spec"],
        });
        self.installation.apply(WORK, &pod.to_string());
        timed(&format!("a pod after a restart of {after}"), || {
            self.kubectl(&format!(
                "wait --for=condition=Ready --timeout=120s pod/after-{after}"
            ))
        });
        self.kubectl(&format!("delete pod after-{after} --wait=false"));
    }

    /// No packet between agents and aggregators.
    fn the_network_is_cut(&self) {
        let rules = [["--dport", AGENTS_PORT], ["--sport", AGENTS_PORT]];
        let change = |how: &str| {
            for [direction, port] in rules {
                let mut command = self.installation.cluster.command("iptables");
                command.args([
                    "--wait", how, "FORWARD", "-p", "tcp", direction, port, "-j", "DROP",
                ]);
                printed(&mut command);
            }
        };
        let watched = self.watch("web");
        self.unharmed(&|| {
            change("-I");
            let begun = Instant::now();
            let entry = self
                .installation
                .until_component(WORK, "web", "web", "Unknown", &["lost"]);
            assert_eq!(entry["reason"], "AgentLost", "{entry}");
            tell(&format!(
                "a cut network: AgentLost after {:.1?}: {}",
                begun.elapsed(),
                entry["message"]
            ));
            for name in ["db", "log", "one"] {
                self.installation.until_health(WORK, name, "Unknown");
            }
            // A minute of it, and nobody is called sick or well meanwhile.
            self.installation.until("the cut to last", || {
                for name in APPS {
                    let status = support::status(&self.installation.cluster, WORK, name)?;
                    assert_eq!(status["health"], "Unknown", "{status}");
                }
                Ok((begun.elapsed() >= CUT).then_some(()))
            });
            change("-D");
            timed("agents to be heard after a cut", || self.until_all_healthy());
        });
        watched.never(&["Unhealthy"]);
    }

    /// Every process of every pod ends at once, with the kubelet and containerd; then both start again.
    fn the_node_is_restarted(&self) {
        let cluster = &self.installation.cluster;
        let watched = self.watch("web");
        cluster.kill(Component::Kubelet).unwrap();
        cluster.kill(Component::Containerd).unwrap();
        let cgroup = cluster.folder().file_name().unwrap().to_str().unwrap().to_owned();
        for pid in processes_in(&cgroup) {
            // A container's others end with its first.
            let _ = kill_process(pid, Signal::KILL);
        }
        cluster.start_again(Component::Containerd).unwrap();
        // It ends when containerd is not ready for it yet, and whoever looks after it starts it again.
        self.installation.until("the kubelet to be back", || {
            cluster.kill(Component::Kubelet)?;
            cluster.start_again(Component::Kubelet).map(Some)
        });
        timed("the aggregator after a restart of the node", || {
            self.installation.until("the aggregator to be ready", || {
                let pods = self
                    .installation
                    .pods(RELEASE, "app.kubernetes.io/component=aggregator")?;
                let restarted = pods.iter().filter(|pod| {
                    is_true(pod, "Ready") && pod["status"]["containerStatuses"][0]["restartCount"] != 0
                });
                ensure!(restarted.count() == 2, "not yet");
                Ok(Some(()))
            });
        });
        timed("every kind to be healthy after a restart of the node", || {
            self.until_all_healthy();
        });
        tell(&format!(
            "seen during a restart of the node: {:#?}",
            watched.seen()
        ));
        for app in APPS {
            self.installation.until_passing(WORK, app);
        }
    }
}

/// The processes whose cgroup's path has this in it.
fn processes_in(cgroup: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // It may end meanwhile.
        let is_in = fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(cgroup));
        if let Ok(id) = name.parse()
            && is_in
        {
            found.extend(Pid::from_raw(id));
        }
    }
    found
}

#[test]
fn workloads_live_as_they_did_without_agents() {
    let world = World::new();
    run_cases(&[
        ("every kind", &|| world.every_kind_is_healthy_with_agents()),
        ("Jobs", &|| world.jobs_end()),
        ("a rollout of one pod", &|| {
            world.a_rollout_of_one_pod_flips_nothing();
        }),
        ("a rollout of 20 pods", &|| world.a_rollout_flips_nothing()),
        ("deletion and eviction", &|| world.a_pod_that_goes_is_no_failure()),
        ("the kubelet restarted", &|| world.the_kubelet_is_restarted()),
        ("containerd restarted", &|| world.containerd_is_restarted()),
        ("the network cut", &|| world.the_network_is_cut()),
        ("the node restarted", &|| world.the_node_is_restarted()),
    ]);
}
