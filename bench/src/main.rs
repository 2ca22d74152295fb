//! Load and speed programs.

fn main() {}
