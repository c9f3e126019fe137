//! Networks of steps: a network namespace whose packets pasta(1) carries to the host's sockets. It has
//! the host's addresses and routes, but not its loopback interface: services on 127.0.0.1 are out of
//! reach.
//!
//! Making one takes longer than a small step, so they are made ahead and used by one step after
//! another. Nothing of a step stays in them: its processes are gone, and it could not change them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::ids;
use crate::sys::process::{self, Side};

/// Where steps ask for names if the host's own resolver listens on its loopback interface.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));

/// One network. It ends with this value, or with this process.
#[derive(Debug)]
struct Network {
    namespace: OwnedFd,
    /// Its end lets the holder go, with it the namespace, with that pasta.
    alive: Option<OwnedFd>,
    holder: Pid,
}

/// A network that one step has for itself.
#[derive(Debug)]
pub(crate) struct Lease(Option<Network>);

/// Networks that nobody uses, and how many are being made ahead.
#[derive(Debug, Default)]
struct Pool {
    free: Vec<Network>,
    coming: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: Vec::new(), coming: 0 });
static ARRIVED: Condvar = Condvar::new();

/// Why steps cannot have networks of their own here; `None` if they can.
pub fn missing() -> Option<String> {
    if find_pasta().is_none() {
        return Some("pasta is not installed; remedy: apt-get install passt".to_owned());
    }
    let tun = Path::new("/dev/net/tun");
    let open = fs::File::options().read(true).write(true).open(tun);
    open.err().map(|error| {
        format!("/dev/net/tun: {error}; remedy: modprobe tun && chmod 0666 /dev/net/tun")
    })
}

/// Begins to make a network, so that the first step need not wait as long. `store` is the folder that
/// [`crate::spec::RunSpec::store`] will name.
pub fn prepare(store: &Path) {
    let mut pool = lock();
    if pool.coming > 0 || !pool.free.is_empty() || find_pasta().is_none() {
        return;
    }
    pool.coming += 1;
    drop(pool);
    let store = store.to_owned();
    let made = std::thread::Builder::new().name("network".to_owned()).spawn(move || {
        let made = Network::make(&store);
        let mut pool = lock();
        pool.coming -= 1;
        // Why there is none is told to the step that asks for one.
        pool.free.extend(made.ok());
        ARRIVED.notify_all();
    });
    if made.is_err() {
        lock().coming -= 1;
    }
}

/// A network for one step.
pub(crate) fn take(store: &Path) -> io::Result<Lease> {
    let mut pool = lock();
    loop {
        if let Some(network) = pool.free.pop() {
            return Ok(Lease(Some(network)));
        }
        if pool.coming == 0 {
            break;
        }
        pool = ARRIVED.wait(pool).unwrap_or_else(PoisonError::into_inner);
    }
    drop(pool);
    Network::make(store).map(|network| Lease(Some(network)))
}

fn lock() -> std::sync::MutexGuard<'static, Pool> {
    // A panic leaves the pool as it was: its changes are single statements.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lease {
    /// The namespace.
    pub(crate) fn namespace(&self) -> Option<&OwnedFd> {
        self.0.as_ref().map(|network| &network.namespace)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock().free.extend(self.0.take());
    }
}

impl Network {
    fn make(store: &Path) -> io::Result<Self> {
        let owner = ids::namespace(store)?;
        let (made, tells) = pipe_with(PipeFlags::CLOEXEC)?;
        let (waits, alive) = pipe_with(PipeFlags::CLOEXEC)?;
        let holder = match process::fork()? {
            Side::Child => hold(&owner.fd, &tells, &waits),
            Side::Parent(child) => child,
        };
        drop((tells, waits));
        let mut told = [0; 4];
        let length = rustix::io::read(&made, &mut told)?;
        let path = format!("/proc/{holder}/ns/net");
        let namespace = fs::File::open(&path).map(OwnedFd::from);
        let made = match i32::from_ne_bytes(told) {
            0 if length == told.len() => namespace.and_then(|fd| connect(&path).map(|()| fd)),
            0 => Err(io::Error::other("the process that holds a network ended")),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
        match made {
            Ok(namespace) => Ok(Self { namespace, alive: Some(alive), holder }),
            Err(error) => {
                drop(alive);
                reap(holder);
                Err(error)
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.alive.take());
        reap(self.holder);
    }
}

fn reap(holder: Pid) {
    while waitpid(holder, None) == Err(nix::errno::Errno::EINTR) {}
}

/// In the child: makes the namespace, says so, and stays until the builder is gone.
fn hold(owner: &OwnedFd, tells: &OwnedFd, waits: &OwnedFd) -> ! {
    let made = process::close_others(&[owner.as_raw_fd(), tells.as_raw_fd(), waits.as_raw_fd()])
        .and_then(|()| process::reset_signals())
        .and_then(|()| Ok(nix::unistd::setsid().map(drop)?))
        .and_then(|()| Ok(nix::sched::setns(owner, CloneFlags::CLONE_NEWUSER)?))
        .and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWNET)?))
        .and_then(|()| crate::sys::network::interface_up("lo"));
    let told = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let mut byte = [0];
    let done = rustix::io::write(tells, &told.to_ne_bytes())
        .and_then(|_| rustix::io::read(waits, &mut byte));
    process::exit(i32::from(done.is_err()))
}

/// Starts pasta, which goes to the background when the network is up.
fn connect(namespace: &str) -> io::Result<()> {
    let pasta = find_pasta().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let output = Command::new(pasta)
        .args(["--config-net", "--quiet", "--no-map-gw", "--runas", "0:0"])
        // Nothing is forwarded, in neither direction.
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"])
        .args(["--dns-forward", &RESOLVER.to_string()])
        .args(["--netns-only", "--netns", namespace])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.lines().rfind(|line| !line.contains("syslog")).unwrap_or_default();
    Err(io::Error::other(format!("pasta: {told}")))
}

fn find_pasta() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join("pasta"))
        .find(|candidate| candidate.is_file())
}
