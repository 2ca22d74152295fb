//! Objects as the API server sends them, and what is said about them.

use {super::*, serde_json::json};

fn object(value: &Value) -> Object {
    decode(value, &DecodeOptions::default()).expect("an object")
}

fn judge(value: &Value, pods: &[&Object]) -> Verdict {
    let related = Related {
        pods,
        child: &|_| Child::NotFound,
    };
    verdict(&object(value), &related)
}

#[test]
fn a_deployment_names_the_pod_that_fails() {
    let pod = object(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-7d9-x2", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "web"}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "web", "ready": false, "restartCount": 5,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 2m40s"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }]},
    }));
    let found = judge(
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default", "generation": 2},
            "spec": {"replicas": 3},
            "status": {"observedGeneration": 2, "replicas": 3, "readyReplicas": 1},
        }),
        &[&pod],
    );
    assert_eq!(found.health, Health::Degraded);
    assert_eq!(found.reason, Reason::CRASH_LOOP_BACK_OFF);
    assert_eq!(
        found.message,
        "Deployment 1/3 ready, web-7d9-x2 CrashLoopBackOff (exit 1, 5 restarts)"
    );
}
