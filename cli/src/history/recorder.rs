//! Writes down what happens while a build goes on: the steps, and their logs, whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;

use kiln_cache::{Key, Store};
use kiln_parser::graph::{Graph, NodeId};

use super::{Current, StepDocument, Why};

/// One for a build. A build does not fail for want of a history: what cannot be written is left out.
pub(crate) struct Recorder<'a> {
    store: &'a Store,
    graph: &'a Graph,
    build: &'a Current,
    keys: HashMap<NodeId, Key>,
    steps: BTreeMap<usize, StepDocument>,
    logs: HashMap<usize, Option<File>>,
    begun: bool,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(store: &'a Store, graph: &'a Graph, build: &'a Current) -> Self {
        let (keys, steps, logs) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { store, graph, build, keys, steps, logs, begun: false }
    }

    /// The definition keys of all nodes.
    pub(crate) fn planned(&mut self, keys: HashMap<NodeId, Key>) {
        self.keys = keys;
    }

    fn step(&mut self, number: usize, id: NodeId) -> &mut StepDocument {
        let (graph, keys) = (self.graph, &self.keys);
        self.steps.entry(number).or_insert_with(|| {
            let step = graph.node(id).steps.first();
            let text = |of: fn(&kiln_parser::graph::Step) -> &String| {
                step.map(of).cloned().unwrap_or_default()
            };
            StepDocument {
                number,
                name: text(|step| &step.label),
                text: text(|step| &step.text),
                stage: text(|step| &step.stage),
                key: keys.get(&id).map(Key::hex).unwrap_or_default(),
                ..StepDocument::default()
            }
        })
    }

    /// A step begins to run: from now on the build is known, however it ends.
    pub(crate) fn started(&mut self, number: usize, id: NodeId) {
        self.step(number, id);
        if !self.begun {
            self.begun = true;
            let _unwritten = self.build.save_running(self.store);
        }
    }

    /// Why a step runs.
    pub(crate) fn missed(&mut self, number: usize, id: NodeId, why: Why) {
        self.step(number, id).why = Some(why);
    }

    /// What a step wrote.
    pub(crate) fn log(&mut self, number: usize, data: &[u8]) {
        let (store, build) = (self.store, self.build);
        let log = self
            .logs
            .entry(number)
            .or_insert_with(|| store.new_log(&build.id, &number.to_string()).ok());
        if log.as_mut().is_some_and(|log| log.write_all(data).is_err()) {
            *log = None;
        }
    }

    /// A step is over.
    pub(crate) fn ended(
        &mut self,
        number: usize,
        id: NodeId,
        status: &str,
        duration_ms: Option<u64>,
        error: Option<String>,
    ) {
        let step = self.step(number, id);
        step.status = status.to_owned();
        step.duration_ms = duration_ms;
        step.error = error;
        self.logs.remove(&number);
    }

    /// All steps, by number.
    pub(crate) fn into_steps(self) -> Vec<StepDocument> {
        self.steps.into_values().collect()
    }
}
