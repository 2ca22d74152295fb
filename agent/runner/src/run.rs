//! One run of a command: a process group of its own, bounded output, nothing left behind.
//!
//! * The command is executed as written, never by a shell, with this process's environment, working directory and umask,
//!   `/dev/null` as standard input, and one pipe as standard output and error.
//! * Its end is the end of the run. A grandchild that keeps the pipe open is not waited for; what is left of the group is
//!   killed.
//! * The first [`MAX_OUTPUT_BYTES`] of output are kept; the rest is read, slowly, and forgotten, so that a command that
//!   prints without end costs little.
//!
//! Nothing here waits: the loop in [`crate::serve`] does.

use {
    healthscope_runner::protocol::{Answer, End, MAX_OUTPUT_BYTES},
    rustix::{
        fs::OFlags,
        io::Errno,
        pipe::PipeFlags,
        process::{Pid, PidfdFlags, Signal, WaitStatus},
    },
    std::{
        ffi::OsString,
        io,
        os::{
            fd::{AsFd, BorrowedFd, OwnedFd},
            unix::process::CommandExt,
        },
        process::{Command, Stdio},
        time::{Duration, Instant},
    },
};

/// So much is read at once; a pipe holds four times that.
const READ_BYTES: usize = 16 * 1024;
/// Pause after a read of output that is not kept: three megabytes a second are read.
const READ_PAUSE: Duration = Duration::from_millis(5);
/// So often a process is looked at where the system has no pidfd (before Linux 5.3, some sandboxes).
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Run {
    id: u32,
    pid: Pid,
    pidfd: Option<OwnedFd>,
    output: Option<OwnedFd>,
    kept: Vec<u8>,
    cut: bool,
    /// Output is not looked at before.
    quiet_until: Option<Instant>,
    deadline: Instant,
    /// Why it was killed.
    killed: Option<End>,
    answered: bool,
}

impl Run {
    /// Starts a command; an error is an `errno`.
    pub(crate) fn start(id: u32, words: &[OsString], deadline: Instant) -> Result<Self, i32> {
        let number = |error: &io::Error| error.raw_os_error().unwrap_or(Errno::INVAL.raw_os_error());
        let (program, arguments) = words.split_first().ok_or(Errno::INVAL.raw_os_error())?;
        let (output, write) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.raw_os_error())?;
        // Only our end: a command does not expect its output to be non-blocking.
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).map_err(|error| error.raw_os_error())?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(write.try_clone().map_err(|error| number(&error))?)
            .stderr(write)
            .process_group(0)
            .spawn()
            .map_err(|error| number(&error))?;
        let pid = Pid::from_child(&child);
        Ok(Self {
            id,
            pid,
            pidfd: rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok(),
            output: Some(output),
            kept: Vec::new(),
            cut: false,
            quiet_until: None,
            deadline,
            killed: None,
            answered: false,
        })
    }

    /// The question that it answers.
    pub(crate) const fn id(&self) -> u32 {
        self.id
    }

    pub(crate) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether its answer was given: it was killed, and has not ended yet.
    pub(crate) const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Becomes readable when the process ends.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// What to read from, at this moment.
    pub(crate) fn output(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let deadline = self.killed.is_none().then_some(self.deadline);
        let quiet = self
            .output
            .as_ref()
            .and(self.quiet_until)
            .filter(|&until| until > now);
        let look = self.pidfd.is_none().then_some(now + LOOK_AGAIN);
        [deadline, quiet, look].into_iter().flatten().min()
    }

    /// Reads what there is, and kills what has taken too long. An answer, if there is one to give.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Answer> {
        if self.output(now).is_some() {
            self.read();
            self.quiet_until = self.cut.then_some(now + READ_PAUSE);
        }
        if self.killed.is_none() && now >= self.deadline {
            return self.stop(End::TimedOut);
        }
        None
    }

    /// Kills it; what is to be answered, without waiting for its end.
    pub(crate) fn stop(&mut self, why: End) -> Option<Answer> {
        if self.killed.is_some() {
            return None;
        }
        self.killed = Some(why);
        self.kill_group();
        // Apart, for it may have moved to another group; it is not reaped, so its number is still its own.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        self.read();
        self.answer(why)
    }

    /// It was reaped; what is to be answered.
    pub(crate) fn ended(mut self, status: WaitStatus) -> Option<Answer> {
        // The group's number is not given away while it has members; when it has none, a new process would have to get
        // it within this microsecond.
        self.kill_group();
        self.read();
        let end = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Signaled(signal),
            (None, None) => End::Lost,
        };
        self.answer(end)
    }

    fn answer(&mut self, end: End) -> Option<Answer> {
        if self.answered {
            return None;
        }
        self.answered = true;
        self.output = None;
        Some(Answer {
            id: self.id,
            end,
            cut: self.cut,
            output: std::mem::take(&mut self.kept),
        })
    }

    fn kill_group(&self) {
        // Fails when nobody is left, which is what is wanted.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }

    /// Reads until nothing is there, or once more than is kept.
    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        while let Some(output) = &self.output {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => self.output = None,
                Ok(count) => {
                    let room = MAX_OUTPUT_BYTES - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                    self.cut |= count > room;
                    if self.cut {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.output = None,
            }
        }
    }
}
