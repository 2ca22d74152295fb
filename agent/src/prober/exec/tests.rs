//! Real commands on this machine: good, bad and stubborn ones.

use {
    super::*,
    healthscope_shared::probe::outcome::RunResult,
    std::{os::unix::fs::PermissionsExt, path::Path, time::Instant},
};

/// Longer than anything here takes on a loaded machine.
const SECONDS: Duration = Duration::from_secs(60);

fn deadline(timeout: Duration) -> Deadline {
    Deadline {
        at: tokio::time::Instant::now() + timeout,
        timeout,
    }
}

async fn run_for(timeout: Duration, command: &[&str]) -> Found {
    let exec = ExecAction {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        runner: None,
    };
    let with = Commands::default();
    let found = with.run(&exec, deadline(timeout)).await;
    assert_eq!(with.unreaped.sweep(), 0, "everything is reaped");
    found
}

async fn run(command: &[&str]) -> Found {
    run_for(SECONDS, command).await
}

async fn sh(script: &str) -> Found {
    run(&["sh", "-c", script]).await
}

#[track_caller]
#[expect(
    clippy::needless_pass_by_value,
    reason = "expected values are written in place"
)]
fn is(found: &Found, result: RunResult, message: &str) {
    assert_eq!((&found.result, found.message.as_str()), (&result, message));
}

fn exit_code() -> RunResult {
    RunResult::Failure(Reason::EXIT_CODE)
}

/// Whether a process runs (a zombie does not).
fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Waits until a process is gone; killing is asynchronous.
async fn gone(pid: i32) {
    let give_up = Instant::now() + SECONDS;
    while is_alive(pid) {
        assert!(Instant::now() < give_up, "process {pid} is still there");
        tokio::task::yield_now().await;
    }
}

fn pid_in(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn exit_code_zero_is_success_whatever_is_printed() {
    let found = sh("echo out; echo err >&2").await;
    is(&found, RunResult::Success, "");
    assert_eq!(found.output, "out\nerr\n");
}

#[tokio::test]
async fn other_exit_codes_are_failures_with_the_line_that_tells_most() {
    is(&sh("exit 1").await, exit_code(), "exit code 1");
    is(
        &sh("echo trying; echo no such table >&2; exit 3").await,
        exit_code(),
        "exit code 3: no such table",
    );
    is(
        &sh("nosuchcommand 2>/dev/null").await,
        exit_code(),
        "exit code 127",
    );
}

#[tokio::test]
async fn an_end_by_signal_is_told_apart() {
    is(
        &sh("kill -TERM $$").await,
        RunResult::Failure(Reason::SIGNALED),
        "ended by SIGTERM",
    );
    is(
        &sh("echo bye; kill -SEGV $$").await,
        RunResult::Failure(Reason::SIGNALED),
        "ended by SIGSEGV: bye",
    );
    is(
        &sh("kill -USR1 $$").await,
        RunResult::Failure(Reason::SIGNALED),
        "ended by signal 10",
    );
}

#[tokio::test]
async fn what_cannot_be_executed_is_an_error_that_names_it() {
    let cannot = || RunResult::Error(Reason::CANNOT_EXECUTE);
    is(
        &run(&["/no/such/thing"]).await,
        cannot(),
        "cannot run /no/such/thing: no such file or directory",
    );
    is(
        &run(&["no-such-thing"]).await,
        cannot(),
        "cannot run no-such-thing: no such file or directory",
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("script");
    std::fs::write(&file, "exit 0\n").unwrap();
    let path = file.to_str().unwrap();
    is(
        &run(&[path]).await,
        cannot(),
        &format!("cannot run {path}: permission denied"),
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Without a shebang: no shell steps in.
    is(
        &run(&[path]).await,
        cannot(),
        &format!("cannot run {path}: exec format error"),
    );
    is(
        &run(&[directory.path().to_str().unwrap()]).await,
        cannot(),
        &format!("cannot run {}: permission denied", directory.path().display()),
    );
}

#[tokio::test]
async fn no_shell_is_involved_and_standard_input_is_empty() {
    assert_eq!(run(&["echo", "$HOME;", "*"]).await.output, "$HOME; *\n");
    is(&run(&["cat"]).await, RunResult::Success, "");
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_with_its_children_at_the_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let (leader, child) = (directory.path().join("leader"), directory.path().join("child"));
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; echo working; echo $$ > {}; wait; wait",
        child.display(),
        leader.display()
    );
    let started = Instant::now();
    let found = run_for(Duration::from_millis(500), &["sh", "-c", &script]).await;
    is(
        &found,
        RunResult::Failure(Reason::TIMED_OUT),
        "the command did not end within 500ms",
    );
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(found.output, "working\n");
    gone(pid_in(&leader).unwrap()).await;
    gone(pid_in(&child).unwrap()).await;
}

#[tokio::test]
async fn grandchildren_that_keep_the_pipe_open_do_not_hold_the_run_and_do_not_survive_it() {
    let started = Instant::now();
    let found = sh("sleep 1000 & echo $!; exit 0").await;
    is(&found, RunResult::Success, "");
    assert!(started.elapsed() < SECONDS / 2);
    gone(found.output.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn a_descendant_that_left_the_group_does_not_hold_the_run() {
    // The pid is written by the descendant itself, so that it has left the group before its parent ends.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & while ! test -e {0}; do :; done",
        file.display()
    );
    let started = Instant::now();
    is(&sh(&script).await, RunResult::Success, "");
    assert!(started.elapsed() < SECONDS / 2);
    let escaped = pid_in(&file).unwrap();
    assert!(is_alive(escaped), "it is not ours to kill");
    rustix::process::kill_process(Pid::from_raw(escaped).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_gigabyte_of_output_is_drained_and_ten_kib_are_kept() {
    let found = run_for(
        SECONDS * 5,
        &["sh", "-c", "head -c 1000000000 /dev/zero | tr '\\0' x; exit 4"],
    )
    .await;
    assert_eq!(found.result, exit_code());
    assert_eq!(found.output.len(), MAX_READ_BYTES);
    assert!(found.output.bytes().all(|byte| byte == b'x'));
}

#[tokio::test]
async fn binary_output_becomes_valid_text() {
    let found = run(&["printf", "a\\377\\000b\\303\\050"]).await;
    is(&found, RunResult::Success, "");
    assert_eq!(found.output, "a\u{fffd}\0b\u{fffd}(");
    let failed = sh("printf 'bad \\033[31m\\377'; exit 1").await;
    is(&failed, exit_code(), "exit code 1: bad \u{fffd}[31m\u{fffd}");
}

#[tokio::test]
async fn a_command_that_closes_its_output_and_hangs_times_out() {
    let found = run_for(
        Duration::from_millis(300),
        &["sh", "-c", "exec >&- 2>&-; exec sleep 1000"],
    )
    .await;
    is(
        &found,
        RunResult::Failure(Reason::TIMED_OUT),
        "the command did not end within 300ms",
    );
}

#[tokio::test]
async fn dropping_a_run_kills_and_reaps_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; sleep 1000; true",
        file.display()
    );
    let commands = Commands::default();
    let exec = ExecAction {
        command: vec!["sh".into(), "-c".into(), script],
        runner: None,
    };
    let run = commands.run(&exec, deadline(SECONDS));
    let started = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        found = run => panic!("ended: {found:?}"),
        () = started => {}
    }
    gone(pid_in(&file).unwrap()).await;
    assert_eq!(commands.unreaped.sweep(), 0);
    assert!(
        !Path::new(&format!("/proc/{}", pid_in(&file).unwrap())).exists(),
        "no zombie is left"
    );
}

#[tokio::test]
async fn without_pidfd_commands_run_the_same() {
    let commands = Commands {
        without_pidfd: true,
        ..Commands::default()
    };
    let exec = |command: &str| ExecAction {
        command: vec!["sh".into(), "-c".into(), command.into()],
        runner: None,
    };
    let found = commands.run(&exec("echo hi; exit 2"), deadline(SECONDS)).await;
    is(&found, exit_code(), "exit code 2: hi");
    let found = commands
        .run(&exec("sleep 1000"), deadline(Duration::from_millis(200)))
        .await;
    assert_eq!(found.result, RunResult::Failure(Reason::TIMED_OUT));
    assert_eq!(commands.unreaped.sweep(), 0);
}

#[tokio::test]
async fn the_group_is_the_commands_own() {
    let found = run(&["sh", "-c", "echo $$; ps -o pgid= -p $$"]).await;
    let numbers: Vec<i32> = found
        .output
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!(numbers[0], numbers[1]);
}

#[tokio::test]
async fn too_many_processes_that_cannot_be_reaped_stop_new_ones() {
    let commands = Commands::default();
    // Stand-ins that live: our own process is no child of ours, but sleeping children are.
    let mut children: Vec<_> = (0..=MAX_UNREAPED)
        .map(|_| Command::new("sleep").arg("1000").spawn().unwrap())
        .collect();
    for child in &children {
        commands.unreaped.add(Pid::from_child(child));
    }
    let exec = ExecAction {
        command: vec!["true".into()],
        runner: None,
    };
    let found = commands.run(&exec, deadline(SECONDS)).await;
    assert_eq!(found.result, RunResult::Error(Reason::OUT_OF_RESOURCES));
    children[0].kill().unwrap();
    let give_up = Instant::now() + SECONDS;
    while commands.unreaped.sweep() > MAX_UNREAPED {
        assert!(Instant::now() < give_up);
    }
    let found = commands.run(&exec, deadline(SECONDS)).await;
    assert_eq!(found.result, RunResult::Success);
    for child in &mut children[1..] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
