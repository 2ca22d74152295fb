//! The breaker on a real API server and its controllers: what suffers from injection is spared within seconds, and
//! injection resumes by itself on proof.
//!
//! There is no node: what a kubelet would say of pods is written by hand, in its words. Rights, canary and webhook are those
//! that the chart makes; the aggregator is its own program and has these rights alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/aggregator.rs"]
mod support;

use {
    crate::support::{Aggregator, Setup, apply, install, namespace, program},
    anyhow::{Context, ensure},
    healthscope_e2e_cluster::{Binaries, Cluster, Options, Program, Version, spawn, tell},
    rustix::process::Signal,
    serde_json::{Value, json},
    std::{
        fs,
        net::{Ipv4Addr, TcpListener},
        path::Path,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    },
};

const HOME: &str = "healthscope-system";
const IMAGE: &str = "example.org/healthscope-agent:test";
const CANARY: &str = "healthscope-canary-0";
/// By when harm must be stopped.
const GOAL: Duration = Duration::from_secs(30);

/// The installation, as far as it does not need a node.
struct Installation {
    cluster: Cluster,
    webhook: u16,
}

impl Installation {
    fn new() -> Self {
        let cluster = Cluster::start(&Options {
            controller_manager: true,
            ..Options::control_plane()
        })
        .unwrap();
        install(&cluster);
        namespace(&cluster, HOME);
        let webhook = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let installation = Self { cluster, webhook };
        installation.apply_chart();
        installation
    }

    /// What the chart makes, without the aggregator itself; the API server finds the webhook on this machine.
    fn apply_chart(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let helm = Binaries::ensure(&[Program::Helm], Version::NEWEST).unwrap();
        let output = Command::new(helm.path(Program::Helm))
            .current_dir(root)
            .args(["template", "healthscope", "charts/healthscope", "--skip-tests"])
            .args(["--namespace", HOME, "--set", "crds.install=false"])
            .args([
                "--set",
                "agent.image.repository=example.org/healthscope-agent,agent.image.tag=test",
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        for document in text.split("\n---\n") {
            let mut object: Value = serde_saphyr::from_str(document).unwrap();
            match object["kind"].as_str() {
                None | Some("Deployment" | "Service" | "PodDisruptionBudget") => continue,
                Some("MutatingWebhookConfiguration") => {
                    for entry in object["webhooks"].as_array_mut().unwrap() {
                        entry["clientConfig"]["service"]["port"] = self.webhook.into();
                    }
                }
                Some(_) => {}
            }
            apply(&self.cluster, HOME, &object.to_string());
        }
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "healthscope-webhook"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        });
        apply(&self.cluster, HOME, &service.to_string());
    }

    /// One replica, with the rights of the chart's ServiceAccount.
    fn start(&self) -> Aggregator<'_> {
        let user = format!("system:serviceaccount:{HOME}:healthscope-aggregator");
        let webhook = format!("127.0.0.1:{}", self.webhook);
        let arguments = [
            "--namespace",
            HOME,
            "--pod-name",
            "first",
            "--tls-secret",
            "healthscope-tls",
            "--webhook-listen",
            &webhook,
            "--webhook-configuration",
            "healthscope-agent-injector",
            "--agent-image",
            IMAGE,
            "--auth=none",
            "--log",
            "healthscope_aggregator=debug,info",
        ];
        let setup = Setup {
            kubeconfig: Some(self.cluster.kubeconfig_for(&user, None).unwrap()),
            arguments: arguments.map(str::to_owned).to_vec(),
            ..Setup::default()
        };
        Aggregator::launch(&self.cluster, setup)
    }

    /// A namespace whose pods get agents, as soon as they do.
    fn shop(&self, aggregator: &Aggregator<'_>, name: &str) {
        namespace(&self.cluster, name);
        let label = "healthscope.core.oam.dev/inject=enabled";
        self.cluster.kubectl(["label", "namespace", name, label]).unwrap();
        aggregator.until("pods to get agents", || {
            let output = self
                .cluster
                .kubectl_command()
                .args(["run", "probe", "--image=x", "--dry-run=server", "-o", "json", "-n", name])
                .args(["--overrides", r#"{"spec":{"containers":[{"name":"probe","image":"x","readinessProbe":{"tcpSocket":{"port":1}}}]}}"#])
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(has_agent(&serde_json::from_slice(&output.stdout)?).then_some(()))
        });
    }

    fn deploy(&self, namespace: &str, name: &str) {
        let container = json!({
            "name": "web", "image": "x",
            "readinessProbe": {"tcpSocket": {"port": 1}},
            "livenessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 10},
        });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
            },
        });
        apply(&self.cluster, namespace, &deployment.to_string());
    }

    /// So many pods of an application, each with an agent or each without.
    fn pods(&self, aggregator: &Aggregator<'_>, namespace: &str, name: &str, with_agent: bool) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{name}");
        let what = format!("two pods of {name}, with an agent: {with_agent}");
        aggregator.until(&what, || {
            let list = self.cluster.get(&path)?;
            let pods: Vec<Value> = list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .cloned()
                .collect();
            let all = pods.len() == 2 && pods.iter().all(|pod| has_agent(pod) == with_agent);
            Ok(all.then_some(pods))
        })
    }

    fn record(&self) -> anyhow::Result<Value> {
        let path = format!("/api/v1/namespaces/{HOME}/configmaps/healthscope-breaker");
        let map = self.cluster.get(&path)?;
        match map["data"]["record.json"].as_str() {
            Some(text) => serde_json::from_str(text).context("the record is damaged"),
            None => Ok(json!({"trips": []})),
        }
    }

    fn trips(&self) -> anyhow::Result<Vec<Value>> {
        Ok(self.record()?["trips"].as_array().context("no trips")?.clone())
    }

    /// What the kubelet says of a pod.
    fn says(&self, namespace: &str, pod: &str, status: &Value) {
        let patch = json!({"status": status}).to_string();
        self.cluster
            .kubectl([
                "patch",
                "pod",
                pod,
                "-n",
                namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ])
            .unwrap();
    }

    fn cannot_pull(&self, namespace: &str, pod: &str) {
        let message = format!("Back-off pulling image \"{IMAGE}\": ErrImagePull: not found");
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": message}});
        self.says(
            namespace,
            pod,
            &json!({
                "phase": "Pending",
                "initContainerStatuses": [{
                    "name": "healthscope-agent", "image": IMAGE, "imageID": "", "ready": false, "restartCount": 0,
                    "state": waiting,
                }],
            }),
        );
    }

    fn runs(&self, namespace: &str, pod: &str, since: &str) {
        let running = |name: &str| {
            json!({
                "name": name, "image": IMAGE, "imageID": "", "ready": true, "restartCount": 0, "started": true,
                "state": {"running": {"startedAt": since}},
            })
        };
        let containers = self
            .cluster
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))
            .unwrap()["spec"]["containers"][0]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        self.says(
            namespace,
            pod,
            &json!({
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}],
                "initContainerStatuses": [running("healthscope-agent")],
                "containerStatuses": [running(&containers)],
            }),
        );
    }

    fn canary(&self) -> Option<String> {
        let pod = self
            .cluster
            .get(&format!("/api/v1/namespaces/{HOME}/pods/{CANARY}"))
            .ok()?;
        Some(pod["metadata"]["uid"].as_str()?.to_owned())
    }

    /// The agent of a pod, as its own program, with the pod's token.
    fn agent(
        &self,
        aggregator: &Aggregator<'_>,
        namespace: &str,
        pod: &str,
        account: &str,
        check: &Value,
    ) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let uid = self
            .cluster
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))
            .unwrap()["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned();
        let token = self
            .cluster
            .kubectl([
                "create",
                "token",
                account,
                "-n",
                namespace,
                "--audience=healthscope.core.oam.dev",
                "--bound-object-kind=Pod",
                &format!("--bound-object-name={pod}"),
                &format!("--bound-object-uid={uid}"),
            ])
            .unwrap();
        let authority = self
            .cluster
            .get(&format!("/api/v1/namespaces/{HOME}/configmaps/healthscope-ca"))
            .unwrap()["data"]["ca.crt"]
            .as_str()
            .unwrap()
            .to_owned();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let component = json!({
            "apiVersion": "healthscope.core.oam.dev/v1beta1", "kind": "Component", "metadata": {"name": "x"},
            "spec": {"host": "127.0.0.1", "probes": [check]},
        });
        let log = fs::File::create(self.cluster.folder().join(format!("agent-{pod}.log"))).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program("healthscope-agent"))
            .args(["--component", &component.to_string()])
            .args(["--aggregator", &format!("wss://127.0.0.1:{}", aggregator.port())])
            .args(["--server-name", &format!("healthscope-aggregator.{HOME}.svc")])
            .arg("--ca")
            .arg(file("ca.crt", &authority))
            .arg("--token-file")
            .arg(file("token", token.trim()))
            .arg("--runner-dir")
            .arg(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Agent {
            child: spawn(command).unwrap(),
            _folder: folder,
        }
    }

    /// An Event about something in a namespace.
    fn event(&self, namespace: &str, reason: &str) -> anyhow::Result<Option<Value>> {
        let list = self
            .cluster
            .get(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))?;
        let events = list["items"].as_array().context("no list")?;
        Ok(events.iter().find(|event| event["reason"] == reason).cloned())
    }
}

/// An agent's program; killed with this value.
struct Agent {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_agent(pod: &Value) -> bool {
    pod["spec"]["initContainers"][0]["name"] == "healthscope-agent"
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

/// A minute ago, as Kubernetes writes it.
fn a_minute_ago() -> String {
    let moment = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60);
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[test]
fn harm_is_stopped_within_seconds_and_injection_resumes_on_proof() {
    let installation = Installation::new();
    let aggregator = installation.start();
    an_image_that_cannot_be_pulled(&installation, &aggregator);
    a_pod_that_is_refused(&installation, &aggregator);
    a_runner_that_never_comes_up(&installation, &aggregator);
}

fn an_image_that_cannot_be_pulled(installation: &Installation, aggregator: &Aggregator<'_>) {
    let cluster = &installation.cluster;
    installation.shop(aggregator, "shop");
    let first = aggregator.until("the canary", || Ok(installation.canary()));
    installation.deploy("shop", "web");
    let pods = installation.pods(aggregator, "shop", "web", true);
    assert_eq!(installation.trips().unwrap(), Vec::<Value>::new());

    let begun = Instant::now();
    installation.cannot_pull(HOME, CANARY);
    for pod in &pods {
        installation.cannot_pull("shop", name(pod));
    }
    let trip = aggregator.until("the breaker to open", || {
        Ok(installation.trips()?.into_iter().next())
    });
    let took = begun.elapsed();
    tell(&format!("the breaker opened after {took:.1?}"));
    assert!(took < GOAL, "{took:?}");
    assert_eq!(trip["level"], "Owner", "{trip}");
    assert_eq!(trip["namespace"], "shop", "{trip}");
    assert_eq!(
        trip["owner"],
        json!({"kind": "Deployment", "name": "web"}),
        "{trip}"
    );
    assert_eq!(
        (&trip["cause"], &trip["reduction"]),
        (&json!("ImagePull"), &json!("Off"))
    );
    assert_eq!(trip["image"], IMAGE);
    assert!(trip["message"].as_str().unwrap().contains("not found"), "{trip}");

    let event = aggregator.until("the Event", || installation.event("shop", "InjectionReduced"));
    assert_eq!(event["regarding"]["kind"], "Deployment", "{event}");
    assert_eq!(event["regarding"]["name"], "web", "{event}");
    assert!(event["regarding"]["uid"].is_string(), "{event}");
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("cannot be pulled") && note.contains("by itself"),
        "{note}"
    );

    // New pods come up without it, and others get theirs.
    cluster
        .kubectl(["delete", "pod", "-n", "shop", "-l", "app=web", "--wait=false"])
        .unwrap();
    installation.pods(aggregator, "shop", "web", false);
    installation.deploy("shop", "other");
    installation.pods(aggregator, "shop", "other", true);

    // A restart keeps it, and what somebody breaks is written anew.
    aggregator.end(Signal::TERM);
    aggregator.start_again();
    installation.shop(aggregator, "after-restart");
    let garbage = r#"{"data": {"record.json": "{\"trips\": 7"}}"#;
    cluster
        .kubectl([
            "patch",
            "configmap",
            "healthscope-breaker",
            "-n",
            HOME,
            "--type=merge",
            "-p",
            garbage,
        ])
        .unwrap();
    let again = aggregator.until("the record to be written anew", || {
        Ok(installation
            .trips()
            .ok()
            .and_then(|trips| trips.into_iter().next()))
    });
    assert_eq!(again["since"], trip["since"]);
    let damaged = aggregator.log().matches("is damaged and is written anew").count();
    assert_eq!(damaged, 1);

    // The canary is made anew until it runs.
    let second = aggregator.until("another canary", || {
        Ok(installation.canary().filter(|uid| *uid != first))
    });
    tell(&format!("canary {second} instead of {first}"));
    installation.runs(HOME, CANARY, &a_minute_ago());
    let check = json!({"name": "runner", "exec": {"command": ["true"]}, "periodSeconds": 1});
    let _agent = installation.agent(aggregator, HOME, CANARY, "healthscope-canary", &check);
    aggregator.until("the breaker to close", || {
        Ok(installation.trips()?.is_empty().then_some(()))
    });
    let event = aggregator.until("the other Event", || {
        installation.event("shop", "InjectionResumed")
    });
    assert_eq!(
        (&event["type"], &event["regarding"]["name"]),
        (&json!("Normal"), &json!("web"))
    );
    cluster
        .kubectl(["delete", "pod", "-n", "shop", "-l", "app=web", "--wait=false"])
        .unwrap();
    installation.pods(aggregator, "shop", "web", true);
}

/// Somebody's policy refuses every pod with an agent.
fn a_pod_that_is_refused(installation: &Installation, aggregator: &Aggregator<'_>) {
    let cluster = &installation.cluster;
    installation.shop(aggregator, "strict");
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-agents"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
            }]},
            "validations": [{
                "expression": "!has(object.spec.initContainers) || object.spec.initContainers.all(c, c.name != 'healthscope-agent')",
                "message": "container healthscope-agent is not welcome",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-agents"},
        "spec": {
            "policyName": "no-agents", "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "strict"}}},
        },
    });
    for object in [policy, binding] {
        apply(cluster, "strict", &object.to_string());
    }
    aggregator.until("the policy to be in force", || {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": "strict"},
            "spec": {"initContainers": [{"name": "healthscope-agent", "image": "x"}], "containers": [{"name": "x", "image": "x"}]},
        });
        let file = tempfile::NamedTempFile::new_in(cluster.folder())?;
        fs::write(file.path(), pod.to_string())?;
        let output = cluster
            .kubectl_command()
            .args(["create", "--dry-run=server", "-f"])
            .arg(file.path())
            .output()?;
        Ok((!output.status.success()).then_some(()))
    });
    let begun = Instant::now();
    installation.deploy("strict", "web");
    let trip = aggregator.until("the breaker to open", || {
        Ok(installation.trips()?.into_iter().next())
    });
    let took = begun.elapsed();
    tell(&format!("the breaker opened after {took:.1?}"));
    assert!(took < GOAL, "{took:?}");
    assert_eq!(
        (&trip["cause"], &trip["level"]),
        (&json!("FailedCreate"), &json!("Owner")),
        "{trip}"
    );
    installation.pods(aggregator, "strict", "web", false);
    // The canary was well all the time, and nothing closes it but a wish.
    assert_eq!(installation.trips().unwrap().len(), 1);
    let wish = "healthscope.core.oam.dev/retry-injection=now";
    cluster
        .kubectl(["annotate", "namespace", "strict", wish])
        .unwrap();
    aggregator.until("the breaker to close", || {
        Ok(installation.trips()?.is_empty().then_some(()))
    });
}

fn a_runner_that_never_comes_up(installation: &Installation, aggregator: &Aggregator<'_>) {
    installation.shop(aggregator, "bare");
    installation.deploy("bare", "web");
    let pods = installation.pods(aggregator, "bare", "web", true);
    let carried = |pod: &Value| {
        pod["spec"]["containers"][0]["livenessProbe"]["exec"]["command"][0] == "/healthscope/runner"
    };
    assert!(carried(&pods[0]), "{}", pods[0]);
    let pod = name(&pods[0]);
    installation.runs("bare", pod, &a_minute_ago());
    let check = json!({
        "name": "liveness",
        "exec": {"command": ["cat", "/tmp/ok"], "container": "web", "check": 0},
        "periodSeconds": 1,
    });
    let _agent = installation.agent(aggregator, "bare", pod, "default", &check);
    let trip = aggregator.until("the breaker to open", || {
        Ok(installation.trips()?.into_iter().next())
    });
    assert_eq!(trip["cause"], "CarrierMissing", "{trip}");
    assert_eq!(trip["reduction"], "WithoutCommands", "{trip}");
    installation
        .cluster
        .kubectl(["delete", "pod", "-n", "bare", "-l", "app=web", "--wait=false"])
        .unwrap();
    aggregator.until("pods whose own probe is as it was", || {
        let pods = installation.pods(aggregator, "bare", "web", true);
        Ok(pods.iter().all(|pod| !carried(pod)).then_some(()))
    });
}
