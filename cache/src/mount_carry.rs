//! Cache mounts on their way to other machines and from them: by names that are the same everywhere, as trees of files.
//!
//! What is in a mount is a step's, and not trusted: no link is followed, and only folders, files and symbolic links
//! travel, without set-id bits and attributes.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use crate::context::Verdict;
use crate::mount_list::OpenMount;
use crate::mounts::{CacheMountRequest, hash};
use crate::root::{FileKind, Root, Stat, read_link_at};
use crate::scan::{self, LinkNumbers, Place, Rules};
use crate::store::{Store, StoreError};
use crate::tree::{Entry, Kind, Metadata, Tree, TreeBuilder};
use crate::usage::mount_name;

/// Permission bits that travel: all but set-user-id and set-group-id.
const MODE: u32 = 0o1777;

/// A cache mount of the store that can be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMount {
    /// The id, as people see it.
    pub id: String,
    /// See [`CacheMountRequest::name`].
    pub name: String,
    /// Its folder's name.
    pub folder: String,
    /// When a step used it last, in seconds since 1970.
    pub last_used: i64,
}

impl CacheMountRequest {
    /// What mounts of the same id, base, mode and owner are called on every machine.
    #[must_use]
    pub fn name(&self) -> String {
        hash(self)
    }

    /// The id, as people see it.
    #[must_use]
    pub fn shown_id(&self) -> &str {
        mount_name(&self.id)
    }
}

impl Store {
    /// The mounts with these ids (as people see them) that steps can still get, one of each name: of private ones that
    /// were used at the same time, the oldest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn named_mounts(&self, ids: &[String]) -> Result<Vec<NamedMount>, StoreError> {
        let mut all = self.db().read("look for cache mounts", |connection| {
            let query = "SELECT dir, id, last_used FROM mounts WHERE id != '' ORDER BY dir";
            let mut query = connection.prepare(query)?;
            let rows = query.query_map([], |row| {
                let folder: String = row.get(0)?;
                Ok(NamedMount {
                    id: mount_name(&row.get::<_, String>(1)?).to_owned(),
                    name: folder.split('-').next().unwrap_or_default().to_owned(),
                    last_used: row.get(2)?,
                    folder,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut seen = HashSet::new();
        all.retain(|mount| ids.contains(&mount.id) && seen.insert(mount.name.clone()));
        Ok(all)
    }

    /// Whether whoever asks for this mount now gets a new one. One that is there, but empty and unused, goes for that.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn is_new_mount(&self, request: &CacheMountRequest) -> Result<bool, StoreError> {
        let is_empty = |root: &Root| root.read_dir(Path::new("")).is_ok_and(|all| all.is_empty());
        for dir in self.mount_dirs(&hash(request))? {
            match self.root().open_dir(&Path::new("mounts").join(&dir)) {
                Ok(root) if !is_empty(&root) => return Ok(false),
                _ if !self.remove_mount(&dir, &is_empty)? => return Ok(false),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Removes a blob that is not needed any more, unless somebody holds it or an image needs it. Says whether it did.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn discard_blob(&self, digest: &crate::Digest) -> Result<bool, StoreError> {
        self.remove_free_blob(digest, None)
    }
}

impl OpenMount {
    /// What is in the mount, as far as it travels. Steps may be writing meanwhile.
    ///
    /// # Errors
    /// When a folder or a file cannot be read.
    pub fn scan(&self) -> io::Result<Tree> {
        let rules = Carried { links: LinkNumbers::default() };
        let scanned = scan::scan(&self.root, Path::new(""), &rules)?;
        let mut tree = TreeBuilder::with_root(scanned.root().entry().clone());
        for (path, entry) in scanned.walk() {
            if matches!(
                entry.kind,
                Kind::Directory { .. } | Kind::File { .. } | Kind::Symlink { .. }
            ) {
                tree.insert(&path, entry.clone());
            }
        }
        Ok(tree.finish())
    }
}

/// How the files of a mount become entries.
struct Carried {
    links: LinkNumbers,
}

impl Rules for Carried {
    fn verdict(&self, _: &Path, _: bool) -> Verdict {
        Verdict::Include
    }

    fn entry(&self, place: &Place<'_>, stat: &Stat) -> io::Result<Entry> {
        let kind = match stat.kind {
            FileKind::Directory => Kind::Directory { opaque: false },
            FileKind::File => {
                let file = scan::open_regular(place.dir, place.name)?;
                let (size, data) = scan::hash_file(&file)?;
                Kind::File { size, data }
            }
            FileKind::Symlink => Kind::Symlink { target: read_link_at(place.dir, place.name)? },
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket => {
                Kind::Socket
            }
        };
        let Stat { mode, uid, gid, mtime, .. } = *stat;
        // A link has all bits on disk, whatever is asked for.
        let mode = if stat.kind == FileKind::Symlink { 0o777 } else { mode & MODE };
        let metadata = Metadata { mode, uid, gid, mtime, ..Metadata::default() };
        Ok(Entry { kind, metadata, link_group: self.links.of(stat) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use crate::mounts::{CacheMountRequest, Sharing};
    use crate::store::Store;
    use crate::tree::Kind;

    fn request(id: &str) -> CacheMountRequest {
        let sharing = Sharing::Shared;
        let user = "RUN true".to_owned();
        CacheMountRequest {
            id: id.to_owned(),
            base: None,
            sharing,
            mode: 0o755,
            uid: 0,
            gid: 0,
            user,
        }
    }

    #[test]
    fn names_are_the_same_everywhere() {
        assert_eq!(request("/go").name(), "4089c6280445b15d5505e4d96156998f");
        assert_ne!(request("/go").name(), request("/npm").name());
        assert_eq!(request("/go").shown_id(), "go");
    }

    #[test]
    fn only_files_travel() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mount = store.cache_mount(&request("/go"), &|_| Ok(()), &|| false).unwrap().unwrap();
        let path = mount.path().to_owned();
        std::fs::create_dir(path.join("d")).unwrap();
        std::fs::write(path.join("d/f"), "data").unwrap();
        std::fs::hard_link(path.join("d/f"), path.join("d/g")).unwrap();
        symlink("/etc", path.join("link")).unwrap();
        let status = std::process::Command::new("chmod").arg("4755").arg(path.join("d/f")).status();
        assert!(status.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(path.join("s")).unwrap();
        drop(mount);
        let named = store.named_mounts(&["go".to_owned(), "other".to_owned()]).unwrap();
        assert_eq!((named.len(), &named[0].name), (1, &request("/go").name()));
        let tree = store.open_mount(&named[0].folder, false).unwrap().unwrap().scan().unwrap();
        let paths: Vec<_> = tree.walk().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(paths, ["d", "d/f", "d/g", "link"]);
        let file = tree.lookup(Path::new("d/f")).unwrap();
        assert_eq!(file.metadata.mode, 0o755);
        assert!(file.link_group != 0 && matches!(file.kind, Kind::File { size: 4, .. }));
    }

    #[test]
    fn a_mount_is_new_when_it_is_empty_and_unused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let open = |id: &str| store.cache_mount(&request(id), &|_| Ok(()), &|| false);
        assert!(store.is_new_mount(&request("/go")).unwrap());
        let mount = open("/go").unwrap().unwrap();
        assert!(!store.is_new_mount(&request("/go")).unwrap(), "somebody has it");
        drop(mount);
        assert!(store.is_new_mount(&request("/go")).unwrap(), "it is empty");
        assert!(store.named_mounts(&["go".to_owned()]).unwrap().is_empty());
        let mount = open("/go").unwrap().unwrap();
        std::fs::write(mount.path().join("f"), "").unwrap();
        drop(mount);
        assert!(!store.is_new_mount(&request("/go")).unwrap(), "it has something in it");
    }
}
