//! The kit of the end-to-end tests: real programs, a real browser, and waiting for values.
//!
//! Tests live in `tests/`, one file a subject. Nothing here sleeps for a guessed time, and nothing ends a process
//! that it did not start.

pub mod api;
pub mod browser;
pub mod program;
pub mod target;
pub mod wait;
