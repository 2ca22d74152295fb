//! The first half hour of a user, command by command, on a real node: install, label a namespace, restart, break something
//! inside a container, mend it, the same offline, and take it all away again.
//!
//! Nothing is set that a user would not set, and nothing is waited for that the documentation does not say to wait for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/installation.rs"]
mod installation;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::installation::{INJECT, Installation, is_injected, restricted},
    anyhow::ensure,
    healthscope_e2e_cluster::{Options, timed},
    serde_json::{Value, json},
    std::time::Duration,
};

const SHOP: &str = "shop";
/// How often the shop's probes run.
const PERIOD: Duration = Duration::from_secs(2);

/// A Deployment of one pod, with one container of busybox that has these fields too.
fn deployment(name: &str, script: &str, fields: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": "local/busybox:1", "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "securityContext": restricted(1000),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    });
    for (field, value) in fields.as_object().unwrap() {
        container[field] = value.clone();
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": SHOP}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                    "containers": [container],
                },
            },
        },
    })
}

fn probe(action: Value) -> Value {
    let mut probe = action;
    probe["periodSeconds"] = json!(PERIOD.as_secs());
    probe["failureThreshold"] = json!(1);
    probe
}

/// A command check without a liveness probe, one with a command as liveness probe, and one over HTTP.
fn shop() -> Vec<Value> {
    vec![
        deployment(
            "web",
            "echo fine >/tmp/ok; exec sleep 1000000",
            &json!({"readinessProbe": probe(json!({"exec": {"command": ["cat", "/tmp/ok"]}}))}),
        ),
        deployment(
            "db",
            "touch /tmp/alive; exec sleep 1000000",
            &json!({"livenessProbe": probe(json!({"exec": {"command": ["test", "-e", "/tmp/alive"]}}))}),
        ),
        deployment(
            "front",
            "mkdir /tmp/www; echo hello >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www",
            &json!({
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": probe(json!({"httpGet": {"path": "/index.html", "port": "http"}})),
            }),
        ),
    ]
}

const SCOPE: &str = "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: shop}
spec: {selector: {matchLabels: {app.kubernetes.io/part-of: shop}}}
";

/// A pod of a workload that is there and not on its way out.
fn pod(installation: &Installation, app: &str) -> Value {
    installation.until(&format!("the pod of {app}"), || {
        let mut pods = installation.pods(SHOP, &format!("app={app}"))?;
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        ensure!(pods.len() == 1, "there are {}", pods.len());
        Ok(pods.pop())
    })
}

/// Waits until the rollouts of the shop are through.
fn rolled_out(installation: &Installation, app: &str) {
    let line = format!("rollout status deployment/{app} --timeout=120s");
    timed(&format!("rollout of {app}"), || installation.kubectl(SHOP, &line));
}

#[test]
fn what_the_documentation_shows_works_as_written() {
    let installation = Installation::prepare(&Options::node());

    let notes = timed("helm install", || {
        installation.helm(&[
            "install",
            "healthscope",
            "charts/healthscope",
            "--create-namespace",
        ])
    });
    assert!(notes.contains("kubectl label namespace"), "{notes}");
    timed("helm test", || installation.helm(&["test", "healthscope"]));
    timed("rollout of the aggregator", || {
        installation.kubectl(
            installation::RELEASE,
            "rollout status deployment/healthscope-aggregator --timeout=120s",
        )
    });

    // A shop that knows nothing of us.
    installation.namespace(SHOP, false);
    for object in shop() {
        installation.apply(SHOP, &object.to_string());
    }
    installation.apply(SHOP, SCOPE);
    for app in ["web", "db", "front"] {
        rolled_out(&installation, app);
    }
    installation.until_health(SHOP, "shop", "Healthy");
    let before = pod(&installation, "web");
    assert!(!is_injected(&before), "{before}");

    // Two commands, and each pod reports from inside.
    installation.kubectl(SHOP, &format!("label namespace {SHOP} {INJECT}=enabled"));
    installation.kubectl(SHOP, "rollout restart deployment");
    for app in ["web", "db", "front"] {
        rolled_out(&installation, app);
    }
    for app in ["web", "db", "front"] {
        assert!(is_injected(&pod(&installation, app)), "{app} has no agent");
    }
    timed("the shop to be healthy from inside", || {
        installation.until_health(SHOP, "shop", "Healthy")
    });
}
