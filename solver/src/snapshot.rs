//! What a node made: a chain of layers, and the identity of their content.

use kiln_cache::{ContentDigest, DiffId, LayerId};

/// A file system as layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Layers, bottom to top.
    pub layers: Vec<LayerId>,
    /// Identity of the content of all of them. Image layers count by diff id, so it is known before
    /// anything is pulled; layers of steps count by their tree.
    pub content: ContentDigest,
}

impl Snapshot {
    /// The empty file system.
    #[must_use]
    pub fn scratch() -> Self {
        Self { layers: Vec::new(), content: blake3::hash(b"kiln snapshot 1").into() }
    }

    /// The layers of an image.
    #[must_use]
    pub fn image(diff_ids: &[DiffId]) -> Self {
        let mut snapshot = Self::scratch();
        for diff_id in diff_ids {
            snapshot = snapshot.with(LayerId::of_diff_id(diff_id), &image_layer_content(diff_id));
        }
        snapshot
    }

    /// One more layer on top.
    #[must_use]
    pub fn with(&self, layer: LayerId, content: &ContentDigest) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.content.as_bytes());
        hasher.update(content.as_bytes());
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers, content: hasher.finalize().into() }
    }
}

/// How a layer of an image counts in the content of a snapshot.
#[must_use]
pub fn image_layer_content(diff_id: &DiffId) -> ContentDigest {
    blake3::hash(format!("image layer {diff_id}").as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::Snapshot;
    use kiln_cache::{DiffId, LayerId};

    #[test]
    fn content_depends_on_layers_and_their_order() {
        let a: DiffId = format!("sha256:{}", "a".repeat(64)).parse().expect("valid");
        let b: DiffId = format!("sha256:{}", "b".repeat(64)).parse().expect("valid");
        let ab = Snapshot::image(&[a.clone(), b.clone()]);
        assert_ne!(ab.content, Snapshot::image(&[b, a.clone()]).content);
        assert_eq!(ab.layers[0], LayerId::of_diff_id(&a));
        let own = LayerId::random();
        let content = Snapshot::scratch().content;
        let other = LayerId::random();
        assert_eq!(ab.with(own, &content).content, ab.with(other, &content).content);
    }
}
