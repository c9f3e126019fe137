//! What may go, in which order, and how it goes.
//!
//! Held, and never taken: what a living process leases, layers and blobs that held ones need, blobs that `index.json`
//! leads to, cache mounts in use. Of everything else the least valuable goes first ([`crate::worth`]), until the limits
//! are met. A step's layer takes with it the records that need it; an image's layer does not, since it can be fetched
//! again.
//!
//! A thing goes from the database first, in a transaction that looks at the leases once more, then by rename into
//! `tmp/`, then from the disk: whoever dies in between leaves something that nobody sees and the next sweep takes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Transaction, params};

use crate::digest::{Digest, Key, LayerId};
use crate::filter::Filter;
use crate::process::{self, DEAD};
use crate::reserve;
use crate::store::{Store, StoreError, failed, layer_place, now, tree_place};
use crate::usage::{Held, UsageKind, UsageRow};
use crate::worth::Worth;

/// So many keys of pruned records are remembered.
const REMEMBERED: i64 = 20_000;
/// Seconds: what was used a moment ago goes last, whatever it is worth.
const FRESH: i64 = 600;
/// Below this part of a file system's inodes being free (one in so many), some are made free, up to twice as many.
const INODES: u64 = 20;

/// How much stays. Without any limit nothing does; see BuildKit's `calculateKeepBytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// So many bytes stay in any case.
    pub reserved: Option<u64>,
    /// Not more than so many bytes stay.
    pub max_used: Option<u64>,
    /// So many bytes of the file system are to be free.
    pub min_free: Option<u64>,
}

/// What a file system has, in bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub total: u64,
    /// Bytes that this process may still write.
    pub free: u64,
    /// Inodes; 0 where there is no limit.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl Limits {
    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// How many of `used` bytes stay.
    #[must_use]
    pub fn keep(&self, used: u64, space: &Space) -> u64 {
        if !self.any() {
            return 0;
        }
        let missing = self.min_free.map(|wanted| wanted.saturating_sub(space.free));
        let by_free = missing.map(|missing| used.saturating_sub(missing));
        let keep = match (self.max_used, by_free) {
            (Some(most), Some(by_free)) => most.min(by_free),
            (Some(keep), None) | (None, Some(keep)) => keep,
            (None, None) => 0,
        };
        keep.max(self.reserved.unwrap_or(0))
    }
}

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Also what records still answer with and pulled images' layers; without it, and without any of the others, only
    /// what nothing leads to.
    pub all: bool,
    /// How much stays.
    pub limits: Limits,
    /// Only what was not used for this long.
    pub until: Option<Duration>,
    /// Only things of which all of these hold.
    pub filters: Vec<Filter>,
    /// Bytes that are about to be written: the limits are kept with them.
    pub expected: u64,
    /// Tell, but do not remove.
    pub dry_run: bool,
}

/// What was removed.
#[derive(Debug, Clone, Default)]
pub struct PruneReport {
    /// Entries.
    pub removed: Vec<UsageRow>,
    /// Bytes.
    pub bytes: u64,
}

/// One pass over the rows.
struct Pass<'a> {
    options: &'a PruneOptions,
    /// Bytes in the store, and those that stay.
    total: u64,
    keep: u64,
    /// Inodes that have to become free.
    inodes: u64,
    oldest: Option<i64>,
    report: PruneReport,
    failure: Option<StoreError>,
}

impl Pass<'_> {
    fn wants(&self, row: &UsageRow) -> bool {
        let options = self.options;
        let enough = options.limits.any() && self.total <= self.keep && self.inodes == 0;
        let young = self.oldest.is_some_and(|oldest| row.last_used > oldest);
        let chosen = options.all
            || options.limits.any()
            || options.until.is_some()
            || !options.filters.is_empty()
            || !row.referenced;
        let own = row.kind == UsageKind::Other && row.referenced;
        !own && !row.in_use
            && !enough
            && !young
            && chosen
            && options.filters.iter().all(|filter| filter.holds(row))
    }

    fn took(&mut self, row: UsageRow) {
        self.total = self.total.saturating_sub(row.size);
        self.inodes = self.inodes.saturating_sub(row.entries);
        self.report.bytes += row.size;
        self.report.removed.push(row);
    }
}

impl Store {
    /// What the store's file system has.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn space(&self) -> Result<Space, StoreError> {
        let found = rustix::fs::fstatvfs(self.root().as_fd())
            .map_err(|error| failed("look at the file system of", self.path())(error.into()))?;
        Ok(Space {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_free: found.f_favail,
        })
    }

    /// Removes what the options say and nobody holds. What cannot be removed does not keep the rest from going.
    ///
    /// # Errors
    /// When the disk or the database fails and nothing could be removed.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport, StoreError> {
        if !options.dry_run {
            self.sweep_dead()?;
            self.sweep_unknown()?;
        }
        let held = self.held()?;
        let rows = self.measured_rows(&held)?;
        let report = self.prune_rows(options, &held, rows)?;
        if !options.dry_run {
            self.db().checkpoint();
            reserve::make(self.root());
        }
        Ok(report)
    }

    pub(crate) fn prune_rows(
        &self,
        options: &PruneOptions,
        held: &Held,
        mut rows: Vec<UsageRow>,
    ) -> Result<PruneReport, StoreError> {
        let mut space = self.space()?;
        space.free = space.free.saturating_sub(options.expected);
        let used: u64 = rows.iter().map(|row| row.size).sum();
        let total = used.saturating_add(options.expected);
        let oldest = options.until.map(|until| now() - i64::try_from(until.as_secs()).unwrap_or(0));
        let mut pass = Pass {
            options,
            total,
            keep: options.limits.keep(total, &space),
            inodes: missing_inodes(options, &space),
            oldest,
            report: PruneReport::default(),
            failure: None,
        };
        let order = order(&rows, held);
        let place: HashMap<String, usize> = (rows.iter().enumerate())
            .filter(|(_, row)| row.kind == UsageKind::Layer)
            .map(|(at, row)| (row.id.clone(), at))
            .collect();
        let named = self.index_stamp();
        let mut gone: HashSet<usize> = HashSet::new();
        for at in order {
            if gone.contains(&at) || !pass.wants(&rows[at]) {
                continue;
            }
            // Its whole family goes before the next least valuable thing does: nothing answers with it any more.
            let mut open = vec![at];
            while let Some(at) = open.pop() {
                let freed = if options.dry_run {
                    Ok(Some(Vec::new()))
                } else {
                    self.remove(&rows[at], named)
                };
                match freed {
                    Ok(None) => continue,
                    Ok(Some(orphans)) => {
                        gone.insert(at);
                        pass.took(rows[at].clone());
                        for orphan in orphans.iter().filter_map(|id| place.get(id)) {
                            rows[*orphan].referenced = false;
                            if !gone.contains(orphan) && pass.wants(&rows[*orphan]) {
                                open.push(*orphan);
                            }
                        }
                    }
                    Err(error) => {
                        pass.failure.get_or_insert(error);
                    }
                }
            }
        }
        if !options.dry_run {
            // A note of what went is not worth failing for.
            let _ = self.forget_notes();
        }
        match pass.failure {
            Some(error) if pass.report.removed.is_empty() => Err(error),
            _ => Ok(pass.report),
        }
    }

    /// Removes one thing; `None` when somebody holds it by now. Gives the layers that nothing answers with any more.
    fn remove(
        &self,
        row: &UsageRow,
        named: Option<(u64, i64)>,
    ) -> Result<Option<Vec<String>>, StoreError> {
        let taken = |taken: bool| taken.then(Vec::new);
        match row.kind {
            UsageKind::Layer | UsageKind::ImageLayer => match row.id.parse() {
                Ok(id) => self.remove_layer(&id),
                Err(_) => Ok(None),
            },
            UsageKind::Blob => match row.id.parse::<Digest>() {
                Ok(digest) => self.remove_free_blob(&digest, named).map(taken),
                Err(_) => Ok(None),
            },
            UsageKind::CacheMount => self.remove_mount(&row.id, &|_| true).map(taken),
            UsageKind::Context => {
                self.discard(&[Path::new("contexts").join(&row.id)]).map(|()| taken(true))
            }
            // Swept before the rows were made, if at all.
            UsageKind::Other => Ok(None),
        }
    }

    pub(crate) fn remove_layer(&self, id: &LayerId) -> Result<Option<Vec<String>>, StoreError> {
        let mut buried = Vec::new();
        let orphans = {
            // With the publish lock, nobody puts the same layer in while its files go.
            let _lock = self.publish_lock()?;
            let orphans = self.db().write("forget a layer", |transaction| {
                if is_leased(transaction, "layer", id.as_str())? {
                    return Ok(None);
                }
                transaction.execute("DELETE FROM layers WHERE id = ?1", [id.as_str()])?;
                transaction.execute("DELETE FROM layer_blobs WHERE layer = ?1", [id.as_str()])?;
                if id.is_image() {
                    return Ok(Some(Vec::new()));
                }
                note_pruned(transaction, id)?;
                forget_records(transaction, id).map(Some)
            })?;
            if orphans.is_some() {
                self.forget_tree(id);
                buried = self.bury(&[layer_place(id), tree_place(id)])?;
            }
            orphans
        };
        self.remove_buried(&buried);
        Ok(orphans)
    }

    /// Removes a blob that nobody holds or needs. `named`: the index when it was read for what may not go.
    pub(crate) fn remove_free_blob(
        &self,
        digest: &Digest,
        named: Option<(u64, i64)>,
    ) -> Result<bool, StoreError> {
        // With the publish lock, nobody puts the same blob in, or gives an image that needs it a name, while its file goes.
        let _lock = self.publish_lock()?;
        if self.index_stamp() != named && self.named_blobs()?.contains(digest.as_str()) {
            return Ok(false);
        }
        let leased = self.db().write("forget a blob", |transaction| {
            if is_leased(transaction, "blob", digest.as_str())? {
                return Ok(true);
            }
            transaction.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_str()])?;
            Ok(false)
        })?;
        if !leased {
            self.remove_blob(digest)?;
        }
        Ok(!leased)
    }

    /// Tells one `index.json` from the next, which is another file.
    fn index_stamp(&self) -> Option<(u64, i64)> {
        let stat = self.root().stat(Path::new("index.json")).ok()?;
        Some((stat.inode, stat.ctime.secs))
    }

    /// Moves things where nobody looks and everybody sweeps. Needs no room on the disk, not even a folder.
    fn bury(&self, places: &[PathBuf]) -> Result<Vec<PathBuf>, StoreError> {
        let mut buried = Vec::new();
        for place in places {
            let name = Path::new("tmp").join(format!("{DEAD}{}", LayerId::random()));
            match self.root().rename(place, self.root(), &name) {
                Ok(()) => buried.push(name),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // The database does not know it any more: it may as well go where it is.
                Err(_) => self
                    .root()
                    .remove_all(place)
                    .map_err(failed("remove", &self.path().join(place)))?,
            }
        }
        Ok(buried)
    }

    fn remove_buried(&self, buried: &[PathBuf]) {
        for name in buried {
            // What cannot be removed is swept by the next process.
            let _ = self.root().remove_all(name);
        }
    }

    /// Moves things out of sight and removes them.
    pub(crate) fn discard(&self, places: &[PathBuf]) -> Result<(), StoreError> {
        let buried = self.bury(places)?;
        self.remove_buried(&buried);
        Ok(())
    }

    /// What dead processes left in `tmp/`.
    fn sweep_dead(&self) -> Result<(), StoreError> {
        let path = self.path().join("tmp");
        let sweep = || {
            let tmp = self.root().open_dir(Path::new("tmp"))?;
            process::sweep(&tmp)
        };
        sweep().map_err(failed("sweep", &path))
    }

    /// Files that the database does not know: of an earlier boot, of a process that died while publishing, of a
    /// database that was lost. Blobs are not among them: opening one makes it known again.
    fn sweep_unknown(&self) -> Result<(), StoreError> {
        let mut unknown = Vec::new();
        let buried = {
            let _lock = self.publish_lock()?;
            let known =
                self.db().write("drop what an earlier boot may have lost", |transaction| {
                    let old = "DELETE FROM layers WHERE boot IS NOT NULL AND boot != ?1";
                    transaction.execute(old, [self.boot()])?;
                    let mut query = transaction.prepare("SELECT id FROM layers")?;
                    let layers = query.query_map([], |row| row.get::<_, String>(0))?;
                    let mut known = layers.collect::<rusqlite::Result<HashSet<_>>>()?;
                    let mut query = transaction.prepare("SELECT dir FROM mounts")?;
                    for dir in query.query_map([], |row| row.get::<_, String>(0))? {
                        known.insert(dir?);
                    }
                    Ok(known)
                })?;
            for folder in ["layers", "trees", "mounts"] {
                let path = self.path().join(folder);
                let items =
                    self.root().read_dir(Path::new(folder)).map_err(failed("read", &path))?;
                let names = items.into_iter().map(|item| item.name);
                let names = names.filter(|name| !name.to_str().is_some_and(|n| known.contains(n)));
                unknown.extend(names.map(|name| Path::new(folder).join(name)));
            }
            self.bury(&unknown)?
        };
        self.remove_buried(&buried);
        Ok(())
    }

    /// When the record that answered under this key was pruned, if it was: seconds since 1970.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pruned_when(&self, key: &Key) -> Result<Option<i64>, StoreError> {
        use rusqlite::OptionalExtension;
        self.db().read("look for a pruned record", |connection| {
            let query = "SELECT time FROM pruned WHERE key = ?1";
            let mut statement = connection.prepare_cached(query)?;
            statement.query_row([key.as_bytes()], |row| row.get(0)).optional()
        })
    }

    /// Forgets the oldest notes of what was pruned, and what is left of mounts that are gone.
    fn forget_notes(&self) -> Result<(), StoreError> {
        self.db().write("forget what was pruned long ago", |transaction| {
            let old = "DELETE FROM pruned WHERE time < (SELECT time FROM pruned
                       ORDER BY time DESC LIMIT 1 OFFSET ?1)";
            transaction.execute(old, [REMEMBERED])?;
            for table in ["mount_users", "mount_sizes"] {
                let query =
                    format!("DELETE FROM {table} WHERE dir NOT IN (SELECT dir FROM mounts)");
                transaction.execute(&query, [])?;
            }
            Ok(())
        })
    }
}

/// The rows from the least valuable on; of equals the one that was used longest ago.
fn order(rows: &[UsageRow], held: &Held) -> Vec<usize> {
    let now = now();
    let worth = Worth::new(rows, held, now);
    let mut order: Vec<(bool, f64, usize)> = (rows.iter().enumerate())
        .map(|(at, row)| (row.referenced && now - row.last_used < FRESH, worth.of(row), at))
        .collect();
    order.sort_by(|a, b| {
        let last_used = |at: usize| rows[at].last_used;
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(last_used(a.2).cmp(&last_used(b.2)))
    });
    order.into_iter().map(|(_, _, at)| at).collect()
}

/// Inodes that limits on free space stand for, where they are short.
fn missing_inodes(options: &PruneOptions, space: &Space) -> u64 {
    if options.limits.min_free.is_none() || space.inodes == 0 {
        return 0;
    }
    let least = space.inodes / INODES;
    if space.inodes_free >= least { 0 } else { 2 * least - space.inodes_free }
}

fn is_leased(transaction: &Transaction<'_>, kind: &str, name: &str) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT 1 FROM leases WHERE kind = ?1 AND name = ?2")?
        .exists([kind, name])
}

/// Notes when records that cannot do without a layer go.
fn note_pruned(transaction: &Transaction<'_>, id: &LayerId) -> rusqlite::Result<()> {
    let query = "INSERT OR REPLACE INTO pruned SELECT k.key, ?2 FROM records r
                 JOIN keys k ON k.record = r.id WHERE r.own = ?1 OR instr(r.layers, ?1) > 0";
    transaction.prepare_cached(query)?.execute(params![id.as_str(), now()]).map(drop)
}

/// Records that cannot do without a layer go. Gives their own layers that nothing answers with
/// any more.
pub(crate) fn forget_records(
    transaction: &Transaction<'_>,
    id: &LayerId,
) -> rusqlite::Result<Vec<String>> {
    let mut query = transaction
        .prepare_cached("SELECT id, own FROM records WHERE own = ?1 OR instr(layers, ?1) > 0")?;
    let records = query.query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let records = records.collect::<rusqlite::Result<Vec<(i64, Option<String>)>>>()?;
    let mut layers = HashSet::new();
    for (record, own) in records {
        transaction.prepare_cached("DELETE FROM keys WHERE record = ?1")?.execute([record])?;
        transaction.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([record])?;
        layers.extend(own.filter(|own| own != id.as_str()));
    }
    let mut orphans = Vec::new();
    for layer in layers {
        let query = "SELECT 1 FROM records WHERE own = ?1 OR instr(layers, ?1) > 0";
        if !transaction.prepare_cached(query)?.exists([&layer])? {
            orphans.push(layer);
        }
    }
    Ok(orphans)
}
