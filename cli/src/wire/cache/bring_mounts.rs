//! `--cache-from …,mounts=`: a cache mount that is new on this machine begins with what a cache has of it. Nothing is
//! fetched unless a step that runs uses the mount, and what cannot be had costs time, never a build.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use kiln_cache::{CacheMount, CacheMountRequest, Key, Root};
use kiln_image::cache::CacheError;
use kiln_image::cache::fill::fill_mount;
use kiln_image::cache::mount::CachedMount;
use kiln_solver::ports::{Kind, Log, StepError, Stream};

use super::Imports;
use crate::command::size;
use crate::failure::chain;

/// A mount as a cache has it.
struct Carried<'a> {
    source: usize,
    mount: &'a CachedMount,
}

impl Imports {
    /// Opens a cache mount for a step, as [`kiln_cache::Store::cache_mount`] does; a new one is filled from a cache, where one has it
    /// and `anew` is not asked for.
    ///
    /// # Errors
    /// The store fails, or `fill` does.
    pub(crate) fn open_mount(
        &self,
        request: &CacheMountRequest,
        anew: bool,
        fill: &dyn Fn(&Root) -> io::Result<()>,
        log: &dyn Log,
    ) -> Result<Option<CacheMount>, StepError> {
        let name = request.name();
        self.state().used_mounts.insert(name.clone());
        let cancelled = || self.cancel.is_cancelled();
        let carried = if anew { None } else { self.carried(request, &name)? };
        let lock = RefCell::new(None);
        let fill = |root: &Root| {
            let Some(carried) = &carried else { return fill(root) };
            // One process fetches; others find what it has made, and their own is dropped.
            *lock.borrow_mut() = self.only_one(&name)?;
            let fetches = lock.borrow().is_some() && self.is_new(request)?;
            if fetches && self.fill_mount(carried, request, root, log)? {
                return Ok(());
            }
            fill(root)
        };
        let opened = self.store.cache_mount(request, &fill, &cancelled);
        match opened {
            Err(_) if cancelled() => Err(StepError::new(Kind::Cancelled, "cancelled")),
            opened => opened.map_err(StepError::environment),
        }
    }

    /// What the first of the caches has that may fill this mount; only asked where the mount is new.
    fn carried(
        &self,
        request: &CacheMountRequest,
        name: &str,
    ) -> Result<Option<Carried<'_>>, StepError> {
        let id = request.shown_id();
        let named = |source: usize| self.sources[source].mounts.iter().any(|known| known == id);
        if !(0..self.sources.len()).any(named)
            || !self.is_new(request).map_err(StepError::environment)?
        {
            return Ok(None);
        }
        let indexes = self.loaded().indexes.iter().filter(|index| named(index.source));
        let mut found = indexes.filter_map(|index| {
            let mount = index.index.mounts.iter().find(|mount| mount.name == name)?;
            Some(Carried { source: index.source, mount })
        });
        Ok(found.next())
    }

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
        let line = match fill_mount(source.backend.as_ref(), carried.mount, root, &cancelled) {
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
        log.write(Stream::Err, format!("warning: {line}\n").as_bytes());
        let mut state = self.state();
        state.told.push(line);
        state.suspect.extend(suspect);
        drop(state);
        for item in root.read_dir(Path::new(""))? {
            root.remove_all(Path::new(&item.name))?;
        }
        Ok(false)
    }
}
