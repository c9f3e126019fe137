//! F45 to F50: who calls Kiln, how little of the machine it is given, what changes below it, and what the clock says.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{PATIENCE, heals, set_round};
use crate::env::{Said, World, kiln, said, text, tool};

const USER: &str = "kiln-test";

/// `kiln` as an ordinary user below `limits`, with the store in `folder`.
fn as_user(world: &World, limits: &[&str], folder: &str, args: &[&str]) -> Said {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).args(["runuser", "-u", USER, "--"]).args(limits);
    command.args(["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"]);
    command.arg(format!("HOME={}", text(&world.path(""))));
    command.arg(format!("KILN_ROOT={}", text(&world.path(folder))));
    command.arg(world.path("kiln")).args(args).current_dir(world.path(""));
    said(&command.output().expect("starts"))
}

/// A world in which an ordinary user finds its way, with a copy of the program.
fn open_world() -> World {
    let world = World::new();
    tool("cp", &[&text(&kiln()), &text(&world.path("kiln"))]);
    world.busybox();
    set_round(&world, 1);
    tool("chmod", &["755", &text(&world.path(""))]);
    world
}

/// F46, F40: a store is one user's. Others are told; what root took for itself in it is named, too.
#[test]
fn f46_f40_stores_of_other_users() {
    let world = open_world();
    heals(&world, "the first build");
    let build = ["build", "--progress=plain", "ctx"];
    for args in [&["images"][..], &build, &["prune", "--all", "--force"]] {
        let refused = as_user(&world, &[], "store", args);
        assert_eq!(refused.code, 3, "{args:?}: {}", refused.err);
        assert!(refused.err.contains("Permission denied"), "{}", refused.err);
        assert!(refused.err.contains("`chown -R`"), "{}", refused.err);
    }
    heals(&world, "others have tried");
    tool("chown", &["-R", USER, &text(&world.path(""))]);
    as_user(&world, &[], "own", &["import", "busybox.tar", "busybox"]).ok();
    as_user(&world, &[], "own", &build).ok();
    tool("chown", &["root:root", &text(&world.path("own/kiln.db"))]);
    tool("chmod", &["644", &text(&world.path("own/kiln.db"))]);
    world.file("data", "changed");
    let refused = as_user(&world, &[], "own", &build);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("`chown -R`"), "{}", refused.err);
    tool("chown", &["-R", USER, &text(&world.path("own"))]);
    as_user(&world, &[], "own", &build).ok();
}

/// It worked, or it said clearly what is missing, in time.
fn works_or_says(said: &Said, words: &[&str], what: &str) {
    assert!(matches!(said.code, 0 | 3), "{what}: {} {}", said.code, said.err);
    assert!(!said.err.contains("bug in Kiln"), "{what}: {}", said.err);
    let clear = words.iter().any(|word| said.err.to_lowercase().contains(word));
    assert!(said.code == 0 || clear, "{what}: {}", said.err);
}

/// F47: few descriptors, processes and little memory.
#[test]
fn f47_callers_with_little() {
    let world = open_world();
    // Forty stages at once, with all processors and more.
    let stages: String =
        (0..40).map(|n| format!("FROM busybox AS s{n}\nRUN echo {n} >/f\n")).collect();
    let copies: String = (0..40).map(|n| format!("COPY --from=s{n} /f /f{n}\n")).collect();
    world.file("wide", &format!("{stages}FROM busybox\n{copies}"));
    let limited = |limit: &str, args: &[&str]| {
        let seconds = PATIENCE.as_secs().to_string();
        let mut command = world.started_by("timeout", &[&seconds, "prlimit", limit]);
        said(
            &command
                .args(["build", "--progress=plain", "--no-cache"])
                .args(args)
                .arg("ctx")
                .output()
                .expect("starts"),
        )
    };
    let wide = ["--jobs", "40", "-f", "ctx/wide", "-o", "wide"];
    for files in [12, 16, 24, 32, 64, 128, 1024] {
        let args: &[&str] = if files < 64 { &[] } else { &wide };
        let built = limited(&format!("--nofile={files}"), args);
        works_or_says(
            &built,
            &["too many open files", "no file descriptors"],
            &format!("{files} files"),
        );
        // A network that cannot be made for want of descriptors is not replaced by the machine's.
        assert!(!built.err.contains("share this machine's network"), "{}", built.err);
        assert!(files < 1024 || built.code == 0, "{}", built.err);
    }
    assert_eq!(fs::read_to_string(world.path("wide/f39")).expect("there"), "39\n");
    // The dynamic loader and SQLite take a part of it.
    for mib in [128, 256] {
        limited(&format!("--as={}", mib << 20), &[]).ok();
    }
    tool("chown", &["-R", USER, &text(&world.path(""))]);
    as_user(&world, &[], "own", &["import", "busybox.tar", "busybox"]).ok();
    for processes in [1, 2, 3, 4, 5, 6, 8, 12] {
        let limit = format!("--nproc={processes}");
        let built = as_user(
            &world,
            &["prlimit", &limit],
            "own",
            &["build", "--offline", "--progress=plain", "--no-cache", "ctx"],
        );
        let words = ["temporarily unavailable", "pasta", "fork", "cannot start a thread"];
        works_or_says(&built, &words, &format!("{processes} processes"));
    }
    as_user(&world, &[], "own", &["build", "--progress=plain", "ctx"]).ok();
}

/// Calls something again and again while builds run.
fn meanwhile(restless: impl Fn() + Sync, builds: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                restless();
            }
        });
        // Also when a build is not what it should be: the thread is waited for.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(builds));
        done.store(true, Ordering::SeqCst);
        if let Err(cause) = ended {
            std::panic::resume_unwind(cause);
        }
    });
}

/// F48: files change, come and go, become folders and links while they are read.
#[test]
fn f48_a_context_that_changes() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nCOPY . /all\nCOPY data /data\n");
    let whole = |letter: char| letter.to_string().repeat(100_000);
    world.file("data", &whole('a')).file("stays", "1");
    let ctx = world.path("ctx");
    let put = |letter: char| {
        fs::write(ctx.join("new"), whole(letter))
            .and_then(|()| fs::rename(ctx.join("new"), ctx.join("data")))
    };
    let restless = || {
        for letter in ['a', 'b'] {
            let _ = put(letter);
            let _ = fs::write(ctx.join("data"), letter.to_string().repeat(500));
            let _ = fs::remove_file(ctx.join("data"));
            let _ =
                fs::create_dir(ctx.join("odd")).and_then(|()| fs::write(ctx.join("odd/in"), "x"));
            let _ = fs::remove_dir_all(ctx.join("odd"));
            let _ = symlink("stays", ctx.join("odd"));
            let _ = fs::remove_file(ctx.join("odd"));
            let _ = put(letter);
        }
    };
    meanwhile(restless, || {
        for round in 0..12 {
            let _ = fs::remove_dir_all(world.path("out"));
            let built = world.build(&["-o", "out"]);
            assert!(matches!(built.code, 0 | 1), "{round}: {} {}", built.code, built.err);
            assert!(!built.err.contains("bug in Kiln"), "{}", built.err);
            if built.code == 1 {
                let named = ["data", "new", "odd", "all"].iter().any(|n| built.err.contains(n));
                assert!(named, "{round}: {}", built.err);
            }
        }
    });
    put('c').expect("written");
    world.build(&["-o", "after"]).ok();
    for name in ["after/data", "after/all/data"] {
        assert!(fs::read_to_string(world.path(name)).expect("there") == whole('c'), "{name}");
    }
    assert_eq!(world.kiln(&["fsck"]).ok().code, 0);
}

/// F48: other bytes, the same length, within one tick of the file system's clock.
#[test]
fn f48_changes_within_a_tick() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nCOPY data /data\n");
    for round in 1000..1030 {
        let expect = round.to_string();
        fs::write(world.path("ctx/data"), &expect).expect("written");
        world.build(&["-o", "out"]).ok();
        assert_eq!(fs::read_to_string(world.path("out/data")).expect("there"), expect);
    }
}

/// `kiln` with another clock.
fn at(world: &World, time: &str, args: &[&str]) -> Said {
    let shift = time.starts_with(['+', '-']);
    let how: &[&str] = if shift { &["-f", time] } else { &[time] };
    said(&world.started_by("faketime", how).args(args).output().expect("faketime is installed"))
}

/// F49, F50: keys know no time; a clock that is wrong, or goes back, makes nothing go.
#[test]
fn f49_f50_clocks_that_are_wrong() {
    let world = World::new();
    world.busybox();
    let build = ["build", "--progress=plain", "-t", "image", "-o", "out", "ctx"];
    let mut round = 0;
    for time in
        ["+10y", "-10y", "2100-01-01 00:00:00", "1971-01-01 00:00:00", "2040-02-01 00:00:00"]
    {
        round += 1;
        set_round(&world, round);
        at(&world, time, &build).ok();
        let made = fs::read(world.path("out/made")).expect("there");
        assert!(made == fs::read(world.path("ctx/data")).expect("there"), "{time}");
        // What was made at that time is there at this one, after the garbage went, and the other way round.
        for now in ["+0", time, "-20y", "+20y"] {
            at(&world, now, &["prune", "--force"]).ok();
            let again = at(&world, now, &build).ok();
            assert_eq!(again.err.matches("CACHED").count(), 2, "{time} {now}: {}", again.err);
        }
        at(&world, time, &["du"]).ok();
        at(&world, time, &["builds"]).ok();
    }
    heals(&world, "after all these times");
    // It goes back while a step runs: durations are those of another clock.
    world.file("Dockerfile", "FROM busybox\nRUN sleep 1\n");
    let mut command = world.started_by("faketime", &["-f", "@2030-01-01 00:00:00 x-5"]);
    let built =
        said(&command.args(["build", "--progress=plain", "ctx"]).output().expect("starts")).ok();
    assert!(built.err.contains("DONE"), "{}", built.err);
}

/// F49: times of files that no archive of the simple format can hold, and epochs that are none.
#[test]
fn f49_times_of_files_and_epochs() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nCOPY . /all\nRUN ls -l /all\n");
    for time in ["1901-12-14", "1969-12-31 23:59:59", "2106-02-08", "2400-01-01"] {
        let name = format!("f{}", &time[..4]);
        world.file(&name, time);
        tool("touch", &["-d", time, &text(&world.path("ctx").join(&name))]);
    }
    world.build(&["-o", "out", "-o", "type=oci,dest=image.tar", "-o", "type=tar,dest=r.tar"]).ok();
    let listed = tool("tar", &["--utc", "-tvf", &text(&world.path("r.tar"))]);
    assert!(listed.lines().any(|line| line.contains("all/f1901")), "{listed}");
    for (epoch, code) in
        [("0", 0), ("4102444800", 0), ("-1", 0), ("x", 1), ("99999999999999999999", 1), ("1.5", 1)]
    {
        let argument = format!("SOURCE_DATE_EPOCH={epoch}");
        let said = world.build(&[
            "--build-arg",
            &argument,
            "-o",
            "type=oci,rewrite-timestamp=true,dest=e.tar",
        ]);
        assert!(!said.err.contains("bug in Kiln"), "{epoch}: {}", said.err);
        assert_eq!(said.code, code, "{epoch}: {}", said.err);
        assert!(code == 0 || said.err.contains("SOURCE_DATE_EPOCH"), "{epoch}: {}", said.err);
    }
}
