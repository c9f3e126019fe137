//! Decompressing, hashing and unpacking at the same time, each in its own thread.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use kiln_cache::{Algorithm, Digest, DigestHasher};

use crate::archive::{ArchiveError, Decompress};

/// Bytes that are handed on at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait for the slower side: 4 MiB.
const WAITING: usize = 16;

type Piece = io::Result<Arc<[u8]>>;

/// Decompresses a stream in a thread and hashes the result in another, while `consume` reads it.
/// Returns what `consume` returns, and the digest of all that it can have read.
///
/// # Errors
/// What `consume` returns; it sees the errors of the stream as errors of its reader, and must read
/// to the end.
pub(super) fn decompress<T>(
    stream: impl Read + Send,
    consume: impl FnOnce(Pieces) -> Result<T, ArchiveError>,
) -> Result<(T, Digest), ArchiveError> {
    thread::scope(|scope| {
        let (to_consumer, pieces) = sync_channel(WAITING);
        let (to_hasher, hashed) = sync_channel(WAITING);
        // Whoever ends early drops its end of a channel, and the decoder ends with it.
        scope.spawn(move || decode(stream, &to_consumer, &to_hasher));
        let hasher = scope.spawn(move || {
            let mut hasher = DigestHasher::new(Algorithm::Sha256);
            for piece in hashed {
                hasher.update(&piece);
            }
            hasher.finish()
        });
        let result = consume(Pieces { pieces, current: Arc::new([]), position: 0 })?;
        let digest = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result, digest))
    })
}

fn decode(stream: impl Read, consumer: &SyncSender<Piece>, hasher: &SyncSender<Arc<[u8]>>) {
    let mut plain = match Decompress::new(stream) {
        Ok(plain) => plain,
        Err(error) => {
            // A consumer that has gone needs no error.
            _ = consumer.send(Err(error));
            return;
        }
    };
    let mut buffer = vec![0; PIECE];
    loop {
        match fill(&mut plain, &mut buffer) {
            Ok(0) => return,
            Ok(size) => {
                let piece: Arc<[u8]> = Arc::from(&buffer[..size]);
                if hasher.send(piece.clone()).is_err() || consumer.send(Ok(piece)).is_err() {
                    return;
                }
            }
            Err(error) => {
                _ = consumer.send(Err(error));
                return;
            }
        }
    }
}

/// Reads until the buffer is full or the stream ends. What came before an error is lost with it,
/// because nothing of a damaged layer is used.
fn fill(plain: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match plain.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(size) => have += size,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// The consumer's end.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: Receiver<Piece>,
    current: Arc<[u8]>,
    position: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.position == self.current.len() {
            let Ok(piece) = self.pieces.recv() else { return Ok(0) };
            self.current = piece?;
            self.position = 0;
        }
        let rest = &self.current[self.position..];
        let size = rest.len().min(out.len());
        out[..size].copy_from_slice(&rest[..size]);
        self.position += size;
        Ok(size)
    }
}
