//! Pid 1 of a step and the processes around it.
//!
//! `outer` (forked by the builder) makes the namespaces and forks `inner`, which is pid 1 in the new
//! pid namespace: it mounts, enters the root, forks the command and becomes `init_program`, which reaps
//! everything and reports how the command ended. When pid 1 ends the kernel kills whatever is left; when the builder dies both
//! are killed (`PR_SET_PDEATHSIG`).

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::chown;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{CWD, Mode as FileMode, OFlags, ResolveFlags, openat2};

use crate::cgroup::Group;
use crate::devices::Devices;
use crate::etc::Names;
use crate::fused::Daemon;
use crate::ids::Namespace;
use crate::place::Place;
use crate::rootfs::{self, Sys, System, Upper, context};
use crate::seccomp::Filter;
use crate::spec::{Limit, RunSpec, Snapshotter, Stack, Streams};
use crate::stdio::Ends;
use crate::sys::process;
use crate::user::{self, User};
use crate::{capability, chroot, copied, etc, init_program, insecure, mounts, net, trust};

/// Open files of a step: soft and hard limit.
const NOFILE_SOFT: u64 = 1024;
const NOFILE_HARD: u64 = 524_288;

/// What the forked processes need besides the specification.
pub(crate) struct Handles<'a> {
    /// The command's streams.
    pub(crate) ends: Ends,
    /// One line that says how it ended.
    pub(crate) report: OwnedFd,
    /// The system call filter.
    pub(crate) filter: Option<&'a Filter>,
    /// That of pid 1: a caller's profile cannot keep it from its work.
    pub(crate) own_filter: Option<&'static Filter>,
    /// What pid 1 becomes.
    pub(crate) program: &'static OwnedFd,
    /// The step's user namespace; `None` for the builder's.
    pub(crate) namespace: Option<&'static Namespace>,
    /// The step's network.
    pub(crate) network: Joined,
    /// The builder.
    pub(crate) builder: Pid,
    /// The step's control group, if it has its own.
    pub(crate) group: Option<Group>,
}

impl Handles<'_> {
    /// Which /sys the step gets.
    fn sys(&self, spec: &RunSpec) -> Sys {
        if spec.insecure {
            Sys::Writable
        } else if self.namespace.is_none() || !matches!(self.network, Joined::Host) {
            Sys::ReadOnly
        } else {
            Sys::Host
        }
    }

    /// Closes what the step has by now; its control group and its network are not for others until it
    /// has ended.
    pub(crate) fn release(self) -> (Option<Group>, Joined) {
        (self.group, self.network)
    }
}

/// Which network namespace a step gets.
#[derive(Debug)]
pub(crate) enum Joined {
    /// The builder's.
    Host,
    /// A new one, with nothing but a loopback interface.
    New,
    /// One that is connected.
    Connected(net::Lease),
}

impl Joined {
    fn namespace(&self) -> Option<&OwnedFd> {
        match self {
            Self::Connected(lease) => lease.namespace(),
            Self::Host | Self::New => None,
        }
    }

    /// Who answers questions for names.
    fn names(&self) -> Names {
        match self {
            Self::Host | Self::New => Names::Host,
            Self::Connected(lease) if lease.resolves() => Names::Forwarded,
            Self::Connected(_) => Names::Outer,
        }
    }

    /// Where this machine's services are, if they can be reached.
    fn gateway(&self) -> Option<IpAddr> {
        match self {
            Self::Host => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Self::New => None,
            Self::Connected(lease) => lease.gateway(),
        }
    }
}

/// How a step ended, as the processes tell it to the builder: one line of text.
pub(crate) enum Report {
    /// The command's exit code.
    Exited(i32),
    /// The signal that killed it.
    Killed(i32),
    /// It could not be started: which program, why.
    NotStarted(String, i32),
    /// The user is not in the image.
    NoUser(String),
    /// Overlay cannot be mounted.
    NoOverlay(String),
    /// The sandbox could not be made.
    Broken(String),
}

impl Report {
    fn line(&self) -> String {
        match self {
            Self::Exited(code) => format!("exited {code}"),
            Self::Killed(signal) => format!("killed {signal}"),
            Self::NotStarted(program, errno) => format!("notstarted {errno} {program}"),
            Self::NoUser(why) => format!("nouser {why}"),
            Self::NoOverlay(why) => format!("nooverlay {why}"),
            Self::Broken(why) => format!("broken {why}"),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "exited" => Self::Exited(rest.parse().ok()?),
            "killed" => Self::Killed(rest.parse().ok()?),
            "notstarted" => {
                let (errno, program) = rest.split_once(' ')?;
                Self::NotStarted(program.to_owned(), errno.parse().ok()?)
            }
            "nouser" => Self::NoUser(rest.to_owned()),
            "nooverlay" => Self::NoOverlay(rest.to_owned()),
            "broken" => Self::Broken(rest.to_owned()),
            _ => return None,
        })
    }
}

/// The first forked process: makes the namespaces, waits for pid 1. Never returns.
pub(crate) fn outer(spec: &RunSpec, handles: &Handles<'_>) -> ! {
    let status = match prepare_outer(spec, handles) {
        Ok(host) => {
            let status = match process::fork_borrowing(|| inner(spec, handles, &host)) {
                Ok(init) => wait_for(init),
                Err(error) => report(handles, &Report::Broken(error.to_string())),
            };
            if let Some(files) = &host.files {
                files.end();
            }
            status
        }
        Err(failed) => report(handles, &failed.into()),
    };
    process::exit(status)
}

/// What was taken of the host before its files got out of reach.
struct Host {
    place: Place,
    devices: Devices,
    /// Who serves the files of the step, where that is a process.
    files: Option<Daemon>,
}

fn prepare_outer(spec: &RunSpec, handles: &Handles<'_>) -> Result<Host, Failed> {
    die_with(handles.builder)?;
    process::reset_signals()?;
    let namespace = handles.namespace.map(|namespace| namespace.fd.as_raw_fd());
    let network = handles.network.namespace().map(AsRawFd::as_raw_fd);
    let keep: Vec<_> = namespace.into_iter().chain(network).collect();
    detach(spec, handles, &keep)?;
    context(|| "make a mount namespace".to_owned(), unshare(CloneFlags::CLONE_NEWNS))?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let (place, devices) = (Place::enter(spec, handles.namespace)?, Devices::open()?);
    if let Some(namespace) = handles.namespace {
        become_root_of(namespace)?;
        die_with(handles.builder)?;
    }
    let served = spec.snapshotter == Snapshotter::FuseOverlayfs;
    let files = served.then(|| Daemon::start(spec, &place)).transpose().map_err(Failed::Overlay)?;
    let mut flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if files.is_none() {
        flags |= CloneFlags::CLONE_NEWNS;
    }
    match handles.network.namespace() {
        Some(network) => {
            let joined = nix::sched::setns(network, CloneFlags::CLONE_NEWNET);
            context(|| "enter the network namespace".to_owned(), joined)?;
        }
        None if matches!(handles.network, Joined::New) => flags |= CloneFlags::CLONE_NEWNET,
        None => {}
    }
    context(|| "make namespaces".to_owned(), unshare(flags))?;
    Ok(Host { place, devices, files })
}

/// Gives up what a step has of the builder's process: control group, session, terminal, descriptors (but
/// `keep`), keyring.
pub(crate) fn detach(spec: &RunSpec, handles: &Handles<'_>, keep: &[RawFd]) -> io::Result<()> {
    if let Some(group) = &handles.group {
        context(|| "enter the control group".to_owned(), group.enter())?;
    }
    nix::unistd::setsid()?;
    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::dup2_stdin(&handles.ends.stdin)?;
    nix::unistd::dup2_stdout(&handles.ends.stdout)?;
    nix::unistd::dup2_stderr(&handles.ends.stderr)?;
    let own = [handles.report.as_raw_fd(), handles.program.as_raw_fd()];
    let keep: Vec<_> = own.iter().chain(keep).copied().collect();
    process::close_others(&keep)?;
    process::new_session_keyring();
    raise_limits(&spec.limits)?;
    context(|| "set the OOM score".to_owned(), unprotect())
}

/// Enters the step's user namespace, as its root.
fn become_root_of(namespace: &Namespace) -> io::Result<()> {
    let entered = nix::sched::setns(&namespace.fd, CloneFlags::CLONE_NEWUSER);
    context(|| "enter the user namespace".to_owned(), entered)?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The caller's groups would count for files of the host (decision 5 of security.md, section 0).
    drop_groups(&[])
}

/// Sets the supplementary groups. In a namespace with a single id nobody may, and there are none that
/// could be had (user_namespaces(7), "setgroups").
fn drop_groups(groups: &[Gid]) -> io::Result<()> {
    match setgroups(groups) {
        Err(nix::errno::Errno::EPERM) if denies_groups() => Ok(()),
        result => Ok(result?),
    }
}

fn denies_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// A step must not be spared where the builder is.
fn unprotect() -> io::Result<()> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(SCORE)?;
    if score.trim_start().starts_with('-') { fs::write(SCORE, "0") } else { Ok(()) }
}

/// Hard limits can only be raised by the first user namespace's root.
fn raise_limits(limits: &[Limit]) -> io::Result<()> {
    for limit in limits {
        let Some(resource) = resource(&limit.name) else { continue };
        let (soft, hard) = nix::sys::resource::getrlimit(resource)?;
        let wanted = limit.hard.unwrap_or(libc::RLIM_INFINITY);
        if wanted > hard {
            // Where it may not, the step says so when it sets the limit.
            let _refused = setrlimit(resource, soft, wanted);
        }
    }
    Ok(())
}

/// Asks for SIGKILL when the parent ends, and checks that it has not ended before.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() == parent {
        return Ok(());
    }
    process::exit(1)
}

/// Waits for pid 1, and passes a SIGTERM of the builder on to it.
fn wait_for(init: Pid) -> i32 {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    if signals.thread_block().is_err() {
        return 1;
    }
    loop {
        match waitpid(init, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, status)) => return status,
            _ => return 1,
        }
        if signals.wait() == Ok(Signal::SIGTERM) {
            // It may have ended this moment.
            let _ended = nix::sys::signal::kill(init, Signal::SIGTERM);
        }
    }
}

/// Tells the builder how it ended; gives the exit status of the telling process.
pub(crate) fn report(handles: &Handles<'_>, report: &Report) -> i32 {
    let line = format!("{}\n", report.line().replace('\n', " "));
    match rustix::io::write(&handles.report, line.as_bytes()) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}

/// Pid 1. Everything before the command exists runs here, single-threaded.
fn inner(spec: &RunSpec, handles: &Handles<'_>, host: &Host) -> i32 {
    let outcome = match build(spec, handles, host) {
        Ok((user, env)) => start(spec, handles, &user, &env),
        Err(failed) => failed.into(),
    };
    report(handles, &outcome)
}

pub(crate) enum Failed {
    Io(io::Error),
    Overlay(io::Error),
    User(String),
}

impl From<Failed> for Report {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::User(why) => Self::NoUser(why),
            Failed::Overlay(error) => Self::NoOverlay(error.to_string()),
            Failed::Io(error) => Self::Broken(error.to_string()),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::errno::Errno> for Failed {
    fn from(error: nix::errno::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Mounts everything, enters the root; gives who runs and with which environment.
fn build(
    spec: &RunSpec,
    handles: &Handles<'_>,
    host: &Host,
) -> Result<(User, Vec<(String, String)>), Failed> {
    // Pid 1's parent is outside of its pid namespace, so it shows as 0.
    die_with(Pid::from_raw(0))?;
    nix::sys::prctl::set_dumpable(false)?;
    let served = host.files.as_ref().map(served_root).transpose()?;
    let bottom = Path::new("bottom");
    fs::create_dir(bottom)?;
    for directory in ["/proc", "/sys", "/dev"] {
        mounts::stub(bottom, Path::new(directory), true)?;
    }
    let mut layers = stack(&spec.base, &host.place);
    let trusted = match &spec.ca_certs {
        // In others they are there already.
        Some(ca) if spec.snapshotter == Snapshotter::Overlay => {
            trust::prepare(ca, &layers, bottom, &spec.env).map_err(Failed::Overlay)?
        }
        _ => trust::Prepared::default(),
    };
    layers.layers.extend(trusted.layer);
    let all: Vec<_> = [
        mounts::file("/etc/resolv.conf", etc::resolv_conf(spec, handles.network.names())),
        mounts::file("/etc/hosts", etc::hosts(spec, handles.network.gateway())),
    ]
    .into_iter()
    .chain(trusted.mounts)
    .chain(spec.mounts.iter().cloned())
    .collect();
    let cgroups = spec.insecure.then(insecure::cgroups).transpose()?;
    let prepared = mounts::prepare(spec, &all, &host.place, bottom)?;
    let root = match served {
        Some(root) => root,
        None => root(spec, &layers, &host.place, bottom)?,
    };
    let sys = handles.sys(spec);
    let system = System::make(sys)?;
    rootfs::enter(&root, Path::new("root"))?;
    system.attach(spec.shm_size, &host.devices, spec.insecure)?;
    if let Some(cgroups) = &cgroups {
        insecure::system(cgroups)?;
    }
    for mount in &prepared {
        mount.attach()?;
    }
    if !spec.insecure {
        rootfs::protect()?;
    }
    match nix::unistd::sethostname(&spec.hostname) {
        // A container's own filter may forbid it, whatever the namespace; its name stays then.
        Err(nix::errno::Errno::EPERM) => {}
        result => context(|| "set the host name".to_owned(), result)?,
    }
    if matches!(handles.network, Joined::New) {
        loopback_up()?;
    }
    let user = find_user(&spec.user)?;
    let env = environment(spec, &user);
    working_directory(&spec.cwd, &user)?;
    Ok((user, env))
}

/// The step's root where a process serves it: that one stays in the mount namespace that the step leaves.
fn served_root(files: &Daemon) -> io::Result<OwnedFd> {
    context(|| "make a mount namespace".to_owned(), unshare(CloneFlags::CLONE_NEWNS))?;
    files.root()
}

/// The step's root, not yet anywhere.
fn root(spec: &RunSpec, layers: &Stack, place: &Place, bottom: &Path) -> Result<OwnedFd, Failed> {
    if spec.snapshotter == Snapshotter::Copy {
        let copy = rootfs::open_path(&place.path(&copied::root_path(&spec.work)))?;
        let root = rootfs::clone_mount(&copy, false)?;
        if spec.own_ids {
            // As of an overlay in a user namespace: devices of an image cannot be opened.
            context(|| "protect the root".to_owned(), crate::sys::mount::no_devices(root.as_fd()))?;
        }
        return Ok(root);
    }
    let upper = Upper { upper: &place.path(&spec.upper), work: &place.path(&spec.work) };
    rootfs::overlay(layers, bottom, Some(&upper)).map_err(Failed::Overlay)
}

/// A stack with the paths that the step sees.
fn stack(stack: &Stack, place: &Place) -> Stack {
    Stack { layers: stack.layers.iter().map(|layer| place.path(layer)).collect() }
}

/// A network namespace starts with its loopback interface down.
fn loopback_up() -> io::Result<()> {
    crate::sys::network::interface_up("lo")
}

pub(crate) fn find_user(spec: &str) -> Result<User, Failed> {
    let text = |path: &str| match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= 10 << 20 => fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default(),
        _ => String::new(),
    };
    user::lookup(&text("/etc/passwd"), &text("/etc/group"), spec)
        .map_err(|error| Failed::User(error.to_string()))
}

/// HOME comes from the image's passwd file, unless it is set (runc's rule).
pub(crate) fn environment(spec: &RunSpec, user: &User) -> Vec<(String, String)> {
    let mut env = spec.env.clone();
    if spec.ca_certs.is_some() {
        trust::add_variables(&mut env);
    }
    if !env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
        env.retain(|(name, _)| name != "HOME");
        env.push(("HOME".to_owned(), home));
    }
    env
}

/// Made where it is missing, for the step's user; symbolic links stay inside the root by now.
pub(crate) fn working_directory(cwd: &Path, user: &User) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut path = cwd;
    while fs::symlink_metadata(path).is_err() {
        missing.push(path);
        let Some(parent) = path.parent() else { break };
        path = parent;
    }
    for directory in missing.into_iter().rev() {
        context(
            || format!("make the working directory {}", directory.display()),
            fs::create_dir(directory),
        )?;
        chown(directory, Some(user.uid), Some(user.gid))?;
    }
    // Not through /proc/self/fd or /proc/1/cwd: what they lead to need not be below the root.
    let entered = openat2(
        CWD,
        cwd,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        FileMode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(io::Error::from)
    .and_then(|directory| Ok(nix::unistd::fchdir(directory)?));
    context(|| format!("enter the working directory {}", cwd.display()), entered)
}

/// Forks the command, becomes the program that reaps until it ends; returns only on failure.
fn start(spec: &RunSpec, handles: &Handles<'_>, user: &User, env: &[(String, String)]) -> Report {
    let begun =
        process::fork_borrowing(|| report(handles, &become_command(spec, handles, user, env)));
    let command = match begun {
        Ok(command) => command,
        Err(error) => return Report::Broken(format!("fork: {error}")),
    };
    match become_init(spec, handles, command) {
        Ok(never) => match never {},
        Err(error) => Report::Broken(format!("become pid 1: {error}")),
    }
}

/// Pid 1 gives up what the command did, and becomes a program that knows nothing of the builder.
fn become_init(
    spec: &RunSpec,
    handles: &Handles<'_>,
    command: Pid,
) -> io::Result<std::convert::Infallible> {
    // The pipes belong to the command alone: when it and its children are gone, the log ends.
    nix::unistd::dup2_stdout(io::stdin())?;
    nix::unistd::dup2_stderr(io::stdin())?;
    if !spec.insecure {
        capability::bound()?;
    }
    if let Some(filter) = handles.own_filter {
        filter.load()?;
    }
    Err(init_program::become_init(handles.program, &handles.report, command))
}

/// In the command's process: gives up what a step may not have, then executes. Returns only on failure.
pub(crate) fn become_command(
    spec: &RunSpec,
    handles: &Handles<'_>,
    user: &User,
    env: &[(String, String)],
) -> Report {
    if let Err(error) = give_up(spec, handles, user) {
        return Report::Broken(error.to_string());
    }
    let Some(name) = spec.args.first() else {
        return Report::NotStarted(String::new(), libc::ENOENT);
    };
    let path = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value.as_str());
    let program = match rootfs::find_program(name, path) {
        Ok(program) => program,
        Err(error) => {
            return Report::NotStarted(name.clone(), error.raw_os_error().unwrap_or(libc::ENOENT));
        }
    };
    let strings =
        |items: Vec<String>| items.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let args = strings(spec.args.clone());
    let env = strings(env.iter().map(|(key, value)| format!("{key}={value}")).collect());
    let (Ok(args), Ok(env)) = (args, env) else {
        return Report::NotStarted(name.clone(), libc::EINVAL);
    };
    let error = process::exec(&program, &args, &env);
    Report::NotStarted(name.clone(), error.raw_os_error().unwrap_or(libc::ENOEXEC))
}

fn give_up(spec: &RunSpec, handles: &Handles<'_>, user: &User) -> io::Result<()> {
    nix::unistd::setsid()?;
    if spec.streams == Streams::Terminal {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
    }
    set_usual_limits()?;
    for limit in &spec.limits {
        set_limit(limit)?;
    }
    if spec.insecure {
        insecure::keep_capabilities()?;
    } else if spec.in_chroot() {
        capability::bound_in_chroot();
    } else {
        capability::bound()?;
    }
    let filtered = !spec.in_chroot() || chroot::may_filter(user.uid == 0)?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    if let Some(filter) = handles.filter.filter(|_| filtered) {
        context(|| "load the system call filter".to_owned(), filter.load())?;
    }
    let groups = user.groups.iter().chain(&spec.groups).copied();
    let groups: Vec<Gid> = groups.map(Gid::from_raw).collect();
    drop_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    if spec.insecure {
        insecure::raise_capabilities()?;
    } else {
        capability::restrict(user.uid == 0, spec.in_chroot())?;
    }
    rustix::io::fcntl_setfd(&handles.report, rustix::io::FdFlags::CLOEXEC)?;
    Ok(())
}

/// The same for every caller: what systemd gives to services, and no core files.
fn set_usual_limits() -> io::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE)?;
    let hard = hard.min(NOFILE_HARD);
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(NOFILE_SOFT), hard)?;
    let (_, core) = nix::sys::resource::getrlimit(Resource::RLIMIT_CORE)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, core)?)
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "locks" => Resource::RLIMIT_LOCKS,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "rss" => Resource::RLIMIT_RSS,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "stack" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

fn set_limit(limit: &Limit) -> io::Result<()> {
    let Some(resource) = resource(&limit.name) else {
        let message = format!("there is no resource limit {:?}", limit.name);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    context(
        || format!("set the limit {}", limit.name),
        setrlimit(resource, value(limit.soft), value(limit.hard)),
    )
}
