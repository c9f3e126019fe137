//! Layers while they are made.
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::digest::LayerId;
use crate::root::Root;
use crate::store::{Store, StoreError};
use crate::tree::{Entry, Kind, Metadata, Tree};
use crate::view::{Known, View};

/// A layer that is being made, in `tmp/`; dropping it removes it.
#[derive(Debug)]
pub struct LayerDraft {}
/// Makes files in a new layer; many threads may use it at once.
#[derive(Debug)]
pub struct LayerWriter {}
/// What was written: size and blake3 of the data. Compare with what a key was computed from: a file of a context may
/// have changed meanwhile, and the tree describes what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub data: [u8; 32],
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    pub fn draft(&self) -> Result<LayerDraft, StoreError> {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl LayerDraft {
    pub fn fs_path(&self) -> &Path {
        unimplemented!()
    }
    pub fn work_path(&self) -> &Path {
        unimplemented!()
    }
    pub fn fs_root(&self) -> &Root {
        unimplemented!()
    }
    pub fn writer(&self) -> LayerWriter {
        unimplemented!()
    }
    /// After RUN: reads the overlay upper directory.
    pub fn scan(&self) -> io::Result<Tree> {
        unimplemented!()
    }
    /// Idempotent: when `id` exists already, this draft is removed and the stored tree returned.
    pub fn publish(self, id: LayerId, tree: Tree) -> Result<Arc<Tree>, StoreError> {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl LayerWriter {
    /// What has been written at `path` so far.
    pub fn entry(&self, path: &Path) -> Option<Entry> {
        unimplemented!()
    }
    /// Missing parents of `path` are made with the metadata they have in `below`, else 0755 root:root.
    pub fn parents(&self, path: &Path, below: &dyn View) -> io::Result<()> {
        unimplemented!()
    }
    /// Makes a directory or sets the metadata of one that is there. Applied to the disk by `finish`.
    pub fn directory(&self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        unimplemented!()
    }
    /// Hides what lower layers have in a directory of this layer.
    pub fn opaque(&self, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    pub fn file(
        &self,
        path: &Path,
        metadata: &Metadata,
        content: &mut dyn Read,
    ) -> io::Result<Written> {
        unimplemented!()
    }
    pub fn file_from(
        &self,
        path: &Path,
        metadata: &Metadata,
        source: &File,
        known: Option<&Known>,
    ) -> io::Result<Written> {
        unimplemented!()
    }
    pub fn symlink(&self, path: &Path, metadata: &Metadata, target: &Path) -> io::Result<()> {
        unimplemented!()
    }
    /// `existing` must have been written by this writer.
    pub fn hardlink(&self, path: &Path, existing: &Path) -> io::Result<()> {
        unimplemented!()
    }
    /// CharDevice, BlockDevice, Fifo (Socket becomes an empty file).
    pub fn special(&self, path: &Path, metadata: &Metadata, kind: &Kind) -> io::Result<()> {
        unimplemented!()
    }
    pub fn whiteout(&self, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    /// Forgets what was written at `path`, with everything beneath.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    /// Sets modes and times of directories, last; the tree of everything written.
    pub fn finish(self) -> io::Result<Tree> {
        unimplemented!()
    }
}
