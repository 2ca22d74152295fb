//! What the status writer does and does not do, and the Events that it makes.

use {
    super::Maker,
    prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge},
};

/// How a request of the writer ended; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteResult {
    Written,
    Conflict,
    NotFound,
    Busy,
    Unreachable,
    Failed,
    Refused,
}

impl WriteResult {
    const ALL: [Self; 7] = [
        Self::Written,
        Self::Conflict,
        Self::NotFound,
        Self::Busy,
        Self::Unreachable,
        Self::Failed,
        Self::Refused,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What became of an Event; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventResult {
    /// It was made.
    Created,
    /// It was there already.
    Exists,
    /// Summed up in a later one: its scope had used up its allowance.
    Swallowed,
    /// Too many waited for the API server.
    Dropped,
    /// The API server would not take it.
    Failed,
}

impl EventResult {
    const ALL: [Self; 5] = [
        Self::Created,
        Self::Exists,
        Self::Swallowed,
        Self::Dropped,
        Self::Failed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Exists => "exists",
            Self::Swallowed => "swallowed",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// The status writer.
#[derive(Clone)]
pub(crate) struct WriterMetrics {
    writes: IntCounterVec,
    pub(crate) reads: IntCounter,
    events: IntCounterVec,
    pub(crate) suppressed: IntCounter,
    pub(crate) coalesced: IntCounter,
    pub(crate) contested: IntCounter,
    pub(crate) pending: IntGauge,
    pub(crate) lag_seconds: Histogram,
    pub(crate) request_seconds: Histogram,
}

impl WriterMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> Self {
        let writes = maker.counters(
            "status_writes_total",
            "Requests that replace the status of a HealthScope, by how they ended.",
            &["result"],
        );
        for result in WriteResult::ALL {
            writes.with_label_values(&[result.as_str()]);
        }
        let events = maker.counters(
            "kubernetes_events_total",
            "Kubernetes Events about HealthScopes, by what became of them.",
            &["result"],
        );
        for result in EventResult::ALL {
            events.with_label_values(&[result.as_str()]);
        }
        let buckets = [
            0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
        ];
        Self {
            writes,
            reads: maker.counter(
                "status_reads_total",
                "HealthScopes read one by one, because a write found that the watch is behind.",
            ),
            events,
            suppressed: maker.counter(
                "status_writes_suppressed_total",
                "Changes that meant nothing different from what the API server has.",
            ),
            coalesced: maker.counter(
                "status_writes_coalesced_total",
                "Statuses that a newer one replaced before they were written.",
            ),
            contested: maker.counter(
                "status_writes_contested_total",
                "Statuses of ours that somebody else replaced by something different, such as another aggregator by mistake.",
            ),
            pending: maker.gauge(
                "status_writes_pending",
                "Scopes whose status on the API server is not what it should be.",
            ),
            lag_seconds: maker.histogram(
                "status_lag_seconds",
                "From a scope's change until the API server had it.",
                &buckets,
            ),
            request_seconds: maker.histogram(
                "status_write_request_seconds",
                "How long the API server took for one write.",
                &buckets,
            ),
        }
    }

    pub(crate) fn write_ended(&self, result: WriteResult) {
        self.writes.with_label_values(&[result.as_str()]).inc();
    }

    pub(crate) fn event(&self, result: EventResult, count: u64) {
        self.events.with_label_values(&[result.as_str()]).inc_by(count);
    }
}
