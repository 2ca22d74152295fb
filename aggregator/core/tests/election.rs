//! Several replicas, one simulated Lease: requests are lost, late or answered to nobody; replicas stall, die and are
//! started again; clocks disagree and run at different rates; people touch, spoil and delete the Lease.
//!
//! At no instant do two replicas lead, and when the chaos ends one of them does.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use {
    healthscope_core::owner::{
        EXPIRY, Election, Identity, Input, Member, RENEW_DEADLINE, REQUEST_DEADLINE, Record, Request, owner,
    },
    healthscope_shared::name::Namespace,
    proptest::prelude::*,
    std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    },
};

/// Microseconds of true time.
type Time = u64;

const SECOND: Time = 1_000_000;
const REPLICAS: usize = 3;
/// No clock runs faster or slower than this many parts in a thousand: a hundred times worse than real ones.
const DRIFT: u64 = 100;
/// How long the network and people misbehave.
const CHAOS: Time = 300 * SECOND;
/// The longest that a request or an answer is under way meanwhile.
const MAX_LATENCY: Time = 30 * SECOND;
/// The longest that a replica does not get to run.
const MAX_STALL: Time = 20 * SECOND;
/// Within which somebody must lead afterwards: the last late request, the expiry by the slowest clock, and a few requests.
const PEACE: Time = MAX_LATENCY + 15 * SECOND;

/// SplitMix64: the same seed gives the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

enum Event {
    /// A replica gets its turn, unless it has slept on since.
    Wake { life: u64 },
    /// A request reaches the server.
    Arrive {
        life: u64,
        number: u64,
        request: Request,
    },
    /// An answer reaches the replica, or the replica gives up on it.
    Answer { life: u64, number: u64, input: Input },
    /// Somebody does something to the replicas or to the Lease.
    Trouble,
}

struct Replica {
    life: u64,
    election: Election,
    /// Its clock: local = base + true * rate / 1000.
    base: Instant,
    rate: u64,
    /// The request that is waited for.
    awaited: Option<u64>,
    /// It does not get to run before.
    stalled_until: Time,
    /// Whether it has ever seen a Lease.
    has_seen: bool,
}

impl Replica {
    fn now(&self, time: Time) -> Instant {
        self.base + Duration::from_micros(time * self.rate / 1_000)
    }

    /// The true time of a moment by its clock.
    fn time(&self, instant: Instant) -> Time {
        let micros = u64::try_from(instant.duration_since(self.base).as_micros()).unwrap();
        // Rounded up: a timer never fires early.
        (micros * 1_000).div_ceil(self.rate)
    }

    fn leads(&self, time: Time) -> bool {
        let now = self.now(time);
        let found = owner(&Namespace::default(), self.election.members(now));
        let is_said = found.is_some_and(|found| found.identity == self.election.me().identity);
        assert_eq!(is_said, self.election.leads(now));
        is_said
    }
}

struct World {
    random: Random,
    epoch: Instant,
    time: Time,
    events: BTreeMap<(Time, u64), Event>,
    count: u64,
    lives: u64,
    replicas: Vec<Option<Replica>>,
    lease: Option<Record>,
    version: u64,
    was_created: bool,
    deleted_at: Time,
    leaderships: u64,
}

impl World {
    fn new(seed: u64, epoch: Instant) -> Self {
        let mut world = Self {
            random: Random(seed),
            epoch,
            time: 0,
            events: BTreeMap::new(),
            count: 0,
            lives: 0,
            replicas: (0..REPLICAS).map(|_| None).collect(),
            lease: None,
            version: 0,
            was_created: false,
            deleted_at: 0,
            leaderships: 0,
        };
        for slot in 0..REPLICAS {
            world.start(slot);
        }
        world.schedule(0, Event::Trouble);
        world
    }

    fn schedule(&mut self, after: Time, event: Event) {
        self.count += 1;
        self.events.insert((self.time + after, self.count), event);
    }

    fn start(&mut self, slot: usize) {
        self.lives += 1;
        let life = self.lives;
        // Five minutes apart and more, as monotonic clocks of different machines are.
        let base = self.epoch + Duration::from_secs(self.random.below(100_000));
        let rate = 1_000 - DRIFT + self.random.below(2 * DRIFT + 1);
        let me = Member {
            identity: Identity::new("replica", life),
            address: None,
        };
        let mut replica = Replica {
            life,
            election: Election::new(me.clone(), base),
            base,
            rate,
            awaited: None,
            stalled_until: 0,
            has_seen: false,
        };
        replica.election = Election::new(me, replica.now(self.time));
        self.replicas[slot] = Some(replica);
        self.schedule(0, Event::Wake { life });
    }

    fn is_calm(&self) -> bool {
        self.time >= CHAOS
    }

    /// How long something is under way.
    fn latency(&mut self) -> Time {
        let calm = 1_000 + self.random.below(50_000);
        if self.is_calm() {
            return calm;
        }
        match self.random.below(20) {
            0 => self.random.below(MAX_LATENCY),
            1..4 => self.random.below(2 * SECOND),
            _ => calm,
        }
    }

    fn is_lost(&mut self) -> bool {
        !self.is_calm() && self.random.one_in(10)
    }

    fn run(&mut self) {
        while let Some(((time, _), event)) = self.events.pop_first() {
            if time > CHAOS + PEACE {
                return;
            }
            assert!(time >= self.time);
            self.time = time;
            let led = self.leaders().len();
            match event {
                Event::Trouble => self.trouble(),
                Event::Arrive {
                    life,
                    number,
                    request,
                } => self.arrive(life, number, &request),
                Event::Wake { life } => self.with(life, None, Event::Wake { life }),
                Event::Answer { life, number, input } => {
                    let event = Event::Answer {
                        life,
                        number,
                        input: input.clone(),
                    };
                    self.with(life, Some((number, input)), event);
                }
            }
            let leaders = self.leaders();
            assert!(leaders.len() <= 1, "{leaders:?} lead at {time}");
            self.leaderships += u64::from(leaders.len() > led);
        }
    }

    fn leaders(&self) -> Vec<&Identity> {
        let leaders = self
            .replicas
            .iter()
            .flatten()
            .filter(|replica| replica.leads(self.time));
        leaders.map(|replica| &replica.election.me().identity).collect()
    }

    /// A replica takes in an answer, asks what it has to ask, and says when it wants to be woken.
    fn with(&mut self, life: u64, answer: Option<(u64, Input)>, again: Event) {
        let random = self.random.next();
        let time = self.time;
        let Some(replica) = self
            .replicas
            .iter_mut()
            .flatten()
            .find(|replica| replica.life == life)
        else {
            return;
        };
        if time < replica.stalled_until {
            let rest = replica.stalled_until - time;
            self.schedule(rest, again);
            return;
        }
        let now = replica.now(time);
        if let Some((number, input)) = answer {
            if replica.awaited != Some(number) {
                return;
            }
            replica.awaited = None;
            replica.has_seen |= matches!(input, Input::Read(Some(_)) | Input::Written { .. });
            replica.election.handle(input, now, random);
        }
        let request = replica.election.poll(now);
        let is_over = replica.election.is_over();
        let wake = replica
            .election
            .deadline(now)
            .map(|at| replica.time(at).max(time + 1) - time);
        let patience = u64::try_from(REQUEST_DEADLINE.as_micros()).unwrap() * 1_000 / replica.rate;
        let number = self.count;
        if request.is_some() {
            replica.awaited = Some(number);
        }
        if is_over {
            self.replicas
                .iter_mut()
                .filter(|slot| slot.as_ref().is_some_and(|one| one.life == life))
                .for_each(|slot| *slot = None);
            return;
        }
        if let Some(wake) = wake {
            self.schedule(wake, Event::Wake { life });
        }
        if let Some(request) = request {
            let input = Input::Failed;
            self.schedule(patience, Event::Answer { life, number, input });
            if !self.is_lost() {
                let latency = self.latency();
                self.schedule(
                    latency,
                    Event::Arrive {
                        life,
                        number,
                        request,
                    },
                );
            }
        }
    }

    /// The API server, which carries out each request at one instant, however late.
    fn arrive(&mut self, life: u64, number: u64, request: &Request) {
        // Of a dead process too: a request that was on its way is carried out all the same.
        let me = Member {
            identity: Identity::new("replica", life),
            address: None,
        };
        let next = (self.version + 1).to_string();
        let current = self.lease.as_ref().map(|lease| lease.version.clone());
        let input = match request {
            Request::Read => Input::Read(self.lease.clone()),
            Request::Create if current.is_some() => Input::Refused,
            Request::Hold { version } | Request::Release { version } if current.as_ref() != Some(version) => {
                Input::Refused
            }
            Request::Create | Request::Hold { .. } | Request::Release { .. } => {
                self.version += 1;
                self.was_created = true;
                self.lease = Some(Record {
                    version: next.clone(),
                    holder: (!matches!(request, Request::Release { .. })).then_some(me),
                    duration: EXPIRY,
                });
                Input::Written { version: next }
            }
        };
        if !self.is_lost() {
            let latency = self.latency();
            self.schedule(latency, Event::Answer { life, number, input });
        }
    }

    fn trouble(&mut self) {
        if self.is_calm() {
            // Whoever is dead, or still about to stop, is started again.
            for slot in 0..REPLICAS {
                if self.replicas[slot].is_none() && self.may_start() {
                    self.start(slot);
                }
            }
            self.schedule(SECOND, Event::Trouble);
            return;
        }
        let slot = usize::try_from(self.random.below(REPLICAS as u64)).unwrap();
        match self.random.below(12) {
            0 | 1 => self.replicas[slot] = None,
            2 | 3 => {
                let time = self.time;
                if let Some(replica) = &mut self.replicas[slot] {
                    replica.election.stop(replica.now(time));
                    let life = replica.life;
                    self.schedule(0, Event::Wake { life });
                }
            }
            4..7 => {
                let until = self.time + self.random.below(MAX_STALL);
                if let Some(replica) = &mut self.replicas[slot] {
                    replica.stalled_until = until.min(CHAOS);
                }
            }
            7 => self.write(|_| {}),
            8 => self.write(|lease| {
                lease.holder = Identity::written("garbage").map(|identity| Member {
                    identity,
                    address: None,
                });
            }),
            9 if self.may_delete() => {
                self.lease = None;
                self.deleted_at = self.time;
            }
            _ => {
                if self.replicas[slot].is_none() && self.may_start() {
                    self.start(slot);
                }
            }
        }
        let pause = 100_000 + self.random.below(4 * SECOND);
        let pause = pause.min(CHAOS.saturating_sub(self.time).max(1));
        self.schedule(pause, Event::Trouble);
    }

    /// One that has never seen a Lease takes a missing one for a fresh installation: see `Known::Never`.
    fn may_start(&self) -> bool {
        self.lease.is_some() || !self.was_created || self.replicas.iter().all(Option::is_none)
    }

    /// A creation has no version to fence it, so one that was delayed until after a *second* deletion is taken for the
    /// answer to it: see `Known::Gone`.
    fn may_delete(&self) -> bool {
        let is_first = self.deleted_at == 0 || self.time > self.deleted_at + MAX_LATENCY + MAX_STALL;
        is_first && self.replicas.iter().flatten().all(|replica| replica.has_seen)
    }

    /// A person writes the Lease.
    fn write(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(lease) = &mut self.lease {
            self.version += 1;
            lease.version = self.version.to_string();
            change(lease);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to an instant; the simulation only adds to it"
)]
fn any_instant() -> Instant {
    Instant::now()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn never_two_leaders_and_one_in_the_end(seed in any::<u64>()) {
        let mut world = World::new(seed, any_instant());
        world.run();
        world.time = CHAOS + PEACE;
        prop_assert_eq!(world.leaders().len(), 1);
    }
}

#[test]
fn the_simulation_sees_many_changes_of_leader() {
    let changes: u64 = (0..20)
        .map(|seed| {
            let mut world = World::new(seed, any_instant());
            world.run();
            world.leaderships
        })
        .sum();
    assert!(changes > 20 * 5, "{changes} in twenty runs of five minutes");
}

/// The arithmetic on which everything rests.
#[test]
fn who_stops_by_itself_has_stopped_before_anybody_takes_over() {
    let slowest_stop = RENEW_DEADLINE * 1_000 / u32::try_from(1_000 - DRIFT).unwrap();
    let fastest_takeover = EXPIRY * 1_000 / u32::try_from(1_000 + DRIFT).unwrap();
    assert!(slowest_stop < fastest_takeover);
}
