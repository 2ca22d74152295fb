//! What is told about a scope as a Kubernetes Event: the pure half.
//!
//! An occurrence comes from a status that was *written* and from the one that it replaced, so a restart, a resync or a
//! second aggregator tells nothing twice. [`told`] says what is worth telling, [`Occurrences`] how often: each scope has an
//! allowance, what exceeds it is summed up in the next one, and a flapping scope says so once.
//!
//! Nothing here reads a clock or speaks to anybody. Times are those of the statuses.

use {
    crate::pace::Written,
    healthscope_crd::{
        condition::{self, Truth},
        v1beta1::HealthScopeStatus,
    },
    healthscope_shared::{
        health::{Health, Reason},
        name::ScopeKey,
        one_line,
    },
    jiff::{SignedDuration, Timestamp},
    std::{
        collections::HashMap,
        time::{Duration, Instant},
    },
};

/// Longest note that Kubernetes takes.
pub const MAX_NOTE_BYTES: usize = 1024;
/// So much of the note is for what happened; the rest is for what was left out.
const MAX_TEXT_BYTES: usize = 900;
/// Occurrences of one scope that are told at once; those of a rollout with its ups and downs.
const BURST: u32 = 6;
/// One more is allowed after each of these.
const REFILL: Duration = Duration::from_secs(60);
/// How often scopes that have been quiet are forgotten.
const SWEEP: Duration = Duration::from_secs(300);
/// Longest part of the name that comes from the scope's own; with uid, time and word the whole stays under 253.
const MAX_NAME_BYTES: usize = 170;

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something got better, or is as it should be.
    Normal,
    /// Something got worse.
    Warning,
}

impl Severity {
    /// The word in the Event's `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq)]
pub struct Occurrence {
    /// About which scope.
    pub key: ScopeKey,
    /// About which object of that name.
    pub uid: String,
    /// Whether somebody should look.
    pub severity: Severity,
    /// Why, for machines.
    pub reason: Reason,
    /// What happened, for people.
    pub note: String,
    /// When.
    pub at: Timestamp,
    /// What it became, one word.
    word: &'static str,
}

impl Occurrence {
    /// The Event's name: the same for the same occurrence, so that telling it again changes nothing.
    #[must_use]
    pub fn name(&self) -> String {
        let scope = self.key.name.as_str();
        let scope = scope.get(..MAX_NAME_BYTES).unwrap_or(scope);
        // A cut may leave a name that does not end like one.
        let scope = scope.trim_end_matches(['-', '.']);
        let uid: String = self
            .uid
            .chars()
            .filter(|c| c.is_ascii_hexdigit() || *c == '-')
            .take(36)
            .collect();
        format!("{scope}.{:x}.{uid}-{}", self.at.as_microsecond(), self.word)
    }
}

/// What a written status tells, the most important last.
#[must_use]
pub fn told(written: &Written) -> Vec<Occurrence> {
    let Written {
        former,
        entry,
        waited: _,
    } = written;
    let status = &entry.status;
    let (Some(uid), Some(at)) = (&entry.object.metadata.uid, &status.last_aggregate_timestamp) else {
        return Vec::new();
    };
    let nothing = HealthScopeStatus::default();
    let former = former.as_deref().unwrap_or(&nothing);
    let at = at.0;
    let tidings = [
        spec(former, status),
        health(former, status, &entry.view.reason, &entry.view.message, at),
    ];
    tidings
        .into_iter()
        .flatten()
        .map(|tiding| Occurrence {
            key: entry.view.key(),
            uid: uid.clone(),
            severity: tiding.severity,
            reason: tiding.reason,
            note: one_line(&tiding.note, MAX_TEXT_BYTES),
            at,
            word: tiding.word,
        })
        .collect()
}

/// An occurrence without its scope.
struct Tiding {
    severity: Severity,
    reason: Reason,
    word: &'static str,
    note: String,
}

/// Whether the spec can be used. That is told during a maintenance too: it is about what somebody wrote just now.
fn spec(former: &HealthScopeStatus, status: &HealthScopeStatus) -> Option<Tiding> {
    let stalled = condition::find(&status.conditions, condition::STALLED)?;
    let is_stalled = |status: &str| status == Truth::True.as_str();
    let was_stalled = condition::find(&former.conditions, condition::STALLED)
        .is_some_and(|condition| is_stalled(&condition.status));
    match (was_stalled, is_stalled(&stalled.status)) {
        (false, true) => Some(Tiding {
            severity: Severity::Warning,
            reason: Reason::from_untrusted(&stalled.reason),
            word: "stalled",
            note: format!("The spec cannot be used: {}", stalled.message),
        }),
        (true, false) => Some(Tiding {
            severity: Severity::Normal,
            reason: Reason::from_static("Accepted"),
            word: "accepted",
            note: "The spec can be used again".to_owned(),
        }),
        (true, true) | (false, false) => None,
    }
}

/// What became of the health. A scope's first health is no change: without a generation, what the status says of it is
/// the schema's default.
fn health(
    former: &HealthScopeStatus,
    status: &HealthScopeStatus,
    reason: &Reason,
    message: &str,
    at: Timestamp,
) -> Option<Tiding> {
    former.observed_generation?;
    let (from, to) = (former.health?, status.health?);
    // A health without conditions is what the CustomResourceDefinition fills in where nobody has looked yet.
    if former.conditions.is_empty() {
        return None;
    }
    let in_maintenance = |status: &HealthScopeStatus| {
        status
            .maintenance
            .as_ref()
            .is_some_and(|maintenance| maintenance.active)
    };
    if in_maintenance(status) {
        return None;
    }
    let why = status.root_cause.as_deref().unwrap_or(message);
    let because = if why.is_empty() || to == Health::Healthy {
        String::new()
    } else {
        format!(": {why}")
    };
    let severity = if to.is_available() && to < from {
        Severity::Normal
    } else {
        Severity::Warning
    };
    match (former.flapping, status.flapping) {
        (false, true) => {
            return Some(Tiding {
                severity: Severity::Warning,
                reason: Reason::from_static("Flapping"),
                word: "flapping",
                note: format!(
                    "The health changes too often to be believed, now {to}{because}. Changes are not told of until it \
                     settles"
                ),
            });
        }
        (true, true) => return None,
        (true, false) => {
            return Some(Tiding {
                severity: if to.is_available() {
                    Severity::Normal
                } else {
                    Severity::Warning
                },
                reason: Reason::from_static("Settled"),
                word: "settled",
                note: format!("{to}, and no longer changing all the time{because}"),
            });
        }
        (false, false) => {}
    }
    if in_maintenance(former) && to != Health::Healthy {
        return Some(Tiding {
            severity: Severity::Warning,
            reason: reason.clone(),
            word: word(to),
            note: format!("{to} now that the maintenance is over{because}"),
        });
    }
    if from == to {
        return None;
    }
    let lasted = since(former).map(|since| lasted(since, at));
    Some(if to == Health::Healthy {
        Tiding {
            severity,
            reason: Reason::from_static("Recovered"),
            word: word(to),
            note: match lasted {
                Some(lasted) => recovered(former, from, &lasted, at),
                None => format!("{to} again after being {from}"),
            },
        }
    } else {
        Tiding {
            severity,
            reason: reason.clone(),
            word: word(to),
            note: match lasted {
                Some(lasted) => format!("{to} after {lasted} {from}{because}"),
                None => format!("{to} after being {from}{because}"),
            },
        }
    })
}

fn recovered(former: &HealthScopeStatus, from: Health, lasted_last: &str, at: Timestamp) -> String {
    let not_healthy = condition::find(&former.conditions, condition::HEALTHY)
        .map(|condition| lasted(condition.last_transition_time.0, at));
    match not_healthy {
        Some(all) if all != lasted_last => {
            format!("Healthy again after {all}, the last {lasted_last} {from}")
        }
        Some(_) | None => format!("Healthy again after {lasted_last} {from}"),
    }
}

/// Since when a status has had its health: since the later of the two conditions that make it out changed.
fn since(status: &HealthScopeStatus) -> Option<Timestamp> {
    [condition::HEALTHY, condition::AVAILABLE]
        .into_iter()
        .filter_map(|kind| condition::find(&status.conditions, kind))
        .map(|condition| condition.last_transition_time.0)
        .max()
}

/// A time span in two units: `4m 12s`. Clocks of two machines may disagree: nothing lasts less than no time.
fn lasted(from: Timestamp, to: Timestamp) -> String {
    // Statuses keep whole seconds.
    let seconds = to.as_second() - from.as_second();
    let seconds = SignedDuration::from_secs(seconds).as_secs().max(0);
    let two = |large: i64, name: char, small: i64, small_name: char| match (
        seconds / large,
        seconds % large / small,
    ) {
        (whole, 0) => format!("{whole}{name}"),
        (whole, rest) => format!("{whole}{name} {rest}{small_name}"),
    };
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3_600 => two(60, 'm', 1, 's'),
        3_600..86_400 => two(3_600, 'h', 60, 'm'),
        86_400.. => two(86_400, 'd', 3_600, 'h'),
    }
}

const fn word(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unknown => "unknown",
        Health::Unhealthy => "unhealthy",
    }
}

/// How often is told.
#[derive(Debug, Default)]
pub struct Occurrences {
    /// By uid; scopes that have been quiet are not among them.
    scopes: HashMap<String, Allowance>,
    swept: Option<Instant>,
    swallowed: u64,
}

/// What one scope may still tell.
#[derive(Debug)]
struct Allowance {
    /// What is left, as of `counted`.
    left: u32,
    counted: Instant,
    /// What could not be told: the latest, how many before it, and when the first was.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    latest: Occurrence,
    earlier: u32,
    first: Timestamp,
}

impl Allowance {
    const fn full(now: Instant) -> Self {
        Self {
            left: BURST,
            counted: now,
            held: None,
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        let more = u32::try_from(passed.as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if self.left.saturating_add(more) >= BURST {
            self.left = BURST;
            self.counted = now;
        } else {
            self.left += more;
            self.counted += REFILL * more;
        }
    }

    fn take(&mut self) -> bool {
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

impl Occurrences {
    /// Takes in a written status; what is to be told now.
    pub fn handle(&mut self, now: Instant, written: &Written) -> Vec<Occurrence> {
        self.sweep(now);
        if let (Some(uid), Some(maintenance)) = (
            &written.entry.object.metadata.uid,
            &written.entry.status.maintenance,
        ) && maintenance.active
            && let Some(allowance) = self.scopes.get_mut(uid)
        {
            allowance.held = None;
        }
        told(written)
            .into_iter()
            .filter_map(|occurrence| self.allow(now, occurrence))
            .collect()
    }

    /// What could not be told before and may be now. Call it at [`Self::deadline`].
    pub fn tick(&mut self, now: Instant) -> Vec<Occurrence> {
        let mut due: Vec<Occurrence> = self
            .scopes
            .values_mut()
            .filter(|allowance| allowance.held.is_some())
            .filter_map(|allowance| {
                allowance.refill(now);
                let may = allowance.take();
                allowance.held.take_if(|_| may).map(Held::into_occurrence)
            })
            .collect();
        due.sort_by(|a, b| (a.at, &a.key).cmp(&(b.at, &b.key)));
        due
    }

    /// When something that is held back may be told.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.scopes
            .values()
            .filter(|allowance| allowance.held.is_some())
            .map(|allowance| allowance.counted + REFILL)
            .min()
    }

    /// Forgets what is held back: it is not ours to tell any more.
    pub fn clear(&mut self) {
        self.scopes.clear();
    }

    /// How many were not told for themselves, since the last call.
    pub fn take_swallowed(&mut self) -> u64 {
        std::mem::take(&mut self.swallowed)
    }

    fn allow(&mut self, now: Instant, occurrence: Occurrence) -> Option<Occurrence> {
        let allowance = self
            .scopes
            .entry(occurrence.uid.clone())
            .or_insert_with(|| Allowance::full(now));
        if let Some(held) = &mut allowance.held {
            held.latest = occurrence;
            held.earlier += 1;
            self.swallowed += 1;
            return None;
        }
        allowance.refill(now);
        if allowance.take() {
            return Some(occurrence);
        }
        allowance.held = Some(Held {
            first: occurrence.at,
            latest: occurrence,
            earlier: 0,
        });
        None
    }

    fn sweep(&mut self, now: Instant) {
        let swept = *self.swept.get_or_insert(now);
        if now.saturating_duration_since(swept) < SWEEP {
            return;
        }
        self.swept = Some(now);
        self.scopes.retain(|_, allowance| {
            allowance.refill(now);
            allowance.held.is_some() || allowance.left < BURST
        });
    }
}

impl Held {
    fn into_occurrence(self) -> Occurrence {
        let Self {
            mut latest,
            earlier,
            first,
        } = self;
        if earlier > 0 {
            let changes = if earlier == 1 { "change" } else { "changes" };
            let since = Timestamp::from_second(first.as_second()).unwrap_or(first);
            latest.note = format!("{} ({earlier} more {changes} since {since})", latest.note);
        }
        debug_assert!(latest.note.len() <= MAX_NOTE_BYTES, "the parts are bounded");
        latest
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{
            snapshot::ScopeEntry,
            status,
            view::{MaintenanceView, PolicyView, ScopeView},
        },
        healthscope_crd::{
            HealthScope,
            v1beta1::{HealthScopeSpec, Summary, UnknownPolicy},
        },
        std::sync::Arc,
    };

    fn view(health: Health) -> ScopeView {
        ScopeView {
            namespace: "default".parse().unwrap(),
            name: "shop".parse().unwrap(),
            health,
            reason: Reason::POLICY_NOT_MET,
            message: "1 of 2 components is available".into(),
            since: Timestamp::UNIX_EPOCH,
            available: "1/2".into(),
            summary: Summary::default(),
            root_cause: Some("db: 0/1 ready, CrashLoopBackOff".into()),
            root_causes: Vec::new(),
            flapping: false,
            alarming: false,
            maintenance: None,
            recovering: None,
            stalled: Vec::new(),
            notes: Vec::new(),
            policy: PolicyView {
                min_available: 100,
                needed: 0,
                unknown_policy: UnknownPolicy::Unknown,
                min_healthy_seconds: 0,
            },
            components: Vec::new(),
            conditions: Vec::new(),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a test starts its own clock somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    fn maintained(mut view: ScopeView) -> ScopeView {
        view.maintenance = Some(MaintenanceView {
            active: true,
            until: None,
            reason: String::new(),
        });
        view
    }

    fn flapping(mut view: ScopeView) -> ScopeView {
        view.flapping = true;
        view
    }

    fn stalled(mut view: ScopeView) -> ScopeView {
        view.stalled = vec!["spec.selector is empty; name a label".into()];
        view
    }

    /// The last of these statuses being written over the one before; each comes `seconds` after the former.
    fn story(chapters: &[(i64, ScopeView)]) -> Written {
        let mut second = 1_000;
        let mut former: Option<HealthScopeStatus> = None;
        let mut status = None;
        for (seconds, view) in chapters {
            second += seconds;
            former = status;
            let now = Timestamp::from_second(second).unwrap();
            status = Some(status::desired(
                view,
                &status::OldWords::default(),
                Some(1),
                former.as_ref(),
                now,
            ));
        }
        let mut object = HealthScope::new("shop", HealthScopeSpec::default());
        object.metadata.uid = Some("2f7c1b3a-0000-4000-8000-000000000001".into());
        Written {
            former: former.map(Arc::new),
            entry: Arc::new(ScopeEntry {
                object: Arc::new(object),
                status: status.unwrap(),
                view: chapters.last().unwrap().1.clone(),
                settled: true,
            }),
            waited: Duration::ZERO,
        }
    }

    fn lines(written: &Written) -> Vec<String> {
        told(written)
            .iter()
            .map(|occurrence| {
                format!(
                    "{} {} {}",
                    occurrence.severity.as_str(),
                    occurrence.reason,
                    occurrence.note
                )
            })
            .collect()
    }

    #[test]
    fn changes_are_told_with_their_cause_and_how_long_it_took() {
        #[track_caller]
        fn check(chapters: &[(i64, ScopeView)], expected: &[&str]) {
            assert_eq!(lines(&story(chapters)), expected);
        }
        let (well, half, sick, lost) = (
            view(Health::Healthy),
            view(Health::Degraded),
            view(Health::Unhealthy),
            view(Health::Unknown),
        );
        let at = |seconds, view: &ScopeView| (seconds, view.clone());
        check(&[at(0, &sick)], &[]);
        check(&[at(0, &well), at(5, &well)], &[]);
        check(
            &[at(0, &well), at(10_920, &sick)],
            &["Warning PolicyNotMet Unhealthy after 3h 2m Healthy: db: 0/1 ready, CrashLoopBackOff"],
        );
        check(
            &[at(0, &well), at(9, &sick), at(252, &well)],
            &["Normal Recovered Healthy again after 4m 12s Unhealthy"],
        );
        check(
            &[at(0, &well), at(9, &sick), at(252, &half), at(60, &well)],
            &["Normal Recovered Healthy again after 5m 12s, the last 1m Degraded"],
        );
        check(
            &[at(0, &sick), at(30, &half)],
            &["Normal PolicyNotMet Degraded after 30s Unhealthy: db: 0/1 ready, CrashLoopBackOff"],
        );
        check(
            &[at(0, &half), at(90_000, &sick)],
            &["Warning PolicyNotMet Unhealthy after 1d 1h Degraded: db: 0/1 ready, CrashLoopBackOff"],
        );
        check(
            &[at(0, &sick), at(30, &lost)],
            &["Warning PolicyNotMet Unknown after 30s Unhealthy: db: 0/1 ready, CrashLoopBackOff"],
        );
        // A clock that went back.
        check(
            &[at(0, &sick), at(-30, &well)],
            &["Normal Recovered Healthy again after 0s Unhealthy"],
        );
        check(&[at(0, &well), at(30, &maintained(sick.clone()))], &[]);
        check(
            &[at(0, &maintained(sick.clone())), at(30, &sick)],
            &[
                "Warning PolicyNotMet Unhealthy now that the maintenance is over: db: 0/1 ready, CrashLoopBackOff",
            ],
        );
        check(
            &[at(0, &maintained(sick.clone())), at(30, &well)],
            &["Normal Recovered Healthy again after 30s Unhealthy"],
        );
        check(
            &[at(0, &well), at(1, &flapping(sick.clone()))],
            &[
                "Warning Flapping The health changes too often to be believed, now Unhealthy: db: 0/1 ready, \
                 CrashLoopBackOff. Changes are not told of until it settles",
            ],
        );
        check(
            &[at(0, &flapping(sick.clone())), at(1, &flapping(well.clone()))],
            &[],
        );
        check(
            &[at(0, &flapping(sick.clone())), at(1, &well)],
            &["Normal Settled Healthy, and no longer changing all the time"],
        );
        check(
            &[at(0, &stalled(well.clone()))],
            &["Warning InvalidSpec The spec cannot be used: spec.selector is empty; name a label"],
        );
        check(
            &[at(0, &stalled(well)), at(9, &sick)],
            &[
                "Normal Accepted The spec can be used again",
                "Warning PolicyNotMet Unhealthy after 9s Healthy: db: 0/1 ready, CrashLoopBackOff",
            ],
        );
    }

    #[test]
    fn a_default_of_the_schema_is_no_former_health() {
        let mut written = story(&[(0, view(Health::Healthy))]);
        written.former = Some(Arc::new(HealthScopeStatus {
            health: Some(Health::Unknown),
            ..HealthScopeStatus::default()
        }));
        assert_eq!(lines(&written), [""; 0]);
    }

    #[test]
    fn the_name_is_the_same_for_the_same_and_fits() {
        let written = story(&[(0, view(Health::Healthy)), (9, view(Health::Unhealthy))]);
        let [one] = <[Occurrence; 1]>::try_from(told(&written)).unwrap();
        assert_eq!(
            one.name(),
            "shop.3c241e40.2f7c1b3a-0000-4000-8000-000000000001-unhealthy"
        );
        let mut long = one;
        long.key.name = format!("{}.{}", "n".repeat(169), "n".repeat(83)).parse().unwrap();
        long.at = Timestamp::MAX;
        long.word = "unhealthy";
        assert!(long.name().len() <= 253, "{}", long.name().len());
        assert!(!long.name().contains(".."), "{}", long.name());
    }

    #[test]
    fn what_exceeds_the_allowance_is_summed_up() {
        let (well, sick) = (view(Health::Healthy), view(Health::Unhealthy));
        let to_sick = story(&[(0, well.clone()), (9, sick.clone())]);
        let to_well = story(&[(0, sick), (12, well)]);
        let start = start();
        let mut occurrences = Occurrences::default();
        let told: usize = (0..13)
            .map(|number| {
                let written = if number % 2 == 0 { &to_sick } else { &to_well };
                occurrences.handle(start, written).len()
            })
            .sum();
        assert_eq!((told, occurrences.take_swallowed()), (6, 6));
        assert_eq!(occurrences.deadline(), Some(start + REFILL));
        assert_eq!(occurrences.tick(start), []);
        let late = occurrences.tick(start + REFILL);
        assert_eq!(
            late[0].note,
            "Unhealthy after 9s Healthy: db: 0/1 ready, CrashLoopBackOff (6 more changes since 1970-01-01T00:16:49Z)"
        );
        assert_eq!((late.len(), occurrences.deadline()), (1, None));
        // Quiet scopes are forgotten.
        occurrences.handle(start + 7 * REFILL, &story(&[(0, view(Health::Healthy))]));
        assert_eq!(occurrences.scopes.len(), 0);
    }

    #[test]
    fn a_maintenance_silences_what_is_held_back() {
        let (well, sick) = (view(Health::Healthy), view(Health::Unhealthy));
        let to_sick = story(&[(0, well), (9, sick.clone())]);
        let start = start();
        let mut occurrences = Occurrences::default();
        for _ in 0..9 {
            occurrences.handle(start, &to_sick);
        }
        occurrences.handle(start, &story(&[(0, sick.clone()), (1, maintained(sick))]));
        assert_eq!(occurrences.deadline(), None);
        occurrences.clear();
        assert_eq!(occurrences.tick(start + REFILL), []);
    }

    #[test]
    fn the_longest_note_fits() {
        let mut sick = view(Health::Unhealthy);
        sick.root_cause = Some("\u{1F525}".repeat(1_000));
        let written = story(&[(0, view(Health::Healthy)), (9, sick)]);
        let mut occurrences = Occurrences::default();
        let start = start();
        for _ in 0..100 {
            occurrences.handle(start, &written);
        }
        let late = occurrences.tick(start + REFILL);
        assert!(late[0].note.len() <= MAX_NOTE_BYTES, "{}", late[0].note.len());
        assert!(late[0].note.contains("93 more changes since"), "{}", late[0].note);
    }
}
