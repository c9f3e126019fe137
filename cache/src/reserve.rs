//! Room to prune when the disk is full.
//!
//! Forgetting something takes a few kilobytes: SQLite writes before it removes. `reserve/` holds a megabyte and some
//! inodes for that. Who prunes on a full disk gives it up first, together with what nobody misses, and makes it again
//! when there is room.

use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::process;
use crate::root::Root;
use crate::store::{Store, StoreError};

const FOLDER: &str = "reserve";
/// Bytes.
const ROOM: u64 = 1 << 20;
/// Inodes beside the first file: those of the database's log and its index, which may be missing.
const INODES: usize = 3;

/// Makes it where it is not there and there is room; a store without it works as well, until the disk is full.
pub(crate) fn make(root: &Root) {
    let folder = Path::new(FOLDER);
    if root.stat(folder).is_ok() || is_short(root, 4) {
        return;
    }
    let make = || {
        root.mkdir(folder, 0o700)?;
        let file = root.create_file(&folder.join("room"), 0o600)?;
        if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, ROOM).is_err() {
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), ROOM), &mut &file)?;
        }
        (0..INODES)
            .try_for_each(|n| root.create_file(&folder.join(format!("inode-{n}")), 0o600).map(drop))
    };
    let made: std::io::Result<()> = make();
    if made.is_err() {
        let _ = root.remove_all(folder);
    }
}

/// Whether less than so many times the reserve is free.
fn is_short(root: &Root, times: u64) -> bool {
    let Ok(space) = rustix::fs::fstatvfs(root.as_fd()) else { return false };
    let inodes = space.f_files > 0 && space.f_favail < times * (INODES as u64 + 2);
    space.f_bavail.saturating_mul(space.f_frsize) < times * ROOM || inodes
}

impl Store {
    /// Opens the store to make room in it: on a full disk, what nobody misses goes first (the reserve, stat caches,
    /// what dead processes left), because the database cannot be written otherwise.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_to_prune(path: &Path) -> Result<Self, StoreError> {
        if let Ok(root) = Root::open(path)
            && is_short(&root, 1)
        {
            let _ = root.remove_all(Path::new(FOLDER));
            let contexts = Path::new("contexts");
            for item in root.read_dir(contexts).unwrap_or_default() {
                let _ = root.remove_all(&contexts.join(item.name));
            }
            if let Ok(tmp) = root.open_dir(Path::new("tmp")) {
                let _ = process::sweep(&tmp);
            }
        }
        Self::open(path)
    }
}
