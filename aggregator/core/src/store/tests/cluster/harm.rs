//! What the breaker finds in the store.

use {
    super::*,
    crate::{
        breaker::{Blamed, CANARY_POD, Cause, Observed, OwnerRef, Record, Reduction, Trip},
        inject::Amounts,
        store::{FailedCreate, HarmQuestion},
    },
};

const IMAGE: &str = "example.org/agent:1";

fn question(world: &World) -> HarmQuestion {
    HarmQuestion {
        record: Record::default(),
        home: Namespace::default(),
        blamed: Blamed {
            image: IMAGE.to_owned(),
            requests: Amounts::default(),
        },
        refusals: Vec::new(),
        now: world.now().wall,
    }
}

fn found(world: &World) -> Observed {
    world.store.harm(&question(world))
}

/// `cause of Kind/owner: pod`
fn harms(observed: &Observed) -> Vec<String> {
    let words = observed.harms.iter().map(|harm| {
        let OwnerRef { kind, name } = &harm.owner;
        format!("{} of {kind}/{name}: {}", harm.cause.as_str(), harm.name)
    });
    let mut words: Vec<String> = words.collect();
    words.sort();
    words
}

/// A pod with an agent whose container is in this state.
fn with_agent(name: &str, state: &Value, ready: bool) -> Value {
    let mut pod = pod(name, json!({}), ready);
    let created = wall_start().to_string();
    pod["metadata"]["creationTimestamp"] = created.as_str().into();
    pod["spec"]["initContainers"] =
        json!([{"name": "healthscope-agent", "image": IMAGE, "restartPolicy": "Always"}]);
    pod["status"]["initContainerStatuses"] = json!([{"name": "healthscope-agent", "state": state}]);
    pod["status"]["conditions"] = json!([{
        "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": created,
    }]);
    pod
}

fn waiting(reason: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": "because"}})
}

fn of_web(pod: Value) -> Value {
    owned(pod, "apps/v1", "ReplicaSet", "web-1")
}

#[test]
fn a_pod_that_its_agent_keeps_from_starting_suffers_for_its_outermost_owner() {
    let mut world = World::cluster(&web());
    assert_eq!(harms(&found(&world)), [""; 0]);
    let stuck = of_web(with_agent("web-1-x", &waiting("ErrImagePull"), false));
    world.applied(&stuck);
    let observed = found(&world);
    assert_eq!(harms(&observed), ["ImagePull of Deployment/web: web-1-x"]);
    assert_eq!(observed.harms[0].made, wall_start());
    let owner = observed.owners.values().next().unwrap();
    assert_eq!((&*owner.api_version, &*owner.uid), ("apps/v1", "uid-web"));
    assert!(owner.template.is_some());
    // It goes on in another way.
    world.applied(&of_web(with_agent(
        "web-1-x",
        &waiting("CrashLoopBackOff"),
        false,
    )));
    assert_eq!(
        harms(&found(&world)),
        ["AgentNotStarting of Deployment/web: web-1-x"]
    );
    // It recovers, or goes.
    world.applied(&of_web(with_agent("web-1-x", &json!({"running": {}}), true)));
    assert_eq!(harms(&found(&world)), [""; 0]);
    world.applied(&stuck);
    assert_eq!(harms(&found(&world)).len(), 1);
    let mut leaving = stuck.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.applied(&leaving);
    assert_eq!(harms(&found(&world)), [""; 0]);
    world.applied(&stuck);
    world.deleted(&stuck);
    assert_eq!(harms(&found(&world)), [""; 0]);
}

#[test]
fn a_pod_whose_owners_are_not_known_suffers_for_the_one_it_names() {
    let mut world = World::cluster(&[]);
    let orphan = with_agent("late-x", &waiting("ErrImagePull"), false);
    world.applied(&owned(orphan, "apps/v1", "ReplicaSet", "late"));
    world.applied(&with_agent("alone", &waiting("ErrImagePull"), false));
    assert_eq!(
        harms(&found(&world)),
        [
            "ImagePull of Pod/alone: alone",
            "ImagePull of ReplicaSet/late: late-x"
        ]
    );
}

#[test]
fn a_refusal_counts_when_it_is_because_of_us() {
    let refused = |message: &str| {
        let mut set = workload("ReplicaSet", "web-1", json!({}), 1, 0);
        set["status"]["conditions"] = json!([{
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        owned(set, "apps/v1", "Deployment", "web")
    };
    let mut world = World::cluster(&web());
    world.applied(&refused(
        "pods \"web-1-x\" is forbidden: container web is too large",
    ));
    assert_eq!(harms(&found(&world)), [""; 0]);
    world.applied(&refused(
        "pods \"web-1-x\" is forbidden: container healthscope-agent is not welcome",
    ));
    assert_eq!(harms(&found(&world)), ["FailedCreate of Deployment/web: web-1"]);
}

#[test]
fn an_event_about_a_refusal_counts_while_its_controller_is_the_same() {
    let set = workload("StatefulSet", "db", json!({}), 1, 0);
    let world = World::cluster(&[set]);
    let look = |uid: &str, message: &str| {
        let mut question = question(&world);
        question.refusals = vec![FailedCreate {
            namespace: "default".to_owned(),
            kind: "StatefulSet".to_owned(),
            name: "db".to_owned(),
            uid: uid.to_owned(),
            at: world.now().wall,
            message: message.to_owned(),
        }];
        harms(&world.store.harm(&question))
    };
    let ours =
        "create Pod db-0 in StatefulSet db failed error: pods \"db-0\" is forbidden: healthscope-agent";
    assert_eq!(look("uid-db", ours), ["FailedCreate of StatefulSet/db: db"]);
    assert_eq!(look("uid-of-a-former", ours), [""; 0]);
    assert_eq!(look("uid-db", "no ServiceAccount"), [""; 0]);
}

#[test]
fn a_runner_is_missing_once_its_pod_has_been_ready_for_long() {
    let running = json!({"running": {}});
    let mut world = World::starting_cluster(&web());
    world.applied(&of_web(with_agent("web-1-x", &running, true)));
    let (mut agent, _) = world.pod_agent("web-1-x", "uid-web-1-x");
    world.announce(&agent, "x/y: liveness");
    // Nothing is known of the check; the agent says why.
    world.states(&mut agent, "0U");
    let reasons = |world: &World| harms(&found(world));
    assert_eq!(reasons(&world), [""; 0], "it has time");
    world.wait(31);
    assert_eq!(reasons(&world), ["CarrierMissing of Deployment/web: web-1-x"]);
    world.report(&mut agent, "0P");
    assert_eq!(reasons(&world), [""; 0]);
}

#[test]
fn the_canary_is_well_when_its_agent_says_that_the_runner_is() {
    let set = workload("StatefulSet", "healthscope-canary", json!({}), 1, 1);
    let canary = |state: &Value, ready: bool, image: &str| {
        let mut pod = with_agent(CANARY_POD, state, ready);
        pod["spec"]["initContainers"][0]["image"] = image.into();
        owned(pod, "apps/v1", "StatefulSet", "healthscope-canary")
    };
    let running = json!({"running": {}});
    let mut world = World::cluster(&[set]);
    assert_eq!(found(&world).canary, None);
    world.applied(&canary(&waiting("ErrImagePull"), false, IMAGE));
    let observed = found(&world);
    assert_eq!(observed.harms, [], "it is there to suffer");
    let seen = observed.canary.unwrap();
    assert_eq!(
        (seen.is_well, seen.suffers.as_deref()),
        (false, Some("ErrImagePull: because"))
    );
    world.applied(&canary(&running, true, IMAGE));
    let is_well = |world: &World| found(world).canary.unwrap().is_well;
    assert!(!is_well(&world), "its agent is not there");
    let (mut agent, _) = world.pod_agent(CANARY_POD, &format!("uid-{CANARY_POD}"));
    world.announce(&agent, "x/y: liveness");
    world.states(&mut agent, "0U");
    assert!(!is_well(&world), "its runner is not there");
    world.report(&mut agent, "0P");
    assert!(is_well(&world));
    world.applied(&canary(&running, true, "example.org/agent:0"));
    assert!(!is_well(&world), "it has another image");
    world.applied(&canary(&running, false, IMAGE));
    assert!(!is_well(&world), "it is not ready");
}

#[test]
fn an_owner_is_gone_only_when_its_kind_was_listed_without_it() {
    let mut question = question(&World::cluster(&[]));
    let trip = |kind: &str| Trip {
        level: crate::breaker::Level::Owner,
        namespace: Some("default".to_owned()),
        owner: Some(OwnerRef {
            kind: kind.to_owned(),
            name: "web".to_owned(),
        }),
        reduction: Reduction::Off,
        cause: Cause::ImagePull,
        message: String::new(),
        image: IMAGE.to_owned(),
        since: wall_start(),
        pods: Vec::new(),
        baseline: crate::breaker::Baseline::default(),
    };
    question.record.trips = vec![trip("Deployment"), trip("Rollout")];
    let gone = |world: &World| {
        let gone = world.store.harm(&question).gone;
        gone.into_iter().map(|(_, owner)| owner.kind).collect::<Vec<_>>()
    };
    assert_eq!(gone(&World::cluster(&[])), ["Deployment"]);
    assert_eq!(gone(&World::cluster(&web())), [""; 0]);
    let unlisted = World::fresh(StoreConfig {
        kubernetes: true,
        ..StoreConfig::default()
    });
    assert_eq!(gone(&unlisted), [""; 0]);
}
