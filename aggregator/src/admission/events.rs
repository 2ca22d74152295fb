//! Makes Kubernetes Events of pods that got no agent, on the controller that makes them.
//!
//! What is told, and how often, is decided by [`Skips`]. One at a time and one try each: an Event is a courtesy, and the
//! pod was admitted long before.

use {
    crate::{
        clock,
        kubernetes::request::{self, METADATA, Reply},
        metrics::admission::{AdmissionMetrics, SkipEventResult},
    },
    healthscope_core::admission::{Owner, Skip, SkipEvent, Skips},
    healthscope_shared::{name::Namespace, truncate},
    http::Method,
    k8s_openapi::{
        api::{core::v1::ObjectReference, events::v1::Event},
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    },
    kube::Client,
    tokio::sync::mpsc,
    tokio_util::sync::CancellationToken,
};

/// Skips that wait to be told of; a rollout makes many of the same.
pub(crate) const QUEUE: usize = 256;
/// Who reports.
const CONTROLLER: &str = "healthscope.core.oam.dev/injector";
/// What was done when it was found; Kubernetes wants a word.
const ACTION: &str = "Inject";
/// What they are found by.
const REASON: &str = "InjectionSkipped";
/// Longest name of an instance that Kubernetes takes.
const MAX_INSTANCE_BYTES: usize = 128;

/// What the task needs.
pub(crate) struct EventEnds {
    pub(crate) client: Client,
    pub(crate) instance: String,
    pub(crate) skips: mpsc::Receiver<Skip>,
    pub(crate) metrics: AdmissionMetrics,
}

/// Makes them until `shutdown`, or until nobody asks any more.
pub(super) async fn run(ends: EventEnds, shutdown: CancellationToken) {
    let EventEnds {
        client,
        instance,
        mut skips,
        metrics,
    } = ends;
    let instance = truncate(&instance, MAX_INSTANCE_BYTES).into_owned();
    let mut told = Skips::default();
    loop {
        // Cancel-safe, both.
        let skip = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            skip = skips.recv() => match skip {
                Some(skip) => skip,
                None => return,
            },
        };
        let now = clock::now();
        let Some(event) = told.handle(now.instant, now.wall, skip) else {
            continue;
        };
        let result = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            result = make(&client, &event, &instance) => result,
        };
        metrics.event(result);
    }
}

async fn make(client: &Client, event: &SkipEvent, instance: &str) -> SkipEventResult {
    let Ok(namespace) = event.skip.namespace.parse::<Namespace>() else {
        // Nobody but the API server has to be believed.
        return SkipEventResult::Failed;
    };
    let uri =
        format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldManager=healthscope-injector");
    let body = serde_json::to_vec(&object(event, instance)).expect("an Event is text and a time in range");
    match request::send(client, Method::POST, &uri, METADATA, body).await {
        Reply::Done { .. } => SkipEventResult::Created,
        Reply::Exists => SkipEventResult::Exists,
        Reply::Busy { .. } | Reply::NotFound | Reply::Conflict => SkipEventResult::Failed,
        Reply::Unreachable(error) | Reply::Failed(error) | Reply::Refused(error) => {
            tracing::debug!(error, "an Event about a pod without an agent could not be made");
            SkipEventResult::Failed
        }
    }
}

fn object(event: &SkipEvent, instance: &str) -> Event {
    let SkipEvent { name, at, note, skip } = event;
    let Owner {
        api_version,
        kind,
        name: owner,
        uid,
    } = &skip.owner;
    Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(skip.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(*at)),
        type_: Some("Warning".to_owned()),
        reason: Some(REASON.to_owned()),
        action: Some(ACTION.to_owned()),
        note: Some(note.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.clone()),
            kind: Some(kind.clone()),
            namespace: Some(skip.namespace.clone()),
            name: Some(owner.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}
