//! The writer against a small API server of our own, whose faults come when they are wanted. What the real one does is
//! tested with the real one.

use {
    super::*,
    crate::metrics::Metrics,
    axum::{
        Json, Router,
        extract::{Path, State},
        http::StatusCode,
        response::{IntoResponse, Response},
        routing::{get, post, put},
    },
    jiff::Timestamp,
    serde_json::json,
    std::{collections::VecDeque, sync::Mutex},
};

/// Longer than anything here takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// How the next write goes wrong.
#[derive(Clone, Copy)]
enum Fault {
    /// 429 with so many seconds.
    Busy(u64),
    /// 500.
    Failed,
    /// 403.
    Refused,
    /// Somebody else changes the object first, and the watch says nothing.
    Overtaken,
    /// No answer.
    Silent,
}

/// What the server has.
#[derive(Default)]
struct Stored {
    version: u64,
    /// By name, in one namespace.
    objects: BTreeMap<String, Value>,
    events: BTreeMap<String, Value>,
    faults: VecDeque<Fault>,
    /// When each write came, and for what.
    writes: Vec<(Instant, String)>,
    reads: usize,
}

type Shared = Arc<Mutex<Stored>>;

async fn put_status(
    State(stored): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let fault = {
        let mut stored = stored.lock().unwrap();
        stored.writes.push((clock::instant(), name.clone()));
        stored.faults.pop_front()
    };
    match fault {
        Some(Fault::Busy(seconds)) => {
            let header = [("retry-after", seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, header).into_response();
        }
        Some(Fault::Failed) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Fault::Refused) => return StatusCode::FORBIDDEN.into_response(),
        Some(Fault::Silent) => return std::future::pending().await,
        Some(Fault::Overtaken) => {
            let mut stored = stored.lock().unwrap();
            stored.version += 1;
            let version = stored.version.to_string();
            stored.objects.get_mut(&name).unwrap()["metadata"]["resourceVersion"] = version.into();
        }
        None => {}
    }
    let mut stored = stored.lock().unwrap();
    stored.version += 1;
    let version = stored.version.to_string();
    let Some(object) = stored.objects.get_mut(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fence = |object: &Value| {
        let metadata = &object["metadata"];
        (metadata["uid"].clone(), metadata["resourceVersion"].clone())
    };
    if fence(object) != fence(&body) {
        return (StatusCode::CONFLICT, Json(json!({"reason": "Conflict"}))).into_response();
    }
    object["status"] = body["status"].clone();
    object["metadata"]["resourceVersion"] = version.into();
    Json(json!({"kind": "PartialObjectMetadata", "metadata": object["metadata"]})).into_response()
}

async fn get_object(State(stored): State<Shared>, Path(name): Path<String>) -> Response {
    let mut stored = stored.lock().unwrap();
    stored.reads += 1;
    match stored.objects.get(&name) {
        Some(object) => Json(object.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn post_event(State(stored): State<Shared>, Json(event): Json<Value>) -> Response {
    let mut stored = stored.lock().unwrap();
    let name = event["metadata"]["name"].as_str().unwrap().to_owned();
    if stored.events.contains_key(&name) {
        return (StatusCode::CONFLICT, Json(json!({"reason": "AlreadyExists"}))).into_response();
    }
    stored.events.insert(name, event);
    StatusCode::CREATED.into_response()
}

/// A writer with everything around it.
struct Stage {
    stored: Shared,
    observed: mpsc::Sender<Observed>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    role: watch::Sender<Role>,
    shutdown: CancellationToken,
    metrics: Arc<Metrics>,
    writer: tokio::task::JoinHandle<()>,
}

impl Stage {
    /// Scopes `a` and `b`, without a status, watched and owned.
    async fn start() -> Self {
        let stored = Shared::default();
        stored.lock().unwrap().version = 10;
        let object = "/apis/core.oam.dev/v1beta1/namespaces/default/healthscopes/{name}";
        let router = Router::new()
            .route(object, get(get_object))
            .route(&format!("{object}/status"), put(put_status))
            .route(
                "/apis/events.k8s.io/v1/namespaces/default/events",
                post(post_event),
            )
            .with_state(Arc::clone(&stored));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum_serve(listener, router).await });
        let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
        config.default_retry = false;
        let (observed, watch_end) = mpsc::channel(16);
        let (snapshot, snapshot_end) = watch::channel(Arc::default());
        let (role, role_end) = watch::channel(Role::Owner);
        let metrics = Arc::new(Metrics::new());
        let shutdown = CancellationToken::new();
        let ends = WriterEnds {
            client: Client::try_from(config).unwrap(),
            observed: watch_end,
            snapshot: snapshot_end,
            role: role_end,
            limits: WriterLimits::default(),
            instance: "here".into(),
            metrics: metrics.writer.clone(),
        };
        let writer = tokio::spawn(run(ends, shutdown.clone()));
        let stage = Self {
            stored,
            observed,
            snapshot,
            role,
            shutdown,
            metrics,
            writer,
        };
        for name in ["a", "b"] {
            stage.create(name).await;
        }
        stage.tell(Observed::Synced).await;
        stage
    }

    async fn tell(&self, observed: Observed) {
        self.observed.send(observed).await.unwrap();
    }

    /// Makes an object, and has the watch show it.
    async fn create(&self, name: &str) {
        let object = json!({
            "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
            "spec": {},
            "status": {"madeUpByAnother": {"x": 1}},
        });
        let observed = Observed::applied(&object).unwrap();
        self.stored.lock().unwrap().objects.insert(name.into(), object);
        self.tell(observed).await;
    }

    fn want(&self, entries: &[Arc<ScopeEntry>]) {
        let mut scopes = BTreeMap::clone(&self.snapshot.borrow().scopes);
        for entry in entries {
            scopes.insert(entry.view.key(), Arc::clone(entry));
        }
        self.snapshot.send_replace(Arc::new(Snapshot {
            scopes: Arc::new(scopes),
            ..Snapshot::default()
        }));
    }

    fn fail(&self, faults: &[Fault]) {
        self.stored.lock().unwrap().faults.extend(faults);
    }

    async fn until(&self, what: &str, holds: impl Fn(&Stored) -> bool) {
        let wait = async {
            while !holds(&self.stored.lock().unwrap()) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(LIMIT, wait).await.expect(what);
    }

    fn writes(&self) -> usize {
        self.stored.lock().unwrap().writes.len()
    }

    /// Waits until a metric has a value; the server knows of a request before the writer knows of its answer.
    async fn metric_becomes(&self, metric: &str, value: u64) {
        let line = format!("{metric} {value}\n");
        let wait = async {
            while !String::from_utf8(self.metrics.text()).unwrap().contains(&line) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(LIMIT, wait).await.expect(&line);
    }

    async fn end(self) -> Shared {
        self.shutdown.cancel();
        time::timeout(LIMIT, self.writer)
            .await
            .expect("the writer ends")
            .unwrap();
        self.stored
    }
}

async fn axum_serve(listener: tokio::net::TcpListener, router: Router) {
    use hyper_util::{rt::TokioIo, service::TowerToHyperService};
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _client_went_away = connection.await;
        });
    }
}

fn says(name: &str, health: &str) -> impl Fn(&Stored) -> bool {
    let (name, health) = (name.to_owned(), health.to_owned());
    move |stored| stored.objects[&name]["status"]["health"] == health.as_str()
}

/// What the store makes of a scope that has had `previous`.
fn entry(name: &str, health: &str, previous: Option<&ScopeEntry>) -> Arc<ScopeEntry> {
    let view = json!({
        "namespace": "default", "name": name, "health": health, "reason": "PolicyNotMet", "message": "because",
        "since": "2026-01-01T00:00:00Z", "available": "0/0",
        "summary": {"total": 0, "healthy": 0, "degraded": 0, "unhealthy": 0, "unknown": 0},
        "flapping": false, "alarming": false, "components": [], "conditions": [],
        "policy": {"minAvailable": 100, "needed": 0, "unknownPolicy": "Unknown", "minHealthySeconds": 0},
    });
    let object = json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "generation": 1},
        "spec": {},
    });
    let view = serde_json::from_value(view).unwrap();
    let status = healthscope_core::status::desired(
        &view,
        &healthscope_core::status::OldWords::default(),
        Some(1),
        previous.map(|previous| &previous.status),
        Timestamp::now(),
    );
    Arc::new(ScopeEntry {
        object: serde_json::from_value(object).unwrap(),
        status,
        view,
        settled: true,
    })
}

#[tokio::test]
async fn changes_are_written_once_and_told_once() {
    let stage = Stage::start().await;
    let well = entry("a", "Healthy", None);
    stage.want(&[Arc::clone(&well)]);
    stage.until("the first status", says("a", "Healthy")).await;
    let sick = entry("a", "Unhealthy", Some(&well));
    stage.want(&[Arc::clone(&sick)]);
    stage.until("the second status", says("a", "Unhealthy")).await;
    stage.until("an Event", |stored| !stored.events.is_empty()).await;

    // A resync of the watch and an entry that means the same write nothing.
    let object = stage.stored.lock().unwrap().objects["a"].clone();
    stage.tell(Observed::applied(&object).unwrap()).await;
    stage.want(&[entry("a", "Unhealthy", Some(&sick)), entry("b", "Healthy", None)]);
    stage.until("the other scope", says("b", "Healthy")).await;
    assert_eq!(stage.writes(), 3);
    stage
        .metric_becomes("healthscope_status_writes_total{result=\"written\"}", 3)
        .await;
    stage
        .metric_becomes("healthscope_kubernetes_events_total{result=\"created\"}", 1)
        .await;

    let stored = stage.end().await;
    let stored = stored.lock().unwrap();
    assert_eq!(
        stored.objects["a"]["status"]["madeUpByAnother"]["x"], 1,
        "another's field is kept"
    );
    assert_eq!(stored.events.len(), 1);
    let event = stored.events.values().next().unwrap();
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "PolicyNotMet");
    assert_eq!(event["note"], "Unhealthy after 0s Healthy: because");
    assert_eq!(event["regarding"]["uid"], "uid-a");
    assert_eq!(event["reportingInstance"], "here");
}

#[tokio::test]
async fn a_busy_server_is_left_alone_by_all() {
    let stage = Stage::start().await;
    stage.fail(&[Fault::Busy(1)]);
    stage.want(&[entry("a", "Healthy", None)]);
    stage
        .until("the refusal", |stored| stored.writes.len() == 1)
        .await;
    time::sleep(Duration::from_millis(50)).await;
    stage.want(&[entry("b", "Healthy", None)]);
    stage
        .until("both", |stored| {
            says("a", "Healthy")(stored) && says("b", "Healthy")(stored)
        })
        .await;
    let stored = stage.end().await;
    let stored = stored.lock().unwrap();
    let gap = stored.writes[1].0 - stored.writes[0].0;
    assert!(gap >= Duration::from_secs(1), "{gap:?}");
    assert_eq!(stored.writes.len(), 3);
}

#[tokio::test]
async fn a_write_that_was_overtaken_is_made_anew_from_what_is_there() {
    let stage = Stage::start().await;
    stage.fail(&[Fault::Overtaken]);
    stage.want(&[entry("a", "Healthy", None)]);
    stage.until("the status", says("a", "Healthy")).await;
    stage
        .metric_becomes("healthscope_status_writes_total{result=\"conflict\"}", 1)
        .await;
    assert_eq!((stage.writes(), stage.stored.lock().unwrap().reads), (2, 1));
}

#[tokio::test]
async fn what_failed_or_was_refused_is_tried_again() {
    for fault in [Fault::Failed, Fault::Refused] {
        let stage = Stage::start().await;
        stage.fail(&[fault]);
        stage.want(&[entry("a", "Healthy", None)]);
        stage.until("the status", says("a", "Healthy")).await;
        assert_eq!(stage.writes(), 2);
    }
}

#[tokio::test]
async fn nothing_is_written_without_the_scopes() {
    let stage = Stage::start().await;
    // The request under way is given up, too.
    stage.fail(&[Fault::Silent]);
    stage.want(&[entry("a", "Healthy", None)]);
    stage
        .until("the request", |stored| stored.writes.len() == 1)
        .await;
    stage.role.send_replace(Role::Standby { owner: None });
    stage.want(&[entry("b", "Healthy", None)]);
    time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stage.writes(), 1);
    stage.role.send_replace(Role::Owner);
    stage
        .until("both", |stored| {
            says("a", "Healthy")(stored) && says("b", "Healthy")(stored)
        })
        .await;
    assert_eq!(stage.writes(), 3);
}

#[tokio::test]
async fn transitions_are_written_at_the_end() {
    let stage = Stage::start().await;
    let well = entry("a", "Healthy", None);
    stage.want(&[Arc::clone(&well)]);
    stage.until("the first status", says("a", "Healthy")).await;
    let sick = entry("a", "Unhealthy", Some(&well));
    stage.want(&[Arc::clone(&sick)]);
    stage.until("the second status", says("a", "Unhealthy")).await;
    stage.want(&[entry("a", "Degraded", Some(&sick))]);
    // The store's last word is in the feed when shutdown is given.
    let stored = stage.end().await;
    let stored = stored.lock().unwrap();
    assert!(says("a", "Degraded")(&stored));
    assert_eq!(stored.events.len(), 2);
}

#[test]
fn unknown_fields_are_told_from_ours_and_bounded() {
    let object = json!({
        "metadata": {"namespace": "n", "name": "a", "uid": "u", "resourceVersion": "7"},
        "status": {"health": "Healthy", "conditions": [], "new": [1], "huge": "x".repeat(1 << 20)},
    });
    let Some(Observed::Applied { object, foreign }) = Observed::applied(&object) else {
        panic!("it is an object");
    };
    assert_eq!(Value::Object(foreign), json!({"new": [1]}));
    assert_eq!(object.resource_version, "7");
    assert_eq!(
        object.status.unwrap().health,
        Some(healthscope_shared::health::Health::Healthy)
    );
}

#[test]
fn objects_that_cannot_be_read_are_no_objects() {
    let with_status = |status: Value| {
        json!({
            "metadata": {"namespace": "n", "name": "a", "uid": "u", "resourceVersion": "7"},
            "status": status,
        })
    };
    for status in [
        json!({"health": "Splendid"}),
        json!("well"),
        json!({"conditions": [1]}),
        Value::Null,
    ] {
        match Observed::applied(&with_status(status)) {
            Some(Observed::Applied { object, .. }) => assert_eq!(object.status, None),
            other => panic!("{other:?}"),
        }
    }
    for odd in [
        json!({}),
        json!([]),
        json!({"metadata": {"name": "a"}}),
        json!({"metadata": {"namespace": "N!", "name": "a", "uid": "u", "resourceVersion": "7"}}),
    ] {
        assert!(Observed::applied(&odd).is_none(), "{odd}");
    }
}

#[test]
fn the_request_has_what_fences_it_and_no_spec() {
    let entry = entry("a", "Healthy", None);
    let foreign = Map::from_iter([("new".to_owned(), json!(1))]);
    let body = body(&entry.view.key(), "u", "7", &entry.status, Some(&foreign));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body["metadata"],
        json!({"namespace": "default", "name": "a", "uid": "u", "resourceVersion": "7"})
    );
    assert_eq!(
        (&body["status"]["health"], &body["status"]["new"]),
        (&json!("Healthy"), &json!(1))
    );
    assert_eq!(body.as_object().unwrap().len(), 4);
}
