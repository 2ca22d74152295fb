//! What became of pods that the API server asked about.

use {
    super::Maker,
    healthscope_core::{admission::Why, inject::SkipReason},
    prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge},
};

/// The webhook.
#[derive(Clone)]
pub(crate) struct AdmissionMetrics {
    injections: IntCounterVec,
    events: IntCounterVec,
    pub(crate) seconds: Histogram,
    pub(crate) unreadable_objects: IntCounter,
    pub(crate) namespaces: IntGauge,
}

/// What became of an Event about a skipped pod; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SkipEventResult {
    Created,
    Exists,
    Dropped,
    Failed,
}

impl SkipEventResult {
    const ALL: [Self; 4] = [Self::Created, Self::Exists, Self::Dropped, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Exists => "exists",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

const INJECTED: &str = "injected";
const SKIPPED: &str = "skipped";
const PASSED: &str = "passed";

impl AdmissionMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> Self {
        let injections = maker.counters(
            "injections_total",
            "Pods that the API server asked about: injected, skipped for a reason of theirs, or passed undecided for a \
             reason of ours.",
            &["result", "reason"],
        );
        injections.with_label_values(&[INJECTED, ""]);
        for code in SkipReason::CODES {
            injections.with_label_values(&[SKIPPED, code]);
        }
        for why in Why::ALL {
            injections.with_label_values(&[PASSED, why.code()]);
        }
        let events = maker.counters(
            "injection_events_total",
            "Kubernetes Events about skipped pods, by what became of them.",
            &["result"],
        );
        for result in SkipEventResult::ALL {
            events.with_label_values(&[result.as_str()]);
        }
        Self {
            injections,
            events,
            seconds: maker.histogram(
                "injection_seconds",
                "From the head of the API server's question to our answer.",
                &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 2.0],
            ),
            unreadable_objects: maker.counter(
                "injection_surroundings_dropped_total",
                "LimitRanges and ResourceQuotas that were left out because their namespace has too many.",
            ),
            namespaces: maker.gauge(
                "injection_namespaces",
                "Namespaces whose labels, LimitRanges and ResourceQuotas are known.",
            ),
        }
    }

    pub(crate) fn injected(&self) {
        self.injections.with_label_values(&[INJECTED, ""]).inc();
    }

    pub(crate) fn skipped(&self, reason: &SkipReason) {
        self.injections.with_label_values(&[SKIPPED, reason.code()]).inc();
    }

    pub(crate) fn passed(&self, why: Why) {
        self.injections.with_label_values(&[PASSED, why.code()]).inc();
    }

    pub(crate) fn event(&self, result: SkipEventResult) {
        self.events.with_label_values(&[result.as_str()]).inc();
    }
}
