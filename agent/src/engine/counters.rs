//! What the engine counts, for `/metrics`: plain atomics that one task writes and anybody reads (a lock guards only the
//! list of components). Knows nothing of Prometheus.

use {
    crate::schedule::Dropped,
    healthscope_shared::{
        name::Name,
        probe::{
            ProbeKind,
            outcome::{Outcome, RunResult},
        },
    },
    std::{
        collections::BTreeMap,
        sync::{
            Arc, Mutex, MutexGuard, PoisonError,
            atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    },
};

/// Upper bounds of the latency buckets, in seconds; one more bucket takes what is longer.
pub const DURATION_BOUNDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];
/// Upper bounds of the lateness buckets, in seconds; one more bucket takes what is longer.
pub const LATENESS_BOUNDS: [f64; 13] = [
    0.0005, 0.00075, 0.001, 0.00125, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0,
];

/// All kinds, in the order of [`Counters`]' rows.
pub const KINDS: [ProbeKind; 3] = [ProbeKind::Liveness, ProbeKind::Readiness, ProbeKind::Startup];
/// All results, in the order of [`Counters`]' columns; the words are [`RunResult::as_str`]'s.
pub const RESULTS: [&str; 4] = ["success", "warning", "failure", "error"];

/// Counts since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    runs: [[AtomicU64; 4]; 3],
    duration: [Histogram<{ DURATION_BOUNDS.len() + 1 }>; 3],
    lateness: Histogram<{ LATENESS_BOUNDS.len() + 1 }>,
    dropped_late: AtomicU64,
    dropped_running: AtomicU64,
    dropped_events: AtomicU64,
    running: AtomicU64,
    waiting: AtomicU64,
    /// Those that are watched. Components of one name in several namespaces are counted together.
    components: Mutex<BTreeMap<Name, Arc<ComponentRuns>>>,
}

/// Runs of one component, by kind and result.
#[derive(Debug, Default)]
pub(super) struct ComponentRuns {
    /// Whether it has probes of this kind, or had some since the process started.
    is_watched: [AtomicBool; 3],
    runs: [[AtomicU64; 4]; 3],
}

/// Counts per bucket (not cumulative) and the sum.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    sum_nanos: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_nanos: AtomicU64::new(0),
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&self, bounds: &[f64], value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = bounds
            .iter()
            .position(|&bound| seconds <= bound)
            .unwrap_or(bounds.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    fn read(&self) -> HistogramReading {
        HistogramReading {
            buckets: self.buckets.iter().map(|count| count.load(Relaxed)).collect(),
            sum: Duration::from_nanos(self.sum_nanos.load(Relaxed)),
        }
    }
}

/// A histogram as it stood at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramReading {
    /// Counts per bucket, not cumulative; one more than there are bounds.
    pub buckets: Vec<u64>,
    /// Sum of all values.
    pub sum: Duration,
}

/// All counts as they stood at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Runs by kind ([`KINDS`]) and result ([`RESULTS`]).
    pub runs: [[u64; 4]; 3],
    /// How long runs took, by kind; buckets are [`DURATION_BOUNDS`].
    pub duration: [HistogramReading; 3],
    /// Start of a run minus its due time; buckets are [`LATENESS_BOUNDS`].
    pub lateness: HistogramReading,
    /// Ticks dropped because they passed while the process could not run.
    pub dropped_late: u64,
    /// Ticks dropped because the former run was not finished.
    pub dropped_running: u64,
    /// Events dropped because nobody read them.
    pub dropped_events: u64,
    /// Runs under way.
    pub running: u64,
    /// Runs that are due and wait for their turn.
    pub waiting: u64,
}

/// Runs of one kind of probe, by result ([`RESULTS`]).
pub type KindReading = (ProbeKind, [u64; 4]);

const fn row(kind: ProbeKind) -> usize {
    match kind {
        ProbeKind::Liveness => 0,
        ProbeKind::Readiness => 1,
        ProbeKind::Startup => 2,
    }
}

impl Counters {
    /// Counts a run.
    pub(super) fn ran(&self, kind: ProbeKind, component: &ComponentRuns, outcome: &Outcome) {
        let row = row(kind);
        let column = match outcome.result {
            RunResult::Success => 0,
            RunResult::Warning(_) => 1,
            RunResult::Failure(_) => 2,
            RunResult::Error(_) => 3,
            // Nothing ran.
            RunResult::Unavailable(_) => return,
        };
        self.runs[row][column].fetch_add(1, Relaxed);
        component.runs[row][column].fetch_add(1, Relaxed);
        self.duration[row].add(&DURATION_BOUNDS, outcome.latency);
    }

    /// The counts of a component that has a probe of this kind.
    pub(super) fn component(&self, name: &Name, kind: ProbeKind) -> Arc<ComponentRuns> {
        let runs = Arc::clone(self.lock().entry(name.clone()).or_default());
        runs.is_watched[row(kind)].store(true, Relaxed);
        runs
    }

    /// Forgets the components that are not watched any more.
    pub(super) fn retain_components(&self, is_watched: impl Fn(&Name) -> bool) {
        self.lock().retain(|name, _| is_watched(name));
    }

    /// Runs of each component that is watched, by name: for each kind of probe that it has, by result ([`RESULTS`]).
    #[must_use]
    pub fn read_components(&self) -> Vec<(Name, Vec<KindReading>)> {
        let read = |component: &ComponentRuns| {
            KINDS
                .into_iter()
                .filter(|&kind| component.is_watched[row(kind)].load(Relaxed))
                .map(|kind| {
                    (
                        kind,
                        component.runs[row(kind)]
                            .each_ref()
                            .map(|count| count.load(Relaxed)),
                    )
                })
                .collect()
        };
        self.lock()
            .iter()
            .map(|(name, component)| (name.clone(), read(component)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<ComponentRuns>>> {
        // No code that could panic runs under the lock.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lateness(&self, lateness: Duration) {
        self.lateness.add(&LATENESS_BOUNDS, lateness);
    }

    pub(super) fn dropped_event(&self) {
        self.dropped_events.fetch_add(1, Relaxed);
    }

    pub(super) fn set_schedule(&self, dropped: Dropped, running: usize, waiting: usize) {
        self.dropped_late.store(dropped.late, Relaxed);
        self.dropped_running.store(dropped.running, Relaxed);
        self.running.store(running as u64, Relaxed);
        self.waiting.store(waiting as u64, Relaxed);
    }

    /// Reads everything.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            runs: self
                .runs
                .each_ref()
                .map(|row| row.each_ref().map(|count| count.load(Relaxed))),
            duration: self.duration.each_ref().map(Histogram::read),
            lateness: self.lateness.read(),
            dropped_late: self.dropped_late.load(Relaxed),
            dropped_running: self.dropped_running.load(Relaxed),
            dropped_events: self.dropped_events.load(Relaxed),
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
        }
    }
}
