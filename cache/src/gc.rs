//! What uses space, and what may go.
//!
//! Held, and never taken: what a living process leases, layers and blobs that held ones need, blobs that `index.json`
//! leads to, cache mounts in use. Everything else goes by last use, oldest first, until the options are met. A step's
//! layer takes with it the records that need it; an image's layer does not, since it can be fetched again.
//!
//! A thing goes from the database first, in a transaction that looks at the leases once more, then by rename into
//! `tmp/`, then from the disk: whoever dies in between leaves something that nobody sees and the next sweep takes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Transaction;

use crate::digest::{Digest, LayerId};
use crate::oci::Descriptor;
use crate::root::{FileKind, Root};
use crate::store::{Store, StoreError, failed, layer_place, now, tree_place};

/// Manifests and indexes are small: a larger one is not followed.
const MANIFEST_LIMIT: u64 = 8 << 20;
/// An index of indexes of indexes: deeper than this is no image.
const MANIFEST_DEPTH: usize = 4;

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Also what records still answer with and pulled images' layers; without it only what nothing leads to, and what
    /// the two limits say.
    pub all: bool,
    /// Keep this many bytes of the most recently used.
    pub keep_bytes: Option<u64>,
    /// Only what was not used for this long.
    pub until: Option<Duration>,
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

/// What kind of thing uses space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKind {
    /// An unpacked layer that a step made.
    Layer,
    /// An unpacked layer of an image.
    ImageLayer,
    /// A blob.
    Blob,
    /// A RUN cache mount.
    CacheMount,
    /// A stat cache.
    Context,
}

/// One thing that uses space.
#[derive(Debug, Clone)]
pub struct UsageRow {
    /// What it is.
    pub kind: UsageKind,
    /// Its id, digest or name.
    pub id: String,
    /// Bytes of data.
    pub size: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub last_used: i64,
    /// Whether a running build or an image with a name holds it.
    pub in_use: bool,
    /// Whether a record answers with it: without, only `prune` knows it.
    pub shared: bool,
    /// The step or the mount's id, for people.
    pub description: String,
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// What is held, and why things are there.
#[derive(Debug, Default)]
struct Held {
    layers: HashSet<String>,
    blobs: HashSet<String>,
    /// Layers in records' chains.
    recorded: HashSet<String>,
    /// Archives of layers that are there.
    archives: HashSet<String>,
    /// What made a layer.
    descriptions: HashMap<String, String>,
}

impl Store {
    fn held(&self, named: &HashSet<String>) -> Result<Held, StoreError> {
        self.db().read_together("look at what is held", |transaction| {
            let mut held = Held { blobs: named.clone(), ..Held::default() };
            let mut query = transaction.prepare("SELECT kind, name FROM leases")?;
            let leases = query
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            for lease in leases {
                let (kind, name) = lease?;
                if kind == "layer" {
                    held.layers.insert(name)
                } else {
                    held.blobs.insert(name)
                };
            }
            let mut query = transaction.prepare("SELECT layers, own, description FROM records")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let chain: String = row.get(0)?;
                held.recorded.extend(chain.split_whitespace().map(str::to_owned));
                if let Some(own) = row.get::<_, Option<String>>(1)? {
                    held.descriptions.insert(own, row.get(2)?);
                }
            }
            let mut query = transaction.prepare(
                "SELECT b.layer, b.digest FROM layer_blobs b JOIN layers l ON l.id = b.layer",
            )?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let (layer, digest): (String, String) = (row.get(0)?, row.get(1)?);
                if held.layers.contains(&layer) {
                    held.blobs.insert(digest.clone());
                }
                held.archives.insert(digest);
            }
            Ok(held)
        })
    }

    /// The blobs that `index.json` leads to.
    fn named_blobs(&self) -> Result<HashSet<String>, StoreError> {
        let mut found = HashSet::new();
        let roots = self.index_roots()?;
        let mut pending: Vec<(Descriptor, usize)> = roots.into_iter().map(|d| (d, 0)).collect();
        while let Some((descriptor, depth)) = pending.pop() {
            let new = found.insert(descriptor.digest.to_string());
            let media_type = &descriptor.media_type;
            let document =
                media_type.contains("index") || media_type.contains("manifest") || depth == 0;
            let small = descriptor.size <= MANIFEST_LIMIT;
            if !new || !document || !small || depth > MANIFEST_DEPTH {
                continue;
            }
            let Some(bytes) = self.read_blob(&descriptor.digest, MANIFEST_LIMIT)? else { continue };
            let children = referenced(&bytes).into_iter().map(|child| (child, depth + 1));
            pending.extend(children);
        }
        Ok(found)
    }

    /// Everything that uses space, by kind and id.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn disk_usage(&self) -> Result<Vec<UsageRow>, StoreError> {
        self.forget_dead_leases()?;
        let held = self.held(&self.named_blobs()?)?;
        let mut rows = self.db().read_together("list what uses space", |transaction| {
            let mut rows = layer_rows(transaction, &held)?;
            rows.extend(blob_rows(transaction, &held)?);
            rows.extend(mount_rows(transaction)?);
            Ok(rows)
        })?;
        for row in &mut rows {
            if row.kind == UsageKind::CacheMount {
                row.size = disk_size(self.root(), &Path::new("mounts").join(&row.id));
            }
        }
        let contexts = Path::new("contexts");
        let path = self.path().join(contexts);
        for item in self.root().read_dir(contexts).map_err(failed("read", &path))? {
            let Ok(stat) = self.root().stat(&contexts.join(&item.name)) else { continue };
            rows.push(UsageRow {
                kind: UsageKind::Context,
                id: item.name.to_string_lossy().into_owned(),
                size: stat.size,
                created: stat.mtime.secs,
                last_used: stat.mtime.secs,
                in_use: false,
                shared: true,
                description: "digests of a context's files".to_owned(),
            });
        }
        rows.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
        Ok(rows)
    }

    /// Removes what the options say and nobody holds.
    ///
    /// # Errors
    /// When the disk or the database fails; what was removed before stays removed.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport, StoreError> {
        if !options.dry_run {
            self.sweep_unknown()?;
        }
        let mut rows = self.disk_usage()?;
        rows.sort_by_key(|row| row.last_used);
        let mut total: u64 = rows.iter().map(|row| row.size).sum();
        let oldest = options.until.map(|until| now() - i64::try_from(until.as_secs()).unwrap_or(0));
        let limited = options.keep_bytes.is_some() || options.until.is_some();
        let mut report = PruneReport::default();
        for row in rows {
            let kept = options.keep_bytes.is_some_and(|keep| total <= keep);
            let young = oldest.is_some_and(|oldest| row.last_used > oldest);
            let wanted = options.all || limited || !row.shared;
            if row.in_use || kept || young || !wanted {
                continue;
            }
            if !options.dry_run && !self.remove(&row)? {
                continue;
            }
            total = total.saturating_sub(row.size);
            report.bytes += row.size;
            report.removed.push(row);
        }
        if !options.dry_run {
            self.db().checkpoint();
        }
        Ok(report)
    }

    /// Removes one thing; false when somebody holds it by now.
    fn remove(&self, row: &UsageRow) -> Result<bool, StoreError> {
        match row.kind {
            UsageKind::Layer | UsageKind::ImageLayer => match row.id.parse() {
                Ok(id) => self.remove_layer(&id),
                Err(_) => Ok(false),
            },
            UsageKind::Blob => match row.id.parse::<Digest>() {
                Ok(digest) => self.remove_free_blob(&digest),
                Err(_) => Ok(false),
            },
            UsageKind::CacheMount => self.remove_mount(&row.id),
            UsageKind::Context => {
                let place = Path::new("contexts").join(&row.id);
                let removed = self.root().remove_all(&place);
                removed.map(|()| true).map_err(failed("remove", &self.path().join(&place)))
            }
        }
    }

    pub(crate) fn remove_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        // With the publish lock, nobody puts the same layer in while its files go.
        let _lock = self.publish_lock()?;
        let free = self.db().write("forget a layer", |transaction| {
            if is_leased(transaction, "layer", id.as_str())? {
                return Ok(false);
            }
            transaction.execute("DELETE FROM layers WHERE id = ?1", [id.as_str()])?;
            transaction.execute("DELETE FROM layer_blobs WHERE layer = ?1", [id.as_str()])?;
            if !id.is_image() {
                forget_records(transaction, id)?;
            }
            Ok(true)
        })?;
        if free {
            self.forget_tree(id);
            self.discard(&[layer_place(id), tree_place(id)])?;
        }
        Ok(free)
    }

    fn remove_free_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        // With the publish lock, nobody puts the same blob in while its file goes.
        let _lock = self.publish_lock()?;
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

    /// Moves things into `tmp/` and removes them there.
    fn discard(&self, places: &[PathBuf]) -> Result<(), StoreError> {
        let process = self.process()?;
        for place in places {
            let name = process.fresh();
            match self.root().rename(place, process.dir(), &name) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                result => result.map_err(failed("remove", &self.path().join(place)))?,
            }
            // The space comes back at the latest when this process is dead.
            let _ = process.dir().remove_all(&name);
        }
        Ok(())
    }

    /// Files that the database does not know: of an earlier boot, of a process that died while publishing, of a
    /// database that was lost. Blobs are not among them: opening one makes it known again.
    fn sweep_unknown(&self) -> Result<(), StoreError> {
        let _lock = self.publish_lock()?;
        let known = self.db().write("drop what an earlier boot may have lost", |transaction| {
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
        let mut unknown = Vec::new();
        for folder in ["layers", "trees", "mounts"] {
            let path = self.path().join(folder);
            let items = self.root().read_dir(Path::new(folder)).map_err(failed("read", &path))?;
            let names = items.into_iter().map(|item| item.name);
            let names = names.filter(|name| !name.to_str().is_some_and(|n| known.contains(n)));
            unknown.extend(names.map(|name| Path::new(folder).join(name)));
        }
        self.discard(&unknown)
    }
}

fn is_leased(transaction: &Transaction<'_>, kind: &str, name: &str) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT 1 FROM leases WHERE kind = ?1 AND name = ?2")?
        .exists([kind, name])
}

/// Records that cannot do without a layer.
pub(crate) fn forget_records(transaction: &Transaction<'_>, id: &LayerId) -> rusqlite::Result<()> {
    let mut query = transaction
        .prepare_cached("SELECT id FROM records WHERE own = ?1 OR instr(layers, ?1) > 0")?;
    let records = query.query_map([id.as_str()], |row| row.get::<_, i64>(0))?;
    for record in records.collect::<rusqlite::Result<Vec<_>>>()? {
        transaction.execute("DELETE FROM keys WHERE record = ?1", [record])?;
        transaction.execute("DELETE FROM records WHERE id = ?1", [record])?;
    }
    Ok(())
}

fn layer_rows(transaction: &Transaction<'_>, held: &Held) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query = transaction.prepare("SELECT id, size, created_ms, last_used FROM layers")?;
    let rows = query.query_map([], |row| {
        let id: String = row.get(0)?;
        let image = id.parse::<LayerId>().is_ok_and(|id| id.is_image());
        Ok(UsageRow {
            kind: if image { UsageKind::ImageLayer } else { UsageKind::Layer },
            size: unsigned(row.get(1)?),
            created: row.get::<_, i64>(2)? / 1000,
            last_used: row.get(3)?,
            in_use: held.layers.contains(&id),
            shared: image || held.recorded.contains(&id),
            description: held.descriptions.get(&id).cloned().unwrap_or_default(),
            id,
        })
    })?;
    rows.collect()
}

fn blob_rows(transaction: &Transaction<'_>, held: &Held) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query = transaction.prepare("SELECT digest, size, created_ms, last_used FROM blobs")?;
    let rows = query.query_map([], |row| {
        let id: String = row.get(0)?;
        Ok(UsageRow {
            kind: UsageKind::Blob,
            size: unsigned(row.get(1)?),
            created: row.get::<_, i64>(2)? / 1000,
            last_used: row.get(3)?,
            in_use: held.blobs.contains(&id),
            // What was pulled is worth keeping as long as anything else: nothing tells who may ask for it.
            shared: true,
            description: if held.archives.contains(&id) { "archive of a layer" } else { "" }
                .to_owned(),
            id,
        })
    })?;
    rows.collect()
}

fn mount_rows(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query = transaction.prepare("SELECT dir, id, created, last_used FROM mounts")?;
    let rows = query.query_map([], |row| {
        let description: String = row.get(1)?;
        Ok(UsageRow {
            kind: UsageKind::CacheMount,
            id: row.get(0)?,
            size: 0,
            created: row.get(2)?,
            last_used: row.get(3)?,
            in_use: false,
            shared: !description.is_empty(),
            description,
        })
    })?;
    rows.collect()
}

/// Bytes on disk of everything beneath, hard links once; what cannot be read counts nothing.
fn disk_size(root: &Root, top: &Path) -> u64 {
    let (mut size, mut seen) = (0, HashSet::new());
    let mut pending = vec![top.to_owned()];
    while let Some(dir) = pending.pop() {
        for item in root.read_dir(&dir).unwrap_or_default() {
            let path = dir.join(&item.name);
            if item.kind == FileKind::Directory {
                pending.push(path);
            } else if let Ok(stat) = root.stat(&path)
                && (stat.links < 2 || seen.insert(stat.inode))
            {
                size += stat.blocks * 512;
            }
        }
    }
    size
}

/// What a manifest or an index points to.
fn referenced(bytes: &[u8]) -> Vec<Descriptor> {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(default)]
        manifests: Vec<Descriptor>,
        config: Option<Descriptor>,
        #[serde(default)]
        layers: Vec<Descriptor>,
        #[serde(default)]
        blobs: Vec<Descriptor>,
        subject: Option<Descriptor>,
    }
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return Vec::new() };
    let mut found = document.manifests;
    found.extend(document.config);
    found.extend(document.layers);
    found.extend(document.blobs);
    found.extend(document.subject);
    found
}
