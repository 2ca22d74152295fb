//! The demo: what a newcomer sees, breaks and mends.

use {
    crate::support::{DEADLINE, Lines, TIMEOUT, Up, healthscope, post},
    std::{
        process::Stdio,
        time::{Duration, Instant},
    },
};

#[track_caller]
fn line_after<'a>(lines: &'a [String], label: &str) -> &'a str {
    let line = lines
        .iter()
        .find(|line| line.contains(label))
        .expect("a line with the label");
    line.split(label).nth(1).expect("text after the label").trim()
}

#[test]
fn breaking_db_is_blamed_on_db_everywhere_and_mending_it_is_seen() {
    let up = Up::start(&[]);
    up.out.wait_for("shop   Healthy");
    let greeting = up.out.all();
    // The line that asks works as it is printed.
    let ask: Vec<&str> = line_after(&greeting, "ask why:").split(' ').collect();
    let asked = std::process::Command::new(ask[0])
        .args(&ask[1..])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{asked:?}");
    let break_db = line_after(&greeting, "break db:").to_owned();
    let mend_db = line_after(&greeting, "mend it:").to_owned();

    // Healthy, in each way of asking.
    let why = up.ask(&["why", "shop"]);
    assert_eq!(why.code, 0);
    assert!(why.out.starts_with("shop is Healthy for "), "{why:?}");
    assert_eq!(
        up.ask(&["wait", "shop", "--for=condition=healthy", "--timeout=0"])
            .code,
        0
    );
    let mut watching = healthscope()
        .args(["watch", "--server", &up.address, "shop", "-o", "json", "--probes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let watched = Lines::read(watching.stdout.take().unwrap());
    let mut following = healthscope()
        .args(["get", "components", "-w", "--server", &up.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let followed = Lines::read(following.stdout.take().unwrap());
    followed.wait_for("web    Healthy");
    up.out.wait_for("shop   Healthy");

    let started = Instant::now();
    assert_eq!(post(&break_db), "db is broken");
    up.wait("shop", "unhealthy");
    // Its period is half a second; what is left is the machine's.
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    let root_cause = |answer: &serde_json::Value| {
        answer["status"]["rootCause"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let deadline = Instant::now() + DEADLINE;
    let blamed = loop {
        let scope = up.ask(&["get", "scope", "shop", "-o", "json"]);
        assert_eq!(scope.code, 0);
        let scope = scope.json();
        // Web and cart ask db themselves, and may notice before db's own check does.
        if scope["status"]["available"] == "0/3" && root_cause(&scope).starts_with("db: ") {
            break scope;
        }
        assert!(Instant::now() < deadline, "{scope}");
    };
    assert_eq!(blamed["apiVersion"], "core.oam.dev/v1beta1");
    assert_eq!(blamed["kind"], "HealthScope");
    assert_eq!(blamed["status"]["health"], "Unhealthy");
    assert!(root_cause(&blamed).ends_with(": connection refused"), "{blamed}");
    for component in blamed["status"]["components"].as_array().unwrap() {
        let caused_by = if component["name"] == "db" {
            serde_json::Value::Null
        } else {
            "db".into()
        };
        assert_eq!(component["causedBy"], caused_by, "{component}");
    }

    let table = up.ask(&["get", "health"]);
    assert!(
        table
            .out
            .lines()
            .nth(1)
            .unwrap()
            .starts_with("shop   Unhealthy   0/3         db: readiness tcp "),
        "{table:?}"
    );
    let why = up.ask(&["why", "shop"]);
    assert_eq!(why.code, 1);
    assert!(why.out.contains("\nroot cause: db: readiness tcp "), "{why:?}");
    assert!(
        why.out.contains("├─ Unhealthy db (ReadinessFailed, for "),
        "{why:?}"
    );
    assert_eq!(
        up.ask(&["get", "scopes"]).code,
        0,
        "what was found is found, healthy or not"
    );

    // A run now, through the agent.
    let probe = up.ask(&["probe", "db/readiness"]);
    assert_eq!(probe.code, 1);
    assert!(
        probe.out.starts_with("failure  db/readiness on demo  in "),
        "{probe:?}"
    );
    assert!(probe.out.contains("ConnectionRefused: "), "{probe:?}");
    let storage = up.ask(&["probe", "db/storage", "-o", "json"]);
    assert_eq!(
        (storage.code, &storage.json()["runs"][0]["result"]),
        (0, &"success".into())
    );

    // One line per change, with the reason.
    up.out
        .wait_for("component db          Healthy → Unhealthy    ReadinessFailed: readiness tcp ");
    up.out
        .wait_for("scope shop            Healthy → Unhealthy    PolicyNotMet: ");
    followed.wait_for("web    Unhealthy");
    watched.wait_for(r#""level":"scope""#);
    watched.wait_for(r#""level":"probe""#);

    assert_eq!(post(&mend_db), "db is mended");
    up.wait("shop", "healthy");
    up.out
        .wait_for("scope shop            Unhealthy → Healthy    AllHealthy");
    assert_eq!(up.ask(&["why", "shop"]).code, 0);
    let probe = up.ask(&["probe", "db"]);
    assert_eq!(probe.code, 0);
    assert_eq!(probe.out.lines().count(), 2, "{probe:?}");

    watching.kill().unwrap();
    watching.wait().unwrap();
    following.kill().unwrap();
    following.wait().unwrap();
    let errors = up.err.all();
    let (status, time) = up.interrupt();
    assert!(status.success(), "{status}");
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn watching_and_waiting_outlive_the_aggregator() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listen = ["--listen", &port.to_string()].map(ToOwned::to_owned);
    let listen = [listen[0].as_str(), listen[1].as_str()];
    let mut waiting = healthscope()
        .args(["wait", "shop", "--for=healthy", TIMEOUT, "--server", listen[1]])
        .spawn()
        .unwrap();
    let first = Up::start(&listen);
    assert!(waiting.wait().unwrap().success());

    let mut watching = healthscope()
        .args(["watch", "--server", listen[1]])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = Lines::read(watching.stdout.take().unwrap());
    let err = Lines::read(watching.stderr.take().unwrap());
    // Nobody says when the watch is connected: it is broken and mended until that is seen.
    let seen_after = |up: &Up, skip: usize| {
        let deadline = Instant::now() + DEADLINE;
        let line = "scope shop            Healthy → Unhealthy";
        while !out.all().iter().skip(skip).any(|seen| seen.contains(line)) {
            assert!(Instant::now() < deadline, "{:?} {:?}", out.all(), err.all());
            post(line_after(&up.out.all(), "break db:"));
            up.wait("shop", "unhealthy");
            post(line_after(&up.out.all(), "mend it:"));
            up.wait("shop", "healthy");
        }
    };
    seen_after(&first, 0);
    let seen = out.all().len();
    drop(first);
    err.wait_for("connection lost: cannot reach the aggregator");

    let second = Up::start(&listen);
    err.wait_for("connection is back");
    second.wait("shop", "healthy");
    seen_after(&second, seen);
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn two_demos_do_not_hinder_each_other() {
    let (first, second) = (Up::start(&[]), Up::start(&[]));
    for up in [&first, &second] {
        up.wait("shop", "healthy");
    }
    let of = |up: &Up| line_after(&up.out.all(), "break db:").to_owned();
    assert_ne!(of(&first), of(&second));
}

#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let mut up = healthscope()
        .args(["up", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(up.stdout.take());
    let output = up.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
