//! The latest transitions: numbered, bounded, and handed out once by each publication.
//!
//! Two rings, because ten thousand agents that come back must not push the one transition of a scope out of sight. And no
//! namespace with more than half of a ring keeps it at the cost of others: a pod whose check turns over a thousand times a
//! second, by mistake or on purpose, pushes out what happened to itself.

use {
    crate::view::{Change, TransitionView},
    healthscope_shared::{
        health::Reason,
        name::{Kind, Name, Namespace},
    },
    jiff::Timestamp,
    std::{
        collections::{HashMap, VecDeque},
        sync::Arc,
    },
};

/// Transitions kept of scopes and components, and as many of probes: what a page shows, and what a reader of the event
/// stream may have missed while it reconnected.
pub const KEPT: usize = 1_024;
/// A namespace that has more than this of a full ring makes room, whoever needs it.
const SHARE: usize = KEPT / 2;
/// Transitions of probes that wait for one publication at most; the rest of a flood is numbered and counted, but not
/// handed out. A publication comes at least every 10 ms when busy, and more than this cannot be taken in by then.
pub(crate) const MAX_WAITING: usize = 65_536;

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    next: u64,
    /// Of scopes and components.
    changes: Ring,
    /// Of probes.
    probes: Ring,
    waiting: Vec<Arc<TransitionView>>,
    dropped: u64,
    /// Whether `changes` grew since it was last copied.
    grown: bool,
}

/// The latest transitions, at most [`KEPT`].
#[derive(Debug, Default)]
struct Ring {
    /// Oldest first.
    kept: VecDeque<Arc<TransitionView>>,
    /// How many of them are of which namespace.
    of: HashMap<Namespace, usize>,
    /// The one that has more than its share; there cannot be two.
    greedy: Option<Namespace>,
    /// Highest id of those that are not kept any more.
    forgotten: u64,
}

impl Ring {
    fn push(&mut self, transition: Arc<TransitionView>) {
        if self.kept.len() == KEPT {
            self.make_room();
        }
        let namespace = &transition.namespace;
        match self.of.get_mut(namespace) {
            Some(count) => {
                *count += 1;
                if *count == SHARE + 1 {
                    self.greedy = Some(namespace.clone());
                }
            }
            None => {
                self.of.insert(namespace.clone(), 1);
            }
        }
        self.kept.push_back(transition);
    }

    /// Forgets the oldest of the namespace that has more than its share; where none has, of all.
    fn make_room(&mut self) {
        let greedy = self.greedy.as_ref();
        let place = greedy.and_then(|greedy| self.kept.iter().position(|one| one.namespace == *greedy));
        let Some(gone) = self.kept.remove(place.unwrap_or(0)) else {
            return;
        };
        self.forgotten = self.forgotten.max(gone.id);
        let Some(count) = self.of.get_mut(&gone.namespace) else {
            return;
        };
        *count -= 1;
        match *count {
            0 => {
                self.of.remove(&gone.namespace);
            }
            SHARE => self.greedy = None,
            _ => {}
        }
    }

    fn last(&self) -> u64 {
        self.kept.back().map_or(0, |transition| transition.id)
    }
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
            changes: Ring::default(),
            probes: Ring::default(),
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
        ring.push(Arc::clone(&transition));
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
        std::mem::take(&mut self.grown).then(|| self.changes.kept.iter().cloned().collect())
    }

    /// Id of the latest transition; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.changes.last().max(self.probes.last())
    }

    /// Highest id of a scope's or component's transition that is not kept any more; 0 when all are.
    pub(crate) fn forgotten(&self) -> u64 {
        self.changes.forgotten
    }

    /// The same of any level.
    pub(crate) fn forgotten_of_all(&self) -> u64 {
        self.changes.forgotten.max(self.probes.forgotten)
    }

    /// Transitions of probes that were not handed out because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What is kept of all levels after `id`, oldest first.
    pub(crate) fn after(&self, id: u64) -> Vec<Arc<TransitionView>> {
        let mut found: Vec<_> = self
            .changes
            .kept
            .iter()
            .chain(&self.probes.kept)
            .filter(|transition| transition.id > id)
            .cloned()
            .collect();
        found.sort_unstable_by_key(|transition| transition.id);
        found
    }
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_shared::health::Health};

    fn push(log: &mut Log, namespace: &str, name: &str) {
        let subject = Subject {
            namespace: &Namespace::new(namespace).unwrap(),
            kind: &Kind::new("Component").unwrap(),
            name: &Name::new(name).unwrap(),
        };
        let change = Change::Component {
            from: Health::Healthy,
            to: Some(Health::Unhealthy),
        };
        let at = Timestamp::UNIX_EPOCH;
        log.push(at, subject, change, Reason::PASSING, String::new());
    }

    /// How many are kept of a namespace.
    fn kept(log: &Log, namespace: &str) -> usize {
        let kept = log.after(0);
        kept.iter()
            .filter(|one| one.namespace.as_str() == namespace)
            .count()
    }

    #[test]
    fn a_namespace_that_is_alone_has_the_whole_ring() {
        let mut log = Log::new(Timestamp::UNIX_EPOCH);
        for _ in 0..KEPT {
            push(&mut log, "a", "web");
        }
        assert_eq!((kept(&log, "a"), log.forgotten()), (KEPT, 0));
        push(&mut log, "a", "web");
        assert_eq!((kept(&log, "a"), log.forgotten()), (KEPT, 1));
        assert_eq!(log.after(0)[0].id, 2);
    }

    #[test]
    fn a_flood_pushes_out_what_is_its_own() {
        let mut log = Log::new(Timestamp::UNIX_EPOCH);
        push(&mut log, "quiet", "db");
        for _ in 0..10 {
            for _ in 0..KEPT {
                push(&mut log, "loud", "noise");
            }
            push(&mut log, "quiet", "db");
        }
        assert_eq!((kept(&log, "quiet"), kept(&log, "loud")), (11, KEPT - 11));
        // Ids stay in order, and what is missing is told though older ones are there.
        let ids: Vec<u64> = log.after(0).iter().map(|one| one.id).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids[0], 1);
        assert!(log.forgotten() > log.last() - 2 * u64::try_from(KEPT).unwrap());
        // Others may have the rest, and then the oldest goes, whoever's it is.
        for _ in 0..KEPT {
            push(&mut log, "quiet", "db");
        }
        assert_eq!((kept(&log, "quiet"), kept(&log, "loud")), (SHARE + 1, SHARE - 1));
    }
}
