//! Whose scopes these are.

/// Whether this process is the one that writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is.
    Owner,
    /// Another one is, or nobody yet.
    #[default]
    Standby,
}
