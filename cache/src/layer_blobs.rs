//! Archives of layers, and the compressed frames inside them: what an export need not make again.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

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

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Store {
    /// The archive of a layer; `None` when there is none, or its blob is not there any more. `compression` is a name
    /// that the caller chose for everything that changes the bytes.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn layer_blob(
        &self,
        id: &LayerId,
        compression: &str,
    ) -> Result<Option<LayerBlob>, StoreError> {
        let found = self.db().read("look up a layer's archive", |connection| {
            let query = "SELECT digest, size, diff_id, media_type FROM layer_blobs
                         WHERE layer = ?1 AND compression = ?2";
            let mut statement = connection.prepare_cached(query)?;
            let row = statement.query_row([id.as_str(), compression], |row| {
                let (digest, diff_id): (String, String) = (row.get(0)?, row.get(2)?);
                let (size, media_type) = (unsigned(row.get(1)?), row.get(3)?);
                let (Ok(digest), Ok(diff_id)) = (digest.parse(), diff_id.parse()) else {
                    return Ok(None);
                };
                Ok(Some(LayerBlob { digest, size, diff_id, media_type }))
            });
            Ok(row.optional()?.flatten())
        })?;
        match found {
            Some(blob) if self.has_blob(&blob.digest)? => Ok(Some(blob)),
            _ => Ok(None),
        }
    }

    /// Notes the archive of a layer.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn save_layer_blob(
        &self,
        id: &LayerId,
        compression: &str,
        blob: &LayerBlob,
    ) -> Result<(), StoreError> {
        self.db().write("note a layer's archive", |transaction| {
            let query = "INSERT OR REPLACE INTO layer_blobs
                         (layer, compression, digest, size, diff_id, media_type)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let values = params![
                id.as_str(),
                compression,
                blob.digest.as_str(),
                signed(blob.size),
                blob.diff_id.0.as_str(),
                blob.media_type
            ];
            transaction.execute(query, values).map(|_| ())
        })
    }

    /// Where a frame lies. Its blob may have gone since: open it, and compress again if it is not there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn frame(&self, key: &Key) -> Result<Option<FrameLocation>, StoreError> {
        Ok(self.frames(std::slice::from_ref(key))?.remove(key))
    }

    /// Where frames lie. A key stands for a frame's uncompressed bytes and everything that changes the compressed ones.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn frames(&self, keys: &[Key]) -> Result<HashMap<Key, FrameLocation>, StoreError> {
        self.db().read_together("look up frames", |transaction| {
            let query = "SELECT blob, offset, length FROM frames WHERE key = ?1";
            let mut statement = transaction.prepare_cached(query)?;
            let mut found = HashMap::with_capacity(keys.len());
            for key in keys {
                let row = statement
                    .query_row([key.as_bytes()], |row| {
                        Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
                    })
                    .optional()?;
                if let Some((blob, offset, length)) = row
                    && let Ok(blob) = blob.parse()
                {
                    let (offset, length) = (unsigned(offset), unsigned(length));
                    found.insert(*key, FrameLocation { blob, offset, length });
                }
            }
            Ok(found)
        })
    }

    /// Notes where frames lie.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn save_frames(&self, frames: &[(Key, FrameLocation)]) -> Result<(), StoreError> {
        self.db().write("note frames", |transaction| {
            let query = "INSERT OR REPLACE INTO frames (key, blob, offset, length)
                         VALUES (?1, ?2, ?3, ?4)";
            let mut insert = transaction.prepare_cached(query)?;
            for (key, frame) in frames {
                let (offset, length) = (signed(frame.offset), signed(frame.length));
                insert.execute(params![key.as_bytes(), frame.blob.as_str(), offset, length])?;
            }
            Ok(())
        })
    }
}
