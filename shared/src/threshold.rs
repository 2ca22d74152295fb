//! Consecutive thresholds: what a row of successes or failures adds up to, as in the kubelet.
//!
//! A result that differs from the one before starts a new streak of 1, an equal one lengthens it; the state moves
//! only when the streak reaches its threshold (`pkg/kubelet/prober/worker.go`). Unlike the kubelet's, the state
//! before the first threshold is neither good nor bad but [`ProbeState::Pending`]. No clock, no IO.

use {crate::probe::outcome::ProbeState, std::num::NonZeroU32};

/// A state that follows consecutive results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    success: NonZeroU32,
    failure: NonZeroU32,
    state: ProbeState,
    streak: i32,
}

/// How far a streak is on its way to changing the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Results in a row so far, from 1.
    pub number: u32,
    /// So many change the state.
    pub of: u32,
}

impl Threshold {
    /// Starts at [`ProbeState::Pending`].
    #[must_use]
    pub const fn new(success: NonZeroU32, failure: NonZeroU32) -> Self {
        Self {
            success,
            failure,
            state: ProbeState::Pending,
            streak: 0,
        }
    }

    /// Takes in a result; the former state when it changed.
    pub fn observe(&mut self, success: bool) -> Option<ProbeState> {
        self.streak = match (success, self.streak) {
            (true, ..=0) => 1,
            (false, 0..) => -1,
            (true, streak) => streak.saturating_add(1),
            (false, streak) => streak.saturating_sub(1),
        };
        let (reached, next) = if success {
            (
                self.streak.unsigned_abs() >= self.success.get(),
                ProbeState::Passing,
            )
        } else {
            (
                self.streak.unsigned_abs() >= self.failure.get(),
                ProbeState::Failing,
            )
        };
        let former = self.state;
        if !reached || former == next {
            return None;
        }
        self.state = next;
        Some(former)
    }

    /// Forgets all results: they say nothing about the target any more. The former state when it changed.
    pub const fn reset(&mut self) -> Option<ProbeState> {
        self.streak = 0;
        match self.state {
            ProbeState::Pending => None,
            former @ (ProbeState::Passing | ProbeState::Failing) => {
                self.state = ProbeState::Pending;
                Some(former)
            }
        }
    }

    /// What the results so far add up to.
    #[must_use]
    pub const fn state(&self) -> ProbeState {
        self.state
    }

    /// Equal results in a row up to now: positive for successes, negative for failures, 0 before the first.
    #[must_use]
    pub const fn streak(&self) -> i32 {
        self.streak
    }

    /// How far the current streak is, while it works towards a state that is not reached yet.
    #[must_use]
    pub const fn attempt(&self) -> Option<Attempt> {
        let number = self.streak.unsigned_abs();
        let of = if self.streak > 0 {
            self.success.get()
        } else {
            self.failure.get()
        };
        if number == 0 || number >= of {
            return None;
        }
        Some(Attempt { number, of })
    }
}

#[cfg(test)]
mod tests {
    use {super::*, proptest::prelude::*};

    fn threshold(success: u32, failure: u32) -> Threshold {
        Threshold::new(
            NonZeroU32::new(success).unwrap(),
            NonZeroU32::new(failure).unwrap(),
        )
    }

    /// Results as S and F, the expected state after each as P(ending), p(assing), f(ailing).
    #[track_caller]
    fn check((success, failure): (u32, u32), results: &str, expected: &str) {
        let mut threshold = threshold(success, failure);
        let states: String = results
            .chars()
            .map(|result| {
                threshold.observe(result == 'S');
                match threshold.state() {
                    ProbeState::Pending => 'P',
                    ProbeState::Passing => 'p',
                    ProbeState::Failing => 'f',
                }
            })
            .collect();
        assert_eq!(states, expected, "{results}");
    }

    #[test]
    fn a_reset_leaves_nothing_known() {
        let mut threshold = threshold(1, 2);
        threshold.observe(true);
        threshold.observe(false);
        assert_eq!(threshold.reset(), Some(ProbeState::Passing));
        assert_eq!(threshold.reset(), None);
        assert_eq!((threshold.state(), threshold.streak()), (ProbeState::Pending, 0));
        // The failure before does not count.
        assert_eq!(threshold.observe(false), None);
    }

    #[test]
    fn states_follow_the_kubelets_table() {
        check((1, 3), "SFFSFF", "pppppp");
        check((1, 3), "FFSFF", "PPppp");
        check((1, 3), "SFFF", "pppf");
        check((1, 3), "FFF", "PPf");
        check((1, 3), "FFFFS", "PPffp");
        check((2, 3), "SFSS", "PPPp");
        check((2, 1), "FSFSS", "ffffp");
        check((1, 1), "SFSF", "pfpf");
    }

    #[test]
    fn a_change_is_reported_once_with_the_former_state() {
        let mut t = threshold(1, 2);
        assert_eq!(t.observe(true), Some(ProbeState::Pending));
        assert_eq!(t.observe(true), None);
        assert_eq!(t.observe(false), None);
        assert_eq!(t.attempt(), Some(Attempt { number: 1, of: 2 }));
        assert_eq!(t.observe(false), Some(ProbeState::Passing));
        assert_eq!((t.observe(false), t.streak(), t.attempt()), (None, -3, None));
    }

    #[test]
    fn an_endless_streak_saturates() {
        let mut t = threshold(1, 1);
        t.streak = i32::MAX;
        t.observe(true);
        assert_eq!(t.streak(), i32::MAX);
        t.streak = i32::MIN;
        t.observe(false);
        assert_eq!((t.streak(), t.state()), (i32::MIN, ProbeState::Failing));
    }

    proptest! {
        #[test]
        fn the_state_is_that_of_the_last_streak_that_reached_its_threshold(
            results in proptest::collection::vec(any::<bool>(), 0..200),
            success in 1u32..5,
            failure in 1u32..5,
        ) {
            let mut t = threshold(success, failure);
            let mut expected = ProbeState::Pending;
            for (i, &result) in results.iter().enumerate() {
                t.observe(result);
                let needed = if result { success } else { failure } as usize;
                let reached = i + 1 >= needed && results[i + 1 - needed..=i].iter().all(|&r| r == result);
                if reached {
                    expected = if result { ProbeState::Passing } else { ProbeState::Failing };
                }
                prop_assert_eq!(t.state(), expected);
            }
        }
    }
}
