//! What one reader may see of everything, at one moment.
//!
//! Every answer about more than one thing is made of a [`Sight`], so that none can forget whom it is for.

use {
    super::Api,
    crate::site::{
        problem::Problem,
        viewer::{Viewer, Visible},
    },
    healthscope_core::{
        snapshot::{ScopeEntry, Snapshot},
        store::Store,
        view::{AgentView, ComponentSummary, Totals, TransitionView},
    },
    healthscope_shared::name::{Namespace, ScopeKey},
    std::{collections::BTreeSet, sync::Arc},
};

/// What one reader may see of everything, at one moment.
pub(crate) struct Sight {
    /// The picture; for somebody who may not see everything it holds, and counts, their part alone.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) visible: Visible,
}

impl Sight {
    /// Whether everything may be seen.
    pub(crate) fn is_all(&self) -> bool {
        match self.visible {
            Visible::All => true,
            Visible::Only(_) => false,
        }
    }

    /// Their part of these transitions.
    pub(crate) fn transitions(&self, mut all: Vec<Arc<TransitionView>>) -> Vec<Arc<TransitionView>> {
        all.retain(|transition| self.visible.has(&transition.namespace));
        all
    }
}

impl Api {
    /// What a reader may see now.
    pub(crate) async fn sight(&self, viewer: &Viewer) -> Result<Sight, Problem> {
        if viewer.sees_all().await? {
            return Ok(Sight {
                snapshot: self.feed.newest(),
                visible: Visible::All,
            });
        }
        let namespaces = self.ask(Store::namespaces).await?;
        match viewer.visible(namespaces).await? {
            Visible::All => Ok(Sight {
                snapshot: self.feed.newest(),
                visible: Visible::All,
            }),
            Visible::Only(namespaces) => {
                let wanted = namespaces.clone();
                let (snapshot, totals) = self
                    .ask(move |store| (store.snapshot(), store.totals_within(&wanted)))
                    .await?;
                Ok(Sight {
                    snapshot: Arc::new(part(&snapshot, &namespaces, totals)),
                    visible: Visible::Only(namespaces),
                })
            }
        }
    }

    /// One scope, if it may be seen.
    pub(crate) async fn scope(&self, viewer: &Viewer, key: &ScopeKey) -> Result<Arc<ScopeEntry>, Problem> {
        viewer.check_one(&key.namespace).await?;
        let snapshot = self.feed.newest();
        let entry = snapshot.scopes.get(key);
        entry.cloned().ok_or_else(|| super::scopes::unknown(key))
    }

    /// The components in short that may be seen, in the order of lists.
    pub(crate) async fn components(&self, sight: &Sight) -> Result<Vec<Arc<ComponentSummary>>, Problem> {
        let mut components = self.ask(|store| store.components(None)).await?;
        components.retain(|component| sight.visible.has(&component.namespace));
        Ok(components)
    }

    /// The agents that may be seen, by name: those that report about what may be seen, and about nothing else.
    pub(crate) async fn agents(&self, sight: &Sight) -> Result<Vec<AgentView>, Problem> {
        match &sight.visible {
            Visible::All => self.ask(Store::agents).await,
            Visible::Only(namespaces) => {
                let namespaces = namespaces.clone();
                self.ask(move |store| store.agents_within(&namespaces)).await
            }
        }
    }
}

/// The part of a picture that lies in these namespaces.
fn part(snapshot: &Snapshot, namespaces: &BTreeSet<Namespace>, totals: Totals) -> Snapshot {
    let Snapshot {
        at,
        scopes,
        transitions,
        last_transition,
        forgotten_transition,
        totals: _,
    } = snapshot;
    let scopes = scopes
        .iter()
        .filter(|(key, _)| namespaces.contains(&key.namespace));
    let transitions = transitions.iter();
    Snapshot {
        at: *at,
        scopes: Arc::new(
            scopes
                .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
                .collect(),
        ),
        transitions: transitions
            .filter(|transition| namespaces.contains(&transition.namespace))
            .cloned()
            .collect(),
        last_transition: *last_transition,
        forgotten_transition: *forgotten_transition,
        totals,
    }
}
