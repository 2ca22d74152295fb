//! The control plane alone, in each version that we promise to work with.

use {
    healthscope_e2e_cluster::{
        Audit, Cluster, Component, KeyKind, Options, ServiceAccountKeys, Version, timed,
    },
    serde_json::{Value, json},
    std::{
        fs,
        time::{Duration, SystemTime, UNIX_EPOCH},
    },
};

const LIMIT: Duration = Duration::from_secs(60);

const SHIPS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {sails: {type: integer}}}
";

const SHIP: &str = "
apiVersion: example.org/v1
kind: Ship
metadata: {name: swift, namespace: default}
spec: {sails: 3}
";

fn serves_its_version_and_custom_resources(version: Version) {
    let cluster = Cluster::start(&Options {
        version,
        ..Options::control_plane()
    })
    .unwrap();
    let answer = cluster.get("/version").unwrap();
    let git_version = answer["gitVersion"].as_str().unwrap();
    assert!(git_version.starts_with(&format!("v{version}.")), "{git_version}");
    assert_eq!(
        format!("{}.{}", answer["major"], answer["minor"]).replace('"', ""),
        version.to_string()
    );

    timed("a CRD and an object of it", || {
        cluster.apply(SHIPS).unwrap();
        cluster
            .kubectl([
                "wait",
                "--for=condition=Established",
                "--timeout=60s",
                "crd/ships.example.org",
            ])
            .unwrap();
        cluster.apply(SHIP).unwrap();
    });
    let sails = cluster.kubectl(["get", "ship", "swift", "-o", "jsonpath={.spec.sails}"]);
    assert_eq!(sails.unwrap(), "3");
    timed("stop", || cluster.stop()).unwrap();
}

#[test]
fn the_newest_version_serves_custom_resources() {
    serves_its_version_and_custom_resources(Version::V1_36);
}

#[test]
fn the_oldest_version_serves_custom_resources() {
    serves_its_version_and_custom_resources(Version::V1_34);
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The claims of a token for the ServiceAccount `default`.
fn claims(cluster: &Cluster, uid: &str, expires: u64) -> Value {
    json!({
        "iss": cluster.service_account_keys().issuer,
        "aud": [cluster.service_account_keys().issuer],
        "sub": "system:serviceaccount:default:default",
        "iat": expires - 600,
        "nbf": expires - 600,
        "exp": expires,
        "kubernetes.io": {
            "namespace": "default",
            "serviceaccount": {"name": "default", "uid": uid},
        },
    })
}

#[test]
fn tokens_are_made_with_the_cluster_s_own_keys() {
    for key_kind in [KeyKind::Rsa2048, KeyKind::EcP256] {
        let cluster = Cluster::start(&Options {
            controller_manager: true,
            key_kind,
            ..Options::control_plane()
        })
        .unwrap();
        let path = "/api/v1/namespaces/default/serviceaccounts/default";
        let account = cluster.get(path).unwrap();
        let uid = account["metadata"]["uid"].as_str().unwrap();
        let review = |token: &str| {
            let review = json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "metadata": {"name": "x"},
                "spec": {"token": token},
            });
            let file = cluster.folder().join("review.json");
            fs::write(&file, review.to_string()).unwrap();
            let file = file.display().to_string();
            let answer = cluster.kubectl(["create", "-o", "json", "-f", &file]).unwrap();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            answer["status"]["authenticated"] == true
        };
        let keys = cluster.service_account_keys();
        let good = claims(&cluster, uid, now() + 600);
        assert!(review(&keys.sign(&good).unwrap()), "made like the cluster's own");
        assert!(
            !review(&keys.sign(&claims(&cluster, uid, now() - 60)).unwrap()),
            "expired"
        );
        assert!(
            !review(&keys.sign(&claims(&cluster, "another", now() + 600)).unwrap()),
            "of an account that is gone"
        );
        let forger = ServiceAccountKeys::create(cluster.folder(), "forger", key_kind).unwrap();
        assert!(!review(&forger.sign(&good).unwrap()), "signed by somebody else");

        let published = cluster.get("/openid/v1/jwks").unwrap();
        assert_eq!(published["keys"][0]["kid"], keys.key_id.as_str());
    }
}

#[test]
fn parts_are_killed_paused_and_started_again() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    cluster.kubectl(["create", "namespace", "kept"]).unwrap();

    cluster.kill(Component::ApiServer).unwrap();
    assert!(cluster.get("/version").is_err());
    timed("the API server again", || {
        cluster.start_again(Component::ApiServer)
    })
    .unwrap();
    cluster.get("/api/v1/namespaces/kept").unwrap();

    cluster.pause(Component::Etcd).unwrap();
    cluster
        .wait_for("the API server to miss etcd", LIMIT, || {
            Ok(cluster
                .kubectl(["get", "--raw", "/readyz"])
                .is_err()
                .then_some(()))
        })
        .unwrap();
    cluster.resume(Component::Etcd).unwrap();
    cluster
        .wait_for("the API server to find etcd", LIMIT, || {
            cluster.get("/api/v1/namespaces/kept").map(Some)
        })
        .unwrap();
}

#[test]
fn requests_are_in_the_audit_log_with_their_users() {
    let cluster = Cluster::start(&Options {
        audit: Some(Audit::Metadata),
        ..Options::control_plane()
    })
    .unwrap();
    let nobody = cluster.kubeconfig_for("somebody", Some("some")).unwrap();
    let nobody = nobody.display().to_string();
    let refused = cluster
        .kubectl(["--kubeconfig", &nobody, "get", "secrets", "-n", "kube-system"])
        .unwrap_err();
    assert!(refused.to_string().contains("Forbidden"), "{refused}");
    let log = fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    let entry: Value = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|entry: &Value| {
            entry["user"]["username"] == "somebody" && entry["objectRef"]["resource"] == "secrets"
        })
        .unwrap();
    assert_eq!(entry["responseStatus"]["code"], 403);
    assert_eq!(entry["user"]["groups"][0], "some");
}

#[test]
fn a_start_that_fails_shows_the_log_and_leaves_nothing() {
    let error = Cluster::start(&Options {
        api_server_arguments: vec!["--no-such-flag".to_owned()],
        ..Options::control_plane()
    })
    .unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("kube-apiserver ended by itself"), "{message}");
    assert!(message.contains("unknown flag: --no-such-flag"), "{message}");
    let log = message
        .split_whitespace()
        .find(|word| word.ends_with("kube-apiserver.log:"))
        .unwrap();
    assert!(!std::path::Path::new(log.trim_end_matches(':')).exists(), "{log}");
}
