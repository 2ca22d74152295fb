//! `cargo xtask cluster`: installs and builds what a cluster needs, and passes everything else on to its own program.
//!
//! That program is apart, so that the other tasks need not be built with what it depends on.

use {
    crate::{prerequisite, run},
    anyhow::Context,
    serde_json::Value,
    std::{
        path::{Path, PathBuf},
        process::{Command, ExitCode},
    },
};

/// The package, and its program.
pub(crate) const PACKAGE: &str = "healthscope-e2e-cluster";

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// What to do with it; `cargo xtask cluster --help` tells.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { rest } = args;
    let program = build()?;
    let asked = |word: &str| rest.iter().any(|other| other == word);
    if asked("up") && !asked("--help") {
        install_packages(&program, asked("--node"))?;
    }
    let status = run::command(&program)
        .args(rest)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Installs and builds what the tests with a cluster need, and takes away what killed runs left.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let program = build()?;
    install_packages(&program, true)?;
    run::status(run::command(&program).arg("build"))?;
    run::status(run::command(&program).arg("sweep"))
}

/// Takes away what the tests with a cluster left: a static one is not dropped.
pub(crate) fn sweep() -> anyhow::Result<()> {
    run::status(run::command(build()?).arg("sweep"))
}

/// Helm, which is built first when it is missing.
pub(crate) fn helm() -> anyhow::Result<Command> {
    let mut command = run::command(build()?);
    command.arg("helm");
    Ok(command)
}

/// Builds the program with the features that it has in the whole workspace, as the tests are built.
fn build() -> anyhow::Result<PathBuf> {
    let arguments = [
        "build",
        "--workspace",
        "--bin",
        PACKAGE,
        "--message-format=json-render-diagnostics",
    ];
    let messages = run::output(run::cargo().args(arguments))?;
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == PACKAGE)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.with_context(|| format!("cargo says nothing of the program {PACKAGE}"))
}

fn install_packages(program: &Path, node: bool) -> anyhow::Result<()> {
    let mut missing = run::command(program);
    missing.arg("missing");
    if node {
        missing.arg("--node");
    }
    let missing = run::output(&mut missing)?;
    let missing: Vec<&str> = missing.lines().collect();
    prerequisite::install_packages(&missing)
}
