//! One scope between publications: its spec in force, its members, and what damps its health.
//!
//! Builds the scope's view from the summaries of its members; knows neither agents nor the store.

use {
    crate::{
        damping::{Damping, HealthFlap, Shown},
        event::Now,
        membership::Members,
        rollup::{self, Rollup},
        snapshot::ScopeEntry,
        status::{self, OldWords},
        view::{ComponentSummary, MaintenanceView, MemberView, PolicyView, RecoveringView, ScopeView},
        wanted::usable,
    },
    healthscope_crd::{
        HealthScope, Unreadable, condition,
        effective::{EffectivePolicy, EffectiveScope},
        v1beta1::{HealthScopeSpec, HealthScopeStatus, Summary},
        writer::{Versions, writers},
    },
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{Name, ScopeKey},
    },
    jiff::{SignedDuration, Timestamp},
    std::{
        collections::BTreeSet,
        sync::Arc,
        time::{Duration, Instant},
    },
};

/// A maintenance ends by the wall clock, which may jump: it is looked at least so often.
const WALL_CHECK: Duration = Duration::from_secs(60);
/// A new scope has this long to learn of members that have not been listed yet, before it is Unknown for them.
const SYNC_HOLD: Duration = Duration::from_secs(10);

/// A scope.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) key: ScopeKey,
    pub(crate) object: Arc<HealthScope>,
    /// Versions of the API that the object's writers speak.
    pub(crate) speaks: Versions,
    /// The spec in force: that of `object`, or the last one that could be used.
    pub(crate) spec: Option<Arc<EffectiveScope>>,
    /// Why the spec of `object` cannot be used.
    pub(crate) errors: Vec<String>,
    /// The cycle of scopes that it is part of.
    pub(crate) cycle: Option<Arc<str>>,
    /// What is nested is rebuilt first: scopes of lower rank.
    pub(crate) rank: usize,
    /// Components that belong to it by label.
    pub(crate) by_label: BTreeSet<u32>,
    pub(crate) members: Members,
    /// Required names that no member has.
    pub(crate) missing: Vec<Name>,
    /// Whether `members` must be resolved again.
    pub(crate) members_dirty: bool,
    /// Its entry in the table of components, when another scope names it.
    pub(crate) component: Option<u32>,
    damping: Damping,
    flap: HealthFlap,
    health: Option<Health>,
    since: Timestamp,
    /// When this object was first seen.
    seen: Instant,
    /// What the object's status said when it was first seen: an aggregator before this one wrote it.
    inherited: Option<Box<HealthScopeStatus>>,
    pub(crate) entry: Option<Arc<ScopeEntry>>,
    /// When to look again though nothing happens.
    pub(crate) deadline: Option<Instant>,
}

/// How much is known of the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing: they speak to the replica that serves.
    StandsBy,
    /// They may still come for the first time.
    Starting,
    /// Those that have not come are late.
    Started,
}

/// The health of a scope changed.
#[derive(Debug)]
pub(crate) struct ScopeChange {
    pub(crate) from: Health,
    pub(crate) to: Health,
    pub(crate) maintenance: bool,
    pub(crate) verdict: Verdict,
}

impl Scope {
    /// A scope as configured; `None` when the object does not even have a usable name.
    pub(crate) fn new(object: Arc<HealthScope>, now: Now) -> Option<Self> {
        let (spec, errors) = match usable(&object) {
            Ok(spec) => (Some(Arc::new(spec)), Vec::new()),
            Err(errors) => (None, errors),
        };
        Self::with(object, spec, errors, now)
    }

    /// A scope whose spec cannot even be read.
    pub(crate) fn unreadable(unreadable: &Unreadable, now: Now) -> Option<Self> {
        let Unreadable {
            metadata,
            status,
            error,
        } = unreadable;
        let object = HealthScope {
            metadata: metadata.clone(),
            spec: HealthScopeSpec::default(),
            status: status.clone(),
        };
        Self::with(Arc::new(object), None, vec![error.to_string()], now)
    }

    fn with(
        object: Arc<HealthScope>,
        spec: Option<Arc<EffectiveScope>>,
        errors: Vec<String>,
        now: Now,
    ) -> Option<Self> {
        let key = match &spec {
            Some(spec) => spec.key.clone(),
            None => ScopeKey {
                namespace: object
                    .metadata
                    .namespace
                    .as_deref()
                    .unwrap_or("default")
                    .parse()
                    .ok()?,
                name: object.metadata.name.as_deref()?.parse().ok()?,
            },
        };
        // The schema's defaults make a status that nobody wrote; what was written is about a generation.
        let inherited = object
            .status
            .clone()
            .filter(|status| status.health.is_some() && status.observed_generation.is_some());
        let (health, since) = match &inherited {
            Some(status) => (status.health, condition::since(status, condition::HEALTHY)),
            None => (None, None),
        };
        let speaks = writers(object.metadata.managed_fields.as_deref().unwrap_or_default());
        Some(Self {
            key,
            object,
            speaks,
            spec,
            errors,
            cycle: None,
            rank: 0,
            by_label: BTreeSet::new(),
            members: Members::default(),
            missing: Vec::new(),
            members_dirty: true,
            component: None,
            damping: Damping::default(),
            flap: HealthFlap::new(now.instant),
            health,
            since: since.unwrap_or(now.wall),
            seen: now.instant,
            inherited: inherited.map(Box::new),
            entry: None,
            deadline: None,
        })
    }

    /// Takes over what the scope was under its former object.
    pub(crate) fn succeed(&mut self, former: Self) {
        if self.spec.is_none() {
            self.spec = former.spec;
        }
        self.damping = former.damping;
        self.flap = former.flap;
        self.health = former.health;
        self.since = former.since;
        self.seen = former.seen;
        self.inherited = former.inherited;
        self.entry = former.entry;
    }

    /// Takes over what was shown of the scope under its former object, while another replica serves it.
    ///
    /// What was settled here is older than what the object says.
    pub(crate) fn follow(&mut self, former: Self) {
        self.entry = former.entry.filter(|entry| !entry.settled);
    }

    /// Rolls the members up again; the entry when it differs from the former, and the change of health.
    ///
    /// `summaries` are those of the members, in their order.
    pub(crate) fn rebuild(
        &mut self,
        summaries: &[Arc<ComponentSummary>],
        old_words: &OldWords,
        stage: Stage,
        now: Now,
    ) -> (Option<Arc<ScopeEntry>>, Option<ScopeChange>) {
        let policy = self
            .spec
            .as_ref()
            .map_or_else(EffectivePolicy::default, |spec| spec.policy);
        let mut rollup = self.roll_up(&policy, summaries);
        let (settled, settled_at) = self.is_settled(rollup.verdict.health, summaries, stage, now.instant);
        if let Some(last) = self.last_word(settled) {
            rollup.verdict = last;
        }
        let flapping = self.flap.observe(rollup.verdict.health, now.instant);
        let Shown {
            verdict,
            recovering,
            deadline,
        } = self
            .damping
            .observe(&rollup.verdict, policy.min_healthy, now.instant);
        let (maintenance, maintenance_deadline) = self.maintenance(now);
        self.deadline = [deadline, self.flap.deadline(), maintenance_deadline, settled_at]
            .into_iter()
            .flatten()
            .min();

        let change = self
            .health
            .filter(|&from| settled && from != verdict.health)
            .map(|from| ScopeChange {
                from,
                to: verdict.health,
                maintenance: maintenance.as_ref().is_some_and(|maintenance| maintenance.active),
                verdict: verdict.clone(),
            });
        if settled && self.health != Some(verdict.health) {
            self.health = Some(verdict.health);
            self.since = now.wall;
        }
        let recovering = recovering.map(|(health, at)| RecoveringView {
            health,
            at: later(now, at),
        });
        let previous = self.entry.as_ref();
        let mut view = self.view(
            &policy,
            verdict,
            rollup,
            summaries,
            flapping,
            maintenance,
            recovering,
        );
        if view.recovering.is_some() && view.root_cause.is_none() {
            // What is shown of the health is what was; so is why.
            view.root_cause = previous.and_then(|previous| previous.view.root_cause.clone());
        }
        let written = previous.filter(|entry| entry.settled).map(|entry| &entry.status);
        let written = written.or(self.inherited.as_deref());
        let status = match written {
            Some(written) if !settled => written.clone(),
            Some(_) | None => status::desired(
                &view,
                old_words,
                self.object.metadata.generation,
                written,
                now.wall,
            ),
        };
        view.conditions.clone_from(&status.conditions);
        let entry = ScopeEntry {
            object: Arc::clone(&self.object),
            status,
            view,
            settled,
        };
        if previous.is_some_and(|previous| **previous == entry) {
            return (None, change);
        }
        let entry = Arc::new(entry);
        self.entry = Some(Arc::clone(&entry));
        (Some(entry), change)
    }

    /// Whether what is known suffices to say something new, and when to look again if it does not.
    ///
    /// After a start agents come back within seconds, and a new member's kind is listed within moments; until then
    /// the scope keeps what it said before, unless it has become Unhealthy whatever they will say. One that was said
    /// to be Unhealthy keeps its list of components too: saying once more that it is would only make those Unknown
    /// whose agents are on their way. While another replica serves, what that one says is all there is.
    fn is_settled(
        &self,
        measured: Health,
        summaries: &[Arc<ComponentSummary>],
        stage: Stage,
        now: Instant,
    ) -> (bool, Option<Instant>) {
        if stage == Stage::StandsBy {
            return (false, None);
        }
        let said = self.inherited.as_ref().and_then(|last| last.health);
        if measured == Health::Unhealthy && said != Some(Health::Unhealthy) {
            return (true, None);
        }
        let waits_for = |reason| summaries.iter().any(|member| member.reason == reason);
        // None is lost so soon after the start: those of which nothing is known are on their way back.
        let is_half_back = waits_for(Reason::STARTING) || waits_for(Reason::INSTANCES_UNKNOWN);
        if stage == Stage::Starting && self.inherited.is_some() && is_half_back {
            return (false, None);
        }
        let until = self.seen + SYNC_HOLD;
        let is_syncing = now < until && waits_for(Reason::SYNCING);
        (!is_syncing, is_syncing.then_some(until))
    }

    /// What the former aggregator said last, while nothing else can be said: nothing has settled yet, or the spec
    /// cannot be used and never could since the start.
    fn last_word(&self, settled: bool) -> Option<Verdict> {
        let last = self.inherited.as_ref()?;
        let health = last.health?;
        if settled && self.spec.is_some() {
            return None;
        }
        let said = last
            .conditions
            .iter()
            .find(|said| said.type_ == condition::HEALTHY);
        let (reason, message) = said.map_or((Reason::UNKNOWN, ""), |said| {
            (Reason::from_untrusted(&said.reason), said.message.as_str())
        });
        Some(Verdict::new(health, reason, message))
    }

    fn roll_up(&self, policy: &EffectivePolicy, summaries: &[Arc<ComponentSummary>]) -> Rollup {
        let unusable = |reason, message: &str| Rollup {
            verdict: Verdict::new(Health::Unknown, reason, message),
            summary: {
                let mut summary = Summary::default();
                summaries
                    .iter()
                    .for_each(|component| summary.add(component.health));
                summary
            },
            needed: rollup::needed(
                u32::try_from(summaries.len()).unwrap_or(u32::MAX),
                policy.min_available,
            ),
            root_cause: None,
            roots: Vec::new(),
            caused_by: vec![None; summaries.len()],
            ignored: vec![false; summaries.len()],
        };
        if let Some(cycle) = &self.cycle {
            return unusable(
                Reason::CYCLE,
                &format!("scopes contain each other in a cycle: {cycle}"),
            );
        }
        if self.spec.is_none() {
            let first = self
                .errors
                .first()
                .map_or("the spec cannot be used", String::as_str);
            return unusable(Reason::INVALID_SPEC, first);
        }
        let members: Vec<rollup::Member<'_>> = self
            .members
            .list
            .iter()
            .zip(summaries)
            .map(|(member, component)| rollup::Member {
                label: &member.label,
                health: component.health,
                reason: &component.reason,
                message: &component.message,
                required: member.required,
                depends_on: &member.depends_on,
            })
            .collect();
        let rollup = rollup::scope(policy, &members);
        match self.missing.first() {
            None => rollup,
            Some(name) => {
                let cause = format!("{name}: no component of this scope is called so");
                Rollup {
                    verdict: Verdict::new(
                        Health::Unhealthy,
                        Reason::REQUIRED_UNAVAILABLE,
                        format!("required {cause}"),
                    ),
                    root_cause: Some(cause),
                    ..rollup
                }
            }
        }
    }

    fn maintenance(&self, now: Now) -> (Option<MaintenanceView>, Option<Instant>) {
        let Some(maintenance) = self.spec.as_ref().and_then(|spec| spec.maintenance.as_ref()) else {
            return (None, None);
        };
        let active = maintenance.is_active(now.wall);
        let view = MaintenanceView {
            active,
            until: maintenance.until,
            reason: maintenance.reason.clone(),
        };
        let deadline = maintenance.until.map(|until| {
            let left = Duration::try_from(until.duration_since(now.wall)).unwrap_or(Duration::ZERO);
            now.instant + if active { left.min(WALL_CHECK) } else { WALL_CHECK }
        });
        (Some(view), deadline)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of the view, each from elsewhere"
    )]
    fn view(
        &self,
        policy: &EffectivePolicy,
        verdict: Verdict,
        rollup: Rollup,
        summaries: &[Arc<ComponentSummary>],
        flapping: bool,
        maintenance: Option<MaintenanceView>,
        recovering: Option<RecoveringView>,
    ) -> ScopeView {
        let Rollup {
            verdict: _,
            summary,
            needed,
            root_cause,
            roots,
            caused_by,
            ignored,
        } = rollup;
        let label = |position: usize| Arc::clone(&self.members.list[position].label);
        let in_maintenance = maintenance.as_ref().is_some_and(|maintenance| maintenance.active);
        let mut components = Vec::with_capacity(summaries.len());
        // Members are sorted already, so worst first needs no comparison.
        for health in Health::ALL.into_iter().rev() {
            for (position, component) in summaries.iter().enumerate() {
                if component.health != health {
                    continue;
                }
                let member = &self.members.list[position];
                components.push(MemberView {
                    component: Arc::clone(component),
                    required: member.required,
                    depends_on: member.depends_on.iter().map(|&needed| label(needed)).collect(),
                    caused_by: caused_by[position].map(label),
                    ignored: ignored[position],
                });
            }
        }
        let mut stalled = self.errors.clone();
        if let Some(cycle) = &self.cycle {
            stalled.push(format!("scopes contain each other in a cycle: {cycle}"));
        }
        stalled.extend(self.members.stalled.iter().cloned());
        let Verdict {
            health,
            reason,
            message,
        } = verdict;
        ScopeView {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            health,
            reason,
            message,
            since: self.since,
            available: format!("{}/{}", summary.available(), summary.total),
            summary,
            root_cause,
            root_causes: roots.into_iter().map(|root| label(root).to_string()).collect(),
            flapping,
            alarming: !health.is_available() && !in_maintenance,
            maintenance,
            recovering,
            stalled,
            notes: {
                let of_spec = self.spec.iter().flat_map(|spec| &spec.notes);
                of_spec.chain(&self.members.notes).cloned().collect()
            },
            policy: PolicyView {
                min_available: policy.min_available,
                needed,
                unknown_policy: policy.unknown,
                min_healthy_seconds: policy.min_healthy.as_secs(),
            },
            components,
            conditions: Vec::new(),
        }
    }
}

/// The wall clock at a later instant, if neither clock is touched.
fn later(now: Now, instant: Instant) -> Timestamp {
    let ahead = SignedDuration::try_from(instant.saturating_duration_since(now.instant));
    ahead
        .ok()
        .and_then(|ahead| now.wall.checked_add(ahead).ok())
        .unwrap_or(now.wall)
}
