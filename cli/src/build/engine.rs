//! Solves graphs for one build, and shows what happens meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiln_cache::{Layers, Store};
use kiln_executor::cancel::Cancel;
use kiln_parser::graph::{Graph, NodeId};
use kiln_parser::lower::{NamedContext, context_node};
use kiln_parser::source::Span;
use kiln_solver::outcome::{Outcome, SolveError};
use kiln_solver::ports::{Kind, StepError};
use kiln_solver::{SolveOptions, solve};

use super::agents::Agents;
use super::options::BuildOptions;
use super::secrets::Secrets;
use super::tasks::{Logs, Tasks, Written};
use crate::explain::Teller;
use crate::failure::{Failure, chain};
use crate::history::{Current, Past, Recorder};
use crate::progress;
use crate::wire::cache::Imports;
use crate::wire::cache::export::Exports;
use crate::wire::copy::Sources;
use crate::wire::devices::Devices;
use crate::wire::images::Images;
use crate::wire::kept::Kept;
use crate::wire::ports::Wire;
use crate::wire::remote::Remotes;
use crate::wire::sandbox::Sandbox;

/// What solving needs, whatever the graph.
pub(super) struct Engine<'a> {
    pub(super) options: &'a BuildOptions,
    pub(super) store: &'a Store,
    pub(super) images: &'a Arc<Images>,
    pub(super) remotes: &'a Arc<Remotes>,
    pub(super) imports: &'a Imports,
    pub(super) exports: &'a Exports,
    /// An output reads the files of the result.
    pub(super) reads_targets: bool,
    pub(super) secrets: &'a Secrets,
    pub(super) agents: &'a Agents,
    pub(super) devices: &'a Devices,
    pub(super) sandbox: &'a Sandbox,
    pub(super) cancel: &'a Cancel,
    pub(super) interrupted: &'a AtomicBool,
}

/// What a build's history is written with.
pub(super) struct History<'a> {
    pub(super) current: &'a Current,
    pub(super) past: &'a Past<'a>,
    /// Names that ARG declares.
    pub(super) arguments: &'a BTreeSet<String>,
}

impl<'a> History<'a> {
    fn written(&self, engine: &Engine<'a>, graph: &'a Graph) -> Written<'a> {
        Written {
            recorder: Recorder::new(engine.store, graph, self.current),
            teller: Teller { graph, past: self.past, arguments: self.arguments },
            explain: engine.options.execution.explain,
        }
    }
}

impl Engine<'_> {
    /// Solves a graph; gives the last output of its steps beside the outcome.
    pub(super) fn solve(
        &self,
        graph: &Graph,
        targets: &[NodeId],
        sources: &Sources,
        history: Option<&History<'_>>,
    ) -> Result<(Result<Outcome, SolveError>, Logs), Failure> {
        let wire = Wire {
            store: self.store,
            graph,
            sources,
            images: self.images,
            remotes: self.remotes,
            imports: self.imports,
            secrets: self.secrets,
            agents: self.agents,
            devices: self.devices,
            sandbox: self.sandbox,
            cancel: self.cancel,
            past: history.map(|history| history.past),
            kept: Kept::default(),
        };
        let execution = &self.options.execution;
        let view = progress::view(execution.progress, execution.quiet);
        let (events, happenings) = crossbeam_channel::unbounded();
        let (warns, warnings) = crossbeam_channel::unbounded();
        self.imports.warn_to(Some(warns));
        let jobs = execution.jobs.map_or_else(default_jobs, std::num::NonZeroUsize::get);
        let solve_options = SolveOptions {
            jobs,
            // A context that is fetched is read at once.
            reads_targets: self.reads_targets || history.is_none(),
            events,
            interrupted: self.interrupted,
        };
        let (solved, logs) = std::thread::scope(|scope| {
            let written = history.map(|history| history.written(self, graph));
            let ended = (history.is_some() && self.exports.sends_early()).then(|| {
                let (sender, receiver) = crossbeam_channel::unbounded();
                scope.spawn(move || {
                    receiver.iter().for_each(|key| self.exports.send_early(self.imports, &key));
                });
                sender
            });
            let tasks = Tasks::new(graph, view, written, ended);
            let warnings = warnings.clone();
            let shown = scope.spawn(move || tasks.follow(&happenings, &warnings));
            let solved = solve(graph, targets, self.store, &wire, &solve_options);
            drop(solve_options);
            (solved, shown.join())
        });
        self.imports.warn_to(None);
        for unseen in warnings.try_iter() {
            crate::command::print_error(&format!("warning: {unseen}\n"));
        }
        let mut logs = logs.map_err(|_| Failure::environment("the progress view failed"))?;
        logs.add_failed(wire.kept.take());
        Ok((solved, logs))
    }

    /// Fetches a context that is no folder of the caller: its files, and what keeps them in the store.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub(super) fn fetch(&self, context: &NamedContext) -> Result<(Layers, Outcome), Failure> {
        let mut graph = Graph::default();
        let node = context_node(context, Span::default(), &mut graph)
            .ok_or_else(|| Failure::environment("this context is not fetched"))?;
        let sources = Sources::new(self.store, std::collections::BTreeMap::new(), self.remotes);
        let (solved, _logs) = self.solve(&graph, &[node], &sources, None)?;
        let outcome = solved.map_err(|error| match error {
            SolveError::Step { error, .. } => context_failure(error),
            SolveError::Interrupted => Failure::interrupted(),
            SolveError::Store(error) => Failure::environment(chain(&error)),
        })?;
        let layers = outcome.snapshots.get(&node).map(|found| found.layers.clone());
        let files = Layers::open(self.store, &layers.unwrap_or_default());
        Ok((files.map_err(|e| Failure::environment(chain(&e)))?, outcome))
    }
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(4, std::num::NonZeroUsize::get).max(4)
}

fn context_failure(error: StepError) -> Failure {
    let message = format!("cannot load the context: {}", error.message);
    let failure = match error.kind {
        Kind::Cancelled => return Failure::interrupted(),
        Kind::Environment => Failure::environment(message),
        Kind::Command | Kind::Input => Failure::input(message),
    };
    match error.help {
        Some(help) => failure.hint(help),
        None => failure,
    }
}
