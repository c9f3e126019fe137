//! `--ca-certs FILE`, and `ca-certs` in the configuration: the file is read, and refused, before anything
//! is built. What steps get of it: `executor/src/trust.rs`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kiln_executor::trust::{CaCerts, CaCertsError};

use crate::failure::Failure;

/// Ten times what all authorities of the web need together.
const SIZE_MAX: u64 = 4 << 20;

/// Reads the file that the option names, else the one of the configuration.
///
/// # Errors
/// It cannot be read, or has something else than certificates.
pub(crate) fn read(
    option: Option<&Path>,
    configured: Option<&Path>,
) -> Result<Option<CaCerts>, Failure> {
    let (place, path) = match (option, configured) {
        (Some(path), _) => ("--ca-certs", path),
        (None, Some(path)) => ("`ca-certs` of the configuration", path),
        (None, None) => return Ok(None),
    };
    if option.is_none() && !path.is_absolute() {
        // It would mean another file in every folder.
        return Err(Failure::usage(format_args!(
            "{place} is `{}`, a relative path",
            path.display()
        ))
        .hint("write a path that begins with `/`"));
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(|e| Failure::io("open", path.display(), &e))?;
    let read = file.take(SIZE_MAX + 1).read_to_end(&mut content);
    read.map_err(|e| Failure::io("read", path.display(), &e))?;
    let refuse = |why: &str| Failure::usage(format_args!("{place} `{}`: {why}", path.display()));
    if content.len() as u64 > SIZE_MAX {
        return Err(refuse("it is larger than 4 MiB"));
    }
    CaCerts::parse(&content).map(Some).map_err(|error| {
        let hint = match error {
            CaCertsError::Binary => {
                format!("convert it: openssl x509 -inform der -in {} -out ca.pem", path.display())
            }
            CaCertsError::PrivateKey(_) => "take the key out, and keep it secret".to_owned(),
            _ => "name a file of certificates in PEM, as `openssl x509` writes them".to_owned(),
        };
        refuse(&error.to_string()).hint(hint)
    })
}
