//! A cache in a registry: a manifest under a tag, whose config is the index, or an image that carries its cache.

use std::fmt;
use std::io::Read;

use kiln_cache::{Descriptor, Digest, Store};

use super::index::{CacheIndex, MEDIA_TYPE};
use super::{Backend, CacheError, Form, indexes_below};
use crate::reference::Reference;
use crate::registry::RegistryClient;
use crate::registry::upload;

/// A tag of a repository.
pub struct RegistryCache {
    client: RegistryClient,
    reference: Reference,
    form: Form,
}

impl fmt::Debug for RegistryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCache").field("reference", &self.reference).finish_non_exhaustive()
    }
}

impl RegistryCache {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(client: RegistryClient, reference: Reference, form: Form) -> Self {
        Self { client, reference, form }
    }
}

impl Backend for RegistryCache {
    fn indexes(&self) -> Result<Vec<CacheIndex>, CacheError> {
        let top = self.client.manifest(&self.reference)?;
        let read = |descriptor: &Descriptor, limit: u64| -> Result<Vec<u8>, CacheError> {
            let kind = descriptor.media_type.as_str();
            if crate::media_type::is_manifest(kind) || crate::media_type::is_index(kind) {
                let found = self.client.manifest_by_digest(&self.reference, &descriptor.digest)?;
                return Ok(found.bytes);
            }
            Ok(self.client.small_blob(&self.reference, descriptor, limit)?)
        };
        indexes_below(&top.descriptor.media_type, &top.bytes, &read)
    }

    fn blob<'a>(&'a self, blob: &Descriptor) -> Result<Box<dyn Read + Send + 'a>, CacheError> {
        Ok(Box::new(self.client.blob(&self.reference, blob)?))
    }

    fn has_blob(&self, blob: &Descriptor) -> Result<bool, CacheError> {
        Ok(upload::has_blob(&self.client, &self.reference, &blob.digest)?)
    }

    fn put_blob(&self, store: &Store, blob: &Descriptor) -> Result<(), CacheError> {
        Ok(upload::push_blob(&self.client, store, &self.reference, blob)?)
    }

    fn put_index(&self, index: &CacheIndex) -> Result<(), CacheError> {
        let bytes = index.to_bytes();
        let config = Descriptor::new(MEDIA_TYPE, Digest::sha256(&bytes), bytes.len() as u64);
        upload::push_small_blob(&self.client, &self.reference, &config.digest, &bytes)?;
        let (kind, document) = self.form.document(config, index.blobs());
        let name = match self.reference.tag() {
            Some(tag) => tag.to_owned(),
            None => "latest".to_owned(),
        };
        Ok(upload::push_document(&self.client, &self.reference, kind, &document, &name)?)
    }
}
