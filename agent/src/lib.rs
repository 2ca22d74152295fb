//! Runs health checks where the component lives and streams the results.
//!
//! `schedule` and `monitor` are pure: they take the time as an argument. `prober` does the IO of single runs; `engine`
//! is the one task that ties them together. `uplink` keeps the session with the aggregator, `local` is the agent's own
//! endpoint, and `app` connects all of them with channels.

pub mod app;
pub mod args;
pub mod config;
pub mod engine;
pub mod local;
pub mod metrics;
pub mod monitor;
pub mod prober;
pub mod schedule;
pub mod uplink;

mod watch;
