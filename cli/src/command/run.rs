//! `kiln run`: a command in an image, in the sandbox of build steps, so that what was built can be tried at
//! once. Nothing of it is kept.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kiln_executor::cancel::Cancel;
use kiln_executor::run::{Exit, LogSink, RunError, Stream};
use kiln_executor::spec::{MountSource, MountSpec, Network, Resources, RunSpec, Stack, Streams};
use kiln_parser::config::ImageConfig;
use kiln_parser::graph::{ImageKey, ImageName};
use kiln_solver::ports::StepError;

use crate::build::options::{SandboxOptions, UserNamespace};
use crate::command::open_store;
use crate::failure::{Failure, chain};
use crate::settings::{Settings, caller_variable};
use crate::wire::export::full_name;
use crate::wire::images::Images;
use crate::wire::run::Remarks;
use crate::wire::sandbox::Sandbox;

/// How long a command has to end by itself after Ctrl-C.
const GRACE: Duration = Duration::from_secs(10);

/// Run a command in an image; nothing of it is kept.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Hand standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove what the command wrote when it has ended: what always happens
    #[arg(long)]
    rm: bool,
    /// Environment variable: NAME=VALUE, or NAME for the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Folder of this machine in the command's file system: FOLDER:PATH[:ro]
    #[arg(short, long, value_name = "FOLDER:PATH[:ro]")]
    volume: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User: NAME or number, with :GROUP
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Network: default, none or host
    #[arg(long, value_name = "default|none|host", default_value = "default")]
    network: String,
    /// Program instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Memory, such as 2g
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Processors, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u64>,
    /// Name server, instead of this machine's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Certificate authorities (PEM) that the command trusts, besides those of the image
    #[arg(long, value_name = "FILE")]
    ca_certs: Option<PathBuf>,
    /// Which of several platforms (default: this machine's)
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Name of the image
    image: String,
    /// The command, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Writes what the command says where the caller reads it.
pub(crate) struct Through;

impl LogSink for Through {
    fn write(&self, stream: Stream, data: &[u8]) {
        // A reader that went away wanted no more of it.
        let _closed = match stream {
            Stream::Out => {
                let mut out = std::io::stdout().lock();
                out.write_all(data).and_then(|()| out.flush())
            }
            Stream::Err => std::io::stderr().lock().write_all(data),
        };
    }
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    if options.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("--tty needs a terminal as standard input").hint("leave it out"));
    }
    let sandbox = Sandbox::parse(&sandbox_options(options), &Default::default(), settings)?;
    let store = open_store(settings)?;
    let cancel = Cancel::new().map_err(|e| Failure::io("make", "an event descriptor", &e))?;
    let wish = cancel.clone();
    let interrupted = crate::signal::on_interrupt(move || wish.cancel())
        .map_err(|e| Failure::io("install", "the signal handler", &e))?;
    let images = Images::new(&store, Default::default(), settings, false, &cancel)?;
    let key = ImageKey {
        name: ImageName::Reference(full_name(&options.image)?),
        platform: super::platform(options.platform.as_deref())?,
    };
    let config = images.resolve(&key)?.config;
    let layers: Vec<_> = images
        .found(&key)
        .map(|image| image.layers.iter().map(|layer| layer.layer_id.clone()).collect())
        .unwrap_or_default();
    images.materialise(&layers).map_err(|e| Failure::environment(&e.message))?;
    let draft = store.draft().map_err(|e| Failure::environment(chain(&e)))?;
    let scratch = draft.scratch_path();
    let scratch = scratch.map_err(|e| Failure::io("make", store.path().display(), &e))?;
    let mut spec = RunSpec {
        enclosure: sandbox.enclosure,
        snapshotter: sandbox.snapshotter(store.path(), &Remarks).map_err(refused)?,
        base: Stack::new(layers.iter().map(|id| store.layer_path(id)).collect()),
        upper: draft.fs_path().to_owned(),
        work: draft.work_path(),
        store: store.path().to_owned(),
        scratch,
        streams: streams(options),
        args: arguments(options, &config)?,
        env: environment(options, &config),
        cwd: working_directory(options, &config),
        user: options.user.clone().unwrap_or_else(|| config.user.clone()),
        groups: Vec::new(),
        network: if settings.offline { Network::None } else { network(&options.network)? },
        own_ids: true,
        insecure: false,
        system_calls: sandbox.system_calls(Some(&key.platform)),
        no_new_privileges: false,
        hostname: "kiln".to_owned(),
        hosts: Vec::new(),
        mounts: options.volume.iter().map(|text| volume(text)).collect::<Result<_, _>>()?,
        shm_size: None,
        limits: Vec::new(),
        dns: sandbox.dns.clone(),
        ca_certs: sandbox.ca_certs.clone(),
        resources: sandbox.resources,
        grace: GRACE,
        cgroup_parent: None,
    };
    let exit = sandbox.carry_out(&mut spec, store.path(), &Remarks, &Through, &cancel);
    let exit = exit.map_err(refused)?;
    drop(interrupted);
    ended(exit, &spec.resources)
}

fn refused(error: StepError) -> Failure {
    let failure = Failure::environment(&error.message);
    match error.help {
        Some(help) => failure.hint(help),
        None => failure,
    }
}

fn sandbox_options(options: &Options) -> SandboxOptions {
    SandboxOptions {
        memory: options.memory.clone(),
        cpus: options.cpus.clone(),
        pids_limit: options.pids_limit,
        stop_timeout: GRACE.as_secs(),
        userns: UserNamespace::Auto,
        security_opt: Vec::new(),
        dns: options.dns.clone(),
        ca_certs: options.ca_certs.clone(),
    }
}

fn streams(options: &Options) -> Streams {
    match (options.tty, options.interactive) {
        (true, _) => Streams::Terminal,
        (false, true) => Streams::Input,
        (false, false) => Streams::Logged,
    }
}

/// Entry point and command as Docker joins them: another entry point forgets the image's command.
fn arguments(options: &Options, config: &ImageConfig) -> Result<Vec<String>, Failure> {
    let (mut all, usual) = match &options.entrypoint {
        Some(program) => (vec![program.clone()], None),
        None => (config.entrypoint.clone().unwrap_or_default(), config.cmd.clone()),
    };
    if options.command.is_empty() {
        all.extend(usual.unwrap_or_default());
    } else {
        all.extend(options.command.iter().cloned());
    }
    if all.is_empty() {
        return Err(Failure::input(format_args!("image `{}` has no command", options.image))
            .hint("name one behind the image: kiln run IMAGE COMMAND"));
    }
    Ok(all)
}

fn environment(options: &Options, config: &ImageConfig) -> Vec<(String, String)> {
    let mut env = config.env.clone();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), kiln_parser::config::DEFAULT_PATH.to_owned()));
    }
    if options.tty {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for text in &options.env {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (
                text.as_str(),
                caller_variable(text).map(|value| value.to_string_lossy().into_owned()),
            ),
        };
        if let Some(value) = value {
            env.retain(|(known, _)| known != name);
            env.push((name.to_owned(), value));
        }
    }
    env
}

fn working_directory(options: &Options, config: &ImageConfig) -> PathBuf {
    let path = options.workdir.as_ref().unwrap_or(&config.working_dir);
    Path::new("/").join(path)
}

fn network(text: &str) -> Result<Network, Failure> {
    match text {
        "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => Err(Failure::usage(format_args!("invalid --network `{other}`"))
            .hint("there are default, none and host")),
    }
}

/// `FOLDER:PATH[:ro|:rw]`.
fn volume(text: &str) -> Result<MountSpec, Failure> {
    let bad = |why: &str| {
        Failure::usage(format_args!("invalid --volume `{text}`: {why}"))
            .hint("for example --volume ./data:/data:ro")
    };
    let mut fields = text.split(':');
    let (Some(folder), Some(target)) = (fields.next(), fields.next()) else {
        return Err(bad("a path behind a colon is missing"));
    };
    let read_only = match (fields.next(), fields.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(bad("only `ro` and `rw` may stand behind the second colon")),
    };
    if !Path::new(target).is_absolute() {
        return Err(bad("the second path has to begin with `/`"));
    }
    let folder = std::fs::canonicalize(folder).map_err(|e| Failure::io("open", folder, &e))?;
    if !folder.is_dir() {
        return Err(bad("it is no folder"));
    }
    let source = MountSource::Folder { folder, source: "/".into(), read_only };
    Ok(MountSpec { target: target.into(), source })
}

/// The command's exit code is that of `kiln run`; a signal counts as 128 and its number.
pub(super) fn ended(exit: Result<Exit, RunError>, limits: &Resources) -> Result<(), Failure> {
    let code = match exit {
        Ok(Exit::Code(0)) => return Ok(()),
        Ok(Exit::Code(code)) => code,
        Ok(Exit::Signal(signal)) => 128 + signal,
        Ok(Exit::OutOfMemory) => {
            let limit = limits.memory.unwrap_or_default() >> 20;
            return Err(Failure::input(format_args!("out of memory (limit {limit} MiB)")));
        }
        Ok(Exit::TooManyProcesses) => {
            let limit = limits.pids.unwrap_or_default();
            return Err(Failure::input(format_args!("too many processes (pids limit {limit})")));
        }
        Err(RunError::Cancelled) => return Err(Failure::interrupted()),
        Err(error @ (RunError::NotStarted { .. } | RunError::NoUser(_))) => {
            return Err(Failure::input(error));
        }
        Err(error) => return Err(Failure::environment(error)),
    };
    Err(Failure::of_command(u8::try_from(code).unwrap_or(u8::MAX)))
}

#[cfg(test)]
mod tests {
    use super::volume;

    #[test]
    fn volumes() {
        let read = |text: &str| volume(text).ok().map(|mount| mount.target);
        assert_eq!(read("/tmp:/x"), Some("/x".into()));
        assert_eq!(read("/tmp:/x:ro"), Some("/x".into()));
        for text in ["/tmp", "/tmp:x", "/tmp:/x:z", "/no-such-folder:/x", "/etc/passwd:/x"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
