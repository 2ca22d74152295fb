//! What travels between the parts: the queue to the store and the feed from it.

use {
    crate::store_actor::{Question, Run},
    healthscope_core::{
        event::Event,
        snapshot::{ScopeEntry, Snapshot},
        view::TransitionView,
    },
    healthscope_shared::{name::ScopeKey, session::peer::RunRefused, wire::Probed},
    std::{fmt, sync::Arc},
    tokio::sync::{broadcast, mpsc, oneshot, watch},
};

/// Messages that wait for the store at most. When it is full, sessions wait and stop reading: TCP holds the agents back.
/// A few batches of the store's.
pub(crate) const STORE_QUEUE: usize = 4_096;

/// What the store's task is told.
pub(crate) enum ToStore {
    /// Something for the store itself.
    Event(Event),
    /// Somebody wants to know something that snapshots do not hold.
    Ask(Question),
    /// Somebody wants a probe to be run now.
    Run(Run),
    /// Nobody waits for a run any more.
    ForgetRun {
        /// Which.
        request: u64,
    },
    /// The answer to a run.
    Probed(Probed),
    /// Somebody waits until everything that was told before is published.
    Published(oneshot::Sender<()>),
    /// A run could not be asked for.
    RunRefused {
        /// Which.
        request: u64,
        /// Why.
        refused: RunRefused,
    },
}

impl fmt::Debug for ToStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event(_) => "Event",
            Self::Ask(_) => "Ask",
            Self::Run(_) => "Run",
            Self::ForgetRun { .. } => "ForgetRun",
            Self::Probed(_) => "Probed",
            Self::Published(_) => "Published",
            Self::RunRefused { .. } => "RunRefused",
        })
    }
}

/// The way to the store's task.
#[derive(Clone, Debug)]
pub(crate) struct StoreSender(mpsc::Sender<ToStore>);

impl StoreSender {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<ToStore>) {
        let (sender, receiver) = mpsc::channel(STORE_QUEUE);
        (Self(sender), receiver)
    }

    /// Sends without waiting; a full queue gives the message back. Once the store has stopped there is nobody to tell.
    pub(crate) fn try_send(&self, message: ToStore) -> Result<(), ToStore> {
        match self.0.try_send(message) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(message)) => Err(message),
        }
    }

    /// Waits until everything that was told before is published, or the store has stopped.
    pub(crate) async fn published(&self) {
        let (sender, receiver) = oneshot::channel();
        self.send(ToStore::Published(sender)).await;
        let _stopped = receiver.await;
    }

    /// Sends, waiting for room.
    pub(crate) async fn send(&self, message: ToStore) {
        let _stopped = self.0.send(message).await;
    }
}

/// What one publication brought.
#[derive(Debug)]
pub(crate) struct Delta {
    /// Transitions of all levels, in the order of their ids.
    pub(crate) transitions: Vec<Arc<TransitionView>>,
    /// Scopes that are new or different.
    pub(crate) changed: Vec<Arc<ScopeEntry>>,
    /// Scopes that are no more.
    pub(crate) removed: Vec<ScopeKey>,
    /// The picture after it.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Written once for all readers who want everything.
    pub(crate) written: crate::api::stream::Written,
}

impl Delta {
    pub(crate) fn new(
        transitions: Vec<Arc<TransitionView>>,
        changed: Vec<Arc<ScopeEntry>>,
        removed: Vec<ScopeKey>,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        Self {
            transitions,
            changed,
            removed,
            snapshot,
            written: crate::api::stream::Written::default(),
        }
    }
}

/// The readers' side: the newest picture, and changes as they happen.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) deltas: broadcast::Sender<Arc<Delta>>,
}

impl Feed {
    /// The newest picture.
    pub(crate) fn newest(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }
}
