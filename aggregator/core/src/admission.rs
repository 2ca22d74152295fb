//! AdmissionReviews: what is asked, and the answer, which is always yes.
//!
//! A pod is admitted whatever was sent: what cannot be read, is of another kind or too large is answered without a patch
//! and counted under a [`Why`]. Only where not even the question's id can be read there is no answer, and the API server
//! goes on without one (`failurePolicy: Ignore`).

mod skips;

pub use skips::{MAX_OWNERS, Skip, SkipEvent, Skips};

use {
    crate::inject::{Injected, SkipReason},
    healthscope_shared::one_line,
    serde::Deserialize,
    serde_json::{Value, json, value::RawValue},
};

/// Longest question read: the API server takes requests of 3 MiB, and the question repeats what it took. A pod that
/// comes near could not be stored: etcd takes 1.5 MiB.
pub const MAX_REVIEW_BYTES: usize = 3 * 1024 * 1024;
/// Longest pod that is looked at. One with 500 containers has a quarter of this; as values in memory it is thirty times
/// its text at worst.
pub const MAX_POD_BYTES: usize = 1024 * 1024;
/// Longest id of a question that is repeated; the API server's are UUIDs.
const MAX_UID_BYTES: usize = 256;
/// Longest warning: kubectl shows no more of it, and 4 KiB of all.
const MAX_WARNING_BYTES: usize = 256;

/// Why a question is answered without a decision, or not at all; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no AdmissionReview, or its pod is not one in JSON.
    Unreadable,
    /// It, or its pod, is longer than is read.
    TooLarge,
    /// It is of another version than v1.
    OtherVersion,
    /// It is not about the creation of a pod.
    OtherKind,
    /// What holds in the pod's namespace is not known yet.
    NotSynced,
    /// The answer was not found in time.
    Late,
    /// More questions than are answered at once.
    Busy,
    /// A bug: deciding ended in a panic.
    Bug,
}

impl Why {
    /// Each there is.
    pub const ALL: [Self; 8] = [
        Self::Unreadable,
        Self::TooLarge,
        Self::OtherVersion,
        Self::OtherKind,
        Self::NotSynced,
        Self::Late,
        Self::Busy,
        Self::Bug,
    ];

    /// One word for machines.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "Unreadable",
            Self::TooLarge => "TooLarge",
            Self::OtherVersion => "OtherVersion",
            Self::OtherKind => "OtherKind",
            Self::NotSynced => "NotSynced",
            Self::Late => "Late",
            Self::Busy => "Busy",
            Self::Bug => "Bug",
        }
    }
}

/// To what an answer belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    uid: String,
    api_version: &'static str,
}

/// A pod that is about to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Where.
    pub namespace: String,
    /// The pod.
    pub pod: Value,
    /// Whether nothing comes of it: then nobody is told of it either.
    pub is_dry_run: bool,
}

/// What was sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Review {
    /// A pod, to be looked at.
    Pod(Question, Box<Asked>),
    /// Something to be let through.
    Other(Question, Why),
    /// Nothing that has an answer.
    Nothing,
}

const V1: &str = "admission.k8s.io/v1";
const V1BETA1: &str = "admission.k8s.io/v1beta1";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: &'a RawValue,
}

/// The part of a request that every version has.
#[derive(Deserialize)]
struct Id {
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    namespace: String,
    operation: String,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

/// Reads an AdmissionReview.
#[must_use]
pub fn read(body: &[u8]) -> Review {
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(body) else {
        return Review::Nothing;
    };
    let Envelope {
        api_version,
        kind,
        request,
    } = envelope;
    let Ok(Id { uid }) = serde_json::from_str(request.get()) else {
        return Review::Nothing;
    };
    if kind != "AdmissionReview" || uid.is_empty() || uid.len() > MAX_UID_BYTES {
        return Review::Nothing;
    }
    let question = |api_version| Question { uid, api_version };
    match api_version.as_str() {
        V1 => {}
        V1BETA1 => return Review::Other(question(V1BETA1), Why::OtherVersion),
        _ => return Review::Nothing,
    }
    match read_request(request.get()) {
        Ok(asked) => Review::Pod(question(V1), Box::new(asked)),
        Err(why) => Review::Other(question(V1), why),
    }
}

fn read_request(request: &str) -> Result<Asked, Why> {
    let request: Request<'_> = serde_json::from_str(request).map_err(|_| Why::Unreadable)?;
    let Request {
        kind,
        sub_resource,
        namespace,
        operation,
        object,
        dry_run,
    } = request;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
    if !is_pod || !sub_resource.is_empty() || operation != "CREATE" {
        return Err(Why::OtherKind);
    }
    let object = object.ok_or(Why::Unreadable)?.get();
    if object.len() > MAX_POD_BYTES {
        return Err(Why::TooLarge);
    }
    Ok(Asked {
        namespace,
        pod: serde_json::from_str(object).map_err(|_| Why::Unreadable)?,
        is_dry_run: dry_run.unwrap_or_default(),
    })
}

/// The answer that lets everything through as it is.
#[must_use]
pub fn pass(question: &Question) -> Value {
    let Question { uid, api_version } = question;
    json!({
        "apiVersion": api_version,
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": true},
    })
}

/// The answer for a pod that gets an agent; `encode` writes bytes in base64.
#[must_use]
pub fn patched(
    question: &Question,
    before: &Value,
    injected: &Injected,
    encode: impl Fn(&[u8]) -> String,
) -> Value {
    let patch = injected.patch(before);
    let mut answer = pass(question);
    if !patch.is_empty() {
        let patch = serde_json::to_vec(&patch).expect("a patch is JSON");
        answer["response"]["patchType"] = "JSONPatch".into();
        answer["response"]["patch"] = encode(&patch).into();
    }
    answer
}

/// The answer for a pod that gets none. Whoever makes a pod by hand and wrote something that cannot be meant is told at
/// once; a controller would tell nobody, and its owner gets an Event.
#[must_use]
pub fn skipped(question: &Question, pod: &Value, reason: &SkipReason) -> Value {
    let mut answer = pass(question);
    if is_mistake(reason) && owner(pod).is_none() {
        let warning = one_line(&format!("no HealthScope agent: {reason}"), MAX_WARNING_BYTES);
        answer["response"]["warnings"] = json!([warning]);
    }
    answer
}

/// Whether somebody wrote something into the pod or its namespace that they must change to get what they want.
const fn is_mistake(reason: &SkipReason) -> bool {
    match reason {
        SkipReason::InvalidLabel { .. }
        | SkipReason::InvalidAnnotation { .. }
        | SkipReason::AgentPresent { .. }
        | SkipReason::NameClash { .. }
        | SkipReason::MountPathClash { .. }
        | SkipReason::TooLarge { .. } => true,
        SkipReason::NotAPod { .. }
        | SkipReason::NotEnabled
        | SkipReason::Disabled { .. }
        | SkipReason::HostNetwork
        | SkipReason::HostPid
        | SkipReason::Windows
        | SkipReason::MirrorPod
        | SkipReason::OwnPod
        | SkipReason::NoServiceAccount
        | SkipReason::Deleting
        | SkipReason::LimitRange { .. }
        | SkipReason::QuotaExceeded { .. }
        | SkipReason::NothingToCheck { .. }
        | SkipReason::OldKubernetes { .. }
        | SkipReason::BreakerOpen { .. } => false,
    }
}

/// Whether nobody needs to hear of it: nobody asked for an agent there, or somebody asked for none.
#[must_use]
pub const fn is_as_meant(reason: &SkipReason) -> bool {
    matches!(
        reason,
        SkipReason::NotEnabled
            | SkipReason::Disabled { .. }
            | SkipReason::MirrorPod
            | SkipReason::OwnPod
            | SkipReason::Deleting
    )
}

/// Whose pod it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Its version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Longest word of an owner reference that is taken; the API server's own bound on names.
const MAX_OWNER_BYTES: usize = 253;

/// The controller that makes this pod.
#[must_use]
pub fn owner(pod: &Value) -> Option<Owner> {
    let references = pod["metadata"]["ownerReferences"].as_array()?;
    let owner = references.iter().find(|owner| owner["controller"] == true)?;
    let word = |field: &str| {
        let word = owner[field].as_str()?;
        (!word.is_empty() && word.len() <= MAX_OWNER_BYTES).then(|| word.to_owned())
    };
    Some(Owner {
        api_version: word("apiVersion")?,
        kind: word("kind")?,
        name: word("name")?,
        uid: word("uid")?,
    })
}

#[cfg(test)]
mod tests {
    use {super::*, crate::inject::Holder};

    fn review(api_version: &str, request: &Value) -> Vec<u8> {
        let review = json!({"apiVersion": api_version, "kind": "AdmissionReview", "request": request});
        review.to_string().into_bytes()
    }

    fn request(change: impl FnOnce(&mut Value)) -> Value {
        let mut request = json!({
            "uid": "u1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "somebody"},
            "object": {"metadata": {}, "spec": {}},
            "oldObject": null,
            "dryRun": false,
            "options": {},
        });
        change(&mut request);
        request
    }

    #[test]
    fn a_pod_is_read() {
        let Review::Pod(question, asked) =
            read(&review(V1, &request(|request| request["dryRun"] = true.into())))
        else {
            panic!("it is a pod");
        };
        assert_eq!(asked.namespace, "shop");
        assert_eq!(asked.pod, json!({"metadata": {}, "spec": {}}));
        assert!(asked.is_dry_run);
        assert_eq!(
            pass(&question),
            json!({"apiVersion": V1, "kind": "AdmissionReview", "response": {"uid": "u1", "allowed": true}})
        );
    }

    #[test]
    fn what_is_no_creation_of_a_pod_is_let_through() {
        #[track_caller]
        fn check(api_version: &str, change: impl FnOnce(&mut Value), expected: Why) {
            let Review::Other(question, why) = read(&review(api_version, &request(change))) else {
                panic!("it has an answer");
            };
            assert_eq!(why, expected);
            let answer = pass(&question);
            assert_eq!(answer["apiVersion"], api_version);
            assert_eq!(answer["response"]["allowed"], true);
            assert_eq!(answer["response"]["uid"], "u1");
        }
        check(V1BETA1, |_| {}, Why::OtherVersion);
        check(
            V1,
            |request| request["operation"] = "UPDATE".into(),
            Why::OtherKind,
        );
        check(
            V1,
            |request| request["kind"]["kind"] = "Job".into(),
            Why::OtherKind,
        );
        check(
            V1,
            |request| request["kind"]["group"] = "x.y".into(),
            Why::OtherKind,
        );
        check(
            V1,
            |request| request["subResource"] = "ephemeralcontainers".into(),
            Why::OtherKind,
        );
        check(V1, |request| request["object"] = Value::Null, Why::Unreadable);
        check(V1, |request| request["kind"] = 7.into(), Why::Unreadable);
        check(
            V1,
            |request| request["object"] = "x".repeat(MAX_POD_BYTES).into(),
            Why::TooLarge,
        );
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body =
            String::from_utf8(review(V1, &request(|request| request["object"] = "DEEP".into()))).unwrap();
        let read = read(body.replace("\"DEEP\"", &deep).as_bytes());
        assert!(matches!(read, Review::Other(_, Why::Unreadable)), "{read:?}");
    }

    #[test]
    fn what_cannot_be_answered_is_not() {
        #[track_caller]
        fn check(body: &[u8]) {
            assert_eq!(read(body), Review::Nothing, "{}", String::from_utf8_lossy(body));
        }
        check(b"");
        check(b"\xff");
        check(b"[]");
        check(b"{}");
        check(&review("admission.k8s.io/v2", &request(|_| {})));
        check(&review(V1, &request(|request| request["uid"] = 7.into())));
        check(&review(V1, &request(|request| request["uid"] = "".into())));
        check(&review(
            V1,
            &request(|request| request["uid"] = "u".repeat(300).into()),
        ));
        check(&review(V1, &Value::Null));
        check(br#"{"apiVersion":"admission.k8s.io/v1","kind":"Pod","request":{"uid":"u"}}"#);
    }

    #[test]
    fn only_who_made_a_pod_by_hand_and_a_mistake_is_warned() {
        let question = Question {
            uid: "u1".to_owned(),
            api_version: V1,
        };
        let mistake = SkipReason::InvalidLabel {
            holder: Holder::Pod,
            value: "yes".repeat(200),
        };
        let by_hand = json!({"metadata": {}});
        let owned = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": true}
        ]}});
        let warnings = |pod, reason| skipped(&question, pod, reason)["response"]["warnings"].clone();
        let warning = warnings(&by_hand, &mistake);
        let warning = warning[0].as_str().unwrap();
        assert!(
            warning.starts_with("no HealthScope agent: the pod's label"),
            "{warning}"
        );
        assert!(warning.len() <= MAX_WARNING_BYTES);
        assert_eq!(warnings(&owned, &mistake), Value::Null);
        assert_eq!(warnings(&by_hand, &SkipReason::HostNetwork), Value::Null);
        assert_eq!(owner(&owned).unwrap().name, "web-1");
    }
}
