//! From a cache mount to packs: what an earlier export left is used again, and only the rest is read and written.
//!
//! A pack of an earlier export stays as long as three quarters of it are still needed. The data that no such pack has
//! goes into new ones in the order of its paths; where one ends follows from the path, so that the same files give the
//! same packs on every machine. Many small packs, which many small changes leave, become one now and then.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_cache::{
    BlobWriter, ContentDigest, Descriptor, Kind, Lease, Root, Store, Tree, TreeBuilder,
};

use super::CacheError;
use super::mount::{CONTENTS, Content, Pack, TREE, media_type, write_contents};
use crate::archive::{Compression, FrameCompressor};

/// No pack of several files ends before so many bytes, the last one aside.
const LEAST: u64 = 2 << 20;
/// Mean size of a pack of small files.
const MEAN: u64 = 8 << 20;
/// A pack ends before the file that would make it larger; a larger file is a pack of its own.
const MOST: u64 = 32 << 20;
/// So many packs that are smaller than [`LEAST`] may stay.
const SMALL: usize = 16;
/// Bytes that are compressed at once.
const FRAME: usize = 1 << 20;
/// Packs that are made at once.
const PARALLEL: usize = 4;
const PIECE: usize = 256 << 10;

/// A mount as it goes into a cache.
#[derive(Debug)]
pub struct PackedMount {
    /// What is in it.
    pub tree: Descriptor,
    /// What is in its packs.
    pub contents: Descriptor,
    /// Its packs.
    pub packs: Vec<Descriptor>,
    /// Those of its blobs that were made now: they are in the store, and held.
    pub made: Vec<Descriptor>,
}

/// How a mount is packed.
pub struct Packing<'a> {
    /// Where blobs are made.
    pub store: &'a Store,
    /// Holds them.
    pub lease: &'a Lease,
    /// How packs are compressed.
    pub compression: Compression,
    /// Whether to end.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl std::fmt::Debug for Packing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packing").field("compression", &self.compression).finish_non_exhaustive()
    }
}

/// A file whose data is to be packed.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    path: PathBuf,
    data: [u8; 32],
    size: u64,
}

impl Packing<'_> {
    /// Packs the files of a mount. `root` is the mount, `tree` what was found in it, `earlier` are packs that the cache
    /// has. Files that have changed or gone meanwhile are left out.
    ///
    /// # Errors
    /// The disk or the store fails; the build was stopped.
    pub fn pack(
        &self,
        root: &Root,
        tree: &Tree,
        earlier: Vec<Pack>,
    ) -> Result<PackedMount, CacheError> {
        let (mut packs, groups) = plan(tree, earlier);
        let made = self.make_all(root, &groups)?;
        let mut blobs: Vec<Descriptor> = made.iter().map(|pack| pack.blob.clone()).collect();
        packs.extend(made);
        let there: HashSet<[u8; 32]> = packs
            .iter()
            .flat_map(|pack| &pack.files)
            .map(|Content(data, _)| *data.as_bytes())
            .collect();
        let encoded = match without_missing(tree, &there) {
            None => tree.encode(),
            Some(tree) => tree.encode(),
        };
        let tree = self.document(TREE, &encoded)?;
        let contents = self.document(CONTENTS, &write_contents(&packs))?;
        blobs.extend([tree.clone(), contents.clone()]);
        let packs = packs.into_iter().map(|pack| pack.blob).collect();
        Ok(PackedMount { tree, contents, packs, made: blobs })
    }

    /// Makes the packs that are missing, in order.
    fn make_all(&self, root: &Root, groups: &[Vec<Wanted>]) -> Result<Vec<Pack>, CacheError> {
        let next = Mutex::new(groups.iter().enumerate());
        let results = Mutex::new(Vec::with_capacity(groups.len()));
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while failed().is_none() {
                let group = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((number, group)) = group else { break };
                match self.make(root, group) {
                    Ok(Some(pack)) => {
                        let mut all = results.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push((number, pack));
                    }
                    Ok(None) => {}
                    Err(error) => drop(failed().get_or_insert(error)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(groups.len()) {
                scope.spawn(work);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut packs = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        packs.sort_by_key(|(number, _)| *number);
        Ok(packs.into_iter().map(|(_, pack)| pack).collect())
    }

    /// Makes one pack; none where all of its files have gone.
    fn make(&self, root: &Root, group: &[Wanted]) -> Result<Option<Pack>, CacheError> {
        let written = |source| io_error("write", Path::new("a pack"), source);
        let mut writer = PackWriter {
            blob: self.store.blob_writer()?,
            compressor: FrameCompressor::new(self.compression).map_err(written)?,
            frame: Vec::with_capacity(FRAME),
        };
        let mut files = Vec::with_capacity(group.len());
        for wanted in group {
            if (self.cancelled)() {
                return Err(CacheError::Cancelled);
            }
            // What a step has taken away meanwhile.
            let Ok(mut file) = root.open_file(&wanted.path) else { continue };
            files.push(writer.file(&mut file, wanted.size, self.cancelled, &wanted.path)?);
        }
        if files.is_empty() {
            return Ok(None);
        }
        writer.flush().map_err(written)?;
        let blob = self.keep(&media_type(self.compression), writer.blob)?;
        Ok(Some(Pack { blob, files }))
    }

    fn document(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, CacheError> {
        let written = |source| io_error("write", Path::new("a document"), source);
        let packed =
            zstd::bulk::compress(bytes, Compression::DEFAULT_ZSTD.into()).map_err(written)?;
        let mut blob = self.store.blob_writer()?;
        blob.write_all(&packed).map_err(written)?;
        self.keep(media_type, blob)
    }

    fn keep(&self, media_type: &str, blob: BlobWriter) -> Result<Descriptor, CacheError> {
        let info = blob.commit(None)?;
        if !self.lease.hold_blob(&info.digest)? {
            return Err(CacheError::Foreign("a pack was removed while it was made; try again"));
        }
        Ok(Descriptor::new(media_type, info.digest, info.size))
    }
}

/// Compresses what comes, frame by frame.
struct PackWriter {
    blob: BlobWriter,
    compressor: FrameCompressor,
    frame: Vec<u8>,
}

impl PackWriter {
    /// Appends a file, as it is now, but no more than `size` bytes of it.
    fn file(
        &mut self,
        file: &mut File,
        size: u64,
        cancelled: &(dyn Fn() -> bool + Sync),
        path: &Path,
    ) -> Result<Content, CacheError> {
        let mut hasher = blake3::Hasher::new();
        let mut reader = file.take(size);
        let mut piece = vec![0; PIECE];
        let mut total = 0;
        loop {
            if cancelled() {
                return Err(CacheError::Cancelled);
            }
            let count = match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error("read", path, error)),
            };
            hasher.update(&piece[..count]);
            total += count as u64;
            self.frame.extend_from_slice(&piece[..count]);
            if self.frame.len() >= FRAME {
                self.flush().map_err(|error| io_error("write a pack with", path, error))?;
            }
        }
        Ok(Content(ContentDigest::from(hasher.finalize()), total))
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.blob.write_all(&self.compressor.compress(&self.frame)?)?;
            self.frame.clear();
        }
        Ok(())
    }
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError::Io { operation, what: path.display().to_string(), source }
}

/// Which packs stay, and what goes into new ones.
fn plan(tree: &Tree, earlier: Vec<Pack>) -> (Vec<Pack>, Vec<Vec<Wanted>>) {
    let mut files = Vec::new();
    let mut open: HashMap<[u8; 32], u64> = HashMap::new();
    for (path, entry) in tree.walk() {
        if let Kind::File { size, data } = entry.kind
            && size > 0
            && open.insert(data, size).is_none()
        {
            files.push(Wanted { path, data, size });
        }
    }
    let small = earlier.iter().filter(|pack| pack.size() < LEAST).count();
    let mut kept = Vec::new();
    for pack in earlier {
        let live = pack.files.iter().filter(|Content(data, _)| open.contains_key(data.as_bytes()));
        let live = live.fold(0_u64, |sum, Content(_, size)| sum.saturating_add(*size));
        let size = pack.size();
        let worth = live > 0 && live >= size - size / 4;
        if worth && (size >= LEAST || small <= SMALL) {
            for Content(data, _) in &pack.files {
                open.remove(data.as_bytes());
            }
            kept.push(pack);
        }
    }
    files.retain(|wanted| open.contains_key(&wanted.data));
    (kept, cut(files))
}

/// Cuts files into packs.
fn cut(files: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    let (mut groups, mut group, mut size) = (Vec::new(), Vec::new(), 0);
    for wanted in files {
        if wanted.size > MOST {
            groups.push(vec![wanted]);
            continue;
        }
        if size + wanted.size > MOST {
            groups.push(std::mem::take(&mut group));
            size = 0;
        }
        size += wanted.size;
        let ends = size >= LEAST && ends_pack(&wanted.path, wanted.size);
        group.push(wanted);
        if ends {
            groups.push(std::mem::take(&mut group));
            size = 0;
        }
    }
    groups.push(group);
    groups.retain(|group| !group.is_empty());
    groups
}

/// Whether a pack that is long enough ends after this file; as with frames of layers, a long file ends one more likely.
fn ends_pack(path: &Path, size: u64) -> bool {
    let hash = blake3::hash(path.as_os_str().as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
    let chance = u64::MAX / (MEAN - LEAST);
    u64::from_le_bytes(*first) < chance.saturating_mul(size.next_power_of_two())
}

/// The tree without the files whose data is in no pack; none where there are no such files.
fn without_missing(tree: &Tree, there: &HashSet<[u8; 32]>) -> Option<Tree> {
    let missing = |kind: &Kind| match kind {
        Kind::File { size, data } => *size > 0 && !there.contains(data),
        _ => false,
    };
    if !tree.walk().any(|(_, entry)| missing(&entry.kind)) {
        return None;
    }
    let mut rest = TreeBuilder::new();
    rest.insert(Path::new(""), tree.root().entry().clone());
    for (path, entry) in tree.walk().filter(|(_, entry)| !missing(&entry.kind)) {
        rest.insert(&path, entry.clone());
    }
    Some(rest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_cache::{Digest, Entry};

    fn tree(files: &[(&str, u64)]) -> Tree {
        let mut tree = TreeBuilder::new();
        for (path, size) in files {
            let data = *blake3::hash(format!("{path} {size}").as_bytes()).as_bytes();
            let kind = Kind::File { size: *size, data };
            let entry = Entry { kind, metadata: Default::default(), link_group: 0 };
            tree.insert(Path::new(path), entry);
        }
        tree.finish()
    }

    fn packs(groups: &[Vec<Wanted>]) -> Vec<Pack> {
        let blob = Descriptor::new("x", Digest::sha256(b""), 0);
        let content =
            |wanted: &Wanted| Content(ContentDigest::from_bytes(wanted.data), wanted.size);
        let pack = |group: &Vec<Wanted>| Pack {
            blob: blob.clone(),
            files: group.iter().map(content).collect(),
        };
        groups.iter().map(pack).collect()
    }

    fn names(count: u32) -> Vec<String> {
        (0..count).map(|n| format!("d{:02}/{n:05}", n % 50)).collect()
    }

    #[test]
    fn what_is_packed_stays_packed() {
        let names = names(4000);
        let mut files: Vec<(&str, u64)> =
            names.iter().map(|name| (name.as_str(), 20_000)).collect();
        let (kept, groups) = plan(&tree(&files), Vec::new());
        assert!(kept.is_empty() && groups.len() > 4 && groups.len() < 30, "{}", groups.len());
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 4000);
        let first = packs(&groups);
        let (kept, groups) = plan(&tree(&files), first.clone());
        assert_eq!((kept.len(), groups.len()), (first.len(), 0), "nothing changed");
        for (_, size) in files.iter_mut().step_by(100) {
            *size = 30_000;
        }
        let (kept, groups) = plan(&tree(&files), first.clone());
        assert!(kept.len() + 1 >= first.len() && groups.len() == 1, "what is new is in one pack");
        // Where half of it has gone, it is packed anew.
        let half: Vec<(&str, u64)> = files.iter().copied().step_by(2).collect();
        let (kept, groups) = plan(&tree(&half), first);
        assert!(kept.is_empty() && !groups.is_empty());
    }

    #[test]
    fn packs_end_where_paths_say() {
        let names = names(4000);
        let all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 20_000)).collect();
        let (_, before) = plan(&tree(&all), Vec::new());
        let (_, after) = plan(&tree(&all[1..]), Vec::new());
        let same = after.iter().filter(|group| before.contains(group)).count();
        assert!(same + 3 >= before.len(), "{same} of {}", before.len());
        let (_, large) = plan(&tree(&[("a", 1), ("b", MOST + 1), ("c", 1)]), Vec::new());
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn small_packs_become_one() {
        let names = names(100);
        let mut known = Vec::new();
        for count in 1..=SMALL + 2 {
            let files: Vec<(&str, u64)> = names[..count].iter().map(|n| (n.as_str(), 10)).collect();
            let (kept, groups) = plan(&tree(&files), known);
            known = kept;
            known.extend(packs(&groups));
            assert!(known.len() <= SMALL + 1, "{count}");
        }
        assert_eq!(known.len(), 1);
    }
}
