//! A tree as bytes, for `trees/<id>`.
//!
//! ```text
//! "kiln-tree" version:u8 (1)
//! node count, bytes of names
//! names, in the order of the nodes
//! nodes breadth first: tag mode uid gid seconds nanoseconds [xattrs] [link group] name length, then by kind
//!   directory  child count, digest:32
//!   file       size, blake3(data):32
//!   symlink    length, target
//!   device     major, minor
//! blake3 of all that:32
//! ```
//!
//! Numbers are LEB128 (seconds zigzag). The tag is the kind in the low 4 bits, 16: opaque, 32: has attributes, 64: has
//! a link group. Digests of directories are stored, those of files computed when somebody asks.
//! A reader knows its own version only: a tree can be made again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::digest::ContentDigest;
use crate::tree::{Entry, Kind, Metadata, Node, Time, Tree};

const MAGIC: &[u8] = b"kiln-tree\x01";
const OPAQUE: u8 = 16;
const XATTRS: u8 = 32;
const LINKED: u8 = 64;

/// Why bytes are no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree is damaged: {0}")]
pub struct DecodeTreeError(&'static str);

pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_entry(out: &mut Vec<u8>, node: &Node) {
    let Entry { kind, metadata, link_group } = &node.entry;
    let (kind_bits, opaque) = match kind {
        Kind::Directory { opaque } => (1, *opaque),
        Kind::File { .. } => (2, false),
        Kind::Symlink { .. } => (3, false),
        Kind::CharDevice { .. } => (4, false),
        Kind::BlockDevice { .. } => (5, false),
        Kind::Fifo => (6, false),
        Kind::Socket => (7, false),
        Kind::Whiteout => (8, false),
    };
    let mut tag = kind_bits;
    tag |= if opaque { OPAQUE } else { 0 };
    tag |= if metadata.xattrs.is_empty() { 0 } else { XATTRS };
    tag |= if *link_group == 0 { 0 } else { LINKED };
    out.push(tag);
    put(out, u64::from(metadata.mode));
    put(out, u64::from(metadata.uid));
    put(out, u64::from(metadata.gid));
    put(out, ((metadata.mtime.secs << 1) ^ (metadata.mtime.secs >> 63)) as u64);
    put(out, u64::from(metadata.mtime.nanos));
    if tag & XATTRS != 0 {
        put(out, metadata.xattrs.len() as u64);
        for (name, value) in &metadata.xattrs {
            put_bytes(out, name);
            put_bytes(out, value);
        }
    }
    if tag & LINKED != 0 {
        put(out, u64::from(*link_group));
    }
    put(out, u64::from(node.name.end - node.name.start));
    match kind {
        Kind::Directory { .. } => {
            put(out, u64::from(node.children.end - node.children.start));
            out.extend_from_slice(node.digest.as_bytes());
        }
        Kind::File { size, data } => {
            put(out, *size);
            out.extend_from_slice(data);
        }
        Kind::Symlink { target } => put_bytes(out, target.as_os_str().as_bytes()),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            put(out, u64::from(*major));
            put(out, u64::from(*minor));
        }
        Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
    }
}

/// Reads numbers and bytes, never past the end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeTreeError> {
        let (head, tail) =
            self.0.split_at_checked(count).ok_or(DecodeTreeError("it ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeTreeError> {
        let (first, tail) = self.0.split_first().ok_or(DecodeTreeError("it ends early"))?;
        self.0 = tail;
        Ok(*first)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeTreeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeTreeError("a number is too long"))
    }

    pub(crate) fn small(&mut self) -> Result<u32, DecodeTreeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeTreeError("a number is too large"))
    }

    pub(crate) fn counted(&mut self) -> Result<&'a [u8], DecodeTreeError> {
        let count = self.small()?;
        self.bytes(count as usize)
    }

    pub(crate) fn hash(&mut self) -> Result<[u8; 32], DecodeTreeError> {
        Ok(self.bytes(32)?.try_into().expect("32 bytes"))
    }

    fn metadata(&mut self, tag: u8) -> Result<Metadata, DecodeTreeError> {
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let secs = self.number()?;
        let secs = (secs >> 1) as i64 ^ -((secs & 1) as i64);
        let mtime = Time { secs, nanos: self.small()? };
        let mut xattrs = BTreeMap::new();
        if tag & XATTRS != 0 {
            for _ in 0..self.small()? {
                let name = self.counted()?.to_vec();
                xattrs.insert(name, self.counted()?.to_vec());
            }
        }
        Ok(Metadata { mode, uid, gid, mtime, xattrs })
    }

    fn kind(&mut self, tag: u8) -> Result<Kind, DecodeTreeError> {
        Ok(match tag & 15 {
            1 => Kind::Directory { opaque: tag & OPAQUE != 0 },
            2 => Kind::File { size: self.number()?, data: self.hash()? },
            3 => {
                let target = OsString::from_vec(self.counted()?.to_vec());
                Kind::Symlink { target: target.into() }
            }
            4 => Kind::CharDevice { major: self.small()?, minor: self.small()? },
            5 => Kind::BlockDevice { major: self.small()?, minor: self.small()? },
            6 => Kind::Fifo,
            7 => Kind::Socket,
            8 => Kind::Whiteout,
            _ => return Err(DecodeTreeError("an entry is of no known kind")),
        })
    }
}

impl Tree {
    /// The tree as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.names.len() + self.nodes.len() * 56);
        out.extend_from_slice(MAGIC);
        put(&mut out, self.nodes.len() as u64);
        put_bytes(&mut out, &self.names);
        for node in &self.nodes {
            put_entry(&mut out, node);
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// The tree that [`Tree::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeTreeError> {
        let body = bytes.len().checked_sub(32).ok_or(DecodeTreeError("it ends early"))?;
        let (body, hash) = bytes.split_at(body);
        let mut reader = Reader(body);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return Err(DecodeTreeError("it is no tree, or of another version"));
        }
        if blake3::hash(body).as_bytes() != hash {
            return Err(DecodeTreeError("its checksum is wrong"));
        }
        let count = reader.small()? as usize;
        let names = reader.counted()?.to_vec();
        // A node takes 7 bytes at least: a count that lies allocates nothing.
        let mut nodes: Vec<Node> = Vec::with_capacity(count.min(body.len() / 7 + 1));
        let (mut name_end, mut child_end) = (0_u32, 1_u32);
        for _ in 0..count {
            let tag = reader.byte()?;
            let metadata = reader.metadata(tag)?;
            let link_group = if tag & LINKED != 0 { reader.small()? } else { 0 };
            let start = name_end;
            let wrong = DecodeTreeError("its names do not add up");
            name_end = start.checked_add(reader.small()?).ok_or(wrong)?;
            let (mut children, mut digest) = (0..0, ContentDigest::from_bytes([0; 32]));
            if tag & 15 == 1 {
                let wrong = DecodeTreeError("its directories do not add up");
                let end = child_end.checked_add(reader.small()?).ok_or(wrong)?;
                children = child_end..end;
                child_end = end;
                digest = ContentDigest::from_bytes(reader.hash()?);
            }
            let entry = Entry { kind: reader.kind(tag)?, metadata, link_group };
            let (plain, links) = (true, false);
            let name = start..name_end;
            nodes.push(Node { name, children, entry, digest, plain, links });
        }
        let whole = reader.0.is_empty()
            && name_end as usize == names.len()
            && child_end as usize == nodes.len()
            && nodes.first().is_some_and(|root| root.entry.is_dir());
        if !whole {
            return Err(DecodeTreeError("its parts do not add up"));
        }
        finish(&names, &mut nodes)?;
        Ok(Self { names, nodes })
    }
}

/// What is not stored: marks.
fn finish(names: &[u8], nodes: &mut [Node]) -> Result<(), DecodeTreeError> {
    for (index, node) in nodes.iter().enumerate() {
        let children = &node.children;
        if !children.is_empty() && children.start as usize <= index {
            return Err(DecodeTreeError("a directory stands in itself"));
        }
    }
    nodes.iter_mut().for_each(|node| {
        if !node.entry.is_dir() {
            node.plain = node.entry.kind != Kind::Whiteout;
            node.links = node.entry.link_group != 0;
        }
    });
    crate::tree_digest::fill_directories(names, nodes, false);
    Ok(())
}
