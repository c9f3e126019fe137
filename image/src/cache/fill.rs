//! From a cache into a cache mount: what comes is a stranger's, and nothing of it counts that is not what its digest says.
//!
//! Files are made by [`LayerWriter`], as those of layers are: beneath the mount's folder, never through a link.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_cache::{
    ContentDigest, Descriptor, Kind, LayerWriter, Metadata, Root, StoreError, Tree, Verifier,
};

use super::mount::{CachedMount, Content, PACK, Pack, read_contents};
use super::{Backend, CacheError};
use crate::archive::Decompress;
use crate::limits::{self, Budget};

/// Packs that come in at once.
const PARALLEL: usize = 4;

/// What came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// The packs of a mount, and what is in them.
///
/// # Errors
/// They cannot be read, or are not what the index says.
pub fn mount_packs(backend: &dyn Backend, mount: &CachedMount) -> Result<Vec<Pack>, CacheError> {
    read_contents(&document(backend, &mount.contents)?, &mount.packs)
}

/// Puts what a cache has of a mount into its empty folder; `room` is told how many bytes that takes on the disk.
///
/// # Errors
/// Something cannot be had, or is not what the index says; what was written until then is left.
pub fn fill_mount(
    backend: &dyn Backend,
    mount: &CachedMount,
    root: &Root,
    room: &dyn Fn(u64) -> Result<(), StoreError>,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Filled, CacheError> {
    let damaged = |reason: String| CacheError::Mount { digest: mount.tree.digest.clone(), reason };
    let tree = document(backend, &mount.tree)?;
    let tree = Tree::decode(&tree).map_err(|error| damaged(error.to_string()))?;
    let most = Budget::default();
    if tree.len() as u64 > most.entries || tree.data_size() > most.bytes {
        return Err(damaged("there is more in it than anybody needs".to_owned()));
    }
    let packs = mount_packs(backend, mount)?;
    room(tree.disk_size())?;
    let writer = LayerWriter::beneath(root.clone());
    let filling = Filling { backend, root, writer: &writer, cancelled, wanted: Mutex::default() };
    let links = filling.begin(&tree).map_err(damaged)?;
    filling.take_all(&packs)?;
    let wanted = filling.wanted.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !wanted.is_empty() {
        return Err(damaged("files of it are in none of its packs".to_owned()));
    }
    for (path, existing) in links {
        let linked = writer.hardlink(&path, &existing);
        linked.map_err(|error| damaged(format!("`{}`: {error}", path.display())))?;
    }
    let written = writer.finish().map_err(|error| damaged(error.to_string()))?;
    if written.content() != tree.content() {
        return Err(damaged("its files are not those that its tree names".to_owned()));
    }
    let files = written.walk().filter(|(_, entry)| !entry.is_dir()).count() as u64;
    Ok(Filled { files, bytes: written.data_size() })
}

/// Files that are to have the same data.
struct Same {
    size: u64,
    files: Vec<(PathBuf, Metadata)>,
}

struct Filling<'a> {
    backend: &'a dyn Backend,
    root: &'a Root,
    writer: &'a LayerWriter,
    cancelled: &'a (dyn Fn() -> bool + Sync),
    /// What has not come yet.
    wanted: Mutex<HashMap<ContentDigest, Same>>,
}

impl Filling<'_> {
    /// Makes everything but files with data. Gives hard links, which come last.
    fn begin(&self, tree: &Tree) -> Result<Vec<(PathBuf, PathBuf)>, String> {
        let mut links = Vec::new();
        let mut groups: HashMap<u32, PathBuf> = HashMap::new();
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let top = &tree.root().entry().metadata;
        check_metadata(Path::new("/"), top)?;
        self.writer.directory(Path::new(""), top).map_err(|error| at(Path::new("/"), &error))?;
        for (path, entry) in tree.walk() {
            if path.iter().count() > limits::PATH_DEPTH {
                return Err("its folders are too deep".to_owned());
            }
            let metadata = &entry.metadata;
            check_metadata(&path, metadata)?;
            let made = match &entry.kind {
                Kind::Directory { opaque: false } => self.writer.directory(&path, metadata),
                Kind::Symlink { target } => self.writer.symlink(&path, metadata, target),
                Kind::File { .. } if groups.contains_key(&entry.link_group) => {
                    links.push((path, groups[&entry.link_group].clone()));
                    continue;
                }
                Kind::File { size, data } => {
                    if entry.link_group != 0 {
                        groups.insert(entry.link_group, path.clone());
                    }
                    if *size == 0 {
                        self.writer.file(&path, metadata, &mut io::empty()).map(drop)
                    } else {
                        let data = ContentDigest::from_bytes(*data);
                        let same =
                            wanted.entry(data).or_insert(Same { size: *size, files: Vec::new() });
                        same.files.push((path, metadata.clone()));
                        continue;
                    }
                }
                _ => return Err(format!("`{}` is neither folder, file nor link", path.display())),
            };
            made.map_err(|error| at(&path, &error))?;
        }
        Ok(links)
    }

    fn take_all(&self, packs: &[Pack]) -> Result<(), CacheError> {
        let next = Mutex::new(packs.iter());
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while failed().is_none() {
                let pack = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(pack) = pack else { break };
                if let Err(error) = self.take(pack) {
                    failed().get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(packs.len()) {
                scope.spawn(work);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Takes what is wanted out of a pack; one that has nothing of it is not fetched.
    fn take(&self, pack: &Pack) -> Result<(), CacheError> {
        let damaged =
            |reason: String| CacheError::Mount { digest: pack.blob.digest.clone(), reason };
        let mut left = {
            let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            pack.files.iter().filter(|Content(data, _)| wanted.contains_key(data)).count()
        };
        if left == 0 {
            return Ok(());
        }
        if pack.size() > Budget::default().bytes {
            return Err(damaged("there is more in it than anybody needs".to_owned()));
        }
        let mut data = open_pack(self.backend, &pack.blob)?;
        for Content(digest, size) in &pack.files {
            if left == 0 {
                break;
            }
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let same = wanted.remove(digest);
            drop(wanted);
            let mut piece = Stoppable { inner: (&mut data).take(*size), cancelled: self.cancelled };
            let Some(same) = same else {
                let skipped = io::copy(&mut piece, &mut io::sink());
                skipped.map_err(|error| self.read_error(pack, error))?;
                continue;
            };
            left -= 1;
            let mut files = same.files.iter();
            let Some((first, metadata)) = files.next() else { continue };
            let written = self.writer.file(first, metadata, &mut piece);
            let written = written.map_err(|error| self.read_error(pack, error))?;
            if (written.size, same.size) != (*size, *size) || written.data != *digest.as_bytes() {
                return Err(damaged("its content does not match".to_owned()));
            }
            for (path, metadata) in files {
                let copied = self.root.open_file(first);
                let copied =
                    copied.and_then(|mut file| self.writer.file(path, metadata, &mut file));
                copied.map_err(|error| damaged(error.to_string()))?;
            }
        }
        Ok(())
    }

    fn read_error(&self, pack: &Pack, error: io::Error) -> CacheError {
        if (self.cancelled)() {
            return CacheError::Cancelled;
        }
        CacheError::Mount { digest: pack.blob.digest.clone(), reason: error.to_string() }
    }
}

/// No export writes set-id bits or attributes.
fn check_metadata(path: &Path, metadata: &Metadata) -> Result<(), String> {
    if metadata.mode & !0o1777 == 0 && metadata.xattrs.is_empty() {
        return Ok(());
    }
    Err(format!("`{}` has set-id bits or attributes", path.display()))
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("`{}`: {error}", path.display())
}

/// Ends with an error when the build is stopped.
struct Stoppable<'a, R> {
    inner: R,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

/// A document, whole and verified.
fn document(backend: &dyn Backend, blob: &Descriptor) -> Result<Vec<u8>, CacheError> {
    let damaged = |reason: String| CacheError::Mount { digest: blob.digest.clone(), reason };
    let limit = limits::MOUNT_DOCUMENT_BYTES;
    if blob.size > limit {
        return Err(damaged(format!("it is larger than {limit} bytes")));
    }
    let mut packed = Vec::new();
    let read = backend.blob(blob)?.take(blob.size + 1).read_to_end(&mut packed);
    read.map_err(|error| damaged(error.to_string()))?;
    let mut verifier = Verifier::new(blob.digest.clone());
    verifier.update(&packed);
    verifier.finish().map_err(|_| damaged("its content does not match".to_owned()))?;
    let mut bytes = Vec::new();
    let plain = Decompress::new(packed.as_slice());
    let read = plain.and_then(|plain| plain.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| damaged(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(damaged(format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// The data of a pack, not compressed any more.
fn open_pack<'a>(
    backend: &'a dyn Backend,
    blob: &Descriptor,
) -> Result<Box<dyn Read + 'a>, CacheError> {
    let damaged = |reason: String| CacheError::Mount { digest: blob.digest.clone(), reason };
    let data = backend.blob(blob)?.take(blob.size);
    match blob.media_type.strip_prefix(PACK) {
        Some("") => Ok(Box::new(data)),
        Some("+gzip" | "+zstd") => match Decompress::new(data) {
            Ok(plain) => Ok(Box::new(plain)),
            Err(error) => Err(damaged(error.to_string())),
        },
        _ => Err(CacheError::Foreign("a pack of a cache mount is of an unknown form")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use kiln_cache::{Descriptor, Digest, Entry, Kind, Root, Store, Tree, TreeBuilder};

    use super::{Filled, fill_mount, mount_packs};
    use crate::archive::Compression;
    use crate::cache::index::CacheIndex;
    use crate::cache::mount::{CONTENTS, CachedMount, PACK, Pack, TREE, write_contents};
    use crate::cache::pack::Packing;
    use crate::cache::{Backend, CacheError};

    /// Blobs in memory.
    #[derive(Default)]
    struct Memory(HashMap<Digest, Vec<u8>>);

    impl Memory {
        fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
            let digest = Digest::sha256(&bytes);
            let blob = Descriptor::new(media_type, digest.clone(), bytes.len() as u64);
            self.0.insert(digest, bytes);
            blob
        }

        /// A mount of a tree and packs.
        fn mount(&mut self, tree: &Tree, packs: &[Pack]) -> CachedMount {
            let small = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
            CachedMount {
                id: "go".to_owned(),
                name: "0".to_owned(),
                used: 0,
                tree: self.put(TREE, small(&tree.encode())),
                contents: self.put(CONTENTS, small(&write_contents(packs))),
                packs: packs.iter().map(|pack| pack.blob.clone()).collect(),
            }
        }
    }

    impl Backend for Memory {
        fn indexes(&self) -> Result<Vec<CacheIndex>, CacheError> {
            Ok(Vec::new())
        }
        fn blob<'a>(&'a self, blob: &Descriptor) -> Result<Box<dyn Read + Send + 'a>, CacheError> {
            let found = self.0.get(&blob.digest).ok_or(CacheError::Foreign("not there"))?;
            Ok(Box::new(found.as_slice()))
        }
        fn has_blob(&self, blob: &Descriptor) -> Result<bool, CacheError> {
            Ok(self.0.contains_key(&blob.digest))
        }
        fn put_blob(&self, _: &Store, _: &Descriptor) -> Result<(), CacheError> {
            Ok(())
        }
        fn put_index(&self, _: &CacheIndex) -> Result<(), CacheError> {
            Ok(())
        }
    }

    fn fill(memory: &Memory, mount: &CachedMount, to: &Path) -> Result<Filled, CacheError> {
        fs::create_dir_all(to).unwrap();
        fill_mount(memory, mount, &Root::open(to).unwrap(), &|_| Ok(()), &|| false)
    }

    #[test]
    fn what_is_packed_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        store.make_cache_mount("go").unwrap();
        let named = store.named_mounts(&["go".to_owned()]).unwrap();
        let mount = store.open_mount(&named[0].folder, false).unwrap().unwrap();
        let from = mount.root.path().to_owned();
        fs::create_dir(from.join("d")).unwrap();
        fs::write(from.join("d/f"), vec![7; 3 << 20]).unwrap();
        fs::write(from.join("d/same"), vec![7; 3 << 20]).unwrap();
        fs::hard_link(from.join("d/f"), from.join("d/link")).unwrap();
        fs::write(from.join("empty"), "").unwrap();
        fs::write(from.join("name\u{e9}"), "small").unwrap();
        symlink("/etc/passwd", from.join("out")).unwrap();
        for compression in [Compression::None, Compression::Gzip(1), Compression::Zstd(1)] {
            let lease = store.lease().unwrap();
            let never = || false;
            let packing = Packing { store: &store, lease: &lease, compression, cancelled: &never };
            let tree = mount.scan().unwrap();
            let packed = packing.pack(&mount.root, &tree, Vec::new()).unwrap();
            assert_eq!(packed.packs.len() + 2, packed.made.len());
            let mut memory = Memory::default();
            for blob in &packed.made {
                memory.put(&blob.media_type, fs::read(store.blob_path(&blob.digest)).unwrap());
            }
            let cached = CachedMount {
                id: named[0].id.clone(),
                name: named[0].name.clone(),
                used: 0,
                tree: packed.tree,
                contents: packed.contents,
                packs: packed.packs,
            };
            let to = dir.path().join(compression.to_string());
            let filled = fill(&memory, &cached, &to).unwrap();
            assert_eq!(filled, Filled { files: 6, bytes: (6 << 20) + 5 });
            assert_eq!(fs::read(to.join("d/same")).unwrap(), vec![7; 3 << 20]);
            let [one, two] = ["d/f", "d/link"].map(|name| fs::metadata(to.join(name)).unwrap());
            assert_eq!((one.ino(), one.mtime_nsec()), (two.ino(), two.mtime_nsec()));
            let time = fs::metadata(from.join("d/f")).unwrap();
            assert_eq!((one.mtime(), one.mtime_nsec()), (time.mtime(), time.mtime_nsec()));
            assert_eq!(fs::read_link(to.join("out")).unwrap(), Path::new("/etc/passwd"));
            // Nothing changed: nothing but documents is made, and they are the same.
            let packs = mount_packs(&memory, &cached).unwrap();
            let again = packing.pack(&mount.root, &tree, packs).unwrap();
            assert_eq!((again.made.len(), &again.tree), (2, &cached.tree));
            assert_eq!((&again.contents, &again.packs), (&cached.contents, &cached.packs));
            // What changes between the look and the packing is left out.
            fs::write(from.join("empty"), "changed").unwrap();
            let tree = mount.scan().unwrap();
            fs::write(from.join("empty"), "").unwrap();
            let torn = packing.pack(&mount.root, &tree, Vec::new()).unwrap();
            assert_ne!(torn.tree, cached.tree);
            drop(lease);
            for blob in &packed.made {
                assert!(store.discard_blob(&blob.digest).unwrap());
            }
        }
    }

    fn file(data: &[u8]) -> Entry {
        let kind = Kind::File { size: data.len() as u64, data: *blake3::hash(data).as_bytes() };
        Entry { kind, metadata: Default::default(), link_group: 0 }
    }

    fn pack(memory: &mut Memory, data: &[u8]) -> Pack {
        let blob = memory.put(PACK, data.to_vec());
        let content = super::Content(blake3::hash(data).into(), data.len() as u64);
        Pack { blob, files: vec![content] }
    }

    #[test]
    fn what_is_not_as_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = TreeBuilder::new();
        tree.insert(Path::new("a/f"), file(b"data"));
        let tree = tree.finish();
        let mut memory = Memory::default();
        let good = pack(&mut memory, b"data");
        let mut number = 0;
        let mut refused = |memory: &Memory, mount: &CachedMount, word: &str| {
            number += 1;
            let to = dir.path().join(number.to_string());
            let error = fill(memory, mount, &to).expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        let mount = memory.mount(&tree, std::slice::from_ref(&good));
        assert!(fill(&memory, &mount, &dir.path().join("good")).is_ok());
        let none = memory.mount(&tree, &[]);
        refused(&memory, &none, "in none of its packs");
        // Other bytes, fewer bytes, a number that lies.
        for bytes in [&b"DATA"[..], b"dat"] {
            memory.0.insert(good.blob.digest.clone(), bytes.to_vec());
            refused(&memory, &mount, "does not match");
        }
        memory.0.insert(good.blob.digest.clone(), b"data".to_vec());
        let mut long = good.clone();
        long.files[0].1 = u64::MAX;
        let long = memory.mount(&tree, &[long]);
        refused(&memory, &long, "more in it than anybody needs");
        let mut other = mount.clone();
        other.packs.push(good.blob.clone());
        refused(&memory, &other, "of other packs");
        let mut foreign = good.clone();
        foreign.blob.media_type = "text/plain".to_owned();
        let foreign = memory.mount(&tree, &[foreign]);
        refused(&memory, &foreign, "unknown form");
        // What does not travel.
        for kind in [Kind::Fifo, Kind::Whiteout, Kind::CharDevice { major: 1, minor: 3 }] {
            let mut tree = TreeBuilder::new();
            let entry = Entry { kind, metadata: Default::default(), link_group: 0 };
            tree.insert(Path::new("x"), entry);
            let mount = memory.mount(&tree.finish(), &[]);
            refused(&memory, &mount, "neither folder, file nor link");
        }
        let mut capable = file(b"data");
        capable.metadata.xattrs.insert(b"security.capability".to_vec(), vec![1]);
        let mut set_user = file(b"data");
        set_user.metadata.mode = 0o4755;
        let mut set_group = Entry::directory(0o2755);
        set_group.metadata.uid = 5;
        for entry in [capable, set_user, set_group] {
            let mut tree = TreeBuilder::new();
            tree.insert(Path::new("x"), entry);
            let mount = memory.mount(&tree.finish(), std::slice::from_ref(&good));
            refused(&memory, &mount, "set-id bits or attributes");
        }
        // A tree that is damaged, and one that hides what it is behind a digest of something else.
        let mut torn = mount.clone();
        torn.tree = memory.put(TREE, b"torn".to_vec());
        refused(&memory, &torn, "damaged");
        memory.0.insert(mount.tree.digest.clone(), b"torn".to_vec());
        refused(&memory, &mount, "does not match");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let mut memory = Memory::default();
        let data = pack(&mut memory, b"data");
        // Two entries of one name, a link and a folder: no builder makes that, but bytes may say it.
        let mut tree = TreeBuilder::new();
        let link = Kind::Symlink { target: outside.clone() };
        tree.insert(
            Path::new("a"),
            Entry { kind: link, metadata: Default::default(), link_group: 0 },
        );
        tree.insert(Path::new("b/f"), file(b"data"));
        let bytes = tree.finish().encode();
        let body = bytes.len() - 32;
        let place = bytes[..body].windows(3).position(|part| part == b"abf").unwrap();
        for names in [*b"aaf", *b"a/f", *b"a.f"] {
            let mut forged = bytes[..body].to_vec();
            forged[place..place + 3].copy_from_slice(&names);
            let hash = blake3::hash(&forged);
            forged.extend_from_slice(hash.as_bytes());
            let mut mount = memory.mount(&Tree::empty(), std::slice::from_ref(&data));
            mount.tree = memory.put(TREE, zstd::bulk::compress(&forged, 1).unwrap());
            let to = dir.path().join(String::from_utf8_lossy(&names).replace('/', "-"));
            assert!(fill(&memory, &mount, &to).is_err(), "{names:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        }
    }
}
