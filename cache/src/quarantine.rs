//! What turned out to be damaged: it is set aside, never used again and never silently lost.
//!
//! The damaged thing is renamed into `quarantine/` and forgotten by the database with everything that needs it, so that
//! the next look-up misses and what is missing is made or fetched again. It stays there for a week, for whoever wants to
//! know what happened.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use crate::digest::{Digest, LayerId};
use crate::store::{Store, StoreError, failed, layer_place, now_ms, tree_place};

/// How long a damaged thing stays.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Something that was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What it was, such as ``layer `…` ``.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
    /// Where it is now.
    pub kept: PathBuf,
}

impl Store {
    /// Sets a layer aside, with its tree; the records that need it go.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn quarantine_layer(&self, id: &LayerId, reason: &str) -> Result<(), StoreError> {
        let _lock = self.publish_lock()?;
        self.db().write("forget a damaged layer", |transaction| {
            transaction.execute("DELETE FROM layers WHERE id = ?1", [id.as_str()])?;
            transaction.execute("DELETE FROM layer_blobs WHERE layer = ?1", [id.as_str()])?;
            if !id.is_image() {
                crate::gc::forget_records(transaction, id)?;
            }
            Ok(())
        })?;
        self.forget_tree(id);
        let places = [(layer_place(id), "files"), (tree_place(id), "tree")];
        self.set_aside(id.as_str(), &places, format!("layer `{id}`"), reason)
    }

    /// Sets a blob aside.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn quarantine_blob(&self, digest: &Digest, reason: &str) -> Result<(), StoreError> {
        let _lock = self.publish_lock()?;
        self.forget_blob(digest)?;
        let places = [(crate::blob::place(digest), "blob")];
        self.set_aside(digest.hex(), &places, format!("blob `{digest}`"), reason)
    }

    /// Sets `index.json` aside.
    pub(crate) fn set_aside_index(&self, reason: &str) -> Result<(), StoreError> {
        let places = [(PathBuf::from("index.json"), "index.json")];
        self.set_aside("index", &places, "`index.json`".to_owned(), reason)
    }

    /// Hashes a blob, and sets it aside if it is not what its name says. Says whether it is whole; one that is not
    /// there is not.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn check_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let Some(file) = self.open_blob(digest)? else { return Ok(false) };
        let found = match crate::blob::hash_file(file, digest.algorithm()) {
            Err(error) => return self.lost_blob::<()>(digest, "read", error).map(|_| false),
            Ok(found) => found,
        };
        if found.digest == *digest {
            return Ok(true);
        }
        self.quarantine_blob(digest, &format!("it hashes to `{}`", found.digest))?;
        Ok(false)
    }

    /// What this process set aside since it was last asked.
    #[must_use]
    pub fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut *self.damage().lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_aside(
        &self,
        name: &str,
        places: &[(PathBuf, &str)],
        what: String,
        reason: &str,
    ) -> Result<(), StoreError> {
        let folder = Path::new("quarantine").join(format!("{name}-{:x}", now_ms()));
        let path = self.path().join(&folder);
        let make = || {
            for folder in [Path::new("quarantine"), &folder] {
                match self.root().mkdir(folder, 0o700) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
            }
            for (place, kind) in places {
                match self.root().rename(place, self.root(), &folder.join(kind)) {
                    // Another process was quicker, or that was the damage.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    renamed => renamed?,
                }
            }
            Ok(())
        };
        make().map_err(failed("set damaged files aside in", &path))?;
        let damage = Damage { what, reason: reason.to_owned(), kept: path };
        self.damage().lock().unwrap_or_else(PoisonError::into_inner).push(damage);
        Ok(())
    }

    /// Removes what was set aside long ago. Nobody waits for it.
    pub(crate) fn empty_quarantine(&self) {
        let oldest = now_ms() - i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        let Ok(items) = self.root().read_dir(Path::new("quarantine")) else { return };
        for item in items {
            let name = item.name.to_string_lossy();
            let time = name.rsplit_once('-').and_then(|(_, t)| i64::from_str_radix(t, 16).ok());
            if time.is_none_or(|time| time < oldest) {
                let _ = self.root().remove_all(&Path::new("quarantine").join(&item.name));
            }
        }
    }
}
