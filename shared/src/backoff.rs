//! How long to wait before trying again: decorrelated jitter between a base and a cap.
//!
//! Never reads a clock and draws no randomness: each delay is computed from a random number of the caller. After a
//! working session the first retry falls uniformly into the spread that the server asked for, so that a server's
//! restart is not followed by a wave of agents.

use std::time::Duration;

/// The state of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    /// The latest delay; grows from `base`.
    previous: Duration,
    /// What the next delay falls into instead, after something worked.
    spread: Option<Duration>,
}

impl Backoff {
    /// Shortest delay before connecting again: a lost packet or a restarted proxy should not be felt.
    pub const RECONNECT_BASE: Duration = Duration::from_millis(100);
    /// Longest delay before connecting again: an aggregator that is back is found within half a minute.
    pub const RECONNECT_CAP: Duration = Duration::from_secs(30);
    /// What worked for this long is not part of a crash loop: the delays start from the base again.
    pub const STEADY: Duration = Duration::from_secs(10);
    /// Longest spread obeyed: no server sends an agent away for longer.
    pub const MAX_SPREAD: Duration = Duration::from_secs(300);

    /// Starts at `base`, never exceeds `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            previous: base,
            spread: None,
        }
    }

    /// For connecting to an aggregator.
    #[must_use]
    pub const fn reconnect() -> Self {
        Self::new(Self::RECONNECT_BASE, Self::RECONNECT_CAP)
    }

    /// Notes that an attempt worked for `lasted` and ended: the next delay falls uniformly between zero and
    /// `spread` (at least the base, at most [`Self::MAX_SPREAD`]). Only when it lasted [`Self::STEADY`] or longer
    /// are earlier failures forgotten; otherwise the next delay is no shorter than they demand.
    pub fn worked(&mut self, lasted: Duration, spread: Duration) {
        if lasted >= Self::STEADY {
            self.previous = self.base;
        }
        self.spread = Some(spread.clamp(self.base, Self::MAX_SPREAD));
    }

    /// Demands the longest delay next: coming back soon would only disturb (another process speaks for the same
    /// agent, a limit forbids it).
    pub const fn exhaust(&mut self) {
        self.previous = self.cap;
        self.spread = None;
    }

    /// Forgets earlier failures.
    pub const fn reset(&mut self) {
        self.previous = self.base;
        self.spread = None;
    }

    /// How long to wait before the next attempt; `random` is uniform over all of `u64`.
    pub fn next(&mut self, random: u64) -> Duration {
        let crash_loop = self.previous > self.base;
        let spread = self.spread.take();
        if let Some(spread) = spread
            && !crash_loop
        {
            // The following failure counts from the base.
            self.previous = self.base.saturating_mul(2).min(self.cap);
            return between(Duration::ZERO, spread, random);
        }
        let upper = self.previous.saturating_mul(3).min(self.cap);
        // Exhausted: the upper half, so that two who dispute a name do not meet again at once.
        let lower = if self.previous == self.cap {
            self.cap / 2
        } else {
            self.base
        };
        let delay = between(lower, upper, random);
        self.previous = delay.max(self.base.saturating_mul(2)).min(self.cap);
        match spread {
            Some(spread) => delay.max(between(Duration::ZERO, spread, random)),
            None => delay,
        }
    }
}

/// A random moment within a spread that a server asks for, at most [`Backoff::MAX_SPREAD`]; `random` is uniform over
/// all of `u64`.
#[must_use]
pub fn within(spread: Duration, random: u64) -> Duration {
    between(Duration::ZERO, spread.min(Backoff::MAX_SPREAD), random)
}

/// A duration between `low` and `high`, both included.
fn between(low: Duration, high: Duration, random: u64) -> Duration {
    let width = high.saturating_sub(low).as_nanos();
    // The upper 64 bits of the product: uniform without a division's bias.
    let offset = (width * u128::from(random)) >> 64;
    low + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use {super::*, proptest::prelude::*};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_grow_from_the_base_to_the_cap() {
        let mut backoff = Backoff::reconnect();
        let highest: Vec<Duration> = (0..8).map(|_| backoff.next(u64::MAX)).collect();
        assert!(highest.is_sorted());
        assert_eq!(highest[0].as_millis(), 299);
        assert_eq!(highest[7].as_secs(), 29);
        let mut backoff = Backoff::reconnect();
        assert_eq!(backoff.next(0), Backoff::RECONNECT_BASE);
    }

    #[test]
    fn the_first_retry_after_a_session_is_spread_evenly() {
        let spread = Duration::from_secs(8);
        for (random, expected) in [(0, 0), (u64::MAX / 2, 3_999), (u64::MAX, 7_999)] {
            let mut backoff = Backoff::reconnect();
            backoff.worked(Backoff::STEADY, spread);
            assert_eq!(backoff.next(random).as_millis(), expected);
        }
    }

    #[test]
    fn a_steady_session_forgets_failures_and_a_short_one_does_not() {
        for (lasted, longest) in [(Backoff::STEADY, 100), (Backoff::STEADY - MS, 30_000)] {
            let mut backoff = Backoff::reconnect();
            for _ in 0..10 {
                backoff.next(u64::MAX);
            }
            backoff.worked(lasted, Duration::ZERO);
            assert!(backoff.next(u64::MAX) <= longest * MS, "{lasted:?}");
            assert!(backoff.next(u64::MAX) >= 500 * MS, "{lasted:?}");
        }
    }

    #[test]
    fn an_exhausted_series_waits_for_the_upper_half() {
        for (random, expected) in [(0, 15_000), (u64::MAX, 29_999)] {
            let mut backoff = Backoff::reconnect();
            backoff.exhaust();
            assert_eq!(backoff.next(random).as_millis(), expected);
        }
    }

    #[test]
    fn a_spread_is_obeyed_within_reason() {
        let mut backoff = Backoff::reconnect();
        backoff.worked(Backoff::STEADY, Duration::MAX);
        assert!(backoff.next(u64::MAX) <= Backoff::MAX_SPREAD);
    }

    proptest! {
        #[test]
        fn no_delay_is_outside_its_bounds(steps in proptest::collection::vec((0..4_u8, any::<u64>()), 1..50)) {
            let mut backoff = Backoff::reconnect();
            for (step, random) in steps {
                match step {
                    0 => backoff.worked(Duration::from_millis(random % 60_000), Duration::from_secs(5)),
                    1 => backoff.exhaust(),
                    _ => {}
                }
                prop_assert!(backoff.next(random) <= Backoff::RECONNECT_CAP);
            }
        }
    }
}
