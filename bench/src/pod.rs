//! `pod`: what an agent costs the pod that it is put into, and how soon it knows, on a real node with the chart installed and
//! the injector on; beside the kubelet's own probes and its own report in the same run.
//!
//! Parts that can be chosen with `--only`; each is bounded in time. All of them print figure, goal, and whether it was met.

mod account;
mod checks;
mod fault;
mod node;
mod start;

use {
    self::node::Node,
    crate::report::Table,
    anyhow::Result,
    clap::{Args, ValueEnum},
};

/// Which parts, and for how long.
#[derive(Debug, Args)]
pub(crate) struct PodArgs {
    /// Measure this part only; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Length of each phase in which CPU time is counted.
    #[arg(long, default_value_t = 45)]
    seconds: u64,
    /// Pods that are started with an agent, and as many without.
    #[arg(long, default_value_t = 15)]
    starts: usize,
    /// Containers that are killed.
    #[arg(long, default_value_t = 12)]
    deaths: usize,
    /// Faults that a probe finds.
    #[arg(long, default_value_t = 60)]
    faults: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU time of checks, of the agent, and its memory.
    Checks,
    /// What is added to a pod's start.
    Start,
    /// From a container's end to the scope's status.
    Death,
    /// From a fault that a probe finds to the scope's status.
    Fault,
}

/// Runs the measurement.
pub(crate) async fn pod(args: PodArgs) -> Result<()> {
    let PodArgs {
        only,
        seconds,
        starts,
        deaths,
        faults,
    } = args;
    let is_wanted = |part| only.is_empty() || only.contains(&part);
    let node = Node::start().await?;
    if is_wanted(Part::Checks) {
        checks::measure(&node, seconds).await?;
    }
    if is_wanted(Part::Start) {
        start::measure(&node, starts).await?;
    }
    if is_wanted(Part::Death) {
        fault::deaths(&node, deaths).await?;
    }
    if is_wanted(Part::Fault) {
        fault::faults(&node, faults).await?;
    }
    Ok(())
}

/// Figures beside what was asked for.
struct Goals {
    table: Table,
}

impl Goals {
    fn new() -> Self {
        Self {
            table: Table::new(["", "seen", "asked for", ""]),
        }
    }

    /// A figure that may be at most so much.
    fn at_most(&mut self, what: &str, seen: f64, goal: f64, unit: &str) {
        let verdict = if seen <= goal { "met" } else { "MISSED" };
        self.table.row([
            what.to_owned(),
            format!("{seen:.2} {unit}"),
            format!("≤ {goal} {unit}"),
            verdict.to_owned(),
        ]);
    }

    /// How many times cheaper than a peer something is to be.
    fn cheaper(&mut self, what: &str, ours: f64, theirs: f64, goal: f64) {
        let seen = theirs / ours.max(1e-9);
        let verdict = if seen >= goal { "met" } else { "MISSED" };
        self.table.row([
            what.to_owned(),
            format!("{seen:.1} ×"),
            format!("≥ {goal} ×"),
            verdict.to_owned(),
        ]);
    }

    fn print(self) {
        self.table.print();
    }
}
