//! Attributes of mounts (mount_setattr(2)), which no crate of ours wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes a detached mount show the owners of its files through a user namespace: what is 0 on disk is
/// that namespace's 0 (`MOUNT_ATTR_IDMAP`, Linux 5.12; overlay's layers 5.19).
///
/// # Errors
/// A file system or kernel that cannot; without CAP_SYS_ADMIN where the file system was mounted.
pub(crate) fn map_owners(mount: BorrowedFd<'_>, namespace: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    set(mount, 0, &attributes)
}

/// Makes detached mounts, with all below them, read-only, without devices, set-id bits and programs.
///
/// # Errors
/// Without CAP_SYS_ADMIN; Linux before 5.12.
pub(crate) fn seal(mounts: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set(mounts, libc::AT_RECURSIVE, &attributes)
}

/// Makes a detached mount one on which device nodes cannot be opened.
///
/// # Errors
/// Without CAP_SYS_ADMIN; Linux before 5.12.
pub(crate) fn no_devices(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set(mount, 0, &attributes)
}

fn set(mount: BorrowedFd<'_>, flags: libc::c_int, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the descriptor is open, the path is an empty string that ends in zero, `attributes` is
    // a `struct mount_attr` of the size that is told; the kernel only reads them, during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
