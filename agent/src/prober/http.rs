//! HTTP checks: one GET on a new connection, redirects followed while the host stays the same.
//!
//! One HTTP/1.1 request that says `Connection: close`, written at once; one answer, read as far as it decides the check:
//! to the end of the head when the status is no success, to the end of the body or its first 10 KiB when it is. No proxy,
//! no compression, no keep-alive, no cookies, as in the kubelet. Unlike the kubelet, a body that stalls or breaks off is a
//! failure, and the connection is closed by reset.
//!
//! Plain HTTP goes to the socket directly and uses `httparse`: hyper's connection costs about as much again as the
//! system calls themselves (`docs/performance.md`, bench `checks`). TLS goes through tokio.

use {
    super::{
        Deadline, Found, Probers,
        connect::{Connecting, connect_failed},
    },
    crate::watch::watch,
    healthscope_shared::{
        health::Reason,
        probe::{HttpGetAction, Scheme},
    },
    http::{HeaderName, StatusCode, header},
    redirect::{Destination, Target},
    response::{Expect, Malformed, Response, ResponseReader},
    rustix::{
        io::Errno,
        net::{RecvFlags, SendFlags, sockopt},
    },
    std::{
        io,
        net::{IpAddr, SocketAddr},
        os::fd::OwnedFd,
        sync::atomic::{AtomicU8, Ordering::Relaxed},
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
        time::timeout_at,
    },
};

mod redirect;
mod response;

/// Most redirects followed; the next one fails the check.
const MAX_REDIRECTS: usize = 10;
/// One read of a plain connection: most health endpoints answer in less.
const READ_BYTES: usize = 4 * 1024;

/// How far an exchange is: what a timeout says.
struct Phase(AtomicU8);

impl Phase {
    const CONNECT: u8 = 0;
    const HEAD: u8 = 1;
    const BODY: u8 = 2;

    fn set(&self, phase: u8) {
        self.0.store(phase, Relaxed);
    }

    fn missed(&self) -> &'static str {
        match self.0.load(Relaxed) {
            Self::CONNECT => "no connection",
            Self::HEAD => "no answer",
            _ => "body not complete",
        }
    }
}

/// Why an exchange gave no response.
enum Failed {
    Found(Found),
    Io(io::Error),
    Malformed(Malformed),
}

impl From<Malformed> for Failed {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<Found> for Failed {
    fn from(found: Found) -> Self {
        Self::Found(found)
    }
}

impl Failed {
    fn found(self) -> Found {
        match self {
            Self::Found(found) => found,
            Self::Io(error) => Found::io(&error, "read the answer"),
            Self::Malformed(malformed) => Found::failure(malformed.reason(), malformed.to_string()),
        }
    }
}

impl Probers {
    pub(super) async fn http(&self, action: &HttpGetAction, deadline: Deadline) -> Found {
        let phase = Phase(AtomicU8::new(Phase::CONNECT));
        let exchange = self.exchange(action, Target::of(action), true, &phase, deadline);
        let first = match timeout_at(deadline.at, exchange).await {
            Ok(Ok(response)) => response,
            Ok(Err(failed)) => return failed.found(),
            Err(_) => return deadline.passed(phase.missed()),
        };
        if !is_followed(action, &first) {
            return verdict(action, &first);
        }
        match timeout_at(
            deadline.at,
            Box::pin(self.follow(action, first, &phase, deadline)),
        )
        .await
        {
            Ok(found) => found,
            Err(_) => deadline.passed(phase.missed()),
        }
    }

    /// Follows redirects from `response` on.
    async fn follow(
        &self,
        action: &HttpGetAction,
        mut response: Response,
        phase: &Phase,
        deadline: Deadline,
    ) -> Found {
        let mut target = Target::of(action);
        let mut keeps_host = true;
        for _ in 0..MAX_REDIRECTS {
            let location = response.location.as_deref().unwrap_or_default();
            target = match target.redirected(location) {
                Ok(Destination::Same(next, relative)) => {
                    // As Go's client does: a custom host survives relative redirects only.
                    keeps_host &= relative;
                    next
                }
                Ok(Destination::Elsewhere(host)) => return elsewhere(action, &response, &host),
                Err(error) => return Found::failure(Reason::BAD_RESPONSE, error.to_string()),
            };
            phase.set(Phase::CONNECT);
            response = match self
                .exchange(action, target.clone(), keeps_host, phase, deadline)
                .await
            {
                Ok(response) => response,
                Err(failed) => return failed.found(),
            };
            if !is_followed(action, &response) {
                return verdict(action, &response);
            }
        }
        Found::failure(
            Reason::TOO_MANY_REDIRECTS,
            format!("more than {MAX_REDIRECTS} redirects"),
        )
    }

    /// One request and its answer on a new connection.
    async fn exchange(
        &self,
        action: &HttpGetAction,
        target: Target,
        keeps_host: bool,
        phase: &Phase,
        deadline: Deadline,
    ) -> Result<Response, Failed> {
        let request = request(action, &target, keeps_host);
        let mut reader = ResponseReader::new(Expect::of(action));
        let Target {
            scheme, host, port, ..
        } = &target;
        match (scheme, host.parse::<IpAddr>()) {
            (Scheme::Http, Ok(ip)) => {
                let address = SocketAddr::new(ip, *port);
                let socket = Connecting::start(address).map_err(|error| connect_failed(&error, address))?;
                let socket = socket.into_socket();
                // On a local target the handshake is over by now, and one packet carries its end and the request.
                let sent = match rustix::net::send(&socket, &request, SendFlags::NOSIGNAL) {
                    Ok(sent) => sent,
                    Err(Errno::AGAIN) => 0,
                    Err(error) => return Err(connect_failed(&error.into(), address).into()),
                };
                if sent == request.len() {
                    phase.set(Phase::HEAD);
                    let socket = watch(socket, Interest::READABLE)?;
                    return receive(socket, reader, phase).await;
                }
                Box::pin(send_slowly(socket, address, &request[sent..], reader, phase)).await
            }
            (Scheme::Http, Err(_)) => {
                let socket = self.connect(host, *port, deadline).await?;
                Box::pin(exchange_plain(socket, &request, reader, phase)).await
            }
            (Scheme::Https, _) => {
                Box::pin(async {
                    let socket = self.connect(host, *port, deadline).await?;
                    let mut stream = self.handshake(socket, host, action.verify_tls, deadline).await?;
                    stream.write_all(&request).await?;
                    phase.set(Phase::HEAD);
                    let mut buffer = vec![0; READ_BYTES];
                    loop {
                        let count = match stream.read(&mut buffer).await {
                            Ok(count) => count,
                            // Closed without TLS's own goodbye: the framing of HTTP decides whether that matters.
                            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                            Err(error) => return Err(error.into()),
                        };
                        if take(&mut reader, &buffer[..count], phase)? {
                            return Ok(reader.into_response());
                        }
                    }
                })
                .await
            }
        }
    }
}

/// Waits for the connection, then sends and receives.
async fn send_slowly(
    socket: OwnedFd,
    address: SocketAddr,
    request: &[u8],
    reader: ResponseReader<'_>,
    phase: &Phase,
) -> Result<Response, Failed> {
    let socket = watch(socket, Interest::WRITABLE)?;
    let mut sent = 0;
    while sent < request.len() {
        let mut guard = socket.writable().await?;
        if let Err(error) = sockopt::socket_error(socket.get_ref())? {
            return Err(connect_failed(&error.into(), address).into());
        }
        match guard.try_io(|socket| {
            rustix::net::send(socket.get_ref(), &request[sent..], SendFlags::NOSIGNAL).map_err(Into::into)
        }) {
            Ok(count) => {
                sent += count?;
                phase.set(Phase::HEAD);
            }
            Err(_would_block) => {}
        }
    }
    let socket = watch(socket.into_inner(), Interest::READABLE)?;
    receive(socket, reader, phase).await
}

/// Sends and receives on a connected socket.
async fn exchange_plain(
    socket: OwnedFd,
    request: &[u8],
    reader: ResponseReader<'_>,
    phase: &Phase,
) -> Result<Response, Failed> {
    let peer = rustix::net::getpeername(&socket)?;
    let address = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let address = address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    send_slowly(socket, address, request, reader, phase).await
}

/// Reads until the answer is decided.
async fn receive(
    socket: AsyncFd<OwnedFd>,
    mut reader: ResponseReader<'_>,
    phase: &Phase,
) -> Result<Response, Failed> {
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| receive_once(socket.get_ref(), &mut reader, phase)) {
            Ok(decided) => {
                if decided?? {
                    return Ok(reader.into_response());
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// One read into a buffer on the stack, so that a waiting run holds none.
fn receive_once(
    socket: &OwnedFd,
    reader: &mut ResponseReader<'_>,
    phase: &Phase,
) -> io::Result<Result<bool, Malformed>> {
    let mut buffer = [0; READ_BYTES];
    let (count, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
    Ok(take(reader, &buffer[..count], phase))
}

/// Hands what was read to the reader; `true` when the answer is decided.
fn take(reader: &mut ResponseReader<'_>, bytes: &[u8], phase: &Phase) -> Result<bool, Malformed> {
    if bytes.is_empty() {
        reader.end()?;
        return Ok(true);
    }
    let decided = reader.feed(bytes)?;
    if reader.has_head() {
        phase.set(Phase::BODY);
    }
    Ok(decided)
}

/// The request, as the kubelet and Go's client would write it.
fn request(action: &HttpGetAction, target: &Target, keeps_host: bool) -> Vec<u8> {
    let first = |name: &HeaderName| {
        let found = action.headers.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_bytes())
    };
    let mut request = Vec::with_capacity(256);
    let mut line = |name: &str, value: &[u8]| {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    line("GET ", &[target.path.as_bytes(), b" HTTP/1.1"].concat());
    match first(&header::HOST).filter(|host| keeps_host && !host.is_empty()) {
        Some(host) => line("Host: ", host),
        None => line("Host: ", target.authority().as_bytes()),
    }
    let user_agent = first(&header::USER_AGENT).unwrap_or(super::USER_AGENT.as_bytes());
    if !user_agent.is_empty() {
        line("User-Agent: ", user_agent);
    }
    if first(&header::ACCEPT).is_none() {
        line("Accept: ", b"*/*");
    }
    line("Connection: ", b"close");
    for (name, value) in &action.headers {
        // An empty Accept removes ours. Framing and connection are not the user's to choose, as in Go.
        let is_ours = [
            header::HOST,
            header::USER_AGENT,
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
        ]
        .contains(name);
        if is_ours || (*name == header::ACCEPT && first(&header::ACCEPT) == Some(b"")) {
            continue;
        }
        line(name.as_str(), &[b": ", value.as_bytes()].concat());
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// Whether a response is a redirect to follow: never one whose status the user expects.
fn is_followed(action: &HttpGetAction, response: &Response) -> bool {
    let expected = !action.expected_status.is_empty() && action.is_success(response.status);
    response.is_redirect() && !expected
}

/// A redirect that leads to another host: success with a warning, unless the user said which statuses are success.
fn elsewhere(action: &HttpGetAction, response: &Response, host: &str) -> Found {
    let message = format!("{} to another host ({host})", status_text(response.status));
    if action.expected_status.is_empty() {
        Found::warning(Reason::REDIRECT_ELSEWHERE, message)
    } else {
        Found::failure(Reason::HTTP_STATUS, message)
    }
}

fn verdict(action: &HttpGetAction, response: &Response) -> Found {
    let Response { status, .. } = *response;
    if !action.is_success(status) {
        return Found::failure(Reason::HTTP_STATUS, status_text(status));
    }
    if response.body_has_text == Some(false) {
        return Found::failure(
            Reason::UNEXPECTED_BODY,
            format!("{}, but the body lacks the expected text", status_text(status)),
        );
    }
    if action.expected_status.is_empty() && (300..400).contains(&status) {
        return Found::warning(Reason::REDIRECT_NOT_FOLLOWED, status_text(status));
    }
    Found::success()
}

/// `503 Service Unavailable`. The phrase is the registered one: the server's own could say anything.
fn status_text(status: u16) -> String {
    let phrase = StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason());
    match phrase {
        Some(phrase) => format!("{status} {phrase}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests;
