//! CPU time of checks: the kubelet's own and ours, in pods that are equal but for them, one after the other on one node.
//!
//! What a pod costs is what it uses itself and what the kubelet, containerd and its shims use for it; the node's share is
//! what they use more than with an idle pod of the same containers.

use {
    super::{
        Goals,
        account::{Account, Spent},
        node::{INJECTED, NO_OP, Node, PLAIN, Pod, container},
    },
    crate::report::{Table, say},
    anyhow::Result,
    serde_json::{Value, json},
    std::time::{Duration, Instant},
    tokio::time::sleep,
};

/// Checks of a pod.
const CHECKS: usize = 5;
/// Its containers: the kubelet runs at most two lasting probes in each.
const CONTAINERS: usize = 3;
/// The period at which the cost of one more run is seen.
const QUICK: &str = "100ms";
/// Runs a second of all checks at that period, and at one second.
const QUICK_RUNS: f64 = 50.0;
const SLOW_RUNS: f64 = 5.0;
/// After a pod became ready, until it does nothing but what it always does: two carrier periods.
const SETTLE: Duration = Duration::from_secs(20);
/// Pods of HTTP probes have so many containers, with two probes each: one probe costs too little to be seen.
const HTTP_CONTAINERS: usize = 16;

/// A pod in a phase, in cores: of itself, and of the node's programs.
#[derive(Clone, Copy, Debug)]
struct Cores {
    node: f64,
    kubelet: f64,
    pod: f64,
}

impl Cores {
    fn of(spent: Spent, lasted: Duration) -> Self {
        let cores = |time: Duration| time.as_secs_f64() / lasted.as_secs_f64();
        let Spent { node, kubelet, pod } = spent;
        Self {
            node: cores(node),
            kubelet: cores(kubelet),
            pod: cores(pod),
        }
    }

    fn all(self) -> f64 {
        self.node + self.pod
    }
}

struct Phases<'a> {
    node: &'a Node,
    seconds: u64,
    table: Table,
}

impl Phases<'_> {
    /// Runs a pod for a phase; what that cost, and its agent's container alone.
    async fn run(
        &mut self,
        title: &str,
        name: &str,
        namespace: &'static str,
        containers: &[Value],
        probes: Option<&Value>,
    ) -> Result<(Cores, f64)> {
        let pod = self.node.run(name, namespace, containers, probes)?;
        sleep(SETTLE).await;
        let agent = match namespace {
            INJECTED => Some(self.node.process(&pod, "/healthscope-runner supervise")?),
            _ => None,
        };
        let of_agent = || agent.map_or(Ok(Duration::ZERO), Account::of_container);
        let begun = Instant::now();
        let (before, agent_before) = (self.node.account.spent(&pod.uid)?, of_agent()?);
        sleep(Duration::from_secs(self.seconds)).await;
        let (after, agent_after) = (self.node.account.spent(&pod.uid)?, of_agent()?);
        let lasted = begun.elapsed();
        let cores = Cores::of(after.since(before), lasted);
        let in_agent = (agent_after - agent_before).as_secs_f64() / lasted.as_secs_f64();
        let milli = |cores: f64| format!("{:.2}", cores * 1e3);
        self.table.row([
            title.to_owned(),
            milli(cores.pod),
            milli(in_agent),
            milli(cores.node),
            milli(cores.kubelet),
            milli(cores.all()),
        ]);
        if name == "ten-seconds" {
            self.memory(&pod)?;
        }
        self.node.delete(&pod)?;
        Ok((cores, in_agent))
    }

    fn memory(&self, pod: &Pod) -> Result<()> {
        let mut goals = Goals::new();
        let mut sum = 0.0;
        for line in ["/healthscope-agent", "/healthscope-runner supervise"] {
            let process = self.node.process(pod, line)?;
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            let kib = |name: &str| {
                let found = status.lines().find_map(|line| line.strip_prefix(name));
                let word = found.and_then(|rest| rest.split_whitespace().next());
                word.and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0)
            };
            say(&format!(
                "{line}: resident {} KiB, of it its own {} KiB",
                kib("VmRSS:"),
                kib("RssAnon:")
            ));
            sum += kib("VmRSS:");
        }
        goals.at_most("agent and supervisor, resident", sum / 1024.0, 4.0, "MiB");
        goals.print();
        Ok(())
    }
}

/// Containers whose probes the kubelet runs: as many of `handler` as there are checks.
fn probed(handler: &Value) -> Vec<Value> {
    let probe = |container: usize, slot: &str| {
        let mut probe = handler.clone();
        probe["periodSeconds"] = json!(1);
        probe["failureThreshold"] = json!(3);
        (container * 2 + usize::from(slot == "readinessProbe") < CHECKS).then_some(probe)
    };
    (0..CONTAINERS)
        .map(|index| {
            let mut more = json!({});
            for slot in ["livenessProbe", "readinessProbe"] {
                if let Some(probe) = probe(index, slot) {
                    more[slot] = probe;
                }
            }
            container(&format!("c{index}"), &more)
        })
        .collect()
}

fn idle(count: usize) -> Vec<Value> {
    (0..count)
        .map(|index| container(&format!("c{index}"), &json!({})))
        .collect()
}

/// The same checks for an agent; in one container, or spread as the kubelet's are.
fn checks(handler: &Value, period: &str, is_spread: bool) -> Value {
    let check = |index: usize| {
        let mut check = handler.clone();
        check["name"] = json!(format!("check-{index}"));
        check["container"] = json!(format!("c{}", if is_spread { index / 2 } else { 0 }));
        check["period"] = json!(period);
        check
    };
    (0..CHECKS).map(check).collect()
}

/// Measures and prints.
pub(super) async fn measure(node: &Node, seconds: u64) -> Result<()> {
    let mut phases = Phases {
        node,
        seconds,
        table: Table::new([
            "thousandths of a core",
            "pod",
            "of it agent",
            "node",
            "of it kubelet",
            "in all",
        ]),
    };
    let no_op = json!({"exec": {"command": [NO_OP]}});
    let shell = json!({"exec": {"command": ["sh", "-c", "true"]}});
    let http = json!({"httpGet": {"port": 8080, "path": "/ok"}});

    let (idle_pod, _) = phases.run("idle", "idle", PLAIN, &idle(CONTAINERS), None).await?;
    let (kubelet_no_op, _) = phases
        .run(
            "kubelet, 5 no-ops at 1 s",
            "kubelet-no-op",
            PLAIN,
            &probed(&no_op),
            None,
        )
        .await?;
    let (kubelet_shell, _) = phases
        .run(
            "kubelet, 5 sh -c true at 1 s",
            "kubelet-shell",
            PLAIN,
            &probed(&shell),
            None,
        )
        .await?;
    let mut injected = async |title: &str, name: &str, probes: &Value| {
        phases
            .run(title, name, INJECTED, &idle(CONTAINERS), Some(probes))
            .await
    };
    let (spread, _) = injected(
        "ours, 5 no-ops at 1 s, 3 containers",
        "spread",
        &checks(&no_op, "1s", true),
    )
    .await?;
    let (slow, _) = injected(
        "ours, 5 no-ops at 1 s, 1 container",
        "slow",
        &checks(&no_op, "1s", false),
    )
    .await?;
    let (quick, _) = injected("ours, 5 no-ops at 100 ms", "quick", &checks(&no_op, QUICK, false)).await?;
    let (slow_shell, _) = injected(
        "ours, 5 sh -c true at 1 s",
        "slow-shell",
        &checks(&shell, "1s", false),
    )
    .await?;
    let (quick_shell, _) = injected(
        "ours, 5 sh -c true at 100 ms",
        "quick-shell",
        &checks(&shell, QUICK, false),
    )
    .await?;

    // Three probes at ten seconds, as most pods have them.
    let mut served = idle(HTTP_CONTAINERS);
    served[0]["command"] = json!(["sh", "-c", "touch /tmp/ok; exec httpd -f -p 8080 -h /tmp"]);
    let mut of_http = async |title: &str, name: &str, probes: Value| {
        phases
            .run(title, name, INJECTED, &served[..1], Some(&probes))
            .await
    };
    let all = checks(&http, "10s", false);
    let three = all.as_array().into_iter().flatten().take(3).cloned().collect();
    let (_, ten_seconds) = of_http("ours, 3 HTTP at 10 s", "ten-seconds", three).await?;
    let (_, http_slow) = of_http("ours, 5 HTTP at 1 s", "http-slow", checks(&http, "1s", false)).await?;
    let (_, http_quick) = of_http(
        "ours, 5 HTTP at 100 ms",
        "http-quick",
        checks(&http, QUICK, false),
    )
    .await?;

    // The kubelet's HTTP probes are few at a second each, and cheap: many containers, and the kubelet alone.
    let mut probed_containers = served.clone();
    for container in &mut probed_containers {
        for slot in ["livenessProbe", "readinessProbe"] {
            container[slot] = http.clone();
            container[slot]["periodSeconds"] = json!(1);
            // All of them ask one small server.
            container[slot]["failureThreshold"] = json!(1000);
        }
    }
    let (many_idle, _) = phases
        .run("16 idle containers", "many-idle", PLAIN, &served, None)
        .await?;
    let (many_http, _) = phases
        .run(
            "kubelet, 32 HTTP at 1 s",
            "many-http",
            PLAIN,
            &probed_containers,
            None,
        )
        .await?;
    say("");
    phases.table.print();

    let kubelet_each =
        [kubelet_no_op, kubelet_shell].map(|probed| (probed.all() - idle_pod.all()) / SLOW_RUNS * 1e3);
    // The node has no part in a run of ours: the pod alone is the quieter figure.
    let ours_each = [(quick, slow), (quick_shell, slow_shell)]
        .map(|(quick, slow)| (quick.pod - slow.pod) / (QUICK_RUNS - SLOW_RUNS) * 1e3);
    let http_runs = 2.0 * HTTP_CONTAINERS as f64;
    let kubelet_http = (many_http.kubelet - many_idle.kubelet) / http_runs * 1e3;
    let ours_http = (http_quick - http_slow) / (QUICK_RUNS - SLOW_RUNS) * 1e3;
    let mut table = Table::new(["CPU for one more run", "kubelet", "ours"]);
    for (what, kubelet, ours) in [
        ("no-op", kubelet_each[0], ours_each[0]),
        ("sh -c true", kubelet_each[1], ours_each[1]),
        ("HTTP", kubelet_http, ours_http),
    ] {
        table.row([
            what.to_owned(),
            format!("{kubelet:.3} ms"),
            format!("{ours:.3} ms"),
        ]);
    }
    table.print();

    let mut goals = Goals::new();
    goals.cheaper("no-op, each", ours_each[0], kubelet_each[0], 30.0);
    goals.cheaper("sh -c true, each", ours_each[1], kubelet_each[1], 15.0);
    let kubelets = kubelet_no_op.all() - idle_pod.all();
    goals.cheaper(
        "pod with 5 no-ops at 1 s, all costs, 1 container",
        slow.all() - idle_pod.all(),
        kubelets,
        12.0,
    );
    goals.cheaper(
        "the same, spread over 3 containers",
        spread.all() - idle_pod.all(),
        kubelets,
        12.0,
    );
    goals.cheaper("HTTP, each", ours_http, kubelet_http, 3.0);
    goals.at_most(
        "agent and supervisor, 3 probes at 10 s",
        ten_seconds * 1e3,
        0.2,
        "millicore",
    );
    goals.print();
    Ok(())
}
