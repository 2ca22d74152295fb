//! Single runs against real servers on loopback, made here and misbehaving on purpose: every row of the kubelet's
//! behaviour (status codes, redirects, TLS, bodies, refusals, gRPC answers) and every bad target that the agent must
//! survive. Command checks are tested beside their code, thresholds in `shared`.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod grpc;
mod http;
mod target;
mod tcp;
mod tls;

use {
    healthscope_agent::prober::{ProberConfig, Probers},
    healthscope_shared::{
        health::Reason,
        name::ProbeName,
        probe::{
            Handler, HttpGetAction, ProbeKind, ProbeSpec, Scheme,
            outcome::{Outcome, RunResult},
        },
    },
    std::{num::NonZeroU32, time::Duration},
};

/// Longer than anything here takes on a loaded machine.
const LONG: Duration = Duration::from_secs(20);
/// For targets that never answer.
const SHORT: Duration = Duration::from_millis(300);

fn spec(handler: Handler, timeout: Duration) -> ProbeSpec {
    ProbeSpec {
        name: ProbeName::new("readiness").unwrap(),
        kind: ProbeKind::Readiness,
        handler,
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(1),
        timeout,
        success_threshold: NonZeroU32::MIN,
        failure_threshold: NonZeroU32::MIN,
    }
}

async fn run_for(timeout: Duration, handler: Handler) -> Outcome {
    let outcome = Probers::new(ProberConfig::default())
        .run(&spec(handler, timeout))
        .await;
    assert!(outcome.latency < timeout + LONG / 2, "{outcome:?}");
    outcome
}

async fn run(handler: Handler) -> Outcome {
    run_for(LONG, handler).await
}

fn http_get(host: &str, port: u16, path: &str) -> HttpGetAction {
    HttpGetAction {
        host: host.into(),
        port,
        path: path.into(),
        scheme: Scheme::Http,
        headers: Vec::new(),
        verify_tls: false,
        expected_status: Vec::new(),
        expected_body: None,
    }
}

#[track_caller]
fn succeeded(outcome: &Outcome) {
    assert_eq!(
        (&outcome.result, outcome.message.as_str()),
        (&RunResult::Success, "")
    );
}

#[track_caller]
fn warned(outcome: &Outcome, reason: Reason, message: &str) {
    assert_eq!(
        (&outcome.result, outcome.message.as_str()),
        (&RunResult::Warning(reason), message)
    );
}

#[track_caller]
fn failed(outcome: &Outcome, reason: Reason, message: &str) {
    assert_eq!(
        (&outcome.result, outcome.message.as_str()),
        (&RunResult::Failure(reason), message)
    );
}
