//! The page at `/`: server-rendered, live by one small script, readable without it.
//!
//! Decides nothing about health and keeps nothing: every page is made of the newest snapshot, or of an answer of the
//! store. What is shown is capped, problems first, whatever the size of the fleet. Texts of checks are untrusted: they
//! are escaped by the templates and made visible by [`parts::visible`].

use {
    crate::{api::Api, metrics::HttpMetrics, site::access::Access},
    axum::{
        Router,
        body::Body,
        response::Response,
        routing::{get, post},
    },
    http::{
        StatusCode,
        header::{CONTENT_TYPE, HeaderValue},
    },
    maud::Markup,
    std::sync::Arc,
};

mod agents;
mod assets;
mod component;
mod components;
mod layout;
mod overview;
mod parts;
mod rows;
mod scope;
mod sign_in;

use parts::Terminal;

/// What the pages share; clones share it.
#[derive(Clone)]
pub(crate) struct Dashboard {
    pub(crate) api: Api,
    pub(crate) access: Arc<Access>,
    pub(crate) sign_ins: Arc<crate::site::access::SignInLimit>,
    pub(crate) metrics: HttpMetrics,
}

/// All routes of pages.
pub(crate) fn routes(dashboard: Dashboard) -> Router {
    Router::new()
        .route("/", get(overview::get))
        .route("/ui/scopes/{namespace}/{name}", get(scope::get))
        .route("/ui/components", get(components::get))
        .route("/ui/components/{namespace}/{kind}/{name}", get(component::get))
        .route("/ui/agents", get(agents::get))
        .route("/login", get(sign_in::form).post(sign_in::submit))
        .route("/logout", post(sign_in::leave))
        .route("/assets/{file}", get(assets::get))
        .with_state(dashboard)
}

impl Dashboard {
    fn terminal(&self) -> Terminal {
        if self.api.replica.in_cluster {
            Terminal::Cluster
        } else {
            Terminal::Machine
        }
    }
}

fn page(status: StatusCode, markup: Markup) -> Response {
    let mut response = Response::new(Body::from(markup.into_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
