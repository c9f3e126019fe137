//! Why a step was not cached: what differs from the nearest earlier time that it was built.
//!
//! Only steps that run come by here. The nearest earlier build is the one with the most in common of
//! those that the caller names ([`crate::ports::Ports::earlier`]: the same step of the same project), else of
//! the records of steps with the same text.

use std::path::{Path, PathBuf};

use kiln_cache::{Entry, Key, NodeRef, Record, Store, StoreError, Tree};
use kiln_parser::graph::Node;

use crate::key::KEYED;

/// How many records are compared.
const CANDIDATES: usize = 20;

/// Why a step ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// In short.
    pub reason: Reason,
    /// The parts of the key that differ, where there was something to compare with.
    pub differences: Vec<Difference>,
    /// The files that COPY or ADD wrote otherwise, where that is why.
    pub files: Option<FileChanges>,
}

/// In short, why a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The user asked for it: `--no-cache`.
    Asked,
    /// Nothing like it was built in this store.
    Never,
    /// Something differs from the time before.
    Differs,
    /// Nothing does, but the result is not there any more.
    Gone,
    /// Nothing does, but the result was pruned.
    Pruned {
        /// When: seconds since 1970.
        time: i64,
    },
}

/// A part of a key that differs. Values that may be secret are digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The part, as [`crate::key::parts`] names it.
    pub part: String,
    /// What it was; none where it was not there.
    pub before: Option<String>,
    /// What it is; none where it is not there any more.
    pub after: Option<String>,
}

/// How the files that a step wrote differ from those of the time before; paths as in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChanges {
    /// Other content, kind, mode, owner or attributes.
    pub changed: Vec<PathBuf>,
    /// Not there before.
    pub added: Vec<PathBuf>,
    /// Not there any more.
    pub removed: Vec<PathBuf>,
    /// How many files, links and so on there are now, directories aside.
    pub total: usize,
}

impl FileChanges {
    /// How many files differ.
    #[must_use]
    pub fn count(&self) -> usize {
        self.changed.len() + self.added.len() + self.removed.len()
    }
}

/// What a miss is explained with.
pub(crate) struct Question<'a> {
    pub(crate) node: &'a Node,
    /// The parts of the content key now.
    pub(crate) parts: &'a [(String, String)],
    /// Definition keys of earlier builds of the step, nearest first.
    pub(crate) earlier: &'a [Key],
    /// Its definition key now.
    pub(crate) definition: Key,
}

/// Why the step runs, and the record that it was compared with.
pub(crate) fn explain(
    store: &Store,
    question: &Question<'_>,
) -> Result<(Miss, Option<Record>), StoreError> {
    let miss = |reason| Miss { reason, differences: Vec::new(), files: None };
    if question.node.no_cache {
        return Ok((miss(Reason::Asked), None));
    }
    let pruned = store.pruned_when(&question.definition)?.map(|time| Reason::Pruned { time });
    let Some(before) = nearest(store, question)? else {
        let known = question.earlier.contains(&question.definition);
        let usual = if known { Reason::Gone } else { Reason::Never };
        return Ok((miss(pruned.unwrap_or(usual)), None));
    };
    let differences = differences(&before.parts, question.parts);
    let reason = match pruned {
        Some(pruned) => pruned,
        None if differences.is_empty() => Reason::Gone,
        None => Reason::Differs,
    };
    let differences = if reason == Reason::Differs { differences } else { Vec::new() };
    Ok((Miss { reason, differences, files: None }, Some(before)))
}

fn nearest(store: &Store, question: &Question<'_>) -> Result<Option<Record>, StoreError> {
    // Of those with the fewest differences the nearest, or newest.
    let distance = |record: &Record| differences(&record.parts, question.parts).len();
    let mut known = Vec::new();
    for key in question.earlier.iter().take(CANDIDATES) {
        known.extend(store.remembered(key)?);
    }
    if let Some(record) = known.into_iter().min_by_key(distance) {
        return Ok(Some(record));
    }
    let text = question.node.steps.first().map(|step| step.text.as_str()).unwrap_or_default();
    let like = store.records_like(text, CANDIDATES)?;
    Ok(like.into_iter().min_by_key(distance))
}

/// What differs between two lists of named parts; of parts with one name the first are compared with
/// the first.
fn differences(before: &[(String, String)], after: &[(String, String)]) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut old = vec![true; before.len()];
    for (name, value) in after {
        let same = |(at, (known, _)): &(usize, &(String, String))| old[*at] && known == name;
        let was = before.iter().enumerate().find(same).map(|(at, (_, was))| (at, was.as_str()));
        if let Some((at, _)) = was {
            old[at] = false;
        }
        let was = was.map(|(_, was)| was);
        if was != Some(value) && comparable(was, value) {
            found.push(Difference {
                part: name.clone(),
                before: was.map(str::to_owned),
                after: Some(value.clone()),
            });
        }
    }
    for ((name, value), _) in before.iter().zip(old).filter(|(_, left)| *left) {
        let (part, before) = (name.clone(), Some(value.clone()));
        found.push(Difference { part, before, after: None });
    }
    found
}

/// A digest with a key says nothing about one without, which the first format kept.
fn comparable(before: Option<&str>, after: &str) -> bool {
    before.is_none_or(|before| before.starts_with(KEYED) == after.starts_with(KEYED))
}

/// How the files of a new layer differ from those of an old one.
pub(crate) fn file_changes(before: &Tree, after: &Tree) -> FileChanges {
    let mut changes = FileChanges::default();
    compare(before.root(), after.root(), Path::new("/"), &mut changes);
    changes.total = after.walk().filter(|(_, entry)| !entry.is_dir()).count();
    changes
}

fn compare(before: NodeRef<'_>, after: NodeRef<'_>, path: &Path, changes: &mut FileChanges) {
    if before.digest() == after.digest() {
        return;
    }
    if is_other(before.entry(), after.entry()) {
        changes.changed.push(path.to_owned());
    }
    for child in after.children() {
        let path = path.join(child.name());
        match before.child(child.name()) {
            Some(old) => compare(old, child, &path, changes),
            None => list(child, &path, &mut changes.added),
        }
    }
    for child in before.children().filter(|child| after.child(child.name()).is_none()) {
        list(child, &path.join(child.name()), &mut changes.removed);
    }
}

/// Whether the thing itself differs, whatever is in it; times never count.
fn is_other(before: &Entry, after: &Entry) -> bool {
    let (old, new) = (&before.metadata, &after.metadata);
    before.kind != after.kind
        || (old.mode, old.uid, old.gid, &old.xattrs) != (new.mode, new.uid, new.gid, &new.xattrs)
}

/// All files of a tree that is on one side only; a directory counts where it is empty.
fn list(node: NodeRef<'_>, path: &Path, found: &mut Vec<PathBuf>) {
    let mut children = node.children().peekable();
    if children.peek().is_none() {
        found.push(path.to_owned());
    }
    for child in children {
        list(child, &path.join(child.name()), found);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use kiln_cache::{Entry, Kind, Tree, TreeBuilder};

    use super::{differences, file_changes};

    fn parts(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn parts_that_differ() {
        let check = |before: &[(&str, &str)], after: &[(&str, &str)], expect: &[&str]| {
            let found = differences(&parts(before), &parts(after));
            let found: Vec<String> = found
                .iter()
                .map(|d| {
                    let text = |side: &Option<String>| side.clone().unwrap_or("-".into());
                    format!("{} {} {}", d.part, text(&d.before), text(&d.after))
                })
                .collect();
            assert_eq!(found, expect);
        };
        check(&[("a", "1"), ("b", "2")], &[("a", "1"), ("b", "2")], &[]);
        check(&[("a", "1")], &[("a", "2"), ("b", "3")], &["a 1 2", "b - 3"]);
        check(&[("argument", "x"), ("argument", "y")], &[("argument", "x")], &["argument y -"]);
        check(&[("argument", "x")], &[("argument", "x"), ("argument", "x")], &["argument - x"]);
        check(&[("env A", "0011")], &[("env A", "keyed:0022")], &[]);
        check(&[("env A", "keyed:1")], &[("env A", "keyed:2")], &["env A keyed:1 keyed:2"]);
    }

    fn file(data: &[u8]) -> Entry {
        let mut entry = Entry::directory(0o644);
        entry.kind = Kind::File { size: data.len() as u64, data: *blake3::hash(data).as_bytes() };
        entry
    }

    fn tree(files: &[(&str, &[u8])], directory_mode: u32) -> Tree {
        let mut builder = TreeBuilder::new();
        builder.insert(Path::new("app"), Entry::directory(directory_mode));
        builder.insert(Path::new("app/new"), Entry::directory(0o755));
        for &(path, data) in files {
            builder.insert(Path::new(path), file(data));
        }
        builder.finish()
    }

    #[test]
    fn files_that_differ() {
        let before = tree(&[("app/a", b"1"), ("app/b", b"1"), ("app/c", b"1")], 0o755);
        let after = tree(&[("app/a", b"1"), ("app/b", b"2"), ("app/new/d", b"1")], 0o755);
        let changes = file_changes(&before, &after);
        assert_eq!(changes.changed, [PathBuf::from("/app/b")]);
        assert_eq!(changes.added, [PathBuf::from("/app/new/d")]);
        assert_eq!(changes.removed, [PathBuf::from("/app/c")]);
        assert_eq!((changes.total, changes.count()), (3, 3));
        let moded = tree(&[("app/a", b"1"), ("app/b", b"1"), ("app/c", b"1")], 0o700);
        assert_eq!(file_changes(&before, &moded).changed, [PathBuf::from("/app")]);
    }
}
