//! Running a probe now, through the agents that have it.

use {
    super::{Api, Params, Place, components::find, json},
    crate::{
        bus::{StoreSender, ToStore},
        identity::readers::Deed,
        site::{problem::Problem, viewer::Viewer},
        store_actor::{NoRun, Run},
    },
    axum::{Extension, extract::State, response::Response},
    healthscope_core::store::{NoTarget, ProbeTarget},
    healthscope_shared::{
        health::Reason,
        name::{AgentName, InstanceName, Kind, Name, Namespace, ProbeName},
        probe::outcome::ProbeState,
        wire::Probed,
    },
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    },
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    },
    tokio::{sync::oneshot, time},
};

/// Instances whose probe is run by one request.
const MAX_TARGETS: usize = 16;
/// How long an answer is waited for unless asked otherwise: most probes' timeout, and a little.
const DEFAULT_WAIT: u64 = 15;
/// Longest wait.
const MAX_WAIT: u64 = 120;

/// What came out.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Runs {
    /// One for each instance, by instance and agent.
    runs: Vec<RunOutcome>,
    /// Whether the component has more instances than were asked.
    truncated: bool,
}

/// What one run found.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunOutcome {
    /// The instance.
    instance: InstanceName,
    /// The agent that ran it.
    agent: AgentName,
    /// The probe.
    probe: std::sync::Arc<str>,
    /// `success`, `warning`, `failure` or `error`; absent when the run was not made.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    /// Why, for machines; absent on plain success.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    /// Why, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    /// What was printed; untrusted, may span lines.
    #[serde(skip_serializing_if = "String::is_empty")]
    output: String,
    /// How long the run took, microseconds.
    latency_us: u64,
    /// State of the probe after the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ProbeState>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    kind: Option<Kind>,
    instance: Option<InstanceName>,
    #[serde(rename = "timeoutSeconds")]
    timeout_seconds: Option<u64>,
}

static LATEST: AtomicU64 = AtomicU64::new(0);

pub(super) async fn run(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place((namespace, name, probe)): Place<(Namespace, Name, ProbeName)>,
    Params(wanted): Params<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Wanted {
        kind,
        instance,
        timeout_seconds,
    } = wanted;
    check_content_type(&headers)?;
    let wait = match timeout_seconds.unwrap_or(DEFAULT_WAIT) {
        seconds @ 1..=MAX_WAIT => Duration::from_secs(seconds),
        _ => {
            return Err(Problem::bad_request(format!(
                "timeoutSeconds must be from 1 to {MAX_WAIT}"
            )));
        }
    };
    let key = find(&api, &viewer, namespace, name, kind).await?;
    viewer.check_deed(Deed::RunProbe, Some(&key.namespace)).await?;
    let wanted = probe.clone();
    let targets = api
        .ask(move |store| store.probe_targets(&key, Some(&wanted)))
        .await?;
    let mut targets = targets.map_err(|why| match why {
        NoTarget::NoComponent | NoTarget::NoProbe => Problem::not_found(why.to_string()),
        NoTarget::NoAgent => Problem::unavailable(why.to_string(), "5"),
    })?;
    if let Some(instance) = instance {
        targets.retain(|target| target.instance == instance);
        if targets.is_empty() {
            return Err(Problem::not_found(format!(
                "no connected agent speaks for the instance {instance}"
            )));
        }
    }
    let truncated = targets.len() > MAX_TARGETS;
    targets.truncate(MAX_TARGETS);
    api.metrics.http.runs.inc_by(targets.len() as u64);

    let mut waiting = Vec::with_capacity(targets.len());
    for target in targets {
        waiting.push(Waiting::start(&api.store, target).await);
    }
    let deadline = time::Instant::now() + wait;
    let mut runs = Vec::with_capacity(waiting.len());
    for waiting in waiting {
        runs.push(waiting.finish(deadline, wait).await?);
    }
    Ok(json(&Runs { runs, truncated }))
}

/// A form of a stranger's page cannot have this type without asking us first.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let plain = content_type
        .split(|&byte| byte == b';')
        .next()
        .unwrap_or_default();
    if plain.trim_ascii().eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "send Content-Type: application/json (the body may be empty)",
    ))
}

/// A run that was asked for; forgotten when nobody waits any more.
struct Waiting {
    store: StoreSender,
    request: u64,
    target: ProbeTarget,
    answer: oneshot::Receiver<Result<Probed, NoRun>>,
}

impl Waiting {
    async fn start(store: &StoreSender, target: ProbeTarget) -> Self {
        let (reply, answer) = oneshot::channel();
        let request = LATEST.fetch_add(1, Ordering::Relaxed) + 1;
        let run = Run {
            request,
            session: target.session,
            probe: target.id,
            reply,
        };
        store.send(ToStore::Run(run)).await;
        Self {
            store: store.clone(),
            request,
            target,
            answer,
        }
    }

    async fn finish(mut self, deadline: time::Instant, wait: Duration) -> Result<RunOutcome, Problem> {
        let answer = match time::timeout_at(deadline, &mut self.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NoRun::Gone),
            Err(_) => {
                return Err(Problem::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    format!("the agent {} did not answer within {wait:?}", self.target.agent),
                ));
            }
        };
        let probed = answer.map_err(|why| match why {
            NoRun::Busy => Problem::new(StatusCode::TOO_MANY_REQUESTS, why.to_string())
                .header(RETRY_AFTER, HeaderValue::from_static("2")),
            NoRun::Gone | NoRun::Refused(_) => Problem::unavailable(why.to_string(), "2"),
        })?;
        let Probed {
            request: _,
            result,
            reason,
            message,
            output,
            latency_us,
            state,
        } = probed;
        Ok(RunOutcome {
            instance: self.target.instance.clone(),
            agent: self.target.agent.clone(),
            probe: self.target.probe.clone(),
            result,
            reason,
            message,
            output,
            latency_us,
            state,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Already answered runs are unknown by then, and a full queue keeps the run in the list until its session ends.
        let _full = self.store.try_send(ToStore::ForgetRun {
            request: self.request,
        });
    }
}
