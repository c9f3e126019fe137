//! Deletions in archives, and the walk over a layer that finds them.
//!
//! A deleted name is an entry `.wh.NAME` (OCI image specification, "Whiteouts"). A directory that
//! hides everything below it (opaque) is written as explicit deletions of what the layers below have
//! in it, because BuildKit does and some readers only know these (behaviour.md 6.3, trap 74).

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use kiln_cache::{Entry, Kind, NodeRef, Tree, View};

/// What the name of a deletion starts with.
pub(crate) const PREFIX: &[u8] = b".wh.";

/// The marker of an opaque directory; written only into archives for Kiln itself.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// One step of the walk.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// An entry of the layer.
    Entry(PathBuf, &'a Entry),
    /// A name that is deleted from the layers below.
    Deletion(PathBuf),
}

/// Walks a layer: parents first, sorted by name, the root left out; the deletions that an opaque
/// directory stands for come directly after it.
pub(super) struct Walk<'a> {
    /// None: opaque directories are marked, whatever is below.
    below: Option<&'a dyn View>,
    open: Vec<Level<'a>>,
    deletions: std::vec::IntoIter<PathBuf>,
}

struct Level<'a> {
    path: PathBuf,
    children: std::vec::IntoIter<NodeRef<'a>>,
    /// Whether this directory hides what is below it.
    hidden: bool,
}

/// The first entry of a layer whose name readers would take for a deletion. (The specification has no
/// way to write such a name.)
pub(super) fn reserved(walk: Walk<'_>) -> Option<PathBuf> {
    walk.into_iter().find_map(|item| match item {
        Item::Entry(path, _) => {
            let name = path.file_name().unwrap_or_default();
            name.as_bytes().starts_with(PREFIX).then_some(path)
        }
        Item::Deletion(_) => None,
    })
}

impl<'a> Walk<'a> {
    pub(super) fn new(tree: &'a Tree, below: Option<&'a dyn View>) -> Self {
        let mut walk = Self { below, open: Vec::new(), deletions: Vec::new().into_iter() };
        walk.enter(PathBuf::new(), tree.root(), false);
        walk
    }

    fn enter(&mut self, path: PathBuf, node: NodeRef<'a>, parent_hidden: bool) {
        let Kind::Directory { opaque } = node.entry().kind else { return };
        let hidden = opaque || parent_hidden;
        let children: Vec<NodeRef<'a>> = node.children().collect();
        self.deletions = match self.below {
            Some(below) if hidden => hidden_names(below, &path, &children).into_iter(),
            // The marker is the deletion of this name.
            None if opaque => vec![path.join(".wh..opq")].into_iter(),
            _ => Vec::new().into_iter(),
        };
        self.open.push(Level { path, children: children.into_iter(), hidden });
    }
}

/// What the layers below have in a directory and this layer has not.
fn hidden_names(below: &dyn View, path: &Path, children: &[NodeRef<'_>]) -> Vec<PathBuf> {
    let kept: HashSet<&[u8]> = children.iter().map(|child| child.name().as_bytes()).collect();
    let names = below.names(path).into_iter().map(|(name, _)| name);
    names.filter(|name| !kept.contains(name.as_bytes())).map(|name| path.join(name)).collect()
}

impl<'a> Iterator for Walk<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        loop {
            if let Some(path) = self.deletions.next() {
                return Some(Item::Deletion(path));
            }
            let level = self.open.last_mut()?;
            let Some(node) = level.children.next() else {
                self.open.pop();
                continue;
            };
            let path = level.path.join(node.name());
            let hidden = level.hidden;
            let entry = node.entry();
            if entry.kind == Kind::Whiteout {
                return Some(Item::Deletion(path));
            }
            self.enter(path.clone(), node, hidden);
            return Some(Item::Entry(path, entry));
        }
    }
}

/// The name of the entry that deletes `path`.
pub(super) fn entry_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let name = OsString::from_vec([PREFIX, name.as_bytes()].concat());
    path.with_file_name(name)
}

/// Whether any directory hides what is below it: then the archive depends on the layers below.
pub(super) fn has_opaque(tree: &Tree) -> bool {
    let mut open = vec![tree.root()];
    while let Some(node) = open.pop() {
        match node.entry().kind {
            Kind::Directory { opaque: true } => return true,
            Kind::Directory { opaque: false } => open.extend(node.children()),
            _ => {}
        }
    }
    false
}
