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
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::digest::LayerId;
use crate::root::{FileKind, Root};

/// What begins with this in `tmp/` is nobody's and may be removed by anybody.
pub(crate) const DEAD: &str = "dead-";

/// For so long is waited for a lock that is held for moments: as long as for the database.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    tmp: Root,
    dir: Root,
    _owner: LockFile,
    next: AtomicU64,
    /// Folders for things that need one like it.
    used: Mutex<Vec<PathBuf>>,
}

/// A file that is only there to be locked. Dropping it unlocks, and does not leave that to closing: a child that was
/// forked a moment ago, and has not yet called `exec`, still has the file open.
#[derive(Debug)]
pub(crate) struct LockFile(OwnedFd);

impl Drop for LockFile {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl LockFile {
    /// Opens it, making it when it is not there; not locked yet.
    pub(crate) fn open(root: &Root, name: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        crate::root::check_path(name)?;
        Ok(Self(rustix::fs::openat(root.as_fd(), name, flags, mode)?))
    }

    /// The file.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    fn flock(&self, operation: FlockOperation) -> io::Result<()> {
        loop {
            match rustix::fs::flock(&self.0, operation) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Opens it and waits for the lock, alone. For what is held for moments only: who holds it for longer than
    /// [`PATIENCE`] is stopped, and named.
    pub(crate) fn wait(root: &Root, name: &Path) -> io::Result<Self> {
        Self::wait_for(root, name, PATIENCE)
    }

    fn wait_for(root: &Root, name: &Path, patience: Duration) -> io::Result<Self> {
        let file = Self::open(root, name)?;
        let begun = Instant::now();
        let mut pause = Duration::from_micros(50);
        while !file.try_lock(false).map_err(|error| no_locks(&error))? {
            if begun.elapsed() > patience {
                let seconds = patience.as_secs();
                let text = match file.holder() {
                    Some(pid) => format!("process {pid} has held it for {seconds} seconds"),
                    None => format!("another process has held it for {seconds} seconds"),
                };
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        Ok(file)
    }

    /// The process that has the lock, where the kernel shows it: one in another container it does not.
    pub(crate) fn holder(&self) -> Option<u32> {
        let inode = rustix::fs::fstat(&self.0).ok()?.st_ino;
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| holder_in(line, inode))
    }

    /// Tries for the lock; false when somebody has it.
    pub(crate) fn try_lock(&self, shared: bool) -> io::Result<bool> {
        let operation = match shared {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match self.flock(operation) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            result => result.map(|()| true),
        }
    }
}

/// The process of a line such as `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF` (proc_locks(5)), if it is about this
/// inode. Device numbers are those of superblocks, which stat(2) does not tell for every file system.
fn holder_in(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    if words.next() != Some("FLOCK") {
        return None;
    }
    let pid = words.nth(2)?.parse().ok()?;
    let found: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
    (found == inode && pid > 0).then_some(pid)
}

/// What the file system says that has no locks, in words that say so.
fn no_locks(error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::Unsupported => "no locks available on this file system".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("it cannot be locked: {text}"))
}

impl Process {
    /// Makes this process's folder, and sweeps in the background what dead ones left.
    pub(crate) fn new(tmp: Root) -> io::Result<(Self, Vec<PathBuf>)> {
        let guard = LockFile::wait(&tmp, Path::new("lock"))?;
        let dead = bury(&tmp)?;
        let name = LayerId::random().to_string();
        tmp.mkdir(Path::new(&name), 0o700)?;
        let dir = tmp.open_dir(Path::new(&name))?;
        let owner = LockFile::wait(&dir, Path::new("owner"))?;
        drop(guard);
        let (next, used) = (AtomicU64::new(0), Mutex::default());
        Ok((Self { name, tmp, dir, _owner: owner, next, used }, dead))
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

    /// A folder in the folder that [`Process::give_back`] got.
    pub(crate) fn used(&self) -> Option<PathBuf> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a folder for the next who needs one like it.
    pub(crate) fn give_back(&self, name: PathBuf) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).push(name);
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
            match tmp.rename(name, tmp, &buried) {
                Ok(()) => dead.push(buried),
                // A process that ends removes its own folder, without the lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(dead)
}

/// Removes what dead processes left. Needs no room on the disk.
pub(crate) fn sweep(tmp: &Root) -> io::Result<()> {
    let dead = {
        let _guard = LockFile::wait(tmp, Path::new("lock"))?;
        bury(tmp)?
    };
    for name in dead {
        // Another process may be at it, too.
        let _ = tmp.remove_all(&name);
    }
    Ok(())
}

/// Whether nobody holds the folder `name`. Call with `tmp/lock` held.
fn is_dead(tmp: &Root, name: &Path) -> io::Result<bool> {
    let owner = match tmp.open_file(&name.join("owner")) {
        Ok(file) => LockFile(OwnedFd::from(file)),
        // A process that died between the two, or one that is being removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    owner.try_lock(false)
}

/// The processes that are alive and have a folder.
pub(crate) fn living(tmp: &Root) -> io::Result<Vec<String>> {
    let _guard = LockFile::wait(tmp, Path::new("lock"))?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::{LockFile, holder_in};
    use crate::root::Root;

    #[test]
    fn f31_who_holds_a_lock_for_too_long_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::open(folder.path()).expect("opened");
        let held = LockFile::wait(&root, Path::new("lock")).expect("locked");
        let patience = Duration::from_millis(20);
        let refused = LockFile::wait_for(&root, Path::new("lock"), patience).expect_err("held");
        let expect = format!("process {} has held it", std::process::id());
        assert!(refused.to_string().contains(&expect), "{refused}");
        drop(held);
        LockFile::wait_for(&root, Path::new("lock"), patience).expect("free");
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF";
        assert_eq!(holder_in(line, 1234), Some(4711));
        assert_eq!(holder_in(line, 4711), None);
        assert_eq!(holder_in("2: POSIX  ADVISORY  READ 1 fe:00:1234 0 EOF", 1234), None);
        assert_eq!(holder_in("2: -> FLOCK  ADVISORY  WRITE 2 fe:00:1234 0 EOF", 1234), None);
    }
}
