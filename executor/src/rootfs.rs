//! The root file system of a step: an overlay of its layers, and the private /dev, /proc and /sys.
//! Runs in the step's own mount namespace, before the command exists.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, open, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::devices::Devices;
use crate::spec::Stack;
use crate::sys::mount::seal;

/// How many layers one overlay takes by `mount(2)`, whose options fit one page.
const LEGACY_LAYERS_MAX: usize = 180;

/// What is hidden, as in Docker's default (moby `oci.defaultMaskedPaths`; security.md S21).
pub(crate) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What other file systems show below /sys: the step's own view of cgroups is of no use to it, the host's
/// is none of its business.
const HIDDEN_SYS: &[&str] = &[
    "/sys/fs/cgroup",
    "/sys/fs/bpf",
    "/sys/fs/pstore",
    "/sys/fs/selinux",
    "/sys/kernel/config",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// What cannot be written, as in Docker's default.
pub(crate) const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// An error with what was tried.
pub(crate) fn context<T, E: Into<io::Error>>(
    what: impl FnOnce() -> String,
    result: Result<T, E>,
) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{}: {}", what(), error))
    })
}

/// Where an overlay's writes go.
pub(crate) struct Upper<'a> {
    /// Overlay's upper directory.
    pub(crate) upper: &'a Path,
    /// Overlay's work directory.
    pub(crate) work: &'a Path,
}

/// Mounts a stack of layers, with `bottom` (mount points of the step) below all of them, and gives
/// the detached mount.
pub(crate) fn overlay(
    stack: &Stack,
    bottom: &Path,
    upper: Option<&Upper<'_>>,
) -> io::Result<OwnedFd> {
    match overlay_by_fsopen(stack, bottom, upper) {
        // `lowerdir+` came with Linux 6.8, fsopen may be refused by an outer seccomp filter.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) =>
        {
            overlay_by_mount(stack, bottom, upper)
        }
        result => context(|| format!("mount an overlay of {} layers", stack.layers.len()), result),
    }
}

fn overlay_by_fsopen(
    stack: &Stack,
    bottom: &Path,
    upper: Option<&Upper<'_>>,
) -> io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in stack.layers.iter().rev().map(PathBuf::as_path).chain([bottom]) {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", layer)?;
    }
    if let Some(upper) = upper {
        fsconfig_set_string(fs.as_fd(), "upperdir", upper.upper)?;
        fsconfig_set_string(fs.as_fd(), "workdir", upper.work)?;
        // The step's files are synced, or dropped, by the store: no sync(2) has to wait for them.
        fsconfig_set_flag(fs.as_fd(), "volatile")?;
    }
    fsconfig_set_flag(fs.as_fd(), "userxattr")?;
    fsconfig_create(fs.as_fd())?;
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// `mount(2)` wants all layers in one page of options: short names through /proc/self/fd.
fn overlay_by_mount(
    stack: &Stack,
    bottom: &Path,
    upper: Option<&Upper<'_>>,
) -> io::Result<OwnedFd> {
    if stack.layers.len() > LEGACY_LAYERS_MAX {
        let message = format!(
            "this kernel mounts at most {LEGACY_LAYERS_MAX} layers at once, the step has {} (Linux 6.8 lifts that)",
            stack.layers.len()
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let mut open_layers = Vec::new();
    let mut lower = String::from("lowerdir=");
    for layer in stack.layers.iter().rev().map(PathBuf::as_path).chain([bottom]) {
        let fd = open_path(layer)?;
        if !open_layers.is_empty() {
            lower.push(':');
        }
        lower.push_str(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
        open_layers.push(fd);
    }
    if let Some(upper) = upper {
        for (name, path) in [("upperdir", upper.upper), ("workdir", upper.work)] {
            let fd = open_path(path)?;
            lower.push_str(&format!(",{name}=/proc/self/fd/{}", fd.as_raw_fd()));
            open_layers.push(fd);
        }
    }
    let target = bottom.with_file_name("overlay");
    fs::create_dir_all(&target)?;
    let options = format!("{lower},userxattr");
    let flags = MsFlags::empty();
    let mounted = mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()));
    context(|| "mount an overlay (`userxattr` needs Linux 5.11)".to_owned(), mounted)?;
    let detached = clone_mount(&open_path(&target)?, false)?;
    umount2(&target, MntFlags::MNT_DETACH)?;
    Ok(detached)
}

/// An `O_PATH` descriptor.
pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    context(|| format!("open {}", path.display()), open(path, flags, Mode::empty()))
}

/// A detached copy of what is mounted at a descriptor: `open_tree(2)`.
pub(crate) fn clone_mount(at: &impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    context(|| "clone a mount".to_owned(), open_tree(at.as_fd(), "", flags))
}

/// Attaches a detached mount at a descriptor.
pub(crate) fn attach(detached: &OwnedFd, at: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    context(|| "attach a mount".to_owned(), move_mount(detached.as_fd(), "", at, "", flags))
}

/// Makes the overlay this namespace's root; the old one is gone afterwards.
pub(crate) fn enter(root: &OwnedFd, place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    attach(root, open_path(place)?.as_fd())?;
    std::env::set_current_dir(place)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one.
    context(|| "pivot_root".to_owned(), nix::unistd::pivot_root(".", "."))?;
    context(|| "leave the old root".to_owned(), umount2(".", MntFlags::MNT_DETACH))?;
    std::env::set_current_dir("/")
}

/// A directory of the new root that must really be one: an image may not redirect what is mounted.
fn own_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(rustix::io::Errno::NOENT) => {
            fs::create_dir(path)?;
            Ok(openat(CWD, path, flags, Mode::empty())?)
        }
        Err(error) => {
            let message = format!("{path} of the image is no directory");
            Err(io::Error::new(io::Error::from(error).kind(), message))
        }
    }
}

/// Mounts a new file system of the kernel at a directory that is checked by descriptor.
pub(crate) fn kernel_fs(
    kind: &str,
    at: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<()> {
    let made = new_fs(kind, options, attributes);
    put(&context(|| format!("mount {kind} for {at}"), made)?, at)
}

/// A new file system of the kernel, not yet anywhere.
fn new_fs(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(fs.as_fd(), *name)?;
        } else {
            fsconfig_set_string(fs.as_fd(), *name, *value)?;
        }
    }
    fsconfig_create(fs.as_fd())?;
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn put(mount: &OwnedFd, at: &str) -> io::Result<()> {
    context(|| format!("mount {at}"), attach(mount, own_directory(at)?.as_fd()))
}

/// What a step sees at /sys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sys {
    /// The kernel's, read-only.
    ReadOnly,
    /// The kernel's (steps outside of the sandbox).
    Writable,
    /// The host's, read-only: a new one needs a network namespace of the step's own.
    Host,
}

/// The file systems of the kernel that show processes and devices. A user namespace may only make them
/// while it sees unhidden ones (`mount_too_revealing` in the kernel's fs/namespace.c), so this is
/// before the host's are gone.
pub(crate) struct System {
    proc: OwnedFd,
    sys: OwnedFd,
}

const QUIET: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

impl System {
    /// Makes them. In a container that hides parts of its own, new ones are refused: the step sees the
    /// container's then ([`crate::check::shares_proc`]).
    pub(crate) fn make(sys: Sys) -> io::Result<Self> {
        let proc = match new_fs("proc", &[], QUIET) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                clone_mount(&open_path(Path::new("/proc"))?, true)
            }
            made => made,
        };
        let proc = context(|| "mount /proc".to_owned(), proc)?;
        let attributes = match sys {
            Sys::Writable => QUIET,
            Sys::ReadOnly => QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY,
            Sys::Host => return Ok(Self { proc, sys: sealed_sys()? }),
        };
        let sys = match new_fs("sysfs", &[], attributes) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => sealed_sys(),
            made => made,
        };
        Ok(Self { proc, sys: context(|| "mount /sys".to_owned(), sys)? })
    }

    /// Puts them, and a new /dev, into the new root.
    pub(crate) fn attach(
        &self,
        shm_size: Option<u64>,
        devices: &Devices,
        insecure: bool,
    ) -> io::Result<()> {
        put(&self.proc, "/proc")?;
        let dev = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        kernel_fs("tmpfs", "/dev", &[("mode", "755"), ("size", "65536k")], dev)?;
        devices.attach()?;
        for name in ["pts", "shm", "mqueue"] {
            fs::create_dir(Path::new("/dev").join(name))?;
        }
        terminals(dev)?;
        let shm = shm_size.unwrap_or(64 << 20).to_string();
        kernel_fs("tmpfs", "/dev/shm", &[("mode", "1777"), ("size", &shm)], QUIET)?;
        kernel_fs("mqueue", "/dev/mqueue", &[], QUIET)?;
        put(&self.sys, "/sys")?;
        if insecure {
            return Ok(());
        }
        let mut nothing = Nothing::default();
        HIDDEN_SYS
            .iter()
            .filter(|path| Path::new(path).is_dir())
            .try_for_each(|path| nothing.cover(path))
    }
}

/// An empty directory that covers others. One file system for all of them: making and removing a file system
/// costs more than showing it in one more place.
#[derive(Default)]
struct Nothing {
    shown_at: Option<&'static str>,
}

impl Nothing {
    fn cover(&mut self, path: &'static str) -> io::Result<()> {
        if let Some(first) = self.shown_at {
            // It is as read-only there as at the first place.
            return bind(first, path);
        }
        let read_only = QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY;
        kernel_fs("tmpfs", path, &[("mode", "555")], read_only)?;
        self.shown_at = Some(path);
        Ok(())
    }
}

/// What the builder sees at /sys, with all below it, read-only.
fn sealed_sys() -> io::Result<OwnedFd> {
    let sys = clone_mount(&open_path(Path::new("/sys"))?, true)?;
    context(|| "protect /sys".to_owned(), seal(sys.as_fd()))?;
    Ok(sys)
}

/// Terminals of the step's own, for the group `tty` where the user namespace has it.
fn terminals(attributes: MountAttrFlags) -> io::Result<()> {
    let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    match kernel_fs("devpts", "/dev/pts", &options, attributes) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            kernel_fs("devpts", "/dev/pts", &options[..3], attributes)
        }
        result => result,
    }
}

/// Makes a device node of the step.
pub(crate) fn device(
    path: &Path,
    kind: FileType,
    (major, minor): (u32, u32),
    mode: u32,
) -> io::Result<()> {
    let number = rustix::fs::makedev(major, minor);
    let mode = Mode::from_raw_mode(mode);
    let made = rustix::fs::mknodat(CWD, path, kind, mode, number);
    context(|| format!("make {}", path.display()), made)?;
    Ok(rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?)
}

/// Hides and write-protects what Docker's default does; paths that are not there need nothing.
pub(crate) fn protect() -> io::Result<()> {
    let mut nothing = Nothing::default();
    for path in MASKED {
        let Ok(found) = fs::symlink_metadata(path) else { continue };
        if found.is_dir() {
            nothing.cover(path)?;
        } else if found.is_file() || found.file_type().is_char_device() {
            bind("/dev/null", path)?;
        }
    }
    for path in READ_ONLY.iter().filter(|path| fs::symlink_metadata(path).is_ok()) {
        bind(path, path)?;
        let flags = MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC;
        context(
            || format!("protect {path}"),
            mount(None::<&str>, *path, None::<&str>, flags, None::<&str>),
        )?;
    }
    Ok(())
}

fn bind(source: &str, target: &str) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    context(
        || format!("bind {target}"),
        mount(Some(source), target, None::<&str>, flags, None::<&str>),
    )
}

/// Where a program is: as it is where it has a `/`, else in PATH, as `execvp(3)`.
pub(crate) fn find_program(name: &str, path: &str) -> Result<CString, io::Error> {
    let not_found = || io::Error::from_raw_os_error(libc::ENOENT);
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.to_owned()]
    } else {
        path.split(':')
            .map(|dir| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") })
            .collect()
    };
    let mut denied = None;
    for candidate in candidates {
        let text = CString::new(candidate.as_str()).map_err(|_| not_found())?;
        match fs::metadata(&candidate) {
            Ok(found) if found.is_dir() => {
                denied = Some(io::Error::from_raw_os_error(libc::EACCES))
            }
            Ok(_) => match rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK) {
                Ok(()) => return Ok(text),
                Err(error) => denied = Some(error.into()),
            },
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(not_found))
}
