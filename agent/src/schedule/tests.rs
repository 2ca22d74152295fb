//! The schedule over virtual time: what starts when, and what is dropped.

use {super::*, proptest::prelude::*, std::collections::BTreeMap};

const SECOND: Duration = Duration::from_secs(1);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn timing(period: Duration, hash: u64) -> Timing {
    Timing {
        lane: Lane::Network,
        period,
        initial_delay: Duration::ZERO,
        hash,
    }
}

/// A schedule with a clock of its own, where runs take a given time.
struct World {
    schedule: Schedule,
    origin: Instant,
    now: Instant,
    /// Start times since the origin, by probe.
    started: BTreeMap<Key, Vec<Duration>>,
    /// Runs under way and when they end.
    running: Vec<(Instant, Key)>,
    most_running: usize,
    takes: Duration,
}

impl World {
    fn new(limits: Limits) -> Self {
        let origin = Instant::now();
        Self {
            schedule: Schedule::new(origin, limits),
            origin,
            now: origin,
            started: BTreeMap::new(),
            running: Vec::new(),
            most_running: 0,
            takes: millis(1),
        }
    }

    fn add(&mut self, timing: Timing) -> Key {
        self.schedule.add(timing, false, self.now)
    }

    /// Lives until `end`, waking exactly when something is due or over.
    fn run_until(&mut self, end: Duration) {
        let end = self.origin + end;
        loop {
            let (over, left): (Vec<_>, Vec<_>) = self.running.iter().partition(|(at, _)| *at <= self.now);
            self.running = left;
            for (_, key) in over {
                self.schedule.finished(key);
            }
            let mut starts = Vec::new();
            self.schedule.poll(self.now, &mut starts);
            for Start { key, scheduled } in starts {
                assert!(scheduled <= self.now, "started before it was due");
                assert!(
                    self.running.iter().all(|(_, other)| *other != key),
                    "two runs of one probe at once"
                );
                self.running.push((self.now + self.takes, key));
                let at = self.now - self.origin;
                self.started.entry(key).or_default().push(at);
            }
            self.most_running = self.most_running.max(self.running.len());
            let next = self
                .running
                .iter()
                .map(|(at, _)| *at)
                .chain(self.schedule.next_due())
                .min();
            match next {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => {
                    self.now = end;
                    return;
                }
            }
        }
    }

    /// The process does not run for a while.
    fn sleep(&mut self, time: Duration) {
        self.now += time;
    }

    fn starts(&self, key: Key) -> &[Duration] {
        self.started.get(&key).map_or(&[], Vec::as_slice)
    }
}

#[test]
fn a_short_period_starts_within_itself_and_keeps_its_grid() {
    let mut world = World::new(Limits::default());
    let key = world.add(timing(millis(100), 37_000_000));
    world.run_until(millis(1000));
    let expected: Vec<_> = (0..10).map(|i| millis(35 + i * 100)).collect();
    assert_eq!(world.starts(key), expected);
}

#[test]
fn a_long_period_starts_within_a_second_and_then_finds_its_grid() {
    let mut world = World::new(Limits::default());
    let hash = 7_300_000_000;
    let key = world.add(timing(10 * SECOND, hash));
    world.run_until(40 * SECOND);
    let expected = [
        millis(300),
        millis(7_300),
        millis(17_300),
        millis(27_300),
        millis(37_300),
    ];
    assert_eq!(world.starts(key), expected);
}

#[test]
fn the_second_run_comes_half_to_one_and_a_half_periods_after_the_first() {
    for hash in (0..40).map(|i| i * 333_000_000) {
        let mut world = World::new(Limits::default());
        world.run_until(millis(4_200));
        let key = world.add(timing(10 * SECOND, hash));
        world.run_until(60 * SECOND);
        let starts = world.starts(key);
        let gap = starts[1] - starts[0];
        assert!(gap >= 5 * SECOND && gap <= 15 * SECOND, "{gap:?}");
        assert!(
            starts[1..]
                .windows(2)
                .all(|pair| pair[1] - pair[0] == 10 * SECOND)
        );
    }
}

#[test]
fn nothing_runs_before_the_initial_delay_is_over() {
    let mut world = World::new(Limits::default());
    let key = world.add(Timing {
        initial_delay: 3 * SECOND,
        ..timing(SECOND, 900_000_000)
    });
    world.run_until(10 * SECOND);
    let first = world.starts(key)[0];
    assert!(first >= 3 * SECOND && first < 4 * SECOND, "{first:?}");
}

#[test]
fn a_thousand_probes_spread_over_their_period() {
    let mut world = World::new(Limits::default());
    for i in 0..1000_u64 {
        world.add(timing(SECOND, i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }
    world.run_until(SECOND - SLOT);
    let mut per_slot: BTreeMap<Duration, usize> = BTreeMap::new();
    for start in world.started.values().flatten() {
        *per_slot.entry(*start).or_default() += 1;
    }
    assert_eq!(per_slot.values().sum::<usize>(), 1000);
    let most = per_slot.values().max().unwrap();
    assert!(*most <= 20, "{most} in one slot of 5 on average");
    assert!(
        per_slot
            .keys()
            .all(|start| start.as_millis() % SLOT.as_millis() == 0)
    );
}

#[test]
fn ticks_during_a_slow_run_are_dropped_and_counted() {
    let mut world = World::new(Limits::default());
    world.takes = millis(250);
    let key = world.add(timing(millis(100), 0));
    world.run_until(millis(999));
    let expected = [0, 300, 600, 900].map(millis);
    assert_eq!(world.starts(key), expected);
    assert_eq!(world.schedule.dropped(), Dropped { late: 0, running: 6 });
}

#[test]
fn ticks_that_passed_in_sleep_are_dropped_counted_and_not_made_up_for() {
    let mut world = World::new(Limits::default());
    let key = world.add(timing(millis(100), 0));
    world.run_until(millis(50));
    world.sleep(millis(1000));
    world.run_until(millis(1_250));
    // Due at 100, seen at 1050: one run at once, then the grid again.
    assert_eq!(world.starts(key), [0, 1_050, 1_100, 1_200].map(millis));
    assert_eq!(world.schedule.dropped(), Dropped { late: 9, running: 0 });
}

#[test]
fn runs_over_the_limit_take_turns_in_order() {
    let mut world = World::new(Limits {
        network: 1,
        command: 1,
    });
    world.takes = millis(10);
    let keys: Vec<_> = (0..3).map(|_| world.add(timing(SECOND, 0))).collect();
    world.run_until(millis(100));
    let first: Vec<_> = keys.iter().map(|key| world.starts(*key)[0]).collect();
    assert_eq!(first, [0, 10, 20].map(millis));
}

#[test]
fn commands_do_not_wait_for_network_runs() {
    let mut world = World::new(Limits {
        network: 1,
        command: 1,
    });
    world.takes = millis(500);
    world.add(timing(SECOND, 0));
    world.add(timing(SECOND, 0));
    let command = world.add(Timing {
        lane: Lane::Command,
        ..timing(SECOND, 0)
    });
    world.run_until(millis(100));
    assert_eq!(world.starts(command), [Duration::ZERO]);
    assert_eq!((world.schedule.running(), world.schedule.waiting()), (2, 1));
}

#[test]
fn a_paused_probe_starts_at_the_next_slot_when_resumed() {
    let mut world = World::new(Limits::default());
    let now = world.now;
    let key = world.schedule.add(timing(10 * SECOND, 3_000_000_000), true, now);
    world.run_until(millis(5_001));
    assert!(world.starts(key).is_empty());
    world.schedule.resume(key, world.now);
    world.schedule.resume(key, world.now);
    world.run_until(30 * SECOND);
    assert_eq!(world.starts(key), [5_005, 13_000, 23_000].map(millis));
    world.schedule.pause(key);
    world.run_until(60 * SECOND);
    assert_eq!(world.starts(key).len(), 3);
    assert_eq!(world.schedule.next_due(), None);
}

#[test]
fn a_run_out_of_turn_comes_next_and_leaves_the_grid_alone() {
    let mut world = World::new(Limits::default());
    let key = world.add(timing(SECOND, 500_000_000));
    world.run_until(millis(600));
    assert_eq!(world.schedule.run_now(key, world.now), OutOfTurn::Queued);
    assert_eq!(world.schedule.run_now(key, world.now), OutOfTurn::AlreadyRunning);
    world.run_until(millis(1_600));
    assert_eq!(world.starts(key), [500, 600, 1_500].map(millis));
    world.schedule.pause(key);
    assert_eq!(world.schedule.run_now(key, world.now), OutOfTurn::Queued);
    world.run_until(millis(1_700));
    assert_eq!(world.starts(key).last(), Some(&millis(1_600)));
    world.schedule.remove(key);
    assert_eq!(world.schedule.run_now(key, world.now), OutOfTurn::NotFound);
}

#[test]
fn removing_a_probe_that_runs_or_waits_frees_its_place_and_disturbs_nobody() {
    let mut world = World::new(Limits {
        network: 1,
        command: 1,
    });
    world.takes = SECOND / 2;
    let runs = world.add(timing(SECOND, 0));
    let waits = world.add(timing(SECOND, 0));
    let other = world.add(timing(SECOND, 0));
    world.run_until(millis(5));
    assert!(world.schedule.remove(runs));
    assert!(world.schedule.remove(waits));
    assert!(!world.schedule.remove(waits), "removed twice");
    world.running.clear();
    // The end of a removed probe's run, told late, means nothing.
    world.schedule.finished(runs);
    let again = world.add(timing(SECOND, 0));
    assert_eq!(again.index(), waits.index());
    assert_ne!(again, waits);
    world.run_until(millis(700));
    assert_eq!(world.starts(other), [millis(5)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Ten minutes of random probes, limits and durations, with suspensions.
    #[test]
    fn no_probe_starves_none_runs_twice_at_once_and_none_drifts(
        probes in proptest::collection::vec((1_u64..40, any::<u64>(), any::<bool>()), 1..30),
        takes in 1_u64..120,
        network in 1_usize..8,
        suspended in 0_u64..2_000,
    ) {
        let mut world = World::new(Limits { network, command: 2 });
        world.takes = millis(takes);
        let keys: Vec<_> = probes
            .iter()
            .map(|&(period, hash, command)| {
                let lane = if command { Lane::Command } else { Lane::Network };
                let period = millis(period * 50);
                (world.add(Timing { lane, ..timing(period, hash) }), period)
            })
            .collect();
        world.run_until(300 * SECOND);
        world.sleep(millis(suspended));
        world.run_until(600 * SECOND);
        // World::run_until asserts that no probe runs twice at once.
        prop_assert!(world.most_running <= network + 2);

        let total: usize = world.started.values().map(Vec::len).sum();
        let dropped = world.schedule.dropped();
        let mut ticks = 0;
        let mut ran_all = 0;
        for (key, period) in &keys {
            let starts = world.starts(*key);
            prop_assert!(!starts.is_empty(), "starved");
            // At most one start per tick; the second may come half a period early.
            let possible = 600_000 / period.as_millis() as usize + 2;
            prop_assert!(starts.len() <= possible, "{} starts of {possible}", starts.len());
            ticks += possible;
            ran_all += starts.len();
        }
        // Every tick either started a run or was counted as dropped (one may wait, two may be cut off at the ends).
        let accounted = ran_all + (dropped.late + dropped.running) as usize;
        prop_assert!(accounted <= ticks + keys.len());
        prop_assert!(accounted + 3 * keys.len() >= ticks, "{accounted} of {ticks}");
        prop_assert_eq!(total, ran_all);

        // When there is room for everybody, the rate is exact and starts stay on the grid to the end.
        let light = takes < 50 && network >= keys.len() && keys.len() <= 2;
        if light && suspended == 0 {
            for (key, period) in &keys {
                let starts = world.starts(*key);
                let grid: Vec<_> = starts.iter().skip(2).map(|s| s.as_nanos() % period.as_nanos()).collect();
                prop_assert!(grid.windows(2).all(|pair| pair[0] == pair[1]), "drifts");
            }
            prop_assert_eq!(dropped, Dropped::default());
        }
    }
}
