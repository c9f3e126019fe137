//! Blobs, records, images, cache mounts, pruning.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use kiln_cache::{
    CacheMountRequest, ContentDigest, Descriptor, DiffId, Digest, FrameLocation, Key, LayerBlob,
    LayerId, Limits, NewRecord, PruneOptions, Sharing, Store, StoreError, UsageKind,
};

use crate::layers::{metadata, store};

pub(crate) fn key(text: &str) -> Key {
    Key::from(blake3::hash(text.as_bytes()))
}

pub(crate) fn layer(store: &Store, data: &str) -> LayerId {
    let draft = store.draft().unwrap();
    let writer = draft.writer();
    writer.file(Path::new("f"), &metadata(0o644), &mut data.as_bytes()).unwrap();
    let tree = writer.finish().unwrap();
    let id = LayerId::random();
    draft.publish(id.clone(), tree).unwrap();
    id
}

pub(crate) fn record(definition: &str, content: Option<&str>, layers: &[LayerId]) -> NewRecord {
    NewRecord {
        definition: key(definition),
        content: content.map(key),
        layers: layers.to_vec(),
        own: layers.last().filter(|id| !id.is_image()).cloned(),
        result: ContentDigest::from(blake3::hash(b"result")),
        description: "RUN make".to_owned(),
        parts: vec![("args".to_owned(), "make".to_owned())],
        duration_ms: 7,
    }
}

#[test]
fn blobs_are_verified() {
    let (_dir, store) = store();
    let digest = Digest::sha256(b"hello");
    assert!(!store.has_blob(&digest).unwrap());
    let write = |data: &[u8], expected: &Digest| {
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(data).unwrap();
        writer.commit(Some(expected))
    };
    assert!(matches!(write(b"hell", &digest), Err(StoreError::DigestMismatch { .. })));
    assert!(!store.has_blob(&digest).unwrap());
    assert_eq!(write(b"hello", &digest).unwrap().size, 5);
    assert_eq!(store.read_blob(&digest, 5).unwrap().unwrap(), b"hello");
    assert!(store.read_blob(&digest, 4).is_err());
    let mut sha512 = kiln_cache::DigestHasher::new(kiln_cache::Algorithm::Sha512);
    sha512.update(b"hello");
    let sha512 = sha512.finish();
    write(b"hello", &sha512).unwrap();
    assert!(store.has_blob(&sha512).unwrap());
    // Cut off behind our back: the size tells, and the blob is no more.
    std::fs::write(store.blob_path(&digest), "hel").unwrap();
    assert!(!store.has_blob(&digest).unwrap());
    assert!(!store.blob_path(&digest).exists());
    assert_eq!(store.put_blob(b"hello").unwrap(), digest);
    assert!(store.has_blob(&digest).unwrap());
}

#[test]
fn a_lost_database_loses_only_speed() {
    let (_dir, store) = store();
    let path = store.path().to_owned();
    let digest = store.put_blob(b"blob").unwrap();
    let broken = store.put_blob(b"other").unwrap();
    let id = layer(&store, "1");
    store.save_record(&record("d", None, std::slice::from_ref(&id))).unwrap();
    let descriptor =
        Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest.clone(), 4);
    store.tag("docker.io/library/x:1", &descriptor).unwrap();
    drop(store);
    std::fs::write(path.join("kiln.db"), "this is no database, is it? ".repeat(100)).unwrap();
    let _ = std::fs::remove_file(path.join("kiln.db-wal"));
    let _ = std::fs::remove_file(path.join("kiln.db-shm"));
    std::fs::write(path.join("blobs/sha256").join(broken.hex()), "othex").unwrap();
    let store = Store::open(&path).unwrap();
    assert!(store.has_blob(&digest).unwrap(), "hashed again");
    assert!(!store.has_blob(&broken).unwrap());
    assert!(store.lookup(&key("d")).unwrap().is_none());
    assert!(!store.has_layer(&id).unwrap());
    assert_eq!(store.resolve("docker.io/library/x:1").unwrap(), Some(descriptor));
    store.prune(&PruneOptions::default()).unwrap();
    assert!(!store.layer_path(&id).exists(), "nobody can ask for it any more");
}

#[test]
fn a_newer_store_is_left_alone() {
    let (_dir, store) = store();
    let path = store.path().to_owned();
    drop(store);
    let connection = rusqlite::Connection::open(path.join("kiln.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(Store::open(&path), Err(StoreError::NewerFormat { found: 99, .. })));
}

#[test]
fn records_answer_under_both_keys() {
    let (_dir, store) = store();
    let base = LayerId::of_diff_id(&DiffId(Digest::sha256(b"base")));
    let first = layer(&store, "1");
    let second = layer(&store, "2");
    let saved =
        store.save_record(&record("d1", Some("c1"), &[base.clone(), first.clone()])).unwrap();
    let found = store.lookup_many(&[key("d1"), key("c1"), key("x")]).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[&key("d1")], saved);
    assert_eq!(found[&key("c1")], saved);
    // Another definition with the same content key takes that over; the first keeps its definition key.
    let chain = [base, first.clone(), second.clone()];
    let other = store.save_record(&record("d2", Some("c1"), &chain)).unwrap();
    assert_eq!(store.lookup(&key("d1")).unwrap().unwrap().id, saved.id);
    assert_eq!(store.lookup(&key("c1")).unwrap().unwrap().id, other.id);
    // The same step again: the old record goes.
    let again = store.save_record(&record("d1", None, std::slice::from_ref(&first))).unwrap();
    assert_eq!(store.lookup(&key("d1")).unwrap().unwrap(), again);
    let like = store.records_like("RUN make", 10).unwrap();
    assert_eq!(like.iter().map(|r| r.id).collect::<Vec<_>>(), [again.id, other.id]);
    store.add_key(&key("d3"), other.id).unwrap();
    assert_eq!(store.lookup(&key("d3")).unwrap().unwrap().id, other.id);
    store.touch(&[again.id, 12345], &[]).unwrap();
    // Without a layer of its chain a record does not answer.
    std::fs::remove_dir_all(store.layer_path(&first)).unwrap();
    assert!(store.lookup_many(&[key("d1"), key("d2"), key("c1")]).unwrap().is_empty());
}

#[test]
fn data_of_an_earlier_boot_is_not_believed_unless_synced() {
    let (_dir, store) = store();
    let synced = layer(&store, "1");
    store.save_record(&record("synced", None, std::slice::from_ref(&synced))).unwrap();
    let digest = store.put_blob(b"synced").unwrap();
    std::thread::sleep(Duration::from_millis(5));
    store.sync().unwrap();
    let lost = layer(&store, "2");
    store.save_record(&record("lost", None, std::slice::from_ref(&lost))).unwrap();
    let path = store.path().to_owned();
    drop(store);
    // The next boot has another id.
    let connection = rusqlite::Connection::open(path.join("kiln.db")).unwrap();
    for table in ["layers", "blobs"] {
        let query = format!("UPDATE {table} SET boot = 'another' WHERE boot IS NOT NULL");
        connection.execute(&query, []).unwrap();
    }
    drop(connection);
    let store = Store::open(&path).unwrap();
    assert!(store.lookup(&key("synced")).unwrap().is_some());
    assert!(store.has_blob(&digest).unwrap());
    assert!(store.lookup(&key("lost")).unwrap().is_none());
    assert!(!store.has_layer(&lost).unwrap());
    assert!(store.layer_tree(&lost).is_err());
    // Made again under the same id: what may be half-written gives way.
    std::fs::write(store.layer_path(&lost).join("half"), "").unwrap();
    let draft = store.draft().unwrap();
    let tree = draft.writer().finish().unwrap();
    draft.publish(lost.clone(), tree).unwrap();
    assert!(!store.layer_path(&lost).join("half").exists());
    assert!(store.has_layer(&lost).unwrap());
}

#[test]
fn images_are_an_oci_index() {
    let (_dir, store) = store();
    let index = || -> serde_json::Value {
        let text = std::fs::read_to_string(store.path().join("index.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(index()["schemaVersion"], 2);
    let layout = std::fs::read_to_string(store.path().join("oci-layout")).unwrap();
    assert_eq!(layout, r#"{"imageLayoutVersion":"1.0.0"}"#);
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let one = Descriptor::new(manifest, Digest::sha256(b"1"), 1);
    let two = Descriptor::new(manifest, Digest::sha256(b"2"), 1);
    store.tag("a:1", &one).unwrap();
    store.tag("b:1", &one).unwrap();
    store.tag("a:1", &two).unwrap();
    assert_eq!(store.resolve("a:1").unwrap(), Some(two));
    assert_eq!(store.images().unwrap().len(), 2);
    let names: Vec<_> = index()["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["annotations"]["org.opencontainers.image.ref.name"].clone())
        .collect();
    assert_eq!(names, ["b:1", "a:1"]);
    assert!(store.untag("b:1").unwrap());
    assert!(!store.untag("b:1").unwrap());
    assert_eq!(store.resolve("b:1").unwrap(), None);
    let digest = Digest::sha256(b"r");
    store.remember_reference("docker.io/library/x:1", "linux/amd64", &digest).unwrap();
    let recall = |platform| store.recall_reference("docker.io/library/x:1", platform).unwrap();
    assert_eq!(recall("linux/amd64"), Some(digest));
    assert_eq!(recall("linux/arm64"), None);
}

#[test]
fn archives_and_frames() {
    let (_dir, store) = store();
    let id = layer(&store, "1");
    let digest = store.put_blob(b"archive").unwrap();
    let diff_id = DiffId(Digest::sha256(b"tar"));
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    let blob = LayerBlob { digest: digest.clone(), size: 7, diff_id, media_type };
    store.save_layer_blob(&id, "gzip", &blob).unwrap();
    assert_eq!(store.layer_blob(&id, "gzip").unwrap(), Some(blob));
    assert_eq!(store.layer_blob(&id, "zstd").unwrap(), None);
    let frame = FrameLocation { blob: digest.clone(), offset: 3, length: 4 };
    store.save_frames(&[(key("f"), frame.clone())]).unwrap();
    assert_eq!(store.frame(&key("f")).unwrap(), Some(frame));
    store.remove_blob(&digest).unwrap();
    assert_eq!(store.layer_blob(&id, "gzip").unwrap(), None);
    assert_eq!(store.frame(&key("f")).unwrap(), None);
}

#[test]
fn cache_mounts_are_shared_as_asked() {
    let (_dir, store) = store();
    let request = |sharing| CacheMountRequest {
        id: "/root/.cache".to_owned(),
        base: None,
        sharing,
        mode: 0o1777,
        uid: 5,
        gid: 6,
        user: "RUN make".to_owned(),
    };
    let fill = |root: &kiln_cache::Root| root.mkdir(Path::new("seed"), 0o755);
    let open = |sharing| store.cache_mount(&request(sharing), &fill, &|| true).unwrap();
    let first = open(Sharing::Shared).unwrap();
    let meta = std::fs::metadata(first.path()).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1777, 5, 6));
    assert!(first.path().join("seed").exists());
    let second = open(Sharing::Shared).unwrap();
    assert_eq!(first.path(), second.path());
    assert!(open(Sharing::Locked).is_none(), "somebody has it");
    let private = open(Sharing::Private).unwrap();
    assert_ne!(private.path(), first.path());
    let report = store.prune(&PruneOptions { all: true, ..PruneOptions::default() }).unwrap();
    assert!(report.removed.iter().all(|row| row.kind != UsageKind::CacheMount), "all are in use");
    let path = first.path().to_owned();
    drop((first, second));
    let locked = open(Sharing::Locked).unwrap();
    assert_eq!(locked.path(), path);
    assert!(open(Sharing::Shared).is_none());
    drop(locked);
    // Cleared while the private one is in use: that stays, and later users start afresh.
    store.clear_cache_mounts(&["/root/.cache".to_owned()]).unwrap();
    let fresh = open(Sharing::Shared).unwrap();
    assert_ne!(fresh.path(), path);
    assert_ne!(fresh.path(), private.path());
    assert!(private.path().exists());
    drop((fresh, private));
    store.prune(&PruneOptions { all: true, ..PruneOptions::default() }).unwrap();
    assert_eq!(std::fs::read_dir(store.path().join("mounts")).unwrap().count(), 0);
}

#[test]
fn pruning_leaves_what_is_held() {
    let (_dir, store) = store();
    let held = layer(&store, "held");
    let free = layer(&store, "free");
    store.save_record(&record("held", None, std::slice::from_ref(&held))).unwrap();
    store.save_record(&record("free", None, std::slice::from_ref(&free))).unwrap();
    let config = store.put_blob(b"config").unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":6}},"layers":[]}}"#
    );
    let manifest_digest = store.put_blob(manifest.as_bytes()).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = Descriptor::new(media_type, manifest_digest.clone(), manifest.len() as u64);
    store.tag("x:1", &descriptor).unwrap();
    let loose = store.put_blob(b"loose").unwrap();
    let lease = store.lease().unwrap();
    assert!(lease.hold_layer(&held).unwrap());
    let usage = store.disk_usage().unwrap();
    let held = usage.iter().filter(|row| row.in_use && row.kind != UsageKind::Other);
    assert_eq!(held.count(), 3);
    // Nothing to remove without a reason.
    let report = store.prune(&PruneOptions::default()).unwrap();
    assert_eq!(report.removed.len(), 0);
    let until = PruneOptions { until: Some(Duration::from_secs(60)), ..PruneOptions::default() };
    assert_eq!(store.prune(&until).unwrap().removed.len(), 0);
    let dry = PruneOptions { all: true, dry_run: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&dry).unwrap().removed.len(), 2);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    let report = store.prune(&all).unwrap();
    assert_eq!(report.removed.len(), 2);
    assert_eq!(report.bytes, report.removed.iter().map(|row| row.size).sum::<u64>());
    assert!(store.lookup(&key("held")).unwrap().is_some());
    assert!(store.lookup(&key("free")).unwrap().is_none());
    assert!(!store.layer_path(&free).exists());
    assert!(!lease.hold_layer(&free).unwrap(), "gone");
    assert!(store.has_blob(&config).unwrap() && store.has_blob(&manifest_digest).unwrap());
    assert!(!store.has_blob(&loose).unwrap());
    drop(lease);
    assert_eq!(store.prune(&all).unwrap().removed.len(), 1);
    let limits = Limits { reserved: Some(1 << 30), ..Limits::default() };
    let keep = PruneOptions { limits, ..PruneOptions::default() };
    layer(&store, "kept");
    assert_eq!(store.prune(&keep).unwrap().removed.len(), 0);
}
