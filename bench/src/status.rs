//! `status`: from an outcome in the agent to the HealthScope's status as a watcher of the API server sees it.
//!
//! Scopes of three components take turns, so that none waits for its own pace. After each change the status that was
//! seen is written once more by a plain client, to an object of the same schema that the aggregator knows nothing of,
//! and watched in the same manner: what the goal compares with.

use {
    crate::{
        kubernetes::{
            BARE_GROUP, DEADLINE, GROUP, Place, Shape,
            agents::Agents,
            free_address, scopes_path, until,
            watch::{Seen, Watcher},
        },
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result},
    clap::Args,
    serde_json::{Value, json},
    std::{
        collections::HashSet,
        time::{Duration, Instant},
    },
    tokio::{sync::mpsc, time},
};

/// How many changes.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Changes of state to measure.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Scopes that take turns; at three changes each none flaps.
    #[arg(long, default_value_t = 100)]
    scopes: usize,
}

/// Components of each scope.
const PER_SCOPE: usize = 3;
/// From one change of a scope to its next at least; the writer's own pace is one a second.
const TURN: Duration = Duration::from_millis(1_500);

/// Runs the measurement.
pub(crate) async fn status(args: StatusArgs) -> Result<()> {
    let shape = Shape {
        scopes: args.scopes,
        per_scope: PER_SCOPE,
        namespaces: 10,
    };
    let place = Place::start(None).await?;
    let components = place.populate(shape).await?;
    let (told, mut statuses) = mpsc::unbounded_channel();
    let _watcher = Watcher::start(&place.client, GROUP, move |seen| drop(told.send(seen)));
    let (told, mut bare_statuses) = mpsc::unbounded_channel();
    let _bare_watcher = Watcher::start(&place.client, BARE_GROUP, move |seen| drop(told.send(seen)));
    let mut bare_objects = Vec::with_capacity(shape.scopes);
    for scope in 0..shape.scopes {
        let object = json!({
            "apiVersion": format!("{BARE_GROUP}/v1beta1"), "kind": "HealthScope",
            "metadata": {"name": Shape::scope(scope)},
            "spec": {"selector": {"matchLabels": {"app.kubernetes.io/part-of": Shape::scope(scope)}}},
        });
        let path = scopes_path(BARE_GROUP, &shape.namespace(scope));
        bare_objects.push(place.post(&path, &object).await?);
    }

    let address = free_address()?;
    let _aggregator = place.aggregator("aggregator-0", address)?;
    let agents = Agents::start(&components, &[address]);
    until("all agents", || agents.connected() == components.len()).await?;
    let mut missing: HashSet<String> = (0..shape.scopes).map(Shape::scope).collect();
    while !missing.is_empty() {
        let seen = next(&mut statuses).await.with_context(|| {
            let log = std::fs::read_to_string(place.log("aggregator-0")).unwrap_or_default();
            format!("scopes are not healthy: {missing:?}\n{log}")
        })?;
        if seen.status["health"] == "Healthy" && seen.components().count() == PER_SCOPE {
            missing.remove(&seen.name);
        }
    }

    let mut ours = Vec::with_capacity(args.changes);
    let mut bare = Vec::with_capacity(args.changes);
    let mut bytes = 0;
    let turn = TURN / u32::try_from(shape.scopes)?;
    for change in 0..args.changes {
        let begun = Instant::now();
        let (scope, passes) = (change % shape.scopes, (change / shape.scopes) % 2 == 1);
        let component = &components[scope * PER_SCOPE];
        let wanted = if passes { "Healthy" } else { "Unhealthy" };
        let name = Shape::scope(scope);
        let changed = Instant::now();
        agents.set(component.index, passes);
        let seen = loop {
            let seen = next(&mut statuses).await?;
            if seen.name == name && seen.health_of(&component.deployment) == Some(wanted) {
                break seen;
            }
        };
        ours.push(seen.at - changed);

        bytes += seen.status.to_string().len();
        let path = format!(
            "{}/{name}/status",
            scopes_path(BARE_GROUP, &shape.namespace(scope))
        );
        let object = &mut bare_objects[scope];
        object["status"] = seen.status;
        let body: Value = object.clone();
        let changed = Instant::now();
        let written = place.put(&path, &body);
        let (written, seen) = tokio::try_join!(written, async {
            loop {
                let seen = next(&mut bare_statuses).await?;
                if seen.name == name && seen.health_of(&component.deployment) == Some(wanted) {
                    return anyhow::Ok(seen);
                }
            }
        })?;
        *object = written;
        bare.push(seen.at - changed);
        time::sleep(turn.saturating_sub(begun.elapsed())).await;
    }

    ours.sort_unstable();
    bare.sort_unstable();
    say(&format!(
        "{} changes over {} scopes of {PER_SCOPE} components, statuses of {} bytes",
        args.changes,
        args.scopes,
        bytes / args.changes.max(1)
    ));
    let mut table = Table::new(["", "p50", "p90", "p99", "max"]);
    let shares = [0.5, 0.9, 0.99, 1.0];
    let at = |times: &[Duration], share| quantile(times, share).unwrap_or_default().as_secs_f64() * 1e3;
    for (what, times) in [
        ("outcome in the agent → status seen", &ours),
        ("bare write of the same → status seen", &bare),
    ] {
        let [p50, p90, p99, max] = shares.map(|share| format!("{:.2} ms", at(times, share)));
        table.row([what.to_owned(), p50, p90, p99, max]);
    }
    let [p50, p90, p99, max] = shares.map(|share| format!("{:+.2} ms", at(&ours, share) - at(&bare, share)));
    table.row(["more than the bare write".to_owned(), p50, p90, p99, max]);
    table.print();
    Ok(())
}

async fn next(statuses: &mut mpsc::UnboundedReceiver<Seen>) -> Result<Seen> {
    let seen = time::timeout(DEADLINE, statuses.recv()).await;
    seen.context("no status is seen any more")?
        .context("the watch ended")
}
