//! The webhook and its certificates on a real API server: pods get agents, certificates change under load, and whatever
//! somebody breaks, pods are admitted.
//!
//! The aggregator is its own program, with the rights that it says it needs and no others. The API server reaches it
//! through a Service whose name is this machine's, so that it asks for the certificate's real name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/aggregator.rs"]
mod support;

use {
    crate::support::{Aggregator, LIMIT, Setup, apply, install, namespace},
    anyhow::{Context, bail, ensure},
    base64::{Engine, engine::general_purpose::STANDARD},
    healthscope_e2e_cluster::{Cluster, Options, tell, wait_for},
    rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair},
    rustix::process::Signal,
    rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned},
    rustls_pki_types::{CertificateDer, ServerName, pem::PemObject},
    serde_json::{Value, json},
    std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpListener, TcpStream},
        path::PathBuf,
        sync::{
            Arc, LazyLock, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        thread,
        time::{Duration, Instant},
    },
};

/// What injected pods are to run; nothing is pulled here.
const IMAGE: &str = "example.org/healthscope-agent:test";
/// How long one exchange may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Questions a second, as from a busy cluster.
const RATE: u32 = 200;
/// Longest answer that the API server waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    install(&cluster);
    cluster
});

/// An installation in a namespace of its own: what the chart makes.
struct Installation {
    namespace: &'static str,
    /// Where pods get agents.
    shop: String,
    kubeconfig: PathBuf,
    port: u16,
}

impl Installation {
    fn new(namespace_of_test: &'static str) -> Self {
        let cluster = &*CLUSTER;
        let name = namespace_of_test;
        namespace(cluster, name);
        let shop = format!("{name}-shop");
        let port = free_port();
        cluster
            .apply(&format!(
                r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {shop}, labels: {{healthscope.core.oam.dev/inject: enabled, of: {name}}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: healthscope-tls, namespace: {name}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: healthscope-ca, namespace: {name}}}
---
apiVersion: v1
kind: Service
metadata: {{name: healthscope-webhook, namespace: {name}}}
spec: {{type: ExternalName, externalName: localhost}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
  - &entry
    name: namespace.healthscope.core.oam.dev
    clientConfig: {{service: {{namespace: {name}, name: healthscope-webhook, path: /inject, port: {port}}}}}
    rules: [{{apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE]}}]
    namespaceSelector: {{matchLabels: {{of: {name}}}}}
    objectSelector: {{matchExpressions: [{{key: healthscope.core.oam.dev/inject, operator: NotIn, values: [disabled]}}]}}
    failurePolicy: Ignore
    timeoutSeconds: 2
    reinvocationPolicy: IfNeeded
    sideEffects: None
    admissionReviewVersions: [v1]
  - <<: *entry
    name: pod.healthscope.core.oam.dev
    namespaceSelector: {{matchLabels: {{nobody: has-this}}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {name}}}
rules:
  - {{apiGroups: [core.oam.dev], resources: [healthscopes], verbs: [get, list, watch]}}
  - {{apiGroups: [core.oam.dev], resources: [healthscopes/status], verbs: [update]}}
  - {{apiGroups: [""], resources: [pods], verbs: [list, watch]}}
  - {{apiGroups: [apps], resources: [replicasets, deployments, statefulsets, daemonsets], verbs: [list, watch]}}
  - {{apiGroups: [batch], resources: [jobs, cronjobs], verbs: [list, watch]}}
  - {{apiGroups: [events.k8s.io], resources: [events], verbs: [create]}}
  - {{apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}}
  - {{apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}}
  - {{apiGroups: [""], resources: [namespaces, limitranges, resourcequotas], verbs: [list, watch]}}
  - {{apiGroups: [admissionregistration.k8s.io], resources: [mutatingwebhookconfigurations], resourceNames: [{name}], verbs: [get, patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {name}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: aggregator, namespace: {name}}}
rules:
  - {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}}
  - {{apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [healthscope-aggregator], verbs: [get, update]}}
  - {{apiGroups: [""], resources: [secrets], resourceNames: [healthscope-tls], verbs: [get, watch, update]}}
  - {{apiGroups: [""], resources: [configmaps], resourceNames: [healthscope-ca], verbs: [get, patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: aggregator, namespace: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: aggregator}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {name}}}]
"#
            ))
            .unwrap();
        Self {
            namespace: namespace_of_test,
            shop,
            kubeconfig: cluster.kubeconfig_for(name, None).unwrap(),
            port,
        }
    }

    /// Starts a replica whose webhook is the one that the API server knows.
    fn start(&self) -> Aggregator<'static> {
        let replica = self.replica("first", self.port);
        self.wait_ready(&replica, self.port);
        // The API server takes a new caBundle up a moment after it is written.
        replica.until("the API server to trust the webhook", || {
            self.probe_pod()?;
            Ok(Some(()))
        });
        replica
    }

    fn replica(&self, name: &str, webhook: u16) -> Aggregator<'static> {
        let arguments = [
            "--namespace",
            self.namespace,
            "--pod-name",
            name,
            "--tls-secret",
            "healthscope-tls",
            "--webhook-listen",
            &format!("127.0.0.1:{webhook}"),
            "--webhook-configuration",
            self.namespace,
            "--agent-image",
            IMAGE,
            "--allow-plaintext",
        ];
        let setup = Setup {
            kubeconfig: Some(self.kubeconfig.clone()),
            arguments: arguments.map(str::to_owned).to_vec(),
            name: Some(format!("{}-{name}", self.namespace)),
            ..Setup::default()
        };
        Aggregator::launch(&CLUSTER, setup)
    }

    /// Creates a pod without storing it, which must come back with an agent.
    fn probe_pod(&self) -> anyhow::Result<()> {
        let output = CLUSTER
            .kubectl_command()
            .args(["run", "probe", "--image=x", "--dry-run=server", "-o", "json", "-n", &self.shop])
            .args(["--overrides", r#"{"spec":{"serviceAccountName":"default","containers":[{"name":"probe","image":"x","readinessProbe":{"tcpSocket":{"port":1}}}]}}"#])
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(has_agent(&serde_json::from_slice(&output.stdout)?), "no agent");
        Ok(())
    }

    /// Waits until the replica's webhook says that it is ready.
    #[track_caller]
    fn wait_ready(&self, replica: &Aggregator<'_>, port: u16) {
        replica.until("the webhook to be ready", || {
            let (code, body) = self.exchange(&self.bundle()?, port, "GET /readyz", b"")?;
            ensure!(code == 200, "it answers {code}: {body}");
            Ok(Some(()))
        });
    }

    /// What is published for those who connect.
    fn bundle(&self) -> anyhow::Result<String> {
        let map = CLUSTER.get(&format!(
            "/api/v1/namespaces/{}/configmaps/healthscope-ca",
            self.namespace
        ))?;
        let bundle = map["data"]["ca.crt"].as_str();
        bundle.map(str::to_owned).context("nothing is published")
    }

    fn secret(&self) -> Value {
        CLUSTER
            .get(&format!(
                "/api/v1/namespaces/{}/secrets/healthscope-tls",
                self.namespace
            ))
            .unwrap()
    }

    /// A text in the Secret.
    fn text(&self, key: &str) -> String {
        let encoded = self.secret()["data"][key].as_str().unwrap_or_default().to_owned();
        String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
    }

    fn patch_secret(&self, patch: &Value) {
        CLUSTER
            .kubectl([
                "patch",
                "secret",
                "healthscope-tls",
                "-n",
                self.namespace,
                "--type=merge",
                "-p",
                &patch.to_string(),
            ])
            .unwrap();
    }

    /// Asks the webhook over a connection of its own, trusting this bundle.
    fn ask(&self, bundle: &str, review: &[u8]) -> anyhow::Result<(u16, String)> {
        self.exchange(bundle, self.port, "POST /inject?timeout=2s", review)
    }

    fn exchange(&self, bundle: &str, port: u16, line: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
        let name = format!("healthscope-webhook.{}.svc", self.namespace);
        https(bundle, port, &name, line, body)
    }

    /// A metric of a replica, from its main listener.
    fn metric(&self, replica: &Aggregator<'_>, series: &str) -> anyhow::Result<f64> {
        let name = format!("healthscope-aggregator.{}.svc", self.namespace);
        let (code, text) = https(&self.bundle()?, replica.port(), &name, "GET /metrics", b"")?;
        ensure!(code == 200, "/metrics answers {code}: {text}");
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.with_context(|| format!("there is no {series}"))
    }

    fn configuration(&self) -> Value {
        CLUSTER
            .get(&format!(
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
                self.namespace
            ))
            .unwrap()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A connection over which questions are asked one after the other, as the API server does.
struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    name: String,
    is_open: bool,
}

impl Connection {
    fn open(bundle: &str, port: u16, name: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let server = ServerName::try_from(name.to_owned())?;
        let session = ClientConnection::new(Arc::new(config), server)?;
        Ok(Self {
            stream: StreamOwned::new(session, stream),
            name: name.to_owned(),
            is_open: true,
        })
    }

    /// The answer's code and body.
    fn exchange(&mut self, line: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
            self.name,
            CLUSTER.admin_token(),
            body.len()
        );
        self.stream.write_all(&[request.as_bytes(), body].concat())?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<(u16, String)> {
        let mut answer = Vec::new();
        let mut part = [0; 16 * 1024];
        loop {
            let read = self.stream.read(&mut part)?;
            ensure!(read > 0, "the connection ended before its answer did");
            answer.extend_from_slice(&part[..read]);
            let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                continue;
            };
            let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.context("an answer without a length")?.trim().parse()?;
            if answer.len() >= end + 4 + length {
                self.is_open = !head.contains("connection: close");
                let code = head.split(' ').nth(1).context("no HTTP")?.parse()?;
                return Ok((code, String::from_utf8(answer[end + 4..].to_vec())?));
            }
        }
    }
}

fn https(bundle: &str, port: u16, name: &str, line: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
    Connection::open(bundle, port, name)?.exchange(line, body)
}

fn has_agent(pod: &Value) -> bool {
    pod["spec"]["initContainers"][0]["name"] == "healthscope-agent"
}

/// A question as the API server asks it, about a pod with so many containers.
fn review(namespace: &str, containers: usize) -> Value {
    let containers: Vec<Value> = (0..containers)
        .map(|index| {
            json!({
                "name": format!("c{index}"),
                "image": "example.org/app",
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10},
                "env": [{"name": "A", "value": "x".repeat(200)}],
            })
        })
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"generateName": "web-5d9-", "namespace": namespace},
                "spec": {"serviceAccountName": "default", "containers": containers},
            },
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

/// An answer that lets the pod in, with its patch.
fn patch(answer: &(u16, String)) -> anyhow::Result<Option<Value>> {
    let (code, body) = answer;
    ensure!(*code == 200, "the answer is {code}: {body}");
    let answer: Value = serde_json::from_str(body)?;
    ensure!(answer["kind"] == "AdmissionReview", "{answer}");
    ensure!(answer["response"]["allowed"] == true, "{answer}");
    let Some(patch) = answer["response"]["patch"].as_str() else {
        return Ok(None);
    };
    ensure!(answer["response"]["patchType"] == "JSONPatch", "{answer}");
    Ok(Some(serde_json::from_slice(&STANDARD.decode(patch)?)?))
}

/// The ServiceAccount is named because nothing here does that for it: there is no controller manager.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  serviceAccountName: default
  containers:
    - {name: main, image: example.org/app, readinessProbe: {tcpSocket: {port: 8080}}}
";

#[test]
fn pods_get_agents_and_are_admitted_without_when_the_webhook_is_gone() {
    let installation = Installation::new("webhook-pods");
    let aggregator = installation.start();
    let shop = &installation.shop;
    let pod = |name: &str| {
        CLUSTER
            .get(&format!("/api/v1/namespaces/{shop}/pods/{name}"))
            .unwrap()
    };
    apply(&CLUSTER, shop, &POD.replace("NAME", "with"));
    let with = pod("with");
    assert!(has_agent(&with), "{with:#}");
    let agent = &with["spec"]["initContainers"][0];
    assert_eq!(agent["image"], IMAGE);
    let bundle = installation.bundle().unwrap();
    let variable = |name: &str| {
        let variables = agent["env"].as_array().unwrap();
        let found = variables.iter().find(|variable| variable["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {agent:#}"))["value"].clone()
    };
    assert_eq!(variable("HEALTHSCOPE_CA_PEM"), bundle.as_str());
    assert_eq!(
        variable("HEALTHSCOPE_AGGREGATOR"),
        "wss://healthscope-aggregator.webhook-pods.svc:7575"
    );

    // A namespace that is labelled this moment: the API server and we hear of it by different watches.
    for round in 0..5 {
        let fresh = format!("webhook-fresh-{round}");
        let objects = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {fresh}, labels: \
             {{healthscope.core.oam.dev/inject: enabled, of: webhook-pods}}}}\n---\n{}",
            POD.replace("NAME", &format!("p, namespace: {fresh}"))
        );
        CLUSTER.apply(&objects).unwrap();
        let found = CLUSTER
            .get(&format!("/api/v1/namespaces/{fresh}/pods/p"))
            .unwrap();
        assert!(has_agent(&found), "round {round}");
    }

    // One whose annotation cannot be meant is admitted, and its owner is told why.
    apply(
        &CLUSTER,
        shop,
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web-5d9}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: main, image: x}]}}
",
    );
    let owner = CLUSTER
        .get(&format!("/apis/apps/v1/namespaces/{shop}/replicasets/web-5d9"))
        .unwrap();
    let owned = format!(
        "name: web-5d9-x, labels: {{app: web}}, annotations: {{healthscope.core.oam.dev/probes: '[nonsense'}}, \
         ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d9, uid: {}, controller: true}}]",
        owner["metadata"]["uid"]
    );
    apply(&CLUSTER, shop, &POD.replace("name: NAME", &owned));
    assert!(!has_agent(&pod("web-5d9-x")));
    let event = aggregator.until("the Event", || {
        let events = CLUSTER.get(&format!("/apis/events.k8s.io/v1/namespaces/{shop}/events"))?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        Ok(events
            .into_iter()
            .find(|event| event["reason"] == "InjectionSkipped"))
    });
    assert_eq!(event["regarding"]["name"], "web-5d9");
    assert_eq!(event["regarding"]["uid"], owner["metadata"]["uid"]);
    let note = event["note"].as_str().unwrap();
    assert!(note.starts_with("InvalidAnnotation: "), "{note}");
    tell(&format!("the Event says: {note}"));
    let skipped = r#"healthscope_injections_total{reason="InvalidAnnotation",result="skipped"}"#;
    assert!(installation.metric(&aggregator, skipped).unwrap() >= 1.0);

    // One made by hand is told at once.
    let mistaken = POD.replace(
        "name: NAME",
        "name: mistaken, labels: {healthscope.core.oam.dev/inject: sure}",
    );
    let file = CLUSTER.folder().join("mistaken.yaml");
    std::fs::write(&file, mistaken).unwrap();
    let output = CLUSTER
        .kubectl_command()
        .args(["create", "-n", shop, "-f", file.to_str().unwrap()])
        .output()
        .unwrap();
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{warning}");
    assert!(warning.contains("Warning: no HealthScope agent"), "{warning}");

    aggregator.kill();
    let begun = Instant::now();
    apply(&CLUSTER, shop, &POD.replace("NAME", "without"));
    tell(&format!(
        "a pod without a webhook was created in {:?}",
        begun.elapsed()
    ));
    assert!(!has_agent(&pod("without")));
}

/// Asks again and again, [`RATE`] times a second in all; what failed, and how long each took.
struct Load {
    stop: Arc<AtomicBool>,
    asking: Vec<thread::JoinHandle<()>>,
    taken: Arc<Mutex<Taken>>,
    failed: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Taken {
    /// Over a connection that was there.
    kept: Vec<Duration>,
    /// Over one that had to be made.
    fresh: Vec<Duration>,
}

impl Load {
    /// Trusts what `bundle` is at the beginning.
    fn start(installation: &Arc<Installation>, bundle: &str) -> Self {
        const THREADS: u32 = 8;
        /// Questions over one connection; the next one meets the certificate of its moment.
        const KEPT: u32 = 20;
        let load = Self {
            stop: Arc::default(),
            asking: Vec::new(),
            taken: Arc::default(),
            failed: Arc::default(),
        };
        let asking = (0..THREADS).map(|_| {
            let (stop, taken, failed) = (load.stop.clone(), load.taken.clone(), load.failed.clone());
            let (installation, bundle) = (installation.clone(), bundle.to_owned());
            thread::spawn(move || {
                let body = review(&installation.shop, 2).to_string();
                let name = format!("healthscope-webhook.{}.svc", installation.namespace);
                let mut due = Instant::now();
                let mut connection: Option<Connection> = None;
                let mut left = 0;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += Duration::from_secs(1) * THREADS / RATE;
                    let begun = Instant::now();
                    let is_kept = left > 0 && connection.as_ref().is_some_and(|open| open.is_open);
                    let answer = if is_kept {
                        Ok(connection.take().unwrap())
                    } else {
                        left = KEPT;
                        Connection::open(&bundle, installation.port, &name)
                    }
                    .and_then(|mut open| {
                        let answer = open.exchange("POST /inject?timeout=2s", body.as_bytes())?;
                        connection = Some(open);
                        patch(&answer)
                    });
                    left -= 1;
                    let mut taken = taken.lock().unwrap();
                    let list = if is_kept {
                        &mut taken.kept
                    } else {
                        &mut taken.fresh
                    };
                    list.push(begun.elapsed());
                    drop(taken);
                    match answer {
                        Ok(Some(_)) => {}
                        Ok(None) => failed.lock().unwrap().push("no patch".to_owned()),
                        Err(error) => failed.lock().unwrap().push(format!("{error:#}")),
                    }
                }
            })
        });
        Self {
            asking: asking.collect(),
            ..load
        }
    }

    fn asked(&self) -> usize {
        let taken = self.taken.lock().unwrap();
        taken.kept.len() + taken.fresh.len()
    }

    /// Ends it: nothing failed.
    #[track_caller]
    fn end(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        for asking in self.asking {
            asking.join().unwrap();
        }
        let failed = self.failed.lock().unwrap();
        let mut taken = self.taken.lock().unwrap();
        let Taken { kept, fresh } = &mut *taken;
        tell(&format!("{what}: {} failed", failed.len()));
        for (which, taken) in [("connections that were there", kept), ("new connections", fresh)] {
            if taken.is_empty() {
                continue;
            }
            taken.sort_unstable();
            let at = |share: usize| taken[(taken.len() - 1) * share / 100];
            tell(&format!(
                "  {} over {which}: p50 {:?}, p99 {:?}, longest {:?}",
                taken.len(),
                at(50),
                at(99),
                at(100)
            ));
            assert!(at(100) < PATIENCE, "the API server would not have waited");
        }
        assert_eq!(*failed, Vec::<String>::new());
    }
}

/// A certificate of the Secret's authority that ends in so many days, with its key.
fn short_lived(installation: &Installation, days: i64) -> (String, String) {
    let authority_key = KeyPair::from_pem(&installation.text("ca.key")).unwrap();
    let bundle = installation.text("ca.crt");
    let authority = CertificateDer::from_pem_slice(bundle.as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&authority, authority_key).unwrap();
    let namespace = installation.namespace;
    let mut params = CertificateParams::new(vec![
        format!("healthscope-aggregator.{namespace}.svc"),
        format!("healthscope-aggregator.{namespace}.svc.cluster.local"),
        format!("healthscope-webhook.{namespace}.svc"),
    ])
    .unwrap();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(90 - days);
    params.not_after = now + time::Duration::days(days);
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let made = params.signed_by(&key, &issuer).unwrap();
    (made.pem(), key.serialize_pem())
}

#[test]
fn certificates_and_authorities_change_under_load_without_a_failed_answer() {
    let installation = Arc::new(Installation::new("webhook-load"));
    let aggregator = installation.start();
    let first = installation.bundle().unwrap();

    // Whoever got the bundle at the beginning trusts every certificate to the end.
    let load = Load::start(&installation, &first);
    for round in 0..3 {
        let (certificate, key) = short_lived(&installation, 5);
        let data = json!({"data": {
            "tls.crt": STANDARD.encode(&certificate),
            "tls.key": STANDARD.encode(&key),
        }});
        installation.patch_secret(&data);
        aggregator.until("the certificate to be renewed", || {
            let shown = installation.text("tls.crt");
            Ok((shown != certificate && !shown.is_empty()).then_some(()))
        });
        tell(&format!("renewal {round} after {} questions", load.asked()));
    }
    // The wish for another authority.
    installation.patch_secret(&json!({"data": {"ca.key": null}}));
    let both = aggregator.until("both authorities to be published", || {
        let bundle = installation.bundle()?;
        Ok((bundle.matches("BEGIN CERTIFICATE").count() == 2).then_some(bundle))
    });
    assert!(both.ends_with(&first), "the former one is still trusted");
    aggregator.until("the API server to be told", || {
        let webhooks = installation.configuration()["webhooks"].clone();
        let all = webhooks
            .as_array()
            .unwrap()
            .iter()
            .all(|webhook| webhook["clientConfig"]["caBundle"] == STANDARD.encode(&both).as_str());
        Ok(all.then_some(()))
    });
    thread::sleep(Duration::from_secs(2));
    installation.probe_pod().unwrap();
    load.end("certificates renewed three times, a new authority beside the old");

    // When the next certificate is due, the new authority signs it: trusted by whoever has the new bundle.
    let load = Load::start(&installation, &both);
    let (certificate, key) = short_lived(&installation, 5);
    installation.patch_secret(&json!({"data": {
        "tls.crt": STANDARD.encode(&certificate),
        "tls.key": STANDARD.encode(&key),
    }}));
    aggregator.until("the certificate to be renewed", || {
        let shown = installation.text("tls.crt");
        Ok((shown != certificate).then_some(()))
    });
    thread::sleep(Duration::from_secs(2));
    load.end("the new authority signs");
    assert_eq!(installation.bundle().unwrap(), both);
    let bucket = |le: &str| {
        let series = format!(r#"healthscope_injection_seconds_bucket{{le="{le}"}}"#);
        installation.metric(&aggregator, &series).unwrap()
    };
    let share = |le: &str| 100.0 * bucket(le) / bucket("+Inf");
    tell(&format!(
        "by the webhook's own clock: {:.1} % within 2 ms, {:.1} % within 5 ms, {:.1} % within 100 ms",
        share("0.002"),
        share("0.005"),
        share("0.1")
    ));
    assert!(
        installation
            .metric(
                &aggregator,
                r#"healthscope_certificates_made_total{kind="server"}"#
            )
            .unwrap()
            >= 4.0
    );
}

#[test]
fn a_secret_that_somebody_breaks_is_put_right_and_served_meanwhile() {
    let installation = Arc::new(Installation::new("webhook-broken"));
    let aggregator = installation.start();
    let bundle = installation.bundle().unwrap();
    let load = Load::start(&installation, &bundle);
    let good = installation.secret()["data"].clone();
    let is_good = || {
        let data = installation.secret()["data"].clone();
        Ok((data == good).then_some(()))
    };
    installation.patch_secret(&json!({"data": null}));
    aggregator.until("the emptied Secret to be filled again", is_good);
    let garbage = STANDARD.encode("garbage");
    installation.patch_secret(&json!({"data": {"ca.crt": garbage, "tls.crt": garbage, "tls.key": garbage}}));
    let begun = Instant::now();
    // The second repair within a minute waits for it: whoever breaks it might do so for ever.
    aggregator.until("the garbage to be replaced", is_good);
    assert!(begun.elapsed() > Duration::from_secs(30), "{:?}", begun.elapsed());
    load.end("the Secret emptied, and filled with garbage");
    assert_eq!(installation.bundle().unwrap(), bundle);

    // Gone for good: what was good is served, and it is said.
    CLUSTER
        .kubectl([
            "delete",
            "secret",
            "healthscope-tls",
            "-n",
            installation.namespace,
        ])
        .unwrap();
    aggregator.until("the absence to be counted", || {
        let absent = r#"healthscope_certificate_problems_total{problem="read"}"#;
        Ok((installation.metric(&aggregator, absent)? > 0.0).then_some(()))
    });
    assert!(
        aggregator.log().contains("is not there; apply the chart again"),
        "{}",
        aggregator.tail()
    );
    let (code, _) = installation
        .exchange(&bundle, installation.port, "GET /readyz", b"")
        .unwrap();
    assert_eq!(code, 200, "it has a good certificate");
    // A replica that starts now has none, and says so instead of making one that nobody trusts.
    let port = free_port();
    let late = installation.replica("late", port);
    late.until("the late one to complain", || {
        Ok(late
            .log()
            .contains("is not there; apply the chart again")
            .then_some(()))
    });
    let refused = installation.exchange(&bundle, port, "GET /readyz", b"");
    assert!(refused.is_err(), "{refused:?}");
    // And as soon as the Secret is there again, both have it.
    CLUSTER
        .apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: healthscope-tls, namespace: {}}}\n",
            installation.namespace
        ))
        .unwrap();
    installation.wait_ready(&late, port);
}

#[test]
fn replicas_that_start_together_agree_on_one_authority() {
    let installation = Installation::new("webhook-together");
    let ports = [installation.port, free_port(), free_port()];
    let replicas: Vec<_> = ports
        .iter()
        .enumerate()
        .map(|(index, port)| installation.replica(&format!("r{index}"), *port))
        .collect();
    for (replica, port) in replicas.iter().zip(ports) {
        installation.wait_ready(replica, port);
    }
    let bundle = installation.bundle().unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(bundle, installation.text("ca.crt"));
    let made: f64 = replicas
        .iter()
        .map(|replica| {
            let made = r#"healthscope_certificates_made_total{kind="authority"}"#;
            installation.metric(replica, made).unwrap()
        })
        .sum();
    assert!((made - 1.0).abs() < 0.5, "{made} were made and stored");
}

#[test]
fn whatever_is_asked_the_answer_is_never_no() {
    let installation = Installation::new("webhook-odd");
    let aggregator = installation.start();
    let bundle = installation.bundle().unwrap();
    let ask = |body: &[u8]| {
        let begun = Instant::now();
        let answer = installation.ask(&bundle, body).unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        answer
    };
    let counted = |result: &str, reason: &str| {
        let series = format!(r#"healthscope_injections_total{{reason="{reason}",result="{result}"}}"#);
        installation.metric(&aggregator, &series).unwrap()
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut review = review(&installation.shop, 1);
        change(&mut review);
        ask(review.to_string().as_bytes())
    };

    assert!(patch(&changed(&|_| {})).unwrap().is_some(), "an ordinary one");
    // With 500 containers.
    let begun = Instant::now();
    let many = patch(&ask(review(&installation.shop, 500).to_string().as_bytes())).unwrap();
    tell(&format!(
        "500 containers: {} in {:?}",
        if many.is_some() { "injected" } else { "skipped" },
        begun.elapsed()
    ));
    // Of other kinds and versions: let through.
    for change in [
        &(|review: &mut Value| review["apiVersion"] = "admission.k8s.io/v1beta1".into())
            as &dyn Fn(&mut Value),
        &|review| review["request"]["kind"]["kind"] = "Deployment".into(),
        &|review| review["request"]["operation"] = "UPDATE".into(),
        &|review| review["request"]["object"] = Value::Null,
        &|review| review["request"]["object"] = "x".repeat(2 << 20).into(),
        &|review| review["request"]["object"]["spec"] = json!([[[[7]]]]),
        &|review| review["request"]["namespace"] = "nobody-knows/it".into(),
    ] {
        assert_eq!(patch(&changed(change)).unwrap(), None);
    }
    assert!(counted("passed", "OtherVersion") >= 1.0);
    assert!(counted("passed", "OtherKind") >= 2.0);
    assert!(counted("passed", "TooLarge") >= 1.0);
    // Without an answer: the API server goes on without one.
    for (body, expected) in [
        (b"".to_vec(), 400),
        (b"{".to_vec(), 400),
        (b"\xff\xfe\x00".to_vec(), 400),
        (b"[".repeat(1 << 20), 400),
        (
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_vec(),
            400,
        ),
    ] {
        assert_eq!(ask(&body).0, expected);
    }
    // It is refused before it came, and the answer may be lost with the rest.
    let huge = installation.ask(&bundle, &vec![b' '; (3 << 20) + 1]);
    assert!(huge.as_ref().map_or(true, |(code, _)| *code == 413), "{huge:?}");
    assert!(counted("passed", "TooLarge") >= 2.0);
    assert!(counted("passed", "Unreadable") >= 5.0);
    let other = |line: &str| {
        installation
            .exchange(&bundle, installation.port, line, b"")
            .unwrap()
            .0
    };
    assert_eq!(other("GET /inject"), 405);
    assert_eq!(other("POST /readyz"), 405);
    assert_eq!(other("GET /metrics"), 404);
    // Somebody who never sends what they announced is left behind, and others are not.
    let slow = thread::scope(|scope| {
        let slow: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let name = format!("healthscope-webhook.{}.svc", installation.namespace);
                    let mut slow = Connection::open(&bundle, installation.port, &name)?;
                    slow.stream
                        .write_all(b"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n{")?;
                    slow.answer()
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        for _ in 0..5 {
            let answer = patch(&changed(&|_| {}));
            if let Err(error) = answer {
                panic!("{error:#}");
            }
        }
        slow.into_iter()
            .map(|slow| slow.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(
        slow.iter()
            .all(|answer| answer.as_ref().is_ok_and(|(code, _)| *code == 408)),
        "{slow:?}"
    );
    assert!(patch(&changed(&|_| {})).unwrap().is_some(), "it still works");
    assert_eq!(counted("passed", "Bug"), 0.0);
}

#[test]
fn authorities_that_somebody_changes_are_put_right_but_not_in_a_hot_loop() {
    let installation = Installation::new("webhook-fight");
    let aggregator = installation.start();
    let right = STANDARD.encode(installation.bundle().unwrap());
    let shown = || installation.configuration()["webhooks"][0]["clientConfig"]["caBundle"].clone();
    assert_eq!(shown(), right.as_str());
    let managers = installation.configuration()["metadata"]["managedFields"].to_string();
    assert!(managers.contains("healthscope-certificates"), "{managers}");
    let repaired = r#"healthscope_certificate_publications_total{reason="repaired"}"#;
    let other = installation_of_somebody_else();
    let take = || {
        let patch = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": STANDARD.encode(&other)}]);
        CLUSTER
            .kubectl([
                "patch",
                "mutatingwebhookconfiguration",
                installation.namespace,
                "--type=json",
                "-p",
                &patch.to_string(),
            ])
            .unwrap();
    };
    take();
    let begun = Instant::now();
    aggregator.until("the entry to be put right", || {
        Ok((shown() == right.as_str()).then_some(()))
    });
    tell(&format!("put right after {:?}", begun.elapsed()));
    // Somebody who insists: one repair a minute.
    while begun.elapsed() < Duration::from_secs(45) {
        take();
        thread::sleep(Duration::from_millis(500));
    }
    assert!((installation.metric(&aggregator, repaired).unwrap() - 1.0).abs() < 0.5);
    aggregator.until(
        "the next repair",
        || Ok((shown() == right.as_str()).then_some(())),
    );
    tell(&format!("put right again after {:?}", begun.elapsed()));
    assert!(begun.elapsed() > Duration::from_secs(55));
    // What was deleted stays deleted.
    CLUSTER
        .kubectl(["delete", "mutatingwebhookconfiguration", installation.namespace])
        .unwrap();
    aggregator.until("the absence to be noticed", || {
        Ok(aggregator
            .log()
            .contains("cannot get the MutatingWebhookConfiguration")
            .then_some(()))
    });
}

/// The authority of another installation.
fn installation_of_somebody_else() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&key)
        .unwrap()
        .pem()
}

#[test]
fn a_replica_that_ends_goes_on_answering_until_nobody_asks_it() {
    let installation = Arc::new(Installation::new("webhook-drain"));
    let aggregator = installation.start();
    let bundle = installation.bundle().unwrap();
    let load = Load::start(&installation, &bundle);
    let begun = Instant::now();
    aggregator.signal(Signal::TERM);
    wait_for("the readiness to fail", LIMIT, || {
        let (code, body) = installation.exchange(&bundle, installation.port, "GET /readyz", b"")?;
        if code == 200 {
            bail!("it is ready: {body}");
        }
        ensure!(body.contains("shutting down"), "{body}");
        Ok(Some(()))
    })
    .unwrap();
    let unready = begun.elapsed();
    while begun.elapsed() < Duration::from_secs(8) {
        thread::sleep(Duration::from_millis(100));
    }
    load.end("while it drained");
    // It was told already; this one changes nothing.
    let status = aggregator.end(Signal::CONT);
    let ended = begun.elapsed();
    tell(&format!("not ready after {unready:?}, ended after {ended:?}"));
    assert!(status.success(), "{status}\n{}", aggregator.tail());
    assert!(
        ended > Duration::from_secs(9) && ended < Duration::from_secs(20),
        "{ended:?}"
    );
}
