//! "did you mean": the nearest of a set of names by edit distance, as BuildKit's `suggest` package.

/// The nearest name, where it is near enough (a third of the word, at least one edit).
#[must_use]
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let limit = (lower.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (distance(&lower, &name.to_lowercase()), name))
        .filter(|&(edits, name)| edits <= limit && name != word)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, name)| name)
}

/// `did you mean X?`, where something is near.
#[must_use]
pub fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, names).map(|name| format!("did you mean {name}?"))
}

/// Optimal string alignment distance: insertions, deletions, replacements, swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn near_words_are_found() {
        for (word, expect) in
            [("RNU", Some("RUN")), ("copi", Some("COPY")), ("xyz", None), ("FORM", Some("FROM"))]
        {
            assert_eq!(nearest(word, ["RUN", "COPY", "FROM"]), expect, "{word}");
        }
        assert_eq!(distance("abc", "acb"), 1);
    }
}
