//! One request from beginning to end: who is it for, who may ask, which part answers.
//!
//! Everything that holds for all routes is here: the host's name, the token, the limits of bodies, the headers of
//! answers. The routes themselves are in [`crate::api`] and [`crate::dashboard`].

use {
    crate::{
        config::Timing,
        identity::readers::Unavailable,
        ingest::Ingest,
        listen::{Answer, From},
        metrics::{HttpMetrics, RouteClass},
    },
    axum::{
        Router,
        body::{Body, to_bytes},
        response::{IntoResponse, Redirect, Response},
    },
    futures_util::FutureExt,
    healthscope_shared::wire,
    http::{
        HeaderMap, Method, Request, StatusCode, Uri,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
        uri::PathAndQuery,
    },
    hyper::body::Incoming,
    std::{panic::AssertUnwindSafe, sync::Arc, time::SystemTime},
    tokio::time,
    tower_service::Service,
};

pub(crate) mod access;
pub(crate) mod cookie;
pub(crate) mod host;
pub(crate) mod problem;
pub(crate) mod viewer;

use {
    access::{Access, bearer},
    host::AllowedHosts,
    problem::Problem,
    viewer::Viewer,
};

/// The longest body taken: a token in a form, or an empty JSON object.
const MAX_BODY: usize = 16 * 1024;

/// What pages may load: their own script and style, and nothing from anywhere else.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' \
                           data:; base-uri 'none'; frame-ancestors 'none'; form-action 'self'";

/// Everything that is not a page may load nothing at all.
const OTHER_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// All routes, and what holds for all of them.
pub(crate) struct Site {
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) router: Router,
    pub(crate) access: Arc<Access>,
    pub(crate) hosts: AllowedHosts,
    pub(crate) timing: Timing,
    pub(crate) metrics: HttpMetrics,
}

impl Answer for Site {
    async fn answer(self: Arc<Self>, from: From, request: Request<Incoming>) -> Response {
        let class = RouteClass::of(request.uri().path());
        let answering = async {
            if request.uri().path() == wire::PATH {
                Box::pin(self.ingest.upgrade(from, request)).await
            } else {
                Box::pin(self.answer_http(from, request))
                    .await
                    .unwrap_or_else(IntoResponse::into_response)
            }
        };
        // A bug in one page must not end the connection without a word.
        let mut response = match AssertUnwindSafe(answering).catch_unwind().await {
            Ok(response) => response,
            Err(_panic) => {
                tracing::error!("a request made the program panic");
                Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "a bug in the aggregator; its log says more",
                )
                .into_response()
            }
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            decorate(response.headers_mut());
        }
        self.metrics.answered(class, response.status());
        response
    }
}

impl Site {
    async fn answer_http(&self, from: From, request: Request<Incoming>) -> Result<Response, Problem> {
        let class = RouteClass::of(request.uri().path());
        let viewer = if class == RouteClass::Health {
            None
        } else {
            let by_bearer = self.access.by_bearer(request.headers()).await;
            // Whoever shows a token in a header is no page of a stranger, whatever name it came by.
            if !matches!(by_bearer, Ok(Some(_))) {
                self.check_host(&request)?;
            }
            match self.check_access(&request, class, by_bearer).await {
                Ok(viewer) => viewer,
                Err(problem) => {
                    let is_unknown = problem.status() == StatusCode::UNAUTHORIZED;
                    return if is_unknown && class == RouteClass::Page && wants_page(request.headers()) {
                        Ok(see_other(&sign_in_path(request.uri())))
                    } else {
                        Err(problem)
                    };
                }
            }
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            check_origin(&request)?;
        }
        let request = self.read_body(request).await?;
        let mut router = self.router.clone();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(from);
        if let Some(viewer) = viewer {
            parts.extensions.insert(viewer);
        }
        let routed = router.call(Request::from_parts(parts, body));
        Ok(routed.await.into_response())
    }

    fn check_host<B>(&self, request: &Request<B>) -> Result<(), Problem> {
        let Some(authority) = host::authority(request) else {
            return Err(Problem::bad_request("the request needs one Host line"));
        };
        if self.hosts.allows(authority.host()) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this host name is not known here; use the address or localhost, or start the aggregator with \
             --allowed-host NAME",
        ))
    }

    /// Whom the answer is for; nobody in particular where everybody may read it.
    async fn check_access<B>(
        &self,
        request: &Request<B>,
        class: RouteClass,
        by_bearer: Result<Option<Viewer>, Unavailable>,
    ) -> Result<Option<Viewer>, Problem> {
        let is_for_everybody = class == RouteClass::Asset
            || matches!(request.uri().path(), "/login" | "/logout" | "/openapi.json");
        if is_for_everybody {
            return Ok(None);
        }
        let headers = request.headers();
        let viewer = match by_bearer? {
            Some(viewer) => Some(viewer),
            // A token that does not count is an error even beside a cookie that does, but for where nobody needs one.
            None if bearer(headers).is_some() && !self.access.is_open() => None,
            None => self.access.by_cookie(headers, SystemTime::now()),
        };
        let viewer = viewer.ok_or_else(|| self.access.unauthorized(headers))?;
        if class == RouteClass::Metrics {
            viewer.check_path(request.uri().path()).await?;
        }
        Ok(Some(viewer))
    }

    /// Reads the body whole, so that no handler can be kept waiting by a client.
    async fn read_body(&self, request: Request<Incoming>) -> Result<Request<Body>, Problem> {
        let (parts, body) = request.into_parts();
        let reading = to_bytes(Body::new(body), MAX_BODY);
        match time::timeout(self.timing.body, reading).await {
            Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
            Ok(Err(_)) => Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a body of more than {MAX_BODY} bytes is not read"),
            )),
            Err(_) => Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            )),
        }
    }
}

/// Whether a request that may change something was sent by a page of ours, or by no page at all.
fn check_origin<B>(request: &Request<B>) -> Result<(), Problem> {
    let headers = request.headers();
    let fetch_site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let is_same_site = matches!(fetch_site, None | Some(b"same-origin" | b"none"));
    let is_same_origin = headers.get(ORIGIN).is_none_or(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        host::authority(request).is_some_and(|host| authority == Some(host.as_str()))
    });
    if is_same_site && is_same_origin {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "pages of other origins may not change anything here",
    ))
}

/// The form, which leads back to where the browser wanted to go.
fn sign_in_path(wanted: &Uri) -> String {
    let wanted = wanted.path_and_query().map_or("/", PathAndQuery::as_str);
    let next: String = form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
    format!("/login?next={next}")
}

/// Whether a client would rather have a page than data.
pub(crate) fn wants_page(headers: &HeaderMap) -> bool {
    accepts(headers, "text/html")
}

/// Whether a type is named in `Accept`; wildcards do not count.
pub(crate) fn accepts(headers: &HeaderMap, content_type: &str) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let range = range.split(';').next().unwrap_or_default();
            range.trim().eq_ignore_ascii_case(content_type)
        })
}

/// Sends the browser elsewhere.
pub(crate) fn see_other(to: &str) -> Response {
    Redirect::to(to).into_response()
}

/// Headers that every answer carries, unless its part said otherwise.
fn decorate(headers: &mut HeaderMap) {
    let is_page = headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    let policy = if is_page { PAGE_POLICY } else { OTHER_POLICY };
    let defaults: [(HeaderName, &'static str); 6] = [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in defaults {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
