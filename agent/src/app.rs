//! The agent, put together: probes on one side, the aggregator on the other, its own endpoint beside them.
//!
//! [`App`] connects the parts with channels and holds no policy. It runs on any tokio runtime: its own current-thread
//! one in the binary, that of `healthscope up` there.

use {
    crate::{
        engine::{AnnouncedComponent, Command, Engine, EngineConfig, counters::Counters},
        local::{Bound, Local},
        metrics::Metrics,
        prober::{ProberConfig, Probers, Runners},
        schedule::Limits,
        uplink::{
            self, Ports, Uplink,
            stats::{Stats, Status},
        },
    },
    feed::Feed,
    healthscope_service::{
        admin::{Admin, ListenError, Page, Readiness},
        build,
        shutdown::Shutdown,
        tasks::{TaskError, Tasks},
    },
    healthscope_shared::{
        config::Component,
        name::{AgentName, ContainerName, InstanceName},
    },
    status::{AgentView, Sources},
    std::{
        net::{IpAddr, SocketAddr},
        path::PathBuf,
        sync::Arc,
        time::{Duration, Instant, SystemTime},
    },
    tokio::sync::{mpsc, oneshot, watch},
    tokio_util::sync::CancellationToken,
};

mod feed;
mod status;

/// How long the parts may take to end: the goodbye has one second, and a process must be gone after two.
const END_DEADLINE: Duration = Duration::from_millis(1_500);
/// Events on their way from the engine, which keeps more itself.
const EVENTS: usize = 64;
/// Commands on their way to the engine, which takes them before anything else.
const COMMANDS: usize = 8;
/// Results on their way to the uplink, which always takes them.
const INPUTS: usize = 32;
/// What the uplink asks for: as much as a session may have asked for, and summaries.
const REQUESTS: usize = 16;

/// Runners that have come or gone and that the engine has not heard of. Full when it does not get to run; then the
/// connection's task waits.
const CONTAINER_CHANGES: usize = 16;

/// Everything an agent needs to know.
#[derive(Debug)]
pub struct Config {
    /// What it calls itself, and its instances of the components.
    pub agent: AgentName,
    /// What it watches, now and as it changes.
    pub components: watch::Receiver<Arc<Vec<Component>>>,
    /// Where it reports to.
    pub uplink: uplink::Config,
    /// Where its own endpoint listens.
    pub local: Local,
    /// Most runs of probes at once.
    pub limits: Limits,
    /// What it is given in a pod.
    pub pod: Option<Pod>,
}

/// What an agent is given in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Where runners are listened for: `CONTAINER/agent.sock` in it.
    pub runner_dir: PathBuf,
    /// The pod's addresses: the only ones beside loopback that network probes may go to.
    pub addresses: Vec<IpAddr>,
}

/// Why an agent ended other than as it was told.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Its endpoint cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// One of its parts failed.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// An agent whose endpoint is bound and that does not run yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    local: Bound,
}

impl App {
    /// Binds the endpoint; nothing is checked and nobody connected to before [`App::run`].
    ///
    /// # Errors
    /// When the endpoint cannot listen where it should.
    pub async fn bind(mut config: Config) -> Result<Self, AppError> {
        let local = std::mem::take(&mut config.local).bind().await?;
        Ok(Self { config, local })
    }

    /// The endpoint's TCP address, with the port that the system chose.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.local.tcp_address()
    }

    /// Runs until `shutdown`; then says goodbye to the aggregator and ends every check, within two seconds.
    ///
    /// # Errors
    /// When an essential part ended by itself (which also gives `shutdown`), or did not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), AppError> {
        let Self { config, local } = self;
        let Config {
            agent,
            components,
            uplink,
            local: _,
            limits,
            pod,
        } = config;
        let tasks = Tasks::new(shutdown);
        let readiness = Readiness::new();
        let counters = Arc::new(Counters::default());

        let (commands, engine_commands) = mpsc::channel(COMMANDS);
        let (engine_events, events) = mpsc::channel(EVENTS);
        let (inputs, uplink_inputs) = mpsc::channel(INPUTS);
        let (uplink_requests, requests) = mpsc::channel(REQUESTS);
        let (watched, seen) = watch::channel(Arc::default());

        let engine_config = EngineConfig {
            limits,
            salt: hash(agent.as_str()),
        };
        let (confined_to, runner_dir) = match pod {
            Some(Pod {
                runner_dir,
                addresses,
            }) => (Some(addresses), Some(runner_dir)),
            None => (None, None),
        };
        let (container_changes, changed_containers) = mpsc::channel(CONTAINER_CHANGES);
        let (runners, runner_listeners) = match runner_dir {
            Some(directory) => Runners::new(&directory, &components.borrow(), &container_changes),
            None => Default::default(),
        };
        drop(container_changes);
        let probers = Probers::new(ProberConfig {
            confined_to,
            runners,
            ..ProberConfig::default()
        });
        let engine = Engine::new(engine_config, probers, Arc::clone(&counters));
        let ports = Ports {
            inputs: uplink_inputs,
            requests: uplink_requests,
        };
        let uplink = Uplink::new(agent.clone(), uplink, ports);
        let feed = Feed {
            instance: InstanceName::new(agent.as_str()).expect("agents and instances are named by one rule"),
            components,
            commands: commands.clone(),
            events,
            inputs,
            requests,
            watched,
            counters: Arc::clone(&counters),
            ready: readiness.condition("probes"),
        };

        let metrics = Metrics {
            engine: counters,
            uplink: uplink.stats(),
            started: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        };
        let recheck_commands = commands.clone();
        let status = Arc::new(StatusPage {
            agent,
            started: Instant::now(),
            status: uplink.status(),
            stats: uplink.stats(),
            watched: seen,
            commands,
        });
        let admin = Admin::new(readiness)
            .metrics(move || metrics.render())
            .asked_page("/status", move || Arc::clone(&status).page());
        local.serve(&admin, &tasks);

        let token = tasks.shutdown().token();
        for listener in runner_listeners {
            tasks.essential("runner", listener.run(token.clone()));
        }
        tasks.essential(
            "recheck",
            recheck(changed_containers, recheck_commands, token.clone()),
        );
        tasks.essential(
            "engine",
            engine.run(engine_commands, engine_events, token.clone()),
        );
        tasks.essential("feed", feed.run());
        tasks.essential("uplink", uplink.run(token));
        tasks.join(END_DEADLINE).await?;
        Ok(())
    }
}

/// Has everything looked at again when a runner comes or goes, until `shutdown` or the engine's end.
async fn recheck(
    mut changed: mpsc::Receiver<ContainerName>,
    commands: mpsc::Sender<Command>,
    shutdown: CancellationToken,
) {
    loop {
        // Cancel-safe: a token and a queue.
        let container = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            container = changed.recv() => container,
        };
        let Some(container) = container else {
            // There are no runners here.
            return shutdown.cancelled().await;
        };
        if commands.send(Command::Recheck(container)).await.is_err() {
            return shutdown.cancelled().await;
        }
    }
}

/// What `/status` is made of.
struct StatusPage {
    agent: AgentName,
    started: Instant,
    status: watch::Receiver<Status>,
    stats: Arc<Stats>,
    watched: watch::Receiver<Arc<Vec<AnnouncedComponent>>>,
    commands: mpsc::Sender<Command>,
}

impl StatusPage {
    /// `None` when the engine is gone.
    async fn page(self: Arc<Self>) -> Option<Page> {
        let Self {
            agent,
            started,
            status,
            stats,
            watched,
            commands,
        } = &*self;
        let (reply, reports) = oneshot::channel();
        commands.send(Command::Snapshot { reply }).await.ok()?;
        let reports = reports.await.ok()?;
        let view = AgentView::new(Sources {
            agent,
            version: build::VERSION,
            started: *started,
            status: &status.borrow().clone(),
            stats,
            watched: &watched.borrow().clone(),
            reports,
            now: Instant::now(),
        });
        Some(("application/json", view.to_json()))
    }
}

/// FNV-1a: the same in every run, so that phases are.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
