//! One step on a worker: content key, single flight, run, early cut-off, publish.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use kiln_cache::{
    ContentDigest, Key, LayerId, Layers, Lease, NewRecord, Record, Store, StoreError, Tree,
    View as _,
};
use kiln_parser::graph::{CopyFrom, Graph, Input, NodeId, Op, RunOp};

use crate::event::Event;
use crate::explain::{self, Miss, Reason};
use crate::key::{self, Inputs};
use crate::outcome::Status;
use crate::plan::reads_only_sources;
use crate::ports::{Log, Ports, StepError, StepOutput, StepRequest, Stream};
use crate::snapshot::Snapshot;

/// What workers share.
pub(crate) struct Shared<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) store: &'a Store,
    pub(crate) ports: &'a dyn Ports,
    pub(crate) events: &'a Sender<Event>,
    pub(crate) lease: &'a Lease,
    pub(crate) stopped: &'a (dyn Fn() -> bool + Sync),
    /// Contents of layers that were asked for.
    pub(crate) contents: Mutex<HashMap<LayerId, ContentDigest>>,
}

/// What one worker is told.
pub(crate) struct Task {
    pub(crate) id: NodeId,
    pub(crate) definition: Key,
    /// Its definition key may answer: nothing it needs is made anew by wish.
    pub(crate) by_definition: bool,
    pub(crate) selected: Option<ContentDigest>,
    pub(crate) inputs: HashMap<NodeId, Snapshot>,
}

/// What a worker answers.
pub(crate) type Answer = Result<(Snapshot, Status), StepError>;

struct EventLog<'a> {
    id: NodeId,
    events: &'a Sender<Event>,
}

impl Log for EventLog<'_> {
    fn write(&self, stream: Stream, data: &[u8]) {
        send(self.events, Event::Log { id: self.id, stream, data: data.to_vec() });
    }
}

/// A view that is gone does not stop a build.
pub(crate) fn send(events: &Sender<Event>, event: Event) {
    let _nobody_listens = events.send(event);
}

fn store_error(error: StoreError) -> StepError {
    StepError::environment(error)
}

/// The base of a step.
fn base_of(op: &Op) -> Input {
    match op {
        Op::Run(run) => run.base,
        Op::Copy(copy) => copy.base,
        Op::Mkdir(mkdir) => mkdir.base,
        Op::Image(_) | Op::Context { .. } | Op::Http(_) | Op::Git(_) => Input::Scratch,
    }
}

/// Does one step, whatever that takes.
pub(crate) fn perform(shared: &Shared<'_>, task: &Task) -> Answer {
    let node = shared.graph.node(task.id);
    let selected = selected_files(shared, task)?;
    let contents: HashMap<NodeId, ContentDigest> =
        task.inputs.iter().map(|(&id, snapshot)| (id, snapshot.content)).collect();
    let content = key::key(node, &Inputs::Content(&contents), selected.as_ref());
    if let Some(hit) = look_up(shared, task, &content, None)? {
        return Ok(hit);
    }
    let lock = match shared.store.try_lock(&content).map_err(store_error)? {
        Some(lock) => Some(lock),
        None => {
            let holder = shared.store.lock_holder(&content);
            send(shared.events, Event::Waiting { id: task.id, holder });
            shared.store.lock(&content, &|| (shared.stopped)()).map_err(store_error)?
        }
    };
    if lock.is_none() {
        return Err(StepError::new(crate::ports::Kind::Cancelled, "cancelled"));
    }
    for snapshot in task.inputs.values() {
        shared.ports.materialise(&snapshot.layers)?;
    }
    let files = files_key(shared, task, selected.as_ref())?;
    if let Some(hit) = look_up(shared, task, &content, files.as_ref())? {
        return Ok(hit);
    }
    let (record, answer) = run(shared, task, content, &contents, selected.as_ref())?;
    if let Some(files) = &files {
        shared.store.add_key(files, record).map_err(store_error)?;
    }
    Ok(answer)
}

/// The content key in which layers of images count by their files, as those of steps do: a base that was packed anew
/// has other diff ids, but what is built on it stays. `None` where no input has layers of an image.
fn files_key(
    shared: &Shared<'_>,
    task: &Task,
    selected: Option<&ContentDigest>,
) -> Result<Option<Key>, StepError> {
    let mut layers = task.inputs.values().flat_map(|snapshot| &snapshot.layers);
    if !layers.any(LayerId::is_image) {
        return Ok(None);
    }
    let mut files = HashMap::with_capacity(task.inputs.len());
    for (&id, snapshot) in &task.inputs {
        let mut hasher = blake3::Hasher::new();
        for layer in &snapshot.layers {
            let Some(content) = layer_content(shared, layer)? else { return Ok(None) };
            hasher.update(content.as_bytes());
        }
        files.insert(id, hasher.finalize().into());
    }
    Ok(Some(key::key(shared.graph.node(task.id), &Inputs::Files(&files), selected)))
}

fn layer_content(shared: &Shared<'_>, id: &LayerId) -> Result<Option<ContentDigest>, StepError> {
    let known = || shared.contents.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(content) = known().get(id) {
        return Ok(Some(*content));
    }
    let content = shared.store.layer_content(id).map_err(store_error)?;
    if let Some(content) = content {
        known().insert(id.clone(), content);
    }
    Ok(content)
}

/// What a COPY reads, where it is not known from the contexts alone.
fn selected_files(shared: &Shared<'_>, task: &Task) -> Result<Option<ContentDigest>, StepError> {
    let copy = match &shared.graph.node(task.id).op {
        Op::Copy(copy) => copy,
        Op::Run(run) => return mounted_files(shared, task, run),
        _ => return Ok(task.selected),
    };
    if task.selected.is_some() || copy.sources.iter().all(|s| matches!(s.from, CopyFrom::Inline(_)))
    {
        return Ok(task.selected);
    }
    debug_assert!(
        !reads_only_sources(copy.sources.iter().map(|s| &s.from)),
        "selected by the plan"
    );
    for source in &copy.sources {
        if let CopyFrom::Snapshot(Input::Node(id)) = source.from
            && let Some(snapshot) = task.inputs.get(&id)
        {
            shared.ports.materialise(&snapshot.layers)?;
        }
    }
    shared.ports.digest_sources(copy, &task.inputs).map(Some)
}

/// What the bind mounts of a RUN show, where that is a part of a snapshot: no other file of it counts.
/// `None` where no mount does, or one shows nothing, which the step itself will complain about.
fn mounted_files(
    shared: &Shared<'_>,
    task: &Task,
    run: &RunOp,
) -> Result<Option<ContentDigest>, StepError> {
    let mut hasher = blake3::Hasher::new();
    let mut any = false;
    for (id, source) in run.mounts.iter().filter_map(key::shows_part) {
        let Some(snapshot) = task.inputs.get(&id) else { return Ok(None) };
        shared.ports.materialise(&snapshot.layers)?;
        let layers = Layers::open(shared.store, &snapshot.layers).map_err(store_error)?;
        let digest = kiln_cache::resolve(&layers, Path::new(source), true)
            .ok()
            .and_then(|path| layers.digest(&path).ok());
        let Some(digest) = digest else { return Ok(None) };
        hasher.update(digest.as_bytes());
        any = true;
    }
    Ok(any.then(|| hasher.finalize().into()))
}

fn look_up(
    shared: &Shared<'_>,
    task: &Task,
    content: &Key,
    files: Option<&Key>,
) -> Result<Option<(Snapshot, Status)>, StepError> {
    let node = shared.graph.node(task.id);
    if node.no_cache {
        return Ok(None);
    }
    let mut keys = vec![*content];
    keys.extend(files);
    if task.by_definition {
        keys.push(task.definition);
    }
    let mut found = shared.store.lookup_many(&keys).map_err(store_error)?;
    let known = keys.iter().find_map(|key| found.remove(key));
    let Some(record) = known.map_or_else(|| look_elsewhere(shared, &keys), |r| Ok(Some(r)))? else {
        return Ok(None);
    };
    let base = base_snapshot(task, &node.op);
    let snapshot = match &record.own {
        // The step's own layer goes on the base of this build: equal content need not be equal layers.
        Some(own) => match shared.store.layer_content(own).map_err(store_error)? {
            Some(own_content) => base.with(own.clone(), &own_content),
            None => return Ok(None),
        },
        None => base,
    };
    if !shared.lease.hold_layers(&snapshot.layers).map_err(store_error)? {
        return Ok(None);
    }
    if record.definition != task.definition || record.layers != snapshot.layers {
        let again = NewRecord {
            definition: task.definition,
            content: Some(*content),
            layers: snapshot.layers.clone(),
            own: record.own.clone(),
            result: snapshot.content,
            description: record.description.clone(),
            parts: record.parts.clone(),
            duration_ms: record.duration_ms,
        };
        let again = shared.store.save_record(&again).map_err(store_error)?;
        if let Some(files) = files {
            shared.store.add_key(files, again.id).map_err(store_error)?;
        }
    } else if record.wants_touch() {
        shared.store.touch(&[record.id], &[]).map_err(store_error)?;
    }
    Ok(Some((snapshot, Status::Cached)))
}

/// What another cache has under a step's keys, with its layer in the store.
fn look_elsewhere(shared: &Shared<'_>, keys: &[Key]) -> Result<Option<Record>, StepError> {
    let mut found = shared.ports.elsewhere(keys);
    let Some(record) = keys.iter().find_map(|key| found.remove(key)) else { return Ok(None) };
    Ok(shared.ports.bring(record.own.as_slice())?.then_some(record))
}

fn base_snapshot(task: &Task, op: &Op) -> Snapshot {
    match base_of(op) {
        Input::Scratch => Snapshot::scratch(),
        Input::Node(id) => task.inputs.get(&id).cloned().unwrap_or_else(Snapshot::scratch),
    }
}

fn run(
    shared: &Shared<'_>,
    task: &Task,
    content: Key,
    contents: &HashMap<NodeId, ContentDigest>,
    selected: Option<&ContentDigest>,
) -> Result<(i64, (Snapshot, Status)), StepError> {
    let node = shared.graph.node(task.id);
    let base = base_snapshot(task, &node.op);
    for snapshot in task.inputs.values() {
        shared.lease.hold_layers(&snapshot.layers).map_err(store_error)?;
    }
    let digest_key = shared.store.digest_key().map_err(store_error)?;
    let parts = key::parts(node, &Inputs::Content(contents), selected, &digest_key);
    let why = Explained::of(shared, task, &parts)?;
    send(shared.events, Event::Started(task.id));
    let untold = why.tell(shared, task.id);
    let started = Instant::now();
    let request = StepRequest { id: task.id, node, base: &base, inputs: &task.inputs };
    let log = EventLog { id: task.id, events: shared.events };
    let output = shared.ports.run(&request, &log)?;
    let duration = started.elapsed();
    if let Some(why) = untold {
        why.tell_with_files(shared, task.id, &output.tree)?;
    }
    let tree_content = output.tree.content();
    let before = shared.store.lookup(&task.definition).map_err(store_error)?;
    let (own, unchanged) = match same_as_before(shared, &base, before, &tree_content)? {
        Some(own) => (own, true),
        None => (publish(shared.lease, output)?, false),
    };
    let snapshot = base.with(own.clone(), &tree_content);
    let record = NewRecord {
        definition: task.definition,
        content: Some(content),
        layers: snapshot.layers.clone(),
        own: Some(own),
        result: snapshot.content,
        description: node.steps.first().map(|step| step.text.clone()).unwrap_or_default(),
        parts,
        duration_ms: milliseconds(duration),
    };
    let saved = shared.store.save_record(&record).map_err(store_error)?;
    Ok((saved.id, (snapshot, Status::Ran { duration, unchanged })))
}

/// Why a step runs, and what that was found out from.
struct Explained {
    miss: Miss,
    before: Option<Record>,
    by_files: bool,
}

impl Explained {
    fn of(shared: &Shared<'_>, task: &Task, parts: &[(String, String)]) -> Result<Self, StepError> {
        let node = shared.graph.node(task.id);
        let earlier = shared.ports.earlier(task.id);
        let question =
            explain::Question { node, parts, earlier: &earlier, definition: task.definition };
        let (miss, before) = explain::explain(shared.store, &question).map_err(store_error)?;
        let by_files = matches!(node.op, Op::Copy(_)) && miss.reason == Reason::Differs;
        Ok(Self { miss, before, by_files })
    }

    /// Tells it, unless the files that the step will have written say more.
    fn tell(self, shared: &Shared<'_>, id: NodeId) -> Option<Self> {
        if self.by_files {
            return Some(self);
        }
        send(shared.events, Event::Missed { id, miss: Box::new(self.miss) });
        None
    }

    fn tell_with_files(
        self,
        shared: &Shared<'_>,
        id: NodeId,
        written: &Tree,
    ) -> Result<(), StepError> {
        let mut miss = Box::new(self.miss);
        if let Some(own) = self.before.and_then(|record| record.own)
            && shared.store.has_layer(&own).map_err(store_error)?
        {
            // An explanation is worth no failure: a tree that cannot be read has nothing to say.
            let before = shared.store.layer_tree(&own).ok();
            miss.files = before.map(|before| explain::file_changes(&before, written));
        }
        send(shared.events, Event::Missed { id, miss });
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Held before it can be seen: there is no moment in which it could be pruned.
fn publish(lease: &Lease, output: StepOutput) -> Result<LayerId, StepError> {
    let id = LayerId::random();
    lease.hold_layer(&id).map_err(store_error)?;
    output.draft.publish(id.clone(), output.tree).map_err(store_error)?;
    Ok(id)
}

/// Early cut-off: the layer of the record that this step replaces, where it stands on the same base
/// and holds the same files, times aside. Everything that builds on it stays as it is.
fn same_as_before(
    shared: &Shared<'_>,
    base: &Snapshot,
    before: Option<Record>,
    content: &ContentDigest,
) -> Result<Option<LayerId>, StepError> {
    let Some(Record { own: Some(own), layers, .. }) = before else { return Ok(None) };
    let same_base = layers.split_last().is_some_and(|(_, below)| below == base.layers);
    if !same_base || !shared.lease.hold_layer(&own).map_err(store_error)? {
        return Ok(None);
    }
    let old = shared.store.layer_content(&own).map_err(store_error)?;
    Ok((old.as_ref() == Some(content)).then_some(own))
}
