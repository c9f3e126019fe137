//! How a deletion is kept on disk: as overlay does, a character device 0:0. On a file system that is
//! itself an overlay nobody may make one; there it is an empty file with overlay's attribute for that
//! (Linux's documentation of overlayfs, "Whiteouts and opaque directories").

use std::io;
use std::path::Path;

use crate::root::{FileKind, Root, Stat};

/// The attribute of a file that stands for a deletion.
const WHITEOUT: &[u8] = b"user.overlay.whiteout";

/// The attribute of a directory; `x` says that such files may be in it.
const OPAQUE: &[u8] = b"user.overlay.opaque";

impl Root {
    /// Marks a name as deleted from lower layers.
    ///
    /// # Errors
    /// `AlreadyExists` when anything is at `path`.
    pub fn make_whiteout(&self, path: &Path) -> io::Result<()> {
        match self.mknod(path, FileKind::CharDevice, 0, (0, 0)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            made => return made,
        }
        self.create_file(path, 0)?;
        self.set_xattr(path, WHITEOUT, b"y")?;
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.get_xattr(parent, OPAQUE)? {
            None => self.set_xattr(parent, OPAQUE, b"x"),
            Some(_) => Ok(()),
        }
    }

    /// Whether what is at `path` is a deletion; `stat` is what is known of it.
    ///
    /// # Errors
    /// When its attributes cannot be read.
    pub fn is_whiteout(&self, path: &Path, stat: &Stat) -> io::Result<bool> {
        Ok(match stat.kind {
            FileKind::CharDevice => stat.rdev == (0, 0),
            FileKind::File if may_be(stat) => self.get_xattr(path, WHITEOUT)?.is_some(),
            _ => false,
        })
    }
}

/// Whether a file looks like one that stands for a deletion.
pub(crate) fn may_be(stat: &Stat) -> bool {
    stat.kind == FileKind::File && stat.size == 0 && stat.mode == 0
}

/// Whether a file's attributes say that it stands for a deletion.
pub(crate) fn is_named(mut names: impl Iterator<Item = impl AsRef<[u8]>>) -> bool {
    names.any(|name| name.as_ref() == WHITEOUT)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::root::Root;

    #[test]
    fn both_forms_are_deletions() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let [device, file, plain] = ["device", "file", "plain"].map(Path::new);
        root.make_whiteout(device).unwrap();
        for path in [file, plain] {
            root.create_file(path, 0).unwrap();
        }
        root.set_xattr(file, super::WHITEOUT, b"y").unwrap();
        let is = |path: &Path| root.is_whiteout(path, &root.stat(path).unwrap()).unwrap();
        assert_eq!([device, file, plain].map(is), [true, true, false]);
    }
}
