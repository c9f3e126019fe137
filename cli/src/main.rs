//! The `kiln` command.

#![forbid(unsafe_code)]

fn main() {}
