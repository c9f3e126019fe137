//! The store's own images, and what remote references resolved to.
//!
//! `index.json` is the truth for images, so that any program that reads OCI layouts sees them: a manifest's annotation
//! `org.opencontainers.image.ref.name` is its full name here. It is replaced whole, by rename, under the publish lock;
//! entries of others, without a name, stay.

use std::io::Write;
use std::path::Path;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::store::{Store, StoreError, failed, now, read_limited};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CREATED: &str = "dev.kiln.created";
/// 100,000 images; more than this is no index of ours.
const LIMIT: u64 = 64 << 20;

/// An image with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its full name (`docker.io/library/x:tag`).
    pub name: String,
    /// Its manifest or index, without the annotations that the store put in.
    pub descriptor: Descriptor,
    /// When it was tagged: seconds since 1970, 0 when somebody else did.
    pub created: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default = "index_media_type")]
    media_type: String,
    manifests: Vec<Descriptor>,
    #[serde(flatten)]
    extra: serde_json::Map<String, serde_json::Value>,
}

fn index_media_type() -> String {
    "application/vnd.oci.image.index.v1+json".to_owned()
}

impl Index {
    fn empty() -> Self {
        let (media_type, manifests) = (index_media_type(), Vec::new());
        Self { schema_version: 2, media_type, manifests, extra: serde_json::Map::new() }
    }
}

impl Store {
    fn read_index(&self) -> Result<Index, StoreError> {
        let place = Path::new("index.json");
        let path = self.path().join(place);
        let bytes = match read_limited(self.root(), place, LIMIT) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Index::empty()),
            read => read.map_err(failed("read", &path))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(index) => Ok(index),
            Err(error) => {
                // The names in it are lost; the images are there until they are pruned.
                self.set_aside_index(&error.to_string())?;
                Ok(Index::empty())
            }
        }
    }

    /// Changes the index; `change` says whether there is anything to write.
    fn change_index(
        &self,
        change: impl FnOnce(&mut Vec<Descriptor>) -> bool,
    ) -> Result<bool, StoreError> {
        let _lock = self.publish_lock()?;
        let mut index = self.read_index()?;
        if !change(&mut index.manifests) {
            return Ok(false);
        }
        let bytes = serde_json::to_vec(&index).expect("an index can be written as JSON");
        let process = self.process()?;
        let path = self.path().join("index.json");
        let write = || {
            let (name, mut file) = process.file()?;
            file.write_all(&bytes)?;
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
            // A name is not made again by the next build, as a layer is: it must not come back empty.
            file.sync_data()?;
            process.dir().rename(&name, self.root(), Path::new("index.json"))
        };
        write().map_err(failed("write", &path))?;
        Ok(true)
    }

    /// Gives an image a name, taking it away from another.
    ///
    /// # Errors
    /// When `index.json` cannot be read or replaced.
    pub fn tag(&self, name: &str, descriptor: &Descriptor) -> Result<(), StoreError> {
        let mut named = descriptor.clone();
        named.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        named.annotations.insert(CREATED.to_owned(), now().to_string());
        let changed = self.change_index(|manifests| {
            manifests.retain(|other| other.annotations.get(REF_NAME).is_none_or(|n| n != name));
            manifests.push(named);
            true
        });
        changed.map(|_| ())
    }

    /// Takes a name away; false when there is none.
    ///
    /// # Errors
    /// When `index.json` cannot be read or replaced.
    pub fn untag(&self, name: &str) -> Result<bool, StoreError> {
        self.change_index(|manifests| {
            let before = manifests.len();
            manifests.retain(|other| other.annotations.get(REF_NAME).is_none_or(|n| n != name));
            manifests.len() < before
        })
    }

    /// All images with names, in the order of tagging.
    ///
    /// # Errors
    /// When `index.json` cannot be read.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let manifests = self.read_index()?.manifests.into_iter();
        let named = manifests.filter_map(|mut descriptor| {
            let name = descriptor.annotations.remove(REF_NAME)?;
            let created = descriptor.annotations.remove(CREATED);
            let created = created.and_then(|text| text.parse().ok()).unwrap_or(0);
            Some(StoredImage { name, descriptor, created })
        });
        Ok(named.collect())
    }

    /// The manifests and indexes that `index.json` lists, with and without names.
    pub(crate) fn index_roots(&self) -> Result<Vec<Descriptor>, StoreError> {
        Ok(self.read_index()?.manifests)
    }

    /// The image with this name.
    ///
    /// # Errors
    /// When `index.json` cannot be read.
    pub fn resolve(&self, name: &str) -> Result<Option<Descriptor>, StoreError> {
        let found = self.images()?.into_iter().find(|image| image.name == name);
        Ok(found.map(|image| image.descriptor))
    }

    /// Notes what a remote reference resolved to, for builds that do not ask the registry.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember_reference(
        &self,
        reference: &str,
        platform: &str,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        self.db().write("note what a reference resolved to", |transaction| {
            let query = "INSERT OR REPLACE INTO resolved (reference, platform, digest, created)
                         VALUES (?1, ?2, ?3, ?4)";
            let values = params![reference, platform, digest.as_str(), now()];
            transaction.execute(query, values).map(|_| ())
        })
    }

    /// What a remote reference resolved to last.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn recall_reference(
        &self,
        reference: &str,
        platform: &str,
    ) -> Result<Option<Digest>, StoreError> {
        self.db().read("look up a reference", |connection| {
            let query = "SELECT digest FROM resolved WHERE reference = ?1 AND platform = ?2";
            let mut statement = connection.prepare_cached(query)?;
            let digest = statement
                .query_row([reference, platform], |row| row.get::<_, String>(0))
                .optional()?;
            Ok(digest.and_then(|digest| digest.parse().ok()))
        })
    }
}
