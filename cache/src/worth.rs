//! What a thing is worth keeping: the time that it will likely save, per byte.
//!
//! A layer saves the time of every step that needs it, and it takes their layers with it, so both are counted over all
//! of them. What comes from elsewhere saves fetching it, an archive saves compressing. The chance that a thing is used
//! again halves with every week that it is not.

use std::collections::{HashMap, HashSet};

use crate::usage::{Held, UsageKind, UsageRow};

/// Seconds in which the worth of what is not used halves.
const HALF_LIFE: f64 = 7.0 * 24.0 * 3600.0;
/// Milliseconds a byte: compressing, and fetching from a registry or by a package manager.
const COMPRESS: f64 = 1.0 / 50_000.0;
const FETCH: f64 = 1.0 / 20_000.0;
const REFILL: f64 = 1.0 / 10_000.0;
/// Milliseconds that one more request takes.
const REQUEST: f64 = 300.0;

/// What records say of layers.
pub(crate) struct Worth<'a> {
    /// For each layer the time of all steps that need it, and their layers.
    saves: HashMap<&'a str, (u64, HashSet<&'a str>)>,
    sizes: HashMap<&'a str, u64>,
    held: &'a Held,
    now: i64,
}

impl<'a> Worth<'a> {
    pub(crate) fn new(rows: &'a [UsageRow], held: &'a Held, now: i64) -> Self {
        let mut saves: HashMap<&str, (u64, HashSet<&str>)> = HashMap::new();
        for record in &held.records {
            for layer in record.layers.iter().chain(&record.own) {
                let (time, layers) = saves.entry(layer).or_default();
                *time = time.saturating_add(record.duration_ms);
                layers.extend(record.own.as_deref());
            }
        }
        let layers = rows.iter().filter(|row| row.kind == UsageKind::Layer);
        let sizes = layers.map(|row| (row.id.as_str(), row.size)).collect();
        Self { saves, sizes, held, now }
    }

    /// Milliseconds saved a byte, as far as anybody can tell.
    pub(crate) fn of(&self, row: &UsageRow) -> f64 {
        if !row.referenced {
            return 0.0;
        }
        // A clock that was set back makes nothing older than it is.
        let age = (self.now - row.last_used).max(0) as f64;
        self.saved(row) / (self.bytes(row).max(1) as f64) * 0.5_f64.powf(age / HALF_LIFE)
    }

    /// Milliseconds.
    fn saved(&self, row: &UsageRow) -> f64 {
        let size = row.size as f64;
        match row.kind {
            UsageKind::Layer => self.saves.get(row.id.as_str()).map_or(0.0, |(time, _)| {
                // A step that took no time still costs its start.
                *time as f64 + 1.0
            }),
            UsageKind::ImageLayer => REQUEST + size * FETCH,
            UsageKind::Blob if self.held.is_archive(&row.id) => 1.0 + size * COMPRESS,
            UsageKind::Blob => REQUEST + size * FETCH,
            UsageKind::CacheMount => REQUEST + size * REFILL,
            // 100 bytes stand for a file that has to be read again.
            UsageKind::Context => 1.0 + size / 1000.0,
            UsageKind::Other => 0.0,
        }
    }

    /// What comes back with it.
    fn bytes(&self, row: &UsageRow) -> u64 {
        let Some((_, layers)) = self.saves.get(row.id.as_str()) else { return row.size };
        if row.kind != UsageKind::Layer {
            return row.size;
        }
        let others = layers.iter().filter(|id| **id != row.id);
        others.filter_map(|id| self.sizes.get(id)).fold(row.size, |sum, size| sum + size)
    }
}
