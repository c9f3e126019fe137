//! Layer archives: tar as OCI images use it, written deterministically and read without trust.
//!
//! - [`writer`] turns a stored layer into a blob: [`frame`] cuts it, [`mod@entry`], [`pax`] and
//!   [`whiteout`] make the bytes, [`compress`] packs frame by frame.
//! - [`reader`] turns a stream into typed entries, within the limits of [`crate::limits`];
//!   [`decompress`] chooses the decoder. What entries do to a file system is [`crate::unpack`]'s.

mod compress;
mod decompress;
pub(crate) mod entry;
mod frame;
mod header;
mod pax;
mod reader;
mod sparse;
pub(crate) mod whiteout;
mod writer;

use std::io;

pub(crate) use compress::FrameCompressor;
pub use compress::{Compression, CompressionError};
pub use decompress::{Decompress, Format};
pub use reader::{ArchiveEntry, ArchiveReader, ArchivedKind, Attributes, Content};
pub use writer::{
    ArchiveOptions, WriteLayerError, archive_form, compress_archive, is_portable, write_layer,
};

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a tar archive of a form that we know.
    #[error("malformed archive at byte {offset}{}: {reason}", entry(path))]
    Malformed {
        /// Offset of the entry's header in the decompressed stream.
        offset: u64,
        /// Name of the entry, empty where it has none yet.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Above one of [`crate::limits`].
    #[error("archive{}: {what} is more than the limit of {limit}", entry(path))]
    Limit {
        /// Name of the entry.
        path: String,
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The entry would act outside of the layer, or has no meaning in one.
    #[error("archive{}: {reason}", entry(path))]
    Refused {
        /// Name of the entry.
        path: String,
        /// Why.
        reason: String,
    },
    /// The stream cannot be read or decompressed.
    #[error("cannot read the archive{}: {source}", entry(path))]
    Read {
        /// Name of the entry being read.
        path: String,
        /// What the reader said.
        source: io::Error,
    },
    /// The entry cannot be written to the layer.
    #[error("cannot unpack{}: {source}", entry(path))]
    Write {
        /// Name of the entry.
        path: String,
        /// What the layer said.
        source: io::Error,
    },
}

fn entry(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" entry `{path}`") }
}

impl ArchiveError {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed { offset: 0, path: String::new(), reason: reason.into() }
    }

    /// Says where; the innermost place that is known stays.
    pub(crate) fn at(mut self, at: u64, name: &[u8]) -> Self {
        let (Self::Malformed { path, .. }
        | Self::Limit { path, .. }
        | Self::Refused { path, .. }
        | Self::Read { path, .. }
        | Self::Write { path, .. }) = &mut self;
        if path.is_empty() {
            *path = name.escape_ascii().to_string();
        }
        if let Self::Malformed { offset: offset @ 0, .. } = &mut self {
            *offset = at;
        }
        self
    }
}

#[cfg(test)]
mod tests;
