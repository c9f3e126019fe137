//! The state of every node, changed in one place; no I/O, no time.

use std::collections::{BTreeSet, HashMap};

use kiln_parser::graph::{Graph, NodeId};

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// Its result is needed, some inputs are not done.
    Waiting {
        /// How many.
        inputs: usize,
    },
    /// It may start.
    Ready,
    /// A worker has it.
    Running,
    /// Its result is there.
    Done,
    /// It failed or was stopped.
    Failed,
}

/// The nodes that have to run.
#[derive(Debug)]
pub(crate) struct States {
    states: HashMap<NodeId, NodeState>,
    ready: BTreeSet<NodeId>,
    running: usize,
}

impl States {
    /// `needed` have to run; all others are done already or never looked at.
    pub(crate) fn new(graph: &Graph, needed: &BTreeSet<NodeId>) -> Self {
        let mut states = HashMap::new();
        let mut ready = BTreeSet::new();
        for &id in needed {
            let inputs = graph.node(id).op.inputs();
            let missing = inputs.iter().filter(|input| needed.contains(input)).count();
            let state = if missing == 0 {
                ready.insert(id);
                NodeState::Ready
            } else {
                NodeState::Waiting { inputs: missing }
            };
            states.insert(id, state);
        }
        Self { states, ready, running: 0 }
    }

    /// The next node that may start, which counts as running from now on. Those that come first in
    /// the file start first.
    pub(crate) fn start_next(&mut self) -> Option<NodeId> {
        let id = self.ready.pop_first()?;
        self.states.insert(id, NodeState::Running);
        self.running += 1;
        Some(id)
    }

    /// A running node is done; those that waited for it alone become ready.
    pub(crate) fn done(&mut self, id: NodeId, graph: &Graph) {
        self.running -= 1;
        self.states.insert(id, NodeState::Done);
        for user in graph.users(id) {
            let Some(NodeState::Waiting { inputs }) = self.states.get_mut(&user) else { continue };
            *inputs -= 1;
            if *inputs == 0 {
                self.states.insert(user, NodeState::Ready);
                self.ready.insert(user);
            }
        }
    }

    /// A running node failed: nothing new starts.
    pub(crate) fn failed(&mut self, id: NodeId) {
        self.running -= 1;
        self.states.insert(id, NodeState::Failed);
        self.ready.clear();
    }

    pub(crate) fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_parser::graph::{Graph, Input, MkdirOp, NodeId, Op, Step};
    use kiln_parser::source::Span;
    use proptest::prelude::*;

    use super::States;

    /// A chain of directories; node n starts from one of those before it.
    fn graph(bases: &[usize]) -> Graph {
        let mut graph = Graph::default();
        for (number, base) in bases.iter().enumerate() {
            let base = match number {
                0 => Input::Scratch,
                n => Input::Node(NodeId(u32::try_from(base % n).expect("small"))),
            };
            let step = Step {
                label: String::new(),
                text: String::new(),
                stage: String::new(),
                span: Span::default(),
            };
            let op = MkdirOp { base, path: format!("/{number}"), user: String::new(), epoch: None };
            graph.add(Op::Mkdir(op), None, false, step);
        }
        graph
    }

    proptest! {
        /// Every node runs once, after its inputs, whatever the order of completion.
        #[test]
        fn everything_runs_once_and_in_order(bases in proptest::collection::vec(0usize..50, 1..50), picks in proptest::collection::vec(0usize..8, 200)) {
            let graph = graph(&bases);
            let needed: BTreeSet<NodeId> = graph.ids().collect();
            let mut states = States::new(&graph, &needed);
            let (mut running, mut done) = (Vec::new(), BTreeSet::new());
            let mut picks = picks.into_iter().cycle();
            loop {
                while let Some(id) = states.start_next() {
                    for input in graph.node(id).op.inputs() {
                        prop_assert!(done.contains(&input));
                    }
                    running.push(id);
                }
                if running.is_empty() {
                    break;
                }
                let at = picks.next().unwrap_or(0) % running.len();
                let id = running.swap_remove(at);
                prop_assert!(done.insert(id));
                states.done(id, &graph);
            }
            prop_assert_eq!(done.len(), graph.len());
            prop_assert_eq!(states.running(), 0);
        }
    }
}
