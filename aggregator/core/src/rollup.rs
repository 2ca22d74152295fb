//! From probes to instances, from instances to components, from components to scopes: the rules of health, as pure
//! functions without state or time.
//!
//! What holds for every input (tests below): the order of components never matters; a component that gets healthier
//! never makes its scope sicker, but for one that `unknownPolicy: Ignore` takes in again; what is unknown never counts
//! as healthy; making a component required never makes a scope healthier.

use {
    healthscope_crd::{
        cycle::strongly_connected,
        effective::EffectivePolicy,
        v1beta1::{Summary, UnknownPolicy},
    },
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        probe::{ProbeKind, outcome::ProbeState},
    },
    std::cmp::Reverse,
};

use crate::view::InstanceCounts;

/// Most root causes that are named.
pub const MAX_ROOTS: usize = 5;

/// What an instance's health comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// All probes passed.
    Passing,
    /// The probe at this position failed.
    Failing(u32),
    /// The startup probe at this position has not passed.
    NotStarted(u32),
    /// The probe at this position has no state yet.
    Pending(u32),
    /// There are no probes.
    NoProbes,
}

impl Cause {
    /// The health.
    #[must_use]
    pub const fn health(self) -> Health {
        match self {
            Self::Passing => Health::Healthy,
            Self::Failing(_) => Health::Unhealthy,
            Self::NotStarted(_) | Self::Pending(_) | Self::NoProbes => Health::Unknown,
        }
    }

    /// The probe to name.
    #[must_use]
    pub const fn probe(self) -> Option<u32> {
        match self {
            Self::Failing(probe) | Self::NotStarted(probe) | Self::Pending(probe) => Some(probe),
            Self::Passing | Self::NoProbes => None,
        }
    }
}

/// An instance is the worst of its probes; of equally bad ones liveness is named before readiness, then the first.
pub fn instance(probes: impl Iterator<Item = (ProbeKind, ProbeState)>) -> Cause {
    let mut worst = (0, Cause::NoProbes);
    for (position, (kind, state)) in (0..).zip(probes) {
        let found = match (kind, state) {
            (ProbeKind::Liveness, ProbeState::Failing) => (5, Cause::Failing(position)),
            (ProbeKind::Readiness, ProbeState::Failing) => (4, Cause::Failing(position)),
            (ProbeKind::Startup, ProbeState::Failing | ProbeState::Pending) => {
                (3, Cause::NotStarted(position))
            }
            (ProbeKind::Liveness | ProbeKind::Readiness, ProbeState::Pending) => {
                (2, Cause::Pending(position))
            }
            (_, ProbeState::Passing) => (1, Cause::Passing),
        };
        if found.0 > worst.0 {
            worst = found;
        }
    }
    worst.1
}

/// The inside view of a component: what its instances say; `None` when there are none.
#[must_use]
pub const fn inside(instances: InstanceCounts) -> Option<Health> {
    let InstanceCounts {
        total,
        healthy,
        unhealthy,
        unknown: _,
    } = instances;
    if total == 0 {
        None
    } else if healthy == total {
        Some(Health::Healthy)
    } else if healthy > 0 {
        Some(Health::Degraded)
    } else if unhealthy == total {
        Some(Health::Unhealthy)
    } else {
        // Some are unknown and none is known to be good: it may be down or degraded.
        Some(Health::Unknown)
    }
}

/// The verdict of the inside view; `leaf` tells of the worst instance: its reason, and its failing check in words.
#[must_use]
pub fn inside_verdict(instances: InstanceCounts, leaf: impl FnOnce() -> (Reason, String)) -> Option<Verdict> {
    let health = inside(instances)?;
    let InstanceCounts {
        total,
        healthy,
        unhealthy,
        unknown,
    } = instances;
    if health == Health::Healthy {
        return Some(Verdict::new(health, Reason::PASSING, ""));
    }
    let (reason, message) = leaf();
    let uniform = unhealthy == total || unknown == total;
    let reason = match (uniform, unhealthy) {
        (true, _) => reason,
        (false, 0) => Reason::INSTANCES_UNKNOWN,
        (false, _) if healthy == 0 => Reason::INSTANCES_UNKNOWN,
        (false, _) => Reason::INSTANCES_UNHEALTHY,
    };
    let message = match total - healthy {
        1 if total == 1 => message,
        1 => format!("1 of {total} instances: {message}"),
        sick => format!("{sick} of {total} instances, such as {message}"),
    };
    Some(Verdict::new(health, reason, message))
}

/// A component joins the platform's view of the object with the view from inside: the worse counts, and of equally
/// bad ones the inside, because it names the check. `None` when neither is there.
#[must_use]
pub fn join(platform: Option<Verdict>, inside: Option<Verdict>) -> Option<Verdict> {
    match (platform, inside) {
        (Some(platform), Some(inside)) if platform.health > inside.health => Some(platform),
        (_, Some(inside)) => Some(inside),
        (platform, None) => platform,
    }
}

/// A component as its scope sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// How it is named among the members: its name, or `Kind/name` where they share the name.
    pub label: &'a str,
    /// Its health.
    pub health: Health,
    /// Why, for machines.
    pub reason: &'a Reason,
    /// Why, for people.
    pub message: &'a str,
    /// Whether the scope is Unhealthy as soon as it is not available.
    pub required: bool,
    /// Positions of the members that it depends on.
    pub depends_on: &'a [usize],
}

/// What a scope's components add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollup {
    /// The health, and why.
    pub verdict: Verdict,
    /// Components of each health; those left out are among them.
    pub summary: Summary,
    /// Components that must be available, of those that count.
    pub needed: u32,
    /// The root cause with its reason in words; `None` when all that counts is healthy.
    pub root_cause: Option<String>,
    /// Members that are not healthy and are not explained by others, most important first, at most [`MAX_ROOTS`].
    pub roots: Vec<usize>,
    /// For each member the one whose trouble explains its own.
    pub caused_by: Vec<Option<usize>>,
    /// For each member whether it is left out.
    pub ignored: Vec<bool>,
}

/// What the members count for under the policy.
struct Count {
    /// All that are not left out.
    counted: u32,
    /// Healthy or Degraded.
    available: u32,
    /// Neither available nor known not to be.
    undecided: u32,
    /// Counted, but not Healthy.
    imperfect: u32,
    /// A required one that is not available.
    required_down: Option<usize>,
    /// A required one of which nothing is known.
    required_undecided: Option<usize>,
}

/// Rolls components up into their scope. `members` in the order in which equals are named.
#[must_use]
pub fn scope(policy: &EffectivePolicy, members: &[Member<'_>]) -> Rollup {
    let mut summary = Summary::default();
    for member in members {
        summary.add(member.health);
    }
    let ignored: Vec<bool> = members.iter().map(|member| is_left_out(policy, member)).collect();
    let count = count(policy, members, &ignored);
    let needed = needed(count.counted, policy.min_available);
    let (health, reason) = judge(&count, needed, members.len());
    let caused_by = causes(members);
    let roots = if health == Health::Healthy {
        Vec::new()
    } else {
        roots(members, &ignored, &caused_by, health, &reason)
    };
    let root_cause = roots.first().map(|&root| {
        let more = if roots.len() > 1 {
            format!(" (and {} more)", roots.len() - 1)
        } else {
            String::new()
        };
        // The name and the count of others must survive the limit, so the message between them is cut.
        let Member {
            label,
            reason,
            message,
            ..
        } = members[root];
        let text = if message.is_empty() {
            reason.as_str()
        } else {
            message
        };
        let room = Verdict::MAX_MESSAGE_BYTES.saturating_sub(label.len() + 2 + more.len());
        format!("{label}: {}{more}", healthscope_shared::one_line(text, room))
    });
    let message = message(
        &count,
        needed,
        &reason,
        members,
        roots.first().copied(),
        root_cause.as_deref(),
    );
    let roots = roots.into_iter().take(MAX_ROOTS).collect();
    Rollup {
        verdict: Verdict::new(health, reason, message),
        summary,
        needed,
        root_cause,
        roots,
        caused_by,
        ignored,
    }
}

fn is_left_out(policy: &EffectivePolicy, member: &Member<'_>) -> bool {
    policy.unknown == UnknownPolicy::Ignore && member.health == Health::Unknown && !member.required
}

fn count(policy: &EffectivePolicy, members: &[Member<'_>], ignored: &[bool]) -> Count {
    let mut count = Count {
        counted: 0,
        available: 0,
        undecided: 0,
        imperfect: 0,
        required_down: None,
        required_undecided: None,
    };
    for (position, member) in members.iter().enumerate() {
        if ignored[position] {
            continue;
        }
        count.counted += 1;
        count.imperfect += u32::from(member.health != Health::Healthy);
        match (member.health, policy.unknown) {
            (Health::Healthy | Health::Degraded, _) => count.available += 1,
            (Health::Unknown, UnknownPolicy::Unknown | UnknownPolicy::Ignore) => {
                count.undecided += 1;
                if member.required {
                    count.required_undecided.get_or_insert(position);
                }
            }
            (Health::Unhealthy, _) | (Health::Unknown, UnknownPolicy::Unhealthy) => {
                if member.required {
                    count.required_down.get_or_insert(position);
                }
            }
        }
    }
    count
}

/// A percentage of the components, rounded up to whole ones.
#[must_use]
pub fn needed(counted: u32, min_available: u8) -> u32 {
    let needed = (u64::from(counted) * u64::from(min_available)).div_ceil(100);
    u32::try_from(needed).unwrap_or(u32::MAX)
}

fn judge(count: &Count, needed: u32, members: usize) -> (Health, Reason) {
    let Count {
        counted,
        available,
        undecided,
        imperfect,
        required_down,
        required_undecided,
    } = *count;
    if members == 0 {
        (Health::Healthy, Reason::NO_COMPONENTS)
    } else if counted == 0 {
        (Health::Unknown, Reason::ALL_IGNORED)
    } else if required_down.is_some() {
        (Health::Unhealthy, Reason::REQUIRED_UNAVAILABLE)
    } else if available + undecided < needed {
        (Health::Unhealthy, Reason::POLICY_NOT_MET)
    } else if available < needed || required_undecided.is_some() {
        (Health::Unknown, Reason::UNDECIDED)
    } else if imperfect > 0 {
        (Health::Degraded, Reason::SOME_NOT_HEALTHY)
    } else {
        (Health::Healthy, Reason::ALL_HEALTHY)
    }
}

/// For each member that is not well, the unhealthy member at the end of its dependencies.
///
/// A dependency is followed from what is Unhealthy or Degraded through whatever is not Healthy to what is Unhealthy. Of
/// several ends the first member is named. Members that depend on each other in a cycle explain nothing to each other.
fn causes(members: &[Member<'_>]) -> Vec<Option<usize>> {
    let mut ends: Vec<Option<usize>> = vec![None; members.len()];
    if members
        .iter()
        .all(|member| member.depends_on.is_empty() || member.health == Health::Healthy)
    {
        return ends;
    }
    let edges: Vec<Vec<usize>> = members.iter().map(|member| member.depends_on.to_vec()).collect();
    let group = strongly_connected(&edges);
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&position| group[position]);
    for position in order {
        if members[position].health == Health::Healthy {
            continue;
        }
        ends[position] = members[position]
            .depends_on
            .iter()
            .filter(|&&needed| group[needed] != group[position])
            .filter_map(|&needed| {
                ends[needed].or((members[needed].health == Health::Unhealthy).then_some(needed))
            })
            .min();
    }
    for (end, member) in ends.iter_mut().zip(members) {
        match member.health {
            Health::Unhealthy | Health::Degraded => {}
            // Why nothing is known is a trouble of its own.
            Health::Unknown | Health::Healthy => *end = None,
        }
    }
    ends
}

fn roots(
    members: &[Member<'_>],
    ignored: &[bool],
    caused_by: &[Option<usize>],
    health: Health,
    reason: &Reason,
) -> Vec<usize> {
    let all_ignored = *reason == Reason::ALL_IGNORED;
    let mut explained = vec![(0_u32, false); members.len()];
    for (position, cause) in caused_by.iter().enumerate() {
        if let Some(cause) = *cause {
            explained[cause].0 += 1;
            explained[cause].1 |= members[position].required;
        }
    }
    let mut roots: Vec<usize> = (0..members.len())
        .filter(|&position| {
            members[position].health != Health::Healthy
                && caused_by[position].is_none()
                && (all_ignored || !ignored[position])
        })
        .collect();
    let required_first = *reason == Reason::REQUIRED_UNAVAILABLE;
    roots.sort_by_key(|&position| {
        let member = &members[position];
        let matters = member.required || explained[position].1;
        let rank = match (member.health, health) {
            (Health::Unknown, Health::Unknown) => 0,
            (Health::Unhealthy, _) => 1,
            (Health::Unknown, _) => 2,
            (Health::Degraded, _) => 3,
            (Health::Healthy, _) => 4,
        };
        let passes_over = required_first && !(matters && member.health != Health::Degraded);
        (
            passes_over,
            rank,
            !matters,
            Reverse(explained[position].0),
            position,
        )
    });
    roots
}

fn message(
    count: &Count,
    needed: u32,
    reason: &Reason,
    members: &[Member<'_>],
    root: Option<usize>,
    root_cause: Option<&str>,
) -> String {
    let Some(root_cause) = root_cause else {
        return String::new();
    };
    let Count {
        counted,
        available,
        undecided,
        ..
    } = *count;
    if *reason == Reason::POLICY_NOT_MET {
        format!("{available} of {counted} available, {needed} needed: {root_cause}")
    } else if *reason == Reason::UNDECIDED {
        format!("{undecided} of {counted} unknown: {root_cause}")
    } else if *reason == Reason::ALL_IGNORED {
        format!("nothing is known of any component: {root_cause}")
    } else if *reason == Reason::REQUIRED_UNAVAILABLE {
        match count.required_down {
            Some(down) if !root.is_some_and(|root| members[root].required) => {
                format!("required {} is not available: {root_cause}", members[down].label)
            }
            Some(_) | None => format!("required {root_cause}"),
        }
    } else {
        root_cause.into()
    }
}
