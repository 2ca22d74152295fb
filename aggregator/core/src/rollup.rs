//! From probes to instances, from instances to components, from components to scopes: the rules of health, as pure
//! functions without state or time.
//!
//! What holds for every input (tests below): the order of components never matters; a component that gets healthier
//! never makes its scope sicker, but for one that `unknownPolicy: Ignore` takes in again; what is unknown never counts
//! as healthy; making a component required never makes a scope healthier (an unknown one that `Ignore` left out counts
//! from then on, so the scope is at best Unknown).

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

#[cfg(test)]
mod tests {
    use {
        super::*,
        Health::{Degraded, Healthy, Unhealthy, Unknown},
        ProbeKind::{Liveness, Readiness, Startup},
        ProbeState::{Failing, Passing, Pending},
        proptest::prelude::*,
        std::time::Duration,
    };

    static UNKNOWN: Reason = Reason::UNKNOWN;

    #[test]
    fn an_instance_is_the_worst_of_its_probes() {
        #[track_caller]
        fn check(probes: &[(ProbeKind, ProbeState)], health: Health, cause: Cause) {
            let found = instance(probes.iter().copied());
            assert_eq!((found.health(), found), (health, cause));
        }
        check(&[], Unknown, Cause::NoProbes);
        check(&[(Liveness, Passing)], Healthy, Cause::Passing);
        check(
            &[(Liveness, Passing), (Readiness, Passing), (Startup, Passing)],
            Healthy,
            Cause::Passing,
        );
        check(&[(Readiness, Pending)], Unknown, Cause::Pending(0));
        check(
            &[(Readiness, Passing), (Readiness, Pending)],
            Unknown,
            Cause::Pending(1),
        );
        check(&[(Readiness, Failing)], Unhealthy, Cause::Failing(0));
        check(&[(Liveness, Failing)], Unhealthy, Cause::Failing(0));
        check(
            &[(Readiness, Failing), (Liveness, Failing)],
            Unhealthy,
            Cause::Failing(1),
        );
        check(
            &[(Readiness, Failing), (Readiness, Failing)],
            Unhealthy,
            Cause::Failing(0),
        );
        check(
            &[(Readiness, Pending), (Liveness, Failing)],
            Unhealthy,
            Cause::Failing(1),
        );
        check(
            &[(Liveness, Pending), (Startup, Pending)],
            Unknown,
            Cause::NotStarted(1),
        );
        // A startup probe that fails has not passed; only the platform would end the process.
        check(
            &[(Startup, Failing), (Readiness, Pending)],
            Unknown,
            Cause::NotStarted(0),
        );
        check(
            &[(Startup, Passing), (Readiness, Passing)],
            Healthy,
            Cause::Passing,
        );
    }

    fn counts(healthy: u32, unhealthy: u32, unknown: u32) -> InstanceCounts {
        InstanceCounts {
            total: healthy + unhealthy + unknown,
            healthy,
            unhealthy,
            unknown,
        }
    }

    #[test]
    fn a_component_is_what_its_instances_say() {
        #[track_caller]
        fn check(healthy: u32, unhealthy: u32, unknown: u32, expected: Option<(Health, &str, &str)>) {
            let leaf = || {
                (
                    Reason::READINESS_FAILED,
                    "readiness tcp :1 on a: refused".to_owned(),
                )
            };
            let found = inside_verdict(counts(healthy, unhealthy, unknown), leaf);
            let found = found
                .as_ref()
                .map(|found| (found.health, found.reason.as_str(), found.message.as_str()));
            assert_eq!(found, expected);
            assert_eq!(
                inside(counts(healthy, unhealthy, unknown)),
                expected.map(|(health, ..)| health)
            );
        }
        check(0, 0, 0, None);
        check(1, 0, 0, Some((Healthy, "Passing", "")));
        check(3, 0, 0, Some((Healthy, "Passing", "")));
        check(
            0,
            1,
            0,
            Some((Unhealthy, "ReadinessFailed", "readiness tcp :1 on a: refused")),
        );
        check(
            0,
            3,
            0,
            Some((
                Unhealthy,
                "ReadinessFailed",
                "3 of 3 instances, such as readiness tcp :1 on a: refused",
            )),
        );
        check(
            2,
            1,
            0,
            Some((
                Degraded,
                "InstancesUnhealthy",
                "1 of 3 instances: readiness tcp :1 on a: refused",
            )),
        );
        check(
            2,
            0,
            1,
            Some((
                Degraded,
                "InstancesUnknown",
                "1 of 3 instances: readiness tcp :1 on a: refused",
            )),
        );
        check(
            1,
            1,
            1,
            Some((
                Degraded,
                "InstancesUnhealthy",
                "2 of 3 instances, such as readiness tcp :1 on a: refused",
            )),
        );
        check(
            0,
            0,
            1,
            Some((Unknown, "ReadinessFailed", "readiness tcp :1 on a: refused")),
        );
        // The unknown one may be good: down or degraded, nobody can say.
        check(
            0,
            1,
            1,
            Some((
                Unknown,
                "InstancesUnknown",
                "2 of 2 instances, such as readiness tcp :1 on a: refused",
            )),
        );
    }

    #[test]
    fn a_component_is_the_worse_of_platform_and_inside() {
        #[track_caller]
        fn check(platform: Option<Health>, inside: Option<Health>, expected: Option<&str>) {
            let verdict = |of: &'static str| {
                move |health| Verdict::new(health, Reason::UNKNOWN, format!("{of} {health}"))
            };
            let found = join(platform.map(verdict("platform")), inside.map(verdict("inside")));
            assert_eq!(found.as_ref().map(|found| found.message.as_str()), expected);
        }
        check(None, None, None);
        check(Some(Degraded), None, Some("platform Degraded"));
        check(None, Some(Degraded), Some("inside Degraded"));
        check(Some(Healthy), Some(Unhealthy), Some("inside Unhealthy"));
        check(Some(Unhealthy), Some(Healthy), Some("platform Unhealthy"));
        check(Some(Unhealthy), Some(Unhealthy), Some("inside Unhealthy"));
        check(Some(Unknown), Some(Degraded), Some("platform Unknown"));
    }

    fn policy(min_available: u8, unknown: UnknownPolicy) -> EffectivePolicy {
        EffectivePolicy {
            min_available,
            unknown,
            min_healthy: Duration::ZERO,
        }
    }

    /// Members from letters: H, D, U(nhealthy), ?; a `!` behind makes one required.
    fn members(text: &str) -> Vec<(Health, bool)> {
        let mut members: Vec<(Health, bool)> = Vec::new();
        for letter in text.chars() {
            let health = match letter {
                'H' => Healthy,
                'D' => Degraded,
                'U' => Unhealthy,
                '?' => Unknown,
                '!' => {
                    members.last_mut().expect("`!` comes behind a letter").1 = true;
                    continue;
                }
                other => panic!("{other:?} is no member"),
            };
            members.push((health, false));
        }
        members
    }

    fn roll_up(policy: &EffectivePolicy, members: &[(Health, bool)]) -> Rollup {
        let labels: Vec<String> = (0..members.len())
            .map(|position| format!("m{position}"))
            .collect();
        let members: Vec<Member<'_>> = members
            .iter()
            .zip(&labels)
            .map(|(&(health, required), label)| Member {
                label,
                health,
                reason: &UNKNOWN,
                message: "",
                required,
                depends_on: &[],
            })
            .collect();
        scope(policy, &members)
    }

    #[track_caller]
    fn check(min_available: u8, unknown: UnknownPolicy, text: &str, health: Health, reason: Reason) {
        let found = roll_up(&policy(min_available, unknown), &members(text));
        assert_eq!(
            (found.verdict.health, found.verdict.reason),
            (health, reason),
            "{text}"
        );
    }

    #[test]
    fn the_policy_decides() {
        let check =
            |percent, text, health, reason| check(percent, UnknownPolicy::Unknown, text, health, reason);
        check(100, "", Healthy, Reason::NO_COMPONENTS);
        check(100, "HHH", Healthy, Reason::ALL_HEALTHY);
        check(100, "HHD", Degraded, Reason::SOME_NOT_HEALTHY);
        check(100, "DDD", Degraded, Reason::SOME_NOT_HEALTHY);
        check(100, "HHU", Unhealthy, Reason::POLICY_NOT_MET);
        check(100, "HH?", Unknown, Reason::UNDECIDED);
        check(100, "???", Unknown, Reason::UNDECIDED);
        // However the unknown one turns out, one of three is down.
        check(100, "HU?", Unhealthy, Reason::POLICY_NOT_MET);
        check(67, "HHU", Unhealthy, Reason::POLICY_NOT_MET);
        check(66, "HHU", Degraded, Reason::SOME_NOT_HEALTHY);
        check(50, "HU", Degraded, Reason::SOME_NOT_HEALTHY);
        check(50, "HU?", Unknown, Reason::UNDECIDED);
        check(50, "HH?", Degraded, Reason::SOME_NOT_HEALTHY);
        check(50, "UU?", Unhealthy, Reason::POLICY_NOT_MET);
        check(75, "HHHU", Degraded, Reason::SOME_NOT_HEALTHY);
        check(0, "UUU", Degraded, Reason::SOME_NOT_HEALTHY);
        check(0, "???", Degraded, Reason::SOME_NOT_HEALTHY);
        check(1, "UUH", Degraded, Reason::SOME_NOT_HEALTHY);
        check(1, "UUU", Unhealthy, Reason::POLICY_NOT_MET);
    }

    #[test]
    fn a_required_component_decides_alone() {
        let check =
            |percent, text, health, reason| check(percent, UnknownPolicy::Unknown, text, health, reason);
        check(0, "HHU!", Unhealthy, Reason::REQUIRED_UNAVAILABLE);
        check(0, "HH?!", Unknown, Reason::UNDECIDED);
        check(0, "HHD!", Degraded, Reason::SOME_NOT_HEALTHY);
        check(50, "H!HU", Degraded, Reason::SOME_NOT_HEALTHY);
        check(50, "U!?!H", Unhealthy, Reason::REQUIRED_UNAVAILABLE);
        check(100, "H!H!", Healthy, Reason::ALL_HEALTHY);
    }

    #[test]
    fn unknown_may_count_as_unavailable() {
        let check =
            |percent, text, health, reason| check(percent, UnknownPolicy::Unhealthy, text, health, reason);
        check(100, "HH?", Unhealthy, Reason::POLICY_NOT_MET);
        check(50, "H?", Degraded, Reason::SOME_NOT_HEALTHY);
        check(0, "H?!", Unhealthy, Reason::REQUIRED_UNAVAILABLE);
        check(100, "???", Unhealthy, Reason::POLICY_NOT_MET);
        check(0, "???", Degraded, Reason::SOME_NOT_HEALTHY);
    }

    #[test]
    fn unknown_may_be_left_out() {
        let check =
            |percent, text, health, reason| check(percent, UnknownPolicy::Ignore, text, health, reason);
        check(100, "HH?", Healthy, Reason::ALL_HEALTHY);
        check(100, "HD?", Degraded, Reason::SOME_NOT_HEALTHY);
        check(100, "HU?", Unhealthy, Reason::POLICY_NOT_MET);
        check(50, "HU??", Degraded, Reason::SOME_NOT_HEALTHY);
        check(100, "??", Unknown, Reason::ALL_IGNORED);
        check(0, "??", Unknown, Reason::ALL_IGNORED);
        check(100, "", Healthy, Reason::NO_COMPONENTS);
        // Never a required one.
        check(100, "H?!", Unknown, Reason::UNDECIDED);
        check(0, "H?!?", Unknown, Reason::UNDECIDED);
    }

    /// Members as `name health [!] [> dependency,...]`; the words of the rollup.
    struct Told {
        message: String,
        root_cause: Option<String>,
        causes: Vec<(String, String)>,
        roots: Vec<String>,
    }

    fn tell(policy: &EffectivePolicy, text: &str) -> Told {
        let lines: Vec<(&str, &str, Vec<&str>)> = text
            .split(';')
            .map(|member| {
                let (member, depends_on) = member.split_once('>').unwrap_or((member, ""));
                let (name, health) = member.trim().split_once(' ').expect("name health");
                (
                    name,
                    health.trim(),
                    depends_on
                        .split(',')
                        .map(str::trim)
                        .filter(|name| !name.is_empty())
                        .collect(),
                )
            })
            .collect();
        let position = |name: &str| lines.iter().position(|line| line.0 == name).expect("a member");
        let parsed: Vec<(Health, bool)> = lines.iter().map(|line| members(line.1)[0]).collect();
        let edges: Vec<Vec<usize>> = lines
            .iter()
            .map(|line| line.2.iter().map(|name| position(name)).collect())
            .collect();
        let texts: Vec<String> = lines
            .iter()
            .map(|line| format!("{} is {}", line.0, line.1))
            .collect();
        let members: Vec<Member<'_>> = (0..lines.len())
            .map(|at| Member {
                label: lines[at].0,
                health: parsed[at].0,
                reason: &UNKNOWN,
                message: &texts[at],
                required: parsed[at].1,
                depends_on: &edges[at],
            })
            .collect();
        let found = scope(policy, &members);
        let name = |at: usize| lines[at].0.to_owned();
        Told {
            message: found.verdict.message,
            root_cause: found.root_cause,
            causes: found
                .caused_by
                .iter()
                .enumerate()
                .filter_map(|(at, cause)| Some((name(at), name((*cause)?))))
                .collect(),
            roots: found.roots.into_iter().map(name).collect(),
        }
    }

    #[track_caller]
    fn check_cause(text: &str, root_cause: Option<&str>, causes: &[(&str, &str)]) {
        let told = tell(&policy(100, UnknownPolicy::Unknown), text);
        assert_eq!(told.root_cause.as_deref(), root_cause, "{text}");
        let causes: Vec<(String, String)> = causes
            .iter()
            .map(|&(symptom, cause)| (symptom.into(), cause.into()))
            .collect();
        assert_eq!(told.causes, causes, "{text}");
    }

    #[test]
    fn the_root_is_named_and_not_the_symptoms() {
        check_cause("cart H; db H; web H > db", None, &[]);
        check_cause("db U; web U > db", Some("db: db is U"), &[("web", "db")]);
        check_cause("web U > db; db U", Some("db: db is U"), &[("web", "db")]);
        check_cause(
            "cart U > db; db U; web U > cart",
            Some("db: db is U"),
            &[("cart", "db"), ("web", "db")],
        );
        // Through what is not well, whatever it is.
        check_cause(
            "cart D > db; db U; web U > cart",
            Some("db: db is U"),
            &[("cart", "db"), ("web", "db")],
        );
        check_cause(
            "cart ? > db; db U; web U > cart",
            Some("db: db is U (and 1 more)"),
            &[("web", "db")],
        );
        // But not through what is well.
        check_cause(
            "cart H > db; db U; web U > cart",
            Some("db: db is U (and 1 more)"),
            &[],
        );
        // Unknown and Degraded explain nothing.
        check_cause("db ?; web U > db", Some("web: web is U (and 1 more)"), &[]);
        check_cause("db D; web U > db", Some("web: web is U (and 1 more)"), &[]);
        // Healthy ones have no cause.
        check_cause("db U; web H > db", Some("db: db is U"), &[]);
        check_cause(
            "cache U; db U; web U > db, cache",
            Some("cache: cache is U (and 1 more)"),
            &[("web", "cache")],
        );
    }

    #[test]
    fn the_root_that_explains_most_is_named_first() {
        check_cause(
            "a U; b U; c U > b; d U > b",
            Some("b: b is U (and 1 more)"),
            &[("c", "b"), ("d", "b")],
        );
        check_cause("a D; b ?; c U", Some("c: c is U (and 2 more)"), &[]);
        // What makes the scope Unknown is what is unknown.
        let told = tell(&policy(50, UnknownPolicy::Unknown), "a U; b ?; c H");
        assert_eq!(told.roots, ["b", "a"]);
        assert_eq!(told.message, "1 of 3 unknown: b: b is ? (and 1 more)");
        // What makes the scope Unhealthy is what is required.
        let told = tell(&policy(0, UnknownPolicy::Unknown), "a U; b U!; c U > a; d U > a");
        assert_eq!(told.message, "required b: b is U! (and 1 more)");
        let told = tell(
            &policy(0, UnknownPolicy::Unknown),
            "a U; b U! > a; c U; d U > c; e U > c",
        );
        assert_eq!(
            told.message,
            "required b is not available: a: a is U (and 1 more)"
        );
        let told = tell(&policy(100, UnknownPolicy::Unknown), "a U; b H");
        assert_eq!(told.message, "1 of 2 available, 2 needed: a: a is U");
        let told = tell(&policy(100, UnknownPolicy::Ignore), "a ?; b ?");
        assert_eq!(
            told.message,
            "nothing is known of any component: a: a is ? (and 1 more)"
        );
        // Those left out are not named beside others.
        let told = tell(&policy(100, UnknownPolicy::Ignore), "a ?; b D");
        assert_eq!(told.roots, ["b"]);
    }

    #[test]
    fn members_in_a_cycle_explain_nothing_to_each_other() {
        check_cause("a U > b; b U > a", Some("a: a is U (and 1 more)"), &[]);
        check_cause(
            "a U > b; b U > a, c; c U",
            Some("c: c is U (and 1 more)"),
            &[("b", "c")],
        );
    }

    #[test]
    fn long_texts_are_cut_in_the_middle() {
        let label = "x".repeat(300);
        let member = |label| Member {
            label,
            health: Unhealthy,
            reason: &UNKNOWN,
            message: "y",
            required: false,
            depends_on: &[],
        };
        let found = scope(
            &policy(100, UnknownPolicy::Unknown),
            &[member(&label), member("z")],
        );
        assert!(found.verdict.message.len() <= Verdict::MAX_MESSAGE_BYTES);
    }

    fn any_health() -> impl Strategy<Value = Health> {
        proptest::sample::select(&Health::ALL[..])
    }

    fn any_members() -> impl Strategy<Value = Vec<(Health, bool)>> {
        proptest::collection::vec((any_health(), proptest::bool::weighted(0.2)), 1..9)
    }

    fn any_policy() -> impl Strategy<Value = EffectivePolicy> {
        let unknown = prop_oneof![
            Just(UnknownPolicy::Unknown),
            Just(UnknownPolicy::Unhealthy),
            Just(UnknownPolicy::Ignore)
        ];
        (0..=100_u8, unknown).prop_map(|(percent, unknown)| policy(percent, unknown))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_order_of_components_never_matters(
            policy in any_policy(),
            (members, shuffled) in any_members()
                .prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
        ) {
            let (one, other) = (roll_up(&policy, &members), roll_up(&policy, &shuffled));
            prop_assert_eq!(one.verdict.health, other.verdict.health);
            prop_assert_eq!(one.verdict.reason, other.verdict.reason);
            prop_assert_eq!((one.summary, one.needed), (other.summary, other.needed));
        }

        #[test]
        fn a_healthier_component_never_makes_a_scope_sicker(
            policy in any_policy(),
            members in any_members(),
            position in any::<proptest::sample::Index>(),
            health in any_health(),
        ) {
            let position = position.index(members.len());
            let (before, required) = members[position];
            let health = health.min(before);
            // What was left out and is taken in again below Healthy may tell of trouble that was not counted.
            let is_taken_in = policy.unknown == UnknownPolicy::Ignore && before == Unknown && !required;
            let health = if is_taken_in { Healthy } else { health };
            let mut better = members.clone();
            better[position].0 = health;
            let (one, other) = (roll_up(&policy, &members), roll_up(&policy, &better));
            // Where the last one that counted is left out, nothing is left that could be judged.
            let nothing_counts = other.verdict.reason == Reason::ALL_IGNORED;
            prop_assert!(
                nothing_counts || other.verdict.health <= one.verdict.health,
                "{:?} then {:?}",
                one.verdict,
                other.verdict
            );
        }

        #[test]
        fn unknown_never_counts_as_healthy(policy in any_policy(), members in any_members()) {
            let found = roll_up(&policy, &members);
            let counts = |&(position, &(health, _)): &(usize, &(Health, bool))| {
                health == Unknown && !found.ignored[position]
            };
            if members.iter().enumerate().any(|member| counts(&member)) {
                prop_assert_ne!(found.verdict.health, Healthy);
            }
            if members.iter().all(|&(health, _)| health == Unknown) && policy.min_available > 0 {
                prop_assert!(!found.verdict.health.is_available());
            }
            for (position, &(health, required)) in members.iter().enumerate() {
                prop_assert!(!found.ignored[position] || health == Unknown && !required);
            }
        }

        #[test]
        fn a_requirement_never_makes_a_scope_healthier(
            policy in any_policy(),
            members in any_members(),
            position in any::<proptest::sample::Index>(),
        ) {
            let position = position.index(members.len());
            // What was left out and now counts, undecided, may be what the quorum lacks: no more than that is lost.
            let is_taken_in = policy.unknown == UnknownPolicy::Ignore && members[position].0 == Unknown;
            let loose: Vec<_> =
                members.iter().enumerate().map(|(at, &(health, is))| (health, is && at != position)).collect();
            let strict: Vec<_> =
                members.iter().enumerate().map(|(at, &(health, is))| (health, is || at == position)).collect();
            let (loose, strict) = (roll_up(&policy, &loose), roll_up(&policy, &strict));
            let floor = if is_taken_in { Unknown } else { loose.verdict.health };
            prop_assert!(strict.verdict.health >= floor);
        }

        #[test]
        fn a_stricter_quorum_never_makes_a_scope_healthier(policy in any_policy(), members in any_members()) {
            let stricter = EffectivePolicy { min_available: policy.min_available.saturating_add(20).min(100), ..policy };
            prop_assert!(
                roll_up(&stricter, &members).verdict.health >= roll_up(&policy, &members).verdict.health
            );
        }

        #[test]
        fn causes_are_unhealthy_and_no_symptom_is_a_root(
            healths in proptest::collection::vec(any_health(), 1..9),
            edges in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 0..16),
        ) {
            let mut depends_on = vec![Vec::new(); healths.len()];
            for (from, to) in edges {
                depends_on[from.index(healths.len())].push(to.index(healths.len()));
            }
            let labels: Vec<String> = (0..healths.len()).map(|at| format!("m{at}")).collect();
            let members: Vec<Member<'_>> = (0..healths.len())
                .map(|at| Member {
                    label: &labels[at],
                    health: healths[at],
                    reason: &UNKNOWN,
                    message: "",
                    required: false,
                    depends_on: &depends_on[at],
                })
                .collect();
            let found = scope(&policy(100, UnknownPolicy::Unknown), &members);
            for (at, cause) in found.caused_by.iter().enumerate() {
                if let Some(cause) = *cause {
                    prop_assert_eq!(healths[cause], Unhealthy);
                    prop_assert!(matches!(healths[at], Unhealthy | Degraded));
                    prop_assert!(found.caused_by[cause].is_none(), "a cause is a root");
                    prop_assert!(!found.roots.contains(&at));
                }
            }
            prop_assert_eq!(found.root_cause.is_some(), found.verdict.health != Healthy);
        }
    }
}
