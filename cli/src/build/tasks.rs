//! Happenings of the solver as tasks of a view; keeps the last lines of every step for errors.

use std::collections::{HashMap, VecDeque};

use crossbeam_channel::Receiver;
use kiln_parser::graph::{Graph, NodeId};
use kiln_solver::event::Event;
use kiln_solver::ports;

use crate::progress::{End, Stream, Task, View};

/// How many bytes of a step's output an error may show.
const TAIL_BYTES: usize = 4 << 10;

/// The last output of steps.
#[derive(Debug, Default)]
pub(super) struct Logs(HashMap<NodeId, VecDeque<u8>>);

impl Logs {
    /// The last output of a step.
    pub(super) fn tail(&self, id: NodeId) -> String {
        let bytes: Vec<u8> =
            self.0.get(&id).map(|tail| tail.iter().copied().collect()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Numbers steps in the order in which they are first heard of.
pub(super) struct Tasks<'a> {
    graph: &'a Graph,
    view: Box<dyn View>,
    numbers: HashMap<NodeId, usize>,
    logs: Logs,
}

impl<'a> Tasks<'a> {
    pub(super) fn new(graph: &'a Graph, view: Box<dyn View>) -> Self {
        Self { graph, view, numbers: HashMap::new(), logs: Logs::default() }
    }

    /// Shows everything until the solver is done.
    pub(super) fn follow(mut self, events: &Receiver<Event>) -> Logs {
        for event in events {
            self.show(event);
        }
        self.view.finish();
        self.logs
    }

    fn task(&mut self, id: NodeId) -> Task {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(id).or_insert(next);
        let name = self.graph.node(id).steps.first().map(|step| step.label.clone());
        Task { number, name: name.unwrap_or_default() }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Started(id) => {
                let task = self.task(id);
                self.view.started(&task);
            }
            Event::Waiting(id) => {
                let task = self.task(id);
                self.view.status(&task, "waiting: another build runs this step");
            }
            Event::Log { id, stream, data } => self.log(id, stream, &data),
            Event::Cached(id) => self.ended(id, &End::Cached),
            Event::Done { id, duration, unchanged: false } => self.ended(id, &End::Done(duration)),
            Event::Done { id, duration, unchanged: true } => {
                self.ended(id, &End::Unchanged(duration))
            }
            Event::Failed { id, error } => self.ended(id, &End::Failed(error.message)),
            Event::Cancelled(id) => self.ended(id, &End::Cancelled),
        }
    }

    fn ended(&mut self, id: NodeId, end: &End) {
        let task = self.task(id);
        self.view.ended(&task, end);
    }

    fn log(&mut self, id: NodeId, stream: ports::Stream, data: &[u8]) {
        let tail = self.logs.0.entry(id).or_default();
        tail.extend(data);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
        let stream = match stream {
            ports::Stream::Out => Stream::Out,
            ports::Stream::Err => Stream::Err,
        };
        let task = self.task(id);
        self.view.log(&task, stream, data);
    }
}
