//! WORKDIR: a directory and its missing parents.

use kiln_cache::{LayerWriter, Metadata, Time, View};

use crate::copy::CopyError;
use crate::copy::place::{Place, now};

/// A directory to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MkdirSpec {
    /// Absolute.
    pub path: String,
    /// User and group, of missing parents too.
    pub owner: (u32, u32),
    /// Permission bits, of missing parents too.
    pub mode: u32,
    /// Modification time; `None` is now.
    pub mtime: Option<Time>,
}

/// Makes a directory where there is none; one that is there stays as it is, and nothing is written.
/// Links in the path are followed inside the root.
///
/// # Errors
/// When something else is there, or the layer cannot be written.
pub fn mkdir(spec: &MkdirSpec, dest: &dyn View, writer: &LayerWriter) -> Result<(), CopyError> {
    let place = Place { below: dest, writer };
    let path = place.resolve(&spec.path)?;
    if path.as_os_str().is_empty() || place.find(&path).is_some_and(|found| found.entry.is_dir()) {
        return Ok(());
    }
    let metadata = Metadata {
        mode: spec.mode,
        uid: spec.owner.0,
        gid: spec.owner.1,
        mtime: spec.mtime.unwrap_or_else(now),
        ..Metadata::default()
    };
    place.keep_root()?;
    place.ensure(&path, &metadata).map(|_| ())
}
