//! A directory handle; everything beneath it is reached by descriptor, never by a joined path string.
//!
//! Names come from hostile images. A path is refused unless each component is a plain name; the parent directory is
//! opened beneath the root by `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` (or, where the kernel or a
//! sandbox has no `openat2`, component by component with `O_NOFOLLOW`), and the last name is then used with the
//! `*at` call of the operation, which does not follow a symbolic link.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::tree::Time;

/// The kernel takes paths shorter than this (`PATH_MAX`); longer ones are walked piece by piece.
const PIECE: usize = 3800;

/// An open directory. All paths are relative to it, without `..` or a leading `/`; `""` is the directory itself.
/// No symbolic link is followed, except by [`Root::open`] for the directory itself.
#[derive(Debug, Clone)]
pub struct Root {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

/// The kind of a file, as `st_mode` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileKind {
    fn from_file_type(kind: FileType) -> Option<Self> {
        Some(match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::Unknown => return None,
        })
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name.
    pub name: OsString,
    /// Its kind.
    pub kind: FileKind,
}

/// What `lstat` tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Stat {
    pub device: u64,
    pub inode: u64,
    pub kind: FileKind,
    /// Permission bits, 0..=0o7777.
    pub mode: u32,
    pub links: u64,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that it occupies.
    pub blocks: u64,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    pub mtime: Time,
    pub ctime: Time,
}

impl Stat {
    /// What the kernel calls the file described.
    #[expect(
        clippy::unnecessary_cast,
        reason = "the widths of `struct stat` differ from one architecture to the next"
    )]
    pub(crate) fn new(stat: &rustix::fs::Stat) -> io::Result<Self> {
        let kind = FileKind::from_file_type(FileType::from_raw_mode(stat.st_mode as _))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file of unknown kind"))?;
        Ok(Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            kind,
            mode: stat.st_mode as u32 & 0o7777,
            links: stat.st_nlink as u64,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: stat.st_blocks as u64,
            rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            mtime: Time { secs: stat.st_mtime as i64, nanos: stat.st_mtime_nsec as u32 },
            ctime: Time { secs: stat.st_ctime as i64, nanos: stat.st_ctime_nsec as u32 },
        })
    }

    /// Of an open file.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Self::new(&rustix::fs::fstat(file)?)
    }
}

/// A borrowed or an own descriptor of a directory.
enum Parent<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => *fd,
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

fn invalid(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` {why}", path.display()))
}

/// Refuses a path that is not made of plain names only.
pub(crate) fn check_path(path: &Path) -> io::Result<()> {
    let plain = path.components().all(|component| match component {
        Component::Normal(name) => !name.as_bytes().contains(&0),
        _ => false,
    });
    if plain { Ok(()) } else { Err(invalid(path, "is not a path of plain names")) }
}

/// The parent's path and the last name; `None` for the root itself.
fn split(path: &Path) -> io::Result<Option<(&Path, &OsStr)>> {
    check_path(path)?;
    let Some(name) = path.file_name() else { return Ok(None) };
    Ok(Some((path.parent().unwrap_or(Path::new("")), name)))
}

static OPENAT2_MISSING: AtomicBool = AtomicBool::new(false);

fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !OPENAT2_MISSING.load(Ordering::Relaxed) {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Absent, or hidden by a sandbox that does not know it.
                Err(Errno::NOSYS) => break OPENAT2_MISSING.store(true, Ordering::Relaxed),
                Err(Errno::PERM) => break,
                result => return result,
            }
        }
    }
    open_by_component(dir, path, flags)
}

fn open_by_component(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut current: Option<OwnedFd> = None;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let at = current.as_ref().map_or(dir, AsFd::as_fd);
        if names.peek().is_none() {
            return rustix::fs::openat(at, name, flags, Mode::empty());
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        current = Some(rustix::fs::openat(at, name, step, Mode::empty())?);
    }
    Err(Errno::NOENT)
}

impl Root {
    /// Opens a directory that the user or the program named; links in this one path are followed.
    ///
    /// # Errors
    /// When there is no directory that may be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd), path: path.to_owned() })
    }

    /// Takes an open directory; `path` is for messages.
    ///
    /// # Errors
    /// When it is no directory.
    pub fn open_fd(fd: OwnedFd, path: &Path) -> io::Result<Self> {
        if Stat::of(&fd)?.kind != FileKind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Self { fd: Arc::new(fd), path: path.to_owned() })
    }

    /// The descriptor.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where it was opened: for messages and overlay options.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what is at `path` without following any link; long paths piece by piece.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        check_path(path)?;
        if path.as_os_str().is_empty() {
            let flags = flags | OFlags::CLOEXEC;
            return Ok(rustix::fs::openat(&self.fd, c".", flags, Mode::empty())?);
        }
        if path.as_os_str().len() <= PIECE {
            return Ok(open_beneath(self.as_fd(), path, flags)?);
        }
        let mut current: Option<OwnedFd> = None;
        let mut piece = PathBuf::new();
        for name in path.iter() {
            if piece.as_os_str().len() + name.len() >= PIECE {
                let at = current.as_ref().map_or(self.as_fd(), AsFd::as_fd);
                let next = open_beneath(at, &piece, OFlags::PATH | OFlags::DIRECTORY)?;
                current = Some(next);
                piece.clear();
            }
            piece.push(name);
        }
        let at = current.as_ref().map_or(self.as_fd(), AsFd::as_fd);
        Ok(open_beneath(at, &piece, flags)?)
    }

    fn parent(&self, path: &Path) -> io::Result<Parent<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(Parent::Borrowed(self.as_fd()));
        }
        Ok(Parent::Owned(self.open_at(path, OFlags::PATH | OFlags::DIRECTORY)?))
    }

    /// The open parent of `path` and its last name.
    fn place<'a, 'p>(&'a self, path: &'p Path) -> io::Result<(Parent<'a>, &'p OsStr)> {
        let (parent, name) =
            split(path)?.ok_or_else(|| invalid(path, "is the root directory itself"))?;
        Ok((self.parent(parent)?, name))
    }

    /// Opens a directory beneath as a root of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn open_dir(&self, path: &Path) -> io::Result<Self> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { fd: Arc::new(fd), path: self.path.join(path) })
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `InvalidInput` for anything that is not a regular file.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        // NONBLOCK: a FIFO in its place must not hang us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = self.open_at(path, flags)?;
        if Stat::of(&fd)?.kind != FileKind::File {
            return Err(invalid(path, "is not a regular file"));
        }
        Ok(File::from(fd))
    }

    /// Makes a new regular file and opens it for reading and writing; the umask applies to `mode`.
    ///
    /// # Errors
    /// `AlreadyExists` when anything is there.
    pub fn create_file(&self, path: &Path, mode: u32) -> io::Result<File> {
        let (parent, name) = self.place(path)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(mode & 0o777))?;
        Ok(File::from(fd))
    }

    /// What is at `path` (lstat).
    ///
    /// # Errors
    /// What the kernel says; `NotFound` when there is nothing.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        let Some((parent, name)) = split(path)? else { return Stat::of(&self.fd) };
        let parent = self.parent(parent)?;
        Stat::new(&rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// What is in a directory, sorted by name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_dir(&self, path: &Path) -> io::Result<Vec<DirItem>> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        read_dir_fd(&fd)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none.
    pub fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let (parent, name) = self.place(path)?;
        read_link_at(&parent, name)
    }

    /// Makes a directory; the umask applies to `mode`.
    ///
    /// # Errors
    /// `AlreadyExists` when anything is there.
    pub fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode & 0o7777))?)
    }

    /// Makes a directory and the missing ones above it.
    ///
    /// # Errors
    /// When something that is not a directory is in the way.
    pub fn mkdir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        check_path(path)?;
        let mut partial = PathBuf::new();
        for name in path.iter() {
            partial.push(name);
            match self.mkdir(&partial, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        }
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY).map(|_| ())
    }

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    /// Removes whatever is there, however deep and whatever its modes; nothing there is no error.
    ///
    /// # Errors
    /// What could not be removed first; the rest is removed all the same where possible.
    pub fn remove_all(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = match self.place(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        remove_entry(parent.as_fd(), name)
    }

    /// Moves `from` to `to` beneath another (or the same) root of the same file system; replaces as `rename(2)` does.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn rename(&self, from: &Path, to_root: &Root, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.place(from)?;
        let (to_dir, to_name) = to_root.place(to)?;
        Ok(rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)?)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `AlreadyExists` when anything is there.
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// `AlreadyExists` when anything is at `path`.
    pub fn hardlink(&self, existing: &Path, path: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.place(existing)?;
        let (to_dir, to_name) = self.place(path)?;
        Ok(rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())?)
    }

    /// Makes a device, FIFO, socket or empty file with exactly this mode.
    ///
    /// # Errors
    /// `PermissionDenied` for devices without the right to make them.
    pub fn mknod(
        &self,
        path: &Path,
        kind: FileKind,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        let kind = match kind {
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::File => FileType::RegularFile,
            FileKind::Directory | FileKind::Symlink => {
                return Err(invalid(path, "is not for mknod"));
            }
        };
        let bits = Mode::from_raw_mode(mode & 0o7777);
        let number = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(&parent, name, kind, bits, number)?;
        if mode & 0o7777 != 0 {
            self.chmod(path, mode)?;
        }
        Ok(())
    }

    /// Sets owner and group, of a symbolic link itself too.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn chown(&self, path: &Path, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::fchown(&self.fd, uid, gid)?);
        }
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the permission bits of anything but a symbolic link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn chmod(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::fchmod(&self.fd, mode)?);
        }
        let fd = self.open_at(path, OFlags::PATH)?;
        chmod_path_fd(&fd, mode)
    }

    /// Sets the time of the last change (and of the last access, to the same).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_mtime(&self, path: &Path, mtime: Time) -> io::Result<()> {
        let times = timestamps(mtime);
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::futimens(&self.fd, &times)?);
        }
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets an extended attribute, of a symbolic link itself too.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
        let fd = self.open_at(path, OFlags::PATH)?;
        let flags = rustix::fs::XattrFlags::empty();
        Ok(rustix::fs::setxattr(proc_path(&fd), c_name(name)?.as_c_str(), value, flags)?)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// When there is none; what the kernel says.
    pub fn remove_xattr(&self, path: &Path, name: &[u8]) -> io::Result<()> {
        let fd = self.open_at(path, OFlags::PATH)?;
        Ok(rustix::fs::removexattr(proc_path(&fd), c_name(name)?.as_c_str())?)
    }

    /// The value of an extended attribute, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get_xattr(&self, path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let fd = self.open_at(path, OFlags::PATH)?;
        get_xattr_fd(&fd, c_name(name)?.as_c_str())
    }

    /// All extended attributes; none where the file system has none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let fd = self.open_at(path, OFlags::PATH)?;
        xattrs_of(&fd)
    }
}

pub(crate) fn timestamps(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs as _, tv_nsec: mtime.nanos as _ };
    Timestamps { last_access: time, last_modification: time }
}

fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an attribute's name holds a NUL"))
}

/// The magic link to an open file: the way to calls that take no `O_PATH` descriptor. It jumps to the file itself,
/// also to a symbolic link.
fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn get_xattr_fd(fd: &OwnedFd, name: &std::ffi::CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; 256];
    loop {
        match rustix::fs::getxattr(proc_path(fd), name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) => value.resize(value.len() * 8, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// All extended attributes of what an `O_PATH` descriptor stands for.
pub(crate) fn xattrs_of(fd: &OwnedFd) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0_u8; 1024];
    let length = loop {
        match rustix::fs::listxattr(proc_path(fd), list.as_mut_slice()) {
            Err(Errno::RANGE) => list.resize(list.len() * 4, 0),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(BTreeMap::new()),
            result => break result?,
        }
    };
    let mut found = BTreeMap::new();
    for name in list[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = get_xattr_fd(fd, c_name(name)?.as_c_str())? {
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

fn chmod_path_fd(fd: &OwnedFd, mode: Mode) -> io::Result<()> {
    Ok(rustix::fs::chmod(proc_path(fd), mode)?)
}

pub(crate) fn read_link_at(dir: impl AsFd, name: &OsStr) -> io::Result<PathBuf> {
    let target = rustix::fs::readlinkat(dir, name, Vec::with_capacity(128))?;
    Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// What is in an open directory (opened for reading), sorted by name.
pub(crate) fn read_dir_fd(fd: &OwnedFd) -> io::Result<Vec<DirItem>> {
    let mut items = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0))?;
    let mut entries = rustix::fs::RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let name = OsString::from_vec(name.to_vec());
        let kind = match FileKind::from_file_type(entry.file_type()) {
            Some(kind) => kind,
            None => {
                let stat = rustix::fs::statat(fd, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                Stat::new(&stat)?.kind
            }
        };
        items.push(DirItem { name, kind });
    }
    items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(items)
}

/// How deep a removal descends before it moves what is deeper up to the top: bounds descriptors and stack.
const REMOVE_DEPTH: usize = 64;

/// Removes `name` in `dir`, with everything beneath.
fn remove_entry(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlink_firmly(dir, name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        // POSIX lets `unlink` of a directory fail with EPERM.
        Err(Errno::PERM) if is_directory(dir, name) => {}
        Err(error) => return Err(error.into()),
    }
    let mut hoisted = 0;
    let top = open_firmly(dir, name)?;
    loop {
        let before = hoisted;
        remove_contents(top.as_fd(), top.as_fd(), 0, &mut hoisted)?;
        if hoisted == before {
            break;
        }
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            clear_flags(&top);
            clear_flags_of(dir);
            Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_directory(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode as _) == FileType::Directory)
}

fn remove_contents(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    depth: usize,
    hoisted: &mut u32,
) -> io::Result<()> {
    let listing = rustix::fs::openat(
        dir,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut first_error = None;
    for item in read_dir_fd(&listing)? {
        let result = if item.kind != FileKind::Directory {
            match unlink_firmly(dir, &item.name) {
                Err(Errno::NOENT) => Ok(()),
                result => result.map_err(io::Error::from),
            }
        } else if depth >= REMOVE_DEPTH {
            hoist(top, dir, &item.name, hoisted)
        } else {
            open_firmly(dir, &item.name).and_then(|child| {
                remove_contents(top, child.as_fd(), depth + 1, hoisted)?;
                match rustix::fs::unlinkat(dir, &item.name, AtFlags::REMOVEDIR) {
                    // Something deeper failed, or somebody still writes here: the caller's error tells.
                    Err(Errno::PERM) => {
                        clear_flags(&child);
                        Ok(rustix::fs::unlinkat(dir, &item.name, AtFlags::REMOVEDIR)?)
                    }
                    result => Ok(result?),
                }
            })
        };
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Moves a deep directory up to the top under a name of our own, to be removed in the next round.
fn hoist(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    hoisted: &mut u32,
) -> io::Result<()> {
    open_firmly(dir, name)?;
    loop {
        *hoisted += 1;
        let to = format!(".kiln-removed-{hoisted}");
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(dir, name, top, to.as_str(), flags) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
    }
}

/// Opens a directory for reading and makes it ours to change.
fn open_firmly(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, name, flags, Mode::empty());
    let fd = match open() {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            chmod_path_fd(&fd, Mode::RWXU)?;
            open()?
        }
        result => result?,
    };
    let wanted = Mode::RWXU.as_raw_mode();
    if rustix::fs::fstat(&fd)?.st_mode & wanted != wanted {
        // For root it makes no difference; where it may not be done, removing will tell.
        let _ = rustix::fs::fchmod(&fd, Mode::RWXU);
    }
    Ok(fd)
}

fn unlink_firmly(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::PERM) if !is_directory(dir, name) => {
            clear_flags_of(dir);
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
                clear_flags(&fd);
            }
            rustix::fs::unlinkat(dir, name, AtFlags::empty())
        }
        result => result,
    }
}

/// Takes `chattr +i` and `+a` away, where that is possible.
fn clear_flags(fd: &OwnedFd) {
    let stubborn = rustix::fs::IFlags::IMMUTABLE | rustix::fs::IFlags::APPEND;
    if let Ok(flags) = rustix::fs::ioctl_getflags(fd)
        && flags.intersects(stubborn)
    {
        let _ = rustix::fs::ioctl_setflags(fd, flags - stubborn);
    }
}

fn clear_flags_of(dir: BorrowedFd<'_>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(dir, c".", flags, Mode::empty()) {
        clear_flags(&fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn refuses_what_is_not_a_plain_name() {
        let (_dir, root) = root();
        let check = |path: &str| {
            let error = root.mkdir(Path::new(path), 0o755).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        };
        check("..");
        check("a/../b");
        check("/etc");
        check("./a");
        check("a\0b");
        check("");
    }

    #[test]
    fn never_follows_a_link() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        for missing in [false, true] {
            OPENAT2_MISSING.store(missing, Ordering::Relaxed);
            assert!(root.open_file(Path::new("link/secret")).is_err());
            assert!(root.open_file(Path::new("file")).is_err());
            assert!(root.create_file(Path::new("link/new"), 0o644).is_err());
            assert!(root.remove_all(Path::new("link/secret")).is_err());
            assert!(root.chmod(Path::new("link/secret"), 0o777).is_err());
            assert!(root.mkdir_all(Path::new("link/a/b"), 0o755).is_err());
        }
        OPENAT2_MISSING.store(false, Ordering::Relaxed);
        root.remove_all(Path::new("link")).unwrap();
        assert!(outside.path().join("secret").exists());
    }

    #[test]
    fn removes_very_deep_trees() {
        let (dir, root) = root();
        root.mkdir(Path::new("deep"), 0o755).unwrap();
        let mut at = root.open_dir(Path::new("deep")).unwrap();
        for level in 0..5000 {
            at.mkdir(Path::new("directory"), 0o755).unwrap();
            if level % 1000 == 0 {
                at.create_file(Path::new("file"), 0o644).unwrap();
            }
            at = at.open_dir(Path::new("directory")).unwrap();
        }
        drop(at);
        root.remove_all(Path::new("deep")).unwrap();
        assert!(!dir.path().join("deep").exists());
    }

    #[test]
    fn removes_mode_000_and_immutable() {
        let (dir, root) = root();
        root.mkdir_all(Path::new("a/b/c"), 0o755).unwrap();
        root.create_file(Path::new("a/b/f"), 0o644).unwrap();
        let file = root.open_file(Path::new("a/b/f")).unwrap();
        // Where the file system has no such flag, this part of the test is void.
        let _ = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE);
        let mode = std::fs::Permissions::from_mode(0o0);
        std::fs::set_permissions(dir.path().join("a/b"), mode).unwrap();
        root.remove_all(Path::new("a")).unwrap();
        assert!(!dir.path().join("a").exists());
        root.remove_all(Path::new("a")).unwrap();
    }

    #[test]
    fn long_paths_are_walked_in_pieces() {
        let (_dir, root) = root();
        let name = "n".repeat(200);
        let mut path = PathBuf::new();
        let mut at = root.clone();
        for _ in 0..40 {
            at.mkdir(Path::new(&name), 0o755).unwrap();
            at = at.open_dir(Path::new(&name)).unwrap();
            path.push(&name);
        }
        let path = path.join("file");
        root.create_file(&path, 0o644).unwrap();
        assert_eq!(root.stat(&path).unwrap().kind, FileKind::File);
        assert!(root.open_file(&path).is_ok());
    }

    #[test]
    fn attributes_of_files_and_links() {
        let (_dir, root) = root();
        root.create_file(Path::new("f"), 0o644).unwrap();
        root.symlink(Path::new("f"), Path::new("l")).unwrap();
        root.set_xattr(Path::new("f"), b"user.a", b"1").unwrap();
        assert_eq!(root.get_xattr(Path::new("f"), b"user.a").unwrap().unwrap(), b"1");
        assert_eq!(root.get_xattr(Path::new("l"), b"user.a").unwrap(), None);
        assert_eq!(root.xattrs(Path::new("f")).unwrap().len(), 1);
        root.chown(Path::new("l"), 7, 8).unwrap();
        assert_eq!(root.stat(Path::new("f")).unwrap().uid, 0);
        assert_eq!(root.stat(Path::new("l")).unwrap().uid, 7);
        let time = Time { secs: -5, nanos: 7 };
        root.set_mtime(Path::new("l"), time).unwrap();
        assert_eq!(root.stat(Path::new("l")).unwrap().mtime, time);
    }
}
