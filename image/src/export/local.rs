//! The root file system as files in a folder.
//!
//! Files belong to the caller and have no extended attributes, as with BuildKit. The folder is the
//! user's, the files are a stranger's: every path is reached beneath the folder by descriptor, and a
//! symbolic link that lies where a directory must be is replaced, never followed (security.md V10).

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Kind, Metadata, Root, Time, View};

use super::ExportError;
use super::tar::FileSystem;
use crate::flatten::{FlatEntry, Flatten};
use crate::platform;
use crate::tarball::settle;

/// How files are written to a folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalOptions {
    /// A folder for each platform, e.g. `linux_amd64`.
    pub split: bool,
    /// `mode=delete`: what the image has not is removed from the folder.
    pub delete: bool,
    /// No time is later, in seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub clamp: Option<i64>,
}

/// Writes the files of every file system below `folder`, which is made where it is missing. A new
/// folder appears when it is whole; in one that exists, each file does.
///
/// # Errors
/// When a file cannot be read or written, or two platforms without `split` have the same path.
pub fn write(
    systems: &[FileSystem<'_>],
    folder: &Path,
    options: LocalOptions,
) -> Result<(), ExportError> {
    refuse_conflicts(systems, options.split)?;
    let failed = |source| ExportError::Output { output: format!("`{}`", folder.display()), source };
    if fs::symlink_metadata(folder).is_ok() {
        let root = Root::open(folder).map_err(failed)?;
        return write_into(systems, &root, options);
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let new = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent).map_err(failed)?;
    let root = Root::open(new.path()).map_err(failed)?;
    write_into(systems, &root, options)?;
    root.chmod(Path::new(""), 0o755).map_err(failed)?;
    fs::rename(new.path(), folder).map_err(failed)?;
    // Its name is gone; there is nothing left to remove.
    _ = new.keep();
    Ok(())
}

/// Without folders of their own, two platforms must not write the same path.
pub(super) fn refuse_conflicts(systems: &[FileSystem<'_>], split: bool) -> Result<(), ExportError> {
    if split || systems.len() < 2 {
        return Ok(());
    }
    let mut owners: HashMap<PathBuf, String> = HashMap::new();
    for system in systems {
        let name = platform::name(&system.platform);
        for entry in Flatten::new(system.view) {
            if matches!(entry.found.entry.kind, Kind::Directory { .. }) {
                continue;
            }
            let path = entry.path;
            match owners.get(&path) {
                Some(owner) if *owner != name => {
                    let text = format!(
                        "cannot overwrite {} from {owner} with {name} when split option is disabled",
                        path.display()
                    );
                    return Err(ExportError::Conflict(text));
                }
                _ => _ = owners.insert(path, name.clone()),
            }
        }
    }
    Ok(())
}

fn write_into(
    systems: &[FileSystem<'_>],
    root: &Root,
    options: LocalOptions,
) -> Result<(), ExportError> {
    let failed = |path: &Path| {
        let output = format!("`{}`", root.path().join(path).display());
        move |source| ExportError::Output { output, source }
    };
    let mut kept: HashSet<PathBuf> = HashSet::new();
    for system in systems {
        let folder = match options.split {
            true => PathBuf::from(platform::folder(&system.platform)),
            false => PathBuf::new(),
        };
        if options.split {
            let metadata = Metadata { mode: 0o755, ..Metadata::default() };
            directory(root, &folder, &metadata).map_err(failed(&folder))?;
            kept.insert(folder.clone());
        }
        let copier = Copier { root, view: system.view, folder: &folder, clamp: options.clamp };
        let mut directories = Vec::new();
        for flat in Flatten::new(system.view) {
            let path = folder.join(&flat.path);
            copier.entry(&flat, &path).map_err(failed(&path))?;
            if options.delete {
                kept.insert(path.clone());
            }
            if matches!(flat.found.entry.kind, Kind::Directory { .. }) {
                directories.push((path, flat.found.entry.metadata.mtime));
            }
        }
        // Last, and children first: writing into a directory changes its time.
        for (path, mtime) in directories.iter().rev() {
            root.set_mtime(path, copier.time(*mtime)).map_err(failed(path))?;
        }
    }
    if options.delete {
        delete_others(root, &kept).map_err(failed(Path::new("")))?;
    }
    Ok(())
}

/// Removes what is not to be kept.
fn delete_others(root: &Root, kept: &HashSet<PathBuf>) -> io::Result<()> {
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for item in root.read_dir(&folder)? {
            let path = folder.join(&item.name);
            if !kept.contains(&path) {
                root.remove_all(&path)?;
            } else if item.kind == FileKind::Directory {
                open.push(path);
            }
        }
    }
    Ok(())
}

/// Makes a directory, or takes the one that is there.
fn directory(root: &Root, path: &Path, metadata: &Metadata) -> io::Result<()> {
    match root.stat(path) {
        Ok(found) if found.kind == FileKind::Directory => {}
        Ok(_) => {
            root.remove_all(path)?;
            root.mkdir(path, 0o700)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => root.mkdir(path, 0o700)?,
        Err(e) => return Err(e),
    }
    // The caller must be able to write into what it owns.
    root.chmod(path, metadata.mode | 0o300)
}

/// Whether a link was refused as such.
fn is_no_link(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [Errno::MLINK, Errno::PERM, Errno::OPNOTSUPP, Errno::XDEV];
    error.raw_os_error().is_some_and(|e| refusals.iter().any(|r| r.raw_os_error() == e))
}

struct Copier<'a> {
    root: &'a Root,
    view: &'a dyn View,
    folder: &'a Path,
    clamp: Option<i64>,
}

impl Copier<'_> {
    fn entry(&self, flat: &FlatEntry, path: &Path) -> io::Result<()> {
        let entry = &flat.found.entry;
        if matches!(entry.kind, Kind::Directory { .. }) {
            return directory(self.root, path, &entry.metadata);
        }
        // A new name beside the target, then a rename: what lies there is replaced at once.
        let temporary = path.with_file_name(OsString::from(".kiln-new"));
        self.root.remove_all(&temporary)?;
        if !self.make(flat, &temporary)? {
            return Ok(());
        }
        if let Ok(found) = self.root.stat(path)
            && found.kind == FileKind::Directory
        {
            self.root.remove_all(path)?;
        }
        self.root.rename(&temporary, self.root, path)
    }

    /// Makes the file; false where there is nothing to make.
    fn make(&self, flat: &FlatEntry, path: &Path) -> io::Result<bool> {
        let entry = &flat.found.entry;
        let mode = entry.metadata.mode;
        if let Some(first) = &flat.first {
            // A file system without links, or one on which a file has as many as it can, gets copies.
            match self.root.hardlink(&self.folder.join(first), path) {
                Ok(()) => return Ok(true),
                Err(error) if is_no_link(&error) => {}
                Err(error) => return Err(error),
            }
        }
        match &entry.kind {
            Kind::File { .. } => {
                let mut source = self.view.read(&flat.path)?;
                let mut file = self.root.create_file(path, 0o600)?;
                io::copy(&mut source, &mut file)?;
                settle(&file)?;
            }
            Kind::Symlink { target } => self.root.symlink(target, path)?,
            Kind::CharDevice { major, minor } => {
                self.root.mknod(path, FileKind::CharDevice, 0o600, (*major, *minor))?;
            }
            Kind::BlockDevice { major, minor } => {
                self.root.mknod(path, FileKind::BlockDevice, 0o600, (*major, *minor))?;
            }
            Kind::Fifo => self.root.mknod(path, FileKind::Fifo, 0o600, (0, 0))?,
            Kind::Directory { .. } | Kind::Socket | Kind::Whiteout => return Ok(false),
        }
        if !matches!(entry.kind, Kind::Symlink { .. }) {
            self.root.chmod(path, mode)?;
        }
        self.root.set_mtime(path, self.time(entry.metadata.mtime))?;
        Ok(true)
    }

    fn time(&self, time: Time) -> Time {
        match self.clamp {
            Some(clamp) if time.secs >= clamp => Time { secs: clamp, nanos: 0 },
            _ => time,
        }
    }
}
