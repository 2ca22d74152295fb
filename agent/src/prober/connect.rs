//! TCP connections for probes: resolving names, connecting without blocking, and the TCP check itself.
//!
//! Sockets are closed by reset (`SO_LINGER` 0), so that no probe leaves a port in TIME_WAIT: the kubelet lingers for a
//! second instead, which would block this thread. `TCP_QUICKACK` is off, so that the last step of the handshake travels
//! with the request (or with the reset) instead of alone; HAProxy's checks do the same.
//!
//! On a local target the handshake is over before `connect` returns, so connecting is tried without asking the
//! runtime first: a TCP check of a local port is five system calls and no wake-up.

use {
    super::{Deadline, Found, Probers},
    crate::watch::watch,
    healthscope_shared::{
        health::Reason,
        probe::{Authority, TcpSocketAction},
    },
    rustix::{
        io::Errno,
        net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt},
    },
    std::{
        io,
        net::{IpAddr, SocketAddr, ToSocketAddrs},
        os::fd::OwnedFd,
        sync::Arc,
        time::Duration,
    },
    tokio::{
        io::Interest,
        sync::Semaphore,
        time::{Instant, timeout_at},
    },
};

/// Most names looked up at once. A lookup holds a thread that cannot be interrupted, for as long as the system's
/// resolver likes.
const MAX_LOOKUPS: usize = 16;
/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Turns names into addresses with the system's resolver, off the runtime's thread.
#[derive(Debug)]
pub(super) struct Resolver {
    lookups: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

impl Resolver {
    /// All addresses of a name, in the order to try them. Full case: over [`MAX_LOOKUPS`] the run waits, and times out
    /// as its probe says.
    async fn lookup(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Found> {
        let permit = Arc::clone(&self.lookups)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let name = host.to_owned();
        let found = tokio::task::spawn_blocking(move || {
            // Held until the lookup is really over, even when the run that asked for it is not there any more.
            let _permit = permit;
            (name.as_str(), port)
                .to_socket_addrs()
                .map(|addresses| addresses.take(MAX_ADDRESSES).collect::<Vec<_>>())
        })
        .await;
        match found {
            Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
            Ok(Ok(_)) => Err(unresolved(host, "no address")),
            Ok(Err(error)) if super::is_shortage(&error) => Err(Found::io(&error, "resolve")),
            Ok(Err(error)) => Err(unresolved(host, &lookup_error(&error))),
            Err(error) => Err(Found::error(Reason::INTERNAL_ERROR, format!("resolve: {error}"))),
        }
    }
}

fn unresolved(host: &str, why: &str) -> Found {
    Found::failure(
        Reason::NAME_NOT_RESOLVED,
        format!("{host} does not resolve: {why}"),
    )
}

fn lookup_error(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("failed to lookup address information: ");
    text.map_or_else(|| super::plain(error), str::to_lowercase)
}

impl Probers {
    /// Opens a connection and closes it.
    pub(super) async fn tcp(&self, tcp: &TcpSocketAction, deadline: Deadline) -> Found {
        let TcpSocketAction { host, port } = tcp;
        match self.connect(host, *port, deadline).await {
            Ok(_socket) => Found::success(),
            Err(found) => found,
        }
    }

    /// Connects to the first address of a host that answers.
    pub(super) async fn connect(&self, host: &str, port: u16, deadline: Deadline) -> Result<OwnedFd, Found> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            self.check_allowed(ip)?;
            let address = SocketAddr::new(ip, port);
            let socket = Connecting::start(address).and_then(Connecting::check_now);
            let connecting = match socket {
                Ok(Connected::Yes(socket)) => return Ok(socket),
                Ok(Connected::NotYet(connecting)) => connecting,
                Err(error) => return Err(connect_failed(&error, address)),
            };
            return match timeout_at(deadline.at, connecting.finish()).await {
                Ok(Ok(socket)) => Ok(socket),
                Ok(Err(error)) => Err(connect_failed(&error, address)),
                Err(_) => Err(deadline.passed(&no_connection(address))),
            };
        }
        Box::pin(self.connect_by_name(host, port, deadline)).await
    }

    /// Whether this process may connect there at all.
    fn check_allowed(&self, address: IpAddr) -> Result<(), Found> {
        let Some(own) = &self.confined_to else {
            return Ok(());
        };
        // `::ffff:127.0.0.1` is 127.0.0.1.
        let address = address.to_canonical();
        if address.is_loopback() || own.contains(&address) {
            return Ok(());
        }
        let message =
            format!("{address} is not this pod's own address, and an agent in a pod checks nothing else");
        Err(Found::error(Reason::FORBIDDEN, message))
    }

    /// Tries every address of a name. What is left of the time is shared by the addresses that are left, so that a
    /// black hole does not hide an address that answers.
    async fn connect_by_name(&self, host: &str, port: u16, deadline: Deadline) -> Result<OwnedFd, Found> {
        let Ok(addresses) = timeout_at(deadline.at, self.resolver.lookup(host, port)).await else {
            return Err(deadline.passed(&format!("{host} did not resolve")));
        };
        let addresses = addresses?;
        for address in &addresses {
            self.check_allowed(address.ip())?;
        }
        let mut first_failure = None;
        for (tried, &address) in addresses.iter().enumerate() {
            let left = deadline.at.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
            let share = share.max(Duration::from_millis(1));
            let attempt = async { Connecting::start(address)?.finish().await };
            let failure = match timeout_at(Instant::now() + share, attempt).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => connect_failed(&error, address),
                Err(_) => deadline.passed(&no_connection(address)),
            };
            first_failure.get_or_insert(failure);
        }
        Err(first_failure.expect("a lookup gives at least one address"))
    }
}

fn no_connection(address: SocketAddr) -> String {
    format!("no connection to {address}")
}

pub(super) fn connect_failed(error: &io::Error, address: SocketAddr) -> Found {
    Found::io(error, &format!("connect to {address}"))
}

/// A socket on its way to being connected.
#[derive(Debug)]
pub(super) struct Connecting {
    socket: OwnedFd,
}

/// How far a [`Connecting`] is.
#[derive(Debug)]
pub(super) enum Connected {
    /// There.
    Yes(OwnedFd),
    /// The peer has not answered yet.
    NotYet(Connecting),
}

impl Connecting {
    /// Sends the first packet of the handshake.
    pub(super) fn start(address: SocketAddr) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        sockopt::set_tcp_quickack(&socket, false)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self { socket }),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks without waiting.
    pub(super) fn check_now(self) -> io::Result<Connected> {
        let Self { socket } = self;
        match rustix::net::getpeername(&socket) {
            Ok(_) => Ok(Connected::Yes(socket)),
            Err(Errno::NOTCONN) => match sockopt::socket_error(&socket)? {
                Ok(()) => Ok(Connected::NotYet(Self { socket })),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the peer's answer.
    pub(super) async fn finish(self) -> io::Result<OwnedFd> {
        let connecting = match self.check_now()? {
            Connected::Yes(socket) => return Ok(socket),
            Connected::NotYet(connecting) => connecting,
        };
        let socket = watch(connecting.socket, Interest::WRITABLE)?;
        loop {
            let mut guard = socket.writable().await?;
            sockopt::socket_error(socket.get_ref())??;
            match rustix::net::getpeername(socket.get_ref()) {
                Ok(_) => break,
                Err(Errno::NOTCONN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(socket.into_inner())
    }

    /// The socket, for writing to it without knowing whether it is connected.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

/// Where a message says that something happened.
pub(super) fn authority(host: &str, port: u16) -> String {
    Authority(host, port).to_string()
}
