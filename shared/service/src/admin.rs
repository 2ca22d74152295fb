//! A small endpoint for a process's own health and metrics, on TCP or a Unix socket: `/livez`, `/readyz`, `/metrics` and
//! what the caller adds.
//!
//! Answers only GET and HEAD, asks nobody for a token and decides nothing: where it listens is the caller's choice. One
//! request a connection, so that a forgotten one holds its place for [`CONNECTION_DEADLINE`] at most.

use {
    bytes::Bytes,
    futures_util::{FutureExt, future::BoxFuture},
    http_body_util::Full,
    hyper::{
        Method, Request, Response, StatusCode,
        body::Incoming,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
        server::conn::http1,
        service::service_fn,
    },
    hyper_util::rt::{TokioIo, TokioTimer},
    std::{
        collections::BTreeMap,
        convert::Infallible,
        fmt, fs, io,
        net::SocketAddr,
        os::unix::fs::FileTypeExt,
        path::{Path, PathBuf},
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::Duration,
    },
    tokio::{
        io::{AsyncRead, AsyncWrite},
        net::{TcpListener, TcpStream, UnixListener, UnixStream},
        task::JoinSet,
        time,
    },
    tokio_util::sync::CancellationToken,
};

/// Connections served at once. A kubelet, a scraper and a person or two use it; the next ones wait in the listener's
/// backlog.
pub const MAX_CONNECTIONS: usize = 32;

/// How long a client may take to send its request's head.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may live in all, so that a client that never reads cannot hold a place for ever.
pub const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// The read buffer of a connection, and with it the longest request head; hyper takes no less.
const BUFFER_BYTES: usize = 8 * 1024;

/// Header lines in a request.
const MAX_HEADERS: usize = 64;

/// Pause after a failed accept (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a process must have before it is ready; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

impl Readiness {
    /// Makes a readiness without conditions, which is ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that does not hold yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            readiness: self.clone(),
            name,
        };
        condition.set(false);
        condition
    }

    /// Says whether every condition holds.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|holds| *holds)
    }

    /// Names the conditions that do not hold.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock()
            .iter()
            .filter(|(_, holds)| !**holds)
            .map(|(name, _)| *name)
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, bool>> {
        // No code that could panic runs under the lock.
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that must hold before the process is ready, such as a bound listener. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Condition {
    readiness: Readiness,
    name: &'static str,
}

impl Condition {
    /// Says that it holds.
    pub fn ready(&self) {
        self.set(true);
    }

    /// Says that it does not hold, or no longer.
    pub fn not_ready(&self) {
        self.set(false);
    }

    fn set(&self, holds: bool) {
        self.readiness.lock().insert(self.name, holds);
    }
}

/// Where the endpoint listens.
#[derive(Debug)]
pub enum Listener {
    /// A bound TCP socket.
    Tcp(TcpListener),
    /// A bound Unix socket.
    Unix(UnixSocket),
}

/// A Unix socket whose file goes when it does.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Nothing depends on it: the next start removes what is left.
        let _already_gone = fs::remove_file(&self.path);
    }
}

/// Why the endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TCP address cannot be bound.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The socket file cannot be made.
    #[error("cannot listen on the socket {}", path.display())]
    Unix {
        /// The socket's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process answers there.
    #[error("another process listens on the socket {}", path.display())]
    InUse {
        /// The socket's file.
        path: PathBuf,
    },
    /// Something that is no socket is in the way; it is left alone.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
}

impl Listener {
    /// Binds a TCP address.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError::Tcp { address, source })?;
        Ok(Self::Tcp(listener))
    }

    /// Binds a Unix socket at `path`, removing one that a killed process left behind. The file's mode is the umask's.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let unix_error = |source| ListenError::Unix {
            path: path.into(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.into() });
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(ListenError::InUse { path: path.into() });
                }
                fs::remove_file(path).map_err(unix_error)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unix_error(error)),
        }
        let listener = UnixListener::bind(path).map_err(unix_error)?;
        Ok(Self::Unix(UnixSocket {
            listener,
            path: path.into(),
        }))
    }

    /// Returns the bound TCP address, with the port the system chose.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Connection::Tcp(stream)),
            Self::Unix(socket) => socket
                .listener
                .accept()
                .await
                .map(|(stream, _)| Connection::Unix(stream)),
        }
    }
}

enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A body with its content type.
pub type Page = (&'static str, String);

type Pages = dyn Fn(&str) -> Option<Page> + Send + Sync;
type AskedPage = dyn Fn() -> BoxFuture<'static, Option<Page>> + Send + Sync;
type Metrics = dyn Fn() -> String + Send + Sync;

/// What the endpoint answers; clones share it.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    pages: Arc<Pages>,
    asked: Vec<(&'static str, Arc<AskedPage>)>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Admin")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Makes an endpoint for a process with this readiness, without metrics or further pages.
    pub fn new(readiness: Readiness) -> Self {
        Self {
            readiness,
            metrics: Arc::new(String::new),
            pages: Arc::new(|_| None),
            asked: Vec::new(),
        }
    }

    /// Sets what `/metrics` answers: the Prometheus text format. Called for each request, on the runtime's thread.
    #[must_use]
    pub fn metrics(mut self, metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Arc::new(metrics);
        self
    }

    /// Adds pages: called with a path that is none of the fixed ones; `None` is 404.
    #[must_use]
    pub fn pages(mut self, pages: impl Fn(&str) -> Option<Page> + Send + Sync + 'static) -> Self {
        self.pages = Arc::new(pages);
        self
    }

    /// Adds one page that another task has to be asked for; 503 when that gives `None`. Pages set here win over those of
    /// [`Admin::pages`].
    #[must_use]
    pub fn asked_page<F, A>(mut self, path: &'static str, ask: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Option<Page>> + Send + 'static,
    {
        self.asked.push((path, Arc::new(move || ask().boxed())));
        self
    }

    /// Serves `listener` until `shutdown`, then drops the open connections. Never ends before.
    pub async fn serve(self, listener: Listener, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        let mut accept_failed = false;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                // Cancel-safe, both; a panic of a page ends its own connection alone.
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok(connection) => {
                        accept_failed = false;
                        connections.spawn(self.clone().converse(connection));
                    }
                    Err(error) => {
                        if !accept_failed {
                            tracing::warn!(%error, "cannot accept a connection on the health endpoint");
                        }
                        accept_failed = true;
                        tokio::select! {
                            () = shutdown.cancelled() => return,
                            () = time::sleep(ACCEPT_PAUSE) => {}
                        }
                    }
                },
            }
        }
    }

    async fn converse(self, connection: Connection) {
        match connection {
            Connection::Tcp(stream) => self.serve_stream(stream).await,
            Connection::Unix(stream) => self.serve_stream(stream).await,
        }
    }

    async fn serve_stream<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(request.method(), request.uri().path()).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match time::timeout(CONNECTION_DEADLINE, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection to the health endpoint failed"),
            Err(_) => tracing::debug!("a connection to the health endpoint took too long"),
        }
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = respond(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET and HEAD\n".to_owned(),
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if let Some((_, ask)) = self.asked.iter().find(|(asked, _)| *asked == path) {
            return match ask().await {
                Some((content_type, body)) => respond(StatusCode::OK, content_type, body),
                None => respond(
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    "shutting down\n".to_owned(),
                ),
            };
        }
        match path {
            // That this runs at all is the proof: the loop turned.
            "/livez" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => {
                let missing = self.readiness.missing();
                if missing.is_empty() {
                    respond(StatusCode::OK, TEXT, "ok\n".to_owned())
                } else {
                    let body = format!("not ready: {}\n", missing.join(", "));
                    respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
                }
            }
            "/metrics" => respond(StatusCode::OK, PROMETHEUS_TEXT, (self.metrics)()),
            _ => match (self.pages)(path) {
                Some((content_type, body)) => respond(StatusCode::OK, content_type, body),
                None => respond(StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
            },
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        tokio::io::{AsyncReadExt, AsyncWriteExt},
    };

    struct Served {
        address: SocketAddr,
        readiness: Readiness,
        shutdown: CancellationToken,
        server: tokio::task::JoinHandle<()>,
    }

    async fn serve() -> Served {
        let readiness = Readiness::new();
        let shutdown = CancellationToken::new();
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.tcp_address().unwrap();
        let server = tokio::spawn(example(&readiness).serve(listener, shutdown.clone()));
        Served {
            address,
            readiness,
            shutdown,
            server,
        }
    }

    fn example(readiness: &Readiness) -> Admin {
        Admin::new(readiness.clone())
            .metrics(|| "up 1\n".to_owned())
            .asked_page("/asked", || async { Some((TEXT, "answered\n".to_owned())) })
            .asked_page("/unanswered", || async { None })
            .pages(|path| match path {
                "/status" => Some(("application/json", "{}".to_owned())),
                "/broken" => panic!("a page's bug"),
                _ => None,
            })
    }

    async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    impl Served {
        async fn ask(&self, request_line: &str) -> String {
            let stream = TcpStream::connect(self.address).await.unwrap();
            exchange(stream, &format!("{request_line} HTTP/1.1\r\nhost: x\r\n\r\n")).await
        }

        async fn check(&self, request_line: &str, status: &str, body: &str) {
            let answer = self.ask(request_line).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        }
    }

    #[tokio::test]
    async fn fixed_paths_and_pages_are_answered() {
        let served = serve().await;
        served.check("GET /livez", "200", "ok\n").await;
        served.check("GET /readyz?verbose", "200", "ok\n").await;
        served.check("GET /metrics", "200", "up 1\n").await;
        served.check("HEAD /metrics", "200", "").await;
        served.check("GET /status", "200", "{}").await;
        served.check("GET /asked", "200", "answered\n").await;
        served.check("GET /unanswered", "503", "shutting down\n").await;
        served.check("GET /nothing", "404", "not found\n").await;
        served.check("POST /livez", "405", "only GET and HEAD\n").await;
        assert!(served.ask("POST /livez").await.contains("allow: GET, HEAD"));
        assert!(
            served
                .ask("GET /status")
                .await
                .contains("content-type: application/json")
        );
    }

    #[tokio::test]
    async fn readyz_names_what_is_missing() {
        let served = serve().await;
        let listener = served.readiness.condition("listener");
        let store = served.readiness.condition("store");
        served
            .check("GET /readyz", "503", "not ready: listener, store\n")
            .await;
        listener.ready();
        served.check("GET /readyz", "503", "not ready: store\n").await;
        store.ready();
        assert!(served.readiness.is_ready());
        served.check("GET /readyz", "200", "ok\n").await;
        store.not_ready();
        served.check("GET /readyz", "503", "not ready: store\n").await;
    }

    #[tokio::test]
    async fn panic_of_a_page_harms_only_its_connection() {
        let served = serve().await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream
            .write_all(b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let _reset_or_end = stream.read_to_string(&mut answer).await;
        assert_eq!(answer, "");
        served.check("GET /livez", "200", "ok\n").await;
    }

    #[tokio::test]
    async fn garbage_and_long_heads_are_refused() {
        let served = serve().await;
        let stream = TcpStream::connect(served.address).await.unwrap();
        assert!(
            exchange(stream, "\u{1}\u{2}\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 400")
        );
        let stream = TcpStream::connect(served.address).await.unwrap();
        let head = format!(
            "GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n",
            "x".repeat(2 * BUFFER_BYTES)
        );
        let (mut read, mut write) = stream.into_split();
        let writing = tokio::spawn(async move { write.write_all(head.as_bytes()).await });
        let mut answer = Vec::new();
        let _reset_or_end = read.read_to_end(&mut answer).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 431"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        let _refused_or_not = writing.await.unwrap();
        served.check("GET /livez", "200", "ok\n").await;
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_is_dropped_after_the_header_deadline() {
        let (near, far) = tokio::io::duplex(64);
        let started = time::Instant::now();
        let serving = tokio::spawn(example(&Readiness::new()).serve_stream(far));
        let mut near = near;
        near.write_all(b"GET /livez HT").await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        serving.await.unwrap();
        assert_eq!(started.elapsed().as_secs(), HEADER_DEADLINE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_never_reads_is_dropped_after_the_connection_deadline() {
        let (mut near, far) = tokio::io::duplex(64);
        let started = time::Instant::now();
        let admin = Admin::new(Readiness::new()).metrics(|| "x".repeat(1 << 20));
        let serving = tokio::spawn(admin.serve_stream(far));
        near.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        serving.await.unwrap();
        assert_eq!(started.elapsed().as_secs(), CONNECTION_DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn connection_beyond_the_limit_waits_for_a_place() {
        let served = serve().await;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(served.address).await.unwrap());
        }
        let mut waiting = TcpStream::connect(served.address).await.unwrap();
        waiting
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        // Everything is on this thread: were it served, these turns would be more than enough.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let early = waiting.try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        drop(idle.remove(0));
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn shutdown_ends_serving_with_connections_open() {
        let served = serve().await;
        let _idle = TcpStream::connect(served.address).await.unwrap();
        served.check("GET /livez", "200", "ok\n").await;
        served.shutdown.cancel();
        served.server.await.unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }

    #[tokio::test]
    async fn unix_socket_is_served_and_removed_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let shutdown = CancellationToken::new();
        let listener = Listener::unix(&path).await.unwrap();
        let server = tokio::spawn(example(&Readiness::new()).serve(listener, shutdown.clone()));
        let stream = UnixStream::connect(&path).await.unwrap();
        assert!(
            exchange(stream, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .ends_with("ok\n")
        );
        assert!(matches!(
            Listener::unix(&path).await,
            Err(ListenError::InUse { .. })
        ));
        shutdown.cancel();
        server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::unix(&path).await.unwrap();
        drop(listener);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::unix(&path).await,
            Err(ListenError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = directory.path().join("no/agent.sock");
        assert!(matches!(
            Listener::unix(&nowhere).await,
            Err(ListenError::Unix { .. })
        ));
    }
}
