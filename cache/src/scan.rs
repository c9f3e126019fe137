//! From a directory on disk to a tree, with all processors.
//!
//! Each directory is a task of its own and large ones are several, so that depth costs no stack and width is shared
//! out. Results go into slots (one a directory) and are put together at the end, breadth first, as the tree has them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::context::Verdict;
use crate::root::{DirItem, FileKind, Root, Stat, read_dir_fd};
use crate::tree::{Arena, Entry, Kind, Tree};

/// A directory with more entries than this is shared out.
const CHUNK: usize = 256;
/// A tree with fewer entries and fewer bytes than these is read by the calling thread: what most steps write is
/// read before another thread would have woken.
const ALONE: (usize, u64) = (128, 4 << 20);

/// What decides how files become entries.
pub(crate) trait Rules: Sync {
    /// Whether a path belongs to the tree.
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict;

    /// The entry of a file, told by its open directory, that directory's path, and its name.
    fn entry(&self, place: &Place<'_>, stat: &Stat) -> io::Result<Entry>;
}

/// Where a file is found.
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a OwnedFd,
    pub(crate) dir_path: &'a Path,
    pub(crate) name: &'a OsStr,
}

struct Child {
    name: OsString,
    entry: Entry,
    /// The slot of a directory.
    slot: Option<usize>,
    /// A directory that is there only if something beneath is.
    tentative: bool,
}

/// A piece of work.
enum Work {
    Directory { path: PathBuf, slot: usize, open: Option<Arc<OwnedFd>> },
    Chunk { path: PathBuf, dir: Arc<OwnedFd>, items: Vec<DirItem>, slot: usize },
}

/// What a piece of work came to.
#[derive(Default)]
struct Done {
    more: Vec<Work>,
    entries: usize,
    bytes: u64,
}

struct Scan<'r, R> {
    root: &'r Root,
    rules: &'r R,
    slots: Mutex<Vec<Vec<Child>>>,
    error: Mutex<Option<io::Error>>,
}

/// Scans the directory `start` beneath `root`; paths given to the rules are relative to `root`, those of the tree to
/// `start`.
pub(crate) fn scan<R: Rules>(root: &Root, start: &Path, rules: &R) -> io::Result<Tree> {
    let fd = Arc::new(root.open_at(start, OFlags::RDONLY | OFlags::DIRECTORY)?);
    let place = Place { dir: &fd, dir_path: start, name: OsStr::new("") };
    let top = rules.entry(&place, &Stat::of(&fd)?)?;
    let scan = Scan { root, rules, slots: Mutex::new(vec![Vec::new()]), error: Mutex::new(None) };
    let first = Work::Directory { path: start.to_owned(), slot: 0, open: Some(fd) };
    let rest = scan.begin(first);
    if !rest.is_empty() {
        rayon::scope(|scope| rest.into_iter().for_each(|work| scan.spread(scope, work)));
    }
    if let Some(error) = scan.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    Ok(assemble(top, scan.slots.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

impl<'r, R: Rules> Scan<'r, R> {
    fn fail(&self, path: &Path, error: &io::Error) {
        let text = format!("`{}`: {error}", path.display());
        let error = io::Error::new(error.kind(), text);
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }

    /// Works alone for as long as that is quick; gives what is left.
    fn begin(&self, first: Work) -> Vec<Work> {
        let (mut open, mut entries, mut bytes) = (vec![first], 0, 0);
        while entries < ALONE.0
            && bytes < ALONE.1
            && let Some(work) = open.pop()
        {
            let done = self.perform(work);
            entries += done.entries;
            bytes += done.bytes;
            open.extend(done.more);
        }
        open
    }

    /// Does a piece of work, and what comes of it in other threads.
    fn spread<'s>(&'s self, scope: &rayon::Scope<'s>, work: Work) {
        for more in self.perform(work).more {
            scope.spawn(move |scope| self.spread(scope, more));
        }
    }

    /// Does a piece of work, and says what comes of it.
    fn perform(&self, work: Work) -> Done {
        match work {
            Work::Directory { path, slot, open } => self.directory(path, slot, open),
            Work::Chunk { path, dir, items, slot } => self.chunk(&path, &dir, items, slot),
        }
    }

    fn directory(&self, path: PathBuf, slot: usize, open: Option<Arc<OwnedFd>>) -> Done {
        let opened = match open {
            Some(fd) => Ok(fd),
            None => self.root.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY).map(Arc::new),
        };
        let listed = opened.and_then(|fd| Ok((read_dir_fd(&fd)?, fd)));
        let (mut items, dir) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.fail(&path, &error);
                return Done::default();
            }
        };
        let mut more = Vec::new();
        while items.len() > CHUNK {
            let items = items.split_off(items.len() - CHUNK);
            more.push(Work::Chunk { path: path.clone(), dir: dir.clone(), items, slot });
        }
        if !more.is_empty() {
            more.push(Work::Chunk { path, dir, items, slot });
            return Done { more, ..Done::default() };
        }
        self.chunk(&path, &dir, items, slot)
    }

    fn chunk(&self, dir_path: &Path, dir: &OwnedFd, items: Vec<DirItem>, slot: usize) -> Done {
        let mut children = Vec::with_capacity(items.len());
        let mut path = dir_path.to_owned();
        for item in items {
            path.push(&item.name);
            match self.child(&path, dir_path, dir, item) {
                Ok(child) => children.extend(child),
                // Gone since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.fail(&path, &error),
            }
            path.pop();
        }
        let mut done = Done { entries: children.len(), ..Done::default() };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for child in &mut children {
            if let Kind::File { size, .. } = child.entry.kind {
                done.bytes = done.bytes.saturating_add(size);
            }
            if child.entry.is_dir() {
                let number = slots.len();
                child.slot = Some(number);
                slots.push(Vec::new());
                let path = dir_path.join(&child.name);
                done.more.push(Work::Directory { path, slot: number, open: None });
            }
        }
        slots[slot].append(&mut children);
        done
    }

    fn child(
        &self,
        path: &Path,
        dir_path: &Path,
        dir: &OwnedFd,
        item: DirItem,
    ) -> io::Result<Option<Child>> {
        let is_dir = item.kind == FileKind::Directory;
        let verdict = self.rules.verdict(path, is_dir);
        let tentative = verdict == Verdict::ExcludeButDescend;
        if verdict == Verdict::Exclude || (tentative && !is_dir) {
            return Ok(None);
        }
        let stat = rustix::fs::statat(dir, &item.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let stat = Stat::new(&stat)?;
        let entry = self.rules.entry(&Place { dir, dir_path, name: &item.name }, &stat)?;
        let tentative = tentative && entry.is_dir();
        Ok(Some(Child { name: item.name, entry, slot: None, tentative }))
    }
}

fn assemble(top: Entry, mut slots: Vec<Vec<Child>>) -> Tree {
    let mut kept = vec![true; slots.len()];
    // A directory's slot is made before those of the directories in it.
    for slot in (0..slots.len()).rev() {
        slots[slot].retain(|child| !child.tentative || child.slot.is_some_and(|s| kept[s]));
        slots[slot].sort_unstable_by(|a, b| a.name.cmp(&b.name));
        kept[slot] = !slots[slot].is_empty();
    }
    let groups = number_groups(&slots);
    let mut arena = Arena::new(top);
    let mut pending = std::collections::VecDeque::from([(0_u32, 0_usize)]);
    while let Some((parent, slot)) = pending.pop_front() {
        arena.open(parent);
        for mut child in std::mem::take(&mut slots[slot]) {
            let group = child.entry.link_group;
            child.entry.link_group = groups.get(&group).copied().unwrap_or(0);
            let number = arena.push(parent, child.name.as_bytes(), child.entry);
            pending.extend(child.slot.map(|slot| (number, slot)));
        }
    }
    arena.finish()
}

/// Numbers for files with several names, while they are met: 0 for those with one.
#[derive(Debug, Default)]
pub(crate) struct LinkNumbers(Mutex<HashMap<(u64, u64), u32>>);

impl LinkNumbers {
    /// The number of a file; directories have none.
    pub(crate) fn of(&self, stat: &Stat) -> u32 {
        if stat.links < 2 || stat.kind == FileKind::Directory {
            return 0;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(known.len() + 1).unwrap_or(u32::MAX);
        *known.entry((stat.device, stat.inode)).or_insert(next)
    }
}

/// Threads give link groups their numbers in no order: numbers them anew; those of one file go.
fn number_groups(slots: &[Vec<Child>]) -> HashMap<u32, u32> {
    let mut sizes: HashMap<u32, u32> = HashMap::new();
    let mut order = Vec::new();
    let all = slots.iter().flatten().map(|child| child.entry.link_group);
    for group in all.filter(|group| *group != 0) {
        let size = sizes.entry(group).or_default();
        *size += 1;
        if *size == 2 {
            order.push(group);
        }
    }
    (1..).zip(order).map(|(number, group)| (group, number)).collect()
}

/// Opens a regular file beneath an open directory for reading; a FIFO in its place does not hang.
pub(crate) fn open_regular(dir: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    if Stat::of(&file)?.kind != FileKind::File {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file any more"));
    }
    Ok(file)
}

/// Gives a thread's buffer: hashing thousands of small files must not allocate for each. A call inside a call (a stream
/// that itself comes from a copy) gets a buffer of its own.
pub(crate) fn with_buffer<T>(run: impl FnOnce(&mut [u8]) -> T) -> T {
    use std::cell::Cell;
    thread_local! {
        static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut buffer = BUFFER.take();
    buffer.resize(128 * 1024, 0);
    let result = run(&mut buffer);
    BUFFER.set(buffer);
    result
}

/// The blake3 of a file from its beginning, and its size.
pub(crate) fn hash_file(file: &File) -> io::Result<(u64, [u8; 32])> {
    with_buffer(|buffer| {
        let mut hasher = blake3::Hasher::new();
        let mut size = 0_u64;
        loop {
            match file.read_at(buffer, size) {
                Ok(0) => return Ok((size, *hasher.finalize().as_bytes())),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                    if count < buffer.len() && size >= file.metadata()?.len() {
                        return Ok((size, *hasher.finalize().as_bytes()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    })
}
