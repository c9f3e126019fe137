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
//!   reserve/                 room to prune when the disk is full
//!   logs/<build>/<step>      what steps wrote
//!   kiln.db                  SQLite (WAL): records, keys, builds, leases, last use, sizes
//!   quarantine/              what was found damaged
//!   locks/  tmp/<process>/   advisory locks; everything that is still being made
//! ```
//!
//! Rules: what is visible is complete and verified (publish = tmp, rename, one transaction). Every path is resolved
//! beneath an open directory. No function needs its process to end cleanly. Deleting the database loses only speed.

#![forbid(unsafe_code)]

mod blob;
mod builds;
mod checked;
mod context;
mod db;
mod digest;
mod failures;
mod filter;
mod fsck;
mod gc;
mod images;
mod layer;
mod layer_blobs;
mod layer_writer;
mod layers;
mod lease;
mod lock;
mod measure;
mod mount_carry;
mod mount_list;
mod mounts;
mod oci;
mod owner;
mod process;
mod quarantine;
mod quota;
mod record;
mod reserve;
mod root;
mod scan;
mod stat_cache;
mod store;
mod transfer;
mod tree;
mod tree_digest;
mod tree_format;
mod usage;
mod view;
mod whiteout;
mod worth;

pub use blob::{BlobInfo, BlobWriter};
pub use builds::{BuildId, BuildRow};
pub use checked::is_lost;
pub use context::{Context, ScanFilter, Verdict};
pub use digest::{
    Algorithm, ContentDigest, DiffId, Digest, DigestHasher, HashingReader, Key, LayerId, Mismatch,
    ParseDigestError, Verifier, VerifyingReader,
};
pub use filter::{Filter, FilterError};
pub use fsck::{FsckReport, Problem};
pub use gc::{Limits, PruneOptions, PruneReport, Space};
pub use images::StoredImage;
pub use layer::LayerDraft;
pub use layer_blobs::{FrameLocation, LayerBlob};
pub use layer_writer::{LayerWriter, Written};
pub use layers::Layers;
pub use lease::Lease;
pub use lock::KeyLock;
pub use mount_carry::NamedMount;
pub use mount_list::{MountInfo, OpenMount};
pub use mounts::{CacheMount, CacheMountRequest, Sharing};
pub use oci::{Descriptor, Platform};
pub use quarantine::Damage;
pub use record::{NewRecord, Record, TOUCH_AFTER};
pub use root::{DirItem, FileKind, Root, Stat};
pub use store::{Store, StoreError};
pub use transfer::{Transferred, transfer};
pub use tree::{Entry, Kind, Metadata, NodeRef, Time, Tree, TreeBuilder};
pub use tree_format::DecodeTreeError;
pub use usage::{UsageKind, UsageRow};
pub use view::{FileIdentity, Known, ResolveError, View, ViewEntry, resolve};
