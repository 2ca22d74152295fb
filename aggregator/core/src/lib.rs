//! The aggregator's brain: from what agents say to the health of every scope, and why.
//!
//! [`store::Store`] is the one owner of all state: events go in by `apply`, changed scopes come out of `publish`, and
//! readers share an immutable [`snapshot::Snapshot`]. [`rollup`] is the pure heart; [`status`] makes the very object
//! that Kubernetes gets; [`view`] is the public JSON.
//!
//! Invariants, as absences: nothing here performs IO, reads a clock, draws randomness or spawns; time is an argument
//! ([`event::Now`]). The iteration order of a hash table is never visible: the same events give the same answers.

pub mod admission;
pub mod breaker;
pub mod certificate;
mod cluster;
mod component;
mod damping;
pub mod event;
mod fleet;
pub mod inject;
mod intern;
mod log;
mod membership;
pub mod occurrence;
pub mod owner;
pub mod pace;
pub mod platform;
pub mod repair;
pub mod rollup;
mod scope;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod view;
pub mod wanted;

pub use fleet::{FORGET_AFTER, Patience, RESTART_HOLD};
pub use log::KEPT as KEPT_TRANSITIONS;
