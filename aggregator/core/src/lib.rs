//! The aggregator's brain; pure.
