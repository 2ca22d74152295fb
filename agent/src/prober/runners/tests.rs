//! Runners made of a socket, good ones and others.

use {
    super::*,
    crate::config,
    healthscope_shared::{document::Source, probe::outcome::RunResult},
    std::{os::unix::fs::MetadataExt, sync::atomic::AtomicBool},
    tempfile::TempDir,
};

const LIMIT: Duration = Duration::from_secs(20);

const COMPONENT: &str = "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\nspec: \
     {readinessProbe: {exec: {command: [cat, /tmp/ok], container: web, check: 1}}}\n";

/// Two containers, of which one is hostile.
const NEIGHBOURS: &str = "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\nspec: \
     {readinessProbe: {exec: {command: [cat, /tmp/ok], container: web, check: 1}}, livenessProbe: {exec: {command: \
     [cat, /tmp/ok], container: evil, check: 0}}}\n";

/// The agent's side, listening for the runners of containers.
struct Place {
    runners: Arc<Runners>,
    changes: mpsc::Receiver<ContainerName>,
    directory: TempDir,
    shutdown: CancellationToken,
    exec: ExecAction,
}

impl Place {
    fn new() -> Self {
        Self::with(COMPONENT)
    }

    /// With these checks; that in `web` is the one that is run.
    fn with(component: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let components = config::components(&[Source::new("x.yaml", component)]).unwrap();
        let commands = components[0]
            .probes
            .iter()
            .filter_map(|probe| match &probe.handler {
                Handler::Exec(exec) => Some(exec.clone()),
                Handler::HttpGet(_) | Handler::TcpSocket(_) | Handler::Grpc(_) => None,
            });
        let in_web = |exec: &ExecAction| exec.runner.as_ref().unwrap().container.as_str() == "web";
        let exec = commands.into_iter().find(in_web).unwrap();
        let (tell, changes) = mpsc::channel(16);
        let (runners, listeners) = Runners::new(directory.path(), &components, &tell);
        let shutdown = CancellationToken::new();
        for listener in listeners {
            tokio::spawn(listener.run(shutdown.clone()));
        }
        Self {
            runners,
            changes,
            directory,
            shutdown,
            exec,
        }
    }

    fn socket(&self, container: &str) -> PathBuf {
        self.directory.path().join(container).join(SOCKET)
    }

    async fn connect(&self) -> Peer {
        let path = self.socket("web");
        loop {
            if let Ok(stream) = UnixStream::connect(&path).await {
                return Peer {
                    stream,
                    frames: Frames::default(),
                };
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A runner that is taken.
    async fn runner(&mut self) -> Peer {
        let mut peer = self.connect().await;
        peer.hello(2).await;
        self.changed().await;
        peer
    }

    async fn changed(&mut self) {
        let changed = timeout(LIMIT, self.changes.recv()).await.unwrap().unwrap();
        assert_eq!(changed.as_str(), "web");
    }

    async fn run(&self, limit: Duration) -> Found {
        let check = self.exec.runner.as_ref().unwrap();
        self.runners.run(&self.exec, check, limit).await
    }

    #[track_caller]
    fn unavailable(found: &Found, reason: &Reason, words: &str) {
        assert_eq!(found.result, RunResult::Unavailable(reason.clone()), "{found:?}");
        assert!(found.message.contains(words), "{found:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct Peer {
    stream: UnixStream,
    frames: Frames,
}

impl Peer {
    async fn say(&mut self, message: &FromRunner) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn hello(&mut self, commands: u16) {
        self.say(&FromRunner::Hello {
            version: VERSION,
            commands,
        })
        .await;
    }

    async fn answer(&mut self, id: u32, end: End, output: &str) {
        self.say(&FromRunner::Answer(Answer {
            id,
            end,
            cut: false,
            output: output.into(),
        }))
        .await;
    }

    /// What is asked; `None` once this peer was disconnected.
    async fn asked(&mut self) -> Option<FromAgent> {
        let mut buffer = [0; 256];
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(FromAgent::decode(frame).unwrap());
            }
            match timeout(LIMIT, self.stream.read(&mut buffer)).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.frames.add(&buffer[..count]),
            }
        }
    }

    async fn asked_to_run(&mut self) -> u32 {
        match self.asked().await {
            Some(FromAgent::Run {
                id,
                check: 1,
                timeout_ms: _,
            }) => id,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_is_asked_for_by_number_and_judged_as_the_agent_s_own() {
    let mut place = Place::new();
    let mut peer = place.runner().await;
    let check = async |peer: &mut Peer, end, output: &str, result: RunResult, message: &str| {
        let asked = async {
            let id = peer.asked_to_run().await;
            peer.answer(id, end, output).await;
        };
        let (found, ()) = tokio::join!(place.run(Duration::from_secs(1)), asked);
        assert_eq!((found.result, found.message.as_str()), (result, message));
        assert_eq!(found.output, output);
    };
    let failure = RunResult::Failure;
    check(&mut peer, End::Exited(0), "fine", RunResult::Success, "").await;
    check(
        &mut peer,
        End::Exited(1),
        "x\ncat: can't open '/tmp/ok'\n",
        failure(Reason::EXIT_CODE),
        "exit code 1: cat: can't open '/tmp/ok'",
    )
    .await;
    check(
        &mut peer,
        End::Signaled(9),
        "",
        failure(Reason::SIGNALED),
        "ended by SIGKILL",
    )
    .await;
    check(
        &mut peer,
        End::TimedOut,
        "",
        failure(Reason::TIMED_OUT),
        "the command did not end within 1s",
    )
    .await;
    check(
        &mut peer,
        End::CannotStart(2),
        "",
        RunResult::Error(Reason::CANNOT_EXECUTE),
        "cannot run cat: no such file or directory",
    )
    .await;
}

#[tokio::test]
async fn any_user_may_connect() {
    let mut place = Place::new();
    let _peer = place.runner().await;
    let socket = std::fs::metadata(place.directory.path().join("web").join(SOCKET)).unwrap();
    assert_eq!(socket.mode() & 0o777, 0o666);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_never_comes_is_starting_and_then_unsupported() {
    let mut place = Place::new();
    place.shutdown.cancel();
    place.changes.close();
    let found = place.run(LIMIT).await;
    Place::unavailable(&found, &Reason::STARTING, "in container web has not started yet");
    tokio::time::advance(START_GRACE).await;
    let found = place.run(LIMIT).await;
    Place::unavailable(&found, &Reason::UNSUPPORTED, "docs/runner.md");
}

#[tokio::test]
async fn the_end_of_the_connection_is_told_at_once_and_fails_nothing() {
    let mut place = Place::new();
    let mut peer = place.runner().await;
    let end = async {
        peer.asked_to_run().await;
        drop(peer);
    };
    let (found, ()) = tokio::join!(place.run(LIMIT), end);
    Place::unavailable(
        &found,
        &Reason::RUNNER_MISSING,
        "container web ended, or its runner did",
    );
    place.changed().await;
    let found = place.run(LIMIT).await;
    Place::unavailable(
        &found,
        &Reason::RUNNER_MISSING,
        "container web ended, or its runner did",
    );
    // The next one is as good.
    let mut peer = place.runner().await;
    let answer = async {
        let id = peer.asked_to_run().await;
        peer.answer(id, End::Exited(0), "").await;
    };
    let (found, ()) = tokio::join!(place.run(LIMIT), answer);
    assert_eq!(found.result, RunResult::Success);
}

#[tokio::test]
async fn a_run_that_nobody_waits_for_is_cancelled() {
    let mut place = Place::new();
    let mut peer = place.runner().await;
    let id = {
        let mut run = std::pin::pin!(place.run(LIMIT));
        tokio::select! {
            found = &mut run => panic!("{found:?}"),
            id = peer.asked_to_run() => id,
        }
    };
    assert_eq!(peer.asked().await, Some(FromAgent::Cancel { id }));
    // Its answer comes all the same, and is no offence.
    peer.answer(id, End::Cancelled, "").await;
    let answer = async {
        let id = peer.asked_to_run().await;
        peer.answer(id, End::Exited(0), "").await;
    };
    let (found, ()) = tokio::join!(place.run(LIMIT), answer);
    assert_eq!(found.result, RunResult::Success);
}

#[tokio::test]
async fn a_runner_that_does_not_answer_is_left() {
    let mut place = Place::new();
    let mut peer = place.runner().await;
    let found = place.run(Duration::from_millis(10)).await;
    Place::unavailable(&found, &Reason::RUNNER_MISSING, "does not answer");
    peer.asked_to_run().await;
    place.changed().await;
    while peer.asked().await.is_some() {}
}

#[tokio::test]
async fn a_runner_that_knows_fewer_commands_is_not_asked() {
    let mut place = Place::new();
    let mut peer = place.connect().await;
    peer.hello(1).await;
    place.changed().await;
    let found = place.run(LIMIT).await;
    Place::unavailable(
        &found,
        &Reason::UNSUPPORTED,
        "knows 1 commands, and this is number 1",
    );
}

#[tokio::test]
async fn the_first_connection_stands() {
    let mut place = Place::new();
    let mut first = place.runner().await;
    for _ in 0..3 {
        let mut other = place.connect().await;
        // It may be closed before it has said anything.
        let mut bytes = Vec::new();
        FromRunner::Hello {
            version: VERSION,
            commands: 2,
        }
        .encode(&mut bytes);
        let _ = other.stream.write_all(&bytes).await;
        assert_eq!(other.asked().await, None);
    }
    let answer = async {
        let id = first.asked_to_run().await;
        first.answer(id, End::Exited(0), "").await;
    };
    let (found, ()) = tokio::join!(place.run(LIMIT), answer);
    assert_eq!(found.result, RunResult::Success);
}

#[tokio::test]
async fn strangers_are_not_listened_to_and_hold_up_nobody() {
    let mut place = Place::new();
    let hello = |version| {
        let mut bytes = Vec::new();
        FromRunner::Hello { version, commands: 2 }.encode(&mut bytes);
        bytes
    };
    let answer = {
        let mut bytes = Vec::new();
        FromRunner::Answer(Answer {
            id: 0,
            end: End::Exited(0),
            cut: false,
            output: Vec::new(),
        })
        .encode(&mut bytes);
        bytes
    };
    // Each is left: some at once, one that says nothing when its time is over.
    let first_words: [Vec<u8>; 5] = [
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        hello(VERSION + 1),
        answer.clone(),
        Vec::new(),
    ];
    for words in first_words {
        let mut stranger = place.connect().await;
        let _ = stranger.stream.write_all(&words).await;
        assert_eq!(stranger.asked().await, None);
    }
    // These begin as runners do.
    for words in [answer, hello(VERSION), vec![0xff; 4096]] {
        let mut stranger = place.runner().await;
        let _ = stranger.stream.write_all(&words).await;
        assert_eq!(stranger.asked().await, None);
        place.changed().await;
    }
    let _good = place.runner().await;
}

/// As fast as it can: connects, says each of `words` for as long as it is listened to, and connects again.
fn annoy(socket: &Path, words: &[Vec<u8>], stop: &AtomicBool) -> u32 {
    use std::{io::Write, os::unix::net::UnixStream as Blocking};

    let mut connections = 0;
    for words in words.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Ok(mut stream) = Blocking::connect(socket) else {
            continue;
        };
        connections += 1;
        stream.set_write_timeout(Some(Duration::from_millis(10))).unwrap();
        while !stop.load(Ordering::Relaxed) && stream.write_all(words).is_ok() {}
    }
    connections
}

#[tokio::test]
async fn a_container_that_floods_its_socket_is_alone_with_it() {
    /// How long it does so.
    const FLOOD: Duration = Duration::from_secs(3);
    let mut place = Place::with(NEIGHBOURS);
    let mut peer = place.connect().await;
    peer.hello(2).await;
    assert_eq!(place.changes.recv().await.unwrap().as_str(), "web");
    let hello = {
        let mut bytes = Vec::new();
        FromRunner::Hello {
            version: VERSION,
            commands: 1,
        }
        .encode(&mut bytes);
        bytes
    };
    let words = [
        vec![0xff; 64 * 1024],
        hello.clone(),
        [hello, vec![0; 64 * 1024]].concat(),
    ];
    let (_, closed) = mpsc::channel(1);
    let mut told = std::mem::replace(&mut place.changes, closed);
    let changes = tokio::spawn(async move {
        let mut changes = Vec::new();
        while let Some(container) = told.recv().await {
            changes.push(container);
        }
        changes
    });
    let stop = Arc::new(AtomicBool::new(false));
    let annoying: Vec<_> = (0..4)
        .map(|_| {
            let (socket, words, stop) = (place.socket("evil"), words.clone(), Arc::clone(&stop));
            std::thread::spawn(move || annoy(&socket, &words, &stop))
        })
        .collect();

    let answers = async {
        loop {
            let id = peer.asked_to_run().await;
            peer.answer(id, End::Exited(0), "").await;
        }
    };
    let runs = async {
        let begun = Instant::now();
        let mut taken = Vec::new();
        while begun.elapsed() < FLOOD {
            let asked = Instant::now();
            let found = place.run(Duration::from_secs(1)).await;
            assert_eq!(found.result, RunResult::Success, "{found:?}");
            taken.push(asked.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        taken
    };
    let mut taken = tokio::select! {
        taken = runs => taken,
        () = answers => unreachable!("it answers for ever"),
    };
    stop.store(true, Ordering::Relaxed);
    let connections: u32 = annoying.into_iter().map(|thread| thread.join().unwrap()).sum();
    // The listeners have the other ends.
    place.shutdown.cancel();
    let changes = changes.await.unwrap();
    taken.sort_unstable();
    println!(
        "{connections} connections, {} of them taken for a runner; a neighbour's run took {:?} (median), {:?} (longest) of {}",
        changes.len() / 2,
        taken[taken.len() / 2],
        taken[taken.len() - 1],
        taken.len()
    );
    assert!(
        changes.iter().all(|container| container.as_str() == "evil"),
        "{changes:?}"
    );
    // Coming and going, with a pause that doubles each time.
    assert!((2..=16).contains(&changes.len()), "{}", changes.len());
    assert!(
        taken.iter().all(|taken| *taken < Duration::from_secs(1)),
        "{taken:?}"
    );
}
