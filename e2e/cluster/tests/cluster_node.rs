//! A whole node: pods under Pod Security `restricted`, Services, DNS, `exec` and native sidecars.
//!
//! One node for all tests of this file; each has its own namespace.

use {
    healthscope_e2e_cluster::{Cluster, Component, Image, Options, timed},
    serde_json::Value,
    std::{
        io::Read,
        net::{SocketAddr, TcpStream},
        sync::LazyLock,
        time::Duration,
    },
};

const LIMIT: Duration = Duration::from_secs(120);

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options::node()).unwrap();
    timed("import of busybox", || cluster.import(&Image::busybox())).unwrap();
    cluster
});

/// What the strictest of the Pod Security Standards wants of a container.
const RESTRICTED: &str = "{allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, runAsNonRoot: true, \
     readOnlyRootFilesystem: true, seccompProfile: {type: RuntimeDefault}}";

fn namespace(name: &str) {
    let object = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: \
         {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
    );
    CLUSTER.apply(&object).unwrap();
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    CLUSTER
        .wait_for("the ServiceAccount", LIMIT, || CLUSTER.get(&account).map(Some))
        .unwrap();
}

fn container(name: &str, script: &str, more: &str) -> String {
    format!(
        "
  - name: {name}
    image: local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, {script:?}]
    securityContext: {RESTRICTED}
    resources: {{limits: {{cpu: 500m, memory: 32Mi}}, requests: {{cpu: 10m, memory: 8Mi}}}}
    {more}"
    )
}

fn pod(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
{spec}
"
    )
}

fn wait_until_ready(namespace: &str, name: &str) {
    let what = format!("pod {name} ready");
    timed(&what, || {
        CLUSTER.kubectl([
            "wait",
            "-n",
            namespace,
            "--for=condition=Ready",
            "--timeout=120s",
            &format!("pod/{name}"),
        ])
    })
    .unwrap();
}

fn get(namespace: &str, name: &str) -> Value {
    CLUSTER
        .get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
        .unwrap()
}

#[test]
fn a_restricted_pod_runs_and_takes_commands() {
    namespace("restricted");
    let sleeper = container("main", "exec sleep 1000000", "");
    CLUSTER
        .apply(&pod("restricted", "sleeper", &format!("  containers:{sleeper}")))
        .unwrap();
    wait_until_ready("restricted", "sleeper");
    let id = timed("kubectl exec", || {
        CLUSTER.kubectl(["exec", "-n", "restricted", "sleeper", "--", "id", "-u"])
    });
    assert_eq!(id.unwrap().trim(), "1000");
    // One that asks for more is refused, so it was really under those rules.
    let greedy = "{apiVersion: v1, kind: Pod, metadata: {name: greedy, namespace: restricted}, \
                  spec: {containers: [{name: main, image: local/busybox:1, securityContext: {privileged: true}}]}}";
    let refused = CLUSTER.apply(greedy).unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

#[test]
fn a_service_is_found_by_name_and_answers() {
    namespace("services");
    let server = container(
        "main",
        "mkdir /tmp/www && echo hello >/tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www",
        "volumeMounts: [{name: tmp, mountPath: /tmp}]",
    );
    let client = container("main", "exec sleep 1000000", "");
    let server = format!("  volumes: [{{name: tmp, emptyDir: {{}}}}]\n  containers:{server}");
    CLUSTER.apply(&pod("services", "web", &server)).unwrap();
    CLUSTER
        .apply(&pod("services", "client", &format!("  containers:{client}")))
        .unwrap();
    CLUSTER
        .apply(
            "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: services}, \
             spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}",
        )
        .unwrap();
    wait_until_ready("services", "web");
    wait_until_ready("services", "client");
    let fetched = timed("a Service by name", || {
        CLUSTER.wait_for("an answer", LIMIT, || {
            CLUSTER
                .kubectl([
                    "exec",
                    "-n",
                    "services",
                    "client",
                    "--",
                    "wget",
                    "-q",
                    "-O",
                    "-",
                    "http://web.services.svc.cluster.local",
                ])
                .map(Some)
        })
    });
    assert_eq!(fetched.unwrap(), "hello\n");

    // The same from outside: through a relay, to the Service's address.
    let service = CLUSTER.get("/api/v1/namespaces/services/services/web").unwrap();
    let address = format!("{}:80", service["spec"]["clusterIP"].as_str().unwrap());
    let relay = CLUSTER.relay(address.parse::<SocketAddr>().unwrap()).unwrap();
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
}

#[test]
fn a_native_sidecar_starts_first_and_stays() {
    namespace("sidecars");
    let sidecar = container(
        "sidecar",
        "touch /shared/ready && exec sleep 1000000",
        "restartPolicy: Always
    volumeMounts: [{name: shared, mountPath: /shared}]
    startupProbe: {exec: {command: [test, -e, /shared/ready]}, periodSeconds: 1}",
    );
    let main = container(
        "main",
        "test -e /shared/ready && exec sleep 1000000",
        "volumeMounts: [{name: shared, mountPath: /shared}]",
    );
    let spec = format!(
        "  volumes: [{{name: shared, emptyDir: {{medium: Memory}}}}]
  initContainers:{sidecar}
  containers:{main}"
    );
    CLUSTER.apply(&pod("sidecars", "both", &spec)).unwrap();
    wait_until_ready("sidecars", "both");
    let both = get("sidecars", "both");
    assert_eq!(both["status"]["initContainerStatuses"][0]["ready"], true);
    assert_eq!(both["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn logs_and_events_of_a_crash_are_there() {
    namespace("crashes");
    let crasher = container("main", "echo the reason; exit 3", "");
    CLUSTER
        .apply(&pod("crashes", "crasher", &format!("  containers:{crasher}")))
        .unwrap();
    let code = CLUSTER.wait_for("the crash", LIMIT, || {
        let status = &get("crashes", "crasher")["status"]["containerStatuses"][0];
        Ok(status["lastState"]["terminated"]["exitCode"].as_i64())
    });
    assert_eq!(code.unwrap(), 3);
    let log = CLUSTER
        .wait_for("the log", LIMIT, || {
            CLUSTER.kubectl(["logs", "-n", "crashes", "crasher"]).map(Some)
        })
        .unwrap();
    assert_eq!(log, "the reason\n");
}

#[test]
fn pods_outlive_a_crash_of_the_kubelet() {
    namespace("kubelet");
    let sleeper = container("main", "exec sleep 1000000", "");
    let object = |name: &str| pod("kubelet", name, &format!("  containers:{sleeper}"));
    CLUSTER.apply(&object("before")).unwrap();
    wait_until_ready("kubelet", "before");
    CLUSTER.kill(Component::Kubelet).unwrap();
    timed("the kubelet again", || CLUSTER.start_again(Component::Kubelet)).unwrap();
    CLUSTER.apply(&object("after")).unwrap();
    wait_until_ready("kubelet", "after");
    let before = get("kubelet", "before");
    assert_eq!(before["status"]["containerStatuses"][0]["restartCount"], 0);
}
