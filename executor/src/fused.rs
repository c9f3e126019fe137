//! The snapshotter between overlay and copies: fuse-overlayfs(1) puts a step's files together. It serves the step from
//! the step's user namespace and control group, and outside of its other namespaces.
//!
//! It keeps deletions in forms of its own: `forms` changes those of the store to them, and those that a step left back.

mod daemon;
mod forms;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_cache::Root;

use crate::copied::{self, Parts};
use crate::program;
use crate::spec::RunSpec;

pub(crate) use daemon::Daemon;

/// Why steps cannot have their files by fuse-overlayfs, and what would change that.
pub(crate) fn missing() -> Option<String> {
    if program::find(PROGRAM).is_none() {
        return Some(
            "fuse-overlayfs is not installed; remedy: apt-get install fuse-overlayfs".to_owned(),
        );
    }
    let opened = fs::File::options().read(true).write(true).open(DEVICE);
    if let Err(error) = opened {
        let remedy = "modprobe fuse; in a container --device /dev/fuse";
        return Some(format!("{DEVICE}: {error}; remedy: {remedy}"));
    }
    let others = std::os::unix::fs::MetadataExt::mode(&fs::metadata(DEVICE).ok()?) & 0o006;
    let is_root = nix::unistd::geteuid().is_root();
    (is_root && others != 0o006)
        .then(|| format!("{DEVICE} is for root alone; remedy: chmod 0666 {DEVICE}"))
}

/// Where the kernel hands a file system to a program: fuse(4).
const DEVICE: &str = "/dev/fuse";

/// The program.
const PROGRAM: &str = "fuse-overlayfs";

/// A step whose files fuse-overlayfs puts together.
#[derive(Debug)]
pub(crate) struct Fused {
    /// The specification with all layers of the root.
    pub(crate) spec: RunSpec,
    /// Directories of the layers with the set-group-ID bit.
    grouped: Vec<PathBuf>,
}

impl Fused {
    /// Makes what the root needs.
    ///
    /// # Errors
    /// `Unsupported` where fuse-overlayfs would not show a layer as it is; what the disk says.
    pub(crate) fn make(spec: &RunSpec) -> io::Result<Self> {
        let Parts { mut spec, layers } = Parts::make(spec)?;
        fs::create_dir(copied::root_path(&spec.work))?;
        spec.base.layers.clear();
        let mut grouped = Vec::new();
        for (number, layer) in layers.into_iter().enumerate() {
            let above = spec.work.join(format!("above-{number}"));
            let found = forms::translate(&layer, &above)?;
            spec.base.layers.push(layer);
            spec.base.layers.extend(found.above.then_some(above));
            grouped.extend(found.grouped);
        }
        Ok(Self { spec, grouped })
    }

    /// Brings what a step wrote into overlay's form.
    ///
    /// # Errors
    /// `Unsupported` where the layer is not what overlay had given; when fuse-overlayfs did not end as it should, so that
    /// something may be missing; what the disk says.
    pub(crate) fn finish(&self) -> io::Result<()> {
        if !ended_path(&self.spec.work).exists() {
            return Err(io::Error::other("fuse-overlayfs ended before the step did"));
        }
        forms::restore(&Root::open(&self.spec.upper)?, &self.grouped)?;
        copied::clear(&self.spec.work)
    }
}

/// The file that says that everything was written.
fn ended_path(work: &Path) -> PathBuf {
    work.join("ended")
}
