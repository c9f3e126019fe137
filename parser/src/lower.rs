//! From the tree to the DAG: stages, arguments, inheritance, triggers; only what the targets reach.
//! Pure: base images are asked for ([`Lowering::NeedImages`]) and handed in with the next call.

mod allow;
mod args;
mod copy;
mod device;
mod lints;
mod outline;
mod ports;
mod run;
mod stage;
mod stages;

pub use stage::context_node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ImageConfig;
use crate::diagnostic::{Diagnostic, Severity};
use crate::git::GitRef;
use crate::graph::{Graph, HttpOp, ImageKey, Input, Network, NodeId, Ulimit};
use crate::ignore::Patterns;
use crate::lint::checks::Checks;
use crate::lint::{self, Linter};
use crate::outline::Outline;
use crate::platform::Platform;
use crate::source::Span;
use crate::tree::Dockerfile;

pub use allow::Allowed;
pub use device::DeviceInfo;

/// What a context is, as far as the language cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder of the caller.
    #[default]
    Local,
    /// A checkout.
    Git(GitRef),
    /// A file from the network or from standard input.
    File {
        /// The file.
        file: HttpOp,
        /// It is an archive, and its content is the context.
        unpack: bool,
    },
    /// An image, in a registry, a layout or the store.
    Image,
    /// The empty image (`docker-image://scratch`).
    Scratch,
    /// A stage of the Dockerfile (`target:NAME`), in lower case.
    Stage(String),
}

/// Which steps are run anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    Nothing,
    /// All.
    Everything,
    /// Those of these stages, names in lower case.
    Stages(BTreeSet<String>),
}

/// Everything besides the Dockerfile that decides about the DAG.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// `--target`.
    pub target: Option<String>,
    /// `--build-arg`, those that have a value.
    pub build_args: BTreeMap<String, String>,
    /// `--platform`; empty where nothing was asked for.
    pub platforms: Vec<Platform>,
    /// The platform of this machine.
    pub build_platform: Platform,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// The main context.
    pub context: NamedContext,
    /// `--build-context`, names in lower case.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// `--no-cache`, `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--allow`.
    pub allow: Allowed,
    /// `--network`.
    pub network: Network,
    /// `--add-host`.
    pub hosts: Arc<Vec<(String, String)>>,
    /// `--shm-size`, bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`.
    pub ulimits: Arc<Vec<Ulimit>>,
    /// The devices of this machine.
    pub devices: Vec<DeviceInfo>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<Arc<str>>,
    /// What the ignore file of the main context leaves out, for the rule CopyIgnoredFile.
    pub ignore: Patterns,
    /// All stages are looked at, not only those that the target needs (`--check`).
    pub all_stages: bool,
}

impl Default for LowerOptions {
    fn default() -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            platforms: Vec::new(),
            build_platform: Platform::host(),
            labels: BTreeMap::new(),
            context: NamedContext::Local,
            named_contexts: BTreeMap::new(),
            no_cache: NoCache::Nothing,
            allow: Allowed::default(),
            network: Network::Default,
            hosts: Arc::default(),
            shm_size: None,
            ulimits: Arc::default(),
            devices: Vec::new(),
            cgroup_parent: None,
            ignore: Patterns::default(),
            all_stages: false,
        }
    }
}

/// What is known about an image.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// Digest of its manifest.
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// The platform that its configuration names.
    pub platform: Platform,
    /// Digests of its uncompressed layers, bottom to top.
    pub diff_ids: Vec<String>,
    /// Nothing is known but the name: rules that need the configuration are silent (`kiln lint`).
    pub unknown: bool,
}

/// The images that were looked up so far.
pub type Known = BTreeMap<ImageKey, BaseImage>;

/// An image that is needed to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// Which one.
    pub key: ImageKey,
    /// Who asks: the FROM or COPY.
    pub span: Span,
}

/// What lowering comes to.
#[derive(Debug)]
pub enum Lowering {
    /// These images have to be looked up first; then call again.
    NeedImages(Vec<ImageRequest>),
    /// Done.
    Done(Box<Lowered>),
}

/// The DAG and what leaves it.
#[derive(Debug)]
pub struct Lowered {
    /// The operations.
    pub graph: Graph,
    /// One result a platform, in the order asked for.
    pub targets: Vec<Target>,
    /// What lints found, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// What the first platform's target can be given.
    pub outline: Outline,
}

/// One image.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it is for.
    pub platform: Platform,
    /// Its files.
    pub snapshot: Input,
    /// Its configuration.
    pub config: ImageConfig,
    /// What this Dockerfile adds to the history.
    pub history: Vec<Arc<HistoryEntry>>,
    /// The image it starts from; `None` for scratch and contexts.
    pub base: Option<ImageKey>,
    /// SOURCE_DATE_EPOCH, seconds.
    pub epoch: Option<i64>,
}

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// `RUN /bin/sh -c make # buildkit`.
    pub created_by: String,
    /// The node that made its layer; `None` for lines without one.
    pub node: Option<NodeId>,
}

/// Turns a Dockerfile into a DAG.
///
/// # Errors
/// What is wrong, with places: an error at the end, and in front of it what lints found until then.
pub fn lower(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    known: &Known,
) -> Result<Lowering, Vec<Diagnostic>> {
    let mut graph = Graph::default();
    let mut targets = Vec::new();
    let mut requests: Vec<ImageRequest> = Vec::new();
    let platforms = if options.platforms.is_empty() {
        vec![options.build_platform.clone()]
    } else {
        options.platforms.clone()
    };
    let linter = Linter::new(checks(dockerfile, options)?);
    lint::syntax::check(dockerfile, &linter);
    let (strict, silent) = (linter.is_strict(), Linter::default());
    let mut outline = None;
    for (number, platform) in platforms.into_iter().enumerate() {
        let linter = if number == 0 { &linter } else { &silent };
        let plan = match stages::Plan::new(dockerfile, options, known, platform, linter) {
            Ok(plan) => plan,
            Err(diagnostic) => return Err(failed(linter, diagnostic)),
        };
        if !plan.requests.is_empty() {
            for request in plan.requests {
                if !requests.iter().any(|seen| seen.key == request.key) {
                    requests.push(request);
                }
            }
            continue;
        }
        let (target, described) = match stages::lower_plan(&plan, &mut graph) {
            Ok(lowered) => lowered,
            Err(diagnostic) => return Err(failed(linter, diagnostic)),
        };
        targets.push(target);
        outline.get_or_insert(described);
    }
    if !requests.is_empty() {
        return Ok(Lowering::NeedImages(requests));
    }
    let mut warnings = linter.finish();
    if strict && !warnings.is_empty() {
        warnings.push(as_error(lint::violation(&warnings)));
        return Err(warnings);
    }
    let outline = outline.unwrap_or_default();
    Ok(Lowering::Done(Box::new(Lowered { graph, targets, warnings, outline })))
}

/// The build argument replaces the directive.
fn checks(dockerfile: &Dockerfile, options: &LowerOptions) -> Result<Checks, Vec<Diagnostic>> {
    let directive = dockerfile.directives.iter().find(|directive| directive.name == "check");
    let text = match (options.build_args.get("BUILDKIT_DOCKERFILE_CHECK"), directive) {
        (Some(given), _) => given,
        (None, Some(directive)) => &directive.value,
        (None, None) => return Ok(Checks::default()),
    };
    Checks::parse(text).map_err(|why| {
        let span = directive.map_or(Span::default(), |directive| directive.span);
        let message = format!("failed to parse check options: {why}");
        let help = "for example # check=skip=JSONArgsRecommended;error=true";
        vec![as_error(Diagnostic::error(span, message).help(help))]
    })
}

/// What lints found, and the error behind it.
fn failed(linter: &Linter, diagnostic: Diagnostic) -> Vec<Diagnostic> {
    let mut all = linter.found();
    all.push(as_error(diagnostic));
    all
}

fn as_error(diagnostic: Diagnostic) -> Diagnostic {
    Diagnostic { severity: Severity::Error, code: "lower", ..diagnostic }
}
