//! The solver's ports: COPY and WORKDIR on trees, RUN in the sandbox, images on demand.

use std::collections::HashMap;

use kiln_cache::{ContentDigest, Key, LayerId, Record, Store, StoreError};
use kiln_executor::cancel::Cancel;
use kiln_executor::net;
use kiln_parser::git::GitRef;
use kiln_parser::graph::{CopyOp, Graph, Network, NodeId, Op};
use kiln_solver::ports::{Kind, Log, Ports, StepError, StepOutput, StepRequest};
use kiln_solver::snapshot::Snapshot;

use super::cache::Imports;
use super::copy::{self, Sources};
use super::devices::Devices;
use super::images::Images;
use super::kept::Kept;
use super::remote::Remotes;
use super::run::{self, RunContext};
use super::sandbox::Sandbox;
use crate::build::agents::Agents;
use crate::build::secrets::Secrets;
use crate::history::Past;

/// All implementations, for one build.
pub(crate) struct Wire<'a> {
    pub(crate) store: &'a Store,
    pub(crate) graph: &'a Graph,
    pub(crate) sources: &'a Sources,
    pub(crate) images: &'a Images,
    pub(crate) remotes: &'a Remotes,
    pub(crate) imports: &'a Imports,
    pub(crate) secrets: &'a Secrets,
    pub(crate) agents: &'a Agents,
    pub(crate) devices: &'a Devices,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) cancel: &'a Cancel,
    /// Earlier builds; none for what is fetched before a build.
    pub(crate) past: Option<&'a Past<'a>>,
    /// What failing steps leave.
    pub(crate) kept: Kept,
}

impl Wire<'_> {
    /// Quotas are kept before a step writes; what it writes is what it wrote the last time, as far as anybody knows.
    fn make_room(&self, step: &StepRequest<'_>) -> Result<(), StoreError> {
        let text = step.node.steps.first().map(|step| step.text.as_str());
        let bytes = text.map_or(Ok(0), |text| self.store.expected_size(text))?;
        self.images.room().want(bytes)
    }

    /// Whether a step needs a network of its own, and if so, whether one has to reach this machine.
    fn needs_network(&self) -> Option<bool> {
        if self.sandbox.is_offline() || self.sandbox.in_chroot() {
            return None;
        }
        self.graph.ids().find_map(|id| match &self.graph.node(id).op {
            Op::Run(op) if op.network == Network::Default => Some(run::reaches_host(op)),
            _ => None,
        })
    }
}

impl Ports for Wire<'_> {
    fn digest_sources(
        &self,
        copy: &CopyOp,
        inputs: &HashMap<NodeId, Snapshot>,
    ) -> Result<ContentDigest, StepError> {
        copy::digest(self.store, self.graph, self.sources, copy, inputs)
    }

    fn digest_git(&self, git: &GitRef) -> Result<ContentDigest, StepError> {
        self.remotes.digest_git(git)
    }

    fn earlier(&self, id: NodeId) -> Vec<Key> {
        let step = self.graph.node(id).steps.first();
        step.zip(self.past).map(|(step, past)| past.keys(step)).unwrap_or_default()
    }

    fn materialise(&self, layers: &[LayerId]) -> Result<(), StepError> {
        if let Some(reaches_host) = self.needs_network() {
            net::prepare(self.store.path(), reaches_host);
        }
        self.images.materialise(layers)
    }

    fn elsewhere(&self, keys: &[Key]) -> HashMap<Key, Record> {
        self.imports.answers(keys)
    }

    fn bring(&self, layers: &[LayerId]) -> Result<bool, StepError> {
        self.imports.bring(layers)
    }

    fn run(&self, step: &StepRequest<'_>, log: &dyn Log) -> Result<StepOutput, StepError> {
        self.make_room(step).map_err(StepError::environment)?;
        let draft = self.store.draft().map_err(StepError::environment)?;
        let tree = match &step.node.op {
            Op::Run(op) => {
                let context = RunContext {
                    store: self.store,
                    secrets: self.secrets,
                    agents: self.agents,
                    devices: self.devices,
                    sandbox: self.sandbox,
                    cancel: self.cancel,
                    imports: Some(self.imports),
                };
                if let Err(error) = run::run(&context, step, op, &draft, log) {
                    if error.kind == Kind::Command {
                        self.kept.keep(self.store, step, op, draft);
                    }
                    return Err(error);
                }
                draft.scan().map_err(StepError::environment)?
            }
            Op::Copy(op) => {
                let writer = draft.writer();
                copy::copy(self.store, self.graph, self.sources, op, step, &writer)?;
                writer.finish().map_err(StepError::environment)?
            }
            Op::Mkdir(op) => {
                let writer = draft.writer();
                copy::mkdir(self.store, op, step, &writer)?;
                writer.finish().map_err(StepError::environment)?
            }
            Op::Git(git) => self.remotes.checkout(git, &draft)?,
            Op::Image(_) | Op::Context { .. } | Op::Http(_) => {
                return Err(StepError::new(Kind::Environment, "a source is not a step"));
            }
        };
        Ok(StepOutput { draft, tree })
    }

    fn stop(&self) {
        self.cancel.cancel();
    }
}
