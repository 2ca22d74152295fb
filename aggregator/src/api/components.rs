//! Components and their probes.

use {
    super::{Api, List, Page, Params, Place, has_words, json},
    crate::site::{problem::Problem, viewer::Viewer},
    axum::{Extension, extract::State, response::Response},
    healthscope_core::view::{ComponentSummary, ComponentView, InstanceView, ProbeView},
    healthscope_shared::{
        health::Health,
        name::{AgentName, ComponentKey, InstanceName, Kind, Name, Namespace},
        probe::outcome::ProbeState,
    },
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::sync::Arc,
};

/// Components whose probes are looked up at once, so that ten thousand do not keep the store from its events.
const CHUNK: usize = 128;

/// The kind meant when nobody says one.
const DEFAULT_KIND: &str = "Component";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    namespace: Option<Namespace>,
    scope: Option<Name>,
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
        scope,
        health,
        q,
        limit,
        after,
    } = wanted;
    let components = chosen(&api, &viewer, namespace, scope).await?;
    let matching = components.into_iter().filter(|component| {
        health.is_none_or(|health| component.health == health)
            && q.as_deref().is_none_or(|q| has_words(&searched(component), q))
    });
    let page = Page::new(limit, after);
    Ok(json(&List::page(matching, &page, |component| {
        key_text(component)
    })?))
}

/// The components of one scope or namespace, or all of them, that somebody may see.
async fn chosen(
    api: &Api,
    viewer: &Viewer,
    namespace: Option<Namespace>,
    scope: Option<Name>,
) -> Result<Vec<Arc<ComponentSummary>>, Problem> {
    match (namespace, scope) {
        (namespace, Some(scope)) => members(api, viewer, namespace, scope).await,
        (Some(namespace), None) => {
            viewer.check_namespace(Some(&namespace)).await?;
            api.ask(move |store| store.components(Some(&namespace))).await
        }
        (None, None) => api.components(&api.sight(viewer).await?).await,
    }
}

/// The components of one scope, nested scopes among them, in the order of lists.
async fn members(
    api: &Api,
    viewer: &Viewer,
    namespace: Option<Namespace>,
    name: Name,
) -> Result<Vec<Arc<ComponentSummary>>, Problem> {
    let key = healthscope_shared::name::ScopeKey {
        namespace: namespace.unwrap_or_default(),
        name,
    };
    let entry = api.scope(viewer, &key).await?;
    let members = entry.view.components.iter();
    let mut components: Vec<_> = members.map(|member| Arc::clone(&member.component)).collect();
    components.sort_by_cached_key(|component| key_text(component));
    Ok(components)
}

fn searched(component: &ComponentSummary) -> String {
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

/// Sorts as the store lists components.
fn key_text(component: &ComponentSummary) -> String {
    let group = component
        .api_version
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    format!(
        "{} {} {} {}",
        component.namespace, group, component.kind, component.name
    )
}

/// The key of a component by the parts of a path; another kind than Component is found among what is known.
pub(super) async fn find(
    api: &Api,
    viewer: &Viewer,
    namespace: Namespace,
    name: Name,
    kind: Option<Kind>,
) -> Result<ComponentKey, Problem> {
    viewer.check_one(&namespace).await?;
    let Some(kind) = kind.filter(|kind| kind.as_str() != DEFAULT_KIND) else {
        return Ok(ComponentKey::component(namespace, name));
    };
    let wanted = (namespace.clone(), kind.clone(), name.clone());
    let found = api
        .ask(move |store| {
            let (namespace, kind, name) = wanted;
            let components = store.components(Some(&namespace));
            components
                .into_iter()
                .find(|component| component.kind == kind && component.name == name)
        })
        .await?;
    match found {
        Some(component) => Ok(ComponentKey {
            namespace,
            group: component.api_version.rsplit_once('/').map_or_else(
                || component.api_version.to_string(),
                |(group, _)| group.to_owned(),
            ),
            kind,
            name,
        }),
        None => Err(unknown(&namespace, &kind.to_string(), &name)),
    }
}

fn unknown(namespace: &Namespace, kind: &str, name: &Name) -> Problem {
    Problem::not_found(format!("there is no {kind} {name} in the namespace {namespace}"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    kind: Option<Kind>,
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Place((namespace, name)): Place<(Namespace, Name)>,
    Params(Which { kind }): Params<Which>,
) -> Result<Response, Problem> {
    Ok(json(&view(&api, &viewer, namespace, name, kind).await?))
}

/// One component with its instances and probes.
pub(crate) async fn view(
    api: &Api,
    viewer: &Viewer,
    namespace: Namespace,
    name: Name,
    kind: Option<Kind>,
) -> Result<ComponentView, Problem> {
    let key = find(api, viewer, namespace.clone(), name.clone(), kind).await?;
    let wanted = key.clone();
    let view = api.ask(move |store| store.component(&wanted)).await?;
    view.ok_or_else(|| unknown(&namespace, key.kind.as_str(), &name))
}

/// A probe with everything that says where it belongs.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedProbe {
    /// Namespace of the component.
    namespace: Namespace,
    /// Kind of the component.
    kind: Kind,
    /// The component.
    component: Name,
    /// The instance.
    instance: InstanceName,
    /// The agent that runs it.
    agent: AgentName,
    /// The probe.
    #[serde(flatten)]
    probe: ProbeView,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedProbes {
    namespace: Option<Namespace>,
    component: Option<Name>,
    state: Option<ProbeState>,
    q: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
}

pub(super) async fn probes(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Params(wanted): Params<WantedProbes>,
) -> Result<Response, Problem> {
    let WantedProbes {
        namespace,
        component,
        state,
        q,
        limit,
        after,
    } = wanted;
    let mut components = chosen(&api, &viewer, namespace, None).await?;
    components.retain(|found| component.as_ref().is_none_or(|name| found.name == *name));
    let mut probes = Vec::new();
    for chunk in components.chunks(CHUNK) {
        let keys: Vec<ComponentKey> = chunk.iter().map(|component| key_of(component)).collect();
        let views = api
            .ask(move |store| {
                keys.iter()
                    .filter_map(|key| store.component(key))
                    .collect::<Vec<_>>()
            })
            .await?;
        probes.extend(views.into_iter().flat_map(listed));
    }
    let matching = probes.into_iter().filter(|listed| {
        state.is_none_or(|state| listed.probe.state == state)
            && q.as_deref().is_none_or(|q| {
                let ListedProbe { component, probe, .. } = listed;
                has_words(
                    &format!("{component} {} {} {}", probe.probe, probe.target, probe.message),
                    q,
                )
            })
    });
    let page = Page::new(limit, after);
    let list = List::page(matching, &page, |listed| {
        let ListedProbe {
            namespace,
            kind,
            component,
            instance,
            agent,
            probe,
        } = listed;
        format!(
            "{namespace} {kind} {component} {instance} {agent} {}",
            probe.probe
        )
    })?;
    Ok(json(&list))
}

fn key_of(component: &ComponentSummary) -> ComponentKey {
    ComponentKey {
        namespace: component.namespace.clone(),
        group: group_of(&component.api_version).to_owned(),
        kind: component.kind.clone(),
        name: component.name.clone(),
    }
}

/// The group of what stands as a component's `apiVersion`, which is the group alone where nobody wrote one. The core group has
/// no name, and a version looks like none.
fn group_of(api_version: &str) -> &str {
    let is_version = api_version
        .strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    match api_version.rsplit_once('/') {
        Some((group, _)) => group,
        None if is_version => "",
        None => api_version,
    }
}

fn listed(view: ComponentView) -> impl Iterator<Item = ListedProbe> {
    let ComponentView {
        component, running, ..
    } = view;
    running.into_iter().flat_map(move |instance| {
        let component = Arc::clone(&component);
        let InstanceView {
            name, agent, probes, ..
        } = instance;
        probes.into_iter().map(move |probe| ListedProbe {
            namespace: component.namespace.clone(),
            kind: component.kind.clone(),
            component: component.name.clone(),
            instance: name.clone(),
            agent: agent.clone(),
            probe,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_group_has_no_name() {
        let check = |api_version, expected| assert_eq!(group_of(api_version), expected, "{api_version}");
        check("v1", "");
        check("", "");
        check("v2beta1", "");
        check("apps/v1", "apps");
        check("apps", "apps");
        check("vault.example.org", "vault.example.org");
        check("core.oam.dev/v1beta1", "core.oam.dev");
    }
}
