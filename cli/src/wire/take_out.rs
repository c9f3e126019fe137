//! Files of a snapshot into a folder of the caller's.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::{ContentDigest, Kind, View, ViewEntry, resolve};
use kiln_image::export::local;
use kiln_image::export::tar::FileSystem;
use kiln_parser::platform::Platform;

use super::config::oci_platform;
use crate::failure::{Failure, chain};

/// Copies a file or a folder with all that is in it; `dest` is the new file's name, or the folder into
/// which the folder's files go. Symbolic links in `path` are followed inside of the snapshot alone.
///
/// # Errors
/// There is no such path; it cannot be read or written.
pub(crate) fn copy(files: &dyn View, path: &Path, dest: &Path) -> Result<(), Failure> {
    let missing =
        || Failure::input(format_args!("there is no `{}` in the step's files", path.display()));
    let inside = resolve(files, path, true).map_err(|_| missing())?;
    let root = inside.as_os_str().is_empty();
    let found = if root { None } else { Some(files.entry(&inside).ok_or_else(missing)?) };
    match found.map(|found| found.entry.kind) {
        None | Some(Kind::Directory { .. }) => folder(files, inside, dest),
        Some(Kind::File { .. }) => file(files, &inside, dest),
        Some(_) => {
            Err(Failure::input(format_args!("`{}` is neither file nor folder", path.display())))
        }
    }
}

/// Written whole or not at all.
fn file(files: &dyn View, inside: &Path, dest: &Path) -> Result<(), Failure> {
    let failed = |e: &io::Error| Failure::io("write", dest.display(), e);
    let beside = dest.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut source = files.read(inside).map_err(|e| Failure::io("read", inside.display(), &e))?;
    let mut new = tempfile::NamedTempFile::new_in(beside.unwrap_or(Path::new(".")))
        .map_err(|e| failed(&e))?;
    io::copy(&mut source, &mut new).map_err(|e| failed(&e))?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    new.as_file().set_permissions(permissions).map_err(|e| failed(&e))?;
    new.persist(dest).map_err(|e| failed(&e.error))?;
    Ok(())
}

fn folder(files: &dyn View, inside: PathBuf, dest: &Path) -> Result<(), Failure> {
    let below = Below { files, top: inside };
    let system = FileSystem { platform: oci_platform(&Platform::host()), view: &below };
    let options = local::LocalOptions::default();
    local::write(&[system], dest, options).map_err(|e| Failure::environment(chain(&e)))
}

/// A folder of a view as a view.
struct Below<'a> {
    files: &'a dyn View,
    top: PathBuf,
}

impl View for Below<'_> {
    fn entry(&self, path: &Path) -> Option<ViewEntry> {
        self.files.entry(&self.at(path))
    }

    fn children(&self, path: &Path) -> Vec<(OsString, ViewEntry)> {
        self.files.children(&self.at(path))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.files.open(&self.at(path))
    }

    fn read(&self, path: &Path) -> io::Result<Box<dyn io::Read + '_>> {
        self.files.read(&self.at(path))
    }

    fn digest(&self, path: &Path) -> io::Result<ContentDigest> {
        self.files.digest(&self.at(path))
    }

    fn take_error(&self) -> Option<io::Error> {
        self.files.take_error()
    }
}

impl Below<'_> {
    /// Joining an empty path would add a separator.
    fn at(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.top.clone() } else { self.top.join(path) }
    }
}
