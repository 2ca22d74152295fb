//! There is a runner, and there is one.

use {
    crate::{
        container::{Agent, Container, until_gone},
        until,
    },
    healthscope_runner::protocol::End,
    rustix::process::{Signal, kill_process},
    std::{fs, path::PathBuf, thread, time::Instant},
};

#[test]
fn two_carriers_start_one_runner() {
    let container = Container::new();
    let listener = container.listen();
    container.carry(&[&["echo", "first"]]);
    let mut agent = Agent::greeted(&listener, 1);
    let runner = container.runner();
    container.carry(&[&["echo", "second"]]);
    assert_eq!(container.runner(), runner);
    assert_eq!(agent.run(0), (End::Exited(0), "first\n".to_owned()));
}

#[test]
fn many_carriers_at_once_start_one_runner() {
    let container = Container::new();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| container.carry(&[&["true"]]));
        }
    });
    until("a runner", || (!container.runners().is_empty()).then_some(()));
    container.runner();
}

#[test]
fn a_runner_that_was_killed_is_replaced_by_the_next_carrier() {
    let container = Container::new();
    let listener = container.listen();
    container.carry(&[&["echo", "old"]]);
    let mut agent = Agent::greeted(&listener, 1);
    let old = container.runner();
    kill_process(old, Signal::KILL).unwrap();
    assert_eq!(agent.next(), None, "its end is the connection's");
    until_gone(old.as_raw_pid());
    container.carry(&[&["echo", "new"]]);
    let mut agent = Agent::greeted(&listener, 1);
    assert_ne!(container.runner(), old);
    assert_eq!(agent.run(0), (End::Exited(0), "new\n".to_owned()));
}

#[test]
fn a_runner_is_detached_from_whoever_started_it() {
    let container = Container::new();
    container.carry(&[&["true"]]);
    let runner = container.runner().as_raw_pid();
    let [parent, session, terminal] = standing(&runner.to_string());
    let us = i32::try_from(std::process::id()).unwrap();
    assert!(
        parent != us && session != runner && terminal == 0,
        "parent {parent}, session {session}, terminal {terminal}"
    );
    let [_, our_session, _] = standing("self");
    assert_ne!(session, our_session);
    let strange = || strange_descriptors(runner, &container);
    // What an emulator has open while it loads the program is closed soon; what was inherited stays.
    until(&format!("{:?} to be closed", strange()), || {
        strange().is_empty().then_some(())
    });
}

/// What a runner has open that it should not.
fn strange_descriptors(runner: i32, container: &Container) -> Vec<PathBuf> {
    let mut strange = Vec::new();
    for descriptor in fs::read_dir(format!("/proc/{runner}/fd")).unwrap() {
        let path = descriptor.unwrap().path();
        let Ok(target) = fs::read_link(&path) else {
            // Closed meanwhile.
            continue;
        };
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // What cargo leaves open for everybody below it (its jobserver) is not from here.
        let is_of_cargo =
            number > 2 && fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|ours| ours == target);
        let is_known = target == *"/dev/null" || target == *container.path();
        if !is_of_cargo && !is_known {
            strange.push(target);
        }
    }
    strange
}

/// Parent, session and terminal of a process. A session is 0 where its leader is outside of this PID namespace, as ours is in
/// many containers: `getsid(2)` of rustix takes that for impossible.
fn standing(process: &str) -> [i32; 3] {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let field = |index| fields.split(' ').nth(index).unwrap().parse().unwrap();
    [field(1), field(3), field(4)]
}

#[test]
fn a_runner_waits_for_an_agent_and_finds_the_next_one() {
    let container = Container::new();
    container.carry(&[&["true"]]);
    let runner = container.runner();
    for _ in 0..3 {
        let listener = container.listen();
        let mut agent = Agent::greeted(&listener, 1);
        assert_eq!(agent.run(0).0, End::Exited(0));
    }
    assert_eq!(container.runner(), runner);
}

#[test]
fn a_carrier_without_a_place_for_the_lock_fails_nobody() {
    let container = Container::new();
    let command = || container.command("carry", &[&["true"]], &["sh", "-c", "echo went on; exit 3"]);
    // Nobody can open a directory that may only be gone through; root can, so it is a missing /proc and program instead.
    let output = command().output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"went on\n");
    let unusable = container
        .command("carry", &[], &[])
        .arg("-c")
        .arg("x")
        .output()
        .unwrap();
    assert_eq!(unusable.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&unusable.stderr).lines().count(), 1);
}

#[test]
fn a_hook_ends_at_once_with_the_exit_code_of_the_user_s_own() {
    let container = Container::new();
    let begun = Instant::now();
    let output = container.command("start", &[&["true"]], &[]).output().unwrap();
    // The goal is 100 ms on an idle machine; this one is not.
    assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
    assert!(output.status.success() && output.stderr.is_empty());
    container.runner();
    let chained = container
        .command("start", &[&["true"]], &["sh", "-c", "exit 7"])
        .output()
        .unwrap();
    assert_eq!(chained.status.code(), Some(7));
    let absent = container.command("start", &[], &["/nowhere"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(0));
    container.runner();
}
