//! Quotas that keep themselves: before something is written, and after a build in which a step ran.
//!
//! Looking costs a few statements and one `statvfs`; only when a limit is exceeded is anything listed. Age alone is
//! looked at once an hour. One process collects at a time, others go on without. Nothing here is on the path of a
//! build whose steps are all cached.

use std::path::Path;

use rusqlite::{OptionalExtension, params};

use crate::gc::{PruneOptions, PruneReport};
use crate::measure::measure;
use crate::process::LockFile;
use crate::reserve;
use crate::store::{Store, StoreError, failed, now};
use crate::usage::unsigned;

/// Seconds between two looks at what is old.
const AGE_INTERVAL: i64 = 3600;
/// Seconds for which nothing is tried after nothing could be freed.
const FRUITLESS: i64 = 60;
/// Between two looks more time than this cannot pass, or less than none: the clock was set. Then age is not believed
/// for a day, which is time to set it right.
const JUMP: i64 = 45 * 24 * 3600;
const DISTRUST: i64 = 24 * 3600;

/// The row of `gc`.
#[derive(Debug, Clone, Copy)]
struct State {
    fruitless: i64,
    aged: i64,
    distrusted: i64,
}

impl State {
    /// Whether things may go for their age alone, and the state after that was asked.
    fn ages(self, now: i64) -> (bool, Self) {
        let passed = now - self.aged;
        if self.aged != 0 && !(-DISTRUST..JUMP).contains(&passed) {
            return (false, Self { aged: now, distrusted: now, ..self });
        }
        let distrusted = self.distrusted != 0 && (0..DISTRUST).contains(&(now - self.distrusted));
        let due = !(0..AGE_INTERVAL).contains(&passed);
        (due && !distrusted, if due { Self { aged: now, ..self } } else { self })
    }
}

impl Store {
    /// Bytes in the store as far as the database knows: exact to a few blocks a layer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn used(&self) -> Result<u64, StoreError> {
        let sum = self.db().read("add up what is stored", |connection| {
            let query = "SELECT (SELECT coalesce(sum(size), 0) FROM layers)
                              + (SELECT coalesce(sum(size), 0) FROM blobs)
                              + (SELECT coalesce(sum(bytes), 0) FROM mount_sizes)";
            connection.query_row(query, [], |row| row.get(0))
        })?;
        Ok(unsigned(sum))
    }

    /// What a step is likely to write: what it wrote the last time.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn expected_size(&self, description: &str) -> Result<u64, StoreError> {
        let size = self.db().read("look up what a step wrote", |connection| {
            let query = "SELECT l.size FROM records r JOIN layers l ON l.id = r.own
                         WHERE r.description = ?1 ORDER BY r.id DESC LIMIT 1";
            let mut statement = connection.prepare_cached(query)?;
            statement.query_row([description], |row| row.get(0)).optional()
        })?;
        Ok(unsigned(size.unwrap_or(0)))
    }

    /// How many bytes may be written before one of the policies is broken; `None` when none has a limit.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn room(&self, policies: &[PruneOptions]) -> Result<Option<u64>, StoreError> {
        let (used, space) = (self.used()?, self.space()?);
        let each = policies.iter().filter(|policy| policy.until.is_none()).flat_map(|policy| {
            // What is reserved is used whatever the other limits say.
            let reserved = policy.limits.reserved.unwrap_or(0).saturating_sub(used);
            let most = policy.limits.max_used.map(|most| most.saturating_sub(used).max(reserved));
            let free =
                policy.limits.min_free.map(|free| space.free.saturating_sub(free).max(reserved));
            most.into_iter().chain(free)
        });
        Ok(each.min())
    }

    /// Frees what has to go so that `expected` more bytes keep the policies. `None` when another process is at it, or
    /// nothing could be freed a moment ago.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn make_room(
        &self,
        policies: &[PruneOptions],
        expected: u64,
    ) -> Result<Option<PruneReport>, StoreError> {
        let policies: Vec<PruneOptions> = policies
            .iter()
            .filter(|policy| policy.until.is_none() && policy.limits.any())
            .map(|policy| PruneOptions { expected, ..policy.clone() })
            .collect();
        let state = self.state()?;
        if (0..FRUITLESS).contains(&(now() - state.fruitless)) {
            return Ok(None);
        }
        let Some(_lock) = self.collector()? else { return Ok(None) };
        self.collect(&policies, state).map(Some)
    }

    /// For the end of a build in which a step ran: keeps the policies where they are broken, and once an hour looks at
    /// what is old. `None` when there was nothing to do.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub fn collect_garbage(
        &self,
        policies: &[PruneOptions],
    ) -> Result<Option<PruneReport>, StoreError> {
        let now = now();
        let state = self.state()?;
        let (ages, next) = state.ages(now);
        let Some(_lock) = self.collector()? else { return Ok(None) };
        reserve::make(self.root());
        self.measure_mounts()?;
        let fruitless = (0..FRUITLESS).contains(&(now - state.fruitless));
        let full = !fruitless && self.is_over(policies)?;
        if (next.aged, next.distrusted) != (state.aged, state.distrusted) {
            self.save_state(next)?;
        }
        let due = |policy: &&PruneOptions| if policy.until.is_some() { ages } else { full };
        let due: Vec<PruneOptions> = policies.iter().filter(due).cloned().collect();
        if due.is_empty() { Ok(None) } else { self.collect(&due, next).map(Some) }
    }

    fn is_over(&self, policies: &[PruneOptions]) -> Result<bool, StoreError> {
        let (used, space) = (self.used()?, self.space()?);
        let short =
            |policy: &PruneOptions| policy.limits.any() && policy.limits.keep(used, &space) < used;
        Ok(policies.iter().any(|policy| policy.until.is_none() && short(policy)))
    }

    fn collector(&self) -> Result<Option<LockFile>, StoreError> {
        let name = Path::new("locks/gc");
        let take = || {
            let file = LockFile::open(self.root(), name)?;
            Ok(file.try_lock(false)?.then_some(file))
        };
        take().map_err(failed("lock", &self.path().join(name)))
    }

    fn collect(&self, policies: &[PruneOptions], state: State) -> Result<PruneReport, StoreError> {
        let mut all = PruneReport::default();
        for policy in policies {
            let held = self.held()?;
            let rows = self.known_rows(&held)?;
            let report = self.prune_rows(policy, &held, rows)?;
            all.bytes += report.bytes;
            all.removed.extend(report.removed);
        }
        let limited = policies.iter().any(|policy| policy.until.is_none());
        let fruitless = if limited && all.removed.is_empty() { now() } else { 0 };
        if (state.fruitless, fruitless) != (0, 0) {
            self.save_state(State { fruitless, ..state })?;
        }
        Ok(all)
    }

    fn state(&self) -> Result<State, StoreError> {
        self.db().read("look when garbage was collected", |connection| {
            connection.query_row("SELECT checked, aged, distrusted FROM gc", [], |row| {
                Ok(State { fruitless: row.get(0)?, aged: row.get(1)?, distrusted: row.get(2)? })
            })
        })
    }

    fn save_state(&self, state: State) -> Result<(), StoreError> {
        self.db().write("note when garbage was collected", |transaction| {
            let query = "UPDATE gc SET checked = ?1, aged = ?2, distrusted = ?3";
            transaction
                .execute(query, params![state.fruitless, state.aged, state.distrusted])
                .map(drop)
        })
    }

    /// Measures the cache mounts that were used since they were measured.
    pub(crate) fn measure_mounts(&self) -> Result<(), StoreError> {
        let stale = self.db().read("look for cache mounts that were used", |connection| {
            let query = "SELECT m.dir FROM mounts m LEFT JOIN mount_sizes s ON s.dir = m.dir
                         WHERE s.measured IS NULL OR m.last_used >= s.measured";
            let mut statement = connection.prepare(query)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        if stale.is_empty() {
            return Ok(());
        }
        let sizes: Vec<(String, u64)> = stale
            .into_iter()
            .map(|dir| {
                let bytes = measure(self.root(), &Path::new("mounts").join(&dir)).bytes;
                (dir, bytes)
            })
            .collect();
        self.db().write("note the size of cache mounts", |transaction| {
            let mut query =
                transaction.prepare("INSERT OR REPLACE INTO mount_sizes VALUES (?1, ?2, ?3)")?;
            for (dir, bytes) in sizes {
                query.execute(params![dir, i64::try_from(bytes).unwrap_or(i64::MAX), now()])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{DISTRUST, JUMP, State};

    #[test]
    fn a_clock_that_jumps_makes_nothing_old() {
        let start = 1_800_000_000;
        let new = State { fruitless: 0, aged: 0, distrusted: 0 };
        let (ages, state) = new.ages(start);
        assert!(ages);
        assert!(!state.ages(start + 60).0, "a moment ago");
        let (ages, state) = state.ages(start + 7200);
        assert!(ages);
        let (ages, jumped) = state.ages(start + 7200 + 10 * JUMP);
        assert!(!ages, "years in an hour");
        assert!(!jumped.ages(jumped.aged + 7200).0, "not so soon");
        assert!(jumped.ages(jumped.aged + DISTRUST + 1).0);
        let (ages, back) = jumped.ages(start + 8000);
        assert!(!ages, "set right");
        assert_eq!(back.aged, start + 8000);
    }
}
