//! The chart: what it makes of its values, that a real API server under Pod Security `restricted` takes all of it, and that
//! installing, upgrading, rolling back and uninstalling leave nothing broken behind. And the Dockerfiles: their images run
//! as the chart starts them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    clap::Parser,
    healthscope_aggregator::args::Args,
    healthscope_e2e_cluster::{Audit, Binaries, Cluster, Options, Program, Stage, Version, timed},
    rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair},
    serde_json::{Value, json},
    std::{
        collections::BTreeMap,
        env, fs,
        io::Write,
        path::{Path, PathBuf},
        process::{Command, Output, Stdio},
        sync::LazyLock,
        time::Duration,
    },
};

/// Longest wait for anything: two cores with other work take tens of times what an idle machine does.
const LIMIT: Duration = Duration::from_secs(120);

const NAMESPACE: &str = "healthscope-system";
const WEBHOOK: &str = "healthscope-agent-injector";
const CRD: &str = "healthscopes.core.oam.dev";
const INJECT: &str = "healthscope.core.oam.dev/inject";

const AGENT: &str = include_str!("../../../Dockerfile.agent");
const AGGREGATOR: &str = include_str!("../../../Dockerfile.aggregator");

/// Sets of values that matter, by the name of their golden file. The first are the defaults; of the others the file has
/// what is different from these.
const SETS: [(&str, &[&str]); 7] = [
    ("default", &[]),
    ("injector-off", &["--set=injector.enabled=false"]),
    (
        "secret",
        &[
            "--set=tls.mode=secret",
            "--set-file=tls.caBundle=e2e/cluster/tests/chart/ca.crt",
        ],
    ),
    (
        "secret-injector-off",
        &["--set=tls.mode=secret,injector.enabled=false"],
    ),
    (
        "cert-manager",
        &["--set=tls.mode=certManager,tls.certManager.issuer.name=internal"],
    ),
    ("ha", &["--values=charts/healthscope/values-ha.yaml"]),
    (
        "everything",
        &["--values=e2e/cluster/tests/chart/everything.values.yaml"],
    ),
];

/// Kinds of others that the chart may make objects of; their schemas are not ours to test.
const OTHERS: [(&str, &str, &str); 3] = [
    ("cert-manager.io", "Certificate", "certificates"),
    ("monitoring.coreos.com", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn chart() -> PathBuf {
    root().join("charts/healthscope")
}

/// Helm in the root of the checkout.
fn helm() -> Command {
    static BINARIES: LazyLock<Binaries> =
        LazyLock::new(|| Binaries::ensure(&[Program::Helm], Version::NEWEST).unwrap());
    let mut command = Command::new(BINARIES.path(Program::Helm));
    command.current_dir(root());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command prints; it must succeed.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn rendering(values: &[&str]) -> Command {
    let mut command = helm();
    command
        .args(["template", "healthscope", "charts/healthscope"])
        .arg(format!("--namespace={NAMESPACE}"))
        .args(values);
    command
}

/// What the chart makes of values.
#[track_caller]
fn rendered(values: &[&str]) -> String {
    printed(&mut rendering(values))
}

fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n").map(|document| {
        serde_saphyr::from_str::<Value>(document).unwrap_or_else(|error| panic!("{error}\n{document}"))
    });
    documents.filter(|document| !document.is_null()).collect()
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    documents
        .iter()
        .find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
}

/// Compares with a committed file, or writes it.
#[track_caller]
fn golden(name: &str, found: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/chart")
        .join(name);
    if env::var_os("HEALTHSCOPE_UPDATE_GOLDEN").is_some() {
        fs::write(&file, found).unwrap();
    }
    let wanted = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        wanted == found,
        "{name} is not what the chart makes: HEALTHSCOPE_UPDATE_GOLDEN=1 writes it anew\n{}",
        differences(&wanted, found)
    );
}

/// What `diff -u` says.
fn differences(before: &str, after: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("default"), before).unwrap();
    fs::write(folder.path().join("set"), after).unwrap();
    let output = Command::new("diff")
        .args(["-U2", "--label=default", "--label=set", "default", "set"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    text(&output.stdout)
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    for (name, values) in SETS {
        let lint = printed(
            helm()
                .args(["lint", "--strict", "charts/healthscope"])
                .args(values),
        );
        assert!(lint.contains("0 chart(s) failed"), "{name}\n{lint}");
        assert!(!lint.contains("WARNING"), "{name}\n{lint}");
    }
}

#[test]
fn values_change_what_they_are_meant_to() {
    let without = ["--set=crds.install=false"];
    let of = |values: &[&str]| rendered(&[values, without.as_slice()].concat());
    let default = of(&[]);
    golden("default.yaml", &default);
    for (name, values) in SETS.iter().skip(1) {
        golden(&format!("{name}.diff"), &differences(&default, &of(values)));
    }
    assert_eq!(of(&[]), default, "nothing is random");
}

#[test]
fn the_plain_manifest_is_what_the_chart_makes() {
    let made = rendered(&["--values=examples/kubernetes/install.values.yaml", "--skip-tests"]);
    let found = fs::read_to_string(root().join("examples/kubernetes/install.yaml")).unwrap();
    assert!(
        found == made,
        "examples/kubernetes/install.yaml is not what the chart makes: run `cargo xtask crd`\n{}",
        differences(&found, &made)
    );
}

/// The same with 1 and 1.0 alike, which are one in JSON.
fn numbers_as_one(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(numbers_as_one).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| (name.clone(), numbers_as_one(field)))
            .collect(),
        other => other.clone(),
    }
}

#[test]
fn the_definition_is_that_of_the_types_and_stays() {
    let file = fs::read_to_string(chart().join(format!("files/crds/{CRD}.yaml"))).unwrap();
    let mut wanted: Value = serde_saphyr::from_str(&file).unwrap();
    wanted["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    let documents = documents(&rendered(&[]));
    let found = find(&documents, "CustomResourceDefinition", CRD).unwrap();
    // Not by assert_eq, which would print all of it.
    assert!(numbers_as_one(found) == numbers_as_one(&wanted));
    // Helm would install what is there, and never upgrade it.
    assert!(!chart().join("crds").exists());
}

#[test]
fn the_chart_has_the_version_of_the_programs() {
    let chart: Value =
        serde_saphyr::from_str(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).unwrap();
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
}

#[test]
fn wrong_values_are_refused_with_a_sentence() {
    #[track_caller]
    fn check(values: &str, expected: &str) {
        let output = rendering(&["--set", values]).output().unwrap();
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && said.contains(expected),
            "{values}\n{said}"
        );
    }
    check(
        "tls.mode=own",
        "at '/tls/mode': value must be one of 'self', 'certManager', 'secret'",
    );
    check(
        "tls.mod=self",
        "at '/tls': additional properties 'mod' not allowed",
    );
    check(
        "injectr.enabled=false",
        "additional properties 'injectr' not allowed",
    );
    check(
        "injector.enabled=maybe",
        "at '/injector/enabled': got string, want boolean",
    );
    check("replicas=0", "at '/replicas': minimum: got 0, want 1");
    check("replicas=two", "at '/replicas': got string, want integer");
    check("image=aggregator:1", "at '/image': got string, want object");
    check("image.digest=sha256:1", "at '/image/digest'");
    // YAML makes numbers of such words, and another number of some.
    check("image.tag=1", "at '/image/tag': got number, want string");
    check("image.repository=a b", "at '/image/repository'");
    check("heartbeat=1m", "at '/heartbeat'");
    check("agent.aggregator=ws://a", "at '/agent/aggregator'");
    check("agent.requests.cpu=much", "at '/agent/requests/cpu'");
    check(
        "injector.excludedNamespaces={Kube}",
        "at '/injector/excludedNamespaces/0'",
    );
    check(
        "networkPolicy.apiServerPorts={0}",
        "at '/networkPolicy/apiServerPorts/0'",
    );
    check(
        "podDisruptionBudget.maxUnavailable=0",
        "at '/podDisruptionBudget/maxUnavailable'",
    );
    check(
        "monitor.kind=Prometheus",
        "value must be one of '', 'PodMonitor', 'ServiceMonitor'",
    );
    check("extraArgs={kubernetes}", "at '/extraArgs/0'");
    // What needs another value.
    check(
        "tls.mode=certManager",
        "tls.mode is certManager: say by tls.certManager.issuer.name which issuer",
    );
    check("tls.mode=secret", "give the certificates (PEM) of who signed");
    check("tls.mode=secret,tls.caBundle=x", "tls.caBundle is no PEM");
    check(
        "tls.caBundle=-----BEGIN CERTIFICATE-----",
        "leave tls.caBundle out, or choose another tls.mode",
    );
    check(
        "monitor.serviceAccount.name=prometheus",
        "monitor.serviceAccount needs both name and namespace",
    );
}

/// The aggregator's own reading of what its container is started with.
#[test]
fn the_aggregator_understands_how_the_chart_starts_it() {
    #[track_caller]
    fn check(name: &str) {
        let (_, values) = SETS.iter().find(|(set, _)| *set == name).unwrap();
        let documents = documents(&rendered(values));
        let deployment = find(&documents, "Deployment", "healthscope-aggregator").unwrap();
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let words = ["command", "args"].map(|field| container[field].as_array().unwrap());
        let words = words.into_iter().flatten().map(|word| word.as_str().unwrap());
        if let Err(error) = Args::try_parse_from(words) {
            panic!("{name}: {error}");
        }
    }
    for (name, _) in SETS {
        check(name);
    }
}

/// Runs kubectl with objects; what it prints. It must succeed without a warning.
#[track_caller]
fn quietly(cluster: &Cluster, arguments: &[&str], objects: &str) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = kubectl(cluster, arguments, objects);
    let (out, err) = (text(&stdout), text(&stderr));
    assert!(
        status.success() && err.is_empty(),
        "kubectl {arguments:?}\n{out}{err}"
    );
    out
}

fn kubectl(cluster: &Cluster, arguments: &[&str], objects: &str) -> Output {
    let mut child = cluster
        .kubectl_command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that ends without reading says why itself.
        scope.spawn(move || stdin.write_all(objects.as_bytes()));
        child.wait_with_output().unwrap()
    })
}

/// A namespace in which nothing runs that Pod Security `restricted` does not let in, and which complains of what it would
/// not.
fn restricted(cluster: &Cluster, name: &str, labels: &Value) {
    let mut namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
        }},
    });
    let all = namespace["metadata"]["labels"].as_object_mut().unwrap();
    all.extend(labels.as_object().unwrap().clone());
    cluster.apply(&namespace.to_string()).unwrap();
}

#[test]
fn the_api_server_takes_everything_under_pod_security_restricted() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    restricted(&cluster, NAMESPACE, &json!({}));
    for (group, kind, plural) in OTHERS {
        let version = json!({
            "name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        });
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [version],
            },
        });
        cluster.apply(&definition.to_string()).unwrap();
        let served = format!("/apis/{group}/v1/{plural}");
        cluster
            .wait_for("a kind of others", LIMIT, || Ok(cluster.get(&served).ok()))
            .unwrap();
    }
    for (name, values) in SETS {
        let all = rendered(values);
        let mut documents = documents(&all);
        // It is there, with more labels.
        documents.retain(|document| document["kind"] != "Namespace");
        let deployment = find(&documents, "Deployment", "healthscope-aggregator").unwrap();
        let canary = find(&documents, "StatefulSet", "healthscope-canary");
        let pods: Vec<Value> = [Some(deployment), canary]
            .into_iter()
            .flatten()
            .map(|owner| {
                let mut pod = owner["spec"]["template"].clone();
                pod["apiVersion"] = "v1".into();
                pod["kind"] = "Pod".into();
                pod["metadata"]["name"] =
                    format!("of-{}", owner["metadata"]["name"].as_str().unwrap()).into();
                pod
            })
            .collect();
        documents.extend(pods);
        for document in documents {
            let arguments = [
                "create",
                "--dry-run=server",
                "--validate=strict",
                "--output=name",
                "--filename=-",
            ];
            let namespace = document["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
            let of = format!("--namespace={namespace}");
            let made = quietly(
                &cluster,
                &[arguments.as_slice(), &[&of]].concat(),
                &document.to_string(),
            );
            assert!(!made.is_empty(), "{name}: {document}");
        }
    }
}

/// How often each entry of the webhook's configuration was called and did not answer.
fn calls(cluster: &Cluster) -> BTreeMap<String, u64> {
    let metrics = cluster.kubectl(["get", "--raw", "/metrics"]).unwrap();
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_admission_webhook_fail_open_count{"))
        .filter_map(|line| {
            let name = line.split("name=\"").nth(1)?.split('"').next()?;
            let entry = name.strip_suffix(".inject.healthscope.core.oam.dev")?;
            Some((entry.to_owned(), line.rsplit(' ').next()?.parse().ok()?))
        });
    counts.collect()
}

#[test]
fn a_pod_meets_one_entry_of_the_webhook_or_none_and_is_admitted_without_an_answer() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    restricted(&cluster, NAMESPACE, &json!({INJECT: "enabled"}));
    for (name, label) in [
        ("opted-in", Some("enabled")),
        ("opted-out", Some("disabled")),
        ("excluded", Some("enabled")),
        ("silent", None),
    ] {
        let labels = label.map_or(json!({}), |label| json!({INJECT: label}));
        cluster
            .apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
                    .to_string(),
            )
            .unwrap();
    }
    cluster
        .kubectl(["label", "namespace", "kube-system", &format!("{INJECT}=enabled")])
        .unwrap();
    let documents = documents(&rendered(&["--set=injector.excludedNamespaces={excluded}"]));
    let mut webhook = find(&documents, "MutatingWebhookConfiguration", WEBHOOK)
        .unwrap()
        .clone();
    for entry in webhook["webhooks"].as_array_mut().unwrap() {
        assert_eq!(entry["failurePolicy"], "Ignore");
        // Nobody listens there, which is known at once.
        entry["clientConfig"] = json!({"url": "https://127.0.0.1:1/inject"});
    }
    cluster.apply(&webhook.to_string()).unwrap();
    let pod = |namespace: &str, change: Value| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace},
            "spec": {
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "c", "image": "local/none", "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                }}],
            },
        });
        for (part, fields) in change.as_object().unwrap() {
            pod[part]
                .as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
        }
        pod.to_string()
    };
    let create = ["create", "--dry-run=server", "--filename=-"];
    cluster
        .wait_for("the webhook to be called", LIMIT, || {
            quietly(&cluster, &create, &pod("opted-in", json!({})));
            Ok((!calls(&cluster).is_empty()).then_some(()))
        })
        .unwrap();

    #[track_caller]
    fn check(cluster: &Cluster, pod: &str, expected: Option<&str>) {
        let before = calls(cluster);
        quietly(cluster, &["create", "--dry-run=server", "--filename=-"], pod);
        let called: Vec<(String, u64)> = calls(cluster)
            .into_iter()
            .map(|(entry, count)| {
                (
                    entry.clone(),
                    count - before.get(&entry).copied().unwrap_or_default(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        let expected: Vec<(String, u64)> = expected.map(|entry| (entry.to_owned(), 1)).into_iter().collect();
        assert_eq!(called, expected, "{pod}");
    }
    let labelled = |value: &str| json!({"metadata": {"labels": {INJECT: value}}});
    let (namespace, one) = (Some("namespace"), Some("pod"));
    check(&cluster, &pod("opted-in", json!({})), namespace);
    check(&cluster, &pod("opted-in", labelled("enabled")), namespace);
    check(&cluster, &pod("opted-in", labelled("disabled")), None);
    check(&cluster, &pod("silent", json!({})), None);
    check(&cluster, &pod("silent", labelled("enabled")), one);
    check(&cluster, &pod("opted-out", json!({})), None);
    check(&cluster, &pod("opted-out", labelled("enabled")), one);
    for never in ["excluded", "kube-system", NAMESPACE] {
        check(&cluster, &pod(never, json!({})), None);
        check(&cluster, &pod(never, labelled("enabled")), None);
    }
    // What is never given an agent.
    let mirror = json!({
        "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "n"},
    });
    check(&cluster, &pod("opted-in", mirror), None);
    check(
        &cluster,
        &pod("opted-in", json!({"spec": {"hostNetwork": true}})),
        None,
    );
    check(
        &cluster,
        &pod("opted-in", json!({"spec": {"hostNetwork": false}})),
        namespace,
    );
    let ours = json!({"metadata": {"labels": {"app.kubernetes.io/name": "healthscope"}}});
    check(&cluster, &pod("opted-in", ours), None);
    let theirs =
        json!({"metadata": {"labels": {"app.kubernetes.io/name": "shop"}, "annotations": {"a": "b"}}});
    check(&cluster, &pod("opted-in", theirs), namespace);
}

/// A cluster and what Helm did to it.
struct Installed {
    cluster: Cluster,
    home: tempfile::TempDir,
}

impl Installed {
    fn start(options: &Options) -> Self {
        Self {
            cluster: Cluster::start(options).unwrap(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn helm_command(&self, words: &[&str]) -> Command {
        let mut command = helm();
        command
            .args(words)
            .arg(format!("--namespace={NAMESPACE}"))
            .env("KUBECONFIG", self.cluster.kubeconfig())
            // Nothing of it goes into the developer's home.
            .env("HOME", self.home.path());
        command
    }

    #[track_caller]
    fn helm(&self, words: &[&str]) -> String {
        printed(&mut self.helm_command(words))
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.cluster.get(path).ok()
    }

    fn webhook(&self) -> Option<Value> {
        self.get(&format!(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}"
        ))
    }

    fn in_namespace(&self, path: &str) -> Option<Value> {
        self.get(&format!("/api/v1/namespaces/{NAMESPACE}/{path}"))
    }

    /// What is created and deleted of these resources by Helm, in order, since so many lines of the audit log.
    fn done(&self, since: usize, resources: &[&str]) -> Vec<String> {
        let log = fs::read_to_string(self.cluster.audit_log().unwrap()).unwrap();
        let entries = log
            .lines()
            .skip(since)
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = entries.filter_map(|entry| {
            let object = &entry["objectRef"];
            let resource = object["resource"].as_str()?;
            let name = object["name"].as_str()?;
            let is_helm = entry["userAgent"].as_str()?.starts_with("Helm/");
            let is_ours = name.starts_with("healthscope") && resources.contains(&resource);
            let verb = match (entry["verb"].as_str()?, entry["responseStatus"]["code"].as_u64()?) {
                ("create", 201) | ("patch", 201) => "made",
                ("delete", 200) => "deleted",
                _ => return None,
            };
            (is_helm && is_ours).then(|| format!("{verb} {resource}/{name}"))
        });
        done.collect()
    }

    fn audited(&self) -> usize {
        let log = fs::read_to_string(self.cluster.audit_log().unwrap()).unwrap();
        log.lines().count()
    }
}

const SCOPE: &str = "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: shop, namespace: default}
spec: {selector: {matchLabels: {app.kubernetes.io/part-of: shop}}}
";

#[test]
fn upgrade_rollback_and_uninstall_leave_nothing_broken_behind() {
    let installed = Installed::start(&Options {
        controller_manager: true,
        audit: Some(Audit::Metadata),
        ..Options::control_plane()
    });
    let cluster = &installed.cluster;
    let webhook_parts = ["services", "mutatingwebhookconfigurations"];

    // An earlier version of the chart, whose definition has no short name.
    let earlier = installed.home.path().join("earlier");
    let copied = Command::new("cp").arg("-r").arg(chart()).arg(&earlier).status();
    assert!(copied.unwrap().success());
    let definition = earlier.join(format!("files/crds/{CRD}.yaml"));
    let now = fs::read_to_string(&definition).unwrap();
    let before = now.replace("    shortNames:\n    - health\n", "");
    assert_ne!(before, now);
    fs::write(&definition, before).unwrap();
    let short_names = || {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}");
        installed.get(&path).unwrap()["spec"]["names"]["shortNames"].clone()
    };

    restricted(cluster, NAMESPACE, &json!({}));
    let notes = timed("helm install", || {
        installed.helm(&["install", "healthscope", earlier.to_str().unwrap()])
    });
    for command in [
        "kubectl rollout status",
        "kubectl label namespace",
        "kubectl get healthscope",
    ] {
        assert!(notes.contains(command), "{notes}");
    }
    assert_eq!(short_names(), Value::Null);
    cluster
        .wait_for("HealthScopes to be served", LIMIT, || {
            Ok(cluster.apply(SCOPE).ok())
        })
        .unwrap();
    let scope = || {
        installed
            .get("/apis/core.oam.dev/v1beta1/namespaces/default/healthscopes/shop")
            .unwrap()["metadata"]["uid"]
            .clone()
    };
    let uid = scope();
    let made = installed.done(0, &webhook_parts);
    assert_eq!(
        made.last().unwrap(),
        &format!("made mutatingwebhookconfigurations/{WEBHOOK}"),
        "{made:?}"
    );

    // What the aggregator fills in.
    let bundle = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==";
    let entries: Vec<Value> = ["namespace", "pod"]
        .map(|entry| {
            json!({
                "name": format!("{entry}.inject.healthscope.core.oam.dev"), "clientConfig": {"caBundle": bundle},
                "admissionReviewVersions": ["v1"], "sideEffects": "None",
            })
        })
        .to_vec();
    let filled = [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": WEBHOOK}, "webhooks": entries,
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "healthscope-ca", "namespace": NAMESPACE}, "data": {"ca.crt": "x"},
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "healthscope-tls", "namespace": NAMESPACE}, "data": {"ca.crt": "eA=="},
        }),
    ];
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=healthscope-aggregator",
        "--filename=-",
    ];
    for object in &filled {
        quietly(cluster, &apply, &object.to_string());
    }
    #[track_caller]
    fn is_filled(installed: &Installed, bundle: &str) {
        let webhook = installed.webhook().unwrap();
        for entry in webhook["webhooks"].as_array().unwrap() {
            assert_eq!(entry["clientConfig"]["caBundle"], bundle, "{entry}");
        }
        let trusted = installed.in_namespace("configmaps/healthscope-ca").unwrap();
        assert_eq!(trusted["data"]["ca.crt"], "x");
        let secret = installed.in_namespace("secrets/healthscope-tls").unwrap();
        assert_eq!(secret["data"]["ca.crt"], "eA==");
    }
    is_filled(&installed, bundle);

    // An upgrade brings the definition along, and leaves alone what is not the chart's.
    let upgrade = ["upgrade", "healthscope", "charts/healthscope"];
    let with = |more: &'static str| [upgrade.as_slice(), &[more]].concat();
    timed("helm upgrade", || installed.helm(&with("--set=replicas=3")));
    assert_eq!(short_names(), json!(["health"]));
    is_filled(&installed, bundle);
    let replicas = || {
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/healthscope-aggregator");
        installed.get(&path).unwrap()["spec"]["replicas"].clone()
    };
    assert_eq!(replicas(), 3);
    installed.helm(&["rollback", "healthscope", "1"]);
    assert_eq!(replicas(), 2);
    assert_eq!(scope(), uid);
    is_filled(&installed, bundle);

    // Without the injector nothing asks for it any more. Helm takes away in this order what a release no longer has; in
    // between, the API server finds no Service and admits pods as they are.
    let since = installed.audited();
    installed.helm(&with("--set=injector.enabled=false"));
    assert_eq!(installed.webhook(), None);
    assert_eq!(installed.in_namespace("services/healthscope-webhook"), None);
    assert_eq!(
        installed.done(since, &webhook_parts),
        [
            "deleted services/healthscope-webhook".to_owned(),
            format!("deleted mutatingwebhookconfigurations/{WEBHOOK}")
        ]
    );

    // And back.
    let since = installed.audited();
    timed("helm rollback", || {
        installed.helm(&["rollback", "healthscope", "2"])
    });
    assert!(installed.webhook().is_some());
    assert!(installed.in_namespace("services/healthscope-webhook").is_some());
    assert_eq!(
        installed.done(since, &webhook_parts),
        [
            "made services/healthscope-webhook".to_owned(),
            format!("made mutatingwebhookconfigurations/{WEBHOOK}")
        ]
    );

    // Gone is all but the definition and what people wrote.
    let since = installed.audited();
    timed("helm uninstall", || installed.helm(&["uninstall", "healthscope"]));
    let deleted = installed.done(since, &webhook_parts);
    assert_eq!(
        deleted.first().unwrap(),
        &format!("deleted mutatingwebhookconfigurations/{WEBHOOK}"),
        "{deleted:?}"
    );
    let left = cluster
        .kubectl([
            "get",
            "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,deployments,services,secrets,configmaps,roles,\
             rolebindings,serviceaccounts,poddisruptionbudgets",
            "--all-namespaces",
            "--selector=app.kubernetes.io/name=healthscope",
            "--output=name",
        ])
        .unwrap();
    assert_eq!(left, "");
    assert_eq!(scope(), uid);

    // Again, over the definition that stayed.
    installed.helm(&["install", "healthscope", "charts/healthscope"]);
    assert_eq!(scope(), uid);
}

#[test]
fn a_definition_that_kubectl_made_is_taken_over_when_asked_to() {
    let installed = Installed::start(&Options::control_plane());
    restricted(&installed.cluster, NAMESPACE, &json!({}));
    let folder = chart().join("files/crds");
    let apply = ["apply", "--server-side", "--filename", folder.to_str().unwrap()];
    installed.cluster.kubectl(apply).unwrap();
    let install = ["install", "healthscope", "charts/healthscope"];
    let refused = installed.helm_command(&install).output().unwrap();
    let said = text(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("cannot be imported into the current release"),
        "{said}"
    );
    // A refused install is there, as one that failed.
    installed.helm(&["uninstall", "healthscope", "--ignore-not-found"]);
    let taking = [install.as_slice(), &["--take-ownership", "--force-conflicts"]].concat();
    installed.helm(&taking);
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}");
    let annotations = installed.get(&path).unwrap()["metadata"]["annotations"].clone();
    assert_eq!(annotations["helm.sh/resource-policy"], "keep");
    assert_eq!(annotations["meta.helm.sh/release-name"], "healthscope");
}

/// What a Dockerfile's last stage is, and what it is made with.
#[test]
fn the_images_have_these_programs_and_nobody_s_rights() {
    #[track_caller]
    fn check(dockerfile: &str, programs: &[&str], user: &str) {
        let stage = Stage::last_of(dockerfile).unwrap();
        assert_eq!(stage.base, "scratch");
        let copies: Vec<(String, String)> = programs
            .iter()
            .map(|program| (format!("/out/{program}"), format!("/{program}")))
            .collect();
        assert_eq!(stage.copies, copies);
        assert_eq!(stage.user, user);
        assert_eq!(stage.entrypoint, [format!("/{}", programs[0])]);
        for program in programs {
            assert!(
                dockerfile.contains(&format!("--package {program}")),
                "{program} is not built"
            );
        }
        let toolchain = format!("docker.io/library/rust:{}.", env!("CARGO_PKG_RUST_VERSION"));
        assert!(dockerfile.contains(&toolchain), "not built with {toolchain}");
        assert_eq!(
            dockerfile.matches("cargo build").count(),
            dockerfile.matches("cargo build --locked").count()
        );
    }
    check(AGENT, &["healthscope-agent", "healthscope-runner"], "2102:2102");
    check(AGGREGATOR, &["healthscope-aggregator"], "65532:65532");

    // What the Dockerfiles name is there.
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let word_after = |flag: &str| -> Vec<String> {
        let words: Vec<&str> = AGENT
            .split_whitespace()
            .chain(AGGREGATOR.split_whitespace())
            .collect();
        let pairs = words.windows(2).filter(|pair| pair[0] == flag);
        pairs
            .map(|pair| pair[1].trim_end_matches(';').to_owned())
            .collect()
    };
    for profile in word_after("--profile") {
        assert!(workspace.contains(&format!("[profile.{profile}]")), "{profile}");
    }
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    for package in word_after("--package") {
        let is_there = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["name"] == package);
        assert!(is_there, "{package}");
    }
}

/// A program of the project; `cargo xtask test` builds it beside the tests.
fn program(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        program.is_file(),
        "{} is not there: build it with cargo build",
        program.display()
    );
    program
}

/// A certificate that is its own authority, with its key.
fn certificate() -> (String, String) {
    let mut params = CertificateParams::new(vec![format!("healthscope-aggregator.{NAMESPACE}.svc")]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issued = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    (issued.pem(), issued.key().serialize_pem())
}

#[test]
fn on_a_node_the_image_of_the_dockerfile_runs_as_the_chart_starts_it() {
    let installed = Installed::start(&Options::node());
    let cluster = &installed.cluster;
    // This machine's build is not static: it brings its libraries along.
    let stage = Stage::last_of(AGGREGATOR).unwrap();
    let built = |source: &str| Ok(program(source.trim_start_matches("/out/")));
    let image = stage
        .image("local/healthscope-aggregator:test", built)
        .and_then(|image| image.libraries_of(&program("healthscope-aggregator")))
        .unwrap();
    timed("import of the aggregator", || cluster.import(&image)).unwrap();
    restricted(cluster, NAMESPACE, &json!({}));
    let (certificate, key) = certificate();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "healthscope-aggregator-tls", "namespace": NAMESPACE},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    });
    cluster.apply(&secret.to_string()).unwrap();

    let values = "--set=injector.enabled=false,tls.mode=secret,image.repository=local/healthscope-aggregator,image.tag=test,\
                  image.pullPolicy=Never";
    let install = [
        "install",
        "healthscope",
        "charts/healthscope",
        values,
        "--wait",
        "--timeout=3m",
    ];
    timed("helm install --wait", || installed.helm(&install));
    timed("helm test", || {
        installed.helm(&["test", "healthscope", "--timeout=2m"])
    });
    let (health, wait) = ("--for=condition=Healthy", "--timeout=120s");
    cluster.apply(SCOPE).unwrap();
    cluster
        .kubectl(["wait", health, wait, "healthscope/shop"])
        .unwrap();

    // Replicas come and go, and the scope's status stays.
    let upgrade = [
        "upgrade",
        "healthscope",
        "charts/healthscope",
        values,
        "--set=log.filter=debug",
        "--wait",
        "--timeout=3m",
    ];
    timed("helm upgrade --wait", || installed.helm(&upgrade));
    timed("helm rollback --wait", || {
        installed.helm(&["rollback", "healthscope", "1", "--wait", "--timeout=3m"])
    });
    let pods = cluster
        .get(&format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=aggregator"
        ))
        .unwrap();
    for pod in pods["items"].as_array().unwrap() {
        for status in pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
        {
            assert_eq!(status["restartCount"], 0, "{status}");
        }
    }
    timed("helm uninstall --wait", || {
        installed.helm(&["uninstall", "healthscope", "--wait", "--timeout=3m"])
    });
    cluster
        .kubectl(["wait", health, wait, "healthscope/shop"])
        .unwrap();
}
