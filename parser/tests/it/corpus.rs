//! The fuzz targets' checks over their corpora (fuzz/README.md): what was found once stays mended.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/checks/parser.rs"]
mod checks;

/// Runs a check with every file of a corpus.
fn each(corpus: &str, check: fn(&str)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the corpus is checked in") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("readable");
        if let Ok(text) = std::str::from_utf8(&bytes) {
            check(text);
            count += 1;
        }
    }
    assert!(count > 0, "{corpus} has files");
}

#[test]
fn parser() {
    each("parser", checks::parser);
}

#[test]
fn lower() {
    each("lower", checks::lower);
}

#[test]
fn expansion() {
    each("expansion", checks::expansion);
}

#[test]
fn ignore() {
    each("ignore", checks::ignore);
}

#[test]
fn mounts() {
    each("mounts", checks::mounts);
}

#[test]
fn names() {
    each("references", checks::names);
}
