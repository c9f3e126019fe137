//! The store on disk: blobs, layer trees, records, locks.
//!
//! ```text
//! <root>/
//!   oci-layout index.json    the store is a valid OCI image layout
//!   blobs/<algo>/<hex>       OCI blobs, verified when they came in
//!   layers/<id>/             unpacked layer differences in overlay's form, immutable once published
//!   trees/<id>               the Merkle tree of each of them
//!   contexts/<hash>          stat caches: digests of a context directory's files
//!   mounts/<hash>/           RUN cache mounts
//!   kiln.db                  SQLite (WAL): records, keys, leases, last use, sizes
//!   locks/  tmp/<process>/   advisory locks; everything that is still being made
//! ```
//!
//! Rules: what is visible is complete and verified (publish = tmp, rename, one transaction). Every path is resolved
//! beneath an open directory. No function needs its process to end cleanly. Deleting the database loses only speed.

#![forbid(unsafe_code)]

mod blob;
mod digest;
mod gc;
mod images;
mod layer;
mod layer_blobs;
mod lease;
mod lock;
mod mounts;
mod oci;
mod record;
mod root;
mod store;
mod tree;
mod tree_digest;
mod tree_format;
mod view;

pub use blob::{BlobInfo, BlobWriter};
pub use digest::{
    Algorithm, ContentDigest, DiffId, Digest, DigestHasher, HashingReader, Key, LayerId, Mismatch,
    ParseDigestError, Verifier, VerifyingReader,
};
pub use gc::{PruneOptions, PruneReport, UsageKind, UsageRow};
pub use images::StoredImage;
pub use layer::{LayerDraft, LayerWriter, Written};
pub use layer_blobs::{FrameLocation, LayerBlob};
pub use lease::Lease;
pub use lock::KeyLock;
pub use mounts::{CacheMount, CacheMountRequest, Sharing};
pub use oci::{Descriptor, Platform};
pub use record::{NewRecord, Record};
pub use root::{DirItem, FileKind, Root, Stat};
pub use store::{Store, StoreError};
pub use tree::{Entry, Kind, Metadata, NodeRef, Time, Tree, TreeBuilder};
pub use tree_format::DecodeTreeError;
pub use view::{
    Context, FileIdentity, Known, Layers, ResolveError, ScanFilter, Verdict, View, ViewEntry,
    resolve,
};
