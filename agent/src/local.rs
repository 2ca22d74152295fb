//! The agent's own endpoint: where it listens, and that it is served.
//!
//! What it answers is made elsewhere and handed in; nothing here knows about probes or sessions.

use {
    healthscope_service::{
        admin::{Admin, ListenError, Listener},
        tasks::Tasks,
    },
    std::{net::SocketAddr, path::PathBuf},
};

/// Where the endpoint listens; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// File of a Unix socket. One that a killed process left behind is replaced, one that answers is an error.
    pub unix: Option<PathBuf>,
    /// TCP address; port 0 lets the system choose.
    pub tcp: Option<SocketAddr>,
}

/// The endpoint, bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    unix: Option<Listener>,
    tcp: Option<Listener>,
}

impl Local {
    /// Binds what was asked for.
    ///
    /// # Errors
    /// When an address or a socket file cannot be had.
    pub async fn bind(self) -> Result<Bound, ListenError> {
        let Self { unix, tcp } = self;
        let unix = match unix {
            Some(path) => Some(Listener::unix(&path).await?),
            None => None,
        };
        let tcp = match tcp {
            Some(address) => Some(Listener::tcp(address).await?),
            None => None,
        };
        Ok(Bound { unix, tcp })
    }
}

impl Bound {
    /// The TCP address, with the port that the system chose.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(Listener::tcp_address)
    }

    /// Serves until the tasks' shutdown.
    pub fn serve(self, admin: &Admin, tasks: &Tasks) {
        let Self { unix, tcp } = self;
        for (name, listener) in [("local-unix", unix), ("local-tcp", tcp)] {
            let Some(listener) = listener else { continue };
            let serving = admin.clone().serve(listener, tasks.shutdown().token());
            tasks.essential(name, serving);
        }
    }
}
