//! The media types of images: OCI's own and Docker's, which say the same with other names.
//!
//! Sources: OCI image specification 1.1 `media-types.md`; Docker "Image Manifest V 2, Schema 2".

/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer archive, not compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer archive, gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer archive, zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Docker image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list, the counterpart of the index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer archive, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer archive, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer archive, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// True for a manifest of either family.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | DOCKER_MANIFEST)
}

/// True for an index of either family.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | DOCKER_INDEX)
}

/// OCI names beside their Docker names.
const PAIRS: [(&str, &str); 6] = [
    (MANIFEST, DOCKER_MANIFEST),
    (INDEX, DOCKER_INDEX),
    (CONFIG, DOCKER_CONFIG),
    (LAYER, DOCKER_LAYER),
    (LAYER_GZIP, DOCKER_LAYER_GZIP),
    (LAYER_ZSTD, DOCKER_LAYER_ZSTD),
];

/// The OCI name of a media type; others (also non-distributable layers) stay as they are.
#[must_use]
pub fn to_oci(media_type: &str) -> &str {
    PAIRS.iter().find(|(_, docker)| *docker == media_type).map_or(media_type, |(oci, _)| oci)
}

/// The Docker name of a media type; others stay as they are.
#[must_use]
pub fn to_docker(media_type: &str) -> &str {
    PAIRS.iter().find(|(oci, _)| *oci == media_type).map_or(media_type, |(_, docker)| docker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_translate_into_each_other() {
        for (oci, docker) in PAIRS {
            assert_eq!(to_oci(docker), oci);
            assert_eq!(to_docker(oci), docker);
            assert_eq!(to_oci(oci), oci);
        }
        assert_eq!(to_oci("text/plain"), "text/plain");
        assert!(is_manifest(DOCKER_MANIFEST) && is_index(INDEX) && !is_manifest(INDEX));
    }
}
