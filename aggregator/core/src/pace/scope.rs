//! One scope of the writer: what the API server has, what it should have, and what stands between the two.

use {
    super::{
        Answer, CONFLICT_PATIENCE, CONTEST_OVER, FAILED, MAX_CONTEST, Object, QUIET, REFUSED, WriterLimits,
        Written,
    },
    crate::{snapshot::ScopeEntry, status::means_different},
    healthscope_crd::{
        condition::{self, STALLED},
        v1beta1::HealthScopeStatus,
    },
    healthscope_shared::backoff::Backoff,
    std::{
        cmp::Ordering,
        sync::Arc,
        time::{Duration, Instant},
    },
};

/// Where a scope is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// It needs nothing.
    #[default]
    Nowhere,
    /// It needs a request then.
    Waiting(Instant),
    /// It needs a request now, in this order.
    Ready(Instant),
    /// A request of it is under way.
    InFlight,
}

/// What goes out for a scope.
#[derive(Debug)]
pub(super) enum Request {
    /// Its status is replaced.
    Write {
        uid: String,
        resource_version: String,
        entry: Arc<ScopeEntry>,
    },
    /// It is asked for.
    Read,
}

/// What came out of something new about a scope.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// A write of ours took place.
    pub(super) written: Option<Written>,
    /// Somebody else replaced what we wrote.
    pub(super) contested: bool,
}

/// The object as the API server has it, as far as we know.
#[derive(Debug)]
struct Seen {
    uid: String,
    resource_version: String,
    status: Status,
}

#[derive(Debug)]
enum Status {
    /// Of the watch.
    Read(Option<Arc<HealthScopeStatus>>),
    /// Our own. The server may have dropped fields that its CRD does not know; what we sent is what counts, or we would
    /// send it for ever.
    Written(Arc<ScopeEntry>),
}

impl Status {
    fn get(&self) -> Option<&HealthScopeStatus> {
        match self {
            Self::Read(status) => status.as_deref(),
            Self::Written(entry) => Some(&entry.status),
        }
    }

    fn to_shared(&self) -> Option<Arc<HealthScopeStatus>> {
        match self {
            Self::Read(status) => status.clone(),
            Self::Written(entry) => Some(Arc::new(entry.status.clone())),
        }
    }
}

/// A write that was sent.
#[derive(Clone, Debug)]
struct Sent {
    uid: String,
    resource_version: String,
    entry: Arc<ScopeEntry>,
    former: Option<Arc<HealthScopeStatus>>,
    wanted_since: Instant,
    /// A try before this one got through after all, and was told of.
    is_told: bool,
}

impl Sent {
    fn into_written(self, now: Instant) -> Written {
        Written {
            former: self.former,
            entry: self.entry,
            waited: now.saturating_duration_since(self.wanted_since),
        }
    }
}

/// A scope.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) desired: Option<Arc<ScopeEntry>>,
    pub(super) place: Place,
    seen: Option<Seen>,
    /// The write under way; `None` while it is a read.
    sent: Option<Sent>,
    /// The object went away while a request was under way: what that finds is of the past.
    void: bool,
    /// A write that may have been made: no answer came.
    doubtful: Option<Sent>,
    /// What we know of the object is out of date; to be asked for then, unless the watch shows it before.
    look_at: Option<Instant>,
    /// Since when the status is not what it should be.
    wanted_since: Option<Instant>,
    /// What is wanted changes the health, answers a new spec, or says that there is none to be used.
    transition: bool,
    last_sent: Option<Instant>,
    spacing: Duration,
    /// Not before, for the sake of the API server.
    paced_until: Option<Instant>,
    /// Not before, since it failed.
    backed_off_until: Option<Instant>,
    backoff: Option<Backoff>,
    contests: u32,
    contested_at: Option<Instant>,
}

impl Scope {
    /// Whether the status is not what it should be, and what it should be is not under way.
    pub(super) const fn is_wanting(&self) -> bool {
        self.wanted_since.is_some()
    }

    /// Whether it is known what the API server has.
    pub(super) const fn is_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether it goes before what is merely different.
    pub(super) const fn is_urgent(&self) -> bool {
        self.transition
    }

    /// Whether nothing about it needs to be remembered.
    pub(super) fn is_forgettable(&self) -> bool {
        self.desired.is_none() && self.seen.is_none() && self.place != Place::InFlight
    }

    /// Compares what should be with what is, or is about to be.
    pub(super) fn judge(&mut self, now: Instant) {
        let coming = self
            .sent
            .as_ref()
            .map(|sent| (&sent.uid, Some(&sent.entry.status)));
        let there = self.seen.as_ref().map(|seen| (&seen.uid, seen.status.get()));
        let wanted = self
            .desired
            .as_ref()
            .zip(coming.or(there))
            .and_then(|(desired, (uid, status))| {
                let is_same_object = desired.object.metadata.uid.as_ref() == Some(uid);
                let differs = status.is_none_or(|status| means_different(status, &desired.status));
                (is_same_object && differs).then(|| is_transition(status, &desired.status))
            });
        self.transition = wanted == Some(true);
        self.wanted_since = wanted.map(|_| self.wanted_since.unwrap_or(now));
    }

    /// When a request is due, if one is needed. Call [`Self::judge`] before.
    ///
    /// Never later because of a newer wish: a scope that changes all the time keeps its place among the others.
    pub(super) fn due(&self, draining: bool) -> Option<Instant> {
        if self.look_at.is_some() {
            return self.look_at.filter(|_| self.desired.is_some());
        }
        let wanted_since = self.wanted_since?;
        if draining && !self.transition {
            return None;
        }
        let pace = self.paced_until.filter(|_| !draining);
        pace.max(self.backed_off_until).max(Some(wanted_since))
    }

    /// Makes the request that is due.
    pub(super) fn send(&mut self, now: Instant, limits: &WriterLimits) -> Request {
        self.place = Place::InFlight;
        self.void = false;
        let (Some(seen), Some(entry), None) = (&self.seen, &self.desired, self.look_at) else {
            return Request::Read;
        };
        let sent = Sent {
            uid: seen.uid.clone(),
            resource_version: seen.resource_version.clone(),
            entry: Arc::clone(entry),
            former: seen.status.to_shared(),
            wanted_since: self.wanted_since.take().unwrap_or(now),
            is_told: false,
        };
        let rested = self
            .last_sent
            .is_none_or(|last| now >= last + limits.longest * QUIET);
        self.spacing = if rested {
            limits.shortest
        } else {
            (self.spacing * 2).clamp(limits.shortest, limits.longest)
        };
        self.last_sent = Some(now);
        self.paced_until = Some(now + self.spacing);
        let request = Request::Write {
            uid: sent.uid.clone(),
            resource_version: sent.resource_version.clone(),
            entry: Arc::clone(entry),
        };
        self.sent = Some(sent);
        request
    }

    /// Takes in what the API server has.
    pub(super) fn observe(&mut self, now: Instant, object: Object, owner: bool) -> Noticed {
        let Object {
            key: _,
            uid,
            resource_version,
            status,
        } = object;
        let mut noticed = Noticed::default();
        if let Some(seen) = &self.seen {
            match compare_versions(&resource_version, &seen.resource_version) {
                // Late: something newer is known already.
                Some(Ordering::Less) => return noticed,
                // What was asked for is what was known.
                Some(Ordering::Equal) => {
                    self.look_at = None;
                    return noticed;
                }
                Some(Ordering::Greater) | None => {}
            }
            if seen.uid == uid {
                noticed.contested = owner && self.is_contested_by(status.as_ref());
            } else {
                self.forget_object();
            }
        }
        if noticed.contested {
            self.slow_down(now);
        }
        self.look_at = None;
        if let Some(doubtful) = self.doubtful.take()
            && doubtful.uid == uid
            && status
                .as_ref()
                .is_some_and(|status| is_copy(status, &doubtful.entry.status))
        {
            self.seen = Some(Seen {
                uid,
                resource_version,
                status: Status::Written(Arc::clone(&doubtful.entry)),
            });
            self.succeeded();
            if let Some(again) = &mut self.sent {
                again.is_told = !means_different(&again.entry.status, &doubtful.entry.status);
            }
            noticed.written = Some(doubtful.into_written(now));
        } else {
            self.seen = Some(Seen {
                uid,
                resource_version,
                status: Status::Read(status.map(Arc::new)),
            });
        }
        noticed
    }

    /// The object is gone.
    pub(super) fn deleted(&mut self, uid: &str) {
        let is_another = self.seen.as_ref().is_some_and(|seen| seen.uid != uid);
        if !is_another {
            self.forget_object();
            self.void = true;
        }
    }

    /// Takes in how the request under way ended.
    pub(super) fn answered(&mut self, now: Instant, answer: Answer, random: u64, owner: bool) -> Noticed {
        debug_assert_eq!(self.place, Place::InFlight, "an answer has a request");
        self.place = Place::Nowhere;
        let sent = self.sent.take();
        if self.void {
            return Noticed::default();
        }
        match (answer, sent) {
            (Answer::Written { resource_version }, Some(sent)) => {
                return self.written(now, sent, Some(resource_version));
            }
            (Answer::Found(object), _) => {
                self.look_at = None;
                return self.observe(now, *object, owner);
            }
            (Answer::Conflict, Some(sent)) => {
                self.want_again(&sent);
                let is_newer_known = self
                    .seen
                    .as_ref()
                    .is_some_and(|seen| seen.resource_version != sent.resource_version);
                if !is_newer_known {
                    self.look_at = Some(now + CONFLICT_PATIENCE);
                }
            }
            (Answer::NotFound, sent) => {
                // The watch says when it is gone for good. Until then its kind may only not be served for a moment.
                let is_known_again =
                    sent.is_some_and(|sent| self.seen.as_ref().is_some_and(|seen| seen.uid != sent.uid));
                if !is_known_again {
                    self.seen = None;
                    self.look_at = Some(now + self.next_delay(FAILED, random));
                }
            }
            (Answer::Busy { .. }, sent) => {
                if let Some(sent) = &sent {
                    self.want_again(sent);
                }
            }
            (Answer::Unreachable | Answer::Failed, Some(sent)) if self.shows(&sent) => {
                // The watch was faster than the answer that did not come.
                return self.written(now, sent, None);
            }
            (Answer::Unreachable | Answer::Failed, sent) => {
                let delay = self.next_delay(FAILED, random);
                self.again_after(now + delay, sent.as_ref());
                self.doubtful = sent;
            }
            (Answer::Refused, sent) => {
                let delay = self.next_delay(REFUSED, random);
                self.again_after(now + delay, sent.as_ref());
            }
            // Answers that do not fit their requests.
            (Answer::Written { .. } | Answer::Conflict, None) => {
                debug_assert!(false, "a read writes nothing");
            }
        }
        Noticed::default()
    }

    /// Gives up the request under way. What becomes of it is not told of: another aggregator may write the very same.
    pub(super) fn forget_attempt(&mut self) {
        self.place = Place::Nowhere;
        self.sent = None;
        self.doubtful = None;
    }

    /// Whether the watch shows what this write would make.
    fn shows(&self, sent: &Sent) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            seen.uid == sent.uid
                && seen.resource_version != sent.resource_version
                && seen
                    .status
                    .get()
                    .is_some_and(|status| is_copy(status, &sent.entry.status))
        })
    }

    /// A write took place; without a version, it is what the watch shows.
    fn written(&mut self, now: Instant, sent: Sent, resource_version: Option<String>) -> Noticed {
        if let Some(seen) = &mut self.seen
            && seen.uid == sent.uid
        {
            let version = resource_version.unwrap_or_else(|| seen.resource_version.clone());
            let is_newest = compare_versions(&version, &seen.resource_version) != Some(Ordering::Less);
            if is_newest {
                seen.resource_version = version;
                seen.status = Status::Written(Arc::clone(&sent.entry));
            }
        }
        self.succeeded();
        Noticed {
            written: (!sent.is_told).then(|| sent.into_written(now)),
            contested: false,
        }
    }

    fn succeeded(&mut self) {
        self.doubtful = None;
        self.backoff = None;
        self.backed_off_until = None;
    }

    fn forget_object(&mut self) {
        let Self {
            desired,
            place,
            sent,
            void,
            ..
        } = std::mem::take(self);
        *self = Self {
            desired,
            place,
            sent,
            void,
            ..Self::default()
        };
    }

    /// What was sent did not get through: it is wanted since it was wanted first.
    fn want_again(&mut self, sent: &Sent) {
        self.wanted_since = Some(sent.wanted_since);
    }

    fn again_after(&mut self, at: Instant, sent: Option<&Sent>) {
        match sent {
            Some(sent) => {
                self.want_again(sent);
                self.backed_off_until = Some(at);
            }
            None => self.look_at = Some(at),
        }
    }

    fn next_delay(&mut self, (base, cap): (Duration, Duration), random: u64) -> Duration {
        self.backoff
            .get_or_insert_with(|| Backoff::new(base, cap))
            .next(random)
    }

    /// Whether somebody else replaced what we wrote by something different.
    fn is_contested_by(&self, status: Option<&HealthScopeStatus>) -> bool {
        let Some(Seen {
            status: Status::Written(ours),
            ..
        }) = &self.seen
        else {
            return false;
        };
        // While a write of ours is under way, or may be, it is most likely that.
        let is_ours = self.sent.is_some() || self.doubtful.is_some();
        !is_ours && status.is_none_or(|status| means_different(status, &ours.status))
    }

    fn slow_down(&mut self, now: Instant) {
        let is_over = self.contested_at.is_none_or(|at| now >= at + CONTEST_OVER);
        self.contests = if is_over {
            0
        } else {
            self.contests.saturating_add(1)
        };
        self.contested_at = Some(now);
        if self.contests > 0 {
            let delay = Duration::from_secs(1 << self.contests.min(6)).min(MAX_CONTEST);
            self.paced_until = self.paced_until.max(Some(now + delay));
        }
    }
}

/// Whether the change from `former` is one that somebody waits for.
fn is_transition(former: Option<&HealthScopeStatus>, desired: &HealthScopeStatus) -> bool {
    let stalled = |status: &HealthScopeStatus| {
        condition::find(&status.conditions, STALLED).map(|condition| condition.status.clone())
    };
    former.is_none_or(|former| {
        former.health != desired.health
            || former.observed_generation != desired.observed_generation
            || stalled(former) != stalled(desired)
    })
}

/// Whether `status` is what the server made of `sent`; it keeps whole seconds.
fn is_copy(status: &HealthScopeStatus, sent: &HealthScopeStatus) -> bool {
    let second = |status: &HealthScopeStatus| {
        status
            .last_aggregate_timestamp
            .as_ref()
            .map(|time| time.0.as_second())
    };
    second(status) == second(sent) && !means_different(status, sent)
}

/// Which of two versions of an object is newer; `None` when that cannot be told. Kubernetes promises decimal numbers that
/// grow; whatever else it is, what came last is newer.
pub(super) fn compare_versions(a: &str, b: &str) -> Option<Ordering> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if a == b {
        return Some(Ordering::Equal);
    }
    (is_number(a) && is_number(b)).then(|| {
        let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    })
}
