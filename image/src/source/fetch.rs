//! Layers come in: socket -> hash and blob -> decompress -> hash -> files, in one pass.
//!
//! One thread takes bytes from the network, hashes them and writes the blob; another decompresses,
//! hashes again and writes files. Nothing is published before both digests are right. A lock for
//! each layer and blob keeps threads and processes from doing the same work twice.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kiln_cache::{
    BlobWriter, Descriptor, Digest, Key, KeyLock, LayerDraft, LayerId, LayerWriter, Layers,
};

use super::{Origin, Resolved, SourceError, Sources};
use crate::layout::Layout;
use crate::limits::Budget;
use crate::manifest::RemoteLayer;
use crate::reference::Reference;
use crate::registry::client::Trust;
use crate::unpack::{Unpacked, unpack_layer};

/// Layers that come in at once.
const PARALLEL: usize = 4;

/// Bytes that go from thread to thread at once, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 16;

/// Sees bytes come in, and can stop it.
pub trait FetchProgress: Sync {
    /// So many bytes of a blob of `total` are here.
    fn advance(&self, blob: &Digest, bytes: u64, total: u64) {
        let _ = (blob, bytes, total);
    }

    /// Whether to give up; asked every few milliseconds.
    fn cancelled(&self) -> bool {
        false
    }
}

impl FetchProgress for () {}

/// What became of a layer.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Stored,
    /// It left out directories whose metadata is in layers below that are not here yet.
    NeedsLower,
}

impl Sources {
    /// Brings layers (by their place, from the bottom) into the store, several at once: unpacked,
    /// verified, published. From a registry the blob is kept as well; from a layout it is not, as
    /// [`Self::ensure_blob`] can still get it.
    ///
    /// # Errors
    /// The first failure; layers that were finished before it stay.
    pub fn fetch_layers(
        &self,
        image: &Resolved,
        which: &[usize],
        progress: &dyn FetchProgress,
    ) -> Result<(), SourceError> {
        let mut missing = Vec::new();
        for place in which.iter().copied().filter(|place| *place < image.layers.len()) {
            let id = &image.layers[place].layer_id;
            if !self.with_lease(|lease| lease.hold_layer(id))? || !self.store.has_layer(id)? {
                missing.push(place);
            }
        }
        missing.sort_unstable();
        missing.dedup_by_key(|place| image.layers[*place].layer_id.clone());
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let later = Mutex::new(Vec::new());
        let work = || {
            while failure.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                let Some(place) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                match self.fetch_layer(image, *place, progress) {
                    Ok(Outcome::Stored) => {}
                    Ok(Outcome::NeedsLower) => {
                        later.lock().unwrap_or_else(PoisonError::into_inner).push(*place);
                    }
                    Err(error) => {
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        match missing.len() {
            0 => return Ok(()),
            1 => work(),
            many => std::thread::scope(|scope| {
                for _ in 0..PARALLEL.min(many) {
                    scope.spawn(work);
                }
            }),
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut later = later.into_inner().unwrap_or_else(PoisonError::into_inner);
        later.sort_unstable();
        for place in later {
            // Everything below is here now, or was not asked for and cannot be waited for.
            self.fetch_with(image, place, progress, true)?;
        }
        Ok(())
    }

    /// Brings the blob of a layer into the store, unless it is there.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn ensure_blob(
        &self,
        image: &Resolved,
        descriptor: &Descriptor,
        progress: &dyn FetchProgress,
    ) -> Result<(), SourceError> {
        let digest = &descriptor.digest;
        if self.with_lease(|lease| lease.hold_blob(digest))? && self.store.has_blob(digest)? {
            return Ok(());
        }
        let _lock = self.lock("blob", digest.as_str(), progress)?;
        if self.store.has_blob(digest)? {
            return Ok(());
        }
        let failed = |source| io_error(image, descriptor, "fetch", source);
        let download = Download { image, descriptor, progress, trust: Trust::Mirrors };
        match &image.origin {
            Origin::Store => {
                let reference = image.reference.clone();
                return Err(SourceError::NotStored { reference });
            }
            Origin::Layout(path) => {
                let reader = open_layout(path, descriptor)?;
                download.copy(reader, self.store.blob_writer()?, None)?.commit(Some(digest))?;
            }
            Origin::Registry(reference) => self.passing_mirrors(image, |trust| {
                let reader = self.client.blob_from(reference, descriptor, trust)?;
                let writer = download.copy(reader, self.store.blob_writer()?, None)?;
                writer.commit(Some(digest))?;
                Ok(())
            })?,
        }
        let held = self.with_lease(|lease| lease.hold_blob(digest))?;
        if held { Ok(()) } else { Err(failed(io::Error::other("it was removed at once"))) }
    }

    fn fetch_layer(
        &self,
        image: &Resolved,
        place: usize,
        progress: &dyn FetchProgress,
    ) -> Result<Outcome, SourceError> {
        let below = &image.layers[..place];
        let mut complete = true;
        for layer in below {
            complete = complete && self.store.has_layer(&layer.layer_id)?;
        }
        self.fetch_with(image, place, progress, complete)
    }

    /// A mirror that gives something else than the registry promised is passed over.
    fn fetch_with(
        &self,
        image: &Resolved,
        place: usize,
        progress: &dyn FetchProgress,
        complete: bool,
    ) -> Result<Outcome, SourceError> {
        self.passing_mirrors(image, |trust| {
            self.fetch_from(image, place, progress, complete, trust)
        })
    }

    /// Tries with the mirrors, and if what they gave is of no use without them.
    fn passing_mirrors<T>(
        &self,
        image: &Resolved,
        fetch: impl Fn(Trust) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        match (&image.origin, fetch(Trust::Mirrors)) {
            (_, Err(SourceError::Cancelled)) => Err(SourceError::Cancelled),
            (Origin::Registry(reference), Err(error)) if self.client.has_mirrors(reference) => {
                self.client.complain(format!("a mirror of {}: {error}", reference.registry()));
                fetch(Trust::Registry)
            }
            (_, fetched) => fetched,
        }
    }

    fn fetch_from(
        &self,
        image: &Resolved,
        place: usize,
        progress: &dyn FetchProgress,
        complete: bool,
        trust: Trust,
    ) -> Result<Outcome, SourceError> {
        let layer = &image.layers[place];
        let _lock = self.lock("layer", layer.layer_id.as_str(), progress)?;
        if !self.store.has_layer(&layer.layer_id)? {
            let draft = self.store.draft()?;
            let writer = draft.writer();
            let descriptor = &layer.descriptor;
            let unpacked =
                self.unpack(&Download { image, descriptor, progress, trust }, &writer)?;
            if unpacked.diff_id != layer.diff_id {
                return Err(SourceError::DiffId {
                    reference: image.reference.clone(),
                    digest: layer.descriptor.digest.clone(),
                    expected: layer.diff_id.clone(),
                    actual: unpacked.diff_id,
                });
            }
            if !unpacked.implied.is_empty() {
                if !complete {
                    return Ok(Outcome::NeedsLower);
                }
                self.adopt(image, place, &unpacked, &writer)?;
            }
            publish(image, layer, draft, writer)?;
        }
        self.with_lease(|lease| lease.hold_layer(&layer.layer_id))?;
        Ok(Outcome::Stored)
    }

    /// Directories that the archive left out look as in the layers below.
    fn adopt(
        &self,
        image: &Resolved,
        place: usize,
        unpacked: &Unpacked,
        writer: &LayerWriter,
    ) -> Result<(), SourceError> {
        let mut below: Vec<LayerId> = Vec::new();
        for layer in &image.layers[..place] {
            if self.store.has_layer(&layer.layer_id)? {
                below.push(layer.layer_id.clone());
            }
        }
        let below = Layers::open(&self.store, &below)?;
        let descriptor = &image.layers[place].descriptor;
        unpacked.adopt(writer, &below).map_err(|e| io_error(image, descriptor, "unpack", e))
    }

    fn unpack(
        &self,
        download: &Download<'_>,
        writer: &LayerWriter,
    ) -> Result<Unpacked, SourceError> {
        let (image, descriptor) = (download.image, download.descriptor);
        if let Some(file) = self.store.open_blob(&descriptor.digest)? {
            return download.unpack(file, writer);
        }
        match &image.origin {
            Origin::Store => Err(SourceError::NotStored { reference: image.reference.clone() }),
            Origin::Layout(path) => download.unpack(open_layout(path, descriptor)?, writer),
            Origin::Registry(reference) => self.pipeline(download, reference, writer),
        }
    }

    /// The blob from a registry, kept and unpacked at the same time.
    fn pipeline(
        &self,
        download: &Download<'_>,
        reference: &Reference,
        writer: &LayerWriter,
    ) -> Result<Unpacked, SourceError> {
        let digest = &download.descriptor.digest;
        let blob = self.store.blob_writer()?;
        let (sender, receiver) = sync_channel(PIECES);
        let (downloaded, unpacked) = std::thread::scope(|scope| {
            let receive = scope.spawn(move || -> Result<(), SourceError> {
                let reader =
                    self.client.blob_from(reference, download.descriptor, download.trust)?;
                download.copy(reader, blob, Some(&sender))?.commit(Some(digest))?;
                Ok(())
            });
            let mut pieces = Pieces { receiver, piece: Vec::new(), read: 0 };
            let unpacked = unpack_layer(&mut pieces, Budget::default(), writer);
            drop(pieces);
            let downloaded = match receive.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (downloaded, unpacked)
        });
        // What is wrong with the bytes explains what is wrong with the archive; that the archive
        // could not be read to its end is no explanation for anything else.
        match (downloaded, unpacked) {
            (Err(error), Err(_)) | (Err(error), Ok(_)) if !is_abandoned(&error) => Err(error),
            (_, unpacked) => unpacked.map_err(|e| download.unpack_error(e)),
        }
    }

    fn lock(
        &self,
        kind: &str,
        name: &str,
        progress: &dyn FetchProgress,
    ) -> Result<KeyLock, SourceError> {
        let hash = blake3::hash(format!("kiln fetch {kind} {name}").as_bytes());
        let lock = self.store.lock(&Key::from_bytes(*hash.as_bytes()), &|| progress.cancelled())?;
        lock.ok_or(SourceError::Cancelled)
    }
}

/// Where a layout's blob is read from, verified to its end.
fn open_layout(path: &Path, descriptor: &Descriptor) -> Result<impl Read, SourceError> {
    Ok(Layout::open(path)?.blob(descriptor)?)
}

fn publish(
    image: &Resolved,
    layer: &RemoteLayer,
    draft: LayerDraft,
    writer: LayerWriter,
) -> Result<(), SourceError> {
    let tree = writer.finish().map_err(|e| io_error(image, &layer.descriptor, "unpack", e))?;
    draft.publish(layer.layer_id.clone(), tree)?;
    Ok(())
}

fn io_error(
    image: &Resolved,
    descriptor: &Descriptor,
    operation: &'static str,
    source: io::Error,
) -> SourceError {
    let (reference, digest) = (image.reference.clone(), descriptor.digest.clone());
    SourceError::Io { operation, reference, digest, source }
}

/// The other thread gave up first.
#[derive(Debug, thiserror::Error)]
#[error("unpacking ended before the download")]
struct Abandoned;

fn is_abandoned(error: &SourceError) -> bool {
    let SourceError::Io { source, .. } = error else { return false };
    source.get_ref().is_some_and(|inner| inner.is::<Abandoned>())
}

/// One blob on its way.
#[derive(Clone, Copy)]
struct Download<'a> {
    image: &'a Resolved,
    descriptor: &'a Descriptor,
    progress: &'a dyn FetchProgress,
    trust: Trust,
}

impl Download<'_> {
    /// Copies a blob into a writer, and to another thread where there is one.
    fn copy(
        &self,
        mut reader: impl Read,
        mut writer: BlobWriter,
        sender: Option<&SyncSender<Vec<u8>>>,
    ) -> Result<BlobWriter, SourceError> {
        let failed = |source| io_error(self.image, self.descriptor, "fetch", source);
        let total = self.descriptor.size;
        loop {
            if self.progress.cancelled() {
                return Err(SourceError::Cancelled);
            }
            let mut piece = vec![0; PIECE];
            let mut count = 0;
            while count < PIECE {
                match reader.read(&mut piece[count..]).map_err(failed)? {
                    0 => break,
                    more => count += more,
                }
            }
            piece.truncate(count);
            if count == 0 {
                break;
            }
            if writer.size() + count as u64 > total {
                let reason = format!("it is larger than the promised {total} bytes");
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
            }
            writer.write_all(&piece).map_err(failed)?;
            self.progress.advance(&self.descriptor.digest, writer.size(), total);
            if let Some(sender) = sender {
                sender.send(piece).map_err(|_| failed(io::Error::other(Abandoned)))?;
            }
        }
        if writer.size() < total {
            let reason = format!("{} bytes instead of the promised {total}", writer.size());
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, reason)));
        }
        Ok(writer)
    }

    /// Unpacks what needs no keeping.
    fn unpack(
        &self,
        reader: impl Read + Send,
        writer: &LayerWriter,
    ) -> Result<Unpacked, SourceError> {
        let (mut bytes, total) = (0, self.descriptor.size);
        let digest = &self.descriptor.digest;
        let watched = Watched {
            inner: reader,
            watch: |count: usize| {
                bytes += count as u64;
                self.progress.advance(digest, bytes, total);
                if self.progress.cancelled() { Err(io::Error::other("cancelled")) } else { Ok(()) }
            },
        };
        unpack_layer(watched, Budget::default(), writer).map_err(|error| {
            if self.progress.cancelled() {
                SourceError::Cancelled
            } else {
                self.unpack_error(error)
            }
        })
    }

    fn unpack_error(&self, source: crate::archive::ArchiveError) -> SourceError {
        let (reference, digest) = (self.image.reference.clone(), self.descriptor.digest.clone());
        SourceError::Unpack { reference, digest, source }
    }
}

/// Tells somebody what was read.
struct Watched<R, F> {
    inner: R,
    watch: F,
}

impl<R: Read, F: FnMut(usize) -> io::Result<()>> Read for Watched<R, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        (self.watch)(count)?;
        Ok(count)
    }
}

/// Reads what another thread sends, to the end of its sending.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.read) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = out.len().min(self.piece.len() - self.read);
        out[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
