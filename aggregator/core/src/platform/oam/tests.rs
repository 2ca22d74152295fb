//! OAM's conformance table: the rows are those of oam-kubernetes-runtime's own tests, numbered as in the reference.
//!
//! | row | where |
//! |---|---|
//! | 1, 7, 12, 16, 20 | [`an_empty_reference_matches_no_rule`] |
//! | 2–6, 8–11 | [`a_composite_workload_is_as_healthy_as_its_children`] |
//! | 13–15, 17–19, 21–23 | [`workloads_follow_their_numbers`] |
//! | 24–26 | [`unknown_kinds_show_their_status`]; 24 differs from the bare function: the running controller forces `UNHEALTHY` |
//! | 27–29 | [`peers_count_and_are_written_out`] |
//! | 30, 31 | [`revisions_sort_newest_first`] |
//! | 32, 33 | reading the scope and writing its status: the watch and the status writer, which report to their log and retry |
//! | 34 | [`workloads_follow_their_numbers`]: a verdict is never an error |
//! | 35–37 | [`scopes_roll_up`] |
//! | 38 | [`scopes_roll_up`] for the verdict of a scope without workloads; `probe-timeout` has nothing to wait for here |
//!
//! Where a recorded bug is not repeated: the order of conditions is that of the references; equal revisions sort by
//! name; a child Deployment of another version than `apps/v1` is unhealthy instead of a crash.

use {
    super::*,
    crate::platform::{DecodeOptions, decode},
    serde_json::{Value, json},
};

const OK: OamHealth = OamHealth::Healthy;
const BAD: OamHealth = OamHealth::Unhealthy;
const UNKNOWN: OamHealth = OamHealth::Unknown;

fn object(value: &Value) -> Object {
    decode(
        value,
        &DecodeOptions {
            keep_status: true,
            ..Default::default()
        },
    )
    .expect("an object")
}

/// An object of `app/comp` with the labels of a versioned component when `labels` says so.
fn make(api_version: &str, kind: &str, name: &str, versioned: bool, spec: &Value, status: &Value) -> Object {
    let labels = if versioned {
        json!({COMPONENT_LABEL: "comp", APPLICATION_LABEL: "app"})
    } else {
        json!({})
    };
    object(&json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels},
        "spec": spec, "status": status,
    }))
}

fn deployment(name: &str, wanted: u32, ready: u32) -> Object {
    make(
        "apps/v1",
        "Deployment",
        name,
        false,
        &json!({"replicas": wanted}),
        &json!({"readyReplicas": ready}),
    )
}

fn revision_of(name: &str, wanted: u32, ready: u32) -> Object {
    make(
        "apps/v1",
        "Deployment",
        name,
        true,
        &json!({"replicas": wanted}),
        &json!({"readyReplicas": ready}),
    )
}

fn service() -> Object {
    make("v1", "Service", "web", false, &json!({}), &json!({}))
}

fn reference(api_version: &str, kind: &str, name: &str) -> OamRef {
    OamRef {
        api_version: api_version.into(),
        kind: kind.into(),
        name: name.into(),
        uid: None,
    }
}

/// The condition of `found` among `others`.
fn judge<'a>(reference: &OamRef, found: Child<'a>, others: &'a [Object]) -> OamCondition {
    let siblings: Vec<&Object> = others.iter().collect();
    condition(reference, found, Ok(&siblings), &|key| {
        others
            .iter()
            .find(|other| other.key == *key)
            .map_or(Child::NotFound, Child::Found)
    })
}

#[test]
fn an_empty_reference_matches_no_rule() {
    // Rows 1, 7, 12, 16, 20: no checker takes it, so it is an unknown kind.
    assert_eq!(Rule::of("", ""), Rule::Unknown);
    for (api_version, kind) in [
        ("apps/v1beta1", "Deployment"),
        ("extensions/v1beta1", "Deployment"),
        ("v1", "Deployment"),
        ("core.oam.dev/v1alpha1", "ContainerizedWorkload"),
        ("apps/v1", "ReplicaSet"),
    ] {
        assert_eq!(Rule::of(api_version, kind), Rule::Unknown, "{api_version} {kind}");
    }
}

#[test]
fn workloads_follow_their_numbers() {
    #[track_caller]
    fn check(kind: &str, spec: &Value, status: &Value, health: OamHealth, diagnosis: &str) {
        let found = make("apps/v1", kind, "web", false, spec, status);
        let found = judge(&reference("apps/v1", kind, "web"), Child::Found(&found), &[]);
        assert_eq!(
            (found.health_status, found.diagnosis.as_str()),
            (health, diagnosis)
        );
        assert_eq!(found.target.uid.as_deref(), Some("uid-web"));
        assert_eq!(found.workload_status, None);
    }
    for kind in ["Deployment", "StatefulSet"] {
        // Rows 13, 17.
        check(
            kind,
            &json!({"replicas": 1}),
            &json!({"readyReplicas": 1}),
            OK,
            "Ready:1/1 ",
        );
        // Rows 14, 18.
        check(
            kind,
            &json!({"replicas": 1}),
            &json!({"readyReplicas": 0}),
            BAD,
            "Ready:0/1 ",
        );
        // Our own: scaled to nothing, nothing said, more than wanted.
        check(kind, &json!({"replicas": 0}), &json!({}), OK, "Ready:0/0 ");
        check(kind, &json!({}), &json!({}), OK, "Ready:0/0 ");
        check(
            kind,
            &json!({"replicas": 1}),
            &json!({"readyReplicas": 2}),
            BAD,
            "Ready:2/1 ",
        );
    }
    // Row 21, and a new one without status.
    let status = json!({"numberReady": 2, "desiredNumberScheduled": 2, "numberUnavailable": 0});
    check("DaemonSet", &json!({}), &status, OK, "Ready:2/2 ");
    check("DaemonSet", &json!({}), &json!({}), OK, "Ready:0/0 ");
    // Row 22.
    let status = json!({"numberReady": 1, "desiredNumberScheduled": 2, "numberUnavailable": 1});
    check("DaemonSet", &json!({}), &status, BAD, "Ready:1/2 ");

    // Rows 15, 19, 23, with what the second look-up adds.
    for kind in ["Deployment", "StatefulSet", "DaemonSet"] {
        let reference = reference("apps/v1", kind, "web");
        let found = judge(&reference, Child::Unknown("mock error"), &[]);
        assert_eq!(found.health_status, BAD);
        assert_eq!(
            found.diagnosis,
            "error occurs in health check : mock error error occurs when get versioning peer workloads refs:mock error"
        );
        assert_eq!(found.target, reference);
        let gone = judge(&reference, Child::NotFound, &[]);
        assert!(
            gone.diagnosis.starts_with(&format!(
                "error occurs in health check : {kind}.apps \"web\" not found"
            )),
            "{}",
            gone.diagnosis
        );
    }
}

#[test]
fn a_composite_workload_is_as_healthy_as_its_children() {
    let listed = |children: &[(&str, &str)]| -> Value {
        let children: Vec<Value> = children
            .iter()
            .map(|(api_version, kind)| json!({"apiVersion": api_version, "kind": kind, "name": "web"}))
            .collect();
        json!({"resources": children})
    };
    let usual = listed(&[("apps/v1", "Deployment"), ("v1", "Service")]);
    let no_children = "cannot get child resource references of workload web";
    for (api_version, kind) in [
        ("core.oam.dev/v1alpha2", "ContainerizedWorkload"),
        ("standard.oam.dev/v1alpha1", "PodSpecWorkload"),
    ] {
        let check = |status: &Value, others: &[Object], health: OamHealth, diagnosis: &str| {
            let found = make(api_version, kind, "web", false, &json!({}), status);
            let found = judge(&reference(api_version, kind, "web"), Child::Found(&found), others);
            assert_eq!(
                (found.health_status, found.diagnosis.as_str()),
                (health, diagnosis)
            );
        };
        // Rows 2, 8.
        check(&usual, &[deployment("web", 1, 1), service()], OK, "Ready:1/1 ");
        // Rows 3, 9.
        check(&usual, &[deployment("web", 1, 0), service()], BAD, "Ready:0/1 ");
        // Rows 5, 11.
        let gone = "error occurs in health check : Deployment.apps \"web\" not found";
        check(&usual, &[service()], BAD, gone);
        // Row 6.
        let gone = "Ready:1/1 error occurs in health check : Service \"web\" not found";
        check(&usual, &[deployment("web", 1, 1)], BAD, gone);
        // Rows 4, 10.
        let lost = judge(
            &reference(api_version, kind, "web"),
            Child::Unknown("mock error"),
            &[],
        );
        assert_eq!(lost.health_status, BAD);

        // Our own: the wrong number of children, one of another kind, and one that crashed the controller.
        for children in [
            listed(&[]),
            listed(&[("apps/v1", "Deployment")]),
            listed(&[("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "Secret")]),
            json!({}),
        ] {
            check(&children, &[deployment("web", 1, 1), service()], BAD, no_children);
        }
        let other = listed(&[("apps/v1", "Deployment"), ("v1", "ConfigMap")]);
        check(&other, &[deployment("web", 1, 1)], OK, "Ready:1/1 ");
        let old = listed(&[("apps/v1beta1", "Deployment"), ("v1", "Service")]);
        let unknown = "APIVersion apps/v1beta1 Kind Deployment workload is unknown for HealthScope ";
        check(&old, &[deployment("web", 1, 1), service()], BAD, unknown);
    }
}

#[test]
fn unknown_kinds_show_their_status() {
    let reference = reference("foo.dev/v1", "Foo", "web");
    // Row 24: the bare function says UNKNOWN, the running controller UNHEALTHY.
    let lost = check(&reference, Child::Unknown("mock error"), &|_| Child::NotFound);
    assert_eq!(lost.health_status, UNKNOWN);
    assert_eq!(lost.diagnosis, "error occurs in health check : mock error");
    let lost = judge(&reference, Child::Unknown("mock error"), &[]);
    assert_eq!(lost.health_status, BAD);
    assert_eq!(
        lost.diagnosis,
        "error occurs in health check : mock error error occurs when get versioning peer workloads refs:mock error"
    );
    // Rows 25, 26.
    for (status, text) in [(json!({"unknown": 1}), r#"{"unknown":1}"#), (Value::Null, "null")] {
        let found = make("foo.dev/v1", "Foo", "web", false, &json!({}), &status);
        assert_eq!(
            judge(&reference, Child::Found(&found), &[]),
            OamCondition {
                component_name: String::new(),
                target: reference.clone(),
                health_status: UNKNOWN,
                diagnosis: "APIVersion foo.dev/v1 Kind Foo workload is unknown for HealthScope ".into(),
                workload_status: Some(text.into()),
            }
        );
    }
    // Our own: a long status is replaced by a note that is JSON as well.
    let long = json!({"text": "x".repeat(2 * MAX_STATUS_BYTES)});
    let found = make("foo.dev/v1", "Foo", "web", false, &json!({}), &long);
    let status = judge(&reference, Child::Found(&found), &[])
        .workload_status
        .expect("a status");
    assert!(status.len() <= MAX_STATUS_BYTES && serde_json::from_str::<Value>(&status).is_ok());
}

#[test]
fn peers_count_and_are_written_out() {
    #[track_caller]
    fn check(all: &[(&str, u32, u32)], health: OamHealth, diagnosis: &str) {
        let all: Vec<Object> = all
            .iter()
            .map(|&(name, wanted, ready)| revision_of(name, wanted, ready))
            .collect();
        let own = reference("apps/v1", "Deployment", all[0].key.name.as_str());
        let found = judge(&own, Child::Found(&all[0]), &all);
        assert_eq!(
            (found.health_status, found.diagnosis.as_str()),
            (health, diagnosis)
        );
        assert_eq!(found.component_name, "comp");
        assert_eq!(found.target.name, own.name);
    }
    // Row 27.
    check(
        &[("comp-v2", 1, 1), ("comp-v1", 1, 1)],
        OK,
        "comp-v2:Ready:1/1  comp-v1:Ready:1/1 ",
    );
    // Row 28.
    check(
        &[("comp-v1", 1, 1), ("comp-v2", 1, 0)],
        BAD,
        "comp-v2:Ready:0/1  comp-v1:Ready:1/1 ",
    );
    // Our own: no peer; old ones that are scaled down are dropped from the third on.
    check(&[("comp-v1", 1, 1)], OK, "Ready:1/1 ");
    check(
        &[
            ("comp-v4", 1, 1),
            ("comp-v3", 0, 0),
            ("comp-v2", 0, 0),
            ("comp-v1", 1, 1),
        ],
        OK,
        "comp-v4:Ready:1/1  comp-v3:Ready:0/0  comp-v1:Ready:1/1 ",
    );

    // Row 29.
    let own = revision_of("comp-v1", 1, 1);
    let reference = reference("apps/v1", "Deployment", "comp-v1");
    let blind = |found: &Object| {
        condition(&reference, Child::Found(found), Err("mock error"), &|_| {
            Child::NotFound
        })
    };
    assert_eq!(blind(&own).health_status, BAD);
    assert_eq!(
        blind(&own).diagnosis,
        "Ready:1/1  error occurs when get versioning peer workloads refs:mock error"
    );
    // Nothing is listed for one that has no labels.
    assert_eq!(blind(&deployment("comp-v1", 1, 1)).health_status, OK);
}

#[test]
fn peers_of_an_unknown_kind_join_their_statuses() {
    let all = ["comp-v1", "comp-v2"]
        .map(|name| make("foo.dev/v1", "Foo", name, true, &json!({}), &json!({"of": name})));
    let found = judge(
        &reference("foo.dev/v1", "Foo", "comp-v1"),
        Child::Found(&all[0]),
        &all,
    );
    assert_eq!(found.health_status, UNKNOWN);
    assert_eq!(
        found.workload_status.as_deref(),
        Some(r#"comp-v2:{"of":"comp-v2"} comp-v1:{"of":"comp-v1"}"#)
    );
}

#[test]
fn revisions_sort_newest_first() {
    fn check(names: &[&str], expected: &[&str]) {
        let mut names = names.to_vec();
        names.sort_by_key(|name| Reverse(revision(name)));
        assert_eq!(names, expected);
    }
    // Rows 30, 31.
    check(
        &["comp-v1", "comp-v2", "comp-v12"],
        &["comp-v12", "comp-v2", "comp-v1"],
    );
    check(
        &["comp-v1", "comp", "comp-v2", "comp-v12"],
        &["comp-v12", "comp-v2", "comp-v1", "comp"],
    );
}

#[test]
fn scopes_roll_up() {
    let composite = make(
        "core.oam.dev/v1alpha2",
        "ContainerizedWorkload",
        "web",
        false,
        &json!({}),
        &json!({"resources": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            {"apiVersion": "v1", "kind": "Service", "name": "web"},
        ]}),
    );
    let (web, service) = (deployment("web", 1, 1), service());
    let foo = make("foo.dev/v1", "Foo", "web", false, &json!({}), &json!({}));
    let cw = |others: &[Object]| {
        judge(
            &reference("core.oam.dev/v1alpha2", "ContainerizedWorkload", "web"),
            Child::Found(&composite),
            others,
        )
    };
    let plain = judge(
        &reference("apps/v1", "Deployment", "web"),
        Child::Found(&web),
        &[],
    );
    let unknown = judge(&reference("foo.dev/v1", "Foo", "web"), Child::Found(&foo), &[]);
    let good = cw(&[web.clone(), service]);
    let bad = cw(&[web]);
    #[track_caller]
    fn check(conditions: &[OamCondition], health_status: OamHealth, counts: [u32; 4]) {
        let [total, healthy, unhealthy, unknown] = counts;
        assert_eq!(
            roll_up(conditions),
            OamScope {
                health_status,
                total,
                healthy,
                unhealthy,
                unknown
            }
        );
    }
    // Rows 35, 36, 37, 38.
    check(&[good.clone(), plain.clone()], OK, [2, 2, 0, 0]);
    check(&[bad, plain], BAD, [2, 1, 1, 0]);
    check(&[good, unknown], BAD, [2, 1, 0, 1]);
    check(&[], OK, [0, 0, 0, 0]);
}
