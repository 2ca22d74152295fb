//! Scopes for kubectl's friends and for scripts: the objects, the bare words, and Rudr's two words.

use {
    super::{Api, Place, json, respond},
    crate::site::{accepts, problem::Problem, viewer::Viewer},
    axum::{Extension, extract::State, response::Response},
    healthscope_core::snapshot::ScopeEntry,
    healthscope_crd::{HealthScope, v1beta1},
    healthscope_shared::name::{Name, Namespace, ScopeKey},
    http::{HeaderMap, StatusCode},
    schemars::JsonSchema,
    serde::Serialize,
    std::fmt::Write,
};

const TEXT: &str = "text/plain; charset=utf-8";

/// All scopes, as `kubectl get healthscopes -A -o json` gives them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HealthScopeList {
    /// `core.oam.dev/v1beta1`.
    api_version: &'static str,
    /// `HealthScopeList`.
    kind: &'static str,
    /// Nothing of use.
    metadata: ListMetadata,
    /// The scopes, by namespace and name.
    items: Vec<HealthScope>,
}

/// Nothing of use; it is there because Kubernetes' lists have it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMetadata {
    /// Always empty.
    resource_version: &'static str,
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let snapshot = api.sight(&viewer).await?.snapshot;
    if accepts(&headers, "text/plain") {
        let mut text = String::new();
        for (key, entry) in snapshot.scopes.iter() {
            let _never_fails = writeln!(text, "{key} {}", entry.view.health);
        }
        return Ok(respond(StatusCode::OK, TEXT, text));
    }
    Ok(json(&HealthScopeList {
        api_version: v1beta1::API_VERSION,
        kind: "HealthScopeList",
        metadata: ListMetadata { resource_version: "" },
        items: snapshot.scopes.values().map(|entry| entry.to_object()).collect(),
    }))
}

pub(super) async fn get_in_default(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place(name): Place<Name>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    answer(&api, &viewer, Namespace::default_namespace(), name, &headers).await
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place((namespace, name)): Place<(Namespace, Name)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    answer(&api, &viewer, namespace, name, &headers).await
}

async fn answer(
    api: &Api,
    viewer: &Viewer,
    namespace: Namespace,
    name: Name,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let entry = api.scope(viewer, &ScopeKey { namespace, name }).await?;
    let mut response = if accepts(headers, "text/plain") {
        respond(StatusCode::OK, TEXT, entry.view.health.as_str())
    } else {
        json(&entry.to_object())
    };
    *response.status_mut() = status(&entry);
    Ok(response)
}

fn status(entry: &ScopeEntry) -> StatusCode {
    if entry.view.health.is_available() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Rudr's health endpoint: 200 with one of two words, for a scope of the default namespace.
pub(super) async fn rudr(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place(scope): Place<String>,
) -> Result<Response, Problem> {
    let Ok(name) = Name::new(&scope) else {
        return Err(super::not_found().await);
    };
    let namespace = Namespace::default_namespace();
    let entry = api.scope(&viewer, &ScopeKey { namespace, name }).await?;
    let word = if entry.view.health.is_available() {
        "healthy"
    } else {
        "unhealthy"
    };
    Ok(respond(StatusCode::OK, TEXT, word))
}
