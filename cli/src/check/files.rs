//! `healthscope check FILE`: what files mean, and what is wrong with them.
//!
//! Reads with the aggregator's and the agent's own code. Errors and warnings go to standard error with their places,
//! what was understood goes to standard output.

use {
    crate::{
        age,
        args::{CheckArgs, ObjectOutput},
        failure::{Answer, Failure},
        object,
        table::{Cell, Table},
        terminal::{Terminal, visible},
    },
    healthscope_aggregator::declared::{self, Declared, DeclaredScope},
    healthscope_crd::{
        effective::{Dependency, component_scope, is_file_component, scope_component},
        key,
        v1beta1::UnknownPolicy,
    },
    healthscope_service::config_files::{self, Problem},
    healthscope_shared::{
        config::{self, Component, ComponentObject},
        document::{self, Document, DocumentError, Source},
        name::{ComponentKey, Namespace, ScopeKey},
        probe::{
            Handler, ProbeSpec,
            fields::{PortRef, ProbeFields},
        },
    },
    serde_json::{Value, json},
    std::{
        collections::{BTreeMap, BTreeSet},
        fmt::Write as _,
        io::Read,
        path::{Path, PathBuf},
    },
};

/// Members written out in a table's cell; the others are counted.
const MAX_NAMES: usize = 6;

/// Validates files and prints what they mean.
pub(crate) fn run(args: &CheckArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let CheckArgs {
        paths,
        output,
        quiet,
        wait: _,
        pod: _,
        pre: _,
        fix: _,
        yes: _,
    } = args;
    let checked = match read(paths).and_then(|sources| Checked::new(&sources).map_err(lines)) {
        Ok(checked) => checked,
        Err(problems) => {
            say(&problems);
            let count = problems.len();
            let noun = if count == 1 { "problem" } else { "problems" };
            return Err(Failure::error(format!("not valid: {count} {noun}")));
        }
    };
    say(&checked.warnings);
    if *quiet {
        return Ok(Answer::Yes);
    }
    let text = match output {
        None => checked.tables(terminal),
        Some(ObjectOutput::Json) => object::json(&checked.object()),
        Some(ObjectOutput::Yaml) => object::yaml(&checked.object()),
    };
    terminal.print(&text)?;
    Ok(Answer::Yes)
}

/// All sources of all paths, or all that is wrong with reading them, one line each.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Source>, Vec<String>> {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            match standard_input() {
                Ok(source) => sources.push(source),
                Err(problem) => problems.push(problem.to_string()),
            }
            continue;
        }
        match config_files::read(path) {
            Ok(found) => sources.extend(found),
            Err(found) => problems.extend(lines(found.list())),
        }
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(problems)
    }
}

fn standard_input() -> Result<Source, Problem> {
    const NAME: &str = "standard input";
    let limit = document::MAX_FILE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::File {
            path: NAME.into(),
            message: format!("cannot be read: {error}"),
        })?;
    config_files::source(NAME, bytes)
}

/// Each on a line of its own.
pub(crate) fn lines<E: ToString>(errors: impl IntoIterator<Item = E>) -> Vec<String> {
    errors.into_iter().map(|error| error.to_string()).collect()
}

/// Prints lines to standard error, harmless whatever is in them.
#[expect(
    clippy::print_stderr,
    reason = "problems go to standard error, what was understood to standard output"
)]
pub(crate) fn say(problems: &[String]) {
    for problem in problems {
        eprintln!("{}", visible(problem));
    }
}

/// Files that are valid, and what is odd about them.
struct Checked {
    declared: Declared,
    files: usize,
    /// `shop.yaml:3:7: warning: ...`
    warnings: Vec<String>,
}

impl Checked {
    fn new(sources: &[Source]) -> Result<Self, Vec<DocumentError>> {
        let declared = declared::read(sources)?;
        // Split again for the places alone; what could be wrong was found by the reading.
        let mut components = Vec::new();
        let mut scopes = Vec::new();
        for document in sources
            .iter()
            .map(document::split)
            .collect::<Result<Vec<_>, _>>()?
            .concat()
        {
            let is_component = document.type_meta.kind == config::COMPONENT_KIND;
            if is_component {
                &mut components
            } else {
                &mut scopes
            }
            .push(document);
        }
        let mut warnings = Warnings::default();
        let known: BTreeSet<ComponentKey> = declared
            .components
            .iter()
            .map(Component::key)
            .chain(
                declared
                    .scopes
                    .iter()
                    .map(|scope| scope_component(&scope.effective.key)),
            )
            .collect();
        for (scope, document) in declared.scopes.iter().zip(&scopes) {
            warnings.about_scope(scope, document, &declared, &known);
        }
        let in_scopes: BTreeSet<ComponentKey> = declared
            .scopes
            .iter()
            .flat_map(|scope| members(scope, &declared))
            .map(|member| member.key)
            .collect();
        for (component, document) in declared.components.iter().zip(&components) {
            warnings.about_component(component, document, &known);
            if !declared.scopes.is_empty() && !in_scopes.contains(&component.key()) {
                warnings.add(
                    document,
                    "metadata.name",
                    "is in no HealthScope, so its health changes no verdict",
                );
            }
        }
        Ok(Self {
            declared,
            files: sources.len(),
            warnings: warnings.0,
        })
    }

    fn tables(&self, terminal: Terminal) -> String {
        let Self {
            declared,
            files,
            warnings,
        } = self;
        let Declared { scopes, components } = declared;
        let mut text = String::new();
        let namespaces: BTreeSet<&Namespace> = components
            .iter()
            .map(|component| &component.namespace)
            .chain(scopes.iter().map(|scope| &scope.effective.key.namespace))
            .collect();
        let plain = |namespace: &Namespace| namespaces.len() == 1 && *namespace == Namespace::default();
        let full = |namespace: &Namespace, name: &str| match plain(namespace) {
            true => name.to_owned(),
            false => format!("{namespace}/{name}"),
        };
        if !components.is_empty() {
            let headers = vec![
                "COMPONENT",
                "PROBE",
                "TYPE",
                "CHECK",
                "PERIOD",
                "TIMEOUT",
                "DELAY",
                "SUCCESS",
                "FAILURE",
            ];
            let mut table = Table::new(headers);
            for component in components {
                let name = full(&component.namespace, component.name.as_str());
                for probe in &component.probes {
                    table.row(probe_row(&name, probe));
                }
            }
            text.push_str(&table.render(terminal));
            text.push('\n');
        }
        if !scopes.is_empty() {
            let headers = vec![
                "SCOPE",
                "AVAILABLE",
                "UNKNOWN AS",
                "HEALTHY AFTER",
                "MAINTENANCE",
                "MEMBERS",
            ];
            let mut table = Table::new(headers);
            for scope in scopes {
                let name = full(&scope.effective.key.namespace, scope.effective.key.name.as_str());
                table.row(scope_row(&name, scope, declared));
            }
            text.push_str(&table.render(terminal));
            text.push('\n');
        }
        let probes = components.iter().map(|component| component.probes.len()).sum();
        let _always_fits = writeln!(
            text,
            "valid: {}, {}, {} in {}{}",
            count(components.len(), "component"),
            count(probes, "probe"),
            count(scopes.len(), "scope"),
            count(*files, "file"),
            if warnings.is_empty() {
                String::new()
            } else {
                format!("; {}", count(warnings.len(), "warning"))
            },
        );
        text
    }

    fn object(&self) -> Value {
        let Declared { scopes, components } = &self.declared;
        json!({
            "components": components.iter().map(component_object).collect::<Vec<_>>(),
            "scopes": scopes.iter().map(|scope| scope_object(scope, &self.declared)).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

fn probe_row(component: &str, probe: &ProbeSpec) -> Vec<Cell> {
    let ProbeSpec {
        name,
        kind,
        handler,
        initial_delay,
        period,
        timeout,
        success_threshold,
        failure_threshold,
    } = probe;
    vec![
        component.into(),
        name.as_str().into(),
        kind.as_str().into(),
        healthscope_shared::one_line(&visible(&handler.to_string()), 80).into(),
        age::exact(*period).into(),
        age::exact(*timeout).into(),
        age::exact(*initial_delay).into(),
        success_threshold.to_string().into(),
        failure_threshold.to_string().into(),
    ]
}

fn scope_row(name: &str, scope: &DeclaredScope, declared: &Declared) -> Vec<Cell> {
    let effective = &scope.effective;
    let maintenance = match &effective.maintenance {
        None => Cell::none(),
        Some(maintenance) => match maintenance.until {
            Some(until) => format!("until {until}").into(),
            None => "until removed".into(),
        },
    };
    let names: Vec<String> = members(scope, declared)
        .into_iter()
        .map(|member| member.shown())
        .collect();
    let members = match names.len() {
        0 => Cell::none(),
        known if known <= MAX_NAMES => names.join(", ").into(),
        known => format!(
            "{}, and {} more",
            names[..MAX_NAMES].join(", "),
            known - MAX_NAMES
        )
        .into(),
    };
    vec![
        name.into(),
        format!("{}%", effective.policy.min_available).into(),
        unknown_word(effective.policy.unknown).into(),
        age::exact(effective.policy.min_healthy).into(),
        maintenance,
        members,
    ]
}

const fn unknown_word(policy: UnknownPolicy) -> &'static str {
    match policy {
        UnknownPolicy::Unknown => "Unknown",
        UnknownPolicy::Unhealthy => "Unhealthy",
        UnknownPolicy::Ignore => "Ignore",
    }
}

/// A member of a scope as far as files tell.
struct Member {
    key: ComponentKey,
    required: bool,
}

impl Member {
    fn shown(&self) -> String {
        let name = if is_file_component(&self.key) {
            self.key.name.to_string()
        } else {
            self.key.to_string()
        };
        if self.required {
            format!("{name} (required)")
        } else {
            name
        }
    }
}

/// Members by name in the order written, then those by label.
fn members(scope: &DeclaredScope, declared: &Declared) -> Vec<Member> {
    let effective = &scope.effective;
    let mut members: Vec<Member> = effective
        .members
        .iter()
        .map(|member| Member {
            key: member.key.clone(),
            required: member.required,
        })
        .collect();
    let named: BTreeSet<ComponentKey> = members.iter().map(|member| member.key.clone()).collect();
    let by_label = declared
        .components
        .iter()
        .filter(|component| component.namespace == effective.key.namespace)
        .filter(|component| {
            let is_selected = effective
                .selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&component.labels));
            is_selected || key::scope_names(&component.labels).any(|name| name == effective.key.name.as_str())
        })
        .map(Component::key)
        .filter(|key| !named.contains(key));
    members.extend(by_label.map(|key| Member { key, required: false }));
    members
}

fn component_object(component: &Component) -> Value {
    let Component {
        namespace,
        name,
        labels,
        depends_on,
        probes,
    } = component;
    json!({
        "namespace": namespace,
        "name": name,
        "labels": labels,
        "dependsOn": depends_on,
        "probes": probes.iter().map(probe_object).collect::<Vec<_>>(),
    })
}

fn probe_object(probe: &ProbeSpec) -> Value {
    let ProbeSpec {
        name,
        kind,
        handler,
        initial_delay,
        period,
        timeout,
        success_threshold,
        failure_threshold,
    } = probe;
    let mut object = json!({
        "name": name,
        "type": kind,
        "initialDelay": age::exact(*initial_delay),
        "period": age::exact(*period),
        "timeout": age::exact(*timeout),
        "successThreshold": success_threshold,
        "failureThreshold": failure_threshold,
    });
    let action = match handler {
        Handler::Exec(exec) => json!({"command": exec.command}),
        Handler::HttpGet(http) => json!({
            "scheme": http.scheme.as_str().to_uppercase(),
            "host": http.host,
            "port": http.port,
            "path": http.path,
            "httpHeaders": http.headers.iter()
                .map(|(name, value)| json!({"name": name.as_str(), "value": String::from_utf8_lossy(value.as_bytes())}))
                .collect::<Vec<_>>(),
            "tls": if http.verify_tls { "verify" } else { "skipVerify" },
            "expectedStatus": expected_status(&http.expected_status),
            "expectedBody": http.expected_body,
        }),
        Handler::TcpSocket(tcp) => json!({"host": tcp.host, "port": tcp.port}),
        Handler::Grpc(grpc) => json!({"host": grpc.host, "port": grpc.port, "service": grpc.service}),
    };
    object[handler.as_str()] = action;
    object
}

fn expected_status(ranges: &[(u16, u16)]) -> Vec<String> {
    if ranges.is_empty() {
        return vec!["200-399".into()];
    }
    ranges
        .iter()
        .map(|(low, high)| {
            if low == high {
                low.to_string()
            } else {
                format!("{low}-{high}")
            }
        })
        .collect()
}

fn scope_object(scope: &DeclaredScope, declared: &Declared) -> Value {
    let effective = &scope.effective;
    let ScopeKey { namespace, name } = &effective.key;
    let depends_on: BTreeMap<&ComponentKey, Vec<String>> = effective
        .members
        .iter()
        .map(|member| {
            (
                &member.key,
                member.depends_on.iter().map(ToString::to_string).collect(),
            )
        })
        .collect();
    let members: Vec<Value> = members(scope, declared)
        .iter()
        .map(|member| {
            json!({
                "kind": member.key.kind,
                "name": member.key.name,
                "required": member.required,
                "dependsOn": depends_on.get(&member.key).cloned().unwrap_or_default(),
            })
        })
        .collect();
    json!({
        "namespace": namespace,
        "name": name,
        "policy": {
            "minAvailable": effective.policy.min_available,
            "unknownPolicy": unknown_word(effective.policy.unknown),
            "minHealthySeconds": effective.policy.min_healthy.as_secs(),
        },
        "maintenance": effective.maintenance.as_ref().map(|maintenance| json!({
            "until": maintenance.until.map(|until| until.to_string()),
            "reason": maintenance.reason,
        })),
        "members": members,
    })
}

/// What is allowed and probably not meant.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, document: &Document, path: &str, message: &str) {
        self.0
            .push(format!("{}: warning: {path}: {message}", document.locate(path)));
    }

    fn about_scope(
        &mut self,
        scope: &DeclaredScope,
        document: &Document,
        declared: &Declared,
        known: &BTreeSet<ComponentKey>,
    ) {
        let effective = &scope.effective;
        for (index, member) in effective.members.iter().enumerate() {
            let path = format!("spec.workloadRefs[{index}]");
            let key = &member.key;
            let is_ours = is_file_component(key) || component_scope(key).is_some();
            if !is_ours {
                let message = format!(
                    "outside of Kubernetes there are no {}s; members here are Components and HealthScopes",
                    key.kind
                );
                self.add(document, &format!("{path}.kind"), &message);
            } else if !known.contains(key) {
                let message = format!(
                    "no {key} in these files; it is Unhealthy (NotFound) unless it is declared elsewhere"
                );
                self.add(document, &format!("{path}.name"), &message);
            }
        }
        let members = members(scope, declared);
        for (index, member) in effective.members.iter().enumerate() {
            for (at, dependency) in member.depends_on.iter().enumerate() {
                if !members.iter().any(|member| dependency.matches(&member.key)) {
                    let message = format!("no member of this scope is called {dependency}");
                    self.add(
                        document,
                        &format!("spec.workloadRefs[{index}].dependsOn[{at}]"),
                        &message,
                    );
                }
            }
        }
        let selects_nothing = effective.selector.as_ref().is_some_and(|selector| {
            !declared.components.iter().any(|component| {
                component.namespace == effective.key.namespace && selector.matches(&component.labels)
            })
        });
        if selects_nothing {
            let message = format!(
                "selects no Component of these files in the namespace {}",
                effective.key.namespace
            );
            self.add(document, "spec.selector", &message);
        }
        if members.is_empty() && !selects_nothing {
            self.add(document, "spec", "has no members; an empty scope is Healthy");
        }
    }

    fn about_component(
        &mut self,
        component: &Component,
        document: &Document,
        known: &BTreeSet<ComponentKey>,
    ) {
        for written in &component.depends_on {
            let Ok(dependency) = written.parse::<Dependency>() else {
                continue;
            };
            let is_known = known
                .iter()
                .any(|key| key.namespace == component.namespace && dependency.matches(key));
            if !is_known {
                let message = format!("depends on {written}, which these files do not declare");
                self.add(document, "metadata.annotations", &message);
            }
        }
        // Read once more only where there can be something to find.
        if !document.text().contains("ports") {
            return;
        }
        let Ok(object) = document.parse::<ComponentObject>() else {
            return;
        };
        let spec = object.spec;
        let used: BTreeSet<&str> = [&spec.readiness_probe, &spec.liveness_probe, &spec.startup_probe]
            .into_iter()
            .flatten()
            .flat_map(
                |ProbeFields {
                     http_get, tcp_socket, ..
                 }| {
                    [
                        http_get.as_ref().map(|http| &http.port),
                        tcp_socket.as_ref().map(|tcp| &tcp.port),
                    ]
                },
            )
            .chain(spec.probes.iter().flat_map(|probe| {
                [
                    probe.http_get.as_ref().map(|http| &http.port),
                    probe.tcp_socket.as_ref().map(|tcp| &tcp.port),
                ]
            }))
            .flatten()
            .filter_map(|port| match port {
                PortRef::Name(name) => Some(name.as_str()),
                PortRef::Number(_) => None,
            })
            .collect();
        for name in spec.ports.keys().filter(|name| !used.contains(name.as_str())) {
            self.add(
                document,
                &format!("spec.ports.{name}"),
                "no probe uses this port by its name",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "\
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata: {name: web, labels: {part-of: shop}}
spec:
  ports: {http: 8080, admin: 9090}
  readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, failureThreshold: 2}
---
";

    fn scope(spec: &str) -> String {
        format!(
            "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: shop}}\nspec: {spec}\n---\n"
        )
    }

    fn checked(text: &str) -> Checked {
        match Checked::new(&[Source::new("f.yaml", text)]) {
            Ok(checked) => checked,
            Err(errors) => panic!("{errors:?}"),
        }
    }

    #[track_caller]
    fn check(text: &str, warnings: &[&str]) {
        assert_eq!(checked(text).warnings, warnings);
    }

    #[test]
    fn what_is_probably_not_meant_is_warned_about() {
        let unused = "f.yaml:5:23: warning: spec.ports.admin: no probe uses this port by its name";
        let alone =
            "f.yaml:3:12: warning: metadata.name: is in no HealthScope, so its health changes no verdict";
        check(WEB, &[unused]);
        check(
            &(WEB.to_owned() + &scope("{selector: {matchLabels: {part-of: shop}}}")),
            &[unused],
        );
        check(
            &(WEB.to_owned() + &scope("{selector: {matchLabels: {part-of: shp}}}")),
            &[
                "f.yaml:11:8: warning: spec.selector: selects no Component of these files in the namespace default",
                unused,
                alone,
            ],
        );
        check(
            &(WEB.to_owned()
                + &scope(
                    "{workloadRefs: [{kind: Component, name: web, dependsOn: [db]}, {kind: Component, name: cart}]}",
                )),
            &[
                "f.yaml:11:88: warning: spec.workloadRefs[1].name: no Component/cart in these files; it is Unhealthy \
                 (NotFound) unless it is declared elsewhere",
                "f.yaml:11:64: warning: spec.workloadRefs[0].dependsOn[0]: no member of this scope is called db",
                unused,
            ],
        );
        check(
            &scope("{workloadRefs: [{apiVersion: apps/v1, kind: Deployment, name: web}]}"),
            &[
                "f.yaml:4:45: warning: spec.workloadRefs[0].kind: outside of Kubernetes there are no Deployments; members \
               here are Components and HealthScopes",
            ],
        );
        check(
            &scope("{}"),
            &["f.yaml:4:1: warning: spec: has no members; an empty scope is Healthy"],
        );
    }

    #[test]
    fn every_field_is_understood() {
        let text = include_str!("../../../examples/all-fields.yaml");
        let checked = Checked::new(&[Source::new("all-fields.yaml", text)])
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        crate::golden::check("check-all-fields.txt", &checked.tables(Terminal::plain()));
        crate::golden::check("check-all-fields.yaml", &object::yaml(&checked.object()));
    }

    #[test]
    fn defaults_are_filled_in() {
        let text = checked(&(WEB.to_owned() + &scope("{selector: {matchLabels: {part-of: shop}}}")));
        let expected = "\
COMPONENT   PROBE       TYPE        CHECK                         PERIOD   TIMEOUT   DELAY   SUCCESS   FAILURE
web         readiness   readiness   http 127.0.0.1:8080/healthz   1s       1s        0s      1         2

SCOPE   AVAILABLE   UNKNOWN AS   HEALTHY AFTER   MAINTENANCE   MEMBERS
shop    100%        Unknown      0s              <none>        web

valid: 1 component, 1 probe, 1 scope in 1 file; 1 warning
";
        assert_eq!(text.tables(Terminal::plain()), expected);
    }
}
