//! `healthscope explain`: what a field means, as `kubectl explain` says it, and what the words of a verdict mean.

use {
    crate::{
        args::ExplainArgs,
        failure::{Answer, Failure},
        schema::{self, Field, Kind, Node},
        terminal::Terminal,
    },
    healthscope_shared::document::nearest,
};

mod words;

const COLUMNS: usize = 90;

/// Prints the help of a field.
pub(crate) fn run(args: &ExplainArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let ExplainArgs { path, recursive } = args;
    let text = match words::explain(path) {
        Some(text) => text,
        None => explain(path, *recursive).map_err(Failure::Error)?,
    };
    terminal.print(&text)?;
    Ok(Answer::Yes)
}

fn explain(path: &str, recursive: bool) -> Result<String, String> {
    let mut steps = path.split('.').map(|step| step.trim_end_matches("[]"));
    let kinds = schema::kinds();
    let kind = find_kind(&kinds, steps.next().unwrap_or_default())?;
    let mut node = &kind.node;
    let mut last = None;
    let mut walked = kind.word.to_owned();
    for step in steps {
        let field = node
            .field(step)
            .ok_or_else(|| unknown_field(&walked, node, step))?;
        walked = format!("{walked}.{step}");
        last = Some(field);
        node = &field.node;
    }
    Ok(page(kind, last, node, recursive))
}

fn find_kind<'a>(kinds: &'a [Kind], word: &str) -> Result<&'a Kind, String> {
    let lower = word.to_lowercase();
    let meant = match lower.as_str() {
        "health" | "scope" | "scopes" | "healthscopes" => "healthscope",
        "components" | "comp" => "component",
        other => other,
    };
    kinds
        .iter()
        .find(|kind| kind.word == meant)
        .ok_or_else(|| format!(
                "there is no kind {word:?}; the kinds are healthscope and component, and the words are those of a \
                 verdict, such as Degraded or AgentLost (`explain reasons` lists them)"
            ))
}

fn unknown_field(path: &str, node: &Node, step: &str) -> String {
    let names: Vec<&str> = node.fields.iter().map(|field| field.name.as_str()).collect();
    if names.is_empty() {
        return format!("{path} is a {} and has no fields", node.type_name);
    }
    match nearest(step, &names) {
        Some(near) => format!("{path} has no field {step:?}; did you mean {near:?}?"),
        None => format!(
            "{path} has no field {step:?}; its fields are {}",
            names.join(", ")
        ),
    }
}

fn page(kind: &Kind, field: Option<&Field>, node: &Node, recursive: bool) -> String {
    let object = match kind.word {
        "healthscope" => "HealthScope",
        _ => "Component",
    };
    let mut page = format!(
        "GROUP:      {}\nKIND:       {object}\nVERSION:    {}\n\n",
        kind.group, kind.version
    );
    if let Some(field) = field {
        let required = if field.is_required { " -required-" } else { "" };
        page.push_str(&format!("FIELD: {} <{}>{required}\n", field.name, node.type_name));
        if !node.choices.is_empty() {
            page.push_str("ENUM:\n");
            for choice in &node.choices {
                page.push_str(&format!("    {}\n", choice.word));
            }
        }
        page.push('\n');
    }
    page.push_str("DESCRIPTION:\n");
    page.push_str(&schema::wrap(&node.description, "    ", COLUMNS));
    for limit in &node.limits {
        page.push_str(&format!("    ({limit})\n"));
    }
    if node.choices.iter().any(|choice| !choice.description.is_empty()) {
        page.push_str("\n    Possible values:\n");
        for choice in &node.choices {
            let line = format!("- {}: {}", choice.word, choice.description);
            page.push_str(&schema::wrap(&line, "     ", COLUMNS));
        }
    }
    if !node.fields.is_empty() {
        page.push_str("\nFIELDS:\n");
        fields(&node.fields, recursive, 1, &mut page);
    }
    page
}

fn fields(fields_here: &[Field], recursive: bool, depth: usize, page: &mut String) {
    let indent = "  ".repeat(depth);
    for field in fields_here {
        let Field {
            name,
            is_required,
            node,
        } = field;
        let required = if *is_required { " -required-" } else { "" };
        page.push_str(&format!("{indent}{name}\t<{}>{required}\n", node.type_name));
        if !node.choices.is_empty() {
            let words: Vec<&str> = node.choices.iter().map(|choice| choice.word.as_str()).collect();
            page.push_str(&format!("{indent}enum: {}\n", words.join(", ")));
        }
        if recursive {
            fields(&node.fields, true, depth + 1, page);
        } else {
            page.push_str(&schema::wrap(&node.description, &format!("{indent}  "), COLUMNS));
            page.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, recursive: bool, expected: &str) {
        let found = match explain(path, recursive) {
            Ok(text) | Err(text) => text,
        };
        assert!(
            found.contains(expected),
            "{path}:\n{found}\nshould contain\n{expected}"
        );
    }

    #[test]
    fn a_field_is_explained_in_the_words_of_its_type() {
        check(
            "healthscope.spec.policy",
            false,
            "GROUP:      core.oam.dev\nKIND:       HealthScope\nVERSION:    v1beta1\n\nFIELD: policy <Policy>\n\n\
             DESCRIPTION:\n    How the health of the components adds up to that of the scope.\n\nFIELDS:\n  minAvailable\t<integer>\n",
        );
        check(
            "healthscope.spec.policy.unknownPolicy",
            false,
            "ENUM:\n    Unknown\n    Unhealthy\n    Ignore\n",
        );
        check(
            "health.spec.workloadRefs.kind",
            false,
            "FIELD: kind <string> -required-\n",
        );
        check(
            "component.spec.readinessProbe.httpGet",
            false,
            "  port\t<IntOrString> -required-\n",
        );
    }

    #[test]
    fn pages_are_as_they_are_kept() {
        for (path, recursive, file) in [
            ("healthscope.spec", false, "explain-healthscope-spec.txt"),
            ("component", true, "explain-component-recursive.txt"),
            (
                "healthscope.spec.policy.unknownPolicy",
                false,
                "explain-unknown-policy.txt",
            ),
        ] {
            crate::golden::check(file, &explain(path, recursive).unwrap());
        }
    }

    #[test]
    fn recursion_shows_the_whole_tree() {
        check(
            "component.spec",
            true,
            "\n  livenessProbe\t<ProbeFields>\n    exec\t<ExecFields>\n      command\t<[]string> -required-\n",
        );
    }

    #[test]
    fn what_does_not_exist_is_said_with_what_does() {
        check(
            "deployment",
            false,
            "there is no kind \"deployment\"; the kinds are healthscope and component",
        );
        check(
            "healthscope.spec.polcy",
            false,
            "healthscope.spec has no field \"polcy\"; did you mean \"policy\"?",
        );
        check(
            "healthscope.spec.policy.minAvailable.x",
            false,
            "minAvailable is a integer and has no fields",
        );
    }
}
