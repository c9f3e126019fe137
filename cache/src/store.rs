//! The store: open, layout, what a dead process left.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{ContentDigest, Digest, LayerId};
use crate::tree::Tree;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database.
    #[error("cannot {operation} in the store's database: {source}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The store was made by a newer Kiln; it is left untouched.
    #[error("the store `{}` was made by a newer version (format {found}, this version knows {known})", path.display())]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// A layer that is not in the store.
    #[error("layer `{id}` is not in the store")]
    MissingLayer {
        /// Its id.
        id: LayerId,
    },
    /// A tree that cannot be read.
    #[error("the tree of layer `{id}` is damaged: {reason}")]
    DamagedTree {
        /// Its layer.
        id: LayerId,
        /// What is wrong.
        reason: String,
    },
    /// A blob that is not what was expected.
    #[error(
        "blob `{expected}` is damaged or was not sent whole: it hashes to `{actual}` ({size} bytes)"
    )]
    DigestMismatch {
        /// What was expected.
        expected: Digest,
        /// What came.
        actual: Digest,
        /// Bytes.
        size: u64,
    },
    /// A document that cannot be read.
    #[error("`{}` is damaged: {reason}", path.display())]
    DamagedFile {
        /// The document.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
/// The store on disk; clones share everything.
#[derive(Debug, Clone)]
pub struct Store {
    path: Arc<PathBuf>,
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    /// Opens the store, making it when it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        unimplemented!()
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn has_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        unimplemented!()
    }
    /// The overlay lower directory.
    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        unimplemented!()
    }
    /// Memoised.
    pub fn layer_tree(&self, id: &LayerId) -> Result<Arc<Tree>, StoreError> {
        unimplemented!()
    }
    /// The content of a layer without reading its tree.
    pub fn layer_content(&self, id: &LayerId) -> Result<Option<ContentDigest>, StoreError> {
        unimplemented!()
    }
    /// A step's layer with this content, if there is one (early cut-off).
    pub fn find_layer(&self, content: &ContentDigest) -> Result<Option<LayerId>, StoreError> {
        unimplemented!()
    }
    /// Makes everything so far survive a power cut (syncfs); for the end of a build, off the path of its steps.
    pub fn sync(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
