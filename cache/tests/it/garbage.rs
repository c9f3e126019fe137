//! What uses space and what goes: order, limits, filters, quotas, notes; sizes against `du`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiln_cache::{
    CacheMountRequest, Digest, Filter, LayerId, Limits, NewRecord, PruneOptions, Sharing, Store,
    UsageKind, UsageRow,
};

use crate::bookkeeping::{key, record};
use crate::layers::{metadata, store};

const BLOCK: usize = 4096;

/// A layer with so many blocks of data.
fn sized(store: &Store, blocks: usize) -> LayerId {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    // Different bytes: equal layers would be one.
    let data = LayerId::random().as_str().repeat(blocks * BLOCK / 26 + 1);
    writer.file(Path::new("f"), &metadata(0o644), &mut &data.as_bytes()[..blocks * BLOCK]).unwrap();
    let tree = writer.finish().unwrap();
    let id = LayerId::random();
    draft.publish(id.clone(), tree).unwrap();
    id
}

/// A step of that name, that took so long, on top of others.
fn step(store: &Store, name: &str, chain: &[LayerId], duration_ms: u64) {
    let new = record(name, None, chain);
    let new = NewRecord { description: format!("RUN {name}"), duration_ms, ..new };
    store.save_record(&new).unwrap();
}

fn age(store: &Store, table: &str, column: &str, value: &str, seconds: i64) {
    let connection = rusqlite::Connection::open(store.path().join("kiln.db")).unwrap();
    let query =
        format!("UPDATE {table} SET last_used = last_used - ?1 WHERE CAST({column} AS TEXT) = ?2");
    assert!(connection.execute(&query, rusqlite::params![seconds, value]).unwrap() > 0);
}

fn there(store: &Store, name: &str) -> bool {
    store.lookup(&key(name)).unwrap().is_some()
}

fn du(path: &Path) -> u64 {
    let out = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn mount(store: &Store, id: &str) -> kiln_cache::CacheMount {
    let request = CacheMountRequest {
        id: id.to_owned(),
        base: None,
        sharing: Sharing::Shared,
        mode: 0o755,
        uid: 0,
        gid: 0,
        user: format!("RUN --mount=type=cache,id={id} make"),
    };
    store.cache_mount(&request, &|_| Ok(()), &|| true).unwrap().unwrap()
}

fn limited(max_used: u64) -> PruneOptions {
    let limits = Limits { max_used: Some(max_used), ..Limits::default() };
    PruneOptions { limits, ..PruneOptions::default() }
}

#[test]
fn rows_add_up_to_what_du_says() {
    let (_dir, store) = store();
    let first = sized(&store, 3);
    step(&store, "one", std::slice::from_ref(&first), 10);
    // Hard links inside a thing and from one thing to another, a sparse file, folders, a deep path.
    let mounted = mount(&store, "m");
    let inside = mounted.path();
    std::fs::write(inside.join("a"), vec![7; 5 * BLOCK]).unwrap();
    std::fs::hard_link(inside.join("a"), inside.join("b")).unwrap();
    std::fs::hard_link(inside.join("a"), store.layer_path(&first).join("c")).unwrap();
    std::fs::File::create(inside.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    std::fs::create_dir_all(inside.join("d/e/f/g")).unwrap();
    store.put_blob(&[1; 10_000]).unwrap();
    // A blob that the database does not know, and a layer that nobody does.
    let hex = Digest::sha256(b"stray").hex().to_owned();
    std::fs::write(store.path().join("blobs/sha256").join(hex), "stray").unwrap();
    std::fs::create_dir(store.path().join("layers").join(LayerId::random().as_str())).unwrap();
    let rows = store.disk_usage().unwrap();
    assert_eq!(rows.iter().map(|row| row.size).sum::<u64>(), du(store.path()), "{rows:#?}");
    let inodes = Command::new("du").args(["-s", "--inodes"]).arg(store.path()).output().unwrap();
    let inodes = String::from_utf8(inodes.stdout).unwrap();
    let entries = rows.iter().map(|row| row.entries).sum::<u64>().to_string();
    assert_eq!(inodes.split_whitespace().next(), Some(entries.as_str()));
    drop(mounted);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    store.prune(&all).unwrap();
    let rows = store.disk_usage().unwrap();
    assert_eq!(rows.iter().map(|row| row.size).sum::<u64>(), du(store.path()));
    assert!(rows.iter().all(|row| row.kind == UsageKind::Other && row.in_use), "{rows:#?}");
}

#[test]
fn the_least_valuable_goes_first() {
    let (_dir, store) = store();
    // Equal sizes: the quick step's layer goes before the slow one's, the one that was not used for two months before both.
    for (name, duration) in [("slow", 60_000), ("quick", 100), ("old", 30_000)] {
        let layer = sized(&store, 16);
        step(&store, name, std::slice::from_ref(&layer), duration);
        let seconds = if name == "old" { 60 * 86_400 } else { 3600 };
        age(&store, "records", "description", &format!("RUN {name}"), seconds);
        age(&store, "layers", "id", layer.as_str(), seconds);
    }
    // Large for the time that it saves.
    let bulky = sized(&store, 512);
    step(&store, "bulky", std::slice::from_ref(&bulky), 200);
    age(&store, "records", "description", "RUN bulky", 3600);
    age(&store, "layers", "id", bulky.as_str(), 3600);
    // Worth nothing, but used a moment ago.
    step(&store, "fresh", &[sized(&store, 1)], 0);
    let total = |store: &Store| store.disk_usage().unwrap().iter().map(|row| row.size).sum::<u64>();
    for (gone, left) in [
        ("bulky", vec!["quick", "old", "slow", "fresh"]),
        ("old", vec!["quick", "slow", "fresh"]),
        ("quick", vec!["slow", "fresh"]),
        ("slow", vec!["fresh"]),
    ] {
        let report = store.prune(&limited(total(&store) - 1)).unwrap();
        let names: Vec<&str> = report.removed.iter().map(|row| row.description.as_str()).collect();
        assert_eq!(names, [format!("RUN {gone}")]);
        assert!(left.iter().all(|name| there(&store, name)) && !there(&store, gone));
    }
    assert!(store.pruned_when(&key("quick")).unwrap().is_some_and(|time| time > 1_700_000_000));
    assert_eq!(store.pruned_when(&key("fresh")).unwrap(), None);
}

#[test]
fn a_layer_takes_what_stands_on_it() {
    let (_dir, store) = store();
    let base = sized(&store, 512);
    let top = sized(&store, 1);
    step(&store, "base", std::slice::from_ref(&base), 1);
    step(&store, "top", &[base, top], 1);
    step(&store, "other", &[sized(&store, 1)], 60_000);
    let used = store.used().unwrap();
    let space = store.room(&[limited(used - 1)]).unwrap();
    assert_eq!(space, Some(0), "over");
    let report = store.make_room(&[limited(used - 1)], 0).unwrap().unwrap();
    let mut names: Vec<_> = report.removed.iter().map(|row| row.description.clone()).collect();
    names.sort();
    assert!(names == ["RUN base"] || names == ["RUN base", "RUN top"], "{names:?}");
    assert!(!there(&store, "base") && !there(&store, "top") && there(&store, "other"));
    // What it left behind is worth nothing, and the plain prune knows it.
    store.prune(&PruneOptions::default()).unwrap();
    let layers = store.disk_usage().unwrap().into_iter().filter(|row| row.kind == UsageKind::Layer);
    assert_eq!(layers.map(|row| row.description).collect::<Vec<_>>(), ["RUN other"]);
}

#[test]
fn quotas_are_kept_before_writing_and_after() {
    let (_dir, store) = store();
    for n in 0..8 {
        step(&store, &format!("s{n}"), &[sized(&store, 64)], 1000 + n);
    }
    let used = store.used().unwrap();
    let policies = [limited(used)];
    assert_eq!(store.room(&policies).unwrap(), Some(0));
    assert!(store.collect_garbage(&policies).unwrap().is_none(), "exactly full is not over");
    let expected = 100 * BLOCK as u64;
    store.make_room(&policies, expected).unwrap().unwrap();
    assert!(store.used().unwrap() + expected <= used);
    assert!(store.room(&policies).unwrap().unwrap() >= expected);
    // A lease keeps what it holds, also when the limit cannot be met; nothing is tried again at once then.
    let lease = store.lease().unwrap();
    let held = store.lookup(&key("s7")).unwrap().unwrap();
    assert!(lease.hold_layers(&held.layers).unwrap());
    store.collect_garbage(&[limited(1)]).unwrap().unwrap();
    assert!(there(&store, "s7") && !there(&store, "s6"));
    store.collect_garbage(&[limited(1)]).unwrap().unwrap();
    assert!(store.collect_garbage(&[limited(1)]).unwrap().is_none(), "fruitless a moment ago");
    // What is reserved stays, whatever else is asked.
    let limits = Limits { reserved: Some(1 << 30), max_used: Some(1), min_free: Some(u64::MAX) };
    drop(lease);
    let options = PruneOptions { limits, ..PruneOptions::default() };
    assert_eq!(store.prune(&options).unwrap().removed.len(), 0);
}

#[test]
fn mounts_count_and_go_by_age() {
    let (_dir, store) = store();
    let mounted = mount(&store, "go");
    std::fs::write(mounted.path().join("data"), vec![1; 64 * BLOCK]).unwrap();
    store.collect_garbage(&[]).unwrap();
    assert!(store.used().unwrap() >= 64 * BLOCK as u64);
    let old = PruneOptions {
        until: Some(Duration::from_secs(3 * 86_400)),
        filters: vec!["type=exec.cachemount".parse().unwrap()],
        ..PruneOptions::default()
    };
    drop(mounted);
    assert_eq!(store.prune(&old).unwrap().removed.len(), 0, "used today");
    age(&store, "mounts", "id", "go", 4 * 86_400);
    let mounted = mount_without_use(&store);
    assert_eq!(store.prune(&old).unwrap().removed.len(), 0, "in use");
    drop(mounted);
    assert_eq!(store.prune(&old).unwrap().removed.len(), 1);
    assert_eq!(store.used().unwrap(), 0);
}

/// Holds the only mount's lock, as a step that began four days ago does.
fn mount_without_use(store: &Store) -> std::fs::File {
    let dir = std::fs::read_dir(store.path().join("mounts")).unwrap().next().unwrap().unwrap();
    let name = format!("locks/mount-{}", dir.file_name().to_string_lossy());
    let file = std::fs::File::options().write(true).open(store.path().join(name)).unwrap();
    file.lock_shared().unwrap();
    file
}

#[test]
fn filters_hold_of_what_they_say() {
    let (_dir, store) = store();
    let base = sized(&store, 1);
    let top = sized(&store, 1);
    step(&store, "base", std::slice::from_ref(&base), 1);
    step(&store, "top", &[base.clone(), top.clone()], 1);
    let held = mount(&store, "npm");
    store.put_blob(b"blob").unwrap();
    let rows = store.disk_usage().unwrap();
    let pick = |text: &str| -> Vec<String> {
        let filter: Filter = text.parse().expect(text);
        let rows = rows.iter().filter(|row| row.kind != UsageKind::Other && filter.holds(row));
        let mut names: Vec<String> = rows.map(name).collect();
        names.sort();
        names
    };
    let layers = ["RUN base", "RUN top"];
    let short = &base.as_str()[..10];
    for (text, expect) in [
        (format!("id={short}"), vec!["RUN base"]),
        (format!("id~=^{top}$"), vec!["RUN top"]),
        (format!("id!={top}"), vec!["RUN base", "blob", "npm"]),
        (format!("parents={base}"), vec!["RUN top"]),
        ("parents".to_owned(), vec!["RUN top"]),
        ("description=RUN top".to_owned(), vec!["RUN top"]),
        ("description~=^RUN".to_owned(), layers.to_vec()),
        ("inuse".to_owned(), vec!["npm"]),
        ("inuse=false".to_owned(), vec!["RUN base", "RUN top", "blob"]),
        ("mutable".to_owned(), vec!["npm"]),
        ("immutable=true".to_owned(), vec!["RUN base", "RUN top", "blob"]),
        ("shared".to_owned(), vec![]),
        ("private".to_owned(), vec!["RUN base", "RUN top", "blob", "npm"]),
        ("type==exec.cachemount".to_owned(), vec!["npm"]),
        ("type=layer".to_owned(), layers.to_vec()),
        ("type!=regular".to_owned(), vec!["npm"]),
    ] {
        assert_eq!(pick(&text), expect, "{text}");
    }
    for wrong in ["colour=red", "id", "id~=(", "inuse=perhaps", ""] {
        assert!(wrong.parse::<Filter>().is_err(), "{wrong}");
    }
    drop(held);
}

fn name(row: &UsageRow) -> String {
    match row.kind {
        UsageKind::Blob => "blob".to_owned(),
        _ => row.description.clone(),
    }
}
