//! The routes that programs read: `/api/v1/...`, the objects as kubectl gives them, the bare words, metrics and health.
//!
//! | route | answer |
//! |---|---|
//! | `GET /api/v1/status` | version, totals, problems of the configuration |
//! | `GET /api/v1/scopes` | a page of scopes, by namespace and name |
//! | `GET /api/v1/scopes/{namespace}/{name}` | one scope with all its components |
//! | `GET /api/v1/components` | a page of components, in scopes or not |
//! | `GET /api/v1/components/{namespace}/{name}` | one component with its instances and probes |
//! | `POST /api/v1/components/{namespace}/{name}/probes/{probe}/run` | the probe is run now; what came out |
//! | `GET /api/v1/probes` | a page of probes |
//! | `GET /api/v1/agents`, `DELETE /api/v1/agents/{name}` | agents; forget one that is gone for good |
//! | `GET /api/v1/transitions` | the latest changes |
//! | `GET /api/v1/stream` | changes as they happen, as server-sent events |
//! | `GET /scopes`, `/scopes/{namespace}/{name}`, `/scopes/{name}` | HealthScope objects, or the bare word as text |
//! | `GET /{scope}` | Rudr's answer: `healthy` or `unhealthy` |
//! | `GET /metrics`, `/livez`, `/readyz`, `/healthz`, `/openapi.json` | for machines |

use {
    crate::{
        bus::{Feed, StoreSender, ToStore},
        config::{Limits, Timing},
        declared::Declared,
        kubernetes::role::Role,
        mailbox::Sessions,
        metrics::Metrics,
        site::problem::Problem,
    },
    axum::{
        Router,
        body::Body,
        extract::{FromRequestParts, Path, Query},
        response::Response,
        routing::{get, post},
    },
    healthscope_core::store::Store,
    healthscope_service::{admin::Readiness, config_files::Loaded, shutdown::Shutdown},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, HeaderValue},
        request::Parts,
    },
    jiff::Timestamp,
    schemars::JsonSchema,
    serde::{Deserialize, Serialize, de::DeserializeOwned},
    std::sync::{Arc, atomic::AtomicUsize},
    tokio::sync::{oneshot, watch},
};

mod agents;
mod components;
mod machines;
mod openapi;
mod runs;
mod scopes;
mod sight;
mod status;
pub(crate) mod stream;
mod text;
mod transitions;

pub(crate) use {components::view as component_view, sight::Sight};

/// Items of a page unless asked for fewer or more.
const DEFAULT_LIMIT: usize = 1_000;
/// Most items of a page: some megabytes.
const MAX_LIMIT: usize = 10_000;

/// What the routes share; clones share it.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

/// What the routes share.
pub(crate) struct Inner {
    pub(crate) feed: Feed,
    pub(crate) store: StoreSender,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) declared: watch::Receiver<Loaded<Declared>>,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) replica: Replica,
    pub(crate) started: Timestamp,
    pub(crate) streams: AtomicUsize,
    pub(crate) shutdown: Shutdown,
}

/// What this aggregator is among others.
pub(crate) struct Replica {
    /// Whether it is part of a cluster.
    pub(crate) in_cluster: bool,
    pub(crate) role: watch::Receiver<Role>,
}

impl Replica {
    pub(crate) fn serves(&self) -> bool {
        *self.role.borrow() == Role::Owner
    }
}

impl std::ops::Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Asks the store's task; the answer is of one moment.
    pub(crate) async fn ask<T, F>(&self, question: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |store: &Store| {
            // Whoever asked may be gone.
            let _gone = reply.send(question(store));
        });
        self.store.send(ToStore::Ask(ask)).await;
        answer
            .await
            .map_err(|_| Problem::unavailable("the aggregator is shutting down", "2"))
    }
}

/// All routes of programs.
pub(crate) fn routes(api: Api) -> Router {
    Router::new()
        .route("/api/v1/status", get(status::get))
        .route("/api/v1/scopes", get(scopes::list))
        .route("/api/v1/scopes/{namespace}/{name}", get(scopes::get))
        .route("/api/v1/components", get(components::list))
        .route("/api/v1/components/{namespace}/{name}", get(components::get))
        .route(
            "/api/v1/components/{namespace}/{name}/probes/{probe}/run",
            post(runs::run),
        )
        .route("/api/v1/probes", get(components::probes))
        .route("/api/v1/agents", get(agents::list))
        .route("/api/v1/agents/{name}", axum::routing::delete(agents::forget))
        .route("/api/v1/transitions", get(transitions::list))
        .route("/api/v1/stream", get(stream::open))
        .route("/scopes", get(text::list))
        .route("/scopes/{name}", get(text::get_in_default))
        .route("/scopes/{namespace}/{name}", get(text::get))
        .route("/metrics", get(machines::metrics))
        .route("/livez", get(machines::live))
        .route("/readyz", get(machines::ready))
        .route("/healthz", get(machines::ready))
        .route("/openapi.json", get(openapi::get))
        .route("/{scope}", get(text::rudr))
        .with_state(api)
}

/// What no route answers.
pub(crate) async fn not_found() -> Problem {
    Problem::not_found("there is nothing here; /openapi.json lists what there is")
}

/// What routes answer to methods that they do not know; the router adds `Allow`.
pub(crate) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this can be read, but not changed this way; the header Allow says how it can be used",
    )
}

/// A page of things.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct List<T> {
    /// The things.
    pub(crate) items: Vec<T>,
    /// How many there are that match, on all pages.
    pub(crate) total: usize,
    /// Give this as `continue` for the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl<T> List<T> {
    /// Cuts a page out of all matching items, which are in the order of their keys.
    fn page(all: impl Iterator<Item = T>, page: &Page, key: impl Fn(&T) -> String) -> Result<Self, Problem> {
        let limit = page.limit()?;
        let after = page.after.as_deref().filter(|after| !after.is_empty());
        let mut list = Self {
            items: Vec::new(),
            total: 0,
            next: None,
        };
        let mut has_more = false;
        let mut is_before = after.is_some();
        for item in all {
            list.total += 1;
            // Compared and not searched for: the item that the former page ended with may be gone.
            is_before = is_before && after.is_some_and(|after| key(&item).as_str() <= after);
            if is_before {
                continue;
            }
            if list.items.len() < limit {
                list.items.push(item);
            } else {
                has_more = true;
            }
        }
        if has_more {
            list.next = list.items.last().map(key);
        }
        Ok(list)
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Default, Deserialize)]
struct Page {
    limit: Option<usize>,
    after: Option<String>,
}

impl Page {
    fn new(limit: Option<usize>, after: Option<String>) -> Self {
        Self { limit, after }
    }

    fn limit(&self) -> Result<usize, Problem> {
        match self.limit {
            None => Ok(DEFAULT_LIMIT),
            Some(limit @ 1..=MAX_LIMIT) => Ok(limit),
            Some(_) => Err(Problem::bad_request(format!(
                "limit must be from 1 to {MAX_LIMIT}"
            ))),
        }
    }
}

/// Parameters behind `?`; an error names the parameter.
struct Params<T>(T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query
            .map(|Query(params)| Self(params))
            .map_err(|error| Problem::bad_request(healthscope_shared::one_line(&error.body_text(), 300)))
    }
}

/// Parts of the path; a name that cannot exist is not found.
struct Place<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Place<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(place)| Self(place)).map_err(|error| {
            let why = healthscope_shared::one_line(&error.body_text(), 300);
            Problem::not_found(format!("there cannot be anything of this name: {why}"))
        })
    }
}

fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("views have only text keys and finite numbers");
    respond(StatusCode::OK, "application/json", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether a text that people search in has all the words that they typed, in whatever case.
pub(crate) fn has_words(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    words
        .to_lowercase()
        .split_whitespace()
        .all(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(limit: usize, after: Option<&str>, expected: &[&str], next: Option<&str>) {
        let all = ["a", "b", "d", "e"].map(str::to_owned);
        let page = Page::new(Some(limit), after.map(str::to_owned));
        let list = List::page(all.into_iter(), &page, Clone::clone).unwrap();
        assert_eq!(
            (list.items, list.next.as_deref(), list.total),
            (expected.iter().map(|s| (*s).to_owned()).collect(), next, 4)
        );
    }

    #[test]
    fn pages_follow_each_other_even_when_an_item_is_gone() {
        check(10, None, &["a", "b", "d", "e"], None);
        check(2, None, &["a", "b"], Some("b"));
        check(2, Some("b"), &["d", "e"], None);
        check(1, Some("c"), &["d"], Some("d"));
        check(2, Some("e"), &[], None);
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        for limit in [0, MAX_LIMIT + 1] {
            assert!(Page::new(Some(limit), None).limit().is_err());
        }
    }

    #[test]
    fn words_are_found_in_any_order() {
        assert!(has_words("Web frontend", "front WEB"));
        assert!(!has_words("web", "web db"));
        assert!(has_words("web", ""));
    }
}
