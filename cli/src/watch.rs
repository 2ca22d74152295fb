//! `healthscope watch`: changes as they happen, until somebody stops it.

use {
    crate::{
        args::{LinesOutput, WatchArgs},
        client::{Client, Interest},
        failure::{Answer, Failure},
        follow::{Follow, Step},
        object,
        terminal::Terminal,
        transition,
    },
    healthscope_core::view::TransitionView,
    healthscope_shared::name::{Name, Namespace},
    jiff::tz::TimeZone,
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
    client: &Client,
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
    let zone = TimeZone::system();
    let mut follow = Follow::start(client, interest).await?;
    let mut was_back = false;
    loop {
        let event = match follow.step().await? {
            Step::Event(event) => event,
            Step::Lost(error) => {
                let reason = error.to_string();
                note(&format!(
                    "connection lost: {}; trying again",
                    reason.lines().next().unwrap_or_default()
                ));
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
                let line = match output {
                    Some(LinesOutput::Json) => serde_json::from_str::<serde_json::Value>(&event.data)
                        .map(|value| object::json_line(&value)),
                    None => serde_json::from_str::<TransitionView>(&event.data)
                        .map(|transition| transition::line(&transition, &zone, terminal)),
                };
                // One that cannot be read is of a newer aggregator, and says so.
                match line {
                    Ok(line) => terminal.print(&line)?,
                    Err(error) => note(&format!("a change of an unknown form: {error}")),
                }
            }
            "snapshot" => {
                let missed = serde_json::from_str::<Picture>(&event.data).is_ok_and(|picture| picture.missed);
                if missed && was_back {
                    note("some changes were missed; `get scopes` shows how things are");
                }
            }
            _ => {}
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "what is said about the connection is not a change"
)]
fn note(message: &str) {
    eprintln!("{message}");
}
