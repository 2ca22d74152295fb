//! From a listening socket to HTTP connections: accept, TLS, deadlines, and how many at once.
//!
//! Knows nothing of routes: each request goes to what [`Answer`]s. The loop survives every error of accept, running out of
//! descriptors among them.

use {
    crate::{
        config::{Limits, Timing},
        metrics::ConnectionMetrics,
        stream::Stream,
    },
    axum::response::Response,
    healthscope_service::tasks::Tasks,
    hyper::{Request, body::Incoming, server::conn::http1, service::service_fn},
    hyper_util::rt::{TokioIo, TokioTimer},
    prometheus::IntGauge,
    socket2::{Domain, Protocol, SockRef, Socket, Type},
    std::{
        collections::HashMap,
        convert::Infallible,
        io,
        net::{IpAddr, SocketAddr},
        pin::pin,
        sync::{
            Arc, Mutex, MutexGuard, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, Instant},
    },
    tokio::{
        net::{TcpListener, TcpStream},
        sync::Notify,
        time,
    },
    tokio_rustls::TlsAcceptor,
    tokio_util::sync::CancellationToken,
};

/// Connections that the kernel completes before we accept them: thousands of agents come back at once after a restart.
/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

/// The read buffer of a connection, and with it the longest request head; hyper takes no less.
const BUFFER_BYTES: usize = 8 * 1024;

/// Header lines in a request; browsers send two dozen.
const MAX_HEADERS: usize = 64;

/// Pauses after failed accepts, doubling from the first to the last, so that the loop does not spin.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

/// How often a lasting trouble is reported.
const REPORT_PERIOD: Duration = Duration::from_secs(30);

/// Binds `address`. An IPv6 wildcard takes IPv4 too.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    pub(crate) peer: SocketAddr,
    pub(crate) is_tls: bool,
}

/// What is behind a listener.
pub(crate) trait Answer: Send + Sync + 'static {
    /// Answers a request, whatever it is.
    fn answer(
        self: Arc<Self>,
        from: From,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response> + Send;
}

/// What every connection needs.
pub(crate) struct Server<A> {
    pub(crate) site: Arc<A>,
    pub(crate) acceptor: Option<TlsAcceptor>,
    pub(crate) places: Arc<Places>,
    pub(crate) deadlines: Deadlines,
    pub(crate) metrics: ConnectionMetrics,
    pub(crate) tasks: Tasks,
    /// Ends the loop; connections end with their present answer.
    pub(crate) stop: CancellationToken,
}

/// How long a peer may take for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// For the TLS handshake, and again for its first request.
    pub(crate) handshake: Duration,
    /// For the head of a request, and between two.
    pub(crate) header: Duration,
    /// To acknowledge what we send.
    pub(crate) write: Duration,
}

impl Deadlines {
    pub(crate) const fn new(timing: &Timing) -> Self {
        Self {
            handshake: timing.handshake,
            header: timing.header,
            write: timing.write,
        }
    }
}

impl<A: Answer> Server<A> {
    /// Accepts connections until told to stop.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let stop = self.stop.clone();
        let mut trouble = Trouble::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel-safe, both.
                () = self.places.room() => {}
            }
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    trouble.is_over();
                    self.metrics.accepted.inc();
                    self.welcome(stream, peer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    let pause = trouble.pause(&error);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Some(place) = self.places.take(peer.ip()) else {
            // Closing with a reset costs us nothing more; an answer could be held up by a peer that never reads.
            self.metrics.over_limit.inc();
            return;
        };
        set_options(&stream, self.deadlines.write);
        let server = self.clone();
        self.tasks.spawn_small("connection", async move {
            Box::pin(server.converse(stream, peer, place)).await;
        });
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) {
        let stream = match &self.acceptor {
            None => Stream::Plain(stream),
            Some(acceptor) => match time::timeout(self.deadlines.handshake, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    self.metrics.tls_errors.inc();
                    tracing::debug!(%peer, %error, "a TLS handshake failed");
                    return;
                }
                Err(_) => {
                    self.metrics.tls_errors.inc();
                    tracing::debug!(%peer, "a TLS handshake took too long");
                    return;
                }
            },
        };
        self.serve(stream, peer).await;
        drop(place);
    }

    async fn serve(&self, stream: Stream, peer: SocketAddr) {
        let from = From {
            peer,
            is_tls: self.acceptor.is_some(),
        };
        let site = &self.site;
        let has_asked = AtomicBool::new(false);
        let service = service_fn(|request: Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            let answer = site.clone().answer(from, request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.deadlines.header)
            .max_buf_size(BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let silence = async {
            time::sleep(self.deadlines.handshake).await;
            if has_asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = silence => {
                tracing::debug!(%peer, "nothing was asked in time");
                return;
            }
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "an HTTP connection failed");
        }
    }
}

/// Small answers go out at once, and a peer that does not acknowledge or read what we sent is given up by the kernel,
/// whatever state we are in.
fn set_options(stream: &TcpStream, write_deadline: Duration) {
    let socket = SockRef::from(stream);
    // Both fail only on a connection that is gone already, which the first read says too.
    let _is_gone = socket.set_tcp_nodelay(true);
    let _is_gone = socket.set_tcp_user_timeout(Some(write_deadline));
}

/// Errors of a connection that ended before it was accepted (accept(2)); the next one has nothing to do with it.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// A lasting failure of accept: told when it begins, once a period, and when it is over.
#[derive(Default)]
struct Trouble {
    failures: usize,
    reported: Option<Instant>,
}

impl Trouble {
    fn pause(&mut self, error: &io::Error) -> Duration {
        let pause = PAUSES[self.failures.min(PAUSES.len() - 1)];
        self.failures += 1;
        let is_due = self
            .reported
            .is_none_or(|reported| reported.elapsed() >= REPORT_PERIOD);
        if is_due {
            self.reported = Some(Instant::now());
            tracing::error!(
                %error,
                failures = self.failures,
                "cannot accept connections; trying again (out of descriptors? raise the limit of open files)"
            );
        }
        pause
    }

    fn is_over(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "accepting connections again");
            *self = Self::default();
        }
    }
}

/// Places for connections that are not agents' (or not yet), in all and by address.
///
/// Loopback counts in all, but not by address: ten thousand agents of a test, or a proxy on this machine, all come from
/// there.
pub(crate) struct Places {
    total: usize,
    per_address: usize,
    taken: Mutex<Taken>,
    freed: Notify,
    gauge: IntGauge,
}

#[derive(Default)]
struct Taken {
    total: usize,
    /// Bounded by `total`: an address is here while it has a place.
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place; given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
}

impl Places {
    pub(crate) fn new(limits: &Limits, gauge: IntGauge) -> Arc<Self> {
        Self::of(limits.connections, limits.connections_per_address, gauge)
    }

    /// So many in all and from one address.
    pub(crate) fn of(total: usize, per_address: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            gauge,
            total,
            per_address,
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Waits until a place is free. Cancel-safe.
    async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.lock().total < self.total {
                return;
            }
            freed.await;
        }
    }

    /// Takes a place for `address`, or `None` when the address has its share.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let counted = (!address.is_loopback()).then_some(address);
        let mut taken = self.lock();
        if let Some(address) = counted {
            let of_address = taken.by_address.entry(address).or_default();
            if *of_address >= self.per_address {
                return None;
            }
            *of_address += 1;
        }
        taken.total += 1;
        drop(taken);
        self.gauge.inc();
        Some(Place {
            places: self.clone(),
            address: counted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // No code that could panic runs under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(address) = self.address
            && let Some(of_address) = taken.by_address.get_mut(&address)
        {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&address);
            }
        }
        drop(taken);
        self.places.gauge.dec();
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(total: usize, per_address: usize) -> Arc<Places> {
        let limits = Limits {
            connections: total,
            connections_per_address: per_address,
            ..Limits::default()
        };
        Places::new(&limits, IntGauge::new("open", "Open ones.").unwrap())
    }

    #[test]
    fn an_address_has_its_share_and_loopback_all() {
        let places = places(100, 2);
        let stranger: IpAddr = "192.0.2.7".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        let held = [places.take(stranger), places.take(mapped)];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(stranger).is_none(), "the share is used up");
        assert!(
            places.take("192.0.2.8".parse().unwrap()).is_some(),
            "others have their own"
        );
        let local: Vec<_> = (0..50)
            .map(|_| places.take("127.0.0.1".parse().unwrap()))
            .collect();
        assert!(local.iter().all(Option::is_some));
        drop(held);
        assert!(places.take(stranger).is_some(), "given back");
    }

    #[tokio::test]
    async fn a_freed_place_lets_the_loop_go_on() {
        let places = places(1, 1);
        let place = places.take("127.0.0.1".parse().unwrap()).unwrap();
        let waiting = {
            let places = places.clone();
            tokio::spawn(async move { places.room().await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(place);
        waiting.await.unwrap();
        assert_eq!(places.lock().total, 0);
    }

    #[test]
    fn trouble_pauses_longer_and_starts_anew() {
        let error = io::Error::from(io::ErrorKind::OutOfMemory);
        let mut trouble = Trouble::default();
        let pauses: Vec<_> = (0..6).map(|_| trouble.pause(&error)).collect();
        assert_eq!(pauses[..4], PAUSES);
        assert_eq!(pauses[5], PAUSES[3]);
        trouble.is_over();
        assert_eq!(trouble.pause(&error), PAUSES[0]);
    }
}
