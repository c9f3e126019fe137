//! Further certificate authorities that a step trusts (`--ca-certs`), of which nothing may stay in a layer.
//!
//! No program looks everywhere, so they are in three places:
//! - The image's own bundles have them at the end. They are not mounted over: a mount point cannot be
//!   renamed over, and `update-ca-certificates` does that. A layer on top of the image's, in memory,
//!   hides the bundle ([`shadow`]); the step may then replace it like any other file.
//! - Files below /dev/kiln, and environment variables that name them, for programs that bring bundles
//!   of their own, and for those that the step installs before it uses them. Variables that the image
//!   or the Dockerfile sets stay.
//! - A trust store of Java's ([`java`]).
//!
//! A step can still copy a bundle. What was added has a comment around it, by which it is found, and
//! removed, in the files that the step wrote ([`mod@forget`]).

mod forget;
mod java;
mod shadow;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::pem;
use crate::rootfs;
use crate::spec::{MountSource, MountSpec, Stack};

pub(crate) use forget::forget;

/// The authorities of the caller alone. The files are on the step's own /dev, where nothing can be left
/// in a layer.
const ALONE: &str = "/dev/kiln/ca.pem";

/// The image's bundle with them.
const BUNDLE: &str = "/dev/kiln/ca-certificates.pem";

/// The same for Java.
const STORE: &str = "/dev/kiln/cacerts";

/// What makes apt use the bundle: it knows no variable for that, but one for its configuration.
const APT: &str = "/dev/kiln/apt.conf";

/// What a step is told, unless one of the variables is set: the name, the file, further variables of
/// the image that say the same to the same programs.
const VARIABLES: &[(&str, &str, &[&str])] = &[
    ("SSL_CERT_FILE", BUNDLE, &[]),
    ("CURL_CA_BUNDLE", BUNDLE, &["SSL_CERT_FILE", "SSL_CERT_DIR"]),
    ("REQUESTS_CA_BUNDLE", BUNDLE, &["CURL_CA_BUNDLE"]),
    ("PIP_CERT", BUNDLE, &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]),
    ("AWS_CA_BUNDLE", BUNDLE, &["REQUESTS_CA_BUNDLE"]),
    ("CARGO_HTTP_CAINFO", BUNDLE, &["SSL_CERT_FILE"]),
    ("GIT_SSL_CAINFO", BUNDLE, &["GIT_SSL_CAPATH"]),
    ("NIX_SSL_CERT_FILE", BUNDLE, &["SSL_CERT_FILE"]),
    ("APT_CONFIG", APT, &[]),
    // These two add to what the program has.
    ("NODE_EXTRA_CA_CERTS", ALONE, &[]),
    ("DENO_CERT", ALONE, &[]),
];

/// Options for every Java of a step.
const JAVA_OPTIONS: &str = "JAVA_TOOL_OPTIONS";

/// Around what is added, so that it can be found again.
const BEGIN: &str = "# --ca-certs of kiln, for this step alone\n";
const END: &str = "# end of --ca-certs of kiln\n";

/// Where systems keep their bundle; the first that there is counts as the image's.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

/// Certificate authorities that steps trust besides those of their image.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCerts {
    certificates: Arc<[Vec<u8>]>,
}

/// Why a file holds no certificate authorities.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CaCertsError {
    /// It is a certificate, but in binary.
    #[error("it is in DER, not in PEM")]
    Binary,
    /// It has no certificate.
    #[error("it has no line `-----BEGIN CERTIFICATE-----`")]
    Empty,
    /// It has a private key, which no step needs to see.
    #[error("line {0}: it has a private key, which steps must not see")]
    PrivateKey(usize),
    /// It has something else.
    #[error("line {0}: `{1}` is not a certificate")]
    Other(usize, String),
    /// A block is cut off or is no base64.
    #[error("line {0}: the certificate is damaged")]
    Damaged(usize),
}

impl std::fmt::Debug for CaCerts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "CaCerts({})", self.certificates.len())
    }
}

impl CaCerts {
    /// Reads a file of certificates in PEM.
    ///
    /// # Errors
    /// Something that is no certificate, or none at all.
    pub fn parse(content: &[u8]) -> Result<Self, CaCertsError> {
        if pem::is_sequence(content) {
            return Err(CaCertsError::Binary);
        }
        let mut certificates: Vec<Vec<u8>> = Vec::new();
        for block in pem::blocks(&String::from_utf8_lossy(content)) {
            match block.certificate() {
                Some(certificate) if certificates.iter().any(|known| known == certificate) => {}
                Some(certificate) => certificates.push(certificate.to_owned()),
                None if block.label.contains("PRIVATE KEY") => {
                    return Err(CaCertsError::PrivateKey(block.line));
                }
                None if block.label == "CERTIFICATE" => {
                    return Err(CaCertsError::Damaged(block.line));
                }
                None => return Err(CaCertsError::Other(block.line, block.label)),
            }
        }
        if certificates.is_empty() {
            return Err(CaCertsError::Empty);
        }
        Ok(Self { certificates: certificates.into() })
    }

    /// What is added to bundles.
    fn addition(&self) -> String {
        let texts = self.certificates.iter().map(|certificate| pem::encode(certificate));
        // A bundle need not end with the end of a line.
        format!("\n{BEGIN}{}{END}", texts.collect::<String>())
    }

    /// Whether a bundle has all of them.
    fn are_in(&self, bundle: &[pem::Block]) -> bool {
        let known: Vec<_> = bundle.iter().filter_map(pem::Block::certificate).collect();
        self.certificates.iter().all(|certificate| known.contains(&&**certificate))
    }
}

/// What a step gets.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Files.
    pub(crate) mounts: Vec<MountSpec>,
    /// A layer above those of the image, where the image has bundles.
    pub(crate) layer: Option<std::path::PathBuf>,
}

/// Looks at the image, and makes what is needed in the working directory (the step's place), while the
/// host's files are still there. `bottom` is a layer that has nothing of the image.
pub(crate) fn prepare(
    authorities: &CaCerts,
    stack: &Stack,
    bottom: &Path,
    env: &[(String, String)],
) -> io::Result<Prepared> {
    // An overlay without an upper directory needs two others.
    let image = match stack.layers.as_slice() {
        [] => None,
        _ => Some(rootfs::overlay(stack, bottom, None)?),
    };
    prepare_in(authorities, image.as_ref(), Path::new("trust"), env)
}

/// The same for an image whose files are all in one place; the layer gets the name that is given.
pub(crate) fn prepare_in(
    authorities: &CaCerts,
    image: Option<&OwnedFd>,
    layer: &Path,
    env: &[(String, String)],
) -> io::Result<Prepared> {
    let addition = authorities.addition();
    let named =
        env.iter().filter(|(name, value)| is_bundle_variable(name) && value.starts_with('/'));
    let paths: Vec<&str> =
        BUNDLES.iter().copied().chain(named.map(|(_, value)| value.as_str())).collect();
    let shadowed = match image {
        Some(image) => shadow::make(authorities, &addition, &paths, image, layer)?,
        None => shadow::Shadowed::default(),
    };
    // An image without a bundle gets that of this machine: with the caller's authorities alone, the
    // variables would keep programs from everything else.
    let mut bundle = shadowed.bundle.or_else(host_bundle).unwrap_or_default();
    let blocks = pem::blocks(&String::from_utf8_lossy(&bundle));
    if !authorities.are_in(&blocks) {
        bundle.extend_from_slice(addition.as_bytes());
    }
    let others = blocks.iter().filter_map(pem::Block::certificate);
    let own = authorities.certificates.iter().map(Vec::as_slice);
    let files = [
        (STORE, java::trust_store(own.chain(others))),
        (APT, format!("Acquire::https::CAInfo \"{BUNDLE}\";\n").into_bytes()),
        (ALONE, addition.into_bytes()),
        (BUNDLE, bundle),
    ];
    Ok(Prepared {
        mounts: files.map(|(path, content)| file(path, content)).into(),
        layer: shadowed.layer,
    })
}

fn is_bundle_variable(name: &str) -> bool {
    VARIABLES.iter().any(|(known, file, _)| *known == name && *file == BUNDLE)
}

fn host_bundle() -> Option<Vec<u8>> {
    BUNDLES.iter().find_map(|path| std::fs::read(path).ok())
}

fn file(target: &str, content: Vec<u8>) -> MountSpec {
    let source = MountSource::File { content, owner: (0o644, 0, 0), executable: false };
    MountSpec { target: target.into(), source }
}

/// Adds the variables that name the files.
pub(crate) fn add_variables(env: &mut Vec<(String, String)>) {
    let given: Vec<String> = env.iter().map(|(name, _)| name.clone()).collect();
    let is_set = |name: &str| given.iter().any(|known| known == name);
    for (name, file, others) in VARIABLES {
        if !is_set(name) && !others.iter().any(|other| is_set(other)) {
            env.push(((*name).to_owned(), (*file).to_owned()));
        }
    }
    let own = format!(
        "-Djavax.net.ssl.trustStore={STORE} -Djavax.net.ssl.trustStoreType=jks \
         -Djavax.net.ssl.trustStorePassword={}",
        java::PASSWORD
    );
    match env.iter_mut().find(|(name, _)| name == JAVA_OPTIONS) {
        // Options add up, but one that is given twice has the last value.
        Some((_, options)) if options.contains("javax.net.ssl.trustStore") => {}
        Some((_, options)) => *options = format!("{options} {own}").trim_start().to_owned(),
        None => env.push((JAVA_OPTIONS.to_owned(), own)),
    }
}

#[cfg(test)]
mod tests {
    use super::{BUNDLE, CaCerts, CaCertsError, JAVA_OPTIONS, add_variables};
    use crate::pem;

    fn one() -> Vec<u8> {
        vec![0x30, 3, 1, 2, 3]
    }

    #[test]
    fn a_file_of_certificates_is_read() {
        let text = format!("# corporate\n{0}{0}", pem::encode(&one()));
        let read = CaCerts::parse(text.as_bytes()).expect("valid");
        assert_eq!(*read.certificates, [one()]);
        assert!(read.are_in(&pem::blocks(&text)));
        assert!(!read.are_in(&[]));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let read = |text: &str| CaCerts::parse(text.as_bytes()).expect_err("refused");
        assert_eq!(CaCerts::parse(&one()), Err(CaCertsError::Binary));
        assert_eq!(read("hello"), CaCertsError::Empty);
        let key = "\n-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(read(key), CaCertsError::PrivateKey(2));
        let cut = "-----BEGIN CERTIFICATE-----\nMAA=\n";
        assert_eq!(read(cut), CaCertsError::Damaged(1));
        let other = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        assert_eq!(read(other), CaCertsError::Other(1, "X509 CRL".to_owned()));
    }

    fn variables(given: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        add_variables(&mut env);
        env
    }

    #[test]
    fn variables_that_are_set_stay() {
        let get = |env: &[(String, String)], name: &str| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let plain = variables(&[]);
        assert_eq!(get(&plain, "SSL_CERT_FILE").as_deref(), Some(BUNDLE));
        let own = variables(&[("SSL_CERT_FILE", "/own"), (JAVA_OPTIONS, "-Xmx1g")]);
        assert_eq!(get(&own, "SSL_CERT_FILE").as_deref(), Some("/own"));
        assert_eq!(get(&own, "CURL_CA_BUNDLE"), None, "it would win against /own");
        let java = get(&own, JAVA_OPTIONS).expect("set");
        assert!(java.starts_with("-Xmx1g -Djavax.net.ssl.trustStore=/dev/kiln/cacerts "), "{java}");
        let trusting = [(JAVA_OPTIONS, "-Djavax.net.ssl.trustStore=/own")];
        assert_eq!(get(&variables(&trusting), JAVA_OPTIONS).as_deref(), Some(trusting[0].1));
    }
}
