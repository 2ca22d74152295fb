//! The runner's own program, without Kubernetes: directories as the supervisor makes them, and an agent made of a socket.
//!
//! Takes root and `unshare` for a PID namespace whose first process does not reap.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod carry;
mod container;
mod exec;
mod serve;
mod supervise;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Longest wait for anything; a busy machine takes tens of times what an idle one does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until there is something.
#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
