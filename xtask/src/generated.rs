//! `cargo xtask schema` and `cargo xtask crd`: committed files that are made from the Rust types. That they are current
//! is a test of the program that makes them.

use {crate::run, anyhow::Context, std::fs};

/// A committed file and the arguments with which the `healthscope` binary prints it.
struct Generated {
    file: &'static str,
    arguments: &'static [&'static str],
}

const PAGES: [Generated; 2] = [
    Generated {
        file: "docs/file-reference.md",
        arguments: &["docs", "file-reference"],
    },
    Generated {
        file: "docs/cli.md",
        arguments: &["docs", "cli"],
    },
];

/// The definition, and what has it within.
const MANIFESTS: [Generated; 2] = [
    Generated {
        file: "charts/healthscope/crds/healthscopes.core.oam.dev.yaml",
        arguments: &["docs", "crd"],
    },
    Generated {
        file: "examples/kubernetes/install.yaml",
        arguments: &["docs", "install"],
    },
];

/// Writes all of them.
pub(crate) fn all() -> anyhow::Result<()> {
    build()?;
    PAGES.iter().chain(&MANIFESTS).try_for_each(write)
}

/// Writes the CustomResourceDefinition, and the manifest of an installation, which has it within.
pub(crate) fn crd() -> anyhow::Result<()> {
    build()?;
    MANIFESTS.iter().try_for_each(write)
}

fn build() -> anyhow::Result<()> {
    run::status(run::cargo().args(["build", "--quiet", "--package", "healthscope"]))
}

fn write(generated: &Generated) -> anyhow::Result<()> {
    let Generated { file, arguments } = generated;
    let mut printing = run::cargo();
    printing
        .args(["run", "--quiet", "--package", "healthscope", "--"])
        .args(*arguments);
    let wanted = run::output(&mut printing)?;
    let path = run::root().join(file);
    let is_current = fs::read_to_string(&path).is_ok_and(|found| found == wanted);
    if is_current {
        println!("{file} is current");
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make a folder for {file}"))?;
    }
    fs::write(&path, wanted).with_context(|| format!("cannot write {file}"))?;
    println!("{file} written");
    Ok(())
}
