//! `kiln fsck`.

use clap::Args;
use kiln_cache::FsckReport;
use serde_json::json;

use super::builds::Format;
use crate::command::{open_store, print};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// Look whether everything in the store is as it should be.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Set damaged things aside and forget what leads to nothing; the next build makes them anew
    #[arg(long)]
    repair: bool,
    /// text or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let report = store.fsck(options.repair).map_err(|e| Failure::environment(chain(&e)))?;
    print(&match options.format {
        Format::Json => format!("{:#}\n", document(&report)),
        Format::Text => text(&report),
    })?;
    let left = report.problems.iter().filter(|problem| !problem.repaired).count();
    if left == 0 {
        return Ok(());
    }
    let noun = if left == 1 { "problem" } else { "problems" };
    let failure = Failure::environment(format_args!(
        "{left} {noun} in the store `{}`",
        settings.root.display()
    ));
    Err(match options.repair {
        true => failure,
        false => failure.hint("`kiln fsck --repair` sets damaged things aside"),
    })
}

fn text(report: &FsckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let done = if problem.repaired { " (repaired)" } else { "" };
        text.push_str(&format!("{}: {}{done}\n", problem.what, problem.reason));
    }
    let FsckReport { blobs, layers, records, problems } = report;
    let found = problems.len();
    text.push_str(&format!(
        "{blobs} blobs, {layers} layers, {records} records; problems: {found}\n"
    ));
    text
}

fn document(report: &FsckReport) -> serde_json::Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|problem| {
            let (what, reason) = (&problem.what, &problem.reason);
            json!({"what": what, "reason": reason, "repaired": problem.repaired})
        })
        .collect();
    json!({
        "blobs": report.blobs, "layers": report.layers, "records": report.records,
        "problems": problems,
    })
}
