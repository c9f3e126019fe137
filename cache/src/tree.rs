//! Merkle tree of one file system difference or of a context: path -> kind, mode, owner, size, data, link, attributes.
//!
//! A tree is an arena: nodes in breadth-first order, the children of a directory side by side and sorted by the bytes
//! of their names, so that a look-up is a binary search per component and a walk follows memory. `tree_format.rs` has
//! the encoding on disk, `tree_digest.rs` that of the digests.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::digest::ContentDigest;

/// A time: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds.
    pub secs: i64,
    /// 0..=999_999_999.
    pub nanos: u32,
}

impl Time {
    /// Nanoseconds since 1970.
    #[must_use]
    pub fn as_nanos(self) -> i128 {
        i128::from(self.secs) * 1_000_000_000 + i128::from(self.nanos)
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory; an opaque one hides everything that lower layers have there.
    Directory {
        /// Whether lower layers are hidden.
        opaque: bool,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// blake3 of the bytes.
        data: [u8; 32],
    },
    /// A symbolic link.
    Symlink {
        /// As stored; any bytes.
        target: PathBuf,
    },
    /// A character device (never 0:0, which is a whiteout).
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// The name is deleted from lower layers.
    Whiteout,
}

/// Everything about a file but its kind and data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits, 0..=0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the data; never in a digest.
    pub mtime: Time,
    /// Extended attributes, without overlay's own.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, times, extended attributes.
    pub metadata: Metadata,
    /// 0: none; equal and not 0: hard links of one file (within one tree).
    pub link_group: u32,
}

impl Entry {
    /// A directory with this mode, of root, of 1970: what a missing parent becomes.
    #[must_use]
    pub fn directory(mode: u32) -> Self {
        let metadata = Metadata { mode, ..Metadata::default() };
        Self { kind: Kind::Directory { opaque: false }, metadata, link_group: 0 }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Range<u32>,
    pub(crate) children: Range<u32>,
    pub(crate) entry: Entry,
    /// Of a directory's subtree, hard links aside; other nodes have it only while a tree is made.
    pub(crate) digest: ContentDigest,
    /// Neither a whiteout nor an opaque directory in the subtree.
    pub(crate) plain: bool,
    /// A hard link in the subtree.
    pub(crate) links: bool,
}

/// An immutable Merkle tree: entries by path, children sorted by the bytes of their names.
#[derive(Debug)]
pub struct Tree {
    pub(crate) names: Vec<u8>,
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// A root directory (0755, root) with nothing in it.
    #[must_use]
    pub fn empty() -> Self {
        TreeBuilder::new().finish()
    }

    /// The number of entries, the root not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Whether there is nothing but the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> NodeRef<'_> {
        NodeRef { tree: self, index: 0 }
    }

    /// The node at `path` (`""` is the root).
    #[must_use]
    pub fn node(&self, path: &Path) -> Option<NodeRef<'_>> {
        path.iter().try_fold(self.root(), NodeRef::child)
    }

    /// The entry at `path`.
    #[must_use]
    pub fn lookup(&self, path: &Path) -> Option<&Entry> {
        self.node(path).map(NodeRef::entry)
    }

    /// What is in a directory, sorted by name; nothing when there is no such directory.
    pub fn children(&self, path: &Path) -> impl Iterator<Item = (&OsStr, &Entry)> {
        self.node(path)
            .into_iter()
            .flat_map(NodeRef::children)
            .map(|node| (node.name(), node.entry()))
    }

    /// The content of the subtree at `path`; as if it were a tree of its own.
    #[must_use]
    pub fn digest(&self, path: &Path) -> Option<ContentDigest> {
        self.node(path).map(NodeRef::digest)
    }

    /// The content of everything.
    #[must_use]
    pub fn content(&self) -> ContentDigest {
        self.root().digest()
    }

    /// All entries but the root, with their paths: parents first, sorted by component.
    pub fn walk(&self) -> impl Iterator<Item = (PathBuf, &Entry)> {
        self.root().walk().map(|(path, node)| (path, node.entry()))
    }

    /// Bytes of all files' data, hard links counted once.
    #[must_use]
    pub fn data_size(&self) -> u64 {
        let mut seen = HashSet::new();
        let files = self.nodes.iter().filter_map(|node| match node.entry.kind {
            Kind::File { size, .. } => Some((size, node.entry.link_group)),
            _ => None,
        });
        files
            .filter(|(_, group)| *group == 0 || seen.insert(*group))
            .fold(0_u64, |sum, (size, _)| sum.saturating_add(size))
    }

    /// Bytes that it will take on a disk, about: whole blocks of 4 KiB, one for each directory.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        const BLOCK: u64 = 4096;
        let mut seen = HashSet::new();
        let each = self.nodes.iter().filter_map(|node| match node.entry.kind {
            Kind::File { size, .. } => {
                let group = node.entry.link_group;
                (group == 0 || seen.insert(group)).then(|| size.div_ceil(BLOCK))
            }
            Kind::Directory { .. } => Some(1),
            _ => None,
        });
        each.fold(0_u64, u64::saturating_add).saturating_mul(BLOCK)
    }

    fn name_of(&self, node: &Node) -> &[u8] {
        &self.names[node.name.start as usize..node.name.end as usize]
    }
}

/// A node of a tree; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct NodeRef<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) index: u32,
}

impl<'a> NodeRef<'a> {
    pub(crate) fn node(self) -> &'a Node {
        &self.tree.nodes[self.index as usize]
    }

    /// Its name; of the root, "".
    #[must_use]
    pub fn name(self) -> &'a OsStr {
        OsStr::from_bytes(self.tree.name_of(self.node()))
    }

    /// What it is.
    #[must_use]
    pub fn entry(self) -> &'a Entry {
        &self.node().entry
    }

    /// What is in it, sorted by name.
    pub fn children(self) -> impl DoubleEndedIterator<Item = NodeRef<'a>> + ExactSizeIterator {
        let range = self.node().children.clone();
        let tree = self.tree;
        (range.start as usize..range.end as usize)
            .map(move |index| NodeRef { tree, index: index as u32 })
    }

    /// The child with this name.
    #[must_use]
    pub fn child(self, name: &OsStr) -> Option<NodeRef<'a>> {
        let range = &self.node().children;
        let nodes = &self.tree.nodes[range.start as usize..range.end as usize];
        let found =
            nodes.binary_search_by(|node| self.tree.name_of(node).cmp(name.as_bytes())).ok()?;
        Some(NodeRef { tree: self.tree, index: range.start + found as u32 })
    }

    /// The content of its subtree.
    #[must_use]
    pub fn digest(self) -> ContentDigest {
        self.with_links(self.merkle())
    }

    fn with_links(self, merkle: ContentDigest) -> ContentDigest {
        if !self.node().links {
            return merkle;
        }
        let mut groups = crate::tree_digest::LinkGroups::default();
        for (path, node) in self.walk() {
            groups.add(&path, 0, node.entry().link_group);
        }
        groups.apply(merkle)
    }

    /// The content of what is in this directory, whatever mode and owner it has itself; see
    /// [`crate::View::digest_inside`].
    #[must_use]
    pub fn digest_inside(self) -> ContentDigest {
        let top = Entry::directory(0o755);
        let list = self.children().map(|child| (child.name().as_bytes(), child.merkle()));
        let inside = crate::tree_digest::directory(&top, false, list);
        self.with_links(inside)
    }

    /// The content of its subtree, hard links aside. That of a file costs less to compute than to keep on disk.
    pub(crate) fn merkle(self) -> ContentDigest {
        let node = self.node();
        if node.entry.is_dir() { node.digest } else { crate::tree_digest::leaf(&node.entry) }
    }

    /// Everything beneath it with paths relative to it: parents first, sorted by component.
    pub fn walk(self) -> impl Iterator<Item = (PathBuf, NodeRef<'a>)> {
        let mut stack: Vec<(usize, NodeRef<'a>)> = self.children().rev().map(|n| (0, n)).collect();
        let mut path: Vec<&'a OsStr> = Vec::new();
        std::iter::from_fn(move || {
            let (depth, node) = stack.pop()?;
            path.truncate(depth);
            path.push(node.name());
            stack.extend(node.children().rev().map(|child| (depth + 1, child)));
            Some((path.iter().collect(), node))
        })
    }

    /// Neither a whiteout nor an opaque directory in the subtree.
    pub(crate) fn is_plain(self) -> bool {
        self.node().plain
    }
}

/// Collects entries, in any order, into a tree.
#[derive(Debug)]
pub struct TreeBuilder {
    nodes: Vec<BuildNode>,
}

#[derive(Debug)]
struct BuildNode {
    entry: Entry,
    children: BTreeMap<OsString, u32>,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeBuilder {
    /// The root directory alone: 0755, root, 1970.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root(Entry::directory(0o755))
    }

    pub(crate) fn with_root(entry: Entry) -> Self {
        Self { nodes: vec![BuildNode { entry, children: BTreeMap::new() }] }
    }

    /// Puts an entry at `path` (`""` is the root, which must stay a directory). Missing parents become directories,
    /// 0755 of root; what is beneath stays when a directory replaces a directory, and goes otherwise.
    pub fn insert(&mut self, path: &Path, entry: Entry) {
        let mut at = 0_usize;
        for name in path.iter() {
            at = match self.nodes[at].children.get(name) {
                Some(child) => *child as usize,
                None => self.add(at, name, Entry::directory(0o755)),
            };
        }
        if !entry.is_dir() {
            self.nodes[at].children.clear();
        }
        self.nodes[at].entry = entry;
    }

    fn add(&mut self, parent: usize, name: &OsStr, entry: Entry) -> usize {
        let index = self.nodes.len();
        self.nodes.push(BuildNode { entry, children: BTreeMap::new() });
        let number = u32::try_from(index).expect("a tree has fewer than 2^32 entries");
        self.nodes[parent].children.insert(name.to_owned(), number);
        index
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter()
            .try_fold(0, |at, name| self.nodes[at].children.get(name).map(|child| *child as usize))
    }

    /// Takes an entry away, with everything beneath. The root stays.
    pub fn remove(&mut self, path: &Path) {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(parent) = self.find(parent)
        {
            self.nodes[parent].children.remove(name);
        }
    }

    /// What is at `path`.
    #[must_use]
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.find(path).map(|index| &self.nodes[index].entry)
    }

    pub(crate) fn get_mut(&mut self, path: &Path) -> Option<&mut Entry> {
        self.find(path).map(|index| &mut self.nodes[index].entry)
    }

    /// All directories but the root, parents first.
    pub(crate) fn directories(&self) -> Vec<(PathBuf, Metadata)> {
        let mut found = Vec::new();
        let mut pending = vec![(PathBuf::new(), 0_u32)];
        while let Some((path, index)) = pending.pop() {
            for (name, child) in &self.nodes[index as usize].children {
                let entry = &self.nodes[*child as usize].entry;
                if entry.is_dir() {
                    let path = path.join(name);
                    found.push((path.clone(), entry.metadata.clone()));
                    pending.push((path, *child));
                }
            }
        }
        found
    }

    /// The tree.
    ///
    /// # Panics
    /// With 2^32 entries or 4 GiB of names.
    #[must_use]
    pub fn finish(self) -> Tree {
        let mut old: Vec<Option<BuildNode>> = self.nodes.into_iter().map(Some).collect();
        let root = old[0].take().expect("the root is there");
        let mut arena = Arena::new(root.entry);
        let mut pending = std::collections::VecDeque::from([(0_u32, root.children)]);
        while let Some((parent, children)) = pending.pop_front() {
            arena.open(parent);
            for (name, index) in children {
                let node = old[index as usize].take().expect("a node has one parent");
                let number = arena.push(parent, name.as_bytes(), node.entry);
                if !node.children.is_empty() {
                    pending.push_back((number, node.children));
                }
            }
        }
        arena.finish()
    }
}

/// Fills a tree's arena breadth first: [`Arena::open`] a directory, push all its children, sorted; then the next one.
#[derive(Debug)]
pub(crate) struct Arena {
    names: Vec<u8>,
    nodes: Vec<Node>,
}

impl Arena {
    pub(crate) fn new(root: Entry) -> Self {
        let mut arena = Self { names: Vec::new(), nodes: Vec::new() };
        arena.push_node(0..0, root);
        arena
    }

    fn push_node(&mut self, name: Range<u32>, entry: Entry) {
        let digest = ContentDigest::from_bytes([0; 32]);
        let (plain, links) = (true, false);
        self.nodes.push(Node { name, children: 0..0, entry, digest, plain, links });
    }

    pub(crate) fn open(&mut self, parent: u32) {
        let next = self.nodes.len() as u32;
        self.nodes[parent as usize].children = next..next;
    }

    pub(crate) fn push(&mut self, parent: u32, name: &[u8], entry: Entry) -> u32 {
        let start = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let end = u32::try_from(self.names.len()).expect("names take less than 4 GiB");
        let index = u32::try_from(self.nodes.len()).expect("a tree has fewer than 2^32 entries");
        self.push_node(start..end, entry);
        self.nodes[parent as usize].children.end = index + 1;
        index
    }

    pub(crate) fn finish(mut self) -> Tree {
        crate::tree_digest::fill(&self.names, &mut self.nodes);
        Tree { names: self.names, nodes: self.nodes }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn file(data: &[u8]) -> Entry {
        let kind = Kind::File { size: data.len() as u64, data: *blake3::hash(data).as_bytes() };
        Entry { kind, metadata: Metadata { mode: 0o644, ..Metadata::default() }, link_group: 0 }
    }

    pub(crate) fn sample() -> TreeBuilder {
        let mut builder = TreeBuilder::new();
        builder.insert(Path::new("b/c/d"), file(b"d"));
        builder.insert(Path::new("b/a"), file(b"a"));
        builder.insert(Path::new("a"), file(b""));
        builder
    }

    #[test]
    fn walks_sorted_by_component() {
        let mut builder = sample();
        // Sorted by bytes of the whole path, "b-" would come between "b" and "b/a".
        builder.insert(Path::new("b-"), file(b"x"));
        let tree = builder.finish();
        let paths: Vec<_> = tree.walk().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(paths, ["a", "b", "b/a", "b/c", "b/c/d", "b-"]);
        assert_eq!(tree.len(), 6);
        assert_eq!(tree.data_size(), 3);
        assert!(tree.lookup(Path::new("b/c/d")).unwrap().is_file());
        assert!(tree.lookup(Path::new("b/c/e")).is_none());
        assert!(tree.lookup(Path::new("a/x")).is_none());
        let names: Vec<_> = tree.children(Path::new("b")).map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "c"]);
    }

    #[test]
    fn replaces_and_removes() {
        let mut builder = sample();
        builder.insert(Path::new("b"), file(b"no directory any more"));
        builder.remove(Path::new("a"));
        builder.remove(Path::new("not/there"));
        let tree = builder.finish();
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn very_deep_trees_need_no_stack() {
        let path: PathBuf = std::iter::repeat_n("d", 20_000).collect();
        let mut builder = TreeBuilder::new();
        builder.insert(&path, file(b"x"));
        let tree = builder.finish();
        assert_eq!(tree.walk().count(), 20_000);
        let again = Tree::decode(&tree.encode()).unwrap();
        assert_eq!(again.content(), tree.content());
    }

    fn arbitrary_entry() -> impl Strategy<Value = Entry> {
        let kind = prop_oneof![
            any::<bool>().prop_map(|opaque| Kind::Directory { opaque }),
            (any::<u64>(), any::<[u8; 32]>()).prop_map(|(size, data)| Kind::File { size, data }),
            "[a-z/.]{1,9}".prop_map(|target| Kind::Symlink { target: target.into() }),
            (1..9_u32, any::<u32>()).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
            (any::<u32>(), any::<u32>())
                .prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
            Just(Kind::Fifo),
            Just(Kind::Socket),
            Just(Kind::Whiteout),
        ];
        let xattrs = proptest::collection::btree_map(
            proptest::collection::vec(1..255_u8, 1..6),
            any::<Vec<u8>>(),
            0..2,
        );
        let time =
            (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Time { secs, nanos });
        (kind, 0..0o10000_u32, any::<u32>(), any::<u32>(), time, xattrs).prop_map(
            |(kind, mode, uid, gid, mtime, xattrs)| Entry {
                kind,
                metadata: Metadata { mode, uid, gid, mtime, xattrs },
                link_group: 0,
            },
        )
    }

    pub(crate) fn arbitrary_entries() -> impl Strategy<Value = Vec<(PathBuf, Entry)>> {
        let path = proptest::collection::vec("[abc]", 1..4)
            .prop_map(|names| names.iter().collect::<PathBuf>());
        proptest::collection::vec((path, arbitrary_entry()), 1..12)
    }

    fn build(entries: &[(PathBuf, Entry)]) -> Tree {
        let mut builder = TreeBuilder::new();
        for (path, entry) in entries {
            // A file in the way becomes a directory, as the builder's callers do it.
            for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
                if builder.get(parent).is_some_and(|entry| !entry.is_dir()) {
                    builder.insert(parent, Entry::directory(0o755));
                }
            }
            builder.insert(path, entry.clone());
        }
        builder.finish()
    }

    fn flat(tree: &Tree) -> Vec<(PathBuf, Entry)> {
        tree.walk().map(|(path, entry)| (path, entry.clone())).collect()
    }

    proptest! {
        #[test]
        fn encoding_round_trips(entries in arbitrary_entries()) {
            let tree = build(&entries);
            let again = Tree::decode(&tree.encode()).unwrap();
            prop_assert_eq!(flat(&tree), flat(&again));
            prop_assert_eq!(tree.content(), again.content());
        }

        #[test]
        fn damage_is_found(entries in arbitrary_entries(), place: usize, bit in 0..8_u8) {
            let mut bytes = build(&entries).encode();
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            prop_assert!(Tree::decode(&bytes).is_err());
            bytes.truncate(place);
            prop_assert!(Tree::decode(&bytes).is_err());
        }

        #[test]
        fn times_are_not_content(entries in arbitrary_entries(), secs: i64) {
            let mut touched = entries.clone();
            for (_, entry) in &mut touched {
                entry.metadata.mtime = Time { secs, nanos: 5 };
            }
            prop_assert_eq!(build(&entries).content(), build(&touched).content());
        }

        #[test]
        fn any_change_is_content(entries in arbitrary_entries(), other in arbitrary_entry(), place: usize) {
            let tree = build(&entries);
            let mut changed = flat(&tree);
            let place = place % changed.len();
            let old = changed[place].1.clone();
            // A directory that becomes a file loses what is beneath: not one change.
            prop_assume!(old.is_dir() == other.is_dir());
            let mut same = other.clone();
            same.metadata.mtime = old.metadata.mtime;
            changed[place].1 = other;
            prop_assert_eq!(build(&changed).content() == tree.content(), same == old);
        }
    }
}
