//! Command checks inside the containers of a pod, on a real node: supervisor, agent and runner in a pod as the injector
//! makes it, under Pod Security `restricted`, beside a container with a shell and one that has nothing but one program.
//!
//! One pod for all of it, because what is asked in the end is that the pod never noticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/aggregator.rs"]
mod support;

use {
    crate::support::{Aggregator, NODE_ADDRESS, Setup, Tls, Watched, apply, install, kubectl, program},
    anyhow::ensure,
    healthscope_e2e_cluster::{Cluster, Image, Options, tell, timed},
    rustix::process::{Pid, Signal, kill_process},
    serde_json::{Value, json},
    std::{
        fs,
        path::PathBuf,
        process::Command,
        sync::Arc,
        thread,
        time::{Duration, Instant},
    },
};

const NAMESPACE: &str = "shop";
const AGENT_IMAGE: &str = "local/healthscope-agent:1";
/// Shorter than the injector's ten seconds, for the test's sake.
const CARRIER_SECONDS: u32 = 5;

/// The runner as it is shipped: static, so that it runs in a container that has nothing else.
fn static_runner() -> PathBuf {
    let target = program("healthscope-agent")
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let runner = target.join(triple).join("runner/healthscope-runner");
    assert!(
        runner.is_file(),
        "{} is not there: build it with cargo xtask runner",
        runner.display()
    );
    runner
}

/// The image as the Dockerfile makes it, with the libraries that this machine's linker gives the agent.
fn agent_image() -> Image {
    let agent = program("healthscope-agent");
    let linked = Command::new("ldd").arg(&agent).output().unwrap();
    let image = Image::new(AGENT_IMAGE)
        .file("/healthscope-agent", &agent, 0o755)
        .file("/healthscope-runner", static_runner(), 0o755)
        .user("2102:2102")
        .entrypoint(["/healthscope-agent"]);
    String::from_utf8(linked.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .fold(image, |image, library| image.file(library, library, 0o755))
}

fn restricted(user: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": user,
        "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// The probe that starts the runner in a container, with the commands that it is to know.
fn carrier(commands: &[&[&str]]) -> Value {
    let mut command = vec!["/healthscope/runner".to_owned(), "carry".to_owned()];
    for words in commands {
        command.extend(["-c".to_owned(), words.len().to_string()]);
        command.extend(words.iter().map(|word| (*word).to_owned()));
    }
    json!({
        "exec": {"command": command},
        "periodSeconds": CARRIER_SECONDS, "timeoutSeconds": 1, "failureThreshold": i32::MAX,
    })
}

/// A pod as the injector makes it.
fn pod(tls: &Tls, aggregator: u16) -> Value {
    let check = |name: &str, command: &[&str], container: &str| {
        json!({
            "name": name, "exec": {"command": command, "container": container, "check": 0},
            "periodSeconds": 1, "failureThreshold": 1,
        })
    };
    let bare_check = ["/healthscope/runner", "--version"];
    let component = json!({
        "apiVersion": "healthscope.core.oam.dev/v1beta1", "kind": "Component", "metadata": {"name": "web"},
        "spec": {
            "host": "$(HEALTHSCOPE_POD_IP)",
            "probes": [check("file", &["cat", "/tmp/ok"], "web"), check("bare", &bare_check, "bare")],
        },
    });
    let target_mount = |name: &str| json!({"name": "healthscope", "mountPath": "/healthscope", "subPath": name, "readOnly": true});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": false,
            "volumes": [
                {"name": "healthscope", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
                {"name": "healthscope-token", "projected": {"sources": [{"serviceAccountToken": {
                    "path": "token", "audience": "healthscope.core.oam.dev", "expirationSeconds": 3600,
                }}]}},
                {"name": "tmp", "emptyDir": {}},
            ],
            "initContainers": [{
                "name": "healthscope-agent", "image": AGENT_IMAGE, "imagePullPolicy": "Never", "restartPolicy": "Always",
                "command": [
                    "/healthscope-runner", "supervise", "--dir", "/healthscope", "--target", "web", "--target", "bare",
                    "--", "/healthscope-agent",
                ],
                "env": [
                    {"name": "HEALTHSCOPE_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "HEALTHSCOPE_COMPONENT", "value": component.to_string()},
                    {"name": "HEALTHSCOPE_AGGREGATOR", "value": format!("wss://{NODE_ADDRESS}:{aggregator}")},
                    {"name": "HEALTHSCOPE_CA_PEM", "value": tls.pem},
                    {"name": "HEALTHSCOPE_CA_STORE", "value": "/healthscope/.agent/ca.pem"},
                    {"name": "HEALTHSCOPE_TOKEN_FILE", "value": "/var/run/secrets/healthscope/token"},
                    {"name": "HEALTHSCOPE_AGENT_SOCKET", "value": "/healthscope/.agent/agent.sock"},
                    {"name": "HEALTHSCOPE_RUNNER_DIR", "value": "/healthscope"},
                ],
                "securityContext": restricted(2102),
                "volumeMounts": [
                    {"name": "healthscope", "mountPath": "/healthscope"},
                    {"name": "healthscope-token", "mountPath": "/var/run/secrets/healthscope", "readOnly": true},
                ],
            }],
            "containers": [
                {
                    "name": "web", "image": "local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", "touch /tmp/ok; exec sleep 1000000"],
                    "livenessProbe": carrier(&[&["cat", "/tmp/ok"]]),
                    "securityContext": restricted(1000),
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, target_mount("web")],
                },
                {
                    "name": "bare", "image": "local/pause:1", "imagePullPolicy": "Never",
                    "livenessProbe": carrier(&[&bare_check]),
                    "securityContext": restricted(1001),
                    "volumeMounts": [target_mount("bare")],
                },
            ],
        },
    })
}

/// The cluster, the aggregator and what is asked of the pod.
struct World<'a> {
    cluster: &'a Cluster,
    aggregator: &'a Aggregator<'a>,
}

impl World<'_> {
    fn pod(&self) -> Value {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/web");
        self.cluster.get(&path).unwrap()
    }

    /// When the pod became ready last; it must be ready.
    fn ready_since(&self) -> String {
        let pod = self.pod();
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready")
            .unwrap();
        assert_eq!(ready["status"], "True", "{ready}");
        ready["lastTransitionTime"].as_str().unwrap().to_owned()
    }

    /// The pod's processes that were started by this command line, seen from outside.
    fn processes(&self, line: &str) -> Vec<Pid> {
        support::processes(&self.pod(), line)
    }

    fn one(&self, line: &str) -> Pid {
        let found = self.processes(line);
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        found[0]
    }

    fn in_web(&self, script: &str) -> String {
        let arguments = [
            "exec", "-n", NAMESPACE, "web", "-c", "web", "--", "sh", "-c", script,
        ];
        self.cluster.kubectl(arguments).unwrap()
    }

    fn break_and_mend(&self) {
        timed("a broken file in a container", || {
            self.in_web("rm /tmp/ok");
            self.aggregator.until_component(
                NAMESPACE,
                "shop",
                "web",
                "Unhealthy",
                &[
                    "exec cat /tmp/ok in container web",
                    "exit code 1",
                    "No such file or directory",
                ],
            )
        });
        self.in_web("touch /tmp/ok");
        self.aggregator.until_health(NAMESPACE, "shop", "Healthy");
    }

    /// Resident memory and, of it, what is nobody else's.
    fn memory(&self, what: &str, pid: Pid) {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
        let of = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        tell(&format!(
            "{what}: RSS {}, of it anonymous {}",
            of("VmRSS:"),
            of("RssAnon:")
        ));
    }
}

#[test]
fn commands_run_inside_the_containers_and_the_pod_never_notices() {
    let cluster = Cluster::start(&Options::node()).unwrap();
    timed("import of busybox", || cluster.import(&Image::busybox())).unwrap();
    timed("import of the agent", || cluster.import(&agent_image())).unwrap();
    install(&cluster);
    let tls = Arc::new(Tls::create());
    let setup = Setup {
        is_inside: true,
        tls: Some(Arc::clone(&tls)),
        ..Setup::default()
    };
    let aggregator = Aggregator::launch(&cluster, setup);
    aggregator.wait_ready();

    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    cluster.apply(&namespace.to_string()).unwrap();
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    cluster
        .wait_for("the ServiceAccount", support::LIMIT, || {
            cluster.get(&account).map(Some)
        })
        .unwrap();
    let scope = json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope", "metadata": {"name": "shop"},
        "spec": {"workloadRefs": [{"apiVersion": "v1", "kind": "Pod", "name": "web"}]},
    });
    apply(&cluster, NAMESPACE, &scope.to_string());
    apply(&cluster, NAMESPACE, &pod(&tls, aggregator.port()).to_string());
    timed("the pod to be ready", || {
        kubectl(
            &cluster,
            NAMESPACE,
            "wait --for=condition=Ready --timeout=120s pod/web",
        )
    });
    let world = World {
        cluster: &cluster,
        aggregator: &aggregator,
    };
    // For a while after its start a pod is what Kubernetes says of it, with runners or without.
    timed("both runners to be up", || {
        aggregator.until("both runners", || {
            let lines = [
                "healthscope-runner serve -c 2 cat",
                "healthscope-runner serve -c 2 /healthscope",
            ];
            let found = lines.map(|line| world.processes(line).len());
            ensure!(found == [1, 1], "{found:?}");
            Ok(Some(()))
        })
    });
    aggregator.until_health(NAMESPACE, "shop", "Healthy");
    let ready_since = world.ready_since();
    world.memory("supervisor", world.one("/healthscope-runner supervise"));
    world.memory("agent", world.one("/healthscope-agent"));
    world.memory("runner in web", world.one("healthscope-runner serve -c 2 cat"));
    world.memory(
        "runner in bare",
        world.one("healthscope-runner serve -c 2 /healthscope"),
    );

    world.break_and_mend();

    // The runner gone: unknown, never unhealthy, and back with the next carrier.
    let watched = Watched::begin(&cluster, NAMESPACE, "shop");
    kill_process(world.one("healthscope-runner serve -c 2 cat"), Signal::KILL).unwrap();
    timed("a killed runner to be noticed", || {
        aggregator.until("what is said of a killed runner", || {
            let status = support::status(&cluster, NAMESPACE, "shop")?;
            let seen = watched.seen();
            ensure!(
                seen.iter().any(|line| line.starts_with("Unknown")),
                "seen were {seen:?}, and now {status}"
            );
            Ok(Some(()))
        })
    });
    timed("a killed runner to be back", || {
        aggregator.until_health(NAMESPACE, "shop", "Healthy")
    });
    watched.never(&["Unhealthy"]);
    drop(watched);

    // The agent gone: started again by its supervisor, and its runners find it.
    let agent = world.one("/healthscope-agent");
    kill_process(agent, Signal::KILL).unwrap();
    timed("a killed agent to be back", || {
        aggregator.until("another agent", || {
            let agents = world.processes("/healthscope-agent");
            ensure!(agents.len() == 1 && agents[0] != agent, "there are {agents:?}");
            Ok(Some(()))
        })
    });
    world.break_and_mend();

    // Until here nothing was restarted, and the pod was ready all the time.
    let pod = world.pod();
    for list in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][list].as_array().unwrap() {
            assert_eq!(status["restartCount"], 0, "{status}");
        }
    }
    assert_eq!(world.ready_since(), ready_since);

    // The carriers were never worth an Event. (One that is due while its container is dead is, as any probe is.)
    let events = cluster
        .get(&format!("/api/v1/namespaces/{NAMESPACE}/events"))
        .unwrap();
    for event in events["items"].as_array().unwrap() {
        let reason = event["reason"].as_str().unwrap_or_default();
        assert!(
            !["Unhealthy", "ProbeWarning", "ProbeError"].contains(&reason),
            "{event}"
        );
    }

    // The container gone: noticed at once, before the kubelet says so.
    // A scope that changed a moment ago is written at most once a second, and is not what is measured here.
    thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    kill_process(world.one("sleep 1000000"), Signal::KILL).unwrap();
    let mut in_scope = None;
    let mut in_pod = None;
    aggregator.until("the end of the container in both views", || {
        let status = support::status(&cluster, NAMESPACE, "shop")?;
        if status["health"] != "Healthy" {
            in_scope.get_or_insert_with(|| begun.elapsed());
        }
        let pod = world.pod();
        let web = pod["status"]["containerStatuses"]
            .as_array()
            .and_then(|list| list.iter().find(|status| status["name"] == "web").cloned())
            .unwrap_or_default();
        if web["state"]["running"].is_null() || web["restartCount"] != 0 {
            in_pod.get_or_insert_with(|| begun.elapsed());
        }
        Ok(in_scope.zip(in_pod))
    });
    tell(&format!(
        "a killed container: in the scope's status after {in_scope:?}, in the pod's after {in_pod:?}"
    ));
    timed("a killed container's runner to be back", || {
        aggregator.until_health(NAMESPACE, "shop", "Healthy")
    });
    world.one("healthscope-runner serve -c 2 cat");

    // Told to end, the pod is gone well within its grace.
    let begun = Instant::now();
    timed("the pod to be deleted", || {
        kubectl(&cluster, NAMESPACE, "delete pod web --wait=true --timeout=60s")
    });
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
