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
    crate::{
        installation::{
            History, INJECT, INSTALL, Installation, RELEASE, fed, is_injected, is_true, printed, restricted,
        },
        support::{Watched, program},
    },
    anyhow::ensure,
    healthscope_e2e_cluster::{Options, tell, timed},
    serde_json::{Value, json},
    std::{
        fs,
        process::Command,
        time::{Duration, Instant},
    },
};

const SHOP: &str = "shop";
const APPS: [&str; 4] = ["web", "db", "front", "cart"];
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

/// A command check without a liveness probe, one with a command as liveness probe, one over HTTP, and one that is written in
/// an annotation and that the kubelet knows nothing of.
fn shop() -> Vec<Value> {
    let mut cart = deployment("cart", "echo full >/tmp/stock; exec sleep 1000000", &json!({}));
    let check = probe(json!({"name": "stock", "exec": {"command": ["grep", "full", "/tmp/stock"]}}));
    cart["spec"]["template"]["metadata"]["annotations"] =
        json!({"healthscope.core.oam.dev/probes": json!([check]).to_string()});
    vec![
        cart,
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

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

fn rolled_out(installation: &Installation, apps: &[&str]) {
    for app in apps {
        let line = format!("rollout status deployment/{app} --timeout=120s");
        timed(&format!("rollout of {app}"), || installation.kubectl(SHOP, &line));
    }
}

/// Waits until the shop is healthy and what `kubectl get agents` prints has these words.
fn until_agents(installation: &Installation, what: &str, is_wanted: impl Fn(&str) -> bool) {
    installation.until(what, || {
        let shown = installation.kubectl(SHOP, "healthscope get agents");
        ensure!(is_wanted(&shown), "{shown}");
        Ok(Some(()))
    });
    installation.until_health(SHOP, "shop", "Healthy");
}

/// Breaks a check of a component from within its container, and mends it.
fn break_and_mend(installation: &Installation, app: &str, scripts: [&str; 2], words: &[&str]) {
    let pod = pod(installation, app);
    installation.exec(SHOP, name_of(&pod), app, scripts[0]);
    let begun = Instant::now();
    let broken = installation.until_component(SHOP, "shop", app, "Unhealthy", words);
    tell(&format!(
        "a broken file in {app} in the scope after {:.1?}, with a period of {PERIOD:?}: {}",
        begun.elapsed(),
        broken["message"]
    ));
    let shown = installation.kubectl(SHOP, "get healthscope");
    assert!(shown.contains("Unhealthy") && shown.contains(app), "{shown}");
    // Its exit code says no.
    let mut why = support::kubectl_command(&installation.cluster, SHOP, "healthscope why shop");
    let why = String::from_utf8(why.output().unwrap().stdout).unwrap();
    for word in words {
        assert!(why.contains(word), "{word} is not in\n{why}");
    }
    installation.exec(SHOP, name_of(&pod), app, scripts[1]);
    timed("a mended file", || {
        installation.until_health(SHOP, "shop", "Healthy")
    });
}

#[test]
fn what_the_documentation_shows_works_as_written() {
    let installation = Installation::prepare(&Options::node());
    install(&installation);
    inject(&installation);
    remove_the_label(&installation);
    offline(&installation);
}

fn install(installation: &Installation) {
    let notes = timed("helm install", || installation.helm(&INSTALL));
    assert!(notes.contains("kubectl label namespace"), "{notes}");
    timed("helm test", || installation.helm(&["test", "healthscope"]));
    timed("rollout of the aggregator", || {
        installation.kubectl(
            RELEASE,
            "rollout status deployment/healthscope-aggregator --timeout=120s",
        )
    });
    // The canary takes a moment, and the namespace is not the shop's yet.
    tell(&timed("healthscope check", || {
        printed(&mut support::kubectl_command(
            &installation.cluster,
            "default",
            "healthscope check --wait 2m",
        ))
    }));
}

fn inject(installation: &Installation) {
    // A shop that knows nothing of us.
    installation.namespace(SHOP, false);
    for object in shop() {
        installation.apply(SHOP, &object.to_string());
    }
    installation.apply(SHOP, SCOPE);
    rolled_out(installation, &APPS);
    installation.until_health(SHOP, "shop", "Healthy");
    assert!(!is_injected(&pod(installation, "web")));

    let seen = Watched::begin(&installation.cluster, SHOP, "shop");

    // Two commands, and each pod reports from inside.
    let history = History::begin(&installation.cluster, SHOP);
    installation.kubectl(SHOP, &format!("label namespace {SHOP} {INJECT}=enabled"));
    installation.kubectl(SHOP, "rollout restart deployment");
    rolled_out(installation, &APPS);
    for app in APPS {
        assert!(is_injected(&pod(installation, app)), "{app} has no agent");
    }
    timed("agents of all pods", || {
        until_agents(installation, "agents of all pods", |shown| {
            APPS.iter().all(|app| {
                let line = shown
                    .lines()
                    .find(|line| line.starts_with(&format!("{SHOP}.{app}-")));
                line.is_some_and(|line| line.contains("connected"))
            })
        });
    });
    tell(&installation.kubectl(SHOP, "get healthscope"));
    let checked = installation.kubectl(SHOP, "healthscope check --wait 1m");
    for word in ["its pods have agents (4 of 4)", " 0 failures"] {
        assert!(checked.contains(word), "{word:?} is not in\n{checked}");
    }
    tell(&checked);
    tell(&format!(
        "seen of the shop while its pods were replaced: {:#?}",
        seen.seen()
    ));
    drop(seen);

    let missing = "can't open '/tmp/ok': No such file or directory";
    break_and_mend(
        installation,
        "web",
        ["rm /tmp/ok", "echo fine >/tmp/ok"],
        &["exec cat /tmp/ok in container web", "exit code 1", missing],
    );
    // The kubelet does not know of this one: the pod stays ready.
    let cart = pod(installation, "cart");
    break_and_mend(
        installation,
        "cart",
        ["echo none >/tmp/stock", "echo full >/tmp/stock"],
        &["exec grep full /tmp/stock in container cart", "exit code 1"],
    );
    for app in ["db", "front"] {
        assert_eq!(history.harm(name_of(&pod(installation, app))), None);
    }
    assert_eq!(history.harm(name_of(&cart)), None);
}

fn is_clean(pod: &Value) -> bool {
    !pod.to_string().contains("healthscope")
}

fn remove_the_label(installation: &Installation) {
    installation.kubectl(SHOP, &format!("label namespace {SHOP} {INJECT}-"));
    installation.kubectl(SHOP, "rollout restart deployment");
    rolled_out(installation, &APPS);
    until_no_trace(installation);
}

/// The probe in cart's annotation is the user's own, so of cart it is only asked that there is no agent.
fn until_no_trace(installation: &Installation) {
    for app in APPS {
        let pod = pod(installation, app);
        assert!(is_true(&pod, "Ready") && !is_injected(&pod), "{pod:#}");
        assert!(app == "cart" || is_clean(&pod), "{pod:#}");
    }
    timed("the end of all agents", || {
        until_agents(installation, "no agents", |shown| !shown.contains(SHOP));
    });
}

fn offline(installation: &Installation) {
    let folder = tempfile::tempdir().unwrap();
    let original: String = shop().iter().map(|object| format!("---\n{object}\n")).collect();
    let file = folder.path().join("deploy.yaml");
    fs::write(&file, &original).unwrap();
    let inject = |more: &[&str]| {
        let mut command = Command::new(program("healthscope"));
        command
            .arg("inject")
            .arg("-f")
            .arg(&file)
            .args(more)
            .env("KUBECONFIG", installation.cluster.kubeconfig());
        printed(&mut command)
    };
    let difference = inject(&["--diff"]);
    for line in [
        "+      initContainers:",
        " image: ghcr.io/healthscope/healthscope-agent:",
    ] {
        assert!(difference.contains(line), "{line:?} is not in\n{difference}");
    }
    let injected = inject(&[]);
    let apply = |objects: &str| {
        let mut command = support::kubectl_command(&installation.cluster, SHOP, "apply -f -");
        let output = fed(&mut command, objects).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    apply(&injected);
    rolled_out(installation, &APPS);
    for app in APPS {
        assert!(is_injected(&pod(installation, app)), "{app} has no agent");
    }
    timed("agents of all pods, injected offline", || {
        until_agents(installation, "agents of all pods", |shown| {
            let of_shop = shown.lines().filter(|line| line.starts_with(&format!("{SHOP}.")));
            of_shop.filter(|line| line.contains("connected")).count() == APPS.len()
        });
    });
    // Injected once more it is the same.
    fs::write(&file, &injected).unwrap();
    assert_eq!(inject(&["--diff"]), "");

    apply(&original);
    rolled_out(installation, &APPS);
    until_no_trace(installation);
}
