//! `healthscope docs`: files of the project that are made from the program, so that they cannot disagree with it.

use {
    crate::{
        args::{Args, DocsArgs, Page},
        failure::{Answer, Failure},
        schema::{self, Kind, Node},
        terminal::Terminal,
    },
    clap::CommandFactory,
    healthscope_crd::manifest,
    serde_json::Value,
};

/// Prints a page.
pub(crate) fn run(args: &DocsArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let DocsArgs { page } = args;
    let text = match page {
        Page::FileReference => file_reference(),
        Page::Cli => command_line(),
        Page::Crd => custom_resource_definition(),
        Page::Chart => chart(),
    };
    terminal.print(&text)?;
    Ok(Answer::Yes)
}

fn file_reference() -> String {
    let mut page = String::from(
        "# File reference\n\n\
         Every field of the files that `healthscope up`, `healthscope-agent --config` and `healthscope-aggregator --config`\n\
         read. This page is made from the program (`cargo xtask schema`); `healthscope explain` prints the same on a terminal.\n\n\
         A file is YAML (or JSON) with any number of documents, separated by `---`; a directory counts as all its `*.yaml`, `*.yml`\n\
         and `*.json` files together. [all-fields.yaml](../examples/all-fields.yaml) shows every field in use.\n",
    );
    for kind in schema::kinds() {
        let name = kind_name(&kind);
        page.push_str(&format!(
            "\n## {name}\n\n`{}/{}`. {}\n",
            kind.group, kind.version, kind.node.description
        ));
        let mut shown = Vec::new();
        object(&kind.node, kind.word, &mut page, &mut shown);
    }
    page
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind.word {
        "healthscope" => "HealthScope",
        _ => "Component",
    }
}

/// A table of the object's fields, then those of the objects in it; a type is written out where it comes first.
fn object(node: &Node, path: &str, page: &mut String, shown: &mut Vec<(String, String)>) {
    if path.contains('.') {
        page.push_str(&format!("\n### `{path}`\n\n{}\n", node.description));
    }
    page.push_str("\n| field | type | |\n|---|---|---|\n");
    let mut below = Vec::new();
    for field in &node.fields {
        let field_path = format!("{path}.{}", field.name);
        let element = field.node.type_name.trim_start_matches("[]").to_owned();
        let known = shown
            .iter()
            .find(|(type_name, _)| *type_name == element)
            .map(|(_, first)| first.clone());
        let mut text = Vec::new();
        if field.is_required {
            text.push("**Required.**".to_owned());
        }
        text.push(cell(&field.node.description));
        if !field.node.choices.is_empty() {
            let words: Vec<_> = field
                .node
                .choices
                .iter()
                .map(|choice| format!("`{}`", choice.word))
                .collect();
            text.push(format!("One of {}.", words.join(", ")));
        }
        if !field.node.limits.is_empty() {
            text.push(format!("({})", field.node.limits.join(", ")));
        }
        if !field.node.fields.is_empty() {
            let place = known.clone().unwrap_or_else(|| field_path.clone());
            text.push(format!("Fields: [`{place}`](#{}).", anchor(&place)));
            if known.is_none() {
                shown.push((element, field_path.clone()));
                below.push((field_path, &field.node));
            }
        }
        page.push_str(&format!(
            "| `{}` | {} | {} |\n",
            field.name,
            cell(&field.node.type_name),
            text.join(" ")
        ));
    }
    for (path, node) in below {
        object(node, &path, page, shown);
    }
}

fn cell(text: &str) -> String {
    text.replace("\n\n", "<br>").replace('|', "\\|")
}

/// How a heading is linked to: lower case, without dots and backquotes.
fn anchor(path: &str) -> String {
    path.to_lowercase().replace('.', "")
}

fn command_line() -> String {
    let mut page = String::from(
        "# Command line\n\n\
         What every command says about itself with `--help`. This page is made from the program (`cargo xtask schema`).\n",
    );
    let mut command = Args::command().term_width(100);
    command.build();
    let global = command.clone();
    page.push_str(&format!("\n## healthscope\n\n```text\n{}```\n", help(global)));
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = subcommand.get_name();
        page.push_str(&format!(
            "\n## healthscope {name}\n\n```text\n{}```\n",
            help(subcommand.clone())
        ));
    }
    page
}

fn custom_resource_definition() -> String {
    let crd =
        serde_saphyr::to_string(&manifest::crd()).expect("a CustomResourceDefinition can be written as YAML");
    format!("# Made from the types in shared/crd: cargo xtask crd\n{crd}")
}

/// Every value of the chart, from its schema and its defaults.
fn chart() -> String {
    let (schema, defaults) = chart_values();
    let mut page = String::from(
        "# Values of the chart\n\n\
         What [charts/healthscope](../charts/healthscope/values.yaml) takes by `--set NAME=VALUE` or `--values FILE`. This page is\n\
         made from the chart's schema (`cargo xtask schema`), by which Helm refuses what is misspelt or of another type. How to\n\
         install: [install.md](install.md). For several zones: [values-ha.yaml](../charts/healthscope/values-ha.yaml).\n\n\
         | value | default | |\n|---|---|---|\n",
    );
    for (path, node) in leaves(&schema, "") {
        let default = defaults.pointer(&format!("/{}", path.replace('.', "/")));
        let Some(default) = default else {
            // Only there to be let through.
            continue;
        };
        let mut text = vec![cell(node["description"].as_str().unwrap_or_default())];
        if let Some(words) = node["enum"].as_array() {
            let words: Vec<String> = words
                .iter()
                .filter_map(Value::as_str)
                .filter(|word| !word.is_empty())
                .map(|word| format!("`{word}`"))
                .collect();
            text.push(format!("One of {}.", words.join(", ")));
        }
        if let (Some(least), Some(most)) = (node["minimum"].as_i64(), node["maximum"].as_i64()) {
            text.push(format!("({least} to {most})"));
        }
        page.push_str(&format!(
            "| `{path}` | {} | {} |\n",
            shown(default),
            text.join(" ")
        ));
    }
    page
}

/// The schema of the chart's values, and their defaults.
fn chart_values() -> (Value, Value) {
    let schema = include_str!("../../charts/healthscope/values.schema.json");
    let defaults = include_str!("../../charts/healthscope/values.yaml");
    (
        serde_json::from_str(schema).expect("the chart's schema is JSON"),
        serde_saphyr::from_str(defaults).expect("the chart's values are YAML"),
    )
}

/// What the schema has no names below, by path, in order.
fn leaves<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let Some(properties) = schema["properties"].as_object() else {
        return vec![(path.to_owned(), schema)];
    };
    let below = properties.iter().flat_map(|(name, below)| {
        let dot = if path.is_empty() { "" } else { "." };
        leaves(below, &format!("{path}{dot}{name}"))
    });
    below.collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn help(command: clap::Command) -> String {
    let mut text = command.term_width(100).render_help().to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a committed file with what the program makes today.
    #[track_caller]
    fn check(file: &str, wanted: &str) {
        let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{file} is not what the program says: run `cargo xtask schema`"
        );
    }

    #[test]
    fn the_file_reference_is_current() {
        check("docs/file-reference.md", &file_reference());
    }

    #[test]
    fn the_page_about_the_command_line_is_current() {
        check("docs/cli.md", &command_line());
    }

    #[test]
    fn the_custom_resource_definition_is_current() {
        check(
            "charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml",
            &custom_resource_definition(),
        );
    }

    #[test]
    fn the_page_about_the_chart_is_current() {
        check("docs/chart.md", &chart());
    }

    #[test]
    fn every_value_of_the_chart_is_in_its_schema_and_described() {
        let (schema, defaults) = chart_values();
        each_object(&schema, &mut |object| {
            assert_eq!(object["additionalProperties"], false, "{object}");
        });
        for (path, node) in leaves(&schema, "") {
            assert!(node["description"].is_string(), "{path}");
            let pointer = format!("/{}", path.replace('.', "/"));
            assert!(
                path == "global" || defaults.pointer(&pointer).is_some(),
                "{path} has no default"
            );
        }
    }

    fn each_object(schema: &Value, see: &mut impl FnMut(&Value)) {
        if let Some(properties) = schema["properties"].as_object() {
            see(schema);
            for below in properties.values() {
                each_object(below, see);
            }
        }
    }

    #[test]
    fn every_link_of_the_file_reference_has_its_heading() {
        let page = file_reference();
        let headings: Vec<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("### "))
            .map(|line| anchor(line.trim_matches('`')))
            .collect();
        for link in page.split("](#").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            assert!(
                headings.iter().any(|heading| heading == target),
                "no heading for #{target}"
            );
        }
    }
}
