//! A look at all of the store: is everything what its name, its tree or its row says?
//!
//! Nothing here is needed for builds: what they read is checked while they read it, but for the files that steps see
//! through overlay. Safe beside running builds: what is being published is held off by the publish lock, and a thing
//! that goes while it is looked at is no damage.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use rusqlite::Transaction;

use crate::digest::{Digest, LayerId};
use crate::root::FileKind;
use crate::store::{Store, StoreError, failed};
use crate::tree::{Entry, Kind, NodeRef, Tree};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// What, such as ``layer `…` ``.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
    /// Whether it was set aside or removed.
    pub repaired: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// How many blobs.
    pub blobs: usize,
    /// How many unpacked layers.
    pub layers: usize,
    /// How many records of steps.
    pub records: usize,
    /// What is wrong, in the order of names.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Looks at everything; with `repair` damaged things are set aside and what leads to nothing is forgotten, so that
    /// the next build makes or fetches it anew.
    ///
    /// # Errors
    /// When the disk or the database cannot be read at all.
    pub fn fsck(&self, repair: bool) -> Result<FsckReport, StoreError> {
        self.forget_dead_leases()?;
        let mut report = FsckReport::default();
        self.check_database(&mut report)?;
        self.check_blobs(repair, &mut report)?;
        self.check_layers(repair, &mut report)?;
        self.check_rows(repair, &mut report)?;
        self.check_names(&mut report)?;
        report.problems.sort();
        Ok(report)
    }

    fn check_database(&self, report: &mut FsckReport) -> Result<(), StoreError> {
        let found = self.db().read("check", |connection| {
            let mut statement = connection.prepare("PRAGMA quick_check(20)")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        report.problems.extend(found.into_iter().filter(|line| line != "ok").map(|line| Problem {
            what: "the database `kiln.db`".to_owned(),
            reason: format!(
                "{line}; without the file the store begins a new one, and steps run again"
            ),
            repaired: false,
        }));
        Ok(())
    }

    fn check_blobs(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        let mut digests = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let folder = Path::new("blobs").join(algorithm);
            let path = self.path().join(&folder);
            for item in self.root().read_dir(&folder).map_err(failed("read", &path))? {
                let name = item.name.to_string_lossy().into_owned();
                match format!("{algorithm}:{name}").parse::<Digest>() {
                    Ok(digest) => digests.push((digest, item.kind)),
                    Err(_) => report.problems.push(Problem {
                        what: format!("`{}`", folder.join(&name).display()),
                        reason: "is no blob".to_owned(),
                        repaired: repair && self.root().remove_all(&folder.join(&name)).is_ok(),
                    }),
                }
            }
        }
        report.blobs = digests.len();
        let found = digests.par_iter().map(|(digest, kind)| {
            let reason = match kind {
                FileKind::File => self.blob_damage(digest)?,
                _ => Some("is no file".to_owned()),
            };
            let Some(reason) = reason else { return Ok(None) };
            if repair {
                self.quarantine_blob(digest, &reason)?;
            }
            Ok(Some(Problem { what: format!("blob `{digest}`"), reason, repaired: repair }))
        });
        let found = found.collect::<Result<Vec<_>, StoreError>>()?;
        report.problems.extend(found.into_iter().flatten());
        Ok(())
    }

    /// What is wrong with a blob; nothing where it has gone meanwhile.
    fn blob_damage(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        let place = crate::blob::place(digest);
        let file = match self.root().open_file(&place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed("open", &self.path().join(&place)))?,
        };
        let found = match crate::blob::hash_file(file, digest.algorithm()) {
            Ok(found) => found,
            Err(error) => return Ok(Some(format!("cannot be read: {error}"))),
        };
        Ok((found.digest != *digest).then(|| format!("it hashes to `{}`", found.digest)))
    }

    fn check_layers(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        let layers = self.db().read("list layers", |connection| {
            let query = "SELECT id FROM layers WHERE boot IS NULL OR boot = ?1";
            let mut statement = connection.prepare(query)?;
            let rows = statement.query_map([self.boot()], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        report.layers = layers.len();
        for id in layers.iter().filter_map(|id| id.parse::<LayerId>().ok()) {
            let Some(reason) = self.layer_damage(&id)? else { continue };
            if repair {
                self.quarantine_layer(&id, &reason)?;
            }
            report.problems.push(Problem {
                what: format!("layer `{id}`"),
                reason,
                repaired: repair,
            });
        }
        Ok(())
    }

    /// What is wrong with an unpacked layer; nothing where it has gone meanwhile.
    fn layer_damage(&self, id: &LayerId) -> Result<Option<String>, StoreError> {
        self.forget_tree(id);
        let Some(content) = self.layer_content(id)? else { return Ok(None) };
        let known = match self.read_tree(id, &content) {
            Ok(tree) => tree,
            Err(reason) => return self.unless_gone(id, format!("its tree: {reason}")),
        };
        let found = self.layer_root(id).and_then(|root| {
            crate::layer::scan_upper(&root).map_err(failed("read", &self.layer_path(id)))
        });
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.unless_gone(id, error.to_string()),
        };
        let difference = first_difference(&known, &found);
        difference.map_or(Ok(None), |reason| self.unless_gone(id, reason))
    }

    fn unless_gone(&self, id: &LayerId, reason: String) -> Result<Option<String>, StoreError> {
        Ok(self.layer_content(id)?.map(|_| reason))
    }

    /// Rows that lead to nothing.
    fn check_rows(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        let _lock = self.publish_lock()?;
        let mounts = self.root().read_dir(Path::new("mounts"));
        let mounts = mounts.map_err(failed("read", &self.path().join("mounts")))?;
        let mounts: HashSet<_> =
            mounts.into_iter().map(|item| item.name.to_string_lossy().into_owned()).collect();
        let (records, problems) = self.db().write("check rows", |transaction| {
            let mut problems = stale_records(transaction, repair)?;
            problems.extend(stale_mounts(transaction, &mounts, repair)?);
            let keys = "keys WHERE record NOT IN (SELECT id FROM records)";
            problems.extend(stale(transaction, keys, "keys of records", repair)?);
            let failures = "failures WHERE layer NOT IN (SELECT id FROM layers)";
            problems.extend(stale(transaction, failures, "failed steps", repair)?);
            let records = "SELECT count(*) FROM records";
            let records = transaction.query_row(records, [], |row| row.get::<_, i64>(0))?;
            Ok((records, problems))
        })?;
        report.records = usize::try_from(records).unwrap_or(0);
        report.problems.extend(problems);
        Ok(())
    }

    /// Names of images whose manifests are not there. Layers of images may be missing: they are fetched when needed.
    fn check_names(&self, report: &mut FsckReport) -> Result<(), StoreError> {
        for root in self.index_roots()? {
            if !self.has_blob(&root.digest)? {
                report.problems.push(Problem {
                    what: format!("image `{}`", root.digest),
                    reason: "its manifest is not there; build or pull it again".to_owned(),
                    repaired: false,
                });
            }
        }
        Ok(())
    }
}

fn stale_records(transaction: &Transaction<'_>, repair: bool) -> rusqlite::Result<Vec<Problem>> {
    let mut query = transaction.prepare("SELECT id FROM layers")?;
    let layers = query.query_map([], |row| row.get::<_, String>(0))?;
    let layers = layers.collect::<rusqlite::Result<HashSet<_>>>()?;
    let mut query = transaction.prepare("SELECT id, layers, own, description FROM records")?;
    let mut rows = query.query([])?;
    let mut problems = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, chain): (i64, String) = (row.get(0)?, row.get(1)?);
        let own: Option<String> = row.get(2)?;
        let needed = chain.split_whitespace().chain(own.as_deref());
        let missing = needed
            .filter(|name| !name.parse::<LayerId>().is_ok_and(|layer| layer.is_image()))
            .find(|name| !layers.contains(*name));
        let Some(missing) = missing else { continue };
        problems.push(Problem {
            what: format!("record of `{}`", row.get::<_, String>(3)?),
            reason: format!("layer `{missing}` is not in the store"),
            repaired: repair,
        });
        if repair {
            transaction.execute("DELETE FROM keys WHERE record = ?1", [id])?;
            transaction.execute("DELETE FROM records WHERE id = ?1", [id])?;
        }
    }
    Ok(problems)
}

fn stale_mounts(
    transaction: &Transaction<'_>,
    there: &HashSet<String>,
    repair: bool,
) -> rusqlite::Result<Vec<Problem>> {
    let mut query = transaction.prepare("SELECT dir, id FROM mounts")?;
    let rows =
        query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut problems = Vec::new();
    for (dir, id) in rows.collect::<rusqlite::Result<Vec<_>>>()? {
        if there.contains(&dir) {
            continue;
        }
        if repair {
            transaction.execute("DELETE FROM mounts WHERE dir = ?1", [dir])?;
        }
        let what = format!("cache mount `{id}`");
        problems.push(Problem { what, reason: "its folder is gone".to_owned(), repaired: repair });
    }
    Ok(problems)
}

/// Rows of a table that lead to nothing, as one problem.
fn stale(
    transaction: &Transaction<'_>,
    rows: &str,
    what: &str,
    repair: bool,
) -> rusqlite::Result<Option<Problem>> {
    let query = format!("SELECT count(*) FROM {rows}");
    let count: i64 = transaction.query_row(&query, [], |row| row.get(0))?;
    if count > 0 && repair {
        transaction.execute(&format!("DELETE FROM {rows}"), [])?;
    }
    let problem = || Problem {
        what: what.to_owned(),
        reason: format!("{count} lead to nothing"),
        repaired: repair,
    };
    Ok((count > 0).then(problem))
}

/// Where files are not what a tree says. Owners and attributes are left out: an ordinary user's store cannot have them
/// all, and the tree is what is exported.
fn first_difference(known: &Tree, found: &Tree) -> Option<String> {
    differs(known.root(), found.root(), Path::new("/"))
}

fn differs(known: NodeRef<'_>, found: NodeRef<'_>, path: &Path) -> Option<String> {
    if let Some(how) = entry_differs(known.entry(), found.entry()) {
        return Some(format!("`{}`: {how}", path.display()));
    }
    for child in known.children() {
        let path = path.join(child.name());
        match found.child(child.name()) {
            Some(other) => {
                if let Some(reason) = differs(child, other, &path) {
                    return Some(reason);
                }
            }
            None if is_device(child.entry()) => {}
            None => return Some(format!("`{}` is not there any more", path.display())),
        }
    }
    let new = found.children().find(|child| known.child(child.name()).is_none());
    new.map(|new| format!("`{}` was put there", path.join(new.name()).display()))
}

fn entry_differs(known: &Entry, found: &Entry) -> Option<&'static str> {
    if is_device(known) && known.kind != found.kind {
        // Only root can make devices; others have the tree alone.
        return None;
    }
    match (&known.kind, &found.kind) {
        (Kind::File { .. }, Kind::File { .. }) if known.kind != found.kind => {
            return Some("other content");
        }
        (old, new) if old != new => return Some("another kind of file"),
        _ => {}
    }
    let capable = |entry: &Entry| entry.metadata.xattrs.contains_key(&b"security.capability"[..]);
    if capable(found) && !capable(known) {
        // Others a file system may add by itself, or an ordinary user's store lack.
        return Some("capabilities that it had not");
    }
    (known.metadata.mode != found.metadata.mode && !matches!(known.kind, Kind::Symlink { .. }))
        .then_some("other permissions")
}

fn is_device(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. })
}
