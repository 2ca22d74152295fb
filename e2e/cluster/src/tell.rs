//! Lines for whoever waits: how far a build is, how long something took.

use std::{
    io::Write,
    time::{Duration, Instant},
};

/// Says something now on standard error, even inside a test whose printing is kept back until it fails.
pub fn tell(what: &str) {
    // Nobody is there to hear it when this fails.
    let _ = writeln!(std::io::stderr(), "    {what}");
}

/// Does something and tells how long it took.
pub fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    tell(&format!("{what}: {}", seconds(begun.elapsed())));
    result
}

/// A time as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
