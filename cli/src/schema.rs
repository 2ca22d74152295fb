//! The fields of the files, read out of the JSON schemas that come from the Rust types.
//!
//! What `explain` prints and the file reference holds is in the types' doc comments; nothing is described twice. Pure.

use {
    healthscope_crd::v1beta1,
    healthscope_shared::config::{self, ComponentObject},
    serde_json::{Map, Value},
};

/// No type of ours contains itself; this ends the walk if one ever does.
const MAX_DEPTH: usize = 16;

/// A kind of object that files hold.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// What `explain` calls it.
    pub(crate) word: &'static str,
    /// API group.
    pub(crate) group: &'static str,
    /// API version without the group.
    pub(crate) version: &'static str,
    /// The object.
    pub(crate) node: Node,
}

/// A field's type with everything below it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// As kubectl writes it: `string`, `[]WorkloadRef`, `map[string]string`, `Policy`.
    pub(crate) type_name: String,
    /// Paragraphs, separated by empty lines.
    pub(crate) description: String,
    /// Words that are possible, each with what it means.
    pub(crate) choices: Vec<Choice>,
    /// Lowest and highest number or length.
    pub(crate) limits: Vec<String>,
    /// Fields by name; of an element where the type is a list or a map.
    pub(crate) fields: Vec<Field>,
}

/// A word that is possible.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) word: String,
    pub(crate) description: String,
}

/// A field.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) is_required: bool,
    pub(crate) node: Node,
}

impl Node {
    /// The field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// All kinds, the one that answers questions first.
pub(crate) fn kinds() -> Vec<Kind> {
    let (component_group, component_version) = split(config::COMPONENT_API_VERSION);
    let component = Reader::new(&schemars::schema_for!(ComponentObject)).root();
    let mut scope = Reader::new(&v1beta1::schema()).root();
    // Every Kubernetes object has these; the schema of a custom resource leaves them to the API server.
    let metadata = component
        .field("metadata")
        .map(|field| field.node.clone())
        .unwrap_or_default();
    let own = [
        word("apiVersion", format!("`{}`.", v1beta1::API_VERSION)),
        word("kind", format!("`{}`.", v1beta1::KIND)),
        Field {
            name: "metadata".into(),
            is_required: true,
            node: Node {
                type_name: "ObjectMeta".into(),
                description: "Name, namespace, labels and annotations.".into(),
                fields: scope_metadata(&metadata),
                ..Node::default()
            },
        },
    ];
    scope.fields.splice(0..0, own);
    let (scope_group, scope_version) = split(v1beta1::API_VERSION);
    vec![
        Kind {
            word: "healthscope",
            group: scope_group,
            version: scope_version,
            node: scope,
        },
        Kind {
            word: "component",
            group: component_group,
            version: component_version,
            node: component,
        },
    ]
}

/// The fields that a scope's metadata shares with a component's, in a scope's words.
fn scope_metadata(component: &Node) -> Vec<Field> {
    let mut fields = component.fields.clone();
    for field in &mut fields {
        field.node.description = match field.name.as_str() {
            "name" => "Unique among the HealthScopes of its namespace.".into(),
            "namespace" => "Default `default`. The scope has members from here only.".into(),
            "labels" => "For selectors of other HealthScopes: scopes nest.".into(),
            "annotations" => "Kept for people and tools.".into(),
            _ => field.node.description.clone(),
        };
    }
    fields
}

fn word(name: &str, description: String) -> Field {
    let node = Node {
        type_name: "string".into(),
        description,
        ..Node::default()
    };
    Field {
        name: name.into(),
        is_required: true,
        node,
    }
}

fn split(api_version: &'static str) -> (&'static str, &'static str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A JSON schema with its definitions.
struct Reader {
    root: Value,
}

impl Reader {
    fn new(schema: &schemars::Schema) -> Self {
        Self {
            root: schema.as_value().clone(),
        }
    }

    fn root(&self) -> Node {
        self.node(&self.root, 0)
    }

    fn node(&self, schema: &Value, depth: usize) -> Node {
        if depth > MAX_DEPTH {
            return Node::default();
        }
        let described = text(schema, "description");
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let mut node = self.definition(target, depth);
            if !described.is_empty() {
                node.description = described;
            }
            return node;
        }
        // `Option<T>` is either a T or null; the fields here are left out rather than null.
        let variants: Vec<&Value> = ["anyOf", "oneOf", "allOf"]
            .iter()
            .filter_map(|word| schema.get(word).and_then(Value::as_array))
            .flatten()
            .filter(|variant| variant.get("type").and_then(Value::as_str) != Some("null"))
            .collect();
        let mut node = match variants.as_slice() {
            [] => self.plain(schema, depth),
            [one] => self.node(one, depth + 1),
            several => mixed(several),
        };
        if !described.is_empty() {
            node.description = described;
        }
        node
    }

    fn definition(&self, target: &str, depth: usize) -> Node {
        let name = target.rsplit('/').next().unwrap_or_default();
        let schema = self
            .root
            .get("$defs")
            .and_then(|definitions| definitions.get(name))
            .unwrap_or(&Value::Null);
        let mut node = self.node(schema, depth + 1);
        if node.type_name == "Object" {
            node.type_name = name.rsplit('.').next().unwrap_or(name).to_owned();
        }
        node
    }

    fn plain(&self, schema: &Value, depth: usize) -> Node {
        let type_name = match schema.get("type") {
            Some(Value::String(name)) => name.as_str(),
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .find(|name| *name != "null")
                .unwrap_or("string"),
            _ => "string",
        };
        let mut node = Node {
            limits: limits(schema),
            ..Node::default()
        };
        match type_name {
            "object" => {
                if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                    node.type_name = "Object".into();
                    node.fields = self.fields(schema, properties, depth);
                } else {
                    let values = schema.get("additionalProperties").unwrap_or(&Value::Null);
                    let value = self.node(values, depth + 1);
                    node.type_name = format!("map[string]{}", value.type_name);
                    node.fields = value.fields;
                }
            }
            "array" => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                let item = self.node(items, depth + 1);
                node.type_name = format!("[]{}", item.type_name);
                node.fields = item.fields;
                node.choices = item.choices;
            }
            scalar => {
                node.type_name = scalar.into();
                node.choices = words(schema);
            }
        }
        node
    }

    fn fields(&self, schema: &Value, properties: &Map<String, Value>, depth: usize) -> Vec<Field> {
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        properties
            .iter()
            // Fields of the older versions of the API are for objects that clusters have; `kubectl explain` knows them.
            .filter(|(_, schema)| schema.get("deprecated").is_none())
            .map(|(name, schema)| Field {
                name: name.clone(),
                is_required: required.contains(&name.as_str()),
                node: self.node(schema, depth + 1),
            })
            .collect()
    }
}

/// Either words with a description each, or a number that may be written as a word.
fn mixed(variants: &[&Value]) -> Node {
    let choices: Vec<Choice> = variants.iter().flat_map(|variant| words(variant)).collect();
    let type_name = if choices.is_empty() {
        "IntOrString"
    } else {
        "string"
    };
    Node {
        type_name: type_name.into(),
        choices,
        ..Node::default()
    }
}

fn words(schema: &Value) -> Vec<Choice> {
    let choice = |word: &Value| {
        let word = word.as_str()?.to_owned();
        Some(Choice {
            word,
            description: text(schema, "description"),
        })
    };
    if let Some(word) = schema.get("const") {
        return choice(word).into_iter().collect();
    }
    let listed = schema.get("enum").and_then(Value::as_array);
    listed
        .into_iter()
        .flatten()
        .filter_map(choice)
        .map(|choice| Choice {
            description: String::new(),
            ..choice
        })
        .collect()
}

fn limits(schema: &Value) -> Vec<String> {
    // Rust's own ranges (int32, uint32) say nothing to a user.
    let number = |word: &str| schema.get(word).and_then(Value::as_i64);
    [
        number("minimum")
            .filter(|_| number("maximum").is_some())
            .map(|least| format!("minimum {least}")),
        number("maximum").map(|most| format!("maximum {most}")),
        number("maxLength").map(|most| format!("at most {most} characters")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Doc comments end lines anywhere; paragraphs are what counts.
fn text(schema: &Value, field: &str) -> String {
    let text = schema.get(field).and_then(Value::as_str).unwrap_or_default();
    text.split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// Breaks text into lines of at most `columns` characters, each after `indent`; paragraphs stay apart.
pub(crate) fn wrap(text: &str, indent: &str, columns: usize) -> String {
    let mut wrapped = String::new();
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            wrapped.push_str(indent.trim_end());
            wrapped.push('\n');
        }
        let mut line = String::from(indent);
        for word in paragraph.split_whitespace() {
            let is_first = line.len() == indent.len();
            if !is_first && line.chars().count() + 1 + word.chars().count() > columns {
                wrapped.push_str(&line);
                wrapped.push('\n');
                line = String::from(indent);
            }
            if line.len() > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
        wrapped.push_str(&line);
        wrapped.push('\n');
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str) -> Node {
        let mut steps = path.split('.');
        let first = steps.next().unwrap();
        let kind = kinds().into_iter().find(|kind| kind.word == first).unwrap();
        steps.fold(kind.node, |node, step| {
            node.field(step)
                .unwrap_or_else(|| panic!("no {step}"))
                .node
                .clone()
        })
    }

    #[test]
    fn types_are_written_as_kubectl_writes_them() {
        for (path, expected) in [
            ("healthscope", "Object"),
            ("healthscope.metadata.labels", "map[string]string"),
            ("healthscope.spec", "HealthScopeSpec"),
            ("healthscope.spec.policy", "Policy"),
            ("healthscope.spec.policy.minAvailable", "integer"),
            ("healthscope.spec.workloadRefs", "[]WorkloadRef"),
            ("healthscope.spec.workloadRefs.dependsOn", "[]string"),
            ("healthscope.status.health", "string"),
            ("component.spec.readinessProbe.httpGet.port", "IntOrString"),
            ("component.spec.ports", "map[string]integer"),
            ("component.spec.probes.type", "string"),
        ] {
            assert_eq!(find(path).type_name, expected, "{path}");
        }
    }

    #[test]
    fn words_and_limits_are_known() {
        let words: Vec<_> = find("healthscope.spec.policy.unknownPolicy").choices;
        let words: Vec<_> = words.iter().map(|choice| choice.word.as_str()).collect();
        assert_eq!(words, ["Unknown", "Unhealthy", "Ignore"]);
        assert_eq!(
            find("healthscope.spec.policy.minAvailable").limits,
            ["minimum 0", "maximum 100"]
        );
    }

    #[test]
    fn every_field_that_can_be_written_is_described() {
        fn check(path: &str, node: &Node) {
            for field in &node.fields {
                let path = format!("{path}.{}", field.name);
                assert!(!field.node.description.is_empty(), "{path} has no description");
                assert!(!field.node.type_name.is_empty(), "{path} has no type");
                check(&path, &field.node);
            }
        }
        for kind in kinds() {
            check(kind.word, &kind.node);
        }
    }

    #[test]
    fn the_example_with_all_fields_has_all_fields() {
        fn check(path: &str, node: &Node, words: &std::collections::BTreeSet<String>) {
            for field in &node.fields {
                let path = format!("{path}.{}", field.name);
                if path == "healthscope.status" {
                    continue;
                }
                assert!(
                    words.contains(&field.name),
                    "examples/all-fields.yaml has no {path}"
                );
                check(&path, &field.node, words);
            }
        }
        fn collect(value: &Value, words: &mut std::collections::BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        words.insert(name.clone());
                        collect(value, words);
                    }
                }
                Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let text = include_str!("../../examples/all-fields.yaml");
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        for kind in kinds() {
            let mut words = std::collections::BTreeSet::new();
            let is_it = |document: &&Value| {
                document["kind"]
                    .as_str()
                    .is_some_and(|word| word.eq_ignore_ascii_case(kind.word))
            };
            documents
                .iter()
                .filter(is_it)
                .for_each(|document| collect(document, &mut words));
            check(kind.word, &kind.node, &words);
        }
    }

    #[test]
    fn text_is_broken_at_words() {
        assert_eq!(
            wrap("one two three\n\nfour", "  ", 9),
            "  one two\n  three\n\n  four\n"
        );
    }
}
