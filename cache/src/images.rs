//! The store's own images: `index.json`, and what a remote tag resolved to.
use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::store::{Store, StoreError};
/// An image with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its full name (`docker.io/library/x:tag`).
    pub name: String,
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// When it was tagged: seconds since 1970.
    pub created: i64,
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    pub fn tag(&self, name: &str, descriptor: &Descriptor) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn untag(&self, name: &str) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        unimplemented!()
    }
    pub fn resolve(&self, name: &str) -> Result<Option<Descriptor>, StoreError> {
        unimplemented!()
    }
    pub fn remember_reference(
        &self,
        reference: &str,
        platform: &str,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn recall_reference(
        &self,
        reference: &str,
        platform: &str,
    ) -> Result<Option<Digest>, StoreError> {
        unimplemented!()
    }
}
