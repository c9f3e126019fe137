//! F06 to F22: calls of the kernel that fail, one after another, where it matters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Disk, PATIENCE, arguments, attempt, heals, noise, outputs_are_whole, set_round};
use crate::env::{Said, World, files, said, text, tool};

/// Builds while strace lets calls fail; says how often they did.
fn build_with(world: &World, strace: &[&str], args: &[&str]) -> (Said, usize) {
    let log = world.path("strace.log");
    let mut all = vec!["-f", "-qq", "-o"];
    let log_text = text(&log);
    all.push(&log_text);
    all.extend_from_slice(strace);
    let mut command = world.started_by("strace", &all);
    command.args(["build", "--progress=plain"]).args(args).arg("ctx");
    let begun = std::time::Instant::now();
    let said = said(&command.output().expect("strace is installed"));
    assert!(begun.elapsed() < PATIENCE, "{strace:?} took {:?}", begun.elapsed());
    assert!(!said.err.contains("bug in Kiln"), "{strace:?}: {}", said.err);
    let log = fs::read_to_string(log).expect("strace writes");
    (said, log.lines().filter(|line| line.contains("(INJECTED)")).count())
}

/// F06: the signal of a file that is too large kills nobody.
#[test]
fn f06_files_may_not_grow() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    fs::write(world.path("ctx/data"), noise(3 << 20)).expect("written");
    for (limit, told) in [
        (1 << 10, "disk I/O error"),
        (40_000, "disk I/O error"),
        (2_000_000, "cannot write `data`: File too large"),
        (3_500_000, "image.tar`: File too large"),
    ] {
        let _ = fs::remove_file(world.path("image.tar"));
        let mut command = world.started_by("prlimit", &[&format!("--fsize={limit}")]);
        let refused = said(&command.args(arguments(&world)).output().expect("starts"));
        assert_eq!(refused.code, 3, "{limit}: {}", refused.err);
        assert!(refused.err.contains(told), "{limit}: {}", refused.err);
        outputs_are_whole(&world, "limited");
    }
    heals(&world, "without a limit");
}

/// F07: the disk takes what is written and loses it afterwards: a loop device whose backing store is too small.
#[test]
fn f07_a_disk_that_loses_what_it_took() {
    let world = World::new();
    world.busybox();
    let archive = text(&world.path("busybox.tar"));
    let backing = Disk::tmpfs(world.path("backing"), "size=12m");
    let image = backing.0.join("disk.img");
    let disk = Disk::ext4(world.path("thin"), &image, 128, "errors=remount-ro");
    let on_disk = |args: &[String]| {
        let mut command = world.command();
        command.env("KILN_ROOT", world.path("thin/store")).args(args);
        said(&command.output().expect("starts"))
    };
    let import = ["import".to_owned(), archive, "busybox".to_owned()];
    set_round(&world, 1);
    fs::write(world.path("ctx/data"), noise(6 << 20)).expect("written");
    // Whether these fail depends on when the kernel writes back; nothing wrong may come of them.
    on_disk(&import);
    on_disk(&arguments(&world));
    outputs_are_whole(&world, "a thin disk");
    let synced = Command::new("sync").arg("-f").arg(&disk.0).output().expect("runs");
    assert!(!synced.status.success(), "nothing was lost");
    // The device has room now. What was lost is found, and made again.
    backing.resize("size=96m");
    drop(disk);
    // One: it has repaired something.
    tool("sh", &["-c", "e2fsck -fy \"$1\" || [ $? -le 2 ]", "sh", &text(&image)]);
    let disk = Disk(world.path("thin"));
    tool("mount", &["-o", "loop", &text(&image), &text(&disk.0)]);
    on_disk(&["fsck".to_owned(), "--repair".to_owned()]);
    on_disk(&import).ok();
    let _ = fs::remove_dir_all(world.path("out"));
    on_disk(&arguments(&world)).ok();
    for name in ["out/data", "out/made"] {
        let same = fs::read(world.path(name)).expect("there")
            == fs::read(world.path("ctx/data")).expect("there");
        assert!(same, "{name}");
    }
    on_disk(&["fsck".to_owned()]).ok();
}

/// F12: what cannot be synced is not believed after a power cut; the build is none the worse.
/// F13: what cannot be published is not there.
#[test]
fn f12_f13_names_that_do_not_appear() {
    let world = World::new();
    world.busybox();
    for (round, when) in (1..=6).enumerate() {
        set_round(&world, round);
        let _ = fs::remove_file(world.path("image.tar"));
        let inject = format!("inject=rename,renameat,renameat2,link,linkat:error=EIO:when={when}");
        let archive = format!("type=oci,dest={}", text(&world.path("image.tar")));
        let args = ["-t", "image", "-o", "out", "-o", archive.as_str()];
        let (refused, injected) = build_with(&world, &["-e", &inject], &args);
        assert!(injected > 0, "{when}");
        assert_eq!(refused.code, 3, "{when}: {}", refused.err);
        assert!(refused.err.contains("Input/output error"), "{when}: {}", refused.err);
        assert!(refused.err.contains("the way to it, fails"), "{when}: {}", refused.err);
        outputs_are_whole(&world, &inject);
        heals(&world, &inject);
    }
    set_round(&world, 50);
    let unsynced = ["-e", "inject=fsync,fdatasync,syncfs,msync:error=EIO"];
    let (built, _) = build_with(&world, &unsynced, &["-o", "out"]);
    assert_eq!(built.code, 0, "{}", built.err);
    heals(&world, "nothing was synced");
}

/// F13: as many links as a file can have, or a file system without links: the output has copies.
#[test]
fn f13_links_that_are_refused_are_copies() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN echo x >/a && busybox ln /a /b\n");
    fs::create_dir(world.path("out")).expect("made");
    world.build(&[]).ok();
    for error in ["EMLINK", "EPERM", "EOPNOTSUPP"] {
        let inject = format!("inject=linkat:error={error}");
        let (built, injected) = build_with(&world, &["-e", &inject], &["-o", "out"]);
        assert_eq!((built.code, injected), (0, 1), "{error}: {}", built.err);
        assert_eq!(fs::read(world.path("out/b")).expect("there"), b"x\n");
    }
}

/// F15: what the disk cannot read any more is set aside, and made again.
#[test]
fn f15_lost_files_of_the_store() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    heals(&world, "the first build");
    let in_layers = |name: &str| {
        let found = files(&world.path("store/layers"));
        found.into_iter().find(|path| path.ends_with(name)).expect("in a layer")
    };
    // Not the base: that was made by hand, and is nowhere else.
    let own = |path: &PathBuf| fs::metadata(path).expect("there").len() < 100_000;
    let blob = || {
        let names = tool("tar", &["-tf", &text(&world.path("image.tar"))]);
        let blobs = names.lines().filter(|name| name.starts_with("blobs/sha256/")).skip(1);
        let blobs = blobs.map(|name| world.path("store").join(name)).filter(own);
        blobs.max_by_key(|path| fs::metadata(path).expect("there").len()).expect("a layer's")
    };
    let tree = || {
        let trees = files(&world.path("store/trees")).into_iter();
        let age = |path: &PathBuf| fs::metadata(path).expect("there").modified().expect("known");
        trees.max_by_key(age).expect("the last step's")
    };
    for which in 0..4 {
        let lost = match which {
            0 => in_layers("made"),
            1 => in_layers("data"),
            2 => blob(),
            _ => tree(),
        };
        let path = text(&lost);
        let strace = ["-P", &path, "-e", "inject=read,pread64,copy_file_range:error=EIO:when=1"];
        let archive = format!("type=oci,dest={}", text(&world.path("image.tar")));
        let _ = fs::remove_dir_all(world.path("out"));
        let (built, injected) =
            build_with(&world, &strace, &["-t", "image", "-o", "out", "-o", &archive]);
        assert!(injected > 0, "{path} was not read");
        assert_eq!(built.code, 0, "{path}: {}", built.err);
        assert!(built.err.contains("was damaged") && built.err.contains("Input/output error"));
        assert!(!files(&world.path("store/quarantine")).is_empty(), "{path}");
        fs::remove_dir_all(world.path("store/quarantine")).expect("removed");
        heals(&world, &path);
    }
}

/// F16: the error names the file.
#[test]
fn f16_files_of_the_context_that_cannot_be_read() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nCOPY . /all\n");
    world.file("folder/inner", "1").file("data", &"2".repeat(100_000));
    for (name, call) in [
        ("data", "read,pread64,copy_file_range"),
        ("folder", "getdents64"),
        ("Dockerfile", "read,pread64"),
    ] {
        let path = text(&world.path("ctx").join(name));
        let inject = format!("inject={call}:error=EIO");
        let (refused, injected) = build_with(&world, &["-P", &path, "-e", &inject], &[]);
        assert!(injected > 0, "{name}");
        assert_eq!(refused.code, 3, "{name}: {}", refused.err);
        let told = refused.err.lines().find(|line| line.starts_with("error: "));
        let told = told.expect("an error").to_lowercase();
        let named = told.contains(&name.to_lowercase()) && told.contains("input/output error");
        assert!(named, "{name}: {}", refused.err);
    }
    world.build(&[]).ok();
}

/// F17: some file systems tell only at the end that they did not write.
#[test]
fn f17_outputs_that_fail_when_they_are_closed() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    heals(&world, "the first build");
    let path = text(&world.path("out/.kiln-new"));
    let strace = ["-P", path.as_str(), "-e", "inject=close:error=EDQUOT:when=1"];
    let (refused, injected) = build_with(&world, &strace, &["-o", "out"]);
    assert_eq!((refused.code, injected), (3, 1), "{}", refused.err);
    assert!(refused.err.to_lowercase().contains("quota exceeded"), "{}", refused.err);
    heals(&world, "after all that");
}

/// F22: a file system without locks is refused by name; nothing is shared unlocked.
#[test]
fn f22_file_systems_without_locks() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    for error in ["ENOLCK", "EOPNOTSUPP"] {
        let inject = format!("inject=flock:error={error}");
        let (refused, _) = build_with(&world, &["-e", &inject], &[]);
        assert_eq!(refused.code, 3, "{error}: {}", refused.err);
        let told = refused.err.to_lowercase();
        assert!(told.contains("no locks available"), "{error}: {}", refused.err);
        assert!(told.contains("needs a file system with locks"), "{error}: {}", refused.err);
        assert!(Path::new(&world.path("store/layers")).exists());
    }
    attempt(&world).ok();
    heals(&world, "with locks");
}
