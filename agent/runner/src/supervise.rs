//! PID 1 of the agent's container: whatever happens to the agent, the container goes on.
//!
//! A sidecar whose first process ends takes its whole pod out of service, so this one ends only when it is told to: with
//! SIGTERM or SIGINT, which the agent is given, a bounded time after that. An agent that ends is started again after a
//! pause that grows; that is said on standard error, once for each start, which the pauses make rare. Other signals are
//! passed on, orphans are reaped.
//!
//! Memory: on cgroup v2 an agent that reaches the container's limit takes this process with it, so the agent gets a limit
//! of its own below that one, at which its allocations fail and it alone ends.

use {
    crate::{install, reap, say},
    rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Pid, Resource, Rlimit, Signal, WaitStatus, getrlimit, kill_process, setrlimit},
    },
    signal_hook::{
        consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
        flag,
        low_level::pipe,
    },
    std::{
        ffi::OsString,
        fmt, fs,
        io::{self, Read},
        os::{fd::AsFd, unix::net::UnixStream},
        path::{Path, PathBuf},
        process::Command,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
        time::{Duration, Instant},
    },
};

/// First and longest pause before an agent that ended is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// An agent that ran for so long is taken to be well: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(60);
/// What the agent is given to end; it needs two seconds at most.
const END_LIMIT: Duration = Duration::from_secs(3);
/// Of the container's memory, what is not the agent's: this process, the volume's files, the kernel's part.
const MEMORY_RESERVE: u64 = 6 * 1024 * 1024;
/// Below this the agent could not run at all; then the container's own limit has to do.
const LEAST_MEMORY: u64 = 8 * 1024 * 1024;
/// Where the kernel says what a container may use: cgroup v2, then v1. Without a limit it says `max`, or a number larger
/// than any memory.
const MEMORY_LIMITS: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];
/// Signals that are the agent's to understand.
const PASSED_ON: [(i32, Signal); 4] = [
    (SIGHUP, Signal::HUP),
    (SIGQUIT, Signal::QUIT),
    (SIGUSR1, Signal::USR1),
    (SIGUSR2, Signal::USR2),
];

/// Runs until it is told to end. Without a command line that can be used there is nothing to start, and it stays all the
/// same.
pub(crate) fn supervise(line: Option<(&PathBuf, &Vec<String>, &Vec<OsString>)>) {
    let signals = loop {
        match Signals::new() {
            Ok(signals) => break signals,
            Err(error) => {
                say(format_args!("cannot take signals: {error}; trying again"));
                thread::sleep(RESTART.1);
            }
        }
    };
    let command = match line {
        Some((directory, targets, agent)) => {
            if let Err(error) = install::install(directory, targets) {
                say(format_args!(
                    "cannot put the runner into {}: {error}; command checks in containers will not run",
                    directory.display()
                ));
            }
            agent.as_slice()
        }
        None => {
            say(format_args!("there is nothing to start; waiting to be ended"));
            &[]
        }
    };
    limit_memory();
    let supervisor = Supervisor {
        signals,
        command,
        agent: None,
        start_at: (!command.is_empty()).then(Instant::now),
        pause: RESTART.0,
        end_at: None,
    };
    supervisor.run();
}

struct Supervisor<'a> {
    signals: Signals,
    command: &'a [OsString],
    agent: Option<Agent>,
    /// When to start it, while it does not run.
    start_at: Option<Instant>,
    pause: Duration,
    /// When to end it the hard way; set once this process was told to end.
    end_at: Option<Instant>,
}

struct Agent {
    pid: Pid,
    started: Instant,
}

impl Supervisor<'_> {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            if self.end_at.is_none() && self.start_at.is_some_and(|at| now >= at) {
                self.start(now);
            }
            let due = if self.end_at.is_some() {
                self.end_at
            } else {
                self.start_at
            };
            self.signals
                .wait(due.map(|due| due.saturating_duration_since(now)));
            self.reap();
            let now = Instant::now();
            if self.signals.told_to_end() && self.end_at.is_none() {
                self.end_at = Some(now + END_LIMIT);
                self.kill(Signal::TERM);
            }
            for signal in self.signals.to_pass_on() {
                self.kill(signal);
            }
            let Some(end_at) = self.end_at else { continue };
            if self.agent.is_none() {
                return;
            }
            if now >= end_at {
                say(format_args!(
                    "the agent has not ended within {END_LIMIT:?}; killing it"
                ));
                return self.kill(Signal::KILL);
            }
        }
    }

    fn start(&mut self, now: Instant) {
        let Some((program, arguments)) = self.command.split_first() else {
            return;
        };
        match Command::new(program).args(arguments).spawn() {
            Ok(child) => {
                self.start_at = None;
                self.agent = Some(Agent {
                    pid: Pid::from_child(&child),
                    started: now,
                });
            }
            Err(error) => self.again(now, format_args!("cannot start {}: {error}", program.display())),
        }
    }

    fn reap(&mut self) {
        let Self { agent, .. } = self;
        let mut ended = None;
        reap::children(|pid, status| {
            if agent.as_ref().is_some_and(|agent| agent.pid == pid) {
                ended = agent.take().map(|agent| (agent, status));
            }
        });
        let Some((Agent { pid: _, started }, status)) = ended else {
            return;
        };
        if self.end_at.is_some() {
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(started) >= STEADY {
            self.pause = RESTART.0;
        }
        self.again(now, format_args!("the agent ended, {}", Status(status)));
    }

    fn again(&mut self, now: Instant, what: fmt::Arguments<'_>) {
        say(format_args!("{what}; starting it again in {:?}", self.pause));
        self.start_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(RESTART.1);
    }

    fn kill(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            // It may have ended already.
            let _ = kill_process(agent.pid, signal);
        }
    }
}

/// How a process ended, in words.
struct Status(WaitStatus);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(status) = self;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => write!(f, "nobody knows how"),
        }
    }
}

/// Signals that have come, as something that can be waited for with a time limit.
struct Signals {
    /// A byte for each signal; they say nothing, the flags do.
    bytes: UnixStream,
    end: Arc<AtomicBool>,
    passed_on: Vec<(Arc<AtomicBool>, Signal)>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (bytes, write) = UnixStream::pair()?;
        bytes.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let end = Arc::new(AtomicBool::new(false));
        let mut passed_on = Vec::with_capacity(PASSED_ON.len());
        // The flag before the byte: who reads the byte finds the flag.
        for signal in [SIGTERM, SIGINT] {
            flag::register(signal, Arc::clone(&end))?;
            pipe::register(signal, write.try_clone()?)?;
        }
        for (number, signal) in PASSED_ON {
            let has_come = Arc::new(AtomicBool::new(false));
            flag::register(number, Arc::clone(&has_come))?;
            pipe::register(number, write.try_clone()?)?;
            passed_on.push((has_come, signal));
        }
        pipe::register(SIGCHLD, write)?;
        Ok(Self {
            bytes,
            end,
            passed_on,
        })
    }

    /// Waits for a signal, at most for so long.
    fn wait(&mut self, limit: Option<Duration>) {
        let limit = limit.map(|limit| {
            // Rounded up, so that what is due is due when the wait is over.
            let limit = limit + Duration::from_micros(50);
            Timespec {
                tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: limit.subsec_nanos().into(),
            }
        });
        let mut waited = [PollFd::from_borrowed_fd(self.bytes.as_fd(), PollFlags::IN)];
        // Interrupted by the very signal that is waited for, as a rule.
        let _ = poll(&mut waited, limit.as_ref());
        let mut buffer = [0; 64];
        while self.bytes.read(&mut buffer).is_ok_and(|count| count > 0) {}
    }

    fn told_to_end(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn to_pass_on(&self) -> impl Iterator<Item = Signal> {
        let come = |(has_come, _): &&(Arc<AtomicBool>, Signal)| has_come.swap(false, Ordering::Relaxed);
        self.passed_on.iter().filter(come).map(|&(_, signal)| signal)
    }
}

/// Sets the limit of the agent's memory, which it inherits.
fn limit_memory() {
    let limits = MEMORY_LIMITS.iter();
    let limit = limits.filter_map(|path| fs::read_to_string(Path::new(path)).ok());
    let Some(limit) = limit.filter_map(|text| agent_memory(&text)).min() else {
        return;
    };
    let Rlimit { current, maximum } = getrlimit(Resource::Data);
    if current.is_some_and(|current| current <= limit) {
        return;
    }
    let limited = Rlimit {
        current: Some(limit),
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Data, limited) {
        say(format_args!("cannot limit the agent's memory: {error}"));
    }
}

/// What the agent may use of what the container may, as the kernel writes it; `None` where it may use all there is.
fn agent_memory(limit: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    // A container without a limit on cgroup v1 has nine million terabytes.
    let is_limited = limit < 1 << 50;
    let left = limit.checked_sub(MEMORY_RESERVE)?;
    (is_limited && left >= LEAST_MEMORY).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_gets_less_memory_than_the_container_has() {
        let check = |limit, expected| assert_eq!(agent_memory(limit), expected, "{limit}");
        check("33554432\n", Some(26 * 1024 * 1024));
        check("max\n", None);
        check("9223372036854771712\n", None);
        check("8388608\n", None);
        check("0", None);
        check("", None);
        check("garbage", None);
    }
}
