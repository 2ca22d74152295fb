//! What `/status` of the agent's own endpoint says: public JSON, its names do not change.
//!
//! Pure: everything comes in as an argument.

use {
    crate::{
        engine::{AnnouncedComponent, ProbeReport},
        uplink::stats::{State, Stats, Status},
    },
    healthscope_shared::{
        health::Reason,
        name::{AgentName, Name, Namespace, ProbeName},
        probe::{ProbeKind, outcome::ProbeState},
        wire::ProbeId,
    },
    serde::Serialize,
    std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    },
};

/// Everything an agent knows about itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentView {
    agent: AgentName,
    version: &'static str,
    uptime_seconds: u64,
    aggregator: AggregatorView,
    components: Vec<ComponentView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AggregatorView {
    url: String,
    /// `connecting`, `connected` or `waiting`.
    state: &'static str,
    since_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    unacknowledged_transitions: u64,
    dropped_transitions: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ComponentView {
    namespace: Namespace,
    name: Name,
    probes: Vec<ProbeView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProbeView {
    name: ProbeName,
    #[serde(rename = "type")]
    kind: ProbeKind,
    target: String,
    state: ProbeState,
    since_seconds: u64,
    streak: i32,
    flapping: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<RunView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RunView {
    /// `success`, `warning`, `failure` or `error`.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    latency_seconds: f64,
}

/// What the view is made of.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    pub(super) agent: &'a AgentName,
    pub(super) version: &'static str,
    pub(super) started: Instant,
    pub(super) status: &'a Status,
    pub(super) stats: &'a Stats,
    pub(super) watched: &'a [AnnouncedComponent],
    pub(super) reports: Vec<ProbeReport>,
    pub(super) now: Instant,
}

impl AgentView {
    pub(super) fn new(sources: Sources<'_>) -> Self {
        let Sources {
            agent,
            version,
            started,
            status,
            stats,
            watched,
            reports,
            now,
        } = sources;
        let mut reports: BTreeMap<ProbeId, ProbeReport> =
            reports.into_iter().map(|report| (report.probe, report)).collect();
        let components = watched
            .iter()
            .map(|AnnouncedComponent { component, probes }| ComponentView {
                namespace: component.namespace.clone(),
                name: component.name.clone(),
                probes: probes
                    .iter()
                    // Missing when the probe was replaced a moment ago.
                    .filter_map(|probe| Some((probe, reports.remove(&probe.id)?)))
                    .map(|(probe, report)| ProbeView {
                        name: probe.spec.name.clone(),
                        kind: probe.spec.kind,
                        target: probe.spec.handler.to_string(),
                        state: report.state,
                        since_seconds: age(report.since, now).as_secs(),
                        streak: report.streak,
                        flapping: report.flapping,
                        last: report.last.map(|outcome| RunView {
                            result: outcome.result.as_str(),
                            reason: outcome.result.reason().cloned(),
                            message: outcome.message,
                            latency_seconds: outcome.latency.as_secs_f64(),
                        }),
                    })
                    .collect(),
            })
            .collect();
        Self {
            agent: agent.clone(),
            version,
            uptime_seconds: age(started, now).as_secs(),
            aggregator: AggregatorView {
                url: status.aggregator.clone(),
                state: status.state.as_str(),
                since_seconds: age(status.since, now).as_secs(),
                version: match &status.state {
                    State::Connected { version } => Some(version.clone()),
                    State::Connecting | State::Waiting => None,
                },
                problem: status.problem.clone(),
                unacknowledged_transitions: stats.unacknowledged(),
                dropped_transitions: stats.lost(),
            },
            components,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a view has only string keys")
    }
}

fn age(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}
