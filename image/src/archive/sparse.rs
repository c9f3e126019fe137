//! Sparse files in archives: GNU's old header form and the three PAX forms (GNU tar manual,
//! appendix "Storing Sparse Files"). A hole counts as what it is when it is read: zeros.

use super::{ArchiveError, header};
use crate::limits;

/// Bytes of a file that the archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    pub length: u64,
}

impl Segment {
    pub(super) fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// Where a file has data; everything else up to its size is a hole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub size: u64,
    pub segments: Vec<Segment>,
}

impl Map {
    /// Refuses maps that overlap, run backwards, leave the file, or name another amount of data
    /// than the archive holds.
    pub(super) fn verify(&self, stored: u64) -> Result<(), ArchiveError> {
        let mut end = 0;
        let mut sum = 0_u64;
        for segment in &self.segments {
            let segment_end = segment.offset.checked_add(segment.length).ok_or_else(wrong)?;
            if segment.offset < end || segment_end > self.size {
                return Err(wrong());
            }
            end = segment_end;
            sum += segment.length;
        }
        if sum == stored { Ok(()) } else { Err(wrong()) }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), ArchiveError> {
        if self.segments.len() >= limits::SPARSE_SEGMENTS {
            let (what, limit) = ("the map of a sparse file", limits::SPARSE_SEGMENTS as u64);
            return Err(ArchiveError::Limit { path: String::new(), what, limit });
        }
        self.segments.push(Segment { offset, length });
        Ok(())
    }
}

fn wrong() -> ArchiveError {
    ArchiveError::malformed("the map of a sparse file is wrong")
}

/// The old form: four segments in the header, 21 in each block after it.
pub(super) fn gnu_old(
    block: &[u8; 512],
    mut next: impl FnMut() -> Result<[u8; 512], ArchiveError>,
) -> Result<Map, ArchiveError> {
    let field = |bytes: &[u8]| header::signed(bytes).and_then(|v| u64::try_from(v).ok());
    let size = field(&block[483..495]).ok_or_else(wrong)?;
    let mut map = Map { size, segments: Vec::new() };
    let mut add = |entries: &[u8]| -> Result<(), ArchiveError> {
        for entry in entries.chunks_exact(24).take_while(|entry| entry[0] != 0) {
            let offset = field(&entry[..12]).ok_or_else(wrong)?;
            map.push(offset, field(&entry[12..]).ok_or_else(wrong)?)?;
        }
        Ok(())
    };
    add(&block[386..482])?;
    let mut more = block[482] != 0;
    while more {
        let block = next()?;
        add(&block[..504])?;
        more = block[504] != 0;
    }
    Ok(map)
}

/// Where the PAX records of a file put its map.
#[derive(Debug)]
pub(super) enum Pax {
    /// In the records themselves.
    Here(Map),
    /// In front of the data (form 1.0).
    InData { size: u64 },
}

/// The map that PAX records describe; none for an ordinary file.
pub(super) fn pax<'a>(
    record: impl Fn(&[u8]) -> Option<&'a [u8]>,
    all: &[(Vec<u8>, Vec<u8>)],
) -> Result<Option<Pax>, ArchiveError> {
    let number = |text: &[u8]| header::decimal(text).ok_or_else(wrong);
    if let Some(major) = record(b"GNU.sparse.major") {
        if major != b"1" || record(b"GNU.sparse.minor") != Some(b"0") {
            return Err(ArchiveError::malformed("a sparse file has an unknown form"));
        }
        let size = number(record(b"GNU.sparse.realsize").ok_or_else(wrong)?)?;
        return Ok(Some(Pax::InData { size }));
    }
    let Some(size) = record(b"GNU.sparse.size") else { return Ok(None) };
    let mut map = Map { size: number(size)?, segments: Vec::new() };
    if let Some(text) = record(b"GNU.sparse.map") {
        let mut numbers = text.split(|b| *b == b',').filter(|part| !part.is_empty());
        while let Some(offset) = numbers.next() {
            map.push(number(offset)?, number(numbers.next().ok_or_else(wrong)?)?)?;
        }
    } else {
        let mut pending = None;
        for (key, value) in all {
            match (key.as_slice(), pending) {
                (b"GNU.sparse.offset", None) => pending = Some(number(value)?),
                (b"GNU.sparse.numbytes", Some(offset)) => {
                    map.push(offset, number(value)?)?;
                    pending = None;
                }
                (b"GNU.sparse.offset" | b"GNU.sparse.numbytes", _) => return Err(wrong()),
                _ => {}
            }
        }
    }
    Ok(Some(Pax::Here(map)))
}

/// Form 1.0: decimal lines, the count first, in whole blocks before the data.
pub(super) fn in_data(
    size: u64,
    mut next: impl FnMut() -> Result<[u8; 512], ArchiveError>,
) -> Result<Map, ArchiveError> {
    let mut map = Map { size, segments: Vec::new() };
    let mut block = next()?;
    let mut at = 0;
    let mut line = || -> Result<u64, ArchiveError> {
        let mut digits = Vec::new();
        loop {
            if at == block.len() {
                block = next()?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return header::decimal(&digits).ok_or_else(wrong),
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(wrong()),
            }
        }
    };
    for _ in 0..line()? {
        let offset = line()?;
        let length = line()?;
        map.push(offset, length)?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_verified() {
        let map = |list: &[(u64, u64)]| Map {
            size: 100,
            segments: list
                .iter()
                .map(|(offset, length)| Segment { offset: *offset, length: *length })
                .collect(),
        };
        assert!(map(&[(0, 10), (20, 30)]).verify(40).is_ok());
        assert!(map(&[(0, 10), (100, 0)]).verify(10).is_ok());
        for (list, stored) in [
            (&[(0, 10)][..], 9),
            (&[(20, 10), (0, 10)], 20),
            (&[(0, 10), (5, 10)], 20),
            (&[(91, 10)], 10),
            (&[(u64::MAX, 2)], 2),
        ] {
            assert!(map(list).verify(stored).is_err(), "{list:?}");
        }
    }
}
