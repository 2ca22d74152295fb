//! What the fields of the older versions come to.
//!
//! Rudr's three thresholds were declared and never used; here they are shares of the members' current verdicts, and the
//! strictest wins. Its two names of required components are one list. KubeVela's references by application are members
//! like others.
//!
//! Rudr's thresholds are percentages, as its own examples have them (a failure rate of 80). One below 1 is most likely
//! meant as a share, but guessing so would make 1 mean either 1 % or 100 %: it is taken as written, and a note says so.

use {
    super::{MAX_REFS, MemberRef, member},
    crate::{
        v1alpha1::Names,
        v1alpha2::{AppReference, ObjectReference},
        v1beta1::{HealthScopeSpec, WorkloadRef},
    },
    healthscope_shared::{
        name::{ComponentKey, Name, Namespace},
        probe::fields::Errors,
    },
    std::collections::BTreeSet,
};

/// Most names of required components, as of members by name.
const MAX_REQUIRED: usize = MAX_REFS;

/// One of Rudr's thresholds, as written.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Threshold {
    field: &'static str,
    written: f64,
    /// Percentage of the components that it wants available.
    available: f64,
}

/// Rudr's thresholds of a spec, as far as they are there.
fn thresholds(spec: &HealthScopeSpec) -> impl Iterator<Item = Threshold> {
    let available = |field, written: Option<f64>| {
        written.map(|written| Threshold {
            field,
            written,
            available: written,
        })
    };
    let failed = |field, written: Option<f64>| {
        written.map(|written| Threshold {
            field,
            written,
            available: 100.0 - written,
        })
    };
    [
        available("healthThresholdPercentage", spec.health_threshold_percentage),
        available(
            "health-threshold-percentage",
            spec.kebab_health_threshold_percentage,
        ),
        available("healthyRateThreshold", spec.healthy_rate_threshold),
        failed("failureRateThreshold", spec.failure_rate_threshold),
    ]
    .into_iter()
    .flatten()
}

/// What `policy.minAvailable` would say the same as Rudr's thresholds do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MinAvailable {
    /// The percentage, rounded up to a whole one.
    pub(super) percent: u8,
    /// The field that asks for it.
    field: &'static str,
}

impl MinAvailable {
    /// Why `policy.minAvailable: percent` cannot stand beside it; `None` when both say the same.
    pub(super) fn contradiction(self, percent: u8) -> Option<String> {
        (self.percent != percent).then(|| {
            format!(
                "{percent} contradicts {}, which asks for {}; remove one of them",
                self.field, self.percent
            )
        })
    }
}

/// The strictest of Rudr's thresholds; `None` without any that can be used.
pub(super) fn min_available(spec: &HealthScopeSpec, errors: &mut Errors<'_>) -> Option<MinAvailable> {
    let mut strictest: Option<Threshold> = None;
    for threshold in thresholds(spec) {
        let Threshold {
            field,
            written,
            available,
        } = threshold;
        if !(0.0..=100.0).contains(&written) {
            errors
                .at(field)
                .push(format!("{written} is not a percentage: 0 to 100"));
        } else if strictest.is_none_or(|strictest| strictest.available < available) {
            strictest = Some(threshold);
        }
    }
    if let (Some(camel), Some(kebab)) = (
        spec.health_threshold_percentage,
        spec.kebab_health_threshold_percentage,
    ) && camel != kebab
    {
        errors.at("health-threshold-percentage").push(format!(
            "{kebab} contradicts healthThresholdPercentage: {camel}; remove one of them"
        ));
    }
    let Threshold { field, available, .. } = strictest?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 100"
    )]
    let percent = available.ceil() as u8;
    Some(MinAvailable { percent, field })
}

/// The names in both spellings of Rudr's required components, sorted.
pub(super) fn required(spec: &HealthScopeSpec, errors: &mut Errors<'_>) -> Vec<Name> {
    let mut required = BTreeSet::new();
    for (field, names) in [
        ("requiredHealthyComponents", &spec.required_healthy_components),
        (
            "required-healthy-components",
            &spec.kebab_required_healthy_components,
        ),
    ] {
        let mut errors = errors.at(field);
        for name in names.iter().flat_map(Names::iter) {
            match Name::new(name) {
                Ok(_) if required.len() == MAX_REQUIRED => {
                    errors.push(format!("at most {MAX_REQUIRED} names are possible"));
                    break;
                }
                Ok(name) => {
                    required.insert(name);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
    }
    required.into_iter().collect()
}

/// Adds the workloads that KubeVela's references name and that are no members yet.
///
/// A reference without kind or name is one that KubeVela had not filled in: it names nothing.
pub(super) fn add_members(
    references: &[AppReference],
    namespace: &Namespace,
    members: &mut Vec<MemberRef>,
    errors: &mut Errors<'_>,
) {
    let mut known: BTreeSet<ComponentKey> = members.iter().map(|member| member.key.clone()).collect();
    for (app, reference) in references.iter().enumerate() {
        let mut errors = errors.index("appReferences", app);
        for (component, reference) in reference.comp_references.iter().enumerate() {
            let Some(workload) = reference.workload.as_ref().and_then(as_member) else {
                continue;
            };
            let mut errors = errors.index("compReferences", component);
            let Some(member) = member(&workload, namespace, &mut errors.at("workload")) else {
                continue;
            };
            if members.len() >= MAX_REFS {
                errors.push(format!("at most {MAX_REFS} members by name are possible"));
                return;
            }
            if known.insert(member.key.clone()) {
                members.push(member);
            }
        }
    }
}

fn as_member(reference: &ObjectReference) -> Option<WorkloadRef> {
    let ObjectReference {
        api_version,
        kind,
        name,
        namespace,
        uid: _,
        resource_version: _,
        field_path: _,
    } = reference;
    let written = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    Some(WorkloadRef {
        api_version: api_version.clone(),
        kind: written(kind)?,
        name: written(name)?,
        namespace: namespace.clone(),
        ..WorkloadRef::default()
    })
}

/// What a user should know about the older fields of a spec that can be used.
pub(super) fn notes(spec: &HealthScopeSpec) -> Vec<String> {
    let idle: Vec<&str> = [
        ("probeMethod", spec.probe_method.is_some()),
        ("probeEndpoint", spec.probe_endpoint.is_some()),
        ("probeTimeout", spec.probe_timeout.is_some()),
        ("probeInterval", spec.probe_interval.is_some()),
        ("probe-timeout", spec.kebab_probe_timeout.is_some()),
        ("probe-interval", spec.kebab_probe_interval.is_some()),
    ]
    .into_iter()
    .filter_map(|(field, is_there)| is_there.then_some(field))
    .collect();
    let mut notes = Vec::new();
    if let [first, rest @ ..] = idle.as_slice() {
        let verb = if rest.is_empty() { "has" } else { "have" };
        let rest: String = rest.iter().map(|field| format!(", {field}")).collect();
        notes.push(format!(
            "{first}{rest} {verb} no effect: workloads are watched, not polled"
        ));
    }
    for Threshold { field, written, .. } in thresholds(spec) {
        if written > 0.0 && written < 1.0 {
            let percent = (written * 10_000.0).round() / 100.0;
            notes.push(format!(
                "{field}: {written} is less than one percent; write {percent} for {percent} %"
            ));
        } else if written.fract() != 0.0 {
            notes.push(format!(
                "{field}: {written} is taken as the next stricter whole percentage"
            ));
        }
    }
    notes
}
