//! The description of the API, OpenAPI 3.1, made from the very types that are sent.

use {
    super::{
        Api, DEFAULT_LIMIT, List, MAX_LIMIT,
        components::ListedProbe,
        respond,
        runs::Runs,
        scopes::ListedScope,
        status::Status,
        stream::{RemovedEvent, SnapshotEvent, TotalsEvent},
        text::HealthScopeList,
        transitions::Transitions,
    },
    crate::site::problem::{self, Document},
    axum::{extract::State, response::Response},
    healthscope_core::view::{AgentView, ComponentSummary, ComponentView, ScopeView, TransitionView},
    healthscope_crd::HealthScope,
    healthscope_service::build,
    http::StatusCode,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
    serde_json::{Map, Value, json},
    std::sync::LazyLock,
};

static TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string(&document()).expect("JSON values can be written"));

pub(super) async fn get(State(_): State<Api>) -> Response {
    respond(StatusCode::OK, "application/json", TEXT.as_str())
}

/// A parameter: name, where, what for, schema.
type Parameter = (&'static str, In, &'static str, Value);

#[derive(Clone, Copy)]
enum In {
    Path,
    Query,
    Header,
}

impl In {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

/// An answer: status, what it means, its content.
type Answer = (&'static str, &'static str, Option<Value>);

struct Operation {
    path: &'static str,
    method: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    answers: Vec<Answer>,
}

/// The whole document.
fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = SchemaGenerator::new(settings);
    let mut paths = Map::new();
    for operation in operations(&mut schemas) {
        let Operation {
            path,
            method,
            id,
            summary,
            parameters,
            answers,
        } = operation;
        let mut described = json!({
            "operationId": id,
            "summary": summary,
            "responses": responses(answers),
        });
        if !parameters.is_empty() {
            described["parameters"] = parameters.into_iter().map(parameter).collect();
        }
        if method == "post" {
            described["requestBody"] = json!({
                "description": "May be empty; its type keeps pages of other origins from sending it.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            });
        }
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method] = described;
    }
    // Sent as the data of events, so that no answer names them.
    schemas.subschema_for::<SnapshotEvent>();
    schemas.subschema_for::<TotalsEvent>();
    schemas.subschema_for::<RemovedEvent>();
    schemas.subschema_for::<TransitionView>();
    let problem = schemas.subschema_for::<Document>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "HealthScope aggregator",
            "version": build::VERSION,
            "summary": "Health of applications: scopes, their components, and why.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "security": [{}, {"token": []}, {"session": []}],
        "components": {
            "schemas": schemas.take_definitions(true),
            "responses": {
                "Problem": {
                    "description": "What went wrong, as an RFC 9457 problem document.",
                    "content": {problem::CONTENT: {"schema": problem}},
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The content of the file given by --token-file, where one is given; with --auth=kubernetes, any token \
                                    that the cluster's API server takes.",
                },
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": crate::site::cookie::COOKIE_NAME,
                    "description": "What the sign-in form sets.",
                },
            },
        },
    })
}

fn parameter((name, place, description, schema): Parameter) -> Value {
    let mut parameter = json!({
        "name": name,
        "in": place.as_str(),
        "description": description,
        "schema": schema,
    });
    if matches!(place, In::Path) {
        parameter["required"] = true.into();
    }
    parameter
}

fn responses(answers: Vec<Answer>) -> Value {
    let mut responses = Map::new();
    for (status, description, content) in answers {
        let mut answer = json!({"description": description});
        if let Some(content) = content {
            answer["content"] = content;
        }
        responses.insert(status.into(), answer);
    }
    responses.insert(
        "default".into(),
        json!({"$ref": "#/components/responses/Problem"}),
    );
    responses.into()
}

fn json_of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    json!({"application/json": {"schema": schemas.subschema_for::<T>()}})
}

fn text(description: &str) -> Value {
    json!({"text/plain": {"schema": {"type": "string", "description": description}}})
}

fn string() -> Value {
    json!({"type": "string"})
}

fn one_of(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

fn names() -> Vec<Parameter> {
    vec![
        ("namespace", In::Path, "Namespace.", string()),
        ("name", In::Path, "Name.", string()),
    ]
}

/// The parameters of every list.
fn of_page() -> Vec<Parameter> {
    vec![
        (
            "q",
            In::Query,
            "Words that must all occur, in whatever case.",
            string(),
        ),
        (
            "limit",
            In::Query,
            "Most items of the answer.",
            json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}),
        ),
        (
            "continue",
            In::Query,
            "What the former page gave as continue.",
            string(),
        ),
    ]
}

fn with_page(mut parameters: Vec<Parameter>) -> Vec<Parameter> {
    parameters.extend(of_page());
    parameters
}

const HEALTHS: [&str; 4] = ["Healthy", "Degraded", "Unknown", "Unhealthy"];

fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let mut operations = views(schemas);
    operations.extend(actions(schemas));
    operations.extend(changes(schemas));
    operations.extend(objects(schemas));
    operations.extend(machines());
    operations
}

fn views(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let namespace = || ("namespace", In::Query, "Of this namespace only.", string());
    let health = || ("health", In::Query, "Of this health only.", one_of(&HEALTHS));
    let kind = || {
        (
            "kind",
            In::Query,
            "Kind of the component; default Component.",
            string(),
        )
    };
    vec![
        Operation {
            path: "/api/v1/status",
            method: "get",
            id: "getStatus",
            summary: "The aggregator about itself: version, totals, problems of its configuration",
            parameters: vec![],
            answers: vec![("200", "The status.", Some(json_of::<Status>(schemas)))],
        },
        Operation {
            path: "/api/v1/scopes",
            method: "get",
            id: "listScopes",
            summary: "Scopes by namespace and name, each with its worst 50 components",
            parameters: with_page(vec![namespace(), health()]),
            answers: vec![("200", "A page.", Some(json_of::<List<ListedScope>>(schemas)))],
        },
        Operation {
            path: "/api/v1/scopes/{namespace}/{name}",
            method: "get",
            id: "getScope",
            summary: "One scope with all its components",
            parameters: names(),
            answers: vec![("200", "The scope.", Some(json_of::<ScopeView>(schemas)))],
        },
        Operation {
            path: "/api/v1/components",
            method: "get",
            id: "listComponents",
            summary: "Components by namespace, group, kind and name, in scopes or not",
            parameters: with_page(vec![
                namespace(),
                ("scope", In::Query, "Members of this scope only.", string()),
                health(),
            ]),
            answers: vec![("200", "A page.", Some(json_of::<List<ComponentSummary>>(schemas)))],
        },
        Operation {
            path: "/api/v1/components/{namespace}/{name}",
            method: "get",
            id: "getComponent",
            summary: "One component with its instances and probes",
            parameters: [names(), vec![kind()]].concat(),
            answers: vec![("200", "The component.", Some(json_of::<ComponentView>(schemas)))],
        },
        Operation {
            path: "/api/v1/probes",
            method: "get",
            id: "listProbes",
            summary: "Probes by component, instance, agent and name",
            parameters: with_page(vec![
                namespace(),
                ("component", In::Query, "Of this component only.", string()),
                (
                    "state",
                    In::Query,
                    "In this state only.",
                    one_of(&["pending", "passing", "failing"]),
                ),
            ]),
            answers: vec![("200", "A page.", Some(json_of::<List<ListedProbe>>(schemas)))],
        },
        Operation {
            path: "/api/v1/agents",
            method: "get",
            id: "listAgents",
            summary: "Agents by name, connected or not",
            parameters: with_page(vec![(
                "presence",
                In::Query,
                "Present like this only.",
                one_of(&["connected", "syncing", "held", "lost", "stopped"]),
            )]),
            answers: vec![("200", "A page.", Some(json_of::<List<AgentView>>(schemas)))],
        },
    ]
}

fn actions(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    vec![
        Operation {
            path: "/api/v1/components/{namespace}/{name}/probes/{probe}/run",
            method: "post",
            id: "runProbe",
            summary: "Run a configured probe now, through the agents that have it",
            parameters: [
                names(),
                vec![
                    ("probe", In::Path, "Name of the probe.", string()),
                    (
                        "kind",
                        In::Query,
                        "Kind of the component; default Component.",
                        string(),
                    ),
                    ("instance", In::Query, "On this instance only.", string()),
                    (
                        "timeoutSeconds",
                        In::Query,
                        "How long to wait for the agents.",
                        json!({"type": "integer", "minimum": 1, "maximum": 120, "default": 15}),
                    ),
                ],
            ]
            .concat(),
            answers: vec![("200", "What came out.", Some(json_of::<Runs>(schemas)))],
        },
        Operation {
            path: "/api/v1/agents/{name}",
            method: "delete",
            id: "forgetAgent",
            summary: "Forget an agent that is gone for good, with everything it spoke for",
            parameters: vec![("name", In::Path, "Name of the agent.", string())],
            answers: vec![("204", "Forgotten.", None)],
        },
    ]
}

fn changes(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    vec![
        Operation {
            path: "/api/v1/transitions",
            method: "get",
            id: "listTransitions",
            summary: "The latest transitions of scopes and components, or of probes when asked for, oldest first",
            parameters: vec![
                (
                    "after",
                    In::Query,
                    "After the transition with this id only.",
                    json!({"type": "integer", "minimum": 0}),
                ),
                ("namespace", In::Query, "Of this namespace only.", string()),
                ("name", In::Query, "Of this scope or component only.", string()),
                (
                    "level",
                    In::Query,
                    "Of this level only.",
                    one_of(&["scope", "component", "probe"]),
                ),
                (
                    "limit",
                    In::Query,
                    "The newest so many.",
                    json!({"type": "integer", "minimum": 0}),
                ),
            ],
            answers: vec![("200", "The transitions.", Some(json_of::<Transitions>(schemas)))],
        },
        Operation {
            path: "/api/v1/stream",
            method: "get",
            id: "openStream",
            summary: "Changes as they happen, as server-sent events",
            parameters: vec![
                ("namespace", In::Query, "Of this namespace only.", string()),
                (
                    "scope",
                    In::Query,
                    "Of this scope and its components only; its namespace is default unless said.",
                    string(),
                ),
                (
                    "events",
                    In::Query,
                    "Which events, separated by commas: snapshot, scope (with removed), transition, totals. Default: all.",
                    string(),
                ),
                (
                    "level",
                    In::Query,
                    "Which transitions, separated by commas: scope, component, probe. Default: all.",
                    string(),
                ),
                (
                    "lastEventId",
                    In::Query,
                    "Like the header Last-Event-ID, for clients that cannot set it.",
                    json!({"type": "integer", "minimum": 0}),
                ),
                (
                    "Last-Event-ID",
                    In::Header,
                    "Id of the last transition seen; those after it come first.",
                    json!({"type": "integer", "minimum": 0}),
                ),
            ],
            answers: vec![(
                "200",
                "Events: snapshot (SnapshotEvent) first, then transition (TransitionView, with id), scope (ListedScope), \
                 removed (RemovedEvent), totals and heartbeat (TotalsEvent).",
                Some(json!({"text/event-stream": {"schema": string()}})),
            )],
        },
    ]
}

fn objects(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let mut object = json_of::<HealthScope>(schemas);
    object["text/plain"] = text("The bare word of its health.")["text/plain"].take();
    let mut list = json_of::<HealthScopeList>(schemas);
    list["text/plain"] = text("namespace/name and the word, one scope a line.")["text/plain"].take();
    let answers = || {
        vec![
            (
                "200",
                "It is available: Healthy or Degraded.",
                Some(object.clone()),
            ),
            ("503", "It is not available.", Some(object.clone())),
        ]
    };
    vec![
        Operation {
            path: "/scopes",
            method: "get",
            id: "listObjects",
            summary: "All scopes as kubectl gives them, or as lines of text by Accept: text/plain",
            parameters: vec![],
            answers: vec![("200", "The scopes.", Some(list))],
        },
        Operation {
            path: "/scopes/{namespace}/{name}",
            method: "get",
            id: "getObject",
            summary: "One scope as kubectl gives it, or its bare word by Accept: text/plain",
            parameters: names(),
            answers: answers(),
        },
        Operation {
            path: "/scopes/{name}",
            method: "get",
            id: "getObjectInDefault",
            summary: "The same in the namespace default",
            parameters: vec![("name", In::Path, "Name.", string())],
            answers: answers(),
        },
        Operation {
            path: "/{scope}",
            method: "get",
            id: "getWord",
            summary: "Rudr's health endpoint: healthy or unhealthy, for a scope of the namespace default",
            parameters: vec![("scope", In::Path, "Name of the scope.", string())],
            answers: vec![(
                "200",
                "The word.",
                Some(json!({"text/plain": {"schema": one_of(&["healthy", "unhealthy"])}})),
            )],
        },
    ]
}

fn machines() -> Vec<Operation> {
    let plain = |path, id, summary| Operation {
        path,
        method: "get",
        id,
        summary,
        parameters: vec![],
        answers: vec![("200", "Yes.", Some(text("ok")))],
    };
    vec![
        Operation {
            path: "/metrics",
            method: "get",
            id: "getMetrics",
            summary: "Metrics in the Prometheus text format",
            parameters: vec![],
            answers: vec![(
                "200",
                "The metrics.",
                Some(text("Prometheus text format, version 0.0.4.")),
            )],
        },
        plain("/livez", "getLive", "Whether the process lives"),
        plain(
            "/readyz",
            "getReady",
            "Whether it serves and its configuration is applied",
        ),
        plain("/healthz", "getHealth", "The same as /readyz"),
    ]
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        std::{collections::BTreeSet, fs, path::Path},
    };

    #[test]
    fn the_guide_names_every_operation() {
        let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
        let guide = fs::read_to_string(guide).unwrap();
        for (path, methods) in document()["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                let named = format!("`{} {path}`", method.to_uppercase());
                assert!(guide.contains(&named), "docs/api.md does not name {named}");
            }
        }
    }

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(target) if name == "$ref" => found.push(target.clone()),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn all_operations(document: &Value) -> Vec<(&String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .values()
                    .map(move |operation| (path, operation))
            })
            .collect()
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn every_part_of_a_path_is_a_parameter() {
        let document = document();
        for (path, operation) in all_operations(&document) {
            let in_path: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let declared: BTreeSet<&str> = parameters
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| {
                    assert_eq!(parameter["required"], true, "{path}");
                    parameter["name"].as_str().unwrap()
                })
                .collect();
            assert_eq!(in_path, declared, "{path}");
        }
    }

    #[test]
    fn operations_are_unique_and_complete() {
        let document = document();
        let mut ids = BTreeSet::new();
        for (path, operation) in all_operations(&document) {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{path}");
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("default") && responses.len() > 1, "{path}");
            for (status, response) in responses {
                assert!(
                    response.get("description").is_some() || response.get("$ref").is_some(),
                    "{path} {status}"
                );
            }
        }
    }
}
