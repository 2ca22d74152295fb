//! The real binary, as a person or a script uses it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod demo;
mod examples;
mod files;
mod inject;
mod support;
mod usage;
