//! A trust store for Java: the format JKS, as `sun.security.provider.JavaKeyStore` of OpenJDK reads it.
//! Of all formats that a Java knows it needs the least: certificates stand in it as they are, and all
//! that is computed is a digest by which a change is noticed. (PKCS #12, the newer default, would need a
//! key derivation and a MAC.)

use sha1::{Digest, Sha1};

/// The password that everybody uses for trust stores; it hides nothing.
pub(super) const PASSWORD: &str = "changeit";

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;

/// A store with these certificates.
pub(super) fn trust_store<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u32;
    for certificate in certificates {
        let Ok(length) = u32::try_from(certificate.len()) else { continue };
        number(&mut entries, TRUSTED_CERTIFICATE);
        text(&mut entries, &format!("kiln-{count}"));
        // When it was added, in milliseconds since 1970: a step shall see nothing of the clock.
        entries.extend_from_slice(&0u64.to_be_bytes());
        text(&mut entries, "X.509");
        number(&mut entries, length);
        entries.extend_from_slice(certificate);
        count += 1;
    }
    let mut store = Vec::new();
    for value in [MAGIC, VERSION, count] {
        number(&mut store, value);
    }
    store.extend_from_slice(&entries);
    let mut digest = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        digest.update(unit.to_be_bytes());
    }
    digest.update(b"Mighty Aphrodite");
    digest.update(&store);
    store.extend_from_slice(&digest.finalize());
    store
}

fn number(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Short, and in ASCII: as `java.io.DataInput.readUTF` wants it.
fn text(out: &mut Vec<u8>, value: &str) {
    let length = u16::try_from(value.len()).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::trust_store;

    #[test]
    fn the_layout_is_that_of_java() {
        let store = trust_store([&b"abc"[..]].into_iter());
        assert_eq!(store[..12], [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(store.len(), 12 + 4 + 8 + 8 + 7 + 4 + 3 + 20);
        assert_eq!(store[12 + 4..12 + 4 + 8], *b"\0\x06kiln-0");
    }
}
