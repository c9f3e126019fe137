//! An image under names in Kiln's own store.

use kiln_cache::Store;

use super::{ExportError, NamedImage, reachable};

/// Gives the image its names in the store; they then keep its blobs from garbage collection.
///
/// # Errors
/// When a blob that the image needs is not in the store, or the store cannot be written.
pub fn name(store: &Store, image: &NamedImage) -> Result<(), ExportError> {
    for descriptor in reachable(store, &image.root)? {
        if !descriptor.extra.contains_key("urls") && !store.has_blob(&descriptor.digest)? {
            return Err(ExportError::MissingBlob(descriptor.digest));
        }
    }
    for name in &image.names {
        store.tag(name, &image.root)?;
    }
    Ok(())
}
