//! A directory handle; everything beneath it is reached by descriptor, never by a joined path string.
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tree::Time;

/// An open directory. All paths are relative to it, without `.`, `..` or a leading `/`; `""` is the directory itself.
/// No symbolic link is followed, except by [`Root::open`] for the directory itself.
#[derive(Debug, Clone)]
pub struct Root {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

/// The kind of a file, as `st_mode` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name.
    pub name: OsString,
    /// Its kind.
    pub kind: FileKind,
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        unimplemented!()
    }
    pub fn open_fd(fd: OwnedFd, path: &Path) -> io::Result<Self> {
        unimplemented!()
    }
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
    /// For messages and overlay options.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Opens a directory beneath as a root of its own.
    pub fn open_dir(&self, path: &Path) -> io::Result<Self> {
        unimplemented!()
    }
    /// Opens a regular file for reading; anything else is `InvalidInput`.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        unimplemented!()
    }
    /// Makes a new regular file (`O_EXCL`).
    pub fn create_file(&self, path: &Path, mode: u32) -> io::Result<File> {
        unimplemented!()
    }
    /// lstat
    pub fn stat(&self, path: &Path) -> io::Result<rustix::fs::Stat> {
        unimplemented!()
    }
    /// Sorted by name.
    pub fn read_dir(&self, path: &Path) -> io::Result<Vec<DirItem>> {
        unimplemented!()
    }
    pub fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        unimplemented!()
    }
    pub fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        unimplemented!()
    }
    pub fn mkdir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        unimplemented!()
    }
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    /// Removes whatever is there, however deep and whatever its modes; nothing there is no error.
    pub fn remove_all(&self, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    pub fn rename(&self, from: &Path, to_root: &Root, to: &Path) -> io::Result<()> {
        unimplemented!()
    }
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    pub fn hardlink(&self, existing: &Path, path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    pub fn mknod(
        &self,
        path: &Path,
        kind: FileKind,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        unimplemented!()
    }
    pub fn chown(&self, path: &Path, uid: u32, gid: u32) -> io::Result<()> {
        unimplemented!()
    }
    pub fn chmod(&self, path: &Path, mode: u32) -> io::Result<()> {
        unimplemented!()
    }
    pub fn set_mtime(&self, path: &Path, mtime: Time) -> io::Result<()> {
        unimplemented!()
    }
    pub fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
        unimplemented!()
    }
    pub fn get_xattr(&self, path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        unimplemented!()
    }
    pub fn xattrs(&self, path: &Path) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
        unimplemented!()
    }
}
