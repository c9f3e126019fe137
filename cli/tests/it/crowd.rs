//! Many processes, one store: each step runs once, nobody waits for ever, nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::env::{World, files, text};

/// Far more than any of these builds takes: who needs longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for a child; says what it wrote to `log` when it fails or does not end.
#[track_caller]
fn finish(child: &mut Child, log: &std::path::Path) {
    let begun = Instant::now();
    let told = || fs::read_to_string(log).unwrap_or_default();
    loop {
        match child.try_wait().expect("a child") {
            Some(status) => return assert!(status.success(), "{status}\n{}", told()),
            None if begun.elapsed() > PATIENCE => {
                let _ended = child.kill();
                panic!("it waits for ever:\n{}", told());
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn start(world: &World, args: &[&str], log: &str) -> Child {
    let log = fs::File::create(world.path(log)).expect("a log");
    let mut command = world.command();
    command.args(args).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("kiln starts")
}

/// No mount, no folder in `tmp`, no lock that somebody holds.
fn nothing_is_left(world: &World) {
    let store = world.path("store");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(&text(&store)), "a mount is left:\n{mounts}");
    let left: Vec<_> = fs::read_dir(store.join("tmp"))
        .expect("readable")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for path in files(&store.join("locks")) {
        let file = fs::File::open(&path).expect("readable");
        let free = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        assert!(free.is_ok(), "{} is held", path.display());
    }
}

#[test]
fn twenty_builds_at_once_run_each_step_once() {
    let world = World::new();
    let mut dockerfile = "FROM busybox\n".to_owned();
    for step in 1..=30 {
        let mount = "--mount=type=cache,id=count,target=/count";
        dockerfile.push_str(&format!("RUN {mount} echo step{step} >> /count/file\n"));
    }
    world.busybox().file("Dockerfile", &dockerfile);
    let build = |number: usize| {
        let tag = format!("crowd:{number}");
        start(&world, &["build", "--progress", "plain", "-t", &tag, "ctx"], &format!("log{number}"))
    };
    let mut children: Vec<Child> = (0..20).map(build).collect();
    for (number, child) in children.iter_mut().enumerate() {
        finish(child, &world.path(&format!("log{number}")));
    }
    let counted: Vec<String> = files(&world.path("store/mounts"))
        .iter()
        .filter(|path| path.ends_with("file"))
        .flat_map(|path| {
            let lines = fs::read_to_string(path).expect("readable");
            lines.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let steps: BTreeSet<&String> = counted.iter().collect();
    assert_eq!((counted.len(), steps.len()), (30, 30), "{counted:?}");
    // Twenty images, one content.
    let digest = |number: usize| {
        let said = world.kiln(&["inspect", &format!("crowd:{number}")]).ok();
        let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
        let found = document.pointer("/config/rootfs").or_else(|| document.pointer("/rootfs"));
        found.unwrap_or_else(|| panic!("no root file system: {}", said.out)).clone()
    };
    let first = digest(0);
    assert!((1..20).all(|number| digest(number) == first));
    nothing_is_left(&world);
}

/// Builds that share some steps and not others; `variant` is what the last ones write.
fn overlapping(world: &World, number: usize, round: usize) -> String {
    let (shared, own) = (round % 3, number % 4);
    let folder = format!("ctx{number}");
    let context = world.path(&folder);
    fs::create_dir_all(context.join("src")).expect("folder made");
    fs::write(context.join("src/file"), format!("shared {shared}\n")).expect("written");
    fs::write(context.join("own"), format!("own {own}\n")).expect("written");
    let dockerfile = "FROM busybox AS one
COPY src /src
RUN cat /src/file > /one
RUN echo two >> /one
FROM busybox
COPY own /own
RUN cat /own > /three
COPY --from=one /one /one
RUN cat /one /three > /all
";
    fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    format!("shared {shared}\ntwo\nown {own}\n")
}

#[test]
fn eight_processes_build_while_another_prunes() {
    let world = World::new();
    world.busybox();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::SeqCst) {
                // The image `busybox` stays: it has a name.
                let what: &[&str] = if rounds % 3 == 2 { &["prune"] } else { &["prune", "--all"] };
                finish(&mut start(&world, what, "prune"), &world.path("prune"));
                rounds += 1;
            }
            rounds
        });
        let builders: Vec<_> = (0..8)
            .map(|number| {
                let world = &world;
                scope.spawn(move || {
                    for round in 0..6 {
                        let expected = overlapping(world, number, round);
                        let (folder, dest) =
                            (format!("ctx{number}"), format!("out{number}-{round}"));
                        let output = format!("type=local,dest={dest}");
                        let log = format!("log{number}");
                        let args = ["build", "--progress", "plain", "--output", &output, &folder];
                        finish(&mut start(world, &args, &log), &world.path(&log));
                        let made = fs::read_to_string(world.path(&dest).join("all"));
                        assert_eq!(
                            made.expect("exported"),
                            expected,
                            "{number} {round}: a wrong image"
                        );
                    }
                })
            })
            .collect();
        let ended: Vec<_> = builders.into_iter().map(|builder| builder.join().is_ok()).collect();
        done.store(true, Ordering::SeqCst);
        let rounds = pruning.join().expect("pruning works");
        assert!(ended.iter().all(|ok| *ok), "a builder failed: {ended:?}");
        assert!(rounds > 3, "only {rounds} times pruned meanwhile");
    });
    nothing_is_left(&world);
    // The store is whole: the next build finds or makes everything.
    overlapping(&world, 0, 0);
    world.kiln(&["build", "ctx0"]).ok();
}
