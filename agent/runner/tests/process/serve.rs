//! What the runner does with the commands that it knows.

use {
    crate::{
        PATIENCE,
        container::{Agent, Container, is_alive, until_gone},
        until,
    },
    healthscope_runner::protocol::{End, MAX_AT_ONCE, MAX_OUTPUT_BYTES},
    rustix::process::Pid,
    std::{
        fs,
        os::unix::net::UnixListener,
        path::Path,
        thread,
        time::{Duration, Instant},
    },
};

fn up(container: &Container, checks: &[&[&str]]) -> (UnixListener, Agent) {
    let listener = container.listen();
    container.carry(checks);
    let agent = Agent::greeted(&listener, u16::try_from(checks.len()).unwrap());
    (listener, agent)
}

/// The number that a command wrote to a file.
fn number_in(path: &Path) -> i32 {
    until("a process id", || {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

#[test]
fn commands_are_asked_for_by_number() {
    let container = Container::new();
    let checks: [&[&str]; 5] = [
        &["sh", "-c", "echo out; echo err >&2; exit 3"],
        &["sh", "-c", "kill -TERM $$"],
        &["/nowhere"],
        &["sh", "-c", "read line; echo \"[$line]\""],
        &["echo", "$HOME; -- -c 2"],
    ];
    let (_listener, mut agent) = up(&container, &checks);
    assert_eq!(agent.run(0), (End::Exited(3), "out\nerr\n".to_owned()));
    assert_eq!(agent.run(1), (End::Signaled(15), String::new()));
    assert_eq!(agent.run(2), (End::CannotStart(2), String::new()));
    assert_eq!(agent.run(3), (End::Exited(0), "[]\n".to_owned()));
    assert_eq!(agent.run(4), (End::Exited(0), "$HOME; -- -c 2\n".to_owned()));
    assert_eq!(agent.run(5), (End::NoSuchCheck, String::new()));
}

#[test]
fn a_timeout_kills_the_whole_group() {
    let container = Container::new();
    let file = container.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; echo begun; wait", file.display());
    let (_listener, mut agent) = up(&container, &[&["sh", "-c", &script]]);
    let begun = Instant::now();
    agent.ask(0, Duration::from_millis(300));
    let answer = agent.answer();
    assert_eq!((answer.end, &*answer.output), (End::TimedOut, &b"begun\n"[..]));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    until_gone(number_in(&file));
}

#[test]
fn output_without_end_is_cut_and_costs_little() {
    let container = Container::new();
    let (_listener, mut agent) = up(
        &container,
        &[&["yes"], &["sh", "-c", "head -c 300000 /dev/zero; exit 1"]],
    );
    let runner = container.runner();
    let before = processor_time(runner);
    agent.ask(0, Duration::from_secs(1));
    let answer = agent.answer();
    assert_eq!((answer.end, answer.cut), (End::TimedOut, true));
    assert_eq!(answer.output.len(), MAX_OUTPUT_BYTES);
    let spent = processor_time(runner).checked_sub(before).unwrap();
    assert!(spent < Duration::from_millis(200), "{spent:?}");
    // A command that prints much is not stopped by that.
    let id = agent.ask(1, PATIENCE);
    let answer = agent.answer();
    assert_eq!((answer.id, answer.end, answer.cut), (id, End::Exited(1), true));
}

fn processor_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_command_that_leaves_something_with_its_output_is_not_waited_for() {
    let container = Container::new();
    let file = container.path().join("pid");
    let child = format!("sleep 1000 & echo $! > {}", file.display());
    let escaped = format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 1000' & echo done; while ! test -s {0}; do :; done",
        file.display()
    );
    let (_listener, mut agent) = up(&container, &[&["sh", "-c", &child], &["sh", "-c", &escaped]]);
    assert_eq!(agent.run(0), (End::Exited(0), String::new()));
    until_gone(number_in(&file));
    // What leaves the group on purpose lives on, and is the runner's child.
    fs::remove_file(&file).unwrap();
    assert_eq!(agent.run(1), (End::Exited(0), "done\n".to_owned()));
    let pid = number_in(&file);
    assert!(is_alive(pid));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = format!("PPid:\t{}\n", container.runner().as_raw_pid());
    assert!(status.contains(&parent), "{status}");
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("it to be reaped", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

#[test]
fn one_that_hangs_does_not_hold_up_the_others_and_there_is_a_limit() {
    let container = Container::new();
    let (_listener, mut agent) = up(&container, &[&["sleep", "1000"], &["echo", "quick"]]);
    for _ in 0..MAX_AT_ONCE - 1 {
        agent.ask(0, PATIENCE);
    }
    assert_eq!(agent.run(1), (End::Exited(0), "quick\n".to_owned()));
    let last = agent.ask(0, PATIENCE);
    assert_eq!(agent.run(1).0, End::Busy);
    agent.cancel(last);
    let cancelled = agent.answer();
    assert_eq!((cancelled.id, cancelled.end), (last, End::Cancelled));
    assert_eq!(agent.run(1).0, End::Exited(0));
}

#[test]
fn the_end_of_the_connection_ends_what_runs() {
    let container = Container::new();
    let file = container.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", file.display());
    let (listener, mut agent) = up(&container, &[&["sh", "-c", &script]]);
    agent.ask(0, PATIENCE);
    let pid = number_in(&file);
    drop(agent);
    until_gone(pid);
    let mut next = Agent::greeted(&listener, 1);
    next.ask(0, PATIENCE);
    // An agent that speaks nonsense is left, and found again when it does better.
    let mut odd = next;
    odd.send(&[0xff; 64]);
    assert_eq!(odd.next(), None);
    Agent::greeted(&listener, 1);
}

/// Descriptors, memory in KiB, and children of a process.
fn figures(pid: Pid) -> (usize, u64, usize) {
    let pid = pid.as_raw_pid();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    (descriptors, memory, children.split_whitespace().count())
}

#[test]
fn ten_thousand_runs_leave_nothing_behind() {
    let container = Container::new();
    // Each leaves an orphan, and some output.
    let script = "echo some output; sleep 1000 & exit 1";
    let (_listener, mut agent) = up(&container, &[&["/bin/true"], &["sh", "-c", script]]);
    let runner = container.runner();
    let mut round = |runs: u32| {
        for run in 0..runs {
            agent.ask(u8::from(run % 10 == 0), PATIENCE);
            agent.answer();
        }
        // Killed orphans end a moment later.
        until("all children to be gone", || {
            (figures(runner).2 == 0).then_some(())
        });
        figures(runner)
    };
    let first = round(500);
    let last = round(9_500);
    assert_eq!(last.0, first.0, "descriptors");
    assert!(last.1 <= first.1 + 64, "{first:?} {last:?}");
    println!(
        "anonymous memory: {} KiB after 500 runs, {} KiB after 10,000",
        first.1, last.1
    );
    thread::sleep(Duration::from_millis(10));
}

#[test]
fn a_first_process_that_does_not_reap_is_given_nothing_to_reap() {
    let container = Container::new();
    let listener = container.listen();
    // In a PID namespace of its own: the shell becomes a program that never waits, as containers often have.
    let script = format!(
        "mount -t proc proc /proc && {} carry -c 3 sh -c 'sleep 1000 & exit 0' && exec sleep 1000",
        container.program().display()
    );
    let mut outside = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "sh", "-c", &script])
        .spawn()
        .unwrap();
    let mut agent = Agent::greeted(&listener, 1);
    for _ in 0..200 {
        assert_eq!(agent.run(0).0, End::Exited(0));
    }
    let first = until("the first process", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", outside.id())).ok()?;
        children.split_whitespace().next()?.parse::<i32>().ok()
    });
    // Its only child is the runner, or what the shell had.
    let zombies = || {
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        children
            .split_whitespace()
            .filter(|child| !is_alive(child.parse().unwrap()))
            .count()
    };
    assert_eq!(zombies(), 0);
    outside.kill().unwrap();
    outside.wait().unwrap();
    // The namespace's end is the runner's.
    assert_eq!(agent.next(), None);
}
