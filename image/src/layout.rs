//! OCI image layouts in folders: `oci-layout://` contexts, and the images other tools leave.
//!
//! The folder may be a stranger's: blobs must be regular files, are named by digest alone, and are
//! verified while they are read. An image is chosen by tag, by digest and by platform.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_cache::{Descriptor, Digest, Platform, Root, VerifyingReader};

use crate::config::ConfigDocument;
use crate::index::{CONTAINERD_NAME, Index, REF_NAME};
use crate::json::DocumentError;
use crate::manifest::{Manifest, RemoteLayer};
use crate::{limits, media_type, platform};

/// Why a layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file of the layout cannot be read, or is not what its digest says.
    #[error("cannot read `{path}` of the OCI layout `{layout}`: {source}")]
    Read {
        /// The layout's folder.
        layout: PathBuf,
        /// The file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A document is malformed.
    #[error("the OCI layout `{layout}` is not usable: {source}")]
    Document {
        /// The layout's folder.
        layout: PathBuf,
        /// What is wrong.
        source: DocumentError,
    },
    /// No image answers to what was asked for.
    #[error("the OCI layout `{layout}` has no image {wanted}{}", known(.found))]
    NotFound {
        /// The layout's folder.
        layout: PathBuf,
        /// The tag, digest or platform that was asked for.
        wanted: String,
        /// What it has instead.
        found: Vec<String>,
    },
}

fn known(found: &[String]) -> String {
    match found {
        [] => String::new(),
        found => format!("; it has {}", found.join(", ")),
    }
}

/// Which image of a layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selector {
    /// The only one; of several, the one tagged `latest`.
    #[default]
    Any,
    /// The one with this tag or full name.
    Tag(String),
    /// The one with this digest, whether the index lists it or not.
    Digest(Digest),
}

/// An image of a layout.
#[derive(Clone, Debug)]
pub struct LayoutImage {
    /// Its manifest.
    pub descriptor: Descriptor,
    /// The manifest, read.
    pub manifest: Manifest,
    /// The bytes of its config.
    pub config_bytes: Vec<u8>,
    /// The config, read.
    pub config: ConfigDocument,
    /// Its layers, bottom to top.
    pub layers: Vec<RemoteLayer>,
}

/// An open layout.
#[derive(Debug)]
pub struct Layout {
    root: Root,
    index: Index,
}

impl Layout {
    /// Opens a folder that holds `index.json`.
    ///
    /// # Errors
    /// When there is none, or it is malformed.
    pub fn open(folder: &Path) -> Result<Self, LayoutError> {
        let failed = |path: &str| {
            let path = PathBuf::from(path);
            move |source| LayoutError::Read { layout: folder.to_owned(), path, source }
        };
        let root = Root::open(folder).map_err(failed(""))?;
        let file = root.open_file(Path::new("index.json")).map_err(failed("index.json"))?;
        let bytes = read_all(file, limits::DOCUMENT_BYTES).map_err(failed("index.json"))?;
        let index = Index::parse(&bytes)
            .map_err(|source| LayoutError::Document { layout: folder.to_owned(), source })?;
        Ok(Self { root, index })
    }

    /// What the layout lists.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Finds and reads an image.
    ///
    /// # Errors
    /// When none answers, or one of its documents is missing, damaged or malformed.
    pub fn image(
        &self,
        selector: &Selector,
        wanted: &Platform,
    ) -> Result<LayoutImage, LayoutError> {
        let descriptor = self.manifest(self.select(selector)?, wanted)?;
        let manifest = Manifest::parse(&self.document(&descriptor, limits::DOCUMENT_BYTES)?)
            .map_err(|e| self.document_error(e))?;
        let config_bytes = self.document(&manifest.config, limits::CONFIG_BYTES)?;
        let config = ConfigDocument::parse(&config_bytes).map_err(|e| self.document_error(e))?;
        let layers = manifest.remote_layers(&config).map_err(|e| self.document_error(e))?;
        Ok(LayoutImage { descriptor, manifest, config_bytes, config, layers })
    }

    /// A blob, verified while it is read: an error comes instead of the end if it is damaged.
    ///
    /// # Errors
    /// When it is not there or no regular file.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<VerifyingReader<File>, LayoutError> {
        let digest = &descriptor.digest;
        let path = Path::new("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        match self.root.open_file(&path) {
            Ok(file) => Ok(VerifyingReader::new(file, digest.clone(), Some(descriptor.size))),
            Err(source) => {
                let layout = self.root.path().to_owned();
                Err(LayoutError::Read { layout, path, source })
            }
        }
    }

    pub(crate) fn document(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, LayoutError> {
        read_all(self.blob(descriptor)?, limit).map_err(|source| {
            let layout = self.root.path().to_owned();
            LayoutError::Read { layout, path: descriptor.digest.to_string().into(), source }
        })
    }

    fn document_error(&self, source: DocumentError) -> LayoutError {
        LayoutError::Document { layout: self.root.path().to_owned(), source }
    }

    fn not_found(&self, wanted: String, found: Vec<String>) -> LayoutError {
        LayoutError::NotFound { layout: self.root.path().to_owned(), wanted, found }
    }

    /// Descriptors of the index that answer to a selector. Several with one tag are one image for
    /// several platforms.
    pub(crate) fn select(&self, selector: &Selector) -> Result<Vec<Descriptor>, LayoutError> {
        let tagged = |tag: &str| -> Vec<Descriptor> {
            self.index.images().filter(|d| names(d).any(|name| name == tag)).cloned().collect()
        };
        let found = match selector {
            Selector::Any => {
                let all: Vec<Descriptor> = self.index.images().cloned().collect();
                let latest = tagged("latest");
                let first = all.first().map(|d| d.digest.clone());
                let one_image = all.iter().all(|d| Some(&d.digest) == first.as_ref());
                let one_name = all.iter().all(|d| names(d).next().is_none());
                if one_image || one_name || latest.is_empty() { all } else { latest }
            }
            Selector::Tag(tag) => tagged(tag),
            Selector::Digest(digest) => {
                let listed = self.index.manifests.iter().find(|d| d.digest == *digest).cloned();
                listed.or_else(|| self.unlisted(digest)).into_iter().collect()
            }
        };
        if found.is_empty() {
            let wanted = match selector {
                Selector::Any => String::new(),
                Selector::Tag(tag) => format!("with the tag `{tag}`"),
                Selector::Digest(digest) => format!("with the digest `{digest}`"),
            };
            let known = self.index.images().flat_map(names).map(|name| format!("`{name}`"));
            return Err(self.not_found(wanted.trim_end().to_owned(), known.collect()));
        }
        Ok(found)
    }

    /// A blob that no index names: a manifest of an index that was put there whole.
    fn unlisted(&self, digest: &Digest) -> Option<Descriptor> {
        let path = Path::new("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        let file = self.root.open_file(&path).ok()?;
        let size = file.metadata().ok()?.len();
        let bytes = read_all(file, limits::DOCUMENT_BYTES).ok()?;
        let media_type = match Index::parse(&bytes) {
            Ok(index) if bytes.windows(11).any(|w| w == b"\"manifests\"") => {
                index.media_type.unwrap_or_else(|| media_type::INDEX.to_owned())
            }
            _ => media_type::MANIFEST.to_owned(),
        };
        Some(Descriptor::new(&media_type, digest.clone(), size))
    }

    /// Follows indexes to the manifest for a platform.
    fn manifest(
        &self,
        mut candidates: Vec<Descriptor>,
        wanted: &Platform,
    ) -> Result<Descriptor, LayoutError> {
        for _ in 0..=limits::INDEX_DEPTH {
            let level = Index::new(candidates);
            let chosen = level.choose(wanted).or(match level.manifests.as_slice() {
                // A single image is taken for what it is, as from a registry.
                [only] => Some(only),
                _ => None,
            });
            let Some(chosen) = chosen else {
                let has = level.images().filter_map(|d| d.platform.as_ref());
                let has = has.map(|p| format!("`{}`", platform::name(p))).collect();
                return Err(self.not_found(format!("for `{}`", platform::name(wanted)), has));
            };
            if !media_type::is_index(&chosen.media_type) {
                return Ok(chosen.clone());
            }
            candidates = Index::parse(&self.document(chosen, limits::DOCUMENT_BYTES)?)
                .map_err(|e| self.document_error(e))?
                .manifests;
        }
        Err(self.not_found("within a sensible depth of indexes".to_owned(), Vec::new()))
    }
}

/// The names under which a descriptor stands in `index.json`.
fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    [REF_NAME, CONTAINERD_NAME]
        .into_iter()
        .filter_map(|key| descriptor.annotations.get(key).map(String::as_str))
}

fn read_all(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}
