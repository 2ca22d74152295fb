//! `writes`: how often statuses are written, counted in the API server's audit log.
//!
//! Per change of a component, while nothing changes, over a restart of the aggregator, and over reconnects of agents.

use {
    crate::{
        kubernetes::{
            DEADLINE, GROUP, Place, Shape, USER,
            agents::Agents,
            free_address, until,
            watch::{Seen, Watcher},
        },
        report::{Table, say},
    },
    anyhow::{Context, Result},
    clap::Args,
    healthscope_e2e_cluster::Audit,
    serde_json::Value,
    std::{
        fs::File,
        io::{Read, Seek, SeekFrom},
        time::Duration,
    },
    tokio::{sync::mpsc, time},
};

/// How much of each.
#[derive(Debug, Args)]
pub(crate) struct WritesArgs {
    /// Changes of state.
    #[arg(long, default_value_t = 120)]
    changes: usize,
    /// Seconds in which nothing changes.
    #[arg(long, default_value_t = 120)]
    quiet: u64,
    /// Reconnects of agents, at least.
    #[arg(long, default_value_t = 1_000)]
    reconnects: usize,
}

const SHAPE: Shape = Shape {
    scopes: 40,
    per_scope: 3,
    namespaces: 4,
};
/// From one change to the next: each scope's turn comes after its own pace is over.
const PACE: Duration = Duration::from_millis(50);
/// What is held back for a while after a start, or after agents went, is out by then.
const SETTLED: Duration = Duration::from_secs(45);

/// Writes of the aggregator, by what is written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    statuses: usize,
    events: usize,
    leases: usize,
    others: usize,
}

/// Reads the audit log from where it was read to.
struct AuditLog {
    file: File,
    /// The beginning of a line whose end is not there yet.
    rest: String,
}

impl AuditLog {
    fn open(place: &Place) -> Result<Self> {
        let mut file = File::open(place.cluster.audit_log().context("there is an audit log")?)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            rest: String::new(),
        })
    }

    /// What the aggregator has written since.
    fn take(&mut self) -> Result<Written> {
        self.file.read_to_string(&mut self.rest)?;
        let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let mut written = Written::default();
        for line in self.rest[..end].lines() {
            // What came before the log was opened may have left half a line.
            let Ok(entry) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let verb = entry["verb"].as_str().unwrap_or_default();
            let writes = matches!(verb, "create" | "update" | "patch" | "delete");
            if entry["user"]["username"] != USER || entry["stage"] != "ResponseComplete" || !writes {
                continue;
            }
            let object = &entry["objectRef"];
            let part = |name: &str| object[name].as_str().unwrap_or_default();
            match (part("resource"), part("subresource")) {
                ("healthscopes", "status") => written.statuses += 1,
                ("events", _) => written.events += 1,
                ("leases", _) => written.leases += 1,
                _ => written.others += 1,
            }
        }
        self.rest.drain(..end);
        Ok(written)
    }
}

/// Runs the measurement.
pub(crate) async fn writes(args: WritesArgs) -> Result<()> {
    let place = Place::start(Some(Audit::Metadata)).await?;
    let components = place.populate(SHAPE).await?;
    let (told, mut statuses) = mpsc::unbounded_channel();
    let _watcher = Watcher::start(&place.client, GROUP, move |seen| drop(told.send(seen)));
    let address = free_address()?;
    let aggregator = place.aggregator("aggregator-0", address)?;
    let agents = Agents::start(&components, &[address]);
    until("all agents", || agents.connected() == components.len()).await?;
    time::sleep(SETTLED).await;
    let mut log = AuditLog::open(&place)?;
    let mut table = Table::new(["", "statuses", "each", "Events", "Lease", "others"]);
    let mut row = |what: String, each: usize, written: Written| {
        table.row([
            what,
            written.statuses.to_string(),
            match each {
                0 => String::new(),
                each => format!("{:.2}", ratio(written.statuses, each)),
            },
            written.events.to_string(),
            written.leases.to_string(),
            written.others.to_string(),
        ]);
    };

    for change in 0..args.changes {
        let (scope, passes) = (change % SHAPE.scopes, (change / SHAPE.scopes) % 2 == 1);
        let component = &components[scope * SHAPE.per_scope];
        let wanted = if passes { "Healthy" } else { "Unhealthy" };
        agents.set(component.index, passes);
        let is_it = |seen: &Seen| seen.health_of(&component.deployment) == Some(wanted);
        while !is_it(&next(&mut statuses).await?) {}
        time::sleep(PACE).await;
    }
    // A late second write of the last ones counts too.
    time::sleep(Duration::from_secs(3)).await;
    row(format!("{} changes", args.changes), args.changes, log.take()?);

    time::sleep(Duration::from_secs(args.quiet)).await;
    row(format!("{} s without a change", args.quiet), 0, log.take()?);

    let former = agents.sessions();
    tokio::task::spawn_blocking(move || aggregator.terminate(Duration::from_secs(10))).await??;
    let _aggregator = place.aggregator("aggregator-1", address)?;
    let again = former + components.len();
    until("all agents after the restart", || agents.sessions() >= again).await?;
    time::sleep(SETTLED).await;
    row("a restart of the aggregator".to_owned(), 0, log.take()?);

    let before = agents.sessions();
    while agents.sessions() - before < args.reconnects {
        let wanted = agents.sessions() + components.len();
        agents.cut_all();
        until("all agents after a cut", || agents.sessions() >= wanted).await?;
    }
    let reconnects = agents.sessions() - before;
    time::sleep(SETTLED).await;
    row(format!("{reconnects} reconnects of agents"), 0, log.take()?);
    say(&format!(
        "{} scopes of {} components; writes of the aggregator by the API server's audit log",
        SHAPE.scopes, SHAPE.per_scope
    ));
    table.print();
    Ok(())
}

async fn next(statuses: &mut mpsc::UnboundedReceiver<Seen>) -> Result<Seen> {
    let seen = time::timeout(DEADLINE, statuses.recv()).await;
    seen.context("no status is seen any more")?
        .context("the watch ended")
}

#[expect(clippy::cast_precision_loss, reason = "counts of writes are small")]
fn ratio(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}
