//! Answers, whole and in pieces.

use {super::*, healthscope_shared::probe::Scheme, proptest::prelude::*};

fn action() -> HttpGetAction {
    HttpGetAction {
        host: "127.0.0.1".into(),
        port: 80,
        path: "/".into(),
        scheme: Scheme::Http,
        headers: Vec::new(),
        verify_tls: false,
        expected_status: Vec::new(),
        expected_body: None,
    }
}

/// Reads `answer` in pieces of `size`, then the end of the connection if it is not decided by then.
fn read(action: &HttpGetAction, answer: &[u8], size: usize) -> Result<Response, Malformed> {
    let mut reader = ResponseReader::new(Expect::of(action));
    for piece in answer.chunks(size) {
        if reader.feed(piece)? {
            return Ok(reader.into_response());
        }
    }
    reader.end()?;
    Ok(reader.into_response())
}

/// Whole, byte by byte and in between, an answer reads the same.
#[track_caller]
fn check_with(action: &HttpGetAction, answer: &[u8], expected: &Result<Response, Malformed>) {
    for size in [answer.len().max(1), 1, 2, 3, 7, 100] {
        let found = read(action, answer, size);
        assert_eq!(found, *expected, "{} in pieces of {size}", answer.escape_ascii());
    }
}

#[track_caller]
fn status(answer: &str, expected: u16) {
    let expected = Response {
        status: expected,
        ..Response::default()
    };
    check_with(&action(), answer.as_bytes(), &Ok(expected));
}

#[track_caller]
fn malformed(answer: impl AsRef<[u8]>, expected: Malformed) {
    check_with(&action(), answer.as_ref(), &Err(expected));
}

#[test]
fn every_framing_is_read_to_its_end() {
    status("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200);
    status("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200);
    status(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello",
        200,
    );
    status("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200);
    status("HTTP/1.1 204 No Content\r\n\r\n", 204);
    status("HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", 304);
    status("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 200);
    status("HTTP/1.1 200 OK\ncontent-length: 0\n\n", 200);
    status(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        200,
    );
    status(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n",
        200,
    );
}

#[test]
fn interim_answers_are_skipped() {
    status(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        200,
    );
    status("HTTP/1.1 101 Switching Protocols\r\n\r\n", 101);
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(4_000);
    malformed(endless, Malformed::LongHead);
}

#[test]
fn a_failing_status_is_decided_by_the_head_alone() {
    status(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1000000\r\n\r\n",
        503,
    );
    status(
        "HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\nno chunk",
        500,
    );
}

#[test]
fn redirects_keep_their_location() {
    let expected = Response {
        status: 302,
        location: Some(b"/next".to_vec()),
        body_has_text: None,
    };
    check_with(
        &action(),
        b"HTTP/1.1 302 Found\r\nlocation:  /next \r\ncontent-length: 9\r\n\r\n",
        &Ok(expected.clone()),
    );
    assert!(expected.is_redirect());
    let not_modified = Response {
        status: 304,
        ..expected
    };
    assert!(!not_modified.is_redirect());
}

#[test]
fn what_is_not_http_is_refused_at_its_first_bytes() {
    malformed("SSH-2.0-OpenSSH_9.2\r\n", Malformed::NotHttp);
    malformed("HTTP/2 200\r\n\r\n", Malformed::NotHttp);
    malformed("<html>", Malformed::NotHttp);
    malformed([0x15, 0x03, 0x01, 0x00, 0x02], Malformed::NotHttp);
    malformed("\r\n\r\n", Malformed::NotHttp);
    malformed("HTTP/1.1 OK\r\n\r\n", Malformed::Head(httparse::Error::Status));
    malformed(
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        Malformed::Head(httparse::Error::HeaderName),
    );
    malformed(
        "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
        Malformed::Head(httparse::Error::HeaderValue),
    );
}

#[test]
fn framing_that_cannot_be_trusted_is_refused() {
    malformed(
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        Malformed::ContentLength,
    );
    malformed(
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        Malformed::ContentLength,
    );
    malformed(
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        Malformed::ContentLength,
    );
    malformed(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        Malformed::TransferEncoding,
    );
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    malformed(chunked("\r\n"), Malformed::Chunk);
    malformed(chunked("x\r\n"), Malformed::Chunk);
    malformed(chunked("11111111111111111\r\n"), Malformed::Chunk);
    malformed(chunked("1\r\nab\r\n"), Malformed::Chunk);
    malformed(chunked(&format!("1;{}\r\n", "x".repeat(300))), Malformed::Chunk);
}

#[test]
fn an_answer_that_breaks_off_is_told_apart_from_none() {
    malformed("", Malformed::NoAnswer);
    malformed("HTTP/1.1 200 O", Malformed::CutOff);
    malformed(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        Malformed::CutOff,
    );
    malformed(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        Malformed::CutOff,
    );
    malformed("HTTP/1.1 100 Continue\r\n\r\n", Malformed::NoAnswer);
    assert_eq!(Malformed::CutOff.reason(), Reason::CONNECTION_CLOSED);
    assert_eq!(Malformed::NotHttp.reason(), Reason::BAD_RESPONSE);
}

#[test]
fn heads_are_bounded() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(MAX_HEAD_BYTES));
    assert_eq!(read(&action(), long.as_bytes(), 4096), Err(Malformed::LongHead));
    let whole = format!("{long}\r\n\r\n");
    assert_eq!(
        read(&action(), whole.as_bytes(), whole.len()),
        Err(Malformed::LongHead)
    );
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
    malformed(many, Malformed::Head(httparse::Error::TooManyHeaders));
}

#[test]
fn ten_kib_of_a_body_decide_and_the_rest_is_not_awaited() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n";
    let enough = format!("{head}{}", "x".repeat(MAX_READ_BYTES));
    status(&enough, 200);
    malformed(&enough[..enough.len() - 1], Malformed::CutOff);
    let endless = format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(MAX_READ_BYTES * 3));
    status(&endless, 200);
}

#[test]
fn an_expected_text_is_searched_in_the_first_ten_kib() {
    let wants = |text: &str| HttpGetAction {
        expected_body: Some(text.into()),
        ..action()
    };
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let check = |text: &str, body: &str, has: bool| {
        let expected = Response {
            status: 200,
            location: None,
            body_has_text: Some(has),
        };
        check_with(&wants(text), answer(body).as_bytes(), &Ok(expected));
    };
    check("ok", "all ok here", true);
    check("ok", "all is well", false);
    check("ok", "", false);
    check("", "", true);
    let late = format!("{}ok", "x".repeat(MAX_READ_BYTES - 2));
    check("ok", &late, true);
    let too_late = format!("{}ok", "x".repeat(MAX_READ_BYTES - 1));
    check("ok", &too_late, false);
    let in_chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n";
    let expected = Response {
        status: 200,
        location: None,
        body_has_text: Some(true),
    };
    check_with(&wants("ok"), in_chunks.as_bytes(), &Ok(expected));
}

proptest! {
    /// No bytes make it panic, and how they are cut never matters.
    #[test]
    fn any_bytes_read_the_same_in_any_pieces(
        start in proptest::sample::select(vec![
            "", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", "HTTP/1.1 100 \r\n\r\n",
        ]),
        rest in proptest::collection::vec(proptest::sample::select(b"\r\n:;0aA1 HTP/.\0\xff".to_vec()), 0..60),
        size in 1_usize..20,
    ) {
        let bytes = [start.as_bytes(), &rest].concat();
        let whole = read(&action(), &bytes, bytes.len().max(1));
        prop_assert_eq!(read(&action(), &bytes, size), whole);
    }
}
