//! The loop that owns the state of a build: start what may start, wait for one answer, apply it.
//! Workers never touch the state, they answer on a channel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use kiln_cache::{Lease, Store};
use kiln_parser::graph::{Graph, NodeId};

use crate::event::Event;
use crate::outcome::{Outcome, SolveError, Status};
use crate::plan::{self, Plan};
use crate::ports::{Kind, Ports, StepError};
use crate::state::States;
use crate::step::{self, Answer, Shared, Task};

/// How often the loop looks whether the user asked to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How to solve.
#[derive(Debug)]
pub struct SolveOptions<'a> {
    /// How many steps run at once.
    pub jobs: usize,
    /// Somebody reads the files of the targets: they have to be in the store.
    pub reads_targets: bool,
    /// Where happenings go.
    pub events: Sender<Event>,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
}

/// Solves a graph for its targets.
///
/// # Errors
/// The first step that failed; all others were stopped and have ended. What succeeded is stored.
pub fn solve(
    graph: &Graph,
    targets: &[NodeId],
    store: &Store,
    ports: &dyn Ports,
    options: &SolveOptions<'_>,
) -> Result<Outcome, SolveError> {
    let (plan, lease) = held_plan(graph, targets, store, ports, options.reads_targets)?;
    step::send(&options.events, Event::Planned(plan.definitions.clone()));
    let used = plan.used.clone();
    let mut outcome = Outcome { snapshots: plan.snapshots.clone(), used, ..Outcome::default() };
    for &id in &plan.reachable {
        if plan::is_step(&graph.node(id).op) && !plan.needed.contains(&id) {
            outcome.statuses.insert(id, Status::Cached);
            step::send(&options.events, Event::Cached(id));
        }
    }
    let Some(lease) = lease else { return Ok(outcome) };
    run_needed(graph, store, ports, options, (&plan, &lease), &mut outcome)?;
    outcome.lease = Some(lease);
    Ok(outcome)
}

/// A plan whose results cannot be pruned any more. What another process removes between look-up and hold is planned
/// again; what was held before stays. Where nothing has to run, nothing is held: who then misses something asks again.
fn held_plan(
    graph: &Graph,
    targets: &[NodeId],
    store: &Store,
    ports: &dyn Ports,
    reads_targets: bool,
) -> Result<(Plan, Option<Lease>), SolveError> {
    let mut plan = plan::plan(graph, targets, store, ports, reads_targets)?;
    if plan.needed.is_empty() {
        return Ok((plan, None));
    }
    let lease = store.lease()?;
    loop {
        let mut whole = true;
        for (id, snapshot) in &plan.snapshots {
            // What is elsewhere need not be here; what of it is read was held when it was brought.
            whole &= lease.hold_layers(&snapshot.layers)? || plan.elsewhere.contains(id);
        }
        if whole {
            return Ok((plan, Some(lease)));
        }
        plan = plan::plan(graph, targets, store, ports, reads_targets)?;
    }
}

fn run_needed(
    graph: &Graph,
    store: &Store,
    ports: &dyn Ports,
    options: &SolveOptions<'_>,
    (plan, lease): (&Plan, &Lease),
    outcome: &mut Outcome,
) -> Result<(), SolveError> {
    let failed = AtomicBool::new(false);
    let stopped = || failed.load(Ordering::SeqCst) || options.interrupted.load(Ordering::SeqCst);
    let shared = Shared {
        graph,
        store,
        ports,
        events: &options.events,
        lease,
        stopped: &stopped,
        contents: std::sync::Mutex::default(),
    };
    let mut states = States::new(graph, &plan.needed);
    let mut first_error = None;
    let (answers, results) = unbounded::<(NodeId, Answer)>();
    std::thread::scope(|scope| {
        let mut asked_to_stop = false;
        loop {
            while states.running() < options.jobs.max(1) && !stopped() {
                let Some(id) = states.start_next() else { break };
                let task = task(graph, plan, outcome, id);
                let (shared, own) = (&shared, answers.clone());
                let worker = move || {
                    let answer = step::perform(shared, &task);
                    let _loop_is_there = own.send((task.id, answer));
                };
                if let Err(error) = Builder::new().spawn_scoped(scope, worker) {
                    let text = format!("cannot start a thread: {error}");
                    let answer = Err(StepError::new(Kind::Environment, text));
                    let _loop_is_there = answers.send((id, answer));
                }
            }
            if states.running() == 0 {
                break;
            }
            if stopped() && !asked_to_stop {
                asked_to_stop = true;
                ports.stop();
            }
            match results.recv_timeout(STOP_POLL) {
                Ok((id, answer)) => {
                    let failure = apply(id, answer, graph, &mut states, outcome, &options.events);
                    first_error = first_error.take().or(failure);
                    if first_error.is_some() {
                        failed.store(true, Ordering::SeqCst);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    match first_error {
        Some((id, error)) => Err(SolveError::Step { id, error }),
        None if options.interrupted.load(Ordering::SeqCst) => Err(SolveError::Interrupted),
        None => Ok(()),
    }
}

fn task(graph: &Graph, plan: &Plan, outcome: &Outcome, id: NodeId) -> Task {
    let inputs = graph.node(id).op.inputs();
    Task {
        id,
        definition: plan.definitions[&id],
        by_definition: !plan.forced.contains(&id),
        selected: plan.selected.get(&id).copied(),
        inputs: inputs
            .into_iter()
            .filter_map(|input| outcome.snapshots.get(&input).map(|s| (input, s.clone())))
            .collect(),
    }
}

/// Applies an answer; gives the failure, if it is one.
fn apply(
    id: NodeId,
    answer: Answer,
    graph: &Graph,
    states: &mut States,
    outcome: &mut Outcome,
    events: &Sender<Event>,
) -> Option<(NodeId, StepError)> {
    match answer {
        Ok((snapshot, status)) => {
            states.done(id, graph);
            step::send(
                events,
                match &status {
                    Status::Cached => Event::Cached(id),
                    Status::Ran { duration, unchanged } => {
                        Event::Done { id, duration: *duration, unchanged: *unchanged }
                    }
                },
            );
            outcome.snapshots.insert(id, snapshot);
            outcome.statuses.insert(id, status);
            None
        }
        Err(error) if error.kind == Kind::Cancelled => {
            states.failed(id);
            step::send(events, Event::Cancelled(id));
            None
        }
        Err(error) => {
            states.failed(id);
            step::send(events, Event::Failed { id, error: error.clone() });
            Some((id, error))
        }
    }
}
