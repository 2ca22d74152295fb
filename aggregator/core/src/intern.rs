//! A table of shared texts: ten thousand agents with the same probes hold each name once.
//!
//! Texts that nobody holds any more are dropped when the table has doubled, so it never holds more than twice what is
//! in use (with a floor). The order of the table is never visible.

use std::{collections::HashSet, sync::Arc};

/// Below so many texts nothing is dropped: it would not be worth the look.
const FLOOR: usize = 1_024;

/// Shared texts.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    table: HashSet<Arc<str>>,
    /// Texts in use when the table was last gone through.
    used: usize,
}

impl Texts {
    /// The one copy of `text`.
    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.table.get(text) {
            return Arc::clone(shared);
        }
        if self.table.len() >= (self.used * 2).max(FLOOR) {
            self.table.retain(|text| Arc::strong_count(text) > 1);
            self.used = self.table.len();
        }
        let shared: Arc<str> = text.into();
        self.table.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_are_dropped() {
        let mut texts = Texts::default();
        let kept = texts.share("kept");
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
        for i in 0..10 * FLOOR {
            drop(texts.share(&i.to_string()));
        }
        assert!(texts.table.len() <= FLOOR + 1, "{}", texts.table.len());
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
    }
}
