//! From a stack of layers in overlay's form to one plain tree: what overlay would show.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Root, Stat};
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};
use rustix::io::Errno;

use super::{OPAQUE, is_overlay_attribute, one};

/// Read and written at once where blocks cannot be shared.
const BUFFER: usize = 1 << 17;

/// A directory that several layers may have: its path, and which of them, top first.
struct Merged {
    path: PathBuf,
    layers: Vec<usize>,
}

/// Copies layers (bottom to top) into an empty directory.
///
/// # Errors
/// What the disk says, with the path.
pub(crate) fn expand(layers: &[Root], into: &Root) -> io::Result<()> {
    let mut pending = vec![Merged { path: PathBuf::new(), layers: opaque_cut(layers)? }];
    let mut made = Vec::new();
    while let Some(directory) = pending.pop() {
        let mut files = Vec::new();
        for (name, found) in names(layers, &directory)? {
            let path = directory.path.join(name);
            match found {
                Found::Directory(among) => {
                    into.mkdir(&path, 0o700)?;
                    pending.push(Merged { path, layers: among });
                }
                Found::File(layer) => files.push((path, layer)),
            }
        }
        files.par_iter().try_for_each(|(path, layer)| {
            copy(&layers[*layer], path, into).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        })?;
        if let (false, Some(top)) =
            (directory.path.as_os_str().is_empty(), directory.layers.first())
        {
            made.push((directory.path, *top));
        }
    }
    // Children before parents, as making a file changes the time of its directory.
    for (path, layer) in made.iter().rev() {
        let stat = layers[*layer].stat(path)?;
        attributes(&layers[*layer], path, &stat, into, path)?;
        into.set_mtime(path, stat.mtime)?;
    }
    Ok(())
}

/// The layers that have a part in the root directory, top first.
fn opaque_cut(layers: &[Root]) -> io::Result<Vec<usize>> {
    let mut among = Vec::new();
    for number in (0..layers.len()).rev() {
        among.push(number);
        if is_opaque(&layers[number], Path::new(""))? {
            break;
        }
    }
    Ok(among)
}

/// What overlay shows under one name.
enum Found {
    /// A directory of these layers, top first.
    Directory(Vec<usize>),
    /// Anything else, of this layer.
    File(usize),
}

fn names(layers: &[Root], directory: &Merged) -> io::Result<BTreeMap<OsString, Found>> {
    let mut all: BTreeMap<OsString, Vec<(usize, FileKind)>> = BTreeMap::new();
    for &layer in &directory.layers {
        for item in layers[layer].read_dir(&directory.path)? {
            all.entry(item.name).or_default().push((layer, item.kind));
        }
    }
    let mut seen = BTreeMap::new();
    for (name, candidates) in all {
        let path = directory.path.join(&name);
        if let Some(found) = top(layers, &path, &candidates)? {
            seen.insert(name, found);
        }
    }
    Ok(seen)
}

/// Of candidates for one path, top first, what can be seen.
fn top(
    layers: &[Root],
    path: &Path,
    candidates: &[(usize, FileKind)],
) -> io::Result<Option<Found>> {
    let mut among = Vec::new();
    for &(layer, kind) in candidates {
        match kind {
            FileKind::Directory => {
                among.push(layer);
                if candidates.len() > 1 && is_opaque(&layers[layer], path)? {
                    break;
                }
            }
            FileKind::CharDevice | FileKind::File
                if layers[layer].is_whiteout(path, &layers[layer].stat(path)?)? =>
            {
                break;
            }
            _ if among.is_empty() => return Ok(Some(Found::File(layer))),
            _ => break,
        }
    }
    Ok((!among.is_empty()).then_some(Found::Directory(among)))
}

fn is_opaque(layer: &Root, path: &Path) -> io::Result<bool> {
    Ok(layer.get_xattr(path, OPAQUE)?.is_some_and(|value| value == b"y"))
}

/// Copies what is no directory.
pub(crate) fn copy(from: &Root, path: &Path, into: &Root) -> io::Result<()> {
    // One look-up of the directories on each side.
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
    let name = name.map(OsString::from).unwrap_or_default();
    let (from, into) = (from.open_dir(parent)?, into.open_dir(parent)?);
    let name = one(&name);
    let stat = from.stat(name)?;
    match stat.kind {
        FileKind::File => {
            data(&from.open_file(name)?, &mut into.create_file(name, 0o600)?, stat.size)?
        }
        FileKind::Symlink => into.symlink(&from.read_link(name)?, name)?,
        FileKind::Directory => return Ok(()),
        kind => match into.mknod(name, kind, stat.mode, stat.rdev) {
            // A layer of another builder, with a device that this one may not make.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            made => made?,
        },
    }
    attributes(&from, name, &stat, &into, name)?;
    into.set_mtime(name, stat.mtime)
}

/// The data of a file: its blocks shared, or copied without its holes.
fn data(from: &File, into: &mut File, size: u64) -> io::Result<()> {
    if size == 0 || rustix::fs::ioctl_ficlone(&*into, from).is_ok() {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(begin)).unwrap_or(size);
        into.seek(SeekFrom::Start(begin))?;
        at = begin;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(BUFFER).min(buffer.len());
            let count = from.read_at(&mut buffer[..wanted], at)?;
            if count == 0 {
                break;
            }
            into.write_all(&buffer[..count])?;
            at += count as u64;
        }
        at = end.max(begin + 1);
    }
    into.set_len(size)
}

/// Owner, extended attributes and mode, in the order in which one does not undo another (a change of
/// the owner clears the setuid bit and capabilities).
pub(crate) fn attributes(
    from: &Root,
    path: &Path,
    stat: &Stat,
    into: &Root,
    to: &Path,
) -> io::Result<()> {
    permitted(into.chown(to, stat.uid, stat.gid))?;
    for (name, value) in from.xattrs(path)? {
        if !is_overlay_attribute(&name) {
            permitted(into.set_xattr(to, &name, &value))?;
        }
    }
    if stat.kind != FileKind::Symlink {
        into.chmod(to, stat.mode)?;
    }
    Ok(())
}

/// Owners that are not in the builder's user namespace, attributes of security modules: files have
/// them in the layer, and what a step does not change is never written back.
fn permitted(result: io::Result<()>) -> io::Result<()> {
    let refused = [Errno::PERM, Errno::INVAL, Errno::OPNOTSUPP, Errno::ACCESS];
    match result {
        Err(error) if refused.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error())) => {
            Ok(())
        }
        result => result,
    }
}
