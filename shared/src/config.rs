//! The configuration file: `kind: Component` objects, what they mean, and their validation.
//!
//! One file may hold Components and HealthScopes side by side. This module reads the Components and hands the
//! other documents back untouched: whoever knows their kind reads them. It does not open files.

use {
    crate::{
        document::{self, Document, DocumentError, Source},
        name::{ComponentKey, Name, Namespace, PortName, ProbeName},
        probe::{
            ProbeKind, ProbeSpec,
            fields::{Errors, FieldError, NamedProbeFields, ProbeContext, ProbeFields, normal_host},
        },
    },
    schemars::JsonSchema,
    serde::{Deserialize, Serialize},
    std::collections::{BTreeMap, BTreeSet},
};

/// The `apiVersion` of Components.
pub const COMPONENT_API_VERSION: &str = "healthscope.core.oam.dev/v1beta1";
/// The `kind` of Components.
pub const COMPONENT_KIND: &str = "Component";
/// Annotation that says what a component depends on: names or `Kind/name`, separated by commas.
pub const DEPENDS_ON_ANNOTATION: &str = "healthscope.core.oam.dev/depends-on";
/// Most probes of one component.
const MAX_PROBES: usize = 1_000;
/// Most dependencies of one component.
const MAX_DEPENDENCIES: usize = crate::wire::MAX_LABELS;

/// Something with health of its own on a machine without Kubernetes: a process, a port, anything a probe can ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComponentObject {
    /// `healthscope.core.oam.dev/v1beta1`.
    pub api_version: String,
    /// `Component`.
    pub kind: String,
    /// Name, namespace, labels and annotations.
    pub metadata: ComponentMetadata,
    /// What is checked, and how.
    pub spec: ComponentSpec,
}

/// Name, namespace, labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComponentMetadata {
    /// Unique among the Components of its namespace.
    pub name: String,
    /// Default `default`. A HealthScope selects from its own namespace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What selectors of HealthScopes look at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `healthscope.core.oam.dev/depends-on: db,cache` says what the component depends on; others are kept for
    /// people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What is checked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ComponentSpec {
    /// Where network probes go unless they say otherwise. Default 127.0.0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port numbers by name; probes may use the names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, i64>,
    /// Does it do its work?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ProbeFields>,
    /// Is it alive?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<ProbeFields>,
    /// Has it started? The other probes are not run before this one has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<ProbeFields>,
    /// Any number of additional probes, each with a name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<NamedProbeFields>,
}

/// A Component that can be used: everything validated, every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Namespace.
    pub namespace: Namespace,
    /// Name.
    pub name: Name,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it depends on: `name` or `Kind/name`.
    pub depends_on: Vec<String>,
    /// Its probes, at least one, names unique.
    pub probes: Vec<ProbeSpec>,
}

impl Component {
    /// Which component it is.
    #[must_use]
    pub fn key(&self) -> ComponentKey {
        ComponentKey::component(self.namespace.clone(), self.name.clone())
    }
}

/// What a set of files holds.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// The Components, in the order written.
    pub components: Vec<(Component, Document)>,
    /// The documents of other kinds, in the order written.
    pub others: Vec<Document>,
}

/// Reads the Components of all sources.
///
/// # Errors
/// Everything that is wrong with any document, in the order of the files: one bad document makes the whole set
/// unusable, so that a half-read configuration never replaces a good one.
pub fn read(sources: &[Source]) -> Result<Documents, Vec<DocumentError>> {
    let mut documents = Documents::default();
    let mut errors = Vec::new();
    let mut seen: BTreeMap<(Namespace, Name), Document> = BTreeMap::new();
    for source in sources {
        let split = match document::split(source) {
            Ok(split) => split,
            Err(found) => {
                errors.extend(found);
                continue;
            }
        };
        for document in split {
            if document.type_meta.kind != COMPONENT_KIND {
                documents.others.push(document);
                continue;
            }
            match read_component(&document) {
                Ok(component) => {
                    let key = (component.namespace.clone(), component.name.clone());
                    if let Some(first) = seen.get(&key) {
                        let message = format!(
                            "a Component {}/{} exists already, at {}",
                            component.namespace,
                            component.name,
                            first.locate("metadata.name")
                        );
                        errors.push(DocumentError {
                            place: document.locate("metadata.name"),
                            message,
                        });
                        continue;
                    }
                    seen.insert(key, document.clone());
                    documents.components.push((component, document));
                }
                Err(found) => errors.extend(found),
            }
        }
    }
    if errors.is_empty() {
        Ok(documents)
    } else {
        Err(errors)
    }
}

fn read_component(document: &Document) -> Result<Component, Vec<DocumentError>> {
    if document.type_meta.api_version != COMPONENT_API_VERSION {
        let message = format!(
            "apiVersion: a Component of {:?} is not known; write {COMPONENT_API_VERSION}",
            crate::truncate(&document.type_meta.api_version, 80)
        );
        return Err(vec![DocumentError {
            place: document.locate("apiVersion"),
            message,
        }]);
    }
    let object: ComponentObject = document.parse().map_err(|error| vec![error])?;
    object
        .validate()
        .map_err(|errors| errors.iter().map(|error| document.error_at(error)).collect())
}

impl ComponentObject {
    /// Validates the object and fills in every default.
    ///
    /// # Errors
    /// Every field that cannot be used, with the reason.
    pub fn validate(self) -> Result<Component, Vec<FieldError>> {
        let Self {
            api_version: _,
            kind: _,
            metadata,
            spec,
        } = self;
        let ComponentMetadata {
            name,
            namespace,
            labels,
            annotations,
        } = metadata;
        let ComponentSpec {
            host,
            ports,
            readiness_probe,
            liveness_probe,
            startup_probe,
            probes,
        } = spec;
        let mut found = Vec::new();
        let mut errors = Errors::new("", &mut found);

        let name = Name::new(name).map_err(|error| errors.at("metadata.name").push(error.to_string()));
        let namespace = match namespace {
            None => Ok(Namespace::default_namespace()),
            Some(namespace) => Namespace::new(namespace)
                .map_err(|error| errors.at("metadata.namespace").push(error.to_string())),
        };
        if labels.len() > crate::wire::MAX_LABELS {
            errors
                .at("metadata.labels")
                .push(format!("must not be more than {}", crate::wire::MAX_LABELS));
        }
        for (key, value) in &labels {
            if let Err(rule) = check_label(key, value) {
                errors.at(format_args!("metadata.labels.{key}")).push(rule);
            }
        }
        let depends_on = dependencies(&annotations, &mut errors);

        let mut errors = errors.at("spec");
        let host = host
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| "127.0.0.1".to_owned());
        let host = normal_host(&host).unwrap_or_else(|| {
            let shown = crate::truncate(&host, 80);
            errors
                .at("host")
                .push(format!("{shown:?} is not a host name or an address"));
            String::new()
        });
        let ports = validate_ports(ports, &mut errors);
        let context = ProbeContext {
            host: &host,
            ports: &ports,
        };

        let mut specs = Vec::new();
        let slots = [
            ("readinessProbe", ProbeKind::Readiness, readiness_probe),
            ("livenessProbe", ProbeKind::Liveness, liveness_probe),
            ("startupProbe", ProbeKind::Startup, startup_probe),
        ];
        let declared = slots.iter().filter(|(_, _, probe)| probe.is_some()).count() + probes.len();
        for (field, kind, fields) in slots {
            let Some(fields) = fields else { continue };
            let name = ProbeName::new(kind.as_str()).expect("kinds are lower-case words");
            specs.extend(fields.validate(name, kind, context, &mut errors.at(field)));
        }
        let mut names: BTreeSet<ProbeName> = specs.iter().map(|spec: &ProbeSpec| spec.name.clone()).collect();
        for (index, probe) in probes.into_iter().enumerate().take(MAX_PROBES) {
            let mut errors = errors.index("probes", index);
            let Some(spec) = probe.validate(context, &mut errors) else {
                continue;
            };
            if !names.insert(spec.name.clone()) {
                errors.at("name").push(format!(
                    "the component has another probe called {:?}",
                    spec.name.as_str()
                ));
            }
            specs.push(spec);
        }
        if declared == 0 {
            errors.push("has no probe: write readinessProbe, livenessProbe, startupProbe or probes");
        }
        if declared > MAX_PROBES {
            errors
                .at("probes")
                .push(format!("must not be more than {MAX_PROBES}"));
        }
        match (name, namespace) {
            (Ok(name), Ok(namespace)) if found.is_empty() => Ok(Component {
                namespace,
                name,
                labels,
                depends_on,
                probes: specs,
            }),
            _ => Err(found),
        }
    }
}

fn validate_ports(ports: BTreeMap<String, i64>, errors: &mut Errors<'_>) -> BTreeMap<PortName, u16> {
    let mut valid = BTreeMap::new();
    for (name, number) in ports {
        let mut errors = errors.at(format_args!("ports.{name}"));
        match (PortName::new(&name), u16::try_from(number)) {
            (Err(error), _) => errors.push(error.to_string()),
            (Ok(name), Ok(number)) if number > 0 => {
                valid.insert(name, number);
            }
            (Ok(_), Ok(_) | Err(_)) => errors.push(format!("must be from 1 to 65535, is {number}")),
        }
    }
    valid
}

fn dependencies(annotations: &BTreeMap<String, String>, errors: &mut Errors<'_>) -> Vec<String> {
    let Some(text) = annotations.get(DEPENDS_ON_ANNOTATION) else {
        return Vec::new();
    };
    let mut errors = errors.at("metadata.annotations");
    let names: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .collect();
    if names.len() > MAX_DEPENDENCIES {
        errors.push(format!(
            "{DEPENDS_ON_ANNOTATION} must not name more than {MAX_DEPENDENCIES}"
        ));
    }
    for name in &names {
        if let Err(rule) = check_dependency(name) {
            errors.push(format!("{DEPENDS_ON_ANNOTATION}: {rule}"));
        }
    }
    names
}

/// Whether `text` can be a dependency: `name` or `Kind/name`.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_dependency(text: &str) -> Result<(), String> {
    let (kind, name) = match text.split_once('/') {
        Some((kind, name)) => (Some(kind), name),
        None => (None, text),
    };
    if let Some(kind) = kind {
        crate::name::Kind::new(kind).map_err(|error| error.to_string())?;
    }
    Name::new(name).map(|_| ()).map_err(|error| error.to_string())
}

/// Kubernetes' rules for labels (`validation.IsQualifiedName`, `IsValidLabelValue`).
///
/// # Errors
/// Says which rule the label breaks.
pub fn check_label(key: &str, value: &str) -> Result<(), String> {
    fn is_word(text: &str) -> bool {
        text.len() <= 63
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    }

    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if !is_word(name) || prefix.is_some_and(|prefix| Name::new(prefix).is_err()) {
        let rule = "letters, digits, '-', '_' and '.', at most 63, with an optional DNS prefix and '/'";
        return Err(format!(
            "{:?} is not a valid label key: {rule}",
            crate::truncate(key, 80)
        ));
    }
    if !value.is_empty() && !is_word(value) {
        let rule = "letters, digits, '-', '_' and '.', at most 63";
        return Err(format!(
            "{:?} is not a valid label value: {rule}",
            crate::truncate(value, 80)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    }

    fn errors(texts: &[&str]) -> Vec<String> {
        let sources: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| Source::new(format!("{i}.yaml"), *text))
            .collect();
        read(&sources)
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_component_is_read_with_its_defaults() {
        let text = r#"
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata:
  name: web
  labels: {app.kubernetes.io/part-of: shop}
  annotations: {healthscope.core.oam.dev/depends-on: "db, Component/cart"}
spec:
  ports: {http: 8080}
  readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, failureThreshold: 2}
  livenessProbe: {exec: {command: [pgrep, -x, web]}}
  probes:
    - {name: disk, type: readiness, exec: {command: [sh, -c, "true"]}, period: 30s, timeout: 5s}
---
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
"#;
        let documents = read(&[Source::new("f", text)]).unwrap();
        let (web, _) = &documents.components[0];
        assert_eq!(web.key().to_string(), "Component/web");
        assert_eq!(web.namespace, Namespace::default_namespace());
        assert_eq!(web.depends_on, ["db", "Component/cart"]);
        let names: Vec<_> = web.probes.iter().map(|probe| probe.name.as_str()).collect();
        assert_eq!(names, ["readiness", "liveness", "disk"]);
        assert_eq!(documents.others[0].type_meta.kind, "HealthScope");
    }

    #[test]
    fn errors_of_fields_have_a_place() {
        let bad = component(
            "web",
            "\n  ports: {http: 0}\n  probes:\n  - {name: a, tcpSocket: {port: 1}, period: 0s}",
        );
        assert_eq!(
            errors(&[&bad]),
            [
                "0.yaml:5:11: spec.ports.http: must be from 1 to 65535, is 0",
                "0.yaml:7:37: spec.probes[0].period: must be at least 50ms, is 0s"
            ]
        );
    }

    #[test]
    fn names_are_unique_across_files_and_within_a_component() {
        let spec = "{probes: [{name: a, tcpSocket: {port: 1}}]}";
        let found = errors(&[&component("web", spec), &component("web", spec)]);
        assert_eq!(
            found,
            ["1.yaml:3:12: a Component default/web exists already, at 0.yaml:3:12"]
        );

        let twice =
            "{readinessProbe: {tcpSocket: {port: 1}}, probes: [{name: readiness, tcpSocket: {port: 1}}]}";
        assert!(errors(&[&component("web", twice)])[0].contains("another probe called \"readiness\""));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, expected) in [
            (component("web", "{}"), "spec: has no probe"),
            (
                component("Web", "{probes: [{name: a, tcpSocket: {port: 1}}]}"),
                "not a valid object name",
            ),
            (
                component("web", "{probes: [{tcpSocket: {port: 1}}]}"),
                "spec.probes[0].name: is required",
            ),
            (
                component("web", "{host: 'a b', probes: [{name: a, tcpSocket: {port: 1}}]}"),
                "spec.host",
            ),
            (
                component("web", "{probes: [{name: a, tcpSocket: {port: x}}]}"),
                "no port is called \"x\"",
            ),
            (
                component("web", "{readinesProbe: {}}"),
                "did you mean \"readinessProbe\"?",
            ),
            (
                component("web", "{}").replace("v1beta1", "v2"),
                "write healthscope.core.oam.dev/v1beta1",
            ),
        ] {
            let found = errors(&[&text]).join("\n");
            assert!(
                found.contains(expected),
                "{text}: {found:?} should contain {expected:?}"
            );
        }
    }

    #[test]
    fn labels_follow_kubernetes_rules() {
        for (key, value, good) in [
            ("app", "web", true),
            ("app.kubernetes.io/part-of", "", true),
            ("a/b/c", "x", false),
            ("-a", "x", false),
            ("a", "x y", false),
            ("", "x", false),
        ] {
            assert_eq!(check_label(key, value).is_ok(), good, "{key}={value}");
        }
    }
}
