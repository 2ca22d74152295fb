//! Command checks in other containers of the pod: asks the runner in the container, by number.
//!
//! For each container there is one socket, in a directory that only that container has; so whoever connects there *is*
//! in that container, and what it says can make that container's own command checks worthless and nothing else. It is
//! not trusted further: frames are bounded, each answer must belong to a question, the first frame must come in time, and
//! a peer that breaks a rule is disconnected.
//!
//! The first connection wins, and others are closed for as long as it stands. The end of a connection means that the
//! container or its runner has ended; a newcomer that could push another one out could fake that, and two that push each
//! other out would do so without end. A runner that is alive loses nothing: its connection ends with it, the next one's
//! attempt succeeds. One that is connected and does not answer is disconnected, and its turn is over.
//!
//! Without a runner nothing is known about the target: that is [`RunResult::Unavailable`], never a failure.
//!
//! [`RunResult::Unavailable`]: healthscope_shared::probe::outcome::RunResult::Unavailable

use {
    super::{Deadline, Found, exec},
    healthscope_runner::{
        SOCKET,
        protocol::{Answer, End, Frames, FromAgent, FromRunner, MAX_AT_ONCE, VERSION},
    },
    healthscope_shared::{
        config::Component,
        health::Reason,
        name::ContainerName,
        probe::{ExecAction, Handler, RunnerCheck},
    },
    std::{
        collections::{BTreeMap, HashMap},
        fs::{self, Permissions},
        io,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
        sync::{
            Arc, Mutex, MutexGuard, PoisonError,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{UnixListener, UnixStream},
        sync::{Semaphore, mpsc, oneshot},
        time::{Instant, sleep, timeout},
    },
    tokio_util::sync::CancellationToken,
};

/// Two periods of the carrier: so long a runner may take to come up before anybody needs to do something about it.
const START_GRACE: Duration = Duration::from_secs(20);
/// A peer that connected says hello within this; it is one write on the same machine.
const HELLO_LIMIT: Duration = Duration::from_millis(500);
/// Beyond a command's own timeout: for a process to start, and to be killed.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// A question is twenty bytes; a peer whose buffer has no room for it is not reading.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// Between one peer and the next: nobody keeps the agent busy by connecting.
const PEER_PAUSE: Duration = Duration::from_millis(50);
/// A runner that is gone sooner than this is no runner, or its container does not last: each such one doubles the pause,
/// because each is a line in the log and a verdict on the wire, as often as a container likes.
const SHORT: Duration = Duration::from_secs(1);
/// The longest pause: the next carrier comes after ten seconds, and its runner must be taken at once.
const MAX_PEER_PAUSE: Duration = Duration::from_secs(5);
/// Between attempts to listen, where that is not possible.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Questions on their way to a connection: as many as may be open, and their cancellations. Full when the connection's
/// task does not get to run; then asking waits, and a cancellation is left to the command's timeout.
const QUESTIONS: usize = 4 * MAX_AT_ONCE;
/// Any user of the container may connect.
const SOCKET_MODE: u32 = 0o666;

/// The runners of a pod's containers; none by default.
#[derive(Debug, Default)]
pub struct Runners {
    containers: BTreeMap<ContainerName, Arc<Container>>,
}

/// What listens for one container's runner. Dropped without being run, nobody listens.
#[derive(Debug)]
pub struct RunnerListener {
    container: Arc<Container>,
    path: PathBuf,
    changes: mpsc::Sender<ContainerName>,
}

#[derive(Debug)]
struct Container {
    name: ContainerName,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// None has come since the agent started.
    Awaited { since: Instant },
    /// One is connected.
    Up(Link),
    /// One was connected.
    Lost { since: Instant },
}

/// The way to a runner that is connected.
#[derive(Clone, Debug)]
struct Link {
    questions: mpsc::Sender<Question>,
    /// As many as the runner runs at once.
    slots: Arc<Semaphore>,
    next_id: Arc<AtomicU32>,
    /// How many commands it knows.
    commands: u16,
}

#[derive(Debug)]
enum Question {
    Run {
        id: u32,
        check: u8,
        timeout: Duration,
        reply: oneshot::Sender<Answer>,
    },
    Cancel {
        id: u32,
    },
    /// It has not answered in time.
    Hangs,
}

impl Runners {
    /// The runners of the containers that these components have command checks in, and what listens for them in
    /// `directory`; `changes` is told whenever one comes or goes.
    pub fn new(
        directory: &Path,
        components: &[Component],
        changes: &mpsc::Sender<ContainerName>,
    ) -> (Arc<Self>, Vec<RunnerListener>) {
        let since = Instant::now();
        let probes = components.iter().flat_map(|component| &component.probes);
        let names = probes.filter_map(|probe| match &probe.handler {
            Handler::Exec(exec) => exec.runner.as_ref().map(|check| check.container.clone()),
            Handler::HttpGet(_) | Handler::TcpSocket(_) | Handler::Grpc(_) => None,
        });
        let containers: BTreeMap<_, _> = names
            .map(|name| {
                let container = Container {
                    name: name.clone(),
                    state: Mutex::new(State::Awaited { since }),
                };
                (name, Arc::new(container))
            })
            .collect();
        let listeners = containers
            .values()
            .map(|container| RunnerListener {
                container: Arc::clone(container),
                path: directory.join(container.name.as_str()).join(SOCKET),
                changes: changes.clone(),
            })
            .collect();
        (Arc::new(Self { containers }), listeners)
    }

    /// Runs a command in a container. Cancel-safe: dropping the future has the command killed.
    pub(super) async fn run(&self, exec: &ExecAction, check: &RunnerCheck, limit: Duration) -> Found {
        let RunnerCheck {
            container,
            check: number,
        } = check;
        let Some(container) = self.containers.get(container) else {
            return Found::unavailable(
                Reason::UNSUPPORTED,
                format!("nobody runs commands in container {container}: this agent is not in its pod"),
            );
        };
        let Some(link) = container.link() else {
            return container.missing();
        };
        if u16::from(*number) >= link.commands {
            let message = format!(
                "the runner in container {} knows {} commands, and this is number {number}: the pod is newer than it",
                container.name, link.commands
            );
            return Found::unavailable(Reason::UNSUPPORTED, message);
        }
        let Ok(_slot) = link.slots.acquire().await else {
            return container.missing();
        };
        let (reply, answer) = oneshot::channel();
        let id = link.next_id.fetch_add(1, Ordering::Relaxed);
        let question = Question::Run {
            id,
            check: *number,
            timeout: limit,
            reply,
        };
        if link.questions.send(question).await.is_err() {
            return container.missing();
        }
        let asked = Asked {
            id,
            questions: &link.questions,
        };
        match timeout(limit + ANSWER_GRACE, answer).await {
            Ok(Ok(answer)) => {
                std::mem::forget(asked);
                found(exec, answer, limit)
            }
            Ok(Err(_)) => container.missing(),
            Err(_) => {
                // A full queue: the next question finds out.
                let _ = link.questions.try_send(Question::Hangs);
                let message = format!("the runner in container {} does not answer", container.name);
                Found::unavailable(Reason::RUNNER_MISSING, message)
            }
        }
    }
}

/// A question that is open: cancelled when nobody waits for the answer any more.
struct Asked<'a> {
    id: u32,
    questions: &'a mpsc::Sender<Question>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        // When the queue is full the command's own timeout ends it.
        let _ = self.questions.try_send(Question::Cancel { id: self.id });
    }
}

impl Container {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> Option<Link> {
        match &*self.state() {
            State::Up(link) => Some(link.clone()),
            State::Awaited { .. } | State::Lost { .. } => None,
        }
    }

    /// Why nothing is known, and what to do about it.
    fn missing(&self) -> Found {
        let Self { name, state: _ } = self;
        let (since, was_up) = match &*self.state() {
            State::Awaited { since } => (*since, false),
            State::Lost { since } => (*since, true),
            // It came this moment.
            State::Up(_) => (Instant::now(), true),
        };
        let is_fresh = since.elapsed() < START_GRACE;
        let (reason, message) = match (was_up, is_fresh) {
            (false, true) => (
                Reason::STARTING,
                format!("the runner in container {name} has not started yet"),
            ),
            (true, true) => (
                Reason::RUNNER_MISSING,
                format!("container {name} ended, or its runner did"),
            ),
            (false, false) => (
                Reason::UNSUPPORTED,
                format!(
                    "no runner has started in container {name}: its probes do not start one, or cannot (see the pod's \
                     Events); docs/runner.md says which containers need an annotation"
                ),
            ),
            (true, false) => (
                Reason::RUNNER_MISSING,
                format!(
                    "the runner in container {name} is gone and has not come back: the container does not run, or its \
                     probes cannot start one (see the pod's Events)"
                ),
            ),
        };
        Found::unavailable(reason, message)
    }
}

/// What a run in a container found; the same words as for the agent's own commands.
fn found(exec: &ExecAction, answer: Answer, limit: Duration) -> Found {
    let Answer {
        id: _,
        end,
        cut,
        output,
    } = answer;
    let found = match end {
        End::Exited(code) => exec::exited(code, &output, cut),
        End::Signaled(signal) => exec::signaled(signal, &output, cut),
        End::TimedOut => Deadline {
            at: Instant::now(),
            timeout: limit,
        }
        .passed("the command did not end"),
        End::CannotStart(errno) => {
            let error = io::Error::from_raw_os_error(errno);
            if super::is_shortage(&error) {
                Found::io(&error, "start the command")
            } else {
                let program = exec.command.first().map_or("the command", String::as_str);
                exec::cannot_run(program, &error)
            }
        }
        End::NoSuchCheck => Found::unavailable(
            Reason::UNSUPPORTED,
            "the runner does not know this command: the pod is newer than it",
        ),
        End::Busy => Found::error(
            Reason::OUT_OF_RESOURCES,
            "earlier commands cannot be killed: they hang in the kernel",
        ),
        End::Cancelled | End::Lost => {
            Found::unavailable(Reason::UNKNOWN, "it could not be seen how the command ended")
        }
    };
    Found {
        output: exec::text(output),
        ..found
    }
}

impl RunnerListener {
    /// Listens, and holds one conversation after another, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            never = self.listen() => match never {},
        }
    }

    async fn listen(self) -> std::convert::Infallible {
        let Self {
            container,
            path,
            changes,
        } = self;
        let listener = bind(&path).await;
        let mut pause = PEER_PAUSE;
        loop {
            let Some((stream, frames, commands)) = next_peer(&listener).await else {
                sleep(PEER_PAUSE).await;
                continue;
            };
            let (questions, asked) = mpsc::channel(QUESTIONS);
            let link = Link {
                questions,
                slots: Arc::new(Semaphore::new(MAX_AT_ONCE)),
                next_id: Arc::default(),
                commands,
            };
            let since = Instant::now();
            tracing::info!(container = %container.name, commands, "the runner is up");
            *container.state() = State::Up(link.clone());
            tell(&changes, &container).await;
            let ended = tokio::select! {
                biased;
                ended = converse(stream, frames, asked) => ended,
                never = refuse(&listener) => match never {},
            };
            *container.state() = State::Lost {
                since: Instant::now(),
            };
            // Whoever waits for a turn learns of it now.
            link.slots.close();
            tracing::info!(container = %container.name, because = ended, "the runner is gone");
            tell(&changes, &container).await;
            pause = if since.elapsed() < SHORT {
                (pause * 2).min(MAX_PEER_PAUSE)
            } else {
                PEER_PAUSE
            };
            sleep(pause).await;
        }
    }
}

async fn tell(changes: &mpsc::Sender<ContainerName>, container: &Container) {
    // The receiver is gone when the process is about to end.
    let _ = changes.send(container.name.clone()).await;
}

/// Listens there, as soon as that is possible: without it the agent still does everything else.
async fn bind(path: &Path) -> UnixListener {
    let mut is_said = false;
    loop {
        match try_bind(path) {
            Ok(listener) => return listener,
            Err(error) if !is_said => {
                is_said = true;
                tracing::warn!(path = %path.display(), %error, "cannot listen for a runner; trying again");
            }
            Err(_) => {}
        }
        sleep(LISTEN_AGAIN).await;
    }
}

fn try_bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // What an agent before this one left behind; there is one at a time.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// The next peer that behaves like a runner, with what it has sent beyond its hello and the number of its commands.
async fn next_peer(listener: &UnixListener) -> Option<(UnixStream, Frames, u16)> {
    let (mut stream, _) = listener.accept().await.ok()?;
    let mut frames = Frames::default();
    let hello = async {
        let mut buffer = [0; 64];
        loop {
            let count = stream.read(&mut buffer).await.ok()?;
            if count == 0 {
                return None;
            }
            frames.add(&buffer[..count]);
            if let Some(frame) = frames.next_frame().ok()? {
                return FromRunner::decode(frame).ok();
            }
        }
    };
    match timeout(HELLO_LIMIT, hello).await {
        Ok(Some(FromRunner::Hello { version, commands })) if version == VERSION => {
            Some((stream, frames, commands))
        }
        Ok(Some(FromRunner::Hello { version, commands: _ })) => {
            tracing::warn!(
                version,
                "a runner speaks another version: it is replaced when its container is"
            );
            None
        }
        Ok(Some(FromRunner::Answer(_)) | None) | Err(_) => None,
    }
}

/// Closes whatever else connects.
async fn refuse(listener: &UnixListener) -> std::convert::Infallible {
    loop {
        drop(listener.accept().await);
        sleep(PEER_PAUSE).await;
    }
}

/// Puts questions and hands on answers until one side is done; why it is over.
async fn converse(
    mut stream: UnixStream,
    mut frames: Frames,
    mut questions: mpsc::Receiver<Question>,
) -> &'static str {
    // At most as many as have a turn, and those that were cancelled and not answered yet.
    let mut open: HashMap<u32, oneshot::Sender<Answer>> = HashMap::new();
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        loop {
            let answer = match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => FromRunner::decode(frame),
                Err(error) => Err(error),
            };
            match answer {
                Ok(FromRunner::Answer(answer)) => match open.remove(&answer.id) {
                    // Nobody waits for that of a cancelled one.
                    Some(reply) => drop(reply.send(answer)),
                    None => return "it answers what was not asked",
                },
                Ok(FromRunner::Hello { .. }) | Err(_) => return "what it says makes no sense",
            }
        }
        // Cancel-safe: a queue, and one read.
        tokio::select! {
            biased;
            read = stream.read(&mut buffer) => match read {
                Ok(count) if count > 0 => frames.add(&buffer[..count]),
                Ok(_) | Err(_) => return "the connection ended",
            },
            question = questions.recv() => {
                let message = match question {
                    Some(Question::Run { id, check, timeout, reply }) => {
                        open.insert(id, reply);
                        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
                        FromAgent::Run { id, check, timeout_ms }
                    }
                    // Answered meanwhile.
                    Some(Question::Cancel { id }) if !open.contains_key(&id) => continue,
                    Some(Question::Cancel { id }) => FromAgent::Cancel { id },
                    Some(Question::Hangs) => return "it does not answer",
                    // Held by the container's state for as long as this runs.
                    None => return "nobody asks any more",
                };
                out.clear();
                message.encode(&mut out);
                match timeout(WRITE_LIMIT, stream.write_all(&out)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return "the connection ended",
                    Err(_) => return "it does not read",
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
