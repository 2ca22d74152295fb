//! gRPC checks: `grpc.health.v1.Health/Check` over plaintext HTTP/2, one connection per check as in the kubelet.
//!
//! Both messages have one field each, so they are written and read here rather than generated. h2 is used without
//! anything above it: one call needs no pool, no balancer and no background task.

use {
    super::{Deadline, Found, MAX_READ_BYTES, Probers, USER_AGENT, connect::authority},
    bytes::Bytes,
    h2::client::{Connection, SendRequest},
    healthscope_shared::{health::Reason, one_line, probe::GrpcAction},
    http::{HeaderMap, Request, Response, header},
    std::time::Duration,
    tokio::{
        net::TcpStream,
        time::{Instant, timeout_at},
    },
};

/// Longest text of the server's repeated in a message.
const MAX_TEXT_BYTES: usize = 160;
/// Largest header list taken from the server.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

impl Probers {
    pub(super) async fn grpc(&self, action: &GrpcAction, deadline: Deadline) -> Found {
        let GrpcAction { host, port, service } = action;
        let socket = match self.connect(host, *port, deadline).await {
            Ok(socket) => socket,
            Err(found) => return found,
        };
        let stream = match TcpStream::from_std(socket.into()) {
            Ok(stream) => stream,
            Err(error) => return Found::io(&error, "connect"),
        };
        let authority = authority(host, *port);
        let call = check(stream, &authority, service, deadline.at);
        match timeout_at(deadline.at, call).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => call_failed(&error),
            Err(_) => deadline.passed("no answer"),
        }
    }
}

async fn check(
    stream: TcpStream,
    authority: &str,
    service: &str,
    deadline: Instant,
) -> Result<Found, h2::Error> {
    let (sender, connection): (SendRequest<Bytes>, Connection<TcpStream, Bytes>) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(MAX_HEADER_BYTES)
        .handshake(stream)
        .await?;
    let call = call(sender, authority, service, deadline);
    tokio::pin!(call);
    // Dropping the connection closes it: nothing of the check outlives this function.
    tokio::select! {
        biased;
        found = &mut call => found,
        ended = connection => match ended {
            // The call ends with the error that the connection's end means for it.
            Ok(()) => call.await,
            Err(error) => Err(error),
        },
    }
}

async fn call(
    sender: SendRequest<Bytes>,
    authority: &str,
    service: &str,
    deadline: Instant,
) -> Result<Found, h2::Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::TE, "trailers")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::USER_AGENT, USER_AGENT)
        .header("grpc-timeout", timeout_text(left))
        .body(());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(Found::error(Reason::INTERNAL_ERROR, error.to_string())),
    };
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(request_frame(service).into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let head = Response::from_parts(head, ());
    if head.status() != http::StatusCode::OK {
        return Ok(rpc_failed(format!("HTTP status {}", head.status())));
    }
    if head.headers().contains_key("grpc-status") {
        return Ok(verdict(head.headers(), &[]));
    }
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if message.len() + data.len() > MAX_READ_BYTES {
            return Ok(rpc_failed("the answer is too long for a health answer".into()));
        }
        message.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?;
    Ok(match trailers {
        Some(trailers) => verdict(&trailers, &message),
        None => rpc_failed("the answer has no grpc-status".into()),
    })
}

fn call_failed(error: &h2::Error) -> Found {
    match error.get_io() {
        Some(io) => Found::io(io, "gRPC call"),
        None => rpc_failed(format!("HTTP/2: {error}")),
    }
}

fn rpc_failed(message: String) -> Found {
    Found::failure(Reason::RPC_FAILED, message)
}

/// What the call's status and the answer mean.
fn verdict(trailers: &HeaderMap, frame: &[u8]) -> Found {
    let code = trailers
        .get("grpc-status")
        .and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    let Some(code) = code else {
        return rpc_failed("the answer's grpc-status is not a number".into());
    };
    if code != 0 {
        let text = trailers
            .get("grpc-message")
            .map(|text| percent_decoded(text.as_bytes()));
        let text = one_line(&text.unwrap_or_default(), MAX_TEXT_BYTES);
        let name = status_name(code);
        return rpc_failed(if text.is_empty() {
            name
        } else {
            format!("{name}: {text}")
        });
    }
    match response_status(frame) {
        Some(1) => Found::success(),
        Some(status) => {
            let name = match status {
                0 => "UNKNOWN".to_owned(),
                2 => "NOT_SERVING".to_owned(),
                3 => "SERVICE_UNKNOWN".to_owned(),
                other => format!("status {other}"),
            };
            Found::failure(Reason::NOT_SERVING, name)
        }
        None => rpc_failed("the answer is not a HealthCheckResponse".into()),
    }
}

fn status_name(code: u32) -> String {
    // https://grpc.github.io/grpc/core/md_doc_statuscodes.html
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| format!("gRPC status {code}"), |name| (*name).to_owned())
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout_text(left: Duration) -> String {
    match left.as_millis() {
        millis if millis < 100_000_000 => format!("{millis}m"),
        _ => format!("{}S", left.as_secs()),
    }
}

/// `HealthCheckRequest { service }` in a gRPC frame: uncompressed flag, length, message.
fn request_frame(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.push(0x0a);
        push_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("validated: a service name is short");
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.append(&mut message);
    frame
}

/// `HealthCheckResponse.status` out of a gRPC frame; `None` when it is not one. Unknown fields are skipped.
fn response_status(frame: &[u8]) -> Option<u64> {
    let (&[compressed, a, b, c, d], mut message) = frame.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([a, b, c, d]);
    if compressed != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = take_varint(&mut message)?,
            (0, _) => return None,
            (_, 0) => {
                take_varint(&mut message)?;
            }
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// gRPC's percent-encoding of `grpc-message`.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let hex = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
