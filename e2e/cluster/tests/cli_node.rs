//! What only an aggregator knows, by port-forward to its pod: on a whole node, with the user's own token.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    healthscope_crd::manifest,
    healthscope_e2e_cluster::{Cluster, Image, Options, timed},
    rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair},
    serde_json::json,
    std::{
        path::PathBuf,
        process::{Command, Output},
        time::Duration,
    },
};

const LIMIT: Duration = Duration::from_secs(120);
const IMAGE: &str = "local/aggregator:1";

/// A program that `cargo xtask test` builds beside the tests.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        program.is_file(),
        "{} is not there: cargo build --workspace",
        program.display()
    );
    program
}

/// The aggregator with the libraries that this machine's linker gives it.
fn image() -> Image {
    let program = program("healthscope-aggregator");
    let listed = Command::new("ldd").arg(&program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned);
    let image = Image::new(IMAGE)
        .file("/healthscope-aggregator", &program, 0o755)
        .user("1000:1000")
        .entrypoint(["/healthscope-aggregator"]);
    libraries.fold(image, |image, library| image.file(&library, &library, 0o755))
}

/// An authority, and a server's certificate of it with its key.
fn certificates() -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["healthscope-aggregator.healthscope-system.svc".to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

const SCOPES: &str = "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: shop}
spec: {workloadRefs: [{kind: Component, name: db}]}
---
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata: {name: db}
spec: {readinessProbe: {tcpSocket: {port: 5432}}}
";

fn deploy(cluster: &Cluster, authority: &str, certificate: &str, key: &str) {
    cluster
        .kubectl(["create", "namespace", "healthscope-system"])
        .unwrap();
    let account = "/api/v1/namespaces/healthscope-system/serviceaccounts/default";
    cluster
        .wait_for("the ServiceAccount", LIMIT, || cluster.get(account).map(Some))
        .unwrap();
    trust(cluster, authority);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "aggregator", "namespace": "healthscope-system"},
        "stringData": {
            "tls.crt": certificate, "tls.key": key, "token": cluster.admin_token(), "scopes.yaml": SCOPES,
        },
    });
    cluster.apply(&secret.to_string()).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "aggregator", "namespace": "healthscope-system",
            "labels": {"app.kubernetes.io/name": "healthscope", "app.kubernetes.io/component": "aggregator"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"fsGroup": 1000},
            "volumes": [{"name": "files", "secret": {"secretName": "aggregator", "defaultMode": 0o440}}],
            "containers": [{
                "name": "aggregator", "image": IMAGE, "imagePullPolicy": "Never",
                "args": [
                    "--config=/files/scopes.yaml", "--listen=0.0.0.0:9443", "--tls-cert=/files/tls.crt",
                    "--tls-key=/files/tls.key", "--token-file=/files/token",
                    "--allowed-host=healthscope-aggregator.healthscope-system.svc",
                ],
                "ports": [{"name": "https", "containerPort": 9443}],
                "readinessProbe": {"tcpSocket": {"port": "https"}, "periodSeconds": 1},
                "volumeMounts": [{"name": "files", "mountPath": "/files"}],
            }],
        },
    });
    cluster.apply(&pod.to_string()).unwrap();
    timed("an aggregator in a pod", || {
        cluster.kubectl([
            "wait",
            "-n",
            "healthscope-system",
            "--for=condition=Ready",
            "--timeout=120s",
            "pod/aggregator",
        ])
    })
    .unwrap();
}

fn trust(cluster: &Cluster, authority: &str) {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "healthscope-ca", "namespace": "healthscope-system"},
        "data": {"ca.crt": authority},
    });
    cluster.apply(&map.to_string()).unwrap();
}

#[test]
fn detail_comes_from_the_aggregator_s_pod_or_the_reason_is_said() {
    let cluster = Cluster::start(&Options::node()).unwrap();
    timed("import of the aggregator", || cluster.import(&image())).unwrap();
    let crd = serde_json::to_string(&manifest::crd()).unwrap();
    cluster.apply(&crd).unwrap();
    cluster
        .kubectl([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/healthscopes.core.oam.dev",
        ])
        .unwrap();
    let scope = json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"workloadRefs": [{"kind": "Component", "name": "db"}]},
    });
    cluster
        .wait_for("HealthScopes to be served", LIMIT, || {
            Ok(cluster.apply(&scope.to_string()).ok())
        })
        .unwrap();
    let (authority, certificate, key) = certificates();
    deploy(&cluster, &authority, &certificate, &key);

    let ask = |kubeconfig: &PathBuf, line: &str| -> (Option<i32>, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(program("healthscope"))
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", cluster.folder())
            .arg("--kubernetes")
            .args(line.split(' '))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    };
    let admin = cluster.kubeconfig();
    let (code, out, err) = timed("why with detail", || ask(&admin, "why shop"));
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(
        out.contains("└─ Unknown db (Starting, ") && !out.contains("no aggregator"),
        "{out}"
    );
    let (code, out, err) = ask(&admin, "get components -o name");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "component.healthscope.core.oam.dev/db\n", "")
    );
    let (_, out, _) = ask(&admin, "version");
    assert!(out.contains("\nServer: 0.") && !out.contains("cannot"), "{out}");

    // Who may read scopes and pods and not forward ports is told the rule; a certificate is no token.
    let (_, _, err) = ask(&admin, "why shop --aggregator-selector app=nosuch");
    assert!(
        err.contains("no aggregator is ready in the namespace healthscope-system"),
        "{err}"
    );
    let account = ["create", "serviceaccount", "reader", "-n", "default"];
    cluster.kubectl(account).unwrap();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "reader"},
        "rules": [
            {"apiGroups": ["core.oam.dev"], "resources": ["healthscopes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list"]},
        ],
    });
    cluster.apply(&role.to_string()).unwrap();
    cluster
        .kubectl([
            "create",
            "clusterrolebinding",
            "reader",
            "--clusterrole=reader",
            "--serviceaccount=default:reader",
        ])
        .unwrap();
    let token = cluster
        .kubectl(["create", "token", "reader", "-n", "default"])
        .unwrap();
    let reader = cluster.folder().join("reader.kubeconfig");
    std::fs::copy(&admin, &reader).unwrap();
    let file = reader.display().to_string();
    cluster
        .kubectl([
            "--kubeconfig",
            &file,
            "config",
            "set-credentials",
            "reader",
            &format!("--token={}", token.trim()),
        ])
        .unwrap();
    cluster
        .kubectl([
            "--kubeconfig",
            &file,
            "config",
            "set-context",
            "--current",
            "--user=reader",
        ])
        .unwrap();
    let (code, _, err) = ask(&reader, "why shop");
    let rule = "you may not create pods/portforward in the namespace healthscope-system; it takes a Role with the rule \
                {apiGroups: [\"\"], resources: [\"pods/portforward\"], verbs: [create, get]}";
    assert!(code == Some(1) && err.contains(rule), "{err}");

    // Another authority: the token is not sent, and the status has to do.
    trust(&cluster, &certificates().0);
    let (code, out, err) = ask(&admin, "why shop");
    assert!(
        code == Some(1) && err.contains("the certificate of the aggregator") && err.lines().count() == 1,
        "{err}"
    );
    assert!(out.contains("no aggregator has reported on it yet"), "{out}");
}
