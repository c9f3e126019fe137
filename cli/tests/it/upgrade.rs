//! Stores of other versions: `testdata/store-format-1.tar.gz` was made by the first format (commit 86d61d4), with the
//! context that was built: eight steps, the image `old:1`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::env::{World, files, text, tool};

/// Where `PRAGMA user_version` stands in the file.
const USER_VERSION: std::ops::Range<usize> = 60..64;

fn old_store() -> World {
    let world = World::new();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/store-format-1.tar.gz");
    tool("tar", &["-C", &text(&world.path(".")), "-xpzf", &text(&archive)]);
    assert_eq!(format(&world), 1);
    world
}

fn format(world: &World) -> u32 {
    let bytes = fs::read(world.path("store/kiln.db")).expect("the database");
    u32::from_be_bytes(bytes[USER_VERSION].try_into().expect("four bytes"))
}

#[test]
fn a_store_of_the_first_format_opens_and_is_of_use() {
    let world = old_store();
    let said = world.build(&["-t", "new:1", "--output", "type=local,dest=out"]).ok();
    let cached = said.err.lines().filter(|line| line.ends_with(" CACHED")).count();
    assert_eq!(cached, 8, "{}", said.err);
    assert!(!said.err.contains(" DONE "), "{}", said.err);
    let read = |path: &str| fs::read_to_string(world.path(path)).expect(path);
    assert_eq!(read("out/greeting"), "hello\n");
    assert_eq!(read("out/linked/a.txt"), "one\n");
    // The image of that time is there, with its files.
    assert!(world.kiln(&["images"]).ok().out.contains("old"));
    world.file("Dockerfile", "FROM old:1\nCOPY a.txt /again\n");
    world.build(&["--output", "type=local,dest=old"]).ok();
    for path in ["old/greeting", "old/src/main.c", "old/added/main.c", "old/again"] {
        assert!(world.path(path).is_file(), "{path}");
    }
    assert_eq!(fs::read_link(world.path("old/src/link")).expect("a link"), Path::new("main.c"));
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let world = old_store();
    let database = world.path("store/kiln.db");
    let mut bytes = fs::read(&database).expect("the database");
    bytes[USER_VERSION].copy_from_slice(&99_u32.to_be_bytes());
    fs::write(&database, bytes).expect("written");
    let before = contents(&world);
    for command in [vec!["build", "ctx"], vec!["prune", "--all"], vec!["images"]] {
        let said = world.kiln(&command);
        assert_ne!(said.code, 0, "{command:?}");
        assert!(said.err.contains("99") && said.err.contains("newer"), "{command:?}: {}", said.err);
    }
    assert_eq!(contents(&world), before);
}

/// All files of the store but the database's shared memory, which readers make.
fn contents(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let kept = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let empty = fs::metadata(path).is_ok_and(|found| found.len() == 0);
        !name.ends_with("-shm") && !(empty && (name.ends_with("-wal") || name == "lock"))
    };
    let found = files(&world.path("store")).into_iter().filter(kept);
    found.map(|path| (path.clone(), fs::read(&path).expect("readable"))).collect()
}
