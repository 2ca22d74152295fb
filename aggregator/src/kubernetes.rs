//! Everything that talks to a Kubernetes API server: watches in, statuses out.
//!
//! Decides nothing about health: what is watched goes to the store, what the store says is written.

#![allow(dead_code, reason = "the application connects these parts")]

pub(crate) mod events;
pub(crate) mod request;
pub(crate) mod role;
pub(crate) mod writer;
