//! Files of stored layers, checked while they are read: what leaves the store is what its tree says, or an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::LayerId;
use crate::store::Store;

/// A file of a layer. Its last read fails if it was not the file that the layer's tree knows; the layer is set aside
/// then.
pub(crate) struct CheckedFile<'a> {
    store: &'a Store,
    layer: &'a LayerId,
    path: PathBuf,
    file: File,
    expected: (u64, [u8; 32]),
    size: u64,
    hasher: blake3::Hasher,
}

impl<'a> CheckedFile<'a> {
    pub(crate) fn new(
        store: &'a Store,
        layer: &'a LayerId,
        path: &Path,
        file: File,
        expected: (u64, [u8; 32]),
    ) -> Self {
        let (path, hasher) = (path.to_owned(), blake3::Hasher::new());
        Self { store, layer, path, file, expected, size: 0, hasher }
    }
}

impl Read for CheckedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer).map_err(|error| {
            unreadable(self.store, self.layer, &self.path.display().to_string(), error)
        })?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        let (size, data) = self.expected;
        let at_end = count == 0 && !buffer.is_empty();
        let wrong = if at_end || self.size >= size {
            self.size != size || *self.hasher.finalize().as_bytes() != data
        } else {
            false
        };
        if wrong {
            let reason = format!("`{}` is not the file that was stored", self.path.display());
            return Err(damaged(self.store, self.layer, &reason));
        }
        Ok(count)
    }
}

/// Sets a layer aside; the error to fail with.
pub(crate) fn damaged(store: &Store, layer: &LayerId, reason: &str) -> io::Error {
    // That it cannot be set aside is found out when it is tried again.
    let _ = store.quarantine_layer(layer, reason);
    io::Error::new(io::ErrorKind::InvalidData, format!("layer `{layer}` is damaged: {reason}"))
}

/// Whether the disk has lost what was to be read: no other attempt will bring it.
#[must_use]
pub fn is_lost(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| lost.contains(&number))
}

/// A file of a layer that cannot be read: where the disk has lost it, the layer is set aside.
pub(crate) fn unreadable(
    store: &Store,
    layer: &LayerId,
    path: &str,
    error: io::Error,
) -> io::Error {
    if is_lost(&error) { damaged(store, layer, &format!("`{path}`: {error}")) } else { error }
}
