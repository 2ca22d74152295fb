//! How late checks start at a thousand a second: start minus due time, as the engine itself counts it.

use {
    crate::{
        checks::{Kind, Target, components, handler},
        process::Process,
        report::{Table, say},
    },
    anyhow::{Context, Result, ensure},
    clap::Args,
    healthscope_agent::{
        engine::{
            Command, Engine, EngineConfig,
            counters::{Counters, LATENESS_BOUNDS, Reading},
        },
        prober::{ProberConfig, Probers},
    },
    std::{net::SocketAddr, sync::Arc, time::Duration},
    tokio::sync::mpsc,
    tokio_util::sync::CancellationToken,
};

/// How many, and for how long.
#[derive(Debug, Args)]
pub(crate) struct LatenessArgs {
    /// Checks a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// What to check, and for how long.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    kind: Kind,
    address: SocketAddr,
    rate: u32,
    seconds: u64,
}

/// Measures HTTP and TCP checks.
pub(crate) fn lateness(args: &LatenessArgs) -> Result<()> {
    let LatenessArgs { rate, seconds } = *args;
    let target = Target::start()?;
    let directory = tempfile::tempdir()?;
    say(&format!(
        "Start of a check minus its due time, {rate} checks a second for {seconds} s (upper bounds)"
    ));
    let mut table = Table::new(["checks", "made", "dropped", "p50", "p99", "p99.9", "most"]);
    for (title, kind) in [("HTTP", Kind::Http), ("TCP", Kind::Tcp)] {
        let log = directory.path().join(title);
        let address = target.address(kind).to_string();
        let kind = title.to_ascii_lowercase();
        let arguments = [
            "lateness-worker",
            &kind,
            &address,
            &rate.to_string(),
            &seconds.to_string(),
        ];
        let worker = Process::spawn(&std::env::current_exe()?, &arguments, Some(&log))?;
        let row = worker.output(&log, Duration::from_secs(seconds + 20))?;
        let cells: Vec<String> = row.split_whitespace().map(str::to_owned).collect();
        let cells = <[String; 6]>::try_from(cells)
            .ok()
            .with_context(|| format!("the worker said {row:?}"))?;
        let [made, dropped, p50, p99, p999, most] = cells;
        table.row([title.to_owned(), made, dropped, p50, p99, p999, most]);
    }
    table.print();
    Ok(())
}

/// Runs the engine for a while and prints one row.
pub(crate) fn work(args: &WorkerArgs) -> Result<()> {
    let WorkerArgs {
        kind,
        address,
        rate,
        seconds,
    } = *args;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let counters = Arc::new(Counters::default());
    let reading = runtime.block_on(async {
        let engine = Engine::new(
            EngineConfig::default(),
            Probers::new(ProberConfig::default()),
            Arc::clone(&counters),
        );
        let (commands, command_rx) = mpsc::channel(1);
        let (event_tx, mut events) = mpsc::channel(64);
        commands
            .send(Command::Replace(components(rate, &handler(kind, address))?))
            .await?;
        tokio::spawn(engine.run(command_rx, event_tx, CancellationToken::new()));
        let read = async { while events.recv().await.is_some() {} };
        let time = Duration::from_secs(seconds);
        ensure!(
            tokio::time::timeout(time, read).await.is_err(),
            "the engine has ended"
        );
        Ok(counters.read())
    })?;
    let made: u64 = reading.lateness.buckets.iter().sum();
    let dropped = reading.dropped_late + reading.dropped_running;
    let cells = [0.5, 0.99, 0.999, 1.0].map(|share| bound(&reading, share));
    say(&format!("{made} {dropped} {}", cells.join(" ")));
    Ok(())
}

/// The bound of the bucket in which a share of the runs is reached.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of runs are far below 2^52"
)]
fn bound(reading: &Reading, share: f64) -> String {
    let buckets = &reading.lateness.buckets;
    let rank = (buckets.iter().sum::<u64>() as f64 * share).ceil() as u64;
    let mut seen = 0;
    for (count, bound) in buckets.iter().zip(LATENESS_BOUNDS) {
        seen += count;
        if seen >= rank {
            return format!("{:.2}ms", bound * 1e3);
        }
    }
    "more".to_owned()
}
