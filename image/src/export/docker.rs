//! What `docker load` reads: an OCI archive with Docker's `manifest.json` beside its index.

use kiln_cache::{Digest, Store};
use serde::Serialize;

use super::{ExportError, NamedImage, oci};
use crate::json;
use crate::limits;
use crate::manifest::Manifest;
use crate::media_type;
use crate::tarball::Output;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes a Docker archive. Nothing appears unless all of it was written.
///
/// # Errors
/// When the root is an index (one platform only), a blob is missing, or the output cannot be
/// written.
pub fn write_tar(store: &Store, image: &NamedImage, output: Output) -> Result<(), ExportError> {
    if !media_type::is_manifest(&image.root.media_type) {
        let text = "docker exporter does not currently support exporting manifest lists";
        return Err(ExportError::Conflict(text.to_owned()));
    }
    let digest = &image.root.digest;
    let bytes = store
        .read_blob(digest, limits::DOCUMENT_BYTES)?
        .ok_or_else(|| ExportError::MissingBlob(digest.clone()))?;
    let manifest = Manifest::parse(&bytes)?;
    let document = [DockerImage {
        config: path(&manifest.config.digest),
        repo_tags: image.names.iter().map(|name| familiar(name).to_owned()).collect(),
        layers: manifest.layers.iter().map(|layer| path(&layer.digest)).collect(),
    }];
    oci::write_archive(store, image, Some(&json::compact(&document)), output)
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Docker shows and stores the names of its own hub without host and `library`.
fn familiar(name: &str) -> &str {
    match name.strip_prefix("docker.io/") {
        Some(rest) => rest.strip_prefix("library/").unwrap_or(rest),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_stores_them() {
        assert_eq!(familiar("docker.io/library/app:1"), "app:1");
        assert_eq!(familiar("docker.io/me/app:1"), "me/app:1");
        assert_eq!(familiar("localhost:5000/library/app:1"), "localhost:5000/library/app:1");
    }
}
