//! Which Kubernetes objects the scopes ask for: what is to be watched, and the rules that belong to single objects.

use {
    crate::{event::Watched, platform::HealthyWhen},
    healthscope_crd::{
        HealthScope,
        effective::{EffectiveScope, MemberRef, component_scope, effective, is_file_component},
        writer::Versions,
    },
    healthscope_shared::name::{ComponentKey, Kind, Name, Namespace},
    std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    },
};

/// What a scope means, when it can be used.
///
/// # Errors
/// Every field that cannot be used, rules that cannot be evaluated among them, each with its place.
pub fn usable(scope: &HealthScope) -> Result<EffectiveScope, Vec<String>> {
    let spec =
        effective(scope).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<String>>())?;
    let rules = spec
        .members
        .iter()
        .filter_map(|member| Some((member, member.healthy_when.as_deref()?)));
    let broken: Vec<String> = rules
        .filter_map(|(member, rule)| {
            let error = HealthyWhen::compile(rule).err()?;
            Some(format!(
                "spec.workloadRefs: healthyWhen of {}: {error}",
                member.key
            ))
        })
        .collect();
    if broken.is_empty() { Ok(spec) } else { Err(broken) }
}

/// What labels can find, and what stands between it and its pods: watched in all namespaces.
pub const STANDARD: [(&str, &str, &str); 7] = [
    ("v1", "Pod", "pods"),
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "DaemonSet", "daemonsets"),
    ("batch/v1", "Job", "jobs"),
    ("batch/v1", "CronJob", "cronjobs"),
];

/// Kinds whose health is that of others, and what these are besides the standard ones.
const COMPOSITE: [(&str, &str); 2] = [
    ("core.oam.dev", "ContainerizedWorkload"),
    ("standard.oam.dev", "PodSpecWorkload"),
];

/// What one watch is to bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Group and version as scopes write it. They mean the same objects, so any that the API server knows will do.
    pub api_versions: BTreeSet<String>,
    /// `healthyWhen` of single objects; where scopes differ, the first scope's.
    pub rules: BTreeMap<(Namespace, Name), Arc<str>>,
    /// Whether a scope speaks OAM's version, whose answer holds the status of objects of kinds that OAM does not know.
    pub keep_status: bool,
}

/// Everything that the scopes ask for, each with the versions that its writers speak; the standard kinds always, for
/// agents speak for pods whether a scope counts them or not.
pub fn wanted<'a>(scopes: impl Iterator<Item = (&'a EffectiveScope, Versions)>) -> BTreeMap<Watched, Wanted> {
    let mut wanted: BTreeMap<Watched, Wanted> = STANDARD
        .into_iter()
        .map(|(api_version, kind, _)| (everywhere(api_version, kind), Wanted::of(api_version)))
        .collect();
    for (scope, speaks) in scopes {
        for member in &scope.members {
            want(&mut wanted, member, speaks.v1alpha2);
        }
    }
    wanted
}

impl Wanted {
    fn of(api_version: &str) -> Self {
        Self {
            api_versions: [api_version.to_owned()].into(),
            ..Self::default()
        }
    }
}

fn want(wanted: &mut BTreeMap<Watched, Wanted>, member: &MemberRef, speaks_oam: bool) {
    let MemberRef {
        key,
        api_version,
        healthy_when,
        ..
    } = member;
    if is_file_component(key) || component_scope(key).is_some() {
        return;
    }
    let standard = Watched {
        group: key.group.as_str().into(),
        kind: key.kind.clone(),
        namespace: None,
    };
    let watched = if wanted.contains_key(&standard) {
        standard
    } else {
        within(key)
    };
    let entry = wanted.entry(watched).or_insert_with(|| Wanted::of(api_version));
    entry.api_versions.insert(api_version.clone());
    entry.keep_status |= speaks_oam;
    if let Some(rule) = healthy_when {
        entry
            .rules
            .entry((key.namespace.clone(), key.name.clone()))
            .or_insert_with(|| rule.as_str().into());
    }
    if COMPOSITE.contains(&(&*key.group, key.kind.as_str())) {
        let service = Watched {
            group: "".into(),
            kind: kind("Service"),
            namespace: Some(key.namespace.clone()),
        };
        wanted.entry(service).or_insert_with(|| Wanted::of("v1"));
    }
}

fn within(key: &ComponentKey) -> Watched {
    Watched {
        group: key.group.as_str().into(),
        kind: key.kind.clone(),
        namespace: Some(key.namespace.clone()),
    }
}

fn everywhere(api_version: &str, name: &str) -> Watched {
    Watched {
        group: api_version.rsplit_once('/').map_or("", |(group, _)| group).into(),
        kind: kind(name),
        namespace: None,
    }
}

fn kind(name: &str) -> Kind {
    name.parse().expect("a valid kind")
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        healthscope_crd::{HealthScope, effective::effective, v1beta1::HealthScopeSpec},
    };

    #[track_caller]
    fn check(specs: &[&str], expected: &[&str]) {
        let scopes: Vec<EffectiveScope> = specs
            .iter()
            .map(|spec| {
                let spec: HealthScopeSpec = serde_json::from_str(spec).unwrap();
                effective(&HealthScope::new("shop", spec)).unwrap()
            })
            .collect();
        let found: Vec<String> = wanted(scopes.iter().map(|scope| (scope, Versions::default())))
            .into_iter()
            .filter(|(watched, _)| watched.namespace.is_some() || watched.kind.as_str() == "Pod")
            .map(|(watched, wanted)| {
                let place = watched
                    .namespace
                    .map_or("*".into(), |namespace| namespace.to_string());
                let rules: Vec<String> = wanted
                    .rules
                    .iter()
                    .map(|((_, name), rule)| format!(" {name}: {rule}"))
                    .collect();
                format!(
                    "{:?} {} in {place}{}",
                    wanted.api_versions,
                    watched.kind,
                    rules.concat()
                )
            })
            .collect();
        assert_eq!(found, expected, "{specs:?}");
    }

    #[test]
    fn kinds_are_watched_only_while_a_scope_names_them() {
        check(&[], &[r#"{"v1"} Pod in *"#]);
        check(&["{}"], &[r#"{"v1"} Pod in *"#]);
        check(
            &[
                r#"{"workloadRefs": [
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                    {"kind": "HealthScope", "name": "payments"},
                    {"kind": "Component", "name": "file"},
                    {"apiVersion": "db.example.org/v1", "kind": "Database", "name": "db", "healthyWhen": "a"},
                    {"apiVersion": "core.oam.dev/v1alpha2", "kind": "ContainerizedWorkload", "name": "old"}]}"#,
                r#"{"workloadRefs": [
                    {"apiVersion": "db.example.org/v2", "kind": "Database", "name": "db", "healthyWhen": "b"},
                    {"apiVersion": "db.example.org/v2", "kind": "Database", "name": "other", "healthyWhen": "c"}]}"#,
            ],
            &[
                r#"{"v1"} Pod in *"#,
                r#"{"v1"} Service in default"#,
                r#"{"core.oam.dev/v1alpha2"} ContainerizedWorkload in default"#,
                r#"{"db.example.org/v1", "db.example.org/v2"} Database in default db: a other: c"#,
            ],
        );
    }
}
