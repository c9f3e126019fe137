//! The part of a build that has a place in the history: from the graph to the outputs. It is recorded
//! however it ends.

use std::collections::BTreeSet;

use kiln_cache::{Damage, Store};
use kiln_parser::graph::{NodeId, Op};
use kiln_parser::lower::Lowered;
use kiln_solver::outcome::{Outcome, SolveError};

use super::after_failure::{self, TakeOut};
use super::engine::{Engine, History};
use super::inputs::Inputs;
use super::options::BuildOptions;
use super::tasks::Logs;
use super::{caches, lowering, report};
use crate::annotation::Annotation;
use crate::command::now;
use crate::explain::image_name;
use crate::failure::{Failure, chain};
use crate::history::failed::FailedStep;
use crate::history::{Current, Document, Past};
use crate::output::Output;
use crate::settings::Settings;
use crate::wire::copy::Sources;
use crate::wire::export::{Built, Made, full_name};

/// What is built, and what for.
pub(super) struct Work<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) lowered: &'a Lowered,
    pub(super) sources: &'a Sources,
    pub(super) outputs: &'a [Output],
    pub(super) names: &'a [String],
    /// What is taken out of a step that fails.
    pub(super) folders: &'a [TakeOut],
    pub(super) annotations: &'a [Annotation],
    pub(super) multi_platform: bool,
    pub(super) settings: &'a Settings,
}

/// How often a build begins anew because something in the store was damaged. Each time that is set aside.
const HEALINGS: usize = 20;

/// Solves the graph and writes the outputs. What is found damaged on the way is told, and made or fetched anew.
///
/// # Errors
/// A step failed, or an output could not be written.
pub(super) fn build(engine: &Engine<'_>, work: &Work<'_>) -> Result<Option<Made>, Failure> {
    let mut healings = 0;
    loop {
        let result = attempt(engine, work);
        let damaged = tell_damage(engine.store);
        healings += 1;
        match result {
            Err(failure) if !failure.is_interruption() && damaged => {
                if healings == HEALINGS {
                    return Err(failure.hint("`kiln fsck` looks at all of the store"));
                }
            }
            result => return result,
        }
    }
}

/// Tells what was found damaged since it was last asked; says whether anything was.
pub(super) fn tell_damage(store: &Store) -> bool {
    let damage = store.take_damage();
    for Damage { what, reason, kept } in &damage {
        let place = kept.display();
        let note = format!("note: {what} of the store was damaged: {reason}; it is in `{place}`\n");
        crate::command::print_error(&note);
    }
    !damage.is_empty()
}

fn attempt(engine: &Engine<'_>, work: &Work<'_>) -> Result<Option<Made>, Failure> {
    let current = Current::begin(head(engine.options, work));
    let mut document = current.head.clone();
    let result = run(engine, work, &current, &mut document);
    match &result {
        Ok(made) => {
            document.outcome = "success".to_owned();
            document.digest = made.as_ref().map(|made| made.root.digest.to_string());
        }
        Err(failure) => {
            let interrupted = failure.is_interruption();
            document.outcome = if interrupted { "interrupted" } else { "failed" }.to_owned();
            document.error.get_or_insert_with(|| failure.message().to_owned());
        }
    }
    current.save_ended(engine.store, &document);
    result
}

fn run(
    engine: &Engine<'_>,
    work: &Work<'_>,
    current: &Current,
    document: &mut Document,
) -> Result<Option<Made>, Failure> {
    let lowered = work.lowered;
    let past = Past::new(engine.store, current.project);
    let declared = &lowered.outline.arguments;
    let arguments: BTreeSet<String> = declared.iter().map(|arg| arg.name.clone()).collect();
    let history = History { current, past: &past, arguments: &arguments };
    let targets = lowering::target_nodes(lowered);
    loop {
        let lost = engine.imports.lost();
        let (made, outcome) = solve_and_write(engine, work, &history, &targets, document)?;
        // A build that was cached as a whole holds nothing in the store: that would cost more than it. What another
        // process pruned meanwhile is made again, and held then; so is what a cache had promised, and has not.
        if made.is_err() && engine.imports.lost() > lost && !engine.cancel.is_cancelled() {
            continue;
        }
        if made.is_ok() || outcome.lease.is_some() || !is_pruned(engine, &targets, &outcome)? {
            return made;
        }
    }
}

/// Whether layers of the targets are gone from the store.
fn is_pruned(engine: &Engine<'_>, targets: &[NodeId], outcome: &Outcome) -> Result<bool, Failure> {
    let snapshots = targets.iter().filter_map(|target| outcome.snapshots.get(target));
    for id in snapshots.flat_map(|snapshot| &snapshot.layers).filter(|id| !id.is_image()) {
        let there = engine.store.has_layer(id).map_err(|e| Failure::environment(chain(&e)))?;
        if !there && !engine.imports.knows(id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Solves the graph, which is an error where it fails, and writes the outputs, which may be tried again.
fn solve_and_write(
    engine: &Engine<'_>,
    work: &Work<'_>,
    history: &History<'_>,
    targets: &[NodeId],
    document: &mut Document,
) -> Result<(Result<Option<Made>, Failure>, Outcome), Failure> {
    let lowered = work.lowered;
    let (solved, mut logs) = engine.solve(&lowered.graph, targets, work.sources, Some(history))?;
    document.steps = std::mem::take(&mut logs.steps);
    let keys = std::mem::take(&mut logs.keys);
    let outcome = match solved {
        Ok(outcome) => outcome,
        Err(error) => {
            caches::finish(engine, lowered, &keys, None)?;
            let failure = solve_failure(&error, work, &logs);
            let failed = document.steps.iter().find(|step| step.failed.is_some());
            let failed = failed.and_then(|step| FailedStep::read(engine.store, step).ok());
            let Some(failed) = failed else { return Err(failure) };
            let failure = failure.hint("`kiln debug` opens a shell in the state that it left");
            document.error = Some(failure.message().to_owned());
            let told = after_failure::act(engine, work.folders, &failed, &failure);
            return Err(if told { Failure::told() } else { failure });
        }
    };
    let built = Built {
        store: engine.store,
        images: engine.images,
        targets: &lowered.targets,
        outcome: &outcome,
        multi_platform: work.multi_platform,
        annotations: work.annotations,
        now: now(),
        settings: work.settings,
        caches: (engine.imports, engine.exports),
        graph: &lowered.graph,
        keys: &keys,
    };
    let made = write_outputs(&built, work.outputs, work.names);
    if made.is_ok() {
        note_use(engine.store, lowered, &outcome);
    }
    let results = lowered.targets.iter().map(|target| built.snapshot(target).layers).collect();
    let cached = caches::finish(engine, lowered, &keys, Some(results));
    if made.is_ok() {
        cached?;
    }
    Ok((made, outcome))
}

/// For pruning: what was used last goes last. At most once an hour for each thing; when it cannot be noted, the build is
/// none the worse.
fn note_use(store: &Store, lowered: &Lowered, outcome: &Outcome) {
    if outcome.used.is_empty() {
        return;
    }
    let nodes = lowered.graph.ids().map(|id| &lowered.graph.node(id).op);
    let images = nodes.filter_map(|op| match op {
        Op::Image(image) => image.digest.parse().ok(),
        _ => None,
    });
    let _unnoted = store.touch(&outcome.used, &images.collect::<Vec<_>>());
}

/// What is known before anything runs.
fn head(options: &BuildOptions, work: &Work<'_>) -> Document {
    let graph = &work.lowered.graph;
    let images = graph.ids().filter_map(|id| match &graph.node(id).op {
        Op::Image(image) => Some((image_name(&image.key.name).to_owned(), image.digest.clone())),
        _ => None,
    });
    Document {
        context: options.context.clone(),
        file: options.input.file.clone().unwrap_or_default(),
        target: options.language.target.clone().filter(|target| !target.is_empty()),
        names: work.names.to_vec(),
        images: images.collect(),
        ..Document::default()
    }
}

fn write_outputs(
    built: &Built<'_>,
    outputs: &[Output],
    names: &[String],
) -> Result<Option<Made>, Failure> {
    let mut made = None;
    for output in outputs {
        let mut all = names.to_vec();
        for name in &output.names {
            all.push(full_name(name)?);
        }
        made = built.write(output, &all)?.or(made);
    }
    Ok(made)
}

fn solve_failure(error: &SolveError, work: &Work<'_>, logs: &Logs) -> Failure {
    match error {
        SolveError::Step { id, error } => {
            let node = work.lowered.graph.node(*id);
            report::step_failure(work.inputs, node, error, logs.tail(*id))
        }
        SolveError::Interrupted => Failure::interrupted(),
        SolveError::Store(error) => Failure::environment(chain(error)),
    }
}
