//! V13, V14, V20 to V26: the processes of a step, what they hold and what they reach.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use crate::attack::Attack;
use crate::env::{kiln, text};
use crate::hostile::Tree;
use crate::probe;

/// An image `probe` that has the probe as a command.
pub(super) fn with_probe() -> Attack {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").folder("tmp").program("bin/probe", &probe::program());
    attack.image("probe", tree.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"));
    attack
}

/// V13: the working directory of a step is in its root.
#[test]
fn v13_a_working_directory_is_not_a_descriptor_of_the_host() {
    let attack = Attack::new();
    let read = "RUN ls ..; cat ../../../../../../../..SENTINEL/f; echo x > ../../../../../..SENTINEL/x; true";
    let known = "RUN test -d \"$(pwd -P)\" && test -e \"$(pwd -P)/.\"";
    let check = |place: &str| {
        let text = format!("FROM busybox\nWORKDIR {place}\n{known}\n{read}\n");
        let said = attack.build(&text, &[]);
        assert!(said.code == 0 || said.err.contains("working directory"), "{place}: {}", said.err);
    };
    (3..=30).for_each(|number| check(&format!("/proc/self/fd/{number}")));
    for place in ["/proc/1/cwd", "/proc/self/root/..", "/proc/self/cwd/../../..", "/proc/1/root"] {
        check(place);
    }
    attack.image("link", Tree::busybox().link("w", "/proc/self/fd/9").link("v", "/proc/self/fd"));
    for place in ["/w", "/v/8", "/v/9/x"] {
        let said = attack.build(&format!("FROM link\nWORKDIR {place}\n{read}\n"), &[]);
        assert_ne!(said.code, 0, "{place}: {}", said.err);
    }
}

/// V14: the program of the builder cannot be reached from a step, so not be written.
#[test]
fn v14_the_builders_program_cannot_be_written() {
    let attack = with_probe();
    let hash = || blake3::hash(&fs::read(kiln()).expect("readable"));
    let before = hash();
    let mut tree = Tree::new().folder("bin").folder("etc").link("bin/sh", "/proc/self/exe");
    tree = tree.program("script", b"#!/proc/self/exe\n");
    attack.image("hostile", tree);
    for text in [
        "FROM hostile\nRUN true\n",
        "FROM hostile\nRUN [\"/proc/self/exe\"]\n",
        "FROM hostile\nRUN [\"/script\"]\n",
    ] {
        attack.build(text, &["--no-cache"]).refused("did not complete");
    }
    let step =
        "for n in 1 2 3 4 5 self; do probe write /proc/$n/exe; done; readlink /proc/1/exe; true";
    let said = attack.build(&format!("FROM probe\nRUN {step}\n"), &[]).ok();
    assert!(!said.err.contains("write: done"), "{}", said.err);
    assert_eq!(before, hash(), "the builder's program is as it was");
}

/// V20: no capability is inheritable or ambient, also where the caller has some.
#[test]
fn v20_no_capability_is_inherited() {
    let attack = Attack::new();
    attack.world.file(
        "Dockerfile",
        "FROM busybox\nRUN grep Cap /proc/self/status\nUSER 1000\nRUN grep Cap /proc/self/status\n",
    );
    let some = "+net_raw,+sys_admin";
    let said = attack.build_by("setpriv", &["--inh-caps", some, "--ambient-caps", some]).ok();
    for set in ["CapInh:\t", "CapAmb:\t"] {
        let lines: Vec<_> = said.err.lines().filter(|line| line.contains(set)).collect();
        assert_eq!(lines.len(), 2, "{}", said.err);
        assert!(lines.iter().all(|line| line.ends_with("0000000000000000")), "{lines:?}");
    }
}

/// V21: control groups cannot be written.
#[test]
fn v21_control_groups_cannot_be_written() {
    let attack = Attack::new();
    let mut steps = String::new();
    for command in [
        "mkdir /sys/fs/cgroup/x",
        "echo 1 > /sys/fs/cgroup/cgroup.procs",
        "echo x > /sys/fs/cgroup/release_agent",
        "echo max > /sys/fs/cgroup/memory.max",
        "busybox mount -t cgroup2 none /tmp",
        "busybox mount -t cgroup -o memory none /tmp",
    ] {
        steps.push_str(&format!("RUN ! {{ {command}; }}\nRUN --network=none ! {{ {command}; }}\n"));
    }
    attack.build(&format!("FROM busybox\n{steps}"), &[]).ok();
}

/// V22: what tells about the host, or is a side channel, is hidden.
#[test]
fn v22_what_tells_about_the_host_is_hidden() {
    let attack = Attack::new();
    let masked = "for f in keys timer_list interrupts kcore latency_stats timer_stats sched_debug; do \
        if test -e /proc/$f; then test $(wc -c < /proc/$f) = 0 || exit 1; fi; done; \
        for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap; do \
        test -z \"$(ls -A $d 2>/dev/null)\" || exit 2; done; ! head -c1 /proc/kmsg";
    attack.build(&format!("FROM busybox\nRUN {masked}\nRUN --network=none {masked}\n"), &[]).ok();
}

/// V23: abstract sockets of the host belong to its network, which has to be granted.
#[test]
fn v23_abstract_sockets_of_the_host_are_out_of_reach() {
    let attack = with_probe();
    let name = format!("kiln-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("bound");
    let step = format!("probe connect {name}; grep {name} /proc/net/unix; true");
    let said = attack.build(&format!("FROM probe\nRUN --network=none {step}\n"), &[]).ok();
    assert!(!said.err.contains(&format!("@{name}")), "{}", said.err);
    said.told(" connect: ECONNREFUSED");
    let text = format!("FROM probe\nRUN --network=host {step}\n");
    attack.build(&text, &[]).refused("network.host is not allowed");
    attack.build(&text, &["--allow", "network.host"]).ok().told(" connect: done");
}

/// V26: other users of the machine cannot enter the store, whatever the umask.
#[test]
fn v26_the_store_is_closed_to_others() {
    for umask in ["000", "077"] {
        let attack = Attack::new();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(attack.world.path("."), open).expect("mode set");
        fs::remove_dir_all(attack.world.path("store")).expect("removed");
        attack.world.file("Dockerfile", "FROM busybox\nRUN chmod 4755 /bin/busybox && umask\n");
        let args = ["-c", "umask $0 && exec \"$@\"", umask];
        attack
            .checked(attack.world.started_by("sh", &args).args(["import", "image.tar", "busybox"]))
            .ok();
        let said = attack.build_by("sh", &args).ok();
        said.told(" 0022");
        let store = attack.world.path("store");
        let mode = fs::metadata(&store).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "umask {umask}: {mode:o}");
        let listed = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "find"])
            .args([&text(&store), "-perm", "-4000"])
            .output()
            .expect("setpriv is of util-linux");
        assert!(listed.stdout.is_empty(), "{}", String::from_utf8_lossy(&listed.stdout));
    }
}
