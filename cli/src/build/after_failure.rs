//! What a build does about a RUN that failed, before it ends: `--output-on-failure`, `--on-failure=shell`.

use std::path::{Path, PathBuf};

use kiln_cache::Layers;

use super::engine::Engine;
use super::options::{BuildOptions, OnFailure};
use crate::command::print_error;
use crate::command::run::Through;
use crate::failure::{Failure, chain};
use crate::history::failed::FailedStep;
use crate::wire::run::RunContext;
use crate::wire::{debug, take_out};

/// A folder to take out of a failed step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TakeOut {
    path: PathBuf,
    dest: PathBuf,
}

/// Reads the options, before anything runs.
///
/// # Errors
/// One of the wrong form; a shell where standard input is the context.
pub(super) fn parse(options: &BuildOptions) -> Result<Vec<TakeOut>, Failure> {
    let reads_stdin = options.context == "-" || options.input.file.as_deref() == Some("-");
    if options.execution.on_failure == OnFailure::Shell && reads_stdin {
        return Err(Failure::usage("--on-failure=shell needs standard input for the shell")
            .hint("give context and Dockerfile as paths, or use `kiln debug` after the build"));
    }
    options.execution.output_on_failure.iter().map(|text| take_out(text)).collect()
}

fn take_out(text: &str) -> Result<TakeOut, Failure> {
    let parts = text
        .split_once('=')
        .filter(|(path, dest)| Path::new(path).is_absolute() && !dest.is_empty());
    let (path, dest) = parts.ok_or_else(|| {
        Failure::usage(format_args!("invalid --output-on-failure `{text}`"))
            .hint("for example --output-on-failure=/app/reports=./reports")
    })?;
    Ok(TakeOut { path: path.into(), dest: dest.into() })
}

/// Does what was asked for. The build fails for its own reason, so what cannot be done here is only told.
/// True where `failure` was told already, because a shell came after it.
pub(super) fn act(
    engine: &Engine<'_>,
    folders: &[TakeOut],
    failed: &FailedStep,
    failure: &Failure,
) -> bool {
    for folder in folders {
        if let Err(error) = copy(engine, folder, failed) {
            print_error(&format!("{error}\n"));
        }
    }
    if engine.options.execution.on_failure == OnFailure::Stop || engine.cancel.is_cancelled() {
        return false;
    }
    print_error(&format!("{failure}\na shell where the step failed; the build ends with it:\n"));
    let context = RunContext {
        store: engine.store,
        secrets: engine.secrets,
        agents: engine.agents,
        devices: engine.devices,
        sandbox: engine.sandbox,
        cancel: engine.cancel,
        imports: None,
    };
    if let Err(error) = debug::shell(&context, engine.images, failed, &[], &Through) {
        print_error(&format!("{error}\n"));
    }
    true
}

fn copy(engine: &Engine<'_>, folder: &TakeOut, failed: &FailedStep) -> Result<(), Failure> {
    let (snapshot, _held) = debug::result(engine.store, engine.images, failed)?;
    let files = Layers::open(engine.store, &snapshot.layers);
    let files = files.map_err(|e| Failure::environment(chain(&e)))?;
    take_out::copy(&files, &folder.path, &folder.dest)
}

#[cfg(test)]
mod tests {
    use super::take_out;

    #[test]
    fn folders() {
        assert!(take_out("/reports=out").is_ok());
        for text in ["", "/reports", "reports=out", "/reports="] {
            assert!(take_out(text).is_err(), "{text}");
        }
    }
}
