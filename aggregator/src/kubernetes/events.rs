//! Makes Kubernetes Events (`events.k8s.io/v1`) of statuses that were written.
//!
//! What is worth telling, and how often, is decided by [`Occurrences`]. Events are made behind the statuses, a few at a
//! time, and never instead of them. An Event's name comes from what it tells: making it twice makes one.

use {
    super::{
        request::{self, FIELD_MANAGER, METADATA, Reply},
        role::Role,
        writer::{FLUSH, Sparing, changed, random, sleep_until},
    },
    crate::{
        clock,
        metrics::writer::{EventResult, WriterMetrics},
    },
    futures_util::{StreamExt, stream::FuturesUnordered},
    healthscope_core::{
        occurrence::{Occurrence, Occurrences},
        pace::Written,
    },
    healthscope_crd::v1beta1::{API_VERSION, KIND},
    healthscope_shared::{backoff::Backoff, name::ScopeKey, truncate},
    http::Method,
    k8s_openapi::{
        api::{core::v1::ObjectReference, events::v1::Event},
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    },
    kube::Client,
    std::{collections::VecDeque, time::Duration},
    tokio::{
        sync::{mpsc, watch},
        time,
    },
    tokio_util::sync::CancellationToken,
};

/// Written statuses that wait to be told of; each is two pointers to what is there anyway. When it is full, further ones
/// are counted and not told. Ten thousand scopes may fail together.
pub(crate) const QUEUE: usize = 10_000;
/// Events under way at most; the statuses have the larger share of the API server.
const IN_FLIGHT: usize = 4;
/// How often one Event is tried before it is given up; Events are a courtesy.
const TRIES: u32 = 4;
/// Between the tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Longest Retry-After that is obeyed before the next try.
const MAX_BUSY: Duration = Duration::from_secs(60);
/// Who reports, in every Event.
const CONTROLLER: &str = "healthscope.core.oam.dev/aggregator";
/// What was done when it was found; Kubernetes wants a word.
const ACTION: &str = "Assess";
/// Longest name of an instance that Kubernetes takes.
const MAX_INSTANCE_BYTES: usize = 128;

/// What the task needs.
pub(crate) struct Ends {
    pub(crate) client: Client,
    pub(crate) written: mpsc::Receiver<Written>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) instance: String,
    pub(crate) metrics: WriterMetrics,
}

/// Tells until nobody writes any more, and for at most [`FLUSH`] after shutdown was given.
pub(crate) async fn run(ends: Ends, shutdown: CancellationToken) {
    let limit = async {
        shutdown.cancelled().await;
        time::sleep(FLUSH).await;
    };
    tokio::select! {
        biased;
        () = tell(ends) => {}
        () = limit => tracing::debug!("Events were still to be made at the end"),
    }
}

async fn tell(ends: Ends) {
    let Ends {
        client,
        mut written,
        role,
        instance,
        metrics,
    } = ends;
    let instance = truncate(&instance, MAX_INSTANCE_BYTES).into_owned();
    let mut role = Some(role);
    let mut is_open = true;
    let mut occurrences = Occurrences::default();
    let mut queue = VecDeque::new();
    let mut making = FuturesUnordered::new();
    let mut failed = Sparing::default();
    loop {
        while making.len() < IN_FLIGHT
            && let Some(occurrence) = queue.pop_front()
        {
            making.push(make(&client, occurrence, &instance));
        }
        if !is_open && making.is_empty() {
            return;
        }
        // All are cancel-safe.
        tokio::select! {
            biased;
            may_change = changed(&mut role) => {
                let is_owner = role.as_mut().is_some_and(|role| *role.borrow_and_update() == Role::Owner);
                if !is_owner {
                    occurrences.clear();
                }
                if !may_change {
                    role = None;
                }
            }
            Some(made) = making.next() => {
                let result = made.unwrap_or_else(|(scope, error): (ScopeKey, String)| {
                    if failed.may() {
                        tracing::warn!(
                            %scope,
                            error,
                            "an Event could not be made; may this ServiceAccount create events.events.k8s.io?"
                        );
                    }
                    EventResult::Failed
                });
                metrics.event(result, 1);
            }
            taken = written.recv(), if is_open && queue.is_empty() => {
                match taken {
                    Some(written) => queue.extend(occurrences.handle(clock::instant(), &written)),
                    None => is_open = false,
                }
                metrics.event(EventResult::Swallowed, occurrences.take_swallowed());
            }
            () = sleep_until(occurrences.deadline()), if is_open => {
                queue.extend(occurrences.tick(clock::instant()));
            }
        }
    }
}

/// Makes one Event, trying a few times; or says for which scope it could not be made, and why.
async fn make(
    client: &Client,
    occurrence: Occurrence,
    instance: &str,
) -> Result<EventResult, (ScopeKey, String)> {
    let namespace = &occurrence.key.namespace;
    let uri = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldManager={FIELD_MANAGER}");
    let body =
        serde_json::to_vec(&event(&occurrence, instance)).expect("an Event is text and a time in range");
    let (base, cap) = RETRY;
    let mut backoff = Backoff::new(base, cap);
    let mut tries = 0;
    loop {
        tries += 1;
        let (again, error) = match request::send(client, Method::POST, &uri, METADATA, body.clone()).await {
            Reply::Done { .. } => return Ok(EventResult::Created),
            Reply::Exists => return Ok(EventResult::Exists),
            Reply::Busy { retry_after } => (
                Some(retry_after.unwrap_or_default().min(MAX_BUSY)),
                "too many requests".to_owned(),
            ),
            Reply::Unreachable(error) | Reply::Failed(error) => (Some(Duration::ZERO), error),
            // A namespace that is being deleted takes no Events: that is the end of their story anyway.
            Reply::Refused(error) => (None, error),
            Reply::NotFound | Reply::Conflict => (None, "the namespace is gone".to_owned()),
        };
        match again {
            Some(wait) if tries < TRIES => time::sleep(wait + backoff.next(random())).await,
            Some(_) | None => return Err((occurrence.key, error)),
        }
    }
}

fn event(occurrence: &Occurrence, instance: &str) -> Event {
    let Occurrence {
        key,
        uid,
        severity,
        reason,
        note,
        at,
        ..
    } = occurrence;
    Event {
        metadata: ObjectMeta {
            name: Some(occurrence.name()),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(*at)),
        type_: Some(severity.as_str().to_owned()),
        reason: Some(reason.to_string()),
        action: Some(ACTION.to_owned()),
        note: Some(note.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(KIND.to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}
