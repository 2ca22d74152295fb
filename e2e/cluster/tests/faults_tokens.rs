//! A token that somebody copied: it speaks for its own pod alone, for one session at a time, and not for a pod that is gone.
//!
//! What is wrong with a token itself is in `identity.rs`. Here the token is right and who shows it is not; against the
//! aggregator's own program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/faults.rs"]
mod faults;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        faults::World,
        support::{Aggregator, LIMIT, component},
    },
    futures_util::{SinkExt, StreamExt},
    healthscope_aggregator::identity::AGENT_AUDIENCE,
    healthscope_e2e_cluster::{Audit, Cluster, Options},
    healthscope_shared::wire::{PATH, SUBPROTOCOL},
    serde_json::{Value, json},
    std::{thread, time::Duration},
    tokio::{net::TcpStream, time::timeout},
    tokio_tungstenite::{
        WebSocketStream, client_async,
        tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
    },
};

type Socket = WebSocketStream<TcpStream>;

/// The close code for a session that a newer one took over.
const REPLACED: u16 = 4000;

/// Connects with a token and says hello as somebody else.
async fn connect(aggregator: &Aggregator<'_>, token: &str, epoch: u64) -> Socket {
    let address = aggregator.address();
    let mut request = format!("ws://{address}{PATH}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let hello = json!({"type": "hello", "protocol": 1, "agent": "bank.vault-0", "version": "0.1.0",
        "epoch": format!("{epoch:016x}"), "seq": 1, "acked": 0});
    socket.send(Message::text(hello.to_string())).await.unwrap();
    socket
}

/// Says that the only check of somebody else's component passes or fails.
async fn report(socket: &mut Socket, passes: bool) {
    let announce = json!({"type": "announce", "revision": 1, "part": 0, "last": true, "instances": [{
        "namespace": "bank", "component": "vault", "instance": "vault-0", "probes": [{
            "id": 1, "name": "readiness", "type": "readiness", "target": "http :80/", "periodMs": 1000,
            "timeoutMs": 1000, "successThreshold": 1, "failureThreshold": 3,
        }],
    }]});
    let state = if passes {
        json!([1, 1, 12, 1, 0, 1, 850])
    } else {
        json!([1, 1, 12, 2, 0, -3, 850, "ExitCode", "copied"])
    };
    let report = json!({"type": "report", "seq": 1, "states": [state], "complete": true});
    for message in [announce, report] {
        socket.send(Message::text(message.to_string())).await.unwrap();
    }
}

/// Reads on until the aggregator closes; how.
async fn closed(socket: &mut Socket) -> CloseFrame {
    let reading = async {
        loop {
            if let Message::Close(frame) = socket.next().await.unwrap().unwrap() {
                return frame.unwrap();
            }
        }
    };
    timeout(LIMIT, reading).await.unwrap()
}

fn until_web(aggregator: &Aggregator<'_>, health: &str, words: &[&str]) -> Value {
    aggregator.until_component("copied", "all", "web-0", health, words)
}

#[test]
fn a_copied_token_speaks_for_its_own_pod_one_at_a_time_and_not_for_a_dead_one() {
    let cluster = Cluster::start(&Options {
        audit: Some(Audit::Request),
        ..Options::control_plane()
    })
    .unwrap();
    let world = World::new(cluster);
    let (token, aggregator) = prepare(&world);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let come = |epoch: u64, passes: bool| {
        runtime.block_on(async {
            let mut socket = connect(&aggregator, &token, epoch).await;
            report(&mut socket, passes).await;
            socket
        })
    };
    until_web(&aggregator, "Healthy", &[]);

    let mut owner = come(1, true);
    let mut thief = come(2, false);
    let frame = runtime.block_on(closed(&mut owner));
    assert_eq!(u16::from(frame.code), REPLACED, "{frame:?}");
    // It is heard, as the pod whose token it has, whatever it says of itself.
    until_web(&aggregator, "Unhealthy", &["copied"]);
    let status = support::status(&world.cluster, "copied", "all").unwrap();
    assert_eq!(status["summary"]["total"], 1, "{status:#}");
    assert!(component(&status, "vault").is_none(), "{status:#}");
    // The owner comes back and is believed again.
    let mut owner = come(3, true);
    let frame = runtime.block_on(closed(&mut thief));
    assert_eq!(u16::from(frame.code), REPLACED, "{frame:?}");
    until_web(&aggregator, "Healthy", &[]);

    world.delete("/api/v1/namespaces/copied/pods/web-0?gracePeriodSeconds=0");
    until_web(&aggregator, "Unhealthy", &["there is no Pod called web-0"]);
    let frame = runtime.block_on(closed(&mut owner));
    assert_ne!(u16::from(frame.code), REPLACED, "{frame:?}");
    // The token is good for some minutes yet, and says nothing any more.
    let mut late = come(4, true);
    let ending = async { while let Some(Ok(_)) = late.next().await {} };
    runtime.block_on(async { timeout(LIMIT, ending).await }).unwrap();
    thread::sleep(Duration::from_secs(1));
    until_web(&aggregator, "Unhealthy", &["there is no Pod called web-0"]);
    let mut healths = world.healths("copied", "all");
    // Between the first announcement and what it found nothing is known of the pod's agent.
    if healths.get(1).is_some_and(|second| second == "Unknown") {
        healths.remove(1);
        if healths.get(1).is_some_and(|second| second == "Healthy") {
            healths.remove(1);
        }
    }
    assert_eq!(healths, ["Healthy", "Unhealthy", "Healthy", "Unhealthy"]);
}

/// A namespace with a pod and the scope of it, the pod's token, and an aggregator.
fn prepare(world: &World) -> (String, Aggregator<'_>) {
    world.namespace("copied");
    world.create(
        "/api/v1/namespaces/copied/serviceaccounts",
        &json!({"metadata": {"name": "web"}}),
    );
    let pods = "/api/v1/namespaces/copied/pods";
    world.create(
        pods,
        &json!({"metadata": {"name": "web-0"}, "spec": {"serviceAccountName": "web",
            "automountServiceAccountToken": false, "containers": [{"name": "main", "image": "local/none"}]}}),
    );
    world.patch(
        &format!("{pods}/web-0/status"),
        &json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0,
                "image": "local/none", "imageID": "", "state": {"running": {}}}]}}),
    );
    let refs = [json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0"})];
    world.scope("copied", "all", &json!({"workloadRefs": refs}));
    let audience = format!("--audience={AGENT_AUDIENCE}");
    let pod = world.cluster.get(&format!("{pods}/web-0")).unwrap();
    let uid = format!("--bound-object-uid={}", pod["metadata"]["uid"].as_str().unwrap());
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=web-0", &uid];
    let create = ["create", "token", "web", "-n", "copied", &audience];
    let token = world.cluster.kubectl(create.into_iter().chain(bound)).unwrap();
    (token.trim().to_owned(), world.aggregator("copied"))
}
