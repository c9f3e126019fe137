//! What is on the disk, by thing: blocks as `du` counts them, a file with several names once.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::root::{FileKind, Root, Stat};
use crate::store::{Store, StoreError, failed};

/// Folders whose items are things of their own.
const ITEMISED: [&str; 5] = ["layers", "trees", "contexts", "mounts", "blobs"];

/// What a thing comes to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Measured {
    /// Bytes of the blocks that it occupies.
    pub(crate) bytes: u64,
    /// Files, directories and the like: inodes.
    pub(crate) entries: u64,
    /// Files with several names: they are counted with the first thing that has one.
    links: Vec<Link>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    file: (u64, u64),
    bytes: u64,
}

impl Measured {
    fn add(&mut self, stat: &Stat) {
        let bytes = stat.blocks * 512;
        if stat.kind != FileKind::Directory && stat.links > 1 {
            self.links.push(Link { file: (stat.device, stat.inode), bytes });
        } else {
            self.bytes += bytes;
            self.entries += 1;
        }
    }

    fn settle(&mut self, seen: &mut HashSet<(u64, u64)>) {
        for link in std::mem::take(&mut self.links) {
            if seen.insert(link.file) {
                self.bytes += link.bytes;
                self.entries += 1;
            }
        }
    }
}

/// One thing and everything beneath it; what cannot be read, or goes while we look, counts nothing.
fn measure_raw(root: &Root, top: &Path) -> Measured {
    let mut measured = Measured::default();
    let Ok(stat) = root.stat(top) else { return measured };
    measured.add(&stat);
    if stat.kind != FileKind::Directory {
        return measured;
    }
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(dir) = root.open_dir(&path) else { continue };
        for item in dir.read_dir(Path::new("")).unwrap_or_default() {
            let Ok(stat) = dir.stat(Path::new(&item.name)) else { continue };
            measured.add(&stat);
            if stat.kind == FileKind::Directory {
                pending.push(path.join(&item.name));
            }
        }
    }
    measured
}

/// One thing by itself.
pub(crate) fn measure(root: &Root, top: &Path) -> Measured {
    let mut measured = measure_raw(root, top);
    measured.settle(&mut HashSet::new());
    measured
}

impl Store {
    /// Everything in the store's folder by place; the sum is what `du` says. Folders of things stand for themselves
    /// alone (`layers`), the store's folder is the empty path.
    pub(crate) fn measure_all(&self) -> Result<BTreeMap<PathBuf, Measured>, StoreError> {
        let (whole, shells) = self.places()?;
        let mut all: Vec<(PathBuf, Measured)> = whole
            .into_par_iter()
            .map(|place| {
                let measured = measure_raw(self.root(), &place);
                (place, measured)
            })
            .collect();
        for place in shells {
            let mut measured = Measured::default();
            if let Ok(stat) = self.root().stat(&place) {
                measured.add(&stat);
            }
            all.push((place, measured));
        }
        let mut all: BTreeMap<PathBuf, Measured> = all.into_iter().collect();
        let mut seen = HashSet::new();
        for measured in all.values_mut() {
            measured.settle(&mut seen);
        }
        Ok(all)
    }

    /// What is measured with all that is beneath it, and what by itself.
    fn places(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), StoreError> {
        let list = |place: &Path| {
            let path = self.path().join(place);
            self.root().read_dir(place).map_err(failed("read", &path))
        };
        let (mut whole, mut shells) = (Vec::new(), vec![PathBuf::new()]);
        for top in list(Path::new(""))? {
            let itemised = ITEMISED.iter().any(|name| top.name == OsStr::new(name));
            if !itemised || top.kind != FileKind::Directory {
                whole.push(PathBuf::from(top.name));
                continue;
            }
            let top = PathBuf::from(top.name);
            for item in list(&top)? {
                let place = top.join(&item.name);
                // blobs/<algorithm>/<hex>
                if top == Path::new("blobs") && item.kind == FileKind::Directory {
                    whole.extend(list(&place)?.into_iter().map(|blob| place.join(blob.name)));
                    shells.push(place);
                } else {
                    whole.push(place);
                }
            }
            shells.push(top);
        }
        Ok((whole, shells))
    }
}
