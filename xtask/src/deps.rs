//! `cargo xtask deps`: who may depend on whom, proven from cargo's own graph; licences, duplicates and sources by
//! cargo-deny and `deny.toml`.
//!
//! Says what it checked, so that a rule that no longer bites is noticed.

use {
    crate::run,
    anyhow::{Context, bail},
    serde_json::Value,
    std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    },
};

/// The crates that read no clock and no randomness and do no IO.
const PURE: [&str; 3] = ["healthscope-shared", "healthscope-crd", "healthscope-core"];

/// What a pure crate must not have anywhere below it: runtimes, sockets, clients.
const IMPURE: [&str; 10] = [
    "tokio",
    "mio",
    "socket2",
    "hyper",
    "hyper-util",
    "reqwest",
    "rustls",
    "tower",
    "kube-client",
    "kube-runtime",
];

/// Sources of randomness that a pure crate must not name itself. Below a dependency they seed hash maps.
const RANDOMNESS: [&str; 6] = ["rand", "rand_core", "getrandom", "fastrand", "oorandom", "uuid"];

/// Calls that the pure crates' `clippy.toml` must forbid.
const CLOCKS: [&str; 3] = [
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "jiff::Timestamp::now",
];

/// Both sides of the wire, which what they share must not know, nor they each other.
const AGENT: &str = "healthscope-agent";
const AGGREGATOR: &str = "healthscope-aggregator";

/// Crates and what they must not reach, besides [`IMPURE`] for the pure ones.
const UNREACHABLE: [(&str, &[&str]); 7] = [
    (
        "healthscope-shared",
        &[
            AGENT,
            AGGREGATOR,
            "healthscope-core",
            "healthscope-crd",
            "healthscope-service",
            "kube",
            "k8s-openapi",
        ],
    ),
    (
        "healthscope-crd",
        &[AGENT, AGGREGATOR, "healthscope-core", "healthscope-service"],
    ),
    ("healthscope-core", &[AGENT, AGGREGATOR, "healthscope-service"]),
    (
        "healthscope-service",
        &[
            AGENT,
            AGGREGATOR,
            "healthscope-core",
            "healthscope-crd",
            "kube",
            "k8s-openapi",
            "axum",
            "reqwest",
        ],
    ),
    // It lies in the memory of every pod.
    (
        "healthscope-runner",
        &[AGENT, AGGREGATOR, "healthscope-shared", "serde", "tokio"],
    ),
    (
        AGENT,
        &[
            AGGREGATOR,
            "healthscope-core",
            "healthscope-crd",
            "kube",
            "kube-core",
            "kube-client",
            "k8s-openapi",
            "axum",
            "reqwest",
        ],
    ),
    (AGGREGATOR, &[AGENT]),
];

/// The cargo-deny that is built when the machine has none.
const CARGO_DENY: &str = "0.20.2";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also look for known vulnerabilities; fetches the advisory database from the network.
    #[arg(long)]
    advisories: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { advisories } = args;
    check_graph()?;
    let mut deny = run::command(cargo_deny()?);
    // Not offline: cargo fetches what other platforms need. No database is fetched for these three.
    deny.args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    if *advisories {
        deny.arg("advisories");
    }
    run::status(&mut deny)
}

/// Finds cargo-deny, or builds it below `target`, without touching the user's own tools.
fn cargo_deny() -> anyhow::Result<PathBuf> {
    let tools = run::root().join("target/tools");
    let own = tools.join("bin/cargo-deny");
    if let Some(path) = run::which("cargo-deny") {
        return Ok(path);
    }
    if !own.is_file() {
        println!("    building cargo-deny {CARGO_DENY}, once");
        let mut install = run::cargo();
        // Unoptimised and without debug information: it is built far longer than it runs.
        install
            .args([
                "install",
                "cargo-deny",
                "--locked",
                "--debug",
                "--version",
                CARGO_DENY,
                "--root",
            ])
            .arg(&tools);
        install
            .env("CARGO_TARGET_DIR", tools.join("build"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        run::status(&mut install)?;
        fs::remove_dir_all(tools.join("build")).context("cannot remove what cargo-deny was built from")?;
    }
    Ok(own)
}

fn check_graph() -> anyhow::Result<()> {
    let metadata = run::metadata()?;
    let mut faults = Vec::new();
    for (package, forbidden) in UNREACHABLE {
        let impure: &[&str] = if PURE.contains(&package) { &IMPURE } else { &[] };
        check_unreachable(package, &[forbidden, impure].concat(), &mut faults)?;
    }
    for package in PURE {
        check_direct(&metadata, package, &RANDOMNESS, &mut faults)?;
        check_clippy(&metadata, package, &mut faults)?;
    }
    if !faults.is_empty() {
        bail!(
            "{} dependency rules are broken:\n  {}",
            faults.len(),
            faults.join("\n  ")
        );
    }
    Ok(())
}

/// The names of all packages that `package` is built with, outside its tests, on this platform.
fn reachable(package: &str) -> anyhow::Result<BTreeSet<String>> {
    let arguments = [
        "tree",
        "--locked",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--package",
    ];
    let tree = run::output(run::cargo().args(arguments).arg(package))?;
    Ok(tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

fn check_unreachable(package: &str, forbidden: &[&str], faults: &mut Vec<String>) -> anyhow::Result<()> {
    let reachable = reachable(package)?;
    if !reachable.contains(package) {
        bail!("cargo tree does not show {package} itself; its output is not what this check reads");
    }
    let found: Vec<&str> = forbidden
        .iter()
        .copied()
        .filter(|name| reachable.contains(*name))
        .collect();
    for name in &found {
        faults.push(format!(
            "{package} depends on {name} (cargo tree --package {package} --invert {name} shows how)"
        ));
    }
    say(
        found.is_empty(),
        &format!(
            "{package}: none of its {} packages is {}",
            reachable.len(),
            forbidden.join(", ")
        ),
    );
    Ok(())
}

fn check_direct(
    metadata: &Value,
    package: &str,
    forbidden: &[&str],
    faults: &mut Vec<String>,
) -> anyhow::Result<()> {
    let dependencies = find(metadata, package)?["dependencies"]
        .as_array()
        .context("a package without dependencies")?;
    let is_normal = |dependency: &&Value| dependency["kind"].is_null();
    let names: Vec<&str> = dependencies
        .iter()
        .filter(is_normal)
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    let found: Vec<&str> = forbidden
        .iter()
        .copied()
        .filter(|name| names.contains(name))
        .collect();
    for name in &found {
        faults.push(format!(
            "{package} names {name} in its Cargo.toml; randomness is an argument"
        ));
    }
    say(
        found.is_empty(),
        &format!("{package}: names none of {}", forbidden.join(", ")),
    );
    Ok(())
}

/// Clippy reads the nearest `clippy.toml` at or above the package.
fn check_clippy(metadata: &Value, package: &str, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let manifest = find(metadata, package)?["manifest_path"]
        .as_str()
        .context("a package without a manifest")?;
    let nearest = Path::new(manifest)
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("clippy.toml"))
        .find(|file| file.is_file());
    let file: PathBuf = nearest.with_context(|| format!("no clippy.toml above {manifest}"))?;
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let shown = file
        .strip_prefix(run::root())
        .unwrap_or(&file)
        .display()
        .to_string();
    let is_forbidden = |call: &&str| {
        text.lines()
            .any(|line| line.trim_start().starts_with(&format!("{{ path = \"{call}\"")))
    };
    let allowed: Vec<&str> = CLOCKS
        .iter()
        .copied()
        .filter(|call| !is_forbidden(call))
        .collect();
    for call in &allowed {
        faults.push(format!("{shown} does not forbid {call} to {package}"));
    }
    say(
        allowed.is_empty(),
        &format!("{package}: {shown} forbids {}", CLOCKS.join(", ")),
    );
    Ok(())
}

fn find<'a>(metadata: &'a Value, package: &str) -> anyhow::Result<&'a Value> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata without packages")?;
    packages
        .iter()
        .find(|found| found["name"] == package)
        .with_context(|| format!("there is no package {package}"))
}

fn say(holds: bool, what: &str) {
    println!("{} {what}", if holds { "ok    " } else { "BROKEN" });
}
