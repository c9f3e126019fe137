//! From the tree to the DAG: stages, arguments, inheritance, triggers; only what the targets reach.
//! Pure: base images are asked for ([`Lowering::NeedImages`]) and handed in with the next call.

mod allow;
mod args;
mod copy;
mod ports;
mod run;
mod stage;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ImageConfig;
use crate::diagnostic::{Diagnostic, Severity};
use crate::graph::{Graph, ImageKey, Input, Network, NodeId, Ulimit};
use crate::platform::Platform;
use crate::source::Span;
use crate::tree::Dockerfile;

pub use allow::Allowed;

/// What a named context is, as far as the language cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder.
    Local,
    /// An image, in a registry, a layout or the store.
    Image,
    /// The empty image (`docker-image://scratch`).
    Scratch,
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
}

impl Default for LowerOptions {
    fn default() -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            platforms: Vec::new(),
            build_platform: Platform::host(),
            labels: BTreeMap::new(),
            named_contexts: BTreeMap::new(),
            no_cache: NoCache::Nothing,
            allow: Allowed::default(),
            network: Network::Default,
            hosts: Arc::default(),
            shm_size: None,
            ulimits: Arc::default(),
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
    Done(Lowered),
}

/// The DAG and what leaves it.
#[derive(Debug)]
pub struct Lowered {
    /// The operations.
    pub graph: Graph,
    /// One result a platform, in the order asked for.
    pub targets: Vec<Target>,
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
/// What is wrong, with places; never empty.
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
    for platform in platforms {
        let plan = stages::Plan::new(dockerfile, options, known, platform)
            .map_err(|diagnostic| vec![as_error(diagnostic)])?;
        if !plan.requests.is_empty() {
            for request in plan.requests {
                if !requests.iter().any(|seen| seen.key == request.key) {
                    requests.push(request);
                }
            }
            continue;
        }
        let target = stages::lower_plan(&plan, &mut graph)
            .map_err(|diagnostic| vec![as_error(diagnostic)])?;
        targets.push(target);
    }
    if !requests.is_empty() {
        return Ok(Lowering::NeedImages(requests));
    }
    Ok(Lowering::Done(Lowered { graph, targets }))
}

fn as_error(diagnostic: Diagnostic) -> Diagnostic {
    Diagnostic { severity: Severity::Error, code: "lower", ..diagnostic }
}
