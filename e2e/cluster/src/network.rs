//! Connections into a network that this process may not be in.

use {
    anyhow::{Context, anyhow},
    rustix::thread::{LinkNameSpaceType, move_into_link_name_space},
    std::{
        fs::File,
        net::{SocketAddr, TcpStream},
        os::fd::AsFd,
        sync::Arc,
        thread,
        time::Duration,
    },
};

/// How long to wait for a connection: nothing is farther than this machine.
const CONNECT: Duration = Duration::from_secs(5);

/// The network of a cluster, seen from this process.
#[derive(Clone, Debug)]
pub(crate) enum Network {
    /// The machine's own loopback.
    Loopback,
    /// A network name space; the open file keeps it findable.
    Own(Arc<File>),
}

impl Network {
    /// Connects to an address of that network.
    pub(crate) fn connect(&self, address: SocketAddr) -> anyhow::Result<TcpStream> {
        let connect = || {
            TcpStream::connect_timeout(&address, CONNECT)
                .with_context(|| format!("cannot connect to {address}"))
        };
        match self {
            Self::Loopback => connect(),
            // A socket stays in the name space that it was made in, and only a thread of its own may go there.
            Self::Own(name_space) => thread::scope(|scope| {
                scope
                    .spawn(|| {
                        move_into_link_name_space(name_space.as_fd(), Some(LinkNameSpaceType::Network))
                            .context("cannot enter the cluster's network; that takes root")?;
                        connect()
                    })
                    .join()
                    .map_err(|_panic| anyhow!("the thread that connects to {address} panicked"))?
            }),
        }
    }
}
