//! The options of `kiln build`: those of `docker buildx build`, same names, same meaning.
//! What Kiln does not do yet is refused in [`super::refused`], never ignored.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::refused::RefusedOptions;
use crate::call::Call;
use crate::failure::Failure;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// `tty` on a terminal, `plain` elsewhere.
    #[default]
    Auto,
    /// A live view.
    Tty,
    /// Plain lines.
    Plain,
    /// Nothing but errors.
    Quiet,
    /// The same as `quiet`.
    None,
    /// One JSON document a line.
    Rawjson,
}

/// What happens when a RUN fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    /// The build ends.
    #[default]
    Stop,
    /// A shell is opened first.
    Shell,
}

/// Build an image from a Dockerfile.
#[derive(Args, Debug)]
pub(crate) struct BuildOptions {
    /// Build context: a folder, or `-` for a Dockerfile on standard input
    #[arg(value_name = "PATH | -", default_value = ".")]
    pub(crate) context: String,

    #[command(flatten)]
    pub(crate) input: InputOptions,

    #[command(flatten)]
    pub(crate) language: LanguageOptions,

    #[command(flatten)]
    pub(crate) result: ResultOptions,

    #[command(flatten)]
    pub(crate) execution: ExecutionOptions,

    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,

    #[command(flatten)]
    pub(crate) refused: RefusedOptions,
}

impl BuildOptions {
    /// The question that is asked instead of building, if one is.
    ///
    /// # Errors
    /// A malformed `--call`.
    pub(crate) fn call(&self) -> Result<Option<Call>, Failure> {
        if self.language.check {
            return Call::parse("check");
        }
        self.language.call.as_deref().map_or(Ok(None), Call::parse)
    }
}

/// What is read.
#[derive(Args, Debug)]
pub(crate) struct InputOptions {
    /// Name of the Dockerfile (default: PATH/Dockerfile), `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<String>,

    /// Additional build context: NAME=PATH, NAME=docker-image://REF, NAME=oci-layout://PATH[:TAG|@DIGEST]
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) build_context: Vec<String>,

    /// Secret for RUN --mount=type=secret: id=ID[,src=FILE|env=VARIABLE]
    #[arg(long, value_name = "SPEC")]
    pub(crate) secret: Vec<String>,

    /// SSH agent for RUN --mount=type=ssh: default ($SSH_AUTH_SOCK), ID=SOCKET or ID=KEY[,KEY…]; [,raw=true]
    #[arg(long, value_name = "SPEC")]
    pub(crate) ssh: Vec<String>,

    /// Look for newer versions of base images
    #[arg(long)]
    pub(crate) pull: bool,
}

/// What changes the meaning of the Dockerfile.
#[derive(Args, Debug)]
pub(crate) struct LanguageOptions {
    /// Stage to build
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Answer a question instead of building: check|outline|targets[,format=text|json|sarif]
    #[arg(long, value_name = "METHOD", conflicts_with = "check")]
    pub(crate) call: Option<String>,

    /// The same as --call=check
    #[arg(long)]
    pub(crate) check: bool,

    /// Build argument: NAME=VALUE, or NAME for the caller's environment variable
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,

    /// Label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,

    /// Target platforms, such as linux/amd64,linux/arm64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Vec<String>,

    /// Network of RUN steps
    #[arg(long, value_name = "default|none|host", default_value = "default")]
    pub(crate) network: String,

    /// Let steps leave the sandbox: security.insecure, network.host
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,

    /// Additional line of /etc/hosts: HOST:IP or HOST=IP; HOST:host-gateway for this machine
    #[arg(long, value_name = "HOST:IP")]
    pub(crate) add_host: Vec<String>,

    /// Size of /dev/shm of RUN steps, such as 128m
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,

    /// Control group below which RUN steps run, such as /builds
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,

    /// Resource limit of RUN steps: NAME=SOFT[:HARD]
    #[arg(long, value_name = "SPEC")]
    pub(crate) ulimit: Vec<String>,
}

/// `--userns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UserNamespace {
    /// Every step has its own.
    Auto,
    /// That of the builder.
    Host,
}

/// What steps may use of the machine; nothing of it is in a cache key.
#[derive(Args, Debug)]
pub(crate) struct SandboxOptions {
    /// Memory of each RUN step, such as 2g
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) memory: Option<String>,

    /// Processors of each RUN step, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,

    /// Processes and threads of each RUN step
    #[arg(long, value_name = "NUMBER")]
    pub(crate) pids_limit: Option<u64>,

    /// Seconds that a step has to end by itself when the build is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) stop_timeout: u64,

    /// User namespace of RUN steps: auto, or host for the ids of the builder (root is root then)
    #[arg(long, value_name = "auto|host", default_value = "auto")]
    pub(crate) userns: UserNamespace,

    /// Of RUN steps: seccomp=FILE (a profile in Docker's format), seccomp=unconfined, no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,

    /// Name server of RUN steps, instead of this machine's
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,

    /// Certificate authorities (PEM) that RUN steps trust, besides those of the image; in no layer, in no key
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_certs: Option<PathBuf>,
}

/// What leaves.
#[derive(Args, Debug)]
pub(crate) struct ResultOptions {
    /// Name of the image, NAME[:TAG]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,

    /// Output: type=oci|docker|local|tar|image|registry|cacheonly[,dest=PATH][,…], a folder, or `-`
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) output: Vec<String>,

    /// Push the image to the registry that its name says
    #[arg(long)]
    pub(crate) push: bool,

    /// Annotation of the image: [manifest|manifest-descriptor|index|index-descriptor[[PLATFORM]],…:]KEY=VALUE
    #[arg(long, value_name = "ANNOTATION")]
    pub(crate) annotation: Vec<String>,

    /// Write the digest of the image's configuration to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,

    /// Write facts about the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
}

/// How it is done.
#[derive(Args, Debug)]
pub(crate) struct ExecutionOptions {
    /// Run every step anew
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Run every step of these stages anew
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,

    /// Cache of other machines to read: REF, type=registry,ref=REF or type=local,src=FOLDER; [,mounts=ID,ID]
    #[arg(long, value_name = "SPEC")]
    pub(crate) cache_from: Vec<String>,

    /// Cache for other machines to write: REF, type=registry,ref=REF, type=local,dest=FOLDER or type=inline; [,mode=min|max][,mounts=ID,ID][,…]
    #[arg(long, value_name = "SPEC")]
    pub(crate) cache_to: Vec<String>,

    /// How to show progress
    #[arg(long, value_name = "MODE", value_enum, default_value_t, env = "BUILDKIT_PROGRESS")]
    pub(crate) progress: ProgressMode,

    /// Show everything that differs where a step was not cached
    #[arg(long)]
    pub(crate) explain: bool,

    /// What to do when a RUN fails: stop, or open a shell in the state that it left
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub(crate) on_failure: OnFailure,

    /// Copy a folder out of a RUN that failed: /PATH=FOLDER
    #[arg(long, value_name = "/PATH=FOLDER")]
    pub(crate) output_on_failure: Vec<String>,

    /// Print nothing but the digest of the image
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// How many steps run at once (default: the number of cores)
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<std::num::NonZeroUsize>,
}
