//! gRPC checks against a small HTTP/2 server.

use {
    crate::{SHORT, failed, run, run_for, succeeded, target::Target},
    bytes::Bytes,
    h2::server::SendResponse,
    healthscope_shared::{
        health::Reason,
        probe::{GrpcAction, Handler, outcome::Outcome},
    },
    http::{HeaderMap, HeaderValue, Request, Response},
    std::{
        net::SocketAddr,
        sync::{Arc, Mutex},
    },
    tokio::net::TcpListener,
};

/// How the server answers.
#[derive(Clone, Copy)]
enum Answer {
    /// A message and grpc-status 0.
    Status(u8),
    /// Trailers only, with a grpc-status and a text.
    Trailers(&'static str, &'static str),
    /// No grpc-status anywhere.
    NoStatus,
    /// Plain HTTP status.
    Http(u16),
    /// Endless data.
    Endless,
    /// Nothing.
    Hang,
    /// Resets the stream.
    Reset,
}

type Seen = Arc<Mutex<Vec<(String, String, String, Vec<u8>)>>>;

struct Server {
    address: SocketAddr,
    /// Path, user agent, content type, and body of the requests.
    seen: Seen,
}

async fn serve(answer: Answer) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (request, respond) = request?;
                    tokio::spawn(one(request, respond, answer, Arc::clone(&log)));
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    Server { address, seen }
}

async fn one(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    answer: Answer,
    seen: Seen,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data?);
    }
    let header = |name| {
        head.headers
            .get(name)
            .map_or("", |value: &HeaderValue| value.to_str().unwrap())
            .to_owned()
    };
    seen.lock().unwrap().push((
        head.uri.path().to_owned(),
        header("user-agent"),
        header("content-type"),
        message,
    ));
    let ok = || {
        Response::builder()
            .status(200)
            .header("content-type", "application/grpc")
    };
    let trailers = |status: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        trailers
    };
    match answer {
        Answer::Status(status) => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            stream.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false)?;
            stream.send_trailers(trailers("0"))?;
        }
        Answer::Trailers(status, text) => {
            let head = ok().header("grpc-status", status).header("grpc-message", text);
            respond.send_response(head.body(()).unwrap(), true)?;
        }
        Answer::NoStatus => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), true)?;
        }
        Answer::Http(status) => {
            respond.send_response(Response::builder().status(status).body(()).unwrap(), true)?;
        }
        Answer::Endless => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            for _ in 0..8 {
                stream.send_data(Bytes::from_static(&[0; 4096]), false)?;
            }
            std::future::pending::<()>().await;
        }
        Answer::Hang => std::future::pending().await,
        Answer::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
    }
    Ok(())
}

fn grpc(port: u16, service: &str) -> Handler {
    Handler::Grpc(GrpcAction {
        host: "127.0.0.1".into(),
        port,
        service: service.into(),
    })
}

async fn check(answer: Answer) -> Outcome {
    let server = serve(answer).await;
    run(grpc(server.address.port(), "shop.Web")).await
}

#[tokio::test]
async fn serving_is_success_and_everything_else_is_not_serving() {
    succeeded(&check(Answer::Status(1)).await);
    failed(&check(Answer::Status(0)).await, Reason::NOT_SERVING, "UNKNOWN");
    failed(
        &check(Answer::Status(2)).await,
        Reason::NOT_SERVING,
        "NOT_SERVING",
    );
    failed(
        &check(Answer::Status(3)).await,
        Reason::NOT_SERVING,
        "SERVICE_UNKNOWN",
    );
}

#[tokio::test]
async fn calls_that_fail_say_how() {
    let outcome = check(Answer::Trailers("5", "unknown service shop.Web")).await;
    failed(
        &outcome,
        Reason::RPC_FAILED,
        "NOT_FOUND: unknown service shop.Web",
    );
    failed(
        &check(Answer::Trailers("12", "")).await,
        Reason::RPC_FAILED,
        "UNIMPLEMENTED",
    );
    failed(
        &check(Answer::NoStatus).await,
        Reason::RPC_FAILED,
        "the answer has no grpc-status",
    );
    failed(
        &check(Answer::Http(404)).await,
        Reason::RPC_FAILED,
        "HTTP status 404 Not Found",
    );
    let message = "the answer is too long for a health answer";
    failed(&check(Answer::Endless).await, Reason::RPC_FAILED, message);
    let outcome = check(Answer::Reset).await;
    assert_eq!(outcome.result.reason(), Some(&Reason::RPC_FAILED), "{outcome:?}");
}

#[tokio::test]
async fn the_request_is_grpcs_own() {
    let server = serve(Answer::Status(1)).await;
    for service in ["", "shop.Web"] {
        succeeded(&run(grpc(server.address.port(), service)).await);
    }
    let seen = server.seen.lock().unwrap().clone();
    let expected = |body: &[u8]| {
        let path = "/grpc.health.v1.Health/Check".to_owned();
        (
            path,
            "healthscope/0.1".to_owned(),
            "application/grpc".to_owned(),
            body.to_vec(),
        )
    };
    assert_eq!(
        seen,
        [expected(&[0; 5]), expected(b"\0\0\0\0\x0a\x0a\x08shop.Web")]
    );
}

#[tokio::test]
async fn servers_that_hang_refuse_or_speak_something_else_are_told_apart() {
    let server = serve(Answer::Hang).await;
    let outcome = run_for(SHORT, grpc(server.address.port(), "")).await;
    failed(&outcome, Reason::TIMED_OUT, "no answer within 300ms");

    let silent = Target::raw(|mut stream| crate::target::hold(&mut stream));
    let outcome = run_for(SHORT, grpc(silent.port(), "")).await;
    failed(&outcome, Reason::TIMED_OUT, "no answer within 300ms");

    let port = crate::target::closed_port();
    failed(
        &run(grpc(port, "")).await,
        Reason::CONNECTION_REFUSED,
        "connection refused",
    );

    let http1 = Target::raw(|mut stream| {
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        crate::target::hold(&mut stream);
    });
    let outcome = run(grpc(http1.port(), "")).await;
    assert_eq!(outcome.result.reason(), Some(&Reason::RPC_FAILED), "{outcome:?}");

    let closes = Target::raw(drop);
    let outcome = run(grpc(closes.port(), "")).await;
    assert_eq!(
        outcome.result.reason(),
        Some(&Reason::CONNECTION_CLOSED),
        "{outcome:?}"
    );
}
