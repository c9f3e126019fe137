//! Cache mounts in a cache: a tree of what is in one, and packs of its files' data.
//!
//! Three kinds of blobs, all named by the index:
//! - the tree ([`kiln_cache::Tree::encode`], zstd): paths, modes, owners, times, links, and the blake3 of every file;
//! - the contents (JSON, zstd): for each pack the blake3 and the size of what is in it, in order;
//! - packs: data of files, one after the other, without names. One that is mostly still needed stays as it is from one
//!   export to the next ([`super::pack`]), so that only what is new is sent.

use kiln_cache::{ContentDigest, Descriptor};
use serde::{Deserialize, Serialize};

use super::CacheError;
use crate::archive::Compression;
use crate::json::{self, DocumentError};
use crate::limits;

/// The media type of a tree.
pub(super) const TREE: &str = "application/vnd.kiln.cache.mount.tree.v1+zstd";
/// The media type of contents.
pub(super) const CONTENTS: &str = "application/vnd.kiln.cache.mount.contents.v1+json+zstd";
/// The media type of a pack that is not compressed; of others, with `+gzip` or `+zstd` behind it.
pub(super) const PACK: &str = "application/vnd.kiln.cache.mount.pack.v1";

const WHAT: &str = "list of a cache mount's files";
const VERSION: u32 = 1;

/// A cache mount in a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedMount {
    /// The id, as people see it.
    pub id: String,
    /// Which of the mounts with this id: [`kiln_cache::CacheMountRequest::name`].
    pub name: String,
    /// When a step used it last, where it was exported: seconds since 1970.
    pub used: i64,
    /// What is in it.
    pub tree: Descriptor,
    /// What is in its packs.
    pub contents: Descriptor,
    /// Its packs.
    pub packs: Vec<Descriptor>,
}

impl CachedMount {
    /// All its blobs.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.tree, &self.contents].into_iter().chain(&self.packs)
    }
}

/// Data of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(pub ContentDigest, pub u64);

/// A pack and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The blob.
    pub blob: Descriptor,
    /// What is in it, in order.
    pub files: Vec<Content>,
}

impl Pack {
    /// Bytes before compression.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, Content(_, size)| sum.saturating_add(*size))
    }

    /// Whether it is compressed like that, whatever the level.
    #[must_use]
    pub fn is_compressed_by(&self, compression: Compression) -> bool {
        self.blob.media_type == media_type(compression)
    }
}

/// The media type of packs so compressed.
pub(super) fn media_type(compression: Compression) -> String {
    match compression {
        Compression::None => PACK.to_owned(),
        Compression::Gzip(_) => format!("{PACK}+gzip"),
        Compression::Zstd(_) => format!("{PACK}+zstd"),
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    packs: Vec<Vec<Content>>,
}

/// The document that says what is in packs.
pub(super) fn write_contents(packs: &[Pack]) -> Vec<u8> {
    let packs = packs.iter().map(|pack| pack.files.clone()).collect();
    json::compact(&Contents { version: VERSION, packs })
}

/// Reads it, with the packs that the index names.
pub(super) fn read_contents(bytes: &[u8], packs: &[Descriptor]) -> Result<Vec<Pack>, CacheError> {
    let contents: Contents = json::parse(WHAT, bytes, limits::MOUNT_DOCUMENT_BYTES)?;
    let malformed = |reason: &str| Err(DocumentError::malformed(WHAT, reason).into());
    if contents.version != VERSION {
        return malformed("another version of Kiln wrote it");
    }
    if contents.packs.len() != packs.len() {
        return malformed("it is of other packs");
    }
    let both = packs.iter().zip(contents.packs);
    Ok(both.map(|(blob, files)| Pack { blob: blob.clone(), files }).collect())
}
