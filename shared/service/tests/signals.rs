//! Signals to a real process: the test starts itself again as the process that is to be ended.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use {
    healthscope_service::shutdown::{Shutdown, signals},
    rustix::process::{Pid, Signal, kill_process},
    std::{
        io::{BufRead, BufReader, Lines},
        os::unix::process::ExitStatusExt,
        process::{Child, ChildStdout, Command, ExitStatus, Stdio},
        time::Duration,
    },
};

const ROLE: &str = "HEALTHSCOPE_TEST_ROLE";

/// How long a process that does not obey lives when nothing ends it; the test fails then.
const STUBBORN: Duration = Duration::from_secs(10);

/// Not a test of its own: what the started process does. It says what it reached, one word a line.
#[tokio::test]
async fn as_the_started_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let shutdown = Shutdown::new();
    signals(&shutdown).unwrap();
    println!("\nlistening");
    shutdown.cancelled().await;
    println!("\nstopping");
    if role == "stubborn" {
        tokio::time::sleep(STUBBORN).await;
    }
}

struct Started {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

fn start(role: &str) -> Started {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_the_started_process", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Started { child, lines }
}

impl Started {
    fn wait_for(&mut self, word: &str) {
        let found = self.lines.by_ref().any(|line| line.unwrap() == word);
        assert!(found, "the process ended before it said {word}");
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> ExitStatus {
        self.lines.by_ref().for_each(drop);
        self.child.wait().unwrap()
    }
}

fn check_first(signal: Signal) {
    let mut started = start("obedient");
    started.wait_for("listening");
    started.send(signal);
    started.wait_for("stopping");
    assert_eq!(started.end().code(), Some(0));
}

fn check_second(first: Signal, second: Signal, code: i32) {
    let mut started = start("stubborn");
    started.wait_for("listening");
    started.send(first);
    started.wait_for("stopping");
    started.send(second);
    let status = started.end();
    assert_eq!((status.code(), status.signal()), (Some(code), None));
}

#[test]
fn first_signal_lets_the_process_end_in_order() {
    check_first(Signal::INT);
    check_first(Signal::TERM);
}

#[test]
fn second_signal_ends_the_process_at_once() {
    check_second(Signal::INT, Signal::INT, 130);
    check_second(Signal::INT, Signal::TERM, 143);
    check_second(Signal::TERM, Signal::INT, 130);
}
