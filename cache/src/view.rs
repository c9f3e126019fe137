//! A read-only file system made of trees: COPY, keys, exports, user look-ups and diffs read it; no mount needed.
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{ContentDigest, LayerId};
use crate::root::FileKind;
use crate::store::{Store, StoreError};
use crate::tree::Entry;

/// What tells one state of a file on disk from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
}

/// What a view knows of a file's data before it is read again; [`crate::LayerWriter::file_from`] takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub data: [u8; 32],
    /// The state of the file that was hashed; none for the store's own files, which never change.
    pub identity: Option<FileIdentity>,
}

/// An entry of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewEntry {
    /// The entry; never a whiteout, never opaque.
    pub entry: Entry,
    /// Which tree of the view it is from: `(origin, link_group)` names hard links of one file.
    pub origin: u32,
    /// The state of the file that was hashed (contexts only).
    pub identity: Option<FileIdentity>,
}

impl ViewEntry {
    /// What is known of a regular file's data.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        unimplemented!()
    }
}

/// A read-only file system. Paths are relative, `""` is the root; no symbolic link is followed.
pub trait View: Send + Sync {
    /// What is at `path` (lstat).
    fn entry(&self, path: &Path) -> Option<ViewEntry>;
    /// What is in a directory, sorted by name; of a context, this reads the whole subtree.
    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)>;
    /// The names in a directory, sorted, without reading any file's data: for wildcards.
    fn names(&self, path: &Path) -> Vec<(OsString, FileKind)> {
        unimplemented!("{path:?}")
    }
    /// Opens a regular file.
    ///
    /// # Errors
    /// When it is none or cannot be opened.
    fn open(&self, path: &Path) -> io::Result<File>;
    /// The content of a subtree.
    ///
    /// # Errors
    /// `NotFound` when there is nothing; what reading a context says.
    fn digest(&self, path: &Path) -> io::Result<ContentDigest>;
}

/// Why a path cannot be resolved inside a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// More than 255 symbolic links.
    #[error("too many levels of symbolic links in `{}`", path.display())]
    TooManyLinks {
        /// What was asked for.
        path: PathBuf,
    },
    /// A component that must be a directory is something else.
    #[error("`{}` is not a directory", path.display())]
    NotADirectory {
        /// The component.
        path: PathBuf,
    },
}

/// Resolves `path` (a leading `/` is ignored) inside the view: symbolic links, absolute ones too, stay inside, and so
/// does `..`. Components that do not exist are kept as they are. The result is a clean relative path.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(view: &dyn View, path: &Path, follow_last: bool) -> Result<PathBuf, ResolveError> {
    unimplemented!("{path:?} {follow_last} {}", view.entry(path).is_some())
}

/// A view over a chain of stored layers.
#[derive(Debug)]
pub struct Layers {}
impl Layers {
    /// `layers` bottom to top; all must be in the store.
    ///
    /// # Errors
    /// [`StoreError::MissingLayer`] and damaged trees.
    pub fn open(store: &Store, layers: &[LayerId]) -> Result<Self, StoreError> {
        unimplemented!("{} {layers:?}", store.path().display())
    }
}
impl View for Layers {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        unimplemented!("{path:?}")
    }
    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        unimplemented!("{path:?}")
    }
    fn open(&self, path: &Path) -> io::Result<File> {
        unimplemented!("{path:?}")
    }
    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        unimplemented!("{path:?}")
    }
}

/// What a filter says of a path in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Include,
    /// Neither it nor anything beneath.
    Exclude,
    /// A directory that is there only if something beneath is.
    ExcludeButDescend,
}

/// Decides what of a directory belongs to the context (`.dockerignore`).
pub trait ScanFilter: Send + Sync {
    /// Asked for each path whose parent is descended into; never for the root.
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict;
}

/// A view over a directory of the host: read when asked, filtered, owner and group 0, sockets as empty files, no
/// extended attributes, no hard links.
pub struct Context {}
impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}
impl Context {
    /// `name` is for messages.
    ///
    /// # Errors
    /// When `dir` cannot be opened.
    pub fn open(
        store: &Store,
        dir: &Path,
        name: &str,
        filter: Arc<dyn ScanFilter>,
    ) -> Result<Self, StoreError> {
        unimplemented!(
            "{} {dir:?} {name} {}",
            store.path().display(),
            filter.verdict(dir, true) as u8
        )
    }
}
impl View for Context {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        unimplemented!("{path:?}")
    }
    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        unimplemented!("{path:?}")
    }
    fn open(&self, path: &Path) -> io::Result<File> {
        unimplemented!("{path:?}")
    }
    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        unimplemented!("{path:?}")
    }
}
