//! What holds for every pod, and for everything that is none.

use {
    crate::corpus::{Case, options, take_over_default_container, without_empty},
    healthscope_core::inject::{Injection, uninject},
    proptest::{collection, option, prelude::*, sample},
    serde_json::{Map, Value, json},
    std::time::{Duration, Instant},
};

/// Any JSON, with our field names likelier than chance.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            collection::btree_map(key(), inner, 0..5).prop_map(|map| Value::Object(Map::from_iter(map))),
        ]
    })
}

const WORDS: [&str; 40] = [
    "metadata",
    "spec",
    "containers",
    "initContainers",
    "volumes",
    "volumeMounts",
    "name",
    "healthscope",
    "healthscope-agent",
    "healthscope-token",
    "web",
    "command",
    "/healthscope-runner",
    "supervise",
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "port",
    "ports",
    "containerPort",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "postStart",
    "/healthscope/runner",
    "carry",
    "start",
    "-c",
    "2",
    "--",
    "annotations",
    "labels",
    "resources",
    "limits",
    "memory",
    "cpu",
    "mountPath",
    "/healthscope",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => sample::select(WORDS.to_vec()).prop_map(ToOwned::to_owned), 1 => ".{0,8}"]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => sample::select(WORDS.to_vec()).prop_map(ToOwned::to_owned),
        1 => sample::select(vec![
            "healthscope.core.oam.dev/inject", "healthscope.core.oam.dev/probes", "healthscope.core.oam.dev/exec",
            "healthscope.core.oam.dev/resources", "healthscope.core.oam.dev/mirror",
        ]).prop_map(ToOwned::to_owned),
        1 => "[a-z]{1,4}",
    ]
}

fn probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (0..70_000_i64).prop_map(Value::from),
        sample::select(vec!["http", "none", "80"]).prop_map(Value::from)
    ];
    let handler = prop_oneof![
        collection::vec(
            sample::select(vec!["cat", "--", "-c", "$(A)", "$$", "3", ""]),
            0..4
        )
        .prop_map(|command| json!({"exec": {"command": command}})),
        port.clone()
            .prop_map(|port| json!({"httpGet": {"port": port, "path": "/a"}})),
        port.prop_map(|port| json!({"tcpSocket": {"port": port}})),
        (0..70_000_i64).prop_map(|port| json!({"grpc": {"port": port}})),
        Just(json!({"unknown": {}})),
    ];
    (handler, option::of(-1..100_i64), option::of(-1..5_i64)).prop_map(|(mut probe, period, threshold)| {
        if let Some(period) = period {
            probe["periodSeconds"] = period.into();
        }
        if let Some(threshold) = threshold {
            probe["successThreshold"] = threshold.into();
        }
        probe
    })
}

fn container(name: String) -> impl Strategy<Value = Value> {
    let hook = prop_oneof![
        Just(json!({"exec": {"command": ["hook", "--", "-c"]}})),
        Just(json!({"httpGet": {"port": 80}})),
        Just(json!({"sleep": {"seconds": 1}})),
    ];
    let mounts = sample::select(vec!["/data", "/healthscope", "/healthscope/x", "/healthscopes"]);
    (
        option::of(probe()),
        option::of(probe()),
        option::of(probe()),
        option::weighted(0.3, hook),
        option::weighted(0.2, mounts),
        option::weighted(0.5, json_value()),
    )
        .prop_map(move |(liveness, readiness, startup, hook, mount, other)| {
            let mut container = json!({
                "name": name, "image": "i", "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "A", "value": "1"}],
            });
            let slots = [
                ("livenessProbe", liveness),
                ("readinessProbe", readiness),
                ("startupProbe", startup),
            ];
            for (slot, probe) in slots {
                if let Some(probe) = probe {
                    container[slot] = probe;
                }
            }
            if let Some(hook) = hook {
                container["lifecycle"] = json!({"postStart": hook, "preStop": {"exec": {"command": ["x"]}}});
            }
            if let Some(mount) = mount {
                container["volumeMounts"] = json!([{"name": "data", "mountPath": mount}]);
            }
            if let Some(other) = other {
                container["fieldFromTheFuture"] = other;
            }
            container
        })
}

fn pod() -> impl Strategy<Value = Value> {
    let containers = (1..4_usize).prop_flat_map(|count| {
        (0..count)
            .map(|number| container(format!("c{number}")))
            .collect::<Vec<_>>()
    });
    let annotations = collection::btree_map(
        sample::select(vec![
            "healthscope.core.oam.dev/mirror",
            "healthscope.core.oam.dev/exec",
            "healthscope.core.oam.dev/post-start",
            "healthscope.core.oam.dev/carry-readiness",
            "example.org/other",
        ]),
        sample::select(vec!["true", "false", "c0", "-c0"]),
        0..4,
    );
    let init = collection::vec(sample::select(vec!["a", "b", "c"]), 0..3);
    (containers, annotations, init, any::<bool>()).prop_map(|(containers, annotations, init, has_volumes)| {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers}});
        if !annotations.is_empty() {
            pod["metadata"]["annotations"] = json!(annotations);
        }
        if !init.is_empty() {
            pod["spec"]["initContainers"] = init
                .iter()
                .map(|name| json!({"name": name, "image": "i"}))
                .collect();
        }
        if has_volumes {
            pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        }
        pod
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_json_gets_an_answer(value in json_value()) {
        let case = Case::of(value);
        let _answer = case.inject();
        let _own = uninject(&case.pod);
    }

    #[test]
    fn pods_with_anything_in_them_get_an_answer(pod in pod(), field in key(), value in json_value(), place in 0..5_usize) {
        let mut pod = pod;
        let target = match place {
            0 => &mut pod,
            1 => &mut pod["metadata"],
            2 => &mut pod["spec"],
            3 => &mut pod["spec"]["containers"][0],
            _ => &mut pod["spec"]["containers"][0]["readinessProbe"],
        };
        if let Some(object) = target.as_object_mut() {
            object.insert(field, value);
        }
        let case = Case::of(pod);
        if let Injection::Injected(first) = case.inject() {
            let Injection::Injected(second) = case.inject_pod(&first.pod) else {
                panic!("injected once and not twice");
            };
            prop_assert_eq!(second.pod, first.pod);
        }
    }

    #[test]
    fn injecting_twice_is_injecting_once_and_nothing_of_the_user_s_is_lost(pod in pod()) {
        let case = Case::of(pod);
        let Injection::Injected(first) = case.inject() else { return Ok(()) };
        let Injection::Injected(second) = case.inject_pod(&first.pod) else {
            panic!("injected once and not twice");
        };
        prop_assert_eq!(&second.pod, &first.pod);
        let mut patched = case.pod.clone();
        json_patch::patch(&mut patched, &first.patch(&case.pod)).unwrap();
        prop_assert_eq!(&patched, &first.pod);
        let found = without_empty(&uninject(&first.pod).unwrap());
        let mut given = without_empty(&case.pod);
        take_over_default_container(&mut given, &found);
        prop_assert_eq!(found, given);
    }

    #[test]
    fn settings_that_change_between_two_calls_leave_nothing_behind(pod in pod(), value in "true|false") {
        let case = Case::of(pod);
        let Injection::Injected(first) = case.inject() else { return Ok(()) };
        let change = |pod: &Value| {
            let mut pod = pod.clone();
            pod["metadata"]["annotations"]["healthscope.core.oam.dev/post-start"] = value.as_str().into();
            pod["metadata"]["annotations"]["healthscope.core.oam.dev/exec"] = "-c0".into();
            pod
        };
        let fresh = case.inject_pod(&change(&case.pod));
        let again = case.inject_pod(&change(&first.pod));
        match (fresh, again) {
            (Injection::Injected(fresh), Injection::Injected(again)) => {
                let mut given = fresh.pod.clone();
                take_over_default_container(&mut given, &again.pod);
                prop_assert_eq!(given, again.pod);
            }
            (fresh, again) => prop_assert_eq!(fresh, again),
        }
    }
}

#[test]
fn a_pod_of_500_containers_is_answered_quickly() {
    let probe = |number: usize| {
        json!({"name": format!("container-{number}"), "image": "i",
               "readinessProbe": {"exec": {"command": ["cat", format!("/tmp/ok-{number}")]}}})
    };
    let containers: Vec<Value> = (0..500).map(probe).collect();
    let case = Case::of(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}}));
    let started = Instant::now();
    let answer = case.inject_with(&case.pod, &options());
    let patch = match &answer {
        Injection::Injected(injected) => injected.patch(&case.pod).len(),
        Injection::Skipped(reason) => panic!("{reason}"),
    };
    // The webhook's whole time is 2 s; without optimisation and on a busy machine this takes some 0.1 s.
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?} for {patch} operations",
        started.elapsed()
    );
}
