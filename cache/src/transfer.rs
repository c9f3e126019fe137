//! Copies trees between two directories neither of which is trusted: what a step left in a cache mount, and what a
//! person has on the other side.
//!
//! Every path is resolved beneath its directory, and no link is followed on either side: a link is copied as what it
//! is, and one in the way of a folder is an error. Set-id bits, owners, attributes, devices and sockets stay behind.

use std::io;
use std::path::{Path, PathBuf};

use crate::owner::as_far_as_possible;
use crate::root::{FileKind, Root};

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Files and links.
    pub files: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What is neither file, folder nor link, and stayed behind.
    pub skipped: Vec<PathBuf>,
}

/// Copies what is at `from` to `to`: a folder into a folder that is there is merged with it, files replace files. New
/// files get the owner; without one they belong to this process.
///
/// # Errors
/// What the kernel says, with the place; what was copied until then stays.
pub fn transfer(
    (from_root, from): (&Root, &Path),
    (to_root, to): (&Root, &Path),
    owner: Option<(u32, u32)>,
) -> io::Result<Transferred> {
    let mut done = Transferred::default();
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    let mut folders = Vec::new();
    while let Some((from, to)) = pending.pop() {
        let at =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
        let stat = from_root.stat(&from).map_err(at)?;
        match stat.kind {
            FileKind::Directory => {
                if make_folder(to_root, &to).map_err(at)? {
                    own(to_root, &to, owner).map_err(at)?;
                    folders.push((to.clone(), stat));
                }
                let items = from_root.read_dir(&from).map_err(at)?;
                pending
                    .extend(items.iter().map(|item| (from.join(&item.name), to.join(&item.name))));
                continue;
            }
            FileKind::File => {
                let mut source = from_root.open_file(&from).map_err(at)?;
                clear(to_root, &to).map_err(at)?;
                let mut target = to_root.create_file(&to, 0o600).map_err(at)?;
                done.bytes += io::copy(&mut source, &mut target).map_err(at)?;
                own(to_root, &to, owner).map_err(at)?;
                to_root.chmod(&to, stat.mode & 0o777).map_err(at)?;
            }
            FileKind::Symlink => {
                let target = from_root.read_link(&from).map_err(at)?;
                clear(to_root, &to).map_err(at)?;
                to_root.symlink(&target, &to).map_err(at)?;
                own(to_root, &to, owner).map_err(at)?;
            }
            _ => {
                done.skipped.push(from);
                continue;
            }
        }
        to_root.set_mtime(&to, stat.mtime).map_err(at)?;
        done.files += 1;
    }
    // What is in a folder changes its time, and its mode may forbid to write there: deepest first.
    for (to, stat) in folders.into_iter().rev() {
        to_root.chmod(&to, stat.mode & 0o777)?;
        to_root.set_mtime(&to, stat.mtime)?;
    }
    Ok(done)
}

/// Makes a folder; false when it is there. A link to one is none.
fn make_folder(root: &Root, path: &Path) -> io::Result<bool> {
    if path.as_os_str().is_empty() {
        return Ok(false);
    }
    match root.mkdir(path, 0o700) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if root.stat(path)?.kind == FileKind::Directory {
                return Ok(false);
            }
            let text = "something that is no folder is in the way";
            Err(io::Error::new(io::ErrorKind::NotADirectory, text))
        }
        result => result.map(|()| true),
    }
}

/// Takes away a file or link that is to be replaced.
fn clear(root: &Root, path: &Path) -> io::Result<()> {
    match root.remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn own(root: &Root, path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => as_far_as_possible(root.chown(path, uid, gid)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::transfer;
    use crate::root::Root;

    #[test]
    fn hostile_trees_stay_beneath() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, outside] = ["from", "to", "outside"].map(|name| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        });
        std::fs::write(outside.join("secret"), "secret").unwrap();
        std::fs::create_dir_all(from.join("d/e")).unwrap();
        std::fs::write(from.join("d/e/f"), "new").unwrap();
        symlink(&outside, from.join("d/link")).unwrap();
        let status =
            std::process::Command::new("chmod").arg("4777").arg(from.join("d/e/f")).status();
        assert!(status.unwrap().success());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            from.join("d/pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let roots = [&from, &to].map(|path| Root::open(path).unwrap());
        let copy = |path: &str| {
            let path = Path::new(path);
            transfer((&roots[0], path), (&roots[1], path), Some((3, 4)))
        };
        let done = copy("").unwrap();
        assert_eq!((done.files, done.bytes, done.skipped.len()), (2, 3, 1));
        let meta = std::fs::metadata(to.join("d/e/f")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o777, 3, 4), "no set-id bit");
        assert_eq!(std::fs::read_link(to.join("d/link")).unwrap(), outside);
        // Through a link nothing is read and nothing is written.
        assert!(copy("d/link/secret").is_err());
        std::fs::remove_file(from.join("d/link")).unwrap();
        std::fs::create_dir(from.join("d/link")).unwrap();
        std::fs::write(from.join("d/link/secret"), "overwritten").unwrap();
        assert!(copy("").is_err(), "a link in the way of a folder");
        assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert!(copy("../outside").is_err());
        // A file takes the place of a link, not of what it points to.
        std::fs::remove_file(to.join("d/link")).unwrap();
        std::fs::remove_file(to.join("d/e/f")).unwrap();
        symlink(outside.join("secret"), to.join("d/e/f")).unwrap();
        copy("d/e/f").unwrap();
        assert_eq!(std::fs::read_to_string(to.join("d/e/f")).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    }
}
