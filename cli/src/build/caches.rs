//! The caches of other machines around a build: read from the options, told about, written at its end.

use std::collections::HashMap;

use kiln_cache::{Key, LayerId};
use kiln_parser::graph::NodeId;
use kiln_parser::lower::Lowered;

use super::engine::Engine;
use super::options::BuildOptions;
use crate::cache_option::{CacheFrom, CacheTo, Place};
use crate::command::print_error;
use crate::failure::Failure;
use crate::output::{Output, OutputKind};
use crate::progress::printable;
use crate::settings::Settings;
use crate::wire::cache::export::Finished;

/// `--cache-from` and `--cache-to`.
pub(super) struct Caches {
    pub(super) from: Vec<CacheFrom>,
    pub(super) to: Vec<CacheTo>,
}

impl Caches {
    /// Reads the options.
    ///
    /// # Errors
    /// A value of the wrong form; one that cannot be done with these outputs or offline.
    pub(super) fn parse(
        options: &BuildOptions,
        outputs: &[Output],
        settings: &Settings,
    ) -> Result<Self, Failure> {
        let (from, to) = (&options.execution.cache_from, &options.execution.cache_to);
        let from = from.iter().map(|text| CacheFrom::parse(text)).collect::<Result<_, _>>()?;
        let to: Vec<CacheTo> =
            to.iter().map(|text| CacheTo::parse(text)).collect::<Result<_, _>>()?;
        let registry = to.iter().any(|to| matches!(to.place, Place::Registry { .. }));
        if registry && settings.offline {
            let failure = Failure::usage("--cache-to type=registry contradicts --offline");
            return Err(failure.hint("leave one out, or use type=local"));
        }
        let files = [OutputKind::Local, OutputKind::Tar, OutputKind::CacheOnly];
        let no_image = outputs.iter().all(|output| files.contains(&output.kind));
        if no_image && to.iter().any(|to| matches!(to.place, Place::Inline)) {
            let failure = Failure::usage("--cache-to type=inline needs an image to be in");
            return Err(failure.hint("name it with -t, or use type=registry or type=local"));
        }
        Ok(Self { from, to })
    }
}

/// Writes the caches, and tells what went wrong with those that were read.
///
/// # Errors
/// One could not be written, and that was not to be ignored.
pub(super) fn finish(
    engine: &Engine<'_>,
    lowered: &Lowered,
    keys: &HashMap<NodeId, Key>,
    results: Option<Vec<Vec<LayerId>>>,
) -> Result<(), Failure> {
    let failed = results.is_none();
    let finished = Finished { graph: &lowered.graph, keys, results };
    let mut told = Vec::new();
    let mut result = engine.exports.finish(engine.imports, &finished, &mut told);
    if failed && let Err(failure) = &result {
        // The build has failed for another reason, which is the one to tell last.
        told.push(failure.message().to_owned());
        result = Ok(());
    }
    told.splice(..0, engine.imports.take_told());
    for line in told {
        // Names of files are the steps'.
        print_error(&format!("warning: {}\n", printable(line.as_bytes())));
    }
    result
}
