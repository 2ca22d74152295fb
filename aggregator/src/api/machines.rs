//! For machines: metrics and health endpoints.

use {
    super::{Api, respond},
    crate::metrics::{self, scopes},
    axum::{extract::State, response::Response},
    http::StatusCode,
};

const TEXT: &str = "text/plain; charset=utf-8";

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let serves = api.replica.serves();
    api.metrics.serving.set(i64::from(serves));
    let mut text = String::from_utf8(api.metrics.text()).expect("the text format is UTF-8");
    // Of several replicas one alone, so that a sum over them counts every scope once.
    if serves {
        scopes::write(&api.feed.newest(), &mut text);
    }
    respond(StatusCode::OK, metrics::TEXT, text)
}

/// That this runs at all is the proof: when a part without which the process is useless ends, the process does.
pub(super) async fn live() -> Response {
    respond(StatusCode::OK, TEXT, "ok\n")
}

pub(super) async fn ready(State(api): State<Api>) -> Response {
    let missing = api.readiness.missing();
    if missing.is_empty() {
        respond(StatusCode::OK, TEXT, "ok\n")
    } else {
        let body = format!("not ready: {}\n", missing.join(", "));
        respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
    }
}
