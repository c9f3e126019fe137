//! `--cache-to`: what the steps of a build made, for other stores. Layers of steps are sent while later ones run; at the
//! end, whatever that is, the index.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_cache::{Descriptor, DiffId, Digest, Key, LayerId, Record, Store};
use kiln_image::archive::{
    ArchiveOptions, Decompress, archive_form, compress_archive, is_portable, write_layer,
};
use kiln_image::cache::index::CacheLayer;
use kiln_image::cache::{Backend, CacheError};
use kiln_image::export::InlineCache;
use kiln_image::media_type;
use kiln_parser::graph::{Graph, NodeId, Op};

use super::builder::{Builder, Part};
use super::send_mounts::SendMounts;
use super::{Imports, PARALLEL, backend};
use crate::cache_option::{CacheTo, Mode};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// The caches that a build writes.
pub(crate) struct Exports {
    store: Store,
    exports: Vec<Export>,
    /// The image carries its cache.
    inline: bool,
    /// Somebody wants the build to end.
    interrupted: Arc<AtomicBool>,
}

/// One of them.
struct Export {
    option: CacheTo,
    backend: Box<dyn Backend>,
    /// Layers that are there; none: they cannot travel.
    sent: Mutex<HashMap<LayerId, Option<CacheLayer>>>,
}

/// What was built, as far as it was.
pub(crate) struct Finished<'a> {
    pub(crate) graph: &'a Graph,
    /// Definition keys.
    pub(crate) keys: &'a HashMap<NodeId, Key>,
    /// The layers of the results; none where the build did not get there.
    pub(crate) results: Option<Vec<Vec<LayerId>>>,
}

impl Exports {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Docker's configuration file, which holds credentials, is malformed.
    pub(crate) fn new(
        store: &Store,
        options: Vec<CacheTo>,
        settings: &Settings,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let (mut exports, mut inline) = (Vec::new(), false);
        for option in options {
            match backend(&option.place, option.form, settings)? {
                Some(backend) => exports.push(Export { option, backend, sent: Mutex::default() }),
                None => inline = true,
            }
        }
        Ok(Self { store: store.clone(), exports, inline, interrupted: Arc::clone(interrupted) })
    }

    /// Whether the image carries its cache.
    pub(crate) fn has_inline(&self) -> bool {
        self.inline
    }

    /// Whether layers can be sent before the build is done.
    pub(crate) fn sends_early(&self) -> bool {
        self.exports.iter().any(|export| export.option.mode == Mode::Max)
    }

    /// Sends the layer of a step that has ended. What fails now is tried again, and told, at the end.
    pub(crate) fn send_early(&self, imports: &Imports, definition: &Key) {
        let Ok(Some(record)) = self.store.lookup(definition) else { return };
        let Some(own) = &record.own else { return };
        for export in self.exports.iter().filter(|export| export.option.mode == Mode::Max) {
            let _tried_again = export.send(&self.store, imports, own);
        }
    }

    /// Writes all caches.
    ///
    /// # Errors
    /// The first that could not be written, unless that was to be ignored; `told` gets what is not returned.
    pub(crate) fn finish(
        &self,
        imports: &Imports,
        finished: &Finished<'_>,
        told: &mut Vec<String>,
    ) -> Result<(), Failure> {
        if self.exports.is_empty() {
            return Ok(());
        }
        let records = finished.records(&self.store, imports)?;
        let images = finished.images();
        let mut first = None;
        for export in &self.exports {
            let known = (records.as_slice(), &images);
            let result = self.write(export, imports, finished, known, told);
            let Err(error) = result else { continue };
            let name = export.option.place.name();
            let message = format!("cannot export the cache to `{name}`: {}", chain(&error));
            if export.option.ignore_error || first.is_some() {
                told.push(message);
            } else {
                let hint = "with ignore-error=true the build succeeds without it";
                first = Some(Failure::environment(message).hint(hint));
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn write(
        &self,
        export: &Export,
        imports: &Imports,
        finished: &Finished<'_>,
        known: (&[Record], &HashMap<LayerId, DiffId>),
        told: &mut Vec<String>,
    ) -> Result<(), CacheError> {
        let mut builder = export.records(&self.store, imports, finished, known)?;
        let failed = finished.results.is_none();
        let carries = !export.option.mounts.is_empty();
        let before = if failed || carries { export.backend.indexes() } else { Ok(Vec::new()) };
        let before = before.unwrap_or_default();
        if failed {
            // A build that failed knows only a part: what was there before stays.
            before.iter().for_each(|index| builder.keep(index));
        }
        let mut index = builder.finish();
        if carries {
            let send = SendMounts {
                store: &self.store,
                imports,
                option: &export.option,
                backend: export.backend.as_ref(),
                interrupted: &self.interrupted,
                before: before.into_iter().flat_map(|index| index.mounts).collect(),
            };
            index.mounts = send.send(told)?;
        }
        export.backend.put_index(&index)
    }

    /// The cache that an image with these layers carries.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn inline(
        &self,
        imports: &Imports,
        finished: &Finished<'_>,
        layers: &[LayerId],
    ) -> Result<Option<InlineCache>, Failure> {
        if !self.inline {
            return Ok(None);
        }
        let there: HashSet<&LayerId> = layers.iter().collect();
        let images = finished.images();
        let (mut builder, mut ids) = (Builder::default(), Vec::new());
        for record in finished.records(&self.store, imports)? {
            if !record.layers.iter().all(|id| there.contains(id)) {
                continue;
            }
            let part = |id: &LayerId| match images.get(id) {
                Some(diff_id) => Some(Part::Image(diff_id.clone())),
                None => self.image_layer(id).map(|layer| Part::Layer(Box::new(layer))),
            };
            let Some(parts) = record.layers.iter().map(part).collect() else { continue };
            builder.add(&record, parts);
            for id in record.layers.iter().filter(|id| !images.contains_key(id)) {
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
        }
        Ok(Some(InlineCache { index: builder.finish(), layers: ids }))
    }

    /// A layer as it will be in an image, whose digests are not known yet.
    fn image_layer(&self, id: &LayerId) -> Option<CacheLayer> {
        let tree = self.store.layer_tree(id).ok()?;
        let diff_id = DiffId(Digest::sha256(id.as_str().as_bytes()));
        let layer = || CacheLayer { blob: None, diff_id, content: tree.content(), form: None };
        is_portable(&tree, false).then(layer)
    }
}

impl Finished<'_> {
    /// What is known of the steps, in the order of the graph.
    fn records(&self, store: &Store, imports: &Imports) -> Result<Vec<Record>, Failure> {
        let mut nodes: Vec<_> = self.keys.iter().collect();
        nodes.sort_unstable();
        let keys: Vec<Key> = nodes.into_iter().map(|(_, key)| *key).collect();
        let mut found = store.lookup_many(&keys).map_err(|e| Failure::environment(chain(&e)))?;
        let rest: Vec<Key> = keys.iter().filter(|key| !found.contains_key(key)).copied().collect();
        if !rest.is_empty() {
            found.extend(imports.answers(&rest));
        }
        Ok(keys.iter().filter_map(|key| found.remove(key)).collect())
    }

    /// Layers of the images of the graph.
    fn images(&self) -> HashMap<LayerId, DiffId> {
        let ops = self.graph.ids().map(|id| &self.graph.node(id).op);
        let diff_ids = ops.flat_map(|op| match op {
            Op::Image(image) => image.diff_ids.as_slice(),
            _ => &[],
        });
        let diff_ids = diff_ids.filter_map(|text| text.parse::<DiffId>().ok());
        diff_ids.map(|diff_id| (LayerId::of_diff_id(&diff_id), diff_id)).collect()
    }
}

impl Export {
    /// Sends the layers that are missing; gives what the steps made.
    fn records(
        &self,
        store: &Store,
        imports: &Imports,
        finished: &Finished<'_>,
        (records, images): (&[Record], &HashMap<LayerId, DiffId>),
    ) -> Result<Builder, CacheError> {
        let result: Option<HashSet<&LayerId>> =
            finished.results.as_ref().map(|results| results.iter().flatten().collect());
        let wanted = |record: &&Record| match (&result, self.option.mode) {
            (Some(result), Mode::Min) => record.layers.iter().all(|id| result.contains(id)),
            _ => true,
        };
        let records: Vec<&Record> = records.iter().filter(wanted).collect();
        self.send_all(store, imports, &records, images)?;
        let mut builder = Builder::default();
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let part = |id: &LayerId| match images.get(id) {
                Some(diff_id) => Some(Part::Image(diff_id.clone())),
                None => sent.get(id).cloned().flatten().map(|layer| Part::Layer(Box::new(layer))),
            };
            if let Some(parts) = record.layers.iter().map(part).collect() {
                builder.add(record, parts);
            }
        }
        drop(sent);
        Ok(builder)
    }

    fn send_all(
        &self,
        store: &Store,
        imports: &Imports,
        records: &[&Record],
        images: &HashMap<LayerId, DiffId>,
    ) -> Result<(), CacheError> {
        let all = records.iter().flat_map(|record| &record.layers);
        let wanted: HashSet<&LayerId> = all.filter(|id| !images.contains_key(id)).collect();
        let next = Mutex::new(wanted.iter());
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(wanted.len()) {
                scope.spawn(|| {
                    while failed().is_none() {
                        let id = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(id) = id else { break };
                        if let Err(error) = self.send(store, imports, id) {
                            failed().get_or_insert(error);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Sends a layer's archive, unless it is there.
    fn send(&self, store: &Store, imports: &Imports, id: &LayerId) -> Result<(), CacheError> {
        let sent = || self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent().contains_key(id) {
            return Ok(());
        }
        let elsewhere = imports.layer(id);
        let layer = match elsewhere.filter(|(_, layer)| self.takes(layer)) {
            Some((source, layer)) if self.pass_on(store, imports, source, layer)? => {
                Some(layer.clone())
            }
            _ if !store.has_layer(id)?
                && let Some((source, layer)) = elsewhere =>
            {
                self.compress_anew(store, imports, source, layer, id)?
            }
            _ if id.is_image() || !store.has_layer(id)? => None,
            _ => self.archive(store, imports, id)?,
        };
        sent().insert(id.clone(), layer);
        Ok(())
    }

    /// An archive that another cache has goes from there as it is.
    fn pass_on(
        &self,
        store: &Store,
        imports: &Imports,
        source: usize,
        layer: &CacheLayer,
    ) -> Result<bool, CacheError> {
        let Some(blob) = &layer.blob else { return Ok(false) };
        if self.backend.has_blob(blob)? {
            return Ok(true);
        }
        if imports.bring_blob(source, blob).is_err() {
            return Ok(false);
        }
        self.backend.put_blob(store, blob).map(|()| true)
    }

    /// Whether the archive of another cache is compressed as this one's are to be.
    fn takes(&self, layer: &CacheLayer) -> bool {
        let wanted = self.option.compression.media_type();
        let is = layer.blob.as_ref().map(|blob| media_type::to_oci(&blob.media_type));
        !self.option.force_compression || is == Some(wanted)
    }

    /// The same archive, compressed as it is to be here; none where it cannot be had.
    fn compress_anew(
        &self,
        store: &Store,
        imports: &Imports,
        source: usize,
        layer: &CacheLayer,
        id: &LayerId,
    ) -> Result<Option<CacheLayer>, CacheError> {
        let Some(blob) = layer.blob.as_ref().filter(|_| !self.takes(layer)) else {
            return Ok(None);
        };
        if imports.bring_blob(source, blob).is_err() {
            return Ok(None);
        }
        let Some(file) = store.open_blob(&blob.digest)? else { return Ok(None) };
        let Ok(plain) = Decompress::new(file) else { return Ok(None) };
        let options =
            ArchiveOptions { compression: self.option.compression, ..ArchiveOptions::default() };
        let made = compress_archive(store, id, plain, &options)?;
        if made.diff_id != layer.diff_id {
            return Ok(None);
        }
        let descriptor = Descriptor::new(&made.media_type, made.digest, made.size);
        self.backend.put_blob(store, &descriptor)?;
        Ok(Some(CacheLayer { blob: Some(descriptor), form: None, ..layer.clone() }))
    }

    fn archive(
        &self,
        store: &Store,
        imports: &Imports,
        id: &LayerId,
    ) -> Result<Option<CacheLayer>, CacheError> {
        let tree = store.layer_tree(id)?;
        if !is_portable(&tree, true) {
            return Ok(None);
        }
        let compression = self.option.compression;
        let options = ArchiveOptions { compression, markers: true, ..ArchiveOptions::default() };
        let blob = write_layer(store, id, &[], &options)?;
        let descriptor = Descriptor::new(&blob.media_type, blob.digest, blob.size);
        imports.put_blob(self.backend.as_ref(), &descriptor)?;
        let (diff_id, content) = (blob.diff_id, tree.content());
        let form = archive_form(&tree, compression);
        Ok(Some(CacheLayer { blob: Some(descriptor), diff_id, content, form }))
    }
}
