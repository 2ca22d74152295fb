//! Monitors and gates, result by result.

use {
    super::*,
    healthscope_shared::{
        health::Reason,
        name::ProbeName,
        probe::{Handler, TcpSocketAction, outcome::RunResult},
    },
    std::num::NonZeroU32,
};

fn monitor(success: u32, failure: u32) -> (Monitor, Instant) {
    let spec = ProbeSpec {
        name: ProbeName::new("readiness").unwrap(),
        kind: ProbeKind::Readiness,
        handler: Handler::TcpSocket(TcpSocketAction {
            host: "127.0.0.1".into(),
            port: 1,
        }),
        initial_delay: Duration::ZERO,
        period: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        success_threshold: NonZeroU32::new(success).unwrap(),
        failure_threshold: NonZeroU32::new(failure).unwrap(),
    };
    let start = Instant::now();
    (Monitor::new(&spec, start), start)
}

fn outcome(result: RunResult) -> Outcome {
    Outcome {
        result,
        latency: Duration::from_millis(1),
        message: String::new(),
        output: String::new(),
    }
}

/// What is observed for each letter: S(uccess), W(arning), F(ailure), E(rror), R (failure for another reason).
/// Answers: `.` quiet, `n` note, `>` to passing, `<` to failing.
#[track_caller]
fn check((success, failure): (u32, u32), step: Duration, results: &str, expected: &str) {
    let (mut monitor, start) = monitor(success, failure);
    let mut now = start;
    let seen: String = results
        .chars()
        .map(|letter| {
            let result = match letter {
                'S' => RunResult::Success,
                'W' => RunResult::Warning(Reason::REDIRECT_ELSEWHERE),
                'F' => RunResult::Failure(Reason::CONNECTION_REFUSED),
                'R' => RunResult::Failure(Reason::HTTP_STATUS),
                'E' => RunResult::Error(Reason::CANNOT_EXECUTE),
                'U' => RunResult::Unavailable(Reason::RUNNER_MISSING),
                other => panic!("{other}"),
            };
            now += step;
            match monitor.observe(outcome(result), now) {
                Observation::Quiet => '.',
                Observation::Note => 'n',
                Observation::Transition { from } => {
                    assert_ne!(from, monitor.state());
                    assert_eq!(monitor.since(), now);
                    if monitor.state() == ProbeState::Passing {
                        '>'
                    } else {
                        '<'
                    }
                }
            }
        })
        .collect();
    assert_eq!(seen, expected, "{results}");
}

#[test]
fn equal_results_are_quiet_and_news_are_told_once() {
    let slow = Duration::from_secs(10);
    check((1, 3), slow, "SSSS", ">...");
    check((1, 3), slow, "SFFSFFFF", ">n.nn.<.");
    check((1, 3), slow, "FFFFS", "n.<.>");
    check((3, 1), slow, "FSSS", "<n.>");
    check((1, 3), slow, "SFFFRRF", ">n.<n.n");
    check((1, 3), slow, "SWWS", ">n.n");
    check((1, 2), slow, "SEE", ">n<");
    check((1, 3), slow, "SFE", ">nn");
}

#[test]
fn what_could_not_be_asked_leaves_nothing_known_and_counts_for_nothing() {
    let slow = Duration::from_secs(10);
    check((1, 3), slow, "SUUS", "><.>");
    check((1, 1), slow, "FUF", "<<<");
    check((1, 3), slow, "UUFFF", "n.n.<");
    check((1, 3), slow, "FFUFFF", "n.nn.<");
    let (mut monitor, start) = monitor(1, 1);
    let unavailable = RunResult::Unavailable(Reason::RUNNER_MISSING);
    monitor.observe(outcome(unavailable), start);
    assert_eq!((monitor.streak(), monitor.take_figures().runs), (0, 0));
    assert!(monitor.last().is_some());
}

#[test]
fn notes_of_a_fast_probe_are_a_second_apart_and_none_is_forgotten() {
    // A turn at every result, ten a second: the first is due one second after the transition.
    check(
        (1, 3),
        Duration::from_millis(100),
        "SFSFSFSFSFSFSFSFSFSFSFSF",
        ">.........n.........n...",
    );
    // News that had to wait is told although nothing is new any more.
    check(
        (1, 5),
        Duration::from_millis(100),
        "SFSSSSSSSSSSSS",
        ">.........n...",
    );
}

#[test]
fn flapping_is_news() {
    let (mut monitor, start) = monitor(1, 3);
    let mut now = start;
    let mut flags = Vec::new();
    for i in 0..40 {
        now += Duration::from_secs(10);
        let result = if i % 2 == 0 {
            RunResult::Success
        } else {
            RunResult::Failure(Reason::TIMED_OUT)
        };
        monitor.observe(outcome(result), now);
        flags.push(monitor.is_flapping());
    }
    assert!(!flags[0] && flags[39]);
    assert_eq!(
        monitor.state(),
        ProbeState::Passing,
        "the state waits for three failures in a row"
    );
}

#[test]
fn the_last_run_and_the_attempt_are_at_hand() {
    let (mut monitor, start) = monitor(1, 3);
    assert_eq!(
        (monitor.last(), monitor.attempt(), monitor.streak()),
        (None, None, 0)
    );
    let failed = Outcome {
        message: "exit code 1".into(),
        output: "no such table".into(),
        ..outcome(RunResult::Failure(Reason::EXIT_CODE))
    };
    monitor.observe(failed.clone(), start);
    assert_eq!(monitor.last(), Some(&failed));
    assert_eq!(monitor.attempt(), Some(Attempt { number: 1, of: 3 }));
    assert_eq!(monitor.state(), ProbeState::Pending);
}

#[test]
fn taking_figures_starts_a_new_window() {
    let (mut monitor, start) = monitor(1, 3);
    monitor.observe(outcome(RunResult::Success), start);
    monitor.observe(outcome(RunResult::Failure(Reason::TIMED_OUT)), start);
    let figures = monitor.take_figures();
    assert_eq!((figures.runs, figures.failures, figures.errors), (2, 1, 0));
    assert_eq!(monitor.take_figures(), Figures::default());
    assert_eq!(monitor.streak(), -1, "figures are apart from the state");
}

#[test]
fn a_monitor_is_at_most_512_bytes() {
    assert!(size_of::<Monitor>() <= 512, "{}", size_of::<Monitor>());
}

#[test]
fn the_gate_opens_when_the_last_startup_probe_has_passed() {
    let mut gate = Gate::new(2);
    for kind in [ProbeKind::Liveness, ProbeKind::Readiness] {
        assert!(!gate.lets_run(kind, false));
    }
    assert!(gate.lets_run(ProbeKind::Startup, false));
    assert!(!gate.lets_run(ProbeKind::Startup, true));
    assert!(!gate.startup_passed());
    assert!(gate.startup_passed());
    assert!(gate.lets_run(ProbeKind::Liveness, false) && gate.lets_run(ProbeKind::Readiness, true));
    assert!(!gate.startup_passed(), "opens once");
    assert!(Gate::new(0).is_open());
}
