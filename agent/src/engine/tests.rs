//! The engine with real probes on this machine. Tests wait for events, never for time.

use {
    super::*,
    crate::prober::ProberConfig,
    healthscope_shared::{
        name::{Name, Namespace},
        probe::{ExecAction, TcpSocketAction},
    },
    std::{net::TcpListener, num::NonZeroU32, path::Path, time::Duration},
    tokio::{task::JoinHandle, time::timeout},
};

/// Nothing here takes a fraction of this on a loaded machine; it only ends tests that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<Event>,
    shutdown: CancellationToken,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

fn start_with(event_capacity: usize) -> Running {
    let counters = Arc::new(Counters::default());
    let probers = Probers::new(ProberConfig::default());
    let engine = Engine::new(EngineConfig::default(), probers, Arc::clone(&counters));
    let (commands, command_rx) = mpsc::channel(8);
    let (event_tx, events) = mpsc::channel(event_capacity);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(engine.run(command_rx, event_tx, shutdown.clone()));
    Running {
        commands,
        events,
        shutdown,
        counters,
        task,
    }
}

fn start() -> Running {
    start_with(64)
}

impl Running {
    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event comes")
            .expect("the engine lives")
    }

    async fn transition(&mut self) -> (ProbeId, ProbeState, ProbeState) {
        loop {
            match self.next().await {
                Event::Transition { from, report } => return (report.probe, from, report.state),
                Event::Note(_) => {}
                Event::Announced(announced) => panic!("unexpected {announced:?}"),
            }
        }
    }

    /// Replaces what is watched by one component; the ids of its probes.
    async fn watch(&mut self, probes: Vec<ProbeSpec>) -> Vec<ProbeId> {
        let component = ComponentProbes {
            component: component("web"),
            probes,
        };
        self.send(Command::Replace(vec![component])).await;
        loop {
            if let Event::Announced(announced) = self.next().await {
                let [component] = <[_; 1]>::try_from(announced).expect("one component");
                return component.probes.iter().map(|probe| probe.id).collect();
            }
        }
    }

    async fn send(&self, command: Command) {
        self.commands.send(command).await.expect("the engine lives");
    }

    async fn run_now(&self, probe: ProbeId) -> RunNowReply {
        let (reply, answer) = oneshot::channel();
        self.send(Command::RunNow { probe, reply }).await;
        timeout(PATIENCE, answer)
            .await
            .expect("in time")
            .expect("answered")
    }

    async fn snapshot(&self) -> Vec<ProbeReport> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot { reply }).await;
        timeout(PATIENCE, answer)
            .await
            .expect("in time")
            .expect("answered")
    }

    async fn summaries(&self) -> Vec<ProbeSummary> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Summaries { reply }).await;
        timeout(PATIENCE, answer)
            .await
            .expect("in time")
            .expect("answered")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task)
            .await
            .expect("ends in time")
            .expect("ends well");
    }
}

fn component(name: &str) -> ComponentKey {
    ComponentKey::component(Namespace::default(), Name::new(name).unwrap())
}

fn spec(name: &str, kind: ProbeKind, handler: Handler) -> ProbeSpec {
    ProbeSpec {
        name: ProbeName::new(name).unwrap(),
        kind,
        handler,
        initial_delay: Duration::ZERO,
        period: Duration::from_millis(50),
        timeout: Duration::from_secs(5),
        success_threshold: NonZeroU32::MIN,
        failure_threshold: NonZeroU32::MIN,
    }
}

fn exec(script: &str) -> Handler {
    Handler::Exec(ExecAction {
        command: vec!["sh".into(), "-c".into(), script.into()],
        runner: None,
    })
}

fn exists(path: &Path) -> Handler {
    exec(&format!("test -e {}", path.display()))
}

fn tcp(port: u16) -> Handler {
    Handler::TcpSocket(TcpSocketAction {
        host: "127.0.0.1".into(),
        port,
    })
}

/// A port on which nothing listens.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

use ProbeKind::{Liveness, Readiness, Startup};
use ProbeState::{Failing, Passing, Pending};

#[tokio::test]
async fn a_target_that_goes_and_comes_back_is_told_as_transitions() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("well");
    std::fs::write(&file, "").unwrap();
    let mut engine = start();
    let ids = engine
        .watch(vec![spec("readiness", Readiness, exists(&file))])
        .await;
    assert_eq!(engine.transition().await, (ids[0], Pending, Passing));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(engine.transition().await, (ids[0], Passing, Failing));
    std::fs::write(&file, "").unwrap();
    assert_eq!(engine.transition().await, (ids[0], Failing, Passing));
    let reading = engine.counters.read();
    assert!(reading.runs[1][0] >= 2 && reading.runs[1][2] >= 1, "{reading:?}");
    assert_eq!(
        reading.runs[1].iter().sum::<u64>(),
        reading.duration[1].buckets.iter().sum::<u64>()
    );
    engine.stop().await;
}

#[tokio::test]
async fn liveness_and_readiness_wait_until_every_startup_probe_has_passed() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut engine = start();
    let ids = engine
        .watch(vec![
            spec("liveness", Liveness, tcp(port)),
            spec("readiness", Readiness, tcp(port)),
            spec("startup", Startup, exists(&first)),
            spec("migrated", Startup, exists(&second)),
        ])
        .await;
    // Startup goes on although it failed: nothing restarts the component.
    let failed = [engine.transition().await, engine.transition().await];
    assert!(
        failed
            .iter()
            .all(|(id, from, to)| ids[2..].contains(id) && (*from, *to) == (Pending, Failing))
    );
    std::fs::write(&first, "").unwrap();
    assert_eq!(engine.transition().await, (ids[2], Failing, Passing));
    let held = engine.snapshot().await;
    assert!(
        held[..2]
            .iter()
            .all(|report| report.streak == 0 && report.last.is_none()),
        "{held:?}"
    );
    std::fs::write(&second, "").unwrap();
    assert_eq!(engine.transition().await, (ids[3], Failing, Passing));
    let started = [engine.transition().await, engine.transition().await];
    assert!(
        started
            .iter()
            .all(|(id, from, to)| ids[..2].contains(id) && (*from, *to) == (Pending, Passing))
    );

    // Startup probes do not run again, not even when they would fail now.
    std::fs::remove_file(&first).unwrap();
    engine.summaries().await;
    for _ in 0..3 {
        engine.run_now(ids[1]).await;
    }
    assert_eq!(engine.summaries().await[2].figures.runs, 0);
    // Asked for, one is run and reported, and changes nothing.
    let RunNowReply::Ran { outcome, state } = engine.run_now(ids[2]).await else {
        panic!("not run");
    };
    assert_eq!(
        (outcome.result, state),
        (RunResult::Failure(Reason::EXIT_CODE), Passing)
    );
    assert_eq!(engine.snapshot().await[2].state, Passing);
    engine.stop().await;
}

#[tokio::test]
async fn unchanged_probes_keep_id_and_state_and_changed_ones_start_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let kept = spec("readiness", Readiness, tcp(port));
    let edited = spec("edited", Readiness, tcp(port));
    let removed = spec("removed", Readiness, tcp(port));
    let mut engine = start();
    let first = engine.watch(vec![kept.clone(), edited.clone(), removed]).await;
    for _ in 0..3 {
        engine.transition().await;
    }
    let slower = ProbeSpec {
        period: Duration::from_secs(5),
        ..edited
    };
    let second = engine.watch(vec![slower, kept.clone()]).await;
    assert_eq!(second[1], first[0]);
    assert!(!first.contains(&second[0]), "an edited probe has a new id");
    assert_eq!(engine.run_now(first[2]).await, RunNowReply::NotFound);
    let snapshot = engine.snapshot().await;
    assert_eq!(
        snapshot.iter().map(|report| report.probe).collect::<Vec<_>>(),
        [first[0], second[0]]
    );
    assert_eq!(snapshot[0].state, Passing);
    // A probe that comes back is another one.
    engine.send(Command::Replace(Vec::new())).await;
    while engine.next().await != Event::Announced(Vec::new()) {}
    let third = engine.watch(vec![kept]).await;
    assert!(!first.contains(&third[0]) && !second.contains(&third[0]));
    engine.stop().await;
}

#[tokio::test]
async fn a_startup_probe_added_to_a_running_component_holds_the_others_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("started");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let readiness = spec("readiness", Readiness, tcp(listener.local_addr().unwrap().port()));
    let mut engine = start();
    let before = engine.watch(vec![readiness.clone()]).await;
    engine.transition().await;
    let after = engine
        .watch(vec![readiness, spec("startup", Startup, exists(&file))])
        .await;
    assert_eq!(after[0], before[0]);
    assert_eq!(engine.transition().await, (after[1], Pending, Failing));
    engine.summaries().await;
    engine.run_now(after[1]).await;
    assert_eq!(engine.summaries().await[0].figures.runs, 0);
    std::fs::write(&file, "").unwrap();
    assert_eq!(engine.transition().await, (after[1], Failing, Passing));
    while engine.summaries().await[0].figures.runs == 0 {
        tokio::task::yield_now().await;
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_run_out_of_turn_answers_everybody_and_counts() {
    let mut engine = start();
    let slow = ProbeSpec {
        initial_delay: Duration::from_secs(3600),
        ..spec("readiness", Readiness, tcp(closed_port()))
    };
    let ids = engine.watch(vec![slow]).await;
    let (one, two) = tokio::join!(engine.run_now(ids[0]), engine.run_now(ids[0]));
    for reply in [one, two] {
        let RunNowReply::Ran { outcome, state } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(outcome.result, RunResult::Failure(Reason::CONNECTION_REFUSED));
        assert_eq!(state, Failing);
    }
    assert_eq!(engine.transition().await, (ids[0], Pending, Failing));
    assert_eq!(engine.run_now(ProbeId(99)).await, RunNowReply::NotFound);
    engine.stop().await;
}

#[tokio::test]
async fn more_waiters_than_the_limit_are_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("go");
    let waits = exec(&format!(
        "while ! test -e {}; do sleep 0.01; done",
        file.display()
    ));
    let mut engine = start();
    let ids = engine.watch(vec![spec("readiness", Readiness, waits)]).await;
    let mut answers = Vec::new();
    for _ in 0..MAX_WAITING_PER_PROBE {
        let (reply, answer) = oneshot::channel();
        engine.send(Command::RunNow { probe: ids[0], reply }).await;
        answers.push(answer);
    }
    assert_eq!(engine.run_now(ids[0]).await, RunNowReply::Busy);
    std::fs::write(&file, "").unwrap();
    for answer in answers {
        let reply = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert!(matches!(reply, RunNowReply::Ran { .. }), "{reply:?}");
    }
    engine.stop().await;
}

#[tokio::test]
async fn summaries_count_from_one_to_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut engine = start();
    let probe = spec("readiness", Readiness, tcp(listener.local_addr().unwrap().port()));
    let ids = engine
        .watch(vec![ProbeSpec {
            initial_delay: Duration::from_secs(3600),
            ..probe
        }])
        .await;
    for _ in 0..3 {
        engine.run_now(ids[0]).await;
    }
    let summaries = engine.summaries().await;
    assert_eq!(
        (summaries[0].probe, summaries[0].figures.runs, summaries[0].streak),
        (ids[0], 3, 3)
    );
    let summaries = engine.summaries().await;
    assert_eq!(
        (summaries[0].figures, summaries[0].streak),
        (Figures::default(), 3)
    );
    engine.stop().await;
}

#[tokio::test]
async fn an_unread_channel_stops_nothing_and_keeps_transitions_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("well");
    let mut engine = start_with(1);
    // Fills the channel with the announcement and leaves it unread.
    let probes = vec![ProbeSpec {
        initial_delay: Duration::from_secs(3600),
        ..spec("readiness", Readiness, exists(&file))
    }];
    engine
        .send(Command::Replace(vec![ComponentProbes {
            component: component("web"),
            probes,
        }]))
        .await;
    for i in 0..20 {
        if i % 2 == 0 {
            std::fs::write(&file, "").unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        let reply = engine.run_now(ProbeId(0)).await;
        assert!(matches!(reply, RunNowReply::Ran { .. }), "{reply:?}");
    }
    assert!(matches!(engine.next().await, Event::Announced(_)));
    let mut from = Pending;
    for i in 0..20 {
        let to = if i % 2 == 0 { Passing } else { Failing };
        assert_eq!(engine.transition().await, (ProbeId(0), from, to));
        from = to;
    }
    assert_eq!(engine.counters.read().dropped_events, 0);
    engine.stop().await;
}

#[test]
fn a_full_backlog_drops_the_oldest_notes_first_and_never_an_announcement() {
    let report = |probe| ProbeReport {
        probe: ProbeId(probe),
        since: Instant::now(),
        state: Passing,
        streak: 1,
        attempt: None,
        flapping: false,
        last: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _context = runtime.enter();
    let counters = Arc::new(Counters::default());
    let mut engine = Engine::new(
        EngineConfig::default(),
        Probers::new(ProberConfig::default()),
        Arc::clone(&counters),
    );
    let (events, _unread) = mpsc::channel(1);
    engine.emit(Event::Announced(Vec::new()), &events);
    engine.emit(Event::Announced(Vec::new()), &events);
    engine.emit(Event::Note(report(1)), &events);
    for probe in 2..2 + u32::try_from(MAX_BACKLOG).unwrap() {
        engine.emit(
            Event::Transition {
                from: Pending,
                report: report(probe),
            },
            &events,
        );
    }
    assert_eq!(engine.backlog.len(), MAX_BACKLOG);
    assert_eq!(
        counters.read().dropped_events,
        2,
        "the note, then the oldest transition"
    );
    assert_eq!(engine.backlog[0], Event::Announced(Vec::new()));
    let Event::Transition { report, .. } = &engine.backlog[1] else {
        panic!("{:?}", engine.backlog[1]);
    };
    assert_eq!(report.probe, ProbeId(3));
}

/// Waits for a file that a command writes its process id to.
async fn pid_in(path: &Path) -> i32 {
    loop {
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse()
        {
            return pid;
        }
        tokio::task::yield_now().await;
    }
}

fn hangs(path: &Path) -> Handler {
    exec(&format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
        path.display()
    ))
}

#[tokio::test]
async fn shutting_down_leaves_no_command_alive() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let mut engine = start();
    engine
        .watch(vec![ProbeSpec {
            timeout: PATIENCE,
            ..spec("readiness", Readiness, hangs(&file))
        }])
        .await;
    let pid = timeout(PATIENCE, pid_in(&file)).await.unwrap();
    engine.stop().await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn removing_a_probe_ends_its_run() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let mut engine = start();
    engine
        .watch(vec![ProbeSpec {
            timeout: PATIENCE,
            ..spec("readiness", Readiness, hangs(&file))
        }])
        .await;
    let pid = timeout(PATIENCE, pid_in(&file)).await.unwrap();
    engine.watch(Vec::new()).await;
    let process = format!("/proc/{pid}");
    let gone = async {
        while Path::new(&process).exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone)
        .await
        .expect("the command is killed and reaped");
    engine.stop().await;
}

#[tokio::test]
async fn a_defect_in_a_run_becomes_that_probes_error_and_harms_no_other() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut engine = start();
    // Never passes validation, and makes the run panic.
    let broken = Handler::Exec(ExecAction {
        command: Vec::new(),
        runner: None,
    });
    let ids = engine
        .watch(vec![
            spec("broken", Readiness, broken),
            spec("readiness", Readiness, tcp(listener.local_addr().unwrap().port())),
        ])
        .await;
    let mut seen = [engine.transition().await, engine.transition().await];
    seen.sort();
    assert_eq!(seen, [(ids[0], Pending, Failing), (ids[1], Pending, Passing)]);
    let snapshot = engine.snapshot().await;
    let last = snapshot[0].last.as_ref().unwrap();
    assert_eq!(last.result, RunResult::Error(Reason::INTERNAL_ERROR));
    engine.stop().await;
}

#[tokio::test]
async fn the_engine_ends_when_nobody_can_command_it() {
    let engine = start();
    drop(engine.commands);
    timeout(PATIENCE, engine.task).await.expect("ends").expect("well");
}

#[test]
fn phases_are_stable_and_differ_by_identity_and_salt() {
    let name = ProbeName::new("readiness").unwrap();
    let hash = |salt, name_: &str| identity_hash(salt, &component(name_), &name);
    assert_eq!(hash(0, "web"), hash(0, "web"));
    assert_ne!(hash(0, "web"), hash(1, "web"));
    assert_ne!(hash(0, "web"), hash(0, "wef"));
    let mut phases: Vec<_> = (0..100)
        .map(|i| hash(0, &format!("web-{i}")) % 1_000_000_000 / 100_000_000)
        .collect();
    phases.sort_unstable();
    phases.dedup();
    assert_eq!(
        phases.len(),
        10,
        "a hundred components reach every tenth of a second"
    );
}
