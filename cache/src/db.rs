//! The database: opening, transactions, migrations.
//!
//! One connection a process, behind a mutex: statements take microseconds, and SQLite lets one writer in at a time
//! anyway. WAL, so that readers never wait; `synchronous=NORMAL`, so that a commit writes but does not sync; no
//! checkpoint when a commit or the process ends, because a checkpoint does sync. The log is checkpointed where that
//! disturbs nobody: [`Db::checkpoint`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::store::StoreError;

/// The format that this program writes (`PRAGMA user_version`).
const FORMAT: i64 = 2;
/// Another process may hold the write lock for as long as a garbage collection's transaction.
const BUSY: Duration = Duration::from_secs(60);
/// A file beside the database that says that it may be damaged.
pub(crate) const SUSPECT: &str = "kiln.db.suspect";
/// A log longer than this is written back.
const CHECKPOINT_BYTES: u64 = 1024 * 1024;

pub(crate) struct Db {
    connection: Mutex<Connection>,
    path: PathBuf,
    wrote: AtomicBool,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.path).finish_non_exhaustive()
    }
}

fn wrap(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { operation, source }
}

/// Whether the file is no database, or a broken one.
pub(crate) fn is_damage(error: &StoreError) -> bool {
    let StoreError::Database { source, .. } = error else { return false };
    matches!(source.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Whether the file is not there.
pub(crate) fn is_missing(error: &StoreError) -> bool {
    let StoreError::Database { source, .. } = error else { return false };
    source.sqlite_error_code() == Some(ErrorCode::CannotOpen)
}

impl Db {
    /// Opens the database; `create` makes it and its tables when they are missing.
    pub(crate) fn open(path: &Path, store: &Path, create: bool) -> Result<Self, StoreError> {
        let open = wrap("open");
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let connection = Connection::open_with_flags(path, flags).map_err(&open)?;
        connection.busy_timeout(BUSY).map_err(&open)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(&open)?;
        if create {
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(&open)?;
        }
        let settings = "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;";
        connection.execute_batch(settings).map_err(&open)?;
        let connection = Mutex::new(connection);
        let db = Self { connection, path: path.to_owned(), wrote: AtomicBool::new(false) };
        let found = db.format()?;
        if found > FORMAT {
            return Err(StoreError::NewerFormat { path: store.to_owned(), found, known: FORMAT });
        }
        if found < FORMAT {
            db.migrate()?;
        }
        Ok(db)
    }

    fn format(&self) -> Result<i64, StoreError> {
        self.read("read the format", |connection| {
            connection.query_row("PRAGMA user_version", [], |row| row.get(0))
        })
    }

    /// From any older format to this one, in one transaction; two processes may try at once.
    fn migrate(&self) -> Result<(), StoreError> {
        self.write("make the tables", |transaction| {
            let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if found < 1 {
                transaction.execute_batch(include_str!("schema.sql"))?;
            }
            if found < 2 {
                transaction.execute_batch(include_str!("schema_2.sql"))?;
            }
            transaction.pragma_update(None, "user_version", FORMAT)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a closure rolled its transaction back; the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads; several statements see one state only inside [`Db::read_together`].
    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let result = run(&self.lock()).map_err(wrap(operation));
        result.inspect_err(|error| self.notice(error))
    }

    /// Damage is left for the next process to look into: this one has the file open.
    fn notice(&self, error: &StoreError) {
        if is_damage(error) {
            // Without the mark, the next process comes upon the damage again.
            let _ = std::fs::File::create(self.path.with_file_name(SUSPECT));
        }
    }

    /// Whether SQLite finds nothing wrong.
    pub(crate) fn is_whole(&self) -> Result<bool, StoreError> {
        self.read("check", |connection| {
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        })
        .map(|found| found == "ok")
    }

    /// Reads with several statements, all of one state.
    pub(crate) fn read_together<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.transact(operation, TransactionBehavior::Deferred, run)
    }

    /// Writes, in one transaction. Takes the write lock at once, so that a busy database is waited for.
    pub(crate) fn write<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.wrote.store(true, Ordering::Relaxed);
        self.transact(operation, TransactionBehavior::Immediate, run)
    }

    /// Whether this process has written.
    pub(crate) fn wrote(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    fn transact<T>(
        &self,
        operation: &'static str,
        behavior: TransactionBehavior,
        run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let attempt = || {
            let mut connection = self.lock();
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = run(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        attempt().map_err(wrap(operation)).inspect_err(|error| self.notice(error))
    }

    /// Writes the log back into the database when it has grown long. Syncs: not for the path of a build step.
    /// Says whether it had.
    pub(crate) fn checkpoint(&self) -> bool {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let long = std::fs::metadata(log).is_ok_and(|log| log.len() > CHECKPOINT_BYTES);
        if long {
            // Another process may be reading: whoever comes next does it.
            let _ = self.lock().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        long
    }
}
