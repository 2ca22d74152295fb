//! A container without a container: a directory with the program and the agent's socket, and the processes that were
//! started from there.

use {
    crate::{PATIENCE, until},
    healthscope_runner::{
        RUNNER, SOCKET,
        protocol::{Answer, End, Frames, FromAgent, FromRunner, VERSION},
    },
    rustix::{
        fs::{FlockOperation, flock},
        process::{Pid, Signal, kill_process},
    },
    std::{
        env,
        ffi::OsString,
        fs,
        io::{self, Read, Write},
        os::unix::net::{UnixListener, UnixStream},
        path::{Path, PathBuf},
        process::{Command, Output},
        thread,
        time::Duration,
    },
    tempfile::TempDir,
};

/// The program that is tested: cargo's, or the one that is named, which may be another machine's and run through an emulator.
pub(crate) fn tested() -> OsString {
    let named = env::var_os("HEALTHSCOPE_TEST_RUNNER");
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_healthscope-runner").into())
}

/// Its runner is killed when it goes.
pub(crate) struct Container {
    directory: TempDir,
}

impl Container {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A copy and not a link: where its processes' program lies tells whose they are. Made by another process, for
        // nobody can execute a file that one of ours has open for writing while a third is being started.
        let copied = Command::new("cp")
            .arg(tested())
            .arg(directory.path().join(RUNNER))
            .status();
        assert!(copied.unwrap().success());
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path().join(RUNNER)
    }

    pub(crate) fn listen(&self) -> UnixListener {
        let socket = self.path().join(SOCKET);
        let _absent = fs::remove_file(&socket);
        UnixListener::bind(socket).unwrap()
    }

    /// A command line of the program.
    pub(crate) fn command(&self, task: &str, checks: &[&[&str]], then: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.arg(task);
        for words in checks {
            command.arg("-c").arg(words.len().to_string()).args(*words);
        }
        if !then.is_empty() {
            command.arg("--").args(then);
        }
        command
    }

    /// As a carrier; it must have nothing to say.
    pub(crate) fn carry(&self, checks: &[&[&str]]) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command("carry", checks, &[]).output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert!(
            status.success() && stdout.is_empty() && stderr.is_empty(),
            "{status} {said}"
        );
    }

    /// The runners that are up.
    pub(crate) fn runners(&self) -> Vec<Pid> {
        let program = self.program();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let line = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
            let mut words = line.split('\0').skip(1).peekable();
            // An emulator's process is the emulator, and its first argument the program's file.
            let is_emulated = words.next_if(|word| **word == *program).is_some();
            let is_ours = is_emulated || fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program);
            let task = words.nth(usize::from(is_emulated));
            if is_ours && task == Some("serve") {
                let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                found.extend(Pid::from_raw(id));
            }
        }
        found
    }

    #[track_caller]
    pub(crate) fn runner(&self) -> Pid {
        // A process that was executed this moment has no command line yet.
        let runners = until("a runner", || {
            Some(self.runners()).filter(|found| !found.is_empty())
        });
        assert_eq!(runners.len(), 1, "{runners:?}");
        runners[0]
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let directory = fs::File::open(self.path()).unwrap();
        // One that is just being started holds the lock already.
        while flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            for runner in self.runners() {
                // It may have ended.
                let _ = kill_process(runner, Signal::KILL);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What an agent is to a runner.
pub(crate) struct Agent {
    stream: UnixStream,
    frames: Frames,
    next_id: u32,
}

impl Agent {
    /// Takes the next runner.
    pub(crate) fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            frames: Frames::default(),
            next_id: 0,
        }
    }

    /// Takes the next runner, which knows so many commands.
    pub(crate) fn greeted(listener: &UnixListener, commands: u16) -> Self {
        let mut agent = Self::accept(listener);
        let hello = FromRunner::Hello {
            version: VERSION,
            commands,
        };
        assert_eq!(agent.next(), Some(hello));
        agent
    }

    /// What the runner says next; `None` when it is gone.
    pub(crate) fn next(&mut self) -> Option<FromRunner> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(FromRunner::decode(frame).unwrap());
            }
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return None,
                Ok(count) => self.frames.add(&buffer[..count]),
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Puts a question; its id.
    pub(crate) fn ask(&mut self, check: u8, timeout: Duration) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = Vec::new();
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap();
        FromAgent::Run {
            id,
            check,
            timeout_ms,
        }
        .encode(&mut bytes);
        self.send(&bytes);
        id
    }

    pub(crate) fn cancel(&mut self, id: u32) {
        let mut bytes = Vec::new();
        FromAgent::Cancel { id }.encode(&mut bytes);
        self.send(&bytes);
    }

    pub(crate) fn answer(&mut self) -> Answer {
        match self.next() {
            Some(FromRunner::Answer(answer)) => answer,
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Asks and waits; how it ended and what it printed.
    pub(crate) fn run(&mut self, check: u8) -> (End, String) {
        let id = self.ask(check, PATIENCE);
        let answer = self.answer();
        assert_eq!(answer.id, id);
        (answer.end, String::from_utf8(answer.output).unwrap())
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// Waits until it has ended, whether or not it was reaped.
#[track_caller]
pub(crate) fn until_gone(pid: i32) {
    until("the end of a process", || (!is_alive(pid)).then_some(()));
}
