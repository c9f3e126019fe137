//! What mounts would show, put into a step's private copy of its files: nothing of it is compared
//! afterwards, so it leaves no trace in the layer. Caches are copied in and moved out again.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use kiln_cache::{FileKind, Root, Stat};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};

use crate::copied::expand;
use crate::devices::DEVICES;
use crate::rootfs::context;
use crate::spec::{MountSource, MountSpec, RunSpec};
use crate::{etc, mounts};

/// What a step sees that is not of its layers.
#[derive(Debug)]
pub(crate) struct Places {
    /// Relative to the root.
    hidden: HashSet<PathBuf>,
    /// Where caches are, and where they come from.
    caches: Vec<(PathBuf, Root)>,
}

impl Places {
    /// Puts everything in its place in a copy. `caches` are those of the mounts that are kept.
    ///
    /// # Errors
    /// A mount that cannot be a copy; what the disk says.
    pub(crate) fn make(root: &Root, spec: &RunSpec, caches: &[MountSpec]) -> io::Result<Self> {
        let hidden = ["proc", "sys", "dev"].map(PathBuf::from).into();
        let mut places = Self { hidden, caches: Vec::new() };
        devices(root)?;
        let files = [
            mounts::file("/etc/resolv.conf", etc::resolv_conf(spec, etc::Names::Host)),
            mounts::file("/etc/hosts", etc::hosts(spec, None)),
        ];
        for mount in &files {
            places.put(root, &mount.target, &mount.source)?;
        }
        for mount in &spec.mounts {
            let what = || format!("mount {}", mount.target.display());
            if let MountSource::Folder { folder, read_only: false, .. } = &mount.source {
                let message = "a writable folder of the machine needs a mount, which --isolation=chroot has not";
                if !folder.starts_with(&spec.store) {
                    return context(what, Err(io::Error::other(message)));
                }
            }
            let at = context(what, places.put(root, &mount.target, &mount.source))?;
            if let (true, MountSource::Folder { folder, source, .. }) =
                (caches.contains(mount), &mount.source)
            {
                places.caches.push((at, folder_of(folder, source)?));
            }
        }
        Ok(places)
    }

    /// Whether a path is none of the layer's.
    pub(crate) fn hide(&self, path: &Path) -> bool {
        self.hidden.contains(path)
    }

    /// Moves what the step left in caches to the store.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn keep_caches(&self, root: &Root) -> io::Result<()> {
        for (at, cache) in &self.caches {
            let lock = Lock::new(cache)?;
            empty(cache, Path::new(""))?;
            for item in root.read_dir(at)? {
                root.rename(&at.join(&item.name), cache, Path::new(&item.name))?;
            }
            drop(lock);
        }
        Ok(())
    }

    /// Gives where it is, symbolic links of the image resolved inside of the root.
    fn put(&mut self, root: &Root, target: &Path, source: &MountSource) -> io::Result<PathBuf> {
        let path = resolve(root, target)?;
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        root.mkdir_all(&parent, 0o755)?;
        let before = root.stat(&parent)?;
        fill(root, &path, source)?;
        root.set_mtime(&parent, before.mtime)?;
        self.hidden.insert(path.clone());
        Ok(path)
    }
}

/// One at a time copies a cache in or moves it out, of all builders.
struct Lock<'a>(&'a Root);

impl<'a> Lock<'a> {
    fn new(folder: &'a Root) -> io::Result<Self> {
        flock(folder.as_fd(), FlockOperation::LockExclusive)?;
        Ok(Self(folder))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // The descriptor outlives the lock; when it is closed the lock is gone at the latest.
        let _closed_later = flock(self.0.as_fd(), FlockOperation::Unlock);
    }
}

fn resolve(root: &Root, target: &Path) -> io::Result<PathBuf> {
    let plain: PathBuf =
        target.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let Ok(found) = mounts::inside(&root.as_fd(), target) else { return Ok(plain) };
    let top = fs::canonicalize(root.path())?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    let real = fs::read_link(link)?;
    let inside = real.strip_prefix(&top).map(Path::to_path_buf);
    inside.map_err(|_| io::Error::other("it leads out of the root"))
}

/// A folder of the store, or a path in it.
fn folder_of(folder: &Path, source: &Path) -> io::Result<Root> {
    let found = mounts::inside(&crate::rootfs::open_path(folder)?, source)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Root::open_fd(openat(&found, ".", flags, Mode::empty())?, folder)
}

fn empty(root: &Root, path: &Path) -> io::Result<()> {
    for item in root.read_dir(path)? {
        root.remove_all(&path.join(item.name))?;
    }
    Ok(())
}

/// An empty directory, whatever was there.
fn directory(root: &Root, path: &Path) -> io::Result<()> {
    if root.stat(path).is_ok_and(|stat| stat.kind == FileKind::Directory) {
        return empty(root, path);
    }
    root.remove_all(path)?;
    root.mkdir(path, 0o755)
}

fn fill(root: &Root, path: &Path, source: &MountSource) -> io::Result<()> {
    match source {
        MountSource::Tmpfs { .. } => {
            directory(root, path)?;
            root.chmod(path, 0o1777)
        }
        MountSource::File { content, owner: (mode, uid, gid), .. } => {
            root.remove_all(path)?;
            root.create_file(path, 0o600)?.write_all(content)?;
            root.chown(path, *uid, *gid)?;
            root.chmod(path, *mode)
        }
        MountSource::Socket { path: socket } => {
            root.remove_all(path)?;
            let flags = rustix::fs::AtFlags::empty();
            Ok(linkat(CWD, socket, root.as_fd(), path, flags)?)
        }
        MountSource::Folder { folder, source, .. } => {
            let found = mounts::inside(&crate::rootfs::open_path(folder)?, source)?;
            let stat = Stat::of(&found)?;
            if stat.kind == FileKind::Directory {
                directory(root, path)?;
                let from = folder_of(folder, source)?;
                let lock = Lock::new(&from)?;
                expand::expand(std::slice::from_ref(&from), &root.open_dir(path)?)?;
                drop(lock);
            } else {
                root.remove_all(path)?;
                let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
                io::copy(&mut fs::File::open(link)?, &mut root.create_file(path, 0o600)?)?;
            }
            root.chown(path, stat.uid, stat.gid)?;
            root.chmod(path, stat.mode)
        }
        MountSource::Layers { .. } => Err(io::Error::other("layers are folders by now")),
    }
}

/// A /dev with what may be made. Where no device may be, /dev/null is a file, so that at least writing
/// to it works.
fn devices(root: &Root) -> io::Result<()> {
    let dev = Path::new("dev");
    directory(root, dev)?;
    root.chmod(dev, 0o755)?;
    root.mkdir(&dev.join("shm"), 0o700)?;
    root.chmod(&dev.join("shm"), 0o1777)?;
    for &(name, major, minor) in DEVICES {
        let path = dev.join(name);
        let made = root.mknod(&path, FileKind::CharDevice, 0o666, (major, minor));
        if name == "null" && (made.is_err() || !opens(root, &path)) {
            root.remove_all(&path)?;
            root.create_file(&path, 0o600)?;
            root.chmod(&path, 0o666)?;
        }
    }
    Ok(())
}

fn opens(root: &Root, path: &Path) -> bool {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(root.as_fd(), path, flags, Mode::empty()).is_ok()
}
