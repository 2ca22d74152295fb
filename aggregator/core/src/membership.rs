//! Which components belong to which scope, and what depends on what among them.
//!
//! Decides by names and labels alone; how a member is doing is not asked here.

use {
    healthscope_crd::{
        cycle::find_cycle,
        effective::{Dependency, EffectiveScope, MAX_DEPENDENCIES, MemberRef, arrows, component_scope},
        key,
        v1beta1::Selector,
    },
    healthscope_shared::{
        name::{ComponentKey, Name, Namespace, ScopeKey},
        one_line,
    },
    std::{
        collections::{BTreeMap, HashMap},
        sync::Arc,
    },
};

/// Most notes and most reasons for being stalled that are kept of one scope: enough to mend the first few.
const MAX_NOTES: usize = 20;

/// Finds the scopes that a component's labels put it into, without asking every scope.
///
/// Scopes are called by their position in what [`Index::new`] was given.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_key: HashMap<ScopeKey, usize>,
    /// Selectors with labels, by the first of these.
    by_label: HashMap<(Namespace, String, String), Vec<usize>>,
    /// Other selectors.
    by_namespace: HashMap<Namespace, Vec<usize>>,
    selectors: HashMap<usize, Selector>,
}

impl Index {
    pub(crate) fn new<'a>(scopes: impl Iterator<Item = (usize, &'a EffectiveScope)>) -> Self {
        let mut index = Self::default();
        for (position, scope) in scopes {
            let namespace = scope.key.namespace.clone();
            index.by_key.insert(scope.key.clone(), position);
            let Some(selector) = &scope.selector else { continue };
            let list = match selector.match_labels.first_key_value() {
                Some((key, value)) => index
                    .by_label
                    .entry((namespace, key.clone(), value.clone()))
                    .or_default(),
                None => index.by_namespace.entry(namespace).or_default(),
            };
            list.push(position);
            index.selectors.insert(position, selector.clone());
        }
        index
    }

    /// The scopes that select these labels or are named by them, ascending, each once.
    pub(crate) fn scopes(&self, namespace: &Namespace, labels: &BTreeMap<String, String>) -> Vec<usize> {
        let mut found: Vec<usize> = key::scope_names(labels)
            .filter_map(|name| Name::new(name).ok())
            .filter_map(|name| {
                self.by_key
                    .get(&ScopeKey {
                        namespace: namespace.clone(),
                        name,
                    })
                    .copied()
            })
            .collect();
        if !self.selectors.is_empty() {
            let by_label = labels.iter().filter_map(|(key, value)| {
                self.by_label
                    .get(&(namespace.clone(), key.clone(), value.clone()))
            });
            for &position in by_label.chain(self.by_namespace.get(namespace)).flatten() {
                if self.selectors[&position].matches(labels) {
                    found.push(position);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Something that belongs to a scope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    /// What is carried along: the store's name of the component.
    pub(crate) id: u32,
    pub(crate) key: &'a ComponentKey,
    /// When the scope names it.
    pub(crate) named: Option<&'a MemberRef>,
    /// What the component itself says that it depends on; what the scope says wins.
    pub(crate) depends_on: &'a [String],
}

/// The members of a scope, in the order in which equals are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) list: Vec<Member>,
    /// What must be changed before the scope can be rolled up as meant.
    pub(crate) stalled: Vec<String>,
    /// What has no effect.
    pub(crate) notes: Vec<String>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u32,
    /// Its name, or more where members share the name.
    pub(crate) label: Arc<str>,
    pub(crate) required: bool,
    /// Positions of the members that it depends on.
    pub(crate) depends_on: Vec<usize>,
}

/// Sorts the members, names them and resolves their dependencies. `candidates` holds each component once.
pub(crate) fn resolve(mut candidates: Vec<Candidate<'_>>) -> Members {
    candidates.sort_by(|a, b| order(a.key).cmp(&order(b.key)));
    let mut by_name: HashMap<&Name, Vec<usize>> = HashMap::with_capacity(candidates.len());
    for (position, candidate) in candidates.iter().enumerate() {
        by_name.entry(&candidate.key.name).or_default().push(position);
    }
    let mut members = Members::default();
    for candidate in &candidates {
        let same_name = &by_name[&candidate.key.name];
        members.list.push(Member {
            id: candidate.id,
            label: label(candidate.key, same_name, &candidates),
            required: candidate.named.is_some_and(|named| named.required),
            depends_on: Vec::new(),
        });
    }
    for (position, candidate) in candidates.iter().enumerate() {
        let mut depends_on = Vec::new();
        for dependency in dependencies(candidate, &mut members.notes) {
            let found: Vec<usize> = by_name
                .get(&dependency.name)
                .into_iter()
                .flatten()
                .copied()
                .filter(|&other| dependency.matches(candidates[other].key))
                .collect();
            let member = &members.list[position].label;
            match found[..] {
                [] => members
                    .notes
                    .push(format!("{member} depends on {dependency}, which is not a member")),
                [only] if depends_on.contains(&only) => {}
                [only] => depends_on.push(only),
                [..] => {
                    let choices: Vec<&str> =
                        found.iter().map(|&choice| &*members.list[choice].label).collect();
                    members.stalled.push(format!(
                        "{member} depends on {dependency}, which could be any of {}; write one of these",
                        choices.join(", ")
                    ));
                }
            }
        }
        members.list[position].depends_on = depends_on;
    }
    let edges: Vec<Vec<usize>> = members
        .list
        .iter()
        .map(|member| member.depends_on.clone())
        .collect();
    if let Some(cycle) = find_cycle(&edges) {
        let labels = cycle
            .iter()
            .chain(&cycle[..1])
            .map(|&position| &members.list[position].label);
        members.stalled.push(format!(
            "members depend on each other in a cycle: {}",
            arrows(labels)
        ));
    }
    for list in [&mut members.stalled, &mut members.notes] {
        shorten(list);
    }
    members
}

/// By kind, then name.
fn order(key: &ComponentKey) -> (&str, &Name, &str) {
    (key.kind.as_str(), &key.name, &key.group)
}

fn label(key: &ComponentKey, same_name: &[usize], candidates: &[Candidate<'_>]) -> Arc<str> {
    if same_name.len() == 1 {
        return key.name.as_str().into();
    }
    let same_kind = same_name
        .iter()
        .filter(|&&other| candidates[other].key.kind == key.kind)
        .count();
    if same_kind == 1 {
        format!("{}/{}", key.kind, key.name).into()
    } else {
        format!("{}.{}/{}", key.kind, key.group, key.name).into()
    }
}

fn dependencies(candidate: &Candidate<'_>, notes: &mut Vec<String>) -> Vec<Dependency> {
    if let Some(named) = candidate.named.filter(|named| !named.depends_on.is_empty()) {
        return named.depends_on.clone();
    }
    let mut dependencies = Vec::new();
    for text in candidate.depends_on.iter().take(MAX_DEPENDENCIES) {
        match text.parse::<Dependency>() {
            Ok(dependency) => dependencies.push(dependency),
            Err(_) => notes.push(format!(
                "{} says that it depends on {:?}, which is neither name nor Kind/name",
                candidate.key,
                one_line(text, 80)
            )),
        }
    }
    dependencies
}

fn shorten(list: &mut Vec<String>) {
    if list.len() > MAX_NOTES {
        let more = list.len() - MAX_NOTES;
        list.truncate(MAX_NOTES);
        list.push(format!("and {more} more"));
    }
}

/// For each scope the cycle of scopes that it is part of, written out, and a rank that rises from what is nested to
/// what nests it.
pub(crate) fn nesting<'a>(
    scopes: impl Iterator<Item = Option<&'a EffectiveScope>> + Clone,
) -> (Vec<usize>, Vec<Option<Arc<str>>>) {
    /// More steps than anybody reads.
    const MAX_STEPS: usize = 10;

    let keys: HashMap<&ScopeKey, usize> = scopes
        .clone()
        .enumerate()
        .filter_map(|(position, scope)| Some((&scope?.key, position)))
        .collect();
    let edges: Vec<Vec<usize>> = scopes
        .clone()
        .map(|scope| {
            let members = scope.into_iter().flat_map(|scope| &scope.members);
            let nested = members.filter_map(|member| component_scope(&member.key));
            nested.filter_map(|key| keys.get(&key).copied()).collect()
        })
        .collect();
    let ranks = healthscope_crd::cycle::strongly_connected(&edges);
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (position, &rank) in ranks.iter().enumerate() {
        groups.entry(rank).or_default().push(position);
    }
    let names: Vec<Option<&Name>> = scopes.map(|scope| scope.map(|scope| &scope.key.name)).collect();
    let mut cycles = vec![None; ranks.len()];
    for group in groups.values() {
        // The edges within the group, with nodes numbered anew.
        let number: HashMap<usize, usize> = group.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        let within: Vec<Vec<usize>> = group
            .iter()
            .map(|&old| {
                edges[old]
                    .iter()
                    .filter_map(|target| number.get(target).copied())
                    .collect()
            })
            .collect();
        let Some(cycle) = find_cycle(&within) else {
            continue;
        };
        let name = |&step: &usize| names[group[step]].map_or("", Name::as_str);
        let text: Arc<str> = if cycle.len() > MAX_STEPS {
            let steps = cycle[..MAX_STEPS].iter().map(name);
            arrows(steps.chain(["…", name(&cycle[0])])).into()
        } else {
            arrows(cycle.iter().chain(&cycle[..1]).map(name)).into()
        };
        for &position in group {
            cycles[position] = Some(Arc::clone(&text));
        }
    }
    (ranks, cycles)
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_crd::v1beta1::HealthScopeSpec};

    fn spec(name: &str, json: &str) -> EffectiveScope {
        let spec: HealthScopeSpec = serde_json::from_str(json).unwrap();
        healthscope_crd::effective::effective(&healthscope_crd::HealthScope::new(name, spec)).unwrap()
    }

    #[test]
    fn the_index_finds_what_asking_every_scope_would_find() {
        let scopes = [
            spec("a", r#"{"selector": {"matchLabels": {"app": "shop"}}}"#),
            spec(
                "b",
                r#"{"selector": {"matchLabels": {"app": "shop", "tier": "web"}}}"#,
            ),
            spec(
                "c",
                r#"{"selector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}}"#,
            ),
            spec("d", "{}"),
            spec("e", r#"{"selector": {}}"#),
        ];
        let index = Index::new(scopes.iter().enumerate());
        let check = |labels: &[(&str, &str)], expected: &[usize]| {
            let labels: BTreeMap<String, String> = labels
                .iter()
                .map(|&(key, value)| (key.into(), value.into()))
                .collect();
            assert_eq!(
                index.scopes(&Namespace::default(), &labels),
                expected,
                "{labels:?}"
            );
            let by_selector: Vec<usize> = (0..scopes.len())
                .filter(|&at| {
                    scopes[at]
                        .selector
                        .as_ref()
                        .is_some_and(|selector| selector.matches(&labels))
                })
                .collect();
            assert!(by_selector.iter().all(|at| expected.contains(at)));
            let other = Namespace::new("other").unwrap();
            assert!(index.scopes(&other, &labels).is_empty());
        };
        check(&[], &[4]);
        check(&[("app", "shop")], &[0, 4]);
        check(&[("app", "shop"), ("tier", "web")], &[0, 1, 2, 4]);
        check(&[("tier", "web")], &[2, 4]);
        check(
            &[
                ("healthscope.core.oam.dev/name", "d"),
                ("healthscope.core.oam.dev/a", "true"),
            ],
            &[0, 3, 4],
        );
        check(&[("healthscope.core.oam.dev/name", "nobody")], &[4]);
    }

    #[test]
    fn members_that_share_a_name_are_told_apart() {
        let key = |group: &str, kind: &str, name: &str| ComponentKey {
            namespace: Namespace::default(),
            group: group.into(),
            kind: kind.parse().unwrap(),
            name: Name::new(name).unwrap(),
        };
        let keys = [
            key("apps", "Deployment", "web"),
            key("apps", "Deployment", "db"),
            key("apps", "StatefulSet", "db"),
            key("x.org", "StatefulSet", "db"),
        ];
        let candidates = (0..).zip(&keys).map(|(id, key)| Candidate {
            id,
            key,
            named: None,
            depends_on: &[],
        });
        let members = resolve(candidates.collect::<Vec<_>>().into_iter().rev().collect());
        let labels: Vec<&str> = members.list.iter().map(|member| &*member.label).collect();
        assert_eq!(
            labels,
            [
                "Deployment/db",
                "web",
                "StatefulSet.apps/db",
                "StatefulSet.x.org/db"
            ]
        );
    }

    #[test]
    fn only_so_many_notes_are_kept() {
        let key = ComponentKey::component(Namespace::default(), Name::new("web").unwrap());
        let depends_on: Vec<String> = (0..60).map(|number| format!("nobody-{number}")).collect();
        let members = resolve(vec![Candidate {
            id: 0,
            key: &key,
            named: None,
            depends_on: &depends_on,
        }]);
        assert_eq!(
            (members.notes.len(), members.notes.last().unwrap().as_str()),
            (21, "and 40 more")
        );
    }

    #[test]
    fn a_long_cycle_is_written_in_short() {
        let scopes: Vec<EffectiveScope> = (0..30)
            .map(|at| {
                let next = (at + 1) % 30;
                spec(
                    &format!("s{at}"),
                    &format!(r#"{{"workloadRefs": [{{"kind": "HealthScope", "name": "s{next}"}}]}}"#),
                )
            })
            .collect();
        let (_, cycles) = nesting(scopes.iter().map(Some));
        let expected = "s0 → s1 → s2 → s3 → s4 → s5 → s6 → s7 → s8 → s9 → … → s0";
        assert!(
            cycles.iter().all(|cycle| cycle.as_deref() == Some(expected)),
            "{cycles:?}"
        );
    }
}
