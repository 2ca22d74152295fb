//! The latest transitions: of scopes and components, and of probes when they are asked for.

use {
    super::{Api, Params, json},
    crate::site::{problem::Problem, viewer::Viewer},
    axum::{Extension, extract::State, response::Response},
    healthscope_core::view::{Change, TransitionView},
    healthscope_shared::name::{Name, Namespace},
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::sync::Arc,
};

/// Transitions given unless asked for fewer; as many as are kept.
const DEFAULT_LIMIT: usize = 1_024;

/// The latest transitions.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transitions {
    /// Oldest first.
    items: Vec<Arc<TransitionView>>,
    /// Id of the latest transition of any level; give it as `after` next time.
    last: u64,
    /// Whether transitions after `after` are no longer kept.
    missed: bool,
}

/// Which level a transition is of; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Level {
    Scope,
    Component,
    Probe,
}

impl Level {
    /// The level of a transition.
    pub(crate) const fn of(transition: &TransitionView) -> Self {
        match transition.change {
            Change::Scope { .. } => Self::Scope,
            Change::Component { .. } => Self::Component,
            Change::Probe { .. } => Self::Probe,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    after: Option<u64>,
    namespace: Option<Namespace>,
    name: Option<Name>,
    level: Option<Level>,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Problem> {
    let Wanted {
        after,
        namespace,
        name,
        level,
        limit,
    } = wanted;
    viewer.check_namespace(namespace.as_ref()).await?;
    let sight = api.sight(&viewer).await?;
    // Of everybody's, since what is missing is told by what is kept of all.
    let mut snapshot = api.feed.newest();
    let mut kept = snapshot.transitions.clone();
    let mut forgotten = snapshot.forgotten_transition;
    if level == Some(Level::Probe) {
        // Not in the snapshot, which every reader shares: only the store keeps them.
        let from = after.unwrap_or(0);
        let (newest, transitions, last_gone) = api
            .ask(move |store| {
                let transitions = store.transitions_after(from);
                (store.snapshot(), transitions, store.forgotten_transition())
            })
            .await?;
        snapshot = newest;
        kept = transitions.into();
        forgotten = last_gone;
    }
    let mut items: Vec<_> = kept
        .iter()
        .rev()
        .filter(|transition| {
            after.is_none_or(|after| transition.id > after)
                && sight.visible.has(&transition.namespace)
                && namespace
                    .as_ref()
                    .is_none_or(|namespace| transition.namespace == *namespace)
                && name.as_ref().is_none_or(|name| transition.name == *name)
                && level.is_none_or(|level| Level::of(transition) == level)
        })
        .take(limit.unwrap_or(DEFAULT_LIMIT))
        .cloned()
        .collect();
    items.reverse();
    Ok(json(&Transitions {
        items,
        last: snapshot.last_transition,
        missed: after.is_some_and(|after| has_gap(forgotten, after, snapshot.last_transition)),
    }))
}

/// Whether something after `after` is missing from what is kept, when `forgotten` is the highest id that is not kept any
/// more: what is kept may begin earlier, because nobody pushes out all that others have.
pub(crate) const fn has_gap(forgotten: u64, after: u64, last: u64) -> bool {
    after > last || after < forgotten
}
