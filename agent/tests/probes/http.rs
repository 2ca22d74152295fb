//! HTTP checks.

use {
    crate::{
        SHORT, failed, http_get, run, run_for, spec, succeeded,
        target::{BlackHole, Target, answer, closed_port, hold},
        warned,
    },
    healthscope_agent::prober::{ProberConfig, Probers},
    healthscope_shared::{
        health::Reason,
        probe::{Handler, HttpGetAction, outcome::Outcome},
    },
    std::{
        io::Write,
        net::{Ipv6Addr, TcpStream},
        time::Duration,
    },
};

async fn get(target: &Target, path: &str) -> Outcome {
    run(Handler::HttpGet(http_get("127.0.0.1", target.port(), path))).await
}

async fn get_shortly(target: &Target, path: &str) -> Outcome {
    run_for(
        SHORT,
        Handler::HttpGet(http_get("127.0.0.1", target.port(), path)),
    )
    .await
}

/// Answers `/STATUS` with that status and `/to?LOCATION` with a redirect there.
fn by_path() -> Target {
    Target::http(|stream, path| {
        let answer = match path.strip_prefix("/to?") {
            Some(location) => answer(302, &format!("location: {location}\r\n"), "moved"),
            None => answer(path[1..].parse().unwrap_or(404), "", "secret"),
        };
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[tokio::test]
async fn statuses_from_200_to_399_are_success() {
    let target = by_path();
    // An interim answer without a final one.
    assert!(!get(&target, "/199").await.result.is_success());
    for good in ["/200", "/204", "/299"] {
        succeeded(&get(&target, good).await);
    }
    for unfollowed in ["/300", "/304", "/399"] {
        let outcome = get(&target, unfollowed).await;
        assert!(outcome.result.is_success(), "{outcome:?}");
        assert_eq!(outcome.result.reason(), Some(&Reason::REDIRECT_NOT_FOLLOWED));
    }
    for (bad, message) in [
        ("/400", "400 Bad Request"),
        ("/404", "404 Not Found"),
        ("/500", "500 Internal Server Error"),
    ] {
        let outcome = get(&target, bad).await;
        failed(&outcome, Reason::HTTP_STATUS, message);
        assert_eq!(outcome.output, "", "bodies may hold secrets");
    }
}

#[tokio::test]
async fn redirects_on_the_same_host_are_followed_to_any_port() {
    let (one, two) = (by_path(), by_path());
    succeeded(&get(&one, "/to?/200").await);
    succeeded(&get(&one, "/to?200").await);
    failed(
        &get(&one, "/to?/503").await,
        Reason::HTTP_STATUS,
        "503 Service Unavailable",
    );
    let other_port = |path: &str| format!("/to?http://127.0.0.1:{}{path}", two.port());
    succeeded(&get(&one, &other_port("/200")).await);
    failed(
        &get(&one, &other_port("/500")).await,
        Reason::HTTP_STATUS,
        "500 Internal Server Error",
    );
    // Each hop is a connection of its own, with the same headers.
    assert_eq!(two.seen().len(), 2);
    assert!(two.seen()[0].contains(&format!("Host: 127.0.0.1:{}", two.port())));
}

#[tokio::test]
async fn a_redirect_to_another_host_is_success_with_a_warning() {
    let target = by_path();
    let outcome = get(&target, "/to?http://other.example/200").await;
    warned(
        &outcome,
        Reason::REDIRECT_ELSEWHERE,
        "302 Found to another host (other.example)",
    );
    let outcome = get(&target, "/to?//localhost/200").await;
    warned(
        &outcome,
        Reason::REDIRECT_ELSEWHERE,
        "302 Found to another host (localhost)",
    );
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_failures() {
    let target = by_path();
    let outcome = get(&target, "/to?ftp://127.0.0.1/").await;
    failed(
        &outcome,
        Reason::BAD_RESPONSE,
        "redirect to a scheme other than http and https",
    );
    let closed = closed_port();
    let outcome = get(&target, &format!("/to?http://127.0.0.1:{closed}/")).await;
    let message = format!("connect to 127.0.0.1:{closed}: connection refused");
    failed(&outcome, Reason::CONNECTION_REFUSED, &message);
}

/// Redirects from /N to /N-1, and answers 200 at /0.
fn stairs() -> Target {
    Target::http(|stream, path| {
        let answer = match path[1..].parse::<u32>() {
            Ok(0) => answer(200, "", ""),
            Ok(n) => answer(302, &format!("location: /{}\r\n", n - 1), ""),
            Err(_) => answer(301, "location: /loop\r\n", ""),
        };
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[tokio::test]
async fn ten_redirects_are_followed_and_eleven_are_too_many() {
    let target = stairs();
    succeeded(&get(&target, "/10").await);
    failed(
        &get(&target, "/11").await,
        Reason::TOO_MANY_REDIRECTS,
        "more than 10 redirects",
    );
    failed(
        &get(&target, "/loop").await,
        Reason::TOO_MANY_REDIRECTS,
        "more than 10 redirects",
    );
}

#[tokio::test]
async fn what_is_sent_is_the_kubelets_request_on_a_new_connection_each_time() {
    let target = by_path();
    let mut action = http_get("127.0.0.1", target.port(), "/200?a=b");
    let header = |name: &'static str, value: &'static str| {
        (
            http::HeaderName::from_static(name),
            http::HeaderValue::from_static(value),
        )
    };
    action.headers = vec![
        header("x-twice", "1"),
        header("host", "shop.example"),
        header("x-twice", "2"),
    ];
    for _ in 0..2 {
        run(Handler::HttpGet(action.clone())).await;
    }
    let expected = [
        "GET /200?a=b HTTP/1.1",
        "Host: shop.example",
        "User-Agent: healthscope/0.1",
        "Accept: */*",
        "Connection: close",
        "x-twice: 1",
        "x-twice: 2",
    ];
    assert_eq!(target.seen(), [expected, expected]);
}

#[tokio::test]
async fn expected_statuses_and_texts_decide_when_given() {
    let target = by_path();
    let expects = |path: &str, status: u16, body: Option<&str>| HttpGetAction {
        expected_status: vec![(status, status)],
        expected_body: body.map(Into::into),
        ..http_get("127.0.0.1", target.port(), path)
    };
    succeeded(&run(Handler::HttpGet(expects("/401", 401, None))).await);
    failed(
        &run(Handler::HttpGet(expects("/200", 401, None))).await,
        Reason::HTTP_STATUS,
        "200 OK",
    );
    succeeded(&run(Handler::HttpGet(expects("/to?http://other.example/", 302, None))).await);
    let outcome = run(Handler::HttpGet(expects("/to?http://other.example/", 200, None))).await;
    failed(
        &outcome,
        Reason::HTTP_STATUS,
        "302 Found to another host (other.example)",
    );
    succeeded(&run(Handler::HttpGet(expects("/200", 200, Some("secre")))).await);
    let outcome = run(Handler::HttpGet(expects("/200", 200, Some("fine")))).await;
    failed(
        &outcome,
        Reason::UNEXPECTED_BODY,
        "200 OK, but the body lacks the expected text",
    );
}

#[tokio::test]
async fn long_and_endless_bodies_are_success_after_ten_kib() {
    let long = Target::answering(answer(200, "", &"x".repeat(1024 * 1024)));
    succeeded(&get(&long, "/").await);
    let endless = Target::http(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        while stream.write_all(chunk.as_bytes()).is_ok() {}
    });
    succeeded(&get(&endless, "/").await);
}

#[tokio::test]
async fn a_body_that_stalls_is_a_failure() {
    let target = Target::http(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbeginning");
        hold(stream);
    });
    failed(
        &get_shortly(&target, "/").await,
        Reason::TIMED_OUT,
        "body not complete within 300ms",
    );
}

/// Closes so that the other side sees a reset.
fn reset(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn a_reset_within_the_body_or_before_the_answer_is_a_failure() {
    let within = Target::raw(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbeginning");
        reset(&stream);
    });
    let outcome = get(&within, "/").await;
    assert_eq!(
        outcome.result.reason(),
        Some(&Reason::CONNECTION_CLOSED),
        "{outcome:?}"
    );
    assert!(!outcome.result.is_success());
    let before = Target::raw(|stream| reset(&stream));
    let outcome = get(&before, "/").await;
    assert_eq!(
        outcome.result.reason(),
        Some(&Reason::CONNECTION_CLOSED),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn an_early_end_of_the_body_is_a_failure() {
    let target = Target::answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbeginning");
    failed(
        &get(&target, "/").await,
        Reason::CONNECTION_CLOSED,
        "the connection was closed within the answer",
    );
    let silent = Target::http(|_, _| {});
    failed(
        &get(&silent, "/").await,
        Reason::CONNECTION_CLOSED,
        "the connection was closed before the answer",
    );
}

#[tokio::test]
async fn silence_and_a_trickle_of_bytes_time_out() {
    let silent = Target::http(|stream, _| hold(stream));
    failed(
        &get_shortly(&silent, "/").await,
        Reason::TIMED_OUT,
        "no answer within 300ms",
    );
    // A byte each 20 ms: an idle timeout would never end this.
    let trickle = |head: &'static str| {
        Target::http(move |stream, _| {
            let _ = stream.set_nodelay(true);
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    failed(
        &get_shortly(&trickle("HTTP/1.1 200 OK\r\nx-"), "/").await,
        Reason::TIMED_OUT,
        "no answer within 300ms",
    );
    let body = trickle("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n");
    failed(
        &get_shortly(&body, "/").await,
        Reason::TIMED_OUT,
        "body not complete within 300ms",
    );
}

#[tokio::test]
async fn huge_heads_and_invalid_http_are_refused() {
    let huge = Target::http(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream
            .write_all(b"x-more: and more and more and more and more and more\r\n")
            .is_ok()
        {}
    });
    failed(
        &get(&huge, "/").await,
        Reason::BAD_RESPONSE,
        "the answer's head is longer than 65536 bytes",
    );
    let ssh = Target::http(|stream, _| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        hold(stream);
    });
    failed(
        &get(&ssh, "/").await,
        Reason::BAD_RESPONSE,
        "the answer is not HTTP",
    );
    let broken = Target::answering("HTTP/1.1 200 OK\r\nno colon here\r\n\r\n");
    let outcome = get(&broken, "/").await;
    failed(
        &outcome,
        Reason::BAD_RESPONSE,
        "the answer's head is not valid HTTP: invalid header name",
    );
}

#[tokio::test]
async fn refusals_black_holes_and_names_are_told_apart() {
    let port = closed_port();
    let outcome = run(Handler::HttpGet(http_get("127.0.0.1", port, "/"))).await;
    failed(&outcome, Reason::CONNECTION_REFUSED, "connection refused");

    let hole = BlackHole::new();
    let outcome = run_for(
        SHORT,
        Handler::HttpGet(http_get("127.0.0.1", hole.address.port(), "/")),
    )
    .await;
    failed(&outcome, Reason::TIMED_OUT, "no connection within 300ms");

    let outcome = run(Handler::HttpGet(http_get(&"x".repeat(64), 80, "/"))).await;
    assert_eq!(
        outcome.result.reason(),
        Some(&Reason::NAME_NOT_RESOLVED),
        "{outcome:?}"
    );

    let target = by_path();
    succeeded(&run(Handler::HttpGet(http_get("localhost", target.port(), "/200"))).await);
}

#[tokio::test]
async fn ipv6_targets_are_reached() {
    let target = Target::http_on(Ipv6Addr::LOCALHOST.into(), |stream, _| {
        let _ = stream.write_all(answer(200, "", "").as_bytes());
    });
    succeeded(&run(Handler::HttpGet(http_get("::1", target.port(), "/"))).await);
    assert!(target.seen()[0].contains(&format!("Host: [::1]:{}", target.port())));
}

#[tokio::test]
async fn a_request_that_does_not_fit_into_the_socket_at_once_is_still_sent() {
    let target = by_path();
    let mut action = http_get("127.0.0.1", target.port(), "/200");
    let long = http::HeaderValue::from_str(&"x".repeat(4 * 1024 * 1024)).unwrap();
    action.headers = vec![(http::HeaderName::from_static("x-long"), long)];
    succeeded(&run(Handler::HttpGet(action)).await);
}

#[tokio::test]
async fn one_prober_runs_many_probes_at_once() {
    let target = by_path();
    let probers = Probers::new(ProberConfig::default());
    let spec = spec(
        Handler::HttpGet(http_get("127.0.0.1", target.port(), "/200")),
        crate::LONG,
    );
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (probers, spec) = (std::sync::Arc::clone(&probers), spec.clone());
        runs.spawn(async move { probers.run(&spec).await });
    }
    while let Some(outcome) = runs.join_next().await {
        succeeded(&outcome.unwrap());
    }
    assert_eq!(target.seen().len(), 100);
}
