//! What the agent and the aggregator agree on: names, health words, probe specifications, outcomes,
//! the agent's configuration file, and the wire protocol as messages and state machines.
//!
//! Invariants, as absences: nothing here performs IO, reads a clock, draws randomness or spawns. Time
//! and randomness are arguments. Nothing here imports the agent or the aggregator.

pub mod backoff;
pub mod config;
pub mod document;
pub mod flap;
pub mod health;
pub mod name;
pub mod probe;
pub mod session;
pub mod threshold;
pub mod wire;

mod text;

pub use text::{one_line, printable, truncate};
