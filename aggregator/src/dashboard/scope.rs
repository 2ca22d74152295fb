//! One scope: its verdict, its policy in words, all its components.

use {
    super::{
        Dashboard,
        layout::{Page, Place},
        overview::{self, Wanted},
        page, parts,
        rows::{self, Depth, Row},
    },
    crate::{
        api::has_words,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{
        Extension,
        extract::{Path, RawQuery, State},
        response::{IntoResponse, Response},
    },
    healthscope_core::view::{MemberView, PolicyView, ScopeView, TransitionView},
    healthscope_crd::v1beta1::UnknownPolicy,
    healthscope_shared::{
        health::Health,
        name::{Name, Namespace, ScopeKey},
        probe::outcome::MAX_OUTPUT_BYTES,
    },
    http::StatusCode,
    jiff::Timestamp,
    maud::{Markup, html},
    std::sync::Arc,
};

/// Components on one page.
const PAGE: usize = 100;
/// Changes in the strip.
const CHANGES: usize = 30;
const DEPTH: Depth = Depth {
    output: MAX_OUTPUT_BYTES,
    probes: 5,
};

pub(super) async fn get(
    State(dashboard): State<Dashboard>,
    Extension(viewer): Extension<Viewer>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let (Ok(namespace), Ok(name)) = (Namespace::new(&namespace), Name::new(&name)) else {
        return Problem::not_found("there cannot be a scope of this name").into_response();
    };
    let key = ScopeKey { namespace, name };
    let wanted = Wanted::read(query.as_deref());
    let seen = async {
        let entry = dashboard.api.scope(&viewer, &key).await?;
        Ok((entry, dashboard.api.sight(&viewer).await?))
    };
    let (entry, sight) = match seen.await {
        Ok(seen) => seen,
        Err(problem) => return dashboard.missing(&problem),
    };
    let snapshot = &sight.snapshot;
    let scope = &entry.view;
    let now = Timestamp::now();
    let path = parts::scope_path(&scope.namespace, &scope.name);
    let content = html! {
        p class="trail" { a href="/" { "All scopes" } }
        section class={"verdict " (parts::class(scope.health)) (if scope.alarming { " alarming" } else { "" })} data-key="verdict" {
            (parts::shape(scope.health))
            div {
                h1 { (scope.name) " is " (scope.health.as_str().to_lowercase()) }
                p class="muted" { "Namespace " (scope.namespace) " · " (policy(&scope.policy)) }
            }
        }
        article class={"card " (parts::class(scope.health))} data-key="card" {
            (overview::heading(scope, None, now))
            (overview::cause(scope))
            (overview::filters(&path, &wanted, "Search components"))
            (components(scope, &wanted, &path, now))
            (dashboard.terminal().command(&format!("why {}", scope.name), Some(&scope.namespace)))
        }
    };
    let transitions: Vec<_> = snapshot
        .transitions
        .iter()
        .rev()
        .filter(|transition| concerns(transition, scope))
        .take(CHANGES)
        .cloned()
        .collect();
    let markup = dashboard.lay_out(Page {
        title: format!("{} is {}", scope.name, scope.health.as_str().to_lowercase()),
        icon: scope.health,
        place: Place::Elsewhere,
        now,
        viewer: &viewer,
        sight: &sight,
        summary: spoken(scope),
        content,
        aside: Some(rows::changes(&transitions, dashboard.terminal(), now)),
    });
    page(StatusCode::OK, markup)
}

fn spoken(scope: &ScopeView) -> String {
    let (fact, cause) = overview::sentence(scope);
    if cause.is_empty() {
        fact
    } else {
        format!("{fact}: {cause}")
    }
}

/// The policy as a sentence.
fn policy(policy: &PolicyView) -> String {
    let PolicyView {
        min_available,
        needed,
        unknown_policy,
        min_healthy_seconds,
    } = policy;
    let mut text = match min_available {
        100 => "available while all components are".to_owned(),
        0 => "available whatever its components are".to_owned(),
        _ => {
            format!("available while {min_available} % of its components are ({needed} of those that count)")
        }
    };
    text.push_str(match unknown_policy {
        UnknownPolicy::Unknown => "",
        UnknownPolicy::Unhealthy => ", unknown ones count as not available",
        UnknownPolicy::Ignore => ", unknown ones are left out",
    });
    if *min_healthy_seconds > 0 {
        text.push_str(&format!(", a better health shows after {min_healthy_seconds} s"));
    }
    text
}

fn components(scope: &ScopeView, wanted: &Wanted, path: &str, now: Timestamp) -> Markup {
    let mut found: Vec<&MemberView> = scope
        .components
        .iter()
        .filter(|member| !wanted.problems_only || member.component.health != Health::Healthy)
        .filter(|member| {
            wanted.words.is_empty() || {
                let component = &member.component;
                let text = format!(
                    "{} {} {} {}",
                    component.name, component.kind, component.reason, component.message
                );
                has_words(&text, &wanted.words)
            }
        })
        .collect();
    rows::causes_first(&mut found);
    let last = found.len().div_ceil(PAGE).max(1);
    let start = (wanted.number.min(last) - 1) * PAGE;
    let shown = found.iter().skip(start).take(PAGE);
    let key = format!("{}/{}", scope.namespace, scope.name);
    html! {
        @if found.is_empty() {
            p class="empty" {
                @if scope.components.is_empty() { "No component belongs to this scope yet." }
                @else { "No component matches. " a href=(path) { "Show all" } }
            }
        } @else {
            (rows::table(&format!("Components of {}", scope.name), &key, shown.map(|member| Row::member(member)), DEPTH, now))
        }
        (overview::pages(path, wanted, PAGE, found.len()))
    }
}

fn concerns(transition: &Arc<TransitionView>, scope: &ScopeView) -> bool {
    if transition.namespace != scope.namespace {
        return false;
    }
    let is_scope =
        transition.kind.as_str() == healthscope_crd::v1beta1::KIND && transition.name == scope.name;
    is_scope
        || scope.components.iter().any(|member| {
            member.component.name == transition.name && member.component.kind == transition.kind
        })
}
