//! What happens while a graph is solved, for views and logs. The set is closed.

use std::collections::HashMap;
use std::time::Duration;

use kiln_cache::Key;
use kiln_parser::graph::NodeId;

use crate::explain::Miss;
use crate::ports::{StepError, Stream};

/// One happening.
#[derive(Clone, Debug)]
pub enum Event {
    /// What solving begins with: the definition keys of everything the targets need.
    Planned(HashMap<NodeId, Key>),
    /// A step was not in the store: why. It runs, or, where what it reads has to be compared, has run.
    Missed {
        /// The step.
        id: NodeId,
        /// Why.
        miss: Box<Miss>,
    },
    /// A step begins to run.
    Started(NodeId),
    /// A step waits for another build that runs the same one.
    Waiting {
        /// The step.
        id: NodeId,
        /// The other build's process, where it is known.
        holder: Option<u32>,
    },
    /// A step's command wrote something.
    Log {
        /// The step.
        id: NodeId,
        /// The stream.
        stream: Stream,
        /// Some bytes, not necessarily whole lines.
        data: Vec<u8>,
    },
    /// A step's result was in the store.
    Cached(NodeId),
    /// A step ran.
    Done {
        /// The step.
        id: NodeId,
        /// How long it took.
        duration: Duration,
        /// It made the same files as the time before, whose layer is used again.
        unchanged: bool,
    },
    /// A step failed.
    Failed {
        /// The step.
        id: NodeId,
        /// Why.
        error: StepError,
    },
    /// A step was stopped because another one failed or the user asked.
    Cancelled(NodeId),
}
