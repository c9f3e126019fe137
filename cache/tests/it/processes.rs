//! Several processes on one store, and processes that are killed: this test binary runs itself again, with one test and
//! `KILN_ROLE` set, as the other process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln_cache::{PruneOptions, Store};

use crate::bookkeeping::{key, layer, record};
use crate::layers::{metadata, store};

fn spawn(role: &str, store: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["processes::other_process", "--exact", "--quiet"])
        .env("KILN_ROLE", role)
        .env("KILN_STORE", store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test: what the other process does.
#[test]
fn other_process() {
    let Ok(role) = std::env::var("KILN_ROLE") else { return };
    let path = PathBuf::from(std::env::var_os("KILN_STORE").unwrap());
    let store = Store::open(&path).unwrap();
    match role.as_str() {
        "count" => count(&store, &path, 25),
        "publish" => publish_forever(&store),
        "hold" => {
            let id = layer(&store, "held");
            store.save_record(&record("held", None, std::slice::from_ref(&id))).unwrap();
            let lease = store.lease().unwrap();
            assert!(lease.hold_layer(&id).unwrap());
            let _lock = store.lock(&key("lock"), &|| false).unwrap().unwrap();
            let draft = store.draft().unwrap();
            let writer = draft.writer();
            writer.file(Path::new("d/f"), &metadata(0o644), &mut &b"x"[..]).unwrap();
            std::fs::write(path.join("ready"), "").unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        other => panic!("no role `{other}`"),
    }
}

/// Adds one to a counter that only the lock protects.
fn count(store: &Store, path: &Path, times: usize) {
    for _ in 0..times {
        let lock = store.lock(&key("count"), &|| false).unwrap().unwrap();
        let file = path.join("count");
        let old: usize = std::fs::read_to_string(&file).unwrap_or_default().parse().unwrap_or(0);
        std::fs::write(file, (old + 1).to_string()).unwrap();
        drop(lock);
    }
}

fn publish_forever(store: &Store) {
    for number in 0.. {
        let id = layer(store, &format!("{} {number}", std::process::id()));
        let name = format!("{} {}", std::process::id(), number % 50);
        store.save_record(&record(&name, None, std::slice::from_ref(&id))).unwrap();
        store.put_blob(name.as_bytes()).unwrap();
    }
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "the other process does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_lock_excludes_threads_and_processes() {
    let (_dir, store) = store();
    let path = store.path().to_owned();
    let mut others: Vec<_> = (0..2).map(|_| spawn("count", &path)).collect();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| count(&store, &path, 25));
        }
    });
    for other in &mut others {
        assert!(other.wait().unwrap().success());
    }
    assert_eq!(std::fs::read_to_string(path.join("count")).unwrap(), "200");
    let leftover = std::fs::read_dir(path.join("locks")).unwrap();
    let names: Vec<_> = leftover.map(|item| item.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with("key-")), "{names:?}");
}

#[test]
fn waiting_for_a_lock_can_be_cancelled() {
    let (_dir, store) = store();
    let lock = store.try_lock(&key("k")).unwrap().unwrap();
    assert!(store.try_lock(&key("k")).unwrap().is_none());
    assert_eq!(store.lock_holder(&key("k")), Some(std::process::id()));
    let asked = AtomicUsize::new(0);
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) == 3;
    assert!(store.lock(&key("k"), &cancelled).unwrap().is_none());
    drop(lock);
    assert!(store.lock(&key("k"), &|| false).unwrap().is_some());
}

#[test]
fn what_a_killed_process_held_is_free_and_swept() {
    let (_dir, store) = store();
    let path = store.path().to_owned();
    let mut other = spawn("hold", &path);
    wait_for(&path.join("ready"));
    assert!(store.try_lock(&key("lock")).unwrap().is_none());
    assert_eq!(store.lock_holder(&key("lock")), Some(other.id()));
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&all).unwrap().removed.len(), 0, "a living process holds it");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(store.try_lock(&key("lock")).unwrap().is_some());
    assert!(store.lookup(&key("held")).unwrap().is_some(), "what was published stays");
    assert_eq!(store.prune(&all).unwrap().removed.len(), 1);
    drop(store);
    // The next process that writes sweeps, in the background.
    let store = Store::open(&path).unwrap();
    let _draft = store.draft().unwrap();
    let start = Instant::now();
    while std::fs::read_dir(path.join("tmp")).unwrap().count() > 2 {
        assert!(start.elapsed() < Duration::from_secs(10), "tmp is not swept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killing_at_any_time_leaves_a_whole_store() {
    let (_dir, store) = store();
    let path = store.path().to_owned();
    drop(store);
    for round in 0..12 {
        let mut others: Vec<_> = (0..2).map(|_| spawn("publish", &path)).collect();
        std::thread::sleep(Duration::from_millis(40 + round * 17));
        for other in &mut others {
            other.kill().unwrap();
            other.wait().unwrap();
        }
        let store = Store::open(&path).unwrap();
        for record in store.records_like("RUN make", 10_000).unwrap() {
            let found = store.lookup(&record.definition).unwrap().unwrap();
            for id in &found.layers {
                let tree = store.layer_tree(id).unwrap();
                let data = std::fs::read(store.layer_path(id).join("f")).unwrap();
                let kiln_cache::Kind::File { data: hash, .. } =
                    tree.lookup(Path::new("f")).unwrap().kind
                else {
                    panic!("no file")
                };
                assert_eq!(*blake3::hash(&data).as_bytes(), hash);
            }
        }
        for item in std::fs::read_dir(path.join("blobs/sha256")).unwrap() {
            let item = item.unwrap();
            let bytes = std::fs::read(item.path()).unwrap();
            let digest = kiln_cache::Digest::sha256(&bytes);
            assert_eq!(item.file_name().to_str().unwrap(), digest.hex());
        }
        // And it works on.
        let id = layer(&store, "after");
        assert!(store.has_layer(&id).unwrap());
    }
    let store = Store::open(&path).unwrap();
    store.prune(&PruneOptions::default()).unwrap();
    let count = |folder: &str| std::fs::read_dir(path.join(folder)).unwrap().count();
    assert_eq!(count("layers"), count("trees"));
    let layers = store.disk_usage().unwrap();
    let layers = layers.iter().filter(|row| row.kind == kiln_cache::UsageKind::Layer).count();
    assert_eq!(count("layers"), layers, "nothing is left that the database does not know");
}

#[test]
fn eight_threads_publish_one_image_layer() {
    let (_dir, store) = store();
    let diff_id = kiln_cache::DiffId(kiln_cache::Digest::sha256(b"layer"));
    let id = kiln_cache::LayerId::of_diff_id(&diff_id);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let draft = store.draft().unwrap();
                let writer = draft.writer();
                writer.file(Path::new("f"), &metadata(0o644), &mut &b"same"[..]).unwrap();
                let tree = writer.finish().unwrap();
                let content = tree.content();
                let published = draft.publish(id.clone(), tree).unwrap();
                assert_eq!(published.content(), content);
            });
        }
    });
    assert_eq!(std::fs::read_dir(store.path().join("layers")).unwrap().count(), 1);
}
