//! Networks of steps: a network namespace whose packets pasta(1) carries to the host's sockets. It has
//! the host's addresses and routes, but not its loopback interface: services on 127.0.0.1 are out of
//! reach. So are those on its other addresses, which are the network's own; a network that shall
//! reach them (`--add-host NAME:host-gateway`) has an address of its own instead.
//!
//! Root has networks without pasta, too, by the machine's own means (`nat`).
//!
//! Making one takes longer than a small step, so they are made ahead and used by one step after
//! another. Nothing of a step stays in them: its processes are gone, and it could not change them.

mod nat;

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::PidfdFlags;

use crate::ids;
use crate::program;
use crate::sys::process::{self, Side};

/// Where steps ask for names if the host's own resolver listens on its loopback interface.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));

/// What a network has instead of the host's addresses, so that those lead to the host: an address, the
/// length of its prefix, and the gateway. They are in the range that nobody routes (RFC 3927), beside the
/// resolver.
const OWN_ADDRESS: [&str; 6] =
    ["--address", "169.254.1.2", "--netmask", "29", "--gateway", "169.254.1.3"];

/// One network. It ends with this value, or with this process.
#[derive(Debug)]
struct Network {
    namespace: OwnedFd,
    /// Where the host is, for a network that reaches it.
    gateway: Option<IpAddr>,
    /// Whether names are looked up at [`RESOLVER`].
    resolves: bool,
    /// The keeper's pipe. Its end lets the keeper kill pasta (which does not notice that its namespace
    /// is gone) and go, with that the holder, with that the namespace.
    alive: Option<OwnedFd>,
    keeper: Pid,
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

/// What carries the packets of a network.
enum Carrier {
    /// pasta's process.
    Pasta(OwnedFd),
    /// The machine.
    Nat(nat::Link),
}

/// Why steps cannot have networks of their own here; `None` if they can. Looked up once.
pub fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| pasta_missing().filter(|_| !nat::is_possible())).as_deref()
}

fn pasta_missing() -> Option<String> {
    if program::find("pasta").is_none() {
        return Some("pasta is not installed; remedy: apt-get install passt".to_owned());
    }
    let tun = Path::new("/dev/net/tun");
    let open = fs::File::options().read(true).write(true).open(tun);
    // What this process lacks for the moment is no reason to share the machine's network.
    let refused = open.err().filter(|error| {
        !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
    });
    refused.map(|error| {
        format!("/dev/net/tun: {error}; remedy: modprobe tun && chmod 0666 /dev/net/tun")
    })
}

/// Begins to make a network, so that the first step need not wait as long. `store` is the folder that
/// [`crate::spec::RunSpec::store`] will name; `reaches_host` says that a host of the step is
/// [`crate::spec::HostAddress::Gateway`].
pub fn prepare(store: &Path, reaches_host: bool) {
    let mut pool = lock();
    if pool.coming > 0 || !pool.free.is_empty() || missing().is_some() {
        return;
    }
    pool.coming += 1;
    drop(pool);
    let store = store.to_owned();
    let made = std::thread::Builder::new().name("network".to_owned()).spawn(move || {
        let made = Network::make(&store, reaches_host);
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
pub(crate) fn take(store: &Path, reaches_host: bool) -> io::Result<Lease> {
    let mut pool = lock();
    pool.free.retain(Network::is_alive);
    loop {
        let fits = |network: &Network| network.gateway.is_some() == reaches_host;
        if let Some(number) = pool.free.iter().position(fits) {
            return Ok(Lease(Some(pool.free.swap_remove(number))));
        }
        if pool.coming == 0 {
            break;
        }
        pool = ARRIVED.wait(pool).unwrap_or_else(PoisonError::into_inner);
    }
    drop(pool);
    Network::make(store, reaches_host).map(|network| Lease(Some(network)))
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

    /// Whether names are looked up at [`RESOLVER`].
    pub(crate) fn resolves(&self) -> bool {
        self.0.as_ref().is_some_and(|network| network.resolves)
    }

    /// Why it carries nothing any more, where that is so.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        let dead = self.0.as_ref().is_some_and(|network| !network.is_alive());
        dead.then_some("the process that carries its network (pasta) has ended")
    }

    /// Where the host is, if it can be reached.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.0.as_ref().and_then(|network| network.gateway)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that is dead ends here.
        let network = self.0.take().filter(Network::is_alive);
        lock().free.extend(network);
    }
}

impl Network {
    fn make(store: &Path, reaches_host: bool) -> io::Result<Self> {
        let gateway = if reaches_host { Some(outer_address()?) } else { None };
        let owner = ids::namespace(store)?;
        let (answer, tells) = pipe_with(PipeFlags::CLOEXEC)?;
        let (waits, alive) = pipe_with(PipeFlags::CLOEXEC)?;
        let keeper = match process::fork()? {
            Side::Child => keep(&owner.fd, tells, &waits, reaches_host),
            Side::Parent(child) => child,
        };
        drop((tells, waits));
        match namespace_of(&answer) {
            Ok(namespace) => Ok(Self {
                namespace,
                gateway,
                resolves: pasta_missing().is_none(),
                alive: Some(alive),
                keeper,
            }),
            Err(error) => {
                drop(alive);
                reap(keeper);
                Err(error)
            }
        }
    }
}

impl Network {
    /// Whether its keeper is there, which goes when pasta does: the other end of the pipe is the keeper's.
    fn is_alive(&self) -> bool {
        let Some(alive) = &self.alive else { return false };
        let mut events = [PollFd::new(alive, PollFlags::empty())];
        matches!(poll(&mut events, Some(&Timespec::default())), Ok(0))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.alive.take());
        reap(self.keeper);
    }
}

/// What the keeper says, as a namespace: the number of a process in it, or why there is none.
fn namespace_of(answer: &OwnedFd) -> io::Result<OwnedFd> {
    let mut text = Vec::new();
    fs::File::from(answer.try_clone()?).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    match text.parse::<u32>() {
        Ok(holder) => Ok(fs::File::open(format!("/proc/{holder}/ns/net"))?.into()),
        Err(_) if text.is_empty() => {
            Err(io::Error::other("the process that keeps a network ended"))
        }
        Err(_) => Err(io::Error::other(text)),
    }
}

fn reap(child: Pid) {
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
}

/// In a child of the builder, with its rights: starts a holder of the namespace and pasta, says so, and
/// kills pasta when the builder is gone, however soon that is.
fn keep(owner: &OwnedFd, tells: OwnedFd, waits: &OwnedFd, reaches_host: bool) -> ! {
    let started = start(owner, &tells, waits, reaches_host);
    let told = match &started {
        Ok((holder, _)) => holder.to_string(),
        Err(error) => error.to_string(),
    };
    // The builder may be gone; then nobody needs to know, and pasta has to go all the same.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let _blocked = pipe.thread_block();
    let _told = rustix::io::write(&tells, told.as_bytes());
    drop(tells);
    let Ok((_, carrier)) = started else { process::exit(1) };
    // Nothing ever comes: this ends when the builder or pasta does.
    let mut events = vec![PollFd::new(waits, PollFlags::IN)];
    if let Carrier::Pasta(pasta) = &carrier {
        events.push(PollFd::new(pasta, PollFlags::IN));
    }
    while poll(&mut events, None) == Err(rustix::io::Errno::INTR) {}
    match carrier {
        Carrier::Pasta(pasta) => {
            let _gone = rustix::process::pidfd_send_signal(pasta, rustix::process::Signal::KILL);
        }
        Carrier::Nat(link) => link.remove(),
    }
    process::exit(0)
}

/// The holder's number, and what carries its packets.
fn start(
    owner: &OwnedFd,
    tells: &OwnedFd,
    waits: &OwnedFd,
    reaches_host: bool,
) -> io::Result<(Pid, Carrier)> {
    process::close_others(&[owner.as_raw_fd(), tells.as_raw_fd(), waits.as_raw_fd()])?;
    process::reset_signals()?;
    nix::unistd::setsid()?;
    let keeper = nix::unistd::getpid();
    let (made, done) = pipe_with(PipeFlags::CLOEXEC)?;
    let holder = match process::fork()? {
        Side::Child => {
            let held = hold(owner, &done, keeper);
            process::exit(held.err().and_then(|error| error.raw_os_error()).unwrap_or(1))
        }
        Side::Parent(child) => child,
    };
    drop(done);
    if rustix::io::read(&made, &mut [0])? == 0 {
        let code = match waitpid(holder, None) {
            Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => code,
            _ => libc::EIO,
        };
        return Err(io::Error::from_raw_os_error(code));
    }
    if pasta_missing().is_some() {
        return Ok((holder, Carrier::Nat(nat::Link::make(holder.as_raw(), reaches_host)?)));
    }
    let number = connect(&format!("/proc/{holder}/ns/net"), reaches_host)?;
    let pid = rustix::process::Pid::from_raw(number).ok_or(io::ErrorKind::InvalidData)?;
    let pasta = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok((holder, Carrier::Pasta(pasta)))
}

/// In a child of the keeper: makes the namespace, says so, and stays until the keeper is gone.
fn hold(owner: &OwnedFd, done: &OwnedFd, keeper: Pid) -> io::Result<()> {
    // The keeper's pipes end with the keeper.
    process::close_others(&[owner.as_raw_fd(), done.as_raw_fd()])?;
    nix::sched::setns(owner, CloneFlags::CLONE_NEWUSER)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    crate::sys::network::interface_up("lo")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != keeper {
        process::exit(0);
    }
    rustix::io::write(done, b"1")?;
    loop {
        nix::unistd::pause();
    }
}

/// Starts pasta, which goes to the background when the network is up; gives the number of its process.
fn connect(namespace: &str, reaches_host: bool) -> io::Result<i32> {
    let pasta = program::find("pasta").ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // Not a pipe: pasta keeps the file open.
    let pid_file = tempfile::NamedTempFile::new()?;
    let output = Command::new(pasta)
        .args(["--config-net", "--quiet", "--no-map-gw", "--runas", "0:0"])
        // Nothing is forwarded, in neither direction.
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"])
        .args(["--dns-forward", &RESOLVER.to_string()])
        .args(if reaches_host { &OWN_ADDRESS[..] } else { &[] })
        .arg("--pid")
        .arg(pid_file.path())
        .args(["--netns-only", "--netns", namespace])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let number = fs::read_to_string(pid_file.path())?.trim().parse();
    if let (true, Ok(number)) = (output.status.success(), number) {
        return Ok(number);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.lines().rfind(|line| !line.contains("syslog")).unwrap_or_default();
    Err(io::Error::other(format!("pasta: {told}")))
}

/// The address that the host has to the outside: that of a connection to anywhere. Nothing is sent: a
/// datagram socket only looks up the route. The address there is one for documentation (RFC 5737).
fn outer_address() -> io::Result<IpAddr> {
    let looked_up = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9))?;
        socket.local_addr()
    });
    match looked_up {
        Ok(address) => Ok(address.ip()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "host-gateway: this machine has no way out by IPv4 ({error}); remedy: --add-host with an address"
            ),
        )),
    }
}
