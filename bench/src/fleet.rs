//! `fleet`, `ingest` and `storm`: what agents cost the aggregator in memory and in CPU time.
//!
//! The aggregator is the real release binary in a process of its own; beside it, as the floor, a program that takes
//! the same connections and reads the same frames and does nothing with them.

use {
    crate::{
        process::{Process, release_binary},
        report::{Table, kib, median, micros, per_second, ratio, say},
        swarm::{self, Connection, Target},
    },
    anyhow::{Context, Result, ensure},
    clap::Args,
    healthscope_shared::{
        probe::outcome::ProbeState,
        wire::{AgentMessage, ProbeId, Report, Seq, ServerMessage, Summary},
    },
    std::{
        net::{Ipv4Addr, SocketAddr, TcpListener},
        path::Path,
        sync::Arc,
        time::{Duration, Instant},
    },
    tokio::{sync::Semaphore, task::JoinSet, time::timeout},
};

/// Handshakes in flight: a listener's backlog holds 1,024.
const IN_FLIGHT: usize = 512;
/// Nothing here takes longer, or something is broken.
const DEADLINE: Duration = Duration::from_secs(180);
/// Probes of each agent.
const PROBES: u32 = 10;

/// How many idle agents.
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// Connections; each needs a descriptor here and one there.
    #[arg(long, default_value_t = 15_000)]
    agents: usize,
}

/// How many results.
#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// Connections that share the work.
    #[arg(long, default_value_t = 500)]
    agents: usize,
    /// Results sent one by one over each connection; in batches ten times as many.
    #[arg(long, default_value_t = 1_000)]
    results: u64,
    /// Repeats; medians are printed.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// How many agents come back.
#[derive(Debug, Args)]
pub(crate) struct StormArgs {
    /// Agents.
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Repeats; medians are printed.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// The aggregator under test, or the floor.
pub(crate) struct Server {
    process: Process,
    target: Target,
    /// Whether it speaks the protocol.
    answers: bool,
}

impl Server {
    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.target.address
    }

    /// The release binary, with a certificate for `localhost` in `folder` when it is to speak TLS.
    pub(crate) async fn aggregator(folder: &Path, tls: bool) -> Result<Self> {
        let scopes = (0..100).map(|n| {
            format!(
                "---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: app-{n}}}\n\
                 spec: {{selector: {{matchLabels: {{app: app-{n}}}}}}}\n"
            )
        });
        let config = folder.join("scopes.yaml");
        std::fs::write(&config, scopes.collect::<String>())?;
        let address = free_address()?;
        let mut arguments = vec![
            "--config".to_owned(),
            config.display().to_string(),
            "--listen".to_owned(),
            address.to_string(),
        ];
        let mut trust = None;
        if tls {
            let certificate = swarm::certificate(folder)?;
            arguments.extend(["--tls-cert".to_owned(), certificate.cert.display().to_string()]);
            arguments.extend(["--tls-key".to_owned(), certificate.key.display().to_string()]);
            trust = Some(healthscope_service::tls::client_config(Some(&certificate.cert))?);
        }
        let log = folder.join("aggregator.log");
        let process = Process::spawn(&release_binary("healthscope-aggregator")?, &arguments, Some(&log))?;
        let server = Self {
            process,
            target: Target { address, tls: trust },
            answers: true,
        };
        server
            .until_open()
            .await
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(server)
    }

    async fn floor() -> Result<Self> {
        let address = free_address()?;
        let process = Process::myself(&["floor-server".to_owned(), address.to_string()])?;
        let server = Self {
            process,
            target: Target { address, tls: None },
            answers: false,
        };
        server.until_open().await?;
        Ok(server)
    }

    async fn until_open(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while tokio::net::TcpStream::connect(self.target.address).await.is_err() {
            ensure!(
                Instant::now() < deadline,
                "the server does not listen on {}",
                self.target.address
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until the process has used no CPU time for half a second: whatever it had to do is done.
    async fn until_quiet(&self) -> Result<Duration> {
        let deadline = Instant::now() + DEADLINE;
        let mut before = self.process.cpu()?;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.process.cpu()?;
            if now.saturating_sub(before) <= Duration::from_millis(20) || Instant::now() > deadline {
                return Ok(now);
            }
            before = now;
        }
    }
}

/// Memory of the aggregator for each idle agent, plain and TLS.
pub(crate) async fn fleet(args: FleetArgs) -> Result<()> {
    say(&format!(
        "{} idle agents with {PROBES} probes each; memory of the server process for each of them",
        args.agents
    ));
    let mut table = Table::new(["server", "own memory", "resident", "CPU to connect"]);
    for (name, tls) in [
        ("floor, plain", false),
        ("aggregator, plain", false),
        ("aggregator, TLS", true),
    ] {
        let folder = tempfile::tempdir()?;
        let mut server = match name {
            "floor, plain" => Server::floor().await?,
            _ => Server::aggregator(folder.path(), tls).await?,
        };
        let cpu_before = server.until_quiet().await?;
        let before = server.process.memory()?;
        let mut connections = connect_all(&server, args.agents).await?;
        let cpu = server.until_quiet().await?.saturating_sub(cpu_before);
        let after = server.process.memory()?;
        server.process.check()?;
        let each = |bytes: u64| kib(bytes / args.agents as u64);
        table.row([
            name.to_owned(),
            each(after.own.saturating_sub(before.own)),
            each(after.resident.saturating_sub(before.resident)),
            micros(cpu, args.agents as u64),
        ]);
        connections.shutdown().await;
    }
    table.print();
    Ok(())
}

/// Connects agents, each with a full state; they then answer pings in the returned tasks.
async fn connect_all(server: &Server, agents: usize) -> Result<JoinSet<Result<()>>> {
    let mut idle = JoinSet::new();
    introduce(server, agents, |connection| {
        idle.spawn(connection.idle());
    })
    .await?;
    Ok(idle)
}

/// Connects agents, each with a full state, and hands them on as they come.
async fn introduce(server: &Server, agents: usize, mut hand_on: impl FnMut(Connection)) -> Result<()> {
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut connecting = JoinSet::new();
    for index in 0..agents {
        let (permits, target, answers) = (permits.clone(), server.target.clone(), server.answers);
        connecting.spawn(async move {
            let _permit = permits.acquire_owned().await?;
            come_back(&target, index, answers).await
        });
    }
    timeout(DEADLINE, async {
        while let Some(connection) = connecting.join_next().await {
            hand_on(connection??);
        }
        anyhow::Ok(())
    })
    .await
    .context("not all agents could connect")?
}

/// Connects one agent and sends everything it knows; done when that is acknowledged.
async fn come_back(target: &Target, index: usize, answers: bool) -> Result<Connection> {
    let mut connection = Connection::open(target, index).await?;
    let (hello, announce) = swarm::introduction(index, PROBES);
    connection.write(&hello).await?;
    if answers {
        let welcome = connection.message().await?;
        ensure!(
            matches!(welcome, ServerMessage::Welcome(_)),
            "expected a welcome, got {welcome:?}"
        );
    }
    connection.write(&announce).await?;
    connection.write(&swarm::full_state(PROBES)).await?;
    if answers {
        connection.acknowledged(Seq(1)).await?;
    }
    Ok(connection)
}

/// What is sent in one frame.
#[derive(Clone, Copy)]
enum Shape {
    /// Transitions that turn a probe over, this many in a frame.
    Transitions(u64),
    /// Summaries of equal results, this many in a frame.
    Summaries(u64),
}

/// Results that the aggregator takes in per second of one core.
pub(crate) async fn ingest(args: IngestArgs) -> Result<()> {
    say(&format!(
        "{} connections; CPU time of the server process for each result",
        args.agents
    ));
    let mut table = Table::new(["results", "aggregator", "per core", "floor", "ratio"]);
    let shapes = [
        ("transitions, one in a frame", Shape::Transitions(1), args.results),
        (
            "transitions, 16 in a frame",
            Shape::Transitions(16),
            args.results * 10,
        ),
        (
            "transitions, 64 in a frame",
            Shape::Transitions(64),
            args.results * 10,
        ),
        (
            "summaries, 10 in a frame",
            Shape::Summaries(10),
            args.results * 10,
        ),
        (
            "summaries, 64 in a frame",
            Shape::Summaries(64),
            args.results * 10,
        ),
    ];
    for (name, shape, results) in shapes {
        let mut ours = Vec::new();
        let mut floor = Vec::new();
        for _ in 0..args.repeats {
            ours.push(pour(false, &args, shape, results).await?);
            floor.push(pour(true, &args, shape, results).await?);
        }
        let count = results * args.agents as u64;
        let ours = median(&mut ours).context("at least one repeat")?;
        let floor = median(&mut floor).context("at least one repeat")?;
        table.row([
            name.to_owned(),
            micros(ours, count),
            per_second(ours, count),
            micros(floor, count),
            ratio(ours, floor),
        ]);
    }
    table.print();
    Ok(())
}

/// CPU time that a server needs for `results` over each connection.
async fn pour(floor: bool, args: &IngestArgs, shape: Shape, results: u64) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let mut server = if floor {
        Server::floor().await?
    } else {
        Server::aggregator(folder.path(), false).await?
    };
    let mut connections = Vec::with_capacity(args.agents);
    introduce(&server, args.agents, |connection| connections.push(connection)).await?;
    let before = server.until_quiet().await?;
    let mut pouring = JoinSet::new();
    for mut connection in connections {
        let answers = server.answers;
        pouring.spawn(async move {
            // The full state ended with number 1.
            let mut seq = 1;
            let mut sent = 0;
            while sent < results {
                let frame = match shape {
                    Shape::Transitions(batch) => {
                        let frame = flips(seq, batch);
                        seq += batch;
                        sent += batch;
                        frame
                    }
                    Shape::Summaries(batch) => {
                        sent += batch;
                        equal_results(seq, batch)
                    }
                };
                connection.write(&frame).await?;
                connection.drop_answers()?;
            }
            if answers {
                // Everything before this one is taken in when it is.
                seq += 1;
                connection.write(&flips(seq - 1, 1)).await?;
                connection.acknowledged(Seq(seq)).await?;
            }
            anyhow::Ok(connection)
        });
    }
    let done = timeout(DEADLINE, pouring.join_all())
        .await
        .context("the server does not keep up")?;
    let done: Result<Vec<_>> = done.into_iter().collect();
    let done = done?;
    let cpu = server.until_quiet().await?.saturating_sub(before);
    server.process.check()?;
    drop(done);
    Ok(cpu)
}

/// `batch` transitions after number `seq`: each turns a probe over.
fn flips(seq: u64, batch: u64) -> Vec<u8> {
    let transitions = (seq + 1..=seq + batch)
        .map(|seq| {
            let probe = u32::try_from(seq % u64::from(PROBES)).unwrap_or(0);
            let is_odd_turn = (seq / u64::from(PROBES)) % 2 == 0;
            swarm::record(
                seq,
                probe,
                if is_odd_turn {
                    ProbeState::Failing
                } else {
                    ProbeState::Passing
                },
            )
        })
        .collect();
    swarm::text(&AgentMessage::Report(Report {
        seq: Seq(seq + batch),
        transitions,
        ..Report::default()
    }))
}

/// Summaries of `batch` probes, ten runs each, all equal.
fn equal_results(seq: u64, batch: u64) -> Vec<u8> {
    let summaries = (0..batch)
        .map(|n| Summary {
            probe: ProbeId(u32::try_from(n % u64::from(PROBES)).unwrap_or(0)),
            streak: 100,
            runs: 10,
            failures: 0,
            errors: 0,
            min_us: 700,
            avg_us: 850,
            max_us: 1200,
            p99_us: 1190,
        })
        .collect();
    swarm::text(&AgentMessage::Report(Report {
        seq: Seq(seq),
        summaries,
        ..Report::default()
    }))
}

/// Ten thousand agents come back at once, with everything they know.
pub(crate) async fn storm(args: StormArgs) -> Result<()> {
    say(&format!(
        "{} agents with {PROBES} probes each come back at once",
        args.agents
    ));
    let mut table = Table::new(["storm", "CPU in all", "each", "until all are back"]);
    let names = ["to a new aggregator", "to the same, after a cut", "floor"];
    let mut times: [Vec<(Duration, Duration)>; 3] = Default::default();
    for _ in 0..args.repeats {
        let folder = tempfile::tempdir()?;
        let mut server = Server::aggregator(folder.path(), false).await?;
        times[0].push(wave(&mut server, args.agents, true).await?);
        times[1].push(wave(&mut server, args.agents, false).await?);
        let false_transitions = lost(&server.target).await?;
        ensure!(
            false_transitions == 0,
            "{false_transitions} components were called lost"
        );
        times[2].push(wave(&mut Server::floor().await?, args.agents, false).await?);
    }
    for (name, times) in names.iter().zip(&mut times) {
        let (cpu, wall) = median(times).context("at least one repeat")?;
        table.row([
            (*name).to_owned(),
            format!("{:.2} s", cpu.as_secs_f64()),
            micros(cpu, args.agents as u64),
            format!("{:.1} s", wall.as_secs_f64()),
        ]);
    }
    table.print();
    say("no component was called lost");
    Ok(())
}

/// All agents come at once and go at once: CPU time of the server, and time until the last one was acknowledged.
async fn wave(server: &mut Server, agents: usize, is_first: bool) -> Result<(Duration, Duration)> {
    let before = server.until_quiet().await?;
    let started = Instant::now();
    let mut connections = connect_all(server, agents)
        .await
        .with_context(|| format!("in the {} wave", if is_first { "first" } else { "second" }))?;
    let wall = started.elapsed();
    let cpu = server.until_quiet().await?.saturating_sub(before);
    server.process.check()?;
    connections.shutdown().await;
    Ok((cpu, wall))
}

/// How many of the latest transitions say that an agent was lost.
async fn lost(target: &Target) -> Result<usize> {
    let url = format!("http://{}/api/v1/transitions", target.address);
    let text = reqwest::get(url).await?.error_for_status()?.text().await?;
    Ok(text.matches("AgentLost").count())
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
