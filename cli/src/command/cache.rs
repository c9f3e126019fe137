//! `kiln cache`: what is in the cache, by kind.

mod mounts;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::settings::Settings;

/// Look into the cache.
#[derive(Args, Debug)]
pub(super) struct Options {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand, Debug)]
enum Kind {
    /// RUN cache mounts: list them, copy in and out, remove
    Mounts(mounts::Options),
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    match &options.kind {
        Kind::Mounts(options) => mounts::run(options, settings),
    }
}
