//! Happenings of the solver as tasks of a view; keeps the last lines of every step for errors.

use std::collections::{HashMap, VecDeque};

use crossbeam_channel::{Receiver, Sender, select};
use kiln_cache::{Key, LayerId};
use kiln_parser::graph::{Graph, NodeId};
use kiln_solver::event::Event;
use kiln_solver::explain::Miss;
use kiln_solver::ports;

use crate::explain::Teller;
use crate::history::{Recorder, StepDocument};
use crate::progress::{End, Stream, Task, View};

/// How many bytes of a step's output an error may show.
const TAIL_BYTES: usize = 4 << 10;

/// What is left of the steps when a graph is solved.
#[derive(Debug, Default)]
pub(super) struct Logs {
    tails: HashMap<NodeId, VecDeque<u8>>,
    numbers: HashMap<NodeId, usize>,
    /// Their definition keys.
    pub(super) keys: HashMap<NodeId, Key>,
    /// Their history, where it was asked for.
    pub(super) steps: Vec<StepDocument>,
}

impl Logs {
    /// Notes where what failed can be looked at.
    pub(super) fn add_failed(&mut self, failed: HashMap<NodeId, LayerId>) {
        for (id, failed) in failed {
            let number = self.numbers.get(&id);
            if let Some(step) = self.steps.iter_mut().find(|step| Some(&step.number) == number) {
                step.failed = Some(failed);
            }
        }
    }

    /// The last output of a step.
    pub(super) fn tail(&self, id: NodeId) -> String {
        let bytes: Vec<u8> =
            self.tails.get(&id).map(|tail| tail.iter().copied().collect()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Numbers steps in the order in which they are first heard of.
pub(super) struct Tasks<'a> {
    graph: &'a Graph,
    view: Box<dyn View>,
    numbers: HashMap<NodeId, usize>,
    tails: HashMap<NodeId, VecDeque<u8>>,
    written: Option<Written<'a>>,
    keys: HashMap<NodeId, Key>,
    /// Takes the definition keys of steps that ran.
    ended: Option<Sender<Key>>,
}

/// Where what happens is written down.
pub(super) struct Written<'a> {
    pub(super) recorder: Recorder<'a>,
    pub(super) teller: Teller<'a>,
    /// All of an explanation is shown.
    pub(super) explain: bool,
}

impl<'a> Tasks<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        view: Box<dyn View>,
        written: Option<Written<'a>>,
        ended: Option<Sender<Key>>,
    ) -> Self {
        let (numbers, tails, keys) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { graph, view, numbers, tails, written, keys, ended }
    }

    /// Shows everything until the solver is done, and warnings where they come.
    pub(super) fn follow(mut self, events: &Receiver<Event>, warnings: &Receiver<String>) -> Logs {
        loop {
            select! {
                recv(events) -> event => match event {
                    Ok(event) => self.show(event),
                    Err(_) => break,
                },
                recv(warnings) -> warning => match warning {
                    Ok(warning) => self.view.warning(&warning),
                    // Nobody warns any more.
                    Err(_) => events.iter().for_each(|event| self.show(event)),
                },
            }
        }
        warnings.try_iter().for_each(|warning| self.view.warning(&warning));
        self.view.finish();
        let steps = self.written.map(|written| written.recorder.into_steps()).unwrap_or_default();
        Logs { tails: self.tails, numbers: self.numbers, keys: self.keys, steps }
    }

    fn task(&mut self, id: NodeId) -> Task {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(id).or_insert(next);
        let name = self.graph.node(id).steps.first().map(|step| step.label.clone());
        Task { number, name: name.unwrap_or_default() }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Planned(keys) => {
                self.keys = keys.clone();
                if let Some(written) = &mut self.written {
                    written.recorder.planned(keys);
                }
            }
            Event::Started(id) => {
                let task = self.task(id);
                if let Some(written) = &mut self.written {
                    written.recorder.started(task.number, id);
                }
                self.view.started(&task);
            }
            Event::Missed { id, miss } => self.missed(id, &miss),
            Event::Waiting { id, holder } => {
                let task = self.task(id);
                let who = holder.map(|pid| format!(" (process {pid})")).unwrap_or_default();
                let text = format!("waiting: another build{who} runs this step");
                self.view.status(&task, &text);
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

    fn missed(&mut self, id: NodeId, miss: &Miss) {
        let task = self.task(id);
        let Some(written) = &mut self.written else { return };
        let why = written.teller.why(id, miss);
        self.view.missed(&task, &why, written.explain);
        written.recorder.missed(task.number, id, why);
    }

    fn ended(&mut self, id: NodeId, end: &End) {
        if let (Some(sender), End::Done(_) | End::Unchanged(_)) = (&self.ended, end)
            && let Some(key) = self.keys.get(&id)
        {
            let _nobody_sends = sender.send(*key);
        }
        let task = self.task(id);
        if let Some(written) = &mut self.written {
            let (status, duration, error) = match end {
                End::Cached => ("cached", None, None),
                End::Done(time) => ("ran", Some(*time), None),
                End::Unchanged(time) => ("unchanged", Some(*time), None),
                End::Failed(error) => ("failed", None, Some(error.clone())),
                End::Cancelled => ("canceled", None, None),
            };
            let milliseconds = duration.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            written.recorder.ended(task.number, id, status, milliseconds, error);
        }
        self.view.ended(&task, end);
    }

    fn log(&mut self, id: NodeId, stream: ports::Stream, data: &[u8]) {
        let tail = self.tails.entry(id).or_default();
        tail.extend(data);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
        let stream = match stream {
            ports::Stream::Out => Stream::Out,
            ports::Stream::Err => Stream::Err,
        };
        let task = self.task(id);
        if let Some(written) = &mut self.written {
            written.recorder.log(task.number, data);
        }
        self.view.log(&task, stream, data);
    }
}
