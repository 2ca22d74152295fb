//! Events of controllers whose pods were refused. A ReplicaSet says it in its status, and is not looked for here; the
//! others say it nowhere else.
//!
//! An Event counts while it is fresh: what was refused before this process watched is refused again if it still is.

use {
    crate::clock,
    futures_util::StreamExt,
    healthscope_core::store::FailedCreate,
    healthscope_shared::one_line,
    jiff::Timestamp,
    k8s_openapi::api::core::v1::Event as KubernetesEvent,
    kube::{
        Api, Client,
        runtime::{
            WatchStreamExt,
            watcher::{self, Event, watcher},
        },
    },
    std::{
        collections::BTreeMap,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::{Duration, Instant},
    },
};

/// The API server ends each watch after so many seconds; below the client's own patience with silence.
const WATCH_SECONDS: u32 = 30;
/// How long an Event counts: longer than the breaker's patience, shorter than a controller waits after some tries.
const FRESH: Duration = Duration::from_secs(30);
/// Controllers that are kept at once; further ones are left out until there is room.
const MAX_REFUSALS: usize = 1_000;
/// Longest message kept: that of Pod Security names each container and field.
const MAX_MESSAGE_BYTES: usize = 1_024;
/// Longest name kept.
const MAX_NAME_BYTES: usize = 253;
/// Whose Events count.
const KINDS: [&str; 3] = ["StatefulSet", "DaemonSet", "Job"];

/// What is fresh; clones share it.
#[derive(Clone, Default)]
pub(super) struct Refusals(Arc<Mutex<BTreeMap<String, (Instant, FailedCreate)>>>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, FailedCreate)>> {
        // No code that could panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is fresh now.
    pub(super) fn now(&self) -> Vec<FailedCreate> {
        let now = clock::instant();
        let mut known = self.lock();
        known.retain(|_, (seen, _)| now.saturating_duration_since(*seen) < FRESH);
        known.values().map(|(_, refusal)| refusal.clone()).collect()
    }

    fn take(&self, event: KubernetesEvent) {
        let Some(refusal) = refusal(event) else { return };
        let mut known = self.lock();
        if known.len() < MAX_REFUSALS || known.contains_key(&refusal.uid) {
            known.insert(refusal.uid.clone(), (clock::instant(), refusal));
        }
    }
}

fn refusal(event: KubernetesEvent) -> Option<FailedCreate> {
    let about = event.involved_object;
    let word = |word: Option<String>| word.filter(|word| !word.is_empty() && word.len() <= MAX_NAME_BYTES);
    let kind = word(about.kind)?;
    KINDS.contains(&kind.as_str()).then_some(())?;
    let at = event
        .series
        .and_then(|series| series.last_observed_time)
        .map(|time| time.0)
        .or_else(|| event.last_timestamp.map(|time| time.0))
        .or_else(|| event.event_time.map(|time| time.0));
    Some(FailedCreate {
        namespace: word(about.namespace)?,
        kind,
        name: word(about.name)?,
        uid: word(about.uid)?,
        at: at.unwrap_or_else(Timestamp::now),
        message: one_line(&event.message?, MAX_MESSAGE_BYTES),
    })
}

/// Follows them for ever.
pub(super) async fn follow(client: Client, refusals: Refusals) {
    let api: Api<KubernetesEvent> = Api::all(client);
    let config = watcher::Config::default()
        .timeout(WATCH_SECONDS)
        .fields("reason=FailedCreate");
    let mut events = Box::pin(watcher(api, config).default_backoff());
    let mut is_told = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(event)) => refusals.take(event),
            Ok(Event::Init | Event::InitApply(_) | Event::Delete(_)) => {}
            Ok(Event::InitDone) => is_told = false,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                if is_told {
                    tracing::debug!(error, "Events cannot be watched");
                } else {
                    is_told = true;
                    tracing::warn!(
                        error,
                        "Events cannot be watched, so refused pods of StatefulSets, DaemonSets and Jobs are not noticed; may \
                         this ServiceAccount list and watch events?"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controllers_that_say_it_nowhere_else_are_heard() {
        #[track_caller]
        fn check(kind: &str, uid: &str, expected: bool) {
            let event = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "e", "namespace": "shop"},
                "involvedObject": {"kind": kind, "namespace": "shop", "name": "db", "uid": uid},
                "reason": "FailedCreate", "message": "no", "lastTimestamp": "2026-01-01T00:00:00Z",
            }));
            let refusals = Refusals::default();
            refusals.take(event.unwrap());
            assert_eq!(!refusals.now().is_empty(), expected, "{kind} {uid}");
        }
        check("StatefulSet", "u", true);
        check("DaemonSet", "u", true);
        check("Job", "u", true);
        check("ReplicaSet", "u", false);
        check("StatefulSet", "", false);
    }
}
