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
    let suggestion: PathBuf = there.join(name).iter().chain(names).collect();
    view.entry(&suggestion).is_some().then_some(suggestion)
}

/// How many letters are to be inserted, removed, replaced or swapped with the next.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
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
        check("tow", "two", 1);
    }
}
