//! An index of a cache while it is made: equal layers and equal chains are in it once.

use std::collections::{HashMap, HashSet};

use kiln_cache::{DiffId, Key, Record};
use kiln_image::cache::index::{CacheIndex, CacheLayer, CacheRecord, CacheSnapshot};
use kiln_solver::key::KEYED;

/// A layer of a chain.
pub(super) enum Part {
    /// An image's.
    Image(DiffId),
    /// A step's.
    Layer(Box<CacheLayer>),
}

/// An index that is being made.
pub(super) struct Builder {
    index: CacheIndex,
    layers: HashMap<String, usize>,
    snapshots: HashMap<(Option<usize>, String), usize>,
    records: HashSet<Key>,
}

impl Default for Builder {
    fn default() -> Self {
        let (layers, snapshots) = (HashMap::new(), HashMap::new());
        Self { index: CacheIndex::new(), layers, snapshots, records: HashSet::new() }
    }
}

impl Builder {
    /// Adds what a step made.
    pub(super) fn add(&mut self, record: &Record, chain: Vec<Part>) {
        let parts = record.parts.iter().map(|(name, value)| {
            // A keyed digest means something in its own store only.
            let value = if value.starts_with(KEYED) { String::new() } else { value.clone() };
            (name.clone(), value)
        });
        let record = CacheRecord {
            definition: record.definition,
            content: record.content,
            snapshot: None,
            own: record.own.is_some(),
            description: record.description.clone(),
            parts: parts.collect(),
            duration_ms: record.duration_ms,
        };
        self.add_record(record, chain);
    }

    /// Adds what an earlier index has, where this one has nothing.
    pub(super) fn keep(&mut self, old: &CacheIndex) {
        for record in &old.records {
            let chain = old.chain(record.snapshot).into_iter().filter_map(|place| {
                let snapshot = &old.snapshots[place];
                match (&snapshot.image, snapshot.layer) {
                    (Some(diff_id), _) => Some(Part::Image(diff_id.clone())),
                    (None, layer) => {
                        layer.map(|layer| Part::Layer(Box::new(old.layers[layer].clone())))
                    }
                }
            });
            let chain = chain.collect();
            self.add_record(record.clone(), chain);
        }
    }

    /// The index.
    pub(super) fn finish(self) -> CacheIndex {
        self.index
    }

    fn add_record(&mut self, record: CacheRecord, chain: Vec<Part>) {
        if !self.records.insert(record.definition) {
            return;
        }
        let snapshot = chain.into_iter().fold(None, |below, part| Some(self.snapshot(below, part)));
        self.index.records.push(CacheRecord { snapshot, ..record });
    }

    fn snapshot(&mut self, below: Option<usize>, part: Part) -> usize {
        let (name, snapshot) = match part {
            Part::Image(diff_id) => {
                let name = format!("image {diff_id}");
                (name, CacheSnapshot { below, image: Some(diff_id), layer: None })
            }
            Part::Layer(layer) => {
                let name = format!("layer {} {}", layer.diff_id, layer.content);
                let next = self.index.layers.len();
                let place = *self.layers.entry(name.clone()).or_insert(next);
                if place == next {
                    self.index.layers.push(*layer);
                }
                (name, CacheSnapshot { below, image: None, layer: Some(place) })
            }
        };
        let next = self.index.snapshots.len();
        let place = *self.snapshots.entry((below, name)).or_insert(next);
        if place == next {
            self.index.snapshots.push(snapshot);
        }
        place
    }
}
