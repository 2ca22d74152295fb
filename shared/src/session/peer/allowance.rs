//! How much one agent may say: a token bucket in records. Over it the agent is not read from for a while; nothing is
//! refused, and a correct agent conflates what it has to say meanwhile.

use std::time::{Duration, Instant};

/// The bucket. One token pays for one record or one frame.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Negative after a frame that cost more than there was.
    tokens: f64,
    at: Instant,
    per_second: u32,
    burst: u32,
}

impl Allowance {
    /// Full.
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            tokens: f64::from(burst),
            at: now,
            per_second,
            burst,
        }
    }

    /// Changes the measure; what has been saved up beyond the new burst is gone.
    pub(super) fn resize(&mut self, per_second: u32, burst: u32) {
        self.per_second = per_second;
        self.burst = burst;
        self.tokens = self.tokens.min(f64::from(burst));
    }

    /// Pays for something that has arrived.
    pub(super) fn pay(&mut self, tokens: usize, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        self.tokens = (self.tokens + elapsed * f64::from(self.per_second)).min(f64::from(self.burst))
            - f64::from(tokens);
    }

    /// When something may be read again, if not now.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        (self.tokens < 0.0)
            .then(|| self.at + Duration::from_secs_f64(-self.tokens / f64::from(self.per_second)))
    }
}

#[cfg(test)]
mod tests {
    use {super::*, crate::session::any_instant};

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = any_instant();
        let mut allowance = Allowance::new(1_000, 500, start);
        allowance.pay(500, start);
        assert_eq!(allowance.ready_at(), None);
        allowance.pay(250, start);
        assert_eq!(allowance.ready_at(), Some(start + Duration::from_millis(250)));
        allowance.pay(0, start + Duration::from_millis(250));
        assert_eq!(allowance.ready_at(), None);
    }

    #[test]
    fn time_that_goes_backwards_gives_nothing() {
        let start = any_instant() + Duration::from_secs(10);
        let mut allowance = Allowance::new(10, 10, start);
        allowance.pay(20, start - Duration::from_secs(5));
        assert_eq!(allowance.ready_at(), Some(start + Duration::from_secs(1)));
    }
}
