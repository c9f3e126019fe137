//! Layers while they are made, and their publication.
//!
//! A layer is stored in overlay's own form: a whiteout is a character device 0:0, an opaque directory has the
//! attribute `trusted.overlay.opaque` or `user.overlay.opaque` (both, where permitted: overlay reads the second when
//! it is mounted with `userxattr`).

use std::io::{self, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::params;
use rustix::fs::{Mode, OFlags};

use crate::context::Verdict;
use crate::digest::LayerId;
use crate::layer_writer::LayerWriter;
use crate::process::Process;
use crate::root::{FileKind, Root, Stat, read_link_at, xattrs_of};
use crate::scan::{self, LinkNumbers, Place, Rules};
use crate::store::{Store, StoreError, failed, layer_place, now, now_ms, tree_place};
use crate::tree::{Entry, Kind, Metadata, Tree};
use crate::whiteout;

const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

/// Whether an attribute is overlay's own: it must never come from an image, nor go into one.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Marks a directory as opaque on disk, in every way that is permitted.
pub(crate) fn mark_opaque(root: &Root, path: &Path) -> io::Result<()> {
    let results = OPAQUE.map(|name| root.set_xattr(path, name, b"y"));
    let (mut marked, mut refused) = (false, None);
    for result in results {
        match result {
            Ok(()) => marked = true,
            Err(error) => refused = Some(error),
        }
    }
    if marked { Ok(()) } else { Err(refused.expect("there is more than one way")) }
}

/// A layer that is being made, in `tmp/`; dropping it removes it.
#[derive(Debug)]
pub struct LayerDraft {
    store: Store,
    process: Arc<Process>,
    name: PathBuf,
    fs: Root,
    path: PathBuf,
}

/// What a draft's folder has: the layer's files, overlay's work directory, and where a step's private mounts begin.
const FS: &str = "fs";
const WORK: &str = "work";
const SCRATCH: &str = "scratch";

impl Store {
    /// Begins a layer: an empty root directory (0755) and an empty work directory for overlay beside it.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn draft(&self) -> Result<LayerDraft, StoreError> {
        let process = self.process()?;
        let used = process.used();
        let is_new = used.is_none();
        let name = used.unwrap_or_else(|| process.fresh());
        let (dir, path) = (process.dir(), process.dir().path().join(&name));
        let make = || {
            if is_new {
                dir.mkdir(&name, 0o700)?;
                dir.mkdir(&name.join(WORK), 0o755)?;
            }
            let fs = name.join(FS);
            dir.mkdir(&fs, 0o755)?;
            dir.chmod(&fs, 0o755)?;
            dir.open_dir(&fs)
        };
        let fs = make().map_err(failed("make", &path))?;
        Ok(LayerDraft { store: self.clone(), process, fs, path, name })
    }
}

impl LayerDraft {
    /// The root directory of the layer's files: overlay's upper directory.
    #[must_use]
    pub fn fs_path(&self) -> &Path {
        self.fs.path()
    }

    /// Overlay's work directory.
    #[must_use]
    pub fn work_path(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// An empty directory, on which a step mounts what is its own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch_path(&self) -> io::Result<PathBuf> {
        match self.process.dir().mkdir(&self.name.join(SCRATCH), 0o755) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(self.path.join(SCRATCH)),
        }
    }

    /// A path for what else belongs to the draft; it is removed with it.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The layer's files, open.
    #[must_use]
    pub fn fs_root(&self) -> &Root {
        &self.fs
    }

    /// The one safe way to make files in the layer. A draft has one writer; share it among threads.
    #[must_use]
    pub fn writer(&self) -> LayerWriter {
        LayerWriter::new(self.fs.clone())
    }

    /// Reads what a command left in overlay's upper directory.
    ///
    /// # Errors
    /// When a file cannot be read, or overlay was mounted with `redirect_dir` or `metacopy`, which have no form in a
    /// layer.
    pub fn scan(&self) -> io::Result<Tree> {
        scan_upper(&self.fs)
    }

    /// Publishes the layer with its tree. When `id` is in the store already, this draft is dropped and the stored
    /// tree returned.
    ///
    /// # Errors
    /// When the disk or the database fails; nothing is visible then.
    pub fn publish(self, id: LayerId, tree: Tree) -> Result<Arc<Tree>, StoreError> {
        let store = &self.store;
        if store.has_layer(&id)? {
            return store.layer_tree(&id);
        }
        let (dir, root) = (self.process.dir(), store.root());
        let encoded = self.name.join("tree");
        dir.create_file(&encoded, 0o644)
            .and_then(|mut file| file.write_all(&tree.encode()))
            .map_err(failed("write the tree of", self.fs.path()))?;
        let lock = store.publish_lock()?;
        if store.has_layer(&id)? {
            // Reading a damaged tree takes the lock to set the layer aside.
            drop(lock);
            return store.layer_tree(&id);
        }
        let path = store.layer_path(&id);
        dir.rename(&encoded, root, &tree_place(&id)).map_err(failed("publish", &path))?;
        let place = layer_place(&id);
        if store.layer_dir_exists(&id) {
            // Left by a process that died between the renames and the commit, or by an earlier boot.
            root.rename(&place, dir, &self.name.join("old")).map_err(failed("replace", &path))?;
        }
        dir.rename(&self.name.join(FS), root, &place).map_err(failed("publish", &path))?;
        self.commit(&id, &tree)?;
        drop(lock);
        let tree = Arc::new(tree);
        store.remember_tree(&id, tree.clone());
        Ok(tree)
    }

    fn commit(&self, id: &LayerId, tree: &Tree) -> Result<(), StoreError> {
        let size = i64::try_from(tree.disk_size()).unwrap_or(i64::MAX);
        let entries = i64::try_from(tree.len()).unwrap_or(i64::MAX);
        self.store.db().write("publish a layer", |transaction| {
            let query = "INSERT OR REPLACE INTO layers
                         (id, content, size, entries, created_ms, last_used, boot)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            transaction
                .prepare_cached(query)?
                .execute(params![
                    id.as_str(),
                    tree.content().as_bytes(),
                    size,
                    entries,
                    now_ms(),
                    now(),
                    self.store.boot()
                ])
                .map(|_| ())
        })
    }

    /// Makes the folder what it was when the layer was begun; false if the layer is not published or something else is
    /// left. File systems look for a free inode the longer the more were removed just before (ext4 passes by each of
    /// them), so that steps which make and remove folders slow each other down.
    fn make_new(&self) -> io::Result<bool> {
        let dir = self.process.dir();
        if dir.read_dir(&self.name)?.iter().any(|item| item.name != WORK && item.name != SCRATCH) {
            return Ok(false);
        }
        let work = self.name.join(WORK);
        for item in dir.read_dir(&work)? {
            dir.remove_all(&work.join(item.name))?;
        }
        Ok(true)
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        if matches!(self.make_new(), Ok(true)) {
            self.process.give_back(mem::take(&mut self.name));
        } else {
            // What cannot be removed is swept when this process is dead.
            let _ = self.process.dir().remove_all(&self.name);
        }
    }
}

/// The tree of a directory in overlay's form.
pub(crate) fn scan_upper(root: &Root) -> io::Result<Tree> {
    let rules = Upper { links: LinkNumbers::default() };
    scan::scan(root, Path::new(""), &rules)
}

/// How an overlay upper directory is read.
struct Upper {
    links: LinkNumbers,
}

impl Upper {
    /// The attributes that belong to the layer, whether the directory is opaque, whether the file stands
    /// for a deletion.
    fn attributes(&self, place: &Place<'_>) -> io::Result<(Xattrs, bool, bool)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = place.name.is_empty();
        let name = if top { std::ffi::OsStr::new(".") } else { place.name };
        let fd = rustix::fs::openat(place.dir, name, flags, Mode::empty())?;
        let mut all = xattrs_of(&fd)?;
        for kind in ["redirect", "metacopy"] {
            for class in ["trusted", "user"] {
                if all.contains_key(format!("{class}.overlay.{kind}").as_bytes()) {
                    let text =
                        format!("overlay was mounted with `{kind}`, which no layer can hold");
                    return Err(io::Error::new(io::ErrorKind::Unsupported, text));
                }
            }
        }
        // Steps are mounted with `userxattr`. To such an overlay `trusted.overlay.opaque` is an
        // ordinary attribute, which a copy-up of an opaque directory carries along: it says nothing.
        let is_opaque = all.get(OPAQUE[1]).is_some_and(|value| value.as_slice() == b"y");
        let is_deletion = whiteout::is_named(all.keys());
        all.retain(|name, _| {
            let foreign = name.starts_with(b"security.") && name != b"security.capability";
            !foreign && !is_overlay_xattr(name)
        });
        Ok((all, is_opaque, is_deletion))
    }
}

type Xattrs = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;

impl Rules for Upper {
    fn verdict(&self, _: &Path, _: bool) -> Verdict {
        Verdict::Include
    }

    fn entry(&self, place: &Place<'_>, stat: &Stat) -> io::Result<Entry> {
        let deletion = Entry { kind: Kind::Whiteout, metadata: Metadata::default(), link_group: 0 };
        if stat.kind == FileKind::CharDevice && stat.rdev == (0, 0) {
            return Ok(deletion);
        }
        let (xattrs, opaque, is_deletion) = self.attributes(place)?;
        if is_deletion && whiteout::may_be(stat) {
            return Ok(deletion);
        }
        let (major, minor) = stat.rdev;
        let kind = match stat.kind {
            FileKind::Directory => Kind::Directory { opaque },
            FileKind::File => {
                let file = scan::open_regular(place.dir, place.name)?;
                let (size, data) = scan::hash_file(&file)?;
                Kind::File { size, data }
            }
            FileKind::Symlink => Kind::Symlink { target: read_link_at(place.dir, place.name)? },
            FileKind::CharDevice => Kind::CharDevice { major, minor },
            FileKind::BlockDevice => Kind::BlockDevice { major, minor },
            FileKind::Fifo => Kind::Fifo,
            FileKind::Socket => Kind::Socket,
        };
        let Stat { mode, uid, gid, mtime, .. } = *stat;
        let metadata = Metadata { mode, uid, gid, mtime, xattrs };
        Ok(Entry { kind, metadata, link_group: self.links.of(stat) })
    }
}
