//! A cache in a folder: an OCI image layout, whose `index.json` names caches by tags.
//!
//! A new cache replaces the one with its tag; what no cache in the folder needs any more is removed then, so that the
//! folder does not grow from build to build. Blobs that were written or asked for within the last hour stay: another
//! build may be about to name them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_cache::{Descriptor, Digest, Store};

use super::index::{CacheIndex, MEDIA_TYPE};
use super::{Backend, CacheError, Form, indexes_below};
use crate::export::oci::{LAYOUT, replace};
use crate::index::{Index, REF_NAME};
use crate::json;
use crate::layout::{Layout, Selector};

/// How long a blob stays that nothing names.
const GRACE: Duration = Duration::from_secs(3600);

/// A tag or a digest in a folder.
#[derive(Debug)]
pub struct LocalCache {
    folder: PathBuf,
    selector: Selector,
    form: Form,
}

impl LocalCache {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(folder: PathBuf, selector: Selector, form: Form) -> Self {
        Self { folder, selector, form }
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Writes a file in one go; a reader never finds a part of it.
    fn write(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
    ) -> Result<(), CacheError> {
        let folder = path.parent().unwrap_or(&self.folder);
        let written = fs::create_dir_all(folder).and_then(|()| replace(path, fill));
        written.map_err(|e| failed("write", path, e))
    }

    fn put_bytes(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, CacheError> {
        let digest = Digest::sha256(bytes);
        self.write(&self.place(&digest), |file| file.write_all(bytes))?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Removes blobs that nothing in the folder names. What cannot be removed costs only space.
    fn prune(&self, index: &Index) {
        let mut named = BTreeSet::new();
        let Ok(layout) = Layout::open(&self.folder) else { return };
        let mut open = index.manifests.clone();
        while let Some(descriptor) = open.pop() {
            if !named.insert(descriptor.digest.clone()) {
                continue;
            }
            let kind = descriptor.media_type.as_str();
            if crate::media_type::is_index(kind) || crate::media_type::is_manifest(kind) {
                // A document that cannot be read may name anything: nothing is removed.
                let Ok(parts) = parts(&layout, &descriptor) else { return };
                open.extend(parts);
            }
        }
        let folder = self.folder.join("blobs/sha256");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let old =
                modified.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed > GRACE));
            if old && digest.parse().is_ok_and(|digest: Digest| !named.contains(&digest)) {
                let _kept = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a manifest or an index names.
fn parts(layout: &Layout, descriptor: &Descriptor) -> Result<Vec<Descriptor>, CacheError> {
    let bytes = layout.document(descriptor, crate::limits::DOCUMENT_BYTES)?;
    if crate::media_type::is_index(&descriptor.media_type) {
        return Ok(Index::parse(&bytes)?.manifests);
    }
    let manifest = crate::manifest::Manifest::parse_cache(&bytes)?;
    Ok(manifest.layers.into_iter().chain([manifest.config]).collect())
}

impl Backend for LocalCache {
    fn indexes(&self) -> Result<Vec<CacheIndex>, CacheError> {
        let layout = Layout::open(&self.folder)?;
        let read = |descriptor: &Descriptor, limit: u64| Ok(layout.document(descriptor, limit)?);
        let (mut found, mut failure) = (Vec::new(), None);
        for top in layout.select(&self.selector)? {
            let bytes = layout.document(&top, crate::limits::DOCUMENT_BYTES)?;
            match indexes_below(&top.media_type, &bytes, &read) {
                Ok(indexes) => found.extend(indexes),
                Err(error) => failure = Some(error),
            }
        }
        failure.filter(|_| found.is_empty()).map_or(Ok(found), Err)
    }

    fn blob<'a>(&'a self, blob: &Descriptor) -> Result<Box<dyn Read + Send + 'a>, CacheError> {
        Ok(Box::new(Layout::open(&self.folder)?.blob(blob)?))
    }

    fn has_blob(&self, blob: &Descriptor) -> Result<bool, CacheError> {
        let place = self.place(&blob.digest);
        let there = fs::symlink_metadata(&place).is_ok_and(|m| m.is_file() && m.len() == blob.size);
        if there {
            // Who cannot say that it is needed relies on its age.
            let _too_old =
                fs::File::open(&place).and_then(|file| file.set_modified(SystemTime::now()));
        }
        Ok(there)
    }

    fn put_blob(&self, store: &Store, blob: &Descriptor) -> Result<(), CacheError> {
        if self.has_blob(blob)? { Ok(()) } else { self.replace_blob(store, blob) }
    }

    fn replace_blob(&self, store: &Store, blob: &Descriptor) -> Result<(), CacheError> {
        let place = self.place(&blob.digest);
        let missing =
            || failed("read", &store.blob_path(&blob.digest), io::ErrorKind::NotFound.into());
        let mut source = store.open_blob(&blob.digest)?.ok_or_else(missing)?;
        self.write(&place, |file| io::copy(&mut source, file).map(drop))
    }

    fn put_index(&self, index: &CacheIndex) -> Result<(), CacheError> {
        let config = self.put_bytes(MEDIA_TYPE, &index.to_bytes())?;
        let (kind, document) = self.form.document(config, index.blobs());
        let mut top = self.put_bytes(kind, &document)?;
        let tag = match &self.selector {
            Selector::Tag(tag) => tag.as_str(),
            Selector::Any | Selector::Digest(_) => "latest",
        };
        top.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        self.write(&self.folder.join("oci-layout"), |file| file.write_all(LAYOUT))?;
        let lock = self.folder.join("kiln.lock");
        let lock = fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|e| failed("lock", &self.folder, e))?;
        let path = self.folder.join("index.json");
        let mut list = match fs::read(&path) {
            Ok(bytes) => Index::parse(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Index::new(Vec::new()),
            Err(e) => return Err(failed("read", &path, e)),
        };
        list.manifests.retain(|d| d.annotations.get(REF_NAME).is_none_or(|name| name != tag));
        list.manifests.push(top);
        self.write(&path, |file| file.write_all(&json::pretty(&list)))?;
        self.prune(&list);
        Ok(())
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError::Io { operation, what: path.display().to_string(), source }
}
