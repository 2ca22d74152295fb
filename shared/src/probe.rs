//! A probe as it is run: one handler, timing and thresholds, all validated, every default filled in.
//!
//! What users write (Kubernetes' field names) lives in [`fields`]; the results of runs in [`outcome`].

use {
    crate::name::{ContainerName, ProbeName},
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{fmt, num::NonZeroU32, time::Duration},
};

pub mod fields;
pub mod outcome;

/// The shortest period: below it a check measures itself (KEP-3066 asked for sub-second periods).
pub const MIN_PERIOD: Duration = Duration::from_millis(50);
/// Periods and timeouts are multiples of this.
pub const GRANULARITY: Duration = Duration::from_millis(10);
/// Longer delays, periods and timeouts than a week are typing errors.
pub const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What a probe's verdict is used for, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// Is it alive?
    Liveness,
    /// Does it do its work?
    Readiness,
    /// Has it started? Until this passes the component's other probes are not run.
    Startup,
}

impl ProbeKind {
    /// The word, as in Kubernetes' `probe_type` label but in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One check of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// Its name, unique within the component: `readiness`, `liveness`, `startup` or the user's.
    pub name: ProbeName,
    /// What its verdict is used for.
    pub kind: ProbeKind,
    /// What a run does.
    pub handler: Handler,
    /// No run before this much time has passed since the component was taken up.
    pub initial_delay: Duration,
    /// From the start of one run to the start of the next.
    pub period: Duration,
    /// A run that takes longer is a failure.
    pub timeout: Duration,
    /// So many successes in a row make it pass.
    pub success_threshold: NonZeroU32,
    /// So many failures in a row make it fail.
    pub failure_threshold: NonZeroU32,
}

/// What a run of a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Runs a command; success is exit code 0.
    Exec(ExecAction),
    /// Sends an HTTP GET.
    HttpGet(HttpGetAction),
    /// Opens a TCP connection.
    TcpSocket(TcpSocketAction),
    /// Asks gRPC's health service (`grpc.health.v1.Health/Check`).
    Grpc(GrpcAction),
}

impl Handler {
    /// Kubernetes' field name of this handler.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::HttpGet(_) => "httpGet",
            Self::TcpSocket(_) => "tcpSocket",
            Self::Grpc(_) => "grpc",
        }
    }
}

/// The target in a few words: `http 127.0.0.1:8080/healthz`, `exec pgrep -x web`.
impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec(exec) => {
                write!(f, "exec {}", exec.command.join(" "))?;
                match &exec.runner {
                    Some(RunnerCheck { container, check: _ }) => write!(f, " in container {container}"),
                    None => Ok(()),
                }
            }
            Self::HttpGet(http) => {
                write!(
                    f,
                    "{} {}{}",
                    http.scheme.as_str(),
                    Authority(&http.host, http.port),
                    http.path
                )
            }
            Self::TcpSocket(tcp) => write!(f, "tcp {}", Authority(&tcp.host, tcp.port)),
            Self::Grpc(grpc) => {
                write!(f, "grpc {}", Authority(&grpc.host, grpc.port))?;
                if grpc.service.is_empty() {
                    Ok(())
                } else {
                    write!(f, "/{}", grpc.service)
                }
            }
        }
    }
}

/// `host:port`, with the brackets that an IPv6 address needs (RFC 3986, 3.2.2).
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a>(pub &'a str, pub u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// A command, as an argument vector; no shell unless the user wrote one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecAction {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Who runs it: the runner in a container, or the agent itself.
    pub runner: Option<RunnerCheck>,
}

/// A command that the runner in a container knows by number: it takes its commands from the pod template only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerCheck {
    /// The container whose runner is asked.
    pub container: ContainerName,
    /// The place of the command among the runner's own, from 0.
    pub check: u8,
}

/// Whether HTTP is spoken over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// An HTTP GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGetAction {
    /// Name or address to connect to; an IPv6 address without brackets.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// Path with query, starting with `/`.
    pub path: String,
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Headers in the order written; names may repeat. `Host` replaces the host, an empty `Accept` removes ours.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Whether the certificate is verified. The kubelet never does.
    pub verify_tls: bool,
    /// Statuses that count as success, inclusive ranges; empty means 200 to 399 as in the kubelet.
    pub expected_status: Vec<(u16, u16)>,
    /// Text that the first 10 KiB of the body must contain.
    pub expected_body: Option<String>,
}

impl HttpGetAction {
    /// Whether an HTTP status counts as success.
    #[must_use]
    pub fn is_success(&self, status: u16) -> bool {
        if self.expected_status.is_empty() {
            (200..400).contains(&status)
        } else {
            self.expected_status
                .iter()
                .any(|&(low, high)| (low..=high).contains(&status))
        }
    }
}

/// A TCP connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocketAction {
    /// Name or address to connect to; an IPv6 address without brackets.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
}

/// A gRPC health check, plaintext HTTP/2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcAction {
    /// Name or address to connect to; an IPv6 address without brackets.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// The service to ask about; empty asks about the server.
    pub service: String,
}
