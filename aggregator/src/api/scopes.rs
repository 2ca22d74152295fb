//! Scopes as JSON views.

use {
    super::{Api, List, Page, Params, Place, has_words, json},
    crate::site::{problem::Problem, viewer::Viewer},
    axum::{Extension, extract::State, response::Response},
    healthscope_core::view::ScopeView,
    healthscope_shared::{
        health::Health,
        name::{Name, Namespace, ScopeKey},
    },
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
};

/// Components of each scope in lists; the scope's own page has all.
pub(crate) const LISTED_COMPONENTS: usize = 50;

/// A scope in a list.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedScope {
    /// The scope; its components are the worst 50.
    #[serde(flatten)]
    pub(crate) scope: ScopeView,
    /// Whether components were left out.
    pub(crate) truncated: bool,
}

impl ListedScope {
    /// The scope with its worst components.
    pub(crate) fn new(scope: &ScopeView) -> Self {
        let truncated = scope.components.len() > LISTED_COMPONENTS;
        let scope = if truncated {
            ScopeView {
                components: scope.components[..LISTED_COMPONENTS].to_vec(),
                ..without_components(scope)
            }
        } else {
            scope.clone()
        };
        Self { scope, truncated }
    }
}

/// Everything else; cloning ten thousand components to drop them again would be a waste.
fn without_components(scope: &ScopeView) -> ScopeView {
    let ScopeView {
        namespace,
        name,
        health,
        reason,
        message,
        since,
        available,
        summary,
        root_cause,
        root_causes,
        flapping,
        alarming,
        maintenance,
        recovering,
        stalled,
        notes,
        policy,
        components: _,
        conditions,
    } = scope;
    ScopeView {
        namespace: namespace.clone(),
        name: name.clone(),
        health: *health,
        reason: reason.clone(),
        message: message.clone(),
        since: *since,
        available: available.clone(),
        summary: *summary,
        root_cause: root_cause.clone(),
        root_causes: root_causes.clone(),
        flapping: *flapping,
        alarming: *alarming,
        maintenance: maintenance.clone(),
        recovering: recovering.clone(),
        stalled: stalled.clone(),
        notes: notes.clone(),
        policy: policy.clone(),
        components: Vec::new(),
        conditions: conditions.clone(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    namespace: Option<Namespace>,
    health: Option<Health>,
    q: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Problem> {
    let Wanted {
        namespace,
        health,
        q,
        limit,
        after,
    } = wanted;
    viewer.check_namespace(namespace.as_ref()).await?;
    let snapshot = api.sight(&viewer).await?.snapshot;
    let scopes = snapshot.scopes.values().map(|entry| &entry.view).filter(|scope| {
        namespace
            .as_ref()
            .is_none_or(|namespace| scope.namespace == *namespace)
            && health.is_none_or(|health| scope.health == health)
            && q.as_deref()
                .is_none_or(|q| has_words(&format!("{}/{}", scope.namespace, scope.name), q))
    });
    let page = Page::new(limit, after);
    let List { items, total, next } = List::page(scopes, &page, |scope| key(scope))?;
    Ok(json(&List {
        items: items.into_iter().map(ListedScope::new).collect(),
        total,
        next,
    }))
}

/// Sorts as the map of scopes does: a blank is less than everything that names are made of.
fn key(scope: &ScopeView) -> String {
    format!("{} {}", scope.namespace, scope.name)
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place((namespace, name)): Place<(Namespace, Name)>,
) -> Result<Response, Problem> {
    let entry = api.scope(&viewer, &ScopeKey { namespace, name }).await?;
    Ok(json(&entry.view))
}

/// What a scope that does not exist gets.
pub(super) fn unknown(key: &ScopeKey) -> Problem {
    let ScopeKey { namespace, name } = key;
    Problem::not_found(format!(
        "there is no HealthScope {name} in the namespace {namespace}"
    ))
}
