//! Who agents are, by tokens that a real API server made, and by tokens that somebody else made with its key.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use {
    base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD},
    futures_util::{SinkExt, StreamExt},
    healthscope_aggregator::{
        App, Config as AppConfig,
        config::{AgentAuth, Source},
        identity::{AGENT_AUDIENCE, Identity, MAX_TOKEN_BYTES, PodIdentity, Refused},
        kubernetes::{self, Kubernetes},
    },
    healthscope_e2e_cluster::{Audit, Cluster, Component, KeyKind, Options, ServiceAccountKeys},
    healthscope_service::shutdown::Shutdown,
    healthscope_shared::wire::{PATH, SUBPROTOCOL},
    kube::{
        Client, Config,
        config::{KubeConfigOptions, Kubeconfig},
    },
    serde_json::{Value, json},
    std::{
        fs,
        sync::{Arc, LazyLock},
        time::{Duration, SystemTime, UNIX_EPOCH},
    },
    tokio::{net::TcpStream, time::timeout},
    tokio_tungstenite::{
        WebSocketStream, client_async,
        tungstenite::{Error as WsError, Message, client::IntoClientRequest},
    },
};

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

const CRD: &str = include_str!("../../../charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml");
const SCOPES: &str = "crd/healthscopes.core.oam.dev";

/// What may read the cluster's published keys and ask about tokens, and what may only ask.
const ROLES: [&str; 2] = ["system:service-account-issuer-discovery", "system:auth-delegator"];

static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
    Cluster::start(&Options {
        audit: Some(Audit::Metadata),
        ..Options::control_plane()
    })
    .unwrap()
});

/// A namespace with a ServiceAccount `web` and its pod `web-0`.
struct Place<'a> {
    cluster: &'a Cluster,
    namespace: &'static str,
    account_uid: String,
    pod_uid: String,
}

impl<'a> Place<'a> {
    fn new(cluster: &'a Cluster, namespace: &'static str) -> Self {
        cluster
            .apply(&format!(
                "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: web, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-0, namespace: {namespace}}}
spec:
  serviceAccountName: web
  automountServiceAccountToken: false
  containers: [{{name: main, image: local/none}}]
"
            ))
            .unwrap();
        let uid = |path: &str| {
            let object = cluster
                .get(&format!("/api/v1/namespaces/{namespace}/{path}"))
                .unwrap();
            object["metadata"]["uid"].as_str().unwrap().to_owned()
        };
        Self {
            account_uid: uid("serviceaccounts/web"),
            pod_uid: uid("pods/web-0"),
            cluster,
            namespace,
        }
    }

    /// A token as the kubelet gets it for the pod.
    fn token(&self, audience: &str) -> String {
        let uid = format!("--bound-object-uid={}", self.pod_uid);
        self.create_token(
            audience,
            &["--bound-object-kind=Pod", "--bound-object-name=web-0", &uid],
        )
    }

    fn create_token(&self, audience: &str, more: &[&str]) -> String {
        let audience = format!("--audience={audience}");
        let arguments = ["create", "token", "web", "-n", self.namespace, &audience];
        let token = self
            .cluster
            .kubectl(arguments.iter().chain(more).copied())
            .unwrap();
        token.trim().to_owned()
    }

    /// What such a token says.
    fn claims(&self) -> Value {
        let keys = self.cluster.service_account_keys();
        json!({
            "iss": keys.issuer,
            "aud": [AGENT_AUDIENCE],
            "sub": format!("system:serviceaccount:{}:web", self.namespace),
            "jti": "0b5c6a1e-0000-4000-8000-000000000001",
            "iat": now() - 10,
            "nbf": now() - 10,
            "exp": now() + 600,
            "kubernetes.io": {
                "namespace": self.namespace,
                "pod": {"name": "web-0", "uid": self.pod_uid},
                "serviceaccount": {"name": "web", "uid": self.account_uid},
            },
        })
    }

    fn claims_with(&self, path: &str, value: Value) -> Value {
        let mut claims = self.claims();
        *claims.pointer_mut(path).unwrap() = value;
        claims
    }

    /// A token with these claims, made with the cluster's own key.
    fn sign(&self, claims: &Value) -> String {
        self.cluster.service_account_keys().sign(claims).unwrap()
    }

    #[track_caller]
    fn is_web(&self, identity: &PodIdentity) {
        assert_eq!(identity.namespace.as_str(), self.namespace);
        assert_eq!(
            (
                identity.pod.as_str(),
                &*identity.uid,
                identity.service_account.as_str()
            ),
            ("web-0", self.pod_uid.as_str(), "web")
        );
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// A verifier of its own, as a user of this name and with these roles.
async fn identity(cluster: &Cluster, user: &str, roles: &[&str]) -> Arc<Identity> {
    for role in roles {
        let binding = format!("{user}-{}", role.replace(':', "-"));
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        cluster
            .kubectl(["create", "clusterrolebinding", &binding, &role, &user])
            .unwrap();
    }
    Identity::new(client(cluster, user).await)
}

async fn client(cluster: &Cluster, user: &str) -> Client {
    let file = cluster.kubeconfig_for(user, None).unwrap();
    let file = Kubeconfig::read_from(file).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// How often a user asked for something, by the audit log.
fn asked(cluster: &Cluster, user: &str, path: &str) -> usize {
    let log = fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    log.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|entry| {
            entry["user"]["username"] == user
                && entry["stage"] == "ResponseComplete"
                && entry["requestURI"].as_str().unwrap().starts_with(path)
        })
        .count()
}

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const KEYS: &str = "/openid/v1/jwks";

/// Tokens that nobody may get in with, and why, where the tokens are verified by the published keys.
fn bad_tokens(place: &Place<'_>) -> Vec<(&'static str, String, Refused)> {
    let cluster = place.cluster;
    let keys = cluster.service_account_keys();
    let good = place.sign(&place.claims());
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let forger = ServiceAccountKeys::create(cluster.folder(), place.namespace, KeyKind::Rsa2048).unwrap();
    let stranger = forger.sign(&place.claims()).unwrap();
    let impostor = ServiceAccountKeys {
        key_id: keys.key_id.clone(),
        ..forger
    };
    let curve = ServiceAccountKeys {
        key_id: keys.key_id.clone(),
        ..ServiceAccountKeys::create(cluster.folder(), "curve", KeyKind::EcP256).unwrap()
    };
    let other_claims = encode(place.claims_with("/kubernetes.io/pod/name", json!("db-0")));
    let signed = |path: &str, value: Value| place.sign(&place.claims_with(path, value));
    vec![
        ("nothing", String::new(), Refused::NoToken),
        ("huge", "x".repeat(MAX_TOKEN_BYTES + 1), Refused::TooLong),
        ("a word", "hush".into(), Refused::Malformed),
        ("dots", "..".into(), Refused::Malformed),
        ("expired", signed("/exp", json!(now() - 120)), Refused::Expired),
        (
            "of the future",
            signed("/nbf", json!(now() + 300)),
            Refused::NotYetValid,
        ),
        ("for the API server", place.token(&keys.issuer), Refused::Audience),
        ("for somebody else", place.token("vault"), Refused::Audience),
        (
            "of another issuer",
            signed("/iss", json!("https://elsewhere.example")),
            Refused::Issuer,
        ),
        (
            "of no pod",
            place.create_token(AGENT_AUDIENCE, &[]),
            Refused::NotBound,
        ),
        ("of a stranger's key", stranger, Refused::UnknownKey),
        (
            "of a stranger's key by the cluster's name",
            impostor.sign(&place.claims()).unwrap(),
            Refused::Signature,
        ),
        (
            "of a key of another kind by the cluster's name",
            curve.sign(&place.claims()).unwrap(),
            Refused::Algorithm,
        ),
        (
            "not signed",
            format!("{}.{claims}.", encode(json!({"alg": "none", "kid": keys.key_id}))),
            Refused::Algorithm,
        ),
        (
            "signed with the public key as a secret",
            format!(
                "{}.{claims}.{signature}",
                encode(json!({"alg": "HS256", "kid": keys.key_id}))
            ),
            Refused::Algorithm,
        ),
        (
            "with the claims of another",
            format!("{head}.{other_claims}.{signature}"),
            Refused::Signature,
        ),
        (
            "with a name that leads elsewhere",
            signed("/kubernetes.io/pod/name", json!("../web")),
            Refused::Malformed,
        ),
    ]
}

#[tokio::test]
async fn a_pods_token_is_verified_without_asking() {
    let place = Place::new(&SHARED, "local");
    let identity = identity(&SHARED, "local", &ROLES).await;
    for token in [place.token(AGENT_AUDIENCE), place.sign(&place.claims())] {
        let verified = identity.verify(&token).await.unwrap();
        place.is_web(&verified);
        assert_eq!(verified.agent_name().as_str(), "local.web-0");
        assert!(verified.expires.as_second() > now());
    }
    for (what, token, expected) in bad_tokens(&place) {
        assert_eq!(identity.verify(&token).await, Err(expected), "{what}");
    }
    assert_eq!(asked(&SHARED, "local", REVIEWS), 0);
    assert_eq!(asked(&SHARED, "local", KEYS), 1);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_does_not_reach_the_api_server() {
    let place = Place::new(&SHARED, "flood");
    let identity = identity(&SHARED, "flood", &ROLES).await;
    let verified = identity.verify(&place.token(AGENT_AUDIENCE)).await.unwrap();
    place.is_web(&verified);
    let claims = URL_SAFE_NO_PAD.encode(place.claims().to_string());
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..2_000 {
        let head = json!({"alg": "RS256", "kid": format!("key-{number}")}).to_string();
        let token = format!("{}.{claims}.c2lnbmVk", URL_SAFE_NO_PAD.encode(head));
        let identity = identity.clone();
        flood.spawn(async move { identity.verify(&token).await });
    }
    while let Some(result) = flood.join_next().await {
        assert_eq!(result.unwrap(), Err(Refused::UnknownKey));
    }
    assert_eq!(asked(&SHARED, "flood", REVIEWS), 0);
    let looks = asked(&SHARED, "flood", KEYS);
    assert!(looks <= 2, "{looks}");
}

#[tokio::test]
async fn a_pods_token_is_reviewed_where_the_keys_are_hidden() {
    let place = Place::new(&SHARED, "reviewed");
    let identity = identity(&SHARED, "reviewed", &ROLES[1..]).await;
    let token = place.token(AGENT_AUDIENCE);
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (identity, token) = (identity.clone(), token.clone());
        at_once.spawn(async move { identity.verify(&token).await });
    }
    while let Some(result) = at_once.join_next().await {
        place.is_web(&result.unwrap().unwrap());
    }
    assert_eq!(
        asked(&SHARED, "reviewed", REVIEWS),
        1,
        "fifty agents with one token"
    );
    for (what, token, by_keys) in bad_tokens(&place) {
        let expected = match by_keys {
            // What only the keys can tell is the API server's affair now.
            Refused::UnknownKey | Refused::Signature | Refused::Issuer => Refused::Rejected,
            Refused::Algorithm if what.starts_with("of a key") => Refused::Rejected,
            Refused::Malformed if what.starts_with("with a name") => Refused::Rejected,
            other => other,
        };
        assert_eq!(identity.verify(&token).await, Err(expected), "{what}");
    }
    let before = asked(&SHARED, "reviewed", REVIEWS);
    let another_pod = place.sign(&place.claims_with("/kubernetes.io/pod/uid", json!("another")));
    for _ in 0..20 {
        assert_eq!(identity.verify(&another_pod).await, Err(Refused::Rejected));
    }
    assert_eq!(
        asked(&SHARED, "reviewed", REVIEWS),
        before + 1,
        "a no is remembered"
    );

    let of_the_dead = place.token(AGENT_AUDIENCE);
    let delete = [
        "delete",
        "pod",
        "web-0",
        "-n",
        "reviewed",
        "--force",
        "--grace-period=0",
    ];
    SHARED.kubectl(delete).unwrap();
    assert_eq!(identity.verify(&of_the_dead).await, Err(Refused::Rejected));
}

#[tokio::test]
async fn without_a_right_to_ask_nobody_gets_in() {
    let place = Place::new(&SHARED, "powerless");
    let identity = identity(&SHARED, "powerless", &[]).await;
    let token = place.token(AGENT_AUDIENCE);
    assert_eq!(identity.verify(&token).await, Err(Refused::Unavailable));
}

#[tokio::test]
async fn what_is_known_holds_while_the_api_server_is_away() {
    let cluster = Cluster::start(&Options {
        key_kind: KeyKind::EcP256,
        ..Options::control_plane()
    })
    .unwrap();
    let place = Place::new(&cluster, "away");
    let by_keys = identity(&cluster, "by-keys", &ROLES).await;
    let by_review = identity(&cluster, "by-review", &ROLES[1..]).await;
    let (reviewed, fresh) = (place.token(AGENT_AUDIENCE), place.token(AGENT_AUDIENCE));
    place.is_web(&by_keys.verify(&reviewed).await.unwrap());
    place.is_web(&by_review.verify(&reviewed).await.unwrap());

    cluster.kill(Component::ApiServer).unwrap();
    place.is_web(&by_keys.verify(&fresh).await.unwrap());
    place.is_web(&by_review.verify(&reviewed).await.unwrap());
    assert_eq!(by_review.verify(&fresh).await, Err(Refused::Unavailable));
    let forged = ServiceAccountKeys::create(cluster.folder(), "forger", KeyKind::EcP256).unwrap();
    let forged = forged.sign(&place.claims()).unwrap();
    assert_eq!(by_keys.verify(&forged).await, Err(Refused::UnknownKey));

    cluster.start_again(Component::ApiServer).unwrap();
    place.is_web(&by_review.verify(&fresh).await.unwrap());
}

/// An aggregator that knows agents by their pods, until it is dropped.
struct Served {
    address: std::net::SocketAddr,
    shutdown: Shutdown,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl Served {
    /// Starts one for a namespace of its own, whose pod is watched because a scope names it.
    async fn start(place: &Place<'_>, renewal: Duration) -> Self {
        let cluster = place.cluster;
        let namespace = place.namespace;
        cluster.apply(CRD).unwrap();
        let established = ["wait", "--for=condition=Established", "--timeout=60s", SCOPES];
        cluster.kubectl(established).unwrap();
        cluster
            .apply(&format!(
                "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {{name: shop, namespace: {namespace}}}
spec: {{workloadRefs: [{{apiVersion: v1, kind: Pod, name: web-0}}]}}
"
            ))
            .unwrap();
        let file = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let connection = Config::from_custom_kubeconfig(file, &options).await.unwrap();
        // The Lease lies there too: no other aggregator of these tests has a say in it.
        let where_it_runs = kubernetes::Place {
            namespace: Some(namespace.to_owned()),
            pod: Some("aggregator".to_owned()),
            address: None,
        };
        let kubernetes = Kubernetes::connect(connection, where_it_runs).unwrap();
        let mut config = AppConfig::new(
            "127.0.0.1:0".parse().unwrap(),
            Source::Kubernetes(Box::new(kubernetes)),
        );
        config.agents = AgentAuth::Kubernetes(identity(cluster, namespace, &ROLES).await);
        config.timing.renewal = renewal;
        let app = App::bind(config).unwrap();
        let (address, shutdown) = (app.address(), Shutdown::new());
        tokio::spawn(app.run(shutdown.clone()));
        Self { address, shutdown }
    }

    /// Connects as an agent with this token until the aggregator knows its pod, and takes it.
    async fn join(&self, token: impl Fn() -> String) -> WebSocketStream<TcpStream> {
        let joining = async {
            loop {
                let mut socket = self.connect(&token()).await.unwrap();
                socket.send(Message::text(HELLO)).await.unwrap();
                match next_text(&mut socket).await {
                    Ok(text) if text.contains("\"type\":\"welcome\"") => return socket,
                    // It has not heard of the pod yet, or does not serve yet.
                    Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        timeout(PATIENCE, joining).await.unwrap()
    }

    /// Connects as an agent with this token; a refusal is its status and body.
    async fn connect(&self, token: &str) -> Result<WebSocketStream<TcpStream>, (u16, String)> {
        let mut request = format!("ws://{}{PATH}", self.address)
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(answer)) => {
                let body = answer.body().clone().unwrap_or_default();
                Err((answer.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The names of all agents.
    async fn agents(&self) -> Vec<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = b"GET /api/v1/agents HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let names = body["items"].as_array().unwrap().iter();
        names
            .map(|agent| agent["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// What an agent says first; it claims to be somebody else.
const HELLO: &str = r#"{"type":"hello","protocol":1,"agent":"payments.db-0","version":"0.1.0","epoch":"9f3c5a710e2b44d8","seq":0,"acked":0}"#;

/// The next message; the close frame when there is none.
async fn next_text(socket: &mut WebSocketStream<TcpStream>) -> Result<String, String> {
    let reading = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Close(frame))) => return Err(format!("{frame:?}")),
                Some(Ok(_)) => {}
                other => return Err(format!("{other:?}")),
            }
        }
    };
    timeout(PATIENCE, reading).await.unwrap()
}

#[tokio::test]
async fn an_agent_is_its_pod_whatever_it_says() {
    let place = Place::new(&SHARED, "session");
    let served = Served::start(&place, Duration::from_secs(300)).await;
    let token = place.token(AGENT_AUDIENCE);
    let first = served.join(|| token.clone()).await;
    assert_eq!(served.agents().await, ["session.web-0"]);

    for (what, token, refused) in bad_tokens(&place) {
        let (status, body) = served.connect(&token).await.unwrap_err();
        assert_eq!(status, 401, "{what}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["detail"], refused.to_string(), "{what}");
    }
    // Its keys are right, but there is no such pod, or not any more.
    for (path, value) in [
        ("/kubernetes.io/pod/uid", "former"),
        ("/kubernetes.io/pod/name", "db-0"),
    ] {
        let token = place.sign(&place.claims_with(path, json!(value)));
        let mut socket = served.connect(&token).await.unwrap();
        socket.send(Message::text(HELLO)).await.unwrap();
        let closed = next_text(&mut socket).await.unwrap_err();
        assert!(closed.contains("is not known here"), "{closed}");
    }
    // Four in all, the first among them.
    let others = [
        served.connect(&token).await.unwrap(),
        served.connect(&token).await.unwrap(),
        served.connect(&token).await.unwrap(),
    ];
    let (status, body) = served.connect(&token).await.unwrap_err();
    assert_eq!(status, 503, "{body}");
    drop((first, others));
}

#[tokio::test]
async fn a_session_does_not_outlive_its_token_for_long() {
    let place = Place::new(&SHARED, "renewal");
    let served = Served::start(&place, Duration::from_millis(100)).await;
    let ending = || place.sign(&place.claims_with("/exp", json!(now() + 2)));
    let mut socket = served.join(ending).await;
    let last = next_text(&mut socket).await.unwrap();
    assert!(last.contains("\"type\":\"drain\""), "{last}");
    // Nor does the session of one that does not listen: it is closed.
    next_text(&mut socket).await.unwrap_err();
    let renewed = place.token(AGENT_AUDIENCE);
    served.join(|| renewed.clone()).await;
}
