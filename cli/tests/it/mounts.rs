//! RUN cache mounts: how processes share them, and how people see them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::env::{World, said};

/// A build of a folder of its own, in the background.
fn start(world: &World, name: &str, dockerfile: &str) -> Child {
    fs::create_dir_all(world.path(name)).expect("folder made");
    fs::write(world.path(name).join("Dockerfile"), dockerfile).expect("written");
    let mut command = world.command();
    let command = command.args(["build", "--progress", "plain", name]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kiln starts")
}

fn end(child: Child) -> String {
    said(&child.wait_with_output().expect("it ended")).ok().err
}

fn mounts(world: &World) -> Vec<Value> {
    let text = world.kiln(&["cache", "mounts", "--format", "json"]).ok().out;
    serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("a list").clone()
}

/// Two steps of two processes at once; each waits for the other for up to ten seconds, by files in the mount. Says
/// whether they met there.
fn meet(world: &World, sharing: &str) -> bool {
    let step = |own: &str, other: &str| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,id={sharing},target=/m,sharing={sharing} \
             : {sharing}; touch /m/{own}; n=0; while [ $n -lt 40 ] && ! [ -e /m/{other} ]; do busybox usleep 100000; n=$((n+1)); done; \
             [ -e /m/{other} ] && echo met-{own} || echo alone-{own}; busybox sleep 1; rm /m/{own}\n"
        )
    };
    let first = start(world, "one", &step("a", "b"));
    let second = start(world, "two", &step("b", "a"));
    let said = [end(first), end(second)];
    let logged = said.iter().flat_map(|text| text.lines()).filter(|line| !line.contains("RUN"));
    let lines: Vec<&str> = logged.collect();
    let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert_eq!(count("met") + count("alone"), 2, "{sharing}: {said:?}");
    assert_ne!(count("met"), 1, "{sharing}: {said:?}");
    count("met") == 2
}

#[test]
fn sharing_holds_between_processes() {
    let world = World::new();
    world.busybox();
    assert!(meet(&world, "shared"), "both have it at once");
    assert!(!meet(&world, "private"), "each has its own");
    assert!(!meet(&world, "locked"), "one after the other");
    let folders = |id: &str| mounts(&world).iter().filter(|mount| mount["id"] == id).count();
    assert_eq!([folders("shared"), folders("private"), folders("locked")], [1, 2, 1]);
}

#[test]
fn mounts_are_listed_with_who_uses_them() {
    let world = World::new();
    world.busybox();
    let step = "RUN --mount=type=cache,id=team/go,target=/m echo data >/m/f";
    world.file(
        "Dockerfile",
        &format!("FROM busybox\n{step}\nRUN --mount=type=cache,target=/var/x true\n"),
    );
    world.build(&[]).ok();
    let listed = mounts(&world);
    let ids: Vec<&str> = listed.iter().filter_map(|mount| mount["id"].as_str()).collect();
    assert_eq!(ids, ["/var/x", "team/go"]);
    assert_eq!(listed[1]["used_by"][0]["step"], step);
    assert_eq!(listed[1]["in_use"], false);
    assert!(listed[1]["size"].as_u64().is_some_and(|size| size >= 4096));
    let table = world.kiln(&["cache", "mounts"]).ok().out;
    assert!(table.contains("team/go") && table.contains("RUN --mount"), "{table}");
    // In use: seen, and neither pruned nor removed.
    let slow = "FROM busybox\nRUN --mount=type=cache,id=team/go,target=/m touch /m/begun; while ! [ -e /m/go ]; do busybox usleep 50000; done\n";
    let running = start(&world, "slow", slow);
    while !mounts(&world).iter().any(|mount| mount["in_use"] == true) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let refused = world.kiln(&["cache", "mounts", "rm", "team/go"]);
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("team/go"), "{}", refused.err);
    world.kiln(&["prune", "--all"]).ok();
    // Copying out looks over the step's shoulder; the file lets it end.
    let seen = world.kiln(&["cache", "mounts", "cp", "team/go:/f", "f"]).ok();
    assert!(seen.out.starts_with("1 files"), "{}", seen.out);
    let folder = mounts(&world)[0]["folder"].as_str().expect("a name").to_owned();
    fs::write(world.path("store/mounts").join(&folder).join("go"), "").expect("written");
    end(running);
    world.kiln(&["cache", "mounts", "rm", "team/go"]).ok();
    assert!(mounts(&world).is_empty());
    assert!(!world.path("store/mounts").join(folder).exists());
    assert_eq!(world.kiln(&["cache", "mounts", "rm", "team/go"]).code, 1);
}

#[test]
fn mounts_are_copied_in_and_out() {
    let world = World::new();
    world.busybox();
    fs::create_dir_all(world.path("saved/d")).expect("made");
    fs::write(world.path("saved/d/f"), "from outside").expect("written");
    symlink("d/f", world.path("saved/link")).expect("made");
    // Into a mount that nobody has used yet: a step finds it.
    world.kiln(&["cache", "mounts", "cp", "saved/.", "npm:/"]).ok();
    world.file(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=cache,id=npm,target=/m grep -q outside /m/link && echo from a step >/m/d/g && \
         busybox chmod 4755 /m/d/g && busybox ln -s / /m/root && busybox mkfifo /m/pipe\n",
    );
    world.build(&[]).ok();
    // A part, to a name of its own and into a folder.
    world.kiln(&["cache", "mounts", "cp", "npm:/d/g", "g"]).ok();
    assert_eq!(fs::read_to_string(world.path("g")).expect("there"), "from a step\n");
    assert_eq!(fs::metadata(world.path("g")).expect("there").mode() & 0o7777, 0o755);
    fs::create_dir(world.path("out")).expect("made");
    world.kiln(&["cache", "mounts", "cp", "npm:/d", "out"]).ok();
    assert!(world.path("out/d/f").exists());
    // All of it; what is no file stays behind, and it is told.
    let all = world.kiln(&["cache", "mounts", "cp", "npm:/", "all"]).ok();
    assert!(all.err.contains("pipe"), "{}", all.err);
    assert_eq!(fs::read_link(world.path("all/root")).expect("a link").to_str(), Some("/"));
    // No link of a step is followed, on either side.
    for path in ["npm:/root/etc/passwd", "npm:/none"] {
        let refused = world.kiln(&["cache", "mounts", "cp", path, "stolen"]);
        assert_ne!(refused.code, 0, "{path}");
    }
    fs::write(world.path("evil"), "evil").expect("written");
    let refused = world.kiln(&["cache", "mounts", "cp", "evil", "npm:/root/evil"]);
    assert_ne!(refused.code, 0);
    assert!(!std::path::Path::new("/evil").exists());
    for wrong in [["a", "b"], ["npm:/a", "npm:/b"]] {
        assert_eq!(world.kiln(&["cache", "mounts", "cp", wrong[0], wrong[1]]).code, 2);
    }
    assert_eq!(world.kiln(&["cache", "mounts", "cp", "none:/", "x"]).code, 1);
}
