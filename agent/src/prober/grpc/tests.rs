//! The two messages and what they mean. Whole calls to a real server are in `tests/probes`.

use {super::*, healthscope_shared::probe::outcome::RunResult, http::HeaderValue, proptest::prelude::*};

#[test]
fn requests_are_framed_protobuf() {
    assert_eq!(request_frame(""), [0, 0, 0, 0, 0]);
    assert_eq!(request_frame("web"), [0, 0, 0, 0, 5, 0x0a, 3, b'w', b'e', b'b']);
    let long = request_frame(&"x".repeat(200));
    assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
}

#[test]
fn answers_are_read_with_unknown_fields_skipped() {
    let framed = |message: &[u8]| {
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
        frame.extend_from_slice(message);
        response_status(&frame)
    };
    assert_eq!(framed(&[]), Some(0));
    assert_eq!(framed(&[0x08, 1]), Some(1));
    assert_eq!(framed(&[0x08, 1, 0x08, 2]), Some(2), "the last one counts");
    assert_eq!(framed(&[0x10, 0x96, 0x01, 0x1a, 2, 9, 9, 0x08, 1]), Some(1));
    assert_eq!(
        framed(&[0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x2d, 1, 2, 3, 4, 0x08, 1]),
        Some(1)
    );
    for broken in [&[0x08][..], &[0x1a, 200, 1], &[0x0b], &[0x00, 1], &[0x08, 0x80]] {
        assert_eq!(framed(broken), None, "{broken:?}");
    }
    assert_eq!(response_status(&[]), None);
    assert_eq!(response_status(&[1, 0, 0, 0, 0]), None, "compressed");
    assert_eq!(
        response_status(&[0, 0, 0, 0, 9, 8, 1]),
        None,
        "shorter than it says"
    );
}

fn trailers(code: &str, text: Option<&'static str>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_str(code).unwrap());
    if let Some(text) = text {
        trailers.insert("grpc-message", HeaderValue::from_static(text));
    }
    trailers
}

#[track_caller]
fn check(trailers: &HeaderMap, frame: &[u8], result: RunResult, message: &str) {
    let found = verdict(trailers, frame);
    assert_eq!((found.result, found.message.as_str()), (result, message));
}

#[test]
fn verdicts_follow_the_kubelets_table() {
    let not_serving = || RunResult::Failure(Reason::NOT_SERVING);
    let failed = || RunResult::Failure(Reason::RPC_FAILED);
    let ok = trailers("0", None);
    check(&ok, &[0, 0, 0, 0, 2, 8, 1], RunResult::Success, "");
    check(&ok, &[0, 0, 0, 0, 2, 8, 2], not_serving(), "NOT_SERVING");
    check(&ok, &[0, 0, 0, 0, 2, 8, 3], not_serving(), "SERVICE_UNKNOWN");
    check(&ok, &[0, 0, 0, 0, 0], not_serving(), "UNKNOWN");
    check(&ok, &[0, 0, 0, 0, 2, 8, 9], not_serving(), "status 9");
    check(&ok, b"x", failed(), "the answer is not a HealthCheckResponse");
    check(
        &trailers("5", Some("unknown service")),
        &[],
        failed(),
        "NOT_FOUND: unknown service",
    );
    check(&trailers("12", None), &[], failed(), "UNIMPLEMENTED");
    check(&trailers("99", None), &[], failed(), "gRPC status 99");
    check(
        &trailers("x", None),
        &[],
        failed(),
        "the answer's grpc-status is not a number",
    );
    check(
        &trailers("2", Some("a%0Ab%20c%zz%")),
        &[],
        failed(),
        "UNKNOWN: a b c%zz%",
    );
}

#[test]
fn timeouts_have_at_most_eight_digits() {
    assert_eq!(timeout_text(Duration::from_millis(1)), "1m");
    assert_eq!(timeout_text(Duration::from_secs(99_999)), "99999000m");
    assert_eq!(timeout_text(Duration::from_secs(604_800)), "604800S");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(frame in proptest::collection::vec(any::<u8>(), 0..40), text in any::<Vec<u8>>()) {
        response_status(&frame);
        let mut framed = vec![0, 0, 0, 0, u8::try_from(frame.len()).unwrap()];
        framed.extend_from_slice(&frame);
        response_status(&framed);
        percent_decoded(&text);
    }

    #[test]
    fn varints_read_what_was_written(value in any::<u64>()) {
        let mut bytes = Vec::new();
        push_varint(&mut bytes, value);
        let mut rest = bytes.as_slice();
        prop_assert_eq!(take_varint(&mut rest), Some(value));
        prop_assert!(rest.is_empty());
    }
}
