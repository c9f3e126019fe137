//! Which existing path somebody may have meant.

use std::path::{Path, PathBuf};

use kiln_cache::View;

/// The path that `path` becomes when its first missing component is replaced by a similar name.
pub(super) fn similar(view: &dyn View, path: &Path) -> Option<PathBuf> {
    let mut there = PathBuf::new();
    let mut names = path.iter();
    let missing = names.find(|name| {
        let next = there.join(name);
        let found = view.entry(&next).is_some();
        if found {
            there = next;
        }
        !found
    })?;
    let wanted = missing.to_string_lossy().to_lowercase();
    let candidates = view.names(&there).into_iter().map(|(name, _)| {
        let distance = edits(&wanted, &name.to_string_lossy().to_lowercase());
        (distance, name)
    });
    let (distance, name) = candidates.min()?;
    if distance > wanted.chars().count().div_ceil(3) {
        return None;
    }
    let suggestion = there.join(name).join(names.as_path());
    view.entry(&suggestion).is_some().then_some(suggestion)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        let check = |a, b, expect| assert_eq!(edits(a, b), expect, "{a} {b}");
        check("", "", 0);
        check("", "abc", 3);
        check("kitten", "sitting", 3);
        check("main.rs", "man.rs", 1);
    }
}
