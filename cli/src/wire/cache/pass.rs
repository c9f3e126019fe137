//! Layers that only a cache has, in an image that is pushed: their archives go from registry to registry, or are there.
//! A push of what is cached as a whole fetches none of them.

use std::collections::HashMap;

use kiln_cache::{Descriptor, Digest, LayerId, Tree};
use kiln_image::archive::{Compression, archive_form};
use kiln_image::cache::CacheError;
use kiln_image::manifest::RemoteLayer;
use kiln_image::reference::Reference;
use kiln_solver::ports::StepError;

use super::Imports;
use crate::cache_option::Place;

impl Imports {
    /// So many layers could not be had that a cache had promised.
    pub(crate) fn lost(&self) -> usize {
        self.state().lost.len()
    }

    /// Whether a cache says that it has a layer.
    pub(crate) fn knows(&self, id: &LayerId) -> bool {
        self.layer(id).is_some() && !self.state().lost.contains(id)
    }

    /// The archives of layers that are not in the store, where an image holds the very same. A layer of which an image
    /// holds another archive than a cache, as it depends on what is beneath: then all of them are brought. None when that
    /// cannot be done.
    ///
    /// # Errors
    /// The build was stopped, or the store fails.
    pub(crate) fn archives(
        &self,
        layers: &[LayerId],
        compression: Compression,
    ) -> Result<Option<HashMap<LayerId, RemoteLayer>>, StepError> {
        let mut passed = HashMap::new();
        if self.sources.is_empty() {
            return Ok(Some(passed));
        }
        let form = archive_form(&Tree::empty(), compression);
        for id in layers.iter().filter(|id| !id.is_image()) {
            if self.store.has_layer(id).map_err(StepError::environment)? {
                let tree = self.store.layer_tree(id).map_err(StepError::environment)?;
                if archive_form(&tree, compression).is_some() {
                    continue;
                }
            } else if let Some((_, layer)) = self.layer(id)
                && layer.form == form
                && let Some(blob) = &layer.blob
            {
                let (descriptor, diff_id) = (blob.clone(), layer.diff_id.clone());
                let remote = RemoteLayer { descriptor, diff_id, layer_id: id.clone() };
                passed.insert(id.clone(), remote);
                continue;
            }
            return Ok(self.bring(layers)?.then(HashMap::new));
        }
        Ok(Some(passed))
    }

    /// In which repositories archives of layers are.
    pub(crate) fn repositories(&self) -> HashMap<Digest, Reference> {
        let mut found = HashMap::new();
        let Some(loaded) = self.loaded.get() else { return found };
        for index in &loaded.indexes {
            let Place::Registry { reference, .. } = &self.sources[index.source].place else {
                continue;
            };
            for blob in index.index.layers.iter().filter_map(|layer| layer.blob.as_ref()) {
                found.entry(blob.digest.clone()).or_insert_with(|| reference.clone());
            }
        }
        found
    }

    /// Brings an archive into the store; false when it cannot be had, and then the steps that need its layer run.
    pub(crate) fn bring_archive(&self, blob: &Descriptor) -> bool {
        let Some(loaded) = self.loaded.get() else { return false };
        let is = |(index, layer): &(usize, usize)| {
            let layer = &loaded.indexes[*index].index.layers[*layer];
            layer.blob.as_ref().is_some_and(|known| known.digest == blob.digest)
        };
        let Some((id, (index, _))) = loaded.layers.iter().find(|(_, place)| is(place)) else {
            return false;
        };
        match self.bring_blob(loaded.indexes[*index].source, blob) {
            Ok(()) => true,
            Err(CacheError::Cancelled) => false,
            Err(error) => {
                self.lose(id.clone(), &error);
                false
            }
        }
    }
}
