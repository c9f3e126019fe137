//! The instruction DAG: operations on file systems, and the snapshots between them. Equal
//! operations are one node, across stages, targets and platforms.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};

use crate::git::GitRef;
use crate::mount::Sharing;
use crate::platform::Platform;
use crate::source::Span;

/// Names a node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// The file system that an operation starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Input {
    /// The empty one.
    Scratch,
    /// What another node made.
    Node(NodeId),
}

/// Which image is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageName {
    /// A reference, as written or with `:latest` added.
    Reference(String),
    /// A named context that is an image: `docker-image://` or `oci-layout://`.
    Context(String),
}

/// An image for a platform.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    /// Which image.
    pub name: ImageName,
    /// For which platform.
    pub platform: Platform,
}

/// Where a node came from; several instructions may have become one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `[build 2/5] RUN make`.
    pub label: String,
    /// The instruction alone, `RUN make`.
    pub text: String,
    /// The stage's name or number.
    pub stage: String,
    /// The instruction in the Dockerfile.
    pub span: Span,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// For which platform, where that matters (images and RUN).
    pub platform: Option<Platform>,
    /// `--no-cache`: no look-up, but the result is stored.
    pub no_cache: bool,
    /// Where it came from; at least one, and of very many the first.
    pub steps: Vec<Step>,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The layers of an image.
    Image(ImageOp),
    /// A folder of the caller: `context` is the main one, others are named contexts.
    Context {
        /// The context's name.
        name: String,
    },
    /// A file from the network.
    Http(HttpOp),
    /// A git checkout; which commit that is, is found out when the build begins.
    Git(GitRef),
    /// A command.
    Run(Box<RunOp>),
    /// Files into a new layer.
    Copy(Box<CopyOp>),
    /// A directory (WORKDIR).
    Mkdir(MkdirOp),
}

/// An image's layers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageOp {
    /// How it was asked for.
    pub key: ImageKey,
    /// Digest of its manifest.
    pub digest: String,
    /// Digests of its uncompressed layers, bottom to top.
    pub diff_ids: Vec<String>,
}

/// `ADD https://…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpOp {
    /// The address.
    pub url: String,
    /// What the file is called.
    pub filename: String,
    /// `sha256:…` that the body must have.
    pub checksum: Option<String>,
}

/// The network of a step.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Network {
    /// Outgoing connections.
    #[default]
    Default,
    /// Loopback alone.
    None,
    /// The caller's.
    Host,
}

/// A resource limit, `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile` and the like.
    pub name: String,
    /// Soft limit; -1 is none.
    pub soft: i64,
    /// Hard limit; -1 is none.
    pub hard: i64,
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunOp {
    /// The root file system.
    pub base: Input,
    /// Program and arguments, the shell already in front.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Arc<Vec<(String, String)>>,
    /// Proxy variables: in the environment, in no key.
    #[serde(skip)]
    pub proxy: Arc<Vec<(String, String)>>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `USER`, empty for root.
    pub user: String,
    /// Network.
    pub network: Network,
    /// `--security=insecure`.
    pub insecure: bool,
    /// `--device` values.
    pub devices: Vec<String>,
    /// Mounts, in order of their targets.
    pub mounts: Vec<Mount>,
    /// Files of `#!` heredocs, shown read-only at `/dev/pipes/NAME` with mode 0755.
    pub scripts: Vec<InlineFile>,
    /// Host name.
    pub hostname: String,
    /// Lines of /etc/hosts: name and address.
    pub hosts: Arc<Vec<(String, String)>>,
    /// Size of /dev/shm in bytes.
    pub shm_size: Option<u64>,
    /// Resource limits.
    pub ulimits: Arc<Vec<Ulimit>>,
    /// The control group below which it runs.
    pub cgroup_parent: Option<Arc<str>>,
}

/// `RUN --mount`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mount {
    /// Files of a snapshot.
    Bind {
        /// The snapshot.
        from: Input,
        /// Path in it.
        source: String,
        /// Where it is seen, absolute.
        target: String,
        /// Else writes are thrown away.
        read_only: bool,
    },
    /// A folder that stays.
    Cache {
        /// Its name, `namespace/id`.
        id: String,
        /// Whether the id is the default, the target's path: only then it is in the key.
        default_id: bool,
        /// Where it is seen.
        target: String,
        /// Who may use it at once.
        sharing: Sharing,
        /// What it starts with.
        from: Input,
        /// Path in it.
        source: String,
        /// Mode, owner and group of a new folder.
        owner: Option<(u32, u32, u32)>,
        /// No writes.
        read_only: bool,
    },
    /// Memory.
    Tmpfs {
        /// Where it is seen.
        target: String,
        /// Bytes.
        size: Option<u64>,
    },
    /// A secret as a file, a variable, or both.
    Secret {
        /// Its id.
        id: String,
        /// The file.
        target: Option<String>,
        /// The variable.
        env: Option<String>,
        /// Missing is an error.
        required: bool,
        /// Mode, owner and group of the file.
        owner: (u32, u32, u32),
    },
    /// The agent's socket.
    Ssh {
        /// Its id.
        id: String,
        /// The socket.
        target: String,
        /// Missing is an error.
        required: bool,
        /// Mode, owner and group of the socket.
        owner: (u32, u32, u32),
    },
}

impl Mount {
    /// Where it is seen, if anywhere.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Bind { target, .. }
            | Self::Cache { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Ssh { target, .. } => Some(target),
            Self::Secret { target, .. } => target.as_deref(),
        }
    }

    /// The snapshot it reads.
    #[must_use]
    pub fn input(&self) -> Option<Input> {
        match self {
            Self::Bind { from, .. } | Self::Cache { from, .. } => Some(*from),
            Self::Tmpfs { .. } | Self::Secret { .. } | Self::Ssh { .. } => None,
        }
    }
}

/// A file whose content stands in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub data: String,
}

/// Whether archives are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unpack {
    /// Copied as they are.
    Never,
    /// Unpacked where the content is an archive.
    IfArchive,
}

/// `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Chmod {
    /// `0755`.
    Octal(u32),
    /// `u=rwX,go=rX`.
    Symbolic(String),
}

/// Where one source of COPY or ADD comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CopyFrom {
    /// A snapshot of layers.
    Snapshot(Input),
    /// A context node.
    Context(NodeId),
    /// An http node.
    Remote(NodeId),
    /// A heredoc.
    Inline(InlineFile),
}

/// One source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopySource {
    /// Where from.
    pub from: CopyFrom,
    /// The path or pattern, expanded, as written otherwise; empty for heredocs and remotes.
    pub path: String,
    /// What happens to archives.
    pub unpack: Unpack,
}

/// COPY and ADD.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopyOp {
    /// What is copied onto.
    pub base: Input,
    /// Sources, in the order in which they are copied.
    pub sources: Vec<CopySource>,
    /// Destination, absolute; a `/` at the end means a directory.
    pub dest: String,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<Chmod>,
    /// `--link`: the layer does not depend on the base.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`.
    pub exclude: Vec<String>,
}

/// WORKDIR.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MkdirOp {
    /// What it is made in.
    pub base: Input,
    /// The directory, absolute.
    pub path: String,
    /// `USER`, empty for root.
    pub user: String,
    /// Modification time in seconds, where SOURCE_DATE_EPOCH says so.
    pub epoch: Option<i64>,
}

impl Op {
    /// The nodes whose results it reads, without repetition, in order.
    #[must_use]
    pub fn inputs(&self) -> Vec<NodeId> {
        let mut inputs = Vec::new();
        let mut add = |input: Input| {
            if let Input::Node(id) = input
                && !inputs.contains(&id)
            {
                inputs.push(id);
            }
        };
        match self {
            Self::Image(_) | Self::Context { .. } | Self::Http(_) | Self::Git(_) => {}
            Self::Mkdir(op) => add(op.base),
            Self::Run(op) => {
                add(op.base);
                op.mounts.iter().filter_map(Mount::input).for_each(&mut add);
            }
            Self::Copy(op) => {
                add(op.base);
                for source in &op.sources {
                    match &source.from {
                        CopyFrom::Snapshot(input) => add(*input),
                        CopyFrom::Context(id) | CopyFrom::Remote(id) => add(Input::Node(*id)),
                        CopyFrom::Inline(_) => {}
                    }
                }
            }
        }
        inputs
    }
}

/// How many instructions a node remembers that it came from: the first ones are shown.
const STEPS_MAX: usize = 32;

/// The graph. Nodes are numbered in the order they were made, so inputs have lower numbers.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: DiGraph<Node, ()>,
    known: HashMap<(Op, Option<Platform>, bool), NodeId>,
    /// See [`Graph::bytes`].
    bytes: usize,
}

/// Counts what a value would be hashed by: about the bytes of its texts.
#[derive(Default)]
struct Weight(usize);

impl Hasher for Weight {
    fn write(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn finish(&self) -> u64 {
        self.0 as u64
    }
}

impl Step {
    fn bytes(&self) -> usize {
        self.label.len() + self.text.len() + self.stage.len()
    }
}

impl Graph {
    /// Adds a node, or a step to the equal one that is there.
    pub fn add(
        &mut self,
        op: Op,
        platform: Option<Platform>,
        no_cache: bool,
        step: Step,
    ) -> NodeId {
        let key = (op, platform, no_cache);
        if let Some(&id) = self.known.get(&key) {
            let steps = &mut self.nodes[NodeIndex::new(id.0 as usize)].steps;
            if steps.len() < STEPS_MAX && !steps.contains(&step) {
                self.bytes += step.bytes();
                steps.push(step);
            }
            return id;
        }
        let mut weight = Weight::default();
        key.hash(&mut weight);
        self.bytes += weight.0 + step.bytes();
        let (op, platform, no_cache) = key.clone();
        let inputs = op.inputs();
        let index = self.nodes.add_node(Node { op, platform, no_cache, steps: vec![step] });
        for input in inputs {
            self.nodes.add_edge(NodeIndex::new(input.0 as usize), index, ());
        }
        let id = NodeId(u32::try_from(index.index()).unwrap_or(u32::MAX));
        self.known.insert(key, id);
        id
    }

    /// About how many bytes its nodes hold, those that they share counted for each.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many nodes there are; their ids count from 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A node.
    ///
    /// # Panics
    /// Where the id is of another graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[NodeIndex::new(id.0 as usize)]
    }

    /// All ids, inputs before what reads them.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).map(NodeId)
    }

    /// The nodes that read a node's result.
    pub fn users(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let index = NodeIndex::new(id.0 as usize);
        self.nodes
            .neighbors(index)
            .map(|user| NodeId(u32::try_from(user.index()).unwrap_or(u32::MAX)))
    }
}
