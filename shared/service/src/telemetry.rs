//! Logs: one subscriber for the process, on standard error, for people or as JSON.
//!
//! Standard output is left to what a command prints as its result.

use {
    std::{
        error::Error,
        fmt,
        io::{self, IsTerminal},
        str::FromStr,
    },
    tracing_subscriber::{
        filter::{ParseError, Targets},
        layer::{Layer, SubscriberExt},
        registry::Registry,
        util::{SubscriberInitExt, TryInitError},
    },
};

/// The variable with the filter, used when no filter is given: `info`, `warn,healthscope_agent=debug`.
pub const FILTER_VARIABLE: &str = "HEALTHSCOPE_LOG";

/// The filter when nobody said one.
pub const DEFAULT_FILTER: &str = "info";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people, coloured on a terminal unless `NO_COLOR` is set.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// A word that is no [`LogFormat`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format {0:?}: say human or json")]
pub struct UnknownFormat(String);

impl FromStr for LogFormat {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat(word.to_owned())),
        }
    }
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("cannot read the log filter {filter:?}: say a level, or target=level, separated by commas")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// There is a subscriber already.
    #[error("logs are set up already")]
    Twice(#[source] TryInitError),
}

/// Starts logging to standard error, once for the process.
///
/// `filter` wins over the variable `HEALTHSCOPE_LOG`, which wins over `info`. A filter is a list of levels and
/// `target=level` pairs separated by commas, where a target is the beginning of a module path.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var(FILTER_VARIABLE).ok();
    let targets = parse_filter(choose_filter(filter, from_environment.as_deref()))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = io::stderr().is_terminal() && !no_color;
    Registry::default()
        .with(output(format, colour, io::stderr).with_filter(targets))
        .try_init()
        .map_err(TelemetryError::Twice)
}

/// Writes an error and all its causes on one line: `cannot read x: permission denied`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

fn choose_filter<'a>(given: Option<&'a str>, from_environment: Option<&'a str>) -> &'a str {
    let is_said = |filter: &&str| !filter.trim().is_empty();
    given
        .filter(is_said)
        .or(from_environment.filter(is_said))
        .unwrap_or(DEFAULT_FILTER)
}

fn parse_filter(filter: &str) -> Result<Targets, TelemetryError> {
    filter.parse().map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })
}

fn output<W>(format: LogFormat, colour: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    // A log line that cannot be written is lost: complaining about it on the same closed stream would panic.
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .log_internal_errors(false);
    match format {
        LogFormat::Human => layer.with_ansi(colour).with_target(false).boxed(),
        LogFormat::Json => layer
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        std::sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, colour: bool, filter: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = output(format, colour, move || writer.clone()).with_filter(parse_filter(filter).unwrap());
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            let _span = tracing::info_span!("task", name = "timer").entered();
            tracing::info!(port = 7575, "listening");
            tracing::debug!("detail");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn human_line_has_span_message_and_values() {
        let text = logged(LogFormat::Human, false, "info");
        assert!(
            text.contains(r#"INFO task{name="timer"}: listening port=7575"#),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "colour without a terminal: {text:?}");
        assert!(logged(LogFormat::Human, true, "info").contains('\u{1b}'));
    }

    #[test]
    fn json_line_is_one_object() {
        let text = logged(LogFormat::Json, false, "info");
        assert_eq!(text.lines().count(), 1);
        assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
        assert!(
            text.contains(r#""message":"listening""#) && text.contains(r#""port":7575"#),
            "{text}"
        );
        assert!(text.contains(r#""spans":[{"name":"#), "{text}");
    }

    #[test]
    fn filter_is_obeyed() {
        assert_eq!(
            logged(LogFormat::Human, false, "healthscope_service=debug")
                .lines()
                .count(),
            2
        );
        assert_eq!(
            logged(LogFormat::Human, false, "off,healthscope_service=info")
                .lines()
                .count(),
            1
        );
        assert_eq!(logged(LogFormat::Human, false, "warn"), "");
        let error = parse_filter("a=loud").unwrap_err();
        assert!(chain(&error).contains("a=loud"), "{}", chain(&error));
    }

    #[test]
    fn given_filter_wins_over_the_variable() {
        assert_eq!(choose_filter(Some("warn"), Some("debug")), "warn");
        assert_eq!(choose_filter(None, Some("debug")), "debug");
        assert_eq!(choose_filter(None, Some("")), "info");
        assert_eq!(choose_filter(None, None), "info");
    }

    #[test]
    fn format_is_read_back_as_it_is_written() {
        for format in [LogFormat::Human, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!(
            "xml".parse::<LogFormat>().unwrap_err().to_string(),
            "unknown log format \"xml\": say human or json"
        );
    }
}
