//! RUN cache mounts: folders that survive from build to build and are in no layer and no key.
//!
//! `mounts/<hash of id, base, mode and owner>-<time>/`; the table says which folder belongs to which id, so that clearing an
//! id is forgetting it: whoever runs keeps the folder, later users get a new one. A user holds `locks/mount-<folder>`,
//! shared or alone; pruning takes a folder only when it gets that lock alone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::owner::as_far_as_possible;
use crate::process::LockFile;
use crate::root::Root;
use crate::store::{Store, StoreError, failed, now, now_ms};
use rusqlite::{Transaction, params};

/// Between two attempts to get a mount that somebody has.
const WAIT: Duration = Duration::from_millis(20);

/// So many steps that used a mount are remembered.
const USERS: i64 = 16;

/// Who may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// One at a time; others get another one.
    Private,
    /// One at a time; others wait.
    Locked,
}

/// What a step asks for. A mount with another base, mode or owner is another mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountRequest {
    /// The mount's id.
    pub id: String,
    /// What it starts from (content of `from=`, source); none: empty.
    pub base: Option<String>,
    /// Who may use it.
    pub sharing: Sharing,
    /// Mode of a new one.
    pub mode: u32,
    /// Owner of a new one.
    pub uid: u32,
    /// Group of a new one.
    pub gid: u32,
    /// Who asks, for people: the step.
    pub user: String,
}

/// A cache mount in use; dropping it lets others have it.
#[derive(Debug)]
pub struct CacheMount {
    path: PathBuf,
    _lock: LockFile,
}

impl CacheMount {
    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock_place(dir: &str) -> PathBuf {
    Path::new("locks").join(format!("mount-{dir}"))
}

pub(crate) fn hash(request: &CacheMountRequest) -> String {
    let CacheMountRequest { id, base, mode, uid, gid, sharing: _, user: _ } = request;
    let mut hasher = blake3::Hasher::new_derive_key("kiln 2026-11 name of a cache mount v1");
    let text = serde_json::to_vec(&(id, base, mode, uid, gid)).expect("it can be written as JSON");
    hasher.update(&text);
    hasher.finalize().to_hex()[..32].to_owned()
}

impl Store {
    /// Opens a cache mount. `fill` is called for a new one only, before anybody sees it. `None` when `cancelled` said
    /// yes while waiting.
    ///
    /// # Errors
    /// When the disk or the database fails, or `fill` does.
    pub fn cache_mount(
        &self,
        request: &CacheMountRequest,
        fill: &dyn Fn(&Root) -> io::Result<()>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<CacheMount>, StoreError> {
        let hash = hash(request);
        let user = request.user.as_str();
        loop {
            let dirs = self.mount_dirs(&hash)?;
            let wanted = match request.sharing {
                Sharing::Private => dirs.as_slice(),
                _ => &dirs[..dirs.len().min(1)],
            };
            let shared = request.sharing == Sharing::Shared;
            for dir in wanted {
                if let Some(mount) = self.take_mount(dir, shared, user)? {
                    return Ok(Some(mount));
                }
            }
            if request.sharing == Sharing::Private {
                // Nobody just looks whether one is free while we look: none is, then.
                let _guard = self.mount_guard()?;
                for dir in wanted {
                    if let Some(mount) = self.take_mount(dir, shared, user)? {
                        return Ok(Some(mount));
                    }
                }
            }
            if wanted.is_empty() || request.sharing == Sharing::Private {
                self.make_mount(&hash, request, dirs.len(), fill)?;
                continue;
            }
            if cancelled() {
                return Ok(None);
            }
            std::thread::sleep(WAIT);
        }
    }

    /// Held by whoever only looks whether a mount is free.
    fn mount_guard(&self) -> Result<LockFile, StoreError> {
        let name = Path::new("locks/mounts");
        LockFile::wait(self.root(), name).map_err(failed("lock", &self.path().join(name)))
    }

    /// Whether a running step, of any process, has it.
    pub(crate) fn mount_in_use(&self, dir: &str) -> bool {
        let Ok(_guard) = self.mount_guard() else { return true };
        self.mount_lock(dir, false).map_or(true, |lock| lock.is_none())
    }

    /// The folders that belong to a hash, oldest first.
    pub(crate) fn mount_dirs(&self, hash: &str) -> Result<Vec<String>, StoreError> {
        self.db().read("look up a cache mount", |connection| {
            let query = "SELECT dir FROM mounts WHERE dir > ?1 AND dir < ?2 AND id != ''
                         ORDER BY dir";
            let mut statement = connection.prepare_cached(query)?;
            let range = [format!("{hash}-"), format!("{hash}.")];
            let rows = statement.query_map(range, |row| row.get(0))?;
            rows.collect()
        })
    }

    fn mount_lock(&self, dir: &str, shared: bool) -> io::Result<Option<LockFile>> {
        let file = LockFile::open(self.root(), &lock_place(dir))?;
        Ok(file.try_lock(shared)?.then_some(file))
    }

    pub(crate) fn take_mount(
        &self,
        dir: &str,
        shared: bool,
        user: &str,
    ) -> Result<Option<CacheMount>, StoreError> {
        let path = self.path().join("mounts").join(dir);
        let lock = self.mount_lock(dir, shared).map_err(failed("lock the cache mount", &path))?;
        let Some(lock) = lock else { return Ok(None) };
        // With the lock held, pruning cannot take it any more; it may have before.
        let there = self.db().write("note the use of a cache mount", |transaction| {
            if user.is_empty() {
                // Somebody who only looks into it.
                return transaction.prepare("SELECT 1 FROM mounts WHERE dir = ?1")?.exists([dir]);
            }
            let query = "UPDATE mounts SET last_used = ?2 WHERE dir = ?1";
            let there = transaction.execute(query, params![dir, now()])? > 0;
            if there {
                note_user(transaction, dir, user)?;
            }
            Ok(there)
        })?;
        if !there {
            return Ok(None);
        }
        if self.root().stat(&Path::new("mounts").join(dir)).is_err() {
            self.db().write("forget a cache mount", |transaction| {
                transaction.execute("DELETE FROM mounts WHERE dir = ?1", [dir])
            })?;
            return Ok(None);
        }
        Ok(Some(CacheMount { path, _lock: lock }))
    }

    /// Makes the folder in `tmp/`, fills it, and publishes it; several may try at once, and one wins.
    fn make_mount(
        &self,
        hash: &str,
        request: &CacheMountRequest,
        known: usize,
        fill: &dyn Fn(&Root) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let process = self.process()?;
        let (dir, draft) = (process.dir(), process.fresh());
        let make = || {
            dir.mkdir(&draft, 0o700)?;
            let root = dir.open_dir(&draft)?;
            fill(&root)?;
            as_far_as_possible(root.chown(Path::new(""), request.uid, request.gid))?;
            root.chmod(Path::new(""), request.mode)
        };
        let path = self.path().join("mounts");
        if let Err(error) = make() {
            let _ = dir.remove_all(&draft);
            return Err(failed("make a cache mount in", &path)(error));
        }
        let _lock = self.publish_lock()?;
        if self.mount_dirs(hash)?.len() > known {
            return dir.remove_all(&draft).map_err(failed("remove", &path));
        }
        // Sorted by name, they are sorted by age.
        let mut time = now_ms();
        let name = loop {
            let name = format!("{hash}-{time:012x}");
            if self.root().stat(&Path::new("mounts").join(&name)).is_err() {
                break name;
            }
            time += 1;
        };
        dir.rename(&draft, self.root(), &Path::new("mounts").join(&name))
            .map_err(failed("make a cache mount in", &path))?;
        self.db().write("note a cache mount", |transaction| {
            let query = "INSERT INTO mounts (dir, id, created, last_used) VALUES (?1, ?2, ?3, ?3)";
            transaction.execute(query, params![name, request.id, now()]).map(|_| ())
        })
    }

    /// Later users of these ids start afresh; running ones keep what they have, and pruning takes it afterwards.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn clear_cache_mounts(&self, ids: &[String]) -> Result<(), StoreError> {
        self.db().write("clear cache mounts", |transaction| {
            for id in ids {
                transaction.execute("UPDATE mounts SET id = '' WHERE id = ?1", [id])?;
            }
            Ok(())
        })
    }

    /// Removes a cache mount that nobody uses, and of which `what` says yes (it is asked when nobody can get it any
    /// more); false when it stays.
    pub(crate) fn remove_mount(
        &self,
        dir: &str,
        what: &dyn Fn(&Root) -> bool,
    ) -> Result<bool, StoreError> {
        let place = Path::new("mounts").join(dir);
        let path = self.path().join(&place);
        let lock = self.mount_lock(dir, false).map_err(failed("lock the cache mount", &path))?;
        let Some(_lock) = lock else { return Ok(false) };
        if self.root().open_dir(&place).is_ok_and(|root| !what(&root)) {
            return Ok(false);
        }
        self.db().write("forget a cache mount", |transaction| {
            for table in ["mounts", "mount_users", "mount_sizes"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE dir = ?1"), [dir])?;
            }
            Ok(())
        })?;
        let removed = self.discard(&[place]);
        let _ = self.root().remove_file(&lock_place(dir));
        removed.map(|()| true)
    }
}

/// Of the steps that used a mount, the last few are kept.
fn note_user(transaction: &Transaction<'_>, dir: &str, user: &str) -> rusqlite::Result<()> {
    let query = "INSERT OR REPLACE INTO mount_users (dir, step, last_used) VALUES (?1, ?2, ?3)";
    transaction.execute(query, params![dir, user, now()])?;
    let query = "DELETE FROM mount_users WHERE dir = ?1 AND step NOT IN
                 (SELECT step FROM mount_users WHERE dir = ?1 ORDER BY last_used DESC LIMIT ?2)";
    transaction.execute(query, params![dir, USERS])?;
    Ok(())
}
