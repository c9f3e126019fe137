//! V24, X18: terminals and pipes of the caller.

use std::fs::File;
use std::io::Read;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::attack::Attack;
use crate::env::{Said, said};
use crate::hostile::Tree;
use crate::probe;

/// V24, X18: a step cannot type into the terminal that the builder runs in.
#[test]
fn x18_v24_a_step_has_no_terminal_of_the_host() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").program("bin/probe", &probe::program());
    attack.image("probe", tree.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"));
    let step = "for n in 0 1 2; do probe sti $n; probe sti-high $n; probe linux $n; done; probe sti-tty; ls /dev/pts; test -t 0 || test -t 1 || echo no-terminal";
    attack.world.file("Dockerfile", &format!("FROM probe\nRUN {step}\n"));
    let pty = openpty(None, None).expect("a terminal");
    let mut raw = tcgetattr(&pty.slave).expect("its settings");
    cfmakeraw(&mut raw);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).expect("set");
    let end = || pty.slave.try_clone().expect("a copy");
    let mut command = attack.world.started_by("setsid", &["--ctty", "--wait"]);
    command.args(["build", "--progress", "plain", "--network=none", "ctx"]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it starts");
    drop(command);
    let mut master = File::from(pty.master);
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // Reading ends with an error when nobody has the terminal open any more.
        let _closed = master.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = child.wait().expect("it ends");
    fcntl(&pty.slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set");
    let typed = nix::unistd::read(&pty.slave, &mut [0; 16]);
    drop(pty.slave);
    let text = reader.join().expect("read");
    assert!(status.success(), "{text}");
    assert_eq!(typed, Err(Errno::EAGAIN), "somebody typed into the terminal");
    assert!(text.contains("no-terminal") && text.contains("sti-tty: ENXIO"), "{text}");
    for word in ["sti", "sti-high", "linux"] {
        assert!(!text.contains(&format!("{word}: done")), "{text}");
    }
    attack.sentinel.is_unharmed(&attack.world, &Said { code: 0, out: String::new(), err: text });
}

/// X18: closed or broken standard streams end a build in order, without a panic.
#[test]
fn x18_closed_streams_are_no_panic() {
    let attack = Attack::new();
    attack
        .world
        .file("Dockerfile", "FROM busybox\nRUN busybox seq 60000; ls /proc/self/fd | wc -l\n");
    for (streams, codes) in [
        ("\"$@\" <&-", &[0][..]),
        ("\"$@\" >&-", &[0]),
        ("\"$@\" 2>&-", &[0]),
        ("\"$@\" <&- >&- 2>&-", &[0]),
        ("\"$@\" 2>&1 | true; exit ${PIPESTATUS[0]}", &[0, 1, 141]),
        ("\"$@\" 2>&1 | sleep 1; exit ${PIPESTATUS[0]}", &[0, 1, 141]),
        ("\"$@\" 2>/dev/full", &[0, 1, 3]),
        ("\"$@\" -o - >/dev/full", &[1, 3]),
        // Rust's start-up puts /dev/null where a standard stream is closed.
        ("\"$@\" -o - >&-", &[0, 1, 3]),
    ] {
        let mut command = attack.world.started_by("bash", &["-c", streams, "bash"]);
        command.args(["build", "--progress", "plain", "--network=none", "--no-cache", "ctx"]);
        let said = said(&crate::attack::ended(&mut command));
        assert!(codes.contains(&said.code), "{streams}: {}", said.code);
        assert!(!said.err.contains("panicked"), "{streams}");
        attack.sentinel.is_unharmed(&attack.world, &said);
    }
}
