//! Carries out a [`RunSpec`]: the only orchestration, a flat list of what happens.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};
use thiserror::Error;

use crate::cancel::Cancel;
use crate::cgroup::{Group, Hit};
use crate::chroot;
use crate::copied::{self, Copied};
use crate::fused::Fused;
use crate::ids::{self, Namespace};
use crate::init::{self, Handles, Joined, Report};
use crate::init_program;
use crate::net;
use crate::seccomp::Filter;
use crate::spec::{Network, RunSpec, Snapshotter, Streams, SystemCalls};
use crate::stdio;
use crate::sys::process::{self, Side};
use crate::terminal::Typing;
use crate::trust;

pub use crate::stdio::{LogSink, Stream};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Badly, after the kernel killed a process of it: it used more memory than its limit.
    OutOfMemory,
    /// Badly, after it was refused a process or thread: it had as many as its limit.
    TooManyProcesses,
}

/// Why there is no [`Exit`].
#[derive(Debug, Error)]
pub enum RunError {
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The program cannot be executed.
    #[error("exec: \"{program}\": {reason}")]
    NotStarted {
        /// What should have been executed.
        program: String,
        /// The reason, in runc's words.
        reason: String,
    },
    /// The image has no such user.
    #[error("{0}")]
    NoUser(String),
    /// The sandbox could not be made.
    #[error("cannot set up the sandbox: {0}")]
    Sandbox(String),
    /// Overlay, or what stands in for it, cannot be had for this step: nothing of it is left.
    #[error("cannot set up the sandbox: {0}")]
    NoOverlay(String),
    /// Somebody killed the step's first process, or the kernel did.
    #[error("the step's first process was killed from outside")]
    HelperDied,
    /// The builder's own resources failed.
    #[error("cannot run a step: {0}")]
    Io(#[from] io::Error),
}

/// Runs a step. When it returns, nothing of the step is left but its upper directory.
///
/// # Errors
/// See [`RunError`]; what the step wrote until then is in the upper directory, for the caller to
/// keep or remove.
pub fn run(spec: &RunSpec, log: &dyn LogSink, cancel: &Cancel) -> Result<Exit, RunError> {
    if cancel.is_cancelled() {
        return Err(RunError::Cancelled);
    }
    let exit = match spec.snapshotter {
        Snapshotter::Overlay => carry_out(spec, log, cancel)?,
        Snapshotter::FuseOverlayfs => in_fuse(spec, log, cancel)?,
        Snapshotter::Copy => {
            let (copied, spec) = Copied::make(spec)?;
            let exit = carry_out(&spec, log, cancel)?;
            copied.finish(&spec)?;
            exit
        }
    };
    if let Some(given) = &spec.ca_certs {
        trust::forget(given, &spec.upper)?;
    }
    Ok(exit)
}

/// Runs a step whose files fuse-overlayfs puts together.
fn in_fuse(spec: &RunSpec, log: &dyn LogSink, cancel: &Cancel) -> Result<Exit, RunError> {
    let unfit = |error: io::Error| match error.kind() {
        io::ErrorKind::Unsupported => RunError::NoOverlay(error.to_string()),
        _ => RunError::Io(error),
    };
    let exit = Fused::make(spec).map_err(unfit).and_then(|fused| {
        let exit = carry_out(&fused.spec, log, cancel)?;
        fused.finish().map_err(unfit)?;
        Ok(exit)
    });
    if let Err(RunError::NoOverlay(_)) = &exit {
        // Another snapshotter begins anew.
        copied::clear(&spec.work)?;
        copied::clear(&spec.upper)?;
    }
    exit
}

/// Runs a step whose files are there.
fn carry_out(spec: &RunSpec, log: &dyn LogSink, cancel: &Cancel) -> Result<Exit, RunError> {
    if let Some(why) = chroot::refusal(spec).filter(|_| spec.in_chroot()) {
        return Err(RunError::Sandbox(why.to_owned()));
    }
    let group = group(spec)?;
    let (ends, pipes) = stdio::open(spec.streams)?;
    let (answer, report) = pipe()?;
    let handles = Handles {
        ends,
        report,
        filter: filter(spec)?,
        own_filter: if spec.insecure { None } else { Some(Filter::standard(false)?) },
        program: init_program::file()?,
        builder: nix::unistd::getpid(),
        namespace: namespace(spec)?,
        network: network(spec)?,
        group,
    };
    let child = match process::fork()? {
        Side::Child if spec.in_chroot() => chroot::outer(spec, &handles),
        Side::Child => init::outer(spec, &handles),
        Side::Parent(child) => child,
    };
    // The pipes' ends and the filters are the step's; the groups go when it has ended.
    let (group, network) = handles.release();
    let terminal = spec.streams == Streams::Terminal;
    let typing = terminal.then(|| Typing::begin(&pipes.out)).transpose()?;
    let end = if spec.in_chroot() { chroot::END } else { Signal::SIGKILL };
    let drained = stdio::drain(&pipes, log, cancel, spec.grace, |signal| {
        // It is not reaped yet, so the number is still its own; it may have ended already.
        let _ended = kill(child, if signal == Signal::SIGKILL { end } else { signal });
    });
    if drained.is_err() {
        let _ended = kill(child, end);
    }
    reap(child);
    if spec.in_chroot() {
        chroot::sweep(&spec.work);
    }
    drop(typing);
    drained?;
    if let Joined::Connected(lease) = &network
        && let Some(why) = lease.failure()
    {
        log.write(Stream::Err, format!("note: {why}\n").as_bytes());
    }
    let answer = read_all(&answer)?;
    if cancel.is_cancelled() {
        return Err(RunError::Cancelled);
    }
    let exit = outcome(&answer)?;
    Ok(match group.and_then(|group| group.hit()) {
        Some(_) if exit == Exit::Code(0) => exit,
        Some(Hit::Memory) => Exit::OutOfMemory,
        Some(Hit::Pids) => Exit::TooManyProcesses,
        None => exit,
    })
}

/// The system call filter of the step.
fn filter(spec: &RunSpec) -> io::Result<Option<&Filter>> {
    match &spec.system_calls {
        _ if spec.insecure => Ok(None),
        SystemCalls::Standard { multiplexed_sockets } => {
            Filter::standard(*multiplexed_sockets).map(Some)
        }
        SystemCalls::Filtered(filter) => Ok(Some(filter)),
        SystemCalls::Unfiltered => Ok(None),
    }
}

/// The network; that of the machine where no other can be made ([`crate::net::missing`]).
fn network(spec: &RunSpec) -> Result<Joined, RunError> {
    match spec.network {
        _ if spec.in_chroot() => Ok(Joined::Host),
        Network::None => Ok(Joined::New),
        Network::Host => Ok(Joined::Host),
        Network::Default if net::missing().is_some() => Ok(Joined::Host),
        Network::Default => net::take(&spec.store, spec.reaches_host())
            .map(Joined::Connected)
            .map_err(|error| RunError::Sandbox(format!("make a network: {error}"))),
    }
}

/// The user namespace, where the step has its own.
fn namespace(spec: &RunSpec) -> Result<Option<&'static Namespace>, RunError> {
    if spec.insecure || spec.in_chroot() || !spec.own_ids {
        return Ok(None);
    }
    let made = ids::namespace(&spec.store);
    made.map(Some).map_err(|error| RunError::Sandbox(error.to_string()))
}

/// Why steps cannot have ids of their own here; `None` if they can. `store` is that of the specification.
pub fn own_ids_missing(store: &Path) -> Option<String> {
    ids::namespace(store).err().map(|error| error.to_string())
}

/// The step's own control group, where one was asked for.
fn group(spec: &RunSpec) -> Result<Option<Group>, RunError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let parent = spec.cgroup_parent.as_deref();
    if parent.is_none() && spec.resources.is_unbounded() {
        return Ok(None);
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("kiln-{}-{number}", std::process::id());
    Group::new(parent, &name, &spec.resources)
        .map(Some)
        .map_err(|error| RunError::Sandbox(error.to_string()))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

fn reap(child: Pid) {
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
}

fn read_all(fd: &OwnedFd) -> io::Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn outcome(answer: &str) -> Result<Exit, RunError> {
    // A command that could not be started says so before pid 1 tells its exit: the first line counts.
    match Report::parse(answer.lines().next().unwrap_or_default()) {
        Some(Report::Exited(code)) => Ok(Exit::Code(code)),
        Some(Report::Killed(signal)) => Ok(Exit::Signal(signal)),
        Some(Report::NotStarted(program, errno)) => {
            let reason = match errno {
                libc::ENOENT if program.contains('/') => "no such file or directory".to_owned(),
                libc::ENOENT => "executable file not found in $PATH".to_owned(),
                libc::EACCES => "permission denied".to_owned(),
                libc::ENOEXEC => "exec format error".to_owned(),
                errno => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
            };
            Err(RunError::NotStarted { program, reason })
        }
        Some(Report::NoUser(why)) => Err(RunError::NoUser(why)),
        Some(Report::NoOverlay(why)) => Err(RunError::NoOverlay(why)),
        Some(Report::Broken(why)) => Err(RunError::Sandbox(why)),
        None if answer.is_empty() => Err(RunError::HelperDied),
        None => Err(RunError::Sandbox(format!("it ended without a report: {answer:?}"))),
    }
}
