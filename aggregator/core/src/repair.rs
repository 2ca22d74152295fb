//! How often something is put right that somebody else changes: at once, and then ever again after a pause.
//!
//! Two programs that each keep the same field their own way would otherwise write as fast as the API server lets them.

use std::time::{Duration, Instant};

/// Between two repairs of the same thing: two installations that fight over it cost the API server two writes a minute.
pub const PAUSE: Duration = Duration::from_secs(60);

/// The repairs of one thing.
#[derive(Clone, Debug, Default)]
pub struct Repairs {
    latest: Option<Instant>,
}

impl Repairs {
    /// When it may be repaired: now, or later.
    #[must_use]
    pub fn due(&self, now: Instant) -> Instant {
        self.latest.map_or(now, |latest| now.max(latest + PAUSE))
    }

    /// It is being repaired.
    pub const fn made(&mut self, now: Instant) {
        self.latest = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "a test starts its own clock somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_first_repair_is_made_at_once_and_the_next_after_a_pause() {
        let start = start();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut repairs = Repairs::default();
        assert_eq!(repairs.due(at(0)), at(0));
        repairs.made(at(0));
        assert_eq!(repairs.due(at(1)), at(60));
        assert_eq!(repairs.due(at(60)), at(60));
        assert_eq!(repairs.due(at(500)), at(500));
    }
}
