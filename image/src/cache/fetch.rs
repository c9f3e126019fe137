//! A layer comes from a cache into the store: blob, archive and tree have to be what the index says.

use std::io::{self, Read, Write};

use kiln_cache::{Descriptor, Key, LayerId, Lease, Store};

use super::index::CacheLayer;
use super::{Backend, CacheError};
use crate::limits::Budget;
use crate::unpack::unpack_layer;

const PIECE: usize = 256 << 10;

/// Brings a layer into the store under an id, unless it is there.
///
/// # Errors
/// It cannot be had, or is not what the index says; nothing of it is in the store then.
pub fn fetch_layer(
    store: &Store,
    backend: &dyn Backend,
    layer: &CacheLayer,
    id: &LayerId,
    lease: &Lease,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), CacheError> {
    let Some(blob) = &layer.blob else {
        return Err(CacheError::Foreign("a layer has no archive"));
    };
    lease.hold_layer(id)?;
    let hash = blake3::hash(format!("kiln fetch cached layer {id}").as_bytes());
    let lock = store.lock(&Key::from_bytes(*hash.as_bytes()), &|| cancelled())?;
    let _lock = lock.ok_or(CacheError::Cancelled)?;
    if store.has_layer(id)? {
        return Ok(());
    }
    fetch_blob(store, backend, blob, lease, cancelled)?;
    let damaged = |reason| CacheError::Damaged { digest: blob.digest.clone(), reason };
    let file = store.open_blob(&blob.digest)?;
    let file = file.ok_or_else(|| damaged("its archive is not in the store"))?;
    let draft = store.draft()?;
    let writer = draft.writer();
    let unpacked = unpack_layer(file, Budget::default(), &writer)
        .map_err(|source| CacheError::Unpack { digest: blob.digest.clone(), source })?;
    if unpacked.diff_id != layer.diff_id {
        return Err(damaged("its archive is not the one that the index names"));
    }
    let tree = writer.finish().map_err(|e| failed("unpack", blob, e))?;
    if tree.content() != layer.content {
        return Err(damaged("its files are not those that the index names"));
    }
    draft.publish(id.clone(), tree)?;
    lease.hold_layer(id)?;
    Ok(())
}

/// Brings a blob into the store, unless it is there.
///
/// # Errors
/// It cannot be had, or is not what its digest says.
pub fn fetch_blob(
    store: &Store,
    backend: &dyn Backend,
    blob: &Descriptor,
    lease: &Lease,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), CacheError> {
    if lease.hold_blob(&blob.digest)? && store.has_blob(&blob.digest)? {
        return Ok(());
    }
    let mut reader = backend.blob(blob)?;
    let mut writer = store.blob_writer()?;
    let mut piece = vec![0; PIECE];
    loop {
        if cancelled() {
            return Err(CacheError::Cancelled);
        }
        let count = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("fetch", blob, error)),
        };
        if writer.size() + count as u64 > blob.size {
            let reason = "its archive is larger than the index says";
            return Err(CacheError::Damaged { digest: blob.digest.clone(), reason });
        }
        writer.write_all(&piece[..count]).map_err(|e| failed("store", blob, e))?;
    }
    writer.commit(Some(&blob.digest))?;
    lease.hold_blob(&blob.digest)?;
    Ok(())
}

fn failed(operation: &'static str, blob: &Descriptor, source: io::Error) -> CacheError {
    CacheError::Io { operation, what: blob.digest.to_string(), source }
}
