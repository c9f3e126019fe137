//! Image manifests, OCI and Docker schema 2.
//!
//! Documents that we read keep their bytes elsewhere (they are named by digest and must never be
//! written anew); these types are what we need to know about them. Those that we write are
//! deterministic: fixed field order, sorted annotations.

use std::collections::BTreeMap;

use kiln_cache::{Descriptor, DiffId, LayerId};
use serde::{Deserialize, Serialize};

use crate::config::ConfigDocument;
use crate::json::{self, DocumentError};
use crate::{limits, media_type};

/// A layer of an image that exists somewhere, whether its blob is here or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteLayer {
    /// Its archive.
    pub descriptor: Descriptor,
    /// The digest of its archive without compression, from the config.
    pub diff_id: DiffId,
    /// Under which id it is, or will be, in the store.
    pub layer_id: LayerId,
}

/// Reads `null` as the default: Go writes empty lists and maps so.
pub(crate) fn nullable<'de, D, T>(json: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(json)?.unwrap_or_default())
}

/// An image manifest, OCI or Docker schema 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Of the manifest itself; old OCI manifests leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Layer archives, bottom to top.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Free remarks.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest of either family.
    ///
    /// # Errors
    /// When the bytes are too many or malformed, when they are an index at the same time
    /// (CVE-2021-41190), when there are too many layers, or when `schemaVersion` is not 2.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let manifest = Self::parse_cache(bytes)?;
        if manifest.layers.len() > limits::LAYERS {
            let reason = format!("{} layers, more than {}", manifest.layers.len(), limits::LAYERS);
            return Err(DocumentError::malformed("image manifest", reason));
        }
        Ok(manifest)
    }

    /// Reads a manifest that may name any number of layers, as that of a cache does.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn parse_cache(bytes: &[u8]) -> Result<Self, DocumentError> {
        const WHAT: &str = "image manifest";
        let value = json::parse_value(WHAT, bytes, limits::DOCUMENT_BYTES)?;
        if value.get("manifests").is_some() {
            return Err(DocumentError::malformed(WHAT, "it holds `manifests` like an index"));
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|e| DocumentError::malformed(WHAT, e))?;
        if manifest.schema_version != 2 {
            let reason = format!("schema version {} is not 2", manifest.schema_version);
            return Err(DocumentError::malformed(WHAT, reason));
        }
        if let Some(other) = manifest.media_type.as_deref().filter(|m| !media_type::is_manifest(m))
        {
            let reason = format!("media type `{other}` is not that of a manifest");
            return Err(DocumentError::malformed(WHAT, reason));
        }
        Ok(manifest)
    }

    /// The layers of this manifest beside their digests from the config.
    ///
    /// # Errors
    /// When manifest and config disagree on the number of layers.
    pub fn remote_layers(
        &self,
        config: &ConfigDocument,
    ) -> Result<Vec<RemoteLayer>, DocumentError> {
        let diff_ids = config.diff_ids()?;
        if diff_ids.len() != self.layers.len() {
            let (layers, ids) = (self.layers.len(), diff_ids.len());
            let reason = format!("it has {layers} layers and its config {ids}");
            return Err(DocumentError::malformed("image manifest", reason));
        }
        let pairs = self.layers.iter().cloned().zip(diff_ids);
        Ok(pairs
            .map(|(descriptor, diff_id)| {
                let layer_id = LayerId::of_diff_id(&diff_id);
                RemoteLayer { descriptor, diff_id, layer_id }
            })
            .collect())
    }

    /// The bytes of this manifest, indented like BuildKit's.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, {extra} "config": {{"mediaType": "{}", "digest": "{ZEROS}", "size": 2}}, "layers": null}}"#,
            media_type::CONFIG
        )
    }

    #[test]
    fn refuses_two_readings() {
        assert!(Manifest::parse(manifest("").as_bytes()).is_ok());
        for (extra, part) in [
            (r#""manifests": [],"#, "like an index"),
            (
                r#""mediaType": "application/vnd.oci.image.index.v1+json","#,
                "not that of a manifest",
            ),
            (r#""schemaVersion": 2,"#, "twice"),
        ] {
            let error = Manifest::parse(manifest(extra).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
