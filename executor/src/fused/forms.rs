//! How fuse-overlayfs(1) keeps deletions: as overlay where it can, else `.wh.NAME` beside what it hides, and `.wh..wh..opq`
//! or an attribute of its own in directories that hide all below them. And what layers have that it would show otherwise.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Root, Stat};

use crate::chmod::SET_GID;
use crate::copied::{OPAQUE, expand};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_FILE: &[u8] = b".wh..wh..opq";

/// What it has in place of [`OPAQUE`]; the first one as root of the machine.
const OPAQUE_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.fuseoverlayfs.opaque"];

/// Attributes of its own; a step can neither see nor set them.
const OWN: &[u8] = b"user.fuseoverlayfs.";

/// What a layer has that fuse-overlayfs would not show as overlay does.
#[derive(Debug, Default)]
struct Odd {
    /// Deletions that are files with an attribute.
    deleted: Vec<PathBuf>,
    /// Names of files that have others, without the last of each. It takes all of them for one file, and a step that
    /// writes to one gets a layer with any of them; overlay separates them.
    linked: Vec<PathBuf>,
    /// Directories with the set-group-ID bit.
    grouped: Vec<PathBuf>,
}

/// What was found in a layer.
#[derive(Debug)]
pub(super) struct Translated {
    /// Whether there is a layer above it.
    pub(super) above: bool,
    /// Directories with the set-group-ID bit.
    pub(super) grouped: Vec<PathBuf>,
}

/// Makes the layer that has to be above `layer`, for what is odd in it.
///
/// # Errors
/// `Unsupported` for a name that fuse-overlayfs would take for a deletion; what the disk says.
pub(super) fn translate(layer: &Path, above: &Path) -> io::Result<Translated> {
    let from = Root::open(layer)?;
    let Odd { deleted, linked, grouped } = look(&from)?;
    if deleted.is_empty() && linked.is_empty() {
        return Ok(Translated { above: false, grouped });
    }
    std::fs::create_dir(above)?;
    let into = Root::open(above)?;
    let mut made = BTreeSet::from([PathBuf::new()]);
    for path in deleted.iter().chain(&linked) {
        let parent = path.parent().unwrap_or(Path::new(""));
        into.mkdir_all(parent, 0o700)?;
        made.extend(parent.ancestors().map(Path::to_path_buf));
    }
    deleted.iter().try_for_each(|path| into.create_file(&hiding(path), 0).map(drop))?;
    linked.iter().try_for_each(|path| expand::copy(&from, path, &into))?;
    // Children before parents, as making a file changes the time of its directory.
    for directory in made.iter().rev() {
        let stat = from.stat(directory)?;
        expand::attributes(&from, directory, &stat, &into, directory)?;
        into.set_mtime(directory, stat.mtime)?;
    }
    Ok(Translated { above: true, grouped })
}

fn look(from: &Root) -> io::Result<Odd> {
    let mut odd = Odd::default();
    let mut linked: HashMap<_, PathBuf> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let open = from.open_dir(&directory)?;
        let may_hide = open.get_xattr(Path::new(""), OPAQUE)?.is_some();
        for item in open.read_dir(Path::new(""))? {
            let name = Path::new(&item.name);
            let path = directory.join(&item.name);
            if item.name.as_bytes().starts_with(WHITEOUT) {
                let message = format!("fuse-overlayfs would not show {}", path.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            let stat = open.stat(name)?;
            if item.kind == FileKind::Directory {
                odd.grouped.extend((stat.mode & SET_GID != 0).then(|| path.clone()));
                pending.push(path);
            } else if may_hide && open.is_whiteout(name, &stat)? {
                odd.deleted.push(path);
            } else if stat.links > 1 {
                odd.linked.extend(linked.insert((stat.device, stat.inode), path));
            }
        }
    }
    Ok(odd)
}

/// The name that hides another one.
fn hiding(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    path.with_file_name(OsString::from_vec([WHITEOUT, name.as_bytes()].concat()))
}

/// Gives overlay's form to what is in an upper directory. `grouped` are directories that had the set-group-ID bit.
///
/// # Errors
/// `Unsupported` where something lacks what it had got from its directory in an overlay; what the disk says.
pub(super) fn restore(upper: &Root, grouped: &[PathBuf]) -> io::Result<()> {
    for path in grouped {
        match upper.stat(path) {
            Ok(stat) if stat.kind == FileKind::Directory && stat.mode & SET_GID == 0 => {
                return Err(lost(path));
            }
            _ => {}
        }
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let stat = upper.stat(&directory)?;
        for item in upper.read_dir(&directory)? {
            let path = directory.join(&item.name);
            let name = item.name.as_bytes();
            if name == OPAQUE_FILE {
                upper.remove_file(&path)?;
                upper.set_xattr(&directory, OPAQUE, b"y")?;
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                upper.remove_file(&path)?;
                // A device hides a name that nothing can have: it makes one beside its own file of that kind.
                if item.kind == FileKind::File {
                    upper.make_whiteout(&directory.join(OsStr::from_bytes(name)))?;
                }
            } else {
                own_attributes(upper, &path, item.kind)?;
                inherited(&stat, upper, &path)?;
            }
            if item.kind == FileKind::Directory {
                pending.push(path);
            }
        }
        upper.set_mtime(&directory, stat.mtime)?;
    }
    Ok(())
}

/// In a directory with the set-group-ID bit all gets its group, and directories the bit (inode(7)); fuse-overlayfs
/// gives them the process's. What a step changed on purpose looks the same.
fn inherited(directory: &Stat, upper: &Root, path: &Path) -> io::Result<()> {
    if directory.mode & SET_GID == 0 {
        return Ok(());
    }
    let stat = upper.stat(path)?;
    let has_bit = stat.kind != FileKind::Directory || stat.mode & SET_GID != 0;
    let is_deletion = stat.kind == FileKind::CharDevice && stat.rdev == (0, 0);
    if is_deletion || (has_bit && stat.gid == directory.gid) {
        return Ok(());
    }
    Err(lost(path))
}

fn lost(path: &Path) -> io::Error {
    let message = format!("fuse-overlayfs loses set-group-ID of directories: {}", path.display());
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// Removes what it noted in attributes, but for what overlay has a form for.
fn own_attributes(upper: &Root, path: &Path, kind: FileKind) -> io::Result<()> {
    let all = match kind {
        FileKind::Directory | FileKind::File => upper.xattrs(path)?,
        // Others cannot have attributes of users.
        _ => return Ok(()),
    };
    let is_opaque = |name: &[u8]| OPAQUE_ATTRIBUTES.contains(&name);
    if all.iter().any(|(name, value)| is_opaque(name) && value == b"y") {
        upper.set_xattr(path, OPAQUE, b"y")?;
    }
    for name in all.keys().filter(|name| is_opaque(name) || name.starts_with(OWN)) {
        upper.remove_xattr(path, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kiln_cache::{Root, Time};

    use super::{restore, translate};
    use crate::copied::OPAQUE;

    fn root(dir: &tempfile::TempDir, name: &str) -> Root {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        Root::open(&dir.path().join(name)).unwrap()
    }

    #[test]
    fn what_was_written_gets_overlays_form() {
        let dir = tempfile::tempdir().unwrap();
        let upper = root(&dir, "upper");
        for name in ["a", "a/new", "a/also"] {
            upper.mkdir(Path::new(name), 0o755).unwrap();
        }
        for name in ["a/.wh.gone", "a/new/.wh..wh..opq", "a/kept"] {
            upper.create_file(Path::new(name), 0o700).unwrap();
        }
        upper.set_xattr(Path::new("a/also"), b"user.fuseoverlayfs.opaque", b"y").unwrap();
        upper.set_xattr(Path::new("a/kept"), b"user.fuseoverlayfs.origin", b"x").unwrap();
        upper.set_xattr(Path::new("a/kept"), b"user.own", b"1").unwrap();
        let time = Time { secs: 1, nanos: 2 };
        upper.set_mtime(Path::new("a"), time).unwrap();
        restore(&upper, &[]).unwrap();
        let is_opaque =
            |path: &str| upper.get_xattr(Path::new(path), OPAQUE).unwrap().as_deref() == Some(b"y");
        assert_eq!(["a", "a/new", "a/also"].map(is_opaque), [false, true, true]);
        let gone = Path::new("a/gone");
        assert!(upper.is_whiteout(gone, &upper.stat(gone).unwrap()).unwrap());
        assert!(upper.read_dir(Path::new("a/new")).unwrap().is_empty());
        let kept: Vec<_> = upper.xattrs(Path::new("a/kept")).unwrap().into_keys().collect();
        assert_eq!(kept, [b"user.own".to_vec()]);
        assert_eq!(upper.stat(Path::new("a")).unwrap().mtime, time);
    }

    #[test]
    fn groups_that_were_not_passed_on_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let upper = root(&dir, "upper");
        let [shared, file, folder] = ["shared", "shared/file", "shared/folder"].map(Path::new);
        upper.mkdir(shared, 0o2755).unwrap();
        upper.create_file(file, 0o644).unwrap();
        upper.make_whiteout(Path::new("shared/gone")).unwrap();
        upper.mkdir(folder, 0o755).unwrap();
        upper.chmod(folder, 0o2755).unwrap();
        upper.chmod(shared, 0o2755).unwrap();
        restore(&upper, &[]).unwrap();
        upper.chmod(folder, 0o755).unwrap();
        let error = restore(&upper, &[]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        assert!(error.to_string().ends_with(" shared/folder"), "{error}");
        let found = translate(upper.path(), &dir.path().join("above")).unwrap();
        assert_eq!(found.grouped, [shared]);
        upper.chmod(shared, 0o755).unwrap();
        restore(&upper, &[]).unwrap();
        assert!(restore(&upper, &found.grouped).is_err(), "its own bit was lost");
    }

    #[test]
    fn what_it_would_show_otherwise_is_in_a_layer_above() {
        let dir = tempfile::tempdir().unwrap();
        let layer = root(&dir, "layer");
        layer.mkdir(Path::new("a"), 0o750).unwrap();
        layer.create_file(Path::new("a/gone"), 0).unwrap();
        layer.create_file(Path::new("a/kept"), 0o644).unwrap();
        let above = dir.path().join("above");
        assert!(!translate(layer.path(), &above).unwrap().above);
        std::fs::hard_link(layer.path().join("a/kept"), layer.path().join("a/twin")).unwrap();
        layer.set_xattr(Path::new("a/gone"), b"user.overlay.whiteout", b"y").unwrap();
        layer.set_xattr(Path::new("a"), OPAQUE, b"x").unwrap();
        layer.set_mtime(Path::new("a"), Time { secs: 1, nanos: 2 }).unwrap();
        assert!(translate(layer.path(), &above).unwrap().above);
        let above = Root::open(&above).unwrap();
        let names = above.read_dir(Path::new("a")).unwrap().into_iter().map(|item| item.name);
        let names: std::collections::BTreeSet<_> = names.collect();
        assert_eq!(names.len(), 2, "one of the twins: {names:?}");
        assert!(names.contains(std::ffi::OsStr::new(".wh.gone")), "{names:?}");
        let [one, other] = [&layer, &above].map(|root| root.stat(Path::new("a")).unwrap());
        assert_eq!((one.mode, one.mtime), (other.mode, other.mtime));
        layer.create_file(Path::new(".wh.x"), 0o644).unwrap();
        let error = translate(layer.path(), &dir.path().join("other")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    }
}
