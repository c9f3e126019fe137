//! File systems of steps that failed, kept for a while so that one can look into them.
//!
//! Each is a layer with a record, as that of a step that succeeded, but under a key that no step has. So leases, pruning
//! and checks treat it like any other.

use std::time::Duration;

use rusqlite::{OptionalExtension, Row, params};

use crate::digest::{Key, LayerId};
use crate::record::NewRecord;
use crate::store::{Store, StoreError, now};

/// A failure is forgotten when it is older than this,
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// or when there are so many younger ones,
const MOST: usize = 20;
/// or when the younger ones take so many bytes.
const MOST_BYTES: u64 = 10 << 30;

impl Store {
    /// Keeps what a failed step left. The record's keys are replaced by one of the failure's own; its own layer has to be
    /// published. The document says how the step ran; it goes with the files.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn keep_failure(
        &self,
        record: NewRecord,
        size: u64,
        document: &str,
    ) -> Result<(), StoreError> {
        let Some(layer) = record.own.clone() else { return Ok(()) };
        self.save_record(&NewRecord { definition: key(&layer), content: None, ..record })?;
        self.db().write("keep a failed step", |transaction| {
            let query = "INSERT OR REPLACE INTO failures (layer, created, size, document)
                         VALUES (?1, ?2, ?3, ?4)";
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            transaction.execute(query, params![layer.as_str(), now(), size, document]).map(|_| ())
        })?;
        self.forget_old_failures()
    }

    /// How a failed step ran; none when it is not kept any more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn failure(&self, layer: &LayerId) -> Result<Option<String>, StoreError> {
        self.db().read("look for a failed step", |connection| {
            let query = "SELECT document FROM failures WHERE layer = ?1";
            connection.query_row(query, [layer.as_str()], |row| row.get(0)).optional()
        })
    }

    /// Removes failures that are old, too many or too large; the newest stays whatever its size.
    pub(crate) fn forget_old_failures(&self) -> Result<(), StoreError> {
        let oldest = now() - i64::try_from(KEPT.as_secs()).unwrap_or(0);
        let all = self.db().read("look for failed steps", |connection| {
            let query = "SELECT layer, created, size FROM failures ORDER BY created DESC, layer";
            let mut statement = connection.prepare_cached(query)?;
            let row = |row: &Row<'_>| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            };
            statement.query_map([], row)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut bytes = 0_u64;
        for (number, (layer, created, size)) in all.into_iter().enumerate() {
            bytes = bytes.saturating_add(u64::try_from(size).unwrap_or(0));
            let fits = number == 0 || (number < MOST && bytes <= MOST_BYTES);
            if fits && created > oldest {
                continue;
            }
            // One that somebody looks into right now stays until the next time.
            let gone = match layer.parse::<LayerId>() {
                Ok(id) => self.remove_layer(&id)?.is_some(),
                Err(_) => true,
            };
            if gone {
                self.db().write("forget a failed step", |transaction| {
                    transaction.execute("DELETE FROM failures WHERE layer = ?1", [layer])
                })?;
            }
        }
        Ok(())
    }
}

/// No step has this key.
fn key(layer: &LayerId) -> Key {
    blake3::hash(format!("kiln failed step {layer}").as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use crate::digest::{ContentDigest, Key, LayerId};
    use crate::record::NewRecord;
    use crate::store::Store;
    use crate::tree::Tree;

    use super::{KEPT, MOST, MOST_BYTES};

    fn fail(store: &Store, size: u64) -> LayerId {
        let id = LayerId::random();
        store.draft().unwrap().publish(id.clone(), Tree::empty()).unwrap();
        let record = NewRecord {
            definition: Key::from_bytes([1; 32]),
            content: None,
            layers: vec![id.clone()],
            own: Some(id.clone()),
            result: ContentDigest::from_bytes([2; 32]),
            description: "failed".to_owned(),
            parts: Vec::new(),
            duration_ms: 0,
        };
        store.keep_failure(record, size, "{}").unwrap();
        id
    }

    fn age(store: &Store, seconds: u64) {
        let seconds = i64::try_from(seconds).unwrap();
        store
            .db()
            .write("age", |t| t.execute("UPDATE failures SET created = created - ?1", [seconds]))
            .unwrap();
    }

    #[test]
    fn failures_are_kept_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let kept = |id: &LayerId| store.has_layer(id).unwrap();
        let first = fail(&store, 1);
        age(&store, 60);
        let second = fail(&store, 1);
        assert!(kept(&first) && kept(&second));
        assert!(store.lookup(&Key::from_bytes([1; 32])).unwrap().is_none(), "no step has it");
        age(&store, KEPT.as_secs() - 30);
        let third = fail(&store, MOST_BYTES + 1);
        assert!(!kept(&first), "too old");
        assert!(!kept(&second), "the newest takes all the room");
        assert!(kept(&third));
        assert_eq!(store.failure(&third).unwrap().as_deref(), Some("{}"));
        assert_eq!(store.failure(&first).unwrap(), None);
    }

    #[test]
    fn there_are_only_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let all: Vec<LayerId> = (0..MOST + 2)
            .map(|_| {
                age(&store, 1);
                fail(&store, 1)
            })
            .collect();
        let kept = all.iter().filter(|id| store.has_layer(id).unwrap()).count();
        assert_eq!(kept, MOST);
        assert!(!store.has_layer(&all[0]).unwrap());
    }
}
