//! The `HealthScope` API: its types as users and Kubernetes see them, their validation, and the conditions of its
//! status.
//!
//! Invariants, as absences: nothing here performs IO, reads a clock or knows a client. The time is an argument. The
//! JSON schema, the CRD, `healthscope explain` and the file reference all come from the types of [`v1beta1`].

pub mod condition;
pub mod cycle;
pub mod effective;
pub mod key;
pub mod manifest;
pub mod read;
pub mod v1alpha1;
pub mod v1alpha2;
pub mod v1beta1;
pub mod writer;

pub use {
    read::{Unreadable, read},
    v1beta1::HealthScope,
};
