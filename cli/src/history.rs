//! The history of builds as documents: what was built, how it went, and for every step how it got its
//! result, how long that took and why it ran. `kiln builds`, `kiln logs`, `kiln explain` and `kiln debug` read
//! what `kiln build` wrote. Fields are only ever added.

pub(crate) mod failed;
mod past;
mod recorder;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_cache::{BuildId, BuildRow, LayerId, Store};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, chain};
pub(crate) use past::Past;
pub(crate) use recorder::Recorder;

/// What is known about a build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Document {
    /// `success`, `failed`, `interrupted`; empty while it runs.
    pub(crate) outcome: String,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The context as it was given.
    pub(crate) context: String,
    /// The Dockerfile as it was given.
    pub(crate) file: String,
    /// The stage that was asked for.
    pub(crate) target: Option<String>,
    /// Names of the result.
    pub(crate) names: Vec<String>,
    /// Digest of the result.
    pub(crate) digest: Option<String>,
    /// Digests of the manifests of the images it started from, by name.
    pub(crate) images: BTreeMap<String, String>,
    /// Its steps, as they are numbered in the plain progress.
    pub(crate) steps: Vec<StepDocument>,
}

/// What is known about a step of a build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StepDocument {
    /// `#N` of the plain progress.
    pub(crate) number: usize,
    /// `[build 2/5] RUN make`.
    pub(crate) name: String,
    /// The instruction alone.
    pub(crate) text: String,
    /// The stage's name or number.
    pub(crate) stage: String,
    /// `cached`, `ran`, `unchanged`, `failed`, `canceled`; empty while it runs.
    pub(crate) status: String,
    /// How long it ran.
    pub(crate) duration_ms: Option<u64>,
    /// Its definition key.
    pub(crate) key: String,
    /// Why it ran.
    pub(crate) why: Option<Why>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The layer that it wrote, where it failed and that was kept.
    pub(crate) failed: Option<LayerId>,
}

/// Why a step ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Why {
    /// In a line.
    pub(crate) line: String,
    /// Every part of its key that differs.
    pub(crate) differences: Vec<Differs>,
    /// Every file that differs.
    pub(crate) files: Option<Files>,
}

/// A part of a key that differs; values that may be secret are digests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Differs {
    pub(crate) part: String,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// Files that differ, at most [`Files::MOST`] of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Files {
    pub(crate) changed: Vec<String>,
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// How many differ, listed or not.
    pub(crate) count: usize,
    /// How many there are.
    pub(crate) total: usize,
}

impl Files {
    /// A document is not longer than that.
    pub(crate) const MOST: usize = 10_000;
}

/// A build with its document.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) row: BuildRow,
    pub(crate) document: Document,
}

impl Build {
    fn read(row: BuildRow) -> Self {
        // What this version cannot read has nothing to tell it.
        let document = serde_json::from_str(&row.document).unwrap_or_default();
        Self { row, document }
    }

    /// How it went, in a word.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn outcome(&self, store: &Store) -> Result<String, Failure> {
        if self.row.ended_ms.is_some() {
            return Ok(self.document.outcome.clone());
        }
        let running =
            store.is_running(&self.row.id).map_err(|e| Failure::environment(chain(&e)))?;
        Ok(if running { "running" } else { "died" }.to_owned())
    }

    /// A step by its number, its name, the beginning of its instruction; without a name the one that failed.
    ///
    /// # Errors
    /// There is none, or several.
    pub(crate) fn step(&self, name: Option<&str>) -> Result<&StepDocument, Failure> {
        let steps = &self.document.steps;
        let Some(name) = name.map(|name| name.strip_prefix('#').unwrap_or(name)) else {
            let failed = steps.iter().find(|step| step.status == "failed");
            return failed.ok_or_else(|| {
                Failure::input(format_args!("no step of build `{}` failed", self.row.id))
                    .hint(format!("`kiln builds {}` lists its steps; name one", self.row.id))
            });
        };
        let number = name.parse::<usize>().ok();
        let by_number = |step: &&StepDocument| Some(step.number) == number;
        let by_text = |step: &&StepDocument| step.name == name || step.text.starts_with(name);
        if let Some(step) = steps.iter().find(by_number) {
            return Ok(step);
        }
        let mut found = steps.iter().filter(by_text);
        match (found.next(), found.next()) {
            (Some(step), None) => Ok(step),
            (None, _) => {
                Err(Failure::input(format_args!("build `{}` has no step `{name}`", self.row.id))
                    .hint(format!("`kiln builds {}` lists its steps", self.row.id)))
            }
            (Some(one), Some(other)) => Err(Failure::input(format_args!(
                "`{name}` may be step {} or step {}",
                one.number, other.number
            ))
            .hint("name it by its number")),
        }
    }
}

/// The newest builds, newest first.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn newest(store: &Store, limit: usize) -> Result<Vec<Build>, Failure> {
    let rows = store.builds(None, limit).map_err(|e| Failure::environment(chain(&e)))?;
    Ok(rows.into_iter().map(Build::read).collect())
}

/// A build by the beginning of its name; without a name the newest.
///
/// # Errors
/// There is none, or several.
pub(crate) fn find(store: &Store, name: Option<&str>) -> Result<Build, Failure> {
    let Some(name) = name else {
        return newest(store, 1)?.pop().ok_or_else(|| {
            Failure::input("nothing was built in this store").hint("kiln build makes the first")
        });
    };
    let rows = store.builds_named(name).map_err(|e| Failure::environment(chain(&e)))?;
    let mut rows = rows.into_iter();
    match (rows.next(), rows.next()) {
        (Some(row), None) => Ok(Build::read(row)),
        (None, _) => Err(Failure::input(format_args!("no build `{name}`"))
            .hint("`kiln builds` lists them; they are kept for 30 days")),
        (Some(one), Some(other)) => Err(Failure::input(format_args!(
            "`{name}` may be build `{}` or build `{}`",
            one.id, other.id
        ))
        .hint("give more of its name")),
    }
}

/// A build that goes on.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) id: BuildId,
    pub(crate) project: [u8; 32],
    pub(crate) started_ms: i64,
    /// What is known before its steps.
    pub(crate) head: Document,
}

impl Current {
    /// Begins one; nothing is written yet.
    pub(crate) fn begin(head: Document) -> Self {
        let project = past::project(&head);
        Self { id: BuildId::random(), project, started_ms: now_ms(), head }
    }

    /// Its row while it runs, for when it is killed.
    fn save_running(&self, store: &Store) -> Result<(), kiln_cache::StoreError> {
        self.save(store, &self.head, None)
    }

    /// Its row, for good. A build does not fail for want of a history.
    pub(crate) fn save_ended(&self, store: &Store, document: &Document) {
        let _unwritten = self.save(store, document, Some(now_ms()));
    }

    fn save(
        &self,
        store: &Store,
        document: &Document,
        ended_ms: Option<i64>,
    ) -> Result<(), kiln_cache::StoreError> {
        let document = serde_json::to_string(document).unwrap_or_default();
        let (id, project, started_ms) = (self.id.clone(), self.project, self.started_ms);
        store.save_build(&BuildRow { id, project, started_ms, ended_ms, document })
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
