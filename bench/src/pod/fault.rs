//! How soon a scope says what happened in a pod, as a watcher of HealthScopes sees it: the end of a container, beside the
//! kubelet's own report of it, and a fault that a probe finds.

use {
    super::{
        Goals,
        node::{INJECTED, Node, Pod, container},
    },
    crate::{
        kubernetes::{
            DEADLINE, GROUP,
            watch::{Seen, Watcher},
        },
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result},
    futures_util::TryStreamExt,
    k8s_openapi::api::core::v1::Pod as PodObject,
    kube::{
        Api, Client,
        api::{WatchEvent, WatchParams},
    },
    rustix::process::{Pid, Signal, kill_process},
    serde_json::json,
    std::{
        fs,
        path::PathBuf,
        time::{Duration, Instant},
    },
    tokio::{sync::mpsc, time},
};

/// A scope is written at most once a second; what is measured is a change of a quiet one.
const QUIET: Duration = Duration::from_millis(1_500);
/// Period and threshold of the probe that finds faults.
const PERIOD: Duration = Duration::from_millis(200);
const THRESHOLD: u32 = 1;
/// Beyond those.
const ALLOWANCE: Duration = Duration::from_millis(50);

/// What is seen of HealthScopes, in order.
struct Statuses {
    seen: mpsc::UnboundedReceiver<Seen>,
    _watcher: Watcher,
}

impl Statuses {
    fn follow(client: &Client) -> Self {
        let (told, seen) = mpsc::unbounded_channel();
        let watcher = Watcher::start(client, GROUP, move |seen| {
            // Nobody listens any more at the end.
            let _told = told.send(seen);
        });
        Self {
            seen,
            _watcher: watcher,
        }
    }

    /// When a scope was first seen to be, or not to be, healthy.
    async fn until(&mut self, scope: &str, is_healthy: bool) -> Result<Instant> {
        let wait = async {
            loop {
                let seen = self.seen.recv().await.context("the watch ended")?;
                if seen.name == scope && (seen.status["health"] == "Healthy") == is_healthy {
                    return anyhow::Ok(seen.at);
                }
            }
        };
        time::timeout(DEADLINE, wait)
            .await
            .with_context(|| format!("{scope} was never seen with healthy = {is_healthy}"))?
    }

    /// Forgets what was seen so far.
    fn clear(&mut self) {
        while self.seen.try_recv().is_ok() {}
    }
}

fn target(node: &Node, name: &str, period: &str, threshold: u32) -> Result<Pod> {
    let probes = json!([{
        "name": "file", "exec": {"command": ["cat", "/tmp/ok"]}, "period": period, "failureThreshold": threshold,
    }]);
    node.run(name, INJECTED, &[container("main", &json!({}))], Some(&probes))
}

/// From a container's death to the scope's status, and to the pod's.
pub(super) async fn deaths(node: &Node, deaths: usize) -> Result<()> {
    let mut statuses = Statuses::follow(&node.client);
    let (told, mut reported) = mpsc::unbounded_channel();
    let following = tokio::spawn(follow_ends(node.client.clone(), told));
    let (mut ours, mut kubelets) = (Vec::new(), Vec::new());
    for death in 0..deaths {
        // A container that ends again and again is restarted later and later: each has a pod of its own.
        let name = format!("death-{death}");
        let pod = target(node, &name, "1s", 1)?;
        node.scope(&name, &[&pod])?;
        statuses.until(&name, true).await?;
        time::sleep(QUIET).await;
        statuses.clear();
        let id = i32::try_from(node.process(&pod, "sleep 1000000")?)?;
        let begun = Instant::now();
        kill_process(Pid::from_raw(id).context("a process has an id")?, Signal::KILL)?;
        ours.push(statuses.until(&name, false).await? - begun);
        let wait = async {
            loop {
                let (at, found) = reported.recv().await.context("the watch ended")?;
                if found == name {
                    return anyhow::Ok(at);
                }
            }
        };
        kubelets.push(
            time::timeout(DEADLINE, wait)
                .await
                .context("the kubelet says nothing")??
                - begun,
        );
        node.cluster
            .kubectl(["delete", "healthscope", &name, "-n", INJECTED])?;
        node.delete(&pod)?;
    }
    following.abort();
    ours.sort_unstable();
    kubelets.sort_unstable();
    say(&format!("{deaths} containers killed"));
    let mut table = Table::new(["", "p50", "p90", "most"]);
    for (title, taken) in [
        ("→ scope's status seen", &ours),
        ("→ pod's status seen (kubelet)", &kubelets),
    ] {
        table.row([title.to_owned(), at(taken, 0.5), at(taken, 0.9), at(taken, 1.0)]);
    }
    table.print();
    let mut goals = Goals::new();
    let p50 = quantile(&ours, 0.5).unwrap_or_default();
    goals.at_most(
        "a container's death → scope's status, p50",
        p50.as_secs_f64() * 1e3,
        30.0,
        "ms",
    );
    goals.print();
    Ok(())
}

fn at(taken: &[Duration], share: f64) -> String {
    let found = quantile(taken, share).unwrap_or_default();
    format!("{:.1} ms", found.as_secs_f64() * 1e3)
}

/// Tells each pod whose first container has ended, once.
async fn follow_ends(client: Client, told: mpsc::UnboundedSender<(Instant, String)>) -> Result<()> {
    let api: Api<PodObject> = Api::namespaced(client, INJECTED);
    let mut version = "0".to_owned();
    let mut known = std::collections::HashSet::new();
    loop {
        let events = api.watch(&WatchParams::default().timeout(280), &version).await?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.try_next().await? {
            let at = Instant::now();
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                version = pod.metadata.resource_version.unwrap_or_default();
                let statuses = pod
                    .status
                    .and_then(|status| status.container_statuses)
                    .unwrap_or_default();
                let has_ended = statuses.iter().any(|status| {
                    let is_ended = status
                        .state
                        .as_ref()
                        .is_some_and(|state| state.terminated.is_some());
                    is_ended || status.restart_count > 0
                });
                let name = pod.metadata.name.unwrap_or_default();
                if has_ended && known.insert(name.clone()) {
                    told.send((at, name))?;
                }
            }
        }
    }
}

/// From a fault in the target to the scope's status.
pub(super) async fn faults(node: &Node, faults: u32) -> Result<()> {
    let mut statuses = Statuses::follow(&node.client);
    let pod = target(node, "faulty", "200ms", THRESHOLD)?;
    node.scope("faulty", &[&pod])?;
    statuses.until("faulty", true).await?;
    let process = node.process(&pod, "sleep 1000000")?;
    // The container's own file, without a process that would have to be started there first.
    let file = PathBuf::from(format!("/proc/{process}/root/tmp/ok"));
    let mut taken = Vec::new();
    for fault in 0..faults {
        // Another part of the period each time.
        time::sleep(QUIET + PERIOD * (fault * 37 % 100) / 100).await;
        statuses.clear();
        let begun = Instant::now();
        fs::remove_file(&file)?;
        taken.push(statuses.until("faulty", false).await? - begun);
        time::sleep(QUIET).await;
        fs::write(&file, "")?;
        statuses.until("faulty", true).await?;
    }
    node.delete(&pod)?;
    taken.sort_unstable();
    say(&format!(
        "{faults} faults; a command check every {PERIOD:?}, threshold {THRESHOLD}"
    ));
    let mut table = Table::new(["", "p50", "p90", "p99", "most"]);
    let title = "fault → scope's status seen".to_owned();
    table.row([
        title,
        at(&taken, 0.5),
        at(&taken, 0.9),
        at(&taken, 0.99),
        at(&taken, 1.0),
    ]);
    table.print();
    let p99 = quantile(&taken, 0.99).unwrap_or_default();
    let goal = PERIOD * THRESHOLD + ALLOWANCE;
    let mut goals = Goals::new();
    goals.at_most(
        "a fault → scope's status, p99",
        p99.as_secs_f64() * 1e3,
        goal.as_secs_f64() * 1e3,
        "ms",
    );
    goals.print();
    Ok(())
}
