//! What has to run: definition keys of everything the targets need, one look-up, and a walk back
//! from the targets that stops at every hit.

use std::collections::{BTreeSet, HashMap};

use kiln_cache::{ContentDigest, Key, LayerId, Record, Store};
use kiln_parser::graph::{CopyFrom, Graph, NodeId, Op};
use rayon::prelude::*;

use crate::key::{self, Inputs};
use crate::outcome::SolveError;
use crate::ports::{Kind, Ports};
use crate::snapshot::Snapshot;

/// The result of planning.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Everything the targets need, inputs first.
    pub(crate) reachable: Vec<NodeId>,
    /// Definition keys.
    pub(crate) definitions: HashMap<NodeId, Key>,
    /// Identity of the context files that a COPY reads, and of git sources.
    pub(crate) selected: HashMap<NodeId, ContentDigest>,
    /// Results that are there.
    pub(crate) snapshots: HashMap<NodeId, Snapshot>,
    /// Nodes whose results other caches have: their layers need not be in the store.
    pub(crate) elsewhere: BTreeSet<NodeId>,
    /// What has to run.
    pub(crate) needed: BTreeSet<NodeId>,
    /// Nodes whose result, or that of something they need, is made anew by wish.
    pub(crate) forced: BTreeSet<NodeId>,
    /// Records that answered and whose use is worth a note.
    pub(crate) used: Vec<i64>,
}

/// Plans a graph for its targets.
pub(crate) fn plan(
    graph: &Graph,
    targets: &[NodeId],
    store: &Store,
    ports: &dyn Ports,
    reads_targets: bool,
) -> Result<Plan, SolveError> {
    let reachable = reachable(graph, targets);
    let (selected, parts) = select_outside(graph, &reachable, ports)?;
    let mut plan = Plan { selected, ..Plan::default() };
    for &id in &reachable {
        let node = graph.node(id);
        let selected = plan.selected.get(&id).or_else(|| parts.get(&id));
        let key = key::key(node, &Inputs::Definition(&plan.definitions), selected);
        plan.definitions.insert(id, key);
        if node.no_cache || node.op.inputs().iter().any(|input| plan.forced.contains(input)) {
            plan.forced.insert(id);
        }
    }
    let keys: Vec<Key> = reachable
        .iter()
        .filter(|id| is_step(&graph.node(**id).op) && !plan.forced.contains(id))
        .map(|id| plan.definitions[id])
        .collect();
    let found = if keys.is_empty() { HashMap::new() } else { store.lookup_many(&keys)? };
    let stale = found.values().filter(|record| record.wants_touch());
    plan.used = stale.map(|record| record.id).collect();
    plan.reachable = reachable;
    let unknown: Vec<Key> = keys.into_iter().filter(|key| !found.contains_key(key)).collect();
    if unknown.is_empty() {
        walk_back(graph, targets, &found, &mut plan);
        return Ok(plan);
    }
    // What is found elsewhere may turn out to be damaged: then it is planned again without it.
    loop {
        let elsewhere = ports.elsewhere(&unknown);
        let is_elsewhere = |id: &NodeId| elsewhere.contains_key(&plan.definitions[id]);
        plan.elsewhere = plan.reachable.iter().copied().filter(is_elsewhere).collect();
        let any = !elsewhere.is_empty();
        let mut all = found.clone();
        all.extend(elsewhere);
        walk_back(graph, targets, &all, &mut plan);
        if !any || bring(graph, targets, &plan, ports, reads_targets)? {
            return Ok(plan);
        }
        plan.snapshots.clear();
        plan.needed.clear();
    }
}

/// Has everything in the store that will be read: what steps that run start from, and the targets.
fn bring(
    graph: &Graph,
    targets: &[NodeId],
    plan: &Plan,
    ports: &dyn Ports,
    reads_targets: bool,
) -> Result<bool, SolveError> {
    let mut read: BTreeSet<NodeId> =
        plan.needed.iter().flat_map(|&id| graph.node(id).op.inputs()).collect();
    if reads_targets {
        read.extend(targets);
    }
    let snapshots = read.iter().filter_map(|id| plan.snapshots.get(id));
    let layers: BTreeSet<&LayerId> = snapshots.flat_map(|snapshot| &snapshot.layers).collect();
    let layers: Vec<LayerId> = layers.into_iter().cloned().collect();
    ports.bring(&layers).map_err(|error| match (error.kind, targets.first()) {
        (Kind::Cancelled, _) | (_, None) => SolveError::Interrupted,
        (_, Some(&id)) => SolveError::Step { id, error },
    })
}

/// Whether a node has a result of its own in the store.
pub(crate) const fn is_step(op: &Op) -> bool {
    matches!(op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) | Op::Git(_))
}

fn reachable(graph: &Graph, targets: &[NodeId]) -> Vec<NodeId> {
    let mut found = BTreeSet::new();
    let mut open: Vec<NodeId> = targets.to_vec();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(graph.node(id).op.inputs());
        }
    }
    found.into_iter().collect()
}

/// What comes from outside is looked at once, side by side: context and remote files of COPYs, the
/// commits of git sources. An ADD that reads snapshots as well (git checkouts) is in the second map,
/// with what it reads from outside: for its definition key alone.
fn select_outside(
    graph: &Graph,
    reachable: &[NodeId],
    ports: &dyn Ports,
) -> Result<(Selected, Selected), SolveError> {
    let outside: Vec<NodeId> = reachable
        .iter()
        .copied()
        .filter(|&id| match &graph.node(id).op {
            Op::Copy(copy) => copy.sources.iter().any(|source| is_outside(&source.from)),
            Op::Git(_) => true,
            _ => false,
        })
        .collect();
    let digest = |id: NodeId| match &graph.node(id).op {
        Op::Copy(copy) if !reads_only_sources(copy.sources.iter().map(|s| &s.from)) => {
            let mut outside = copy.as_ref().clone();
            outside.sources.retain(|source| is_outside(&source.from));
            Some((id, false, ports.digest_sources(&outside, &HashMap::new())))
        }
        Op::Copy(copy) => Some((id, true, ports.digest_sources(copy, &HashMap::new()))),
        Op::Git(git) => Some((id, true, ports.digest_git(git))),
        _ => None,
    };
    let digests: Vec<_> = match outside.as_slice() {
        [] => Vec::new(),
        [only] => digest(*only).into_iter().collect(),
        many => many.par_iter().filter_map(|&id| digest(id)).collect(),
    };
    let (mut selected, mut parts) = (Selected::new(), Selected::new());
    for (id, whole, digest) in digests {
        let digest = digest.map_err(|error| SolveError::Step { id, error })?;
        if whole { &mut selected } else { &mut parts }.insert(id, digest);
    }
    Ok((selected, parts))
}

/// Identities of files that nodes read.
type Selected = HashMap<NodeId, ContentDigest>;

const fn is_outside(from: &CopyFrom) -> bool {
    matches!(from, CopyFrom::Context(_) | CopyFrom::Remote(_))
}

/// Whether all of a COPY's files are known before anything ran, and there are some.
pub(crate) fn reads_only_sources<'a>(mut from: impl Iterator<Item = &'a CopyFrom>) -> bool {
    let mut any = false;
    from.all(|from| match from {
        CopyFrom::Context(_) | CopyFrom::Remote(_) => {
            any = true;
            true
        }
        CopyFrom::Inline(_) => true,
        CopyFrom::Snapshot(_) => false,
    }) && any
}

fn walk_back(graph: &Graph, targets: &[NodeId], found: &HashMap<Key, Record>, plan: &mut Plan) {
    for &id in &plan.reachable {
        let node = graph.node(id);
        let snapshot = match &node.op {
            Op::Image(image) => {
                let diff_ids: Vec<_> =
                    image.diff_ids.iter().filter_map(|d| d.parse().ok()).collect();
                Some(Snapshot::image(&diff_ids))
            }
            op if is_step(op) && !plan.forced.contains(&id) => found
                .get(&plan.definitions[&id])
                .map(|record| Snapshot { layers: record.layers.clone(), content: record.result }),
            _ => None,
        };
        if let Some(snapshot) = snapshot {
            plan.snapshots.insert(id, snapshot);
        }
    }
    let mut open: Vec<NodeId> = targets.to_vec();
    while let Some(id) = open.pop() {
        let op = &graph.node(id).op;
        if !is_step(op) || plan.snapshots.contains_key(&id) || !plan.needed.insert(id) {
            continue;
        }
        open.extend(op.inputs());
    }
}
