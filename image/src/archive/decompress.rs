//! Decompression by magic number: gzip, zstd, xz, bzip2, or none.
//!
//! Every decoder reads to the end of its input, takes members one after the other, verifies the
//! checksums, and takes zeros after the last member (padding of old tools) but nothing else.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;

use crate::limits;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not compressed, or nothing we know.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The xz file format.
    Xz,
    /// bzip2.
    Bzip2,
}

impl Format {
    /// The format that the first bytes of a stream show; six bytes suffice.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }
}

/// Reads the decompressed bytes of a stream.
pub struct Decompress<R: Read> {
    format: Format,
    /// None after the end.
    member: Option<Member<Buffer<R>>>,
}

type Buffer<R> = BufReader<Peeked<R>>;

/// Bytes that are read from the stream at once.
const BUFFER: usize = 128 << 10;

/// Bytes that show the format.
const HEAD: usize = 6;

impl<R: Read> Decompress<R> {
    /// Looks at the first bytes and starts the decoder for them.
    ///
    /// # Errors
    /// When reading fails, or a decoder cannot be made.
    pub fn new(inner: R) -> io::Result<Self> {
        let (head, inner) = peek(inner)?;
        let format = Format::of(&head);
        let buffer = BufReader::with_capacity(BUFFER, inner);
        Ok(Self { format, member: Some(Member::new(format, buffer)?) })
    }

    /// After the end of a member: another one, zeros, or the end.
    fn next_member(&mut self) -> io::Result<()> {
        let Some(member) = self.member.take() else { return Ok(()) };
        if matches!(member, Member::Plain(_)) {
            return Ok(());
        }
        let mut buffer = member.into_inner();
        match buffer.fill_buf()? {
            [] | [0, ..] => only_zeros(&mut buffer),
            _ => {
                // A wrong beginning is the decoder's to refuse: it has seen no member, so it must
                // be the same format again.
                self.member = Some(Member::new(self.format, buffer)?);
                Ok(())
            }
        }
    }

    /// How the stream is compressed.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

impl<R: Read> Read for Decompress<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let size = member.read(out)?;
            if size > 0 {
                return Ok(size);
            }
            self.next_member()?;
        }
    }
}

impl<R: Read> std::fmt::Debug for Decompress<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompress").field("format", &self.format).finish_non_exhaustive()
    }
}

/// One member (gzip), frame (zstd) or stream (xz, bzip2), or the plain bytes.
enum Member<B: BufRead> {
    Plain(B),
    Gzip(Box<GzDecoder<B>>),
    Zstd(zstd::stream::read::Decoder<'static, B>),
    Xz(Box<XzDecoder<B>>),
    Bzip2(BzDecoder<B>),
}

impl<B: BufRead> Member<B> {
    fn new(format: Format, buffer: B) -> io::Result<Self> {
        Ok(match format {
            Format::Plain => Self::Plain(buffer),
            Format::Gzip => Self::Gzip(Box::new(GzDecoder::new(buffer))),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffer)?.single_frame();
                decoder.window_log_max(limits::ZSTD_WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
            Format::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(limits::XZ_MEMORY, 0)?;
                Self::Xz(Box::new(XzDecoder::new_stream(buffer, stream)))
            }
            Format::Bzip2 => Self::Bzip2(BzDecoder::new(buffer)),
        })
    }

    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(out),
            Self::Gzip(inner) => inner.read(out),
            Self::Zstd(inner) => inner.read(out),
            Self::Xz(inner) => inner.read(out),
            Self::Bzip2(inner) => inner.read(out),
        }
    }

    fn into_inner(self) -> B {
        match self {
            Self::Plain(inner) => inner,
            Self::Gzip(inner) => inner.into_inner(),
            Self::Zstd(inner) => inner.finish(),
            Self::Xz(inner) => inner.into_inner(),
            Self::Bzip2(inner) => inner.into_inner(),
        }
    }
}

/// Reads zeros up to the end.
///
/// # Errors
/// When there is anything else: two readers could take it for different things.
fn only_zeros(buffer: &mut impl BufRead) -> io::Result<()> {
    loop {
        let rest = buffer.fill_buf()?;
        if rest.is_empty() {
            return Ok(());
        }
        if rest.iter().any(|b| *b != 0) {
            let reason = "there is something after the end of the compressed stream";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let size = rest.len();
        buffer.consume(size);
    }
}

/// What a stream with its first bytes taken reads as.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Takes up to six bytes and puts them back in front.
fn peek<R: Read>(mut inner: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::with_capacity(HEAD);
    inner.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(inner)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        liblzma::read::XzEncoder::new(data, 1).read_to_end(&mut out).unwrap();
        out
    }

    fn bzip2(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let level = bzip2::Compression::fast();
        bzip2::read::BzEncoder::new(data, level).read_to_end(&mut out).unwrap();
        out
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn read(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompress::new(data)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn takes_members_and_zeros_but_nothing_else() {
        let text = b"some text, some text, some text".repeat(10_000);
        for (name, pack) in
            [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd), ("xz", xz), ("bzip2", bzip2)]
        {
            let one = pack(&text);
            assert_eq!(read(&one).unwrap(), text, "{name}");
            let two = [one.clone(), pack(b"end"), pack(b"")].concat();
            assert_eq!(read(&two).unwrap(), [&text[..], b"end"].concat(), "{name} members");
            let padded = [one.clone(), vec![0; 700]].concat();
            assert_eq!(read(&padded).unwrap(), text, "{name} padded");
            for junk in [&b"junk"[..], b"\0\0junk", b"\x1f", b"\x1f\x8b", b"BZh9"] {
                assert!(read(&[&one[..], junk].concat()).is_err(), "{name} {junk:?}");
            }
            for cut in [1, 4, one.len() / 2] {
                assert!(read(&one[..one.len() - cut]).is_err(), "{name} cut by {cut}");
            }
        }
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn verifies_checksums() {
        let good = gzip(b"text");
        for from_end in 1..=8 {
            let mut bad = good.clone();
            let at = bad.len() - from_end;
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {from_end} from the end");
        }
    }

    #[test]
    fn refuses_a_giant_window() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"x").unwrap();
        encoder.flush().unwrap();
        let data = encoder.finish().unwrap();
        assert!(read(&data).is_err());
    }

    #[test]
    fn skips_skippable_frames() {
        let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let data = [skip.clone(), zstd(b"x"), skip, zstd(b"y")].concat();
        assert_eq!(read(&data).unwrap(), b"xy");
    }
}
