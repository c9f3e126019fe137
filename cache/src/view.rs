//! A read-only file system made of trees: COPY, keys, exports, user look-ups and diffs read it; no mount needed.
//!
//! [`crate::Layers`] is one over stored layers, [`crate::Context`] one over a directory of the host.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::digest::ContentDigest;
use crate::root::{FileKind, Stat};
use crate::tree::{Entry, Kind, Time};

/// From this size on a file whose data is known is copied inside the kernel, without hashing it again.
pub(crate) const LARGE: u64 = 1024 * 1024;

/// What tells one state of a file on disk from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime: Time,
    pub ctime: Time,
}

impl FileIdentity {
    /// Of what `stat` tells.
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        let Stat { device, inode, size, mtime, ctime, .. } = *stat;
        Self { device, inode, size, mtime, ctime }
    }
}

/// What a view knows of a file's data before it is read again; [`crate::LayerWriter::file_from`] takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub data: [u8; 32],
    /// The state of the file that was hashed; none for the store's own files, which never change, and for small ones,
    /// which are hashed again when they are copied.
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
        match self.entry.kind {
            Kind::File { size, data } => Some(Known { size, data, identity: self.identity }),
            _ => None,
        }
    }

    /// Names the file that several hard links share; `None` for one without.
    #[must_use]
    pub fn link(&self) -> Option<(u32, u32)> {
        (self.entry.link_group != 0).then_some((self.origin, self.entry.link_group))
    }
}

/// A read-only file system. Paths are relative, `""` is the root; no symbolic link is followed, and a path that is not
/// made of plain names leads to nothing.
pub trait View: Send + Sync {
    /// What is at `path` (lstat). Of a context, this hashes the file if nobody has yet.
    fn entry(&self, path: &Path) -> Option<ViewEntry>;

    /// What is in a directory, sorted by name. Of a context, this reads the whole subtree.
    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)>;

    /// The names in a directory, sorted, without reading any file's data: for wildcards.
    fn names(&self, path: &Path) -> Vec<(OsString, FileKind)> {
        let children = self.children(path).into_iter();
        children.map(|(name, child)| (name, file_kind(&child.entry.kind))).collect()
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// When it is none or cannot be opened.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Opens a regular file to read all of it; the last read fails where it is not what the view says.
    ///
    /// # Errors
    /// When it is none or cannot be opened.
    fn read(&self, path: &Path) -> io::Result<Box<dyn io::Read + '_>> {
        Ok(Box::new(self.open(path)?))
    }

    /// The content of a subtree.
    ///
    /// # Errors
    /// `NotFound` when there is nothing; what reading a context says.
    fn digest(&self, path: &Path) -> io::Result<ContentDigest>;

    /// The content of what is in a directory: as [`View::digest`] of one with mode 0755 that belongs to root, whatever
    /// this one is. Who copies what is in a folder copies neither its mode nor its owner.
    ///
    /// # Errors
    /// As [`View::digest`].
    fn digest_inside(&self, path: &Path) -> io::Result<ContentDigest> {
        self.digest(path)
    }

    /// The first failure that [`View::entry`], [`View::children`] or [`View::names`] had to pass over, once: ask when
    /// something is missing that should be there, and when all is read.
    fn take_error(&self) -> Option<io::Error> {
        None
    }
}

pub(crate) fn file_kind(kind: &Kind) -> FileKind {
    match kind {
        Kind::Directory { .. } => FileKind::Directory,
        Kind::File { .. } => FileKind::File,
        Kind::Symlink { .. } => FileKind::Symlink,
        Kind::CharDevice { .. } | Kind::Whiteout => FileKind::CharDevice,
        Kind::BlockDevice { .. } => FileKind::BlockDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
    }
}

pub(crate) fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("`{}` does not exist", path.display()))
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

/// Links that one resolution may follow (as moby's `FollowSymlinkInScope`; the kernel stops at 40).
const LINKS: usize = 255;

/// Resolves `path` (a leading `/` is ignored) inside the view: symbolic links, absolute ones too, stay inside, and so
/// does `..`. Components that do not exist are kept as they are. The result is a clean relative path.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(view: &dyn View, path: &Path, follow_last: bool) -> Result<PathBuf, ResolveError> {
    let mut resolved = PathBuf::new();
    let mut pending: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        match name.as_bytes() {
            b"/" => {
                resolved.clear();
                continue;
            }
            b"." => continue,
            b".." => {
                resolved.pop();
                continue;
            }
            _ => resolved.push(&name),
        }
        if pending.is_empty() && !follow_last {
            break;
        }
        let Some(found) = view.entry(&resolved) else { continue };
        match found.entry.kind {
            Kind::Symlink { target } => {
                links += 1;
                if links > LINKS {
                    return Err(ResolveError::TooManyLinks { path: path.to_owned() });
                }
                resolved.pop();
                pending.extend(target.iter().rev().map(OsStr::to_owned));
            }
            Kind::Directory { .. } => {}
            _ if pending.iter().any(|name| name != ".") => {
                return Err(ResolveError::NotADirectory { path: resolved });
            }
            _ => {}
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Metadata, Tree, TreeBuilder};

    struct One(Tree);

    impl View for One {
        fn entry(&self, path: &Path) -> Option<ViewEntry> {
            let entry = self.0.lookup(path)?.clone();
            Some(ViewEntry { entry, origin: 0, identity: None })
        }
        fn children(&self, _: &Path) -> Vec<(OsString, ViewEntry)> {
            Vec::new()
        }
        fn open(&self, path: &Path) -> io::Result<File> {
            Err(not_found(path))
        }
        fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
            self.0.digest(path).ok_or_else(|| not_found(path))
        }
    }

    #[test]
    fn resolves_inside_the_root() {
        let mut builder = TreeBuilder::new();
        let links = [
            ("abs", "/dir"),
            ("rel", "dir/sub"),
            ("dir/up", "../../../../dir"),
            ("loop", "loop"),
            ("dangling", "/nowhere/at/all"),
            ("root", "/"),
            ("dot", "."),
        ];
        for (path, target) in links {
            let kind = Kind::Symlink { target: target.into() };
            let entry = Entry { kind, metadata: Metadata::default(), link_group: 0 };
            builder.insert(Path::new(path), entry);
        }
        builder.insert(Path::new("dir/sub"), Entry::directory(0o755));
        builder.insert(Path::new("dir/file"), crate::tree::tests::file(b"x"));
        let view = One(builder.finish());
        let check = |path: &str, expect: &str| {
            assert_eq!(resolve(&view, Path::new(path), true).unwrap(), Path::new(expect), "{path}");
        };
        check("", "");
        check("/", "");
        check("/abs/file", "dir/file");
        check("rel/../file", "dir/file");
        check("dir/up/file", "dir/file");
        check("../../etc/passwd", "etc/passwd");
        check("dangling/x", "nowhere/at/all/x");
        check("root/abs/sub", "dir/sub");
        check("dot/dot/abs", "dir");
        check("a/b/../c", "a/c");
        assert_eq!(resolve(&view, Path::new("abs"), false).unwrap(), Path::new("abs"));
        assert_eq!(resolve(&view, Path::new("abs/up"), false).unwrap(), Path::new("dir/up"));
        let error = |path: &str| resolve(&view, Path::new(path), true).unwrap_err();
        assert!(matches!(error("loop"), ResolveError::TooManyLinks { .. }));
        assert!(matches!(error("dir/file/x"), ResolveError::NotADirectory { .. }));
    }
}
