//! Digests of a context's files, kept from one scan to the next: `contexts/<hash>`.
//!
//! A digest is believed when inode, size, mtime and ctime are what they were when the file was hashed, and both times
//! were well in the past then: a file that changes within one tick of the clock keeps its times. The kernel sets ctime
//! and nobody can set it back, so that a restored mtime does not deceive.
//!
//! ```text
//! "kiln-stat" version:u8 (1)
//! directories: path, file count, then for each file, sorted by name:
//!              name, inode, size, mtime and ctime (seconds zigzag, nanoseconds), blake3(data):32
//! blake3 of all that:32
//! ```
//!
//! Numbers and lengths are LEB128. A file that cannot be read is no cache, and that is no error.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{Store, read_limited};
use crate::tree::Time;
use crate::tree_format::{DecodeTreeError, Reader, put};
use crate::view::FileIdentity;

const MAGIC: &[u8] = b"kiln-stat\x01";
const LIMIT: u64 = 1 << 30;
/// File systems tell times as coarsely as this (FAT: 2 seconds), and clocks of file servers are not quite ours.
const YOUNG_NS: i128 = 2_000_000_000;

/// What was known of one file.
#[derive(Debug, Clone, Copy)]
struct Row {
    name: (u32, u32),
    inode: u64,
    size: u64,
    mtime: Time,
    ctime: Time,
    data: [u8; 32],
}

/// Old rows by directory, and what this process hashed.
#[derive(Debug)]
pub(crate) struct StatCache {
    place: PathBuf,
    names: Vec<u8>,
    old: HashMap<PathBuf, Vec<Row>>,
    fresh: Mutex<Fresh>,
}

#[derive(Debug, Default)]
struct Fresh {
    files: HashMap<PathBuf, (FileIdentity, [u8; 32])>,
    /// Whether there is anything that the file does not have.
    changed: bool,
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    put(out, zigzag(time.secs));
    put(out, u64::from(time.nanos));
}

fn time(reader: &mut Reader<'_>) -> Result<Time, DecodeTreeError> {
    let secs = reader.number()?;
    Ok(Time { secs: (secs >> 1) as i64 ^ -((secs & 1) as i64), nanos: reader.small()? })
}

/// Whether a file's times were well in the past at `now`.
fn is_settled(identity: &FileIdentity, now: i128) -> bool {
    let settled = |time: Time| time.as_nanos() < now - YOUNG_NS;
    // A time in the far future is no sign of a change now; ctime alone must do.
    let future = identity.mtime.as_nanos() > now + YOUNG_NS;
    settled(identity.ctime) && (future || settled(identity.mtime))
}

impl StatCache {
    /// Reads the cache of a directory, told by device, inode and path.
    pub(crate) fn open(store: &Store, device: u64, inode: u64, path: &Path) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kiln 2026-11 name of a stat cache v1");
        hasher.update(&device.to_le_bytes());
        hasher.update(&inode.to_le_bytes());
        hasher.update(path.as_os_str().as_bytes());
        let hex = hasher.finalize().to_hex();
        let place = Path::new("contexts").join(&hex.as_str()[..32]);
        let mut cache =
            Self { place, names: Vec::new(), old: HashMap::new(), fresh: Mutex::default() };
        if let Ok(bytes) = read_limited(store.root(), &cache.place, LIMIT)
            && cache.decode(&bytes).is_err()
        {
            cache.names.clear();
            cache.old.clear();
        }
        cache
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<(), DecodeTreeError> {
        let mut reader = Reader(bytes);
        let body = reader.bytes(bytes.len().saturating_sub(32))?;
        if blake3::hash(body).as_bytes() != reader.0 {
            return reader.bytes(usize::MAX).map(|_| ());
        }
        let mut reader = Reader(body);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return reader.bytes(usize::MAX).map(|_| ());
        }
        while !reader.0.is_empty() {
            let path = PathBuf::from(OsStr::from_bytes(reader.counted()?));
            let count = reader.small()? as usize;
            let mut rows = Vec::with_capacity(count.min(reader.0.len() / 40 + 1));
            for _ in 0..count {
                let name = reader.counted()?;
                let start = self.names.len() as u32;
                self.names.extend_from_slice(name);
                let (inode, size) = (reader.number()?, reader.number()?);
                let (mtime, ctime) = (time(&mut reader)?, time(&mut reader)?);
                let name = (start, self.names.len() as u32);
                rows.push(Row { name, inode, size, mtime, ctime, data: reader.hash()? });
            }
            self.old.insert(path, rows);
        }
        Ok(())
    }

    fn fresh(&self) -> MutexGuard<'_, Fresh> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, row: &Row) -> &[u8] {
        &self.names[row.name.0 as usize..row.name.1 as usize]
    }

    fn old(&self, dir: &Path, name: &OsStr) -> Option<&Row> {
        let rows = self.old.get(dir)?;
        let found = rows.binary_search_by(|row| self.name(row).cmp(name.as_bytes())).ok()?;
        Some(&rows[found])
    }

    /// The digest of the file's data, if it is still what it was.
    pub(crate) fn get(
        &self,
        dir: &Path,
        name: &OsStr,
        identity: &FileIdentity,
    ) -> Option<[u8; 32]> {
        let row = self.old(dir, name)?;
        let same = row.inode == identity.inode
            && row.size == identity.size
            && row.mtime == identity.mtime
            && row.ctime == identity.ctime;
        same.then_some(row.data)
    }

    /// Notes what a file was hashed to. `now`: when it was opened for that, in nanoseconds since 1970.
    pub(crate) fn put(&self, path: &Path, identity: FileIdentity, data: [u8; 32], now: i128) {
        if is_settled(&identity, now) {
            let mut fresh = self.fresh();
            fresh.files.insert(path.to_owned(), (identity, data));
            fresh.changed = true;
        }
    }

    /// Writes the cache back when something was hashed. What was not looked at this time stays as it is, unless it is
    /// `gone`.
    pub(crate) fn save(&self, store: &Store, gone: impl Fn(&Path) -> bool) {
        let mut fresh = self.fresh();
        if !std::mem::take(&mut fresh.changed) {
            return;
        }
        let bytes = self.encode(&fresh, gone);
        drop(fresh);
        // A cache that cannot be written costs time later, and nothing now.
        let Ok(process) = store.process() else { return };
        let _ = process.file().and_then(|(name, mut file)| {
            file.write_all(&bytes)?;
            process.dir().rename(&name, store.root(), &self.place)
        });
    }

    fn encode(&self, fresh: &Fresh, gone: impl Fn(&Path) -> bool) -> Vec<u8> {
        type Item<'a> = (&'a [u8], u64, u64, Time, Time, [u8; 32]);
        let mut dirs: HashMap<&Path, Vec<Item<'_>>> = HashMap::new();
        for (dir, rows) in &self.old {
            let items = dirs.entry(dir).or_default();
            for row in rows {
                let name = self.name(row);
                let path = dir.join(OsStr::from_bytes(name));
                if !fresh.files.contains_key(&path) && !gone(&path) {
                    items.push((name, row.inode, row.size, row.mtime, row.ctime, row.data));
                }
            }
        }
        for (path, (identity, data)) in &fresh.files {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let FileIdentity { inode, size, mtime, ctime, .. } = *identity;
            let item = (name.as_bytes(), inode, size, mtime, ctime, *data);
            dirs.entry(dir).or_default().push(item);
        }
        let mut out = MAGIC.to_vec();
        for (dir, mut items) in dirs {
            if items.is_empty() {
                continue;
            }
            items.sort_unstable_by_key(|item| item.0);
            put(&mut out, dir.as_os_str().len() as u64);
            out.extend_from_slice(dir.as_os_str().as_bytes());
            put(&mut out, items.len() as u64);
            for (name, inode, size, mtime, ctime, data) in items {
                put(&mut out, name.len() as u64);
                out.extend_from_slice(name);
                put(&mut out, inode);
                put(&mut out, size);
                put_time(&mut out, mtime);
                put_time(&mut out, ctime);
                out.extend_from_slice(&data);
            }
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }
}
