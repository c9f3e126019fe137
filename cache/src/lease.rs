//! What a running process needs, and pruning leaves alone.
//!
//! A lease belongs to the process's folder in `tmp/`, whose lock the kernel drops when the process ends (`process.rs`):
//! pruning ignores the leases of folders that nobody holds. Hold first, then use: holding and pruning are transactions,
//! so that what was held and found is there.
//!
//! Who checks what it reads, as exports do, can do without: on a disk that is full or read-only nothing can be held,
//! but what is there can be read.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{ErrorCode, Transaction, params};

use crate::digest::{Digest, LayerId};
use crate::process::{self, Process};
use crate::store::{Store, StoreError, failed, now};

/// Protects what it holds until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    /// The process and the lease's number in it; none where nothing can be written.
    holder: Option<(Arc<Process>, i64)>,
    /// Whether what cannot be held is an error.
    strict: bool,
}

impl Store {
    /// A lease that holds nothing yet.
    ///
    /// # Errors
    /// When the process cannot make its folder.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let process = self.process()?;
        let number = i64::try_from(process.number()).unwrap_or(i64::MAX);
        Ok(Lease { store: self.clone(), holder: Some((process, number)), strict: true })
    }

    /// A lease for who checks what it reads, and is content with a second attempt should something be pruned meanwhile:
    /// where the store cannot be written, it holds nothing.
    ///
    /// # Errors
    /// As [`Store::lease`], a full or read-only disk aside.
    pub fn lease_to_read(&self) -> Result<Lease, StoreError> {
        match self.lease() {
            Ok(mut lease) => {
                lease.strict = false;
                Ok(lease)
            }
            Err(error) if is_without_room(&error) => {
                Ok(Lease { store: self.clone(), holder: None, strict: false })
            }
            Err(error) => Err(error),
        }
    }

    /// What living processes hold, as (kind, name); leases of dead ones are deleted.
    pub(crate) fn forget_dead_leases(&self) -> Result<(), StoreError> {
        let path = self.path().join("tmp");
        let living = self.root().open_dir(Path::new("tmp")).and_then(|tmp| process::living(&tmp));
        let living = living.map_err(failed("look for processes in", &path))?;
        self.db().write("forget leases", |transaction| {
            let mut query = transaction.prepare("SELECT DISTINCT process FROM leases")?;
            let holders = query.query_map([], |row| row.get::<_, String>(0))?;
            for holder in holders.collect::<rusqlite::Result<Vec<_>>>()? {
                if !living.contains(&holder) {
                    transaction.execute("DELETE FROM leases WHERE process = ?1", [holder])?;
                }
            }
            Ok(())
        })
    }
}

/// Whether a store can be read only: its disk is full, or read-only.
fn is_without_room(error: &StoreError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        StoreError::Io { source, .. } => {
            matches!(source.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
        StoreError::Database { source, .. } => {
            matches!(source.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::ReadOnly))
        }
        _ => false,
    }
}

impl Lease {
    fn hold<'n>(
        &self,
        kind: &str,
        names: impl Iterator<Item = &'n str>,
        all_there: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
        is_there: impl FnOnce() -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let Some((process, number)) = &self.holder else { return is_there() };
        let held = self.store.db().write("hold what a build needs", |transaction| {
            let query = "INSERT OR IGNORE INTO leases (process, lease, kind, name)
                         VALUES (?1, ?2, ?3, ?4)";
            let mut insert = transaction.prepare_cached(query)?;
            for name in names {
                insert.execute(params![process.name(), number, kind, name])?;
            }
            all_there(transaction)
        });
        match held {
            Err(error) if !self.strict && is_without_room(&error) => is_there(),
            held => held,
        }
    }

    /// Holds layers, those that are not there yet too. False when one of them (image layers aside) is not in the
    /// store: it has been pruned since it was looked up, so look up again.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn hold_layers(&self, ids: &[LayerId]) -> Result<bool, StoreError> {
        let now = now();
        let all_there = |transaction: &Transaction<'_>| {
            let mut update = transaction.prepare_cached(
                "UPDATE layers SET last_used = ?2 WHERE id = ?1 AND (boot IS NULL OR boot = ?3)",
            )?;
            let mut whole = true;
            for id in ids {
                let found = update.execute(params![id.as_str(), now, self.store.boot()])?;
                whole &= found > 0 || id.is_image();
            }
            Ok(whole)
        };
        self.hold("layer", ids.iter().map(LayerId::as_str), all_there, || {
            let mut whole = true;
            for id in ids {
                whole &= id.is_image() || self.store.layer_content(id)?.is_some();
            }
            Ok(whole)
        })
    }

    /// Holds one layer; see [`Lease::hold_layers`].
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn hold_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        self.hold_layers(std::slice::from_ref(id))
    }

    /// Holds a blob, also one that is not there yet. False when it is not in the store.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn hold_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let now = now();
        let all_there = |transaction: &Transaction<'_>| {
            let query = "UPDATE blobs SET last_used = ?2 WHERE digest = ?1";
            let found =
                transaction.prepare_cached(query)?.execute(params![digest.as_str(), now])?;
            Ok(found > 0)
        };
        self.hold("blob", std::iter::once(digest.as_str()), all_there, || {
            Ok(self.store.known_blob(digest)?.is_some())
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((process, number)) = &self.holder else { return };
        // When this fails, the lease ends with the process.
        let _ = self.store.db().write("end a lease", |transaction| {
            let query = "DELETE FROM leases WHERE process = ?1 AND lease = ?2";
            transaction.execute(query, params![process.name(), number])
        });
    }
}
