//! Words for people about instances and probes: which check fails, where, and why.

use {
    crate::{
        component::{Components, InstanceId, Sick},
        fleet::{Agent, Fleet, Probe, Shown},
        log::{Log, Subject},
        rollup::Cause,
        view::{Change, FailingView, ProbeView},
    },
    healthscope_shared::{
        health::Reason,
        name::InstanceName,
        probe::{ProbeKind, outcome::ProbeState},
    },
    jiff::Timestamp,
    std::sync::Arc,
};

/// Most failing probes that a component's summary shows.
const MAX_FAILING: usize = 5;

/// Why an instance is not healthy: `readiness http 127.0.0.1:8080/healthz on web-1: 503 Service Unavailable`.
pub(super) fn leaf(fleet: &Fleet, sick: &Sick) -> (Reason, String) {
    let instance = fleet.instance(sick.id);
    instance_reason(
        fleet.get(sick.id.agent),
        &instance.name,
        instance.shown,
        |position| &fleet.get(sick.id.agent).probes_of(instance)[position as usize],
    )
}

/// The same for an instance at hand.
pub(super) fn instance_reason<'a>(
    agent: &Agent,
    name: &InstanceName,
    shown: Shown,
    probe: impl FnOnce(u32) -> &'a Probe,
) -> (Reason, String) {
    match shown {
        Shown::Probes(Cause::Passing) => (Reason::PASSING, String::new()),
        Shown::Probes(Cause::NoProbes) => (Reason::UNKNOWN, format!("{name} has no probes")),
        Shown::Probes(Cause::Failing(position)) => {
            let probe = probe(position);
            let reason = match probe.shape.kind {
                ProbeKind::Liveness => Reason::LIVENESS_FAILED,
                ProbeKind::Readiness | ProbeKind::Startup => Reason::READINESS_FAILED,
            };
            (
                reason,
                format!(
                    "{} {} on {name}: {}",
                    probe.shape.kind,
                    probe.shape.target,
                    why(probe)
                ),
            )
        }
        Shown::Probes(Cause::NotStarted(position)) => {
            let probe = probe(position);
            let text = match &probe.detail {
                Some(detail) if !detail.message.is_empty() => {
                    format!(
                        "startup {} on {name} has not passed yet: {}",
                        probe.shape.target, detail.message
                    )
                }
                Some(_) | None => format!("startup {} on {name} has not passed yet", probe.shape.target),
            };
            (Reason::STARTING, text)
        }
        Shown::Probes(Cause::Pending(position)) => {
            let probe = probe(position);
            let check = format!("{} {} on {name}", probe.shape.kind, probe.shape.target);
            match &probe.detail {
                // It cannot be run, and the agent says why; runs that were made count for something.
                Some(detail) if probe.streak == 0 && !detail.message.is_empty() => (
                    detail.reason.clone(),
                    format!("{check} is not known: {}", detail.message),
                ),
                Some(_) | None => (Reason::STARTING, format!("{check} has no verdict yet")),
            }
        }
        Shown::Lost => (Reason::AGENT_LOST, gone(agent, name, "is lost")),
        Shown::Stopped => (Reason::AGENT_STOPPED, gone(agent, name, "was stopped")),
    }
}

fn gone(agent: &Agent, instance: &InstanceName, how: &str) -> String {
    if agent.name.as_str() == instance.as_str() {
        format!("agent {} {how}", agent.name)
    } else {
        format!("agent {} of {instance} {how}", agent.name)
    }
}

/// Why a probe fails, in words; the machine's word when there are none.
fn why(probe: &Probe) -> &str {
    match &probe.detail {
        Some(detail) if !detail.message.is_empty() => &detail.message,
        Some(detail) => detail.reason.as_str(),
        None => "failed",
    }
}

/// The probes that explain why the worst instances are not healthy.
pub(super) fn failing<'a>(fleet: &Fleet, sick: impl Iterator<Item = &'a Sick>) -> Vec<FailingView> {
    let mut views = Vec::new();
    for sick in sick.take(MAX_FAILING) {
        let instance = fleet.instance(sick.id);
        let agent = fleet.get(sick.id.agent);
        let Shown::Probes(cause) = instance.shown else {
            continue;
        };
        for (position, probe) in (0..).zip(agent.probes_of(instance)) {
            if views.len() == MAX_FAILING {
                return views;
            }
            if probe.state == ProbeState::Failing || cause.probe() == Some(position) {
                views.push(FailingView {
                    instance: sick.name.clone(),
                    agent: agent.name.clone(),
                    probe: probe_view(probe),
                });
            }
        }
    }
    views
}

/// A probe without the counters of its runs.
pub(super) fn probe_view(probe: &Probe) -> ProbeView {
    let (reason, message, output) = match &probe.detail {
        Some(detail) => (
            detail.reason.clone(),
            detail.message.to_string(),
            detail.output.to_string(),
        ),
        None if probe.state == ProbeState::Pending => (Reason::STARTING, String::new(), String::new()),
        None => (Reason::PASSING, String::new(), String::new()),
    };
    ProbeView {
        probe: Arc::clone(&probe.shape.name),
        kind: probe.shape.kind,
        handler: handler(&probe.shape.target).into(),
        target: Arc::clone(&probe.shape.target),
        state: probe.state,
        reason,
        message,
        output,
        since: (probe.since != 0).then(|| time(probe.since)),
        streak: probe.streak,
        attempt: attempt(probe),
        flapping: probe.flapping,
        error: probe.error,
        runs: None,
    }
}

/// How far the streak is on its way to changing the state.
fn attempt(probe: &Probe) -> Option<String> {
    let number = probe.streak.unsigned_abs();
    let of = match (probe.streak, probe.state) {
        (1.., ProbeState::Pending | ProbeState::Failing) => probe.shape.success_threshold,
        (..0, ProbeState::Pending | ProbeState::Passing) => probe.shape.failure_threshold,
        (0, _) | (1.., ProbeState::Passing) | (..0, ProbeState::Failing) => return None,
    };
    (number < of).then(|| format!("{number}/{of}"))
}

/// Kubernetes' name of the handler that a target in words belongs to.
fn handler(target: &str) -> &'static str {
    match target.split(' ').next() {
        Some("exec") => "exec",
        Some("http" | "https") => "httpGet",
        Some("tcp") => "tcpSocket",
        Some("grpc") => "grpc",
        Some(_) | None => "",
    }
}

/// A time kept as milliseconds; those of an agent with an absurd age are the earliest time there is.
pub(super) fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MIN)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one transition, each from elsewhere"
)]
pub(super) fn log_probe(
    log: &mut Log,
    fleet: &Fleet,
    components: &Components,
    id: InstanceId,
    position: usize,
    from: Option<ProbeState>,
    to: ProbeState,
    seq: u64,
) {
    let agent = fleet.get(id.agent);
    let instance = fleet.instance(id);
    let probe = &agent.probes[position];
    let key = &components.get(instance.component).key;
    let (reason, message) = match &probe.detail {
        Some(detail) => (detail.reason.clone(), detail.message.to_string()),
        None => (Reason::PASSING, String::new()),
    };
    let change = Change::Probe {
        from,
        to,
        probe: Arc::clone(&probe.shape.name),
        instance: instance.name.clone(),
        agent: agent.name.clone(),
        seq,
    };
    let subject = Subject {
        namespace: &key.namespace,
        kind: &key.kind,
        name: &key.name,
    };
    log.push(time(probe.since), subject, change, reason, message);
}
