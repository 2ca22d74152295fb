//! One aggregator: connects the parts with channels, starts their tasks, ends them in order.
//!
//! ```text
//! listen --> site --> ingest ==sessions==> store_actor --> feed --> api, dashboard
//! ```

use {
    crate::{
        admission::{self, Admission, EventEnds, SurroundingsEnds},
        api::{self, Api, Replica},
        breaker::{self, BreakerEnds},
        bus::{Feed, StoreSender},
        certificates::{
            Certificates, Home,
            publish::{self, PublishEnds},
        },
        clock,
        config::{Config, ConfigError, Limits, Source, Timing, Webhook},
        dashboard::{self, Dashboard},
        ingest::{self, Ingest, quota::Quota},
        kubernetes::{
            Kubernetes,
            lease::{self, LeaseEnds},
            role::{self, Role},
            watch::{self as kubernetes_watch, WatchEnds},
            writer::{self, WriterEnds},
        },
        listen::{self, Deadlines, Places, Server},
        mailbox::Sessions,
        metrics::Metrics,
        site::{
            Site,
            access::{Access, NoRandomness},
            host::AllowedHosts,
        },
        store_actor::{Ends, StoreActor},
    },
    healthscope_core::{
        Patience, breaker::Blamed, owner::Member, pace::WriterLimits, snapshot::Snapshot, store::StoreConfig,
    },
    healthscope_service::{
        admin::Readiness,
        config_files::Loaded,
        shutdown::Shutdown,
        tasks::{TaskError, Tasks},
    },
    healthscope_shared::wire,
    std::{
        io,
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
        sync::Arc,
        time::Duration,
    },
    tokio::{
        net::TcpListener,
        sync::{broadcast, mpsc, watch},
    },
    tokio_rustls::TlsAcceptor,
    tokio_util::sync::CancellationToken,
};

/// How long the last statuses and the hand-over to another replica may take at the end.
const HAND_OVER: Duration = writer::FLUSH.saturating_add(lease::RELEASE_DEADLINE);
/// News of HealthScopes that wait for the writer at most; when it is full the watch waits.
const OBSERVATIONS: usize = 1_024;

/// Why an aggregator does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration breaks a promise of the security model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be had.
    #[error("cannot listen on {address}{}", hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody could sign in safely.
    #[error(transparent)]
    SignIn(#[from] NoRandomness),
    /// A part without which the aggregator is useless ended.
    #[error(transparent)]
    Task(#[from] TaskError),
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        " (another process listens there; stop it or choose another --listen)"
    } else {
        ""
    }
}

/// An aggregator that listens and does not answer yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    listener: TcpListener,
    address: SocketAddr,
    /// Of the webhook.
    webhook: Option<TcpListener>,
    snapshot: (watch::Sender<Arc<Snapshot>>, watch::Receiver<Arc<Snapshot>>),
}

impl App {
    /// Checks the configuration and binds the address.
    ///
    /// # Errors
    /// When the configuration breaks a promise of the security model or the address cannot be had.
    pub fn bind(config: Config) -> Result<Self, AppError> {
        config.check()?;
        let address = config.listen;
        let listen_error = |source| AppError::Listen { address, source };
        let listener = listen::bind(address).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let webhook = config.webhook.as_ref().map(|webhook| {
            let address = webhook.listen;
            listen::bind(address).map_err(|source| AppError::Listen { address, source })
        });
        let webhook = webhook.transpose()?;
        Ok(Self {
            config,
            listener,
            address,
            webhook,
            snapshot: watch::channel(Arc::default()),
        })
    }

    /// The address that is bound, with the port that the system chose.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a browser on this machine finds the page: `http://127.0.0.1:7575/`.
    #[must_use]
    pub fn page_url(&self) -> String {
        let scheme = if self.config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/", self.local_address())
    }

    /// Where an agent on this machine connects to: `ws://127.0.0.1:7575/v1/agent`.
    #[must_use]
    pub fn agent_url(&self) -> String {
        let scheme = if self.config.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}{}", self.local_address(), wire::PATH)
    }

    fn local_address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// The picture of all scopes, now and as it changes.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.1.clone()
    }

    /// Serves until `shutdown` is given, then lets go in order: no new connections, agents are asked to come back,
    /// streams end. Takes at most [`Timing::shutdown`] for that.
    ///
    /// # Errors
    /// When an essential part ended; `shutdown` is given by then.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), AppError> {
        let (sender, role) = match &self.config.source {
            Source::Files(_) => (None, role::always_owner()),
            Source::Kubernetes(_) => {
                let (sender, role) = watch::channel(Role::Standby { owner: None });
                (Some(sender), role)
            }
        };
        self.serve_in_role(sender, role, shutdown).await
    }

    /// Serves like [`App::run`], in a role that may change: agents are taken in by the owner alone.
    ///
    /// # Errors
    /// Like [`App::run`].
    pub async fn serve(self, role: watch::Receiver<Role>, shutdown: Shutdown) -> Result<(), AppError> {
        self.serve_in_role(None, role, shutdown).await
    }

    /// `elected` is where the role is published by the election among replicas, when there is one.
    async fn serve_in_role(
        self,
        elected: Option<watch::Sender<Role>>,
        role: watch::Receiver<Role>,
        shutdown: Shutdown,
    ) -> Result<(), AppError> {
        let Self {
            config,
            listener,
            address,
            webhook: webhook_listener,
            snapshot: (snapshot_sender, snapshot),
        } = self;
        let Config {
            listen: _,
            tls,
            webhook,
            webhook_configuration,
            agents,
            readers,
            allow_plaintext: _,
            allowed_hosts,
            source,
            timing,
            limits,
        } = config;
        let is_elected = elected.is_some();
        let in_cluster = matches!(source, Source::Kubernetes(_));
        let tasks = Tasks::new(shutdown.clone());
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::new();
        let serving = readiness.condition("serving");
        let (declared, configured, kubernetes) = match source {
            Source::Files(declared) => (declared, Some(readiness.condition("configuration")), None),
            // Nobody sends: nothing is declared by files.
            Source::Kubernetes(kubernetes) => (watch::channel(Loaded::default()).1, None, Some(*kubernetes)),
        };
        let sessions = Sessions::new(limits.agents);
        let access = Arc::new(Access::new(readers)?);
        let (store, inbox) = StoreSender::channel();
        let (deltas, _) = broadcast::channel(limits.stream_lag);
        let feed = Feed {
            snapshot,
            deltas: deltas.clone(),
        };

        let ends = Ends {
            inbox,
            sessions: sessions.clone(),
            declared: declared.clone(),
            snapshot: snapshot_sender,
            deltas,
            configured,
            metrics: metrics.store.clone(),
            max_pending: limits.pending_runs,
        };
        let actor = StoreActor::new(store_config(&timing, &limits, kubernetes.is_some()), ends);
        tasks.essential("store", actor.run(shutdown.token()));
        if let Some(certificates) = &tls {
            let ends = CertificateEnds {
                certificates,
                kubernetes: kubernetes.as_ref(),
                configuration: webhook_configuration,
                role: role.clone(),
            };
            keep_certificates(ends, &metrics, &tasks);
        }
        let is_webhook = webhook.is_some();
        if let (Some(webhook), Some(listener), Some(certificates), Some(kubernetes)) =
            (webhook, webhook_listener, &tls, kubernetes.as_ref())
        {
            let ends = WebhookEnds {
                webhook,
                listener,
                certificates,
                kubernetes,
                store: store.clone(),
                role: role.clone(),
            };
            serve_webhook(ends, &timing, &metrics, &tasks);
        }
        if let Some(kubernetes) = kubernetes {
            // Others may write only when nothing is written here any more.
            let written = CancellationToken::new();
            if let Some(elected) = elected {
                let ends = LeaseEnds {
                    client: kubernetes.lease_client.clone(),
                    namespace: kubernetes.namespace.clone(),
                    me: Member {
                        identity: lease::identity(&kubernetes.instance),
                        address: kubernetes.address.clone(),
                    },
                    role: elected,
                };
                tasks.essential("lease", lease::run(ends, written.clone()));
            }
            let (acting, _) = watch::channel(Role::Standby { owner: None });
            tasks.essential(
                "step-down",
                kubernetes_watch::step_down(role.clone(), acting.clone(), written.clone()),
            );
            let (observed, observations) = mpsc::channel(OBSERVATIONS);
            let writer = WriterEnds {
                client: kubernetes.client.clone(),
                observed: observations,
                snapshot: feed.snapshot.clone(),
                role: acting.subscribe(),
                limits: WriterLimits::default(),
                instance: kubernetes.instance.clone(),
                metrics: metrics.writer.clone(),
            };
            let stop = shutdown.token();
            tasks.essential("writer", async move {
                let _let_go = written.drop_guard();
                writer::run(writer, stop).await;
            });
            let ends = WatchEnds {
                kubernetes,
                store: store.clone(),
                role: role.clone(),
                acting,
                observed,
                synced: readiness.condition("watches"),
                metrics: metrics.watches.clone(),
                tasks: tasks.clone(),
            };
            tasks.essential("watches", kubernetes_watch::run(ends, shutdown.token()));
        }

        let api = Api::new(api::Inner {
            feed,
            store: store.clone(),
            sessions: sessions.clone(),
            declared,
            readiness,
            metrics: metrics.clone(),
            timing: timing.clone(),
            limits: limits.clone(),
            replica: Replica {
                in_cluster,
                role: role.clone(),
            },
            started: clock::now().wall,
            streams: 0.into(),
            shutdown: shutdown.clone(),
        });
        let own = tls
            .as_ref()
            .filter(|certificates| certificates.are_our_own())
            .map(Certificates::state);
        if let Some(own) = &own {
            let spreading = ingest::spread_trust(own.clone(), sessions.clone(), shutdown.token());
            tasks.essential("trust", spreading);
        }
        let ingest = Arc::new(Ingest {
            auth: agents,
            quota: Quota::new(limits.agents),
            store,
            role: role.clone(),
            sessions: sessions.clone(),
            certificates: own.clone(),
            timing: timing.clone(),
            limits: limits.session,
            metrics: metrics.agents.clone(),
            tasks: tasks.clone(),
        });
        let following = ingest::follow(role, sessions.clone(), timing.spread, shutdown.token());
        tasks.essential("role", following);
        let pages = dashboard::routes(Dashboard {
            api: api.clone(),
            access: access.clone(),
            sign_ins: Arc::default(),
            metrics: metrics.http.clone(),
        });
        let router = api::routes(api)
            .merge(pages)
            .fallback(api::not_found)
            .method_not_allowed_fallback(api::method_not_allowed);
        let site = Arc::new(Site {
            ingest,
            router,
            access,
            hosts: AllowedHosts::new(&allowed_hosts),
            timing: timing.clone(),
            metrics: metrics.http.clone(),
        });
        let server = Arc::new(Server {
            site,
            acceptor: tls.map(|certificates| TlsAcceptor::from(certificates.server_config())),
            places: Places::new(&limits, metrics.connections.open.clone()),
            deadlines: Deadlines::new(&timing),
            metrics: metrics.connections.clone(),
            tasks: tasks.clone(),
            stop: shutdown.token(),
        });
        tasks.essential("accept", server.accept(listener));
        serving.ready();
        tracing::info!(%address, "listening");

        shutdown.cancelled().await;
        serving.not_ready();
        sessions.drain(timing.spread);
        let let_go = if is_elected { HAND_OVER } else { Duration::ZERO };
        let drained = if is_webhook {
            admission::DRAIN
        } else {
            Duration::ZERO
        };
        let deadline = timing.shutdown + let_go.max(drained);
        match tasks.join(deadline).await {
            // Slow peers were cut off, which the log says; they come back or not.
            Ok(()) | Err(TaskError::Late { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the certificates' tasks are made of.
struct CertificateEnds<'a> {
    certificates: &'a Certificates,
    kubernetes: Option<&'a Kubernetes>,
    configuration: Option<String>,
    role: watch::Receiver<Role>,
}

fn keep_certificates(ends: CertificateEnds<'_>, metrics: &Metrics, tasks: &Tasks) {
    let CertificateEnds {
        certificates,
        kubernetes,
        configuration,
        role,
    } = ends;
    let metrics = &metrics.certificates;
    let stop = tasks.shutdown().token();
    if let Some(kubernetes) = kubernetes.filter(|_| certificates.are_our_own()) {
        let ends = PublishEnds {
            client: kubernetes.client.clone(),
            namespace: kubernetes.namespace.clone(),
            configuration,
            state: certificates.state(),
            role,
            metrics: metrics.clone(),
        };
        tasks.essential("authorities", publish::run(ends, stop.clone()));
    }
    let home = kubernetes.map(|kubernetes| Home {
        client: kubernetes.client.clone(),
        namespace: kubernetes.namespace.clone(),
    });
    tasks.essential(
        "certificates",
        certificates.clone().keep(home, metrics.clone(), stop),
    );
}

/// What the webhook's tasks are made of.
struct WebhookEnds<'a> {
    webhook: Webhook,
    listener: TcpListener,
    certificates: &'a Certificates,
    kubernetes: &'a Kubernetes,
    store: StoreSender,
    role: watch::Receiver<Role>,
}

/// Starts the webhook, which outlives the signal to end by [`admission::DRAIN`].
fn serve_webhook(ends: WebhookEnds<'_>, timing: &Timing, metrics: &Metrics, tasks: &Tasks) {
    let WebhookEnds {
        webhook: Webhook { listen: _, options },
        listener,
        certificates,
        kubernetes,
        store,
        role,
    } = ends;
    let shutdown = tasks.shutdown().token();
    let stop = CancellationToken::new();
    tasks.essential("webhook-drain", admission::drain(shutdown.clone(), stop.clone()));
    let (surroundings, namespaces) =
        SurroundingsEnds::new(kubernetes.client.clone(), metrics.admission.clone());
    // What holds around pods is followed for as long as there are questions.
    tasks.essential("surroundings", admission::follow(surroundings, stop.clone()));
    let (skips, skipped) = mpsc::channel(admission::SKIPS);
    let events = EventEnds {
        client: kubernetes.client.clone(),
        instance: kubernetes.instance.clone(),
        skips: skipped,
        metrics: metrics.admission.clone(),
    };
    tasks.essential("injection-events", admission::tell(events, stop.clone()));
    let (obeyed, breaker) = watch::channel(None);
    match kubernetes.namespace.parse() {
        Ok(home) => {
            let ends = BreakerEnds {
                client: kubernetes.client.clone(),
                home,
                instance: kubernetes.instance.clone(),
                store,
                role,
                namespaces: namespaces.clone(),
                blamed: Blamed {
                    image: options.image.clone(),
                    requests: options.resources.requests,
                },
                obeyed,
                metrics: metrics.breaker.clone(),
            };
            tasks.essential("breaker", breaker::run(ends, stop.clone()));
        }
        Err(error) => {
            // No cluster has such a namespace, so there is no breaker either, and nothing is injected.
            let error: &dyn std::error::Error = &error;
            tracing::error!(
                error,
                "our own namespace has no usable name; no pod gets an agent"
            );
        }
    }
    let site = Arc::new(Admission {
        options,
        certificates: certificates.state(),
        needs_bundle: certificates.are_our_own(),
        namespaces,
        breaker,
        skips,
        metrics: metrics.admission.clone(),
        draining: shutdown,
        room: admission::Room::default(),
    });
    let connections = &metrics.webhook_connections;
    let server = Arc::new(Server {
        site,
        acceptor: Some(TlsAcceptor::from(certificates.server_config())),
        // Questions may all come through one address: an API server's, or a node's.
        places: Places::of(
            admission::CONNECTIONS,
            admission::CONNECTIONS,
            connections.open.clone(),
        ),
        deadlines: Deadlines {
            header: admission::IDLE,
            ..Deadlines::new(timing)
        },
        metrics: connections.clone(),
        tasks: tasks.clone(),
        stop,
    });
    let address = listener
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    tracing::info!(address, "listening for the API server's questions about pods");
    tasks.essential("webhook", server.accept(listener));
}

fn store_config(timing: &Timing, limits: &Limits, kubernetes: bool) -> StoreConfig {
    StoreConfig {
        limits: limits.store,
        patience: Patience {
            silent: timing.silent,
            hold: timing.lost,
            start: timing.start,
        },
        kubernetes,
    }
}
