//! What an agent adds to a pod's start: from "scheduled", as a watcher sees it, to the start of the application's process.
//!
//! Pods with and without an agent in turn, so that both meet the same machine. The application's start is read from its
//! process, to the hundredth of a second: its container's status has whole seconds.
//!
//! Two sorts of pods, because the kubelet looks after the volumes of a pod every 300 ms (`podAttachAndMountRetryInterval` in
//! pkg/kubelet/volumemanager/volume_manager.go) and starts one without volumes at once: those as Kubernetes makes them, with the
//! token of their ServiceAccount in a volume, and those that have asked for none and have no other volume.

use {
    super::{
        Goals,
        node::{INJECTED, Node, PLAIN, container, pod},
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

/// A sort of pods, and how long their starts took.
struct Sort {
    title: &'static str,
    name: &'static str,
    has_token: bool,
    /// Without an agent, and with one.
    taken: [Vec<Duration>; 2],
}

impl Sort {
    fn new(title: &'static str, name: &'static str, has_token: bool) -> Self {
        Self {
            title,
            name,
            has_token,
            taken: [Vec::new(), Vec::new()],
        }
    }
}

/// Measures and prints.
pub(super) async fn measure(node: &Node, starts: usize) -> Result<()> {
    let (told, mut seen) = mpsc::unbounded_channel();
    let following = tokio::spawn(follow(node.client.clone(), told));
    let mut sorts = [
        Sort::new(
            "as Kubernetes makes it, with its token in a volume",
            "ordinary",
            true,
        ),
        Sort::new("without any volume", "bare", false),
    ];
    // The first round finds cold caches.
    for round in 0..=starts {
        for sort in &mut sorts {
            for (taken, namespace) in sort.taken.iter_mut().zip([PLAIN, INJECTED]) {
                let name = format!("start-{}-{round}-{namespace}", sort.name);
                let mut wanted = pod(&name, namespace, &containers(), None);
                wanted["spec"]["automountServiceAccountToken"] = json!(sort.has_token);
                let pod = node.run_pod(&name, namespace, &wanted)?;
                let scheduled = scheduled(&mut seen, &name).await?;
                let process = node.process(&pod, "sleep 1000000")?;
                if round > 0 {
                    taken.push(started(process)?.saturating_sub(scheduled));
                }
                node.delete(&pod)?;
            }
        }
    }
    following.abort();
    say(&format!(
        "{starts} starts each: scheduled → the application's process"
    ));
    let mut table = Table::new(["pod", "agent", "p50", "p90", "most"]);
    let mut goals = Goals::new();
    for sort in &mut sorts {
        let mut middles = [0.0; 2];
        for ((taken, agent), middle) in sort.taken.iter_mut().zip(["none", "injected"]).zip(&mut middles) {
            taken.sort_unstable();
            let at = |share| quantile(taken, share).unwrap_or_default().as_secs_f64() * 1e3;
            *middle = at(0.5);
            let [p50, p90, most] = [0.5, 0.9, 1.0].map(|share| format!("{:.0} ms", at(share)));
            table.row([sort.title.to_owned(), agent.to_owned(), p50, p90, most]);
        }
        let [plain, injected] = middles;
        let title = format!("added to the start of a pod {}, median", sort.title);
        goals.at_most(&title, injected - plain, 300.0, "ms");
    }
    table.print();
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
