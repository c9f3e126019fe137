//! Copies and differences of small trees, in overlay's form.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_cache::{FileKind, Root};

use super::difference::{Before, take};
use super::{OPAQUE, expand::expand};

struct Place(tempfile::TempDir);

impl Place {
    fn root(&self, name: &str) -> Root {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).expect("made");
        Root::open(&path).expect("open")
    }
}

fn write(root: &Root, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().expect("below the root")).expect("made");
    fs::write(path, text).expect("written");
}

fn whiteout(root: &Root, path: &str) {
    root.mknod(Path::new(path), FileKind::CharDevice, 0, (0, 0)).expect("made");
}

#[test]
fn layers_become_what_overlay_shows() {
    let place = Place(tempfile::tempdir().expect("folder"));
    let (low, high, all) = (place.root("low"), place.root("high"), place.root("all"));
    for path in ["kept", "gone", "hidden/old", "merged/old", "file/was-a-folder"] {
        write(&low, path, path);
    }
    symlink("kept", low.path().join("link")).expect("link");
    let mode = fs::Permissions::from_mode(0o4711);
    fs::set_permissions(low.path().join("kept"), mode).expect("mode");
    write(&high, "hidden/new", "new");
    high.set_xattr(Path::new("hidden"), OPAQUE, b"y").expect("opaque");
    write(&high, "merged/new", "new");
    write(&high, "file", "a file now");
    whiteout(&high, "gone");
    expand(&[low.clone(), high], &all).expect("copied");
    let names = |path: &str| -> Vec<_> {
        let items = all.read_dir(Path::new(path)).expect("listed");
        items.into_iter().map(|item| item.name.into_string().expect("text")).collect()
    };
    assert_eq!(names(""), ["file", "hidden", "kept", "link", "merged"]);
    assert_eq!(names("hidden"), ["new"]);
    assert_eq!(names("merged"), ["new", "old"]);
    let kept = all.stat(Path::new("kept")).expect("there");
    let was = low.stat(Path::new("kept")).expect("there");
    assert_eq!((kept.mode, kept.mtime), (0o4711, was.mtime));
    assert_ne!(kept.inode, was.inode, "never the layer's own file");
    assert_eq!(all.get_xattr(Path::new("hidden"), OPAQUE).expect("read"), None);
}

#[test]
fn changes_become_an_upper_directory() {
    let place = Place(tempfile::tempdir().expect("folder"));
    let (root, upper) = (place.root("root"), place.root("upper"));
    for path in ["same", "written", "gone", "folder/gone", "folder/same", "again/old", "turned"] {
        write(&root, path, "1");
    }
    let before = Before::of(&root).expect("read");
    let at = |path: &str| root.path().join(path);
    fs::write(at("written"), "2").expect("written");
    fs::remove_file(at("gone")).expect("removed");
    fs::remove_file(at("folder/gone")).expect("removed");
    fs::remove_dir_all(at("again")).expect("removed");
    write(&root, "again/new", "2");
    fs::remove_file(at("turned")).expect("removed");
    write(&root, "turned/into/a", "folder");
    write(&root, "marked", "3");
    root.set_xattr(Path::new("marked"), b"user.overlay.metacopy", b"").expect("set");
    root.set_xattr(Path::new("marked"), b"user.kept", b"1").expect("set");
    whiteout(&root, "same-as-nothing");
    take(&root, &before, &upper, |_| false).expect("compared");
    let stat = |path: &str| upper.stat(Path::new(path)).ok();
    for path in ["same", "folder/same", "again/old", "same-as-nothing"] {
        assert_eq!(stat(path), None, "{path}");
    }
    for path in ["gone", "folder/gone"] {
        let stat = stat(path).expect("there");
        assert!(upper.is_whiteout(Path::new(path), &stat).expect("read"), "{path}");
    }
    let opaque = |path: &str| upper.get_xattr(Path::new(path), OPAQUE).expect("read").is_some();
    assert_eq!(["again", "turned", "folder"].map(opaque), [true, true, false]);
    assert_eq!(fs::read(upper.path().join("written")).expect("there"), b"2");
    assert!(stat("again/new").is_some() && stat("turned/into/a").is_some());
    let names: Vec<_> = upper.xattrs(Path::new("marked")).expect("read").into_keys().collect();
    assert_eq!(names, [b"user.kept"]);
}
