//! Layers in and out; the merged view against a naive model.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kiln_cache::{Entry, Kind, LayerId, Layers, Metadata, Store, StoreError, Time, View, resolve};
use proptest::prelude::*;

pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

pub(crate) fn metadata(mode: u32) -> Metadata {
    let mtime = Time { secs: 1_000_000_000, nanos: 5 };
    Metadata { mode, uid: 1, gid: 2, mtime, ..Metadata::default() }
}

fn p(path: &str) -> &Path {
    Path::new(path)
}

#[test]
fn a_layer_is_on_disk_what_its_tree_says() {
    let (_dir, store) = store();
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let mut data: &[u8] = b"hello";
    writer.file(p("a/file"), &metadata(0o4711), &mut data).unwrap();
    writer.directory(p("a"), &metadata(0o1500)).unwrap();
    writer.symlink(p("a/link"), &metadata(0o777), p("/etc/passwd")).unwrap();
    writer.hardlink(p("b/second"), p("a/file")).unwrap();
    writer.special(p("null"), &metadata(0o666), &Kind::CharDevice { major: 1, minor: 3 }).unwrap();
    writer.special(p("fifo"), &metadata(0o620), &Kind::Fifo).unwrap();
    writer.whiteout(p("gone")).unwrap();
    writer.directory(p("opaque"), &metadata(0o755)).unwrap();
    writer.opaque(p("opaque")).unwrap();
    let tree = writer.finish().unwrap();
    let scanned = draft.scan().unwrap();
    assert_eq!(scanned.content(), tree.content(), "what is on disk is what the tree says");
    let scanned: Vec<_> = scanned.walk().map(|(p, e)| (p, e.metadata.mtime)).collect();
    for ((path, entry), (other, mtime)) in tree.walk().zip(scanned) {
        assert_eq!(path, other);
        // A parent that nobody described has the time of its making.
        if entry.kind != Kind::Whiteout && path != p("b") {
            assert_eq!(entry.metadata.mtime, mtime, "{path:?}");
        }
    }
    let id = LayerId::random();
    let fs = draft.fs_path().to_owned();
    assert!(!store.has_layer(&id).unwrap());
    let tree = draft.publish(id.clone(), tree).unwrap();
    assert!(!fs.exists(), "nothing is left in tmp");
    let path = store.layer_path(&id);
    let file = std::fs::symlink_metadata(path.join("a/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4711, 1, 2, 2));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_000_000_000, 5));
    assert_eq!(std::fs::metadata(path.join("a")).unwrap().mtime(), 1_000_000_000);
    let gone = std::fs::symlink_metadata(path.join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    // Another process's view of it.
    let again = Store::open(store.path()).unwrap();
    assert!(again.has_layer(&id).unwrap());
    assert_eq!(again.layer_tree(&id).unwrap().content(), tree.content());
    assert_eq!(again.layer_content(&id).unwrap(), Some(tree.content()));
    assert_eq!(again.find_layer(&tree.content()).unwrap(), Some(id));
}

/// What one step leaves in overlay's work directory is nothing to the next.
#[test]
fn folders_are_used_again_empty() {
    let (_dir, store) = store();
    let mut places = Vec::new();
    for left in ["work/#1", "incompat/volatile/dirty", "index/0"] {
        let draft = store.draft().unwrap();
        let (work, scratch) = (draft.work_path(), draft.scratch_path().unwrap());
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "{left}");
        assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "{left}");
        assert_eq!(std::fs::read_dir(draft.fs_path()).unwrap().count(), 0, "{left}");
        std::fs::create_dir_all(work.join(left)).unwrap();
        places.push(work);
        let tree = draft.scan().unwrap();
        draft.publish(LayerId::random(), tree).unwrap();
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    // Of a step that failed, or that left something beside it, nothing is used again.
    drop(store.draft().unwrap());
    assert!(!places[0].exists());
    let draft = store.draft().unwrap();
    let beside = draft.beside("agents");
    std::fs::create_dir(&beside).unwrap();
    let tree = draft.scan().unwrap();
    draft.publish(LayerId::random(), tree).unwrap();
    assert!(!beside.exists());
}

#[test]
fn a_writer_never_follows_what_it_wrote() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "safe").unwrap();
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let write = |path: &str| writer.file(p(path), &metadata(0o644), &mut &b"evil"[..]);
    writer.symlink(p("d"), &metadata(0o777), &outside).unwrap();
    writer.symlink(p("f"), &metadata(0o777), &outside.join("file")).unwrap();
    assert!(write("d/file").is_err());
    assert!(writer.directory(p("d/new"), &metadata(0o755)).is_err());
    assert!(writer.hardlink(p("h"), p("d/file")).is_err());
    write("f").unwrap();
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "safe");
    assert!(writer.entry(p("f")).unwrap().is_file());
    for path in ["../x", "/x", "a/../../x", "", "a\0b", "."] {
        assert!(write(path).is_err(), "{path:?}");
    }
    let zero = Kind::CharDevice { major: 0, minor: 0 };
    assert!(writer.special(p("whiteout"), &metadata(0), &zero).is_err());
    let mut hostile = metadata(0o755);
    hostile.xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    hostile.xattrs.insert(b"user.overlay.redirect".to_vec(), b"/".to_vec());
    hostile.xattrs.insert(b"user.fine".to_vec(), b"1".to_vec());
    writer.directory(p("dir"), &hostile).unwrap();
    writer.file(p("xattr"), &hostile, &mut &b""[..]).unwrap();
    let tree = writer.finish().unwrap();
    for path in ["dir", "xattr"] {
        let names: Vec<_> = tree.lookup(p(path)).unwrap().metadata.xattrs.keys().collect();
        assert_eq!(names, [b"user.fine"], "{path}");
    }
    assert_eq!(draft.scan().unwrap().content(), tree.content());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let (_dir, store) = store();
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let write = |path: &str, data: &str| {
        writer.file(p(path), &metadata(0o644), &mut data.as_bytes()).unwrap()
    };
    write("x/deep/file", "1");
    write("x", "now a file");
    assert!(writer.file(p("x/y"), &metadata(0o644), &mut &b""[..]).is_err());
    writer.directory(p("x"), &metadata(0o755)).unwrap();
    write("x/y", "2");
    writer.hardlink(p("h1"), p("x/y")).unwrap();
    write("x/y", "3");
    writer.directory(p("x"), &metadata(0o700)).unwrap();
    writer.remove(p("h1")).unwrap();
    writer.hardlink(p("h2"), p("x/y")).unwrap();
    assert!(writer.hardlink(p("x"), p("x/y")).is_err(), "the file would go with its directory");
    let tree = writer.finish().unwrap();
    assert_eq!(draft.scan().unwrap().content(), tree.content());
}

#[test]
fn many_threads_write_one_layer() {
    let (_dir, store) = store();
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let writer = &writer;
            scope.spawn(move || {
                for file in 0..50 {
                    let path = format!("dir{}/sub/t{thread}-{file}", file % 7);
                    let data = format!("{thread} {file}");
                    writer.file(p(&path), &metadata(0o644), &mut data.as_bytes()).unwrap();
                }
            });
        }
    });
    let tree = writer.finish().unwrap();
    assert_eq!(tree.len(), 8 * 50 + 14);
    assert_eq!(draft.scan().unwrap().content(), tree.content());
}

#[test]
fn the_tree_says_what_was_copied() {
    let (dir, store) = store();
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    for size in [0, 10, 3 << 20] {
        let path = dir.path().join("source");
        std::fs::write(&path, vec![7; size]).unwrap();
        let mut source = std::fs::File::open(&path).unwrap();
        source.read_exact(&mut vec![0; size.min(4)]).unwrap();
        let data = *blake3::hash(&vec![7; size]).as_bytes();
        let stat = kiln_cache::Stat::of(&source).unwrap();
        let identity = Some(kiln_cache::FileIdentity::of(&stat));
        let known = kiln_cache::Known { size: size as u64, data, identity };
        let target = format!("copy{size}");
        let copy = |known| writer.file_from(p(&target), &metadata(0o644), &source, known).unwrap();
        assert_eq!(copy(None).data, data);
        assert_eq!(copy(Some(&known)).data, data);
        // The file changes after the scan, keeping its size: what is known is known no more.
        std::fs::write(&path, vec![8; size]).unwrap();
        let written = copy(Some(&known));
        assert_eq!(written.data, *blake3::hash(&vec![8; size]).as_bytes());
        // It grows.
        std::fs::write(&path, vec![8; size + 1]).unwrap();
        let written = copy(Some(&known));
        assert_eq!(written.size, size as u64 + 1);
        assert_eq!(written.data, *blake3::hash(&vec![8; size + 1]).as_bytes());
    }
    let tree = writer.finish().unwrap();
    assert_eq!(draft.scan().unwrap().content(), tree.content());
}

#[test]
fn publishing_twice_keeps_the_first() {
    let (_dir, store) = store();
    let id = LayerId::random();
    let publish = |data: &str| {
        let draft = store.draft().unwrap();
        let writer = draft.writer();
        writer.file(p("f"), &metadata(0o644), &mut data.as_bytes()).unwrap();
        let tree = writer.finish().unwrap();
        draft.publish(id.clone(), tree).unwrap()
    };
    let first = publish("1");
    assert_eq!(publish("2").content(), first.content());
    let data = std::fs::read_to_string(store.layer_path(&id).join("f")).unwrap();
    assert_eq!(data, "1");
}

#[test]
fn a_missing_or_damaged_layer_is_an_error() {
    let (_dir, store) = store();
    let id = LayerId::random();
    assert!(matches!(store.layer_tree(&id), Err(StoreError::MissingLayer { .. })));
    let draft = store.draft().unwrap();
    let tree = draft.writer().finish().unwrap();
    draft.publish(id.clone(), tree).unwrap();
    let tree = store.path().join("trees").join(id.as_str());
    std::fs::write(&tree, "nonsense").unwrap();
    let again = Store::open(store.path()).unwrap();
    assert!(matches!(again.layer_tree(&id), Err(StoreError::DamagedTree { .. })));
}

/// One change to a naive file system: path -> entry.
#[derive(Debug, Clone)]
enum Change {
    File(PathBuf, u8),
    Directory(PathBuf, bool),
    Link(PathBuf, String),
    Whiteout(PathBuf),
}

type Model = BTreeMap<PathBuf, Entry>;

fn path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec("[abc]", 1..4).prop_map(|names| names.iter().collect())
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (path(), any::<u8>()).prop_map(|(path, data)| Change::File(path, data)),
        (path(), any::<bool>()).prop_map(|(path, opaque)| Change::Directory(path, opaque)),
        (path(), "/?[abc](/[abc])?").prop_map(|(path, target)| Change::Link(path, target)),
        path().prop_map(Change::Whiteout),
    ]
}

/// What the layer shows on top of `model`, worked out path by path.
fn apply(model: &mut Model, tree: &kiln_cache::Tree) {
    let beneath = |model: &mut Model, path: &Path| {
        model.retain(|other, _| other == path || !other.starts_with(path));
    };
    for (path, entry) in tree.walk() {
        match &entry.kind {
            Kind::Whiteout => {
                beneath(model, &path);
                model.remove(&path);
            }
            Kind::Directory { opaque } => {
                if *opaque || model.get(&path).is_some_and(|old| !old.is_dir()) {
                    beneath(model, &path);
                }
                let kind = Kind::Directory { opaque: false };
                model.insert(path, Entry { kind, ..entry.clone() });
            }
            _ => {
                beneath(model, &path);
                model.insert(path, entry.clone());
            }
        }
    }
}

fn write(store: &Store, changes: &[Change]) -> LayerId {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    for change in changes {
        // Where a file of this layer is in the way, the change is void.
        match change {
            Change::File(path, data) => {
                let _ = writer.file(path, &metadata(0o644), &mut [*data].as_slice());
            }
            Change::Directory(path, opaque) => {
                let made = writer.directory(path, &metadata(0o755));
                if made.is_ok() && *opaque {
                    writer.opaque(path).unwrap();
                }
            }
            Change::Link(path, target) => {
                let _ = writer.symlink(path, &metadata(0o777), p(target));
            }
            Change::Whiteout(path) => {
                let _ = writer.whiteout(path);
            }
        }
    }
    let tree = writer.finish().unwrap();
    let id = LayerId::random();
    draft.publish(id.clone(), tree).unwrap();
    id
}

fn flatten(model: &Model) -> kiln_cache::Tree {
    let mut builder = kiln_cache::TreeBuilder::new();
    for (path, entry) in model {
        builder.insert(path, entry.clone());
    }
    builder.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn merged_view_is_what_a_naive_model_says(
        layers in proptest::collection::vec(proptest::collection::vec(change(), 1..6), 1..4),
        ask in proptest::collection::vec(path(), 4),
    ) {
        let (_dir, store) = store();
        let ids: Vec<_> = layers.iter().map(|changes| write(&store, changes)).collect();
        let mut model = Model::new();
        for id in &ids {
            apply(&mut model, &store.layer_tree(id).unwrap());
        }
        let view = Layers::open(&store, &ids).unwrap();
        let seen: Model = view.walk(p("")).into_iter().map(|(path, e)| (path, e.entry)).collect();
        prop_assert_eq!(&seen, &model);
        let flat = flatten(&model);
        prop_assert_eq!(view.digest(p("")).unwrap(), flat.content());
        for path in &ask {
            let entry = view.entry(path).map(|found| found.entry);
            prop_assert_eq!(entry.as_ref(), model.get(path));
            prop_assert_eq!(view.digest(path).ok(), flat.digest(path));
            let names: Vec<_> = view.children(path).into_iter().map(|(name, _)| name).collect();
            let expect: Vec<_> = flat.children(path).map(|(name, _)| name.to_owned()).collect();
            prop_assert_eq!(names, expect);
            if let Some(Entry { kind: Kind::File { data, .. }, .. }) = model.get(path) {
                let mut bytes = Vec::new();
                view.open(path).unwrap().read_to_end(&mut bytes).unwrap();
                prop_assert_eq!(*blake3::hash(&bytes).as_bytes(), *data);
            } else {
                prop_assert!(view.open(path).is_err());
            }
            let resolved = resolve(&view, path, true);
            prop_assert!(resolved.is_err() || resolved.unwrap().is_relative());
        }
    }
}
