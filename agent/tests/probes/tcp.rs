//! TCP checks.

use {
    crate::{
        LONG, SHORT, failed, run, run_for, succeeded,
        target::{BlackHole, Target, closed_port},
    },
    healthscope_shared::{
        health::Reason,
        probe::{Handler, TcpSocketAction},
    },
    std::net::{Ipv6Addr, TcpListener},
};

fn tcp(host: &str, port: u16) -> Handler {
    Handler::TcpSocket(TcpSocketAction {
        host: host.into(),
        port,
    })
}

#[tokio::test]
async fn a_connection_is_success_even_when_it_is_closed_at_once() {
    let target = Target::raw(drop);
    succeeded(&run(tcp("127.0.0.1", target.port())).await);
}

#[tokio::test]
async fn nobody_needs_to_accept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for _ in 0..3 {
        succeeded(&run(tcp("127.0.0.1", port)).await);
    }
}

#[tokio::test]
async fn a_refusal_is_a_failure() {
    let port = closed_port();
    failed(
        &run(tcp("127.0.0.1", port)).await,
        Reason::CONNECTION_REFUSED,
        "connection refused",
    );
}

#[tokio::test]
async fn a_black_hole_is_a_failure_after_the_timeout() {
    let hole = BlackHole::new();
    let outcome = run_for(SHORT, tcp("127.0.0.1", hole.address.port())).await;
    let message = format!("no connection to {} within 300ms", hole.address);
    failed(&outcome, Reason::TIMED_OUT, &message);
    assert!(outcome.latency >= SHORT, "{outcome:?}");
}

#[tokio::test]
async fn ipv6_addresses_are_reached_and_named_in_brackets() {
    let target = Target::raw_on(Ipv6Addr::LOCALHOST.into(), drop);
    succeeded(&run(tcp("::1", target.port())).await);
    let port = target.port();
    drop(target);
    let closed = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_ne!(closed, port);
    failed(
        &run(tcp("::1", closed)).await,
        Reason::CONNECTION_REFUSED,
        "connection refused",
    );
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // Whatever order `localhost` has, one of the two servers is on one of its addresses only.
    let four = Target::raw(drop);
    let six = Target::raw_on(Ipv6Addr::LOCALHOST.into(), drop);
    succeeded(&run(tcp("localhost", four.port())).await);
    let has_six = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 1))
        .unwrap()
        .any(|a| a.is_ipv6());
    if has_six {
        succeeded(&run(tcp("localhost", six.port())).await);
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_failure() {
    // No resolver has to be asked: a label has at most 63 characters.
    let name = format!("{}.example", "x".repeat(64));
    let outcome = run_for(LONG, tcp(&name, 80)).await;
    assert_eq!(
        outcome.result.reason(),
        Some(&Reason::NAME_NOT_RESOLVED),
        "{outcome:?}"
    );
    assert!(!outcome.result.is_success());
    assert!(
        outcome.message.starts_with(&format!("{name} does not resolve: ")),
        "{outcome:?}"
    );
}
