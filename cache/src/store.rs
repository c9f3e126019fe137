//! The store: opening it, its layout, stored layers.
//!
//! Opening does next to nothing: a directory handle, a database connection, one number read. Folders are made when the
//! database is not there; what dead processes left is swept when a process begins to write (`process.rs`).

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension, params};

use crate::builds;
use crate::db::{self, Db};
use crate::digest::{ContentDigest, Digest, LayerId};
use crate::process::{LockFile, Process};
use crate::quarantine::Damage;
use crate::reserve;
use crate::root::Root;
use crate::tree::Tree;

/// Data that is older than this has most likely been written back by the kernel: syncing it costs little.
const SETTLED: Duration = Duration::from_secs(60);
/// A tree takes 50 to 100 bytes an entry; more than this is no tree of ours.
const TREE_LIMIT: u64 = 4 << 30;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database.
    #[error("cannot {operation} in the store's database: {source}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The store was made by a newer Kiln; it is left untouched.
    #[error(
        "the store `{}` was made by a newer version (format {found}, this version knows {known})",
        path.display()
    )]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// A layer that is not in the store.
    #[error("layer `{id}` is not in the store")]
    MissingLayer {
        /// Its id.
        id: LayerId,
    },
    /// A tree that cannot be read.
    #[error("the tree of layer `{id}` is damaged: {reason}")]
    DamagedTree {
        /// Its layer.
        id: LayerId,
        /// What is wrong.
        reason: String,
    },
    /// A blob that is not what was expected.
    #[error(
        "blob `{expected}` is damaged or was not sent whole: it hashes to `{actual}` ({size} bytes)"
    )]
    DigestMismatch {
        /// What was expected.
        expected: Digest,
        /// What came.
        actual: Digest,
        /// Bytes.
        size: u64,
    },
}

/// Makes an `io::Error` a [`StoreError`]: `.map_err(failed("open", &path))`.
pub(crate) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

/// The store on disk; clones share everything.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: Root,
    db: Db,
    boot: String,
    process: Mutex<Option<Arc<Process>>>,
    trees: Mutex<HashMap<LayerId, Arc<Tree>>>,
    damage: Mutex<Vec<Damage>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.db.wrote() && self.db.checkpoint() {
            // Every now and then: builds whose steps are all cached come by here alone.
            builds::forget_old(&self.db, &self.root);
        }
    }
}

/// SQLite takes paths of 512 bytes, with `/kiln.db` and the suffix of a journal.
const PATH_BYTES: usize = 512 - "/kiln.db-journal".len();

const FOLDERS: &[&str] = &[
    "blobs",
    "blobs/sha256",
    "blobs/sha512",
    "layers",
    "trees",
    "contexts",
    "mounts",
    "locks",
    "tmp",
];

impl Store {
    /// Opens the store at `path`, making it when there is none.
    ///
    /// # Errors
    /// When it cannot be made or opened, or a newer Kiln made it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(failed("find", path))?;
        if path.as_os_str().len() > PATH_BYTES {
            let text = format!("its path is longer than {PATH_BYTES} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidFilename, text);
            return Err(failed("open the store", &path)(error));
        }
        let boot = boot_id();
        let database = path.join("kiln.db");
        let opened = Root::open(&path).and_then(|root| {
            // SQLite cannot tell a missing file from a missing folder.
            root.stat(Path::new("kiln.db")).map(|_| root)
        });
        if let Ok(root) = &opened
            && root.stat(Path::new(db::SUSPECT)).is_ok()
        {
            set_suspect_aside(root)?;
        }
        let (root, db) = match opened {
            Ok(root) => match Db::open(&database, &path, false) {
                Err(error) if db::is_damage(&error) => {
                    set_aside(&root, error)?;
                    let root = initialise(&path)?;
                    (root, Db::open(&database, &path, true)?)
                }
                Err(error) if db::is_missing(&error) => {
                    (initialise(&path)?, Db::open(&database, &path, true)?)
                }
                result => (root, result?),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (initialise(&path)?, Db::open(&database, &path, true)?)
            }
            Err(error) => return Err(failed("open the store", &path)(error)),
        };
        let (process, trees, damage) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { root, db, boot, process, trees, damage }) })
    }

    /// The store's folder, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.inner.root.path()
    }

    pub(crate) fn damage(&self) -> &Mutex<Vec<Damage>> {
        &self.inner.damage
    }

    pub(crate) fn root(&self) -> &Root {
        &self.inner.root
    }

    pub(crate) fn db(&self) -> &Db {
        &self.inner.db
    }

    /// This boot of the machine, which rows carry until their data was synced.
    pub(crate) fn boot(&self) -> &str {
        &self.inner.boot
    }

    /// What this process has in `tmp/`; the first call makes it and sweeps, in a thread, what dead processes left.
    pub(crate) fn process(&self) -> Result<Arc<Process>, StoreError> {
        let mut slot = self.inner.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = &*slot {
            return Ok(process.clone());
        }
        let path = self.path().join("tmp");
        let tmp = self.root().open_dir(Path::new("tmp")).map_err(failed("open", &path))?;
        let made = Process::new(tmp.clone()).map_err(failed("make a folder in", &path))?;
        let (process, dead) = (Arc::new(made.0), made.1);
        *slot = Some(process.clone());
        drop(slot);
        let store = self.clone();
        // Where threads are scarce, another process does it.
        let _tidied = std::thread::Builder::new().spawn(move || store.tidy(&tmp, &dead));
        Ok(process)
    }

    /// Off every path: nobody waits for it, and a process that ends in the middle loses nothing.
    fn tidy(&self, tmp: &Root, dead: &[PathBuf]) {
        for name in dead {
            let _ = tmp.remove_all(name);
        }
        builds::forget_old(self.db(), self.root());
        let _ = self.forget_old_failures();
        self.empty_quarantine();
        let limit = now_ms() - i64::try_from(SETTLED.as_millis()).unwrap_or(i64::MAX);
        let settled = self.db().read("look for unsynced data", |connection| {
            let query = "SELECT EXISTS (SELECT 1 FROM layers WHERE boot = ?1 AND created_ms < ?2)
                             OR EXISTS (SELECT 1 FROM blobs WHERE boot = ?1 AND created_ms < ?2)";
            connection.query_row(query, params![self.boot(), limit], |row| row.get(0))
        });
        if settled.unwrap_or(false) {
            let _ = self.sync();
        }
    }

    /// Serialises what is published: held from the first rename to the commit.
    pub(crate) fn publish_lock(&self) -> Result<LockFile, StoreError> {
        let name = Path::new("locks/publish");
        LockFile::wait(self.root(), name).map_err(failed("lock", &self.path().join(name)))
    }

    /// Whether the layer is there, whole.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        Ok(self.layer_content(id)?.is_some() && self.layer_dir_exists(id))
    }

    pub(crate) fn layer_dir_exists(&self, id: &LayerId) -> bool {
        self.root().stat(&layer_place(id)).is_ok()
    }

    /// The layer's files: an overlay lower directory.
    #[must_use]
    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.path().join(layer_place(id))
    }

    /// The layer's files, open.
    ///
    /// # Errors
    /// When they are not there.
    pub fn layer_root(&self, id: &LayerId) -> Result<Root, StoreError> {
        self.root().open_dir(&layer_place(id)).map_err(|error| self.missing(id, error))
    }

    fn missing(&self, id: &LayerId, error: io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::NotFound {
            return StoreError::MissingLayer { id: id.clone() };
        }
        failed("open", &self.layer_path(id))(error)
    }

    /// The layer's tree; read once a process. A layer whose tree is damaged is set aside.
    ///
    /// # Errors
    /// [`StoreError::MissingLayer`] or [`StoreError::DamagedTree`].
    pub fn layer_tree(&self, id: &LayerId) -> Result<Arc<Tree>, StoreError> {
        let trees = || self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = trees().get(id) {
            return Ok(tree.clone());
        }
        let Some(content) = self.layer_content(id)? else {
            return Err(StoreError::MissingLayer { id: id.clone() });
        };
        let tree = match self.read_tree(id, &content) {
            Ok(tree) => Arc::new(tree),
            Err(reason) => {
                self.quarantine_layer(id, &reason)?;
                return Err(StoreError::DamagedTree { id: id.clone(), reason });
            }
        };
        Ok(trees().entry(id.clone()).or_insert(tree).clone())
    }

    /// The tree on disk, or what is wrong with it.
    pub(crate) fn read_tree(&self, id: &LayerId, content: &ContentDigest) -> Result<Tree, String> {
        let read = read_limited(self.root(), &tree_place(id), TREE_LIMIT);
        let bytes = read.map_err(|error| error.to_string())?;
        let tree = Tree::decode(&bytes).map_err(|error| error.to_string())?;
        let other = || "it is the tree of other files".to_owned();
        if tree.content() == *content { Ok(tree) } else { Err(other()) }
    }

    pub(crate) fn remember_tree(&self, id: &LayerId, tree: Arc<Tree>) {
        let mut trees = self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.insert(id.clone(), tree);
    }

    pub(crate) fn forget_tree(&self, id: &LayerId) {
        self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The content of a layer without reading its tree; `None` when it is not there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer_content(&self, id: &LayerId) -> Result<Option<ContentDigest>, StoreError> {
        self.db().read("look up a layer", |connection| {
            let query = "SELECT content FROM layers WHERE id = ?1 AND (boot IS NULL OR boot = ?2)";
            let mut statement = connection.prepare_cached(query)?;
            let row = statement.query_row([id.as_str(), self.boot()], |row| row.get(0));
            row.optional().map(|content| content.map(ContentDigest::from_bytes))
        })
    }

    /// A step's layer with this content, the oldest if there are several (early cut-off).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find_layer(&self, content: &ContentDigest) -> Result<Option<LayerId>, StoreError> {
        let ids = self.db().read("look for a layer", |connection| {
            let query = "SELECT id FROM layers WHERE content = ?1 AND (boot IS NULL OR boot = ?2)
                         ORDER BY created_ms";
            let mut statement = connection.prepare_cached(query)?;
            let rows = statement.query_map(params![content.as_bytes(), self.boot()], |row| {
                row.get::<_, String>(0)
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let ids = ids.into_iter().filter_map(|id| id.parse::<LayerId>().ok());
        Ok(ids.filter(|id| !id.is_image()).find(|id| self.layer_dir_exists(id)))
    }

    /// Makes everything so far survive a power cut (`syncfs`): for the end of a build, off the path of its steps.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        let before = now_ms();
        rustix::fs::syncfs(self.root().as_fd())
            .map_err(|error| failed("sync", self.path())(error.into()))?;
        self.db().write("note what is synced", |transaction| {
            for table in ["layers", "blobs"] {
                let query =
                    format!("UPDATE {table} SET boot = NULL WHERE boot = ?1 AND created_ms < ?2");
                transaction.execute(&query, params![self.boot(), before])?;
            }
            Ok(())
        })
    }
}

/// `layers/<id>`
pub(crate) fn layer_place(id: &LayerId) -> PathBuf {
    Path::new("layers").join(id.as_str())
}

/// `trees/<id>`
pub(crate) fn tree_place(id: &LayerId) -> PathBuf {
    Path::new("trees").join(id.as_str())
}

/// Reads a whole file of the store.
pub(crate) fn read_limited(root: &Root, place: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let file = root.open_file(place)?;
    let size = file.metadata()?.len();
    if size > limit {
        let text = format!("{size} bytes, the limit is {limit}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn now() -> i64 {
    now_ms() / 1000
}

fn boot_id() -> String {
    // Where there is no /proc, every boot is the same one: as good as any other file system without a journal.
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Makes the folders and documents that are missing.
fn initialise(path: &Path) -> Result<Root, StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |source| failed("make the store", path)(source);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(make)?;
    let root = Root::open(path).map_err(make)?;
    for folder in FOLDERS {
        match root.mkdir(Path::new(folder), 0o755) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(failed("make", &path.join(folder)))?,
        }
    }
    let documents = [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        (
            "index.json",
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
        ),
    ];
    for (name, text) in documents {
        let target = Path::new(name);
        if root.stat(target).is_ok() {
            continue;
        }
        // Made under a name of its own and linked: another process may be at it too.
        let draft = PathBuf::from(format!("tmp/{}", LayerId::random()));
        let made = root
            .create_file(&draft, 0o644)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| match root.hardlink(&draft, target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            });
        let _ = root.remove_file(&draft);
        made.map_err(failed("make", &path.join(name)))?;
    }
    reserve::make(&root);
    Ok(root)
}

/// Moves a broken database aside: what it knew can be found out again, at the price of time.
fn set_aside(root: &Root, error: StoreError) -> Result<(), StoreError> {
    let _lock =
        LockFile::wait(root, Path::new("locks/database")).map_err(failed("lock", root.path()))?;
    let database = root.path().join("kiln.db");
    match Db::open(&database, root.path(), false) {
        Err(again) if db::is_damage(&again) => {}
        Err(again) if db::is_missing(&again) => return Ok(()),
        // Another process has set it aside already.
        Ok(_) => return Ok(()),
        Err(_) => return Err(error),
    }
    move_aside(root)
}

/// Moves a database aside in which somebody came upon damage, should it still be there.
fn set_suspect_aside(root: &Root) -> Result<(), StoreError> {
    let _lock =
        LockFile::wait(root, Path::new("locks/database")).map_err(failed("lock", root.path()))?;
    let suspect = Path::new(db::SUSPECT);
    if root.stat(suspect).is_err() {
        return Ok(());
    }
    let whole =
        Db::open(&root.path().join("kiln.db"), root.path(), false).and_then(|db| db.is_whole());
    if !whole.unwrap_or(false) {
        move_aside(root)?;
    }
    root.remove_file(suspect).map_err(failed("remove", &root.path().join(suspect)))
}

fn move_aside(root: &Root) -> Result<(), StoreError> {
    let database = root.path().join("kiln.db");
    for suffix in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("kiln.db{suffix}"));
        let to = PathBuf::from(format!("kiln.db.damaged{suffix}"));
        match root.rename(&from, root, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(failed("set aside", &database))?,
        }
    }
    Ok(())
}
