//! What each step may see, worked out from the description of the build (`case.rs`) and the files that earlier steps
//! made: no keys, no patterns, no selection of the builder's. Two steps with equal sights have to share a result, two
//! with different ones must not.
//!
//! Where the builder counts more than a step can see, the model does too, and says so: these are the listed needless
//! misses (docs/reliability.md).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;

use kiln_cache::{Kind, LayerId, Layers, Store};
use kiln_parser::graph::{Graph, NodeId, Op};
use kiln_solver::outcome::Outcome;

use super::case::{Case, Copy, Form, From, GIT, Item, Items, Line, Mount, Rendered, Run};

/// A digest of what a step may see.
pub(super) type Sight = [u8; 32];

/// One file as it counts: kind, mode, owner, content.
#[derive(Clone, Debug)]
struct Piece {
    shown: String,
    link: Option<String>,
    folder: bool,
}

type Pieces = BTreeMap<String, Piece>;

/// Where a build stands in a stage.
#[derive(Clone)]
struct Scope {
    /// `None`: the empty file system.
    node: Option<NodeId>,
    on_image: bool,
    env: Vec<(String, String)>,
    cwd: String,
    user: String,
    shell: String,
}

pub(super) struct Model<'a> {
    pub(super) case: &'a Case,
    pub(super) rendered: &'a Rendered,
    pub(super) graph: &'a Graph,
    pub(super) outcome: &'a Outcome,
    pub(super) store: &'a Store,
    pub(super) image: Vec<LayerId>,
    pub(super) layers: &'a Mutex<HashMap<LayerId, String>>,
}

/// Nodes by stage, line and, for parts of the context that mounts show, path.
type Places = HashMap<(usize, usize, String), NodeId>;

impl Model<'_> {
    /// What every step of the build may see.
    pub(super) fn sights(&self) -> BTreeMap<NodeId, Sight> {
        let places = self.places();
        let context = filtered(&self.case.context, &self.case.ignore);
        let mut sights = BTreeMap::new();
        for id in self.graph.ids().filter(|id| matches!(self.graph.node(*id).op, Op::Git(_))) {
            self.note(id, &format!("git {}", self.case.commit), &mut sights);
        }
        let mut ends: Vec<Option<Scope>> = Vec::new();
        for (number, stage) in self.case.stages.iter().enumerate() {
            let mut scope = match stage.from {
                From::Stage(other) => ends[other].clone(),
                from => Some(self.scope(from == From::Image)),
            };
            for (at, line) in stage.lines.iter().enumerate() {
                let Some(before) = &mut scope else { break };
                before.take(line, &self.case.args);
                if !line.makes_layer(before) {
                    continue;
                }
                // A stage that the target does not need has no nodes.
                let Some(&node) = places.get(&(number, at, String::new())) else {
                    scope = None;
                    break;
                };
                let here = |part: &str| places[&(number, at, part.to_owned())];
                let seen = self.sight(line, before, &ends, &context, &here);
                self.note(node, &seen, &mut sights);
                if let Line::Run(run) = line {
                    for (part, seen) in context_mounts(run, &context) {
                        let node = here(&part);
                        self.note(node, &seen, &mut sights);
                    }
                }
                before.node = Some(node);
                before.on_image = false;
            }
            ends.push(scope);
        }
        sights
    }

    /// Several instructions that became one step see the same.
    fn note(&self, node: NodeId, seen: &str, sights: &mut BTreeMap<NodeId, Sight>) {
        let sight = *blake3::hash(seen.as_bytes()).as_bytes();
        let before = sights.insert(node, sight);
        let label = &self.graph.node(node).steps[0].label;
        assert!(before.is_none_or(|before| before == sight), "merged, but not the same: {label}");
    }

    fn scope(&self, on_image: bool) -> Scope {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let env = if on_image {
            self.case.image.env.clone()
        } else {
            vec![("PATH".to_owned(), path.to_owned())]
        };
        let text = str::to_owned;
        Scope { node: None, on_image, env, cwd: text("/"), user: text(""), shell: text("/bin/sh") }
    }

    fn places(&self) -> Places {
        let mut starts: Vec<(usize, usize, usize)> = Vec::new();
        for (stage, lines) in self.rendered.starts.iter().enumerate() {
            starts.extend(lines.iter().enumerate().map(|(line, &start)| (start, stage, line)));
        }
        let mut places = Places::new();
        let is_step = |id: &NodeId| {
            matches!(self.graph.node(*id).op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_))
        };
        for id in self.graph.ids().filter(is_step) {
            for step in &self.graph.node(id).steps {
                let begin = usize::try_from(step.span.start).expect("fits");
                let after = starts.partition_point(|(start, ..)| *start <= begin);
                let Some(&(_, stage, line)) = after.checked_sub(1).map(|at| &starts[at]) else {
                    continue;
                };
                let part = step.text.strip_prefix("[internal] load ");
                let part = part.and_then(|part| part.strip_suffix(" of context context"));
                places.insert((stage, line, part.unwrap_or_default().to_owned()), id);
            }
        }
        places
    }

    /// The identity of a file system: its layers, bottom to top. Listed: what a later layer hides still counts.
    fn chain(&self, scope: &Scope) -> Vec<String> {
        let Some(node) = scope.node else {
            let image = if scope.on_image { self.image.as_slice() } else { &[] };
            return image.iter().map(|id| self.layer(id)).collect();
        };
        let snapshot = self.outcome.snapshots.get(&node).expect("a step that was looked at");
        snapshot.layers.iter().map(|id| self.layer(id)).collect()
    }

    fn layer(&self, id: &LayerId) -> String {
        let mut known = self.layers.lock().expect("nobody panicked");
        let content = known.entry(id.clone()).or_insert_with(|| {
            let mut hasher = blake3::Hasher::new();
            for (path, entry) in self.store.layer_tree(id).expect("in the store").walk() {
                hasher.update(format!("{} {}\n", path.display(), shown(entry)).as_bytes());
            }
            hasher.finalize().to_hex().to_string()
        });
        content.clone()
    }

    /// The files of a stage's end.
    fn files(&self, scope: &Scope) -> Pieces {
        let layers = match scope.node {
            Some(node) => self.outcome.snapshots[&node].layers.clone(),
            None if scope.on_image => self.image.clone(),
            None => Vec::new(),
        };
        let layers = Layers::open(self.store, &layers).expect("in the store");
        let walked = layers.walk(Path::new("")).into_iter().map(|(path, found)| {
            let piece = Piece {
                shown: shown(&found.entry),
                link: match &found.entry.kind {
                    Kind::Symlink { target } => Some(target.display().to_string()),
                    _ => None,
                },
                folder: found.entry.is_dir(),
            };
            (path.display().to_string(), piece)
        });
        walked.collect()
    }

    fn sight(
        &self,
        line: &Line,
        scope: &Scope,
        ends: &[Option<Scope>],
        context: &Pieces,
        here: &dyn Fn(&str) -> NodeId,
    ) -> String {
        let base = self.chain(scope);
        match line {
            Line::Run(run) => {
                let mounts: Vec<String> =
                    run.mounts.iter().map(|mount| self.mount(mount, ends, here)).collect();
                let platform = self.case.platform;
                format!("{base:?} {} {mounts:?} {platform} {}", scope.run(run), run.network_none)
            }
            Line::Copy(copy) => {
                let selected = match copy.from {
                    None => {
                        // Of a checkout that is not there, the context has nothing; its commit is all of it.
                        let git = copy.sources.iter().any(|source| source == GIT);
                        let mut found = selected(copy, context);
                        found.push(
                            git.then(|| format!("{}", self.case.commit)).into_iter().collect(),
                        );
                        found
                    }
                    Some(stage) => {
                        let end = ends[stage].as_ref().expect("what is read is built");
                        selected(copy, &self.files(end))
                    }
                };
                let flags = (&copy.chown, &copy.chmod, copy.parents, &copy.exclude, copy.add);
                // --chmod makes it an ordinary COPY (BuildKit's rule).
                let link = copy.link && copy.chmod.is_none();
                let base = if link { Vec::new() } else { base };
                let dest = scope.below_cwd(&scope.expand(&copy.dest));
                format!("copy {base:?} {dest} {link} {flags:?} {selected:?}")
            }
            Line::Inline { name, text, dest } => {
                format!("inline {base:?} {name} {} {dest}", scope.expand(text))
            }
            Line::Workdir(_) => format!("mkdir {base:?} {} {}", scope.cwd, scope.user),
            _ => unreachable!("makes no layer"),
        }
    }

    /// A mount as the step sees it. Of secrets and caches that is everything but what they hold.
    fn mount(
        &self,
        mount: &Mount,
        ends: &[Option<Scope>],
        here: &dyn Fn(&str) -> NodeId,
    ) -> String {
        match mount {
            Mount::Bind { from: Some(from), source, target, write } => {
                let end = ends[*from].as_ref().expect("what is read is built");
                let seen = match source.as_str() {
                    // Listed: of a whole snapshot, the layers count.
                    "/" => self.chain(end),
                    part => below(&self.files(end), &part[1..]),
                };
                format!("bind {source} {target} {write} {seen:?}")
            }
            Mount::Bind { from: None, source, target, write } => {
                let part = format!("/{}", source.trim_matches('/'));
                let node = Some(here(&part));
                let end = Scope { node, ..self.scope(false) };
                let seen = below(&self.files(&end), source.trim_matches('/'));
                format!("bind {source} {target} {write} {seen:?}")
            }
            Mount::Cache { id, target } => format!("cache {} {target}", id.is_none()),
            Mount::Secret { id } => format!("secret {id}"),
            Mount::Tmpfs { target, size } => format!("tmpfs {target} {size}"),
        }
    }
}

impl Scope {
    fn set(&mut self, name: &str, value: String) {
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.env.push((name.to_owned(), value)),
        }
    }

    /// What an instruction changes for those behind it.
    fn take(&mut self, line: &Line, args: &BTreeMap<String, String>) {
        match line {
            Line::Env(name, value) => self.set(name, self.expand(value)),
            Line::Arg(name, default) => {
                let value = args.get(name).cloned().or_else(|| default.clone());
                if let Some(value) = value {
                    self.set(name, value);
                }
            }
            Line::User(user) => self.user.clone_from(user),
            Line::Shell(program) => self.shell.clone_from(program),
            Line::Workdir(path) => {
                self.cwd = self.below_cwd(&self.expand(path)).trim_end_matches('/').to_owned();
                if self.cwd.is_empty() {
                    self.cwd.push('/');
                }
            }
            _ => {}
        }
    }

    fn expand(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for name in ["A", "B", "C"] {
            let value = self.env.iter().find(|(known, _)| known == name);
            out = out.replace(&format!("${{{name}}}"), value.map_or("", |(_, value)| value));
        }
        out
    }

    fn below_cwd(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        format!("{}/{path}", self.cwd.trim_end_matches('/'))
    }

    /// Everything of a RUN but its file systems.
    fn run(&self, run: &Run) -> String {
        let Self { env, cwd, user, shell, .. } = self;
        // An exec form has no shell.
        let shell = if run.form == Form::Exec { "" } else { shell };
        let form = match run.form {
            Form::Shell => 's',
            Form::Exec => 'e',
            Form::Heredoc => 'h',
            Form::Script => '#',
        };
        format!("run {form} {} {env:?} {cwd} {user} {shell}", run.command)
    }
}

impl Line {
    fn makes_layer(&self, scope: &Scope) -> bool {
        match self {
            Self::Run(_) | Self::Copy(_) | Self::Inline { .. } => true,
            Self::Workdir(_) => scope.cwd != "/",
            _ => false,
        }
    }
}

fn shown(entry: &kiln_cache::Entry) -> String {
    let metadata = &entry.metadata;
    let kind = match &entry.kind {
        Kind::File { size, data } => format!("file {size} {}", blake3::Hash::from(*data)),
        kind => format!("{kind:?}"),
    };
    format!("{kind} {:o} {} {}", metadata.mode, metadata.uid, metadata.gid)
}

/// The context as the builder may see it.
fn filtered(items: &Items, ignore: &[String]) -> Pieces {
    let left_out = |path: &str| {
        let mut out = false;
        for pattern in ignore {
            match pattern.strip_prefix('!') {
                Some(pattern) if matches(pattern, path) => out = false,
                None if matches(pattern, path) => out = true,
                _ => {}
            }
        }
        out
    };
    let kept = |path: &str| {
        let beneath = |other: &str| other.starts_with(&format!("{path}/")) && !left_out(other);
        !left_out(path) || items.keys().any(|other| beneath(other))
    };
    let found = items.iter().filter(|(path, _)| kept(path)).map(|(path, item)| {
        let (shown, link) = match item {
            Item::Folder(mode) => (format!("folder {mode:o}"), None),
            Item::File { data, mode } => (format!("file {data} {mode:o}"), None),
            Item::Link(to) => (format!("link {to}"), Some(to.clone())),
        };
        let folder = matches!(item, Item::Folder(_));
        (path.clone(), Piece { shown, link, folder })
    });
    found.collect()
}

/// Whether a pattern names a path or a folder above it. Of wildcards, no more than the generator writes.
fn matches(pattern: &str, path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    (1..=parts.len()).any(|depth| match pattern.strip_prefix("**/") {
        Some(last) => name_matches(last, &parts[..depth]) || suffix(last, &parts[..depth]),
        None => name_matches(pattern, &parts[..depth]),
    })
}

fn suffix(pattern: &str, parts: &[&str]) -> bool {
    (1..parts.len()).any(|from| name_matches(pattern, &parts[from..]))
}

fn name_matches(pattern: &str, parts: &[&str]) -> bool {
    let patterns: Vec<&str> = pattern.split('/').collect();
    patterns.len() == parts.len()
        && patterns.iter().zip(parts).all(|(pattern, part)| match pattern.split_once('*') {
            Some((head, tail)) => {
                part.len() >= head.len() + tail.len()
                    && part.starts_with(head)
                    && part.ends_with(tail)
            }
            None if pattern.contains('?') => {
                pattern.len() == part.len()
                    && pattern.bytes().zip(part.bytes()).all(|(a, b)| a == b'?' || a == b)
            }
            None => pattern == part,
        })
}

/// Links followed, of the path's last part and of the folder it is in.
fn follow(path: &str, pieces: &Pieces) -> String {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let Some(target) = pieces.get(&path).and_then(|piece| piece.link.as_ref()) else { break };
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        path = if parent.is_empty() { target.clone() } else { format!("{parent}/{target}") };
    }
    path
}

/// What is at a path and beneath, by relative path.
fn below(pieces: &Pieces, path: &str) -> Vec<String> {
    let path = follow(path, pieces);
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let top = pieces.get(&path).map(|piece| format!(". {}", piece.shown));
    let beneath = pieces.iter().filter_map(|(other, piece)| {
        let relative = other.strip_prefix(&prefix)?;
        Some(format!("{relative} {}", piece.shown))
    });
    top.into_iter().chain(beneath).collect()
}

/// What a COPY reads.
fn selected(copy: &Copy, pieces: &Pieces) -> Vec<Vec<String>> {
    copy.sources.iter().map(|source| select(copy, source, pieces)).collect()
}

fn select(copy: &Copy, source: &str, pieces: &Pieces) -> Vec<String> {
    // Listed: what a source is called counts, also where it is a folder, whose name nobody sees.
    let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut lines = vec![format!("called {name}")];
    let cleaned = source.trim_start_matches("./").trim_matches('/');
    let cleaned = if cleaned == "." { "" } else { cleaned };
    if copy.parents {
        let (pivot, pattern) = source.split_once("/./").unwrap_or(("", cleaned));
        let pivot = pivot.trim_start_matches("./").to_owned();
        lines.extend(listed(pieces, &pivot, &copy.exclude, &|path| matches(pattern, path)));
        return lines;
    }
    if !cleaned.contains(['*', '?']) {
        lines.extend(item(copy, cleaned, pieces));
        return lines;
    }
    for (path, piece) in pieces {
        let parts: Vec<&str> = path.split('/').collect();
        let last = parts[parts.len() - 1];
        let excluded = copy.exclude.iter().any(|pattern| matches(pattern, last));
        let is_file = !piece.folder && piece.link.is_none();
        if name_matches(cleaned, &parts) && !(is_file && excluded) {
            lines.extend(item(copy, path, pieces));
        }
    }
    lines
}

fn item(copy: &Copy, path: &str, pieces: &Pieces) -> Vec<String> {
    let real = follow(path, pieces);
    let folder = real.is_empty() || pieces.get(&real).is_some_and(|piece| piece.folder);
    let name = path.rsplit('/').next().unwrap_or_default();
    if !folder {
        let shown = pieces.get(&real).map(|piece| piece.shown.clone());
        return vec![format!("{name}: {shown:?}")];
    }
    if copy.exclude.is_empty() {
        // The folder's own mode is not copied.
        let found = below(pieces, &real).into_iter().filter(|line| !line.starts_with(". "));
        return found.collect();
    }
    listed(pieces, &real, &copy.exclude, &|_| true)
}

/// What of a folder is taken, with the folders that lead there.
fn listed(
    pieces: &Pieces,
    top: &str,
    exclude: &[String],
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let prefix = if top.is_empty() { String::new() } else { format!("{top}/") };
    let inside: Vec<(&str, &Piece)> = pieces
        .iter()
        .filter_map(|(path, piece)| Some((path.strip_prefix(&prefix)?, piece)))
        .collect();
    let taken = |path: &str| wanted(path) && !exclude.iter().any(|pattern| matches(pattern, path));
    let kept = |path: &str| {
        let inner = format!("{path}/");
        taken(path) || inside.iter().any(|(other, _)| other.starts_with(&inner) && taken(other))
    };
    let found = inside.iter().filter(|(path, _)| kept(path));
    found.map(|(path, piece)| format!("{path} {}", piece.shown)).collect()
}

/// The parts of the context that a RUN's mounts show: each is a step of its own.
fn context_mounts(run: &Run, context: &Pieces) -> Vec<(String, String)> {
    let sources = run.mounts.iter().filter_map(|mount| match mount {
        Mount::Bind { from: None, source, .. } => Some(source.trim_matches('/')),
        _ => None,
    });
    let parts = sources.map(|source| {
        let seen = if source.is_empty() {
            below(context, "")
        } else {
            listed(context, "", &[], &|path| matches(source, path))
        };
        (format!("/{source}"), format!("part {source} {seen:?}"))
    });
    parts.collect()
}
