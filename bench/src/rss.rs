//! `rss`: what an agent with ten checks holds in memory, in session with a real aggregator.
//!
//! The agent is the static release binary, as it is put into images: nothing of it is shared with other processes, so
//! that resident memory is the whole truth. It is built here for musl when that target is installed, and otherwise for
//! the usual target with a static C library.

use {
    crate::{
        fleet::Server,
        process::Process,
        report::{Table, kib, say},
    },
    anyhow::{Context, Result, ensure},
    clap::Args,
    std::{
        io::{Read, Write},
        net::{Ipv4Addr, SocketAddr, TcpListener},
        os::unix::net::UnixStream,
        path::{Path, PathBuf},
        process::Command,
        time::{Duration, Instant},
    },
};

/// What is promised, with TLS.
const GOAL: u64 = 7 * 1024 * 1024 / 2;
/// How long the agent may take to be in session.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to watch.
#[derive(Debug, Args)]
pub(crate) struct RssArgs {
    /// Seconds of checks, one a second each, before memory is read.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The agent's binary, when it is not to be built.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Memory of an agent with ten checks, plain and TLS.
pub(crate) async fn rss(args: RssArgs) -> Result<()> {
    let RssArgs { seconds, agent } = args;
    let agent = match agent {
        Some(path) => path,
        None => build()?,
    };
    let size = std::fs::metadata(&agent)?.len();
    say(&format!("{}, {}", agent.display(), kib(size)));
    say(&format!(
        "an agent with ten checks (five HTTP, three TCP, two commands) a second, after {seconds} s; goal with TLS: {}",
        kib(GOAL)
    ));
    let mut table = Table::new([
        "session",
        "resident",
        "own",
        "of files",
        "proportional",
        "of goal",
    ]);
    for (name, tls) in [("plain", false), ("TLS", true)] {
        let folder = tempfile::tempdir()?;
        let server = Server::aggregator(folder.path(), tls).await?;
        let (process, _targets) = start(&agent, folder.path(), &server, tls)?;
        until_connected(&folder.path().join("agent.sock")).await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let memory = rollup(process.id())?;
        table.row([
            name.to_owned(),
            kib(memory.resident),
            kib(memory.anonymous),
            kib(memory.resident.saturating_sub(memory.anonymous)),
            kib(memory.proportional),
            format!("{:.0} %", memory.resident as f64 / GOAL as f64 * 100.0),
        ]);
    }
    table.print();
    Ok(())
}

/// Builds the static binary as it is shipped; where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let architecture = std::env::consts::ARCH;
    let musl = format!("{architecture}-unknown-linux-musl");
    let is_installed = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", &musl])
        .output()
        .is_ok_and(|output| {
            let folder = String::from_utf8_lossy(&output.stdout);
            Path::new(folder.trim()).exists()
        });
    let target = if is_installed {
        musl
    } else {
        format!("{architecture}-unknown-linux-gnu")
    };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "--profile",
        "dist",
        "--package",
        "healthscope-agent",
        "--target",
        &target,
    ]);
    if !is_installed {
        build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    ensure!(
        build.status().context("cannot run cargo")?.success(),
        "the static agent cannot be built"
    );
    // This program is in target/release.
    let here = std::env::current_exe()?;
    let targets = here.ancestors().nth(2).context("not run by cargo")?;
    Ok(targets.join(target).join("dist/healthscope-agent"))
}

/// The agent, and what it checks.
fn start(agent: &Path, folder: &Path, server: &Server, tls: bool) -> Result<(Process, Process)> {
    let (http, tcp) = (free_address()?, free_address()?);
    let targets = Process::myself(&["check-target".to_owned(), http.to_string(), tcp.to_string()])?;
    let mut components = String::new();
    for index in 0..10 {
        let handler = match index {
            0..5 => format!("httpGet: {{port: {}}}", http.port()),
            5..8 => format!("tcpSocket: {{port: {}}}", tcp.port()),
            _ => "exec: {command: ['true']}".to_owned(),
        };
        components.push_str(&format!(
            "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: c{index}}}\n\
             spec: {{readinessProbe: {{{handler}, periodSeconds: 1}}}}\n"
        ));
    }
    let config = folder.join("components.yaml");
    std::fs::write(&config, components)?;
    let address = server.address();
    let scheme = if tls { "wss" } else { "ws" };
    let mut arguments = vec![
        "--config".to_owned(),
        config.display().to_string(),
        "--socket".to_owned(),
        folder.join("agent.sock").display().to_string(),
        "--aggregator".to_owned(),
        format!("{scheme}://localhost:{}", address.port()),
    ];
    if tls {
        arguments.extend(["--ca".to_owned(), folder.join("cert.pem").display().to_string()]);
    }
    let process = Process::spawn(agent, &arguments, Some(&folder.join("agent.log")))?;
    Ok((process, targets))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Waits until the agent says that it is in session.
async fn until_connected(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !metrics(socket).is_ok_and(|metrics| metrics.contains("healthscope_agent_connected 1\n")) {
        ensure!(Instant::now() < deadline, "the agent does not get into session");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn metrics(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

struct Rollup {
    resident: u64,
    proportional: u64,
    anonymous: u64,
}

fn rollup(process: u32) -> Result<Rollup> {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let bytes = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib
            .with_context(|| format!("no {name} in smaps_rollup"))?
            .parse::<u64>()?
            * 1024)
    };
    Ok(Rollup {
        resident: bytes("Rss:")?,
        proportional: bytes("Pss:")?,
        anonymous: bytes("Anonymous:")?,
    })
}
