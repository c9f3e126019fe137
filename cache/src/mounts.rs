//! RUN cache mounts.
use std::io;
use std::path::Path;

use crate::root::Root;
use crate::store::{Store, StoreError};
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
/// What a step asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountRequest {
    /// The mount's id.
    pub id: String,
    /// What it starts from (content of `from=`, source): another base is another mount.
    pub base: Option<String>,
    /// Who may use it.
    pub sharing: Sharing,
    /// Mode of a new one.
    pub mode: u32,
    /// Owner of a new one.
    pub uid: u32,
    /// Group of a new one.
    pub gid: u32,
}
/// A cache mount in use; dropping it lets others have it.
#[derive(Debug)]
pub struct CacheMount {}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl CacheMount {
    pub fn path(&self) -> &Path {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    /// `fill` is called for a new mount only, before anybody sees it. `None` when `cancelled` said yes while waiting.
    pub fn cache_mount(
        &self,
        request: &CacheMountRequest,
        fill: &dyn Fn(&Root) -> io::Result<()>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<CacheMount>, StoreError> {
        unimplemented!()
    }
    /// Later users start afresh; running ones keep theirs.
    pub fn clear_cache_mounts(&self, ids: &[String]) -> Result<(), StoreError> {
        unimplemented!()
    }
}
