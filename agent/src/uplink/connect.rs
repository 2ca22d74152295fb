//! One attempt to reach the aggregator: name, TCP, TLS, WebSocket upgrade, each with an error that says what to do.
//!
//! Retries nothing and logs nothing: the uplink decides.

use {
    super::{Token, endpoint::Endpoint},
    healthscope_service::{
        build,
        token::{self, TokenError},
    },
    healthscope_shared::{backoff::Backoff, one_line, wire},
    http::{Request, Response, StatusCode, header},
    rustix::{io::Errno, net::sockopt},
    rustls::{CertificateError, ClientConfig, pki_types::ServerName},
    std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration},
    tokio::{
        io::{AsyncRead, AsyncWrite},
        net::{TcpStream, lookup_host},
        time,
    },
    tokio_rustls::TlsConnector,
    tokio_tungstenite::{
        WebSocketStream, client_async_with_config,
        tungstenite::{
            self, error::ProtocolError, handshake::client::generate_key, protocol::WebSocketConfig,
        },
    },
};

/// How long one attempt may take in all. Long enough for an aggregator that takes ten thousand agents back, short
/// enough that a black hole does not hide a working second address for minutes.
pub(super) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(15);
/// How long one of several addresses may take to accept: the others want their turn.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(5);
/// The kernel drops a connection whose data has not been acknowledged for this long, or that did not answer keep-alive
/// probes: behind the session's own pings, for the case that this process hangs.
const KERNEL_DEADLINE: Duration = Duration::from_secs(30);
/// Most of a refusal's text that is shown.
const MAX_DETAIL_BYTES: usize = 200;
/// Both directions: the aggregator's messages are short, and ours are written whole from their own memory.
const BUFFER_BYTES: usize = 1024;
/// One message, its frame's head, and a pong or close that comes between.
const MAX_WRITE_BYTES: usize = wire::MAX_MESSAGE_BYTES + 1024;

/// A byte stream to an aggregator.
pub trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Stream for S {}

/// A WebSocket over any of them; boxed, so that plain and TLS share their code.
pub(super) type WebSocket = WebSocketStream<Box<dyn Stream>>;

/// Where one attempt goes, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address.
    pub endpoint: Endpoint,
    /// The name that the certificate must have, when that is not the endpoint's host.
    pub server_name: Option<String>,
    /// How to speak TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// Whether a connection without TLS may leave the machine.
    pub allow_plaintext: bool,
}

/// Opens byte streams; tests put something else in place of the network.
pub trait Dial: Send + Sync {
    /// Connects to the target, TLS included.
    fn dial(&self, target: &Target) -> impl Future<Output = Result<Box<dyn Stream>, ConnectError>> + Send;
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The agent cannot say who it is.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The name means nothing.
    #[error("cannot resolve {host}; check the name in the aggregator's URL and this machine's DNS")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The name has no address.
    #[error("{0} has no address; check the name in the aggregator's URL")]
    NoAddress(String),
    /// Would send token and results over a network in the clear.
    #[error(
        "{authority} is not this machine and ws:// is not encrypted; use wss://, or --allow-plaintext where the network is trusted"
    )]
    Plaintext {
        /// Host and port.
        authority: String,
    },
    /// Nothing to do with the aggregator.
    #[error("no file descriptor is free for a connection; raise the limit of this process (ulimit -n)")]
    NoDescriptor(#[source] io::Error),
    /// No TCP connection.
    #[error("cannot connect to {address}; check that the aggregator runs and listens there")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a name that a certificate can have.
    #[error("{0:?} is not a name that a certificate can have; say one with --server-name")]
    ServerName(String),
    /// The endpoint wants TLS and nobody said how.
    #[error("wss:// needs certificates to trust; name a CA file with --ca")]
    NoTls,
    /// No TLS session.
    #[error("no TLS with {authority}; {advice}")]
    Tls {
        /// Host and port.
        authority: String,
        /// What to do.
        advice: &'static str,
        /// What rustls said.
        #[source]
        source: io::Error,
    },
    /// Too slow.
    #[error("{authority} did not answer within {}s", ATTEMPT_DEADLINE.as_secs())]
    TimedOut {
        /// Host and port.
        authority: String,
    },
    /// An HTTP answer that is not an upgrade.
    #[error("{authority} refused this agent: {status}{detail}; {advice}")]
    Refused {
        /// Host and port.
        authority: String,
        /// HTTP status.
        status: StatusCode,
        /// What it said, with `: ` before it, or nothing.
        detail: String,
        /// What to do.
        advice: &'static str,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Something answers, but not an aggregator of a version that can be spoken to.
    #[error(
        "{authority} does not speak {}; check that it is a HealthScope aggregator of this version",
        wire::SUBPROTOCOL
    )]
    WrongProtocol {
        /// Host and port.
        authority: String,
    },
    /// No WebSocket for another reason.
    #[error("the WebSocket handshake with {authority} failed")]
    Handshake {
        /// Host and port.
        authority: String,
        /// What went wrong.
        #[source]
        source: tungstenite::Error,
    },
}

impl ConnectError {
    /// The kind, from a closed set, for a metric's label.
    #[must_use]
    pub const fn kind(&self) -> AttemptResult {
        match self {
            Self::Token(_) => AttemptResult::NoToken,
            Self::Resolve { .. }
            | Self::NoAddress(_)
            | Self::NoDescriptor(_)
            | Self::Connect { .. }
            | Self::TimedOut { .. } => AttemptResult::Unreachable,
            Self::Plaintext { .. } | Self::ServerName(_) | Self::NoTls | Self::Tls { .. } => {
                AttemptResult::Tls
            }
            Self::Refused { .. } | Self::WrongProtocol { .. } | Self::Handshake { .. } => {
                AttemptResult::Refused
            }
        }
    }

    /// How long the aggregator asks to be left alone; never longer than any spread that is obeyed.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => retry_after.map(|wait| wait.min(Backoff::MAX_SPREAD)),
            Self::Token(_)
            | Self::Resolve { .. }
            | Self::NoAddress(_)
            | Self::NoDescriptor(_)
            | Self::Plaintext { .. }
            | Self::Connect { .. }
            | Self::ServerName(_)
            | Self::NoTls
            | Self::Tls { .. }
            | Self::TimedOut { .. }
            | Self::WrongProtocol { .. }
            | Self::Handshake { .. } => None,
        }
    }
}

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// A WebSocket is up.
    Connected,
    /// The token file cannot be read.
    NoToken,
    /// No TCP connection, or no answer.
    Unreachable,
    /// No TLS, or none that may be used.
    Tls,
    /// An answer, but no upgrade.
    Refused,
}

impl AttemptResult {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::Connected,
        Self::NoToken,
        Self::Unreachable,
        Self::Tls,
        Self::Refused,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::NoToken => "no_token",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls_failed",
            Self::Refused => "refused",
        }
    }
}

/// Reaches the target and upgrades to a WebSocket.
pub(super) async fn connect(
    dialer: &impl Dial,
    target: Target,
    token: Token,
) -> Result<WebSocket, ConnectError> {
    let authority = target.endpoint.authority();
    match time::timeout(ATTEMPT_DEADLINE, attempt(dialer, &target, &token)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut { authority }),
    }
}

async fn attempt(dialer: &impl Dial, target: &Target, token: &Token) -> Result<WebSocket, ConnectError> {
    let request = upgrade_request(&target.endpoint, token)?;
    let stream = dialer.dial(target).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BYTES)
        .max_message_size(Some(wire::MAX_MESSAGE_BYTES))
        .max_frame_size(Some(wire::MAX_MESSAGE_BYTES));
    let authority = target.endpoint.authority();
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _response)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(refused(authority, &response)),
        Err(tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_))) => {
            Err(ConnectError::WrongProtocol { authority })
        }
        Err(source) => Err(ConnectError::Handshake { authority, source }),
    }
}

fn upgrade_request(endpoint: &Endpoint, token: &Token) -> Result<Request<()>, ConnectError> {
    let mut request = Request::builder()
        .uri(endpoint.to_string())
        .header(header::HOST, endpoint.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, wire::SUBPROTOCOL)
        .header(
            header::USER_AGENT,
            concat!("healthscope-agent/", env!("CARGO_PKG_VERSION")),
        );
    let secret = match token {
        Token::None => None,
        Token::Fixed(secret) => Some(secret.clone()),
        Token::File(path) => Some(token::read(path)?),
    };
    if let Some(secret) = secret {
        let mut value = http::HeaderValue::try_from(format!("Bearer {}", secret.expose()))
            .expect("a token is visible ASCII, as its reader checked");
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    debug_assert!(!build::VERSION.is_empty());
    Ok(request
        .body(())
        .expect("an endpoint is a URL, and header values are visible ASCII"))
}

fn refused(authority: String, response: &Response<Option<Vec<u8>>>) -> ConnectError {
    let status = response.status();
    let advice = match status {
        StatusCode::UNAUTHORIZED => "check the token that --token-file names",
        StatusCode::FORBIDDEN => "the aggregator knows this agent and does not want it; see its log",
        StatusCode::NOT_FOUND => "is the URL that of a HealthScope aggregator?",
        StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED => "is the aggregator of this version?",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            "it is busy and will be asked again"
        }
        _ => "is the URL that of a HealthScope aggregator, and is nothing else in between?",
    };
    let body = response.body().as_deref().unwrap_or_default();
    let detail = detail_of(body);
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    ConnectError::Refused {
        authority,
        status,
        detail: if detail.is_empty() {
            detail
        } else {
            format!(": {detail}")
        },
        advice,
        retry_after,
    }
}

/// What a refusal says, for a person: the `detail` or `title` of a problem document, or plain text.
fn detail_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: Option<String>,
        title: Option<String>,
    }

    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { detail, title }) => detail.or(title).unwrap_or_default(),
        // Half a document, since only what came with the head is there; or a proxy's page.
        Err(_) => match std::str::from_utf8(body) {
            Ok(text) if !text.contains(['<', '{']) => text.to_owned(),
            Ok(_) | Err(_) => String::new(),
        },
    };
    one_line(&text, MAX_DETAIL_BYTES)
}

/// The network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Dial for Network {
    async fn dial(&self, target: &Target) -> Result<Box<dyn Stream>, ConnectError> {
        let Target {
            endpoint,
            server_name,
            tls,
            allow_plaintext,
        } = target;
        let stream = connect_tcp(endpoint, endpoint.is_tls() || *allow_plaintext).await?;
        prepare(&stream);
        if !endpoint.is_tls() {
            return Ok(Box::new(stream));
        }
        let config = tls.clone().ok_or(ConnectError::NoTls)?;
        let name = server_name.as_deref().unwrap_or(endpoint.host());
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| ConnectError::ServerName(one_line(name, MAX_DETAIL_BYTES)))?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|source| ConnectError::Tls {
                authority: endpoint.authority(),
                advice: tls_advice(&source),
                source,
            })?;
        Ok(Box::new(stream))
    }
}

async fn connect_tcp(endpoint: &Endpoint, may_leave: bool) -> Result<TcpStream, ConnectError> {
    let addresses = lookup_host((endpoint.host(), endpoint.port()))
        .await
        .map_err(|source| {
            if is_shortage(&source) {
                return ConnectError::NoDescriptor(source);
            }
            ConnectError::Resolve {
                host: endpoint.host().to_owned(),
                source,
            }
        })?;
    let mut failure = ConnectError::NoAddress(endpoint.host().to_owned());
    for address in addresses {
        if !may_leave && !address.ip().is_loopback() {
            failure = ConnectError::Plaintext {
                authority: endpoint.authority(),
            };
            continue;
        }
        let source = match time::timeout(ADDRESS_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) if is_shortage(&source) => return Err(ConnectError::NoDescriptor(source)),
            Ok(Err(source)) => source,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        failure = ConnectError::Connect { address, source };
    }
    Err(failure)
}

/// Whether this process or the machine has no descriptor left.
fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE))
}

/// Small messages at once, and a kernel that notices a dead peer. None of it is needed for the session to work.
fn prepare(stream: &TcpStream) {
    let _belt_and_braces = stream
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(stream, KERNEL_DEADLINE / 2)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepintvl(stream, KERNEL_DEADLINE / 6)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepcnt(stream, 3)?))
        .and_then(|()| {
            let millis = u32::try_from(KERNEL_DEADLINE.as_millis()).unwrap_or(u32::MAX);
            Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
        });
}

fn tls_advice(error: &io::Error) -> &'static str {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by nobody trusted here: name the right CA file with --ca"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: use that in the URL, or say it with --server-name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, or this machine's clock is wrong"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or this machine's clock is wrong"
            }
            _ => "its certificate cannot be used",
        },
        Some(rustls::Error::InvalidMessage(_)) => "does it speak TLS? a port without TLS is written ws://",
        Some(_) => "both sides must agree on TLS 1.2 or 1.3",
        None => "the connection broke during the handshake: does it speak TLS?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refusal(status: u16, headers: &[(&str, &str)], body: &str, expected: &str) -> Option<Duration> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(Some(body.as_bytes().to_vec())).unwrap();
        let error = refused("scope:7575".to_owned(), &response);
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), AttemptResult::Refused);
        error.retry_after()
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        check_refusal(
            401,
            &[],
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the token is not known"}"#,
            "scope:7575 refused this agent: 401 Unauthorized: the token is not known; check the token that --token-file names",
        );
        check_refusal(
            403,
            &[],
            "go away\r\n\u{1b}[31m",
            "scope:7575 refused this agent: 403 Forbidden: go away \u{fffd}[31m; the aggregator knows this agent and does not want it; see its log",
        );
        check_refusal(
            404,
            &[],
            "<html><body>nginx</body></html>",
            "scope:7575 refused this agent: 404 Not Found; is the URL that of a HealthScope aggregator?",
        );
    }

    #[test]
    fn retry_after_is_obeyed_up_to_the_longest_spread() {
        let busy =
            "scope:7575 refused this agent: 503 Service Unavailable; it is busy and will be asked again";
        assert_eq!(check_refusal(503, &[], "", busy), None);
        assert_eq!(
            check_refusal(503, &[("retry-after", "7")], "", busy),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            check_refusal(503, &[("retry-after", "86400")], "", busy),
            Some(Backoff::MAX_SPREAD)
        );
        assert_eq!(check_refusal(503, &[("retry-after", "tomorrow")], "", busy), None);
    }

    #[test]
    fn a_request_names_protocol_and_token() {
        let endpoint: Endpoint = "wss://[::1]:7575".parse().unwrap();
        let token = Token::Fixed(healthscope_service::token::Secret::new("hush"));
        let request = upgrade_request(&endpoint, &token).unwrap();
        let header = |name| request.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("host"), "[::1]:7575");
        assert_eq!(header("sec-websocket-protocol"), "healthscope.v1");
        assert_eq!(header("authorization"), "Bearer hush");
        assert!(!format!("{request:?}").contains("hush"));
        let request = upgrade_request(&endpoint, &Token::None).unwrap();
        assert!(request.headers().get("authorization").is_none());
    }

    #[test]
    fn a_missing_token_file_is_named() {
        let endpoint: Endpoint = "ws://localhost:1".parse().unwrap();
        let error = upgrade_request(&endpoint, &Token::File("/nowhere/token".into())).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the token file /nowhere/token");
        assert_eq!(error.kind(), AttemptResult::NoToken);
    }

    #[tokio::test]
    async fn plaintext_stays_on_this_machine() {
        let endpoint: Endpoint = "ws://192.0.2.1:1".parse().unwrap();
        let error = connect_tcp(&endpoint, false).await.unwrap_err();
        assert!(
            error.to_string().starts_with("192.0.2.1:1 is not this machine"),
            "{error}"
        );
    }
}
