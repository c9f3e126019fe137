//! X17, X22: callers in strange states.

use std::fs;
use std::net::TcpListener;

use crate::attack::{Attack, QUIET};
use crate::env::Said;

/// X17: descriptors that the builder inherits do not reach its steps.
#[test]
fn x17_inherited_descriptors_stay_outside() {
    let attack = Attack::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut script = format!(
        "exec 7</ 8</etc 9<>/dev/ptmx 10<>/dev/tcp/127.0.0.1/{port} 11<{}",
        attack.sentinel.path()
    );
    for number in 12..=26 {
        script.push_str(&format!(" {number}</"));
    }
    script.push_str("; exec \"$@\"");
    let read = "cat ../../../../../../..SENTINEL/f; ls /proc/self/fd; true";
    let read = read.replace("SENTINEL", &attack.sentinel.path());
    attack
        .world
        .file("Dockerfile", &format!("FROM busybox\nRUN ls /proc/self/fd | wc -l\nRUN {read}\n"));
    // Three standard ones, and the folder that `ls` reads.
    attack.build_by("bash", &["-c", &script, "bash"]).ok().told(" 4");
    for number in 3..=30 {
        let text = format!("FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN {read}\n");
        attack.world.file("Dockerfile", &text);
        let said = attack.build_by("bash", &["-c", &script, "bash"]);
        assert!(said.code == 0 || said.err.contains("working directory"), "{}", said.err);
    }
}

/// The signals that a step ignores, as a set of bits; without the two that a C library has for itself:
/// its `posix_spawn` leaves them ignored, and no ordinary program can change them.
fn ignored(log: &str) -> u64 {
    const OF_THE_C_LIBRARY: u64 = 0b11 << 31;
    let set = log.split("SigIgn:\t").nth(1).and_then(|rest| rest.lines().next());
    u64::from_str_radix(set.expect("it is told"), 16).expect("a number") & !OF_THE_C_LIBRARY
}

/// X22: however the caller is, the image is the same, or the error says what is wrong.
#[test]
fn x22_strange_callers_get_the_same_image() {
    let attack = Attack::new();
    attack.world.file("a", "1").file(
        "Dockerfile",
        "FROM busybox\nCOPY a /d/a\nRUN umask; ulimit -n; id; mkdir /n; echo x > /n/f\nRUN [\"/bin/grep\", \"Sig\", \"/proc/self/status\"]\n",
    );
    let digest = |said: Said, who: &str| {
        let said = said.ok().told(" 0022").told("SigBlk:\t0000000000000000");
        assert_eq!(ignored(&said.err), 0, "{who}: {}", said.err);
        let text = fs::read_to_string(attack.world.path("meta.json")).expect(who);
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        document["containerimage.digest"].as_str().expect("a digest").to_owned()
    };
    let build = |program: &str, args: &[&str]| {
        let mut command = attack.world.started_by(program, args);
        command.args(["build", "--progress", "plain", QUIET, "--no-cache"]);
        command.args(["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--metadata-file"]);
        command.arg(attack.world.path("meta.json")).args(["-o", "type=oci,dest=/dev/null"]);
        attack.checked(command.arg(attack.world.path("ctx")))
    };
    let plain = digest(build("env", &[]), "plain");
    for (program, args) in [
        ("sh", &["-c", "umask 000 && exec \"$@\"", "sh"][..]),
        ("sh", &["-c", "umask 077 && exec \"$@\"", "sh"]),
        ("sh", &["-c", "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"", "sh"]),
        ("sh", &["-c", "ulimit -c unlimited; ulimit -s 1024; exec \"$@\"", "sh"]),
        ("env", &["-u", "HOME", "-u", "TMPDIR", "LANG=xx_YY.broken", "LC_ALL=1"]),
        ("env", &["TMPDIR=/nowhere/at/all"]),
        ("env", &["--ignore-signal=PIPE,TERM,USR1,CHLD"]),
        ("env", &["--block-signal=PIPE,TERM,USR1,INT"]),
        ("nice", &["-n", "19"]),
        ("taskset", &["-c", "0"]),
        ("setpriv", &["--groups", "4,999"]),
        ("setpriv", &["--no-new-privs"]),
        ("setpriv", &["--inh-caps", "+sys_admin", "--ambient-caps", "+sys_admin"]),
        ("unshare", &["--pid", "--fork", "--mount-proc"]),
    ] {
        assert_eq!(digest(build(program, args), program), plain, "{program} {args:?}");
    }
    for (limit, clear) in [("--nofile=16", "open files"), ("--fsize=4096", "disk I/O error")] {
        let said = build("prlimit", &[limit]);
        assert!(said.code != 0, "{limit}");
        assert!(said.err.contains(clear), "{limit}: {}", said.err);
    }
}
