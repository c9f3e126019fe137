//! Mounts of a RUN: bind, cache, tmpfs, secret, ssh. Sources are opened, beneath their own root, while
//! the host's files are still there; targets are resolved when the image's root is the only one.
//!
//! Mount points that an image does not have are made in `bottom`, a directory below all layers, so
//! that none of them is left in the step's layer.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::place::Place;
use crate::rootfs::{self, Upper, context};
use crate::spec::{MountSource, MountSpec, RunSpec, Stack};

/// A mount whose source is ready.
pub(crate) struct Prepared {
    target: PathBuf,
    source: Detached,
    flags: MsFlags,
    is_directory: bool,
}

enum Detached {
    Tree(OwnedFd),
    Tmpfs(String),
}

/// Makes the mount point of a target in `bottom`.
pub(crate) fn stub(bottom: &Path, target: &Path, is_directory: bool) -> io::Result<()> {
    let relative: PathBuf =
        target.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let place = bottom.join(relative);
    if is_directory {
        fs::create_dir_all(&place)
    } else {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::options().create(true).append(true).open(&place).map(drop)
    }
}

/// Opens all sources; files and throw-away layers are made in the place.
pub(crate) fn prepare(
    spec: &RunSpec,
    mounts: &[MountSpec],
    place: &Place,
    bottom: &Path,
) -> io::Result<Vec<Prepared>> {
    let mut prepared = Vec::with_capacity(mounts.len());
    for (number, mount) in mounts.iter().enumerate() {
        let own = PathBuf::from(format!("mount-{number}"));
        let ready = context(
            || format!("mount {}", mount.target.display()),
            source(spec, mount, &own, place),
        )?;
        stub(bottom, &mount.target, ready.is_directory)?;
        prepared.push(ready);
    }
    Ok(prepared)
}

fn source(spec: &RunSpec, mount: &MountSpec, own: &Path, place: &Place) -> io::Result<Prepared> {
    let target = mount.target.clone();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match &mount.source {
        MountSource::Layers { stack, source, read_only } => {
            let flags = if *read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
            let layers: Vec<_> = stack.layers.iter().map(|layer| place.path(layer)).collect();
            let tree = overlay_part(&Stack { layers }, source, *read_only, own)?;
            prepared(target, tree, flags)
        }
        MountSource::Folder { folder, source, read_only } => {
            let root = rootfs::open_path(&place.path(folder))?;
            let tree = rootfs::clone_mount(&inside(&root, source)?, false)?;
            let mut flags = if *read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
            if spec.own_ids && folder.starts_with(&spec.store) {
                // Device nodes of an image, or of a step that was given the machine's, open nothing here.
                flags |= MsFlags::MS_NODEV;
            }
            prepared(target, tree, flags)
        }
        MountSource::Tmpfs { size } => {
            let options = size
                .map_or_else(|| "mode=1777".to_owned(), |size| format!("mode=1777,size={size}"));
            Ok(Prepared {
                target,
                source: Detached::Tmpfs(options),
                flags: MsFlags::MS_NOSUID,
                is_directory: true,
            })
        }
        MountSource::File { content, owner: (mode, uid, gid), executable } => {
            let mut file =
                fs::File::options().write(true).create_new(true).mode(0o600).open(own)?;
            file.write_all(content)?;
            chown(own, Some(*uid), Some(*gid))?;
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
            let tree = rootfs::clone_mount(&rootfs::open_path(own)?, false)?;
            let exec = if *executable { MsFlags::empty() } else { MsFlags::MS_NOEXEC };
            prepared(target, tree, quiet | exec | MsFlags::MS_RDONLY)
        }
        MountSource::Socket { path } => {
            // Writable: steps hand the agent to their users with chmod or chown, as with BuildKit.
            let tree = rootfs::clone_mount(&rootfs::open_path(&place.path(path))?, false)?;
            prepared(target, tree, quiet | MsFlags::MS_NOEXEC)
        }
    }
}

fn prepared(target: PathBuf, tree: OwnedFd, flags: MsFlags) -> io::Result<Prepared> {
    let stat = rustix::fs::fstat(&tree)?;
    let is_directory =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    Ok(Prepared { target, source: Detached::Tree(tree), flags, is_directory })
}

/// A path in a stack of layers; one layer needs no overlay where nothing is written.
fn overlay_part(stack: &Stack, source: &Path, read_only: bool, own: &Path) -> io::Result<OwnedFd> {
    let (empty, upper, work, place) =
        (own.join("empty"), own.join("upper"), own.join("work"), own.join("root"));
    for dir in [&empty, &upper, &work, &place] {
        fs::create_dir_all(dir)?;
    }
    let write = Upper { upper: &upper, work: &work };
    let overlay = rootfs::overlay(stack, &empty, (!read_only).then_some(&write))?;
    // A part of a detached mount can be cloned only where it is attached (open_tree(2)).
    rootfs::attach(&overlay, rootfs::open_path(&place)?.as_fd())?;
    let root = rootfs::open_path(&place)?;
    rootfs::clone_mount(&inside(&root, source)?, false)
}

/// A path below a root, symbolic links resolved as if the root were `/`.
pub(crate) fn inside(root: &impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    found.map_err(|error| match error {
        rustix::io::Errno::NOENT => {
            io::Error::new(io::ErrorKind::NotFound, format!("\"{}\": not found", path.display()))
        }
        other => io::Error::from(other),
    })
}

impl Prepared {
    /// Attaches it; the image's root is `/` now.
    pub(crate) fn attach(&self) -> io::Result<()> {
        let done = self.attach_to(&self.target);
        context(|| format!("mount {}", self.target.display()), done)
    }

    fn attach_to(&self, target: &Path) -> io::Result<()> {
        if fs::metadata(target).is_err() {
            self.make_target(target)?;
        }
        match &self.source {
            Detached::Tmpfs(options) => {
                mount(Some("tmpfs"), target, Some("tmpfs"), self.flags, Some(options.as_str()))?;
                Ok(())
            }
            Detached::Tree(tree) => {
                rootfs::attach(tree, rootfs::open_path(target)?.as_fd())?;
                let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | self.flags;
                mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
                Ok(())
            }
        }
    }

    /// The image hides the mount point below the layers (a link, an opaque directory): it has to be
    /// made in the image itself.
    fn make_target(&self, target: &Path) -> io::Result<()> {
        if self.is_directory {
            return fs::create_dir_all(target);
        }
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
        fs::File::create(target).map(drop)
    }
}

/// A small file of the step at a path of the image, read-only.
pub(crate) fn file(target: &str, content: String) -> MountSpec {
    let source = MountSource::File {
        content: content.into_bytes(),
        owner: (0o644, 0, 0),
        executable: false,
    };
    MountSpec { target: PathBuf::from(OsStr::new(target)), source }
}
