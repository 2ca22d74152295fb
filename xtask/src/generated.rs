//! `cargo xtask schema`: committed files that are made from the Rust types. That they are current is a test of the
//! program that makes them.

use {crate::run, anyhow::Context, std::fs};

/// A committed file and the arguments with which the `healthscope` binary prints it.
struct Generated {
    file: &'static str,
    arguments: &'static [&'static str],
}

const GENERATED: [Generated; 2] = [
    Generated {
        file: "docs/file-reference.md",
        arguments: &["docs", "file-reference"],
    },
    Generated {
        file: "docs/cli.md",
        arguments: &["docs", "cli"],
    },
];

pub(crate) fn run() -> anyhow::Result<()> {
    run::status(run::cargo().args(["build", "--quiet", "--package", "healthscope"]))?;
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
        } else {
            fs::write(&path, wanted).with_context(|| format!("cannot write {}", generated.file))?;
            println!("{} written", generated.file);
        }
    }
    Ok(())
}
