//! The snapshotter for machines where overlay cannot be mounted: a step's root is a private copy of its
//! layers, and what the step changed in it becomes an upper directory as overlay would have left it.
//!
//! Copies share blocks with the layers where the file system can (FICLONE). Hard links would be
//! cheaper still and are never made: a step that writes to one would change the stored layer. For the
//! same reason files of the image that are hard links of each other are single files in the copy:
//! overlay separates them as well when one of them is written to (its documentation, "Non-standard behavior").

mod difference;
pub(crate) mod expand;
mod parts;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{Root, Stat};

use crate::chroot::Places;
use crate::rootfs::context;
use crate::spec::{MountSource, MountSpec, RunSpec};

pub(crate) use difference::Before;
pub(crate) use parts::Parts;

/// What a step may have changed, for one that is about to start.
#[derive(Debug)]
pub(crate) struct Copied {
    root: Root,
    before: Before,
    /// What is there in place of mounts.
    places: Option<Places>,
}

/// Where a step's root is that is no overlay: the copy of its files, or the mount of fuse-overlayfs.
pub(crate) fn root_path(work: &Path) -> PathBuf {
    work.join("root")
}

impl Copied {
    /// Copies everything that the step of a specification sees of layers, with the mount points that
    /// are missing. Gives the specification with folders in place of mounted layers.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub(crate) fn make(spec: &RunSpec) -> io::Result<(Self, RunSpec)> {
        let is_cache = |mount: &MountSpec| matches!(&mount.source, MountSource::Folder { folder, read_only: false, .. } if folder.starts_with(&spec.store));
        let mut caches: Vec<MountSpec> =
            spec.mounts.iter().filter(|mount| is_cache(mount)).cloned().collect();
        let Parts { spec, layers } = Parts::make(spec)?;
        let path = root_path(&spec.work);
        fs::create_dir(&path)?;
        let root = Root::open(&path)?;
        let copied = expand::expand(&parts::open(&layers)?, &root);
        context(|| "copy the files of the step".to_owned(), copied)?;
        root.chmod(Path::new(""), Stat::of(fs::File::open(&spec.upper)?)?.mode)?;
        caches.retain(|cache| spec.mounts.contains(cache));
        let places = spec.in_chroot().then(|| Places::make(&root, &spec, &caches)).transpose()?;
        let before = Before::of(&root)?;
        Ok((Self { root, before, places }, spec))
    }

    /// Moves what has changed to the upper directory, and removes the copy. Nothing of the step runs.
    ///
    /// # Errors
    /// What the disk says; the upper directory is incomplete then.
    pub(crate) fn finish(self, spec: &RunSpec) -> io::Result<()> {
        let upper = Root::open(&spec.upper)?;
        let moved = difference::take(&self.root, &self.before, &upper, |path| {
            self.places.as_ref().is_some_and(|places| places.hide(path))
        });
        context(|| "compare the files of the step".to_owned(), moved)?;
        if let Some(places) = &self.places {
            context(|| "keep what is in caches".to_owned(), places.keep_caches(&self.root))?;
        }
        clear(&spec.work)
    }
}

/// Empties a step's work directory, or its upper directory.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn clear(folder: &Path) -> io::Result<()> {
    let folder = Root::open(folder)?;
    for item in folder.read_dir(Path::new(""))? {
        // What cannot be removed goes with the draft.
        let _later = folder.remove_all(Path::new(&item.name));
    }
    Ok(())
}

/// What marks a directory as opaque for an overlay that is mounted with `userxattr`.
pub(crate) const OPAQUE: &[u8] = b"user.overlay.opaque";

/// Whether an attribute is overlay's own: it says how layers are put together, and is no part of a file.
fn is_overlay_attribute(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}

/// A path and the directories on the way to it, the root first and itself last.
fn with_parents(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = path.ancestors().map(Path::to_path_buf).collect();
    all.reverse();
    all
}

/// A name as a path of its own.
fn one(name: &OsString) -> &Path {
    Path::new(name)
}

#[cfg(test)]
mod tests;
