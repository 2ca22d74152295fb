//! Command lines, exit codes, and what is said when nothing is there.

use {
    crate::support::{Answer, healthscope, run},
    std::{fs, net::TcpListener, process::Command},
};

/// An address at which nobody listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[track_caller]
fn check(arguments: &[&str], code: i32, out: &str, err: &str) {
    let answer = run(arguments);
    assert_eq!(answer.code, code, "{arguments:?}: {answer:?}");
    assert!(
        answer.out.contains(out),
        "{arguments:?}: {answer:?} should print {out:?}"
    );
    assert!(
        answer.err.contains(err),
        "{arguments:?}: {answer:?} should say {err:?}"
    );
}

#[test]
fn an_aggregator_that_is_not_there_is_named_with_what_to_do() {
    let server = nowhere();
    let said = format!(
        "error: cannot reach the aggregator at http://{server}: connection refused\nis `healthscope up` running? --server \
         or HEALTHSCOPE_SERVER names another address\n"
    );
    for command in [
        &["get", "scopes"][..],
        &["why", "shop"],
        &["watch"],
        &["probe", "web"],
        &["get", "scopes", "-w"],
    ] {
        let arguments = [command, &["--server", &server]].concat();
        let answer = run(&arguments);
        assert_eq!(
            (answer.code, answer.out.as_str(), answer.err.as_str()),
            (1, "", said.as_str()),
            "{arguments:?}"
        );
    }
    check(
        &["version", "--server", &server],
        0,
        &format!("Server: cannot reach the aggregator at http://{server}: connection refused\n"),
        "",
    );
    check(
        &[
            "wait",
            "shop",
            "--for=healthy",
            "--timeout=200ms",
            "--server",
            &server,
        ],
        1,
        "",
        "error: timed out after 200ms waiting for shop to be Healthy: cannot reach the aggregator",
    );
}

#[test]
fn something_else_at_the_address_is_told_from_an_aggregator() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _request = stream.read(&mut request);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
                .unwrap();
        }
    });
    check(
        &["get", "scopes", "--server", &server],
        1,
        "",
        "does not answer like a HealthScope aggregator",
    );
}

#[test]
fn command_lines_that_cannot_be_meant_end_with_2() {
    for (arguments, said) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["get"], "required arguments were not provided"),
        (
            &["get", "scops"],
            "error: there is no type \"scops\"; did you mean \"scopes\"?",
        ),
        (&["get", "scopes", "Shop"], "is not a valid object name"),
        (&["get", "scopes", "-n", "No"], "is not a valid namespace"),
        (&["wait", "shop"], "--for"),
        (&["wait", "shop", "--for=green"], "\"green\" is not known"),
        (
            &["wait", "shop", "--for=healthy", "--timeout=60"],
            "write 500ms, 60s or 5m",
        ),
        (&["probe"], "required arguments were not provided"),
        (&["probe", "ftp://x"], "ftp:// is not spoken"),
        (&["probe", "web", "--expect-status=200"], "are for URLs"),
        (&["probe", "localhost:80"], "write http://localhost:80, "),
        (&["get", "scopes", "--server", "http://"], "is not an address"),
        (&["up", "--listen", "0.0.0.0:7575"], "run healthscope-aggregator"),
        (&["check", "--yes"], "required arguments were not provided"),
        // Nobody could be asked, which is no answer about the installation.
        (
            &["check", "--kubeconfig", "/nowhere/kubeconfig"],
            "cannot use the kubeconfig",
        ),
        (&["completion", "tcsh"], "invalid value 'tcsh'"),
    ] {
        check(arguments, 2, "", said);
    }
}

#[test]
fn what_needs_no_aggregator_asks_none() {
    check(&["version", "--client"], 0, "Client: 0.1.0", "");
    check(
        &["explain", "healthscope.spec.policy"],
        0,
        "FIELD: policy <Policy>",
        "",
    );
    check(
        &["explain", "healthscope.spec.polcy"],
        1,
        "",
        "did you mean \"policy\"?",
    );
    check(&["completion", "bash"], 0, "_healthscope()", "");
    check(&["--help"], 0, "Usage: healthscope ", "");
    check(&["--version"], 0, "healthscope 0.1.0", "");
}

#[test]
fn checks_from_here_answer_with_the_exit_code() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    check(
        &["probe", &format!("tcp://{address}")],
        0,
        &format!("success  tcp {address}  in "),
        "",
    );
    let refused = nowhere();
    check(
        &["probe", &format!("http://{refused}/x")],
        1,
        "ConnectionRefused: ",
        "",
    );
    check(
        &["probe", "--", "sh", "-c", "exit 0"],
        0,
        "success  exec sh -c exit 0",
        "",
    );
    check(
        &["probe", "--", "sh", "-c", "printf 'a\\033[31mb\\nc'; exit 7"],
        1,
        "ExitCode: exit code 7",
        "",
    );
    let answer = run(&["probe", "--timeout=200ms", "-o", "json", "--", "sleep", "100"]);
    assert_eq!((answer.code, &answer.json()["reason"]), (1, &"TimedOut".into()));
    check(
        &["probe", "--", "/nonexistent"],
        1,
        "error  exec /nonexistent",
        "",
    );
}

#[test]
fn no_escape_reaches_the_terminal() {
    let answer = run(&["probe", "--", "sh", "-c", "printf 'a\\033]0;owned\\007b'; exit 1"]);
    assert!(
        !answer.out.contains('\u{1b}') && !answer.out.contains('\u{7}'),
        "{answer:?}"
    );
}

#[test]
fn as_a_plugin_it_speaks_of_kubectl() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("kubectl-healthscope");
    fs::hard_link(env!("CARGO_BIN_EXE_healthscope"), &plugin)
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_healthscope"), &plugin).map(|_| ()))
        .unwrap();
    let help = Answer::of(Command::new(&plugin).args(["get", "--help"]).output().unwrap());
    assert!(help.out.contains("Usage: kubectl healthscope get "), "{help:?}");
    let unreachable = Answer::of(
        Command::new(&plugin)
            .args(["get", "scopes", "-s", &nowhere()])
            .output()
            .unwrap(),
    );
    assert!(
        unreachable.err.contains("is `kubectl healthscope up` running?"),
        "{unreachable:?}"
    );
}

#[test]
fn a_pipe_that_is_closed_is_no_error() {
    use std::process::Stdio;
    let mut child = healthscope()
        .args(["explain", "component", "--recursive"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let answer = Answer::of(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
}

/// What is printed to a terminal.
fn on_a_terminal(no_color: &str) -> String {
    use std::{io::Read, os::fd::AsFd, process::Stdio};
    let ours =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&ours).unwrap();
    rustix::pty::unlockpt(&ours).unwrap();
    let name = rustix::pty::ptsname(&ours, Vec::new()).unwrap();
    let theirs = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut child = healthscope()
        .args(["check", "-"])
        .env("NO_COLOR", no_color)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::from(theirs.as_fd().try_clone_to_owned().unwrap()))
        .spawn()
        .unwrap();
    drop(theirs);
    let text = crate::support::component("web", "{readinessProbe: {tcpSocket: {port: 1}}}");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let mut shown = Vec::new();
    // A terminal whose last writer is gone ends with an error (EIO).
    let _end = fs::File::from(ours).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

#[test]
fn colours_are_for_terminals_and_not_for_those_who_want_none() {
    assert!(on_a_terminal("").contains("\u{1b}[1mCOMPONENT\u{1b}[0m"));
    assert!(on_a_terminal("1").contains("COMPONENT") && !on_a_terminal("1").contains('\u{1b}'));
    let piped = run(&[
        "check",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop.yaml"),
    ]);
    assert!(!piped.out.contains('\u{1b}'));
}

#[test]
fn a_token_never_leaves_readable() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "hush").unwrap();
    let token = token.to_str().unwrap();
    check(
        &[
            "get",
            "scopes",
            "--server",
            "http://192.0.2.1:7575",
            "--token-file",
            token,
        ],
        2,
        "",
        "the token is not sent to http://192.0.2.1:7575 over http://",
    );
}
