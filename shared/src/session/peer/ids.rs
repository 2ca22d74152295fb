//! A compact set of probe ids: most agents announce 1 to n, which takes eight bytes whatever n is.

use crate::wire::ProbeId;

/// Sorted, disjoint, not adjacent ranges, both ends included.
#[derive(Debug, Default)]
pub(super) struct IdSet(Box<[(u32, u32)]>);

impl IdSet {
    /// The set of these, or an id that occurs twice.
    pub(super) fn new(mut ids: Vec<u32>) -> Result<Self, u32> {
        ids.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for id in ids {
            match ranges.last_mut() {
                Some((_, last)) if *last == id => return Err(id),
                Some((_, last)) if *last + 1 == id => *last = id,
                Some(_) | None => ranges.push((id, id)),
            }
        }
        Ok(Self(ranges.into()))
    }

    pub(super) fn contains(&self, id: ProbeId) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= id.0);
        after > 0 && id.0 <= self.0[after - 1].1
    }

    pub(super) fn highest(&self) -> Option<ProbeId> {
        self.0.last().map(|&(_, last)| ProbeId(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_it_was_made_of() {
        let ids = [7, 1, 2, 3, u32::MAX, 9, 0, u32::MAX - 1];
        let set = IdSet::new(ids.to_vec()).unwrap();
        for id in [
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            u32::MAX - 2,
            u32::MAX - 1,
            u32::MAX,
        ] {
            assert_eq!(set.contains(ProbeId(id)), ids.contains(&id), "{id}");
        }
        assert_eq!(set.highest(), Some(ProbeId(u32::MAX)));
        assert_eq!(set.0.len(), 4);
    }

    #[test]
    fn an_id_that_occurs_twice_is_named() {
        assert_eq!(IdSet::new(vec![3, 1, 2, 1]).unwrap_err(), 1);
        assert_eq!(IdSet::new(vec![u32::MAX, u32::MAX]).unwrap_err(), u32::MAX);
    }

    #[test]
    fn the_empty_set_holds_nothing() {
        let set = IdSet::new(vec![]).unwrap();
        assert!(!set.contains(ProbeId(0)));
        assert_eq!(set.highest(), None);
    }
}
