//! RUN: command line, mounts, heredocs.

use super::allow;
use std::collections::HashMap;

use super::device;
use super::stage::Stage;
use super::stages::Place;
use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, InlineFile, Input, Mount, NodeId, Op, RunOp};
use crate::instruction::{Command, Run, Word};
use crate::lines::heredoc_word;
use crate::mount::{self, MountFlag, MountKind};
use crate::tree::Statement;

/// The host name of steps, as in BuildKit.
const HOSTNAME: &str = "buildkitsandbox";

pub(super) fn lower(
    stage: &mut Stage<'_, '_>,
    run: &Run,
    statement: &Statement,
    graph: &mut Graph,
) -> Result<(), Diagnostic> {
    let mut scripts = Vec::new();
    let args = command_line(stage, run, statement, &mut scripts)?;
    let mounts = mounts(stage, run, graph)?;
    let mut text = stage.display(statement);
    if let ([document, ..], true) = (run.heredocs.as_slice(), is_lone_heredoc(&run.command)) {
        text = format!("{text} ({})", summary(&document.content));
    }
    let step = stage.step(&text, statement.span);
    let options = stage.plan.options;
    let network = allow::network(stage, run, statement.span)?;
    let insecure = allow::insecure(stage, run)?;
    let hostname = options.build_args.get("BUILDKIT_SANDBOX_HOSTNAME");
    let op = Op::Run(Box::new(RunOp {
        base: stage.result.snapshot,
        args: args.clone(),
        env: with_agent(stage, &mounts),
        proxy: std::sync::Arc::clone(&stage.proxy),
        cwd: match stage.result.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        },
        user: stage.result.config.user.clone(),
        network,
        insecure,
        devices: device::lower(stage, run)?,
        mounts,
        scripts,
        hostname: hostname.map_or(HOSTNAME, String::as_str).to_owned(),
        hosts: std::sync::Arc::clone(&options.hosts),
        shm_size: options.shm_size,
        ulimits: std::sync::Arc::clone(&options.ulimits),
        cgroup_parent: options.cgroup_parent.clone(),
    }));
    let platform = stage.result.platform.clone();
    let node = graph.add(op, Some(platform), stage.stage.no_cache, step);
    stage.result.snapshot = Input::Node(node);
    remember(stage, &args, node);
    Ok(())
}

/// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`.
fn remember(stage: &mut Stage<'_, '_>, args: &[String], node: NodeId) {
    use crate::expand::Lookup as _;
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in &stage.result.arguments {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut words: Vec<String> = Vec::new();
    if !names.is_empty() {
        words.push(format!("|{}", names.len()));
    }
    for name in names {
        words.push(format!("{name}={}", stage.result.env.get(name).unwrap_or_default()));
    }
    words.extend(args.iter().cloned());
    stage.remember(format!("RUN {} # buildkit", words.join(" ")), Some(node));
}

/// `SSH_AUTH_SOCK` names the first agent's socket, unless the image sets it.
fn with_agent(
    stage: &mut Stage<'_, '_>,
    mounts: &[Mount],
) -> std::sync::Arc<Vec<(String, String)>> {
    let env = stage.result.env.share(&stage.plan.budget);
    let socket = mounts.iter().find_map(|mount| match mount {
        Mount::Ssh { target, .. } => Some(target.clone()),
        _ => None,
    });
    match socket {
        Some(socket) if !env.iter().any(|(name, _)| name == "SSH_AUTH_SOCK") => {
            let mut with = env.as_ref().clone();
            with.push(("SSH_AUTH_SOCK".to_owned(), socket));
            std::sync::Arc::new(with)
        }
        _ => env,
    }
}

fn is_lone_heredoc(command: &Command) -> bool {
    matches!(command, Command::Shell(text) if heredoc_word(text).is_some())
}

/// The arguments of the process; what a lone heredoc means depends on its first line.
fn command_line(
    stage: &Stage<'_, '_>,
    run: &Run,
    statement: &Statement,
    scripts: &mut Vec<InlineFile>,
) -> Result<Vec<String>, Diagnostic> {
    let text = match &run.command {
        Command::Exec(words) => return Ok(words.clone()),
        Command::Shell(text) => text,
    };
    let [first, ..] = run.heredocs.as_slice() else { return Ok(stage.shell_words(text)) };
    if is_lone_heredoc(&run.command) {
        let data = first.text();
        if data.starts_with("#!") {
            if first.name.contains('/') || first.name == "." || first.name == ".." {
                let message = format!("a heredoc cannot be called {:?}", first.name);
                return Err(Diagnostic::error(statement.span, message));
            }
            scripts.push(InlineFile { name: first.name.clone(), data });
            return Ok(stage.shell_words(&format!("/dev/pipes/{}", first.name)));
        }
        return Ok(stage.shell_words(&data));
    }
    let mut whole = text.clone();
    for document in &run.heredocs {
        whole.push('\n');
        whole.push_str(&document.content);
        whole.push_str(&document.name);
    }
    Ok(stage.shell_words(&whole))
}

/// The first line of a document, for the step's name.
fn summary(document: &str) -> String {
    let trimmed = document.trim_start();
    match trimmed.split_once('\n') {
        Some((first, rest)) if !rest.trim().is_empty() => format!("{first}..."),
        _ => trimmed.trim_end().to_owned(),
    }
}

fn mounts(
    stage: &mut Stage<'_, '_>,
    run: &Run,
    graph: &mut Graph,
) -> Result<Vec<Mount>, Diagnostic> {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut agents = 0;
    for word in &run.mounts {
        let flag = {
            let stage = &*stage;
            mount::parse(word, &mut |value| {
                stage.expand(&Word { text: value.to_owned(), span: word.span })
            })?
        };
        let mount = match flag.kind {
            MountKind::Secret => Some(secret(stage, &flag, word)?),
            MountKind::Ssh => {
                agents += 1;
                Some(ssh(stage, &flag, word, agents - 1)?)
            }
            MountKind::Tmpfs => {
                Some(Mount::Tmpfs { target: target(stage, &flag, word)?, size: flag.size })
            }
            MountKind::Bind => Some(bind(stage, &flag, word, graph)?),
            MountKind::Cache => Some(cache(stage, &flag, word, graph)?),
        };
        mounts.extend(mount);
    }
    Ok(deduplicate(mounts))
}

/// Of several mounts at one place the last one counts; parents are mounted before children.
fn deduplicate(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut last: HashMap<String, usize> = HashMap::new();
    for (at, mount) in mounts.iter().enumerate() {
        if let Some(target) = mount.target() {
            last.insert(target.to_owned(), at);
        }
    }
    let counts = |at: usize, mount: &Mount| mount.target().is_none_or(|target| last[target] == at);
    let numbered = mounts.into_iter().enumerate();
    let mut kept: Vec<Mount> =
        numbered.filter(|(at, mount)| counts(*at, mount)).map(|(_, mount)| mount).collect();
    kept.sort_by(|a, b| {
        let depth = |mount: &Mount| mount.target().map_or(0, |target| target.matches('/').count());
        depth(a).cmp(&depth(b))
    });
    kept
}

/// Where a mount is seen: below the working directory, or that directory itself where nothing is said.
fn target(stage: &Stage<'_, '_>, flag: &MountFlag, word: &Word) -> Result<String, Diagnostic> {
    let text = flag.target.as_deref().unwrap_or_default();
    let path = absolute(stage, text);
    if path == "/" {
        return Err(Diagnostic::error(word.span, format!("invalid mount target {:?}", path))
            .help("give target= a path below the root"));
    }
    if is_kernels(&path) {
        let message = format!("invalid mount target {path:?}: it is the kernel's");
        return Err(Diagnostic::error(word.span, message)
            .help("/dev itself, and /proc and /sys with all below, cannot be mounted over"));
    }
    Ok(path)
}

/// What a step finds at the places of the kernel has to be the kernel's (runc refuses /proc as well).
fn is_kernels(path: &str) -> bool {
    path == "/dev" || path.split('/').nth(1).is_some_and(|first| matches!(first, "proc" | "sys"))
}

fn absolute(stage: &Stage<'_, '_>, path: &str) -> String {
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", stage.result.config.working_dir)
    };
    format!("/{}", crate::ignore::clean(&joined))
}

/// The files that a mount shows, and the path in them.
fn files(
    stage: &mut Stage<'_, '_>,
    flag: &MountFlag,
    word: &Word,
    graph: &mut Graph,
) -> Result<(Input, String), Diagnostic> {
    let source = format!("/{}", crate::ignore::clean(flag.source.as_deref().unwrap_or("/")));
    let Some(from) = flag.from.as_ref().filter(|from| !from.is_empty()) else {
        return Ok((stage.part_of_folder("context", &source, word.span, graph), source));
    };
    let name = Word { text: from.clone(), span: word.span };
    let input = match stage.plan.place_of(&name, false)? {
        Place::Stage(index) => stage.stage_snapshot(index, from, word.span).map_err(|_| {
            let target = flag.target.as_deref().unwrap_or_default();
            let message = format!(
                "cannot mount from stage {from:?} to {target:?}, stage needs to be defined before current command"
            );
            Diagnostic::error(word.span, message).help("move the stage up in the file")
        })?,
        Place::Folder(name) => stage.part_of_folder(&name, &source, word.span, graph),
        Place::Empty => Input::Scratch,
        Place::Image(key) => stage.image(&key, word.span, graph)?,
    };
    Ok((input, source))
}

fn bind(
    stage: &mut Stage<'_, '_>,
    flag: &MountFlag,
    word: &Word,
    graph: &mut Graph,
) -> Result<Mount, Diagnostic> {
    let target = target(stage, flag, word)?;
    let (from, source) = files(stage, flag, word, graph)?;
    Ok(Mount::Bind { from, source, target, read_only: flag.read_only })
}

fn cache(
    stage: &mut Stage<'_, '_>,
    flag: &MountFlag,
    word: &Word,
    graph: &mut Graph,
) -> Result<Mount, Diagnostic> {
    let target = target(stage, flag, word)?;
    let (from, source) = match &flag.from {
        Some(_) => files(stage, flag, word, graph)?,
        None => (Input::Scratch, "/".to_owned()),
    };
    let default_id =
        format!("/{}", crate::ignore::clean(flag.target.as_deref().unwrap_or_default()));
    let id = flag.id.clone().unwrap_or_else(|| default_id.clone());
    let namespace = stage.plan.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
    let given = flag.mode.is_some() || flag.uid.is_some() || flag.gid.is_some();
    let owner = (given && source == "/")
        .then(|| (flag.mode.unwrap_or(0o755), flag.uid.unwrap_or(0), flag.gid.unwrap_or(0)));
    let sharing = flag.sharing.unwrap_or_default();
    Ok(Mount::Cache {
        default_id: id == default_id,
        id: format!("{}/{id}", namespace.map_or("", String::as_str)),
        target,
        sharing,
        from,
        source,
        owner,
        read_only: flag.read_only,
    })
}

fn owner(flag: &MountFlag, mode: u32) -> (u32, u32, u32) {
    (flag.mode.unwrap_or(mode), flag.uid.unwrap_or(0), flag.gid.unwrap_or(0))
}

fn secret(stage: &mut Stage<'_, '_>, flag: &MountFlag, word: &Word) -> Result<Mount, Diagnostic> {
    let base =
        |path: &str| path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_owned();
    let id = flag.id.clone().or_else(|| flag.source.clone());
    let id = id.unwrap_or_else(|| base(flag.target.as_deref().unwrap_or_default()));
    if id.is_empty() {
        return Err(Diagnostic::error(
            word.span,
            "invalid secret mount. one of source, target required",
        ));
    }
    let target = match &flag.target {
        Some(target) => Some(absolute(stage, target)),
        None if flag.env.is_some() => None,
        None => Some(format!("/run/secrets/{}", base(&id))),
    };
    stage.result.described.secret(&id, flag.required, stage.current_span());
    Ok(Mount::Secret {
        target,
        env: flag.env.clone(),
        required: flag.required,
        owner: owner(flag, 0o400),
        id,
    })
}

fn ssh(
    stage: &mut Stage<'_, '_>,
    flag: &MountFlag,
    word: &Word,
    number: usize,
) -> Result<Mount, Diagnostic> {
    if flag.source.is_some() {
        return Err(Diagnostic::error(word.span, "ssh mounts do not support source"));
    }
    let target = match &flag.target {
        Some(target) => absolute(stage, target),
        None => format!("/run/buildkit/ssh_agent.{number}"),
    };
    let id = flag.id.clone().unwrap_or_else(|| "default".to_owned());
    stage.result.described.ssh(&id, flag.required, stage.current_span());
    Ok(Mount::Ssh { id, target, required: flag.required, owner: owner(flag, 0o600) })
}
