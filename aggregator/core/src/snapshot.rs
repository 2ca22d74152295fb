//! What readers share: an immutable picture of all scopes, replaced as a whole by each publication.
//!
//! Only what changed is rebuilt: entries are shared between snapshots. Components outside of scopes, instances, probes
//! with their counters and agents are not in it; they are asked of the store when somebody wants to see them, which
//! keeps an idle agent at a few hundred bytes.

use {
    crate::view::{ScopeView, Totals, TransitionView},
    healthscope_crd::{HealthScope, v1beta1::HealthScopeStatus},
    healthscope_shared::name::ScopeKey,
    jiff::Timestamp,
    std::{collections::BTreeMap, sync::Arc},
};

/// All scopes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was published; `None` before the first time.
    pub at: Option<Timestamp>,
    /// The scopes, by namespace and name.
    pub scopes: Arc<BTreeMap<ScopeKey, Arc<ScopeEntry>>>,
    /// The latest transitions of scopes and components, oldest first, at most 1,024.
    pub transitions: Arc<[Arc<TransitionView>]>,
    /// Id of the latest transition of any level; 0 before the first.
    pub last_transition: u64,
    /// Highest id of a scope's or component's transition that is not in `transitions` any more; 0 when all are.
    pub forgotten_transition: u64,
    /// Everything in numbers.
    pub totals: Totals,
}

/// One scope in all its forms.
#[derive(Clone, Debug, PartialEq)]
pub struct ScopeEntry {
    /// The object as it was configured.
    pub object: Arc<HealthScope>,
    /// Its status, the very one that Kubernetes gets.
    pub status: HealthScopeStatus,
    /// The public JSON.
    pub view: ScopeView,
    /// Whether it may be written: after a start or a new member it is not, for a few seconds, until what must be
    /// known is known.
    pub settled: bool,
}

impl ScopeEntry {
    /// The object with its status, as `kubectl get -o json` gives it.
    #[must_use]
    pub fn to_object(&self) -> HealthScope {
        HealthScope {
            status: Some(self.status.clone()),
            ..HealthScope::clone(&self.object)
        }
    }
}
