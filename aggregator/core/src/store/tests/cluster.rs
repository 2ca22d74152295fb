//! The store beside a Kubernetes cluster: what its watches say, and agents that speak for pods.

use {
    super::*,
    crate::{
        event::{ClusterEvent, Unavailable, Watched},
        platform::{DecodeOptions, Object, decode},
        wanted::STANDARD,
    },
    serde_json::{Value, json},
};

mod harm;

impl World {
    /// Beside a cluster whose objects of the standard kinds are these; the time of grace is over.
    fn cluster(objects: &[Value]) -> Self {
        let mut world = Self::starting_cluster(objects);
        world.wait(100);
        world
    }

    /// The same, just started.
    fn starting_cluster(objects: &[Value]) -> Self {
        let mut world = Self::fresh(StoreConfig {
            kubernetes: true,
            ..StoreConfig::default()
        });
        for watched in STANDARD.map(|(api_version, kind, _)| watched(api_version, kind, None)) {
            world.list(watched, objects);
        }
        world
    }

    /// A watch lists its objects, of which these may be some.
    fn list(&mut self, watched: Watched, objects: &[Value]) {
        self.says(ClusterEvent::Listing(watched.clone()));
        for object in objects
            .iter()
            .map(object)
            .filter(|object| watched.covers(&object.key))
        {
            self.says(ClusterEvent::Applied(Box::new(object)));
        }
        self.says(ClusterEvent::Listed(watched));
    }

    fn says(&mut self, event: ClusterEvent) {
        assert_eq!(self.apply(Event::Cluster(event)), Answer::Done);
    }

    fn applied(&mut self, value: &Value) {
        self.says(ClusterEvent::Applied(Box::new(object(value))));
    }

    fn deleted(&mut self, value: &Value) {
        let Object { key, uid, .. } = object(value);
        self.says(ClusterEvent::Deleted { key, uid });
    }

    /// The agent of a pod connects; its name follows from the pod's.
    fn pod_agent(&mut self, pod: &str, uid: &str) -> (Agent, Answer) {
        self.sessions += 1;
        let agent = Agent {
            name: Box::leak(format!("default.{pod}").into_boxed_str()),
            epoch: 1,
            session: SessionId(self.sessions),
            seq: 0,
            acked: 0,
        };
        let answer = self.apply(Event::Opened(Opened {
            session: agent.session,
            agent: AgentName::new(agent.name).unwrap(),
            epoch: Epoch(1),
            seq: Seq(0),
            acked: Seq(0),
            version: "0.1.0".into(),
            peer: "10.0.0.1".into(),
            pod: Some(Box::new(PodRef {
                namespace: Namespace::default(),
                name: Name::new(pod).unwrap(),
                uid: uid.into(),
            })),
        }));
        (agent, answer)
    }

    /// `name: health reason` of the members, worst first.
    fn members(&self, scope: &str) -> Vec<String> {
        let members = self.scope(scope).components;
        let words = members.iter().map(|member| {
            let component = &member.component;
            format!("{}: {} {}", component.name, component.health, component.reason)
        });
        words.collect()
    }

    fn entry(&self, scope: &str) -> Arc<crate::snapshot::ScopeEntry> {
        let key = ScopeKey {
            namespace: Namespace::default(),
            name: Name::new(scope).unwrap(),
        };
        Arc::clone(&self.store.snapshot().scopes[&key])
    }
}

fn watched(api_version: &str, kind: &str, namespace: Option<&str>) -> Watched {
    Watched {
        group: api_version.rsplit_once('/').map_or("", |(group, _)| group).into(),
        kind: kind.parse().unwrap(),
        namespace: namespace.map(|namespace| Namespace::new(namespace).unwrap()),
    }
}

fn object(value: &Value) -> Object {
    decode(value, &DecodeOptions::default()).unwrap()
}

fn workload(kind: &str, name: &str, labels: impl serde::Serialize, wanted: u32, ready: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels,
            "generation": 1},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 1, "replicas": wanted, "readyReplicas": ready, "availableReplicas": ready}})
}

fn owned(mut object: Value, api_version: &str, kind: &str, name: &str) -> Value {
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": api_version, "kind": kind, "name": name,
        "uid": format!("uid-{name}"), "controller": true}]);
    object
}

/// A pod that runs our agent.
fn pod(name: &str, labels: impl serde::Serialize, ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels},
        "spec": {"containers": [{"name": "main"}], "initContainers": [{"name": "healthscope-agent"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}})
}

/// A pod of the Deployment `web` and the ReplicaSet between.
fn web() -> [Value; 3] {
    [
        workload("Deployment", "web", json!({"app": "shop"}), 1, 1),
        owned(
            workload("ReplicaSet", "web-1", json!({}), 1, 1),
            "apps/v1",
            "Deployment",
            "web",
        ),
        owned(pod("web-1-a", json!({}), true), "apps/v1", "ReplicaSet", "web-1"),
    ]
}

const BY_LABEL: &str = r#"{"selector": {"matchLabels": {"app": "shop"}}}"#;

#[test]
fn labels_on_workloads_and_on_pods_make_members() {
    let mut world = World::cluster(&web());
    world.configure(&[("shop", BY_LABEL), ("other", "{}")], &[]);
    assert_eq!(world.members("shop").len(), 1);
    assert!(world.members("other").is_empty());
    // A label on the pod means the workload at the top of its owners.
    let labelled = pod("web-1-a", json!({"healthscope.core.oam.dev/other": "true"}), true);
    world.applied(&owned(labelled, "apps/v1", "ReplicaSet", "web-1"));
    assert!(world.members("other")[0].starts_with("web: "));
    // What is owned is no member of its own.
    let labelled = workload("ReplicaSet", "web-1", json!({"app": "shop"}), 1, 1);
    world.applied(&owned(labelled, "apps/v1", "Deployment", "web"));
    assert_eq!(world.members("shop").len(), 1);
    let [_, _, plain] = web();
    world.applied(&plain);
    assert!(world.members("other").is_empty());
    world.applied(&workload("Deployment", "web", json!({}), 1, 1));
    // The ReplicaSet still says so, and so means its owner.
    assert!(world.members("shop").is_empty());
}

#[test]
fn what_nobody_owns_stands_for_itself_and_a_job_for_its_cronjob() {
    let label = json!({"app": "shop"});
    let job = |name: &str| {
        json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "status": {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}})
    };
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "report", "namespace": "default", "uid": "uid-report"}});
    let mut static_pod = owned(pod("dns-node1", label.clone(), true), "v1", "Node", "node1");
    static_pod["spec"]["initContainers"] = json!([]);
    let mut bare = pod("bare", label.clone(), true);
    bare["spec"]["initContainers"] = json!([]);
    let mut of_job = owned(pod("report-1-x", label, true), "batch/v1", "Job", "report-1");
    of_job["spec"]["initContainers"] = json!([]);
    let world = {
        let mut world = World::cluster(&[
            bare,
            static_pod,
            of_job,
            owned(job("report-1"), "batch/v1", "CronJob", "report"),
            cron,
        ]);
        world.configure(&[("shop", BY_LABEL)], &[]);
        world
    };
    let mut found: Vec<String> = world
        .scope("shop")
        .components
        .iter()
        .map(|member| format!("{}/{}", member.component.kind, member.component.name))
        .collect();
    found.sort();
    assert_eq!(found, ["CronJob/report", "Pod/bare", "Pod/dns-node1"]);
}

#[test]
fn a_named_object_is_not_found_only_when_its_kind_was_listed() {
    let mut world = World::cluster(&[]);
    let database = watched("db.example.org/v1", "Database", Some("default"));
    world.configure(
        &[(
            "shop",
            r#"{"workloadRefs": [{"apiVersion": "db.example.org/v1", "kind": "Database", "name": "db"}]}"#,
        )],
        &[],
    );
    assert_eq!(world.members("shop"), ["db: Unknown Syncing"]);
    assert!(!world.entry("shop").settled);
    world.says(ClusterEvent::Unavailable(
        database.clone(),
        Unavailable::NotInstalled,
    ));
    assert_eq!(world.members("shop"), ["db: Unknown KindNotInstalled"]);
    assert!(world.entry("shop").settled);
    let rule = "{apiGroups: [db.example.org], resources: [databases], verbs: [list, watch]}".to_owned();
    world.says(ClusterEvent::Unavailable(
        database.clone(),
        Unavailable::Forbidden { rule },
    ));
    assert_eq!(world.members("shop"), ["db: Unknown Forbidden"]);
    let message = world.scope("shop").components[0].component.message.clone();
    assert_eq!(
        message,
        "kind Database may not be read: add the rule {apiGroups: [db.example.org], resources: [databases], verbs: \
         [list, watch]} in a ClusterRole labelled healthscope.core.oam.dev/aggregate-to-aggregator: \"true\""
    );
    world.list(database.clone(), &[]);
    assert_eq!(world.members("shop"), ["db: Unhealthy NotFound"]);
    let db = json!({"apiVersion": "db.example.org/v1", "kind": "Database",
        "metadata": {"name": "db", "namespace": "default", "uid": "1"}});
    world.applied(&db);
    assert_eq!(world.scope("shop").health, Health::Healthy);
    // Nobody names it any more, and later somebody does again.
    world.configure(&[("shop", "{}")], &[]);
    world.says(ClusterEvent::Unwatched(database));
    assert_eq!(world.scope("shop").summary.total, 0);
}

#[test]
fn a_new_scope_is_written_without_its_unlisted_members_after_a_while() {
    let mut world = World::cluster(&[]);
    world.configure(
        &[(
            "shop",
            r#"{"workloadRefs": [{"apiVersion": "v1", "kind": "Service", "name": "web"}]}"#,
        )],
        &[],
    );
    assert!(!world.entry("shop").settled);
    world.wait(10);
    assert!(world.entry("shop").settled);
    assert_eq!(world.scope("shop").health, Health::Unknown);
}

#[test]
fn what_a_second_list_does_not_bring_is_gone() {
    let mut world = World::cluster(&web());
    world.configure(&[("shop", BY_LABEL)], &[]);
    let others = [workload("Deployment", "cart", json!({"app": "shop"}), 1, 1)];
    world.list(watched("apps/v1", "Deployment", None), &others);
    let names: Vec<String> = world.members("shop");
    assert_eq!(names, ["cart: Healthy Passing"]);
}

#[test]
fn a_pods_agent_joins_the_view_of_the_platform() {
    let mut world = World::cluster(&web());
    world.configure(&[("shop", BY_LABEL)], &[]);
    // The pod runs for long and its agent has not come.
    assert_eq!(world.members("shop"), ["web: Unknown AgentLost"]);
    let (mut agent, answer) = world.pod_agent("web-1-a", "uid-web-1-a");
    assert!(matches!(answer, Answer::Opened { .. }));
    // What it says of its component and instance does not count.
    assert_eq!(world.announce(&agent, "evil/other: readiness"), Answer::Done);
    world.states(&mut agent, "0P");
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
    world.report(&mut agent, "0F");
    assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
    let failing = &world.scope("shop").components[0].component.failing;
    assert_eq!(failing[0].instance.as_str(), "web-1-a");
    world.report(&mut agent, "0P");
    // The platform's view counts where it is worse.
    world.applied(&workload("Deployment", "web", json!({"app": "shop"}), 3, 1));
    assert!(world.members("shop")[0].starts_with("web: Degraded"));
}

#[test]
fn a_pod_that_is_not_in_the_watch_has_no_agent() {
    let mut world = World::cluster(&web());
    for (pod, uid) in [("web-1-a", "another"), ("nobody", "uid-nobody")] {
        let (_, answer) = world.pod_agent(pod, uid);
        assert!(
            matches!(answer, Answer::Refused(Refusal::UnknownPod { .. })),
            "{pod} {uid}: {answer:?}"
        );
    }
    // Its owner is not known yet, so nobody could say whose work it does.
    let orphan = owned(pod("late-a", json!({}), true), "apps/v1", "ReplicaSet", "late");
    world.applied(&orphan);
    let (_, answer) = world.pod_agent("late-a", "uid-late-a");
    assert!(matches!(answer, Answer::Refused(Refusal::UnknownPod { .. })));
    // One that is being deleted is as good as gone.
    let mut leaving = pod("leaving", json!({}), true);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.applied(&leaving);
    let (_, answer) = world.pod_agent("leaving", "uid-leaving");
    assert!(matches!(answer, Answer::Refused(Refusal::UnknownPod { .. })));
}

#[test]
fn a_pod_that_goes_takes_its_instance_with_it_and_fails_nothing() {
    for terminates in [true, false] {
        let mut objects = web().to_vec();
        objects.push(owned(
            pod("web-1-b", json!({}), true),
            "apps/v1",
            "ReplicaSet",
            "web-1",
        ));
        let mut world = World::cluster(&objects);
        world.configure(&[("shop", BY_LABEL)], &[]);
        let mut sessions = Vec::new();
        for name in ["web-1-a", "web-1-b"] {
            let (mut agent, _) = world.pod_agent(name, &format!("uid-{name}"));
            world.announce(&agent, "x/y: readiness");
            world.states(&mut agent, "0P");
            sessions.push(agent.session);
        }
        assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
        world.told.clear();
        if terminates {
            let mut leaving = objects[2].clone();
            leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            world.applied(&leaving);
        } else {
            world.deleted(&objects[2]);
        }
        assert_eq!(world.store.take_evicted(), sessions[..1]);
        world.expect(&[]);
        let view = world.scope("shop");
        assert_eq!(view.components[0].component.instances.total, 1);
    }
}

#[test]
fn a_pod_that_is_over_takes_its_instance_with_it_and_a_job_is_healthy_by_itself() {
    let job = json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "once", "namespace": "default", "uid": "uid-once", "labels": {"app": "shop"}},
        "status": {"conditions": [{"type": "Complete", "status": "True"}]}});
    let running = owned(pod("once-a", json!({}), true), "batch/v1", "Job", "once");
    let mut world = World::cluster(&[job, running.clone()]);
    world.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = world.pod_agent("once-a", "uid-once-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0F");
    assert_eq!(world.members("shop"), ["once: Unhealthy ReadinessFailed"]);
    for phase in ["Succeeded", "Failed"] {
        let mut over = running.clone();
        over["status"]["phase"] = json!(phase);
        world.applied(&over);
        assert_eq!(world.scope("shop").health, Health::Healthy, "{phase}");
    }
    assert_eq!(world.store.take_evicted(), [agent.session]);
    world.wait(100);
    assert_eq!(world.scope("shop").health, Health::Healthy);
    let (_, answer) = world.pod_agent("once-a", "uid-once-a");
    assert!(matches!(answer, Answer::Refused(Refusal::UnknownPod { .. })));
}

#[test]
fn the_newest_session_of_a_pod_wins() {
    let mut world = World::cluster(&web());
    let (first, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    let (_, answer) = world.pod_agent("web-1-a", "uid-web-1-a");
    let Answer::Opened { evicted, .. } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(evicted, Some(first.session));
}

/// The scope of [`BY_LABEL`] as a former aggregator left it.
fn inherited(world: &World) -> HealthScope {
    let mut object = world.entry("shop").to_object();
    object.metadata.uid = Some("1".into());
    object.metadata.generation = Some(1);
    object.status.as_mut().unwrap().observed_generation = Some(1);
    for condition in &mut object.status.as_mut().unwrap().conditions {
        condition.observed_generation = Some(1);
    }
    object
}

#[test]
fn after_a_restart_a_scope_says_what_it_said_until_agents_are_back() {
    let mut before = World::cluster(&web());
    before.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = before.pod_agent("web-1-a", "uid-web-1-a");
    before.announce(&agent, "x/y: readiness");
    before.states(&mut agent, "0F");
    assert_eq!(before.scope("shop").health, Health::Unhealthy);
    let object = Arc::new(inherited(&before));

    let restart = || {
        let mut world = World::starting_cluster(&web());
        world.apply(Event::Configured(Configuration {
            scopes: vec![Arc::clone(&object)],
            unreadable: Vec::new(),
            components: Vec::new(),
        }));
        let entry = world.entry("shop");
        assert_eq!((entry.settled, entry.view.health), (false, Health::Unhealthy));
        world
    };
    // The agent comes back and says the same: there is nothing to write.
    let mut world = restart();
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0F");
    let entry = world.entry("shop");
    assert!(entry.settled);
    let written = object.status.as_ref().unwrap();
    assert!(!crate::status::means_different(&entry.status, written));
    assert_eq!(
        entry.status.last_aggregate_timestamp,
        written.last_aggregate_timestamp
    );
    world.told.retain(|told| told.starts_with("scope"));
    world.expect(&[]);
    // Or it is well meanwhile.
    let mut world = restart();
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0P");
    assert_eq!(world.scope("shop").health, Health::Healthy);
    world.told.retain(|told| told.starts_with("scope"));
    world.expect(&["scope shop Unhealthy → Healthy (AllHealthy)"]);
    // Or it never comes.
    let mut world = restart();
    world.wait(29);
    assert!(!world.entry("shop").settled);
    world.wait(1);
    assert!(world.entry("shop").settled);
    assert_eq!(world.members("shop"), ["web: Unknown AgentLost"]);
}

#[test]
fn after_a_restart_the_first_of_two_agents_changes_nothing() {
    let second = owned(pod("web-1-b", json!({}), true), "apps/v1", "ReplicaSet", "web-1");
    let objects: Vec<Value> = web().into_iter().chain([second]).collect();
    let both = ["web-1-a", "web-1-b"];
    let comes = |world: &mut World, pod: &str| {
        let (mut agent, _) = world.pod_agent(pod, &format!("uid-{pod}"));
        world.announce(&agent, "x/y: readiness");
        world.states(&mut agent, "0P");
    };
    let mut before = World::cluster(&objects);
    before.configure(&[("shop", BY_LABEL)], &[]);
    both.iter().for_each(|pod| comes(&mut before, pod));
    assert_eq!(before.scope("shop").health, Health::Healthy);
    let object = Arc::new(inherited(&before));

    let mut world = World::starting_cluster(&objects);
    world.apply(Event::Configured(Configuration {
        scopes: vec![Arc::clone(&object)],
        unreadable: Vec::new(),
        components: Vec::new(),
    }));
    comes(&mut world, both[0]);
    let entry = world.entry("shop");
    assert_eq!((entry.settled, entry.view.health), (false, Health::Healthy));
    comes(&mut world, both[1]);
    let entry = world.entry("shop");
    assert_eq!((entry.settled, entry.view.health), (true, Health::Healthy));
    world.told.retain(|told| told.starts_with("scope"));
    world.expect(&[]);
}

#[test]
fn what_is_certain_is_told_at_once_even_after_a_restart() {
    let mut before = World::cluster(&[workload("Deployment", "web", json!({"app": "shop"}), 1, 1)]);
    before.configure(&[("shop", BY_LABEL)], &[]);
    assert_eq!(before.scope("shop").health, Health::Healthy);
    let object = Arc::new(inherited(&before));
    let mut world = World::starting_cluster(&[workload("Deployment", "web", json!({"app": "shop"}), 1, 0)]);
    world.apply(Event::Configured(Configuration {
        scopes: vec![object],
        unreadable: Vec::new(),
        components: Vec::new(),
    }));
    let entry = world.entry("shop");
    assert_eq!((entry.settled, entry.view.health), (true, Health::Unhealthy));
}

#[test]
fn after_a_restart_an_unhealthy_scope_does_not_forget_what_its_other_members_were() {
    let mut objects = web().to_vec();
    objects.push(workload("Deployment", "db", json!({"app": "shop"}), 1, 0));
    let mut before = World::cluster(&objects);
    before.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = before.pod_agent("web-1-a", "uid-web-1-a");
    before.announce(&agent, "x/y: readiness");
    before.states(&mut agent, "0P");
    assert_eq!(before.scope("shop").health, Health::Unhealthy);
    let object = Arc::new(inherited(&before));
    let mut world = World::starting_cluster(&objects);
    world.apply(Event::Configured(Configuration {
        scopes: vec![Arc::clone(&object)],
        unreadable: Vec::new(),
        components: Vec::new(),
    }));
    assert!(!world.entry("shop").settled);
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0P");
    let entry = world.entry("shop");
    assert!(entry.settled);
    assert!(!crate::status::means_different(
        &entry.status,
        object.status.as_ref().unwrap()
    ));
}

#[test]
fn a_pod_that_has_just_come_makes_nothing_worse_before_its_agent_has_found_something() {
    let mut objects = web().to_vec();
    objects.push(owned(
        pod("web-1-b", json!({}), false),
        "apps/v1",
        "ReplicaSet",
        "web-1",
    ));
    let mut world = World::cluster(&objects);
    world.configure(&[("shop", BY_LABEL)], &[]);
    let (mut old, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&old, "x/y: readiness");
    world.states(&mut old, "0P");
    let (mut new, _) = world.pod_agent("web-1-b", "uid-web-1-b");
    world.announce(&new, "x/y: readiness");
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
    // Nor what it finds before it is ready: its application may still be starting.
    world.states(&mut new, "0F");
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
    // What it finds counts once the pod is ready; this one was found running.
    let ready = owned(pod("web-1-b", json!({}), true), "apps/v1", "ReplicaSet", "web-1");
    world.applied(&ready);
    assert_eq!(world.scope("shop").health, Health::Degraded);
    world.report(&mut new, "0P");
    assert_eq!(world.scope("shop").health, Health::Healthy);
}

#[test]
fn a_pod_that_has_just_come_counts_once_it_was_healthy_or_after_half_a_minute() {
    for was_healthy in [true, false] {
        let mut world = World::cluster(&web());
        world.configure(&[("shop", BY_LABEL)], &[]);
        let (mut old, _) = world.pod_agent("web-1-a", "uid-web-1-a");
        world.announce(&old, "x/y: readiness");
        world.states(&mut old, "0P");
        // A rollout of one pod, which the platform sees ready before the agent has found anything.
        let new = owned(pod("web-1-b", json!({}), true), "apps/v1", "ReplicaSet", "web-1");
        world.applied(&new);
        world.deleted(&web()[2]);
        assert_eq!(world.scope("shop").health, Health::Healthy);
        let (mut agent, _) = world.pod_agent("web-1-b", "uid-web-1-b");
        world.announce(&agent, "x/y: readiness");
        assert_eq!(world.scope("shop").health, Health::Healthy);
        world.states(&mut agent, "0F");
        assert_eq!(world.scope("shop").health, Health::Healthy);
        if was_healthy {
            world.report(&mut agent, "0P");
            world.report(&mut agent, "0F");
        } else {
            world.wait(20);
            world.report(&mut agent, "0F");
            world.wait(9);
            assert_eq!(world.scope("shop").health, Health::Healthy);
            world.wait(1);
        }
        assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
        // The platform itself may be less content.
        world.applied(&workload("Deployment", "web", json!({"app": "shop"}), 1, 0));
        assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
    }
}

#[test]
fn a_fault_stays_one_while_the_kubelet_hears_of_it_before_the_workload_does() {
    let mut world = World::cluster(&web());
    world.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0P");
    world.wait(120);
    world.report(&mut agent, "0F");
    assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
    world.told.clear();
    let [_, _, mut pod] = web();
    pod["status"]["conditions"][0]["status"] = json!("False");
    world.applied(&pod);
    assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
    world.applied(&workload("Deployment", "web", json!({"app": "shop"}), 1, 0));
    assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
    world.expect(&[]);
}

#[test]
fn a_check_that_fails_in_a_pod_that_is_not_ready_is_told_when_the_platform_complains() {
    let mut world = World::cluster(&[]);
    world.configure(&[("shop", BY_LABEL)], &[]);
    let [_, replica_set, mut pod] = web();
    pod["status"]["conditions"][0]["status"] = json!("False");
    for object in [
        workload("Deployment", "web", json!({"app": "shop"}), 1, 0),
        replica_set,
        pod,
    ] {
        world.applied(&object);
    }
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0F");
    assert_eq!(world.members("shop"), ["web: Unhealthy ReadinessFailed"]);
}

#[test]
fn a_scope_that_was_made_anew_inherits_nothing() {
    let mut world = World::cluster(&[workload("Deployment", "web", json!({"app": "shop"}), 1, 0)]);
    let mut object = scope_object("shop", BY_LABEL);
    object.metadata.uid = Some("1".into());
    let configured = |object: &HealthScope| {
        Event::Configured(Configuration {
            scopes: vec![Arc::new(object.clone())],
            unreadable: Vec::new(),
            components: Vec::new(),
        })
    };
    world.apply(configured(&object));
    let since = world.scope("shop").since;
    world.wait(60);
    world.apply(configured(&object));
    assert_eq!(world.scope("shop").since, since);
    object.metadata.uid = Some("2".into());
    world.apply(configured(&object));
    assert!(world.scope("shop").since > since);
}

#[test]
fn a_scope_whose_spec_was_broken_while_nobody_looked_keeps_its_last_health() {
    let mut before = World::cluster(&[workload("Deployment", "web", json!({"app": "shop"}), 1, 0)]);
    before.configure(&[("shop", BY_LABEL)], &[]);
    let mut object = inherited(&before);
    object.spec.selector.as_mut().unwrap().match_labels = [("bad key".to_owned(), "x".to_owned())].into();
    let mut world = World::cluster(&[]);
    world.apply(Event::Configured(Configuration {
        scopes: vec![Arc::new(object)],
        unreadable: Vec::new(),
        components: Vec::new(),
    }));
    let view = world.scope("shop");
    assert_eq!((view.health, view.stalled.len()), (Health::Unhealthy, 1));
}

#[test]
fn a_replica_that_stands_by_shows_what_the_other_one_writes() {
    let mut owner = World::cluster(&web());
    owner.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = owner.pod_agent("web-1-a", "uid-web-1-a");
    owner.announce(&agent, "x/y: readiness");
    let said = |owner: &World| {
        Event::Configured(Configuration {
            scopes: vec![Arc::new(inherited(owner))],
            ..Configuration::default()
        })
    };

    let mut world = World::cluster(&web());
    world.apply(Event::StandsBy);
    for (states, health) in [
        ("0P", Health::Healthy),
        ("0F", Health::Unhealthy),
        ("0P", Health::Healthy),
    ] {
        owner.states(&mut agent, states);
        world.apply(said(&owner));
        let entry = world.entry("shop");
        assert_eq!((entry.view.health, entry.settled), (health, false));
        assert_eq!(Some(&entry.status), inherited(&owner).status.as_ref());
        world.wait(60);
        assert_eq!(world.scope("shop").health, health);
    }
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
}

#[test]
fn a_replica_that_takes_over_says_what_was_said_until_agents_have_come() {
    let mut before = World::cluster(&web());
    before.configure(&[("shop", BY_LABEL)], &[]);
    let (mut agent, _) = before.pod_agent("web-1-a", "uid-web-1-a");
    before.announce(&agent, "x/y: readiness");
    before.states(&mut agent, "0P");
    assert_eq!(before.scope("shop").health, Health::Healthy);
    let written = Arc::new(inherited(&before));
    let configured = || {
        Event::Configured(Configuration {
            scopes: vec![Arc::clone(&written)],
            ..Configuration::default()
        })
    };

    // It stood by for long, and no agent ever came to it.
    let mut world = World::cluster(&web());
    world.apply(Event::StandsBy);
    world.apply(configured());
    world.wait(600);
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
    assert_eq!(world.apply(Event::TakenOver), Answer::Done);
    world.apply(configured());
    let entry = world.entry("shop");
    assert_eq!((entry.settled, entry.view.health), (false, Health::Healthy));
    assert_eq!(Some(&entry.status), written.status.as_ref());
    let (mut agent, _) = world.pod_agent("web-1-a", "uid-web-1-a");
    world.announce(&agent, "x/y: readiness");
    world.states(&mut agent, "0P");
    let entry = world.entry("shop");
    assert!(entry.settled);
    assert!(!crate::status::means_different(
        &entry.status,
        written.status.as_ref().unwrap()
    ));

    // It had served before, and what it knew of agents then is of no use.
    world.apply(Event::StandsBy);
    world.apply(Event::Closed {
        session: agent.session,
    });
    world.wait(600);
    assert_eq!(world.members("shop"), ["web: Healthy Passing"]);
    world.apply(Event::TakenOver);
    world.apply(configured());
    assert!(!world.entry("shop").settled);
    world.wait(30);
    assert!(world.entry("shop").settled);
}
