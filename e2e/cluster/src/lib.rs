//! A real Kubernetes on one machine, for tests and for developers: etcd and the API server alone, or a whole node.
//!
//! Everything is built from source with Go once for each version, and kept in the user's cache folder. A run has a
//! folder of its own and, when it has a node, name spaces of its own for network, processes and mounts: runs do not
//! meet, and what a killed run leaves behind stops nobody.
//!
//! [`Cluster::start`] is the way in. Nothing here is a mock, and nothing here knows what HealthScope is.

mod api;
mod binaries;
mod cgroup;
mod cluster;
mod component;
mod configuration;
pub mod developer;
mod dns;
mod dockerfile;
mod folder;
mod identity;
mod image;
mod lookup;
mod network;
mod process;
mod relay;
mod sandbox;
mod tell;
mod version;

pub mod prerequisite;

pub use crate::{
    binaries::{Binaries, Program},
    cluster::{Audit, Cluster, Options},
    component::Component,
    dockerfile::Stage,
    folder::sweep,
    identity::{KeyKind, ServiceAccountKeys},
    image::Image,
    lookup::wait_for,
    process::spawn,
    relay::Relay,
    tell::{tell, timed},
    version::Version,
};
