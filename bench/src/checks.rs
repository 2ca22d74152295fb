//! CPU time of a thousand checks a second, a new connection each: HealthScope's engine beside HAProxy,
//! blackbox_exporter, the same checks through hyper, and a bare loop of the system calls.
//!
//! Every way runs alone, in a process of its own, against one target server in another; rounds are interleaved, and the
//! median of each way's rounds is shown. A process's own user and system time count; the target's, and that of the
//! program that drives blackbox_exporter, do not. Checks are counted by the kernel (connections opened), not believed.

use {
    crate::{
        process::Process,
        report::{Table, median, say},
    },
    anyhow::{Context, Result, ensure},
    clap::{Args, ValueEnum},
    std::{
        net::SocketAddr,
        path::Path,
        time::{Duration, Instant},
    },
};

mod peer;
mod target;
mod worker;

pub(crate) use {
    target::{Target, serve as serve_target},
    worker::{WorkerArgs, components, handler, work},
};

/// What to compare, and for how long.
#[derive(Debug, Args)]
pub(crate) struct ChecksArgs {
    /// Checks a second, spread over as many targets with a period of a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Rounds of each way.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds measured in each round, after a warm-up.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only these kinds of checks.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Only these ways, to save time while tuning.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Way>,
}

/// What a check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An HTTP GET.
    Http,
    /// A TCP connect.
    Tcp,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// Who does the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// HealthScope's engine.
    Ours,
    /// HAProxy from Debian, one thread.
    Haproxy,
    /// blackbox_exporter from Debian, one processor.
    Blackbox,
    /// tokio and hyper's connection, a task for each check.
    Hyper,
    /// A loop of the system calls.
    Bare,
}

impl Way {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Haproxy => "haproxy",
            Self::Blackbox => "blackbox",
            Self::Hyper => "hyper",
            Self::Bare => "bare",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Ours => "HealthScope",
            Self::Haproxy => "HAProxy",
            Self::Blackbox => "blackbox_exporter",
            Self::Hyper => "hyper",
            Self::Bare => "system calls alone",
        }
    }
}

/// One round of one way.
#[derive(Clone, Copy, Debug)]
struct Sample {
    cpu: Duration,
    checks: u64,
    time: Duration,
}

impl Sample {
    /// CPU time per check.
    fn nanos(self) -> u64 {
        u64::try_from(self.cpu.as_nanos()).unwrap_or(u64::MAX) / self.checks.max(1)
    }

    /// Checks a second that were really made.
    fn rate(self) -> u64 {
        let millis = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        self.checks * 1000 / millis.max(1)
    }
}

/// Start-up, first checks, connection to the driver.
const WARM_UP: Duration = Duration::from_secs(2);

/// Compares.
pub(crate) fn checks(args: &ChecksArgs) -> Result<()> {
    let ChecksArgs {
        rate,
        rounds,
        seconds,
        kinds,
        ways,
    } = args;
    let kinds = if kinds.is_empty() {
        vec![Kind::Http, Kind::Tcp]
    } else {
        kinds.clone()
    };
    let ways = if ways.is_empty() {
        vec![Way::Ours, Way::Haproxy, Way::Blackbox, Way::Hyper, Way::Bare]
    } else {
        ways.clone()
    };
    let directory = tempfile::tempdir()?;
    for kind in kinds {
        let ways: Vec<Way> = ways
            .iter()
            .copied()
            // hyper has no say in a TCP check.
            .filter(|way| kind == Kind::Http || *way != Way::Hyper)
            .collect();
        let target = target::Target::start()?;
        let address = target.address(kind);
        let mut samples = vec![Vec::new(); ways.len()];
        for round in 1..=*rounds {
            for (way, samples) in ways.iter().zip(&mut samples) {
                let sample = measure(
                    *way,
                    kind,
                    address,
                    *rate,
                    Duration::from_secs(*seconds),
                    directory.path(),
                )
                .with_context(|| format!("{} checks by {}", kind.as_str(), way.title()))?;
                samples.push(sample);
            }
            say(&format!(
                "{} checks: round {round} of {rounds} done",
                kind.as_str()
            ));
        }
        show(kind, *rate, &ways, &samples)?;
    }
    Ok(())
}

fn measure(
    way: Way,
    kind: Kind,
    address: SocketAddr,
    rate: u32,
    time: Duration,
    directory: &Path,
) -> Result<Sample> {
    let (mut process, driver) = match way {
        Way::Ours | Way::Hyper | Way::Bare => {
            let rate = rate.to_string();
            let address = address.to_string();
            let arguments = ["check-worker", way.as_str(), kind.as_str(), &address, &rate];
            (Process::myself(&arguments)?, None)
        }
        Way::Haproxy => (peer::haproxy(kind, address, rate, directory)?, None),
        Way::Blackbox => {
            let blackbox = peer::blackbox(directory)?;
            let driver = peer::Driver::start(&blackbox, kind, address, rate)?;
            (blackbox.process, Some(driver))
        }
    };
    std::thread::sleep(WARM_UP);
    let start = Instant::now();
    let (cpu, opened) = (process.cpu()?, connections_opened()?);
    std::thread::sleep(time);
    let (cpu, opened) = (process.cpu()? - cpu, connections_opened()? - opened);
    let elapsed = start.elapsed();
    process.check()?;
    if let Some(driver) = driver {
        driver.stop()?;
    }
    // One that falls behind (an exporter at the end of its processor) still has a price per check.
    let wanted = elapsed.as_secs_f64() * f64::from(rate);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let share = opened as f64 / wanted;
    ensure!(
        (0.5..1.2).contains(&share),
        "{opened} connections were opened where {wanted:.0} were to be: the machine is overloaded, or something else \
         opens connections; try again when it is quiet"
    );
    Ok(Sample {
        cpu,
        checks: opened,
        time: elapsed,
    })
}

/// TCP connections opened by anybody in this network namespace since it was made.
fn connections_opened() -> Result<u64> {
    let snmp = std::fs::read_to_string("/proc/net/snmp")?;
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = lines.next().zip(lines.next()).context("odd /proc/net/snmp")?;
    let opened = names
        .split(' ')
        .zip(values.split(' '))
        .find_map(|(name, value)| (name == "ActiveOpens").then_some(value));
    Ok(opened.context("no ActiveOpens in /proc/net/snmp")?.parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn show(kind: Kind, rate: u32, ways: &[Way], samples: &[Vec<Sample>]) -> Result<()> {
    let middle = |samples: &[Sample]| {
        let mut nanos: Vec<u64> = samples.iter().map(|sample| sample.nanos()).collect();
        median(&mut nanos).context("at least one round")
    };
    let ours = ways.iter().position(|way| *way == Way::Ours);
    let ours = ours.map(|ours| middle(&samples[ours])).transpose()?;
    say(&format!(
        "{} checks, {rate} a second, a new connection each",
        kind.as_str().to_uppercase()
    ));
    let mut table = Table::new([
        "way",
        "checks/s",
        "CPU per check",
        "least",
        "most",
        "of a core",
        "ours / this",
    ]);
    for (way, samples) in ways.iter().zip(samples) {
        let nanos = middle(samples)?;
        let mut rates: Vec<u64> = samples.iter().map(|sample| sample.rate()).collect();
        let each = samples.iter().map(|sample| sample.nanos());
        let micros = |nanos: u64| format!("{:.1} µs", nanos as f64 / 1e3);
        table.row([
            way.title().to_owned(),
            median(&mut rates).unwrap_or(0).to_string(),
            micros(nanos),
            micros(each.clone().min().unwrap_or(0)),
            micros(each.max().unwrap_or(0)),
            format!("{:.4}", nanos as f64 * f64::from(rate) / 1e9),
            ours.map_or_else(String::new, |ours| {
                format!("{:.2} ×", ours as f64 / nanos.max(1) as f64)
            }),
        ]);
    }
    table.print();
    Ok(())
}
