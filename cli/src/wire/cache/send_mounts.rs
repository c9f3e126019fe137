//! `--cache-to …,mounts=`: what is in named cache mounts goes into a cache, as far as it is not there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_cache::{Descriptor, NamedMount, OpenMount, Store, Tree};
use kiln_image::cache::fill::mount_packs;
use kiln_image::cache::mount::{CachedMount, Pack};
use kiln_image::cache::pack::{PackedMount, Packing};
use kiln_image::cache::{Backend, CacheError};

use super::{Imports, PARALLEL};
use crate::cache_option::CacheTo;
use crate::command::now;
use crate::failure::chain;

/// For so long a mount is waited for that a step of another build has alone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const WAIT: Duration = Duration::from_millis(50);
/// Mounts that change under our hands are looked at so often.
const LOOKS: usize = 3;
/// A mount that is not on this machine stays in a cache for so long after its last use, in seconds: as long as on a disk.
const STAYS: i64 = 14 * 24 * 3600;

/// The mounts of one export.
pub(super) struct SendMounts<'a> {
    pub(super) store: &'a Store,
    pub(super) imports: &'a Imports,
    pub(super) option: &'a CacheTo,
    pub(super) backend: &'a dyn Backend,
    pub(super) interrupted: &'a AtomicBool,
    /// What the cache has already.
    pub(super) before: Vec<CachedMount>,
}

impl SendMounts<'_> {
    /// What the cache has of the named mounts afterwards. What cannot be read here is told, and stays as it was there.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub(super) fn send(&self, told: &mut Vec<String>) -> Result<Vec<CachedMount>, CacheError> {
        let mut all = Vec::new();
        for mount in self.store.named_mounts(&self.option.mounts)? {
            let before = self.before.iter().find(|before| before.name == mount.name);
            let used = self.imports.state().used_mounts.contains(&mount.name);
            if !used && before.is_some_and(|before| before.used >= mount.last_used) {
                continue;
            }
            match self.pack(&mount) {
                Ok(None) => {}
                Ok(Some(packed)) => all.push(self.put(&mount, packed)?),
                Err(CacheError::Cancelled) => {}
                Err(error) => {
                    let why = chain(&error);
                    told.push(format!("cache mount `{}` is not exported: {why}", mount.id));
                }
            }
        }
        for before in &self.before {
            let named = self.option.mounts.contains(&before.id);
            let replaced = all.iter().any(|mount: &CachedMount| mount.name == before.name);
            if named && !replaced && now() - before.used < STAYS {
                let blobs: Vec<Descriptor> = before.blobs().cloned().collect();
                if self.each(&blobs, |blob| self.backend.has_blob(blob))?.iter().all(|has| *has) {
                    all.push(before.clone());
                }
            }
        }
        all.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
        Ok(all)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Makes what is to be sent. Steps that want the mount alone wait meanwhile, but not for the sending.
    fn pack(
        &self,
        mount: &NamedMount,
    ) -> Result<Option<(PackedMount, kiln_cache::Lease)>, CacheError> {
        if self.is_interrupted() {
            return Err(CacheError::Cancelled);
        }
        let earlier = self.earlier(mount);
        let open = self.open(mount)?;
        let tree = look(&open)?;
        if tree.is_empty() {
            return Ok(None);
        }
        let lease = self.store.lease()?;
        let packing = Packing {
            store: self.store,
            lease: &lease,
            compression: self.option.compression,
            cancelled: &|| self.is_interrupted(),
        };
        let packed = packing.pack(&open.root, &tree, earlier)?;
        Ok(Some((packed, lease)))
    }

    /// Opens a mount beside steps that share it; those that want it alone exclude us, but not for ever.
    fn open(&self, mount: &NamedMount) -> Result<OpenMount, CacheError> {
        let begin = Instant::now();
        loop {
            if let Some(open) = self.store.open_mount(&mount.folder, false)? {
                return Ok(open);
            }
            if self.is_interrupted() {
                return Err(CacheError::Cancelled);
            }
            if begin.elapsed() > PATIENCE {
                return Err(CacheError::Foreign("a step of another build has it alone"));
            }
            std::thread::sleep(WAIT);
        }
    }

    /// The packs that the cache has of mounts with this id, and that are there.
    fn earlier(&self, mount: &NamedMount) -> Vec<Pack> {
        let mut same: Vec<_> = self.before.iter().filter(|one| one.id == mount.id).collect();
        same.sort_by_key(|before| before.name != mount.name);
        let mut packs: Vec<Pack> = Vec::new();
        for before in same {
            // What cannot be read is made anew.
            packs.extend(mount_packs(self.backend, before).unwrap_or_default());
        }
        let state = self.imports.state();
        packs.retain(|pack| !state.suspect.contains(&pack.blob.digest));
        drop(state);
        let blobs: Vec<Descriptor> = packs.iter().map(|pack| pack.blob.clone()).collect();
        let there = self.each(&blobs, |blob| self.backend.has_blob(blob));
        let Ok(there) = there else { return Vec::new() };
        let both = packs.into_iter().zip(there);
        let there = both.filter_map(|(pack, there)| there.then_some(pack));
        let (forced, compression) = (self.option.force_compression, self.option.compression);
        there.filter(|pack| !forced || pack.is_compressed_by(compression)).collect()
    }

    /// Sends what was made, and takes it out of the store again.
    fn put(
        &self,
        mount: &NamedMount,
        (packed, lease): (PackedMount, kiln_cache::Lease),
    ) -> Result<CachedMount, CacheError> {
        let sent = self.each(&packed.made, |blob| self.imports.put_blob(self.backend, blob));
        drop(lease);
        for blob in &packed.made {
            // What stays is garbage, and goes as such.
            let _stays = self.store.discard_blob(&blob.digest);
        }
        sent?;
        Ok(CachedMount {
            id: mount.id.clone(),
            name: mount.name.clone(),
            used: mount.last_used,
            tree: packed.tree,
            contents: packed.contents,
            packs: packed.packs,
        })
    }

    /// Does something with each blob, a few at once; the answers in their order.
    fn each<T: Send>(
        &self,
        blobs: &[Descriptor],
        act: impl Fn(&Descriptor) -> Result<T, CacheError> + Sync,
    ) -> Result<Vec<T>, CacheError> {
        let next = Mutex::new(blobs.iter().enumerate());
        let results = Mutex::new(Vec::with_capacity(blobs.len()));
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(blobs.len()) {
                scope.spawn(|| {
                    while failed().is_none() {
                        let blob = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((number, blob)) = blob else { break };
                        match act(blob) {
                            Ok(result) => {
                                let mut all =
                                    results.lock().unwrap_or_else(PoisonError::into_inner);
                                all.push((number, result));
                            }
                            Err(error) => drop(failed().get_or_insert(error)),
                        }
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(number, _)| *number);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }
}

/// What is in a mount, in which steps may be writing.
fn look(open: &OpenMount) -> Result<Tree, CacheError> {
    let mut looks = 1;
    loop {
        match open.scan() {
            Err(_) if looks < LOOKS => looks += 1,
            scanned => {
                let what = open.root.path().display().to_string();
                return scanned.map_err(|source| CacheError::Io {
                    operation: "read",
                    what,
                    source,
                });
            }
        }
    }
}
