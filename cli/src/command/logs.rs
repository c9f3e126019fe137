//! `kiln logs`: what the steps of a build wrote, whole.

use std::io::{self, BufRead, BufReader, Write};

use clap::Args;
use kiln_cache::Store;

use crate::command::open_store;
use crate::failure::{Failure, chain};
use crate::history::{self, Build, StepDocument};
use crate::settings::Settings;

/// Show what the steps of a build wrote.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The build, by the beginning of its name (default: the newest)
    build: Option<String>,
    /// The step: its number, or the beginning of its instruction (default: all)
    step: Option<String>,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let build = history::find(&store, options.build.as_deref())?;
    if let Some(step) = &options.step {
        return copy(&store, &build, build.step(Some(step))?, "");
    }
    for step in &build.document.steps {
        copy(&store, &build, step, &format!("#{} ", step.number))?;
    }
    Ok(())
}

/// Copies a log to standard output: as it is, or with something in front of every line.
fn copy(store: &Store, build: &Build, step: &StepDocument, prefix: &str) -> Result<(), Failure> {
    let log = store
        .log(&build.row.id, &step.number.to_string())
        .map_err(|e| Failure::environment(chain(&e)))?;
    let Some(log) = log else { return Ok(()) };
    let mut out = io::stdout().lock();
    let written = if prefix.is_empty() {
        io::copy(&mut BufReader::new(log), &mut out).map(|_| ())
    } else {
        let head = format!("{prefix}{}\n", step.name.lines().next().unwrap_or_default());
        out.write_all(head.as_bytes()).and_then(|()| with_prefix(log, prefix, &mut out))
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("write", "standard output", &error))
        }
        _ => Ok(()),
    }
}

fn with_prefix(log: std::fs::File, prefix: &str, out: &mut impl Write) -> io::Result<()> {
    let mut reader = BufReader::new(log);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(prefix.as_bytes())?;
        out.write_all(&line)?;
        if !line.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
        line.clear();
    }
    Ok(())
}
