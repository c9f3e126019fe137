//! What may go, and how much there is.
use std::time::Duration;

use crate::store::{Store, StoreError};
/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Everything that nobody uses, tagged images' blobs aside.
    pub all: bool,
    /// Keep this many bytes of the most recently used.
    pub keep_bytes: Option<u64>,
    /// Only what was not used for this long.
    pub until: Option<Duration>,
    /// Tell, but do not remove.
    pub dry_run: bool,
}
/// What was removed.
#[derive(Debug, Clone, Default)]
pub struct PruneReport {
    /// Entries.
    pub removed: Vec<UsageRow>,
    /// Bytes.
    pub bytes: u64,
}
/// What kind of thing uses space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKind {
    /// An unpacked layer that a step made.
    Layer,
    /// An unpacked layer of an image.
    ImageLayer,
    /// A blob.
    Blob,
    /// A RUN cache mount.
    CacheMount,
    /// A stat cache.
    Context,
}
/// One thing that uses space.
#[derive(Debug, Clone)]
pub struct UsageRow {
    /// What it is.
    pub kind: UsageKind,
    /// Its id, digest or name.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub last_used: i64,
    /// Whether a running build, a tag or a record holds it.
    pub in_use: bool,
    /// The step, for people.
    pub description: String,
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport, StoreError> {
        unimplemented!()
    }
    pub fn disk_usage(&self) -> Result<Vec<UsageRow>, StoreError> {
        unimplemented!()
    }
}
