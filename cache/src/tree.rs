//! Merkle tree of one file system difference or context.
use std::collections::BTreeMap;
use std::ffi::OsStr;
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

/// An immutable Merkle tree: entries by path, children sorted by the bytes of their names.
#[derive(Debug)]
pub struct Tree {}
/// A node of a tree; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct NodeRef<'a> {
    tree: &'a Tree,
    index: u32,
}
/// Collects entries in any order into a tree.
#[derive(Debug)]
pub struct TreeBuilder {}
/// Why bytes are no tree.
#[derive(Debug, thiserror::Error)]
#[error("the tree is damaged: {reason}")]
pub struct DecodeTreeError {
    reason: &'static str,
}

#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Tree {
    pub fn empty() -> Self {
        unimplemented!()
    }
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    pub fn lookup(&self, path: &Path) -> Option<&Entry> {
        unimplemented!()
    }
    pub fn children(&self, path: &Path) -> impl Iterator<Item = (&OsStr, &Entry)> {
        std::iter::empty()
    }
    pub fn digest(&self, path: &Path) -> Option<ContentDigest> {
        unimplemented!()
    }
    pub fn content(&self) -> ContentDigest {
        unimplemented!()
    }
    /// Parents first, sorted; the root is "".
    pub fn walk(&self) -> impl Iterator<Item = (PathBuf, &Entry)> {
        std::iter::empty()
    }
    pub fn root(&self) -> NodeRef<'_> {
        unimplemented!()
    }
    pub fn node(&self, path: &Path) -> Option<NodeRef<'_>> {
        unimplemented!()
    }
    /// Sum of the files' sizes, hard links once.
    pub fn data_size(&self) -> u64 {
        unimplemented!()
    }
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeTreeError> {
        unimplemented!()
    }
}
#[expect(missing_docs, reason = "first landing")]
impl<'a> NodeRef<'a> {
    pub fn name(self) -> &'a OsStr {
        unimplemented!()
    }
    pub fn entry(self) -> &'a Entry {
        unimplemented!()
    }
    pub fn children(self) -> impl Iterator<Item = NodeRef<'a>> {
        std::iter::empty()
    }
}
#[expect(missing_docs, clippy::new_without_default, unused_variables, reason = "first landing")]
impl TreeBuilder {
    /// The root directory alone, 0755.
    pub fn new() -> Self {
        unimplemented!()
    }
    /// Missing parents become directories, 0755 root:root.
    pub fn insert(&mut self, path: &Path, entry: Entry) {
        unimplemented!()
    }
    pub fn remove(&mut self, path: &Path) {
        unimplemented!()
    }
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        unimplemented!()
    }
    pub fn finish(self) -> Tree {
        unimplemented!()
    }
}
