//! Reads configuration in a process of its own: this binary again, which gets the text on standard input and writes what
//! it means, or what is wrong with it, to standard output.
//!
//! Why: the parser is a fifth of the program, and the memory of a large file is a multiple of the file. In a process that
//! ends, neither stays with the agent, and a parser that crashed would take nothing along. Nothing here opens files.

use {
    healthscope_shared::{
        config::{self, Component, ComponentObject},
        document::{DocumentError, Place, Source},
    },
    serde::{Deserialize, Serialize},
    std::{
        borrow::Cow,
        ffi::OsStr,
        io::{self, Read, Write},
        process::{Command, ExitStatus, Stdio},
        sync::Arc,
        thread,
    },
};

/// The first argument that makes this binary a reader; no flag, so that nobody types it by mistake.
pub const ARGUMENT: &str = "__read-configuration";
/// This binary, also when its file has been replaced meanwhile: another version might answer otherwise.
const MYSELF: &str = "/proc/self/exe";
/// Most that a reader may say: what the largest files mean is not larger than they are, but for defaults.
const MAX_ANSWER_BYTES: u64 = 128 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    text: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Components(Vec<ComponentObject>),
    Errors(Vec<Error>),
}

#[derive(Serialize, Deserialize)]
struct Error {
    source: String,
    line: usize,
    column: usize,
    message: String,
}

impl From<DocumentError> for Error {
    fn from(error: DocumentError) -> Self {
        let DocumentError {
            place: Place { source, line, column },
            message,
        } = error;
        Self {
            source: source.to_string(),
            line,
            column,
            message,
        }
    }
}

impl From<Error> for DocumentError {
    fn from(error: Error) -> Self {
        let Error {
            source,
            line,
            column,
            message,
        } = error;
        Self {
            place: Place {
                source: source.into(),
                line,
                column,
            },
            message,
        }
    }
}

/// Why a reader gave no answer.
#[derive(Debug, thiserror::Error)]
enum ReaderError {
    /// There is none. This process can do its work.
    #[error("cannot start a reader")]
    Start(#[source] io::Error),
    /// It ended without an answer: a defect, and not one to repeat in this process.
    #[error("the reader of the configuration ended with {status}; this is a defect of the agent")]
    Ended { status: ExitStatus },
    /// Its answer makes no sense.
    #[error("the reader of the configuration answered nonsense; this is a defect of the agent")]
    Nonsense,
}

/// What the Components in `sources` mean, by a reader.
///
/// # Errors
/// Everything that cannot be used.
pub fn read_apart(sources: &[Source]) -> Result<Arc<Vec<Component>>, Vec<DocumentError>> {
    match ask(OsStr::new(MYSELF), sources) {
        Ok(answer) => answer,
        Err(ReaderError::Start(error)) => {
            tracing::debug!(%error, "cannot start a reader; reading here");
            super::components(sources)
        }
        Err(error @ (ReaderError::Ended { .. } | ReaderError::Nonsense)) => {
            let source = sources.first().map_or("configuration", |source| &*source.name);
            Err(vec![DocumentError {
                place: Place {
                    source: source.into(),
                    line: 1,
                    column: 1,
                },
                message: error.to_string(),
            }])
        }
    }
}

fn ask(
    program: &OsStr,
    sources: &[Source],
) -> Result<Result<Arc<Vec<Component>>, Vec<DocumentError>>, ReaderError> {
    let mut child = Command::new(program)
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(ReaderError::Start)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut answer = Vec::new();
    thread::scope(|scope| {
        // Beside each other: neither pipe holds as much as is said.
        scope.spawn(move || {
            let texts: Vec<Text<'_>> = sources
                .iter()
                .map(|source| Text {
                    name: Cow::Borrowed(&source.name),
                    text: Cow::Borrowed(&source.text),
                })
                .collect();
            // A reader that ended is noticed below.
            stdin.map(|stdin| serde_json::to_writer(io::BufWriter::new(stdin), &texts))
        });
        stdout.map(|stdout| stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer))
    });
    let status = child.wait().map_err(|_| ReaderError::Nonsense)?;
    if !status.success() {
        return Err(ReaderError::Ended { status });
    }
    match serde_json::from_slice(&answer) {
        Ok(Answer::Components(objects)) => {
            let components: Result<Vec<Component>, _> =
                objects.into_iter().map(ComponentObject::validate).collect();
            let components = components.map_err(|_| ReaderError::Nonsense)?;
            Ok(Ok(Arc::new(components)))
        }
        Ok(Answer::Errors(errors)) => Ok(Err(errors.into_iter().map(DocumentError::from).collect())),
        Err(_) => Err(ReaderError::Nonsense),
    }
}

/// The reader's whole life.
///
/// # Errors
/// When it is not spoken to as [`read_apart`] does.
pub fn serve(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut text = Vec::new();
    io::BufReader::new(input).read_to_end(&mut text)?;
    let texts: Vec<Text<'_>> = serde_json::from_slice(&text)?;
    let sources: Vec<Source> = texts
        .iter()
        .map(|Text { name, text }| Source::new(&**name, &**text))
        .collect();
    let answer = match answer(&sources) {
        Ok(objects) => Answer::Components(objects),
        Err(errors) => Answer::Errors(errors.into_iter().map(Error::from).collect()),
    };
    serde_json::to_writer(&mut output, &answer)?;
    output.flush()
}

fn answer(sources: &[Source]) -> Result<Vec<ComponentObject>, Vec<DocumentError>> {
    super::components(sources)?;
    let documents = config::read(sources)?;
    documents
        .components
        .iter()
        .map(|(_, document)| document.parse().map_err(|error| vec![error]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_a_reader(sources: &[Source]) -> Result<Vec<Component>, Vec<DocumentError>> {
        let texts: Vec<_> = sources
            .iter()
            .map(|source| serde_json::json!({"name": &*source.name, "text": &*source.text}))
            .collect();
        let mut output = Vec::new();
        serve(serde_json::to_vec(&texts).unwrap().as_slice(), &mut output).unwrap();
        match serde_json::from_slice(&output).unwrap() {
            Answer::Components(objects) => Ok(objects
                .into_iter()
                .map(|object| object.validate().unwrap())
                .collect()),
            Answer::Errors(errors) => Err(errors.into_iter().map(DocumentError::from).collect()),
        }
    }

    fn check(texts: &[&str]) {
        let sources: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| Source::new(format!("{index}.yaml"), *text))
            .collect();
        let here = super::super::components(&sources).map(|components| components.to_vec());
        assert_eq!(through_a_reader(&sources), here);
    }

    const EVERYTHING: &str = r#"
apiVersion: healthscope.core.oam.dev/v1beta1
kind: Component
metadata:
  name: web
  namespace: shop
  labels: {app: web, "example.org/part": "é"}
  annotations: {healthscope.core.oam.dev/depends-on: "db, Component/cache"}
spec:
  host: "::1"
  ports: {http: 8080}
  readinessProbe:
    httpGet: {path: /healthz, port: http, scheme: HTTPS, httpHeaders: [{name: X-A, value: b}, {name: X-A, value: c}]}
    periodSeconds: 1
    failureThreshold: 2
  livenessProbe: {exec: {command: [pgrep, -x, "web\n"]}, initialDelaySeconds: 3, timeoutSeconds: 4}
  startupProbe: {grpc: {port: 9000, service: shop}}
  probes:
    - {name: disk, type: readiness, exec: {command: [sh, -c, "df"]}, period: 30s, timeout: 500ms}
    - {name: port, type: liveness, tcpSocket: {port: "http"}, successThreshold: 1}
"#;

    #[test]
    fn reader_says_what_is_meant() {
        check(&[EVERYTHING]);
        let json = r#"{"apiVersion": "healthscope.core.oam.dev/v1beta1", "kind": "Component",
            "metadata": {"name": "json"}, "spec": {"readinessProbe": {"tcpSocket": {"port": 80}}}}"#;
        check(&[EVERYTHING, json]);
        check(&[]);
    }

    #[test]
    fn reader_says_what_is_wrong_and_where() {
        check(&["kind: Component"]);
        check(&[EVERYTHING, "not: [yaml"]);
        check(&[&EVERYTHING.replace("period: 30s", "period: soon")]);
        check(&[EVERYTHING, EVERYTHING]);
    }

    fn check_failure(program: &str, expected: &str) {
        let source = Source::new("x.yaml", EVERYTHING);
        let error = ask(OsStr::new(program), &[source]).unwrap_err().to_string();
        assert!(error.contains(expected), "{program}: {error}");
    }

    #[test]
    fn reader_that_fails_is_no_silent_success() {
        check_failure("/nowhere/reader", "cannot start a reader");
        check_failure("false", "ended with exit status: 1");
        check_failure("true", "answered nonsense");
    }
}
