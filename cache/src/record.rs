//! What a finished step left: its layers, found again by its keys.
//!
//! A record answers under its definition key and its content key; a later record with the same key takes the key over.
//! Only records whose layers are there answer. Layers of images are not asked for: they can be fetched again.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::digest::{ContentDigest, Digest, Key, LayerId};
use crate::store::{Store, StoreError, now};

/// A step's result, to be found again by its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The definition key.
    pub definition: Key,
    /// The content key.
    pub content: Option<Key>,
    /// The whole chain of the result, bottom to top.
    pub layers: Vec<LayerId>,
    /// The layer that the step itself made, if it made one.
    pub own: Option<LayerId>,
    /// Content of the whole result, as the solver computes it (`Snapshot::content`).
    pub result: ContentDigest,
    /// The step, for people.
    pub description: String,
    /// Named parts of the key, for explaining a miss.
    pub parts: Vec<(String, String)>,
    /// How long it ran.
    pub duration_ms: u64,
}

/// A stored [`NewRecord`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number in the database.
    pub id: i64,
    /// The definition key.
    pub definition: Key,
    /// The content key.
    pub content: Option<Key>,
    /// The whole chain of the result, bottom to top.
    pub layers: Vec<LayerId>,
    /// The layer that the step itself made, if it made one.
    pub own: Option<LayerId>,
    /// Content of the whole result.
    pub result: ContentDigest,
    /// The step, for people.
    pub description: String,
    /// Named parts of the key, for explaining a miss.
    pub parts: Vec<(String, String)>,
    /// When it was made: seconds since 1970.
    pub created: i64,
    /// How long it ran.
    pub duration_ms: u64,
    /// When it last answered, give or take [`TOUCH_AFTER`]: seconds since 1970.
    pub last_used: i64,
}

/// Seconds: a use that is noted is not noted again for so long, so that most builds write nothing.
pub const TOUCH_AFTER: i64 = 3600;

impl Record {
    /// Whether its use is worth a note ([`Store::touch`]).
    #[must_use]
    pub fn wants_touch(&self) -> bool {
        // A clock that was set back leaves times in the future.
        (now() - self.last_used).abs() >= TOUCH_AFTER
    }
}

const COLUMNS: &str = "r.id, r.definition, r.content, r.layers, r.own, r.result, r.description, \
                       r.parts, r.created, r.duration_ms, r.last_used";

/// `None` for a row that this program cannot have written.
fn from_row(row: &Row<'_>) -> rusqlite::Result<Option<Record>> {
    let chain: String = row.get(3)?;
    let own: Option<String> = row.get(4)?;
    let parts: String = row.get(7)?;
    let layers: Result<Vec<LayerId>, _> = chain.split_whitespace().map(str::parse).collect();
    let own = own.map(|own| own.parse::<LayerId>()).transpose();
    let parts = serde_json::from_str(&parts);
    let (Ok(layers), Ok(own), Ok(parts)) = (layers, own, parts) else { return Ok(None) };
    Ok(Some(Record {
        id: row.get(0)?,
        definition: Key::from_bytes(row.get(1)?),
        content: row.get::<_, Option<[u8; 32]>>(2)?.map(Key::from_bytes),
        layers,
        own,
        result: ContentDigest::from_bytes(row.get(5)?),
        description: row.get(6)?,
        parts,
        created: row.get(8)?,
        duration_ms: row.get::<_, i64>(9)?.try_into().unwrap_or(0),
        last_used: row.get(10)?,
    }))
}

impl Store {
    /// What answers under these keys.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn lookup_many(&self, keys: &[Key]) -> Result<HashMap<Key, Record>, StoreError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut found = self.db().read_together("look up records", |transaction| {
            let query = format!(
                "SELECT {COLUMNS} FROM keys k JOIN records r ON r.id = k.record WHERE k.key = ?1"
            );
            let mut statement = transaction.prepare_cached(&query)?;
            let mut found = HashMap::with_capacity(keys.len());
            for key in keys {
                let record = statement.query_row([key.as_bytes()], from_row).optional()?;
                if let Some(record) = record.flatten() {
                    found.insert(*key, record);
                }
            }
            let records: HashSet<&LayerId> = found.values().flat_map(needed).collect();
            let records: HashSet<LayerId> = records.into_iter().cloned().collect();
            let there = self.stored(transaction, records)?;
            found.retain(|_, record| needed(record).all(|id| there.contains(id)));
            Ok(found)
        })?;
        // A layer that somebody removed by hand.
        let layers: HashSet<&LayerId> = found.values().flat_map(needed).collect();
        let gone: HashSet<LayerId> =
            layers.into_iter().filter(|id| !self.layer_dir_exists(id)).cloned().collect();
        if !gone.is_empty() {
            found.retain(|_, record| needed(record).all(|id| !gone.contains(id)));
        }
        Ok(found)
    }

    /// Those of `ids` that the database knows to be whole.
    fn stored(
        &self,
        transaction: &Transaction<'_>,
        mut ids: HashSet<LayerId>,
    ) -> rusqlite::Result<HashSet<LayerId>> {
        let query = "SELECT 1 FROM layers WHERE id = ?1 AND (boot IS NULL OR boot = ?2)";
        let mut statement = transaction.prepare_cached(query)?;
        let mut failure = None;
        ids.retain(|id| match statement.exists([id.as_str(), self.boot()]) {
            Ok(exists) => exists,
            Err(error) => {
                failure.get_or_insert(error);
                false
            }
        });
        failure.map_or(Ok(ids), Err)
    }

    /// What answers under one key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn lookup(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.lookup_many(&[*key])?.remove(key))
    }

    /// What answered under one key the last time, whether its layers are there or not: for explaining.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn remembered(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.db().read("look up a record", |connection| {
            let query = format!(
                "SELECT {COLUMNS} FROM keys k JOIN records r ON r.id = k.record WHERE k.key = ?1"
            );
            let mut statement = connection.prepare_cached(&query)?;
            statement.query_row([key.as_bytes()], from_row).optional().map(Option::flatten)
        })
    }

    /// Answers under the definition and the content key from now on, in place of older records; one that no key
    /// leads to any more goes.
    ///
    /// # Errors
    /// When the database cannot be written.
    ///
    /// # Panics
    /// Never: strings can be written as JSON.
    pub fn save_record(&self, record: &NewRecord) -> Result<Record, StoreError> {
        let layers: Vec<&str> = record.layers.iter().map(LayerId::as_str).collect();
        let parts = serde_json::to_string(&record.parts).expect("strings can be written as JSON");
        let created = now();
        let id = self.db().write("save a record", |transaction| {
            let query =
                "INSERT INTO records (definition, content, layers, own, result, description,
                             parts, created, duration_ms, last_used)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?8)";
            transaction.prepare_cached(query)?.execute(params![
                record.definition.as_bytes(),
                record.content.as_ref().map(Key::as_bytes),
                layers.join(" "),
                record.own.as_ref().map(LayerId::as_str),
                record.result.as_bytes(),
                record.description,
                parts,
                created,
                i64::try_from(record.duration_ms).unwrap_or(i64::MAX),
            ])?;
            let id = transaction.last_insert_rowid();
            for key in std::iter::once(&record.definition).chain(&record.content) {
                take_key(transaction, key, id)?;
            }
            Ok(id)
        })?;
        let NewRecord { definition, content, layers, own, result, .. } = record.clone();
        let (description, parts) = (record.description.clone(), record.parts.clone());
        let duration_ms = record.duration_ms;
        Ok(Record {
            id,
            definition,
            content,
            layers,
            own,
            result,
            description,
            parts,
            created,
            duration_ms,
            last_used: created,
        })
    }

    /// Lets a record answer under one more key: a step whose definition changed but whose inputs' contents did not.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_key(&self, key: &Key, record: i64) -> Result<(), StoreError> {
        self.db().write("save a key", |transaction| take_key(transaction, key, record))
    }

    /// The layer of a step, if one that is stored has this content.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn step_layer(&self, content: &ContentDigest) -> Result<Option<LayerId>, StoreError> {
        let found = self.db().read("look for a layer", |connection| {
            let query = "SELECT l.id FROM layers l JOIN records r ON r.own = l.id
                         WHERE l.content = ?1 AND (l.boot IS NULL OR l.boot = ?2) LIMIT 1";
            let mut statement = connection.prepare_cached(query)?;
            let row = statement
                .query_row(params![content.as_bytes(), self.boot()], |row| row.get::<_, String>(0));
            row.optional()
        })?;
        let found = found.and_then(|id| id.parse().ok());
        Ok(found.filter(|id: &LayerId| !id.is_image() && self.layer_dir_exists(id)))
    }

    /// Notes the use of records, of their layers, and of documents (manifests, configurations) of images that a build
    /// stood on, for pruning; off the hot path.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn touch(&self, ids: &[i64], documents: &[Digest]) -> Result<(), StoreError> {
        if ids.is_empty() && documents.is_empty() {
            return Ok(());
        }
        let now = now();
        self.db().write("note the use of records", |transaction| {
            let mut record = transaction.prepare_cached(
                "UPDATE records SET last_used = ?2 WHERE id = ?1 RETURNING layers",
            )?;
            let mut layer =
                transaction.prepare_cached("UPDATE layers SET last_used = ?2 WHERE id = ?1")?;
            let mut layers = HashSet::new();
            for id in ids {
                let chain =
                    record.query_row([*id, now], |row| row.get::<_, String>(0)).optional()?;
                layers.extend(chain.iter().flat_map(|c| c.split(' ')).map(str::to_owned));
            }
            for id in layers {
                layer.execute(params![id, now])?;
            }
            let mut blob =
                transaction.prepare_cached("UPDATE blobs SET last_used = ?2 WHERE digest = ?1")?;
            for digest in documents {
                blob.execute(params![digest.as_str(), now])?;
            }
            Ok(())
        })
    }

    /// Records of steps with the same description, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn records_like(&self, description: &str, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.db().read("look for records", |connection| {
            let query = format!(
                "SELECT {COLUMNS} FROM records r WHERE description = ?1 ORDER BY id DESC LIMIT ?2"
            );
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut statement = connection.prepare_cached(&query)?;
            let rows = statement.query_map(params![description, limit], from_row)?;
            rows.filter_map(Result::transpose).collect()
        })
    }
}

/// The layers without which a record is worth nothing.
fn needed(record: &Record) -> impl Iterator<Item = &LayerId> {
    record.layers.iter().chain(&record.own).filter(|id| !id.is_image())
}

fn take_key(transaction: &Transaction<'_>, key: &Key, record: i64) -> rusqlite::Result<()> {
    let mut find = transaction.prepare_cached("SELECT record FROM keys WHERE key = ?1")?;
    let old: Option<i64> = find.query_row([key.as_bytes()], |row| row.get(0)).optional()?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO keys (key, record) VALUES (?1, ?2)")?
        .execute(params![key.as_bytes(), record])?;
    if let Some(old) = old {
        let query = "DELETE FROM records WHERE id = ?1 AND id != ?2
                     AND NOT EXISTS (SELECT 1 FROM keys WHERE record = ?1)";
        transaction.prepare_cached(query)?.execute([old, record])?;
    }
    Ok(())
}
