//! Blobs in and out. A blob is visible under its digest only after its bytes were hashed; one that the database does
//! not know, or that an earlier boot may have lost, is hashed again before it is believed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use crate::checked::is_lost;
use crate::digest::{Algorithm, Digest, DigestHasher, HashingReader};
use crate::process::Process;
use crate::store::{Store, StoreError, failed, now, now_ms};

/// A blob that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// A blob that is being written; dropping it removes it. Each write is one to the disk: give it large pieces.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    process: Arc<Process>,
    name: PathBuf,
    file: File,
    hasher: DigestHasher,
    size: u64,
    done: bool,
}

impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.hasher.update(&data[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.process.dir().remove_file(&self.name);
        }
    }
}

impl BlobWriter {
    /// Bytes written so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Publishes the blob.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] when the bytes are not the expected ones; the file is removed.
    pub fn commit(mut self, expected: Option<&Digest>) -> Result<BlobInfo, StoreError> {
        let mut digest = self.hasher.clone().finish();
        if expected.is_some_and(|digest| digest.algorithm() == Algorithm::Sha512) {
            let file = self.process.dir().open_file(&self.name);
            digest = file
                .and_then(|file| hash_file(file, Algorithm::Sha512))
                .map_err(failed("read", &self.process.dir().path().join(&self.name)))?
                .digest;
        }
        if let Some(expected) = expected
            && *expected != digest
        {
            let expected = expected.clone();
            return Err(StoreError::DigestMismatch { expected, actual: digest, size: self.size });
        }
        let info = BlobInfo { digest, size: self.size };
        let place = place(&info.digest);
        let root = self.store.root();
        // Replacing is right: the same bytes, or a damaged file that gives way.
        let _ = rustix::fs::fchmod(&self.file, rustix::fs::Mode::from_raw_mode(0o644));
        // Pruning must not come between the two.
        let _lock = self.store.publish_lock()?;
        self.process
            .dir()
            .rename(&self.name, root, &place)
            .map_err(failed("publish", &root.path().join(&place)))?;
        self.done = true;
        self.store.save_blob(&info)?;
        Ok(info)
    }
}

/// Not a regular file, or a symbolic link, which is not followed.
fn is_no_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

pub(crate) fn place(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

pub(crate) fn hash_file(file: File, algorithm: Algorithm) -> io::Result<BlobInfo> {
    let mut reader = HashingReader::new(file, algorithm);
    let mut buffer = vec![0; 256 * 1024];
    while reader.read(&mut buffer)? > 0 {}
    let (digest, size, _) = reader.finish();
    Ok(BlobInfo { digest, size })
}

impl Store {
    /// Begins a blob.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let process = self.process()?;
        let (name, file) =
            process.file().map_err(failed("make a file in", process.dir().path()))?;
        let hasher = DigestHasher::new(Algorithm::Sha256);
        Ok(BlobWriter { store: self.clone(), process, name, file, hasher, size: 0, done: false })
    }

    fn save_blob(&self, info: &BlobInfo) -> Result<(), StoreError> {
        let size = i64::try_from(info.size).unwrap_or(i64::MAX);
        self.db().write("note a blob", |transaction| {
            let query = "INSERT OR REPLACE INTO blobs (digest, size, created_ms, last_used, boot)
                         VALUES (?1, ?2, ?3, ?4, ?5)";
            let values = params![info.digest.as_str(), size, now_ms(), now(), self.boot()];
            transaction.prepare_cached(query)?.execute(values).map(|_| ())
        })
    }

    /// The size that the database knows, unless the data may have been lost with an earlier boot.
    pub(crate) fn known_blob(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.db().read("look up a blob", |connection| {
            let query = "SELECT size FROM blobs WHERE digest = ?1 AND (boot IS NULL OR boot = ?2)";
            let mut statement = connection.prepare_cached(query)?;
            let size = statement
                .query_row([digest.as_str(), self.boot()], |row| row.get::<_, i64>(0))
                .optional()?;
            Ok(size.and_then(|size| u64::try_from(size).ok()))
        })
    }

    /// Opens a blob for reading; `None` when it is not there, or was damaged and has been removed.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        let place = place(digest);
        let path = self.path().join(&place);
        let file = match self.root().open_file(&place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Not a file at all: somebody damaged the store.
            Err(error) if is_no_file(&error) => {
                self.remove_blob(digest)?;
                return Ok(None);
            }
            Err(error) => return self.lost_blob(digest, "open", error),
        };
        let size = file.metadata().map_err(failed("read", &path))?.len();
        if self.known_blob(digest)? == Some(size) {
            return Ok(Some(file));
        }
        let found = match hash_file(file, digest.algorithm()) {
            Ok(found) => found,
            Err(error) => return self.lost_blob(digest, "read", error),
        };
        if found.digest != *digest {
            self.remove_blob(digest)?;
            return Ok(None);
        }
        self.save_blob(&found)?;
        self.root().open_file(&place).map(Some).map_err(failed("open", &path))
    }

    /// A blob that the disk has lost is set aside, as a damaged one.
    pub(crate) fn lost_blob<T>(
        &self,
        digest: &Digest,
        operation: &'static str,
        error: io::Error,
    ) -> Result<Option<T>, StoreError> {
        if !is_lost(&error) {
            return Err(failed(operation, &self.blob_path(digest))(error));
        }
        self.quarantine_blob(digest, &error.to_string())?;
        Ok(None)
    }

    /// Whether the blob is there, whole.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.open_blob(digest)?.is_some())
    }

    /// The size of a blob that is there.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let Some(file) = self.open_blob(digest)? else { return Ok(None) };
        let metadata = file.metadata().map_err(failed("read", &self.blob_path(digest)))?;
        Ok(Some(metadata.len()))
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join(place(digest))
    }

    /// Stores a small blob.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn put_blob(&self, data: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::sha256(data);
        if self.has_blob(&digest)? {
            return Ok(digest);
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(data).map_err(failed("write", &self.blob_path(&digest)))?;
        Ok(writer.commit(Some(&digest))?.digest)
    }

    /// A small blob's bytes; one larger than `limit` is an error. One that is not what its digest says is set aside.
    ///
    /// # Errors
    /// When the disk or the database fails, or the blob is too large.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.open_blob(digest)? else { return Ok(None) };
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        if let Err(error) = file.take(limit.saturating_add(1)).read_to_end(&mut bytes) {
            return self.lost_blob(digest, "read", error);
        }
        if bytes.len() as u64 > limit {
            let source = io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {limit} bytes"),
            );
            return Err(failed("read", &path)(source));
        }
        let mut hasher = DigestHasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            self.quarantine_blob(digest, &format!("it hashes to `{found}`"))?;
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Removes a blob; one that is not there is no error.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.forget_blob(digest)?;
        let place = place(digest);
        self.root().remove_all(&place).map_err(failed("remove", &self.path().join(&place)))
    }

    /// Forgets a blob and what is known of its content.
    pub(crate) fn forget_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.db().write("forget a blob", |transaction| {
            transaction.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_str()])?;
            transaction.execute("DELETE FROM frames WHERE blob = ?1", [digest.as_str()])?;
            let query = "DELETE FROM layer_blobs WHERE digest = ?1";
            transaction.execute(query, [digest.as_str()]).map(|_| ())
        })
    }
}
