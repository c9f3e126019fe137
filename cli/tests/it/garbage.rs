//! What uses space and what goes: `kiln du`, `kiln prune`, quotas of the configuration, a full disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::env::{World, said, text, tool};

const MIB: u64 = 1 << 20;

/// What `du` says of the store.
fn on_disk(store: &Path) -> u64 {
    let said = tool("du", &["-s", "--block-size=1", &text(store)]);
    said.split_whitespace().next().expect("a number").parse().expect("a number")
}

/// The documents of `kiln du --format json ARGS…`.
fn du(world: &World, args: &[&str]) -> Vec<serde_json::Value> {
    let all = [&["du", "--format", "json"], args].concat();
    let said = world.kiln(&all).ok().out;
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn total(rows: &[serde_json::Value]) -> u64 {
    rows.iter().map(|row| row["Size"].as_u64().expect("bytes")).sum()
}

fn kinds<'r>(rows: &'r [serde_json::Value], kind: &str) -> Vec<&'r serde_json::Value> {
    rows.iter().filter(|row| row["Kind"] == kind).collect()
}

/// A Dockerfile with a step that writes so many MiB that no other step writes.
fn large(name: &str, mib: u64) -> String {
    format!(
        "FROM busybox\nRUN busybox dd if=/dev/urandom of=/{name} bs=1048576 count={mib} 2>/dev/null\n"
    )
}

/// Whether the last step of a build came from the cache.
fn is_cached(world: &World, dockerfile: &str) -> bool {
    world.file("Dockerfile", dockerfile);
    world.build(&[]).ok().err.contains("CACHED")
}

fn build(world: &World, dockerfile: &str) {
    world.file("Dockerfile", dockerfile);
    world.build(&[]).ok();
}

#[test]
fn du_is_what_the_disk_says() {
    let world = World::new();
    world.busybox();
    build(
        &world,
        "FROM busybox\nRUN echo 1 >/a && busybox ln /a /b\nRUN --mount=type=cache,target=/c,id=mine echo 2 >/c/x && busybox ln /c/x /c/y\n",
    );
    world.build(&["-t", "app"]).ok();
    let rows = du(&world, &[]);
    assert_eq!(total(&rows), on_disk(&world.path("store")));
    let mount = kinds(&rows, "cache-mount");
    assert_eq!((mount.len(), mount[0]["Type"].as_str()), (1, Some("exec.cachemount")));
    assert_eq!(mount[0]["Description"], "mine");
    assert_eq!(mount[0]["Reclaimable"], true);
    assert_eq!(kinds(&rows, "layer").len(), 2);
    let step = &kinds(&du(&world, &["--filter", "description~=echo 2"]), "layer")[0].clone();
    assert_eq!(step["Parents"][0], du(&world, &["--filter", "description~=echo 1"])[0]["ID"]);
    // The same for people.
    let table = world.kiln(&["du"]).ok().out;
    assert!(table.starts_with("ID ") && table.contains("LAST ACCESSED"), "{table}");
    assert!(table.contains("\nReclaimable:") && table.contains("\nTotal:"), "{table}");
    let pretty = world.kiln(&["du", "--verbose", "--filter", "type=exec.cachemount"]).ok().out;
    assert!(pretty.contains("Mutable:       true\n"), "{pretty}");
    // After everything went the sum is still right.
    world.kiln(&["prune", "--all", "--force"]).ok();
    let rows = du(&world, &[]);
    assert_eq!(total(&rows), on_disk(&world.path("store")));
    assert!(kinds(&rows, "layer").is_empty() && kinds(&rows, "cache-mount").is_empty());
    assert!(world.kiln(&["run", "app", "cat", "/a"]).ok().out == "1\n", "images stay");
}

#[test]
fn prune_takes_what_filters_say() {
    let world = World::new();
    world.busybox();
    let dockerfile =
        "FROM busybox\nRUN echo one >/a\nRUN --mount=type=cache,target=/c echo two >/b\n";
    build(&world, dockerfile);
    let gone = |args: &[&str]| {
        let all = [&["prune", "--dry-run", "--verbose"], args].concat();
        let said = world.kiln(&all).ok().out;
        let count = said.lines().filter(|line| line.starts_with("ID:")).count();
        (count, said)
    };
    let layer = du(&world, &["--filter", "description~=two,type=layer"]);
    let (id, parent) = (layer[0]["ID"].as_str(), layer[0]["Parents"][0].as_str());
    let id = format!("id={}", id.expect("an id"));
    let parent = format!("parents={}", parent.expect("a layer below"));
    for (filter, count) in [
        (id.as_str(), 1),
        (parent.as_str(), 1),
        ("description=RUN echo one >/a", 1),
        ("type=exec.cachemount", 1),
        ("type=layer", 2),
        ("mutable", 1),
        ("inuse", 0),
        ("unused-for=1h", 0),
        ("until=0s,type=layer", 2),
        ("shared,type=layer", 0),
        ("private,type=layer", 2),
    ] {
        let (found, said) = gone(&["--filter", filter]);
        assert_eq!(found, count, "{filter}:\n{said}");
    }
    assert_eq!(gone(&[]).0, 0, "nothing that nobody needs");
    assert_eq!(gone(&["--until", "1h", "--all"]).0, 0);
    let limits = ["--all", "--reserved-space", "1gb"];
    assert_eq!(gone(&limits).0, 0);
    assert!(gone(&["--max-used-space", "1b", "--keep-storage", "0"]).0 > 2);
    assert_eq!(gone(&["--min-free-space", "1b"]).0, 0);
    for (args, code) in [
        (["--filter", "colour=red"], 2),
        (["--until", "soon"], 2),
        (["--max-used-space", "much"], 2),
    ] {
        assert_eq!(world.kiln(&["prune", args[0], args[1]]).code, code, "{args:?}");
    }
    world.kiln(&["prune", "-f", "--filter", "description~=two,type=layer"]).ok();
    world.file("Dockerfile", dockerfile);
    let again = world.build(&[]).ok().err;
    assert_eq!(again.matches("CACHED").count(), 1, "{again}");
}

#[test]
fn a_quota_is_kept_by_builds_themselves() {
    let world = World::new();
    world.busybox();
    let base = on_disk(&world.path("store"));
    let quota = base + 40 * MIB;
    let config = format!("[gc]\nmax-used-space = \"{quota}\"\n");
    fs::write(world.path("config.toml"), config).expect("written");
    let build = |dockerfile: &str| {
        world.file("Dockerfile", dockerfile);
        let mut command = world.command();
        command.env("KILN_CONFIG", world.path("config.toml"));
        let command = command.args(["build", "--progress", "plain", "ctx"]);
        said(&command.output().expect("kiln starts")).ok().err
    };
    // Slow to make and small: worth more than what comes after it.
    let slow = "FROM busybox\nRUN sleep 2 && echo 1 >/slow\n";
    build(slow);
    for n in 0..6 {
        build(&large(&format!("f{n}"), 16));
        let used = on_disk(&world.path("store"));
        assert!(used <= quota, "{used} of {quota} after {n}");
    }
    assert!(build(slow).contains("CACHED"), "the most valuable stays");
    let rows = du(&world, &["--filter", "description~=urandom"]);
    assert!((1..=2).contains(&rows.len()), "{rows:#?}");
    // A part of the disk, and something that is none.
    fs::write(world.path("config.toml"), "[gc]\nmax-used-space = \"most\"\n").expect("written");
    let mut command = world.command();
    let command = command.env("KILN_CONFIG", world.path("config.toml")).arg("images");
    let refused = said(&command.output().expect("kiln starts"));
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("config.toml") && refused.err.contains("most"), "{}", refused.err);
}

#[test]
fn use_is_noted_by_cached_builds() {
    let world = World::new();
    world.busybox();
    let (used, unused) = ("FROM busybox\nRUN echo used\n", "FROM busybox\nRUN echo unused\n");
    build(&world, unused);
    build(&world, used);
    let database = world.path("store/kiln.db");
    let connection = rusqlite::Connection::open(&database).expect("open");
    for table in ["records", "layers", "blobs"] {
        let query = format!("UPDATE {table} SET last_used = last_used - 864000");
        connection.execute(&query, []).expect("made ten days older");
    }
    drop(connection);
    assert!(is_cached(&world, used));
    world.kiln(&["prune", "--until", "5d"]).ok();
    assert!(is_cached(&world, used), "used a moment ago");
    assert!(!is_cached(&world, unused));
}

#[test]
fn pruning_disturbs_no_build() {
    let world = World::new();
    world.busybox();
    // Steps that are there when the build begins, and steps that are made while everything goes.
    let head = "FROM busybox\nRUN echo 1 >/1\nRUN echo 2 >/2\n";
    build(&world, head);
    world
        .file("Dockerfile", &format!("{head}RUN sleep 3 && cat /1 /2\nRUN cat /1 /2 && sleep 1\n"));
    let mut running = world.command();
    let mut running = running
        .args(["build", "--progress", "plain", "-t", "app", "ctx"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln starts");
    let mut rounds = 0;
    while running.try_wait().expect("a child").is_none() {
        world.kiln(&["prune", "--all"]).ok();
        world.kiln(&["du"]).ok();
        rounds += 1;
    }
    let built = said(&running.wait_with_output().expect("it ended")).ok();
    assert!(rounds > 3, "{rounds} {}", built.err);
    assert_eq!(world.kiln(&["run", "app", "cat", "/2"]).ok().out, "2\n");
}

/// A file system of its own, of that many bytes, until it is dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn new(path: std::path::PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).expect("folder made");
        tool("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &text(&path)]);
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "unmounted");
    }
}

#[test]
fn a_full_disk_is_told_with_its_remedy() {
    let world = World::new();
    let small = Small::new(world.path("store"), "size=24m");
    world.busybox();
    fs::create_dir_all(world.path("ctx")).expect("made");
    fs::write(world.path("ctx/big"), vec![7; 15 << 20]).expect("written");
    world.file("Dockerfile", "FROM busybox\nCOPY big /1\nRUN echo 1\nCOPY big /2\n");
    let failed = world.build(&[]);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(failed.err.contains("No space left on device"), "{}", failed.err);
    assert!(failed.err.contains("`kiln prune` makes room"), "{}", failed.err);
    // What the failed step had written came back, and what succeeded is cached.
    let tmp: u64 = du(&world, &["--filter", "id=tmp"])
        .iter()
        .map(|row| row["Size"].as_u64().unwrap_or(0))
        .sum();
    assert!(tmp < MIB, "{tmp}");
    assert!(world.build(&[]).err.contains("CACHED"));
    drop(small);
}

#[test]
fn a_full_disk_can_be_pruned() {
    for options in ["size=64m", "size=64m,nr_inodes=900"] {
        let world = World::new();
        let small = Small::new(world.path("store"), options);
        world.busybox();
        build(
            &world,
            "FROM busybox\nRUN busybox dd if=/dev/zero of=/f bs=1M count=20 2>/dev/null\n",
        );
        // Not one byte, not one inode more.
        let mut n = 0;
        while fs::write(small.0.join(format!("ballast-{n}")), vec![1; 1 << 20]).is_ok() {
            n += 1;
        }
        let full = fs::write(small.0.join("more"), "1").is_err();
        assert!(full, "{options}: still room");
        world.kiln(&["du"]).ok();
        let said = world.kiln(&["prune", "--all"]).ok().out;
        assert!(said.contains("Total:"), "{said}");
        let rows = du(&world, &[]);
        assert!(kinds(&rows, "layer").is_empty(), "{options}: {rows:#?}");
        assert_eq!(total(&rows), on_disk(&small.0));
        for entry in fs::read_dir(&small.0).expect("readable").flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast") {
                fs::remove_file(entry.path()).expect("removed");
            }
        }
        build(&world, "FROM busybox\nRUN echo again\n");
        assert!(small.0.join("reserve/room").exists(), "made again");
    }
}
