//! A RUN as plain data. Nothing in it is a decision about security: those are in `rootfs`,
//! `capability` and `seccomp`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::seccomp::Filter;
use crate::trust::CaCerts;

/// The network that a step sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network namespace of its own with outgoing connections ([`crate::net`]).
    Default,
    /// Loopback alone, in a network namespace of its own.
    None,
    /// The host's network namespace.
    Host,
}

/// What a line of /etc/hosts leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// An address.
    Fixed(IpAddr),
    /// Wherever this machine's services are reached from the step's network: `host-gateway`.
    Gateway,
}

/// A stack of layer directories, bottom to top, shown as one file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Layer directories; empty for an empty file system.
    pub layers: Vec<PathBuf>,
}

impl Stack {
    /// A layer that an image has twice stands at its upper place alone, where it hides all that it hid below as well:
    /// overlay takes no directory twice (`ELOOP`).
    #[must_use]
    pub fn new(layers: Vec<PathBuf>) -> Self {
        let mut seen = std::collections::HashSet::new();
        let mut kept: Vec<PathBuf> =
            layers.into_iter().rev().filter(|layer| seen.insert(layer.clone())).collect();
        kept.reverse();
        Self { layers: kept }
    }
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path in a stack of layers.
    Layers {
        /// The stack.
        stack: Stack,
        /// Path in it, resolved inside it.
        source: PathBuf,
        /// Else writes go to a directory that is thrown away.
        read_only: bool,
    },
    /// A folder of the store (cache mounts), or a path in it.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Path in it, resolved inside it.
        source: PathBuf,
        /// No writes.
        read_only: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; `None` for the kernel's default.
        size: Option<u64>,
    },
    /// A small file made for the step, in memory.
    File {
        /// Its content.
        content: Vec<u8>,
        /// Mode, owner and group.
        owner: (u32, u32, u32),
        /// Whether it may be executed.
        executable: bool,
    },
    /// A socket of the caller's, which may not outlive the step.
    Socket {
        /// The socket; its mode and owner are what the step sees.
        path: PathBuf,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Where it is seen, absolute.
    pub target: PathBuf,
    /// What is seen.
    pub source: MountSource,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Docker's name: `nofile`, `core` …
    pub name: String,
    /// Soft limit; `None` is no limit.
    pub soft: Option<u64>,
    /// Hard limit; `None` is no limit.
    pub hard: Option<u64>,
}

/// Bounds of everything that a step runs together (cgroups(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes of memory, with swap.
    pub memory: Option<u64>,
    /// Processor time, in thousandths of a processor.
    pub milli_cpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Resources {
    /// Whether there is no bound.
    pub fn is_unbounded(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the standard streams of a step lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Output to the log, no input: every step of a build.
    Logged,
    /// Output to the log, input from that of this process.
    Input,
    /// A terminal of its own, carried to that of this process; its output goes to the log.
    Terminal,
}

/// What a step may ask of the kernel.
#[derive(Clone, Debug)]
pub enum SystemCalls {
    /// What Kiln's own profile allows.
    Standard {
        /// Programs of 32-bit x86 may use `socketcall`, as images of linux/386 need.
        multiplexed_sockets: bool,
    },
    /// What a caller's profile allows.
    Filtered(Arc<Filter>),
    /// Everything.
    Unfiltered,
}

/// How a step's root is made of layers, and its layer of what it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// An overlay.
    #[default]
    Overlay,
    /// fuse-overlayfs(1).
    FuseOverlayfs,
    /// A private copy, compared with what it was when the step has ended.
    Copy,
}

/// What is around a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enclosure {
    /// Namespaces, in which everything is mounted anew.
    #[default]
    Namespaces,
    /// Its root, entered by chroot(2), which has to be a copy.
    Chroot,
}

/// One RUN.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// What is around the step.
    pub enclosure: Enclosure,
    /// How the root is made.
    pub snapshotter: Snapshotter,
    /// What the step starts from.
    pub base: Stack,
    /// Where what it writes goes (overlay's upper directory), and overlay's work directory beside it.
    pub upper: PathBuf,
    /// Overlay's work directory.
    pub work: PathBuf,
    /// The folder that all layers, `upper`, `work` and `scratch` are in, on one file system.
    pub store: PathBuf,
    /// An empty directory for the step's own use (mount points, throw-away layers).
    pub scratch: PathBuf,
    /// Standard input and output.
    pub streams: Streams,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, complete but for HOME.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; made where it is missing.
    pub cwd: PathBuf,
    /// `user[:group]`, looked up in the root file system; empty for root.
    pub user: String,
    /// Groups that the user is in besides its own.
    pub groups: Vec<u32>,
    /// Network.
    pub network: Network,
    /// Whether the step gets a user namespace: root in it is nobody outside.
    pub own_ids: bool,
    /// Outside of the sandbox: the builder's capabilities, no system call filter, nothing of /proc and
    /// /sys hidden or read-only, control groups and devices of the host. The namespaces stay.
    pub insecure: bool,
    /// Which system calls it may make.
    pub system_calls: SystemCalls,
    /// Programs with the setuid bit or file capabilities gain nothing (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// Host name.
    pub hostname: String,
    /// Further lines of /etc/hosts.
    pub hosts: Vec<(String, HostAddress)>,
    /// Mounts, parents before children.
    pub mounts: Vec<MountSpec>,
    /// Size of /dev/shm, bytes.
    pub shm_size: Option<u64>,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Name servers instead of the host's.
    pub dns: Vec<IpAddr>,
    /// Certificate authorities that it trusts besides those of its image.
    pub ca_certs: Option<CaCerts>,
    /// What the step may use of the machine.
    pub resources: Resources,
    /// How long a step that is stopped has from SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The control group below which the step gets its own; `None` for that of the builder.
    pub cgroup_parent: Option<String>,
}

impl RunSpec {
    /// Whether there are neither namespaces nor mounts.
    pub(crate) fn in_chroot(&self) -> bool {
        self.enclosure == Enclosure::Chroot
    }

    /// Whether the step asks for a way to this machine's services.
    pub(crate) fn reaches_host(&self) -> bool {
        self.hosts.iter().any(|(_, address)| *address == HostAddress::Gateway)
    }
}
