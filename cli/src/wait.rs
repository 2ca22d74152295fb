//! `healthscope wait`: ends when scopes are as somebody wants them.
//!
//! The stream is only a wake-up; what counts is the scope as it is now. An aggregator that is not there yet, or goes
//! away meanwhile, is waited for.

use {
    crate::{
        age,
        args::WaitArgs,
        client::{Client, ClientError, Interest},
        failure::{Answer, Failure},
        follow::Follow,
        terminal::Terminal,
    },
    goal::Goal,
    healthscope_core::view::ScopeView,
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
    client: &Client,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let WaitArgs {
        scopes,
        goal,
        timeout,
    } = args;
    let goal: Goal = goal.parse().map_err(Failure::Usage)?;
    let timeout = parse_timeout(timeout).map_err(Failure::Usage)?;
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
        client,
        goal: &goal,
        left: keys?,
        last: None,
    };

    let deadline = Instant::now() + timeout;
    let interest = Interest {
        namespace: Some(namespace.clone()),
        ..Interest::default()
    };
    let mut follow = Follow::lazily(client, interest);
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
        match timeout_at(deadline, follow.changed()).await {
            Ok(changed) => changed?,
            Err(_) => return Err(waiting.timed_out(timeout)),
        }
    }
}

struct Waiting<'a> {
    client: &'a Client,
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
            let found = match self.client.scope(&key).await {
                Ok(view) => Ok(Some(view)),
                Err(ClientError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            };
            match found {
                Ok(view) if self.goal.is_met(view.as_ref()) => {
                    let kind = v1beta1::KIND.to_lowercase();
                    terminal.print(&format!("{kind}.{}/{} condition met\n", v1beta1::GROUP, key.name))?;
                }
                Ok(view) => {
                    self.last = Some(describe(&key, view.as_ref()));
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
        let last = self
            .last
            .as_deref()
            .unwrap_or("the aggregator did not answer in time");
        Failure::error(format!(
            "timed out after {} waiting for {} to be {}: {last}",
            age::exact(timeout),
            names.join(", "),
            self.goal
        ))
    }
}

fn describe(key: &ScopeKey, view: Option<&ScopeView>) -> String {
    let Some(view) = view else {
        return format!(
            "there is no HealthScope {} in the namespace {}",
            key.name, key.namespace
        );
    };
    let cause = view.root_cause.as_deref().unwrap_or(&view.message);
    let cause = crate::terminal::visible(cause);
    if cause.is_empty() {
        format!("{} is {}", key.name, view.health)
    } else {
        format!("{} is {}: {cause}", key.name, view.health)
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|parsed| Duration::try_from(parsed).ok());
    match parsed {
        Some(timeout) if timeout <= MAX_TIMEOUT => Ok(timeout),
        Some(_) => Err(format!("--timeout {text} is more than a week")),
        None => Err(format!(
            "--timeout {text:?} is not a duration; write 500ms, 60s or 5m"
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
            assert_eq!(parse_timeout(text).ok(), expected, "{text:?}");
        }
    }
}
