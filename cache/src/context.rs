//! A view over a directory of the host: a build context.
//!
//! It is read when somebody asks, and no more than was asked for: an entry or a listing of names costs a `stat` each,
//! [`View::children`] and [`View::digest`] scan their subtree with all processors and keep it, so that later questions
//! get the same answers. Filters decide what is in it. Owner and group are 0; sockets are empty files; extended
//! attributes and hard links are not taken over, since a checkout elsewhere would not have them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::digest::ContentDigest;
use crate::root::{FileKind, Root, Stat, check_path, read_link_at};
use crate::scan::{self, LinkNumbers, Place, Rules};
use crate::stat_cache::StatCache;
use crate::store::{Store, StoreError, failed};
use crate::tree::{Entry, Kind, Metadata, NodeRef, Tree};
use crate::view::{FileIdentity, LARGE, View, ViewEntry, file_kind, not_found};

/// A file that changes this often while it is read is taken as it was read last.
const ATTEMPTS: usize = 3;

/// What a filter says of a path in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Include,
    /// Neither it nor anything beneath.
    Exclude,
    /// A directory that is there only if something beneath is.
    ExcludeButDescend,
}

/// Decides what of a directory belongs to the context (`.dockerignore`).
pub trait ScanFilter: Send + Sync {
    /// Asked for each path whose parent is descended into; never for the root.
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict;
}

/// A view over a directory of the host, filtered.
pub struct Context {
    store: Store,
    root: Root,
    name: String,
    filter: Arc<dyn ScanFilter>,
    cache: StatCache,
    /// Scanned subtrees by path, each with a number: its hard links are named by it.
    scanned: Mutex<HashMap<PathBuf, (Arc<Tree>, u32)>>,
    memo: Mutex<Memo>,
    error: Mutex<Option<io::Error>>,
}

/// The state in which this process hashed a file, and that of every large one.
type Memo = HashMap<PathBuf, (FileIdentity, [u8; 32])>;

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("name", &self.name).field("root", &self.root).finish()
    }
}

impl Context {
    /// A view of the directory `dir`; `name` is for messages.
    ///
    /// # Errors
    /// When `dir` cannot be opened.
    pub fn open(
        store: &Store,
        dir: &Path,
        name: &str,
        filter: Arc<dyn ScanFilter>,
    ) -> Result<Self, StoreError> {
        let open = || {
            let dir = std::fs::canonicalize(dir)?;
            let root = Root::open(&dir)?;
            Stat::of(root.as_fd()).map(|stat| (root, stat))
        };
        let (root, stat) = open().map_err(failed("open the context", dir))?;
        let cache = StatCache::open(store, stat.device, stat.inode, root.path());
        Ok(Self {
            store: store.clone(),
            root,
            name: name.to_owned(),
            filter,
            cache,
            scanned: Mutex::default(),
            memo: Mutex::default(),
            error: Mutex::default(),
        })
    }
}

/// How a context's files become entries, for one scan.
struct Reader<'a> {
    context: &'a Context,
    links: LinkNumbers,
}

impl<'a> Reader<'a> {
    fn new(context: &'a Context) -> Self {
        Self { context, links: LinkNumbers::default() }
    }
}

impl Rules for Reader<'_> {
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
        self.context.filter.verdict(path, is_dir)
    }

    fn entry(&self, place: &Place<'_>, stat: &Stat) -> io::Result<Entry> {
        let (major, minor) = stat.rdev;
        let kind = match stat.kind {
            FileKind::Directory => Kind::Directory { opaque: false },
            FileKind::File => {
                let (size, data) = self.context.data(place, stat)?;
                Kind::File { size, data }
            }
            FileKind::Socket => Kind::File { size: 0, data: *blake3::hash(b"").as_bytes() },
            FileKind::Symlink => Kind::Symlink { target: read_link_at(place.dir, place.name)? },
            FileKind::CharDevice => Kind::CharDevice { major, minor },
            FileKind::BlockDevice => Kind::BlockDevice { major, minor },
            FileKind::Fifo => Kind::Fifo,
        };
        let Stat { mode, mtime, .. } = *stat;
        let metadata = Metadata { mode, mtime, ..Metadata::default() };
        Ok(Entry { kind, metadata, link_group: self.links.of(stat) })
    }
}

impl Context {
    /// Size and blake3 of a file's data: remembered, or read now.
    fn data(&self, place: &Place<'_>, stat: &Stat) -> io::Result<(u64, [u8; 32])> {
        let identity = FileIdentity::of(stat);
        if let Some(data) = self.cache.get(place.dir_path, place.name, &identity) {
            if identity.size >= LARGE {
                self.memo().insert(place.dir_path.join(place.name), (identity, data));
            }
            return Ok((identity.size, data));
        }
        let path = place.dir_path.join(place.name);
        if let Some((known, data)) = self.memo().get(&path)
            && *known == identity
        {
            return Ok((identity.size, *data));
        }
        let file = scan::open_regular(place.dir, place.name)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let before = FileIdentity::of(&Stat::of(&file)?);
            let (size, data) = scan::hash_file(&file)?;
            let after = FileIdentity::of(&Stat::of(&file)?);
            let quiet = before == after && size == after.size;
            if quiet {
                self.cache.put(&path, after, data, i128::try_from(now).unwrap_or(0));
            }
            if quiet || attempt == ATTEMPTS {
                self.memo().insert(path, (before, data));
                return Ok((size, data));
            }
        }
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, path: &Path, error: io::Error) {
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            let text = format!("`{}` in {}: {error}", path.display(), self.name);
            let error = io::Error::new(error.kind(), text);
            let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
        }
    }

    /// The scanned tree that `path` is in, and the path within it.
    fn covered<'p>(&self, path: &'p Path) -> Option<(Arc<Tree>, &'p Path)> {
        self.numbered(path).map(|(tree, inside, _)| (tree, inside))
    }

    /// The same with the tree's number. Of several trees the largest counts: names of one file that
    /// are in different parts of it are found to be one.
    fn numbered<'p>(&self, path: &'p Path) -> Option<(Arc<Tree>, &'p Path, u32)> {
        let scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner);
        let trees = path.ancestors().filter_map(|ancestor| {
            let (tree, number) = scanned.get(ancestor)?.clone();
            Some((tree, path.strip_prefix(ancestor).unwrap_or(Path::new("")), number))
        });
        trees.last()
    }

    /// Whether a scanned directory is there at all: one that the filter leaves out is, only with something in it.
    fn is_present(&self, path: &Path, tree: &Tree) -> bool {
        !tree.is_empty() || self.verdict(path, true) == Verdict::Include
    }

    /// Whether the filter lets everything above `path` be descended into.
    fn is_reachable(&self, path: &Path) -> bool {
        let above = path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        above.into_iter().all(|path| self.filter.verdict(path, true) != Verdict::Exclude)
    }

    /// What the filter says of a path that exists.
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
        if path.as_os_str().is_empty() {
            return Verdict::Include;
        }
        self.filter.verdict(path, is_dir)
    }

    /// Scans the directory at `path`, once. No lock is held meanwhile: a thread that waits for the scan's other
    /// threads may be given work that asks this same context.
    fn scan(&self, path: &Path) -> io::Result<Arc<Tree>> {
        let tree = Arc::new(scan::scan(&self.root, path, &Reader::new(self))?);
        let tree = {
            let mut scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner);
            let number = u32::try_from(scanned.len()).unwrap_or(u32::MAX);
            scanned.entry(path.to_owned()).or_insert((tree, number)).0.clone()
        };
        self.cache.save(&self.store, |path| self.is_gone(path));
        Ok(tree)
    }

    /// Whether a file that the stat cache knows was not found where this context looked.
    fn is_gone(&self, path: &Path) -> bool {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return true };
        let Some((tree, dir)) = self.covered(dir) else { return false };
        match tree.node(dir) {
            Some(dir) => dir.child(name).is_none(),
            // Left out by this build's filter, or gone with its directory.
            None => self.root.stat(path).is_err(),
        }
    }

    /// The scanned subtree at `path`, when that is a directory of the context.
    fn subtree(&self, path: &Path) -> io::Result<Option<(Arc<Tree>, PathBuf)>> {
        check_path(path)?;
        if let Some((tree, inside)) = self.covered(path) {
            let there = !inside.as_os_str().is_empty() || self.is_present(path, &tree);
            return Ok(there.then(|| (tree, inside.to_owned())));
        }
        if !self.is_reachable(path) || self.verdict(path, true) == Verdict::Exclude {
            return Ok(None);
        }
        match self.root.stat(path) {
            Ok(stat) if stat.kind == FileKind::Directory => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let tree = self.scan(path)?;
        Ok(self.is_present(path, &tree).then(|| (tree, PathBuf::new())))
    }

    fn read_entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        check_path(path)?;
        if let Some((tree, inside)) = self.covered(path) {
            let there = !inside.as_os_str().is_empty() || self.is_present(path, &tree);
            return Ok(tree.lookup(inside).filter(|_| there).cloned());
        }
        if !self.is_reachable(path) {
            return Ok(None);
        }
        let stat = self.root.stat(path)?;
        let is_dir = stat.kind == FileKind::Directory;
        match self.verdict(path, is_dir) {
            Verdict::Include => {}
            Verdict::ExcludeButDescend if is_dir && !self.scan(path)?.is_empty() => {}
            _ => return Ok(None),
        }
        let (dir_path, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => (Path::new(""), OsStr::new("")),
        };
        let dir: OwnedFd = self.root.open_at(dir_path, OFlags::PATH | OFlags::DIRECTORY)?;
        let entry = Reader::new(self).entry(&Place { dir: &dir, dir_path, name }, &stat)?;
        // Alone it is a file like any other, however many names it has.
        Ok(Some(Entry { link_group: 0, ..entry }))
    }

    fn view_entry(&self, path: &Path, entry: Entry) -> ViewEntry {
        let identity = match entry.kind {
            Kind::File { size, .. } if size >= LARGE => {
                self.memo().get(path).map(|(identity, _)| *identity)
            }
            _ => None,
        };
        let linked = (entry.link_group != 0).then(|| self.numbered(path)).flatten();
        let origin = linked.map_or(0, |(_, _, number)| number);
        ViewEntry { entry, origin, identity }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        check_path(path)?;
        if let Some((tree, inside)) = self.covered(path) {
            let children = tree.children(inside);
            let named = children.map(|(name, entry)| (name.to_owned(), file_kind(&entry.kind)));
            return Ok(named.collect());
        }
        if !self.is_reachable(path) || self.verdict(path, true) == Verdict::Exclude {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for item in self.root.read_dir(path)? {
            let child = path.join(&item.name);
            let is_dir = item.kind == FileKind::Directory;
            let there = match self.filter.verdict(&child, is_dir) {
                Verdict::Include => true,
                Verdict::Exclude => false,
                Verdict::ExcludeButDescend => is_dir && !self.scan(&child)?.is_empty(),
            };
            if there {
                let kind = if item.kind == FileKind::Socket { FileKind::File } else { item.kind };
                names.push((item.name, kind));
            }
        }
        Ok(names)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.cache.save(&self.store, |path| self.is_gone(path));
    }
}

impl View for Context {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        match self.read_entry(path) {
            Ok(entry) => entry.map(|entry| self.view_entry(path, entry)),
            Err(error) => {
                self.note(path, error);
                None
            }
        }
    }

    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        match self.subtree(path) {
            Ok(None) => Vec::new(),
            Ok(Some((tree, inside))) => {
                let children = tree.children(&inside);
                let entries = children.map(|(name, entry)| {
                    (name.to_owned(), self.view_entry(&path.join(name), entry.clone()))
                });
                entries.collect()
            }
            Err(error) => {
                self.note(path, error);
                Vec::new()
            }
        }
    }

    fn names(&self, path: &Path) -> Vec<(OsString, FileKind)> {
        self.list(path).unwrap_or_else(|error| {
            self.note(path, error);
            Vec::new()
        })
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        check_path(path)?;
        let there = match self.covered(path) {
            Some((tree, inside)) => tree.lookup(inside).is_some(),
            None => self.is_reachable(path) && self.verdict(path, false) == Verdict::Include,
        };
        if !there {
            return Err(not_found(path));
        }
        self.root.open_file(path).or_else(|error| {
            // The socket that stands here as an empty file cannot be opened.
            if self.root.stat(path)?.kind == FileKind::Socket {
                return File::open("/dev/null");
            }
            Err(error)
        })
    }

    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        if let Some((tree, inside)) = self.subtree(path)? {
            return tree.digest(&inside).ok_or_else(|| not_found(path));
        }
        let entry = self.read_entry(path)?.ok_or_else(|| not_found(path))?;
        Ok(crate::tree_digest::leaf(&entry))
    }

    fn digest_inside(&self, path: &Path) -> io::Result<ContentDigest> {
        match self.subtree(path)? {
            Some((tree, inside)) => {
                let top = tree.node(&inside).filter(|top| top.entry().is_dir());
                top.map(NodeRef::digest_inside).ok_or_else(|| not_found(path))
            }
            None => Err(not_found(path)),
        }
    }

    fn take_error(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Filter(fn(&str, bool) -> Verdict);

    impl ScanFilter for Filter {
        fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
            (self.0)(path.to_str().unwrap(), is_dir)
        }
    }

    fn all(_: &str, _: bool) -> Verdict {
        Verdict::Include
    }

    struct Fixture {
        store: tempfile::TempDir,
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { store: tempfile::tempdir().unwrap(), dir: tempfile::tempdir().unwrap() }
        }

        fn write(&self, path: &str, data: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        }

        /// Makes every file look as if it had been changed last an hour ago: ctime cannot be set, so this waits.
        fn settle(&self) {
            std::thread::sleep(std::time::Duration::from_millis(2100));
        }

        fn open(&self, filter: fn(&str, bool) -> Verdict) -> Context {
            let store = Store::open(self.store.path()).unwrap();
            Context::open(&store, self.dir.path(), "context", Arc::new(Filter(filter))).unwrap()
        }
    }

    fn names(context: &Context, path: &str) -> Vec<String> {
        let children = context.names(Path::new(path)).into_iter();
        children.map(|(name, _)| name.into_string().unwrap()).collect()
    }

    #[test]
    fn filter_decides() {
        let fixture = Fixture::new();
        for path in ["a", "skip/x", "skip/keep", "empty/x", "src/main", "src/skip/y"] {
            fixture.write(path, path);
        }
        let filter = |path: &str, is_dir: bool| match path {
            "skip" | "empty" if is_dir => Verdict::ExcludeButDescend,
            "skip/keep" => Verdict::Include,
            _ if path.starts_with("skip") || path.starts_with("empty") => Verdict::Exclude,
            "src/skip" => Verdict::Exclude,
            _ => Verdict::Include,
        };
        let lazy = fixture.open(filter);
        let full = fixture.open(filter);
        full.digest(Path::new("")).unwrap();
        for context in [&lazy, &full] {
            assert_eq!(names(context, ""), ["a", "skip", "src"]);
            assert_eq!(names(context, "src"), ["main"]);
            assert_eq!(names(context, "skip"), ["keep"]);
            assert!(context.entry(Path::new("src/skip/y")).is_none());
            assert!(context.entry(Path::new("empty")).is_none());
            assert!(context.entry(Path::new("skip")).is_some());
            assert!(context.entry(Path::new("skip/keep")).is_some());
            assert!(context.open(Path::new("skip/x")).is_err());
            assert!(context.open(Path::new("src/skip/y")).is_err());
            assert!(context.open(Path::new("a")).is_ok());
        }
        for path in ["", "src", "skip", "a"] {
            let path = Path::new(path);
            assert_eq!(lazy.digest(path).unwrap(), full.digest(path).unwrap(), "{path:?}");
        }
    }

    #[test]
    fn owner_and_time_do_not_count_but_data_and_mode_do() {
        let fixture = Fixture::new();
        fixture.write("d/f", "1");
        let digest = || fixture.open(all).digest(Path::new("")).unwrap();
        let first = digest();
        let path = fixture.dir.path().join("d/f");
        std::os::unix::fs::chown(&path, Some(7), Some(7)).unwrap();
        fixture.write("d/f", "1");
        assert_eq!(digest(), first);
        fixture.write("d/f", "2");
        assert_ne!(digest(), first);
        fixture.write("d/f", "1");
        assert_eq!(digest(), first);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        assert_ne!(digest(), first);
    }

    #[test]
    fn what_is_inside_a_folder_does_not_depend_on_its_mode() {
        let fixture = Fixture::new();
        fixture.write("d/f", "1");
        let chmod = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(fixture.dir.path().join("d"), mode).unwrap();
        };
        let both = || {
            let context = fixture.open(all);
            let path = Path::new("d");
            (context.digest(path).unwrap(), context.digest_inside(path).unwrap())
        };
        chmod(0o755);
        let (whole, inside) = both();
        assert_eq!(whole, inside, "the keys of most folders stay as they were");
        chmod(0o700);
        assert_ne!(both().0, whole);
        assert_eq!(both().1, inside);
        fixture.write("d/f", "2");
        assert_ne!(both().1, inside);
    }

    #[test]
    fn never_leaves_the_context() {
        let fixture = Fixture::new();
        fixture.write("inside", "x");
        symlink("/etc", fixture.dir.path().join("link")).unwrap();
        symlink("/etc/passwd", fixture.dir.path().join("file")).unwrap();
        let context = fixture.open(all);
        assert!(context.open(Path::new("link/passwd")).is_err());
        assert!(context.open(Path::new("file")).is_err());
        assert!(context.entry(Path::new("link/passwd")).is_none());
        assert!(context.entry(Path::new("../inside")).is_none());
        assert!(context.open(Path::new("../../etc/passwd")).is_err());
        assert!(matches!(
            context.entry(Path::new("link")).unwrap().entry.kind,
            Kind::Symlink { target } if target == Path::new("/etc")
        ));
    }

    #[test]
    fn stat_cache_believes_only_what_is_settled() {
        let fixture = Fixture::new();
        fixture.write("d/old", "1");
        fixture.write("d/large", &"x".repeat(2 << 20));
        fixture.settle();
        let first = fixture.open(all).digest(Path::new("")).unwrap();
        let again = fixture.open(all);
        assert_eq!(again.digest(Path::new("")).unwrap(), first);
        assert_eq!(again.memo().len(), 1, "only the large file's identity");
        assert!(again.entry(Path::new("d/large")).unwrap().identity.is_some());
        // Same size, and the old mtime set back: ctime tells.
        let path = fixture.dir.path().join("d/old");
        let times = std::fs::metadata(&path).unwrap().modified().unwrap();
        fixture.write("d/old", "2");
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        let changed = fixture.open(all);
        assert_ne!(changed.digest(Path::new("")).unwrap(), first);
        // Too young to be believed next time.
        drop(changed);
        let young = fixture.open(all);
        young.digest(Path::new("")).unwrap();
        assert!(young.memo().contains_key(Path::new("d/old")));
    }

    #[test]
    fn a_damaged_stat_cache_is_none() {
        let fixture = Fixture::new();
        fixture.write("f", "1");
        fixture.settle();
        let first = fixture.open(all).digest(Path::new("")).unwrap();
        let contexts = fixture.store.path().join("contexts");
        for item in std::fs::read_dir(contexts).unwrap() {
            let path = item.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
        let again = fixture.open(all);
        assert_eq!(again.digest(Path::new("")).unwrap(), first);
        assert_eq!(again.memo().len(), 1);
    }
}
