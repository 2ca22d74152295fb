//! Objects that go, come back as others, name each other, or are larger or newer than anybody thought of; and rights that
//! are taken away: the rest of each scope is unaffected, what is said is true, and it recovers by itself.
//!
//! The aggregator is its own program. One serves all tests that leave the others alone, each in a namespace of its own;
//! those that do not take turns in a cluster of their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/faults.rs"]
mod faults;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        faults::{World, counts, deployment_ref, scopes, until, within},
        support::{Aggregator, Setup, component, condition, install},
    },
    healthscope_e2e_cluster::{Audit, Cluster, Options, tell},
    serde_json::{Value, json},
    std::{
        collections::BTreeMap,
        sync::LazyLock,
        thread,
        time::{Duration, Instant},
    },
    tokio_tungstenite::tungstenite::http::Method,
};

/// Longest wait for a status to be right again: kinds are looked for every ten seconds, and this machine has other work.
const RECOVERY: Duration = Duration::from_secs(25);
/// How long a watch may live on after the right to it was taken away: the API server asks only when one begins.
const WATCH: Duration = Duration::from_secs(40);

/// With the controllers that delete what is in a namespace; they take no interest in Deployments' statuses until they see
/// one, so members are mostly of a kind of ours.
static SHARED: LazyLock<World> = LazyLock::new(|| {
    let options = Options {
        audit: Some(Audit::Request),
        controller_manager: true,
        ..Options::control_plane()
    };
    World::new(Cluster::start(&options).unwrap())
});

static AGGREGATOR: LazyLock<Aggregator<'static>> = LazyLock::new(|| {
    SHARED.namespace("aggregator");
    SHARED.aggregator("aggregator")
});

/// For what concerns every scope.
static ALONE: LazyLock<World> = LazyLock::new(|| {
    let options = Options {
        audit: Some(Audit::Request),
        ..Options::control_plane()
    };
    World::new(Cluster::start(&options).unwrap())
});

/// A kind that no controller looks after, in a group of its own.
fn database_definition(group: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("databases.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": "Database", "plural": "databases"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    })
}

fn databases(group: &str, namespace: &str) -> String {
    format!("/apis/{group}/v1/namespaces/{namespace}/databases")
}

fn database(group: &str, name: &str, phase: &str) -> Value {
    json!({"apiVersion": format!("{group}/v1"), "kind": "Database", "metadata": {"name": name},
        "status": {"phase": phase}})
}

fn database_ref(group: &str, name: &str) -> Value {
    json!({"apiVersion": format!("{group}/v1"), "kind": "Database", "name": name,
        "healthyWhen": "object.status.phase == 'Available'"})
}

/// Installs the kind and waits until it is served.
fn define(world: &World, group: &str) {
    world.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &database_definition(group),
    );
    until("the kind to be served", || {
        world
            .request(Method::GET, &databases(group, "default"), None)
            .is_ok()
    });
}

fn undefine(world: &World, group: &str) {
    world.delete(&format!(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/databases.{group}"
    ));
    until("the kind to be gone", || {
        world
            .request(Method::GET, &databases(group, "default"), None)
            .is_err()
    });
}

fn config_map_ref(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name})
}

fn config_map(world: &World, namespace: &str, name: &str) {
    world.create(
        &format!("/api/v1/namespaces/{namespace}/configmaps"),
        &json!({"metadata": {"name": name}}),
    );
}

#[test]
fn a_kind_that_is_deleted_and_comes_back() {
    let world = &*SHARED;
    let group = "deleted.example.org";
    define(world, group);
    world.namespace("kind");
    config_map(world, "kind", "settings");
    world.create(&databases(group, "kind"), &database(group, "db", "Available"));
    let refs = [database_ref(group, "db"), config_map_ref("settings")];
    world.scope("kind", "shop", &json!({"workloadRefs": refs}));
    AGGREGATOR.until_health("kind", "shop", "Healthy");

    undefine(world, group);
    let start = Instant::now();
    let status = AGGREGATOR.until_status("to miss the kind", "kind", "shop", |status| {
        component(status, "db").is_some_and(|db| db["reason"] == "KindNotInstalled")
    });
    within(WATCH, "a kind that is gone is noticed", start.elapsed());
    assert_eq!(status["health"], "Unknown", "{status:#}");
    assert_eq!(
        component(&status, "settings").unwrap()["health"],
        "Healthy",
        "{status:#}"
    );

    define(world, group);
    world.create(&databases(group, "kind"), &database(group, "db", "Available"));
    let took = world.until_health(&AGGREGATOR, "kind", "shop", "Healthy");
    within(RECOVERY, "a kind that is back is noticed", took);
    // With its kind the object is deleted first, which is a failure as long as the kind is there.
    let healths = world.healths("kind", "shop");
    assert_eq!(
        (
            healths.first().unwrap().as_str(),
            healths.last().unwrap().as_str()
        ),
        ("Healthy", "Healthy")
    );
    assert!(healths.len() <= 6, "{healths:?}");
}

#[test]
fn a_namespace_goes_with_its_scopes() {
    let world = &*SHARED;
    let group = "gone.example.org";
    define(world, group);
    world.namespace("gone");
    for name in ["one", "two"] {
        world.create(&databases(group, "gone"), &database(group, name, "Available"));
        world.scope(
            "gone",
            name,
            &json!({"workloadRefs": [database_ref(group, name)]}),
        );
        AGGREGATOR.until_health("gone", name, "Healthy");
    }
    world.delete("/api/v1/namespaces/gone");
    until("the namespace to be gone", || {
        world
            .request(Method::GET, "/api/v1/namespaces/gone", None)
            .is_err()
    });
    AGGREGATOR.until("the scopes to be gone from the page", || {
        let (_, body) = AGGREGATOR.get("/scopes")?;
        Ok((!body.contains("\"gone\"")).then_some(()))
    });
    let asked = || {
        let asked = world.requests("aggregator-aggregator").into_iter();
        asked
            .filter(|asked| asked.0["objectRef"]["namespace"] == "gone")
            .filter(|asked| asked.verb() != "watch")
            .count()
    };
    let before = asked();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(asked(), before, "nobody asks for what is gone");
    for name in ["one", "two"] {
        let healths = world.healths("gone", name);
        assert!(healths.len() <= 2, "{name}: {healths:?}");
    }
}

#[test]
fn a_scope_made_anew_under_the_same_name_is_another() {
    let world = &*SHARED;
    world.namespace("anew");
    config_map(world, "anew", "there");
    let path = scopes("anew");
    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    let mut last = "";
    for number in 0..12 {
        let (member, health) = if number % 2 == 0 {
            ("there", "Healthy")
        } else {
            ("missing", "Unhealthy")
        };
        let object = json!({"apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
            "metadata": {"name": "shop"}, "spec": {"workloadRefs": [config_map_ref(member)]}});
        if number > 0 {
            world.delete(&format!("{path}/shop"));
        }
        let made = world.request(Method::POST, &path, Some(&object)).unwrap();
        let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        expected.insert(uid, health);
        last = health;
        // At once, soon, and after its status is there.
        thread::sleep(Duration::from_millis(150 * (number % 3)));
    }
    let took = world.until_health(&AGGREGATOR, "anew", "shop", last);
    within(RECOVERY, "the last scope of that name is right", took);
    thread::sleep(Duration::from_secs(2));
    let writes = world.writes("aggregator-aggregator");
    let writes: Vec<_> = writes
        .into_iter()
        .filter(|write| write.is("anew", "shop"))
        .collect();
    for write in writes.iter().filter(|write| write.is_done()) {
        let uid = write.0["requestObject"]["metadata"]["uid"].as_str().unwrap();
        let health = write.health();
        // A kind that was not listed yet is Unknown for a moment.
        assert!(
            health == expected[uid],
            "{uid} was given {health}: {}",
            write.status()
        );
    }
    assert!(writes.len() <= 2 * expected.len(), "{:?}", counts(&writes));
}

#[test]
fn scopes_that_name_themselves_or_each_other_say_so_and_rest() {
    let world = &*SHARED;
    world.namespace("cycle");
    let nest = |name: &str| json!({"workloadRefs": [{"kind": "HealthScope", "name": name}]});
    // Whoever names itself is told at once; an old version has no such rule, and the status says it.
    let narcissus = |version: &str| {
        let object = json!({"apiVersion": format!("core.oam.dev/{version}"), "kind": "HealthScope",
            "metadata": {"name": "narcissus"},
            "spec": {"workloadRefs": [{"apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope", "name": "narcissus"}]}});
        world.request(
            Method::POST,
            &scopes("cycle").replace("v1beta1", version),
            Some(&object),
        )
    };
    let refused = format!("{:#}", narcissus("v1beta1").unwrap_err());
    assert!(
        refused.contains("a scope cannot be a member of itself"),
        "{refused}"
    );
    narcissus("v1alpha2").unwrap();
    world.scope("cycle", "left", &nest("right"));
    world.scope("cycle", "right", &nest("left"));
    for (name, cycle) in [("left", "left → right → left"), ("right", "left → right → left")] {
        let status = AGGREGATOR.until_status("to be Stalled", "cycle", name, |status| {
            condition(status, "Stalled").is_some_and(|stalled| stalled["status"] == "True")
        });
        assert_eq!(status["health"], "Unknown", "{status:#}");
        let stalled = condition(&status, "Stalled").unwrap();
        let message = stalled["message"].as_str().unwrap();
        assert!(message.contains(cycle), "{message}");
    }
    thread::sleep(Duration::from_secs(3));
    for name in ["left", "right"] {
        let healths = world.healths("cycle", name);
        assert!(healths.len() <= 2, "{name}: {healths:?}");
    }
    let status = AGGREGATOR.until_status("to be Stalled", "cycle", "narcissus", |status| {
        condition(status, "Stalled").is_some_and(|stalled| stalled["status"] == "True")
    });
    let message = condition(&status, "Stalled").unwrap()["message"]
        .as_str()
        .unwrap();
    assert!(
        message.contains("a scope cannot be a member of itself"),
        "{message}"
    );
    world.delete(&format!("{}/narcissus", scopes("cycle")));
    world.patch(
        &format!("{}/right", scopes("cycle")),
        &json!({"spec": {"workloadRefs": []}}),
    );
    for name in ["left", "right"] {
        let status = AGGREGATOR.until_health("cycle", name, "Healthy");
        assert_eq!(
            condition(&status, "Stalled").unwrap()["status"],
            "False",
            "{status:#}"
        );
    }
}

#[test]
fn a_status_of_a_mebibyte_is_read_and_one_of_ours_is_replaced() {
    let world = &*SHARED;
    let group = "large.example.org";
    define(world, group);
    world.namespace("large");
    let blob = "x".repeat(1024 * 1024);
    let mut large = database(group, "large", "Available");
    large["status"]["blob"] = json!(blob);
    world.create(&databases(group, "large"), &large);
    let mut conventional = large.clone();
    conventional["metadata"]["name"] = json!("conventional");
    conventional["status"]["conditions"] = json!([{"type": "Ready", "status": "False", "reason": "Full",
        "message": "the disk is full"}]);
    world.create(&databases(group, "large"), &conventional);
    config_map(world, "large", "settings");
    let by_convention =
        json!({"apiVersion": format!("{group}/v1"), "kind": "Database", "name": "conventional"});
    let refs = [
        database_ref(group, "large"),
        by_convention,
        config_map_ref("settings"),
    ];
    world.scope("large", "shop", &json!({"workloadRefs": refs}));
    let status = AGGREGATOR.until_status("to tell of all", "large", "shop", |status| {
        let says = |name: &str, reason: &str| {
            component(status, name).is_some_and(|component| component["reason"] == reason)
        };
        says("conventional", "Full") && !says("large", "Syncing") && !says("settings", "Syncing")
    });
    let message = component(&status, "conventional").unwrap()["message"]
        .as_str()
        .unwrap();
    assert!(message.contains("the disk is full"), "{message}");
    let by_rule = component(&status, "large").unwrap();
    assert_eq!(by_rule["health"], "Unknown", "{by_rule}");
    tell(&format!("a rule on a status of 1 MiB: {by_rule}"));
    assert_eq!(component(&status, "settings").unwrap()["health"], "Healthy");
    assert!(status.to_string().len() < 4096, "{status}");

    // Somebody writes as much into ours.
    let start = Instant::now();
    world.patch(
        &format!("{}/shop/status", scopes("large")),
        &json!({"status": {"rootCause": blob}}),
    );
    AGGREGATOR.until_status("to be small again", "large", "shop", |status| {
        status.to_string().len() < 4096
    });
    within(RECOVERY, "a status of a mebibyte is replaced", start.elapsed());
}

#[test]
fn what_a_newer_version_wrote_stays() {
    let world = &*ALONE;
    let _turn = world.turn();
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/healthscopes.core.oam.dev";
    let mut definition = world.request(Method::GET, path, None).unwrap();
    for version in definition["spec"]["versions"].as_array_mut().unwrap() {
        let properties = &mut version["schema"]["openAPIV3Schema"]["properties"];
        for part in ["spec", "status"] {
            properties[part]["properties"]["astrology"] =
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
    }
    world.request(Method::PUT, path, Some(&definition)).unwrap();
    world.namespace("newer");
    world.deployment("newer", "web", true);
    let future = json!({"sign": "Leo", "houses": [1, 2, 3]});
    until("the newer definition to be served", || {
        let spec = json!({"workloadRefs": [deployment_ref("web")], "astrology": future});
        let object = json!({"apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
            "metadata": {"name": "shop"}, "spec": spec});
        let made = world
            .request(Method::POST, &scopes("newer"), Some(&object))
            .unwrap();
        let is_kept = made["spec"]["astrology"] == future;
        if !is_kept {
            world.delete(&format!("{}/shop", scopes("newer")));
        }
        is_kept
    });
    world.patch(
        &format!("{}/shop/status", scopes("newer")),
        &json!({"status": {"astrology": future}}),
    );
    let aggregator = world.aggregator("newer");
    aggregator.until_health("newer", "shop", "Healthy");
    world.set_ready("newer", "web", false);
    let status = aggregator.until_health("newer", "shop", "Unhealthy");
    assert_eq!(status["astrology"], future);
    assert_eq!(
        condition(&status, "Stalled").unwrap()["status"],
        "False",
        "{status:#}"
    );
    let object = world
        .request(Method::GET, &format!("{}/shop", scopes("newer")), None)
        .unwrap();
    assert_eq!(object["spec"]["astrology"], future);
    assert_eq!(world.healths("newer", "shop"), ["Healthy", "Unhealthy"]);
    world.delete(&format!("{}/shop", scopes("newer")));
    drop(aggregator);
    undo_newer(world, path);
}

fn undo_newer(world: &World, path: &str) {
    world.delete(path);
    until("the newer definition to be gone", || {
        world.request(Method::GET, path, None).is_err()
    });
    install(&world.cluster);
}

#[test]
fn five_thousand_pods_are_one_small_status() {
    const PODS: usize = 5_000;
    let world = &*SHARED;
    world.namespace("many");
    until("the ServiceAccount", || {
        let account = "/api/v1/namespaces/many/serviceaccounts/default";
        world.request(Method::GET, account, None).is_ok()
    });
    world.scope(
        "many",
        "shop",
        &json!({"selector": {"matchLabels": {"app": "many"}}}),
    );
    AGGREGATOR.until_health("many", "shop", "Healthy");
    let pods = "/api/v1/namespaces/many/pods";
    let pod = |number: usize| {
        json!({
            "metadata": {"name": format!("pod-{number}"), "labels": {"app": "many"}},
            "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "local/none"}]},
        })
    };
    let start = Instant::now();
    let requests = (0..PODS).map(|number| (Method::POST, pods.to_owned(), pod(number)));
    world.request_all(requests.collect()).unwrap();
    let made = start.elapsed();
    tell(&format!("{PODS} pods were made in {made:.1?}"));
    let start = Instant::now();
    let status = AGGREGATOR.until_status("to count all pods", "many", "shop", |status| {
        status["summary"]["total"] == PODS
    });
    within(
        RECOVERY,
        "all pods are counted after the last was made",
        start.elapsed(),
    );
    assert!(
        status.to_string().len() <= 64 * 1024,
        "{} bytes",
        status.to_string().len()
    );
    assert!(status["components"].as_array().unwrap().len() <= 50);
    assert_eq!(status["truncated"], true);

    let start = Instant::now();
    let failed =
        json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}});
    world.patch(&format!("{pods}/pod-4321/status"), &failed);
    let status = AGGREGATOR.until_status("to name the pod that failed", "many", "shop", |status| {
        status["components"][0]["name"] == "pod-4321"
    });
    within(RECOVERY, "one pod of all is noticed", start.elapsed());
    assert_eq!(status["health"], "Unhealthy", "{}", status["components"][0]);
    // At most one a second while they came, and those at the beginning.
    let writes = world.healths("many", "shop").len();
    let most = usize::try_from(made.as_secs()).unwrap() + 8;
    assert!(writes <= most, "{writes} writes, at most {most}");
    tell(&format!("{writes} statuses of them were written"));
}

#[test]
fn healthscopes_deleted_with_their_definition_come_back() {
    let world = &*ALONE;
    let _turn = world.turn();
    world.shop("definition");
    let aggregator = world.aggregator("definition");
    aggregator.until_health("definition", "shop", "Healthy");
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/healthscopes.core.oam.dev";
    world.delete(path);
    until("the definition to be gone", || {
        world.request(Method::GET, path, None).is_err()
    });
    aggregator.until("the scopes to be gone from the page", || {
        let (_, body) = aggregator.get("/scopes")?;
        Ok((!body.contains("\"definition\"")).then_some(()))
    });
    world.set_ready("definition", "db", false);
    thread::sleep(Duration::from_secs(8));
    let complaints = aggregator.log().matches("is not installed; install it").count();
    assert!((1..=3).contains(&complaints), "said {complaints} times in 8 s");

    install(&world.cluster);
    let refs = [deployment_ref("web"), deployment_ref("db")];
    world.scope("definition", "shop", &json!({"workloadRefs": refs}));
    let took = world.until_health(&aggregator, "definition", "shop", "Unhealthy");
    within(RECOVERY, "right after the definition came back", took);
    world.set_ready("definition", "db", true);
    aggregator.until_health("definition", "shop", "Healthy");
    assert_eq!(
        world.healths("definition", "shop"),
        ["Healthy", "Unhealthy", "Healthy"]
    );
    world.delete(&format!("{}/shop", scopes("definition")));
}

#[test]
fn rights_that_are_taken_away_and_given_back() {
    let world = &*ALONE;
    let _turn = world.turn();
    let user = "aggregator-rights";
    let rules = [
        (
            "rest",
            json!([
                {"apiGroups": ["core.oam.dev"], "resources": ["healthscopes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["apps"], "resources": ["replicasets", "statefulsets", "daemonsets"],
                    "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["batch"], "resources": ["jobs", "cronjobs"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
            ]),
        ),
        (
            "read",
            json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]}]),
        ),
        (
            "write",
            json!([{"apiGroups": ["core.oam.dev"], "resources": ["healthscopes/status"], "verbs": ["update"]}]),
        ),
    ];
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let bind = |role: &str| {
        world.create(
            &format!("{roles}/clusterrolebindings"),
            &json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }),
        );
    };
    for (role, rules) in rules {
        world.create(
            &format!("{roles}/clusterroles"),
            &json!({"metadata": {"name": role}, "rules": rules}),
        );
        bind(role);
    }
    world.shop("rights");
    let sets = "/apis/apps/v1/namespaces/rights/statefulsets";
    world.create(
        sets,
        &json!({"metadata": {"name": "set"}, "spec": {"replicas": 0, "serviceName": "set",
        "selector": {"matchLabels": {"app": "set"}}, "template": {"metadata": {"labels": {"app": "set"}},
            "spec": {"containers": [{"name": "main", "image": "local/none"}]}}}}),
    );
    world.patch(
        &format!("{sets}/set/status"),
        &json!({"status": {"observedGeneration": 1, "replicas": 0}}),
    );
    let refs = [
        deployment_ref("web"),
        deployment_ref("db"),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set"}),
    ];
    world.patch(
        &format!("{}/shop", scopes("rights")),
        &json!({"spec": {"workloadRefs": refs}}),
    );
    let setup = Setup {
        kubeconfig: Some(world.cluster.kubeconfig_for(user, None).unwrap()),
        ..Setup::default()
    };
    let aggregator = world.launch(user, "rights", setup);
    aggregator.wait_ready();
    aggregator.until_health("rights", "shop", "Healthy");

    // To write.
    world.delete(&format!("{roles}/clusterrolebindings/write"));
    thread::sleep(Duration::from_secs(1));
    world.set_ready("rights", "db", false);
    thread::sleep(Duration::from_secs(5));
    let refused = world
        .writes(user)
        .iter()
        .filter(|write| write.code() == 403)
        .count();
    assert!((1..=6).contains(&refused), "{refused} writes were refused in 5 s");
    bind("write");
    let took = world.until_health(&aggregator, "rights", "shop", "Unhealthy");
    within(RECOVERY, "right after the right to write came back", took);
    world.set_ready("rights", "db", true);
    aggregator.until_health("rights", "shop", "Healthy");

    // To read.
    world.delete(&format!("{roles}/clusterrolebindings/read"));
    let start = Instant::now();
    let status = aggregator.until_health("rights", "shop", "Unknown");
    within(WATCH, "a right that is gone is noticed", start.elapsed());
    for name in ["web", "db"] {
        let component = component(&status, name).unwrap();
        assert_eq!(component["reason"], "Forbidden", "{component}");
        let message = component["message"].as_str().unwrap();
        let rule = "{apiGroups: [\"apps\"], resources: [deployments], verbs: [list, watch]}";
        assert!(message.contains(rule), "{message}");
    }
    assert_eq!(
        component(&status, "set").unwrap()["health"],
        "Healthy",
        "{status:#}"
    );
    thread::sleep(Duration::from_secs(5));
    bind("read");
    let took = world.until_health(&aggregator, "rights", "shop", "Healthy");
    within(RECOVERY, "right after the right to read came back", took);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(
        world.healths("rights", "shop"),
        ["Healthy", "Unhealthy", "Healthy", "Unknown", "Healthy"]
    );
    world.delete(&format!("{}/shop", scopes("rights")));
}
