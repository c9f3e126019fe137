//! Networks without pasta, for root: a pair of virtual interfaces, one in the step's network and one in
//! the machine's, which hides the step's address behind its own (nftables, by the programs `ip`, `nft`
//! and `nsenter`). Outwards all is forwarded; back in come answers alone; the machine itself is out of
//! reach but for its name servers.
//!
//! Everything is made, and removed, under one lock. A table of rules has the number of the keeper's
//! process in its name; those of keepers that are gone go with the next network. Where the machine
//! forwarded nothing, a table of its own sees to it that it forwards nothing else meanwhile, and the
//! last network turns forwarding off again.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use caps::{CapSet, Capability};
use nix::fcntl::{Flock, FlockArg};

use crate::ids;
use crate::program::find;

/// How the machine's interfaces of steps begin; behind it is the number of the keeper.
const INTERFACE: &str = "kiln";

/// How tables of rules begin.
const TABLE: &str = "kiln_";

/// The table that is there while forwarding is on for steps alone.
const GUARD: &str = "kiln_guard";

/// One lock for all builders of a machine.
const LOCK: &str = "/run/kiln-network.lock";

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Networks of four addresses that there can be at once; from 169.254.4.0 on, which nobody routes and
/// no cloud uses (RFC 3927).
const BLOCKS: u32 = 4096;

/// The machine's side of one network.
#[derive(Debug)]
pub(super) struct Link {
    keeper: u32,
}

/// Whether networks can be made so: asked once.
pub(super) fn is_possible() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let may =
            caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false);
        let found = ["ip", "nft", "nsenter"].iter().all(|name| find(name).is_some());
        may && ids::is_first(&map) && found && !is_fenced() && {
            let rules = rules(0, Ipv4Addr::LOCALHOST, false) + &guard();
            feed("nft", &["--check", "-f", "-"], &rules).is_ok()
        }
    })
}

/// Whether other rules refuse to forward: those of steps cannot overrule them.
fn is_fenced() -> bool {
    let chains = feed("nft", &["list", "chains"], "").unwrap_or_default();
    let fenced = |line: &str| line.contains("hook forward") && line.contains("policy drop");
    let legacy = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    chains.lines().any(fenced) || legacy.lines().any(|name| name == "filter")
}

impl Link {
    /// Connects the network of a process. The caller keeps the network: its number is in the names.
    pub(super) fn make(holder: i32, reaches_host: bool) -> io::Result<Self> {
        let link = Self { keeper: std::process::id() };
        let lock = lock()?;
        remove_stale();
        let made = link.connect(holder, reaches_host);
        drop(lock);
        if made.is_err() {
            link.remove();
        }
        made.map(|()| link)
    }

    fn connect(&self, holder: i32, reaches_host: bool) -> io::Result<()> {
        let name = format!("{INTERFACE}{}", self.keeper);
        let (ours, theirs) = free_block(self.keeper)?;
        let host = format!(
            "link add {name} type veth peer name eth0 netns {holder}\n\
             link set {name} addrgenmode none\n\
             address add {ours}/30 dev {name}\nlink set {name} up\n"
        );
        feed("ip", &["-batch", "-"], &host)?;
        feed("nft", &["-f", "-"], &rules(self.keeper, theirs, reaches_host))?;
        if fs::read_to_string(FORWARDING)?.trim() == "0" {
            feed("nft", &["-f", "-"], &guard())?;
            fs::write(FORWARDING, "1")?;
        }
        let step = format!(
            "address add {theirs}/30 dev eth0\nlink set eth0 up\nroute add default via {ours}\n"
        );
        let namespace = format!("--net=/proc/{holder}/ns/net");
        let ip = find("ip").ok_or(io::ErrorKind::NotFound)?;
        feed(
            "nsenter",
            &[namespace.as_ref(), ip.as_os_str(), "-batch".as_ref(), "-".as_ref()],
            &step,
        )?;
        Ok(())
    }

    /// Undoes it. What fails is left to the next network.
    pub(super) fn remove(&self) {
        let Ok(_lock) = lock() else { return };
        let _gone = feed("ip", &["link", "delete", &format!("{INTERFACE}{}", self.keeper)], "");
        let _gone =
            feed("nft", &["delete", "table", "inet", &format!("{TABLE}{}", self.keeper)], "");
        remove_stale();
    }
}

fn lock() -> io::Result<Flock<fs::File>> {
    let file = fs::File::options().create(true).append(true).open(LOCK)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

/// Removes the rules of keepers that are gone (their interfaces went with the steps' networks), and with
/// the last ones the forwarding.
fn remove_stale() {
    let tables = feed("nft", &["list", "tables", "inet"], "").unwrap_or_default();
    let names: Vec<&str> = tables
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table inet "))
        .filter(|name| name.starts_with(TABLE))
        .collect();
    let mut in_use = false;
    for name in names.iter().filter(|name| **name != GUARD) {
        let keeper = name.strip_prefix(TABLE).unwrap_or_default();
        if is_alive(keeper) {
            in_use = true;
        } else {
            let _gone = feed("nft", &["delete", "table", "inet", name], "");
        }
    }
    if !in_use && names.contains(&GUARD) && fs::write(FORWARDING, "0").is_ok() {
        let _gone = feed("nft", &["delete", "table", "inet", GUARD], "");
    }
}

/// Whether a process runs; one that has ended may have a number until somebody asks how (proc(5), "stat").
fn is_alive(process: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(process).join("stat"));
    stat.is_ok_and(|text| {
        let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}

/// What is forwarded for a step: everything outwards from its own address, answers back, nothing between
/// steps.
fn rules(keeper: u32, step: Ipv4Addr, reaches_host: bool) -> String {
    let name = format!("{INTERFACE}{keeper}");
    let host = if reaches_host { "accept" } else { "drop" };
    format!(
        "table inet {TABLE}{keeper} {{\n\
         chain outwards {{\n type nat hook postrouting priority 100;\n\
         ip saddr {step} masquerade\n}}\n\
         chain forwarded {{\n type filter hook forward priority 0;\n\
         iifname {name} ip saddr != {step} drop\n\
         iifname {name} meta nfproto ipv6 drop\n\
         iifname {name} oifname \"{INTERFACE}*\" drop\n\
         oifname {name} ct state != {{ established, related }} drop\n}}\n\
         chain received {{\n type filter hook input priority 0;\n\
         iifname {name} meta nfproto ipv6 drop\n\
         iifname {name} ip saddr != {step} drop\n\
         iifname {name} ip daddr 127.0.0.0/8 drop\n\
         iifname {name} ct state {{ established, related }} accept\n\
         iifname {name} udp dport 53 accept\n\
         iifname {name} tcp dport 53 accept\n\
         iifname {name} {host}\n}}\n}}\n"
    )
}

/// Nothing is forwarded but for steps.
fn guard() -> String {
    format!(
        "table inet {GUARD} {{\n chain forwarded {{\n type filter hook forward priority 0;\n\
         meta nfproto ipv4 iifname != \"{INTERFACE}*\" oifname != \"{INTERFACE}*\" drop\n}}\n}}\n"
    )
}

/// The addresses of both ends of a network that is not in use.
fn free_block(keeper: u32) -> io::Result<(Ipv4Addr, Ipv4Addr)> {
    let used = feed("ip", &["-4", "-oneline", "address"], "")?;
    let blocks = (0..BLOCKS).map(|offset| block((keeper + offset) % BLOCKS));
    let mut free = blocks.filter(|(ours, _)| !used.contains(&format!(" {ours}/30 ")));
    free.next().ok_or_else(|| io::Error::other("too many networks of steps"))
}

fn block(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(Ipv4Addr::new(169, 254, 4, 0)) + number * 4;
    (Ipv4Addr::from(first + 1), Ipv4Addr::from(first + 2))
}

/// Runs a program of the machine; gives what it said.
fn feed<S: AsRef<OsStr>>(program: &str, args: &[S], input: &str) -> io::Result<String> {
    let path = find(program).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{program} is not installed"))
    })?;
    let mut child = Command::new(path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that needs no input has gone, and says so by its exit code.
        let _closed = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.lines().next().unwrap_or_default();
    Err(io::Error::other(format!("{program}: {told}")))
}

#[cfg(test)]
mod tests {
    use super::{BLOCKS, block, is_alive};

    #[test]
    fn processes_that_have_ended_are_not_alive() {
        assert!(is_alive("self"));
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let number = child.id().to_string();
        while is_alive(&number) {
            std::thread::yield_now();
        }
        child.wait().expect("nobody has asked yet");
    }

    #[test]
    fn blocks_stay_in_their_range() {
        assert_eq!(block(0).0.to_string(), "169.254.4.1");
        assert_eq!(block(0).1.to_string(), "169.254.4.2");
        // Clouds answer at 169.254.169.254.
        assert_eq!(block(BLOCKS - 1).1.to_string(), "169.254.67.254");
    }
}
