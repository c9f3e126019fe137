//! F28 to F32, F43: processes that are killed or stopped, and what others do then.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, booted, heals, no_mount_is_left, set_round};
use crate::env::{Said, World, said};
use crate::registry::Registry;

/// A build in the background that is killed when a test fails.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self(Some(command.spawn().expect("starts")))
    }

    /// `kiln build` of a folder with this Dockerfile.
    fn build(world: &World, folder: &str, dockerfile: &str) -> Self {
        fs::create_dir_all(world.path(folder)).expect("made");
        fs::write(world.path(folder).join("Dockerfile"), dockerfile).expect("written");
        // Who started the tests in the background of a shell ignores some, and that is inherited.
        let mut command = world.started_by("env", &["--default-signal"]);
        Self::start(command.args(["build", "--progress=plain", folder]))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it has not ended")
    }

    fn pid(&mut self) -> u32 {
        self.child().id()
    }

    fn signal(&mut self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// What it said until a line ends with this; the rest is lost.
    fn says(&mut self, word: &str) -> String {
        let pipe = self.child().stderr.as_mut().expect("piped");
        let (mut told, mut byte) = (Vec::new(), [0]);
        while pipe.read(&mut byte).expect("readable") == 1 {
            told.push(byte[0]);
            if byte[0] == b'\n' && told.trim_ascii_end().ends_with(word.as_bytes()) {
                return String::from_utf8_lossy(&told).into_owned();
            }
        }
        panic!("it never said {word}: {}", String::from_utf8_lossy(&told));
    }

    fn end(mut self) -> Said {
        let child = self.0.take().expect("it has not ended");
        said(&child.wait_with_output().expect("ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, signal).expect("signalled");
}

/// A process and all below it, with their command lines.
fn family(pid: u32) -> Vec<(u32, String)> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found = vec![(pid, String::from_utf8_lossy(&line).replace('\0', " "))];
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).flat_map(family),
        );
    }
    found
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Folders in `tmp/` of processes that are there, or dead.
fn folders_in_tmp(world: &World) -> usize {
    let entries = fs::read_dir(world.path("store/tmp")).expect("readable").flatten();
    entries.filter(|entry| entry.path().is_dir()).count()
}

/// F28: a step whose helpers die says so; nothing of it goes on, and the next build is none the worse.
#[test]
fn f28_helpers_that_are_killed() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    for (number, of_init) in [(1, true), (2, false)] {
        let line = format!("sleep 2828.{number}");
        let dockerfile = format!("FROM busybox\nRUN echo begun; {line}\n");
        let mut running = Running::build(&world, "killed", &dockerfile);
        running.says("begun");
        let builder = running.pid();
        let step = || family(builder).into_iter().find(|(_, args)| args.starts_with(&line));
        wait_until("the step runs", || step().is_some());
        // Pid 1 of the step's namespace, or its parent, who made the namespaces.
        let is_init = |pid: &u32| {
            let numbers = status(*pid, "NSpid:");
            numbers.len() > 1 && numbers.last() == Some(&1)
        };
        let init = family(builder).into_iter().map(|(pid, _)| pid).find(is_init).expect("pid 1");
        send(if of_init { init } else { status(init, "PPid:")[0] }, Signal::SIGKILL);
        let ended = running.end();
        assert_eq!(ended.code, 3, "{}", ended.err);
        assert!(ended.err.contains("was killed from outside"), "{}", ended.err);
        wait_until("the step is gone", || !runs(&line));
        no_mount_is_left(&world);
        heals(&world, "helpers were killed");
    }
}

/// The numbers of a line of /proc/PID/status.
fn status(pid: u32, name: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// Whether a process runs whose command line begins with this.
fn runs(line: &str) -> bool {
    let line = line.replace(' ', "\0");
    fs::read_dir("/proc").expect("readable").flatten().any(|entry| {
        fs::read(entry.path().join("cmdline")).unwrap_or_default().starts_with(line.as_bytes())
    })
}

/// F28: the process that serves a step's files dies: no layer is made of what may be a part.
#[test]
fn f28_files_that_go_away() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    fs::create_dir_all(world.path("served")).expect("made");
    let dockerfile = "FROM busybox\nRUN echo begun; read -t 2 </dev/zero; exit 0\n";
    fs::write(world.path("served/Dockerfile"), dockerfile).expect("written");
    let options = ["--snapshotter", "fuse-overlayfs", "build", "--progress=plain", "served"];
    let mut running = Running::start(world.command().args(options));
    running.says("begun");
    let daemon = family(running.pid()).into_iter().find(|(_, args)| args.contains("lowerdir="));
    send(daemon.expect("a process that serves").0, Signal::SIGKILL);
    let ended = running.end();
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(ended.err.contains("fuse-overlayfs ended before the step did"), "{}", ended.err);
    no_mount_is_left(&world);
    heals(&world, "the files went away");
}

/// F28: pasta dies. The step that had its network says so, the next one has another.
#[test]
fn f28_a_network_that_dies() {
    let world = World::new();
    world.busybox();
    let steps = "RUN echo begun; sleep 2\nRUN ls /sys/class/net | wc -l\n";
    let mut running = Running::build(&world, "net", &format!("FROM busybox\n{steps}"));
    running.says("begun");
    let holders = family(running.pid());
    let pasta = fs::read_dir("/proc").expect("readable").flatten().find(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let of = |pid: u32| line.trim_end().ends_with(&format!(" --netns /proc/{pid}/ns/net"));
        holders.iter().any(|(pid, _)| of(*pid))
    });
    let Some(pasta) = pasta else {
        assert!(world.lacks("network").is_some(), "no pasta for {holders:?}");
        return;
    };
    let number = pasta.file_name().to_string_lossy().parse().expect("a number");
    send(number, Signal::SIGKILL);
    let ended = running.end().ok();
    assert!(ended.err.contains("(pasta) has ended"), "{}", ended.err);
    assert!(ended.err.lines().any(|line| line.ends_with(" 2")), "lo and eth0: {}", ended.err);
}

/// F30: whatever asks the builder to end, the step ends and what was temporary goes, at once or with the next build.
#[test]
fn f30_signals_that_end_a_build() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    heals(&world, "the first build");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let line = format!("sleep 3030.{}", signal as i32);
        let dockerfile = format!("FROM busybox\nRUN echo begun; {line}\n");
        let mut running = Running::build(&world, "ended", &dockerfile);
        running.says("begun");
        running.signal(signal);
        let ended = running.end();
        wait_until("the step is gone", || !runs(&line));
        if signal == Signal::SIGQUIT {
            // At once, as a user wants it for whom Ctrl-C takes too long.
            assert_eq!(ended.code, -1, "{}", ended.err);
        } else {
            assert_eq!(ended.code, 130, "{signal}: {}", ended.err);
            assert_eq!(folders_in_tmp(&world), 0, "{signal}");
        }
        no_mount_is_left(&world);
        heals(&world, signal.as_str());
    }
}

/// F30: the terminal is gone, and with it whoever read; then comes its SIGHUP.
#[test]
fn f30_nobody_reads_any_more() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    let step = "echo begun; busybox seq 20000; sleep 3030.5";
    let mut running = Running::build(&world, "unread", &format!("FROM busybox\nRUN {step}\n"));
    running.says("begun");
    drop(running.child().stderr.take());
    wait_until("the step goes on", || runs("sleep 3030.5"));
    running.signal(Signal::SIGHUP);
    assert_eq!(running.end().code, 130);
    wait_until("the step is gone", || !runs("sleep 3030.5"));
    heals(&world, "nobody read");
}

/// F31: a builder that was stopped keeps its step. Who needs the step waits and says for whom, others go on.
#[test]
fn f31_a_builder_that_is_stopped() {
    let world = World::new();
    world.busybox();
    let shared = "FROM busybox\nRUN echo begun; sleep 0.5; echo shared >/made\n";
    let mut stopped = Running::build(&world, "same", shared);
    stopped.says("begun");
    stopped.signal(Signal::SIGSTOP);
    let mut waiting = Running::start(world.command().args(["build", "--progress=plain", "same"]));
    let told = waiting.says("runs this step");
    let expect = format!("another build (process {}) runs this step", stopped.pid());
    assert!(told.contains(&expect), "{told}");
    // Another step needs nothing of the one that was stopped; garbage is collected all the same.
    Running::build(&world, "other", "FROM busybox\nRUN echo other\n").end().ok();
    world.kiln(&["prune", "--force"]).ok();
    world.kiln(&["du"]).ok();
    assert!(waiting.child().try_wait().expect("known").is_none(), "it did not wait");
    stopped.signal(Signal::SIGCONT);
    stopped.end().ok();
    let ended = waiting.end().ok();
    assert!(ended.err.contains("CACHED"), "{}", ended.err);
}

/// F32: between build and push the machine starts anew; processes of two containers have the same numbers.
#[test]
fn f32_other_boots_and_the_same_numbers() {
    let world = World::new();
    world.busybox();
    let registry = Registry::start(&world);
    let name = format!("{}/app:1", registry.address);
    fs::create_dir(world.path("power")).expect("made");
    fs::rename(world.path("store"), world.path("power/store")).expect("renamed");
    fs::write(
        world.path("config.toml"),
        format!("[registry.\"{}\"]\nhttp = true\n", registry.address),
    )
    .expect("written");
    set_round(&world, 1);
    let run = |boot: usize, args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut command = booted(&world, boot, &args);
        command.env("KILN_CONFIG", world.path("config.toml"));
        said(&command.output().expect("starts"))
    };
    run(1, &["build", "-t", &name, "ctx"]).ok();
    run(2, &["push", &name]).ok();
    run(3, &["rmi", &name]).ok();
    run(3, &["pull", &name]).ok();
    assert!(run(4, &["run", &name, "cat", "/made"]).ok().out.starts_with("1 0\n"));
    drop(registry);
    fs::rename(world.path("power/store"), world.path("store")).expect("renamed");
    // Both are process 1 of their namespaces, at the same time.
    let start = |folder: &str, word: &str| {
        fs::create_dir_all(world.path(folder)).expect("made");
        let dockerfile = format!("FROM busybox\nRUN sleep 0.5; echo {word} >/made\n");
        fs::write(world.path(folder).join("Dockerfile"), dockerfile).expect("written");
        let options = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command = world.started_by("unshare", &options);
        Running::start(command.args(["build", "--progress=plain", "-o"]).args([word, folder]))
    };
    let both = [start("one", "1"), start("two", "2")];
    for running in both {
        running.end().ok();
    }
    for word in ["1", "2"] {
        let made = fs::read_to_string(world.path(word).join("made"));
        assert_eq!(made.expect("there"), format!("{word}\n"));
    }
    heals(&world, "after all that");
}

/// F43: a locked cache mount is free when its holder was killed.
#[test]
fn f43_the_holder_of_a_cache_mount_is_killed() {
    let world = World::new();
    world.busybox();
    let step = |word: &str, then: &str| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,id=one,target=/c,sharing=locked echo {word}; echo {word} >>/c/log; {then}\n"
        )
    };
    let mut holder = Running::build(&world, "holder", &step("begun", "sleep 4343.1"));
    holder.says("begun");
    let mut waiting = Running::build(&world, "waiting", &step("second", "cat /c/log"));
    waiting.says("cache mount `/one`, which another step uses");
    assert!(waiting.child().try_wait().expect("known").is_none(), "it did not wait");
    holder.signal(Signal::SIGKILL);
    holder.end();
    let ended = waiting.end().ok();
    let log: Vec<&str> = ended.err.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(log.contains(&"begun") && log.contains(&"second"), "{}", ended.err);
    wait_until("the step is gone", || !runs("sleep 4343.1"));
    set_round(&world, 1);
    heals(&world, "the holder was killed");
}
