//! The content digests of a tree: what is hashed, byte for byte.
//!
//! Version 1, blake3 in key derivation mode with the context string below:
//!
//! ```text
//! node      = kind:u8 mode:u32 uid:u32 gid:u32 xattrs rest          (integers little-endian)
//! xattrs    = count:u32 (length:u32 name length:u32 value)*         sorted by name
//! rest      = file      size:u64 blake3(data):32
//!             symlink   length:u32 target
//!             device    major:u32 minor:u32
//!             directory opaque:u8 count:u32 (length:u32 name digest:32)*   sorted by name
//! subtree   = node, when fewer than two of its files are hard links of one another, else
//!             0xff node's digest:32 (count:u32 (length:u32 path)*)* ; groups and paths sorted, relative to the subtree
//! ```
//!
//! Times, inode numbers and the order of reading are not in it. Change anything: new context string, new test vectors.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::digest::ContentDigest;
use crate::tree::{Entry, Kind, Node};

const CONTEXT: &str = "kiln 2026-11 content of files v1";
/// Below this many nodes, threads cost more than they save.
const PARALLEL: usize = 2048;

fn hash(bytes: &[u8]) -> ContentDigest {
    thread_local! {
        /// Deriving the key costs as much as hashing a small node.
        static START: blake3::Hasher = blake3::Hasher::new_derive_key(CONTEXT);
    }
    START.with(|start| start.clone().update(bytes).finalize().into())
}

fn push_u32(out: &mut Vec<u8>, value: usize) {
    let value = u32::try_from(value).expect("names, links and attributes are shorter than 4 GiB");
    out.extend_from_slice(&value.to_le_bytes());
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn kind_byte(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory { .. } => 1,
        Kind::File { .. } => 2,
        Kind::Symlink { .. } => 3,
        Kind::CharDevice { .. } => 4,
        Kind::BlockDevice { .. } => 5,
        Kind::Fifo => 6,
        Kind::Socket => 7,
        Kind::Whiteout => 8,
    }
}

fn push_head(out: &mut Vec<u8>, entry: &Entry) {
    let metadata = &entry.metadata;
    out.push(kind_byte(&entry.kind));
    out.extend_from_slice(&metadata.mode.to_le_bytes());
    out.extend_from_slice(&metadata.uid.to_le_bytes());
    out.extend_from_slice(&metadata.gid.to_le_bytes());
    push_u32(out, metadata.xattrs.len());
    for (name, value) in &metadata.xattrs {
        push_bytes(out, name);
        push_bytes(out, value);
    }
}

/// The digest of anything but a directory.
pub(crate) fn leaf(entry: &Entry) -> ContentDigest {
    let mut out = Vec::with_capacity(96);
    push_head(&mut out, entry);
    match &entry.kind {
        Kind::File { size, data } => {
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(data);
        }
        Kind::Symlink { target } => push_bytes(&mut out, target.as_os_str().as_bytes()),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            out.extend_from_slice(&major.to_le_bytes());
            out.extend_from_slice(&minor.to_le_bytes());
        }
        Kind::Directory { .. } | Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
    }
    hash(&out)
}

/// The digest of a directory, from its children's, sorted by name.
pub(crate) fn directory<'n>(
    entry: &Entry,
    opaque: bool,
    children: impl ExactSizeIterator<Item = (&'n [u8], ContentDigest)>,
) -> ContentDigest {
    let mut out = Vec::with_capacity(64 + children.len() * 56);
    push_head(&mut out, entry);
    out.push(u8::from(opaque));
    push_u32(&mut out, children.len());
    for (name, digest) in children {
        push_bytes(&mut out, name);
        out.extend_from_slice(digest.as_bytes());
    }
    hash(&out)
}

/// Digests and marks of all nodes; children stand after their parents.
pub(crate) fn fill(names: &[u8], nodes: &mut [Node]) {
    let leaf_node = |node: &mut Node| {
        if !node.entry.is_dir() {
            node.digest = leaf(&node.entry);
            node.plain = node.entry.kind != Kind::Whiteout;
            node.links = node.entry.link_group != 0;
        }
    };
    if nodes.len() < PARALLEL {
        nodes.iter_mut().for_each(leaf_node);
    } else {
        nodes.par_iter_mut().with_min_len(PARALLEL / 4).for_each(leaf_node);
    }
    fill_directories(names, nodes, true);
}

/// Marks of all directories and, unless they were read from disk, their digests.
pub(crate) fn fill_directories(names: &[u8], nodes: &mut [Node], digests: bool) {
    for index in (0..nodes.len()).rev() {
        let (head, tail) = nodes.split_at_mut(index + 1);
        let node = &mut head[index];
        let Kind::Directory { opaque } = node.entry.kind else { continue };
        let first = index + 1;
        let range = node.children.start as usize..node.children.end as usize;
        let children = if range.is_empty() {
            &tail[..0]
        } else {
            &tail[range.start - first..range.end - first]
        };
        node.plain = !opaque && children.iter().all(|child| child.plain);
        node.links = children.iter().any(|child| child.links);
        if digests {
            let list = children.iter().map(|child| {
                (&names[child.name.start as usize..child.name.end as usize], child.digest)
            });
            node.digest = directory(&node.entry, opaque, list);
        }
    }
}

/// Hard links within a subtree, for its digest: files with the same (origin, group) are one file.
#[derive(Debug, Default)]
pub(crate) struct LinkGroups(HashMap<(u32, u32), Vec<PathBuf>>);

impl LinkGroups {
    pub(crate) fn add(&mut self, path: &Path, origin: u32, group: u32) {
        if group != 0 {
            self.0.entry((origin, group)).or_default().push(path.to_owned());
        }
    }

    /// The digest of a subtree whose node has the digest `node`.
    pub(crate) fn apply(self, node: ContentDigest) -> ContentDigest {
        let mut groups: Vec<Vec<PathBuf>> =
            self.0.into_values().filter(|paths| paths.len() > 1).collect();
        if groups.is_empty() {
            return node;
        }
        groups.iter_mut().for_each(|paths| paths.sort_unstable());
        groups.sort_unstable();
        let mut out = vec![0xff];
        out.extend_from_slice(node.as_bytes());
        for paths in &groups {
            push_u32(&mut out, paths.len());
            for path in paths {
                push_bytes(&mut out, path.as_os_str().as_bytes());
            }
        }
        hash(&out)
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::tests::{file, sample};
    use crate::tree::{Entry, Kind, Metadata, Tree};
    use std::path::Path;

    /// Stores and keys on every machine depend on these; a change needs a new context string.
    #[test]
    fn vectors() {
        let check = |tree: &Tree, expect: &str| assert_eq!(tree.content().to_string(), expect);
        check(&Tree::empty(), "8c0dda474c2e4813de74bfccdaac832cea3398ae4d4c68845039292f59828527");
        check(
            &sample().finish(),
            "b3f087b4cc7e4cba7d47f50f00ef120250dfe04aea7a41fbaa98b3d26a2137d6",
        );
        let mut builder = sample();
        let metadata = Metadata { mode: 0o777, uid: 1, gid: 2, ..Metadata::default() };
        let kind = Kind::Symlink { target: "../x".into() };
        builder.insert(Path::new("link"), Entry { kind, metadata, link_group: 0 });
        check(
            &builder.finish(),
            "32ff1baa2423cc219bcd5fde92c24b8e801734878a5f6013a68ce9839619b1d7",
        );
    }

    #[test]
    fn hard_links_are_content() {
        let linked = |group: [u32; 3]| {
            let mut builder = sample();
            for (name, group) in ["x", "y", "d/z"].into_iter().zip(group) {
                builder.insert(Path::new(name), Entry { link_group: group, ..file(b"same") });
            }
            builder.finish()
        };
        let none = linked([0, 0, 0]).content();
        assert_eq!(linked([1, 0, 2]).content(), none, "groups of one are no links");
        assert_ne!(linked([1, 1, 0]).content(), none);
        assert_ne!(linked([1, 1, 0]).content(), linked([1, 0, 1]).content());
        assert_eq!(linked([1, 1, 0]).content(), linked([7, 7, 0]).content());
        let tree = linked([1, 0, 1]);
        let plain = linked([0, 0, 0]);
        assert_eq!(tree.digest(Path::new("d")), plain.digest(Path::new("d")));
        assert_eq!(tree.digest(Path::new("x")), plain.digest(Path::new("x")));
    }
}
