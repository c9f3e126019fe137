//! `--cache-from …,mounts=`: a cache mount that is new on this machine begins with what a cache has of it. Nothing is
//! fetched unless a step that runs uses the mount, and what cannot be had costs time, never a build.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use kiln_cache::{CacheMount, CacheMountRequest, Key, Root, Sharing, StoreError};
use kiln_image::cache::CacheError;
use kiln_image::cache::fill::fill_mount;
use kiln_image::cache::mount::CachedMount;
use kiln_solver::ports::{Kind, Log, StepError, Stream};

use super::{Imports, Source};
use crate::command::size;
use crate::failure::chain;

/// A mount as a cache has it.
struct Carried<'a> {
    source: usize,
    mount: &'a CachedMount,
}

impl Source {
    fn names_mount(&self, request: &CacheMountRequest) -> bool {
        self.mounts.iter().any(|id| id == request.shown_id())
    }
}

impl Imports {
    /// Opens a cache mount for a step, as [`kiln_cache::Store::cache_mount`] does; a new one is filled from a cache,
    /// where one has it and `anew` is not asked for.
    ///
    /// # Errors
    /// The store fails, or `fill` does.
    pub(crate) fn open_mount(
        &self,
        request: &CacheMountRequest,
        anew: bool,
        fill: &dyn Fn(&Root) -> io::Result<()>,
        cancelled: &dyn Fn() -> bool,
        log: &dyn Log,
    ) -> Result<Option<CacheMount>, StepError> {
        let name = request.name();
        self.state().used_mounts.insert(name.clone());
        if anew || !self.names_mount(request) {
            return self.opened(self.store.cache_mount(request, fill, cancelled));
        }
        // What is empty goes, so that it is made anew.
        self.is_new(request).map_err(StepError::environment)?;
        let lock = RefCell::new(None);
        let fill = |root: &Root| {
            let Some(carried) = self.carried(request, &name) else { return fill(root) };
            // One fetches; others find what it has made, and their own is dropped. Who comes here again has the lock.
            let mut lock = lock.borrow_mut();
            if lock.is_none() {
                *lock = self.only_one(&name)?;
            }
            let fetches = request.sharing == Sharing::Private || self.is_new(request)?;
            if lock.is_some() && fetches && self.fill_mount(&carried, request, root, log)? {
                return Ok(());
            }
            fill(root)
        };
        self.opened(self.store.cache_mount(request, &fill, cancelled))
    }

    fn opened(
        &self,
        opened: Result<Option<CacheMount>, StoreError>,
    ) -> Result<Option<CacheMount>, StepError> {
        match opened {
            Err(_) if self.cancel.is_cancelled() => {
                Err(StepError::new(Kind::Cancelled, "cancelled"))
            }
            opened => opened.map_err(StepError::environment),
        }
    }

    /// Whether a cache may fill this mount.
    fn names_mount(&self, request: &CacheMountRequest) -> bool {
        self.sources.iter().any(|source| source.names_mount(request))
    }

    /// What the first of the caches has that may fill this mount.
    fn carried(&self, request: &CacheMountRequest, name: &str) -> Option<Carried<'_>> {
        self.loaded().indexes.iter().find_map(|index| {
            let mut mounts = index.index.mounts.iter();
            let mount = mounts.find(|mount| mount.name == name)?;
            let source = index.source;
            self.sources[source].names_mount(request).then_some(Carried { source, mount })
        })
    }

    /// Whether there is no such mount with anything in it.
    fn is_new(&self, request: &CacheMountRequest) -> io::Result<bool> {
        self.store.is_new_mount(request).map_err(io::Error::other)
    }

    /// Waits until nobody else fills the mount; none when the build was stopped.
    fn only_one(&self, name: &str) -> io::Result<Option<kiln_cache::KeyLock>> {
        let hash = blake3::hash(format!("kiln fill cache mount {name}").as_bytes());
        let key = Key::from_bytes(*hash.as_bytes());
        self.store.lock(&key, &|| self.cancel.is_cancelled()).map_err(io::Error::other)
    }

    /// Fills an empty folder; false when that did not work, and it is empty again.
    fn fill_mount(
        &self,
        carried: &Carried<'_>,
        request: &CacheMountRequest,
        root: &Root,
        log: &dyn Log,
    ) -> io::Result<bool> {
        let source = &self.sources[carried.source];
        let id = request.shown_id();
        let cancelled = || self.cancel.is_cancelled();
        let mut suspect = None;
        let room = |bytes| self.images.room().want(bytes);
        let filled = fill_mount(source.backend.as_ref(), carried.mount, root, &room, &cancelled);
        let line = match filled {
            Ok(filled) => {
                let (files, bytes) = (filled.files, size(filled.bytes));
                let line =
                    format!("cache mount `{id}`: {files} files, {bytes} from `{}`\n", source.name);
                log.write(Stream::Err, line.as_bytes());
                return Ok(true);
            }
            Err(CacheError::Cancelled) => return Err(io::Error::other("cancelled")),
            Err(error) => {
                if let CacheError::Mount { digest, .. } = &error {
                    suspect = Some(digest.clone());
                }
                format!("cache `{}` does not fill the mount `{id}`: {}", source.name, chain(&error))
            }
        };
        let mut state = self.state();
        state.warn(line);
        state.suspect.extend(suspect);
        drop(state);
        for item in root.read_dir(Path::new(""))? {
            root.remove_all(Path::new(&item.name))?;
        }
        Ok(false)
    }
}
