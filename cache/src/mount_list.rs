//! Cache mounts as people see them: which there are, who used them, what is in them.

use std::collections::HashMap;
use std::path::Path;

use crate::measure::measure;
use crate::mounts::{CacheMount, CacheMountRequest, Sharing};
use crate::root::Root;
use crate::store::{Store, StoreError, failed};
use crate::usage::mount_name;

/// A cache mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// The id that Dockerfiles give it.
    pub id: String,
    /// Its folder's name, which no other mount has: one id may have several mounts (of other owners, modes, bases, or
    /// private ones that were used at the same time).
    pub folder: String,
    /// Bytes on the disk.
    pub size: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub last_used: i64,
    /// Whether a running step, or somebody who copies, has it.
    pub in_use: bool,
    /// The last steps that used it, newest first, and when: seconds since 1970.
    pub users: Vec<(String, i64)>,
}

/// A cache mount that is open, and kept from going as long as it is.
#[derive(Debug)]
pub struct OpenMount {
    /// Its files.
    pub root: Root,
    _mount: CacheMount,
}

impl Store {
    /// All cache mounts that steps can still get, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn cache_mounts(&self) -> Result<Vec<MountInfo>, StoreError> {
        let mut mounts = self.db().read_together("list cache mounts", |transaction| {
            let mut query = transaction
                .prepare("SELECT dir, step, last_used FROM mount_users ORDER BY last_used DESC")?;
            let mut users: HashMap<String, Vec<(String, i64)>> = HashMap::new();
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                users.entry(row.get(0)?).or_default().push((row.get(1)?, row.get(2)?));
            }
            let query =
                "SELECT dir, id, created, last_used FROM mounts WHERE id != '' ORDER BY id, dir";
            let mut query = transaction.prepare(query)?;
            let rows = query.query_map([], |row| {
                let folder: String = row.get(0)?;
                Ok(MountInfo {
                    id: mount_name(&row.get::<_, String>(1)?).to_owned(),
                    size: 0,
                    created: row.get(2)?,
                    last_used: row.get(3)?,
                    in_use: false,
                    users: users.remove(&folder).unwrap_or_default(),
                    folder,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        for mount in &mut mounts {
            mount.size = measure(self.root(), &Path::new("mounts").join(&mount.folder)).bytes;
            mount.in_use = self.mount_in_use(&mount.folder);
        }
        Ok(mounts)
    }

    /// Opens a mount's folder to look at it, or alone to change it; `None` when somebody has it.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn open_mount(&self, folder: &str, alone: bool) -> Result<Option<OpenMount>, StoreError> {
        let Some(mount) = self.take_mount(folder, !alone, "")? else { return Ok(None) };
        let place = Path::new("mounts").join(folder);
        let root = self.root().open_dir(&place).map_err(failed("open", mount.path()))?;
        Ok(Some(OpenMount { root, _mount: mount }))
    }

    /// Makes the mount that `--mount=type=cache,id=ID` without more options asks for, empty.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn make_cache_mount(&self, id: &str) -> Result<(), StoreError> {
        let request = CacheMountRequest {
            id: format!("/{id}"),
            base: None,
            sharing: Sharing::Shared,
            mode: 0o755,
            uid: 0,
            gid: 0,
            user: "kiln cache mounts cp".to_owned(),
        };
        self.cache_mount(&request, &|_| Ok(()), &|| true).map(drop)
    }

    /// Removes a cache mount; false when somebody has it.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn remove_cache_mount(&self, folder: &str) -> Result<bool, StoreError> {
        self.remove_mount(folder, &|_| true)
    }
}
