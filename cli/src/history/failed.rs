//! The file system of a step that failed, with all that a shell needs to stand in the same place.

use std::collections::HashMap;

use kiln_cache::{ContentDigest, LayerId, Store};
use kiln_parser::graph::{NodeId, RunOp};
use kiln_parser::platform::Platform;
use kiln_solver::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use super::StepDocument;
use crate::failure::{Failure, chain};

/// A RUN that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailedStep {
    /// What ran, but for proxies, which may hold passwords.
    pub(crate) op: RunOp,
    /// For which platform.
    pub(crate) platform: Option<String>,
    /// What it started from, and above it what it wrote.
    result: Files,
    /// What its mounts show.
    inputs: Vec<(u32, Files)>,
}

/// A snapshot as text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Files {
    layers: Vec<String>,
    content: String,
}

impl Files {
    fn of(snapshot: &Snapshot) -> Self {
        let layers = snapshot.layers.iter().map(LayerId::to_string).collect();
        Self { layers, content: snapshot.content.hex() }
    }

    /// None for what this program did not write.
    fn snapshot(&self) -> Option<Snapshot> {
        let layers = self.layers.iter().map(|id| id.parse().ok()).collect::<Option<Vec<_>>>()?;
        let content: ContentDigest = self.content.parse().ok()?;
        Some(Snapshot { layers, content })
    }
}

impl FailedStep {
    /// What was kept of a step.
    ///
    /// # Errors
    /// It is not there any more.
    pub(crate) fn read(store: &Store, step: &StepDocument) -> Result<Self, Failure> {
        let gone = || {
            Failure::input(format_args!("the files of step #{} are not kept", step.number))
                .hint("those of a RUN that ended with an error are, for a day; build again")
        };
        let layer = step.failed.as_ref().ok_or_else(gone)?;
        let kept = store.failure(layer).map_err(|e| Failure::environment(chain(&e)))?;
        kept.and_then(|text| serde_json::from_str(&text).ok()).ok_or_else(gone)
    }

    pub(crate) fn new(
        op: &RunOp,
        platform: Option<&Platform>,
        result: &Snapshot,
        inputs: &HashMap<NodeId, Snapshot>,
    ) -> Self {
        Self {
            op: op.clone(),
            platform: platform.map(Platform::to_string),
            result: Files::of(result),
            inputs: inputs.iter().map(|(id, snapshot)| (id.0, Files::of(snapshot))).collect(),
        }
    }

    /// What the step left.
    pub(crate) fn result(&self) -> Option<Snapshot> {
        self.result.snapshot()
    }

    /// What its mounts show.
    pub(crate) fn inputs(&self) -> Option<HashMap<NodeId, Snapshot>> {
        self.inputs.iter().map(|(id, files)| Some((NodeId(*id), files.snapshot()?))).collect()
    }
}
