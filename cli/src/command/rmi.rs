//! `kiln rmi`.

use clap::Args;

use crate::command::{familiar, open_store, print, stored};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// Remove names of images from the store; `kiln prune` then removes what nothing needs.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Names of images
    #[arg(required = true)]
    names: Vec<String>,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let all =
        options.names.iter().map(|name| stored(&store, name)).collect::<Result<Vec<_>, _>>()?;
    for (name, _) in all {
        store.untag(&name).map_err(|e| Failure::environment(chain(&e)))?;
        print(&format!("untagged {}\n", familiar(&name)))?;
    }
    Ok(())
}
