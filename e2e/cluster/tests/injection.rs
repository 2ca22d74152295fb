//! Injected pods as a real API server takes them, with nothing of them kept: `--dry-run=server`.
//!
//! The pods are those of the injector's corpus. What the server accepts without an agent it must accept with one, under
//! Pod Security `restricted` too, and what it sends back, defaults and all, must not be changed by a second call.

#[path = "../../../aggregator/core/tests/inject/corpus.rs"]
#[expect(dead_code, reason = "the injector's own tests use the rest")]
mod corpus;

use {
    corpus::Case,
    healthscope_core::inject::{Injected, Injection},
    healthscope_e2e_cluster::{Cluster, Options, Version},
    serde_json::{Value, json},
    std::{
        collections::{BTreeMap, BTreeSet},
        sync::LazyLock,
    },
};

static NEWEST: LazyLock<Cluster> = LazyLock::new(|| cluster(Version::V1_36));
static OLDEST: LazyLock<Cluster> = LazyLock::new(|| cluster(Version::V1_34));

fn cluster(version: Version) -> Cluster {
    let cluster = Cluster::start(&Options {
        version,
        // Without it there are no ServiceAccounts, and pods get no tokens.
        controller_manager: true,
        ..Options::control_plane()
    })
    .unwrap();
    namespace(&cluster, "plain", &json!({}));
    namespace(
        &cluster,
        "restricted",
        &json!({"pod-security.kubernetes.io/enforce": "restricted"}),
    );
    cluster
}

/// A namespace in which pods can be made: nobody makes their ServiceAccount here.
fn namespace(cluster: &Cluster, name: &str, labels: &Value) {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}),
    ];
    for object in objects {
        cluster.apply(&object.to_string()).unwrap();
    }
}

/// What the server would make of pods, by their names; and what it says of those that it refuses.
fn dry_run(cluster: &Cluster, pods: &[Value]) -> (BTreeMap<String, Value>, String) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    let file = tempfile::NamedTempFile::new_in(cluster.folder()).unwrap();
    std::fs::write(file.path(), list.to_string()).unwrap();
    let output = cluster
        .kubectl_command()
        .args([
            "create",
            "--dry-run=server",
            "--validate=ignore",
            "-o",
            "json",
            "-f",
        ])
        .arg(file.path())
        .output()
        .unwrap();
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let mut accepted = BTreeMap::new();
    for answer in answers {
        let answer = answer.unwrap();
        let items = match answer["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![answer],
        };
        for item in items {
            accepted.insert(item["metadata"]["name"].as_str().unwrap().to_owned(), item);
        }
    }
    (accepted, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A pod under its case's name, without what no server takes from a client.
fn named(pod: &Value, case: &Case, namespace: &str) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["name"] = case.name.as_str().into();
    pod["metadata"]["namespace"] = namespace.into();
    for (object, field) in [("metadata", "generateName"), ("spec", "ephemeralContainers")] {
        pod[object].as_object_mut().unwrap().remove(field);
    }
    pod.as_object_mut().unwrap().remove("status");
    pod
}

fn injected() -> Vec<(Case, Box<Injected>)> {
    Case::all()
        .into_iter()
        .filter_map(|case| match case.inject() {
            Injection::Injected(injected) => Some((case, injected)),
            Injection::Skipped(_) => None,
        })
        .collect()
}

/// The cases that the server accepts in this namespace as they are, and with an agent what it makes of them.
fn accepted(cluster: &Cluster, namespace: &str) -> BTreeMap<String, Value> {
    let all = injected();
    let before: Vec<_> = all
        .iter()
        .map(|(case, _)| named(&case.pod, case, namespace))
        .collect();
    let after: Vec<_> = all
        .iter()
        .map(|(case, injected)| named(&injected.pod, case, namespace))
        .collect();
    let (before, _) = dry_run(cluster, &before);
    let (after, refused) = dry_run(cluster, &after);
    let names = |pods: &BTreeMap<String, Value>| pods.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&before), names(&after), "{refused}");
    after
}

fn what_is_accepted_without_an_agent_is_accepted_with_one(cluster: &Cluster) {
    let plain = accepted(cluster, "plain");
    let restricted = accepted(cluster, "restricted");
    // Most of the corpus is good; what is not has fields that no server knows yet.
    assert!(plain.len() >= 45, "{:?}", plain.keys());
    assert!(restricted.contains_key("restricted") && restricted.contains_key("odd-pod-security"));
}

fn the_agent_holds_no_token_for_the_api_server(cluster: &Cluster) {
    let all = accepted(cluster, "plain");
    for (name, pod) in &all {
        let agent = &pod["spec"]["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|container| container["name"] == "healthscope-agent")
            .unwrap();
        for mount in agent["volumeMounts"].as_array().unwrap() {
            let volume = mount["name"].as_str().unwrap();
            assert!(volume.starts_with("healthscope"), "{name}: {mount}");
        }
    }
    // The application's own containers get theirs as always.
    let web = all["http-readiness"]["spec"]["containers"][0]["volumeMounts"][0].to_string();
    assert!(web.contains("kube-api-access"), "{web}");
}

fn a_call_after_the_server_s_defaults_changes_nothing(cluster: &Cluster) {
    let answers = accepted(cluster, "plain");
    for (case, _) in injected() {
        let Some(pod) = answers.get(&case.name) else {
            continue;
        };
        match case.inject_pod(pod) {
            Injection::Injected(again) => {
                let patch = again.patch(pod);
                assert!(patch.is_empty(), "{}: {patch}", case.name);
            }
            Injection::Skipped(reason) => panic!("{}: {reason}", case.name),
        }
    }
}

fn the_class_of_service_stays(cluster: &Cluster) {
    let all = injected();
    let class = |pods: Vec<Value>| -> BTreeMap<String, String> {
        let (answers, _) = dry_run(cluster, &pods);
        answers
            .into_iter()
            .map(|(name, pod)| {
                (
                    name,
                    pod["status"]["qosClass"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect()
    };
    // An annotation that asks for resources asks for another class too.
    let is_asked = |case: &Case| case.name == "resources-annotation";
    let before = all.iter().filter(|(case, _)| !is_asked(case));
    let before = class(before.map(|(case, _)| named(&case.pod, case, "plain")).collect());
    let after = all.iter().filter(|(case, _)| !is_asked(case));
    let after = class(
        after
            .map(|(case, injected)| named(&injected.pod, case, "plain"))
            .collect(),
    );
    assert_eq!(before, after);
    let classes: BTreeSet<&str> = before.values().map(String::as_str).collect();
    assert_eq!(classes, BTreeSet::from(["BestEffort", "Burstable", "Guaranteed"]));
}

/// LimitRanges and ResourceQuotas as the server itself enforces them.
fn limits_and_quotas_are_kept(cluster: &Cluster) {
    let mut checked = 0;
    for (case, injected) in injected() {
        if case.limits().is_empty() {
            continue;
        }
        let namespace_name = format!("case-{}", case.name);
        namespace(cluster, &namespace_name, &json!({}));
        for mut object in case.limits() {
            object["metadata"]["namespace"] = namespace_name.as_str().into();
            cluster.apply(&object.to_string()).unwrap();
            if object["status"].is_object() {
                // What a controller would write.
                let patch = json!({"status": object["status"]}).to_string();
                let name = object["metadata"]["name"].as_str().unwrap();
                cluster
                    .kubectl([
                        "patch",
                        "resourcequota",
                        name,
                        "-n",
                        &namespace_name,
                        "--subresource=status",
                        "--type=merge",
                        "-p",
                        &patch,
                    ])
                    .unwrap();
            }
        }
        let pod = named(&injected.pod, &case, &namespace_name);
        let (accepted, refused) = dry_run(cluster, &[pod]);
        let Some(made) = accepted.get(&case.name) else {
            panic!("{}: {refused}", case.name);
        };
        // The server's own defaults of the namespace are in it, and they are not ours to take away.
        let Injection::Injected(again) = case.inject_pod(made) else {
            panic!("{}: not injected again", case.name);
        };
        let patch = again.patch(made);
        assert!(patch.is_empty(), "{}: {patch}", case.name);
        checked += 1;
    }
    assert!(checked >= 4, "{checked}");
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod kubernetes_1_36 {
            $(#[test] fn $name() { super::$name(&super::NEWEST); })*
        }
        mod kubernetes_1_34 {
            $(#[test] fn $name() { super::$name(&super::OLDEST); })*
        }
    };
}

on_both!(
    what_is_accepted_without_an_agent_is_accepted_with_one,
    the_agent_holds_no_token_for_the_api_server,
    a_call_after_the_server_s_defaults_changes_nothing,
    the_class_of_service_stays,
    limits_and_quotas_are_kept,
);
