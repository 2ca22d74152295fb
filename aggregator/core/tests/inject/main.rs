//! Real-shaped pods through the injector, compared with what is kept: `corpus/*.yaml` and beside each `*.out.yaml`, the
//! pod with its agent, or `*.skip.txt`, the reason why it gets none.
//!
//! A file may begin with the Namespace, LimitRanges and ResourceQuotas that hold around its pod.
//! `HEALTHSCOPE_UPDATE_GOLDEN=1 cargo test -p healthscope-core --test inject` writes what is kept anew.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "a test reads its files")]

mod corpus;
mod properties;

use {
    corpus::{Case, options},
    healthscope_core::inject::{Injection, SkipReason, uninject},
    serde_json::{Value, json},
    std::{collections::BTreeSet, fs},
};

#[test]
fn the_corpus_is_injected_as_it_is_kept() {
    let is_update = std::env::var_os("HEALTHSCOPE_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in Case::all() {
        let (kept, other, found) = match case.inject() {
            Injection::Injected(injected) => {
                let mut text = serde_saphyr::to_string(&injected.pod).unwrap();
                for note in &injected.notes {
                    text.push_str(&format!("# {}: {note}\n", note.reason.as_str()));
                }
                (case.beside("out.yaml"), case.beside("skip.txt"), text)
            }
            Injection::Skipped(reason) => {
                let text = format!("{}: {reason}\n", reason.code());
                (case.beside("skip.txt"), case.beside("out.yaml"), text)
            }
        };
        if is_update {
            fs::write(&kept, &found).unwrap();
            let _was_not_there = fs::remove_file(&other);
        }
        if fs::read_to_string(&kept).unwrap_or_default() != found || other.exists() {
            wrong.push(format!("{}:\n{found}", kept.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "not as kept (HEALTHSCOPE_UPDATE_GOLDEN=1 writes it anew):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_corpus_is_large_and_shows_most_reasons() {
    let cases = Case::all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let with_limits = cases.iter().filter(|case| !case.limits().is_empty()).count();
    assert!(with_limits >= 8, "{with_limits}");
    let shown: BTreeSet<&str> = cases
        .iter()
        .filter_map(|case| match case.inject() {
            Injection::Skipped(reason) => Some(reason.code()),
            Injection::Injected(_) => None,
        })
        .collect();
    let missing: Vec<_> = SkipReason::CODES
        .into_iter()
        .filter(|code| !shown.contains(code))
        .collect();
    // These depend on the program's settings, not on the pod, or on pods too large or too wrong to be kept here.
    let others = [
        "NotAPod",
        "NoServiceAccount",
        "TooLarge",
        "OldKubernetes",
        "BreakerOpen",
    ];
    assert_eq!(missing, others);
}

/// What an API server that we know fills in where nothing is said.
fn with_defaults(pod: &Value) -> Value {
    fn fill(object: &mut Value, defaults: &Value) {
        let (Some(object), Some(defaults)) = (object.as_object_mut(), defaults.as_object()) else {
            return;
        };
        for (key, value) in defaults {
            object.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    let mut pod = pod.clone();
    for field in ["containers", "initContainers"] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            fill(
                container,
                &json!({"imagePullPolicy": "Always", "resources": {}, "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File"}),
            );
            for variable in container["env"].as_array_mut().into_iter().flatten() {
                if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
                    fill(reference, &json!({"apiVersion": "v1"}));
                }
            }
            for slot in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if container[slot].is_object() {
                    fill(
                        &mut container[slot],
                        &json!({"periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3}),
                    );
                    if let Some(http) = container[slot].get_mut("httpGet") {
                        fill(http, &json!({"path": "/", "scheme": "HTTP"}));
                    }
                }
            }
        }
    }
    for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        if volume["projected"].is_object() {
            fill(&mut volume["projected"], &json!({"defaultMode": 420}));
        }
    }
    fill(
        &mut pod["spec"],
        &json!({"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler"}),
    );
    pod
}

#[test]
fn a_second_call_changes_nothing_even_after_defaults_were_filled_in() {
    for case in Case::all() {
        let Injection::Injected(first) = case.inject() else {
            continue;
        };
        let Injection::Injected(second) = case.inject_pod(&first.pod) else {
            panic!("{}: was injected once and not twice", case.name);
        };
        assert_eq!(second.pod, first.pod, "{}", case.name);
        assert!(second.patch(&first.pod).is_empty(), "{}", case.name);

        let defaulted = with_defaults(&first.pod);
        let Injection::Injected(third) = case.inject_pod(&defaulted) else {
            panic!("{}: was injected once and not again", case.name);
        };
        let patch = third.patch(&defaulted);
        assert!(patch.is_empty(), "{}: {patch}", case.name);
    }
}

#[test]
fn the_patch_makes_the_injected_pod_out_of_the_one_given() {
    for case in Case::all() {
        let Injection::Injected(injected) = case.inject() else {
            continue;
        };
        let patch = injected.patch(&case.pod);
        let mut patched = case.pod.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, injected.pod, "{}", case.name);
        // Nothing of the user's is written again: containers before which the agent is put are not touched.
        for operation in patch.iter() {
            let path = operation.path().to_string();
            let field = path.strip_prefix("/spec/initContainers/");
            assert!(
                field.is_none_or(|field| field == "0"),
                "{}: {operation}",
                case.name
            );
        }
    }
}

#[test]
fn nothing_of_the_user_s_is_lost() {
    for case in Case::all() {
        let Injection::Injected(injected) = case.inject() else {
            continue;
        };
        let found = corpus::without_empty(&uninject(&injected.pod).unwrap());
        let mut given = corpus::without_empty(&case.pod);
        corpus::take_over_default_container(&mut given, &found);
        assert_eq!(found, given, "{}", case.name);
    }
}

/// The mounts of our volume in a container.
fn mounts_of_ours(container: &Value) -> Vec<&Value> {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts
        .filter(|mount| {
            mount["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("healthscope"))
        })
        .collect()
}

#[test]
fn a_container_is_given_its_own_directory_to_read_and_nothing_else_of_ours() {
    let mut seen = 0;
    for case in Case::all() {
        let Injection::Injected(injected) = case.inject() else {
            continue;
        };
        for list in ["containers", "initContainers"] {
            for container in injected.pod["spec"][list].as_array().into_iter().flatten() {
                if container["name"] == "healthscope-agent" {
                    continue;
                }
                let own = json!({"name": "healthscope", "mountPath": "/healthscope", "subPath": container["name"], "readOnly": true});
                for mount in mounts_of_ours(container) {
                    assert_eq!(*mount, own, "{}", case.name);
                    seen += 1;
                }
            }
        }
        let ephemeral = &injected.pod["spec"]["ephemeralContainers"];
        for container in ephemeral.as_array().into_iter().flatten() {
            assert_eq!(mounts_of_ours(container), Vec::<&Value>::new(), "{}", case.name);
        }
    }
    assert!(seen >= 10, "only {seen} were looked at");
}

/// The commands after each `-c N` in a command line of the runner, up to `--`.
fn commands_of(line: &[String]) -> Vec<Vec<String>> {
    let mut words = line.iter();
    let mut commands = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => break,
            "-c" => {
                let count = words.next().unwrap().parse().unwrap();
                commands.push(words.by_ref().take(count).cloned().collect());
            }
            _ => {}
        }
    }
    commands
}

/// Every list of words in a document, wherever it is, also in text that is a document itself.
fn word_lists(value: &Value, found: &mut BTreeSet<Vec<String>>) {
    match value {
        Value::Array(items) => {
            let words: Option<Vec<String>> = items
                .iter()
                .map(|item| item.as_str().map(ToOwned::to_owned))
                .collect();
            found.extend(words);
            items.iter().for_each(|item| word_lists(item, found));
        }
        Value::Object(fields) => fields.values().for_each(|field| word_lists(field, found)),
        Value::String(text) => {
            if let Ok(inner @ (Value::Array(_) | Value::Object(_))) = serde_saphyr::from_str::<Value>(text) {
                word_lists(&inner, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn a_runner_knows_no_command_that_is_not_in_the_pod_as_its_owner_wrote_it() {
    let mut seen = 0;
    for case in Case::all() {
        let Injection::Injected(injected) = case.inject() else {
            continue;
        };
        let mut written = BTreeSet::new();
        word_lists(&case.pod, &mut written);
        for container in injected.pod["spec"]["containers"].as_array().unwrap() {
            let handlers = [
                "/livenessProbe/exec/command",
                "/readinessProbe/exec/command",
                "/startupProbe/exec/command",
                "/lifecycle/postStart/exec/command",
            ];
            for line in handlers.iter().filter_map(|handler| container.pointer(handler)) {
                let line: Vec<String> = serde_json::from_value(line.clone()).unwrap();
                if line[0] != "/healthscope/runner" {
                    continue;
                }
                for command in commands_of(&line) {
                    // A variable of the container may be filled in, because a hook's command has none.
                    let is_written = written.iter().any(|words| {
                        words.len() == command.len()
                            && words
                                .iter()
                                .zip(&command)
                                .all(|(word, found)| word == found || word.contains("$("))
                    });
                    assert!(is_written, "{}: {command:?}", case.name);
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 10, "only {seen} were looked at");
}

#[test]
fn containers_that_others_add_later_are_seen_at_the_second_call() {
    let cases = Case::all();
    let case = cases.iter().find(|case| case.name == "http-readiness").unwrap();
    let Injection::Injected(first) = case.inject() else {
        panic!("not injected");
    };
    let mut meshed = with_defaults(&first.pod);
    let proxy = json!({
        "name": "istio-proxy", "image": "proxy:1",
        "readinessProbe": {"httpGet": {"port": 15021, "path": "/healthz/ready"}},
        "livenessProbe": {"exec": {"command": ["pilot-agent", "alive"]}},
    });
    meshed["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .insert(0, proxy);
    let before_us = json!({"name": "istio-init", "image": "proxy:1"});
    meshed["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .insert(0, before_us);
    meshed["spec"]["volumes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "istio-token", "emptyDir": {}}));
    let Injection::Injected(second) = case.inject_pod(&meshed) else {
        panic!("not injected again");
    };
    assert_eq!((first.checks, second.checks), (1, 3));
    let names = |field: &str| -> Vec<&str> {
        let list = second.pod["spec"][field].as_array().unwrap();
        list.iter().map(|item| item["name"].as_str().unwrap()).collect()
    };
    // Others that went before us stay before us.
    assert_eq!(names("initContainers"), ["istio-init", "healthscope-agent"]);
    assert_eq!(
        names("volumes"),
        ["healthscope", "healthscope-token", "istio-token"]
    );
    assert_eq!(
        second.pod["spec"]["initContainers"][1]["command"],
        json!([
            "/healthscope-runner",
            "supervise",
            "--dir",
            "/healthscope",
            "--target",
            "istio-proxy",
            "--",
            "/healthscope-agent"
        ])
    );
    let Injection::Injected(third) = case.inject_pod(&second.pod) else {
        panic!("not injected a third time");
    };
    assert_eq!(third.pod, second.pod);
}

#[test]
fn what_the_program_s_settings_forbid_is_not_done() {
    use healthscope_core::inject::{Options, Stance};

    #[track_caller]
    fn check(case: &Case, change: impl FnOnce(&mut Options), expected: &str) {
        let mut options = options();
        change(&mut options);
        match case.inject_with(&case.pod, &options) {
            Injection::Skipped(reason) => assert_eq!(reason.code(), expected, "{reason}"),
            Injection::Injected(injected) => {
                let notes: Vec<_> = injected.notes.iter().map(|note| note.reason.as_str()).collect();
                assert_eq!(notes.join(","), expected);
            }
        }
    }
    let cases = Case::all();
    let case = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
    let web = case("http-readiness");
    check(web, |options| options.kubernetes = Some((1, 28)), "OldKubernetes");
    check(web, |options| options.kubernetes = Some((1, 29)), "");
    check(web, |options| options.kubernetes = Some((2, 0)), "");
    let why = || "three pods cannot start".to_owned();
    check(
        web,
        |options| options.stance = Stance::Off { why: why() },
        "BreakerOpen",
    );
    check(
        case("exec-two-containers"),
        |options| options.stance = Stance::WithoutCommands { why: why() },
        "NothingToCheck",
    );
    check(
        case("many-containers"),
        |options| options.stance = Stance::WithoutCommands { why: why() },
        "Unsupported",
    );
    check(
        case("exec-beside-http-liveness"),
        |options| options.post_start = true,
        "",
    );
    check(web, |options| options.admitted = true, "NoServiceAccount");
    check(
        web,
        |options| options.ca_pem = Some("x".repeat(200_000)),
        "TooLarge",
    );
}

#[test]
fn what_is_too_large_is_left_alone() {
    let probe = json!({"httpGet": {"port": 80, "path": format!("/{}", "x".repeat(200))}});
    let pod = |containers: usize| {
        let containers: Vec<Value> = (0..containers)
            .map(|number| json!({"name": format!("c{number}"), "readinessProbe": probe, "livenessProbe": probe}))
            .collect();
        json!({"spec": {"containers": containers}})
    };
    let case = Case::of(pod(500));
    let Injection::Skipped(reason) = case.inject() else {
        panic!("injected");
    };
    assert_eq!(reason.code(), "TooLarge");
    assert!(matches!(Case::of(pod(100)).inject(), Injection::Injected(_)));
}
