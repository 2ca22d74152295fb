//! What was typed: flags and their environment variables. What it means is [`crate::config`]'s affair.

use {
    clap::{Parser, ValueEnum},
    healthscope_core::inject::Quantity,
    healthscope_service::{build, telemetry::LogFormat},
    std::{net::SocketAddr, path::PathBuf, sync::LazyLock, time::Duration},
};

/// Where the aggregator listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7575";

/// Takes in what agents find, rolls it up per HealthScope and serves the verdict.
#[derive(Clone, Debug, Parser)]
#[command(name = "healthscope-aggregator", version = version(), max_term_width = 100)]
pub struct Args {
    /// File or directory with HealthScopes (and Components, which agents read); changes apply without a restart.
    #[arg(
        long,
        env = "HEALTHSCOPE_CONFIG",
        value_name = "FILE_OR_DIR",
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub config: Option<PathBuf>,
    /// Serve the HealthScopes of a Kubernetes cluster: the one that this runs in, or that of the kubeconfig.
    #[arg(long, env = "HEALTHSCOPE_KUBERNETES")]
    pub kubernetes: bool,
    /// Namespace of the Lease by which replicas agree who serves; otherwise that of the service account or kubeconfig.
    #[arg(
        long,
        env = "HEALTHSCOPE_NAMESPACE",
        value_name = "NAME",
        requires = "kubernetes"
    )]
    pub namespace: Option<String>,
    /// Name of the pod that this runs in; otherwise the host's name.
    #[arg(
        long,
        env = "HEALTHSCOPE_POD_NAME",
        value_name = "NAME",
        requires = "kubernetes"
    )]
    pub pod_name: Option<String>,
    /// Host and port at which agents reach this very replica; others send them there while it serves.
    #[arg(
        long,
        env = "HEALTHSCOPE_ADVERTISE",
        value_name = "HOST:PORT",
        requires = "kubernetes"
    )]
    pub advertise: Option<String>,
    /// Name that the certificate has, for agents that other replicas send here; otherwise the host of --advertise.
    #[arg(
        long,
        env = "HEALTHSCOPE_SERVER_NAME",
        value_name = "NAME",
        requires = "advertise"
    )]
    pub server_name: Option<String>,
    /// Address and port to listen on, for agents, the page and the API alike.
    #[arg(long, env = "HEALTHSCOPE_LISTEN", value_name = "ADDR", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
    /// PEM file with the certificate chain to serve TLS with; taken up again when it changes.
    #[arg(long, env = "HEALTHSCOPE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    #[arg(long, env = "HEALTHSCOPE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Secret in our own namespace with certificates of our own, instead of files: made, renewed and shared by all
    /// replicas. It must be there, and may be empty.
    #[arg(
        long,
        env = "HEALTHSCOPE_TLS_SECRET",
        value_name = "NAME",
        requires = "kubernetes",
        conflicts_with_all = ["tls_cert", "tls_key"]
    )]
    pub tls_secret: Option<String>,
    /// Address and port at which the API server asks about pods (path /inject) and the webhook's /readyz is; without it
    /// no pod gets an agent.
    #[arg(
        long,
        env = "HEALTHSCOPE_WEBHOOK_LISTEN",
        value_name = "ADDR",
        requires_all = ["kubernetes", "agent_image"]
    )]
    pub webhook_listen: Option<SocketAddr>,
    /// MutatingWebhookConfiguration whose caBundle entries are kept to be those of --tls-secret.
    #[arg(
        long,
        env = "HEALTHSCOPE_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        requires = "tls_secret",
        conflicts_with_all = ["tls_cert", "tls_key"]
    )]
    pub webhook_configuration: Option<String>,
    /// Image of the agents that pods get.
    #[arg(
        long,
        env = "HEALTHSCOPE_AGENT_IMAGE",
        value_name = "IMAGE",
        requires = "webhook_listen"
    )]
    pub agent_image: Option<String>,
    /// Where agents in pods connect to; by default wss://healthscope-aggregator.NAMESPACE.svc:7575.
    #[arg(
        long,
        env = "HEALTHSCOPE_AGENT_AGGREGATOR",
        value_name = "URL",
        requires = "webhook_listen"
    )]
    pub agent_aggregator: Option<String>,
    /// PEM file with the authorities that agents in pods trust for the aggregator; with --tls-secret those are ours. Without
    /// either, they trust what their image does.
    #[arg(
        long,
        env = "HEALTHSCOPE_AGENT_CA",
        value_name = "FILE",
        requires_all = ["webhook_listen", "tls_cert"]
    )]
    pub agent_ca: Option<PathBuf>,
    /// Cpu that an agent's container requests, such as 5m; 0 for none.
    #[arg(
        long,
        env = "HEALTHSCOPE_AGENT_CPU",
        value_name = "QUANTITY",
        requires = "webhook_listen",
        value_parser = quantity
    )]
    pub agent_cpu: Option<Quantity>,
    /// Memory that an agent's container requests, such as 16Mi; 0 for none.
    #[arg(
        long,
        env = "HEALTHSCOPE_AGENT_MEMORY",
        value_name = "QUANTITY",
        requires = "webhook_listen",
        value_parser = quantity
    )]
    pub agent_memory: Option<Quantity>,
    /// Start the runner of command checks by a postStart hook in every pod that has no other way, not only where an
    /// annotation allows it.
    #[arg(long, env = "HEALTHSCOPE_POST_START", requires = "webhook_listen")]
    pub post_start: bool,
    /// File with the token that agents and readers must show; needed off loopback.
    #[arg(long, env = "HEALTHSCOPE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How readers of the page and the API prove who they are: with a token of the cluster, and then they see what RBAC
    /// lets them see; with the one of --token-file; or not at all. By default with what there is.
    #[arg(long, env = "HEALTHSCOPE_AUTH", value_name = "HOW")]
    pub auth: Option<AuthMode>,
    /// Serve without TLS on an address that other machines reach. The token then crosses the network readable.
    #[arg(long, env = "HEALTHSCOPE_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    /// Host name under which browsers may use the page, besides addresses and localhost; may be repeated.
    #[arg(
        long = "allowed-host",
        env = "HEALTHSCOPE_ALLOWED_HOSTS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,
    /// How often agents are to send summaries and be heard of at least: 1s to 15s.
    #[arg(long, env = "HEALTHSCOPE_HEARTBEAT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub heartbeat: Duration,
    /// Most agents connected at once; descriptors of the process limit it too.
    #[arg(long, env = "HEALTHSCOPE_MAX_AGENTS", value_name = "N", default_value_t = crate::config::DEFAULT_MAX_AGENTS)]
    pub max_agents: usize,
    /// How log lines look: human or json.
    #[arg(long, env = "HEALTHSCOPE_LOG_FORMAT", value_name = "FORMAT", default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
    /// What is logged: a level, or target=level pairs [env: HEALTHSCOPE_LOG].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// How readers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Tokens of the cluster.
    Kubernetes,
    /// The token of `--token-file`.
    Token,
    /// Nothing.
    None,
}

fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(build::version);
    &VERSION
}

/// Reads `10s`, `500ms`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is not a duration; write it like 10s or 500ms"))?;
    Duration::try_from(duration).map_err(|_| "a duration cannot be negative".to_owned())
}

/// Reads `5m`, `16Mi`.
fn quantity(text: &str) -> Result<Quantity, String> {
    Quantity::parse(text).ok_or_else(|| format!("{text:?} is not a quantity; write it like 5m or 16Mi"))
}

#[cfg(test)]
mod tests {
    use {super::*, clap::CommandFactory};

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let missing: Vec<_> = Args::command()
            .get_arguments()
            .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version" | "log"))
            .filter(|arg| {
                !arg.get_env()
                    .is_some_and(|env| env.to_string_lossy().starts_with("HEALTHSCOPE_"))
            })
            .map(|arg| arg.get_id().to_string())
            .collect();
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn certificate_and_key_come_together() {
        for args in [["--tls-cert", "c.pem"], ["--tls-key", "k.pem"]] {
            let args = ["aggregator", "--config", "x.yaml"].into_iter().chain(args);
            assert!(Args::try_parse_from(args).is_err());
        }
    }

    #[test]
    fn certificates_come_from_one_place_and_the_webhook_needs_an_image() {
        #[track_caller]
        fn check(line: &str, expected: bool) {
            let args = ["aggregator", "--kubernetes"].into_iter().chain(line.split(' '));
            let parsed = Args::try_parse_from(args.filter(|word| !word.is_empty()));
            assert_eq!(parsed.is_ok(), expected, "{line}: {parsed:?}");
        }
        check("--tls-secret s", true);
        check("--tls-secret s --tls-cert c --tls-key k", false);
        check("--tls-secret s --webhook-configuration w", true);
        check("--tls-cert c --tls-key k --webhook-configuration w", false);
        check("--tls-secret s --webhook-listen 127.0.0.1:1", false);
        check(
            "--tls-secret s --webhook-listen 127.0.0.1:1 --agent-image i",
            true,
        );
        check("--agent-image i", false);
        check(
            "--tls-secret s --webhook-listen 127.0.0.1:1 --agent-image i --agent-cpu much",
            false,
        );
        check(
            "--tls-secret s --webhook-listen 127.0.0.1:1 --agent-image i --agent-cpu 5m --agent-memory 16Mi",
            true,
        );
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        #[track_caller]
        fn check(text: &str, expected: Option<Duration>) {
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
        check("10s", Some(Duration::from_secs(10)));
        check("500ms", Some(Duration::from_millis(500)));
        check("1m", Some(Duration::from_secs(60)));
        check("10", None);
        check("-1s", None);
        check("", None);
    }
}
