//! What readers may see and do, as a real API server's RBAC says.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use {
    healthscope_aggregator::{
        App, Config,
        config::{AgentAuth, ReaderAuth, Source as FilesOrCluster},
        declared,
        identity::readers::Readers,
    },
    healthscope_e2e_cluster::{Audit, Cluster, Component, Options},
    healthscope_service::{config_files::Loaded, shutdown::Shutdown, token::Secret},
    healthscope_shared::document::Source,
    kube::{
        Client,
        config::{KubeConfigOptions, Kubeconfig},
    },
    serde_json::Value,
    std::{
        fs,
        net::SocketAddr,
        sync::{Arc, LazyLock},
        time::Duration,
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::watch,
        task::JoinHandle,
        time::timeout,
    },
};

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const DECISIONS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Two namespaces with a scope and a component each.
const FILES: &str = "
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: shop, namespace: a}
spec: {workloadRefs: [{kind: Component, name: web}]}
---
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: vault, namespace: b}
spec: {workloadRefs: [{kind: Component, name: secret-store}]}
";

/// `viewer` may look, `operator` may run probes too, `scraper` reads metrics and nothing else.
const ROLES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: b}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: looks}
rules: [{apiGroups: [core.oam.dev], resources: [healthscopes], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: runs}
rules: [{apiGroups: [core.oam.dev], resources: [healthscopes/probe], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: scrapes}
rules: [{nonResourceURLs: [/metrics], verbs: [get]}]
";

static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options {
        audit: Some(Audit::Metadata),
        ..Options::control_plane()
    })
    .unwrap();
    cluster.apply(ROLES).unwrap();
    cluster
});

/// An aggregator whose readers are of the cluster.
struct Served {
    address: SocketAddr,
    declared: watch::Sender<Loaded<declared::Declared>>,
    shutdown: Shutdown,
    running: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.trigger();
        self.running.abort();
    }
}

fn loaded(text: &str, revision: u64) -> Loaded<declared::Declared> {
    Loaded {
        value: Arc::new(declared::read(&[Source::new("test.yaml", text)]).unwrap()),
        revision,
        problems: None,
    }
}

/// Starts one that asks the API server as this user, who gets the right to.
async fn serve(cluster: &Cluster, user: &str) -> Served {
    bind(cluster, user, "system:auth-delegator", None);
    let file = Kubeconfig::read_from(cluster.kubeconfig_for(user, None).unwrap()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .unwrap();
    let (sender, receiver) = watch::channel(loaded(FILES, 1));
    let mut config_of_app = Config::new("127.0.0.1:0".parse().unwrap(), FilesOrCluster::Files(receiver));
    config_of_app.readers = ReaderAuth::Kubernetes(Readers::new(Client::try_from(config).unwrap()));
    config_of_app.agents = AgentAuth::Token(Secret::new("agents"));
    let app = App::bind(config_of_app).unwrap();
    let (address, shutdown) = (app.address(), Shutdown::new());
    let mut snapshots = app.snapshots();
    let running = app.run(shutdown.clone());
    let running = tokio::spawn(async move { running.await.unwrap() });
    let published = snapshots.wait_for(|snapshot| snapshot.scopes.len() == 2);
    timeout(PATIENCE, published).await.unwrap().unwrap();
    Served {
        address,
        declared: sender,
        shutdown,
        running,
    }
}

fn bind(cluster: &Cluster, user: &str, role: &str, namespace: Option<&str>) {
    let name = format!("{user}-{}", role.replace(':', "-"));
    let kind = if namespace.is_some() {
        "rolebinding"
    } else {
        "clusterrolebinding"
    };
    let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
    let mut arguments = vec!["create", kind, &name, &role, &user];
    arguments.extend(namespace.iter().flat_map(|namespace| ["-n", namespace]));
    cluster.kubectl(arguments).unwrap();
}

/// The token of a ServiceAccount that is made for it, with these roles: in a namespace, or in all of them.
fn person(cluster: &Cluster, name: &str, roles: &[(&str, Option<&str>)]) -> String {
    cluster
        .kubectl(["create", "serviceaccount", name, "-n", "default"])
        .unwrap();
    for (role, namespace) in roles {
        bind(
            cluster,
            &format!("system:serviceaccount:default:{name}"),
            role,
            *namespace,
        );
    }
    let token = cluster
        .kubectl(["create", "token", name, "-n", "default"])
        .unwrap();
    token.trim().to_owned()
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Served {
    async fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut stream = self.send(method, path, headers, body).await;
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        timeout(PATIENCE, read).await.unwrap().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head[9..12].parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    async fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str(&format!("\r\n{body}"));
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn get(&self, token: &str, path: &str) -> Answer {
        self.ask("GET", path, &[&bearer(token)], "").await
    }

    #[track_caller]
    fn names(answer: &Answer) -> Vec<String> {
        let items = answer.json()["items"].clone();
        let items = items.as_array().unwrap().iter();
        items
            .map(|item| {
                let metadata = if item["metadata"].is_object() {
                    &item["metadata"]
                } else {
                    item
                };
                let part = |key: &str| metadata[key].as_str().unwrap().to_owned();
                format!("{}/{}", part("namespace"), part("name"))
            })
            .collect()
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
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

const RUN_WEB: &str = "/api/v1/components/a/web/probes/readiness/run";
const RUN_STORE: &str = "/api/v1/components/b/secret-store/probes/readiness/run";
const JSON: &str = "content-type: application/json";

#[tokio::test]
async fn a_reader_sees_the_namespaces_that_rbac_lets_them_see() {
    let served = serve(&SHARED, "sees").await;
    let alice = person(&SHARED, "alice", &[("looks", Some("a"))]);
    let admin = SHARED.admin_token();
    let nobody = person(&SHARED, "nobody", &[]);

    for path in ["/api/v1/scopes", "/scopes"] {
        let all = served.get(admin, path).await;
        assert_eq!(Served::names(&all), ["a/shop", "b/vault"], "{path}");
        assert_eq!(
            Served::names(&served.get(&alice, path).await),
            ["a/shop"],
            "{path}"
        );
        assert!(
            Served::names(&served.get(&nobody, path).await).is_empty(),
            "{path}"
        );
    }
    for (path, mine, others) in [
        ("/api/v1/components", "a/web", "b/secret-store"),
        ("/api/v1/components?q=e", "a/web", "b/secret-store"),
    ] {
        assert_eq!(Served::names(&served.get(admin, path).await), [mine, others]);
        assert_eq!(Served::names(&served.get(&alice, path).await), [mine]);
    }
    // Nothing that is told to alice names what is in b, whatever she asks for.
    for path in [
        "/",
        "/ui/components",
        "/ui/agents",
        "/ui/scopes/a/shop",
        "/ui/components/a/Component/web",
        "/api/v1/status",
        "/api/v1/scopes",
        "/api/v1/scopes/a/shop",
        "/api/v1/components/a/web",
        "/api/v1/probes",
        "/api/v1/agents",
        "/api/v1/transitions",
        "/api/v1/transitions?level=probe",
    ] {
        let answer = served.get(&alice, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        for secret in ["vault", "secret-store"] {
            assert!(!answer.body.contains(secret), "{path}: {}", answer.body);
        }
    }
    let totals = served.get(&alice, "/api/v1/status").await.json()["totals"].clone();
    assert_eq!(
        (&totals["scopes"]["total"], &totals["components"]["total"]),
        (&1.into(), &1.into())
    );

    // One thing that may not be seen is like one that is not there.
    for (there, not_there) in [
        ("/api/v1/scopes/b/vault", "/api/v1/scopes/b/nothing"),
        (
            "/api/v1/components/b/secret-store",
            "/api/v1/components/b/nothing",
        ),
        ("/scopes/b/vault", "/scopes/b/nothing"),
        ("/ui/scopes/b/vault", "/ui/scopes/b/nothing"),
        (
            "/ui/components/b/Component/secret-store",
            "/ui/components/b/Component/nothing",
        ),
        (
            "/api/v1/components?namespace=b&scope=vault",
            "/api/v1/components?namespace=b&scope=nothing",
        ),
    ] {
        let (there, not_there) = (
            served.get(&alice, there).await,
            served.get(&alice, not_there).await,
        );
        assert_eq!((there.status, not_there.status), (404, 404), "{}", there.body);
        assert_eq!(there.body, not_there.body);
    }
    // A namespace as a whole is refused, and so is one that does not exist.
    for path in [
        "/api/v1/scopes?namespace=b",
        "/api/v1/components?namespace=b",
        "/api/v1/probes?namespace=b",
        "/api/v1/transitions?namespace=b",
        "/api/v1/stream?namespace=b",
        "/api/v1/scopes?namespace=nowhere",
    ] {
        let answer = served.get(&alice, path).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.body);
        assert!(
            answer.body.contains("list healthscopes (core.oam.dev)"),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn who_shows_nothing_sees_nothing() {
    let served = serve(&SHARED, "guards").await;
    for path in [
        "/",
        "/api/v1/scopes",
        "/api/v1/stream",
        "/scopes",
        "/scopes/a/shop",
        "/shop",
        "/metrics",
        "/nothing",
    ] {
        let answer = served.ask("GET", path, &[], "").await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.body.contains("kubectl create token"), "{}", answer.body);
        for bad in ["", "x", "a.b.c", "agents", &"x".repeat(6_000)] {
            let answer = served.get(bad, path).await;
            assert_eq!(answer.status, 401, "{path} {bad}");
        }
    }
    for path in ["/livez", "/readyz", "/healthz", "/openapi.json", "/login"] {
        assert_eq!(served.ask("GET", path, &[], "").await.status, 200, "{path}");
    }
    let page = served.ask("GET", "/ui/agents", &["accept: text/html"], "").await;
    assert_eq!(
        (page.status, page.header("location")),
        (303, Some("/login?next=%2Fui%2Fagents"))
    );
    // Of another audience: the token of an agent is none of a reader.
    SHARED
        .kubectl(["create", "serviceaccount", "agent", "-n", "a"])
        .unwrap();
    let of_agent = SHARED
        .kubectl([
            "create",
            "token",
            "agent",
            "-n",
            "a",
            "--audience=healthscope.core.oam.dev",
        ])
        .unwrap();
    assert_eq!(served.get(of_agent.trim(), "/scopes").await.status, 401);
}

#[tokio::test]
async fn running_a_probe_and_reading_metrics_take_rights_of_their_own() {
    let served = serve(&SHARED, "acts").await;
    let looker = person(&SHARED, "looker", &[("looks", Some("a"))]);
    let operator = person(&SHARED, "operator", &[("looks", Some("a")), ("runs", Some("a"))]);
    let scraper = person(&SHARED, "scraper", &[("scrapes", None)]);

    let run = async |token: &str, path: &str| served.ask("POST", path, &[&bearer(token), JSON], "{}").await;
    let refused = run(&looker, RUN_WEB).await;
    assert_eq!(refused.status, 403);
    assert!(
        refused.body.contains("create healthscopes/probe"),
        "{}",
        refused.body
    );
    // Past the guard there is no agent to run it.
    assert_eq!(run(&operator, RUN_WEB).await.status, 503);
    assert_eq!(run(&operator, RUN_STORE).await.status, 404);
    assert_eq!(run(SHARED.admin_token(), RUN_STORE).await.status, 503);

    let forget = async |token: &str| {
        served
            .ask("DELETE", "/api/v1/agents/gone", &[&bearer(token)], "")
            .await
    };
    assert_eq!(forget(&operator).await.status, 403);
    assert_eq!(forget(SHARED.admin_token()).await.status, 404);

    assert_eq!(served.get(&scraper, "/metrics").await.status, 200);
    assert!(Served::names(&served.get(&scraper, "/api/v1/scopes").await).is_empty());
    let refused = served.get(&operator, "/metrics").await;
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("nonResourceURLs"), "{}", refused.body);
}

#[tokio::test]
async fn the_form_takes_a_token_and_the_cookie_says_who_it_is() {
    let served = serve(&SHARED, "signs").await;
    let bob = person(&SHARED, "bob", &[("looks", Some("b"))]);
    let form = "content-type: application/x-www-form-urlencoded";
    let wrong = served.ask("POST", "/login", &[form], "token=guess").await;
    assert_eq!(wrong.status, 403);
    let signed_in = served
        .ask("POST", "/login", &[form], &format!("token={bob}&next=%2F"))
        .await;
    assert_eq!(signed_in.status, 303, "{}", signed_in.body);
    let cookie = signed_in.header("set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains(&bob), "the token itself is not kept");
    let seconds = cookie.split("Max-Age=").nth(1).unwrap();
    let seconds: u64 = seconds.split(';').next().unwrap().parse().unwrap();
    assert!(
        (3_000..=3_600).contains(&seconds),
        "no longer than the token: {seconds}"
    );

    let line = format!("cookie: {}", cookie.split(';').next().unwrap());
    let page = served.ask("GET", "/", &[&line], "").await;
    assert!(
        page.body.contains("vault") && !page.body.contains("shop"),
        "{}",
        page.body
    );
    assert!(
        page.body.contains("system:serviceaccount:default:bob"),
        "{}",
        page.body
    );
    // Of another process: signed with a key that this one does not have.
    let other = serve(&SHARED, "signs-elsewhere").await;
    assert_eq!(other.ask("GET", "/", &[&line], "").await.status, 401);
}

#[tokio::test]
async fn a_stream_tells_what_its_reader_may_see() {
    let served = serve(&SHARED, "streams").await;
    let carol = person(&SHARED, "carol", &[("looks", Some("a"))]);
    let mut stream = served.send("GET", "/api/v1/stream", &[&bearer(&carol)], "").await;
    let mut heard = String::new();
    hear(&mut stream, &mut heard, "event: snapshot").await;
    hear(&mut stream, &mut heard, "\"name\":\"shop\"").await;

    // Both scopes change; what is told of the one in a comes after all that could have been told of the one in b.
    let changed = FILES
        .replace("name: web}", "name: web2}")
        .replace("name: secret-store}", "name: secret-store2}");
    served.declared.send(loaded(&changed, 2)).unwrap();
    hear(&mut stream, &mut heard, "web2").await;
    let only_a = changed.split("---").next().unwrap();
    served.declared.send(loaded(only_a, 3)).unwrap();
    served
        .declared
        .send(loaded(&only_a.replace("web2", "web3"), 4))
        .unwrap();
    hear(&mut stream, &mut heard, "web3").await;
    for secret in ["vault", "secret-store"] {
        assert!(!heard.contains(secret), "{heard}");
    }
    let all = served.get(SHARED.admin_token(), "/api/v1/scopes").await;
    assert_eq!(Served::names(&all), ["a/shop"]);
}

/// Reads on until this was said.
async fn hear(stream: &mut TcpStream, heard: &mut String, wanted: &str) {
    let hearing = async {
        let mut piece = vec![0; 16 * 1024];
        while !heard.contains(wanted) {
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "the stream ended: {heard}");
            heard.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    };
    timeout(PATIENCE, hearing).await.unwrap();
}

#[tokio::test]
async fn the_api_server_is_asked_once_for_many_requests() {
    let served = serve(&SHARED, "frugal").await;
    let dave = person(&SHARED, "dave", &[("looks", Some("a"))]);
    let asking = (0..50).map(|_| served.get(&dave, "/api/v1/scopes"));
    for answer in futures_util::future::join_all(asking).await {
        assert_eq!(Served::names(&answer), ["a/shop"]);
    }
    assert_eq!(asked(&SHARED, "frugal", REVIEWS), 1);
    // In all namespaces, and in each of the two.
    assert_eq!(asked(&SHARED, "frugal", DECISIONS), 3);
}

#[tokio::test]
async fn without_the_api_server_nobody_new_gets_in() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    cluster.apply(ROLES).unwrap();
    let served = serve(&cluster, "alone").await;
    let [known, new] = ["known", "new"].map(|name| person(&cluster, name, &[("looks", Some("a"))]));
    assert_eq!(Served::names(&served.get(&known, "/scopes").await), ["a/shop"]);

    cluster.kill(Component::ApiServer).unwrap();
    let remembered = served.get(&known, "/scopes").await;
    assert_eq!(
        Served::names(&remembered),
        ["a/shop"],
        "what was decided holds for a moment"
    );
    let refused = served.get(&new, "/scopes").await;
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("API server"), "{}", refused.body);
    assert!(refused.header("retry-after").is_some());
    let form = "content-type: application/x-www-form-urlencoded";
    let sign_in = served
        .ask("POST", "/login", &[form], &format!("token={new}"))
        .await;
    assert_eq!(sign_in.status, 503);
    assert_eq!(served.ask("GET", "/readyz", &[], "").await.status, 200);
    assert_eq!(cluster_back(&cluster, &served, &new).await, ["a/shop"]);
}

async fn cluster_back(cluster: &Cluster, served: &Served, token: &str) -> Vec<String> {
    cluster.start_again(Component::ApiServer).unwrap();
    let answer = timeout(PATIENCE, async {
        loop {
            let answer = served.get(token, "/scopes").await;
            if answer.status == 200 {
                return answer;
            }
        }
    });
    Served::names(&answer.await.unwrap())
}
