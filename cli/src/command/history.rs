//! `kiln history`.

use clap::Args;
use kiln_parser::platform::Platform;

use crate::command::{open_store, print, size, stored, table};
use crate::failure::{Failure, chain};
use crate::settings::Settings;
use crate::wire::config::oci_platform;
use crate::wire::images::stored_image;

/// Show how an image was made, the newest line first.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Name of the image
    name: String,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let (name, root) = stored(&store, &options.name)?;
    let broken = |why: String| Failure::input(format_args!("`{name}`: {why}"));
    let image = stored_image(&store, &root, &oci_platform(&Platform::host()))
        .map_err(|e| broken(chain(&e)))?;
    let history = image.config.history().map_err(|e| broken(chain(&e)))?;
    let mut layers = image.layers.iter();
    let mut rows = Vec::new();
    for entry in &history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        rows.push(vec![
            entry.created.as_deref().unwrap_or_default().chars().take(19).collect(),
            layer.map_or_else(|| "-".to_owned(), |layer| size(layer.descriptor.size)),
            entry
                .created_by
                .as_deref()
                .or(entry.comment.as_deref())
                .unwrap_or_default()
                .replace('\n', " "),
        ]);
    }
    rows.push(["CREATED", "SIZE", "CREATED BY"].map(str::to_owned).to_vec());
    rows.reverse();
    print(&table(&rows))
}
