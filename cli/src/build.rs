//! `kiln build`: from the command line to the outputs.

mod after_failure;
pub(crate) mod agents;
mod allow;
mod caches;
mod engine;
mod fetched;
pub(crate) mod inputs;
mod key_agent;
mod lowering;
pub(crate) mod options;
mod recorded;
mod refused;
mod report;
pub(crate) mod secrets;
mod tasks;
pub(crate) mod values;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiln_cache::Store;
use kiln_executor::cancel::Cancel;
use kiln_parser::graph::{Mount, Op};
use kiln_parser::lower::{Allowed, LowerOptions, Lowered};

use crate::annotation::{self, Annotation};
use crate::failure::{Failure, chain};
use crate::isolation;
use crate::output::{Destination, Output, OutputKind};
use crate::settings::{Settings, caller_variable};
use crate::wire::cache::Imports;
use crate::wire::cache::export::Exports;
use crate::wire::copy::Sources;
use crate::wire::devices::Devices;
use crate::wire::export::full_name;
use crate::wire::images::Images;
use crate::wire::remote::Remotes;
use crate::wire::sandbox::Sandbox;
use agents::Agents;
use engine::Engine;
use inputs::Inputs;
use options::{BuildOptions, ProgressMode};
use secrets::Secrets;

/// Builds.
///
/// # Errors
/// Anything that keeps an output from being written; none is written in part.
pub(crate) fn build(options: &BuildOptions, settings: &Settings) -> Result<(), Failure> {
    options.refused.check()?;
    check_offline(options, settings)?;
    let outputs = outputs(options)?;
    let caches = caches::Caches::parse(options, &outputs, settings)?;
    let folders = after_failure::parse(options)?;
    let names = names(options)?;
    let annotations = annotations(options)?;
    let secrets = Arc::new(Secrets::parse(&options.input.secret, caller_variable)?);
    let contexts = inputs::named_contexts(options)?;
    let agents = Agents::parse(&options.input.ssh, caller_variable)?;
    let devices = Devices::read(&settings.config.cdi_spec_dirs)?;
    let allowed = allow::parse(&options.language.allow)?;
    let sandbox = Sandbox::parse(&options.sandbox, &allowed, settings)?;
    let store = Store::open(&settings.root).map_err(|e| Failure::environment(chain(&e)))?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let interrupted = interrupt_flag(&cancel)?;
    let images = Images::new(&store, contexts.clone(), settings, options.input.pull, &cancel)?;
    let images = Arc::new(images);
    let remotes = Arc::new(Remotes::new(
        &store,
        &images,
        &secrets,
        git_agent(options, &agents),
        &cancel,
        settings.offline,
    ));
    let imports = Imports::new(&store, &images, &caches.from, settings, &cancel)?;
    let exports = Exports::new(&store, caches.to, settings, &interrupted)?;
    let engine = Engine {
        options,
        store: &store,
        images: &images,
        remotes: &remotes,
        imports: &imports,
        exports: &exports,
        reads_targets: reads_targets(&outputs, &exports),
        secrets: &secrets,
        agents: &agents,
        devices: &devices,
        sandbox: &sandbox,
        cancel: &cancel,
        interrupted: &interrupted,
    };
    let inputs = Inputs::read(options, contexts, &engine)?;
    let lower_options = lowering::options(options, &inputs, devices.infos())?;
    let warn = shows_text(options);
    if let Some(call) = options.call()? {
        let lower_options = LowerOptions { allow: Allowed::for_reading(), ..lower_options };
        return lowering::call(call, &inputs, lower_options, &images);
    }
    tell_isolation(settings, warn);
    let lowered = lowering::lower(&inputs, &lower_options, &images, warn)
        .inspect_err(|_| _ = recorded::tell_damage(&store))?;
    forget_cache_mounts(&store, &lowered)?;
    let work = recorded::Work {
        inputs: &inputs,
        lowered: &lowered,
        sources: &Sources::new(&store, inputs.folders()?, &remotes),
        outputs: &outputs,
        names: &names,
        folders: &folders,
        annotations: &annotations,
        multi_platform: asks_for_index(&lower_options),
        settings,
    };
    let made = recorded::build(&engine, &work)?;
    report::write(options, &names, made.as_ref())?;
    images.room().tidy();
    Ok(())
}

/// Whether an output needs the files of the result. A registry may have its layers already (`wire/cache/pass.rs`).
fn reads_targets(outputs: &[Output], exports: &Exports) -> bool {
    let unread = [OutputKind::CacheOnly, OutputKind::Registry];
    exports.has_inline() || outputs.iter().any(|output| !unread.contains(&output.kind))
}

/// What the user should know of how steps are kept apart.
fn tell_isolation(settings: &Settings, warn: bool) {
    if let Some(remark) = settings.isolation.as_ref().filter(|_| warn).and_then(isolation::remark) {
        crate::command::print_error(&format!("{remark}\n"));
    }
}

/// What another machine is needed for is not asked for without one.
fn check_offline(options: &BuildOptions, settings: &Settings) -> Result<(), Failure> {
    let asks = [(options.input.pull, "--pull"), (options.result.push, "--push")];
    match asks.into_iter().find(|(asked, _)| *asked && settings.offline) {
        Some((_, option)) => {
            Err(Failure::usage(format_args!("{option} contradicts --offline"))
                .hint("leave one out"))
        }
        None => Ok(()),
    }
}

/// The agent that git may use: that of `--ssh default`; for a context that is fetched by ssh also the
/// caller's own, as with `docker buildx build`.
fn git_agent(options: &BuildOptions, agents: &Agents) -> Option<PathBuf> {
    let given = agents.get("default").map(|agent| {
        // Another process finds this process's files below its number.
        let own = format!("/proc/{}", std::process::id());
        agent
            .socket
            .strip_prefix("/proc/self")
            .map_or_else(|_| agent.socket.clone(), |rest| Path::new(&own).join(rest))
    });
    let by_ssh = options.context.starts_with("ssh://")
        || (options.context.contains('@') && !options.context.contains("://"));
    given.or_else(|| caller_variable("SSH_AUTH_SOCK").filter(|_| by_ssh).map(PathBuf::from))
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
    let wants_digest = options.result.iidfile.is_some()
        || options.result.metadata_file.is_some()
        || options.execution.quiet;
    let makes = |kinds: &[OutputKind]| outputs.iter().any(|output| kinds.contains(&output.kind));
    let stored = makes(&[OutputKind::Image]);
    let digested = stored || makes(&[OutputKind::Oci, OutputKind::Docker, OutputKind::Registry]);
    if (!options.result.tag.is_empty() && !stored) || (wants_digest && !digested) {
        // In front: the digest that is told is that of an output that was asked for by name.
        outputs.insert(0, Output::image());
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

fn annotations(options: &BuildOptions) -> Result<Vec<Annotation>, Failure> {
    let each = options.result.annotation.iter().map(|option| annotation::parse(option));
    Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
}

/// One platform gets an index, too, where `BUILDKIT_MULTI_PLATFORM` says so.
fn asks_for_index(options: &LowerOptions) -> bool {
    let given = options.build_args.get("BUILDKIT_MULTI_PLATFORM");
    options.platforms.len() > 1
        || given
            .is_some_and(|text| matches!(text.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn names(options: &BuildOptions) -> Result<Vec<String>, Failure> {
    options.result.tag.iter().map(|name| full_name(name)).collect()
}

fn interrupt_flag(cancel: &Cancel) -> Result<Arc<AtomicBool>, Failure> {
    let cancel = cancel.clone();
    crate::signal::on_interrupt(move || cancel.cancel())
        .map_err(|e| Failure::io("install", "the signal handler", &e))
}
