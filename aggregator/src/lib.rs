//! Rolls results up per HealthScope and serves the verdict.
