//! Limits of an ordinary user's steps, in control groups that were given to that user, as systemd does.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::{Said, World, kiln, said, text, tool};

const USER: &str = "kiln-test";

/// A group of the user in each hierarchy that can limit processes, and in version 2 in any case; removed
/// at the end.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn new(name: &str) -> Self {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let is_group = |path: &&str| Path::new(path).join("cgroup.procs").exists();
        let mut folders = Vec::new();
        for root in roots.into_iter().filter(is_group).map(Path::new) {
            // Of version 2: its groups have the controllers that are given to them.
            let _none = fs::write(root.join("cgroup.subtree_control"), "+pids");
            let folder = root.join(format!("kiln-it-{name}-{}", std::process::id()));
            fs::create_dir(&folder).expect("root may make groups");
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
                if folder.join(file).exists() {
                    tool("chown", &[USER, &text(&folder.join(file))]);
                }
            }
            folders.push(folder);
        }
        Self(folders)
    }

    /// Whether a limit of processes can be set in one of them.
    fn can_limit(&self) -> bool {
        self.0.iter().any(|folder| folder.join("pids.max").exists())
    }

    /// `kiln build ARGS… ctx` of the user, in the groups, alone in them.
    fn build(&self, world: &World, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let script =
            "while [ $1 != -- ]; do echo $$ >$1/cgroup.procs; shift; done; shift; exec \"$@\"";
        command.args(["-c", script, "sh"]).args(&self.0).arg("--");
        command.args(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "env", "-i"]);
        command.arg("PATH=/usr/local/bin:/usr/bin:/bin");
        command.arg(format!("HOME={}", text(&world.path("."))));
        command.arg(format!("KILN_ROOT={}", text(&world.path("user-store"))));
        command.arg(world.path("kiln")).args(args).current_dir(world.path("."));
        command.stdin(Stdio::null());
        command
    }

    /// The groups of steps that there are now.
    fn steps(&self) -> Vec<PathBuf> {
        let below = |folder: &PathBuf| {
            fs::read_dir(folder).expect("readable").flatten().collect::<Vec<_>>()
        };
        let all = self.0.iter().flat_map(below);
        let is_step = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().matches('-').count() == 2)
        };
        all.map(|entry| entry.path()).filter(is_step).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in &self.0 {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let _no_group = fs::remove_dir(entry.path());
            }
            // What ends the steps' networks outlives the builder for a moment.
            while fs::remove_dir(folder).is_err_and(|e| e.kind() == ErrorKind::ResourceBusy) {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

fn world(run: &str) -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", &format!("FROM busybox\nRUN {run}\n"));
    tool("cp", &[&text(&kiln()), &text(&world.path("kiln"))]);
    tool("chown", &["-R", USER, &text(&world.path("."))]);
    world
}

fn ended(mut command: Command) -> Said {
    said(&command.output().expect("sh starts"))
}

const BUILD: [&str; 5] = ["build", "--progress", "plain", "--pids-limit", "8"];

#[test]
fn steps_of_users_have_limits_in_their_groups() {
    let groups = Delegated::new("limits");
    let world = world("for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait");
    ended(groups.build(&world, &["import", "busybox.tar", "busybox"])).ok();
    let built = ended(groups.build(&world, &[&BUILD[..], &["ctx"]].concat()));
    if groups.can_limit() {
        assert_eq!(built.code, 1, "{}", built.err);
        assert!(built.err.contains("too many processes (pids limit 8)"), "{}", built.err);
    } else {
        assert_eq!(built.code, 3, "{}", built.err);
        assert!(built.err.contains("systemd-run --user --scope"), "{}", built.err);
    }
    assert_eq!(groups.steps(), Vec::<PathBuf>::new());
}

#[test]
fn groups_of_killed_builds_go_with_the_next() {
    let groups = Delegated::new("killed");
    let world = world("sleep 1000");
    ended(groups.build(&world, &["import", "busybox.tar", "busybox"])).ok();
    if !groups.can_limit() {
        let refused = ended(groups.build(&world, &[&BUILD[..], &["ctx"]].concat()));
        assert_eq!(refused.code, 3, "{}", refused.err);
        return;
    }
    let mut command = groups.build(&world, &[&BUILD[..], &["ctx"]].concat());
    let mut builder = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let busy = |folder: &PathBuf| {
        fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|text| text.lines().count() >= 2)
    };
    // In every hierarchy: pid 1 of the step and its command.
    while groups.steps().iter().filter(|folder| busy(folder)).count() < groups.0.len() {
        assert!(builder.try_wait().expect("asked").is_none(), "the build ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    builder.kill().and_then(|()| builder.wait()).expect("ended");
    while groups.steps().iter().any(busy) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!groups.steps().is_empty());
    fs::write(world.path("ctx/Dockerfile"), "FROM busybox\nRUN true\n").expect("written");
    ended(groups.build(&world, &[&BUILD[..], &["ctx"]].concat())).ok();
    assert_eq!(groups.steps(), Vec::<PathBuf>::new());
}
