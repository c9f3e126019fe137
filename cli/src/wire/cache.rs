//! `--cache-from`: what other stores' steps made, as the solver sees it. Indexes are read when the store itself has no
//! answer, layers when something reads their files; whatever is wrong with a cache is one line, and the step runs.

pub(crate) mod bring_mounts;
mod builder;
pub(crate) mod export;
mod pass;
mod send_mounts;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_channel::Sender;
use kiln_cache::{
    ContentDigest, Descriptor, Digest, Key, LayerId, Lease, NewRecord, Record, Store,
};
use kiln_executor::cancel::Cancel;
use kiln_image::cache::fetch::{fetch_blob, fetch_layer};
use kiln_image::cache::index::{CacheIndex, CacheLayer};
use kiln_image::cache::local::LocalCache;
use kiln_image::cache::registry::RegistryCache;
use kiln_image::cache::{Backend, CacheError, Form};
use kiln_solver::ports::{Kind, StepError};
use kiln_solver::snapshot::{Snapshot, image_layer_content};

use super::images::{Images, UNPACKED};
use super::registry;
use crate::cache_option::{CacheFrom, Place};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// Layers that come in at once.
const PARALLEL: usize = 4;

/// The caches that a build reads.
pub(crate) struct Imports {
    store: Store,
    /// Whose room is made before something comes.
    images: Arc<Images>,
    cancel: Cancel,
    sources: Vec<Source>,
    loaded: OnceLock<Loaded>,
    state: Mutex<State>,
}

/// One cache.
struct Source {
    name: String,
    place: Place,
    backend: Box<dyn Backend>,
    /// Ids of cache mounts that may be filled from it.
    mounts: Vec<String>,
}

/// What the indexes say.
#[derive(Default)]
struct Loaded {
    indexes: Vec<LoadedIndex>,
    /// Records as (index, record), in the order of the options.
    keys: HashMap<Key, Vec<(usize, usize)>>,
    /// Layers as (index, layer).
    layers: HashMap<LayerId, (usize, usize)>,
}

struct LoadedIndex {
    source: usize,
    index: CacheIndex,
    /// Its layers in this store.
    ids: Vec<LayerId>,
    /// Content of its snapshots.
    contents: Vec<ContentDigest>,
}

#[derive(Default)]
struct State {
    /// Layers that could not be had.
    lost: HashSet<LayerId>,
    /// Records that were given out and are not in the store yet, as (index, record).
    answered: HashSet<(usize, usize)>,
    /// Blobs that were not what they should be.
    suspect: HashSet<Digest>,
    /// What went wrong and nobody was told yet.
    told: Vec<String>,
    /// Who tells people at once.
    warns: Option<Sender<String>>,
    /// Cache mounts that steps used, by their names.
    used_mounts: HashSet<String>,
    lease: Option<Arc<Lease>>,
}

/// Where a cache is kept.
///
/// # Errors
/// Docker's configuration file, which holds credentials, is malformed.
fn backend(
    place: &Place,
    form: Form,
    settings: &Settings,
) -> Result<Option<Box<dyn Backend>>, Failure> {
    Ok(match place {
        Place::Registry { reference, insecure } => {
            let host = insecure.then(|| reference.registry());
            let client = registry::client(settings, host)?;
            Some(Box::new(RegistryCache::new(client, reference.clone(), form)))
        }
        Place::Local { folder, selector } => {
            Some(Box::new(LocalCache::new(folder.clone(), selector.clone(), form)))
        }
        Place::Inline => None,
    })
}

impl Imports {
    /// Nothing is read or connected yet.
    ///
    /// # Errors
    /// Docker's configuration file, which holds credentials, is malformed.
    pub(crate) fn new(
        store: &Store,
        images: &Arc<Images>,
        options: &[CacheFrom],
        settings: &Settings,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        let mut sources = Vec::with_capacity(options.len());
        for option in options {
            let backend = backend(&option.place, Form::Manifest, settings)?;
            let name = option.place.name();
            let (place, mounts) = (option.place.clone(), option.mounts.clone());
            sources.extend(backend.map(|backend| Source { name, place, backend, mounts }));
        }
        let (loaded, state) = (OnceLock::new(), Mutex::default());
        let (store, images, cancel) = (store.clone(), Arc::clone(images), cancel.clone());
        Ok(Self { store, images, cancel, sources, loaded, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is told what goes wrong, from now on; with nobody it is kept.
    pub(crate) fn warn_to(&self, warns: Option<Sender<String>>) {
        self.state().warns = warns;
    }

    /// What went wrong and was not told, a line each.
    pub(crate) fn take_told(&self) -> Vec<String> {
        std::mem::take(&mut self.state().told)
    }

    /// Reads the indexes, once.
    fn loaded(&self) -> &Loaded {
        self.loaded.get_or_init(|| {
            let read = |source: &Source| source.backend.indexes();
            let results: Vec<_> = std::thread::scope(|scope| {
                let reading: Vec<_> =
                    self.sources.iter().map(|source| scope.spawn(|| read(source))).collect();
                reading.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            let mut loaded = Loaded::default();
            for (place, result) in results.into_iter().enumerate() {
                let indexes = match result {
                    Ok(indexes) => indexes,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                match indexes {
                    Ok(indexes) => {
                        for index in indexes {
                            loaded.add(&self.store, place, index);
                        }
                    }
                    Err(error) => self.tell(place, &error),
                }
            }
            loaded
        })
    }

    fn tell(&self, source: usize, error: &CacheError) {
        let line = format!("cache `{}` is not used: {}", self.sources[source].name, chain(error));
        self.state().warn(line);
    }

    /// Records under keys, whose layers need not be in the store.
    pub(crate) fn answers(&self, keys: &[Key]) -> HashMap<Key, Record> {
        if self.sources.is_empty() {
            return HashMap::new();
        }
        let loaded = self.loaded();
        let mut state = self.state();
        let mut found = HashMap::new();
        for key in keys {
            for &(index, record) in loaded.keys.get(key).into_iter().flatten() {
                let answer = loaded.indexes[index].record(record);
                if answer.layers.iter().any(|id| state.lost.contains(id)) {
                    continue;
                }
                state.answered.insert((index, record));
                found.insert(*key, answer);
                break;
            }
        }
        found
    }

    /// Brings layers of steps into the store. False when one cannot be had.
    ///
    /// # Errors
    /// The build was stopped, or the store fails.
    pub(crate) fn bring(&self, layers: &[LayerId]) -> Result<bool, StepError> {
        if self.sources.is_empty() {
            return Ok(true);
        }
        // Held first: what is there then stays.
        let lease = self.lease()?;
        lease.hold_layers(layers).map_err(StepError::environment)?;
        let mut missing = Vec::new();
        for id in layers.iter().filter(|id| !id.is_image()) {
            if !self.store.has_layer(id).map_err(StepError::environment)? {
                missing.push(id);
            }
        }
        let archives = missing.iter().filter_map(|id| self.layer(id)?.1.blob.as_ref());
        let bytes = archives.fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        if !missing.is_empty() {
            let bytes = bytes.saturating_mul(UNPACKED);
            self.images.room().want(bytes).map_err(StepError::environment)?;
        }
        let next = Mutex::new(missing.iter());
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(missing.len()) {
                scope.spawn(|| {
                    loop {
                        let id = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(id) = id else { break };
                        let result = self.fetch(id, &lease);
                        let mut all = results.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push(((*id).clone(), result));
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut whole = true;
        for (id, result) in results {
            match result {
                Ok(()) => {}
                Err(CacheError::Cancelled) => {
                    return Err(StepError::new(Kind::Cancelled, "cancelled"));
                }
                Err(error) => {
                    whole = false;
                    self.lose(id, &error);
                }
            }
        }
        if whole {
            self.save_answered().map_err(StepError::environment)?;
        }
        Ok(whole)
    }

    fn lease(&self) -> Result<Arc<Lease>, StepError> {
        let mut state = self.state();
        if let Some(lease) = &state.lease {
            return Ok(Arc::clone(lease));
        }
        let lease = Arc::new(self.store.lease().map_err(StepError::environment)?);
        state.lease = Some(Arc::clone(&lease));
        Ok(lease)
    }

    fn fetch(&self, id: &LayerId, lease: &Lease) -> Result<(), CacheError> {
        let (source, layer) =
            self.layer(id).ok_or(CacheError::Foreign("its layer is not in the store any more"))?;
        let cancelled = || self.cancel.is_cancelled();
        fetch_layer(
            &self.store,
            self.sources[source].backend.as_ref(),
            layer,
            id,
            lease,
            &cancelled,
        )
    }

    fn lose(&self, id: LayerId, error: &CacheError) {
        let layer = self.layer(&id);
        let name = layer.map_or("of this store", |(source, _)| self.sources[source].name.as_str());
        let line = format!("cache `{name}`: {}; the steps that need it run", chain(error));
        let mut state = self.state();
        state.warn(line);
        let blob = layer.and_then(|(_, layer)| layer.blob.as_ref());
        state.suspect.extend(blob.map(|blob| blob.digest.clone()));
        state.lost.insert(id);
    }

    /// From which cache a layer can be had, and as what.
    fn layer(&self, id: &LayerId) -> Option<(usize, &CacheLayer)> {
        let loaded = self.loaded.get()?;
        let &(index, layer) = loaded.layers.get(id)?;
        let index = &loaded.indexes[index];
        Some((index.source, &index.index.layers[layer]))
    }

    /// Puts a blob into a cache; one that was found damaged somewhere is not believed to be there.
    fn put_blob(&self, backend: &dyn Backend, blob: &Descriptor) -> Result<(), CacheError> {
        if self.state().suspect.contains(&blob.digest) {
            return backend.replace_blob(&self.store, blob);
        }
        backend.put_blob(&self.store, blob)
    }

    /// Brings the archive of a layer into the store.
    fn bring_blob(&self, source: usize, blob: &Descriptor) -> Result<(), CacheError> {
        let lease = self.lease().map_err(|_| CacheError::Cancelled)?;
        fetch_blob(&self.store, self.sources[source].backend.as_ref(), blob, &lease, &|| false)
    }

    /// What was answered and is whole now is the store's own knowledge from here on.
    fn save_answered(&self) -> Result<(), kiln_cache::StoreError> {
        let Some(loaded) = self.loaded.get() else { return Ok(()) };
        let mut there: HashMap<LayerId, bool> = HashMap::new();
        let answered: Vec<(usize, usize)> = self.state().answered.iter().copied().collect();
        for (index, place) in answered {
            let record = loaded.indexes[index].record(place);
            let mut whole = true;
            for id in record.layers.iter().filter(|id| !id.is_image()) {
                let known = match there.get(id) {
                    Some(known) => *known,
                    None => self.store.has_layer(id)?,
                };
                there.insert(id.clone(), known);
                whole &= known;
            }
            if whole {
                self.store.save_record(&NewRecord {
                    definition: record.definition,
                    content: record.content,
                    layers: record.layers,
                    own: record.own,
                    result: record.result,
                    description: record.description,
                    parts: record.parts,
                    duration_ms: record.duration_ms,
                })?;
                self.state().answered.remove(&(index, place));
            }
        }
        Ok(())
    }
}

impl State {
    fn warn(&mut self, line: String) {
        let unheard = match &self.warns {
            Some(warns) => warns.send(line).err().map(|unheard| unheard.0),
            None => Some(line),
        };
        self.told.extend(unheard);
    }
}

impl Loaded {
    fn add(&mut self, store: &Store, source: usize, index: CacheIndex) {
        let place = self.indexes.len();
        let mut ids = Vec::with_capacity(index.layers.len());
        for (number, layer) in index.layers.iter().enumerate() {
            // What steps of this store made as well need not be fetched.
            let known = store.step_layer(&layer.content).ok().flatten();
            let id = known.unwrap_or_else(|| LayerId::of_content(&layer.content, &layer.diff_id));
            self.layers.entry(id.clone()).or_insert((place, number));
            ids.push(id);
        }
        let mut contents: Vec<ContentDigest> = Vec::with_capacity(index.snapshots.len());
        for snapshot in &index.snapshots {
            let mut below = Snapshot::scratch();
            if let Some(below_place) = snapshot.below {
                below.content = contents[below_place];
            }
            let content = match (&snapshot.image, snapshot.layer) {
                (Some(diff_id), _) => image_layer_content(diff_id),
                (None, Some(layer)) => index.layers[layer].content,
                (None, None) => below.content,
            };
            contents.push(below.with(LayerId::random(), &content).content);
        }
        for (number, record) in index.records.iter().enumerate() {
            for key in std::iter::once(&record.definition).chain(&record.content) {
                self.keys.entry(*key).or_default().push((place, number));
            }
        }
        self.indexes.push(LoadedIndex { source, index, ids, contents });
    }
}

impl LoadedIndex {
    /// A record in the terms of this store.
    fn record(&self, place: usize) -> Record {
        let record = &self.index.records[place];
        let layers: Vec<LayerId> = self
            .index
            .chain(record.snapshot)
            .into_iter()
            .filter_map(|place| {
                let snapshot = &self.index.snapshots[place];
                match (&snapshot.image, snapshot.layer) {
                    (Some(diff_id), _) => Some(LayerId::of_diff_id(diff_id)),
                    (None, layer) => layer.map(|layer| self.ids[layer].clone()),
                }
            })
            .collect();
        let result = record.snapshot.map(|place| self.contents[place]);
        Record {
            id: 0,
            definition: record.definition,
            content: record.content,
            own: if record.own { layers.last().cloned() } else { None },
            layers,
            result: result.unwrap_or_else(|| Snapshot::scratch().content),
            description: record.description.clone(),
            parts: record.parts.clone(),
            created: 0,
            last_used: 0,
            duration_ms: record.duration_ms,
        }
    }
}
