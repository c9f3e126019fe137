//! X04 to X08: how steps and builds end, and that nothing of them goes on.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attack::{Attack, QUIET, wait_until};
use crate::env::{Said, said};
use crate::hostile::Tree;

/// Whether a process runs whose command line is this.
fn runs(line: &str) -> bool {
    let line = line.replace(' ', "\0");
    let mut processes = fs::read_dir("/proc").expect("readable").flatten();
    processes.any(|entry| {
        let found = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found.windows(line.len()).any(|window| window == line.as_bytes())
    })
}

/// Starts a build and waits for a process of its step.
fn start(attack: &Attack, step: &str, line: &str, args: &[&str]) -> Child {
    attack.world.file("Dockerfile", &format!("FROM busybox\nRUN {step}\n"));
    let mut command = attack.world.command();
    command.args(["build", "--progress", "plain", QUIET]).args(args).arg("ctx");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    wait_until("the step runs", || runs(line));
    child
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("signalled");
}

/// Waits for its end; nothing is left.
fn end(attack: &Attack, child: Child, line: &str) -> Said {
    let said = said(&child.wait_with_output().expect("it ends"));
    assert!(!runs(line), "{line} goes on");
    attack.sentinel.is_unharmed(&attack.world, &said);
    said
}

/// X04: when the builder is killed its step goes too, with its mounts.
#[test]
fn x04_a_killed_builder_takes_its_step_along() {
    let attack = Attack::new();
    let line = "sleep 4404.1";
    let step = "(setsid sleep 4404.2 &) ; trap '' TERM INT HUP; sleep 4404.1";
    let child = start(&attack, &step.replace("setsid", "busybox setsid"), line, &[]);
    let pid = child.id();
    signal(&child, Signal::SIGKILL);
    child.wait_with_output().expect("reaped");
    wait_until("the step is gone", || !runs("sleep 4404.1") && !runs("sleep 4404.2"));
    wait_until("its processes are gone", || !attack.sentinel.runs_in(&attack.world));
    let said = attack.build("FROM busybox\nRUN echo works\n", &[]).ok();
    said.told(" works");
    let groups = crate::env::folders(std::path::Path::new("/sys/fs/cgroup"));
    let left: Vec<_> = groups
        .iter()
        .filter(|group| {
            group
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&format!("kiln-{pid}-")))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// X05: Ctrl-C lets a step end by itself; the second one does not wait.
#[test]
fn x05_interrupts_stop_a_build() {
    let attack = Attack::new();
    let step = "trap 'echo asked; exit 0' TERM; sleep 4405.1 & wait";
    let child = start(&attack, step, "sleep 4405.1", &[]);
    signal(&child, Signal::SIGINT);
    let said = end(&attack, child, "sleep 4405.1");
    assert_eq!(said.code, 130, "{}", said.err);
    assert!(said.err.contains(" asked"), "{}", said.err);
    let step = "trap '' TERM INT; sleep 4405.2";
    let child = start(&attack, step, "sleep 4405.2", &["--stop-timeout", "600"]);
    signal(&child, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(runs("sleep 4405.2"), "the first one waits");
    signal(&child, Signal::SIGINT);
    let code = said_code(child);
    assert_eq!(code, 130);
    wait_until("the step is gone", || !runs("sleep 4405.2"));
}

fn said_code(child: Child) -> i32 {
    said(&child.wait_with_output().expect("it ends")).code
}

/// X06: a step that ignores signals is killed after its time.
#[test]
fn x06_a_deaf_step_is_killed() {
    let attack = Attack::new();
    let step = "trap '' TERM INT HUP; sleep 4406.1; sleep 4406.2";
    let child = start(&attack, step, "sleep 4406.1", &["--stop-timeout", "1"]);
    signal(&child, Signal::SIGINT);
    let said = end(&attack, child, "sleep 4406.");
    assert_eq!(said.code, 130, "{}", said.err);
}

/// X07: a step ends with its first process; what it left behind is killed, its layer is committed.
#[test]
fn x07_what_a_step_leaves_running_is_killed() {
    let attack = Attack::new();
    let step = "(busybox setsid sleep 4407.1 &) ; (trap '' HUP TERM; sleep 4407.1 &) ; touch /made";
    let text = format!("FROM busybox\nRUN {step}\nRUN ls /made\n");
    attack.build(&text, &[]).ok().told(" /made");
    assert!(!runs("sleep 4407.1"));
    let again = attack.build(&text, &[]).ok();
    assert_eq!(again.err.matches("CACHED").count(), 2, "{}", again.err);
}

/// X08: a step's failure says what it was, and leaves no core file.
#[test]
fn x08_failures_say_their_reason() {
    let attack = Attack::new();
    let other: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0\x01\0\0\0";
    let tree = Tree::busybox().folder("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let tree = tree.program("bin/other", other).file("bin/plain", "x");
    attack.image("odd", tree.program("bin/lost", b"#!/no/such/interpreter\n"));
    for (step, reasons) in [
        ("kill -9 $$", &["killed by signal 9 SIGKILL"][..]),
        ("kill -SEGV $$", &["killed by signal 11 SIGSEGV"]),
        ("exit 255", &["exit code: 255"]),
        ("[\"/bin/none\"]", &["/bin/none", "no such file or directory"]),
        ("[\"none\"]", &["executable file not found in $PATH"]),
        ("[\"/bin/plain\"]", &["permission denied"]),
        ("[\"/bin\"]", &["permission denied"]),
        ("[\"/bin/other\"]", &["exec format error"]),
        ("[\"/bin/lost\"]", &["/bin/lost", "no such file or directory", "interpreter"]),
    ] {
        let said = attack.build(&format!("FROM odd\nRUN {step}\n"), &["--ulimit", "core=-1"]);
        assert_eq!(said.code, 1, "{step}: {}", said.err);
        for reason in reasons {
            said.refused(reason);
        }
    }
    let all = crate::env::files(&attack.world.path(""));
    // What a step itself leaves in its files is kept with them, for `kiln debug`.
    let kept = attack.world.path("store/layers");
    let core = all.iter().find(|path| path.ends_with("core") && !path.starts_with(&kept));
    assert_eq!(core, None);
}
