//! `kiln build`: from the command line to the outputs.

pub(crate) mod agents;
mod allow;
mod inputs;
mod key_agent;
mod lowering;
pub(crate) mod options;
mod refused;
mod report;
pub(crate) mod secrets;
mod tasks;
pub(crate) mod values;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_cache::Store;
use kiln_executor::cancel::Cancel;
use kiln_parser::graph::{Mount, Op};
use kiln_parser::lower::Lowered;
use kiln_solver::outcome::{Outcome, SolveError};
use kiln_solver::{SolveOptions, solve};

use crate::failure::{Failure, chain};
use crate::output::{Destination, Output, OutputKind};
use crate::progress;
use crate::settings::{Settings, caller_variable};
use crate::wire::copy::Sources;
use crate::wire::export::{Built, Made, full_name};
use crate::wire::images::Images;
use crate::wire::ports::Wire;
use agents::Agents;
use inputs::Inputs;
use options::{BuildOptions, ProgressMode};
use secrets::Secrets;
use tasks::Tasks;

/// Builds.
///
/// # Errors
/// Anything that keeps an output from being written; none is written in part.
pub(crate) fn build(options: &BuildOptions, settings: &Settings) -> Result<(), Failure> {
    options.refused.check()?;
    let outputs = outputs(options)?;
    let names = names(options)?;
    let secrets = Secrets::parse(&options.input.secret, caller_variable)?;
    let inputs = Inputs::read(options)?;
    let agents = Agents::parse(&options.input.ssh, caller_variable)?;
    let store = Store::open(&settings.root).map_err(|e| Failure::environment(chain(&e)))?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let images =
        Images::new(&store, inputs.contexts.clone(), settings, options.input.pull, &cancel)?;
    let images = Arc::new(images);
    let lower_options = lowering::options(options, &inputs)?;
    let warn = shows_text(options);
    let lowered = lowering::lower(&inputs, &lower_options, &images, warn)?;
    forget_cache_mounts(&store, &lowered)?;
    let sources = Sources::new(&store, inputs.folders()?, &images);
    let session = Session {
        store: &store,
        images: &images,
        sources: &sources,
        secrets: &secrets,
        agents: &agents,
        cancel: &cancel,
    };
    let outcome = session.solve(options, &inputs, &lowered)?;
    let built = Built {
        store: &store,
        images: &images,
        targets: &lowered.targets,
        outcome: &outcome,
        multi_platform: lower_options.platforms.len() > 1,
        now: now(),
        settings,
    };
    let made = write_outputs(&built, &outputs, &names)?;
    report::write(options, &names, made.as_ref())
}

/// Whether people read what is told while the build runs.
fn shows_text(options: &BuildOptions) -> bool {
    let mode = options.execution.progress;
    !options.execution.quiet
        && matches!(mode, ProgressMode::Auto | ProgressMode::Plain | ProgressMode::Tty)
}

/// `--no-cache` also empties the cache mounts of the steps that it runs anew, as BuildKit does.
fn forget_cache_mounts(store: &Store, lowered: &Lowered) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for node in lowered.graph.ids().map(|id| lowered.graph.node(id)).filter(|node| node.no_cache) {
        let Op::Run(run) = &node.op else { continue };
        ids.extend(run.mounts.iter().filter_map(|mount| match mount {
            Mount::Cache { id, .. } => Some(id.clone()),
            _ => None,
        }));
    }
    if ids.is_empty() {
        return Ok(());
    }
    store.clear_cache_mounts(&ids).map_err(|e| Failure::environment(chain(&e)))
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What was asked for: `--output` and `--push`, else the names in the store, else only the cache.
fn outputs(options: &BuildOptions) -> Result<Vec<Output>, Failure> {
    let mut outputs = options
        .result
        .output
        .iter()
        .map(|text| Output::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    if options.result.push {
        outputs.push(Output::registry());
    }
    let wants_image = !options.result.tag.is_empty()
        || options.result.iidfile.is_some()
        || options.result.metadata_file.is_some()
        || options.execution.quiet;
    let has_image = outputs.iter().any(|output| matches!(output.kind, OutputKind::Image));
    if wants_image && !has_image {
        outputs.push(Output::image());
    }
    for output in &outputs {
        check_terminal(output)?;
    }
    Ok(outputs)
}

fn check_terminal(output: &Output) -> Result<(), Failure> {
    if output.dest == Some(Destination::Stdout) && std::io::stdout().is_terminal() {
        return Err(Failure::usage("an archive is not written to a terminal")
            .hint("add dest=FILE to --output, or send standard output to a file"));
    }
    Ok(())
}

fn names(options: &BuildOptions) -> Result<Vec<String>, Failure> {
    options.result.tag.iter().map(|name| full_name(name)).collect()
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

/// What solving needs.
struct Session<'a> {
    store: &'a Store,
    images: &'a Images,
    sources: &'a Sources,
    secrets: &'a Secrets,
    agents: &'a Agents,
    cancel: &'a Cancel,
}

impl Session<'_> {
    fn solve(
        &self,
        options: &BuildOptions,
        inputs: &Inputs,
        lowered: &Lowered,
    ) -> Result<Outcome, Failure> {
        let interrupted = interrupt_flag(self.cancel)?;
        let wire = Wire {
            store: self.store,
            graph: &lowered.graph,
            sources: self.sources,
            images: self.images,
            secrets: self.secrets,
            agents: self.agents,
            cancel: self.cancel,
        };
        let view = progress::view(options.execution.progress, options.execution.quiet);
        let (events, happenings) = crossbeam_channel::unbounded();
        let jobs = options.execution.jobs.map_or_else(default_jobs, std::num::NonZeroUsize::get);
        let targets = lowering::target_nodes(lowered);
        let solve_options = SolveOptions { jobs, events, interrupted: interrupted.as_ref() };
        let graph = &lowered.graph;
        let (solved, tasks) = std::thread::scope(|scope| {
            let shown = scope.spawn(move || Tasks::new(graph, view).follow(&happenings));
            let solved = solve(graph, &targets, self.store, &wire, &solve_options);
            drop(solve_options);
            (solved, shown.join())
        });
        let logs = tasks.map_err(|_| Failure::environment("the progress view failed"))?;
        solved.map_err(|error| solve_failure(&error, inputs, lowered, &logs))
    }
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(4, std::num::NonZeroUsize::get).max(4)
}

fn interrupt_flag(cancel: &Cancel) -> Result<Arc<AtomicBool>, Failure> {
    let cancel = cancel.clone();
    crate::signal::on_interrupt(move || cancel.cancel())
        .map_err(|e| Failure::io("install", "the signal handler", &e))
}

fn solve_failure(
    error: &SolveError,
    inputs: &Inputs,
    lowered: &Lowered,
    logs: &tasks::Logs,
) -> Failure {
    match error {
        SolveError::Step { id, error } => {
            report::step_failure(inputs, lowered.graph.node(*id), error, logs.tail(*id))
        }
        SolveError::Interrupted => Failure::interrupted(),
        SolveError::Store(error) => Failure::environment(chain(error)),
    }
}
