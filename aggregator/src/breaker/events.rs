//! Makes Kubernetes Events of trips that open and close: on the owner whose pods they are about, or the namespaces.
//!
//! One try each: an Event is a courtesy, and the record says the same.

use {
    super::{BreakerEnds, MAX_PROBLEM_BYTES},
    crate::kubernetes::request::{self, METADATA, Reply},
    healthscope_core::breaker::{Level, Told},
    healthscope_shared::{one_line, truncate},
    http::Method,
    jiff::Timestamp,
    k8s_openapi::{
        api::{core::v1::ObjectReference, events::v1::Event},
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    },
    std::hash::{DefaultHasher, Hash, Hasher},
};

/// Who reports.
const CONTROLLER: &str = "healthscope.core.oam.dev/breaker";
/// Longest sentence; the API server takes 1 KiB.
const MAX_NOTE_BYTES: usize = 900;
/// Longest name of an instance that Kubernetes takes.
const MAX_INSTANCE_BYTES: usize = 128;
/// Events of one look: a cluster that suffers has many owners, and each has its own.
const MAX_EVENTS: usize = 50;

/// Makes them, one after the other.
pub(super) async fn make(ends: &BreakerEnds, told: &[Told]) {
    let regarded = told.iter().flat_map(|told| {
        regarding(told, ends.home.as_str())
            .into_iter()
            .map(move |it| (told, it))
    });
    for (told, regarding) in regarded.take(MAX_EVENTS) {
        let event = event(told, regarding, &ends.instance, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let uri =
            format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldManager=healthscope-breaker");
        let body = serde_json::to_vec(&event).expect("an Event is text and a time in range");
        match request::send(&ends.client, Method::POST, &uri, METADATA, body).await {
            Reply::Done { .. } | Reply::Exists => {}
            Reply::Busy { .. } | Reply::NotFound | Reply::Conflict => {
                tracing::debug!(namespace, "an Event about injection could not be made");
            }
            Reply::Unreachable(error) | Reply::Failed(error) | Reply::Refused(error) => {
                let error = one_line(&error, MAX_PROBLEM_BYTES);
                tracing::debug!(namespace, error, "an Event about injection could not be made");
            }
        }
    }
}

/// What an Event is about. Those about a namespace stand in it, where people look.
fn regarding(told: &Told, home: &str) -> Vec<ObjectReference> {
    let reference = |namespace: &str, kind: &str, name: &str, api_version: &str| ObjectReference {
        api_version: Some(api_version.to_owned()).filter(|version| !version.is_empty()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectReference::default()
    };
    let of_namespace = |namespace: &String| reference(namespace, "Namespace", namespace, "v1");
    let trip = &told.trip;
    match (trip.level, &trip.namespace, &trip.owner) {
        (Level::Owner, Some(namespace), Some(owner)) => {
            let known = told.owner.as_ref();
            let api_version = known.map_or("", |known| &known.api_version);
            vec![ObjectReference {
                uid: known.map(|known| known.uid.clone()),
                ..reference(namespace, &owner.kind, &owner.name, api_version)
            }]
        }
        (Level::Owner | Level::Namespace, Some(namespace), _) => vec![of_namespace(namespace)],
        (Level::Owner | Level::Namespace | Level::Cluster, ..) => {
            let aggregator = reference(home, "Deployment", "healthscope-aggregator", "apps/v1");
            let namespaces = trip.baseline.namespaces.iter().map(of_namespace);
            [aggregator].into_iter().chain(namespaces).collect()
        }
    }
}

fn event(told: &Told, regarding: ObjectReference, instance: &str, at: Timestamp) -> Event {
    let (severity, reason, action) = if told.is_resumed {
        ("Normal", "InjectionResumed", "Resume")
    } else {
        ("Warning", "InjectionReduced", "Reduce")
    };
    // From what it tells, so that telling it twice makes one.
    let mut hasher = DefaultHasher::new();
    (reason, &regarding.kind, &regarding.name, told.trip.since).hash(&mut hasher);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("healthscope-breaker.{:016x}", hasher.finish())),
            namespace: regarding.namespace.clone(),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(at)),
        type_: Some(severity.to_owned()),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(one_line(&told.note, MAX_NOTE_BYTES)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(truncate(instance, MAX_INSTANCE_BYTES).into_owned()),
        regarding: Some(regarding),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        healthscope_core::breaker::{Baseline, Cause, OwnerNow, OwnerRef, Reduction, Trip},
    };

    fn told(level: Level, is_resumed: bool) -> Told {
        let has_namespace = level != Level::Cluster;
        let owner = OwnerRef {
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
        };
        Told {
            trip: Trip {
                level,
                namespace: has_namespace.then(|| "shop".to_owned()),
                owner: (level == Level::Owner).then_some(owner),
                reduction: Reduction::Off,
                cause: Cause::ImagePull,
                message: String::new(),
                image: String::new(),
                since: Timestamp::UNIX_EPOCH,
                pods: Vec::new(),
                baseline: Baseline {
                    namespaces: vec!["bank".to_owned(), "shop".to_owned()],
                    ..Baseline::default()
                },
            },
            is_resumed,
            owner: Some(OwnerNow {
                api_version: "apps/v1".to_owned(),
                uid: "u1".to_owned(),
                template: None,
            }),
            note: "because".to_owned(),
        }
    }

    #[test]
    fn an_event_stands_where_people_look_for_it() {
        #[track_caller]
        fn check(level: Level, expected: &[&str]) {
            let found: Vec<String> = regarding(&told(level, false), "home")
                .into_iter()
                .map(|it| {
                    let word = |word: Option<String>| word.unwrap_or_default();
                    let place = word(it.namespace);
                    format!("{place}: {} {} {}", word(it.kind), word(it.name), word(it.uid))
                })
                .collect();
            assert_eq!(found, expected, "{level:?}");
        }
        check(Level::Owner, &["shop: Deployment web u1"]);
        check(Level::Namespace, &["shop: Namespace shop "]);
        check(
            Level::Cluster,
            &[
                "home: Deployment healthscope-aggregator ",
                "bank: Namespace bank ",
                "shop: Namespace shop ",
            ],
        );
    }

    #[test]
    fn telling_it_twice_makes_one_event_and_the_end_another() {
        let name = |is_resumed: bool, at: i64| {
            let told = told(Level::Owner, is_resumed);
            let about = regarding(&told, "home").remove(0);
            let event = event(&told, about, "a", Timestamp::from_second(at).unwrap());
            (event.metadata.name.unwrap(), event.reason.unwrap())
        };
        assert_eq!(name(false, 1), name(false, 2));
        assert_ne!(name(false, 1).0, name(true, 1).0);
        assert_eq!(name(false, 1).1, "InjectionReduced");
        assert_eq!(name(true, 1).1, "InjectionResumed");
    }
}
