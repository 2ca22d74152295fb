//! The command line, read by hand: it stands in pod templates, is written by the injector, and must stay small.
//!
//! Pure. What cannot be understood is an error here; what to do about it is [`crate::main`]'s.

use std::{ffi::OsString, fmt, path::PathBuf};

/// What every container's runner is told at most: as many as a check's number tells apart.
pub(crate) const MAX_CHECKS: usize = 256;

/// A command line: program and arguments, never empty.
pub(crate) type Words = Vec<OsString>;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// See to it that a runner is up, then become another program, if one is given.
    Carry { checks: Vec<Words>, then: Option<Words> },
    /// The same as a container's postStart hook.
    Start { checks: Vec<Words>, then: Option<Words> },
    /// The step between [`Task::Carry`] and [`Task::Serve`]: start that, detached, and end.
    Detach { checks: Vec<Words> },
    /// Be the runner.
    Serve { checks: Vec<Words> },
    /// Be PID 1 of the agent's container.
    Supervise {
        directory: PathBuf,
        targets: Vec<String>,
        agent: Words,
    },
    /// Say which version this is.
    Version,
}

/// What is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Task {
    /// Reads everything after the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter();
        let Some(task) = arguments.next() else {
            return Err(usage("a task is missing: carry, start or supervise"));
        };
        match task.to_str() {
            Some("carry") => {
                let (checks, then) = checks(arguments)?;
                Ok(Self::Carry { checks, then })
            }
            Some("start") => {
                let (checks, then) = checks(arguments)?;
                Ok(Self::Start { checks, then })
            }
            Some("detach") => Ok(Self::Detach {
                checks: only_checks(arguments)?,
            }),
            Some("serve") => Ok(Self::Serve {
                checks: only_checks(arguments)?,
            }),
            Some("supervise") => supervise(arguments),
            Some("--version") => Ok(Self::Version),
            Some(_) | None => Err(usage(&format!(
                "{} is no task; there are carry, start and supervise",
                task.display()
            ))),
        }
    }
}

/// The arguments that give these checks to [`Task::parse`].
pub(crate) fn written(checks: &[Words]) -> impl Iterator<Item = OsString> {
    checks.iter().flat_map(|words| {
        let counted = [OsString::from("-c"), OsString::from(words.len().to_string())];
        counted.into_iter().chain(words.iter().cloned())
    })
}

/// `-c N WORD1 … WORDN` for each check, and what to become after `--`. Words are counted, so none of them is taken for
/// something else.
fn checks(mut arguments: impl Iterator<Item = OsString>) -> Result<(Vec<Words>, Option<Words>), UsageError> {
    let mut checks = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-c") => {
                let count = arguments
                    .next()
                    .and_then(|count| count.to_str()?.parse::<usize>().ok())
                    .filter(|&count| count > 0)
                    .ok_or_else(|| usage("after -c comes the number of words of the command"))?;
                let words: Words = arguments.by_ref().take(count).collect();
                if words.len() < count {
                    return Err(usage(&format!(
                        "-c {count} is followed by {} words only",
                        words.len()
                    )));
                }
                checks.push(words);
                if checks.len() > MAX_CHECKS {
                    return Err(usage(&format!("there are more than {MAX_CHECKS} commands")));
                }
            }
            Some("--") => {
                let then: Words = arguments.collect();
                if then.is_empty() {
                    return Err(usage("after -- comes a command"));
                }
                return Ok((checks, Some(then)));
            }
            Some(_) | None => {
                return Err(usage(&format!("{} is not expected here", argument.display())));
            }
        }
    }
    Ok((checks, None))
}

fn only_checks(arguments: impl Iterator<Item = OsString>) -> Result<Vec<Words>, UsageError> {
    match checks(arguments)? {
        (checks, None) => Ok(checks),
        (_, Some(_)) => Err(usage("-- is not expected here")),
    }
}

fn supervise(mut arguments: impl Iterator<Item = OsString>) -> Result<Task, UsageError> {
    let mut directory = None;
    let mut targets = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--dir") => {
                let value = arguments
                    .next()
                    .ok_or_else(|| usage("after --dir comes a directory"))?;
                directory = Some(PathBuf::from(value));
            }
            Some("--target") => {
                let name = arguments
                    .next()
                    .and_then(|name| name.into_string().ok())
                    .filter(|name| is_container_name(name))
                    .ok_or_else(|| usage("after --target comes the name of a container"))?;
                targets.push(name);
            }
            Some("--") => {
                let agent: Words = arguments.collect();
                if agent.is_empty() {
                    return Err(usage("after -- comes the agent's command line"));
                }
                let directory = directory.ok_or_else(|| usage("--dir is missing"))?;
                return Ok(Task::Supervise {
                    directory,
                    targets,
                    agent,
                });
            }
            Some(_) | None => {
                return Err(usage(&format!("{} is not expected here", argument.display())));
            }
        }
    }
    Err(usage("-- and the agent's command line are missing"))
}

/// What Kubernetes calls containers (RFC 1123 label): nothing that could lead to another directory.
fn is_container_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn usage(message: &str) -> UsageError {
    UsageError(message.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use super::*;

    fn words(line: &str) -> Words {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[track_caller]
    fn check(line: &str, expected: Task) {
        assert_eq!(Task::parse(words(line)), Ok(expected), "{line}");
    }

    #[track_caller]
    fn refused(line: &str, expected: &str) {
        let error = Task::parse(words(line)).unwrap_err();
        assert_eq!(error.to_string(), expected, "{line}");
    }

    #[test]
    fn commands_are_counted_in_words() {
        let checks = || vec![words("cat /tmp/ok"), words("-c -- 2")];
        check(
            "carry -c 2 cat /tmp/ok -c 3 -c -- 2",
            Task::Carry {
                checks: checks(),
                then: None,
            },
        );
        check(
            "carry -c 2 cat /tmp/ok -c 3 -c -- 2 -- sh -c 1",
            Task::Carry {
                checks: checks(),
                then: Some(words("sh -c 1")),
            },
        );
        check(
            "start -- hook --",
            Task::Start {
                checks: vec![],
                then: Some(words("hook --")),
            },
        );
        let arguments: Vec<OsString> = [OsString::from("serve")]
            .into_iter()
            .chain(written(&checks()))
            .collect();
        assert_eq!(Task::parse(arguments), Ok(Task::Serve { checks: checks() }));
    }

    #[test]
    fn a_supervisor_is_told_where_for_whom_and_what() {
        check(
            "supervise --dir /healthscope --target web --target db -- /healthscope-agent --x",
            Task::Supervise {
                directory: "/healthscope".into(),
                targets: vec!["web".into(), "db".into()],
                agent: words("/healthscope-agent --x"),
            },
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        refused("", "a task is missing: carry, start or supervise");
        refused("run", "run is no task; there are carry, start and supervise");
        refused("carry -c", "after -c comes the number of words of the command");
        refused("carry -c 0", "after -c comes the number of words of the command");
        refused("carry -c x", "after -c comes the number of words of the command");
        refused("carry -c 3 a b", "-c 3 is followed by 2 words only");
        refused("carry a", "a is not expected here");
        refused("carry --", "after -- comes a command");
        refused("serve -- a", "-- is not expected here");
        refused("supervise -- a", "--dir is missing");
        refused(
            "supervise --dir /x",
            "-- and the agent's command line are missing",
        );
        for name in ["../web", "a/b", "", "Web", "-a"] {
            let line = [
                OsString::from("supervise"),
                OsString::from("--target"),
                OsString::from(name),
            ];
            let error = Task::parse(line).unwrap_err();
            assert_eq!(error.to_string(), "after --target comes the name of a container");
        }
    }
}
