//! What is sent, and what an answer means. Whole exchanges with real servers are in `tests/probes`.

use {super::*, http::HeaderValue};

fn action(headers: &[(&str, &str)]) -> HttpGetAction {
    let headers = headers.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    });
    HttpGetAction {
        host: "::1".into(),
        port: 8080,
        path: "/healthz?full#part".into(),
        scheme: Scheme::Http,
        headers: headers.collect(),
        verify_tls: false,
        expected_status: Vec::new(),
        expected_body: None,
    }
}

/// The header lines of the request, without the request line.
#[track_caller]
fn sends(headers: &[(&str, &str)], expected: &[&str]) {
    let action = action(headers);
    let request = String::from_utf8(request(&action, &Target::of(&action), true)).unwrap();
    let lines: Vec<_> = request.split_terminator("\r\n").collect();
    assert_eq!(lines[0], "GET /healthz?full HTTP/1.1");
    assert_eq!(lines.last(), Some(&""));
    assert_eq!(lines[1..lines.len() - 1], *expected);
}

#[test]
fn headers_are_the_kubelets() {
    let ours = concat!(
        "User-Agent: healthscope/",
        env!("CARGO_PKG_VERSION_MAJOR"),
        ".",
        env!("CARGO_PKG_VERSION_MINOR")
    );
    let host = "Host: [::1]:8080";
    let accept = "Accept: */*";
    let close = "Connection: close";
    sends(&[], &[host, ours, accept, close]);
    sends(
        &[("user-agent", "me"), ("user-agent", "too")],
        &[host, "User-Agent: me", accept, close],
    );
    sends(&[("user-agent", "")], &[host, accept, close]);
    sends(&[("accept", "")], &[host, ours, close]);
    sends(
        &[("accept", "text/plain")],
        &[host, ours, close, "accept: text/plain"],
    );
    sends(
        &[("host", "shop.example")],
        &["Host: shop.example", ours, accept, close],
    );
    sends(&[("host", "")], &[host, ours, accept, close]);
    sends(
        &[("x-a", "1"), ("x-b", ""), ("x-a", "2")],
        &[host, ours, accept, close, "x-a: 1", "x-b: ", "x-a: 2"],
    );
    sends(
        &[
            ("connection", "keep-alive"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
        ],
        &[host, ours, accept, close],
    );
}

#[test]
fn a_custom_host_is_left_behind_by_absolute_redirects() {
    let action = action(&[("host", "shop.example")]);
    let request = String::from_utf8(request(&action, &Target::of(&action), false)).unwrap();
    assert!(request.contains("Host: [::1]:8080\r\n"), "{request}");
}

fn answer(status: u16) -> Response {
    Response {
        status,
        ..Response::default()
    }
}

#[track_caller]
fn means(status: u16, result: RunResult, message: &str) {
    let found = verdict(&action(&[]), &answer(status));
    assert_eq!(
        (found.result, found.message.as_str()),
        (result, message),
        "{status}"
    );
}

use healthscope_shared::probe::outcome::RunResult;

#[test]
fn statuses_mean_what_the_kubelets_table_says() {
    let failed = || RunResult::Failure(Reason::HTTP_STATUS);
    let unfollowed = || RunResult::Warning(Reason::REDIRECT_NOT_FOLLOWED);
    means(101, failed(), "101 Switching Protocols");
    means(199, failed(), "199");
    means(200, RunResult::Success, "");
    means(204, RunResult::Success, "");
    means(299, RunResult::Success, "");
    means(304, unfollowed(), "304 Not Modified");
    means(399, unfollowed(), "399");
    means(400, failed(), "400 Bad Request");
    means(500, failed(), "500 Internal Server Error");
    means(999, failed(), "999");
}

#[test]
fn an_expected_redirect_is_not_followed() {
    let expects = HttpGetAction {
        expected_status: vec![(302, 302)],
        ..action(&[])
    };
    let redirect = Response {
        status: 302,
        location: Some(b"/".to_vec()),
        body_has_text: None,
    };
    assert!(is_followed(&action(&[]), &redirect));
    assert!(!is_followed(&expects, &redirect));
    assert_eq!(verdict(&expects, &redirect).result, RunResult::Success);
}
