//! What the store and the app tell one session of an agent: the newest of everything, in place of a queue.
//!
//! A session that is slow to look finds one acknowledgement instead of a hundred; only runs of probes are listed one by
//! one, and bounded. An idle mailbox takes some two hundred bytes, where a channel takes a kilobyte.

use {
    futures_util::task::AtomicWaker,
    healthscope_core::event::SessionId,
    healthscope_shared::{
        session::MAX_RUNS,
        wire::{Redirect, RunProbe, Seq},
    },
    std::{
        collections::HashMap,
        future::poll_fn,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        task::Poll,
        time::Duration,
    },
};

/// What waits for a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mail {
    /// The store takes the agent; with what it holds already.
    pub(crate) accept: Option<Option<Seq>>,
    /// Everything up to here is applied.
    pub(crate) applied: Option<Seq>,
    /// The states of all probes are wanted.
    pub(crate) resync: bool,
    /// A newer session speaks for the agent.
    pub(crate) evict: bool,
    /// The store does not take this, and the session must end: close code and reason.
    pub(crate) end: Option<(u16, String)>,
    /// The authorities to trust from now on, PEM.
    pub(crate) trust: Option<Arc<str>>,
    /// The agent cannot stay here.
    pub(crate) leave: Option<Leave>,
    /// Runs that somebody waits for; at most [`MAX_RUNS`].
    pub(crate) runs: Vec<RunProbe>,
    /// Runs that nobody waits for any more; at most [`MAX_RUNS`].
    pub(crate) forgotten: Vec<u64>,
}

/// Where an agent goes that cannot stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It comes back within this time, to whatever answers then.
    Back(Duration),
    /// It goes to the aggregator that serves it.
    To(Arc<Redirect>),
}

impl Mail {
    fn is_empty(&self) -> bool {
        let Self {
            accept,
            applied,
            resync,
            evict,
            end,
            trust,
            leave,
            runs,
            forgotten,
        } = self;
        accept.is_none()
            && applied.is_none()
            && !resync
            && !evict
            && end.is_none()
            && trust.is_none()
            && leave.is_none()
            && runs.is_empty()
            && forgotten.is_empty()
    }
}

/// One session's mailbox: one reader, any number of writers.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    reader: AtomicWaker,
}

impl Mailbox {
    /// Puts something in and wakes the reader.
    pub(crate) fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.lock());
        self.reader.wake();
    }

    /// Asks for a run; false when too many wait already.
    pub(crate) fn run(&self, run: RunProbe) -> bool {
        let mut mail = self.lock();
        if mail.runs.len() >= MAX_RUNS {
            return false;
        }
        mail.runs.push(run);
        drop(mail);
        self.reader.wake();
        true
    }

    /// Says that nobody waits for a run any more.
    pub(crate) fn forget(&self, request: u64) {
        self.put(|mail| {
            mail.runs.retain(|run| run.request != request);
            if mail.forgotten.len() < MAX_RUNS {
                mail.forgotten.push(request);
            }
        });
    }

    /// Waits for something and takes all of it. Cancel-safe: what is not returned stays.
    pub(crate) async fn take(&self) -> Mail {
        poll_fn(|context| {
            if let Some(mail) = self.try_take() {
                return Poll::Ready(mail);
            }
            self.reader.register(context.waker());
            // Something may have come between looking and registering.
            self.try_take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn try_take(&self) -> Option<Mail> {
        let mut mail = self.lock();
        (!mail.is_empty()).then(|| std::mem::take(&mut *mail))
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        // No code that could panic runs under the lock.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mailboxes of all sessions, and how many there may be.
#[derive(Debug)]
pub(crate) struct Sessions {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    latest: u64,
    open: HashMap<SessionId, Arc<Mailbox>>,
    /// Set once, by shutdown: nobody comes in any more.
    draining: bool,
}

/// An open session; leaves the list when dropped.
#[derive(Debug)]
pub(crate) struct OpenSession {
    sessions: Arc<Sessions>,
    pub(crate) id: SessionId,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Why no session can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSession {
    Full,
    Draining,
}

impl Sessions {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            inner: Mutex::default(),
        })
    }

    /// Opens a session.
    pub(crate) fn open(self: &Arc<Self>) -> Result<OpenSession, NoSession> {
        let mut inner = self.lock();
        if inner.draining {
            return Err(NoSession::Draining);
        }
        if inner.open.len() >= self.limit {
            return Err(NoSession::Full);
        }
        inner.latest += 1;
        let id = SessionId(inner.latest);
        let mailbox = Arc::<Mailbox>::default();
        inner.open.insert(id, mailbox.clone());
        Ok(OpenSession {
            sessions: self.clone(),
            id,
            mailbox,
        })
    }

    /// Puts something into a session's mailbox, if it is still open.
    pub(crate) fn tell(&self, id: SessionId, change: impl FnOnce(&mut Mail)) {
        if let Some(mailbox) = self.mailbox(id) {
            mailbox.put(change);
        }
    }

    /// The mailbox of a session that is still open.
    pub(crate) fn mailbox(&self, id: SessionId) -> Option<Arc<Mailbox>> {
        self.lock().open.get(&id).cloned()
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Lets nobody in any more, and asks everybody to come back within `spread`.
    pub(crate) fn drain(&self, spread: Duration) {
        self.lock().draining = true;
        self.send_away(&Leave::Back(spread));
    }

    /// Asks everybody who is in to leave; others may come in as before.
    pub(crate) fn send_away(&self, leave: &Leave) {
        let open: Vec<_> = self.lock().open.values().cloned().collect();
        for mailbox in open {
            mailbox.put(|mail| mail.leave = Some(leave.clone()));
        }
    }

    /// Tells everybody who is in whom to trust from now on.
    pub(crate) fn trust(&self, bundle: &Arc<str>) {
        let open: Vec<_> = self.lock().open.values().cloned().collect();
        for mailbox in open {
            mailbox.put(|mail| mail.trust = Some(bundle.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that could panic runs under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.sessions.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(request: u64) -> RunProbe {
        RunProbe {
            request,
            probe: healthscope_shared::wire::ProbeId(1),
        }
    }

    #[tokio::test]
    async fn the_newest_of_everything_arrives() {
        let mailbox = Arc::new(Mailbox::default());
        let reader = {
            let mailbox = mailbox.clone();
            tokio::spawn(async move { mailbox.take().await })
        };
        tokio::task::yield_now().await;
        mailbox.put(|mail| mail.applied = Some(Seq(1)));
        assert_eq!(reader.await.unwrap().applied, Some(Seq(1)));
        mailbox.put(|mail| mail.applied = Some(Seq(2)));
        mailbox.put(|mail| mail.applied = Some(Seq(3)));
        let mail = mailbox.take().await;
        assert_eq!((mail.applied, mail.resync), (Some(Seq(3)), false));
    }

    #[test]
    fn runs_are_bounded_and_can_be_forgotten() {
        let mailbox = Mailbox::default();
        let taken = (0..20).filter(|&request| mailbox.run(run(request))).count();
        assert_eq!(taken, MAX_RUNS);
        mailbox.forget(0);
        let mail = mailbox.try_take().unwrap();
        assert_eq!(mail.runs[0], run(1));
        assert_eq!(mail.forgotten, [0]);
    }

    #[test]
    fn sessions_are_counted_and_drained() {
        let sessions = Sessions::new(2);
        let (first, second) = (sessions.open().unwrap(), sessions.open().unwrap());
        assert_ne!(first.id, second.id);
        assert_eq!(sessions.open().unwrap_err(), NoSession::Full);
        drop(first);
        let third = sessions.open().unwrap();
        sessions.drain(Duration::from_secs(1));
        let spread = Leave::Back(Duration::from_secs(1));
        assert_eq!(third.mailbox.try_take().unwrap().leave, Some(spread));
        drop(third);
        assert_eq!(sessions.open().unwrap_err(), NoSession::Draining);
        assert_eq!(sessions.len(), 1);
    }
}
