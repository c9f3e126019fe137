//! One entry's header, as bytes: ustar, with a PAX header before it only where ustar cannot say it.
//!
//! The form is that of Go's `archive/tar` in PAX format, which BuildKit uses: numbers that do not fit
//! and names that are long or not ASCII go to PAX records; user and group names stay empty; the PAX
//! header itself is named `PaxHeaders.0/…` and has no times.

use tar::{EntryType, Header};

use super::pax;

/// Size of a tar block in bytes.
pub(crate) const BLOCK: usize = 512;

const MAX_ID: u64 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind<'a> {
    Directory,
    File { size: u64 },
    HardLink { target: &'a [u8] },
    Symlink { target: &'a [u8] },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// An entry that is to be written. The path has no leading and no trailing slash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryHeader<'a> {
    pub path: &'a [u8],
    pub kind: EntryKind<'a>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Whole seconds since 1970.
    pub mtime: i64,
    /// Extended attributes, by name.
    pub xattrs: &'a [(&'a [u8], &'a [u8])],
}

impl EntryHeader<'_> {
    /// Appends the header blocks.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        header.set_mode(self.mode & 0o7777);
        header.set_uid(number(&mut records, b"uid", self.uid.into(), MAX_ID));
        header.set_gid(number(&mut records, b"gid", self.gid.into(), MAX_ID));
        header.set_size(0);
        match self.kind {
            EntryKind::Directory => header.set_entry_type(EntryType::Directory),
            EntryKind::File { size } => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(number(&mut records, b"size", size, MAX_SIZE));
            }
            EntryKind::HardLink { target } => {
                header.set_entry_type(EntryType::Link);
                link_name(&mut header, &mut records, target);
            }
            EntryKind::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                link_name(&mut header, &mut records, target);
            }
            EntryKind::CharDevice { major, minor } => {
                header.set_entry_type(EntryType::Char);
                device(&mut header, major, minor);
            }
            EntryKind::BlockDevice { major, minor } => {
                header.set_entry_type(EntryType::Block);
                device(&mut header, major, minor);
            }
            EntryKind::Fifo => header.set_entry_type(EntryType::Fifo),
        }
        mtime(&mut header, &mut records, self.mtime);
        path_name(&mut header, &mut records, &self.full_path());
        for (name, value) in self.xattrs {
            pax::append(&mut records, &[pax::XATTR_PREFIX, name].concat(), value);
        }
        if !records.is_empty() {
            append_pax(out, self.path, &records);
        }
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
    }

    fn full_path(&self) -> Vec<u8> {
        let mut path = self.path.to_vec();
        if self.kind == EntryKind::Directory {
            path.push(b'/');
        }
        path
    }
}

/// A number for a header field, or 0 there and a PAX record.
fn number(records: &mut Vec<u8>, key: &[u8], value: u64, max: u64) -> u64 {
    if value <= max {
        return value;
    }
    pax::append(records, key, value.to_string().as_bytes());
    0
}

fn mtime(header: &mut Header, records: &mut Vec<u8>, seconds: i64) {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds <= MAX_SIZE => header.set_mtime(seconds),
        _ => {
            pax::append(records, b"mtime", seconds.to_string().as_bytes());
            header.set_mtime(0);
        }
    }
}

fn device(header: &mut Header, major: u32, minor: u32) {
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    ustar.set_device_major(major);
    ustar.set_device_minor(minor);
}

fn link_name(header: &mut Header, records: &mut Vec<u8>, target: &[u8]) {
    let field = &mut header.as_ustar_mut().expect("the header was made as ustar").linkname;
    if target.is_ascii() && target.len() <= field.len() {
        field[..target.len()].copy_from_slice(target);
    } else {
        pax::append(records, b"linkpath", target);
        fill_ascii(field, target);
    }
}

fn path_name(header: &mut Header, records: &mut Vec<u8>, path: &[u8]) {
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    if path.is_ascii() {
        if path.len() <= ustar.name.len() {
            ustar.name[..path.len()].copy_from_slice(path);
            return;
        }
        if let Some((prefix, name)) = split(path, ustar.prefix.len(), ustar.name.len()) {
            ustar.prefix[..prefix.len()].copy_from_slice(prefix);
            ustar.name[..name.len()].copy_from_slice(name);
            return;
        }
    }
    pax::append(records, b"path", path);
    fill_ascii(&mut ustar.name, path);
}

/// Splits a path at a slash so that both halves fit their fields.
fn split(path: &[u8], prefix: usize, name: usize) -> Option<(&[u8], &[u8])> {
    // A trailing slash belongs to the name of a directory and is no place to split.
    let end = path.len().saturating_sub(1).min(prefix + 1);
    let slash = path[..end].iter().rposition(|b| *b == b'/')?;
    let rest = &path[slash + 1..];
    (slash > 0 && rest.len() <= name).then_some((&path[..slash], rest))
}

/// What readers without PAX see: the beginning, other bytes than ASCII left out.
fn fill_ascii(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text.iter().filter(|b| b.is_ascii() && **b != 0)) {
        *to = *from;
    }
}

fn append_pax(out: &mut Vec<u8>, path: &[u8], records: &[u8]) {
    let (folder, base) = match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..=slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let name = [folder, b"PaxHeaders.0/", base].concat();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(records.len() as u64);
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    fill_ascii(&mut ustar.name, &name);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(records);
    pad(out);
}

/// Appends zeros up to the next block.
pub(crate) fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
