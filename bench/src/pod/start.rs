//! What an agent adds to a pod's start: from "scheduled", as a watcher sees it, to the start of the application's process.
//!
//! Pods with and without an agent in turn, so that both meet the same machine. The application's start is read from its
//! process, to the hundredth of a second: its container's status has whole seconds.

use {
    super::{
        Goals,
        node::{INJECTED, Node, PLAIN, container},
    },
    crate::{
        kubernetes::DEADLINE,
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result},
    futures_util::TryStreamExt,
    k8s_openapi::api::core::v1::Pod,
    kube::{
        Api, Client,
        api::{WatchEvent, WatchParams},
    },
    serde_json::{Value, json},
    std::{fs, time::Duration},
    tokio::{sync::mpsc, time},
};

/// Each pod is started with a command check (a carrier, a mount) and an HTTP probe of its own.
fn containers() -> Vec<Value> {
    vec![container(
        "main",
        &json!({"readinessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1}}),
    )]
}

/// Measures and prints.
pub(super) async fn measure(node: &Node, starts: usize) -> Result<()> {
    let (told, mut seen) = mpsc::unbounded_channel();
    let following = tokio::spawn(follow(node.client.clone(), told));
    let mut taken: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    // The first pair finds cold caches.
    for round in 0..=starts {
        for (taken, namespace) in taken.iter_mut().zip([PLAIN, INJECTED]) {
            let name = format!("start-{round}-{namespace}");
            let pod = node.run(&name, namespace, &containers(), None)?;
            let scheduled = scheduled(&mut seen, &name).await?;
            let process = node.process(&pod, "sleep 1000000")?;
            if round > 0 {
                taken.push(started(process)?.saturating_sub(scheduled));
            }
            node.delete(&pod)?;
        }
    }
    following.abort();
    let [mut plain, mut injected] = taken;
    plain.sort_unstable();
    injected.sort_unstable();
    say(&format!(
        "{starts} starts each: scheduled → the application's process"
    ));
    let mut table = Table::new(["", "p50", "p90", "most"]);
    for (title, taken) in [("without an agent", &plain), ("with an agent", &injected)] {
        let at = |share| {
            format!(
                "{:.0} ms",
                quantile(taken, share).unwrap_or_default().as_secs_f64() * 1e3
            )
        };
        table.row([title.to_owned(), at(0.5), at(0.9), at(1.0)]);
    }
    table.print();
    let mut goals = Goals::new();
    let middle = |taken: &[Duration]| quantile(taken, 0.5).unwrap_or_default().as_secs_f64();
    let added = middle(&injected) - middle(&plain);
    goals.at_most("added to a pod's start, median", added * 1e3, 300.0, "ms");
    goals.print();
    Ok(())
}

/// When the pod was first seen to be scheduled, since the machine booted.
async fn scheduled(seen: &mut mpsc::UnboundedReceiver<(Duration, String)>, name: &str) -> Result<Duration> {
    let wait = async {
        loop {
            let (at, found) = seen.recv().await.context("the watch ended")?;
            if found == name {
                return anyhow::Ok(at);
            }
        }
    };
    time::timeout(DEADLINE, wait)
        .await
        .context("the pod is not scheduled")?
}

/// Tells each pod once, as soon as it is on a node.
async fn follow(client: Client, told: mpsc::UnboundedSender<(Duration, String)>) -> Result<()> {
    let api: Api<Pod> = Api::all(client);
    let mut version = "0".to_owned();
    let mut known = std::collections::HashSet::new();
    loop {
        let events = api.watch(&WatchParams::default().timeout(280), &version).await?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.try_next().await? {
            let at = since_boot();
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                version = pod.metadata.resource_version.unwrap_or_default();
                let is_scheduled = pod.spec.and_then(|spec| spec.node_name).is_some();
                let name = pod.metadata.name.unwrap_or_default();
                if is_scheduled && known.insert(name.clone()) {
                    told.send((at, name))?;
                }
            }
        }
    }
}

fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// When a process started, since the machine booted.
fn started(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("odd /proc/PID/stat")?;
    let ticks: u64 = fields.split(' ').nth(19).context("no start time")?.parse()?;
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}
