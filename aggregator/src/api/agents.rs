//! Agents: a list, and forgetting one that is gone for good.

use {
    super::{Api, List, Page, Params, Place, has_words, json},
    crate::{
        bus::ToStore,
        identity::readers::Deed,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{Extension, extract::State, response::Response},
    healthscope_core::{
        event::Event,
        view::{AgentView, Presence},
    },
    healthscope_shared::name::AgentName,
    http::StatusCode,
    serde::Deserialize,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    presence: Option<Presence>,
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
        presence,
        q,
        limit,
        after,
    } = wanted;
    let sight = api.sight(&viewer).await?;
    let agents: Vec<AgentView> = api.agents(&sight).await?;
    let matching = agents.into_iter().filter(|agent| {
        presence.is_none_or(|presence| agent.presence == presence)
            && q.as_deref()
                .is_none_or(|q| has_words(&format!("{} {}", agent.name, agent.peer), q))
    });
    let page = Page::new(limit, after);
    let list = List::page(matching, &page, |agent| agent.name.to_string())?;
    Ok(json(&list))
}

pub(super) async fn forget(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place(name): Place<AgentName>,
) -> Result<StatusCode, Problem> {
    check_forget(&api, &viewer, &name).await?;
    let wanted = name.clone();
    let presence = api
        .ask(move |store| store.agent(&wanted).map(|agent| agent.presence))
        .await?;
    match presence {
        None => Err(Problem::not_found(format!("there is no agent {name}"))),
        Some(Presence::Connected | Presence::Syncing) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("the agent {name} is connected; only one that is gone can be forgotten"),
        )),
        Some(Presence::Held | Presence::Lost | Presence::Stopped) => {
            api.store
                .send(ToStore::Event(Event::Forget { agent: name }))
                .await;
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

/// Whether somebody may have this agent forgotten: in every namespace that it reports about. Who may not look there learns
/// nothing about it.
async fn check_forget(api: &Api, viewer: &Viewer, name: &AgentName) -> Result<(), Problem> {
    if viewer.may(Deed::ForgetAgent, None).await? {
        return Ok(());
    }
    let wanted = name.clone();
    let namespaces = api.ask(move |store| store.namespaces_of_agent(&wanted)).await?;
    let namespaces = namespaces.unwrap_or_default();
    if namespaces.is_empty() {
        return viewer.check_deed(Deed::ForgetAgent, None).await;
    }
    for namespace in &namespaces {
        if !viewer.may(Deed::Look, Some(namespace)).await? {
            return viewer.check_deed(Deed::ForgetAgent, None).await;
        }
    }
    for namespace in &namespaces {
        viewer.check_deed(Deed::ForgetAgent, Some(namespace)).await?;
    }
    Ok(())
}
