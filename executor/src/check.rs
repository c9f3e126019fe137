//! What this machine lacks for steps, what that costs, and what would give it: `kiln doctor`.

use std::fs;
use std::path::Path;

use crate::cgroup::Group;
use crate::fused;
use crate::ids;
use crate::init_program;
use crate::net;
use crate::seccomp::Filter;
use crate::spec::Resources;

/// `statfs(2)`'s type of overlay file systems.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// The first Linux that takes any number of layers.
const LAYERS_UNBOUNDED_SINCE: (u32, u32) = (6, 8);

/// One thing that steps need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// What its lack costs and what would give it; `None` where it is there.
    pub lack: Option<String>,
}

/// Looks at everything. `store` is the store's folder, which must be there.
pub fn all(store: &Path) -> Vec<Finding> {
    let finding = |name, lack| Finding { name, lack };
    vec![
        finding("own ids", own_ids(store)),
        finding("overlay", overlay_missing(store).map(without_overlay)),
        finding("many layers", many_layers()),
        finding(
            "network",
            net::missing().map(|why| format!("steps share this machine's network: {why}")),
        ),
        finding("limits", limits()),
        finding("system call filter", Filter::standard(false).err().map(|e| e.to_string())),
        finding("sealed programs", init_program::file().err().map(|e| e.to_string())),
    ]
}

fn without_overlay(why: String) -> String {
    match fuse_overlayfs_missing() {
        None => format!("steps have their files by fuse-overlayfs, which is slower: {why}"),
        Some(other) => format!(
            "steps run in copies of their files, which takes the time and the room of copying each step's base (shared blocks on btrfs and xfs): {why}; {other}"
        ),
    }
}

/// Whether steps see the builder's /proc, because the kernel gives a new one only to those that see an
/// unhidden one (`mnt_already_visible` in the kernel's fs/namespace.c).
pub fn shares_proc() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !ids::is_first(&map) && hides_proc(&mounts)
}

fn hides_proc(mountinfo: &str) -> bool {
    let mut places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    places.any(|place| place.starts_with("/proc/") && place != "/proc/sys/fs/binfmt_misc")
}

fn own_ids(store: &Path) -> Option<String> {
    let namespace = match ids::namespace(store) {
        Ok(namespace) => namespace,
        Err(error) => return Some(format!("root in a step is this machine's root: {error}")),
    };
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if namespace.maps_owners || !ids::is_first(&map) {
        return None;
    }
    Some("files of steps belong to the machine's users of the same numbers; remedy: Linux 5.19, and the store on ext4, xfs, btrfs or tmpfs".to_owned())
}

/// Why fuse-overlayfs cannot stand in for overlay, as far as can be told without trying, and what would change that.
pub fn fuse_overlayfs_missing() -> Option<String> {
    fused::missing()
}

/// Why overlay cannot be mounted with its upper directories in a store, as far as can be told without
/// trying, and what would change that.
pub fn overlay_missing(store: &Path) -> Option<String> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.trim_end().ends_with("\toverlay")) {
        return Some("the kernel has no overlay file system; remedy: modprobe overlay".to_owned());
    }
    if ids::kernel() < (5, 11) {
        return Some("overlay in user namespaces came with Linux 5.11".to_owned());
    }
    let stat = rustix::fs::statfs(store).ok()?;
    let is_overlay = u64::try_from(stat.f_type).is_ok_and(|kind| kind == OVERLAYFS_SUPER_MAGIC);
    is_overlay.then(|| {
        format!(
            "{} is itself on an overlay, as in most containers; remedy: --root on a volume",
            store.display()
        )
    })
}

fn many_layers() -> Option<String> {
    (ids::kernel() < LAYERS_UNBOUNDED_SINCE).then(|| {
        "steps with more than 180 layers below them run in copies; remedy: Linux 6.8".to_owned()
    })
}

fn limits() -> Option<String> {
    let name = format!("doctor-{}", std::process::id());
    let some = Resources { memory: Some(1 << 30), milli_cpus: Some(1000), pids: Some(1000) };
    let refused = Group::new(None, &name, &some).err()?;
    Some(format!("--memory, --cpus and --pids-limit are refused: {refused}"))
}

#[cfg(test)]
mod tests {
    use super::hides_proc;

    #[test]
    fn masks_of_containers_are_seen() {
        let host =
            "1 2 0:5 / /proc rw - proc proc rw\n3 1 0:6 / /proc/sys/fs/binfmt_misc rw - a b c\n";
        assert!(!hides_proc(host));
        assert!(hides_proc("9 1 0:7 / /proc/kcore ro - tmpfs tmpfs ro\n"));
    }
}
