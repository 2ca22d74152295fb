//! `cargo xtask test`: every test, with what it needs installed and built first.
//!
//! A suite is a choice of cargo targets. All of them select the whole workspace, because cargo gives a dependency
//! other features, and builds it again, when fewer packages are selected.

use {
    crate::{
        arm64, cluster,
        prerequisite::{self, Prerequisite},
        run, runner,
    },
    anyhow::{Context, bail},
    clap::ValueEnum,
    serde_json::Value,
    std::{
        fmt,
        io::{BufRead, BufReader, Write},
        process::{Command, ExitCode, Stdio},
        time::{Duration, Instant},
    },
};

/// Seeds of the simulation when nobody says otherwise.
const DEFAULT_SEEDS: u32 = 1000;

/// How the simulation is told how many seeds to try.
const SEEDS_VARIABLE: &str = "HEALTHSCOPE_SEEDS";

/// Variables that change what our programs do and must not leak from the developer's shell into a test.
pub(crate) const UNSET: [&str; 6] = [
    "HEALTHSCOPE_SERVER",
    "HEALTHSCOPE_LOG",
    "NO_COLOR",
    KUBERNETES_VARIABLE,
    arm64::AGENT_VARIABLE,
    arm64::RUNNER_VARIABLE,
];

/// Says to the tests with a cluster against which Kubernetes they run.
const KUBERNETES_VARIABLE: &str = "HEALTHSCOPE_E2E_KUBERNETES";

/// The oldest one that we promise to work with.
const OLDEST_KUBERNETES: &str = "1.34";

/// The tests with a cluster that need nothing of it but an API server, and start whichever they are told to.
const API_SERVER_TESTS: [&str; 12] = [
    "attacks",
    "check",
    "cli",
    "faults_api_server",
    "faults_objects",
    "faults_replicas",
    "faults_tokens",
    "identity",
    "lease",
    "rbac",
    "readers",
    "webhook",
];

/// The package with the tests of real processes and of the page.
const END_TO_END: &str = "healthscope-e2e";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this suite only; may be repeated.
    #[arg(long, value_name = "SUITE")]
    only: Vec<Suite>,
    /// Seeds of the simulation.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEEDS)]
    seeds: u32,
    /// Passed on to the test programs, such as a part of a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Suite {
    /// Unit and integration tests of every crate but the two kinds below.
    Unit,
    /// Examples in the documentation of the crates.
    Doc,
    /// Agents and aggregator over a simulated network, by seed.
    Simulation,
    /// Real binaries on loopback.
    Process,
    /// The page in headless Chromium.
    Browser,
    /// A real Kubernetes, control plane and node, built and started by the project itself.
    Cluster,
    /// Those of its tests that need an API server alone, with the oldest Kubernetes.
    Oldest,
}

impl fmt::Display for Suite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Unit => "unit",
            Self::Doc => "doc",
            Self::Simulation => "simulation",
            Self::Process => "process",
            Self::Browser => "browser",
            Self::Cluster => "cluster",
            Self::Oldest => "oldest",
        })
    }
}

impl Suite {
    fn prerequisites(self) -> &'static [Prerequisite] {
        match self {
            Self::Browser => &[Prerequisite {
                program: "chromium",
                package: "chromium",
            }],
            // Certificates are made as the documentation says.
            Self::Unit | Self::Cluster | Self::Oldest => &[Prerequisite {
                program: "openssl",
                package: "openssl",
            }],
            Self::Doc | Self::Simulation | Self::Process => &[],
        }
    }

    fn has_cluster(self) -> bool {
        matches!(self, Self::Cluster | Self::Oldest)
    }

    /// Whether an integration test's file is run in it.
    fn runs(self, file: &TestFile) -> bool {
        match self {
            Self::Oldest => {
                file.package == cluster::PACKAGE && API_SERVER_TESTS.contains(&file.target.as_str())
            }
            Self::Unit | Self::Doc | Self::Simulation | Self::Process | Self::Browser | Self::Cluster => {
                file.suite() == self
            }
        }
    }

    /// Says which suite an integration test's file belongs to.
    fn of(package: &str, target: &str) -> Self {
        match (package, target) {
            (cluster::PACKAGE, _) => Self::Cluster,
            (END_TO_END, "browser") => Self::Browser,
            (END_TO_END, _) | (_, "process") => Self::Process,
            (_, "simulation") => Self::Simulation,
            _ => Self::Unit,
        }
    }
}

/// An integration test's file, and the package it lies in.
struct TestFile {
    package: String,
    target: String,
}

impl TestFile {
    fn suite(&self) -> Suite {
        Suite::of(&self.package, &self.target)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

struct Finished {
    suite: Suite,
    counts: Counts,
    verdict: Result<(), String>,
    time: Duration,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { only, seeds, rest } = args;
    let chosen: Vec<Suite> = Suite::value_variants()
        .iter()
        .copied()
        .filter(|suite| only.is_empty() || only.contains(suite))
        .collect();
    let mut steps = Steps {
        started: Instant::now(),
        number: 0,
        total: chosen.len() + 2,
    };

    steps.next("installing what the tests need");
    let wanted: Vec<Prerequisite> = chosen
        .iter()
        .flat_map(|suite| suite.prerequisites())
        .copied()
        .collect();
    prerequisite::install(&wanted)?;
    if chosen.iter().any(|suite| suite.has_cluster()) {
        cluster::prepare()?;
    }

    steps.next("building the programs and the tests");
    run::status(run::cargo().args(["build", "--workspace", "--bins", "--tests", "--examples"]))?;

    if chosen.contains(&Suite::Cluster) {
        // Pods have it in containers that hold nothing else.
        runner::build_here()?;
    }

    let files = test_files()?;
    let mut finished = Vec::new();
    for suite in chosen {
        steps.next(&format!("suite {suite}"));
        let begun = Instant::now();
        let (counts, verdict) = run_suite(suite, &files, seeds, &rest)?;
        finished.push(Finished {
            suite,
            counts,
            verdict,
            time: begun.elapsed(),
        });
    }
    if finished.iter().any(|finished| finished.suite.has_cluster()) {
        cluster::sweep()?;
    }
    Ok(report(&finished, steps.started.elapsed()))
}

struct Steps {
    started: Instant,
    number: usize,
    total: usize,
}

impl Steps {
    fn next(&mut self, what: &str) {
        self.number += 1;
        println!(
            "==> [{}/{} at {}] {what}",
            self.number,
            self.total,
            seconds(self.started.elapsed())
        );
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn test_files() -> anyhow::Result<Vec<TestFile>> {
    let text = run::output(run::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read the output of cargo metadata")?;
    let mut files = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_test = target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            if is_test {
                let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
                files.push(TestFile {
                    package: name(package),
                    target: name(target),
                });
            }
        }
    }
    check_names(&files)?;
    Ok(files)
}

/// `--test NAME` selects by name alone, so a name must not stand in two suites.
fn check_names(files: &[TestFile]) -> anyhow::Result<()> {
    for file in files {
        if let Some(other) = files
            .iter()
            .find(|other| other.target == file.target && other.suite() != file.suite())
        {
            bail!(
                "{} and {} both have a test file {}; rename one, for they belong to different suites",
                file.package,
                other.package,
                file.target
            );
        }
    }
    Ok(())
}

fn run_suite(
    suite: Suite,
    files: &[TestFile],
    seeds: u32,
    rest: &[String],
) -> anyhow::Result<(Counts, Result<(), String>)> {
    let mut targets: Vec<&str> = files
        .iter()
        .filter(|file| suite.runs(file))
        .map(|file| file.target.as_str())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    for name in UNSET {
        command.env_remove(name);
    }
    match suite {
        Suite::Oldest => {
            if let Some(gone) = API_SERVER_TESTS.iter().find(|name| !targets.contains(name)) {
                bail!(
                    "there is no test file {gone} with a cluster any more; mend the list in xtask/src/test.rs"
                );
            }
            command.env(KUBERNETES_VARIABLE, OLDEST_KUBERNETES);
        }
        Suite::Unit => {
            command.args(["--lib", "--bins", "--examples"]);
        }
        Suite::Doc => {
            command.arg("--doc");
        }
        Suite::Simulation | Suite::Process | Suite::Browser | Suite::Cluster if targets.is_empty() => {
            return Ok((Counts::default(), Err("it has no test file".to_owned())));
        }
        Suite::Simulation | Suite::Process | Suite::Browser | Suite::Cluster => {}
    }
    for target in targets {
        command.args(["--test", target]);
    }
    command
        .arg("--")
        .args(rest)
        .env(SEEDS_VARIABLE, seeds.to_string());
    let (mut counts, succeeded) = run_tests(&mut command)?;
    let verdict = judge(suite, &mut counts, succeeded, rest);
    Ok((counts, verdict))
}

/// Runs a test command, passing its output on and adding up its closing lines.
fn run_tests(command: &mut Command) -> anyhow::Result<(Counts, bool)> {
    println!("    $ {}", run::typed(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut counts = Counts::default();
    let mut terminal = std::io::stdout();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what cargo test prints")?;
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
        add_closing_line(&String::from_utf8_lossy(&line), &mut counts);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    Ok((counts, status.success()))
}

/// Adds `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn add_closing_line(line: &str, counts: &mut Counts) {
    let Some((_, numbers)) = line
        .strip_prefix("test result: ")
        .and_then(|rest| rest.split_once(". "))
    else {
        return;
    };
    for part in numbers.split(';') {
        let Some((number, word)) = part.trim().split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match word {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.ignored += number,
            _ => {}
        }
    }
}

fn judge(suite: Suite, counts: &mut Counts, succeeded: bool, rest: &[String]) -> Result<(), String> {
    // The crates need not have an example in their documentation, and a selection need not reach every suite.
    let may_be_empty = suite == Suite::Doc || !rest.is_empty();
    if !succeeded {
        // A test program that crashed has no closing line; it must not pass for "0 failed".
        counts.failed = counts.failed.max(1);
        Err("failed".to_owned())
    } else if counts.ignored > 0 {
        Err(format!(
            "{} ignored: a test here runs or is removed",
            counts.ignored
        ))
    } else if counts.passed == 0 && !may_be_empty {
        Err("it has no tests".to_owned())
    } else {
        Ok(())
    }
}

fn report(finished: &[Finished], time: Duration) -> ExitCode {
    println!(
        "\n{:<12}{:>8}{:>8}{:>10}  result",
        "suite", "passed", "failed", "time"
    );
    for Finished {
        suite,
        counts,
        verdict,
        time,
    } in finished
    {
        let verdict = verdict.as_ref().map_or_else(String::as_str, |()| "ok");
        println!(
            "{suite:<12}{:>8}{:>8}{:>10}  {verdict}",
            counts.passed,
            counts.failed,
            seconds(*time)
        );
    }
    println!("in {}\n", seconds(time));
    let passed: u64 = finished.iter().map(|suite| suite.counts.passed).sum();
    let failed: u64 = finished.iter().map(|suite| suite.counts.failed).sum();
    println!("{passed} passed, {failed} failed");
    let all_well = passed > 0 && finished.iter().all(|suite| suite.verdict.is_ok());
    if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        for line in lines {
            add_closing_line(line, &mut counts);
        }
        counts
    }

    #[test]
    fn closing_lines_are_added_up() {
        let counts = counted(&[
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s",
            "test a::b ... ok",
            "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ]);
        assert_eq!(
            counts,
            Counts {
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
    }

    fn check_verdict(
        suite: Suite,
        passed: u64,
        ignored: u64,
        succeeded: bool,
        rest: &[&str],
        expected: Result<(), &str>,
    ) {
        let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
        let mut counts = Counts {
            passed,
            failed: 0,
            ignored,
        };
        assert_eq!(
            judge(suite, &mut counts, succeeded, &rest),
            expected.map_err(str::to_owned)
        );
        assert_eq!(counts.failed, u64::from(!succeeded));
    }

    #[test]
    fn nothing_is_skipped_silently() {
        check_verdict(Suite::Unit, 3, 0, true, &[], Ok(()));
        check_verdict(Suite::Unit, 0, 0, true, &[], Err("it has no tests"));
        check_verdict(Suite::Unit, 0, 0, true, &["name"], Ok(()));
        check_verdict(Suite::Doc, 0, 0, true, &[], Ok(()));
        check_verdict(
            Suite::Unit,
            3,
            1,
            true,
            &[],
            Err("1 ignored: a test here runs or is removed"),
        );
        check_verdict(Suite::Unit, 3, 0, false, &[], Err("failed"));
    }

    #[test]
    fn test_files_belong_to_suites_by_package_and_name() {
        assert_eq!(Suite::of(END_TO_END, "browser"), Suite::Browser);
        assert_eq!(Suite::of(END_TO_END, "faults"), Suite::Process);
        assert_eq!(Suite::of("healthscope-agent", "process"), Suite::Process);
        assert_eq!(Suite::of("healthscope-core", "simulation"), Suite::Simulation);
        assert_eq!(Suite::of(cluster::PACKAGE, "node"), Suite::Cluster);
        assert_eq!(Suite::of("healthscope-agent", "browser"), Suite::Unit);
    }

    #[test]
    fn one_name_in_two_suites_is_refused() {
        let file = |package: &str, target: &str| TestFile {
            package: package.into(),
            target: target.into(),
        };
        assert!(check_names(&[file("a", "x"), file("b", "x")]).is_ok());
        assert!(check_names(&[file("a", "x"), file(END_TO_END, "x")]).is_err());
    }
}
