//! `healthscope check` of an installation, against a real API server: before there is one, fresh, running, with one thing
//! after the other broken, and seen by somebody who may read nothing. And `--fix`, with pods whose status is written as a
//! kubelet would write it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    healthscope_e2e_cluster::{Binaries, Cluster, Options, Program, Version, timed},
    serde_json::{Value, json},
    std::{
        collections::BTreeMap,
        io::{BufRead, BufReader},
        net::{Ipv4Addr, TcpListener},
        path::Path,
        process::{Command, Output, Stdio},
        time::{Duration, Instant},
    },
    support::{Aggregator, Setup, program},
};

#[path = "support/aggregator.rs"]
mod support;

const HOME: &str = "healthscope-system";
const WEBHOOK: &str = "healthscope-agent-injector";
const INJECT: &str = "healthscope.core.oam.dev/inject";
const IMAGE: &str = "example.org/healthscope-agent:test";

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A check by its section (the namespace, where it is one) and id, with its outcome.
type Ill = (String, String, String);

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn checks(&self) -> Vec<(String, Value)> {
        let report = self.json();
        let mut found = Vec::new();
        for section in report["sections"].as_array().unwrap() {
            let name = section["namespace"].as_str().or(section["id"].as_str()).unwrap();
            for check in section["checks"].as_array().unwrap() {
                found.push((name.to_owned(), check.clone()));
            }
        }
        found
    }

    /// What is not well. The canary is not looked at here: an installation that does not run yet may have one or not.
    fn ill(&self) -> Vec<Ill> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = self.checks().into_iter();
        let ill = all.filter(|(_, check)| check["result"] != "ok" && check["result"] != "skipped");
        ill.filter(|(_, check)| check["id"] != "canary")
            .map(|(section, check)| (section, text(&check["id"]), text(&check["result"])))
            .collect()
    }

    /// All that is said in a check.
    fn said(&self, id: &str) -> String {
        let checks = self.checks();
        let found = checks.iter().find(|(_, check)| check["id"] == id);
        found
            .unwrap_or_else(|| panic!("{id}: {}", self.out))
            .1
            .to_string()
    }
}

/// `healthscope check`, as its own name, with a kubeconfig.
fn command(kubeconfig: &Path, line: &str) -> Command {
    let mut command = Command::new(program("healthscope"));
    command
        .env_clear()
        .env("HOME", std::env::temp_dir())
        .env("KUBECONFIG", kubeconfig)
        .arg("check")
        .args(line.split(' ').filter(|word| !word.is_empty()))
        .stdin(Stdio::null());
    command
}

fn run(kubeconfig: &Path, line: &str) -> Answer {
    Answer::of(command(kubeconfig, line).output().unwrap())
}

/// Exactly these are not well.
#[track_caller]
fn expect(cluster: &Cluster, line: &str, code: i32, expected: &[(&str, &str, &str)]) -> Answer {
    let answer = run(&cluster.kubeconfig(), &format!("{line} -o json"));
    let wanted: Vec<Ill> = expected
        .iter()
        .map(|(section, id, outcome)| ((*section).to_owned(), (*id).to_owned(), (*outcome).to_owned()))
        .collect();
    assert_eq!(answer.ill(), wanted, "{}{}", answer.out, answer.err);
    assert_eq!(answer.code, Some(code), "{answer:?}");
    answer
}

/// What the chart makes of its defaults, and of these values.
fn rendered(values: &str) -> String {
    let helm = Binaries::ensure(&[Program::Helm], Version::NEWEST).unwrap();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/healthscope");
    let output = Command::new(helm.path(Program::Helm))
        .arg("template")
        .arg("healthscope")
        .arg(chart)
        .args([&format!("--namespace={HOME}"), "--skip-tests", values])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn install(cluster: &Cluster) {
    cluster.kubectl(["create", "namespace", HOME]).unwrap();
    account(cluster, HOME);
    let values = "--set=agent.image.repository=example.org/healthscope-agent,agent.image.tag=test";
    cluster.apply(&rendered(values)).unwrap();
    cluster
        .kubectl([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/healthscopes.core.oam.dev",
        ])
        .unwrap();
}

/// What a controller makes in each namespace, and pods cannot do without.
fn account(cluster: &Cluster, namespace: &str) {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
    });
    cluster.apply(&account.to_string()).unwrap();
}

/// The canary, ready.
fn canary(cluster: &Cluster) {
    let canary = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "healthscope-canary-0", "namespace": HOME},
        "spec": {
            "initContainers": [{"name": "healthscope-agent", "image": IMAGE, "restartPolicy": "Always"}],
            "containers": [{"name": "main", "image": IMAGE}],
        },
    });
    cluster.apply(&canary.to_string()).unwrap();
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    patch(
        cluster,
        &["pod", "healthscope-canary-0", "-n", HOME, "--subresource=status"],
        "merge",
        &ready,
    );
}

fn patch(cluster: &Cluster, words: &[&str], kind: &str, patch: &Value) {
    let (kind, patch) = (format!("--type={kind}"), patch.to_string());
    let all = ["patch"]
        .iter()
        .chain(words)
        .copied()
        .chain([kind.as_str(), "-p", patch.as_str()]);
    cluster.kubectl(all).unwrap();
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// What the controllers and the kubelet of a cluster with nodes would have written, and a way for this API server to the
/// webhook on this machine.
fn as_if_on_nodes(cluster: &Cluster, port: u16) {
    patch(
        cluster,
        &[
            "deployment",
            "healthscope-aggregator",
            "-n",
            HOME,
            "--subresource=status",
        ],
        "merge",
        &json!({"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2}}),
    );
    cluster
        .kubectl(["delete", "service", "healthscope-webhook", "-n", HOME])
        .unwrap();
    let labels =
        json!({"app.kubernetes.io/name": "healthscope", "app.kubernetes.io/component": "aggregator"});
    let objects = [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "healthscope-webhook", "namespace": HOME},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }),
        endpoints(true),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "first", "namespace": HOME, "labels": labels},
            "spec": {"containers": [{"name": "aggregator", "image": "x"}]},
        }),
    ];
    for object in objects {
        cluster.apply(&object.to_string()).unwrap();
    }
    canary(cluster);
    let route = |entry: usize| json!({"op": "replace", "path": format!("/webhooks/{entry}/clientConfig/service/port"), "value": port});
    patch(
        cluster,
        &["mutatingwebhookconfiguration", WEBHOOK],
        "json",
        &json!([route(0), route(1)]),
    );
}

fn endpoints(ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "webhook", "namespace": HOME, "labels": {"kubernetes.io/service-name": "healthscope-webhook"}},
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": ready}}],
        "ports": [{"port": 9443}],
    })
}

fn shop(cluster: &Cluster, name: &str) {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {INJECT: "enabled"}},
    });
    cluster.apply(&namespace.to_string()).unwrap();
    account(cluster, name);
}

/// A record of the breaker: one Deployment gets no agents.
fn trip(namespace: &str) -> Value {
    let record = json!({"trips": [{
        "level": "Owner", "namespace": namespace, "owner": {"kind": "Deployment", "name": "web"}, "reduction": "Off",
        "cause": "ImagePull", "message": "ImagePullBackOff: manifest unknown", "image": IMAGE,
        "since": jiff::Timestamp::now().to_string(), "pods": ["web-1"],
    }]});
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "healthscope-breaker", "namespace": HOME},
        "data": {"record.json": record.to_string()},
    })
}

#[test]
fn an_installation_is_looked_at_from_before_it_is_there_until_it_is_broken() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    let nobody = cluster.kubeconfig_for("nobody", None).unwrap();

    // Nothing is there.
    let answer = expect(
        &cluster,
        "",
        1,
        &[
            ("definition", "definition", "failure"),
            ("control-plane", "installed", "failure"),
        ],
    );
    assert!(
        answer.said("installed").contains("helm install healthscope"),
        "{answer:?}"
    );
    let before = run(&cluster.kubeconfig(), "--pre");
    assert_eq!(before.code, Some(0), "{before:?}");
    assert!(
        before
            .out
            .contains("ok       you may make what the installation has"),
        "{before:?}"
    );
    let before = run(&nobody, "--pre -q");
    assert_eq!(before.code, Some(1), "{before:?}");
    assert!(
        before
            .out
            .contains("you may not create namespaces in the whole cluster"),
        "{before:?}"
    );

    // Fresh, and nothing runs. That the rights are found complete shows that the list of them is that of the chart.
    install(&cluster);
    shop(&cluster, "shop");
    let fresh = [
        ("control-plane", "replicas", "failure"),
        ("control-plane", "pods", "failure"),
        ("control-plane", "lease", "failure"),
        ("certificates", "authorities", "failure"),
        ("webhook", "ca-bundle", "failure"),
        ("webhook", "webhook-endpoints", "failure"),
        ("webhook", "rehearsal", "failure"),
    ];
    let answer = expect(&cluster, "", 1, &fresh);
    assert!(
        answer.said("rights").contains("rights of healthscope-aggregator"),
        "{answer:?}"
    );

    // Running. Whoever waits sees it come.
    let port = free_port();
    as_if_on_nodes(&cluster, port);
    let listen = format!("127.0.0.1:{port}");
    let arguments = [
        "--namespace",
        HOME,
        "--pod-name",
        "first",
        "--tls-secret",
        "healthscope-tls",
        "--webhook-listen",
        &listen,
        "--webhook-configuration",
        WEBHOOK,
        "--agent-image",
        IMAGE,
        "--allow-plaintext",
    ];
    let mut waiting = command(&cluster.kubeconfig(), "--wait 120s")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(waiting.stderr.as_mut().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert!(
        said.starts_with("waiting, not yet so: ") && said.contains("one of the replicas serves"),
        "{said}"
    );
    let aggregator = Aggregator::launch(
        &cluster,
        Setup {
            kubeconfig: Some(cluster.kubeconfig()),
            arguments: arguments.map(str::to_owned).to_vec(),
            ..Setup::default()
        },
    );
    let waited = timed("check --wait", || Answer::of(waiting.wait_with_output().unwrap()));
    assert_eq!(waited.code, Some(0), "{waited:?}");
    assert!(
        waited
            .out
            .contains("ok       a pod that is made now in shop gets an agent (dry run)"),
        "{waited:?}"
    );
    let well = expect(&cluster, "", 0, &[]);
    assert!(well.said("lease").contains("first, renewed"), "{well:?}");
    assert_eq!(well.json()["cluster"], cluster.server());

    // One thing after the other.
    let each = |words: &[&str],
                broken: Value,
                repaired: Value,
                expected: &[(&str, &str, &str)],
                words_said: &str| {
        patch(&cluster, words, "json", &broken);
        let answer = expect(
            &cluster,
            "",
            i32::from(expected.iter().any(|(_, _, outcome)| *outcome == "failure")),
            expected,
        );
        assert!(answer.out.contains(words_said), "{words_said}: {answer:?}");
        patch(&cluster, words, "json", &repaired);
    };
    let replace = |path: &str, value: Value| json!([{"op": "replace", "path": path, "value": value}]);
    let policy = "/webhooks/1/failurePolicy";
    each(
        &["mutatingwebhookconfiguration", WEBHOOK],
        replace(policy, json!("Fail")),
        replace(policy, json!("Ignore")),
        &[("webhook", "failure-policy", "failure")],
        "pod.inject.healthscope.core.oam.dev",
    );
    let role = cluster
        .get("/apis/rbac.authorization.k8s.io/v1/clusterroles/healthscope-aggregator-injector")
        .unwrap();
    each(
        &["clusterrole", "healthscope-aggregator-injector"],
        replace("/rules", json!([])),
        replace("/rules", role["rules"].clone()),
        &[("control-plane", "rights", "failure")],
        "healthscope-aggregator may not list namespaces in the whole cluster",
    );
    let ready = |count: u32| {
        let status = [
            "replicas",
            "readyReplicas",
            "availableReplicas",
            "updatedReplicas",
        ]
        .map(|field| (field, count));
        json!(BTreeMap::from(status))
    };
    each(
        &[
            "deployment",
            "healthscope-aggregator",
            "-n",
            HOME,
            "--subresource=status",
        ],
        replace("/status", ready(1)),
        replace("/status", ready(2)),
        &[("control-plane", "replicas", "warning")],
        "1 of 2",
    );
    each(
        &["endpointslice", "webhook", "-n", HOME],
        replace("/endpoints/0/conditions/ready", json!(false)),
        replace("/endpoints/0/conditions/ready", json!(true)),
        &[("webhook", "webhook-endpoints", "failure")],
        "no ready endpoint",
    );
    let label = "/metadata/labels/healthscope.core.oam.dev~1inject";
    each(
        &["namespace", "shop"],
        json!([{"op": "add", "path": "/metadata/annotations", "value": {"healthscope.core.oam.dev/resources": "much"}}]),
        json!([{"op": "remove", "path": "/metadata/annotations"}]),
        &[
            ("webhook", "rehearsal", "failure"),
            ("shop", "annotations", "failure"),
        ],
        "the namespace's annotation healthscope.core.oam.dev/resources",
    );
    patch(
        &cluster,
        &["namespace", "shop"],
        "json",
        &json!([{"op": "remove", "path": label}]),
    );
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "web", "image": "x", "readinessProbe": {"httpGet": {"path": "/", "port": 80}}}]},
    });
    cluster.apply(&web.to_string()).unwrap();
    expect(&cluster, "-n shop", 0, &[("shop", "labelled", "warning")]);
    // A time of Kubernetes has whole seconds; a pod of the same one cannot be told from a later one.
    let made = Instant::now();
    cluster
        .wait_for("another second", Duration::from_secs(5), || {
            Ok((made.elapsed() > Duration::from_millis(1_100)).then_some(()))
        })
        .unwrap();
    patch(
        &cluster,
        &["namespace", "shop"],
        "json",
        &json!([{"op": "add", "path": label, "value": "enabled"}]),
    );
    let answer = expect(&cluster, "-n shop", 0, &[("shop", "agents", "warning")]);
    assert!(answer.said("agents").contains("OlderThanLabel"), "{answer:?}");
    let answer = expect(
        &cluster,
        "-n shop --pod web",
        0,
        &[("shop", "agents", "warning"), ("shop", "agent", "warning")],
    );
    assert!(answer.said("agent").contains("OlderThanLabel"), "{answer:?}");
    cluster
        .kubectl(["delete", "pod", "web", "-n", "shop", "--now"])
        .unwrap();
    cluster.apply(&web.to_string()).unwrap();
    let answer = expect(
        &cluster,
        "-n shop --pod web",
        0,
        &[
            ("shop", "agent-runs", "warning"),
            ("shop", "containers", "warning"),
        ],
    )
    .said("agent");
    assert!(answer.contains(IMAGE) && answer.contains("1 checks"), "{answer}");
    expect(&cluster, "-n nowhere", 1, &[("nowhere", "labelled", "failure")]);
    cluster.apply(&trip("shop").to_string()).unwrap();
    let answer = expect(&cluster, "", 1, &[("safety", "breaker", "failure")]);
    assert!(
        answer
            .said("breaker")
            .contains("the agent's image cannot be pulled: ImagePullBackOff: manifest unknown"),
        "{answer:?}"
    );
    let mut closed = trip("shop");
    closed["data"] = json!({});
    cluster.apply(&closed.to_string()).unwrap();

    // Who may read nothing is told what is missing, and nothing breaks.
    for line in ["", "-n shop", "-n shop --pod web"] {
        let answer = run(&nobody, &format!("{line} -o json"));
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let ill = answer.ill();
        assert!(
            ill.len() >= 6 && ill.iter().all(|(_, _, outcome)| outcome == "warning"),
            "{ill:?}"
        );
        for (section, check) in answer
            .checks()
            .iter()
            .filter(|(_, check)| check["result"] == "warning")
        {
            assert!(
                check["message"].as_str().unwrap().starts_with("you may not "),
                "{section}: {check}"
            );
            assert!(
                check["hint"].as_str().unwrap().contains("apiGroups: ["),
                "{section}: {check}"
            );
        }
    }

    // Stopped: nobody serves, and nobody answers for pods. Then what it kept is broken.
    drop(aggregator);
    let gone = [
        ("control-plane", "lease", "failure"),
        ("webhook", "rehearsal", "failure"),
    ];
    let lease = json!({"spec": {"holderIdentity": "", "renewTime": "2026-01-02T04:50:00.000000Z"}});
    patch(
        &cluster,
        &["lease", "healthscope-aggregator", "-n", HOME],
        "merge",
        &lease,
    );
    expect(&cluster, "", 1, &gone);
    let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()])
        .unwrap()
        .cert
        .pem();
    let with = |more: &[(&'static str, &'static str, &'static str)]| [&gone[..1], more, &gone[1..]].concat();
    patch(
        &cluster,
        &["configmap", "healthscope-ca", "-n", HOME],
        "merge",
        &json!({"data": {"ca.crt": other}}),
    );
    expect(
        &cluster,
        "",
        1,
        &with(&[("certificates", "webhook-trust", "failure")]),
    );
    patch(
        &cluster,
        &["configmap", "healthscope-ca", "-n", HOME],
        "merge",
        &json!({"data": {"ca.crt": "x"}}),
    );
    expect(
        &cluster,
        "",
        1,
        &with(&[("certificates", "authorities", "failure")]),
    );
    cluster
        .kubectl(["delete", "mutatingwebhookconfiguration", WEBHOOK])
        .unwrap();
    let answer = expect(
        &cluster,
        "",
        1,
        &[
            ("control-plane", "lease", "failure"),
            ("certificates", "authorities", "failure"),
            ("webhook", "webhook", "failure"),
        ],
    );
    assert!(
        answer.said("webhook").contains("helm upgrade healthscope"),
        "{answer:?}"
    );
}

#[test]
fn who_cannot_be_asked_is_said_at_once_with_another_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let configuration = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{}", free_port())}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    });
    std::fs::write(&file, configuration.to_string()).unwrap();
    let since = Instant::now();
    for line in ["", "-o json", "--pre", "--fix --yes", "--wait 1s"] {
        let answer = run(&file, line);
        assert_eq!(answer.code, Some(2), "{line}: {answer:?}");
        assert!(
            answer
                .err
                .contains("cannot reach the cluster at https://127.0.0.1:"),
            "{line}: {answer:?}"
        );
        assert_eq!(answer.out, "", "{line}");
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    let answer = run(Path::new("/nowhere"), "");
    assert_eq!(answer.code, Some(2), "{answer:?}");
    for line in [
        "--yes",
        "--fix -o json",
        "--pre --fix",
        "shop.yaml --pre",
        "--wait soon",
        "-n A_b",
    ] {
        assert_eq!(run(&file, line).code, Some(2), "{line}");
    }
}

/// A pod as it looks when its agent's image cannot be pulled.
fn stuck(cluster: &Cluster, name: &str, image: &str, owner: Option<(&str, &str)>) {
    let mut metadata = json!({
        "name": name, "namespace": "shop", "labels": {"app": "web", "pod-template-hash": "5d8"},
        "annotations": {"healthscope.core.oam.dev/injected": r#"{"checks": 1, "version": "0"}"#},
    });
    if let Some((replica_set, uid)) = owner {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": uid, "controller": true,
        }]);
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "automountServiceAccountToken": false,
            "initContainers": [{"name": "healthscope-agent", "image": image, "restartPolicy": "Always"}],
            "containers": [{"name": "web", "image": "x", "readinessProbe": {"httpGet": {"path": "/", "port": 80}}}],
        },
    });
    cluster.apply(&pod.to_string()).unwrap();
    let waiting = json!({"status": {"phase": "Pending", "initContainerStatuses": [{
        "name": "healthscope-agent", "image": image, "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
    }]}});
    patch(
        cluster,
        &["pod", name, "-n", "shop", "--subresource=status"],
        "merge",
        &waiting,
    );
}

fn image_of(cluster: &Cluster, pod: &str) -> Option<Value> {
    let pod = cluster.get(&format!("/api/v1/namespaces/shop/pods/{pod}")).ok()?;
    Some(pod["spec"]["initContainers"][0]["image"].clone())
}

#[test]
fn stuck_pods_are_un_stuck_only_when_that_helps() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    install(&cluster);
    // Labelled once its pods are there, so that nobody asks a webhook which is not there.
    cluster.kubectl(["create", "namespace", "shop"]).unwrap();
    account(&cluster, "shop");
    let replica_set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web-5d8", "namespace": "shop"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "x"}]},
        }},
    });
    cluster.apply(&replica_set.to_string()).unwrap();
    let found = cluster
        .get("/apis/apps/v1/namespaces/shop/replicasets/web-5d8")
        .unwrap();
    let uid = found["metadata"]["uid"].as_str().unwrap();
    let of_set = Some(("web-5d8", uid));
    stuck(&cluster, "web-5d8-a", IMAGE, of_set);
    stuck(&cluster, "bare-same", IMAGE, None);
    stuck(&cluster, "bare-old", "example.org/healthscope-agent:old", None);
    cluster
        .kubectl(["label", "namespace", "shop", &format!("{INJECT}=enabled")])
        .unwrap();
    let kubeconfig = cluster.kubeconfig();

    let seen = run(&kubeconfig, "-n shop -o json");
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let said = seen.said("agents-start");
    assert!(
        said.contains("3 pods are stuck") && said.contains("ImagePullBackOff: Back-off pulling image"),
        "{said}"
    );
    let seen = run(&kubeconfig, "-n shop --pod web-5d8-a -o json");
    assert!(
        seen.said("agent-runs").contains("--pod web-5d8-a --fix"),
        "{seen:?}"
    );

    // Nobody is there to be asked, and nobody said that it need not be.
    let asked = run(&kubeconfig, "-n shop --fix");
    assert_eq!(asked.code, Some(2), "{asked:?}");
    assert!(
        asked
            .err
            .contains("there is no terminal to ask on; --yes does not ask"),
        "{asked:?}"
    );

    // As things are, a new pod would be stuck too, and nothing shows that another image runs.
    let left = run(&kubeconfig, "-n shop --fix --yes");
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(left.out.ends_with("0 un-stuck, 3 left\n"), "{left:?}");
    assert!(
        left.out.contains("the next one would be stuck in the same way"),
        "{left:?}"
    );
    assert!(
        left.out.contains("is not proven by a canary that is ready"),
        "{left:?}"
    );
    for pod in ["web-5d8-a", "bare-same", "bare-old"] {
        assert!(image_of(&cluster, pod).is_some(), "{pod}");
    }

    // The canary is ready with the image that pods get now.
    canary(&cluster);
    let one = run(&kubeconfig, "-n shop --pod bare-old --fix --yes");
    assert_eq!(one.code, Some(0), "{one:?}");
    assert!(
        one.out
            .contains("its agent has the image example.org/healthscope-agent:test"),
        "{one:?}"
    );
    assert_eq!(image_of(&cluster, "bare-old").unwrap(), IMAGE);

    // Who may look and not evict is told so, and the pod stays.
    cluster.apply(&trip("shop").to_string()).unwrap();
    let reader = cluster.kubeconfig_for("reader", None).unwrap();
    let nothing = run(&reader, "-n shop --fix --yes");
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
    assert!(
        nothing
            .err
            .contains("you may not list pods in the namespace shop"),
        "{nothing:?}"
    );
    let resources = "--resource=pods,namespaces,configmaps,events,deployments.apps";
    cluster
        .kubectl(["create", "clusterrole", "reader", "--verb=get,list", resources])
        .unwrap();
    cluster
        .kubectl([
            "create",
            "clusterrolebinding",
            "reader",
            "--clusterrole=reader",
            "--user=reader",
        ])
        .unwrap();
    cluster
        .wait_for("the reader's rights to be known", support::LIMIT, || {
            let ask = ["auth", "can-i", "list", "pods", "-n", "shop", "--as=reader"];
            Ok(cluster.kubectl(ask).ok())
        })
        .unwrap();
    let refused = run(&reader, "-n shop --pod web-5d8-a --fix --yes");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .out
            .contains("not evicted: you may not create pods/eviction in the namespace shop"),
        "{refused:?}"
    );
    assert!(image_of(&cluster, "web-5d8-a").is_some());

    // The breaker is open for its Deployment: the next one has no agent. What nobody makes again stays.
    let done = run(&kubeconfig, "--fix --yes");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(
        done.out
            .contains("Deployment web makes it anew: the breaker is open there"),
        "{done:?}"
    );
    assert!(done.out.contains("evicted and gone"), "{done:?}");
    assert!(
        done.out.contains("it has the installation's image already"),
        "{done:?}"
    );
    assert_eq!(image_of(&cluster, "web-5d8-a"), None);
    assert!(image_of(&cluster, "bare-same").is_some());
}
