//! PAX records: `LENGTH KEY=VALUE\n`, where LENGTH counts itself (POSIX.1-2024, pax, "pax Extended
//! Header").

use super::ArchiveError;

/// Prefix of the records that hold extended attributes (star, Docker, GNU tar).
pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Key and value.
pub(super) type Record<'a> = (&'a [u8], &'a [u8]);

/// Appends one record.
pub(super) fn append(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length's own digits count: one more digit may itself add one.
    let mut digits = decimal_digits(rest);
    while decimal_digits(rest + digits) > digits {
        digits += 1;
    }
    out.extend_from_slice((rest + digits).to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Reads all records of one extended header.
///
/// # Errors
/// When a record is not of the form above, or its length points outside.
pub(super) fn parse(mut data: &[u8]) -> Result<Vec<Record<'_>>, ArchiveError> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let (record, rest) = split_record(data)
            .ok_or_else(|| ArchiveError::malformed("a PAX header holds a record of wrong form"))?;
        records.push(record);
        data = rest;
    }
    Ok(records)
}

fn split_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length = &data[..space];
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
    let record = data.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty()).then_some(((key, value), &data[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_themselves() {
        for size in [0, 1, 5, 80, 81, 82, 83, 84, 85, 86, 980, 985, 986, 987, 988, 990, 10_000] {
            let value = vec![b'x'; size];
            let mut out = Vec::new();
            append(&mut out, b"path", &value);
            append(&mut out, b"k", b"a=b\nc");
            let records = parse(&out).unwrap();
            assert_eq!(records, [(&b"path"[..], &value[..]), (&b"k"[..], &b"a=b\nc"[..])]);
        }
    }

    #[test]
    fn refuses_wrong_records() {
        for text in [
            "6 a=b",
            "7 a=b\n",
            "5 a=b\n",
            "x a=b\n",
            " a=b\n",
            "-6 a=b\n",
            "5 ab\n",
            "4 =\n",
            "99999999999999999999999 a=b\n",
            "0 a=b\n",
            "3 a\n",
            "\0",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(b"6 a=b\n").is_ok());
    }
}
