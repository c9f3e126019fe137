//! Frames and headers against the reader, and against other programs' readers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_cache::{ContentDigest, Entry, Kind, Metadata, Time, Tree, TreeBuilder, View, ViewEntry};

use super::compress::{Compression, FrameCompressor, FrameVerifier};
use super::frame::{Frame, Frames, Piece};
use super::{ArchiveReader, ArchivedKind, Decompress};
use crate::limits::Budget;

/// A view with these names in these directories.
#[derive(Default)]
struct Below(BTreeMap<PathBuf, Vec<(OsString, kiln_cache::FileKind)>>);

impl View for Below {
    fn entry(&self, _: &Path) -> Option<ViewEntry> {
        None
    }
    fn children(&self, _: &Path) -> Vec<(OsString, ViewEntry)> {
        Vec::new()
    }
    fn names(&self, path: &Path) -> Vec<(OsString, kiln_cache::FileKind)> {
        self.0.get(path).cloned().unwrap_or_default()
    }
    fn open(&self, _: &Path) -> io::Result<File> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn digest(&self, _: &Path) -> io::Result<ContentDigest> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// A file's content is its path, repeated to its size.
fn content(path: &Path, size: u64) -> Vec<u8> {
    let text = format!("{} ", path.display());
    text.bytes().cycle().take(size as usize).collect()
}

fn metadata(mode: u32) -> Metadata {
    Metadata {
        mode,
        uid: 1,
        gid: 2,
        mtime: Time { secs: 1_600_000_000, nanos: 5 },
        ..Metadata::default()
    }
}

fn file(path: &str, size: u64) -> (PathBuf, Entry) {
    let path = PathBuf::from(path);
    let data = *blake3::hash(&content(&path, size)).as_bytes();
    (path, Entry { kind: Kind::File { size, data }, metadata: metadata(0o644), link_group: 0 })
}

fn tree(entries: impl IntoIterator<Item = (PathBuf, Entry)>) -> Tree {
    let mut builder = TreeBuilder::new();
    for (path, entry) in entries {
        builder.insert(&path, entry);
    }
    builder.finish()
}

fn other(path: impl Into<PathBuf>, kind: Kind) -> (PathBuf, Entry) {
    (path.into(), Entry { kind, metadata: metadata(0o755), link_group: 0 })
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in &frame.pieces {
        match piece {
            Piece::Bytes(bytes) => out.extend_from_slice(bytes),
            Piece::File { path, offset, length, .. } => {
                let data = content(path, offset + length);
                out.extend_from_slice(&data[*offset as usize..]);
            }
        }
    }
    assert_eq!(out.len() as u64, frame.size);
    out
}

fn archive(tree: &Tree) -> Vec<u8> {
    Frames::new(tree, Some(&Below::default()), None).flat_map(|frame| bytes(&frame)).collect()
}

fn read(archive: &[u8]) -> Vec<(String, ArchivedKind, Vec<u8>)> {
    let mut reader = ArchiveReader::new(archive, Budget::default());
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut data = Vec::new();
        reader.content().read_to_end(&mut data).unwrap();
        found.push((entry.path.escape_ascii().to_string(), entry.kind, data));
    }
    found
}

/// One entry of each kind, with names and numbers that do not fit into ustar.
fn unusual() -> Tree {
    let long = "n".repeat(150);
    let deep = format!("deep/{}/{}", "d".repeat(90), "f".repeat(90));
    let mut big_owner = file("big-owner", 3);
    big_owner.1.metadata.uid = 3_000_000_000;
    big_owner.1.metadata.gid = 3_000_000_001;
    let mut old = file("old", 3);
    old.1.metadata.mtime = Time { secs: -1, nanos: 0 };
    let mut capable = file("capable", 3);
    let xattrs = &mut capable.1.metadata.xattrs;
    xattrs.insert(b"security.capability".to_vec(), b"\x01\0\n=\xff".to_vec());
    xattrs.insert(b"user.dropped".to_vec(), b"x".to_vec());
    let mut first = file("a-link", 600);
    first.1.link_group = 7;
    let second = (PathBuf::from("b-link"), first.1.clone());
    tree([
        file("empty", 0),
        file("block", 512),
        file(&long, 10),
        file(&deep, 10),
        file("ümlaut", 10),
        big_owner,
        old,
        capable,
        first,
        second,
        other("directory", Kind::Directory { opaque: false }),
        other("link", Kind::Symlink { target: "x".repeat(120).into() }),
        other("dänglich", Kind::Symlink { target: "über".into() }),
        other("fifo", Kind::Fifo),
        other("socket", Kind::Socket),
        other("char", Kind::CharDevice { major: 4095, minor: 1_048_575 }),
        other("block-device", Kind::BlockDevice { major: 8, minor: 1 }),
        other("gone", Kind::Whiteout),
        file("large", 5_000_000),
    ])
}

#[test]
fn the_reader_reads_what_the_writer_wrote() {
    let tree = unusual();
    let found = read(&archive(&tree));
    let names: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
    assert!(names.contains(&".wh.gone") && names.contains(&"directory/"));
    assert!(!names.iter().any(|name| name.contains("socket")));
    for (name, kind, data) in &found {
        if *kind == ArchivedKind::File && !name.starts_with(".wh.") {
            let name = name.replace("\\xc3\\xbc", "ü");
            // The second name of a file has no data of its own.
            assert_eq!(*data, content(Path::new(&name), data.len() as u64), "{name}");
        }
    }
    let mut reader_archive = archive(&tree);
    let mut reader = ArchiveReader::new(&reader_archive[..], Budget::default());
    let mut entries = BTreeMap::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.insert(entry.path.clone(), entry);
    }
    let get = |name: &str| &entries[name.as_bytes()];
    assert_eq!((get("big-owner").uid, get("big-owner").gid), (3_000_000_000, 3_000_000_001));
    assert_eq!(get("old").mtime, (-1, 0));
    assert_eq!(get("empty").mtime, (1_600_000_000, 0));
    let capability = (b"security.capability".to_vec(), b"\x01\0\n=\xff".to_vec());
    assert_eq!(get("capable").xattrs, [capability]);
    assert_eq!(get("b-link").link, b"a-link");
    assert_eq!(get("char").kind, ArchivedKind::CharDevice { major: 4095, minor: 1_048_575 });
    assert_eq!(get("link").link.len(), 120);
    assert_eq!((get(".wh.gone").mtime, get(".wh.gone").size), ((0, 0), 0));
    // A damaged header is not read.
    reader_archive[20] ^= 1;
    assert!(ArchiveReader::new(&reader_archive[..], Budget::default()).next_entry().is_err());
}

/// Runs a program over an archive; its output.
fn run(program: &str, args: &[&str], archive: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(args)
        .env("PYTHONIOENCODING", "utf-8:surrogateescape")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let archive = archive.to_vec();
    let feed = std::thread::spawn(move || stdin.write_all(&archive));
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    assert!(output.status.success(), "{program} fails");
    String::from_utf8(output.stdout).unwrap()
}

const PYTHON: &str = r#"
import sys, tarfile, hashlib
for m in tarfile.open(fileobj=sys.stdin.buffer, mode="r|"):
    data = hashlib.sha256(tf.read()).hexdigest()[:8] if m.isreg() and (tf := None) else ""
    print(m.name, m.type.decode(), oct(m.mode), m.uid, m.gid, m.size, int(m.mtime), m.linkname, m.uname, m.gname, m.devmajor, m.devminor, sep="|")
"#;

#[test]
fn python_and_gnu_tar_read_the_same() {
    let archive = archive(&unusual());
    let mut reader = ArchiveReader::new(&archive[..], Budget::default());
    let (mut ours, mut names) = (Vec::new(), Vec::new());
    while let Some(e) = reader.next_entry().unwrap() {
        let name = String::from_utf8(e.path).unwrap();
        let (kind, device) = match e.kind {
            ArchivedKind::File => ("0", (0, 0)),
            ArchivedKind::HardLink => ("1", (0, 0)),
            ArchivedKind::Symlink => ("2", (0, 0)),
            ArchivedKind::CharDevice { major, minor } => ("3", (major, minor)),
            ArchivedKind::BlockDevice { major, minor } => ("4", (major, minor)),
            ArchivedKind::Directory => ("5", (0, 0)),
            ArchivedKind::Fifo => ("6", (0, 0)),
        };
        ours.push(format!(
            "{}|{kind}|0o{:o}|{}|{}|{}|{}|{}|||{}|{}",
            name.trim_end_matches('/'),
            e.mode,
            e.uid,
            e.gid,
            e.size,
            e.mtime.0,
            String::from_utf8(e.link).unwrap(),
            device.0,
            device.1
        ));
        names.push(name);
    }
    let script = PYTHON.lines().filter(|line| !line.contains("data =")).collect::<Vec<_>>();
    let python = run("python3", &["-c", &script.join("\n")], &archive);
    assert_eq!(python.lines().collect::<Vec<_>>(), ours);
    let tar = run("tar", &["--quoting-style=literal", "-tf", "-"], &archive);
    assert_eq!(tar.lines().collect::<Vec<_>>(), names);
}

#[test]
fn opaque_directories_become_deletions() {
    let dir = |path: &str, opaque| other(path, Kind::Directory { opaque });
    let tree = tree([
        dir("d", true),
        file("d/kept", 1),
        dir("d/sub", false),
        file("d/sub/new", 1),
        dir("plain", false),
        other("plain/gone", Kind::Whiteout),
    ]);
    let names = |list: &[&str]| -> Vec<(OsString, kiln_cache::FileKind)> {
        list.iter().map(|n| (OsString::from(n), kiln_cache::FileKind::File)).collect()
    };
    let below = Below(BTreeMap::from([
        (PathBuf::from("d"), names(&["a", "kept", "sub", "z"])),
        (PathBuf::from("d/sub"), names(&["new", "old"])),
        (PathBuf::from("plain"), names(&["gone", "stays"])),
    ]));
    let archive: Vec<u8> = Frames::new(&tree, Some(&below), None).flat_map(|f| bytes(&f)).collect();
    let found: Vec<String> = read(&archive).into_iter().map(|(name, _, _)| name).collect();
    let expect = [
        "d/",
        "d/.wh.a",
        "d/.wh.z",
        "d/kept",
        "d/sub/",
        "d/sub/.wh.old",
        "d/sub/new",
        "plain/",
        "plain/.wh.gone",
    ];
    assert_eq!(found, expect);
}

fn many(count: usize, change: impl Fn(usize) -> Option<u64>) -> Tree {
    tree((0..count).filter_map(|i| Some(file(&format!("dir{}/file{i}", i % 100), change(i)?))))
}

#[test]
fn a_change_touches_few_frames() {
    let size = |i: usize| Some((i as u64 * 7919) % 20_000);
    let keys = |tree: &Tree| -> Vec<_> {
        let below = Below::default();
        let frames = Frames::new(tree, Some(&below), None);
        frames.map(|frame| (frame.key(Compression::None), frame.size)).collect()
    };
    let before = keys(&many(5000, size));
    let mean = before.iter().map(|(_, size)| size).sum::<u64>() / before.len() as u64;
    assert!((500_000..1_500_000).contains(&mean), "mean size {mean}");
    assert!(before.iter().all(|(_, size)| *size <= 2 << 20));
    let new = |tree: &Tree| keys(tree).iter().filter(|key| !before.contains(key)).count();
    assert_eq!(new(&many(5000, size)), 0);
    assert!(new(&many(5000, |i| if i == 2500 { Some(11) } else { size(i) })) <= 3);
    assert!(new(&many(5000, |i| if i == 2500 { None } else { size(i) })) <= 3);
    assert!(new(&many(5001, size)) <= 3);
    // The way of compression is part of the key.
    let tree = many(1, size);
    let frame = Frames::new(&tree, Some(&Below::default()), None).next().unwrap();
    assert_ne!(frame.key(Compression::Gzip(1)), frame.key(Compression::Gzip(2)));
}

#[test]
fn frames_compress_and_verify() {
    let mut random = vec![0; 1 << 20];
    let mut state = 1_u64;
    for byte in &mut random {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let text = content(Path::new("text"), 1 << 20);
    for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3)] {
        let mut compressor = FrameCompressor::new(compression).unwrap();
        let mut verifier = FrameVerifier::new();
        for raw in [&b""[..], b"x", &text, &random] {
            let packed = compressor.compress(raw).unwrap();
            assert!(packed.len() <= raw.len() + raw.len() / 1000 + 40, "{compression}");
            assert!(verifier.verify(compression, &packed, raw));
            assert!(!verifier.verify(compression, &packed, &[raw, b"y"].concat()));
            let mut damaged = packed.clone();
            if let Some(byte) = damaged.last_mut() {
                *byte ^= 1;
                assert!(!verifier.verify(compression, &damaged, raw), "{compression}");
            }
            let two = [packed.clone(), packed].concat();
            let mut out = Vec::new();
            if compression != Compression::None {
                Decompress::new(&two[..]).unwrap().read_to_end(&mut out).unwrap();
                assert_eq!(out, [raw, raw].concat());
            }
        }
        if compression != Compression::None {
            assert!(compressor.compress(&text).unwrap().len() < text.len() / 50);
        }
    }
}
