//! When each probe runs: one timer for all of them, at most one run of each at a time, bounded runs in all.
//!
//! Pure: never reads a clock, never spawns, runs nothing. The shell ([`crate::engine`]) asks [`Schedule::poll`] what
//! to start, sleeps until [`Schedule::next_due`], and says [`Schedule::finished`].
//!
//! * Every probe has a *grid*: `phase + k × period` on one time line, the phase a hash of the probe's identity, so
//!   that a thousand probes of one second spread over that second. Grids lie on slots of [`SLOT`], so that several
//!   probes start per wake-up. Due times are computed from the grid, never from the last run: no drift.
//! * The first run comes within `min(period, 1 s)` after the initial delay. With periods over a second that may be off
//!   the grid; the next run is then the first one on the grid at least half a period later.
//! * A tick that comes while the probe still runs (or waits for its turn) is dropped and counted, and so are ticks that
//!   passed while the whole process could not run. Nothing is queued twice.
//! * Runs over the limit wait in turn, first come first served, one queue per [`Lane`].

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// Due times are multiples of this since the schedule was made.
pub const SLOT: Duration = Duration::from_millis(5);
/// The first run of a probe comes at most this long after its initial delay.
pub const FIRST_RUN_WITHIN: Duration = Duration::from_secs(1);

/// Most network runs at once. Each holds a descriptor and at most some tens of KiB; a thousand black-holed targets at
/// one second's timeout reach it, and then wait their turn.
const MAX_NETWORK_RUNS: usize = 256;
/// Most commands at once: each is a process that competes with the patient.
const MAX_COMMAND_RUNS: usize = 16;

const SLOT_NANOS: u64 = SLOT.as_nanos() as u64;

/// What a run competes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Descriptors and ports.
    Network,
    /// Processes.
    Command,
}

/// Most runs at once, per lane; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Network runs.
    pub network: usize,
    /// Commands.
    pub command: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            network: MAX_NETWORK_RUNS,
            command: MAX_COMMAND_RUNS,
        }
    }
}

/// When a probe is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// What its runs compete for.
    pub lane: Lane,
    /// From the start of one run to the start of the next; at least [`SLOT`].
    pub period: Duration,
    /// No run (out of turn excepted) before this much time has passed since it was added.
    pub initial_delay: Duration,
    /// A hash of the probe's identity, stable over restarts: chooses the phase.
    pub hash: u64,
}

/// A probe in the schedule. Keys of removed probes are never valid again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// A small number, unique among the probes that are in the schedule now.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// A run to start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which probe.
    pub key: Key,
    /// When it should have started.
    pub scheduled: Instant,
}

/// What became of a run out of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfTurn {
    /// It is the next to start.
    Queued,
    /// The probe runs at this moment (or is about to): that run answers as well.
    AlreadyRunning,
    /// No such probe.
    NotFound,
}

/// Ticks that were dropped since the schedule was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// They passed while the process could not run.
    pub late: u64,
    /// The probe's former run was not finished, or had not had its turn.
    pub running: u64,
}

/// All probes and when they run next.
#[derive(Debug)]
pub struct Schedule {
    origin: Instant,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Next tick of every probe that is not paused: nanoseconds since `origin`, index.
    due: BTreeSet<(u64, u32)>,
    network: Turns,
    command: Turns,
    dropped: Dropped,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    /// `None` when the place is free.
    probe: Option<Probe>,
}

#[derive(Debug)]
struct Probe {
    lane: Lane,
    period: u64,
    phase: u64,
    hash: u64,
    /// End of the initial delay.
    not_before: u64,
    /// Next tick, as in `Schedule::due`; `None` while paused.
    next: Option<u64>,
    /// The next tick is the first one, which need not lie on the grid.
    off_grid: bool,
    run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    None,
    /// In its lane's queue, since it was due then.
    Waiting(u64),
    Running,
}

/// Whose turn it is in a lane. Full case: the queue holds each probe at most once, so it is as long as the schedule.
#[derive(Debug)]
struct Turns {
    limit: usize,
    running: usize,
    waiting: VecDeque<Key>,
}

impl Turns {
    fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            running: 0,
            waiting: VecDeque::new(),
        }
    }
}

impl Schedule {
    /// An empty schedule whose slots count from `origin`.
    #[must_use]
    pub fn new(origin: Instant, limits: Limits) -> Self {
        Self {
            origin,
            entries: Vec::new(),
            free: Vec::new(),
            due: BTreeSet::new(),
            network: Turns::new(limits.network),
            command: Turns::new(limits.command),
            dropped: Dropped::default(),
        }
    }

    /// Takes up a probe; `paused` ones wait for [`Self::resume`].
    pub fn add(&mut self, timing: Timing, paused: bool, now: Instant) -> Key {
        let Timing {
            lane,
            period,
            initial_delay,
            hash,
        } = timing;
        let period = nanos(period).max(SLOT_NANOS);
        let not_before = slot_at_or_after(self.at(now).saturating_add(nanos(initial_delay)));
        let probe = Probe {
            lane,
            period,
            phase: slot_before(hash % period),
            hash,
            not_before,
            next: None,
            off_grid: false,
            run: Run::None,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize].probe = Some(probe);
                index
            }
            None => {
                let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 probes fit in memory");
                self.entries.push(Entry {
                    generation: 0,
                    probe: Some(probe),
                });
                index
            }
        };
        if !paused {
            self.set_first(index, self.at(now));
        }
        Key {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    /// Forgets a probe; a run that is under way no longer counts. `false` when there is no such probe.
    pub fn remove(&mut self, key: Key) -> bool {
        let Some(probe) = self.probe_mut(key) else {
            return false;
        };
        let (lane, next, run) = (probe.lane, probe.next, probe.run);
        if let Some(next) = next {
            self.due.remove(&(next, key.index));
        }
        match run {
            Run::None => {}
            Run::Waiting(_) => self.turns_mut(lane).waiting.retain(|&waiting| waiting != key),
            Run::Running => self.turns_mut(lane).running -= 1,
        }
        let entry = &mut self.entries[key.index()];
        entry.probe = None;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.index);
        true
    }

    /// Stops the ticks of a probe; a run that is due or under way goes on.
    pub fn pause(&mut self, key: Key) {
        let Some(probe) = self.probe_mut(key) else { return };
        if let Some(next) = probe.next.take() {
            self.due.remove(&(next, key.index));
        }
    }

    /// Lets a paused probe run: at the next slot, or when its initial delay is over. No effect on one that is not
    /// paused.
    pub fn resume(&mut self, key: Key, now: Instant) {
        let at = slot_at_or_after(self.at(now));
        let Some(probe) = self.probe_mut(key) else { return };
        if probe.next.is_some() {
            return;
        }
        let next = at.max(probe.not_before);
        probe.next = Some(next);
        probe.off_grid = true;
        self.due.insert((next, key.index));
    }

    /// Makes a probe the next to start, paused or not; its regular ticks stay where they are.
    pub fn run_now(&mut self, key: Key, now: Instant) -> OutOfTurn {
        let at = self.at(now);
        let Some(probe) = self.probe_mut(key) else {
            return OutOfTurn::NotFound;
        };
        match probe.run {
            Run::None => {
                probe.run = Run::Waiting(at);
                let lane = probe.lane;
                self.turns_mut(lane).waiting.push_front(key);
                OutOfTurn::Queued
            }
            Run::Waiting(_) | Run::Running => OutOfTurn::AlreadyRunning,
        }
    }

    /// Says that the run started last for `key` is over. Ignored for probes that were removed meanwhile.
    pub fn finished(&mut self, key: Key) {
        let Some(probe) = self.probe_mut(key) else { return };
        debug_assert_eq!(probe.run, Run::Running, "only a started run can finish");
        if probe.run == Run::Running {
            probe.run = Run::None;
            let lane = probe.lane;
            self.turns_mut(lane).running -= 1;
        }
    }

    /// Adds to `starts` the runs to start now. Each of them counts as running until [`Self::finished`].
    pub fn poll(&mut self, now: Instant, starts: &mut Vec<Start>) {
        let now = self.at(now);
        while let Some(&(due, index)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            self.tick(due, index, now);
        }
        self.start_waiting(Lane::Network, starts);
        self.start_waiting(Lane::Command, starts);
    }

    /// When to poll next, if nothing finishes or changes before.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due
            .first()
            .map(|&(due, _)| self.origin + Duration::from_nanos(due))
    }

    /// Ticks dropped so far.
    #[must_use]
    pub const fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Runs that are due and wait for others to finish.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.network.waiting.len() + self.command.waiting.len()
    }

    /// Runs that were started and have not finished.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.network.running + self.command.running
    }

    fn tick(&mut self, due: u64, index: u32, now: u64) {
        let entry = &mut self.entries[index as usize];
        let probe = entry.probe.as_mut().expect("removed probes have no ticks");
        let earliest = if probe.off_grid {
            due + probe.period / 2
        } else {
            due + 1
        };
        probe.off_grid = false;
        let following = probe.grid_at_or_after(earliest);
        let next = following.max(probe.grid_at_or_after(now + 1));
        probe.next = Some(next);
        self.due.insert((next, index));
        self.dropped.late += (next - following) / probe.period;
        match probe.run {
            Run::None => {
                probe.run = Run::Waiting(due);
                let key = Key {
                    index,
                    generation: entry.generation,
                };
                let lane = probe.lane;
                self.turns_mut(lane).waiting.push_back(key);
            }
            Run::Waiting(_) | Run::Running => self.dropped.running += 1,
        }
    }

    fn start_waiting(&mut self, lane: Lane, starts: &mut Vec<Start>) {
        let origin = self.origin;
        loop {
            let turns = self.turns_mut(lane);
            if turns.running >= turns.limit {
                return;
            }
            let Some(key) = turns.waiting.pop_front() else {
                return;
            };
            turns.running += 1;
            let probe = self.probe_mut(key).expect("removed probes leave the queue");
            let Run::Waiting(due) = probe.run else {
                unreachable!("only waiting probes are in the queue");
            };
            probe.run = Run::Running;
            starts.push(Start {
                key,
                scheduled: origin + Duration::from_nanos(due),
            });
        }
    }

    fn set_first(&mut self, index: u32, now: u64) {
        let probe = self.entries[index as usize].probe.as_mut().expect("just added");
        let window = nanos(FIRST_RUN_WITHIN);
        let earliest = probe.not_before.max(now);
        let next = if probe.period <= window {
            probe.grid_at_or_after(earliest)
        } else {
            probe.off_grid = true;
            slot_at_or_after(earliest) + slot_before(probe.hash % window)
        };
        probe.next = Some(next);
        self.due.insert((next, index));
    }

    fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.origin))
    }

    fn probe_mut(&mut self, key: Key) -> Option<&mut Probe> {
        let entry = self.entries.get_mut(key.index())?;
        if entry.generation != key.generation {
            return None;
        }
        entry.probe.as_mut()
    }

    fn turns_mut(&mut self, lane: Lane) -> &mut Turns {
        match lane {
            Lane::Network => &mut self.network,
            Lane::Command => &mut self.command,
        }
    }
}

impl Probe {
    fn grid_at_or_after(&self, time: u64) -> u64 {
        let steps = time.saturating_sub(self.phase).div_ceil(self.period);
        self.phase + steps * self.period
    }
}

/// Nanoseconds since the origin reach for 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

const fn slot_before(time: u64) -> u64 {
    time - time % SLOT_NANOS
}

const fn slot_at_or_after(time: u64) -> u64 {
    time.div_ceil(SLOT_NANOS) * SLOT_NANOS
}

#[cfg(test)]
mod tests;
