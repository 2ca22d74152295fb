//! Multi-document YAML (JSON is YAML too) with places: which file, line and column an error is about.
//!
//! Knows nothing of what the documents mean. Files are read elsewhere: this module works on text.

use {
    crate::probe::fields::FieldError,
    serde::{Deserialize, de::DeserializeOwned},
    serde_saphyr::granit_parser::{Event, Options, Parser, Span, StrInput},
    std::{fmt, sync::Arc},
};

/// Largest file read: a hundred times 10,000 ordinary components would still fit in memory, but nobody means it.
pub const MAX_FILE_BYTES: usize = 32 * 1024 * 1024;
/// Most parser events (about two per value) of one document.
const MAX_EVENTS: usize = 1_000_000;
/// Most events that its aliases may expand to: enough to share a few settings, too few for a bomb.
const MAX_ALIAS_EVENTS: usize = 20_000;
/// Deepest nesting; what we read is never deeper than a dozen.
const MAX_DEPTH: usize = 64;

/// Text with the name that errors call it by.
#[derive(Clone, Debug)]
pub struct Source {
    /// File name as the user wrote it.
    pub name: Arc<str>,
    /// Its content.
    pub text: Arc<str>,
}

impl Source {
    /// Text under a name.
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

/// A place in a source: lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The source's name.
    pub source: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.line, self.column)
    }
}

/// What is wrong with a document, and where: `shop.yaml:12:7: spec.probes[0].period: must be at least 50ms`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{place}: {message}")]
pub struct DocumentError {
    /// Where.
    pub place: Place,
    /// What, and what would be right.
    pub message: String,
}

/// One document of a source.
#[derive(Clone, Debug)]
pub struct Document {
    source: Source,
    /// Bytes of the source's text.
    range: std::ops::Range<usize>,
    first_line: usize,
    /// What it says it is.
    pub type_meta: TypeMeta,
}

/// Kubernetes' first two fields of every object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeMeta {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
}

/// A parser that tells values alone. Another crate of the same program may build the library so that comments are
/// events too.
fn parser(text: &str) -> Parser<'_, StrInput<'_>> {
    let mut options = Options::default();
    options.emit_comments = false;
    Parser::new_from_str_with_options(text, options)
}

/// Splits a source into its documents; documents without content are left out.
///
/// # Errors
/// When the text is not YAML, or a document does not say what it is.
pub fn split(source: &Source) -> Result<Vec<Document>, Vec<DocumentError>> {
    let text: &str = &source.text;
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    let mut content: Option<(Span, Span)> = None;
    for event in parser(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let marker = error.marker();
                let place = Place {
                    source: source.name.clone(),
                    line: marker.line().max(1),
                    column: marker.col() + 1,
                };
                let message = format!("not valid YAML: {}", crate::one_line(&error.info(), 200));
                errors.push(DocumentError { place, message });
                return Err(errors);
            }
        };
        match event {
            Event::DocumentEnd => {
                let Some((first, last)) = content.take() else {
                    continue;
                };
                match Document::new(source, first, last) {
                    Ok(document) => documents.push(document),
                    Err(error) => errors.push(error),
                }
            }
            Event::Scalar(..) if content.is_none() && span.start.index() == span.end.index() => {}
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) => {}
            _ => content = Some((content.map_or(span, |(first, _)| first), span)),
        }
    }
    if errors.is_empty() {
        Ok(documents)
    } else {
        Err(errors)
    }
}

impl Document {
    fn new(source: &Source, first: Span, last: Span) -> Result<Self, DocumentError> {
        let text: &str = &source.text;
        // From the beginning of the line, so that columns and block indentation stay what they are.
        let start = first.start.byte_offset().unwrap_or(0);
        let start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let start = if text[start..].starts_with("---") {
            start + 3
        } else {
            start
        };
        let end = last.end.byte_offset().unwrap_or(text.len()).max(start);
        let mut document = Self {
            source: source.clone(),
            range: start..end,
            first_line: first.start.line().max(1),
            type_meta: TypeMeta {
                api_version: String::new(),
                kind: String::new(),
            },
        };
        document.type_meta = document.deserialize::<TypeMeta>()?;
        Ok(document)
    }

    /// The text of this document.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.source.text[self.range.clone()]
    }

    /// Where the document begins.
    #[must_use]
    pub fn start(&self) -> Place {
        Place {
            source: self.source.name.clone(),
            line: self.first_line,
            column: 1,
        }
    }

    /// Reads the document as a `T` whose top level is a Kubernetes object.
    ///
    /// # Errors
    /// With the place, the field and, for an unknown field, the nearest real one.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        if let Some(Node {
            value: Value::Mapping(entries),
            ..
        }) = self.tree()
        {
            for (key, node) in &entries {
                if !OBJECT.contains(&key.as_str()) {
                    let message = unknown_field(key, &OBJECT);
                    return Err(DocumentError {
                        place: self.place(node.key_line, node.key_column),
                        message,
                    });
                }
            }
        }
        self.deserialize()
    }

    fn deserialize<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_events: MAX_EVENTS, max_depth: MAX_DEPTH },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        };
        let mut path = String::new();
        serde_saphyr::with_deserializer_from_str_with_options(self.text(), options, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                path = error.path().to_string();
                error.into_inner()
            })
        })
        .map_err(|error| self.explain(&path, &error))
    }

    /// Puts an error of the parser into our words.
    fn explain(&self, path: &str, error: &serde_saphyr::Error) -> DocumentError {
        use serde_saphyr::Error;

        let mut error = error.without_snippet();
        let location = error.location().filter(|location| location.line() > 0);
        while let Error::AliasError { error: inner, .. } = error {
            error = inner;
        }
        let path = path
            .trim_start_matches('.')
            .trim_end_matches(".?")
            .trim_end_matches('?');
        let message = match error {
            Error::SerdeUnknownField { field, expected, .. } => unknown_field(field, expected),
            Error::SerdeMissingField { field, .. } => format!("the field {field:?} is missing"),
            Error::SerdeUnknownVariant {
                variant, expected, ..
            } => {
                format!(
                    "{:?} is not one of {}",
                    crate::truncate(variant, 60),
                    expected.join(", ")
                )
            }
            Error::SerdeInvalidType {
                unexpected, expected, ..
            } => {
                format!(
                    "is {}, but must be {}",
                    crate::truncate(unexpected, 80),
                    plain_type(expected)
                )
            }
            Error::SerdeInvalidValue {
                unexpected, expected, ..
            } => {
                format!(
                    "is {}, but must be {}",
                    crate::truncate(unexpected, 80),
                    plain_type(expected)
                )
            }
            Error::Unexpected { expected, .. } => match *expected {
                "mapping start" => "must be a mapping".to_owned(),
                "sequence start" => "must be a list".to_owned(),
                other => format!("must be a {other}"),
            },
            Error::InvalidScalar { ty, .. } => format!("must be {}", plain_type(ty)),
            Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the key {:?} is written twice", crate::truncate(key, 60))
            }
            Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => {
                "the document grows beyond every limit: too large, too deep, or too many aliases (&, *)"
                    .to_owned()
            }
            other => first_line(&other.to_string()),
        };
        let message = if path.is_empty() || path == "." {
            message
        } else {
            format!("{path}: {message}")
        };
        let place = match location {
            Some(location) => {
                let line = usize::try_from(location.line()).unwrap_or(1);
                let column = usize::try_from(location.column()).unwrap_or(1);
                self.place(line, column)
            }
            None => self.locate(path),
        };
        DocumentError { place, message }
    }

    /// A place from a line and a column of this document's own text.
    fn place(&self, line: usize, column: usize) -> Place {
        let lines_before = self.source.text[..self.range.start].matches('\n').count();
        let line = line.max(1);
        let on_marker = line == 1 && self.source.text[..self.range.start].ends_with("---");
        let column = if on_marker { column + 3 } else { column };
        Place {
            source: self.source.name.clone(),
            line: lines_before + line,
            column: column.max(1),
        }
    }

    /// The place of a field such as `spec.probes[2].period`, or of its nearest ancestor that is written.
    #[must_use]
    pub fn locate(&self, path: &str) -> Place {
        let Some(mut node) = self.tree() else {
            return self.start();
        };
        let mut place = (node.line, node.column);
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let found = match node.value {
                Value::Mapping(entries) => entries
                    .into_iter()
                    .find(|(key, _)| key == step)
                    .map(|(_, node)| node),
                Value::Sequence(items) => step
                    .trim_end_matches(']')
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| items.into_iter().nth(i)),
                Value::Leaf => None,
            };
            let Some(found) = found else { break };
            place = (found.key_line, found.key_column);
            node = found;
        }
        self.place(place.0, place.1)
    }

    /// Gives a field's error its place.
    #[must_use]
    pub fn error_at(&self, error: &FieldError) -> DocumentError {
        DocumentError {
            place: self.locate(&error.path),
            message: error.to_string(),
        }
    }

    fn tree(&self) -> Option<Node> {
        let mut events = parser(self.text()).map_while(Result::ok);
        events.find(|(event, _)| matches!(event, Event::DocumentStart(..)))?;
        let (event, span) = events.next()?;
        Node::read(&event, span, None, &mut events, 0)
    }
}

/// A node with its place; only for finding places, values are left out.
struct Node {
    /// Where the key before it is, or itself in a list.
    key_line: usize,
    key_column: usize,
    line: usize,
    column: usize,
    value: Value,
}

enum Value {
    Mapping(Vec<(String, Node)>),
    Sequence(Vec<Node>),
    Leaf,
}

impl Node {
    fn read<'a>(
        event: &Event<'a>,
        span: Span,
        key: Option<Span>,
        events: &mut impl Iterator<Item = (Event<'a>, Span)>,
        depth: usize,
    ) -> Option<Self> {
        if depth > MAX_DEPTH {
            return None;
        }
        let value = match event {
            Event::MappingStart(..) => {
                let mut entries = Vec::new();
                loop {
                    let (event, key_span) = events.next()?;
                    let name = match event {
                        Event::MappingEnd => break Value::Mapping(entries),
                        Event::Scalar(name, ..) => name.into_owned(),
                        other => {
                            Self::read(&other, key_span, None, events, depth + 1)?;
                            String::new()
                        }
                    };
                    let (event, span) = events.next()?;
                    entries.push((name, Self::read(&event, span, Some(key_span), events, depth + 1)?));
                }
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = events.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break Value::Sequence(items);
                    }
                    items.push(Self::read(&event, span, None, events, depth + 1)?);
                }
            }
            _ => Value::Leaf,
        };
        let at = key.unwrap_or(span);
        Some(Self {
            key_line: at.start.line(),
            key_column: at.start.col() + 1,
            line: span.start.line(),
            column: span.start.col() + 1,
            value,
        })
    }
}

/// Says that a field does not exist, and which one was probably meant.
fn unknown_field(field: &str, known: &[&str]) -> String {
    let shown = crate::truncate(field, 60);
    match nearest(field, known) {
        Some(nearest) => format!("there is no field {shown:?}; did you mean {nearest:?}?"),
        None if known.is_empty() => format!("there is no field {shown:?}; none is expected here"),
        None => format!("there is no field {shown:?}; the fields are {}", known.join(", ")),
    }
}

/// The known word nearest to `word`, unless even that is far.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance =
        |candidate: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase());
    let best = known
        .iter()
        .copied()
        .min_by_key(|candidate| distance(candidate))?;
    (distance(best) <= best.len().max(word.len()) / 3).then_some(best)
}

/// What serde calls a type, as a user of YAML would.
fn plain_type(expected: &str) -> &str {
    match expected {
        "i32" | "i64" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other if other.starts_with("struct ") => "a mapping",
        other => other,
    }
}

fn first_line(text: &str) -> String {
    crate::one_line(text.lines().next().unwrap_or("cannot be read"), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Thing {
        api_version: String,
        kind: String,
        spec: Spec,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Spec {
        #[serde(default)]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Item {
        #[serde(default)]
        period_seconds: i32,
    }

    fn check(text: &str, expected: &str) {
        let source = Source::new("f.yaml", text);
        let error = match split(&source) {
            Err(errors) => errors[0].to_string(),
            Ok(documents) => documents
                .iter()
                .find_map(|document| document.parse::<Thing>().err())
                .map_or_else(|| "no error".to_owned(), |error| error.to_string()),
        };
        assert_eq!(error, expected, "{text}");
    }

    #[test]
    fn errors_name_file_line_column_and_field() {
        let head = "apiVersion: v1\nkind: T\n";
        let second = format!("# first\n{head}spec: {{}}\n---\n{head}");
        let second = |spec: &str| format!("{second}{spec}\n");
        for (text, expected) in [
            (
                second("spec: {itms: []}"),
                "8:8: spec.itms: there is no field \"itms\"; did you mean \"items\"?",
            ),
            (
                second("spec:\n  items:\n    - {}\n    - periodSeconds: soon"),
                "11:22: spec.items[1].periodSeconds: must be a whole number",
            ),
            (
                second("sepc: {}"),
                "8:1: there is no field \"sepc\"; did you mean \"spec\"?",
            ),
            (head.to_owned(), "2:1: the field \"spec\" is missing"),
            ("kind: T\n".to_owned(), "1:1: the field \"apiVersion\" is missing"),
            (
                second("spec: {items: [}"),
                "8:15: not valid YAML: mismatched bracket '[' closed by '}'",
            ),
            (second("spec: {items: {}}"), "8:15: spec.items: must be a list"),
            (
                second("spec: {items: [], items: []}"),
                "8:19: spec: the key \"items\" is written twice",
            ),
            ("just text".to_owned(), "1:1: must be a mapping"),
            ("- a\n- b\n".to_owned(), "1:1: must be a mapping"),
        ] {
            check(&text, &format!("f.yaml:{expected}"));
        }
    }

    #[test]
    fn documents_without_content_are_left_out() {
        let document = "apiVersion: v1\nkind: T\n";
        for (text, expected) in [
            (String::new(), 0),
            ("# nothing\n---\n---\n".to_owned(), 0),
            (format!("---\n{document}---\n# nothing\n---\n{document}...\n"), 2),
            (r#"{"apiVersion": "v1", "kind": "T"}"#.to_owned(), 1),
            ("--- {apiVersion: v1, kind: T}".to_owned(), 1),
        ] {
            let documents = split(&Source::new("f", text.as_str())).unwrap();
            assert_eq!(documents.len(), expected, "{text}");
        }
    }

    #[test]
    fn a_field_is_found_by_its_path_or_its_nearest_ancestor() {
        let text = "---\napiVersion: v1\nkind: T\nspec:\n  items:\n  - {}\n  - periodSeconds: 5\n";
        let documents = split(&Source::new("f", text)).unwrap();
        for (path, line, column) in [
            ("spec.items[1].periodSeconds", 7, 5),
            ("spec.items[1].other", 7, 5),
            ("spec.other.deep", 4, 1),
            ("other", 2, 1),
        ] {
            let place = documents[0].locate(path);
            assert_eq!((place.line, place.column), (line, column), "{path}");
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "apiVersion: v1\nkind: T\na: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, inner) in ["b", "c", "d", "e", "f", "g", "h", "i"]
            .iter()
            .zip("abcdefgh".chars())
        {
            text.push_str(&format!(
                "{name}: &{name} [{}]\n",
                vec![format!("*{inner}"); 9].join(",")
            ));
        }
        check(
            &text,
            "f.yaml:7:11: e[1][2][7][5]: the document grows beyond every limit: too large, too deep, or too many \
             aliases (&, *)",
        );
    }

    #[test]
    fn a_tower_of_brackets_is_refused() {
        let text = format!(
            "apiVersion: v1\nkind: T\nspec: {}{}\n",
            "[".repeat(500),
            "]".repeat(500)
        );
        check(&text, "f.yaml:3:262: not valid YAML: recursion limit exceeded");
    }
}
