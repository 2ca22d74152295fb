//! `cargo xtask runner`: the runner as it is shipped, static and small.

use {
    crate::run,
    anyhow::bail,
    std::{env, path::Path},
};

/// The largest that may be shipped: it lies in the memory of every pod.
const MAX_BYTES: u64 = 600_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For another machine, such as aarch64-unknown-linux-musl.
    #[arg(long, value_name = "TRIPLE", default_value_t = default_target())]
    target: String,
}

fn default_target() -> String {
    format!("{}-unknown-linux-musl", env::consts::ARCH)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { target } = args;
    build(target)
}

/// For this machine, as the tests on a node need it.
pub(crate) fn build_here() -> anyhow::Result<()> {
    build(&default_target())
}

fn build(target: &str) -> anyhow::Result<()> {
    let mut asking = run::command(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let library = run::output(asking.args(["--print", "target-libdir", "--target", target]))?;
    if !Path::new(library.trim()).is_dir() {
        bail!("Rust's standard library for {target} is not installed: rustup target add {target}");
    }
    run::status(run::cargo().args([
        "build",
        "--quiet",
        "--profile",
        "runner",
        "--target",
        target,
        "--package",
        "healthscope-runner",
    ]))?;
    let folder = run::target_directory()?.join(target);
    check_size(run::built(&folder.join("runner/healthscope-runner"))?)
}

/// Fails when a runner of so many bytes must not be shipped.
pub(crate) fn check_size(size: u64) -> anyhow::Result<()> {
    if size > MAX_BYTES {
        bail!("the runner has {size} bytes and may have {MAX_BYTES}");
    }
    Ok(())
}
