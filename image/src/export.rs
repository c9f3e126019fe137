//! From what a build made to an image in the store, and from there to every kind of output.
//!
//! [`build_image`] archives the layers that have no blob yet, completes the config and stores it with
//! its manifest; [`build_index`] joins several platforms. What they return is the root of blobs that
//! [`oci`], [`docker`], a push or a name in the store ([`store`]) take from there. [`local`] and
//! [`tar`] write the file system itself.

pub mod docker;
pub mod local;
pub mod oci;
pub mod store;
pub mod tar;

use std::collections::{BTreeMap, HashSet};
use std::io;

use kiln_cache::{
    Descriptor, DiffId, Digest, LayerBlob, LayerId, Lease, Platform, Store, StoreError,
};

use crate::archive::{ArchiveOptions, Compression, Decompress, WriteLayerError};
use crate::archive::{compress_archive, write_layer};
use crate::cache::index::CacheIndex;
use crate::config::ConfigDocument;
use crate::history::{self, LayerOrigin};
use crate::index::Index;
use crate::json::DocumentError;
use crate::manifest::{Manifest, RemoteLayer};
use crate::{limits, media_type};

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A layer cannot be archived.
    #[error(transparent)]
    Layer(#[from] WriteLayerError),
    /// A document of the image is not usable.
    #[error("invalid image config for export: {0}")]
    Document(#[from] DocumentError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A blob that the image names is not in the store.
    #[error("blob `{0}` of the image is not in the store")]
    MissingBlob(Digest),
    /// A blob that the image names is not what it should be; it is set aside.
    #[error("blob `{0}` of the image is damaged")]
    DamagedBlob(Digest),
    /// Options that exclude each other, in BuildKit's words.
    #[error("{0}")]
    Conflict(String),
    /// The output cannot be written.
    #[error("cannot write {output}: {source}")]
    Output {
        /// What and where.
        output: String,
        /// Why.
        source: io::Error,
    },
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct ExportLayer {
    /// Its id in the store.
    pub id: LayerId,
    /// Where it came from, if it is a layer of another image; its blob is used as it is.
    pub remote: Option<RemoteLayer>,
    /// When it was made, in seconds since 1970; none for layers of other images.
    pub created: Option<i64>,
    /// For the history, should that have no entry for it.
    pub description: String,
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// The platform in the index.
    pub platform: Platform,
    /// The config: everything but layers, and the history as far as the instructions say it.
    pub config: ConfigDocument,
    /// Bottom to top.
    pub layers: Vec<ExportLayer>,
    /// The cache that the config carries.
    pub cache: Option<InlineCache>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the manifest's descriptor.
    pub descriptor_annotations: BTreeMap<String, String>,
}

/// A cache in an image: its layers are the image's.
#[derive(Clone, Debug)]
pub struct InlineCache {
    /// The index; the diff ids of its layers are found when the image is made.
    pub index: CacheIndex,
    /// The layers of the index, by their ids in the store.
    pub layers: Vec<LayerId>,
}

impl InlineCache {
    fn document(&self, ids: &[LayerId], diff_ids: &[DiffId]) -> serde_json::Value {
        let mut index = self.index.clone();
        for (layer, id) in index.layers.iter_mut().zip(&self.layers) {
            if let Some(place) = ids.iter().position(|known| known == id) {
                layer.diff_id = diff_ids[place].clone();
            }
        }
        index.to_inline()
    }
}

/// How images are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageOptions {
    /// How new layers are compressed.
    pub compression: Compression,
    /// Layers of other images are compressed anew where they are compressed otherwise.
    pub force_compression: bool,
    /// Docker's media types instead of OCI's.
    pub docker_types: bool,
    /// `SOURCE_DATE_EPOCH`: no time that we write is later.
    pub epoch: Option<i64>,
    /// The epoch also counts for the files in new layers.
    pub rewrite_timestamp: bool,
}

/// An image whose blobs are all in the store. They stay there as long as this lives.
#[derive(Debug)]
pub struct Exported {
    /// The manifest, with its platform.
    pub manifest: Descriptor,
    /// The config.
    pub config: Descriptor,
    /// The layers, bottom to top.
    pub layers: Vec<Descriptor>,
    /// Their digests without compression.
    pub diff_ids: Vec<DiffId>,
    /// The image's `created`.
    pub created: Option<String>,
    lease: Lease,
}

/// Makes an image in the store: archives, config, manifest.
///
/// # Errors
/// When the config has no platform, a layer is missing or cannot be archived, or a blob that another
/// image brought is not in the store.
pub fn build_image(
    store: &Store,
    spec: &ImageSpec,
    options: &ImageOptions,
) -> Result<Exported, ExportError> {
    spec.config.platform()?;
    if options.docker_types && !spec.annotations.is_empty() {
        let text = "cannot export annotations with \"oci-mediatypes=false\"";
        return Err(ExportError::Conflict(text.to_owned()));
    }
    let lease = store.lease_to_read()?;
    let ids: Vec<LayerId> = spec.layers.iter().map(|layer| layer.id.clone()).collect();
    let mut layers = Vec::with_capacity(spec.layers.len());
    let mut diff_ids = Vec::with_capacity(spec.layers.len());
    for (i, layer) in spec.layers.iter().enumerate() {
        let (descriptor, diff_id) = layer_blob(store, layer, &ids[..i], options)?;
        lease.hold_blob(&descriptor.digest)?;
        layers.push(typed(descriptor, options));
        diff_ids.push(diff_id);
    }
    let (config, created) = finish_config(spec, &diff_ids, options.epoch)?;
    let put = |media_type: &str, bytes: &[u8]| -> Result<Descriptor, ExportError> {
        let digest = store.put_blob(bytes)?;
        lease.hold_blob(&digest)?;
        Ok(typed(Descriptor::new(media_type, digest, bytes.len() as u64), options))
    };
    let config = put(media_type::CONFIG, &config)?;
    let manifest_type =
        if options.docker_types { media_type::DOCKER_MANIFEST } else { media_type::MANIFEST };
    let document = Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.to_owned()),
        config: config.clone(),
        layers: layers.clone(),
        annotations: spec.annotations.clone(),
    };
    let mut manifest = put(media_type::MANIFEST, &document.to_bytes())?;
    manifest.platform = Some(spec.platform.clone());
    manifest.annotations = spec.descriptor_annotations.clone();
    Ok(Exported { manifest, config, layers, diff_ids, created, lease })
}

/// The descriptor in the family of media types that was asked for.
fn typed(mut descriptor: Descriptor, options: &ImageOptions) -> Descriptor {
    let family = if options.docker_types { media_type::to_docker } else { media_type::to_oci };
    descriptor.media_type = family(&descriptor.media_type).to_owned();
    descriptor
}

fn finish_config(
    spec: &ImageSpec,
    diff_ids: &[DiffId],
    epoch: Option<i64>,
) -> Result<(Vec<u8>, Option<String>), ExportError> {
    let origins: Vec<LayerOrigin> = spec
        .layers
        .iter()
        .map(|l| LayerOrigin { created: l.created, description: l.description.clone() })
        .collect();
    let mut config = spec.config.clone();
    let history = history::normalise(config.history()?, &origins, epoch);
    let created = history::created(&history).map(str::to_owned);
    config.set_history(&history);
    config.set_diff_ids(diff_ids);
    config.set_created(created.as_deref());
    let ids: Vec<LayerId> = spec.layers.iter().map(|layer| layer.id.clone()).collect();
    config.set_inline_cache(spec.cache.as_ref().map(|cache| cache.document(&ids, diff_ids)));
    Ok((config.to_bytes(), created))
}

/// The blob of one layer: the one it came with, or one that is made now.
fn layer_blob(
    store: &Store,
    layer: &ExportLayer,
    below: &[LayerId],
    options: &ImageOptions,
) -> Result<(Descriptor, DiffId), ExportError> {
    let mut archive = ArchiveOptions { compression: options.compression, ..Default::default() };
    let Some(remote) = &layer.remote else {
        archive.clamp = options.epoch.filter(|_| options.rewrite_timestamp);
        let blob = write_layer(store, &layer.id, below, &archive)?;
        return Ok(descriptor(blob));
    };
    let wanted = options.compression.media_type();
    if !options.force_compression || media_type::to_oci(&remote.descriptor.media_type) == wanted {
        let mut descriptor = remote.descriptor.clone();
        descriptor.annotations.retain(|key, _| !is_internal(key));
        return Ok((descriptor, remote.diff_id.clone()));
    }
    let digest = &remote.descriptor.digest;
    let missing = || ExportError::MissingBlob(digest.clone());
    let file = store.open_blob(digest)?.ok_or_else(missing)?;
    let plain = Decompress::new(file).map_err(|source| ExportError::Output {
        output: format!("layer `{digest}` with another compression"),
        source,
    })?;
    let blob = compress_archive(store, &layer.id, plain, &archive)?;
    if blob.diff_id != remote.diff_id {
        return Err(missing());
    }
    Ok(descriptor(blob))
}

fn descriptor(blob: LayerBlob) -> (Descriptor, DiffId) {
    (Descriptor::new(&blob.media_type, blob.digest, blob.size), blob.diff_id)
}

/// Annotations that only mean something to the tool that wrote them (behaviour.md 6.3, trap 72).
fn is_internal(key: &str) -> bool {
    key == "containerd.io/uncompressed"
        || key.starts_with("buildkit/")
        || key.starts_with("containerd.io/distribution.source.")
}

/// Joins images of several platforms under one index, in the order given.
///
/// # Errors
/// When the store cannot be written.
pub fn build_index(
    store: &Store,
    images: &[Exported],
    annotations: BTreeMap<String, String>,
    options: &ImageOptions,
) -> Result<Descriptor, ExportError> {
    let mut index = Index::new(images.iter().map(|image| image.manifest.clone()).collect());
    index.annotations = annotations;
    let family = Descriptor::new(media_type::INDEX, Digest::sha256(b""), 0);
    index.media_type = Some(typed(family, options).media_type);
    let bytes = index.to_bytes();
    let digest = store.put_blob(&bytes)?;
    if let Some(image) = images.first() {
        image.lease.hold_blob(&digest)?;
    }
    let descriptor = Descriptor::new(media_type::INDEX, digest, bytes.len() as u64);
    Ok(typed(descriptor, options))
}

/// An image, or index of images, that is handed out under names.
#[derive(Clone, Debug)]
pub struct NamedImage {
    /// The manifest or index.
    pub root: Descriptor,
    /// Full names, e.g. `docker.io/library/app:1`.
    pub names: Vec<String>,
    /// For the annotation on the root's descriptor in the output.
    pub created: Option<String>,
}

/// All blobs that a root needs, each once: documents before what they name.
///
/// # Errors
/// When a document is missing from the store or malformed.
pub fn reachable(store: &Store, root: &Descriptor) -> Result<Vec<Descriptor>, ExportError> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut open = vec![(root.clone(), 0)];
    while let Some((descriptor, depth)) = open.pop() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        let document = |bytes| -> Result<Vec<u8>, ExportError> {
            let missing = || ExportError::MissingBlob(descriptor.digest.clone());
            store.read_blob(&descriptor.digest, bytes)?.ok_or_else(missing)
        };
        let kind = descriptor.media_type.as_str();
        if media_type::is_index(kind) && depth < limits::INDEX_DEPTH {
            let index = Index::parse(&document(limits::DOCUMENT_BYTES)?)?;
            open.extend(index.manifests.into_iter().rev().map(|d| (d, depth + 1)));
        } else if media_type::is_manifest(kind) {
            let manifest = Manifest::parse(&document(limits::DOCUMENT_BYTES)?)?;
            open.extend(manifest.layers.into_iter().rev().map(|d| (d, depth + 1)));
            open.push((manifest.config, depth + 1));
        }
        found.push(descriptor);
    }
    Ok(found)
}
