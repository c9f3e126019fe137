//! `kiln tag`.

use clap::Args;

use crate::command::{open_store, stored};
use crate::failure::{Failure, chain};
use crate::settings::Settings;
use crate::wire::export::full_name;

/// Give an image another name.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Name that the image has
    name: String,
    /// Name that it gets as well
    new_name: String,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let (_, root) = stored(&store, &options.name)?;
    store.tag(&full_name(&options.new_name)?, &root).map_err(|e| Failure::environment(chain(&e)))
}
