//! F03 to F10: disks without room, and stores of several disks.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Disk, attempt, heals, is_full, outputs_are_whole, set_round};
use crate::env::{World, said, text, tool};

/// A world whose store is on a disk of its own, and holds the base.
fn world_on(make: impl FnOnce(&World) -> Disk) -> (World, Disk) {
    let world = World::new();
    let disk = make(&world);
    world.busybox();
    (world, disk)
}

/// What was run stays cached when there is no room to pack it, and an old output stays as it was.
#[test]
fn f03_a_step_stays_where_its_export_fails() {
    let (world, disk) = world_on(|world| Disk::tmpfs(world.path("store"), "size=64m"));
    let write = "busybox dd if=/dev/urandom of=/made bs=1M count=8 2>/dev/null";
    world.file("Dockerfile", &format!("FROM busybox\nRUN {write}\n"));
    let output = ["-o", "type=oci,dest=image.tar"];
    fs::write(world.path("image.tar"), "old").expect("written");
    // Room for the layer, none for its archive.
    disk.resize("size=16m");
    let full = world.build(&output);
    assert_eq!(full.code, 3, "{}", full.err);
    assert!(is_full(&full.err), "{}", full.err);
    assert!(full.err.contains("`kiln prune` makes room"), "{}", full.err);
    assert!(full.err.contains("#1 DONE"), "{}", full.err);
    assert_eq!(fs::read(world.path("image.tar")).expect("there"), b"old");
    disk.resize("size=64m");
    let next = world.build(&output).ok();
    assert!(next.err.contains("#1 CACHED"), "{}", next.err);
    tool("tar", &["-tf", &text(&world.path("image.tar"))]);
}

/// Not one byte is free, or the disk is read-only: what is cached can be exported to another one.
#[test]
fn f04_f19_a_full_or_read_only_store_can_be_read() {
    let tmpfs = |world: &World| Disk::tmpfs(world.path("store"), "size=16m");
    let ext4 = |world: &World| {
        Disk::ext4(world.path("store"), &world.path("disk.img"), 24, "errors=remount-ro")
    };
    for make in [&tmpfs as &dyn Fn(&World) -> Disk, &ext4] {
        let (world, disk) = world_on(make);
        set_round(&world, 1);
        // With a time of their own, images are the same in every second, and no document of them is new.
        let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
        let outputs = ["-o", "out", "-o", "type=oci,dest=a.tar", "-o", "type=docker,dest=b.tar"];
        let outputs = [epoch.as_slice(), &outputs].concat();
        world.build(&outputs).ok();
        let before = fs::read(world.path("a.tar")).expect("there");
        disk.fill();
        for how in ["full", "read-only"] {
            if how == "read-only" {
                disk.resize("ro");
            }
            fs::remove_dir_all(world.path("out")).expect("removed");
            fs::remove_file(world.path("a.tar")).expect("removed");
            world.build(&outputs).ok();
            assert!(fs::read(world.path("a.tar")).expect("there") == before, "{how}");
            let made = fs::read(world.path("out/made")).expect("there");
            assert!(made == fs::read(world.path("ctx/data")).expect("there"), "{how}");
            // What needs room says so, and loses nothing.
            let refused = world.build(&["-t", "other"]);
            assert_eq!(refused.code, 3, "{how}: {}", refused.err);
        }
        disk.resize("rw");
        world.kiln(&["prune", "--all", "--force"]).ok();
        disk.empty();
        heals(&world, "after all that");
    }
}

/// Context, outputs and temporary files may be on other disks than the store; the store has to be on one.
#[test]
fn f09_other_file_systems() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    let other = Disk::tmpfs(world.path("other"), "size=32m");
    fs::rename(world.path("ctx/data"), world.path("data")).expect("renamed");
    fs::copy(world.path("data"), world.path("other/data")).expect("copied");
    fs::copy(world.path("ctx/Dockerfile"), world.path("other/Dockerfile")).expect("copied");
    let mut command = world.command();
    command.env("TMPDIR", world.path("other")).args(["build", "-o", "other/out", "-o"]);
    command.args(["type=oci,dest=other/image.tar", "-o", "type=oci,tar=false,dest=other/layout"]);
    said(&command.arg("other").output().expect("starts")).ok();
    let made = fs::read(world.path("other/out/made")).expect("there");
    assert!(made == fs::read(world.path("data")).expect("there"));
    for folder in ["tmp", "layers"] {
        set_round(&world, 2);
        let inner = text(&world.path(&format!("store/{folder}")));
        let (copy, there) = (text(&other.0.join(folder)), format!("{inner}/."));
        tool("cp", &["-a", &there, &copy]);
        tool("mount", &["--bind", &copy, &inner]);
        let _mounted = Disk(inner.into());
        let refused = attempt(&world);
        assert_eq!(refused.code, 3, "{folder}: {}", refused.err);
        assert!(refused.err.contains("have to be on one file system"), "{}", refused.err);
    }
    heals(&world, "one file system again");
}

/// Two builds fill a disk that has a quota: what nobody uses goes, nobody loses what it uses.
#[test]
fn f10_builds_on_a_disk_that_is_nearly_full() {
    let (world, _disk) = world_on(|world| Disk::tmpfs(world.path("store"), "size=40m"));
    fs::write(world.path("config.toml"), "[gc]\nmax-used-space = \"16MB\"\n").expect("written");
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for builder in 0..2 {
            let (world, failed) = (&world, &failed);
            scope.spawn(move || {
                for round in 0..6 {
                    let name = format!("ctx{builder}");
                    let write = "busybox dd if=/dev/urandom of=/big bs=1M count=4 2>/dev/null";
                    let dockerfile = format!(
                        "FROM busybox\nRUN {write} && echo {builder} {round} >/first\nRUN cat /first >/second\n"
                    );
                    fs::create_dir_all(world.path(&name)).expect("made");
                    fs::write(world.path(&name).join("Dockerfile"), dockerfile).expect("written");
                    let mut command = world.command();
                    command.env("KILN_CONFIG", world.path("config.toml"));
                    let out = format!("out{builder}");
                    command.args(["build", "--progress=plain", "-o", &out, &name]);
                    let built = said(&command.output().expect("starts"));
                    let second = fs::read_to_string(world.path(&out).join("second"));
                    if built.code != 0 || second.ok() != Some(format!("{builder} {round}\n")) {
                        eprintln!("{builder} {round}: {}", built.err);
                        failed.store(true, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert!(!failed.load(Ordering::SeqCst));
    set_round(&world, 1);
    outputs_are_whole(&world, "nearly full");
    heals(&world, "nearly full");
}
