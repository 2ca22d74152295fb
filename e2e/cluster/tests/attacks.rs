//! Pods and objects that attack through what they say: whoever reads it in a status, an Event, a terminal or a metric reads
//! plain text, and however often they say it the API server hears of it as often as of anybody.
//!
//! Who may speak for a pod at all is in `identity.rs` and `faults_tokens.rs`; here the pod is itself, and hostile. What a
//! target prints goes the same way after its agent has cut it; these agents cut nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/faults.rs"]
mod faults;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        faults::{World, deployment_ref},
        support::Aggregator,
    },
    anyhow::ensure,
    futures_util::{SinkExt, StreamExt, stream::SplitSink},
    healthscope_aggregator::identity::AGENT_AUDIENCE,
    healthscope_e2e_cluster::{Audit, Cluster, Options, tell},
    healthscope_shared::wire::{PATH, SUBPROTOCOL},
    serde_json::{Value, json},
    std::{
        sync::LazyLock,
        time::{Duration, Instant},
    },
    tokio::{net::TcpStream, runtime::Runtime, time::sleep_until},
    tokio_tungstenite::{
        WebSocketStream, client_async,
        tungstenite::{Message, client::IntoClientRequest},
    },
};

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let options = Options {
        audit: Some(Audit::Request),
        ..Options::control_plane()
    };
    World::new(Cluster::start(&options).unwrap())
});

/// What a terminal, a page or a log would obey: clear the screen, set the title, markup, reordered text, a line of its own.
const ATTACK: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}<script>alert(1)</script><img src=x>\u{202e}txt.exe\u{9b}31m\r\nall  Healthy";
/// What nobody may see of it.
const FORBIDDEN: [char; 5] = ['\u{1b}', '\u{7}', '\u{202e}', '\u{9b}', '\r'];
/// Longest message of a status, an Event's by the API server's rule.
const LONGEST: usize = 1024;
/// Edges a second that a flooding agent sends, and in one message of it.
const FLOOD: u32 = 10_000;
const AT_ONCE: u32 = 99;
/// Statuses of a scope that come sooner after each other than a second: the pauses grow up to that.
const FIRST_WRITES: usize = 5;
/// How long it does so.
const LASTS: Duration = Duration::from_secs(8);

/// Runs of an agent.
const FIRST: &str = "00000000000000aa";
const NEXT: &str = "00000000000000ab";

/// A pod that nobody runs, and the token that the kubelet would get for it.
fn pod(namespace: &str, name: &str) -> String {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    WORLD.create(
        &pods,
        &json!({"metadata": {"name": name}, "spec": {"serviceAccountName": "web",
            "automountServiceAccountToken": false, "containers": [{"name": "main", "image": "local/none"}]}}),
    );
    WORLD.patch(
        &format!("{pods}/{name}/status"),
        &json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0,
                "image": "local/none", "imageID": "", "state": {"running": {}}}]}}),
    );
    let audience = format!("--audience={AGENT_AUDIENCE}");
    let made = WORLD.cluster.get(&format!("{pods}/{name}")).unwrap();
    let uid = format!("--bound-object-uid={}", made["metadata"]["uid"].as_str().unwrap());
    let name = format!("--bound-object-name={name}");
    let create = ["create", "token", "web", "-n", namespace, &audience];
    let bound = ["--bound-object-kind=Pod", &name, &uid];
    let token = WORLD.cluster.kubectl(create.into_iter().chain(bound)).unwrap();
    token.trim().to_owned()
}

/// A namespace whose pods have a ServiceAccount.
fn namespace(name: &str) {
    WORLD.namespace(name);
    WORLD.create(
        &format!("/api/v1/namespaces/{name}/serviceaccounts"),
        &json!({"metadata": {"name": "web"}}),
    );
}

/// An agent of raw frames.
struct Agent {
    socket: SplitSink<WebSocketStream<TcpStream>, Message>,
    seq: u64,
}

impl Agent {
    /// Connects as the pod whose token it has, in this run of it, and announces one check.
    async fn join(aggregator: &Aggregator<'_>, token: &str, epoch: &str) -> Self {
        let address = aggregator.address();
        let mut request = format!("ws://{address}{PATH}").into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, _) = client_async(request, stream).await.unwrap();
        let (socket, mut heard) = socket.split();
        // Pings are answered by whoever reads.
        tokio::spawn(async move { while let Some(Ok(_)) = heard.next().await {} });
        let mut agent = Self { socket, seq: 0 };
        agent
            .say(
                &json!({"type": "hello", "protocol": 1, "agent": "any", "version": ATTACK,
                "epoch": epoch, "seq": 0, "acked": 0}),
            )
            .await;
        agent
            .say(
                &json!({"type": "announce", "revision": 1, "part": 0, "last": true, "instances": [{
                "namespace": "any", "component": "any", "instance": "any", "probes": [{
                    "id": 1, "name": "readiness", "type": "readiness", "target": ATTACK, "periodMs": 1000,
                    "timeoutMs": 1000, "successThreshold": 1, "failureThreshold": 1,
                }]}]}),
            )
            .await;
        agent
    }

    async fn say(&mut self, message: &Value) {
        self.socket
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// Reports edges of its check at once: whether it passes, and what it says when it does not.
    async fn edges(&mut self, edges: impl IntoIterator<Item = bool>, message: &str, output: &str) {
        let edges: Vec<Value> = edges
            .into_iter()
            .map(|passes| {
                self.seq += 1;
                if passes {
                    json!([self.seq, 1, 0, 1, 0, 1, 850])
                } else {
                    json!([self.seq, 1, 0, 2, 0, -1, 850, "ExitCode", message, output])
                }
            })
            .collect();
        let report = json!({"type": "report", "seq": self.seq, "transitions": edges, "complete": true});
        self.say(&report).await;
    }
}

#[track_caller]
fn check_inert(what: &str, text: &str) {
    let found: Vec<char> = FORBIDDEN
        .into_iter()
        .filter(|&forbidden| text.contains(forbidden))
        .collect();
    assert!(found.is_empty(), "{what} has {found:?}:\n{text:?}");
}

/// Every text in a document.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[track_caller]
fn check_texts(what: &str, value: &Value) {
    let mut found = Vec::new();
    texts(value, &mut found);
    for text in found {
        check_inert(what, text);
        assert!(!text.contains('\n'), "{what} has more than one line: {text:?}");
        assert!(text.len() <= LONGEST, "{what}: {} bytes: {text}", text.len());
    }
}

fn events(namespace: &str) -> anyhow::Result<Vec<Value>> {
    let list = WORLD
        .cluster
        .get(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

#[test]
fn what_pods_and_objects_say_is_text_in_status_events_terminals_and_metrics() {
    let _turn = WORLD.turn();
    namespace("hostile");
    let token = pod("hostile", "web-0");
    WORLD.deployment("hostile", "db", true);
    let refs = [
        json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0"}),
        deployment_ref("db"),
    ];
    WORLD.scope("hostile", "all", &json!({"workloadRefs": refs}));
    let aggregator = WORLD.aggregator("hostile");
    // From then on it serves; until then it sends agents away.
    aggregator.until_health("hostile", "all", "Healthy");
    let runtime = Runtime::new().unwrap();
    let mut agent = runtime.block_on(async {
        let mut agent = Agent::join(&aggregator, &token, FIRST).await;
        agent.edges([true], "", "").await;
        agent
    });
    runtime.block_on(agent.edges([false], &ATTACK.repeat(200), &ATTACK.repeat(200)));
    aggregator.until_component("hostile", "all", "web-0", "Unhealthy", &["<script>"]);
    WORLD.set_ready("hostile", "db", false);
    WORLD.patch(
        "/apis/apps/v1/namespaces/hostile/deployments/db/status",
        &json!({"status": {"conditions": [{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": ATTACK.repeat(500)}]}}),
    );
    aggregator.until_component("hostile", "all", "db", "Unhealthy", &["<script>"]);
    let status = support::status(&WORLD.cluster, "hostile", "all").unwrap();
    check_texts("the status", &status);
    tell(&format!("the status has {} bytes", status.to_string().len()));

    let told = aggregator.until("Events about the scope", || {
        let mut told = events("hostile")?;
        told.retain(|event| event["regarding"]["kind"] == "HealthScope");
        ensure!(
            told.iter()
                .any(|event| event["note"].to_string().contains("<script>")),
            "{told:?}"
        );
        Ok(Some(told))
    });
    for event in &told {
        check_texts("an Event", &event["note"]);
    }

    for line in [
        "get healthscope all",
        "get healthscope all -o wide",
        "describe healthscope all",
        "get events",
        "healthscope get scopes",
        "healthscope why all",
    ] {
        let output = support::kubectl_command(&WORLD.cluster, "hostile", line)
            .output()
            .unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(out.contains("all"), "kubectl {line}: {out}{err}");
        check_inert(&format!("kubectl {line}"), &out);
        check_inert(&format!("kubectl {line}"), &err);
        let is_forged = |line: &str| line.trim_start().starts_with("all  Healthy");
        assert!(!out.lines().any(is_forged), "kubectl {line}: {out}");
    }
    for path in ["/metrics", "/scopes/hostile/all", "/", "/api/v1/agents"] {
        let (_, body) = aggregator.get(path).unwrap();
        check_inert(path, &body);
        assert!(
            path != "/" || !body.contains("<script>alert"),
            "{path} has markup: {body}"
        );
    }
    check_inert("the log", &aggregator.log());
}

#[test]
fn a_pod_that_floods_costs_the_api_server_no_more_than_one_that_does_not() {
    let _turn = WORLD.turn();
    namespace("flood");
    let (flooder, quiet) = (pod("flood", "flooder-0"), pod("flood", "quiet-0"));
    let refs = |name: &str| json!({"workloadRefs": [{"apiVersion": "v1", "kind": "Pod", "name": name}]});
    WORLD.scope("flood", "noisy", &refs("flooder-0"));
    WORLD.scope("flood", "calm", &refs("quiet-0"));
    let aggregator = WORLD.aggregator("flood");
    aggregator.until_health("flood", "calm", "Healthy");
    let runtime = Runtime::new().unwrap();
    let mut calm = runtime.block_on(async {
        let mut agent = Agent::join(&aggregator, &quiet, FIRST).await;
        agent.edges([true], "", "").await;
        agent
    });

    let begun = Instant::now();
    let mut noisy = runtime.block_on(Agent::join(&aggregator, &flooder, FIRST));
    let flooding = runtime.spawn(async move {
        let mut sent = 0;
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < LASTS {
            // An odd number: each report ends otherwise than the one before.
            let edges = (sent..sent + AT_ONCE).map(|edge| edge % 2 == 0);
            noisy.edges(edges, "noise", "").await;
            sent += AT_ONCE;
            sleep_until(begun + Duration::from_secs(1) * sent / FLOOD).await;
        }
        (sent, noisy)
    });
    aggregator.until_component("flood", "noisy", "flooder-0", "Unhealthy", &["noise"]);
    // In the middle of it something happens to somebody else.
    let said = Instant::now();
    runtime.block_on(calm.edges([false], "a fault of its own", ""));
    aggregator.until_component("flood", "calm", "quiet-0", "Unhealthy", &["a fault of its own"]);
    let seen = said.elapsed();
    let (sent, _noisy) = runtime.block_on(flooding).unwrap();
    let lasted = begun.elapsed();

    let mut writes = WORLD.writes("aggregator-flood");
    let of_calm = writes
        .iter()
        .filter(|write| write.is("flood", "calm") && write.is_done())
        .count();
    writes.retain(|write| write.is("flood", "noisy") && write.is_done());
    let events = events("flood").unwrap();
    let taken = aggregator
        .metric("healthscope_agent_records_total", &["transition"])
        .unwrap();
    tell(&format!(
        "in {lasted:.1?} {sent} edges sent, {taken} taken in, {} statuses written and {} Events there; somebody else's fault \
         was in its status after {seen:?}",
        writes.len(),
        events.len()
    ));
    assert!(f64::from(sent) > 2.0 * taken, "that is no flood");
    let allowed = usize::try_from(lasted.as_secs()).unwrap() + FIRST_WRITES;
    assert!(writes.len() <= allowed, "{} writes", writes.len());
    assert!(events.len() <= 2 * allowed, "{events:#?}");
    assert!(
        of_calm <= 4,
        "{of_calm} writes about somebody who said three things"
    );

    // What is true at last is in the status: what the former session still has on its way is nobody's.
    let _again = runtime.block_on(async {
        let mut agent = Agent::join(&aggregator, &flooder, NEXT).await;
        agent.edges([false], "the truth", "").await;
        calm.edges([true], "", "").await;
        agent
    });
    aggregator.until_component("flood", "noisy", "flooder-0", "Unhealthy", &["the truth"]);
    aggregator.until_health("flood", "calm", "Healthy");
}
