//! Single runs of probes: the only part of the agent that touches what it checks.
//!
//! Semantics are the kubelet's (`pkg/probe`), item by item; the deliberate differences are said where they are made and
//! gathered in `docs/probes.md`. A run ends within its timeout whatever the target does, never panics on what the target
//! sends, and takes its connection, process group and descriptors with it when it is dropped. Nothing here knows when
//! probes run or what their results mean.

use {
    healthscope_shared::{
        health::Reason,
        probe::{
            Authority, Handler, ProbeSpec,
            outcome::{MAX_OUTPUT_BYTES, Outcome, RunResult},
        },
        truncate,
    },
    std::{io, sync::Arc, time::Duration},
    tokio::time::Instant,
};

mod connect;
mod exec;
mod grpc;
mod http;
mod tls;

use connect::Resolver;

pub use tls::Certificate;

/// Most of a body or of a command's output that is looked at: the kubelet's `10 << 10`.
const MAX_READ_BYTES: usize = 10 * 1024;
/// What probes call themselves. The kubelet's is `kube-probe/MAJOR.MINOR`; ours differs so that logs tell them apart.
const USER_AGENT: &str = concat!(
    "healthscope/",
    env!("CARGO_PKG_VERSION_MAJOR"),
    ".",
    env!("CARGO_PKG_VERSION_MINOR")
);

/// How probes are run.
#[derive(Clone, Debug, Default)]
pub struct ProberConfig {
    /// Certificates to trust for `tls: verify`, beside the system's.
    pub extra_roots: Vec<Certificate>,
}

/// Runs probes of every kind. One for the whole process; shared by reference.
#[derive(Debug)]
pub struct Probers {
    resolver: Resolver,
    tls: tls::Clients,
    commands: exec::Commands,
}

impl Probers {
    /// Makes no connection and reads no file until a probe needs it.
    #[must_use]
    pub fn new(config: ProberConfig) -> Arc<Self> {
        let ProberConfig { extra_roots } = config;
        Arc::new(Self {
            resolver: Resolver::default(),
            tls: tls::Clients::new(extra_roots),
            commands: exec::Commands::default(),
        })
    }

    /// Runs a probe once. Cancel-safe: dropping the future ends the connection or the process group.
    pub async fn run(&self, spec: &ProbeSpec) -> Outcome {
        let started = Instant::now();
        let deadline = Deadline {
            at: started + spec.timeout,
            timeout: spec.timeout,
        };
        let found = match &spec.handler {
            Handler::TcpSocket(tcp) => self.tcp(tcp, deadline).await,
            Handler::HttpGet(http) => self.http(http, deadline).await,
            // Rare beside the others and with large state: kept out of every run's memory.
            Handler::Grpc(grpc) => Box::pin(self.grpc(grpc, deadline)).await,
            Handler::Exec(exec) => match &exec.runner {
                None => Box::pin(self.commands.run(exec, deadline)).await,
                Some(check) => Found::error(
                    Reason::RUNNER_MISSING,
                    format!("no runner answers in container {}", check.container),
                ),
            },
        };
        let Found {
            result,
            message,
            output,
        } = found;
        Outcome {
            result,
            latency: started.elapsed(),
            message: without_target(message, &spec.handler),
            output: match truncate(&output, MAX_OUTPUT_BYTES) {
                std::borrow::Cow::Borrowed(whole) if whole.len() == output.len() => output,
                cut => cut.into_owned(),
            },
        }
    }
}

impl Probers {
    /// Waits until the commands of runs that were dropped are gone: to be called before the process ends. Takes a second
    /// at most, and as a rule no time at all.
    pub async fn settle(&self) {
        self.commands.settle().await;
    }
}

/// Every report names the probe's target; a message that begins with the very same address need not say it again. An
/// address that a name or a redirect led to stays.
fn without_target(message: String, handler: &Handler) -> String {
    if message.is_empty() {
        return message;
    }
    let target = match handler {
        Handler::Exec(_) => return message,
        Handler::HttpGet(http) => Authority(&http.host, http.port),
        Handler::TcpSocket(tcp) => Authority(&tcp.host, tcp.port),
        Handler::Grpc(grpc) => Authority(&grpc.host, grpc.port),
    };
    match message.strip_prefix(&format!("connect to {target}: ")) {
        Some(rest) => rest.to_owned(),
        None => message,
    }
}

/// When a run must be over, and what to call it in messages.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// The failure of a run that is not over in time; `what` has not happened: `no connection`, `no answer`.
    fn passed(self, what: &str) -> Found {
        Found::failure(Reason::TIMED_OUT, format!("{what} within {:?}", self.timeout))
    }
}

/// What a run found, before it is timed.
#[derive(Debug)]
struct Found {
    result: RunResult,
    message: String,
    output: String,
}

impl Found {
    const fn success() -> Self {
        Self {
            result: RunResult::Success,
            message: String::new(),
            output: String::new(),
        }
    }

    fn warning(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            result: RunResult::Warning(reason),
            message: message.into(),
            output: String::new(),
        }
    }

    fn failure(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            result: RunResult::Failure(reason),
            message: message.into(),
            output: String::new(),
        }
    }

    fn error(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            result: RunResult::Error(reason),
            message: message.into(),
            output: String::new(),
        }
    }

    /// An IO error of a run: the agent's own shortage is told apart from what the target did.
    fn io(error: &io::Error, what: &str) -> Self {
        let message = format!("{what}: {}", plain(error));
        if is_shortage(error) {
            return Self::error(Reason::OUT_OF_RESOURCES, message);
        }
        let reason = match error.kind() {
            io::ErrorKind::ConnectionRefused => Reason::CONNECTION_REFUSED,
            io::ErrorKind::TimedOut => Reason::TIMED_OUT,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Reason::CONNECTION_CLOSED,
            _ => Reason::CONNECT_FAILED,
        };
        Self::failure(reason, message)
    }
}

/// Whether an error says that this machine or process has run out of something.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let Some(errno) = Errno::from_io_error(error) else {
        return error.kind() == io::ErrorKind::OutOfMemory;
    };
    [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::NOSPC,
        Errno::AGAIN,
        // No local port is left.
        Errno::ADDRNOTAVAIL,
    ]
    .contains(&errno)
}

/// An error's text as messages have it: lower case, without Rust's `(os error 111)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = match text.rfind(" (os error ") {
        Some(end) => &text[..end],
        None => &text,
    };
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_are_plain() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(plain(&refused), "connection refused");
        assert_eq!(plain(&io::Error::other("no luck")), "no luck");
    }
}
