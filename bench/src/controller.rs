//! `controller`: a thousand scopes of a real API server under change; then a restart and a failover among them.
//!
//! Half of the changes are outcomes in agents, half are written to Deployments. Every status that a watcher sees is
//! compared with what is true: a component is well or not as it was last made, or, until the first status that says so,
//! as it was before. Anything else is a wrong status.

use {
    crate::{
        kubernetes::{
            BARE_GROUP, Component, GROUP, Place, Shape,
            agents::Agents,
            free_address, scopes_path, until,
            watch::{Seen, Watcher},
        },
        process::Process,
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result},
    clap::Args,
    serde_json::{Value, json},
    std::{
        collections::{BTreeMap, HashMap},
        net::SocketAddr,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::{Duration, Instant},
    },
    tokio::{sync::mpsc, task::JoinSet, time},
};

/// How large, how long.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// HealthScopes.
    #[arg(long, default_value_t = 1_000)]
    scopes: usize,
    /// Components of each; lists of up to ten name the healthy ones too, which is how statuses are checked.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=10))]
    per_scope: u8,
    /// Changes a second; 1 % of the components by default.
    #[arg(long)]
    rate: Option<usize>,
    /// Seconds of change.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Prints the aggregator's process id and waits so many seconds before the changes begin.
    #[arg(long, default_value_t = 0)]
    pause: u64,
}

/// Bare writes a second beside the changes.
const BARE_RATE: u64 = 4;
/// From one changed component to the next: a prime, so that all take turns and no scope has two turns in a row.
const STRIDE: usize = 7_919;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Agent,
    Deployment,
}

impl Cause {
    /// Each component changes in one way only: its agent and its Deployment must not contradict each other.
    const fn of(index: usize) -> Self {
        if index.is_multiple_of(2) {
            Self::Agent
        } else {
            Self::Deployment
        }
    }
}

/// Components that change while nobody serves.
const RESTARTED: usize = 1;
const FAILED_OVER: usize = 3;

/// What is true of a component, and since when no status has said so.
#[derive(Clone, Copy, Debug)]
struct Fact {
    is_healthy: bool,
    unseen: Option<(Instant, Cause)>,
}

/// What is true, and what was seen.
struct Truth {
    facts: Vec<Fact>,
    by_name: HashMap<String, usize>,
    /// Set when every status is expected to be right.
    is_strict: bool,
    lags: Vec<(Duration, Cause)>,
    statuses: usize,
    wrong: Vec<String>,
    /// What the latest status says of each component.
    latest: Vec<Option<bool>>,
}

type Shared = Arc<Mutex<Truth>>;

fn lock(truth: &Shared) -> MutexGuard<'_, Truth> {
    truth.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Truth {
    fn of(components: &[Component]) -> Self {
        Self {
            facts: vec![
                Fact {
                    is_healthy: true,
                    unseen: None,
                };
                components.len()
            ],
            by_name: components
                .iter()
                .map(|component| (component.deployment.clone(), component.index))
                .collect(),
            is_strict: false,
            lags: Vec::new(),
            statuses: 0,
            wrong: Vec::new(),
            latest: vec![None; components.len()],
        }
    }

    fn see(&mut self, seen: &Seen) {
        self.statuses += 1;
        for (name, health) in seen.components() {
            let Some(&index) = self.by_name.get(name) else {
                continue;
            };
            let says = match health {
                "Healthy" => Some(true),
                "Unhealthy" => Some(false),
                _ => None,
            };
            self.latest[index] = says;
            let fact = &mut self.facts[index];
            let is_right = says == Some(fact.is_healthy);
            match (is_right, fact.unseen) {
                (true, Some((changed, cause))) => {
                    fact.unseen = None;
                    self.lags.push((seen.at - changed, cause));
                }
                (false, Some(_)) if says.is_some() => {}
                (true, None) => {}
                (false, _) if self.is_strict => {
                    let expected = fact.is_healthy;
                    let (scope, why) = (&seen.name, seen.why(name));
                    self.wrong.push(format!(
                        "{scope}: {name} is {health} ({why}), healthy: {expected}"
                    ));
                }
                (false, _) => {}
            }
        }
    }

    fn unseen(&self) -> usize {
        self.facts.iter().filter(|fact| fact.unseen.is_some()).count()
    }

    fn is_right(&self, index: usize) -> bool {
        self.latest[index] == Some(self.facts[index].is_healthy)
    }

    fn all_right(&self) -> bool {
        (0..self.facts.len()).all(|index| self.is_right(index))
    }
}

/// Everything that runs.
struct Fleet {
    place: Arc<Place>,
    components: Arc<Vec<Component>>,
    agents: Agents,
    truth: Shared,
}

impl Fleet {
    /// Makes a component well, or not well any more; what `writing` holds afterwards is on its way.
    fn change(&self, index: usize, writing: &mut JoinSet<Result<()>>) {
        let cause = Cause::of(index);
        let is_healthy = {
            let mut truth = lock(&self.truth);
            let fact = &mut truth.facts[index];
            fact.is_healthy = !fact.is_healthy;
            fact.unseen = Some((Instant::now(), cause));
            fact.is_healthy
        };
        match cause {
            Cause::Agent => self.agents.set(index, is_healthy),
            Cause::Deployment => {
                let (place, components) = (Arc::clone(&self.place), Arc::clone(&self.components));
                writing.spawn(async move {
                    let component = &components[index];
                    place
                        .set_deployment(&component.namespace, &component.deployment, is_healthy)
                        .await
                });
            }
        }
    }

    async fn until_all_right(&self, what: &str) -> Result<Duration> {
        let truth = &self.truth;
        let waited = until(what, || lock(truth).all_right()).await;
        waited.with_context(|| {
            let truth = lock(truth);
            let missing = (0..truth.facts.len()).filter(|&index| !truth.is_right(index));
            let shown: Vec<_> = missing
                .clone()
                .take(5)
                .map(|index| (index, truth.latest[index]))
                .collect();
            format!(
                "{} components are not as they should be: {shown:?}",
                missing.count()
            )
        })
    }
}

/// Runs the measurement.
pub(crate) async fn controller(args: ControllerArgs) -> Result<()> {
    let shape = Shape {
        scopes: args.scopes,
        per_scope: args.per_scope.into(),
        namespaces: 20,
    };
    let begun = Instant::now();
    let place = Arc::new(Place::start(None).await?);
    let components = Arc::new(place.populate(shape).await?);
    say(&format!(
        "{} scopes, {} components, as many pods and agents, made in {:.0} s",
        shape.scopes,
        shape.components(),
        begun.elapsed().as_secs_f64()
    ));
    let truth: Shared = Arc::new(Mutex::new(Truth::of(&components)));
    let told = Arc::clone(&truth);
    let _watcher = Watcher::start(&place.client, GROUP, move |seen| lock(&told).see(&seen));

    let addresses = [free_address()?, free_address()?];
    let mut aggregator = place.aggregator("aggregator-0", addresses[0])?;
    let fleet = Fleet {
        agents: Agents::start(&components, &addresses),
        place,
        components,
        truth,
    };
    let everybody = fleet.components.len();
    let connecting = until("all agents", || fleet.agents.connected() == everybody).await?;
    let log = || std::fs::read_to_string(fleet.place.log("aggregator-0")).unwrap_or_default();
    fleet
        .until_all_right("all scopes to be healthy")
        .await
        .with_context(|| log().lines().rev().take(20).collect::<Vec<_>>().join("\n"))?;
    say(&format!(
        "all agents were in session after {:.1} s, CPU of the start {:.1} s",
        connecting.as_secs_f64(),
        aggregator.cpu()?.as_secs_f64()
    ));
    if args.pause > 0 {
        say(&format!("the aggregator is process {}", aggregator.id()));
        time::sleep(Duration::from_secs(args.pause)).await;
    }
    lock(&fleet.truth).is_strict = true;

    steady(&fleet, shape, &args, &mut aggregator).await?;
    let aggregator = restart(&fleet, aggregator, addresses[0]).await?;
    failover(&fleet, aggregator, addresses[1]).await
}

/// Changes at a steady pace: lag, CPU time and memory.
async fn steady(fleet: &Fleet, shape: Shape, args: &ControllerArgs, aggregator: &mut Process) -> Result<()> {
    let (bare, bare_writing) = bare_writes(fleet, shape).await?;
    let rate = args.rate.unwrap_or(shape.components() / 100).max(1);
    let changes = rate * usize::try_from(args.seconds)?;
    let refused_before = fleet.place.refused().await?;
    let (statuses_before, cpu_before, begun) =
        (lock(&fleet.truth).statuses, aggregator.cpu()?, Instant::now());
    let mut writing = JoinSet::new();
    let mut pace = time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    let mut skipped = 0;
    for change in 0..changes {
        pace.tick().await;
        let index = change * STRIDE % fleet.components.len();
        // Changed already and not seen yet: a second change would hide how late the first is.
        if lock(&fleet.truth).facts[index].unseen.is_some() {
            skipped += 1;
            continue;
        }
        fleet.change(index, &mut writing);
        while let Some(written) = writing.try_join_next() {
            written??;
        }
    }
    let (cpu, took) = (aggregator.cpu()?.saturating_sub(cpu_before), begun.elapsed());
    let memory = aggregator.memory()?;
    let statuses = lock(&fleet.truth).statuses - statuses_before;
    bare_writing.abort();
    while let Some(written) = writing.join_next().await {
        written??;
    }
    until("the last changes", || lock(&fleet.truth).unseen() == 0).await?;
    aggregator.check()?;
    let refused = fleet.place.refused().await? - refused_before;

    let lags = std::mem::take(&mut lock(&fleet.truth).lags);
    say(&format!(
        "{changes} changes in {:.0} s ({skipped} skipped, since their components' former changes were not seen yet)",
        took.as_secs_f64()
    ));
    let mut table = Table::new(["change → status seen", "count", "p50", "p90", "p99", "max"]);
    let mut bare = std::mem::take(&mut *bare.lock().unwrap_or_else(PoisonError::into_inner));
    let of = |cause| -> Vec<Duration> {
        let lags = lags.iter().filter(|&&(_, of)| of == cause);
        lags.map(|&(lag, _)| lag).collect()
    };
    let mut all: Vec<Duration> = lags.iter().map(|&(lag, _)| lag).collect();
    let (mut by_agents, mut by_deployments) = (of(Cause::Agent), of(Cause::Deployment));
    for (what, lags) in [
        ("outcomes in agents", &mut by_agents),
        ("Deployments", &mut by_deployments),
        ("all", &mut all),
        ("beside them: bare writes", &mut bare),
    ] {
        lags.sort_unstable();
        let [p50, p90, p99, max] =
            [0.5, 0.9, 0.99, 1.0].map(|share| milliseconds(quantile(lags, share).unwrap_or_default()));
        table.row([what.to_owned(), lags.len().to_string(), p50, p90, p99, max]);
    }
    table.print();
    say(&format!(
        "aggregator: {:.2} core, {:.0} MiB resident ({:.0} MiB its own); {statuses} statuses seen; {refused} requests \
         refused for being too many",
        cpu.as_secs_f64() / took.as_secs_f64(),
        mebibytes(memory.resident),
        mebibytes(memory.own),
    ));
    wrong(fleet, "under change");
    Ok(())
}

/// Statuses written by a plain client while the changes go on, and how long until they are seen.
async fn bare_writes(
    fleet: &Fleet,
    shape: Shape,
) -> Result<(Arc<Mutex<Vec<Duration>>>, tokio::task::JoinHandle<()>)> {
    let namespace = shape.namespace(0);
    let path = scopes_path(BARE_GROUP, &namespace);
    let status_of = format!("{}/{}", scopes_path(GROUP, &namespace), Shape::scope(0));
    let request = http::Request::get(status_of).body(Vec::new())?;
    let written: Value = fleet.place.client.request(request).await?;
    let object = json!({
        "apiVersion": format!("{BARE_GROUP}/v1beta1"), "kind": "HealthScope",
        "metadata": {"name": "bare"}, "spec": {},
    });
    let mut object = fleet.place.post(&path, &object).await?;
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (place, told) = (Arc::clone(&fleet.place), Arc::clone(&times));
    let writing = tokio::spawn(async move {
        let (seen, mut statuses) = mpsc::unbounded_channel();
        let _watcher = Watcher::start(&place.client, BARE_GROUP, move |status| drop(seen.send(status)));
        let mut pace = time::interval(Duration::from_secs(1) / u32::try_from(BARE_RATE).unwrap_or(1));
        object["status"] = written["status"].clone();
        for turn in 0.. {
            pace.tick().await;
            object["status"]["rootCause"] = json!(format!("turn {turn}"));
            let begun = Instant::now();
            let Ok(newer) = place.put(&format!("{path}/bare/status"), &object).await else {
                break;
            };
            object = newer;
            while let Some(seen) = statuses.recv().await {
                if seen.status["rootCause"] == object["status"]["rootCause"] {
                    told.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(seen.at - begun);
                    break;
                }
            }
        }
    });
    Ok((times, writing))
}

/// A restart as Kubernetes does it; one component changes while there is no aggregator.
async fn restart(fleet: &Fleet, aggregator: Process, address: SocketAddr) -> Result<Process> {
    fleet.until_all_right("all scopes before the restart").await?;
    tokio::task::spawn_blocking(move || aggregator.terminate(Duration::from_secs(10))).await??;
    // What it wrote at its end is seen by then.
    time::sleep(Duration::from_secs(1)).await;
    wrong(fleet, "while the aggregator ended");
    let mut writing = JoinSet::new();
    fleet.change(RESTARTED, &mut writing);
    while let Some(written) = writing.join_next().await {
        written??;
    }
    let begun = Instant::now();
    let aggregator = fleet.place.aggregator("aggregator-0", address)?;
    until("the changed scope after the restart", || {
        lock(&fleet.truth).is_right(RESTARTED)
    })
    .await?;
    let correct = begun.elapsed();
    let everybody = fleet.components.len();
    until("all agents after the restart", || {
        fleet.agents.connected() == everybody
    })
    .await?;
    let connected = begun.elapsed();
    say(&format!(
        "restart: the scope that changed meanwhile is correct after {:.2} s, all agents are back after {:.2} s, CPU {:.2} s",
        correct.as_secs_f64(),
        connected.as_secs_f64(),
        aggregator.cpu()?.as_secs_f64()
    ));
    settle(fleet, "after the restart").await?;
    Ok(aggregator)
}

/// The serving replica is killed; one component changes a moment later.
async fn failover(fleet: &Fleet, aggregator: Process, address: SocketAddr) -> Result<()> {
    let mut standby = fleet.place.aggregator("aggregator-1", address)?;
    // Until it follows everything and has told agents where to go.
    time::sleep(Duration::from_secs(10)).await;
    standby.check()?;
    let memory = standby.memory()?;
    let begun = Instant::now();
    // Ends with SIGKILL.
    drop(aggregator);
    let mut writing = JoinSet::new();
    fleet.change(FAILED_OVER, &mut writing);
    while let Some(written) = writing.join_next().await {
        written??;
    }
    until("the changed scope after the failover", || {
        lock(&fleet.truth).is_right(FAILED_OVER)
    })
    .await?;
    let correct = begun.elapsed();
    let everybody = fleet.components.len();
    until("all agents after the failover", || {
        fleet.agents.connected() == everybody
    })
    .await?;
    say(&format!(
        "failover after a kill: the scope that changed is correct after {:.2} s, all agents are in session after {:.2} s; \
         standing by took {:.0} MiB",
        correct.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        mebibytes(memory.resident)
    ));
    settle(fleet, "after the failover").await
}

/// Waits until what is held back for a while is out; says what was wrong.
async fn settle(fleet: &Fleet, what: &str) -> Result<()> {
    time::sleep(Duration::from_secs(40)).await;
    fleet.until_all_right(what).await?;
    wrong(fleet, what);
    Ok(())
}

fn wrong(fleet: &Fleet, when: &str) {
    let wrong = std::mem::take(&mut lock(&fleet.truth).wrong);
    say(&format!("wrong statuses {when}: {}", wrong.len()));
    let mut shown = BTreeMap::<&str, usize>::new();
    for text in &wrong {
        *shown.entry(text).or_default() += 1;
    }
    for (text, count) in shown.iter().take(5) {
        say(&format!("  {count} × {text}"));
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
