//! What a step's processes need of the host while its root is put together: a directory in memory of
//! their own, and in it the store with the owners that the step sees. Made by the builder's user;
//! everything behind it happens in the step's user namespace, where the host's paths are out of
//! reach. It is the working directory, and paths into it are relative.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{FileType, fstat};

use crate::ids::Namespace;
use crate::rootfs::{self, context};
use crate::spec::{MountSource, RunSpec};
use crate::sys::mount::map_owners;

/// The name of the store in the place.
const STORE: &str = "store";

/// Where the builder's paths are for the step.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The store, if it is shown in the place.
    store: Option<PathBuf>,
    /// Other paths of the host, and what they are called here.
    others: Vec<(PathBuf, PathBuf)>,
}

impl Place {
    /// Makes the place in a mount namespace of its own, and enters it.
    pub(crate) fn enter(spec: &RunSpec, namespace: Option<&Namespace>) -> io::Result<Self> {
        let root = namespace.map_or(0, |namespace| namespace.root);
        let options = format!("mode=711,uid={root},gid={root}");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        let made = mount(Some("tmpfs"), &spec.scratch, Some("tmpfs"), flags, Some(&*options));
        context(|| "mount the step's own directory".to_owned(), made)?;
        std::env::set_current_dir(&spec.scratch)?;
        let mut place = Self::default();
        let Some(namespace) = namespace.filter(|namespace| namespace.maps_owners) else {
            return Ok(place);
        };
        show(&spec.store, Path::new(STORE), namespace, true)?;
        place.store = Some(spec.store.clone());
        for (number, mount) in spec.mounts.iter().enumerate() {
            let (MountSource::Folder { folder: path, .. } | MountSource::Socket { path }) =
                &mount.source
            else {
                continue;
            };
            if !path.starts_with(&spec.store) {
                let name = PathBuf::from(format!("host-{number}"));
                show(path, &name, namespace, false)?;
                place.others.push((path.clone(), name));
            }
        }
        Ok(place)
    }

    /// Where a path of the builder is for the step.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        if let Some(rest) = self.store.as_ref().and_then(|store| path.strip_prefix(store).ok()) {
            return Path::new(STORE).join(rest);
        }
        let other = self.others.iter().find(|(known, _)| known == path);
        other.map_or_else(|| path.to_owned(), |(_, name)| name.clone())
    }
}

/// Shows a path of the host under a name in the place. Owners of the store have to be mapped; what
/// else a caller gives to a step is shown as it is where that cannot be.
fn show(path: &Path, name: &Path, namespace: &Namespace, must: bool) -> io::Result<()> {
    let tree = rootfs::clone_mount(&rootfs::open_path(path)?, false)?;
    let mapped = map_owners(tree.as_fd(), &namespace.fd);
    if must {
        context(|| format!("map the owners of {}", path.display()), mapped)?;
    }
    point(&tree, name)?;
    rootfs::attach(&tree, rootfs::open_path(name)?.as_fd())
}

/// Makes a mount point of the right kind.
fn point(tree: &OwnedFd, name: &Path) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory {
        fs::create_dir(name)
    } else {
        fs::File::create(name).map(drop)
    }
}
