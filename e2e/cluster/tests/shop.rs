//! The whole product on a real node: the sequence of commands that the documents show, agents in pods, the reasons that
//! a node gives, rules for other kinds, scopes in scopes, and the words of the old versions.
//!
//! One node and one aggregator for all tests of this file; each has its own namespace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/aggregator.rs"]
mod support;

use {
    crate::support::{
        Aggregator, NODE_ADDRESS, Setup, Tls, Watched, apply, component, condition, install, kubectl,
        kubectl_command, namespace, program, scope, status,
    },
    anyhow::{Context, bail, ensure},
    healthscope_e2e_cluster::{Cluster, Image, Options, timed},
    rustix::process::Signal,
    serde_json::Value,
    std::{
        fs,
        path::Path,
        process::Command,
        sync::{Arc, LazyLock},
        time::{Duration, Instant},
    },
};

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options::node()).unwrap();
    timed("import of busybox", || cluster.import(&Image::busybox())).unwrap();
    install(&cluster);
    cluster
});

static TLS: LazyLock<Arc<Tls>> = LazyLock::new(|| Arc::new(Tls::create()));

/// In the cluster's network and with TLS, so that agents in pods reach it.
static AGGREGATOR: LazyLock<Aggregator<'static>> = LazyLock::new(|| {
    let setup = Setup {
        is_inside: true,
        tls: Some(Arc::clone(&TLS)),
        ..Setup::default()
    };
    let aggregator = Aggregator::launch(&CLUSTER, setup);
    timed("start of the aggregator", || aggregator.wait_ready());
    aggregator
});

/// The image that has the agent's program.
const AGENT_IMAGE: &str = "local/agent:1";

/// A file of the repository.
fn example(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A HealthScope with these lines below `spec`.
fn health_scope(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: core.oam.dev/v1beta1, kind: HealthScope, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

/// A HealthScope with one member.
fn scope_of(api_version: &str, kind: &str, name: &str) -> String {
    health_scope(
        name,
        &format!("{{workloadRefs: [{{apiVersion: {api_version}, kind: {kind}, name: {name}}}]}}"),
    )
}

/// Waits until a command prints all of this; what it prints. Its exit code is its answer, and not looked at.
#[track_caller]
fn shows(namespace: &str, line: &str, words: &[&str]) -> String {
    AGGREGATOR.until(&format!("kubectl {line} to show {words:?}"), || {
        let output = kubectl_command(&CLUSTER, namespace, line).output()?;
        let shown = String::from_utf8(output.stdout)?;
        ensure!(
            words.iter().all(|word| shown.contains(word)),
            "it shows:\n{shown}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Some(shown))
    })
}

/// Names of the pods with a label.
fn pods(namespace: &str, label: &str) -> Vec<String> {
    let names = kubectl(&CLUSTER, namespace, &format!("get pods -l {label} -o name"));
    names
        .lines()
        .map(|name| name.trim_start_matches("pod/").to_owned())
        .collect()
}

#[test]
fn the_documented_commands_work_as_written() {
    namespace(&CLUSTER, "shop");
    let shop = example("examples/kubernetes/shop.yaml").replace("busybox:1.37", "local/busybox:1");
    assert!(shop.contains("local/busybox:1"));
    apply(&CLUSTER, "shop", &shop);
    let cause = "db: StatefulSet 0/1 ready, db-0 CrashLoopBackOff (exit 1";
    timed("the shop's root cause", || {
        AGGREGATOR.until_status("to name the root cause", "shop", "shop", |status| {
            let is_named = |said: &str| said.starts_with(cause);
            status["health"] == "Unhealthy"
                && status["available"] == "2/3"
                && status["rootCause"].as_str().is_some_and(is_named)
        })
    });

    // Between two restarts, which become ever rarer.
    let table = shows("shop", "get healthscope", &["Unhealthy", "2/3", cause]);
    let head: Vec<&str> = table.lines().next().unwrap().split("  ").map(str::trim).collect();
    let head: Vec<&str> = head.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(head, ["NAME", "HEALTH", "AVAILABLE", "ROOT CAUSE", "AGE"]);
    for other_name in ["health", "healthscopes", "oam"] {
        shows(
            "shop",
            &format!("get {other_name}"),
            &["shop", "Unhealthy", "2/3", cause],
        );
    }
    for version in ["v1alpha2", "v1alpha1"] {
        let old = shows(
            "shop",
            &format!("get healthscopes.{version}.core.oam.dev shop -o yaml"),
            &["healthStatus: UNHEALTHY"],
        );
        assert!(
            old.contains(&format!("apiVersion: core.oam.dev/{version}\n")),
            "{old}"
        );
    }
    let why = shows("shop", "healthscope why shop", &["db-0", "CrashLoopBackOff"]);
    assert!(why.starts_with("shop is Unhealthy"), "{why}");
    shows(
        "shop",
        "explain healthscope.spec.policy",
        &["minAvailable", "unknownPolicy"],
    );

    // A person mends it; a StatefulSet does not replace a pod that never became ready by itself.
    let mended = r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/command",
        "value": ["sh", "-c", "touch /tmp/ready && exec sleep infinity"]}]"#;
    CLUSTER
        .kubectl([
            "patch",
            "statefulset/db",
            "-n",
            "shop",
            "--type=json",
            "-p",
            mended,
        ])
        .unwrap();
    CLUSTER
        .kubectl(["delete", "pod", "db-0", "-n", "shop", "--wait=false"])
        .unwrap();
    timed("kubectl wait for the shop", || {
        kubectl(
            &CLUSTER,
            "shop",
            "wait --for=condition=Healthy healthscope/shop --timeout=120s",
        )
    });
    // A crash that came late may still have been on its way.
    AGGREGATOR.until_health("shop", "shop", "Healthy");
    let shown = shows(
        "shop",
        "describe healthscope shop",
        &["Recovered", "Healthy again after"],
    );
    let (_, events) = shown.split_once("Events:").unwrap();
    let rows: Vec<&str> = events
        .lines()
        .skip(3)
        .filter(|row| !row.trim().is_empty())
        .collect();
    for row in &rows {
        let is_transition = row.contains("Healthy again after")
            || row.contains("Unhealthy after")
            || row.contains("Unknown after");
        assert!(is_transition, "{row}\n{shown}");
    }
    // Nothing more happens, so nothing more is told.
    let version = scope(&CLUSTER, "shop", "shop").unwrap()["metadata"]["resourceVersion"].clone();
    std::thread::sleep(Duration::from_secs(3));
    let later = kubectl(&CLUSTER, "shop", "describe healthscope shop");
    let (_, later) = later.split_once("Events:").unwrap();
    assert_eq!(later.lines().count(), events.lines().count(), "{events}\n{later}");
    assert_eq!(
        scope(&CLUSTER, "shop", "shop").unwrap()["metadata"]["resourceVersion"],
        version
    );
    timed("kubectl healthscope wait", || {
        kubectl(
            &CLUSTER,
            "shop",
            "healthscope wait shop --for=healthy --timeout=30s",
        )
    });
}

/// The agent's program and the libraries that it is linked with, at the paths where its loader looks for them.
fn agent_image() -> Image {
    let agent = program("healthscope-agent");
    let linked = Command::new("ldd").arg(&agent).output().unwrap();
    let image = Image::new(AGENT_IMAGE)
        .directory("/tmp", 0o1777)
        .file("/healthscope-agent", agent, 0o755)
        .user("1000:1000")
        .entrypoint(["/healthscope-agent"]);
    String::from_utf8(linked.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .fold(image, |image, library| image.file(library, library, 0o755))
}

/// A Deployment of two pods that answer on port 8080, with an agent beside each that asks them.
fn checked_web() -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: agent}}
data:
  ca.crt: {ca}
  components.yaml: |
    apiVersion: healthscope.core.oam.dev/v1beta1
    kind: Component
    metadata: {{name: web}}
    spec:
      readinessProbe: {{httpGet: {{path: /health, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, labels: {{healthscope.core.oam.dev/name: checked}}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}}
      initContainers:
        - name: healthscope-agent
          image: {AGENT_IMAGE}
          imagePullPolicy: Never
          restartPolicy: Always
          args:
            - --config=/etc/healthscope/components.yaml
            - --aggregator=wss://{NODE_ADDRESS}:{port}
            - --ca=/etc/healthscope/ca.crt
            - --token-file=/var/run/healthscope/token
            - --socket=/tmp/agent.sock
          volumeMounts:
            - {{name: config, mountPath: /etc/healthscope}}
            - {{name: token, mountPath: /var/run/healthscope}}
      containers:
        - name: main
          image: local/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir -p /tmp/www && touch /tmp/www/health && exec httpd -f -p 8080 -h /tmp/www"]
      volumes:
        - name: config
          configMap: {{name: agent}}
        - name: token
          projected:
            sources: [{{serviceAccountToken: {{path: token, audience: healthscope.core.oam.dev, expirationSeconds: 600}}}}]
---
"#,
        ca = Value::from(TLS.pem.as_str()),
        port = AGGREGATOR.port(),
    ) + &health_scope("checked", "{}")
}

/// Waits until the aggregator knows so many agents of the namespace that are connected; it names them by their pods.
#[track_caller]
fn until_agents(of: &str, expected: &[String]) {
    AGGREGATOR.until(&format!("agents of {expected:?}"), || {
        let (code, body) = AGGREGATOR.get("/api/v1/agents")?;
        ensure!(code == 200, "{code}: {body}");
        let list: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        let agents = list["items"].as_array().with_context(|| body.clone())?;
        let connected: Vec<&str> = agents
            .iter()
            .filter(|agent| agent["presence"] == "connected")
            .filter_map(|agent| agent["name"].as_str())
            .filter(|name| name.contains(of))
            .collect();
        let all_there = expected
            .iter()
            .all(|pod| connected.iter().any(|name| name.contains(pod.as_str())));
        ensure!(all_there && connected.len() == expected.len(), "{body}");
        Ok(Some(()))
    });
}

fn scope_of_web(name: &str) -> String {
    health_scope(
        name,
        "{workloadRefs: [{apiVersion: apps/v1, kind: Deployment, name: web}]}",
    )
}

/// A scope to which nothing has happened for a while.
fn settled(namespace: &str, name: &str) -> Value {
    let mut last = scope(&CLUSTER, namespace, name).unwrap();
    let mut since = Instant::now();
    AGGREGATOR.until("the scope to settle", || {
        let now = scope(&CLUSTER, namespace, name)?;
        if now["metadata"]["resourceVersion"] != last["metadata"]["resourceVersion"] {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > Duration::from_secs(3)).then(|| last.clone()))
    })
}

#[test]
fn agents_in_pods_join_what_the_platform_says() {
    const NAMESPACE: &str = "agents";
    timed("import of the agent", || CLUSTER.import(&agent_image())).unwrap();
    namespace(&CLUSTER, NAMESPACE);
    apply(&CLUSTER, NAMESPACE, &checked_web());
    timed("two pods with agents", || {
        AGGREGATOR.until_status("to have its member healthy", NAMESPACE, "checked", |status| {
            status["health"] == "Healthy" && status["available"] == "1/1"
        })
    });
    let first = pods(NAMESPACE, "app=web");
    until_agents("web-", &first);

    // What only an agent sees: the platform asks nothing of these containers.
    let broken = &first[0];
    let exec = |pod: &str, command: &str| {
        CLUSTER
            .kubectl([
                "exec", "-n", NAMESPACE, pod, "-c", "main", "--", "sh", "-c", command,
            ])
            .unwrap();
    };
    let break_it = |pod: &str| exec(pod, "rm /tmp/www/health");
    let mend_it = |pod: &str| exec(pod, "touch /tmp/www/health");
    timed("a broken check of one of two", || {
        break_it(broken);
        let words = ["readiness http", ":8080/health", broken.as_str(), "404"];
        AGGREGATOR.until_component(NAMESPACE, "checked", "web", "Degraded", &words)
    });
    timed("a broken check of both", || {
        break_it(&first[1]);
        let words = ["readiness http", ":8080/health", "404"];
        AGGREGATOR.until_component(NAMESPACE, "checked", "web", "Unhealthy", &words)
    });
    timed("mended", || {
        first.iter().for_each(|pod| mend_it(pod));
        AGGREGATOR.until_health(NAMESPACE, "checked", "Healthy")
    });

    // A pod that goes takes its instance with it: one is short meanwhile, but nothing is lost or failed.
    let watched = Watched::begin(&CLUSTER, NAMESPACE, "checked");
    timed("a pod replaced", || {
        CLUSTER
            .kubectl(["delete", "pod", broken, "-n", NAMESPACE])
            .unwrap();
        AGGREGATOR.until("the replacement", || {
            let now = pods(NAMESPACE, "app=web");
            Ok((now.len() == 2 && !now.contains(broken)).then_some(()))
        });
        until_agents("web-", &pods(NAMESPACE, "app=web"));
        AGGREGATOR.until_health(NAMESPACE, "checked", "Healthy");
    });
    watched.never(&["Unhealthy", "Unknown", "AgentLost", broken]);

    // The aggregator goes and comes back, in order and not: nobody who watches the scope sees anything of it.
    // Of a scope that has been calm, for a restart forgets that one was flapping: that costs such a scope one write.
    for (signal, calm) in [
        (Signal::TERM, "calm-before-term"),
        (Signal::KILL, "calm-before-kill"),
    ] {
        apply(&CLUSTER, NAMESPACE, &scope_of_web(calm));
        AGGREGATOR.until_health(NAMESPACE, calm, "Healthy");
        let before = settled(NAMESPACE, calm);
        let watched = Watched::begin(&CLUSTER, NAMESPACE, "checked");
        timed(&format!("restart of the aggregator after {signal:?}"), || {
            AGGREGATOR.end(signal);
            AGGREGATOR.start_again();
            AGGREGATOR.wait_ready();
            until_agents("web-", &pods(NAMESPACE, "app=web"));
        });
        // Whatever it would write, it writes once its agents are back.
        std::thread::sleep(Duration::from_secs(5));
        watched.never(&["Degraded", "Unhealthy", "Unknown"]);
        let after = scope(&CLUSTER, NAMESPACE, calm).unwrap();
        assert_eq!(
            before["metadata"]["resourceVersion"],
            after["metadata"]["resourceVersion"],
            "{:#}\n{:#}\n{}",
            before["status"],
            after["status"],
            AGGREGATOR.tail()
        );
        // And it is the one that writes from here on.
        break_it(&pods(NAMESPACE, "app=web")[0]);
        timed("a change after the restart", || {
            AGGREGATOR.until_component(NAMESPACE, "checked", "web", "Degraded", &["404"])
        });
        mend_it(&pods(NAMESPACE, "app=web")[0]);
        AGGREGATOR.until_health(NAMESPACE, "checked", "Healthy");
    }
}

/// A pod's `spec` with one container.
fn pod_spec(script: &str, more: &str, pod: &str) -> String {
    format!(
        "{{terminationGracePeriodSeconds: 0, {pod} containers: [{{name: main, image: local/busybox:1, \
         imagePullPolicy: Never, command: [sh, -c, {script:?}], {more}}}]}}"
    )
}

/// A workload of apps/v1 around pods.
fn workload(kind: &str, name: &str, spec: &str, pod: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec} \
         selector: {{matchLabels: {{app: {name}}}}}, \
         template: {{metadata: {{labels: {{app: {name}}}}}, spec: {pod}}}}}}}\n"
    )
}

const SLEEP: &str = "exec sleep infinity";

/// What is applied, and what must be said of it.
struct Case {
    api_version: &'static str,
    kind: &'static str,
    name: &'static str,
    object: String,
    health: &'static str,
    reason: &'static str,
    words: &'static [&'static str],
}

#[test]
fn a_node_gives_the_reasons() {
    const NAMESPACE: &str = "reasons";
    let deployment = |name, pod: &str| workload("Deployment", name, "", pod);
    let none = "";
    let cases = [
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "crashing",
            object: deployment("crashing", &pod_spec("exit 7", none, none)),
            health: "Unhealthy",
            reason: "CrashLoopBackOff",
            words: &["Deployment 0/1 ready, crashing-", " CrashLoopBackOff (exit 7, "],
        },
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "pulling",
            object: workload(
                "Deployment",
                "pulling",
                "",
                "{containers: [{name: main, image: '127.0.0.1:1/none:1'}]}",
            ),
            health: "Unhealthy",
            reason: "ImagePullBackOff",
            words: &[
                "Deployment 0/1 ready, pulling-",
                " ImagePullBackOff (image 127.0.0.1:1/none:1",
            ],
        },
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "homeless",
            object: deployment("homeless", &pod_spec(SLEEP, none, "nodeSelector: {is: nowhere},")),
            health: "Unhealthy",
            reason: "Unschedulable",
            words: &[
                "Deployment 0/1 ready, homeless-",
                "Unschedulable: 0/1 nodes are available",
            ],
        },
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "unready",
            object: deployment(
                "unready",
                &pod_spec(
                    SLEEP,
                    "readinessProbe: {exec: {command: ['false']}, periodSeconds: 1}",
                    none,
                ),
            ),
            health: "Unhealthy",
            reason: "ContainersNotReady",
            words: &["Deployment 0/1 ready, unready-", "not ready: container main"],
        },
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "asleep",
            object: workload(
                "Deployment",
                "asleep",
                "replicas: 0,",
                &pod_spec("exit 1", none, none),
            ),
            health: "Healthy",
            reason: "Passing",
            words: &[],
        },
        Case {
            api_version: "apps/v1",
            kind: "DaemonSet",
            name: "everywhere",
            object: workload("DaemonSet", "everywhere", "", &pod_spec(SLEEP, none, none)),
            health: "Healthy",
            reason: "Passing",
            words: &[],
        },
        Case {
            api_version: "apps/v1",
            kind: "DaemonSet",
            name: "nowhere-well",
            object: workload("DaemonSet", "nowhere-well", "", &pod_spec("exit 3", none, none)),
            health: "Unhealthy",
            reason: "CrashLoopBackOff",
            words: &["DaemonSet 0/1 ready, nowhere-well-", "CrashLoopBackOff (exit 3, "],
        },
        Case {
            api_version: "batch/v1",
            kind: "Job",
            name: "done",
            object: job("done", "true"),
            health: "Healthy",
            reason: "Passing",
            words: &[],
        },
        Case {
            api_version: "batch/v1",
            kind: "Job",
            name: "failing",
            object: job("failing", "exit 9"),
            health: "Unhealthy",
            reason: "BackoffLimitExceeded",
            words: &["Job failed: BackoffLimitExceeded"],
        },
        Case {
            api_version: "batch/v1",
            kind: "CronJob",
            name: "minutely",
            object: format!(
                "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: minutely}}, spec: {{schedule: '* * * * *', \
                 jobTemplate: {{spec: {}}}}}}}\n",
                job_spec("exit 9")
            ),
            health: "Unhealthy",
            reason: "BackoffLimitExceeded",
            words: &["last run minutely-", "Job failed: BackoffLimitExceeded"],
        },
        Case {
            api_version: "v1",
            kind: "PersistentVolumeClaim",
            name: "disk",
            object:
                "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: disk}, spec: {accessModes: \
                     [ReadWriteOnce], storageClassName: fast, resources: {requests: {storage: 1Gi}}}}\n"
                    .to_owned(),
            health: "Unknown",
            reason: "Pending",
            words: &["no volume of storage class fast is bound to it yet"],
        },
        Case {
            api_version: "v1",
            kind: "Service",
            name: "front",
            object:
                "{apiVersion: v1, kind: Service, metadata: {name: front}, spec: {selector: {app: x}, ports: \
                     [{port: 80}]}}\n"
                    .to_owned(),
            health: "Healthy",
            reason: "Passing",
            words: &[],
        },
        Case {
            api_version: "v1",
            kind: "Service",
            name: "balanced",
            object: "{apiVersion: v1, kind: Service, metadata: {name: balanced}, spec: {type: LoadBalancer, \
                     selector: {app: x}, ports: [{port: 80}]}}\n"
                .to_owned(),
            health: "Unknown",
            reason: "Pending",
            words: &["Service waits for the address of its load balancer"],
        },
        Case {
            api_version: "apps/v1",
            kind: "Deployment",
            name: "missing",
            object: String::new(),
            health: "Unhealthy",
            reason: "NotFound",
            words: &["there is no Deployment called missing"],
        },
    ];
    namespace(&CLUSTER, NAMESPACE);
    let objects: Vec<String> = cases
        .iter()
        .flat_map(|case| {
            let scope = scope_of(case.api_version, case.kind, case.name);
            [case.object.clone(), scope]
        })
        .filter(|object| !object.is_empty())
        .collect();
    apply(&CLUSTER, NAMESPACE, &objects.join("---\n"));
    for case in &cases {
        let Case {
            kind,
            name,
            health,
            reason,
            words,
            ..
        } = case;
        timed(&format!("{kind} {name}"), || {
            let found = AGGREGATOR.until_component(NAMESPACE, name, name, health, words);
            assert_eq!(found["reason"], *reason, "{found:#}");
        });
    }
    an_image_pull_is_one_trouble(NAMESPACE);
}

fn job_spec(script: &str) -> String {
    let pod = pod_spec(script, "", "restartPolicy: Never,");
    format!("{{backoffLimit: 0, template: {{spec: {pod}}}}}")
}

fn job(name: &str, script: &str) -> String {
    format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {}}}\n",
        job_spec(script)
    )
}

/// The kubelet says in turn that it failed and that it waits; nobody is to be told of that again and again.
fn an_image_pull_is_one_trouble(namespace: &str) {
    let pod = pods(namespace, "app=pulling").remove(0);
    let version = || scope(&CLUSTER, namespace, "pulling").unwrap()["metadata"]["resourceVersion"].clone();
    let before = version();
    timed("both words for a failed pull", || {
        for word in ["ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"] {
            AGGREGATOR.until(word, || {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
                let waiting = &CLUSTER.get(&path)?["status"]["containerStatuses"][0]["state"]["waiting"];
                Ok((waiting["reason"] == word).then_some(()))
            });
        }
    });
    assert_eq!(before, version());
}

#[test]
fn a_rollout_is_never_unhealthy() {
    const NAMESPACE: &str = "rollout";
    namespace(&CLUSTER, NAMESPACE);
    let pod = pod_spec(
        "sleep 2; touch /tmp/ready; exec sleep infinity",
        "readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}",
        "",
    );
    apply(
        &CLUSTER,
        NAMESPACE,
        &[
            workload("Deployment", "web", "replicas: 5,", &pod),
            scope_of("apps/v1", "Deployment", "web"),
        ]
        .join("---\n"),
    );
    timed("5 pods", || AGGREGATOR.until_health(NAMESPACE, "web", "Healthy"));
    let watched = Watched::begin(&CLUSTER, NAMESPACE, "web");
    timed("rollout of 5 pods", || {
        kubectl(&CLUSTER, NAMESPACE, "rollout restart deployment/web");
        kubectl(
            &CLUSTER,
            NAMESPACE,
            "rollout status deployment/web --timeout=120s",
        );
        AGGREGATOR.until_health(NAMESPACE, "web", "Healthy");
    });
    watched.never(&["Unhealthy", "Unknown"]);
}

const DATABASES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: databases.db.example.org}
spec:
  group: db.example.org
  scope: Namespaced
  names: {kind: Database, plural: databases, singular: database}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

#[test]
fn a_rule_judges_a_kind_that_comes_and_goes() {
    const NAMESPACE: &str = "rules";
    namespace(&CLUSTER, NAMESPACE);
    let rule = "object.status.phase == 'Available'";
    let spec = format!(
        "{{workloadRefs: [{{apiVersion: db.example.org/v1, kind: Database, name: main, healthyWhen: {rule:?}}}]}}"
    );
    apply(&CLUSTER, NAMESPACE, &health_scope("stock", &spec));
    let says = |what: &str, health: &str, reason: &str, words: &[&str]| {
        timed(what, || {
            let found = AGGREGATOR.until_component(NAMESPACE, "stock", "main", health, words);
            assert_eq!(found["reason"], reason, "{found:#}");
        });
    };
    says(
        "a kind that is not installed",
        "Unknown",
        "KindNotInstalled",
        &["kind Database of group \"db.example.org\" is not installed"],
    );
    CLUSTER.apply(DATABASES).unwrap();
    says(
        "a kind that was installed",
        "Unhealthy",
        "NotFound",
        &["there is no Database called main"],
    );
    apply(
        &CLUSTER,
        NAMESPACE,
        "{apiVersion: db.example.org/v1, kind: Database, metadata: {name: main}}",
    );
    says(
        "an object without status",
        "Unknown",
        "RuleFailed",
        &["object.status", "no such key"],
    );
    let phase = |phase: &str| {
        let status = format!(r#"{{"status":{{"phase":"{phase}"}}}}"#);
        CLUSTER
            .kubectl([
                "patch",
                "databases.db.example.org/main",
                "-n",
                NAMESPACE,
                "--subresource=status",
                "--type=merge",
                "-p",
                &status,
            ])
            .unwrap();
    };
    phase("Available");
    says("a rule that is met", "Healthy", "Passing", &[]);
    phase("Failed");
    says(
        "a rule that is not met",
        "Unhealthy",
        "RuleNotMet",
        &["Database phase is Failed"],
    );
    phase("Available");
    says("a rule that is met again", "Healthy", "Passing", &[]);
    kubectl(&CLUSTER, NAMESPACE, "delete crd databases.db.example.org");
    says(
        "a kind that was taken away",
        "Unknown",
        "KindNotInstalled",
        &["is not installed"],
    );
    CLUSTER.apply(DATABASES).unwrap();
    says(
        "a kind that is back",
        "Unhealthy",
        "NotFound",
        &["there is no Database called main"],
    );
}

#[test]
fn scopes_nest_and_stay_in_their_namespace() {
    const NAMESPACE: &str = "nested";
    namespace(&CLUSTER, NAMESPACE);
    let objects = [
        workload("Deployment", "ledger", "", &pod_spec("exit 5", "", "")),
        scope_of("apps/v1", "Deployment", "ledger"),
        health_scope(
            "payments",
            "{workloadRefs: [{apiVersion: core.oam.dev/v1beta1, kind: HealthScope, name: ledger}]}",
        ),
        health_scope(
            "company",
            "{workloadRefs: [{apiVersion: core.oam.dev/v1beta1, kind: HealthScope, name: payments}]}",
        ),
        health_scope(
            "greedy",
            "{workloadRefs: [{apiVersion: apps/v1, kind: Deployment, name: web, namespace: default}]}",
        ),
    ];
    apply(&CLUSTER, NAMESPACE, &objects.join("---\n"));
    timed("a cause two scopes down", || {
        AGGREGATOR.until_status("to name the leaf", NAMESPACE, "company", |status| {
            let cause = status["rootCause"].as_str().unwrap_or_default();
            status["health"] == "Unhealthy" && cause.contains("ledger") && cause.contains("exit 5")
        })
    });
    timed("a member of another namespace", || {
        AGGREGATOR.until_status("to be refused", NAMESPACE, "greedy", |status| {
            condition(status, "Stalled").is_some_and(|stalled| {
                let message = stalled["message"].as_str().unwrap_or_default();
                stalled["status"] == "True"
                    && message.contains("a scope has members from its own namespace (nested) only")
            })
        })
    });
    let mended = workload("Deployment", "ledger", "", &pod_spec(SLEEP, "", ""));
    apply(&CLUSTER, NAMESPACE, &mended);
    timed("mended two scopes down", || {
        AGGREGATOR.until_health(NAMESPACE, "company", "Healthy")
    });
}

#[test]
fn objects_of_the_old_versions_get_their_words() {
    const NAMESPACE: &str = "old";
    namespace(&CLUSTER, NAMESPACE);
    let label = "healthscope.core.oam.dev/name: my-health-scope";
    let labelled = |kind: &str, name: &str, pod: &str| {
        workload(kind, name, "", pod).replacen(
            "metadata: {",
            &format!("metadata: {{labels: {{{label}}}, "),
            1,
        )
    };
    let sleeping = pod_spec(SLEEP, "", "");
    apply(
        &CLUSTER,
        NAMESPACE,
        &[
            labelled("Deployment", "front-end", &sleeping),
            labelled("StatefulSet", "data-base", &pod_spec("exit 1", "", "")),
            workload("Deployment", "web", "", &sleeping),
        ]
        .join("---\n"),
    );
    for (file, from, to) in [
        ("oam.yaml", "", ""),
        ("rudr.yaml", "", ""),
        // Its references name the namespace that it was made in.
        ("kubevela.yaml", "namespace: default", "namespace: old"),
    ] {
        let object = example(&format!("examples/migration/{file}"));
        let object = if from.is_empty() {
            object
        } else {
            object.replace(from, to)
        };
        apply(&CLUSTER, NAMESPACE, &object);
    }
    let oam = |name: &str| -> anyhow::Result<Value> {
        let path = format!("/apis/core.oam.dev/v1alpha2/namespaces/{NAMESPACE}/healthscopes/{name}");
        Ok(CLUSTER.get(&path)?["status"].take())
    };
    timed("OAM's words", || {
        AGGREGATOR.until("OAM's verdicts on its example", || {
            let status = oam("example-health-scope")?;
            let words: Vec<(&str, &str)> = conditions(&status);
            let expected = [("web", "HEALTHY"), ("front-end", "UNHEALTHY")];
            if !expected.iter().all(|one| words.contains(one)) || words.len() != 2 {
                bail!("its status is {status:#}");
            }
            Ok(Some(()))
        });
        AGGREGATOR.until("OAM's verdict on an empty scope", || {
            let status = oam("empty-health-scope")?;
            ensure!(
                status["scopeHealthCondition"]["healthStatus"] == "HEALTHY",
                "{status:#}"
            );
            Ok(Some(()))
        });
        AGGREGATOR.until("OAM's verdicts on KubeVela's example", || {
            let status = oam("vela-health-scope")?;
            let words = conditions(&status);
            let expected = [("front-end", "HEALTHY"), ("data-base", "UNHEALTHY")];
            if !expected.iter().all(|one| words.contains(one)) {
                bail!("its status is {status:#}");
            }
            Ok(Some(()))
        });
    });
    timed("Rudr's words", || {
        AGGREGATOR.until("Rudr's words on its example", || {
            let path =
                format!("/apis/core.oam.dev/v1alpha1/namespaces/{NAMESPACE}/healthscopes/my-health-scope");
            let status = CLUSTER.get(&path)?["status"].take();
            let word = |name: &str| component(&status, name).map(|component| component["status"].clone());
            ensure!(
                word("front-end") == Some("healthy".into()) && word("data-base") == Some("unhealthy".into()),
                "its status is {status:#}"
            );
            Ok(Some(()))
        });
        // A container that exits is ready each time, for a moment.
        AGGREGATOR.until("the page's word", || {
            let (code, word) = AGGREGATOR.get("/scopes/old/my-health-scope")?;
            ensure!(code == 503 && word.contains("Unhealthy"), "{code} {word}");
            Ok(Some(()))
        });
    });
}

/// The workloads of OAM's `healthConditions` and their words.
fn conditions(status: &Value) -> Vec<(&str, &str)> {
    let list = status["healthConditions"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|condition| {
            let name = condition["targetWorkload"]["name"].as_str()?;
            Some((name, condition["healthStatus"].as_str()?))
        })
        .collect()
}

#[test]
fn an_empty_scope_is_healthy_and_quiet() {
    const NAMESPACE: &str = "empty";
    namespace(&CLUSTER, NAMESPACE);
    let begun = Instant::now();
    apply(&CLUSTER, NAMESPACE, &health_scope("nothing", "{}"));
    AGGREGATOR.until_health(NAMESPACE, "nothing", "Healthy");
    healthscope_e2e_cluster::tell(&format!("an empty scope took {:.1?}", begun.elapsed()));
    let status = status(&CLUSTER, NAMESPACE, "nothing").unwrap();
    assert_eq!(status["available"], "0/0", "{status:#}");
    for (kind, expected) in [("Ready", "True"), ("Healthy", "True"), ("Stalled", "False")] {
        assert_eq!(
            condition(&status, kind).unwrap()["status"],
            expected,
            "{status:#}"
        );
    }
}
