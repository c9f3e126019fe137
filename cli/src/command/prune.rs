//! `kiln prune`.

use std::time::Duration;

use clap::Args;
use kiln_cache::PruneOptions;
use kiln_parser::duration;

use crate::build::values;
use crate::command::{open_store, print, size, table};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// Remove what no image and no recent build needs.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Also what later builds would take from the cache
    #[arg(short, long)]
    all: bool,
    /// Keep this much of what was used last, such as 10gb
    #[arg(long, value_name = "BYTES")]
    keep_storage: Option<String>,
    /// Only what was not used for this long, such as 24h
    #[arg(long, value_name = "DURATION")]
    until: Option<String>,
    /// Tell what would go, remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let until = match &options.until {
        None => None,
        Some(text) => {
            let nanoseconds = duration::parse(text).ok().and_then(|n| u64::try_from(n).ok());
            let bad =
                || Failure::usage(format_args!("invalid --until `{text}`")).hint("for example 24h");
            Some(Duration::from_nanos(nanoseconds.ok_or_else(bad)?))
        }
    };
    let keep = options.keep_storage.as_ref().map(|text| values::bytes("keep-storage", text));
    let store = open_store(settings)?;
    let prune = PruneOptions {
        all: options.all,
        keep_bytes: keep.transpose()?,
        until,
        dry_run: options.dry_run,
    };
    let report = store.prune(&prune).map_err(|e| Failure::environment(chain(&e)))?;
    let mut rows = Vec::new();
    for row in &report.removed {
        rows.push(vec![format!("{:?}", row.kind), row.id.clone(), size(row.size)]);
    }
    rows.push(vec!["Total".to_owned(), String::new(), size(report.bytes)]);
    print(&table(&rows))
}
