//! Figures about the runs of one probe since the last summary, in a fixed amount of memory.
//!
//! Latencies are counted in buckets that are a quarter of an octave wide, so that a percentile is at most a quarter
//! too high; minimum, mean and maximum are exact.

use {
    healthscope_shared::probe::outcome::{Outcome, RunResult},
    std::time::Duration,
};

/// Lowest bit of the first whole octave: 16 µs. What is shorter goes to four buckets of 4 µs.
const FIRST_OCTAVE: u32 = 4;
/// Octaves, the first one cut in four equal buckets from 0: up to half an hour.
const OCTAVES: u32 = 28;
/// Parts of an octave.
const STEPS: u32 = 4;
const BUCKETS: usize = (OCTAVES * STEPS) as usize;

/// Runs since the last summary. Counts saturate: an agent that nobody asks for summaries keeps running.
#[derive(Clone, Debug)]
pub struct Window {
    runs: u32,
    failures: u32,
    errors: u32,
    min_us: u32,
    max_us: u64,
    sum_us: u64,
    buckets: [u16; BUCKETS],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            runs: 0,
            failures: 0,
            errors: 0,
            min_us: u32::MAX,
            max_us: 0,
            sum_us: 0,
            buckets: [0; BUCKETS],
        }
    }
}

/// What a [`Window`] holds. All zero when nothing ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Runs.
    pub runs: u32,
    /// Of these, failures.
    pub failures: u32,
    /// Of these, errors; not counted as failures.
    pub errors: u32,
    /// Shortest run.
    pub min: Duration,
    /// Mean.
    pub avg: Duration,
    /// Longest run.
    pub max: Duration,
    /// 99 of 100 runs were no longer; at most a quarter too high.
    pub p99: Duration,
}

impl Window {
    /// Counts a run.
    pub fn add(&mut self, outcome: &Outcome) {
        let us = u64::try_from(outcome.latency.as_micros()).unwrap_or(u64::MAX);
        self.runs = self.runs.saturating_add(1);
        match outcome.result {
            // Of what did not run nobody adds up anything.
            RunResult::Success | RunResult::Warning(_) | RunResult::Unavailable(_) => {}
            RunResult::Failure(_) => self.failures = self.failures.saturating_add(1),
            RunResult::Error(_) => self.errors = self.errors.saturating_add(1),
        }
        self.min_us = self.min_us.min(u32::try_from(us).unwrap_or(u32::MAX));
        self.max_us = self.max_us.max(us);
        self.sum_us = self.sum_us.saturating_add(us);
        let bucket = &mut self.buckets[bucket_of(us)];
        *bucket = bucket.saturating_add(1);
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        if self.runs == 0 {
            return Figures::default();
        }
        Figures {
            runs: self.runs,
            failures: self.failures,
            errors: self.errors,
            min: Duration::from_micros(self.min_us.into()),
            avg: Duration::from_micros(self.sum_us / u64::from(self.runs)),
            max: Duration::from_micros(self.max_us),
            p99: Duration::from_micros(self.percentile_99()),
        }
    }

    fn percentile_99(&self) -> u64 {
        let counted: u64 = self.buckets.iter().map(|&count| u64::from(count)).sum();
        let rank = (counted * 99).div_ceil(100);
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return upper_bound(bucket).clamp(self.min_us.into(), self.max_us);
            }
        }
        self.max_us
    }
}

/// The bucket of a latency; the last one takes everything that is longer.
fn bucket_of(us: u64) -> usize {
    let octave = us.max(1).ilog2();
    if octave < FIRST_OCTAVE {
        // Under 16 µs: four buckets of 4 µs, in place of one octave.
        return (us / 4) as usize;
    }
    let step = (us >> (octave - 2)) & 3;
    let bucket = (octave - FIRST_OCTAVE + 1) * STEPS + step as u32;
    (bucket as usize).min(BUCKETS - 1)
}

/// The longest latency that falls into a bucket.
const fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS as u64 {
        return bucket * 4 + 3;
    }
    let octave = bucket / STEPS as u64 + FIRST_OCTAVE as u64 - 1;
    let step = bucket % STEPS as u64;
    (1 << octave) + ((step + 1) << (octave - 2)) - 1
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_shared::health::Reason, proptest::prelude::*};

    fn run(us: u64, result: RunResult) -> Outcome {
        Outcome {
            result,
            latency: Duration::from_micros(us),
            message: String::new(),
            output: String::new(),
        }
    }

    fn figures(latencies: impl IntoIterator<Item = u64>) -> Figures {
        let mut window = Window::default();
        for us in latencies {
            window.add(&run(us, RunResult::Success));
        }
        window.figures()
    }

    #[test]
    fn an_empty_window_is_all_zero() {
        assert_eq!(figures([]), Figures::default());
    }

    #[test]
    fn figures_count_failures_and_errors_apart() {
        let mut window = Window::default();
        window.add(&run(100, RunResult::Success));
        window.add(&run(300, RunResult::Warning(Reason::REDIRECT_ELSEWHERE)));
        window.add(&run(200, RunResult::Failure(Reason::TIMED_OUT)));
        window.add(&run(400, RunResult::Error(Reason::CANNOT_EXECUTE)));
        let expected = Figures {
            runs: 4,
            failures: 1,
            errors: 1,
            min: Duration::from_micros(100),
            avg: Duration::from_micros(250),
            max: Duration::from_micros(400),
            p99: Duration::from_micros(400),
        };
        assert_eq!(window.figures(), expected);
    }

    #[test]
    fn one_slow_run_in_a_hundred_is_above_the_99th_percentile() {
        let mostly_fast = || std::iter::repeat_n(1_000, 99);
        let p99 = figures(mostly_fast().chain([50_000])).p99;
        assert!(p99 < Duration::from_micros(1_250), "{p99:?}");
        let p99 = figures(mostly_fast().chain([50_000, 50_000])).p99;
        assert!(p99 >= Duration::from_millis(50), "{p99:?}");
    }

    #[test]
    fn a_week_fits_in_the_last_bucket() {
        assert_eq!(figures([u64::MAX / 2]).max, Duration::from_micros(u64::MAX / 2));
    }

    proptest! {
        #[test]
        fn a_bucket_is_at_most_a_quarter_too_high(us in 0_u64..2_000_000_000) {
            let bound = upper_bound(bucket_of(us));
            prop_assert!(bound >= us, "{us} over {bound}");
            prop_assert!(bound <= us + us / 4 + 3, "{us} far under {bound}");
        }

        #[test]
        fn percentiles_are_within_a_quarter(mut latencies in proptest::collection::vec(1_u64..10_000_000, 1..300)) {
            let p99 = figures(latencies.iter().copied()).p99;
            latencies.sort_unstable();
            let exact = latencies[(latencies.len() * 99).div_ceil(100) - 1];
            let p99 = u64::try_from(p99.as_micros()).unwrap();
            prop_assert!(p99 >= exact && p99 <= exact + exact / 4 + 3, "{p99} for {exact}");
        }
    }
}
