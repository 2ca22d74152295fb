//! A table of shared values: ten thousand agents with the same probes hold each name once.
//!
//! Values that nobody holds any more are dropped when the table has doubled, so it never holds more than twice what
//! is in use (with a floor). The order of the table is never visible.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// Below so many values nothing is dropped: it would not be worth the look.
const FLOOR: usize = 1_024;

/// Shared values.
#[derive(Debug)]
pub(crate) struct Table<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Values in use when the table was last gone through.
    used: usize,
}

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            used: 0,
        }
    }
}

impl<T: Eq + Hash + ?Sized> Table<T> {
    /// The one copy of `value`.
    pub(crate) fn share<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        self.share_as(value, || value.into())
    }

    /// The one copy of `value`, which `make` makes shareable.
    pub(crate) fn share_as(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(shared) = self.values.get(value) {
            return Arc::clone(shared);
        }
        if self.values.len() >= (self.used * 2).max(FLOOR) {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.used = self.values.len();
        }
        let shared = make();
        self.values.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_are_dropped() {
        let mut texts = Table::<str>::default();
        let kept = texts.share("kept");
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
        for i in 0..10 * FLOOR {
            drop(texts.share(&i.to_string()));
        }
        assert!(texts.values.len() <= FLOOR + 1, "{}", texts.values.len());
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
    }
}
