//! The real binary, as a person or a script uses it.

mod demo;
mod examples;
mod files;
mod support;
mod usage;
