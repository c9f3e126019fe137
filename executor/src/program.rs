//! Where the machine's programs are that steps are served by.

use std::path::PathBuf;

/// Where they are usually, also for callers whose PATH does not say so.
const USUAL: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/bin"];

/// A program of the caller's PATH, or of the usual places.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(USUAL.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
