//! How a command ends, as an exit code: 0 for yes, 1 for no or an error, 2 for a command line that cannot be meant.
//!
//! `check` of an installation tells a failure, 1, from one that it could not ask about, 2 too.

use std::{fmt, io, process::ExitCode};

/// Exit code of a command line that cannot be meant; clap's own choice too.
const USAGE: u8 = 2;

/// What a command that could be carried out found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Found, available, valid.
    Yes,
    /// Not so; what was found has been printed.
    No,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Why a command could not be carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something failed; the text says what, why and what to do.
    Error(String),
    /// The arguments contradict each other or mean nothing.
    Usage(String),
    /// Nobody could be asked, where that is something else than a no.
    Unanswered(String),
    /// The result cannot be written.
    Output(io::Error),
}

impl Failure {
    /// A failure with a text.
    pub(crate) fn error(message: impl fmt::Display) -> Self {
        Self::Error(message.to_string())
    }

    /// A command line that cannot be meant.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    /// Nobody could be asked.
    pub(crate) fn unanswered(message: impl fmt::Display) -> Self {
        Self::Unanswered(message.to_string())
    }

    /// Whether the reader of the output went away, as `head` does.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(message) | Self::Usage(message) | Self::Unanswered(message) => f.write_str(message),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Says on standard error why there is no result, and turns everything into an exit code.
#[expect(clippy::print_stderr, reason = "the place where messages are printed")]
pub(crate) fn conclude(result: Result<Answer, Failure>) -> ExitCode {
    match result {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::FAILURE,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            match failure {
                Failure::Usage(_) | Failure::Unanswered(_) => ExitCode::from(USAGE),
                Failure::Error(_) | Failure::Output(_) => ExitCode::FAILURE,
            }
        }
    }
}
