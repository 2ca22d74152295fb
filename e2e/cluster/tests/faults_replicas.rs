//! Aggregators that are killed, that are two by mistake, that are replaced one after the other with clocks that disagree:
//! one writer at a time, the right status in the end, each Event once.
//!
//! The aggregator is its own program; what it wrote comes from the API server's audit log.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/faults.rs"]
mod faults;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        faults::{Asked, World, counts, deployment_ref, scopes, within},
        support::{Aggregator, Setup},
    },
    healthscope_core::owner::LEASE,
    healthscope_e2e_cluster::{Audit, Cluster, Options, tell},
    rustix::process::Signal,
    serde_json::json,
    std::{
        collections::BTreeMap,
        fs,
        hash::{BuildHasher, Hasher, RandomState},
        path::PathBuf,
        process::Command,
        sync::{
            LazyLock,
            atomic::{AtomicBool, Ordering},
        },
        thread,
        time::{Duration, Instant},
    },
    tokio_tungstenite::tungstenite::http::Method,
};

/// How often an aggregator is killed.
const KILLS: u32 = 100;
/// Longest life of one that is killed: on an idle machine its first status is written after a quarter of it.
const LONGEST_LIFE: Duration = Duration::from_millis(1_200);
/// Longest wait for a status to be right again, on a machine with other work: a new owner may have to wait for the old
/// one's Lease (nine seconds).
const RECOVERY: Duration = Duration::from_secs(25);

fn start() -> World {
    let options = Options {
        audit: Some(Audit::Request),
        ..Options::control_plane()
    };
    World::new(Cluster::start(&options).unwrap())
}

static CRASHES: LazyLock<World> = LazyLock::new(start);
static REPLICAS: LazyLock<World> = LazyLock::new(start);

/// Numbers that follow from the first.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        tell(&format!("seed {seed}"));
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        let micros = u64::try_from(limit.as_micros()).unwrap();
        Duration::from_micros(self.next() % micros.max(1))
    }
}

/// Checks the Events against the statuses that were written: each tells of one transition, after it, and none is told of
/// twice. How many there are.
#[track_caller]
fn events_tell_of_writes_once(world: &World, namespace: &str) -> usize {
    let mut healths: BTreeMap<String, String> = BTreeMap::new();
    let mut untold: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut events = 0;
    for asked in world.requests("aggregator-") {
        let object = &asked.0["objectRef"];
        if object["namespace"] != namespace {
            continue;
        }
        if asked.is_status_write() && asked.may_be_done() {
            let scope = object["name"].as_str().unwrap().to_owned();
            let health = asked.health();
            if healths
                .insert(scope.clone(), health.clone())
                .is_some_and(|former| former != health)
            {
                *untold.entry((scope, health.to_lowercase())).or_default() += 1;
            }
        } else if asked.resource() == "events" && asked.code() == 201 {
            events += 1;
            let event = &asked.0["requestObject"];
            let name = event["metadata"]["name"].as_str().unwrap();
            let scope = event["regarding"]["name"].as_str().unwrap().to_owned();
            let (_, word) = name.rsplit_once('-').unwrap();
            if matches!(word, "healthy" | "degraded" | "unhealthy" | "unknown") {
                let left = untold.entry((scope, word.to_owned())).or_default();
                assert!(
                    *left > 0,
                    "{name} tells of something that was told of or never written: {event}"
                );
                *left -= 1;
            }
        }
    }
    events
}

/// Lets another aggregator lead at once, as somebody does who knows that the holder is dead.
fn forget_lease(world: &World, namespace: &str) {
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}");
    // One that was killed early has made none.
    let _ = world.request(Method::DELETE, &lease, None);
}

#[test]
fn one_hundred_kills_leave_the_right_status_and_no_event_twice() {
    let world = &*CRASHES;
    world.namespace("crash");
    let names = ["a", "b", "c"];
    for name in names {
        world.deployment("crash", name, true);
        world.scope("crash", name, &json!({"workloadRefs": [deployment_ref(name)]}));
    }
    let mut truth = [true; 3];
    let mut random = Random::new();
    let begun = Instant::now();
    let aggregator = world.aggregator("crash");
    let right = |truth: &[bool; 3], aggregator: &Aggregator<'_>| {
        for (name, is_ready) in names.iter().zip(truth) {
            let health = if *is_ready { "Healthy" } else { "Unhealthy" };
            aggregator.until_health("crash", name, health);
        }
    };
    right(&truth, &aggregator);
    tell(&format!(
        "the first statuses were written after {:.1?}",
        begun.elapsed()
    ));
    let mut written_when_equal = 0;
    for round in 0..KILLS {
        let life = random.below(LONGEST_LIFE);
        let moment = random.below(life);
        thread::sleep(moment);
        let which = usize::try_from(random.next() % 3).unwrap();
        truth[which] = !truth[which];
        world.set_ready("crash", names[which], truth[which]);
        thread::sleep(life - moment);
        if round % 10 == 9 {
            right(&truth, &aggregator);
            written_when_equal += count_after_restart(world, &aggregator);
        }
        aggregator.kill();
        forget_lease(world, "crash");
        if random.next().is_multiple_of(2) {
            let which = usize::try_from(random.next() % 3).unwrap();
            truth[which] = !truth[which];
            world.set_ready("crash", names[which], truth[which]);
        }
        aggregator.start_again();
    }
    let start = Instant::now();
    right(&truth, &aggregator);
    within(RECOVERY, "right after the last of the kills", start.elapsed());
    assert_eq!(
        written_when_equal, 0,
        "a start that finds everything as it was writes nothing"
    );
    let mut writes = 0;
    for name in names {
        let healths = world.healths("crash", name);
        assert!(
            healths
                .iter()
                .all(|health| matches!(health.as_str(), "Healthy" | "Unhealthy")),
            "{name}: {healths:?}"
        );
        writes += healths.len();
    }
    let events = events_tell_of_writes_once(world, "crash");
    tell(&format!(
        "{KILLS} kills in {:.0?}: {writes} statuses, {events} Events; {:?}",
        begun.elapsed(),
        counts(&world.writes("aggregator-crash"))
    ));
}

/// Restarts an aggregator that has nothing left to do, and gives it time; how many statuses it wrote then.
fn count_after_restart(world: &World, aggregator: &Aggregator<'_>) -> usize {
    thread::sleep(Duration::from_millis(300));
    aggregator.kill();
    forget_lease(world, "crash");
    let before = world.writes("aggregator-crash").len();
    aggregator.start_again();
    aggregator.wait_ready();
    thread::sleep(Duration::from_millis(700));
    world.writes("aggregator-crash").len() - before
}

/// Two installations with a Lease each, which is what a second Helm release in another namespace makes.
#[test]
fn two_by_mistake_agree() {
    const CHANGES: usize = 11;

    let world = &*REPLICAS;
    let _turn = world.turn();
    world.shop("left");
    world.namespace("right");
    let left = world.aggregator("left");
    let right = world.aggregator("right");
    left.until_health("left", "shop", "Healthy");
    let mut is_ready = true;
    for _ in 0..CHANGES {
        is_ready = !is_ready;
        world.set_ready("left", "db", is_ready);
        thread::sleep(Duration::from_millis(1_100));
    }
    left.until_health("left", "shop", "Unhealthy");
    thread::sleep(Duration::from_secs(3));
    let healths = world.healths("left", "shop");
    assert!(healths.iter().all(|health| health != "Unknown"), "{healths:?}");
    // Whoever lags behind puts back what it still believes, once; that is why there is a Lease.
    assert!(healths.len() <= 2 * CHANGES, "{healths:?}");
    let writes = world.writes("aggregator-");
    let of_shop: Vec<Asked> = writes
        .into_iter()
        .filter(|write| write.is("left", "shop"))
        .collect();
    assert!(
        of_shop.len() <= 2 * (CHANGES + 2),
        "they quarrel: {:?}",
        counts(&of_shop)
    );
    let contested = |aggregator: &Aggregator<'_>| {
        aggregator
            .metric("healthscope_status_writes_contested_total", &[])
            .unwrap()
    };
    // One that saw a change first replaces what the other has just written; none writes back what it was.
    let contested = contested(&left) + contested(&right);
    assert!(contested <= 11.0, "{contested}");
    let events = events_tell_of_writes_once(world, "left");
    tell(&format!(
        "two by mistake: {healths:?}, {events} Events, {:?}",
        counts(&of_shop)
    ));
    world.delete(&format!("{}/shop", scopes("left")));
}

/// A library that shifts the clock of the program which loads it.
fn shifted_clock(world: &World, seconds: i32) -> PathBuf {
    const SOURCE: &str = r"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*original)(clockid_t, struct timespec *);
    if (!original) original = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, __func__);
    int result = original(clock, time);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += SHIFT;
    return result;
}
";
    let folder = world.cluster.folder();
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{seconds}.so")));
    fs::write(&source, SOURCE).unwrap();
    // What links Rust programs compiles this as well.
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", &format!("-DSHIFT=({seconds})"), "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    library
}

/// Seconds by which the clock of who holds the Lease is ahead of ours.
fn lead_of_holder(world: &World, namespace: &str) -> Option<(String, f64)> {
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}");
    let lease = world.request(Method::GET, &lease, None).ok()?;
    let holder = lease["spec"]["holderIdentity"].as_str()?.to_owned();
    let renewed: jiff::Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
    Some((
        holder,
        renewed.duration_since(jiff::Timestamp::now()).as_secs_f64(),
    ))
}

#[test]
fn a_rolling_restart_with_clocks_that_disagree_has_one_writer_at_a_time() {
    let world = &*REPLICAS;
    let _turn = world.turn();
    world.shop("roll");
    let shifts = [0, 300, -300];
    let launch = |number: usize| {
        let shift = shifts[number % shifts.len()];
        let mut setup = Setup::default();
        if shift != 0 {
            let library = shifted_clock(world, shift).to_str().unwrap().to_owned();
            setup.environment.push(("LD_PRELOAD".to_owned(), library));
        }
        let aggregator = world.launch(&format!("aggregator-roll-{number}"), "roll", setup);
        aggregator.wait_ready();
        aggregator
    };
    let mut replicas: Vec<(usize, Aggregator<'_>)> = (0..3).map(|number| (number, launch(number))).collect();
    replicas[0].1.until_health("roll", "shop", "Healthy");

    let is_over = AtomicBool::new(false);
    let mut holders = BTreeMap::new();
    thread::scope(|scope| {
        let toggling = scope.spawn(|| {
            let mut is_ready = true;
            let mut changes = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                is_ready = !is_ready;
                world.set_ready("roll", "db", is_ready);
                changes += 1;
                thread::sleep(Duration::from_millis(350));
            }
            changes
        });
        for number in 3..6 {
            replicas.push((number, launch(number)));
            holders.extend(lead_of_holder(world, "roll"));
            // The one that leads goes first: that is the order with the most hand-overs.
            let leads = |replica: &(usize, Aggregator<'_>)| {
                lead_of_holder(world, "roll")
                    .is_some_and(|(holder, _)| holder.starts_with(&format!("aggregator-roll-{}_", replica.0)))
            };
            let place = replicas.iter().position(leads).expect("somebody leads");
            let (gone, leader) = replicas.remove(place);
            let written = world.writes("aggregator-roll").len();
            let start = Instant::now();
            assert!(leader.end(Signal::TERM).success());
            faults::until("another to write", || {
                let writes = world.writes("aggregator-roll");
                writes[written..]
                    .iter()
                    .any(|write| write.is_done() && write.user() != format!("aggregator-roll-{gone}"))
            });
            within(
                RECOVERY,
                "another writes after the leader was asked to end",
                start.elapsed(),
            );
            holders.extend(lead_of_holder(world, "roll"));
        }
        is_over.store(true, Ordering::Relaxed);
        tell(&format!(
            "{} changes; leaders and how far ahead: {holders:?}",
            toggling.join().unwrap()
        ));
    });
    // Who comes next is chance; among four of six replicas, two at most have any one clock.
    let ahead = holders.values().copied().fold(f64::MIN, f64::max);
    let behind = holders.values().copied().fold(f64::MAX, f64::min);
    assert!(ahead - behind > 200.0, "{holders:?}");

    for (is_ready, health) in [(false, "Unhealthy"), (true, "Healthy")] {
        world.set_ready("roll", "db", is_ready);
        let took = world.until_health(&replicas[0].1, "roll", "shop", health);
        within(RECOVERY, "a change after all of it", took);
    }
    thread::sleep(Duration::from_secs(2));

    let healths = world.healths("roll", "shop");
    assert!(
        healths
            .iter()
            .all(|health| matches!(health.as_str(), "Healthy" | "Unhealthy")),
        "{healths:?}"
    );
    let mut writes = world.writes("aggregator-roll");
    writes.sort_by(|one, other| one.received().cmp(other.received()));
    let mut writers: Vec<&str> = writes.iter().map(Asked::user).collect();
    writers.dedup();
    let mut once = writers.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(writers.len(), once.len(), "two wrote at a time: {writers:?}");
    assert!(writers.len() >= 4, "{writers:?}");
    for (former, next) in writes.iter().zip(writes.iter().skip(1)) {
        if former.user() != next.user() {
            assert!(former.ended() <= next.received(), "{former:?} and {next:?}");
        }
    }
    let events = events_tell_of_writes_once(world, "roll");
    tell(&format!(
        "{} statuses by {writers:?}, {events} Events",
        healths.len()
    ));
    world.delete(&format!("{}/shop", scopes("roll")));
}
