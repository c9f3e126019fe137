//! The process of fuse-overlayfs(1) that serves one step. It is started by the step's first process, in the step's user
//! namespace, before the others are made; there is nothing of it left when that process ends.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{PROGRAM, ended_path};
use crate::copied::root_path;
use crate::place::Place;
use crate::program;
use crate::rootfs::{self, context};
use crate::spec::RunSpec;
use crate::sys::process;

/// `statfs(2)`'s type of file systems by programs.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// It is there after a few milliseconds, and gone as fast.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the store is in the daemon's mount namespace: it asks for absolute paths, and those of the builder lead through
/// folders that the step's root may not enter. Every machine has this one, and the daemon needs nothing in it.
const STORE: &str = "/sys";

/// What it says.
const LOG: &str = "fuse-overlayfs.log";

/// A running fuse-overlayfs.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Pid,
    /// Where its file system is.
    root: PathBuf,
    /// What tells the builder that it ended well.
    ended: PathBuf,
}

impl Daemon {
    /// Starts it in a mount namespace of its own, which the caller enters as well, and waits for its file system at
    /// [`root_path`]. It must not look for the files that it serves below themselves, so the step gets another one.
    ///
    /// # Errors
    /// What it says; what the kernel says.
    pub(crate) fn start(spec: &RunSpec, place: &Place) -> io::Result<Self> {
        let namespace = unshare(CloneFlags::CLONE_NEWNS);
        context(|| "make a mount namespace".to_owned(), namespace)?;
        let store = rootfs::clone_mount(&rootfs::open_path(&place.path(&spec.store))?, true)?;
        rootfs::attach(&store, rootfs::open_path(Path::new(STORE))?.as_fd())?;
        let program = program::find(PROGRAM).ok_or(io::ErrorKind::NotFound)?;
        let log: OwnedFd = File::options().create(true).append(true).open(LOG)?.into();
        let nothing: OwnedFd = File::open("/dev/null")?.into();
        let args = arguments(spec)?;
        let program = CString::new(program.as_os_str().as_bytes())?;
        let parent = nix::unistd::getpid();
        let process = process::fork_borrowing(|| {
            let ready = crate::init::die_with(parent)
                .and_then(|()| process::duplicate_to(&nothing, 0))
                .and_then(|()| process::duplicate_to(&log, 1))
                .and_then(|()| process::duplicate_to(&log, 2))
                .and_then(|()| std::env::set_current_dir(STORE))
                .and_then(|()| Ok(nix::sys::prctl::set_no_new_privs()?))
                .and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?));
            // Whoever waits for it says that it could not be started.
            let _error = ready.map(|()| process::exec(&program, &args, &[]));
            EXIT_NOT_STARTED
        })?;
        let inside = |path: &Path| Path::new(STORE).join(relative(spec, path));
        let (root, ended) = (inside(&root_path(&spec.work)), inside(&ended_path(&spec.work)));
        let daemon = Self { process, root, ended };
        daemon.wait()?;
        Ok(daemon)
    }

    /// In a copy of its mount namespace that becomes the step's: its file system, not yet anywhere.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        let root = rootfs::clone_mount(&rootfs::open_path(&self.root)?, false)?;
        let uncovered = umount2(STORE, MntFlags::MNT_DETACH);
        context(|| format!("uncover {STORE}"), uncovered)?;
        Ok(root)
    }

    fn wait(&self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let found = rustix::fs::statfs(&self.root)?;
            if u64::try_from(found.f_type).is_ok_and(|kind| kind == FUSE_SUPER_MAGIC) {
                return Ok(());
            }
            if self.has_ended() {
                let said = fs::read(LOG).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                let why = said.lines().last().unwrap_or("it could not be started");
                return Err(io::Error::other(format!("fuse-overlayfs: {why}")));
            }
            if begun.elapsed() > PATIENCE {
                let message = "fuse-overlayfs does not mount its file system";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn has_ended(&self) -> bool {
        !matches!(
            waitpid(self.process, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR)
        )
    }

    /// Ends it when the step has ended, after everything is written; that is noted for the builder.
    pub(crate) fn end(&self) {
        if self.has_ended() {
            return;
        }
        let begun = Instant::now();
        // Whether it was so in time.
        let wait = |is_so: &dyn Fn() -> bool| {
            while !is_so() {
                if begun.elapsed() > PATIENCE {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            true
        };
        let unmounted = || umount2(&self.root, MntFlags::empty()).is_ok();
        // It goes with its last mount. A file that is not there tells the builder.
        if wait(&unmounted) && wait(&|| self.has_ended()) {
            let _told = File::create(&self.ended);
        } else {
            let _gone = kill(self.process, Signal::SIGKILL);
        }
    }
}

/// The status of a child that is not fuse-overlayfs; nobody reads it.
const EXIT_NOT_STARTED: i32 = 127;

/// A path in the store. Its own may hold what separates options.
fn relative<'a>(spec: &RunSpec, path: &'a Path) -> &'a Path {
    path.strip_prefix(&spec.store).unwrap_or(path)
}

fn arguments(spec: &RunSpec) -> io::Result<Vec<CString>> {
    let mut options = b"volatile,lowerdir=".to_vec();
    for (number, layer) in spec.base.layers.iter().rev().enumerate() {
        if number > 0 {
            options.push(b':');
        }
        options.extend(relative(spec, layer).as_os_str().as_bytes());
    }
    for (name, path) in [("upperdir", &spec.upper), ("workdir", &spec.work)] {
        options.extend(format!(",{name}=").as_bytes());
        options.extend(relative(spec, path).as_os_str().as_bytes());
    }
    let root = root_path(&spec.work);
    let root = relative(spec, &root);
    let all = [b"fuse-overlayfs", &b"-f"[..], b"-o", &options, root.as_os_str().as_bytes()];
    all.into_iter().map(|arg| Ok(CString::new(arg)?)).collect()
}
