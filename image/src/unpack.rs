//! Archives into layers: image layers with their deletions, and what ADD extracts.
//!
//! An archive is written by a stranger. Names are cleaned and stay beneath the destination; symbolic
//! links that an entry's parents lead through are resolved inside the root, by look-ups in what is
//! written and what lies below, never by the kernel; an entry replaces what has its name and is never
//! written through it. [`kiln_cache::LayerWriter`] is the only way to the disk.

mod destination;
mod name;
mod pipeline;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use kiln_cache::{DiffId, Kind, LayerWriter, Metadata, Time, View};

use crate::archive::{
    ArchiveEntry, ArchiveError, ArchiveReader, ArchivedKind, Decompress, whiteout,
};
use crate::limits::Budget;
use destination::Destination;

/// What a layer archive was.
#[derive(Debug)]
pub struct Unpacked {
    /// Digest of the archive without its compression.
    pub diff_id: DiffId,
    /// Directories that the archive left out though something lies in them. They were made 0755
    /// root:root; where a lower layer has them, [`Unpacked::adopt`] takes over its metadata.
    pub implied: BTreeSet<PathBuf>,
}

impl Unpacked {
    /// Gives implied directories the metadata they have in the layers below, before the writer
    /// finishes: otherwise a layer with nothing but `tmp/x` would take the sticky bit from `/tmp`.
    ///
    /// # Errors
    /// When a directory cannot be written.
    pub fn adopt(&self, writer: &LayerWriter, below: &dyn View) -> io::Result<()> {
        for path in &self.implied {
            if let Some(found) = below.entry(path)
                && matches!(found.entry.kind, Kind::Directory { .. })
            {
                writer.directory(path, &found.entry.metadata)?;
            }
        }
        Ok(())
    }
}

/// Unpacks a layer archive, compressed in any way, into a new layer. Reads the stream to its end.
///
/// # Errors
/// When the archive is malformed, above a limit of `budget`, would act outside of the layer, or
/// cannot be read or written. The layer is then half made and must be dropped.
pub fn unpack_layer(
    stream: impl Read + Send,
    budget: Budget,
    writer: &LayerWriter,
) -> Result<Unpacked, ArchiveError> {
    let (implied, digest) = pipeline::decompress(stream, |plain| {
        let mut reader = ArchiveReader::new(plain, budget);
        let mut unpacker = Unpacker { destination: Destination::layer(writer), owner: None };
        while let Some(entry) = reader.next_entry()? {
            let done = unpacker.layer_entry(&entry, &mut reader);
            done.map_err(|e| e.at(entry.offset, &entry.path))?;
        }
        reader.finish()?;
        Ok(unpacker.destination.into_implied())
    })?;
    Ok(Unpacked { diff_id: DiffId(digest), implied })
}

/// Where ADD extracts to.
#[derive(Clone, Copy)]
pub struct AddTarget<'a> {
    /// The file system that the layer lies on.
    pub below: &'a dyn View,
    /// The directory, relative to the root, without symbolic links.
    pub directory: &'a Path,
    /// `--chown`, for all entries.
    pub owner: Option<(u32, u32)>,
}

impl std::fmt::Debug for AddTarget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddTarget")
            .field("directory", &self.directory)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// Extracts an archive as ADD does: `.wh.` names are ordinary names, the root entry is ignored,
/// missing parents become 0755 root:root directories, links are looked up in the archive and below.
///
/// # Errors
/// As [`unpack_layer`].
pub fn add_archive(
    stream: impl Read,
    budget: Budget,
    target: AddTarget<'_>,
    writer: &LayerWriter,
) -> Result<(), ArchiveError> {
    let plain = Decompress::new(stream).map_err(read_error)?;
    let mut reader = ArchiveReader::new(plain, budget);
    let destination = Destination::add(writer, target.below, target.directory);
    let mut unpacker = Unpacker { destination, owner: target.owner };
    while let Some(entry) = reader.next_entry()? {
        unpacker.add_entry(&entry, &mut reader).map_err(|e| e.at(entry.offset, &entry.path))?;
    }
    reader.finish()?;
    Ok(())
}

/// Whether ADD extracts this file: it decompresses, and the first header is one of an archive
/// (behaviour.md 1.8; a file with a damaged first header is copied as a file).
///
/// # Errors
/// When the file cannot be read from its beginning.
pub fn is_archive(mut file: &File) -> io::Result<bool> {
    file.rewind()?;
    let Ok(plain) = Decompress::new(file) else { return Ok(false) };
    let first = ArchiveReader::new(plain, Budget::default()).next_entry();
    file.rewind()?;
    Ok(matches!(first, Ok(Some(_))))
}

struct Unpacker<'a> {
    destination: Destination<'a>,
    owner: Option<(u32, u32)>,
}

fn read_error(source: io::Error) -> ArchiveError {
    ArchiveError::Read { path: String::new(), source }
}

fn write_error(source: io::Error) -> ArchiveError {
    ArchiveError::Write { path: String::new(), source }
}

pub(crate) fn refused(reason: impl Into<String>) -> ArchiveError {
    ArchiveError::Refused { path: String::new(), reason: reason.into() }
}

/// Attributes by which overlayfs would take a file for something else.
fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

impl Unpacker<'_> {
    fn layer_entry<R: Read>(
        &mut self,
        entry: &ArchiveEntry,
        reader: &mut ArchiveReader<R>,
    ) -> Result<(), ArchiveError> {
        let name = name::clean(&entry.path)?;
        let Some(last) = name::last(&name) else {
            return self.root_entry(entry);
        };
        // Directories in which aufs kept its own records.
        if name::first(&name).starts_with(b".wh..wh.") && last != whiteout::OPAQUE {
            return Ok(());
        }
        if last == whiteout::OPAQUE {
            return self.destination.opaque(&name::parent(&name));
        }
        if let Some(deleted) = last.strip_prefix(whiteout::PREFIX) {
            if matches!(deleted, b"" | b"." | b"..") {
                return Err(refused("it deletes no name"));
            }
            return self.destination.delete(&name::parent(&name), deleted);
        }
        let path = self.destination.place(&name)?;
        self.write(entry, &path, reader)
    }

    /// The root is never replaced; a layer may say its mode and owner.
    fn root_entry(&mut self, entry: &ArchiveEntry) -> Result<(), ArchiveError> {
        if entry.kind != ArchivedKind::Directory {
            return Err(refused("the root of a layer can only be a directory"));
        }
        let root = Path::new("");
        self.destination.writer.directory(root, &self.metadata(entry)).map_err(write_error)
    }

    fn add_entry<R: Read>(
        &mut self,
        entry: &ArchiveEntry,
        reader: &mut ArchiveReader<R>,
    ) -> Result<(), ArchiveError> {
        let name = name::clean(&entry.path)?;
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        let path = self.destination.place(&name)?;
        self.write(entry, &path, reader)
    }

    fn metadata(&self, entry: &ArchiveEntry) -> Metadata {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let xattrs = entry.xattrs.iter().filter(|(name, _)| !is_overlay_xattr(name));
        Metadata {
            mode: entry.mode,
            uid,
            gid,
            mtime: Time { secs: entry.mtime.0, nanos: entry.mtime.1 },
            xattrs: xattrs.cloned().collect(),
        }
    }

    fn write<R: Read>(
        &mut self,
        entry: &ArchiveEntry,
        path: &Path,
        reader: &mut ArchiveReader<R>,
    ) -> Result<(), ArchiveError> {
        let metadata = self.metadata(entry);
        let kind = match &entry.kind {
            ArchivedKind::Directory => return self.destination.directory(path, &metadata),
            ArchivedKind::HardLink => {
                let target = name::clean(&entry.link)?;
                return self.destination.hard_link(path, &target);
            }
            ArchivedKind::File => {
                self.destination.make_room(path)?;
                let writer = self.destination.writer;
                let written = writer.file(path, &metadata, &mut reader.content());
                return written.map(|_| ()).map_err(write_error);
            }
            ArchivedKind::Symlink => {
                let target = name::link_target(&entry.link)?;
                self.destination.make_room(path)?;
                let made = self.destination.writer.symlink(path, &metadata, &target);
                return made.map_err(write_error);
            }
            ArchivedKind::CharDevice { major: 0, minor: 0 } => {
                return Err(refused("character device 0:0 is overlayfs's mark of a deletion"));
            }
            ArchivedKind::CharDevice { major, minor } => {
                Kind::CharDevice { major: *major, minor: *minor }
            }
            ArchivedKind::BlockDevice { major, minor } => {
                Kind::BlockDevice { major: *major, minor: *minor }
            }
            ArchivedKind::Fifo => Kind::Fifo,
        };
        self.destination.make_room(path)?;
        self.destination.writer.special(path, &metadata, &kind).map_err(write_error)
    }
}
