//! The HealthScope command line.

fn main() {}
