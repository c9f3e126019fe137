//! Where entries land: parents resolved and made, what has the name already makes room.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_cache::{Kind, LayerWriter, Metadata, Time, View};

use super::{refused, write_error};
use crate::archive::ArchiveError;

/// Symbolic links on the way to one entry, as in the kernel (Linux: 40; the shells and Docker: 255).
const MOST_LINKS: usize = 255;

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Directory,
    Symlink(PathBuf),
    Other,
}

/// A layer being written, with what it lies on if that counts.
pub(super) struct Destination<'a> {
    pub(super) writer: &'a LayerWriter,
    below: Option<&'a dyn View>,
    base: &'a Path,
    implied: BTreeSet<PathBuf>,
    /// The parent that was resolved last, and to what: entries come directory by directory.
    recent: Option<(PathBuf, PathBuf)>,
}

impl<'a> Destination<'a> {
    /// An image layer: what is below is not known and does not count.
    pub(super) fn layer(writer: &'a LayerWriter) -> Self {
        Self { writer, below: None, base: Path::new(""), implied: BTreeSet::new(), recent: None }
    }

    /// A directory of a file system.
    pub(super) fn add(writer: &'a LayerWriter, below: &'a dyn View, base: &'a Path) -> Self {
        Self { writer, below: Some(below), base, implied: BTreeSet::new(), recent: None }
    }

    pub(super) fn into_implied(self) -> BTreeSet<PathBuf> {
        self.implied
    }

    /// The path at which the entry of this name is to be made; its parents exist afterwards.
    pub(super) fn place(&mut self, name: &Path) -> Result<PathBuf, ArchiveError> {
        let parent = name.parent().unwrap_or(Path::new(""));
        let last = name.file_name().ok_or_else(|| refused("an entry has no name"))?;
        Ok(self.directory_of(parent)?.join(last))
    }

    /// Resolves a directory's name and makes it where it is missing.
    fn directory_of(&mut self, name: &Path) -> Result<PathBuf, ArchiveError> {
        if let Some((recent, resolved)) = &self.recent
            && recent == name
        {
            return Ok(resolved.clone());
        }
        let resolved = self.resolve(&self.base.join(name))?;
        self.make_parents(&resolved)?;
        self.recent = Some((name.to_owned(), resolved.clone()));
        Ok(resolved)
    }

    /// Follows symbolic links inside the root; components that do not exist stay.
    fn resolve(&self, path: &Path) -> Result<PathBuf, ArchiveError> {
        let mut todo: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            match self.find(&next) {
                Found::Nothing | Found::Directory => done = next,
                Found::Other => {
                    let reason = format!("its parent `{}` is not a directory", next.display());
                    return Err(refused(reason));
                }
                Found::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        let reason = format!("too many symbolic links at `{}`", next.display());
                        return Err(refused(reason));
                    }
                    follow(&target, &mut done, &mut todo);
                }
            }
        }
        Ok(done)
    }

    /// What is at a path whose parents are no symbolic links.
    pub(super) fn find(&self, path: &Path) -> Found {
        if path.as_os_str().is_empty() {
            return Found::Directory;
        }
        if let Some(entry) = self.writer.entry(path) {
            return found(entry.kind);
        }
        match self.below.filter(|_| !self.is_hidden(path)).and_then(|below| below.entry(path)) {
            Some(found_below) => found(found_below.entry.kind),
            None => Found::Nothing,
        }
    }

    /// Whether this layer hides what lies below at `path`.
    fn is_hidden(&self, path: &Path) -> bool {
        path.ancestors().skip(1).any(|parent| match self.writer.entry(parent) {
            Some(entry) => !matches!(entry.kind, Kind::Directory { opaque: false }),
            None => false,
        })
    }

    /// Makes a directory and what it lies in.
    fn make_parents(&mut self, directory: &Path) -> Result<(), ArchiveError> {
        if directory.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(below) = self.below {
            // A name beneath it, so that the directory itself is one of the parents.
            return self.writer.parents(&directory.join("_"), below).map_err(write_error);
        }
        let missing: Vec<&Path> =
            directory.ancestors().take_while(|path| self.find(path) == Found::Nothing).collect();
        for path in missing.into_iter().rev() {
            self.new_directory(path, &implied_metadata())?;
            self.implied.insert(path.to_owned());
        }
        Ok(())
    }

    /// A directory that a deletion of the same layer precedes shows nothing from below.
    fn new_directory(&self, path: &Path, metadata: &Metadata) -> Result<(), ArchiveError> {
        let deleted = self.writer.entry(path).is_some_and(|entry| entry.kind == Kind::Whiteout);
        if deleted {
            self.writer.remove(path).map_err(write_error)?;
        }
        self.writer.directory(path, metadata).map_err(write_error)?;
        if deleted {
            self.writer.opaque(path).map_err(write_error)?;
        }
        Ok(())
    }

    /// Makes a directory, or gives one that is there its metadata.
    pub(super) fn directory(
        &mut self,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), ArchiveError> {
        self.implied.remove(path);
        match self.writer.entry(path).map(|entry| entry.kind) {
            Some(Kind::Directory { .. } | Kind::Whiteout) | None => {}
            Some(_) => self.make_room(path)?,
        }
        self.new_directory(path, metadata)
    }

    /// Removes what this layer has at `path`: the later entry counts.
    pub(super) fn make_room(&mut self, path: &Path) -> Result<(), ArchiveError> {
        if self.writer.entry(path).is_none() {
            return Ok(());
        }
        self.recent = None;
        self.implied.retain(|implied| !implied.starts_with(path));
        self.writer.remove(path).map_err(write_error)
    }

    /// Another name for a file that is there. The target is a name in the archive; its last
    /// component is not followed.
    pub(super) fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), ArchiveError> {
        let name = target.file_name().ok_or_else(|| refused("it is a hard link to the root"))?;
        let parent = target.parent().unwrap_or(Path::new(""));
        let existing = self.resolve(&self.base.join(parent))?.join(name);
        if existing == path {
            return Err(refused("it is a hard link to itself"));
        }
        if path.starts_with(&existing) || existing.starts_with(path) {
            return Err(refused("it is a hard link to its own directory"));
        }
        self.bring_up(&existing, target)?;
        self.make_room(path)?;
        self.writer.hardlink(path, &existing).map_err(write_error)
    }

    /// Makes sure that this layer has a file at `existing`.
    fn bring_up(&mut self, existing: &Path, target: &Path) -> Result<(), ArchiveError> {
        let absent = || {
            let target = target.as_os_str().as_bytes().escape_ascii();
            refused(format!("it is a hard link to `{target}`, which is not there"))
        };
        match self.writer.entry(existing).map(|entry| entry.kind) {
            Some(Kind::Directory { .. }) => {
                return Err(refused("it is a hard link to a directory"));
            }
            Some(Kind::Whiteout) => return Err(absent()),
            Some(_) => return Ok(()),
            None => {}
        }
        let below = self.below.filter(|_| !self.is_hidden(existing)).ok_or_else(absent)?;
        let found = below.entry(existing).ok_or_else(absent)?;
        if !matches!(found.entry.kind, Kind::File { .. }) {
            return Err(refused("it is a hard link to something that is not a regular file"));
        }
        let file = below.open(existing).map_err(write_error)?;
        self.writer.parents(existing, below).map_err(write_error)?;
        let known = found.known();
        let metadata = &found.entry.metadata;
        self.writer
            .file_from(existing, metadata, &file, known.as_ref())
            .map(|_| ())
            .map_err(write_error)
    }

    /// A deletion: hides what is below, never what this layer has.
    pub(super) fn delete(&mut self, parent: &Path, name: &[u8]) -> Result<(), ArchiveError> {
        let path = self.directory_of(parent)?.join(OsStr::from_bytes(name));
        match self.writer.entry(&path).map(|entry| entry.kind) {
            None => self.writer.whiteout(&path).map_err(write_error),
            Some(Kind::Directory { .. }) => {
                self.implied.remove(&path);
                self.writer.opaque(&path).map_err(write_error)
            }
            Some(_) => Ok(()),
        }
    }

    /// An opaque marker in a directory.
    pub(super) fn opaque(&mut self, directory: &Path) -> Result<(), ArchiveError> {
        let path = self.directory_of(directory)?;
        self.writer.opaque(&path).map_err(write_error)
    }
}

fn found(kind: Kind) -> Found {
    match kind {
        Kind::Directory { .. } => Found::Directory,
        Kind::Symlink { target } => Found::Symlink(target),
        Kind::Whiteout => Found::Nothing,
        _ => Found::Other,
    }
}

/// What directories are that nobody described.
fn implied_metadata() -> Metadata {
    Metadata { mode: 0o755, mtime: Time { secs: 0, nanos: 0 }, ..Metadata::default() }
}

/// Replaces a symbolic link by its target: `..` goes up inside the root, `/` starts there.
fn follow(target: &Path, done: &mut PathBuf, todo: &mut VecDeque<OsString>) {
    if target.is_absolute() {
        *done = PathBuf::new();
    }
    // What stands before a `..` may itself be a link, so `..` waits in the queue for its turn.
    for part in target.components().rev() {
        match part {
            Component::Normal(part) => todo.push_front(part.to_owned()),
            Component::ParentDir => todo.push_front(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}
