//! Who may open a session, and what the others get.

use {
    crate::support::{Agent, SHOP, open, serve, serve_with, share_token},
    healthscope_shared::wire::SUBPROTOCOL,
    tokio_tungstenite::tungstenite::{Error as WsError, http::Response},
};

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", SUBPROTOCOL);

/// Checks that a WebSocket is refused with a problem document, and returns the answer.
#[track_caller]
fn refused<S: std::fmt::Debug>(
    result: Result<S, WsError>,
    status: u16,
    detail: &str,
) -> Box<Response<Option<Vec<u8>>>> {
    let Err(WsError::Http(response)) = result else {
        panic!("{result:?} instead of {status}");
    };
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let body: serde_json::Value =
        serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap();
    let found = body["detail"].as_str().unwrap();
    assert!(found.contains(detail), "{found}");
    response
}

#[tokio::test]
async fn the_token_is_asked_for() {
    let served = serve_with(SHOP, |config| share_token(config, "hush")).await;
    let none = open(served.address, &[PROTOCOL]).await;
    let response = refused(none, 401, "Authorization: Bearer");
    assert!(
        response.headers()["www-authenticate"]
            .to_str()
            .unwrap()
            .starts_with("Bearer")
    );
    for wrong in ["Bearer hush2", "Basic hush", "Bearer "] {
        refused(
            open(served.address, &[PROTOCOL, ("authorization", wrong)]).await,
            401,
            "token",
        );
    }
    open(served.address, &[PROTOCOL, ("authorization", "Bearer hush")])
        .await
        .unwrap();
}

#[tokio::test]
async fn the_subprotocol_must_be_ours() {
    let served = serve(SHOP).await;
    refused(open(served.address, &[]).await, 400, SUBPROTOCOL);
    refused(
        open(served.address, &[("sec-websocket-protocol", "healthscope.v9")]).await,
        400,
        SUBPROTOCOL,
    );
    // Among others it is found.
    let several = ("sec-websocket-protocol", "healthscope.v9, healthscope.v1");
    open(served.address, &[several]).await.unwrap();
}

#[tokio::test]
async fn browsers_are_not_agents() {
    let served = serve(SHOP).await;
    let origin = ("origin", "http://127.0.0.1:7575");
    refused(open(served.address, &[PROTOCOL, origin]).await, 403, "for agents");
}

#[tokio::test]
async fn other_requests_are_told_how_to_ask() {
    let served = serve(SHOP).await;
    let plain = served.get("/v1/agent").await;
    assert!(plain.problem(426).contains("WebSocket"));
    assert_eq!(plain.header("upgrade"), Some("websocket"));
    let post = served.ask("POST", "/v1/agent", &[], "{}").await;
    post.problem(405);
    assert_eq!(post.header("allow"), Some("GET"));
    let handshake = [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-protocol: healthscope.v1",
    ];
    let old = [&handshake[..], &["sec-websocket-version: 8"]].concat();
    assert_eq!(
        served
            .ask("GET", "/v1/agent", &old, "")
            .await
            .header("sec-websocket-version"),
        Some("13")
    );
    let no_key = [&handshake[..], &["sec-websocket-version: 13"]].concat();
    assert!(
        served
            .ask("GET", "/v1/agent", &no_key, "")
            .await
            .problem(400)
            .contains("Sec-WebSocket-Key")
    );
    assert!(served.metric("healthscope_agent_handshakes_refused_total").await >= 4.0);
}

#[tokio::test]
async fn agents_over_the_limit_are_told_to_come_back() {
    let served = serve_with(SHOP, |config| config.limits.agents = 1).await;
    let first = Agent::join(&served, "one").await;
    let second = open(served.address, &[PROTOCOL]).await;
    let response = refused(second, 503, "later");
    assert!(response.headers().contains_key("retry-after"));
    drop(first);
    served.until_metric("healthscope_agent_sessions", 0.0).await;
    Agent::join(&served, "two").await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    use tokio::{io::AsyncReadExt, net::TcpStream};
    let served = serve_with(SHOP, |config| {
        config.timing.header = std::time::Duration::from_millis(50);
    })
    .await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
}
