//! The one place where a descriptor is given to the runtime to wait for.

use {
    std::{io, os::fd::OwnedFd},
    tokio::io::{Interest, unix::AsyncFd},
};

/// Lets the runtime wait for a descriptor that this module's callers own.
///
/// tokio's other constructor is `unsafe`, because a type of the caller's could close its descriptor early; an [`OwnedFd`]
/// cannot. Without unsafe code in this workspace the deprecated name is the only one left.
#[expect(
    deprecated,
    reason = "its successor is unsafe; its soundness gap does not concern OwnedFd"
)]
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}
