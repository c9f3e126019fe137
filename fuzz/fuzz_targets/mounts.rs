//! `mounts` of ../checks/parser.rs.

#![no_main]

#[path = "../checks/parser.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::mounts(text));
