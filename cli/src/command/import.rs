//! `kiln import`: a base image from any root file system.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use kiln_image::config::ContainerConfig;
use kiln_image::import::{ImportOptions, import_rootfs};
use kiln_parser::config::DEFAULT_PATH;

use crate::command::{familiar, open_store, print};
use crate::failure::{Failure, chain};
use crate::settings::Settings;
use crate::wire::config::oci_platform;
use crate::wire::export::full_name;

/// Make an image from the archive of a root file system.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// tar archive, plain or compressed with gzip, xz, bzip2 or zstd
    archive: PathBuf,
    /// Name of the image
    name: String,
    /// What the files are for (default: this machine)
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let platform = super::platform(options.platform.as_deref())?;
    let name = full_name(&options.name)?;
    let path = options.archive.display().to_string();
    let file = File::open(&options.archive).map_err(|e| Failure::io("read", &path, &e))?;
    let store = open_store(settings)?;
    let import = ImportOptions {
        names: vec![name.clone()],
        platform: oci_platform(&platform),
        container: ContainerConfig {
            env: vec![format!("PATH={DEFAULT_PATH}")],
            cmd: Some(vec!["/bin/sh".to_owned()]),
            ..ContainerConfig::default()
        },
        message: format!(
            "Imported from {}",
            options.archive.file_name().unwrap_or_default().to_string_lossy()
        ),
        created: None,
    };
    let image = import_rootfs(&store, file, &import)
        .map_err(|e| Failure::input(format_args!("`{path}`: {}", chain(&e))))?;
    print(&format!("{} {}\n", familiar(&name), image.manifest.digest))
}
