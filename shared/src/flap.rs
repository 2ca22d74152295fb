//! Flapping: results that keep changing, found by weighing the changes among the last 64 results.
//!
//! As in Nagios newer changes weigh more, with two differences: the window is one 64-bit word, and the weight
//! halves every eight results, so that the flag follows within a few results and old trouble fades. The flag is set
//! at 35 % and cleared under 15 % of the weight that a change at every result would have. By that measure
//! * one blip (a failure between successes) is 16 %, two within eight results are about 28 %: not flapping;
//! * three blips, or five changes in a row, or three failures and three successes by turns: flapping;
//! * five and five by turns: not flapping, that is an application that fails and recovers;
//! * after endless flapping about 22 equal results clear the flag.
//!
//! No clock, no IO, integers only.

/// Weights of a change between result `i` and the one before, newest first; each is 2^(-1/8) of the one before.
const WEIGHTS: [u32; 63] = weights();
/// What a change at every result would weigh.
const TOTAL: u32 = total();
/// The flag is set at this share of [`TOTAL`] or more.
const SET_PERCENT: u32 = 35;
/// The flag is cleared below this share.
const CLEAR_PERCENT: u32 = 15;

const fn weights() -> [u32; 63] {
    // 2^(-1/8) in units of 2^-16.
    const DECAY: u64 = 60_097;
    let mut weights = [1 << 20; 63];
    let mut i = 1;
    while i < weights.len() {
        weights[i] = ((weights[i - 1] as u64 * DECAY) >> 16) as u32;
        i += 1;
    }
    weights
}

const fn total() -> u32 {
    let mut total = 0;
    let mut i = 0;
    while i < WEIGHTS.len() {
        total += WEIGHTS[i];
        i += 1;
    }
    total
}

/// The last 64 results and whether they flap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flap {
    /// Newest result in the lowest bit, 1 for success.
    history: u64,
    /// How many bits of `history` are results; at most 64.
    length: u8,
    flapping: bool,
}

impl Flap {
    /// Takes in a result; `true` when the flag changed.
    pub fn observe(&mut self, success: bool) -> bool {
        self.history = (self.history << 1) | u64::from(success);
        self.length = (self.length + 1).min(64);
        let percent = self.percent();
        let flapping = if self.flapping {
            percent >= CLEAR_PERCENT
        } else {
            percent >= SET_PERCENT
        };
        let changed = flapping != self.flapping;
        self.flapping = flapping;
        changed
    }

    /// Whether the results flap.
    #[must_use]
    pub const fn is_flapping(&self) -> bool {
        self.flapping
    }

    /// The weighted share of changes, 0 to 100. Results that were never seen count as no change.
    #[must_use]
    pub fn percent(&self) -> u32 {
        let mut changes = self.changes();
        let mut weight = 0;
        while changes != 0 {
            weight += WEIGHTS[changes.trailing_zeros() as usize];
            changes &= changes - 1;
        }
        u32::try_from(u64::from(weight) * 100 / u64::from(TOTAL)).expect("at most 100")
    }

    /// Newest result in the lowest bit, 1 for success; only the lowest [`Self::length`] bits are results.
    #[must_use]
    pub const fn history(&self) -> u64 {
        self.history
    }

    /// How many results [`Self::history`] holds: at most 64.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Bit `i` is set when result `i` differs from the one before it.
    const fn changes(&self) -> u64 {
        if self.length < 2 {
            return 0;
        }
        (self.history ^ (self.history >> 1)) & (u64::MAX >> (65 - self.length as u32))
    }
}

#[cfg(test)]
mod tests {
    use {super::*, proptest::prelude::*};

    /// The flag after the results, written as S and F.
    #[track_caller]
    fn check(results: &str, expected: bool) {
        let mut flap = Flap::default();
        for result in results.chars() {
            flap.observe(result == 'S');
        }
        assert_eq!(flap.is_flapping(), expected, "{results}: {} %", flap.percent());
    }

    #[test]
    fn the_flag_follows_the_documented_rows() {
        let calm = "S".repeat(64);
        check("", false);
        check("S", false);
        check("F", false);
        check("FFFSSSSS", false);
        check(&format!("{calm}FS"), false);
        check(&format!("{calm}FSSSSFS"), false);
        check(&format!("{calm}FSSFSSFS"), true);
        check(&format!("{calm}FSFSF"), true);
        check(&"FFFSSS".repeat(11), true);
        check(&"FFFFFSSSSS".repeat(11), false);
    }

    #[test]
    fn endless_flapping_is_cleared_by_22_equal_results() {
        let mut flap = Flap::default();
        for i in 0..200 {
            flap.observe(i % 2 == 0);
        }
        assert_eq!((flap.percent(), flap.is_flapping()), (100, true));
        let last = flap.history() & 1 == 1;
        let steps = (1..).find(|_| flap.observe(last)).unwrap();
        assert_eq!((steps, flap.is_flapping()), (22, false));
    }

    #[test]
    fn between_the_two_limits_the_flag_stays_as_it_was() {
        let calm = "S".repeat(64);
        // Both end between 15 % and 35 %.
        check(&format!("{calm}FS"), false);
        check(&format!("{calm}FSFSFSFSSSSSSS"), true);
    }

    proptest! {
        #[test]
        fn equal_results_never_raise_the_share(results in proptest::collection::vec(any::<bool>(), 1..150)) {
            let mut flap = Flap::default();
            let mut last = None;
            for result in results {
                let before = flap.percent();
                flap.observe(result);
                if last == Some(result) {
                    prop_assert!(flap.percent() <= before);
                }
                prop_assert!(flap.percent() <= 100);
                last = Some(result);
            }
        }
    }
}
