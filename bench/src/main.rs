//! Speed and memory, measured beside a floor and beside peers in the same run: `cargo xtask bench NAME`.
//!
//! A table of modes, one module each. These programs print figures and ratios; they never decide whether a test
//! passes. CPU time is read from the system for whole processes, so each thing that is measured runs in its own.

use {anyhow::Result, clap::Parser, std::net::SocketAddr};

mod checks;
mod controller;
mod exec;
mod fleet;
mod floor;
mod kubernetes;
mod latency;
mod lateness;
mod pod;
mod process;
mod readiness;
mod report;
mod rss;
mod status;
mod swarm;
mod writes;

/// Measures HealthScope on this machine.
#[derive(Debug, Parser)]
#[command(name = "healthscope-bench", version)]
enum Mode {
    /// CPU time of a thousand HTTP and TCP checks a second, beside HAProxy and blackbox_exporter.
    Checks(checks::ChecksArgs),
    /// CPU time of command checks, beside a bare spawn and wait.
    Exec(exec::ExecArgs),
    /// How late checks start at a thousand a second.
    Lateness(lateness::LatenessArgs),
    /// Memory of an agent with ten checks, plain and TLS.
    Rss(rss::RssArgs),
    /// Memory of the aggregator for each idle agent, plain and TLS.
    Fleet(fleet::FleetArgs),
    /// Results that the aggregator takes in per second of one core.
    Ingest(fleet::IngestArgs),
    /// Ten thousand agents come back at once, with everything they know.
    Storm(fleet::StormArgs),
    /// From an outcome in the agent to the aggregator's event stream.
    Latency(latency::LatencyArgs),
    /// From an outcome in the agent to the status on a real API server, beside a bare write.
    Status(status::StatusArgs),
    /// From a fault to the pod's condition by the kubelet's readiness probe, on a real node.
    Readiness(readiness::ReadinessArgs),
    /// What an agent costs its pod, and how soon it knows, on a real node with the chart installed.
    Pod(pod::PodArgs),
    /// How often statuses are written: per change, in quiet, over restarts and reconnects.
    Writes(writes::WritesArgs),
    /// A thousand scopes of a real API server under change, restart and failover.
    Controller(controller::ControllerArgs),
    /// Not a bench: takes connections and frames and does nothing with them.
    #[command(hide = true)]
    FloorServer(floor::FloorArgs),
    /// Not a bench: what `checks` and `lateness` check.
    #[command(hide = true)]
    CheckTarget { http: SocketAddr, tcp: SocketAddr },
    /// Not a bench: what the kubelet asks in `readiness`.
    #[command(hide = true)]
    ReadinessTarget(readiness::TargetArgs),
    /// Not a bench: one way of checking.
    #[command(hide = true)]
    CheckWorker(checks::WorkerArgs),
    /// Not a bench: one way of running commands.
    #[command(hide = true)]
    ExecWorker(exec::WorkerArgs),
    /// Not a bench: an engine that says how late its checks are.
    #[command(hide = true)]
    LatenessWorker(lateness::WorkerArgs),
}

fn main() -> Result<()> {
    healthscope_service::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match Mode::parse() {
        Mode::Checks(args) => checks::checks(&args),
        Mode::Exec(args) => exec::exec(&args),
        Mode::Lateness(args) => lateness::lateness(&args),
        Mode::Rss(args) => runtime.block_on(rss::rss(args)),
        Mode::Fleet(args) => runtime.block_on(fleet::fleet(args)),
        Mode::Ingest(args) => runtime.block_on(fleet::ingest(args)),
        Mode::Storm(args) => runtime.block_on(fleet::storm(args)),
        Mode::Latency(args) => runtime.block_on(latency::latency(args)),
        Mode::Status(args) => runtime.block_on(status::status(args)),
        Mode::Readiness(args) => runtime.block_on(readiness::readiness(args)),
        Mode::ReadinessTarget(args) => readiness::serve_target(&args),
        Mode::Pod(args) => runtime.block_on(pod::pod(args)),
        Mode::Writes(args) => runtime.block_on(writes::writes(args)),
        Mode::Controller(args) => runtime.block_on(controller::controller(args)),
        // One thread, like the work that it is the floor of.
        Mode::FloorServer(args) => floor::serve(&args),
        Mode::CheckTarget { http, tcp } => checks::serve_target(http, tcp),
        Mode::CheckWorker(args) => checks::work(&args),
        Mode::ExecWorker(args) => exec::work(&args),
        Mode::LatenessWorker(args) => lateness::work(&args),
    }
}
