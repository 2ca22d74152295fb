//! What this replica is for: to serve, or to stand by.

use {healthscope_core::owner::Address, tokio::sync::watch};

/// What this replica is for, at this moment and as far as it knows.
///
/// A process that was stopped for a while may still read [`Role::Owner`] when another replica serves already. So
/// whatever an owner writes carries the resourceVersion that it was computed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves: takes agents in, writes statuses and Events.
    Owner,
    /// It is ready to take over, writes nothing and takes no agent in.
    Standby {
        /// Where the owner is; `None` when nobody is known to be one, or it does not say.
        owner: Option<Address>,
    },
}

/// The role of an aggregator without replicas.
#[must_use]
pub fn always_owner() -> watch::Receiver<Role> {
    watch::channel(Role::Owner).1
}
