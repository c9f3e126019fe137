//! Archives of layers, and the compressed frames inside them.
use std::collections::HashMap;

use crate::digest::{DiffId, Digest, Key, LayerId};
use crate::store::{Store, StoreError};
/// The archive of a layer in one form of compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Of the compressed archive.
    pub digest: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Of the uncompressed archive.
    pub diff_id: DiffId,
    /// OCI media type.
    pub media_type: String,
}
/// Where a compressed frame lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameLocation {
    /// In which blob.
    pub blob: Digest,
    /// At which byte.
    pub offset: u64,
    /// How many compressed bytes.
    pub length: u64,
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    /// None when the blob is not there any more.
    pub fn layer_blob(
        &self,
        id: &LayerId,
        compression: &str,
    ) -> Result<Option<LayerBlob>, StoreError> {
        unimplemented!()
    }
    pub fn save_layer_blob(
        &self,
        id: &LayerId,
        compression: &str,
        blob: &LayerBlob,
    ) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn frame(&self, key: &Key) -> Result<Option<FrameLocation>, StoreError> {
        unimplemented!()
    }
    pub fn frames(&self, keys: &[Key]) -> Result<HashMap<Key, FrameLocation>, StoreError> {
        unimplemented!()
    }
    pub fn save_frames(&self, frames: &[(Key, FrameLocation)]) -> Result<(), StoreError> {
        unimplemented!()
    }
}
