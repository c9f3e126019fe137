//! A small static program for steps, and for starting `kiln` on a kernel that lacks something.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::env::{text, tool};

/// Where the program is; compiled once for all tests of the process.
pub(crate) fn probe() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/probe.c");
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = place.join(format!("probe-{}", std::process::id()));
        tool("cc", &["-static", "-O1", "-Wall", "-o", &text(&program), &text(&source)]);
        let known = place.join("probe");
        // One program however many test processes there are; each has seen its own complete.
        std::fs::rename(&program, &known).expect("renamed");
        known
    })
}

/// The program's bytes, for images.
pub(crate) fn program() -> Vec<u8> {
    std::fs::read(probe()).expect("readable")
}
