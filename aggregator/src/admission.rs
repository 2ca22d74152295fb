//! The webhook: the API server asks about each pod that somebody wants an agent for, and gets a patch.
//!
//! Whether and how is decided by [`inject`](healthscope_core::inject). Here is what must hold around it: there is always an
//! answer, it is always yes, it comes within [`DEADLINE`], and nothing that anybody sends holds more than its share. A pod
//! that could not be looked at is admitted as it is, and counted.
//!
//! Anybody in the cluster may connect: the API server shows no certificate unless told to. What is answered is no secret,
//! and what is told to others because of it (Events) is bounded.

mod events;
mod surroundings;

pub(crate) use {
    events::{EventEnds, QUEUE as SKIPS},
    surroundings::{Namespaces, SurroundingsEnds},
};

use {
    crate::{
        breaker::Obeyed,
        certificates::State,
        listen::{Answer, From},
        metrics::admission::AdmissionMetrics,
    },
    axum::{body::Body, response::Response},
    base64::{Engine, engine::general_purpose::STANDARD},
    futures_util::FutureExt,
    healthscope_core::{
        admission::{self, Asked, MAX_REVIEW_BYTES, Question, Review, Skip, Why},
        breaker,
        inject::{Injection, Options, SkipReason, Stance, Surroundings, inject},
    },
    http::{
        HeaderValue, Method, Request, StatusCode,
        header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE},
    },
    http_body_util::{BodyExt, Limited},
    hyper::body::Incoming,
    jiff::Timestamp,
    serde_json::Value,
    std::{panic::AssertUnwindSafe, sync::Arc, time::Duration},
    tokio::{
        sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
        time::{self, Instant},
    },
    tokio_util::sync::CancellationToken,
};

/// Where AdmissionReviews are posted to.
pub(crate) const PATH: &str = "/inject";
/// By when there is an answer: the API server waits 2 s (`timeoutSeconds`), the way there and back included.
const DEADLINE: Duration = Duration::from_millis(1_500);
/// Bodies that are held at once, in KiB: twenty of the largest, or thousands of usual ones.
const BODIES_KIB: u32 = 64 * 1024;
/// Pods that are looked at at once. It takes a core a millisecond each; a huge one takes thirty times its text as memory.
const DECIDING: usize = 4;
/// How long a pod waits for the news that somebody wants it to have an agent: the API server, which sends only such pods,
/// may have heard of a namespace or its label a moment before us.
const NEWS: Duration = Duration::from_millis(300);
/// How long an idle connection is kept: longer than the API server does (90 s), so that it is never closed just as a
/// question is under way.
pub(crate) const IDLE: Duration = Duration::from_secs(120);
/// Connections at once. Each API server opens one for each question that is under way.
pub(crate) const CONNECTIONS: usize = 512;
/// How long questions are still answered after shutdown was given and `/readyz` fails. A question goes to any pod that is
/// in the Service's endpoints as its node sees them: the pod is taken out at once, and kube-proxy follows within a second
/// or two, on a large cluster several.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// What the webhook needs.
pub(crate) struct Admission {
    /// What is injected, without the authorities.
    pub(crate) options: Options,
    pub(crate) certificates: watch::Receiver<State>,
    /// Whether the authorities to trust must be known before anything is injected.
    pub(crate) needs_bundle: bool,
    pub(crate) namespaces: Namespaces,
    /// Where less is injected than asked for.
    pub(crate) breaker: Obeyed,
    /// Pods that got no agent; when it is full, they are counted and nobody is told.
    pub(crate) skips: mpsc::Sender<Skip>,
    pub(crate) metrics: AdmissionMetrics,
    /// Given once the process is to end.
    pub(crate) draining: CancellationToken,
    pub(crate) room: Room,
}

/// What may be held and done at once.
pub(crate) struct Room {
    bodies: Arc<Semaphore>,
    deciding: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bodies: Arc::new(Semaphore::new(BODIES_KIB as usize)),
            deciding: Arc::new(Semaphore::new(DECIDING)),
        }
    }
}

impl Answer for Admission {
    async fn answer(self: Arc<Self>, _from: From, request: Request<Incoming>) -> Response {
        let answering = Box::pin(self.clone().route(request));
        // A bug must not end the connection without a word.
        let mut response = match AssertUnwindSafe(answering).catch_unwind().await {
            Ok(response) => response,
            Err(_panic) => {
                tracing::error!("an AdmissionReview made the program panic");
                self.metrics.passed(Why::Bug);
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "a bug in the aggregator; its log says more\n",
                )
            }
        };
        if self.draining.is_cancelled() {
            // The next question goes to a replica that stays.
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Admission {
    async fn route(self: Arc<Self>, request: Request<Incoming>) -> Response {
        match (request.method(), request.uri().path()) {
            (&Method::POST, PATH) => self.review(request).await,
            (&Method::GET | &Method::HEAD, "/readyz") => self.ready(),
            (_, PATH) => not_allowed("POST"),
            (_, "/readyz") => not_allowed("GET, HEAD"),
            _ => text(StatusCode::NOT_FOUND, "POST /inject, or GET /readyz\n"),
        }
    }

    fn ready(&self) -> Response {
        let missing: Vec<&str> = [
            (self.draining.is_cancelled(), "it is shutting down"),
            (
                !self.certificates.borrow().is_good(Timestamp::now()),
                "there is no certificate to show",
            ),
            (
                !self.namespaces.are_synced(),
                "namespaces, LimitRanges and ResourceQuotas were not all listed yet",
            ),
            (
                self.breaker.borrow().is_none(),
                "the breaker's record was not looked at yet",
            ),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect();
        if missing.is_empty() {
            text(StatusCode::OK, "ok\n")
        } else {
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}\n", missing.join("; ")),
            )
        }
    }

    async fn review(self: Arc<Self>, request: Request<Incoming>) -> Response {
        let begun = Instant::now();
        let deadline = begun + DEADLINE;
        let metrics = self.metrics.clone();
        let response = match time::timeout_at(deadline, self.read(request)).await {
            Ok(Ok((_held, Review::Pod(question, asked)))) => {
                let answer = time::timeout_at(deadline, self.clone().decide(question.clone(), *asked)).await;
                let answer = answer.unwrap_or(Err(Why::Late)).unwrap_or_else(|why| {
                    metrics.passed(why);
                    admission::pass(&question)
                });
                json(&answer)
            }
            Ok(Ok((_held, Review::Other(question, why)))) => {
                metrics.passed(why);
                json(&admission::pass(&question))
            }
            Ok(Ok((_held, Review::Nothing))) => {
                metrics.passed(Why::Unreadable);
                text(
                    StatusCode::BAD_REQUEST,
                    "this is not an AdmissionReview of admission.k8s.io/v1\n",
                )
            }
            Ok(Err(Why::TooLarge)) => {
                metrics.passed(Why::TooLarge);
                text(StatusCode::PAYLOAD_TOO_LARGE, "longer than any AdmissionReview\n")
            }
            Ok(Err(why)) => {
                metrics.passed(why);
                text(StatusCode::BAD_REQUEST, "the body ended before its end\n")
            }
            Err(_) => {
                metrics.passed(Why::Late);
                text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")
            }
        };
        metrics.seconds.observe(begun.elapsed().as_secs_f64());
        response
    }

    /// Reads the question, once there is room for it; with the room that it takes.
    async fn read(&self, request: Request<Incoming>) -> Result<(OwnedSemaphorePermit, Review), Why> {
        let length = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
            .unwrap_or(MAX_REVIEW_BYTES);
        if length > MAX_REVIEW_BYTES {
            return Err(Why::TooLarge);
        }
        let kib = u32::try_from(length / 1024 + 1).unwrap_or(BODIES_KIB);
        let held = self.room.bodies.clone().acquire_many_owned(kib).await;
        let held = held.map_err(|_never_closed| Why::Busy)?;
        let body = Limited::new(request.into_body(), length)
            .collect()
            .await
            .map_err(|_| Why::Unreadable)?;
        Ok((held, admission::read(&body.to_bytes())))
    }

    /// The answer about a pod.
    async fn decide(self: Arc<Self>, question: Question, asked: Asked) -> Result<Value, Why> {
        let room = self.room.deciding.clone().acquire_owned().await;
        let room = room.map_err(|_never_closed| Why::Busy)?;
        let options = self.options(&asked)?;
        let asked = Arc::new(asked);
        let news = Instant::now() + NEWS;
        loop {
            let mut changes = self.namespaces.changes();
            let around = self.namespaces.get(&asked.namespace)?;
            let (pod, options) = (asked.clone(), options.clone());
            // A core's work, and one that may go wrong: neither holds up the others.
            let deciding = tokio::task::spawn_blocking(move || {
                let around = around.unwrap_or_default();
                let surroundings = Surroundings {
                    labels: &around.labels,
                    annotations: &around.annotations,
                    limit_ranges: &around.limit_ranges,
                    quotas: &around.quotas,
                };
                inject(&pod.pod, &surroundings, &options)
            });
            let injection = deciding.await.map_err(|_panic| {
                tracing::error!(
                    namespace = asked.namespace,
                    "looking at a pod made the program panic"
                );
                Why::Bug
            })?;
            if injection == Injection::Skipped(SkipReason::NotEnabled)
                && time::timeout_at(news, changes.recv()).await.is_ok()
            {
                continue;
            }
            drop(room);
            return Ok(self.answer_about(&question, &asked, injection));
        }
    }

    fn options(&self, asked: &Asked) -> Result<Arc<Options>, Why> {
        let record = self.breaker.borrow().clone().ok_or(Why::NotSynced)?;
        let stance = if record.trips.is_empty() {
            Stance::Full
        } else {
            record.stance(&asked.namespace, &breaker::owners(&asked.pod))
        };
        let bundle = self.certificates.borrow().bundle.clone();
        if self.needs_bundle && bundle.is_none() {
            return Err(Why::NotSynced);
        }
        Ok(Arc::new(Options {
            ca_pem: bundle.map(|bundle| bundle.to_string()),
            kubernetes: self.namespaces.version(),
            stance,
            ..self.options.clone()
        }))
    }

    fn answer_about(&self, question: &Question, asked: &Asked, injection: Injection) -> Value {
        match injection {
            Injection::Injected(injected) => {
                self.metrics.injected();
                admission::patched(question, &asked.pod, &injected, |patch| STANDARD.encode(patch))
            }
            Injection::Skipped(reason) => {
                self.metrics.skipped(&reason);
                if !asked.is_dry_run && !admission::is_as_meant(&reason) {
                    self.tell(asked, &reason);
                }
                admission::skipped(question, &asked.pod, &reason)
            }
        }
    }

    fn tell(&self, asked: &Asked, reason: &SkipReason) {
        let Some(owner) = admission::owner(&asked.pod) else {
            return;
        };
        let skip = Skip {
            namespace: asked.namespace.clone(),
            owner,
            code: reason.code(),
            message: reason.to_string(),
        };
        if self.skips.try_send(skip).is_err() {
            self.metrics
                .event(crate::metrics::admission::SkipEventResult::Dropped);
        }
    }
}

/// Lets questions come for [`DRAIN`] after shutdown was given, then ends the listener.
pub(crate) async fn drain(shutdown: CancellationToken, stop: CancellationToken) {
    shutdown.cancelled().await;
    time::sleep(DRAIN).await;
    stop.cancel();
}

/// Makes the Events about pods that got no agent, until `shutdown`.
pub(crate) async fn tell(ends: EventEnds, shutdown: CancellationToken) {
    events::run(ends, shutdown).await;
}

/// Follows what holds around pods, until `shutdown`.
pub(crate) async fn follow(ends: SurroundingsEnds, shutdown: CancellationToken) {
    surroundings::run(ends, shutdown).await;
}

fn json(answer: &Value) -> Response {
    let mut response = Response::new(Body::from(answer.to_string()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn not_allowed(methods: &'static str) -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(methods));
    response
}
