//! F18 to F21: stores and contexts in strange places.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Disk, PATIENCE, heals, no_mount_is_left, set_round, take_off};
use crate::env::{Said, World, said, text, tool};

/// `kiln ARGS…` with the store there.
fn kiln_in(world: &World, store: &Path, args: &[&OsStr]) -> Said {
    said(&world.command().env("KILN_ROOT", store).args(args).output().expect("starts"))
}

/// Imports the base, builds and checks, with a store in this place.
fn works_in(world: &World, store: &Path) {
    let what = store.display();
    let run = |args: &[&str]| {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let said = kiln_in(world, store, &args);
        assert_eq!(said.code, 0, "{what}: {}{}", said.out, said.err);
        said
    };
    run(&["import", "busybox.tar", "busybox"]);
    let _ = fs::remove_dir_all(world.path("out"));
    let build = ["build", "--progress=plain", "-t", "image", "-o", "out", "ctx"];
    run(&build);
    let made = fs::read(world.path("out/made")).expect("there");
    assert!(made == fs::read(world.path("ctx/data")).expect("there"), "{what}");
    assert!(run(&build).err.contains("CACHED"), "{what}");
    run(&["run", "image", "cat", "/made"]);
    run(&["fsck"]);
}

/// F18: the kernel makes the disk read-only in the middle of a step.
#[test]
fn f18_a_disk_turns_read_only() {
    let world = World::new();
    world.busybox();
    let image = world.path("disk.img");
    let disk = Disk::ext4(world.path("store2"), &image, 48, "errors=remount-ro");
    let store = world.path("store2/store");
    set_round(&world, 1);
    works_in(&world, &store);
    tool("sync", &["-f", &text(&disk.0)]);
    let step = "touch /begun; n=0; while touch /a 2>/dev/null && [ $n -lt 600 ]; do n=$((n+1)); busybox usleep 50000; done; echo x >/x";
    world.file("Dockerfile", &format!("FROM busybox\nRUN {step}\n"));
    let device = tool("findmnt", &["-no", "SOURCE", &text(&disk.0)]);
    let device = Path::new(device.trim()).file_name().expect("a device").to_owned();
    let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
    let begun = Instant::now();
    let broken = std::thread::scope(|scope| {
        scope.spawn(|| {
            let upper =
                || crate::env::files(&store.join("tmp")).iter().any(|p| p.ends_with("begun"));
            while !upper() && begun.elapsed() < PATIENCE {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            fs::write(&trigger, "broken").expect("ext4 lets itself be broken");
        });
        kiln_in(&world, &store, &["build", "--progress=plain", "ctx"].map(OsStr::new))
    });
    assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
    assert_ne!(broken.code, 0, "{}", broken.err);
    assert!(broken.err.contains("Read-only file system"), "{}", broken.err);
    assert!(!broken.err.contains("bug in Kiln"), "{}", broken.err);
    take_off(&disk.0, &image);
    tool("sh", &["-c", "e2fsck -fy \"$1\" || [ $? -le 2 ]", "sh", &text(&image)]);
    tool("mount", &["-o", "loop", &text(&image), &text(&disk.0)]);
    // As after a power cut, but in the same boot.
    let repair = ["fsck", "--repair"].map(OsStr::new);
    kiln_in(&world, &store, &repair).ok();
    set_round(&world, 2);
    works_in(&world, &store);
    no_mount_is_left(&world);
}

/// F20: every name that a file system takes; SQLite's limit is named.
#[test]
fn f20_names_of_stores() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    let long = "d".repeat(200);
    let names: Vec<&[u8]> = vec![
        b"with space",
        b"colon:comma,equals=x",
        b"back\\slash",
        b"new\nline",
        b"quotes'\"`",
        b"percent%3f?mode=ro#x",
        b"\xff\xfe",
        b"-t",
        long.as_bytes(),
    ];
    for name in names {
        works_in(&world, &world.path("").join(OsStr::from_bytes(name)));
    }
    let deep: PathBuf =
        [world.path("").as_path(), Path::new(&long), Path::new(&long)].iter().collect();
    works_in(&world, &deep);
    let deeper = deep.join(&long);
    let refused = kiln_in(&world, &deeper, &[OsStr::new("images")]);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("its path is longer than"), "{}", refused.err);
    assert!(!deeper.exists(), "nothing was made");
}

/// F20: contexts and outputs with such names. A command line that is no UTF-8 is refused, a folder of that name is not.
#[test]
fn f20_names_of_contexts() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    for name in ["with space", "colon:comma", "new\nline", "quotes'\"`", "back\\slash"] {
        fs::rename(world.path("ctx"), world.path(name)).expect("renamed");
        world.kiln(&["build", "-o", &format!("out {name}"), name]).ok();
        fs::rename(world.path(name), world.path("ctx")).expect("renamed");
        let made = fs::read(world.path(&format!("out {name}")).join("made")).expect("there");
        assert!(made == fs::read(world.path("ctx/data")).expect("there"), "{name}");
    }
    let odd = world.path("").join(OsStr::from_bytes(b"\xff"));
    fs::rename(world.path("ctx"), &odd).expect("renamed");
    let mut command = world.command();
    let built = command.current_dir(&odd).args(["build", "-o", "out", "."]).output();
    said(&built.expect("starts")).ok();
    assert!(odd.join("out/made").is_file());
    let refused = said(&world.command().arg("build").arg(&odd).output().expect("starts"));
    assert_eq!(refused.code, 2, "{}", refused.err);
}

/// F21: steps run what is in their layers, and not by the rules of the store's mount; what `chmod` set stays.
#[test]
fn f21_mounts_with_restrictions() {
    let world = World::new();
    world.busybox();
    for options in ["noexec", "nodev", "nosuid", "nosymfollow", "noatime,noexec,nodev,nosuid"] {
        let disk = Disk::tmpfs(world.path("bound"), &format!("size=64m,{options}"));
        set_round(&world, options.len());
        let store = disk.0.join("store");
        works_in(&world, &store);
        let steps =
            "RUN busybox chmod 4755 /bin/busybox\nRUN [ -u /bin/busybox ] && ls -l /bin/sh\n";
        world.file("Dockerfile", &format!("FROM busybox\n{steps}"));
        let build = ["build", "--progress=plain", "ctx"].map(OsStr::new);
        let said = kiln_in(&world, &store, &build);
        assert_eq!(said.code, 0, "{options}: {}", said.err);
        drop(disk);
    }
    set_round(&world, 1);
    heals(&world, "elsewhere");
}

/// F21: a file system without extended attributes.
#[test]
fn f21_a_store_without_attributes() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    let (image, folder) = (world.path("disk.img"), world.path("plain"));
    tool("truncate", &["-s", "48M", &text(&image)]);
    tool("mkfs.ext4", &["-q", "-F", "-O", "^ext_attr", &text(&image)]);
    fs::create_dir(&folder).expect("made");
    tool("mount", &["-o", "loop", &text(&image), &text(&folder)]);
    let disk = Disk(folder);
    works_in(&world, &disk.0.join("store"));
}
