//! The HealthScope API types; pure.
