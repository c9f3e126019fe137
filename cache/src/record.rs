//! What a finished step left.
use std::collections::HashMap;

use crate::digest::{ContentDigest, Key, LayerId};
use crate::store::{Store, StoreError};

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
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    /// What answers under these keys; only records whose layers are there (image layers aside, which can be fetched again).
    pub fn lookup_many(&self, keys: &[Key]) -> Result<HashMap<Key, Record>, StoreError> {
        unimplemented!()
    }
    pub fn lookup(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        unimplemented!()
    }
    /// Answers under the definition and the content key from now on, in place of older ones.
    pub fn save_record(&self, record: &NewRecord) -> Result<Record, StoreError> {
        unimplemented!()
    }
    /// Notes the use of records, for garbage collection; off the hot path.
    pub fn touch(&self, ids: &[i64]) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Newest first: earlier records of a step with the same description.
    pub fn records_like(&self, description: &str, limit: usize) -> Result<Vec<Record>, StoreError> {
        unimplemented!()
    }
}
