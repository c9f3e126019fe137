//! COPY, ADD and WORKDIR: nodes of the graph as requests of the executor, patterns compiled.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_cache::{
    ContentDigest, Context, Kind, LayerWriter, Layers, Root, ScanFilter, Store, Time, Verdict, View,
};
use kiln_executor::copy::{
    self as executor, CopyError, CopySpec, PathMatch, Selection, Source, SourcePath, Unpack,
};
use kiln_executor::mkdir::MkdirSpec;
use kiln_executor::{chmod, user};
use kiln_image::limits::Budget;
use kiln_image::unpack::{AddTarget, add_archive, is_archive};
use kiln_parser::graph::{
    Chmod, CopyFrom, CopyOp, CopySource, Graph, HttpOp, Input, MkdirOp, NodeId, Op,
    Unpack as UnpackRule,
};
use kiln_parser::ignore::{self, Glob, Patterns};
use kiln_solver::ports::{Kind as Fault, StepError, StepRequest};
use kiln_solver::snapshot::Snapshot;

use super::remote::Remotes;

/// The folders of the caller that a build may read.
pub(crate) struct Sources {
    folders: BTreeMap<String, Folder>,
    open: Mutex<HashMap<String, Arc<Context>>>,
    store: Store,
    remotes: Arc<Remotes>,
}

/// One folder with what its ignore file leaves out.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) ignore: Patterns,
    /// What the patterns came from, for errors.
    pub(crate) ignore_name: Option<String>,
}

struct Filter(Patterns);

impl ScanFilter for Filter {
    fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
        if self.0.is_empty() || path.as_os_str().is_empty() {
            return Verdict::Include;
        }
        match self.0.verdict(&path.to_string_lossy(), is_dir) {
            ignore::Verdict::Include => Verdict::Include,
            ignore::Verdict::Exclude => Verdict::Exclude,
            ignore::Verdict::ExcludeButDescend => Verdict::ExcludeButDescend,
        }
    }
}

impl Sources {
    /// Nothing is read before a step asks for it.
    pub(crate) fn new(
        store: &Store,
        folders: BTreeMap<String, Folder>,
        remotes: &Arc<Remotes>,
    ) -> Self {
        Self { folders, open: Mutex::default(), store: store.clone(), remotes: Arc::clone(remotes) }
    }

    fn context(&self, name: &str) -> Result<Arc<Context>, StepError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = open.get(name) {
            return Ok(Arc::clone(context));
        }
        let Some(folder) = self.folders.get(name) else {
            let message = format!("the build has no context `{name}`");
            return Err(StepError::new(Fault::Input, message));
        };
        let filter = Arc::new(Filter(folder.ignore.clone()));
        let context = Context::open(&self.store, &folder.path, name, filter);
        let context = Arc::new(context.map_err(StepError::environment)?);
        open.insert(name.to_owned(), Arc::clone(&context));
        Ok(context)
    }

    /// Why a path of a context is not there, if its ignore file is the reason.
    fn ignored(&self, name: &str, path: &str) -> Option<String> {
        let folder = self.folders.get(name)?;
        let relative = ignore::clean(path);
        let there = folder.path.join(&relative).symlink_metadata().is_ok();
        let ignore_name = folder.ignore_name.as_deref()?;
        (there && folder.ignore.matches(&relative))
            .then(|| format!("the file is there, but `{ignore_name}` excludes it"))
    }
}

/// A view that a COPY reads, kept alive while it does.
enum Opened {
    Context(Arc<Context>),
    Layers(Layers),
    Download { name: String, file: File, mtime: Time },
    Nothing,
}

impl Opened {
    fn view(&self) -> Option<&dyn View> {
        match self {
            Self::Context(context) => Some(context.as_ref()),
            Self::Layers(layers) => Some(layers),
            Self::Download { .. } | Self::Nothing => None,
        }
    }
}

fn open(
    store: &Store,
    graph: &Graph,
    sources: &Sources,
    source: &CopySource,
    inputs: &HashMap<NodeId, Snapshot>,
) -> Result<Opened, StepError> {
    match &source.from {
        CopyFrom::Inline(_) => Ok(Opened::Nothing),
        CopyFrom::Context(id) => match &graph.node(*id).op {
            Op::Context { name } => Ok(Opened::Context(sources.context(name)?)),
            _ => Err(StepError::new(Fault::Environment, "not a context")),
        },
        CopyFrom::Snapshot(input) => layers(store, *input, inputs).map(Opened::Layers),
        CopyFrom::Remote(id) => match &graph.node(*id).op {
            Op::Http(http) => download(store, sources, http),
            _ => Err(StepError::new(Fault::Environment, "not a download")),
        },
    }
}

/// A file from the network, kept as a blob of the store.
fn download(store: &Store, sources: &Sources, http: &HttpOp) -> Result<Opened, StepError> {
    let found = sources.remotes.download(http)?;
    let file = store.open_blob(&found.digest).map_err(StepError::environment)?;
    let file = file.ok_or_else(|| {
        StepError::new(Fault::Environment, format!("`{}` is not in the store any more", http.url))
    })?;
    let mtime = Time { secs: found.last_modified.unwrap_or(0), nanos: 0 };
    Ok(Opened::Download { name: http.filename.clone(), file, mtime })
}

fn layers(
    store: &Store,
    input: Input,
    inputs: &HashMap<NodeId, Snapshot>,
) -> Result<Layers, StepError> {
    let ids = match input {
        Input::Scratch => Vec::new(),
        Input::Node(id) => inputs.get(&id).map(|s| s.layers.clone()).unwrap_or_default(),
    };
    Layers::open(store, &ids).map_err(StepError::environment)
}

/// What COPY does, apart from whose ids `--chown` names.
fn spec(op: &CopyOp, owner: Option<(u32, u32)>) -> Result<CopySpec, StepError> {
    let exclude = if op.exclude.is_empty() {
        None
    } else {
        let patterns = Patterns::new(op.exclude.iter().map(String::as_str));
        let patterns = patterns.map_err(|e| StepError::new(Fault::Input, e.to_string()))?;
        let matches: PathMatch = Arc::new(move |path: &str| patterns.matches(path));
        Some(matches)
    };
    Ok(CopySpec {
        dest: op.dest.clone(),
        owner,
        chmod: op.chmod.as_ref().map(|mode| match mode {
            Chmod::Octal(mode) => chmod::Chmod::Octal(*mode),
            Chmod::Symbolic(text) => chmod::Chmod::Symbolic(text.clone()),
        }),
        link: op.link,
        parents: op.parents,
        exclude,
        time: None,
    })
}

fn source<'a>(
    source: &'a CopySource,
    opened: &'a Opened,
    parents: bool,
) -> Result<Source<'a>, StepError> {
    match (&source.from, opened.view()) {
        (CopyFrom::Inline(file), _) => {
            Ok(Source::Inline { name: &file.name, data: file.data.as_bytes() })
        }
        _ if matches!(opened, Opened::Download { .. }) => downloaded(source, opened),
        (_, Some(view)) => Ok(Source::View {
            view,
            path: source_path(&source.path, parents)?,
            shown: shown(&source.path),
            unpack: source.unpack == UnpackRule::IfArchive,
        }),
        (_, None) => Err(StepError::new(Fault::Environment, "a source has no files")),
    }
}

/// A download: readable by its owner alone, as BuildKit has it.
fn downloaded<'a>(source: &CopySource, opened: &Opened) -> Result<Source<'a>, StepError> {
    let Opened::Download { name, file, mtime } = opened else {
        return Err(StepError::new(Fault::Environment, "no download"));
    };
    let file = file.try_clone().map_err(StepError::environment)?;
    let unpack = source.unpack == UnpackRule::IfArchive;
    Ok(Source::File { name: name.clone(), file, mode: 0o600, mtime: *mtime, unpack })
}

fn shown(path: &str) -> String {
    format!("/{}", ignore::clean(path.trim_start_matches('/')))
}

fn glob(pattern: &str) -> Result<PathMatch, StepError> {
    let glob = Glob::new(pattern).map_err(|e| StepError::new(Fault::Input, e.to_string()))?;
    Ok(Arc::new(move |path: &str| glob.matches(path)))
}

/// Compiles a source: `..` and a leading `/` cannot leave its root.
fn source_path(path: &str, parents: bool) -> Result<SourcePath, StepError> {
    if parents {
        return parents_path(path);
    }
    let cleaned = ignore::clean(&format!("/{path}"));
    if !Glob::is_pattern(&cleaned) {
        return Ok(SourcePath::Plain(PathBuf::from(ignore::unescape(&cleaned))));
    }
    let levels = Some(cleaned.split('/').count());
    Ok(SourcePath::Pattern { prefix: literal_prefix(&cleaned), matches: glob(&cleaned)?, levels })
}

/// The folders in front of the first wildcard.
fn literal_prefix(pattern: &str) -> PathBuf {
    let parts: Vec<&str> = pattern.split('/').take_while(|part| !Glob::is_pattern(part)).collect();
    parts.iter().map(|part| ignore::unescape(part)).collect()
}

/// `--parents`: what stands in front of `/./` is left out of the destination.
fn parents_path(path: &str) -> Result<SourcePath, StepError> {
    let (pivot, pattern) = path.split_once("/./").unwrap_or(("", path));
    let (pivot, pattern) =
        (ignore::clean(&format!("/{pivot}")), ignore::clean(&format!("/{pattern}")));
    let wild = Glob::is_pattern(&pivot) || Glob::is_pattern(&pattern);
    let patterns = Patterns::new([pattern.as_str()]);
    let patterns = patterns.map_err(|e| StepError::new(Fault::Input, e.to_string()))?;
    Ok(SourcePath::Parents {
        pivot: PathBuf::from(ignore::unescape(&pivot)),
        pattern: Arc::new(move |path: &str| patterns.matches(path)),
        literal: (!wild).then(|| PathBuf::from(ignore::unescape(&pattern))),
        prefix: literal_prefix(&pattern),
    })
}

/// Identity of what a COPY reads.
pub(crate) fn digest(
    store: &Store,
    graph: &Graph,
    sources: &Sources,
    op: &CopyOp,
    inputs: &HashMap<NodeId, Snapshot>,
) -> Result<ContentDigest, StepError> {
    let spec = spec(op, None)?;
    let mut hasher = blake3::Hasher::new();
    for copy_source in &op.sources {
        let opened = open(store, graph, sources, copy_source, inputs)?;
        let source = source(copy_source, &opened, op.parents)?;
        let selection = select(&spec, &source, copy_source, graph, sources)?;
        let digest = selection.digest().map_err(StepError::environment)?;
        hasher.update(digest.as_bytes());
    }
    Ok(hasher.finalize().into())
}

fn select(
    spec: &CopySpec,
    source: &Source<'_>,
    copy_source: &CopySource,
    graph: &Graph,
    sources: &Sources,
) -> Result<Selection, StepError> {
    executor::select(spec, source).map_err(|error| {
        let mut failed = copy_error(&error);
        if let CopyFrom::Context(id) = &copy_source.from
            && let Op::Context { name } = &graph.node(*id).op
            && let Some(why) = sources.ignored(name, &copy_source.path)
        {
            failed.help = Some(why);
        }
        failed
    })
}

fn copy_error(error: &CopyError) -> StepError {
    StepError { kind: Fault::Input, message: error.to_string(), help: error.help() }
}

/// Copies into a new layer.
pub(crate) fn copy(
    store: &Store,
    graph: &Graph,
    sources: &Sources,
    op: &CopyOp,
    step: &StepRequest<'_>,
    writer: &LayerWriter,
) -> Result<(), StepError> {
    let base = if op.link { Input::Scratch } else { op.base };
    let dest = layers(store, base, step.inputs)?;
    let owner = match &op.chown {
        None => None,
        Some(text) => Some(owner(text, &dest, op.link)?),
    };
    let spec = spec(op, owner)?;
    let opened = op
        .sources
        .iter()
        .map(|source| open(store, graph, sources, source, step.inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let mut selected = Vec::with_capacity(opened.len());
    for (copy_source, opened) in op.sources.iter().zip(&opened) {
        let source = source(copy_source, opened, op.parents)?;
        let selection = select(&spec, &source, copy_source, graph, sources)?;
        selected.push((source, selection));
    }
    executor::copy(&spec, &selected, &dest, writer, &Archives).map_err(|error| copy_error(&error))
}

/// `--chown`: names are looked up in the image that is copied into.
fn owner(text: &str, dest: &dyn View, link: bool) -> Result<(u32, u32), StepError> {
    if link && !user::is_numeric_chown(text) {
        return Err(StepError {
            kind: Fault::Input,
            message: format!("invalid user index: -1 (`--chown={text}` with --link)"),
            help: Some(
                "--link knows no image to look names up in: give numbers, or leave --link out"
                    .into(),
            ),
        });
    }
    if user::is_numeric_chown(text) {
        return Ok(user::lookup_chown("", "", text));
    }
    if dest.children(Path::new("")).is_empty() {
        return Err(StepError {
            kind: Fault::Input,
            message: format!(
                "cannot look up `{text}`: the image has no files yet, so no /etc/passwd"
            ),
            help: Some("give numbers, such as 1000:1000".to_owned()),
        });
    }
    let passwd = user::read_small(dest, Path::new("etc/passwd"));
    let group = user::read_small(dest, Path::new("etc/group"));
    Ok(user::lookup_chown(&passwd, &group, text))
}

/// WORKDIR: the directory, for the stage's user.
pub(crate) fn mkdir(
    store: &Store,
    op: &MkdirOp,
    step: &StepRequest<'_>,
    writer: &LayerWriter,
) -> Result<(), StepError> {
    let dest = layers(store, op.base, step.inputs)?;
    let owner = if op.user.is_empty() { (0, 0) } else { owner(&op.user, &dest, false)? };
    let mtime = op.epoch.map(|secs| Time { secs, nanos: 0 });
    let spec = MkdirSpec { path: op.path.clone(), owner, mode: 0o755, mtime };
    kiln_executor::mkdir::mkdir(&spec, &dest, writer).map_err(|error| copy_error(&error))
}

/// What a cache mount starts with.
pub(crate) fn fill_folder(
    store: &Store,
    snapshot: &Snapshot,
    source: &str,
    root: &Root,
) -> io::Result<()> {
    let layers = Layers::open(store, &snapshot.layers).map_err(io::Error::other)?;
    let path = kiln_cache::resolve(&layers, Path::new(source), true).map_err(io::Error::other)?;
    fill(&layers, &path, root, Path::new(""))
}

fn fill(view: &dyn View, from: &Path, root: &Root, to: &Path) -> io::Result<()> {
    for (name, child) in view.children(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        let metadata = &child.entry.metadata;
        match &child.entry.kind {
            Kind::Directory { .. } => {
                root.mkdir(&to, 0o700)?;
                fill(view, &from, root, &to)?;
            }
            Kind::File { .. } => {
                io::copy(&mut view.read(&from)?, &mut root.create_file(&to, 0o600)?)?;
            }
            Kind::Symlink { target } => root.symlink(target, &to)?,
            // Devices and the like are of no use in a cache.
            _ => continue,
        }
        root.chown(&to, metadata.uid, metadata.gid)?;
        if !matches!(child.entry.kind, Kind::Symlink { .. }) {
            root.chmod(&to, metadata.mode)?;
        }
    }
    Ok(())
}

/// ADD's archives, by the image crate.
struct Archives;

impl Unpack for Archives {
    fn is_archive(&self, file: &mut File) -> io::Result<bool> {
        is_archive(file)
    }

    fn unpack(
        &self,
        file: File,
        below: &dyn View,
        dest: &Path,
        writer: &LayerWriter,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        let target = AddTarget { below, directory: dest, owner };
        add_archive(file, Budget::default(), target, writer).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::{SourcePath, literal_prefix, source_path};

    #[test]
    fn sources_stay_in_their_root() {
        for (path, expect) in [("../../a", "a"), ("/a/./b/", "a/b"), (".", ""), ("a\\*b", "a*b")] {
            match source_path(path, false).expect(path) {
                SourcePath::Plain(found) => assert_eq!(found.to_str(), Some(expect), "{path}"),
                _ => panic!("{path} is no pattern"),
            }
        }
        assert!(matches!(source_path("a/*.c", false), Ok(SourcePath::Pattern { .. })));
        assert_eq!(literal_prefix("a/b/*.c").to_str(), Some("a/b"));
        assert!(source_path("a[", false).is_err());
    }
}
