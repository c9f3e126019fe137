//! A layer in memory that hides the bundles of an image with longer ones. Everything in it has the
//! owners, modes, times and attributes of what it hides, directories as well: what a step copies up
//! when it writes beside a bundle is the same as without this layer.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, XattrFlags, openat2};

use super::CaCerts;
use crate::pem;
use crate::rootfs::context;

/// Symbolic links that a path may lead through (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// More than any bundle has.
const SIZE_MAX: u64 = 16 << 20;

/// What was found and made.
#[derive(Debug, Default)]
pub(super) struct Shadowed {
    /// The first bundle as the image has it.
    pub(super) bundle: Option<Vec<u8>>,
    /// The layer, if it has anything.
    pub(super) layer: Option<PathBuf>,
}

/// Hides those of `paths` that are files of the image, in a layer that is made.
pub(super) fn make(
    authorities: &CaCerts,
    addition: &str,
    paths: &[&str],
    image: &OwnedFd,
    layer: &Path,
) -> io::Result<Shadowed> {
    let mut shadowed = Shadowed::default();
    let mut done: Vec<PathBuf> = Vec::new();
    for path in paths {
        let Ok(real) = resolve(image, Path::new(path)) else { continue };
        if done.contains(&real) {
            continue;
        }
        let Some((file, content)) = read(image, &real) else { continue };
        let text = String::from_utf8_lossy(&content);
        if !authorities.are_in(&pem::blocks(&text)) {
            let hidden = hide((image, layer), &real, &file, &[&content, addition.as_bytes()]);
            context(|| format!("add --ca-certs to {path}"), hidden)?;
            shadowed.layer = Some(layer.to_owned());
        }
        shadowed.bundle.get_or_insert(content);
        done.push(real);
    }
    if shadowed.layer.is_some() {
        // Last: everything that was made in a directory changed its times.
        for path in &done {
            for directory in path.ancestors().skip(1) {
                let Ok(file) = open(image, directory) else { continue };
                let own = layer.join(directory);
                if own.is_dir() {
                    times(&file, &own)?;
                }
            }
        }
    }
    Ok(shadowed)
}

/// Where a path leads inside of an image, relative to its root, without symbolic links.
fn resolve(image: &OwnedFd, path: &Path) -> io::Result<PathBuf> {
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut real = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&part);
        let target = match rustix::fs::readlinkat(image, &next, Vec::new()) {
            Ok(target) => target,
            Err(rustix::io::Errno::INVAL) => {
                real = next;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target =
            PathBuf::from(OsString::from(String::from_utf8_lossy(target.to_bytes()).as_ref()));
        if target.is_absolute() {
            real = PathBuf::new();
        }
        for part in parts(&target).rev() {
            rest.push_front(part);
        }
    }
    Ok(real)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).map(|part| part.as_os_str().to_owned())
}

/// Opens a file or directory of the image; one that is neither is not waited for.
fn open(image: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(image, path, flags, Mode::empty(), resolve)?)
}

/// A regular file and what is in it.
fn read(image: &OwnedFd, path: &Path) -> Option<(OwnedFd, Vec<u8>)> {
    let found = rustix::fs::statat(image, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
    // Before it is opened: opening a device can have consequences.
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return None;
    }
    let file = open(image, path).ok()?;
    let mut content = Vec::new();
    let reader = fs::File::from(file.try_clone().ok()?);
    reader.take(SIZE_MAX + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= SIZE_MAX).then_some((file, content))
}

/// Makes a file of the layer, and the directories above it.
fn hide(
    (image, layer): (&OwnedFd, &Path),
    path: &Path,
    hidden: &OwnedFd,
    content: &[&[u8]],
) -> io::Result<()> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    for directory in above {
        let own = layer.join(directory);
        if !own.exists() {
            fs::create_dir(&own)?;
            attributes(&open(image, directory)?, &own)?;
        }
    }
    let own = layer.join(path);
    let mut file = fs::File::options().write(true).create_new(true).open(&own)?;
    for part in content {
        file.write_all(part)?;
    }
    attributes(hidden, &own)?;
    times(hidden, &own)
}

/// Gives owner, mode and extended attributes of one file to another.
fn attributes(from: &OwnedFd, to: &Path) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    std::os::unix::fs::chown(to, Some(stat.st_uid), Some(stat.st_gid))?;
    rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::flistxattr(from, &mut names).unwrap_or(0);
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0; 64 << 10];
        if let Ok(length) = rustix::fs::fgetxattr(from, &name, &mut value) {
            // A file system in memory has not all kinds (those of users came with Linux 6.6).
            let _refused = rustix::fs::setxattr(to, &name, &value[..length], XattrFlags::empty());
        }
    }
    Ok(())
}

/// Gives the times of one file to another.
fn times(from: &OwnedFd, to: &Path) -> io::Result<()> {
    let known = fs::File::from(from.try_clone()?).metadata()?;
    let times =
        fs::FileTimes::new().set_accessed(known.accessed()?).set_modified(known.modified()?);
    fs::File::open(to)?.set_times(times)
}
