//! Caches elsewhere: what steps made, kept in a registry or a folder for other stores.
//!
//! A cache is an index ([`index`], a small document that is fetched first) and the archives of layers that it names. Where
//! they are is a [`Backend`]'s matter: [`registry`] and [`local`] are two, and another store is another implementation of
//! the same few functions. [`fetch`] brings a layer from there into the store, and takes nothing that is not what the
//! index says. What is in RUN cache mounts can be there, too ([`mount`]): [`pack`] writes it, [`fill`] reads it.

pub mod fetch;
pub mod fill;
pub mod index;
pub mod local;
pub mod mount;
pub mod pack;
pub mod registry;

use std::io::{self, Read};

use kiln_cache::{Descriptor, Digest, Store, StoreError};

use crate::archive::{ArchiveError, WriteLayerError};
use crate::json::DocumentError;
use crate::layout::LayoutError;
use crate::manifest::Manifest;
use crate::registry::RegistryError;
use crate::{limits, media_type};
use index::CacheIndex;

/// Why a cache cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layout in a folder.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A document that cannot be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer that cannot be archived.
    #[error(transparent)]
    Archive(#[from] WriteLayerError),
    /// A layer that cannot be unpacked.
    #[error("layer `{digest}` cannot be unpacked: {source}")]
    Unpack {
        /// Its archive.
        digest: Digest,
        /// Why.
        source: ArchiveError,
    },
    /// A layer that is not what the index says.
    #[error("layer `{digest}` is damaged: {reason}")]
    Damaged {
        /// Its archive.
        digest: Digest,
        /// What is wrong.
        reason: &'static str,
    },
    /// What is not as it should be of a cache mount.
    #[error("`{digest}` is damaged: {reason}")]
    Mount {
        /// The blob.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A blob or a file cannot be read or written.
    #[error("cannot {operation} `{what}`: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With what.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// What is there is not a cache that Kiln can use.
    #[error("{0}")]
    Foreign(&'static str),
    /// The build was stopped.
    #[error("cancelled")]
    Cancelled,
}

/// Where caches are kept.
pub trait Backend: Send + Sync {
    /// The indexes that are there: one, or those of an image's platforms.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    fn indexes(&self) -> Result<Vec<CacheIndex>, CacheError>;

    /// Opens a blob for reading; the caller verifies what it reads.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    fn blob<'a>(&'a self, blob: &Descriptor) -> Result<Box<dyn Read + Send + 'a>, CacheError>;

    /// Whether a blob is there.
    ///
    /// # Errors
    /// That cannot be found out.
    fn has_blob(&self, blob: &Descriptor) -> Result<bool, CacheError>;

    /// Takes a blob of the store; one that is there costs nothing.
    ///
    /// # Errors
    /// It is not in the store, or cannot be written.
    fn put_blob(&self, store: &Store, blob: &Descriptor) -> Result<(), CacheError>;

    /// Takes a blob of the store in place of one that may be damaged.
    ///
    /// # Errors
    /// As [`Backend::put_blob`].
    fn replace_blob(&self, store: &Store, blob: &Descriptor) -> Result<(), CacheError> {
        self.put_blob(store, blob)
    }

    /// Takes an index, whose blobs are there, in place of the one before.
    ///
    /// # Errors
    /// It cannot be written.
    fn put_index(&self, index: &CacheIndex) -> Result<(), CacheError>;
}

/// How a cache is written down beside its blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An OCI image manifest whose config is the index.
    Manifest,
    /// An OCI image index that lists the layers and the index.
    Index,
    /// The same as a Docker manifest list.
    DockerList,
}

impl Form {
    /// The document that names the index and its blobs, and its media type.
    fn document(self, config: Descriptor, blobs: Vec<Descriptor>) -> (&'static str, Vec<u8>) {
        let list = |media_type: &'static str, convert: fn(&str) -> &str| {
            let mut manifests = blobs.clone();
            for blob in &mut manifests {
                blob.media_type = convert(&blob.media_type).to_owned();
            }
            manifests.push(config.clone());
            let mut list = crate::index::Index::new(manifests);
            list.media_type = Some(media_type.to_owned());
            (media_type, list.to_bytes())
        };
        match self {
            Self::Manifest => {
                let manifest = Manifest {
                    schema_version: 2,
                    media_type: Some(media_type::MANIFEST.to_owned()),
                    config,
                    layers: blobs,
                    annotations: std::collections::BTreeMap::new(),
                };
                (media_type::MANIFEST, manifest.to_bytes())
            }
            Self::Index => list(media_type::INDEX, media_type::to_oci),
            Self::DockerList => list(media_type::DOCKER_INDEX, media_type::to_docker),
        }
    }
}

/// Reads documents of a cache by descriptor, against a limit.
type ReadDocument<'a> = &'a dyn Fn(&Descriptor, u64) -> Result<Vec<u8>, CacheError>;

/// What BuildKit calls its own index.
const BUILDKIT: &str = "application/vnd.buildkit.cacheconfig.v0";

/// BuildKit's cache in the config of an image.
pub(crate) const BUILDKIT_INLINE: &str = "moby.buildkit.cache.v0";

/// Finds the indexes below a document, whatever form it has.
fn indexes_below(
    kind: &str,
    bytes: &[u8],
    read: ReadDocument<'_>,
) -> Result<Vec<CacheIndex>, CacheError> {
    if !media_type::is_index(kind) {
        return manifest_indexes(bytes, read);
    }
    let list = crate::index::Index::parse(bytes)?;
    if let Some(found) = list.manifests.iter().find(|d| d.media_type == index::MEDIA_TYPE) {
        return Ok(vec![CacheIndex::parse(&read(found, limits::CACHE_INDEX_BYTES)?)?]);
    }
    if list.manifests.iter().any(|d| d.media_type == BUILDKIT) {
        return Err(foreign());
    }
    let (mut found, mut failure) = (Vec::new(), None);
    for image in list.images().filter(|d| media_type::is_manifest(&d.media_type)) {
        let read_one = || manifest_indexes(&read(image, limits::DOCUMENT_BYTES)?, read);
        match read_one() {
            Ok(indexes) => found.extend(indexes),
            Err(error) => failure = Some(error),
        }
    }
    if found.is_empty() { Err(failure.unwrap_or_else(empty)) } else { Ok(found) }
}

/// The index of one manifest: its config, or what an image's config carries.
fn manifest_indexes(bytes: &[u8], read: ReadDocument<'_>) -> Result<Vec<CacheIndex>, CacheError> {
    let manifest = Manifest::parse_cache(bytes)?;
    match manifest.config.media_type.as_str() {
        index::MEDIA_TYPE => {
            Ok(vec![CacheIndex::parse(&read(&manifest.config, limits::CACHE_INDEX_BYTES)?)?])
        }
        BUILDKIT => Err(foreign()),
        media_type::CONFIG | media_type::DOCKER_CONFIG => {
            let config = read(&manifest.config, limits::CONFIG_BYTES)?;
            let config = crate::config::ConfigDocument::parse(&config)?;
            match config.value(index::INLINE_KEY) {
                Some(value) => {
                    let layers = manifest.remote_layers(&config)?;
                    Ok(vec![CacheIndex::of_image(value, &layers)?])
                }
                None if config.value(BUILDKIT_INLINE).is_some() => Err(foreign()),
                None => Err(empty()),
            }
        }
        _ => Err(empty()),
    }
}

fn foreign() -> CacheError {
    CacheError::Foreign("BuildKit wrote it, whose keys mean nothing to Kiln")
}

fn empty() -> CacheError {
    CacheError::Foreign("it is no cache, and no image that carries one")
}
