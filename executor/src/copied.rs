//! The snapshotter for machines where overlay cannot be mounted: a step's root is a private copy of its
//! layers, and what the step changed in it becomes an upper directory as overlay would have left it.
//!
//! Copies share blocks with the layers where the file system can (FICLONE). Hard links would be
//! cheaper still and are never made: a step that writes to one would change the stored layer. For the
//! same reason files of the image that are hard links of each other are single files in the copy:
//! overlay separates them as well when one of them is written to (its documentation, "Non-standard behavior").

mod difference;
pub(crate) mod expand;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Root, Stat};

use crate::chroot::Places;
use crate::mounts;
use crate::rootfs::context;
use crate::spec::{MountSource, MountSpec, RunSpec};
use crate::trust;

pub(crate) use difference::Before;

/// What a step may have changed, for one that is about to start.
#[derive(Debug)]
pub(crate) struct Copied {
    root: Root,
    before: Before,
    /// What is there in place of mounts.
    places: Option<Places>,
}

/// Where the copy of a step's files is: its root.
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
        let mut spec = spec.clone();
        let bottom = spec.work.join("bottom");
        fs::create_dir(&bottom)?;
        for directory in ["/proc", "/sys", "/dev"] {
            mounts::stub(&bottom, Path::new(directory), true)?;
        }
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            mounts::stub(&bottom, Path::new(file), false)?;
        }
        let is_cache = |mount: &MountSpec| matches!(&mount.source, MountSource::Folder { folder, read_only: false, .. } if folder.starts_with(&spec.store));
        let mut caches: Vec<MountSpec> =
            spec.mounts.iter().filter(|mount| is_cache(mount)).cloned().collect();
        for (number, mount) in spec.mounts.iter_mut().enumerate() {
            let own = spec.work.join(format!("mount-{number}"));
            if let Some(is_directory) = prepare(&mut mount.source, &own)? {
                mounts::stub(&bottom, &mount.target, is_directory)?;
            }
        }
        let mut layers = vec![Root::open(&bottom)?];
        for layer in &spec.base.layers {
            layers.push(Root::open(layer)?);
        }
        if let Some(layer) = trusted(&mut spec, &layers)? {
            layers.push(Root::open(&layer)?);
        }
        let path = root_path(&spec.work);
        fs::create_dir(&path)?;
        let root = Root::open(&path)?;
        let copied = expand::expand(&layers, &root);
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
        let work = Root::open(&spec.work)?;
        for item in work.read_dir(Path::new(""))? {
            // What cannot be removed goes with the draft.
            let _later = work.remove_all(Path::new(&item.name));
        }
        Ok(())
    }
}

/// Adds `--ca-certs` to a step: its files as mounts, and a layer above the image's, which is given.
fn trusted(spec: &mut RunSpec, layers: &[Root]) -> io::Result<Option<PathBuf>> {
    let Some(authorities) = &spec.ca_certs else { return Ok(None) };
    let (image, layer) = (spec.work.join("image"), spec.work.join("trust"));
    fs::create_dir(&image)?;
    let root = Root::open(&image)?;
    expand::expand(layers, &root)?;
    let open = root.as_fd().try_clone_to_owned()?;
    let prepared = trust::prepare_in(authorities, Some(&open), &layer, &spec.env)?;
    spec.mounts.splice(0..0, prepared.mounts);
    Ok(prepared.layer)
}

/// Makes a folder of what a mount shows of layers: a copy, or one layer as it is where nothing is
/// written and it hides nothing. Gives whether a mount is a directory; `None` where its source is
/// missing: whoever mounts it says so.
fn prepare(source: &mut MountSource, own: &Path) -> io::Result<Option<bool>> {
    if let MountSource::Layers { stack, source: path, read_only } = source {
        let folder = match stack.layers.as_slice() {
            [layer] if *read_only && !has_whiteouts(layer)? => layer.clone(),
            layers => {
                fs::create_dir(own)?;
                let layers = layers.iter().map(|layer| Root::open(layer));
                expand::expand(&layers.collect::<io::Result<Vec<_>>>()?, &Root::open(own)?)?;
                own.to_owned()
            }
        };
        *source = MountSource::Folder { folder, source: path.clone(), read_only: *read_only };
    }
    match source {
        MountSource::Tmpfs { .. } => Ok(Some(true)),
        MountSource::Folder { folder, source, .. } => {
            let found = mounts::inside(&crate::rootfs::open_path(folder)?, source);
            let stat = found.ok().map(|found| Stat::of(&found)).transpose()?;
            Ok(stat.map(|stat| stat.kind == FileKind::Directory))
        }
        _ => Ok(Some(false)),
    }
}

/// Whether a layer has a whiteout somewhere: seen by itself, it would show as a device.
fn has_whiteouts(layer: &Path) -> io::Result<bool> {
    let root = Root::open(layer)?;
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        for item in root.read_dir(&path)? {
            match item.kind {
                FileKind::Directory => pending.push(path.join(item.name)),
                FileKind::CharDevice | FileKind::File => {
                    let path = path.join(item.name);
                    if root.is_whiteout(&path, &root.stat(&path)?)? {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(false)
}

/// What marks a directory as opaque for an overlay that is mounted with `userxattr`.
const OPAQUE: &[u8] = b"user.overlay.opaque";

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
