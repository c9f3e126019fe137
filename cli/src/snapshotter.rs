//! `--snapshotter`: how the files of a step are put together.

use std::path::Path;
use std::sync::OnceLock;

use clap::ValueEnum;
use kiln_executor::check::overlay_missing;
use kiln_executor::spec;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Snapshotter {
    /// Overlay, copies where it cannot be mounted.
    #[default]
    Auto,
    /// Overlay, or a failure.
    Overlay,
    /// Copies.
    Copy,
}

/// What is used in this process, once that is known.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    asked: Snapshotter,
    /// There are no mounts.
    chroot: bool,
    missing: OnceLock<Option<String>>,
    /// What a step found out.
    refused: OnceLock<String>,
    told: OnceLock<()>,
}

impl Chosen {
    pub(crate) fn new(asked: Snapshotter, chroot: bool) -> Self {
        Self { asked, chroot, ..Self::default() }
    }

    /// The snapshotter of the next step in a store, and the line that is told with the first copy.
    ///
    /// # Errors
    /// Overlay was asked for by name and is not possible here: why.
    pub(crate) fn next(&self, store: &Path) -> Result<(spec::Snapshotter, Option<String>), String> {
        if self.chroot && self.asked == Snapshotter::Overlay {
            return Err("steps are in a chroot, without mounts".to_owned());
        }
        if self.chroot || self.asked == Snapshotter::Copy {
            return Ok((spec::Snapshotter::Copy, None));
        }
        let missing = self.missing.get_or_init(|| overlay_missing(store)).as_ref();
        let Some(why) = missing.or(self.refused.get()) else {
            return Ok((spec::Snapshotter::Overlay, None));
        };
        if self.asked == Snapshotter::Overlay {
            return Err(why.clone());
        }
        let first = self.told.set(()).is_ok();
        let line = first.then(|| format!("note: steps run in copies of their files ({why})\n"));
        Ok((spec::Snapshotter::Copy, line))
    }

    /// A step could not mount an overlay; whether a copy may take its place.
    pub(crate) fn refused(&self, why: &str) -> bool {
        // Several steps may find out at the same time.
        let _known = self.refused.set(why.to_owned());
        self.asked == Snapshotter::Auto
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kiln_executor::spec;

    use super::{Chosen, Snapshotter};

    #[test]
    fn overlay_is_given_up_once_and_told_once() {
        let shm = Path::new("/dev/shm");
        let auto = Chosen::new(Snapshotter::Auto, false);
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Overlay, None)));
        assert!(auto.refused("not here"));
        let line = "note: steps run in copies of their files (not here)\n".to_owned();
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Copy, Some(line))));
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Copy, None)));
        let named = Chosen::new(Snapshotter::Overlay, false);
        assert!(!named.refused("not here"), "never silently something else");
        assert_eq!(named.next(shm), Err("not here".to_owned()));
    }
}
