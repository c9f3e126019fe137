//! Identities: OCI digests, cache keys, content digests and layer ids.
//!
//! Different things have different types, so that the digest of an archive is never compared with the digest of what
//! is in it. OCI digests are sha256 or sha512 (the registered algorithms of the image specification); everything that
//! only Kiln reads is blake3, which is several times faster.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Why a text is no digest, key or layer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseDigestError {
    text: String,
    expected: &'static str,
}

impl ParseDigestError {
    fn new(text: &str, expected: &'static str) -> Self {
        // A hostile document may hold a digest of any length; an error message may not.
        let mut text: String = text.chars().take(160).collect();
        text.retain(|c| !c.is_control());
        Self { text, expected }
    }
}

/// Content that is not what its digest or size promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("content does not match: expected `{expected}`, found `{actual}` ({size} bytes)")]
pub struct Mismatch {
    /// What was promised.
    pub expected: Digest,
    /// What the bytes hash to.
    pub actual: Digest,
    /// How many bytes were read.
    pub size: u64,
}

/// A digest algorithm that the OCI image specification registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `sha256`, the one that everybody uses.
    Sha256,
    /// `sha512`.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// An OCI digest: `sha256:<64 hex>` or `sha512:<128 hex>`, lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

impl Digest {
    /// The sha256 digest of `data`.
    #[must_use]
    pub fn sha256(data: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        hasher.update(data);
        hasher.finish()
    }

    /// The algorithm before the colon.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha256:") { Algorithm::Sha256 } else { Algorithm::Sha512 }
    }

    /// The hexadecimal digits after the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || ParseDigestError::new(text, "a digest (`sha256:` and 64 hexadecimal digits)");
        let (algorithm, hex) = text.split_once(':').ok_or_else(wrong)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(wrong()),
        };
        let digits = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex.len() != algorithm.hex_len() || !digits {
            return Err(wrong());
        }
        Ok(Self(text.into()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest of an uncompressed layer archive, as an image config's `rootfs.diff_ids` lists them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DiffId {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Computes an OCI digest piece by piece.
#[derive(Debug, Clone)]
pub struct DigestHasher(Hasher);

#[derive(Debug, Clone)]
enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl DigestHasher {
    /// Starts with no bytes.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Hasher::Sha256(hasher) => hasher.update(data),
            Hasher::Sha512(hasher) => hasher.update(data),
        }
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        let (name, hash) = match self.0 {
            Hasher::Sha256(hasher) => ("sha256:", hasher.finalize().to_vec()),
            Hasher::Sha512(hasher) => ("sha512:", hasher.finalize().to_vec()),
        };
        let mut text = String::with_capacity(name.len() + hash.len() * 2);
        text.push_str(name);
        push_hex(&mut text, &hash);
        Digest(text.into_boxed_str())
    }
}

/// Compares bytes, as they come, with a digest that was promised.
#[derive(Debug)]
pub struct Verifier {
    expected: Digest,
    hasher: DigestHasher,
    size: u64,
}

impl Verifier {
    /// Expects bytes with this digest.
    #[must_use]
    pub fn new(expected: Digest) -> Self {
        let hasher = DigestHasher::new(expected.algorithm());
        Self { expected, hasher, size: 0 }
    }

    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
        self.size += data.len() as u64;
    }

    /// The number of bytes, when they are the promised ones.
    ///
    /// # Errors
    /// [`Mismatch`] when they are not.
    pub fn finish(self) -> Result<u64, Mismatch> {
        let actual = self.hasher.finish();
        if actual == self.expected {
            return Ok(self.size);
        }
        Err(Mismatch { expected: self.expected, actual, size: self.size })
    }
}

/// Reads through, hashing; [`HashingReader::finish`] tells the digest of what was read.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: DigestHasher,
    size: u64,
}

impl<R: Read> HashingReader<R> {
    /// Reads `inner`, hashing with `algorithm`.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: DigestHasher::new(algorithm), size: 0 }
    }

    /// Bytes read so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest and number of the bytes read so far, and the reader back.
    pub fn finish(self) -> (Digest, u64, R) {
        (self.hasher.finish(), self.size, self.inner)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// Reads through and fails at the end (`InvalidData` around a [`Mismatch`]) unless the bytes are the promised ones;
/// more bytes than the promised size are an error at once, so that an endless blob ends.
#[derive(Debug)]
pub struct VerifyingReader<R> {
    inner: R,
    verifier: Option<Verifier>,
    limit: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Expects bytes with this digest, and exactly `size` of them when that is known.
    pub fn new(inner: R, expected: Digest, size: Option<u64>) -> Self {
        Self { inner, verifier: Some(Verifier::new(expected)), limit: size.unwrap_or(u64::MAX) }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let Some(verifier) = &mut self.verifier else { return Ok(0) };
        verifier.update(&buffer[..count]);
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if verifier.size > self.limit {
            let text =
                format!("`{}` is larger than the promised {} bytes", verifier.expected, self.limit);
            return Err(invalid(text));
        }
        if count == 0 && !buffer.is_empty() {
            let verifier = self.verifier.take().expect("checked above");
            let (size, limit) = (verifier.size, self.limit);
            verifier.finish().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if limit != u64::MAX && size != limit {
                return Err(invalid(format!("{size} bytes instead of the promised {limit}")));
            }
        }
        Ok(count)
    }
}

pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

fn parse_hex32(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

macro_rules! blake3_type {
    ($(#[$meta:meta])* $name:ident, $expected:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// From its 32 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Its 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 hexadecimal digits.
            #[must_use]
            pub fn hex(&self) -> String {
                let mut text = String::with_capacity(64);
                push_hex(&mut text, &self.0);
                text
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.hex()[..16])
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex32(text).map(Self).ok_or_else(|| ParseDigestError::new(text, $expected))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.hex())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

blake3_type! {
    /// A cache key: the blake3 of what decides a step's result (definition key or content key).
    Key, "a cache key (64 hexadecimal digits)"
}

blake3_type! {
    /// Identity of files: kind, mode, owner, size, data, symbolic link, device, extended attributes and hard links;
    /// never times, inode numbers or the order of reading. See `tree.rs` for the encoding.
    ContentDigest, "a content digest (64 hexadecimal digits)"
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Names a stored layer: 26 characters of base32 (128 bits, and 2 that tell an image's layer from a step's).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId([u8; 26]);

impl LayerId {
    /// A fresh id for what a step makes.
    ///
    /// # Panics
    /// When the kernel has no random numbers, which it promises never to happen after boot.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            let flags = rustix::rand::GetRandomFlags::empty();
            match rustix::rand::getrandom(&mut bytes[filled..], flags) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("getrandom does not fail after boot: {error}"),
            }
        }
        Self::from_bits(u128::from_be_bytes(bytes), false)
    }

    /// The id of an image's layer; the same on every machine, and known before the layer is there.
    #[must_use]
    pub fn of_diff_id(diff_id: &DiffId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kiln 2026-11 layer id of a diff id v1");
        hasher.update(diff_id.0.as_str().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self::from_bits(u128::from_be_bytes(bytes), true)
    }

    /// The id of a layer that comes from a cache elsewhere: the same files, archived in the same way, have the same id, so
    /// that no id ever stands for two contents.
    #[must_use]
    pub fn of_content(content: &ContentDigest, diff_id: &DiffId) -> Self {
        let context = "kiln 2026-11 layer id of content and diff id v1";
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(content.as_bytes());
        hasher.update(diff_id.0.as_str().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self::from_bits(u128::from_be_bytes(bytes), false)
    }

    /// Whether it is an image's layer, which can be fetched again when it is not there.
    #[must_use]
    pub fn is_image(&self) -> bool {
        // The last character holds the last 3 bits of the number, then these two.
        BASE32.iter().position(|c| *c == self.0[25]).is_some_and(|value| value & 1 == 1)
    }

    /// The 26 characters.
    ///
    /// # Panics
    /// Never: base32 is ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base32 is ASCII")
    }

    fn from_bits(bits: u128, image: bool) -> Self {
        let mut text = [0; 26];
        for (place, character) in text.iter_mut().enumerate().take(25) {
            let value = (bits >> (123 - 5 * place)) & 31;
            *character = BASE32[value as usize];
        }
        let last = ((bits & 7) << 2) as usize | usize::from(image);
        text[25] = BASE32[last];
        Self(text)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LayerId {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text.len() == 26
            && text.bytes().all(|b| BASE32.contains(&b))
            && BASE32.iter().position(|c| *c == text.as_bytes()[25]).is_some_and(|v| v & 2 == 0);
        match text.as_bytes().try_into() {
            Ok(bytes) if valid => Ok(Self(bytes)),
            _ => Err(ParseDigestError::new(text, "a layer id (26 characters of base32)")),
        }
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_parses_strictly() {
        let good = format!("sha256:{}", "ab".repeat(32));
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<Digest>().is_ok(), expect, "{text}");
        };
        check(&good, true);
        check(&format!("sha512:{}", "ab".repeat(64)), true);
        check(&good.to_uppercase(), false);
        check(&good[..70], false);
        check(&format!("sha512:{}", "ab".repeat(32)), false);
        check(&format!("sha256:{}", "AB".repeat(32)), false);
        check(&format!("sha256:../../{}", "a".repeat(58)), false);
        check(&format!("md5:{}", "ab".repeat(16)), false);
        check("", false);
        assert_eq!(good.parse::<Digest>().unwrap().hex(), "ab".repeat(32));
    }

    #[test]
    fn digest_of_nothing() {
        let expect = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256(b"").to_string(), expect);
    }

    #[test]
    fn verifying_reader_finds_a_change_and_too_much() {
        let read = |data: &[u8], promised: &[u8], size: Option<u64>| {
            let mut out = Vec::new();
            VerifyingReader::new(data, Digest::sha256(promised), size).read_to_end(&mut out)
        };
        assert_eq!(read(b"abc", b"abc", Some(3)).unwrap(), 3);
        assert_eq!(read(b"abc", b"abc", None).unwrap(), 3);
        assert!(read(b"abd", b"abc", Some(3)).is_err());
        assert!(read(b"abcd", b"abc", Some(3)).is_err());
        assert!(read(b"ab", b"ab", Some(3)).is_err());
    }

    #[test]
    fn layer_id_forms() {
        let diff_id = DiffId(Digest::sha256(b""));
        let id = LayerId::of_diff_id(&diff_id);
        // A test vector: stores on disk depend on it.
        assert_eq!(id.as_str(), "ucs6canggybcwutk36tjpaiwjf");
        assert!(id.is_image());
        assert_eq!(id.as_str().parse::<LayerId>().unwrap(), id);
        for _ in 0..64 {
            let id = LayerId::random();
            assert!(!id.is_image());
            assert_eq!(id.as_str().parse::<LayerId>().unwrap(), id);
        }
        assert!("../../../../etc/passwd/xxx".parse::<LayerId>().is_err());
        assert!("A".repeat(26).parse::<LayerId>().is_err());
    }

    #[test]
    fn keys_round_trip() {
        let key = Key::from(blake3::hash(b"x"));
        assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        assert!("00".parse::<Key>().is_err());
    }
}
