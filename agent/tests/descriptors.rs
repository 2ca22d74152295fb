//! Out of file descriptors: every kind of check says so, as an error of the agent and not of the target, and works again
//! as soon as there are some. A process of its own, because the limit is the process's.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use {
    healthscope_agent::prober::{ProberConfig, Probers},
    healthscope_shared::{
        health::Reason,
        name::ProbeName,
        probe::{
            ExecAction, GrpcAction, Handler, HttpGetAction, ProbeKind, ProbeSpec, Scheme, TcpSocketAction,
            outcome::RunResult,
        },
    },
    rustix::process::{Resource, Rlimit, getrlimit, setrlimit},
    std::{fs::File, net::TcpListener, num::NonZeroU32, time::Duration},
};

fn spec(handler: Handler) -> ProbeSpec {
    ProbeSpec {
        name: ProbeName::new("readiness").unwrap(),
        kind: ProbeKind::Readiness,
        handler,
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(20),
        success_threshold: NonZeroU32::MIN,
        failure_threshold: NonZeroU32::MIN,
    }
}

#[tokio::test]
async fn checks_without_descriptors_are_errors_and_recover() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(256),
            maximum,
        },
    )
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (host, port) = ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
    let tcp = spec(Handler::TcpSocket(TcpSocketAction {
        host: host.clone(),
        port,
    }));
    let exec = spec(Handler::Exec(ExecAction {
        command: vec!["true".into()],
        runner: None,
    }));
    let http = spec(Handler::HttpGet(HttpGetAction {
        host: host.clone(),
        port,
        path: "/".into(),
        scheme: Scheme::Http,
        headers: Vec::new(),
        verify_tls: false,
        expected_status: Vec::new(),
        expected_body: None,
    }));
    let grpc = spec(Handler::Grpc(GrpcAction {
        host,
        port,
        service: String::new(),
    }));
    let probers = Probers::new(ProberConfig::default());

    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // With none left, and with too few for what a command needs.
    for free in 0..4 {
        for probe in [&tcp, &http, &grpc, &exec] {
            let is_command = matches!(probe.handler, Handler::Exec(_));
            if free > 0 && !is_command {
                continue;
            }
            let outcome = probers.run(probe).await;
            assert_eq!(
                outcome.result,
                RunResult::Error(Reason::OUT_OF_RESOURCES),
                "{free} free: {outcome:?}"
            );
            assert!(outcome.message.ends_with("too many open files"), "{outcome:?}");
        }
        hoard.pop();
    }
    hoard.clear();
    for probe in [&tcp, &exec] {
        let outcome = probers.run(probe).await;
        assert_eq!(outcome.result, RunResult::Success, "{outcome:?}");
    }
}
