//! Which status is written when: the pure half of the status writer.
//!
//! [`Pace`] knows, for each scope, what the API server has and what it should have. A write goes out only when the two
//! *mean* something different: at once when the scope was quiet, coalesced when it is busy, transitions before smaller
//! things, never two of one scope at a time, never while another aggregator owns the scopes.
//!
//! Invariants, as absences: nothing here reads a clock, draws randomness or speaks to anybody. No write goes out
//! without the uid and the resourceVersion that it replaces, so a late one cannot win. Nothing is ever written twice
//! because an answer was lost: the object says what became of it.

mod scope;

#[cfg(test)]
mod tests;

use {
    crate::snapshot::ScopeEntry,
    healthscope_crd::v1beta1::HealthScopeStatus,
    healthscope_shared::{backoff::Backoff, name::ScopeKey},
    scope::{Noticed, Place, Request, Scope},
    std::{
        collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
        sync::Arc,
        time::{Duration, Instant},
    },
};

/// How fast statuses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterLimits {
    /// Least time between the first two writes of a scope that was quiet; doubles with each further one.
    pub shortest: Duration,
    /// Where the doubling ends: the pace of a scope that never rests.
    pub longest: Duration,
    /// Writes of all scopes together, a second. An API server with its default flow control takes a few hundred from one client.
    pub per_second: u32,
    /// Writes of all scopes that may go out at once after a pause.
    pub burst: u32,
    /// Requests under way at most; each has a connection of its own.
    pub in_flight: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self {
            shortest: Duration::from_millis(100),
            longest: Duration::from_secs(1),
            per_second: 200,
            burst: 40,
            in_flight: 16,
        }
    }
}

/// A scope that was not written for so many times [`WriterLimits::longest`] is quiet again: its next change goes out
/// at once. With the doubling in between that is at most five writes in a row, and one a second in the long run.
const QUIET: u32 = 5;
/// What is smaller than a transition goes after the transitions of so much later, so that it is not forgotten for ever.
const HEAD_START: Duration = Duration::from_secs(5);
/// Statuses of ours that somebody else replaces are repaired, more slowly each time up to this: two who disagree must not
/// fill the API server with their dispute.
const MAX_CONTEST: Duration = Duration::from_secs(60);
/// A dispute that rested for so long is over.
const CONTEST_OVER: Duration = Duration::from_secs(600);
/// What fails at one scope is tried again between these.
const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// What is refused at one scope is tried again between these: rights come back, objects are changed, but not at once.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After a conflict, how long to wait for the watch to show the newer object before asking for it.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(1);
/// How long to hold everything back when the server is too busy and does not say for how long.
const BUSY: Duration = Duration::from_secs(1);
/// Longest Retry-After that is obeyed: nobody silences us for longer.
const MAX_BUSY: Duration = Duration::from_secs(300);
/// While the server cannot be reached, everything is tried again between these. Short, since one request finds out.
const UNREACHABLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// A scope should have the status of this entry. Objects without a uid are not of an API server and are ignored.
    /// While an entry has not settled, what is on the server stays, whatever was to be written before.
    Desired(Arc<ScopeEntry>),
    /// A scope is no more, or is not ours to judge.
    Withdrawn(ScopeKey),
    /// The watch shows this object.
    Observed(Box<Object>),
    /// The watch shows that this object is gone.
    Deleted {
        /// Which.
        key: ScopeKey,
        /// Its uid: a namesake of it is another object.
        uid: String,
    },
    /// Everything that scopes are made of has been seen once; nothing is written before.
    Synced,
    /// Whether the scopes are ours to write. Losing them forgets every request under way: whoever carries it must drop it.
    Owner(bool),
    /// The process ends: only transitions are still written, without waiting for a scope's own pace.
    Draining,
    /// A request ended.
    Answered {
        /// Which.
        attempt: Attempt,
        /// How.
        answer: Answer,
        /// Uniform over all of `u64`; spreads what is tried again.
        random: u64,
    },
}

/// An object as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which scope.
    pub key: ScopeKey,
    /// Which object of that name.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// Its status; `None` when it has none or one that cannot be read.
    pub status: Option<HealthScopeStatus>,
}

/// One request, for matching its answer; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u64);

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The status was replaced.
    Written {
        /// The object's version since.
        resource_version: String,
    },
    /// The object that was asked for.
    Found(Box<Object>),
    /// The object is newer than what was to be replaced, or another of the same name.
    Conflict,
    /// There is no such object, or its kind is not served at the moment.
    NotFound,
    /// The server is too busy (429, or 503 with Retry-After).
    Busy {
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No answer, or none in time. The write may have been made.
    Unreachable,
    /// The server failed at this object (5xx). The write may have been made.
    Failed,
    /// The server will not have it (another 4xx): rights were taken away, or the status does not fit the CRD.
    Refused,
}

/// Something is to be done.
#[derive(Debug)]
pub enum Output {
    /// Replace the status of an object.
    Write {
        /// For the answer.
        attempt: Attempt,
        /// Which scope.
        key: ScopeKey,
        /// Which object of that name.
        uid: String,
        /// The version that is replaced.
        resource_version: String,
        /// Whose status it gets.
        entry: Arc<ScopeEntry>,
    },
    /// Ask for an object.
    Read {
        /// For the answer.
        attempt: Attempt,
        /// Which scope.
        key: ScopeKey,
    },
    /// A status was written.
    Written(Written),
}

/// A status that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What it replaced; `None` when the object had none.
    pub former: Option<Arc<HealthScopeStatus>>,
    /// Whose status it is.
    pub entry: Arc<ScopeEntry>,
    /// How long it was wanted before it was there.
    pub waited: Duration,
}

/// What did not become a write, since the last time that it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New entries that meant nothing different from what the API server has.
    pub suppressed: u64,
    /// Wanted statuses that newer ones replaced before they went out.
    pub coalesced: u64,
    /// Statuses of ours that somebody else replaced by something different.
    pub contested: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Pace {
    limits: WriterLimits,
    scopes: BTreeMap<ScopeKey, Scope>,
    /// Scopes that need a request at a time.
    waiting: BTreeSet<(Instant, ScopeKey)>,
    /// Scopes that need a request now, the most urgent first.
    ready: BTreeSet<(Instant, ScopeKey)>,
    in_flight: HashMap<Attempt, ScopeKey>,
    outputs: VecDeque<Output>,
    counts: Counts,
    attempts: u64,
    owner: bool,
    synced: bool,
    draining: bool,
    /// Nobody sends anything before.
    paused: Option<Instant>,
    unreachable: Backoff,
    /// When the allowance of all scopes together would be whole again.
    spent: Option<Instant>,
}

impl Pace {
    /// Nothing is known, nothing is owned.
    #[must_use]
    pub fn new(limits: WriterLimits) -> Self {
        let (base, cap) = UNREACHABLE;
        Self {
            limits,
            scopes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            ready: BTreeSet::new(),
            in_flight: HashMap::new(),
            outputs: VecDeque::new(),
            counts: Counts::default(),
            attempts: 0,
            owner: false,
            synced: false,
            draining: false,
            paused: None,
            unreachable: Backoff::new(base, cap),
            spent: None,
        }
    }

    /// Takes something in; [`Self::poll`] says what is to be done then.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Desired(entry) => self.desire(now, entry),
            Input::Withdrawn(key) => self.with(now, &key, |scope| scope.desired = None),
            Input::Observed(object) => self.observe(now, *object),
            Input::Deleted { key, uid } => self.with(now, &key, |scope| scope.deleted(&uid)),
            Input::Synced => self.synced = true,
            Input::Owner(owner) => self.own(now, owner),
            Input::Draining => self.drain(now),
            Input::Answered {
                attempt,
                answer,
                random,
            } => self.answered(now, attempt, answer, random),
        }
    }

    /// What is to be done now; call until `None` after each [`Self::handle`] and at each [`Self::deadline`].
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        while self.waiting.first().is_some_and(|(due, _)| *due <= now) {
            let (due, key) = self.waiting.pop_first().expect("it was just looked at");
            let scope = self.scopes.get_mut(&key).expect("what waits is known");
            let order = if scope.is_urgent() { due } else { due + HEAD_START };
            scope.place = Place::Ready(order);
            self.ready.insert((order, key));
        }
        let may_send = self.is_open() && self.closed_until().is_none_or(|until| until <= now);
        if !may_send {
            return None;
        }
        let (_, key) = self.ready.pop_first()?;
        Some(self.send(now, key))
    }

    /// When to poll though nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.is_open() {
            return None;
        }
        let due = if self.ready.is_empty() {
            self.waiting.first()?.0
        } else {
            now
        };
        Some(self.closed_until().map_or(due, |until| until.max(due)))
    }

    /// Scopes whose status on the API server is not what it should be.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.ready.len() + self.in_flight.len()
    }

    /// Whether, while draining, nothing is left to wait for.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.owner || self.pending() == 0
    }

    /// What did not become a write, since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Whether requests may go out at all; only an input changes that.
    fn is_open(&self) -> bool {
        self.owner && self.synced && self.in_flight.len() < self.limits.in_flight
    }

    /// Until when no request may go out though it might otherwise.
    fn closed_until(&self) -> Option<Instant> {
        let allowance = self.limits.interval() * (self.limits.burst.max(1) - 1);
        let saved_up = self.spent.and_then(|spent| spent.checked_sub(allowance));
        self.paused.max(saved_up)
    }

    fn desire(&mut self, now: Instant, entry: Arc<ScopeEntry>) {
        if entry.object.metadata.uid.is_none() {
            return;
        }
        let key = entry.view.key();
        if !entry.settled {
            // A Deployment was listed before its pods, say: what seemed settled without them is not.
            self.with(now, &key, |scope| scope.desired = None);
            return;
        }
        let scope = self.scopes.entry(key.clone()).or_default();
        let was_wanting = scope.is_wanting();
        let is_news = scope
            .desired
            .as_ref()
            .is_none_or(|desired| desired.status != entry.status);
        scope.desired = Some(entry);
        self.settle(now, &key);
        if !is_news {
            return;
        }
        let scope = self.scopes.get(&key).expect("a scope with a wish is kept");
        if was_wanting {
            self.counts.coalesced += 1;
        } else if !scope.is_wanting() && scope.is_seen() {
            self.counts.suppressed += 1;
        }
    }

    fn observe(&mut self, now: Instant, object: Object) {
        let key = object.key.clone();
        let scope = self.scopes.entry(key.clone()).or_default();
        let Noticed { written, contested } = scope.observe(now, object, self.owner);
        self.counts.contested += u64::from(contested);
        self.outputs.extend(written.map(Output::Written));
        self.settle(now, &key);
    }

    fn own(&mut self, now: Instant, owner: bool) {
        self.owner = owner;
        if owner {
            return;
        }
        for key in std::mem::take(&mut self.in_flight).into_values() {
            self.with(now, &key, Scope::forget_attempt);
        }
    }

    fn drain(&mut self, now: Instant) {
        self.draining = true;
        let keys: Vec<ScopeKey> = self.scopes.keys().cloned().collect();
        for key in keys {
            self.settle(now, &key);
        }
    }

    fn send(&mut self, now: Instant, key: ScopeKey) -> Output {
        self.attempts += 1;
        let attempt = Attempt(self.attempts);
        self.spent = Some(self.spent.map_or(now, |spent| spent.max(now)) + self.limits.interval());
        self.in_flight.insert(attempt, key.clone());
        let scope = self.scopes.get_mut(&key).expect("what is ready is known");
        match scope.send(now, &self.limits) {
            Request::Write {
                uid,
                resource_version,
                entry,
            } => Output::Write {
                attempt,
                key,
                uid,
                resource_version,
                entry,
            },
            Request::Read => Output::Read { attempt, key },
        }
    }

    fn answered(&mut self, now: Instant, attempt: Attempt, answer: Answer, random: u64) {
        // What was forgotten when the scopes were lost has no place here any more.
        let Some(key) = self.in_flight.remove(&attempt) else {
            return;
        };
        match &answer {
            Answer::Written { .. }
            | Answer::Found(_)
            | Answer::Conflict
            | Answer::NotFound
            | Answer::Failed
            | Answer::Refused => self.unreachable.reset(),
            Answer::Busy { retry_after } => self.pause(now + retry_after.unwrap_or(BUSY).min(MAX_BUSY)),
            Answer::Unreachable => {
                let delay = self.unreachable.next(random);
                self.pause(now + delay);
            }
        }
        let scope = self.scopes.get_mut(&key).expect("what is under way is known");
        let Noticed { written, contested } = scope.answered(now, answer, random, self.owner);
        self.counts.contested += u64::from(contested);
        self.outputs.extend(written.map(Output::Written));
        self.settle(now, &key);
    }

    fn pause(&mut self, until: Instant) {
        self.paused = self.paused.max(Some(until));
    }

    /// Changes a scope, when it is known.
    fn with(&mut self, now: Instant, key: &ScopeKey, change: impl FnOnce(&mut Scope)) {
        if let Some(scope) = self.scopes.get_mut(key) {
            change(scope);
            self.settle(now, key);
        }
    }

    /// Finds out what a scope needs after something about it changed, and puts it where it belongs.
    fn settle(&mut self, now: Instant, key: &ScopeKey) {
        let Some(scope) = self.scopes.get_mut(key) else {
            return;
        };
        scope.judge(now);
        match scope.place {
            Place::InFlight => return,
            Place::Nowhere => {}
            Place::Waiting(due) => {
                self.waiting.remove(&(due, key.clone()));
            }
            Place::Ready(order) => {
                self.ready.remove(&(order, key.clone()));
            }
        }
        scope.place = Place::Nowhere;
        if let Some(due) = scope.due(self.draining) {
            scope.place = Place::Waiting(due);
            self.waiting.insert((due, key.clone()));
        } else if scope.is_forgettable() {
            self.scopes.remove(key);
        }
    }
}

impl WriterLimits {
    /// The time between two writes of all scopes together, in the long run.
    fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}
