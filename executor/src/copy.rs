//! COPY and ADD as operations on trees: what is selected of the sources, and how it is written into
//! a new layer. No mount is needed: sources and destination are views, the layer is what changes.
//!
//! The rules are BuildKit's (fsutil): a directory gives its contents, a file goes into an existing
//! directory, symbolic links in the destination are resolved inside the root, nested directories
//! take the source's metadata, the destination itself keeps its own.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_cache::{LayerWriter, ResolveError, Time, View};
use thiserror::Error;

use crate::chmod::ChmodError;

pub use crate::chmod::Chmod;
pub use crate::copy::select::{Selection, select};
pub use crate::copy::write::copy;

pub(crate) mod place;
mod select;
mod similar;
mod write;

/// Decides over a relative path; bytes that are no UTF-8 are replaced before.
pub type PathMatch = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What one COPY or ADD asks for, apart from its sources.
#[derive(Clone, Default)]
pub struct CopySpec {
    /// Absolute; a `/` at the end means a directory.
    pub dest: String,
    /// `--chown`, looked up; else files keep their owner and made directories are root's.
    pub owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub chmod: Option<Chmod>,
    /// `--link`: the caller gives an empty view as the base.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`: paths relative to the source directory; asked for each path by itself, so it
    /// must say yes beneath an excluded directory too.
    pub exclude: Option<PathMatch>,
    /// Modification time of inline files and of directories that the copy makes; `None` is now.
    pub time: Option<Time>,
}

impl fmt::Debug for CopySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopySpec").field("dest", &self.dest).finish_non_exhaustive()
    }
}

/// Which files of a view are meant. Paths are relative to the view's root, cleaned; `""` is the root.
#[derive(Clone)]
pub enum SourcePath {
    /// One file or directory, which must exist.
    Plain(PathBuf),
    /// Everything that a pattern matches; nothing is fine.
    Pattern {
        /// Leading directories without wildcards.
        prefix: PathBuf,
        /// Over the whole relative path. What matches is not searched further.
        matches: PathMatch,
        /// How many components a path that matches has, where that is known (without `**`): nothing
        /// deeper is looked at.
        levels: Option<usize>,
    },
    /// `--parents`: files below `pivot` with the directories that lead to them.
    Parents {
        /// What is before `/./`; `""` without.
        pivot: PathBuf,
        /// Over the path relative to the pivot; what is beneath a match belongs to it.
        pattern: PathMatch,
        /// The path relative to the pivot when it has no wildcard: it must exist.
        literal: Option<PathBuf>,
        /// Leading directories of the pattern without wildcards, relative to the pivot.
        prefix: PathBuf,
    },
}

impl fmt::Debug for SourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(path) => f.debug_tuple("Plain").field(path).finish(),
            Self::Pattern { prefix, .. } => f.debug_tuple("Pattern").field(prefix).finish(),
            Self::Parents { pivot, .. } => f.debug_tuple("Parents").field(pivot).finish(),
        }
    }
}

/// One source.
pub enum Source<'a> {
    /// Files of a context, a stage or an image.
    View {
        /// Where they are.
        view: &'a dyn View,
        /// Which.
        path: SourcePath,
        /// As the user wrote it, for errors.
        shown: String,
        /// Whether a regular file that is an archive is unpacked.
        unpack: bool,
    },
    /// A download.
    File {
        /// The name it has in a directory.
        name: String,
        /// Its content.
        file: File,
        /// Permission bits.
        mode: u32,
        /// `Last-Modified`, else 1970.
        mtime: Time,
        /// Whether an archive is unpacked.
        unpack: bool,
    },
    /// A heredoc: 0644, of root.
    Inline {
        /// The name it has in a directory.
        name: &'a str,
        /// Its content.
        data: &'a [u8],
    },
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::View { path, .. } => f.debug_tuple("View").field(path).finish(),
            Self::File { name, .. } => f.debug_tuple("File").field(name).finish(),
            Self::Inline { name, .. } => f.debug_tuple("Inline").field(name).finish(),
        }
    }
}

/// What ADD does with archives.
pub trait Unpack: Send + Sync {
    /// Whether this file is unpacked.
    ///
    /// # Errors
    /// When it cannot be read.
    fn is_archive(&self, file: &mut File) -> io::Result<bool>;

    /// Unpacks into the directory `dest`, which is there.
    ///
    /// # Errors
    /// When the archive is damaged, or the layer cannot be written.
    fn unpack(
        &self,
        file: File,
        below: &dyn View,
        dest: &Path,
        writer: &LayerWriter,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()>;
}

/// Why COPY, ADD or WORKDIR cannot be done. Paths of the image are shown absolute.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A source without wildcards that is not there.
    #[error("\"{shown}\": not found")]
    NotFound {
        /// The source, with a `/` in front.
        shown: String,
        /// A path that is there.
        similar: Option<String>,
    },
    /// A file would have to replace a directory.
    #[error("cannot replace to directory {path} with file")]
    ReplaceDirectory {
        /// The directory.
        path: String,
    },
    /// A directory is needed where something else is.
    #[error("cannot copy to non-directory: {path} is not a directory")]
    NotADirectory {
        /// What is there.
        path: String,
    },
    /// A path with links that lead nowhere.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// `--chmod` cannot be read.
    #[error(transparent)]
    Chmod(#[from] ChmodError),
    /// A file of the context is not any more what it was when its key was computed.
    #[error("`{path}` changed while it was copied")]
    Changed {
        /// Relative to the source's root.
        path: String,
    },
    /// Reading or writing failed.
    #[error("cannot {operation} `{path}`: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl CopyError {
    /// What can be done about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NotFound { similar: Some(similar), .. } => {
                Some(format!("did you mean `{similar}`?"))
            }
            Self::NotFound { .. } => Some(
                "paths are relative to the root of the context or stage; \
                 a .dockerignore may leave the file out"
                    .to_owned(),
            ),
            Self::ReplaceDirectory { path } => {
                Some(format!("remove `{path}` in an earlier step, or choose another destination"))
            }
            Self::NotADirectory { path } => Some(format!(
                "`{path}` exists and is no directory; remove it in an earlier step, \
                 or choose another destination"
            )),
            Self::Changed { .. } => {
                Some("build again when nothing writes to the context any more".to_owned())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the user who builds must be allowed to read it".to_owned())
            }
            Self::Resolve(_) | Self::Chmod(_) | Self::Io { .. } => None,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.display().to_string(), source }
    }
}

/// A path of the image as people write it.
pub(crate) fn absolute(path: &Path) -> String {
    format!("/{}", path.display())
}
