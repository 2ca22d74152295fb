//! What configuration files declare: HealthScopes, and the Components that agents will report about.
//!
//! The one reading of a set of files: the aggregator, `healthscope up` and `healthscope check` all use [`read`]. It does
//! not open files.

use {
    healthscope_crd::{
        HealthScope,
        cycle::find_cycle,
        effective::{Dependency, EffectiveScope, arrows, component_scope, effective},
        v1beta1,
    },
    healthscope_shared::{
        config::{self, COMPONENT_KIND, Component},
        document::{Document, DocumentError, Source},
        name::{Name, Namespace, ScopeKey},
        truncate,
    },
    std::collections::BTreeMap,
};

/// What a set of files declares; all of it can be used.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// The HealthScopes, in the order written.
    pub scopes: Vec<DeclaredScope>,
    /// The Components, in the order written.
    pub components: Vec<Component>,
}

/// A HealthScope of a file.
#[derive(Clone, Debug)]
pub struct DeclaredScope {
    /// As it was written.
    pub object: HealthScope,
    /// What it means.
    pub effective: EffectiveScope,
}

/// Reads everything that the sources declare.
///
/// # Errors
/// Everything that is wrong with any document, with its place: broken YAML, unknown fields and kinds, values that cannot
/// be used, names given twice, cycles among dependencies and among nested scopes.
pub fn read(sources: &[Source]) -> Result<Declared, Vec<DocumentError>> {
    let documents = config::read(sources)?;
    let mut errors = Vec::new();
    let mut scopes = Vec::new();
    let mut places: BTreeMap<ScopeKey, Document> = BTreeMap::new();
    for document in &documents.others {
        let scope = match read_scope(document) {
            Ok(scope) => scope,
            Err(found) => {
                errors.extend(found);
                continue;
            }
        };
        let key = &scope.effective.key;
        if let Some(first) = places.get(key) {
            let first = first.locate("metadata.name");
            let message = format!("a HealthScope {key} exists already, at {first}");
            errors.push(DocumentError {
                place: document.locate("metadata.name"),
                message,
            });
            continue;
        }
        places.insert(key.clone(), document.clone());
        scopes.push(scope);
    }
    errors.extend(dependency_cycles(&documents.components));
    errors.extend(nesting_cycle(&scopes, &places));
    if !errors.is_empty() {
        return Err(errors);
    }
    let components = documents.components.into_iter().map(|(component, _)| component);
    Ok(Declared {
        scopes,
        components: components.collect(),
    })
}

fn read_scope(document: &Document) -> Result<DeclaredScope, Vec<DocumentError>> {
    let kind = truncate(&document.type_meta.kind, 80);
    if document.type_meta.kind != v1beta1::KIND {
        return Err(vec![DocumentError {
            place: document.locate("kind"),
            message: format!(
                "kind: {kind:?} is not a kind that files can declare; write {COMPONENT_KIND} or {}",
                v1beta1::KIND
            ),
        }]);
    }
    if document.type_meta.api_version != v1beta1::API_VERSION {
        let message = format!(
            "apiVersion: a {kind} of {:?} is not known here; write {}",
            truncate(&document.type_meta.api_version, 80),
            v1beta1::API_VERSION
        );
        return Err(vec![DocumentError {
            place: document.locate("apiVersion"),
            message,
        }]);
    }
    let object: HealthScope = document.parse().map_err(|error| vec![error])?;
    let effective = effective(&object).map_err(|errors| {
        errors
            .iter()
            .map(|error| document.error_at(error))
            .collect::<Vec<_>>()
    })?;
    Ok(DeclaredScope { object, effective })
}

/// Finds Components that depend on each other in a cycle, by their annotations; one a namespace is told.
fn dependency_cycles(components: &[(Component, Document)]) -> Vec<DocumentError> {
    let mut by_namespace: BTreeMap<&Namespace, Vec<&(Component, Document)>> = BTreeMap::new();
    for entry in components {
        by_namespace.entry(&entry.0.namespace).or_default().push(entry);
    }
    by_namespace
        .into_values()
        .filter_map(|components| {
            let index: BTreeMap<&Name, usize> = components
                .iter()
                .enumerate()
                .map(|(at, (component, _))| (&component.name, at))
                .collect();
            let target = |written: &String| {
                let dependency: Dependency = written.parse().ok()?;
                let is_component = dependency.kind.is_none_or(|kind| kind.as_str() == COMPONENT_KIND);
                is_component
                    .then(|| index.get(&dependency.name).copied())
                    .flatten()
            };
            let edges: Vec<Vec<usize>> = components
                .iter()
                .map(|(component, _)| component.depends_on.iter().filter_map(target).collect())
                .collect();
            let cycle = find_cycle(&edges)?;
            let names = cycle.iter().chain(&cycle[..1]).map(|&at| &components[at].0.name);
            let (_, document) = components[cycle[0]];
            Some(DocumentError {
                place: document.locate("metadata.annotations"),
                message: format!(
                    "metadata.annotations: components depend on each other in a cycle: {}",
                    arrows(names)
                ),
            })
        })
        .collect()
}

/// Finds scopes that are members of each other.
fn nesting_cycle(scopes: &[DeclaredScope], places: &BTreeMap<ScopeKey, Document>) -> Option<DocumentError> {
    let index: BTreeMap<&ScopeKey, usize> = scopes
        .iter()
        .enumerate()
        .map(|(at, scope)| (&scope.effective.key, at))
        .collect();
    let nested = |scope: &DeclaredScope| {
        let members = scope.effective.members.iter();
        members
            .filter_map(|member| index.get(&component_scope(&member.key)?).copied())
            .collect()
    };
    let edges: Vec<Vec<usize>> = scopes.iter().map(nested).collect();
    let cycle = find_cycle(&edges)?;
    let names = cycle
        .iter()
        .chain(&cycle[..1])
        .map(|&at| &scopes[at].effective.key.name);
    let document = &places[&scopes[cycle[0]].effective.key];
    Some(DocumentError {
        place: document.locate("spec.workloadRefs"),
        message: format!(
            "spec.workloadRefs: scopes contain each other in a cycle: {}",
            arrows(names)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
        )
    }

    fn component(name: &str, depends_on: &str) -> String {
        format!(
            "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata:\n  name: {name}\n  annotations: \
             {{healthscope.core.oam.dev/depends-on: \"{depends_on}\"}}\nspec: {{readinessProbe: {{tcpSocket: {{port: \
             80}}}}}}\n---\n"
        )
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found = match read(&[Source::new("shop.yaml", text)]) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn scopes_and_components_are_read_together() {
        let text = scope("shop", "{workloadRefs: [{kind: Component, name: web}]}") + &component("web", "");
        let declared = read(&[Source::new("shop.yaml", text)]).unwrap();
        assert_eq!(declared.scopes[0].effective.key.to_string(), "default/shop");
        assert_eq!(declared.components[0].name.as_str(), "web");
    }

    #[test]
    fn other_kinds_and_versions_are_named() {
        check(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
            &[
                "shop.yaml:2:1: kind: \"Pod\" is not a kind that files can declare; write Component or HealthScope",
            ],
        );
        check(
            "apiVersion: core.oam.dev/v9\nkind: HealthScope\nmetadata: {name: a}\n",
            &[
                "shop.yaml:1:1: apiVersion: a HealthScope of \"core.oam.dev/v9\" is not known here; write \
               core.oam.dev/v1beta1",
            ],
        );
    }

    #[test]
    fn a_scope_declared_twice_names_the_first() {
        check(
            &(scope("shop", "{}") + &scope("shop", "{}")),
            &["shop.yaml:8:12: a HealthScope default/shop exists already, at shop.yaml:3:12"],
        );
    }

    #[test]
    fn cycles_are_written_out() {
        check(
            &(component("web", "cart") + &component("cart", "Component/db, other") + &component("db", "web")),
            &[
                "shop.yaml:5:3: metadata.annotations: components depend on each other in a cycle: web → cart → db → web",
            ],
        );
        check(
            &(scope("a", "{workloadRefs: [{kind: HealthScope, name: b}]}")
                + &scope("b", "{workloadRefs: [{kind: HealthScope, name: a}]}")),
            &["shop.yaml:4:8: spec.workloadRefs: scopes contain each other in a cycle: a → b → a"],
        );
    }

    #[test]
    fn unusable_values_have_their_place() {
        check(
            &scope("shop", "{policy: {minAvailable: 101}}"),
            &["shop.yaml:4:17: spec.policy.minAvailable: 101 is not a percentage: 0 to 100"],
        );
    }
}
