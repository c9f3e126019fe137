//! The files of a finished file system, one after the other: what `local` and `tar` outputs write.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kiln_cache::{View, ViewEntry};

/// One file of the file system.
#[derive(Debug)]
pub(crate) struct FlatEntry {
    pub path: PathBuf,
    pub found: ViewEntry,
    /// The earlier name of the same file.
    pub first: Option<PathBuf>,
}

/// Walks a view: parents first, sorted by name, the root left out.
pub(crate) struct Flatten<'a> {
    view: &'a dyn View,
    open: Vec<(PathBuf, std::vec::IntoIter<(std::ffi::OsString, ViewEntry)>)>,
    linked: HashMap<(u32, u32), PathBuf>,
}

impl<'a> Flatten<'a> {
    pub(crate) fn new(view: &'a dyn View) -> Self {
        let root = Path::new("");
        let open = vec![(root.to_owned(), view.children(root).into_iter())];
        Self { view, open, linked: HashMap::new() }
    }
}

impl Iterator for Flatten<'_> {
    type Item = FlatEntry;

    fn next(&mut self) -> Option<FlatEntry> {
        use kiln_cache::Kind;
        loop {
            let (folder, children) = self.open.last_mut()?;
            let Some((name, found)) = children.next() else {
                self.open.pop();
                continue;
            };
            let path = folder.join(name);
            let mut first = None;
            match found.entry.kind {
                Kind::Directory { .. } => {
                    self.open.push((path.clone(), self.view.children(&path).into_iter()));
                }
                Kind::File { .. } if found.entry.link_group != 0 => {
                    let group = (found.origin, found.entry.link_group);
                    first = self.linked.get(&group).cloned();
                    if first.is_none() {
                        self.linked.insert(group, path.clone());
                    }
                }
                _ => {}
            }
            return Some(FlatEntry { path, found, first });
        }
    }
}
