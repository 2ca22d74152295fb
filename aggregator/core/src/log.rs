//! The latest transitions: numbered, bounded, and handed out once by each publication.
//!
//! Two rings, because ten thousand agents that come back must not push the one transition of a scope out of sight.

use {
    crate::view::{Change, TransitionView},
    healthscope_shared::{
        health::Reason,
        name::{Kind, Name, Namespace},
    },
    jiff::Timestamp,
    std::{collections::VecDeque, sync::Arc},
};

/// Transitions kept of scopes and components, and as many of probes: what a page shows, and what a reader of the event
/// stream may have missed while it reconnected.
pub const KEPT: usize = 1_024;
/// Transitions of probes that wait for one publication at most; the rest of a flood is numbered and counted, but not
/// handed out. A publication comes at least every 10 ms when busy, and more than this cannot be taken in by then.
pub(crate) const MAX_WAITING: usize = 65_536;

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    next: u64,
    /// Of scopes and components, oldest first.
    changes: VecDeque<Arc<TransitionView>>,
    /// Of probes, oldest first.
    probes: VecDeque<Arc<TransitionView>>,
    waiting: Vec<Arc<TransitionView>>,
    dropped: u64,
    /// Whether `changes` grew since it was last copied.
    grown: bool,
}

/// What a transition is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) kind: &'a Kind,
    pub(crate) name: &'a Name,
}

impl Log {
    /// An empty log. Ids start at the microseconds of the wall clock, so that those of a later process are higher; they
    /// stay under 2^53, which JavaScript needs, until the year 2255.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            next: u64::try_from(now.as_microsecond()).unwrap_or(0).max(1),
            changes: VecDeque::with_capacity(KEPT),
            probes: VecDeque::with_capacity(KEPT),
            waiting: Vec::new(),
            dropped: 0,
            grown: false,
        }
    }

    pub(crate) fn push(
        &mut self,
        time: Timestamp,
        subject: Subject<'_>,
        change: Change,
        reason: Reason,
        message: String,
    ) {
        let Subject {
            namespace,
            kind,
            name,
        } = subject;
        let id = self.next;
        self.next += 1;
        let is_probe = matches!(change, Change::Probe { .. });
        let transition = Arc::new(TransitionView {
            id,
            time,
            change,
            namespace: namespace.clone(),
            kind: kind.clone(),
            name: name.clone(),
            reason,
            message,
        });
        let ring = if is_probe {
            &mut self.probes
        } else {
            &mut self.changes
        };
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Arc::clone(&transition));
        self.grown |= !is_probe;
        if is_probe && self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
        } else {
            self.waiting.push(transition);
        }
    }

    /// Whether something waits to be handed out.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What happened since the last call, oldest first.
    pub(crate) fn take(&mut self) -> Vec<Arc<TransitionView>> {
        std::mem::take(&mut self.waiting)
    }

    /// The ring of scopes and components, when it has changed since the last call.
    pub(crate) fn changed(&mut self) -> Option<Arc<[Arc<TransitionView>]>> {
        std::mem::take(&mut self.grown).then(|| self.changes.iter().cloned().collect())
    }

    /// Id of the latest transition; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        let last = |ring: &VecDeque<Arc<TransitionView>>| ring.back().map_or(0, |transition| transition.id);
        last(&self.changes).max(last(&self.probes))
    }

    /// Transitions of probes that were not handed out because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What is kept of all levels after `id`, oldest first.
    pub(crate) fn after(&self, id: u64) -> Vec<Arc<TransitionView>> {
        let mut found: Vec<_> = self
            .changes
            .iter()
            .chain(&self.probes)
            .filter(|transition| transition.id > id)
            .cloned()
            .collect();
        found.sort_unstable_by_key(|transition| transition.id);
        found
    }
}
