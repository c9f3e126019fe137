//! Cuts an archive into frames of about a megabyte that are compressed on their own.
//!
//! Frames end where entries end, except inside large files, which are cut every [`CHUNK`] bytes of
//! their own. Whether a frame ends after an entry follows from the entry's path, so that a changed
//! file changes its frame alone, and an added or removed one at most the frames up to the next such
//! path. A frame is described before any file is read: the digests of files come from the layer's
//! tree, so the key of a kept frame costs no reading.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_cache::{Entry, Key, Kind, Tree, View};

use super::compress::Compression;
use super::entry::{BLOCK, EntryHeader, EntryKind, pad};
use super::whiteout::{self, Item, Walk};

/// No frame ends before so many bytes, the last and those before large files aside.
const LEAST: u64 = 256 << 10;
/// Mean size of a frame of small files.
const MEAN: u64 = 1 << 20;
/// A frame ends before the entry that would make it larger.
const MOST: u64 = 2 << 20;
/// Pieces of a large file.
const CHUNK: u64 = 1 << 20;

/// A part of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Headers and padding.
    Bytes(Vec<u8>),
    /// A part of a file of the layer.
    File { path: PathBuf, data: [u8; 32], offset: u64, length: u64 },
}

/// A run of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub pieces: Vec<Piece>,
    /// Bytes of all pieces.
    pub size: u64,
}

impl Frame {
    fn bytes(&mut self) -> &mut Vec<u8> {
        if !matches!(self.pieces.last(), Some(Piece::Bytes(_))) {
            self.pieces.push(Piece::Bytes(Vec::new()));
        }
        match self.pieces.last_mut() {
            Some(Piece::Bytes(bytes)) => bytes,
            _ => unreachable!("the last piece was just made one of bytes"),
        }
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes().extend_from_slice(bytes);
        self.size += bytes.len() as u64;
    }

    fn push_file(&mut self, path: &Path, data: [u8; 32], offset: u64, length: u64) {
        if length > 0 {
            self.pieces.push(Piece::File { path: path.to_owned(), data, offset, length });
            self.size += length;
        }
    }

    fn push_padding(&mut self, file_size: u64) {
        let padding = file_size.next_multiple_of(BLOCK as u64) - file_size;
        let bytes = self.bytes();
        bytes.resize(bytes.len() + padding as usize, 0);
        self.size += padding;
    }

    /// Names the frame's compressed form: the same pieces, compressed the same way.
    pub(super) fn key(&self, compression: Compression) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("kiln 2026-11 compressed layer frame 1");
        let mut part = |tag: u8, bytes: &[u8]| {
            hasher.update(&[tag]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        part(0, compression.to_string().as_bytes());
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => part(1, bytes),
                Piece::File { data, offset, length, .. } => {
                    part(2, data);
                    part(3, &[offset.to_le_bytes(), length.to_le_bytes()].concat());
                }
            }
        }
        Key::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// The frames of a layer's archive, in order.
pub(super) struct Frames<'a> {
    walk: Option<Walk<'a>>,
    /// No time in the archive is later, if given.
    clamp: Option<i64>,
    /// The first name of each group of hard links.
    linked: HashMap<u32, PathBuf>,
    current: Frame,
    ready: VecDeque<Frame>,
}

impl<'a> Frames<'a> {
    pub(super) fn new(tree: &'a Tree, below: Option<&'a dyn View>, clamp: Option<i64>) -> Self {
        Self {
            walk: Some(Walk::new(tree, below)),
            clamp,
            linked: HashMap::new(),
            current: Frame::default(),
            ready: VecDeque::new(),
        }
    }

    fn deletion(&mut self, path: &Path) {
        let name = whiteout::entry_name(path);
        let header = EntryHeader {
            path: name.as_os_str().as_bytes(),
            kind: EntryKind::File { size: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: &[],
        };
        self.small(&header, None);
    }

    fn entry(&mut self, path: &Path, entry: &Entry) {
        let first = match (&entry.kind, entry.link_group) {
            (Kind::File { .. }, group @ 1..) => match self.linked.get(&group) {
                Some(first) => Some(first.clone()),
                None => {
                    self.linked.insert(group, path.to_owned());
                    None
                }
            },
            _ => None,
        };
        let mut file = None;
        let kind = match (&entry.kind, &first) {
            (_, Some(first)) => EntryKind::HardLink { target: first.as_os_str().as_bytes() },
            (Kind::File { size, data }, None) => {
                file = Some((*size, *data));
                EntryKind::File { size: *size }
            }
            (Kind::Directory { .. }, _) => EntryKind::Directory,
            (Kind::Symlink { target }, _) => {
                EntryKind::Symlink { target: target.as_os_str().as_bytes() }
            }
            (Kind::CharDevice { major, minor }, _) => {
                EntryKind::CharDevice { major: *major, minor: *minor }
            }
            (Kind::BlockDevice { major, minor }, _) => {
                EntryKind::BlockDevice { major: *major, minor: *minor }
            }
            (Kind::Fifo, _) => EntryKind::Fifo,
            // An archive cannot hold sockets; the walk hands deletions on as such.
            (Kind::Socket | Kind::Whiteout, _) => return,
        };
        let metadata = &entry.metadata;
        let mtime = metadata.mtime.secs;
        // The only attribute that images carry (behaviour.md, trap 73).
        let capability = metadata.xattrs.get_key_value(&b"security.capability"[..]);
        let xattrs: Vec<_> =
            capability.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let header = EntryHeader {
            path: path.as_os_str().as_bytes(),
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: self.clamp.map_or(mtime, |clamp| mtime.min(clamp)),
            xattrs: &xattrs,
        };
        match file {
            Some((size, data)) if size > MOST => self.large(&header, path, size, data),
            Some((size, data)) => self.small(&header, Some((path, size, data))),
            None => self.small(&header, None),
        }
    }

    fn small(&mut self, header: &EntryHeader<'_>, file: Option<(&Path, u64, [u8; 32])>) {
        let mut bytes = Vec::with_capacity(BLOCK);
        header.append_to(&mut bytes);
        let data = file.map_or(0, |(_, size, _)| size.next_multiple_of(BLOCK as u64));
        let size = bytes.len() as u64 + data;
        if self.current.size + size > MOST {
            self.cut();
        }
        self.current.push_bytes(&bytes);
        if let Some((path, size, data)) = file {
            self.current.push_file(path, data, 0, size);
            self.current.push_padding(size);
        }
        if self.current.size >= LEAST && ends_frame(header.path, size) {
            self.cut();
        }
    }

    fn large(&mut self, header: &EntryHeader<'_>, path: &Path, size: u64, data: [u8; 32]) {
        self.cut();
        let mut bytes = Vec::with_capacity(BLOCK);
        header.append_to(&mut bytes);
        self.current.push_bytes(&bytes);
        let mut offset = 0;
        while offset < size {
            let length = CHUNK.min(size - offset);
            self.current.push_file(path, data, offset, length);
            offset += length;
            if offset == size {
                self.current.push_padding(size);
            }
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.current.size > 0 {
            self.ready.push_back(std::mem::take(&mut self.current));
        }
    }

    fn end(&mut self) {
        let mut marker = vec![0; 2 * BLOCK];
        pad(&mut marker);
        self.current.push_bytes(&marker);
        self.cut();
    }
}

/// Whether a frame that is long enough ends after this entry. A long entry ends one more likely, so
/// that frames are about [`MEAN`] bytes whatever the files' sizes; the size counts by its power of
/// two only, so that small changes of it change nothing.
fn ends_frame(path: &[u8], size: u64) -> bool {
    let hash = blake3::hash(path);
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
    let chance = u64::MAX / (MEAN - LEAST);
    u64::from_le_bytes(*first) < chance.saturating_mul(size.next_power_of_two())
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            match self.walk.as_mut()?.next() {
                Some(Item::Entry(path, entry)) => self.entry(&path, entry),
                Some(Item::Deletion(path)) => self.deletion(&path),
                None => {
                    self.walk = None;
                    self.end();
                }
            }
        }
    }
}

/// A finished archive, cut every [`CHUNK`] bytes.
pub(super) struct Chunks<R> {
    /// None after the end or a failure.
    archive: Option<R>,
}

impl<R: Read> Chunks<R> {
    pub(super) fn new(archive: R) -> Self {
        Self { archive: Some(archive) }
    }
}

impl<R: Read> Iterator for Chunks<R> {
    type Item = io::Result<Frame>;

    fn next(&mut self) -> Option<io::Result<Frame>> {
        let archive = self.archive.as_mut()?;
        let mut bytes = Vec::new();
        let read = archive.by_ref().take(CHUNK).read_to_end(&mut bytes);
        if bytes.is_empty() || read.is_err() {
            self.archive = None;
        }
        match read {
            Err(error) => Some(Err(error)),
            Ok(0) => None,
            Ok(size) => Some(Ok(Frame { pieces: vec![Piece::Bytes(bytes)], size: size as u64 })),
        }
    }
}
