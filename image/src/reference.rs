//! Image references: `alpine`, `docker.io/library/alpine:latest`, `host:5000/a/b:tag@sha256:…`.
//!
//! The grammar is that of distribution/reference; `alpine` is short for `docker.io/library/alpine`.
//! A [`Reference`] is always in normal form, with the tag `latest` where neither tag nor digest was
//! given; [`Reference::familiar`] gives the short form back. One parser, one reading: what the
//! grammar does not allow is an error and never a guess.

use std::fmt;
use std::str::FromStr;

use kiln_cache::Digest;

/// The registry that names without a host mean.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The tag that references without tag and digest mean.
pub const DEFAULT_TAG: &str = "latest";

/// Bytes of a repository name in its normal form, without the registry
/// (distribution/reference `RepositoryNameTotalLengthMax`).
const NAME_LIMIT: usize = 255;

/// Bytes of a tag.
const TAG_LIMIT: usize = 128;

/// A reference that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: `{text}`: {reason}")]
pub struct ParseReferenceError {
    /// What was given.
    pub text: String,
    /// Why it is no reference.
    pub reason: &'static str,
}

/// An image in a registry; see the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry: a host with its port if one was given, e.g. `docker.io`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry, e.g. `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. None only where a digest was given without one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest; it decides where both it and a tag are given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What registries are asked for: the digest, else the tag.
    #[must_use]
    pub fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same repository with this digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Registry and repository, e.g. `docker.io/library/alpine`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The shortest form that means the same, e.g. `alpine`; `:latest` is left out.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut text = match (self.registry.as_str(), self.repository.strip_prefix("library/")) {
            // `library/x` of the default registry is `x`, unless that would read as something else.
            (DEFAULT_REGISTRY, Some(short)) if !short.contains('/') => short.to_owned(),
            (DEFAULT_REGISTRY, _) if !begins_with_host(&self.repository) => self.repository.clone(),
            _ => self.name(),
        };
        if let Some(tag) = &self.tag
            && (tag != DEFAULT_TAG || self.digest.is_some())
        {
            text = format!("{text}:{tag}");
        }
        match &self.digest {
            Some(digest) => format!("{text}@{digest}"),
            None => text,
        }
    }
}

impl fmt::Display for Reference {
    /// The normal form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ParseReferenceError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            (rest, Some(digest.parse().map_err(|_| "the digest after `@` is not one")?))
        }
    };
    // A colon after the last slash starts the tag; before it, the host's port.
    let (name, tag) = match rest.rfind(':').filter(|at| !rest[*at..].contains('/')) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_host(name);
    if repository.len() > NAME_LIMIT {
        return Err("the name is longer than 255 bytes");
    }
    check_host(&registry)?;
    check_repository(&repository)?;
    let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok(Reference { registry, repository, tag, digest })
}

/// Whether the first component of a name is a host: it has a dot, a colon or a capital letter, or
/// is `localhost`, and something follows.
fn begins_with_host(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    })
}

/// Splits a name into host and path.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = match name.split_once('/') {
        Some(parts) if begins_with_host(name) => parts,
        _ => (DEFAULT_REGISTRY, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
    if host == DEFAULT_REGISTRY && !path.contains('/') {
        return (host.to_owned(), format!("library/{path}"));
    }
    (host.to_owned(), path.to_owned())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    if tag.len() > TAG_LIMIT {
        return Err("the tag is longer than 128 bytes");
    }
    match bytes.next() {
        None => Err("the tag after `:` is empty"),
        Some(first) if word(first) && bytes.all(|b| word(b) || b == b'.' || b == b'-') => Ok(()),
        Some(_) => Err("a tag is made of letters, digits, `_`, `.` and `-`"),
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let _: std::net::Ipv6Addr =
                address.parse().map_err(|_| "the host in brackets is no IPv6 address")?;
            ("ip6", port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    if !port.is_some_and(|p| !p.is_empty() && p.parse::<u16>().is_ok() && !p.starts_with('+')) {
        return Err("the host's port is not a number");
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.split('.').all(label) { Ok(()) } else { Err("the host is not a domain name") }
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    for component in path.split('/') {
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("a repository name must be lowercase");
        }
        if !is_path_component(component.as_bytes()) {
            return Err(
                "a repository name is made of lowercase letters and digits, with `.`, `_`, `__` \
                 or dashes between them",
            );
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &[u8]) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !component.first().is_some_and(is_word) || !component.last().is_some_and(is_word) {
        return false;
    }
    component.split(is_word).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_have_a_normal_and_a_familiar_form() {
        for (text, normal, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine"),
            ("alpine:3", "docker.io/library/alpine:3", "alpine:3"),
            ("a/b", "docker.io/a/b:latest", "a/b"),
            ("index.docker.io/b", "docker.io/library/b:latest", "b"),
            ("docker.io/b/c:1", "docker.io/b/c:1", "b/c:1"),
            ("docker.io/b.c/d", "docker.io/b.c/d:latest", "docker.io/b.c/d"),
            ("localhost/b", "localhost/b:latest", "localhost/b"),
            ("localhost:5000/b", "localhost:5000/b:latest", "localhost:5000/b"),
            ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x"),
            ("[::1]:5000/a:x", "[::1]:5000/a:x", "[::1]:5000/a:x"),
            ("Host/a", "Host/a:latest", "Host/a"),
            ("ghcr.io/a/b__c/d-e--f", "ghcr.io/a/b__c/d-e--f:latest", "ghcr.io/a/b__c/d-e--f"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(normal.parse::<Reference>().unwrap(), reference);
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn the_digest_decides() {
        let pinned: Reference = format!("a:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(pinned.selector(), format!("sha256:{HEX}"));
        assert_eq!(pinned.tag(), Some("1"));
        let untagged: Reference = format!("a@sha256:{HEX}").parse().unwrap();
        assert_eq!(untagged.tag(), None);
        assert_eq!(untagged.familiar(), format!("a@sha256:{HEX}"));
        let latest: Reference = format!("a:latest@sha256:{HEX}").parse().unwrap();
        assert_eq!(latest.familiar().parse::<Reference>().unwrap(), latest);
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a b",
            "a:-x",
            "host:port/a",
            "host:99999/a",
            "ho_st.x/a",
            "http://a/b",
            "a.b/../c",
            "[::g]:1/a",
            "é",
            "a\n",
            HEX,
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
