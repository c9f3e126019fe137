//! `kiln cp`: files out of a step of a build.

use std::path::{Path, PathBuf};

use clap::Args;
use kiln_cache::{Key, Layers, Store};
use kiln_executor::cancel::Cancel;
use kiln_solver::snapshot::Snapshot;

use crate::command::open_store;
use crate::failure::{Failure, chain};
use crate::history::failed::FailedStep;
use crate::history::{self, StepDocument};
use crate::settings::Settings;
use crate::wire::images::Images;
use crate::wire::{debug, take_out};

/// Copy files out of what a step of a build made, or left when it failed.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// BUILD:STEP:/PATH; without BUILD the newest, without STEP the one that failed (`::/reports`)
    #[arg(value_name = "BUILD:STEP:/PATH")]
    source: String,
    /// A file or a folder; into a folder that is there, the files go under their name
    #[arg(value_name = "DEST")]
    dest: PathBuf,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let (build, step, path) = source(&options.source)?;
    let store = open_store(settings)?;
    let build = history::find(&store, build)?;
    let step = build.step(step)?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let images = Images::new(&store, Default::default(), settings, false, &cancel)?;
    let snapshot = snapshot(&store, step)?;
    let _held = debug::hold(&store, &images, &snapshot)?;
    let files =
        Layers::open(&store, &snapshot.layers).map_err(|e| Failure::environment(chain(&e)))?;
    take_out::copy(&files, path, &destination(&options.dest, path))
}

fn source(text: &str) -> Result<(Option<&str>, Option<&str>, &Path), Failure> {
    let bad = || {
        Failure::usage(format_args!("invalid source `{text}`"))
            .hint("for example `::/reports`, or BUILD:STEP:/reports with names of `kiln builds`")
    };
    let (place, path) = text.split_once(":/").ok_or_else(bad)?;
    let (build, step) = place.split_once(':').ok_or_else(bad)?;
    let named = |name: &'_ str| -> bool { !name.is_empty() };
    let path = &text[text.len() - path.len() - 1..];
    Ok((Some(build).filter(|b| named(b)), Some(step).filter(|s| named(s)), Path::new(path)))
}

/// What the step made: of one that failed what was kept, else what answers under its key.
fn snapshot(store: &Store, step: &StepDocument) -> Result<Snapshot, Failure> {
    let missing = || {
        Failure::input(format_args!("the files of step #{} are not in the store", step.number))
            .hint("build again to get them")
    };
    if step.failed.is_some() {
        return FailedStep::read(store, step)?.result().ok_or_else(missing);
    }
    let key: Key = step.key.parse().map_err(|_| missing())?;
    let record = store.lookup(&key).map_err(|e| Failure::environment(chain(&e)))?;
    let record = record.ok_or_else(missing)?;
    Ok(Snapshot { layers: record.layers, content: record.result })
}

/// Into a folder that is there, under its own name, as with `cp`.
fn destination(dest: &Path, source: &Path) -> PathBuf {
    match source.file_name().filter(|_| dest.is_dir()) {
        Some(name) => dest.join(name),
        None => dest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::source;

    #[test]
    fn sources() {
        let read = |text: &'static str| source(text).ok();
        assert_eq!(read("::/a/b"), Some((None, None, Path::new("/a/b"))));
        assert_eq!(read("x:3:/a"), Some((Some("x"), Some("3"), Path::new("/a"))));
        assert_eq!(read("x::/"), Some((Some("x"), None, Path::new("/"))));
        for text in ["", "/a", "x:/a", "x:3:a"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
