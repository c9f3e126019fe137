//! `references` of ../checks/image.rs and `names` of ../checks/parser.rs.

#![no_main]

#[path = "../checks/parser.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod checks;
#[path = "../checks/image.rs"]
mod image;

libfuzzer_sys::fuzz_target!(|text: &str| {
    checks::names(text);
    image::references(text);
});
