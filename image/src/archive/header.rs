//! The fields of one header block: v7, ustar and GNU forms.

use super::ArchiveError;
use super::reader::ArchivedKind;

type Block = [u8; 512];

/// Refuses a header whose checksum is wrong; old tools summed signed bytes.
pub(super) fn verify_checksum(block: &Block) -> Result<(), ArchiveError> {
    let stated = octal(&block[148..156])
        .ok_or_else(|| ArchiveError::malformed("the checksum of the header is no number"))?;
    let counted = |(i, b): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { *b };
    let unsigned: u64 = block.iter().enumerate().map(|b| u64::from(counted(b))).sum();
    let signed: i64 = block.iter().enumerate().map(|b| i64::from(counted(b).cast_signed())).sum();
    if stated == unsigned || i64::try_from(stated) == Ok(signed) {
        return Ok(());
    }
    Err(ArchiveError::malformed("the checksum of the header is wrong"))
}

/// A field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// The name in the header; the prefix counts in POSIX headers only.
pub(super) fn path(block: &Block) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = if block[257..263] == *b"ustar\0" { text(&block[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// The link target in the header.
pub(super) fn link(block: &Block) -> Vec<u8> {
    text(&block[157..257]).to_vec()
}

/// What the entry is.
pub(super) fn kind(block: &Block, path: &[u8]) -> Result<ArchivedKind, ArchiveError> {
    let device = || -> Result<(u32, u32), ArchiveError> {
        Ok((number(&block[329..337], "device")?, number(&block[337..345], "device")?))
    };
    Ok(match block[156] {
        // v7 has no directories but by their names.
        0 if path.ends_with(b"/") => ArchivedKind::Directory,
        0 | b'0' | b'7' | b'S' => ArchivedKind::File,
        b'1' => ArchivedKind::HardLink,
        b'2' => ArchivedKind::Symlink,
        b'3' => device().map(|(major, minor)| ArchivedKind::CharDevice { major, minor })?,
        b'4' => device().map(|(major, minor)| ArchivedKind::BlockDevice { major, minor })?,
        b'5' => ArchivedKind::Directory,
        b'6' => ArchivedKind::Fifo,
        other => {
            let reason = format!("an entry has the unknown type `{}`", other.escape_ascii());
            return Err(ArchiveError::malformed(reason));
        }
    })
}

/// The numeric fields, PAX records first.
#[derive(Debug)]
pub(super) struct Numbers {
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

impl Numbers {
    pub(super) fn read<'a>(
        block: &Block,
        record: impl Fn(&[u8]) -> Option<&'a [u8]>,
    ) -> Result<Self, ArchiveError> {
        let size = match record(b"size") {
            Some(text) => decimal(text).ok_or_else(|| wrong("size"))?,
            None => size(block)?,
        };
        let mtime = match record(b"mtime") {
            Some(text) => time(text).ok_or_else(|| wrong("time"))?,
            None => (signed(&block[136..148]).ok_or_else(|| wrong("time"))?, 0),
        };
        let mode = signed(&block[100..108]).ok_or_else(|| wrong("mode"))?;
        Ok(Self {
            size,
            mode: u32::try_from(mode & 0o7777).map_err(|_| wrong("mode"))?,
            uid: id(record(b"uid"), &block[108..116], "owner")?,
            gid: id(record(b"gid"), &block[116..124], "group")?,
            mtime,
        })
    }
}

/// The size field alone, for extension headers.
pub(super) fn size(block: &Block) -> Result<u64, ArchiveError> {
    number(&block[124..136], "size")
}

fn wrong(what: &str) -> ArchiveError {
    ArchiveError::malformed(format!("the {what} in the header is no number in range"))
}

fn number<T: TryFrom<i64>>(field: &[u8], what: &str) -> Result<T, ArchiveError> {
    signed(field).and_then(|value| T::try_from(value).ok()).ok_or_else(|| wrong(what))
}

/// An owner. The largest number means "unchanged" to `chown` and would silently become root.
fn id(record: Option<&[u8]>, field: &[u8], what: &str) -> Result<u32, ArchiveError> {
    let value = match record {
        Some(text) => decimal(text),
        None => signed(field).and_then(|value| u64::try_from(value).ok()),
    };
    let value = value.and_then(|value| u32::try_from(value).ok());
    value.filter(|id| *id != u32::MAX).ok_or_else(|| wrong(what))
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Octal digits, spaces or NULs around them; an empty field is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let field = &field[start..];
    let end = field.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    if !rest.iter().all(|b| matches!(b, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// Octal, or GNU's big-endian two's complement where the first bit is set.
pub(super) fn signed(field: &[u8]) -> Option<i64> {
    if field.first().is_none_or(|b| b & 0x80 == 0) {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // Bit 6 of the first byte is the sign; the marker bit is replaced by it.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let start: i128 = if negative { -1 } else { 0 };
    let bytes = std::iter::once(first).chain(field[1..].iter().copied());
    let value = bytes.fold(start, |value, b| (value << 8) | i128::from(b));
    i64::try_from(value).ok()
}

/// `seconds[.fraction]`, negative ones too; the result's nanoseconds count forward.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let dot = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    let seconds = i64::try_from(decimal(&digits[..dot])?).ok()?;
    let fraction = digits.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos =
        (0..9).fold(0, |value, i| value * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0')));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_forms() {
        for (field, expect) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0\0\0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x02\0\0\0\0\0\0\0", Some(0x0200_0000_0000_0000)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"12x\0\0\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"8\0\0\0\0\0\0\0", None),
            (b"1 2\0\0\0\0\0", None),
        ] {
            assert_eq!(signed(field), expect, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn times_in_all_forms() {
        for (text, expect) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("1.1234567891", Some((1, 123_456_789))),
            ("1.", Some((1, 0))),
            (".5", None),
            ("", None),
            ("-", None),
            ("1e5", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expect, "{text}");
        }
    }
}
