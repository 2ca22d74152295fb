//! The agents, absent ones first.

use {
    super::{
        Dashboard,
        layout::{self, Page, Place},
        overview::{self, Wanted},
        page,
        parts::{self, count},
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
    healthscope_core::view::{AgentView, Presence},
    healthscope_shared::health::Health,
    http::StatusCode,
    jiff::Timestamp,
    maud::{Markup, html},
};

/// Agents on one page.
const PAGE: usize = 200;

pub(super) async fn get(
    State(dashboard): State<Dashboard>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let wanted = Wanted::read(query.as_deref());
    let sight = dashboard.api.sight(&viewer).await?;
    let mut agents = dashboard.api.agents(&sight).await?;
    let absent = agents.iter().filter(|agent| is_absent(agent.presence)).count();
    let total = agents.len();
    agents.retain(|agent| {
        (!wanted.problems_only || agent.presence != Presence::Connected)
            && (wanted.words.is_empty()
                || has_words(
                    &format!("{} {} {}", agent.name, agent.peer, agent.version),
                    &wanted.words,
                ))
    });
    agents.sort_by_key(|agent| std::cmp::Reverse(health(agent.presence)));
    let snapshot = &sight.snapshot;
    let now = Timestamp::now();
    let last = agents.len().div_ceil(PAGE).max(1);
    let start = (wanted.number.min(last) - 1) * PAGE;
    let title = match (total, absent) {
        (0, _) => "No agent has connected yet".to_owned(),
        (_, 0) => format!("{} connected", count(total as u64, "agent is", "agents are")),
        _ => format!(
            "{absent} of {} absent",
            count(total as u64, "agent is", "agents are")
        ),
    };
    let worst = if absent > 0 {
        Health::Unknown
    } else {
        Health::Healthy
    };
    let content = html! {
        section class={"verdict " (parts::class(worst))} data-key="verdict" {
            (parts::shape(worst))
            div {
                h1 { (title) }
                p class="muted" { "An agent runs the checks where the components live and reports what it finds." }
            }
        }
        @if total > 0 {
            (overview::filters("/ui/agents", &wanted, "Search agents"))
            article class="card plain" data-key="agents" {
                (table(agents.iter().skip(start).take(PAGE), now))
                (overview::pages("/ui/agents", &wanted, PAGE, agents.len()))
            }
        }
        (dashboard.terminal().command("get agents", None))
    };
    let markup = dashboard.lay_out(Page {
        title: title.clone(),
        icon: layout::worst(&snapshot.totals.scopes),
        place: Place::Agents,
        now,
        viewer: &viewer,
        sight: &sight,
        summary: title,
        content,
        aside: None,
    });
    Ok(page(StatusCode::OK, markup))
}

fn table<'a>(agents: impl Iterator<Item = &'a AgentView>, now: Timestamp) -> Markup {
    html! {
        table class="agents" {
            caption class="unseen" { "Agents" }
            thead {
                tr {
                    th scope="col" { "Presence" }
                    th scope="col" { "Agent" }
                    th scope="col" { "From" }
                    th scope="col" class="number" { "Instances" }
                    th scope="col" class="number" { "Probes" }
                    th scope="col" { "Release" }
                    th scope="col" class="age" { "For" }
                }
            }
            tbody {
                @for AgentView { name, presence, since, version, peer, epoch: _, sessions, instances, probes, seq: _, missed } in agents {
                    @let health = health(*presence);
                    tr class=(parts::class(health)) data-key=(name) {
                        td class="what" { span class={"health " (parts::class(health))} { (parts::shape(health)) (word(*presence)) } }
                        th scope="row" class="name" {
                            (name)
                            @if *missed > 0 { " " span class="tag" title="Transitions that were never seen one by one" { (missed) " missed" } }
                        }
                        td class="why" { code { (peer) } " " span class="muted" { (count(*sessions, "session", "sessions")) } }
                        td class="number" { (instances) }
                        td class="number" { (probes) }
                        td { (parts::visible(version)) }
                        td class="age" { (parts::since(*since, now)) }
                    }
                }
            }
        }
    }
}

const fn is_absent(presence: Presence) -> bool {
    match presence {
        Presence::Connected | Presence::Syncing => false,
        Presence::Held | Presence::Lost | Presence::Stopped => true,
    }
}

const fn health(presence: Presence) -> Health {
    match presence {
        Presence::Connected => Health::Healthy,
        Presence::Syncing | Presence::Held => Health::Degraded,
        Presence::Lost | Presence::Stopped => Health::Unknown,
    }
}

const fn word(presence: Presence) -> &'static str {
    match presence {
        Presence::Connected => "Connected",
        Presence::Syncing => "Catching up",
        Presence::Held => "Reconnecting",
        Presence::Lost => "Lost",
        Presence::Stopped => "Stopped",
    }
}
