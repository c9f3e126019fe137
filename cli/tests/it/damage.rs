//! Damaged stores: what is damaged is found, set aside and made anew; nothing wrong ever leaves the store.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::env::{World, files, text};

/// A world with an image of two steps' layers, exported in every way.
fn world() -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nCOPY data /data\nRUN echo made >/made\n");
    let data: String = (0..40_000).map(|n| format!("{n}\n")).collect();
    world.file("data", &data);
    world.build(&["-t", "image"]).ok();
    world
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

fn below(world: &World, folder: &str) -> Vec<PathBuf> {
    files(&world.path("store").join(folder))
}

/// Builds and exports in two ways; both have to be as from a store without damage.
fn comes_out_right(world: &World, what: &str) {
    let _ = fs::remove_dir_all(world.path("out"));
    let built = world.build(&["-t", "image", "-o", "out", "-o", "type=oci,dest=image.tar"]);
    assert_eq!(built.code, 0, "{what}: {}", built.err);
    let same = fs::read(world.path("out/data")).expect("there")
        == fs::read(world.path("ctx/data")).expect("there");
    assert!(same, "{what}: a wrong file came out: {}", built.err);
    assert_eq!(fs::read(world.path("out/made")).expect("there"), b"made\n", "{what}");
    let other = World::new();
    fs::copy(world.path("image.tar"), other.path("image.tar")).expect("copied");
    fs::create_dir(other.path("layout")).expect("made");
    let (archive, folder) = (text(&other.path("image.tar")), text(&other.path("layout")));
    crate::env::tool("tar", &["-xf", &archive, "-C", &folder]);
    for blob in files(&other.path("layout/blobs")) {
        let digest = crate::env::tool("sha256sum", &[&text(&blob)]);
        assert!(digest.starts_with(&*blob.file_name().expect("named").to_string_lossy()), "{what}");
    }
    let left = world.kiln(&["fsck"]);
    assert_eq!(left.code, 0, "{what}: {}{}", left.out, left.err);
}

/// Damages one file after the other, each in a store that is whole but for it.
fn each_damage_heals(folder: &str, damage: impl Fn(&Path)) {
    let world = world();
    let names: Vec<PathBuf> = below(&world, folder);
    assert!(!names.is_empty());
    for path in names {
        if !path.exists() {
            // Made anew under another name after an earlier damage.
            continue;
        }
        let what = text(&path);
        damage(&path);
        let found = world.kiln(&["fsck", "--format", "json"]);
        assert_eq!(found.code, 3, "{what} is not found: {}{}", found.out, found.err);
        comes_out_right_after_repair(&world, &what);
    }
}

/// What builds read heals by itself; what they do not look at, `fsck --repair` sets aside. The base was made by hand
/// and is nowhere else: if it is lost, that is said.
fn comes_out_right_after_repair(world: &World, what: &str) {
    let _ = fs::remove_dir_all(world.path("out"));
    let built = world.build(&["-o", "out"]);
    if built.code == 0 {
        let same = fs::read(world.path("out/data")).expect("there")
            == fs::read(world.path("ctx/data")).expect("there");
        assert!(same, "{what}: a wrong file came out");
    } else {
        assert!(built.err.contains("busybox"), "{what}: {}", built.err);
        assert!(!world.path("out").exists(), "{what}: no output where the build failed");
    }
    world.kiln(&["fsck", "--repair"]);
    world.kiln(&["import", "busybox.tar", "busybox"]).ok();
    comes_out_right(world, what);
}

#[test]
fn f33_a_flipped_bit_in_a_layer_heals() {
    each_damage_heals("layers", |path| {
        let length = fs::metadata(path).expect("there").len();
        flip(path, length / 2);
    });
}

#[test]
fn f33_a_flipped_bit_in_a_tree_heals() {
    each_damage_heals("trees", |path| {
        let length = fs::metadata(path).expect("there").len();
        flip(path, length - 40);
    });
}

#[test]
fn f33_a_flipped_bit_in_a_blob_heals() {
    each_damage_heals("blobs", |path| {
        let length = fs::metadata(path).expect("there").len();
        flip(path, length / 2);
    });
}

#[test]
fn f34_files_cut_short_heal() {
    for folder in ["layers", "trees", "blobs"] {
        each_damage_heals(folder, |path| {
            let length = fs::metadata(path).expect("there").len();
            let file = OpenOptions::new().write(true).open(path).expect("opened");
            file.set_len(length - 1).expect("cut");
        });
    }
}

#[test]
fn f35_files_that_are_gone_or_something_else_heal() {
    each_damage_heals("layers", |path| fs::remove_file(path).expect("removed"));
    each_damage_heals("trees", |path| fs::remove_file(path).expect("removed"));
    each_damage_heals("blobs", |path| {
        fs::remove_file(path).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", path).expect("linked");
    });
}

#[test]
fn f36_blobs_that_changed_places_are_noticed() {
    let world = world();
    let blobs = below(&world, "blobs");
    let [one, other] = &blobs[..2] else { panic!("two blobs") };
    let swap = world.path("swap");
    fs::rename(one, &swap).expect("renamed");
    fs::rename(other, one).expect("renamed");
    fs::rename(&swap, other).expect("renamed");
    comes_out_right_after_repair(&world, "swapped blobs");
}

#[test]
fn f33_a_damaged_index_loses_names_alone() {
    let world = world();
    fs::write(world.path("store/index.json"), "{").expect("written");
    let lost = world.build(&[]);
    assert_ne!(lost.code, 0, "the imported base has no name any more");
    assert!(!below(&world, "quarantine").is_empty());
    world.kiln(&["import", "busybox.tar", "busybox"]).ok();
    let built = world.build(&["-t", "image"]).ok();
    assert!(!built.err.contains("DONE"), "all steps are there: {}", built.err);
}

#[test]
fn f37_a_damaged_database_is_begun_anew() {
    let world = world();
    let database = world.path("store/kiln.db");
    // Into the file, so that the pages are where they can be damaged.
    let program = "import sqlite3, sys; \
        sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')";
    crate::env::tool("python3", &["-c", program, &text(&database)]);
    let whole = fs::read(&database).expect("read");
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..64].fill(0xa5);
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(world.path(&format!("store/kiln.db{suffix}")));
        }
        fs::write(&database, damaged).expect("written");
        let _ = fs::remove_dir_all(world.path("out"));
        // The build that comes upon the damage may fail, the next one may not.
        if world.build(&["-o", "out"]).code != 0 {
            let _ = fs::remove_dir_all(world.path("out"));
            let healed = world.build(&["-o", "out"]);
            assert_eq!(healed.code, 0, "page {page}: {}", healed.err);
        }
        let same = fs::read(world.path("out/data")).expect("there")
            == fs::read(world.path("ctx/data")).expect("there");
        assert!(same, "page {page}: a wrong file came out");
    }
}

#[test]
fn damage_is_told_and_kept() {
    let world = world();
    for tree in below(&world, "trees") {
        flip(&tree, 20);
    }
    let built = world.build(&["-o", "out"]).ok();
    assert!(built.err.contains("of the store was damaged"), "{}", built.err);
    assert!(built.err.contains("quarantine/"), "{}", built.err);
    assert!(!below(&world, "quarantine").is_empty());
}

#[test]
fn a_whole_store_has_no_problems() {
    let world = world();
    let told = world.kiln(&["fsck"]).ok().out;
    assert!(told.ends_with("problems: 0\n"), "{told}");
    let wrong = world.path("store/blobs/sha256/stranger");
    fs::write(&wrong, "x").expect("written");
    let found = world.kiln(&["fsck"]);
    assert_eq!(found.code, 3);
    assert!(found.err.contains("1 problem in the store"), "{}", found.err);
    assert!(found.err.contains("kiln fsck --repair"), "{}", found.err);
    world.kiln(&["fsck", "--repair"]).ok();
    assert!(!wrong.exists());
}

/// What is done to a file of a layer.
type Change<'a> = (&'a str, &'a dyn Fn(&Path));

/// Steps see layers as they are on disk: what differs there from their trees is found. Owners and times are the tree's
/// alone: on disk a store of few user ids has others.
#[test]
fn f39_trees_that_changed_behind_our_back_are_reported() {
    let made = |world: &World| {
        let found = below(world, "layers").into_iter();
        found.into_iter().find(|path| path.ends_with("made")).expect("the step's file")
    };
    let changes: [Change<'_>; 4] = [
        ("edited", &|path| fs::write(path, "MADE\n").expect("written")),
        ("another mode", &|path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).expect("changed");
        }),
        ("one more", &|path| fs::write(path.with_file_name("more"), "").expect("written")),
        ("capabilities", &|path| {
            let program = "import os, sys; os.setxattr(sys.argv[1], 'security.capability', \
                bytes.fromhex('0100000200040000000000000000000000000000'))";
            crate::env::tool("python3", &["-c", program, &text(path)]);
        }),
    ];
    for (what, change) in changes {
        let world = world();
        change(&made(&world));
        let found = world.kiln(&["fsck"]);
        assert_eq!(found.code, 3, "{what}: {}", found.out);
        assert!(found.out.contains("layer `"), "{what}: {}{}", found.out, found.err);
        comes_out_right_after_repair(&world, what);
    }
}
