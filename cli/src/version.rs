//! `healthscope version`.

use {
    crate::{
        args::{ObjectOutput, VersionArgs},
        client::Status,
        failure::{Answer, Failure},
        object,
        source::{Source, SourceError},
        terminal::Terminal,
    },
    healthscope_service::build,
    serde_json::{Value, json},
};

/// Prints the versions; an aggregator that is not there is said and is no failure.
pub(crate) async fn run(
    args: &VersionArgs,
    source: Option<&Source>,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let VersionArgs { client: _, output } = args;
    let server = match source {
        None => None,
        Some(source) => Some((source.address(), status(source).await)),
    };
    let text = match output {
        None => {
            let mut text = format!("Client: {}\n", build::version());
            match &server {
                None => {}
                Some((address, Ok(status))) => {
                    text.push_str(&format!("Server: {} at {address}\n", full(status)));
                }
                Some((_, Err(error))) => {
                    let reason = error.to_string();
                    text.push_str(&format!(
                        "Server: {}\n",
                        reason.lines().next().unwrap_or_default()
                    ));
                }
            }
            text
        }
        Some(output) => {
            let mut whole = json!({"client": version(build::VERSION, build::COMMIT)});
            match &server {
                None => {}
                Some((address, Ok(status))) => {
                    let mut server = version(&status.version, status.commit.as_deref());
                    server["address"] = json!(address);
                    whole["server"] = server;
                }
                Some((address, Err(error))) => {
                    whole["server"] = json!({"address": address, "error": error.to_string()});
                }
            }
            match output {
                ObjectOutput::Json => object::json(&whole),
                ObjectOutput::Yaml => object::yaml(&whole),
            }
        }
    };
    terminal.print(&text)?;
    Ok(Answer::Yes)
}

async fn status(source: &Source) -> Result<Status, SourceError> {
    Ok(source.aggregator().await?.status().await?)
}

fn full(status: &Status) -> String {
    match &status.commit {
        Some(commit) => format!("{} ({commit})", status.version),
        None => status.version.clone(),
    }
}

fn version(version: &str, commit: Option<&str>) -> Value {
    let mut value = json!({"version": version});
    if let Some(commit) = commit {
        value["commit"] = json!(commit);
    }
    value
}
