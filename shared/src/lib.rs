//! What agent and aggregator agree on; pure.
