//! The history of builds: a row for each, and the whole logs of its steps.
//!
//! A row is written when a build ends, and before that when the first of its steps runs, so that one that was killed is
//! known too. What a row says about the build is a document of the command line's; the store only keeps it. Logs are files below
//! `logs/<build>/`, written as the steps go.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, params};

use crate::db::Db;
use crate::digest::LayerId;
use crate::process;
use crate::root::Root;
use crate::store::{Store, StoreError, failed, now_ms};

/// Builds are forgotten when they are older than this, with their logs,
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// or when there are so many younger ones.
const MOST: i64 = 1000;

/// Name of a build: 12 characters of `[a-z2-7]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BuildId(String);

impl BuildId {
    const LENGTH: usize = 12;

    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(LayerId::random().as_str()[..Self::LENGTH].to_owned())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BuildId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let known = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
        let valid = text.len() == Self::LENGTH && text.bytes().all(known);
        if valid { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    /// Its name.
    pub id: BuildId,
    /// Identity of what was built: where its Dockerfile and context are.
    pub project: [u8; 32],
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// The same; none while it runs, and when it was killed.
    pub ended_ms: Option<i64>,
    /// What the command line says about it, as JSON.
    pub document: String,
}

const COLUMNS: &str = "id, project, started_ms, ended_ms, document";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Option<BuildRow>> {
    let Ok(id) = row.get::<_, String>(0)?.parse() else { return Ok(None) };
    Ok(Some(BuildRow {
        id,
        project: row.get(1)?,
        started_ms: row.get(2)?,
        ended_ms: row.get(3)?,
        document: row.get(4)?,
    }))
}

impl Store {
    /// Writes a build's row anew. A build that has not ended belongs to this process.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn save_build(&self, build: &BuildRow) -> Result<(), StoreError> {
        let process = match build.ended_ms {
            None => Some(self.process()?),
            Some(_) => None,
        };
        let process = process.as_ref().map_or("", |process| process.name());
        self.db().write("save a build", |transaction| {
            let query = "INSERT OR REPLACE INTO builds
                         (id, project, process, started_ms, ended_ms, document)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let BuildRow { id, project, started_ms, ended_ms, document } = build;
            transaction
                .prepare_cached(query)?
                .execute(params![id.as_str(), project, process, started_ms, ended_ms, document])
                .map(|_| ())
        })
    }

    /// The newest builds, newest first; of one project or of all.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn builds(
        &self,
        project: Option<&[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<BuildRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.db().read("look for builds", |connection| {
            // Two statements, so that each has its index.
            let wanted = project.map_or("?1 IS NULL", |_| "project = ?1");
            let query = format!(
                "SELECT {COLUMNS} FROM builds WHERE {wanted} ORDER BY started_ms DESC LIMIT ?2"
            );
            let mut statement = connection.prepare_cached(&query)?;
            let rows = statement.query_map(params![project, limit], from_row)?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// The builds whose name begins so, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn builds_named(&self, prefix: &str) -> Result<Vec<BuildRow>, StoreError> {
        self.db().read("look for a build", |connection| {
            let query = format!(
                "SELECT {COLUMNS} FROM builds WHERE substr(id, 1, length(?1)) = ?1
                 ORDER BY started_ms DESC"
            );
            let mut statement = connection.prepare_cached(&query)?;
            let rows = statement.query_map([prefix], from_row)?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Whether the process of a build that has not ended is there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_running(&self, id: &BuildId) -> Result<bool, StoreError> {
        let holder = self.db().read("look for a build", |connection| {
            let query = "SELECT process FROM builds WHERE id = ?1 AND ended_ms IS NULL";
            connection.query_row(query, [id.as_str()], |row| row.get::<_, String>(0)).optional()
        })?;
        let Some(holder) = holder else { return Ok(false) };
        let path = self.path().join("tmp");
        let living = self.root().open_dir(Path::new("tmp")).and_then(|tmp| process::living(&tmp));
        Ok(living.map_err(failed("look for processes in", &path))?.contains(&holder))
    }

    /// Begins the log of a step; `step` is a number or a word.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_log(&self, build: &BuildId, step: &str) -> Result<File, StoreError> {
        let folder = log_folder(build);
        let make = |root: &Root| {
            for folder in [Path::new("logs"), &folder] {
                match root.mkdir(folder, 0o700) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
            }
            root.create_file(&folder.join(step), 0o600)
        };
        make(self.root()).map_err(failed("make a log in", &self.path().join(&folder)))
    }

    /// The log of a step; none when it wrote nothing.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn log(&self, build: &BuildId, step: &str) -> Result<Option<File>, StoreError> {
        let place = log_folder(build).join(step);
        match self.root().open_file(&place) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open the log", &self.path().join(&place))(error)),
        }
    }

    /// The digest that is kept in place of a value that may be secret: equal values of one store have equal digests, and
    /// nobody without the store can guess at them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn digest_key(&self) -> Result<[u8; 32], StoreError> {
        self.db().read("read the key for digests", |connection| {
            connection.query_row("SELECT key FROM digest_key", [], |row| row.get(0))
        })
    }
}

/// Forgets builds that are old or too many, with their logs. Nobody waits for it.
pub(crate) fn forget_old(db: &Db, root: &Root) {
    let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    forget_begun_before(db, root, now_ms() - kept);
}

fn forget_begun_before(db: &Db, root: &Root, ms: i64) {
    let forgotten = db.write("forget old builds", |transaction| {
        let query = "DELETE FROM builds WHERE started_ms < ?1 OR id NOT IN
                         (SELECT id FROM builds ORDER BY started_ms DESC LIMIT ?2)
                     RETURNING id";
        let mut statement = transaction.prepare(query)?;
        let rows = statement.query_map([ms, MOST], |row| row.get::<_, String>(0))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    });
    for id in forgotten.unwrap_or_default().iter().filter_map(|id| id.parse().ok()) {
        let _ = root.remove_all(&log_folder(&id));
    }
}

fn log_folder(build: &BuildId) -> PathBuf {
    Path::new("logs").join(build.as_str())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::{BuildId, BuildRow, MOST};
    use crate::store::{Store, now_ms};

    fn row(started_ms: i64, ended_ms: Option<i64>) -> BuildRow {
        BuildRow {
            id: BuildId::random(),
            project: [7; 32],
            started_ms,
            ended_ms,
            document: "{}".to_owned(),
        }
    }

    #[test]
    fn builds_are_found_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let now = now_ms();
        // Not as old as what every process forgets by the way.
        let (old, new) = (row(now - 60_000, Some(now)), row(now, None));
        for build in [&old, &new] {
            store.save_build(build).unwrap();
            store.new_log(&build.id, "1").unwrap().write_all(b"log").unwrap();
        }
        assert_eq!(store.builds(None, 9).unwrap(), [new.clone(), old.clone()]);
        assert_eq!(store.builds(Some(&[7; 32]), 1).unwrap(), std::slice::from_ref(&new));
        assert_eq!(store.builds(Some(&[8; 32]), 1).unwrap(), []);
        assert_eq!(store.builds_named(&old.id.as_str()[..8]).unwrap(), std::slice::from_ref(&old));
        assert!(store.is_running(&new.id).unwrap());
        assert!(!store.is_running(&old.id).unwrap());
        super::forget_begun_before(store.db(), store.root(), now - 1000);
        assert_eq!(store.builds(None, 9).unwrap(), std::slice::from_ref(&new));
        assert!(store.log(&old.id, "1").unwrap().is_none());
        let mut text = String::new();
        store.log(&new.id, "1").unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "log");
        let ended = BuildRow { ended_ms: Some(now), ..new };
        store.save_build(&ended).unwrap();
        assert!(!store.is_running(&ended.id).unwrap());
    }

    #[test]
    fn there_are_only_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for number in 0..MOST + 3 {
            store.save_build(&row(now_ms() + number, Some(1))).unwrap();
        }
        super::forget_old(store.db(), store.root());
        let left = store.builds(None, usize::MAX).unwrap().len();
        assert_eq!(i64::try_from(left).unwrap(), MOST);
    }

    #[test]
    fn names_are_checked() {
        let id = BuildId::random();
        assert_eq!(id.as_str().parse(), Ok(id));
        for bad in ["", "../../../etcx", "abcdefghijk", "ABCDEFGHIJKL", "abcdefghijk1"] {
            assert!(bad.parse::<BuildId>().is_err(), "{bad}");
        }
    }
}
