//! Writing selected files into the layer.
//!
//! Directories come first, one thread; then all files of a source with all processors; then further
//! names of hard-linked files. What the base has just so is not written again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{Kind, LayerWriter, Metadata, Time, View, ViewEntry};
use rayon::prelude::*;

use super::place::{Found, Place, now};
use super::select::{Item, Listed};
use super::{CopyError, CopySpec, Selection, Source, Unpack, absolute};
use crate::chmod::Change;

/// Writes what was selected onto `dest` (for `--link`, an empty view).
///
/// # Errors
/// When the destination does not allow it, a file changed meanwhile, or reading or writing fails.
pub fn copy(
    spec: &CopySpec,
    sources: &[(Source<'_>, Selection)],
    dest: &dyn View,
    writer: &LayerWriter,
    unpacker: &dyn Unpack,
) -> Result<(), CopyError> {
    let chmod = spec.chmod.as_ref().map(Change::of).transpose()?;
    let place = Place { below: dest, writer };
    let time = spec.time.unwrap_or_else(now);
    let job = Job { spec, chmod, place, unpacker, time };
    let works = |(source, selection): &(Source<'_>, Selection)| {
        !matches!(source, Source::View { .. }) || !selection.items.is_empty()
    };
    if sources.iter().any(works) {
        job.place.keep_root()?;
    }
    for (source, selection) in sources {
        match source {
            Source::View { view, unpack, .. } => {
                for item in &selection.items {
                    job.item(*view, item, *unpack)?;
                }
            }
            Source::File { name, file, mode, mtime, unpack } => {
                job.download(name, file, (*mode, *mtime), *unpack)?;
            }
            Source::Inline { name, data } => {
                let to = job.file_path(OsStr::new(name))?;
                let metadata = job.of_file(0o644, job.time);
                let mut data = *data;
                writer.file(&to, &metadata, &mut data).map_err(CopyError::io("write", &to))?;
            }
        }
    }
    Ok(())
}

struct Job<'a> {
    spec: &'a CopySpec,
    chmod: Option<Change>,
    place: Place<'a>,
    unpacker: &'a dyn Unpack,
    time: Time,
}

/// A file to write.
struct Task<'a> {
    from: PathBuf,
    to: PathBuf,
    entry: &'a ViewEntry,
    metadata: Metadata,
}

#[derive(Default)]
struct Plan<'a> {
    tasks: Vec<Task<'a>>,
    /// Further names: new, existing.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Job<'_> {
    /// Metadata of a directory that nobody copied.
    fn made(&self, mode: u32, mtime: Time) -> Metadata {
        let (uid, gid) = self.spec.owner.unwrap_or((0, 0));
        Metadata { mode, uid, gid, mtime, ..Metadata::default() }
    }

    /// Of missing parents: an octal `--chmod` is theirs too.
    fn parent(&self) -> Metadata {
        let mode = match self.chmod {
            Some(Change::Octal(mode)) => mode,
            _ => 0o755,
        };
        self.made(mode, self.time)
    }

    /// Of a file that has no metadata of its own.
    fn of_file(&self, mode: u32, mtime: Time) -> Metadata {
        let mode = self.chmod.as_ref().map_or(mode, |change| change.apply(mode, false));
        self.made(mode, mtime)
    }

    /// Of a copied entry.
    fn copied(&self, found: &ViewEntry) -> Metadata {
        let mut metadata = found.entry.metadata.clone();
        if let Some((uid, gid)) = self.spec.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if let Some(change) = &self.chmod
            && !matches!(found.entry.kind, Kind::Symlink { .. })
        {
            metadata.mode = change.apply(metadata.mode, found.entry.is_dir());
        }
        metadata
    }

    /// Where a file called `name` goes; its parents are in the layer afterwards.
    fn file_path(&self, name: &OsStr) -> Result<PathBuf, CopyError> {
        let dest = self.place.resolve(&self.spec.dest)?;
        let is_dir = self.place.find(&dest).is_some_and(|found| found.entry.is_dir());
        let inside = is_dir
            || dest.as_os_str().is_empty()
            || ["/", "/.", "/.."].iter().any(|end| self.spec.dest.ends_with(end));
        let path = if inside { dest.join(name) } else { dest };
        if let Some(parent) = path.parent() {
            self.place.ensure(parent, &self.parent())?;
        }
        if self.place.find(&path).is_some_and(|found| found.entry.is_dir()) {
            return Err(CopyError::ReplaceDirectory { path: absolute(&path) });
        }
        Ok(path)
    }

    /// One download.
    fn download(
        &self,
        name: &str,
        file: &File,
        (mode, mtime): (u32, Time),
        unpack: bool,
    ) -> Result<(), CopyError> {
        if unpack {
            let clone = file.try_clone().map_err(CopyError::io("open", Path::new(name)))?;
            if self.unpacked(clone, Path::new(name))? {
                return Ok(());
            }
        }
        let to = self.file_path(OsStr::new(name))?;
        let writer = self.place.writer;
        let written = writer.file_from(&to, &self.of_file(mode, mtime), file, None);
        written.map(|_| ()).map_err(CopyError::io("write", &to))
    }

    /// Unpacks an archive into the destination; says whether it was one. `--chmod` has no say.
    fn unpacked(&self, mut file: File, from: &Path) -> Result<bool, CopyError> {
        let is_archive = self.unpacker.is_archive(&mut file);
        if !is_archive.map_err(CopyError::io("read", from))? {
            return Ok(false);
        }
        let dest = self.place.resolve(&self.spec.dest)?;
        self.place.ensure(&dest, &self.made(0o755, self.time))?;
        let Place { below, writer } = self.place;
        self.unpacker
            .unpack(file, below, &dest, writer, self.spec.owner)
            .map_err(CopyError::io("unpack", from))?;
        Ok(true)
    }

    fn item(&self, view: &dyn View, item: &Item, unpack: bool) -> Result<(), CopyError> {
        if item.entry.entry.is_dir() {
            return self.directory(view, item);
        }
        if unpack && matches!(item.entry.entry.kind, Kind::File { size: 1.., .. }) {
            let file = view.open(&item.path).map_err(CopyError::io("open", &item.path))?;
            if self.unpacked(file, &item.path)? {
                return Ok(());
            }
        }
        let to = self.file_path(&item.name)?;
        let metadata = self.copied(&item.entry);
        self.write(view, &Task { from: item.path.clone(), to, entry: &item.entry, metadata })
    }

    fn directory(&self, view: &dyn View, item: &Item) -> Result<(), CopyError> {
        let listed = match &item.listed {
            Some(listed) => Cow::Borrowed(listed),
            None => Cow::Owned(walk(view, &item.path)),
        };
        if let Some(error) = view.take_error() {
            return Err(CopyError::io("read", &item.path)(error));
        }
        let dest = self.place.resolve(&self.spec.dest)?;
        let is_new = self.top(item, &dest)?;
        let plan = self.plan(item, &dest, &listed, is_new)?;
        plan.tasks.par_iter().try_for_each(|task| self.write(view, task))?;
        for (to, existing) in &plan.links {
            let writer = self.place.writer;
            writer.hardlink(to, existing).map_err(CopyError::io("link", to))?;
        }
        Ok(())
    }

    /// The directory that takes the contents: one that is there keeps its metadata, a new one has
    /// only the source's time. Says whether it is new.
    fn top(&self, item: &Item, dest: &Path) -> Result<bool, CopyError> {
        if dest.as_os_str().is_empty() {
            return Ok(false);
        }
        match self.place.find(dest) {
            Some(found) if found.entry.is_dir() => Ok(false),
            Some(_) => Err(CopyError::NotADirectory { path: absolute(dest) }),
            None => {
                let metadata = self.parent();
                self.place.ensure(dest.parent().unwrap_or(Path::new("")), &metadata)?;
                let mtime = item.entry.entry.metadata.mtime;
                let metadata = Metadata { mtime, ..metadata };
                let made = self.place.writer.directory(dest, &metadata);
                made.map_err(CopyError::io("make the directory", dest))?;
                Ok(true)
            }
        }
    }

    /// Makes the directories, and says which files are to be written.
    fn plan<'e>(
        &self,
        item: &Item,
        dest: &Path,
        listed: &'e Listed,
        is_new: bool,
    ) -> Result<Plan<'e>, CopyError> {
        let mut plan = Plan::default();
        let mut names = HashMap::new();
        // Beneath a new directory there is nothing to look for.
        let mut new = is_new.then(|| dest.to_owned());
        let mut parent: Option<PathBuf> = None;
        for (relative, entry) in listed {
            let to = dest.join(relative);
            let fresh = new.as_ref().is_some_and(|new| to.starts_with(new));
            let old = if fresh { None } else { self.place.find(&to) };
            let metadata = self.copied(entry);
            self.fits(&to, entry, old.as_ref())?;
            if old.as_ref().is_some_and(|old| is_same(old, entry, &metadata)) {
                continue;
            }
            if parent.as_deref() != to.parent() {
                parent = to.parent().map(Path::to_owned);
                self.place.ensure(parent.as_deref().unwrap_or(Path::new("")), &self.parent())?;
            }
            if entry.entry.is_dir() {
                let made = self.place.writer.directory(&to, &metadata);
                made.map_err(CopyError::io("make the directory", &to))?;
                if old.is_none() && !fresh {
                    new = Some(to);
                }
                continue;
            }
            if let Some(link) = entry.link() {
                if let Some(existing) = names.get(&link) {
                    plan.links.push((to, PathBuf::clone(existing)));
                    continue;
                }
                names.insert(link, to.clone());
            }
            plan.tasks.push(Task { from: item.path.join(relative), to, entry, metadata });
        }
        Ok(plan)
    }

    /// Whether an entry may be put where something is.
    fn fits(&self, to: &Path, entry: &ViewEntry, old: Option<&Found>) -> Result<(), CopyError> {
        match (entry.entry.is_dir(), old.map(|old| old.entry.is_dir())) {
            (true, Some(false)) => Err(CopyError::NotADirectory { path: absolute(to) }),
            (false, Some(true)) => Err(CopyError::ReplaceDirectory { path: absolute(to) }),
            _ => Ok(()),
        }
    }

    fn write(&self, view: &dyn View, task: &Task<'_>) -> Result<(), CopyError> {
        let Task { from, to, entry, metadata } = task;
        let writer = self.place.writer;
        match &entry.entry.kind {
            // Also what a socket of the context is: nothing that could be opened.
            Kind::File { size: 0, .. } => {
                let written = writer.file(to, metadata, &mut io::empty());
                written.map(|_| ()).map_err(CopyError::io("write", to))
            }
            Kind::File { size, data } => {
                let file = view.open(from).map_err(CopyError::io("open", from))?;
                let known = entry.known();
                let written = writer
                    .file_from(to, metadata, &file, known.as_ref())
                    .map_err(CopyError::io("write", to))?;
                if (written.size, &written.data) != (*size, data) {
                    return Err(CopyError::Changed { path: from.display().to_string() });
                }
                Ok(())
            }
            Kind::Symlink { target } => {
                writer.symlink(to, metadata, target).map_err(CopyError::io("link", to))
            }
            kind => writer
                .special(to, metadata, kind)
                .map_err(CopyError::io("make the special file", to)),
        }
    }
}

/// Whether the base has an entry just so already.
fn is_same(old: &Found, entry: &ViewEntry, metadata: &Metadata) -> bool {
    !old.written
        && entry.entry.link_group == 0
        && old.entry.kind == entry.entry.kind
        && old.entry.metadata == *metadata
}

/// Everything in a directory with relative paths, parents first.
fn walk(view: &dyn View, top: &Path) -> Listed {
    let mut found = Listed::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for (name, entry) in view.children(&top.join(&dir)) {
            let path = dir.join(name);
            if entry.entry.is_dir() {
                pending.push(path.clone());
            }
            found.push((path, entry));
        }
    }
    found
}
