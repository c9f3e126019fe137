//! What solving comes to.

use std::collections::HashMap;
use std::time::Duration;

use kiln_cache::{Lease, StoreError};
use kiln_parser::graph::NodeId;
use thiserror::Error;

use crate::ports::StepError;
use crate::snapshot::Snapshot;

/// How a node got its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// From the store.
    Cached,
    /// It ran.
    Ran {
        /// How long it took.
        duration: Duration,
        /// It made what it had made before.
        unchanged: bool,
    },
}

/// A graph that was solved.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The targets' snapshots, and those of every node that was looked at on the way.
    pub snapshots: HashMap<NodeId, Snapshot>,
    /// How each of them came about.
    pub statuses: HashMap<NodeId, Status>,
    /// Records that answered and whose use is worth a note ([`kiln_cache::Store::touch`]): off the path.
    pub used: Vec<i64>,
    /// Keeps the layers in the store for as long as the outcome lives, where a step ran.
    pub lease: Option<Lease>,
}

/// Why a graph could not be solved. Steps that succeeded until then are in the store.
#[derive(Debug, Error)]
pub enum SolveError {
    /// A step failed; it is the first one that did.
    #[error("{error}")]
    Step {
        /// The step.
        id: NodeId,
        /// Why.
        error: StepError,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
