//! When injection was seen to do harm, less is injected until something proves that it is safe again.
//!
//! An agent can fail in every way without hurting its pod, but for a few that no form of the pod prevents: an image that
//! cannot be pulled, a container that cannot start, a carrier that never comes up, a pod that is refused because of what
//! was added. The store finds these ([`Observed`]); [`Breaker::look`] decides; [`Record`] is what all replicas obey.
//!
//! An open trip closes by proof alone, and never because nothing bad is seen any more: that is what it is open for.

mod blame;
mod decide;
mod observe;
mod record;
#[cfg(test)]
mod tests;

pub use {
    blame::Blamed,
    decide::{Breaker, Decision, Told},
    observe::{Canary, Harm, Observed, OwnerNow},
    record::{
        Baseline, CANARY_POD, CONFIG_MAP, Cause, KEY, Level, OwnerRef, Record, Reduction, Resumed, Trip,
        owners,
    },
};
