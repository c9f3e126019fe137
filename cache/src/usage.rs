//! What uses space: the rows of `kiln du`, and what pruning chooses from.
//!
//! Sizes come in two ways. [`Store::disk_usage`] looks at every file: its rows add up to what `du` says of the store's
//! folder. The automatic collection takes what the database knows, which costs a few statements.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::Transaction;

use crate::digest::{Digest, LayerId};
use crate::measure::Measured;
use crate::oci::Descriptor;
use crate::store::{Store, StoreError, failed, layer_place, tree_place};

/// Manifests and indexes are small: a larger one is not followed.
const MANIFEST_LIMIT: u64 = 8 << 20;
/// An index of indexes of indexes: deeper than this is no image.
const MANIFEST_DEPTH: usize = 4;

/// What kind of thing uses space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// What the store itself is made of; pruning does not take it.
    Other,
}

impl UsageKind {
    /// Its name, for people and filters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::ImageLayer => "image-layer",
            Self::Blob => "blob",
            Self::CacheMount => "cache-mount",
            Self::Context => "context",
            Self::Other => "other",
        }
    }
}

/// One thing that uses space.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts about a thing, independent of one another"
)]
pub struct UsageRow {
    /// What it is.
    pub kind: UsageKind,
    /// Its id, digest or name.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Inodes.
    pub entries: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub last_used: i64,
    /// Whether a running build or an image with a name holds it: it is not taken.
    pub in_use: bool,
    /// Whether something answers with it: without, only `prune` knows it.
    pub referenced: bool,
    /// Whether an image of the store has it, too.
    pub shared: bool,
    /// The step or the mount's id, for people.
    pub description: String,
    /// The layer below.
    pub parents: Vec<String>,
    /// A checkout of a git repository.
    pub git: bool,
}

impl UsageRow {
    /// Its type in BuildKit's words (`client/diskusage.go`).
    #[must_use]
    pub fn record_type(&self) -> &'static str {
        match self.kind {
            UsageKind::Layer if self.git => "source.git.checkout",
            UsageKind::Layer | UsageKind::ImageLayer | UsageKind::Blob => "regular",
            UsageKind::CacheMount => "exec.cachemount",
            UsageKind::Context => "source.local",
            UsageKind::Other => "internal",
        }
    }

    /// Whether it changes while it is there.
    #[must_use]
    pub fn mutable(&self) -> bool {
        matches!(self.kind, UsageKind::CacheMount | UsageKind::Context | UsageKind::Other)
    }

    fn new(kind: UsageKind, id: String) -> Self {
        Self {
            kind,
            id,
            size: 0,
            entries: 1,
            created: 0,
            last_used: 0,
            in_use: false,
            referenced: true,
            shared: false,
            description: String::new(),
            parents: Vec::new(),
            git: false,
        }
    }
}

/// A record as pruning sees it.
#[derive(Debug)]
pub(crate) struct RecordRow {
    pub(crate) layers: Vec<String>,
    pub(crate) own: Option<String>,
    pub(crate) duration_ms: u64,
}

/// What is held, and why things are there.
#[derive(Debug, Default)]
pub(crate) struct Held {
    layers: HashSet<String>,
    blobs: HashSet<String>,
    /// Blobs that `index.json` leads to.
    named: HashSet<String>,
    /// Documents of images that were resolved, and when one of the same image was used last.
    documents: HashMap<String, i64>,
    /// Layers of which an image of the store has the archive.
    shared: HashSet<String>,
    /// Layers in records' chains.
    recorded: HashSet<String>,
    /// Archives of layers that are there.
    archives: HashSet<String>,
    /// What made a layer, the layer below it, whether it is a checkout.
    made: HashMap<String, (String, Option<String>, bool)>,
    /// When a record with the layer was used last.
    used: HashMap<String, i64>,
    /// All records.
    pub(crate) records: Vec<RecordRow>,
}

pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Held {
    /// Whether a blob is the archive of a layer that is there.
    pub(crate) fn is_archive(&self, digest: &str) -> bool {
        self.archives.contains(digest)
    }

    fn read_leases(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut query = transaction.prepare("SELECT kind, name FROM leases")?;
        let leases = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        for lease in leases {
            let (kind, name) = lease?;
            if kind == "layer" {
                self.layers.insert(name)
            } else {
                self.blobs.insert(name)
            };
        }
        Ok(())
    }

    fn read_records(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let query = "SELECT layers, own, description, duration_ms, last_used,
                            instr(parts, '[\"operation\",\"git\"]') > 0 FROM records";
        let mut query = transaction.prepare(query)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let chain: String = row.get(0)?;
            let layers: Vec<String> = chain.split_whitespace().map(str::to_owned).collect();
            let own: Option<String> = row.get(1)?;
            let last_used: i64 = row.get(4)?;
            for layer in layers.iter().chain(&own) {
                let used = self.used.entry(layer.clone()).or_insert(last_used);
                *used = last_used.max(*used);
            }
            self.recorded.extend(layers.iter().chain(&own).cloned());
            if let Some(own) = &own {
                let place = layers.iter().position(|layer| layer == own);
                let below = place.and_then(|at| at.checked_sub(1)).map(|at| layers[at].clone());
                self.made.insert(own.clone(), (row.get(2)?, below, row.get(5)?));
            }
            let duration_ms = unsigned(row.get(3)?);
            self.records.push(RecordRow { layers, own, duration_ms });
        }
        Ok(())
    }

    fn read_archives(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let query = "SELECT b.layer, b.digest, l.id IS NOT NULL FROM layer_blobs b
                     LEFT JOIN layers l ON l.id = b.layer";
        let mut query = transaction.prepare(query)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (layer, digest, there): (String, String, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            if self.layers.contains(&layer) {
                self.blobs.insert(digest.clone());
            }
            if self.named.contains(&digest) {
                self.shared.insert(layer);
            }
            if there {
                self.archives.insert(digest);
            }
        }
        Ok(())
    }
}

impl Store {
    pub(crate) fn held(&self) -> Result<Held, StoreError> {
        self.forget_dead_leases()?;
        let named = self.named_blobs()?;
        let mut held = self.db().read_together("look at what is held", |transaction| {
            let mut held = Held { named, ..Held::default() };
            held.read_leases(transaction)?;
            held.read_records(transaction)?;
            held.read_archives(transaction)?;
            Ok(held)
        })?;
        held.documents = self.resolved_documents()?;
        Ok(held)
    }

    /// The blobs that `index.json` leads to.
    pub(crate) fn named_blobs(&self) -> Result<HashSet<String>, StoreError> {
        let mut found = HashSet::new();
        for root in self.index_roots()? {
            self.follow(root, true, &mut found)?;
        }
        Ok(found)
    }

    /// Documents of images that references were resolved to, with the last use of any of the same image: a build that
    /// stands on an image needs all of them to know it without its registry.
    fn resolved_documents(&self) -> Result<HashMap<String, i64>, StoreError> {
        let (roots, used) = self.db().read_together("list images", |transaction| {
            let mut query = transaction.prepare("SELECT DISTINCT digest FROM resolved")?;
            let roots = query.query_map([], |row| row.get::<_, String>(0))?;
            let roots = roots.collect::<rusqlite::Result<Vec<_>>>()?;
            let mut query = transaction.prepare("SELECT digest, last_used FROM blobs")?;
            let used = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((roots, used.collect::<rusqlite::Result<HashMap<String, i64>>>()?))
        })?;
        let mut documents = HashMap::new();
        for root in roots.iter().filter_map(|digest| digest.parse::<Digest>().ok()) {
            let mut found = HashSet::new();
            self.follow(Descriptor::new("index", root, 0), false, &mut found)?;
            let last = found.iter().filter_map(|digest| used.get(digest)).max().copied();
            for digest in found {
                let known = documents.entry(digest).or_insert(0);
                *known = last.unwrap_or(0).max(*known);
            }
        }
        Ok(documents)
    }

    /// What a document leads to, itself included; without `data`, documents only.
    fn follow(
        &self,
        root: Descriptor,
        data: bool,
        found: &mut HashSet<String>,
    ) -> Result<(), StoreError> {
        let mut pending = vec![(root, 0)];
        while let Some((descriptor, depth)) = pending.pop() {
            let media_type = &descriptor.media_type;
            let document =
                media_type.contains("index") || media_type.contains("manifest") || depth == 0;
            if !data
                && !document
                && !media_type.contains("config")
                && !media_type.contains("image.v1+json")
            {
                continue;
            }
            let new = found.insert(descriptor.digest.to_string());
            let small = descriptor.size <= MANIFEST_LIMIT;
            if !new || !document || !small || depth > MANIFEST_DEPTH {
                continue;
            }
            let Some(bytes) = self.read_blob(&descriptor.digest, MANIFEST_LIMIT)? else { continue };
            pending.extend(referenced(&bytes).into_iter().map(|child| (child, depth + 1)));
        }
        Ok(())
    }

    /// Everything that uses space, by kind and id; sizes as on the disk, shared bytes once: the sum is what `du` says of
    /// the store's folder.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn disk_usage(&self) -> Result<Vec<UsageRow>, StoreError> {
        let held = self.held()?;
        self.measured_rows(&held)
    }

    pub(crate) fn measured_rows(&self, held: &Held) -> Result<Vec<UsageRow>, StoreError> {
        let mut rows = self.known_rows(held)?;
        let mut disk = self.measure_all()?;
        rows.retain_mut(|row| {
            let found: Vec<Measured> =
                places(row).iter().filter_map(|place| disk.remove(place)).collect();
            row.size = found.iter().map(|measured| measured.bytes).sum();
            row.entries = found.iter().map(|measured| measured.entries).sum();
            // What the database knows and the disk does not: somebody removed it by hand.
            !found.is_empty()
        });
        rows.extend(self.unknown_rows(disk, held));
        rows.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
        Ok(rows)
    }

    /// What the database knows, with the sizes that it knows.
    pub(crate) fn known_rows(&self, held: &Held) -> Result<Vec<UsageRow>, StoreError> {
        let mut rows = self.db().read_together("list what uses space", |transaction| {
            let mut rows = layer_rows(transaction, held)?;
            rows.extend(blob_rows(transaction, held)?);
            rows.extend(mount_rows(transaction)?);
            Ok(rows)
        })?;
        for row in rows.iter_mut().filter(|row| row.kind == UsageKind::CacheMount) {
            row.in_use = self.mount_in_use(&row.id);
        }
        let contexts = Path::new("contexts");
        let path = self.path().join(contexts);
        for item in self.root().read_dir(contexts).map_err(failed("read", &path))? {
            let Ok(stat) = self.root().stat(&contexts.join(&item.name)) else { continue };
            rows.push(UsageRow {
                size: stat.blocks * 512,
                created: stat.mtime.secs,
                last_used: stat.mtime.secs,
                description: "digests of a context's files".to_owned(),
                ..UsageRow::new(UsageKind::Context, item.name.to_string_lossy().into_owned())
            });
        }
        Ok(rows)
    }

    /// What is on the disk besides.
    fn unknown_rows(&self, disk: BTreeMap<PathBuf, Measured>, held: &Held) -> Vec<UsageRow> {
        let mut rows = Vec::new();
        let mut own: BTreeMap<&'static str, UsageRow> = BTreeMap::new();
        for (place, measured) in disk {
            let (size, entries) = (measured.bytes, measured.entries);
            let mut names = place.iter().map(|name| name.to_string_lossy().into_owned());
            let names: [String; 3] = std::array::from_fn(|_| names.next().unwrap_or_default());
            let stat = self.root().stat(&place).ok();
            let time = stat.map_or(0, |stat| stat.mtime.secs);
            let times = |row: UsageRow| UsageRow { created: time, last_used: time, ..row };
            match names.each_ref().map(String::as_str) {
                ["blobs", algorithm, hex] if !hex.is_empty() => {
                    let id = format!("{algorithm}:{hex}");
                    let in_use = held.blobs.contains(&id) || held.named.contains(&id);
                    let row = times(UsageRow::new(UsageKind::Blob, id));
                    rows.push(UsageRow { size, entries, in_use, ..row });
                }
                ["layers" | "trees" | "mounts", name, _] if !name.is_empty() => {
                    let description = "nobody knows it: the next prune takes it".to_owned();
                    let id = place.display().to_string();
                    let row = times(UsageRow::new(UsageKind::Other, id));
                    rows.push(UsageRow { size, entries, description, referenced: false, ..row });
                }
                [top, ..] => {
                    let (id, description) = own_name(top);
                    let row = own.entry(id).or_insert_with(|| UsageRow {
                        entries: 0,
                        in_use: true,
                        description: description.to_owned(),
                        ..times(UsageRow::new(UsageKind::Other, id.to_owned()))
                    });
                    row.size += size;
                    row.entries += entries;
                    row.last_used = row.last_used.max(time);
                }
            }
        }
        rows.extend(own.into_values());
        rows
    }
}

/// What the store itself is made of, for people.
fn own_name(top: &str) -> (&'static str, &'static str) {
    match top {
        top if top.starts_with("kiln.db") => ("kiln.db", "the database"),
        "tmp" => ("tmp", "what is being made"),
        "logs" => ("logs", "what steps wrote"),
        "locks" => ("locks", "locks"),
        "quarantine" => ("quarantine", "what was found damaged"),
        "reserve" => ("reserve", "room to prune when the disk is full"),
        _ => ("store", "folders and documents"),
    }
}

/// Where a thing is.
fn places(row: &UsageRow) -> Vec<PathBuf> {
    match row.kind {
        UsageKind::Layer | UsageKind::ImageLayer => match row.id.parse::<LayerId>() {
            Ok(id) => vec![layer_place(&id), tree_place(&id)],
            Err(_) => Vec::new(),
        },
        UsageKind::Blob => {
            vec![Path::new("blobs").join(row.id.replacen(':', "/", 1))]
        }
        UsageKind::CacheMount => vec![Path::new("mounts").join(&row.id)],
        UsageKind::Context => vec![Path::new("contexts").join(&row.id)],
        UsageKind::Other => Vec::new(),
    }
}

fn layer_rows(transaction: &Transaction<'_>, held: &Held) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query =
        transaction.prepare("SELECT id, size, created_ms, last_used, entries FROM layers")?;
    let rows = query.query_map([], |row| {
        let id: String = row.get(0)?;
        let image = id.parse::<LayerId>().is_ok_and(|id| id.is_image());
        let kind = if image { UsageKind::ImageLayer } else { UsageKind::Layer };
        let made = held.made.get(&id);
        let last_used: i64 = row.get(3)?;
        Ok(UsageRow {
            size: unsigned(row.get(1)?),
            entries: unsigned(row.get(4)?),
            created: row.get::<_, i64>(2)? / 1000,
            last_used: held.used.get(&id).copied().unwrap_or(0).max(last_used),
            in_use: held.layers.contains(&id),
            referenced: image || held.recorded.contains(&id),
            shared: held.shared.contains(&id),
            description: made.map(|made| made.0.clone()).unwrap_or_default(),
            parents: made.and_then(|made| made.1.clone()).into_iter().collect(),
            git: made.is_some_and(|made| made.2),
            ..UsageRow::new(kind, id)
        })
    })?;
    rows.collect()
}

fn blob_rows(transaction: &Transaction<'_>, held: &Held) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query = transaction.prepare("SELECT digest, size, created_ms, last_used FROM blobs")?;
    let rows = query.query_map([], |row| {
        let id: String = row.get(0)?;
        let document = held.documents.get(&id).copied();
        let description = match document {
            _ if held.archives.contains(&id) => "archive of a layer",
            Some(_) => "document of an image",
            None => "",
        };
        Ok(UsageRow {
            size: unsigned(row.get(1)?),
            created: row.get::<_, i64>(2)? / 1000,
            last_used: row.get::<_, i64>(3)?.max(document.unwrap_or(0)),
            in_use: held.blobs.contains(&id) || held.named.contains(&id),
            shared: held.named.contains(&id),
            description: description.to_owned(),
            // What was pulled is worth keeping as long as anything else: nothing tells who may ask for it.
            ..UsageRow::new(UsageKind::Blob, id)
        })
    })?;
    rows.collect()
}

fn mount_rows(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<UsageRow>> {
    let mut query = transaction.prepare(
        "SELECT m.dir, m.id, m.created, m.last_used, coalesce(s.bytes, 0)
         FROM mounts m LEFT JOIN mount_sizes s ON s.dir = m.dir",
    )?;
    let rows = query.query_map([], |row| {
        let description: String = row.get(1)?;
        Ok(UsageRow {
            size: unsigned(row.get(4)?),
            created: row.get(2)?,
            last_used: row.get(3)?,
            referenced: !description.is_empty(),
            description: mount_name(&description).to_owned(),
            ..UsageRow::new(UsageKind::CacheMount, row.get(0)?)
        })
    })?;
    rows.collect()
}

/// The id of a cache mount as the Dockerfile has it: BuildKit's namespace, mostly empty, and a slash stand before it.
pub(crate) fn mount_name(id: &str) -> &str {
    id.strip_prefix('/').unwrap_or(id)
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
