//! Sizes that show what grows faster than it should; no timed assertions, but times are printed.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kiln_cache::{Context, ScanFilter, Tree, Verdict, View};

struct All;

impl ScanFilter for All {
    fn verdict(&self, _: &Path, _: bool) -> Verdict {
        Verdict::Include
    }
}

/// `KILN_SCALE=50000 cargo test --release -p kiln-cache --test it scale -- --nocapture`
#[test]
fn a_context_is_scanned_and_stored() {
    let files: usize =
        std::env::var("KILN_SCALE").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let (dir, store) = crate::layers::store();
    let context = dir.path().join("context");
    for file in 0..files {
        let parent = context.join(format!("d{}/e{}", file % 50, file % 1000));
        if file < 1000 {
            std::fs::create_dir_all(&parent).unwrap();
        }
        let size = 1000 + file * 7919 % 16000;
        std::fs::write(parent.join(format!("file{file}")), vec![file as u8; size]).unwrap();
    }
    if files > 2000 {
        std::thread::sleep(std::time::Duration::from_secs(3));
    }
    let mut last = None;
    for round in ["cold", "warm", "warm"] {
        let start = Instant::now();
        let store = kiln_cache::Store::open(store.path()).unwrap();
        let view = Context::open(&store, &context, "context", Arc::new(All)).unwrap();
        let digest = view.digest(Path::new("")).unwrap();
        eprintln!("{round} scan of {files} files: {:?}", start.elapsed());
        assert_eq!(*last.get_or_insert(digest), digest);
    }
    let view = Context::open(&store, &context, "context", Arc::new(All)).unwrap();
    let mut pending = vec![std::path::PathBuf::new()];
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    let mut all = Vec::new();
    while let Some(dir) = pending.pop() {
        for (name, child) in view.children(&dir) {
            let path = dir.join(name);
            if child.entry.is_dir() {
                writer.directory(&path, &child.entry.metadata).unwrap();
                pending.push(path);
            } else {
                all.push((path, child));
            }
        }
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in all.chunks(all.len() / 2 + 1) {
            let (writer, view) = (&writer, &view);
            scope.spawn(move || {
                for (path, child) in part {
                    let file = view.open(path).unwrap();
                    let known = child.known();
                    let written = writer
                        .file_from(path, &child.entry.metadata, &file, known.as_ref())
                        .unwrap();
                    assert_eq!(written.data, known.unwrap().data);
                }
            });
        }
    });
    eprintln!("copy: {:?}", start.elapsed());
    let start = Instant::now();
    let tree = writer.finish().unwrap();
    eprintln!("finish: {:?}", start.elapsed());
    let start = Instant::now();
    let bytes = tree.encode();
    eprintln!("encode {} bytes: {:?}", bytes.len(), start.elapsed());
    let start = Instant::now();
    assert_eq!(Tree::decode(&bytes).unwrap().content(), tree.content());
    eprintln!("decode: {:?}", start.elapsed());
    let start = Instant::now();
    draft.publish(kiln_cache::LayerId::random(), tree).unwrap();
    eprintln!("publish: {:?}", start.elapsed());
}

/// What a build of 60 steps that are all cached asks of the store, in a fresh process's place.
#[test]
fn sixty_records_are_found() {
    use crate::bookkeeping::{key, layer, record};
    let (_dir, store) = crate::layers::store();
    let mut chain = Vec::new();
    for step in 0..60 {
        chain.push(layer(&store, &step.to_string()));
        let names = (format!("d{step}"), format!("c{step}"));
        store.save_record(&record(&names.0, Some(&names.1), &chain)).unwrap();
    }
    let path = store.path().to_owned();
    drop(store);
    let keys: Vec<_> = (0..60).map(|step| key(&format!("d{step}"))).collect();
    for _ in 0..3 {
        let start = Instant::now();
        let store = kiln_cache::Store::open(&path).unwrap();
        let opened = start.elapsed();
        assert_eq!(store.lookup_many(&keys).unwrap().len(), 60);
        let found = start.elapsed();
        let lease = store.lease().unwrap();
        assert!(lease.hold_layers(&chain).unwrap());
        eprintln!("open {opened:?}, 60 look-ups until {found:?}, lease {:?}", start.elapsed());
    }
}
