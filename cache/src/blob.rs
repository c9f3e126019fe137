//! Blobs in and out, always verified.
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::digest::Digest;
use crate::store::{Store, StoreError};

/// A blob that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}
/// A blob that is being written; dropping it removes it.
#[derive(Debug)]
pub struct BlobWriter {}
impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        unimplemented!("{}", data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl BlobWriter {
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Fails and removes the file when the bytes are not the expected ones.
    pub fn commit(self, expected: Option<&Digest>) -> Result<BlobInfo, StoreError> {
        unimplemented!()
    }
}
#[expect(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "first landing")]
impl Store {
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        unimplemented!()
    }
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        unimplemented!()
    }
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        unimplemented!()
    }
    pub fn put_blob(&self, data: &[u8]) -> Result<Digest, StoreError> {
        unimplemented!()
    }
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        unimplemented!()
    }
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        unimplemented!()
    }
}
