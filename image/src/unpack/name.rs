//! Names in archives, cleaned: relative, without empty, `.` and `..` components, within limits.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::refused;
use crate::archive::ArchiveError;
use crate::limits;

/// Cleans a name. `..` takes back the component before it, as Go's `path.Clean` does.
///
/// # Errors
/// When `..` leads out of the root, or the name is above a limit.
pub(super) fn clean(name: &[u8]) -> Result<PathBuf, ArchiveError> {
    if name.is_empty() {
        return Err(refused("an entry has no name"));
    }
    limit("the length of its name", name.len(), limits::PATH_BYTES)?;
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    return Err(refused("its name leads out of the archive"));
                }
            }
            part => {
                limit("a component of its name", part.len(), limits::NAME_BYTES)?;
                parts.push(part);
            }
        }
    }
    limit("the depth of its name", parts.len(), limits::PATH_DEPTH)?;
    Ok(PathBuf::from(OsString::from_vec(parts.join(&b'/'))))
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), ArchiveError> {
    if value <= limit {
        return Ok(());
    }
    Err(ArchiveError::Limit { path: String::new(), what, limit: limit as u64 })
}

/// A symbolic link's target, as it stands.
pub(super) fn link_target(target: &[u8]) -> Result<PathBuf, ArchiveError> {
    if target.is_empty() {
        return Err(refused("a symbolic link leads nowhere"));
    }
    limit("the target of the symbolic link", target.len(), limits::PATH_BYTES - 1)?;
    Ok(PathBuf::from(OsStr::from_bytes(target)))
}

/// The last component; none for the root.
pub(super) fn last(name: &Path) -> Option<&[u8]> {
    name.file_name().map(OsStr::as_bytes)
}

/// The first component, or nothing.
pub(super) fn first(name: &Path) -> &[u8] {
    name.iter().next().map_or(b"", OsStr::as_bytes)
}

/// Everything but the last component.
pub(super) fn parent(name: &Path) -> PathBuf {
    name.parent().unwrap_or(Path::new("")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (name, expect) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("/", Some("")),
            ("a/..", Some("")),
            ("..", None),
            ("../a", None),
            ("a/../../b", None),
            ("/../a", None),
            ("", None),
        ] {
            let got = clean(name.as_bytes()).ok();
            assert_eq!(got, expect.map(PathBuf::from), "{name}");
        }
        assert!(clean(&[b'a'; 256]).is_err());
        assert!(clean("a/".repeat(2049).as_bytes()).is_err());
        assert!(clean("a/".repeat(2047).as_bytes()).is_ok());
        assert!(clean(b"\xff\xfe").is_ok());
    }
}
