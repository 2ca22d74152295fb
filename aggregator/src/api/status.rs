//! The aggregator about itself.

use {
    super::{Api, json},
    crate::{
        kubernetes::role::Role,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{Extension, extract::State, response::Response},
    healthscope_core::view::Totals,
    healthscope_service::build,
    jiff::Timestamp,
    schemars::JsonSchema,
    serde::Serialize,
};

/// Problems of the configuration that are listed.
const MAX_PROBLEMS: usize = 100;

/// The aggregator about itself.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// Its release.
    version: &'static str,
    /// The commit it was built from, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    /// When it started.
    started_at: Timestamp,
    /// Its own clock, now.
    now: Timestamp,
    /// What it holds.
    totals: Totals,
    /// Id of the latest transition; 0 before the first.
    last_transition: u64,
    /// Sessions of agents that are open, welcomed or not; for a reader who may not see everything, of agents that they
    /// may see.
    sessions: usize,
    /// What it is among several.
    replica: ReplicaStatus,
    /// Its configuration.
    configuration: ConfigurationStatus,
}

/// What an aggregator is among several.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicaStatus {
    /// Whether it serves: takes agents in and writes statuses. One that stands by shows scopes as the other writes them,
    /// and knows nothing of agents, probes and transitions.
    serves: bool,
    /// Where the one is that serves, for one that stands by and knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl ReplicaStatus {
    fn of(role: &Role) -> Self {
        match role {
            Role::Owner => Self {
                serves: true,
                owner: None,
            },
            Role::Standby { owner } => Self {
                serves: false,
                owner: owner.as_ref().map(|owner| owner.address.clone()),
            },
        }
    }
}

/// The configuration in force.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigurationStatus {
    /// Counts the configurations that were applied, from 1.
    revision: u64,
    /// What is wrong with the present files; while anything is, an earlier content stays in force. At most 100. For
    /// readers who may see everything.
    problems: Vec<String>,
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(viewer): Extension<Viewer>,
) -> Result<Response, Problem> {
    let sight = api.sight(&viewer).await?;
    let snapshot = &sight.snapshot;
    let loaded = api.declared.borrow().clone();
    // The files may name what lies in namespaces that this reader must not know of.
    let problems = loaded.problems.iter().filter(|_| sight.is_all());
    let problems = problems.flat_map(|problems| problems.list());
    let sessions = if sight.is_all() {
        api.sessions.len()
    } else {
        snapshot.totals.agents_connected as usize
    };
    Ok(json(&Status {
        version: build::VERSION,
        commit: build::COMMIT,
        started_at: api.started,
        now: Timestamp::now(),
        totals: snapshot.totals,
        last_transition: snapshot.last_transition,
        sessions,
        replica: ReplicaStatus::of(&api.replica.role.borrow()),
        configuration: ConfigurationStatus {
            revision: loaded.revision,
            problems: problems.take(MAX_PROBLEMS).map(ToString::to_string).collect(),
        },
    }))
}
