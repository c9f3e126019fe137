//! A shell where a step failed: on its file system, with its mounts, environment, user and network. What is
//! written there is thrown away.

use std::io::IsTerminal;

use kiln_cache::{Lease, Store};
use kiln_executor::run::{Exit, LogSink};
use kiln_executor::spec::Streams;
use kiln_parser::graph::{NodeId, Op, RunOp};
use kiln_solver::ports::{StepError, StepRequest};
use kiln_solver::snapshot::Snapshot;

use super::images::Images;
use super::run::{RunContext, look_around};
use crate::failure::{Failure, chain};
use crate::history::failed::FailedStep;
use crate::settings::docker_proxies;

/// What the step left, held in the store.
///
/// # Errors
/// It is not there any more.
pub(crate) fn result(
    store: &Store,
    images: &Images,
    failed: &FailedStep,
) -> Result<(Snapshot, Lease), Failure> {
    let snapshot = failed.result().ok_or_else(gone)?;
    let lease = hold(store, images, &snapshot)?;
    Ok((snapshot, lease))
}

/// Holds the layers of a snapshot in the store; those of images are fetched where they are missing.
///
/// # Errors
/// A layer of a step is not there any more.
pub(crate) fn hold(store: &Store, images: &Images, snapshot: &Snapshot) -> Result<Lease, Failure> {
    let lease = store.lease().map_err(|e| Failure::environment(chain(&e)))?;
    images.materialise(&snapshot.layers).map_err(|e| Failure::environment(e.message))?;
    let held = lease.hold_layers(&snapshot.layers).map_err(|e| Failure::environment(chain(&e)))?;
    let there = |id| store.has_layer(id).map_err(|e| Failure::environment(chain(&e)));
    if !held {
        return Err(gone());
    }
    for layer in &snapshot.layers {
        if !there(layer)? {
            return Err(gone());
        }
    }
    Ok(lease)
}

fn gone() -> Failure {
    Failure::input("the files of this step are not in the store any more")
        .hint("those of failed steps are kept for a day; build again to get them")
}

/// Opens the shell, or runs `command` instead, with the caller's terminal or standard input.
///
/// # Errors
/// The files are gone, the sandbox cannot be made.
pub(crate) fn shell(
    context: &RunContext<'_>,
    images: &Images,
    failed: &FailedStep,
    command: &[String],
    sink: &dyn LogSink,
) -> Result<Exit, Failure> {
    let (base, _held) = result(context.store, images, failed)?;
    let inputs = failed.inputs().ok_or_else(gone)?;
    let mut leases = Vec::new();
    for snapshot in inputs.values() {
        leases.push(hold(context.store, images, snapshot)?);
    }
    let mut op = failed.op.clone();
    op.proxy = std::sync::Arc::new(docker_proxies().into_iter().collect());
    op.args = if command.is_empty() { vec![shell_of(&op)] } else { command.to_vec() };
    let node = kiln_parser::graph::Node {
        platform: failed.platform.as_deref().and_then(|text| text.parse().ok()),
        op: Op::Run(Box::new(op.clone())),
        no_cache: false,
        steps: Vec::new(),
    };
    let step = StepRequest { id: NodeId(u32::MAX), node: &node, base: &base, inputs: &inputs };
    let streams = if std::io::stdin().is_terminal() { Streams::Terminal } else { Streams::Input };
    look_around(context, &step, &op, streams, sink).map_err(step_failure)
}

/// The shell that the step itself used, else the usual one.
fn shell_of(op: &RunOp) -> String {
    match op.args.as_slice() {
        [shell, flag, ..] if flag.starts_with('-') && flag.ends_with('c') => shell.clone(),
        _ => "/bin/sh".to_owned(),
    }
}

fn step_failure(error: StepError) -> Failure {
    let failure = match error.kind {
        kiln_solver::ports::Kind::Cancelled => return Failure::interrupted(),
        kiln_solver::ports::Kind::Environment => Failure::environment(error.message),
        _ => Failure::input(error.message),
    };
    match error.help {
        Some(help) => failure.hint(help),
        None => failure,
    }
}
