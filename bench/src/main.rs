//! Speed and memory, measured beside a floor and beside peers in the same run: `cargo xtask bench NAME`.
//!
//! A table of modes, one module each. These programs print figures and ratios; they never decide whether a test
//! passes. CPU time is read from the system for whole processes, so each thing that is measured runs in its own.

use {anyhow::Result, clap::Parser};

mod fleet;
mod floor;
mod latency;
mod process;
mod report;
mod swarm;

/// Measures HealthScope on this machine.
#[derive(Debug, Parser)]
#[command(name = "healthscope-bench", version)]
enum Mode {
    /// Memory of the aggregator for each idle agent, plain and TLS.
    Fleet(fleet::FleetArgs),
    /// Results that the aggregator takes in per second of one core.
    Ingest(fleet::IngestArgs),
    /// Ten thousand agents come back at once, with everything they know.
    Storm(fleet::StormArgs),
    /// From an outcome in the agent to the aggregator's event stream.
    Latency(latency::LatencyArgs),
    /// Not a bench: takes connections and frames and does nothing with them.
    #[command(hide = true)]
    FloorServer(floor::FloorArgs),
}

fn main() -> Result<()> {
    healthscope_service::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match Mode::parse() {
        Mode::Fleet(args) => runtime.block_on(fleet::fleet(args)),
        Mode::Ingest(args) => runtime.block_on(fleet::ingest(args)),
        Mode::Storm(args) => runtime.block_on(fleet::storm(args)),
        Mode::Latency(args) => runtime.block_on(latency::latency(args)),
        // One thread, like the work that it is the floor of.
        Mode::FloorServer(args) => floor::serve(&args),
    }
}
