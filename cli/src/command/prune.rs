//! `kiln prune`: its options are those of `docker buildx prune`.

use clap::Args;
use kiln_cache::{Limits, PruneOptions, Store};

use crate::build::values;
use crate::command::du::{self, Rows};
use crate::command::{print, size};
use crate::failure::{Failure, chain};
use crate::gc;
use crate::settings::Settings;

/// Remove what no image and no recent build needs.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(super) struct Options {
    /// Also what later builds would take from the cache
    #[arg(short, long)]
    all: bool,

    /// Only things of which this holds: id=, parents=, description=, type= (also != and ~=), inuse, mutable, immutable,
    /// shared, private, until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,

    /// Keep this much of what is most valuable, such as 10gb or 10%
    #[arg(long, visible_alias = "keep-storage", value_name = "BYTES")]
    reserved_space: Option<String>,

    /// Remove until no more than this is left, such as 50gb or 20%
    #[arg(long, value_name = "BYTES")]
    max_used_space: Option<String>,

    /// Remove until this much of the disk is free
    #[arg(long, value_name = "BYTES")]
    min_free_space: Option<String>,

    /// Only what was not used for this long, such as 24h or 7d
    #[arg(long, value_name = "DURATION")]
    until: Option<String>,

    /// Tell what would go, remove nothing
    #[arg(long)]
    dry_run: bool,

    /// Do not ask; Kiln never does
    #[arg(short, long)]
    force: bool,

    /// Tell all about what goes
    #[arg(long)]
    verbose: bool,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let mut chosen = gc::filters(&options.filter)?;
    if let Some(text) = &options.until {
        if chosen.until.is_some() {
            return Err(Failure::usage("--until and --filter until= say the same: give one"));
        }
        chosen.until = Some(values::age("--until", text)?);
    }
    let store = Store::open_to_prune(&settings.root);
    let store = store.map_err(|e| Failure::environment(chain(&e)))?;
    let failed = |e| Failure::environment(chain(&e));
    let disk = store.space().map_err(failed)?.total;
    let limit = |flag: &str, text: &Option<String>| {
        text.as_ref().map(|text| gc::space(&format!("--{flag}"), text, disk)).transpose()
    };
    let prune = PruneOptions {
        all: options.all,
        limits: Limits {
            reserved: limit("reserved-space", &options.reserved_space)?,
            max_used: limit("max-used-space", &options.max_used_space)?,
            min_free: limit("min-free-space", &options.min_free_space)?,
        },
        dry_run: options.dry_run,
        ..chosen
    };
    // What is asked for is asked: the quiet part of `--force`.
    let _never_asks = options.force;
    let report = store.prune(&prune).map_err(failed)?;
    if options.verbose {
        print(&du::pretty(&report.removed))?;
    } else {
        print(&du::table_of(&report.removed, Rows::Gone))?;
    }
    print(&format!("Total:\t{}\n", size(report.bytes)))
}
