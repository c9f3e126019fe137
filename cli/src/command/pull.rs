//! `kiln pull`.

use std::collections::BTreeMap;

use clap::Args;
use kiln_executor::cancel::Cancel;

use crate::command::{open_store, print};
use crate::failure::Failure;
use crate::settings::Settings;
use crate::wire::config::oci_platform;
use crate::wire::export::full_name;
use crate::wire::images::Images;

/// Fetch an image from its registry into the store.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Name of the image
    name: String,
    /// Which of several platforms (default: this machine's)
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let platform = super::platform(options.platform.as_deref())?;
    let name = full_name(&options.name)?;
    let store = open_store(settings)?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let images = Images::new(&store, BTreeMap::new(), settings, true, &cancel)?;
    let digest = images.pull(&name, &oci_platform(&platform))?;
    print(&format!("{name} {digest}\n"))
}
