//! A build that attacks the host, and the verdict on it.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::env::{Said, World, said};
use crate::hostile::Tree;
use crate::sentinel::Sentinel;

/// After so long a build hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Steps are without a network, unless a test is about one: that is quicker.
pub(crate) const QUIET: &str = "--network=none";

/// A world with a host to protect.
pub(crate) struct Attack {
    pub(crate) world: World,
    pub(crate) sentinel: Sentinel,
}

impl Attack {
    /// With the image `busybox`, which has no /dev, /proc, /sys and no commands but busybox's.
    pub(crate) fn new() -> Self {
        let attack = Self { world: World::new(), sentinel: Sentinel::new() };
        let base = Tree::busybox().folder("etc").folder("tmp").folder("root");
        attack.image("busybox", base.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"));
        attack
    }

    /// Imports an image.
    pub(crate) fn image(&self, name: &str, tree: Tree) -> &Self {
        self.import(name, tree).ok();
        self
    }

    /// Imports an image, which may fail.
    pub(crate) fn import(&self, name: &str, tree: Tree) -> Said {
        fs::write(self.world.path("image.tar"), tree.archive()).expect("file written");
        self.checked(self.world.command().args(["import", "image.tar", name]))
    }

    /// Builds a Dockerfile in which `SENTINEL` is the host's folder.
    pub(crate) fn build(&self, dockerfile: &str, args: &[&str]) -> Said {
        self.world.file("Dockerfile", &dockerfile.replace("SENTINEL", &self.sentinel.path()));
        let with_network = args.iter().any(|arg| arg.starts_with("--network"));
        let mut command = self.world.command();
        command.args(["build", "--progress", "plain"]).args((!with_network).then_some(QUIET));
        self.checked(command.args(args).arg("ctx"))
    }

    /// Runs a command of the world: it ends, does not break, and the host is as it was.
    pub(crate) fn checked(&self, command: &mut Command) -> Said {
        let said = said(&ended(command));
        assert!([0, 1, 2, 3].contains(&said.code), "exit code {}:\n{}", said.code, said.err);
        assert!(!said.err.contains("panicked"), "{}", said.err);
        self.sentinel.is_unharmed(&self.world, &said);
        said
    }

    /// `kiln build` of the context, started by another program with its arguments.
    pub(crate) fn build_by(&self, program: &str, args: &[&str]) -> Said {
        let mut command = self.world.started_by(program, args);
        self.checked(command.args(["build", "--progress", "plain", QUIET, "ctx"]))
    }

    /// Builds; the result is in the folder `out`, which is empty before.
    pub(crate) fn output(&self, dockerfile: &str, args: &[&str]) -> PathBuf {
        let out = self.world.path("out");
        if out.exists() {
            fs::remove_dir_all(&out).expect("removed");
        }
        self.build(dockerfile, &[args, &["-o", "out"]].concat()).ok();
        out
    }
}

impl Said {
    /// It failed, and says why.
    #[track_caller]
    pub(crate) fn refused(&self, reason: &str) {
        assert_ne!(self.code, 0, "not refused:\n{}", self.err);
        assert!(self.err.contains(reason), "{reason:?} is not in:\n{}", self.err);
    }

    /// The log of a step has a line that ends with this.
    #[track_caller]
    pub(crate) fn told(self, line: &str) -> Self {
        let found = self.err.lines().any(|told| told.ends_with(line));
        assert!(found, "no line ends with {line:?}:\n{}", self.err);
        self
    }
}

/// Waits for a command; one that hangs is killed and fails the test.
pub(crate) fn ended(command: &mut Command) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let out = drain(child.stdout.take().expect("piped"));
    let err = drain(child.stderr.take().expect("piped"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if started.elapsed() > HANGS_AFTER {
            child.kill().expect("killed");
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().expect("read"), stderr: err.join().expect("read") }
}

/// Reads to the end, in a thread of its own.
fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("readable");
        bytes
    })
}

/// Waits for something that has to come.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < HANGS_AFTER, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
