//! Carried in place, a command is what it is without us.

use {
    crate::container::Container,
    std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Output, Stdio},
        thread,
        time::Duration,
    },
};

/// Runs a command as it is and carried, and compares all that the kubelet could see.
#[track_caller]
fn check(words: &[&str]) {
    let container = Container::new();
    for _ in 0..2 {
        // Without a runner, then with one.
        let plain = Command::new(words[0]).args(&words[1..]).output().unwrap();
        let carried = container.command("carry", &[&["true"]], words).output().unwrap();
        assert_eq!(carried, plain, "{words:?}");
    }
}

#[test]
fn exit_code_and_output_are_its_own() {
    check(&["true"]);
    check(&["false"]);
    check(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    check(&["sh", "-c", "head -c 300000 /dev/zero"]);
    check(&["cat", "/nowhere"]);
}

#[test]
fn signals_are_its_own() {
    check(&["sh", "-c", "kill -TERM $$"]);
    check(&["sh", "-c", "kill -KILL $$"]);
    // Ignored by the program that starts it, and not by the command.
    check(&["sh", "-c", "kill -PIPE $$; echo alive"]);
    check(&["sh", "-c", "grep -E '^(SigBlk|SigIgn)' /proc/self/status"]);
}

#[test]
fn environment_directory_and_umask_are_its_own() {
    check(&["env"]);
    check(&["pwd"]);
    check(&["sh", "-c", "umask"]);
    check(&["sh", "-c", "ulimit -a"]);
    check(&["sh", "-c", "ls -l /proc/self/fd | wc -l"]);
}

#[test]
fn it_has_no_children_that_it_does_not_know_of() {
    check(&[
        "sh",
        "-c",
        "wait; read children < /proc/$$/task/$$/children; echo \"[$children]\"",
    ]);
}

#[test]
fn it_is_the_same_process() {
    let container = Container::new();
    let mut carried = container
        .command("carry", &[&["true"]], &["sleep", "100"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let stat = format!("/proc/{}/comm", carried.id());
    crate::until("the command", || {
        (std::fs::read_to_string(&stat).ok()?.trim() == "sleep").then_some(())
    });
    // The kubelet kills it at its timeout.
    carried.kill().unwrap();
    assert_eq!(carried.wait().unwrap().signal(), Some(9));
    thread::sleep(Duration::from_millis(1));
    container.runner();
}

#[test]
fn a_command_that_cannot_be_executed_is_no_failure() {
    let container = Container::new();
    let script = container.path().join("script");
    std::fs::write(&script, "no program").unwrap();
    for absent in ["/nowhere", "no-such-command", "/", script.to_str().unwrap()] {
        assert!(Command::new(absent).output().is_err(), "{absent}");
        let Output {
            status,
            stdout,
            stderr,
        } = container
            .command("carry", &[&["true"]], &[absent])
            .output()
            .unwrap();
        assert_eq!((status.code(), stdout.len()), (Some(0), 0), "{absent}");
        let said = String::from_utf8(stderr).unwrap();
        assert!(said.lines().count() == 1 && said.contains(absent), "{said}");
    }
}
