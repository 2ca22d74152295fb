//! One request to the API server: its bounds, and what its answer means for what is tried next.
//!
//! Nothing here tries anything twice; the client must not either
//! ([`default_retry`](kube::Config::default_retry) off), or a busy server would be asked behind our backs.

use {
    healthscope_service::telemetry::chain,
    healthscope_shared::one_line,
    http::{HeaderMap, Method, Request, Response, StatusCode, header},
    http_body_util::{BodyExt, Limited},
    kube::{Client, client::Body},
    serde::Deserialize,
    std::time::Duration,
};

/// How long one request may take. Far more than a healthy server needs, far less than a person waits.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);
/// Largest answer read. etcd keeps no object of more than 1.5 MiB.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// As what we are known in `metadata.managedFields`.
pub(crate) const FIELD_MANAGER: &str = "healthscope-aggregator";
/// Answers with the metadata alone: the rest is what we sent.
pub(crate) const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Answers with the whole object.
pub(crate) const OBJECT: &str = "application/json";

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// It was done.
    Done {
        /// What was answered.
        body: Vec<u8>,
        /// Which of the fields sent the server does not know and dropped.
        warning: Option<String>,
    },
    /// The object is newer, or another of the same name.
    Conflict,
    /// What was to be made is there already.
    Exists,
    /// There is no such object or kind.
    NotFound,
    /// Too many requests.
    Busy {
        /// How long to leave it alone.
        retry_after: Option<Duration>,
    },
    /// No answer, or none in time.
    Unreachable(String),
    /// The server failed.
    Failed(String),
    /// The server will not.
    Refused(String),
}

/// Sends one request and waits for its answer, for at most [`REQUEST`].
pub(crate) async fn send(client: &Client, method: Method, uri: &str, accept: &str, body: Vec<u8>) -> Reply {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Reply::Refused(error.to_string()),
    };
    let exchange = async {
        let response = client.send(request).await.map_err(|error| chain(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| chain(&*error))?;
        Ok::<_, String>(Response::from_parts(parts, body.to_bytes()))
    };
    match tokio::time::timeout(REQUEST, exchange).await {
        Ok(Ok(response)) => classify(response.status(), response.headers(), response.body()),
        Ok(Err(error)) => Reply::Unreachable(one_line(&error, MAX_MESSAGE_BYTES)),
        Err(_) => Reply::Unreachable(format!("no answer within {} s", REQUEST.as_secs())),
    }
}

/// What an answer means.
fn classify(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Reply {
    let retry_after = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    match status {
        _ if status.is_success() => Reply::Done {
            body: body.to_vec(),
            warning: dropped_field(headers),
        },
        StatusCode::NOT_FOUND => Reply::NotFound,
        StatusCode::CONFLICT if failure(body).reason == "AlreadyExists" => Reply::Exists,
        StatusCode::CONFLICT => Reply::Conflict,
        StatusCode::TOO_MANY_REQUESTS => Reply::Busy { retry_after },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => Reply::Busy { retry_after },
        _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Reply::Failed(sentence(status, body))
        }
        _ => Reply::Refused(sentence(status, body)),
    }
}

/// A server that drops a field says so: `299 - "unknown field \"status.x\""`.
fn dropped_field(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::WARNING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find(|value| value.contains("unknown field"))
        .map(|value| one_line(value, MAX_MESSAGE_BYTES))
}

/// The part of a `Status` object that is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    reason: String,
    message: String,
}

fn failure(body: &[u8]) -> Failure {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Longest text of the server's that is logged.
const MAX_MESSAGE_BYTES: usize = 512;

fn sentence(status: StatusCode, body: &[u8]) -> String {
    let Failure { reason: _, message } = failure(body);
    one_line(&format!("{status}: {message}"), MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        #[track_caller]
        fn check(status: u16, retry_after: Option<&str>, body: &str, expected: &str) {
            let mut headers = HeaderMap::new();
            if let Some(value) = retry_after {
                headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            }
            let reply = classify(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
            assert!(format!("{reply:?}").starts_with(expected), "{status}: {reply:?}");
        }
        check(200, None, "{}", "Done");
        check(201, None, "{}", "Done");
        check(404, None, "", "NotFound");
        check(409, None, r#"{"reason":"Conflict"}"#, "Conflict");
        check(409, None, r#"{"reason":"AlreadyExists"}"#, "Exists");
        check(429, Some("7"), "", "Busy { retry_after: Some(7s) }");
        check(429, Some("soon"), "", "Busy { retry_after: None }");
        check(503, Some("1"), "", "Busy { retry_after: Some(1s) }");
        check(503, None, "no etcd", r#"Failed("503 Service Unavailable:")"#);
        check(
            500,
            None,
            r#"{"message":"etcd\n is away"}"#,
            r#"Failed("500 Internal Server Error: etcd is away")"#,
        );
        check(408, None, "", "Failed");
        check(
            403,
            None,
            r#"{"message":"may not"}"#,
            r#"Refused("403 Forbidden: may not")"#,
        );
        check(401, None, "", "Refused");
        check(422, None, "", "Refused");
        check(302, None, "", "Refused");
    }
}
