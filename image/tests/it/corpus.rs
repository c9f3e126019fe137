//! The fuzz target's check of references over its corpus (fuzz/README.md).

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/checks/image.rs"]
mod checks;

#[test]
fn references() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/references");
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the corpus is checked in") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("readable");
        if let Ok(text) = std::str::from_utf8(&bytes) {
            checks::references(text);
            count += 1;
        }
    }
    assert!(count > 0, "there are files");
}
