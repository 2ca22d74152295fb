//! The runner: one thread, one connection, a few processes.
//!
//! It holds the lock of its directory for as long as it lives, connects to the agent's socket there, and connects again,
//! with growing pauses, whenever that connection ends: the agent may be restarted. It ends with its container, whose
//! processes are all killed when the first of them ends. As a subreaper it is given the orphans of its commands and reaps
//! them: the first process of a container is often a program that does not.
//!
//! It does nothing that it was not asked to do by its own command line.

use {
    crate::{
        arguments::Words,
        carry,
        reap::{self, Left},
        run::Run,
    },
    healthscope_runner::{
        SOCKET,
        protocol::{Answer, End, Frames, FromAgent, FromRunner, MAX_AT_ONCE, VERSION},
    },
    rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        fs::{Mode, OFlags},
    },
    std::{
        ffi::OsStr,
        io::{self, Read, Write},
        os::{
            fd::{AsFd, OwnedFd},
            unix::net::UnixStream,
        },
        path::Path,
        time::{Duration, Instant},
    },
};

/// Pause before the first and the slowest attempts to connect again. A refused one costs microseconds; an agent that is
/// back is to be useful soon.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pauses between looks at children that nobody waits for (what a command has left behind).
const ORPHANS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));
/// With those that were killed and have not ended: they hang in the kernel (a dead network file system).
const MAX_PROCESSES: usize = 4 * MAX_AT_ONCE;
/// An agent that does not read its answers is not asked for more questions: twice what can be open.
const MAX_UNSENT_BYTES: usize = 2 * MAX_AT_ONCE * healthscope_runner::protocol::MAX_FRAME_BYTES;

/// Runs until the container ends.
pub(crate) fn serve(name: &OsStr, commands: Vec<Words>) {
    let Some(_held) = take_lock() else {
        return;
    };
    let Ok(directory) = carry::directory(name) else {
        return;
    };
    // What is left behind by commands goes to the container's first process otherwise, as it did without us.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    Runner {
        commands,
        runs: Vec::with_capacity(MAX_AT_ONCE),
        link: None,
        connect_at: Instant::now(),
        connect_pause: RECONNECT.0,
        look_at: None,
        look_pause: ORPHANS.0,
    }
    .run(&directory.join(SOCKET));
}

/// The lock came as standard input; what takes its place is what commands expect there.
fn take_lock() -> Option<OwnedFd> {
    let lock = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).ok()?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::stdio::dup2_stdin(null).ok()?;
    Some(lock)
}

struct Runner {
    commands: Vec<Words>,
    /// Those that run, and those that were killed and have not ended yet; at most [`MAX_PROCESSES`].
    runs: Vec<Run>,
    link: Option<Link>,
    connect_at: Instant,
    connect_pause: Duration,
    /// When to look for orphans that have ended.
    look_at: Option<Instant>,
    look_pause: Duration,
}

/// The connection to the agent.
struct Link {
    stream: UnixStream,
    frames: Frames,
    unsent: Vec<u8>,
}

impl Runner {
    fn run(mut self, socket: &Path) {
        loop {
            let now = Instant::now();
            if self.link.is_none() && now >= self.connect_at {
                self.connect(socket, now);
            }
            self.wait(now);
            let now = Instant::now();
            self.receive(now);
            self.tick(now);
            self.reap(now);
            self.send();
        }
    }

    fn connect(&mut self, socket: &Path, now: Instant) {
        self.connect_at = now + self.connect_pause;
        self.connect_pause = (self.connect_pause * 2).min(RECONNECT.1);
        let Ok(stream) = UnixStream::connect(socket) else {
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut link = Link {
            stream,
            frames: Frames::default(),
            unsent: Vec::new(),
        };
        let commands = u16::try_from(self.commands.len()).unwrap_or(u16::MAX);
        let hello = FromRunner::Hello {
            version: VERSION,
            commands,
        };
        hello.encode(&mut link.unsent);
        self.link = Some(link);
        self.send();
    }

    /// Waits until something happens or is due.
    fn wait(&self, now: Instant) {
        let connect = self.link.is_none().then_some(self.connect_at);
        let due = self.runs.iter().filter_map(|run| run.due(now));
        let next = due.chain(connect).chain(self.look_at).min();
        let timeout = next.map(|next| {
            // Rounded up, so that what is due is due when the wait is over.
            let left = next.saturating_duration_since(now) + Duration::from_micros(50);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut waited = Vec::with_capacity(1 + 2 * self.runs.len());
        if let Some(link) = &self.link {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, link.unsent.len() <= MAX_UNSENT_BYTES);
            flags.set(PollFlags::OUT, !link.unsent.is_empty());
            waited.push(PollFd::from_borrowed_fd(link.stream.as_fd(), flags));
        }
        for run in &self.runs {
            let descriptors = [run.pidfd(), run.output(now)];
            let descriptors = descriptors.into_iter().flatten();
            waited.extend(descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        // An error is a signal, or passes; everything is looked at in any case.
        let _ = poll(&mut waited, timeout.as_ref());
    }

    fn receive(&mut self, now: Instant) {
        let may_ask = |link: &mut Link| link.unsent.len() <= MAX_UNSENT_BYTES;
        let Some(mut link) = self.link.take_if(may_ask) else {
            return;
        };
        // Enough for every question that may be open; what is not read now is there next time.
        let mut buffer = [0; 512];
        let is_open = match link.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                link.frames.add(&buffer[..count]);
                self.take(&mut link, now)
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        };
        if is_open {
            self.link = Some(link);
        } else {
            self.disconnected();
        }
    }

    /// Does what was asked; whether it could be understood.
    fn take(&mut self, link: &mut Link, now: Instant) -> bool {
        loop {
            let message = match link.frames.next_frame() {
                Ok(None) => return true,
                Ok(Some(frame)) => FromAgent::decode(frame),
                Err(error) => Err(error),
            };
            // Somebody speaks who was accepted as an agent.
            self.connect_pause = RECONNECT.0;
            let answer = match message {
                Ok(FromAgent::Run {
                    id,
                    check,
                    timeout_ms,
                }) => self.start(id, check, now + Duration::from_millis(timeout_ms.into())),
                Ok(FromAgent::Cancel { id }) => self
                    .runs
                    .iter_mut()
                    .find(|run| run.id() == id)
                    .and_then(|run| run.stop(End::Cancelled)),
                Err(_) => return false,
            };
            link.answer(answer);
        }
    }

    fn start(&mut self, id: u32, check: u8, deadline: Instant) -> Option<Answer> {
        let open = self.runs.iter().filter(|run| !run.is_answered()).count();
        let end = if open >= MAX_AT_ONCE || self.runs.len() >= MAX_PROCESSES {
            End::Busy
        } else {
            match self.commands.get(usize::from(check)) {
                None => End::NoSuchCheck,
                Some(words) => match Run::start(id, words, deadline) {
                    Ok(run) => {
                        self.runs.push(run);
                        return None;
                    }
                    Err(errno) => End::CannotStart(errno),
                },
            }
        };
        Some(Answer {
            id,
            end,
            cut: false,
            output: Vec::new(),
        })
    }

    fn tick(&mut self, now: Instant) {
        for run in &mut self.runs {
            let answer = run.tick(now);
            if let Some(link) = &mut self.link {
                link.answer(answer);
            }
        }
    }

    fn reap(&mut self, now: Instant) {
        let Self { runs, link, .. } = self;
        let had_runs = !runs.is_empty();
        let left = reap::children(|pid, status| {
            let Some(position) = runs.iter().position(|run| run.pid() == pid) else {
                return;
            };
            let answer = runs.swap_remove(position).ended(status);
            if let Some(link) = link {
                link.answer(answer);
            }
        });
        match left {
            // Whatever could not be waited for is gone.
            Left::None => {
                runs.clear();
                self.look_at = None;
            }
            // A command's end wakes this loop, and then its orphans are looked for too.
            Left::Some if !runs.is_empty() => self.look_at = None,
            Left::Some if had_runs => {
                self.look_pause = ORPHANS.0;
                self.look_at = Some(now + self.look_pause);
            }
            Left::Some if self.look_at.is_none_or(|at| now >= at) => {
                self.look_pause = (self.look_pause * 2).min(ORPHANS.1);
                self.look_at = Some(now + self.look_pause);
            }
            Left::Some => {}
        }
    }

    fn send(&mut self) {
        let Some(link) = &mut self.link else { return };
        while !link.unsent.is_empty() {
            match link.stream.write(&link.unsent) {
                Ok(count) if count > 0 => drop(link.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => return self.disconnected(),
            }
        }
        // What a long output needed is given back.
        link.unsent.shrink_to(256);
    }

    /// Nobody waits for the answers any more.
    fn disconnected(&mut self) {
        self.link = None;
        for run in &mut self.runs {
            run.stop(End::Cancelled);
        }
        self.connect_at = Instant::now() + self.connect_pause;
    }
}

impl Link {
    fn answer(&mut self, answer: Option<Answer>) {
        if let Some(answer) = answer {
            FromRunner::Answer(answer).encode(&mut self.unsent);
        }
    }
}
