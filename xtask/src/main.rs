//! Project tasks: test, bench, schema.

fn main() {}
