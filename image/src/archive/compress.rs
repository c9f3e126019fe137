//! Compression of frames: each frame is a whole gzip member or zstd frame, so that frames can be
//! made in parallel, kept, and put one after the other; every gzip and zstd reader takes such a
//! sequence as one stream (RFC 1952 section 2.2, RFC 8878 section 3).

use std::fmt;
use std::io;
use std::str::FromStr;

use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};

use crate::media_type;

/// How the layers of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, level 0 to 12 of libdeflate.
    Gzip(u8),
    /// zstd, level 1 to 22.
    Zstd(u8),
}

impl Compression {
    /// libdeflate's fastest level that is not larger than gzip -6, which is a little smaller than
    /// Go's default and BuildKit's. Measured on 250 MB of libraries, scripts and documentation in
    /// frames of 1 MiB, one core: gzip -6 39.2 % at 27 MB/s; libdeflate 1: 41.5 % at 178 MB/s,
    /// 4: 39.7 % at 122, 5: 39.1 % at 115, 6: 38.9 % at 93, 9: 38.6 % at 31.
    pub const DEFAULT_GZIP: u8 = 5;
    /// The zstd command's default level, also BuildKit's.
    pub const DEFAULT_ZSTD: u8 = 3;

    /// This method with another level.
    ///
    /// # Errors
    /// When the method has no such level.
    pub fn with_level(self, level: u8) -> Result<Self, CompressionError> {
        match self {
            Self::None => Ok(Self::None),
            Self::Gzip(_) if level <= 12 => Ok(Self::Gzip(level)),
            Self::Zstd(_) if (1..=22).contains(&level) => Ok(Self::Zstd(level)),
            Self::Gzip(_) => {
                Err(CompressionError::Level { method: "gzip", level, least: 0, most: 12 })
            }
            Self::Zstd(_) => {
                Err(CompressionError::Level { method: "zstd", level, least: 1, most: 22 })
            }
        }
    }

    /// The media type of a layer so compressed.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => media_type::LAYER,
            Self::Gzip(_) => media_type::LAYER_GZIP,
            Self::Zstd(_) => media_type::LAYER_ZSTD,
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::Gzip(Self::DEFAULT_GZIP)
    }
}

impl fmt::Display for Compression {
    /// The method and level, as they stand in the keys of frames and archives.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("uncompressed"),
            Self::Gzip(level) => write!(f, "gzip-{level}"),
            Self::Zstd(level) => write!(f, "zstd-{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    /// `uncompressed`, `gzip` or `zstd`, at their default levels.
    fn from_str(text: &str) -> Result<Self, CompressionError> {
        match text {
            "uncompressed" | "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip(Self::DEFAULT_GZIP)),
            "zstd" => Ok(Self::Zstd(Self::DEFAULT_ZSTD)),
            other => Err(CompressionError::Method(other.to_owned())),
        }
    }
}

/// A compression that does not exist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompressionError {
    /// An unknown method.
    #[error("compression `{0}` is not one of `gzip`, `zstd`, `uncompressed`")]
    Method(String),
    /// A level that the method has not.
    #[error("compression level {level} is not one of {method}'s, {least} to {most}")]
    Level {
        /// The method.
        method: &'static str,
        /// The level asked for.
        level: u8,
        /// The lowest level.
        least: u8,
        /// The highest level.
        most: u8,
    },
}

/// Compresses frame after frame; one a thread, because its tables are reused.
pub(crate) enum FrameCompressor {
    None,
    Gzip { compressor: Box<Compressor>, stored: Box<Compressor> },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl FrameCompressor {
    pub(crate) fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip(level) => {
                Self::Gzip { compressor: Box::new(deflater(level)), stored: Box::new(deflater(0)) }
            }
            Compression::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level.into())?;
                compressor.include_checksum(true)?;
                Self::Zstd(compressor)
            }
        })
    }

    /// One frame. Where it does not shrink it is stored.
    pub(crate) fn compress(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(raw.to_vec()),
            Self::Gzip { compressor, stored } => {
                let compressor = if shrinks(compressor, raw) { compressor } else { stored };
                gzip_member(compressor, raw)
            }
            Self::Zstd(compressor) => compressor.compress(raw),
        }
    }
}

fn deflater(level: u8) -> Compressor {
    Compressor::new(CompressionLvl::new(level.into()).expect("levels are checked when made"))
}

/// Size of the sample that decides whether a frame is worth compressing.
const SAMPLE: usize = 16 << 10;

/// Compresses four samples: photographs, archives and encrypted files do not shrink, and finding
/// that out on all of their bytes would cost as much as compressing text.
fn shrinks(compressor: &mut Compressor, raw: &[u8]) -> bool {
    if raw.len() < 16 * SAMPLE {
        return true;
    }
    let mut out = vec![0; compressor.deflate_compress_bound(SAMPLE)];
    (0..4).any(|i| {
        let start = (raw.len() - SAMPLE) / 3 * i;
        match compressor.deflate_compress(&raw[start..start + SAMPLE], &mut out) {
            Ok(size) => size < SAMPLE - SAMPLE / 32,
            Err(_) => false,
        }
    })
}

fn gzip_member(compressor: &mut Compressor, raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; compressor.gzip_compress_bound(raw.len())];
    let size = compressor
        .gzip_compress(raw, &mut out)
        .map_err(|_| io::Error::other("a gzip member is larger than its bound"))?;
    out.truncate(size);
    out.shrink_to_fit();
    Ok(out)
}

/// Proves that a kept frame still is the compressed form of `raw`. A frame that was damaged on disk
/// is thereby made again and never exported.
pub(super) struct FrameVerifier {
    gzip: Decompressor,
    out: Vec<u8>,
}

impl FrameVerifier {
    pub(super) fn new() -> Self {
        Self { gzip: Decompressor::new(), out: Vec::new() }
    }

    pub(super) fn verify(&mut self, compression: Compression, packed: &[u8], raw: &[u8]) -> bool {
        self.out.resize(raw.len(), 0);
        let size = match compression {
            Compression::None => return packed == raw,
            Compression::Gzip(_) => {
                self.gzip.gzip_decompress(packed, &mut self.out).map_err(|e| match e {
                    DecompressionError::BadData | DecompressionError::InsufficientSpace => (),
                })
            }
            Compression::Zstd(_) => {
                zstd::bulk::decompress_to_buffer(packed, &mut self.out[..]).map_err(|_| ())
            }
        };
        size == Ok(raw.len()) && self.out == raw
    }
}
