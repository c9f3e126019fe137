//! `--snapshotter`: how the files of a step are put together.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use clap::ValueEnum;
use kiln_executor::check::{fuse_overlayfs_missing, overlay_missing};
use kiln_executor::spec;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Snapshotter {
    /// Overlay; where it cannot be mounted fuse-overlayfs, and copies where that is missing.
    #[default]
    Auto,
    /// Overlay, or a failure.
    Overlay,
    /// fuse-overlayfs, or a failure.
    FuseOverlayfs,
    /// Copies.
    Copy,
}

/// What is used in this process, once that is known.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    asked: Snapshotter,
    /// There are no mounts.
    chroot: bool,
    overlay: Known,
    fuse: Known,
    /// The last of them that was told.
    told: Mutex<Option<spec::Snapshotter>>,
}

/// Whether one of them is possible here.
#[derive(Debug, Default)]
struct Known {
    missing: OnceLock<Option<String>>,
    /// What a step found out.
    refused: OnceLock<String>,
}

/// A snapshotter that was asked for by name, and why it is not possible here.
pub(crate) type Lacking = (&'static str, String);

impl Chosen {
    pub(crate) fn new(asked: Snapshotter, chroot: bool) -> Self {
        Self { asked, chroot, ..Self::default() }
    }

    /// The snapshotter of the next step in a store, and a line to tell where it is the first that takes another's place.
    ///
    /// # Errors
    /// One was asked for by name and is not possible here.
    pub(crate) fn next(
        &self,
        store: &Path,
    ) -> Result<(spec::Snapshotter, Option<String>), Lacking> {
        let overlay = || self.lack(&self.overlay, || overlay_missing(store));
        let fuse = || self.lack(&self.fuse, fuse_overlayfs_missing);
        let named = |snapshotter, name, lack: Option<String>| {
            lack.map_or(Ok((snapshotter, None)), |why| Err((name, why)))
        };
        match self.asked {
            Snapshotter::Overlay => named(spec::Snapshotter::Overlay, "overlay", overlay()),
            Snapshotter::FuseOverlayfs => {
                named(spec::Snapshotter::FuseOverlayfs, "fuse-overlayfs", fuse())
            }
            Snapshotter::Copy => Ok((spec::Snapshotter::Copy, None)),
            Snapshotter::Auto if self.chroot => Ok((spec::Snapshotter::Copy, None)),
            Snapshotter::Auto => Ok(match overlay() {
                None => (spec::Snapshotter::Overlay, None),
                Some(why) => self.in_its_place(&why, fuse()),
            }),
        }
    }

    /// Why one of them is not possible.
    fn lack(&self, known: &Known, look: impl FnOnce() -> Option<String>) -> Option<String> {
        if self.chroot {
            return Some("steps are in a chroot, without mounts".to_owned());
        }
        known.missing.get_or_init(look).as_ref().or(known.refused.get()).cloned()
    }

    fn in_its_place(
        &self,
        no_overlay: &str,
        no_fuse: Option<String>,
    ) -> (spec::Snapshotter, Option<String>) {
        let (chosen, line) = match no_fuse {
            None => (
                spec::Snapshotter::FuseOverlayfs,
                format!("note: steps have their files by fuse-overlayfs ({no_overlay})\n"),
            ),
            Some(no_fuse) => (
                spec::Snapshotter::Copy,
                format!("note: steps run in copies of their files ({no_overlay}; {no_fuse})\n"),
            ),
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = told.replace(chosen) != Some(chosen);
        (chosen, is_new.then_some(line))
    }

    /// A step could not have the files of `snapshotter`; whether another may take its place.
    pub(crate) fn refused(&self, snapshotter: spec::Snapshotter, why: &str) -> bool {
        let known = match snapshotter {
            spec::Snapshotter::Overlay => &self.overlay,
            spec::Snapshotter::FuseOverlayfs => &self.fuse,
            spec::Snapshotter::Copy => return false,
        };
        // Several steps may find out at the same time.
        let _known = known.refused.set(why.to_owned());
        self.asked == Snapshotter::Auto
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kiln_executor::spec;

    use super::{Chosen, Snapshotter};

    #[test]
    fn what_is_refused_is_replaced_and_told_once() {
        let shm = Path::new("/dev/shm");
        let auto = Chosen::new(Snapshotter::Auto, false);
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Overlay, None)));
        assert!(auto.refused(spec::Snapshotter::Overlay, "not here"));
        auto.fuse.missing.set(None).unwrap();
        let line = "note: steps have their files by fuse-overlayfs (not here)\n".to_owned();
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::FuseOverlayfs, Some(line))));
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::FuseOverlayfs, None)));
        assert!(auto.refused(spec::Snapshotter::FuseOverlayfs, "nor this"));
        let line = "note: steps run in copies of their files (not here; nor this)\n".to_owned();
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Copy, Some(line))));
        assert_eq!(auto.next(shm), Ok((spec::Snapshotter::Copy, None)));
    }

    #[test]
    fn what_is_named_is_never_replaced() {
        let shm = Path::new("/dev/shm");
        let named = Chosen::new(Snapshotter::Overlay, false);
        assert!(!named.refused(spec::Snapshotter::Overlay, "not here"));
        assert_eq!(named.next(shm), Err(("overlay", "not here".to_owned())));
        let named = Chosen::new(Snapshotter::FuseOverlayfs, true);
        let why = "steps are in a chroot, without mounts".to_owned();
        assert_eq!(named.next(shm), Err(("fuse-overlayfs", why)));
    }
}
