//! Locks by key, across threads and processes.
use crate::digest::Key;
use crate::store::{Store, StoreError};
/// Held until dropped.
#[derive(Debug)]
pub struct KeyLock {}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    /// Waits; `cancelled` is asked every few milliseconds, and `None` returned when it says yes.
    pub fn lock(
        &self,
        key: &Key,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<KeyLock>, StoreError> {
        unimplemented!()
    }
    pub fn try_lock(&self, key: &Key) -> Result<Option<KeyLock>, StoreError> {
        unimplemented!()
    }
    /// The process that holds the lock, for messages.
    pub fn lock_holder(&self, key: &Key) -> Option<u32> {
        unimplemented!()
    }
}
