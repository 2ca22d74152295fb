//! The agent's `/metrics`: counters of engine and uplink in Prometheus' text format.
//!
//! The counts live where they are counted; nothing is copied before somebody asks. Every label comes from a closed set,
//! but for the names of components, of which there are at most `MAX_CONTAINERS`. Every label set is there from the
//! start, so that zero can be told from missing.

use {
    crate::{
        engine::counters::{
            Counters, DURATION_BOUNDS, HistogramReading, KINDS, LATENESS_BOUNDS, RESULTS, Reading,
        },
        uplink::{
            connect::AttemptResult,
            stats::{EndCause, Stats},
        },
    },
    healthscope_service::build,
    prometheus::{
        TextEncoder,
        proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
    },
    std::sync::Arc,
};

/// Components that have series of their own; what is beyond them is added up under [`OTHERS`]. A pod has a handful of
/// containers; a machine with more components than this is scraped for its sums.
const MAX_CONTAINERS: usize = 1_000;
/// No component can be called this.
const OTHERS: &str = "_others";

/// Where the figures come from.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Of the engine.
    pub engine: Arc<Counters>,
    /// Of the uplink.
    pub uplink: Arc<Stats>,
    /// When the process started, seconds since 1970.
    pub started: f64,
}

impl Metrics {
    /// The text that a scraper gets.
    #[must_use]
    pub fn render(&self) -> String {
        let families = self.families();
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("every family has a name and at least one metric of its type")
    }

    fn families(&self) -> Vec<MetricFamily> {
        let Self {
            engine,
            uplink,
            started,
        } = self;
        let mut families = self.engine(&engine.read());
        families.extend(uplink_families(uplink));
        let commit = build::COMMIT.unwrap_or_default();
        families.push(family(
            "healthscope_agent_build_info",
            "Which release this is; always 1.",
            MetricType::GAUGE,
            vec![gauge(&[("version", build::VERSION), ("commit", commit)], 1.0)],
        ));
        families.push(family(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970.",
            MetricType::GAUGE,
            vec![gauge(&[], *started)],
        ));
        families
    }

    fn engine(&self, reading: &Reading) -> Vec<MetricFamily> {
        let Reading {
            runs: _,
            duration,
            lateness,
            dropped_late,
            dropped_running,
            dropped_events,
            running,
            waiting,
        } = reading;
        let durations = KINDS
            .iter()
            .zip(duration)
            .map(|(kind, reading)| histogram(&[("probe_type", kind.as_str())], &DURATION_BOUNDS, reading))
            .collect();
        vec![
            family(
                "healthscope_agent_probe_total",
                "Runs of probes.",
                MetricType::COUNTER,
                self.runs(reading),
            ),
            family(
                "healthscope_agent_probe_duration_seconds",
                "How long runs of probes took.",
                MetricType::HISTOGRAM,
                durations,
            ),
            family(
                "healthscope_agent_probe_lateness_seconds",
                "How long after their due time runs of probes started.",
                MetricType::HISTOGRAM,
                vec![histogram(&[], &LATENESS_BOUNDS, lateness)],
            ),
            family(
                "healthscope_agent_ticks_dropped_total",
                "Runs of probes that were left out, because the former was not over or the process could not run.",
                MetricType::COUNTER,
                vec![
                    counter(&[("cause", "late")], *dropped_late),
                    counter(&[("cause", "running")], *dropped_running),
                ],
            ),
            family(
                "healthscope_agent_events_dropped_total",
                "Notes about probes that were left out because nobody took them in.",
                MetricType::COUNTER,
                vec![counter(&[], *dropped_events)],
            ),
            family(
                "healthscope_agent_runs_running",
                "Runs of probes under way.",
                MetricType::GAUGE,
                vec![gauge(&[], *running as f64)],
            ),
            family(
                "healthscope_agent_runs_waiting",
                "Runs of probes that are due and wait for their turn.",
                MetricType::GAUGE,
                vec![gauge(&[], *waiting as f64)],
            ),
        ]
    }

    fn runs(&self, reading: &Reading) -> Vec<Metric> {
        let mut metrics = Vec::new();
        let mut others = reading.runs;
        let components = self.engine.read_components();
        let mut push = |kind: &str, container: &str, counts: &[u64; 4]| {
            metrics.extend(RESULTS.iter().zip(counts).map(|(result, &count)| {
                counter(
                    &[("probe_type", kind), ("result", result), ("container", container)],
                    count,
                )
            }));
        };
        for (name, kinds) in components.iter().take(MAX_CONTAINERS) {
            for (kind, counts) in kinds {
                push(kind.as_str(), name.as_str(), counts);
                let row = KINDS.iter().position(|known| known == kind);
                if let Some(row) = row.and_then(|row| others.get_mut(row)) {
                    for (other, count) in row.iter_mut().zip(counts) {
                        *other = other.saturating_sub(*count);
                    }
                }
            }
        }
        // Also what components that are not watched any more have counted: sums never fall.
        for (kind, counts) in KINDS.iter().zip(&others) {
            push(kind.as_str(), OTHERS, counts);
        }
        metrics
    }
}

fn uplink_families(stats: &Stats) -> Vec<MetricFamily> {
    let attempts = AttemptResult::ALL
        .iter()
        .map(|&result| counter(&[("result", result.as_str())], stats.attempts(result)))
        .collect();
    let ended = EndCause::ALL
        .iter()
        .map(|&cause| counter(&[("cause", cause.as_str())], stats.sessions_ended(cause)))
        .collect();
    vec![
        family(
            "healthscope_agent_connected",
            "Whether there is a session with the aggregator.",
            MetricType::GAUGE,
            vec![gauge(&[], f64::from(u8::from(stats.is_connected())))],
        ),
        family(
            "healthscope_agent_connection_attempts_total",
            "Attempts to reach the aggregator.",
            MetricType::COUNTER,
            attempts,
        ),
        family(
            "healthscope_agent_sessions_ended_total",
            "Sessions with the aggregator that ended.",
            MetricType::COUNTER,
            ended,
        ),
        family(
            "healthscope_agent_transitions_total",
            "Changes of a probe's state.",
            MetricType::COUNTER,
            vec![counter(&[], stats.transitions())],
        ),
        family(
            "healthscope_agent_transitions_dropped_total",
            "Changes of a probe's state that were forgotten before an aggregator took them in; the states themselves were not.",
            MetricType::COUNTER,
            vec![counter(&[], stats.lost())],
        ),
        family(
            "healthscope_agent_transitions_unacknowledged",
            "Changes of a probe's state that the aggregator has not taken in.",
            MetricType::GAUGE,
            vec![gauge(&[], stats.unacknowledged() as f64)],
        ),
    ]
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels
        .iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect();
    Metric::from_label(pairs)
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut counter = Counter::default();
    // Exact up to 2^53.
    counter.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}

fn histogram(labels: &[(&str, &str)], bounds: &[f64], reading: &HistogramReading) -> Metric {
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(bounds.len());
    for (bound, count) in bounds.iter().zip(&reading.buckets) {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(reading.buckets.iter().sum());
    histogram.set_sample_sum(reading.sum.as_secs_f64());
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_there_from_the_start() {
        let metrics = Metrics {
            engine: Arc::default(),
            uplink: Arc::default(),
            started: 1_000.5,
        };
        let text = metrics.render();
        for line in [
            r#"healthscope_agent_probe_total{probe_type="readiness",result="failure",container="_others"} 0"#,
            r#"healthscope_agent_probe_duration_seconds_bucket{probe_type="liveness",le="0.0005"} 0"#,
            r#"healthscope_agent_ticks_dropped_total{cause="late"} 0"#,
            r#"healthscope_agent_connection_attempts_total{result="refused"} 0"#,
            r#"healthscope_agent_sessions_ended_total{cause="silent"} 0"#,
            "healthscope_agent_connected 0",
            "process_start_time_seconds 1000.5",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
