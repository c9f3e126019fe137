//! `kiln push`.

use std::collections::HashMap;

use clap::Args;

use crate::command::{open_store, print, stored};
use crate::failure::Failure;
use crate::settings::Settings;
use crate::wire::registry::push_image;

/// Send an image of the store to the registry that its name says.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Name of the image, REGISTRY/NAME[:TAG]
    name: String,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let (name, root) = stored(&store, &options.name)?;
    let names = std::slice::from_ref(&name);
    push_image(settings, &store, &root, names, HashMap::new(), &|_| false)?;
    print(&format!("{name} {}\n", root.digest))
}
