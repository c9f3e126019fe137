//! The device nodes of a step: the host's, each checked by descriptor, because a user namespace can
//! make none of its own (decision 4 of security.md, section 0).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{FileType, fstat, major, makedev, minor};

use crate::rootfs::{self, context};

/// Device nodes: name, major, minor (runc's `AllowedDevices`).
pub(crate) const DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links to what every process has.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The host's nodes, as detached mounts.
#[derive(Debug)]
pub(crate) struct Devices(Vec<(&'static str, OwnedFd)>);

impl Devices {
    /// Takes them, in a mount namespace of our own.
    ///
    /// # Errors
    /// A node is missing, or is another device than its name says.
    pub(crate) fn open() -> io::Result<Self> {
        let mut nodes = Vec::with_capacity(DEVICES.len());
        for &(name, wanted_major, wanted_minor) in DEVICES {
            let path = Path::new("/dev").join(name);
            let node = rootfs::open_path(&path)?;
            let stat = fstat(&node)?;
            let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
            if !is_device || stat.st_rdev != makedev(wanted_major, wanted_minor) {
                let message = format!(
                    "{} of this machine is not the character device {wanted_major}:{wanted_minor} but {}:{}",
                    path.display(),
                    major(stat.st_rdev),
                    minor(stat.st_rdev)
                );
                return Err(io::Error::other(message));
            }
            nodes.push((name, rootfs::clone_mount(&node, false)?));
        }
        Ok(Self(nodes))
    }

    /// Shows them in the new, still empty /dev.
    pub(crate) fn attach(&self) -> io::Result<()> {
        for (name, node) in &self.0 {
            let path = Path::new("/dev").join(name);
            fs::File::create(&path)?;
            let attached = rootfs::attach(node, rootfs::open_path(&path)?.as_fd());
            context(|| format!("show {}", path.display()), attached)?;
        }
        for (link, target) in LINKS {
            symlink(target, link)?;
        }
        Ok(())
    }
}
