//! Programs that tests and benchmarks start and that come from Debian packages.

use {
    crate::run,
    anyhow::bail,
    std::process::{Command, Stdio},
};

/// A program and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prerequisite {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// Installs what is missing. Fails, with the command to run, when this user may not install.
pub(crate) fn install(wanted: &[Prerequisite]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for prerequisite in wanted {
        match find(prerequisite.program) {
            Some(path) => println!("    found {path}"),
            None => missing.push(prerequisite.package),
        }
    }
    missing.dedup();
    install_packages(&missing)?;
    for prerequisite in wanted {
        if find(prerequisite.program).is_none() {
            bail!(
                "{} is still missing after installing {}",
                prerequisite.program,
                prerequisite.package
            );
        }
    }
    Ok(())
}

/// Installs Debian packages. Fails, with the command to run, when this user may not.
pub(crate) fn install_packages(missing: &[&str]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    if run::which("apt-get").is_none() {
        bail!(
            "missing: {}; this is no Debian system, so install them your way",
            missing.join(", ")
        );
    }
    let Some(prefix) = privilege()? else {
        bail!(
            "missing: {}; install them as root:\n    {by_hand}",
            missing.join(", ")
        );
    };
    run::status(apt_get(&prefix).arg("update"))?;
    run::status(
        apt_get(&prefix)
            .args(["install", "-y", "--no-install-recommends"])
            .args(missing),
    )
}

/// Daemons lie in `sbin`, which is not on every user's PATH.
fn find(program: &str) -> Option<String> {
    let on_path = run::which(program).map(|path| path.display().to_string());
    on_path.or_else(|| {
        let path = format!("/usr/sbin/{program}");
        std::path::Path::new(&path).is_file().then_some(path)
    })
}

/// What to put before a command to run it as root; nothing for root, `None` when there is no way without a password.
fn privilege() -> anyhow::Result<Option<Vec<&'static str>>> {
    if run::output(run::command("id").arg("-u"))?.trim() == "0" {
        return Ok(Some(Vec::new()));
    }
    let sudo_works = run::which("sudo").is_some()
        && run::command("sudo")
            .args(["-n", "true"])
            .stderr(Stdio::null())
            .status()?
            .success();
    Ok(sudo_works.then(|| vec!["sudo", "-n"]))
}

fn apt_get(prefix: &[&str]) -> Command {
    let words: Vec<&str> = prefix
        .iter()
        .copied()
        .chain(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .collect();
    let mut command = run::command(words[0]);
    command.args(&words[1..]);
    command
}
