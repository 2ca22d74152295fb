//! `cargo xtask schema` and `cargo xtask crd`: committed files that are made from the Rust types and from the chart. That
//! they are current is a test of what makes them.

use {
    crate::{cluster, run},
    anyhow::Context,
    std::fs,
};

/// A committed file and the arguments with which the `healthscope` binary prints it.
struct Generated {
    file: &'static str,
    arguments: &'static [&'static str],
}

const PAGES: [Generated; 3] = [
    Generated {
        file: "docs/file-reference.md",
        arguments: &["docs", "file-reference"],
    },
    Generated {
        file: "docs/cli.md",
        arguments: &["docs", "cli"],
    },
    Generated {
        file: "docs/chart.md",
        arguments: &["docs", "chart"],
    },
];

const DEFINITION: Generated = Generated {
    file: "charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml",
    arguments: &["docs", "crd"],
};

/// The chart as one plain manifest, with the definition within, and the arguments with which Helm prints it.
const INSTALLATION: Generated = Generated {
    file: "examples/kubernetes/install.yaml",
    arguments: &[
        "template",
        "healthscope",
        "charts/healthscope",
        "--namespace=healthscope-system",
        "--values=examples/kubernetes/install.values.yaml",
        "--skip-tests",
    ],
};

/// Writes all of them.
pub(crate) fn all() -> anyhow::Result<()> {
    build()?;
    PAGES.iter().try_for_each(print)?;
    manifests()
}

/// Writes the CustomResourceDefinition, and the manifest of an installation, which has it within.
pub(crate) fn crd() -> anyhow::Result<()> {
    build()?;
    manifests()
}

fn manifests() -> anyhow::Result<()> {
    print(&DEFINITION)?;
    let Generated { file, arguments } = INSTALLATION;
    let rendered = run::output(cluster::helm()?.args(arguments))?;
    write(file, &rendered)
}

fn build() -> anyhow::Result<()> {
    run::status(run::cargo().args(["build", "--quiet", "--package", "healthscope"]))
}

fn print(generated: &Generated) -> anyhow::Result<()> {
    let Generated { file, arguments } = generated;
    let mut printing = run::cargo();
    printing
        .args(["run", "--quiet", "--package", "healthscope", "--"])
        .args(*arguments);
    write(file, &run::output(&mut printing)?)
}

fn write(file: &str, wanted: &str) -> anyhow::Result<()> {
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
