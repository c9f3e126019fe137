//! Archives read as a stream of typed entries.
//!
//! One reading only (security.md V38, V39): PAX records win over the header, a PAX path beside a
//! different GNU long name is an error, so are unknown types, wrong checksums and numbers, and the
//! first end marker ends the archive. Nothing here touches a file system.

use std::io::{self, Read};

use super::header::{self, Numbers};
use super::sparse::{self, Segment};
use super::{ArchiveError, pax};
use crate::limits::{self, Budget};

const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchivedKind {
    /// A directory.
    Directory,
    /// A regular file; [`ArchiveReader::content`] reads it.
    File,
    /// Another name of an earlier file, which `link` names.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Names and values of extended attributes, each name once.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry, as the archive says it; names are not cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// Offset of its header.
    pub offset: u64,
    /// Its name, any bytes but NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ArchivedKind,
    /// Target of a link, else empty.
    pub link: Vec<u8>,
    /// Bytes of a file, holes included.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, in the order of the archive.
    pub xattrs: Attributes,
}

/// Reads an archive that is not compressed (see [`super::Decompress`]).
#[derive(Debug)]
pub struct ArchiveReader<R> {
    stream: Counted<R>,
    /// What may still come, and what was allowed at the beginning.
    budget: Budget,
    allowed: Budget,
    /// What the current entry still has in the stream, padding aside.
    data_left: u64,
    padding: u64,
    segments: Vec<Segment>,
    size: u64,
    name: Vec<u8>,
    offset: u64,
    ended: bool,
}

#[derive(Debug)]
struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.inner.read(out)?;
        self.position += size as u64;
        Ok(size)
    }
}

/// What extension headers said of the entry that follows them.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extensions {
    /// The last of equal records counts (POSIX).
    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        self.pax.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_slice())
    }
}

impl<R: Read> ArchiveReader<R> {
    /// Reads within a budget.
    pub fn new(stream: R, budget: Budget) -> Self {
        Self {
            stream: Counted { inner: stream, position: 0 },
            budget,
            allowed: budget,
            data_left: 0,
            padding: 0,
            segments: Vec::new(),
            size: 0,
            name: Vec::new(),
            offset: 0,
            ended: false,
        }
    }

    /// The next entry; none after the end.
    ///
    /// # Errors
    /// When the archive is malformed, above a limit, or cannot be read; says where.
    pub fn next_entry(&mut self) -> Result<Option<ArchiveEntry>, ArchiveError> {
        let result = self.advance();
        result.map_err(|error| error.at(self.offset, &self.name))
    }

    /// Reads to the end of the stream, so that a decoder sees its checksum and a hash all bytes.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub fn finish(mut self) -> Result<R, ArchiveError> {
        io::copy(&mut self.stream, &mut io::sink()).map_err(read_error)?;
        Ok(self.stream.inner)
    }

    /// The content of the current entry, holes as zeros.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self, position: 0, segment: 0 }
    }

    fn advance(&mut self) -> Result<Option<ArchiveEntry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        self.segments.clear();
        self.name.clear();
        let mut extensions = Extensions::default();
        loop {
            self.offset = self.stream.position;
            let Some(block) = self.header_block()? else { return self.end(&extensions) };
            self.budget.entries =
                self.budget.entries.checked_sub(1).ok_or_else(|| ArchiveError::Limit {
                    path: String::new(),
                    what: "the number of entries",
                    limit: self.allowed.entries,
                })?;
            match block[156] {
                b'x' => self.pax_header(&block, &mut extensions)?,
                b'g' => self.global_header(&block)?,
                b'L' => extensions.long_name = Some(self.long_name(&block)?),
                b'K' => extensions.long_link = Some(self.long_name(&block)?),
                _ => return self.entry(&block, &extensions).map(Some),
            }
        }
    }

    fn end(&mut self, extensions: &Extensions) -> Result<Option<ArchiveEntry>, ArchiveError> {
        self.ended = true;
        if extensions.pax.is_empty()
            && extensions.long_name.is_none()
            && extensions.long_link.is_none()
        {
            return Ok(None);
        }
        Err(ArchiveError::malformed("the archive ends after an extension header"))
    }

    /// A block that is a header; none at the end marker or the end of the stream.
    fn header_block(&mut self) -> Result<Option<[u8; 512]>, ArchiveError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().any(|b| *b != 0) {
            header::verify_checksum(&block)?;
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second.iter().any(|b| *b != 0) => {
                Err(ArchiveError::malformed("a single zero block stands where a header must be"))
            }
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; 512]>, ArchiveError> {
        let mut block = [0; 512];
        let mut have = 0;
        while have < block.len() {
            match self.stream.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(size) => have += size,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(e)),
            }
        }
        Ok(Some(block))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let mut data = self.stream.by_ref().take(bytes);
        let skipped = io::copy(&mut data, &mut io::sink()).map_err(read_error)?;
        if skipped == bytes { Ok(()) } else { Err(truncated()) }
    }

    /// The data of an extension header.
    fn extension(&mut self, block: &[u8; 512]) -> Result<Vec<u8>, ArchiveError> {
        let size = header::size(block)?;
        if size > limits::PAX_BYTES {
            let (what, limit) = ("the size of an extension header", limits::PAX_BYTES);
            return Err(ArchiveError::Limit { path: String::new(), what, limit });
        }
        let mut data = Vec::new();
        self.stream.by_ref().take(size).read_to_end(&mut data).map_err(read_error)?;
        if (data.len() as u64) < size {
            return Err(truncated());
        }
        self.skip(size.next_multiple_of(BLOCK) - size)?;
        Ok(data)
    }

    fn pax_header(
        &mut self,
        block: &[u8; 512],
        extensions: &mut Extensions,
    ) -> Result<(), ArchiveError> {
        let data = self.extension(block)?;
        for (key, value) in pax::parse(&data)? {
            extensions.pax.push((key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    /// Records for all entries that follow: Go ignores them and so do we, but an archive that would
    /// rename or resize entries by them has two readings.
    fn global_header(&mut self, block: &[u8; 512]) -> Result<(), ArchiveError> {
        let data = self.extension(block)?;
        for (key, _) in pax::parse(&data)? {
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                let key = key.escape_ascii();
                let reason = format!("a global PAX header sets `{key}`");
                return Err(ArchiveError::malformed(reason));
            }
        }
        Ok(())
    }

    fn long_name(&mut self, block: &[u8; 512]) -> Result<Vec<u8>, ArchiveError> {
        let data = self.extension(block)?;
        let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
        Ok(data[..end].to_vec())
    }

    fn entry(
        &mut self,
        block: &[u8; 512],
        extensions: &Extensions,
    ) -> Result<ArchiveEntry, ArchiveError> {
        let path = name(extensions, &extensions.long_name, b"path", header::path(block))?;
        self.name.clone_from(&path);
        let link = name(extensions, &extensions.long_link, b"linkpath", header::link(block))?;
        let numbers = Numbers::read(block, |key| extensions.record(key))?;
        let kind = header::kind(block, &path)?;
        let mut entry = ArchiveEntry {
            offset: self.offset,
            path,
            kind,
            link,
            size: 0,
            mode: numbers.mode,
            uid: numbers.uid,
            gid: numbers.gid,
            mtime: numbers.mtime,
            xattrs: xattrs(extensions)?,
        };
        if entry.kind == ArchivedKind::File {
            self.start_file(block, extensions, &mut entry, numbers.size)?;
        }
        Ok(entry)
    }

    /// Takes note of the data that follows. Other kinds have none, whatever their size field says
    /// (as in Go's reader).
    fn start_file(
        &mut self,
        block: &[u8; 512],
        extensions: &Extensions,
        entry: &mut ArchiveEntry,
        stored: u64,
    ) -> Result<(), ArchiveError> {
        self.data_left = stored;
        self.padding = padding(stored);
        self.size = stored;
        let map = if block[156] == b'S' {
            Some(sparse::gnu_old(block, || self.block()?.ok_or_else(truncated))?)
        } else {
            let map = sparse::pax(|key| extensions.record(key), &extensions.pax)?;
            match map {
                Some(sparse::Pax::Here(map)) => Some(map),
                Some(sparse::Pax::InData { size }) => {
                    let mut blocks = 0;
                    let map = sparse::in_data(size, || {
                        blocks += BLOCK;
                        self.block()?.ok_or_else(truncated)
                    })?;
                    self.data_left = stored.checked_sub(blocks).ok_or_else(|| {
                        ArchiveError::malformed("a sparse map is longer than its file")
                    })?;
                    Some(map)
                }
                None => None,
            }
        };
        if let Some(map) = map {
            map.verify(self.data_left)?;
            self.size = map.size;
            self.segments = map.segments;
            if let Some(name) = extensions.record(b"GNU.sparse.name") {
                entry.path = name.to_vec();
                self.name = name.to_vec();
            }
        } else {
            self.segments.push(Segment { offset: 0, length: stored });
        }
        entry.size = self.size;
        self.budget.bytes =
            self.budget.bytes.checked_sub(self.size).ok_or_else(|| ArchiveError::Limit {
                path: String::new(),
                what: "the size of all files together",
                limit: self.allowed.bytes,
            })?;
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn truncated() -> ArchiveError {
    ArchiveError::malformed("the archive is cut off")
}

fn read_error(source: io::Error) -> ArchiveError {
    ArchiveError::Read { path: String::new(), source }
}

/// The one name that an entry has.
fn name(
    extensions: &Extensions,
    long: &Option<Vec<u8>>,
    key: &[u8],
    header: Vec<u8>,
) -> Result<Vec<u8>, ArchiveError> {
    let name = match (long, extensions.record(key)) {
        (Some(long), Some(pax)) if long != pax => {
            let reason = "a GNU long name and a PAX record name two different paths";
            return Err(ArchiveError::malformed(reason));
        }
        (_, Some(pax)) => pax.to_vec(),
        (Some(long), None) => long.clone(),
        (None, None) => header,
    };
    if name.contains(&0) {
        return Err(ArchiveError::malformed("a name holds a NUL byte"));
    }
    Ok(name)
}

fn xattrs(extensions: &Extensions) -> Result<Attributes, ArchiveError> {
    let mut list = Attributes::new();
    for (key, value) in &extensions.pax {
        let Some(key) = key.strip_prefix(pax::XATTR_PREFIX) else { continue };
        if value.len() > limits::XATTR_BYTES {
            let (what, limit) = ("an extended attribute", limits::XATTR_BYTES as u64);
            return Err(ArchiveError::Limit { path: String::new(), what, limit });
        }
        list.retain(|(k, _)| k != key);
        list.push((key.to_vec(), value.clone()));
    }
    Ok(list)
}

/// Reads the content of an entry; see [`ArchiveReader::content`].
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut ArchiveReader<R>,
    position: u64,
    segment: usize,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.reader;
        let limit = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        while reader.segments.get(self.segment).is_some_and(|s| s.end() <= self.position) {
            self.segment += 1;
        }
        let size = match reader.segments.get(self.segment) {
            Some(segment) if segment.offset <= self.position => {
                let most = limit((segment.end() - self.position).min(reader.data_left));
                let size = reader.stream.read(&mut out[..most])?;
                if size == 0 && most > 0 {
                    let reason = "the archive is cut off inside a file";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
                }
                reader.data_left -= size as u64;
                size
            }
            next => {
                let end = next.map_or(reader.size, |segment| segment.offset);
                let size = limit(end - self.position);
                out[..size].fill(0);
                size
            }
        };
        self.position += size as u64;
        Ok(size)
    }
}
