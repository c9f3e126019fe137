//! The history: why steps ran, what they wrote, and what a failed one left.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::env::{Said, World, said, text, tool};

fn world(dockerfile: &str) -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", dockerfile);
    world
}

/// `text: why` of every step of the newest build that ran.
fn misses(world: &World) -> Vec<String> {
    let told = world.kiln(&["explain", "--format", "json"]).ok().out;
    let document: Value = serde_json::from_str(&told).expect("JSON");
    let steps = document["steps"].as_array().expect("a list").clone();
    let line = |step: &Value| {
        let name = step["name"].as_str()?.split_once("] ")?.1;
        Some(format!("{name}: {}", step["why"]["line"].as_str()?))
    };
    steps.iter().filter_map(line).collect()
}

#[test]
fn every_miss_has_its_reason() {
    let world = world(
        "FROM busybox\nCOPY src/ /app\nARG SHA=1\nENV COLOUR=red\nRUN echo $SHA $COLOUR >/v\n",
    );
    world.file("src/a.rs", "a").file("src/deep/b.rs", "b").file("src/c.rs", "c");
    let copy = "COPY src/ /app";
    let check = |args: &[&str], run: &str, expect: &[&str]| {
        let built = world.build(args).ok();
        let found = misses(&world);
        let expect: Vec<String> = expect.iter().map(|line| line.replace("RUN", run)).collect();
        assert_eq!(found, expect, "{}", built.err);
        for line in found {
            let why = line.split_once(": ").expect("has one").1;
            assert!(built.err.contains(&format!("not cached: {why}\n")), "{}", built.err);
        }
    };
    let run = "RUN echo 1 red >/v";
    let never = format!("{copy}: never built here");
    check(&[], run, &[&never, "RUN: never built here"]);
    check(&[], run, &[]);
    world.file("src/deep/b.rs", "B");
    let changed = format!("{copy}: src/deep/b.rs changed; 1 of 3 files");
    check(&[], run, &[&changed, "RUN: the files of `COPY src/ /app` changed"]);
    world.file("src/new.rs", "n");
    std::fs::remove_file(world.path("ctx/src/a.rs")).expect("removed");
    let two = format!("{copy}: src/new.rs is new; 2 of 3 files");
    check(&[], run, &[&two, "RUN: the files of `COPY src/ /app` changed"]);
    let other = "RUN echo 2 red >/v";
    check(&["--build-arg", "SHA=2"], other, &["RUN: ARG SHA changed"]);
    let file =
        "FROM busybox\nCOPY src/ /app\nARG SHA=1\nENV COLOUR=blue\nRUN echo $SHA $COLOUR >/v\n";
    world.file("Dockerfile", file);
    check(&[], "RUN echo 1 blue >/v", &["RUN: ENV COLOUR changed"]);
    world.file("Dockerfile", &file.replace(">/v", ">/w"));
    check(&[], "RUN echo 1 blue >/w", &["RUN: the command changed"]);
    let asked = format!("{copy}: --no-cache");
    check(&["--no-cache"], "RUN echo 1 blue >/w", &[&asked, "RUN: --no-cache"]);
}

#[test]
fn what_was_pruned_is_said_to_be() {
    let world = world("FROM busybox\nRUN echo x >/x\n");
    world.build(&[]).ok();
    world.kiln(&["prune", "--all"]).ok();
    world.kiln(&["import", "busybox.tar", "busybox"]).ok();
    world.build(&[]).ok();
    let [line] = misses(&world).try_into().expect("one step");
    assert!(line.starts_with("RUN echo x >/x: pruned ") && !line.contains("any more"), "{line}");
}

#[test]
fn a_tag_that_moved_is_named() {
    let world = world("FROM busybox\nRUN true\n");
    world.build(&[]).ok();
    std::fs::write(world.path("busybox/etc/motd"), "new\n").expect("written");
    let (root, archive) = (text(&world.path("busybox")), text(&world.path("new.tar")));
    tool("tar", &["-C", &root, "-cf", &archive, "."]);
    world.kiln(&["import", &archive, "busybox"]).ok();
    world.build(&[]).ok();
    let [line] = misses(&world).try_into().expect("one step");
    let (start, digests) = line.split_once("tag moved ").expect(&line);
    assert!(start.starts_with("RUN true: FROM ") && start.contains("busybox"), "{line}");
    let (old, new) = digests.split_once(" -> ").expect("two");
    assert!(old.starts_with("sha256:") && new.starts_with("sha256:") && old != new, "{line}");
}

#[test]
fn all_of_an_explanation_is_there_when_asked_for() {
    let world = world("FROM busybox\nCOPY src /app\n");
    world.file("src/a", "a").file("src/b", "b");
    world.build(&[]).ok();
    world.file("src/a", "A").file("src/b", "B");
    let built = world.build(&["--explain"]).ok();
    for line in ["selected files: ", "M src/a\n", "M src/b\n"] {
        assert!(built.err.contains(line), "{line}: {}", built.err);
    }
    let told = world.kiln(&["explain", "COPY"]).ok().out;
    assert!(told.contains("M src/a\n") && told.contains("M src/b\n"), "{told}");
}

#[test]
fn arguments_are_kept_as_digests_alone() {
    let world = world("FROM busybox\nARG TOKEN\nENV OTHER=x\nRUN [\"true\"]\n");
    for token in ["swordfish-one", "swordfish-two"] {
        world.build(&["--build-arg", &format!("TOKEN={token}")]).ok();
    }
    let told = world.kiln(&["explain", "--format", "json"]).ok().out;
    assert!(told.contains("ARG TOKEN changed") && told.contains("keyed:"), "{told}");
    for file in crate::env::files(&world.path("store")) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let found = bytes.windows(9).any(|window| window == b"swordfish");
        assert!(!found, "{}", file.display());
    }
}

#[test]
fn builds_and_their_logs_are_kept_whole() {
    let dockerfile = "FROM busybox\nRUN i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done\nRUN echo error >&2; exit 4\n";
    let world = world(dockerfile);
    assert_eq!(world.build(&["-t", "kept"]).code, 1);
    let listed: Value =
        serde_json::from_str(&world.kiln(&["builds", "--format", "json"]).ok().out).expect("JSON");
    let build = &listed[0];
    assert_eq!(build["outcome"], "failed");
    let statuses: Vec<&str> = build["steps"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|step| step["status"].as_str().expect("text"))
        .collect();
    assert_eq!(statuses, ["ran", "failed"]);
    let id = build["id"].as_str().expect("text");
    let log = world.kiln(&["logs", id, "1"]).ok().out;
    assert_eq!(log.lines().count(), 3000);
    assert_eq!(log.lines().last(), Some("line 2999"));
    assert_eq!(world.kiln(&["logs", &id[..6], "RUN echo"]).ok().out, "error\n");
    let all = world.kiln(&["logs"]).ok().out;
    assert!(all.contains("#1 line 0\n") && all.contains("#2 error\n"));
    let unknown = world.kiln(&["logs", "nobody"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.err.contains("no build `nobody`"), "{}", unknown.err);
    let table = world.kiln(&["builds"]).ok().out;
    assert!(table.contains("failed") && table.contains("2 (0 cached)"), "{table}");
}

#[test]
fn a_build_that_was_killed_is_known() {
    let world = world("FROM busybox\nRUN echo begun; sleep 1000\n");
    let mut child = world
        .command()
        .args(["build", "--progress=plain", "ctx"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let outcome = || {
        let told = world.kiln(&["builds", "--format", "json"]).ok().out;
        let list: Value = serde_json::from_str(&told).expect("JSON");
        list[0]["outcome"].as_str().map(str::to_owned)
    };
    // The step's first line says that it runs.
    let mut stderr = std::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(" begun") {
        line.clear();
        let read = std::io::BufRead::read_line(&mut stderr, &mut line).expect("read");
        assert!(read > 0, "it ended");
    }
    assert_eq!(outcome().as_deref(), Some("running"));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(outcome().as_deref(), Some("died"));
    assert_eq!(world.kiln(&["logs"]).ok().out.lines().last(), None, "no step had ended");
}

const FAILING: &str = "FROM busybox\nRUN echo joe:x:7:8::/home:/bin/sh >>/etc/passwd; mkdir -m 777 /home\n\
    USER joe\nWORKDIR /home\nENV COLOUR=red\n\
    RUN --mount=type=cache,target=/c,mode=777 --mount=type=bind,target=/b --mount=type=secret,id=s,mode=444 \
    mkdir -p out/deep && echo report >out/deep/r && echo kept >/c/f && exit 3\n";

fn debug(world: &World, args: &[&str], input: &str) -> Said {
    let mut command = world.command();
    command.arg("debug").args(args).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    said(&child.wait_with_output().expect("ended"))
}

#[test]
fn a_shell_stands_where_the_step_failed() {
    let world = world(FAILING);
    std::fs::write(world.path("secret"), "sesame").expect("written");
    let secret = format!("id=s,src={}", text(&world.path("secret")));
    let failed = world.build(&["--secret", &secret]);
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("help: `kiln debug`"), "{}", failed.err);
    let look =
        "echo $(id -u):$(id -g) $PWD $COLOUR; cat out/deep/r /c/f /b/Dockerfile | grep -c .\n";
    let shown = debug(&world, &[], look).ok().out;
    assert_eq!(shown, format!("7:8 /home red\n{}\n", 2 + FAILING.lines().count()));
    let with = debug(&world, &["--secret", &secret, "--", "cat", "/run/secrets/s"], "");
    assert_eq!(with.ok().out, "sesame");
    assert_eq!(debug(&world, &[], "echo x >new; exit 5\n").code, 5);
    assert_eq!(debug(&world, &[], "ls\n").ok().out, "out\n", "nothing is kept of a shell");
    let fine = world.kiln(&["debug", "", "1"]);
    assert_eq!(fine.code, 1, "that step did not fail: {}", fine.err);
    assert!(fine.err.contains("are not kept"), "{}", fine.err);
}

#[test]
fn files_come_out_of_steps() {
    let world = world(FAILING);
    let kept = world.build(&["--output-on-failure=/home/out=reports"]);
    assert_eq!(kept.code, 1);
    let read = |name: &str| std::fs::read_to_string(world.path(name)).expect("there");
    assert_eq!(read("reports/deep/r"), "report\n");
    world.kiln(&["cp", "::/home/out/deep/r", "one"]).ok();
    assert_eq!(read("one"), "report\n");
    std::fs::create_dir(world.path("into")).expect("made");
    world.kiln(&["cp", "::/home/out", "into"]).ok();
    assert_eq!(read("into/out/deep/r"), "report\n");
    world.kiln(&["cp", ":RUN echo:/etc/passwd", "passwd"]).ok();
    assert!(read("passwd").contains("joe:"), "of a step that succeeded");
    let missing = world.kiln(&["cp", "::/none", "x"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("no `/none`"), "{}", missing.err);
    assert!(!world.path("x").exists());
}

#[test]
fn links_in_a_step_do_not_lead_out() {
    let world =
        world("FROM busybox\nRUN ln -s /etc /away && ln -s ../../../../etc/passwd /up && exit 1\n");
    assert_eq!(world.build(&[]).code, 1);
    world.kiln(&["cp", "::/up", "up"]).ok();
    let own = std::fs::read_to_string(world.path("up")).expect("there");
    assert_eq!(own, "root:x:0:0::/root:/bin/sh\n", "the image's, not the machine's");
    world.kiln(&["cp", "::/away", "away"]).ok();
    assert_eq!(crate::env::files(&world.path("away")).len(), 1, "the image's /etc");
}

#[test]
fn a_shell_can_come_at_once() {
    let world = world("FROM busybox\nRUN echo made >/made; exit 3\n");
    let mut child = world
        .command()
        .args(["build", "--progress=plain", "--on-failure=shell", "ctx"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(b"cat /made\n").expect("written");
    let ended = said(&child.wait_with_output().expect("ended"));
    assert_eq!((ended.code, ended.out.as_str()), (1, "made\n"), "{}", ended.err);
    assert_eq!(ended.err.matches("exit code: 3").count(), 2, "told once by each: {}", ended.err);
    let stdin = world.kiln(&["build", "--on-failure=shell", "-"]);
    assert_eq!(stdin.code, 2, "{}", stdin.err);
}
