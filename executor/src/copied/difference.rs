//! What a step changed in its copy, as an upper directory of overlay: changed files are moved there,
//! deleted ones become character devices 0:0, directories that took the place of others are opaque.
//!
//! Overlay copies a file up whenever it is written to or its attributes are set, even to the same. That
//! is what the change time tells of a copy: nobody can set it, so no change is missed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_cache::{FileKind, Root, Stat, Time};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::expand::attributes;
use super::{OPAQUE, is_overlay_attribute, one, with_parents};

/// The longest tick of Linux's clock for change times (HZ=100). What happens behind it has another time.
const TICK: Duration = Duration::from_millis(11);

/// What tells a file from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    kind: FileKind,
    inode: u64,
    ctime: Time,
    /// When a directory was made: the number of one that was removed is used again at once. Zero where the
    /// file system does not know.
    born: Time,
}

impl Mark {
    /// Of a name in an open directory.
    fn of(directory: &Root, name: &Path, stat: &Stat) -> Self {
        let is_directory = stat.kind == FileKind::Directory;
        let born = if is_directory { born(directory, name) } else { Time::default() };
        Self { kind: stat.kind, inode: stat.inode, ctime: stat.ctime, born }
    }

    /// Whether it is the same directory, whatever happened in it.
    fn is_same_directory(&self, other: &Self) -> bool {
        let both = self.kind == FileKind::Directory && other.kind == FileKind::Directory;
        both && self.inode == other.inode && self.born == other.born
    }
}

fn born(directory: &Root, name: &Path) -> Time {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    match statx(directory.as_fd(), name, flags, StatxFlags::BTIME) {
        Ok(found) if found.stx_mask & StatxFlags::BTIME.bits() != 0 => {
            Time { secs: found.stx_btime.tv_sec, nanos: found.stx_btime.tv_nsec }
        }
        _ => Time::default(),
    }
}

/// A tree before a step: the marks of what is in each directory.
#[derive(Debug)]
pub(crate) struct Before {
    directories: HashMap<PathBuf, HashMap<OsString, Mark>>,
    root: Time,
}

impl Before {
    /// Of a tree that nobody changes.
    pub(crate) fn of(root: &Root) -> io::Result<Self> {
        // Changes of the step have a later change time than anything that was done so far.
        std::thread::sleep(TICK);
        let mut directories = HashMap::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let marks = marks(&root.open_dir(&path)?)?;
            let below = marks.iter().filter(|(_, mark)| mark.kind == FileKind::Directory);
            pending.extend(below.map(|(name, _)| path.join(name)));
            directories.insert(path, marks);
        }
        Ok(Self { directories, root: root.stat(Path::new(""))?.ctime })
    }
}

/// What is in an open directory; a device 0:0 is nothing (overlay lets nobody make one).
fn marks(directory: &Root) -> io::Result<HashMap<OsString, Mark>> {
    let mut marks = HashMap::new();
    for item in directory.read_dir(Path::new(""))? {
        let stat = directory.stat(one(&item.name))?;
        if stat.kind != FileKind::CharDevice || stat.rdev != (0, 0) {
            let mark = Mark::of(directory, one(&item.name), &stat);
            marks.insert(item.name, mark);
        }
    }
    Ok(marks)
}

/// The upper directory while it is filled.
struct Upper<'a> {
    root: &'a Root,
    upper: &'a Root,
    made: HashSet<PathBuf>,
    /// What they were before files were taken out of them, which changes their times.
    order: Vec<(PathBuf, Stat)>,
}

impl Upper<'_> {
    /// Makes a directory and those above it; they get their attributes at the end.
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        if self.made.contains(path) {
            return Ok(());
        }
        for path in with_parents(path) {
            if self.made.insert(path.clone()) {
                if !path.as_os_str().is_empty() {
                    self.upper.mkdir(&path, 0o700)?;
                }
                let stat = self.root.stat(&path)?;
                self.order.push((path, stat));
            }
        }
        Ok(())
    }

    fn parent(&mut self, path: &Path) -> io::Result<()> {
        self.directory(path.parent().unwrap_or(Path::new("")))
    }

    fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        self.parent(path)?;
        self.upper.make_whiteout(path)
    }

    /// Moves what is no directory: with its data, attributes and other names.
    fn take(&mut self, path: &Path, kind: FileKind) -> io::Result<()> {
        self.parent(path)?;
        self.root.rename(path, self.upper, path)?;
        if kind == FileKind::File {
            strip(self.upper, path)?;
        }
        Ok(())
    }

    /// Gives the directories the attributes that they have in the step's root, deepest first.
    fn finish(self) -> io::Result<()> {
        for (path, stat) in self.order.iter().rev() {
            attributes(self.root, path, stat, self.upper, path)?;
            self.upper.set_mtime(path, stat.mtime)?;
        }
        Ok(())
    }
}

/// Takes attributes away that an overlay would read as its own: overlay gives them to nobody.
fn strip(upper: &Root, path: &Path) -> io::Result<()> {
    let all = upper.xattrs(path)?;
    let mut own = all.keys().filter(|name| is_overlay_attribute(name)).peekable();
    if own.peek().is_none() {
        return Ok(());
    }
    for name in own {
        upper.remove_xattr(path, name)?;
    }
    Ok(())
}

/// A directory to compare; `fresh` where nothing of the base shows through.
struct Pending {
    path: PathBuf,
    fresh: bool,
}

/// Moves the difference between a tree and what it was before to an empty upper directory; what is
/// hidden is not compared.
///
/// # Errors
/// What the disk says.
pub(super) fn take(
    root: &Root,
    before: &Before,
    upper: &Root,
    hidden: impl Fn(&Path) -> bool,
) -> io::Result<()> {
    let mut into = Upper { root, upper, made: HashSet::new(), order: Vec::new() };
    if root.stat(Path::new(""))?.ctime != before.root {
        into.directory(Path::new(""))?;
    }
    let nothing = HashMap::new();
    let mut pending = vec![Pending { path: PathBuf::new(), fresh: false }];
    while let Some(Pending { path, fresh }) = pending.pop() {
        let was = if fresh { None } else { before.directories.get(&path) };
        let was = was.unwrap_or(&nothing);
        let now = marks(&root.open_dir(&path)?)?;
        for name in was.keys().filter(|name| !now.contains_key(*name)) {
            let path = path.join(name);
            if !hidden(&path) {
                into.whiteout(&path)?;
            }
        }
        for (name, mark) in &now {
            let (path, old) = (path.join(name), was.get(name));
            if hidden(&path) {
                continue;
            }
            if mark.kind != FileKind::Directory {
                if old != Some(mark) {
                    into.take(&path, mark.kind)?;
                }
                continue;
            }
            let same = old.is_some_and(|old| old.is_same_directory(mark));
            if old != Some(mark) {
                into.directory(&path)?;
            }
            if !same && old.is_some() {
                upper.set_xattr(&path, OPAQUE, b"y")?;
            }
            pending.push(Pending { path, fresh: !same });
        }
    }
    into.finish()
}
