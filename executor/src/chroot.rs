//! A step where neither namespaces nor mounts are allowed: its root is entered by chroot(2), and that is
//! nearly all that is around it.
//!
//! It has the builder's user ids, network and processes around it. What keeps it in: it has neither
//! CAP_SYS_CHROOT, with which it could leave its root, nor CAP_MKNOD, with which it could reach disks,
//! no open directory outside, and nobody can be traced by it who has more capabilities. There is no
//! pid namespace to end with it: its keeper, which adopts every orphan (`PR_SET_CHILD_SUBREAPER`), looks
//! for all descendants in /proc and ends them, also when the builder is gone.

mod places;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::copied;
use crate::init::{self, Failed, Handles, Report};
use crate::rootfs::context;
use crate::spec::{Network, RunSpec};
use crate::sys::process::{self, Side};
use crate::user::User;

pub(crate) use places::Places;

/// Ends everything of the step: what SIGKILL is elsewhere, for a keeper that has to do that itself.
pub(crate) const END: Signal = Signal::SIGUSR2;

/// Between two looks at processes that are on their way out.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How often a builder looks for what a keeper left; longer than any process takes to die.
const LOOKS: u32 = 500;

/// Whether a step loads its own filter of system calls; sets what the kernel asks for before.
///
/// Without CAP_SYS_ADMIN a filter needs `no_new_privs`. That takes nothing from root. For others it
/// would make programs with the setuid bit useless: where the container has a filter, that one is
/// theirs as well.
pub(crate) fn may_filter(root: bool) -> io::Result<bool> {
    let admin = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN);
    let admin = admin.map_err(io::Error::other)?;
    if !root && !admin && process::has_filter() {
        return Ok(false);
    }
    if root || !admin {
        prctl::set_no_new_privs()?;
    }
    Ok(true)
}

/// Why a step cannot run this way, if it asks for what only namespaces give.
pub(crate) fn refusal(spec: &RunSpec) -> Option<&'static str> {
    if spec.network == Network::None {
        return Some(
            "a step without network needs a network namespace, which --isolation=chroot has not",
        );
    }
    spec.insecure
        .then_some("--security=insecure needs namespaces, which --isolation=chroot has not")
}

/// The keeper, forked by the builder: starts the command, waits for it and ends what is left. Never
/// returns.
pub(crate) fn outer(spec: &RunSpec, handles: &Handles<'_>) -> ! {
    let status = match prepare(spec, handles) {
        Ok(Side::Child) => command(spec, handles),
        Ok(Side::Parent(command)) => keep(handles, command),
        Err(error) => init::report(handles, &Report::Broken(error.to_string())),
    };
    process::exit(status)
}

fn prepare(spec: &RunSpec, handles: &Handles<'_>) -> io::Result<Side> {
    process::reset_signals()?;
    signals().thread_block()?;
    prctl::set_pdeathsig(END)?;
    if nix::unistd::getppid() != handles.builder {
        process::exit(1);
    }
    prctl::set_child_subreaper(true)?;
    prctl::set_dumpable(false)?;
    init::detach(spec, handles, &[])?;
    process::fork()
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGCHLD, END].into_iter().collect()
}

/// In the command's process.
fn command(spec: &RunSpec, handles: &Handles<'_>) -> i32 {
    let outcome = match enter(spec) {
        Ok((user, env)) => init::become_command(spec, handles, &user, &env),
        Err(Failed::User(why)) => Report::NoUser(why),
        Err(Failed::Io(error) | Failed::Overlay(error)) => Report::Broken(error.to_string()),
    };
    init::report(handles, &outcome)
}

fn enter(spec: &RunSpec) -> Result<(User, Vec<(String, String)>), Failed> {
    process::reset_signals()?;
    prctl::set_dumpable(false)?;
    std::env::set_current_dir(copied::root_path(&spec.work))?;
    context(|| "chroot".to_owned(), nix::unistd::chroot("."))?;
    std::env::set_current_dir("/")?;
    let user = init::find_user(&spec.user)?;
    let env = init::environment(spec, &user);
    init::working_directory(&spec.cwd, &user)?;
    Ok((user, env))
}

/// Waits for the command; then nothing of the step is left.
fn keep(handles: &Handles<'_>, command: Pid) -> i32 {
    // The pipes belong to the command: when all that have them are gone, the log ends.
    let quiet = nix::unistd::dup2_stdout(io::stdin()).and(nix::unistd::dup2_stderr(io::stdin()));
    let ended = if quiet.is_ok() { watch(command) } else { Report::Killed(libc::SIGKILL) };
    end_all();
    init::report(handles, &ended)
}

fn watch(command: Pid) -> Report {
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == command => return Report::Exited(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                    return Report::Killed(signal as i32);
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return Report::Killed(libc::SIGKILL),
            }
        }
        match signals().wait() {
            Ok(Signal::SIGTERM) => send(&descendants(), Signal::SIGTERM),
            Ok(signal) if signal == END => return Report::Killed(libc::SIGKILL),
            _ => {}
        }
    }
}

fn send(to: &[Pid], signal: Signal) {
    for pid in to {
        // It may have ended this moment.
        let _ended = kill(*pid, signal);
    }
}

/// Ends all descendants: stopped first, so that none makes new ones meanwhile.
fn end_all() {
    loop {
        let mut stopped = HashSet::new();
        loop {
            let found = descendants();
            let new: Vec<Pid> = found.into_iter().filter(|pid| stopped.insert(*pid)).collect();
            if new.is_empty() {
                break;
            }
            send(&new, Signal::SIGSTOP);
        }
        send(&stopped.into_iter().collect::<Vec<_>>(), Signal::SIGKILL);
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(nix::errno::Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) => break,
                _ => {}
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// All processes below this one, by /proc/PID/stat.
fn descendants() -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in numbers() {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = parent(&text) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![nix::unistd::getpid().as_raw()];
    while let Some(pid) = pending.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(below.iter().copied().map(Pid::from_raw));
        pending.extend(below);
    }
    found
}

/// The parent in the text of /proc/PID/stat; the name before it may hold anything. Zombies are nobody.
fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z").then_some(parent)
}

fn numbers() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Ends processes whose root is a step's. The keeper has ended them, unless the step killed it.
pub(crate) fn sweep(work: &Path) {
    let root = copied::root_path(work);
    for _ in 0..LOOKS {
        let of_step = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|path| path.starts_with(&root))
        };
        let left: Vec<Pid> = numbers().filter(of_step).map(Pid::from_raw).collect();
        if left.is_empty() {
            return;
        }
        send(&left, Signal::SIGKILL);
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn parents_are_read_behind_any_name() {
        assert_eq!(parent("7 (sh) S 3 7 7 0"), Some(3));
        assert_eq!(parent("7 (a) S 9 (b) R 4 7"), Some(4));
        assert_eq!(parent("7 (sh) Z 3 7"), None);
        assert_eq!(parent(""), None);
    }
}
