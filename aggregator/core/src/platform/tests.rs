//! Objects as the API server sends them, and what is said about them.

use {super::*, proptest::prelude::*, serde_json::json};

fn object(value: &Value) -> Object {
    decode(value, &DecodeOptions::default()).expect("an object")
}

/// An object called `name` in `default`.
fn make(api_version: &str, kind: &str, name: &str, spec: &Value, status: &Value) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": "u", "generation": 2},
        "spec": spec, "status": status,
    })
}

fn judge_with(value: &Value, pods: &[&Object], others: &[Object]) -> Verdict {
    let child = |key: &ComponentKey| match key.name.as_str() {
        "hidden" => Child::Unknown("deployments.apps is forbidden"),
        _ => others
            .iter()
            .find(|other| other.key == *key)
            .map_or(Child::NotFound, Child::Found),
    };
    verdict(&object(value), &Related { pods, child: &child })
}

fn judge(value: &Value) -> Verdict {
    judge_with(value, &[], &[])
}

#[track_caller]
fn assert_verdict(found: &Verdict, health: Health, reason: &str, message: &str) {
    assert_eq!(
        (found.health, found.reason.as_str(), found.message.as_str()),
        (health, reason, message)
    );
}

/// A pod with one container `web` in this state.
fn pod(name: &str, status: &Value) -> Value {
    let mut status = status.clone();
    if status.get("phase").is_none() {
        status["phase"] = json!("Running");
    }
    make(
        "v1",
        "Pod",
        name,
        &json!({"containers": [{"name": "web"}]}),
        &status,
    )
}

fn crashing(name: &str) -> Object {
    object(&pod(
        name,
        &json!({"containerStatuses": [{
            "name": "web", "ready": false, "restartCount": 5,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 2m40s restarting failed container"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }]}),
    ))
}

#[test]
fn a_pod_says_the_one_most_useful_reason() {
    /// Statuses of the containers, and of the init containers.
    #[track_caller]
    fn check(containers: &Value, init: &Value, health: Health, reason: &str, message: &str) {
        let status = json!({
            "containerStatuses": containers, "initContainerStatuses": init,
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
        });
        assert_verdict(&judge(&pod("web-1", &status)), health, reason, message);
    }
    let none = json!([]);
    let waiting = |reason: &str, message: &str, rest: &Value| {
        let mut status = json!({
            "name": "web", "image": "registry.example.org/web:v2", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
        });
        for (key, value) in rest.as_object().expect("fields") {
            status[key] = value.clone();
        }
        status
    };
    let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});

    use Health::{Unhealthy, Unknown};
    check(
        &json!([waiting(
            "CrashLoopBackOff",
            "back-off",
            &json!({"restartCount": 5, "lastState": ended(1, "Error")})
        )]),
        &none,
        Unhealthy,
        "CrashLoopBackOff",
        "Pod CrashLoopBackOff (exit 1, 5 restarts)",
    );
    // A growing number of restarts says the same for a while.
    for restarts in [20, 33, 49] {
        check(
            &json!([waiting(
                "CrashLoopBackOff",
                "",
                &json!({"restartCount": restarts, "lastState": ended(137, "OOMKilled")})
            )]),
            &none,
            Unhealthy,
            "OOMKilled",
            "Pod CrashLoopBackOff (OOMKilled, 20+ restarts)",
        );
    }
    // The kubelet's two words for it come in turn, and mean the same.
    for (word, said) in [
        ("ErrImagePull", "failed to pull and unpack image"),
        ("ImagePullBackOff", "Back-off pulling image"),
    ] {
        check(
            &json!([waiting(word, said, &json!({}))]),
            &none,
            Unhealthy,
            "ImagePullBackOff",
            "Pod ImagePullBackOff (image registry.example.org/web:v2)",
        );
    }
    for (word, said) in [
        ("RegistryUnavailable", "failed to pull and unpack image"),
        (
            "ImagePullBackOff",
            "Back-off pulling image \"web:v2\": RegistryUnavailable: no route to host",
        ),
    ] {
        check(
            &json!([waiting(word, said, &json!({}))]),
            &none,
            Unhealthy,
            "ImagePullBackOff",
            "Pod ImagePullBackOff (image registry.example.org/web:v2, RegistryUnavailable)",
        );
    }
    check(
        &json!([waiting("ErrImageNeverPull", "not present", &json!({}))]),
        &none,
        Unhealthy,
        "ErrImageNeverPull",
        "Pod ErrImageNeverPull (image registry.example.org/web:v2)",
    );
    check(
        &json!([waiting(
            "CreateContainerConfigError",
            "secret \"db\" not found",
            &json!({})
        )]),
        &none,
        Unhealthy,
        "CreateContainerConfigError",
        "Pod CreateContainerConfigError: secret \"db\" not found",
    );
    // A runtime's message from its cause on, whether the kubelet waits or has given up for now.
    let runtime = "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
         runc create failed: unable to start container process: error during container init: exec: \"/nope\": \
         stat /nope: no such file or directory";
    check(
        &json!([waiting("RunContainerError", runtime, &json!({}))]),
        &none,
        Unhealthy,
        "RunContainerError",
        "Pod RunContainerError: exec: \"/nope\": stat /nope: no such file or directory",
    );
    let start_error = json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": runtime}});
    check(
        &json!([waiting(
            "CrashLoopBackOff",
            "",
            &json!({"restartCount": 2, "lastState": start_error})
        )]),
        &none,
        Unhealthy,
        "CrashLoopBackOff",
        "Pod CrashLoopBackOff (StartError: exec: \"/nope\": stat /nope: no such file or directory, 2 restarts)",
    );
    check(
        &json!([waiting("ContainerCreating", "", &json!({}))]),
        &none,
        Unknown,
        "ContainerCreating",
        "Pod ContainerCreating",
    );
    // Of several containers the worst is named, and which one it is.
    check(
        &json!([
            {"name": "web", "ready": false, "started": true, "state": {"running": {}}},
            {"name": "log", "ready": false, "restartCount": 1, "state": ended(2, "Error")},
        ]),
        &none,
        Unhealthy,
        "CrashLoopBackOff",
        "Pod CrashLoopBackOff (container log, exit 2, 1 restart)",
    );
    // A first end is none of a loop. From then on the kubelet says in turn how it ended and that it waits.
    check(
        &json!([{"name": "web", "ready": false, "restartCount": 0, "state": ended(2, "Error")}]),
        &none,
        Unhealthy,
        "Error",
        "Pod Error (exit 2)",
    );
    let waits = json!({"restartCount": 2, "lastState": ended(137, "OOMKilled")});
    for status in [
        json!({"name": "web", "ready": false, "restartCount": 2, "state": ended(137, "OOMKilled")}),
        waiting("CrashLoopBackOff", "back-off", &waits),
    ] {
        check(
            &json!([status]),
            &none,
            Unhealthy,
            "OOMKilled",
            "Pod CrashLoopBackOff (OOMKilled, 2 restarts)",
        );
    }
    check(
        &json!([{"name": "web", "ready": false, "state": ended(137, "OOMKilled")}]),
        &none,
        Unhealthy,
        "OOMKilled",
        "Pod OOMKilled",
    );
    // Running, but not ready.
    let running = |started: bool, last: Value| json!([{"name": "web", "ready": false, "started": started, "restartCount": 1, "state": {"running": {}}, "lastState": last}]);
    check(
        &running(true, json!({})),
        &none,
        Unhealthy,
        "ContainersNotReady",
        "Pod not ready: container web",
    );
    check(
        &running(true, ended(3, "Error")),
        &none,
        Unhealthy,
        "ContainersNotReady",
        "Pod not ready: container web (last exit 3, 1 restart)",
    );
    check(
        &running(false, json!({})),
        &none,
        Unknown,
        "Starting",
        "Pod container web has not started",
    );
    // Init containers: the others only wait for them.
    let initializing = json!([waiting("PodInitializing", "", &json!({}))]);
    check(
        &initializing,
        &json!([{"name": "migrate", "ready": false, "state": {"running": {}}}]),
        Unknown,
        "PodInitializing",
        "Pod init container migrate has not finished",
    );
    check(
        &initializing,
        &json!([{"name": "migrate", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(1, "Error")}]),
        Unhealthy,
        "CrashLoopBackOff",
        "Pod CrashLoopBackOff (init container migrate, exit 1, 3 restarts)",
    );
    // One that is done does not matter any more.
    check(
        &running(true, json!({})),
        &json!([{"name": "migrate", "ready": true, "state": ended(0, "Completed")}]),
        Unhealthy,
        "ContainersNotReady",
        "Pod not ready: container web",
    );
}

#[test]
fn a_pod_says_what_stands_in_its_way_before_it_runs() {
    #[track_caller]
    fn check(status: &Value, health: Health, reason: &str, message: &str) {
        assert_verdict(&judge(&pod("web-1", status)), health, reason, message);
    }
    let unscheduled = |reason: &str, message: &str| {
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": reason, "message": message},
        ]})
    };
    check(
        &unscheduled(
            "Unschedulable",
            "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, preemption: 0/3 nodes are available: 3 No preemption victims.",
        ),
        Health::Unhealthy,
        "Unschedulable",
        "Pod Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
    );
    check(
        &unscheduled(
            "SchedulingGated",
            "Scheduling is blocked due to non-empty scheduling gates",
        ),
        Health::Unknown,
        "SchedulingGated",
        "Pod SchedulingGated: Scheduling is blocked due to non-empty scheduling gates",
    );
    check(
        &json!({"phase": "Pending"}),
        Health::Unknown,
        "Pending",
        "Pod Pending",
    );
    check(
        &json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
        Health::Unhealthy,
        "Evicted",
        "Pod Evicted: The node was low on resource: memory.",
    );
    check(
        &json!({"phase": "Failed", "containerStatuses": [
            {"name": "web", "state": {"terminated": {"exitCode": 0}}},
            {"name": "log", "state": {"terminated": {"exitCode": 4, "reason": "Error"}}},
        ]}),
        Health::Unhealthy,
        "Error",
        "Pod Failed (container log, exit 4)",
    );
    check(
        &json!({"phase": "Failed"}),
        Health::Unhealthy,
        "Failed",
        "Pod Failed",
    );
    check(&json!({"phase": "Succeeded"}), Health::Healthy, "Passing", "");
    check(
        &json!({"phase": "Unknown"}),
        Health::Unhealthy,
        "Unknown",
        "Pod Unknown: its node does not answer",
    );
    check(
        &json!({"conditions": [{"type": "Ready", "status": "True"}]}),
        Health::Healthy,
        "Passing",
        "",
    );
    // The containers are well; a readiness gate is not.
    check(
        &json!({
            "conditions": [{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady",
                "message": "the status of pod readiness gate \"lb\" is not \"True\""}],
            "containerStatuses": [{"name": "web", "ready": true, "started": true, "state": {"running": {}}}],
        }),
        Health::Unhealthy,
        "ReadinessGatesNotReady",
        "Pod ReadinessGatesNotReady: the status of pod readiness gate \"lb\" is not \"True\"",
    );
}

#[test]
fn text_from_the_cluster_is_one_bounded_line() {
    let long = format!("first\nsecond \u{1b}[31m{}", "x".repeat(10_000));
    let found = judge(&pod(
        "web-1",
        &json!({"containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "Odd<b>Reason", "message": long}}}]}),
    ));
    assert!(found.message.len() <= Verdict::MAX_MESSAGE_BYTES);
    assert!(
        found
            .message
            .starts_with("Pod Odd<b>Reason: first second \u{fffd}[31mx")
    );
    assert_eq!(found.reason.as_str(), "OddbReason");
}

#[test]
fn the_agent_is_known_by_its_container() {
    let with = |spec: &Value| object(&make("v1", "Pod", "web-1", spec, &json!({"phase": "Running"})));
    let has_agent = |spec: &Value| with(spec).pod().expect("a pod").has_agent();
    assert!(!has_agent(&json!({"containers": [{"name": "web"}]})));
    assert!(has_agent(
        &json!({"containers": [{"name": "web"}, {"name": "healthscope-agent"}]})
    ));
    assert!(has_agent(
        &json!({"initContainers": [{"name": "healthscope-agent", "restartPolicy": "Always"}], "containers": []})
    ));
}

#[test]
fn workloads_count_what_is_ready() {
    #[track_caller]
    fn check(kind: &str, spec: &Value, status: &Value, health: Health, reason: &str, message: &str) {
        let found = judge(&make("apps/v1", kind, "web", spec, status));
        assert_verdict(&found, health, reason, message);
    }
    use Health::{Degraded, Healthy, Unhealthy, Unknown};
    for kind in ["Deployment", "StatefulSet", "ReplicaSet"] {
        let three = json!({"replicas": 3});
        let ready = |ready: u32| json!({"observedGeneration": 2, "replicas": 3, "readyReplicas": ready});
        check(kind, &three, &ready(3), Healthy, "Passing", "");
        check(kind, &three, &ready(4), Healthy, "Passing", "");
        let short = "MinimumReplicasUnavailable";
        check(
            kind,
            &three,
            &ready(1),
            Degraded,
            short,
            &format!("{kind} 1/3 ready"),
        );
        check(
            kind,
            &three,
            &ready(0),
            Unhealthy,
            short,
            &format!("{kind} 0/3 ready"),
        );
        check(kind, &json!({"replicas": 0}), &ready(0), Healthy, "Passing", "");
        let new = format!("{kind} is new: its controller has not acted on it yet");
        check(kind, &three, &json!({}), Unknown, "Starting", &new);
        // Scaled up from nothing, and the controller has not seen it.
        let stale = json!({"observedGeneration": 1});
        check(kind, &three, &stale, Unknown, "Starting", &new);
        // A rollout that has not begun, with all old pods ready.
        let stale = json!({"observedGeneration": 1, "replicas": 3, "readyReplicas": 3});
        check(kind, &three, &stale, Healthy, "Passing", "");
        // Scaled up and not seen: what is ready counts against what is wanted now.
        check(
            kind,
            &json!({"replicas": 5}),
            &stale,
            Degraded,
            short,
            &format!("{kind} 3/5 ready"),
        );
    }
    let daemons = |wanted: u32, ready: u32| json!({"observedGeneration": 2, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted, "numberReady": ready});
    check("DaemonSet", &json!({}), &daemons(2, 2), Healthy, "Passing", "");
    check("DaemonSet", &json!({}), &daemons(0, 0), Healthy, "Passing", "");
    let short = "MinimumReplicasUnavailable";
    check(
        "DaemonSet",
        &json!({}),
        &daemons(2, 1),
        Degraded,
        short,
        "DaemonSet 1/2 ready",
    );
    check(
        "DaemonSet",
        &json!({}),
        &daemons(2, 0),
        Unhealthy,
        short,
        "DaemonSet 0/2 ready",
    );
    check(
        "DaemonSet",
        &json!({}),
        &json!({}),
        Unknown,
        "Starting",
        "DaemonSet is new: its controller has not acted on it yet",
    );
}

#[test]
fn a_workload_names_the_pod_that_fails() {
    let workload = |kind: &str, wanted: u32, ready: u32| {
        let status = json!({"observedGeneration": 2, "replicas": wanted, "readyReplicas": ready});
        make("apps/v1", kind, "web", &json!({"replicas": wanted}), &status)
    };
    let ready = object(&pod(
        "web-a",
        &json!({"conditions": [{"type": "Ready", "status": "True"}]}),
    ));
    let creating = object(&pod(
        "web-b",
        &json!({"phase": "Pending", "containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
    ));
    let (first, second) = (crashing("web-c"), crashing("web-d"));
    let mut leaving = crashing("web-0");
    leaving.deleting = Some("".into());
    let evicted = object(&pod("web-1", &json!({"phase": "Failed", "reason": "Evicted"})));

    let pods = [&leaving, &evicted, &ready, &creating, &second, &first];
    assert_verdict(
        &judge_with(&workload("Deployment", 3, 1), &pods, &[]),
        Health::Degraded,
        "CrashLoopBackOff",
        "Deployment 1/3 ready, web-c CrashLoopBackOff (exit 1, 5 restarts)",
    );
    assert_verdict(
        &judge_with(&workload("StatefulSet", 1, 0), &[&creating], &[]),
        Health::Unhealthy,
        "ContainerCreating",
        "StatefulSet 0/1 ready, web-b ContainerCreating",
    );
    // Trouble of a pod too many is nobody's.
    assert_verdict(
        &judge_with(&workload("Deployment", 1, 1), &[&ready, &first], &[]),
        Health::Healthy,
        "Passing",
        "",
    );
}

#[test]
fn a_rollout_that_is_stuck_is_unhealthy_whatever_is_still_ready() {
    let status = |conditions: &Value| json!({"observedGeneration": 2, "replicas": 3, "readyReplicas": 3, "conditions": conditions});
    let spec = json!({"replicas": 3});
    let stuck = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
        "message": "ReplicaSet \"web-7d9\" has timed out progressing."});
    let pull = object(&pod(
        "web-x",
        &json!({"phase": "Pending", "containerStatuses": [
            {"name": "web", "image": "web:typo", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
    ));
    let deployment = make("apps/v1", "Deployment", "web", &spec, &status(&json!([stuck])));
    assert_verdict(
        &judge_with(&deployment, &[&pull], &[]),
        Health::Unhealthy,
        "ProgressDeadlineExceeded",
        "Deployment 3/3 ready, rollout is stuck, web-x ImagePullBackOff (image web:typo)",
    );
    assert_verdict(
        &judge(&deployment),
        Health::Unhealthy,
        "ProgressDeadlineExceeded",
        "Deployment 3/3 ready, rollout is stuck, ReplicaSet \"web-7d9\" has timed out progressing.",
    );
    // Pods that are refused: the quota is the reason, since there is no pod to name.
    let refused = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
        "message": "pods \"web-7d9-\" is forbidden: exceeded quota: small"});
    let short = json!({"observedGeneration": 2, "replicas": 0, "conditions": [refused]});
    assert_verdict(
        &judge(&make("apps/v1", "Deployment", "web", &spec, &short)),
        Health::Unhealthy,
        "FailedCreate",
        "Deployment 0/3 ready, pods \"web-7d9-\" is forbidden: exceeded quota: small",
    );
}

#[test]
fn jobs_are_well_until_they_fail() {
    #[track_caller]
    fn check(
        spec: &Value,
        conditions: &Value,
        pods: &[&Object],
        health: Health,
        reason: &str,
        message: &str,
    ) {
        let status = json!({"active": 1, "conditions": conditions});
        let job = make("batch/v1", "Job", "load", spec, &status);
        assert_verdict(&judge_with(&job, pods, &[]), health, reason, message);
    }
    let is = |kind: &str| json!([{"type": kind, "status": "True"}]);
    let none = json!([]);
    check(&json!({}), &none, &[], Health::Healthy, "Passing", "");
    check(&json!({}), &is("Complete"), &[], Health::Healthy, "Passing", "");
    check(
        &json!({}),
        &is("SuccessCriteriaMet"),
        &[],
        Health::Healthy,
        "Passing",
        "",
    );
    check(
        &json!({"suspend": true}),
        &is("Suspended"),
        &[],
        Health::Healthy,
        "Passing",
        "",
    );
    for kind in ["Failed", "FailureTarget"] {
        check(
            &json!({}),
            &json!([{"type": kind, "status": "True", "reason": "BackoffLimitExceeded",
                "message": "Job has reached the specified backoff limit"}]),
            &[],
            Health::Unhealthy,
            "BackoffLimitExceeded",
            "Job failed: BackoffLimitExceeded: Job has reached the specified backoff limit",
        );
    }
    check(
        &json!({}),
        &is("Failed"),
        &[],
        Health::Unhealthy,
        "Failed",
        "Job failed",
    );
    // It runs for ever when its pod cannot start.
    check(
        &json!({}),
        &none,
        &[&crashing("load-x")],
        Health::Degraded,
        "CrashLoopBackOff",
        "Job is running, load-x CrashLoopBackOff (exit 1, 5 restarts)",
    );
}

#[test]
fn a_cron_job_is_as_well_as_its_last_run() {
    let at = "2026-11-20T10:30:00Z";
    // 2026-11-20T10:30:00Z in minutes since 1970.
    let name = "backup-29919510";
    let run = |conditions: &Value| {
        [object(&make(
            "batch/v1",
            "Job",
            name,
            &json!({}),
            &json!({"conditions": conditions}),
        ))]
    };
    #[track_caller]
    fn check(status: &Value, others: &[Object], health: Health, reason: &str, message: &str) {
        let cron = make("batch/v1", "CronJob", "backup", &json!({}), status);
        assert_verdict(&judge_with(&cron, &[], others), health, reason, message);
    }
    check(&json!({}), &[], Health::Healthy, "Passing", "");
    let ran = json!({"lastScheduleTime": at, "lastSuccessfulTime": "2026-11-20T10:31:07Z"});
    let not_since = json!({"lastScheduleTime": at, "lastSuccessfulTime": "2026-11-19T10:31:07Z"});
    let runs = json!({"lastScheduleTime": at, "active": [{"name": name}]});
    // Its Job says why.
    check(
        &not_since,
        &run(&json!([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}])),
        Health::Unhealthy,
        "DeadlineExceeded",
        "last run backup-29919510: Job failed: DeadlineExceeded",
    );
    check(&runs, &run(&json!([])), Health::Healthy, "Passing", "");
    // Its Job is gone or cannot be seen: its own status knows.
    check(&ran, &[], Health::Healthy, "Passing", "");
    check(&runs, &[], Health::Healthy, "Passing", "");
    let message = "CronJob's run of 2026-11-20T10:30:00Z did not succeed";
    check(&not_since, &[], Health::Unhealthy, "Failed", message);
    check(
        &json!({"lastScheduleTime": at}),
        &[],
        Health::Unhealthy,
        "Failed",
        message,
    );
    check(
        &json!({"lastScheduleTime": "soon"}),
        &[],
        Health::Healthy,
        "Passing",
        "",
    );
}

#[test]
fn services_and_claims_speak_for_themselves() {
    #[track_caller]
    fn check(kind: &str, spec: &Value, status: &Value, health: Health, reason: &str, message: &str) {
        assert_verdict(
            &judge(&make("v1", kind, "web", spec, status)),
            health,
            reason,
            message,
        );
    }
    use Health::{Degraded, Healthy, Unhealthy, Unknown};
    let plain = json!({"type": "ClusterIP"});
    let balanced = json!({"type": "LoadBalancer"});
    check(
        "Service",
        &plain,
        &json!({"loadBalancer": {}}),
        Healthy,
        "Passing",
        "",
    );
    let message = "Service waits for the address of its load balancer";
    check(
        "Service",
        &balanced,
        &json!({"loadBalancer": {}}),
        Unknown,
        "Pending",
        message,
    );
    let addressed = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    check("Service", &balanced, &addressed, Healthy, "Passing", "");

    let claim = "PersistentVolumeClaim";
    check(
        claim,
        &json!({}),
        &json!({"phase": "Bound"}),
        Healthy,
        "Passing",
        "",
    );
    let message = "PersistentVolumeClaim is Pending: no volume of storage class fast is bound to it yet";
    let fast = json!({"storageClassName": "fast"});
    check(
        claim,
        &fast,
        &json!({"phase": "Pending"}),
        Unknown,
        "Pending",
        message,
    );
    let message = "PersistentVolumeClaim is Lost: the volume it was bound to is gone";
    check(
        claim,
        &json!({}),
        &json!({"phase": "Lost"}),
        Unhealthy,
        "ClaimLost",
        message,
    );
    let failed = json!({"phase": "Bound", "conditions": [
        {"type": "ControllerResizeError", "status": "True", "message": "quota"}]});
    let message = "PersistentVolumeClaim ControllerResizeError: quota";
    check(
        claim,
        &json!({}),
        &failed,
        Degraded,
        "ControllerResizeError",
        message,
    );
}

#[test]
fn any_other_kind_is_judged_by_its_conventions() {
    #[track_caller]
    fn check(status: &Value, health: Health, reason: &str, message: &str) {
        let found = judge(&make("db.example.org/v1", "Database", "db", &json!({}), status));
        assert_verdict(&found, health, reason, message);
    }
    use Health::{Healthy, Unhealthy, Unknown};
    let is = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Because", "message": "of that"});
    check(&Value::Null, Healthy, "Passing", "");
    check(&json!({"phase": "Failed"}), Healthy, "Passing", "");
    check(
        &json!({"conditions": [is("Ready", "True")]}),
        Healthy,
        "Passing",
        "",
    );
    let message = "Database is not ready: of that";
    check(
        &json!({"conditions": [is("Ready", "False")]}),
        Unhealthy,
        "Because",
        message,
    );
    let message = "Database does not know whether it is ready: of that";
    check(
        &json!({"conditions": [is("Ready", "Unknown")]}),
        Unknown,
        "Because",
        message,
    );
    let message = "Database is reconciling: of that";
    let both = json!({"conditions": [is("Reconciling", "True"), is("Ready", "False")]});
    check(&both, Unknown, "Because", message);
    let message = "Database is stalled: of that";
    let all =
        json!({"observedGeneration": 1, "conditions": [is("Reconciling", "True"), is("Stalled", "True")]});
    check(&all, Unhealthy, "Because", message);
    check(
        &json!({"conditions": [is("Stalled", "False")]}),
        Healthy,
        "Passing",
        "",
    );
    let message = "Database has a newer spec than its controller has seen";
    let stale = json!({"observedGeneration": 1, "conditions": [is("Ready", "True")]});
    check(&stale, Unknown, "Reconciling", message);
    let mut old = is("Ready", "True");
    old["observedGeneration"] = json!(1);
    check(&json!({"conditions": [old]}), Unknown, "Reconciling", message);
    let bare = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    check(&bare, Unhealthy, "NotReady", "Database is not ready");
}

#[test]
fn oams_own_workloads_are_as_well_as_their_children() {
    #[track_caller]
    fn check(children: &Value, others: &[Object], health: Health, reason: &str, message: &str) {
        for (api_version, kind) in [
            ("core.oam.dev/v1alpha2", "ContainerizedWorkload"),
            ("standard.oam.dev/v1alpha1", "PodSpecWorkload"),
        ] {
            let own = make(
                api_version,
                kind,
                "web",
                &json!({}),
                &json!({"resources": children}),
            );
            let pod = crashing("web-a");
            let found = judge_with(&own, &[&pod], others);
            assert_verdict(&found, health, reason, &message.replace("KIND", kind));
        }
    }
    let deployment = |ready: u32| {
        let status = json!({"observedGeneration": 2, "replicas": 2, "readyReplicas": ready});
        object(&make(
            "apps/v1",
            "Deployment",
            "web",
            &json!({"replicas": 2}),
            &status,
        ))
    };
    let service = object(&make("v1", "Service", "web", &json!({}), &json!({})));
    let usual = json!([
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        {"apiVersion": "v1", "kind": "Service", "name": "web"},
    ]);
    check(
        &usual,
        &[deployment(2), service.clone()],
        Health::Healthy,
        "Passing",
        "",
    );
    check(
        &usual,
        &[deployment(1), service],
        Health::Degraded,
        "CrashLoopBackOff",
        "Deployment 1/2 ready, web-a CrashLoopBackOff (exit 1, 5 restarts)",
    );
    check(
        &usual,
        &[deployment(1)],
        Health::Unhealthy,
        "NotFound",
        "Service/web does not exist",
    );
    let hidden = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "hidden"}]);
    let message = "Deployment/hidden cannot be seen: deployments.apps is forbidden";
    check(&hidden, &[], Health::Unknown, "KindNotAvailable", message);
    check(
        &json!([]),
        &[],
        Health::Unknown,
        "Starting",
        "KIND names no objects in its status yet",
    );
    // One that names itself ends.
    let itself = |kind: &str| json!([{"apiVersion": "core.oam.dev/v1alpha2", "kind": kind, "name": "web"}]);
    let own = make(
        "core.oam.dev/v1alpha2",
        "ContainerizedWorkload",
        "web",
        &json!({}),
        &json!({"resources": itself("ContainerizedWorkload")}),
    );
    assert_eq!(judge_with(&own, &[], &[object(&own)]).health, Health::Healthy);
}

#[test]
fn what_is_being_deleted_is_unknown_unless_it_is_down() {
    let status = |ready: u32| json!({"observedGeneration": 2, "replicas": 1, "readyReplicas": ready});
    let mut web = make(
        "apps/v1",
        "Deployment",
        "web",
        &json!({"replicas": 1}),
        &status(1),
    );
    web["metadata"]["deletionTimestamp"] = json!("2026-11-20T10:30:00Z");
    let message = "Deployment is being deleted";
    assert_verdict(&judge(&web), Health::Unknown, "Terminating", message);
    web["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    let message = "Deployment is being deleted, held by foregroundDeletion";
    assert_verdict(&judge(&web), Health::Unknown, "Terminating", message);
    web["status"] = status(0);
    assert_eq!(judge(&web).health, Health::Unhealthy);
}

#[test]
fn a_rule_counts_instead_of_the_kinds_own_and_never_on_secrets() {
    let rule = HealthyWhen::compile("object.status.readyReplicas > 0").expect("a rule");
    let options = DecodeOptions {
        rule: Some(&rule),
        keep_status: true,
    };
    let related = Related {
        pods: &[],
        child: &|_| Child::NotFound,
    };
    let status = json!({"observedGeneration": 2, "replicas": 3, "readyReplicas": 1});
    let web = make("apps/v1", "Deployment", "web", &json!({"replicas": 3}), &status);
    let web = decode(&web, &options).expect("an object");
    assert_verdict(&verdict(&web, &related), Health::Healthy, "Passing", "");

    let mut secret = make("v1", "Secret", "web", &json!({}), &json!({"readyReplicas": 1}));
    secret["data"] = json!({"password": "aHVudGVyMg=="});
    let secret = decode(&secret, &options).expect("an object");
    assert_verdict(
        &verdict(&secret, &related),
        Health::Unknown,
        "RuleFailed",
        "healthyWhen is not evaluated on Secrets; remove it from the scope",
    );
    assert!(!format!("{secret:?}").contains("aHVudGVyMg"));
}

#[test]
fn what_says_which_object_it_is_is_kept() {
    let found = object(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": "web-7d9", "namespace": "shop", "uid": "u-1",
            "labels": {"app": "web", "odd": 1},
            "annotations": {"healthscope.core.oam.dev/depends-on": "db, Deployment/cache"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "u-0"},
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u-2", "controller": true},
            ],
        },
    }));
    assert_eq!(found.key.to_string(), "ReplicaSet/web-7d9");
    assert_eq!((found.key.group.as_str(), &*found.uid), ("apps", "u-1"));
    assert_eq!(found.labels, BTreeMap::from([("app".into(), "web".into())]));
    assert_eq!(found.depends_on, ["db", "Deployment/cache"]);
    let owner = found.controller.expect("a controller");
    assert_eq!(owner.key(&found.key.namespace).to_string(), "Deployment/web");
    assert_eq!(&*owner.uid, "u-2");
}

#[test]
fn what_is_no_object_is_refused_with_the_field() {
    #[track_caller]
    fn check(value: &Value, expected: &str) {
        let error = decode(value, &DecodeOptions::default()).expect_err("no object");
        assert_eq!(error.to_string(), expected);
    }
    check(&json!(null), "the object has no apiVersion");
    check(&json!({"apiVersion": "v1", "kind": 1}), "the object has no kind");
    check(
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}),
        "the object has no metadata.namespace",
    );
    check(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A", "namespace": "b"}}),
        "cannot use the object's metadata.name",
    );
}

#[test]
fn rudrs_word_follows_its_operators_rules() {
    #[track_caller]
    fn check(api_version: &str, kind: &str, status: &Value, expected: &str) {
        let found = object(&make(api_version, kind, "web", &json!({"replicas": 3}), status));
        let related = Related {
            pods: &[],
            child: &|_| Child::NotFound,
        };
        assert_eq!(
            rudr::word(Child::Found(&found), &related),
            expected,
            "{kind} {status}"
        );
    }
    let deployment =
        |replicas: u32, available: u32| json!({"replicas": replicas, "availableReplicas": available});
    check("apps/v1", "Deployment", &deployment(3, 3), "healthy");
    check("apps/v1", "Deployment", &deployment(3, 2), "unhealthy");
    check("apps/v1", "Deployment", &deployment(0, 0), "healthy");
    check(
        "apps/v1",
        "StatefulSet",
        &json!({"replicas": 3, "readyReplicas": 3}),
        "healthy",
    );
    check(
        "apps/v1",
        "StatefulSet",
        &json!({"replicas": 3, "readyReplicas": 2}),
        "unhealthy",
    );
    check("v1", "Service", &json!({}), "healthy");
    check("batch/v1", "Job", &json!({"active": 1}), "healthy");
    check(
        "batch/v1",
        "Job",
        &json!({"conditions": [{"type": "Failed", "status": "True"}]}),
        "unhealthy",
    );
    // Not Rudr's: it called all of these healthy.
    check(
        "v1",
        "PersistentVolumeClaim",
        &json!({"phase": "Lost"}),
        "unhealthy",
    );
    check(
        "v1",
        "PersistentVolumeClaim",
        &json!({"phase": "Bound"}),
        "healthy",
    );
    let related = Related {
        pods: &[],
        child: &|_| Child::NotFound,
    };
    assert_eq!(rudr::word(Child::NotFound, &related), "unhealthy");
    assert_eq!(rudr::word(Child::Unknown("forbidden"), &related), "unhealthy");
}

/// All pods of a cluster are held in memory: a usual one with three labels takes 1.6 KiB, of which the record itself
/// is 328 bytes and most of the rest is the labels, names and uids.
#[test]
fn records_are_small() {
    assert!(size_of::<Pod>() <= 40, "{}", size_of::<Pod>());
    assert!(size_of::<State>() <= 64, "{}", size_of::<State>());
    assert!(size_of::<Object>() <= 328, "{}", size_of::<Object>());
}

/// Values with the fields that objects have, and whatever else in them.
fn arbitrary_status() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "Running",
        "Failed",
        "Pending",
        "True",
        "False",
        "Ready",
        "Progressing",
        "ProgressDeadlineExceeded",
        "Evicted",
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "Always",
        "LoadBalancer",
        "Bound",
        "2026-01-01T00:00:00Z",
        "v1",
        "\u{202e}",
        "",
        "éé",
        "Deployment",
        "web",
    ]);
    let keys = prop::sample::select(vec![
        "phase",
        "conditions",
        "type",
        "status",
        "reason",
        "message",
        "containerStatuses",
        "initContainerStatuses",
        "containers",
        "initContainers",
        "name",
        "state",
        "lastState",
        "waiting",
        "terminated",
        "running",
        "exitCode",
        "signal",
        "restartCount",
        "ready",
        "started",
        "image",
        "replicas",
        "readyReplicas",
        "observedGeneration",
        "lastScheduleTime",
        "active",
        "resources",
        "kind",
        "apiVersion",
        "loadBalancer",
        "ingress",
        "restartPolicy",
        "suspend",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.prop_map(Value::from),
        "\\PC{0,300}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(String::from), inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_never_panics_and_messages_are_bounded(
        (api_version, kind) in prop::sample::select(vec![
            ("v1", "Pod"), ("apps/v1", "Deployment"), ("apps/v1", "DaemonSet"), ("batch/v1", "Job"),
            ("batch/v1", "CronJob"), ("v1", "Service"), ("v1", "PersistentVolumeClaim"),
            ("core.oam.dev/v1alpha2", "ContainerizedWorkload"), ("v1", "Secret"), ("x.io/v1", "Thing"),
        ]),
        spec in arbitrary_status(),
        status in arbitrary_status(),
    ) {
        let value = make(api_version, kind, "web", &spec, &status);
        let options = DecodeOptions { rule: None, keep_status: true };
        let found = decode(&value, &options).expect("it has a name");
        prop_assert!(found.status.as_deref().is_none_or(|status| status.len() <= MAX_STATUS_BYTES));
        let pods: Vec<&Object> = found.pod().map(|_| &found).into_iter().collect();
        let related = Related { pods: &pods, child: &|_| Child::Found(&found) };
        let verdict = verdict(&found, &related);
        prop_assert!(verdict.message.len() <= Verdict::MAX_MESSAGE_BYTES);
        prop_assert!(!verdict.message.chars().any(char::is_control));
        prop_assert_eq!(verdict.message.is_empty(), verdict.health == Health::Healthy);
    }

    #[test]
    fn anything_at_all_decodes_or_is_refused(value in arbitrary_status()) {
        let _ = decode(&value, &DecodeOptions::default());
    }
}
