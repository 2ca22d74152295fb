//! `cargo xtask bench NAME`.

use crate::{
    prerequisite::{self, Prerequisite},
    run,
};

/// The programs that benchmarks compare with, from Debian's packages, in the same run.
const PEERS: &[(&str, &[Prerequisite])] = &[(
    "checks",
    &[
        Prerequisite {
            program: "haproxy",
            package: "haproxy",
        },
        Prerequisite {
            program: "prometheus-blackbox-exporter",
            package: "prometheus-blackbox-exporter",
        },
    ],
)];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The benchmark's name; `cargo xtask bench help` prints them.
    name: String,
    /// Passed on to the benchmark.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { name, rest } = args;
    let peers: Vec<Prerequisite> = PEERS
        .iter()
        .filter(|(bench, _)| bench == name)
        .flat_map(|(_, peers)| peers.iter().copied())
        .collect();
    prerequisite::install(&peers)?;
    // Each by itself, as a user builds it: together they would get each other's features.
    for package in ["healthscope-agent", "healthscope-aggregator"] {
        run::status(run::cargo().args(["build", "--release", "--bins", "--package", package]))?;
    }
    run::status(
        run::cargo()
            .args(["run", "--release", "--package", "healthscope-bench", "--", name])
            .args(rest),
    )
}
