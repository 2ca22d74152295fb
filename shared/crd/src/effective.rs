//! The spec that the rollup uses: whatever a user wrote, in the words of whichever version, validated, with every
//! default filled in.
//!
//! All errors are reported at once, each with the path of its field. What can only be seen among the actual members
//! (a dependency that no member is called by) is not judged here but by the rollup.

mod compatibility;

use {
    crate::{
        cycle::find_cycle,
        effective::compatibility::MinAvailable,
        key::{is_label_key, is_label_value},
        v1beta1::{
            self, HealthScope, Maintenance, Policy, Selector, SelectorOperator, SelectorRequirement,
            UnknownPolicy, WorkloadRef,
        },
    },
    healthscope_shared::{
        name::{ComponentKey, Kind, Name, Namespace, ScopeKey},
        one_line,
        probe::fields::{Errors, FieldError},
    },
    jiff::Timestamp,
    std::{
        collections::{BTreeMap, BTreeSet},
        fmt,
        str::FromStr,
        time::Duration,
    },
};

/// Most members by name: more is a file for `selector`.
pub const MAX_REFS: usize = 10_000;
/// Most dependencies of one member; more is a design error or an attack.
pub const MAX_DEPENDENCIES: usize = 64;
/// Longest `minHealthySeconds`: a day.
pub const MAX_MIN_HEALTHY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest reason of a maintenance.
pub const MAX_REASON_BYTES: usize = 256;

/// A HealthScope that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveScope {
    /// Which scope.
    pub key: ScopeKey,
    /// `metadata.generation`, where the object has one.
    pub generation: Option<i64>,
    /// Members by name, in the order written; no two are the same object.
    pub members: Vec<MemberRef>,
    /// Members by label; `None` selects nothing.
    pub selector: Option<Selector>,
    /// How healths add up.
    pub policy: EffectivePolicy,
    /// Work that nobody should be alarmed about.
    pub maintenance: Option<EffectiveMaintenance>,
    /// Names that members must have without which the scope is Unhealthy, whichever way these are found; sorted. From
    /// Rudr's `requiredHealthyComponents`.
    pub required: Vec<Name>,
    /// What a user should know about fields that were accepted: a sentence each.
    pub notes: Vec<String>,
}

/// A member by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRef {
    /// Which object.
    pub key: ComponentKey,
    /// `apiVersion` as written or meant.
    pub api_version: String,
    /// Whether the scope is Unhealthy as soon as this member is not available.
    pub required: bool,
    /// What it depends on.
    pub depends_on: Vec<Dependency>,
    /// A rule for kinds that are not known.
    pub healthy_when: Option<String>,
}

/// What a member depends on, as written: `name` or `Kind/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dependency {
    /// Its kind, where written.
    pub kind: Option<Kind>,
    /// Its name.
    pub name: Name,
}

impl Dependency {
    /// Whether `component` can be what is meant.
    #[must_use]
    pub fn matches(&self, component: &ComponentKey) -> bool {
        self.name == component.name && self.kind.as_ref().is_none_or(|kind| *kind == component.kind)
    }
}

impl FromStr for Dependency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (Some(Kind::new(kind).map_err(|error| error.to_string())?), name),
            None => (None, text),
        };
        let name = Name::new(name).map_err(|error| error.to_string())?;
        Ok(Self { kind, name })
    }
}

/// As written.
impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "{kind}/{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// How the healths of the components add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectivePolicy {
    /// Percentage of the components that must be available, 0 to 100.
    pub min_available: u8,
    /// What an unknown component counts as.
    pub unknown: UnknownPolicy,
    /// How long a better health must last before it is shown.
    pub min_healthy: Duration,
}

impl Default for EffectivePolicy {
    fn default() -> Self {
        Self {
            min_available: 100,
            unknown: UnknownPolicy::Unknown,
            min_healthy: Duration::ZERO,
        }
    }
}

/// Work that nobody should be alarmed about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveMaintenance {
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// What is being done.
    pub reason: String,
}

impl EffectiveMaintenance {
    /// Whether it still lasts.
    #[must_use]
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Selector {
    /// Whether a bearer of these labels is selected; as in Kubernetes everything must hold, and an absent label is
    /// not in any list.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let Self {
            match_labels,
            match_expressions,
        } = self;
        match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
    }
}

impl SelectorRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let Self {
            key,
            operator,
            values,
        } = self;
        let found = labels.get(key);
        match operator {
            SelectorOperator::In => found.is_some_and(|value| values.contains(value)),
            SelectorOperator::NotIn => found.is_none_or(|value| !values.contains(value)),
            SelectorOperator::Exists => found.is_some(),
            SelectorOperator::DoesNotExist => found.is_none(),
        }
    }
}

/// The key of a nested scope as a component.
#[must_use]
pub fn scope_component(scope: &ScopeKey) -> ComponentKey {
    ComponentKey {
        namespace: scope.namespace.clone(),
        group: v1beta1::GROUP.into(),
        kind: Kind::new(v1beta1::KIND).expect("the kind of a scope is a valid kind"),
        name: scope.name.clone(),
    }
}

/// The scope that a component is, when it is a nested scope.
#[must_use]
pub fn component_scope(component: &ComponentKey) -> Option<ScopeKey> {
    let is_scope = component.group == v1beta1::GROUP && component.kind.as_str() == v1beta1::KIND;
    is_scope.then(|| ScopeKey {
        namespace: component.namespace.clone(),
        name: component.name.clone(),
    })
}

/// Whether a component is one that files declare and agents announce (`kind: Component`).
#[must_use]
pub fn is_file_component(component: &ComponentKey) -> bool {
    component.group == ComponentKey::FILE_GROUP && component.kind.as_str() == "Component"
}

/// Validates a HealthScope and fills in every default.
///
/// # Errors
/// All fields that cannot be used.
pub fn effective(scope: &HealthScope) -> Result<EffectiveScope, Vec<FieldError>> {
    let mut found = Vec::new();
    let mut errors = Errors::new("", &mut found);
    let key = scope_key(scope, &mut errors);
    let spec = &scope.spec;
    let mut errors = errors.at("spec");
    let namespace = key
        .as_ref()
        .map_or_else(Namespace::default_namespace, |key| key.namespace.clone());
    let mut members = members(&spec.workload_refs, key.as_ref(), &namespace, &mut errors);
    compatibility::add_members(&spec.app_references, &namespace, &mut members, &mut errors);
    if let Some(selector) = &spec.selector {
        check_selector(selector, &mut errors.at("selector"));
    }
    let policy = effective_policy(
        spec.policy.as_ref(),
        compatibility::min_available(spec, &mut errors),
        &mut errors.at("policy"),
    );
    let maintenance = spec
        .maintenance
        .as_ref()
        .map(|maintenance| effective_maintenance(maintenance, &mut errors.at("maintenance")));
    let required = compatibility::required(spec, &mut errors);
    match key {
        Some(key) if found.is_empty() => Ok(EffectiveScope {
            key,
            generation: scope.metadata.generation,
            members,
            selector: spec.selector.clone(),
            policy,
            maintenance,
            required,
            notes: compatibility::notes(spec),
        }),
        Some(_) | None => Err(found),
    }
}

fn scope_key(scope: &HealthScope, errors: &mut Errors<'_>) -> Option<ScopeKey> {
    let mut errors = errors.at("metadata");
    let namespace = match scope.metadata.namespace.as_deref() {
        None | Some("") => Some(Namespace::default_namespace()),
        Some(namespace) => Namespace::new(namespace)
            .map_err(|error| errors.at("namespace").push(error.to_string()))
            .ok(),
    };
    let name = match scope.metadata.name.as_deref() {
        None | Some("") => {
            errors.at("name").push("a scope needs a name");
            None
        }
        Some(name) => Name::new(name)
            .map_err(|error| errors.at("name").push(error.to_string()))
            .ok(),
    };
    Some(ScopeKey {
        namespace: namespace?,
        name: name?,
    })
}

fn members(
    refs: &[WorkloadRef],
    scope: Option<&ScopeKey>,
    namespace: &Namespace,
    errors: &mut Errors<'_>,
) -> Vec<MemberRef> {
    if refs.len() > MAX_REFS {
        errors.at("workloadRefs").push(format!(
            "{} members by name are more than the {MAX_REFS} that are possible; find them by label with selector",
            refs.len()
        ));
        return Vec::new();
    }
    // Position in `refs` beside each member, for the paths of errors.
    let mut members: Vec<(usize, MemberRef)> = Vec::with_capacity(refs.len());
    let mut places: BTreeMap<ComponentKey, usize> = BTreeMap::new();
    let itself = scope.map(scope_component);
    for (index, workload) in refs.iter().enumerate() {
        let mut errors = errors.index("workloadRefs", index);
        let Some(member) = member(workload, namespace, &mut errors) else {
            continue;
        };
        if Some(&member.key) == itself.as_ref() {
            errors.push("a scope cannot be a member of itself");
            continue;
        }
        if let Some(first) = places.get(&member.key) {
            errors.push(format!(
                "{} is already named by workloadRefs[{first}]",
                member.key
            ));
            continue;
        }
        places.insert(member.key.clone(), index);
        members.push((index, member));
    }
    check_dependencies(&members, errors);
    members.into_iter().map(|(_, member)| member).collect()
}

fn member(workload: &WorkloadRef, namespace: &Namespace, errors: &mut Errors<'_>) -> Option<MemberRef> {
    let WorkloadRef {
        api_version,
        kind,
        name,
        required,
        depends_on,
        healthy_when,
        namespace: elsewhere,
        // An object is known by its name: one that is created again is the same member.
        uid: _,
        resource_version: _,
        field_path: _,
    } = workload;
    let kind = parse::<Kind>(
        kind,
        &mut errors.at("kind"),
        "a kind such as Component or Deployment is needed",
    );
    let name = parse::<Name>(name, &mut errors.at("name"), "the name of the member is needed");
    let api_version = match (api_version.as_deref(), kind.as_ref().map(Kind::as_str)) {
        (Some(api_version), _) if !api_version.is_empty() => Some(api_version),
        (_, Some("Component")) => Some(v1beta1::FILE_API_VERSION),
        (_, Some(v1beta1::KIND)) => Some(v1beta1::API_VERSION),
        (_, Some(kind)) => {
            errors
                .at("apiVersion")
                .push(format!("the apiVersion of {kind} is needed, such as apps/v1"));
            None
        }
        (_, None) => None,
    };
    let group = api_version.and_then(|api_version| {
        let group = group_of(api_version);
        if group.is_none() {
            let shown = one_line(api_version, 80);
            errors.at("apiVersion").push(format!(
                "{shown:?} is not an apiVersion: write group/version such as apps/v1, or v1"
            ));
        }
        group
    });
    let depends_on = dependencies(depends_on, errors);
    if let Some(elsewhere) = elsewhere.as_deref().filter(|elsewhere| !elsewhere.is_empty())
        && elsewhere != namespace.as_str()
    {
        let shown = one_line(elsewhere, 80);
        errors.at("namespace").push(format!(
            "a scope has members from its own namespace ({namespace}) only; make a HealthScope in {shown}"
        ));
    }
    let key = ComponentKey {
        namespace: namespace.clone(),
        group: group?.into(),
        kind: kind?,
        name: name?,
    };
    if let Some(rule) = healthy_when {
        let mut errors = errors.at("healthyWhen");
        if is_file_component(&key) || component_scope(&key).is_some() {
            errors.push(format!(
                "healthyWhen is for Kubernetes objects; the health of a {} is what its {} say",
                key.kind,
                if is_file_component(&key) {
                    "probes"
                } else {
                    "members"
                }
            ));
        } else if rule.is_empty() || rule.len() > 1024 {
            errors.push("must be an expression of 1 to 1024 bytes");
        }
    }
    Some(MemberRef {
        key,
        api_version: api_version?.into(),
        required: *required,
        depends_on,
        healthy_when: healthy_when.clone(),
    })
}

fn parse<T: FromStr<Err: fmt::Display>>(text: &str, errors: &mut Errors<'_>, when_empty: &str) -> Option<T> {
    if text.is_empty() {
        errors.push(when_empty);
        return None;
    }
    text.parse()
        .map_err(|error: T::Err| errors.push(error.to_string()))
        .ok()
}

/// The group of an `apiVersion`, empty for the core group; `None` when it is not one.
fn group_of(api_version: &str) -> Option<&str> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let is_version = version.starts_with(|c: char| c.is_ascii_lowercase()) && Namespace::new(version).is_ok();
    let is_group = group.is_empty() && !api_version.contains('/') || Name::new(group).is_ok();
    (is_version && is_group).then_some(group)
}

fn dependencies(written: &[String], errors: &mut Errors<'_>) -> Vec<Dependency> {
    if written.len() > MAX_DEPENDENCIES {
        errors
            .at("dependsOn")
            .push(format!("at most {MAX_DEPENDENCIES} are possible"));
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut dependencies = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let mut errors = errors.index("dependsOn", index);
        match text.parse::<Dependency>() {
            Ok(dependency) if !seen.insert(dependency.clone()) => {
                errors.push(format!("{dependency} is written twice"));
            }
            Ok(dependency) => dependencies.push(dependency),
            Err(error) => errors.push(format!("{error}; write name or Kind/name")),
        }
    }
    dependencies
}

/// Refuses dependencies that could mean several of the named members, and cycles among these.
fn check_dependencies(members: &[(usize, MemberRef)], errors: &mut Errors<'_>) {
    let mut by_name: BTreeMap<&Name, Vec<usize>> = BTreeMap::new();
    for (position, (_, member)) in members.iter().enumerate() {
        by_name.entry(&member.key.name).or_default().push(position);
    }
    let mut edges = vec![Vec::new(); members.len()];
    for (position, (index, member)) in members.iter().enumerate() {
        for (at, dependency) in member.depends_on.iter().enumerate() {
            let candidates: Vec<usize> = by_name
                .get(&dependency.name)
                .into_iter()
                .flatten()
                .copied()
                .filter(|&candidate| dependency.matches(&members[candidate].1.key))
                .collect();
            match candidates[..] {
                [] => {}
                [only] => edges[position].push(only),
                [..] => {
                    let choices: Vec<String> = candidates
                        .iter()
                        .map(|&choice| members[choice].1.key.to_string())
                        .collect();
                    errors
                        .index("workloadRefs", *index)
                        .index("dependsOn", at)
                        .push(format!(
                            "{dependency} could be any of {}; write one of these",
                            choices.join(", ")
                        ));
                }
            }
        }
    }
    if let Some(cycle) = find_cycle(&edges) {
        let (index, _) = members[cycle[0]];
        let names: Vec<&Name> = cycle
            .iter()
            .chain(&cycle[..1])
            .map(|&at| &members[at].1.key.name)
            .collect();
        errors.index("workloadRefs", index).at("dependsOn").push(format!(
            "members depend on each other in a cycle: {}",
            arrows(names)
        ));
    }
}

/// `web → cart → db → web`: how a cycle is written out.
#[must_use]
pub fn arrows(steps: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let steps: Vec<String> = steps.into_iter().map(|step| step.to_string()).collect();
    steps.join(" → ")
}

fn check_selector(selector: &Selector, errors: &mut Errors<'_>) {
    let Selector {
        match_labels,
        match_expressions,
    } = selector;
    for (key, value) in match_labels {
        let mut errors = errors.at(format_args!("matchLabels[{:?}]", one_line(key, 80)));
        check_label_key(key, &mut errors);
        check_label_value(value, &mut errors);
    }
    for (index, requirement) in match_expressions.iter().enumerate() {
        let SelectorRequirement {
            key,
            operator,
            values,
        } = requirement;
        let mut errors = errors.index("matchExpressions", index);
        check_label_key(key, &mut errors.at("key"));
        match operator {
            SelectorOperator::In | SelectorOperator::NotIn => {
                if values.is_empty() {
                    errors.at("values").push("In and NotIn need at least one value");
                }
                for (index, value) in values.iter().enumerate() {
                    check_label_value(value, &mut errors.index("values", index));
                }
            }
            SelectorOperator::Exists | SelectorOperator::DoesNotExist => {
                if !values.is_empty() {
                    errors.at("values").push("Exists and DoesNotExist take no values");
                }
            }
        }
    }
}

fn check_label_key(key: &str, errors: &mut Errors<'_>) {
    if !is_label_key(key) {
        let shown = one_line(key, 80);
        errors.push(format!("{shown:?} is not a label: write name or domain/name"));
    }
}

fn check_label_value(value: &str, errors: &mut Errors<'_>) {
    if !is_label_value(value) {
        let shown = one_line(value, 80);
        errors.push(format!(
            "{shown:?} cannot be the value of a label: at most 63 letters, digits, '-', '_' and '.', starting and \
             ending with a letter or digit"
        ));
    }
}

fn effective_policy(
    policy: Option<&Policy>,
    rudr: Option<MinAvailable>,
    errors: &mut Errors<'_>,
) -> EffectivePolicy {
    let without = EffectivePolicy {
        min_available: rudr.map_or(EffectivePolicy::default().min_available, |rudr| rudr.percent),
        ..EffectivePolicy::default()
    };
    let Some(policy) = policy else { return without };
    let Policy {
        min_available,
        unknown_policy,
        min_healthy_seconds,
    } = policy;
    let min_available = match *min_available {
        None => without.min_available,
        Some(percent) => match u8::try_from(percent) {
            Ok(percent @ 0..=100) => {
                if let Some(contradiction) = rudr.and_then(|rudr| rudr.contradiction(percent)) {
                    errors.at("minAvailable").push(contradiction);
                }
                percent
            }
            Ok(_) | Err(_) => {
                errors
                    .at("minAvailable")
                    .push(format!("{percent} is not a percentage: 0 to 100"));
                without.min_available
            }
        },
    };
    let min_healthy = match *min_healthy_seconds {
        None => without.min_healthy,
        Some(seconds) => u64::try_from(seconds)
            .ok()
            .map(Duration::from_secs)
            .filter(|&duration| duration <= MAX_MIN_HEALTHY)
            .unwrap_or_else(|| {
                errors.at("minHealthySeconds").push(format!(
                    "{seconds} is not possible: 0 to {} (a day)",
                    MAX_MIN_HEALTHY.as_secs()
                ));
                without.min_healthy
            }),
    };
    EffectivePolicy {
        min_available,
        unknown: unknown_policy.unwrap_or_default(),
        min_healthy,
    }
}

fn effective_maintenance(maintenance: &Maintenance, errors: &mut Errors<'_>) -> EffectiveMaintenance {
    let Maintenance { until, reason } = maintenance;
    let until = until.as_deref().and_then(|until| {
        until
            .parse::<Timestamp>()
            .map_err(|_| {
                let shown = one_line(until, 40);
                errors.at("until").push(format!(
                    "{shown:?} is not a time with its offset, such as 2026-12-01T06:00:00Z"
                ));
            })
            .ok()
    });
    if reason.len() > MAX_REASON_BYTES {
        errors
            .at("reason")
            .push(format!("longer than {MAX_REASON_BYTES} bytes"));
    }
    EffectiveMaintenance {
        until,
        reason: one_line(reason, MAX_REASON_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(spec: &str) -> HealthScope {
        serde_saphyr::from_str(&format!(
            "{{apiVersion: core.oam.dev/v1beta1, kind: HealthScope, metadata: {{name: shop}}, spec: {spec}}}"
        ))
        .unwrap()
    }

    fn accept(spec: &str) -> EffectiveScope {
        effective(&scope(spec)).unwrap()
    }

    /// The errors of a spec, one a line.
    #[track_caller]
    fn check(spec: &str, expected: &[&str]) {
        let errors = effective(&scope(spec)).err().unwrap_or_default();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{spec}");
    }

    #[test]
    fn an_empty_spec_has_every_default() {
        let found = accept("{}");
        assert_eq!(found.key.to_string(), "default/shop");
        assert_eq!(
            (found.members, found.selector, found.maintenance),
            (Vec::new(), None, None)
        );
        let expected = EffectivePolicy {
            min_available: 100,
            unknown: UnknownPolicy::Unknown,
            min_healthy: Duration::ZERO,
        };
        assert_eq!(found.policy, expected);
    }

    #[test]
    fn every_field_is_taken_over() {
        let found = accept(
            "{workloadRefs: [
               {kind: Component, name: web, required: true, dependsOn: [db, HealthScope/payments]},
               {kind: HealthScope, name: payments},
               {apiVersion: apps/v1, kind: Deployment, name: cart},
               {apiVersion: v1, kind: Service, name: cart},
               {apiVersion: db.example.org/v1, kind: Database, name: db, healthyWhen: 'true'}],
              selector: {matchLabels: {app: shop}},
              policy: {minAvailable: 75, unknownPolicy: Ignore, minHealthySeconds: 30},
              maintenance: {until: '2026-12-01T07:00:00+01:00', reason: db upgrade}}",
        );
        let keys: Vec<(&str, String)> = found
            .members
            .iter()
            .map(|member| (member.key.group.as_str(), member.key.to_string()))
            .collect();
        let expected = [
            ("healthscope.core.oam.dev", "Component/web"),
            ("core.oam.dev", "HealthScope/payments"),
            ("apps", "Deployment/cart"),
            ("", "Service/cart"),
            ("db.example.org", "Database/db"),
        ];
        assert_eq!(keys, expected.map(|(group, key)| (group, key.to_owned())));
        let web = &found.members[0];
        assert!(web.required && !found.members[1].required);
        assert_eq!(
            web.depends_on.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["db", "HealthScope/payments"]
        );
        assert_eq!(web.api_version, "healthscope.core.oam.dev/v1beta1");
        let policy = EffectivePolicy {
            min_available: 75,
            unknown: UnknownPolicy::Ignore,
            min_healthy: Duration::from_secs(30),
        };
        assert_eq!(found.policy, policy);
        let maintenance = found.maintenance.unwrap();
        let until: Timestamp = "2026-12-01T06:00:00Z".parse().unwrap();
        assert_eq!(
            (maintenance.until, maintenance.reason.as_str()),
            (Some(until), "db upgrade")
        );
        assert!(maintenance.is_active("2026-12-01T05:59:59Z".parse().unwrap()));
        assert!(!maintenance.is_active(until));
    }

    #[test]
    fn a_scope_needs_a_usable_name() {
        let named = |metadata: &str| {
            let scope: HealthScope =
                serde_saphyr::from_str(&format!("{{metadata: {{{metadata}}}, spec: {{}}}}")).unwrap();
            effective(&scope)
                .map(|scope| scope.key.to_string())
                .map_err(|errors| errors[0].path.clone())
        };
        assert_eq!(named(""), Err("metadata.name".into()));
        assert_eq!(named("name: Shop"), Err("metadata.name".into()));
        assert_eq!(
            named("name: shop, namespace: a.b"),
            Err("metadata.namespace".into())
        );
        assert_eq!(named("name: shop, namespace: prod"), Ok("prod/shop".into()));
    }

    #[test]
    fn members_must_be_named_well_and_once() {
        check(
            "{workloadRefs: [{kind: Deployment, name: web}]}",
            &["spec.workloadRefs[0].apiVersion: the apiVersion of Deployment is needed, such as apps/v1"],
        );
        check(
            "{workloadRefs: [{apiVersion: 'apps/v1/x', kind: Deployment, name: web}]}",
            &[
                "spec.workloadRefs[0].apiVersion: \"apps/v1/x\" is not an apiVersion: write group/version such as \
               apps/v1, or v1",
            ],
        );
        check(
            "{workloadRefs: [{kind: '', name: ''}]}",
            &[
                "spec.workloadRefs[0].kind: a kind such as Component or Deployment is needed",
                "spec.workloadRefs[0].name: the name of the member is needed",
            ],
        );
        check(
            "{workloadRefs: [{kind: Component, name: web}, {kind: Component, name: web}]}",
            &["spec.workloadRefs[1]: Component/web is already named by workloadRefs[0]"],
        );
        // The version is not part of the identity.
        check(
            "{workloadRefs: [{apiVersion: apps/v1, kind: Deployment, name: a}, {apiVersion: apps/v2, kind: Deployment, name: a}]}",
            &["spec.workloadRefs[1]: Deployment/a is already named by workloadRefs[0]"],
        );
        check(
            "{workloadRefs: [{kind: HealthScope, name: shop}]}",
            &["spec.workloadRefs[0]: a scope cannot be a member of itself"],
        );
        check("{workloadRefs: [{kind: Component, name: shop}]}", &[]);
        check(
            "{workloadRefs: [{kind: Component, name: web, healthyWhen: 'true'}]}",
            &[
                "spec.workloadRefs[0].healthyWhen: healthyWhen is for Kubernetes objects; the health of a Component is \
               what its probes say",
            ],
        );
    }

    #[test]
    fn dependencies_must_be_clear_and_without_cycle() {
        check(
            "{workloadRefs: [{kind: Component, name: web, dependsOn: ['a b', db, db]}]}",
            &[
                "spec.workloadRefs[0].dependsOn[0]: \"a b\" is not a valid object name: lower-case letters, digits, \
                 '-' and '.', at most 253, starting and ending with a letter or digit; write name or Kind/name",
                "spec.workloadRefs[0].dependsOn[2]: db is written twice",
            ],
        );
        // Who is not named may be found by label.
        check(
            "{workloadRefs: [{kind: Component, name: web, dependsOn: [db]}]}",
            &[],
        );
        let two = "{kind: Component, name: db}, {kind: HealthScope, name: db}";
        check(
            &format!("{{workloadRefs: [{{kind: Component, name: web, dependsOn: [db]}}, {two}]}}"),
            &[
                "spec.workloadRefs[0].dependsOn[0]: db could be any of Component/db, HealthScope/db; write one of these",
            ],
        );
        check(
            &format!(
                "{{workloadRefs: [{{kind: Component, name: web, dependsOn: [HealthScope/db]}}, {two}]}}"
            ),
            &[],
        );
        check(
            "{workloadRefs: [
               {kind: Component, name: web, dependsOn: [cart]},
               {kind: Component, name: cart, dependsOn: [db]},
               {kind: Component, name: db, dependsOn: [Component/web]}]}",
            &[
                "spec.workloadRefs[0].dependsOn: members depend on each other in a cycle: web → cart → db → web",
            ],
        );
        check(
            "{workloadRefs: [{kind: Component, name: web, dependsOn: [web]}]}",
            &["spec.workloadRefs[0].dependsOn: members depend on each other in a cycle: web → web"],
        );
    }

    #[test]
    fn numbers_and_times_must_make_sense() {
        check("{policy: {minAvailable: 0}}", &[]);
        check(
            "{policy: {minAvailable: 101}}",
            &["spec.policy.minAvailable: 101 is not a percentage: 0 to 100"],
        );
        check(
            "{policy: {minAvailable: -1}}",
            &["spec.policy.minAvailable: -1 is not a percentage: 0 to 100"],
        );
        check(
            "{policy: {minHealthySeconds: -5}}",
            &["spec.policy.minHealthySeconds: -5 is not possible: 0 to 86400 (a day)"],
        );
        check(
            "{policy: {minHealthySeconds: 86401}}",
            &["spec.policy.minHealthySeconds: 86401 is not possible: 0 to 86400 (a day)"],
        );
        check(
            "{maintenance: {until: tomorrow}}",
            &[
                "spec.maintenance.until: \"tomorrow\" is not a time with its offset, such as 2026-12-01T06:00:00Z",
            ],
        );
        check(
            "{maintenance: {until: '2026-12-01T06:00:00'}}",
            &[
                "spec.maintenance.until: \"2026-12-01T06:00:00\" is not a time with its offset, such as \
               2026-12-01T06:00:00Z",
            ],
        );
        check("{maintenance: {}}", &[]);
    }

    #[test]
    fn selectors_follow_kubernetes() {
        check(
            "{selector: {matchLabels: {'a b': x, ok: 'y z'}, matchExpressions: [
               {key: a, operator: In}, {key: b, operator: Exists, values: [c]}]}}",
            &[
                "spec.selector.matchLabels[\"a b\"]: \"a b\" is not a label: write name or domain/name",
                "spec.selector.matchLabels[\"ok\"]: \"y z\" cannot be the value of a label: at most 63 letters, \
                 digits, '-', '_' and '.', starting and ending with a letter or digit",
                "spec.selector.matchExpressions[0].values: In and NotIn need at least one value",
                "spec.selector.matchExpressions[1].values: Exists and DoesNotExist take no values",
            ],
        );
    }

    #[test]
    fn a_selector_matches_as_in_kubernetes() {
        #[track_caller]
        fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
            let selector: Selector = serde_saphyr::from_str(selector).unwrap();
            let labels = labels
                .iter()
                .map(|&(key, value)| (key.into(), value.into()))
                .collect();
            assert_eq!(selector.matches(&labels), expected, "{selector:?} {labels:?}");
        }
        let labels = &[("app", "shop"), ("tier", "web")];
        check("{}", &[], true);
        check("{matchLabels: {app: shop}}", labels, true);
        check("{matchLabels: {app: shop, tier: db}}", labels, false);
        check(
            "{matchExpressions: [{key: tier, operator: In, values: [db, web]}]}",
            labels,
            true,
        );
        check(
            "{matchExpressions: [{key: tier, operator: In, values: [db]}]}",
            labels,
            false,
        );
        check(
            "{matchExpressions: [{key: zone, operator: In, values: [a]}]}",
            labels,
            false,
        );
        check(
            "{matchExpressions: [{key: tier, operator: NotIn, values: [db]}]}",
            labels,
            true,
        );
        check(
            "{matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}",
            labels,
            false,
        );
        check(
            "{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}",
            labels,
            true,
        );
        check(
            "{matchExpressions: [{key: tier, operator: Exists}]}",
            labels,
            true,
        );
        check(
            "{matchExpressions: [{key: zone, operator: Exists}]}",
            labels,
            false,
        );
        check(
            "{matchExpressions: [{key: zone, operator: DoesNotExist}]}",
            labels,
            true,
        );
        check(
            "{matchExpressions: [{key: tier, operator: DoesNotExist}]}",
            labels,
            false,
        );
        check(
            "{matchLabels: {app: shop}, matchExpressions: [{key: tier, operator: DoesNotExist}]}",
            labels,
            false,
        );
    }

    #[test]
    fn thresholds_of_rudr_are_a_policy() {
        #[track_caller]
        fn check(spec: &str, expected: u8, notes: &[&str]) {
            let found = accept(spec);
            assert_eq!(found.policy.min_available, expected, "{spec}");
            assert_eq!(found.notes, notes, "{spec}");
        }
        check("{healthThresholdPercentage: 80}", 80, &[]);
        check("{health-threshold-percentage: 80.0}", 80, &[]);
        check("{healthyRateThreshold: 75}", 75, &[]);
        check("{failureRateThreshold: 80}", 20, &[]);
        check("{failureRateThreshold: 0}", 100, &[]);
        // The strictest wins.
        check(
            "{healthThresholdPercentage: 60, healthyRateThreshold: 70, failureRateThreshold: 20}",
            80,
            &[],
        );
        check(
            "{healthThresholdPercentage: 60, policy: {minAvailable: 60}}",
            60,
            &[],
        );
        check("{healthThresholdPercentage: 60, policy: {}}", 60, &[]);
        check("{healthThresholdPercentage: null}", 100, &[]);
        check(
            "{healthThresholdPercentage: 66.6}",
            67,
            &["healthThresholdPercentage: 66.6 is taken as the next stricter whole percentage"],
        );
        check(
            "{healthyRateThreshold: 0.95}",
            1,
            &["healthyRateThreshold: 0.95 is less than one percent; write 95 for 95 %"],
        );
        check(
            "{probeMethod: kube-get, probeEndpoint: .status, probeInterval: 30}",
            100,
            &["probeMethod, probeEndpoint, probeInterval have no effect: workloads are watched, not polled"],
        );
        check(
            "{probe-interval: 10}",
            100,
            &["probe-interval has no effect: workloads are watched, not polled"],
        );
    }

    #[test]
    fn versions_that_contradict_each_other_are_refused() {
        check(
            "{policy: {minAvailable: 50}, healthThresholdPercentage: 80}",
            &[
                "spec.policy.minAvailable: 50 contradicts healthThresholdPercentage, which asks for 80; remove one of them",
            ],
        );
        check(
            "{policy: {minAvailable: 80}, failureRateThreshold: 80}",
            &[
                "spec.policy.minAvailable: 80 contradicts failureRateThreshold, which asks for 20; remove one of them",
            ],
        );
        check(
            "{healthThresholdPercentage: 80, health-threshold-percentage: 70}",
            &[
                "spec.health-threshold-percentage: 70 contradicts healthThresholdPercentage: 80; remove one of them",
            ],
        );
        check(
            "{healthThresholdPercentage: 180, failureRateThreshold: -1}",
            &[
                "spec.healthThresholdPercentage: 180 is not a percentage: 0 to 100",
                "spec.failureRateThreshold: -1 is not a percentage: 0 to 100",
            ],
        );
    }

    #[test]
    fn components_that_rudr_requires_are_one_list() {
        let required =
            |spec: &str| -> Vec<String> { accept(spec).required.iter().map(ToString::to_string).collect() };
        assert_eq!(required("{}"), [""; 0]);
        assert_eq!(required("{requiredHealthyComponents: null}"), [""; 0]);
        assert_eq!(required("{requiredHealthyComponents: [web, db]}"), ["db", "web"]);
        assert_eq!(required("{requiredHealthyComponents: 'web, db,'}"), ["db", "web"]);
        assert_eq!(
            required("{requiredHealthyComponents: web, required-healthy-components: [db, web]}"),
            ["db", "web"]
        );
        check(
            "{required-healthy-components: 'web,The DB'}",
            &[
                "spec.required-healthy-components: \"The DB\" is not a valid object name: lower-case letters, digits, \
                 '-' and '.', at most 253, starting and ending with a letter or digit",
            ],
        );
    }

    #[test]
    fn references_of_oam_and_kubevela_are_members() {
        let found = accept(
            "{probe-interval: 10, workloadRefs: [
               {apiVersion: apps/v1, kind: Deployment, name: web, uid: u, namespace: default, resourceVersion: '5'}],
              appReferences: [{appName: shop, compReferences: [
               {compName: web, workload: {apiVersion: apps/v1, kind: Deployment, name: web}},
               {compName: db, workload: {apiVersion: apps/v1, kind: StatefulSet, name: db, namespace: default},
                traits: [{apiVersion: v1, kind: Service, name: db}]},
               {compName: early}, {compName: earlier, workload: {kind: Deployment}}]}]}",
        );
        let keys: Vec<String> = found
            .members
            .iter()
            .map(|member| member.key.to_string())
            .collect();
        assert_eq!(keys, ["Deployment/web", "StatefulSet/db"]);
        check(
            "{workloadRefs: [{apiVersion: apps/v1, kind: Deployment, name: web, namespace: other}],
              appReferences: [{compReferences: [{workload: {apiVersion: v1, kind: Pod, name: a, namespace: b}}]}]}",
            &[
                "spec.workloadRefs[0].namespace: a scope has members from its own namespace (default) only; make a \
                 HealthScope in other",
                "spec.appReferences[0].compReferences[0].workload.namespace: a scope has members from its own \
                 namespace (default) only; make a HealthScope in b",
            ],
        );
        check(
            "{appReferences: [{compReferences: [{workload: {kind: Pod, name: a}}]}]}",
            &[
                "spec.appReferences[0].compReferences[0].workload.apiVersion: the apiVersion of Pod is needed, such as \
                 apps/v1",
            ],
        );
    }

    #[test]
    fn unknown_fields_are_named() {
        for (spec, field) in [
            ("{workloadRef: []}", "workloadRef"),
            ("{workloadRefs: [{kind: Component, nme: web}]}", "nme"),
            ("{policy: {minimum: 3}}", "minimum"),
            ("{selector: {labels: {}}}", "labels"),
            ("{maintenance: {til: x}}", "til"),
        ] {
            let text = format!("{{metadata: {{name: shop}}, spec: {spec}}}");
            let error = serde_saphyr::from_str::<HealthScope>(&text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn ten_thousand_members_take_a_moment() {
        let refs: Vec<WorkloadRef> = (0..MAX_REFS)
            .map(|number| WorkloadRef {
                kind: "Component".into(),
                name: format!("c{number}"),
                depends_on: if number == 0 {
                    vec![]
                } else {
                    vec![format!("c{}", number - 1)]
                },
                ..WorkloadRef::default()
            })
            .collect();
        let mut scope = scope("{}");
        scope.spec.workload_refs = refs;
        assert_eq!(effective(&scope).unwrap().members.len(), MAX_REFS);
        scope.spec.workload_refs.push(WorkloadRef {
            kind: "Component".into(),
            name: "more".into(),
            ..WorkloadRef::default()
        });
        assert_eq!(effective(&scope).unwrap_err()[0].path, "spec.workloadRefs");
    }
}
