//! Certificates in their textual form (RFC 7468): what `--ca-certs` names, and what images keep as their
//! bundles. Only as much of DER is understood as tells a whole certificate from half of one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The label of a certificate.
const CERTIFICATE: &str = "CERTIFICATE";

/// Width of the lines between the markers (RFC 7468, section 2).
const WIDTH: usize = 64;

/// What stands between a `BEGIN` and an `END`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// What it says that it is.
    pub(crate) label: String,
    /// The line that it begins in, from 1.
    pub(crate) line: usize,
    /// What it holds; `None` where that is no base64, or where the end is missing.
    pub(crate) data: Option<Vec<u8>>,
}

impl Block {
    /// The certificate, if it is one.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        let data = self.data.as_deref().filter(|_| self.label == CERTIFICATE)?;
        is_sequence(data).then_some(data)
    }
}

/// All blocks of a text; what is around them is comment.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(label) = marker(line, "-----BEGIN ") else { continue };
        let mut body = String::new();
        let mut closed = false;
        for (_, line) in lines.by_ref() {
            if let Some(end) = marker(line, "-----END ") {
                closed = end == label;
                break;
            }
            body.push_str(line);
        }
        let data = closed.then(|| STANDARD.decode(&body).ok()).flatten();
        found.push(Block { label: label.to_owned(), line: number + 1, data });
    }
    found
}

fn marker<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    line.strip_prefix(begin)?.strip_suffix("-----")
}

/// A certificate as text.
pub(crate) fn encode(certificate: &[u8]) -> String {
    let mut text = format!("-----BEGIN {CERTIFICATE}-----\n");
    let mut body = STANDARD.encode(certificate);
    while !body.is_empty() {
        let rest = body.split_off(body.len().min(WIDTH));
        text.push_str(&body);
        text.push('\n');
        body = rest;
    }
    text + &format!("-----END {CERTIFICATE}-----\n")
}

/// Whether bytes are one DER sequence, from the first to the last (X.690, section 8.1.3).
pub(crate) fn is_sequence(data: &[u8]) -> bool {
    let (Some(0x30), Some(&first)) = (data.first(), data.get(1)) else { return false };
    if first < 0x80 {
        return data.len() == 2 + usize::from(first);
    }
    let count = usize::from(first & 0x7f);
    let Some(octets) = data.get(2..2 + count).filter(|_| (1..=4).contains(&count)) else {
        return false;
    };
    let length = octets.iter().fold(0usize, |sum, octet| sum << 8 | usize::from(*octet));
    data.len() == 2 + count + length
}

#[cfg(test)]
mod tests {
    use super::{blocks, encode, is_sequence};

    #[test]
    fn what_is_encoded_is_read_again() {
        let mut certificate = vec![0x30, 0x82, 0x01, 0x00];
        certificate.resize(4 + 256, 7);
        let text = format!("# one\n{}\n# two\n{0}", encode(&certificate).replace('\n', "\r\n"));
        let found = blocks(&text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].line, 2);
        assert!(found.iter().all(|block| block.certificate() == Some(&*certificate)));
    }

    #[test]
    fn broken_blocks_have_no_data() {
        let open = blocks("-----BEGIN CERTIFICATE-----\nMAA=\n");
        assert_eq!(open[0].data, None);
        let other = blocks("-----BEGIN CERTIFICATE-----\nMAA=\n-----END X-----\n");
        assert_eq!(other[0].data, None);
        let wrong = blocks("-----BEGIN CERTIFICATE-----\nM*A=\n-----END CERTIFICATE-----\n");
        assert_eq!(wrong[0].data, None);
        assert!(blocks("no block").is_empty());
    }

    #[test]
    fn lengths_are_checked() {
        assert!(is_sequence(&[0x30, 0]));
        assert!(is_sequence(&[0x30, 0x81, 1, 9]));
        for wrong in [&[][..], &[0x30], &[0x31, 0], &[0x30, 1], &[0x30, 0x85, 0], &[0x30, 0x80]] {
            assert!(!is_sequence(wrong), "{wrong:?}");
        }
    }
}
