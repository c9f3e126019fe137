//! What a running process needs, and garbage collection leaves alone.
use crate::digest::{Digest, LayerId};
use crate::store::{Store, StoreError};
/// Protects what it holds until dropped or its process ends.
#[derive(Debug)]
pub struct Lease {}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    pub fn lease(&self) -> Result<Lease, StoreError> {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Lease {
    /// False when one of them (image layers aside) is not in the store any more: look up again.
    pub fn hold_layers(&self, ids: &[LayerId]) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub fn hold_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub fn hold_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        unimplemented!()
    }
}
