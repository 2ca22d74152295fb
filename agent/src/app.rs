//! The agent, put together: probes on one side, the aggregator on the other, its own endpoint beside them.
//!
//! [`App`] connects the parts with channels and holds no policy. It runs on any tokio runtime: its own current-thread
//! one in the binary, that of `healthscope up` there.

use {
    crate::{
        local::{Bound, Local},
        uplink,
    },
    healthscope_service::{
        admin::{Admin, ListenError, Readiness},
        shutdown::Shutdown,
        tasks::{TaskError, Tasks},
    },
    healthscope_shared::{config::Component, name::AgentName},
    std::{net::SocketAddr, sync::Arc, time::Duration},
    tokio::sync::watch,
};

/// How long the parts may take to end: the goodbye has one second, and a process must be gone after two.
const END_DEADLINE: Duration = Duration::from_millis(1_500);

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
            agent: _,
            components: _,
            uplink: _,
            local: _,
        } = config;
        let tasks = Tasks::new(shutdown);
        local.serve(&Admin::new(Readiness::new()), &tasks);
        tasks.join(END_DEADLINE).await?;
        Ok(())
    }
}
