//! Stories over time, and what holds for any story.

use {
    super::{
        Breaker, Canary, Cause, Decision, Harm, Level, Observed, OwnerNow, OwnerRef, Record, Reduction, Trip,
        owners,
    },
    crate::{event::Now, inject::Stance},
    jiff::{SignedDuration, Timestamp},
    proptest::prelude::*,
    serde_json::json,
    std::time::{Duration, Instant},
};

const IMAGE: &str = "agent:1";

/// A cluster over time.
struct World {
    breaker: Breaker,
    observed: Observed,
    begun: Instant,
    seconds: u64,
    /// The uids of canaries that were to be deleted.
    remade: Vec<String>,
    told: Vec<String>,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "a test starts its own clock somewhere")]
    fn new() -> Self {
        Self {
            breaker: Breaker::default(),
            observed: Observed {
                home: "healthscope-system".to_owned(),
                image: IMAGE.to_owned(),
                canary: Some(canary("c1", true)),
                ..Observed::default()
            },
            begun: Instant::now(),
            seconds: 0,
            remade: Vec::new(),
            told: Vec::new(),
        }
    }

    fn look(&mut self) -> Decision {
        let now = Now {
            instant: self.begun + Duration::from_secs(self.seconds),
            wall: at(self.seconds),
        };
        let decision = self.breaker.look(&self.observed, now);
        self.remade.extend(decision.remake.clone());
        for told in &decision.told {
            let word = if told.is_resumed { "closed" } else { "opened" };
            self.told
                .push(format!("{} {word} {}", self.seconds, place(&told.trip)));
        }
        decision
    }

    /// Lets time pass, with a look each second.
    fn pass(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.look();
            self.seconds += 1;
        }
        self.look();
        self
    }

    fn harm(&mut self, namespace: &str, owner: &str, cause: Cause) -> &mut Self {
        self.observed
            .harms
            .push(harm(namespace, owner, cause, self.seconds));
        self.observed.owners.insert(
            (namespace.to_owned(), deployment(owner)),
            OwnerNow {
                template: Some("t1".to_owned()),
                ..OwnerNow::default()
            },
        );
        self
    }

    fn canary(&mut self, uid: &str, is_well: bool) -> &mut Self {
        self.observed.canary = Some(canary(uid, is_well));
        self
    }

    fn template(&mut self, namespace: &str, owner: &str, template: &str) -> &mut Self {
        let key = (namespace.to_owned(), deployment(owner));
        self.observed.owners.entry(key).or_default().template = Some(template.to_owned());
        self
    }

    fn retry(&mut self, namespace: &str, value: &str) -> &mut Self {
        self.observed
            .retries
            .insert(namespace.to_owned(), value.to_owned());
        self
    }

    #[track_caller]
    fn open(&self, expected: &[&str]) {
        let found: Vec<String> = self.breaker.record().trips.iter().map(place).collect();
        assert_eq!(found, expected, "after {} s", self.seconds);
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap()
}

fn deployment(name: &str) -> OwnerRef {
    OwnerRef {
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
    }
}

fn canary(uid: &str, is_well: bool) -> Canary {
    Canary {
        uid: uid.to_owned(),
        is_well,
        suffers: (!is_well).then(|| "ErrImagePull".to_owned()),
    }
}

fn harm(namespace: &str, owner: &str, cause: Cause, made: u64) -> Harm {
    Harm {
        namespace: namespace.to_owned(),
        owner: deployment(owner),
        cause,
        name: format!("{owner}-{made}"),
        uid: format!("{namespace}-{owner}-{made}"),
        made: at(made),
        message: format!("{} of {owner}", cause.as_str()),
    }
}

fn place(trip: &Trip) -> String {
    let mut place = trip.namespace.clone().unwrap_or_else(|| "all".to_owned());
    if let Some(owner) = &trip.owner {
        place = format!("{place}/{}", owner.name);
    }
    let less = match trip.reduction {
        Reduction::Off => "",
        Reduction::WithoutCommands => " without commands",
    };
    format!("{place} {}{less}", trip.cause.as_str())
}

#[test]
fn what_suffers_for_five_seconds_opens_its_owner_and_nothing_wider() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(4).open(&[]);
    world.pass(1).open(&["shop/web ImagePull"]);
    world.pass(3_600).open(&["shop/web ImagePull"]);
    assert_eq!(world.told, ["5 opened shop/web ImagePull"]);
}

#[test]
fn what_stumbles_once_opens_nothing() {
    let mut world = World::new();
    for _ in 0..10 {
        world.harm("shop", "web", Cause::ImagePull).pass(4).open(&[]);
        world.observed.harms.clear();
        world.pass(1).open(&[]);
    }
}

#[test]
fn a_missing_carrier_leaves_the_agent() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::CarrierMissing).pass(5);
    world.open(&["shop/web CarrierMissing without commands"]);
    // Worse comes on top of it and takes its place.
    world.harm("shop", "web", Cause::AgentNotStarting).pass(6);
    world.open(&["shop/web AgentNotStarting"]);
}

#[test]
fn two_owners_spare_a_namespace_and_two_namespaces_the_cluster() {
    let mut world = World::new();
    world
        .harm("shop", "web", Cause::ImagePull)
        .harm("shop", "db", Cause::ImagePull)
        .pass(5);
    world.open(&["shop ImagePull"]);
    world.harm("bank", "api", Cause::ImagePull).pass(6);
    world.open(&["all ImagePull"]);
    assert_eq!(
        world.breaker.record().trips[0].baseline.namespaces,
        ["bank", "shop"]
    );
}

#[test]
fn three_owners_of_one_namespace_spare_the_cluster_only_with_the_canary() {
    let three = |world: &mut World| {
        for owner in ["a", "b", "c"] {
            world.harm("shop", owner, Cause::ImagePull);
        }
        world.pass(5);
    };
    let mut world = World::new();
    three(&mut world);
    world.open(&["shop ImagePull"]);
    let mut world = World::new();
    world.canary("c1", false);
    three(&mut world);
    world.open(&["all ImagePull"]);
}

#[test]
fn what_a_namespace_refuses_never_spares_another() {
    let mut world = World::new();
    for namespace in ["a", "b", "c"] {
        world
            .harm(namespace, "web", Cause::FailedCreate)
            .harm(namespace, "db", Cause::FailedCreate);
    }
    world.pass(5);
    world.open(&["a FailedCreate", "b FailedCreate", "c FailedCreate"]);
}

#[test]
fn troubles_that_are_far_apart_are_not_one() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(6);
    world.observed.harms.clear();
    world.pass(700).harm("shop", "db", Cause::ImagePull).pass(6);
    world.open(&["shop/db ImagePull", "shop/web ImagePull"]);
}

#[test]
fn a_canary_that_suffered_and_is_well_again_closes_all_levels() {
    let mut world = World::new();
    world.canary("c1", false);
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world.open(&["shop/web ImagePull"]);
    // At once another is made, and it fails too.
    assert_eq!(world.remade, ["c1"]);
    world.canary("c2", false).pass(100);
    assert!(world.remade.len() >= 2, "{:?}", world.remade);
    world.canary("c3", true).pass(9).open(&["shop/web ImagePull"]);
    world.pass(1).open(&[]);
    // What suffered before is known, and opens nothing.
    world.pass(7_200).open(&[]);
    // What is made later is news.
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world.open(&["shop/web ImagePull"]);
}

#[test]
fn the_canary_of_the_time_of_the_trip_proves_nothing() {
    let mut world = World::new();
    world.canary("c1", false);
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world.canary("c1", true).pass(600).open(&["shop/web ImagePull"]);
    // One that is well for less than ten seconds neither.
    for _ in 0..20 {
        world.canary("c2", true).pass(9);
        world.canary("c2", false).pass(1);
    }
    world.open(&["shop/web ImagePull"]);
    // Nor the absence of everything.
    world.observed.canary = None;
    world.observed.harms.clear();
    world.pass(86_400).open(&["shop/web ImagePull"]);
}

#[test]
fn canaries_are_made_with_growing_pauses() {
    let mut world = World::new();
    world.canary("c0", false);
    world.harm("shop", "web", Cause::ImagePull);
    let mut times = Vec::new();
    for _ in 0..3_000 {
        if world.look().remake.is_some() {
            times.push(world.seconds);
            let uid = format!("c{}", times.len());
            world.canary(&uid, false);
        }
        world.seconds += 1;
    }
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600, 600]);
}

#[test]
fn a_canary_under_way_is_left_alone() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    assert_eq!(world.remade, ["c1"]);
    let mut starting = canary("c2", false);
    starting.suffers = None;
    world.observed.canary = Some(starting);
    world.pass(59);
    assert_eq!(world.remade, ["c1"]);
    world.pass(2);
    assert_eq!(world.remade, ["c1", "c2"]);
}

#[test]
fn a_trouble_that_the_canary_does_not_have_is_local() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world.canary("c2", true).pass(3_600);
    world.open(&["shop/web ImagePull"]);
    assert!(world.breaker.record().trips[0].baseline.is_local);
    assert_eq!(world.remade, ["c1"], "more canaries would prove no more");
    world.template("shop", "web", "t2").pass(1).open(&[]);
    assert_eq!(
        world.told.last().unwrap(),
        "3605 closed shop/web ImagePull",
        "{:?}",
        world.told
    );
}

#[test]
fn the_template_counts_only_where_the_canary_does_not() {
    let mut world = World::new();
    world.canary("c1", false);
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world
        .template("shop", "web", "t2")
        .pass(60)
        .open(&["shop/web ImagePull"]);
    let mut world = World::new();
    world.harm("shop", "web", Cause::FailedCreate).pass(5);
    world.template("shop", "web", "t2").pass(1).open(&[]);
}

#[test]
fn the_annotation_closes_what_is_in_its_namespace() {
    let mut world = World::new();
    world.retry("shop", "1").retry("bank", "1");
    for cause in [Cause::FailedCreate, Cause::CarrierMissing] {
        world.harm("shop", "web", cause).pass(6);
    }
    world.harm("bank", "api", Cause::FailedCreate).pass(6);
    world.open(&["bank/api FailedCreate", "shop/web FailedCreate"]);
    world
        .pass(60)
        .open(&["bank/api FailedCreate", "shop/web FailedCreate"]);
    world.retry("shop", "2").pass(1);
    world.open(&["bank/api FailedCreate"]);
    // Its removal asks for nothing.
    world.observed.retries.clear();
    world.pass(60).open(&["bank/api FailedCreate"]);
}

#[test]
fn the_clusters_annotation_is_that_of_the_installation() {
    let mut world = World::new();
    world
        .harm("shop", "web", Cause::CarrierMissing)
        .harm("bank", "api", Cause::CarrierMissing)
        .pass(5);
    world.open(&["all CarrierMissing without commands"]);
    world
        .retry("shop", "1")
        .pass(5)
        .open(&["all CarrierMissing without commands"]);
    world.retry("healthscope-system", "1").pass(1).open(&[]);
}

#[test]
fn another_image_that_the_canary_runs_with_closes_what_the_former_did() {
    for (cause, expected) in [
        (Cause::ImagePull, true),
        (Cause::AgentNotStarting, true),
        (Cause::CarrierMissing, true),
        (Cause::FailedCreate, false),
    ] {
        let mut world = World::new();
        world.harm("shop", "web", cause).pass(5);
        world.canary("c2", true).pass(60);
        assert_eq!(world.breaker.record().trips.len(), 1, "{cause:?}");
        world.observed.image = "agent:2".to_owned();
        // It runs with the former image until it is made anew.
        world.canary("c3", false).pass(5).canary("c3", true).pass(10);
        assert_eq!(world.breaker.record().trips.is_empty(), expected, "{cause:?}");
    }
}

#[test]
fn an_owner_that_is_gone_needs_no_trip() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    world.observed.harms.clear();
    world.observed.gone.insert(("shop".to_owned(), deployment("web")));
    world.pass(600).open(&["shop/web ImagePull"]);
    world.pass(1).open(&[]);
    assert_eq!(world.told.len(), 1, "nobody is left to be told: {:?}", world.told);
}

#[test]
fn what_is_on_record_survives_a_restart() {
    let mut world = World::new();
    world.canary("c1", false);
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    let text = world.breaker.record().write();
    let record = Record::read(Some(&text)).unwrap();
    assert_eq!(record, *world.breaker.record());
    world.breaker = Breaker::new(record);
    world.observed.harms.clear();
    world.pass(600).open(&["shop/web ImagePull"]);
    world.canary("c2", true).pass(10).open(&[]);
}

#[test]
fn a_clock_that_jumps_closes_nothing() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(5);
    let wall = at(0).checked_sub(SignedDuration::from_hours(48)).unwrap();
    let now = Now {
        instant: world.begun + Duration::from_secs(6),
        wall,
    };
    world.breaker.look(&world.observed, now);
    world.open(&["shop/web ImagePull"]);
}

#[test]
fn many_owners_become_their_namespaces() {
    let mut world = World::new();
    for number in 0..250 {
        world.harm(&format!("n{number}"), "web", Cause::FailedCreate);
    }
    world.pass(6);
    assert!(world.breaker.record().trips.len() <= 250);
    let text = world.breaker.record().write();
    assert!(text.len() < 500_000, "{}", text.len());
}

#[test]
fn damaged_records_are_told_from_empty_ones() {
    #[track_caller]
    fn check(text: Option<&str>, expected: Option<usize>) {
        let read = Record::read(text);
        assert_eq!(
            read.as_ref().ok().map(|record| record.trips.len()),
            expected,
            "{read:?}"
        );
    }
    check(None, Some(0));
    check(Some(""), Some(0));
    check(Some(" \n"), Some(0));
    check(Some("{}"), Some(0));
    check(Some(r#"{"trips": [], "later": 1}"#), Some(0));
    check(Some("{"), None);
    check(Some("[]"), None);
    check(Some(r#"{"trips": [{"level": "Owner"}]}"#), None);
    // It would reach further than it says.
    check(
        Some(
            r#"{"trips": [{"level": "Owner", "namespace": "shop", "reduction": "Off", "cause": "ImagePull",
                "message": "", "image": "", "since": "2026-01-01T00:00:00Z"}]}"#,
        ),
        None,
    );
    check(Some(&" ".repeat(600_000)), Some(0));
    check(Some(&format!("{{{}}}", " ".repeat(600_000))), None);
}

#[test]
fn the_strictest_trip_that_reaches_a_pod_counts() {
    let mut world = World::new();
    world.harm("shop", "web", Cause::ImagePull).pass(6);
    world
        .harm("shop", "db", Cause::CarrierMissing)
        .harm("shop", "api", Cause::CarrierMissing)
        .pass(6);
    world.open(&["shop CarrierMissing without commands", "shop/web ImagePull"]);
    let record = world.breaker.record();
    let word = |namespace: &str, owner: &str| match record.stance(namespace, &[deployment(owner)]) {
        Stance::Full => "all",
        Stance::WithoutCommands { .. } => "without",
        Stance::Off { .. } => "off",
    };
    assert_eq!(word("shop", "web"), "off");
    assert_eq!(word("shop", "db"), "without");
    assert_eq!(word("shop", "other"), "without");
    assert_eq!(word("bank", "web"), "all");
}

#[test]
fn a_new_pod_says_whose_it_is() {
    #[track_caller]
    fn check(kind: &str, name: &str, label: (&str, &str), expected: &[(&str, &str)]) {
        let mut metadata = json!({"labels": {}});
        metadata["labels"][label.0] = label.1.into();
        if kind == "Pod" {
            metadata["name"] = name.into();
        } else {
            metadata["ownerReferences"] = json!([{
                "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true,
            }]);
        }
        let found = owners(&json!({"metadata": metadata}));
        let found: Vec<(&str, &str)> = found.iter().map(|owner| (&*owner.kind, &*owner.name)).collect();
        assert_eq!(found, expected);
    }
    let hash = ("pod-template-hash", "5d9f");
    check(
        "ReplicaSet",
        "web-5d9f",
        hash,
        &[("ReplicaSet", "web-5d9f"), ("Deployment", "web")],
    );
    check(
        "ReplicaSet",
        "web-front-5d9f",
        hash,
        &[("ReplicaSet", "web-front-5d9f"), ("Deployment", "web-front")],
    );
    check("ReplicaSet", "web", hash, &[("ReplicaSet", "web")]);
    check("ReplicaSet", "web5d9f", hash, &[("ReplicaSet", "web5d9f")]);
    check(
        "ReplicaSet",
        "web-5d9f",
        ("rollouts-pod-template-hash", "5d9f"),
        &[("ReplicaSet", "web-5d9f"), ("Rollout", "web")],
    );
    check(
        "Job",
        "nightly-29041",
        ("a", "b"),
        &[("Job", "nightly-29041"), ("CronJob", "nightly")],
    );
    check("Job", "import", ("a", "b"), &[("Job", "import")]);
    check("Job", "import-x", ("a", "b"), &[("Job", "import-x")]);
    check("StatefulSet", "db", ("a", "b"), &[("StatefulSet", "db")]);
    check("Pod", "alone", ("a", "b"), &[("Pod", "alone")]);
    assert_eq!(owners(&json!({"metadata": {"generateName": "x-"}})), []);
    assert_eq!(owners(&json!(null)), []);
}

/// One second of a story.
#[derive(Clone, Debug)]
enum Step {
    Nothing,
    Harm(usize, usize, usize),
    Relief(usize),
    Canary(usize, bool),
    NoCanary,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Nothing),
        3 => (0..3_usize, 0..3_usize, 0..4_usize).prop_map(|(n, o, c)| Step::Harm(n, o, c)),
        2 => (0..8_usize).prop_map(Step::Relief),
        2 => (0..4_usize, any::<bool>()).prop_map(|(uid, well)| Step::Canary(uid, well)),
        1 => Just(Step::NoCanary),
    ]
}

const SPACES: [&str; 3] = ["a", "b", "c"];

fn take(world: &mut World, step: &Step) {
    match step {
        Step::Nothing => {}
        Step::Harm(namespace, owner, cause) => {
            world.harm(SPACES[*namespace], SPACES[*owner], Cause::ALL[*cause]);
        }
        Step::Relief(which) => {
            if *which < world.observed.harms.len() {
                world.observed.harms.remove(*which);
            }
        }
        Step::Canary(uid, well) => {
            world.canary(&format!("c{uid}"), *well);
        }
        Step::NoCanary => world.observed.canary = None,
    }
}

proptest! {
    #[test]
    fn a_fleet_that_suffers_nothing_trips_nothing(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            if !matches!(step, Step::Harm(..)) {
                take(&mut world, &step);
            }
            world.pass(3);
            prop_assert_eq!(world.breaker.record(), &Record::default());
        }
        prop_assert!(world.remade.is_empty());
    }

    #[test]
    fn nothing_opens_wider_than_what_was_seen(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        let mut suffered = std::collections::BTreeSet::new();
        for step in steps {
            take(&mut world, &step);
            for harm in &world.observed.harms {
                suffered.insert((harm.namespace.clone(), harm.owner.clone(), harm.cause.reduction()));
            }
            world.pass(3);
            for trip in &world.breaker.record().trips {
                let within = suffered.iter().filter(|(namespace, owner, reduction)| {
                    *reduction == trip.reduction
                        && trip.namespace.as_ref().is_none_or(|own| own == namespace)
                        && trip.owner.as_ref().is_none_or(|own| own == owner)
                });
                let least = match trip.level {
                    Level::Owner => 1,
                    Level::Namespace | Level::Cluster => 2,
                };
                prop_assert!(within.count() >= least, "{trip:?}");
                prop_assert!(trip.level != Level::Cluster || trip.cause != Cause::FailedCreate);
            }
        }
    }

    #[test]
    fn without_a_canary_that_is_well_or_a_wish_nothing_closes(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        let mut spared: Vec<(String, String, Reduction)> = Vec::new();
        for step in steps {
            if !matches!(step, Step::Canary(_, true)) {
                take(&mut world, &step);
            }
            world.pass(3);
            let record = world.breaker.record().clone();
            let stance = |namespace: &str, owner: &str| match record.stance(namespace, &[deployment(owner)]) {
                Stance::Full => None,
                Stance::WithoutCommands { .. } => Some(Reduction::WithoutCommands),
                Stance::Off { .. } => Some(Reduction::Off),
            };
            for (namespace, owner, reduction) in &spared {
                prop_assert!(stance(namespace, owner) >= Some(*reduction), "{namespace}/{owner}");
            }
            spared = SPACES
                .iter()
                .flat_map(|namespace| SPACES.iter().map(move |owner| (*namespace, *owner)))
                .filter_map(|(namespace, owner)| {
                    Some((namespace.to_owned(), owner.to_owned(), stance(namespace, owner)?))
                })
                .collect();
        }
    }

    #[test]
    fn the_order_of_what_was_seen_says_nothing(
        harms in prop::collection::vec((0..3_usize, 0..3_usize, 0..4_usize, 0..3_u64), 0..12),
        seed in any::<u64>(),
        well in any::<bool>(),
    ) {
        let run = |shuffled: bool| {
            let mut world = World::new();
            world.canary("c1", well);
            for (namespace, owner, cause, made) in &harms {
                world.harm(SPACES[*namespace], SPACES[*owner], Cause::ALL[*cause]);
                let last = world.observed.harms.last_mut().unwrap();
                *last = harm(SPACES[*namespace], SPACES[*owner], Cause::ALL[*cause], *made);
            }
            if shuffled {
                let mut key = seed;
                world.observed.harms.sort_by_cached_key(|_| {
                    key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    key >> 33
                });
            }
            world.pass(8);
            world.breaker.record().clone()
        };
        prop_assert_eq!(run(false), run(true));
    }
}
