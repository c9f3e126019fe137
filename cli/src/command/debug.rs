//! `kiln debug`: a shell in the state that a failed step left.

use clap::Args;
use kiln_executor::cancel::Cancel;
use kiln_executor::spec::Resources;

use super::run::{Through, ended};
use crate::build::agents::Agents;
use crate::build::options::SandboxOptions;
use crate::build::secrets::Secrets;
use crate::command::open_store;
use crate::failure::Failure;
use crate::history;
use crate::history::failed::FailedStep;
use crate::settings::{Settings, caller_variable};
use crate::wire::debug;
use crate::wire::devices::Devices;
use crate::wire::images::Images;
use crate::wire::run::RunContext;
use crate::wire::sandbox::Sandbox;

/// Open a shell in the state that a failed step left: its files, mounts, environment, user and network.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The build, by the beginning of its name (default: the newest)
    build: Option<String>,
    /// The step: its number, or the beginning of its instruction (default: the one that failed)
    step: Option<String>,
    /// A command instead of the shell
    #[arg(last = true)]
    command: Vec<String>,
    /// Secret for its mounts: id=ID[,src=FILE|env=VARIABLE]; secrets are not kept
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
    /// SSH agent for its mounts: default, ID=SOCKET or ID=KEY
    #[arg(long, value_name = "SPEC")]
    ssh: Vec<String>,
    #[command(flatten)]
    sandbox: SandboxOptions,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let secrets = Secrets::parse(&options.secret, caller_variable)?;
    let agents = Agents::parse(&options.ssh, caller_variable)?;
    let devices = Devices::read(&settings.config.cdi_spec_dirs)?;
    let sandbox = Sandbox::parse(&options.sandbox, &Default::default(), settings)?;
    let store = open_store(settings)?;
    let build = history::find(&store, options.build.as_deref())?;
    let step = build.step(options.step.as_deref())?;
    let failed = FailedStep::read(&store, step)?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let wish = cancel.clone();
    let _interrupted = crate::signal::on_interrupt(move || wish.cancel())
        .map_err(|e| Failure::io("install", "the signal handler", &e))?;
    let images = Images::new(&store, Default::default(), settings, false, &cancel)?;
    let context = RunContext {
        store: &store,
        secrets: &secrets,
        agents: &agents,
        devices: &devices,
        sandbox: &sandbox,
        cancel: &cancel,
        imports: None,
    };
    let exit = debug::shell(&context, &images, &failed, &options.command, &Through)?;
    ended(Ok(exit), &Resources::default())
}
