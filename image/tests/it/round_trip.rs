//! A layer becomes an archive and a layer again: the same tree, and from it the same bytes.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use kiln_cache::{Kind, LayerBlob, LayerId, Metadata, Store, Time, Tree};
use kiln_image::archive::{ArchiveOptions, Compression, write_layer};
use kiln_image::limits::Budget;
use kiln_image::unpack::unpack_layer;
use proptest::prelude::*;

/// What can be made at a path.
#[derive(Clone, Debug)]
enum Node {
    Directory,
    File(Vec<u8>),
    Large(usize, u8),
    Symlink(String),
    HardLink,
    Whiteout,
    Fifo,
    Device(u32, u32),
}

#[derive(Clone, Debug)]
struct Made {
    node: Node,
    mode: u32,
    uid: u32,
    secs: i64,
    capability: bool,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[a-d]{1,2}", 1 => "[ -.0-~ä-ü]{1,20}", 1 => "x{90,120}"]
        .prop_filter("a name", |n| n != "." && n != ".." && !n.starts_with(".wh."))
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.iter().collect())
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        2 => Just(Node::Directory),
        5 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(Node::File),
        1 => (0..5_000_000_usize, any::<u8>()).prop_map(|(size, seed)| Node::Large(size, seed)),
        1 => "[a-zä./]{1,130}".prop_map(Node::Symlink),
        2 => Just(Node::HardLink),
        1 => Just(Node::Whiteout),
        1 => Just(Node::Fifo),
        1 => (1..4096_u32, 0..1_000_000_u32).prop_map(|(a, b)| Node::Device(a, b)),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let uid = prop_oneof![Just(0), Just(1000), Just(3_000_000_000)];
    (node(), 0..0o10000_u32, uid, -100_i64..5_000_000_000, any::<bool>())
        .prop_map(|(node, mode, uid, secs, capability)| Made { node, mode, uid, secs, capability })
}

fn capability() -> Vec<u8> {
    // VFS_CAP_REVISION_2, CAP_NET_RAW permitted.
    [0x0200_0000_u32, 1 << 13, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Makes a layer of what can be made of these; later ones that do not fit are left out.
fn make(store: &Store, entries: &BTreeMap<PathBuf, Made>) -> (LayerId, std::sync::Arc<Tree>) {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let mut last_file: Option<PathBuf> = None;
    for (path, made) in entries {
        let fits = path.ancestors().skip(1).all(|parent| {
            writer.entry(parent).is_none_or(|e| matches!(e.kind, Kind::Directory { .. }))
        });
        if !fits || writer.entry(path).is_some() {
            continue;
        }
        let mut metadata = Metadata {
            mode: made.mode,
            uid: made.uid,
            gid: made.uid,
            mtime: Time { secs: made.secs, nanos: 0 },
            xattrs: BTreeMap::new(),
        };
        let file = matches!(made.node, Node::File(_) | Node::Large(..));
        if made.capability && file {
            metadata.xattrs.insert(b"security.capability".to_vec(), capability());
        }
        match &made.node {
            Node::Directory => writer.directory(path, &metadata).unwrap(),
            Node::File(data) => _ = writer.file(path, &metadata, &mut &data[..]).unwrap(),
            Node::Large(size, seed) => {
                let data: Vec<u8> =
                    (0..*size).map(|i| (i * i / 7) as u8 ^ (i >> 9) as u8 ^ seed).collect();
                writer.file(path, &metadata, &mut &data[..]).unwrap();
            }
            Node::Symlink(target) => writer.symlink(path, &metadata, Path::new(target)).unwrap(),
            Node::HardLink => match &last_file {
                Some(file) => writer.hardlink(path, file).unwrap(),
                None => continue,
            },
            Node::Whiteout => writer.whiteout(path).unwrap(),
            Node::Fifo => writer.special(path, &metadata, &Kind::Fifo).unwrap(),
            Node::Device(major, minor) => {
                let kind = Kind::CharDevice { major: *major, minor: *minor };
                writer.special(path, &metadata, &kind).unwrap();
            }
        }
        if file {
            last_file = Some(path.clone());
        }
    }
    publish(store, draft, writer)
}

fn publish(
    store: &Store,
    draft: kiln_cache::LayerDraft,
    writer: kiln_cache::LayerWriter,
) -> (LayerId, std::sync::Arc<Tree>) {
    let id = LayerId::random();
    let tree = writer.finish().unwrap();
    draft.publish(id.clone(), tree).unwrap();
    let tree = store.layer_tree(&id).unwrap();
    (id, tree)
}

fn archive(store: &Store, id: &LayerId, compression: Compression, threads: usize) -> LayerBlob {
    let options =
        ArchiveOptions { compression, clamp: None, markers: false, threads: NonZero::new(threads) };
    write_layer(store, id, &[], &options).unwrap()
}

fn unpack(store: &Store, blob: &LayerBlob) -> (LayerId, std::sync::Arc<Tree>) {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let file = store.open_blob(&blob.digest).unwrap().unwrap();
    let unpacked = unpack_layer(file, Budget::default(), &writer).unwrap();
    assert_eq!(unpacked.diff_id, blob.diff_id);
    publish(store, draft, writer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn layers_survive(entries in prop::collection::btree_map(path(), made(), 1..30)) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (id, tree) = make(&store, &entries);
        let blob = archive(&store, &id, Compression::Gzip(5), 3);
        let (again, tree_again) = unpack(&store, &blob);
        let paths = |tree: &Tree| -> Vec<_> {
            tree.walk()
                .filter(|(path, _)| !path.as_os_str().is_empty())
                .map(|(path, entry)| (path, entry.kind.clone(), entry.metadata.clone()))
                .collect()
        };
        prop_assert_eq!(paths(&tree), paths(&tree_again));
        prop_assert_eq!(tree.content(), tree_again.content());
        prop_assert_eq!(archive(&store, &again, Compression::Gzip(5), 1).digest, blob.digest);
        let plain = archive(&store, &again, Compression::None, 2);
        prop_assert_eq!(&plain.digest, &blob.diff_id.0);
        let (_, tree_plain) = unpack(&store, &plain);
        prop_assert_eq!(tree_plain.content(), tree.content());
    }
}

/// A layer of many files, some large, all compressible.
fn big(store: &Store, changed: Option<usize>) -> LayerId {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    for i in 0..600_usize {
        let size = if i % 100 == 0 { 3_000_000 } else { i * 40 };
        let mark = if changed == Some(i) { "changed" } else { "line" };
        let data: Vec<u8> = format!("{mark} of file {i}\n").bytes().cycle().take(size).collect();
        let path = format!("dir{}/file{i}", i % 10);
        let metadata = Metadata { mode: 0o644, ..Metadata::default() };
        writer.file(Path::new(&path), &metadata, &mut &data[..]).unwrap();
    }
    publish(store, draft, writer).0
}

#[test]
fn threads_and_kept_frames_change_no_byte() {
    for compression in [Compression::Gzip(5), Compression::Zstd(3), Compression::None] {
        let mut seen = None;
        for threads in [1, 2, 16] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let blob = archive(&store, &big(&store, None), compression, threads);
            assert_eq!(*seen.get_or_insert(blob.digest.clone()), blob.digest);
            // Once more, from kept frames; then with frames of another file changed.
            let again = archive(&store, &big(&store, None), compression, threads);
            assert_eq!(again, blob);
            archive(&store, &big(&store, Some(300)), compression, threads);
            let again = archive(&store, &big(&store, None), compression, threads);
            assert_eq!(again, blob);
        }
    }
}

#[test]
fn a_damaged_frame_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let compression = Compression::Gzip(5);
    let blob = archive(&store, &big(&store, None), compression, 2);
    let path = store.blob_path(&blob.digest);
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in bytes.iter_mut().skip(100).step_by(1000) {
        *byte ^= 0x55;
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let changed = archive(&store, &big(&store, Some(300)), compression, 2);
    let clean = tempfile::tempdir().unwrap();
    let clean = Store::open(clean.path()).unwrap();
    let expect = archive(&clean, &big(&clean, Some(300)), compression, 2);
    assert_eq!(changed, expect);
}
