//! The real binary on loopback, against a scripted aggregator and real targets.
//!
//! Deadlines of the session (a half-open connection takes 25 seconds to be noticed) are tested over virtual time beside
//! `src/uplink.rs`; here nothing waits longer than a reconnect.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod agent;
mod aggregator;
mod configuration;
mod ending;
mod endpoint;
mod identity;
mod session;

use std::{future::Future, time::Duration};

/// Longer than anything here takes on a busy machine; reached only when a test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that must happen.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}
