//! Several processes, and processes that die.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::World;

/// Whether a process runs whose command line holds a word.
fn runs(word: &str) -> bool {
    let numbers = fs::read_dir("/proc").expect("readable").flatten();
    numbers.into_iter().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
        !own && line.windows(word.len()).any(|window| window == word.as_bytes())
    })
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..300 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("waited in vain: {what}");
}

fn no_mount_is_left(world: &World) {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(&world.path("store").display().to_string()), "a mount is left");
}

#[test]
fn two_builds_at_once_run_each_step_once() {
    let world = World::new();
    let step = "RUN --mount=type=cache,id=count,target=/count echo x >> /count/file && sleep 1";
    world.busybox().file("Dockerfile", &format!("FROM busybox\n{step}\nRUN --mount=type=cache,id=count,target=/count wc -l < /count/file\n"));
    let start = || {
        let mut command = world.command();
        command
            .args(["build", "--progress", "plain", "ctx"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().expect("starts")
    };
    let both = [start(), start()];
    let outputs = both.map(|child| child.wait_with_output().expect("ends"));
    let mut texts = String::new();
    for output in &outputs {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        texts.push_str(&text);
    }
    assert!(texts.lines().any(|line| line.ends_with(" 1")), "the step ran once:\n{texts}");
    assert!(texts.contains("CACHED"), "the other build took the result:\n{texts}");
}

#[test]
fn a_killed_build_leaves_a_store_that_works() {
    let world = World::new();
    let marker = "4711.25";
    world
        .busybox()
        .file("Dockerfile", &format!("FROM busybox\nRUN echo kept > /k\nRUN sleep {marker}\n"));
    let mut child = Command::new(crate::env::kiln());
    child.env("KILN_ROOT", world.path("store")).current_dir(world.path("."));
    child.args(["build", "--progress", "plain", "ctx"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().expect("starts");
    wait_until("the step runs", || runs(&format!("sleep\0{marker}")));
    child.kill().expect("killed");
    child.wait().expect("reaped");
    wait_until("the step is gone", || !runs(&format!("sleep\0{marker}")));
    no_mount_is_left(&world);
    world.file("Dockerfile", "FROM busybox\nRUN echo kept > /k\nRUN cat /k\n");
    let next = world.build(&[]).ok();
    assert!(next.err.contains("CACHED") && next.err.contains(" kept"), "{}", next.err);
}

#[test]
fn ctrl_c_stops_cleanly() {
    let world = World::new();
    let marker = "4712.25";
    world.busybox().file("Dockerfile", &format!("FROM busybox\nRUN sleep {marker}\n"));
    let mut command = world.command();
    command
        .args(["build", "--progress", "plain", "ctx"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("starts");
    wait_until("the step runs", || runs(&format!("sleep\0{marker}")));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("signalled");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert!(!runs(&format!("sleep\0{marker}")), "the step is gone");
    no_mount_is_left(&world);
}
