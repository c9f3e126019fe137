//! `kiln inspect`.

use clap::Args;
use serde_json::{Value, json};

use crate::command::{open_store, print, stored};
use crate::failure::{Failure, chain};
use crate::settings::Settings;
use crate::wire::config::oci_platform;
use crate::wire::images::stored_image;

/// Show manifest and configuration of an image, as JSON.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Name of the image
    name: String,
    /// Which of several platforms (default: this machine's)
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let platform = super::platform(options.platform.as_deref())?;
    let (name, root) = stored(&store, &options.name)?;
    let image = stored_image(&store, &root, &oci_platform(&platform))
        .map_err(|e| Failure::input(format_args!("`{name}`: {}", chain(&e))))?;
    let config: Value = serde_json::from_slice(&image.config_bytes)
        .map_err(|e| Failure::environment(format_args!("`{name}`: {e}")))?;
    let document = json!({
        "name": name,
        "digest": image.descriptor.digest,
        "manifest": image.manifest,
        "config": config,
    });
    print(&format!("{document:#}\n"))
}
