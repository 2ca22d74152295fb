//! What is true: the configuration of one aggregator, checked.
//!
//! Reads the files that the arguments name, once; the watched set of declared objects arrives through a channel, so that
//! `healthscope up` feeds the same aggregator from wherever it has it.

use {
    crate::{
        args::{Args, AuthMode},
        certificates::{Certificates, Files},
        declared::Declared,
        identity::{Identity, readers::Readers},
        kubernetes::{Kubernetes, KubernetesError, Place},
    },
    healthscope_core::{
        event,
        inject::{AUDIENCE, Amounts, Options, Quantity, Resources, Stance},
        owner::Address,
    },
    healthscope_service::{
        config_files::Loaded,
        tls::TlsError,
        token::{self, Secret, TokenError},
    },
    healthscope_shared::session::peer,
    kube::Client,
    std::{net::SocketAddr, sync::Arc, time::Duration},
    tokio::sync::watch,
};

/// Agents connected at once unless told otherwise: what the memory of a small machine holds with ease.
pub const DEFAULT_MAX_AGENTS: usize = 20_000;

/// Bounds of the heartbeat: faster is a load test, slower would call a quiet agent lost.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(15);

/// The configuration of one aggregator.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// TLS, or plaintext.
    pub tls: Option<Certificates>,
    /// Where and how pods are given agents, if at all; takes TLS and a cluster.
    pub webhook: Option<Webhook>,
    /// The MutatingWebhookConfiguration whose authorities are kept, if any.
    pub webhook_configuration: Option<String>,
    /// How agents prove who they are; needed off loopback.
    pub agents: AgentAuth,
    /// How readers prove who they are; needed off loopback, unless said otherwise.
    pub readers: ReaderAuth,
    /// Whether plaintext off loopback is meant.
    pub allow_plaintext: bool,
    /// Host names under which browsers may use the page, besides addresses and localhost.
    pub allowed_hosts: Vec<String>,
    /// Where HealthScopes come from.
    pub source: Source,
    /// Deadlines and periods.
    pub timing: Timing,
    /// Counts.
    pub limits: Limits,
}

/// The webhook by which pods get agents.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where to listen for the API server; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What is injected; the authorities to trust are those of the certificates.
    pub options: Options,
}

/// Where HealthScopes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files declare them, now and as they change.
    Files(watch::Receiver<Loaded<Declared>>),
    /// They are objects of a Kubernetes cluster, and so are their members.
    Kubernetes(Box<Kubernetes>),
}

/// How agents prove who they are.
#[derive(Clone, Debug)]
pub enum AgentAuth {
    /// Not at all.
    Open,
    /// By one token that all of them share.
    Token(Secret),
    /// Each by the token of its pod, which says who it is.
    Kubernetes(Arc<Identity>),
}

/// How readers prove who they are, and with it what they may see.
#[derive(Clone, Debug)]
pub enum ReaderAuth {
    /// Not at all: whoever reaches the aggregator sees everything.
    Open {
        /// Whether that is meant off loopback too, where something else keeps strangers out.
        is_meant: bool,
    },
    /// By one token that all of them share and that shows everything.
    Token(Secret),
    /// Each by a token that the cluster's API server takes; they see and do what RBAC allows them.
    Kubernetes(Arc<Readers>),
}

/// Deadlines and periods; tests make them short.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How often agents are to send summaries and be heard of at least.
    pub heartbeat: Duration,
    /// How long a peer may take for the TLS handshake, and an agent for its hello.
    pub handshake: Duration,
    /// How long a client may take for the head of a request, and a connection may idle between two.
    pub header: Duration,
    /// How long a client may take for the body of a request.
    pub body: Duration,
    /// How long a peer may leave what we send unread before its connection is closed.
    pub write: Duration,
    /// An agent not heard of for so long is lost.
    pub silent: Duration,
    /// How long after a connection ended without a goodbye its agent counts as lost.
    pub lost: Duration,
    /// How long after the start nothing becomes lost.
    pub start: Duration,
    /// After an unexpected end agents come back spread over this time.
    pub spread: Duration,
    /// Sessions end spread over this time after the token that opened them: the tokens of pods that were started together
    /// end together.
    pub renewal: Duration,
    /// How often a comment keeps an idle stream of events open.
    pub stream_heartbeat: Duration,
    /// How long shutdown may take in all.
    pub shutdown: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(5),
            body: Duration::from_secs(5),
            write: Duration::from_secs(20),
            silent: Duration::from_secs(30),
            lost: Duration::from_secs(10),
            start: Duration::from_secs(30),
            spread: Duration::from_secs(2),
            renewal: Duration::from_secs(300),
            stream_heartbeat: Duration::from_secs(10),
            shutdown: Duration::from_secs(2),
        }
    }
}

/// Counts that bound what strangers can make the aggregator hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Agents connected at once; the next ones are told to come back later.
    pub agents: usize,
    /// Connections that speak HTTP or have not spoken yet; at the limit the next ones wait in the listener's backlog.
    pub connections: usize,
    /// Of these, from one address other than loopback; more are closed at once.
    pub connections_per_address: usize,
    /// Streams of events open at once; the next ones are told to come back later.
    pub streams: usize,
    /// Publications that a stream may lag behind before it gets a fresh picture instead: some seconds of the busiest.
    pub stream_lag: usize,
    /// Runs of probes that were asked for and not answered yet.
    pub pending_runs: usize,
    /// What one agent may announce and send.
    pub session: peer::Limits,
    /// What the store takes in.
    pub store: event::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agents: DEFAULT_MAX_AGENTS,
            connections: 4_096,
            connections_per_address: 256,
            streams: 512,
            stream_lag: 256,
            pending_runs: 256,
            session: peer::Limits::default(),
            store: event::Limits::default(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A token would cross the network readable.
    #[error(
        "{0} is reached by other machines: give --tls-cert and --tls-key (in a cluster also --tls-secret), or \
         --allow-plaintext when something else protects the connection"
    )]
    Plaintext(SocketAddr),
    /// Everybody could read, and report for anything.
    #[error(
        "{0} is reached by other machines: give --token-file with the token that agents and readers must show"
    )]
    NoToken(SocketAddr),
    /// Readers are to show a token that there is not.
    #[error("--auth=token takes --token-file with the token that readers must show")]
    AuthWithoutToken,
    /// Readers are to show tokens of a cluster that there is not.
    #[error("--auth=kubernetes takes --kubernetes: files have no cluster to ask")]
    NoCluster,
    /// The API server speaks TLS alone.
    #[error(
        "--webhook-listen takes --tls-secret, or --tls-cert and --tls-key: the API server speaks TLS alone"
    )]
    WebhookWithoutTls,
    /// A Secret or a webhook without a cluster.
    #[error("certificates in a Secret, and a webhook, take --kubernetes: files have no cluster")]
    NoApiServer,
    /// A heartbeat that cannot work.
    #[error("the heartbeat must be from 1s to 15s, is {0:?}")]
    Heartbeat(Duration),
    /// Agents could not be sent there.
    #[error("--advertise {0:?} is not HOST:PORT, or --server-name is no host name")]
    Advertise(String),
    /// The cluster cannot be used.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// The token cannot be used.
    #[error("cannot use the token")]
    Token(#[from] TokenError),
}

/// What this process is called in its cluster, as far as it was told.
///
/// # Errors
/// When the address cannot be one.
pub fn place(args: &Args) -> Result<Place, ConfigError> {
    let address = match &args.advertise {
        None => None,
        Some(address) => {
            let host = address
                .rsplit_once(':')
                .map_or(address.as_str(), |(host, _)| host);
            let server_name = args.server_name.as_deref().unwrap_or(host);
            let written = Address::written(address, server_name);
            Some(written.ok_or_else(|| ConfigError::Advertise(address.clone()))?)
        }
    };
    Ok(Place {
        namespace: args.namespace.clone(),
        pod: args.pod_name.clone(),
        address,
    })
}

impl Config {
    /// An aggregator for this machine alone, everything else by default.
    #[must_use]
    pub fn new(listen: SocketAddr, source: Source) -> Self {
        Self {
            listen,
            tls: None,
            webhook: None,
            webhook_configuration: None,
            agents: AgentAuth::Open,
            readers: ReaderAuth::Open { is_meant: false },
            allow_plaintext: false,
            allowed_hosts: Vec::new(),
            source,
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }

    /// Reads the files that the arguments name, besides `--config` itself, which the caller watches.
    ///
    /// # Errors
    /// When a file cannot be used or the arguments contradict each other.
    pub fn from_args(args: Args, source: Source) -> Result<Self, ConfigError> {
        let Args {
            config: _,
            kubernetes: _,
            namespace: _,
            pod_name: _,
            advertise: _,
            server_name: _,
            listen,
            tls_cert,
            tls_key,
            tls_secret,
            webhook_listen,
            webhook_configuration,
            agent_image,
            agent_aggregator,
            agent_ca,
            agent_cpu,
            agent_memory,
            post_start,
            token_file,
            auth,
            allow_plaintext,
            allowed_hosts,
            heartbeat,
            max_agents,
            log_format: _,
            log: _,
        } = args;
        let tls = match (tls_cert, tls_key, tls_secret) {
            (Some(certificate), Some(key), _) => Some(Certificates::from_files(Files {
                certificate,
                key,
                authorities: agent_ca,
            })?),
            (_, _, Some(name)) => Some(Certificates::from_secret(name)),
            (Some(_), None, None) | (None, Some(_) | None, None) => None,
        };
        let webhook = match (webhook_listen, agent_image, &source) {
            (Some(listen), Some(image), Source::Kubernetes(kubernetes)) => {
                let aggregator = agent_aggregator.unwrap_or_else(|| {
                    format!("wss://healthscope-aggregator.{}.svc:7575", kubernetes.namespace)
                });
                Some(Webhook {
                    listen,
                    options: Options {
                        image,
                        aggregator,
                        server_name: None,
                        ca_pem: None,
                        audience: AUDIENCE.to_owned(),
                        resources: resources(agent_cpu, agent_memory),
                        post_start,
                        kubernetes: None,
                        admitted: true,
                        stance: Stance::Full,
                    },
                })
            }
            (Some(_), _, _) => return Err(ConfigError::NoApiServer),
            (None, _, _) => None,
        };
        let token = token_file.as_deref().map(token::read).transpose()?;
        let cluster = match &source {
            Source::Files(_) => None,
            Source::Kubernetes(kubernetes) => Some(kubernetes.client.clone()),
        };
        let readers = readers(auth, token.as_ref(), cluster.as_ref())?;
        let agents = match cluster {
            Some(cluster) => AgentAuth::Kubernetes(Identity::new(cluster)),
            None => token.map_or(AgentAuth::Open, AgentAuth::Token),
        };
        let config = Self {
            listen,
            tls,
            webhook,
            webhook_configuration,
            agents,
            readers,
            allow_plaintext,
            allowed_hosts,
            source,
            timing: Timing {
                heartbeat,
                ..Timing::default()
            },
            limits: Limits {
                agents: max_agents,
                ..Limits::default()
            },
        };
        if !HEARTBEAT.contains(&heartbeat) {
            return Err(ConfigError::Heartbeat(heartbeat));
        }
        config.check()?;
        Ok(config)
    }

    /// Says whether this configuration keeps the promises of the security model.
    ///
    /// # Errors
    /// When other machines could read what they should not.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.webhook.is_some() && self.tls.is_none() {
            return Err(ConfigError::WebhookWithoutTls);
        }
        let is_our_own = self.tls.as_ref().is_some_and(Certificates::are_our_own);
        if (self.webhook.is_some() || is_our_own) && matches!(self.source, Source::Files(_)) {
            return Err(ConfigError::NoApiServer);
        }
        if self.listen.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        if self.tls.is_none() && !self.allow_plaintext {
            return Err(ConfigError::Plaintext(self.listen));
        }
        let is_open = matches!(self.agents, AgentAuth::Open)
            || matches!(self.readers, ReaderAuth::Open { is_meant: false });
        if is_open {
            return Err(ConfigError::NoToken(self.listen));
        }
        Ok(())
    }
}

/// What agents' containers ask for: as somebody said, or as usual; zero is nothing.
fn resources(cpu: Option<Quantity>, memory: Option<Quantity>) -> Resources {
    let usual = Resources::default();
    let said = |said: Option<Quantity>, usual| match said {
        None => usual,
        Some(quantity) => (!quantity.is_zero()).then_some(quantity),
    };
    Resources {
        requests: Amounts {
            cpu: said(cpu, usual.requests.cpu),
            memory: said(memory, usual.requests.memory),
        },
        ..usual
    }
}

/// How readers prove who they are: as somebody said, or with what there is.
fn readers(
    auth: Option<AuthMode>,
    token: Option<&Secret>,
    cluster: Option<&Client>,
) -> Result<ReaderAuth, ConfigError> {
    match (auth, token, cluster) {
        (Some(AuthMode::None), _, _) => Ok(ReaderAuth::Open { is_meant: true }),
        (Some(AuthMode::Kubernetes) | None, _, Some(cluster)) => {
            Ok(ReaderAuth::Kubernetes(Readers::new(cluster.clone())))
        }
        (Some(AuthMode::Kubernetes), _, None) => Err(ConfigError::NoCluster),
        (Some(AuthMode::Token) | None, Some(token), _) => Ok(ReaderAuth::Token(token.clone())),
        (Some(AuthMode::Token), None, _) => Err(ConfigError::AuthWithoutToken),
        (None, None, None) => Ok(ReaderAuth::Open { is_meant: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> Config {
        let (sender, receiver) = watch::channel(Loaded {
            value: Arc::new(Declared::default()),
            revision: 1,
            problems: None,
        });
        drop(sender);
        Config::new(listen.parse().unwrap(), Source::Files(receiver))
    }

    #[test]
    fn loopback_needs_neither_tls_nor_token() {
        for listen in [
            "127.0.0.1:7575",
            "127.9.9.9:0",
            "[::1]:7575",
            "[::ffff:127.0.0.1]:1",
        ] {
            config(listen).check().unwrap();
        }
    }

    #[test]
    fn a_secret_of_our_own_takes_a_cluster() {
        let mut config = config("127.0.0.1:7575");
        config.tls = Some(Certificates::from_secret("healthscope-tls".to_owned()));
        assert!(matches!(config.check(), Err(ConfigError::NoApiServer)));
    }

    #[test]
    fn other_addresses_need_both() {
        for listen in ["0.0.0.0:7575", "[::]:7575", "192.0.2.1:7575"] {
            let mut config = config(listen);
            let plaintext = config.check().unwrap_err();
            assert!(matches!(plaintext, ConfigError::Plaintext(_)));
            assert!(plaintext.to_string().contains("--allow-plaintext"), "{plaintext}");
            config.allow_plaintext = true;
            let no_token = config.check().unwrap_err();
            assert!(no_token.to_string().contains("--token-file"), "{no_token}");
            config.agents = AgentAuth::Token(Secret::new("hush"));
            assert!(config.check().is_err(), "readers could do without");
            config.readers = ReaderAuth::Token(Secret::new("hush"));
            config.check().unwrap();
        }
    }
}
