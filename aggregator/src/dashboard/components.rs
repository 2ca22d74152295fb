//! All components, in scopes or not, worst first.

use {
    super::{
        Dashboard,
        layout::{self, Page, Place},
        overview::{self, Wanted},
        page,
        parts::{self, count},
        rows::{self, Depth, Row},
    },
    crate::{
        api::has_words,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{
        Extension,
        extract::{RawQuery, State},
        response::Response,
    },
    healthscope_core::view::ComponentSummary,
    healthscope_shared::health::Health,
    http::StatusCode,
    jiff::Timestamp,
    maud::html,
    std::{cmp::Reverse, sync::Arc},
};

/// Components on one page.
const PAGE: usize = 100;
const DEPTH: Depth = Depth {
    output: 1_024,
    probes: 3,
};

pub(super) async fn get(
    State(dashboard): State<Dashboard>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let wanted = Wanted::read(query.as_deref());
    let sight = dashboard.api.sight(&viewer).await?;
    let mut found: Vec<Arc<ComponentSummary>> = dashboard.api.components(&sight).await?;
    found.retain(|component| {
        (!wanted.problems_only || component.health != Health::Healthy)
            && (wanted.words.is_empty() || has_words(&text(component), &wanted.words))
    });
    // The store's own order stays within equals.
    found.sort_by_key(|component| Reverse(component.health));
    let snapshot = &sight.snapshot;
    let now = Timestamp::now();
    let last = found.len().div_ceil(PAGE).max(1);
    let start = (wanted.number.min(last) - 1) * PAGE;
    let totals = snapshot.totals.components;
    let title = match totals.total - totals.healthy {
        0 => format!(
            "{} healthy",
            count(totals.total, "component is", "components are")
        ),
        troubled => format!("{troubled} of {} components are not healthy", totals.total),
    };
    let content = html! {
        section class={"verdict " (parts::class(layout::worst(&totals)))} data-key="verdict" {
            (parts::shape(layout::worst(&totals)))
            div {
                h1 { (title) }
                p class="muted" { "Everything that agents report about or files declare, in a scope or not." }
            }
        }
        (overview::filters("/ui/components", &wanted, "Search components"))
        @if found.is_empty() {
            p class="empty" { "No component matches. " a href="/ui/components" { "Show all" } }
        } @else {
            article class="card plain" data-key="components" {
                (rows::table("Components", "components", found.iter().skip(start).take(PAGE).map(|component| Row::alone(component)), DEPTH, now))
                (overview::pages("/ui/components", &wanted, PAGE, found.len()))
            }
        }
        (dashboard.terminal().command("get components", None))
    };
    let markup = dashboard.lay_out(Page {
        title: title.clone(),
        icon: layout::worst(&totals),
        place: Place::Components,
        now,
        viewer: &viewer,
        sight: &sight,
        summary: title,
        content,
        aside: None,
    });
    Ok(page(StatusCode::OK, markup))
}

fn text(component: &ComponentSummary) -> String {
    let ComponentSummary {
        namespace,
        kind,
        name,
        reason,
        message,
        ..
    } = component;
    format!("{namespace}/{kind}/{name} {reason} {message}")
}
