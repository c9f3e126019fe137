//! Which files a source means, and what of them can change the result.
//!
//! Directories are listed by name, which costs no hashing; only what is selected is read.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_cache::{ContentDigest, FileKind, TreeBuilder, View, ViewEntry, resolve};
use rayon::prelude::*;

use super::similar::similar;
use super::{CopyError, CopySpec, PathMatch, Source, SourcePath};

/// What of a source is copied.
#[derive(Debug)]
pub struct Selection {
    pub(super) items: Vec<Item>,
    digest: ContentDigest,
}

/// A file or directory that the destination rules are applied to.
#[derive(Debug)]
pub(super) struct Item {
    /// In the view, links followed.
    pub(super) path: PathBuf,
    /// What a file is called in a directory.
    pub(super) name: OsString,
    pub(super) entry: ViewEntry,
    /// Of a directory, what is copied, parents first with paths relative to it; `None` is all.
    pub(super) listed: Option<Listed>,
}

pub(super) type Listed = Vec<(PathBuf, ViewEntry)>;

impl Selection {
    /// What can change the result: relative names and contents, no times.
    ///
    /// # Errors
    /// None at present: the files are read when they are selected.
    pub fn digest(&self) -> io::Result<ContentDigest> {
        Ok(self.digest)
    }
}

/// Selects what a source means.
///
/// # Errors
/// [`CopyError::NotFound`] for a path without wildcards; what reading says.
pub fn select(spec: &CopySpec, source: &Source<'_>) -> Result<Selection, CopyError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"kiln selection 1\0");
    match source {
        Source::Inline { name, data } => {
            add(&mut hasher, b'i', OsStr::new(name), blake3::hash(data).as_bytes());
            Ok(finish(Vec::new(), &hasher))
        }
        Source::File { name, file, mode, mtime, .. } => {
            let data = hash(file).map_err(CopyError::io("read", Path::new(name)))?;
            add(&mut hasher, b'd', OsStr::new(name), &data);
            hasher.update(&mode.to_le_bytes());
            // An unchanged file with another `Last-Modified` is another download.
            hasher.update(&mtime.as_nanos().to_le_bytes());
            Ok(finish(Vec::new(), &hasher))
        }
        Source::View { view, path, shown, .. } => {
            let search = Search { view: *view, exclude: spec.exclude.as_ref(), shown };
            let items = search.items(path)?;
            search.check()?;
            for item in &items {
                search.add(item, &mut hasher)?;
            }
            search.check()?;
            Ok(finish(items, &hasher))
        }
    }
}

fn finish(items: Vec<Item>, hasher: &blake3::Hasher) -> Selection {
    Selection { items, digest: hasher.finalize().into() }
}

fn add(hasher: &mut blake3::Hasher, kind: u8, name: &OsStr, content: &[u8; 32]) {
    hasher.update(&[kind]);
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(content);
}

fn hash(file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            count => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}

struct Search<'a> {
    view: &'a dyn View,
    exclude: Option<&'a PathMatch>,
    shown: &'a str,
}

/// A directory that the listing is in.
struct Open {
    path: PathBuf,
    /// Everything beneath belongs to a match.
    matched: bool,
    /// Its place in the listing; `None` for the top.
    index: Option<usize>,
}

struct Candidate {
    path: PathBuf,
    keep: bool,
}

impl Search<'_> {
    fn items(&self, path: &SourcePath) -> Result<Vec<Item>, CopyError> {
        match path {
            SourcePath::Plain(path) => Ok(vec![self.top(path)?]),
            SourcePath::Pattern { prefix, matches, levels } => {
                let mut items = Vec::new();
                for (path, is_file) in self.matching(prefix, matches, *levels)? {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let excluded = self.exclude.is_some_and(|exclude| exclude(&name));
                    if !(is_file && excluded) {
                        items.push(self.top(&path)?);
                    }
                }
                Ok(items)
            }
            SourcePath::Parents { pivot, pattern, literal, prefix } => {
                self.with_parents(pivot, pattern, literal.as_deref(), prefix)
            }
        }
    }

    /// The first failure that the view passed over.
    fn check(&self) -> Result<(), CopyError> {
        match self.view.take_error() {
            Some(error) => Err(CopyError::io("read", Path::new(self.shown))(error)),
            None => Ok(()),
        }
    }

    fn not_found(&self, path: &Path) -> CopyError {
        // A failure to read says more than that nothing is there.
        if let Err(error) = self.check() {
            return error;
        }
        let shown = self.shown.trim_start_matches('/');
        let similar = similar(self.view, path).map(|path| path.display().to_string());
        CopyError::NotFound { shown: format!("/{shown}"), similar }
    }

    /// What is at a path, links followed inside the source's root.
    fn find(&self, path: &Path) -> Result<(PathBuf, ViewEntry), CopyError> {
        let resolved = match resolve(self.view, path, true) {
            Ok(resolved) => resolved,
            Err(kiln_cache::ResolveError::NotADirectory { .. }) => {
                return Err(self.not_found(path));
            }
            Err(error) => return Err(error.into()),
        };
        match self.view.entry(&resolved) {
            Some(entry) => Ok((resolved, entry)),
            // A context may be empty, but it is there.
            None if resolved.as_os_str().is_empty() => {
                let entry = kiln_cache::Entry::directory(0o755);
                Ok((resolved, ViewEntry { entry, origin: 0, identity: None }))
            }
            None => Err(self.not_found(path)),
        }
    }

    fn top(&self, path: &Path) -> Result<Item, CopyError> {
        let (resolved, entry) = self.find(path)?;
        let name = path.file_name().unwrap_or_default().to_owned();
        let listed = match self.exclude {
            Some(_) if entry.entry.is_dir() => {
                Some(self.listed(&resolved, Path::new(""), &|_| true)?)
            }
            _ => None,
        };
        Ok(Item { path: resolved, name, entry, listed })
    }

    /// The paths that match, sorted, and whether each is a regular file.
    fn matching(
        &self,
        prefix: &Path,
        matches: &PathMatch,
        levels: Option<usize>,
    ) -> Result<Vec<(PathBuf, bool)>, CopyError> {
        let mut found = Vec::new();
        let start = match resolve(self.view, prefix, true) {
            Ok(start) => start,
            Err(kiln_cache::ResolveError::NotADirectory { .. }) => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        let mut pending = vec![(prefix.to_owned(), start)];
        while let Some((shown, real)) = pending.pop() {
            let depth = shown.iter().count() + 1;
            for (name, kind) in self.view.names(&real) {
                let path = shown.join(&name);
                if matches(&path.to_string_lossy()) {
                    found.push((path, kind == FileKind::File));
                } else if kind == FileKind::Directory && levels.is_none_or(|levels| depth < levels)
                {
                    pending.push((path, real.join(&name)));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn with_parents(
        &self,
        pivot: &Path,
        pattern: &PathMatch,
        literal: Option<&Path>,
        prefix: &Path,
    ) -> Result<Vec<Item>, CopyError> {
        let missing = || self.not_found(&pivot.join(literal.unwrap_or(Path::new(""))));
        let (path, entry) = match self.find(pivot) {
            Ok(found) => found,
            Err(CopyError::NotFound { .. }) if literal.is_none() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if !entry.entry.is_dir() {
            return if literal.is_some() { Err(missing()) } else { Ok(Vec::new()) };
        }
        if let Some(literal) = literal
            && self.view.entry(&path.join(literal)).is_none()
        {
            return Err(missing());
        }
        let listed = self.listed(&path, prefix, &|path| pattern(path))?;
        if listed.is_empty() && literal.is_none_or(|literal| !literal.as_os_str().is_empty()) {
            return Ok(Vec::new());
        }
        Ok(vec![Item { path, name: OsString::new(), entry, listed: Some(listed) }])
    }

    /// Everything in the directory `top` that `pattern` matches and that is not excluded, with the
    /// directories that lead there. Nothing but `prefix` is searched.
    fn listed(
        &self,
        top: &Path,
        prefix: &Path,
        pattern: &dyn Fn(&str) -> bool,
    ) -> Result<Listed, CopyError> {
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut open = vec![Open { path: PathBuf::new(), matched: pattern(""), index: None }];
        let mut pending: Vec<(PathBuf, FileKind)> = Vec::new();
        self.descend(top, Path::new(""), prefix, &mut pending);
        while let Some((path, kind)) = pending.pop() {
            while open.last().is_some_and(|dir| !path.starts_with(&dir.path)) {
                open.pop();
            }
            let text = path.to_string_lossy();
            let matched = open.last().is_some_and(|dir| dir.matched) || pattern(&text);
            let keep = matched && !self.exclude.is_some_and(|exclude| exclude(&text));
            if keep {
                for index in open.iter().filter_map(|dir| dir.index) {
                    candidates[index].keep = true;
                }
            }
            if kind == FileKind::Directory {
                self.descend(top, &path, prefix, &mut pending);
                open.push(Open { path: path.clone(), matched, index: Some(candidates.len()) });
            }
            candidates.push(Candidate { path, keep });
        }
        let kept: Vec<PathBuf> =
            candidates.into_iter().filter(|one| one.keep).map(|one| one.path).collect();
        let read = |path: PathBuf| match self.view.entry(&top.join(&path)) {
            Some(entry) => Ok((path, entry)),
            None => {
                self.check()?;
                Err(CopyError::Changed { path: top.join(&path).display().to_string() })
            }
        };
        kept.into_par_iter().map(read).collect()
    }

    /// Puts what is in a directory on the stack, the first on top.
    fn descend(
        &self,
        top: &Path,
        dir: &Path,
        prefix: &Path,
        pending: &mut Vec<(PathBuf, FileKind)>,
    ) {
        let wanted = prefix.strip_prefix(dir).ok().and_then(|rest| rest.iter().next());
        for (name, kind) in self.view.names(&top.join(dir)).into_iter().rev() {
            if wanted.is_none_or(|wanted| wanted == name) {
                pending.push((dir.join(name), kind));
            }
        }
    }

    fn add(&self, item: &Item, hasher: &mut blake3::Hasher) -> Result<(), CopyError> {
        let read = |path: &Path| self.view.digest(path).map_err(CopyError::io("read", path));
        match &item.listed {
            Some(listed) => {
                add(hasher, b'l', OsStr::new(""), content_of(listed).as_bytes());
            }
            None if item.entry.entry.is_dir() => {
                let inside = self.view.digest_inside(&item.path);
                let inside = inside.map_err(CopyError::io("read", &item.path))?;
                add(hasher, b't', OsStr::new(""), inside.as_bytes());
            }
            None => add(hasher, b'f', &item.name, read(&item.path)?.as_bytes()),
        }
        Ok(())
    }
}

/// The content of a tree with just these entries.
fn content_of(listed: &Listed) -> ContentDigest {
    let mut builder = TreeBuilder::new();
    let mut groups = HashMap::new();
    for (path, found) in listed {
        let mut entry = found.entry.clone();
        if let Some(link) = found.link() {
            let next = u32::try_from(groups.len() + 1).expect("fewer than 2^32 files");
            entry.link_group = *groups.entry(link).or_insert(next);
        }
        builder.insert(path, entry);
    }
    builder.finish().content()
}
