//! The index of a cache: which keys lead to which layers.
//!
//! ```json
//! {"version": 1,
//!  "layers":    [{"blob": DESCRIPTOR, "diffId": "sha256:…", "content": "…", "form": "gzip-5.v1"}],
//!  "snapshots": [{"image": "sha256:…"}, {"below": 0, "layer": 0}],
//!  "records":   [{"definition": "…", "content": "…", "snapshot": 1, "own": true, "description": "RUN make", "parts": [], "durationMs": 5}],
//!  "mounts":    [{"id": "go-build", "name": "…", "used": 1700000000, "tree": DESCRIPTOR, "contents": DESCRIPTOR, "packs": [DESCRIPTOR]}]}
//! ```
//!
//! A snapshot is one layer on another snapshot: an image's, by its diff id, or one of `layers`. It comes after what it stands
//! on. A record's result is a snapshot, none for an empty one; `own` says that the topmost layer is its own. In an image
//! that carries its cache, layers have no `blob`: they are the image's. `mounts` may be left out: [`super::mount`].

use kiln_cache::{ContentDigest, Descriptor, DiffId, Key};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mount::CachedMount;
use crate::json::{self, DocumentError};
use crate::limits;
use crate::manifest::RemoteLayer;

/// The media type of an index.
pub const MEDIA_TYPE: &str = "application/vnd.kiln.cache.index.v1+json";
/// Where an image's config carries one.
pub const INLINE_KEY: &str = "dev.kiln.cache.v1";

const WHAT: &str = "cache index";
const VERSION: u32 = 1;

/// All of a cache but the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheIndex {
    /// Of this format.
    pub version: u32,
    /// Layers that steps made.
    pub layers: Vec<CacheLayer>,
    /// Chains of layers.
    pub snapshots: Vec<CacheSnapshot>,
    /// What steps made.
    pub records: Vec<CacheRecord>,
    /// What is in cache mounts; in no image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<CachedMount>,
}

/// A layer that a step made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheLayer {
    /// Its archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Descriptor>,
    /// Digest of its archive without compression.
    pub diff_id: DiffId,
    /// Content of its tree.
    pub content: ContentDigest,
    /// How its archive was made, where an image holds the very same: [`crate::archive::archive_form`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
}

/// One layer on others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSnapshot {
    /// The snapshot below, by its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<usize>,
    /// A layer of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<DiffId>,
    /// A layer of a step, by its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
}

/// A step's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheRecord {
    /// The definition key.
    pub definition: Key,
    /// The content key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Key>,
    /// The result, by its place; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<usize>,
    /// The topmost layer is the step's own.
    pub own: bool,
    /// The step, for people.
    pub description: String,
    /// Named parts of the key.
    pub parts: Vec<(String, String)>,
    /// How long it ran.
    pub duration_ms: u64,
}

impl CacheIndex {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// Reads an index whose layers have blobs.
    ///
    /// # Errors
    /// It is malformed, of another version, or names what it does not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let value = json::parse_value(WHAT, bytes, limits::CACHE_INDEX_BYTES)?;
        let index = Self::read(&value)?;
        if index.layers.iter().any(|layer| layer.blob.is_none()) {
            return Err(DocumentError::malformed(WHAT, "a layer has no blob"));
        }
        Ok(index)
    }

    /// Reads the index that an image carries; its layers are the image's.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn of_image(value: &Value, image: &[RemoteLayer]) -> Result<Self, DocumentError> {
        let mut index = Self::read(value)?;
        index.mounts.clear();
        for layer in &mut index.layers {
            let found = image.iter().find(|known| known.diff_id == layer.diff_id);
            let found = found.ok_or_else(|| {
                DocumentError::malformed(WHAT, "it names a layer that the image has not")
            })?;
            layer.blob = Some(found.descriptor.clone());
            layer.form = None;
        }
        Ok(index)
    }

    fn read(value: &Value) -> Result<Self, DocumentError> {
        let malformed = |reason: &str| Err(DocumentError::malformed(WHAT, reason));
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(_) => return malformed("another version of Kiln wrote it"),
            None => return malformed("it has no version"),
        }
        let index =
            Self::deserialize(value).map_err(|error| DocumentError::malformed(WHAT, error))?;
        for (place, snapshot) in index.snapshots.iter().enumerate() {
            let one = snapshot.image.is_some() != snapshot.layer.is_some();
            let known = snapshot.layer.is_none_or(|layer| layer < index.layers.len());
            if !one || !known || snapshot.below.is_some_and(|below| below >= place) {
                return malformed("a snapshot stands on nothing");
            }
        }
        for record in &index.records {
            let top = record.snapshot.map(|place| index.snapshots.get(place));
            let nothing = record.own && top.flatten().is_none_or(|top| top.layer.is_none());
            if nothing || matches!(top, Some(None)) {
                return malformed("a record has no result");
            }
        }
        Ok(index)
    }

    /// The document's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::compact(self)
    }

    /// For an image's config: layers without their blobs.
    ///
    /// # Panics
    /// Never: the index has a JSON form.
    #[must_use]
    pub fn to_inline(&self) -> Value {
        let mut index = self.clone();
        for layer in &mut index.layers {
            layer.blob = None;
        }
        serde_json::to_value(index).expect("an index has a JSON form")
    }

    /// The archives of its layers, and what there is of cache mounts.
    pub(super) fn blobs(&self) -> Vec<Descriptor> {
        let mut seen = std::collections::BTreeSet::new();
        let blobs = self.layers.iter().filter_map(|layer| layer.blob.as_ref());
        let blobs = blobs.chain(self.mounts.iter().flat_map(CachedMount::blobs)).cloned();
        blobs.filter(|blob| seen.insert(blob.digest.clone())).collect()
    }

    /// The layers of a snapshot as places in `snapshots`, bottom to top.
    #[must_use]
    pub fn chain(&self, top: Option<usize>) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut next = top;
        while let Some(place) = next {
            chain.push(place);
            next = self.snapshots.get(place).and_then(|snapshot| snapshot.below);
        }
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::CacheIndex;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn index(snapshots: &str, records: &str) -> String {
        let blob = format!(r#"{{"mediaType": "x", "digest": "{DIGEST}", "size": 1}}"#);
        let content = "0".repeat(64);
        let layer = format!(r#"{{"blob": {blob}, "diffId": "{DIGEST}", "content": "{content}"}}"#);
        format!(
            r#"{{"version": 1, "layers": [{layer}], "snapshots": [{snapshots}], "records": [{records}]}}"#
        )
    }

    fn record(rest: &str) -> String {
        let key = "1".repeat(64);
        format!(
            r#"{{"definition": "{key}", "description": "", "parts": [], "durationMs": 1, {rest}}}"#
        )
    }

    #[test]
    fn what_is_written_is_read() {
        let image = format!(r#"{{"image": "{DIGEST}"}}, {{"below": 0, "layer": 0}}"#);
        let text = index(&image, &record(r#""snapshot": 1, "own": true"#));
        let read = CacheIndex::parse(text.as_bytes()).expect("valid");
        assert_eq!(CacheIndex::parse(&read.to_bytes()).expect("valid"), read);
        assert_eq!(read.chain(Some(1)), [0, 1]);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let image = format!(r#"{{"image": "{DIGEST}"}}"#);
        for (snapshots, records) in [
            (r#"{"below": 0, "layer": 0}"#, ""),
            (r#"{"layer": 1}"#, ""),
            ("{}", ""),
            (r#"{"layer": 0}"#, &*record(r#""snapshot": 1, "own": true"#)),
            (image.as_str(), &*record(r#""snapshot": 0, "own": true"#)),
            ("", &*record(r#""own": true"#)),
        ] {
            let text = index(snapshots, records);
            assert!(CacheIndex::parse(text.as_bytes()).is_err(), "{text}");
        }
        let text = index("", "").replace("\"version\": 1", "\"version\": 2");
        let error = CacheIndex::parse(text.as_bytes()).expect_err("another version").to_string();
        assert!(error.contains("another version"), "{error}");
    }
}
