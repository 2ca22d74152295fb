//! Tables of single rules, then a simulated API server against random sequences.

use {
    super::*,
    crate::{
        status,
        view::{PolicyView, ScopeView},
    },
    healthscope_crd::{
        HealthScope,
        v1beta1::{HealthScopeSpec, Summary, UnknownPolicy},
    },
    healthscope_shared::health::{Health, Reason},
    jiff::Timestamp,
    proptest::prelude::*,
};

const MS: Duration = Duration::from_millis(1);

/// An entry of the scope `name` as the store would publish it; `note` is something smaller than a transition.
fn entry(name: &str, uid: &str, generation: i64, health: Health, note: &str) -> Arc<ScopeEntry> {
    let mut object = HealthScope::new(name, HealthScopeSpec::default());
    object.metadata.namespace = Some("default".into());
    object.metadata.uid = Some(uid.into());
    object.metadata.generation = Some(generation);
    let view = ScopeView {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        health,
        reason: Reason::POLICY_NOT_MET,
        message: note.into(),
        since: Timestamp::UNIX_EPOCH,
        available: "0/0".into(),
        summary: Summary::default(),
        root_cause: None,
        root_causes: Vec::new(),
        flapping: false,
        alarming: false,
        maintenance: None,
        recovering: None,
        stalled: Vec::new(),
        notes: Vec::new(),
        policy: PolicyView {
            min_available: 100,
            needed: 0,
            unknown_policy: UnknownPolicy::Unknown,
            min_healthy_seconds: 0,
        },
        components: Vec::new(),
        conditions: Vec::new(),
    };
    let status = status::desired(
        &view,
        &status::OldWords::default(),
        Some(generation),
        None,
        Timestamp::from_second(1_000).unwrap(),
    );
    Arc::new(ScopeEntry {
        object: Arc::new(object),
        status,
        view,
        settled: true,
    })
}

fn key(name: &str) -> ScopeKey {
    ScopeKey {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

/// One [`Pace`] with a clock of its own.
struct Test {
    pace: Pace,
    start: Instant,
    now: Instant,
}

impl Test {
    /// Owned and synced, with nothing to do.
    fn new() -> Self {
        let mut test = Self::standby();
        test.give(Input::Owner(true));
        test
    }

    fn standby() -> Self {
        #[allow(clippy::disallowed_methods, reason = "a test starts its own clock somewhere")]
        let now = Instant::now();
        let mut test = Self {
            pace: Pace::new(WriterLimits::default()),
            start: now,
            now,
        };
        test.give(Input::Synced);
        test
    }

    fn give(&mut self, input: Input) {
        self.pace.handle(self.now, input);
    }

    fn after(&mut self, duration: Duration) -> &mut Self {
        self.now += duration;
        self
    }

    fn see(&mut self, name: &str, uid: &str, version: u64, status: Option<&ScopeEntry>) {
        self.give(Input::Observed(Box::new(Object {
            key: key(name),
            uid: uid.into(),
            resource_version: version.to_string(),
            status: status.map(|entry| entry.status.clone()),
        })));
    }

    fn want(&mut self, entry: &Arc<ScopeEntry>) {
        self.give(Input::Desired(Arc::clone(entry)));
    }

    fn answer(&mut self, attempt: Attempt, answer: Answer) {
        self.give(Input::Answered {
            attempt,
            answer,
            random: u64::MAX / 2,
        });
    }

    fn written(&mut self, attempt: Attempt, version: u64) -> Written {
        self.answer(
            attempt,
            Answer::Written {
                resource_version: version.to_string(),
            },
        );
        match self.pace.poll(self.now) {
            Some(Output::Written(written)) => written,
            other => panic!("{other:?}"),
        }
    }

    /// The write that goes out now: attempt, `uid@version` and what it says.
    #[track_caller]
    fn write(&mut self) -> (Attempt, String, Health) {
        match self.pace.poll(self.now) {
            Some(Output::Write {
                attempt,
                key: _,
                uid,
                resource_version,
                entry,
            }) => (attempt, format!("{uid}@{resource_version}"), entry.view.health),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn nothing(&mut self) {
        if let Some(output) = self.pace.poll(self.now) {
            panic!("{output:?}");
        }
    }

    /// When something is due, in milliseconds since the start.
    fn due(&self) -> Option<u128> {
        self.pace
            .deadline(self.now)
            .map(|at| at.saturating_duration_since(self.start).as_millis())
    }
}

#[test]
fn the_first_change_of_a_quiet_scope_goes_out_at_once() {
    let mut test = Test::new();
    test.see("a", "u1", 7, None);
    test.want(&entry("a", "u1", 1, Health::Healthy, ""));
    let (attempt, what, health) = test.write();
    assert_eq!((what.as_str(), health), ("u1@7", Health::Healthy));
    test.after(3 * MS);
    let written = test.written(attempt, 8);
    assert_eq!((written.former, written.waited), (None, 3 * MS));
    test.nothing();
    assert_eq!((test.due(), test.pace.pending()), (None, 0));
}

#[test]
fn what_means_the_same_is_not_written() {
    let there = entry("a", "u1", 1, Health::Healthy, "");
    let mut again = ScopeEntry::clone(&there);
    again.status.last_aggregate_timestamp = None;
    let mut test = Test::new();
    test.see("a", "u1", 7, Some(&there));
    test.want(&Arc::new(again));
    test.see("a", "u1", 9, Some(&there));
    test.nothing();
    assert_eq!(
        test.pace.take_counts(),
        Counts {
            suppressed: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn a_new_generation_means_something() {
    let mut test = Test::new();
    test.see("a", "u1", 7, Some(&entry("a", "u1", 1, Health::Healthy, "")));
    test.want(&entry("a", "u1", 2, Health::Healthy, ""));
    test.write();
}

#[test]
fn a_busy_scope_is_written_ever_more_slowly_and_a_rested_one_at_once() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    let mut times = Vec::new();
    for version in 2..9 {
        // Two changes each time: the first of them is never written.
        test.want(&entry("a", "u1", 1, Health::Healthy, "passing"));
        test.want(&entry("a", "u1", 1, Health::Healthy, &version.to_string()));
        if let Some(due) = test.pace.deadline(test.now) {
            test.now = due;
        }
        times.push((test.now - test.start).as_millis());
        let (attempt, _, _) = test.write();
        test.written(attempt, version);
    }
    assert_eq!(times, [0, 100, 300, 700, 1500, 2500, 3500]);
    assert_eq!(test.pace.take_counts().coalesced, 7);
    test.after(5 * Duration::from_secs(1));
    test.want(&entry("a", "u1", 1, Health::Healthy, "rested"));
    test.write();
    assert_eq!(test.due(), None, "nothing more is wanted");
}

#[test]
fn a_change_that_was_undone_before_it_went_out_is_not_written() {
    let mut test = Test::new();
    let well = entry("a", "u1", 1, Health::Healthy, "");
    test.see("a", "u1", 1, None);
    test.want(&well);
    let (attempt, _, _) = test.write();
    test.written(attempt, 2);
    test.after(10 * MS);
    test.want(&entry("a", "u1", 1, Health::Unhealthy, ""));
    test.after(10 * MS);
    test.want(&well);
    test.after(Duration::from_secs(10)).nothing();
    assert_eq!(test.due(), None);
}

#[test]
fn transitions_go_before_smaller_things_and_those_are_not_forgotten() {
    let mut test = Test::new();
    // The allowance of all scopes together is used up.
    let burst = WriterLimits::default().burst as usize;
    let limits = WriterLimits {
        in_flight: 10_000,
        ..WriterLimits::default()
    };
    test.pace = Pace::new(limits);
    test.give(Input::Synced);
    for number in 0..burst {
        let name = format!("used-{number}");
        test.see(&name, "u", 1, None);
        test.want(&entry(&name, "u", 1, Health::Healthy, ""));
    }
    test.give(Input::Owner(true));
    for _ in 0..burst {
        test.write();
    }
    for (name, health, note) in [
        ("small", Health::Healthy, "other"),
        ("turned", Health::Unhealthy, ""),
    ] {
        test.see(name, "u", 1, Some(&entry(name, "u", 1, Health::Healthy, "")));
        test.want(&entry(name, "u", 1, health, note));
    }
    test.nothing();
    assert_eq!(test.due(), Some(5));
    test.after(5 * MS);
    assert_eq!(test.write().2, Health::Unhealthy);
    test.nothing();
    test.after(5 * MS);
    assert_eq!(test.write().2, Health::Healthy);
}

#[test]
fn no_more_than_the_limit_are_under_way() {
    let mut test = Test::new();
    for number in 0..20 {
        let name = format!("s{number}");
        test.see(&name, "u", 1, None);
        test.want(&entry(&name, "u", 1, Health::Healthy, ""));
    }
    let attempts: Vec<Attempt> = (0..16).map(|_| test.write().0).collect();
    test.nothing();
    assert_eq!((test.due(), test.pace.pending()), (None, 20));
    test.written(attempts[3], 50);
    test.write();
    test.nothing();
}

#[test]
fn all_scopes_together_are_written_no_faster_than_allowed() {
    let mut test = Test::new();
    for number in 0..500 {
        let name = format!("s{number}");
        test.see(&name, "u", 1, None);
        test.want(&entry(&name, "u", 1, Health::Healthy, ""));
    }
    let mut times = Vec::new();
    for _ in 0..500 {
        test.now = test.pace.deadline(test.now).unwrap();
        // What changes all the time does not lose its place.
        let restless = format!("{:?}", test.now);
        test.want(&entry("s499", "u", 1, Health::Healthy, &restless));
        let (attempt, _, _) = test.write();
        times.push((test.now - test.start).as_millis());
        test.written(attempt, 2);
    }
    assert_eq!((times[39], times[40], times[499]), (0, 5, 2_300));
    test.want(&entry("s499", "u", 1, Health::Healthy, ""));
    assert_eq!(test.pace.pending(), 1, "each was written once");
}

#[test]
fn everybody_leaves_a_busy_server_alone() {
    #[track_caller]
    fn check(retry_after: Option<Duration>, seconds: u64) {
        let mut test = Test::new();
        for name in ["a", "b"] {
            test.see(name, "u", 1, None);
        }
        test.want(&entry("a", "u", 1, Health::Healthy, ""));
        let (attempt, _, _) = test.write();
        test.answer(attempt, Answer::Busy { retry_after });
        test.want(&entry("b", "u", 1, Health::Healthy, ""));
        test.nothing();
        assert_eq!(test.due(), Some(u128::from(seconds) * 1000));
        test.after(Duration::from_secs(seconds));
        test.write();
        test.write();
    }
    check(None, 1);
    check(Some(Duration::from_secs(7)), 7);
    check(Some(Duration::MAX), 300);
}

#[test]
fn after_a_conflict_the_newer_object_decides() {
    let mut test = Test::new();
    let (well, sick) = (
        entry("a", "u1", 1, Health::Healthy, ""),
        entry("a", "u1", 1, Health::Unhealthy, ""),
    );
    test.see("a", "u1", 1, None);
    test.want(&well);
    let (attempt, _, _) = test.write();
    test.answer(attempt, Answer::Conflict);
    test.nothing();
    assert_eq!(test.due(), Some(1000), "it is asked for when the watch is slow");
    test.after(200 * MS).see("a", "u1", 2, Some(&sick));
    assert_eq!(test.write().1, "u1@2");

    // Somebody else wrote the very same.
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    test.want(&well);
    let (attempt, _, _) = test.write();
    test.see("a", "u1", 2, Some(&well));
    test.answer(attempt, Answer::Conflict);
    test.nothing();
    assert_eq!(test.due(), None);
}

#[test]
fn after_a_conflict_an_object_that_the_watch_does_not_show_is_asked_for() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    test.want(&entry("a", "u1", 1, Health::Healthy, ""));
    let (attempt, _, _) = test.write();
    test.answer(attempt, Answer::Conflict);
    test.after(Duration::from_secs(1));
    let Some(Output::Read { attempt, key: asked }) = test.pace.poll(test.now) else {
        panic!("nothing is asked");
    };
    assert_eq!(asked, key("a"));
    test.answer(
        attempt,
        Answer::Found(Box::new(Object {
            key: asked,
            uid: "u1".into(),
            resource_version: "5".into(),
            status: None,
        })),
    );
    assert_eq!(test.write().1, "u1@5");
}

#[test]
fn an_object_of_the_same_name_does_not_get_the_status_of_its_predecessor() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    test.give(Input::Deleted {
        key: key("a"),
        uid: "u1".into(),
    });
    test.see("a", "u2", 3, None);
    test.want(&entry("a", "u1", 1, Health::Unhealthy, ""));
    test.nothing();
    test.give(Input::Deleted {
        key: key("a"),
        uid: "u1".into(),
    });
    test.want(&entry("a", "u2", 1, Health::Healthy, ""));
    assert_eq!(test.write().1, "u2@3");
}

#[test]
fn what_is_deleted_is_forgotten() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    test.want(&entry("a", "u1", 1, Health::Unhealthy, ""));
    let (attempt, _, _) = test.write();
    test.give(Input::Deleted {
        key: key("a"),
        uid: "u1".into(),
    });
    test.give(Input::Withdrawn(key("a")));
    test.answer(attempt, Answer::NotFound);
    test.nothing();
    assert_eq!((test.due(), test.pace.scopes.len()), (None, 0));
}

#[test]
fn what_is_not_found_is_asked_for_until_the_watch_says_that_it_is_gone() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    test.want(&entry("a", "u1", 1, Health::Unhealthy, ""));
    let (attempt, _, _) = test.write();
    // As while an API server that starts does not serve the kind yet.
    test.answer(attempt, Answer::NotFound);
    for _ in 0..3 {
        test.now = test.pace.deadline(test.now).unwrap();
        let Some(Output::Read { attempt, .. }) = test.pace.poll(test.now) else {
            panic!("nothing is asked");
        };
        test.answer(attempt, Answer::NotFound);
    }
    test.give(Input::Deleted {
        key: key("a"),
        uid: "u1".into(),
    });
    assert_eq!(test.due(), None);
}

#[test]
fn an_unreachable_server_is_tried_by_nobody_for_a_while() {
    let mut test = Test::new();
    for name in ["a", "b"] {
        test.see(name, "u", 1, None);
        test.want(&entry(name, "u", 1, Health::Healthy, ""));
    }
    let (first, _, _) = test.write();
    let (second, _, _) = test.write();
    test.answer(first, Answer::Unreachable);
    test.answer(second, Answer::Unreachable);
    let due = test.due().unwrap();
    assert!((200..1000).contains(&due), "{due}");
    test.nothing();
}

#[test]
fn a_write_without_an_answer_is_told_of_when_the_watch_shows_it() {
    let want = entry("a", "u1", 1, Health::Unhealthy, "");
    let there = entry("a", "u1", 1, Health::Healthy, "");
    for watch_is_faster in [true, false] {
        let mut test = Test::new();
        test.see("a", "u1", 1, Some(&there));
        test.want(&want);
        let (attempt, _, _) = test.write();
        if watch_is_faster {
            test.see("a", "u1", 2, Some(&want));
            test.answer(attempt, Answer::Unreachable);
        } else {
            test.answer(attempt, Answer::Unreachable);
            test.nothing();
            test.see("a", "u1", 2, Some(&want));
        }
        let Some(Output::Written(written)) = test.pace.poll(test.now) else {
            panic!("nobody is told");
        };
        assert_eq!(written.former.unwrap().health, Some(Health::Healthy));
        test.after(Duration::from_secs(60)).nothing();
        assert_eq!(test.due(), None, "it is there");
    }
}

#[test]
fn a_scope_that_is_refused_waits_alone() {
    let mut test = Test::new();
    for name in ["a", "b"] {
        test.see(name, "u", 1, None);
    }
    test.want(&entry("a", "u", 1, Health::Healthy, ""));
    let (attempt, _, _) = test.write();
    test.answer(attempt, Answer::Refused);
    test.want(&entry("b", "u", 1, Health::Healthy, ""));
    test.write();
    test.nothing();
    let due = test.due().unwrap();
    assert!((1000..3000).contains(&due), "{due}");
}

#[test]
fn what_seemed_settled_is_not_written_when_it_turns_out_not_to_be() {
    let mut test = Test::standby();
    let failing = entry("a", "u1", 1, Health::Unhealthy, "");
    test.see("a", "u1", 1, Some(&failing));
    test.want(&entry("a", "u1", 1, Health::Healthy, ""));
    let mut unsettled = ScopeEntry::clone(&failing);
    unsettled.settled = false;
    test.want(&Arc::new(unsettled));
    test.give(Input::Owner(true));
    test.nothing();
    test.want(&failing);
    test.nothing();
    test.want(&entry("a", "u1", 1, Health::Healthy, ""));
    test.write();
}

#[test]
fn nothing_is_written_by_a_standby_and_at_once_by_a_new_owner() {
    let mut test = Test::standby();
    let (well, sick) = (
        entry("a", "u1", 1, Health::Healthy, ""),
        entry("a", "u1", 1, Health::Unhealthy, ""),
    );
    test.see("a", "u1", 1, Some(&well));
    test.want(&sick);
    test.nothing();
    assert_eq!(test.due(), None);
    test.give(Input::Owner(true));
    let (attempt, _, _) = test.write();
    test.give(Input::Owner(false));
    test.nothing();
    // The answer comes though nobody waits for it, and the new owner's write is no dispute.
    test.answer(
        attempt,
        Answer::Written {
            resource_version: "2".into(),
        },
    );
    test.nothing();
    assert_eq!(test.due(), None);
    test.see("a", "u1", 3, Some(&sick));
    test.give(Input::Owner(true));
    test.nothing();
    assert_eq!(test.pace.take_counts().contested, 0);
}

#[test]
fn nothing_is_written_before_all_is_seen() {
    let mut test = Test::new();
    test.pace = Pace::new(WriterLimits::default());
    test.give(Input::Owner(true));
    test.see("a", "u1", 1, None);
    test.want(&entry("a", "u1", 1, Health::Healthy, ""));
    test.nothing();
    test.give(Input::Synced);
    test.write();
}

#[test]
fn a_dispute_with_another_writer_slows_down() {
    let mut test = Test::new();
    let (well, sick) = (
        entry("a", "u1", 1, Health::Healthy, ""),
        entry("a", "u1", 1, Health::Unhealthy, ""),
    );
    test.see("a", "u1", 1, Some(&sick));
    test.want(&well);
    let mut version = 1;
    let mut writes = 0;
    while test.now - test.start < Duration::from_secs(600) {
        let (attempt, _, _) = test.write();
        writes += 1;
        version += 1;
        test.written(attempt, version);
        version += 1;
        test.after(10 * MS).see("a", "u1", version, Some(&sick));
        test.now = test.pace.deadline(test.now).unwrap();
    }
    assert!((12..18).contains(&writes), "{writes}");
    assert_eq!(test.pace.take_counts().contested, writes);
}

#[test]
fn a_field_that_the_server_drops_is_not_sent_for_ever() {
    let mut test = Test::new();
    test.see("a", "u1", 1, None);
    let want = entry("a", "u1", 1, Health::Healthy, "new field");
    test.want(&want);
    let (attempt, _, _) = test.write();
    let kept = entry("a", "u1", 1, Health::Healthy, "");
    for watch_is_faster in [true, false] {
        if watch_is_faster {
            test.see("a", "u1", 2, Some(&kept));
            test.written(attempt, 2);
        } else {
            test.see("a", "u1", 2, Some(&kept));
        }
        test.after(Duration::from_secs(60)).nothing();
        assert_eq!(test.due(), None);
    }
}

#[test]
fn late_news_of_the_watch_changes_nothing() {
    #[track_caller]
    fn check(a: &str, b: &str, expected: Option<Ordering>) {
        assert_eq!(scope::compare_versions(a, b), expected, "{a} {b}");
    }
    use std::cmp::Ordering;
    check("9", "10", Some(Ordering::Less));
    check("10", "9", Some(Ordering::Greater));
    check("0010", "10", Some(Ordering::Equal));
    check("x", "x", Some(Ordering::Equal));
    check("x", "10", None);
    check("", "10", None);
    check("123456789012345678901234567890", "9", Some(Ordering::Greater));

    let mut test = Test::new();
    let (well, sick) = (
        entry("a", "u1", 1, Health::Healthy, ""),
        entry("a", "u1", 1, Health::Unhealthy, ""),
    );
    test.see("a", "u1", 1, Some(&sick));
    test.want(&well);
    let (attempt, _, _) = test.write();
    test.written(attempt, 10);
    test.see("a", "u1", 9, Some(&sick));
    test.after(Duration::from_secs(60)).nothing();
}

#[test]
fn at_the_end_transitions_go_out_without_waiting_and_nothing_else() {
    let mut test = Test::new();
    for (name, health, note) in [
        ("small", Health::Healthy, "other"),
        ("turned", Health::Unhealthy, ""),
    ] {
        test.see(name, "u", 1, None);
        test.want(&entry(name, "u", 1, Health::Healthy, ""));
        let (attempt, _, _) = test.write();
        test.written(attempt, 2);
        test.want(&entry(name, "u", 1, health, note));
    }
    test.nothing();
    test.give(Input::Draining);
    let (attempt, _, health) = test.write();
    assert_eq!(health, Health::Unhealthy);
    assert!(!test.pace.is_drained());
    test.written(attempt, 3);
    test.nothing();
    assert!(test.pace.is_drained());
}

/// What may happen between an aggregator and an API server.
#[derive(Clone, Debug)]
enum Step {
    /// The store wants something.
    Want { scope: u8, health: u8, note: u8 },
    /// Somebody changes a label or the status.
    Edit { scope: u8, status: bool },
    /// Deleted and made again.
    Recreate { scope: u8 },
    /// Some of the watch's news arrive.
    Deliver { count: u8 },
    /// A request reaches the server; how it ends.
    Serve { which: u8, fate: u8 },
    /// Owned or not.
    Own { owner: bool },
    /// Time passes.
    Pass { millis: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 0..4_u8, 0..3_u8).prop_map(|(scope, health, note)| Step::Want { scope, health, note }),
        1 => (0..4_u8, any::<bool>()).prop_map(|(scope, status)| Step::Edit { scope, status }),
        1 => (0..4_u8).prop_map(|scope| Step::Recreate { scope }),
        4 => (1..5_u8).prop_map(|count| Step::Deliver { count }),
        6 => (any::<u8>(), 0..8_u8).prop_map(|(which, fate)| Step::Serve { which, fate }),
        1 => any::<bool>().prop_map(|owner| Step::Own { owner }),
        4 => (0..2_000_u16).prop_map(|millis| Step::Pass { millis }),
    ]
}

/// A server's object.
#[derive(Clone)]
struct Stored {
    uid: u64,
    version: u64,
    status: Option<HealthScopeStatus>,
}

/// The server, its watch, and the requests on their way.
struct World {
    test: Test,
    version: u64,
    objects: Vec<Stored>,
    wants: Vec<(u8, u8)>,
    news: VecDeque<Input>,
    requests: Vec<Output>,
    owner: bool,
    writes: usize,
    changes: usize,
    told: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            test: Test::new(),
            version: 10,
            objects: Vec::new(),
            wants: vec![(0, 0); 4],
            news: VecDeque::new(),
            requests: Vec::new(),
            owner: true,
            writes: 0,
            changes: 0,
            told: 0,
        };
        for scope in 0..4 {
            world.objects.push(Stored {
                uid: scope,
                version: 1,
                status: None,
            });
            world.announce(scope as usize);
            world.want(scope as usize);
        }
        world
    }

    fn name(scope: usize) -> String {
        format!("s{scope}")
    }

    fn entry(&self, scope: usize) -> Arc<ScopeEntry> {
        let (health, note) = self.wants[scope];
        entry(
            &Self::name(scope),
            &format!("u{}", self.objects[scope].uid),
            1,
            Health::ALL[health as usize],
            &note.to_string(),
        )
    }

    fn want(&mut self, scope: usize) {
        self.changes += 1;
        let entry = self.entry(scope);
        self.test.want(&entry);
    }

    fn object(&self, scope: usize) -> Object {
        let stored = &self.objects[scope];
        Object {
            key: key(&Self::name(scope)),
            uid: format!("u{}", stored.uid),
            resource_version: stored.version.to_string(),
            status: stored.status.clone(),
        }
    }

    fn announce(&mut self, scope: usize) {
        let object = self.object(scope);
        self.news.push_back(Input::Observed(Box::new(object)));
    }

    fn bump(&mut self, scope: usize) {
        self.version += 1;
        self.objects[scope].version = self.version;
    }

    fn poll(&mut self) {
        while let Some(output) = self.test.pace.poll(self.test.now) {
            if let Output::Written(_) = output {
                self.told += 1;
                continue;
            }
            assert!(self.owner, "a standby sends nothing: {output:?}");
            self.requests.push(output);
            let mut under_way: Vec<String> = self
                .requests
                .iter()
                .map(|r| Self::key_of(r).to_string())
                .collect();
            under_way.sort();
            let all = under_way.len();
            under_way.dedup();
            assert_eq!(under_way.len(), all, "two requests of one scope are under way");
        }
    }

    fn key_of(request: &Output) -> ScopeKey {
        match request {
            Output::Write { key, .. } | Output::Read { key, .. } => key.clone(),
            Output::Written(_) => unreachable!("it is no request"),
        }
    }

    fn serve(&mut self, which: usize, fate: u8) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.remove(which % self.requests.len());
        let scope = (0..4)
            .find(|scope| key(&Self::name(*scope)) == Self::key_of(&request))
            .unwrap();
        let (attempt, answer) = match request {
            Output::Read { attempt, .. } => (attempt, Answer::Found(Box::new(self.object(scope)))),
            Output::Write {
                attempt,
                uid,
                resource_version,
                entry,
                ..
            } => {
                let stored = &self.objects[scope];
                let fits =
                    uid == format!("u{}", stored.uid) && resource_version == stored.version.to_string();
                let answer = if !fits {
                    Answer::Conflict
                } else if fate == 0 {
                    Answer::Failed
                } else {
                    self.writes += 1;
                    self.bump(scope);
                    // The server keeps whole seconds, which these are.
                    self.objects[scope].status = Some(entry.status.clone());
                    self.announce(scope);
                    Answer::Written {
                        resource_version: self.version.to_string(),
                    }
                };
                (attempt, answer)
            }
            Output::Written(_) => unreachable!("it is no request"),
        };
        let answer = match fate {
            1 => Answer::Unreachable,
            2 if matches!(answer, Answer::Found(_)) => Answer::Refused,
            3 if matches!(answer, Answer::Conflict | Answer::Found(_)) => Answer::Busy { retry_after: None },
            _ => answer,
        };
        self.test.answer(attempt, answer);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Want { scope, health, note } => {
                self.wants[scope as usize] = (health, note);
                self.want(scope as usize);
            }
            Step::Edit { scope, status } => {
                let scope = scope as usize;
                self.bump(scope);
                if status {
                    self.objects[scope].status = None;
                    self.changes += 1;
                }
                self.announce(scope);
            }
            Step::Recreate { scope } => {
                let scope = scope as usize;
                let gone = self.object(scope);
                self.news.push_back(Input::Deleted {
                    key: gone.key,
                    uid: gone.uid,
                });
                self.bump(scope);
                self.objects[scope].uid = self.version;
                self.objects[scope].status = None;
                self.announce(scope);
                self.want(scope);
            }
            Step::Deliver { count } => {
                for _ in 0..count {
                    if let Some(news) = self.news.pop_front() {
                        self.test.give(news);
                    }
                }
            }
            Step::Serve { which, fate } => self.serve(which as usize, fate),
            Step::Own { owner } => {
                self.owner = owner;
                self.test.give(Input::Owner(owner));
                if !owner {
                    self.requests.clear();
                }
            }
            Step::Pass { millis } => self.test.now += Duration::from_millis(millis.into()),
        }
        self.poll();
    }

    /// Everything works from now on, until nothing is left to do.
    fn settle(&mut self) {
        self.take(&Step::Own { owner: true });
        for _ in 0..1_000 {
            self.take(&Step::Deliver { count: 100 });
            self.take(&Step::Serve { which: 0, fate: 7 });
            let is_idle = self.requests.is_empty() && self.news.is_empty();
            if is_idle {
                let Some(due) = self.test.pace.deadline(self.test.now) else {
                    return;
                };
                self.test.now = self.test.now.max(due);
                self.poll();
            }
        }
        panic!("it never comes to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_last_wish_is_on_the_server(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.settle();
        for scope in 0..4 {
            let wanted = world.entry(scope);
            let there = world.objects[scope].status.as_ref();
            prop_assert!(there.is_some_and(|there| !status::means_different(there, &wanted.status)), "{scope}");
        }
        // Each write has a change that it answers: a wish, an edit, a new object.
        prop_assert!(world.writes <= world.changes, "{} writes for {} changes", world.writes, world.changes);
        prop_assert!(world.told <= world.writes);
        // A restart of the aggregator writes nothing.
        let (writes, objects) = (world.writes, world.objects.clone());
        let wants = world.wants.clone();
        let mut world = World { objects, wants, writes, version: world.version, ..World::new() };
        world.test = Test::new();
        world.news.clear();
        for scope in 0..4 {
            world.announce(scope);
            world.want(scope);
        }
        world.settle();
        prop_assert_eq!(world.writes, writes);
    }
}
