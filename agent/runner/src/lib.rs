//! What agent and runner agree on: where the socket is, and what is said through it.
//!
//! The agent listens on [`SOCKET`] in a directory of its own for each container; the runner in that container connects
//! and keeps the connection, whose end tells the agent that the container (or its runner) is gone. The runner speaks
//! first ([`protocol::FromRunner::Hello`]), then the agent asks for commands by number and the runner answers each
//! question once. No command line ever travels: the runner knows its commands from its own arguments, which stand in the
//! pod template.
//!
//! Neither side trusts the other more than it must. The agent's directory is mounted read-only in one container, so
//! whoever connects there can only be in that container, and can only make that container's own checks worthless. To the
//! runner, the agent is whoever listens in the directory that it was started from.

pub mod protocol;

/// The agent's socket, in the directory that is mounted in one container.
pub const SOCKET: &str = "agent.sock";
/// The runner's program beside it.
pub const RUNNER: &str = "runner";
/// The agent's own directory on the same volume; no container mounts it.
pub const OWN_DIRECTORY: &str = ".agent";
