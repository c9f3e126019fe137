//! User namespaces of steps: root in a step is an ordinary, otherwise unused number outside.
//!
//! For root the ids of a step are a fixed range of the host's ids (decision 3 of security.md, section
//! 0), and the store is shown through an idmapped mount, so that its files keep the ids of the image.
//! For others the builder itself lives in a user namespace (`rootless`), and a step gets one below
//! it with the same ids.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::rootfs;
use crate::sys::mount::map_owners;
use crate::sys::process::{self, Side};

/// The first host id of steps: in the range that systemd leaves to containers (systemd.io, "Users,
/// Groups, UIDs and GIDs on systemd Systems").
const FIRST: u32 = 0x5000_0000;

/// A step's ids, the host's, how many. Beside the first 2^29: those of OpenShift and of directory
/// services, and the largest (`nobody` as -2), which go where nothing else of a host is.
const MAP: [(u32, u32, u32); 4] = [
    (0, FIRST, 0x2000_0000),
    (0x2000_0000, 0x8000_0000, 0x4000_0000),
    (0xA000_0000, 0xC000_0000, 0x3fff_ffff),
    (0xF800_0000, 0x7000_0000, 0x07ff_ffff),
];

/// How many ids a step has where owners cannot be mapped.
const COUNT_UNMAPPED: u32 = 0x8000_0000;

/// The first Linux whose overlay takes mapped layers.
const LAYERS_MAPPED_SINCE: (u32, u32) = (5, 19);

/// The user namespace of all steps of this process. (They have their own mounts, processes, network;
/// they do not see each other.)
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Its descriptor.
    pub(crate) fd: OwnedFd,
    /// Files of the store have to be shown through it.
    pub(crate) maps_owners: bool,
    /// What the step's 0 is for the builder.
    pub(crate) root: u32,
}

/// The namespace, made when it is first asked for. `store` tells whether owners of its file system
/// can be mapped.
pub(crate) fn namespace(store: &Path) -> io::Result<&'static Namespace> {
    static MADE: OnceLock<Result<Namespace, (Option<i32>, String)>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        make(store).map_err(|error| (error.raw_os_error(), format!("a user namespace: {error}")))
    });
    made.as_ref().map_err(|(code, why)| match code {
        Some(libc::ENOSPC) => {
            io::Error::other(format!("{why} (raise the sysctl user.max_user_namespaces)"))
        }
        _ => io::Error::other(why.clone()),
    })
}

/// Whether this process is in the first user namespace of the machine, by its map of ids.
pub(crate) fn is_first(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn make(store: &Path) -> io::Result<Namespace> {
    let uid_map = fs::read_to_string("/proc/self/uid_map")?;
    if !is_first(&uid_map) {
        let gid_map = fs::read_to_string("/proc/self/gid_map")?;
        let fd = with_maps(&mirrored(&uid_map), &mirrored(&gid_map))?;
        return Ok(Namespace { fd, maps_owners: false, root: 0 });
    }
    if kernel() >= LAYERS_MAPPED_SINCE {
        let line = |(inside, outside, count)| format!("{inside} {outside} {count}\n");
        let map: String = MAP.map(line).concat();
        let fd = with_maps(&map, &map)?;
        if can_map(store, &fd) {
            return Ok(Namespace { fd, maps_owners: true, root: FIRST });
        }
    }
    let map = format!("0 0 {COUNT_UNMAPPED}\n");
    Ok(Namespace { fd: with_maps(&map, &map)?, maps_owners: false, root: 0 })
}

/// Whether the file system of a folder can be shown with other owners.
pub(crate) fn can_map(folder: &Path, namespace: &OwnedFd) -> bool {
    let mapped = rootfs::open_path(folder)
        .and_then(|folder| rootfs::clone_mount(&folder, false))
        .and_then(|mount| map_owners(std::os::fd::AsFd::as_fd(&mount), namespace));
    mapped.is_ok()
}

/// The same ids as here, one line for each of the map's.
fn mirrored(map: &str) -> String {
    let mut text = String::new();
    for line in map.lines() {
        let mut fields = line.split_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        {
            text.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    text
}

/// A user namespace with these maps. It lives as long as the descriptor; the process that makes it is
/// gone when this returns.
fn with_maps(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (made, tells) = pipe_with(PipeFlags::CLOEXEC)?;
    let (waits, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = match process::fork()? {
        Side::Child => {
            drop((made, go));
            hold(&tells, &waits)
        }
        Side::Parent(child) => child,
    };
    drop((tells, waits));
    let fd = open_mapped(child, &made, uid_map, gid_map);
    drop(go);
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
    fd
}

/// In the child: makes the namespace, says so by one byte (or why not, by its error number), and holds
/// it until the other side has a descriptor.
fn hold(tells: &OwnedFd, waits: &OwnedFd) -> ! {
    let told = match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => 0,
        Err(errno) => errno as i32,
    };
    let mut byte = [0];
    let done = rustix::io::write(tells, &told.to_ne_bytes())
        .and_then(|_| rustix::io::read(waits, &mut byte));
    process::exit(i32::from(done.is_err()))
}

fn open_mapped(child: Pid, made: &OwnedFd, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let mut told = [0; 4];
    if rustix::io::read(made, &mut told)? != told.len() {
        return Err(io::Error::other("the process that makes it ended"));
    }
    match i32::from_ne_bytes(told) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    fs::write(format!("/proc/{child}/uid_map"), uid_map)?;
    fs::write(format!("/proc/{child}/gid_map"), gid_map)?;
    Ok(fs::File::open(format!("/proc/{child}/ns/user"))?.into())
}

/// Major and minor version of the running Linux.
pub(crate) fn kernel() -> (u32, u32) {
    let release = rustix::system::uname();
    version(&release.release().to_string_lossy())
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::{is_first, mirrored, version};

    #[test]
    fn maps_and_versions() {
        assert!(is_first("         0          0 4294967295\n"));
        assert!(!is_first("         0       1001          1\n"));
        assert_eq!(mirrored("  0 1001 1\n  1 100000 65535\n"), "0 0 1\n1 1 65535\n");
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("5.10"), (5, 10));
    }
}
