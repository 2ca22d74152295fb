//! PID 1 of the agent's container.

use {
    crate::{
        PATIENCE,
        container::{is_alive, tested},
        until,
    },
    rustix::process::{Pid, Signal, kill_process},
    std::{
        fs,
        io::{BufRead, BufReader},
        os::unix::fs::MetadataExt,
        path::Path,
        process::{Child, Command, ExitStatus, Stdio},
        sync::{Arc, Mutex},
        thread,
        time::Instant,
    },
    tempfile::TempDir,
};

struct Supervisor {
    child: Child,
    volume: TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

impl Supervisor {
    fn start(agent: &[&str]) -> Self {
        let volume = tempfile::tempdir().unwrap();
        let mut child = Command::new(tested())
            .args(["supervise", "--dir"])
            .arg(volume.path())
            .args(["--target", "web", "--target", "db", "--"])
            .args(agent)
            .env("VOLUME", volume.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, volume, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn file(&self, name: &str) -> String {
        until(name, || {
            fs::read_to_string(self.volume.path().join(name))
                .ok()
                .filter(|text| text.ends_with('\n'))
        })
    }

    #[track_caller]
    fn says(&self, words: &str, times: usize) {
        until(words, || {
            let log = self.log.lock().unwrap();
            (log.iter().filter(|line| line.contains(words)).count() >= times).then_some(())
        });
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        until("its end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn it_installs_itself_and_starts_the_agent() {
    let supervisor = Supervisor::start(&["sh", "-c", "echo $$ > $VOLUME/pid; exec sleep 1000"]);
    supervisor.file("pid");
    let inode = |name: &str| fs::metadata(supervisor.volume.path().join(name)).unwrap().ino();
    assert_eq!(inode("web/runner"), inode(".agent/runner"));
    assert_eq!(inode("db/runner"), inode(".agent/runner"));
    let version = Command::new(supervisor.volume.path().join("web/runner"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(version.status.success());
}

#[test]
fn an_agent_that_crashes_is_started_again_and_that_is_said() {
    let mut supervisor = Supervisor::start(&["sh", "-c", "echo x >> $VOLUME/starts; exit 9"]);
    supervisor.says("the agent ended, exit code 9; starting it again in 100ms", 1);
    supervisor.says("starting it again in 400ms", 1);
    assert_eq!(supervisor.child.try_wait().unwrap(), None);
    let log = supervisor.log.lock().unwrap().len();
    let starts = supervisor.file("starts").lines().count();
    assert!(log <= starts + 1, "one line a start: {log} {starts}");
}

#[test]
fn an_agent_that_is_missing_ends_nobody() {
    let mut supervisor = Supervisor::start(&["/nowhere/agent"]);
    supervisor.says(
        "cannot start /nowhere/agent: No such file or directory (os error 2); starting it again",
        2,
    );
    assert_eq!(supervisor.child.try_wait().unwrap(), None);
    assert_eq!(supervisor.end(Signal::TERM).code(), Some(0));
}

#[test]
fn an_unusable_command_line_ends_nobody() {
    let mut child = Command::new(tested())
        .args(["supervise", "--dirr", "x"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = [lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()].join(" ");
    assert!(said.contains("--dirr is not expected here"), "{said}");
    assert_eq!(child.try_wait().unwrap(), None);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(until("its end", || child.try_wait().unwrap()).code(), Some(0));
}

#[test]
fn told_to_end_it_waits_for_the_agent() {
    let script =
        "trap 'echo goodbye > $VOLUME/said; exit 5' TERM; echo x > $VOLUME/up; while :; do sleep 0.02; done";
    let mut supervisor = Supervisor::start(&["sh", "-c", script]);
    supervisor.file("up");
    assert_eq!(supervisor.end(Signal::TERM).code(), Some(0));
    assert_eq!(supervisor.file("said"), "goodbye\n");
}

#[test]
fn an_agent_that_does_not_end_is_killed_in_time() {
    let script = "trap '' TERM; echo $$ > $VOLUME/pid; while :; do sleep 0.1; done";
    let mut supervisor = Supervisor::start(&["sh", "-c", script]);
    let pid = supervisor.file("pid").trim().parse().unwrap();
    let begun = Instant::now();
    assert_eq!(supervisor.end(Signal::TERM).code(), Some(0));
    assert!(begun.elapsed() < PATIENCE);
    until("the agent's end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn other_signals_are_passed_on() {
    let script = "trap 'echo hup > $VOLUME/said' HUP; echo x > $VOLUME/up; while :; do sleep 0.02; done";
    let supervisor = Supervisor::start(&["sh", "-c", script]);
    supervisor.file("up");
    kill_process(supervisor.pid(), Signal::HUP).unwrap();
    assert_eq!(supervisor.file("said"), "hup\n");
}

#[test]
fn orphans_are_reaped_where_it_is_the_first_process() {
    let volume = tempfile::tempdir().unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 &) ; done; echo x > $VOLUME/up; exec sleep 1000";
    let mut outside = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child"])
        .arg(tested())
        .args(["supervise", "--dir"])
        .arg(volume.path())
        .args(["--", "sh", "-c", script])
        .env("VOLUME", volume.path())
        .spawn()
        .unwrap();
    until("the agent", || volume.path().join("up").exists().then_some(()));
    let children = |pid: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace()
            .map(|child| child.parse().unwrap())
            .collect()
    };
    until("the orphans to be reaped", || {
        let first = *children(outside.id()).first()?;
        (children(first).len() == 1).then_some(())
    });
    // A first process has no default for a signal: what it does not ask for never comes.
    let first = children(outside.id())[0];
    kill_process(Pid::from_raw(first.try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    let ended = until("its end", || outside.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    assert!(!Path::new(&format!("/proc/{first}")).exists());
}
