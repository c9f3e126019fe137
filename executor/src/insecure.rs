//! What `RUN --security=insecure` has besides a step in the sandbox: the builder's capabilities, the
//! host's control groups, and the device nodes that BuildKit adds
//! (`util/entitlements/security`, `WithInsecureSpec`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caps::CapSet;
use rustix::fs::{FileType, statfs};
use rustix::mount::MountAttrFlags;

use crate::rootfs::{self, context};

/// `statfs(2)`'s type of the unified hierarchy.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Character devices: path, major, minor.
const DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
];

/// The major number of loop devices.
const LOOP_MAJOR: u32 = 7;

/// How many loop devices there are from the first free one on.
const LOOPS_FREE: u32 = 8;

/// The host's control groups, as far as they can be shown.
pub(crate) enum Cgroups {
    /// None are mounted.
    Absent,
    /// The unified hierarchy: a mount of it shows the step's own part.
    Unified,
    /// A folder of hierarchies (version 1), with what is mounted below.
    Tree(OwnedFd),
}

/// Looks at the host's control groups, while its files are still there.
pub(crate) fn cgroups() -> io::Result<Cgroups> {
    let Ok(found) = statfs(CGROUPS) else { return Ok(Cgroups::Absent) };
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC) {
        return Ok(Cgroups::Unified);
    }
    match fs::read_dir(CGROUPS)?.next() {
        None => Ok(Cgroups::Absent),
        Some(_) => {
            let root = rootfs::open_path(Path::new(CGROUPS))?;
            Ok(Cgroups::Tree(rootfs::clone_mount(&root, true)?))
        }
    }
}

/// Shows control groups and makes the device nodes; the step's root is the only one now.
pub(crate) fn system(cgroups: &Cgroups) -> io::Result<()> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    match cgroups {
        Cgroups::Absent => {}
        Cgroups::Unified => rootfs::kernel_fs("cgroup2", CGROUPS, &[], quiet)?,
        Cgroups::Tree(tree) => {
            rootfs::attach(tree, rootfs::open_path(Path::new(CGROUPS))?.as_fd())?;
        }
    }
    fs::create_dir("/dev/net")?;
    for &(path, major, minor) in DEVICES {
        rootfs::device(Path::new(path), FileType::CharacterDevice, (major, minor), 0o666)?;
    }
    for number in 0..first_free_loop() + LOOPS_FREE {
        let path = format!("/dev/loop{number}");
        rootfs::device(Path::new(&path), FileType::BlockDevice, (LOOP_MAJOR, number), 0o666)?;
    }
    Ok(())
}

/// The number of the first loop device that shows no file.
fn first_free_loop() -> u32 {
    let taken = |number: &u32| {
        fs::symlink_metadata(format!("/sys/block/loop{number}/loop/backing_file")).is_ok()
    };
    (0..256).find(|number| !taken(number)).unwrap_or(0)
}

/// Keeps the builder's capabilities when the process changes to another user.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    context(|| "keep capabilities".to_owned(), nix::sys::prctl::set_keepcaps(true))
}

/// Raises every capability that the builder has, in all sets, for users besides root as well.
pub(crate) fn raise_capabilities() -> io::Result<()> {
    let all = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &all).map_err(io::Error::other)?;
    }
    Ok(())
}
