//! Tests' helper: texts that are kept in `tests/golden`, so that a change of what people see is seen in review.
//!
//! `HEALTHSCOPE_UPDATE_GOLDEN=1 cargo test -p healthscope` writes them anew.

use {
    jiff::Timestamp,
    serde::de::DeserializeOwned,
    std::{fs, path::PathBuf},
};

fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", file]
        .iter()
        .collect()
}

/// Compares a text with the one that is kept.
#[track_caller]
pub(crate) fn check(file: &str, found: &str) {
    let path = path(file);
    if std::env::var_os("HEALTHSCOPE_UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not what is printed (HEALTHSCOPE_UPDATE_GOLDEN=1 writes it anew). Printed was:\n{found}",
        path.display()
    );
}

/// An answer of the aggregator that was recorded.
pub(crate) fn recorded<T: DeserializeOwned>(file: &str) -> T {
    serde_json::from_str(&fs::read_to_string(path(file)).unwrap()).unwrap()
}

/// The items of a recorded list.
pub(crate) fn recorded_items<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let list: serde_json::Value = recorded(file);
    serde_json::from_value(list["items"].clone()).unwrap()
}

/// A moment after the records were made.
pub(crate) fn now() -> Timestamp {
    "2026-01-02T05:00:00Z".parse().unwrap()
}
