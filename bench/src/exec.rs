//! CPU time of command checks beside a bare `posix_spawn` and wait of the same program.
//!
//! The time of the programs themselves is in all figures, as it is in life: what a way costs is the whole of spawning,
//! running and reaping. Each way runs in a process of its own at the same pace; rounds are interleaved.

use {
    crate::{
        checks::components,
        process::{Process, cpu_of_self},
        report::{Table, median, say},
    },
    anyhow::{Context, Result, bail, ensure},
    clap::{Args, ValueEnum},
    healthscope_agent::{
        engine::{Command, Engine, EngineConfig, Event, counters::Counters},
        prober::{ProberConfig, Probers},
    },
    healthscope_shared::probe::{ExecAction, Handler, outcome::ProbeState},
    std::{
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
        process::Stdio,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::{Duration, Instant},
    },
    tokio::sync::mpsc,
    tokio_util::sync::CancellationToken,
};

/// What to run, and for how long.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Commands a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Rounds of each way.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Seconds measured in each round, after a warm-up.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Which way, and what to run.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    way: Way,
    program: PathBuf,
    rate: u32,
    seconds: u64,
}

/// Who runs the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// HealthScope's engine: captured output, timeout, process group.
    Ours,
    /// `posix_spawn` and wait, nothing captured.
    Bare,
    /// The same with output read from a pipe.
    Piped,
    /// tokio's `Command::output`, with a timeout.
    Tokio,
}

impl Way {
    const ALL: [Self; 4] = [Self::Ours, Self::Bare, Self::Piped, Self::Tokio];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Bare => "bare",
            Self::Piped => "piped",
            Self::Tokio => "tokio",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Ours => "HealthScope",
            Self::Bare => "spawn and wait",
            Self::Piped => "spawn, read a pipe, wait",
            Self::Tokio => "tokio's Command::output",
        }
    }
}

/// An x86-64 ELF file whose only instructions are `exit(0)`: spawning it costs what spawning costs.
pub(crate) const TINY: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\
    \x02\0\x3e\0\x01\0\0\0\x78\0\x40\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\
    \x01\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\x40\0\0\0\0\0\x81\0\0\0\0\0\0\0\x81\0\0\0\0\0\0\0\
    \0\x10\0\0\0\0\0\0\
    \xb8\x3c\0\0\0\x31\xff\x0f\x05";

const WARM_UP: Duration = Duration::from_secs(2);

/// Compares.
pub(crate) fn exec(args: &ExecArgs) -> Result<()> {
    let ExecArgs {
        rate,
        rounds,
        seconds,
    } = *args;
    let directory = tempfile::tempdir()?;
    let mut programs = vec![("/bin/true".to_owned(), PathBuf::from("/bin/true"))];
    if cfg!(target_arch = "x86_64") {
        let tiny = directory.path().join("tiny");
        std::fs::write(&tiny, TINY)?;
        std::fs::set_permissions(&tiny, std::fs::Permissions::from_mode(0o755))?;
        programs.push(("a program of one system call".to_owned(), tiny));
    }
    for (title, program) in programs {
        let mut samples = vec![Vec::new(); Way::ALL.len()];
        for round in 1..=rounds {
            for (way, samples) in Way::ALL.into_iter().zip(&mut samples) {
                samples.push(measure(way, &program, rate, seconds, directory.path()).context(way.title())?);
            }
            say(&format!("{title}: round {round} of {rounds} done"));
        }
        show(&title, rate, &mut samples)?;
    }
    Ok(())
}

/// CPU nanoseconds per command.
fn measure(way: Way, program: &Path, rate: u32, seconds: u64, directory: &Path) -> Result<u64> {
    let program = program.to_str().context("a path of text")?;
    let log = directory.join("worker");
    std::fs::write(&log, "")?;
    let arguments = [
        "exec-worker",
        way.as_str(),
        program,
        &rate.to_string(),
        &seconds.to_string(),
    ];
    let worker = Process::spawn(&std::env::current_exe()?, &arguments, Some(&log))?;
    let output = worker.output(&log, WARM_UP + Duration::from_secs(seconds + 20))?;
    let (nanos, runs) = output.trim().split_once(' ').context("two figures")?;
    let (nanos, runs): (u64, u64) = (nanos.parse()?, runs.parse()?);
    let wanted = u64::from(rate) * seconds;
    ensure!(
        runs * 10 > wanted * 9,
        "{runs} commands were run where {wanted} were to be: the machine is overloaded, try again when it is quiet"
    );
    Ok(nanos / runs)
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn show(title: &str, rate: u32, samples: &mut [Vec<u64>]) -> Result<()> {
    say(&format!("{title}, {rate} a second"));
    let middle: Vec<u64> = samples
        .iter_mut()
        .map(|samples| median(samples).context("at least one round"))
        .collect::<Result<_>>()?;
    let mut table = Table::new(["way", "CPU per command", "least", "most", "ours / this"]);
    for ((way, nanos), samples) in Way::ALL.into_iter().zip(&middle).zip(samples) {
        let micros = |nanos: u64| format!("{:.0} µs", nanos as f64 / 1e3);
        table.row([
            way.title().to_owned(),
            micros(*nanos),
            micros(samples.first().copied().unwrap_or(0)),
            micros(samples.last().copied().unwrap_or(0)),
            format!("{:.2} ×", middle[0] as f64 / *nanos as f64),
        ]);
    }
    table.print();
    Ok(())
}

/// Runs commands for a while; then prints the CPU nanoseconds used, children included, and the number of commands.
pub(crate) fn work(args: &WorkerArgs) -> Result<()> {
    let WorkerArgs {
        way,
        program,
        rate,
        seconds,
    } = args;
    let runs = Arc::new(AtomicU64::new(0));
    let measured = Arc::clone(&runs);
    let seconds = *seconds;
    // Beside the work, asleep but for two moments.
    std::thread::spawn(move || {
        std::thread::sleep(WARM_UP);
        let start = (cpu_of_self(), measured.load(Relaxed));
        std::thread::sleep(Duration::from_secs(seconds));
        let end = (cpu_of_self(), measured.load(Relaxed));
        let figures = start.0.and_then(|start| Ok((end.0? - start).as_nanos()));
        match figures {
            Ok(nanos) => say(&format!("{nanos} {}", end.1 - start.1)),
            Err(error) => say(&format!("{error:#}")),
        }
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match way {
        Way::Ours => runtime.block_on(ours(program, *rate, &runs)),
        Way::Tokio => runtime.block_on(with_tokio(program, *rate, &runs)),
        Way::Bare => paced(*rate, &runs, || {
            let status = std::process::Command::new(program)
                .stdin(Stdio::inherit())
                .stdout(Stdio::inherit())
                .stderr(Stdio::inherit())
                .status()?;
            Ok(status.success())
        }),
        Way::Piped => paced(*rate, &runs, || {
            Ok(std::process::Command::new(program).output()?.status.success())
        }),
    }
}

fn paced(rate: u32, runs: &AtomicU64, run: impl Fn() -> Result<bool>) -> Result<()> {
    let pause = Duration::from_secs(1) / rate;
    let mut next = Instant::now();
    loop {
        next += pause;
        ensure!(run()?, "the command failed");
        runs.fetch_add(1, Relaxed);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

async fn ours(program: &Path, rate: u32, runs: &AtomicU64) -> Result<()> {
    let counters = Arc::new(Counters::default());
    let probers = Probers::new(ProberConfig::default());
    let engine = Engine::new(EngineConfig::default(), probers, Arc::clone(&counters));
    let (commands, command_rx) = mpsc::channel(1);
    let (event_tx, mut events) = mpsc::channel(64);
    let handler = Handler::Exec(ExecAction {
        command: vec![program.display().to_string()],
        runner: None,
    });
    commands
        .send(Command::Replace(components(rate, &handler)?))
        .await?;
    tokio::spawn(engine.run(command_rx, event_tx, CancellationToken::new()));
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Announced(_)) => {}
                Some(Event::Transition { report, .. } | Event::Note(report)) => {
                    ensure!(report.state == ProbeState::Passing, "a check failed: {:?}", report.last);
                }
                None => bail!("the engine has ended"),
            },
            _ = looks.tick() => runs.store(counters.read().runs.iter().flatten().sum(), Relaxed),
        }
    }
}

async fn with_tokio(program: &Path, rate: u32, runs: &AtomicU64) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    loop {
        ticks.tick().await;
        let mut command = tokio::process::Command::new(program);
        let run = tokio::time::timeout(Duration::from_secs(1), command.process_group(0).output());
        ensure!(run.await??.status.success(), "the command failed");
        runs.fetch_add(1, Relaxed);
    }
}
