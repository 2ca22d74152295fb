//! The ways of checking that this program holds itself; each runs in a process of its own until it is killed.

use {
    super::{Kind, Way},
    anyhow::{Result, bail, ensure},
    clap::Args,
    healthscope_agent::{
        engine::{Command, ComponentProbes, Engine, EngineConfig, Event, counters::Counters},
        prober::{ProberConfig, Probers},
    },
    healthscope_shared::{
        name::{ComponentKey, Name, Namespace, ProbeName},
        probe::{Handler, HttpGetAction, ProbeKind, ProbeSpec, Scheme, TcpSocketAction, outcome::ProbeState},
    },
    http_body_util::{BodyExt, Empty},
    hyper_util::rt::TokioIo,
    std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
        num::NonZeroU32,
        sync::Arc,
        time::{Duration, Instant},
    },
    tokio::{sync::mpsc, time::MissedTickBehavior},
    tokio_util::sync::CancellationToken,
};

/// Which way, and what to check.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    way: Way,
    kind: Kind,
    address: SocketAddr,
    rate: u32,
}

/// Checks until it is killed.
pub(crate) fn work(args: &WorkerArgs) -> Result<()> {
    let WorkerArgs {
        way,
        kind,
        address,
        rate,
    } = *args;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match way {
        Way::Ours => runtime.block_on(ours(kind, address, rate)),
        Way::Hyper => runtime.block_on(with_hyper(address, rate)),
        Way::Bare => bare(kind, address, rate),
        Way::Haproxy | Way::Blackbox => bail!("{way:?} is a program of its own"),
    }
}

/// Probes as a user would have them: one component each, period of a second.
pub(crate) fn components(rate: u32, handler: &Handler) -> Result<Vec<ComponentProbes>> {
    let one = |index| {
        let name = Name::new(format!("target-{index}"))?;
        let probe = ProbeSpec {
            name: ProbeName::new("readiness")?,
            kind: ProbeKind::Readiness,
            handler: handler.clone(),
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            success_threshold: NonZeroU32::MIN,
            failure_threshold: NonZeroU32::MIN,
        };
        Ok(ComponentProbes {
            component: ComponentKey::component(Namespace::default(), name),
            probes: vec![probe],
        })
    };
    (0..rate).map(one).collect()
}

pub(crate) fn handler(kind: Kind, address: SocketAddr) -> Handler {
    let (host, port) = (address.ip().to_string(), address.port());
    match kind {
        Kind::Http => Handler::HttpGet(HttpGetAction {
            host,
            port,
            path: "/healthz".into(),
            scheme: Scheme::Http,
            headers: Vec::new(),
            verify_tls: false,
            expected_status: Vec::new(),
            expected_body: None,
        }),
        Kind::Tcp => Handler::TcpSocket(TcpSocketAction { host, port }),
    }
}

/// The agent's engine, and a reader that fails when a check does.
async fn ours(kind: Kind, address: SocketAddr, rate: u32) -> Result<()> {
    let counters = Arc::new(Counters::default());
    let engine = Engine::new(
        EngineConfig::default(),
        Probers::new(ProberConfig::default()),
        counters,
    );
    let (commands, command_rx) = mpsc::channel(1);
    let (event_tx, mut events) = mpsc::channel(64);
    commands
        .send(Command::Replace(components(rate, &handler(kind, address))?))
        .await?;
    tokio::spawn(engine.run(command_rx, event_tx, CancellationToken::new()));
    while let Some(event) = events.recv().await {
        match event {
            Event::Announced(_) => {}
            Event::Transition { report, .. } | Event::Note(report) => {
                ensure!(
                    report.state == ProbeState::Passing,
                    "a check failed: {:?}",
                    report.last
                );
            }
        }
    }
    bail!("the engine has ended")
}

/// What one writes first: a task, a connection and a request for each check.
async fn with_hyper(address: SocketAddr, rate: u32) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        tokio::spawn(async move {
            let check = tokio::time::timeout(Duration::from_secs(1), check_with_hyper(address));
            if !matches!(check.await, Ok(Ok(()))) {
                std::process::exit(1);
            }
        });
    }
}

async fn check_with_hyper(address: SocketAddr) -> Result<()> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_zero_linger()?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(8 * 1024)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = http::Request::get("/healthz")
        .header("host", address.to_string())
        .header("user-agent", "healthscope-bench")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        ensure!(response.status().is_success(), "status {}", response.status());
        response.into_body().collect().await?;
        Ok(())
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}

/// The system calls that a check cannot do without, one check after the other.
fn bare(kind: Kind, address: SocketAddr, rate: u32) -> Result<()> {
    let request = format!(
        "GET /healthz HTTP/1.1\r\nHost: {address}\r\nUser-Agent: healthscope-bench\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    let pause = Duration::from_secs(1) / rate;
    let mut next = Instant::now();
    loop {
        next += pause;
        let mut stream = TcpStream::connect(address)?;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        if kind == Kind::Http {
            stream.write_all(request.as_bytes())?;
            let mut answer = [0; 4096];
            let count = stream.read(&mut answer)?;
            ensure!(answer[..count].starts_with(b"HTTP/1.1 200"), "not well");
        }
        drop(stream);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
