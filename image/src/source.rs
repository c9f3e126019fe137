//! Where base images come from: registries, layouts, Kiln's own store.
//!
//! Resolving reads manifest and config and nothing else; layers are fetched when a step or an export
//! asks ([`Sources::fetch_layers`], [`Sources::ensure_blob`]). What a registry answered is kept in the
//! store, so that the same reference is resolved without network the next time ([`Pull::Missing`]).

mod fetch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_cache::{Descriptor, DiffId, Digest, Lease, Platform, Store, StoreError};

use crate::archive::ArchiveError;
use crate::config::ConfigDocument;
use crate::credential::Credentials;
use crate::index::Index;
use crate::json::DocumentError;
use crate::layout::{Layout, LayoutError, Selector};
use crate::manifest::{Manifest, RemoteLayer};
use crate::reference::Reference;
use crate::registry::{RegistryClient, RegistryError, RegistrySettings};
use crate::{limits, media_type, platform};

pub use fetch::FetchProgress;

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// When the store does not know the reference.
    #[default]
    Missing,
    /// For every reference with a tag: it may have moved.
    Always,
    /// Never.
    Never,
}

/// Where the content of a resolved image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a registry; some of it may be in the store already.
    Registry(Reference),
    /// In an OCI layout's folder.
    Layout(PathBuf),
    /// In the store.
    Store,
}

/// An image that was found: what a build must know before any layer is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What was asked for, for messages.
    pub reference: String,
    /// Digest of the manifest for the platform.
    pub digest: Digest,
    /// The manifest for the platform.
    pub manifest: Descriptor,
    /// The image's own platform, as its config says.
    pub platform: Platform,
    /// The bytes of the config.
    pub config: Vec<u8>,
    /// The layers, bottom to top.
    pub layers: Vec<RemoteLayer>,
    /// Where they are.
    pub origin: Origin,
}

/// Why an image or a layer of it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document is malformed.
    #[error("image `{reference}` is not usable: {source}")]
    Document {
        /// Which image.
        reference: String,
        /// What is wrong.
        source: DocumentError,
    },
    /// No image for the platform.
    #[error("image `{reference}` has nothing for `{wanted}`; it has {}", list(.found))]
    Platform {
        /// Which image.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// Those it has.
        found: Vec<String>,
    },
    /// Not in the store, and no registry may be asked.
    #[error("image `{reference}` is not in the store")]
    NotStored {
        /// Which image.
        reference: String,
    },
    /// A layer's archive is malformed or above a limit.
    #[error("cannot unpack layer `{digest}` of `{reference}`: {source}")]
    Unpack {
        /// Which image.
        reference: String,
        /// The layer's archive.
        digest: Digest,
        /// Why.
        source: ArchiveError,
    },
    /// A layer is not the one that the config names.
    #[error(
        "layer `{digest}` of `{reference}` unpacks to `{actual}`, its config says `{expected}`"
    )]
    DiffId {
        /// Which image.
        reference: String,
        /// The layer's archive.
        digest: Digest,
        /// What the config says.
        expected: DiffId,
        /// What it is.
        actual: DiffId,
    },
    /// Reading or writing a layer failed.
    #[error("cannot {operation} layer `{digest}` of `{reference}`: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Which image.
        reference: String,
        /// The layer's archive.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// Somebody ended it.
    #[error("cancelled")]
    Cancelled,
}

fn list(found: &[String]) -> String {
    match found {
        [] => "none at all".to_owned(),
        found => found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

/// The places that images come from; share it, it keeps connections.
#[derive(Debug)]
pub struct Sources {
    store: Store,
    client: RegistryClient,
    lease: Mutex<Option<Lease>>,
}

/// What the documents of an image say.
struct Found {
    manifest: Descriptor,
    platform: Platform,
    config: Vec<u8>,
    layers: Vec<RemoteLayer>,
}

/// Gives the bytes of a document, verified; none when it is not there.
type ReadDocument<'a> = &'a dyn Fn(&Descriptor, u64) -> Result<Option<Vec<u8>>, SourceError>;

impl Sources {
    /// Sources over a store; nothing is read or connected yet.
    #[must_use]
    pub fn new(store: Store, settings: RegistrySettings, credentials: Credentials) -> Self {
        Self { store, client: RegistryClient::new(settings, credentials), lease: Mutex::new(None) }
    }

    /// The client for registries, for a push.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Finds an image by its reference in a registry, or in the store if it was found before.
    ///
    /// # Errors
    /// When it does not exist, has nothing for the platform, cannot be fetched, or is malformed.
    pub fn resolve_registry(
        &self,
        reference: &Reference,
        wanted: &Platform,
        pull: Pull,
    ) -> Result<Resolved, SourceError> {
        let key = platform::name(&platform::normalised(wanted));
        let name = reference.to_string();
        // A digest cannot move: there is nothing to ask anew.
        let known = match reference.digest() {
            Some(digest) => Some(digest.clone()),
            None if pull == Pull::Always => None,
            None => self.store.recall_reference(&name, &key)?,
        };
        if let Some(digest) = known
            && let Some(found) = self.stored(reference, &digest, wanted)?
        {
            return Ok(resolved(reference, found));
        }
        if pull == Pull::Never {
            return Err(SourceError::NotStored { reference: reference.familiar() });
        }
        let top = self.client.manifest(reference)?;
        self.keep(&top.descriptor.digest, &top.bytes)?;
        let read = |descriptor: &Descriptor, limit: u64| {
            let digest = &descriptor.digest;
            if let Some(bytes) = self.store.read_blob(digest, limit)? {
                return Ok(Some(bytes));
            }
            let kind = descriptor.media_type.as_str();
            let bytes = if media_type::is_index(kind) || media_type::is_manifest(kind) {
                self.client.manifest_by_digest(reference, digest)?.bytes
            } else {
                self.client.small_blob(reference, descriptor, limit)?
            };
            self.keep(digest, &bytes)?;
            Ok(Some(bytes))
        };
        let found = walk(&reference.familiar(), top.descriptor.clone(), wanted, &read)?
            .ok_or_else(|| SourceError::NotStored { reference: reference.familiar() })?;
        self.store.remember_reference(&name, &key, &top.descriptor.digest)?;
        Ok(resolved(reference, found))
    }

    /// Finds an image in an OCI layout's folder. Reads its index, manifest and config, writes nothing.
    ///
    /// # Errors
    /// When it does not exist, has nothing for the platform, or is damaged or malformed.
    pub fn resolve_layout(
        &self,
        path: &Path,
        selector: &Selector,
        wanted: &Platform,
    ) -> Result<Resolved, SourceError> {
        let image = Layout::open(path)?.image(selector, wanted)?;
        let reference = format!("oci-layout://{}", path.display());
        let platform = image
            .config
            .platform()
            .map_err(|source| SourceError::Document { reference: reference.clone(), source })?;
        Ok(Resolved {
            reference,
            digest: image.descriptor.digest.clone(),
            manifest: image.descriptor,
            platform,
            config: image.config_bytes,
            layers: image.layers,
            origin: Origin::Layout(path.to_owned()),
        })
    }

    /// Finds an image that has this full name in the store.
    ///
    /// # Errors
    /// [`SourceError::NotStored`] when there is none; else as [`Self::resolve_registry`].
    pub fn resolve_stored(&self, name: &str, wanted: &Platform) -> Result<Resolved, SourceError> {
        let missing = || SourceError::NotStored { reference: name.to_owned() };
        let root = self.store.resolve(name)?.ok_or_else(missing)?;
        let read =
            |descriptor: &Descriptor, limit| Ok(self.store.read_blob(&descriptor.digest, limit)?);
        let found = walk(name, root, wanted, &read)?.ok_or_else(missing)?;
        Ok(Resolved {
            reference: name.to_owned(),
            digest: found.manifest.digest.clone(),
            manifest: found.manifest,
            platform: found.platform,
            config: found.config,
            layers: found.layers,
            origin: Origin::Store,
        })
    }

    /// What the store has under a manifest's or index's digest, if it has all documents.
    fn stored(
        &self,
        reference: &Reference,
        digest: &Digest,
        wanted: &Platform,
    ) -> Result<Option<Found>, SourceError> {
        let Some(bytes) = self.store.read_blob(digest, limits::DOCUMENT_BYTES)? else {
            return Ok(None);
        };
        let kind = match Index::parse(&bytes) {
            Ok(index) if !index.manifests.is_empty() => media_type::INDEX,
            _ => media_type::MANIFEST,
        };
        let top = Descriptor::new(kind, digest.clone(), bytes.len() as u64);
        let read =
            |descriptor: &Descriptor, limit| Ok(self.store.read_blob(&descriptor.digest, limit)?);
        walk(&reference.familiar(), top, wanted, &read)
    }

    /// Stores a document under the digest by which it is named.
    fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), SourceError> {
        if !self.store.has_blob(digest)? {
            let mut writer = self.store.blob_writer()?;
            io::Write::write_all(&mut writer, bytes)
                .map_err(|source| RegistryError::Blob { digest: digest.clone(), source })?;
            writer.commit(Some(digest))?;
        }
        self.with_lease(|lease| lease.hold_blob(digest))?;
        Ok(())
    }

    /// Protects something from garbage collection as long as this lives. Blobs are verified by who reads them, so that
    /// they can be read from a full disk, too.
    fn with_lease<T>(
        &self,
        hold: impl FnOnce(&Lease) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.is_none() {
            *lease = Some(self.store.lease_to_read()?);
        }
        hold(lease.as_ref().expect("it was made above"))
    }
}

fn resolved(reference: &Reference, found: Found) -> Resolved {
    Resolved {
        reference: reference.familiar(),
        digest: found.manifest.digest.clone(),
        manifest: found.manifest,
        platform: found.platform,
        config: found.config,
        layers: found.layers,
        origin: Origin::Registry(reference.clone()),
    }
}

/// Follows indexes to the manifest for a platform and reads its config. None when a document is not
/// there.
fn walk(
    reference: &str,
    top: Descriptor,
    wanted: &Platform,
    read: ReadDocument<'_>,
) -> Result<Option<Found>, SourceError> {
    let wrong = |source| SourceError::Document { reference: reference.to_owned(), source };
    let mut current = top;
    for _ in 0..=limits::INDEX_DEPTH {
        let Some(bytes) = read(&current, limits::DOCUMENT_BYTES)? else { return Ok(None) };
        if media_type::is_index(&current.media_type) {
            let index = Index::parse(&bytes).map_err(wrong)?;
            let Some(chosen) = index.choose(wanted) else {
                let offered = index.images().filter_map(|d| d.platform.as_ref());
                return Err(SourceError::Platform {
                    reference: reference.to_owned(),
                    wanted: platform::name(wanted),
                    found: offered.map(platform::name).collect(),
                });
            };
            current = chosen.clone();
            continue;
        }
        let manifest = Manifest::parse(&bytes).map_err(wrong)?;
        let Some(config) = read(&manifest.config, limits::CONFIG_BYTES)? else { return Ok(None) };
        let document = ConfigDocument::parse(&config).map_err(wrong)?;
        let layers = manifest.remote_layers(&document).map_err(wrong)?;
        let platform = document.platform().map_err(wrong)?;
        return Ok(Some(Found { manifest: current, platform, config, layers }));
    }
    Err(wrong(DocumentError::malformed("image index", "indexes are nested too deeply")))
}
