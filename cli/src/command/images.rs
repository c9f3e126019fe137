//! `kiln images`.

use clap::Args;
use serde_json::json;

use crate::command::{familiar, open_store, print, size, table};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// List the images of the store.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// One JSON document a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let images = store.images().map_err(|e| Failure::environment(chain(&e)))?;
    let mut rows = vec![["NAME", "DIGEST", "SIZE"].map(str::to_owned).to_vec()];
    let mut lines = String::new();
    for image in images {
        let blobs = kiln_image::export::reachable(&store, &image.descriptor);
        let total: u64 = blobs.map_or(0, |blobs| blobs.iter().map(|blob| blob.size).sum());
        let digest = image.descriptor.digest.to_string();
        if options.json {
            lines.push_str(&format!(
                "{}\n",
                json!({"name": image.name, "digest": digest, "size": total})
            ));
        } else {
            let short: String = digest.chars().take(19).collect();
            rows.push(vec![familiar(&image.name), short, size(total)]);
        }
    }
    print(&if options.json { lines } else { table(&rows) })
}
