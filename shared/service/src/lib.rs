//! What each HealthScope process needs around its own work: shutdown, named tasks, logs, TLS, tokens and a small
//! endpoint for health and metrics.
//!
//! Nothing here knows about probes, agents or scopes.

pub mod admin;
pub mod build;
pub mod config_files;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod token;
