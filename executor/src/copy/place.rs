//! The destination: a base with what this step has written on it so far.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_cache::{
    ContentDigest, Entry, Kind, LayerWriter, Metadata, ResolveError, Time, View, ViewEntry, resolve,
};

use super::{CopyError, absolute};

/// The present.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}

/// Where files go.
pub(crate) struct Place<'a> {
    pub(crate) below: &'a dyn View,
    pub(crate) writer: &'a LayerWriter,
}

/// What is at a path.
pub(crate) struct Found {
    pub(crate) entry: Entry,
    /// This step wrote it.
    pub(crate) written: bool,
}

impl Place<'_> {
    /// What is at `path`, links not followed.
    pub(crate) fn find(&self, path: &Path) -> Option<Found> {
        if let Some(entry) = self.writer.entry(path) {
            let hidden = entry.kind == Kind::Whiteout;
            // The layer's root is there from the start and says nothing.
            return (!hidden).then_some(Found { entry, written: !path.as_os_str().is_empty() });
        }
        for ancestor in path.ancestors().skip(1) {
            match self.writer.entry(ancestor).map(|entry| entry.kind) {
                None => {}
                Some(Kind::Directory { opaque: false }) => break,
                Some(_) => return None,
            }
        }
        self.below.entry(path).map(|found| Found { entry: found.entry, written: false })
    }

    /// The clean relative path that `path` leads to, links inside the root followed.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf, CopyError> {
        resolve(self, Path::new(path), true).map_err(|error| match error {
            ResolveError::NotADirectory { path } => {
                CopyError::NotADirectory { path: absolute(&path) }
            }
            error @ ResolveError::TooManyLinks { .. } => CopyError::Resolve(error),
        })
    }

    /// Gives the layer's root the metadata that the base has: they are one directory.
    pub(crate) fn keep_root(&self) -> Result<(), CopyError> {
        let top = Path::new("");
        match self.below.entry(top) {
            Some(root) => self
                .writer
                .directory(top, &root.entry.metadata)
                .map_err(CopyError::io("write", Path::new("/"))),
            None => Ok(()),
        }
    }

    /// Puts the directory at `path` and all above it into the layer: with the metadata of the base
    /// where it has them, else as `made`. Says whether `path` itself is new.
    pub(crate) fn ensure(&self, path: &Path, made: &Metadata) -> Result<bool, CopyError> {
        let mut partial = PathBuf::new();
        let mut is_new = false;
        let mut names = path.iter().peekable();
        while let Some(name) = names.next() {
            partial.push(name);
            let metadata = match self.find(&partial) {
                Some(Found { entry, .. }) if !entry.is_dir() => {
                    return Err(CopyError::NotADirectory { path: absolute(&partial) });
                }
                Some(Found { written: true, .. }) => continue,
                // What gets a new entry gets a new time, as on any file system.
                Some(Found { entry, .. }) => {
                    let changes =
                        names.peek().is_none_or(|next| self.find(&partial.join(next)).is_none());
                    let mtime = if changes { made.mtime } else { entry.metadata.mtime };
                    Metadata { mtime, ..entry.metadata }
                }
                None => {
                    is_new = true;
                    made.clone()
                }
            };
            self.writer
                .directory(&partial, &metadata)
                .map_err(CopyError::io("make the directory", &partial))?;
        }
        Ok(is_new)
    }
}

/// For [`resolve`], which asks for entries alone.
impl View for Place<'_> {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        self.find(path).map(|found| ViewEntry { entry: found.entry, origin: 0, identity: None })
    }

    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        self.below.children(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.below.open(path)
    }

    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        self.below.digest(path)
    }
}
