//! No text makes the parser panic, and printing a tree is the inverse of parsing it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| kiln_parser::tree::check_round_trip(text));
