//! Command checks: a process group of its own, bounded output, nothing left behind.
//!
//! * The command is run as written, never through a shell; the program is searched for in the agent's `PATH`. It has the
//!   agent's environment and working directory, `/dev/null` as standard input, and one pipe as standard output and
//!   error.
//! * Its end is the end of the run: a grandchild that keeps the pipe open is not waited for. What is left of the process
//!   group is killed then, and at the timeout (SIGKILL), and when the run is dropped: a check that leaves a process
//!   behind each time would fill the machine. (The kubelet leaves them; a command that means to start something can take
//!   it out of the group with `setsid`.)
//! * The first 10 KiB of output are kept, the rest is read and forgotten, so that a chatty command is not stopped.
//!
//! Processes are started with `posix_spawn` (what `std` uses as long as no code has to run between fork and exec) and
//! awaited by pidfd, so a check costs little more than the process itself; `docs/performance.md` has the figures.

use {
    super::{Deadline, Found, MAX_READ_BYTES, is_shortage, plain},
    crate::watch::watch,
    healthscope_shared::{health::Reason, one_line, probe::ExecAction},
    rustix::{
        event::{PollFd, PollFlags, Timespec},
        fs::OFlags,
        io::Errno,
        pipe::PipeFlags,
        process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus},
    },
    std::{
        io,
        os::{fd::OwnedFd, unix::process::CommandExt},
        process::{Command, Stdio},
        sync::{Arc, Mutex, PoisonError},
        time::Duration,
    },
    tokio::{
        io::{Interest, unix::AsyncFd},
        time::{sleep, timeout, timeout_at},
    },
};

/// A killed process that is not gone after this long hangs in the kernel (a dead network file system).
const KILL_GRACE: Duration = Duration::from_secs(1);
/// A run that is dropped waits so long for the process that it killed, and holds up everything else meanwhile.
const DROP_GRACE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// Most processes that hang so; over it no command is run until some are gone.
const MAX_UNREAPED: usize = 16;
/// Longest line of output repeated in the message.
const MAX_LINE_BYTES: usize = 160;
/// So long a command's output is not looked at: most checks end before, and then one wake-up does. A command that prints
/// more than a pipe holds (64 KiB) waits that long once.
const QUIET: Duration = Duration::from_millis(20);
/// First and longest pause between looks at a process where the system has no pidfd.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// Runs commands.
#[derive(Debug, Default)]
pub(super) struct Commands {
    unreaped: Unreaped,
    /// Does as if the system had no pidfd (before Linux 5.3, some sandboxes).
    #[cfg(test)]
    without_pidfd: bool,
}

/// Killed processes whose end has not been seen yet; looked at before each run.
#[derive(Clone, Debug, Default)]
struct Unreaped(Arc<Mutex<Vec<Pid>>>);

impl Unreaped {
    fn add(&self, pid: Pid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
    }

    /// Takes leave of those that have ended; how many are left.
    fn sweep(&self) -> usize {
        let mut unreaped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unreaped.retain(|&pid| matches!(reap(pid), Ok(None)));
        unreaped.len()
    }
}

impl Commands {
    pub(super) async fn run(&self, exec: &ExecAction, deadline: Deadline) -> Found {
        if self.unreaped.sweep() > MAX_UNREAPED {
            let message = "earlier commands cannot be killed: they hang in the kernel";
            return Found::error(Reason::OUT_OF_RESOURCES, message);
        }
        let (mut group, output) = match self.spawn(exec) {
            Ok(spawned) => spawned,
            Err(found) => return found,
        };
        let mut output = Output::new(output);
        let ended = async {
            if let Ok(ended) = timeout(QUIET, group.ended()).await {
                return ended;
            }
            output.watch()?;
            loop {
                tokio::select! {
                    biased;
                    ended = group.ended() => return ended,
                    () = output.read_more() => {}
                }
            }
        };
        let found = match timeout_at(deadline.at, ended).await {
            Ok(Ok(())) => {
                output.read_rest();
                group.kill_members();
                match group.reap() {
                    Ok(status) => verdict(status.as_ref(), &output),
                    Err(error) => Found::error(Reason::INTERNAL_ERROR, format!("wait: {}", plain(&error))),
                }
            }
            Ok(Err(error)) => Found::io(&error, "wait"),
            Err(_) => {
                group.kill();
                let _ = timeout(KILL_GRACE, group.ended()).await;
                output.read_rest();
                deadline.passed("the command did not end")
            }
        };
        Found {
            output: output.into_text(),
            ..found
        }
    }

    /// Waits until every killed process is gone, at most for [`KILL_GRACE`].
    pub(super) async fn settle(&self) {
        let settled = async {
            while self.unreaped.sweep() > 0 {
                sleep(LOOK_AGAIN.0).await;
            }
        };
        if timeout(KILL_GRACE, settled).await.is_err() {
            tracing::warn!("a command that was killed does not end: it hangs in the kernel");
        }
    }

    fn spawn(&self, exec: &ExecAction) -> Result<(Group, OwnedFd), Found> {
        let shortage = |error: io::Error| Found::io(&error, "start the command");
        let (program, arguments) = exec.command.split_first().expect("validated: never empty");
        let (output, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| shortage(e.into()))?;
        // Only our end: a command does not expect its output to be non-blocking.
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).map_err(|e| shortage(e.into()))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(write.try_clone().map_err(shortage)?)
            .stderr(write)
            .process_group(0)
            .spawn()
            .map_err(|error| {
                if is_shortage(&error) {
                    return shortage(error);
                }
                cannot_run(program, &error)
            })?;
        let mut group = Group {
            pid: Pid::from_child(&child),
            pidfd: None,
            reaped: false,
            unreaped: self.unreaped.clone(),
        };
        #[cfg(test)]
        if self.without_pidfd {
            return Ok((group, output));
        }
        group.pidfd = match rustix::process::pidfd_open(group.pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Some(watch(pidfd, Interest::READABLE).map_err(shortage)?),
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => None,
            Err(error) => return Err(shortage(error.into())),
        };
        Ok((group, output))
    }
}

/// A process group that we started, and that ends with this value.
#[derive(Debug)]
struct Group {
    /// The leader; ours until it is reaped, so the number cannot mean anything else.
    pid: Pid,
    /// Becomes readable when the leader ends; `None` where the system has none.
    pidfd: Option<AsyncFd<OwnedFd>>,
    reaped: bool,
    unreaped: Unreaped,
}

impl Group {
    /// Waits for the end of the leader, without reaping it. Cancel-safe.
    async fn ended(&self) -> io::Result<()> {
        if let Some(pidfd) = &self.pidfd {
            return pidfd.readable().await.map(|mut guard| guard.retain_ready());
        }
        let (mut pause, longest) = LOOK_AGAIN;
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if rustix::process::waitid(WaitId::Pid(self.pid), options)?.is_some() {
                return Ok(());
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Kills what there is of the group.
    fn kill_members(&self) {
        // Fails when nobody is left, which is what is wanted.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }

    /// Kills the group, and the leader apart: it may have moved to another group.
    fn kill(&self) {
        self.kill_members();
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }

    /// Takes the leader's exit status; `None` when it has not ended.
    fn reap(&mut self) -> io::Result<Option<WaitIdStatus>> {
        let status = reap(self.pid)?;
        self.reaped |= status.is_some();
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.kill();
        // As a rule a killed process is gone within microseconds.
        if let Some(pidfd) = &self.pidfd {
            let mut pidfd = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut pidfd, Some(&DROP_GRACE));
        }
        if matches!(self.reap(), Ok(Some(_)) | Err(_)) {
            return;
        }
        self.unreaped.add(self.pid);
    }
}

fn reap(pid: Pid) -> io::Result<Option<WaitIdStatus>> {
    let status = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(status)
}

#[derive(Debug)]
enum Pipe {
    Unwatched(OwnedFd),
    Watched(AsyncFd<OwnedFd>),
    /// Everybody has closed the writing end, or it cannot be read.
    Closed,
}

impl Pipe {
    fn descriptor(&self) -> Option<&OwnedFd> {
        match self {
            Self::Unwatched(descriptor) => Some(descriptor),
            Self::Watched(watched) => Some(watched.get_ref()),
            Self::Closed => None,
        }
    }
}

/// The reading end of a command's output.
#[derive(Debug)]
struct Output {
    pipe: Pipe,
    kept: Vec<u8>,
    /// More was printed than is kept.
    cut: bool,
}

impl Output {
    const fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: Pipe::Unwatched(pipe),
            kept: Vec::new(),
            cut: false,
        }
    }

    /// From now on [`Self::read_more`] knows when there is something to read.
    fn watch(&mut self) -> io::Result<()> {
        self.pipe = match std::mem::replace(&mut self.pipe, Pipe::Closed) {
            Pipe::Unwatched(descriptor) => Pipe::Watched(watch(descriptor, Interest::READABLE)?),
            other @ (Pipe::Watched(_) | Pipe::Closed) => other,
        };
        Ok(())
    }

    /// Reads once, as soon as there is something; never returns after the writing end was closed. Cancel-safe.
    async fn read_more(&mut self) {
        let Self { pipe, kept, cut } = self;
        let Pipe::Watched(watched) = pipe else {
            return std::future::pending().await;
        };
        let is_over = match watched.readable().await {
            // Otherwise it was not ready after all, or something was read: the caller comes back.
            Ok(mut guard) => matches!(
                guard.try_io(|pipe| read_once(pipe.get_ref(), kept, cut)),
                Ok(Ok(0) | Err(_))
            ),
            Err(_) => true,
        };
        if is_over {
            *pipe = Pipe::Closed;
        }
    }

    /// Reads what is there now, as far as it is kept.
    fn read_rest(&mut self) {
        while let Some(descriptor) = self.pipe.descriptor()
            && !self.cut
        {
            if let Ok(0) | Err(_) = read_once(descriptor, &mut self.kept, &mut self.cut) {
                self.pipe = Pipe::Closed;
            }
        }
    }

    fn into_text(self) -> String {
        text(self.kept)
    }
}

/// What was printed, as text.
pub(super) fn text(printed: Vec<u8>) -> String {
    String::from_utf8(printed).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The line that tells most: the last one, or the first when the end was not kept.
fn telling_line(printed: &[u8], cut: bool) -> String {
    let text = String::from_utf8_lossy(printed);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = if cut { lines.next() } else { lines.next_back() };
    one_line(line.unwrap_or_default(), MAX_LINE_BYTES)
}

fn read_once(pipe: &OwnedFd, kept: &mut Vec<u8>, cut: &mut bool) -> io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let count = rustix::io::read(pipe, &mut buffer)?;
    let room = MAX_READ_BYTES - kept.len();
    kept.extend_from_slice(&buffer[..count.min(room)]);
    *cut |= count > room;
    Ok(count)
}

fn verdict(status: Option<&WaitIdStatus>, output: &Output) -> Found {
    let Some(status) = status else {
        return Found::error(
            Reason::INTERNAL_ERROR,
            "the command ended, but not to be waited for",
        );
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => exited(code, &output.kept, output.cut),
        (None, Some(signal)) => signaled(signal, &output.kept, output.cut),
        (None, None) => Found::failure(Reason::SIGNALED, "ended by an unknown signal"),
    }
}

/// What a command found that ended by itself; `cut` when it printed more than is kept.
pub(super) fn exited(code: i32, printed: &[u8], cut: bool) -> Found {
    if code == 0 {
        return Found::success();
    }
    let message = with_line(format!("exit code {code}"), printed, cut);
    Found::failure(Reason::EXIT_CODE, message)
}

/// What a command found that a signal ended.
pub(super) fn signaled(signal: i32, printed: &[u8], cut: bool) -> Found {
    let message = with_line(format!("ended by {}", signal_name(signal)), printed, cut);
    Found::failure(Reason::SIGNALED, message)
}

/// What a command found that could not be executed.
pub(super) fn cannot_run(program: &str, error: &io::Error) -> Found {
    let message = format!(
        "cannot run {}: {}",
        one_line(program, MAX_LINE_BYTES),
        plain(error)
    );
    Found::error(Reason::CANNOT_EXECUTE, message)
}

fn with_line(what: String, printed: &[u8], cut: bool) -> String {
    match telling_line(printed, cut) {
        line if line.is_empty() => what,
        line => format!("{what}: {line}"),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match Signal::from_named_raw(signal) {
        Some(Signal::HUP) => "SIGHUP",
        Some(Signal::INT) => "SIGINT",
        Some(Signal::QUIT) => "SIGQUIT",
        Some(Signal::ILL) => "SIGILL",
        Some(Signal::TRAP) => "SIGTRAP",
        Some(Signal::ABORT) => "SIGABRT",
        Some(Signal::BUS) => "SIGBUS",
        Some(Signal::FPE) => "SIGFPE",
        Some(Signal::KILL) => "SIGKILL",
        Some(Signal::SEGV) => "SIGSEGV",
        Some(Signal::PIPE) => "SIGPIPE",
        Some(Signal::ALARM) => "SIGALRM",
        Some(Signal::TERM) => "SIGTERM",
        Some(_) | None => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests;
