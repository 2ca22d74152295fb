//! Whose scopes these are.

/// Whether this process is the one that writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is.
    Owner,
    /// Another one is, or nobody yet.
    #[default]
    Standby,
}

impl Role {
    /// Whether statuses are ours to write.
    pub(crate) const fn is_owner(&self) -> bool {
        match self {
            Self::Owner => true,
            Self::Standby => false,
        }
    }
}
