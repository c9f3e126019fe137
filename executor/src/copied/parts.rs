//! What a step sees beside its root, for roots that are no overlay: mount points, and mounts of layers as folders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Root, Stat};

use super::expand;
use crate::mounts;
use crate::spec::{MountSource, RunSpec};
use crate::trust;

/// A step's specification with folders in place of mounted layers, and what its root is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The specification.
    pub(crate) spec: RunSpec,
    /// The layers of the root, the mount points at the bottom.
    pub(crate) layers: Vec<PathBuf>,
}

impl Parts {
    /// Makes the parts in the step's work directory.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub(crate) fn make(spec: &RunSpec) -> io::Result<Self> {
        let mut spec = spec.clone();
        let bottom = spec.work.join("bottom");
        fs::create_dir(&bottom)?;
        for directory in ["/proc", "/sys", "/dev"] {
            mounts::stub(&bottom, Path::new(directory), true)?;
        }
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            mounts::stub(&bottom, Path::new(file), false)?;
        }
        for (number, mount) in spec.mounts.iter_mut().enumerate() {
            let own = spec.work.join(format!("mount-{number}"));
            if let Some(is_directory) = prepare(&mut mount.source, &own)? {
                mounts::stub(&bottom, &mount.target, is_directory)?;
            }
        }
        let mut layers = vec![bottom];
        layers.extend(spec.base.layers.iter().cloned());
        layers.extend(trusted(&mut spec, &layers)?);
        Ok(Self { spec, layers })
    }
}

/// All layers, opened.
pub(super) fn open(layers: &[PathBuf]) -> io::Result<Vec<Root>> {
    layers.iter().map(|layer| Root::open(layer)).collect()
}

/// Adds `--ca-certs` to a step: its files as mounts, and a layer above the image's, which is given.
fn trusted(spec: &mut RunSpec, layers: &[PathBuf]) -> io::Result<Option<PathBuf>> {
    let Some(authorities) = &spec.ca_certs else { return Ok(None) };
    let (image, layer) = (spec.work.join("image"), spec.work.join("trust"));
    fs::create_dir(&image)?;
    let root = Root::open(&image)?;
    expand::expand(&open(layers)?, &root)?;
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
                expand::expand(&open(layers)?, &Root::open(own)?)?;
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
