//! A stored layer, written as a blob.
//!
//! ```text
//! walk -> frames -> workers (read, look up or compress) -> in order -> sha256 of the archive
//!                                                                   -> blob (sha256 of the blob)
//! ```
//!
//! A bounded number of frames is under way, so memory stays flat whatever the layer's size. The
//! bytes depend on the tree alone: neither on the number of threads nor on which frames were kept.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kiln_cache::{
    Algorithm, BlobWriter, DiffId, Digest, DigestHasher, Entry, FrameLocation, Key, Kind,
    LayerBlob, LayerId, Layers, Root, Store, StoreError, Tree, View,
};

use super::compress::{Compression, FrameCompressor, FrameVerifier};
use super::frame::{Chunks, Frame, Frames, Piece};
use super::whiteout::{self, Item, Walk};

/// Part of the key of finished archives: changes whenever their bytes would.
const FORMAT: u32 = 1;

/// How an archive is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArchiveOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// No modification time in it is later, in seconds since 1970 (`rewrite-timestamp`).
    pub clamp: Option<i64>,
    /// Opaque directories are marked as such, so that unpacking gives the very same tree; in images they are written as
    /// deletions, which every reader knows.
    pub markers: bool,
    /// Threads that read and compress; the processors there are, if none.
    pub threads: Option<NonZero<usize>>,
}

/// Why a layer cannot be archived.
#[derive(Debug, thiserror::Error)]
pub enum WriteLayerError {
    /// A file of the layer cannot be read.
    #[error("cannot archive `{path}` of layer `{layer}`: {source}")]
    Read {
        /// The layer.
        layer: LayerId,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A frame cannot be compressed, or the blob not written.
    #[error("cannot write the archive of layer `{layer}`: {source}")]
    Write {
        /// The layer.
        layer: LayerId,
        /// Why.
        source: io::Error,
    },
    /// A file whose name would delete another one when the archive is unpacked.
    #[error(
        "`/{path}` cannot be in an image: names that begin with `.wh.` mean deletions there; remove it in the step that makes it"
    )]
    Reserved {
        /// The file.
        path: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Archives a layer into a blob of the store, or returns the one that was made before. `below` are
/// the layers beneath it, bottom to top, from which opaque directories learn what they delete; they
/// need to be in the store only if the layer has such directories.
///
/// # Errors
/// When the layer is not in the store or cannot be read, or the store cannot be written.
pub fn write_layer(
    store: &Store,
    layer: &LayerId,
    below: &[LayerId],
    options: &ArchiveOptions,
) -> Result<LayerBlob, WriteLayerError> {
    let tree = store.layer_tree(layer)?;
    let has_opaque = whiteout::has_opaque(&tree);
    let mut name = archive_name(options);
    let below = if has_opaque && !options.markers { below } else { &[] };
    let below = Layers::open(store, below)?;
    let below = (!options.markers || !has_opaque).then_some(&below as &dyn View);
    match below {
        None => name.push_str(".marked"),
        Some(_) if has_opaque => {
            name.push_str(&format!(".on-{}", deletions_digest(Walk::new(&tree, below))));
        }
        Some(_) => {}
    }
    if let Some(blob) = store.layer_blob(layer, &name)? {
        return Ok(blob);
    }
    if let Some(path) = whiteout::reserved(Walk::new(&tree, below)) {
        return Err(WriteLayerError::Reserved { path: path.display().to_string() });
    }
    let root = Root::open(&store.layer_path(layer)).map_err(|source| {
        let path = String::new();
        WriteLayerError::Read { layer: layer.clone(), path, source }
    })?;
    let job = Job { store, layer, root, compression: options.compression };
    let threads = options.threads.or_else(|| thread::available_parallelism().ok());
    let frames = Frames::new(&tree, below, options.clamp).map(Ok);
    let blob = job.write(frames, threads.map_or(1, NonZero::get))?;
    store.save_layer_blob(layer, &name, &blob)?;
    Ok(blob)
}

/// Under which name the store keeps archives that are made so.
fn archive_name(options: &ArchiveOptions) -> String {
    let mut name = format!("{}.v{FORMAT}", options.compression);
    if let Some(clamp) = options.clamp {
        name.push_str(&format!(".clamp{clamp}"));
    }
    name
}

/// Names all that the bytes of a layer's archive depend on besides its tree; none where they depend on the layers
/// beneath as well.
#[must_use]
pub fn archive_form(tree: &Tree, compression: Compression) -> Option<String> {
    let options = ArchiveOptions { compression, ..ArchiveOptions::default() };
    (!whiteout::has_opaque(tree)).then(|| archive_name(&options))
}

/// Whether an archive of the layer gives the same tree when it is unpacked: there are no sockets, no names that mean
/// deletions, the root directory is as every layer's, and opaque directories are marked.
#[must_use]
pub fn is_portable(tree: &Tree, markers: bool) -> bool {
    let plain = Entry::directory(0o755);
    let root = tree.root();
    let (own, usual) = (&root.entry().metadata, &plain.metadata);
    let usual_root = (own.mode, own.uid, own.gid, &own.xattrs)
        == (usual.mode, usual.uid, usual.gid, &usual.xattrs);
    usual_root
        && matches!(root.entry().kind, Kind::Directory { opaque: false })
        && tree.walk().all(|(_, entry)| entry.kind != Kind::Socket)
        && whiteout::reserved(Walk::new(tree, None)).is_none()
        && (markers || !whiteout::has_opaque(tree))
}

/// Compresses an archive anew, byte for byte the same inside.
///
/// # Errors
/// When the stream cannot be read, or the store cannot be written.
pub fn compress_archive(
    store: &Store,
    layer: &LayerId,
    archive: impl Read + Send,
    options: &ArchiveOptions,
) -> Result<LayerBlob, WriteLayerError> {
    let root = Root::open(store.path()).map_err(|source| {
        let path = String::new();
        WriteLayerError::Read { layer: layer.clone(), path, source }
    })?;
    let job = Job { store, layer, root, compression: options.compression };
    let threads = options.threads.or_else(|| thread::available_parallelism().ok());
    job.write(Chunks::new(archive), threads.map_or(1, NonZero::get))
}

/// Names the set of deletions of an archive, for the key of archives that depend on what is below.
fn deletions_digest(walk: Walk<'_>) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = blake3::Hasher::new();
    for item in walk {
        if let Item::Deletion(path) = item {
            hasher.update(path.as_os_str().as_bytes()).update(&[0]);
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

struct Job<'a> {
    store: &'a Store,
    layer: &'a LayerId,
    root: Root,
    compression: Compression,
}

/// A frame on its way to the blob.
struct Packed {
    raw: Vec<u8>,
    /// None where the frame is not compressed: then it is `raw`.
    packed: Option<Vec<u8>>,
    key: Option<Key>,
}

/// A frame that is to be packed, and its place.
type Numbered = (usize, io::Result<Frame>);

/// A frame that is packed, and its place.
type Done = (usize, Result<Packed, WriteLayerError>);

impl Job<'_> {
    fn write(
        &self,
        mut frames: impl Iterator<Item = io::Result<Frame>> + Send,
        threads: usize,
    ) -> Result<LayerBlob, WriteLayerError> {
        let first = frames.next().into_iter();
        let Some(second) = frames.next() else {
            // Most layers are small; they need no threads.
            let mut worker = Worker::new(self)?;
            let hasher = DigestHasher::new(Algorithm::Sha256);
            let mut sink = Sink::new(self, ArchiveHash::Here(hasher))?;
            for frame in first {
                sink.take(worker.pack(frame)?)?;
            }
            return sink.finish();
        };
        let frames = first.chain([second]).chain(frames);
        thread::scope(|scope| {
            let window = 2 * threads + 2;
            let (token, tokens) = sync_channel(window);
            for _ in 0..window {
                token.send(()).expect("the channel is alive and has the room");
            }
            let (jobs, queue) = sync_channel(window);
            scope.spawn(move || feed(frames, &tokens, &jobs));
            let (done, results) = channel();
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..threads {
                let (queue, done) = (queue.clone(), done.clone());
                scope.spawn(move || self.work(&queue, &done));
            }
            drop((queue, done));
            let (raws, to_hash) = sync_channel(2);
            let (hashed, digest) = sync_channel(1);
            scope.spawn(move || hash(&to_hash, &hashed));
            let sink = Sink::new(self, ArchiveHash::Elsewhere(raws, digest))?;
            // What ends early drops its ends of the channels, and so ends all others.
            collect(sink, results, &token)
        })
    }

    /// One worker thread: packs what the queue gives, until it is empty or nobody listens.
    fn work(&self, queue: &Mutex<Receiver<Numbered>>, done: &Sender<Done>) {
        let mut worker = None;
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, frame)) = next else { return };
            let made = match worker.take() {
                Some(made) => Ok(made),
                None => Worker::new(self),
            };
            let packed = made.and_then(|made| worker.insert(made).pack(frame));
            if done.send((number, packed)).is_err() {
                return;
            }
        }
    }

    fn write_error(&self, source: io::Error) -> WriteLayerError {
        WriteLayerError::Write { layer: self.layer.clone(), source }
    }
}

/// Gives frames to the workers, no more at a time than there are tokens.
fn feed(
    frames: impl Iterator<Item = io::Result<Frame>>,
    tokens: &Receiver<()>,
    jobs: &SyncSender<Numbered>,
) {
    for job in frames.enumerate() {
        if tokens.recv().is_err() || jobs.send(job).is_err() {
            return;
        }
    }
}

/// Hashes what comes, in order; the second sequential hash beside that of the blob.
fn hash(raws: &Receiver<Vec<u8>>, digest: &SyncSender<Digest>) {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    for raw in raws {
        hasher.update(&raw);
    }
    // Nobody waits for it after a failure.
    _ = digest.send(hasher.finish());
}

/// Puts finished frames in order and into the blob.
fn collect(
    mut sink: Sink<'_>,
    results: Receiver<Done>,
    token: &SyncSender<()>,
) -> Result<LayerBlob, WriteLayerError> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (number, result) in results {
        early.insert(number, result?);
        while let Some(packed) = early.remove(&next) {
            sink.take(packed)?;
            next += 1;
            // After the last frame nobody takes tokens any more.
            _ = token.try_send(());
        }
    }
    sink.finish()
}

/// What a thread needs to pack frames; its tables are reused.
struct Worker<'a> {
    job: &'a Job<'a>,
    compressor: FrameCompressor,
    verifier: FrameVerifier,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Job<'a>) -> Result<Self, WriteLayerError> {
        let compressor = FrameCompressor::new(job.compression).map_err(|e| job.write_error(e))?;
        Ok(Self { job, compressor, verifier: FrameVerifier::new() })
    }

    fn pack(&mut self, frame: io::Result<Frame>) -> Result<Packed, WriteLayerError> {
        let frame = frame.map_err(|source| self.read_error(Path::new(""), source))?;
        let raw = self.read(&frame)?;
        if self.job.compression == Compression::None {
            return Ok(Packed { raw, packed: None, key: None });
        }
        let key = frame.key(self.job.compression);
        let packed = match self.kept(&key, &raw)? {
            Some(packed) => packed,
            None => self.compressor.compress(&raw).map_err(|e| self.job.write_error(e))?,
        };
        Ok(Packed { raw, packed: Some(packed), key: Some(key) })
    }

    fn read(&self, frame: &Frame) -> Result<Vec<u8>, WriteLayerError> {
        let mut raw = Vec::with_capacity(usize::try_from(frame.size).unwrap_or(0));
        for (number, piece) in frame.pieces.iter().enumerate() {
            match piece {
                Piece::Bytes(bytes) => raw.extend_from_slice(bytes),
                Piece::File { path, offset, length, data } => {
                    let begin = raw.len();
                    read_part(&self.job.root, path, *offset, *length, &mut raw)
                        .map_err(|source| self.read_error(path, source))?;
                    // Only the last of a frame's files can go on in the next frame.
                    let goes_on = number + 1 == frame.pieces.len();
                    if *offset == 0 {
                        let known = if goes_on { None } else { Some(&raw[begin..]) };
                        self.check(path, data, known)?;
                    }
                }
            }
        }
        Ok(raw)
    }

    /// Whether a file is the one that the layer's tree knows; `known` is all of it where that was read.
    fn check(
        &self,
        path: &Path,
        data: &[u8; 32],
        known: Option<&[u8]>,
    ) -> Result<(), WriteLayerError> {
        let found = match known {
            Some(bytes) => blake3::hash(bytes),
            None => {
                let mut hasher = blake3::Hasher::new();
                let file = self.job.root.open_file(path);
                let hashed = file.and_then(|file| hasher.update_reader(file).map(|_| ()));
                hashed.map_err(|source| self.read_error(path, source))?;
                hasher.finalize()
            }
        };
        if found.as_bytes() == data {
            return Ok(());
        }
        let text = "it is not the file that was stored";
        Err(self.read_error(path, io::Error::new(io::ErrorKind::InvalidData, text)))
    }

    /// A file that cannot be read, or is another one: then its layer is set aside.
    fn read_error(&self, path: &Path, source: io::Error) -> WriteLayerError {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        let path = path.display().to_string();
        let wrong = matches!(source.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof);
        if wrong || kiln_cache::is_lost(&source) {
            let reason = format!("`{path}`: {source}");
            // That it cannot be set aside is found out when it is tried again.
            let _tried_again = self.job.store.quarantine_layer(self.job.layer, &reason);
        }
        WriteLayerError::Read { layer: self.job.layer.clone(), path, source }
    }

    /// The compressed frame from an earlier archive, if there is one and it is intact.
    fn kept(&mut self, key: &Key, raw: &[u8]) -> Result<Option<Vec<u8>>, WriteLayerError> {
        let Some(place) = self.job.store.frame(key)? else { return Ok(None) };
        let Some(blob) = self.job.store.open_blob(&place.blob)? else { return Ok(None) };
        // A frame is never much longer than what it holds; a longer one is damage.
        let Ok(length) = usize::try_from(place.length) else { return Ok(None) };
        if length > raw.len() + raw.len() / 8 + 1024 {
            return Ok(None);
        }
        let mut packed = vec![0; length];
        if blob.read_exact_at(&mut packed, place.offset).is_err() {
            return Ok(None);
        }
        Ok(self.verifier.verify(self.job.compression, &packed, raw).then_some(packed))
    }
}

fn read_part(
    root: &Root,
    path: &Path,
    offset: u64,
    length: u64,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let file = root.open_file(path)?;
    let start = out.len();
    let length = usize::try_from(length).map_err(io::Error::other)?;
    out.resize(start + length, 0);
    file.read_exact_at(&mut out[start..], offset)
}

/// Where the digest of the archive comes from.
enum ArchiveHash {
    /// It is that of the blob.
    Blob,
    /// Made here: one small frame.
    Here(DigestHasher),
    /// Made by a thread of its own.
    Elsewhere(SyncSender<Vec<u8>>, Receiver<Digest>),
}

/// The end of the line: frames in order.
struct Sink<'a> {
    job: &'a Job<'a>,
    blob: BlobWriter,
    hash: ArchiveHash,
    frames: Vec<(Key, u64, u64)>,
    size: u64,
}

impl<'a> Sink<'a> {
    fn new(job: &'a Job<'a>, hash: ArchiveHash) -> Result<Self, WriteLayerError> {
        let hash = if job.compression == Compression::None { ArchiveHash::Blob } else { hash };
        let blob = job.store.blob_writer()?;
        Ok(Self { job, blob, hash, frames: Vec::new(), size: 0 })
    }

    fn take(&mut self, frame: Packed) -> Result<(), WriteLayerError> {
        let packed = frame.packed.as_deref().unwrap_or(&frame.raw);
        self.blob.write_all(packed).map_err(|e| self.job.write_error(e))?;
        let length = packed.len() as u64;
        self.frames.extend(frame.key.map(|key| (key, self.size, length)));
        self.size += length;
        match &mut self.hash {
            ArchiveHash::Blob => {}
            ArchiveHash::Here(hasher) => hasher.update(&frame.raw),
            ArchiveHash::Elsewhere(raws, _) => {
                raws.send(frame.raw).expect("the hashing thread lives as long as its channel");
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<LayerBlob, WriteLayerError> {
        let info = self.blob.commit(None)?;
        let diff_id = match self.hash {
            ArchiveHash::Blob => info.digest.clone(),
            ArchiveHash::Here(hasher) => hasher.finish(),
            ArchiveHash::Elsewhere(raws, digest) => {
                drop(raws);
                digest.recv().expect("the hashing thread ends with a digest")
            }
        };
        let place = |(key, offset, length)| {
            (key, FrameLocation { blob: info.digest.clone(), offset, length })
        };
        let frames: Vec<_> = self.frames.into_iter().map(place).collect();
        self.job.store.save_frames(&frames)?;
        Ok(LayerBlob {
            digest: info.digest.clone(),
            size: info.size,
            diff_id: DiffId(diff_id),
            media_type: self.job.compression.media_type().to_owned(),
        })
    }
}
