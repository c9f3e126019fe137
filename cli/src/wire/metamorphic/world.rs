//! One machine: a store, a checkout of the context, and the builder with all of its own parts but the sandbox. RUN is
//! replaced by a function of what the step may see, worked out from the operation that the solver hands over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kiln_cache::{ContentDigest, DiffId, Key, LayerId, Layers, Metadata, Store, Time, View};
use kiln_executor::cancel::Cancel;
use kiln_parser::config::ImageConfig;
use kiln_parser::git::GitRef;
use kiln_parser::graph::{CopyOp, Graph, Input, Mount, NodeId, Op, RunOp};
use kiln_parser::ignore::Patterns;
use kiln_parser::lower::{BaseImage, Known, LowerOptions, Lowered, Lowering, lower};
use kiln_parser::platform::Platform;
use kiln_parser::source::Source;
use kiln_parser::tree;
use kiln_solver::key::{self, Inputs};
use kiln_solver::outcome::{Outcome, Status};
use kiln_solver::ports::{Kind, Log, Ports, StepError, StepOutput, StepRequest};
use kiln_solver::snapshot::Snapshot;
use kiln_solver::{SolveOptions, solve};

use super::case::{Case, Image, Item, Items};
use super::model::{Model, Sight};
use crate::build::secrets::Secrets;
use crate::settings::Settings;
use crate::wire::copy::{self, Folder, Sources};
use crate::wire::images::Images;
use crate::wire::remote::Remotes;

pub(super) struct World {
    dir: tempfile::TempDir,
    pub(super) store: Store,
    remotes: Arc<Remotes>,
    /// The checkout.
    pub(super) folder: PathBuf,
    folders: u32,
    on_disk: Items,
    /// For each layer of a step, the sights that it was made from.
    ignore: Mutex<HashMap<Vec<String>, Patterns>>,
    /// What layers hold, as the model counts it.
    layers: Mutex<HashMap<LayerId, String>>,
    made: HashMap<LayerId, HashSet<Sight>>,
    seen: HashSet<Sight>,
}

/// A build that succeeded.
pub(super) struct Built {
    pub(super) graph: Graph,
    pub(super) target: Option<NodeId>,
    pub(super) outcome: Outcome,
}

impl Built {
    /// The labels of the steps that ran.
    pub(super) fn ran(&self) -> Vec<String> {
        let ran = self.outcome.statuses.iter().filter(|(_, status)| **status != Status::Cached);
        let mut labels: Vec<String> =
            ran.map(|(id, _)| self.graph.node(*id).steps[0].label.clone()).collect();
        labels.sort();
        labels
    }
}

impl World {
    pub(super) fn new() -> Self {
        // In memory, where there is such a place: ten thousand builds are many small files.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("a temporary directory");
        let store = Store::open(&dir.path().join("store")).expect("a store");
        let folder = dir.path().join("checkout-0");
        fs::create_dir(&folder).expect("a folder");
        let settings = Settings {
            root: dir.path().join("store"),
            config: Default::default(),
            snapshotter: Default::default(),
            isolation: None,
            offline: false,
        };
        let cancel = Cancel::new().expect("a cancel");
        let images = Images::new(&store, BTreeMap::new(), &settings, false, &cancel);
        let images = Arc::new(images.expect("no registry is asked"));
        let secrets = Arc::new(Secrets::parse(&[], |_| None).expect("none"));
        let remotes = Arc::new(Remotes::new(&store, &images, &secrets, None, &cancel, false));
        Self {
            dir,
            store,
            remotes,
            folder,
            folders: 0,
            on_disk: Items::new(),
            ignore: Mutex::default(),
            layers: Mutex::default(),
            made: HashMap::new(),
            seen: HashSet::new(),
        }
    }

    /// Another folder for the checkout.
    fn next_folder(&mut self) -> PathBuf {
        self.folders += 1;
        self.dir.path().join(format!("checkout-{}", self.folders))
    }

    /// The checkout is somewhere else now, the same files.
    pub(super) fn rename_folder(&mut self) {
        let to = self.next_folder();
        fs::rename(&self.folder, &to).expect("renamed");
        self.folder = to;
    }

    /// A new checkout; its directories are filled in another order, and have another mode at the top.
    pub(super) fn clone_folder(&mut self, backwards: bool) {
        let items = std::mem::take(&mut self.on_disk);
        self.folder = self.next_folder();
        fs::create_dir(&self.folder).expect("a folder");
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).expect("chmod");
        if backwards {
            for (path, _) in items.iter().filter(|(_, item)| matches!(item, Item::Folder(_))) {
                fs::create_dir(self.folder.join(path)).expect("a folder");
            }
            for (path, item) in items.iter().rev() {
                put(&self.folder.join(path), item);
            }
            self.on_disk = items;
        } else {
            self.write(&items);
        }
    }

    /// Every file has other times and another owner.
    pub(super) fn touch(&self, owner: u32) {
        for path in self.on_disk.keys() {
            let path = self.folder.join(path);
            std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).expect("chown");
            if !path.is_symlink() {
                let file = fs::File::open(&path).expect("open");
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(owner.into());
                file.set_modified(time).expect("touched");
            }
        }
    }

    /// Brings the checkout to what a case says, touching nothing else.
    fn write(&mut self, items: &Items) {
        for (path, _) in self.on_disk.iter().rev() {
            let same_kind = match (items.get(path), &self.on_disk[path]) {
                (Some(Item::Folder(_)), Item::Folder(_)) => true,
                (Some(new), old) => new == old,
                (None, _) => false,
            };
            let path = self.folder.join(path);
            if !same_kind {
                let gone = if path.is_dir() && !path.is_symlink() {
                    fs::remove_dir(&path)
                } else {
                    fs::remove_file(&path)
                };
                gone.expect("removed");
            }
        }
        for (path, item) in items {
            if self.on_disk.get(path) != Some(item) {
                put(&self.folder.join(path), item);
            }
        }
        self.on_disk.clone_from(items);
    }

    /// Builds a case and holds what happened against the model.
    ///
    /// # Errors
    /// What the builder refused: a changed case need not be possible.
    pub(super) fn build(&mut self, case: &Case) -> Result<Built, String> {
        self.write(&case.context);
        let rendered = case.render();
        let lowered = lowered(case, &rendered.text)?;
        let target = match lowered.targets[0].snapshot {
            Input::Node(node) => Some(node),
            Input::Scratch => None,
        };
        let graph = lowered.graph;
        let sources = self.sources(case);
        let ports = Fake { world: self, case, graph: &graph, sources: &sources };
        let (events, _happenings) = crossbeam_channel::unbounded();
        let never = AtomicBool::new(false);
        let options = SolveOptions { jobs: 2, reads_targets: true, events, interrupted: &never };
        let targets: Vec<NodeId> = target.into_iter().collect();
        let solved = solve(&graph, &targets, &self.store, &ports, &options);
        let outcome = solved.map_err(|error| error.to_string())?;
        let image = layer_ids(&case.image);
        // The model reads the image's files too.
        ports.materialise(&image).map_err(|error| error.to_string())?;
        let model = Model {
            case,
            rendered: &rendered,
            graph: &graph,
            outcome: &outcome,
            store: &self.store,
            image,
            layers: &self.layers,
        };
        let sights = model.sights();
        let built = Built { graph, target, outcome };
        self.judge(&built, &sights);
        Ok(built)
    }

    fn sources(&self, case: &Case) -> Sources {
        let mut known = self.ignore.lock().expect("nobody panicked");
        let ignore = known
            .entry(case.ignore.clone())
            .or_insert_with(|| Patterns::parse(&case.ignore.join("\n")).expect("patterns"));
        let ignore = ignore.clone();
        let folder = Folder { path: self.folder.clone(), ignore, ignore_name: None };
        let folders = BTreeMap::from([("context".to_owned(), folder)]);
        Sources::new(&self.store, folders, &self.remotes)
    }

    /// No wrong hit, no needless miss, no layer on a base that is not its own.
    fn judge(&mut self, built: &Built, sights: &BTreeMap<NodeId, Sight>) {
        let Built { graph, outcome, .. } = built;
        let mut ran: Vec<(&NodeId, &Status)> = outcome.statuses.iter().collect();
        ran.sort_by_key(|(id, _)| **id);
        let before = self.seen.clone();
        for (id, status) in ran {
            let label = &graph.node(*id).steps[0].label;
            let sight = sights.get(id).unwrap_or_else(|| panic!("not in the model: {label}"));
            let snapshot = outcome.snapshots.get(id).expect("every step has a result");
            let (own, below) = snapshot.layers.split_last().expect("a layer of its own");
            let base = match base_of(&graph.node(*id).op) {
                Input::Node(base) => {
                    outcome.snapshots.get(&base).map(|base| base.layers.as_slice())
                }
                Input::Scratch => Some(&[][..]),
            };
            assert!(base.is_none_or(|base| base == below), "layers are mixed: {label}");
            if *status == Status::Cached {
                let made = self.made.get(own).unwrap_or_else(|| panic!("nobody made it: {label}"));
                assert!(made.contains(sight), "a wrong hit: {label}");
            } else {
                assert!(!before.contains(sight), "a needless miss: {label}");
                self.made.entry(own.clone()).or_default().insert(*sight);
                self.seen.insert(*sight);
            }
        }
    }

    /// The target's files without times, and what they hold.
    pub(super) fn files(&self, built: &Built) -> String {
        let layers = built.target.map(|node| built.outcome.snapshots[&node].layers.clone());
        listing(&self.store, &layers.unwrap_or_default())
    }

    /// The definition keys of all steps.
    pub(super) fn keys(&self, case: &Case, graph: &Graph) -> Vec<String> {
        let sources = self.sources(case);
        let ports = Fake { world: self, case, graph, sources: &sources };
        let mut keys: HashMap<NodeId, Key> = HashMap::new();
        for id in graph.ids() {
            let node = graph.node(id);
            let selected = match &node.op {
                Op::Copy(copy) => ports.digest_sources(copy, &HashMap::new()).ok(),
                Op::Git(git) => ports.digest_git(git).ok(),
                _ => None,
            };
            let key = key::key(node, &Inputs::Definition(&keys), selected.as_ref());
            keys.insert(id, key);
        }
        graph.ids().map(|id| keys[&id].hex()).collect()
    }
}

fn base_of(op: &Op) -> Input {
    match op {
        Op::Run(run) => run.base,
        Op::Copy(copy) => copy.base,
        Op::Mkdir(mkdir) => mkdir.base,
        _ => Input::Scratch,
    }
}

fn put(path: &Path, item: &Item) {
    match item {
        Item::Folder(mode) => {
            if !path.is_dir() {
                fs::create_dir(path).expect("a folder");
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("chmod");
        }
        Item::File { data, mode } => {
            fs::write(path, data).expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("chmod");
        }
        Item::Link(to) => symlink(to, path).expect("a link"),
    }
}

fn lowered(case: &Case, text: &str) -> Result<Box<Lowered>, String> {
    let source = Source::new("Dockerfile", text.to_owned());
    let (dockerfile, wrong) = tree::parse(&source);
    assert!(wrong.is_empty(), "the generator writes valid files: {wrong:?}\n{text}");
    let platform: Platform = case.platform.parse().expect("a platform");
    let mut build_args = case.args.clone();
    if let Some(proxy) = &case.proxy {
        build_args.insert("HTTP_PROXY".to_owned(), proxy.clone());
    }
    let options =
        LowerOptions { build_args, platforms: vec![platform.clone()], ..LowerOptions::default() };
    let image = BaseImage {
        digest: format!("sha256:{:064x}", case.image.manifest),
        config: ImageConfig {
            env: case.image.env.clone(),
            labels: BTreeMap::from([("l".to_owned(), case.image.label.clone())]),
            ..ImageConfig::default()
        },
        platform,
        diff_ids: diff_ids(&case.image).iter().map(ToString::to_string).collect(),
        unknown: false,
    };
    let mut known = Known::new();
    loop {
        match lower(&dockerfile, &options, &known) {
            Ok(Lowering::Done(lowered)) => return Ok(lowered),
            Ok(Lowering::NeedImages(requests)) => {
                known.extend(requests.into_iter().map(|request| (request.key, image.clone())));
            }
            Err(wrong) => return Err(format!("{wrong:?}")),
        }
    }
}

/// Stands for the digests of the layers' archives.
fn diff_ids(image: &Image) -> Vec<DiffId> {
    let ids = image.layers.iter().map(|items| {
        let hash = blake3::hash(format!("{} {items:?}", image.packing).as_bytes());
        format!("sha256:{}", hash.to_hex()).parse().expect("a digest")
    });
    ids.collect()
}

fn layer_ids(image: &Image) -> Vec<LayerId> {
    diff_ids(image).iter().map(LayerId::of_diff_id).collect()
}

fn listing(store: &Store, layers: &[LayerId]) -> String {
    let layers = Layers::open(store, layers).expect("in the store");
    let mut text = String::new();
    for (path, found) in layers.walk(Path::new("")) {
        let metadata = Metadata { mtime: Time::default(), ..found.entry.metadata };
        text.push_str(&format!("{} {:?} {metadata:?}\n", path.display(), found.entry.kind));
    }
    text
}

/// The builder's ports: COPY, ADD and WORKDIR are the real ones.
struct Fake<'a> {
    world: &'a World,
    case: &'a Case,
    graph: &'a Graph,
    sources: &'a Sources,
}

impl Fake<'_> {
    /// Everything that a RUN may see, as the operation says it.
    fn sees(&self, step: &StepRequest<'_>, run: &RunOp) -> String {
        let store = &self.world.store;
        let mut text = listing(store, &step.base.layers);
        for mount in &run.mounts {
            if let Mount::Bind { from: Input::Node(from), source, .. } = mount {
                let layers = Layers::open(store, &step.inputs[from].layers).expect("in the store");
                let top = kiln_cache::resolve(&layers, Path::new(source), true).expect("resolved");
                text.push_str(&format!("{:?}\n", layers.digest(&top)));
            }
        }
        let RunOp { args, env, cwd, user, network, scripts, hostname, .. } = run;
        let mounts: Vec<_> = run.mounts.iter().map(Mount::target).collect();
        text.push_str(&format!(
            "{args:?} {env:?} {cwd} {user} {network:?} {scripts:?} {hostname} {mounts:?} {:?}",
            step.node.platform
        ));
        text
    }

    fn command(&self, step: &StepRequest<'_>, run: &RunOp) -> Result<StepOutput, StepError> {
        let store = &self.world.store;
        let draft = store.draft().map_err(StepError::environment)?;
        let writer = draft.writer();
        let base = Layers::open(store, &step.base.layers).map_err(StepError::environment)?;
        let text = run.scripts.first().map_or_else(
            || run.args.last().expect("a command").trim(),
            |script| script.data.trim_start_matches("#!/bin/fake\n").trim(),
        );
        for mount in &run.mounts {
            if let Mount::Bind { from: Input::Node(from), source, .. } = mount {
                let layers = Layers::open(store, &step.inputs[from].layers);
                let layers = layers.map_err(StepError::environment)?;
                let shown = kiln_cache::resolve(&layers, Path::new(source), true);
                let there = shown.is_ok_and(|path| layers.digest(&path).is_ok());
                if !there {
                    return Err(StepError::new(Kind::Input, format!("{source}: not found")));
                }
            }
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let write = |name: &str, text: &str| {
            let path = Path::new("out").join(name);
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let nanos = now.expect("after 1970").subsec_nanos();
            let metadata =
                Metadata { mode: 0o644, mtime: Time { secs: 1, nanos }, ..Metadata::default() };
            writer.parents(&path, &base)?;
            writer.file(&path, &metadata, &mut text.as_bytes()).map(|_| ())
        };
        let done = match words.as_slice() {
            ["sees", name, ..] => {
                let seen = blake3::hash(self.sees(step, run).as_bytes());
                write(name, &seen.to_hex())
            }
            ["const", name, ..] => write(name, "always the same"),
            ["part", name, path, ..] => {
                let part = base.digest(Path::new(path)).map(|digest| digest.hex());
                write(name, &part.unwrap_or_default())
            }
            ["rm", path, ..] if base.entry(Path::new(path)).is_some() => writer
                .parents(Path::new(path), &base)
                .and_then(|()| writer.whiteout(Path::new(path))),
            ["rm", ..] => Ok(()),
            _ => panic!("an unknown command: {text}"),
        };
        done.map_err(StepError::environment)?;
        let tree = writer.finish().map_err(StepError::environment)?;
        Ok(StepOutput { draft, tree })
    }
}

impl Ports for Fake<'_> {
    fn digest_sources(
        &self,
        copy: &CopyOp,
        inputs: &HashMap<NodeId, Snapshot>,
    ) -> Result<ContentDigest, StepError> {
        copy::digest(&self.world.store, self.graph, self.sources, copy, inputs)
    }

    fn digest_git(&self, _: &GitRef) -> Result<ContentDigest, StepError> {
        Ok(blake3::hash(&self.case.commit.to_le_bytes()).into())
    }

    fn earlier(&self, _: NodeId) -> Vec<Key> {
        Vec::new()
    }

    fn materialise(&self, layers: &[LayerId]) -> Result<(), StepError> {
        let store = &self.world.store;
        for (id, items) in layer_ids(&self.case.image).into_iter().zip(&self.case.image.layers) {
            if !layers.contains(&id) || store.has_layer(&id).map_err(StepError::environment)? {
                continue;
            }
            let draft = store.draft().map_err(StepError::environment)?;
            let writer = draft.writer();
            for (path, item) in items {
                let path = Path::new(path);
                let made = match item {
                    Item::Folder(mode) => {
                        writer.directory(path, &Metadata { mode: *mode, ..Metadata::default() })
                    }
                    Item::File { data, mode } => {
                        let metadata = Metadata { mode: *mode, ..Metadata::default() };
                        writer.file(path, &metadata, &mut data.as_bytes()).map(|_| ())
                    }
                    Item::Link(to) => writer.symlink(path, &Metadata::default(), Path::new(to)),
                };
                made.map_err(StepError::environment)?;
            }
            let tree = writer.finish().map_err(StepError::environment)?;
            draft.publish(id, tree).map_err(StepError::environment)?;
        }
        Ok(())
    }

    fn run(&self, step: &StepRequest<'_>, _: &dyn Log) -> Result<StepOutput, StepError> {
        let store = &self.world.store;
        let draft = || store.draft().map_err(StepError::environment);
        match &step.node.op {
            Op::Run(run) => self.command(step, run),
            Op::Copy(op) => {
                let draft = draft()?;
                let writer = draft.writer();
                copy::copy(store, self.graph, self.sources, op, step, &writer)?;
                let tree = writer.finish().map_err(StepError::environment)?;
                Ok(StepOutput { draft, tree })
            }
            Op::Mkdir(op) => {
                let draft = draft()?;
                let writer = draft.writer();
                copy::mkdir(store, op, step, &writer)?;
                let tree = writer.finish().map_err(StepError::environment)?;
                Ok(StepOutput { draft, tree })
            }
            Op::Git(_) => {
                let draft = draft()?;
                let writer = draft.writer();
                let commit = self.case.commit.to_string();
                let metadata = Metadata { mode: 0o644, ..Metadata::default() };
                writer
                    .file(Path::new("commit"), &metadata, &mut commit.as_bytes())
                    .map_err(StepError::environment)?;
                let tree = writer.finish().map_err(StepError::environment)?;
                Ok(StepOutput { draft, tree })
            }
            _ => Err(StepError::new(Kind::Environment, "not a step")),
        }
    }

    fn stop(&self) {}

    fn elsewhere(&self, _: &[kiln_cache::Key]) -> HashMap<kiln_cache::Key, kiln_cache::Record> {
        HashMap::new()
    }

    fn bring(&self, _: &[kiln_cache::LayerId]) -> Result<bool, StepError> {
        Ok(true)
    }
}
