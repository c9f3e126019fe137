//! Every limit on what comes from outside, with its reason.
//!
//! An image, an archive or a registry answer is written by a stranger. Whatever is read from one is
//! read against a number in this file, and an error names the limit that was hit, so that a legitimate
//! giant can be told from an attack and the number can be changed in one place.

/// Largest manifest, index or other JSON document that is read whole, in bytes. The distribution
/// specification asks registries to accept manifests of 4 MiB; nobody makes larger ones.
pub const DOCUMENT_BYTES: u64 = 4 << 20;

/// Largest image config, in bytes. Configs hold histories and labels; 8 MiB is far beyond the
/// largest known one (some 200 KiB) and still harmless in memory.
pub const CONFIG_BYTES: u64 = 8 << 20;

/// Largest index of a cache, in bytes: some 100,000 steps.
pub const CACHE_INDEX_BYTES: u64 = 64 << 20;

/// Largest document of a cache mount in a cache, in bytes: about a million files.
pub const MOUNT_DOCUMENT_BYTES: u64 = 256 << 20;

/// Layers in one image. overlayfs takes 500 lower directories; Docker stops at 127.
pub const LAYERS: usize = 1024;

/// Depth of indexes inside indexes before we stop following them.
pub const INDEX_DEPTH: usize = 4;

/// Bytes of one path in an archive (`PATH_MAX`).
pub const PATH_BYTES: usize = 4096;

/// Bytes of one path component (`NAME_MAX`).
pub const NAME_BYTES: usize = 255;

/// Directories that may lie above an entry. A deeper tree is not usable by path at all.
pub const PATH_DEPTH: usize = 2048;

/// Bytes of one PAX header or GNU long name. Go's reader has the same limit.
pub const PAX_BYTES: u64 = 1 << 20;

/// Bytes of one extended attribute's value (`XATTR_SIZE_MAX`).
pub const XATTR_BYTES: usize = 64 << 10;

/// Segments of one sparse file.
pub const SPARSE_SEGMENTS: usize = 1 << 20;

/// Largest window that a zstd stream may ask for, as a power of two: 128 MiB, what the zstd
/// command accepts by default.
pub const ZSTD_WINDOW_LOG: u32 = 27;

/// Memory that an xz decoder may use, in bytes: level 9 needs 65 MiB.
pub const XZ_MEMORY: u64 = 128 << 20;

/// Budgets for one archive. [`Budget::default`] serves whole base images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes after decompression, file contents with their holes included.
    pub bytes: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
}

impl Default for Budget {
    /// 256 GiB and 16 million entries: above the largest machine-learning images, far below a bomb
    /// that writes until the disk is full.
    fn default() -> Self {
        Self { bytes: 256 << 30, entries: 16 << 20 }
    }
}
