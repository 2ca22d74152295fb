//! What was typed. [`crate::config`] makes of it what is true.

use {
    crate::uplink::endpoint::Endpoint,
    clap::Parser,
    healthscope_service::telemetry::LogFormat,
    healthscope_shared::name::AgentName,
    std::{
        net::{IpAddr, SocketAddr},
        path::PathBuf,
        sync::LazyLock,
    },
};

/// With the commit, where it is known.
static VERSION: LazyLock<String> = LazyLock::new(healthscope_service::build::version);

/// Runs health checks where the component lives and streams the results to an aggregator.
///
/// Exit codes: 0 after SIGTERM or SIGINT, 1 when the configuration cannot be used or a part failed, 2 when this command
/// line is wrong. HEALTHSCOPE_LOG sets what is logged (info, or healthscope_agent=debug).
#[derive(Clone, Debug, Parser)]
#[command(name = "healthscope-agent", version = VERSION.as_str())]
pub struct Args {
    /// A file with Components, or a directory of such files (*.yaml, *.yml, *.json). Changes are taken up at once.
    #[arg(
        long,
        value_name = "FILE_OR_DIR",
        env = "HEALTHSCOPE_CONFIG",
        required_unless_present = "component",
        conflicts_with = "component"
    )]
    pub config: Option<PathBuf>,

    /// Instead of a file: one Component itself, as JSON. The injector writes it into the pod.
    #[arg(long, value_name = "JSON", env = "HEALTHSCOPE_COMPONENT")]
    pub component: Option<String>,

    /// The aggregator, as wss://HOST:PORT; ws:// only on this machine.
    #[arg(long, value_name = "URL", env = "HEALTHSCOPE_AGGREGATOR")]
    pub aggregator: Endpoint,

    /// Certificates (PEM) to trust for the aggregator, and no others. Default: those that this machine trusts.
    #[arg(long, value_name = "FILE", env = "HEALTHSCOPE_CA")]
    pub ca: Option<PathBuf>,

    /// Instead of --ca: the certificates themselves.
    #[arg(long, value_name = "PEM", env = "HEALTHSCOPE_CA_PEM", conflicts_with = "ca")]
    pub ca_pem: Option<String>,

    /// Keep the certificates that the aggregator sends in this file, and trust those in it rather than those of --ca
    /// and --ca-pem.
    #[arg(long, value_name = "FILE", env = "HEALTHSCOPE_CA_STORE")]
    pub ca_store: Option<PathBuf>,

    /// The name that the aggregator's certificate has, when that is not the host of its URL.
    #[arg(long, value_name = "NAME", env = "HEALTHSCOPE_SERVER_NAME")]
    pub server_name: Option<String>,

    /// The file that holds the token to show to the aggregator; read again for each connection.
    #[arg(long, value_name = "FILE", env = "HEALTHSCOPE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,

    /// What this agent calls itself; one agent of each name at a time. Default: the host's name.
    #[arg(long, value_name = "NAME", env = "HEALTHSCOPE_AGENT_NAME")]
    pub name: Option<AgentName>,

    /// The Unix socket for /livez, /readyz, /metrics and /status. Default: healthscope-agent.sock in $XDG_RUNTIME_DIR,
    /// or healthscope-agent-UID.sock in the directory for temporary files.
    #[arg(long, value_name = "PATH", env = "HEALTHSCOPE_AGENT_SOCKET")]
    pub socket: Option<PathBuf>,

    /// Also answer there by TCP. Nobody is asked for a token.
    #[arg(long, value_name = "ADDRESS:PORT", env = "HEALTHSCOPE_AGENT_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// In a pod: the directory in which runners are listened for, at CONTAINER/agent.sock. Commands with a container are run
    /// by its runner, and network checks reach only loopback and --pod-ip.
    #[arg(long, value_name = "DIR", env = "HEALTHSCOPE_RUNNER_DIR")]
    pub runner_dir: Option<PathBuf>,

    /// In a pod: its addresses, separated by commas.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HEALTHSCOPE_POD_IP",
        value_delimiter = ',',
        requires = "runner_dir"
    )]
    pub pod_ip: Vec<IpAddr>,

    /// Allow ws:// to another machine: token and results can be read on the way.
    #[arg(long, env = "HEALTHSCOPE_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,

    /// Log lines for people (human) or machines (json).
    #[arg(long, value_name = "FORMAT", default_value_t, env = "HEALTHSCOPE_LOG_FORMAT")]
    pub log_format: LogFormat,
}
