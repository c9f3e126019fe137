//! What this process has in `tmp/`, and what dead processes left there.
//!
//! `tmp/<name>/` belongs to the process that holds the lock on `tmp/<name>/owner`. The kernel drops the lock when the
//! process ends, however it ends; process numbers are not compared, since processes in different containers may share
//! a store. Making such a folder and looking for dead ones exclude one another (`tmp/lock`), so that a folder is never
//! seen between its making and its locking. A process that writes nothing has none, and sweeps nothing.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::digest::LayerId;
use crate::root::{FileKind, Root};

const DEAD: &str = "dead-";

#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    tmp: Root,
    dir: Root,
    _owner: OwnedFd,
    next: AtomicU64,
}

/// Opens (making it) a file that is only there to be locked.
pub(crate) fn lock_file(root: &Root, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    crate::root::check_path(name)?;
    Ok(rustix::fs::openat(root.as_fd(), name, flags, mode)?)
}

pub(crate) fn flock(fd: &OwnedFd, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(fd, operation) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Tries for an exclusive lock; false when somebody has it.
pub(crate) fn try_flock(fd: &OwnedFd) -> io::Result<bool> {
    match flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        result => result.map(|()| true),
    }
}

impl Process {
    /// Makes this process's folder, and sweeps in the background what dead ones left.
    pub(crate) fn new(tmp: Root) -> io::Result<(Self, Vec<PathBuf>)> {
        let guard = lock_file(&tmp, Path::new("lock"))?;
        flock(&guard, FlockOperation::LockExclusive)?;
        let dead = bury(&tmp)?;
        let name = LayerId::random().to_string();
        tmp.mkdir(Path::new(&name), 0o700)?;
        let dir = tmp.open_dir(Path::new(&name))?;
        let owner = lock_file(&dir, Path::new("owner"))?;
        flock(&owner, FlockOperation::LockExclusive)?;
        Ok((Self { name, tmp, dir, _owner: owner, next: AtomicU64::new(0) }, dead))
    }

    /// The folder's name, which leases carry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Root {
        &self.dir
    }

    /// A number that no other thing of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A new name in the folder.
    pub(crate) fn fresh(&self) -> PathBuf {
        PathBuf::from(self.number().to_string())
    }

    /// A new file in the folder.
    pub(crate) fn file(&self) -> io::Result<(PathBuf, File)> {
        let name = self.fresh();
        let file = self.dir.create_file(&name, 0o600)?;
        Ok((name, file))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What cannot be removed is swept by the next process.
        let _ = self.tmp.remove_all(Path::new(&self.name));
    }
}

/// Renames the folders of dead processes out of the way, so that they can be removed without the lock.
fn bury(tmp: &Root) -> io::Result<Vec<PathBuf>> {
    let mut dead = Vec::new();
    for item in tmp.read_dir(Path::new(""))? {
        let name = Path::new(&item.name);
        if item.kind != FileKind::Directory {
            continue;
        }
        if name.to_string_lossy().starts_with(DEAD) {
            dead.push(name.to_owned());
            continue;
        }
        if is_dead(tmp, name)? {
            let buried = PathBuf::from(format!("{DEAD}{}", name.display()));
            tmp.rename(name, tmp, &buried)?;
            dead.push(buried);
        }
    }
    Ok(dead)
}

/// Whether nobody holds the folder `name`. Call with `tmp/lock` held.
fn is_dead(tmp: &Root, name: &Path) -> io::Result<bool> {
    let owner = match tmp.open_file(&name.join("owner")) {
        Ok(file) => OwnedFd::from(file),
        // A process that died between the two, or one that is being removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    try_flock(&owner)
}

/// The processes that are alive and have a folder.
pub(crate) fn living(tmp: &Root) -> io::Result<Vec<String>> {
    let guard = lock_file(tmp, Path::new("lock"))?;
    flock(&guard, FlockOperation::LockExclusive)?;
    let mut living = Vec::new();
    for item in tmp.read_dir(Path::new(""))? {
        let name = item.name.to_string_lossy().into_owned();
        let folder = item.kind == FileKind::Directory && !name.starts_with(DEAD);
        if folder && !is_dead(tmp, Path::new(&name))? {
            living.push(name);
        }
    }
    Ok(living)
}
