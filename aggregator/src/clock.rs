//! The one place that reads clocks: tokio's, so that tests can stop it, and the wall clock beside it.

use {healthscope_core::event::Now, jiff::Timestamp, std::time::Instant};

/// This moment, for deadlines.
pub(crate) fn instant() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// This moment, by both clocks.
pub(crate) fn now() -> Now {
    Now {
        instant: instant(),
        wall: Timestamp::now(),
    }
}
