//! The breaker on a real node: the agent's image is not there, a rollout gets stuck, and is not for long: `healthscope check`
//! says so and un-sticks it. Once the image is there injection resumes by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/installation.rs"]
mod installation;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::installation::{AGENT, Installation, RELEASE, agent_image, is_injected, is_true, restricted},
    anyhow::{Context, ensure},
    healthscope_e2e_cluster::{Options, tell, wait_for},
    serde_json::{Value, json},
    std::time::{Duration, Instant},
};

const SHOP: &str = "shop";
/// Nobody listens there, so a pull fails at once.
const REPOSITORY: &str = "127.0.0.1:1/healthscope-agent";
const IMAGE: &str = "127.0.0.1:1/healthscope-agent:late";
/// By when harm must be stopped.
const GOAL: Duration = Duration::from_secs(30);
/// By when a canary runs that is made anew with growing pauses, on a busy machine.
const RESUMED: Duration = Duration::from_secs(300);

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web", "image": "local/busybox:1", "imagePullPolicy": "Never",
                        "command": ["sh", "-c", "exec sleep 1000000"],
                        "securityContext": restricted(1000),
                        "livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 5},
                    }],
                },
            },
        },
    })
}

fn disruption_budget() -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "web"}}},
    })
}

fn trips(node: &Installation) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v1/namespaces/{RELEASE}/configmaps/healthscope-breaker");
    let map = node.cluster.get(&path)?;
    let Some(text) = map["data"]["record.json"].as_str() else {
        return Ok(Vec::new());
    };
    let record: Value = serde_json::from_str(text)?;
    Ok(record["trips"].as_array().context("no trips")?.clone())
}

fn event(node: &Installation, reason: &str) -> anyhow::Result<Option<Value>> {
    let events = node
        .cluster
        .get(&format!("/apis/events.k8s.io/v1/namespaces/{SHOP}/events"))?;
    let events = events["items"].as_array().context("no list")?;
    Ok(events.iter().find(|event| event["reason"] == reason).cloned())
}

/// Waits for two pods that are ready, each with an agent or each without.
fn until_ready(node: &Installation, what: &str, with_agent: bool) {
    node.until(what, || {
        let mut pods = node.pods(SHOP, "app=web")?;
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let ready = pods
            .iter()
            .filter(|pod| is_injected(pod) == with_agent && is_true(pod, "Ready"))
            .count();
        ensure!(pods.len() == 2 && ready == 2, "{ready} of {} pods", pods.len());
        Ok(Some(()))
    });
}

#[test]
fn a_missing_agent_image_holds_up_a_rollout_for_seconds_and_injection_resumes_by_itself() {
    let node = Installation::prepare(&Options::node());
    let image = format!("--set=agent.image.repository={REPOSITORY},agent.image.tag=late");
    // Not waited for: the canary cannot start.
    node.helm(&[
        "install",
        "healthscope",
        "charts/healthscope",
        "--create-namespace",
        "--set=canary.imagePullPolicy=IfNotPresent",
        &image,
    ]);
    node.until_injecting();
    node.namespace(SHOP, true);

    let begun = Instant::now();
    node.apply(SHOP, &disruption_budget().to_string());
    node.apply(SHOP, &deployment().to_string());
    let trip = node.until("the breaker to open", || Ok(trips(&node)?.into_iter().next()));
    let opened = begun.elapsed();
    tell(&format!(
        "the breaker opened {opened:.1?} after the rollout began"
    ));
    assert!(opened < GOAL, "{opened:?}");
    assert_eq!(
        (&trip["cause"], &trip["level"]),
        (&json!("ImagePull"), &json!("Owner")),
        "{trip}"
    );
    assert_eq!(trip["owner"], json!({"kind": "Deployment", "name": "web"}));
    assert_eq!(trip["image"], IMAGE);
    let told = node.until("the Event", || event(&node, "InjectionReduced"));
    tell(&format!("{}", told["note"]));

    node.until("check to say what to do about both pods", || {
        let mut check = support::kubectl_command(&node.cluster, SHOP, "healthscope check");
        let checked = check.output()?;
        let said = String::from_utf8_lossy(&checked.stdout);
        for words in ["2 pods are stuck", "ImagePull", "check -n shop --fix"] {
            ensure!(said.contains(words), "{words:?} is not in\n{said}");
        }
        ensure!(checked.status.code() == Some(1), "{}", checked.status);
        Ok(Some(()))
    });
    // Both, although no pod of it may be disrupted: one that has never started is not.
    let fixed = node.kubectl(SHOP, "healthscope check --fix --yes");
    tell(&fixed);
    assert!(fixed.ends_with("2 un-stuck, 0 left\n"), "{fixed}");
    until_ready(&node, "pods without an agent to be ready", false);
    tell(&format!(
        "pods without it are ready {:.1?} after the rollout began",
        begun.elapsed()
    ));

    node.cluster.import(&agent_image(IMAGE)).unwrap();
    let there = Instant::now();
    let closed = wait_for("the breaker to close", RESUMED, || {
        Ok(trips(&node)?.is_empty().then_some(()))
    });
    if let Err(error) = closed {
        let canary = node.pod(RELEASE, "healthscope-canary-0").unwrap_or_default();
        let agent = node
            .cluster
            .kubectl(["logs", "-n", RELEASE, "healthscope-canary-0", "-c", AGENT]);
        panic!("{error:#}\n{}\n{:#}\n{agent:?}", node.logs(), canary["status"]);
    }
    tell(&format!(
        "injection resumed {:.1?} after the image was there",
        there.elapsed()
    ));
    node.until("the other Event", || event(&node, "InjectionResumed"));
    node.kubectl(SHOP, "rollout restart deployment web");
    until_ready(&node, "pods with an agent to be ready", true);
}
