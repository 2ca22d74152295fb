//! What the documents say about files is true: links lead somewhere, and paths that are mentioned exist.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Directories that are not part of the project's sources.
const NOT_SOURCES: [&str; 3] = [".git", "target", "node_modules"];

/// Endings by which a word without a slash is taken for a file.
const ENDINGS: [&str; 10] = [
    ".rs", ".toml", ".md", ".yaml", ".yml", ".json", ".sh", ".html", ".css", ".js",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files and directories of the checkout, by their path from its root.
fn tree() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![root()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if NOT_SOURCES.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            found.insert(
                entry
                    .path()
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found
}

/// Code spans of a Markdown text, without its code blocks.
fn code_spans(text: &str) -> Vec<&str> {
    outside_blocks(text)
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// Targets of a Markdown text's links and pictures, without their fragments.
fn links(text: &str) -> Vec<&str> {
    let targets = outside_blocks(text).flat_map(|line| {
        line.split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
    });
    let pictures = outside_blocks(text).flat_map(|line| {
        line.split("src=\"")
            .skip(1)
            .filter_map(|rest| rest.split_once('"').map(|(target, _)| target))
    });
    targets
        .chain(pictures)
        .map(|target| target.split(['#', ' ']).next().unwrap())
        .collect()
}

fn outside_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    })
}

/// Says whether a code span looks like a path of this project.
fn is_path(span: &str, tree: &BTreeSet<String>) -> bool {
    let is_plain = span
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "_-./".contains(letter));
    if !is_plain || span.starts_with('/') || span.is_empty() {
        return false;
    }
    let first = span.split('/').next().unwrap();
    let is_below_ours = span.contains('/') && tree.contains(first);
    is_below_ours
        || ENDINGS
            .iter()
            .any(|ending| span.ends_with(ending) && span.len() > ending.len())
}

/// A path may be given from the root, or by its last parts alone.
fn exists(span: &str, tree: &BTreeSet<String>) -> bool {
    let span = span.trim_end_matches('/').trim_start_matches("./");
    let ending = format!("/{span}");
    tree.iter().any(|path| path == span || path.ends_with(&ending))
}

fn missing_paths(text: &str, tree: &BTreeSet<String>) -> Vec<String> {
    code_spans(text)
        .into_iter()
        .filter(|span| is_path(span, tree) && !exists(span, tree))
        .map(str::to_owned)
        .collect()
}

fn markdown(tree: &BTreeSet<String>) -> Vec<&str> {
    tree.iter()
        .map(String::as_str)
        .filter(|path| path.ends_with(".md"))
        .collect()
}

#[test]
fn paths_in_the_documents_exist() {
    let tree = tree();
    // The others name files of the reader's, or of earlier versions.
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        assert_eq!(
            missing_paths(&text, &tree),
            Vec::<String>::new(),
            "{document} mentions what is not there"
        );
    }
}

/// Tests that a table names, in rows with the file that they are in, and that are not there.
fn missing_tests(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut missing = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let mut source = None;
        for span in code_spans(line) {
            if span.contains('/') && span.ends_with(".rs") {
                source = read(span);
                if source.is_none() {
                    missing.push(span.to_owned());
                }
            } else if let Some(source) = &source {
                let is_name = span.contains('_')
                    && span
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
                if is_name && !source.contains(&format!("fn {span}(")) {
                    missing.push(span.to_owned());
                }
            }
        }
    }
    missing
}

#[test]
fn tests_that_the_threat_model_names_are_there() {
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let read = |path: &str| fs::read_to_string(root().join(path)).ok();
    assert_eq!(missing_tests(&text, read), Vec::<String>::new());
    let source = |path: &str| (path == "a/b.rs").then(|| "fn holds() {} fn is_so() {}".to_owned());
    let table = "| `a/b.rs`: `is_so`, `is_not` | `a/c.rs`: `is_so` |\n`a/d.rs` in a sentence";
    assert_eq!(missing_tests(table, source), ["is_not", "a/c.rs"]);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let tree = tree();
    for document in markdown(&tree) {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let folder = root().join(document).parent().unwrap().to_owned();
        for target in links(&text) {
            let is_elsewhere = target.is_empty() || target.contains(':');
            assert!(
                is_elsewhere || folder.join(target).exists(),
                "{document} links to {target}, which is not there"
            );
        }
    }
}

#[test]
fn stale_path_is_noticed() {
    let tree: BTreeSet<String> = ["agent", "agent/src", "agent/src/main.rs", "Cargo.toml"]
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = "`agent/src/main.rs` `main.rs` `agent/` `src/main.rs` `/livez` `application/json` `cargo run`\n\
                ```\nagent/gone.rs\n```\n`agent/gone.rs` and `gone.rs` `Store.apply` `wss://x`";
    assert_eq!(missing_paths(text, &tree), ["agent/gone.rs", "gone.rs"]);
    assert_eq!(
        links("[a](b.md#c) ![d](e.png \"f\")\n<img src=\"g.svg\">"),
        ["b.md", "e.png", "g.svg"]
    );
}
