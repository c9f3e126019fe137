//! The root file system as a tar file.
//!
//! Unlike layers, the archive keeps all extended attributes, and needs no deletions (behaviour.md
//! 3.4, trap 73). Several platforms go into a folder each.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_cache::{Kind, Platform, View};

use super::ExportError;
use crate::archive::entry::{EntryHeader, EntryKind};
use crate::flatten::{FlatEntry, Flatten};
use crate::platform;
use crate::tarball::{Output, OutputFile, TarWriter};

/// A file system that is written out, and for which platform it is.
pub struct FileSystem<'a> {
    /// The platform.
    pub platform: Platform,
    /// All of its files.
    pub view: &'a dyn View,
}

impl std::fmt::Debug for FileSystem<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("platform", &self.platform).finish_non_exhaustive()
    }
}

/// Writes the files of every file system; into folders by platform if `split`. No time is later
/// than `clamp` (`SOURCE_DATE_EPOCH`).
///
/// # Errors
/// When a file cannot be read, two platforms without `split` have the same path, or the output
/// cannot be written.
pub fn write(
    systems: &[FileSystem<'_>],
    split: bool,
    clamp: Option<i64>,
    output: Output,
) -> Result<(), ExportError> {
    let name = output.to_string();
    let failed = |source| ExportError::Output { output: name.clone(), source };
    super::local::refuse_conflicts(systems, split)?;
    let mut tar = TarWriter::new(OutputFile::create(output).map_err(failed)?);
    for system in systems {
        let folder = if split { platform::folder(&system.platform) } else { String::new() };
        if split {
            tar.directory(&folder).map_err(failed)?;
        }
        for entry in Flatten::new(system.view) {
            let place = format!("`{}` into {name}", entry.path.display());
            write_entry(&mut tar, system.view, Path::new(&folder), &entry, clamp)
                .map_err(|source| ExportError::Output { output: place, source })?;
        }
    }
    tar.finish().map_err(failed)
}

fn write_entry(
    tar: &mut TarWriter,
    view: &dyn View,
    folder: &Path,
    flat: &FlatEntry,
    clamp: Option<i64>,
) -> std::io::Result<()> {
    let entry = &flat.found.entry;
    let first: Option<PathBuf> = flat.first.as_ref().map(|first| folder.join(first));
    let kind = match (&entry.kind, &first) {
        (_, Some(first)) => EntryKind::HardLink { target: first.as_os_str().as_bytes() },
        (Kind::Directory { .. }, _) => EntryKind::Directory,
        (Kind::File { size, .. }, _) => EntryKind::File { size: *size },
        (Kind::Symlink { target }, _) => {
            EntryKind::Symlink { target: target.as_os_str().as_bytes() }
        }
        (Kind::CharDevice { major, minor }, _) => {
            EntryKind::CharDevice { major: *major, minor: *minor }
        }
        (Kind::BlockDevice { major, minor }, _) => {
            EntryKind::BlockDevice { major: *major, minor: *minor }
        }
        (Kind::Fifo, _) => EntryKind::Fifo,
        (Kind::Socket | Kind::Whiteout, _) => return Ok(()),
    };
    let metadata = &entry.metadata;
    let path = folder.join(&flat.path);
    let xattrs: Vec<_> =
        metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    let secs = metadata.mtime.secs;
    let header = EntryHeader {
        path: path.as_os_str().as_bytes(),
        kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        mtime: clamp.map_or(secs, |clamp| secs.min(clamp)),
        xattrs: &xattrs,
    };
    match kind {
        EntryKind::File { size } => tar.file(&header, &mut view.read(&flat.path)?, size),
        _ => tar.entry(&header),
    }
}
