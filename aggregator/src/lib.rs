//! The aggregator's shells: agents come in over WebSocket, one task owns the store, people and programs read over HTTP.
//!
//! Everything that decides is in `healthscope_core`. Here is IO, and nothing but: shells wait, call once, carry out the
//! answers. [`app::App`] connects them with channels.

pub mod app;
pub mod args;
pub mod certificates;
pub mod config;
pub mod declared;
pub mod identity;
pub mod kubernetes;

mod admission;
mod api;
mod breaker;
mod bus;
mod clock;
mod dashboard;
mod ingest;
mod listen;
mod mailbox;
mod metrics;
mod site;
mod store_actor;
mod stream;

pub use {app::App, config::Config, declared::Declared};
