//! Which skipped pods their owners are told of, and how often: once an hour for the same reason, whoever of the replicas
//! was asked, and few in all.
//!
//! An Event's name comes from what it tells and the hour, so that telling it twice makes one.

use {
    super::Owner,
    healthscope_shared::one_line,
    jiff::Timestamp,
    std::{
        collections::{BTreeMap, VecDeque},
        hash::{DefaultHasher, Hash, Hasher},
        time::{Duration, Instant},
    },
};

/// How long the same is not told again: Events live an hour unless told otherwise.
const SILENCE: Duration = Duration::from_secs(3_600);
/// Owners and reasons that are remembered; the oldest makes place and may be told again, under the same name.
pub const MAX_OWNERS: usize = 10_000;
/// Events in a row, and after these one every [`REFILL`]: a cluster-wide mistake must not take the API server's time.
const BURST: u32 = 50;
/// How often there may be another.
const REFILL: Duration = Duration::from_secs(1);
/// Longest sentence; the API server takes 1 KiB.
const MAX_NOTE_BYTES: usize = 900;
/// Longest part of the owner's name in the Event's, which is at most 253 long.
const MAX_NAME_BYTES: usize = 200;

/// A pod that got no agent, though somebody may expect one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Where.
    pub namespace: String,
    /// Whose.
    pub owner: Owner,
    /// Why, in one word.
    pub code: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

/// An Event to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkipEvent {
    /// Its name.
    pub name: String,
    /// When.
    pub at: Timestamp,
    /// What it says.
    pub note: String,
    /// About what.
    pub skip: Skip,
}

type Key = (String, &'static str);

/// What was told already.
#[derive(Clone, Debug)]
pub struct Skips {
    /// Owner's uid and reason; bounded by [`MAX_OWNERS`].
    told: BTreeMap<Key, Instant>,
    /// The same in the order of their time.
    order: VecDeque<(Instant, Key)>,
    allowance: u32,
    filled: Option<Instant>,
}

impl Default for Skips {
    fn default() -> Self {
        Self {
            told: BTreeMap::new(),
            order: VecDeque::new(),
            allowance: BURST,
            filled: None,
        }
    }
}

impl Skips {
    /// Takes in one; the Event to be made of it, if any.
    pub fn handle(&mut self, now: Instant, at: Timestamp, skip: Skip) -> Option<SkipEvent> {
        self.forget(now);
        let key = (skip.owner.uid.clone(), skip.code);
        if self.told.contains_key(&key) || !self.take(now) {
            return None;
        }
        self.told.insert(key.clone(), now);
        self.order.push_back((now, key));
        Some(SkipEvent {
            name: name(&skip, at),
            at,
            note: one_line(&format!("{}: {}", skip.code, skip.message), MAX_NOTE_BYTES),
            skip,
        })
    }

    fn forget(&mut self, now: Instant) {
        while let Some((told, _)) = self.order.front()
            && (self.order.len() >= MAX_OWNERS || now.saturating_duration_since(*told) >= SILENCE)
        {
            if let Some((_, key)) = self.order.pop_front() {
                self.told.remove(&key);
            }
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let filled = *self.filled.get_or_insert(now);
        let periods = now.saturating_duration_since(filled).as_secs() / REFILL.as_secs();
        if periods > 0 {
            let periods = u32::try_from(periods).unwrap_or(u32::MAX);
            self.allowance = self.allowance.saturating_add(periods).min(BURST);
            self.filled = Some(now);
        }
        let may = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        may
    }
}

fn name(skip: &Skip, at: Timestamp) -> String {
    let hour = at.as_second() / 3_600;
    // Its keys are fixed: replicas of the same build agree.
    let mut hasher = DefaultHasher::new();
    (&skip.owner.uid, skip.code, hour).hash(&mut hasher);
    let owner = healthscope_shared::truncate(&skip.owner.name, MAX_NAME_BYTES);
    // A cut may leave a name that does not end like one.
    let owner = owner.trim_end_matches(['-', '.', '…']);
    format!("{owner}.{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(uid: &str, code: &'static str) -> Skip {
        Skip {
            namespace: "shop".to_owned(),
            owner: Owner {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                name: "web-5d9".to_owned(),
                uid: uid.to_owned(),
            },
            code,
            message: "because".to_owned(),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a test starts its own clock somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_same_is_told_once_an_hour() {
        let start = start();
        let mut skips = Skips::default();
        let mut tell = |seconds: u64, uid, code| {
            let at = Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap();
            skips.handle(start + Duration::from_secs(seconds), at, skip(uid, code))
        };
        let first = tell(0, "u1", "HostNetwork").unwrap();
        assert_eq!(first.note, "HostNetwork: because");
        assert_eq!(tell(10, "u1", "HostNetwork"), None);
        assert!(tell(10, "u1", "QuotaExceeded").is_some());
        assert!(tell(10, "u2", "HostNetwork").is_some());
        let second = tell(3_600, "u1", "HostNetwork").unwrap();
        assert_ne!(first.name, second.name);
    }

    #[test]
    fn another_replica_names_the_event_alike() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let name = |skip| Skips::default().handle(start(), at, skip).unwrap().name;
        assert_eq!(name(skip("u1", "HostNetwork")), name(skip("u1", "HostNetwork")));
        assert_ne!(name(skip("u1", "HostNetwork")), name(skip("u2", "HostNetwork")));
        let mut long = skip("u1", "HostNetwork");
        long.owner.name = format!("{}.{}", "a".repeat(199), "b".repeat(50));
        let name = name(long);
        assert!(name.len() <= 253 && !name.contains(".."), "{name}");
    }

    #[test]
    fn a_flood_is_cut() {
        let start = start();
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let mut skips = Skips::default();
        let mut flood = |now: Instant| {
            let told = (0..1_000).filter(|index| {
                let uid = format!("{index}-{:?}", now.duration_since(start));
                skips.handle(now, at, skip(&uid, "HostNetwork")).is_some()
            });
            told.count()
        };
        assert_eq!(flood(start), 50);
        assert_eq!(flood(start + Duration::from_secs(3)), 3);
    }
}
