//! Image indexes: one name, several platforms; also the `index.json` of a layout.

use std::collections::BTreeMap;

use kiln_cache::{Descriptor, Platform};
use serde::{Deserialize, Serialize};

use crate::json::{self, DocumentError};
use crate::manifest::nullable;
use crate::{limits, media_type, platform};

/// Annotation on a descriptor: the tag of an image in a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation on a descriptor: the full name under which containerd loads an image.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation on a descriptor: when the image was made.
pub const CREATED: &str = "org.opencontainers.image.created";
/// Annotation that marks attestations: manifests that are no images.
pub const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// An image index or Docker manifest list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Of the index itself; older layouts leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it holds, in order of preference.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    /// Free remarks.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An OCI index of these manifests.
    #[must_use]
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        let media_type = Some(media_type::INDEX.to_owned());
        Self { schema_version: 2, media_type, manifests, annotations: BTreeMap::new() }
    }

    /// Reads an index of either family.
    ///
    /// # Errors
    /// When the bytes are too many or malformed, or are a manifest at the same time.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        const WHAT: &str = "image index";
        let value = json::parse_value(WHAT, bytes, limits::DOCUMENT_BYTES)?;
        for key in ["layers", "config"] {
            if value.get(key).is_some() {
                let reason = format!("it holds `{key}` like a manifest");
                return Err(DocumentError::malformed(WHAT, reason));
            }
        }
        let index: Self =
            serde_json::from_value(value).map_err(|e| DocumentError::malformed(WHAT, e))?;
        match index.media_type.as_deref() {
            Some(other) if !media_type::is_index(other) => {
                let reason = format!("media type `{other}` is not that of an index");
                Err(DocumentError::malformed(WHAT, reason))
            }
            _ => Ok(index),
        }
    }

    /// The descriptors of images: everything but attestations.
    pub fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|d| !d.annotations.contains_key(DOCKER_REFERENCE_TYPE))
    }

    /// The best descriptor for a platform: equal after normalising, else the same processor in an
    /// older variant (`arm/v6` runs on `arm/v7`, `amd64` on `amd64/v3`), newest first; else the
    /// first without a platform; else none.
    #[must_use]
    pub fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        let rank = |d: &&Descriptor| d.platform.as_ref().and_then(|p| platform::fitness(p, wanted));
        let best = self.images().filter(|d| rank(d).is_some());
        // min_by_key keeps the first of equals: the order of the index is its preference.
        best.min_by_key(rank).or_else(|| self.images().find(|d| d.platform.is_none()))
    }

    /// The bytes of this index, indented like BuildKit's.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use kiln_cache::Digest;

    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|text| {
            let mut d = Descriptor::new(media_type::MANIFEST, Digest::sha256(text.as_bytes()), 1);
            let mut parts = text.split('/');
            let mut next = || parts.next().map(str::to_owned);
            if let (Some(os), Some(architecture)) = (next(), next()) {
                let variant = next();
                d.platform = Some(Platform { variant, ..platform::platform(&os, &architecture) });
            }
            d
        });
        Index::new(manifests.collect())
    }

    #[test]
    fn chooses_the_closest_platform() {
        let check = |offered: &[&str], os: &str, arch: &str, variant: Option<&str>, expect| {
            let mut wanted = platform::platform(os, arch);
            wanted.variant = variant.map(str::to_owned);
            let index = index(offered);
            let got = index
                .choose(&wanted)
                .map(|d| offered[index.manifests.iter().position(|m| m == d).unwrap()]);
            assert_eq!(got, expect, "{wanted:?} of {offered:?}");
        };
        let arms = ["linux/amd64", "linux/arm/v5", "linux/arm/v7", "linux/arm64/v8"];
        check(&arms, "linux", "arm", None, Some("linux/arm/v7"));
        check(&arms, "linux", "arm", Some("v6"), Some("linux/arm/v5"));
        check(&arms, "linux", "arm64", None, Some("linux/arm64/v8"));
        check(&arms, "linux", "amd64", Some("v3"), Some("linux/amd64"));
        check(&arms, "linux", "s390x", None, None);
        check(&arms, "windows", "amd64", None, None);
        check(&["linux/amd64/v3", "linux/amd64"], "linux", "amd64", None, Some("linux/amd64"));
        check(&["plain"], "linux", "amd64", None, Some("plain"));
    }

    #[test]
    fn refuses_a_manifest() {
        assert!(Index::parse(br#"{"schemaVersion": 2, "manifests": [], "layers": []}"#).is_err());
        assert!(Index::parse(br#"{"schemaVersion": 2, "manifests": null}"#).is_ok());
    }
}
