//! What the solver asks of others. The command line hands the implementations in.

use std::collections::HashMap;

use kiln_cache::{ContentDigest, Key, LayerDraft, LayerId, Record, Tree};
use kiln_parser::git::GitRef;
use kiln_parser::graph::{CopyOp, Node, NodeId};

use crate::snapshot::Snapshot;

/// Everything that touches the world.
pub trait Ports: Send + Sync {
    /// Identity of what a COPY or ADD would read: the selected files of all its sources. Sources
    /// that are contexts or remotes are nodes without a snapshot; those that are snapshots are in
    /// `inputs`.
    ///
    /// # Errors
    /// A source that does not exist or cannot be read.
    fn digest_sources(
        &self,
        copy: &CopyOp,
        inputs: &HashMap<NodeId, Snapshot>,
    ) -> Result<ContentDigest, StepError>;

    /// Identity of a git source: the commit that its reference is now.
    ///
    /// # Errors
    /// No such repository or reference; it is not the commit that was asked for.
    fn digest_git(&self, git: &GitRef) -> Result<ContentDigest, StepError>;

    /// Under which definition keys a step was built before, nearest first; for explaining why it runs.
    fn earlier(&self, id: NodeId) -> Vec<Key>;

    /// Brings layers of images into the store; called before something reads them. Those that are
    /// there cost nothing.
    ///
    /// # Errors
    /// They cannot be fetched.
    fn materialise(&self, layers: &[LayerId]) -> Result<(), StepError>;

    /// What caches elsewhere answer under keys that the store does not know. The layers of these records need not be in
    /// the store: [`Self::bring`] comes before anything reads them.
    fn elsewhere(&self, keys: &[Key]) -> HashMap<Key, Record>;

    /// Brings layers of records from elsewhere into the store, verified; those that are there cost nothing. False when
    /// one cannot be had: [`Self::elsewhere`] gives no record with it any more.
    ///
    /// # Errors
    /// The build was stopped, or the store fails.
    fn bring(&self, layers: &[LayerId]) -> Result<bool, StepError>;

    /// Runs a step: RUN, COPY, ADD, WORKDIR or a checkout.
    ///
    /// # Errors
    /// The step failed or was stopped; nothing of it is left.
    fn run(&self, step: &StepRequest<'_>, log: &dyn Log) -> Result<StepOutput, StepError>;

    /// Asks all running steps to stop; they return [`Kind::Cancelled`].
    fn stop(&self);
}

/// A step to run.
#[derive(Debug)]
pub struct StepRequest<'a> {
    /// Its number in the graph.
    pub id: NodeId,
    /// What it does.
    pub node: &'a Node,
    /// What it starts from.
    pub base: &'a Snapshot,
    /// The snapshots that it reads, `base`'s node among them.
    pub inputs: &'a HashMap<NodeId, Snapshot>,
}

/// What a step made.
#[derive(Debug)]
pub struct StepOutput {
    /// The new layer, not yet published.
    pub draft: LayerDraft,
    /// Its files.
    pub tree: Tree,
}

/// Takes what a step's command writes.
pub trait Log: Sync {
    /// Some bytes, not necessarily whole lines.
    fn write(&self, stream: Stream, data: &[u8]);
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command of a RUN ended with an error.
    Command,
    /// The Dockerfile or the context asks for something that is not there.
    Input,
    /// The machine, the network, the store.
    Environment,
    /// It was asked to stop.
    Cancelled,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// Whose fault it is.
    pub kind: Kind,
    /// One phrase.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl StepError {
    /// An error without help.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), help: None }
    }

    /// The machine's fault.
    pub fn environment(error: impl std::fmt::Display) -> Self {
        Self::new(Kind::Environment, error.to_string())
    }
}
