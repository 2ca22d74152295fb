//! Starting other programs from the root of the checkout.

use {
    anyhow::{Context, bail},
    std::{
        env,
        ffi::OsStr,
        fs,
        path::{Path, PathBuf},
        process::{Command, Output},
    },
};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace's root")
}

/// A command in the root of the checkout, with the environment as it was before `cargo xtask`.
///
/// `cargo run` adds variables about this package, and build scripts that look at them (ring's) would be run again,
/// with everything above them built again, at each change between `cargo test` and `cargo xtask test`.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let added_by_cargo = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name == "CARGO_PRIMARY_PACKAGE"
        });
        if added_by_cargo {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command as one would type it.
pub(crate) fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| {
            let word = word.to_string_lossy();
            if word.contains([' ', '*', '\'', '"']) {
                format!("'{word}'")
            } else {
                word.into_owned()
            }
        })
        .collect();
    words.join(" ")
}

/// Runs a command to its end with this process's terminal; an error unless it succeeds.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<()> {
    println!("    $ {}", typed(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", typed(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", typed(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed; an error, with what it complained about, unless it succeeds.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("cannot run {}", typed(command)))?;
    if !status.success() {
        bail!(
            "{} failed: {status}\n{}",
            typed(command),
            String::from_utf8_lossy(&stderr)
        );
    }
    String::from_utf8(stdout).with_context(|| format!("{} printed no UTF-8", typed(command)))
}

/// Looks a program up as a shell would.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"].as_str();
    Ok(folder
        .context("cargo metadata without a target directory")?
        .into())
}

/// Says how large a program is that was just built; its size in bytes.
pub(crate) fn built(program: &Path) -> anyhow::Result<u64> {
    let size = fs::metadata(program)
        .with_context(|| format!("{} was not built", program.display()))?
        .len();
    println!("    {}: {size} bytes", program.display());
    Ok(size)
}

/// What cargo knows of the workspace: `cargo metadata`, with the packages it depends on.
pub(crate) fn metadata() -> anyhow::Result<serde_json::Value> {
    let text = output(cargo().args(["metadata", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("cannot read the output of cargo metadata")
}
