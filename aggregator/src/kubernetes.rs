//! The aggregator as a controller of Kubernetes: what it asks of the API server, and what it tells it.

pub mod lease;
pub mod role;
