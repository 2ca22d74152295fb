//! A real aggregator on loopback, asked and annoyed over real sockets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod agents;
mod api;
mod flood;
mod handshake;
mod metrics;
mod page;
mod process;
mod replicas;
mod security;
mod stream;
mod support;
mod text;
