//! When to inject less, how far, and when again.
//!
//! ```text
//! suffering for PATIENCE -> owner; two owners of a namespace -> namespace; two namespaces -> cluster
//! open trip, image's fault  -> canary is made anew until one is well -> closed
//! open trip, canary is well -> local: closed by the namespace's annotation, or by another pod template
//! ```
//!
//! What a trip's pods suffered before it opened is known: it opens none again once it was closed.

use {
    super::{
        observe::{Canary, Harm, Observed, OwnerNow},
        record::{Baseline, Cause, Level, OwnerRef, Place, Record, Reduction, Resumed, Trip},
    },
    crate::event::Now,
    healthscope_shared::one_line,
    jiff::{SignedDuration, Timestamp},
    std::{
        collections::{BTreeMap, BTreeSet},
        time::{Duration, Instant},
    },
};

/// So long something must be seen without a break. A registry or runtime that stumbles once is tried again by then, and
/// a pod that suffers is helped by nothing that comes later than half a minute.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the canary must be well without a break.
const PROOF: Duration = Duration::from_secs(10);
/// Trips of the last minutes count together: what fails within one rollout is one trouble, what fails a week later is not.
const WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// Owners of one namespace that suffer at once before all of it is spared.
const OWNERS_OF_NAMESPACE: usize = 2;
/// Namespaces that suffer at once before the cluster is spared.
const NAMESPACES: usize = 2;
/// Owners that suffer at once, the canary with them, before the cluster is spared.
const OWNERS_OF_CLUSTER: usize = 3;
/// Between two canaries, doubling.
const REMAKE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// A new canary has so long to become well before another is made, or until it is seen to suffer.
const CHANCE: Duration = Duration::from_secs(60);
/// How long a resumption is remembered, at least: one that is followed by a trip within this time makes the next wait longer.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);
/// Between looks while there is something to see, and while there is not.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Trips of single owners that are open at most; beyond it their namespaces are spared as a whole.
const MAX_TRIPS: usize = 200;
/// Resumptions that are remembered at most, the newest.
const MAX_RESUMED: usize = 200;
/// Pods and namespaces that a trip names.
const MAX_NAMED: usize = 10;
/// Longest text of what was seen.
const MAX_MESSAGE_BYTES: usize = 500;

/// Decides how much is injected where.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    record: Record,
    /// Since when each pod has suffered.
    seen: BTreeMap<(String, Cause), Instant>,
    /// The canary's pod, since when there is this one, and since when it has been well.
    canary: Option<(String, Instant, Option<Instant>)>,
    remade: Option<Remade>,
}

/// The last canary that was asked for.
#[derive(Clone, Copy, Debug)]
struct Remade {
    at: Instant,
    times: u32,
}

/// What is to be done after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether [`Breaker::record`] is another than before.
    pub is_changed: bool,
    /// What is worth telling.
    pub told: Vec<Told>,
    /// The canary's pod that is to be deleted, by its uid, so that a new one is made.
    pub remake: Option<String>,
    /// When to look again.
    pub next: Instant,
}

/// A trip that opened or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The trip.
    pub trip: Trip,
    /// Whether it is closed.
    pub is_resumed: bool,
    /// What is known of its owner, where it reaches one owner alone.
    pub owner: Option<OwnerNow>,
    /// In a sentence.
    pub note: String,
}

impl Breaker {
    /// One that goes on from what is on record.
    #[must_use]
    pub fn new(record: Record) -> Self {
        let mut breaker = Self::default();
        breaker.adopt(record);
        breaker
    }

    /// What is on record now.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Somebody else wrote the record.
    pub fn adopt(&mut self, record: Record) {
        self.record = record;
        self.record.sort();
    }

    /// Takes in what was found.
    pub fn look(&mut self, observed: &Observed, now: Now) -> Decision {
        let before = self.record.clone();
        let mut told = Vec::new();
        let proof = self.watch_canary(observed.canary.as_ref(), now.instant);
        self.learn(observed, proof.as_deref());
        self.close(observed, proof.as_deref(), now, &mut told);
        let harms = self.ripe(observed, now.instant);
        self.forget(&observed.harms, now.wall);
        let opened = self.open(&harms, observed, now.wall);
        told.extend(opened.into_iter().map(|trip| {
            let owner = owner_now(&trip, observed);
            let note = opening(&trip);
            Told {
                trip,
                is_resumed: false,
                owner,
                note,
            }
        }));
        self.record.sort();
        let remake = self.remake(observed, now.instant);
        let is_busy = !observed.harms.is_empty() || !self.record.trips.is_empty();
        let (busy, quiet) = LOOKS;
        Decision {
            is_changed: before != self.record,
            told,
            remake,
            next: now.instant + if is_busy { busy } else { quiet },
        }
    }

    /// The uid of the canary's pod, once it has been well for long enough.
    fn watch_canary(&mut self, canary: Option<&Canary>, now: Instant) -> Option<String> {
        let canary = match canary {
            Some(canary) => canary,
            None => {
                self.canary = None;
                return None;
            }
        };
        let (since, well) = match &self.canary {
            Some((uid, since, well)) if *uid == canary.uid => (*since, *well),
            Some(_) | None => (now, None),
        };
        let well = canary.is_well.then(|| well.unwrap_or(now));
        self.canary = Some((canary.uid.clone(), since, well));
        let is_proof = well.is_some_and(|well| now.saturating_duration_since(well) >= PROOF);
        is_proof.then(|| canary.uid.clone())
    }

    /// What the canary says about the trips that are open.
    fn learn(&mut self, observed: &Observed, proof: Option<&str>) {
        let suffers = observed
            .canary
            .as_ref()
            .is_some_and(|canary| canary.suffers.is_some());
        for trip in &mut self.record.trips {
            trip.baseline.canary_suffered |= suffers;
            let is_tried = proof.is_some_and(|uid| trip.baseline.canary.as_deref() != Some(uid));
            let proves = trip.cause.is_everywhere()
                && (trip.image != observed.image
                    || (trip.baseline.canary_suffered && trip.cause != Cause::CarrierMissing));
            trip.baseline.is_local |= is_tried && !proves;
        }
    }

    fn close(&mut self, observed: &Observed, proof: Option<&str>, now: Now, told: &mut Vec<Told>) {
        let trips = std::mem::take(&mut self.record.trips);
        for trip in trips {
            let owner = owner_now(&trip, observed);
            if is_gone(&trip, observed) {
                continue;
            }
            let Some(why) = why_closed(&trip, owner.as_ref(), observed, proof) else {
                self.record.trips.push(trip);
                continue;
            };
            self.remember(&trip, now.wall);
            told.push(Told {
                note: format!("{}: injection is as it was asked for again", why.text()),
                trip,
                is_resumed: true,
                owner,
            });
        }
    }

    fn remember(&mut self, trip: &Trip, at: Timestamp) {
        let place = trip.place();
        let former = self
            .record
            .resumed
            .iter()
            .find(|resumed| resumed.place() == place);
        let times = former.map_or(0, |former| former.times).saturating_add(1);
        self.record.resumed.retain(|resumed| resumed.place() != place);
        self.record.resumed.push(Resumed {
            level: trip.level,
            namespace: trip.namespace.clone(),
            owner: trip.owner.clone(),
            at,
            before: between(trip.since, at),
            times,
        });
    }

    /// Forgets resumptions that nothing depends on any more.
    fn forget(&mut self, harms: &[Harm], now: Timestamp) {
        self.record.resumed.retain(|resumed| {
            now.duration_since(resumed.at) < MEMORY || harms.iter().any(|harm| is_known(harm, resumed))
        });
        let excess = self.record.resumed.len().saturating_sub(MAX_RESUMED);
        if excess > 0 {
            self.record.resumed.sort_by_key(|resumed| resumed.at);
            self.record.resumed.drain(..excess);
        }
    }

    /// What has been suffered for long enough, and is not of the time before a trip that was closed; sorted.
    fn ripe<'a>(&mut self, observed: &'a Observed, now: Instant) -> Vec<&'a Harm> {
        let former = std::mem::take(&mut self.seen);
        let mut ripe = Vec::new();
        for harm in &observed.harms {
            let key = (harm.uid.clone(), harm.cause);
            let since = former.get(&key).copied().unwrap_or(now);
            self.seen.insert(key, since);
            let is_known = self.record.resumed.iter().any(|resumed| is_known(harm, resumed));
            if !is_known && now.saturating_duration_since(since) >= PATIENCE {
                ripe.push(harm);
            }
        }
        ripe.sort_unstable();
        ripe.dedup();
        ripe
    }

    /// Opens what must be opened; what was opened.
    fn open(&mut self, harms: &[&Harm], observed: &Observed, now: Timestamp) -> Vec<Trip> {
        let known: Vec<Trip> = self.record.trips.clone();
        for harm in harms {
            let is_spared = self.record.trips.iter().any(|trip| {
                trip.reduction >= harm.cause.reduction() && trip.place().holds(&harm.namespace, &harm.owner)
            });
            if !is_spared {
                let same = harms.iter().copied().filter(|other| {
                    other.place() == harm.place() && other.cause.reduction() == harm.cause.reduction()
                });
                let same: Vec<&Harm> = same.collect();
                self.put(self.trip(Level::Owner, &same, observed, now));
            }
        }
        for reduction in [Reduction::Off, Reduction::WithoutCommands] {
            self.widen(reduction, harms, observed, now);
        }
        let is_new = |trip: &&Trip| {
            let former = known.iter().find(|former| former.place() == trip.place());
            former.is_none_or(|former| former.reduction < trip.reduction)
        };
        self.record.trips.iter().filter(is_new).cloned().collect()
    }

    /// Spares a namespace or the cluster, where several suffer.
    fn widen(&mut self, reduction: Reduction, harms: &[&Harm], observed: &Observed, now: Timestamp) {
        let harms: Vec<&Harm> = harms
            .iter()
            .copied()
            .filter(|harm| harm.cause.reduction() == reduction)
            .collect();
        // Who suffers now, and who was spared a moment ago.
        let recent: Vec<Trip> = self
            .record
            .trips
            .iter()
            .filter(|trip| trip.reduction == reduction && now.duration_since(trip.since) <= WINDOW)
            .cloned()
            .collect();
        let mut sufferers: BTreeMap<&str, BTreeSet<&OwnerRef>> = BTreeMap::new();
        for harm in &harms {
            sufferers.entry(&harm.namespace).or_default().insert(&harm.owner);
        }
        for trip in &recent {
            if let (Some(namespace), Some(owner)) = (&trip.namespace, &trip.owner) {
                sufferers.entry(namespace).or_default().insert(owner);
            }
        }
        let is_full = self.record.trips.len() > MAX_TRIPS;
        for (namespace, owners) in &sufferers {
            let place = Place {
                level: Level::Namespace,
                namespace: Some(namespace),
                owner: None,
            };
            if (owners.len() >= OWNERS_OF_NAMESPACE || is_full) && !self.spares(&place, reduction) {
                self.put_wider(&place, &harms, &recent, observed, now);
            }
        }
        let everywhere = |harm: &&&Harm| harm.cause.is_everywhere();
        let mut namespaces: BTreeSet<&str> = harms
            .iter()
            .filter(everywhere)
            .map(|harm| &*harm.namespace)
            .collect();
        let mut owners: BTreeSet<(&str, &OwnerRef)> = harms
            .iter()
            .filter(everywhere)
            .map(|harm| (&*harm.namespace, &harm.owner))
            .collect();
        for trip in recent.iter().filter(|trip| trip.cause.is_everywhere()) {
            namespaces.extend(trip.namespace.as_deref());
            owners.extend(trip.namespace.as_deref().zip(trip.owner.as_ref()));
        }
        let canary_suffers = observed
            .canary
            .as_ref()
            .is_some_and(|canary| canary.suffers.is_some());
        let is_everywhere =
            namespaces.len() >= NAMESPACES || (canary_suffers && owners.len() >= OWNERS_OF_CLUSTER);
        let cluster = Place {
            level: Level::Cluster,
            namespace: None,
            owner: None,
        };
        if is_everywhere && !self.spares(&cluster, reduction) {
            self.put_wider(&cluster, &harms, &recent, observed, now);
        }
    }

    /// A trip because of these, of which there is at least one.
    fn trip(&self, level: Level, harms: &[&Harm], observed: &Observed, now: Timestamp) -> Trip {
        // Whatever the order they came in: the first by cause and name speaks for all.
        let first = harms
            .iter()
            .min_by_key(|harm| (harm.cause, &harm.namespace, &harm.name, &harm.uid))
            .expect("a trip has a reason");
        let mut pods: Vec<String> = harms
            .iter()
            .map(|harm| match level {
                Level::Cluster => format!("{}/{}", harm.namespace, harm.name),
                Level::Namespace | Level::Owner => harm.name.clone(),
            })
            .collect();
        pods.sort_unstable();
        pods.dedup();
        pods.truncate(MAX_NAMED);
        let mut namespaces: Vec<String> = match level {
            Level::Cluster => harms.iter().map(|harm| harm.namespace.clone()).collect(),
            Level::Namespace | Level::Owner => Vec::new(),
        };
        namespaces.sort_unstable();
        namespaces.dedup();
        namespaces.truncate(MAX_NAMED);
        let key = (first.namespace.clone(), first.owner.clone());
        let template = match level {
            Level::Owner => observed.owners.get(&key).and_then(|owner| owner.template.clone()),
            Level::Cluster | Level::Namespace => None,
        };
        let mut trip = Trip {
            level,
            namespace: (level != Level::Cluster).then(|| first.namespace.clone()),
            owner: (level == Level::Owner).then(|| first.owner.clone()),
            reduction: first.cause.reduction(),
            cause: first.cause,
            message: one_line(&first.message, MAX_MESSAGE_BYTES),
            image: observed.image.clone(),
            since: now,
            pods,
            baseline: Baseline {
                canary: self.canary_then(observed),
                retry: None,
                template,
                canary_suffered: observed
                    .canary
                    .as_ref()
                    .is_some_and(|canary| canary.suffers.is_some()),
                is_local: false,
                namespaces,
            },
        };
        trip.baseline.retry = retry(&trip, observed).cloned();
        trip
    }

    /// The canary that proves nothing for a trip that opens now: the present one, unless that was made because of a trip
    /// that is open and has not shown anything yet.
    fn canary_then(&self, observed: &Observed) -> Option<String> {
        let canary = observed.canary.as_ref()?;
        let waiting = self
            .record
            .trips
            .iter()
            .filter(|trip| waits_for_canary(trip, observed));
        let first = waiting.min_by_key(|trip| trip.since).filter(|_| !canary.is_well);
        match first {
            Some(first) => first.baseline.canary.clone(),
            None => Some(canary.uid.clone()),
        }
    }

    fn spares(&self, place: &Place<'_>, reduction: Reduction) -> bool {
        self.record
            .trips
            .iter()
            .any(|trip| trip.reduction >= reduction && trip.place().covers(place))
    }

    fn put_wider(
        &mut self,
        place: &Place<'_>,
        harms: &[&Harm],
        recent: &[Trip],
        observed: &Observed,
        now: Timestamp,
    ) {
        let is_cluster = place.level == Level::Cluster;
        let fits = |cause: Cause| !is_cluster || cause.is_everywhere();
        let within: Vec<&Harm> = harms
            .iter()
            .copied()
            .filter(|harm| place.covers(&harm.place()) && fits(harm.cause))
            .collect();
        let narrower = recent
            .iter()
            .filter(|trip| place.covers(&trip.place()) && fits(trip.cause));
        let mut wider = if within.is_empty() {
            let Some(first) = narrower.clone().next() else {
                return;
            };
            Trip {
                level: place.level,
                namespace: place.namespace.map(str::to_owned),
                owner: None,
                since: now,
                ..first.clone()
            }
        } else {
            self.trip(place.level, &within, observed, now)
        };
        wider.baseline.canary = self.canary_then(observed);
        wider.baseline.retry = retry(&wider, observed).cloned();
        wider.baseline.template = None;
        // What was suffered before belongs to the same trouble.
        for trip in narrower {
            wider.baseline.canary_suffered |= trip.baseline.canary_suffered;
            if is_cluster {
                wider.baseline.namespaces.extend(trip.namespace.clone());
            }
        }
        wider.baseline.namespaces.sort_unstable();
        wider.baseline.namespaces.dedup();
        wider.baseline.namespaces.truncate(MAX_NAMED);
        self.put(wider);
    }

    /// Puts a trip on record in the place of those that it covers.
    fn put(&mut self, trip: Trip) {
        self.record
            .trips
            .retain(|other| !trip.place().covers(&other.place()) || other.reduction > trip.reduction);
        self.record.trips.push(trip);
    }

    /// The canary to delete, where another may prove something.
    fn remake(&mut self, observed: &Observed, now: Instant) -> Option<String> {
        let waiting: Vec<&Trip> = self
            .record
            .trips
            .iter()
            .filter(|trip| waits_for_canary(trip, observed))
            .collect();
        if waiting.is_empty() {
            self.remade = None;
            return None;
        }
        let canary = observed.canary.as_ref()?;
        let (_, since, _) = self.canary.as_ref()?;
        let is_newer = waiting
            .iter()
            .all(|trip| trip.baseline.canary.as_deref() != Some(&canary.uid));
        let has_chance =
            is_newer && canary.suffers.is_none() && now.saturating_duration_since(*since) < CHANCE;
        if has_chance {
            return None;
        }
        let again = || {
            let places: Vec<Place<'_>> = waiting.iter().map(|trip| trip.place()).collect();
            let resumed = self.record.resumed.iter();
            resumed
                .filter(|resumed| places.contains(&resumed.place()))
                .map(|resumed| resumed.times)
                .max()
                .unwrap_or(0)
        };
        let remade = match self.remade {
            // The first at once, unless one was taken for a proof here lately and was none.
            None => Remade {
                at: now,
                times: again(),
            },
            Some(remade) => remade,
        };
        self.remade = Some(remade);
        if now < remade.at + pause(remade.times) {
            return None;
        }
        self.remade = Some(Remade {
            at: now,
            times: remade.times.saturating_add(1),
        });
        Some(canary.uid.clone())
    }
}

/// How long to wait after so many canaries.
fn pause(times: u32) -> Duration {
    let (first, last) = REMAKE;
    match times.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => first.saturating_mul(2_u32.saturating_pow(doublings)).min(last),
    }
}

/// Whether a canary that is well would close it, or show that it is local.
fn waits_for_canary(trip: &Trip, observed: &Observed) -> bool {
    match trip.cause {
        Cause::ImagePull | Cause::AgentNotStarting => !trip.baseline.is_local || trip.image != observed.image,
        Cause::CarrierMissing => trip.image != observed.image,
        Cause::FailedCreate => false,
    }
}

/// Why a trip closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    Canary,
    Retry,
    Template,
}

impl Closing {
    const fn text(self) -> &'static str {
        match self {
            Self::Canary => "the canary runs with the agent's image",
            Self::Retry => "the annotation asks for another try",
            Self::Template => "the pod template is another",
        }
    }
}

fn why_closed(
    trip: &Trip,
    owner: Option<&OwnerNow>,
    observed: &Observed,
    proof: Option<&str>,
) -> Option<Closing> {
    let Baseline {
        canary,
        retry: former_retry,
        template,
        canary_suffered,
        is_local: _,
        namespaces: _,
    } = &trip.baseline;
    let is_newer = proof.is_some_and(|uid| canary.as_deref() != Some(uid));
    let proves = match trip.cause {
        Cause::ImagePull | Cause::AgentNotStarting => *canary_suffered || trip.image != observed.image,
        Cause::CarrierMissing => trip.image != observed.image,
        Cause::FailedCreate => false,
    };
    if is_newer && proves {
        return Some(Closing::Canary);
    }
    let retry = retry(trip, observed);
    if retry.is_some() && retry != former_retry.as_ref() {
        return Some(Closing::Retry);
    }
    let template_now = owner.and_then(|owner| owner.template.as_ref());
    let is_local = match trip.cause {
        Cause::ImagePull | Cause::AgentNotStarting => trip.baseline.is_local,
        Cause::CarrierMissing | Cause::FailedCreate => true,
    };
    let is_other = template_now.is_some() && template.is_some() && template_now != template.as_ref();
    (is_local && trip.level == Level::Owner && is_other).then_some(Closing::Template)
}

/// Whether nothing is left that it could spare.
fn is_gone(trip: &Trip, observed: &Observed) -> bool {
    let (Some(namespace), Some(owner)) = (&trip.namespace, &trip.owner) else {
        return false;
    };
    observed.gone.contains(&(namespace.clone(), owner.clone()))
}

/// The annotation that counts for a trip.
fn retry<'a>(trip: &Trip, observed: &'a Observed) -> Option<&'a String> {
    let namespace = trip.namespace.as_ref().unwrap_or(&observed.home);
    observed.retries.get(namespace)
}

fn owner_now(trip: &Trip, observed: &Observed) -> Option<OwnerNow> {
    let key = (trip.namespace.clone()?, trip.owner.clone()?);
    observed.owners.get(&key).cloned()
}

/// Whether what is suffered is of the time before a trip that was closed.
fn is_known(harm: &Harm, resumed: &Resumed) -> bool {
    resumed.place().covers(&harm.place()) && harm.made <= resumed.before
}

/// A moment well after the one and well before the other: while a trip was open no pod got an agent, and the clocks of
/// the API server and of this machine may differ.
fn between(since: Timestamp, at: Timestamp) -> Timestamp {
    let half = at.duration_since(since).max(SignedDuration::ZERO) / 2;
    since.checked_add(half).unwrap_or(at)
}

fn opening(trip: &Trip) -> String {
    let less = match trip.reduction {
        Reduction::Off => "new pods get no agent",
        Reduction::WithoutCommands => "new pods get no command checks",
    };
    format!("{less}: {}", trip.why())
}
