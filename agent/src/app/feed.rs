//! Between engine and uplink: translates what the engine says into what the aggregator is told, and what the uplink asks
//! for into commands.
//!
//! Holds no state of its own beyond the latest configuration; never reads a clock.

use {
    crate::{
        engine::{
            AnnouncedComponent, Command, ComponentProbes, Event, ProbeReport, ProbeSummary, RunNowReply,
            counters::Counters,
        },
        uplink::{Input, Request},
    },
    healthscope_service::admin::Condition,
    healthscope_shared::{
        config::Component,
        health::Reason,
        name::{ComponentKey, InstanceName},
        probe::outcome::{ProbeState, RunResult},
        session::{MAX_RUNS, outbox::Observation},
        wire::{AnnouncedInstance, AnnouncedProbe, Probed, RunProbe, Summary},
    },
    std::{collections::HashMap, sync::Arc, time::Duration},
    tokio::{
        sync::{mpsc, oneshot, watch},
        task::JoinSet,
    },
};

/// Runs that were asked for and are not over: those of the present session, and of one before it.
const MAX_PENDING_RUNS: usize = 2 * MAX_RUNS;

/// The task's ends of all channels.
#[derive(Debug)]
pub(super) struct Feed {
    /// What the instances of this agent are called.
    pub(super) instance: InstanceName,
    /// What is to be watched.
    pub(super) components: watch::Receiver<Arc<Vec<Component>>>,
    /// To the engine. Full only when the process does not get to run; then this waits.
    pub(super) commands: mpsc::Sender<Command>,
    /// From the engine.
    pub(super) events: mpsc::Receiver<Event>,
    /// To the uplink, which always reads.
    pub(super) inputs: mpsc::Sender<Input>,
    /// From the uplink.
    pub(super) requests: mpsc::Receiver<Request>,
    /// What is watched, for the agent's own endpoint.
    pub(super) watched: watch::Sender<Arc<Vec<AnnouncedComponent>>>,
    /// Tells when the engine had to drop events.
    pub(super) counters: Arc<Counters>,
    /// Holds from the first announcement on.
    pub(super) ready: Condition,
}

/// One end of a channel is gone: the process is about to stop.
#[derive(Debug)]
struct Gone;

impl<T> From<mpsc::error::SendError<T>> for Gone {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self
    }
}

impl From<oneshot::error::RecvError> for Gone {
    fn from(_: oneshot::error::RecvError) -> Self {
        Self
    }
}

impl Feed {
    /// Works until engine or uplink is gone.
    pub(super) async fn run(mut self) {
        let Err(Gone) = self.work().await;
    }

    async fn work(&mut self) -> Result<std::convert::Infallible, Gone> {
        self.components.mark_changed();
        let mut is_configurable = true;
        let mut runs: JoinSet<Probed> = JoinSet::new();
        let mut dropped = 0;
        loop {
            // Cancel-safe: a watch, two queues and a set of tasks.
            tokio::select! {
                changed = self.components.changed(), if is_configurable => match changed {
                    Ok(()) => {
                        let wanted = wanted(&self.components.borrow_and_update());
                        self.commands.send(Command::Replace(wanted)).await?;
                    }
                    // Whoever made the configuration is gone; the last one stays.
                    Err(_) => is_configurable = false,
                },
                event = self.events.recv() => {
                    let input = self.translate(event.ok_or(Gone)?);
                    self.inputs.send(input).await?;
                }
                request = self.requests.recv() => match request.ok_or(Gone)? {
                    Request::Summaries => {
                        let now_dropped = self.counters.read().dropped_events;
                        if now_dropped != dropped {
                            dropped = now_dropped;
                            self.catch_up().await?;
                        }
                        let (reply, summaries) = oneshot::channel();
                        self.commands.send(Command::Summaries { reply }).await?;
                        let summaries = summaries.await?.iter().map(summary).collect();
                        self.inputs.send(Input::Summaries(summaries)).await?;
                    }
                    Request::Run(run) if runs.len() < MAX_PENDING_RUNS => {
                        let (reply, ran) = oneshot::channel();
                        self.commands.send(Command::RunNow { probe: run.probe, reply }).await?;
                        runs.spawn(async move { probed(run, ran.await.ok()) });
                    }
                    Request::Run(run) => {
                        let busy = probed(run, Some(RunNowReply::Busy));
                        self.inputs.send(Input::Probed(busy)).await?;
                    }
                },
                Some(ran) = runs.join_next() => if let Ok(ran) = ran {
                    self.inputs.send(Input::Probed(ran)).await?;
                },
            }
        }
    }

    fn translate(&self, event: Event) -> Input {
        match event {
            Event::Announced(announced) => {
                let instances = instances(&announced, &self.components.borrow(), &self.instance);
                self.watched.send_replace(Arc::new(announced));
                self.ready.ready();
                Input::Announce(instances)
            }
            Event::Transition { from: _, report } | Event::Note(report) => observed(report),
        }
    }

    /// Tells the state of every probe, since events were dropped.
    async fn catch_up(&self) -> Result<(), Gone> {
        let (reply, reports) = oneshot::channel();
        self.commands.send(Command::Snapshot { reply }).await?;
        for report in reports.await? {
            if report.last.is_some() {
                self.inputs.send(observed(report)).await?;
            }
        }
        Ok(())
    }
}

fn wanted(components: &[Component]) -> Vec<ComponentProbes> {
    components
        .iter()
        .map(|component| ComponentProbes {
            component: component.key(),
            probes: component.probes.clone(),
        })
        .collect()
}

/// What the aggregator is told about what is watched. Labels and dependencies come from the latest configuration, which
/// may be one announcement ahead; the next one follows.
fn instances(
    announced: &[AnnouncedComponent],
    components: &[Component],
    instance: &InstanceName,
) -> Vec<AnnouncedInstance> {
    let configured: HashMap<ComponentKey, &Component> = components
        .iter()
        .map(|component| (component.key(), component))
        .collect();
    announced
        .iter()
        .map(|AnnouncedComponent { component, probes }| {
            let configured = configured.get(component);
            AnnouncedInstance {
                namespace: component.namespace.clone(),
                component: component.name.clone(),
                instance: instance.clone(),
                labels: configured
                    .map(|component| component.labels.clone())
                    .unwrap_or_default(),
                depends_on: configured
                    .map(|component| component.depends_on.clone())
                    .unwrap_or_default(),
                probes: probes
                    .iter()
                    .map(|probe| AnnouncedProbe {
                        id: probe.id,
                        name: probe.spec.name.clone(),
                        kind: probe.spec.kind,
                        target: probe.spec.handler.to_string(),
                        period_ms: millis(probe.spec.period),
                        timeout_ms: millis(probe.spec.timeout),
                        success_threshold: probe.spec.success_threshold.get(),
                        failure_threshold: probe.spec.failure_threshold.get(),
                    })
                    .collect(),
            }
        })
        .collect()
}

fn observed(report: ProbeReport) -> Input {
    let ProbeReport {
        probe,
        since,
        state,
        streak,
        attempt,
        flapping,
        last,
    } = report;
    let (error, reason, latency, mut message, output) = match last {
        None => (
            false,
            Reason::STARTING,
            Duration::ZERO,
            String::new(),
            String::new(),
        ),
        Some(outcome) => (
            matches!(outcome.result, RunResult::Error(_) | RunResult::Unavailable(_)),
            outcome.result.reason().cloned().unwrap_or(Reason::PASSING),
            outcome.latency,
            outcome.message,
            // What a run printed explains a failure; on success it would only be traffic.
            if outcome.result.is_success() {
                String::new()
            } else {
                outcome.output
            },
        ),
    };
    if let Some(attempt) = attempt
        && streak > 0
        && state != ProbeState::Passing
        && message.is_empty()
    {
        message = format!("passed {} of {} times in a row", attempt.number, attempt.of);
    }
    Input::Observed {
        probe,
        observation: Observation {
            state,
            flapping,
            error,
            streak,
            latency,
            reason,
            message,
            output,
        },
        at: since,
    }
}

fn summary(summary: &ProbeSummary) -> Summary {
    let ProbeSummary {
        probe,
        streak,
        figures,
    } = summary;
    Summary {
        probe: *probe,
        streak: *streak,
        runs: figures.runs,
        failures: figures.failures,
        errors: figures.errors,
        min_us: micros(figures.min),
        avg_us: micros(figures.avg),
        max_us: micros(figures.max),
        p99_us: micros(figures.p99),
    }
}

/// The answer to a run that was asked for; `None` when the probe went away meanwhile.
fn probed(run: RunProbe, reply: Option<RunNowReply>) -> Probed {
    let not_made = |message: &str| Probed {
        request: run.request,
        result: None,
        reason: None,
        message: message.to_owned(),
        output: String::new(),
        latency_us: 0,
        state: None,
    };
    match reply {
        Some(RunNowReply::Ran { outcome, state }) => Probed {
            request: run.request,
            result: Some(outcome.result.as_str().to_owned()),
            reason: outcome.result.reason().cloned(),
            message: outcome.message,
            output: outcome.output,
            latency_us: micros(outcome.latency),
            state: Some(state),
        },
        Some(RunNowReply::NotFound) | None => not_made("the probe is not watched any more"),
        Some(RunNowReply::Busy) => not_made("too many others wait for a run already"),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        healthscope_shared::{probe::outcome::Outcome, threshold::Attempt, wire::ProbeId},
        std::time::Instant,
    };

    fn report(state: ProbeState, streak: i32, attempt: Option<Attempt>, result: RunResult) -> ProbeReport {
        ProbeReport {
            probe: ProbeId(3),
            since: Instant::now(),
            state,
            streak,
            attempt,
            flapping: false,
            last: Some(Outcome {
                result,
                latency: Duration::from_millis(2),
                message: String::new(),
                output: "printed".to_owned(),
            }),
        }
    }

    fn observation(report: ProbeReport) -> Observation {
        match observed(report) {
            Input::Observed { observation, .. } => observation,
            Input::Announce(_) | Input::Summaries(_) | Input::Probed(_) => unreachable!(),
        }
    }

    #[test]
    fn output_goes_with_failures_alone() {
        let passing = observation(report(ProbeState::Passing, 1, None, RunResult::Success));
        assert_eq!((passing.output.as_str(), passing.reason), ("", Reason::PASSING));
        let failed = RunResult::Failure(Reason::EXIT_CODE);
        let failing = observation(report(ProbeState::Failing, -1, None, failed));
        assert_eq!(
            (failing.output.as_str(), failing.reason, failing.error),
            ("printed", Reason::EXIT_CODE, false)
        );
        let error = RunResult::Error(Reason::CANNOT_EXECUTE);
        assert!(observation(report(ProbeState::Failing, -1, None, error)).error);
    }

    #[test]
    fn a_failing_probe_that_recovers_says_how_far_it_is() {
        let attempt = Some(Attempt { number: 1, of: 3 });
        let recovering = observation(report(ProbeState::Failing, 1, attempt, RunResult::Success));
        assert_eq!(recovering.message, "passed 1 of 3 times in a row");
        let failing_once = RunResult::Failure(Reason::EXIT_CODE);
        let wavering = observation(report(ProbeState::Passing, -1, attempt, failing_once));
        assert_eq!(wavering.message, "");
    }

    #[test]
    fn an_answer_says_what_became_of_the_run() {
        let run = RunProbe {
            request: 7,
            probe: ProbeId(3),
        };
        let ran = RunNowReply::Ran {
            outcome: Outcome {
                result: RunResult::Warning(Reason::REDIRECT_ELSEWHERE),
                latency: Duration::from_millis(2),
                message: "elsewhere".to_owned(),
                output: String::new(),
            },
            state: ProbeState::Passing,
        };
        let answer = probed(run, Some(ran));
        assert_eq!(
            (
                answer.request,
                answer.result.as_deref(),
                answer.latency_us,
                answer.state
            ),
            (7, Some("warning"), 2_000, Some(ProbeState::Passing))
        );
        for reply in [None, Some(RunNowReply::NotFound), Some(RunNowReply::Busy)] {
            let answer = probed(run, reply);
            assert!(answer.result.is_none() && !answer.message.is_empty());
        }
    }
}
