//! `healthscope watch`: changes as they happen, until somebody stops it.

use {
    crate::{
        args::{LinesOutput, WatchArgs},
        client::{Client, Interest},
        cluster::{self, Cluster},
        failure::{Answer, Failure},
        follow::{Follow, Step},
        object,
        source::{Scope, Source},
        terminal::Terminal,
        transition,
    },
    healthscope_core::view::TransitionView,
    healthscope_shared::name::{Name, Namespace},
    jiff::{Timestamp, tz::TimeZone},
    serde::Deserialize,
};

/// What of the event `snapshot` matters here.
#[derive(Debug, Deserialize)]
struct Picture {
    #[serde(default)]
    missed: bool,
}

/// Prints changes.
pub(crate) async fn run(
    args: &WatchArgs,
    namespace: &Namespace,
    source: Source,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let WatchArgs {
        scope,
        everywhere,
        probes,
        output,
    } = args;
    let scope = scope
        .as_deref()
        .map(Name::new)
        .transpose()
        .map_err(Failure::usage)?;
    let interest = Interest {
        namespace: (!everywhere.all_namespaces).then(|| namespace.clone()),
        scope,
        only_transitions: true,
        probes: *probes,
    };
    let printer = Printer {
        output: *output,
        zone: TimeZone::system(),
        terminal,
    };
    match source {
        // A status knows nothing of probes.
        Source::Cluster(cluster) if !probes => printer.cluster(&cluster, interest).await,
        Source::Cluster(_) | Source::Server(_) => printer.server(&source.aggregator().await?, interest).await,
    }
}

struct Printer {
    output: Option<LinesOutput>,
    zone: TimeZone,
    terminal: Terminal,
}

impl Printer {
    /// Prints what an aggregator's stream tells.
    async fn server(&self, client: &Client, interest: Interest) -> Result<Answer, Failure> {
        let mut follow = Follow::start(client, interest).await?;
        let mut was_back = false;
        loop {
            let event = match follow.step().await? {
                Step::Event(event) => event,
                Step::Lost(error) => {
                    lost(&error);
                    continue;
                }
                Step::Back => {
                    note("connection is back");
                    was_back = true;
                    continue;
                }
            };
            match event.kind.as_str() {
                "transition" => {
                    let line = match self.output {
                        Some(LinesOutput::Json) => serde_json::from_str::<serde_json::Value>(&event.data)
                            .map(|value| object::json_line(&value)),
                        None => serde_json::from_str::<TransitionView>(&event.data)
                            .map(|transition| transition::line(&transition, &self.zone, self.terminal)),
                    };
                    // One that cannot be read is of a newer aggregator, and says so.
                    match line {
                        Ok(line) => self.terminal.print(&line)?,
                        Err(error) => note(&format!("a change of an unknown form: {error}")),
                    }
                }
                "snapshot" => {
                    let missed =
                        serde_json::from_str::<Picture>(&event.data).is_ok_and(|picture| picture.missed);
                    if missed && was_back {
                        note("some changes were missed; `get scopes` shows how things are");
                    }
                }
                _ => {}
            }
        }
    }

    /// Prints what changes in the statuses of a cluster's scopes.
    async fn cluster(&self, cluster: &Cluster, interest: Interest) -> Result<Answer, Failure> {
        let mut watch = cluster.watch(&interest, None);
        watch.synced().await?;
        loop {
            match watch.step().await? {
                cluster::watch::Step::Changed { before, after } => {
                    self.change(before.as_deref(), after.as_deref())?;
                }
                cluster::watch::Step::Lost(error) => lost(&error),
                cluster::watch::Step::Back => note("connection is back"),
                cluster::watch::Step::Listed => {}
            }
        }
    }

    fn change(&self, before: Option<&Scope>, after: Option<&Scope>) -> Result<(), Failure> {
        let Some(after) = after else {
            if let Some(gone) = before {
                note(&format!(
                    "scope {}/{} is gone",
                    gone.view.namespace, gone.view.name
                ));
            }
            return Ok(());
        };
        for change in cluster::changes::between(
            before.map(|scope| &scope.view),
            &after.view,
            after.version(),
            Timestamp::now(),
        ) {
            let line = match self.output {
                Some(LinesOutput::Json) => object::json_line(&change),
                None => transition::line(&change, &self.zone, self.terminal),
            };
            self.terminal.print(&line)?;
        }
        Ok(())
    }
}

fn lost(error: &dyn std::fmt::Display) {
    let reason = error.to_string();
    note(&format!(
        "connection lost: {}; trying again",
        reason.lines().next().unwrap_or_default()
    ));
}

#[expect(
    clippy::print_stderr,
    reason = "what is said about the connection is not a change"
)]
fn note(message: &str) {
    eprintln!("{message}");
}
