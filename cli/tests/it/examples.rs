//! Each file of `examples/` does what it says.

use {
    crate::support::{Answer, DEADLINE, TIMEOUT, Up, healthscope, run},
    clap::Parser,
    healthscope_agent::{app as agent, config as agent_config, schedule::Limits},
    healthscope_aggregator as aggregator,
    healthscope_service::{
        config_files::{INTERVAL, Watcher},
        shutdown::Shutdown,
    },
    std::{
        fs,
        path::{Path, PathBuf},
        process::Command,
    },
    tokio::time::timeout,
};

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

#[test]
fn every_example_is_valid() {
    for name in ["quickstart.yaml", "shop.yaml", "all-fields.yaml", "remote"] {
        let answer = run(&["check", example(name).to_str().unwrap()]);
        assert_eq!(answer.code, 0, "{name}: {answer:?}");
    }
    for name in ["quickstart.yaml", "shop.yaml", "remote"] {
        let answer = run(&["check", "-q", example(name).to_str().unwrap()]);
        let other: Vec<&str> = answer
            .err
            .lines()
            .filter(|line| !line.contains("depends on"))
            .collect();
        assert_eq!(other, Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn the_quickstart_is_healthy_on_this_machine() {
    // The example checks the page at its usual port; here the port is one that is free.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("quickstart.yaml");
    let text = fs::read_to_string(example("quickstart.yaml")).unwrap();
    assert!(text.contains("7575"));
    fs::write(&path, text.replace("7575", &port.to_string())).unwrap();
    let listen = format!("127.0.0.1:{port}");
    let up = Up::start(&[path.to_str().unwrap(), "--listen", &listen]);
    up.wait("quickstart", "healthy");
    let probes = up.ask(&["get", "probes", "-o", "name"]);
    assert_eq!(probes.out.lines().count(), 5, "{probes:?}");
}

#[test]
fn all_fields_can_be_run() {
    let up = Up::start(&[example("all-fields.yaml").to_str().unwrap()]);
    up.out.wait_for("everything");
    up.wait("empty", "healthy");
    let probes = up.ask(&["get", "probes", "web", "cache", "-o", "name"]);
    assert_eq!((probes.code, probes.out.lines().count()), (0, 5), "{probes:?}");
    let why = up.ask(&["why", "everything"]);
    assert!(
        why.out
            .contains("in maintenance until 2031-12-01T06:00:00Z: moving to the new database"),
        "{why:?}"
    );
}

/// Carries out the example's lines that make a certificate and a token.
#[track_caller]
fn make_certificate(directory: &Path) {
    let readme = fs::read_to_string(example("remote/README.md")).unwrap();
    let block = readme
        .split("```\n")
        .find(|block| block.starts_with("openssl "))
        .unwrap();
    let made = Command::new("sh")
        .args(["-ec", block])
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "is openssl installed? {said}");
}

/// Both programs as the example starts them.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reports_over_tls_with_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    make_certificate(directory.path());
    let shutdown = Shutdown::new();

    let scopes = example("remote/scopes.yaml");
    let args = aggregator::args::Args::parse_from([
        "healthscope-aggregator",
        "--config",
        scopes.to_str().unwrap(),
        "--listen",
        "0.0.0.0:0",
        "--tls-cert",
        &file("aggregator.crt"),
        "--tls-key",
        &file("aggregator.key"),
        "--token-file",
        &file("token"),
    ]);
    let watcher = Watcher::load(&scopes, INTERVAL, aggregator::declared::read).unwrap();
    let config =
        aggregator::Config::from_args(args, aggregator::config::Source::Files(watcher.subscribe())).unwrap();
    let app = aggregator::App::bind(config).unwrap();
    let port = app.address().port();
    let serving = tokio::spawn(app.run(shutdown.clone()));

    let components = example("remote/components.yaml");
    let args = healthscope_agent::args::Args::parse_from([
        "healthscope-agent",
        "--config",
        components.to_str().unwrap(),
        "--aggregator",
        &format!("wss://localhost:{port}"),
        "--ca",
        &file("aggregator.crt"),
        "--token-file",
        &file("token"),
        "--socket",
        &file("agent.sock"),
    ]);
    agent_config::check(&args).unwrap();
    let settings = agent_config::Settings::new(args).unwrap();
    let agent_config::WatchedSource::Files(path) = &settings.watched else {
        panic!("--config names a file: {:?}", settings.watched);
    };
    let watched = Watcher::load(path, INTERVAL, agent_config::components).unwrap();
    let first = watched.subscribe().borrow().value.as_ref().clone();
    let (_sender, receiver) = tokio::sync::watch::channel(first);
    let agent = agent::App::bind(agent::Config {
        agent: settings.agent,
        components: receiver,
        uplink: settings.uplink,
        local: settings.local,
        pod: settings.pod,
        limits: Limits::default(),
    })
    .await
    .unwrap();
    let reporting = tokio::spawn(agent.run(shutdown.clone()));

    let server = format!("https://localhost:{port}");
    let ca = file("aggregator.crt");
    let token = file("token");
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(file("stranger.crt"), stranger.cert.pem()).unwrap();
    let untrusted = healthscope()
        .args([
            "--server",
            &server,
            "--ca",
            &file("stranger.crt"),
            "get",
            "scopes",
        ])
        .output()
        .unwrap();
    let untrusted = Answer::of(untrusted);
    assert!(
        untrusted.code == 1 && untrusted.err.contains("is not accepted: "),
        "{untrusted:?}"
    );
    let ask = move |arguments: Vec<String>| {
        Answer::of(
            healthscope()
                .args(["--server", &server, "--ca", &ca])
                .args(arguments)
                .output()
                .unwrap(),
        )
    };
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let with_token = words(&["--token-file", &token, "wait", "shop", "--for=healthy", TIMEOUT]);
    let without = words(&["get", "scopes"]);
    let (waited, refused) = timeout(
        DEADLINE * 2,
        tokio::task::spawn_blocking(move || (ask(with_token), ask(without))),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(waited.code, 0, "{waited:?}");
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("wants a token") && refused.err.contains("--token-file"),
        "{refused:?}"
    );
    shutdown.trigger();
    reporting.await.unwrap().unwrap();
    serving.await.unwrap().unwrap();
}
