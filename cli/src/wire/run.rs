//! RUN: a node of the graph as a specification of the executor.

use std::cell::Cell;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kiln_cache::{CacheMount, CacheMountRequest, LayerDraft, Root, Sharing, Store};
use kiln_executor::cancel::Cancel;
use kiln_executor::run::{self as executor, Exit, LogSink, RunError};
use kiln_executor::spec::{
    self, HostAddress, Limit, MountSource, MountSpec, Resources, RunSpec, Stack, Streams,
};
use kiln_parser::graph::{self, Input, Mount, RunOp};
use kiln_parser::mount;
use kiln_solver::ports::{Kind, Log, StepError, StepRequest, Stream};
use kiln_solver::snapshot::Snapshot;

use super::agent::{self, Forwarding};
use super::cache::Imports;
use super::devices::Devices;
use super::foreign;
use super::pressure;
use super::sandbox::Sandbox;
use crate::build::agents::Agents;
use crate::build::secrets::Secrets;
use crate::build::values::HOST_GATEWAY;

/// What RUN needs besides the step.
pub(crate) struct RunContext<'a> {
    pub(crate) store: &'a Store,
    pub(crate) secrets: &'a Secrets,
    pub(crate) agents: &'a Agents,
    pub(crate) devices: &'a Devices,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) cancel: &'a Cancel,
    /// From where new cache mounts are filled.
    pub(crate) imports: Option<&'a Imports>,
}

/// What has to stay as long as the step runs.
struct Held {
    /// Where the step's sockets are made.
    folder: PathBuf,
    caches: Vec<CacheMount>,
    agents: Vec<Forwarding>,
}

impl Held {
    fn beside(draft: &LayerDraft) -> Self {
        let folder = draft.beside("agents");
        Self { folder, caches: Vec::new(), agents: Vec::new() }
    }
}

struct Forward<'a>(&'a dyn Log);

impl LogSink for Forward<'_> {
    fn write(&self, stream: executor::Stream, data: &[u8]) {
        let stream = match stream {
            executor::Stream::Out => Stream::Out,
            executor::Stream::Err => Stream::Err,
        };
        self.0.write(stream, data);
    }
}

/// Runs a command; what it wrote is in the draft.
pub(crate) fn run(
    context: &RunContext<'_>,
    step: &StepRequest<'_>,
    op: &RunOp,
    draft: &LayerDraft,
    log: &dyn Log,
) -> Result<(), StepError> {
    context.sandbox.check(log)?;
    let mut held = Held::beside(draft);
    let mut spec = specification(context, step, op, draft, log, &mut held)?;
    let _started = pressure::wait(context.cancel);
    let store = context.store.path();
    let exit = context.sandbox.carry_out(&mut spec, store, log, &Forward(log), context.cancel)?;
    outcome(exit, op, &spec.resources)
        .map_err(|error| foreign::explain(error, step.node.platform.as_ref()))
}

/// Runs another command in the same place, for somebody to look around: its output goes to `sink`.
pub(crate) fn look_around(
    context: &RunContext<'_>,
    step: &StepRequest<'_>,
    op: &RunOp,
    streams: Streams,
    sink: &dyn LogSink,
) -> Result<Exit, StepError> {
    let log = Remarks;
    context.sandbox.check(&log)?;
    let draft = context.store.draft().map_err(StepError::environment)?;
    let mut held = Held::beside(&draft);
    let mut spec = specification(context, step, op, &draft, &log, &mut held)?;
    spec.streams = streams;
    if streams == Streams::Terminal && !spec.env.iter().any(|(name, _)| name == "TERM") {
        spec.env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let store = context.store.path();
    let exit = context.sandbox.carry_out(&mut spec, store, &log, sink, context.cancel)?;
    exit.map_err(|error| match error {
        RunError::Cancelled => StepError::new(Kind::Cancelled, "cancelled"),
        RunError::Sandbox(why) | RunError::NoOverlay(why) => sandbox_error(&why),
        error => StepError::environment(error),
    })
}

/// What the sandbox has to say where no step has a log.
pub(crate) struct Remarks;

impl Log for Remarks {
    fn write(&self, _: Stream, data: &[u8]) {
        crate::command::print_error(&String::from_utf8_lossy(data));
    }
}

/// The step as the executor wants it; what has to stay while it runs is in `held`.
fn specification(
    context: &RunContext<'_>,
    step: &StepRequest<'_>,
    op: &RunOp,
    draft: &LayerDraft,
    log: &dyn Log,
    held: &mut Held,
) -> Result<RunSpec, StepError> {
    let mut env = op.env.as_ref().clone();
    env.extend(op.proxy.iter().filter(|(name, _)| !op.env.iter().any(|(n, _)| n == name)).cloned());
    let mut mounts = mounts(context, step, op, &mut env, held, log)?;
    let given = context.devices.give(&op.devices)?;
    env.extend(given.env);
    mounts.extend(given.mounts);
    let scratch = draft.scratch_path().map_err(StepError::environment)?;
    let network = match op.network {
        _ if context.sandbox.is_offline() => spec::Network::None,
        graph::Network::Default => spec::Network::Default,
        graph::Network::None => spec::Network::None,
        graph::Network::Host => spec::Network::Host,
    };
    context.sandbox.check_network(network, log)?;
    Ok(RunSpec {
        enclosure: context.sandbox.enclosure,
        snapshotter: context.sandbox.snapshotter(context.store.path(), log)?,
        base: stack(context.store, step.base),
        upper: draft.fs_path().to_owned(),
        work: draft.work_path(),
        store: context.store.path().to_owned(),
        scratch,
        streams: Streams::Logged,
        args: op.args.clone(),
        env,
        cwd: PathBuf::from(&op.cwd),
        user: op.user.clone(),
        groups: given.groups,
        network,
        own_ids: context.sandbox.own_ids(context.store.path(), log),
        insecure: op.insecure,
        system_calls: context.sandbox.system_calls(step.node.platform.as_ref()),
        no_new_privileges: context.sandbox.no_new_privileges,
        hostname: op.hostname.clone(),
        hosts: hosts(op)?,
        mounts,
        shm_size: op.shm_size,
        limits: op.ulimits.iter().map(limit).collect(),
        dns: context.sandbox.dns.clone(),
        ca_certs: context.sandbox.ca_certs.clone(),
        resources: context.sandbox.resources,
        grace: context.sandbox.grace,
        cgroup_parent: op.cgroup_parent.as_deref().map(str::to_owned),
    })
}

fn limit(limit: &graph::Ulimit) -> Limit {
    Limit {
        name: limit.name.clone(),
        soft: u64::try_from(limit.soft).ok(),
        hard: u64::try_from(limit.hard).ok(),
    }
}

/// Whether a host of the step is this machine.
pub(super) fn reaches_host(op: &RunOp) -> bool {
    op.hosts.iter().any(|(_, address)| address == HOST_GATEWAY)
}

fn hosts(op: &RunOp) -> Result<Vec<(String, HostAddress)>, StepError> {
    op.hosts
        .iter()
        .map(|(name, address)| {
            if address == HOST_GATEWAY {
                return Ok((name.clone(), HostAddress::Gateway));
            }
            let address = address.parse().map_err(|_| {
                StepError::new(
                    Kind::Input,
                    format!("`{address}` is not an address for host `{name}`"),
                )
            })?;
            Ok((name.clone(), HostAddress::Fixed(address)))
        })
        .collect()
}

/// The layer directories of a snapshot.
pub(crate) fn stack(store: &Store, snapshot: &Snapshot) -> Stack {
    Stack::new(snapshot.layers.iter().map(|id| store.layer_path(id)).collect())
}

fn outcome(exit: Result<Exit, RunError>, op: &RunOp, limits: &Resources) -> Result<(), StepError> {
    let process = format!("process \"{}\" did not complete successfully", op.args.join(" "));
    match exit {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(Exit::Code(code)) => {
            let message = format!("{process}: exit code: {code}");
            Err(StepError { kind: Kind::Command, message, help: exit_help(code) })
        }
        Ok(Exit::OutOfMemory) => {
            let limit = limits.memory.unwrap_or_default() >> 20;
            let message = format!("{process}: out of memory (limit {limit} MiB)");
            Err(StepError {
                kind: Kind::Command,
                message,
                help: Some("give it more with --memory".to_owned()),
            })
        }
        Ok(Exit::TooManyProcesses) => {
            let limit = limits.pids.unwrap_or_default();
            let message = format!("{process}: too many processes (pids limit {limit})");
            let help = "give it more with --pids-limit".to_owned();
            Err(StepError { kind: Kind::Command, message, help: Some(help) })
        }
        Ok(Exit::Signal(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("", |s| s.as_str());
            // Shells count a death by signal as 128 and its number; so does BuildKit.
            let message = format!(
                "{process}: exit code: {} (killed by signal {signal} {name})",
                128 + signal
            );
            let help = (signal == libc_sigkill())
                .then(|| "SIGKILL often means that the machine ran out of memory".to_owned());
            Err(StepError { kind: Kind::Command, message, help })
        }
        Err(RunError::Cancelled) => Err(StepError::new(Kind::Cancelled, "cancelled")),
        Err(error @ RunError::NotStarted { .. }) => {
            let help = "the program has to be in the image, with its interpreter or loader";
            Err(StepError {
                kind: Kind::Command,
                message: format!("{process}: {error}"),
                help: Some(help.to_owned()),
            })
        }
        Err(RunError::NoUser(why)) => Err(StepError {
            kind: Kind::Input,
            message: format!("{process}: {why}"),
            help: Some("make the user in an earlier RUN, or give a number".to_owned()),
        }),
        Err(RunError::Sandbox(why) | RunError::NoOverlay(why)) => Err(sandbox_error(&why)),
        Err(error @ RunError::HelperDied) => Err(StepError {
            kind: Kind::Environment,
            message: format!("{process}: {error}"),
            help: Some("the kernel does so when memory runs out: see `dmesg`".to_owned()),
        }),
        Err(error @ RunError::Io(_)) => Err(StepError::environment(error)),
    }
}

const fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

fn exit_help(code: i32) -> Option<String> {
    match code {
        126 => Some("126: a program is there, but cannot be executed".to_owned()),
        127 => Some("127: a program was not found in the image".to_owned()),
        _ => None,
    }
}

/// What a mount of the Dockerfile asks for in vain is the user's to mend, the rest is the machine's.
fn sandbox_error(why: &str) -> StepError {
    let kind = if why.contains(": not found")
        || why.starts_with("mount /")
        || why.contains("working directory")
    {
        Kind::Input
    } else {
        Kind::Environment
    };
    StepError::new(kind, format!("cannot set up the step: {why}"))
}

fn mounts(
    context: &RunContext<'_>,
    step: &StepRequest<'_>,
    op: &RunOp,
    env: &mut Vec<(String, String)>,
    held: &mut Held,
    log: &dyn Log,
) -> Result<Vec<MountSpec>, StepError> {
    let mut specs = Vec::new();
    for mount in &op.mounts {
        let found = match mount {
            Mount::Bind { from, source, target, read_only } => Some(MountSpec {
                target: target.into(),
                source: MountSource::Layers {
                    stack: snapshot_stack(context.store, step, *from),
                    source: source.into(),
                    read_only: *read_only,
                },
            }),
            Mount::Cache { .. } => Some(cache(context, step, mount, &mut held.caches, log)?),
            Mount::Tmpfs { target, size } => Some(MountSpec {
                target: target.into(),
                source: MountSource::Tmpfs { size: *size },
            }),
            Mount::Secret { .. } => secret(context, mount, env)?,
            Mount::Ssh { .. } => ssh(context, mount, held)?,
        };
        specs.extend(found);
    }
    for script in &op.scripts {
        let source = MountSource::File {
            content: script.data.clone().into_bytes(),
            owner: (0o755, 0, 0),
            executable: true,
        };
        specs.push(MountSpec { target: Path::new("/dev/pipes").join(&script.name), source });
    }
    Ok(specs)
}

fn snapshot_stack(store: &Store, step: &StepRequest<'_>, from: Input) -> Stack {
    match from {
        Input::Scratch => Stack::default(),
        Input::Node(id) => step.inputs.get(&id).map(|s| stack(store, s)).unwrap_or_default(),
    }
}

fn secret(
    context: &RunContext<'_>,
    mount: &Mount,
    env: &mut Vec<(String, String)>,
) -> Result<Option<MountSpec>, StepError> {
    let Mount::Secret { id, target, env: variable, required, owner } = mount else {
        return Ok(None);
    };
    let value = context.secrets.get(id).map_err(|why| StepError::new(Kind::Environment, why))?;
    if value.is_none() && *required {
        return Err(StepError {
            kind: Kind::Input,
            message: format!("secret {id}: not found"),
            help: Some(format!("hand it to the build with --secret id={id},src=FILE")),
        });
    }
    if let Some(name) = variable {
        let text = String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned();
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), text));
    }
    let (Some(target), Some(content)) = (target, value) else { return Ok(None) };
    let executable = owner.0 & 0o111 != 0;
    let source = MountSource::File { content, owner: *owner, executable };
    Ok(Some(MountSpec { target: target.into(), source }))
}

/// A socket of the step's own that leads to the caller's agent.
fn ssh(
    context: &RunContext<'_>,
    mount: &Mount,
    held: &mut Held,
) -> Result<Option<MountSpec>, StepError> {
    let Mount::Ssh { id, target, required, owner } = mount else { return Ok(None) };
    let Some(agent) = context.agents.get(id) else {
        if *required {
            return Err(StepError {
                kind: Kind::Input,
                message: format!("ssh: no SSH agent {id:?} was handed to the build"),
                help: Some(format!(
                    "hand it to the build with --ssh {id}, or --ssh {id}=SOCKET|KEY"
                )),
            });
        }
        return Ok(None);
    };
    let name = format!("agent-{}", held.agents.len());
    let made = private_folder(&held.folder)
        .and_then(|()| agent::forward(agent, &held.folder, &name, *owner));
    let made = made.map_err(|error| StepError {
        kind: Kind::Environment,
        message: format!(
            "ssh: cannot forward the agent {id:?} at `{}`: {error}",
            agent.socket.display()
        ),
        help: Some("check with ssh-add -l that the agent answers".to_owned()),
    })?;
    let source = MountSource::Socket { path: made.path().to_owned() };
    held.agents.push(made);
    Ok(Some(MountSpec { target: target.into(), source }))
}

/// Nobody but the builder reaches the sockets in it by their paths.
fn private_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn cache(
    context: &RunContext<'_>,
    step: &StepRequest<'_>,
    mount: &Mount,
    held: &mut Vec<CacheMount>,
    log: &dyn Log,
) -> Result<MountSpec, StepError> {
    let Mount::Cache { id, target, sharing, from, source, owner, read_only, .. } = mount else {
        return Err(StepError::new(Kind::Environment, "not a cache mount"));
    };
    let base = match from {
        Input::Scratch => None,
        Input::Node(node) => step.inputs.get(node),
    };
    let (mode, uid, gid) = owner.unwrap_or((0o755, 0, 0));
    let request = CacheMountRequest {
        id: id.clone(),
        base: base.map(|snapshot| format!("{} {source}", snapshot.content.hex())),
        sharing: match sharing {
            mount::Sharing::Shared => Sharing::Shared,
            mount::Sharing::Private => Sharing::Private,
            mount::Sharing::Locked => Sharing::Locked,
        },
        // Go's os.FileMode has the sticky and set-id bits elsewhere: BuildKit drops them here.
        mode: mode & 0o777,
        uid,
        gid,
        user: step.node.steps.first().map(|step| step.text.clone()).unwrap_or_default(),
    };
    let fill = |root: &Root| match base {
        None => Ok(()),
        Some(snapshot) => super::copy::fill_folder(context.store, snapshot, source, root),
    };
    let told = Cell::new(false);
    let cancelled = || {
        if !told.replace(true) {
            let text = format!("waiting for the cache mount `{id}`, which another step uses\n");
            log.write(Stream::Err, text.as_bytes());
        }
        context.cancel.is_cancelled()
    };
    let made = match context.imports {
        // Who wants a step without its cache wants its cache mounts to begin anew, too.
        Some(imports) => {
            imports.open_mount(&request, step.node.no_cache, &fill, &cancelled, log)?
        }
        None => {
            let made = context.store.cache_mount(&request, &fill, &cancelled);
            made.map_err(StepError::environment)?
        }
    };
    let Some(made) = made else { return Err(StepError::new(Kind::Cancelled, "cancelled")) };
    let source = MountSource::Folder {
        folder: made.path().to_owned(),
        source: "/".into(),
        read_only: *read_only,
    };
    held.push(made);
    Ok(MountSpec { target: target.into(), source })
}
