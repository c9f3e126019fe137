//! Archives of strangers: what they may not do (security.md V34 to V43).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;

use kiln_cache::{Kind, Layers, Store, Tree};
use kiln_image::archive::ArchiveError;
use kiln_image::limits::Budget;
use kiln_image::unpack::{AddTarget, Unpacked, add_archive, is_archive, unpack_layer};

use crate::builder::Archive;

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("sentinel"), "untouched").unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    Place { folder, store }
}

impl Place {
    fn unpack(&self, archive: &[u8]) -> Result<(Tree, Unpacked), ArchiveError> {
        let draft = self.store.draft().unwrap();
        let writer = draft.writer();
        let unpacked = unpack_layer(archive, Budget::default(), &writer)?;
        Ok((writer.finish().unwrap(), unpacked))
    }

    fn add(&self, below: &Layers, directory: &str, archive: &[u8]) -> Result<Tree, ArchiveError> {
        let draft = self.store.draft().unwrap();
        let writer = draft.writer();
        let target = AddTarget { below, directory: Path::new(directory), owner: None };
        add_archive(archive, Budget::default(), target, &writer)?;
        Ok(writer.finish().unwrap())
    }

    /// Nothing outside of the store was touched.
    fn check_outside(&self) {
        let sentinel = fs::read_to_string(self.folder.path().join("sentinel")).unwrap();
        assert_eq!(sentinel, "untouched");
        let names: Vec<_> = fs::read_dir(self.folder.path()).unwrap().collect();
        assert_eq!(names.len(), 2);
    }
}

/// What a tree holds: `path` and a letter for the kind, the target of links.
fn listing(tree: &Tree) -> BTreeMap<String, String> {
    tree.walk()
        .filter(|(path, _)| !path.as_os_str().is_empty())
        .map(|(path, entry)| {
            let kind = match &entry.kind {
                Kind::Directory { opaque: false } => "d".to_owned(),
                Kind::Directory { opaque: true } => "opaque".to_owned(),
                Kind::File { size, .. } => format!("f{size}"),
                Kind::Symlink { target } => format!("-> {}", target.display()),
                Kind::CharDevice { major, minor } => format!("c{major}:{minor}"),
                Kind::BlockDevice { major, minor } => format!("b{major}:{minor}"),
                Kind::Fifo => "p".to_owned(),
                Kind::Socket => "s".to_owned(),
                Kind::Whiteout => "gone".to_owned(),
            };
            (path.display().to_string(), kind)
        })
        .collect()
}

fn check(name: &str, archive: Archive, expect: Result<&[(&str, &str)], &str>) {
    let place = place();
    match (place.unpack(&archive.end()), expect) {
        (Ok((tree, _)), Ok(expect)) => {
            let expect: BTreeMap<String, String> =
                expect.iter().map(|(path, kind)| ((*path).into(), (*kind).into())).collect();
            assert_eq!(listing(&tree), expect, "{name}");
        }
        (Err(error), Err(part)) => {
            assert!(error.to_string().contains(part), "{name}: {error}");
        }
        (Ok((tree, _)), Err(part)) => {
            panic!("{name}: got {:?}, expected the error {part}", listing(&tree))
        }
        (Err(error), Ok(_)) => panic!("{name}: {error}"),
    }
    place.check_outside();
}

fn new() -> Archive {
    Archive::default()
}

#[test]
fn names_never_lead_outside() {
    check("absolute", new().file("/etc/x", "1"), Ok(&[("etc", "d"), ("etc/x", "f1")]));
    check("dots inside", new().file("a/../b", "1"), Ok(&[("b", "f1")]));
    check("dots outside", new().file("../x", "1"), Err("leads out"));
    check("dots deep", new().file("a/../../x", "1"), Err("leads out"));
    check("only dots", new().dir(".."), Err("leads out"));
    check("no name", new().file("", "1"), Err("no name"));
    check("PAX dots", new().pax(&[("path", "../../x")]).file("x", "1"), Err("leads out"));
    check(
        "GNU dots",
        new().entry(b'L', "././@LongLink", "", b"../x\0").file("x", "1"),
        Err("leads out"),
    );
    check("root file", new().file(".", "1"), Err("root of a layer"));
    check("root link", new().symlink("./", "/etc"), Err("root of a layer"));
    check("root directory", new().dir("./").file("x", "1"), Ok(&[("x", "f1")]));
    check(
        "long component",
        new().pax(&[("path", &"n".repeat(256))]).file("x", "1"),
        Err("a component of its name is more than the limit of 255"),
    );
    check(
        "long path",
        new().pax(&[("path", &"n/".repeat(2500))]).file("x", "1"),
        Err("more than the limit"),
    );
}

#[test]
fn links_are_resolved_inside() {
    check(
        "through an absolute link",
        new().symlink("out", "/etc").file("out/x", "1"),
        Ok(&[("out", "-> /etc"), ("etc", "d"), ("etc/x", "f1")]),
    );
    check(
        "through a link that climbs",
        new().symlink("out", "../../../../tmp").file("out/x", "1"),
        Ok(&[("out", "-> ../../../../tmp"), ("tmp", "d"), ("tmp/x", "f1")]),
    );
    check(
        "through two links",
        new().dir("a/b").symlink("l1", "a").symlink("a/l2", "../a/b").file("l1/l2/x", "1"),
        Ok(&[("a", "d"), ("a/b", "d"), ("a/b/x", "f1"), ("a/l2", "-> ../a/b"), ("l1", "-> a")]),
    );
    check(
        "a loop",
        new().symlink("a", "b").symlink("b", "a").file("a/x", "1"),
        Err("too many symbolic links"),
    );
    check(
        "a file replaces a link",
        new().symlink("x", "/etc/passwd").file("x", "12"),
        Ok(&[("x", "f2")]),
    );
    check(
        "a directory replaces a link",
        new().symlink("x", "/etc").dir("x").file("x/y", "1"),
        Ok(&[("x", "d"), ("x/y", "f1")]),
    );
    check(
        "a link replaces a directory",
        new().dir("x").file("x/y", "1").symlink("x", "/etc"),
        Ok(&[("x", "-> /etc")]),
    );
    check(
        "a link that was resolved is replaced",
        new().symlink("l", "a").file("l/x", "1").symlink("l", "b").file("l/y", "1"),
        Ok(&[("a", "d"), ("a/x", "f1"), ("b", "d"), ("b/y", "f1"), ("l", "-> b")]),
    );
    check("below a file", new().file("x", "1").file("x/y", "1"), Err("is not a directory"));
    check("an empty link", new().symlink("x", ""), Err("leads nowhere"));
}

#[test]
fn hard_links_stay_in_the_layer() {
    check(
        "to an earlier file",
        new().file("a", "1").hard_link("b", "a"),
        Ok(&[("a", "f1"), ("b", "f1")]),
    );
    check(
        "to a symbolic link, not through it",
        new().symlink("a", "/etc/passwd").hard_link("b", "a"),
        Ok(&[("a", "-> /etc/passwd"), ("b", "-> /etc/passwd")]),
    );
    check("absent", new().hard_link("b", "a"), Err("`a`, which is not there"));
    check("later", new().hard_link("b", "a").file("a", "1"), Err("which is not there"));
    check("outside", new().hard_link("b", "../sentinel"), Err("leads out"));
    check("absolute", new().hard_link("b", "/etc/passwd"), Err("which is not there"));
    check(
        "through a link",
        new().symlink("l", "/etc").hard_link("b", "l/passwd"),
        Err("which is not there"),
    );
    check("itself", new().file("a", "1").hard_link("a", "a"), Err("to itself"));
    check("a directory", new().dir("a").hard_link("b", "a"), Err("to a directory"));
    check("its parent", new().dir("a").hard_link("a/b", "a"), Err("its own directory"));
    check(
        "what it replaces",
        new().dir("a").file("a/b", "1").hard_link("a", "a/b"),
        Err("its own directory"),
    );
    check("deleted", new().file(".wh.a", "").hard_link("b", "a"), Err("which is not there"));
    check("the root", new().hard_link("b", "."), Err("to the root"));
}

#[test]
fn deletions_mean_the_layers_below() {
    check("plain", new().file("d/.wh.x", ""), Ok(&[("d", "d"), ("d/x", "gone")]));
    check(
        "opaque",
        new().dir("d").file("d/.wh..wh..opq", "").file("d/x", "1"),
        Ok(&[("d", "opaque"), ("d/x", "f1")]),
    );
    check(
        "opaque later",
        new().dir("d").file("d/x", "1").file("d/.wh..wh..opq", ""),
        Ok(&[("d", "opaque"), ("d/x", "f1")]),
    );
    check("opaque alone", new().file("d/.wh..wh..opq", ""), Ok(&[("d", "opaque")]));
    check("then a file", new().file(".wh.x", "").file("x", "1"), Ok(&[("x", "f1")]));
    check("after a file", new().file("x", "1").file(".wh.x", ""), Ok(&[("x", "f1")]));
    check("then a directory", new().file(".wh.x", "").dir("x"), Ok(&[("x", "opaque")]));
    check(
        "then below",
        new().file(".wh.x", "").file("x/y", "1"),
        Ok(&[("x", "opaque"), ("x/y", "f1")]),
    );
    check("after a directory", new().dir("x").file(".wh.x", ""), Ok(&[("x", "opaque")]));
    check("of nothing", new().file(".wh.", ""), Err("deletes no name"));
    check("of a dot", new().file(".wh..", ""), Err("deletes no name"));
    check("of the parent", new().file("a/.wh...", ""), Err("deletes no name"));
    check("aufs", new().dir(".wh..wh.plnk").file(".wh..wh.plnk/x", "1"), Ok(&[]));
    check(
        "through a link",
        new().symlink("l", "/d").file("l/.wh.x", ""),
        Ok(&[("l", "-> /d"), ("d", "d"), ("d/x", "gone")]),
    );
    let many = (0..2000).fold(new().dir("d"), |archive, _| archive.file("d/.wh..wh..opq", ""));
    check("opaque many times", many, Ok(&[("d", "opaque")]));
}

#[test]
fn kinds_and_attributes() {
    check(
        "special files",
        new().entry(b'3', "c", "", b"").entry(b'4', "b", "", b"").entry(b'6', "p", "", b""),
        Ok(&[("c", "c1:3"), ("b", "b1:3"), ("p", "p")]),
    );
    let mut header = tar::Header::new_ustar();
    header.set_path("x").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    header.set_size(0);
    header.set_cksum();
    check("overlay's mark", new().raw(&header, b""), Err("0:0"));
    check("unknown type", new().entry(b'V', "label", "", b""), Err("unknown type `V`"));
    check("v7 directory", new().entry(0, "d/", "", b""), Ok(&[("d", "d")]));
    check("a socket-like name", new().file("s=", "1"), Ok(&[("s=", "f1")]));
    let place = place();
    let archive = new()
        .pax(&[
            ("SCHILY.xattr.user.overlay.opaque", "y"),
            ("SCHILY.xattr.trusted.overlay.metacopy", ""),
        ])
        .dir("d")
        .end();
    let (tree, _) = place.unpack(&archive).unwrap();
    let entry = tree.lookup(Path::new("d")).unwrap();
    assert!(entry.metadata.xattrs.is_empty());
    assert_eq!(entry.kind, Kind::Directory { opaque: false });
}

#[test]
fn one_reading_only() {
    check(
        "PAX size counts",
        new().pax(&[("size", "3")]).entry(b'0', "a", "", b"123"),
        Ok(&[("a", "f3")]),
    );
    check(
        "the last record counts",
        new().pax(&[("path", "a"), ("path", "b")]).file("x", "1"),
        Ok(&[("b", "f1")]),
    );
    check(
        "two long names",
        new().entry(b'L', "././@LongLink", "", b"a\0").pax(&[("path", "b")]).file("x", "1"),
        Err("two different paths"),
    );
    check("NUL in a name", new().pax(&[("path", "a\0b")]).file("x", "1"), Err("NUL"));
    check(
        "global path",
        new().pax_kind(b'g', &[("path", "a")]).file("x", "1"),
        Err("global PAX header sets `path`"),
    );
    check(
        "global comment",
        new().pax_kind(b'g', &[("comment", "abc")]).file("x", "1"),
        Ok(&[("x", "f1")]),
    );
    check("extension at the end", new().pax(&[("path", "a")]), Err("ends after an extension"));
    check("owner -1", new().pax(&[("uid", "4294967295")]).file("x", "1"), Err("owner"));
    check("negative size", new().pax(&[("size", "-1")]).file("x", "1"), Err("size"));
    check(
        "giant extension",
        new().entry(b'x', "p", "", &vec![b'x'; (1 << 20) + 1]),
        Err("extension header"),
    );
    check(
        "giant attribute",
        new().pax(&[("SCHILY.xattr.user.x", &"v".repeat(65_537))]).file("x", "1"),
        Err("extended attribute"),
    );
    let mut second = new().file("a", "1").end();
    second.extend(new().file("b", "1").end());
    let place = place();
    assert_eq!(listing(&place.unpack(&second).unwrap().0).len(), 1);
    for cut in [1, 512, 600] {
        let whole = new().file("a", &"x".repeat(1000)).0;
        assert!(place.unpack(&whole[..whole.len() - cut]).is_err(), "cut by {cut}");
    }
    // Without an end marker, and with nothing at all.
    assert!(place.unpack(&new().file("a", "1").0).is_ok());
    assert!(place.unpack(&[]).is_ok());
}

#[test]
fn sizes_are_counted_before_they_are_written() {
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "big"),
        ("GNU.sparse.realsize", "9000000000000000000"),
    ];
    let mut map = b"1\n0\n0\n".to_vec();
    map.resize(512, 0);
    check(
        "a giant hole",
        new().pax(&sparse).entry(b'0', "x", "", &map),
        Err("size of all files together"),
    );
    let place = place();
    let draft = place.store.draft().unwrap();
    let archive = (0..10).fold(new(), |a, i| a.file(&format!("f{i}"), "x")).end();
    let budget = Budget { entries: 9, ..Budget::default() };
    let error = unpack_layer(&archive[..], budget, &draft.writer()).unwrap_err();
    assert!(error.to_string().contains("number of entries"), "{error}");
    let budget = Budget { bytes: 9, ..Budget::default() };
    let draft = place.store.draft().unwrap();
    assert!(unpack_layer(&archive[..], budget, &draft.writer()).is_err());
}

#[test]
fn sparse_files_of_gnu_tar_are_whole() {
    let place = place();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let mut file = File::create(&path).unwrap();
    for offset in [0_u64, 1 << 20, 3 << 20, (10 << 20) + 777] {
        file.seek(std::io::SeekFrom::Start(offset)).unwrap();
        file.write_all(format!("data at {offset}").as_bytes()).unwrap();
    }
    file.set_len(12 << 20).unwrap();
    let expect = *blake3::hash(&fs::read(&path).unwrap()).as_bytes();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=0.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-cSf", "-", "-C"])
            .arg(folder.path())
            .args(format)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success() && output.stdout.len() < 1 << 20, "{format:?}");
        let (tree, _) = place.unpack(&output.stdout).unwrap();
        let kind = &tree.lookup(Path::new("sparse")).unwrap().kind;
        assert_eq!(*kind, Kind::File { size: 12 << 20, data: expect }, "{format:?}");
    }
}

#[test]
fn implied_parents_take_over_what_is_below() {
    let place = place();
    let draft = place.store.draft().unwrap();
    let writer = draft.writer();
    let archive = new().file("tmp/deep/x", "1").dir("tmp/deep").end();
    let unpacked = unpack_layer(&archive[..], Budget::default(), &writer).unwrap();
    assert_eq!(unpacked.implied.iter().collect::<Vec<_>>(), [Path::new("tmp")]);
    let mut header = tar::Header::new_ustar();
    header.set_path("tmp/").unwrap();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_uid(0);
    header.set_gid(5);
    header.set_mtime(7);
    header.set_size(0);
    header.set_cksum();
    let base = publish(&place, &new().raw(&header, b"").end());
    unpacked.adopt(&writer, &base).unwrap();
    let tree = writer.finish().unwrap();
    let tmp = tree.lookup(Path::new("tmp")).unwrap();
    assert_eq!((tmp.metadata.mode, tmp.metadata.gid), (0o1777, 5));
}

/// A view of one layer with this content.
fn publish(place: &Place, archive: &[u8]) -> Layers {
    let draft = place.store.draft().unwrap();
    let writer = draft.writer();
    unpack_layer(archive, Budget::default(), &writer).unwrap();
    let id = kiln_cache::LayerId::random();
    draft.publish(id.clone(), writer.finish().unwrap()).unwrap();
    Layers::open(&place.store, &[id]).unwrap()
}

/// Adds archives to a base, each to a new layer.
struct Adding {
    place: Place,
    base: Layers,
}

impl Adding {
    fn new() -> Self {
        let place = place();
        let base = new()
            .dir("usr")
            .dir("usr/lib")
            .symlink("lib", "usr/lib")
            .symlink("evil", "/../../..")
            .file("srv/data", "base")
            .dir("srv/full")
            .file("srv/full/x", "1")
            .end();
        let base = publish(&place, &base);
        Self { place, base }
    }

    fn check(
        &self,
        name: &str,
        dest: &str,
        archive: Archive,
        expect: Result<&[(&str, &str)], &str>,
    ) {
        match (self.place.add(&self.base, dest, &archive.end()), expect) {
            (Ok(tree), Ok(expect)) => {
                let expect: BTreeMap<String, String> =
                    expect.iter().map(|(path, kind)| ((*path).into(), (*kind).into())).collect();
                assert_eq!(listing(&tree), expect, "{name}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
            (got, _) => panic!("{name}: {:?}", got.map(|tree| listing(&tree))),
        }
        self.place.check_outside();
    }
}

#[test]
fn add_extracts_over_what_is_there() {
    let adding = Adding::new();
    adding.check(
        "through the base's link",
        "",
        new().file("lib/x", "1"),
        Ok(&[("usr", "d"), ("usr/lib", "d"), ("usr/lib/x", "f1")]),
    );
    adding.check("a directory replaces the base's link", "", new().dir("lib"), Ok(&[("lib", "d")]));
    adding.check("through a link that climbs", "", new().file("evil/x", "1"), Ok(&[("x", "f1")]));
    adding.check(
        "below the destination",
        "srv/new",
        new().file("a/b", "1"),
        Ok(&[("srv", "d"), ("srv/new", "d"), ("srv/new/a", "d"), ("srv/new/a/b", "f1")]),
    );
    adding.check(
        "deletions are names",
        "srv",
        new().file(".wh.x", "").file(".wh..wh..opq", ""),
        Ok(&[("srv", "d"), ("srv/.wh.x", "f0"), ("srv/.wh..wh..opq", "f0")]),
    );
    adding.check(
        "a hard link to the base",
        "srv",
        new().hard_link("again", "data"),
        Ok(&[("srv", "d"), ("srv/data", "f4"), ("srv/again", "f4")]),
    );
    adding.check(
        "a hard link outside of the destination",
        "srv",
        new().hard_link("x", "../usr"),
        Err("leads out"),
    );
    adding.check(
        "the root entry",
        "srv",
        new().dir("./").symlink("./x", "y"),
        Ok(&[("srv", "d"), ("srv/x", "-> y")]),
    );
    adding.check(
        "a file over a directory",
        "srv",
        new().file("full", "12"),
        Ok(&[("srv", "d"), ("srv/full", "f2")]),
    );
    adding.check(
        "below a file of the base",
        "srv",
        new().file("data/x", "1"),
        Err("is not a directory"),
    );
}

#[test]
fn archives_are_known_by_their_content() {
    let tar = new().file("a", "1").end();
    let pack = |program: &str| {
        let mut child = std::process::Command::new(program)
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&tar).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let mut damaged = tar.clone();
    damaged[0] ^= 1;
    for (name, content, expect) in [
        ("plain", tar.clone(), true),
        ("gzip", pack("gzip"), true),
        ("xz", pack("xz"), true),
        ("zstd", pack("zstd"), true),
        ("bzip2", pack("bzip2"), true),
        ("damaged", damaged, false),
        ("zeros", vec![0; 1024], false),
        ("empty", Vec::new(), false),
        ("short", b"text".to_vec(), false),
        ("gzip of text", b"\x1f\x8b\x08text".to_vec(), false),
    ] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        assert_eq!(is_archive(&file).unwrap(), expect, "{name}");
        assert_eq!(file.stream_position().unwrap(), 0, "{name}");
    }
}

#[test]
fn damage_of_the_stream_is_an_error_wherever_it_is() {
    let place = place();
    let data = "some data ".repeat(200_000);
    let archive = new().file("a", &data).file("b", &data).end();
    let mut packed = Vec::new();
    let mut encoder = flate2::GzBuilder::new().read(&archive[..], flate2::Compression::fast());
    std::io::Read::read_to_end(&mut encoder, &mut packed).unwrap();
    assert_eq!(place.unpack(&packed).unwrap().0.data_size(), 2 * data.len() as u64);
    for cut in [1, 8, packed.len() / 2, packed.len() - 5] {
        let error = place.unpack(&packed[..packed.len() - cut]).unwrap_err();
        assert!(error.to_string().contains("cannot"), "{cut}: {error}");
    }
    // Damage after the end of the archive counts as well: a digest of it would be that of other bytes.
    let last = packed.len() - 1;
    packed[last] ^= 1;
    assert!(place.unpack(&packed).is_err());
}
