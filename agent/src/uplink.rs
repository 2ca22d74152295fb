//! The agent's connection to its aggregator.

use {
    endpoint::Endpoint,
    healthscope_service::token::Secret,
    std::{path::PathBuf, sync::Arc},
};

pub mod endpoint;

/// Where the aggregator is, and how both prove who they are.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its address.
    pub endpoint: Endpoint,
    /// How to speak TLS; needed when the endpoint says so, unused otherwise.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name that its certificate must have, when that is not the endpoint's host.
    pub server_name: Option<String>,
    /// How this agent proves who it is.
    pub token: Token,
    /// Where a trust bundle that the aggregator sends is kept, so that it outlives this process.
    pub ca_store: Option<PathBuf>,
    /// Whether tokens and results may cross a network in the clear.
    pub allow_plaintext: bool,
}

/// How an agent proves who it is.
#[derive(Clone, Debug)]
pub enum Token {
    /// Not at all; loopback needs none.
    None,
    /// By this token.
    Fixed(Secret),
    /// By the token in a file, read again for each connection: Kubernetes renews it every hour.
    File(PathBuf),
}
