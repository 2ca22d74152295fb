//! Project tasks: `cargo xtask --help`.
//!
//! Holds no logic besides running things: what a test, a benchmark or a generator does is in its own crate.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a task does is said to whoever runs it"
)]

mod arm64;
mod bench;
mod cluster;
mod deps;
mod generated;
mod prerequisite;
mod run;
mod runner;
mod test;

use {
    clap::{Parser, Subcommand},
    std::process::ExitCode,
};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Tasks of the HealthScope project",
    disable_help_subcommand = true
)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Test everything, installing and building first what the tests need.
    Test(test::Args),
    /// Run one benchmark of `bench/`, installing the peers it is compared with.
    Bench(bench::Args),
    /// Write the committed files that are generated from the Rust types and the chart.
    Schema,
    /// Write the CustomResourceDefinition and the plain manifest of an installation alone, which are two of them.
    Crd,
    /// Check who may depend on whom, licences and duplicate versions.
    Deps(deps::Args),
    /// Build the runner as it is shipped: static and small.
    Runner(runner::Args),
    /// Build what is put into pods for arm64, and run it in an emulator.
    ///
    /// Proves that agent and runner compile and link for aarch64-unknown-linux-musl with the profiles of the image, that
    /// they are no larger than they may be, and that their process tests pass with them, but for a few that it names.
    ///
    /// Does not prove what the image's own toolchain makes of them: compiler and standard library are Debian's, 1.96 and
    /// not 1.95, and so are musl and the unwinder. Nor anything about speed or memory, or the kernel of an arm64 machine:
    /// system calls are this machine's, through the emulator.
    ///
    /// Takes Debian bookworm on x86_64 and Linux 6.7 or newer. What it downloads (240 MB) stays below the target directory;
    /// two packages for cross compiling are installed.
    Arm64,
    /// A real Kubernetes on this machine: up, down, kubectl, logs.
    Cluster(cluster::Args),
}

fn main() -> ExitCode {
    let Args { task } = Args::parse();
    perform(task).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Test(args) => return test::run(args),
        Task::Bench(args) => bench::run(&args)?,
        Task::Schema => generated::all()?,
        Task::Crd => generated::crd()?,
        Task::Deps(args) => deps::run(&args)?,
        Task::Runner(args) => runner::run(&args)?,
        Task::Arm64 => arm64::run()?,
        Task::Cluster(args) => return cluster::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}
