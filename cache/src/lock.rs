//! Locks by key, across threads and processes: a step that two builds need is run once.
//!
//! `flock` on `locks/<key>`, on an open file of its own each time, so that threads exclude one another too. The kernel
//! drops it with the process. The file is removed by its last holder; whoever got the lock on a file that has been
//! removed meanwhile tries again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::digest::Key;
use crate::process::LockFile;
use crate::root::{Root, Stat};
use crate::store::{Store, StoreError, failed};

/// The first and the longest wait between two attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));

/// A lock, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct KeyLock {
    _lock: NamedLock,
}

/// A lock on a file of that name in the store.
#[derive(Debug)]
pub(crate) struct NamedLock {
    root: Root,
    place: PathBuf,
    _file: LockFile,
}

impl Drop for NamedLock {
    fn drop(&mut self) {
        // While the lock is still held: nobody else may remove what the next holder made.
        let _ = self.root.remove_file(&self.place);
    }
}

impl NamedLock {
    /// Tries once.
    pub(crate) fn try_new(root: &Root, place: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = LockFile::open(root, place)?;
            if !file.try_lock(false)? {
                return Ok(None);
            }
            let held = Stat::of(file.fd())?;
            match root.stat(place) {
                Ok(named) if (named.device, named.inode) == (held.device, held.inode) => {
                    let pid = std::process::id().to_string();
                    rustix::io::pwrite(file.fd(), format!("{pid:<10}").as_bytes(), 0)?;
                    return Ok(Some(Self {
                        root: root.clone(),
                        place: place.to_owned(),
                        _file: file,
                    }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits; `None` when `cancelled` said yes.
    pub(crate) fn wait(
        root: &Root,
        place: &Path,
        cancelled: &dyn Fn() -> bool,
    ) -> io::Result<Option<Self>> {
        let mut wait = WAITS.0;
        loop {
            if let Some(lock) = Self::try_new(root, place)? {
                return Ok(Some(lock));
            }
            if cancelled() {
                return Ok(None);
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(WAITS.1);
        }
    }
}

fn place(key: &Key) -> PathBuf {
    Path::new("locks").join(format!("key-{key}"))
}

impl Store {
    /// Waits for the lock; `cancelled` is asked between attempts (at most 25 ms apart), and when it says yes, the
    /// answer is `None`.
    ///
    /// # Errors
    /// When the file system cannot lock.
    pub fn lock(
        &self,
        key: &Key,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<KeyLock>, StoreError> {
        let place = place(key);
        let lock = NamedLock::wait(self.root(), &place, cancelled);
        Ok(lock
            .map_err(failed("lock", &self.path().join(&place)))?
            .map(|lock| KeyLock { _lock: lock }))
    }

    /// Tries for the lock, without waiting.
    ///
    /// # Errors
    /// When the file system cannot lock.
    pub fn try_lock(&self, key: &Key) -> Result<Option<KeyLock>, StoreError> {
        let place = place(key);
        let lock = NamedLock::try_new(self.root(), &place);
        Ok(lock
            .map_err(failed("lock", &self.path().join(&place)))?
            .map(|lock| KeyLock { _lock: lock }))
    }

    /// The process that held the lock last, for messages. Its number means nothing in another container.
    #[must_use]
    pub fn lock_holder(&self, key: &Key) -> Option<u32> {
        let bytes = crate::store::read_limited(self.root(), &place(key), 64).ok()?;
        String::from_utf8(bytes).ok()?.trim().parse().ok()
    }
}
