//! `healthscope wait`: ends when scopes are as somebody wants them.
//!
//! The stream is only a wake-up; what counts is the scope as it is now. An aggregator or a cluster that is not there
//! yet, or goes away meanwhile, is waited for. A status that is older than the spec counts for nothing.

use {
    crate::{
        age,
        args::WaitArgs,
        client::Interest,
        failure::{Answer, Failure},
        source::{Scope, Source, Wake},
        terminal::Terminal,
    },
    goal::Goal,
    healthscope_crd::v1beta1,
    healthscope_shared::name::{Name, Namespace, ScopeKey},
    std::time::Duration,
    tokio::time::{Instant, timeout_at},
};

mod goal;

/// Longest wait: a week, as long as kubectl's "for ever".
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Waits for scopes.
pub(crate) async fn run(
    args: &WaitArgs,
    namespace: &Namespace,
    source: &Source,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let WaitArgs {
        scopes,
        goal,
        timeout,
    } = args;
    let goal: Goal = goal.parse().map_err(Failure::Usage)?;
    let timeout = parse_duration("--timeout", timeout).map_err(Failure::Usage)?;
    let keys: Result<Vec<ScopeKey>, Failure> = scopes
        .iter()
        .map(|word| {
            let name = word.split_once('/').map_or(word.as_str(), |(_, name)| name);
            Ok(ScopeKey {
                namespace: namespace.clone(),
                name: Name::new(name).map_err(Failure::usage)?,
            })
        })
        .collect();
    let mut waiting = Waiting {
        source,
        goal: &goal,
        left: keys?,
        last: None,
    };

    let deadline = Instant::now() + timeout;
    let interest = Interest {
        namespace: Some(namespace.clone()),
        scope: match waiting.left.as_slice() {
            [only] => Some(only.name.clone()),
            _ => None,
        },
        ..Interest::default()
    };
    let mut wake = Wake::lazily(source, interest);
    loop {
        let looked = if timeout.is_zero() {
            waiting.look(terminal).await
        } else {
            match timeout_at(deadline, waiting.look(terminal)).await {
                Ok(looked) => looked,
                Err(_) => return Err(waiting.timed_out(timeout)),
            }
        };
        looked?;
        if waiting.left.is_empty() {
            return Ok(Answer::Yes);
        }
        if timeout.is_zero() {
            return Err(waiting.timed_out(timeout));
        }
        match timeout_at(deadline, wake.changed()).await {
            Ok(changed) => changed?,
            Err(_) => return Err(waiting.timed_out(timeout)),
        }
    }
}

struct Waiting<'a> {
    source: &'a Source,
    goal: &'a Goal,
    /// Scopes that are not there yet, in the order asked for.
    left: Vec<ScopeKey>,
    /// What stood in the way when last looked.
    last: Option<String>,
}

impl Waiting<'_> {
    /// Looks at all scopes that are left, and tells those that have got there.
    async fn look(&mut self, terminal: Terminal) -> Result<(), Failure> {
        let mut left = Vec::new();
        // Not emptied meanwhile: the deadline may end this at any point.
        for key in self.left.clone() {
            let found = match self.source.scope(&key).await {
                Ok(scope) => Ok(Some(scope)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            };
            match found {
                Ok(scope) if is_met(self.goal, scope.as_ref()) => {
                    let kind = v1beta1::KIND.to_lowercase();
                    terminal.print(&format!("{kind}.{}/{} condition met\n", v1beta1::GROUP, key.name))?;
                }
                Ok(scope) => {
                    self.last = Some(describe(&key, scope.as_ref()));
                    left.push(key);
                }
                Err(error) if error.is_passing() => {
                    self.last = Some(error.to_string());
                    left.push(key);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.left = left;
        Ok(())
    }

    fn timed_out(&self, timeout: Duration) -> Failure {
        let names: Vec<&str> = self.left.iter().map(|key| key.name.as_str()).collect();
        let last = self.last.as_deref().unwrap_or("there was no answer in time");
        Failure::error(format!(
            "timed out after {} waiting for {} to be {}: {last}",
            age::exact(timeout),
            names.join(", "),
            self.goal
        ))
    }
}

/// Whether a scope is as wanted, by a status that is about its present spec.
fn is_met(goal: &Goal, scope: Option<&Scope>) -> bool {
    let is_current = scope.is_none_or(|scope| scope.behind.is_none());
    is_current && goal.is_met(scope.map(|scope| &scope.view))
}

fn describe(key: &ScopeKey, scope: Option<&Scope>) -> String {
    let Some(Scope {
        view,
        behind,
        object: _,
    }) = scope
    else {
        return format!(
            "there is no HealthScope {} in the namespace {}",
            key.name, key.namespace
        );
    };
    if let Some(behind) = behind {
        return format!("{} is {}, but {behind}", key.name, view.health);
    }
    let cause = view.root_cause.as_deref().unwrap_or(&view.message);
    let cause = crate::terminal::visible(cause);
    if cause.is_empty() {
        format!("{} is {}", key.name, view.health)
    } else {
        format!("{} is {}: {cause}", key.name, view.health)
    }
}

/// How long is waited; 0 looks once.
pub(crate) fn parse_duration(option: &str, text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|parsed| Duration::try_from(parsed).ok());
    match parsed {
        Some(timeout) if timeout <= MAX_TIMEOUT => Ok(timeout),
        Some(_) => Err(format!("{option} {text} is more than a week")),
        None => Err(format!(
            "{option} {text:?} is not a duration; write 500ms, 60s or 5m"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_durations() {
        for (text, expected) in [
            ("0", Some(Duration::ZERO)),
            ("60s", Some(Duration::from_secs(60))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("500ms", Some(Duration::from_millis(500))),
            ("60", None),
            ("-1s", None),
            ("9000h", None),
            ("", None),
        ] {
            assert_eq!(parse_duration("--timeout", text).ok(), expected, "{text:?}");
        }
    }
}
