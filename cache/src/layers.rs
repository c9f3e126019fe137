//! A view over a chain of stored layers: what overlay would show, without a mount.
//!
//! A path is looked up from the top layer down, keeping for each component the list of directories that are merged
//! there. A whiteout, an opaque directory or anything that is not a directory ends the list.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::checked::{self, CheckedFile};
use crate::digest::{ContentDigest, LayerId};
use crate::root::{FileKind, Root};
use crate::store::{Store, StoreError};
use crate::tree::{Entry, Kind, NodeRef, Tree};
use crate::tree_digest::{self, LinkGroups};
use crate::view::{View, ViewEntry, file_kind, not_found};

/// A view over a chain of stored layers.
#[derive(Debug)]
pub struct Layers {
    store: Store,
    /// Top to bottom.
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    id: LayerId,
    tree: Arc<Tree>,
    root: OnceLock<Root>,
    /// From the bottom: stays the same when layers are put on top.
    origin: u32,
}

/// What is at one path: the layers (by index) that take part, top first. More than one only for directories.
type Stack<'a> = Vec<(usize, NodeRef<'a>)>;

impl Layers {
    /// A view of `layers`, bottom to top; all must be in the store.
    ///
    /// # Errors
    /// [`StoreError::MissingLayer`] or [`StoreError::DamagedTree`].
    pub fn open(store: &Store, layers: &[LayerId]) -> Result<Self, StoreError> {
        let layers = layers.iter().enumerate().rev().map(|(origin, id)| {
            let tree = store.layer_tree(id)?;
            Ok(Layer { id: id.clone(), tree, root: OnceLock::new(), origin: origin as u32 })
        });
        Ok(Self { store: store.clone(), layers: layers.collect::<Result<_, StoreError>>()? })
    }

    fn roots(&self) -> Stack<'_> {
        self.merge(self.layers.iter().map(|layer| layer.tree.root()).enumerate())
    }

    /// Of candidates for one path, top first, those that can be seen.
    fn merge<'a>(&self, candidates: impl Iterator<Item = (usize, NodeRef<'a>)>) -> Stack<'a> {
        let mut stack = Stack::new();
        for (layer, node) in candidates {
            match node.entry().kind {
                Kind::Whiteout => break,
                Kind::Directory { opaque } => {
                    stack.push((layer, node));
                    if opaque {
                        break;
                    }
                }
                _ => {
                    if stack.is_empty() {
                        stack.push((layer, node));
                    }
                    break;
                }
            }
        }
        stack
    }

    fn child<'a>(&self, stack: &Stack<'a>, name: &OsStr) -> Stack<'a> {
        self.merge(stack.iter().filter_map(|(layer, node)| Some((*layer, node.child(name)?))))
    }

    fn find(&self, path: &Path) -> Option<Stack<'_>> {
        let mut stack = self.roots();
        for name in path.iter() {
            stack = self.child(&stack, name);
            if stack.is_empty() {
                return None;
            }
        }
        // An empty chain has an empty root directory, but no node for it.
        (!stack.is_empty()).then_some(stack)
    }

    fn children_of<'a>(&self, stack: &Stack<'a>) -> Vec<(&'a OsStr, Stack<'a>)> {
        if let [(layer, node)] = stack.as_slice() {
            let children = node.children().map(|child| (child.name(), vec![(*layer, child)]));
            return children.filter(|(_, s)| s[0].1.entry().kind != Kind::Whiteout).collect();
        }
        let mut names: BTreeMap<&'a [u8], Stack<'a>> = BTreeMap::new();
        for (layer, node) in stack {
            for child in node.children() {
                names.entry(child.name().as_bytes()).or_default().push((*layer, child));
            }
        }
        let merged = names
            .into_iter()
            .map(|(name, stack)| (OsStr::from_bytes(name), self.merge(stack.into_iter())));
        merged.filter(|(_, stack)| !stack.is_empty()).collect()
    }

    fn view_entry(&self, stack: &Stack<'_>) -> ViewEntry {
        let (layer, node) = stack[0];
        let mut entry = node.entry().clone();
        if let Kind::Directory { opaque } = &mut entry.kind {
            *opaque = false;
        }
        ViewEntry { entry, origin: self.layers[layer].origin, identity: None }
    }

    /// The digest of a merged subtree, hard links aside. Depth costs no stack: each directory waits in a frame.
    fn merkle<'a>(&self, name: &'a OsStr, stack: &Stack<'a>) -> ContentDigest {
        if let Some(digest) = ready_digest(stack) {
            return digest;
        }
        let mut frames = vec![self.frame(name, stack)];
        loop {
            let frame = frames.last_mut().expect("the loop ends with the first frame");
            if let Some((name, stack)) = frame.rest.next() {
                match ready_digest(&stack) {
                    Some(digest) => frame.done.push((name.as_bytes(), digest)),
                    None => frames.push(self.frame(name, &stack)),
                }
                continue;
            }
            let digest = tree_digest::directory(
                frame.entry,
                false,
                std::mem::take(&mut frame.done).into_iter(),
            );
            let name = frame.name;
            frames.pop();
            match frames.last_mut() {
                Some(parent) => parent.done.push((name.as_bytes(), digest)),
                None => return digest,
            }
        }
    }

    /// A digest with the hard links of the subtree, where it has some.
    fn with_links(&self, stack: &Stack<'_>, digest: ContentDigest) -> ContentDigest {
        if stack.iter().all(|(_, node)| !node.node().links) {
            return digest;
        }
        let mut groups = LinkGroups::default();
        self.visit(stack, |path, layer, entry| {
            groups.add(path, self.layers[layer].origin, entry.link_group);
        });
        groups.apply(digest)
    }

    fn frame<'a>(&self, name: &'a OsStr, stack: &Stack<'a>) -> Frame<'a> {
        let rest = self.children_of(stack).into_iter();
        Frame { name, entry: stack[0].1.entry(), rest, done: Vec::new() }
    }

    /// Everything beneath a stack, parents first, sorted by component.
    fn visit(&self, stack: &Stack<'_>, mut see: impl FnMut(&Path, usize, &Entry)) {
        let mut pending: Vec<(usize, &OsStr, Stack<'_>)> = Vec::new();
        let mut names: Vec<&OsStr> = Vec::new();
        let children = self.children_of(stack).into_iter().rev();
        pending.extend(children.map(|(name, stack)| (0, name, stack)));
        while let Some((depth, name, stack)) = pending.pop() {
            names.truncate(depth);
            names.push(name);
            let path: PathBuf = names.iter().collect();
            see(&path, stack[0].0, stack[0].1.entry());
            let children = self.children_of(&stack).into_iter().rev();
            pending.extend(children.map(|(name, stack)| (depth + 1, name, stack)));
        }
    }

    /// All entries beneath `path` with paths relative to it: parents first, sorted by component.
    #[must_use]
    pub fn walk(&self, path: &Path) -> Vec<(PathBuf, ViewEntry)> {
        let mut found = Vec::new();
        if let Some(stack) = self.find(path) {
            self.visit(&stack, |path, layer, entry| {
                let mut entry = entry.clone();
                if let Kind::Directory { opaque } = &mut entry.kind {
                    *opaque = false;
                }
                let origin = self.layers[layer].origin;
                found.push((path.to_owned(), ViewEntry { entry, origin, identity: None }));
            });
        }
        found
    }
}

struct Frame<'a> {
    name: &'a OsStr,
    entry: &'a Entry,
    rest: std::vec::IntoIter<(&'a OsStr, Stack<'a>)>,
    done: Vec<(&'a [u8], ContentDigest)>,
}

/// The digest of what one layer alone shows as it is.
fn ready_digest(stack: &Stack<'_>) -> Option<ContentDigest> {
    match stack.as_slice() {
        [(_, node)] if node.is_plain() => Some(node.merkle()),
        _ => None,
    }
}

impl View for Layers {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        if self.layers.is_empty() && path.as_os_str().is_empty() {
            return Some(ViewEntry { entry: Entry::directory(0o755), origin: 0, identity: None });
        }
        self.find(path).map(|stack| self.view_entry(&stack))
    }

    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        let Some(stack) = self.find(path) else { return Vec::new() };
        let children = self.children_of(&stack).into_iter();
        children.map(|(name, stack)| (name.to_owned(), self.view_entry(&stack))).collect()
    }

    fn names(&self, path: &Path) -> Vec<(OsString, FileKind)> {
        let Some(stack) = self.find(path) else { return Vec::new() };
        let children = self.children_of(&stack).into_iter();
        children
            .map(|(name, stack)| (name.to_owned(), file_kind(&stack[0].1.entry().kind)))
            .collect()
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let stack = self.find(path).ok_or_else(|| not_found(path))?;
        let layer = &self.layers[stack[0].0];
        let root = match layer.root.get() {
            Some(root) => root,
            None => {
                let root = self.store.layer_root(&layer.id).map_err(io::Error::other)?;
                layer.root.get_or_init(|| root)
            }
        };
        root.open_file(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => {
                let reason = format!("`{}` is not there any more", path.display());
                checked::damaged(&self.store, &layer.id, &reason)
            }
            _ => checked::unreadable(&self.store, &layer.id, &path.display().to_string(), error),
        })
    }

    fn read(&self, path: &Path) -> io::Result<Box<dyn io::Read + '_>> {
        let stack = self.find(path).ok_or_else(|| not_found(path))?;
        let (number, node) = stack[0];
        let file = self.open(path)?;
        let Kind::File { size, data } = node.entry().kind else { return Ok(Box::new(file)) };
        let layer = &self.layers[number].id;
        Ok(Box::new(CheckedFile::new(&self.store, layer, path, file, (size, data))))
    }

    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        if self.layers.is_empty() && path.as_os_str().is_empty() {
            return Ok(Tree::empty().content());
        }
        let stack = self.find(path).ok_or_else(|| not_found(path))?;
        Ok(self.with_links(&stack, self.merkle(OsStr::new(""), &stack)))
    }

    fn digest_inside(&self, path: &Path) -> io::Result<ContentDigest> {
        if self.layers.is_empty() && path.as_os_str().is_empty() {
            return Ok(Tree::empty().content());
        }
        let stack = self.find(path).ok_or_else(|| not_found(path))?;
        let top = Entry::directory(0o755);
        let children = self.children_of(&stack).into_iter();
        let children: Vec<_> =
            children.map(|(name, stack)| (name.as_bytes(), self.merkle(name, &stack))).collect();
        Ok(self.with_links(&stack, tree_digest::directory(&top, false, children.into_iter())))
    }
}
