//! Archives made by hand, as hostile as they need to be.

use std::io::Write;

use tar::Header;

/// An archive that is being written, entry by entry.
#[derive(Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    /// An entry with its raw name, link target and data.
    pub(crate) fn entry(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        let ustar = header.as_ustar_mut().unwrap();
        // `EntryType` would make v7's type 0 an ordinary `0`.
        ustar.typeflag[0] = kind;
        ustar.name[..name.len()].copy_from_slice(name.as_bytes());
        ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.raw(&header, data)
    }

    /// A header as it is, and data.
    pub(crate) fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(b'0', name, "", data.as_bytes())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"")
    }

    /// A PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        self.pax_kind(b'x', records)
    }

    pub(crate) fn pax_kind(self, kind: u8, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if rest + length.to_string().len() != length {
                length += 1;
            }
            writeln!(data, "{length} {key}={value}").unwrap();
        }
        self.entry(kind, "PaxHeaders/x", "", &data)
    }

    /// With the end marker.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
