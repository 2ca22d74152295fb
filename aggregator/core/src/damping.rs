//! What keeps a scope's health believable: it gets worse at once and better only when the better lasts, and a health
//! that keeps changing is flagged.
//!
//! No clock: instants are arguments.

use {
    healthscope_shared::{
        flap::Flap,
        health::{Health, Verdict},
    },
    std::time::{Duration, Instant},
};

/// A better health is shown only after it has lasted.
///
/// For each level it is known since when the measured health has been that good or better. The level shown is the best
/// one that has been held long enough. Until something is known for the first time nothing is held back: a restart
/// of the aggregator is not an illness.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damping {
    /// By level, best first.
    held: [Held; 4],
    /// The latest verdict measured at each level.
    verdicts: [Option<Verdict>; 4],
    /// Whether a health other than Unknown was ever measured.
    settled: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Held {
    /// The measured health is worse.
    #[default]
    No,
    /// That good or better since then.
    Since(Instant),
    /// That good or better for as long as anything is known.
    Always,
}

/// What is shown, and what is held back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    pub(crate) verdict: Verdict,
    /// The better health measured now, and when it will be shown if it lasts.
    pub(crate) recovering: Option<(Health, Instant)>,
    /// When to look again.
    pub(crate) deadline: Option<Instant>,
}

impl Damping {
    pub(crate) fn observe(&mut self, measured: &Verdict, min_healthy: Duration, now: Instant) -> Shown {
        let level = |health: Health| Health::ALL.iter().position(|&other| other == health).unwrap_or(3);
        let current = level(measured.health);
        for (position, held) in self.held.iter_mut().enumerate() {
            *held = match (position >= current, self.settled, *held) {
                (false, _, _) => Held::No,
                (true, false, _) => Held::Always,
                (true, true, Held::No) => Held::Since(now),
                (true, true, held) => held,
            };
        }
        self.settled |= measured.health != Health::Unknown;
        self.verdicts[current] = Some(measured.clone());
        let due = |position: usize| match self.held[position] {
            Held::No => None,
            Held::Since(since) => Some(since + min_healthy),
            Held::Always => Some(now),
        };
        let shown = (current..Health::ALL.len())
            .find(|&position| {
                due(position).is_some_and(|due| due <= now) && self.verdicts[position].is_some()
            })
            .unwrap_or(current);
        // The levels between are due at the latest when the best one is.
        let deadline = (current..shown).filter_map(due).filter(|&due| due > now).min();
        Shown {
            verdict: self.verdicts[shown].clone().unwrap_or_else(|| measured.clone()),
            recovering: (shown > current).then(|| (measured.health, due(current).unwrap_or(now))),
            deadline: if shown > current { deadline } else { None },
        }
    }
}

/// One result goes into the flap history for each change, and one for each so long without.
const SAMPLE: Duration = Duration::from_secs(10);

/// Whether a health changes too often.
///
/// Every change counts, whatever from and to: the history alternates with each of them and stays as it is with every
/// [`SAMPLE`] in between, so that it spans at most eleven minutes.
#[derive(Clone, Debug)]
pub(crate) struct HealthFlap {
    flap: Flap,
    side: bool,
    latest: Instant,
    health: Option<Health>,
}

impl HealthFlap {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            flap: Flap::default(),
            side: false,
            latest: now,
            health: None,
        }
    }

    /// Takes in the measured health; whether it flaps.
    pub(crate) fn observe(&mut self, health: Health, now: Instant) -> bool {
        // What is not known yet is no health to change from.
        let known_before = self.flap.length() > 0;
        if known_before {
            let quiet = now.saturating_duration_since(self.latest).as_secs() / SAMPLE.as_secs();
            for _ in 0..quiet.min(64) {
                self.flap.observe(self.side);
            }
            self.latest += SAMPLE * u32::try_from(quiet).unwrap_or(u32::MAX);
        }
        if self.health != Some(health) {
            if known_before {
                self.side = !self.side;
            }
            if known_before || health != Health::Unknown {
                self.flap.observe(self.side);
                self.latest = now;
            }
            self.health = Some(health);
        }
        self.flap.is_flapping()
    }

    /// When to look again so that the flag is cleared in time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.flap.is_flapping().then(|| self.latest + SAMPLE)
    }
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_shared::health::Reason};

    #[allow(
        clippy::disallowed_methods,
        reason = "there is no other way to an instant; tests only add to it"
    )]
    fn any_instant() -> Instant {
        Instant::now()
    }

    fn verdict(health: Health) -> Verdict {
        Verdict::new(health, Reason::UNKNOWN, health.as_str())
    }

    /// Feeds (second, measured) and compares with (shown, second of the next look).
    #[track_caller]
    fn check(min_healthy: u64, steps: &[(u64, Health, Health, Option<u64>)]) {
        let start = any_instant();
        let mut damping = Damping::default();
        for &(second, measured, expected, deadline) in steps {
            let now = start + Duration::from_secs(second);
            let shown = damping.observe(&verdict(measured), Duration::from_secs(min_healthy), now);
            assert_eq!(shown.verdict, verdict(expected), "at {second} s");
            let found = shown.deadline.map(|deadline| (deadline - start).as_secs());
            assert_eq!(found, deadline, "deadline at {second} s");
            let recovering = (measured != expected).then_some(measured);
            assert_eq!(
                shown.recovering.map(|(health, _)| health),
                recovering,
                "at {second} s"
            );
        }
    }

    use Health::{Degraded, Healthy, Unhealthy, Unknown};

    #[test]
    fn worse_shows_at_once_and_better_when_it_has_lasted() {
        check(
            10,
            &[
                (0, Healthy, Healthy, None),
                (5, Unhealthy, Unhealthy, None),
                (6, Healthy, Unhealthy, Some(16)),
                (15, Healthy, Unhealthy, Some(16)),
                (16, Healthy, Healthy, None),
            ],
        );
    }

    #[test]
    fn a_relapse_starts_the_wait_again() {
        check(
            10,
            &[
                (0, Unhealthy, Unhealthy, None),
                (1, Healthy, Unhealthy, Some(11)),
                (5, Unhealthy, Unhealthy, None),
                (6, Healthy, Unhealthy, Some(16)),
                (11, Healthy, Unhealthy, Some(16)),
                (16, Healthy, Healthy, None),
            ],
        );
    }

    #[test]
    fn each_level_waits_for_itself() {
        check(
            10,
            &[
                (0, Unhealthy, Unhealthy, None),
                (1, Degraded, Unhealthy, Some(11)),
                (5, Healthy, Unhealthy, Some(11)),
                (11, Healthy, Degraded, Some(15)),
                (15, Healthy, Healthy, None),
            ],
        );
    }

    #[test]
    fn without_a_wait_everything_shows_at_once() {
        check(
            0,
            &[
                (0, Unhealthy, Unhealthy, None),
                (0, Healthy, Healthy, None),
                (1, Unknown, Unknown, None),
            ],
        );
    }

    #[test]
    fn what_was_never_known_holds_nothing_back() {
        check(
            300,
            &[
                (0, Unknown, Unknown, None),
                (2, Healthy, Healthy, None),
                (3, Unknown, Unknown, None),
            ],
        );
        check(
            300,
            &[
                (0, Unknown, Unknown, None),
                (2, Unhealthy, Unhealthy, None),
                (3, Healthy, Unhealthy, Some(303)),
            ],
        );
    }

    /// Changes at the given seconds; whether the flag is up at each look.
    #[track_caller]
    fn check_flap(changes: &[u64], looks: &[(u64, bool)]) {
        let start = any_instant();
        let mut flap = HealthFlap::new(start);
        let mut health = Healthy;
        flap.observe(health, start);
        let mut events: Vec<(u64, Option<bool>)> = changes.iter().map(|&second| (second, None)).collect();
        events.extend(looks.iter().map(|&(second, expected)| (second, Some(expected))));
        events.sort_by_key(|&(second, _)| second);
        for (second, expected) in events {
            if expected.is_none() {
                health = if health == Healthy { Degraded } else { Healthy };
            }
            let flapping = flap.observe(health, start + Duration::from_secs(second));
            if let Some(expected) = expected {
                assert_eq!(flapping, expected, "at {second} s");
            }
        }
    }

    #[test]
    fn many_changes_in_minutes_flap_and_a_quiet_time_ends_it() {
        check_flap(&[1000, 1001, 1002, 1003], &[(1004, false)]);
        check_flap(
            &[1000, 1005, 1010, 1015, 1020],
            &[(1021, true), (1100, true), (1140, false)],
        );
        check_flap(&[1000, 2000, 3000, 4000, 5000, 6000, 7000], &[(7001, false)]);
    }

    #[test]
    fn starting_up_is_not_flapping() {
        let now = any_instant();
        let mut flap = HealthFlap::new(now);
        flap.observe(Unknown, now);
        flap.observe(Healthy, now);
        assert_eq!(flap.flap.percent(), 0);
    }
}
