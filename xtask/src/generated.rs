//! `cargo xtask schema`: committed files that are made from the Rust types, so that they cannot disagree.

use {
    crate::run,
    anyhow::{Context, bail},
    std::fs,
};

/// A committed file and the arguments with which the `healthscope` binary prints it.
struct Generated {
    file: &'static str,
    arguments: &'static [&'static str],
}

const GENERATED: &[Generated] = &[];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail when a file is not what it would be.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { check } = args;
    run::status(run::cargo().args(["build", "--quiet", "--package", "healthscope"]))?;
    let mut stale = Vec::new();
    for generated in GENERATED {
        let mut printing = run::cargo();
        printing
            .args(["run", "--quiet", "--package", "healthscope", "--"])
            .args(generated.arguments);
        let wanted = run::output(&mut printing)?;
        let path = run::root().join(generated.file);
        let is_current = fs::read_to_string(&path).is_ok_and(|found| found == wanted);
        if is_current {
            println!("{} is current", generated.file);
        } else if *check {
            stale.push(generated.file);
        } else {
            fs::write(&path, wanted).with_context(|| format!("cannot write {}", generated.file))?;
            println!("{} written", generated.file);
        }
    }
    if !stale.is_empty() {
        bail!(
            "not what the types say: {}; run cargo xtask schema",
            stale.join(", ")
        );
    }
    Ok(())
}
