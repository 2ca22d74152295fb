//! Takes leave of children, known and unknown.
//!
//! Whoever is PID 1 or a subreaper is given the orphans of what it started; each stays in the table of processes until it
//! is waited for.

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, wait},
};

/// What is left after [`children`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// No child at all.
    None,
    /// Some that have not ended.
    Some,
}

/// Reaps every child that has ended, and calls `ended` for each.
pub(crate) fn children(mut ended: impl FnMut(Pid, WaitStatus)) -> Left {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended(pid, status),
            Ok(None) => return Left::Some,
            Err(Errno::INTR) => {}
            Err(_) => return Left::None,
        }
    }
}
