//! The builder of an ordinary user: it moves into a user namespace in which it is root, at its very
//! start, while it has one thread. Everything else is as for root.
//!
//! With the ranges of /etc/subuid and /etc/subgid (subuid(5)) it has the ids that images need, by
//! newuidmap(1) and newgidmap(1); without them its own id alone.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::ids::is_first;
use crate::sys::process::{self, Side};

/// How far a builder is from its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// No namespace can be made: RUN is refused, everything else works as far as the user may.
    Bare,
    /// Neither namespaces nor mounts: steps are in a chroot.
    Chroot,
    /// A user namespace with one id.
    SingleId,
    /// A user namespace with ranges of ids.
    Ranges,
    /// The machine's root, or what a container calls so with CAP_SYS_ADMIN.
    Root,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Ranges => "ranges",
            Self::SingleId => "single-id",
            Self::Chroot => "chroot",
            Self::Bare => "none",
        })
    }
}

/// Where the builder is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The tier.
    pub tier: Tier,
    /// What kept it from a better one, with the remedy.
    pub remarks: Vec<String>,
}

/// Moves this process to the best tier that is not above `most`. It must have one thread.
///
/// # Errors
/// The kernel's; that a namespace is forbidden is no error but a lower tier.
pub fn enter(most: Tier) -> io::Result<Entered> {
    let entered = |tier, remarks| Ok(Entered { tier, remarks });
    if most == Tier::Bare {
        return entered(Tier::Bare, Vec::new());
    }
    if most == Tier::Chroot {
        return Ok(without_namespaces("needs root with CAP_SYS_CHROOT, in a container".to_owned()));
    }
    let root = nix::unistd::geteuid().is_root();
    let admin = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN);
    if most == Tier::Root && root && admin.map_err(io::Error::other)? {
        return entered(Tier::Root, Vec::new());
    }
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let ranges = if most == Tier::SingleId {
        Err("single-id was asked for".to_owned())
    } else {
        ranges(uid, gid)
    };
    let maps = ranges.as_ref().ok();
    match namespace(uid, gid, maps) {
        Ok(true) => entered(Tier::Ranges, Vec::new()),
        Ok(false) => {
            let why = match ranges {
                Err(why) => why,
                Ok(_) => "newuidmap or newgidmap refused the range".to_owned(),
            };
            entered(Tier::SingleId, vec![format!("only one user id: {why}")])
        }
        Err(error) => Ok(without_namespaces(forbidden(&error))),
    }
}

/// What is left without them, and why it is not more.
fn without_namespaces(why: String) -> Entered {
    let able = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let root = nix::unistd::geteuid().is_root();
    let tier = if root && able(Capability::CAP_SYS_CHROOT) { Tier::Chroot } else { Tier::Bare };
    Entered { tier, remarks: vec![why] }
}

/// Why a user namespace cannot be made, and what would allow it.
fn forbidden(error: &io::Error) -> String {
    let setting = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let is = |path: &str, value: &str| setting(path).as_deref() == Some(value);
    let remedy = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for kiln with `userns,`"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl -w user.max_user_namespaces=15000"
    } else {
        "in a container: a seccomp profile that allows unshare and mount (docker run --security-opt seccomp=unconfined)"
    };
    format!("no user namespace: {error}; remedy: {remedy}")
}

/// The ids that this process may have: lines for newuidmap(1) and newgidmap(1).
struct Maps {
    uids: Vec<[u32; 3]>,
    gids: Vec<[u32; 3]>,
    /// A container's root writes the maps itself.
    direct: bool,
}

fn ranges(uid: u32, gid: u32) -> Result<Maps, String> {
    if uid == 0 {
        return own_ranges();
    }
    let name = user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    let read = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = subordinate(&text, name.as_deref(), uid);
        if found.is_empty() {
            let who = name.clone().unwrap_or_else(|| uid.to_string());
            return Err(format!(
                "{path} has no range for {who}; remedy: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}"
            ));
        }
        Ok(found)
    };
    let (uids, gids) = (read("/etc/subuid")?, read("/etc/subgid")?);
    for program in ["newuidmap", "newgidmap"] {
        if find(program).is_none() {
            return Err(format!("{program} is not installed; remedy: apt-get install uidmap"));
        }
    }
    Ok(Maps { uids: lines(uid, &uids), gids: lines(gid, &gids), direct: false })
}

/// Root of a container without CAP_SYS_ADMIN has the ids that the container has.
fn own_ranges() -> Result<Maps, String> {
    let able = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if !able(Capability::CAP_SETUID) || !able(Capability::CAP_SETGID) {
        return Err("this container's root has no CAP_SETUID and CAP_SETGID".to_owned());
    }
    let read = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        if is_first(&text) { vec![[0, 0, 0x8000_0000]] } else { mirrored(&text) }
    };
    let (uids, gids) = (read("/proc/self/uid_map"), read("/proc/self/gid_map"));
    Ok(Maps { uids, gids, direct: true })
}

/// The same ids as in a map of /proc/PID/uid_map.
fn mirrored(map: &str) -> Vec<[u32; 3]> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse().ok());
            let (inside, _, count) = (fields.next()??, fields.next()?, fields.next()??);
            Some([inside, inside, count])
        })
        .collect()
}

/// The user's own id becomes 0, its ranges follow.
fn lines(own: u32, ranges: &[(u32, u32)]) -> Vec<[u32; 3]> {
    let mut lines = vec![[0, own, 1]];
    let mut next = 1;
    for &(first, count) in ranges {
        lines.push([next, first, count]);
        next = next.saturating_add(count);
    }
    lines
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let entry = passwd
        .lines()
        .find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))?;
    entry.split(':').next().map(str::to_owned)
}

/// The ranges of a user in /etc/subuid: first id and how many, by name or number (subuid(5)).
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let own = |who: &str| Some(who) == name || who.parse() == Ok(uid);
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let who = fields.next()?;
            let first = fields.next()?.trim().parse().ok()?;
            let count = fields.next()?.trim().parse().ok()?;
            (own(who) && count > 0).then_some((first, count))
        })
        .collect()
}

fn find(program: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/bin", "/bin", "/usr/sbin"])
        .map(|folder| format!("{folder}/{program}"))
        .find(|candidate| Path::new(candidate).is_file())
}

/// Makes the namespace; gives whether it has the ranges. A child, which stays outside, writes the maps.
fn namespace(uid: u32, gid: u32, maps: Option<&Maps>) -> io::Result<bool> {
    let (waits, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let this = nix::unistd::getpid();
    let child = match process::fork()? {
        Side::Child => {
            drop(go);
            process::exit(i32::from(!maps.is_some_and(|maps| map(this, maps, &waits))))
        }
        Side::Parent(child) => child,
    };
    drop(waits);
    let made = unshare(CloneFlags::CLONE_NEWUSER);
    if made.is_ok() {
        // The child is gone by now where there are no maps to write.
        let _told = rustix::io::write(&go, b"1");
    }
    drop(go);
    let mapped = ended_well(child);
    made?;
    if !mapped {
        // Who has no range may map its own id, once groups are out of play (user_namespaces(7)).
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
    }
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group)?;
    setresuid(root, root, root)?;
    Ok(mapped)
}

fn ended_well(child: Pid) -> bool {
    loop {
        match waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            ended => return matches!(ended, Ok(WaitStatus::Exited(_, 0))),
        }
    }
}

/// In the child: waits until the namespace is there, writes both maps.
fn map(of: Pid, maps: &Maps, waits: &OwnedFd) -> bool {
    let mut byte = [0];
    if rustix::io::read(waits, &mut byte) != Ok(1) {
        return false;
    }
    if maps.direct {
        let write = |file: &str, lines: &[[u32; 3]]| {
            let text: String = lines.iter().map(|[a, b, c]| format!("{a} {b} {c}\n")).collect();
            fs::write(format!("/proc/{of}/{file}"), text).is_ok()
        };
        return write("uid_map", &maps.uids) && write("gid_map", &maps.gids);
    }
    let run = |program: &str, lines: &[[u32; 3]]| {
        let mut command = std::process::Command::new(program);
        command.arg(of.to_string()).args(lines.iter().flatten().map(u32::to_string));
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    run("newuidmap", &maps.uids) && run("newgidmap", &maps.gids)
}

#[cfg(test)]
mod tests {
    use super::{lines, mirrored, subordinate, user_name};

    #[test]
    fn ranges_are_read() {
        let text = "# c\nann:100000:65536\n1001:300000:10\nbob:1:x\nann:900000:5\nann:7:0\n";
        assert_eq!(subordinate(text, Some("ann"), 1000), [(100_000, 65536), (900_000, 5)]);
        assert_eq!(subordinate(text, None, 1001), [(300_000, 10)]);
        assert_eq!(subordinate(text, Some("bob"), 5), []);
        assert_eq!(lines(1000, &[(100, 3), (200, 4)]), [[0, 1000, 1], [1, 100, 3], [4, 200, 4]]);
        assert_eq!(mirrored(" 0 1000 1\n 1 100000 65536\n"), [[0, 0, 1], [1, 1, 65536]]);
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
    }
}
