//! Where less is injected than asked for.

use {
    super::Maker,
    healthscope_core::breaker::{Cause, Level, Record},
    prometheus::{IntCounter, IntGaugeVec},
};

/// The breaker.
#[derive(Clone)]
pub(crate) struct BreakerMetrics {
    open: IntGaugeVec,
    pub(crate) canaries: IntCounter,
    pub(crate) problem_write: IntCounter,
    pub(crate) problem_damaged: IntCounter,
}

impl BreakerMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> Self {
        let open = maker.gauges(
            "breaker_open",
            "Places where less is injected than asked for, because it was seen to do harm; in force in this replica.",
            &["level", "cause"],
        );
        let problems = maker.counters(
            "breaker_problems_total",
            "Troubles with the breaker's record: it could not be written, or what was in it was no record.",
            &["problem"],
        );
        let metrics = Self {
            open,
            canaries: maker.counter(
                "breaker_canaries_total",
                "Canaries that were deleted so that another one shows whether agents start.",
            ),
            problem_write: problems.with_label_values(&["write"]),
            problem_damaged: problems.with_label_values(&["damaged"]),
        };
        metrics.shows(&Record::default());
        metrics
    }

    /// Shows what is in force.
    pub(crate) fn shows(&self, record: &Record) {
        for level in Level::ALL {
            for cause in Cause::ALL {
                let trips = record.trips.iter();
                let count = trips
                    .filter(|trip| trip.level == level && trip.cause == cause)
                    .count();
                self.open
                    .with_label_values(&[level.as_str(), cause.as_str()])
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}
