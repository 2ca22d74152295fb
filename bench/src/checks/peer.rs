//! The peers, from Debian's packages, set to do the same work.

use {
    super::{Kind, target::free_address},
    crate::process::Process,
    anyhow::{Context, Result, bail, ensure},
    std::{
        fmt::Write as _,
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
        path::{Path, PathBuf},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
        thread::JoinHandle,
        time::{Duration, Instant},
    },
};

/// Where Debian puts programs; `/usr/sbin` is not in everybody's PATH.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/usr/sbin"];
/// Connections of the driver to blackbox_exporter, kept alive as Prometheus does.
const DRIVERS: u32 = 4;

fn installed(program: &str, package: &str) -> Result<PathBuf> {
    let found = DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists());
    found.with_context(|| format!("{program} is not installed: apt-get install {package}"))
}

/// HAProxy with one thread and as many servers as checks a second, each checked once a second.
pub(super) fn haproxy(kind: Kind, address: SocketAddr, rate: u32, directory: &Path) -> Result<Process> {
    let check = match kind {
        Kind::Http => {
            "option httpchk\n    http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host target \
             hdr User-Agent healthscope-bench hdr Accept */* hdr Connection close\n    http-check expect rstatus ^[23]"
        }
        Kind::Tcp => "option tcp-check",
    };
    let mut config = format!(
        "global\n    nbthread 1\n    maxconn 100\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    \
         timeout server 1s\n    timeout check 1s\nbackend targets\n    {check}\n    \
         default-server check inter 1s fastinter 1s downinter 1s\n"
    );
    for index in 0..rate {
        writeln!(config, "    server s{index} {address}")?;
    }
    // One that nobody uses: HAProxy does not start without.
    writeln!(
        config,
        "frontend none\n    bind {}\n    default_backend targets",
        free_address()?
    )?;
    let path = directory.join(format!("haproxy-{}.cfg", kind.as_str()));
    std::fs::write(&path, config)?;
    let program = installed("haproxy", "haproxy")?;
    let arguments = ["-db".as_ref(), "-f".as_ref(), path.as_os_str()];
    Process::spawn(&program, &arguments, Some(&directory.join("haproxy.log")))
}

/// blackbox_exporter on one processor.
pub(super) struct Blackbox {
    pub(super) process: Process,
    address: SocketAddr,
}

pub(super) fn blackbox(directory: &Path) -> Result<Blackbox> {
    let program = installed("prometheus-blackbox-exporter", "prometheus-blackbox-exporter")?;
    let path = directory.join("blackbox.yml");
    std::fs::write(
        &path,
        "modules:\n  http: {prober: http, timeout: 1s, http: {preferred_ip_protocol: ip4}}\n  \
         tcp: {prober: tcp, timeout: 1s, tcp: {preferred_ip_protocol: ip4}}\n",
    )?;
    let address = free_address()?;
    // `env` becomes the program itself, so the process that is measured is the exporter.
    let arguments = [
        "GOMAXPROCS=1".into(),
        program.display().to_string(),
        format!("--config.file={}", path.display()),
        format!("--web.listen-address={address}"),
        "--log.level=error".into(),
    ];
    let process = Process::spawn(
        Path::new("/usr/bin/env"),
        &arguments,
        Some(&directory.join("blackbox.log")),
    )?;
    let give_up = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < give_up, "blackbox_exporter does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Blackbox { process, address })
}

/// Asks blackbox_exporter for so many checks a second.
pub(super) struct Driver {
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Driver {
    pub(super) fn start(blackbox: &Blackbox, kind: Kind, target: SocketAddr, rate: u32) -> Result<Self> {
        let address = blackbox.address;
        let target = match kind {
            Kind::Http => format!("http://{target}/healthz"),
            Kind::Tcp => target.to_string(),
        };
        let request = format!(
            "GET /probe?module={}&target={target} HTTP/1.1\r\nHost: {address}\r\n\r\n",
            kind.as_str()
        );
        let stopping = Arc::new(AtomicBool::new(false));
        let threads = (0..DRIVERS)
            .map(|_| {
                let (stopping, request) = (Arc::clone(&stopping), request.clone());
                let pause = Duration::from_secs(1) * DRIVERS / rate;
                std::thread::spawn(move || drive(address, &request, pause, &stopping))
            })
            .collect();
        Ok(Self { stopping, threads })
    }

    pub(super) fn stop(self) -> Result<()> {
        self.stopping.store(true, Relaxed);
        for thread in self.threads {
            match thread.join() {
                Ok(result) => result.context("driving blackbox_exporter")?,
                Err(_) => bail!("the driver of blackbox_exporter panicked"),
            }
        }
        Ok(())
    }
}

fn drive(address: SocketAddr, request: &str, pause: Duration, stopping: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut next = Instant::now();
    let mut answer = Vec::new();
    while !stopping.load(Relaxed) {
        next += pause;
        stream.write_all(request.as_bytes())?;
        read_answer(&mut stream, &mut answer)?;
        ensure!(
            says_success(&answer),
            "a check failed: {}",
            String::from_utf8_lossy(&answer)
        );
        // What was missed is not made up for.
        next = next.max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Whether the answer has the line of success, which a chunk may begin anywhere in.
fn says_success(answer: &[u8]) -> bool {
    let mut rest = answer;
    let mut whole = Vec::with_capacity(answer.len());
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        // Chunk lengths stand on lines of their own; what they part is put together again.
        if !line.iter().all(u8::is_ascii_hexdigit) {
            whole.extend_from_slice(line);
        }
        rest = after;
    }
    whole.extend_from_slice(rest);
    whole.windows(16).any(|window| window == b"\nprobe_success 1")
}

/// One answer on a connection that is kept: with a length, or in chunks.
fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<()> {
    answer.clear();
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "blackbox_exporter closed the connection");
        answer.extend_from_slice(&buffer[..count]);
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let complete = match length {
            Some(length) => answer.len() >= end + 4 + length.trim().parse::<usize>()?,
            None => answer.ends_with(b"0\r\n\r\n"),
        };
        if complete {
            return Ok(());
        }
    }
}
