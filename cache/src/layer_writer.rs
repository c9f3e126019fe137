//! The one safe way to make files in a new layer: by path beneath the layer's root, never through a link.
//!
//! Many threads may write different files at once. The tree is kept beside the disk, and says what was really written:
//! data is hashed on its way, attributes that the file system refuses are not in it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use crate::layer::{is_overlay_xattr, mark_opaque};
use crate::owner::as_far_as_possible;
use crate::root::{FileKind, Root, Stat, check_path, timestamps};
use crate::scan;
use crate::tree::{Entry, Kind, Metadata, Tree, TreeBuilder};
use crate::view::{FileIdentity, Known, LARGE, View};

/// Makes files in a new layer; many threads may use it at once, on different paths.
///
/// Whatever is at a path already gives way, except that a directory stays when it is made again. Missing parents are
/// made, 0755 of root (see [`LayerWriter::parents`]). A parent that is not a directory is an error: links that this
/// writer wrote are not followed.
#[derive(Debug)]
pub struct LayerWriter {
    root: Root,
    tree: Mutex<State>,
    /// Owner and group that new files have without asking.
    owner: (u32, u32),
}

#[derive(Debug)]
struct State {
    tree: TreeBuilder,
    groups: u32,
}

/// What was written: size and blake3 of the data. Compare with what a key was computed from: a file of a context may
/// have changed meanwhile, and the tree describes what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub data: [u8; 32],
}

fn not_a_directory(path: &Path) -> io::Error {
    let text = format!("`{}` is not a directory in this layer", path.display());
    io::Error::new(io::ErrorKind::NotADirectory, text)
}

fn is_refused(error: &io::Error) -> bool {
    let refusals = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP];
    refusals.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl LayerWriter {
    pub(crate) fn new(root: Root) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mut tree = TreeBuilder::new();
        if let Some(top) = tree.get_mut(Path::new("")) {
            (top.metadata.uid, top.metadata.gid) = owner;
        }
        Self { root, tree: Mutex::new(State { tree, groups: 0 }), owner }
    }

    /// Makes files in a folder that is no layer, by the same rules.
    #[must_use]
    pub fn beneath(root: Root) -> Self {
        Self::new(root)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between two changes of the tree leaves a tree that says less than the disk: its draft is dropped.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been written at `path` so far; data and attributes of directories too.
    #[must_use]
    pub fn entry(&self, path: &Path) -> Option<Entry> {
        self.state().tree.get(path).cloned()
    }

    /// Makes the missing parents of `path`, with the metadata that they have in `below`, else 0755 of root.
    ///
    /// # Errors
    /// When a parent is something else in this layer, or the disk fails.
    pub fn parents(&self, path: &Path, below: &dyn View) -> io::Result<()> {
        check_path(path)?;
        let mut parent = PathBuf::new();
        for name in path.parent().into_iter().flat_map(Path::iter) {
            parent.push(name);
            if self.state().tree.get(&parent).is_some_and(Entry::is_dir) {
                continue;
            }
            let metadata = match below.entry(&parent) {
                Some(found) if found.entry.is_dir() => found.entry.metadata,
                _ => Metadata { mode: 0o755, ..Metadata::default() },
            };
            self.directory(&parent, &metadata)?;
        }
        Ok(())
    }

    /// Makes sure that the parents of `path` are there, and takes away what is at `path`.
    fn prepare(&self, path: &Path) -> io::Result<()> {
        check_path(path)?;
        if path.as_os_str().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root stays a directory"));
        }
        let mut state = self.state();
        self.make_parents(&mut state.tree, path)?;
        if state.tree.get(path).is_some() {
            self.root.remove_all(path)?;
            state.tree.remove(path);
        }
        Ok(())
    }

    /// With the tree locked, so that two threads do not make the same directory.
    fn make_parents(&self, tree: &mut TreeBuilder, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        match tree.get(parent) {
            Some(entry) if entry.is_dir() => return Ok(()),
            Some(_) => return Err(not_a_directory(parent)),
            None => {}
        }
        let mut partial = PathBuf::new();
        for name in parent.iter() {
            partial.push(name);
            match tree.get(&partial) {
                Some(entry) if entry.is_dir() => {}
                Some(_) => return Err(not_a_directory(&partial)),
                None => {
                    self.root.mkdir(&partial, 0o700)?;
                    tree.insert(&partial, Entry::directory(0o755));
                }
            }
        }
        Ok(())
    }

    /// Makes a directory, or sets the metadata of one that is there; `""` is the root. On disk, mode, owner and times
    /// are set by [`LayerWriter::finish`].
    ///
    /// # Errors
    /// When the disk fails.
    pub fn directory(&self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        check_path(path)?;
        let mut state = self.state();
        let mut opaque = false;
        if !path.as_os_str().is_empty() {
            self.make_parents(&mut state.tree, path)?;
            match state.tree.get(path).map(|entry| entry.kind.clone()) {
                Some(Kind::Directory { opaque: is_opaque }) => opaque = is_opaque,
                Some(_) => {
                    self.root.remove_all(path)?;
                    self.root.mkdir(path, 0o700)?;
                }
                None => self.root.mkdir(path, 0o700)?,
            }
        } else if let Some(Kind::Directory { opaque: is_opaque }) =
            state.tree.get(path).map(|entry| entry.kind.clone())
        {
            opaque = is_opaque;
        }
        let mut metadata = metadata.clone();
        metadata.xattrs.retain(|name, _| !is_overlay_xattr(name));
        let kind = Kind::Directory { opaque };
        state.tree.insert(path, Entry { kind, metadata, link_group: 0 });
        Ok(())
    }

    /// Hides what lower layers have in a directory of this layer, which must be there.
    ///
    /// # Errors
    /// When there is no such directory, or the file system takes no attributes.
    pub fn opaque(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let kind = state.tree.get_mut(path).map(|entry| &mut entry.kind);
        let Some(Kind::Directory { opaque }) = kind else { return Err(not_a_directory(path)) };
        if !*opaque {
            mark_opaque(&self.root, path)?;
            *opaque = true;
        }
        Ok(())
    }

    /// Makes a regular file from a stream.
    ///
    /// # Errors
    /// When the stream or the disk fails; nothing is left at `path` then.
    pub fn file(
        &self,
        path: &Path,
        metadata: &Metadata,
        content: &mut dyn Read,
    ) -> io::Result<Written> {
        self.make_file(path, metadata, |file| copy_hashing(content, file))
    }

    /// Makes a regular file from an open one, from its beginning. `known` is what a view says of it
    /// ([`crate::ViewEntry::known`]): large files are then copied without hashing them again, after which size and
    /// identity are compared, so that the result is the truth even when the file changes meanwhile.
    ///
    /// # Errors
    /// When a file cannot be read or written; nothing is left at `path` then.
    pub fn file_from(
        &self,
        path: &Path,
        metadata: &Metadata,
        source: &File,
        known: Option<&Known>,
    ) -> io::Result<Written> {
        self.make_file(path, metadata, |file| {
            if let Some(known) = known.filter(|known| known.size >= LARGE) {
                let copied = copy_in_kernel(source, file)?;
                let same = match known.identity {
                    Some(identity) => FileIdentity::of(&Stat::of(source)?) == identity,
                    None => true,
                };
                if copied == Some(known.size) && same {
                    return Ok(Written { size: known.size, data: known.data });
                }
                // It changed, or there is no such copying here: from the start, hashing.
                file.set_len(0)?;
            }
            copy_hashing(&mut FromStart { file: source, offset: 0 }, file)
        })
    }

    fn make_file(
        &self,
        path: &Path,
        metadata: &Metadata,
        fill: impl FnOnce(&File) -> io::Result<Written>,
    ) -> io::Result<Written> {
        self.prepare(path)?;
        let mut metadata = metadata.clone();
        let file = self.root.create_file(path, 0o600)?;
        let result = fill(&file).and_then(|written| {
            self.apply_to_file(&file, path, &mut metadata)?;
            Ok(written)
        });
        match result {
            Ok(written) => {
                let kind = Kind::File { size: written.size, data: written.data };
                self.state().tree.insert(path, Entry { kind, metadata, link_group: 0 });
                Ok(written)
            }
            Err(error) => {
                let _ = self.root.remove_file(path);
                Err(error)
            }
        }
    }

    /// Owner first (it takes set-id bits and capabilities away), then attributes, mode and times.
    fn apply_to_file(&self, file: &File, path: &Path, metadata: &mut Metadata) -> io::Result<()> {
        if (metadata.uid, metadata.gid) != self.owner {
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            let done = rustix::fs::fchown(file, Some(uid), Some(gid));
            as_far_as_possible(done.map_err(io::Error::from))?;
        }
        self.apply_xattrs(path, metadata)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode & 0o7777))?;
        Ok(rustix::fs::futimens(file, &timestamps(metadata.mtime))?)
    }

    fn apply_xattrs(&self, path: &Path, metadata: &mut Metadata) -> io::Result<()> {
        let mut failure = None;
        metadata.xattrs.retain(|name, value| {
            if is_overlay_xattr(name) {
                return false;
            }
            match self.root.set_xattr(path, name, value) {
                Ok(()) => true,
                Err(error) => {
                    if !is_refused(&error) {
                        failure.get_or_insert(error);
                    }
                    false
                }
            }
        });
        failure.map_or(Ok(()), Err)
    }

    /// For what has no descriptor: links and special files.
    fn apply(&self, path: &Path, metadata: &mut Metadata, mode: bool) -> io::Result<()> {
        if (metadata.uid, metadata.gid) != self.owner {
            as_far_as_possible(self.root.chown(path, metadata.uid, metadata.gid))?;
        }
        self.apply_xattrs(path, metadata)?;
        if mode {
            self.root.chmod(path, metadata.mode)?;
        }
        self.root.set_mtime(path, metadata.mtime)
    }

    /// Makes a symbolic link; its mode is 0777 whatever `metadata` says, as it is on disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn symlink(&self, path: &Path, metadata: &Metadata, target: &Path) -> io::Result<()> {
        self.prepare(path)?;
        self.root.symlink(target, path)?;
        let mut metadata = Metadata { mode: 0o777, ..metadata.clone() };
        self.apply(path, &mut metadata, false)?;
        let kind = Kind::Symlink { target: target.to_owned() };
        self.state().tree.insert(path, Entry { kind, metadata, link_group: 0 });
        Ok(())
    }

    /// Gives a file that this writer wrote a second name.
    ///
    /// # Errors
    /// `NotFound` when this writer did not write `existing`; directories have no second name.
    pub fn hardlink(&self, path: &Path, existing: &Path) -> io::Result<()> {
        check_path(existing)?;
        let linkable = |state: &State| match state.tree.get(existing) {
            Some(entry) if !entry.is_dir() && entry.kind != Kind::Whiteout => Ok(()),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{}` cannot have a second name", existing.display()),
            )),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("`{}` is not in this layer", existing.display()),
            )),
        };
        linkable(&self.state())?;
        if path == existing {
            return Ok(());
        }
        self.prepare(path)?;
        // Preparing may have removed a directory that `existing` was in.
        linkable(&self.state())?;
        self.root.hardlink(existing, path)?;
        let mut state = self.state();
        let next = state.groups + 1;
        let mut entry = None;
        if let Some(first) = state.tree.get_mut(existing) {
            if first.link_group == 0 {
                first.link_group = next;
            }
            entry = Some(first.clone());
        }
        if let Some(entry) = entry {
            state.groups = next;
            state.tree.insert(path, entry);
        }
        Ok(())
    }

    /// Makes a device, FIFO or socket.
    ///
    /// # Errors
    /// `InvalidInput` for other kinds and for the character device 0:0, which means a whiteout; `PermissionDenied`
    /// where devices may not be made.
    pub fn special(&self, path: &Path, metadata: &Metadata, kind: &Kind) -> io::Result<()> {
        let (file_kind, number) = match kind {
            Kind::CharDevice { major, minor } if (*major, *minor) != (0, 0) => {
                (FileKind::CharDevice, (*major, *minor))
            }
            Kind::BlockDevice { major, minor } => (FileKind::BlockDevice, (*major, *minor)),
            Kind::Fifo => (FileKind::Fifo, (0, 0)),
            Kind::Socket => (FileKind::Socket, (0, 0)),
            _ => {
                let text =
                    format!("`{}` is not a special file that a layer may hold", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        self.prepare(path)?;
        if file_kind == FileKind::Fifo {
            self.root.mknod(path, file_kind, 0o600, number)?;
        } else {
            as_far_as_possible(self.root.mknod(path, file_kind, 0o600, number))?;
            if self.root.stat(path).is_err() {
                // An empty file stands for a node that only the machine's root can make.
                self.root.create_file(path, 0o600)?;
            }
        }
        let mut metadata = metadata.clone();
        if let Err(error) = self.apply(path, &mut metadata, true) {
            let _ = self.root.remove_file(path);
            return Err(error);
        }
        self.state().tree.insert(path, Entry { kind: kind.clone(), metadata, link_group: 0 });
        Ok(())
    }

    /// Deletes a name from lower layers.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn whiteout(&self, path: &Path) -> io::Result<()> {
        self.prepare(path)?;
        self.root.make_whiteout(path)?;
        let metadata = Metadata::default();
        self.state().tree.insert(path, Entry { kind: Kind::Whiteout, metadata, link_group: 0 });
        Ok(())
    }

    /// Forgets what was written at `path`, with everything beneath.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        check_path(path)?;
        let mut state = self.state();
        if state.tree.get(path).is_some() {
            self.root.remove_all(path)?;
            state.tree.remove(path);
        }
        Ok(())
    }

    /// Sets mode, owner and times of directories, last; returns the tree of everything written.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(self) -> io::Result<Tree> {
        let mut directories = Vec::new();
        let state = self.tree.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut tree = state.tree;
        let top = tree.get(Path::new("")).cloned();
        directories.extend(top.map(|entry| (PathBuf::new(), entry.metadata)));
        directories.extend(tree.directories());
        let writer = Self {
            root: self.root,
            tree: Mutex::new(State { tree: TreeBuilder::new(), groups: 0 }),
            owner: self.owner,
        };
        // Deepest first: without write permission in a directory, nothing in it could be changed any more.
        for (path, metadata) in directories.iter_mut().rev() {
            let before = metadata.xattrs.len();
            let dir = writer.root.open_dir(path)?;
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            if (metadata.uid, metadata.gid) != writer.owner {
                let done = rustix::fs::fchown(dir.as_fd(), Some(uid), Some(gid));
                as_far_as_possible(done.map_err(io::Error::from))?;
            }
            writer.apply_xattrs(path, metadata)?;
            rustix::fs::fchmod(dir.as_fd(), Mode::from_raw_mode(metadata.mode & 0o7777))?;
            rustix::fs::futimens(dir.as_fd(), &timestamps(metadata.mtime))?;
            if metadata.xattrs.len() != before
                && let Some(entry) = tree.get_mut(path)
            {
                entry.metadata.xattrs = std::mem::take(&mut metadata.xattrs);
            }
        }
        Ok(tree.finish())
    }
}

/// Reads an open file from its beginning, wherever its position is.
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn copy_hashing(content: &mut dyn Read, mut file: &File) -> io::Result<Written> {
    scan::with_buffer(|buffer| {
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        loop {
            match content.read(buffer) {
                Ok(0) => return Ok(Written { size, data: *hasher.finalize().as_bytes() }),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    file.write_all(&buffer[..count])?;
                    size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    })
}

/// Shares the data (reflink) or copies it inside the kernel; `None` where the file systems can do neither.
fn copy_in_kernel(source: &File, file: &File) -> io::Result<Option<u64>> {
    if rustix::fs::ioctl_ficlone(file, source).is_ok() {
        return Ok(Some(file.metadata()?.len()));
    }
    let (mut from, mut to) = (0, 0);
    loop {
        match rustix::fs::copy_file_range(source, Some(&mut from), file, Some(&mut to), 1 << 30) {
            Ok(0) => return Ok(Some(to)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
